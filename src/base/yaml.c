/* Owns the walk over libyaml's events; knows nothing of what keys mean (options.h does).
 *
 * Invariants: the parser sees at most YAML_SIZE_MAX bytes; `depth` frames are open, each with the key that leads to it;
 * aliases are refused, so a small file cannot grow into a large list. */
#include "base/yaml.h"

#include "base/file.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

struct frame {
    bool is_mapping;
    bool has_key;      /* of a mapping: a key was read, its value comes next */
    int items;         /* so far */
    size_t key_length; /* of the path to this frame, without what follows */
};

struct walk {
    struct yaml_keys *yaml;
    looplm_error *err;
    struct frame frames[YAML_DEPTH_MAX];
    int depth;
    char key[YAML_KEY_MAX]; /* the path to what is being read */
    int entries_room;
};

static int line_of(const yaml_event_t *event) {
    return (int)event->start_mark.line + 1;
}

static int refuse(struct walk *w, const yaml_event_t *event, const char *why) {
    return error_set(w->err, LOOPLM_FORMAT, "%s:%d: %s", w->yaml->file, line_of(event), why);
}

/* Puts one part behind the path of the current frame. */
static int append_key(struct walk *w, const yaml_event_t *event, const char *part) {
    size_t at = w->frames[w->depth - 1].key_length;
    size_t room = sizeof w->key - at;
    int n = snprintf(w->key + at, room, "%s%s", at ? "." : "", part);
    if (n < 0 || (size_t)n >= room) {
        w->key[at] = 0;
        return error_set(w->err, LOOPLM_LIMIT, "%s:%d: a key is longer than %d bytes", w->yaml->file, line_of(event),
                         YAML_KEY_MAX - 1);
    }
    return LOOPLM_OK;
}

/* Before a value of any kind: completes the path with the index of a sequence. */
static int begin_value(struct walk *w, const yaml_event_t *event) {
    if (w->depth == 0) return LOOPLM_OK;
    struct frame *top = &w->frames[w->depth - 1];
    if (top->is_mapping) {
        if (!top->has_key) return refuse(w, event, "a key must be plain text");
        top->has_key = false;
        return LOOPLM_OK;
    }
    char index[16];
    snprintf(index, sizeof index, "%d", top->items++);
    return append_key(w, event, index);
}

/* A second mapping under one key would interleave with the first, so it is a duplicate even when no leaf collides. */
static int check_is_new(struct walk *w, const yaml_event_t *event) {
    size_t n = strlen(w->key);
    for (int i = 0; i < w->yaml->count; i++) {
        const struct yaml_entry *e = &w->yaml->entries[i];
        if (strncmp(e->key, w->key, n) == 0 && (e->key[n] == '.' || e->key[n] == 0)) {
            return error_set(w->err, LOOPLM_FORMAT, "%s:%d: key '%s' was given before, on line %d; remove one",
                             w->yaml->file, line_of(event), w->key, e->line);
        }
    }
    return LOOPLM_OK;
}

static bool is_null(const yaml_event_t *event) {
    const char *text = (const char *)event->data.scalar.value;
    if (event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE) return false;
    return !*text || strcmp(text, "~") == 0 || strcmp(text, "null") == 0;
}

static int add_entry(struct walk *w, const yaml_event_t *event) {
    struct yaml_keys *yaml = w->yaml;
    int status = check_is_new(w, event);
    if (status) return status;
    if (yaml->count == YAML_ENTRIES_MAX) return refuse(w, event, "too many values for one file");
    if (yaml->count == w->entries_room) {
        int room = w->entries_room ? 2 * w->entries_room : 32;
        struct yaml_entry *larger = realloc(yaml->entries, (size_t)room * sizeof *larger);
        if (!larger) return error_set(w->err, LOOPLM_MEMORY, "%s: no memory to read it", yaml->file);
        yaml->entries = larger;
        w->entries_room = room;
    }
    struct yaml_entry entry = {.key = strdup(w->key), .line = line_of(event)};
    bool null = is_null(event);
    if (!null) entry.value = strdup((const char *)event->data.scalar.value);
    yaml->entries[yaml->count++] = entry;
    if (!entry.key || (!null && !entry.value)) {
        return error_set(w->err, LOOPLM_MEMORY, "%s: no memory to read it", yaml->file);
    }
    return LOOPLM_OK;
}

static int on_scalar(struct walk *w, const yaml_event_t *event) {
    if (event->data.scalar.anchor) return refuse(w, event, "anchors are not supported; write the value out");
    if (strlen((const char *)event->data.scalar.value) != event->data.scalar.length) {
        return refuse(w, event, "a value holds a zero byte");
    }
    if (w->depth == 0) return refuse(w, event, "expected `key: value` lines at the top");
    struct frame *top = &w->frames[w->depth - 1];
    if (top->is_mapping && !top->has_key) {
        if (!*event->data.scalar.value) return refuse(w, event, "a key is empty");
        top->has_key = true;
        top->items++;
        return append_key(w, event, (const char *)event->data.scalar.value);
    }
    int status = begin_value(w, event);
    return status ? status : add_entry(w, event);
}

static int on_open(struct walk *w, const yaml_event_t *event, bool is_mapping, bool has_anchor) {
    if (has_anchor) return refuse(w, event, "anchors are not supported; write the value out");
    if (w->depth == 0 && !is_mapping) return refuse(w, event, "expected `key: value` lines at the top");
    int status = begin_value(w, event);
    if (!status && w->depth > 0) status = check_is_new(w, event);
    if (status) return status;
    if (w->depth == YAML_DEPTH_MAX) {
        return error_set(w->err, LOOPLM_LIMIT, "%s:%d: it nests deeper than %d levels", w->yaml->file, line_of(event),
                         YAML_DEPTH_MAX);
    }
    w->frames[w->depth++] = (struct frame){.is_mapping = is_mapping, .key_length = strlen(w->key)};
    return LOOPLM_OK;
}

static int on_close(struct walk *w, const yaml_event_t *event) {
    struct frame *top = &w->frames[--w->depth];
    if (top->items == 0 && w->depth > 0) {
        return error_set(w->err, LOOPLM_FORMAT, "%s:%d: '%s' is empty; give it a value or remove the line",
                         w->yaml->file, line_of(event), w->key);
    }
    w->key[w->depth > 0 ? w->frames[w->depth - 1].key_length : 0] = 0;
    return LOOPLM_OK;
}

static int on_event(struct walk *w, const yaml_event_t *event, int *documents) {
    switch (event->type) {
    case YAML_DOCUMENT_START_EVENT:
        if (++*documents > 1) return refuse(w, event, "a second document starts here; one file is one document");
        return LOOPLM_OK;
    case YAML_ALIAS_EVENT:
        return refuse(w, event, "aliases are not supported; write the value out");
    case YAML_SCALAR_EVENT:
        return on_scalar(w, event);
    case YAML_MAPPING_START_EVENT:
        return on_open(w, event, true, event->data.mapping_start.anchor != NULL);
    case YAML_SEQUENCE_START_EVENT:
        return on_open(w, event, false, event->data.sequence_start.anchor != NULL);
    case YAML_MAPPING_END_EVENT:
    case YAML_SEQUENCE_END_EVENT:
        return on_close(w, event);
    default:
        return LOOPLM_OK;
    }
}

static int walk_events(struct walk *w, yaml_parser_t *parser) {
    int status = LOOPLM_OK, documents = 0;
    for (bool end = false; !end && !status;) {
        yaml_event_t event;
        if (!yaml_parser_parse(parser, &event)) {
            return error_set(w->err, LOOPLM_FORMAT, "%s:%d: not valid YAML: %s", w->yaml->file,
                             (int)parser->problem_mark.line + 1, parser->problem ? parser->problem : "no memory");
        }
        end = event.type == YAML_STREAM_END_EVENT;
        status = on_event(w, &event, &documents);
        yaml_event_delete(&event);
    }
    return status;
}

int yaml_keys_parse(struct yaml_keys *yaml, const char *text, size_t size, const char *name, looplm_error *err) {
    *yaml = (struct yaml_keys){.file = strdup(name)};
    if (!yaml->file) return error_set(err, LOOPLM_MEMORY, "%s: no memory to read it", name);
    if (size > YAML_SIZE_MAX) {
        yaml_keys_free(yaml);
        return error_set(err, LOOPLM_LIMIT, "%s: it has %zu bytes, and at most %d are allowed", name, size,
                         YAML_SIZE_MAX);
    }
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser)) {
        yaml_keys_free(yaml);
        return error_set(err, LOOPLM_MEMORY, "%s: no memory to read it", name);
    }
    yaml_parser_set_encoding(&parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, size);
    struct walk walk = {.yaml = yaml, .err = err};
    int status = walk_events(&walk, &parser);
    yaml_parser_delete(&parser);
    if (status) yaml_keys_free(yaml);
    return status;
}

int yaml_keys_read(struct yaml_keys *yaml, const char *path, looplm_error *err) {
    *yaml = (struct yaml_keys){0};
    char *text;
    size_t size;
    int status = file_read(path, YAML_SIZE_MAX, &text, &size, err);
    if (status) return status;
    status = yaml_keys_parse(yaml, text, size, path, err);
    free(text);
    return status;
}

void yaml_keys_free(struct yaml_keys *yaml) {
    for (int i = 0; i < yaml->count; i++) {
        free(yaml->entries[i].key);
        free(yaml->entries[i].value);
    }
    free(yaml->entries);
    free(yaml->file);
    *yaml = (struct yaml_keys){0};
}

const struct yaml_entry *yaml_keys_find(const struct yaml_keys *yaml, const char *key) {
    for (int i = 0; i < yaml->count; i++) {
        if (strcmp(yaml->entries[i].key, key) == 0) return &yaml->entries[i];
    }
    return NULL;
}
