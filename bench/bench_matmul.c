/* Speed of products and packing against the peaks of the same run. Checks each table against the scalar one first.
 *
 * usage: bench_matmul [--threads N] [--table NAME] [--only decode|gemm|dw|pack] */
#include "tensor/cpu/cpu.h"
#include "tensor/probe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct bench {
    struct backend *backend, *scalar;
    double peak_f32, peak_bf16, peak_int8, peak_products, bandwidth; /* peak_products: bf16, on the table */
    const char *only;
};

static void fill(float *data, size_t n) {
    uint32_t x = 12345;
    for (size_t i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        data[i] = (float)(int32_t)x * 0x1p-31f;
    }
}

static float *reals(struct bench *bench, int64_t n) {
    float *data = bench->backend->alloc(bench->backend, (size_t)n * sizeof *data);
    if (!data) {
        fprintf(stderr, "bench_matmul: no memory for %lld MB\n", (long long)n * 4 / 1000000);
        exit(1);
    }
    fill(data, (size_t)n);
    return data;
}

static void give_back(struct bench *bench, void *data, size_t size) {
    bench->backend->release(bench->backend, data, size);
}

static void execute(struct backend *backend, struct op op) {
    struct pass pass = {.ops = &op, .count = 1};
    backend->execute(backend, &pass);
}

/* Seconds of one execution: the best of five batches, each at least a twentieth of a second. */
static double time_op(struct backend *backend, struct op op) {
    const int threads = backend->threads;
    double best = INFINITY, start = probe_clock_s(threads);
    execute(backend, op);
    int repeats = 1 + (int)(0.05 / (probe_clock_s(threads) - start));
    for (int batch = 0; batch < 5; batch++) {
        start = probe_clock_s(threads);
        for (int i = 0; i < repeats; i++) execute(backend, op);
        double each = (probe_clock_s(threads) - start) / repeats;
        if (each < best) best = each;
    }
    return best;
}

static struct weight weight_make(struct bench *bench, enum weight_type type, int n, int k) {
    struct weight w = {type, n, k, bench->backend->alloc(bench->backend, weight_size(type, n, k))};
    float *source = reals(bench, (int64_t)n * k);
    execute(bench->backend, (struct op){.kind = OP_PACK, .pack = {&w, 0, n, source, DTYPE_F32}});
    give_back(bench, source, (size_t)n * (size_t)k * 4);
    return w;
}

static void weight_end(struct bench *bench, struct weight *w) {
    give_back(bench, w->data, weight_size(w->type, w->n, w->k));
}

static const char *const weight_names[] = {
#define X(code, name) name,
    WEIGHT_TYPE_MAP(X)
#undef X
};

static void check(struct bench *bench, enum weight_type type) {
    enum { ROWS = 13, N = 150, K = 608 };
    struct weight w = weight_make(bench, type, N, K);
    float *x = reals(bench, ROWS * K), *y = reals(bench, ROWS * N), *want = reals(bench, ROWS * N);
    execute(bench->backend, (struct op){.kind = OP_MATMUL, .matmul = {x, K, &w, y, N, ROWS, false}});
    execute(bench->scalar, (struct op){.kind = OP_MATMUL, .matmul = {x, K, &w, want, N, ROWS, false}});
    double worst = 0;
    for (int i = 0; i < ROWS * N; i++) worst = fmax(worst, fabs((double)y[i] - want[i]));
    bool equal = type == WEIGHT_BF16 ? worst < K * 0x1p-24 * K : worst == 0;
    printf("check %s: largest difference from scalar %.3g: %s\n", weight_names[type], worst, equal ? "ok" : "WRONG");
    if (!equal) exit(1);
    weight_end(bench, &w);
    give_back(bench, x, ROWS * K * 4);
    give_back(bench, y, ROWS * N * 4);
    give_back(bench, want, ROWS * N * 4);
}

static bool wanted(const struct bench *bench, const char *part) {
    return !bench->only || strcmp(bench->only, part) == 0;
}

static void bench_product(struct bench *bench, enum weight_type type, int rows, int n, int k, bool stream) {
    struct weight w = weight_make(bench, type, n, k);
    float *x = reals(bench, (int64_t)rows * k), *y = reals(bench, (int64_t)rows * n);
    double s = time_op(bench->backend, (struct op){.kind = OP_MATMUL, .matmul = {x, k, &w, y, n, rows, false}});
    double gflops = 2.0 * rows * n * k / s / 1e9, gbs = (double)weight_size(type, n, k) / s / 1e9;
    double peak = type == WEIGHT_BF16 ? bench->peak_products : bench->peak_f32;
    if (type > WEIGHT_BF16 && bench->peak_int8 > 0) peak = bench->peak_int8;
    printf("%-4s rows %4d n %5d k %4d  %9.1f us  %6.1f GFLOP/s  %5.1f %% of peak  %6.2f GB/s", weight_names[type], rows,
           n, k, s * 1e6, gflops, 100 * gflops / peak, gbs);
    if (stream) printf("  %5.1f %% of bandwidth", 100 * gbs / bench->bandwidth);
    printf("\n");
    fflush(stdout);
    weight_end(bench, &w);
    give_back(bench, x, (size_t)rows * (size_t)k * 4);
    give_back(bench, y, (size_t)rows * (size_t)n * 4);
}

static void bench_decode(struct bench *bench) {
    static const int shapes[][2] = {{6144, 2048}, {2048, 2048}, {11264, 2048}, {2048, 5632}, {49152, 2048}};
    static const int rows[] = {1, 2, 4, 8, 16};
    for (int type = WEIGHT_F32; type <= WEIGHT_Q4; type++)
        for (int r = 0; r < 5; r++)
            for (int s = 0; s < 5; s++) {
                if (r && s != 2 && s != 4) continue;
                bench_product(bench, type, rows[r], shapes[s][0], shapes[s][1], true);
            }
}

static void bench_gemm(struct bench *bench) {
    static const int shapes[][3] = {{256, 128, 128},   {256, 256, 256},   {256, 512, 512},    {256, 1024, 512},
                                    {256, 512, 1024},  {256, 1024, 1024}, {1024, 512, 512},   {2048, 512, 128},
                                    {512, 6144, 2048}, {512, 2048, 5632}, {128, 11264, 2048}, {2048, 2048, 2048}};
    for (int type = WEIGHT_F32; type <= WEIGHT_Q4; type++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            bench_product(bench, type, shapes[s][0], shapes[s][1], shapes[s][2], false);
        }
}

static void bench_dw(struct bench *bench) {
    static const int shapes[][3] = {{256, 128, 128},  {256, 256, 256},   {256, 512, 512},  {256, 1024, 512},
                                    {256, 512, 1024}, {256, 1024, 1024}, {1024, 2048, 512}};
    for (size_t s = 0; s < 2 * (sizeof shapes / sizeof *shapes); s++) {
        enum weight_type type = s % 2 ? WEIGHT_BF16 : WEIGHT_F32;
        int rows = shapes[s / 2][0], n = shapes[s / 2][1], k = shapes[s / 2][2];
        float *dy = reals(bench, (int64_t)rows * n), *x = reals(bench, (int64_t)rows * k),
              *dw = reals(bench, (int64_t)n * k);
        struct op op = {.kind = OP_MATMUL_DW,
                        .matmul_dw = {type, dy, n, x, k, dw, rows, n, k, DW_ACCUMULATE, NULL, NULL}};
        double t = time_op(bench->backend, op), gflops = 2.0 * rows * n * k / t / 1e9;
        double peak = s % 2 ? bench->peak_products : bench->peak_f32;
        printf("dw   %-4s rows %4d n %5d k %4d  %9.1f us  %6.1f GFLOP/s  %5.1f %% of peak\n", weight_names[type], rows,
               n, k, t * 1e6, gflops, 100 * gflops / peak);
        fflush(stdout);
        give_back(bench, dy, (size_t)rows * (size_t)n * 4);
        give_back(bench, x, (size_t)rows * (size_t)k * 4);
        give_back(bench, dw, (size_t)n * (size_t)k * 4);
    }
}

/* Source bytes per second; `fresh` packs into memory that was never touched, as loading does. */
static void bench_pack(struct bench *bench) {
    static const struct {
        enum dtype from;
        enum weight_type to;
        const char *name;
    } kinds[] = {{DTYPE_BF16, WEIGHT_BF16, "bf16 to bf16"}, {DTYPE_F32, WEIGHT_BF16, "f32 to bf16"},
                 {DTYPE_BF16, WEIGHT_F32, "bf16 to f32"},   {DTYPE_F32, WEIGHT_F32, "f32 to f32"},
                 {DTYPE_BF16, WEIGHT_Q8, "bf16 to q8"},     {DTYPE_BF16, WEIGHT_Q4, "bf16 to q4"}};
    enum { N = 49152, K = 2048 };
    float *source = reals(bench, (int64_t)N * K);
    for (int i = 0; i < 6; i++)
        for (int fresh = 0; fresh < 2; fresh++) {
            size_t size = weight_size(kinds[i].to, N, K);
            struct weight w = {kinds[i].to, N, K, bench->backend->alloc(bench->backend, size)};
            struct op op = {.kind = OP_PACK, .pack = {&w, 0, N, source, kinds[i].from}};
            double start = probe_now_s();
            execute(bench->backend, op);
            double s = fresh ? probe_now_s() - start : time_op(bench->backend, op);
            double bytes = (double)N * K * (double)dtype_size(kinds[i].from);
            printf("pack %-14s%s %9.1f us  %6.2f GB/s of source\n", kinds[i].name, fresh ? " fresh" : "", s * 1e6,
                   bytes / s / 1e9);
            weight_end(bench, &w);
        }
    for (int type = WEIGHT_F32; type <= WEIGHT_BF16; type++) {
        struct weight w = {type, 1024, 4096, bench->backend->alloc(bench->backend, weight_size(type, 1024, 4096))};
        double s = time_op(bench->backend, (struct op){.kind = OP_PACK_TRANSPOSED, .pack_transposed = {&w, source}});
        printf("pack_transposed to %-5s [4096, 1024]  %9.1f us  %6.2f GB/s of source\n", type ? "bf16" : "f32", s * 1e6,
               1024 * 4096 * 4 / s / 1e9);
        weight_end(bench, &w);
    }
    give_back(bench, source, (size_t)N * K * 4);
}

static void probe(struct bench *bench, int threads) {
    struct team *team;
    looplm_error err = {0};
    if (team_open(&team, threads, &err)) {
        fprintf(stderr, "bench_matmul: %s\n", err.message);
        exit(1);
    }
    const size_t size = (size_t)1 << 30;
    float *data = reals(bench, (int64_t)(size / 4));
    bench->bandwidth = probe_bandwidth(team, data, size);
    bench->peak_f32 = probe_peak_f32(team);
    bench->peak_bf16 = probe_peak_bf16(team);
    bench->peak_int8 = probe_peak_int8(team);
    bench->peak_products = probe_peak_products(team, bench->backend->table, WEIGHT_BF16);
    const double tiles_bf16 = probe_peak_tiles_bf16(team), tiles_int8 = probe_peak_tiles_int8(team);
    give_back(bench, data, size);
    team_close(team);
    printf("table %s, %d threads: peak %.1f GFLOP/s f32, %.1f bf16, %.1f int8; tiles %.1f bf16, %.1f int8; bandwidth "
           "%.2f GB/s\n",
           bench->backend->table, bench->backend->threads, bench->peak_f32, bench->peak_bf16, bench->peak_int8,
           tiles_bf16, tiles_int8, bench->bandwidth);
}

int main(int argc, char **argv) {
    struct bench bench = {0};
    const char *table = NULL;
    int threads = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--threads") == 0) threads = atoi(argv[i + 1]);
        if (strcmp(argv[i], "--table") == 0) table = argv[i + 1];
        if (strcmp(argv[i], "--only") == 0) bench.only = argv[i + 1];
    }
    looplm_error err = {0};
    if (cpu_open(&bench.backend, threads, table, &err) || cpu_open(&bench.scalar, threads, "scalar", &err)) {
        fprintf(stderr, "bench_matmul: %s\n", err.message);
        return 1;
    }
    probe(&bench, bench.backend->threads);
    check(&bench, WEIGHT_F32);
    for (int type = WEIGHT_BF16; type <= WEIGHT_Q4; type++) check(&bench, (enum weight_type)type);
    if (wanted(&bench, "decode")) bench_decode(&bench);
    if (wanted(&bench, "gemm")) bench_gemm(&bench);
    if (wanted(&bench, "dw")) bench_dw(&bench);
    if (wanted(&bench, "pack")) bench_pack(&bench);
    bench.scalar->close(bench.scalar);
    bench.backend->close(bench.backend);
    return 0;
}
