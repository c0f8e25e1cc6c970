/* A config.json from a hostile hand: what is accepted must pass the checks again and give a tensor table whose offsets
 * follow each other. */
#include "fuzz.h"
#include "model/tensors.h"

#include <stdlib.h>

#define TENSORS_MAX 2000 /* a larger table is valid, and slow to make a million times */

static void check_table(const struct model_config *config) {
    struct tensor_table table;
    looplm_error err;
    if (config->layers * 11 > TENSORS_MAX || tensor_table_init(&table, config, &err)) return;
    int64_t end = 0;
    for (int32_t i = 0; i < table.count; i++) {
        if (table.specs[i].offset < end || table.specs[i].rows < 1 || table.specs[i].cols < 1) abort();
        end = table.specs[i].offset + table.specs[i].rows * table.specs[i].cols;
    }
    if (end > table.elements) abort();
    tensor_table_free(&table);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct model_config config;
    looplm_error err;
    if (model_config_parse(&config, (const char *)data, size, "fuzz", &err)) return 0;
    if (model_config_validate(&config, "fuzz", &err)) abort();
    for (int32_t i = 0; i < config.n_eos; i++) {
        if (config.eos_ids[i] < 0 || config.eos_ids[i] >= config.vocab) abort();
    }
    check_table(&config);
    return 0;
}
