/* Writing a trained tokenizer as the two files that other programs load. */
#include "base/file.h"
#include "base/json.h"
#include "text/bpe_train_internal.h"

#include <stdlib.h>
#include <string.h>

static json_t *vocab_string(const struct vocab *vocab, int32_t id) {
    size_t size;
    const char *text = vocab_text(vocab, id, &size);
    return json_stringn(text, size);
}

static json_t *token_flags(const struct vocab *vocab, int32_t id) {
    return json_pack("{s:o, s:b, s:b, s:b, s:b, s:b}", "content", vocab_string(vocab, id), "single_word", 0, "lstrip",
                     0, "rstrip", 0, "normalized", 0, "special", 1);
}

static json_t *added_tokens(const struct bpe_trainer *t) {
    json_t *list = json_array();
    for (int32_t id = 0; id < t->options.n_special; id++) {
        json_t *entry = json_pack("{s:i}", "id", (int)id), *flags = token_flags(&t->vocab, id);
        json_object_update(entry, flags);
        json_decref(flags);
        json_array_append_new(list, entry);
    }
    return list;
}

static json_t *vocab_object(const struct vocab *vocab) {
    json_t *object = json_object();
    for (int32_t id = 0; id < vocab->size; id++) {
        size_t size;
        json_object_set_new(object, vocab_text(vocab, id, &size), json_integer(id));
    }
    return object;
}

static json_t *merges_array(const struct bpe_trainer *t) {
    json_t *list = json_array();
    for (size_t i = 0; i < t->n_merges; i++) {
        size_t left_size, right_size;
        const char *left = vocab_text(&t->vocab, t->merges[i].left, &left_size);
        const char *right = vocab_text(&t->vocab, t->merges[i].right, &right_size);
        json_array_append_new(list, json_sprintf("%.*s %.*s", (int)left_size, left, (int)right_size, right));
    }
    return list;
}

static json_t *byte_level(bool add_prefix_space) {
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", add_prefix_space, "trim_offsets",
                     1, "use_regex", 1);
}

static json_t *tokenizer_object(const struct bpe_trainer *t) {
    json_t *digits = json_pack("{s:s, s:b}", "type", "Digits", "individual_digits", 1);
    json_t *split = json_pack("{s:s, s:[o, o]}", "type", "Sequence", "pretokenizers", digits, byte_level(false));
    json_t *model =
        json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout", "unk_token",
                  "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0, "ignore_merges",
                  0, "vocab", vocab_object(&t->vocab), "merges", merges_array(t));
    return json_pack("{s:s, s:n, s:n, s:o, s:n, s:o, s:n, s:o, s:o}", "version", "1.0", "truncation", "padding",
                     "added_tokens", added_tokens(t), "normalizer", "pre_tokenizer", split, "post_processor", "decoder",
                     byte_level(true), "model", model);
}

static json_t *config_object(const struct bpe_trainer *t) {
    json_t *decoder = json_object();
    for (int32_t id = 0; id < t->options.n_special; id++) {
        char key[16];
        snprintf(key, sizeof key, "%d", (int)id);
        json_object_set_new(decoder, key, token_flags(&t->vocab, id));
    }
    json_t *config = json_pack("{s:b, s:o, s:b, s:s}", "add_prefix_space", 0, "added_tokens_decoder", decoder,
                               "clean_up_tokenization_spaces", 0, "tokenizer_class", "PreTrainedTokenizerFast");
    /* The first special token ends documents, as in Ouro's files. */
    static const char *const roles[] = {"bos_token", "eos_token", "pad_token", "unk_token"};
    for (size_t i = 0; t->options.n_special > 0 && i < sizeof roles / sizeof *roles; i++) {
        json_object_set_new(config, roles[i], vocab_string(&t->vocab, 0));
    }
    return config;
}

static int save(const char *directory, const char *name, json_t *value, looplm_error *err) {
    char *path = file_join(directory, name);
    int status =
        path && value ? json_write(path, value, err) : error_set(err, LOOPLM_MEMORY, "no memory to write %s", name);
    json_decref(value);
    free(path);
    return status;
}

int bpe_trainer_save(const struct bpe_trainer *trainer, const char *directory, looplm_error *err) {
    int status = file_make_directories(directory, err);
    if (status == 0) status = save(directory, "tokenizer.json", tokenizer_object(trainer), err);
    return status ? status : save(directory, "tokenizer_config.json", config_object(trainer), err);
}
