/* What speculation decides, on machines that are pretended: the engine is told what passes and head reads take, so that
 * gains are exact. It never loses more than 3 %, comes near the bound of the diagonal where rows ride free, and leaves
 * alone what does not pay. */
#include "base/random.h"
#include "engine/engine_internal.h"
#include "support/support.h"
#include "support/tiny.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define R 4
#define MADE 256
#define PROMPT 7
#define STREAMS 16

/* Seconds of n rows: 1 + slope (n - 1), and a jump for every `tile` rows; a head read is `head` of that. A row takes
 * `past` more for every token there is; a pass `after` more when it follows a head read; times scatter by `noise`, one
 * in 50 is three times as long, and the first is very cold. A prompt's rows share their past: they take a quarter. */
struct machine {
    const char *name;
    double slope, jump, head;
    int32_t tile;
    double past, after, noise;
};

/* Since a run began: passes, reads, tokens of the first stream, and whether the head was read last. */
static struct {
    int32_t passes, reads, tokens;
    bool read;
} so_far;

static double scattered(const struct machine *m, uint64_t kind, int32_t number) {
    if (m->noise == 0) return 1;
    float u = random_unit(random_hash(23, kind, (uint64_t)number)),
          v = random_unit(random_hash(29, kind, (uint64_t)number));
    return (1 + m->noise * (2 * (double)u - 1)) * (v < 0.02f ? 3 : 1) * (kind == 0 && number == 0 ? 20 : 1);
}

static double seconds_of(const void *context, int32_t rows, bool head) {
    const struct machine *m = context;
    double n = rows;
    if (!head && m->past > 0 && so_far.passes < R) n = 1 + (n - 1) / 4;
    double seconds = 1 + m->slope * (n - 1) + (m->tile ? m->jump * ((rows - 1) / m->tile) : 0);
    if (head)
        seconds *= m->head * scattered(m, 1, so_far.reads++);
    else
        seconds =
            (seconds + m->past * n * so_far.tokens + (so_far.read ? m->after : 0)) * scattered(m, 0, so_far.passes++);
    so_far.read = head;
    return seconds;
}

struct stream {
    int32_t number, n, ids[MADE];
    const int32_t *truth;          /* [MADE] */
    float right[ENGINE_PROPOSALS]; /* the chance of a proposal after loop 1, 2, .. */
};

static void take(void *context, struct sequence *s, const struct prediction *p) {
    struct stream *stream = context;
    if (p->id < 0) return;
    stream->ids[stream->n++] = p->id;
    if (stream->number == 0) so_far.tokens++;
    if (stream->n == MADE) sequence_generate(s, false);
}

/* A proposal that is right after some loop is right after every deeper one. */
static int32_t force(void *context, struct sequence *s, int32_t position, int32_t loops, int32_t id) {
    (void)s;
    (void)id;
    const struct stream *stream = context;
    int32_t n = position - PROMPT, right = n < MADE ? stream->truth[n] : 0;
    float u = random_unit(random_hash(5, (uint64_t)stream->number, (uint64_t)n));
    return u < stream->right[loops - 1] ? right : (right + loops) % 67;
}

static double spent(const struct engine *e) {
    return engine_counters(e)->pass_s + engine_counters(e)->head_s;
}

/* Seconds that the streams take until the last is through. */
static double serve(struct tiny *tiny, const struct machine *machine, const char *rule, struct stream *streams,
                    int32_t n, enum speculate speculate, struct engine_counters *counters) {
    looplm_error err;
    struct engine *engine;
    struct sequence *s[STREAMS];
    struct engine_options options = {.rows_max = 128,
                                     .sequences_max = n,
                                     .kv_positions = (int64_t)n * 320,
                                     .planes = R,
                                     .kv_type = KV_F32,
                                     .pretend = seconds_of,
                                     .pretend_context = machine};
    memset(&so_far, 0, sizeof so_far);
    assert_int_equal(engine_open(&engine, tiny->model, &options, &err), 0);
    for (int32_t i = 0; i < n; i++) {
        int32_t prompt[PROMPT] = {i, 2, 3, i, 5, 6, 7};
        struct sequence_options sequence = {.capacity = 300,
                                            .sampler = {0.8f, 1, 0, 0, 1, 3},
                                            .speculate = speculate,
                                            .on_prediction = take,
                                            .on_proposal = force,
                                            .context = &streams[i]};
        assert_int_equal(exit_rule_parse(&sequence.rule, rule, &err), 0);
        streams[i].number = i;
        streams[i].n = 0;
        assert_int_equal(sequence_open(&s[i], engine, &sequence, &err), 0);
        sequence_generate(s[i], true);
        assert_int_equal(sequence_feed(s[i], prompt, NULL, PROMPT, &err), 0);
    }
    for (bool ran = true; ran;) assert_int_equal(engine_step(engine, &ran, &err), 0);
    double seconds = spent(engine);
    *counters = *engine_counters(engine);
    for (int32_t i = 0; i < n; i++) {
        assert_int_equal(streams[i].n, MADE);
        sequence_close(s[i]);
    }
    engine_close(engine);
    return seconds;
}

static const struct machine free_rows = {.name = "free", .head = 0.1},
                            tiles = {.name = "tiles of 4", .slope = 0.01, .jump = 0.8, .head = 0.1, .tile = 4},
                            machines[] =
                                {
                                    {.name = "free, dear head", .head = 1},
                                    {.name = "slope 5 %", .slope = 0.05, .head = 0.1},
                                    {.name = "slope 30 %", .slope = 0.3, .head = 0.1},
                                    {.name = "slope 100 %", .slope = 1, .head = 0.1},
                                    {.name = "tiles of 2", .slope = 0.01, .jump = 0.6, .head = 0.1, .tile = 2},
                                    {.name = "slope 100 %, dear head", .slope = 1, .head = 1},
},
                            /* The first is models/tiny: a pass of 27 us, a read of 34 and 20 in the pass after it. */
    grown[] = {
        {.name = "tiny", .slope = 0.4, .head = 1.3, .past = 0.004, .after = 0.7},
        {.name = "tiny, scattered", .slope = 0.4, .head = 1.3, .past = 0.004, .after = 0.7, .noise = 0.15},
        {.name = "a past, free head", .slope = 0.1, .head = 0.05, .past = 0.004, .noise = 0.05},
        {.name = "free, a past", .head = 0.1, .past = 0.004, .noise = 0.05},
        {.name = "scattered", .slope = 0.1, .head = 0.1, .noise = 0.2},
};
static struct stream plain[STREAMS], got[STREAMS];

/* Plain time over that with proposals right with this chance, at every loop, or more often with each. */
static double gain(struct tiny *tiny, const struct machine *m, const char *rule, int32_t n, float a, bool rising) {
    struct engine_counters c;
    double seconds = serve(tiny, m, rule, plain, n, SPECULATE_OFF, &c);
    for (int32_t i = 0; i < n; i++) {
        got[i].truth = plain[i].ids;
        for (int k = 0; k < ENGINE_PROPOSALS; k++) got[i].right[k] = rising ? 1 - (1 - a) / (float)(1 << k) : a;
    }
    double ratio = seconds / serve(tiny, m, rule, got, n, SPECULATE_WAVEFRONT, &c);
    for (int32_t i = 0; i < n; i++) assert_memory_equal(plain[i].ids, got[i].ids, sizeof got[i].ids);
    if (getenv("LOOPLM_SHOW"))
        printf("%-24s %-6s %2d streams, right %.2f%s: %.3f\n", m->name, rule, n, (double)a, rising ? " rising" : "",
               ratio);
    return ratio;
}

/* (R w + h) / ((1 + (R - 1)(1 - a)) (w + h)), and what the diagonal must reach of it. */
static void test_bound(void **state) {
    (void)state;
    struct tiny tiny;
    tiny_open(&tiny, R, WEIGHT_F32, NULL, 1);
    const struct machine *of[] = {&free_rows, &tiles};
    static const float rates[] = {0.6f, 0.92f, 1};
    for (int i = 0; i < 2; i++)
        for (int a = 0; a < 3; a++) {
            double h = of[i]->head, bound = (R + h) / ((1 + (R - 1) * (1 - (double)rates[a])) * (1 + h));
            double ratio = gain(&tiny, of[i], "full", 1, rates[a], false);
            if (ratio < 0.85 * bound)
                fail_msg("%s, right %.2f: %.3f of a bound of %.3f", of[i]->name, (double)rates[a], ratio, bound);
        }
    tiny_close(&tiny);
}

static void test_never_loses(void **state) {
    (void)state;
    struct tiny tiny;
    tiny_open(&tiny, R, WEIGHT_F32, NULL, 1);
    for (size_t i = 0; i < sizeof machines / sizeof *machines; i++)
        for (int a = 0; a <= 10; a += THIN(5)) {
            double ratio = gain(&tiny, &machines[i], a % 4 == 3 ? "q=0.6" : "full", 1, (float)a / 10, a % 2);
            if (ratio < 0.97) fail_msg("%s, right %.1f: %.3f", machines[i].name, a / 10.0, ratio);
        }
    /* By q, since streams that all begin at once and run at full depth share their head reads for as long as none gets
     * ahead of the others. */
    for (int a = 0; a <= 10; a += 5)
        for (int i = 0; i < 6; i += THIN(3)) {
            double ratio = gain(&tiny, &machines[i], "q=0.6", STREAMS / 2, (float)a / 10, true);
            if (ratio < 0.97) fail_msg("%s, a batch, right %.1f: %.3f", machines[i].name, a / 10.0, ratio);
        }
    tiny_close(&tiny);
}

/* Where times change with the past, scatter, and depend on what ran before. */
static void test_grown(void **state) {
    (void)state;
    struct tiny tiny;
    tiny_open(&tiny, R, WEIGHT_F32, NULL, 1);
    for (size_t i = 0; i < sizeof grown / sizeof *grown; i++)
        for (int a = 0; a <= 20; a += THIN(4)) {
            double ratio = gain(&tiny, &grown[i], "full", 1, (float)a / 20, false);
            if (ratio < 0.97) fail_msg("%s, right %.2f: %.3f", grown[i].name, a / 20.0, ratio);
        }
    tiny_close(&tiny);
}

static void add(struct cost_table *t, int times, int32_t n, double position, double seconds) {
    for (int i = 0; i < times; i++) cost_add(t, n, position, seconds);
}

static void test_cost_table(void **state) {
    (void)state;
    struct cost_table t = {0};
    assert_true(cost_at(&t, 3) == cost_at(&t, 60)); /* nothing known */
    for (int i = 0; i < 3; i++) cost_add(&t, 2, 0, i == 1 ? 1.0 : 9.0);
    assert_true(cost_at(&t, 2) == 1 && cost_at(&t, 1) == 1 && cost_at(&t, 6) == 1); /* the least; free within reach */
    assert_true(cost_at(&t, 12) == 2);
    add(&t, 3, 6, 0, 3);
    assert_true(cost_at(&t, 4) > 1.9 && cost_at(&t, 4) < 2.1); /* on the line */
    add(&t, 3, 4, 0, 5);
    assert_true(cost_at(&t, 4) == 2); /* no more than twice two rows */
    add(&t, 20, 2, 0, 1);
    cost_add(&t, 2, 0, 100);
    assert_true(cost_at(&t, 2) < 1.02); /* somebody else had the processor */
    add(&t, 8000, 2, 0, 1);
    assert_true(cost_at(&t, 6) < 1.1); /* doubted in the end */
}

/* A row reads its past: what was measured at one position is carried to another, for all numbers of rows. */
static void test_cost_positions(void **state) {
    (void)state;
    struct cost_table t = {0};
    add(&t, 20, 1, 10, 1);
    add(&t, 20, 4, 10, 1.6);
    for (int p = 10; p < 250; p++) add(&t, 1, 1, p, 1 + 0.01 * (p - 10));
    assert_true(fabs(cost_at(&t, 1) - 3.4) < 0.1);
    assert_true(cost_at(&t, 4) > 9.8 && cost_at(&t, 4) < 1.6 + 4 * 2.4); /* a little doubted */
    add(&t, 1, 1, 20, 1.1);                                              /* the next request begins */
    assert_true(fabs(cost_at(&t, 1) - 1.1) < 0.2 && fabs(cost_at(&t, 4) - 2) < 0.2);
}

/* A mean is not carried below a quarter of itself, and a few positions tell no slope. */
static void test_cost_positions_limits(void **state) {
    (void)state;
    struct cost_table t = {0}, few = {0};
    for (int p = 10; p < 250; p++) add(&t, 1, 1, p, 1 + 0.01 * (p - 10));
    add(&t, 20, 4, 250, 6);
    add(&t, 20, 1, 10, 1);
    assert_true(fabs(cost_at(&t, 4) - 1.5) < 0.1); /* the slope alone would say less than nothing */
    for (int i = 0; i < 24; i++) add(&few, 1, 1, 10 + i % 6, 1 + 0.02 * (i % 6));
    add(&few, 20, 4, 12, 1.6);
    add(&few, 1, 2, 250, 1.1); /* of a number that is not known yet: it says where now is */
    assert_true(cost_at(&few, 4) > 1.5 && cost_at(&few, 4) < 2.2);
}

/* The first passes run cold and are not counted, whatever their rows; those of a prompt before them do not warm. Of
 * long ones the first is enough. A head read counts from the first on. */
static void test_cost_cold(void **state) {
    (void)state;
    struct costs c = {0}, slow = {0};
    for (int i = 0; i < 20; i++) costs_pass(&c, 1, 0, 9e-5, false, true);
    for (int i = 0; i < 8; i++) costs_pass(&c, 1, 0, 2.4e-5, i == 4, false);
    assert_false(cost_known(&c.pass, 1));
    for (int i = 0; i < 4; i++) costs_pass(&c, 1, 0, 1e-5, false, false);
    assert_true(cost_known(&c.pass, 1) && cost_at(&c.pass, 1) == 1e-5 && c.after == 0);
    costs_pass(&slow, 1, 0, 9, false, true);
    for (int i = 0; i < 4; i++) {
        assert_false(cost_known(&slow.pass, 1));
        costs_pass(&slow, 1, 0, i == 0 ? 3e-3 : 1e-3, false, false);
    }
    assert_true(cost_known(&slow.pass, 1) && cost_at(&slow.pass, 1) == 1e-3);
    assert_true(costs_read(&slow, 0) == 1);
    cost_add(&slow.head, 1, 0, 2e-4);
    assert_true(costs_read(&slow, 0) == 2e-4);
}

/* What a pass takes longer because the head was read before it counts as the read's; a prompt's passes say nothing. */
static void test_cost_after_read(void **state) {
    (void)state;
    struct costs c = {0};
    for (int i = 0; i < 100; i++) {
        cost_add(&c.head, 1, 0, 2);
        costs_pass(&c, 1, 0, i % 4 == 1 ? 1.7 : 1, i % 4 == 0, false);
        if (i % 10 == 0) costs_pass(&c, 1, 0, 0.1, false, true);
    }
    assert_true(fabs(cost_at(&c.pass, 1) - 1) < 0.03);
    assert_true(fabs(costs_read(&c, 0) - 2.7) < 0.1 && costs_read(&c, 1) == 0);
    for (int i = 0; i < 40; i++) costs_pass(&c, 4, 0, 2.5, true, false); /* a diagonal reads in every pass */
    assert_true(fabs(cost_at(&c.pass, 4) - 1.8) < 0.1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cost_table),      cmocka_unit_test(test_cost_positions),
        cmocka_unit_test(test_cost_after_read), cmocka_unit_test(test_cost_positions_limits),
        cmocka_unit_test(test_cost_cold),       cmocka_unit_test(test_bound),
        cmocka_unit_test(test_never_loses),     cmocka_unit_test(test_grown)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
