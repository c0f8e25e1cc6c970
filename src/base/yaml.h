/* Recipes: a YAML file as a flat list of dotted keys. `data: [{path: a}]` is the entry "data.0.path" with the value
 * "a". */
#ifndef BASE_YAML_H
#define BASE_YAML_H

#include "base/error.h"

#define YAML_SIZE_MAX (256 * 1024)
#define YAML_DEPTH_MAX 32
#define YAML_ENTRIES_MAX 4096
#define YAML_KEY_MAX 256

struct yaml_entry {
    char *key;
    char *value; /* as written; NULL for an empty or null scalar */
    int line;    /* of the value, from 1 */
};

struct yaml_keys {
    char *file;
    struct yaml_entry *entries;
    int count;
};

/* One document with a mapping at the top. Duplicate keys, anchors and aliases, keys that are not plain scalars, empty
 * lists and mappings, and anything beyond the limits are errors that name file and line. */
int yaml_keys_read(struct yaml_keys *yaml, const char *path, looplm_error *err);
int yaml_keys_parse(struct yaml_keys *yaml, const char *text, size_t size, const char *name, looplm_error *err);
void yaml_keys_free(struct yaml_keys *yaml);

/* NULL when there is no such key. */
const struct yaml_entry *yaml_keys_find(const struct yaml_keys *yaml, const char *key);

#endif
