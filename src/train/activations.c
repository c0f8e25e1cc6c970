/* Owns the layout of a unit's activations. Who writes and reads them is decided by unit.c and backward.c.
 *
 * Invariant: every buffer of a layer is one allocation for all sets, so that the rows of loops that have as many can
 * lie together: the gradient of a weight then takes one product over all of them (backward.h), deepest loop first,
 * which is the order of the sums. A normed input is not kept: the product reads it at once, and the gradient of the
 * weight norms the rows again. Only the first layer's is, since its rows are the loop before's and lie elsewhere.
 */
#include "train/activations.h"

#include <stdlib.h>

#define LAYER_BUFFERS_MAX 24

struct buffer_entry {
    real **buffer;
    int64_t width; /* reals a row */
};

/* Every buffer of a layer; a width of 0: it has none. */
static int list_buffers(struct layer_buffers *b, const struct model_config *c, int32_t layer,
                        struct buffer_entry out[LAYER_BUFFERS_MAX]) {
    int64_t heads = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    const struct buffer_entry table[] = {
        {&b->x, c->hidden},
        {&b->n1, layer ? 0 : c->hidden},
        {&b->r1, 1},
        {&b->qkv, heads + 2 * kv},
        {&b->qk_rstd, c->qk_norm ? c->heads + c->kv_heads : 0},
        {&b->q, heads},
        {&b->att, heads},
        {&b->lse, c->heads},
        {&b->o, c->hidden},
        {&b->r2, 1},
        {&b->x2, c->hidden},
        {&b->r3, 1},
        {&b->gate_up, 2 * (int64_t)c->ffn},
        {&b->act, c->ffn},
        {&b->down, c->hidden},
        {&b->r4, 1},
    };
    _Static_assert(sizeof table / sizeof *table <= LAYER_BUFFERS_MAX, "list of buffers");
    int n = (int)(sizeof table / sizeof *table);
    for (int i = 0; i < n; i++) out[i] = table[i];
    return n;
}

int activations_init(struct activation_store *store, const struct model *model, int32_t n_sets, int32_t positions_max,
                     looplm_error *err) {
    size_t layers = (size_t)model->config.layers;
    *store = (struct activation_store){.model = model, .n_sets = n_sets, .positions_max = positions_max};
    store->sets = calloc((size_t)n_sets, sizeof *store->sets);
    store->first = calloc(layers, sizeof *store->first);
    bool ok = store->sets && store->first;
    for (int32_t i = 0; ok && i < n_sets; i++) {
        struct activations *a = &store->sets[i];
        a->layers = calloc(layers, sizeof *a->layers);
        ok = a->layers;
    }
    if (ok) return 0;
    activations_free(store);
    return error_set(err, LOOPLM_MEMORY, "training: the tables of a sequence could not be had");
}

void activations_free(struct activation_store *store) {
    for (int32_t i = 0; store->sets && i < store->n_sets; i++) free(store->sets[i].layers);
    free(store->sets);
    free(store->first);
    *store = (struct activation_store){0};
}

void activations_bind(struct activation_store *store, struct carve *carve) {
    const struct model_config *c = &store->model->config;
    int64_t n = store->positions_max;
    struct buffer_entry entries[LAYER_BUFFERS_MAX];
    for (int32_t l = 0; l < c->layers; l++) {
        int count = list_buffers(&store->first[l], c, l, entries);
        for (int i = 0; i < count; i++)
            *entries[i].buffer =
                entries[i].width ? carve_take(carve, n * store->n_sets * entries[i].width, sizeof(real)) : NULL;
    }
    store->normed = carve_take(carve, n * c->hidden, sizeof(real));
    for (int32_t i = 0; i < store->n_sets; i++) {
        struct activations *a = &store->sets[i];
        a->rope = carve_take(carve, n * c->head_dim, sizeof(real));
        a->x_last = carve_take(carve, n * c->hidden, sizeof(real));
        a->norm_rstd = carve_take(carve, n, sizeof(real));
    }
}

static void place_layer(struct activation_store *store, struct activations *a, int32_t l, int64_t row) {
    const struct model_config *c = &store->model->config;
    struct buffer_entry from[LAYER_BUFFERS_MAX], to[LAYER_BUFFERS_MAX];
    int n = list_buffers(&store->first[l], c, l, from);
    list_buffers(&a->layers[l], c, l, to);
    for (int i = 0; i < n; i++) *to[i].buffer = *from[i].buffer ? *from[i].buffer + row * from[i].width : NULL;
    a->layers[l].ldq = (int64_t)c->heads * c->head_dim;
    a->layers[l].n2 = store->normed;
    if (l) a->layers[l].n1 = store->normed;
}

void activations_place(struct activation_store *store, int32_t used, int32_t stride) {
    for (int32_t i = 0; i < store->n_sets; i++) {
        struct activations *a = &store->sets[i];
        int64_t before = store->n_sets > 1 && i < used ? used - 1 - i : 0;
        for (int32_t l = 0; l < store->model->config.layers; l++) place_layer(store, a, l, before * stride);
        a->input = a->layers[0].x;
    }
}
