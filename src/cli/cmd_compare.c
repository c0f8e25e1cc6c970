/* looplm compare: how far a model's predictions are from a reference's at each loop, and its exits. */
#include "cli/command.h"
#include "engine/api.h"
#include "engine/quality.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COMPARE_OPTIONS(X)                                                                                            \
    X(ARGUMENT, reference, "REFERENCE", "a model directory, run in f32 (a packed one as it is)")                      \
    X(ARGUMENT, model, "MODEL", "the model to judge: the same directory in another type, or a packed one")            \
    X(ARGUMENTS, texts, "FILE",                                                                                       \
      "text that neither was fitted to: .txt is one document, .jsonl has one per line (\"text\", or \"prompt\" and "  \
      "\"answer\", of which the answer counts); .gz and .zst are unpacked")                                           \
    X(CHOICE, weights, "weights", 0, "auto", "auto|f32|bf16|q8|q4", "the type of the model's weights in memory")      \
    X(CHOICE, kv_type, "kv-type", 0, "auto", "auto|f32|bf16|q8", "the type of the model's keys and values")           \
    X(TEXT, only, "only", 0, NULL, "CLASS,..",                                                                        \
      "round only these tensors to --weights, q8 or q4, and compute in f32: embed, q, k, v, o, gate, up, down, head") \
    X(REAL, q, "q", 0, 0.5, 0.0, 1.0, "Q",                                                                            \
      "the Q-exit whose steps are compared; where it is not given, the reference's own if it has one")                \
    X(INT, tokens, "tokens", 'n', 12000, 2, 1 << 30, "N", "tokens of each file at most")                              \
    X(INT, sequence, "sequence", 0, 256, 2, 1 << 20, "N", "longest sequence; longer documents are cut")               \
    X(INT, threads, "threads", 0, 0, 0, 1024, "N", "threads; 0 means one per processor")                              \
    X(FLAG, json, "json", 0, "print one JSON object")
OPTIONS_DEFINE(compare_options, COMPARE_OPTIONS)

extern const struct command command_compare;

struct comparison {
    const struct compare_options *options;
    looplm_model *reference, *model;
    uint32_t only; /* roles; 0: all */
    struct quality_options quality;
    json_t *results;
};

/* ---- the two models --------------------------------------------------------------------------------------------- */

static int parse_only(const char *text, uint32_t *roles, looplm_error *err) {
    static const struct {
        const char *name;
        enum tensor_role role;
    } classes[] = {{"embed", TENSOR_EMBED}, {"q", TENSOR_Q},       {"k", TENSOR_K},
                   {"v", TENSOR_V},         {"o", TENSOR_O},       {"gate", TENSOR_GATE},
                   {"up", TENSOR_UP},       {"down", TENSOR_DOWN}, {"head", TENSOR_HEAD}};
    for (const char *p = text; *p;) {
        size_t n = strcspn(p, ","), i = 0, count = sizeof classes / sizeof *classes;
        while (i < count && (strlen(classes[i].name) != n || memcmp(classes[i].name, p, n) != 0)) i++;
        if (i == count)
            return error_set(err, LOOPLM_USAGE,
                             "--only: '%.*s' is no class of tensors; expected some of embed, q, k, v, o, gate, up, "
                             "down, head, with commas",
                             (int)n, p);
        *roles |= 1u << classes[i].role;
        p += n + (p[n] == ',');
    }
    return LOOPLM_OK;
}

static int check_only(const struct compare_options *o, uint32_t *roles, looplm_error *err) {
    *roles = 0;
    if (!o->only) return LOOPLM_OK;
    int status = parse_only(o->only, roles, err);
    if (status) return status;
    if (!*roles) return error_set(err, LOOPLM_USAGE, "--only: no class of tensors was given");
    if (o->weights >= 3) return LOOPLM_OK;
    return error_set(err, LOOPLM_USAGE, "--only rounds to 8 or 4 bits; expected --weights q8 or q4 with it");
}

static int open_one(looplm_model **model, const char *directory, const char *weights, int64_t threads,
                    looplm_error *err) {
    struct model_config config;
    int status = model_config_read(&config, directory, err);
    if (status) return status;
    looplm_model_options options = {.weights = config.packed && !strcmp(weights, "f32") ? "auto" : weights,
                                    .threads = (int)threads};
    return looplm_model_open(model, directory, &options, err);
}

static int open_both(struct comparison *c, looplm_error *err) {
    static const char *const types[] = {"auto", "f32", "bf16", "q8", "q4"};
    const struct compare_options *o = c->options;
    int status = check_only(o, &c->only, err);
    if (!status) status = open_one(&c->reference, o->reference, "f32", o->threads, err);
    if (!status) status = model_need_tokenizer(c->reference, err);
    if (!status) status = open_one(&c->model, o->model, c->only ? "f32" : types[o->weights], o->threads, err);
    if (status) return status;
    struct model *model = c->model->model, *reference = c->reference->model;
    if (c->only) status = quality_round(model, c->only, (enum weight_type)(o->weights - 1), err);
    if (status) return status;
    double threshold = reference->config.exit_threshold;
    c->quality = (struct quality_options){.reference = reference,
                                          .model = model,
                                          .reference_kv = kv_type_default(reference->weight_type),
                                          .model_kv = kv_type_default(model->weight_type),
                                          .q = (float)(o->q_given || threshold >= 1 ? o->q : threshold)};
    if (o->kv_type) c->quality.model_kv = (enum kv_type)(o->kv_type - 1);
    return quality_check(&c->quality, err);
}

/* Of all matrices, scales included. */
static double bits_per_weight(const struct model *m) {
    double bytes = 0, count = 0;
    for (int32_t l = -1; l < m->config.layers; l++) {
        const struct layer *layer = l < 0 ? NULL : &m->layers[l];
        const struct weight *w[] = {layer ? &layer->qkv : &m->embed, layer ? &layer->o : &m->head,
                                    layer ? &layer->gate_up : NULL, layer ? &layer->down : NULL};
        for (int i = 0; i < 4; i++) {
            if (!w[i] || (w[i] == &m->head && m->config.tied)) continue;
            bytes += (double)weight_size(w[i]->type, w[i]->n, w[i]->k);
            count += (double)w[i]->n * w[i]->k;
        }
    }
    return 8 * bytes / count;
}

/* ---- results ---------------------------------------------------------------------------------------------------- */

static void print_quality(const char *name, const struct quality *q, const struct comparison *c) {
    double n = (double)q->positions;
    printf("%s: %lld predictions\n", name, (long long)q->positions);
    printf("  loop  KL divergence  same top-1, %%  hidden error  loss (reference)\n");
    for (int32_t r = 0; r < q->loops; r++) {
        const struct quality_loop *l = &q->at[r];
        printf("  %4d  %13.3g  %13.2f  %12.4f  %.4f (%.4f)\n", r + 1, l->divergence / n, 100 * l->agree / n,
               l->hidden / n, l->loss / n, l->reference_loss / n);
    }
    if (!c->reference->info.has_exit_gate) return;
    printf("  q=%g: %.2f %% leave at the same loop; mean depth %.3f, reference %.3f (%+.4f)\n", (double)c->quality.q,
           100 * q->exit_agree / n, q->depth / n, q->reference_depth / n, (q->depth - q->reference_depth) / n);
}

static json_t *quality_json(const char *name, const struct quality *q, const struct comparison *c) {
    double n = (double)q->positions;
    json_t *loops = json_array();
    for (int32_t r = 0; r < q->loops; r++) {
        const struct quality_loop *l = &q->at[r];
        json_array_append_new(loops, json_pack("{s:f, s:f, s:f, s:f, s:f}", "kl", l->divergence / n, "top1",
                                               l->agree / n, "hidden", l->hidden / n, "loss", l->loss / n,
                                               "reference_loss", l->reference_loss / n));
    }
    json_t *object =
        json_pack("{s:s, s:I, s:o}", "file", name, "predictions", (json_int_t)q->positions, "loops", loops);
    if (c->reference->info.has_exit_gate)
        json_object_set_new(object, "exit",
                            json_pack("{s:f, s:f, s:f, s:f}", "q", (double)c->quality.q, "agree", q->exit_agree / n,
                                      "mean_depth", q->depth / n, "reference_mean_depth", q->reference_depth / n));
    return object;
}

static int compare_file(struct comparison *c, const char *path, looplm_error *err) {
    const struct compare_options *o = c->options;
    struct pieces pieces = {0};
    struct quality quality = {0};
    int32_t most = c->reference->info.max_positions, other = c->model->info.max_positions;
    if (other < most) most = other;
    struct pieces_options options = {.tokenizer = c->reference->tokenizer,
                                     .sequence = o->sequence < most ? (int32_t)o->sequence : most,
                                     .ids_max = o->tokens};
    int status = pieces_read(&pieces, path, &options, err);
    if (!status) status = quality_add(&quality, &c->quality, &pieces, err);
    pieces_free(&pieces);
    if (status) return status;
    json_array_append_new(c->results, quality_json(path, &quality, c));
    if (!o->json) print_quality(path, &quality, c);
    return 0;
}

static int compare(struct comparison *c, looplm_error *err) {
    const struct compare_options *o = c->options;
    int status = open_both(c, err);
    if (status) return status;
    double bits = bits_per_weight(c->model->model);
    if (!o->json && !c->only) printf("%s as %s: %.2f bits a weight\n", o->model, c->model->info.weights, bits);
    for (int i = 0; i < o->texts.count && !status; i++) status = compare_file(c, o->texts.items[i], err);
    if (status || !o->json) return status;
    json_t *object = json_pack("{s:s, s:s, s:s, s:f, s:O}", "reference", o->reference, "model", o->model, "weights",
                               c->model->info.weights, "bits_per_weight", bits, "files", c->results);
    if (object && c->only) json_object_set_new(object, "only", json_string(o->only));
    char *text = object ? json_dumps(object, JSON_INDENT(1) | JSON_REAL_PRECISION(6)) : NULL;
    json_decref(object);
    if (!text) return error_set(err, LOOPLM_MEMORY, "no memory for the JSON");
    puts(text);
    free(text);
    return 0;
}

static int run_compare(int argc, char **argv) {
    struct compare_options o;
    int code = command_parse(&command_compare, compare_options_table(), &o, argc, argv);
    if (code != COMMAND_GO) return code;
    looplm_error err = {0};
    struct comparison c = {.options = &o, .results = json_array()};
    int status = compare(&c, &err);
    looplm_model_close(c.model);
    looplm_model_close(c.reference);
    json_decref(c.results);
    options_free(compare_options_table(), &o);
    return status ? command_fail(&err) : COMMAND_DONE;
}

const struct command command_compare = {"compare", "REFERENCE MODEL FILE... [--weights f32|bf16|q8|q4]",
                                        "say how far a model's predictions are from another's, loop by loop",
                                        run_compare};
