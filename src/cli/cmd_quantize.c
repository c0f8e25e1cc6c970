/* looplm quantize: a model directory whose weights are packed, so that it starts at once and its pages are shared. */
#include "base/file.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/command.h"
#include "model/packed.h"
#include "tensor/cpu/cpu.h"
#include "train/publish.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define QUANTIZE_OPTIONS(X)                                                                           \
    X(ARGUMENT, model, "MODEL", "a model directory")                                                  \
    X(ARGUMENT, out, "OUT", "the directory to write: a new one, or one of packed weights to replace") \
    X(CHOICE, weights, "weights", 0, "q4", "f32|bf16|q8|q4", "the type of the packed weights")        \
    X(INT, threads, "threads", 0, 0, 0, 1024, "N", "threads; 0 means one per processor")
OPTIONS_DEFINE(quantize_options, QUANTIZE_OPTIONS)

extern const struct command command_quantize;

/* The config as it was, with a quantization_config. */
static int write_config(const char *from, const char *to, enum weight_type type, looplm_error *err) {
    json_t *root = NULL;
    char *source = file_join(from, "config.json"), *target = file_join(to, "config.json");
    int status = source && target ? json_read(source, MODEL_CONFIG_BYTES_MAX, &root, err)
                                  : error_set(err, LOOPLM_MEMORY, "%s: no memory to write its config.json", to);
    if (!status) {
        json_t *packed = json_pack("{s:s, s:i, s:s}", "quant_method", PACKED_METHOD, "format", PACKED_FORMAT, "weights",
                                   model_weight_type_name(type));
        status = packed && json_object_set_new(root, "quantization_config", packed) == 0
                     ? json_write(target, root, err)
                     : error_set(err, LOOPLM_MEMORY, "%s: no memory to write its config.json", to);
    }
    json_decref(root);
    free(source);
    free(target);
    return status;
}

static bool same_directory(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static bool has_file(const char *directory, const char *name) {
    char *path = file_join(directory, name);
    bool has = path && file_exists(path);
    free(path);
    return has;
}

/* An original is never overwritten: what was rounded off cannot be had back. */
static int check_out(const struct quantize_options *o, looplm_error *err) {
    struct model_config config;
    if (same_directory(o->model, o->out))
        return error_set(err, LOOPLM_USAGE, "%s: it is the model itself; give another directory for the packed one",
                         o->out);
    bool weights = has_file(o->out, "model.safetensors") || has_file(o->out, "model.safetensors.index.json");
    if (!weights || (model_config_read(&config, o->out, NULL) == LOOPLM_OK && config.packed)) return LOOPLM_OK;
    return error_set(err, LOOPLM_USAGE,
                     "%s: weights that are not packed are there, and would be lost; give another directory", o->out);
}

static void show_packing(void *context, int64_t done, int64_t total) {
    struct progress *progress = context;
    progress->total = total >> 20;
    progress_update(progress, done >> 20, "MiB");
}

static int write_out(const struct quantize_options *o, struct model *model, looplm_error *err) {
    char *path = file_join(o->out, "model.safetensors");
    fprintf(stderr, "writing %s: %.1f MiB\n", o->out, (double)(model->memory_size + model->vectors_size) / (1 << 20));
    int status = path ? file_make_directories(o->out, err) : error_set(err, LOOPLM_MEMORY, "out of memory");
    if (!status) status = packed_write(model, path, err);
    if (!status) status = publish_copy_texts(o->model, o->out, err);
    if (!status) status = write_config(o->model, o->out, model->weight_type, err);
    free(path);
    return status;
}

static int check_original(const char *directory, looplm_error *err) {
    struct model_config config;
    int status = model_config_read(&config, directory, err);
    if (status || !config.packed) return status;
    return error_set(err, LOOPLM_USAGE, "%s: its weights are packed already, as %s; quantise the original", directory,
                     model_weight_type_name(config.packed_type));
}

static int quantize(const struct quantize_options *o, looplm_error *err) {
    struct backend *backend;
    struct model *model = NULL;
    struct progress progress;
    int status = check_out(o, err);
    if (!status) status = check_original(o->model, err);
    if (!status) status = cpu_open(&backend, (int)o->threads, NULL, err);
    if (status) return status;
    progress_start(&progress, "packing", 0, 0);
    struct model_options options = {.type_given = true,
                                    .weight_type = (enum weight_type)o->weights,
                                    .progress = show_packing,
                                    .progress_context = &progress};
    status = model_open(&model, o->model, backend, &options, err);
    if (!status) progress_end(&progress);
    if (!status) status = write_out(o, model, err);
    model_close(model);
    backend->close(backend);
    return status;
}

static int run_quantize(int argc, char **argv) {
    struct quantize_options o;
    int code = command_parse(&command_quantize, quantize_options_table(), &o, argc, argv);
    if (code != COMMAND_GO) return code;
    looplm_error err = {0};
    int status = quantize(&o, &err);
    options_free(quantize_options_table(), &o);
    return status ? command_fail(&err) : COMMAND_DONE;
}

const struct command command_quantize = {"quantize", "MODEL OUT [--weights f32|bf16|q8|q4]",
                                         "write a model's weights packed, to start at once", run_quantize};
