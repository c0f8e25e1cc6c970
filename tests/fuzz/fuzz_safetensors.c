/* A safetensors file from a hostile hand: its header, and then every byte that an accepted header points to. */
#include "fuzz.h"
#include "model/safetensors.h"

#include <stdlib.h>

static void touch(const struct safetensors *st, const struct safetensors_entry *entry) {
    const unsigned char *data = safetensors_data(st, entry);
    volatile unsigned char sum = 0;
    for (size_t i = 0; i < entry->size; i++) sum = (unsigned char)(sum + data[i]);
    enum dtype dtype;
    looplm_error err;
    char text[SAFETENSORS_SHAPE_TEXT];
    safetensors_shape_text(entry->dims, entry->shape, text);
    if (safetensors_float_type(st, entry, &dtype, &err) == LOOPLM_OK) {
        size_t n = dtype_size(dtype);
        for (int32_t i = 0; i < entry->dims; i++) n *= (size_t)entry->shape[i];
        if (n != entry->size) abort();
    }
    if (safetensors_find(st, entry->name) != entry) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct safetensors st;
    looplm_error err;
    if (safetensors_open_memory(&st, data, size, "fuzz", &err)) return 0;
    for (int32_t i = 0; i < st.n_entries; i++) touch(&st, &st.entries[i]);
    safetensors_close(&st);
    return 0;
}
