/* Owns gnuplot's start, its terminal and its end (gnuplot.h); what is drawn belongs to the callers.
 *
 * Invariant: the figure's name holds a whole figure or what was there before: gnuplot writes beside it, and a rename
 * puts the result in place. A gnuplot that ends early must not end us, so SIGPIPE is ignored (main.c). */
#include "cli/gnuplot.h"

#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define SHELL_NOT_FOUND 127
#define SKETCH_COLUMNS 80
#define SKETCH_COLUMNS_MIN 40
#define SKETCH_ROWS 20

static bool ends_in(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

int gnuplot_check_name(const char *option, const char *path, looplm_error *err) {
    if (ends_in(path, ".png") || ends_in(path, ".svg")) return 0;
    return error_set(err, LOOPLM_USAGE, "option %s: found '%s', expected a name that ends in .png or .svg", option,
                     path);
}

void gnuplot_quote(FILE *out, const char *text) {
    fputc('\'', out);
    for (; *text; text++) {
        if (*text == '\'') fputc('\'', out);
        if ((unsigned char)*text >= ' ') fputc(*text, out);
    }
    fputc('\'', out);
}

static void put_terminal(const struct gnuplot *g, int width, int height) {
    if (g->to_file) {
        fprintf(g->out, "set terminal %s size %d,%d\nset output ", ends_in(g->file.path, ".png") ? "pngcairo" : "svg",
                width, height);
        gnuplot_quote(g->out, g->file.temporary);
        fputc('\n', g->out);
    } else {
        struct winsize size = {.ws_col = SKETCH_COLUMNS};
        if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col < SKETCH_COLUMNS_MIN)
            size.ws_col = SKETCH_COLUMNS;
        fprintf(g->out, "set terminal dumb %d %d\n", (int)size.ws_col, SKETCH_ROWS);
    }
}

int gnuplot_open(struct gnuplot *g, const char *path, int width, int height, looplm_error *err) {
    *g = (struct gnuplot){.to_file = path != NULL};
    int status = path ? file_writer_open(&g->file, path, err) : 0;
    if (status) return status;
    g->out = popen("gnuplot", "we");
    if (!g->out) {
        if (path) file_writer_abort(&g->file);
        return error_set(err, LOOPLM_IO, "gnuplot could not be started");
    }
    put_terminal(g, width, height);
    return 0;
}

int gnuplot_close(struct gnuplot *g, looplm_error *err) {
    int code = pclose(g->out);
    if (WIFEXITED(code) && WEXITSTATUS(code) == 0) return g->to_file ? file_writer_commit(&g->file, err) : 0;
    if (g->to_file) file_writer_abort(&g->file);
    if (WIFEXITED(code) && WEXITSTATUS(code) == SHELL_NOT_FOUND)
        return error_set(err, LOOPLM_UNSUPPORTED,
                         "gnuplot, which draws the figures, is not installed; on Debian or Ubuntu: apt-get install "
                         "gnuplot-nox");
    return error_set(err, LOOPLM_IO, "gnuplot failed; what it said is above");
}
