/* looplm plot: the run log as figures, drawn by gnuplot: loss per loop, mean exit depth, learning rate, tokens per
 * second. */
#include "cli/command.h"
#include "cli/gnuplot.h"

#include "base/file.h"
#include "base/json.h"
#include "model/config.h"
#include "train/runlog.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLOT_LOG_BYTES_MAX ((size_t)1 << 30)
#define PLOT_POINTS_MAX 2000 /* of training; more are means over neighbours */
#define EVALS_MAX 64
#define LINE_NAME_MAX 512

#define PLOT_OPTIONS(X)                                                 \
    X(ARGUMENT, run, "RUN", "the directory of a run, or its log.jsonl") \
    X(TEXT, output, "output", 'o', NULL, "FILE", "write a .png or .svg; without it, a sketch in the terminal")
OPTIONS_DEFINE(plot_options, PLOT_OPTIONS)

/* The log in columns. */
struct plot {
    json_t **lines; /* owned */
    size_t count;
    int loops;
    const char *evals[EVALS_MAX]; /* names, borrowed from the lines */
    int n_evals;
    FILE *out; /* gnuplot's standard input */
};

/* ---- the log ---------------------------------------------------------------------------------------------------- */

static const char *eval_of(const json_t *line) {
    return json_string_value(json_object_get(line, "eval"));
}

static void note_eval(struct plot *p, const char *name) {
    for (int i = 0; i < p->n_evals; i++)
        if (strcmp(p->evals[i], name) == 0) return;
    if (p->n_evals < EVALS_MAX) p->evals[p->n_evals++] = name;
}

static int add_line(struct plot *p, const char *text, size_t size, const char *path, looplm_error *err) {
    json_t *line;
    char name[LINE_NAME_MAX];
    snprintf(name, sizeof name, "%s, line %zu", path, p->count + 1);
    int status = json_parse(text, size, name, &line, err);
    if (status) return status;
    json_t **more = realloc(p->lines, (p->count + 1) * sizeof *more);
    if (!more) {
        json_decref(line);
        return error_set(err, LOOPLM_MEMORY, "%s: no memory for its lines", path);
    }
    p->lines = more;
    p->lines[p->count++] = line;
    int loops = (int)json_array_size(json_object_get(line, "loss_per_loop"));
    if (loops > p->loops && loops <= MODEL_LOOPS_MAX) p->loops = loops;
    if (eval_of(line)) note_eval(p, eval_of(line));
    return 0;
}

static int read_log(struct plot *p, const char *path, looplm_error *err) {
    char *text;
    size_t size;
    int status = file_read(path, PLOT_LOG_BYTES_MAX, &text, &size, err);
    if (status) return status;
    /* A last line without its end is one that a running trainer is writing. */
    for (char *at = text, *end; !status && (end = strchr(at, '\n')); at = end + 1)
        if (end > at) status = add_line(p, at, (size_t)(end - at), path, err);
    free(text);
    if (!status && p->count == 0) status = error_set(err, LOOPLM_FORMAT, "%s: it has no line yet", path);
    return status;
}

/* ---- data for gnuplot ------------------------------------------------------------------------------------------- */

static void put_number(FILE *out, double sum, int count) {
    if (count) {
        fprintf(out, " %.8g", sum / count);
    } else {
        fprintf(out, " NaN");
    }
}

static void put_mean(const struct plot *p, size_t first, size_t last, const char *key, int index) {
    double sum = 0;
    int count = 0;
    for (size_t i = first; i < last; i++) {
        const json_t *value = json_object_get(p->lines[i], key);
        if (index >= 0) value = json_array_get(value, (size_t)index);
        if (eval_of(p->lines[i]) || !json_is_number(value)) continue;
        sum += json_number_value(value);
        count++;
    }
    put_number(p->out, sum, count);
}

/* Columns: step, mean_loops, lr, tokens_per_s, loss, then the loss of each loop. */
static void put_train(const struct plot *p) {
    size_t group = (p->count + PLOT_POINTS_MAX - 1) / PLOT_POINTS_MAX;
    fprintf(p->out, "$train << EOD\n");
    for (size_t i = 0; i < p->count; i += group) {
        size_t last = i + group < p->count ? i + group : p->count;
        put_mean(p, i, last, "step", -1);
        put_mean(p, i, last, "mean_loops", -1);
        put_mean(p, i, last, "lr", -1);
        put_mean(p, i, last, "tokens_per_s", -1);
        put_mean(p, i, last, "loss", -1);
        for (int r = 0; r < p->loops; r++) put_mean(p, i, last, "loss_per_loop", r);
        fputc('\n', p->out);
    }
    fprintf(p->out, "EOD\n");
}

/* Columns: step, mean_loops, then the loss of each loop. */
static void put_eval(const struct plot *p, int which) {
    fprintf(p->out, "$eval%d << EOD\n", which);
    for (size_t i = 0; i < p->count; i++) {
        const json_t *line = p->lines[i], *losses = json_object_get(line, "loss_per_loop");
        if (!eval_of(line) || strcmp(eval_of(line), p->evals[which]) != 0) continue;
        fprintf(p->out, "%lld %.8g", (long long)json_integer_value(json_object_get(line, "step")),
                json_number_value(json_object_get(line, "mean_loops")));
        for (int r = 0; r < p->loops; r++) {
            const json_t *value = json_array_get(losses, (size_t)r);
            put_number(p->out, json_number_value(value), json_is_number(value));
        }
        fputc('\n', p->out);
    }
    fprintf(p->out, "EOD\n");
}

static void put_loss(const struct plot *p) {
    fprintf(p->out, "set title 'loss per loop'\nplot ");
    for (int r = 0; r < p->loops; r++)
        fprintf(p->out, "%s$train using 1:%d with lines title 'loop %d'", r ? ", " : "", 6 + r, r + 1);
    for (int i = 0; i < p->n_evals; i++) {
        fprintf(p->out, ", $eval%d using 1:%d with linespoints title ", i, 2 + p->loops);
        gnuplot_quote(p->out, p->evals[i]);
    }
    fputc('\n', p->out);
}

static void put_depth(const struct plot *p) {
    fprintf(p->out, "set title 'mean exit depth'\nplot $train using 1:2 with lines title 'training'");
    for (int i = 0; i < p->n_evals; i++) {
        fprintf(p->out, ", $eval%d using 1:2 with linespoints title ", i);
        gnuplot_quote(p->out, p->evals[i]);
    }
    fputc('\n', p->out);
}

static void put_figures(const struct plot *p, bool sketch) {
    put_train(p);
    for (int i = 0; i < p->n_evals; i++) put_eval(p, i);
    fprintf(p->out, "set xlabel 'step'\nset key noenhanced\n");
    if (!sketch) fprintf(p->out, "set grid\nset multiplot layout 2,2\n");
    put_loss(p);
    put_depth(p);
    fprintf(p->out, "set title 'learning rate'\nplot $train using 1:3 with lines notitle\n");
    fprintf(p->out, "set title 'tokens per second'\nset yrange [0:*]\nplot $train using 1:4 with lines notitle\n");
    if (!sketch) fprintf(p->out, "unset multiplot\n");
}

/* ---- the command ------------------------------------------------------------------------------------------------ */

static int draw(struct plot *p, const char *output, looplm_error *err) {
    struct gnuplot gnuplot;
    int status = output ? gnuplot_check_name("--output", output, err) : 0;
    if (!status) status = gnuplot_open(&gnuplot, output, 1200, 800, err);
    if (status) return status;
    p->out = gnuplot.out;
    put_figures(p, !output);
    return gnuplot_close(&gnuplot, err);
}

static int plot_run(const struct plot_options *o, looplm_error *err) {
    struct plot p = {0};
    char *path = file_is_directory(o->run) ? file_join(o->run, RUNLOG_NAME) : strdup(o->run);
    int status = path ? read_log(&p, path, err) : error_set(err, LOOPLM_MEMORY, "no memory for a path");
    if (!status) status = draw(&p, o->output, err);
    for (size_t i = 0; i < p.count; i++) json_decref(p.lines[i]);
    free(p.lines);
    free(path);
    return status;
}

extern const struct command command_plot;

static int run_plot(int argc, char **argv) {
    struct plot_options o;
    looplm_error err;
    int code = command_parse(&command_plot, plot_options_table(), &o, argc, argv);
    if (code != COMMAND_GO) return code;
    int status = plot_run(&o, &err);
    options_free(plot_options_table(), &o);
    return status ? command_fail(&err) : COMMAND_DONE;
}

const struct command command_plot = {"plot", "RUN [-o FILE]", "draw the log of a training run", run_plot};
