/* What engine.c (passes) and sequence.c (rows in flight) share. */
#ifndef ENGINE_INTERNAL_H
#define ENGINE_INTERNAL_H

#include "engine/engine.h"

#define SLOT_BY_RULE 0 /* a target: the exit rule decides */

/* A row in flight: one position on its way through the loops. */
struct slot {
    int32_t position;
    int32_t done;      /* loops run */
    int32_t target;    /* loops it will run, or SLOT_BY_RULE */
    int32_t predicted; /* loops of the row that predicted; 0 while it has not */
    int32_t row;       /* of sequence.h, where its hidden state waits */
    bool predicts;     /* a prediction is wanted */
    bool waiting;      /* it has left (full policy) and runs on only when dragged along */
    struct exit_state exit;
    float probs[MODEL_LOOPS_MAX];
};

struct sequence {
    struct engine *engine;
    struct sequence_options options;
    struct kv_sequence kv;
    struct sampler *sampler;
    int32_t last;         /* the last step of the rule: its resolved max */
    int32_t *ids;         /* [capacity] */
    uint8_t *targets;     /* [capacity] loops asked for, SLOT_BY_RULE for generated ids */
    int32_t n_ids, n_fed; /* ids; those that have been given a slot */
    bool generating, settling;
    bool tail_sampled;  /* the last id was generated: it runs when more is wanted */
    struct slot *slots; /* [slots_max] by position */
    int32_t n_slots,
        slots_max;      /* as many as a pass has rows: all of them may have to enter one together (full policy) */
    int32_t *free_rows; /* stack of rows of h */
    int32_t n_free_rows;
    real *h;   /* [slots_max, D] */
    real *mix; /* [V] sum of p logits, for the mix rule */
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
    struct sequence **sequences; /* [sequences_max] */
    int32_t n_sequences, next;   /* where the next pass starts looking */
    /* the pass being built */
    struct run *runs;      /* [rows_max] */
    struct pass_row *rows; /* [rows_max] */
    int32_t *indices;      /* [rows_max] rows of sequence.h */
    real *distance;        /* [rows_max] */
    int32_t n_runs, n_rows;
    /* after the pass */
    struct kv_lend *lends; /* [lends_max] */
    int32_t n_lends, lends_max;
    int32_t *heads; /* [rows_max] pass rows whose head is read */
    int32_t n_heads;
    real *head_h, *logits, *lse, *max; /* [ENGINE_HEAD_ROWS, D], [.., V], [..], [..] */
    struct engine_counters counters;
};

/* Gives waiting ids their slots (as a chunk of at most `room` rows) and collects the rows that are ready into the
 * engine's pass. Returns rows added, 0 when none is ready or none fits, -1 when blocks are missing. */
int32_t sequence_plan(struct sequence *sequence, int32_t room);
/* The slot has been through a pass: counts the loop and advances its exit distribution. */
void slot_advance(struct sequence *sequence, struct slot *slot, float lambda);
/* Drops slots that are finished, keeping the order. */
void sequence_sweep(struct sequence *sequence);
/* The slot has loops to run by itself, not only when dragged along. */
bool slot_wants(const struct sequence *sequence, const struct slot *slot);

#endif
