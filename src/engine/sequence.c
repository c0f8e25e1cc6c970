/* Sequences: ids, the rows in flight, and which of them may enter the next pass (engine_internal.h). */
#include "engine/engine_internal.h"

#include <stdlib.h>
#include <string.h>

/* Rows of kept logits that the options need. */
static int32_t kept_rows(const struct sequence_options *o, int32_t planes) {
    return o->speculate != SPECULATE_OFF ? planes + 1 : o->rule.kind == EXIT_MIX;
}

static int32_t slots_of(const struct engine *e, const struct sequence_options *o) {
    return o->slots_max > 0 && o->slots_max < e->options.rows_max ? o->slots_max : e->options.rows_max;
}

static int sequence_allocate(struct sequence *s, looplm_error *err) {
    const struct model_config *c = &s->engine->model->config;
    struct backend *backend = s->engine->model->backend;
    int32_t planes = s->engine->options.planes;
    size_t capacity = (size_t)s->options.capacity;
    s->capacity_max = s->options.capacity;
    s->n_rows_max = slots_of(s->engine, &s->options);
    s->ids = malloc(capacity * sizeof *s->ids);
    s->targets = malloc(capacity);
    s->slots = malloc((size_t)s->n_rows_max * sizeof *s->slots);
    s->free_rows = malloc((size_t)s->n_rows_max * sizeof *s->free_rows);
    s->h = backend->alloc(backend, (size_t)s->n_rows_max * (size_t)c->hidden * sizeof(real));
    s->n_kept_max = kept_rows(&s->options, planes);
    if (s->n_kept_max) s->kept = backend->alloc(backend, (size_t)s->n_kept_max * (size_t)c->vocab * sizeof(real));
    if (!s->ids || !s->targets || !s->slots || !s->free_rows || !s->h || (s->n_kept_max && !s->kept))
        return error_set(err, LOOPLM_MEMORY, "a sequence of %d positions could not be had", s->options.capacity);
    int status = sampler_open(&s->sampler, c->vocab, err);
    if (status) return status;
    return kv_sequence_init(&s->kv, &s->engine->pool, s->options.policy, planes, s->options.capacity, err);
}

int sequence_options_check(const struct engine *engine, struct sequence_options *options, int32_t *planes,
                           looplm_error *err) {
    const struct model_config *c = &engine->model->config;
    if (options->score && (options->rule.kind == EXIT_MIX))
        return error_set(err, LOOPLM_UNSUPPORTED, "exit rule mix does not score whole prompts; use another rule");
    if (options->adaptive_prompt && options->policy != KV_POLICY_LAST_EXITED)
        return error_set(err, LOOPLM_UNSUPPORTED, "adaptive prefill needs the KV policy last-exited");
    if (options->score && options->speculate != SPECULATE_OFF)
        return error_set(err, LOOPLM_UNSUPPORTED, "scoring knows every id: there is nothing to speculate about");
    if (options->speculate != SPECULATE_OFF && options->policy != KV_POLICY_LAST_EXITED &&
        options->policy != KV_POLICY_FULL)
        return error_set(
            err, LOOPLM_UNSUPPORTED,
            "speculation needs the KV policy last-exited or full: a row that reads what an earlier token's "
            "last loop left cannot run ahead of it");
    int status = sampler_options_check(&options->sampler, err);
    if (!status) status = exit_rule_resolve(&options->rule, c->loops, c->exit_gate, planes, err);
    if (!status && *planes > engine->options.planes)
        status =
            error_set(err, LOOPLM_LIMIT, "exit rule: %d loops need as many KV planes, and the engine was opened for %d",
                      *planes, engine->options.planes);
    return status;
}

/* Empties it and takes the options, which have been checked. */
static void sequence_begin(struct sequence *s, const struct sequence_options *options, int32_t planes) {
    s->options = *options;
    if (s->options.number == 0) s->options.number = ++s->engine->n_opened;
    s->last = s->options.rule.max;
    s->n_kept = kept_rows(options, planes);
    s->slots_max = slots_of(s->engine, options);
    CHECK_LE(options->capacity, s->capacity_max);
    CHECK_LE(s->slots_max, s->n_rows_max);
    CHECK_LE(s->n_kept, s->n_kept_max);
    sequence_release(s);
    kv_reuse(&s->kv, options->policy, planes);
    s->kv.owes = options->policy == KV_POLICY_LAST_EXITED;
    speculation_begin(&s->speculation, s->last);
    s->counters = (struct sequence_counters){0};
}

void sequence_release(struct sequence *s) {
    kv_release(&s->kv);
    s->n_ids = s->n_fed = s->n_given = s->n_turn = s->n_proposed = s->n_slots = s->n_free_rows = 0;
    s->generating = s->settling = s->draining = s->tail_sampled = false;
    for (int32_t i = 0; i < s->slots_max; i++) s->free_rows[s->n_free_rows++] = s->slots_max - 1 - i;
}

static bool before(const struct sequence *a, const struct sequence *b) {
    if (a->options.priority != b->options.priority) return a->options.priority > b->options.priority;
    return a->options.number < b->options.number;
}

static void list_insert(struct engine *e, struct sequence *s) {
    int32_t i = e->n_sequences++;
    for (; i > 0 && before(s, e->sequences[i - 1]); i--) e->sequences[i] = e->sequences[i - 1];
    e->sequences[i] = s;
}

static void list_remove(struct engine *e, const struct sequence *s) {
    int32_t i = 0;
    while (i < e->n_sequences && e->sequences[i] != s) i++;
    if (i == e->n_sequences) return;
    for (e->n_sequences--; i < e->n_sequences; i++) e->sequences[i] = e->sequences[i + 1];
}

int sequence_open(struct sequence **out, struct engine *engine, const struct sequence_options *options,
                  looplm_error *err) {
    *out = NULL;
    int32_t planes;
    struct sequence_options checked = *options;
    if (engine->n_sequences == engine->options.sequences_max)
        return error_set(err, LOOPLM_LIMIT, "the engine holds %d sequences, its limit", engine->n_sequences);
    int status = sequence_options_check(engine, &checked, &planes, err);
    if (status) return status;
    struct sequence *s = calloc(1, sizeof *s);
    if (!s) return error_set(err, LOOPLM_MEMORY, "a sequence could not be had");
    s->engine = engine;
    s->options = checked;
    status = sequence_allocate(s, err);
    if (status) {
        sequence_close(s);
        return status;
    }
    sequence_begin(s, &checked, planes);
    list_insert(engine, s);
    *out = s;
    return 0;
}

int sequence_reopen(struct sequence *s, const struct sequence_options *options, looplm_error *err) {
    int32_t planes;
    struct sequence_options checked = *options;
    int status = sequence_options_check(s->engine, &checked, &planes, err);
    if (status) return status;
    list_remove(s->engine, s);
    sequence_begin(s, &checked, planes);
    list_insert(s->engine, s);
    return 0;
}

void sequence_close(struct sequence *s) {
    if (!s) return;
    struct engine *e = s->engine;
    list_remove(e, s);
    struct backend *backend = e->model->backend;
    if (s->kv.pool) kv_sequence_free(&s->kv);
    if (s->h) backend->release(backend, s->h, (size_t)s->n_rows_max * (size_t)e->model->config.hidden * sizeof(real));
    size_t kept = (size_t)s->n_kept_max * (size_t)e->model->config.vocab * sizeof(real);
    if (s->kept) backend->release(backend, s->kept, kept);
    sampler_close(s->sampler);
    free(s->ids);
    free(s->targets);
    free(s->slots);
    free(s->free_rows);
    free(s);
}

static int check_ids(const struct sequence *s, const int32_t *ids, int32_t n, looplm_error *err) {
    int32_t vocab = s->engine->model->config.vocab;
    if (n > s->options.capacity - s->n_ids)
        return error_set(
            err, LOOPLM_LIMIT,
            "context: %d tokens and %d more exceed its length of %d; raise --context or shorten the prompt", s->n_ids,
            n, s->options.capacity);
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return error_set(err, LOOPLM_USAGE, "token id %d at index %d is outside the vocabulary of %d", ids[i], i,
                             vocab);
    return 0;
}

/* The caller knows better what comes next: proposals go, and a held prediction of the last id is no longer wanted. */
static void forget_guesses(struct sequence *s) {
    if (s->options.speculate == SPECULATE_OFF) return;
    sequence_drop(s, s->n_ids);
    if (s->n_slots == 0) return;
    struct slot *last = &s->slots[s->n_slots - 1];
    if (last->position + 1 != s->n_ids) return;
    last->held = last->predicts = false;
    sequence_sweep(s);
}

static int append(struct sequence *s, const int32_t *ids, const uint8_t *depths, int32_t n, looplm_error *err) {
    int status = check_ids(s, ids, n, err);
    if (status) return status;
    for (int32_t i = 0; i < n; i++)
        if (depths && depths[i] > s->kv.loops)
            return error_set(err, LOOPLM_USAGE, "depth %d at index %d is outside 1 to %d", depths[i], i, s->kv.loops);
    if (n > 0) forget_guesses(s);
    for (int32_t i = 0; i < n; i++) {
        s->ids[s->n_ids + i] = ids[i];
        s->targets[s->n_ids + i] = depths                       ? depths[i]
                                   : s->options.adaptive_prompt ? SLOT_BY_RULE
                                                                : (uint8_t)s->kv.loops;
    }
    if (n > 0) s->tail_sampled = false;
    s->n_ids += n;
    s->n_given = s->n_ids;
    return 0;
}

int sequence_feed(struct sequence *s, const int32_t *ids, const uint8_t *depths, int32_t n, looplm_error *err) {
    int status = append(s, ids, depths, n, err);
    if (status || n == 0) return status;
    /* A generated id that has not run belongs to the turn that follows it; with shared planes it runs as the turn does.
     */
    if (kv_policy_shared(s->options.policy))
        for (int32_t p = s->n_fed; p < s->n_ids - n; p++) s->targets[p] = (uint8_t)s->kv.loops;
    s->n_turn = s->n_ids;
    return 0;
}

int sequence_replay(struct sequence *s, const int32_t *ids, const uint8_t *depths, int32_t n, looplm_error *err) {
    return append(s, ids, depths, n, err);
}

void sequence_generate(struct sequence *s, bool on) {
    s->generating = on;
}
void sequence_set_sampler(struct sequence *s, const struct sampler_options *sampler) {
    s->options.sampler = *sampler;
    if (s->options.speculate != SPECULATE_OFF) sequence_drop(s, s->n_ids); /* proposed with the old one's noise */
}
int32_t sequence_length(const struct sequence *s) {
    return s->n_ids;
}
int32_t sequence_run_length(const struct sequence *s) {
    return s->n_fed;
}
const int32_t *sequence_ids(const struct sequence *s) {
    return s->ids;
}
const uint8_t *sequence_targets(const struct sequence *s) {
    return s->targets;
}
const struct kv_sequence *sequence_kv(const struct sequence *s) {
    return &s->kv;
}
struct kv_sequence *sequence_kv_mutable(struct sequence *s) {
    return &s->kv;
}
const struct sequence_counters *sequence_counters(const struct sequence *s) {
    return &s->counters;
}
bool sequence_tail_sampled(const struct sequence *s) {
    return s->tail_sampled;
}

bool slot_wants(const struct sequence *s, const struct slot *slot) {
    if (slot->waiting) return s->settling;
    bool guessed = s->options.speculate != SPECULATE_OFF && slot->position >= s->n_ids - s->tail_sampled;
    if (guessed && !s->generating) return false;
    return slot->target == SLOT_BY_RULE || slot->done < slot->target;
}

static bool any_wants(const struct sequence *s) {
    for (int32_t i = 0; i < s->n_slots; i++)
        if (slot_wants(s, &s->slots[i])) return true;
    return false;
}

/* A generated id runs only while more is wanted: the last one stays an id without planes. */
static bool has_unfed(const struct sequence *s) {
    if (s->n_fed < s->n_ids - s->tail_sampled) return true;
    return s->n_fed < s->n_ids + s->n_proposed && s->generating && !s->draining;
}

bool sequence_idle(const struct sequence *s) {
    return !any_wants(s) && !has_unfed(s);
}

bool sequence_prefills(const struct sequence *s) {
    if (s->n_fed < s->n_given) return true;
    for (int32_t i = 0; i < s->n_slots && s->slots[i].position < s->n_given; i++)
        if (!s->slots[i].waiting) return true;
    return false;
}

bool sequence_adopt(struct sequence *s, struct sequence *from, int32_t n) {
    CHECK_EQ(s->n_fed, 0);
    CHECK_LT(n, s->n_ids);
    if (!kv_fork(&s->kv, &from->kv, n)) return false;
    s->n_fed = n;
    return true;
}

void sequence_adopt_block(struct sequence *s, void *const *blocks) {
    CHECK_EQ(s->n_fed, s->kv.positions);
    CHECK_LT(s->n_fed + KV_BLOCK, s->n_ids);
    kv_append(&s->kv, blocks);
    s->n_fed += KV_BLOCK;
}

static void slot_open(struct sequence *s, int32_t position, bool last_of_ids) {
    struct slot *slot = &s->slots[s->n_slots++];
    *slot = (struct slot){.position = position, .target = s->targets[position], .row = s->free_rows[--s->n_free_rows]};
    slot->predicts = s->options.score || (last_of_ids && s->generating);
    slot->exit = exit_begin();
    slot->studied = slot->predicts && speculate_studies(s);
    for (int i = 0; i < SPECULATE_DEPTHS; i++) slot->proposals[i] = -1;
}

/* Ids without a slot get one, a chunk at a time; the next chunk only when the last has finished. Without speculation a
 * sequence is therefore at one loop at a time. */
static bool open_chunk(struct sequence *s, int32_t room) {
    int32_t total = s->n_ids + s->n_proposed, n = total - s->n_fed, free_slots = s->slots_max - s->n_slots;
    if (n > room) n = room;
    if (n > free_slots) n = free_slots;
    bool generated = s->n_fed >= s->n_turn;
    if (kv_policy_shared(s->options.policy)) { /* a generated row reads what the one before it has left */
        int32_t most = generated ? 1 : s->n_turn - s->n_fed;
        if (n > most) n = most;
    }
    if (n < 1) return true;
    if (!kv_begin(&s->kv, s->n_fed, s->n_fed + n, generated)) return false;
    for (int32_t i = 0; i < n; i++, s->n_fed++) slot_open(s, s->n_fed, s->n_fed + 1 == total);
    return true;
}

/* They never fill all slots, so that a chunk always gets one. */
int32_t sequence_backlog_max(const struct sequence *s) {
    return s->slots_max < ENGINE_BACKLOG_MAX ? s->slots_max : ENGINE_BACKLOG_MAX;
}

/* Which slots enter the next pass, as the loop each runs (-1: none): those that want to run, and under the full policy
 * those that left earlier and still owe a loop which a later one runs. A row enters only if every earlier one that
 * lends it nothing is through its loop or enters with it (invariant 2). Positions >= end stay out. Returns their
 * number. */
static int32_t choose_slots(struct sequence *s, int32_t end) {
    int32_t last_wanting[MODEL_LOOPS_MAX], n = 0, floor = MODEL_LOOPS_MAX + 1; /* floor: least loops of earlier slots */
    for (int32_t r = 0; r < s->kv.loops; r++) last_wanting[r] = -1;
    for (int32_t i = 0; i < s->n_slots; i++) {
        const struct slot *slot = &s->slots[i];
        if (slot->position < end && slot_wants(s, slot)) last_wanting[slot->done] = slot->position;
    }
    for (int32_t i = 0; i < s->n_slots; i++) {
        struct slot *slot = &s->slots[i];
        bool lent = slot->waiting && s->kv.policy != KV_POLICY_FULL;
        slot->enters = !lent && slot->done < s->kv.loops && slot->position <= last_wanting[slot->done] &&
                       floor > slot->done && (slot->waiting || slot_wants(s, slot));
        n += slot->enters;
        if (!lent && slot->done + slot->enters < floor) floor = slot->done + slot->enters;
    }
    return n;
}

/* The position of the n-th slot that would enter. */
static int32_t entering(const struct sequence *s, int32_t n) {
    for (int32_t i = 0; i < s->n_slots; i++)
        if (s->slots[i].enters && --n == 0) return s->slots[i].position;
    return s->options.capacity;
}

static void add_row(struct sequence *s, int32_t slot, int32_t loop, bool extends) {
    struct engine *e = s->engine;
    if (!extends)
        e->runs[e->n_runs++] = (struct run){
            .row = e->n_rows, .first = s->slots[slot].position, .loop = loop, .blocks = kv_table(&s->kv, loop)};
    e->runs[e->n_runs - 1].count++;
    e->indices[e->n_rows] = s->slots[slot].row;
    e->rows[e->n_rows++] = (struct pass_row){s, slot};
}

/* Deepest loop first: a sequence's rows then stand in order of position, and are verified in that order. Mute rows are
 * of the deepest loop and before all others, so that they may enter earlier. */
static void add_rows(struct sequence *s, int32_t n, bool mute) {
    bool silent = true;
    for (int32_t loop = s->kv.loops - 1; n > 0; loop--) {
        int32_t previous = -2;
        for (int32_t i = 0; i < s->n_slots; i++) {
            if (!s->slots[i].enters || s->slots[i].done != loop) continue;
            if (loop + 1 < s->kv.loops || slot_undecided(&s->slots[i])) silent = false;
            if (silent != mute) {
                n--;
                continue;
            }
            add_row(s, i, loop, s->slots[i].position == previous + 1);
            previous = s->slots[i].position;
            n--;
        }
    }
}

int32_t sequence_rows(struct sequence *s, int32_t end) {
    return choose_slots(s, end);
}

int32_t sequence_plan(struct sequence *s, int32_t room, int32_t chunk) {
    s->n_enter = 0;
    s->end = s->n_ids;
    if (!any_wants(s)) {
        if (s->n_slots >= sequence_backlog_max(s)) s->settling = true;
        if (!s->settling && has_unfed(s) && !open_chunk(s, chunk)) return -1;
        if (!any_wants(s)) return 0;
    } else if (s->n_fed < s->n_ids && speculate_may_open(s)) {
        open_chunk(s, 1); /* without blocks it has to wait */
    }
    int32_t n = choose_slots(s, s->end);
    if (n > room)
        n = choose_slots(s, s->end = entering(s, room + 1)); /* a chunk's last positions fall behind by a loop */
    return s->n_enter = n > room ? 0 : n;
}

void sequence_open_guess(struct sequence *s) {
    if (s->n_fed < s->n_ids || !speculate_may_open(s)) return;
    int64_t spare = (int64_t)(s->engine->n_sequences + 1) * s->kv.loops;
    if (s->n_fed >= s->kv.positions && kv_pool_available(s->kv.pool) < spare) return;
    open_chunk(s, 1);
}

void sequence_enter(struct sequence *s, bool mute) {
    if (s->n_enter) add_rows(s, choose_slots(s, s->end), mute);
}

real *sequence_kept(const struct sequence *s, int32_t position) {
    return s->kept + (size_t)(position % s->n_kept) * (size_t)s->engine->model->config.vocab;
}

void sequence_drop(struct sequence *s, int32_t position) {
    if (s->n_proposed > 0) s->n_proposed = position > s->n_ids ? position - s->n_ids : 0;
    if (s->n_fed <= position) return;
    while (s->n_slots > 0 && s->slots[s->n_slots - 1].position >= position) {
        const struct slot *slot = &s->slots[--s->n_slots];
        s->free_rows[s->n_free_rows++] = slot->row;
        s->engine->counters.dropped_rows += slot->done;
        s->counters.dropped_rows += slot->done;
    }
    s->n_fed = position;
    kv_drop(&s->kv, position);
}

void slot_advance(struct sequence *s, struct slot *slot, float lambda) {
    slot->done++;
    if (slot->done <= s->last && !slot->predicted)
        slot->probs[slot->done - 1] = exit_advance(&slot->exit, lambda, slot->done == s->last);
}

void sequence_sweep(struct sequence *s) {
    int32_t kept = 0;
    for (int32_t i = 0; i < s->n_slots; i++) {
        const struct slot *slot = &s->slots[i];
        bool left = s->kv.left[slot->position] != 0;
        bool finished = left && (s->kv.policy != KV_POLICY_FULL || slot->done == s->kv.loops);
        if (finished && !slot->held)
            s->free_rows[s->n_free_rows++] = slot->row;
        else
            s->slots[kept++] = *slot;
    }
    s->n_slots = kept;
    if (!kept) s->settling = false;
}

int sequence_settle(struct sequence *s, looplm_error *err) {
    int status = 0;
    if (s->options.speculate != SPECULATE_OFF) {
        sequence_drop(s, s->n_ids - s->tail_sampled);
        if (s->n_slots > 0 && s->slots[s->n_slots - 1].held) sequence_drop(s, s->slots[s->n_slots - 1].position);
    }
    s->draining = true;
    while (s->n_slots > 0 && !status) {
        if (!any_wants(s)) s->settling = true;
        bool ran;
        status = engine_step(s->engine, &ran, err);
    }
    s->draining = false;
    if (status) return status;
    kv_pay(&s->kv, s->n_fed);
    kv_truncate(&s->kv, s->n_fed);
    return 0;
}

int sequence_restore(struct sequence *s, const int32_t *ids, const uint8_t *depths, int32_t n, int32_t n_run,
                     bool tail_sampled, looplm_error *err) {
    CHECK_EQ(s->n_ids, 0);
    int status = check_ids(s, ids, n, err);
    if (status) return status;
    if (!kv_reserve(&s->kv, n_run)) return error_set(err, LOOPLM_LIMIT, "KV cache: no blocks for %d positions", n_run);
    for (int32_t i = 0; i < n; i++) {
        s->ids[i] = ids[i];
        s->targets[i] = tail_sampled && i + 1 == n ? SLOT_BY_RULE : depths[i];
    }
    s->tail_sampled = tail_sampled;
    s->n_ids = s->n_given = n;
    s->n_turn = n - tail_sampled;
    s->n_fed = n_run;
    for (int32_t i = 0; i < n_run; i++) {
        s->kv.left[i] = depths[i];
        s->kv.done[i] = s->kv.policy == KV_POLICY_FULL ? (uint8_t)s->kv.loops : depths[i];
    }
    for (int32_t r = 0; r < s->kv.loops; r++) s->kv.ready[r] = s->kv.there[r] = n_run;
    return 0;
}
