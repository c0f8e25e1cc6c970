/* The engine's pass (engine.h): collect rows, run the stack once, let rows leave, read the head where a prediction is
 * wanted. */
#include "engine/engine_internal.h"

#include "base/clock.h"
#include "base/mathfn.h"

#include <stdlib.h>
#include <string.h>

#define PROMPTS_WAIT_MAX 8 /* passes in which no prompt got a row */

static int engine_allocate(struct engine *e, looplm_error *err) {
    const struct model_config *c = &e->model->config;
    struct backend *backend = e->model->backend;
    size_t rows = (size_t)e->options.rows_max, head = ENGINE_HEAD_ROWS;
    e->lends_max = e->options.rows_max * e->options.planes;
    e->sequences = calloc((size_t)e->options.sequences_max, sizeof(struct sequence *));
    e->runs = malloc(rows * sizeof *e->runs);
    e->rows = malloc(rows * sizeof *e->rows);
    e->indices = malloc(rows * sizeof *e->indices);
    e->lends = malloc((size_t)e->lends_max * sizeof *e->lends);
    e->lend_s = calloc((size_t)backend->threads, sizeof *e->lend_s);
    e->heads = malloc(rows * sizeof *e->heads);
    e->distance = backend->alloc(backend, rows * sizeof(real));
    e->head_h = backend->alloc(backend, head * (size_t)c->hidden * sizeof(real));
    e->logits = backend->alloc(backend, head * (size_t)c->vocab * sizeof(real));
    e->lse = backend->alloc(backend, 2 * head * sizeof(real));
    if (!e->sequences || !e->runs || !e->rows || !e->indices || !e->lends || !e->lend_s || !e->heads || !e->distance ||
        !e->head_h || !e->logits || !e->lse)
        return error_set(err, LOOPLM_MEMORY, "the engine's buffers for %d rows could not be had", e->options.rows_max);
    e->max = e->lse + head;
    return 0;
}

int engine_open(struct engine **out, struct model *model, const struct engine_options *options, looplm_error *err) {
    const struct model_config *c = &model->config;
    struct engine *e = calloc(1, sizeof *e);
    *out = NULL;
    if (!e) return error_set(err, LOOPLM_MEMORY, "the engine could not be had");
    e->model = model;
    e->options = *options;
    int64_t positions = (options->kv_positions + KV_BLOCK - 1) / KV_BLOCK + options->sequences_max;
    struct kv_geometry geometry = {options->kv_type, c->layers, c->kv_heads, c->head_dim};
    int status = kv_pool_init(&e->pool, model->backend, geometry, positions * options->planes, err);
    e->pool.poison = options->poison;
    if (!status) status = loop_workspace_init(&e->workspace, model, options->rows_max, err);
    if (!status) status = engine_allocate(e, err);
    if (status) {
        engine_close(e);
        return status;
    }
    *out = e;
    return 0;
}

void engine_close(struct engine *e) {
    if (!e) return;
    CHECK_EQ(e->n_sequences, 0);
    const struct model_config *c = &e->model->config;
    struct backend *backend = e->model->backend;
    size_t rows = (size_t)e->options.rows_max, head = ENGINE_HEAD_ROWS;
    if (e->distance) backend->release(backend, e->distance, rows * sizeof(real));
    if (e->head_h) backend->release(backend, e->head_h, head * (size_t)c->hidden * sizeof(real));
    if (e->logits) backend->release(backend, e->logits, head * (size_t)c->vocab * sizeof(real));
    if (e->lse) backend->release(backend, e->lse, 2 * head * sizeof(real));
    loop_workspace_free(&e->workspace);
    kv_pool_free(&e->pool);
    pass_free(&e->pass);
    free(e->sequences);
    free(e->runs);
    free(e->rows);
    free(e->indices);
    free(e->lends);
    free(e->lend_s);
    free(e->heads);
    free(e);
}

struct model *engine_model(const struct engine *e) {
    return e->model;
}
struct kv_pool *engine_pool(struct engine *e) {
    return &e->pool;
}
void engine_set_reclaim(struct engine *e, reclaim_fn *reclaim, void *context) {
    e->reclaim = reclaim;
    e->reclaim_context = context;
}
void engine_set_trace(struct engine *e, struct trace *trace) {
    e->trace = trace;
}
const struct engine_counters *engine_counters(const struct engine *e) {
    return &e->counters;
}

static struct slot *row_slot(const struct engine *e, int32_t row) {
    return &e->rows[row].sequence->slots[e->rows[row].slot];
}

/* Plans one sequence, and remembers the first in the engine's order that lacks blocks. Returns the rows it got. */
static int32_t plan(struct engine *e, int32_t i, int32_t chunk, int32_t *starved) {
    int32_t room = e->options.rows_max - e->n_certain;
    int32_t n = room > 0 ? sequence_plan(e->sequences[i], room, chunk < room ? chunk : room) : 0;
    if (n > 0) e->n_certain += n;
    if (n >= 0) return n;
    if (*starved < 0 || i < *starved) *starved = i;
    return 0;
}

/* A round starts one sequence further each pass, so that a full pass starves nobody. */
static void collect_decoding(struct engine *e, int32_t *starved) {
    for (int32_t k = 0; k < e->n_sequences; k++) {
        int32_t i = (e->next + k) % e->n_sequences;
        if (!sequence_prefills(e->sequences[i])) plan(e, i, e->options.rows_max, starved);
    }
}

/* In the engine's order, with so many rows in chunks. Says whether nobody got any who should have. */
static bool collect_prompts(struct engine *e, int32_t *starved) {
    int32_t got = 0, n = 0, max = e->options.prefill_rows ? e->options.prefill_rows : e->options.rows_max;
    for (int32_t i = 0; i < e->n_sequences; i++) {
        if (!sequence_prefills(e->sequences[i])) continue;
        n++;
        got += plan(e, i, max > got ? max - got : 0, starved);
    }
    return n > 0 && got == 0;
}

/* Rows of tokens being generated come first, so that a prompt never holds them up, and prompts get what they leave; for
 * once the other way round where prompts have had to wait too long. Returns the first sequence that lacks blocks, -1
 * when none does. */
static int32_t collect_round(struct engine *e) {
    int32_t starved = -1;
    e->n_certain = 0;
    for (int32_t i = 0; i < e->n_sequences; i++) e->sequences[i]->n_enter = 0;
    bool prompts_first = e->prompts_wait >= PROMPTS_WAIT_MAX, nothing = false;
    if (prompts_first) nothing = collect_prompts(e, &starved);
    collect_decoding(e, &starved);
    if (!prompts_first) nothing = collect_prompts(e, &starved);
    e->prompts_wait = nothing ? e->prompts_wait + 1 : 0;
    return starved;
}

static int collect_rows(struct engine *e, looplm_error *err) {
    int32_t starved = collect_round(e);
    while (starved >= 0 && e->reclaim && e->reclaim(e->reclaim_context, e->sequences[starved]))
        starved = collect_round(e);
    speculate_fill(e);
    e->n_runs = e->n_rows = 0;
    for (int32_t i = 0; i < e->n_sequences; i++) sequence_enter(e->sequences[i], true);
    e->n_mute_runs = e->n_runs;
    for (int32_t i = 0; i < e->n_sequences; i++) sequence_enter(e->sequences[i], false);
    if (e->n_sequences) e->next = (e->next + 1) % e->n_sequences;
    if (e->n_rows == 0 && starved >= 0)
        return error_set(err, LOOPLM_LIMIT,
                         "KV cache: %lld blocks are all in use; raise --context or run fewer sequences",
                         (long long)e->pool.n_blocks);
    return 0;
}

/* The rows' hidden states: embeddings at loop 0, else what the last loop left in the sequence's h. */
static void record_inputs(struct engine *e) {
    const struct model_config *c = &e->model->config;
    for (int32_t i = 0; i < e->n_runs; i++) {
        const struct run *run = &e->runs[i];
        const struct sequence *s = e->rows[run->row].sequence;
        real *x = e->workspace.buffers.layers->x + (size_t)run->row * (size_t)c->hidden;
        if (run->loop == 0)
            pass_add(&e->pass,
                     (struct op){.kind = OP_EMBED, .embed = {&e->model->embed, s->ids + run->first, x, run->count}});
        else
            pass_add(
                &e->pass,
                (struct op){
                    .kind = OP_GATHER,
                    .rows = {
                        .src = s->h, .dst = x, .index = e->indices + run->row, .rows = run->count, .dim = c->hidden}});
    }
}

static void record_outputs(struct engine *e) {
    const struct model_config *c = &e->model->config;
    for (int32_t row = 0; row < e->n_rows; row++) {
        const struct slot *slot = row_slot(e, row);
        const struct sequence *s = e->rows[row].sequence;
        const real *h = e->workspace.buffers.h + (size_t)row * (size_t)c->hidden;
        if (s->options.rule.kind == EXIT_DIFF && slot->done > 0 && slot_undecided(slot))
            pass_add(&e->pass, (struct op){.kind = OP_DISTANCE,
                                           .distance = {h, s->h + (size_t)slot->row * (size_t)c->hidden,
                                                        e->distance + row, 1, c->hidden}});
    }
    for (int32_t i = e->n_mute_runs; i < e->n_runs; i++) {
        const struct run *run = &e->runs[i];
        pass_add(&e->pass, (struct op){.kind = OP_SCATTER,
                                       .rows = {.src = e->workspace.buffers.h + (size_t)run->row * (size_t)c->hidden,
                                                .dst = e->rows[run->row].sequence->h,
                                                .index = e->indices + run->row,
                                                .rows = run->count,
                                                .dim = c->hidden}});
    }
}

/* Every sequence's share of the pass. */
static void count_rows(struct engine *e, double seconds) {
    for (int32_t i = 0; i < e->n_sequences; i++) e->sequences[i]->counters.passes += e->sequences[i]->n_enter > 0;
    for (int32_t i = 0; i < e->n_runs; i++) {
        struct sequence *s = e->rows[e->runs[i].row].sequence;
        s->counters.rows += e->runs[i].count;
        s->counters.compute_s += seconds * e->runs[i].count / e->n_rows;
    }
}

static double seconds_since(const struct engine *e, double begin, int32_t rows, bool head) {
    if (e->options.pretend) return e->options.pretend(e->options.pretend_context, rows, head);
    return clock_seconds() - begin;
}

static void run_lends(struct engine *e) {
    if (e->n_lends == 0) return;
    pass_clear(&e->pass);
    pass_add(&e->pass, (struct op){.kind = OP_KV_LEND, .kv_lend = {e->lends, e->n_lends, e->pool.geometry}});
    double begin = clock_seconds();
    e->model->backend->execute(e->model->backend, &e->pass);
    e->counters.lend_s += clock_seconds() - begin;
    e->counters.lends += e->n_lends;
    e->n_lends = 0;
}

/* The rows are counted as run, and the planes that they are the first to read are among the lends, which the pass
 * makes; more than there is room for are made at once. */
static void enter_runs(struct engine *e) {
    for (int32_t i = 0; i < e->n_runs; i++) {
        const struct run *run = &e->runs[i];
        struct kv_sequence *kv = &e->rows[run->row].sequence->kv;
        for (;;) {
            e->n_lends += kv_owed(kv, run->loop, run->first, e->lends + e->n_lends, e->lends_max - e->n_lends);
            if (e->n_lends < e->lends_max) break;
            run_lends(e);
        }
        kv_enter(kv, run->loop, run->first, run->count);
    }
    memset(e->lend_s, 0, (size_t)e->model->backend->threads * sizeof *e->lend_s);
    e->workspace.buffers.owed = (struct owed_planes){e->lends, e->n_lends, e->lend_s};
}

/* The pass has made the lends: the seconds of the thread that took longest. */
static double lends_made(struct engine *e) {
    double most = 0;
    for (int i = 0; i < e->model->backend->threads; i++) most = e->lend_s[i] > most ? e->lend_s[i] : most;
    e->counters.lends += e->n_lends;
    e->n_lends = 0;
    return most;
}

static void run_stack(struct engine *e) {
    enter_runs(e);
    pass_clear(&e->pass);
    record_inputs(e);
    loop_record(&e->pass, e->model, &e->pool.geometry, e->runs, e->n_runs, e->n_mute_runs, &e->workspace.buffers);
    record_outputs(e);
    double begin = clock_seconds();
    e->model->backend->execute(e->model->backend, &e->pass);
    double seconds = seconds_since(e, begin, e->n_rows, false);
    int32_t counted = e->n_rows < ENGINE_ROWS_COUNTED ? e->n_rows : ENGINE_ROWS_COUNTED - 1;
    e->stack_s = seconds;
    e->counters.lend_s += lends_made(e);
    e->counters.pass_s += seconds;
    e->counters.passes++;
    e->counters.passes_of[counted]++;
    e->counters.pass_s_of[counted] += seconds;
    if (e->trace) trace_pass(e->trace, e, begin, begin + seconds);
    e->counters.rows += e->n_rows;
    count_rows(e, seconds);
}

/* A row whose sequence has not dropped it since it ran. */
static bool row_live(const struct engine *e, int32_t row) {
    return e->rows[row].slot < e->rows[row].sequence->n_slots;
}

/* Logits, log-sum-exp and maximum of the listed pass rows (at most ENGINE_HEAD_ROWS). Returns the seconds. */
static double read_head(struct engine *e, const int32_t *rows, int32_t n) {
    const struct model_config *c = &e->model->config;
    pass_clear(&e->pass);
    pass_add(
        &e->pass,
        (struct op){
            .kind = OP_GATHER,
            .rows = {.src = e->workspace.buffers.h, .dst = e->head_h, .index = rows, .rows = n, .dim = c->hidden}});
    loop_record_head(&e->pass, e->model, e->head_h, n, e->logits);
    pass_add(&e->pass,
             (struct op){
                 .kind = OP_CROSS_ENTROPY,
                 .cross_entropy = {
                     .logits = e->logits, .ld = c->vocab, .lse = e->lse, .max = e->max, .rows = n, .vocab = c->vocab}});
    double begin = clock_seconds();
    e->model->backend->execute(e->model->backend, &e->pass);
    double seconds = seconds_since(e, begin, n, true);
    e->counters.head_s += seconds;
    e->counters.heads++;
    e->counters.head_rows += n;
    for (int32_t i = 0; i < n; i++) e->rows[rows[i]].sequence->counters.compute_s += seconds / n;
    return seconds;
}

/* What a read costs speculation: choosing ids from it included, which for a small model takes as long. */
static void head_took(struct engine *e, double begin, int32_t rows, double read_s) {
    double seconds = e->options.pretend ? read_s : clock_seconds() - begin;
    cost_add(&e->costs.head, rows, 0, seconds);
    e->heads_s += seconds;
}

static real *logits_of(const struct engine *e, int32_t head_row) {
    return e->logits + (size_t)head_row * (size_t)e->model->config.vocab;
}

/* mix: the logits of a token are the p-weighted sum over its loops, added up as they come. */
static void mix_add(struct engine *e, struct sequence *s, const struct slot *slot, int32_t head_row) {
    const struct model_config *c = &e->model->config;
    real p = (real)slot->probs[slot->done - 1], *sum = sequence_kept(s, slot->position);
    pass_clear(&e->pass);
    if (slot->done == 1)
        pass_add(&e->pass, (struct op){.kind = OP_ZERO, .zero = {sum, (size_t)c->vocab * sizeof(real)}});
    pass_add(&e->pass, (struct op){.kind = OP_ROW_AXPY, .row_axpy = {logits_of(e, head_row), &p, sum, 1, c->vocab}});
    e->model->backend->execute(e->model->backend, &e->pass);
}

static void leave(struct engine *e, struct sequence *s, struct slot *slot) {
    CHECK_LE(e->n_lends + s->kv.loops, e->lends_max);
    e->n_lends += kv_leave(&s->kv, slot->position, slot->done, e->lends + e->n_lends);
    slot->waiting = true;
}

/* After the pass: the rule decides, and rows that are through leave. True when the row is to predict, which happens
 * once. */
static bool settle_row(struct engine *e, int32_t row, const struct exit_evidence *evidence) {
    struct sequence *s = e->rows[row].sequence;
    struct slot *slot = row_slot(e, row);
    bool predicts = false;
    if (slot->waiting) return false;
    if (slot_undecided(slot)) {
        bool replayed = slot->target != SLOT_BY_RULE && slot->done == slot->target;
        if (replayed || exit_decide(&s->options.rule, &slot->exit, evidence, s->last)) {
            slot->predicted = slot->done;
            predicts = slot->predicts;
        }
    }
    bool through = slot->target == SLOT_BY_RULE ? slot->predicted != 0 : slot->done == slot->target;
    if (through)
        leave(e, s, slot);
    else
        e->n_lends += kv_stay(&s->kv, slot->position, e->lends + e->n_lends);
    return predicts;
}

/* The rule looks at this row's logits: conf to decide, mix to sum what it predicts from. */
static bool rule_reads_head(const struct sequence *s, const struct slot *slot) {
    enum exit_kind kind = s->options.rule.kind;
    return slot_undecided(slot) && (kind == EXIT_CONF || (kind == EXIT_MIX && slot->predicts));
}

static bool samples(const struct sequence *s, const struct slot *slot) {
    return s->generating && slot->position + 1 == s->n_ids && s->n_ids < s->options.capacity;
}

static int32_t pick(struct sequence *s, const struct slot *slot, const real *logits) {
    int32_t n = slot->position + 1;
    return sampler_pick(s->sampler, &s->options.sampler, logits, n, s->ids, n);
}

/* A prediction whose row's own id is certain. */
static void predict(struct engine *e, struct sequence *s, const struct slot *slot, const real *logits, real lse) {
    struct prediction p = {.position = slot->position,
                           .loops = slot->predicted,
                           .exit_probs = slot->probs,
                           .logits = logits,
                           .lse = lse,
                           .id = -1};
    if (samples(s, slot)) {
        p.id = pick(s, slot, logits);
        p.logprob = logits[p.id] - lse;
        speculate_verify(s, slot, p.id);
    }
    e->counters.predictions++;
    e->counters.loops[slot->predicted - 1]++;
    if (s->options.on_prediction) s->options.on_prediction(s->options.context, s, &p);
}

/* Held predictions whose ids have become certain. True when there was one. */
static bool predict_held(struct engine *e, struct sequence *s) {
    bool any = false;
    for (int32_t i = 0; i < s->n_slots && s->generating; i++) {
        struct slot *slot = &s->slots[i];
        if (!slot->held || slot->position >= s->n_ids) continue;
        slot->held = false;
        predict(e, s, slot, sequence_kept(s, slot->position), slot->lse);
        any = true;
    }
    return any;
}

static void hold(struct engine *e, struct sequence *s, struct slot *slot, const real *logits, real lse) {
    real *kept = sequence_kept(s, slot->position);
    if (kept != logits) memcpy(kept, logits, (size_t)e->model->config.vocab * sizeof(real));
    slot->lse = lse;
    slot->held = true;
    if (s->generating) speculate_propose(s, slot, pick(s, slot, logits), true);
}

/* The logits that a row was read for: it leaves and predicts, or it is on its way and proposes. */
static void take_logits(struct engine *e, int32_t row, const real *logits, real lse) {
    if (!row_live(e, row)) return;
    struct sequence *s = e->rows[row].sequence;
    struct slot *slot = row_slot(e, row);
    if (!slot->predicted) {
        speculate_propose(s, slot, pick(s, slot, logits), false);
    } else if (s->options.speculate != SPECULATE_OFF && (!s->generating || slot->position >= s->n_ids)) {
        hold(e, s, slot, logits, lse);
    } else {
        predict(e, s, slot, logits, lse);
        predict_held(e, s);
    }
}

/* The head of a group of rows whose rule looks at it. Under conf the same read predicts or proposes; mix predicts from
 * the sum over its loops. */
static void settle_group(struct engine *e, const int32_t *rows, int32_t n) {
    double begin = clock_seconds(), read_s = read_head(e, rows, n);
    for (int32_t i = 0; i < n; i++) {
        if (!row_live(e, rows[i])) continue;
        struct sequence *s = e->rows[rows[i]].sequence;
        const struct slot *slot = row_slot(e, rows[i]);
        struct exit_evidence evidence = {.confidence = math_exp((float)(e->max[i] - e->lse[i]))};
        bool mix = s->options.rule.kind == EXIT_MIX;
        if (mix) mix_add(e, s, slot, i);
        if (!settle_row(e, rows[i], &evidence)) {
            if (speculate_wants(e, s, slot, true)) take_logits(e, rows[i], logits_of(e, i), e->lse[i]);
        } else if (mix) {
            e->heads[e->n_heads++] = rows[i];
        } else {
            take_logits(e, rows[i], logits_of(e, i), e->lse[i]);
        }
    }
    head_took(e, begin, n, read_s);
}

/* Rows whose rule looks at the head go through it in groups; the others are settled by the gate or the distance alone.
 */
static void settle_rows(struct engine *e) {
    int32_t group[ENGINE_HEAD_ROWS], n = 0;
    e->n_heads = 0;
    const real *lambda = e->workspace.buffers.lambda;
    for (int32_t row = 0; row < e->n_rows; row++)
        slot_advance(e->rows[row].sequence, row_slot(e, row), e->model->exit_weight ? (float)lambda[row] : 0.0f);
    for (int32_t row = 0; row < e->n_rows; row++) {
        if (!row_live(e, row)) continue;
        if (rule_reads_head(e->rows[row].sequence, row_slot(e, row))) {
            group[n++] = row;
            if (n < ENGINE_HEAD_ROWS) continue;
            settle_group(e, group, n);
            n = 0;
        } else {
            struct exit_evidence evidence = {.distance = (float)e->distance[row]};
            bool predicts = settle_row(e, row, &evidence);
            if (predicts || speculate_wants(e, e->rows[row].sequence, row_slot(e, row), false))
                e->heads[e->n_heads++] = row;
        }
    }
    if (n > 0) settle_group(e, group, n);
    run_lends(e);
}

/* mix keeps its own logits; their log-sum-exp is still to be taken. */
static void predict_mixed(struct engine *e, int32_t row) {
    if (!row_live(e, row)) return;
    const struct model_config *c = &e->model->config;
    real *sum = sequence_kept(e->rows[row].sequence, row_slot(e, row)->position);
    pass_clear(&e->pass);
    pass_add(
        &e->pass,
        (struct op){.kind = OP_CROSS_ENTROPY,
                    .cross_entropy = {
                        .logits = sum, .ld = c->vocab, .lse = e->lse, .max = e->max, .rows = 1, .vocab = c->vocab}});
    e->model->backend->execute(e->model->backend, &e->pass);
    take_logits(e, row, sum, e->lse[0]);
}

static void predict_rows(struct engine *e) {
    int32_t n = 0;
    for (int32_t i = 0; i < e->n_heads; i++) {
        if (e->rows[e->heads[i]].sequence->options.rule.kind == EXIT_MIX)
            predict_mixed(e, e->heads[i]);
        else
            e->heads[n++] = e->heads[i];
    }
    for (int32_t i = 0; i < n; i += ENGINE_HEAD_ROWS) {
        int32_t group = n - i < ENGINE_HEAD_ROWS ? n - i : ENGINE_HEAD_ROWS;
        double begin = clock_seconds(), read_s = read_head(e, e->heads + i, group);
        for (int32_t j = 0; j < group; j++) take_logits(e, e->heads[i + j], logits_of(e, j), e->lse[j]);
        head_took(e, begin, group, read_s);
    }
}

static bool runs_prompt(const struct engine *e) {
    for (int32_t i = 0; i < e->n_sequences; i++)
        if (e->sequences[i]->n_enter > 0 && sequence_prefills(e->sequences[i])) return true;
    return false;
}

static int step(struct engine *e, bool *ran, looplm_error *err) {
    double start = clock_seconds();
    *ran = false;
    e->heads_s = 0;
    for (int32_t i = 0; i < e->n_sequences; i++) {
        if (!predict_held(e, e->sequences[i])) continue;
        sequence_sweep(e->sequences[i]);
        *ran = true;
    }
    int status = collect_rows(e, err);
    if (status || e->n_rows == 0) return status;
    *ran = true;
    bool prompt = runs_prompt(e);
    run_stack(e);
    int64_t heads = e->counters.head_rows, predictions = e->counters.predictions;
    double begin = e->trace ? clock_seconds() : 0;
    settle_rows(e);
    predict_rows(e);
    if (e->trace && e->counters.head_rows > heads)
        trace_heads(e->trace, begin, clock_seconds(), e->counters.head_rows - heads,
                    e->counters.predictions - predictions);
    for (int32_t i = 0; i < e->n_sequences; i++) sequence_sweep(e->sequences[i]);
    /* What is neither stack nor head counts as the pass's: with a small model it is not little. */
    speculate_account(e, e->options.pretend ? e->stack_s : clock_seconds() - start - e->heads_s, prompt);
    return 0;
}

int engine_step(struct engine *e, bool *ran, looplm_error *err) {
    double begin = clock_seconds();
    int status = step(e, ran, err);
    e->counters.total_s += clock_seconds() - begin;
    return status;
}
