/* The engine: which rows run next. It owns the sequences' rows in flight and turns them into passes (model/loop.h).
 *
 * A sequence is a list of ids. Ids that the caller feeds (a prompt, a replay) run in chunks; the ids that the engine
 * generates run one row at a time, and each leaves when its exit rule says so. Every engine_step is one pass of the
 * stack over whatever rows the sequences have ready, at any mix of loops, followed by a read of the head for the rows
 * whose prediction is wanted. Sequences never influence each other's bits.
 *
 *     fed id -> slot (loop 0) -> pass -> slot (loop 1) -> ... -> leaves: its planes are lent (last-exited), or it waits
 * to be dragged along (full)
 *
 * Not thread-safe: one thread owns an engine and its sequences.
 */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include "model/exit.h"
#include "model/kv.h"
#include "model/loop.h"
#include "model/sampler.h"

#define ENGINE_BACKLOG_MAX \
    16 /* rows of one sequence that may wait to be dragged along under the full policy; never more than a pass has */
#define ENGINE_PROPOSALS 3  /* loops after which a row may propose */
#define ENGINE_HEAD_ROWS 32 /* rows of logits read at a time */

struct engine;
struct sequence;

struct engine_options {
    int32_t rows_max;     /* rows of a pass; also the longest prompt chunk */
    int32_t prefill_rows; /* of them for ids that were fed, at most; 0: all */
    int32_t sequences_max;
    int64_t kv_positions; /* positions that the pool holds at `planes` loops */
    int32_t planes;       /* loops that the pool is sized for */
    enum kv_type kv_type;
    bool poison;                                                     /* tests: freed KV blocks are filled with NaN */
    double (*pretend)(const void *context, int32_t rows, bool head); /* tests: seconds of a pass or a head read of so
                                                                        many rows, in place of the clock's */
    const void *pretend_context;
};
int engine_open(struct engine **engine, struct model *model, const struct engine_options *options, looplm_error *err);
void engine_close(struct engine *engine); /* every sequence must be closed */
struct model *engine_model(const struct engine *engine);
struct kv_pool *engine_pool(struct engine *engine);

/* One row whose prediction was wanted. */
struct prediction {
    int32_t position;        /* of the row; the prediction is for position + 1 */
    int32_t loops;           /* loops of the row that predicted, from 1 */
    const float *exit_probs; /* p of each loop it ran [loops] */
    const real *logits;      /* [V], valid during the call */
    real lse;                /* log sum exp of logits: logit - lse is a log-probability at temperature 1 */
    int32_t id;              /* the sampled id, or -1 when the sequence does not generate */
    real logprob;            /* of id */
};
typedef void prediction_fn(void *context, struct sequence *sequence, const struct prediction *prediction);

enum speculate {
    SPECULATE_OFF,
    SPECULATE_WAVEFRONT, /* where it pays */
    SPECULATE_ALWAYS     /* wherever it can: tests and measurements */
};
/* Replaces the proposal `id` after loop `loops` of the row at `position` (measurements that force the acceptance). */
typedef int32_t propose_fn(void *context, struct sequence *sequence, int32_t position, int32_t loops, int32_t id);

struct sequence_options {
    struct exit_rule rule; /* resolved by sequence_open against the model */
    enum kv_policy policy;
    struct sampler_options sampler;
    int32_t capacity;     /* positions at most: prompt and generated */
    int32_t slots_max;    /* rows in flight at most, so also the longest chunk; 0: the rows of a pass */
    int32_t priority;     /* prompts run in order of priority (higher first), then of number */
    int32_t number;       /* its line in a trace; 0: the engine's sequences are counted from 1 */
    bool adaptive_prompt; /* prompt positions may leave early too (last-exited) */
    bool score;           /* predict at every fed position, not only where generation starts */
    enum speculate speculate;
    const uint8_t *depths; /* [capacity] loops of generated ids by position, in place of the rule's exits (tests,
                              measurements); NULL, or the caller's until the sequence is closed */
    prediction_fn *on_prediction;
    propose_fn *on_proposal; /* may be NULL */
    void *context;
};
int sequence_open(struct sequence **sequence, struct engine *engine, const struct sequence_options *options,
                  looplm_error *err);
void sequence_close(struct sequence *sequence);
/* What sequence_open would refuse, and the planes that the options need. */
int sequence_options_check(const struct engine *engine, struct sequence_options *options, int32_t *planes,
                           looplm_error *err);
/* Serves another sequence in the memory that it has, without allocating: capacity and slots_max at most, and
 * speculation and mix only if, those that it was opened with. */
int sequence_reopen(struct sequence *sequence, const struct sequence_options *options, looplm_error *err);
/* Forgets everything and gives its blocks back; it is to be reopened or closed. */
void sequence_release(struct sequence *sequence);

/* Appends ids to run. depths (may be NULL): each id leaves after that many loops (a replay), or by the exit rule where
 * it is 0; otherwise a prompt runs every loop. Ids out of the vocabulary and a full context are errors; nothing is
 * appended then. */
int sequence_feed(struct sequence *sequence, const int32_t *ids, const uint8_t *depths, int32_t n, looplm_error *err);
/* The same for ids that were generated at those depths: with shared planes (kv.h) they run one by one, as they did. */
int sequence_replay(struct sequence *sequence, const int32_t *ids, const uint8_t *depths, int32_t n, looplm_error *err);
/* While on, the last id's row predicts, the sampled id is appended, and so on, one token a prediction. Off: fed ids run
 * and nothing is sampled; rows that speculation has begun wait. */
void sequence_generate(struct sequence *sequence, bool on);
void sequence_set_sampler(struct sequence *sequence, const struct sampler_options *sampler);
/* No row is ready or in flight: all ids but a last generated one have run. */
bool sequence_idle(const struct sequence *sequence);
int32_t sequence_length(const struct sequence *sequence);     /* ids, the last generated one included */
int32_t sequence_run_length(const struct sequence *sequence); /* positions that have run */
const int32_t *sequence_ids(const struct sequence *sequence);
const uint8_t *
sequence_targets(const struct sequence *sequence); /* loops asked for each id, 0 where the exit rule decides */
const struct kv_sequence *sequence_kv(const struct sequence *sequence);
struct kv_sequence *sequence_kv_mutable(struct sequence *sequence);
/* Fed ids have not all run: prompts come after decoding rows in a pass. */
bool sequence_prefills(const struct sequence *sequence);
/* Nothing has run yet, and less than all is taken over. Positions [0, n) of the fed ids are those of another sequence,
 * the same ids at the same depths (kv_fork): false when blocks are missing. */
bool sequence_adopt(struct sequence *sequence, struct sequence *from, int32_t n);
/* The next KV_BLOCK positions are in these blocks, one per loop (kv_append). */
void sequence_adopt_block(struct sequence *sequence, void *const *blocks);
struct sequence_counters {
    int64_t passes, rows, dropped_rows;                              /* passes with rows of its own */
    int64_t proposals[ENGINE_PROPOSALS], accepted[ENGINE_PROPOSALS]; /* as in engine_counters */
    double compute_s; /* its rows' share of the time of passes and head reads */
};
const struct sequence_counters *sequence_counters(const struct sequence *sequence);
/* Runs what is in flight to its end, the loops that waiting rows still owe (full policy) included, and begins nothing
 * new: then the sequence is ids and complete planes, zero beyond the last position. */
int sequence_settle(struct sequence *sequence, looplm_error *err);
/* For a saved session: a new sequence takes n ids, of which n_run have run; their planes the caller puts into the KV
 * blocks itself. depths[n]: the loops after which an id left, or for one that has not run, the loops asked for it
 * (sequence_targets when it was saved; 0 leaves it to the exit rule). tail_sampled: the last id was generated
 * (sequence_tail_sampled when it was saved). */
int sequence_restore(struct sequence *sequence, const int32_t *ids, const uint8_t *depths, int32_t n, int32_t n_run,
                     bool tail_sampled, looplm_error *err);
bool sequence_tail_sampled(const struct sequence *sequence);

/* Blocks are missing for a sequence: makes room for it (drops cached blocks, releases other sequences) and says whether
 * there is more than before. False: the sequence waits, and with it the error below. */
typedef bool reclaim_fn(void *context, struct sequence *sequence);
void engine_set_reclaim(struct engine *engine, reclaim_fn *reclaim, void *context);

/* One pass over what is ready; false when nothing was. An error (no blocks left for anyone) leaves every sequence as it
 * was. */
int engine_step(struct engine *engine, bool *ran, looplm_error *err);

#define ENGINE_ROWS_COUNTED 65
struct engine_counters {
    int64_t passes, rows, heads, head_rows, lends;
    /* By the loop after which they were made: proposals, those whose truth came out, those that were right. */
    int64_t proposals[ENGINE_PROPOSALS], verified[ENGINE_PROPOSALS], accepted[ENGINE_PROPOSALS];
    int64_t guessed_rows;           /* rows run whose own id was a proposal then */
    double guessed_used;            /* of them, those expected to be used */
    int64_t replaced, dropped_rows; /* proposals a deeper loop replaced; rows run for nothing */
    int64_t predictions;
    int64_t loops[MODEL_LOOPS_MAX];         /* predictions by their loops, from 1: loops[0] counts those of one */
    int64_t passes_of[ENGINE_ROWS_COUNTED]; /* passes by their rows, the last: that many and more */
    double pass_s_of[ENGINE_ROWS_COUNTED];  /* their time */
    double pass_s, head_s, total_s;         /* time in the stack, in the head, and in engine_step */
    double lend_s;                          /* in the planes of loops not run: in the stack, but for rare lists */
};
const struct engine_counters *engine_counters(const struct engine *engine);
/* Writes every pass into the trace (trace.h; borrowed) from now on; NULL ends that. */
struct trace;
void engine_set_trace(struct engine *engine, struct trace *trace);

#endif
