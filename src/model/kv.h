/* The KV cache of a sequence: tables of blocks of the pool (kv_pool.h), one table per loop.
 *
 * A block holds KV_BLOCK positions of one loop, all layers (tensor/backend.h). A sequence knows for every position how
 * many loops have run there and at which loop the token left; it enforces the invariants of a pass:
 *   1. a row runs once;
 *   2. row (p, r) may run only if for every earlier p': n(p') > r, or n(p') == r and (p', r) is in the same pass, or p'
 * left before r under a policy that supplies plane r;
 *   5. a pass starts only with its blocks in hand.
 * A violation is a bug and aborts. Sequences and the prefix cache may share a block, but only one whose positions all
 * have their planes: a row writes into a block that its sequence alone owns.
 */
#ifndef MODEL_KV_H
#define MODEL_KV_H

#include "model/kv_pool.h"

/* The policies shared-* keep one plane a layer: a turn (ids that were fed) runs with every plane, and is joined to one
 * before the first row that follows it is generated. A joined block stands in the tables of all loops and counts one
 * owner. A generated row writes every loop's keys and values into its one slot and reads them there, beside those that
 * earlier tokens left; what stays is its last loop's (shared-last), its first one's (shared-first), or the mean of all
 * that it ran (shared-mean). So it cannot run before the token before it has left. A further turn parts the blocks that
 * it writes into again: every loop then has what was joined, and joining that again changes nothing. */
#define KV_POLICY_MAP(X)          \
    X(LAST_EXITED, "last-exited") \
    X(FULL, "full") X(SHARED_LAST, "shared-last") X(SHARED_MEAN, "shared-mean") X(SHARED_FIRST, "shared-first")
enum kv_policy {
#define X(code, name) KV_POLICY_##code,
    KV_POLICY_MAP(X)
#undef X
};
static inline bool kv_policy_shared(enum kv_policy policy) {
    return policy >= KV_POLICY_SHARED_LAST;
}

/* What `auto` means. */
static inline enum kv_type kv_type_default(enum weight_type weights) {
    return weights == WEIGHT_F32 ? KV_F32 : KV_BF16;
}

struct kv_sequence {
    struct kv_pool *pool; /* borrowed */
    enum kv_policy policy;
    int32_t loops; /* tables in use, of loops_max */
    int32_t loops_max;
    int32_t positions; /* positions with blocks reserved: a multiple of KV_BLOCK */
    int32_t capacity;  /* of the arrays below */
    void **blocks;     /* [loops][capacity / KV_BLOCK] */
    uint8_t *done;     /* [capacity] n(p): loops run at p */
    uint8_t *left;     /* [capacity] loop at which the token left, 1..loops; 0 while it has not */
    int32_t *ready;    /* [loops] positions [0, ready[r]) all have plane r, computed, lent or joined */
    int32_t *there; /* [loops] with `owes`: of these the planes of [0, there[r]) are in memory, the others are owed */
    bool owes;      /* last-exited: planes are lent when a row is about to read them (kv_owed), not when their token
                       leaves: by then there are more of them, side by side, and some are never read */
    bool joined;    /* shared-*: all blocks are, and rows are generated */
    void *aside;    /* shared-mean, shared-first: a block whose slot r is for what the row on its way made in loop r,
                       the last one aside; or NULL */
};

/* capacity_max positions at most, loops planes. */
int kv_sequence_init(struct kv_sequence *seq, struct kv_pool *pool, enum kv_policy policy, int32_t loops,
                     int32_t capacity_max, looplm_error *err);
void kv_sequence_free(struct kv_sequence *seq); /* gives its blocks back */
/* Before rows of a turn (generated: before a generated row) at positions [from, n): takes blocks so that positions [0,
 * n) have one at every loop, and under shared-* parts those that the turn writes into, or joins all. What lies before
 * `from` has left. False when the pool has too few: kv_reserve has then taken none, and kv_begin may be asked again.
 */
bool kv_reserve(struct kv_sequence *seq, int32_t n);
bool kv_begin(struct kv_sequence *seq, int32_t from, int32_t n, bool generated);
/* The blocks that are joined; all that it holds. */
int32_t kv_joined_blocks(const struct kv_sequence *seq);
int64_t kv_blocks(const struct kv_sequence *seq);
/* Gives back the blocks that positions [0, n) do not need; nothing may have run beyond n. */
void kv_shrink(struct kv_sequence *seq, int32_t n);
/* The block table of a loop, for struct run. */
static inline void *const *kv_table(const struct kv_sequence *seq, int32_t loop) {
    return (void *const *)(seq->blocks + (size_t)loop * (size_t)(seq->capacity / KV_BLOCK));
}
/* Checks invariants 1, 2 and 5 for rows (first .. first+count-1, loop) entering a pass, and counts them as run. Runs of
 * one pass are entered in order of position within a loop. */
void kv_enter(struct kv_sequence *seq, int32_t loop, int32_t first, int32_t count);
/* The token at p leaves after loop `depth` (1-based). Under last-exited its planes are lent to the deeper loops: the
 * copies are appended to lends, and under shared-* what is to stay of a generated row (room for loops); returns their
 * number. */
int32_t kv_leave(struct kv_sequence *seq, int32_t p, int32_t depth, struct kv_lend *lends);
/* Appends the copies that plane `loop` is owed at positions [0, n), before a row at n enters; `room` at most, and says
 * how many. 0: it has them all. kv_pay makes them at once, at every loop. */
int32_t kv_owed(struct kv_sequence *seq, int32_t loop, int32_t n, struct kv_lend *lends, int32_t room);
void kv_pay(struct kv_sequence *seq, int32_t n);
/* The row at p has run and goes on: what a policy has to keep of this loop is appended to lends (room for one). */
int32_t kv_stay(const struct kv_sequence *seq, int32_t p, struct kv_lend *lends);
/* Forgets positions >= n (their blocks stay reserved and are zeroed from n on). */
void kv_truncate(struct kv_sequence *seq, int32_t n);
/* The same without touching the blocks: what they hold beyond n is finite, and attention never uses what lies beyond a
 * row's own position. */
void kv_drop(struct kv_sequence *seq, int32_t n);
/* Forgets everything and gives all blocks back. */
void kv_release(struct kv_sequence *seq);
/* The sequence, which holds no block, takes over positions [0, n) of another that have left at every loop: whole blocks
 * are shared, the last is copied when it is cut. Rows of a turn that began before n must not follow joined blocks.
 * False when the pool has too few blocks for the copy. */
bool kv_fork(struct kv_sequence *seq, struct kv_sequence *from, int32_t n);
/* Appends a block per loop, whose positions all have every plane; the sequence's positions so far fill whole blocks. */
void kv_append(struct kv_sequence *seq, void *const *blocks);

/* The block of positions [64 index, 64 index + 64) has the same content in `blocks` (one per loop, all planes there):
 * the sequence shares those from now on and gives its own back. */
void kv_replace(struct kv_sequence *seq, int32_t index, void *const *blocks);
/* Positions [0, n) that have left and have every plane, n at most `limit`: what a fork may take over. */
int32_t kv_complete(const struct kv_sequence *seq, int32_t limit);
/* Every loop was computed at all positions of the block: a prefix cache may hold it. Its planes must be there. */
bool kv_block_computed(const struct kv_sequence *seq, int32_t index);
/* Forgets everything, gives all blocks back, and serves another sequence of at most as many loops as it was made for.
 */
void kv_reuse(struct kv_sequence *seq, enum kv_policy policy, int32_t loops);

/* Begins again at position 0 in the blocks it has, without zeroing them: what they hold is finite, and attention never
 * uses what lies beyond a row's own position. */
void kv_restart(struct kv_sequence *seq);

#endif
