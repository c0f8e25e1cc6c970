/* Speed of a training step beside the peak of the same run, its memory, and where the time of a sequence goes.
 *
 * usage: bench_train [--precision f32|bf16] [--threads N] [--workers N] [--table NAME] [--steps N] [--profile] [--json]
 *                    [--hidden D] [--layers L] [--loops R] [--heads H] [--ffn F] [--vocab V] [--positions S] [--batch
 * B]
 *                    [--recompute] [--model DIR --ids PREFIX [--losses | --gradients DIR]] [--serve]
 *
 * The default shape is the one that peers were measured on: d 256, 4 heads, 4 layers x 4 loops, ffn 704, 256 tokens x
 * 8, vocabulary 4096, loss on every loop. The larger one of the log: --hidden 512 --heads 8 --layers 6 --ffn 1408.
 * The peak is that of the instructions that the table's products use: f32, BF16, or tile registers.
 * On one thread both are measured in its processor time, which other programs do not stretch.
 *
 * Beside a peer (peers/train_torch.py does the same): --model starts from a model directory instead of random values,
 * --ids takes the sequences of an indexed data set in order, each token predicting the next. --losses prints a line of
 * JSON a step, --gradients writes those of the first batch as if they were a model, and --serve answers `step N` on
 * standard input with the seconds of N steps (peers/compare.py).
 * Operations counted: 6 per weight and token of every product (head included, each loop), attention three times its
 * causal forward. */
#include "base/random.h"
#include "tensor/cpu/cpu.h"
#include "tensor/probe.h"
#include "text/indexed.h"
#include "train/optimizer.h"
#include "train/workers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define PROFILE_UNITS 3

/* A backend that executes the ops of a pass one by one on another and adds up the time of each kind. */
struct timed {
    struct backend backend; /* first: execute gets a pointer to it */
    struct backend *inner;
    bool on;
    double seconds[OP_COUNT];
    int64_t count[OP_COUNT];
};

static void timed_execute(struct backend *backend, const struct pass *pass) {
    struct timed *t = (struct timed *)backend;
    if (!t->on) {
        t->inner->execute(t->inner, pass);
        return;
    }
    for (int32_t i = 0; i < pass->count; i++) {
        struct pass one = {.ops = pass->ops + i, .count = 1};
        double start = probe_clock_s(1);
        t->inner->execute(t->inner, &one);
        t->seconds[pass->ops[i].kind] += probe_clock_s(1) - start;
        t->count[pass->ops[i].kind]++;
    }
}
static void *timed_alloc(struct backend *b, size_t size) {
    struct backend *inner = ((struct timed *)b)->inner;
    return inner->alloc(inner, size);
}
static void timed_release(struct backend *b, void *memory, size_t size) {
    struct backend *inner = ((struct timed *)b)->inner;
    inner->release(inner, memory, size);
}

struct bench {
    int threads, workers_wanted, steps, batch, positions;
    const char *table, *model_path, *ids_path, *gradients_path;
    enum weight_type type;
    bool recompute, json, profile, losses, serve;
    struct model_config config;
    struct backend *backend;
    struct params params;
    struct model *model;
    struct workers *workers;
    struct optimizer optimizer;
    struct indexed *text; /* NULL: random ids, the same at every step */
    size_t text_at;
    double gradient_s, optimizer_s, pack_s; /* of the last step */
    double norm;
};

static void need(int status, const looplm_error *err) {
    if (!status) return;
    fprintf(stderr, "bench_train: %s\n", err->message);
    exit(1);
}

static void fill_params(struct bench *b) {
    struct random random = {1, 0};
    for (int32_t i = 0; i < b->params.table.count; i++) {
        const struct tensor_spec *spec = &b->params.table.specs[i];
        for (int64_t j = 0; j < spec->rows * spec->cols; j++)
            b->params.data[spec->offset + j] = spec->dims == 1 ? 1 : 0.02f * random_normal(&random);
    }
}

static void fill_text(struct bench *b) {
    struct random random = {2, 0};
    for (int i = 0; i < b->batch; i++) {
        struct unit_slot *slot = workers_slot(b->workers, i);
        slot->n = b->positions;
        for (int j = 0; j < b->positions; j++) slot->ids[j] = (int32_t)random_below(&random, (uint64_t)b->config.vocab);
        for (int j = 0; j < b->positions; j++) slot->targets[j] = j + 1 < b->positions ? slot->ids[j + 1] : -1;
    }
}

/* The next sequences of the data set's first document; from its beginning when it has no whole batch left. */
static void read_text(struct bench *b) {
    size_t n = (size_t)b->positions, ids;
    if (!b->text) return;
    indexed_document(b->text, 0, &ids);
    if (b->text_at + (size_t)b->batch * n + 1 > ids) b->text_at = 0;
    for (int i = 0; i < b->batch; i++, b->text_at += n) {
        struct unit_slot *slot = workers_slot(b->workers, i);
        indexed_read(b->text, 0, b->text_at, n, slot->ids);
        indexed_read(b->text, 0, b->text_at + 1, n, slot->targets);
    }
}

static void open_text(struct bench *b) {
    looplm_error err = {0};
    size_t ids;
    fill_text(b);
    if (!b->ids_path) return;
    need(indexed_open(&b->text, b->ids_path, &err), &err);
    need(indexed_check_ids(b->text, b->config.vocab, &err), &err);
    indexed_document(b->text, 0, &ids);
    if (ids > (size_t)b->batch * (size_t)b->positions) return;
    fprintf(stderr, "bench_train: %s: its first document has %zu ids, which is less than a batch\n", b->ids_path, ids);
    exit(1);
}

static struct unit_options unit_options(const struct bench *b) {
    return (struct unit_options){.positions_max = b->positions, .recompute = b->recompute};
}

static void setup(struct bench *b) {
    looplm_error err = {0};
    need(cpu_open(&b->backend, b->threads, b->table, &err), &err);
    if (b->model_path) {
        need(params_load(&b->params, b->model_path, &err), &err);
        b->config = b->params.config;
    } else {
        need(params_alloc(&b->params, &b->config, &err), &err);
        fill_params(b);
    }
    need(model_alloc(&b->model, &b->config, b->backend, b->type, &err), &err);
    model_pack(b->model, &b->params);
    struct workers_options workers = {
        .workers = b->workers_wanted, .kernels = b->table, .batch = b->batch, .unit = unit_options(b)};
    need(workers_open(&b->workers, b->model, &b->params, &workers, &err), &err);
    struct optimizer_options options = {0.9, 0.95, 1e-8, 0.1, 1.0, false};
    need(optimizer_init(&b->optimizer, &b->params, b->backend, &options, &err), &err);
    open_text(b);
}

static struct objective stage1(void) {
    return (struct objective){.kind = OBJECTIVE_STAGE1, .beta = 0.1};
}

/* One optimizer step as the trainer takes it; the mean loss. */
static double step(struct bench *b) {
    struct objective objective = stage1();
    double loss = 0, valid = 0, start = probe_now_s();
    read_text(b);
    const real *gradient = workers_gradient(b->workers, b->batch, b->config.loops, &objective);
    for (int i = 0; i < b->batch; i++) {
        loss += workers_slot(b->workers, i)->result.loss;
        valid += (double)workers_slot(b->workers, i)->result.valid;
    }
    double after_gradient = probe_now_s();
    optimizer_step(&b->optimizer, gradient, valid, 3e-4, &b->norm);
    double after_optimizer = probe_now_s();
    model_pack(b->model, &b->params);
    workers_pack(b->workers, &b->params);
    b->gradient_s = after_gradient - start;
    b->optimizer_s = after_optimizer - after_gradient;
    b->pack_s = probe_now_s() - after_optimizer;
    return loss / valid;
}

static double operations_per_token(const struct bench *b) {
    const struct model_config *c = &b->config;
    double heads = (double)c->heads * c->head_dim, kv = (double)c->kv_heads * c->head_dim, d = c->hidden;
    double layer = d * (heads + 2 * kv) + heads * d + 3 * d * c->ffn, attention = 4 * heads * (b->positions + 1) / 2.0;
    return c->loops * (c->layers * (6 * layer + 3 * attention) + 6 * d * c->vocab);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Where the processor time of one sequence goes on one thread: what a worker does, op by op. */
static void show_shares(struct bench *b) {
    static const char *const names[] = {
#define X(code, type) [OP_##code] = #code,
        OP_MAP(X)
#undef X
    };
    static struct timed timed;
    looplm_error err = {0};
    struct model model = *b->model;
    struct unit_workspace *ws;
    struct objective objective = stage1();
    need(cpu_open(&timed.inner, 1, b->table, &err), &err);
    timed.backend = *timed.inner;
    timed.backend.execute = timed_execute;
    timed.backend.alloc = timed_alloc;
    timed.backend.release = timed_release;
    model.backend = &timed.backend;
    struct unit_options options = unit_options(b);
    need(unit_open(&ws, &model, &options, &err), &err);
    unit_pack(ws, &b->params);
    real *gradient = timed.backend.alloc(&timed.backend, (size_t)b->params.table.elements * sizeof(real));
    const struct unit_slot *slot = workers_slot(b->workers, 0);
    struct unit_input input = {.ids = slot->ids, .targets = slot->targets, .n = slot->n};
    struct unit_result result;
    double sum = 0, whole = 0;
    for (int i = 0; i <= PROFILE_UNITS; i++) {
        double start = probe_clock_s(1);
        timed.on = i > 0; /* the first touches all memory */
        unit_gradient(ws, &input, &objective, gradient, &result);
        if (i) whole += probe_clock_s(1) - start;
    }
    for (int k = 0; k < OP_COUNT; k++) sum += timed.seconds[k];
    printf("\n%-20s %8s %10s %7s   (one sequence on one thread: %.1f ms, of which outside ops %.1f)\n", "op", "count",
           "ms", "share", 1e3 * whole / PROFILE_UNITS, 1e3 * (whole - sum) / PROFILE_UNITS);
    for (;;) {
        int most = 0;
        for (int k = 1; k < OP_COUNT; k++)
            if (timed.seconds[k] > timed.seconds[most]) most = k;
        if (timed.seconds[most] <= 0) break;
        printf("%-20s %8lld %10.2f %6.1f%%\n", names[most], (long long)timed.count[most] / PROFILE_UNITS,
               1e3 * timed.seconds[most] / PROFILE_UNITS, 100 * timed.seconds[most] / whole);
        timed.seconds[most] = 0;
    }
}

static double peak_of(const struct bench *b, struct team *team) {
    return probe_peak_products(team, b->backend->table, b->type);
}

struct samples {
    double *seconds, *shares, *peaks;
    double loss;
};

/* The peak is probed before every step and the ratio is taken of the two that lie side by side. */
static void run(struct bench *b, struct samples *s) {
    struct team *team;
    looplm_error err = {0};
    need(team_open(&team, b->backend->threads, &err), &err);
    double operations = operations_per_token(b) * b->batch * b->positions;
    s->shares = calloc((size_t)b->steps, sizeof *s->shares);
    s->seconds = calloc((size_t)b->steps, sizeof *s->seconds);
    s->peaks = calloc((size_t)b->steps, sizeof *s->peaks);
    step(b); /* touches all memory */
    for (int i = 0; i < b->steps; i++) {
        s->peaks[i] = peak_of(b, team);
        double start = probe_clock_s(b->backend->threads);
        s->loss = step(b);
        s->seconds[i] = probe_clock_s(b->backend->threads) - start;
        s->shares[i] = operations / s->seconds[i] / 1e9 / s->peaks[i];
    }
    team_close(team);
    qsort(s->shares, (size_t)b->steps, sizeof *s->shares, by_value);
    qsort(s->seconds, (size_t)b->steps, sizeof *s->seconds, by_value);
    qsort(s->peaks, (size_t)b->steps, sizeof *s->peaks, by_value);
}

static double max_rss_mib(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss / 1024;
}

static void report(const struct bench *b, const struct samples *s) {
    int n = b->steps;
    double tokens = b->batch * b->positions, speed = tokens / s->seconds[n / 2];
    if (b->json) {
        printf("{\"precision\": \"%s\", \"table\": \"%s\", \"threads\": %d, \"workers\": %d, \"tokens_per_s\": %.6g, "
               "\"tokens_per_s_quartiles\": [%.6g, %.6g], \"gflops\": %.6g, \"peak_gflops\": %.6g, \"share\": %.4g, "
               "\"share_quartiles\": [%.4g, %.4g], \"max_rss_mib\": %.6g, \"loss\": %.6g}\n",
               model_weight_type_name(b->type), b->backend->table, b->backend->threads, workers_count(b->workers),
               speed, tokens / s->seconds[n * 3 / 4], tokens / s->seconds[n / 4], speed * operations_per_token(b) / 1e9,
               s->peaks[n / 2], s->shares[n / 2], s->shares[n / 4], s->shares[n * 3 / 4], max_rss_mib(), s->loss);
        return;
    }
    printf(
        "%s, %s, %d threads, %d sequences at once: %.0f tokens/s (median of %d steps, quartiles %.0f, %.0f)\n"
        "%.1f Mop/token, %.1f GFLOP/s, %.1f %% of the peak of the same run (quartiles %.1f, %.1f; peak %.0f GFLOP/s)\n"
        "last step: gradient %.1f ms, optimizer %.1f, packing %.1f; largest resident memory %.0f MiB, loss %.4f\n",
        model_weight_type_name(b->type), b->backend->table, b->backend->threads, workers_count(b->workers), speed, n,
        tokens / s->seconds[n * 3 / 4], tokens / s->seconds[n / 4], operations_per_token(b) / 1e6,
        speed * operations_per_token(b) / 1e9, 100 * s->shares[n / 2], 100 * s->shares[n / 4],
        100 * s->shares[n * 3 / 4], s->peaks[n / 2], 1e3 * b->gradient_s, 1e3 * b->optimizer_s, 1e3 * b->pack_s,
        max_rss_mib(), s->loss);
}

static void print_losses(struct bench *b) {
    for (int i = 0; i < b->steps; i++) {
        double start = probe_now_s(), loss = step(b);
        printf("{\"step\": %d, \"loss\": %.7f, \"grad_norm\": %.7f, \"seconds\": %.4f}\n", i + 1, loss, b->norm,
               probe_now_s() - start);
        fflush(stdout);
    }
}

/* The first batch's, over its tokens. */
static void save_gradients(struct bench *b) {
    struct objective objective = stage1();
    struct params gradients = b->params;
    looplm_error err = {0};
    read_text(b);
    gradients.data = (real *)(uintptr_t)workers_gradient(b->workers, b->batch, b->config.loops, &objective);
    double valid = 0;
    for (int i = 0; i < b->batch; i++) valid += (double)workers_slot(b->workers, i)->result.valid;
    for (int64_t i = 0; i < gradients.table.elements; i++) gradients.data[i] /= (real)valid;
    need(params_save(&gradients, b->gradients_path, DTYPE_F32, &err), &err);
}

static void serve(struct bench *b) {
    char line[64];
    step(b); /* touches all memory */
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        int n = 0;
        if (sscanf(line, "step %d", &n) != 1) puts("expected: step N");
        double start = probe_now_s();
        for (int i = 0; i < n; i++) step(b);
        if (n) printf("%.6f\n", probe_now_s() - start);
        fflush(stdout);
    }
}

static void usage(const char *option) {
    fprintf(stderr, "bench_train: %s: not an option, or without its value; see the head of bench_train.c\n", option);
    exit(2);
}

static void parse(struct bench *b, int argc, char **argv) {
    const struct {
        const char *name;
        int32_t *value;
    } numbers[] = {
        {"--threads", &b->threads},      {"--workers", &b->workers_wanted}, {"--steps", &b->steps},
        {"--batch", &b->batch},          {"--positions", &b->positions},    {"--hidden", &b->config.hidden},
        {"--layers", &b->config.layers}, {"--loops", &b->config.loops},     {"--heads", &b->config.heads},
        {"--ffn", &b->config.ffn},       {"--vocab", &b->config.vocab},
    };
    const struct {
        const char *name;
        bool *value;
    } switches[] = {{"--recompute", &b->recompute},
                    {"--json", &b->json},
                    {"--profile", &b->profile},
                    {"--losses", &b->losses},
                    {"--serve", &b->serve}};
    const struct {
        const char *name;
        const char **value;
    } texts[] = {{"--table", &b->table},
                 {"--model", &b->model_path},
                 {"--ids", &b->ids_path},
                 {"--gradients", &b->gradients_path}};
    for (int i = 1; i < argc; i++) {
        bool known = false;
        for (size_t k = 0; k < sizeof switches / sizeof *switches; k++) {
            if (strcmp(argv[i], switches[k].name)) continue;
            *switches[k].value = known = true;
        }
        if (known) continue;
        if (i + 1 >= argc) usage(argv[i]);
        for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++) {
            if (strcmp(argv[i], numbers[k].name)) continue;
            *numbers[k].value = atoi(argv[i + 1]);
            known = true;
        }
        for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
            if (strcmp(argv[i], texts[k].name)) continue;
            *texts[k].value = argv[i + 1];
            known = true;
        }
        if (!strcmp(argv[i], "--precision")) {
            b->type = strcmp(argv[i + 1], "bf16") ? WEIGHT_F32 : WEIGHT_BF16;
        } else if (!known) {
            usage(argv[i]);
        }
        i++;
    }
    b->config.kv_heads = b->config.heads;
    b->config.head_dim = b->config.hidden / b->config.heads;
}

int main(int argc, char **argv) {
    static struct bench b = {.steps = 9, .batch = 8, .positions = 256};
    b.config = (struct model_config){.family = FAMILY_OURO,
                                     .layers = 4,
                                     .hidden = 256,
                                     .ffn = 704,
                                     .vocab = 4096,
                                     .heads = 4,
                                     .loops = 4,
                                     .max_positions = 65536,
                                     .rope_theta = 1e4,
                                     .norm_eps = 1e-6,
                                     .initializer_range = 0.02,
                                     .branch_norms = true,
                                     .exit_gate = true,
                                     .exit_threshold = 1};
    parse(&b, argc, argv);
    struct samples samples;
    setup(&b);
    if (b.serve || b.losses || b.gradients_path) {
        (b.serve ? serve : b.losses ? print_losses : save_gradients)(&b);
        return 0;
    }
    run(&b, &samples);
    report(&b, &samples);
    if (b.profile) show_shares(&b);
    return 0;
}
