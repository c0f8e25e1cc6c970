/* looplm quantize: a model directory whose weights are packed, so that it starts at once and its pages are shared. */
#include "base/file.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/command.h"
#include "model/calibrate.h"
#include "model/packed.h"
#include "tensor/cpu/cpu.h"
#include "text/pieces.h"
#include "train/publish.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define SEQUENCE 256   /* positions of a calibration text */
#define TOKENS_MIN 256 /* of all: fewer say little of the inputs */

#define QUANTIZE_OPTIONS(X)                                                                                            \
    X(ARGUMENT, model, "MODEL", "a model directory")                                                                   \
    X(ARGUMENT, out, "OUT", "the directory to write: a new one, or one of packed weights to replace")                  \
    X(CHOICE, weights, "weights", 0, "q4", "f32|bf16|q8|q4", "the type of the packed weights")                         \
    X(LIST, calibrate, "calibrate", 0, "FILE",                                                                         \
      "q4: round the stack for the inputs that this text gives it, at all loops, instead of each weight to its "       \
      "nearest; it should be of every kind that the model will see; .txt, or .jsonl with \"text\", or \"prompt\" and " \
      "\"answer\" (may be repeated)")                                                                                  \
    X(INT, tokens, "calibrate-tokens", 0, 32768, 2, 1 << 24, "N", "tokens read of each such file, at most")            \
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

/* Whether the weights of a directory are packed; config.json is written last, so one that a killed run left may lack
 * it. */
static bool holds_packed(const char *directory, const struct model_config *original) {
    struct model_config config;
    if (model_config_read(&config, directory, NULL) == LOOPLM_OK) return config.packed;
    struct safetensors files;
    if (has_file(directory, "config.json") || safetensors_open(&files, directory, NULL) != LOOPLM_OK) return false;
    struct packed_matrix first = packed_get(original, 0);
    const struct safetensors_entry *entry;
    enum weight_type type;
    bool packed = packed_find(&files, &first, &entry, &type, NULL) == LOOPLM_OK;
    safetensors_close(&files);
    return packed;
}

/* An original is never overwritten: what was rounded off cannot be had back. */
static int check_out(const struct quantize_options *o, const struct model_config *original, looplm_error *err) {
    if (same_directory(o->model, o->out))
        return error_set(err, LOOPLM_USAGE, "%s: it is the model itself; give another directory for the packed one",
                         o->out);
    bool weights = has_file(o->out, "model.safetensors") || has_file(o->out, "model.safetensors.index.json");
    if (!weights || holds_packed(o->out, original)) return LOOPLM_OK;
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

static int check_original(const char *directory, struct model_config *config, looplm_error *err) {
    int status = model_config_read(config, directory, err);
    if (status || !config->packed) return status;
    return error_set(err, LOOPLM_USAGE, "%s: its weights are packed already, as %s; quantise the original", directory,
                     model_weight_type_name(config->packed_type));
}

/* ---- calibration ------------------------------------------------------------------------------------------------ */

static int check_calibration(const struct quantize_options *o, looplm_error *err) {
    if (!o->calibrate.count || o->weights == WEIGHT_Q4) return LOOPLM_OK;
    return error_set(err, LOOPLM_USAGE,
                     "--calibrate: it is for 4-bit weights and hardly changes others; expected --weights q4, found %s",
                     model_weight_type_name((enum weight_type)o->weights));
}

static int read_text(const struct quantize_options *o, const struct model_config *config, struct pieces *text,
                     looplm_error *err) {
    struct tokenizer *tokenizer;
    int status = tokenizer_open(&tokenizer, o->model, err);
    if (status) return status;
    struct pieces_options options = {.tokenizer = tokenizer,
                                     .sequence = config->max_positions < SEQUENCE ? config->max_positions : SEQUENCE,
                                     .ids_max = o->tokens};
    status = tokenizer_check_vocabulary(tokenizer, config->vocab, err);
    for (int i = 0; !status && i < o->calibrate.count; i++)
        status = pieces_read(text, o->calibrate.items[i], &options, err);
    tokenizer_close(tokenizer);
    if (status || text->ids >= TOKENS_MIN) return status;
    return error_set(err, LOOPLM_FORMAT, "--calibrate: found %lld tokens, expected at least %d; give more text",
                     (long long)text->ids, TOKENS_MIN);
}

static void show_calibrating(void *context, int64_t done, int64_t total) {
    struct progress *progress = context;
    progress->total = total;
    progress_update(progress, done, "tokens");
}

static int round_for(const char *directory, struct model *rounded, const struct pieces *text, looplm_error *err) {
    struct model *original;
    struct progress progress;
    progress_start(&progress, "calibrating", 0, 0);
    struct calibrate_options options = {
        .text = text, .memory = CALIBRATE_MEMORY, .progress = show_calibrating, .progress_context = &progress};
    struct model_options f32 = {.type_given = true, .weight_type = WEIGHT_F32};
    int status = model_open(&original, directory, rounded->backend, &f32, err);
    if (status) return status;
    status = calibrate(original, rounded, &options, err);
    if (!status) progress_end(&progress);
    model_close(original);
    return status;
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

static int check(const struct quantize_options *o, struct pieces *text, looplm_error *err) {
    struct model_config config;
    int status = check_calibration(o, err);
    if (!status) status = check_original(o->model, &config, err);
    if (!status) status = check_out(o, &config, err);
    if (!status && o->calibrate.count) status = read_text(o, &config, text, err);
    return status;
}

static int quantize(const struct quantize_options *o, struct backend *backend, const struct pieces *text,
                    looplm_error *err) {
    struct model *model;
    struct progress progress;
    progress_start(&progress, "packing", 0, 0);
    struct model_options options = {.type_given = true,
                                    .weight_type = (enum weight_type)o->weights,
                                    .progress = show_packing,
                                    .progress_context = &progress};
    int status = model_open(&model, o->model, backend, &options, err);
    if (status) return status;
    progress_end(&progress);
    if (text->count) status = round_for(o->model, model, text, err);
    if (!status) status = write_out(o, model, err);
    model_close(model);
    return status;
}

static int run_quantize(int argc, char **argv) {
    struct quantize_options o;
    int code = command_parse(&command_quantize, quantize_options_table(), &o, argc, argv);
    if (code != COMMAND_GO) return code;
    looplm_error err = {0};
    struct backend *backend;
    struct pieces text = {0};
    int status = check(&o, &text, &err);
    if (!status) status = cpu_open(&backend, (int)o.threads, NULL, &err);
    if (!status) {
        status = quantize(&o, backend, &text, &err);
        backend->close(backend);
    }
    pieces_free(&text);
    options_free(quantize_options_table(), &o);
    return status ? command_fail(&err) : COMMAND_DONE;
}

const struct command command_quantize = {"quantize", "MODEL OUT [--weights f32|bf16|q8|q4]",
                                         "write a model's weights packed, to start at once", run_quantize};
