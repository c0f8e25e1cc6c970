/* Owns the file of the run log and how sums become its numbers. What a line holds is the trainer's. */
#include "train/runlog.h"

#include "base/file.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DIGITS 8 /* of numbers in the log */

static int failed(const struct runlog *log, looplm_error *err) {
    return error_set(err, LOOPLM_IO, "%s: cannot write: %s; the checkpoints are as they were", log->path,
                     strerror(errno));
}

int runlog_open(struct runlog *log, const char *run, int64_t bytes, looplm_error *err) {
    *log = (struct runlog){.path = file_join(run, RUNLOG_NAME)};
    if (!log->path) return error_set(err, LOOPLM_MEMORY, "%s: no memory for the run log", run);
    log->stream = fopen(log->path, "abe");
    struct stat st;
    bool ok = log->stream && fstat(fileno(log->stream), &st) == 0;
    if (ok && st.st_size > bytes) ok = ftruncate(fileno(log->stream), bytes) == 0;
    if (ok) return 0;
    int status = failed(log, err);
    runlog_close(log);
    return status;
}

void runlog_close(struct runlog *log) {
    if (log->stream) fclose(log->stream);
    free(log->path);
    *log = (struct runlog){0};
}

int runlog_write(struct runlog *log, json_t *line, looplm_error *err) {
    if (!line) return error_set(err, LOOPLM_MEMORY, "%s: no memory for a line", log->path);
    int bad = json_dumpf(line, log->stream, JSON_COMPACT | JSON_REAL_PRECISION(DIGITS));
    json_decref(line);
    if (bad || fputc('\n', log->stream) == EOF || fflush(log->stream) != 0) return failed(log, err);
    return 0;
}

int runlog_sync(struct runlog *log, int64_t *bytes, looplm_error *err) {
    struct stat st;
    int fd = fileno(log->stream);
    if (fflush(log->stream) != 0 || fsync(fd) != 0 || fstat(fd, &st) != 0) return failed(log, err);
    *bytes = st.st_size;
    return 0;
}

/* JSON has neither infinity nor NaN. */
json_t *runlog_mean(double sum, int64_t count) {
    double mean = count ? sum / (double)count : NAN;
    return isfinite(mean) ? json_real(mean) : json_null();
}

json_t *runlog_means(const double *sums, const int64_t *counts, int32_t loops) {
    json_t *means = json_array();
    for (int32_t r = 0; r < loops; r++) json_array_append_new(means, runlog_mean(sums[r], counts[r]));
    return means;
}

double runlog_mean_loops(const struct unit_result *sums, int32_t loops) {
    double total = 0;
    for (int32_t r = 0; r < loops; r++) total += (r + 1) * sums->exit[r];
    return sums->valid ? total / (double)sums->valid : 0;
}

void runlog_add(struct unit_result *total, const struct unit_result *part) {
    total->loss += part->loss;
    total->entropy += part->entropy;
    total->valid += part->valid;
    for (int r = 0; r < MODEL_LOOPS_MAX; r++) {
        total->ce[r] += part->ce[r];
        total->correct[r] += part->correct[r];
        total->exit[r] += part->exit[r];
        total->tokens[r] += part->tokens[r];
    }
}
