/* Figures: gnuplot as a child process, which draws to a file or, as a sketch of characters, to the terminal. */
#ifndef CLI_GNUPLOT_H
#define CLI_GNUPLOT_H

#include "base/file.h"

#include <stdbool.h>
#include <stdio.h>

struct gnuplot {
    FILE *out; /* gnuplot's standard input: its commands and data go here */
    struct file_writer file;
    bool to_file;
};

/* LOOPLM_USAGE unless the name of the figure ends in .png or .svg; `option` is what gave it. */
int gnuplot_check_name(const char *option, const char *path, looplm_error *err);
/* path: a name that was checked, or NULL for a sketch; the size is of the file's picture, in pixels. */
int gnuplot_open(struct gnuplot *g, const char *path, int width, int height, looplm_error *err);
/* Lets gnuplot draw what it was told and puts the file in place; where that fails there is no file. */
int gnuplot_close(struct gnuplot *g, looplm_error *err);
/* A string in gnuplot's single quotes. */
void gnuplot_quote(FILE *out, const char *text);

#endif
