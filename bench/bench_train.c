/* Speed of a training step beside the fp32 peak of the same run, and where its time goes by kind of op.
 *
 * usage: bench_train [--threads N] [--table NAME] [--steps N] [--hidden D] [--layers L] [--loops R] [--heads H] [--ffn
 * F] [--vocab V]
 *                    [--positions S] [--batch B] [--recompute]
 *
 * The default shape is the one that peers were measured on: d 256, 4 heads, 4 layers x 4 loops, ffn 704, 256 tokens x
 * 8, vocabulary 4096, loss on every loop. Operations counted: 6 per weight and token of every product (head included,
 * each loop), attention three times its causal forward. */
#include "base/random.h"
#include "tensor/cpu/cpu.h"
#include "tensor/probe.h"
#include "train/optimizer.h"
#include "train/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
        double start = probe_now_s();
        t->inner->execute(t->inner, &one);
        t->seconds[pass->ops[i].kind] += probe_now_s() - start;
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
    int threads, steps, batch, positions;
    const char *table;
    bool recompute;
    struct model_config config;
    struct timed timed;
    struct params params;
    struct model *model;
    struct unit_workspace *ws;
    struct optimizer optimizer;
    struct gradient_tree tree;
    int32_t *ids, *targets;
};

static void need(int status, const looplm_error *err) {
    if (!status) return;
    fprintf(stderr, "bench_train: %s\n", err->message);
    exit(1);
}

static void fill(struct bench *b) {
    struct random random = {1, 0};
    for (int32_t i = 0; i < b->params.table.count; i++) {
        const struct tensor_spec *spec = &b->params.table.specs[i];
        for (int64_t j = 0; j < spec->rows * spec->cols; j++)
            b->params.data[spec->offset + j] = spec->dims == 1 ? 1 : 0.02f * random_normal(&random);
    }
    for (int i = 0; i < b->batch * b->positions; i++)
        b->ids[i] = (int32_t)random_below(&random, (uint64_t)b->config.vocab);
    for (int i = 0; i < b->batch * b->positions; i++) b->targets[i] = (i + 1) % b->positions ? b->ids[i + 1] : -1;
}

static void setup(struct bench *b) {
    looplm_error err = {0};
    struct timed *t = &b->timed;
    need(cpu_open(&t->inner, b->threads, b->table, &err), &err);
    t->backend = *t->inner;
    t->backend.execute = timed_execute;
    t->backend.alloc = timed_alloc;
    t->backend.release = timed_release;
    need(params_alloc(&b->params, &b->config, &err), &err);
    b->ids = calloc((size_t)(b->batch * b->positions), sizeof *b->ids);
    b->targets = calloc((size_t)(b->batch * b->positions), sizeof *b->targets);
    fill(b);
    need(model_alloc(&b->model, &b->config, &t->backend, WEIGHT_F32, &err), &err);
    struct unit_options unit = {.positions_max = b->positions, .recompute = b->recompute};
    need(unit_open(&b->ws, b->model, &unit, &err), &err);
    struct optimizer_options options = {0.9, 0.95, 1e-8, 0.1, 1.0, false};
    need(optimizer_init(&b->optimizer, &b->params, &t->backend, &options, &err), &err);
    need(gradient_tree_init(&b->tree, &t->backend, b->params.table.elements, b->batch, &err), &err);
    model_pack(b->model, &b->params);
    unit_pack(b->ws, &b->params);
}

static double step(struct bench *b) {
    struct objective objective = {.kind = OBJECTIVE_STAGE1, .beta = 0.1};
    double loss = 0;
    int64_t valid = 0;
    for (int i = 0; i < b->batch; i++) {
        struct unit_result result;
        struct unit_input input = {
            .ids = b->ids + i * b->positions, .targets = b->targets + i * b->positions, .n = b->positions};
        unit_gradient(b->ws, &input, &objective, gradient_tree_begin(&b->tree), &result);
        gradient_tree_push(&b->tree);
        loss += result.loss;
        valid += result.valid;
    }
    optimizer_step(&b->optimizer, gradient_tree_finish(&b->tree), (double)valid, 3e-4, NULL);
    model_pack(b->model, &b->params);
    unit_pack(b->ws, &b->params);
    return loss / (double)valid;
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

static void show_shares(struct bench *b) {
    static const char *const names[] = {
#define X(code, type) [OP_##code] = #code,
        OP_MAP(X)
#undef X
    };
    struct timed *t = &b->timed;
    double start = probe_now_s(), sum = 0;
    t->on = true;
    step(b);
    double whole = probe_now_s() - start;
    for (int k = 0; k < OP_COUNT; k++) sum += t->seconds[k];
    printf("\n%-20s %8s %10s %7s   (one step, op by op: %.1f ms, of which outside ops %.1f)\n", "op", "count", "ms",
           "share", 1e3 * whole, 1e3 * (whole - sum));
    for (;;) {
        int most = 0;
        for (int k = 1; k < OP_COUNT; k++)
            if (t->seconds[k] > t->seconds[most]) most = k;
        if (t->seconds[most] <= 0) break;
        printf("%-20s %8lld %10.2f %6.1f%%\n", names[most], (long long)t->count[most], 1e3 * t->seconds[most],
               100 * t->seconds[most] / whole);
        t->seconds[most] = 0;
    }
}

/* The peak is probed before every step and the ratio is taken of the two that lie side by side. */
static void run(struct bench *b) {
    struct team *team;
    looplm_error err = {0};
    need(team_open(&team, b->timed.inner->threads, &err), &err);
    double operations = operations_per_token(b) * b->batch * b->positions;
    double *shares = calloc((size_t)b->steps, sizeof *shares), *speeds = calloc((size_t)b->steps, sizeof *speeds),
           loss = 0;
    step(b); /* touches all memory */
    for (int i = 0; i < b->steps; i++) {
        double peak = probe_peak_f32(team), start = probe_now_s();
        loss = step(b);
        double seconds = probe_now_s() - start;
        speeds[i] = b->batch * b->positions / seconds;
        shares[i] = operations / seconds / 1e9 / peak;
    }
    team_close(team);
    qsort(shares, (size_t)b->steps, sizeof *shares, by_value);
    qsort(speeds, (size_t)b->steps, sizeof *speeds, by_value);
    printf("%s, %d threads: %.0f tokens/s (median of %d steps), %.1f Mop/token, %.1f GFLOP/s, %.1f %% of the fp32 peak "
           "of the same run "
           "(quartiles %.1f, %.1f)\nworkspace %.1f MiB, loss %.4f\n",
           b->timed.inner->table, b->timed.inner->threads, speeds[b->steps / 2], b->steps,
           operations_per_token(b) / 1e6, speeds[b->steps / 2] * operations_per_token(b) / 1e9,
           100 * shares[b->steps / 2], 100 * shares[b->steps / 4], 100 * shares[b->steps * 3 / 4],
           (double)unit_memory(b->ws) / 1048576.0, loss);
    free(shares);
    free(speeds);
}

static void parse(struct bench *b, int argc, char **argv) {
    const struct {
        const char *name;
        int32_t *value;
    } numbers[] = {
        {"--threads", &b->threads},     {"--steps", &b->steps},          {"--batch", &b->batch},
        {"--positions", &b->positions}, {"--hidden", &b->config.hidden}, {"--layers", &b->config.layers},
        {"--loops", &b->config.loops},  {"--heads", &b->config.heads},   {"--ffn", &b->config.ffn},
        {"--vocab", &b->config.vocab},
    };
    for (int i = 1; i < argc; i++) {
        bool known = !strcmp(argv[i], "--recompute");
        b->recompute |= known;
        for (size_t k = 0; !known && i + 1 < argc && k < sizeof numbers / sizeof *numbers; k++) {
            if (strcmp(argv[i], numbers[k].name)) continue;
            *numbers[k].value = atoi(argv[++i]);
            known = true;
        }
        if (!known && i + 1 < argc && !strcmp(argv[i], "--table")) {
            b->table = argv[++i];
            known = true;
        }
        if (!known) {
            fprintf(stderr, "bench_train: %s: not an option, or without its value\n", argv[i]);
            exit(2);
        }
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
    setup(&b);
    run(&b);
    show_shares(&b);
    return 0;
}
