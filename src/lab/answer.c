/* Owns asking a model problems (lab_answer of score.h): a few sequences at a time in one engine, each closed as soon as
 * its answer is known, the next problem taking its place. */
#include "lab/score.h"

#include "base/progress.h"

#include <stdlib.h>
#include <string.h>

#define ANSWER_ROWS_MAX 512 /* rows of a pass */

/* One problem in ids. */
struct item {
    int32_t *ids, *answer; /* owned */
    size_t n, n_answer;
};

/* One place among the sequences that run together. */
struct lane {
    struct sequence *sequence; /* NULL while it is free */
    const struct item *item;
    struct lab_outcome *outcome;
    int32_t made; /* tokens predicted */
    double loops; /* their sum */
    bool done;
};

struct asking {
    looplm_model *model;
    const struct lab_ask *ask;
    struct item *items; /* [n] */
    int32_t n, next, open;
    int32_t capacity; /* positions of the longest prompt and its answer */
    struct lab_outcome *outcomes;
    struct engine *engine;
    struct lane *lanes; /* [ask->parallel] */
};

/* ---- ids -------------------------------------------------------------------------------------------------------- */

static int encode(const struct tokenizer *t, const char *text, int32_t **ids, size_t *n, looplm_error *err) {
    return tokenizer_encode(t, text, strlen(text), false, ids, n, err);
}

/* Prompt and answer are tokenised apart, as training does with documents that have both. */
static int encode_item(const struct tokenizer *t, const struct lab_problem *problem, struct item *item,
                       looplm_error *err) {
    char *text = NULL;
    const char *prompt = problem->prompt;
    if (problem->context) {
        size_t head = strlen(problem->context), tail = strlen(prompt) + 1;
        text = malloc(head + tail);
        if (!text) return error_set(err, LOOPLM_MEMORY, "no memory for a prompt");
        memcpy(text, problem->context, head);
        memcpy(text + head, prompt, tail);
        prompt = text;
    }
    int status = encode(t, prompt, &item->ids, &item->n, err);
    if (!status) status = encode(t, problem->answer, &item->answer, &item->n_answer, err);
    free(text);
    if (!status && (item->n == 0 || item->n_answer == 0))
        status = error_set(err, LOOPLM_MISMATCH, "the tokenizer gives no ids for the problem '%s'", problem->prompt);
    return status;
}

static int encode_all(struct asking *a, const struct lab_problem *problems, struct lab_cost *cost, looplm_error *err) {
    int32_t positions_max = a->model->model->config.max_positions;
    for (int32_t i = 0; i < a->n; i++) {
        struct item *item = &a->items[i];
        int status = encode_item(a->model->tokenizer, &problems[i], item, err);
        if (status) return status;
        size_t size = item->n + item->n_answer;
        if (size > (size_t)positions_max)
            return error_set(err, LOOPLM_LIMIT,
                             "a problem has %zu tokens, more than the model's %d positions; ask with less context",
                             size, positions_max);
        if ((int32_t)size > a->capacity) a->capacity = (int32_t)size;
        if (item->n_answer > cost->answer_max) cost->answer_max = item->n_answer;
        cost->tokens += (int64_t)size;
    }
    return 0;
}

/* ---- sequences -------------------------------------------------------------------------------------------------- */

/* A wrong token ends a problem: what would follow it is of no interest. */
static void take_prediction(void *context, struct sequence *sequence, const struct prediction *p) {
    struct lane *lane = context;
    if (lane->done || p->id < 0) return;
    struct lab_outcome *outcome = lane->outcome;
    if (lane->made == 0) {
        outcome->id = p->id;
        memcpy(outcome->exit_probs, p->exit_probs, (size_t)p->loops * sizeof(float));
    }
    bool right = p->id == lane->item->answer[lane->made++];
    lane->loops += p->loops;
    if (right && (size_t)lane->made < lane->item->n_answer) return;
    outcome->right = right;
    outcome->loops = lane->loops / lane->made;
    lane->done = true;
    sequence_generate(sequence, false);
}

static int begin(struct asking *a, struct lane *lane, looplm_error *err) {
    const struct item *item = &a->items[a->next];
    *lane = (struct lane){.item = item, .outcome = &a->outcomes[a->next]};
    *lane->outcome = (struct lab_outcome){.id = -1};
    struct sequence_options options = {.rule = a->ask->rule,
                                       .policy = a->ask->kv,
                                       .capacity = a->capacity,
                                       .sampler = {.top_p = 1, .repetition_penalty = 1},
                                       .on_prediction = take_prediction,
                                       .context = lane,
                                       .adaptive_prompt = a->ask->adaptive_prompt};
    int status = sequence_open(&lane->sequence, a->engine, &options, err);
    if (status) return status;
    a->next++;
    a->open++;
    sequence_generate(lane->sequence, true);
    return sequence_feed(lane->sequence, item->ids, NULL, (int32_t)item->n, err);
}

static void end(struct asking *a, struct lane *lane) {
    sequence_close(lane->sequence);
    lane->sequence = NULL;
    a->open--;
}

static int run_all(struct asking *a, looplm_error *err) {
    int status = 0;
    while (!status && (a->open > 0 || a->next < a->n)) {
        for (int32_t i = 0; i < a->ask->parallel && a->next < a->n && !status; i++)
            if (!a->lanes[i].sequence) status = begin(a, &a->lanes[i], err);
        bool ran = false;
        if (!status) status = engine_step(a->engine, &ran, err);
        if (status) return status;
        CHECK_EQ(ran, true);
        for (int32_t i = 0; i < a->ask->parallel; i++)
            if (a->lanes[i].sequence && a->lanes[i].done) end(a, &a->lanes[i]);
    }
    return status;
}

static int open_engine(struct asking *a, looplm_error *err) {
    const struct model *model = a->model->model;
    int32_t parallel = a->ask->parallel;
    struct engine_options options = {.rows_max = ANSWER_ROWS_MAX,
                                     .sequences_max = parallel,
                                     .kv_positions = (int64_t)parallel * (a->capacity + KV_BLOCK),
                                     .planes =
                                         a->ask->rule.kind == EXIT_LOOPS ? a->ask->rule.loops : model->config.loops,
                                     .kv_type = a->ask->kv_type};
    return engine_open(&a->engine, a->model->model, &options, err);
}

static int ask_all(struct asking *a, struct lab_cost *cost, looplm_error *err) {
    pthread_mutex_lock(&a->model->running);
    int status = open_engine(a, err);
    if (!status) {
        double start = clock_s();
        status = run_all(a, err);
        cost->seconds = clock_s() - start;
        cost->rows = engine_counters(a->engine)->rows;
        for (int32_t i = 0; i < a->ask->parallel; i++)
            if (a->lanes[i].sequence) end(a, &a->lanes[i]);
        engine_close(a->engine);
    }
    pthread_mutex_unlock(&a->model->running);
    return status;
}

int lab_answer(looplm_model *model, const struct lab_ask *ask, const struct lab_problem *problems, int32_t n,
               struct lab_outcome *outcomes, struct lab_cost *cost, looplm_error *err) {
    CHECK_LE(1, ask->parallel);
    CHECK_LE(ask->parallel, LAB_PARALLEL_MAX);
    *cost = (struct lab_cost){0};
    int status = model_need_tokenizer(model, err);
    if (status || n == 0) return status;
    struct asking a = {.model = model, .ask = ask, .n = n, .outcomes = outcomes};
    a.items = calloc((size_t)n, sizeof *a.items);
    a.lanes = calloc((size_t)ask->parallel, sizeof *a.lanes);
    if (!a.items || !a.lanes) status = error_set(err, LOOPLM_MEMORY, "no memory for %d problems", n);
    if (!status) status = encode_all(&a, problems, cost, err);
    if (!status) status = ask_all(&a, cost, err);
    for (int32_t i = 0; a.items && i < n; i++) {
        free(a.items[i].ids);
        free(a.items[i].answer);
    }
    free(a.items);
    free(a.lanes);
    return status;
}
