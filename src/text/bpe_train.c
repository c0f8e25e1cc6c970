/* Counting the distinct words of the training text. */
#include "text/bpe_train_internal.h"

#include <stdlib.h>
#include <string.h>

int train_reserve(void **array, size_t *room, size_t n, size_t item_size, looplm_error *err) {
    if (n <= *room) return 0;
    size_t grown_room = *room ? *room * 2 : 1024;
    while (grown_room < n) grown_room *= 2;
    void *grown = realloc(*array, grown_room * item_size);
    if (!grown)
        return error_set(err, LOOPLM_MEMORY, "no memory to train a tokenizer (%zu bytes)", grown_room * item_size);
    *array = grown;
    *room = grown_room;
    return 0;
}

static int add_special(struct bpe_trainer *t, const char *text, int32_t id, looplm_error *err) {
    struct added_token token = {.text = (char *)text, .size = strlen(text), .id = id, .special = true};
    if (token.size == 0) return error_set(err, LOOPLM_USAGE, "a special token is empty");
    int status = vocab_add(&t->vocab, id, text, token.size, err);
    return status ? status : tokenizer_add_token(t->splitter, token, err);
}

/* The bytes in the order of the characters that stand for them, which is how the reference sorts its alphabet. */
static int add_alphabet(struct bpe_trainer *t, int32_t id, looplm_error *err) {
    for (uint32_t c = 0; c < 512; c++) {
        char text[UTF8_CHARACTER_BYTES_MAX + 1] = {0};
        int byte = byte_level_byte(c);
        if (byte < 0) continue;
        t->byte_id[byte] = id;
        int status = vocab_add(&t->vocab, id++, text, utf8_write(c, text), err);
        if (status) return status;
    }
    return 0;
}

static int fill(struct bpe_trainer *t, const struct bpe_train_options *options, looplm_error *err) {
    int status = tokenizer_new(&t->splitter, err);
    for (int i = 0; status == 0 && i < options->n_special; i++) status = add_special(t, options->special[i], i, err);
    if (status == 0) status = add_alphabet(t, options->n_special, err);
    if (status == 0) status = splitter_add_digits(t->splitter->splitter, true, err);
    if (status == 0) status = splitter_add_gpt2(t->splitter->splitter, false, true, err);
    if (status) return status;
    tokenizer_finish(t->splitter);
    return split_memory_open(&t->memory, t->splitter->splitter, err);
}

int bpe_trainer_open(struct bpe_trainer **trainer, const struct bpe_train_options *options, looplm_error *err) {
    *trainer = NULL;
    if (options->n_special > BPE_TRAIN_SPECIAL_MAX) {
        return error_set(err, LOOPLM_LIMIT, "more than %d special tokens", BPE_TRAIN_SPECIAL_MAX);
    }
    if (options->vocab_size < options->n_special + 256 || options->vocab_size > VOCAB_IDS_MAX) {
        return error_set(err, LOOPLM_USAGE,
                         "a vocabulary of %d cannot be: expected %d (special tokens and bytes) to %d",
                         (int)options->vocab_size, options->n_special + 256, (int)VOCAB_IDS_MAX);
    }
    struct bpe_trainer *t = calloc(1, sizeof *t);
    if (!t) return error_set(err, LOOPLM_MEMORY, "no memory to train a tokenizer");
    t->options = *options;
    vocab_init(&t->vocab);
    int status = fill(t, options, err);
    t->options.special = NULL;
    if (status)
        bpe_trainer_close(t);
    else
        *trainer = t;
    return status;
}

void bpe_trainer_close(struct bpe_trainer *t) {
    if (!t) return;
    split_memory_close(t->memory);
    tokenizer_close(t->splitter);
    vocab_free(&t->vocab);
    free(t->bytes);
    free(t->words);
    free(t->slots);
    free(t->merges);
    free(t);
}

static size_t find_slot(const struct bpe_trainer *t, const char *word, size_t size) {
    size_t slot = vocab_hash(word, size) & (t->n_slots - 1);
    for (; t->slots[slot]; slot = (slot + 1) & (t->n_slots - 1)) {
        const struct train_word *w = &t->words[t->slots[slot] - 1];
        if (w->n == size && !memcmp(t->bytes + w->offset, word, size)) break;
    }
    return slot;
}

static int grow_slots(struct bpe_trainer *t) {
    if ((t->n_words + 1) * 2 <= t->n_slots) return 0;
    size_t n_slots = t->n_slots ? t->n_slots * 2 : 1 << 14;
    uint32_t *slots = calloc(n_slots, sizeof *slots);
    if (!slots) return error_set(t->err, LOOPLM_MEMORY, "no memory for %zu distinct words", n_slots);
    free(t->slots);
    t->slots = slots;
    t->n_slots = n_slots;
    for (size_t i = 0; i < t->n_words; i++) {
        slots[find_slot(t, t->bytes + t->words[i].offset, t->words[i].n)] = (uint32_t)i + 1;
    }
    return 0;
}

static int count_word(void *context, const char *word, size_t size) {
    struct bpe_trainer *t = context;
    if (size > BPE_TRAIN_WORD_BYTES_MAX) return 0;
    if (grow_slots(t)) return LOOPLM_MEMORY;
    size_t slot = find_slot(t, word, size);
    if (t->slots[slot]) {
        t->words[t->slots[slot] - 1].count++;
        return 0;
    }
    if (t->n_words == BPE_TRAIN_WORDS_MAX) {
        return error_set(t->err, LOOPLM_LIMIT, "more than %zu distinct words; train on less text", BPE_TRAIN_WORDS_MAX);
    }
    int status = train_reserve((void **)&t->words, &t->words_room, t->n_words + 1, sizeof *t->words, t->err);
    if (status == 0) status = train_reserve((void **)&t->bytes, &t->bytes_room, t->bytes_used + size, 1, t->err);
    if (status) return status;
    memcpy(t->bytes + t->bytes_used, word, size);
    t->words[t->n_words++] = (struct train_word){.offset = t->bytes_used, .n = (uint32_t)size, .count = 1};
    t->bytes_used += size;
    t->slots[slot] = (uint32_t)t->n_words;
    return 0;
}

static int count_piece(void *context, const struct added_token *token, const char *text, size_t size) {
    struct bpe_trainer *t = context;
    return token ? 0 : split_text(t->splitter->splitter, t->memory, text, size, count_word, t, t->err);
}

int bpe_trainer_add(struct bpe_trainer *t, const char *text, size_t size, looplm_error *err) {
    char *replaced = NULL;
    if (!utf8_valid(text, size)) {
        text = replaced = utf8_replace_invalid(text, size, &size);
        if (!replaced) return error_set(err, LOOPLM_MEMORY, "no memory to replace invalid UTF-8");
    }
    t->err = err;
    int status = added_set_split(&t->splitter->added[false], t->splitter->classes, text, size, true, count_piece, t);
    free(replaced);
    return status;
}

int32_t bpe_trainer_size(const struct bpe_trainer *t) {
    return t->vocab.size;
}
