/* What engine.c (passes) and sequence.c (rows in flight) share. */
#ifndef ENGINE_INTERNAL_H
#define ENGINE_INTERNAL_H

#include "engine/cost.h"
#include "engine/engine.h"
#include "engine/trace.h"

#define SLOT_BY_RULE 0                     /* a target: the exit rule decides */
#define SPECULATE_DEPTHS ENGINE_PROPOSALS  /* loops after which a row may propose */
#define SPECULATE_ROWS_MAX (COST_ROWS - 1) /* passes of more rows are prompts: nothing is proposed beside them */

/* A row in flight: one position on its way through the loops. */
struct slot {
    int32_t position;
    int32_t done;      /* loops run */
    int32_t target;    /* loops it will run, or SLOT_BY_RULE */
    int32_t predicted; /* loops of the row that predicted; 0 while it has not */
    int32_t row;       /* of sequence.h, where its hidden state waits */
    bool predicts;     /* a prediction is wanted */
    bool waiting;      /* it has left (full policy) and runs on only when dragged along */
    bool enters;       /* in the pass being built */
    bool held;         /* it predicted before its own id was certain: its logits wait in the sequence's `kept` */
    bool studied;      /* its head is read after every loop, to learn how often each is right */
    real lse;          /* of a held prediction */
    int32_t proposals[SPECULATE_DEPTHS]; /* the next id by the head after loop 1, 2, ..; -1 where it was not read */
    struct exit_state exit;
    float probs[MODEL_LOOPS_MAX];
};

/* What a sequence has learned about its proposals. */
struct speculation {
    float accepted[SPECULATE_DEPTHS]; /* running share of the proposals after loop 1, 2, .. that came true */
    int32_t seen[SPECULATE_DEPTHS];   /* proposals that it comes from */
    float loops;                      /* running mean of the loops after which rows predicted */
    int32_t lag;    /* loops that a row on its diagonal is behind the one before; 0: no diagonal pays */
    int32_t waited; /* rows since the last one that was studied */
};

struct sequence {
    struct engine *engine;
    struct sequence_options options;
    struct kv_sequence kv;
    struct sequence_counters counters;
    struct sampler *sampler;
    int32_t capacity_max; /* of the arrays */
    int32_t last;         /* the last step of the rule: its resolved max */
    int32_t *ids;         /* [capacity] */
    uint8_t *targets;     /* [capacity] loops asked for, SLOT_BY_RULE for generated ids */
    int32_t n_ids, n_fed; /* ids; those that have been given a slot, proposed ones included */
    int32_t n_given;      /* ids up to the last one that was fed */
    int32_t n_turn;       /* ids before it were fed; those from it on are generated, or replayed as generated */
    int32_t n_proposed;   /* ids[n_ids ..] that a row still on its way proposes (speculate.c) */
    struct speculation speculation;
    int32_t n_enter, end; /* of the pass being planned: rows that enter it, all at positions below end */
    bool generating, settling;
    bool draining;      /* nothing new begins */
    bool tail_sampled;  /* the last id was generated: it runs when more is wanted */
    struct slot *slots; /* [slots_max] by position */
    int32_t n_slots,
        slots_max;      /* at most what a pass has rows: all of them may have to enter one together (full policy) */
    int32_t n_rows_max; /* of h */
    int32_t *free_rows; /* stack of rows of h */
    int32_t n_free_rows;
    real *h;    /* [n_rows_max, D] */
    real *kept; /* [n_kept, V] logits by position % n_kept: sums of p logits for the mix rule, held predictions */
    int32_t n_kept, n_kept_max;
};

/* A row of the pass being built. */
struct pass_row {
    struct sequence *sequence;
    int32_t slot;
};

struct engine {
    struct model *model;
    struct engine_options options;
    struct kv_pool pool;
    struct loop_workspace workspace;
    struct pass pass;
    struct sequence **sequences; /* [sequences_max] by priority and number */
    reclaim_fn *reclaim;         /* may be NULL */
    void *reclaim_context;
    int32_t n_sequences, next; /* where the next pass starts looking */
    /* the pass being built */
    struct run *runs;                  /* [rows_max] */
    struct pass_row *rows;             /* [rows_max] */
    int32_t *indices;                  /* [rows_max] rows of sequence.h */
    real *distance;                    /* [rows_max] */
    int32_t n_runs, n_rows, n_certain; /* of the rows, those whose ids are certain */
    int32_t n_mute_runs;               /* the first of the runs: see sequence_enter */
    int32_t prompts_wait;              /* passes since a prompt last got a row, while there are any */
    /* after the pass */
    struct kv_lend *lends; /* [lends_max] */
    double *lend_s;        /* [threads] of the pass */
    int32_t n_lends, lends_max;
    int32_t *heads; /* [rows_max] pass rows whose head is read */
    int32_t n_heads;
    real *head_h, *logits, *lse, *max; /* [ENGINE_HEAD_ROWS, D], [.., V], [..], [..] */
    struct costs costs;
    double stack_s, heads_s; /* of this pass */
    double spent, used,
        pass_used;       /* running sums of seconds of passes and of rows expected to be used; those of this pass */
    struct trace *trace; /* NULL: none */
    int32_t n_opened;
    struct engine_counters counters;
};

/* ---- sequence.c ------------------------------------------------------------------------------------------------- */

/* Gives waiting ids their slots (at most `chunk`) and counts the certain rows that are ready for the pass (n_enter, at
 * most `room`). Returns them, 0 when none is ready or none fits, -1 when blocks are missing. May be called again for
 * the same pass when it is collected anew. */
int32_t sequence_plan(struct sequence *sequence, int32_t room, int32_t chunk);
/* Rows that enter when positions below `end` may. */
int32_t sequence_rows(struct sequence *sequence, int32_t end);
/* Gives the next proposed id a slot, if there is one to give; blocks that others may need are not taken for it. */
void sequence_open_guess(struct sequence *sequence);
/* Puts the planned rows into the engine's pass: first those that are mute, whose last loop this is and whose state
 * nobody reads after it, then the others. */
void sequence_enter(struct sequence *sequence, bool mute);
/* The rule must look at this slot after its pass: its own exit, or a prediction, depends on it. */
static inline bool slot_undecided(const struct slot *slot) {
    return !slot->predicted && (slot->predicts || slot->target == SLOT_BY_RULE);
}
/* The slot has been through a pass: counts the loop and advances its exit distribution. */
void slot_advance(struct sequence *sequence, struct slot *slot, float lambda);
/* Drops slots that are finished, keeping the order. */
void sequence_sweep(struct sequence *sequence);
/* The slot has loops to run by itself, not only when dragged along. */
bool slot_wants(const struct sequence *sequence, const struct slot *slot);
/* Forgets what ran at positions >= position, and proposed ids from there on; certain ids stay and run again. */
void sequence_drop(struct sequence *sequence, int32_t position);
/* The loops asked for a generated id. */
static inline uint8_t sequence_target(const struct sequence *s, int32_t position) {
    return s->options.depths ? s->options.depths[position] : SLOT_BY_RULE;
}
/* Rows that may wait under the full policy before they are run to their end. */
int32_t sequence_backlog_max(const struct sequence *sequence);
/* Logits kept for a position. */
real *sequence_kept(const struct sequence *sequence, int32_t position);

/* ---- speculate.c ------------------------------------------------------------------------------------------------ */

void speculation_begin(struct speculation *speculation, int32_t loops);
/* A slot that predicts was opened: whether it is studied. */
bool speculate_studies(struct sequence *sequence);
/* After the certain rows: raises `end` of sequences so that guessed rows enter the pass where they are worth it. */
void speculate_fill(struct engine *engine);
/* The head is to be read after this loop, to propose the next id; `read`: it has been, for another reason. */
bool speculate_wants(const struct engine *engine, const struct sequence *sequence, const struct slot *slot, bool read);
/* The pass is over, and took this time apart from its head reads; prompt: rows of one were in it. */
void speculate_account(struct engine *engine, double seconds, bool prompt);
/* A slot may open behind rows that are still on their way. */
bool speculate_may_open(const struct sequence *sequence);
/* The row's head says `id` comes next; `exact`: it has left, so it does if the row's own id is certain. */
void speculate_propose(struct sequence *sequence, struct slot *slot, int32_t id, bool exact);
/* The certain next id of the last certain position: the proposal comes true, or what runs behind it is dropped. slot:
 * the row that predicted. */
void speculate_verify(struct sequence *sequence, const struct slot *slot, int32_t id);

#endif
