/* Peaks and bandwidth. Each loop is written for the widest instructions of x86 and of AArch64; elsewhere the probes
 * answer 0. */
#include "tensor/probe.h"

#include "tensor/cpu/amx.h"
#include "tensor/cpu/cpu.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

#define PEAK_STEPS 20000000L
#define TILE_STEPS 2000000L
#define BANDWIDTH_RUNS 5

double probe_now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double probe_clock_s(int threads) {
    struct timespec t;
    if (threads != 1) return probe_now_s();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Independent accumulators: more than latency times issue width, which is four by four on wide AArch64 cores. The
 * registers are opaque to the compiler, so that no loop is folded away, and each has a name, so that none is in memory.
 */
#if defined(__x86_64__)
#define CHAINS 12
#define CHAIN_EACH(X) X(a0) X(a1) X(a2) X(a3) X(a4) X(a5) X(a6) X(a7) X(a8) X(a9) X(a10) X(a11)
#define CHAIN_OPAQUE(a) __asm__ volatile("" : "+x"(a));
#elif defined(__aarch64__)
#define CHAINS 20
#define CHAIN_TEN(X, a) X(a##0) X(a##1) X(a##2) X(a##3) X(a##4) X(a##5) X(a##6) X(a##7) X(a##8) X(a##9)
#define CHAIN_EACH(X) CHAIN_TEN(X, a) CHAIN_TEN(X, b)
#define CHAIN_OPAQUE(a) __asm__ volatile("" : "+w"(a));
#endif

#if defined(CHAINS)
#define CHAIN_START(a) __typeof__(x) a = x;
#define CHAIN_LOOP(type, start, EACH)       \
    type x = start, y = start;              \
    CHAIN_EACH(CHAIN_START)                 \
    for (long n = 0; n < PEAK_STEPS; n++) { \
        CHAIN_EACH(EACH)                    \
        CHAIN_EACH(CHAIN_OPAQUE)            \
    }

static double peak(struct team *team, team_fn *fn, double operations) {
    double best = 0;
    for (int run = 0; run < 3; run++) {
        double start = probe_clock_s(team_size(team));
        team_run(team, fn, NULL);
        double rate = operations * team_size(team) / (probe_clock_s(team_size(team)) - start) / 1e9;
        if (rate > best) best = rate;
    }
    return best;
}

static double peak_chains(struct team *team, team_fn *fn, double operations_per_step) {
    return peak(team, fn, operations_per_step * CHAINS * PEAK_STEPS);
}
#endif

#if defined(__x86_64__)

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

/* Tile registers hold numbers like those of a model: with zeros the products of tiles run a third faster, which no real
 * product sees. */
#define TILE_LOOP(DOT, bits_of)                                                          \
    uint32_t words[AMX_ROWS * AMX_BYTES / 4], seed = 1;                                  \
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) words[i] = bits_of(&seed); \
    amx_begin(AMX_ROWS, AMX_BYTES);                                                      \
    AMX_LOAD(AMX_A0, words, AMX_BYTES);                                                  \
    AMX_LOAD(AMX_A1, words, AMX_BYTES);                                                  \
    AMX_LOAD(AMX_B0, words, AMX_BYTES);                                                  \
    AMX_LOAD(AMX_B1, words, AMX_BYTES);                                                  \
    for (long n = 0; n < TILE_STEPS; n++) {                                              \
        DOT(AMX_C0, AMX_A0, AMX_B0);                                                     \
        DOT(AMX_C1, AMX_A0, AMX_B1);                                                     \
        DOT(AMX_C2, AMX_A1, AMX_B0);                                                     \
        DOT(AMX_C3, AMX_A1, AMX_B1);                                                     \
    }                                                                                    \
    amx_end();

static inline uint32_t noise(uint32_t *seed) {
    *seed = *seed * 1664525u + 1013904223u;
    return *seed ^ *seed >> 15;
}
/* Two bf16 numbers of either sign, magnitudes from 1 to 4. */
static inline uint32_t noise_bf16(uint32_t *seed) {
    return (noise(seed) & 0x80ff80ffu) | 0x3f803f80u;
}

__attribute__((target("amx-tile,amx-bf16"))) static void peak_bf16_tiles(void *context, int worker, int workers) {
    (void)context, (void)worker, (void)workers;
    TILE_LOOP(AMX_DOT_BF16, noise_bf16)
}
__attribute__((target("amx-tile,amx-int8"))) static void peak_int8_tiles(void *context, int worker, int workers) {
    (void)context, (void)worker, (void)workers;
    TILE_LOOP(AMX_DOT_INT8, noise)
}

/* By its table, which also asks the kernel's leave. */
static bool tiles_usable(void) {
    for (const struct cpu_table *const *t = cpu_tables(); *t; t++)
        if (strcmp((*t)->name, "avx512amx") == 0) return (*t)->supported();
    return false;
}

double probe_peak_f32(struct team *team) {
    if (__builtin_cpu_supports("avx512f")) return peak_chains(team, peak_f32_512, 32);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return peak_chains(team, peak_f32_256, 16);
    return 0;
}

double probe_peak_bf16(struct team *team) {
    return __builtin_cpu_supports("avx512bf16") ? peak_chains(team, peak_bf16_512, 64) : 0;
}

double probe_peak_int8(struct team *team) {
    return __builtin_cpu_supports("avx512vnni") ? peak_chains(team, peak_int8_512, 128) : 0;
}

#define FOUND(name) __builtin_cpu_supports(name) ? name : NULL
const char *probe_instruction_set(int i) {
    const char *sets[] = {FOUND("avx2"),       FOUND("fma"),        FOUND("avx512f"),
                          FOUND("avx512bw"),   FOUND("avx512dq"),   FOUND("avx512vl"),
                          FOUND("avx512vnni"), FOUND("avx512bf16"), tiles_usable() ? "amx" : NULL};
    for (size_t j = 0; j < sizeof sets / sizeof *sets; j++)
        if (sets[j] && i-- == 0) return sets[j];
    return NULL;
}

double probe_peak_tiles_bf16(struct team *team) {
    return tiles_usable() ? peak(team, peak_bf16_tiles, 4.0 * TILE_STEPS * 2 * 16 * 16 * 32) : 0;
}

double probe_peak_tiles_int8(struct team *team) {
    return tiles_usable() ? peak(team, peak_int8_tiles, 4.0 * TILE_STEPS * 2 * 16 * 16 * 64) : 0;
}

#elif defined(__aarch64__)

#define STEP_F32_128(a) a = vfmaq_f32(a, x, y);
/* In assembly: with clang 14 the intrinsic is there only where the whole file may use it. */
#define STEP_INT8_128(a) __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(a) : "w"(x), "w"(y));
#if defined(__clang__)
#define TARGET_DOT __attribute__((target("dotprod")))
#else
#define TARGET_DOT __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

static void peak_f32_128(void *context, int worker, int workers) {
    (void)context, (void)worker, (void)workers;
    CHAIN_LOOP(float32x4_t, vdupq_n_f32(0), STEP_F32_128)
}

TARGET_DOT static void peak_int8_128(void *context, int worker, int workers) {
    (void)context, (void)worker, (void)workers;
    CHAIN_LOOP(int32x4_t, vdupq_n_s32(0), STEP_INT8_128)
}

double probe_peak_f32(struct team *team) {
    return peak_chains(team, peak_f32_128, 8);
}

double probe_peak_int8(struct team *team) {
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? peak_chains(team, peak_int8_128, 32) : 0;
}

const char *probe_instruction_set(int i) {
    const char *sets[] = {"neon", getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? "dotprod" : NULL};
    return i < 2 ? sets[i] : NULL;
}

#else
const char *probe_instruction_set(int i) {
    (void)i;
    return NULL;
}
double probe_peak_int8(struct team *team) {
    (void)team;
    return 0;
}
double probe_peak_f32(struct team *team) {
    (void)team;
    return 0;
}
#endif

#if !defined(__x86_64__)
/* No table uses such instructions of other processors. */
double probe_peak_bf16(struct team *team) {
    (void)team;
    return 0;
}
double probe_peak_tiles_bf16(struct team *team) {
    (void)team;
    return 0;
}
double probe_peak_tiles_int8(struct team *team) {
    (void)team;
    return 0;
}
#endif

double probe_peak_products(struct team *team, const char *table, enum weight_type type) {
    const bool tiles = !strcmp(table, "avx512amx"), pairs = !strcmp(table, "avx512bf16");
    double peak = 0;
    if (type == WEIGHT_BF16) peak = tiles ? probe_peak_tiles_bf16(team) : pairs ? probe_peak_bf16(team) : 0;
    if (type > WEIGHT_BF16) peak = tiles ? probe_peak_tiles_int8(team) : probe_peak_int8(team);
    return peak > 0 ? peak : probe_peak_f32(team);
}

struct reading {
    const char *data;
    size_t size;
};

typedef uint64_t chunk __attribute__((vector_size(64), aligned(64)));

#define READ_EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define READ_START(j) chunk sum##j = {0};
#define READ_STEP(j) sum##j ^= p[i + j];
#define READ_TOTAL(j) total ^= sum##j;

/* One body, compiled for the widest loads of each processor. (Not target_clones: its resolver runs before a sanitizer
 * is ready.) The sums have names: those of an array are stored at every step, and eight stores for eight loads cost a
 * tenth of the bandwidth. */
static inline __attribute__((always_inline)) void read_body(const struct reading *reading, int worker, int workers) {
    int64_t begin, end;
    team_share((int64_t)(reading->size / 64), 64, worker, workers, &begin, &end);
    const chunk *p = (const chunk *)reading->data;
    READ_EACH(READ_START)
    for (int64_t i = begin; i + 8 <= end; i += 8) {
        READ_EACH(READ_STEP)
    }
    chunk total = {0};
    READ_EACH(READ_TOTAL)
    __asm__ volatile("" : : "m"(total));
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
        double start = probe_clock_s(team_size(team));
        team_run(team, read_widest(), &reading);
        rate[run] = (double)size / (probe_clock_s(team_size(team)) - start) / 1e9;
    }
    qsort(rate, BANDWIDTH_RUNS, sizeof *rate, compare);
    return rate[BANDWIDTH_RUNS / 2];
}
