/* The KV policies shared-*: the engine against a reference that keeps one plane by hand. For every generated row the
 * reference copies the blocks of the past, lets the row write its keys and values there, and after the last loop keeps
 * the copy of the loop that the policy names, or the mean over all copies: no tables, no joining, no parting. Logits
 * are the same, bit for bit. */
#include "engine/engine.h"
#include "support/kernels.h"
#include "support/support.h"
#include "support/tiny.h"

#include <stdlib.h>
#include <string.h>

#define R 3
#define V 67
#define PROMPT 60 /* the tokens after it cross the end of a block */
#define TURN 61   /* begins in a block that is joined, ends in the third */
#define MADE 9    /* tokens after each turn */
#define POSITIONS 192
#define BLOCKS (POSITIONS / KV_BLOCK)

static const uint8_t depth_pattern[] = {3, 1, 2, 2, 3, 1, 1, 3, 2};

struct reference {
    struct model *model;
    struct kv_geometry geometry;
    enum kv_policy policy;
    struct loop_workspace workspace;
    struct pass pass;
    void *past[BLOCKS], *plane[R][BLOCKS]; /* the one plane; those of a turn, or of a row */
    real *hidden;                          /* [POSITIONS, D] of the rows at hand */
    int32_t n;
};

static void reference_open(struct reference *f, struct model *model, enum kv_type type, enum kv_policy policy) {
    const struct model_config *c = &model->config;
    looplm_error err;
    *f = (struct reference){.model = model, .geometry = {type, c->layers, c->kv_heads, c->head_dim}, .policy = policy};
    if (loop_workspace_init(&f->workspace, model, POSITIONS, &err)) fail_msg("%s", err.message);
    size_t size = kv_block_size(&f->geometry);
    for (int i = 0; i < BLOCKS; i++) {
        f->past[i] = model->backend->alloc(model->backend, size);
        for (int r = 0; r < R; r++) f->plane[r][i] = model->backend->alloc(model->backend, size);
    }
    f->hidden = malloc(sizeof(real) * POSITIONS * (size_t)c->hidden);
}

static void reference_close(struct reference *f) {
    size_t size = kv_block_size(&f->geometry);
    struct backend *backend = f->model->backend;
    for (int i = 0; i < BLOCKS; i++) {
        backend->release(backend, f->past[i], size);
        for (int r = 0; r < R; r++) backend->release(backend, f->plane[r][i], size);
    }
    loop_workspace_free(&f->workspace);
    pass_free(&f->pass);
    free(f->hidden);
}

static void copy_blocks(const struct reference *f, void *const *to, void *const *from) {
    for (int i = 0; i < BLOCKS; i++) memcpy(to[i], from[i], kv_block_size(&f->geometry));
}

/* Rows of `count` positions at one loop, from ids or from what the loop before left. */
static void forward(struct reference *f, const int32_t *ids, int32_t count, int32_t loop, void *const *blocks) {
    const struct model_config *c = &f->model->config;
    real *x = f->workspace.buffers.layers->x;
    struct run run = {.count = count, .first = f->n, .loop = loop, .blocks = blocks};
    size_t size = sizeof(real) * (size_t)count * (size_t)c->hidden;
    pass_clear(&f->pass);
    if (loop == 0)
        pass_add(&f->pass, (struct op){.kind = OP_EMBED, .embed = {&f->model->embed, ids, x, count}});
    else
        memcpy(x, f->hidden, size);
    loop_record(&f->pass, f->model, &f->geometry, &run, 1, 0, &f->workspace.buffers);
    f->model->backend->execute(f->model->backend, &f->pass);
    memcpy(f->hidden, f->workspace.buffers.h, size);
}

static void head(struct reference *f, int32_t row, real *logits) {
    pass_clear(&f->pass);
    loop_record_head(&f->pass, f->model, f->hidden + (size_t)row * (size_t)f->model->config.hidden, 1, logits);
    f->model->backend->execute(f->model->backend, &f->pass);
}

/* What stays of `count` new positions that have run `depth` loops. */
static void keep(struct reference *f, int32_t count, int32_t depth) {
    struct kv_cache past = {f->geometry, POSITIONS, BLOCKS, f->past, NULL, 0}, planes[R];
    struct kv_place places[R];
    if (f->policy != KV_POLICY_SHARED_MEAN)
        copy_blocks(f, f->past, f->plane[f->policy == KV_POLICY_SHARED_FIRST ? 0 : depth - 1]);
    for (int32_t p = f->n; f->policy == KV_POLICY_SHARED_MEAN && p < f->n + count; p++) {
        for (int r = 0; r < depth; r++) {
            planes[r] = (struct kv_cache){f->geometry, POSITIONS, BLOCKS, f->plane[r], NULL, 0};
            places[r] = (struct kv_place){&planes[r], p};
        }
        kv_cache_set_mean(&past, p, places, depth);
    }
    f->n += count;
}

/* A turn with every plane; the logits of its last position, after `depth` loops, predict. */
static void reference_turn(struct reference *f, const int32_t *ids, int32_t n, real *logits) {
    for (int r = 0; r < R; r++) {
        copy_blocks(f, f->plane[r], f->past);
        forward(f, ids, n, r, f->plane[r]);
    }
    head(f, n - 1, logits);
    keep(f, n, R);
}

static void reference_row(struct reference *f, int32_t id, int32_t depth, real *logits) {
    for (int r = 0; r < depth; r++) {
        copy_blocks(f, f->plane[r], f->past);
        forward(f, &id, 1, r, f->plane[r]);
    }
    head(f, 0, logits);
    keep(f, 1, depth);
}

/* ---- the engine's side ------------------------------------------------------------------------------------------- */

struct taken {
    int32_t n, ids[2 * MADE];
    real logits[2 * MADE][V];
};

static void take(void *context, struct sequence *s, const struct prediction *p) {
    struct taken *t = context;
    if (p->id < 0) return;
    memcpy(t->logits[t->n], p->logits, sizeof t->logits[0]);
    t->ids[t->n++] = p->id;
    if (t->n % MADE == 0) sequence_generate(s, false);
}

static void run(struct engine *e) {
    looplm_error err;
    for (bool ran = true; ran;)
        if (engine_step(e, &ran, &err)) fail_msg("%s", err.message);
}

static int32_t prompt_id(int32_t i) {
    return (i * i * 5 + 11) % V;
}

/* Two turns, nine tokens after each; with `mate` another sequence runs beside it. Returns blocks after the prompt. */
static int64_t generate(struct model *model, enum kv_type type, enum kv_policy policy, int32_t chunk, bool mate,
                        struct taken *t) {
    struct engine *e;
    struct sequence *s = NULL, *other = NULL;
    looplm_error err;
    uint8_t depths[POSITIONS];
    int32_t ids[POSITIONS];
    struct taken *unused = calloc(1, sizeof *unused);
    for (int32_t i = 0; i < POSITIONS; i++) ids[i] = prompt_id(i), depths[i] = depth_pattern[i % 9];
    struct engine_options eo = {.rows_max = chunk + 1,
                                .sequences_max = 2,
                                .kv_positions = 2 * POSITIONS,
                                .planes = R,
                                .kv_type = type,
                                .poison = true};
    struct sequence_options o = {.rule = {.kind = EXIT_FULL},
                                 .policy = policy,
                                 .capacity = POSITIONS,
                                 .sampler = {0.7f, 1, 0, 0, 1, 5},
                                 .depths = depths,
                                 .on_prediction = take,
                                 .context = t};
    memset(t, 0, sizeof *t);
    if (engine_open(&e, model, &eo, &err) || sequence_open(&s, e, &o, &err)) fail_msg("%s", err.message);
    o.context = unused;
    if (mate && (sequence_open(&other, e, &o, &err) || sequence_feed(other, ids + 3, NULL, 40, &err)))
        fail_msg("%s", err.message);
    if (mate) sequence_generate(other, true);
    assert_int_equal(sequence_feed(s, ids, NULL, PROMPT, &err), 0);
    sequence_generate(s, true);
    run(e);
    int64_t blocks = kv_blocks(sequence_kv(s));
    assert_int_equal(t->n, MADE);
    assert_int_equal(sequence_feed(s, ids + PROMPT, NULL, TURN, &err), 0);
    sequence_generate(s, true);
    run(e);
    assert_int_equal(t->n, 2 * MADE);
    sequence_close(s);
    sequence_close(other);
    assert_int_equal(kv_pool_available(engine_pool(e)), engine_pool(e)->n_blocks);
    engine_close(e);
    free(unused);
    return blocks;
}

static void compare_with_reference(struct model *model, enum kv_type type, enum kv_policy policy) {
    static struct taken t;
    struct reference f;
    real logits[V];
    int32_t ids[POSITIONS];
    generate(model, type, policy, 512, false, &t);
    reference_open(&f, model, type, policy);
    for (int turn = 0; turn < 2; turn++) {
        int32_t n = 0;
        if (turn) ids[n++] = t.ids[MADE - 1]; /* the last token has not run: it belongs to the turn that follows */
        for (int32_t i = 0; i < (turn ? TURN : PROMPT); i++) ids[n++] = prompt_id(turn ? PROMPT + i : i);
        reference_turn(&f, ids, n, logits);
        for (int32_t i = 0; i < MADE; i++) {
            const int32_t k = turn * MADE + i;
            if (memcmp(logits, t.logits[k], sizeof logits) != 0)
                fail_msg("KV type %d, policy %d: logits of token %d differ", type, policy, k);
            if (i + 1 < MADE) reference_row(&f, t.ids[k], depth_pattern[f.n % 9], logits);
        }
    }
    reference_close(&f);
}

static void test_reference(void **state) {
    struct tiny *tiny = *state;
    for (int type = KV_F32; type <= KV_Q8; type++)
        for (int p = KV_POLICY_SHARED_LAST; p <= KV_POLICY_SHARED_FIRST; p++)
            compare_with_reference(tiny->model, (enum kv_type)type, (enum kv_policy)p);
}

/* Neither the chunks of a turn nor another sequence change a bit. */
static void test_chunks_and_mates(void **state) {
    struct tiny *tiny = *state;
    static struct taken whole, parts;
    for (int p = KV_POLICY_SHARED_LAST; p <= KV_POLICY_SHARED_FIRST; p++) {
        generate(tiny->model, KV_BF16, (enum kv_policy)p, 512, false, &whole);
        static const int32_t chunks[] = {1, 7, 64, 65};
        for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
            generate(tiny->model, KV_BF16, (enum kv_policy)p, chunks[i], i % 2, &parts);
            assert_memory_equal(&whole, &parts, sizeof whole);
        }
    }
}

/* With four loops and a long prompt a quarter of the memory stays, and a block of a row on its way. */
static void test_memory(void **state) {
    (void)state;
    struct tiny *tiny = calloc(1, sizeof *tiny);
    looplm_error err;
    tiny_open(tiny, 4, WEIGHT_F32, NULL, 1);
    int64_t blocks[5];
    for (int p = 0; p < 5; p++) {
        struct engine *e;
        struct sequence *s = NULL;
        static struct taken t;
        int32_t ids[6464];
        for (int32_t i = 0; i < 6464; i++) ids[i] = prompt_id(i % 1000);
        struct engine_options eo = {
            .rows_max = 512, .sequences_max = 1, .kv_positions = 6528, .planes = 4, .kv_type = KV_Q8};
        struct sequence_options o = {.rule = {.kind = EXIT_FULL},
                                     .policy = (enum kv_policy)p,
                                     .capacity = 6528,
                                     .sampler = {0, 1, 0, 0, 1, 0},
                                     .on_prediction = take,
                                     .context = &t};
        t.n = 0;
        if (engine_open(&e, tiny->model, &eo, &err) || sequence_open(&s, e, &o, &err) ||
            sequence_feed(s, ids, NULL, 6464, &err))
            fail_msg("%s", err.message);
        sequence_generate(s, true);
        while (t.n < 2) {
            bool ran;
            if (engine_step(e, &ran, &err)) fail_msg("%s", err.message);
        }
        blocks[p] = engine_pool(e)->n_blocks - kv_pool_available(engine_pool(e));
        assert_int_equal(blocks[p], kv_blocks(sequence_kv(s)));
        sequence_close(s);
        engine_close(e);
    }
    assert_int_equal(blocks[KV_POLICY_FULL], 4 * 102);
    assert_true(100 * blocks[KV_POLICY_SHARED_LAST] <= 26 * blocks[KV_POLICY_FULL]);
    assert_int_equal(blocks[KV_POLICY_SHARED_MEAN], 103);
    assert_true(100 * blocks[KV_POLICY_SHARED_MEAN] <= 26 * blocks[KV_POLICY_FULL]);
    assert_true(100 * blocks[KV_POLICY_SHARED_FIRST] <= 26 * blocks[KV_POLICY_FULL]);
    tiny_close(tiny);
    free(tiny);
}

static void test_refusals(void **state) {
    struct tiny *tiny = *state;
    struct engine *e;
    struct sequence *s = NULL;
    looplm_error err;
    struct engine_options eo = {.rows_max = 8, .sequences_max = 1, .kv_positions = 64, .planes = R, .kv_type = KV_F32};
    struct sequence_options o = {.rule = {.kind = EXIT_FULL},
                                 .policy = KV_POLICY_SHARED_LAST,
                                 .capacity = 64,
                                 .sampler = {0, 1, 0, 0, 1, 0},
                                 .speculate = SPECULATE_WAVEFRONT};
    if (engine_open(&e, tiny->model, &eo, &err)) fail_msg("%s", err.message);
    assert_int_equal(sequence_open(&s, e, &o, &err), LOOPLM_UNSUPPORTED);
    o.policy = KV_POLICY_SHARED_MEAN;
    assert_int_equal(sequence_open(&s, e, &o, &err), LOOPLM_UNSUPPORTED);
    o.speculate = SPECULATE_OFF;
    o.adaptive_prompt = true;
    assert_int_equal(sequence_open(&s, e, &o, &err), LOOPLM_UNSUPPORTED);
    engine_close(e);
}

static int open_model(void **state) {
    struct tiny *tiny = calloc(1, sizeof *tiny);
    tiny_open(tiny, R, WEIGHT_F32, NULL, 2);
    *state = tiny;
    return 0;
}
static int close_model(void **state) {
    tiny_close(*state);
    free(*state);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference), cmocka_unit_test(test_chunks_and_mates),
                                       cmocka_unit_test(test_memory), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, open_model, close_model);
}
