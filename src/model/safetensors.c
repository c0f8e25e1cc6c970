/* Owns reading safetensors: the header's trust, the sorted list of entries, shards and their index. Writing is in
 * safetensors_write.c; what tensors a model needs, in model.c and params.c.
 *
 * A file is 8 bytes of header length (little-endian), a JSON header {name: {dtype, shape, data_offsets: [begin, end]}},
 * then the data, which offsets count from. Invariants after opening: every entry lies inside its file, has exactly the
 * bytes of its shape and type, overlaps no other and leaves no hole; names are unique over all shards. */
#include "model/safetensors.h"

#include "base/json.h"

#include <stdlib.h>
#include <string.h>

#define LENGTH_BYTES 8
/* Of a name from a file, what a message shows. */
#define SHOWN_MAX 100

/* ---- what a message shows -------------------------------------------------------------------------------------- */

/* A name from a file may hold anything: control characters become '?', and a long one is cut. */
static const char *shown(const char *name, char out[SHOWN_MAX + 4]) {
    size_t n = 0;
    for (; name[n] && n < SHOWN_MAX; n++) out[n] = (unsigned char)name[n] < 32 || name[n] == 127 ? '?' : name[n];
    snprintf(out + n, 4, "%s", name[n] ? "..." : "");
    return out;
}

const char *safetensors_shape_text(int32_t dims, const int64_t *shape, char out[SAFETENSORS_SHAPE_TEXT]) {
    size_t used = 1;
    out[0] = '[';
    for (int32_t i = 0; i < dims; i++) {
        used +=
            (size_t)snprintf(out + used, SAFETENSORS_SHAPE_TEXT - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
    }
    snprintf(out + used, SAFETENSORS_SHAPE_TEXT - used, "]");
    return out;
}

/* A mistake of one tensor: "FILE: tensor 'NAME': ...". */
__attribute__((format(printf, 4, 5))) static int tensor_error(looplm_error *err, const char *file, const char *name,
                                                              const char *format, ...) {
    char text[640], name_text[SHOWN_MAX + 4];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return error_set(err, LOOPLM_FORMAT, "%s: tensor '%s': %s", file, shown(name, name_text), text);
}

static int no_memory(const char *file, looplm_error *err) {
    return error_set(err, LOOPLM_MEMORY, "%s: no memory for its list of tensors", file);
}

/* ---- one entry of the header ----------------------------------------------------------------------------------- */

/* Bytes of an element; 0 for a type that the format does not know. */
static size_t type_size(const char *dtype) {
    static const struct {
        const char *name;
        size_t size;
    } types[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
                 {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
                 {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(dtype, types[i].name) == 0) return types[i].size;
    }
    return 0;
}

/* *size = bytes of the shape; false where it does not fit. */
static bool shape_size(int32_t dims, const int64_t *shape, size_t element, size_t *size) {
    size_t n = element;
    for (int32_t i = 0; i < dims; i++) {
        if (__builtin_mul_overflow(n, (size_t)shape[i], &n)) return false;
    }
    *size = n;
    return n <= SIZE_MAX / 2;
}

static int read_type(struct safetensors_entry *entry, const json_t *object, const char *file, looplm_error *err) {
    const char *dtype = json_string_value(json_object_get(object, "dtype"));
    char text[SHOWN_MAX + 4];
    if (!dtype) return tensor_error(err, file, entry->name, "its 'dtype' is missing or no string; the file is damaged");
    if (!type_size(dtype)) {
        return tensor_error(err, file, entry->name,
                            "found dtype '%s', expected one of the format (F32, BF16, F16, F64, I8 ... U64, BOOL)",
                            shown(dtype, text));
    }
    snprintf(entry->dtype, sizeof entry->dtype, "%s", dtype);
    return LOOPLM_OK;
}

static int read_shape(struct safetensors_entry *entry, const json_t *object, const char *file, looplm_error *err) {
    const json_t *shape = json_object_get(object, "shape");
    if (!json_is_array(shape))
        return tensor_error(err, file, entry->name, "its 'shape' is missing or no array; the file is damaged");
    if (json_array_size(shape) > SAFETENSORS_DIMS_MAX) {
        return tensor_error(err, file, entry->name, "found %zu dimensions, expected at most %d", json_array_size(shape),
                            SAFETENSORS_DIMS_MAX);
    }
    for (size_t i = 0; i < json_array_size(shape); i++) {
        const json_t *n = json_array_get(shape, i);
        if (!json_is_integer(n) || json_integer_value(n) < 0) {
            return tensor_error(err, file, entry->name,
                                "dimension %zu of its shape is not a number of elements; the file is damaged", i);
        }
        entry->shape[entry->dims++] = json_integer_value(n);
    }
    return LOOPLM_OK;
}

/* The entry's offsets, within `data` bytes of data; they become offsets in the file by adding `base`. */
static int read_offsets(struct safetensors_entry *entry, const json_t *object, size_t base, size_t data,
                        const char *file, looplm_error *err) {
    const json_t *offsets = json_object_get(object, "data_offsets");
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last)) {
        return tensor_error(err, file, entry->name, "its 'data_offsets' is not a pair of numbers; the file is damaged");
    }
    int64_t begin = json_integer_value(first), end = json_integer_value(last);
    if (begin < 0 || begin > end) {
        return tensor_error(err, file, entry->name,
                            "found data_offsets [%lld, %lld], expected a begin of at least 0 and an end not before it",
                            (long long)begin, (long long)end);
    }
    if ((uint64_t)end > data) {
        return tensor_error(
            err, file, entry->name,
            "its bytes %lld to %lld reach beyond the %zu that the file holds; it is truncated: fetch or write it again",
            (long long)begin, (long long)end, data);
    }
    size_t expected;
    char text[SAFETENSORS_SHAPE_TEXT];
    safetensors_shape_text(entry->dims, entry->shape, text);
    if (!shape_size(entry->dims, entry->shape, type_size(entry->dtype), &expected)) {
        return tensor_error(err, file, entry->name,
                            "its shape %s has more bytes than can be counted; the file is damaged", text);
    }
    entry->offset = base + (size_t)begin;
    entry->size = (size_t)(end - begin);
    if (entry->size == expected) return LOOPLM_OK;
    return tensor_error(err, file, entry->name, "found %zu bytes, expected %zu for shape %s of %s; the file is damaged",
                        entry->size, expected, text, entry->dtype);
}

/* ---- the header ------------------------------------------------------------------------------------------------ */

/* The header's length, or 0 with an error. */
static size_t header_length(const struct file_map *map, looplm_error *err) {
    if (map->size < LENGTH_BYTES) {
        error_set(err, LOOPLM_FORMAT, "%s: it has %zu bytes, too few for a safetensors file; fetch or write it again",
                  map->path, map->size);
        return 0;
    }
    uint64_t length = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--) length = length << 8 | map->data[i];
    if (length > SAFETENSORS_HEADER_MAX) {
        error_set(err, LOOPLM_LIMIT,
                  "%s: it claims a header of %llu bytes, and the limit is %zu; it is damaged or not a safetensors file",
                  map->path, (unsigned long long)length, SAFETENSORS_HEADER_MAX);
        return 0;
    }
    if (length > map->size - LENGTH_BYTES || length < 2) {
        error_set(err, LOOPLM_FORMAT,
                  "%s: it claims a header of %llu bytes, and %zu follow; it is truncated or not a safetensors file: "
                  "fetch or write it again",
                  map->path, (unsigned long long)length, map->size - LENGTH_BYTES);
        return 0;
    }
    return (size_t)length;
}

/* Takes the header's objects to entries [st->n_entries ...), for which there is room. */
static int take_entries(struct safetensors *st, int32_t file, json_t *header, size_t base, looplm_error *err) {
    const struct file_map *map = &st->files[file];
    const char *name;
    json_t *value;
    json_object_foreach(header, name, value) {
        if (strcmp(name, "__metadata__") == 0) continue;
        if (strlen(name) > SAFETENSORS_NAME_MAX) {
            return tensor_error(err, map->path, name, "its name is longer than %d bytes", SAFETENSORS_NAME_MAX);
        }
        if (!json_is_object(value))
            return tensor_error(err, map->path, name, "found %s, expected an object", json_type_name(value));
        struct safetensors_entry *entry = &st->entries[st->n_entries];
        *entry = (struct safetensors_entry){.name = strdup(name), .file = file};
        if (!entry->name) return no_memory(map->path, err);
        st->n_entries++; /* from here its name is freed with the rest */
        int status = read_type(entry, value, map->path, err);
        if (!status) status = read_shape(entry, value, map->path, err);
        if (!status) status = read_offsets(entry, value, base, map->size - base, map->path, err);
        if (status) return status;
    }
    return LOOPLM_OK;
}

static int by_offset(const void *a, const void *b) {
    const struct safetensors_entry *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return x->size < y->size ? -1 : x->size > y->size; /* empty ones first */
}

/* The entries of one file must fill its data without overlap or hole, as the format demands. Sorts them by offset. */
static int check_coverage(struct safetensors_entry *entries, int32_t n, const struct file_map *map, size_t base,
                          looplm_error *err) {
    if (n) qsort(entries, (size_t)n, sizeof *entries, by_offset);
    size_t end = base;
    char before[SHOWN_MAX + 4] = "the header";
    for (int32_t i = 0; i < n; i++) {
        if (entries[i].offset < end) {
            return tensor_error(err, map->path, entries[i].name,
                                "its bytes overlap those of '%s' by %zu; the file is damaged", before,
                                end - entries[i].offset);
        }
        if (entries[i].offset > end) {
            return tensor_error(err, map->path, entries[i].name,
                                "%zu bytes between '%s' and it belong to no tensor; the file is damaged",
                                entries[i].offset - end, before);
        }
        end = entries[i].offset + entries[i].size;
        shown(entries[i].name, before);
    }
    if (end == map->size) return LOOPLM_OK;
    return error_set(err, LOOPLM_FORMAT,
                     "%s: it has %zu bytes after its last tensor, expected none; it is damaged or was appended to",
                     map->path, map->size - end);
}

static int by_name(const void *a, const void *b) {
    const struct safetensors_entry *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static int read_header(struct safetensors *st, int32_t file, looplm_error *err) {
    const struct file_map *map = &st->files[file];
    size_t length = header_length(map, err);
    if (!length) return (int)err->status;
    json_t *header;
    looplm_error cause;
    if (json_parse((const char *)map->data + LENGTH_BYTES, length, map->path, &header, &cause)) {
        return error_set(err, cause.status,
                         "%.900s (in the safetensors header; the file is damaged or of another format)", cause.message);
    }
    int status = LOOPLM_OK;
    if (!json_is_object(header)) {
        status = error_set(err, LOOPLM_FORMAT, "%s: its header is %s, expected an object; it is not a safetensors file",
                           map->path, json_type_name(header));
    }
    size_t room = (size_t)st->n_entries + json_object_size(header), base = LENGTH_BYTES + length;
    int32_t first = st->n_entries;
    struct safetensors_entry *entries = status || room == 0 ? NULL : realloc(st->entries, room * sizeof *entries);
    if (entries) st->entries = entries;
    if (!status && room && !entries) status = no_memory(map->path, err);
    if (!status) status = take_entries(st, file, header, base, err);
    /* Without entries so far there is no array to point into. */
    entries = st->entries ? st->entries + first : NULL;
    if (!status) status = check_coverage(entries, st->n_entries - first, map, base, err);
    json_decref(header);
    return status;
}

/* The last step of opening: sorts by name and finds names that two shards share. */
static int finish(struct safetensors *st, looplm_error *err) {
    if (st->n_entries) qsort(st->entries, (size_t)st->n_entries, sizeof *st->entries, by_name);
    for (int32_t i = 1; i < st->n_entries; i++) {
        const struct safetensors_entry *a = &st->entries[i - 1], *b = &st->entries[i];
        if (strcmp(a->name, b->name) == 0) {
            return tensor_error(err, safetensors_path(st, b), b->name, "it is also in %s; expected in one shard only",
                                safetensors_path(st, a));
        }
    }
    return LOOPLM_OK;
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

void safetensors_close(struct safetensors *st) {
    for (int32_t i = 0; i < st->n_entries; i++) free(st->entries[i].name);
    for (int32_t i = 0; i < st->n_files; i++) {
        if (st->borrowed) {
            free(st->files[i].path);
        } else {
            file_map_close(&st->files[i]);
        }
    }
    free(st->entries);
    free(st->files);
    *st = (struct safetensors){0};
}

static int open_file(struct safetensors *st, const char *path, looplm_error *err) {
    int status = file_map_open(&st->files[st->n_files], path, err);
    if (status) return status;
    file_map_keep(&st->files[st->n_files]);
    return read_header(st, st->n_files++, err);
}

int safetensors_open_memory(struct safetensors *st, const void *data, size_t size, const char *name,
                            looplm_error *err) {
    looplm_error local;
    if (!err) err = &local;
    *st = (struct safetensors){.borrowed = true, .files = calloc(1, sizeof *st->files)};
    char *path = strdup(name);
    if (!st->files || !path) {
        free(path);
        safetensors_close(st);
        return no_memory(name, err);
    }
    st->files[0] = (struct file_map){data, size, path};
    st->n_files = 1;
    int status = read_header(st, 0, err);
    if (!status) status = finish(st, err);
    if (status) safetensors_close(st);
    return status;
}

/* A shard's name must stay in the model's directory. */
static bool plain_file_name(const char *name) {
    return *name && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

/* The shards that the index names, each once, into names[]; borrowed from the index. */
static int list_shards(const json_t *weight_map, const char *index, const char **names, int32_t *count,
                       looplm_error *err) {
    const char *tensor;
    json_t *value;
    char text[SHOWN_MAX + 4];
    json_object_foreach((json_t *)(uintptr_t)weight_map, tensor, value) {
        const char *name = json_string_value(value);
        if (!name || !plain_file_name(name)) {
            return tensor_error(err, index, tensor,
                                "found '%s' as its shard, expected the name of a file in the same directory",
                                name ? shown(name, text) : json_type_name(value));
        }
        int32_t i = 0;
        while (i < *count && strcmp(names[i], name) != 0) i++;
        if (i < *count) continue;
        if (*count == SAFETENSORS_FILES_MAX)
            return error_set(err, LOOPLM_LIMIT, "%s: it names more than %d shards", index, SAFETENSORS_FILES_MAX);
        names[(*count)++] = name;
    }
    return LOOPLM_OK;
}

static int check_shards_exist(const char *directory, const char *index, const char *const *names, int32_t count,
                              looplm_error *err) {
    char missing[400] = "", text[SHOWN_MAX + 4];
    int32_t n_missing = 0;
    for (int32_t i = 0; i < count; i++) {
        char *path = file_join(directory, names[i]);
        bool exists = path && file_exists(path);
        free(path);
        if (exists) continue;
        size_t used = strlen(missing);
        snprintf(missing + used, sizeof missing - used, "%s%s", n_missing ? ", " : "", shown(names[i], text));
        n_missing++;
    }
    if (n_missing == 0) return LOOPLM_OK;
    return error_set(err, LOOPLM_IO, "%s: %d of its %d shards missing in %s: %s; fetch the rest of the model", index,
                     n_missing, count, directory, missing);
}

/* Every tensor of the index must be where it says. */
static int check_index(const struct safetensors *st, const json_t *weight_map, const char *index, looplm_error *err) {
    const char *tensor;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)weight_map, tensor, value) {
        const struct safetensors_entry *entry = safetensors_find(st, tensor);
        const char *name = json_string_value(value);
        if (!entry)
            return tensor_error(err, index, tensor,
                                "it is not in its shard %s; the shards and the index are not of one model", name);
        const char *path = safetensors_path(st, entry), *slash = strrchr(path, '/');
        if (strcmp(slash ? slash + 1 : path, name) != 0) {
            return tensor_error(err, index, tensor,
                                "found in %s, expected in %s; the shards and the index are not of one model", path,
                                name);
        }
    }
    return LOOPLM_OK;
}

static int open_shards(struct safetensors *st, const char *directory, const char *index, const json_t *weight_map,
                       looplm_error *err) {
    const char **names = calloc(SAFETENSORS_FILES_MAX, sizeof *names);
    st->files = calloc(SAFETENSORS_FILES_MAX, sizeof *st->files);
    int32_t count = 0;
    int status = names && st->files ? LOOPLM_OK : no_memory(index, err);
    if (!status) status = list_shards(weight_map, index, names, &count, err);
    if (!status) status = check_shards_exist(directory, index, names, count, err);
    for (int32_t i = 0; !status && i < count; i++) {
        char *path = file_join(directory, names[i]);
        status = path ? open_file(st, path, err) : no_memory(index, err);
        free(path);
    }
    if (!status) status = finish(st, err);
    if (!status) status = check_index(st, weight_map, index, err);
    free(names);
    return status;
}

static int open_index(struct safetensors *st, const char *directory, const char *index, looplm_error *err) {
    json_t *root;
    const json_t *weight_map;
    int status = json_read(index, SAFETENSORS_INDEX_MAX, &root, err);
    if (!status && !json_is_object(root)) {
        status = error_set(err, LOOPLM_FORMAT, "%s: found %s, expected an object with 'weight_map'", index,
                           json_type_name(root));
    }
    if (!status) status = json_need_object((struct json_at){root, index, ""}, "weight_map", &weight_map, err);
    if (!status) status = open_shards(st, directory, index, weight_map, err);
    json_decref(root);
    return status;
}

static int open_one(struct safetensors *st, const char *path, looplm_error *err) {
    st->files = calloc(1, sizeof *st->files);
    int status = st->files ? open_file(st, path, err) : no_memory(path, err);
    return status ? status : finish(st, err);
}

static int open_directory(struct safetensors *st, const char *directory, looplm_error *err) {
    char *single = file_join(directory, "model.safetensors"),
         *index = file_join(directory, "model.safetensors.index.json");
    char *pickled = file_join(directory, "pytorch_model.bin");
    int status;
    if (!single || !index || !pickled) {
        status = no_memory(directory, err);
    } else if (file_exists(single)) {
        status = open_one(st, single, err);
    } else if (file_exists(index)) {
        status = open_index(st, directory, index, err);
    } else {
        status = error_set(err, LOOPLM_IO, "%s: found neither model.safetensors nor model.safetensors.index.json%s",
                           directory,
                           file_exists(pickled) ? "; pytorch_model.bin is not read: convert the model to safetensors"
                                                : "; the weights are missing");
    }
    free(single);
    free(index);
    free(pickled);
    return status;
}

int safetensors_open(struct safetensors *st, const char *path, looplm_error *err) {
    looplm_error local;
    if (!err) err = &local;
    *st = (struct safetensors){0};
    int status = file_is_directory(path) ? open_directory(st, path, err) : open_one(st, path, err);
    if (status) safetensors_close(st);
    return status;
}

const struct safetensors_entry *safetensors_find(const struct safetensors *st, const char *name) {
    int32_t low = 0, high = st->n_entries;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        int order = strcmp(name, st->entries[middle].name);
        if (order == 0) return &st->entries[middle];
        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return NULL;
}

int safetensors_float_type(const struct safetensors *st, const struct safetensors_entry *entry, enum dtype *dtype,
                           looplm_error *err) {
    static const struct {
        const char *name;
        enum dtype dtype;
    } types[] = {{"F32", DTYPE_F32}, {"BF16", DTYPE_BF16}, {"F16", DTYPE_F16}, {"F64", DTYPE_F64}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(entry->dtype, types[i].name) != 0) continue;
        *dtype = types[i].dtype;
        return LOOPLM_OK;
    }
    return tensor_error(err, safetensors_path(st, entry), entry->name,
                        "found dtype %s, expected F32, BF16, F16 or F64; convert the model to one of them",
                        entry->dtype);
}
