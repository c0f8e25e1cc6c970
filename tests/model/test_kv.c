/* The KV pool and the bookkeeping of a sequence: blocks, invariants, lending, means, truncation, and a pool beyond 2^31
 * elements. */
#include "model/kv.h"
#include "support/support.h"
#include "tensor/cpu/cpu.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct backend *backend;
static const struct kv_geometry small = {KV_F32, 2, 2, 16};

static int open_backend(void **state) {
    (void)state;
    looplm_error err;
    return cpu_open(&backend, 1, NULL, &err);
}

static int close_backend(void **state) {
    (void)state;
    backend->close(backend);
    return 0;
}

/* A pool of `small` blocks and two sequences of `loops` planes, `of_a` and `of_b` positions at most. */
static void open_two(struct kv_pool *pool, int64_t blocks, int32_t loops, struct kv_sequence *a, int32_t of_a,
                     struct kv_sequence *b, int32_t of_b) {
    assert_int_equal(kv_pool_init(pool, backend, small, blocks, NULL), 0);
    assert_int_equal(kv_sequence_init(a, pool, KV_POLICY_LAST_EXITED, loops, of_a, NULL), 0);
    assert_int_equal(kv_sequence_init(b, pool, KV_POLICY_LAST_EXITED, loops, of_b, NULL), 0);
}

static void test_blocks(void **state) {
    (void)state;
    struct kv_pool pool;
    struct kv_sequence a, b;
    open_two(&pool, 6, 3, &a, 200, &b, 200);
    pool.poison = true;
    assert_true(kv_reserve(&a, 64));
    assert_true(kv_reserve(&a, 1));    /* nothing new */
    assert_false(kv_reserve(&a, 129)); /* six more, three are left: none is taken */
    assert_true(kv_reserve(&b, 10));
    void *block = kv_table(&b, 1)[0];
    memset(block, 0x55, pool.block_size);
    kv_sequence_free(&b);
    assert_true(isnan(((const float *)block)[7])); /* poisoned between uses */
    assert_true(kv_reserve(&a, 128));
    assert_int_equal(kv_pool_available(&pool), 0);
    kv_release(&a);
    assert_int_equal(kv_pool_available(&pool), 6);
    assert_true(kv_reserve(&a, 128));
    kv_sequence_free(&a);
    assert_int_equal(kv_pool_available(&pool), 6);
    kv_pool_free(&pool);
}

/* Runs f in a child; true when it aborted. */
static bool aborts(void (*f)(struct kv_sequence *)) {
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGABRT, SIG_DFL);
        fclose(stderr);
        struct kv_pool pool;
        struct kv_sequence s;
        if (kv_pool_init(&pool, backend, small, 6, NULL) ||
            kv_sequence_init(&s, &pool, KV_POLICY_LAST_EXITED, 3, 128, NULL) || !kv_reserve(&s, 64))
            _exit(3);
        f(&s);
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static void row_twice(struct kv_sequence *s) {
    kv_enter(s, 0, 0, 2);
    kv_enter(s, 0, 1, 1);
}
static void past_missing(struct kv_sequence *s) {
    kv_enter(s, 0, 1, 1);
}
static void runs_ahead(struct kv_sequence *s) {
    kv_enter(s, 0, 0, 2);
    kv_enter(s, 1, 1, 1); /* position 0 has not run loop 1 and has not left */
}
static void no_blocks(struct kv_sequence *s) {
    kv_enter(s, 0, 0, 65);
}
static void leaves_twice(struct kv_sequence *s) {
    struct kv_lend lends[4];
    kv_enter(s, 0, 0, 1);
    kv_leave(s, 0, 1, lends);
    kv_leave(s, 0, 1, lends);
}
static void writes_into_shared(struct kv_sequence *s) {
    kv_block_share(s->pool, kv_table(s, 0)[0]);
    kv_enter(s, 0, 0, 1);
}
static void in_order(struct kv_sequence *s) {
    struct kv_lend lends[4];
    kv_enter(s, 0, 0, 2);
    kv_leave(s, 0, 1, lends);
    kv_enter(s, 1, 1, 1); /* position 0 has lent plane 1 */
    kv_enter(s, 2, 1, 1);
}

static void test_invariants(void **state) {
    (void)state;
    assert_true(aborts(row_twice));
    assert_true(aborts(past_missing));
    assert_true(aborts(runs_ahead));
    assert_true(aborts(no_blocks));
    assert_true(aborts(leaves_twice));
    assert_true(aborts(writes_into_shared));
    assert_false(aborts(in_order));
}

static void test_truncate(void **state) {
    (void)state;
    struct kv_pool pool;
    struct kv_sequence s;
    looplm_error err;
    assert_int_equal(kv_pool_init(&pool, backend, small, 2, &err), 0);
    assert_int_equal(kv_sequence_init(&s, &pool, KV_POLICY_LAST_EXITED, 1, 128, &err), 0);
    assert_true(kv_reserve(&s, 128));
    for (int i = 0; i < 2; i++) memset(kv_table(&s, 0)[i], 0x3f, pool.block_size);
    kv_enter(&s, 0, 0, 100);
    kv_truncate(&s, 21);
    const float *keys = kv_table(&s, 0)[0], *values = keys + small.kv_heads * 64 * 16;
    for (int d = 0; d < 16; d++) {
        assert_true(keys[(16 + d) * 16 + 4] != 0 &&
                    keys[(16 + d) * 16 + 5] == 0); /* panel 1, lanes 4 and 5: positions 20 and 21 */
        assert_true(values[20 * 16 + d] != 0 && values[21 * 16 + d] == 0);
    }
    assert_true(((const float *)kv_table(&s, 0)[1])[0] == 0);
    kv_enter(&s, 0, 21, 1); /* goes on from there */
    kv_sequence_free(&s);
    kv_pool_free(&pool);
}

/* In q8 the scales beyond are zeroed too: a poisoned one would be a NaN. */
static void test_truncate_q8(void **state) {
    (void)state;
    enum { K = 16, HALF = 64 * K + 64 * 2 };
    struct kv_pool pool;
    struct kv_sequence s;
    assert_int_equal(kv_pool_init(&pool, backend, (struct kv_geometry){KV_Q8, 2, 2, K}, 1, NULL), 0);
    assert_int_equal(pool.block_size, 2 * 2 * 2 * HALF);
    assert_int_equal(kv_sequence_init(&s, &pool, KV_POLICY_LAST_EXITED, 1, 64, NULL), 0);
    assert_true(kv_reserve(&s, 64));
    const unsigned char *block = memset(kv_table(&s, 0)[0], 0xff, pool.block_size);
    kv_enter(&s, 0, 0, 40);
    kv_truncate(&s, 21);
    for (int half = 0; half < 8; half++) {
        const unsigned char *bytes = block + half * HALF, *scales = bytes + 64 * K;
        for (int slot = 0; slot < 64; slot++) {
            unsigned char want = slot < 21 ? 0xff : 0;
            assert_int_equal(scales[2 * slot], want);
            assert_int_equal(scales[2 * slot + 1], want);
            for (int d = 0; d < K; d++)
                assert_int_equal(half / 2 % 2 ? bytes[slot * K + d] : bytes[(slot / 16 * K + d) * 16 + slot % 16],
                                 want);
        }
    }
    kv_sequence_free(&s);
    kv_pool_free(&pool);
}

static void test_drop(void **state) {
    (void)state;
    struct kv_pool pool;
    struct kv_sequence s;
    struct kv_lend lends[4];
    assert_int_equal(kv_pool_init(&pool, backend, small, 6, NULL), 0);
    assert_int_equal(kv_sequence_init(&s, &pool, KV_POLICY_LAST_EXITED, 3, 128, NULL), 0);
    assert_true(kv_reserve(&s, 128));
    kv_enter(&s, 0, 0, 70);
    for (int p = 0; p < 70; p++) kv_leave(&s, p, 1, lends);
    memset(kv_table(&s, 2)[1], 0x3f, pool.block_size);
    kv_drop(&s, 66);
    assert_int_equal(s.positions, 128);
    assert_int_equal(s.left[65], 1);
    assert_int_equal(s.left[66], 0);
    for (int r = 0; r < 3; r++) assert_int_equal(s.ready[r], 66);
    assert_int_equal(*((const unsigned char *)kv_table(&s, 2)[1] + pool.block_size - 1), 0x3f); /* untouched */
    kv_enter(&s, 0, 66, 1);
    kv_enter(&s, 1, 66, 1);
    kv_drop(&s, 128); /* nothing to forget */
    kv_sequence_free(&s);
    kv_pool_free(&pool);
}

/* A fork shares whole blocks and copies the one that is cut; a block goes back when its last owner lets go. */
static void test_fork(void **state) {
    (void)state;
    struct kv_pool pool;
    struct kv_sequence a, b;
    struct kv_lend lends[4];
    open_two(&pool, 6, 2, &a, 128, &b, 192);
    assert_true(kv_reserve(&a, 100));
    for (int r = 0; r < 2; r++) kv_enter(&a, r, 0, 100);
    for (int p = 0; p < 100; p++) kv_leave(&a, p, 2, lends);
    for (int r = 0; r < 2; r++) memset(kv_table(&a, r)[1], 0x40 + r, pool.block_size);
    assert_true(kv_fork(&b, &a, 64));
    assert_int_equal(kv_pool_available(&pool), 2);
    assert_int_equal(b.positions, 64);
    kv_release(&b);
    assert_true(kv_fork(&b, &a, 70));
    assert_int_equal(kv_pool_available(&pool), 0);
    for (int r = 0; r < 2; r++) {
        assert_ptr_equal(kv_table(&a, r)[0], kv_table(&b, r)[0]);
        assert_int_equal(kv_block_owners(&pool, kv_table(&a, r)[0]), 2);
        assert_ptr_not_equal(kv_table(&a, r)[1], kv_table(&b, r)[1]);
        assert_memory_equal(kv_table(&a, r)[1], kv_table(&b, r)[1], pool.block_size);
        kv_enter(&b, r, 70, 1);
    }
    kv_sequence_free(&a);
    assert_int_equal(kv_pool_available(&pool), 2);
    assert_int_equal(kv_sequence_init(&a, &pool, KV_POLICY_LAST_EXITED, 2, 128, NULL), 0);
    assert_true(kv_reserve(&a, 64));
    assert_false(kv_fork(&(struct kv_sequence){.pool = &pool, .loops = 2}, &b, 70)); /* no blocks for the copy */
    kv_release(&a);
    void *blocks[2] = {kv_table(&b, 0)[0], kv_table(&b, 1)[0]};
    kv_append(&a, blocks);
    assert_int_equal(a.positions, 64);
    assert_int_equal(a.ready[1], 64);
    assert_int_equal(a.left[63], 2);
    kv_sequence_free(&b);
    assert_int_equal(kv_pool_available(&pool), 4);
    kv_sequence_free(&a);
    assert_int_equal(kv_pool_available(&pool), 6);
    kv_pool_free(&pool);
}

static float *key_of(void *block, int32_t slot) { /* element 3 of layer 1, head 1 */
    return (float *)(void *)((char *)block + kv_offset(&small, 1, 1)) + (slot / 16 * 16 + 3) * 16 + slot % 16;
}

/* Plane r of position p holds 8 p + 2^r; every third position leaves after one loop, the others after three. */
static void run_turn(struct kv_sequence *s, int32_t n) {
    struct kv_lend lends[4];
    for (int r = 0; r < 3; r++)
        for (int p = 0; p < n; p++) *key_of(kv_table(s, r)[p / 64], p % 64) = (float)(8 * p + (1 << r));
    for (int p = 0; p < n; p++) {
        int32_t depth = p % 3 ? 3 : 1;
        for (int r = 0; r < depth; r++) kv_enter(s, r, p, 1);
        kv_leave(s, p, depth, lends);
    }
}

static float mean_of(int32_t p) {
    return p % 3 ? (float)((24.0 * p + 7) / 3) : (float)(8 * p + 1);
}

/* Plane r at position p, of a token that left after `depth` loops: its last one's. */
static void assert_plane(const struct kv_sequence *s, int32_t r, int32_t p, int32_t depth) {
    float made = (float)(8 * p + (1 << (r < depth ? r : depth - 1)));
    assert_true(*key_of(kv_table(s, r)[p / 64], p % 64) == made);
}

/* Owed planes are copied when a row is about to read them, no sooner, and each once; a fork, and who keeps blocks, pay
 * for all. */
static void test_owed(void **state) {
    (void)state;
    struct kv_pool pool;
    struct kv_sequence a, b;
    struct kv_lend lends[4];
    open_two(&pool, 12, 3, &a, 128, &b, 128);
    a.owes = true;
    assert_true(kv_reserve(&a, 128));
    for (int r = 0; r < 3; r++)
        for (int p = 0; p < 72; p++) *key_of(kv_table(&a, r)[p / 64], p % 64) = (float)(r ? -1 : 8 * p + 1);
    for (int p = 0; p < 70; p++) {
        kv_enter(&a, 0, p, 1);
        assert_int_equal(kv_leave(&a, p, 1, lends), 0);
    }
    assert_int_equal(kv_owed(&a, 2, 3, lends, 2), 2);
    assert_int_equal(kv_owed(&a, 2, 3, lends, 2), 1);
    assert_true(lends->from == kv_table(&a, 0)[0] && lends->to == kv_table(&a, 2)[0] && lends->of == 1);
    assert_true(lends->from_slot == 2 && lends->to_slot == 2);
    assert_int_equal(kv_owed(&a, 2, 3, lends, 2), 0);
    kv_drop(&a, 1); /* what is gone is owed again when it has run again */
    for (int p = 1; p < 70; p++) {
        kv_enter(&a, 0, p, 1);
        kv_leave(&a, p, 1, lends);
    }
    assert_int_equal(kv_owed(&a, 2, 2, lends, 4), 1);
    *key_of(kv_table(&a, 2)[0], 0) = 1; /* of the copies asked for that nobody made here */
    *key_of(kv_table(&a, 2)[0], 1) = 9;
    assert_true(kv_fork(&b, &a, 66));
    for (int r = 0; r < 3; r++)
        for (int p = 0; p < 66; p++) {
            assert_plane(&a, r, p, 1);
            assert_plane(&b, r, p, 1);
        }
    assert_true(*key_of(kv_table(&a, 1)[1], 67 % 64) == -1);
    kv_pay(&a, 70);
    for (int r = 0; r < 3; r++)
        for (int p = 0; p < 70; p++) assert_plane(&a, r, p, 1);
    for (int r = 0; r < 3; r++) kv_enter(&a, r, 70, 1);
    assert_int_equal(kv_owed(&a, 1, 71, lends, 4), 0);
    kv_sequence_free(&a);
    kv_sequence_free(&b);
    assert_int_equal(kv_pool_available(&pool), 12);
    kv_pool_free(&pool);
}

static void reads_owed(struct kv_sequence *s) {
    struct kv_lend lends[4];
    s->owes = true;
    kv_enter(s, 0, 0, 2);
    kv_leave(s, 0, 1, lends);
    kv_enter(s, 1, 1, 1); /* position 0 owes plane 1 */
}

static void test_reads_owed(void **state) {
    (void)state;
    assert_true(aborts(reads_owed));
}

/* shared-mean: what others hold is not written over; with too few blocks a part is joined, and the rest later. */
static void test_mean(void **state) {
    (void)state;
    struct kv_pool pool;
    struct kv_sequence s;
    struct kv_lend lends[3];
    assert_int_equal(kv_pool_init(&pool, backend, small, 15, NULL), 0);
    pool.poison = true;
    assert_int_equal(kv_sequence_init(&s, &pool, KV_POLICY_SHARED_MEAN, 3, 320, NULL), 0);
    assert_true(kv_begin(&s, 0, 314, false));
    run_turn(&s, 314);
    assert_int_equal(kv_pool_available(&pool), 0);
    void *held[3][4];
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < 4; i++) kv_block_share(&pool, held[r][i] = kv_table(&s, r)[i]);
    kv_block_give(&pool, held[1][1]);           /* of block 1 one plane is its own */
    assert_false(kv_begin(&s, 314, 315, true)); /* the last block gives two, which two others need */
    assert_int_equal(kv_joined_blocks(&s), 4);
    assert_int_equal(kv_blocks(&s), 4 + 3);
    assert_int_equal(kv_pool_available(&pool), 0);
    for (int r = 0; r < 3; r++)
        for (int i = 2; i < 4; i++) kv_block_give(&pool, held[r][i]);
    assert_int_equal(kv_pool_available(&pool), 6);
    assert_true(kv_begin(&s, 314, 315, true));
    assert_int_equal(kv_joined_blocks(&s), 5);
    assert_int_equal(kv_blocks(&s), 6); /* one is aside */
    for (int p = 0; p < 314; p++)
        for (int r = 0; r < 3; r++) assert_true(*key_of(kv_table(&s, r)[p / 64], p % 64) == mean_of(p));
    for (int r = 0; r < 3; r++)
        for (int p = 0; p < 64; p++) assert_true(*key_of(held[r][0], p) == (float)(8 * p + (1 << r)));
    kv_enter(&s, 0, 314, 1);
    assert_int_equal(kv_stay(&s, 314, lends), 1);
    assert_int_equal(lends->to_slot, 0);
    kv_enter(&s, 1, 314, 1);
    assert_int_equal(kv_leave(&s, 314, 2, lends), 2);
    assert_true(lends[0].of == 2 && lends[0].from == s.aside && lends[0].to_slot == 58 && lends[1].from_slot == 58);
    for (int r = 0; r < 3; r++) kv_block_give(&pool, held[r][0]);
    kv_block_give(&pool, held[0][1]);
    kv_block_give(&pool, held[2][1]);
    kv_sequence_free(&s);
    assert_int_equal(kv_pool_available(&pool), 15);
    kv_pool_free(&pool);
}

/* A pool of more than 2^31 elements: the last block is real memory of its own, and attention reads keys and values from
 * it. */
static void test_beyond_2_31(void **state) {
    (void)state;
    struct kv_geometry g = {KV_BF16, 24, 16, 128};
    struct kv_pool pool;
    looplm_error err;
    int64_t blocks = ((int64_t)1 << 31) * 2 / (int64_t)kv_block_size(&g) + 3; /* two bytes an element */
    if (kv_pool_init(&pool, backend, g, blocks, &err)) {
        print_message("skipped: %s\n", err.message);
        skip();
    }
    assert_true((double)pool.block_size / 2 * (double)blocks > 2147483648.0);
    pool.n_touched = blocks - 1; /* as if all the others were in use */
    struct kv_sequence s;
    assert_int_equal(kv_sequence_init(&s, &pool, KV_POLICY_LAST_EXITED, 1, 64, &err), 0);
    assert_true(kv_reserve(&s, 1));
    unsigned char *block = kv_table(&s, 0)[0];
    assert_true((size_t)(block - pool.memory) == pool.block_size * (size_t)(blocks - 1));
    uint16_t *values = (uint16_t *)(void *)(block + kv_offset(&g, 23, 15) + kv_values_after(&g));
    for (int d = 0; d < 128; d++)
        values[d] = (uint16_t)(0x3f80 + d); /* position 0; its only key takes all the weight */
    struct run run = {.count = 1, .blocks = kv_table(&s, 0)};
    real q[16 * 128] = {0}, out[16 * 128];
    struct pass pass = {0};
    pass_add(&pass, (struct op){.kind = OP_ATTENTION,
                                .attention = {.q = q,
                                              .ldq = 2048,
                                              .out = out,
                                              .ldout = 2048,
                                              .runs = &run,
                                              .n_runs = 1,
                                              .kv = g,
                                              .layer = 23,
                                              .heads = 16,
                                              .scale = 1}});
    backend->execute(backend, &pass);
    pass_free(&pass);
    for (int d = 0; d < 128; d++) {
        uint32_t bits = (uint32_t)(0x3f80 + d) << 16;
        float want;
        memcpy(&want, &bits, 4);
        assert_true((float)out[15 * 128 + d] == want);
    }
    assert_int_equal(*pool.memory, 0);
    pool.n_touched = blocks;
    kv_sequence_free(&s);
    kv_pool_free(&pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_blocks),     cmocka_unit_test(test_invariants),
                                       cmocka_unit_test(test_truncate),   cmocka_unit_test(test_truncate_q8),
                                       cmocka_unit_test(test_drop),       cmocka_unit_test(test_fork),
                                       cmocka_unit_test(test_mean),       cmocka_unit_test(test_owed),
                                       cmocka_unit_test(test_reads_owed), cmocka_unit_test(test_beyond_2_31)};
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
