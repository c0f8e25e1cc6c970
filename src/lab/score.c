/* Owns the comparison of exit rules on one set of problems (lab_score of score.h).
 *
 * Rows at loop r see what other rows left at loop r and before, never after. So where an answer is one token, its row
 * at loop r is the same in the run with r loops and in the full one, and the runs of each number of loops, with the
 * exit probabilities of the full one, tell what Q-exit does at every q: the sweep costs nothing. A test holds that
 * against the engine. Longer answers have rows that see lent planes, and are run for each q. */
#include "lab/score.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SWEEP_COUNT ((int)((LAB_Q_LAST - LAB_Q_FIRST) / LAB_Q_STEP + 1.5))

struct scoring {
    struct lab_score *score;
    looplm_model *model;
    const struct lab_score_options *options;
    struct lab_outcome *by_loops; /* [R][n_tested]: outcomes with 1, 2, .. loops; the last is the full run */
    struct lab_outcome *outcomes; /* [n_tested] of the run being made */
    bool derivable;               /* every answer is one token */
};

/* ---- problems --------------------------------------------------------------------------------------------------- */

/* Solved problems from the training side, as a document of training would have them. */
static int draw_context(const struct lab_task *task, struct random *random, int32_t count, char **context,
                        looplm_error *err) {
    size_t size = 0, line = LAB_PROMPT_MAX + LAB_ANSWER_MAX + 1;
    char *text = malloc((size_t)count * line + 1);
    if (!text) return error_set(err, LOOPLM_MEMORY, "no memory for %d problems", count);
    int status = 0;
    for (int32_t i = 0; i < count && !status; i++) {
        struct lab_problem problem;
        status = lab_draw(task, random, lab_draw_level(task, random, false), false, &problem, err);
        if (!status) size += (size_t)sprintf(text + size, "%s%s\n", problem.prompt, problem.answer);
    }
    *context = status ? NULL : realloc(text, size + 1);
    if (!*context) free(text);
    if (!status && !*context) return error_set(err, LOOPLM_MEMORY, "no memory for %d problems", count);
    return status;
}

static int draw_problems(struct lab_score *s, const struct lab_score_options *o, looplm_error *err) {
    const struct lab_task *task = s->task;
    int32_t levels = task->level_max - task->level_min + 1;
    if (o->problems > LAB_TESTED_MAX / levels)
        return error_set(err, LOOPLM_LIMIT, "%d problems of each of %d numbers of %s are more than %d in all",
                         o->problems, levels, task->axis, LAB_TESTED_MAX);
    s->n_tested = levels * o->problems;
    s->tested = calloc((size_t)s->n_tested, sizeof *s->tested);
    s->contexts = calloc((size_t)s->n_tested, sizeof *s->contexts);
    if (!s->tested || !s->contexts) return error_set(err, LOOPLM_MEMORY, "no memory for %d problems", s->n_tested);
    for (int32_t i = 0; i < s->n_tested; i++) {
        int32_t level = task->level_min + i / o->problems;
        struct random random = {random_hash(o->seed, (uint64_t)level, (uint64_t)(i % o->problems) + 1), 0};
        int status = lab_draw(task, &random, level, true, &s->tested[i], err);
        if (!status && o->context) status = draw_context(task, &random, o->context, &s->contexts[i], err);
        if (status) return status;
        s->tested[i].context = s->contexts[i];
    }
    return 0;
}

/* ---- one run ---------------------------------------------------------------------------------------------------- */

static int correlate(const struct lab_score *s, struct lab_run *run, const struct lab_outcome *outcomes,
                     looplm_error *err) {
    int32_t levels = s->task->level_max - s->task->level_min + 1;
    double level_number[LAB_LEVELS_MAX];
    for (int32_t i = 0; i < levels; i++) level_number[i] = i;
    int status = lab_spearman(level_number, run->loops_at + s->task->level_min, (size_t)levels, &run->rank_levels, err);
    if (status) return status;
    size_t n = (size_t)s->n_tested;
    double *level = malloc(2 * n * sizeof *level), *depth = level + n;
    if (!level) return error_set(err, LOOPLM_MEMORY, "no memory for %zu depths", n);
    for (size_t i = 0; i < n; i++) {
        level[i] = s->tested[i].level;
        depth[i] = outcomes[i].loops;
    }
    status = lab_spearman(level, depth, n, &run->rank_problems, err);
    free(level);
    return status;
}

static int summarise(const struct lab_score *s, struct lab_run *run, const struct lab_outcome *outcomes,
                     looplm_error *err) {
    for (int32_t i = 0; i < s->n_tested; i++) {
        int32_t level = s->tested[i].level;
        run->accuracy += outcomes[i].right;
        run->accuracy_at[level] += outcomes[i].right;
        run->loops += outcomes[i].loops;
        run->loops_at[level] += outcomes[i].loops;
        run->exits[lround(outcomes[i].loops)]++;
    }
    run->accuracy /= s->n_tested;
    run->loops /= s->n_tested;
    for (int32_t level = s->task->level_min; level <= s->task->level_max; level++) {
        run->accuracy_at[level] /= s->problems;
        run->loops_at[level] /= s->problems;
    }
    return correlate(s, run, outcomes, err);
}

static struct lab_run *add_run(struct lab_score *s, const struct exit_rule *rule) {
    CHECK_LT(s->n_runs, LAB_RUNS_MAX);
    struct lab_run *run = &s->runs[s->n_runs++];
    *run = (struct lab_run){.rule = *rule};
    exit_rule_format(rule, run->name, sizeof run->name);
    return run;
}

static int measure(struct scoring *c, struct lab_run *run, struct lab_outcome *outcomes, looplm_error *err) {
    struct lab_score *s = c->score;
    struct lab_ask ask = {.rule = run->rule,
                          .parallel = c->options->parallel,
                          .adaptive_prompt = run->adaptive_prompt,
                          .kv = c->options->kv,
                          .kv_type = c->options->kv_type};
    run->measured = true;
    return lab_answer(c->model, &ask, s->tested, s->n_tested, outcomes, &run->cost, err);
}

/* What Q-exit does, from the run of each number of loops. */
static void derive(const struct scoring *c, const struct exit_rule *rule, struct lab_outcome *outcomes) {
    const struct lab_score *s = c->score;
    const struct lab_outcome *full = c->by_loops + (size_t)(s->loops - 1) * (size_t)s->n_tested;
    for (int32_t i = 0; i < s->n_tested; i++) {
        struct exit_state state = exit_begin();
        struct exit_evidence none = {0};
        do { /* exit_advance's sums, from the probabilities that it gave */
            state.cdf += full[i].exit_probs[state.step++];
        } while (!exit_decide(rule, &state, &none, s->loops));
        outcomes[i] = c->by_loops[(size_t)(state.step - 1) * (size_t)s->n_tested + (size_t)i];
    }
}

/* ---- all runs --------------------------------------------------------------------------------------------------- */

static int run_loops(struct scoring *c, looplm_error *err) {
    struct lab_score *s = c->score;
    for (int32_t r = 1; r <= s->loops; r++) {
        struct exit_rule rule = {.kind = r < s->loops ? EXIT_LOOPS : EXIT_FULL, .loops = r < s->loops ? r : 0};
        struct lab_outcome *outcomes = c->by_loops + (size_t)(r - 1) * (size_t)s->n_tested;
        struct lab_run *run = add_run(s, &rule);
        int status = measure(c, run, outcomes, err);
        if (!status) status = summarise(s, run, outcomes, err);
        if (status) return status;
        c->derivable = run->cost.answer_max == 1;
    }
    s->full = s->n_runs - 1;
    memcpy(s->full_outcomes, c->by_loops + (size_t)(s->loops - 1) * (size_t)s->n_tested,
           (size_t)s->n_tested * sizeof *s->full_outcomes);
    return 0;
}

static int run_sweep(struct scoring *c, looplm_error *err) {
    struct lab_score *s = c->score;
    if (!c->model->info.has_exit_gate || s->loops == 1) return 0;
    for (int i = 0; i < SWEEP_COUNT; i++) {
        char text[16];
        struct exit_rule rule;
        snprintf(text, sizeof text, "q=%.2f", LAB_Q_FIRST + i * LAB_Q_STEP);
        int status = exit_rule_parse(&rule, text, err); /* so that it is what --exit makes of the same text */
        if (status) return status;
        struct lab_run *run = add_run(s, &rule);
        snprintf(run->name, sizeof run->name, "%s", text);
        if (c->derivable)
            derive(c, &rule, c->outcomes);
        else
            status = measure(c, run, c->outcomes, err);
        if (!status) status = summarise(s, run, c->outcomes, err);
        if (status) return status;
    }
    return 0;
}

static int run_asked(struct scoring *c, looplm_error *err) {
    for (int i = 0; i < c->options->n_rules; i++) {
        struct lab_run *run = add_run(c->score, &c->options->rules[i]);
        run->adaptive_prompt = c->options->adaptive_prompt;
        int status = measure(c, run, c->outcomes, err);
        if (!status) status = summarise(c->score, run, c->outcomes, err);
        if (status) return status;
    }
    return 0;
}

static bool adapts(const struct lab_run *run) {
    return run->rule.kind != EXIT_FULL && run->rule.kind != EXIT_LOOPS && !run->adaptive_prompt;
}

/* The best rule is run again where it was worked out only, so that its time stands beside that of full depth. */
static int choose(struct scoring *c, looplm_error *err) {
    struct lab_score *s = c->score;
    const struct lab_run *full = &s->runs[s->full];
    s->best = -1;
    for (int i = 0; i < s->n_runs; i++) {
        struct lab_run *run = &s->runs[i];
        run->saved = 1 - run->loops / full->loops;
        int64_t lost = lround((full->accuracy - run->accuracy) * s->n_tested); /* problems: exact, accuracies are not */
        bool good = (double)lost <= LAB_ACCURACY_LOST_MAX * s->n_tested;
        if (adapts(run) && good && (s->best < 0 || run->saved > s->runs[s->best].saved)) s->best = i;
    }
    if (s->best < 0) return 0;
    s->best_outcomes = calloc((size_t)s->n_tested, sizeof *s->best_outcomes);
    if (!s->best_outcomes) return error_set(err, LOOPLM_MEMORY, "no memory for %d outcomes", s->n_tested);
    return measure(c, &s->runs[s->best], s->best_outcomes, err);
}

static int allocate(struct scoring *c, looplm_error *err) {
    struct lab_score *s = c->score;
    size_t n = (size_t)s->n_tested;
    s->runs = calloc(LAB_RUNS_MAX, sizeof *s->runs);
    s->full_outcomes = calloc(n, sizeof *s->full_outcomes);
    c->outcomes = calloc(n, sizeof *c->outcomes);
    c->by_loops = calloc(n * (size_t)s->loops, sizeof *c->by_loops);
    if (s->runs && s->full_outcomes && c->outcomes && c->by_loops) return 0;
    return error_set(err, LOOPLM_MEMORY, "no memory for the outcomes of %zu problems", n);
}

int lab_score(struct lab_score *s, looplm_model *model, const struct lab_task *task,
              const struct lab_score_options *options, looplm_error *err) {
    *s = (struct lab_score){.task = task, .problems = options->problems, .loops = model->info.loops, .best = -1};
    struct scoring c = {.score = s, .model = model, .options = options};
    CHECK_LE(1, options->problems);
    if (options->n_rules > LAB_RUNS_MAX - MODEL_LOOPS_MAX - SWEEP_COUNT)
        return error_set(err, LOOPLM_LIMIT, "%d exit rules were asked for, at most %d", options->n_rules,
                         LAB_RUNS_MAX - MODEL_LOOPS_MAX - SWEEP_COUNT);
    int status = draw_problems(s, options, err);
    if (!status) status = allocate(&c, err);
    if (!status) status = run_loops(&c, err);
    if (!status) status = run_sweep(&c, err);
    if (!status) status = run_asked(&c, err);
    if (!status) status = choose(&c, err);
    free(c.by_loops);
    free(c.outcomes);
    return status;
}

void lab_score_free(struct lab_score *s) {
    for (int32_t i = 0; s->contexts && i < s->n_tested; i++) free(s->contexts[i]);
    free(s->contexts);
    free(s->tested);
    free(s->full_outcomes);
    free(s->best_outcomes);
    free(s->runs);
    *s = (struct lab_score){0};
}
