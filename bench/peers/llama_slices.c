/* Serves slices of work by llama.cpp or ik_llama.cpp on stdin, as bench_slices does by us, so that compare.py can
 * alternate them: one process holds the model and sleeps between its slices.
 *
 *     llama_slices MODEL.gguf [--threads N] [--positions N] [--rows N] [--repack 0|1] [--flash -1|0|1]
 *     < decode ROWS CONTEXT TOKENS      > seconds of TOKENS steps of ROWS sequences, each CONTEXT positions long before
 *     < prefill TOKENS                  > seconds of one prompt, the head read for its last position
 *
 * Built by hand against a built copy of either (../README.md); PEER_IK is defined for the second. Only their public
 * header is used. No sampling: ids are made up, as in llama-bench. */
#include <llama.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ROWS_MAX 64

struct peer {
    struct llama_model *model;
    struct llama_context *context;
    struct llama_batch batch;
    int rows, held; /* sequences; positions that each of the first `filled` holds */
    int filled;
};

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void quiet(enum ggml_log_level level, const char *text, void *context) {
    (void)context;
    if (level >= GGML_LOG_LEVEL_WARN || getenv("LLAMA_SLICES_VERBOSE")) fputs(text, stderr);
}

static void stop(const char *what) {
    fprintf(stderr, "llama_slices: %s\n", what);
    exit(1);
}

static void forget(struct peer *p, int sequence, int from) {
#ifdef PEER_IK
    llama_kv_cache_seq_rm(p->context, sequence, from, -1);
#else
    llama_memory_seq_rm(llama_get_memory(p->context), sequence, from, -1);
#endif
}

static void add(struct peer *p, int sequence, int position, bool predicts) {
    int i = p->batch.n_tokens++;
    p->batch.token[i] = (i * 7919 + position * 131 + 17) % 49152;
    p->batch.pos[i] = position;
    p->batch.n_seq_id[i] = 1;
    p->batch.seq_id[i][0] = sequence;
    p->batch.logits[i] = predicts;
}

static void decode(struct peer *p) {
    if (llama_decode(p->context, p->batch)) stop("llama_decode failed");
    llama_synchronize(p->context);
    p->batch.n_tokens = 0;
}

static double prefill(struct peer *p, int n) {
    for (int s = 0; s < p->rows; s++) forget(p, s, 0);
    p->filled = 0;
    double start = now_s();
    for (int i = 0; i < n; i++) {
        add(p, 0, i, i + 1 == n);
        if (p->batch.n_tokens == 512 || i + 1 == n) decode(p);
    }
    return now_s() - start;
}

/* The contexts are kept from slice to slice; what a slice adds is forgotten after it. */
static double decode_slice(struct peer *p, int rows, int context, int tokens) {
    if (p->filled != rows || p->held != context) {
        for (int s = 0; s < p->rows; s++) forget(p, s, 0);
        for (int s = 0; s < rows; s++)
            for (int i = 0; i < context; i++) {
                add(p, s, i, false);
                if (p->batch.n_tokens == 512 || i + 1 == context) {
                    p->batch.logits[p->batch.n_tokens - 1] = true;
                    decode(p);
                }
            }
        p->filled = rows;
        p->held = context;
    }
    double start = 0;
    for (int i = -1; i < tokens; i++) { /* one to warm up */
        if (i == 0) start = now_s();
        for (int s = 0; s < rows; s++) add(p, s, context + i + 1, true);
        decode(p);
    }
    double seconds = now_s() - start;
    for (int s = 0; s < rows; s++) forget(p, s, context);
    return seconds;
}

static void open_peer(struct peer *p, const char *file, int threads, int positions, int repack, int flash) {
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model_params model = llama_model_default_params();
    struct llama_context_params context = llama_context_default_params();
#ifdef PEER_IK
    model.repack_tensors = repack;
    model.use_mmap = !repack; /* as its own tools do: repacking needs the tensors in memory of their own */
    model.merge_qkv = repack;
    context.flash_attn = flash != 0;
#else
    model.use_extra_bufts = repack;
    context.flash_attn_type = flash < 0   ? LLAMA_FLASH_ATTN_TYPE_AUTO
                              : flash > 0 ? LLAMA_FLASH_ATTN_TYPE_ENABLED
                                          : LLAMA_FLASH_ATTN_TYPE_DISABLED;
#endif
    context.n_ctx = (uint32_t)(positions * p->rows);
    context.n_batch = context.n_ubatch = 512;
    context.n_seq_max = (uint32_t)p->rows;
    context.n_threads = context.n_threads_batch = threads;
    p->model = llama_model_load_from_file(file, model);
    if (!p->model) stop("the model could not be loaded");
    p->context = llama_init_from_model(p->model, context);
    if (!p->context) stop("the context could not be made");
    p->batch = llama_batch_init(512 + ROWS_MAX, 0, 1);
}

int main(int argc, char **argv) {
    struct peer p = {.rows = 8};
    int threads = 2, positions = 1024, repack = 1, flash = -1;
    const struct {
        const char *name;
        int *value;
    } options[] = {{"--threads", &threads},
                   {"--positions", &positions},
                   {"--rows", &p.rows},
                   {"--repack", &repack},
                   {"--flash", &flash}};
    for (int i = 2; i + 1 < argc; i += 2) {
        bool known = false;
        for (size_t k = 0; k < sizeof options / sizeof *options; k++)
            if (!strcmp(argv[i], options[k].name)) *options[k].value = atoi(argv[i + 1]), known = true;
        if (!known) stop("an option is not known");
    }
    if (argc < 2 || argc % 2 || p.rows < 1 || p.rows > ROWS_MAX) stop("usage: llama_slices MODEL.gguf [--option N]...");
    open_peer(&p, argv[1], threads, positions, repack, flash);
    puts("ready");
    fflush(stdout);
    char line[128];
    for (int a, b, c; fgets(line, sizeof line, stdin); fflush(stdout)) {
        if (sscanf(line, "decode %d %d %d", &a, &b, &c) == 3 && a <= p.rows && b + c < positions)
            printf("%.9f\n", decode_slice(&p, a, b, c));
        else if (sscanf(line, "prefill %d", &a) == 1 && a > 0 && a <= positions)
            printf("%.9f\n", prefill(&p, a));
        else
            printf("what? %s", line);
    }
    return 0;
}
