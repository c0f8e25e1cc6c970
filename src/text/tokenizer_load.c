/* Reading tokenizer.json. What the reference does and we do not is refused by name rather than passed over, since it
 * would change ids: other models than BPE, other normalizers than NFC, post-processors that add tokens, and so on.
 * `truncation` and `padding`, which some fine-tunes leave in the file, are ignored. */
#include "base/file.h"
#include "base/json.h"
#include "text/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#define SEQUENCE_DEPTH_MAX 4

struct loader {
    struct tokenizer *tokenizer;
    const char *file;
    bool byte_level; /* the pre-tokenizer ended in ByteLevel */
    looplm_error *err;
};

static struct json_at at_of(const struct loader *l, const json_t *object, const char *prefix) {
    return (struct json_at){.object = object, .file = l->file, .prefix = prefix};
}

static int unsupported(const struct loader *l, const char *what, const char *found) {
    return error_set(l->err, LOOPLM_UNSUPPORTED,
                     "%s: %s \"%.60s\" is not supported; looplm reads byte-level BPE tokenizers", l->file, what, found);
}

/* The "type" of an object such as a normalizer; "" when it has none. */
static const char *type_of(const json_t *object) {
    const char *type = json_string_value(json_object_get(object, "type"));
    return type ? type : "";
}

/* Calls visit() for a component, or for each of a Sequence's under `key`. */
static int visit_components(struct loader *l, const json_t *component, const char *key, int depth,
                            int (*visit)(struct loader *, const json_t *)) {
    if (!component || json_is_null(component)) return 0;
    if (strcmp(type_of(component), "Sequence")) return visit(l, component);
    if (depth > SEQUENCE_DEPTH_MAX)
        return error_set(l->err, LOOPLM_LIMIT, "%s: sequences are nested too deeply", l->file);
    const json_t *parts;
    int status = json_need_array(at_of(l, component, ""), key, &parts, l->err);
    for (size_t i = 0; status == 0 && i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i);
        if (json_is_object(part))
            status = visit_components(l, part, key, depth + 1, visit);
        else
            status = error_set(l->err, LOOPLM_FORMAT, "%s: %s holds %s, expected objects", l->file, key,
                               json_type_name(part));
    }
    return status;
}

static int load_normalizer(struct loader *l, const json_t *normalizer) {
    if (strcmp(type_of(normalizer), "NFC")) return unsupported(l, "normalizer", type_of(normalizer));
    l->tokenizer->nfc = true;
    return 0;
}

static int load_byte_level(struct loader *l, const json_t *stage) {
    bool prefix_space = true, use_regex = true; /* the reference's defaults */
    struct json_at at = at_of(l, stage, "pre_tokenizer.");
    if (json_want_bool(at, "add_prefix_space", &prefix_space, l->err)) return LOOPLM_FORMAT;
    if (json_want_bool(at, "use_regex", &use_regex, l->err)) return LOOPLM_FORMAT;
    l->byte_level = true;
    return splitter_add_gpt2(l->tokenizer->splitter, prefix_space, use_regex, l->err);
}

/* A pattern given as a plain string is made a regex that matches it. */
static int add_literal(struct loader *l, const char *literal, enum split_behaviour behaviour, bool invert) {
    char *pattern = malloc(2 * strlen(literal) + 1), *out = pattern;
    if (!pattern) return error_set(l->err, LOOPLM_MEMORY, "no memory for a pattern");
    for (const char *p = literal; *p; p++) {
        if (strchr("\\^$.[]|()?*+{}", *p)) *out++ = '\\';
        *out++ = *p;
    }
    *out = 0;
    int status = splitter_add_regex(l->tokenizer->splitter, pattern, behaviour, invert, false, l->err);
    free(pattern);
    return status;
}

static int load_split(struct loader *l, const json_t *stage) {
    const json_t *pattern;
    const char *behaviour = "", *text = NULL;
    bool invert = false;
    struct json_at at = at_of(l, stage, "pre_tokenizer.");
    int status = json_need_object(at, "pattern", &pattern, l->err);
    if (status == 0) status = json_need_string(at, "behavior", &behaviour, l->err);
    if (status == 0) status = json_want_bool(at, "invert", &invert, l->err);
    if (status) return status;
    bool isolated = !strcmp(behaviour, "Isolated");
    if (!isolated && strcmp(behaviour, "Removed"))
        return unsupported(l, "pre-tokenizer Split with behavior", behaviour);
    enum split_behaviour kind = isolated ? SPLIT_ISOLATED : SPLIT_REMOVED;
    at = at_of(l, pattern, "pre_tokenizer.pattern.");
    if (json_object_get(pattern, "String")) {
        status = json_need_string(at, "String", &text, l->err);
        return status ? status : add_literal(l, text, kind, invert);
    }
    status = json_need_string(at, "Regex", &text, l->err);
    return status ? status : splitter_add_regex(l->tokenizer->splitter, text, kind, invert, false, l->err);
}

static int load_pre_tokenizer(struct loader *l, const json_t *stage) {
    const char *type = type_of(stage);
    if (l->byte_level) return unsupported(l, "a pre-tokenizer after ByteLevel:", type);
    if (!strcmp(type, "ByteLevel")) return load_byte_level(l, stage);
    if (!strcmp(type, "Split")) return load_split(l, stage);
    if (strcmp(type, "Digits")) return unsupported(l, "pre-tokenizer", type);
    bool individual = false;
    int status = json_want_bool(at_of(l, stage, "pre_tokenizer."), "individual_digits", &individual, l->err);
    return status ? status : splitter_add_digits(l->tokenizer->splitter, individual, l->err);
}

static int check_post_processor(struct loader *l, const json_t *part) {
    return strcmp(type_of(part), "ByteLevel") ? unsupported(l, "post-processor", type_of(part)) : 0;
}

static int check_decoder(struct loader *l, const json_t *part) {
    return strcmp(type_of(part), "ByteLevel") ? unsupported(l, "decoder", type_of(part)) : 0;
}

static int load_vocab(struct loader *l, const json_t *vocab) {
    const char *text;
    json_t *id;
    json_object_foreach((json_t *)vocab, text, id) {
        if (!json_is_integer(id)) {
            return error_set(l->err, LOOPLM_FORMAT, "the id of token \"%.60s\" is %s, expected an integer", text,
                             json_type_name(id));
        }
        int status = vocab_add(&l->tokenizer->vocab, json_integer_value(id), text, strlen(text), l->err);
        if (status) return status;
    }
    return 0;
}

/* A merge is "left right" or ["left", "right"]. */
static int load_merge(struct loader *l, const json_t *merge, size_t rank) {
    const char *left = json_string_value(merge), *right = left ? strchr(left, ' ') : NULL;
    size_t left_size = right ? (size_t)(right - left) : 0;
    if (right) right++;
    if (json_is_array(merge) && json_array_size(merge) == 2) {
        left = json_string_value(json_array_get(merge, 0));
        right = json_string_value(json_array_get(merge, 1));
        left_size = left ? strlen(left) : 0;
    }
    if (!left || !right) {
        return error_set(l->err, LOOPLM_FORMAT, "merge %zu is %s, expected \"left right\" or [\"left\", \"right\"]",
                         rank, json_is_string(merge) ? "a string without a space" : json_type_name(merge));
    }
    return tokenizer_add_merge(l->tokenizer, left, left_size, right, strlen(right), rank, l->err);
}

static int refuse_model_options(struct loader *l, struct json_at at) {
    double dropout = 0;
    const char *prefix = "", *suffix = "";
    bool byte_fallback = false;
    int status = json_want_double(at, "dropout", 0, 1, &dropout, l->err);
    if (status == 0) status = json_want_string(at, "continuing_subword_prefix", &prefix, l->err);
    if (status == 0) status = json_want_string(at, "end_of_word_suffix", &suffix, l->err);
    if (status == 0) status = json_want_bool(at, "byte_fallback", &byte_fallback, l->err);
    if (status) return status;
    if (dropout > 0) return unsupported(l, "model option", "dropout");
    if (*prefix) return unsupported(l, "model option continuing_subword_prefix", prefix);
    if (*suffix) return unsupported(l, "model option end_of_word_suffix", suffix);
    return byte_fallback ? unsupported(l, "model option", "byte_fallback") : 0;
}

static int load_model(struct loader *l, const json_t *model) {
    struct json_at at = at_of(l, model, "model.");
    const char *type = "BPE", *unknown = NULL;
    const json_t *vocab, *merges;
    struct bpe *bpe = &l->tokenizer->bpe;
    int status = json_want_string(at, "type", &type, l->err);
    if (status == 0 && strcmp(type, "BPE")) status = unsupported(l, "model", type);
    if (status == 0) status = refuse_model_options(l, at);
    if (status == 0) status = json_want_string(at, "unk_token", &unknown, l->err);
    if (status == 0) status = json_want_bool(at, "fuse_unk", &bpe->fuse_unknown, l->err);
    if (status == 0) status = json_want_bool(at, "ignore_merges", &bpe->ignore_merges, l->err);
    if (status == 0) status = json_need_object(at, "vocab", &vocab, l->err);
    if (status == 0) status = json_need_array(at, "merges", &merges, l->err);
    if (status) return status;
    status = load_vocab(l, vocab);
    for (size_t i = 0; status == 0 && i < json_array_size(merges); i++)
        status = load_merge(l, json_array_get(merges, i), i);
    if (status) return error_prefix(l->err, "%s", l->file);
    if (unknown && *unknown) {
        bpe->unknown_id = vocab_find(&l->tokenizer->vocab, unknown, strlen(unknown));
        if (bpe->unknown_id < 0) {
            return error_set(l->err, LOOPLM_FORMAT, "%s: unk_token \"%.60s\" is not in the vocabulary", l->file,
                             unknown);
        }
    }
    return 0;
}

static int load_added_token(struct loader *l, const json_t *entry) {
    struct json_at at = at_of(l, entry, "added_tokens.");
    struct added_token token = {.normalized = true};
    const char *text;
    int64_t id;
    if (!json_is_object(entry)) {
        return error_set(l->err, LOOPLM_FORMAT, "%s: added_tokens holds %s, expected objects", l->file,
                         json_type_name(entry));
    }
    int status = json_need_int(at, "id", 0, VOCAB_IDS_MAX - 1, &id, l->err);
    if (status == 0) status = json_need_string(at, "content", &text, l->err);
    if (status == 0) status = json_want_bool(at, "special", &token.special, l->err);
    token.normalized = !token.special; /* the reference's default */
    if (status == 0) status = json_want_bool(at, "single_word", &token.single_word, l->err);
    if (status == 0) status = json_want_bool(at, "lstrip", &token.lstrip, l->err);
    if (status == 0) status = json_want_bool(at, "rstrip", &token.rstrip, l->err);
    if (status == 0) status = json_want_bool(at, "normalized", &token.normalized, l->err);
    if (status) return status;
    token.id = (int32_t)id;
    token.text = (char *)text;
    token.size = strlen(text);
    status = tokenizer_add_token(l->tokenizer, token, l->err);
    return status ? error_prefix(l->err, "%s", l->file) : 0;
}

static int load_parts(struct loader *l, const json_t *root) {
    const json_t *model = NULL, *added = NULL;
    struct json_at at = at_of(l, root, "");
    if (!json_is_object(root)) {
        return error_set(l->err, LOOPLM_FORMAT, "%s: found %s, expected a tokenizer's object", l->file,
                         json_type_name(root));
    }
    int status = json_need_object(at, "model", &model, l->err);
    if (status == 0) status = json_want_array(at, "added_tokens", &added, l->err);
    if (status == 0)
        status = visit_components(l, json_object_get(root, "normalizer"), "normalizers", 0, load_normalizer);
    if (status == 0)
        status = visit_components(l, json_object_get(root, "pre_tokenizer"), "pretokenizers", 0, load_pre_tokenizer);
    if (status == 0 && !l->byte_level) status = unsupported(l, "a pre-tokenizer without", "ByteLevel");
    if (status == 0)
        status = visit_components(l, json_object_get(root, "post_processor"), "processors", 0, check_post_processor);
    if (status == 0) status = visit_components(l, json_object_get(root, "decoder"), "decoders", 0, check_decoder);
    if (status == 0) status = load_model(l, model);
    for (size_t i = 0; status == 0 && i < json_array_size(added); i++)
        status = load_added_token(l, json_array_get(added, i));
    return status;
}

static int load(struct tokenizer **tokenizer, json_t *root, const char *name, looplm_error *err) {
    struct loader l = {.file = name, .err = err};
    int status = tokenizer_new(&l.tokenizer, err);
    if (status == 0) status = load_parts(&l, root);
    if (status == 0) tokenizer_finish(l.tokenizer);
    json_decref(root);
    if (status) tokenizer_close(l.tokenizer);
    *tokenizer = status ? NULL : l.tokenizer;
    return status;
}

int tokenizer_open_json(struct tokenizer **tokenizer, const char *json, size_t size, const char *name,
                        looplm_error *err) {
    json_t *root;
    *tokenizer = NULL;
    int status = json_parse(json, size, name, &root, err);
    return status ? status : load(tokenizer, root, name, err);
}

int tokenizer_open(struct tokenizer **tokenizer, const char *path, looplm_error *err) {
    json_t *root;
    *tokenizer = NULL;
    char *file = file_is_directory(path) ? file_join(path, "tokenizer.json") : strdup(path);
    if (!file) return error_set(err, LOOPLM_MEMORY, "no memory for a path");
    int status;
    if (file_is_directory(path) && !file_exists(file)) {
        status = tokenizer_open_legacy(tokenizer, path, err);
    } else {
        status = json_read(file, TOKENIZER_FILE_BYTES_MAX, &root, err);
        if (status == 0) status = load(tokenizer, root, file, err);
    }
    free(file);
    return status;
}
