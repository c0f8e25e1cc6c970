/* Every loop of every position (study.h): the model's own passes, one loop at a time over chunks of rows. */
#include "engine/study.h"

#include "model/exit.h"
#include "model/loop.h"
#include "model/safetensors.h"

#include <stdlib.h>
#include <string.h>

#define STUDY_CHUNK 512
#define STUDY_HEAD_ROWS 32

/* A chunk of positions through all loops; every earlier chunk has been through all of them. */
static void run_chunk(struct study *s, struct kv_sequence *kv, struct loop_workspace *w, struct pass *pass,
                      const int32_t *ids, int32_t first, int32_t count) {
    struct backend *backend = s->model->backend;
    size_t width = (size_t)s->model->config.hidden;
    for (int32_t r = 0; r < s->loops; r++) {
        real *h = s->hidden + ((size_t)r * (size_t)s->n + (size_t)first) * width;
        struct run run = {.count = count, .first = first, .loop = r, .blocks = kv_table(kv, r)};
        pass_clear(pass);
        if (r == 0)
            pass_add(pass, (struct op){.kind = OP_EMBED,
                                       .embed = {&s->model->embed, ids + first, w->buffers.layers->x, count}});
        kv_enter(kv, r, first, count);
        loop_record(pass, s->model, &kv->pool->geometry, &run, 1, 0, &w->buffers);
        backend->execute(backend, pass);
        memcpy(h, w->buffers.h, (size_t)count * width * sizeof(real));
        memcpy(w->buffers.layers->x, h, (size_t)count * width * sizeof(real)); /* the next loop's input */
        for (int32_t i = 0; s->gate && i < count; i++)
            s->gate[(size_t)r * (size_t)s->n + (size_t)(first + i)] = (float)w->buffers.lambda[i];
    }
}

static void fill_exit(struct study *s) {
    for (int32_t i = 0; s->gate && i < s->n; i++) {
        struct exit_state state = exit_begin();
        for (int32_t r = 0; r < s->loops; r++) {
            size_t at = (size_t)r * (size_t)s->n + (size_t)i;
            s->exit[at] = exit_advance(&state, s->gate[at], r + 1 == s->loops);
        }
    }
}

static int check_input(const struct model_config *c, const int32_t *ids, int32_t n, int32_t loops, looplm_error *err) {
    if (n < 1) return error_set(err, LOOPLM_USAGE, "no ids were given; --ids takes a list like 1,2,3");
    if (n > c->max_positions)
        return error_set(err, LOOPLM_LIMIT,
                         "%d ids exceed the model's %d positions (max_position_embeddings); give fewer", n,
                         c->max_positions);
    if (loops > MODEL_LOOPS_MAX)
        return error_set(err, LOOPLM_USAGE, "%d loops asked, at most %d", loops, MODEL_LOOPS_MAX);
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= c->vocab)
            return error_set(err, LOOPLM_USAGE, "id %d at index %d is outside the vocabulary of %d; expected 0 to %d",
                             ids[i], i, c->vocab, c->vocab - 1);
    return 0;
}

int study_run(struct study *s, struct model *model, const int32_t *ids, int32_t n, int32_t loops, enum kv_type kv_type,
              looplm_error *err) {
    const struct model_config *c = &model->config;
    *s = (struct study){.model = model, .n = n, .loops = loops ? loops : c->loops};
    int status = check_input(c, ids, n, s->loops, err);
    if (status) return status;
    size_t rows = (size_t)s->loops * (size_t)n;
    s->hidden = malloc(rows * (size_t)c->hidden * sizeof(real));
    if (c->exit_gate) {
        s->gate = malloc(rows * sizeof(float));
        s->exit = malloc(rows * sizeof(float));
    }
    if (!s->hidden || (c->exit_gate && (!s->gate || !s->exit))) {
        study_free(s);
        return error_set(err, LOOPLM_MEMORY, "hidden states of %d ids at %d loops could not be had", n, s->loops);
    }
    struct kv_pool pool;
    struct kv_sequence kv = {0};
    struct loop_workspace w = {0};
    struct pass pass = {0};
    struct kv_geometry geometry = {kv_type, c->layers, c->kv_heads, c->head_dim};
    status = kv_pool_init(&pool, model->backend, geometry, (int64_t)(n + KV_BLOCK - 1) / KV_BLOCK * s->loops, err);
    if (!status) status = kv_sequence_init(&kv, &pool, KV_POLICY_LAST_EXITED, s->loops, n, err);
    if (!status) status = loop_workspace_init(&w, model, n < STUDY_CHUNK ? n : STUDY_CHUNK, err);
    if (!status) {
        CHECK_EQ(kv_reserve(&kv, n), true);
        for (int32_t first = 0; first < n; first += w.rows_max)
            run_chunk(s, &kv, &w, &pass, ids, first, n - first < w.rows_max ? n - first : w.rows_max);
        fill_exit(s);
    }
    pass_free(&pass);
    if (w.memory) loop_workspace_free(&w);
    if (kv.pool) kv_sequence_free(&kv);
    kv_pool_free(&pool);
    if (status) study_free(s);
    return status;
}

void study_free(struct study *s) {
    free(s->hidden);
    free(s->gate);
    free(s->exit);
    *s = (struct study){0};
}

static int declare_all(const struct study *s, struct safetensors_writer *w, looplm_error *err) {
    int64_t logits[3] = {s->loops, s->n, s->model->config.vocab}, hidden[3] = {s->loops, s->n, s->model->config.hidden};
    int status = safetensors_writer_declare(w, "logits", "F32", 3, logits, err);
    if (!status) status = safetensors_writer_declare(w, "hidden", "F32", 3, hidden, err);
    if (s->gate && !status) status = safetensors_writer_declare(w, "gate", "F32", 2, hidden, err);
    if (s->gate && !status) status = safetensors_writer_declare(w, "exit", "F32", 2, hidden, err);
    return status;
}

static void write_reals(struct safetensors_writer *w, const real *x, size_t n) {
    for (size_t i = 0; i < n; i += 4096) {
        float chunk[4096];
        size_t m = n - i < 4096 ? n - i : 4096;
        for (size_t j = 0; j < m; j++) chunk[j] = (float)x[i + j];
        safetensors_writer_write(w, chunk, m * sizeof *chunk);
    }
}

static void write_logits(const struct study *s, struct safetensors_writer *w, real *logits) {
    const struct model_config *c = &s->model->config;
    struct pass pass = {0};
    int64_t rows = (int64_t)s->loops * s->n;
    for (int64_t i = 0; i < rows; i += STUDY_HEAD_ROWS) {
        int32_t m = (int32_t)(rows - i < STUDY_HEAD_ROWS ? rows - i : STUDY_HEAD_ROWS);
        pass_clear(&pass);
        loop_record_head(&pass, s->model, s->hidden + (size_t)i * (size_t)c->hidden, m, logits);
        s->model->backend->execute(s->model->backend, &pass);
        write_reals(w, logits, (size_t)m * (size_t)c->vocab);
    }
    pass_free(&pass);
}

int study_write(const struct study *s, const char *path, looplm_error *err) {
    struct safetensors_writer *w = NULL;
    real *logits = malloc(STUDY_HEAD_ROWS * (size_t)s->model->config.vocab * sizeof(real));
    if (!logits) return error_set(err, LOOPLM_MEMORY, "out of memory");
    int status = safetensors_writer_open(&w, path, err);
    if (!status) {
        status = declare_all(s, w, err);
        if (!status) {
            size_t rows = (size_t)s->loops * (size_t)s->n;
            write_logits(s, w, logits);
            write_reals(w, s->hidden, rows * (size_t)s->model->config.hidden);
            if (s->gate) {
                safetensors_writer_write(w, s->gate, rows * sizeof(float));
                safetensors_writer_write(w, s->exit, rows * sizeof(float));
            }
            status = safetensors_writer_commit(w, err);
        } else {
            safetensors_writer_abort(w);
        }
    }
    free(logits);
    return status;
}
