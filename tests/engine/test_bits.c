/* The bits promise: whoever asks for a row, and in whatever company it runs, it has the same bits.
 *
 * Five tokens, three loops, all 243 vectors of forced depths, both KV policies: one token at a time, in chunks,
 * replayed at recorded depths, by the trainer's forward pass, and saved and resumed. Then batches, threads and kernel
 * tables. KV blocks are poisoned with NaN between uses throughout. */
#include "base/file.h"
#include "engine/session_file.h"
#include "support/support.h"
#include "support/tiny.h"
#include "tensor/cpu/cpu.h"
#include "train/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N 5
#define R 3
#define V 67

static const int32_t ids[N] = {5, 61, 8, 8, 33};

struct result {
    real logits[N][V], lse[N];
    float probs[N][R];
    int32_t loops[N];
};

static void keep(void *context, struct sequence *sequence, const struct prediction *p) {
    (void)sequence;
    struct result *r = context;
    memcpy(r->logits[p->position], p->logits, sizeof r->logits[0]);
    memcpy(r->probs[p->position], p->exit_probs, (size_t)p->loops * sizeof(float));
    r->lse[p->position] = p->lse;
    r->loops[p->position] = p->loops;
}

static struct engine *engine_of(struct tiny *tiny, int32_t rows_max, int32_t sequences, enum kv_type kv_type) {
    struct engine *engine;
    looplm_error err = {0};
    struct engine_options options = {.rows_max = rows_max,
                                     .sequences_max = sequences,
                                     .kv_positions = 64 * sequences,
                                     .planes = R,
                                     .kv_type = kv_type,
                                     .poison = true};
    if (engine_open(&engine, tiny->model, &options, &err)) fail_msg("%s", err.message);
    return engine;
}

static struct sequence *sequence_of(struct engine *engine, enum kv_policy policy, struct result *result) {
    struct sequence *s;
    looplm_error err = {0};
    struct sequence_options options = {.rule = {.kind = EXIT_FULL},
                                       .policy = policy,
                                       .capacity = 64,
                                       .sampler = {0, 1, 0, 0, 1, 0},
                                       .score = true,
                                       .on_prediction = keep,
                                       .context = result};
    if (sequence_open(&s, engine, &options, &err)) fail_msg("%s", err.message);
    return s;
}

static void run_to_idle(struct engine *engine) {
    bool ran = true;
    looplm_error err = {0};
    while (ran)
        if (engine_step(engine, &ran, &err)) fail_msg("%s", err.message);
}

/* Feeds positions [first, last) in pieces of `piece`. */
static void feed(struct sequence *s, struct engine *engine, const uint8_t *depths, int32_t first, int32_t last,
                 int32_t piece) {
    looplm_error err = {0};
    for (int32_t i = first; i < last; i += piece) {
        if (sequence_feed(s, ids + i, depths + i, last - i < piece ? last - i : piece, &err))
            fail_msg("%s", err.message);
        run_to_idle(engine);
    }
}

static void assert_same(const char *how, const uint8_t *d, const struct result *a, const struct result *b,
                        int32_t from) {
    for (int32_t i = from; i < N; i++) {
        if (memcmp(a->logits[i], b->logits[i], sizeof a->logits[i]) || a->lse[i] != b->lse[i] ||
            a->loops[i] != b->loops[i] || memcmp(a->probs[i], b->probs[i], (size_t)a->loops[i] * sizeof(float)))
            fail_msg("%s: position %d differs at depths %d%d%d%d%d", how, i, d[0], d[1], d[2], d[3], d[4]);
    }
}

static void one_way(struct engine *engine, enum kv_policy policy, const uint8_t *depths, int32_t piece,
                    struct result *result) {
    struct sequence *s = sequence_of(engine, policy, result);
    feed(s, engine, depths, 0, N, piece);
    sequence_close(s);
}

static void replay(struct engine *engine, enum kv_policy policy, const uint8_t *depths, struct result *result) {
    struct sequence *first = sequence_of(engine, policy, result);
    feed(first, engine, depths, 0, N, 1);
    uint8_t recorded[N];
    memcpy(recorded, sequence_kv(first)->left, N);
    assert_memory_equal(recorded, depths, N);
    memset(result, 0, sizeof *result);
    struct sequence *again = sequence_of(engine, policy, result);
    feed(again, engine, recorded, 0, N, N);
    sequence_close(first);
    sequence_close(again);
}

/* Two tokens, saved, resumed in another sequence, three more. */
static void save_resume(struct engine *engine, enum kv_policy policy, const uint8_t *depths, const char *path,
                        struct result *result) {
    looplm_error err = {0};
    struct sequence *s = sequence_of(engine, policy, result);
    feed(s, engine, depths, 0, 2, 1);
    if (sequence_settle(s, &err) || session_file_write(s, "{}", path, &err)) fail_msg("%s", err.message);
    sequence_close(s);
    struct safetensors st;
    if (safetensors_open(&st, path, &err)) fail_msg("%s", err.message);
    s = sequence_of(engine, policy, result);
    if (session_file_restore(s, &st, path, false, &err)) fail_msg("%s", err.message);
    safetensors_close(&st);
    feed(s, engine, depths, 2, N, 1);
    sequence_close(s);
}

/* The trainer's cross-entropy and exit probabilities at each position's own exit. Under `full` a token's row is the one
 * that ran at full depth. */
static void assert_training_same(struct unit_workspace *ws, enum kv_policy policy, const uint8_t *depths,
                                 const struct result *want) {
    int32_t targets[N] = {1, 2, 66, 4, 0};
    struct unit_input input = {
        .ids = ids, .targets = targets, .depths = policy == KV_POLICY_LAST_EXITED ? depths : NULL, .n = N};
    struct objective objective = {.kind = OBJECTIVE_STAGE1, .beta = 0.1};
    struct unit_result sums;
    real ce[R][N], probs[R][N];
    unit_evaluate(ws, &input, &objective, &sums, &ce[0][0], &probs[0][0]);
    for (int32_t i = 0; i < N; i++) {
        int32_t r = depths[i] - 1;
        real expected = want->lse[i] - want->logits[i][targets[i]];
        if (ce[r][i] != expected)
            fail_msg("training forward: position %d at depths %d%d%d%d%d: cross-entropy %.9g, engine %.9g", i,
                     depths[0], depths[1], depths[2], depths[3], depths[4], (double)ce[r][i], (double)expected);
        for (int32_t k = 0; k < r; k++)
            if ((float)probs[k][i] != want->probs[i][k])
                fail_msg("training forward: p(%d) of position %d: %.9g, engine %.9g", k + 1, i, (double)probs[k][i],
                         (double)want->probs[i][k]);
    }
}

static void every_depth_vector(enum kv_type kv_type, enum weight_type weights) {
    struct tiny tiny;
    tiny_open(&tiny, R, weights, NULL, 1);
    struct engine *engine = engine_of(&tiny, 8 + ENGINE_BACKLOG_MAX, 2, kv_type);
    struct unit_workspace *ws = NULL;
    looplm_error err = {0};
    struct unit_options unit = {.positions_max = 16};
    bool trains = weights <= WEIGHT_BF16 && kv_type != KV_Q8; /* training keeps keys and values in f32 or bf16 */
    if (trains && unit_open(&ws, tiny.model, &unit, &err)) fail_msg("%s", err.message);
    char *scratch = support_make_directory(), *path = file_join(scratch, "session");
    int distinct = 0;
    struct result before = {0};
    for (int policy = KV_POLICY_LAST_EXITED; policy <= KV_POLICY_FULL; policy++) {
        for (int v = 0; v < 243; v += THIN(5)) {
            uint8_t d[N] = {(uint8_t)(v % 3 + 1), (uint8_t)(v / 3 % 3 + 1), (uint8_t)(v / 9 % 3 + 1),
                            (uint8_t)(v / 27 % 3 + 1), (uint8_t)(v / 81 + 1)};
            struct result decode = {0}, other = {0};
            one_way(engine, (enum kv_policy)policy, d, 1, &decode);
            one_way(engine, (enum kv_policy)policy, d, N, &other);
            assert_same("one chunk", d, &decode, &other, 0);
            one_way(engine, (enum kv_policy)policy, d, 2, &other);
            assert_same("chunks of two", d, &decode, &other, 0);
            replay(engine, (enum kv_policy)policy, d, &other);
            assert_same("replay", d, &decode, &other, 0);
            save_resume(engine, (enum kv_policy)policy, d, path, &other);
            assert_same("saved and resumed", d, &decode, &other, 2);
            if (trains) assert_training_same(ws, (enum kv_policy)policy, d, &decode);
            distinct += memcmp(before.logits[N - 1], decode.logits[N - 1], sizeof before.logits[0]) != 0;
            before = decode;
        }
    }
    assert_true(distinct >= 100 / THIN(5)); /* neighbours in the list often differ, so equality above means something */
    free(path);
    support_remove_directory(scratch);
    unit_close(ws);
    engine_close(engine);
    tiny_close(&tiny);
}

static void test_f32(void **state) {
    (void)state;
    every_depth_vector(KV_F32, WEIGHT_F32);
}

static void test_bf16(void **state) {
    (void)state;
    every_depth_vector(KV_BF16, WEIGHT_BF16);
}

static void test_q8(void **state) {
    (void)state;
    every_depth_vector(KV_F32, WEIGHT_Q8);
}

static void test_q4(void **state) {
    (void)state;
    every_depth_vector(KV_BF16, WEIGHT_Q4);
}

static void test_f32_kv_q8(void **state) {
    (void)state;
    every_depth_vector(KV_Q8, WEIGHT_F32);
}

static void test_q8_kv_q8(void **state) {
    (void)state;
    every_depth_vector(KV_Q8, WEIGHT_Q8);
}

/* Sixteen sequences with depths of their own share every pass; each must be what it is alone. */
static void in_batch(struct engine *engine, enum kv_policy policy, struct result results[16]) {
    struct sequence *s[16];
    looplm_error err = {0};
    uint8_t d[16][N];
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < N; j++) d[i][j] = (uint8_t)((i * 7 + j * 5 + i * j) % 3 + 1);
        s[i] = sequence_of(engine, policy, &results[i]);
    }
    for (int j = 0; j < N; j++) {
        bool ran;
        for (int i = 0; i < 16; i++)
            if (sequence_feed(s[i], ids + j, &d[i][j], 1, &err)) fail_msg("%s", err.message);
        if (engine_step(engine, &ran, &err))
            fail_msg("%s", err.message); /* one step, not to idle: sequences drift apart */
    }
    run_to_idle(engine);
    for (int i = 0; i < 16; i++) sequence_close(s[i]);
    for (int i = 0; i < 16; i++) {
        struct result alone = {0};
        one_way(engine, policy, d[i], 1, &alone);
        assert_same("in a batch of 16", d[i], &alone, &results[i], 0);
    }
}

/* Batches on every table with one, two and three threads: with f32, q8 and q4 weights all of them have the same bits.
 */
static void every_table(enum weight_type weights, enum kv_type kv_type) {
    static struct result first[2][16], here[16];
    bool have_first = false;
    for (const struct cpu_table *const *t = cpu_tables(); *t; t++) {
        for (int threads = 1; threads <= 3 && (*t)->supported(); threads++) {
            struct tiny tiny;
            tiny_open(&tiny, R, weights, (*t)->name, threads);
            struct engine *engine = engine_of(&tiny, 64, 17, kv_type);
            for (int policy = KV_POLICY_LAST_EXITED; policy <= KV_POLICY_FULL; policy++) {
                memset(here, 0, sizeof here);
                in_batch(engine, (enum kv_policy)policy, here);
                if (!have_first) memcpy(first[policy], here, sizeof here);
                if (memcmp(first[policy], here, sizeof here))
                    fail_msg("table %s with %d threads differs from the first", (*t)->name, threads);
            }
            have_first = true;
            engine_close(engine);
            tiny_close(&tiny);
        }
    }
}

static void test_batch_threads_tables(void **state) {
    (void)state;
    every_table(WEIGHT_F32, KV_F32);
    every_table(WEIGHT_Q8, KV_Q8);
    every_table(WEIGHT_Q4, KV_BF16);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32),
                                       cmocka_unit_test(test_bf16),
                                       cmocka_unit_test(test_q8),
                                       cmocka_unit_test(test_q4),
                                       cmocka_unit_test(test_f32_kv_q8),
                                       cmocka_unit_test(test_q8_kv_q8),
                                       cmocka_unit_test(test_batch_threads_tables)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
