/* Speed of attention, its gradient and the small ops around it, beside the peak and the bandwidth of the same run.
 *
 * Operations of attention: 4 K per key that a row sees, per head; of its gradient 10 K. Decode and the small ops are
 * given in bytes: the keys and values of every position seen; what an op reads and writes.
 *
 * usage: bench_attention [--threads N] [--table NAME] [--only tile|decode|small] */
#include "base/spread.h"
#include "tensor/cpu/cpu.h"
#include "tensor/probe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const kv_names[] = {
#define X(code, name) name,
    KV_TYPE_MAP(X)
#undef X
};

struct bench {
    struct backend *backend, *scalar;
    struct team *team; /* of the probes */
    double peak_f32, bandwidth;
};

static float *reals(struct bench *bench, int64_t n) {
    float *data = bench->backend->alloc(bench->backend, (size_t)n * sizeof *data);
    if (!data) {
        fprintf(stderr, "bench_attention: no memory for %lld MB\n", (long long)n * 4 / 1000000);
        exit(1);
    }
    uint32_t x = 12345;
    for (int64_t i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        data[i] = (float)(int32_t)x * 0x1p-31f;
    }
    return data;
}

static void give_back(struct bench *bench, void *data, int64_t n) {
    bench->backend->release(bench->backend, data, (size_t)n * 4);
}

static void execute(struct backend *backend, struct op op) {
    struct pass pass = {.ops = &op, .count = 1};
    backend->execute(backend, &pass);
}

/* Seconds of one execution: the best of seven batches, each at least a fiftieth of a second. */
static double time_op(struct backend *backend, struct op op) {
    double best = INFINITY, start = probe_now_s();
    execute(backend, op);
    int repeats = 1 + (int)(0.02 / (probe_now_s() - start));
    for (int batch = 0; batch < 7; batch++) {
        start = probe_now_s();
        for (int i = 0; i < repeats; i++) execute(backend, op);
        double each = (probe_now_s() - start) / repeats;
        if (each < best) best = each;
    }
    return best;
}

/* Rows `first` .. first+count-1 of one sequence, heads of dimension K over a cache of all earlier positions. */
struct scene {
    struct kv_geometry kv;
    int heads, first, count;
    int64_t width, blocks_size, n_kv;
    void *blocks_memory, **blocks;
    struct run run;
    float *q, *out, *dout, *lse, *dq, *dk, *dv;
};

/* KV blocks hold bits that are numbers in every type. */
static void fill_blocks(const struct kv_geometry *kv, void *memory, int64_t size) {
    uint16_t *bits = memory;
    if (kv->type == KV_F32) return;
    for (int64_t i = 0; i < size / 2; i++) bits[i] = (uint16_t)(0x3f00 + i % 128);
}

static struct scene scene_make(struct bench *bench, struct kv_geometry kv, int heads, int first, int count) {
    struct scene s = {.kv = kv, .heads = heads, .first = first, .count = count, .width = heads * kv.head_dim};
    int n_blocks = (first + count + KV_BLOCK - 1) / KV_BLOCK;
    s.blocks_size = (int64_t)kv_block_size(&s.kv) * n_blocks;
    s.blocks_memory = reals(bench, s.blocks_size / 4);
    s.blocks = calloc((size_t)n_blocks, sizeof *s.blocks);
    if (!s.blocks) exit(1);
    fill_blocks(&kv, s.blocks_memory, s.blocks_size);
    for (int i = 0; i < n_blocks; i++) s.blocks[i] = (char *)s.blocks_memory + kv_block_size(&s.kv) * (size_t)i;
    s.run = (struct run){0, count, first, 0, s.blocks};
    s.n_kv = (int64_t)(first + count) * kv.kv_heads * kv.head_dim;
    s.q = reals(bench, count * s.width), s.out = reals(bench, count * s.width), s.dout = reals(bench, count * s.width);
    s.dq = reals(bench, count * s.width), s.lse = reals(bench, count * heads), s.dk = reals(bench, s.n_kv),
    s.dv = reals(bench, s.n_kv);
    return s;
}

static void scene_end(struct bench *bench, struct scene *s) {
    float *rows[] = {s->q, s->out, s->dout, s->dq};
    for (int i = 0; i < 4; i++) give_back(bench, rows[i], s->count * s->width);
    give_back(bench, s->lse, s->count * s->heads);
    give_back(bench, s->dk, s->n_kv);
    give_back(bench, s->dv, s->n_kv);
    give_back(bench, s->blocks_memory, s->blocks_size / 4);
    free(s->blocks);
}

static struct op scene_attention(const struct scene *s) {
    return (struct op){.kind = OP_ATTENTION,
                       .attention = {s->q, s->width, s->out, s->width, s->lse, &s->run, 1, s->kv, 0, s->heads, 0.125f}};
}

/* The share of keys that causality leaves, summed over rows and heads. */
static double scene_keys(const struct scene *s) {
    return ((double)s->first + (s->count + 1) / 2.0) * s->count * s->heads;
}

static void check(struct bench *bench, struct scene *s) {
    execute(bench->scalar, scene_attention(s));
    memcpy(s->dout, s->out, (size_t)(s->count * s->width) * sizeof *s->out);
    execute(bench->backend, scene_attention(s));
    if (memcmp(s->dout, s->out, (size_t)(s->count * s->width) * sizeof *s->out) == 0) return;
    printf("attention differs from the scalar table: WRONG\n");
    exit(1);
}

static void bench_tile(struct bench *bench, enum kv_type type, int heads, int kv_heads, int K, int first, int count) {
    struct scene s = scene_make(bench, (struct kv_geometry){type, 1, kv_heads, K}, heads, first, count);
    if (count < 300) check(bench, &s);
    double seconds = time_op(bench->backend, scene_attention(&s)), gflops = 4e-9 * K * scene_keys(&s) / seconds;
    printf("attention %-4s H %2d G %2d K %3d, rows %4d after %4d: %8.1f us %7.1f GFLOP/s %5.1f %%\n", kv_names[type],
           heads, kv_heads, K, count, first, seconds * 1e6, gflops, 100 * gflops / bench->peak_f32);
    if (type > KV_BF16) { /* no gradients */
        scene_end(bench, &s);
        return;
    }
    struct op grad = {.kind = OP_ATTENTION_GRAD,
                      .attention_grad = {s.q, s.width, s.out, s.dout, s.width, s.lse, s.dq, s.width, s.dk, s.dv, &s.run,
                                         1, s.kv, 0, heads, first + count, 0.125f, s.kv.type == KV_BF16}};
    seconds = time_op(bench->backend, grad), gflops = 10e-9 * K * scene_keys(&s) / seconds;
    printf("          gradient%37s: %8.1f us %7.1f GFLOP/s %5.1f %%\n", "", seconds * 1e6, gflops,
           100 * gflops / bench->peak_f32);
    scene_end(bench, &s);
}

/* A token's attention in every layer of a model, over blocks as a model has them: [layers][G]. Slices alternate with
 * the probe, which reads the same memory. */
static void bench_decode(struct bench *bench, struct kv_geometry kv, int heads, int context) {
    enum { SLICES = 21 };
    struct scene s = scene_make(bench, kv, heads, context - 1, 1);
    struct pass pass = {0};
    double gb[SLICES], share[SLICES],
        read = (double)s.blocks_size * context / ((context + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK);
    check(bench, &s);
    for (int layer = 0; layer < kv.layers; layer++) {
        struct op op = scene_attention(&s);
        op.attention.layer = layer;
        pass_add(&pass, op);
    }
    for (int i = 0; i < SLICES; i++) {
        double probe = probe_bandwidth(bench->team, s.blocks_memory, (size_t)s.blocks_size / 4096 * 4096);
        double start = probe_now_s();
        bench->backend->execute(bench->backend, &pass);
        gb[i] = read / (probe_now_s() - start) * 1e-9;
        share[i] = 100 * gb[i] / probe;
    }
    struct spread rate = spread_of(gb, SLICES), of = spread_of(share, SLICES);
    printf("decode    %-4s L %2d H %2d G %2d K %3d, context %5d (%6.1f MB): %6.1f GB/s, %5.1f %% of reading it "
           "(%.1f..%.1f)\n",
           kv_names[kv.type], kv.layers, heads, kv.kv_heads, kv.head_dim, context, read * 1e-6, rate.median, of.median,
           of.low, of.high);
    pass_free(&pass);
    scene_end(bench, &s);
}

static void report(struct bench *bench, const char *name, struct op op, double bytes) {
    double seconds = time_op(bench->backend, op);
    printf("%-20s %8.1f us %7.1f GB/s\n", name, seconds * 1e6, bytes / seconds * 1e-9);
}

/* The small ops on the shape of a training sequence: rows 256, D 256, F 704, V 4096, H 4. */
static void bench_small(struct bench *bench) {
    enum { B = 256, D = 256, F = 704, V = 4096, H = 4, K = D / H };
    struct scene s = scene_make(bench, (struct kv_geometry){KV_F32, 1, H, K}, H, 0, B);
    float *x = reals(bench, B * V), *y = reals(bench, B * V), *z = reals(bench, B * V), *w = reals(bench, V),
          *r = reals(bench, B * 16);
    float *m = reals(bench, B * V), *v = reals(bench, B * V), *p = reals(bench, B * V), *dw = reals(bench, V);
    for (int i = 0; i < B * V; i++) v[i] = v[i] * v[i];
    for (int i = 0; i < B; i++) r[i] = 1;
    int32_t targets[B] = {0};
    report(bench, "rmsnorm", (struct op){.kind = OP_RMSNORM, .rmsnorm = {x, w, z, y, r, B, D, 1e-6f}}, 12.0 * B * D);
    report(bench, "rmsnorm_grad", (struct op){.kind = OP_RMSNORM_GRAD, .rmsnorm_grad = {x, w, r, y, z, dw, B, D, true}},
           24.0 * B * D);
    report(bench, "silu_mul", (struct op){.kind = OP_SILU_MUL, .silu_mul = {x, y, B, F}}, 12.0 * B * F);
    report(bench, "silu_mul_grad", (struct op){.kind = OP_SILU_MUL_GRAD, .silu_mul_grad = {x, y, z, B, F}},
           20.0 * B * F);
    report(bench, "cross_entropy",
           (struct op){.kind = OP_CROSS_ENTROPY, .cross_entropy = {x, V, targets, NULL, r, NULL, B, V}}, 8.0 * B * V);
    report(bench, "cross_entropy_grad",
           (struct op){.kind = OP_CROSS_ENTROPY_GRAD, .cross_entropy_grad = {y, V, targets, r, w, B, V}}, 8.0 * B * V);
    report(bench, "adamw",
           (struct op){.kind = OP_ADAMW, .adamw = {p, m, v, x, B * V, 1e-6f, .9f, .95f, 1e-8f, .1f, 1, 1, 1}},
           28.0 * B * V);
    double partial[B * V / SUM_SQUARES_BLOCK];
    report(bench, "sum_squares", (struct op){.kind = OP_SUM_SQUARES, .sum_squares = {x, partial, B * V}}, 4.0 * B * V);
    struct op qkv = {.kind = OP_QKV,
                     .qkv = {x, 3 * D, y, D, z, w, w, 1e-6f, r, &s.run, 1, s.kv, .layer = 0, .heads = H}};
    report(bench, "qkv", qkv, 24.0 * B * D);
    struct op grad = {.kind = OP_QKV_GRAD,
                      .qkv_grad = {x, 3 * D, r, z, w, w, s.dq, D, s.dk, s.dv, y, dw, dw, &s.run, 1, H, H, K}};
    report(bench, "qkv_grad", grad, 36.0 * B * D);
    grad.qkv_grad.q_norm = grad.qkv_grad.k_norm = NULL;
    report(bench, "qkv_grad, no norms", grad, 24.0 * B * D);
    float *big[] = {x, y, z, m, v, p};
    for (int i = 0; i < 6; i++) give_back(bench, big[i], B * V);
    give_back(bench, w, V), give_back(bench, r, B * 16), give_back(bench, dw, V);
    scene_end(bench, &s);
}

static void probe(struct bench *bench, looplm_error *err) {
    size_t size = (size_t)512 << 20;
    if (team_open(&bench->team, bench->backend->threads, err)) exit(1);
    float *data = reals(bench, (int64_t)size / 4);
    bench->peak_f32 = probe_peak_f32(bench->team);
    bench->bandwidth = probe_bandwidth(bench->team, data, size);
    give_back(bench, data, (int64_t)size / 4);
    printf("table %s, %d threads: peak %.0f GFLOP/s f32, memory %.1f GB/s\n", bench->backend->table,
           bench->backend->threads, bench->peak_f32, bench->bandwidth);
}

static void bench_tiles(struct bench *bench) {
    bench_tile(bench, KV_F32, 4, 4, 64, 0, 256);
    bench_tile(bench, KV_BF16, 4, 4, 64, 0, 256);
    bench_tile(bench, KV_F32, 8, 2, 64, 0, 256);
    bench_tile(bench, KV_F32, 16, 16, 128, 0, 512);
    bench_tile(bench, KV_BF16, 16, 16, 128, 1536, 512);
    bench_tile(bench, KV_Q8, 16, 16, 128, 1536, 512);
}

/* Ouro-1.4B's shape, and one with a quarter of the kv heads. */
static void bench_decodes(struct bench *bench) {
    for (int context = 64; context <= 4096; context *= 8)
        for (int type = KV_F32; type <= KV_Q8; type++)
            bench_decode(bench, (struct kv_geometry){(enum kv_type)type, 24, 16, 128}, 16, context);
    for (int type = KV_F32; type <= KV_Q8; type++)
        bench_decode(bench, (struct kv_geometry){(enum kv_type)type, 24, 4, 128}, 16, 4096);
}

int main(int argc, char **argv) {
    struct bench bench = {0};
    looplm_error err = {0};
    const char *table = NULL, *only = NULL;
    int threads = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--threads")) threads = atoi(argv[i + 1]);
        if (!strcmp(argv[i], "--table")) table = argv[i + 1];
        if (!strcmp(argv[i], "--only")) only = argv[i + 1];
    }
    if (cpu_open(&bench.backend, threads, table, &err) || cpu_open(&bench.scalar, 1, "scalar", &err)) {
        fprintf(stderr, "bench_attention: %s\n", err.message);
        return 1;
    }
    probe(&bench, &err);
    if (!only || !strcmp(only, "tile")) bench_tiles(&bench);
    if (!only || !strcmp(only, "decode")) bench_decodes(&bench);
    if (!only || !strcmp(only, "small")) bench_small(&bench);
    team_close(bench.team);
    bench.backend->close(bench.backend);
    bench.scalar->close(bench.scalar);
    return 0;
}
