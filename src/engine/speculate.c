/* Wavefront speculation (engine_internal.h): a row still on its way proposes the next token, whose row follows it one
 * loop behind, so that several rows of one sequence run in a pass, on a diagonal.
 *
 *      pass        1    2    3    4    5
 *      position p  r=1  r=2  r=3  r=4            after loop 1 the head proposes the id at p + 1;
 *      p + 1            r=1  r=2  r=3  r=4       p's exit decides whether that was right
 *      p + 2                 r=1  r=2  r=3
 *
 * Proposal and verification pick with the same noise, that of their position, so what comes out is what plain decoding
 * samples, bit for bit. A deeper loop that proposes otherwise replaces the proposal and the rows behind it: where two
 * loops differ the deeper one is nearly always the one that agrees with the exit (docs/speculation.md). A row whose own
 * id is only proposed may leave; its prediction is held until the id is certain.
 *
 * A row is worth its place when the chance that it is used, times what a row costs on average, exceeds what one more
 * row costs, its share of the head included. While that is not so a try is made now and then, to notice when it is. */
#include "engine/engine_internal.h"

#define ACCEPTED_FIRST 0.7f /* before anything is known */
#define ACCEPTED_RATE 0.12f
#define WAIT_MIN 8 /* tokens between tries while speculation does not pay; doubles with each try in vain */
#define WAIT_MAX 64
#define COST_KEEP 0.97 /* of the past, with each measurement */

void speculation_begin(struct speculation *p) {
    *p = (struct speculation){.wait = WAIT_MIN};
    for (int i = 0; i < SPECULATE_DEPTHS; i++) p->accepted[i] = ACCEPTED_FIRST;
}

/* ---- costs ------------------------------------------------------------------------------------------------------ */

void cost_add(struct cost_line *c, double n, double seconds) {
    double typical = cost_at(c, n);
    if (c->weight > 4 && seconds > 3 * typical) seconds = 3 * typical; /* somebody else had the processor */
    c->weight = COST_KEEP * c->weight + 1;
    c->n = COST_KEEP * c->n + n;
    c->t = COST_KEEP * c->t + seconds;
    c->nn = COST_KEEP * c->nn + n * n;
    c->nt = COST_KEEP * c->nt + n * seconds;
}

double cost_slope(const struct cost_line *c) {
    double spread = c->nn * c->weight - c->n * c->n;
    if (spread < 1e-3 * c->weight * c->weight) return 0; /* all of one size: nothing is known, and it is worth a try */
    double slope = (c->nt * c->weight - c->n * c->t) / spread;
    return slope > 0 ? slope : 0;
}

double cost_at(const struct cost_line *c, double n) {
    if (c->weight == 0) return 0;
    return c->t / c->weight + cost_slope(c) * (n - c->n / c->weight);
}

/* ---- proposing -------------------------------------------------------------------------------------------------- */

static int32_t all_ids(const struct sequence *s) {
    return s->n_ids + s->n_proposed;
}

/* The chance that a row is used whose predecessor proposed it after `loops`: all proposals up to it must come true. */
static float chance(const struct sequence *s, const struct slot *slot, int32_t loops) {
    float a = s->speculation.accepted[loops - 1];
    for (int32_t p = s->n_ids; p <= slot->position; p++) a *= s->speculation.accepted[0];
    return a;
}

static bool pays(const struct engine *e, const struct sequence *s, const struct slot *slot) {
    double rows = e->n_rows, left = s->last - slot->done;
    double one_more = cost_slope(&e->pass_cost) + cost_at(&e->head_cost, 1) / left;
    return chance(s, slot, slot->done) * cost_at(&e->pass_cost, rows) / rows > one_more;
}

bool speculate_wants(const struct engine *e, const struct sequence *s, const struct slot *slot) {
    if (s->options.speculate == SPECULATE_OFF || !s->generating || s->draining || !slot->predicts || slot->predicted)
        return false;
    if (slot->done > SPECULATE_DEPTHS || slot->done >= s->last || slot->position + 1 >= s->options.capacity)
        return false;
    if (s->options.speculate == SPECULATE_ALWAYS) return true;
    if (slot->position + 1 < all_ids(s)) return true; /* it has a proposal, which this loop may correct */
    if (e->n_rows > SPECULATE_ROWS_MAX) return false;
    return pays(e, s, slot) || s->speculation.waited >= s->speculation.wait;
}

bool speculate_may_open(const struct sequence *s) {
    if (s->options.speculate == SPECULATE_OFF || !s->generating || s->draining || s->settling || s->n_slots == 0)
        return false;
    if (s->n_fed >= all_ids(s) || s->n_fed + 1 < s->n_ids || s->n_slots >= sequence_backlog_max(s)) return false;
    return s->slots[s->n_slots - 1].done > 0 && s->n_fed - s->n_ids + 2 <= s->n_kept;
}

void speculate_propose(struct sequence *s, struct slot *slot, int32_t id, bool exact) {
    struct engine *e = s->engine;
    int32_t next = slot->position + 1;
    if (next >= s->options.capacity || next < s->n_ids) return;
    if (!exact) {
        if (s->options.on_proposal) id = s->options.on_proposal(s->options.context, s, next, slot->done, id);
        slot->proposals[slot->done - 1] = id;
        e->counters.proposals[slot->done - 1]++;
        s->counters.proposals[slot->done - 1]++;
    }
    if (next < all_ids(s)) {
        if (s->ids[next] == id) return;
        e->counters.replaced++;
        sequence_drop(s, next);
    }
    s->ids[next] = id;
    s->targets[next] = sequence_target(s, next);
    s->n_proposed++;
}

/* ---- verifying -------------------------------------------------------------------------------------------------- */

static void learn(struct sequence *s, const struct slot *slot, int32_t id) {
    struct speculation *p = &s->speculation;
    bool tried = false;
    for (int i = 0; i < SPECULATE_DEPTHS; i++) {
        if (slot->proposals[i] < 0) continue;
        bool right = slot->proposals[i] == id;
        p->accepted[i] += ACCEPTED_RATE * ((right ? 1.0f : 0.0f) - p->accepted[i]);
        s->engine->counters.accepted[i] += right;
        s->counters.accepted[i] += right;
        if (p->waited >= p->wait && i == 0)
            p->wait = right ? WAIT_MIN : p->wait * 2 < WAIT_MAX ? p->wait * 2 : WAIT_MAX;
        tried = true;
    }
    p->waited = tried ? 0 : p->waited + 1;
}

void speculate_verify(struct sequence *s, const struct slot *slot, int32_t id) {
    if (s->options.speculate != SPECULATE_OFF) learn(s, slot, id);
    if (s->n_proposed > 0 && s->ids[s->n_ids] == id) {
        s->n_proposed--;
    } else {
        sequence_drop(s, s->n_ids);
        s->ids[s->n_ids] = id;
        s->targets[s->n_ids] = sequence_target(s, s->n_ids);
    }
    s->n_ids++;
    s->tail_sampled = true;
}
