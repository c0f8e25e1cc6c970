/* A recipe from a hostile hand: YAML, then every key into a table with each kind of option, then the record and
 * overrides. */
#include "base/options.h"
#include "base/yaml.h"
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

#define FUZZ_OPTIONS(X)                                                       \
    X(TEXT, out, "out", 0, OPTION_NEEDED, "DIR", "where the run goes")        \
    X(REAL, lr, "train.lr", 0, 1e-3, 0.0, 1.0, "X", "learning rate")          \
    X(INT, steps, "train.steps", 0, 100, 1, 1000000, "N", "steps")            \
    X(SWITCH, recompute, "train.recompute", 0, true, "recompute")             \
    X(CHOICE, schedule, "train.schedule", 0, "wsd", "wsd|cosine", "schedule") \
    X(LIST, held_out, "eval.files", 0, "FILE", "held-out text")               \
    X(LIST, paths, "data.*.path", 0, "FILE", "training text")                 \
    X(LIST, shares, "data.*.share", 0, "X", "its share")
OPTIONS_DEFINE(fuzz_options, FUZZ_OPTIONS)

static void check_record(const struct fuzz_options *options) {
    json_t *record = options_dump(fuzz_options_table(), options);
    /* Only text that is not UTF-8 cannot be recorded, and a recipe's text always is. */
    if (!record) abort();
    json_decref(record);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const struct options_table *table = fuzz_options_table();
    struct fuzz_options options;
    struct yaml_keys yaml;
    looplm_error err;
    if (options_init(table, &options, &err)) return 0;
    if (!yaml_keys_parse(&yaml, (const char *)data, size, "fuzz", &err)) {
        for (int i = 0; i < yaml.count; i++) {
            if (yaml.entries[i].value)
                options_set(table, &options, yaml.entries[i].key, yaml.entries[i].value, "fuzz", &err);
        }
        check_record(&options);
        yaml_keys_free(&yaml);
    }
    char *text = malloc(size + 1);
    if (text) {
        if (size) memcpy(text, data, size);
        text[size] = 0;
        options_override(table, &options, text, &err);
        options_check(table, &options, "fuzz", &err);
    }
    free(text);
    options_free(table, &options);
    return 0;
}
