/* looplm forward: logits, hidden states, gate and exit probabilities of every loop, to a safetensors file. */
#include "cli/command.h"
#include "engine/api.h"
#include "engine/study.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define FORWARD_IDS_MAX (1 << 20)

#define FORWARD_OPTIONS(X)                                                                                            \
    X(ARGUMENT, model, "MODEL", "a model directory")                                                                  \
    X(TEXT, ids, "ids", 0, OPTION_NEEDED, "1,2,3", "the token ids")                                                   \
    X(TEXT, out, "out", 'o', OPTION_NEEDED, "F.safetensors",                                                          \
      "the file to write: logits [R,n,V], hidden [R,n,D] and, where the model has an exit gate, gate [R,n] and exit " \
      "[R,n]; all f32")                                                                                               \
    X(INT, loops, "loops", 0, 0, 0, 64, "N", "run N loops; 0 means the model's own number")                           \
    X(CHOICE, weights, "weights", 0, "auto", "auto|f32|bf16|q8|q4", "the type of the weights in memory")              \
    X(CHOICE, kv_type, "kv-type", 0, "auto", "auto|f32|bf16|q8", "the type of keys and values in the cache")          \
    X(TEXT, kernels, "kernels", 0, NULL, "NAME", "kernel table (default: the best that this processor supports)")     \
    X(INT, threads, "threads", 0, 0, 0, 1024, "N", "threads; 0 means one per processor")
OPTIONS_DEFINE(forward_options, FORWARD_OPTIONS)

extern const struct command command_forward;

static int parse_ids(const char *text, int32_t **ids, int32_t *n, looplm_error *err) {
    *n = 0;
    *ids = malloc(sizeof(int32_t) * FORWARD_IDS_MAX);
    if (!*ids) return error_set(err, LOOPLM_MEMORY, "out of memory");
    const char *p = text;
    while (*p) {
        char *end;
        errno = 0;
        long id = strtol(p, &end, 10);
        if (end == p || errno || id < 0 || id > INT32_MAX || (*end && *end != ','))
            return error_set(err, LOOPLM_USAGE, "--ids: '%.20s' is not a token id; give a list like 1,2,3", p);
        if (*n == FORWARD_IDS_MAX) return error_set(err, LOOPLM_LIMIT, "--ids: more than %d ids", FORWARD_IDS_MAX);
        (*ids)[(*n)++] = (int32_t)id;
        if (*end && !end[1])
            return error_set(err, LOOPLM_USAGE, "--ids: found a comma at the end; give a list like 1,2,3");
        p = *end ? end + 1 : end;
    }
    return 0;
}

static int forward(const struct forward_options *o, const int32_t *ids, int32_t n, looplm_error *err) {
    static const char *const types[] = {"auto", "f32", "bf16", "q8", "q4"};
    looplm_model *model;
    looplm_model_options options = {.weights = types[o->weights], .kernels = o->kernels, .threads = (int)o->threads};
    int status = looplm_model_open(&model, o->model, &options, err);
    if (status) return status;
    enum kv_type kv_type = o->kv_type ? (enum kv_type)(o->kv_type - 1) : kv_type_default(model->model->weight_type);
    struct study study;
    status = study_run(&study, model->model, ids, n, (int32_t)o->loops, kv_type, err);
    if (!status) {
        status = study_write(&study, o->out, err);
        study_free(&study);
    }
    looplm_model_close(model);
    return status;
}

static int run_forward(int argc, char **argv) {
    struct forward_options o;
    int code = command_parse(&command_forward, forward_options_table(), &o, argc, argv);
    if (code != COMMAND_GO) return code;
    looplm_error err;
    int32_t *ids = NULL, n;
    int status = parse_ids(o.ids, &ids, &n, &err);
    if (!status) status = forward(&o, ids, n, &err);
    free(ids);
    options_free(forward_options_table(), &o);
    return status ? command_fail(&err) : COMMAND_DONE;
}

const struct command command_forward = {"forward", "MODEL --ids 1,2,3 --out F.safetensors",
                                        "write every loop's logits, hidden states and exit probabilities", run_forward};
