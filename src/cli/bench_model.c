/* Prompts and decoding, pass by pass (bench_model.h).
 *
 * A slice is one pass of the stack, measured by the engine's own counters, right after the probes. Its bound is what
 * the probes say it needs at least: the larger of (weights + keys and values) / bandwidth and operations / peak, where
 * operations are two for each weight and row. Attention's own products and the head are in neither; the head is timed
 * by itself. The share is bound / time. */
#include "cli/bench_model.h"

#include "base/spread.h"
#include "tensor/probe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHUNK 512   /* rows of a pass of a prompt */
#define PROBE_FAR 4 /* a limit that is so many times further than the other is probed once, not beside every slice */

/* ---- what a pass reads and computes ----------------------------------------------------------------------------- */

struct work {
    double bytes, operations;
};

static struct work stack_work(const struct model *m, double rows) {
    struct work work = {0, 0};
    for (int32_t l = 0; l < m->config.layers; l++) {
        const struct weight *w[] = {&m->layers[l].qkv, &m->layers[l].o, &m->layers[l].gate_up, &m->layers[l].down};
        for (int i = 0; i < 4; i++) {
            work.bytes += (double)weight_size(w[i]->type, w[i]->n, w[i]->k);
            work.operations += 2 * rows * (double)w[i]->n * w[i]->k;
        }
    }
    return work;
}

/* Keys and values of one position at one loop. */
static double kv_bytes(const struct bench_setting *b) {
    const struct model_config *c = &b->model->config;
    struct kv_geometry g = {b->kv_type, c->layers, c->kv_heads, c->head_dim};
    return (double)kv_block_size(&g) / KV_BLOCK;
}

/* ---- slices ----------------------------------------------------------------------------------------------------- */

struct slices {
    double pass[BENCH_SLICES_MAX], head[BENCH_SLICES_MAX];         /* seconds */
    double gbytes[BENCH_SLICES_MAX], gops[BENCH_SLICES_MAX];       /* a second */
    double of_memory[BENCH_SLICES_MAX], of_peak[BENCH_SLICES_MAX]; /* bound / time by either limit */
    double bandwidth[BENCH_SLICES_MAX], peak[BENCH_SLICES_MAX];    /* probed: GB/s, GOP/s */
    double token[BENCH_SLICES_MAX]; /* seconds of a whole token of every row, or of a whole prompt */
    int n, n_heads, n_tokens;
};

static const char *peak_name(enum weight_type type) {
    return type == WEIGHT_F32 ? "f32 peak" : type == WEIGHT_BF16 ? "bf16 peak" : "int8 peak";
}

static double probe_peak(const struct bench_setting *b) {
    return probe_peak_products(b->team, b->model->backend->table, b->model->weight_type);
}

/* One step of the engine as a slice beside the probes (`probed`: those of the slice before); it reads `kv` bytes of
 * keys and values. */
static int slice(const struct bench_setting *b, struct engine *engine, double kv, bool probed, struct slices *t,
                 looplm_error *err) {
    const struct engine_counters *counters = engine_counters(engine);
    int i = t->n++;
    bool memory = !i || (!probed && PROBE_FAR * t->of_memory[i - 1] > t->of_peak[i - 1]);
    bool peak = !i || (!probed && PROBE_FAR * t->of_peak[i - 1] > t->of_memory[i - 1]);
    t->bandwidth[i] = memory ? probe_bandwidth(b->team, b->probe_bytes, b->probe_size) : t->bandwidth[i - 1];
    t->peak[i] = peak ? probe_peak(b) : t->peak[i - 1];
    double pass = counters->pass_s, head = counters->head_s;
    int64_t heads = counters->heads, rows = counters->rows;
    bool ran;
    int status = engine_step(engine, &ran, err);
    t->pass[i] = pass = counters->pass_s - pass;
    if (counters->heads > heads) t->head[t->n_heads++] = counters->head_s - head;
    struct work work = stack_work(b->model, (double)(counters->rows - rows));
    t->gbytes[i] = (work.bytes + kv) / pass / 1e9;
    t->gops[i] = work.operations / pass / 1e9;
    t->of_memory[i] = t->gbytes[i] / t->bandwidth[i];
    t->of_peak[i] = t->peak[i] > 0 ? t->gops[i] / t->peak[i] : 0;
    return status;
}

/* ---- what is told ----------------------------------------------------------------------------------------------- */

static json_t *spread_json(struct spread s) {
    return json_pack("{s:f, s:f, s:f}", "low", s.low, "median", s.median, "high", s.high);
}

/* Appends what all measurements tell to `object`, prints it behind `title`, and takes the object over. */
static void tell(const struct bench_setting *b, struct slices *t, int32_t tokens, const char *title, json_t *object) {
    struct spread pass = spread_of(t->pass, t->n), gbytes = spread_of(t->gbytes, t->n), gops = spread_of(t->gops, t->n),
                  memory = spread_of(t->of_memory, t->n), peak = spread_of(t->of_peak, t->n),
                  token = spread_of(t->token, t->n_tokens), head = {0, 0, 0};
    if (t->n_heads > 0) head = spread_of(t->head, t->n_heads);
    bool bound_by_memory = memory.median >= peak.median;
    struct spread share = bound_by_memory ? memory : peak;
    const char *limit = bound_by_memory ? "bandwidth" : peak_name(b->model->weight_type);
    json_object_set_new(object, "weights", json_string(model_weight_type_name(b->model->weight_type)));
    json_object_set_new(object, "kv_type", json_string(b->kv_name));
    json_object_set_new(object, "loops", json_integer(b->loops));
    json_object_set_new(object, "slices", json_integer(t->n));
    json_object_set_new(object, "pass_s", spread_json(pass));
    json_object_set_new(object, "head_s", spread_json(head));
    json_object_set_new(object, "gb_per_s", json_real(gbytes.median));
    json_object_set_new(object, "gop_per_s", json_real(gops.median));
    json_object_set_new(object, "probe_gb_per_s", json_real(spread_of(t->bandwidth, t->n).median));
    json_object_set_new(object, "probe_gop_per_s", json_real(spread_of(t->peak, t->n).median));
    json_object_set_new(object, "limit", json_string(limit));
    json_object_set_new(object, "share", spread_json(share));
    json_object_set_new(object, "tokens_per_s", json_real(tokens / token.median));
    json_array_append_new(b->results, object);
    if (b->quiet) return;
    printf("%s, %s, kv %s, %d loops: pass %.2f ms (%.2f..%.2f), head %.2f ms, %.1f GB/s, %.0f GOP/s, %.1f %% of the %s "
           "(%.1f..%.1f), %.2f tokens/s\n",
           title, model_weight_type_name(b->model->weight_type), b->kv_name, b->loops, 1e3 * pass.median,
           1e3 * pass.low, 1e3 * pass.high, 1e3 * head.median, gbytes.median, gops.median, 100 * share.median, limit,
           100 * share.low, 100 * share.high, tokens / token.median);
    fflush(stdout);
}

static void leave_out(const struct bench_setting *b, int32_t rows, int32_t context, double bytes, double most) {
    char why[128];
    snprintf(why, sizeof why, "its keys and values need %.1f GiB, and %.1f GiB are here for them", bytes / 0x1p30,
             most / 0x1p30);
    json_array_append_new(b->results, json_pack("{s:s, s:i, s:i, s:s, s:s}", "kind", "decode", "rows", rows, "context",
                                                context, "kv_type", b->kv_name, "left_out", why));
    if (!b->quiet) printf("decode %2d rows, context %5d, kv %s: left out, %s\n", rows, context, b->kv_name, why);
}

/* ---- prompts ---------------------------------------------------------------------------------------------------- */

static int open_engine(const struct bench_setting *b, int32_t pass_rows, int32_t sequences, int32_t positions,
                       struct engine **engine, looplm_error *err) {
    struct engine_options options = {.rows_max = pass_rows,
                                     .sequences_max = sequences,
                                     .kv_positions = (int64_t)sequences * positions,
                                     .planes = b->loops,
                                     .kv_type = b->kv_type};
    return engine_open(engine, b->model, &options, err);
}

static int open_sequence(const struct bench_setting *b, struct engine *engine, int32_t capacity, struct sequence **s,
                         looplm_error *err) {
    struct sequence_options options = {.rule = {.kind = EXIT_LOOPS, .loops = b->loops},
                                       .policy = KV_POLICY_LAST_EXITED,
                                       .capacity = capacity,
                                       .sampler = {0, 1, 0, 0, 1, 0}};
    return sequence_open(s, engine, &options, err);
}

/* One prompt of n ids; t may be NULL (to warm up). */
static int run_prompt(const struct bench_setting *b, struct engine *engine, const int32_t *ids, int32_t n,
                      struct slices *t, looplm_error *err) {
    struct sequence *s = NULL;
    double before = engine_counters(engine)->pass_s;
    bool ran;
    int status = open_sequence(b, engine, n, &s, err);
    if (!status) status = sequence_feed(s, ids, NULL, n, err);
    while (!status && !sequence_idle(s)) {
        if (!t || t->n == BENCH_SLICES_MAX) {
            status = engine_step(engine, &ran, err);
            continue;
        }
        status = slice(b, engine, 0, false, t, err);
    }
    if (t) t->token[t->n_tokens++] = engine_counters(engine)->pass_s - before;
    sequence_close(s);
    return status;
}

int bench_prefill(const struct bench_setting *b, int32_t n, looplm_error *err) {
    static struct slices t;
    t.n = t.n_heads = t.n_tokens = 0;
    struct engine *engine = NULL;
    int32_t *ids = malloc((size_t)n * sizeof *ids), chunk = n < CHUNK ? n : CHUNK;
    if (!ids) return error_set(err, LOOPLM_MEMORY, "out of memory");
    for (int32_t i = 0; i < n; i++) ids[i] = (int32_t)((int64_t)i * 7919 % b->model->config.vocab);
    int status = open_engine(b, chunk, 1, n, &engine, err);
    if (!status) status = run_prompt(b, engine, ids, chunk, NULL, err);
    while (!status && t.n < b->slices) status = run_prompt(b, engine, ids, n, &t, err);
    engine_close(engine);
    free(ids);
    if (status) return status;
    char title[64];
    snprintf(title, sizeof title, "prefill %5d tokens", n);
    tell(b, &t, n, title, json_pack("{s:s, s:i}", "kind", "prefill", "tokens", n));
    return 0;
}

/* ---- decoding --------------------------------------------------------------------------------------------------- */

/* The context is there at once: its planes are zeros, since the time does not depend on what they hold. They are
 * written, since memory that nobody wrote is one page of zeros, which is read from cache. */
static int restore(struct sequence *s, const struct bench_setting *b, int32_t context, looplm_error *err) {
    struct kv_geometry geometry = sequence_kv(s)->pool->geometry;
    int32_t *ids = calloc((size_t)context + 1, sizeof *ids);
    uint8_t *depths = malloc((size_t)context + 1);
    int status = ids && depths ? 0 : error_set(err, LOOPLM_MEMORY, "out of memory");
    if (!status) {
        memset(depths, b->loops, (size_t)context + 1);
        status = sequence_restore(s, ids, depths, context + 1, context, true, err);
    }
    for (int32_t r = 0; r < b->loops && !status; r++)
        for (int32_t i = 0; i < (context + KV_BLOCK - 1) / KV_BLOCK; i++)
            memset(kv_table(sequence_kv(s), r)[i], 0, kv_block_size(&geometry));
    free(ids);
    free(depths);
    return status;
}

/* Tokens of every row, R passes each: a slice for every pass, probes before the first of a token. */
static int decode_tokens(const struct bench_setting *b, struct engine *engine, double kv, struct slices *t,
                         looplm_error *err) {
    int status = 0;
    bool ran;
    for (int32_t r = 0; r < b->loops && !status; r++) status = engine_step(engine, &ran, err); /* warm */
    while (t->n_tokens < b->slices && t->n + b->loops <= BENCH_SLICES_MAX && !status) {
        double before = engine_counters(engine)->total_s;
        for (int32_t r = 0; r < b->loops && !status; r++) status = slice(b, engine, kv, r > 0, t, err);
        t->token[t->n_tokens++] = engine_counters(engine)->total_s - before;
    }
    return status;
}

int bench_decode(const struct bench_setting *b, int32_t rows, int32_t context, looplm_error *err) {
    static struct slices t;
    t.n = t.n_heads = t.n_tokens = 0;
    struct engine *engine = NULL;
    struct sequence *s[BENCH_ROWS_MAX] = {0};
    int32_t capacity = context + b->slices + 4;
    double memory = (double)rows * b->loops * (capacity + KV_BLOCK) * kv_bytes(b),
           most = 0.7 * (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE) -
                  (double)b->model->memory_size - (double)b->probe_size;
    if (memory > most) {
        leave_out(b, rows, context, memory, most);
        return 0;
    }
    int status = open_engine(b, rows, rows, capacity, &engine, err);
    for (int32_t i = 0; i < rows && !status; i++) {
        status = open_sequence(b, engine, capacity, &s[i], err);
        if (!status) status = restore(s[i], b, context, err);
        if (!status) sequence_generate(s[i], true);
    }
    if (!status) status = decode_tokens(b, engine, kv_bytes(b) * rows * context, &t, err);
    for (int32_t i = 0; i < rows; i++) sequence_close(s[i]);
    engine_close(engine);
    if (status) return status;
    char title[64];
    snprintf(title, sizeof title, "decode %2d rows, context %5d", rows, context);
    tell(b, &t, rows, title, json_pack("{s:s, s:i, s:i}", "kind", "decode", "rows", rows, "context", context));
    return 0;
}
