/* Serves slices of work on stdin, so that a script can alternate them with those of another program (bench/peers/):
 * one process holds the model and sleeps between its slices.
 *
 *     bench_slices MODEL [--weights T] [--kv-type T] [--kernels T] [--threads N] [--loops N] [--positions N] [--rows N]
 *     < decode ROWS CONTEXT TOKENS      > seconds of TOKENS steps of ROWS sequences, each CONTEXT positions long before
 *     < prefill TOKENS                  > seconds of one prompt, the head read for its last position
 *
 * Sequences run `loops` loops a token and take the likeliest id next; the keys and values of a context are zeros, since
 * the time does not depend on them. */
#include "base/progress.h"
#include "engine/api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS_MAX 64

struct slices {
    looplm_model *model;
    struct engine *engine;
    int32_t rows, positions, loops;
    int32_t *ids;
    uint8_t *depths;
};

static void need(int status, const looplm_error *err) {
    if (!status) return;
    fprintf(stderr, "bench_slices: %s\n", err->message);
    exit(1);
}

static struct sequence *open_sequence(struct slices *b) {
    looplm_error err = {0};
    struct sequence *s;
    struct sequence_options options = {.rule = {.kind = EXIT_LOOPS, .loops = b->loops},
                                       .policy = KV_POLICY_LAST_EXITED,
                                       .capacity = b->positions,
                                       .sampler = {0, 1, 0, 0, 1, 0}};
    need(sequence_open(&s, b->engine, &options, &err), &err);
    return s;
}

static void step(struct slices *b, int32_t times) {
    looplm_error err = {0};
    bool ran;
    for (int32_t i = 0; i < times; i++) need(engine_step(b->engine, &ran, &err), &err);
}

static double prefill(struct slices *b, int32_t n) {
    looplm_error err = {0};
    struct sequence *s = open_sequence(b);
    need(sequence_feed(s, b->ids, NULL, n, &err), &err);
    sequence_generate(s, true); /* for the head of the last position */
    double start = clock_s();
    while (sequence_length(s) == n) step(b, 1);
    double seconds = clock_s() - start;
    sequence_close(s);
    return seconds;
}

static double decode(struct slices *b, int32_t rows, int32_t context, int32_t tokens) {
    looplm_error err = {0};
    struct sequence *s[ROWS_MAX];
    for (int32_t i = 0; i < rows; i++) {
        s[i] = open_sequence(b);
        need(sequence_restore(s[i], b->ids, b->depths, context + 1, context, true, &err), &err);
        sequence_generate(s[i], true);
    }
    step(b, b->loops); /* one token to warm up */
    double start = clock_s();
    step(b, b->loops * tokens);
    double seconds = clock_s() - start;
    for (int32_t i = 0; i < rows; i++) sequence_close(s[i]);
    return seconds;
}

static void open_engine(struct slices *b, enum kv_type kv_type) {
    looplm_error err = {0};
    struct engine_options options = {.rows_max = 512,
                                     .sequences_max = b->rows,
                                     .kv_positions = (int64_t)b->rows * b->positions,
                                     .planes = b->loops,
                                     .kv_type = kv_type};
    need(engine_open(&b->engine, b->model->model, &options, &err), &err);
    b->ids = malloc((size_t)b->positions * sizeof *b->ids);
    b->depths = malloc((size_t)b->positions);
    if (!b->ids || !b->depths) exit(1);
    memset(b->depths, b->loops, (size_t)b->positions);
    for (int32_t i = 0; i < b->positions; i++) b->ids[i] = (int32_t)((int64_t)i * 7919 % b->model->info.vocab);
}

static void serve(struct slices *b) {
    char line[128];
    puts("ready");
    fflush(stdout);
    for (int rows, n, tokens; fgets(line, sizeof line, stdin); fflush(stdout)) {
        if (sscanf(line, "decode %d %d %d", &rows, &n, &tokens) == 3 && rows > 0 && rows <= b->rows && n > 0 &&
            n + tokens + 2 < b->positions)
            printf("%.9f\n", decode(b, rows, n, tokens));
        else if (sscanf(line, "prefill %d", &n) == 1 && n > 0 && n < b->positions)
            printf("%.9f\n", prefill(b, n));
        else
            printf("what? %s", line);
    }
}

static int usage(void) {
    fprintf(stderr, "usage: bench_slices MODEL [--weights T] [--kv-type f32|bf16] [--kernels T] [--threads N] "
                    "[--loops N] [--positions N] [--rows N]\n");
    return 2;
}

int main(int argc, char **argv) {
    const char *weights = "auto", *kv_type = "bf16", *kernels = NULL, *threads = "0", *loops = "0", *positions = "1024",
               *rows = "8";
    const struct {
        const char *name, **value;
    } options[] = {{"--weights", &weights}, {"--kv-type", &kv_type}, {"--kernels", &kernels},
                   {"--threads", &threads}, {"--loops", &loops},     {"--positions", &positions},
                   {"--rows", &rows}};
    if (argc < 2 || argc % 2) return usage();
    for (int i = 2; i < argc; i += 2) {
        size_t k = 0, n = sizeof options / sizeof *options;
        while (k < n && strcmp(argv[i], options[k].name)) k++;
        if (k == n) return usage();
        *options[k].value = argv[i + 1];
    }
    struct slices b = {.rows = atoi(rows), .positions = atoi(positions)};
    if (b.rows < 1 || b.rows > ROWS_MAX || b.positions < 4) return usage();
    looplm_error err = {0};
    looplm_model_options open = {.weights = weights, .kernels = kernels, .threads = atoi(threads)};
    need(looplm_model_open(&b.model, argv[1], &open, &err), &err);
    b.loops = atoi(loops) > 0 ? atoi(loops) : b.model->info.loops;
    open_engine(&b, !strcmp(kv_type, "f32") ? KV_F32 : KV_BF16);
    serve(&b);
    engine_close(b.engine);
    looplm_model_close(b.model);
    free(b.ids);
    free(b.depths);
    return 0;
}
