/* Owns how a model comes from a directory: tensor by tensor, in pieces that are scanned for NaN, packed, and whose
 * pages are given back at once. So the peak of memory is the packed model and one piece. A file that is packed already
 * is only pointed at. */
#include "model/model.h"
#include "model/model_place.h"
#include "model/packed.h"
#include "model/source.h"
#include "model/values.h"
#include "tensor/convert.h"

#include <stdlib.h>

/* Large, since every piece costs the threads two meetings: pieces of 2 MiB, which stay in cache between the scan and
 * the packing, took no less processor time, and longer where other programs hold the processors. */
#define PIECE_BYTES ((size_t)32 << 20)

struct loader {
    struct model *model;
    struct model_source source;
    struct pass pass;
    uint8_t *bad; /* what the scan of a piece found, one for SCAN_BLOCK elements */
    int64_t bytes_done, bytes_total;
    const struct model_options *options;
};

/* As stored: bf16 only where every matrix is, since f16 has a longer fraction. */
static enum weight_type stored_type(const struct model_source *s) {
    for (int32_t i = 0; i < s->table.count; i++) {
        enum dtype dtype;
        model_source_entry(s, &s->table.specs[i], &dtype);
        if (tensor_is_matrix(&s->table.specs[i]) && dtype != DTYPE_BF16) return WEIGHT_F32;
    }
    return WEIGHT_BF16;
}

/* Rows of a piece: whole panels of about PIECE_BYTES. */
static int64_t piece_rows(size_t row_bytes) {
    int64_t panels = (int64_t)(PIECE_BYTES / (row_bytes * PANEL));
    return PANEL * (panels > 0 ? panels : 1);
}

static void report(struct loader *l, int64_t bytes) {
    l->bytes_done += bytes;
    if (l->options->progress) l->options->progress(l->options->progress_context, l->bytes_done, l->bytes_total);
}

/* One tensor on its way into its matrix. */
struct matrix_load {
    const struct tensor_spec *spec;
    const struct safetensors_entry *entry;
    const unsigned char *data;
    enum dtype dtype;
    struct weight *matrix;
    int64_t first_row; /* in the matrix */
};

/* Scans and packs rows [begin, end) of the tensor, then gives their pages back. */
static int load_rows(struct loader *l, const struct matrix_load *t, int64_t begin, int64_t end, looplm_error *err) {
    size_t element = dtype_size(t->dtype), offset = (size_t)(begin * t->spec->cols) * element;
    const void *from = t->data + offset;
    int64_t n = (end - begin) * t->spec->cols;
    pass_clear(&l->pass);
    pass_add(&l->pass, (struct op){.kind = OP_SCAN_FINITE, .scan_finite = {from, t->dtype, n, l->bad}});
    pass_add(&l->pass,
             (struct op){.kind = OP_PACK, .pack = {t->matrix, t->first_row + begin, end - begin, from, t->dtype}});
    l->model->backend->execute(l->model->backend, &l->pass);
    for (int64_t i = 0; i * SCAN_BLOCK < n; i++) {
        if (!l->bad[i]) continue;
        int64_t at = values_find_nonfinite(t->dtype, from, n);
        return model_source_nonfinite(&l->source, t->spec, begin * t->spec->cols + at, err);
    }
    file_map_release(&l->source.files.files[t->entry->file], t->entry->offset + offset, (size_t)n * element);
    report(l, n * (int64_t)element);
    return LOOPLM_OK;
}

static int load_matrix(struct loader *l, const struct matrix_load *t, looplm_error *err) {
    int64_t step = piece_rows((size_t)t->spec->cols * dtype_size(t->dtype)), rows = t->spec->rows;
    int status = LOOPLM_OK;
    for (int64_t row = 0; !status && row < rows; row += step) {
        status = load_rows(l, t, row, row + step < rows ? row + step : rows, err);
    }
    return status;
}

static int load_vector(struct loader *l, const struct tensor_spec *spec, const struct safetensors_entry *entry,
                       enum dtype dtype, looplm_error *err) {
    real *to = model_vector(l->model, spec->role, spec->layer);
    values_to_real(dtype, safetensors_data(&l->source.files, entry), spec->cols, to);
    int64_t bad = values_find_nonfinite(DTYPE_REAL, to, spec->cols);
    report(l, (int64_t)entry->size);
    return bad < 0 ? LOOPLM_OK : model_source_nonfinite(&l->source, spec, bad, err);
}

static int load_tensor(struct loader *l, const struct tensor_spec *spec, looplm_error *err) {
    struct matrix_load t = {.spec = spec};
    t.entry = model_source_entry(&l->source, spec, &t.dtype);
    t.matrix = model_matrix(l->model, spec->role, spec->layer, &t.first_row);
    if (!t.matrix) return load_vector(l, spec, t.entry, t.dtype, err);
    t.data = safetensors_data(&l->source.files, t.entry);
    return load_matrix(l, &t, err);
}

static int load_all(struct loader *l, struct backend *backend, looplm_error *err) {
    const struct tensor_table *table = &l->source.table;
    int64_t largest = 0;
    for (int32_t i = 0; i < table->count; i++) {
        enum dtype dtype;
        const struct tensor_spec *spec = &table->specs[i];
        l->bytes_total += (int64_t)model_source_entry(&l->source, spec, &dtype)->size;
        if (spec->rows * spec->cols > largest) largest = spec->rows * spec->cols;
    }
    l->bad = calloc((size_t)(largest / SCAN_BLOCK + 1), 1);
    if (!l->bad) return error_set(err, LOOPLM_MEMORY, "no memory to load a model");
    enum weight_type type = l->options->type_given ? l->options->weight_type : stored_type(&l->source);
    int status = model_alloc(&l->model, &l->source.config, backend, type, err);
    for (int32_t i = 0; !status && i < table->count; i++) status = load_tensor(l, &table->specs[i], err);
    return status;
}

/* ---- a packed file ---------------------------------------------------------------------------------------------- */

static int check_packed_type(const struct loader *l, const char *directory, looplm_error *err) {
    const struct model_config *c = &l->source.config;
    if (!l->options->type_given || l->options->weight_type == c->packed_type) return LOOPLM_OK;
    return error_set(
        err, LOOPLM_USAGE,
        "%s: its weights are packed as %s, and %s was asked; leave --weights out, or quantise the original "
        "as %s",
        directory, model_weight_type_name(c->packed_type), model_weight_type_name(l->options->weight_type),
        model_weight_type_name(l->options->weight_type));
}

/* Points the matrices at the map, which becomes the model's. */
static int map_matrices(struct loader *l, looplm_error *err) {
    struct model *m = l->model;
    struct safetensors *files = malloc(sizeof *files);
    if (!files) return error_set(err, LOOPLM_MEMORY, "no memory to load a model");
    *files = l->source.files;
    l->source.files = (struct safetensors){0};
    m->mapped = files;
    for (int32_t i = 0; i < packed_count(&m->config); i++) {
        struct packed_matrix matrix = packed_get(&m->config, i);
        const struct safetensors_entry *entry;
        int64_t row;
        struct weight *w = model_matrix(m, matrix.role, matrix.layer, &row);
        int status = packed_find(files, &matrix, &entry, &w->type, err);
        if (status) return status;
        CHECK_EQ(w->n, matrix.n);
        CHECK_EQ(w->k, matrix.k);
        w->data = (void *)(uintptr_t)safetensors_data(files, entry); /* never written: model_pack refuses a map */
    }
    if (m->config.tied) m->head = m->embed;
    return LOOPLM_OK;
}

static int load_packed(struct loader *l, const char *directory, struct backend *backend, looplm_error *err) {
    const struct tensor_table *table = &l->source.table;
    int status = check_packed_type(l, directory, err);
    if (!status)
        status = model_alloc_unmapped(&l->model, &l->source.config, backend, l->source.config.packed_type, err);
    for (int32_t i = 0; i < table->count; i++)
        if (!tensor_is_matrix(&table->specs[i])) l->bytes_total += table->specs[i].cols * (int64_t)sizeof(float);
    for (int32_t i = 0; !status && i < table->count; i++)
        if (!tensor_is_matrix(&table->specs[i])) status = load_tensor(l, &table->specs[i], err);
    return status ? status : map_matrices(l, err);
}

int model_open(struct model **model, const char *directory, struct backend *backend,
               const struct model_options *options, looplm_error *err) {
    static const struct model_options as_stored = {0};
    *model = NULL;
    struct loader l = {.options = options ? options : &as_stored};
    int status = model_source_open(&l.source, directory, err);
    if (status) return status;
    status = l.source.config.packed ? load_packed(&l, directory, backend, err) : load_all(&l, backend, err);
    if (status) {
        model_close(l.model);
    } else {
        *model = l.model;
    }
    model_source_close(&l.source);
    pass_free(&l.pass);
    free(l.bad);
    return status;
}
