/* Wavefront speculation loses nothing: tokens, log-probabilities, depths and exit probabilities are those of plain
 * decoding, for every rule, policy, weight type and kind of sampling, alone and in batches, when it is paused, fed and
 * settled in mid-flight; and where proposals come true it takes the passes that the diagonal promises. */
#include "base/random.h"
#include "engine/engine.h"
#include "support/support.h"
#include "support/tiny.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define R 4
#define MADE 40

static const int32_t prompt[] = {3, 14, 15, 9, 26, 5, 35};
#define PROMPT 7

struct made {
    int32_t ids[MADE], loops[MADE];
    real logprob[MADE], lse[MADE];
    float probs[MADE][R];
    int32_t n;
};

/* A stream whose proposals are forced: right with this probability. */
struct stream {
    struct made *made;
    const struct made *truth; /* NULL: proposals are the model's own */
    float acceptance;
};

static void take(void *context, struct sequence *s, const struct prediction *p) {
    struct made *m = ((struct stream *)context)->made;
    if (p->id < 0) return;
    m->ids[m->n] = p->id;
    m->loops[m->n] = p->loops;
    m->lse[m->n] = p->lse;
    memcpy(m->probs[m->n], p->exit_probs, (size_t)p->loops * sizeof(float));
    m->logprob[m->n++] = p->logprob;
    if (m->n == MADE) sequence_generate(s, false);
}

static int32_t force(void *context, struct sequence *s, int32_t position, int32_t loops, int32_t id) {
    (void)s;
    (void)loops;
    const struct stream *stream = context;
    if (!stream->truth) return id;
    int32_t n = position - PROMPT, right = n < MADE ? stream->truth->ids[n] : 0;
    return random_unit(random_hash(7, (uint64_t)n, 0)) < stream->acceptance ? right : (right + 1) % 67;
}

static struct engine *open_engine(struct tiny *tiny, int32_t rows, enum kv_type kv_type) {
    struct engine *engine;
    looplm_error err;
    struct engine_options options = {.rows_max = rows,
                                     .sequences_max = 16,
                                     .kv_positions = 16 * 64,
                                     .planes = R,
                                     .kv_type = kv_type,
                                     .poison = true};
    if (engine_open(&engine, tiny->model, &options, &err)) fail_msg("%s", err.message);
    return engine;
}

struct setting {
    const char *rule;
    enum kv_policy policy;
    float temperature, penalty;
    uint64_t seed;
};

static struct sequence *start(struct engine *engine, const struct setting *setting, enum speculate speculate,
                              struct stream *stream) {
    struct sequence *s = NULL;
    looplm_error err;
    struct sequence_options options = {.policy = setting->policy,
                                       .capacity = 64,
                                       .sampler = {setting->temperature, 1, 0, 0, setting->penalty, setting->seed},
                                       .speculate = speculate,
                                       .on_prediction = take,
                                       .on_proposal = force,
                                       .context = stream};
    memset(stream->made, 0, sizeof *stream->made);
    if (exit_rule_parse(&options.rule, setting->rule, &err) || sequence_open(&s, engine, &options, &err))
        fail_msg("%s", err.message);
    sequence_generate(s, true);
    if (sequence_feed(s, prompt, NULL, PROMPT, &err)) fail_msg("%s", err.message);
    return s;
}

static int32_t run(struct engine *engine) {
    bool ran = true;
    looplm_error err;
    int32_t passes = -1;
    for (; ran; passes++)
        if (engine_step(engine, &ran, &err)) fail_msg("%s", err.message);
    return passes;
}

static int32_t generate(struct engine *engine, const struct setting *setting, enum speculate speculate,
                        struct stream *stream) {
    struct sequence *s = start(engine, setting, speculate, stream);
    int32_t passes = run(engine);
    assert_int_equal(stream->made->n, MADE);
    sequence_close(s);
    return passes;
}

static void assert_same(const struct setting *setting, const struct made *want, const struct made *got) {
    if (memcmp(want, got, sizeof *want)) {
        int i = 0;
        while (i < MADE - 1 && want->ids[i] == got->ids[i] && want->loops[i] == got->loops[i]) i++;
        fail_msg("%s, policy %d, temperature %g: plain and speculative decoding differ near token %d: %d at %d loops, "
                 "%d at %d",
                 setting->rule, (int)setting->policy, (double)setting->temperature, i, want->ids[i], want->loops[i],
                 got->ids[i], got->loops[i]);
    }
}

static const char *const rules[] = {"full",    "q=0.6",   "q=0.4", "diff=0.6", "conf=0.2",
                                    "loops=3", "loops=1", "mix",   "q=0",      "q=0.8,min=2"};
#define RULES 10

static void every_rule(enum weight_type weights, enum kv_type kv_type) {
    struct tiny tiny;
    static struct made plain, got;
    tiny_open(&tiny, R, weights, NULL, 1);
    int32_t rows[] = {32, 5, 1};
    for (int k = 0; k < 3; k++) {
        struct engine *engine = open_engine(&tiny, rows[k], kv_type);
        for (int i = 0; i < RULES; i++)
            for (int policy = KV_POLICY_LAST_EXITED; policy <= KV_POLICY_FULL; policy++)
                for (int sampled = 0; sampled < 3; sampled++) {
                    struct setting setting = {rules[i], (enum kv_policy)policy, sampled ? 0.7f : 0,
                                              sampled == 2 ? 1.3f : 1, (uint64_t)sampled};
                    generate(engine, &setting, SPECULATE_OFF, &(struct stream){&plain, NULL, 0});
                    static const float acceptance[] = {-1, 0, 0.5f, 0.9f, 1};
                    for (int a = 0; a < 5; a++) {
                        struct stream stream = {&got, a ? &plain : NULL, acceptance[a]};
                        generate(engine, &setting, SPECULATE_ALWAYS, &stream);
                        assert_same(&setting, &plain, &got);
                    }
                    generate(engine, &setting, SPECULATE_WAVEFRONT, &(struct stream){&got, NULL, 0});
                    assert_same(&setting, &plain, &got);
                }
        engine_close(engine);
    }
    tiny_close(&tiny);
}

static void test_f32(void **state) {
    (void)state;
    every_rule(WEIGHT_F32, KV_F32);
}

static void test_q4(void **state) {
    (void)state;
    every_rule(WEIGHT_Q4, KV_BF16);
}

/* Full depth, everything accepted: one token a pass once the diagonal stands. Nothing accepted: as many passes as
 * plain. */
static void test_passes(void **state) {
    (void)state;
    struct tiny tiny;
    static struct made plain, got;
    tiny_open(&tiny, R, WEIGHT_F32, NULL, 1);
    struct engine *engine = open_engine(&tiny, 32, KV_F32);
    struct setting setting = {"full", KV_POLICY_LAST_EXITED, 0, 1, 0};
    assert_int_equal(generate(engine, &setting, SPECULATE_OFF, &(struct stream){&plain, NULL, 0}), MADE * R);
    assert_int_equal(generate(engine, &setting, SPECULATE_ALWAYS, &(struct stream){&got, &plain, 1}), R + MADE - 1);
    assert_int_equal(generate(engine, &setting, SPECULATE_ALWAYS, &(struct stream){&got, &plain, 0}), MADE * R);
    struct engine_counters before = *engine_counters(engine);
    int32_t misses = 0, passes = generate(engine, &setting, SPECULATE_ALWAYS, &(struct stream){&got, &plain, 0.6f});
    for (int n = 1; n < MADE; n++) misses += random_unit(random_hash(7, (uint64_t)n, 0)) >= 0.6f;
    assert_true(misses > 5 && misses < MADE - 5);
    assert_int_equal(passes, R + MADE - 1 + (R - 1) * misses);
    assert_true(engine_counters(engine)->dropped_rows > before.dropped_rows);
    assert_int_equal(engine_counters(engine)->predictions - before.predictions, MADE);
    engine_close(engine);
    tiny_close(&tiny);
}

/* Five generated tokens, three loops, all 243 vectors of depths, both policies; proposals of the model's own, right,
 * wrong, and mixed. */
static void test_every_depth_vector(void **state) {
    (void)state;
    struct tiny tiny;
    looplm_error err;
    tiny_open(&tiny, 3, WEIGHT_F32, NULL, 1);
    struct engine_options engine_options = {
        .rows_max = 32, .sequences_max = 1, .kv_positions = 64, .planes = 3, .kv_type = KV_F32, .poison = true};
    struct engine *engine;
    assert_int_equal(engine_open(&engine, tiny.model, &engine_options, &err), 0);
    int32_t early = 0;
    for (int policy = KV_POLICY_LAST_EXITED; policy <= KV_POLICY_FULL; policy++)
        for (int v = 0; v < 243; v += THIN(5)) {
            uint8_t depths[64];
            for (int i = 0, d = v; i<64; i++, d = d> 2 ? d / 3 : v) depths[i] = (uint8_t)(d % 3 + 1);
            static struct made plain, got;
            for (int way = -1; way < 4; way++) {
                struct stream stream = {way < 0 ? &plain : &got, way > 0 ? &plain : NULL,
                                        way == 3 ? 0.5f : (float)(way - 1)};
                struct sequence *s;
                struct sequence_options options = {.rule = {.kind = EXIT_FULL},
                                                   .policy = (enum kv_policy)policy,
                                                   .capacity = PROMPT + 7,
                                                   .sampler = {0.6f, 1, 0, 0, 1, (uint64_t)v},
                                                   .speculate = way < 0 ? SPECULATE_OFF : SPECULATE_ALWAYS,
                                                   .depths = depths,
                                                   .on_prediction = take,
                                                   .on_proposal = force,
                                                   .context = &stream};
                memset(stream.made, 0, sizeof *stream.made);
                assert_int_equal(sequence_open(&s, engine, &options, &err), 0);
                sequence_generate(s, true);
                assert_int_equal(sequence_feed(s, prompt, NULL, PROMPT, &err), 0);
                run(engine);
                sequence_close(s);
                assert_int_equal(stream.made->n, 7);
                if (way >= 0 && memcmp(&plain, &got, sizeof got))
                    fail_msg("depths %d, policy %d, way %d differ", v, policy, way);
            }
            for (int i = 1; i < 7; i++) early += plain.loops[i] < 3;
        }
    assert_true(early > 243 / THIN(5) * 4);
    engine_close(engine);
    tiny_close(&tiny);
}

/* Sixteen in a batch, some of them speculating, with too few rows for all. */
static void test_batch(void **state) {
    (void)state;
    struct tiny tiny;
    static struct made together[16];
    static struct stream streams[16];
    static struct made alone;
    tiny_open(&tiny, R, WEIGHT_F32, NULL, 2);
    for (int32_t rows = 8; rows <= 64; rows *= 2) {
        struct engine *engine = open_engine(&tiny, rows, KV_F32);
        struct sequence *s[16];
        struct setting settings[16];
        for (int i = 0; i < 16; i++) {
            settings[i] = (struct setting){rules[i % RULES], i % 3 ? KV_POLICY_LAST_EXITED : KV_POLICY_FULL,
                                           i % 2 ? 0.8f : 0, 1, (uint64_t)i};
            streams[i] = (struct stream){&together[i], NULL, 0};
            s[i] = start(engine, &settings[i], (enum speculate)(i * 5 % 3), &streams[i]);
        }
        run(engine);
        for (int i = 0; i < 16; i++) sequence_close(s[i]);
        for (int i = 0; i < 16; i++) {
            generate(engine, &settings[i], SPECULATE_OFF, &(struct stream){&alone, NULL, 0});
            assert_same(&settings[i], &alone, &together[i]);
        }
        engine_close(engine);
    }
    tiny_close(&tiny);
}

/* A caller that takes one token at a time, looks away between them, and now and then feeds one of its own. */
static void take_one(void *context, struct sequence *s, const struct prediction *p) {
    struct made *m = context;
    if (p->id < 0) return;
    m->ids[m->n] = p->id;
    m->loops[m->n] = p->loops;
    m->logprob[m->n++] = p->logprob;
    sequence_generate(s, false);
}

static void read_and_feed(struct engine *engine, const struct setting *setting, enum speculate speculate,
                          int settle_every, struct made *made) {
    struct sequence *s = NULL;
    looplm_error err;
    struct sequence_options options = {.policy = setting->policy,
                                       .capacity = 64,
                                       .sampler = {setting->temperature, 1, 0, 0, 1, setting->seed},
                                       .speculate = speculate,
                                       .on_prediction = take_one,
                                       .context = made};
    memset(made, 0, sizeof *made);
    if (exit_rule_parse(&options.rule, setting->rule, &err) || sequence_open(&s, engine, &options, &err) ||
        sequence_feed(s, prompt, NULL, PROMPT, &err))
        fail_msg("%s", err.message);
    while (made->n < MADE) {
        int32_t before = made->n;
        sequence_generate(s, true);
        for (bool ran = true; made->n == before;) {
            assert_int_equal(engine_step(engine, &ran, &err), 0);
            assert_true(ran);
        }
        assert_int_equal(made->n, before + 1);
        if (made->n % 7 == 3) assert_int_equal(sequence_feed(s, prompt + made->n % PROMPT, NULL, 1, &err), 0);
        if (settle_every && made->n % settle_every == 0) assert_int_equal(sequence_settle(s, &err), 0);
        sequence_generate(s, false);
    }
    sequence_close(s);
}

static void test_pauses(void **state) {
    (void)state;
    struct tiny tiny;
    static struct made plain, got;
    tiny_open(&tiny, R, WEIGHT_F32, NULL, 1);
    struct engine *engine = open_engine(&tiny, 32, KV_F32);
    for (int i = 0; i < RULES; i++)
        for (int policy = KV_POLICY_LAST_EXITED; policy <= KV_POLICY_FULL; policy++)
            for (int settle = 0; settle < 6; settle += 5) {
                struct setting setting = {rules[i], (enum kv_policy)policy, 0.5f, 1, 11};
                read_and_feed(engine, &setting, SPECULATE_OFF, settle, &plain);
                read_and_feed(engine, &setting, SPECULATE_ALWAYS, settle, &got);
                assert_same(&setting, &plain, &got);
            }
    engine_close(engine);
    tiny_close(&tiny);
}

/* The last places of a context. */
static void test_full_context(void **state) {
    (void)state;
    struct tiny tiny;
    looplm_error err;
    static struct made made[2];
    int32_t lengths[2];
    tiny_open(&tiny, R, WEIGHT_F32, NULL, 1);
    struct engine *engine = open_engine(&tiny, 32, KV_F32);
    for (int i = 0; i < 2; i++) {
        struct stream stream = {&made[i], NULL, 0};
        struct sequence *s;
        struct sequence_options options = {.rule = {.kind = EXIT_Q, .threshold = 0.5f},
                                           .capacity = 20,
                                           .sampler = {0, 1, 0, 0, 1, 0},
                                           .speculate = i ? SPECULATE_ALWAYS : SPECULATE_OFF,
                                           .on_prediction = take,
                                           .context = &stream};
        assert_int_equal(sequence_open(&s, engine, &options, &err), 0);
        sequence_generate(s, true);
        assert_int_equal(sequence_feed(s, prompt, NULL, PROMPT, &err), 0);
        run(engine);
        assert_true(sequence_idle(s));
        lengths[i] = sequence_length(s);
        sequence_close(s);
    }
    assert_int_equal(lengths[0], 20);
    assert_int_equal(lengths[1], 20);
    assert_memory_equal(&made[0], &made[1], sizeof made[0]);
    engine_close(engine);
    tiny_close(&tiny);
}

static void test_refusals(void **state) {
    (void)state;
    struct tiny tiny;
    looplm_error err;
    struct sequence *s;
    tiny_open(&tiny, R, WEIGHT_F32, NULL, 1);
    struct engine *engine = open_engine(&tiny, 32, KV_F32);
    struct sequence_options options = {
        .capacity = 20, .sampler = {0, 1, 0, 0, 1, 0}, .speculate = SPECULATE_WAVEFRONT, .score = true};
    assert_int_equal(sequence_open(&s, engine, &options, &err), LOOPLM_UNSUPPORTED);
    engine_close(engine);
    tiny_close(&tiny);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32),          cmocka_unit_test(test_q4),
                                       cmocka_unit_test(test_passes),       cmocka_unit_test(test_every_depth_vector),
                                       cmocka_unit_test(test_batch),        cmocka_unit_test(test_pauses),
                                       cmocka_unit_test(test_full_context), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
