/* Peaks and bandwidth. Each loop is written for the widest instructions of x86; elsewhere the probes answer 0. */
#include "tensor/probe.h"

#include <stdlib.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define CHAINS 12 /* independent accumulators: more than latency times issue width */
#define PEAK_STEPS 20000000L
#define BANDWIDTH_RUNS 5

double probe_now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#if defined(__x86_64__)

/* The registers are opaque to the compiler, so that no loop is folded away, and each has a name, so that none is in
 * memory. */
#define CHAIN_EACH(X) X(a0) X(a1) X(a2) X(a3) X(a4) X(a5) X(a6) X(a7) X(a8) X(a9) X(a10) X(a11)
#define CHAIN_OPAQUE(a) __asm__ volatile("" : "+x"(a));
#define CHAIN_LOOP(type, start, EACH)                                                                          \
    type x = start, y = start, a0 = x, a1 = x, a2 = x, a3 = x, a4 = x, a5 = x, a6 = x, a7 = x, a8 = x, a9 = x, \
         a10 = x, a11 = x;                                                                                     \
    for (long n = 0; n < PEAK_STEPS; n++) {                                                                    \
        CHAIN_EACH(EACH)                                                                                       \
        CHAIN_EACH(CHAIN_OPAQUE)                                                                               \
    }

#define STEP_F32_512(a) a = _mm512_fmadd_ps(x, y, a);
#define STEP_F32_256(a) a = _mm256_fmadd_ps(x, y, a);
#define STEP_BF16_512(a) a = _mm512_dpbf16_ps(a, (__m512bh)x, (__m512bh)y);
#define STEP_INT8_512(a) a = _mm512_dpbusd_epi32(a, x, y);

__attribute__((target("avx512f"))) static void peak_f32_512(void *context, int worker, int workers) {
    (void)context, (void)worker, (void)workers;
    CHAIN_LOOP(__m512, _mm512_setzero_ps(), STEP_F32_512)
}

__attribute__((target("avx2,fma"))) static void peak_f32_256(void *context, int worker, int workers) {
    (void)context, (void)worker, (void)workers;
    CHAIN_LOOP(__m256, _mm256_setzero_ps(), STEP_F32_256)
}

__attribute__((target("avx512f,avx512bf16"))) static void peak_bf16_512(void *context, int worker, int workers) {
    (void)context, (void)worker, (void)workers;
    CHAIN_LOOP(__m512, _mm512_setzero_ps(), STEP_BF16_512)
}

__attribute__((target("avx512f,avx512vnni"))) static void peak_int8_512(void *context, int worker, int workers) {
    (void)context, (void)worker, (void)workers;
    CHAIN_LOOP(__m512i, _mm512_setzero_si512(), STEP_INT8_512)
}

static double peak(struct team *team, team_fn *fn, double operations_per_step) {
    double best = 0;
    for (int run = 0; run < 3; run++) {
        double start = probe_now_s();
        team_run(team, fn, NULL);
        double rate = operations_per_step * CHAINS * PEAK_STEPS * team_size(team) / (probe_now_s() - start) / 1e9;
        if (rate > best) best = rate;
    }
    return best;
}

double probe_peak_f32(struct team *team) {
    if (__builtin_cpu_supports("avx512f")) return peak(team, peak_f32_512, 32);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return peak(team, peak_f32_256, 16);
    return 0;
}

double probe_peak_bf16(struct team *team) {
    return __builtin_cpu_supports("avx512bf16") ? peak(team, peak_bf16_512, 64) : 0;
}

double probe_peak_int8(struct team *team) {
    return __builtin_cpu_supports("avx512vnni") ? peak(team, peak_int8_512, 128) : 0;
}

#else
double probe_peak_int8(struct team *team) {
    (void)team;
    return 0;
}
double probe_peak_f32(struct team *team) {
    (void)team;
    return 0;
}
double probe_peak_bf16(struct team *team) {
    (void)team;
    return 0;
}
#endif

struct reading {
    const char *data;
    size_t size;
};

typedef uint64_t chunk __attribute__((vector_size(64), aligned(64)));

/* One body, compiled for the widest loads of each processor. (Not target_clones: its resolver runs before a sanitizer
 * is ready.) */
static inline __attribute__((always_inline)) void read_body(const struct reading *reading, int worker, int workers) {
    int64_t begin, end;
    team_share((int64_t)(reading->size / 64), 64, worker, workers, &begin, &end);
    const chunk *p = (const chunk *)reading->data;
    chunk sum[8] = {{0}};
    for (int64_t i = begin; i + 8 <= end; i += 8)
        for (int j = 0; j < 8; j++) sum[j] ^= p[i + j];
    for (int j = 1; j < 8; j++) sum[0] ^= sum[j];
    __asm__ volatile("" : : "m"(sum));
}

static void read_plain(void *context, int worker, int workers) {
    read_body(context, worker, workers);
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static void read_512(void *context, int worker, int workers) {
    read_body(context, worker, workers);
}
__attribute__((target("avx2"))) static void read_256(void *context, int worker, int workers) {
    read_body(context, worker, workers);
}
static team_fn *read_widest(void) {
    return __builtin_cpu_supports("avx512f") ? read_512 : __builtin_cpu_supports("avx2") ? read_256 : read_plain;
}
#else
static team_fn *read_widest(void) {
    return read_plain;
}
#endif

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double probe_bandwidth(struct team *team, const void *data, size_t size) {
    struct reading reading = {data, size};
    double rate[BANDWIDTH_RUNS];
    for (int run = 0; run < BANDWIDTH_RUNS; run++) {
        double start = probe_now_s();
        team_run(team, read_widest(), &reading);
        rate[run] = (double)size / (probe_now_s() - start) / 1e9;
    }
    qsort(rate, BANDWIDTH_RUNS, sizeof *rate, compare);
    return rate[BANDWIDTH_RUNS / 2];
}
