/* A packed model's file from a hostile hand, for a config that is good: what is accepted has every panel that a kernel
 * would read inside the file. */
#include "fuzz.h"
#include "model/packed.h"

#include <stdlib.h>
#include <string.h>

static const struct model_config config = {.family = FAMILY_OURO,
                                           .layers = 1,
                                           .hidden = 32,
                                           .ffn = 32,
                                           .vocab = 16,
                                           .heads = 2,
                                           .kv_heads = 1,
                                           .head_dim = 16,
                                           .tied = true,
                                           .packed = true,
                                           .packed_type = WEIGHT_Q4};

static void touch(const struct safetensors *files) {
    for (int32_t i = 0; i < packed_count(&config); i++) {
        struct packed_matrix m = packed_get(&config, i);
        const struct safetensors_entry *entry;
        enum weight_type type;
        if (packed_find(files, &m, &entry, &type, NULL)) abort();
        const unsigned char *data = safetensors_data(files, entry);
        volatile unsigned char sum = 0;
        for (size_t at = 0; at < weight_size(type, m.n, m.k); at++) sum = (unsigned char)(sum + data[at]);
        if (!packed_is_matrix(&config, entry->name)) abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct safetensors files;
    looplm_error err;
    /* On a cache line, as a map is, so that the alignment is the file's own. */
    unsigned char *copy = aligned_alloc(PACKED_ALIGN, (size + PACKED_ALIGN) / PACKED_ALIGN * PACKED_ALIGN);
    if (!copy) return 0;
    memcpy(copy, data, size);
    if (safetensors_open_memory(&files, copy, size, "fuzz", &err) == LOOPLM_OK) {
        if (packed_check(&files, &config, &err) == LOOPLM_OK) touch(&files);
        safetensors_close(&files);
    }
    free(copy);
    return 0;
}
