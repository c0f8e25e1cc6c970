/* Calibration of a whole model: closer to the original than rounding to the nearest, the same bits at any number of
 * threads and in every kernel table, in one stage or many, for the inputs of all loops. */
#include "engine/study.h"
#include "model/calibrate.h"
#include "support/support.h"
#include "support/tiny.h"
#include "tensor/cpu/cpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LOOPS = 3, TEXTS = 40, LENGTH = 40 };

/* Texts of differing lengths over a part of the vocabulary. */
static struct pieces make_text(void) {
    struct pieces text = {.items = calloc(TEXTS, sizeof *text.items), .count = TEXTS};
    uint32_t x = 1;
    for (int i = 0; i < TEXTS; i++) {
        struct piece *piece = &text.items[i];
        *piece = (struct piece){.ids = calloc(LENGTH, sizeof(int32_t)), .n = LENGTH - i % 7};
        for (int j = 0; j < piece->n; j++) piece->ids[j] = (int32_t)((x = x * 1664525 + 1013904223) >> 16) % 29;
        text.ids += piece->n;
    }
    return text;
}

/* A model in f32, the same one in q4, and the text. */
struct pair {
    struct tiny tiny;
    struct model *original;
    struct pieces text;
};

static struct pair pair_open(int32_t loops, const char *table, int threads) {
    struct pair p;
    looplm_error err = {0};
    tiny_open(&p.tiny, loops, WEIGHT_Q4, table, threads);
    assert_int_equal(model_alloc(&p.original, &p.tiny.params.config, p.tiny.backend, WEIGHT_F32, &err), 0);
    model_pack(p.original, &p.tiny.params);
    p.text = make_text();
    return p;
}

/* The original is not one after calibration. */
static void pair_close(struct pair *p) {
    model_close(p->original);
    tiny_close(&p->tiny);
    pieces_free(&p->text);
}

static void pair_calibrate(struct pair *p, size_t memory) {
    looplm_error err = {0};
    struct calibrate_options options = {.text = &p->text, .memory = memory};
    if (calibrate(p->original, p->tiny.model, &options, &err)) fail_msg("%s", err.message);
}

/* ||h - h_original|| / ||h_original|| of all loops of a text. */
static double hidden_error(struct pair *p, const struct study *expected) {
    struct study s;
    looplm_error err = {0};
    double difference = 0, size = 0;
    const struct piece *piece = &p->text.items[0];
    if (study_run(&s, p->tiny.model, piece->ids, piece->n, 0, KV_F32, &err)) fail_msg("%s", err.message);
    for (size_t i = 0; i < (size_t)s.loops * (size_t)s.n * (size_t)s.model->config.hidden; i++) {
        difference +=
            ((double)s.hidden[i] - (double)expected->hidden[i]) * ((double)s.hidden[i] - (double)expected->hidden[i]);
        size += (double)expected->hidden[i] * (double)expected->hidden[i];
    }
    study_free(&s);
    return sqrt(difference / size);
}

static void check_closer(size_t memory) {
    struct pair p = pair_open(LOOPS, NULL, 2);
    struct study expected;
    looplm_error err = {0};
    const struct piece *piece = &p.text.items[0];
    if (study_run(&expected, p.original, piece->ids, piece->n, 0, KV_F32, &err)) fail_msg("%s", err.message);
    double nearest = hidden_error(&p, &expected);
    pair_calibrate(&p, memory);
    double calibrated = hidden_error(&p, &expected);
    if (!(calibrated < 0.9 * nearest)) fail_msg("the error is %.4f, to the nearest %.4f", calibrated, nearest);
    study_free(&expected);
    pair_close(&p);
}

static void test_closer(void **state) {
    (void)state;
    check_closer(CALIBRATE_MEMORY);
    check_closer(1); /* a stage for each layer */
}

/* The packed bytes of the calibrated stack; fresh. */
static unsigned char *calibrated(int32_t loops, const char *table, int threads, size_t memory, size_t *size) {
    struct pair p = pair_open(loops, table, threads);
    pair_calibrate(&p, memory);
    const struct model *m = p.tiny.model;
    unsigned char *bytes = NULL;
    *size = 0;
    for (int32_t l = 0; l < m->config.layers; l++) {
        const struct weight *all[] = {&m->layers[l].qkv, &m->layers[l].o, &m->layers[l].gate_up, &m->layers[l].down};
        for (int i = 0; i < 4; i++) {
            size_t more = weight_size(all[i]->type, all[i]->n, all[i]->k);
            bytes = realloc(bytes, *size + more);
            memcpy(bytes + *size, all[i]->data, more);
            *size += more;
        }
    }
    pair_close(&p);
    return bytes;
}

static bool same(int32_t loops, const char *table, int threads, size_t memory, const unsigned char *expected) {
    size_t size;
    unsigned char *bytes = calibrated(loops, table, threads, memory, &size);
    bool equal = memcmp(bytes, expected, size) == 0;
    free(bytes);
    return equal;
}

static void test_same_bits(void **state) {
    (void)state;
    size_t size;
    unsigned char *expected = calibrated(LOOPS, "scalar", 1, CALIBRATE_MEMORY, &size);
    for (const struct cpu_table *const *t = cpu_tables(); *t; t++)
        for (int threads = 1; (*t)->supported() && threads <= 3; threads++)
            if (!same(LOOPS, (*t)->name, threads, CALIBRATE_MEMORY, expected))
                fail_msg("%s, %d threads: other bits", (*t)->name, threads);
    assert_false(same(LOOPS, NULL, 2, 1, expected)); /* later layers saw the earlier ones rounded */
    free(expected);
}

static void test_all_loops(void **state) {
    (void)state;
    size_t size;
    unsigned char *one = calibrated(1, NULL, 2, CALIBRATE_MEMORY, &size);
    unsigned char *two = calibrated(2, NULL, 2, CALIBRATE_MEMORY, &size);
    assert_memory_not_equal(one, two, size);
    assert_false(same(3, NULL, 2, CALIBRATE_MEMORY, two));
    free(one);
    free(two);
}

static void show(void *context, int64_t done, int64_t total) {
    int64_t *seen = context;
    assert_true(done > seen[0] && done <= total);
    seen[0] = done;
    seen[1] = total;
}

static void test_progress(void **state) {
    (void)state;
    struct pair p = pair_open(LOOPS, NULL, 1);
    int64_t seen[2] = {0};
    looplm_error err = {0};
    struct calibrate_options options = {.text = &p.text, .memory = 1, .progress = show, .progress_context = seen};
    assert_int_equal(calibrate(p.original, p.tiny.model, &options, &err), 0);
    assert_int_equal(seen[0], seen[1]);
    assert_int_equal(seen[1], 2 * p.text.ids); /* a stage for each layer */
    pair_close(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_closer), cmocka_unit_test(test_same_bits),
                                       cmocka_unit_test(test_all_loops), cmocka_unit_test(test_progress)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
