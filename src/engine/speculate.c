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
 * What pays. The engine knows what passes and heads of so many rows took, and what a used row has cost it of late
 * (`worth`, seconds). A guessed row enters a pass while its chance times `worth` exceeds what it adds to the time of
 * the pass; certain rows have entered before. A head is read to propose when what the rows behind would gain exceeds
 * the read; a deeper loop reads again, and replaces the proposal, when it is right so much more often that it pays. Now
 * and then a row is studied: its head is read after every loop. docs/speculation.md has the sums and the measurements.
 */
#include "engine/engine_internal.h"

#define SEEN_LEAST 2 /* proposals that the first shares count for */
#define SEEN_MOST 16 /* and the running mean at most */
#define LOOPS_RATE 0.1f
#define STUDY_SHARE 0.01 /* of the time of plain decoding, for studying */
#define STUDY_LEAST 8    /* rows between two that are studied */
#define STUDY_MOST 64
#define COST_FIRST                                                                                     \
    4 /* measurements, of which the least begins a mean: some were made cold. Before, nothing is known \
       */
#define COST_RATE 0.0625 /* of a new one; what lies further off the mean than a quarter counts as that */
#define COST_STEP 0.25
#define COST_DOUBT                                                                                               \
    0.002            /* what more rows were found to add shrinks so much with a pass, until they are tried again \
                      */
#define COST_REACH 4 /* rows beyond those known that are taken to be free, and so are tried */
#define WORTH_KEEP 0.9

void speculation_begin(struct speculation *p, int32_t loops) {
    static const float first[SPECULATE_DEPTHS] = {0.6f, 0.75f, 0.85f};
    *p = (struct speculation){.loops = (float)loops, .waited = INT32_MAX / 2};
    for (int i = 0; i < SPECULATE_DEPTHS; i++) p->accepted[i] = first[i];
}

/* ---- costs ------------------------------------------------------------------------------------------------------ */

static bool cost_known(const struct cost_table *c, int32_t n) {
    return c->seen[n] >= COST_FIRST;
}

void cost_add(struct cost_table *c, int32_t n, double seconds) {
    if (n >= ENGINE_ROWS_COUNTED) return;
    double *mean = &c->seconds[n];
    if (!cost_known(c, n)) {
        if (c->seen[n]++ == 0 || seconds < *mean) *mean = seconds;
    } else {
        double off = seconds / *mean - 1;
        off = off > COST_STEP ? COST_STEP : off < -COST_STEP ? -COST_STEP : off;
        *mean += COST_RATE * off * *mean;
    }
    c->last = n;
    c->doubt[n] = 1;
    for (int32_t m = n + 1; m <= n + COST_REACH && m < ENGINE_ROWS_COUNTED; m++) c->doubt[m] *= 1 - COST_DOUBT;
}

/* Of a known number: no more than any larger one was found to take, and what it takes above the last pass, as far as
 * that is believed. */
static double cost_believed(const struct cost_table *c, int32_t n) {
    double seconds = c->seconds[n], base = c->seconds[c->last];
    for (int32_t m = n + 1; m < ENGINE_ROWS_COUNTED; m++)
        if (cost_known(c, m) && c->seconds[m] < seconds) seconds = c->seconds[m];
    return n > c->last && seconds > base ? base + c->doubt[n] * (seconds - base) : seconds;
}

/* Known numbers of rows and straight lines between them. Where nothing is known, anything, and the same for all. */
double cost_at(const struct cost_table *c, int32_t n) {
    int32_t low = n < ENGINE_ROWS_COUNTED ? n : ENGINE_ROWS_COUNTED - 1, high = n;
    while (low > 0 && !cost_known(c, low)) low--;
    while (high < ENGINE_ROWS_COUNTED && !cost_known(c, high)) high++;
    if (low == 0 && high >= ENGINE_ROWS_COUNTED) return 1;
    if (low == 0 || low == high) return cost_believed(c, high);
    double seconds = cost_believed(c, low);
    if (high < ENGINE_ROWS_COUNTED) return seconds + (cost_believed(c, high) - seconds) * (n - low) / (high - low);
    return seconds * (n <= low + COST_REACH ? 1 : (double)n / (low + COST_REACH));
}

/* Seconds for a row more. */
static double cost_more(const struct cost_table *c, int32_t n) {
    double more = cost_at(c, n + 1) - (n > 0 ? cost_at(c, n) : 0);
    return more > 0 ? more : 0;
}

/* What a used row costs: of late, but no more than it would without guesses, to which the engine can always return. Its
 * head is read in either case. */
static double worth(const struct engine *e, int32_t certain) {
    double plain = certain > 0 ? cost_at(&e->pass_cost, certain) / certain : 1,
           late = e->used > 0 ? e->spent / e->used : plain;
    return late < plain ? late : plain;
}

void speculate_account(struct engine *e) {
    if (e->n_rows > SPECULATE_ROWS_MAX) return;
    e->spent = WORTH_KEEP * e->spent + cost_at(&e->pass_cost, e->n_rows);
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
    bool known = cost_known(&e->pass_cost, certain); /* else it is measured first */
    double used = certain, each = worth(e, certain), most = used * each - cost_at(&e->pass_cost, rows);
    for (int32_t i = 0; i < n; i++) {
        rows += guesses[i].rows;
        if (rows > e->options.rows_max) break;
        used += guesses[i].chance + guesses[i].rows - 1;
        double value = used * each - cost_at(&e->pass_cost, rows);
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
    n = count_worth(e, guesses, n, certain);
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
    double head = cost_at(&e->head_cost, 1), token = s->last * cost_at(&e->pass_cost, 1) + head,
           wait = (s->last - 1) * head / (STUDY_SHARE * token);
    wait = wait < STUDY_LEAST ? STUDY_LEAST : wait > STUDY_MOST ? STUDY_MOST : wait;
    if (s->speculation.waited++ < wait * e->n_sequences) return false;
    s->speculation.waited = 0;
    return true;
}

/* What the row behind is worth a pass, if its id is right with this chance; it enters none where that is nothing. */
static double row_gain(const struct engine *e, double right) {
    double gain = right * worth(e, e->n_certain) - cost_more(&e->pass_cost, e->n_rows);
    return gain > 0 ? gain : 0;
}

/* What a proposal now would gain, beyond the one that there is, exceeds the read of the head. */
static bool pays(const struct engine *e, const struct sequence *s, const struct slot *slot, bool read) {
    const struct speculation *p = &s->speculation;
    double left = (double)p->loops - slot->done, own = chance(s, slot->position);
    double gain = row_gain(e, own * (double)p->accepted[slot->done - 1]);
    int32_t before = slot->position + 1 < all_ids(s) ? proposed_after(slot) : 0;
    if (before) gain -= row_gain(e, own * (double)p->accepted[before - 1]);
    return gain * (left > 1 ? left : 1) > (read ? 0 : cost_more(&e->head_cost, e->n_heads));
}

bool speculate_wants(const struct engine *e, const struct sequence *s, const struct slot *slot, bool read) {
    if (s->options.speculate == SPECULATE_OFF || !s->generating || s->draining || !slot->predicts || slot->predicted)
        return false;
    if (slot->done > SPECULATE_DEPTHS || slot->done >= s->last || slot->position + 1 >= s->options.capacity)
        return false;
    if (s->options.speculate == SPECULATE_ALWAYS) return true;
    if (e->n_rows > SPECULATE_ROWS_MAX) return false;
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
