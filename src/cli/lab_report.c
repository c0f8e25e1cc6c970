/* Owns how a score is shown; nothing is computed here. */
#include "cli/lab_report.h"
#include "cli/gnuplot.h"

#include "base/file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double rate(double n, double seconds) {
    return seconds > 0 ? n / seconds : 0;
}

/* ---- tables ----------------------------------------------------------------------------------------------------- */

static void print_head(const struct lab_score *s, const char *what) {
    printf("\n%-14s", what);
    for (int32_t level = s->task->level_min; level <= s->task->level_max; level++) printf("%7d", level);
    printf("%8s", "all");
}

static void print_accuracy(const struct lab_score *s, const struct lab_run *run) {
    printf("\n%-14s", run->name);
    for (int32_t level = s->task->level_min; level <= s->task->level_max; level++)
        printf("%7.1f", 100 * run->accuracy_at[level]);
    printf("%8.1f", 100 * run->accuracy);
}

static void print_correlation(double value) {
    if (isnan(value))
        printf("%7s", "-");
    else
        printf("%7.2f", value);
}

static void print_depth(const struct lab_score *s, const struct lab_run *run) {
    printf("\n%-14s", run->name);
    for (int32_t level = s->task->level_min; level <= s->task->level_max; level++)
        printf("%7.2f", run->loops_at[level]);
    printf("%8.2f", run->loops);
    print_correlation(run->rank_levels);
    print_correlation(run->rank_problems);
    printf("  ");
    for (int32_t r = 1; r <= s->loops; r++) printf(" %5.1f", 100.0 * (double)run->exits[r] / s->n_tested);
}

static bool adapts(const struct lab_run *run) {
    return run->rule.kind != EXIT_FULL && run->rule.kind != EXIT_LOOPS;
}

static void print_times(const struct lab_score *s) {
    printf("\n\n%-14s%10s%12s%12s%14s", "time", "seconds", "tokens/s", "rows", "rows a token");
    for (int i = 0; i < s->n_runs; i++) {
        const struct lab_run *run = &s->runs[i];
        if (!run->measured) continue;
        printf("\n%-14s%10.2f%12.0f%12lld%14.2f%s", run->name, run->cost.seconds,
               rate((double)run->cost.tokens, run->cost.seconds), (long long)run->cost.rows,
               (double)run->cost.rows / (double)run->cost.tokens, run->adaptive_prompt ? "  (adaptive prompt)" : "");
    }
}

static void print_best(const struct lab_score *s) {
    const struct lab_run *full = &s->runs[s->full];
    if (s->best < 0) {
        printf("\n\nno rule stays within one point of full depth's accuracy of %.1f %%\n", 100 * full->accuracy);
        return;
    }
    const struct lab_run *best = &s->runs[s->best];
    printf("\n\n%s saves most for at most one point: %.1f %% of the loops (%.2f of %.2f), accuracy %.1f %% against "
           "%.1f %%\n",
           best->name, 100 * best->saved, best->loops, full->loops, 100 * best->accuracy, 100 * full->accuracy);
}

void lab_report_print(const struct lab_score *s) {
    printf("%s: %d problems for each number of %s, held out of training from %d on\n", s->task->name, s->problems,
           s->task->axis, s->task->held_out_from);
    print_head(s, "accuracy (%)");
    for (int i = 0; i < s->n_runs; i++) print_accuracy(s, &s->runs[i]);
    printf("\n");
    print_head(s, "mean loops");
    printf("%7s%7s   %% that leave at loop 1..%d", "rank", "(each)", s->loops);
    for (int i = 0; i < s->n_runs; i++)
        if (adapts(&s->runs[i])) print_depth(s, &s->runs[i]);
    print_times(s);
    print_best(s);
}

void lab_report_show(const struct lab_score *s, const looplm_model *model, int32_t count) {
    const struct lab_outcome *outcomes = s->best_outcomes ? s->best_outcomes : s->full_outcomes;
    printf("\nwith %s:\n", s->runs[s->best_outcomes ? s->best : s->full].name);
    for (int32_t i = 0; i < s->n_tested; i++) {
        if (i % s->problems >= count) continue;
        const struct lab_problem *p = &s->tested[i];
        char *text = NULL;
        if (looplm_text_decode(model, &outcomes[i].id, 1, 0, &text, NULL)) text = NULL;
        printf("  %s%s   %s  loops %.*s %.1f\n", p->prompt, text && *text != '\n' ? text : "?",
               outcomes[i].right ? "right" : "WRONG", (int)lround(outcomes[i].loops),
               "################################################################", outcomes[i].loops);
        looplm_free(text);
    }
}

/* ---- JSON ------------------------------------------------------------------------------------------------------- */

static json_t *number(double value) {
    return isnan(value) ? json_null() : json_real(value);
}

static json_t *by_level(const struct lab_score *s, const double *values) {
    json_t *array = json_array();
    for (int32_t level = s->task->level_min; level <= s->task->level_max; level++)
        json_array_append_new(array, json_real(values[level]));
    return array;
}

static json_t *run_json(const struct lab_score *s, const struct lab_run *run) {
    json_t *exits = json_array();
    for (int32_t r = 1; r <= s->loops; r++) json_array_append_new(exits, json_integer(run->exits[r]));
    json_t *object =
        json_pack("{s:s, s:b, s:b, s:f, s:o, s:f, s:f, s:o, s:o, s:o, s:o}", "exit", run->name, "measured",
                  run->measured, "adaptive_prompt", run->adaptive_prompt, "accuracy", run->accuracy,
                  "accuracy_per_level", by_level(s, run->accuracy_at), "mean_loops", run->loops, "saved", run->saved,
                  "mean_loops_per_level", by_level(s, run->loops_at), "exits", exits, "rank_correlation",
                  number(run->rank_levels), "rank_correlation_of_problems", number(run->rank_problems));
    if (object && run->measured)
        json_object_set_new(object, "timing",
                            json_pack("{s:f, s:I, s:I, s:f}", "seconds", run->cost.seconds, "tokens",
                                      (json_int_t)run->cost.tokens, "rows", (json_int_t)run->cost.rows, "tokens_per_s",
                                      rate((double)run->cost.tokens, run->cost.seconds)));
    return object;
}

json_t *lab_report_json(const struct lab_score *s, const char *model, const struct lab_score_options *options) {
    json_t *levels = json_array(), *runs = json_array();
    for (int32_t level = s->task->level_min; level <= s->task->level_max; level++)
        json_array_append_new(levels, json_integer(level));
    for (int i = 0; i < s->n_runs; i++) json_array_append_new(runs, run_json(s, &s->runs[i]));
    return json_pack("{s:s, s:s, s:s, s:o, s:i, s:i, s:I, s:i, s:s, s:o, s:o}", "task", s->task->name, "model", model,
                     "axis", s->task->axis, "levels", levels, "problems_per_level", s->problems, "context",
                     options->context, "seed", (json_int_t)options->seed, "loops", s->loops, "full",
                     s->runs[s->full].name, "best", s->best < 0 ? json_null() : json_string(s->runs[s->best].name),
                     "runs", runs);
}

/* ---- figure ----------------------------------------------------------------------------------------------------- */

static bool in_left(const struct lab_score *s, int i) {
    return i <= s->full;
}
/* The depth of the best rule and of those asked for; of the whole sweep where none is best. */
static bool in_right(const struct lab_score *s, int i) {
    return adapts(&s->runs[i]) && (s->best < 0 || s->runs[i].measured);
}

static void put_data(FILE *out, const struct lab_score *s) {
    for (int i = 0; i < s->n_runs; i++) {
        const struct lab_run *run = &s->runs[i];
        fprintf(out, "$run%d << EOD\n", i);
        for (int32_t level = s->task->level_min; level <= s->task->level_max; level++)
            fprintf(out, "%d %.6g %.6g\n", level, 100 * run->accuracy_at[level], run->loops_at[level]);
        fprintf(out, "EOD\n");
    }
}

static void put_panel(FILE *out, const struct lab_score *s, const char *title, int column,
                      bool in(const struct lab_score *, int)) {
    int drawn = 0;
    for (int i = 0; i < s->n_runs; i++) {
        if (!in(s, i)) continue;
        if (!drawn++)
            fprintf(out, "set title '%s'\nplot ", title);
        else
            fprintf(out, ", ");
        fprintf(out, "$run%d using 1:%d with linespoints title '%s%s'", i, column, s->runs[i].name,
                s->runs[i].adaptive_prompt ? ", adaptive prompt" : "");
    }
    fprintf(out, "\n");
}

int lab_report_plot(const struct lab_score *s, const char *path, looplm_error *err) {
    struct gnuplot gnuplot;
    int status = gnuplot_open(&gnuplot, path, 1200, 450, err);
    if (status) return status;
    FILE *out = gnuplot.out;
    fprintf(out, "set xlabel '%s'\nset xtics 1\nset grid\nset key bottom left noenhanced\n", s->task->axis);
    put_data(out, s);
    fprintf(out, "set multiplot layout 1,2\nset yrange [0:105]\n");
    put_panel(out, s, "accuracy (%)", 2, in_left);
    fprintf(out, "set yrange [1:%d]\nset key top left\n", s->loops > 1 ? s->loops : 2);
    put_panel(out, s, "mean loops at the answer", 3, in_right);
    fprintf(out, "unset multiplot\n");
    return gnuplot_close(&gnuplot, err);
}
