/* What passes and head reads of so many rows take, from those that ran (cost.c): what speculation decides by. */
#ifndef ENGINE_COST_H
#define ENGINE_COST_H

#include <stdbool.h>
#include <stdint.h>

#define COST_ROWS 65 /* numbers of rows that are told apart, 0 included */

/* A straight line through times by position, which forgets. */
struct cost_line {
    double n, x, y, xx, xy; /* sums */
};

struct cost_table {
    double seconds[COST_ROWS], position[COST_ROWS]; /* running means, and the mean position of the rows when last run */
    double doubt[COST_ROWS];                        /* 1 falling to 0 while a larger number than those that run */
    int32_t seen[COST_ROWS];                        /* measurements, up to those that the means count for */
    int32_t last, most;                             /* the number measured last, the largest one known */
    double now;                                     /* mean position of the rows measured last */
    struct cost_line line;                          /* of measurements with `line_rows` rows */
    int32_t line_rows;
    double slope; /* seconds that a row takes more for every position */
};

struct costs {
    struct cost_table pass, head;
    double after; /* seconds that a pass takes longer after a head read */
    int32_t after_seen;
    struct {
        int32_t rows; /* 0: of a prompt, or of more rows than are counted */
        bool after;
        double seconds;
    } last;       /* the last pass */
    bool read;    /* the head, in the last pass */
    int32_t warm; /* passes so far, of the first few, and their time */
    double warm_s;
};

/* A pass of n rows at this mean position; read: it was followed by a head read. prompt: rows of one were in it. They
 * come many to a run and share their past, so they say nothing about rows of a diagonal. */
void costs_pass(struct costs *costs, int32_t n, double position, double seconds, bool read, bool prompt);
void cost_add(struct cost_table *table, int32_t n, double position, double seconds);
bool cost_known(const struct cost_table *table, int32_t n);
/* Where nothing is known, 1 for every number. */
double cost_at(const struct cost_table *table, int32_t n);
/* Seconds for a row more than n. */
double cost_more(const struct cost_table *table, int32_t n);
/* Seconds for a head row more than n of the same pass. */
double costs_read(const struct costs *costs, int32_t n);

#endif
