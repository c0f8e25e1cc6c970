/* Generation: exits save their loops for real, rules at their ends meet each other, batches change nothing, and public
 * sessions resume with the same bits. */
#include "base/file.h"
#include "engine/engine.h"
#include "engine/study.h"
#include "model/safetensors.h"
#include "support/support.h"
#include "support/tiny.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define R 4
#define V 67
#define MADE 24

static const int32_t prompt[] = {3, 14, 15, 9, 26, 5, 35};
#define PROMPT 7

struct made {
    int32_t ids[MADE], loops[MADE];
    real logprob[MADE];
    int32_t n;
};

static void take(void *context, struct sequence *s, const struct prediction *p) {
    struct made *m = context;
    if (p->id < 0) return;
    m->ids[m->n] = p->id;
    m->loops[m->n] = p->loops;
    m->logprob[m->n++] = p->logprob;
    if (m->n == MADE) sequence_generate(s, false);
}

static struct engine *open_engine(struct tiny *tiny, int32_t rows, int32_t planes) {
    struct engine *engine;
    looplm_error err;
    struct engine_options options = {.rows_max = rows,
                                     .sequences_max = 16,
                                     .kv_positions = 16 * 64,
                                     .planes = planes,
                                     .kv_type = KV_F32,
                                     .poison = true};
    if (engine_open(&engine, tiny->model, &options, &err)) fail_msg("%s", err.message);
    return engine;
}

static struct sequence *start(struct engine *engine, const char *rule, enum kv_policy policy, uint64_t seed,
                              struct made *made) {
    struct sequence *s = NULL;
    looplm_error err;
    struct sequence_options options = {.policy = policy,
                                       .capacity = 64,
                                       .sampler = {seed ? 1.0f : 0.0f, 1, 0, 0, 1, seed},
                                       .on_prediction = take,
                                       .context = made};
    *made = (struct made){0};
    if (exit_rule_parse(&options.rule, rule, &err) || sequence_open(&s, engine, &options, &err))
        fail_msg("%s", err.message);
    sequence_generate(s, true);
    if (sequence_feed(s, prompt, NULL, PROMPT, &err)) fail_msg("%s", err.message);
    return s;
}

static int32_t run(struct engine *engine) {
    bool ran = true;
    looplm_error err;
    int32_t passes = -1;
    while (ran) {
        if (engine_step(engine, &ran, &err)) fail_msg("%s", err.message);
        passes++;
    }
    return passes;
}

static int32_t generate(struct engine *engine, const char *rule, enum kv_policy policy, uint64_t seed,
                        struct made *made) {
    struct sequence *s = start(engine, rule, policy, seed, made);
    int32_t passes = run(engine);
    assert_int_equal(made->n, MADE);
    sequence_close(s);
    return passes;
}

static void assert_made_equal(const struct made *a, const struct made *b) {
    assert_memory_equal(a, b, sizeof *a);
}

/* A token that leaves at loop e costs e passes. The first token comes with the prompt's R passes; the last one
 * generated is never run. */
static void test_exit_saves_passes(void **state) {
    (void)state;
    struct tiny tiny;
    struct made made;
    tiny_open(&tiny, R, WEIGHT_F32, NULL, 1);
    struct engine *engine = open_engine(&tiny, 32, R);
    assert_int_equal(generate(engine, "full", KV_POLICY_LAST_EXITED, 0, &made), R + (MADE - 1) * R);
    assert_int_equal(generate(engine, "q=0", KV_POLICY_LAST_EXITED, 0, &made), R + (MADE - 1) * 1);
    assert_int_equal(generate(engine, "q=0,min=2", KV_POLICY_LAST_EXITED, 0, &made), R + (MADE - 1) * 2);
    assert_int_equal(generate(engine, "loops=2", KV_POLICY_LAST_EXITED, 0, &made), 2 + (MADE - 1) * 2);
    int32_t passes = generate(engine, "q=0.6", KV_POLICY_LAST_EXITED, 0, &made), loops = 0, kinds = 0;
    for (int i = 1; i < MADE; i++) {
        loops += made.loops[i];
        kinds |= 1 << made.loops[i];
    }
    assert_int_equal(passes, R + loops);
    assert_true((kinds & (kinds - 1)) != 0); /* depths do differ from token to token */
    engine_close(engine);
    tiny_close(&tiny);
}

static void test_rules_meet(void **state) {
    (void)state;
    struct tiny tiny;
    struct made full, other;
    tiny_open(&tiny, R, WEIGHT_F32, NULL, 1);
    struct engine *engine = open_engine(&tiny, 32, 6);
    for (uint64_t seed = 0; seed < 2; seed++) {
        generate(engine, "full", KV_POLICY_LAST_EXITED, seed, &full);
        static const char *const same[] = {"q=1",     "q=1.5",     "diff=0",          "conf=1.01",
                                           "loops=4", "q=0,min=4", "full,min=1,max=4"};
        for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
            generate(engine, same[i], KV_POLICY_LAST_EXITED, seed, &other);
            assert_made_equal(&full, &other);
        }
        generate(engine, "full", KV_POLICY_FULL, seed, &other);
        assert_made_equal(&full, &other);
        struct made first;
        generate(engine, "q=0", KV_POLICY_FULL, seed, &first);
        generate(engine, "full,max=1", KV_POLICY_FULL, seed, &other);
        assert_made_equal(&first, &other);
        generate(engine, "conf=0", KV_POLICY_FULL, seed, &other);
        assert_made_equal(&first, &other);
        generate(engine, "loops=6", KV_POLICY_LAST_EXITED, seed, &other);
        assert_memory_not_equal(full.logprob, other.logprob, sizeof full.logprob);
    }
    engine_close(engine);
    tiny_close(&tiny);
}

struct mixed {
    real logits[V];
    int seen;
};
static void take_mixed(void *context, struct sequence *s, const struct prediction *p) {
    (void)s;
    struct mixed *m = context;
    memcpy(m->logits, p->logits, sizeof m->logits);
    m->seen = p->loops;
}

/* mix: the p-weighted mean of every loop's logits at the last prompt position, from study's hidden states by plain
 * arithmetic. */
static void test_mix(void **state) {
    (void)state;
    struct tiny tiny;
    tiny_open(&tiny, R, WEIGHT_F32, NULL, 1);
    struct engine *engine = open_engine(&tiny, 32, R);
    struct mixed got = {0};
    struct sequence *s;
    looplm_error err;
    struct sequence_options options = {.rule = {.kind = EXIT_MIX},
                                       .capacity = 64,
                                       .sampler = {0, 1, 0, 0, 1, 0},
                                       .on_prediction = take_mixed,
                                       .context = &got};
    assert_int_equal(sequence_open(&s, engine, &options, &err), 0);
    sequence_generate(s, true);
    assert_int_equal(sequence_feed(s, prompt, NULL, PROMPT, &err), 0);
    while (!got.seen) {
        bool ran;
        assert_int_equal(engine_step(engine, &ran, &err), 0);
    }
    assert_int_equal(got.seen, R);
    struct study study;
    assert_int_equal(study_run(&study, tiny.model, prompt, PROMPT, 0, KV_F32, &err), 0);
    const real *head = params_at(&tiny.params, TENSOR_HEAD, -1);
    for (int v = 0; v < V; v++) {
        double want = 0;
        for (int r = 0; r < R; r++) {
            double logit = 0;
            for (int d = 0; d < 32; d++)
                logit += (double)study.hidden[(r * PROMPT + PROMPT - 1) * 32 + d] * (double)head[v * 32 + d];
            want += (double)study.exit[r * PROMPT + PROMPT - 1] * logit;
        }
        assert_true(fabs(want - (double)got.logits[v]) < 1e-4 * (1 + fabs(want)));
    }
    study_free(&study);
    sequence_close(s);
    engine_close(engine);
    tiny_close(&tiny);
}

/* Sixteen sequences with rules and seeds of their own, in one batch: each is what it is alone, and no pass is spent on
 * nothing. */
static void test_batch(void **state) {
    (void)state;
    static const char *const rules[] = {"full",     "q=0.6",   "q=0.4", "diff=0.6",
                                        "conf=0.2", "loops=3", "mix",   "q=0.8,min=2"};
    struct tiny tiny;
    static struct made together[16];
    struct made alone;
    tiny_open(&tiny, R, WEIGHT_F32, NULL, 2);
    struct engine *engine = open_engine(&tiny, 16, R); /* too few rows for all prompts at once */
    struct sequence *s[16];
    for (int i = 0; i < 16; i++)
        s[i] = start(engine, rules[i % 8], i % 3 ? KV_POLICY_LAST_EXITED : KV_POLICY_FULL, (uint64_t)i, &together[i]);
    run(engine);
    for (int i = 0; i < 16; i++) sequence_close(s[i]);
    for (int i = 0; i < 16; i++) {
        generate(engine, rules[i % 8], i % 3 ? KV_POLICY_LAST_EXITED : KV_POLICY_FULL, (uint64_t)i, &alone);
        assert_made_equal(&alone, &together[i]);
    }
    engine_close(engine);
    tiny_close(&tiny);
}

/* full: rows that left early wait for a pass to drag them along. However few rows a pass has, they all get there: while
 * tokens are generated, and when a second turn comes on top of them. */
static void test_backlog(void **state) {
    (void)state;
    static const int32_t rows[] = {64, 1, 3, 8, 16, 20};
    static struct made made[6][2];
    struct tiny tiny;
    tiny_open(&tiny, R, WEIGHT_F32, NULL, 1);
    for (int i = 0; i < 6; i++) {
        struct engine *engine = open_engine(&tiny, rows[i], R);
        looplm_error err;
        struct sequence *s = start(engine, "q=0", KV_POLICY_FULL, 0, &made[i][0]);
        made[i][0].n = MADE - 12; /* so that twelve are made */
        run(engine);
        assert_int_equal(made[i][0].n, MADE);
        made[i][1] = made[i][0];
        for (int turn = 0; turn < 3; turn++) assert_int_equal(sequence_feed(s, prompt, NULL, PROMPT, &err), 0);
        made[i][0].n = MADE - 12;
        sequence_generate(s, true);
        run(engine);
        assert_int_equal(made[i][0].n, MADE);
        for (int turn = 0; turn < 2; turn++) assert_memory_equal(&made[i][turn], &made[0][turn], sizeof made[0][turn]);
        assert_int_equal(sequence_settle(s, &err), 0);
        sequence_close(s);
        engine_close(engine);
    }
    tiny_close(&tiny);
}

/* conf reads the head once a loop: the read that decides is the one that predicts. */
static void test_conf_reads_once(void **state) {
    (void)state;
    struct tiny tiny;
    struct made made;
    tiny_open(&tiny, R, WEIGHT_F32, NULL, 1);
    struct engine *engine = open_engine(&tiny, 32, R);
    generate(engine, "conf=0.3", KV_POLICY_LAST_EXITED, 0, &made);
    int64_t loops = 0;
    for (int i = 0; i < MADE; i++) loops += made.loops[i];
    assert_true(loops > MADE && loops < R * MADE);
    assert_int_equal(engine_counters(engine)->head_rows, loops);
    engine_close(engine);
    tiny_close(&tiny);
}

/* The engine's buffers are made for so many planes: a rule that needs more is refused. */
static void test_too_many_planes(void **state) {
    (void)state;
    struct tiny tiny;
    tiny_open(&tiny, R, WEIGHT_F32, NULL, 1);
    struct engine *engine = open_engine(&tiny, 32, R);
    struct sequence *s;
    looplm_error err;
    struct sequence_options options = {
        .rule = {.kind = EXIT_LOOPS, .loops = R + 2}, .capacity = 64, .sampler = {0, 1, 0, 0, 1, 0}};
    assert_int_equal(sequence_open(&s, engine, &options, &err), LOOPLM_LIMIT);
    support_assert_error(&err, LOOPLM_LIMIT, "6 loops", "4", NULL);
    engine_close(engine);
    tiny_close(&tiny);
}

/* ---- the public interface, on a committed model directory
 * -------------------------------------------------------------- */

static looplm_model *open_golden(int threads) {
    char *directory = support_source_path("tests/golden/ouro-mha-r4");
    looplm_model *model;
    looplm_error err;
    looplm_model_options options = {.threads = threads};
    if (looplm_model_open(&model, directory, &options, &err)) fail_msg("%s", err.message);
    free(directory);
    return model;
}

static void next_tokens(looplm_session *session, looplm_token *out, int n) {
    looplm_error err;
    for (int i = 0; i < n; i++) {
        memset(&out[i], 0, sizeof out[i]);
        if (looplm_session_next(session, &out[i], &err)) fail_msg("%s", err.message);
    }
}

static void test_session_resumes(void **state) {
    (void)state;
    looplm_model *model = open_golden(1);
    looplm_error err;
    char *scratch = support_make_directory(), *path = file_join(scratch, "s.session");
    static const char *const policies[] = {"last-exited", "full", "shared-last", "shared-mean", "shared-first"};
    for (int policy = 0; policy < 5; policy++) {
        looplm_session_options options = {
            .exit = "q=0.5", .kv = policies[policy], .context = 64, .temperature = 0.9f, .top_p = 0.9f, .seed = 3};
        looplm_session *a, *b;
        looplm_token straight[20], resumed[20];
        assert_int_equal(looplm_session_open(&a, model, &options, &err), 0);
        assert_int_equal(looplm_session_feed(a, prompt, PROMPT, &err), 0);
        next_tokens(a, straight, 20);
        looplm_session_close(a);

        assert_int_equal(looplm_session_open(&a, model, &options, &err), 0);
        assert_int_equal(looplm_session_feed(a, prompt, PROMPT, &err), 0);
        next_tokens(a, resumed, 9);
        if (looplm_session_save(a, path, &err)) fail_msg("%s", err.message);
        looplm_session_close(a);
        if (looplm_session_load(&b, model, path, &err)) fail_msg("%s", err.message);
        next_tokens(b, resumed + 9, 11);
        assert_memory_equal(straight, resumed, sizeof straight);
        size_t n;
        const int32_t *ids = looplm_session_ids(b, &n);
        assert_int_equal(n, PROMPT + 20);
        assert_int_equal(ids[n - 1], straight[19].id);
        looplm_session_close(b);
    }
    free(path);
    support_remove_directory(scratch);
    looplm_model_close(model);
}

/* A generated token and a second turn that were not run yet, saved: each keeps the depth that was asked for it. The ids
 * are aligned whatever stands beside them. */
static void save_between_turns(looplm_model *model, const looplm_session_options *options, const char *path) {
    looplm_error err;
    looplm_session *a, *b;
    looplm_token straight[4], resumed[4];
    assert_int_equal(looplm_session_open(&a, model, options, &err), 0);
    assert_int_equal(looplm_session_feed(a, prompt, 3, &err), 0);
    next_tokens(a, straight, 2);
    assert_int_equal(looplm_session_feed(a, prompt + 3, 4, &err), 0);
    assert_int_equal(looplm_session_save(a, path, &err), 0);
    next_tokens(a, straight + 2, 2);
    struct safetensors st;
    assert_int_equal(safetensors_open(&st, path, &err), 0);
    assert_int_equal((uintptr_t)safetensors_data(&st, safetensors_find(&st, "ids")) % sizeof(int32_t), 0);
    safetensors_close(&st);
    if (looplm_session_load(&b, model, path, &err)) fail_msg("%s", err.message);
    next_tokens(b, resumed, 2);
    assert_memory_equal(straight + 2, resumed, 2 * sizeof *resumed);
    looplm_session_close(a);
    looplm_session_close(b);
}

static void test_session_turns(void **state) {
    (void)state;
    looplm_model *model = open_golden(1);
    char *scratch = support_make_directory(), *path = file_join(scratch, "s.session");
    static const looplm_session_options options[] = {
        {.exit = "q=0.5", .context = 64},
        {.exit = "q=0.4", .context = 64, .seed = 10},
        {.exit = "q=0.3", .context = 64, .seed = 100, .adaptive_prompt = 1},
        {.exit = "diff=0.8,min=2", .context = 64},
        {.exit = "q=0", .context = 64, .seed = 1000, .kv = "full"},
        {.exit = "loops=6", .context = 64, .seed = UINT64_MAX, .temperature = 1, .kv_type = "bf16"},
    };
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) save_between_turns(model, &options[i], path);
    free(path);
    support_remove_directory(scratch);
    looplm_model_close(model);
}

/* A long second turn on top of tokens whose deeper loops wait (full), in chunks of four and all at once. */
static void test_session_backlog(void **state) {
    (void)state;
    looplm_model *model = open_golden(1);
    looplm_error err;
    looplm_token made[2][6];
    for (int i = 0; i < 2; i++) {
        looplm_session_options options = {.exit = "q=0", .kv = "full", .context = 64, .chunk = i ? 4 : 64};
        looplm_session *s;
        looplm_token first[10];
        assert_int_equal(looplm_session_open(&s, model, &options, &err), 0);
        assert_int_equal(looplm_session_feed(s, prompt, PROMPT, &err), 0);
        next_tokens(s, first, 10);
        for (int turn = 0; turn < 4; turn++) assert_int_equal(looplm_session_feed(s, prompt, PROMPT, &err), 0);
        next_tokens(s, made[i], 6);
        looplm_session_close(s);
    }
    assert_memory_equal(made[0], made[1], sizeof made[0]);
    looplm_model_close(model);
}

/* Two sessions of one model, each in a thread of its own: what they make is what each makes alone. */
struct thread_work {
    looplm_model *model;
    const char *exit;
    looplm_token made[2][12]; /* in two sessions, one after the other */
    int failures;
};

static void *make_tokens(void *context) {
    struct thread_work *w = context;
    for (int i = 0; i < 2; i++) {
        looplm_session_options options = {.exit = w->exit, .context = 64, .temperature = 1, .seed = 5};
        looplm_session *s = NULL;
        w->failures +=
            looplm_session_open(&s, w->model, &options, NULL) || looplm_session_feed(s, prompt, PROMPT, NULL);
        for (int j = 0; j < 12 && !w->failures; j++) w->failures += looplm_session_next(s, &w->made[i][j], NULL) != 0;
        looplm_session_close(s);
    }
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    static struct thread_work alone[2], together[2];
    looplm_model *model = open_golden(2);
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        alone[i] = together[i] = (struct thread_work){.model = model, .exit = i ? "q=0.6" : "conf=0.2"};
        make_tokens(&alone[i]);
    }
    for (int i = 0; i < 2; i++) assert_int_equal(pthread_create(&threads[i], NULL, make_tokens, &together[i]), 0);
    for (int i = 0; i < 2; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(together[i].failures, 0);
        assert_memory_equal(alone[i].made, together[i].made, sizeof alone[i].made);
    }
    looplm_model_close(model);
}

static void test_session_errors(void **state) {
    (void)state;
    looplm_model *model = open_golden(1);
    looplm_error err;
    looplm_session *s;
    looplm_token token;
    looplm_session_options options = {.context = 8};
    assert_int_equal(looplm_session_open(&s, model, &options, &err), 0);
    assert_int_equal(looplm_session_next(s, &token, &err), LOOPLM_USAGE);
    support_assert_error(&err, LOOPLM_USAGE, "feed it a prompt", NULL);
    int32_t far = 1000000;
    assert_int_equal(looplm_session_feed(s, &far, 1, &err), LOOPLM_USAGE);
    support_assert_error(&err, LOOPLM_USAGE, "1000000", "vocabulary", NULL);
    assert_int_equal(looplm_session_feed(s, prompt, PROMPT, &err), 0);
    assert_int_equal(looplm_session_feed(s, prompt, PROMPT, &err), LOOPLM_LIMIT);
    support_assert_error(&err, LOOPLM_LIMIT, "context", NULL);
    assert_int_equal(looplm_session_next(s, &token, &err), 0);
    assert_int_equal(looplm_session_next(s, &token, &err), LOOPLM_LIMIT);
    looplm_session_close(s);
    char *scratch = support_make_directory(), *path = support_write_file(scratch, "not-a-session", "hello");
    assert_int_not_equal(looplm_session_load(&s, model, path, &err), 0);
    assert_non_null(strstr(err.message, path));
    free(path);
    char *weights = support_source_path("tests/golden/ouro-r1/model.safetensors");
    assert_int_equal(looplm_session_load(&s, model, weights, &err), LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "not a saved session", NULL);
    free(weights);
    looplm_session_options bad[] = {
        {.exit = "q=2x"}, {.kv = "ful"}, {.kv_type = "f16"}, {.context = 1 << 30}, {.temperature = -1}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(looplm_session_open(&s, model, &bad[i], &err), LOOPLM_USAGE);
    support_remove_directory(scratch);
    looplm_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_exit_saves_passes),
                                       cmocka_unit_test(test_rules_meet),
                                       cmocka_unit_test(test_mix),
                                       cmocka_unit_test(test_batch),
                                       cmocka_unit_test(test_backlog),
                                       cmocka_unit_test(test_conf_reads_once),
                                       cmocka_unit_test(test_too_many_planes),
                                       cmocka_unit_test(test_session_backlog),
                                       cmocka_unit_test(test_threads),
                                       cmocka_unit_test(test_session_resumes),
                                       cmocka_unit_test(test_session_turns),
                                       cmocka_unit_test(test_session_errors)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
