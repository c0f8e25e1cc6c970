/* Owns the form of a checkpoint and the order in which its files reach the disk: every file is synced, then the
 * directory, then renamed, then the pointer is replaced, and only then are older ones deleted.
 *
 * Invariant: at every moment the pointer, if there is one, names a complete checkpoint.
 */
#include "train/checkpoint.h"

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/sha256.h"
#include "model/safetensors.h"
#include "model/values.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME_PREFIX "checkpoint-"
#define TEMPORARY_NAME "checkpoint.tmp"
#define POINTER_NAME "latest"
#define POINTER_BYTES_MAX 256
#define WALK_FILES 16
#define CHUNK 65536 /* elements converted at a time */

static int no_memory(const char *run, looplm_error *err) {
    return error_set(err, LOOPLM_MEMORY, "%s: no memory for a checkpoint", run);
}

/* ---- directories ------------------------------------------------------------------------------------------------ */

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *walk) {
    (void)st;
    (void)kind;
    (void)walk;
    return remove(path);
}

static void remove_tree(const char *path) {
    if (file_exists(path)) nftw(path, remove_entry, WALK_FILES, FTW_DEPTH | FTW_PHYS);
}

static void sync_directory(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    (void)fsync(fd);
    close(fd);
}

/* Files that an atomic write left beside its target. */
static void remove_temporaries(const char *directory) {
    DIR *entries = opendir(directory);
    if (!entries) return;
    for (struct dirent *e; (e = readdir(entries));) {
        char *path = strstr(e->d_name, ".tmp-") ? file_join(directory, e->d_name) : NULL;
        if (path) unlink(path);
        free(path);
    }
    closedir(entries);
}

void checkpoint_clean(const char *run) {
    static const char *const directories[] = {"", "cache", "model"};
    char *temporary = file_join(run, TEMPORARY_NAME);
    if (temporary) remove_tree(temporary);
    free(temporary);
    for (size_t i = 0; i < sizeof directories / sizeof *directories; i++) {
        char *directory = file_join(run, directories[i]);
        if (directory) remove_temporaries(directory);
        free(directory);
    }
}

/* The step in the name of a checkpoint, or -1. */
static int64_t step_of(const char *name) {
    size_t n = strlen(NAME_PREFIX);
    if (strncmp(name, NAME_PREFIX, n) != 0 || !name[n]) return -1;
    int64_t step = 0;
    for (const char *p = name + n; *p; p++) {
        if (*p < '0' || *p > '9' || step > INT64_MAX / 10 - 10) return -1;
        step = step * 10 + (*p - '0');
    }
    return step;
}

static int later_first(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

static char *directory_of(const char *run, int64_t step) {
    char *path = NULL;
    return asprintf(&path, "%s/" NAME_PREFIX "%06lld", run, (long long)step) < 0 ? NULL : path;
}

/* Deletes all but the newest `keep`, and any of a later step: a killed process left it before its pointer moved. What
 * cannot be deleted is left. */
static void delete_old(const char *run, int64_t newest, int64_t keep) {
    DIR *entries = opendir(run);
    int64_t *steps = NULL, count = 0;
    if (!entries) return;
    for (struct dirent *e; (e = readdir(entries));) {
        int64_t step = step_of(e->d_name);
        int64_t *more = step < 0 ? NULL : realloc(steps, (size_t)(count + 1) * sizeof *steps);
        if (!more) continue;
        steps = more;
        steps[count++] = step;
    }
    closedir(entries);
    if (count) qsort(steps, (size_t)count, sizeof *steps, later_first);
    for (int64_t i = 0, kept = 0; i < count; i++) {
        if (steps[i] <= newest && kept++ < keep) continue;
        char *path = directory_of(run, steps[i]);
        if (path) remove_tree(path);
        free(path);
    }
    free(steps);
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static int declare_moments(struct safetensors_writer *w, const struct tensor_table *table, char kind,
                           looplm_error *err) {
    int status = 0;
    for (int32_t i = 0; !status && i < table->count; i++) {
        const struct tensor_spec *spec = &table->specs[i];
        int64_t shape[2] = {spec->dims == 2 ? spec->rows : spec->cols, spec->cols};
        char name[TENSOR_NAME_MAX + 4];
        snprintf(name, sizeof name, "%c.%s", kind, spec->name);
        status = safetensors_writer_declare(w, name, "F32", spec->dims, shape, err);
    }
    return status;
}

static void write_moments(struct safetensors_writer *w, const struct tensor_table *table, const real *data,
                          float *chunk) {
    for (int32_t i = 0; i < table->count; i++) {
        const struct tensor_spec *spec = &table->specs[i];
        int64_t n = spec->rows * spec->cols;
        for (int64_t at = 0; at < n; at += CHUNK) {
            int64_t m = n - at < CHUNK ? n - at : CHUNK;
            values_from_real(data + spec->offset + at, m, DTYPE_F32, chunk);
            safetensors_writer_write(w, chunk, (size_t)m * sizeof *chunk);
        }
    }
}

static int write_optimizer(const char *directory, const struct optimizer *o, looplm_error *err) {
    struct safetensors_writer *w;
    const struct tensor_table *table = &o->params->table;
    char *path = file_join(directory, "optimizer.safetensors");
    float *chunk = malloc(CHUNK * sizeof *chunk);
    int status = path && chunk ? safetensors_writer_open(&w, path, err) : no_memory(directory, err);
    if (!status) {
        status = declare_moments(w, table, 'm', err);
        if (!status) status = declare_moments(w, table, 'v', err);
        if (status) {
            safetensors_writer_abort(w);
        } else {
            write_moments(w, table, o->m, chunk);
            write_moments(w, table, o->v, chunk);
            status = safetensors_writer_commit(w, err);
        }
    }
    free(chunk);
    free(path);
    return status;
}

static int write_state(const char *directory, const struct checkpoint_state *s, const struct optimizer *o,
                       looplm_error *err) {
    char *text = json_dumps(s->recipe, JSON_COMPACT | JSON_SORT_KEYS), hash[65] = "";
    if (text) sha256_hex(text, strlen(text), hash);
    free(text);
    /* All random numbers are functions of the seed and of counters that stand here: there is no other random state. */
    json_t *state =
        json_pack("{s:i, s:s, s:I, s:I, s:I, s:I, s:f, s:{s:I}, s:O, s:s, s:O}", "format", CHECKPOINT_FORMAT, "stage",
                  s->stage, "step", (json_int_t)s->step, "tokens", (json_int_t)s->tokens, "optimizer_step",
                  (json_int_t)o->step, "log_bytes", (json_int_t)s->log_bytes, "seconds", s->seconds, "random", "seed",
                  (json_int_t)s->seed, "data", s->data, "recipe_sha256", hash, "recipe", s->recipe);
    char *path = file_join(directory, "state.json");
    int status = state && path ? json_write(path, state, err) : no_memory(directory, err);
    free(path);
    json_decref(state);
    return status;
}

static int write_pointer(const char *run, int64_t step, looplm_error *err) {
    char *path = file_join(run, POINTER_NAME);
    if (!path) return no_memory(run, err);
    struct file_writer w;
    int status = file_writer_open(&w, path, err);
    if (!status) {
        file_writer_printf(&w, NAME_PREFIX "%06lld\n", (long long)step);
        status = file_writer_commit(&w, err);
    }
    free(path);
    return status;
}

/* A directory of that name can only be one that no pointer names, left by a process that was killed before it moved the
 * pointer: the trainer never saves the step that it resumed from. */
static int put_in_place(const char *run, const char *temporary, const char *directory, looplm_error *err) {
    sync_directory(temporary);
    remove_tree(directory);
    if (rename(temporary, directory) != 0)
        return error_set(err, LOOPLM_IO, "%s: cannot put the checkpoint in place: %s", directory, strerror(errno));
    sync_directory(run);
    return 0;
}

int checkpoint_save(const char *run, const struct checkpoint_state *state, const struct params *params,
                    const struct optimizer *optimizer, int64_t keep, looplm_error *err) {
    char *temporary = file_join(run, TEMPORARY_NAME), *directory = directory_of(run, state->step);
    int status = temporary && directory ? 0 : no_memory(run, err);
    if (!status) {
        remove_tree(temporary);
        status = params_save(params, temporary, DTYPE_F32, err);
        if (!status) status = write_optimizer(temporary, optimizer, err);
        if (!status) status = write_state(temporary, state, optimizer, err);
        if (!status) status = put_in_place(run, temporary, directory, err);
        if (status) remove_tree(temporary);
    }
    if (!status) status = write_pointer(run, state->step, err);
    if (!status) delete_old(run, state->step, keep);
    free(temporary);
    free(directory);
    if (status) error_prefix(err, "checkpoint at step %lld", (long long)state->step);
    return status;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

int checkpoint_find(const char *run, char **directory, looplm_error *err) {
    char *pointer = file_join(run, POINTER_NAME), *text = NULL;
    size_t size;
    int status = 0;
    *directory = NULL;
    if (!pointer) return no_memory(run, err);
    if (file_exists(pointer)) {
        status = file_read(pointer, POINTER_BYTES_MAX, &text, &size, err);
        if (!status) {
            text[strcspn(text, "\n")] = 0;
            if (step_of(text) < 0)
                status = error_set(err, LOOPLM_FORMAT, "%s: found '%.60s', expected the name of a checkpoint", pointer,
                                   text);
        }
        if (!status && !(*directory = file_join(run, text))) status = no_memory(run, err);
    }
    free(text);
    free(pointer);
    return status;
}

int checkpoint_read_state(const char *directory, struct checkpoint_state *s, looplm_error *err) {
    char *path = file_join(directory, "state.json");
    json_t *root = NULL;
    const json_t *data, *recipe;
    int64_t format;
    const char *stage;
    *s = (struct checkpoint_state){0};
    int status = path ? json_read(path, CHECKPOINT_STATE_BYTES_MAX, &root, err) : no_memory(directory, err);
    struct json_at at = {root, path, ""};
    if (!status) status = json_need_int(at, "format", CHECKPOINT_FORMAT, CHECKPOINT_FORMAT, &format, err);
    if (!status) status = json_need_int(at, "step", 0, INT64_MAX, &s->step, err);
    if (!status) status = json_need_int(at, "tokens", 0, INT64_MAX, &s->tokens, err);
    if (!status) status = json_need_int(at, "optimizer_step", 0, INT64_MAX, &s->optimizer_step, err);
    if (!status) status = json_need_int(at, "log_bytes", 0, INT64_MAX, &s->log_bytes, err);
    if (!status) status = json_need_double(at, "seconds", 0, 1e15, &s->seconds, err);
    if (!status) status = json_need_string(at, "stage", &stage, err);
    if (!status) status = json_need_object(at, "data", &data, err);
    if (!status) status = json_need_object(at, "recipe", &recipe, err);
    if (!status) {
        s->stage = strcmp(stage, "stage2") == 0 ? "stage2" : "stage1";
        s->data = json_deep_copy(data);
        s->recipe = json_deep_copy(recipe);
        if (!s->data || !s->recipe) status = no_memory(directory, err);
    }
    if (status) checkpoint_state_free(s);
    json_decref(root);
    free(path);
    return status;
}

void checkpoint_state_free(struct checkpoint_state *s) {
    json_decref(s->data);
    json_decref(s->recipe);
    s->data = s->recipe = NULL;
}

static int read_moments(const struct safetensors *st, const struct tensor_table *table, char kind, real *out,
                        const char *path, looplm_error *err) {
    for (int32_t i = 0; i < table->count; i++) {
        const struct tensor_spec *spec = &table->specs[i];
        int64_t n = spec->rows * spec->cols;
        char name[TENSOR_NAME_MAX + 4];
        snprintf(name, sizeof name, "%c.%s", kind, spec->name);
        const struct safetensors_entry *entry = safetensors_find(st, name);
        if (!entry || strcmp(entry->dtype, "F32") != 0 || entry->size != (size_t)n * sizeof(float))
            return error_set(err, LOOPLM_FORMAT,
                             "%s: tensor '%s': expected %lld values of F32; the checkpoint is damaged", path, name,
                             (long long)n);
        values_to_real(DTYPE_F32, safetensors_data(st, entry), n, out + spec->offset);
    }
    return 0;
}

int checkpoint_read_optimizer(const char *directory, struct optimizer *o, looplm_error *err) {
    char *path = file_join(directory, "optimizer.safetensors");
    if (!path) return no_memory(directory, err);
    struct safetensors st;
    int status = safetensors_open(&st, path, err);
    if (!status) {
        status = read_moments(&st, &o->params->table, 'm', o->m, path, err);
        if (!status) status = read_moments(&st, &o->params->table, 'v', o->v, path, err);
        safetensors_close(&st);
    }
    free(path);
    return status;
}
