/* Wavefront speculation (engine_internal.h): a row still on its way proposes the next token, whose row follows it one
 * loop behind, so that several rows of one sequence run in a pass, on a diagonal.
 *
 *      pass        1    2    3    4    5
 *      position p  r=1  r=2  r=3  r=4            after loop 1 the head proposes the id at p + 1;
 *      p + 1            r=1  r=2  r=3  r=4       p's exit decides whether that was right
 *      p + 2                 r=1  r=2  r=3
 *
 * Proposal and verification pick with the same noise, that of their position, so what comes out is what plain decoding
 * samples, bit for bit. A row whose own id is only proposed may leave; its prediction is held until the id is certain.
 *
 * What pays. The engine knows what passes and heads of so many rows take (cost.h), and what a used row has cost it of
 * late (`worth`, seconds). A guessed row enters a pass while its chance times `worth` exceeds what it adds to the time
 * of the pass; certain rows have entered before. A head is read to propose when what the row behind would gain exceeds
 * the read, or when a whole diagonal, whose later reads share those of rows that leave, takes less than plain decoding.
 * A deeper loop reads again, and replaces the proposal, when it is right so much more often that it pays. Now and then
 * a row is studied: its head is read after every loop. docs/speculation.md has the sums and the measurements.
 */
#include "engine/engine_internal.h"

#define SEEN_LEAST 1 /* proposals that the first shares count for: hopeful ones, since trying is how to know */
#define SEEN_MOST 32 /* and the running mean at most */
#define LOOPS_RATE 0.1f
#define STUDY_SHARE 0.005 /* of the time of plain decoding, for studying */
#define STUDY_LEAST 8     /* rows between two that are studied */
#define STUDY_MOST 256
#define WORTH_KEEP 0.9
#define DIAGONAL_GAIN 0.97 /* a diagonal is tried when a token is to take so much of plain decoding's time at most */

void speculation_begin(struct speculation *p, int32_t loops) {
    static const float first[SPECULATE_DEPTHS] = {0.8f, 0.9f, 0.95f};
    *p = (struct speculation){.loops = (float)loops};
    for (int i = 0; i < SPECULATE_DEPTHS; i++) p->accepted[i] = first[i];
}

/* ---- what rows are worth ----------------------------------------------------------------------------------------- */

/* What a used row costs: of late, but no more than it would without guesses, to which the engine can always return. Its
 * head is read in either case. */
static double worth(const struct engine *e, int32_t certain) {
    double plain = certain > 0 ? cost_at(&e->costs.pass, certain) / certain : 1,
           late = e->used > 0 ? e->spent / e->used : plain;
    return late < plain ? late : plain;
}

static double mean_position(const struct engine *e) {
    double sum = 0;
    for (int32_t i = 0; i < e->n_runs; i++) {
        const struct run *run = &e->runs[i];
        sum += run->count * (run->first + (run->count - 1) / 2.0);
    }
    return sum / e->n_rows;
}

void speculate_account(struct engine *e, double seconds, bool prompt) {
    const struct cost_table *pass = &e->costs.pass;
    costs_pass(&e->costs, e->n_rows, mean_position(e), seconds, e->heads_s > 0, prompt);
    if (prompt || !cost_known(pass, e->n_rows)) return;
    e->spent = WORTH_KEEP * e->spent + cost_at(pass, e->n_rows);
    e->used = WORTH_KEEP * e->used + e->pass_used;
}

/* ---- chances ---------------------------------------------------------------------------------------------------- */

static int32_t all_ids(const struct sequence *s) {
    return s->n_ids + s->n_proposed;
}

/* The deepest loop after which the row has proposed, 0 for none. */
static int32_t proposed_after(const struct slot *slot) {
    int32_t loops = SPECULATE_DEPTHS;
    while (loops > 0 && slot->proposals[loops - 1] < 0) loops--;
    return loops;
}

/* That the row's proposal is right, if its own id is. */
static double share(const struct sequence *s, const struct slot *slot) {
    int32_t loops = proposed_after(slot);
    return slot->held || !loops ? 1 : (double)s->speculation.accepted[loops - 1];
}

/* That the id at a position is the one that comes: all proposals up to it must be right. */
static double chance(const struct sequence *s, int32_t position) {
    double all = 1;
    for (int32_t i = s->n_slots - 1; i >= 0 && s->slots[i].position + 1 >= s->n_ids; i--)
        if (s->slots[i].position < position) all *= share(s, &s->slots[i]);
    return all;
}

/* ---- guessed rows of a pass ------------------------------------------------------------------------------------- */

struct guess {
    struct sequence *sequence;
    int32_t position, rows; /* of the guess; rows that enter with it (full policy: what it drags along) */
    double chance;
};

static int32_t add_guess(struct guess *guesses, int32_t n, struct guess guess) {
    int32_t at = n;
    for (; at > 0 && guesses[at - 1].chance < guess.chance; at--) guesses[at] = guesses[at - 1];
    guesses[at] = guess;
    return n + 1;
}

/* A sequence's guesses that could enter, among those of others by falling chance. */
static int32_t find_guesses(struct sequence *s, struct guess *guesses, int32_t n) {
    int32_t rows = s->n_enter;
    sequence_open_guess(s);
    for (int32_t position = s->n_ids; position < s->n_fed && n < SPECULATE_ROWS_MAX; position++) {
        int32_t more = sequence_rows(s, position + 1) - rows;
        if (more < 1) break;
        n = add_guess(guesses, n, (struct guess){s, position, more, chance(s, position)});
        rows += more;
    }
    return n;
}

static bool speculates(const struct sequence *s) {
    return s->options.speculate != SPECULATE_OFF && s->generating && s->n_enter > 0 && s->end == s->n_ids;
}

/* The number of guesses, in their order, that makes the most of the pass: rows used at their worth, less its time. One
 * whose sequence runs all it can counts as if the pass were free. */
static int32_t count_worth(const struct engine *e, const struct guess *guesses, int32_t n, int32_t certain) {
    int32_t rows = certain, best = 0;
    bool known = cost_known(&e->costs.pass, certain); /* else it is measured first */
    double used = certain, each = worth(e, certain), most = used * each - cost_at(&e->costs.pass, rows);
    for (int32_t i = 0; i < n; i++) {
        rows += guesses[i].rows;
        if (rows > e->options.rows_max) break;
        used += guesses[i].chance + guesses[i].rows - 1;
        double value = used * each - cost_at(&e->costs.pass, rows);
        if ((value < most || !known) && guesses[i].sequence->options.speculate != SPECULATE_ALWAYS) continue;
        most = value;
        best = i + 1;
    }
    return best;
}

void speculate_fill(struct engine *e) {
    struct guess guesses[SPECULATE_ROWS_MAX];
    int32_t n = 0, certain = e->n_certain;
    e->pass_used = certain;
    if (certain > SPECULATE_ROWS_MAX) return;
    for (int32_t i = 0; i < e->n_sequences; i++)
        if (speculates(e->sequences[i])) n = find_guesses(e->sequences[i], guesses, n);
    if (n > 0) n = count_worth(e, guesses, n, certain);
    for (int32_t i = 0; i < n; i++) {
        guesses[i].sequence->end = guesses[i].position + 1;
        e->pass_used += guesses[i].chance + guesses[i].rows - 1;
        e->counters.guessed_rows++;
        e->counters.guessed_used += guesses[i].chance;
    }
}

/* ---- proposing -------------------------------------------------------------------------------------------------- */

/* The more sequences, the less often each, since a read that no other shares holds all of them up. */
bool speculate_studies(struct sequence *s) {
    const struct engine *e = s->engine;
    if (s->options.speculate == SPECULATE_OFF || s->last == 1) return false;
    double head = costs_read(&e->costs, 0), token = s->last * cost_at(&e->costs.pass, 1) + head,
           wait = (s->last - 1) * head / (STUDY_SHARE * token);
    wait = wait < STUDY_LEAST ? STUDY_LEAST : wait > STUDY_MOST ? STUDY_MOST : wait;
    if (s->speculation.waited++ < wait * e->n_sequences) return false;
    s->speculation.waited = 0;
    return true;
}

/* What the row behind is worth a pass, if its id is right with this chance; it enters none where that is nothing. */
static double row_gain(const struct engine *e, double right) {
    double gain = right * worth(e, e->n_certain) - cost_more(&e->costs.pass, e->n_rows);
    return gain > 0 ? gain : 0;
}

/* What passes with 1, 2, .. rows of one sequence take more than the others' rows without them. */
static void own_passes(const struct engine *e, int32_t loops, double *seconds) {
    int32_t others = e->n_certain - 1;
    double one = cost_at(&e->costs.pass, others + 1), without = one * others / (others + 1);
    seconds[1] = one - without;
    for (int32_t n = 2; n <= loops; n++) seconds[n] = cost_at(&e->costs.pass, others + n) - without;
}

/* Seconds of a token on a diagonal whose rows are `lag` loops apart, with proposals right with this chance. A right one
 * takes `lag` passes, of `loops` rows in all. After a wrong one a new diagonal begins: its first loops - lag passes
 * bring no token, and it reads the head for itself wherever no row leaves. */
static double diagonal(const double *pass, int32_t loops, int32_t lag, double right, double read, double shared) {
    int32_t rows = loops / lag, more = loops % lag; /* so many of the `lag` passes have a row more */
    int32_t reads = (loops - 1) / lag;
    double token = (lag - more) * pass[rows] + (more ? more * pass[rows + 1] + read : shared), again = reads * read;
    for (int32_t i = 0; i < loops - lag; i++) again += pass[1 + i / lag];
    return token + (1 - right) * again;
}

/* After a token: the lag that makes the next ones soonest, 0 for plain decoding. */
static void choose_lag(struct sequence *s) {
    const struct engine *e = s->engine;
    struct speculation *p = &s->speculation;
    int32_t loops = (int32_t)(p->loops + 0.5f), leaving = (e->n_certain - 1) / loops;
    p->lag = 0;
    if (e->n_certain > SPECULATE_ROWS_MAX || !cost_known(&e->costs.pass, e->n_certain)) return;
    double pass[MODEL_LOOPS_MAX + 1], read = costs_read(&e->costs, leaving),
                                      shared = costs_read(&e->costs, leaving + 1);
    if (s->options.rule.kind == EXIT_CONF) read = shared = 0; /* the rule reads it */
    own_passes(e, loops, pass);
    double least = DIAGONAL_GAIN * loops * pass[1];
    for (int32_t lag = 1; lag <= SPECULATE_DEPTHS && lag < loops; lag++) {
        double seconds = diagonal(pass, loops, lag, (double)p->accepted[lag - 1], read, shared);
        if (seconds >= least) continue;
        least = seconds;
        p->lag = lag;
    }
}

/* What a proposal now would gain, beyond the one that there is, exceeds the read of the head. */
static bool pays(const struct engine *e, const struct sequence *s, const struct slot *slot, bool read) {
    const struct speculation *p = &s->speculation;
    double left = (double)p->loops - slot->done, own = chance(s, slot->position);
    double gain = row_gain(e, own * (double)p->accepted[slot->done - 1]);
    int32_t before = slot->position + 1 < all_ids(s) ? proposed_after(slot) : 0;
    if (!before && slot->done == p->lag && gain > 0) return true;
    if (before) gain -= row_gain(e, own * (double)p->accepted[before - 1]);
    return gain * (left > 1 ? left : 1) > (read ? 0 : costs_read(&e->costs, e->n_heads));
}

bool speculate_wants(const struct engine *e, const struct sequence *s, const struct slot *slot, bool read) {
    if (s->options.speculate == SPECULATE_OFF || !s->generating || s->draining || !slot->predicts || slot->predicted)
        return false;
    if (slot->done > SPECULATE_DEPTHS || slot->done >= s->last || slot->position + 1 >= s->options.capacity)
        return false;
    if (s->options.speculate == SPECULATE_ALWAYS) return true;
    if (e->n_rows > SPECULATE_ROWS_MAX || !cost_known(&e->costs.pass, e->n_certain)) return false;
    return slot->studied || pays(e, s, slot, read);
}

bool speculate_may_open(const struct sequence *s) {
    if (s->options.speculate == SPECULATE_OFF || !s->generating || s->draining || s->settling || s->n_slots == 0)
        return false;
    if (s->n_fed >= all_ids(s) || s->n_fed + 1 < s->n_ids || s->n_slots >= sequence_backlog_max(s)) return false;
    return s->slots[s->n_slots - 1].done > 0 && s->n_fed - s->n_ids + 2 <= s->n_kept;
}

/* A deeper loop replaces a proposal unless it has been right less often. */
static bool replaces(const struct sequence *s, const struct slot *slot) {
    int32_t before = slot->done - 1;
    while (before > 0 && slot->proposals[before - 1] < 0) before--;
    return !before || s->speculation.accepted[slot->done - 1] >= s->speculation.accepted[before - 1];
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
        if (s->ids[next] == id || (!exact && !replaces(s, slot))) return;
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
    p->loops += LOOPS_RATE * ((float)slot->predicted - p->loops);
    for (int i = 0; i < SPECULATE_DEPTHS; i++) {
        if (slot->proposals[i] < 0) continue;
        bool right = slot->proposals[i] == id;
        if (p->seen[i] < SEEN_MOST - SEEN_LEAST) p->seen[i]++;
        p->accepted[i] += ((right ? 1.0f : 0.0f) - p->accepted[i]) / (float)(p->seen[i] + SEEN_LEAST);
        s->engine->counters.verified[i]++;
        s->engine->counters.accepted[i] += right;
        s->counters.accepted[i] += right;
    }
}

void speculate_verify(struct sequence *s, const struct slot *slot, int32_t id) {
    if (s->options.speculate != SPECULATE_OFF) {
        learn(s, slot, id);
        choose_lag(s);
    }
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
