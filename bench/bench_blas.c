/* Our products beside those of OpenBLAS and oneDNN, on the shapes of a prompt of 512 and of training.
 *
 *     bench_blas [--threads N] [--slices N] [--peer openblas|onednn] [--type f32|bf16] [--only product|gradient]
 *
 * Every result is checked against ours first. Then slices of at least SLICE_S alternate, ours and theirs, and the ratio
 * of their times (theirs / ours) is printed, median and quartiles. Each slice begins with a pause, until the threads of
 * the other library have stopped spinning, and products for WARM_S that are not counted. Weights are packed before, on
 * both sides; OpenBLAS has no public call for that and packs in every product.
 *
 * In bf16 our products take and give floats. oneDNN is measured twice: with activations that are bf16 already ("bf16
 * in", which leaves work out) and with floats that it first converts by a reorder ("f32 in", the same work as ours).
 *
 * Built where CMake finds a library (README.md); nothing of either is part of looplm. */
#include "base/spread.h"
#include "tensor/cpu/cpu.h"
#include "tensor/probe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SLICE_S 0.03
/* Until the kernel has moved apart threads that it woke on one core, where short products would go at half speed. */
#define WARM_S 0.03
#define PAUSE_NS 50000000
#define SLICES_MAX 200

/* A product y[rows, n] = x[rows, k] w[n, k]^T, or a gradient dw[n, k] += dy[rows, n]^T x[rows, k]. */
struct job {
    enum weight_type type; /* f32 or bf16 */
    bool gradient;
    int rows, n, k;
    bool convert; /* bf16: a peer is given floats */
    float *x, *w, *dy;
    float *ours, *theirs; /* y or dw */
};

static size_t result_size(const struct job *job) {
    return (size_t)job->n * (size_t)(job->gradient ? job->k : job->rows);
}

static void stop(const char *what) {
    fprintf(stderr, "bench_blas: %s\n", what);
    exit(1);
}

static float *reals(size_t n, uint32_t seed) {
    float *data = aligned_alloc(64, (n * sizeof *data + 63) & ~(size_t)63);
    if (!data) stop("no memory");
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        data[i] = (float)(int32_t)seed * 0x1p-31f;
    }
    return data;
}

/* ---- ours ------------------------------------------------------------------------------------------------------- */

struct ours {
    struct backend *backend;
    struct weight weight;
    struct op op;
};

static void ours_run(void *state) {
    struct ours *ours = state;
    struct pass pass = {.ops = &ours->op, .count = 1};
    ours->backend->execute(ours->backend, &pass);
}

static void ours_open(struct ours *ours, const struct job *job) {
    struct backend *b = ours->backend;
    if (job->gradient) {
        ours->op = (struct op){.kind = OP_MATMUL_DW,
                               .matmul_dw = {job->type, job->dy, job->n, job->x, job->k, job->ours, job->rows, job->n,
                                             job->k, DW_ACCUMULATE, NULL, NULL}};
        return;
    }
    ours->weight = (struct weight){job->type, job->n, job->k, b->alloc(b, weight_size(job->type, job->n, job->k))};
    if (!ours->weight.data) stop("no memory");
    ours->op = (struct op){.kind = OP_PACK, .pack = {&ours->weight, 0, job->n, job->w, DTYPE_F32}};
    ours_run(ours);
    ours->op =
        (struct op){.kind = OP_MATMUL, .matmul = {job->x, job->k, &ours->weight, job->ours, job->n, job->rows, false}};
}

static void ours_close(struct ours *ours, const struct job *job) {
    struct backend *b = ours->backend;
    if (!job->gradient) b->release(b, ours->weight.data, weight_size(job->type, job->n, job->k));
}

/* ---- peers ------------------------------------------------------------------------------------------------------ */

/* A library: open prepares a job (NULL where it has no such product), run computes it once. */
struct peer {
    const char *name;
    void (*start)(int threads);
    void *(*open)(const struct job *job);
    void (*run)(void *state);
    void (*close)(void *state);
};

#ifdef LOOPLM_BENCH_OPENBLAS
#include <cblas.h>

/* Packages of Python's give every name a prefix. */
#ifdef BLAS_SYMBOL_PREFIX
#define BLAS_PASTE(prefix, name) prefix##name
#define BLAS_NAME(prefix, name) BLAS_PASTE(prefix, name)
#define BLAS(name) BLAS_NAME(BLAS_SYMBOL_PREFIX, name)
#else
#define BLAS(name) name
#endif
#define sgemm BLAS(cblas_sgemm)

static void openblas_start(int threads) {
    BLAS(openblas_set_num_threads)(threads);
    printf("OpenBLAS: %s, kernels for %s\n", BLAS(openblas_get_config)(), BLAS(openblas_get_corename)());
}

/* Its bf16 product (sbgemm) is an option that distributions leave out. */
static void *openblas_open(const struct job *job) {
    struct job *copy = malloc(sizeof *copy);
    if (!copy) stop("no memory");
    *copy = *job;
    if (job->type == WEIGHT_F32) return copy;
    free(copy);
    return NULL;
}

static void openblas_run(void *state) {
    const struct job *j = state;
    if (j->gradient)
        sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, j->n, j->k, j->rows, 1, j->dy, j->n, j->x, j->k, 1, j->theirs,
              j->k);
    else
        sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, j->rows, j->n, j->k, 1, j->x, j->k, j->w, j->k, 0, j->theirs,
              j->n);
}

static void openblas_close(void *state) {
    free(state);
}
#endif

#ifdef LOOPLM_BENCH_ONEDNN
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>

static dnnl_engine_t onednn_engine;
static dnnl_stream_t onednn_stream;

static void need(dnnl_status_t status) {
    if (status != dnnl_success) stop("oneDNN refused");
}

static void onednn_start(int threads) {
    omp_set_num_threads(threads);
    need(dnnl_engine_create(&onednn_engine, dnnl_cpu, 0));
    need(dnnl_stream_create(&onednn_stream, onednn_engine, dnnl_stream_default_flags));
    const dnnl_version_t *version = dnnl_version();
    printf("oneDNN: %d.%d.%d, %.12s, instructions %d\n", version->major, version->minor, version->patch, version->hash,
           (int)dnnl_get_effective_cpu_isa());
}

/* What may have to be converted before the product: from -> to, by `reorder`, NULL where it is not needed. */
struct operand {
    dnnl_memory_t from, to;
    dnnl_primitive_t reorder;
};

struct onednn {
    struct operand source, weight;
    dnnl_memory_t result;
    dnnl_primitive_t product;
    bool convert_source, convert_weight; /* in every run */
};

/* A matrix [rows, columns] of floats at `data`, element (r, c) at r row_step + c column_step. */
static dnnl_memory_t plain(float *data, int rows, int columns, int row_step, int column_step) {
    dnnl_memory_desc_t desc;
    dnnl_memory_t memory;
    dnnl_dims_t dims = {rows, columns}, steps = {row_step, column_step};
    need(dnnl_memory_desc_create_with_strides(&desc, 2, dims, dnnl_f32, steps));
    need(dnnl_memory_create(&memory, desc, onednn_engine, data));
    need(dnnl_memory_desc_destroy(desc));
    return memory;
}

static const_dnnl_memory_desc_t desc_of(dnnl_memory_t memory) {
    const_dnnl_memory_desc_t desc;
    need(dnnl_memory_get_memory_desc(memory, &desc));
    return desc;
}

static void execute(dnnl_primitive_t primitive, int n, const dnnl_exec_arg_t *arguments) {
    need(dnnl_primitive_execute(primitive, onednn_stream, n, arguments));
}

static void convert(const struct operand *o) {
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_FROM, o->from}, {DNNL_ARG_TO, o->to}};
    if (o->reorder) execute(o->reorder, 2, arguments);
}

/* Memory of the form that the product wants, and the reorder into it, done once. */
static void operand_open(struct operand *o, const_dnnl_memory_desc_t wanted) {
    dnnl_primitive_desc_t desc;
    o->to = o->from;
    if (dnnl_memory_desc_equal(desc_of(o->from), wanted)) return;
    need(dnnl_memory_create(&o->to, wanted, onednn_engine, DNNL_MEMORY_ALLOCATE));
    need(dnnl_reorder_primitive_desc_create(&desc, desc_of(o->from), onednn_engine, wanted, onednn_engine, NULL));
    need(dnnl_primitive_create(&o->reorder, desc));
    need(dnnl_primitive_desc_destroy(desc));
    convert(o);
    need(dnnl_stream_wait(onednn_stream));
}

static void operand_close(struct operand *o) {
    if (o->to != o->from) dnnl_memory_destroy(o->to);
    if (o->reorder) dnnl_primitive_destroy(o->reorder);
    dnnl_memory_destroy(o->from);
}

static dnnl_primitive_attr_t attributes(const struct job *job) {
    dnnl_primitive_attr_t attributes;
    dnnl_post_ops_t add;
    need(dnnl_primitive_attr_create(&attributes));
    if (!job->gradient) return attributes;
    need(dnnl_post_ops_create(&add));
    need(dnnl_post_ops_append_sum(add, 1, 0, dnnl_data_type_undef));
    need(dnnl_primitive_attr_set_post_ops(attributes, add));
    need(dnnl_post_ops_destroy(add));
    return attributes;
}

/* Source and weight in the form that oneDNN likes best: a product's weight any, since it is packed once; activations
 * are in rows where they come as bf16 already. */
static void *onednn_open(const struct job *job) {
    struct onednn *o = calloc(1, sizeof *o);
    if (!o) stop("no memory");
    const int m = job->gradient ? job->n : job->rows, inner = job->gradient ? job->rows : job->k,
              n = job->gradient ? job->k : job->n;
    const dnnl_data_type_t type = job->type == WEIGHT_BF16 ? dnnl_bf16 : dnnl_f32;
    o->source.from = job->gradient ? plain(job->dy, m, inner, 1, m) : plain(job->x, m, inner, inner, 1);
    o->weight.from = job->gradient ? plain(job->x, inner, n, n, 1) : plain(job->w, inner, n, 1, inner);
    o->result = plain(job->theirs, m, n, n, 1);
    dnnl_memory_desc_t source, weight;
    const dnnl_dims_t source_dims = {m, inner}, weight_dims = {inner, n};
    const dnnl_format_tag_t rows = job->gradient ? dnnl_ba : dnnl_ab;
    need(dnnl_memory_desc_create_with_tag(&source, 2, source_dims, type, job->convert ? dnnl_format_tag_any : rows));
    need(dnnl_memory_desc_create_with_tag(&weight, 2, weight_dims, type,
                                          job->gradient && !job->convert ? dnnl_ab : dnnl_format_tag_any));
    dnnl_primitive_attr_t attr = attributes(job);
    dnnl_primitive_desc_t desc;
    need(dnnl_matmul_primitive_desc_create(&desc, onednn_engine, source, weight, NULL, desc_of(o->result), attr));
    need(dnnl_primitive_create(&o->product, desc));
    operand_open(&o->source, dnnl_primitive_desc_query_md(desc, dnnl_query_src_md, 0));
    operand_open(&o->weight, dnnl_primitive_desc_query_md(desc, dnnl_query_weights_md, 0));
    o->convert_source = job->convert;
    o->convert_weight = job->convert && job->gradient;
    dnnl_primitive_desc_destroy(desc);
    dnnl_primitive_attr_destroy(attr);
    dnnl_memory_desc_destroy(source);
    dnnl_memory_desc_destroy(weight);
    return o;
}

static void onednn_run(void *state) {
    const struct onednn *o = state;
    if (o->convert_source) convert(&o->source);
    if (o->convert_weight) convert(&o->weight);
    const dnnl_exec_arg_t arguments[] = {
        {DNNL_ARG_SRC, o->source.to}, {DNNL_ARG_WEIGHTS, o->weight.to}, {DNNL_ARG_DST, o->result}};
    execute(o->product, 3, arguments);
    need(dnnl_stream_wait(onednn_stream));
}

static void onednn_close(void *state) {
    struct onednn *o = state;
    dnnl_primitive_destroy(o->product);
    operand_close(&o->source);
    operand_close(&o->weight);
    dnnl_memory_destroy(o->result);
    free(o);
}
#endif

static const struct peer peers[] = {
#ifdef LOOPLM_BENCH_OPENBLAS
    {"openblas", openblas_start, openblas_open, openblas_run, openblas_close},
#endif
#ifdef LOOPLM_BENCH_ONEDNN
    {"onednn", onednn_start, onednn_open, onednn_run, onednn_close},
#endif
};

/* ---- check, then time ------------------------------------------------------------------------------------------- */

struct setting {
    int threads, slices;
    const char *peer, *type, *only;
    struct backend *backend;
};

/* Two orders of a sum of `inner` products of numbers up to 1 differ by less than inner^2 roundings of one. */
static void check(const struct job *job, const struct peer *peer) {
    const double inner = job->gradient ? job->rows : job->k, most = inner * inner * 0x1p-24;
    double worst = 0;
    for (size_t i = 0; i < result_size(job); i++)
        worst = fmax(worst, fabs((double)job->ours[i] - (double)job->theirs[i]));
    if (worst < most) return;
    fprintf(stderr, "bench_blas: %s differs by %g, at most %g expected\n", peer->name, worst, most);
    exit(1);
}

/* Seconds of one run in a slice of `repeats`. */
static double slice(const struct setting *s, void (*run)(void *), void *state, int repeats) {
    nanosleep(&(struct timespec){0, PAUSE_NS}, NULL);
    double start = probe_now_s();
    do run(state);
    while (probe_now_s() - start < WARM_S);
    start = probe_clock_s(s->threads);
    for (int i = 0; i < repeats; i++) run(state);
    return (probe_clock_s(s->threads) - start) / repeats;
}

static void compare(const struct setting *s, const struct peer *peer, const struct job *job) {
    void *theirs = peer->open(job);
    if (!theirs) return;
    struct ours ours = {.backend = s->backend};
    ours_open(&ours, job);
    memset(job->ours, 0, result_size(job) * sizeof *job->ours);
    memset(job->theirs, 0, result_size(job) * sizeof *job->theirs);
    ours_run(&ours);
    peer->run(theirs);
    check(job, peer);
    double mine[SLICES_MAX], other[SLICES_MAX], ratio[SLICES_MAX];
    const int repeats = 1 + (int)(SLICE_S / slice(s, ours_run, &ours, 1));
    for (int i = 0; i < s->slices; i++) {
        if (i % 2) mine[i] = slice(s, ours_run, &ours, repeats);
        other[i] = slice(s, peer->run, theirs, repeats);
        if (i % 2 == 0) mine[i] = slice(s, ours_run, &ours, repeats);
        ratio[i] = other[i] / mine[i];
    }
    const double operations = 2e-9 * job->rows * job->n * job->k;
    const struct spread r = spread_of(ratio, s->slices);
    printf("%-8s %-4s %-6s %-8s rows %4d n %5d k %4d  ours %7.1f GFLOP/s, theirs %7.1f, ratio %.2f (%.2f..%.2f)\n",
           peer->name, job->type == WEIGHT_BF16 ? "bf16" : "f32",
           job->type == WEIGHT_F32 ? ""
           : job->convert          ? "f32 in"
                                   : "bf16 in",
           job->gradient ? "gradient" : "product", job->rows, job->n, job->k,
           operations / spread_of(mine, s->slices).median, operations / spread_of(other, s->slices).median, r.median,
           r.low, r.high);
    fflush(stdout);
    ours_close(&ours, job);
    peer->close(theirs);
}

/* Every shape of one type and kind. */
static void compare_shapes(const struct setting *s, const struct peer *peer, enum weight_type type, bool gradient) {
    static const int product_shapes[][3] = {{512, 2048, 2048}, {512, 6144, 2048}, {512, 11264, 2048}, {512, 2048, 5632},
                                            {256, 704, 256},   {256, 256, 704},   {1024, 512, 512},   {256, 1408, 512}};
    static const int gradient_shapes[][3] = {
        {256, 256, 256}, {256, 704, 256}, {1024, 512, 512}, {1024, 2816, 512}, {1024, 512, 1408}};
    const int n_shapes = (int)(gradient ? sizeof gradient_shapes / sizeof *gradient_shapes
                                        : sizeof product_shapes / sizeof *product_shapes);
    for (int i = 0; i < n_shapes; i++) {
        const int *shape = gradient ? gradient_shapes[i] : product_shapes[i];
        struct job job = {.type = type, .gradient = gradient, .rows = shape[0], .n = shape[1], .k = shape[2]};
        job.x = reals((size_t)job.rows * (size_t)job.k, 1);
        job.w = reals((size_t)job.n * (size_t)job.k, 2);
        job.dy = reals((size_t)job.rows * (size_t)job.n, 3);
        job.ours = reals(result_size(&job), 4);
        job.theirs = reals(result_size(&job), 5);
        for (int convert = 0; convert < (type == WEIGHT_BF16 ? 2 : 1); convert++) {
            job.convert = convert;
            compare(s, peer, &job);
        }
        free(job.x);
        free(job.w);
        free(job.dy);
        free(job.ours);
        free(job.theirs);
    }
}

static bool wanted(const char *only, const char *name) {
    return !only || !strcmp(only, name);
}

static void compare_all(const struct setting *s, const struct peer *peer) {
    peer->start(s->threads);
    for (int type = WEIGHT_F32; type <= WEIGHT_BF16; type++) {
        if (!wanted(s->type, type == WEIGHT_BF16 ? "bf16" : "f32")) continue;
        if (wanted(s->only, "product")) compare_shapes(s, peer, (enum weight_type)type, false);
        if (wanted(s->only, "gradient")) compare_shapes(s, peer, (enum weight_type)type, true);
    }
}

int main(int argc, char **argv) {
    struct setting s = {.slices = 20};
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--threads")) s.threads = atoi(argv[i + 1]);
        if (!strcmp(argv[i], "--slices")) s.slices = atoi(argv[i + 1]);
        if (!strcmp(argv[i], "--peer")) s.peer = argv[i + 1];
        if (!strcmp(argv[i], "--type")) s.type = argv[i + 1];
        if (!strcmp(argv[i], "--only")) s.only = argv[i + 1];
    }
    if (s.slices < 1 || s.slices > SLICES_MAX) stop("--slices: 1 to 200");
    looplm_error err = {0};
    if (cpu_open(&s.backend, s.threads, NULL, &err)) stop(err.message);
    s.threads = s.backend->threads;
    printf("looplm: table %s, %d threads; ratio: theirs / ours\n", s.backend->table, s.threads);
    for (size_t i = 0; i < sizeof peers / sizeof *peers; i++)
        if (wanted(s.peer, peers[i].name)) compare_all(&s, &peers[i]);
    s.backend->close(s.backend);
    return 0;
}
