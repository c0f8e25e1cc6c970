/* Owns how JSON is read and its mistakes are told. jansson parses; the depth is checked before, since what follows a
 * parser often walks the tree by recursion. */
#include "base/json.h"

#include "base/file.h"

#include <stdlib.h>
#include <string.h>

static int check_depth(const char *text, size_t size, const char *name, looplm_error *err) {
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\') {
                i++;
            } else if (c == '"') {
                in_string = false;
            }
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > JSON_DEPTH_MAX) {
                return error_set(err, LOOPLM_LIMIT, "%s: it nests deeper than %d levels, at byte %zu", name,
                                 JSON_DEPTH_MAX, i);
            }
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return LOOPLM_OK;
}

int json_parse(const char *text, size_t size, const char *name, json_t **value, looplm_error *err) {
    *value = NULL;
    int status = check_depth(text, size, name, err);
    if (status) return status;
    if (size == 0) return error_set(err, LOOPLM_FORMAT, "%s: not valid JSON: it is empty", name);
    json_error_t at;
    *value = json_loadb(text, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &at);
    if (*value) return LOOPLM_OK;
    return error_set(err, LOOPLM_FORMAT, "%s: not valid JSON at line %d, column %d: %s", name, at.line, at.column,
                     at.text);
}

int json_read(const char *path, size_t size_max, json_t **value, looplm_error *err) {
    *value = NULL;
    char *text;
    size_t size;
    int status = file_read(path, size_max, &text, &size, err);
    if (status) return status;
    status = json_parse(text, size, path, value, err);
    free(text);
    return status;
}

static int write_piece(const char *buffer, size_t size, void *writer) {
    file_writer_write(writer, buffer, size);
    return 0;
}

int json_write(const char *path, const json_t *value, looplm_error *err) {
    struct file_writer writer;
    int status = file_writer_open(&writer, path, err);
    if (status) return status;
    if (json_dump_callback(value, write_piece, &writer, JSON_INDENT(2) | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17)) !=
        0) {
        file_writer_abort(&writer);
        return error_set(err, LOOPLM_MEMORY, "%s: the JSON could not be written", path);
    }
    file_writer_write(&writer, "\n", 1);
    return file_writer_commit(&writer, err);
}

const char *json_type_name(const json_t *value) {
    if (!value) return "nothing";
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "true or false";
    case JSON_NULL:
        return "null";
    }
    return "something else";
}

static const char *dot(struct json_at at) {
    return at.prefix && *at.prefix ? "." : "";
}
static const char *prefix(struct json_at at) {
    return at.prefix ? at.prefix : "";
}

/* Numbers and short strings are worth showing; the rest is named by its type. */
static int wrong(struct json_at at, const char *key, const json_t *found, const char *expected, looplm_error *err) {
    char shown[96];
    if (json_is_integer(found)) {
        snprintf(shown, sizeof shown, "%lld", (long long)json_integer_value(found));
    } else if (json_is_real(found)) {
        snprintf(shown, sizeof shown, "%.17g", json_real_value(found));
    } else if (json_is_boolean(found)) {
        snprintf(shown, sizeof shown, "%s", json_is_true(found) ? "true" : "false");
    } else if (json_is_string(found)) {
        snprintf(shown, sizeof shown, "the string \"%.40s\"", json_string_value(found));
    } else {
        snprintf(shown, sizeof shown, "%s", json_type_name(found));
    }
    return error_set(err, LOOPLM_FORMAT, "%s: key '%s%s%s': found %s, expected %s", at.file, prefix(at), dot(at), key,
                     shown, expected);
}

int json_need_int(struct json_at at, const char *key, int64_t min, int64_t max, int64_t *out, looplm_error *err) {
    const json_t *value = json_object_get(at.object, key);
    int64_t found = json_integer_value(value);
    if (json_is_integer(value) && found >= min && found <= max) {
        *out = found;
        return LOOPLM_OK;
    }
    char expected[80];
    snprintf(expected, sizeof expected, "an integer from %lld to %lld", (long long)min, (long long)max);
    return wrong(at, key, value, expected, err);
}

int json_need_double(struct json_at at, const char *key, double min, double max, double *out, looplm_error *err) {
    const json_t *value = json_object_get(at.object, key);
    double found = json_number_value(value);
    if (json_is_number(value) && found >= min && found <= max) {
        *out = found;
        return LOOPLM_OK;
    }
    char expected[80];
    snprintf(expected, sizeof expected, "a number from %g to %g", min, max);
    return wrong(at, key, value, expected, err);
}

int json_need_bool(struct json_at at, const char *key, bool *out, looplm_error *err) {
    const json_t *value = json_object_get(at.object, key);
    if (!json_is_boolean(value)) return wrong(at, key, value, "true or false", err);
    *out = json_is_true(value);
    return LOOPLM_OK;
}

int json_need_string(struct json_at at, const char *key, const char **out, looplm_error *err) {
    const json_t *value = json_object_get(at.object, key);
    if (!json_is_string(value)) return wrong(at, key, value, "a string", err);
    *out = json_string_value(value);
    return LOOPLM_OK;
}

int json_need_array(struct json_at at, const char *key, const json_t **out, looplm_error *err) {
    const json_t *value = json_object_get(at.object, key);
    if (!json_is_array(value)) return wrong(at, key, value, "an array", err);
    *out = value;
    return LOOPLM_OK;
}

int json_need_object(struct json_at at, const char *key, const json_t **out, looplm_error *err) {
    const json_t *value = json_object_get(at.object, key);
    if (!json_is_object(value)) return wrong(at, key, value, "an object", err);
    *out = value;
    return LOOPLM_OK;
}

static bool absent(struct json_at at, const char *key) {
    const json_t *value = json_object_get(at.object, key);
    return !value || json_is_null(value);
}

int json_want_int(struct json_at at, const char *key, int64_t min, int64_t max, int64_t *out, looplm_error *err) {
    return absent(at, key) ? LOOPLM_OK : json_need_int(at, key, min, max, out, err);
}

int json_want_double(struct json_at at, const char *key, double min, double max, double *out, looplm_error *err) {
    return absent(at, key) ? LOOPLM_OK : json_need_double(at, key, min, max, out, err);
}

int json_want_bool(struct json_at at, const char *key, bool *out, looplm_error *err) {
    return absent(at, key) ? LOOPLM_OK : json_need_bool(at, key, out, err);
}

int json_want_string(struct json_at at, const char *key, const char **out, looplm_error *err) {
    return absent(at, key) ? LOOPLM_OK : json_need_string(at, key, out, err);
}

int json_want_array(struct json_at at, const char *key, const json_t **out, looplm_error *err) {
    return absent(at, key) ? LOOPLM_OK : json_need_array(at, key, out, err);
}

int json_want_object(struct json_at at, const char *key, const json_t **out, looplm_error *err) {
    return absent(at, key) ? LOOPLM_OK : json_need_object(at, key, out, err);
}
