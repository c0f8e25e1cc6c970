/* Owns which files make a model directory. The form of weights and config is params.c's and config.c's. */
#include "train/publish.h"

#include "base/file.h"
#include "base/json.h"

#include <stdlib.h>
#include <string.h>

static const char *const tokenizer_files[] = {
    "tokenizer.json", "tokenizer_config.json",   "vocab.json",         "merges.txt", "encoder.json",
    "vocab.bpe",      "special_tokens_map.json", "chat_template.jinja"};
#define TOKENIZER_FILES (sizeof tokenizer_files / sizeof *tokenizer_files)

static int no_memory(const char *path, looplm_error *err) {
    return error_set(err, LOOPLM_MEMORY, "%s: no memory to write the model", path);
}

static bool has(const char *directory, const char *name) {
    char *path = file_join(directory, name);
    bool there = path && file_exists(path);
    free(path);
    return there;
}

bool publish_has_tokenizer(const char *directory) {
    return has(directory, "tokenizer.json") || has(directory, "vocab.json") || has(directory, "encoder.json");
}

static int copy_file(const char *from, const char *to, looplm_error *err) {
    char *data;
    size_t size;
    int status = file_read(from, PUBLISH_FILE_BYTES_MAX, &data, &size, err);
    if (status) return status;
    struct file_writer w;
    status = file_writer_open(&w, to, err);
    if (!status) {
        file_writer_write(&w, data, size);
        status = file_writer_commit(&w, err);
    }
    free(data);
    return status;
}

static int copy_into(const char *from, const char *directory, const char *name, looplm_error *err) {
    char *to = file_join(directory, name);
    int status = to ? copy_file(from, to, err) : no_memory(directory, err);
    free(to);
    return status;
}

/* Copies a file that may not be there. */
static int copy_named(const char *from, const char *directory, const char *name, looplm_error *err) {
    if (!has(from, name)) return 0;
    char *path = file_join(from, name);
    int status = path ? copy_into(path, directory, name, err) : no_memory(directory, err);
    free(path);
    return status;
}

static int copy_tokenizer(const char *tokenizer, const char *directory, looplm_error *err) {
    if (!tokenizer) return 0;
    if (!file_is_directory(tokenizer)) return copy_into(tokenizer, directory, "tokenizer.json", err);
    int status = 0;
    for (size_t i = 0; i < TOKENIZER_FILES && !status; i++)
        status = copy_named(tokenizer, directory, tokenizer_files[i], err);
    return status;
}

int publish_copy_texts(const char *from, const char *directory, looplm_error *err) {
    int status = copy_tokenizer(from, directory, err);
    return status ? status : copy_named(from, directory, "generation_config.json", err);
}

static json_t *id_or_null(int32_t id) {
    return id < 0 ? json_null() : json_integer(id);
}

static int write_generation(const struct model_config *c, const char *directory, looplm_error *err) {
    json_t *eos = json_array();
    for (int32_t i = 0; i < c->n_eos; i++) json_array_append_new(eos, json_integer(c->eos_ids[i]));
    json_t *root = json_pack("{s:o, s:o, s:o}", "bos_token_id", id_or_null(c->bos_id), "eos_token_id", eos,
                             "pad_token_id", id_or_null(c->pad_id));
    char *path = file_join(directory, "generation_config.json");
    int status = root && path ? json_write(path, root, err) : no_memory(directory, err);
    free(path);
    json_decref(root);
    return status;
}

int publish_model(const char *run, const struct params *params, enum dtype dtype, const char *tokenizer,
                  looplm_error *err) {
    char *directory = file_join(run, "model");
    if (!directory) return no_memory(run, err);
    int status = params_save(params, directory, dtype, err);
    if (!status) status = write_generation(&params->config, directory, err);
    if (!status) status = copy_tokenizer(tokenizer, directory, err);
    free(directory);
    return status;
}
