/* Reading JSON that somebody else wrote: whole files within limits, and typed getters whose errors name the file, the
 * key, what was found and what was expected. Values are jansson's; writing uses jansson directly. */
#ifndef BASE_JSON_H
#define BASE_JSON_H

#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>

/* Deeper nesting is refused before it is parsed. */
#define JSON_DEPTH_MAX 64

/* Parses text of any top-level type; `name` is for messages. Duplicate keys are errors. The caller owns *value. */
int json_parse(const char *text, size_t size, const char *name, json_t **value, looplm_error *err);
/* The same for a file of at most size_max bytes. */
int json_read(const char *path, size_t size_max, json_t **value, looplm_error *err);
/* Writes a value as an indented file, atomically, keys in their order. */
int json_write(const char *path, const json_t *value, looplm_error *err);

/* An object and where it stands: file for messages, and a dotted prefix ("" at the top). Both are borrowed. */
struct json_at {
    const json_t *object;
    const char *file;
    const char *prefix;
};

/* The value must be there, of that type and within [min, max]. */
int json_need_int(struct json_at at, const char *key, int64_t min, int64_t max, int64_t *out, looplm_error *err);
int json_need_double(struct json_at at, const char *key, double min, double max, double *out, looplm_error *err);
int json_need_bool(struct json_at at, const char *key, bool *out, looplm_error *err);
int json_need_string(struct json_at at, const char *key, const char **out, looplm_error *err); /* borrowed */
int json_need_array(struct json_at at, const char *key, const json_t **out, looplm_error *err);
int json_need_object(struct json_at at, const char *key, const json_t **out, looplm_error *err);

/* The same, but an absent or null key leaves *out as it was. */
int json_want_int(struct json_at at, const char *key, int64_t min, int64_t max, int64_t *out, looplm_error *err);
int json_want_double(struct json_at at, const char *key, double min, double max, double *out, looplm_error *err);
int json_want_bool(struct json_at at, const char *key, bool *out, looplm_error *err);
int json_want_string(struct json_at at, const char *key, const char **out, looplm_error *err);
int json_want_array(struct json_at at, const char *key, const json_t **out, looplm_error *err);
int json_want_object(struct json_at at, const char *key, const json_t **out, looplm_error *err);

/* "an integer", "a string", ... of a value; "nothing" for NULL. */
const char *json_type_name(const json_t *value);

#endif
