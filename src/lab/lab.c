/* Owns the split, the documents and the rank correlation (lab.h); what a problem says is the task's own. */
#include "lab/lab.h"

#include "base/file.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define HELD_OUT_KEY 0x6c61622d73706c69u /* of the split; another value would move problems between the sides */

/* ---- weights ---------------------------------------------------------------------------------------------------- */

static int wrong_weights(const struct lab_task *task, const char *text, const char *option, looplm_error *err) {
    return error_set(err, LOOPLM_USAGE,
                     "option --%s: found '%.60s', expected %d numbers from 0 to %d with commas between, one for each "
                     "number of %s from %d to %d, not all 0",
                     option, text, task->level_max - task->level_min + 1, LAB_WEIGHT_MAX, task->axis, task->level_min,
                     task->level_max);
}

int lab_task_weights(struct lab_task *task, const char *text, const char *option, looplm_error *err) {
    CHECK_LE(task->level_max, LAB_LEVELS_MAX);
    int64_t sum = 0;
    const char *at = text;
    for (int32_t level = task->level_min; level <= task->level_max; level++) {
        task->weights[level] = 1;
        if (!text) continue;
        char *end;
        errno = 0;
        long weight = strtol(at, &end, 10);
        bool last = level == task->level_max;
        if (end == at || errno || weight < 0 || weight > LAB_WEIGHT_MAX || *end != (last ? 0 : ','))
            return wrong_weights(task, text, option, err);
        task->weights[level] = (int32_t)weight;
        sum += weight;
        at = end + 1;
    }
    return text && sum == 0 ? wrong_weights(task, text, option, err) : 0;
}

/* ---- the split and the draws ------------------------------------------------------------------------------------ */

static uint64_t text_hash(const char *text) {
    uint64_t hash = 0;
    for (; *text; text++) hash = random_hash(HELD_OUT_KEY, hash, (unsigned char)*text);
    return hash;
}

bool lab_is_held_out(const struct lab_task *task, const struct lab_problem *problem) {
    return problem->level >= task->held_out_from && text_hash(problem->prompt) % LAB_HELD_OUT_SHARE == 0;
}

int32_t lab_draw_level(const struct lab_task *task, struct random *random, bool held_out) {
    int32_t first = held_out && task->held_out_from > task->level_min ? task->held_out_from : task->level_min;
    uint64_t sum = 0;
    for (int32_t level = first; level <= task->level_max; level++) sum += (uint64_t)task->weights[level];
    CHECK_EQ(sum == 0, 0);
    uint64_t at = random_below(random, sum);
    int32_t level = first;
    for (; at >= (uint64_t)task->weights[level]; level++) at -= (uint64_t)task->weights[level];
    return level;
}

int lab_draw(const struct lab_task *task, struct random *random, int32_t level, bool held_out,
             struct lab_problem *problem, looplm_error *err) {
    for (int try = 0; try < LAB_TRIES_MAX; try++) {
        *problem = (struct lab_problem){.level = level};
        task->draw(task->world, random, level, problem);
        if (level < task->held_out_from || lab_is_held_out(task, problem) == held_out) return 0;
    }
    return error_set(
        err, LOOPLM_LIMIT,
        "%s: %d draws gave no problem of %d %s that is %s; there are too few of them: make the world larger",
        task->name, LAB_TRIES_MAX, level, task->axis, held_out ? "held out" : "for training");
}

/* ---- documents -------------------------------------------------------------------------------------------------- */

/* A text that grows; one is used for all documents of a file. */
struct text {
    char *data;
    size_t size, capacity;
};

static int text_add(struct text *t, const char *piece, looplm_error *err) {
    size_t n = strlen(piece);
    if (t->size + n + 1 > t->capacity) {
        size_t capacity = 2 * (t->size + n + 1);
        char *data = realloc(t->data, capacity);
        if (!data) return error_set(err, LOOPLM_MEMORY, "no memory for a document of %zu bytes", capacity);
        t->data = data;
        t->capacity = capacity;
    }
    memcpy(t->data + t->size, piece, n + 1);
    t->size += n;
    return 0;
}

static int add_problem(struct text *t, const struct lab_problem *problem, bool solved, looplm_error *err) {
    int status = text_add(t, problem->prompt, err);
    if (!status && solved) status = text_add(t, problem->answer, err);
    if (!status && solved) status = text_add(t, "\n", err);
    return status;
}

static int write_object(struct file_writer *w, json_t *object, looplm_error *err) {
    char *line = object ? json_dumps(object, JSON_COMPACT) : NULL;
    json_decref(object);
    if (!line) return error_set(err, LOOPLM_MEMORY, "no memory for a document");
    file_writer_printf(w, "%s\n", line);
    free(line);
    return 0;
}

static int write_document(const struct lab_task *task, const struct lab_documents *o, int64_t index, struct text *t,
                          struct file_writer *w, looplm_error *err) {
    struct random random = {random_hash(o->seed, (uint64_t)index, 0), 0};
    struct lab_problem problem = {0};
    int status = 0;
    t->size = 0;
    for (int32_t i = 0; i < o->problems && !status; i++) {
        bool open = o->form == LAB_FORM_ANSWER && i + 1 == o->problems;
        int32_t level = lab_draw_level(task, &random, o->held_out);
        status = lab_draw(task, &random, level, o->held_out, &problem, err);
        if (!status) status = add_problem(t, &problem, !open, err);
    }
    if (status) return status;
    if (o->form == LAB_FORM_TEXT) return write_object(w, json_pack("{s:s}", "text", t->data), err);
    return write_object(w, json_pack("{s:s, s:s}", "prompt", t->data, "answer", problem.answer), err);
}

static int check_documents(const struct lab_task *task, const struct lab_documents *o, looplm_error *err) {
    CHECK_LE(1, o->problems);
    CHECK_LE(o->problems, LAB_PROBLEMS_MAX);
    int64_t weight = 0;
    for (int32_t level = task->held_out_from; level <= task->level_max; level++)
        if (level >= task->level_min) weight += task->weights[level];
    if (o->held_out && weight == 0)
        return error_set(err, LOOPLM_USAGE, "%s: only problems of %d %s or more are held out; ask for more than %d",
                         task->name, task->held_out_from, task->axis, task->level_max);
    return 0;
}

int lab_generate(const struct lab_task *task, const struct lab_documents *o, const char *path, looplm_error *err) {
    int status = check_documents(task, o, err);
    if (status) return status;
    struct file_writer w;
    struct text text = {0};
    status = file_writer_open(&w, path, err);
    if (status) return status;
    for (int64_t i = 0; i < o->documents && !status; i++) status = write_document(task, o, i, &text, &w, err);
    free(text.data);
    if (!status) return file_writer_commit(&w, err);
    file_writer_abort(&w);
    return status;
}

/* ---- rank correlation ------------------------------------------------------------------------------------------- */

struct ranked {
    double value, rank;
    size_t index;
};

static int by_value(const void *a, const void *b) {
    double x = ((const struct ranked *)a)->value, y = ((const struct ranked *)b)->value;
    return (x > y) - (x < y);
}

static int by_index(const void *a, const void *b) {
    size_t x = ((const struct ranked *)a)->index, y = ((const struct ranked *)b)->index;
    return (x > y) - (x < y);
}

/* Ranks from 0, ties sharing their mean, back in the order of the values. */
static void rank(const double *x, size_t n, struct ranked *out) {
    for (size_t i = 0; i < n; i++) out[i] = (struct ranked){.value = x[i], .index = i};
    qsort(out, n, sizeof *out, by_value);
    for (size_t first = 0, end; first < n; first = end) {
        for (end = first + 1; end < n && out[end].value == out[first].value;) end++;
        for (size_t i = first; i < end; i++) out[i].rank = 0.5 * (double)(first + end - 1);
    }
    qsort(out, n, sizeof *out, by_index);
}

int lab_spearman(const double *x, const double *y, size_t n, double *correlation, looplm_error *err) {
    *correlation = NAN;
    if (n < 2) return 0;
    struct ranked *a = malloc(2 * n * sizeof *a), *b = a + n;
    if (!a) return error_set(err, LOOPLM_MEMORY, "no memory for %zu ranks", n);
    rank(x, n, a);
    rank(y, n, b);
    double mean = 0.5 * (double)(n - 1), xy = 0, xx = 0, yy = 0;
    for (size_t i = 0; i < n; i++) {
        xy += (a[i].rank - mean) * (b[i].rank - mean);
        xx += (a[i].rank - mean) * (a[i].rank - mean);
        yy += (b[i].rank - mean) * (b[i].rank - mean);
    }
    if (xx > 0 && yy > 0) *correlation = xy / sqrt(xx * yy);
    free(a);
    return 0;
}
