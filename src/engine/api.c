/* The public model handle: a backend, the packed weights, and the tokenizer and generation defaults beside them. */
#include "engine/api.h"

#include "base/file.h"
#include "base/json.h"
#include "model/model.h"
#include "tensor/cpu/cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GENERATION_CONFIG_MAX ((size_t)1 << 20)

static int parse_weights(const char *name, struct model_options *options, looplm_error *err) {
    if (!name || !strcmp(name, "auto")) return 0;
    options->type_given = true;
    for (int type = WEIGHT_F32; type <= WEIGHT_Q4; type++)
        if (!strcmp(name, model_weight_type_name((enum weight_type)type))) {
            options->weight_type = (enum weight_type)type;
            return 0;
        }
    return error_set(err, LOOPLM_USAGE, "weights '%s' are not offered; give auto, f32, bf16, q8 or q4", name);
}

/* Sampling defaults, and further stop ids, of generation_config.json, where there is one. */
static int read_generation(looplm_model_info *info, const char *directory, looplm_error *err) {
    info->temperature = 1;
    info->top_p = 1;
    char *path = file_join(directory, "generation_config.json");
    if (!path) return error_set(err, LOOPLM_MEMORY, "out of memory");
    json_t *json = NULL;
    int status = 0;
    if (file_exists(path)) status = json_read(path, GENERATION_CONFIG_MAX, &json, err);
    if (json) {
        struct json_at at = {json, path, ""};
        double temperature = 1, top_p = 1;
        int64_t top_k = 0;
        bool sample = true;
        status = json_want_double(at, "temperature", 0, 100, &temperature, err);
        if (!status) status = json_want_double(at, "top_p", 0, 1, &top_p, err);
        if (!status) status = json_want_int(at, "top_k", 0, INT32_MAX, &top_k, err);
        if (!status) status = json_want_bool(at, "do_sample", &sample, err);
        info->temperature = sample ? (float)temperature : 0;
        info->top_p = (float)top_p;
        info->top_k = (int32_t)top_k;
        json_decref(json);
    }
    free(path);
    return status;
}

/* A tokenizer is optional; one that is there must be readable and fit the vocabulary. */
static int open_tokenizer(looplm_model *m, const char *directory, looplm_error *err) {
    static const char *const names[] = {"tokenizer.json", "vocab.json", "encoder.json"};
    bool present = false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path = file_join(directory, names[i]);
        present |= path && file_exists(path);
        free(path);
    }
    if (!present) return 0;
    int status = tokenizer_open(&m->tokenizer, directory, err);
    if (!status && tokenizer_check_vocabulary(m->tokenizer, m->model->config.vocab, err))
        status = error_prefix(err, "%s", directory);
    return status;
}

static void fill_info(looplm_model *m) {
    static const char *const weights[] = {
#define X(code, name) name,
        WEIGHT_TYPE_MAP(X)
#undef X
    };
    const struct model_config *c = &m->model->config;
    looplm_model_info *info = &m->info;
    info->family = model_family_name(c->family);
    info->weights = weights[m->model->weight_type];
    info->kernels = m->backend->table;
    info->threads = m->backend->threads;
    info->layers = c->layers;
    info->hidden = c->hidden;
    info->vocab = c->vocab;
    info->loops = c->loops;
    info->max_positions = c->max_positions;
    info->exit_threshold = c->exit_threshold;
    info->has_exit_gate = c->exit_gate;
    info->has_tokenizer = m->tokenizer != NULL;
    info->n_stop_ids = c->n_eos;
    for (int32_t i = 0; i < c->n_eos; i++) info->stop_ids[i] = c->eos_ids[i];
}

int looplm_model_open(looplm_model **out, const char *directory, const looplm_model_options *options,
                      looplm_error *err) {
    static const looplm_model_options none = {0};
    if (!options) options = &none;
    *out = NULL;
    struct model_options model_options = {.progress = options->progress, .progress_context = options->progress_context};
    int status = parse_weights(options->weights, &model_options, err);
    if (status) return status;
    if (options->device && strcmp(options->device, "auto") != 0 && strcmp(options->device, "cpu") != 0)
        return error_set(err, LOOPLM_UNSUPPORTED, "device '%s' is not in this build; use cpu", options->device);
    looplm_model *m = calloc(1, sizeof *m);
    if (!m) return error_set(err, LOOPLM_MEMORY, "out of memory");
    pthread_mutex_init(&m->running, NULL);
    status = cpu_open(&m->backend, options->threads, options->kernels, err);
    if (!status) status = model_open(&m->model, directory, m->backend, &model_options, err);
    if (!status) status = open_tokenizer(m, directory, err);
    if (!status) status = read_generation(&m->info, directory, err);
    if (status) {
        looplm_model_close(m);
        return status;
    }
    fill_info(m);
    *out = m;
    return 0;
}

void looplm_model_close(looplm_model *m) {
    if (!m) return;
    tokenizer_close(m->tokenizer);
    model_close(m->model);
    if (m->backend) m->backend->close(m->backend);
    pthread_mutex_destroy(&m->running);
    free(m);
}

void looplm_model_info_get(const looplm_model *m, looplm_model_info *info) {
    *info = m->info;
}

int model_need_tokenizer(const looplm_model *m, looplm_error *err) {
    if (m->tokenizer) return 0;
    return error_set(err, LOOPLM_USAGE,
                     "the model directory has no tokenizer.json, so text cannot be read; add it, or work with ids "
                     "(looplm forward --ids)");
}

int looplm_text_encode(const looplm_model *m, const char *text, size_t size, int32_t **ids, size_t *n,
                       looplm_error *err) {
    int status = model_need_tokenizer(m, err);
    return status ? status : tokenizer_encode(m->tokenizer, text, size, true, ids, n, err);
}

int looplm_text_decode(const looplm_model *m, const int32_t *ids, size_t n, int special, char **text,
                       looplm_error *err) {
    size_t size;
    int status = model_need_tokenizer(m, err);
    return status ? status : tokenizer_decode(m->tokenizer, ids, n, !special, text, &size, err);
}

void looplm_free(void *memory) {
    free(memory);
}

const char *looplm_status_name(looplm_status status) {
    return error_name(status);
}
