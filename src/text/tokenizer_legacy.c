/* Reading a vocabulary and merges from before tokenizer.json: vocab.json or encoder.json beside merges.txt or
 * vocab.bpe. These files do not say how text is split, so it is told by tokenizer_config.json and by the vocabulary:
 *   tokenizer_class Qwen2Tokenizer           NFC and Qwen2's pattern
 *   a vocabulary with StarCoder's tokens     digits alone, then GPT-2's pattern (StarCoder, Refact, SmolLM2, Ouro)
 *   else                                     GPT-2's pattern
 * Special tokens come from tokenizer_config.json (added_tokens_decoder), or added_tokens.json, or, when neither is
 * there, are the entries that neither stand for a byte nor come out of a merge. */
#include "base/file.h"
#include "base/json.h"
#include "text/tokenizer_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct files {
    char *vocab, *merges, *config, *added, *special; /* paths; owned */
};

static char *first_that_exists(const char *directory, const char *a, const char *b) {
    char *path = file_join(directory, a);
    if (!path || file_exists(path)) return path;
    free(path);
    return file_join(directory, b);
}

static int find_files(struct files *f, const char *directory, looplm_error *err) {
    f->vocab = first_that_exists(directory, "vocab.json", "encoder.json");
    f->merges = first_that_exists(directory, "merges.txt", "vocab.bpe");
    f->config = file_join(directory, "tokenizer_config.json");
    f->added = file_join(directory, "added_tokens.json");
    f->special = file_join(directory, "special_tokens_map.json");
    if (!f->vocab || !f->merges || !f->config || !f->added || !f->special) {
        return error_set(err, LOOPLM_MEMORY, "no memory for paths");
    }
    if (file_exists(f->vocab) && file_exists(f->merges)) return 0;
    return error_set(
        err, LOOPLM_IO,
        "%s has no tokenizer: expected tokenizer.json, or vocab.json (encoder.json) with merges.txt (vocab.bpe)",
        directory);
}

static void free_files(struct files *f) {
    free(f->vocab);
    free(f->merges);
    free(f->config);
    free(f->added);
    free(f->special);
}

/* An object from a file, or NULL without an error when the file is absent. */
static int read_object(const char *path, json_t **object, looplm_error *err) {
    *object = NULL;
    if (!file_exists(path)) return 0;
    int status = json_read(path, TOKENIZER_FILE_BYTES_MAX, object, err);
    if (status || json_is_object(*object)) return status;
    status = error_set(err, LOOPLM_FORMAT, "%s: found %s, expected an object", path, json_type_name(*object));
    json_decref(*object);
    *object = NULL;
    return status;
}

static int load_vocab(struct tokenizer *t, const char *path, looplm_error *err) {
    json_t *vocab, *id;
    const char *text;
    int status = read_object(path, &vocab, err);
    if (status) return status;
    json_object_foreach(vocab, text, id) {
        if (!json_is_integer(id)) {
            status = error_set(err, LOOPLM_FORMAT, "the id of token \"%.60s\" is %s, expected an integer", text,
                               json_type_name(id));
        } else {
            status = vocab_add(&t->vocab, json_integer_value(id), text, strlen(text), err);
        }
        if (status) break;
    }
    json_decref(vocab);
    return status ? error_prefix(err, "%s", path) : 0;
}

/* One line "left right"; an empty line and the "#version" one are passed over. made[result] is set. */
static int load_merge_line(struct tokenizer *t, const char *line, size_t size, size_t *rank, bool *made,
                           looplm_error *err) {
    if (size && line[size - 1] == '\r') size--;
    if (size == 0 || (*rank == 0 && size > 8 && !memcmp(line, "#version", 8))) return 0;
    const char *space = memchr(line, ' ', size);
    if (!space)
        return error_set(err, LOOPLM_FORMAT, "merge %zu is \"%.*s\", expected \"left right\"", *rank,
                         (int)(size < 60 ? size : 60), line);
    size_t left = (size_t)(space - line), right = size - left - 1;
    int status = tokenizer_add_merge(t, line, left, space + 1, right, (*rank)++, err);
    if (status) return status;
    char joined[2 * VOCAB_TOKEN_BYTES_MAX];
    memcpy(joined, line, left);
    memcpy(joined + left, space + 1, right);
    made[vocab_find(&t->vocab, joined, left + right)] = true;
    return 0;
}

static int load_merges(struct tokenizer *t, const char *path, bool *made, looplm_error *err) {
    char *text;
    size_t size, rank = 0;
    int status = file_read(path, TOKENIZER_FILE_BYTES_MAX, &text, &size, err);
    if (status) return status;
    for (size_t at = 0; at < size && status == 0;) {
        const char *end = memchr(text + at, '\n', size - at);
        size_t length = end ? (size_t)(end - text) - at : size - at;
        status = load_merge_line(t, text + at, length, &rank, made, err);
        at += length + 1;
    }
    free(text);
    return status ? error_prefix(err, "%s", path) : 0;
}

/* Qwen2's, StarCoder's or GPT-2's way of cutting text; an unknown class is refused, since its ids would be wrong. */
static int choose_split(struct tokenizer *t, const json_t *config, const char *path, looplm_error *err) {
    const char *class_name = "GPT2Tokenizer";
    bool prefix_space = false;
    struct json_at at = {.object = config, .file = path, .prefix = ""};
    int status = config ? json_want_string(at, "tokenizer_class", &class_name, err) : 0;
    if (status == 0 && config) status = json_want_bool(at, "add_prefix_space", &prefix_space, err);
    if (status) return status;
    if (!strncmp(class_name, "Qwen2Tokenizer", 14)) {
        t->nfc = true;
        return splitter_add_regex(t->splitter, split_pattern_qwen2, SPLIT_ISOLATED, false, false, err);
    }
    if (strncmp(class_name, "GPT2Tokenizer", 13) && strncmp(class_name, "PreTrainedTokenizer", 19)) {
        return error_set(
            err, LOOPLM_UNSUPPORTED,
            "%s: how tokenizer_class \"%.60s\" splits text is not known without a tokenizer.json; expected "
            "GPT2Tokenizer or Qwen2Tokenizer",
            path, class_name);
    }
    if (tokenizer_id(t, "<gh_stars>") >= 0 && tokenizer_id(t, "<filename>") >= 0)
        status = splitter_add_digits(t->splitter, true, err);
    return status ? status : splitter_add_gpt2(t->splitter, prefix_space, true, err);
}

/* {"50256": {"content": ..., "special": ...}, ...} */
static int add_from_config(struct tokenizer *t, const json_t *decoder, const char *path, looplm_error *err) {
    const char *key, *text;
    json_t *entry;
    json_object_foreach((json_t *)decoder, key, entry) {
        struct json_at at = {.object = entry, .file = path, .prefix = "added_tokens_decoder."};
        struct added_token token = {0};
        char *end;
        errno = 0;
        long id = strtol(key, &end, 10);
        if (*end || end == key || errno || id < 0 || id >= VOCAB_IDS_MAX || !json_is_object(entry)) {
            return error_set(err, LOOPLM_FORMAT, "%s: added_tokens_decoder.\"%.40s\" is no id of a token", path, key);
        }
        int status = json_need_string(at, "content", &text, err);
        if (status == 0) status = json_want_bool(at, "special", &token.special, err);
        if (status == 0) status = json_want_bool(at, "single_word", &token.single_word, err);
        if (status == 0) status = json_want_bool(at, "lstrip", &token.lstrip, err);
        if (status == 0) status = json_want_bool(at, "rstrip", &token.rstrip, err);
        if (status == 0) status = json_want_bool(at, "normalized", &token.normalized, err);
        token.id = (int32_t)id;
        token.text = (char *)text;
        if (status == 0) token.size = strlen(text);
        if (status == 0) status = tokenizer_add_token(t, token, err);
        if (status) return status;
    }
    return 0;
}

/* Whether special_tokens_map.json names this text, as a string, an object's content, or in a list of either. */
static bool names(const json_t *value, const char *text) {
    if (json_is_string(value)) return !strcmp(json_string_value(value), text);
    if (json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value); i++) {
            if (names(json_array_get(value, i), text)) return true;
        }
    }
    const json_t *content = json_object_get(value, "content");
    return json_is_string(content) && !strcmp(json_string_value(content), text);
}

/* {"<|im_end|>": 151645, ...} */
static int add_from_list(struct tokenizer *t, const json_t *added, const json_t *map, const char *path,
                         looplm_error *err) {
    const char *text, *key;
    json_t *id, *value;
    json_object_foreach((json_t *)added, text, id) {
        struct added_token token = {.text = (char *)text, .size = strlen(text), .normalized = true};
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= VOCAB_IDS_MAX) {
            return error_set(err, LOOPLM_FORMAT, "%s: the id of \"%.60s\" is not in 0..%d", path, text,
                             (int)VOCAB_IDS_MAX - 1);
        }
        token.id = (int32_t)json_integer_value(id);
        json_object_foreach((json_t *)map, key, value) token.special |= names(value, text);
        token.normalized = !token.special;
        int status = tokenizer_add_token(t, token, err);
        if (status) return status;
    }
    return 0;
}

/* Entries that nothing makes: "<|endoftext|>" of GPT-2. */
static int add_unmade(struct tokenizer *t, const bool *made, looplm_error *err) {
    for (int32_t id = 0; id < t->vocab.size; id++) {
        size_t text_size, bytes_size;
        const char *text = tokenizer_text(t, id, &text_size);
        tokenizer_bytes(t, id, &bytes_size);
        if (!text || made[id] || bytes_size < 2) continue;
        struct added_token token = {.text = strndup(text, text_size), .size = text_size, .id = id, .special = true};
        if (!token.text) return error_set(err, LOOPLM_MEMORY, "no memory for the added tokens");
        int status = tokenizer_add_token(t, token, err);
        free(token.text);
        if (status) return status;
    }
    return 0;
}

static int load_files(struct tokenizer *t, const struct files *f, looplm_error *err) {
    json_t *config = NULL, *added = NULL, *map = NULL;
    bool *made = NULL;
    int status = load_vocab(t, f->vocab, err);
    if (status == 0 && !(made = calloc((size_t)t->vocab.size + 1, sizeof *made)))
        status = error_set(err, LOOPLM_MEMORY, "no memory");
    if (status == 0) status = load_merges(t, f->merges, made, err);
    if (status == 0) status = read_object(f->config, &config, err);
    if (status == 0) status = read_object(f->added, &added, err);
    if (status == 0) status = read_object(f->special, &map, err);
    if (status == 0) status = choose_split(t, config, f->config, err);
    const json_t *decoder = json_object_get(config, "added_tokens_decoder");
    if (status == 0 && json_is_object(decoder))
        status = add_from_config(t, decoder, f->config, err);
    else if (status == 0 && added)
        status = add_from_list(t, added, map, f->added, err);
    else if (status == 0)
        status = add_unmade(t, made, err);
    free(made);
    json_decref(config);
    json_decref(added);
    json_decref(map);
    return status;
}

int tokenizer_open_legacy(struct tokenizer **tokenizer, const char *directory, looplm_error *err) {
    struct files files = {0};
    *tokenizer = NULL;
    int status = find_files(&files, directory, err);
    if (status == 0) status = tokenizer_new(tokenizer, err);
    if (status == 0) status = load_files(*tokenizer, &files, err);
    if (status == 0) tokenizer_finish(*tokenizer);
    free_files(&files);
    if (status) {
        tokenizer_close(*tokenizer);
        *tokenizer = NULL;
    }
    return status;
}
