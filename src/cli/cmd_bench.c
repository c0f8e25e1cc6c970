/* looplm bench: how fast a model runs here, and what share of this machine's limits that is. Limits are probed between
 * the slices of every measurement, since the memory of shared machines drifts; medians and quartiles are shown. */
#include "base/progress.h"
#include "base/spread.h"
#include "base/team.h"
#include "cli/bench_engine.h"
#include "cli/command.h"
#include "engine/api.h"
#include "tensor/cpu/cpu.h"
#include "tensor/probe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BENCH_ROWS_MAX 64
#define BENCH_SLICES_MAX 1000
#define BENCH_LIST_MAX 16
#define PROBE_BYTES ((size_t)512 << 20)

#define BENCH_OPTIONS(X)                                                                                          \
    X(MAYBE, model, "MODEL", "a model directory")                                                                 \
    X(FLAG, info, "info", 0, "only say which kernels this processor runs, and the probed limits")                 \
    X(TEXT, prefill, "prefill", 0, "128,512", "N,N,..", "prompt lengths to time; 0 for none")                     \
    X(TEXT, rows, "rows", 0, "1,2,4,8,16", "B,B,..", "sequences that decode together; 0 for none")                \
    X(TEXT, context, "context", 0, "64", "N,N,..", "positions that each decoding sequence has behind it")         \
    X(INT, loops, "loops", 0, 0, 0, 64, "N", "run N loops; 0 means the model's own number")                       \
    X(INT, slices, "slices", 0, 20, 1, BENCH_SLICES_MAX, "N",                                                     \
      "passes of each decode measurement, each beside a probe")                                                   \
    X(CHOICE, weights, "weights", 0, "auto", "auto|f32|bf16|q8|q4", "the type of the weights in memory")          \
    X(CHOICE, kv_type, "kv-type", 0, "auto", "auto|f32|bf16|q8", "the type of keys and values in the cache")      \
    X(TEXT, kernels, "kernels", 0, NULL, "NAME", "kernel table (default: the best that this processor supports)") \
    X(INT, threads, "threads", 0, 0, 0, 1024, "N", "threads; 0 means one per processor")                          \
    X(FLAG, engine, "engine", 0,                                                                                  \
      "instead, serve random requests: recorded exits, or speculation, beside the plain engine")                  \
    X(INT, streams, "streams", 0, 16, 1, 1024, "N", "with --engine: requests served at once")                     \
    X(INT, requests, "requests", 0, 0, 0, 1 << 20, "N",                                                           \
      "with --engine: requests in all; 0: 4 for each stream, or one alone")                                       \
    X(INT, prompt, "prompt", 0, 4, 1, 64, "N", "with --engine: ids of a prompt")                                  \
    X(INT, tokens, "tokens", 'n', 64, 1, 1 << 16, "N", "with --engine: ids to generate for a request")            \
    X(REAL, mean_depth, "mean-depth", 0, 0.0, 0.0, 64.0, "D",                                                     \
      "with --engine: mean of the recorded exits; 0: full depth")                                                 \
    X(REAL, acceptance, "acceptance", 0, 0.0, 0.0, 1.0, "A",                                                      \
      "with --engine: speculate, with proposals that are right with this probability")                            \
    X(TEXT, trace, "trace", 0, NULL, "FILE", "with --engine: write its passes, for chrome://tracing or Perfetto") \
    X(FLAG, json, "json", 0, "print one JSON object")
OPTIONS_DEFINE(bench_options, BENCH_OPTIONS)

extern const struct command command_bench;

struct bench {
    const struct bench_options *options;
    looplm_model *model;
    struct team *team; /* of the probes */
    void *probe_memory;
    const char *table; /* of kernels */
    enum kv_type kv_type;
    int32_t loops;
    int32_t prefill[BENCH_LIST_MAX], rows[BENCH_LIST_MAX], context[BENCH_LIST_MAX];
    int n_prefill, n_rows, n_context;
    json_t *results;
};

static int parse_list(const char *option, const char *text, int32_t most, int32_t *list, int *n, looplm_error *err) {
    *n = 0;
    for (const char *p = text; *p;) {
        char *end;
        long value = strtol(p, &end, 10);
        if (end == p || (*end && *end != ',') || value < 0 || value > most || *n == BENCH_LIST_MAX)
            return error_set(err, LOOPLM_USAGE, "--%s %s: expected at most %d numbers of 0 to %d, like 1,2,4", option,
                             text, BENCH_LIST_MAX, most);
        if (value > 0) list[(*n)++] = (int32_t)value;
        p = *end ? end + 1 : end;
    }
    return 0;
}

/* ---- what a pass reads and computes
 * ------------------------------------------------------------------------------------- */

static double stack_bytes(const struct model *m) {
    double bytes = 0;
    for (int32_t l = 0; l < m->config.layers; l++) {
        const struct weight *w[] = {&m->layers[l].qkv, &m->layers[l].o, &m->layers[l].gate_up, &m->layers[l].down};
        for (int i = 0; i < 4; i++) bytes += (double)weight_size(w[i]->type, w[i]->n, w[i]->k);
    }
    return bytes;
}

static double stack_parameters(const struct model *m) {
    double n = 0;
    for (int32_t l = 0; l < m->config.layers; l++) {
        const struct weight *w[] = {&m->layers[l].qkv, &m->layers[l].o, &m->layers[l].gate_up, &m->layers[l].down};
        for (int i = 0; i < 4; i++) n += (double)w[i]->n * w[i]->k;
    }
    return n;
}

/* Keys and values of `positions` positions of one loop. */
static double kv_bytes(const struct bench *b, double positions) {
    const struct model_config *c = &b->model->model->config;
    struct kv_geometry g = {b->kv_type, c->layers, c->kv_heads, c->head_dim};
    return (double)kv_block_size(&g) / KV_BLOCK * positions;
}

/* ---- measuring
 * -------------------------------------------------------------------------------------------------------------- */

static int open_engine(const struct bench *b, int32_t rows, int32_t sequences, int32_t positions,
                       struct engine **engine, looplm_error *err) {
    struct engine_options options = {.rows_max = rows,
                                     .sequences_max = sequences,
                                     .kv_positions = (int64_t)sequences * positions,
                                     .planes = b->loops,
                                     .kv_type = b->kv_type};
    return engine_open(engine, b->model->model, &options, err);
}

static int open_sequence(const struct bench *b, struct engine *engine, int32_t capacity, struct sequence **s,
                         looplm_error *err) {
    struct sequence_options options = {.rule = {.kind = EXIT_LOOPS, .loops = b->loops},
                                       .policy = KV_POLICY_LAST_EXITED,
                                       .capacity = capacity,
                                       .sampler = {0, 1, 0, 0, 1, 0}};
    return sequence_open(s, engine, &options, err);
}

static int timed_step(struct engine *engine, double *seconds, looplm_error *err) {
    bool ran;
    double start = clock_s();
    int status = engine_step(engine, &ran, err);
    *seconds = clock_s() - start;
    return status;
}

static double probe(const struct bench *b) {
    return probe_bandwidth(b->team, b->probe_memory, PROBE_BYTES);
}

/* A prompt of n ids through every loop, without a head read; 3 times, the median. */
static int bench_prefill(struct bench *b, int32_t n, looplm_error *err) {
    double seconds[3], peak;
    int32_t *ids = malloc((size_t)n * sizeof *ids);
    if (!ids) return error_set(err, LOOPLM_MEMORY, "out of memory");
    for (int32_t i = 0; i < n; i++) ids[i] = (int32_t)((int64_t)i * 7919 % b->model->info.vocab);
    int status = 0;
    for (int run = 0; run < 3 && !status; run++) {
        struct engine *engine = NULL;
        struct sequence *s = NULL;
        status = open_engine(b, n < 512 ? n : 512, 1, n, &engine, err);
        if (!status) status = open_sequence(b, engine, n, &s, err);
        if (!status) status = sequence_feed(s, ids, NULL, n, err);
        double start = clock_s(), step;
        while (!status && !sequence_idle(s)) status = timed_step(engine, &step, err);
        seconds[run] = clock_s() - start;
        sequence_close(s);
        engine_close(engine);
    }
    free(ids);
    if (status) return status;
    enum weight_type type = b->model->model->weight_type;
    peak = probe_peak_products(b->team, b->table, type);
    double median = spread_of(seconds, 3).median,
           gops = 2 * stack_parameters(b->model->model) * n * b->loops / median / 1e9;
    json_array_append_new(b->results, json_pack("{s:s, s:i, s:i, s:f, s:f, s:f, s:f}", "kind", "prefill", "tokens", n,
                                                "loops", b->loops, "seconds", median, "tokens_per_s", n / median,
                                                "gop_per_s", gops, "share_of_peak", peak > 0 ? gops / peak : 0));
    if (!b->options->json)
        printf(
            "prefill %5d tokens x %d loops  %8.3f s  %8.1f tokens/s  %7.1f GOP/s in products  %5.1f %% of the peak\n",
            n, b->loops, median, n / median, gops, peak > 0 ? 100 * gops / peak : 0);
    return 0;
}

struct decode_times {
    double pass[BENCH_SLICES_MAX], share[BENCH_SLICES_MAX], head[BENCH_SLICES_MAX], token[BENCH_SLICES_MAX];
    int n;
};

/* One token of every sequence: R passes, the head with the last. The first pass of a token is beside the probe. */
static int decode_slices(struct bench *b, struct engine *engine, double bytes, struct decode_times *t,
                         looplm_error *err) {
    double step = 0;
    int status = 0;
    for (int32_t r = 0; r < b->loops && !status; r++) status = timed_step(engine, &step, err); /* warm */
    for (t->n = 0; t->n < b->options->slices && !status; t->n++) {
        double bandwidth = probe(b), total = 0, pass = 0;
        for (int32_t r = 0; r < b->loops && !status; r++) {
            status = timed_step(engine, &step, err);
            total += step;
            if (r + 1 < b->loops) pass += step;
        }
        int32_t bare = b->loops > 1 ? b->loops - 1 : 1;
        if (b->loops == 1) pass = step;
        t->pass[t->n] = pass / bare;
        t->share[t->n] = bytes / (pass / bare) / 1e9 / bandwidth;
        t->head[t->n] = step - pass / bare;
        t->token[t->n] = total;
    }
    return status;
}

/* `rows` sequences that decode together, each with `context` positions behind it (their keys and values are zeros: the
 * time does not depend on them). */
static int bench_decode(struct bench *b, int32_t rows, int32_t context, looplm_error *err) {
    struct engine *engine = NULL;
    struct sequence *s[BENCH_ROWS_MAX] = {0};
    int32_t capacity = context + 1 + (int32_t)b->options->slices + 2, n = context + 1;
    static struct decode_times t;
    int32_t *ids = calloc((size_t)n, sizeof *ids);
    uint8_t *depths = malloc((size_t)n);
    int status = ids && depths ? 0 : error_set(err, LOOPLM_MEMORY, "out of memory");
    if (!status) memset(depths, b->loops, (size_t)n);
    if (!status) status = open_engine(b, rows, rows, capacity, &engine, err);
    for (int32_t i = 0; i < rows && !status; i++) {
        status = open_sequence(b, engine, capacity, &s[i], err);
        if (!status) status = sequence_restore(s[i], ids, depths, n, context, true, err);
        if (!status) sequence_generate(s[i], true);
    }
    double bytes = stack_bytes(b->model->model) + kv_bytes(b, (double)rows * context);
    if (!status) status = decode_slices(b, engine, bytes, &t, err);
    for (int32_t i = 0; i < rows; i++) sequence_close(s[i]);
    engine_close(engine);
    free(ids);
    free(depths);
    if (status) return status;
    struct spread pass = spread_of(t.pass, t.n), share = spread_of(t.share, t.n), token = spread_of(t.token, t.n),
                  head = spread_of(t.head, t.n);
    json_array_append_new(
        b->results, json_pack("{s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "kind", "decode", "rows", rows,
                              "context", context, "loops", b->loops, "pass_s", pass.median, "head_s", head.median,
                              "gb_per_s", bytes / pass.median / 1e9, "share_of_probe", share.median, "share_low",
                              share.low, "share_high", share.high, "tokens_per_s", rows / token.median));
    if (!b->options->json)
        printf("decode %2d rows, context %5d  pass %8.2f ms (%.2f..%.2f)  head %7.2f ms  %6.1f GB/s, %5.1f %% of the "
               "probe (%.1f..%.1f)  %7.2f tokens/s at %d loops\n",
               rows, context, 1e3 * pass.median, 1e3 * pass.low, 1e3 * pass.high, 1e3 * head.median,
               bytes / pass.median / 1e9, 100 * share.median, 100 * share.low, 100 * share.high, rows / token.median,
               b->loops);
    return 0;
}

/* ---- the command
 * ----------------------------------------------------------------------------------------------------------- */

static json_t *machine_info(const struct bench *b) {
    json_t *tables = json_array(), *lacking = json_array(), *sets = json_array();
    for (const struct cpu_table *const *t = cpu_tables(); *t; t++)
        json_array_append_new((*t)->supported() ? tables : lacking, json_string((*t)->name));
    for (int i = 0; probe_instruction_set(i); i++) json_array_append_new(sets, json_string(probe_instruction_set(i)));
    json_t *info =
        json_pack("{s:s, s:o, s:o, s:o, s:i, s:f}", "kernels", b->table, "tables", tables, "tables_lacking", lacking,
                  "instruction_sets", sets, "threads", team_size(b->team), "probe_gb_per_s", probe(b));
    const struct {
        const char *name;
        double gop_per_s;
    } peaks[] = {{"peak_f32_gop_per_s", probe_peak_f32(b->team)},
                 {"peak_bf16_gop_per_s", probe_peak_bf16(b->team)},
                 {"peak_int8_gop_per_s", probe_peak_int8(b->team)},
                 {"peak_tiles_bf16_gop_per_s", probe_peak_tiles_bf16(b->team)},
                 {"peak_tiles_int8_gop_per_s", probe_peak_tiles_int8(b->team)}};
    for (size_t i = 0; i < sizeof peaks / sizeof *peaks; i++)
        json_object_set_new(info, peaks[i].name, json_real(peaks[i].gop_per_s));
    return info;
}

static void print_names(const char *title, const json_t *names) {
    size_t i;
    json_t *name;
    if (!json_array_size(names)) return;
    printf("%s:", title);
    json_array_foreach(names, i, name) printf(" %s", json_string_value(name));
    printf("\n");
}

static double info_real(const json_t *info, const char *name) {
    return json_real_value(json_object_get(info, name));
}

static void print_info(const json_t *info) {
    printf("kernels: %s\n", json_string_value(json_object_get(info, "kernels")));
    print_names("tables that run here", json_object_get(info, "tables"));
    print_names("tables whose instructions are lacking", json_object_get(info, "tables_lacking"));
    print_names("instruction sets found", json_object_get(info, "instruction_sets"));
    printf("%d threads: reads %.1f GB/s; peaks %.0f GFLOP/s f32, %.0f bf16, %.0f int8; on tiles %.0f bf16, %.0f int8\n",
           (int)json_integer_value(json_object_get(info, "threads")), info_real(info, "probe_gb_per_s"),
           info_real(info, "peak_f32_gop_per_s"), info_real(info, "peak_bf16_gop_per_s"),
           info_real(info, "peak_int8_gop_per_s"), info_real(info, "peak_tiles_bf16_gop_per_s"),
           info_real(info, "peak_tiles_int8_gop_per_s"));
}

static int measure(struct bench *b, looplm_error *err) {
    static const char *const weights[] = {"auto", "f32", "bf16", "q8", "q4"};
    const struct bench_options *o = b->options;
    looplm_model_options options = {.weights = weights[o->weights], .kernels = o->kernels, .threads = (int)o->threads};
    int status = looplm_model_open(&b->model, o->model, &options, err);
    if (status) return status;
    b->kv_type = o->kv_type ? (enum kv_type)(o->kv_type - 1) : kv_type_default(b->model->model->weight_type);
    b->loops = o->loops ? (int32_t)o->loops : b->model->info.loops;
    if (o->engine) {
        bool speculate = o->acceptance_given;
        struct bench_engine_options engine = {.kv_type = b->kv_type,
                                              .streams = (int32_t)o->streams,
                                              .requests = (int32_t)o->requests,
                                              .prompt = (int32_t)o->prompt,
                                              .tokens = (int32_t)o->tokens,
                                              .slices = (int32_t)o->slices,
                                              .mean_depth = o->mean_depth > 0 ? o->mean_depth : b->loops,
                                              .acceptance = speculate ? o->acceptance : -1,
                                              .trace = o->trace,
                                              .quiet = o->json};
        if (!engine.requests) engine.requests = engine.streams > 1 ? 4 * engine.streams : 1;
        return bench_engine(b->model->model, &engine, b->results, err);
    }
    for (int i = 0; i < b->n_prefill && !status; i++) status = bench_prefill(b, b->prefill[i], err);
    for (int c = 0; c < b->n_context && !status; c++)
        for (int i = 0; i < b->n_rows && !status; i++) status = bench_decode(b, b->rows[i], b->context[c], err);
    return status;
}

static int bench(struct bench *b, looplm_error *err) {
    const struct bench_options *o = b->options;
    struct backend *backend;
    int status = parse_list("prefill", o->prefill, 1 << 20, b->prefill, &b->n_prefill, err);
    if (!status) status = parse_list("rows", o->rows, BENCH_ROWS_MAX, b->rows, &b->n_rows, err);
    if (!status) status = parse_list("context", o->context, 1 << 20, b->context, &b->n_context, err);
    if (!status && !o->info && !o->model)
        status = error_set(err, LOOPLM_USAGE, "no model; give a model directory, or --info");
    if (!status) status = team_open(&b->team, (int)o->threads, err);
    if (!status && !(b->probe_memory = aligned_alloc(4096, PROBE_BYTES)))
        status = error_set(err, LOOPLM_MEMORY, "no memory for the bandwidth probe");
    if (!status) status = cpu_open(&backend, (int)o->threads, o->kernels, err);
    if (status) return status;
    memset(b->probe_memory, 1, PROBE_BYTES);
    b->table = backend->table;
    json_t *info = machine_info(b);
    backend->close(backend);
    if (!o->json) print_info(info);
    if (!o->info) status = measure(b, err);
    if (!status && o->json) {
        json_object_set(info, "results", b->results);
        char *text = json_dumps(info, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
        if (text) puts(text);
        free(text);
    }
    json_decref(info);
    return status;
}

static int run_bench(int argc, char **argv) {
    struct bench_options o;
    int code = command_parse(&command_bench, bench_options_table(), &o, argc, argv);
    if (code != COMMAND_GO) return code;
    looplm_error err = {0};
    struct bench b = {.options = &o, .results = json_array()};
    int status = bench(&b, &err);
    looplm_model_close(b.model);
    team_close(b.team);
    free(b.probe_memory);
    json_decref(b.results);
    options_free(bench_options_table(), &o);
    return status ? command_fail(&err) : COMMAND_DONE;
}

const struct command command_bench = {"bench", "MODEL [options]",
                                      "measure speed, beside probes of what this machine can do", run_bench};
