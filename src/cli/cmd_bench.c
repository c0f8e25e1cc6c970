/* looplm bench: how fast a model runs here, and what share of this machine's limits that is. Limits are probed between
 * the slices of every measurement, since the memory of shared machines drifts; medians and quartiles are shown. */
#include "base/team.h"
#include "cli/bench_engine.h"
#include "cli/bench_model.h"
#include "cli/command.h"
#include "engine/api.h"
#include "tensor/cpu/cpu.h"
#include "tensor/probe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BENCH_LIST_MAX 16
#define BENCH_NAME_SIZE 32
#define PROBE_BYTES ((size_t)512 << 20)

#define BENCH_OPTIONS(X)                                                                                          \
    X(MAYBE, model, "MODEL", "a model directory")                                                                 \
    X(FLAG, info, "info", 0, "only say which kernels this processor runs, and the probed limits")                 \
    X(TEXT, prefill, "prefill", 0, "128,512,2048", "N,N,..", "prompt lengths to time; 0 for none")                \
    X(TEXT, rows, "rows", 0, "1,2,4,8,16", "B,B,..", "sequences that decode together; 0 for none")                \
    X(TEXT, context, "context", 0, "64", "N,N,..", "positions that each decoding sequence has behind it")         \
    X(TEXT, loops, "loops", 0, "0", "R,R,..", "loops of every token; 0 means the model's own number")             \
    X(INT, slices, "slices", 0, 20, 1, BENCH_SLICES_MAX, "N",                                                     \
      "tokens of each decode measurement, passes of each prompt's, all beside probes")                            \
    X(TEXT, weights, "weights", 0, "auto", "TYPE,..", "types of the weights in memory: auto, f32, bf16, q8, q4")  \
    X(TEXT, kv_type, "kv-type", 0, "auto", "TYPE,..", "types of keys and values: auto, f32, bf16, q8")            \
    X(TEXT, kernels, "kernels", 0, NULL, "NAME", "kernel table (default: the best that this processor supports)") \
    X(INT, threads, "threads", 0, 0, 0, 1024, "N", "threads; 0 means one per processor")                          \
    X(FLAG, engine, "engine", 0,                                                                                  \
      "instead, serve random requests: recorded exits, or speculation, beside the plain engine")                  \
    X(INT, streams, "streams", 0, 16, 1, 1024, "N", "with --engine: requests served at once")                     \
    X(INT, requests, "requests", 0, 0, 0, 1 << 20, "N",                                                           \
      "with --engine: requests in all; 0: 4 for each stream, or one alone")                                       \
    X(INT, prompt, "prompt", 0, 1, 1, 64, "N", "with --engine: ids of a prompt; the bounds count one")            \
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
    struct backend *backend; /* of the probed memory; its table is the models' */
    int32_t prefill[BENCH_LIST_MAX], rows[BENCH_LIST_MAX], context[BENCH_LIST_MAX], loops[BENCH_LIST_MAX];
    int n_prefill, n_rows, n_context, n_loops;
    json_t *info, *results;
};

static int parse_list(const char *option, const char *text, int32_t most, int32_t *list, int *n, looplm_error *err) {
    *n = 0;
    for (const char *p = text; *p;) {
        char *end;
        long value = strtol(p, &end, 10);
        if (end == p || (*end && (*end != ',' || !end[1])) || value < 0 || value > most || *n == BENCH_LIST_MAX)
            return error_set(err, LOOPLM_USAGE, "--%s %s: expected at most %d numbers of 0 to %d, like 1,2,4", option,
                             text, BENCH_LIST_MAX, most);
        list[(*n)++] = (int32_t)value;
        p = *end ? end + 1 : end;
    }
    return *n ? 0 : error_set(err, LOOPLM_USAGE, "--%s: an empty list; give numbers like 1,2,4", option);
}

/* As parse_list; zeros are dropped. */
static int parse_counts(const char *option, const char *text, int32_t most, int32_t *list, int *n, looplm_error *err) {
    int all, status = parse_list(option, text, most, list, &all, err);
    *n = 0;
    for (int i = 0; i < all && !status; i++)
        if (list[i] > 0) list[(*n)++] = list[i];
    return status;
}

/* The next name of "a,b,c" into `name`, and *p behind it; false at the end. */
static bool next_name(const char **p, char name[BENCH_NAME_SIZE]) {
    if (!**p) return false;
    size_t n = strcspn(*p, ",");
    snprintf(name, BENCH_NAME_SIZE, "%.*s", (int)n, *p);
    *p += n + ((*p)[n] == ',');
    return true;
}

static const char *kv_type_name(enum kv_type type) {
    static const char *const names[] = {
#define X(code, name) name,
        KV_TYPE_MAP(X)
#undef X
    };
    return names[type];
}

/* The type called `name`; auto is the one that goes with the weights. */
static int kv_type_named(const char *name, enum weight_type weights, enum kv_type *type, looplm_error *err) {
    if (!strcmp(name, "auto")) {
        *type = kv_type_default(weights);
        return 0;
    }
    for (int i = KV_F32; i <= KV_Q8; i++) {
        *type = (enum kv_type)i;
        if (!strcmp(name, kv_type_name(*type))) return 0;
    }
    return error_set(err, LOOPLM_USAGE, "--kv-type: '%s' is no type of keys and values; choose auto, f32, bf16 or q8",
                     name);
}

static double probe(const struct bench *b) {
    return probe_bandwidth(b->team, b->probe_memory, PROBE_BYTES);
}

/* ---- the command
 * ----------------------------------------------------------------------------------------------------------- */

static json_t *machine_info(const struct bench *b) {
    json_t *tables = json_array(), *lacking = json_array(), *sets = json_array();
    for (const struct cpu_table *const *t = cpu_tables(); *t; t++)
        json_array_append_new((*t)->supported() ? tables : lacking, json_string((*t)->name));
    for (int i = 0; probe_instruction_set(i); i++) json_array_append_new(sets, json_string(probe_instruction_set(i)));
    json_t *info =
        json_pack("{s:s, s:o, s:o, s:o, s:i, s:f}", "kernels", b->backend->table, "tables", tables, "tables_lacking",
                  lacking, "instruction_sets", sets, "threads", team_size(b->team), "probe_gb_per_s", probe(b));
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

/* The machine, once: behind the first model's errors, which need not wait for probes. */
static void tell_machine(struct bench *b) {
    if (b->info) return;
    b->info = machine_info(b);
    if (!b->options->json) print_info(b->info);
}

static int measure_engine(struct bench *b, enum kv_type kv_type, looplm_error *err) {
    const struct bench_options *o = b->options;
    struct bench_engine_options engine = {.kv_type = kv_type,
                                          .streams = (int32_t)o->streams,
                                          .requests = (int32_t)o->requests,
                                          .prompt = (int32_t)o->prompt,
                                          .tokens = (int32_t)o->tokens,
                                          .slices = (int32_t)o->slices,
                                          .mean_depth = o->mean_depth > 0 ? o->mean_depth : b->model->info.loops,
                                          .acceptance = o->acceptance_given ? o->acceptance : -1,
                                          .trace = o->trace,
                                          .quiet = o->json};
    if (!engine.requests) engine.requests = engine.streams > 1 ? 4 * engine.streams : 1;
    return bench_engine(b->model->model, &engine, b->results, err);
}

/* Every prompt, and every mix of context and rows, at one number of loops. */
static int measure_loops(struct bench *b, int32_t loops, enum kv_type kv_type, looplm_error *err) {
    struct bench_setting setting = {.model = b->model->model,
                                    .kv_type = kv_type,
                                    .kv_name = kv_type_name(kv_type),
                                    .loops = loops ? loops : b->model->info.loops,
                                    .slices = (int32_t)b->options->slices,
                                    .team = b->team,
                                    .probe_bytes = b->probe_memory,
                                    .probe_size = PROBE_BYTES,
                                    .quiet = b->options->json,
                                    .results = b->results};
    int status = 0;
    for (int i = 0; i < b->n_prefill && !status; i++) status = bench_prefill(&setting, b->prefill[i], err);
    for (int c = 0; c < b->n_context && !status; c++)
        for (int i = 0; i < b->n_rows && !status; i++) status = bench_decode(&setting, b->rows[i], b->context[c], err);
    return status;
}

static int measure_weights(struct bench *b, const char *weights, looplm_error *err) {
    const struct bench_options *o = b->options;
    looplm_model_options options = {.weights = weights, .kernels = o->kernels, .threads = (int)o->threads};
    int status = looplm_model_open(&b->model, o->model, &options, err);
    if (!status) tell_machine(b);
    char name[BENCH_NAME_SIZE];
    for (const char *p = o->kv_type; !status && next_name(&p, name);) {
        enum kv_type kv_type;
        status = kv_type_named(name, b->model->model->weight_type, &kv_type, err);
        if (!status && o->engine) status = measure_engine(b, kv_type, err);
        for (int i = 0; i < b->n_loops && !status && !o->engine; i++)
            status = measure_loops(b, b->loops[i], kv_type, err);
    }
    looplm_model_close(b->model);
    b->model = NULL;
    return status;
}

static int measure(struct bench *b, looplm_error *err) {
    char name[BENCH_NAME_SIZE];
    int status = 0;
    for (const char *p = b->options->weights; !status && next_name(&p, name);) status = measure_weights(b, name, err);
    return status;
}

/* Options that would be ignored are refused: a measurement must be what was asked for. */
static int check_options(const struct bench_options *o, looplm_error *err) {
    const struct {
        const char *name;
        bool given, engine;
    } options[] = {
        {"streams", o->streams_given, true},
        {"requests", o->requests_given, true},
        {"prompt", o->prompt_given, true},
        {"tokens", o->tokens_given, true},
        {"trace", o->trace_given, true},
        {"mean-depth", o->mean_depth_given, true},
        {"acceptance", o->acceptance_given, true},
        {"prefill", o->prefill_given, false},
        {"rows", o->rows_given, false},
        {"context", o->context_given, false},
        {"loops", o->loops_given, false},
    };
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        if (options[i].given && options[i].engine != o->engine)
            return error_set(err, LOOPLM_USAGE, "--%s %s --engine", options[i].name,
                             options[i].engine ? "is for" : "has no meaning with");
    char name[BENCH_NAME_SIZE];
    enum kv_type kv_type;
    int status = 0;
    for (const char *p = o->kv_type; !status && next_name(&p, name);)
        status = kv_type_named(name, WEIGHT_F32, &kv_type, err);
    if (!status && !o->info && !o->model)
        return error_set(err, LOOPLM_USAGE, "no model; give a model directory, or --info");
    return status;
}

static int bench(struct bench *b, looplm_error *err) {
    const struct bench_options *o = b->options;
    int status = check_options(o, err);
    if (!status) status = parse_counts("prefill", o->prefill, 1 << 20, b->prefill, &b->n_prefill, err);
    if (!status) status = parse_counts("rows", o->rows, BENCH_ROWS_MAX, b->rows, &b->n_rows, err);
    if (!status) status = parse_counts("context", o->context, 1 << 20, b->context, &b->n_context, err);
    if (!status) status = parse_list("loops", o->loops, MODEL_LOOPS_MAX, b->loops, &b->n_loops, err);
    if (!status) status = team_open(&b->team, (int)o->threads, err);
    if (!status) status = cpu_open(&b->backend, (int)o->threads, o->kernels, err);
    if (status) return status;
    /* The backend's memory, in huge pages as packed weights are: out of small ones a probe reads a third less. */
    if (!(b->probe_memory = b->backend->alloc(b->backend, PROBE_BYTES)))
        return error_set(err, LOOPLM_MEMORY, "no memory for the bandwidth probe");
    memset(b->probe_memory, 1, PROBE_BYTES);
    if (o->info)
        tell_machine(b);
    else
        status = measure(b, err);
    if (!status && o->json) {
        json_object_set(b->info, "results", b->results);
        char *text = json_dumps(b->info, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
        if (text) puts(text);
        free(text);
    }
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
    if (b.backend) {
        b.backend->release(b.backend, b.probe_memory, PROBE_BYTES);
        b.backend->close(b.backend);
    }
    json_decref(b.info);
    json_decref(b.results);
    options_free(bench_options_table(), &o);
    return status ? command_fail(&err) : COMMAND_DONE;
}

const struct command command_bench = {"bench", "MODEL [options]",
                                      "measure speed, beside probes of what this machine can do", run_bench};
