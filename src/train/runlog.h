/* The run log: RUN/log.jsonl, one JSON object a line, appended while the run goes on and cut back when it is resumed.
 */
#ifndef TRAIN_RUNLOG_H
#define TRAIN_RUNLOG_H

#include "train/unit.h"

#include <jansson.h>
#include <stdio.h>

#define RUNLOG_NAME "log.jsonl"

struct runlog {
    FILE *stream;
    char *path;
};

/* Opens the log of a run and drops what stands after its first `bytes` bytes. */
int runlog_open(struct runlog *log, const char *run, int64_t bytes, looplm_error *err);
void runlog_close(struct runlog *log);
/* Appends a line and gives up the reference. */
int runlog_write(struct runlog *log, json_t *line, looplm_error *err);
/* All lines are on the disk; *bytes is the length. */
int runlog_sync(struct runlog *log, int64_t *bytes, looplm_error *err);

/* Sums of a step or an evaluation as JSON: means over valid tokens, null for a loop that none ran. */
json_t *runlog_means(const double *sums, const int64_t *counts, int32_t loops);
json_t *runlog_mean(double sum, int64_t count);
/* The mean loop of exit, counted from 1. */
double runlog_mean_loops(const struct unit_result *sums, int32_t loops);
/* total += part. */
void runlog_add(struct unit_result *total, const struct unit_result *part);

#endif
