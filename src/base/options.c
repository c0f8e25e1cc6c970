/* Owns how text becomes option values: one setter serves command lines, recipes and overrides, so all report alike. The
 * help text and the run record are in options_show.c.
 *
 * Invariants: after options_init every TEXT and list item in the struct is NULL or owned by it; a value that fails its
 * check leaves the old one in place. */
#include "base/options.h"

#include "base/nearest.h"
#include "base/yaml.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define VALUE_SHOWN_MAX 60

static void *field(void *options, size_t offset) {
    return (char *)options + offset;
}

static struct option_list *list_of(const struct option *o, void *options) {
    return field(options, o->offset);
}

static bool is_argument(const struct option *o) {
    return o->kind == OPTION_ARGUMENT || o->kind == OPTION_MAYBE || o->kind == OPTION_ARGUMENTS;
}

static bool is_list(const struct option *o) {
    return o->kind == OPTION_LIST || o->kind == OPTION_ARGUMENTS;
}

static bool is_text(const struct option *o) {
    return o->kind == OPTION_TEXT || o->kind == OPTION_ARGUMENT || o->kind == OPTION_MAYBE;
}

/* Where a value came from: a place in a recipe, or (NULL) the command line, which shows the option with its dashes. */
static int wrong(const struct option *o, const char *where, const char *found, const char *expected,
                 looplm_error *err) {
    if (where) {
        return error_set(err, LOOPLM_USAGE, "%s: key '%s': found '%.*s', expected %s", where, o->name, VALUE_SHOWN_MAX,
                         found, expected);
    }
    return error_set(err, LOOPLM_USAGE, "option --%s: found '%.*s', expected %s", o->name, VALUE_SHOWN_MAX, found,
                     expected);
}

static int no_memory(looplm_error *err) {
    return error_set(err, LOOPLM_MEMORY, "options: no memory to keep them");
}

static int set_int(const struct option *o, void *options, const char *value, const char *where, looplm_error *err) {
    char *end;
    errno = 0;
    long long number = strtoll(value, &end, 10);
    if (end == value || *end || errno || number < o->int_min || number > o->int_max) {
        char expected[96];
        snprintf(expected, sizeof expected, "an integer from %lld to %lld", (long long)o->int_min,
                 (long long)o->int_max);
        return wrong(o, where, value, expected, err);
    }
    *(int64_t *)field(options, o->offset) = number;
    return LOOPLM_OK;
}

static int set_real(const struct option *o, void *options, const char *value, const char *where, looplm_error *err) {
    char *end;
    double number = strtod(value, &end);
    if (end == value || *end || !(number >= o->real_min && number <= o->real_max)) {
        char expected[96];
        snprintf(expected, sizeof expected, "a number from %g to %g", o->real_min, o->real_max);
        return wrong(o, where, value, expected, err);
    }
    *(double *)field(options, o->offset) = number;
    return LOOPLM_OK;
}

static int set_bool(const struct option *o, void *options, const char *value, const char *where, looplm_error *err) {
    bool on = strcmp(value, "true") == 0;
    if (!on && strcmp(value, "false") != 0) return wrong(o, where, value, "true or false", err);
    *(bool *)field(options, o->offset) = on;
    return LOOPLM_OK;
}

/* The index of value among "a|b|c", or -1; names[] (room for OPTIONS_MAX) gets the parts of a copy in text. */
static int find_choice(const char *choices, const char *value, char *text, size_t size, const char **names,
                       int *count) {
    snprintf(text, size, "%s", choices);
    int found = -1;
    *count = 0;
    char *rest = text;
    for (char *part; (part = strsep(&rest, "|")) && *count < OPTIONS_MAX;) {
        if (strcmp(part, value) == 0) found = *count;
        names[(*count)++] = part;
    }
    return found;
}

static int set_choice(const struct option *o, void *options, const char *value, const char *where, looplm_error *err) {
    char text[512], expected[640];
    const char *names[OPTIONS_MAX];
    int count;
    int index = find_choice(o->choices, value, text, sizeof text, names, &count);
    if (index < 0) {
        const char *near = nearest_name(value, names, count);
        snprintf(expected, sizeof expected, "one of %s%s%s%s", o->choices, near ? "; did you mean '" : "",
                 near ? near : "", near ? "'?" : "");
        return wrong(o, where, value, expected, err);
    }
    *(int *)field(options, o->offset) = index;
    return LOOPLM_OK;
}

static int set_text(const struct option *o, void *options, const char *value, looplm_error *err) {
    char *copy = strdup(value);
    if (!copy) return no_memory(err);
    char **text = field(options, o->offset);
    free(*text);
    *text = copy;
    return LOOPLM_OK;
}

static void clear_list(struct option_list *list) {
    for (int i = 0; i < list->count; i++) free(list->items[i]);
    free(list->items);
    *list = (struct option_list){0};
}

/* Grows with NULL entries. */
static int resize_list(struct option_list *list, int count, looplm_error *err) {
    if (count <= list->count) return LOOPLM_OK;
    char **larger = realloc(list->items, (size_t)count * sizeof *larger);
    if (!larger) return no_memory(err);
    for (int i = list->count; i < count; i++) larger[i] = NULL;
    list->items = larger;
    list->count = count;
    return LOOPLM_OK;
}

/* index -1 appends. */
static int set_item(const struct option *o, void *options, int index, const char *value, const char *where,
                    looplm_error *err) {
    struct option_list *list = list_of(o, options);
    if (index < 0) index = list->count;
    bool holes = strchr(o->name, '*') != NULL;
    if (index >= OPTION_LIST_MAX || (index > list->count && !holes)) {
        char expected[96];
        snprintf(expected, sizeof expected, "at most %d items, without holes", OPTION_LIST_MAX);
        return wrong(o, where, value, expected, err);
    }
    char *copy = strdup(value);
    if (!copy) return no_memory(err);
    int status = resize_list(list, index + 1, err);
    if (status) {
        free(copy);
        return status;
    }
    free(list->items[index]);
    list->items[index] = copy;
    return LOOPLM_OK;
}

static int set_value(const struct option *o, void *options, int index, const char *value, const char *where,
                     looplm_error *err) {
    int status = LOOPLM_OK;
    switch (o->kind) {
    case OPTION_INT:
        status = set_int(o, options, value, where, err);
        break;
    case OPTION_REAL:
        status = set_real(o, options, value, where, err);
        break;
    case OPTION_CHOICE:
        status = set_choice(o, options, value, where, err);
        break;
    case OPTION_FLAG:
    case OPTION_SWITCH:
        status = set_bool(o, options, value, where, err);
        break;
    case OPTION_TEXT:
    case OPTION_ARGUMENT:
    case OPTION_MAYBE:
        status = set_text(o, options, value, err);
        break;
    case OPTION_LIST:
    case OPTION_ARGUMENTS:
        status = set_item(o, options, index, value, where, err);
        break;
    }
    if (!status) *(bool *)field(options, o->given_offset) = true;
    return status;
}

int options_init(const struct options_table *table, void *options, looplm_error *err) {
    CHECK_LE(table->count, OPTIONS_MAX);
    for (int i = 0; i < table->count; i++) {
        const struct option *o = &table->options[i];
        *(bool *)field(options, o->given_offset) = false;
        if (is_text(o)) *(char **)field(options, o->offset) = NULL;
        if (is_list(o)) *list_of(o, options) = (struct option_list){0};
    }
    for (int i = 0; i < table->count; i++) {
        const struct option *o = &table->options[i];
        bool text = o->text_default && strcmp(o->text_default, OPTION_NEEDED) != 0;
        int status = LOOPLM_OK;
        switch (o->kind) {
        case OPTION_INT:
            *(int64_t *)field(options, o->offset) = o->int_default;
            break;
        case OPTION_REAL:
            *(double *)field(options, o->offset) = o->real_default;
            break;
        case OPTION_FLAG:
        case OPTION_SWITCH:
            *(bool *)field(options, o->offset) = o->int_default != 0;
            break;
        case OPTION_CHOICE:
            status = set_choice(o, options, o->text_default, "default", err);
            break;
        default:
            if (is_text(o) && text) status = set_text(o, options, o->text_default, err);
        }
        if (status) {
            options_free(table, options);
            return status;
        }
    }
    return LOOPLM_OK;
}

void options_free(const struct options_table *table, void *options) {
    for (int i = 0; i < table->count; i++) {
        const struct option *o = &table->options[i];
        if (is_list(o)) clear_list(list_of(o, options));
        if (is_text(o)) {
            char **text = field(options, o->offset);
            free(*text);
            *text = NULL;
        }
    }
}

/* Reads digits as a list index; NULL when there are none or too many. */
static const char *read_index(const char *text, int *index) {
    const char *p = text;
    *index = 0;
    while (*p >= '0' && *p <= '9' && p - text < 6) *index = *index * 10 + (*p++ - '0');
    return p > text ? p : NULL;
}

/* Whether key names the option; *index is the item of a list that it names, else -1. */
static bool match_key(const struct option *o, const char *key, int *index) {
    *index = -1;
    if (is_argument(o)) return false;
    const char *star = strchr(o->name, '*');
    size_t head = star ? (size_t)(star - o->name) : strlen(o->name);
    if (strncmp(key, o->name, head) != 0) return false;
    if (!star && !key[head]) return true;
    if (o->kind != OPTION_LIST || (!star && key[head] != '.')) return false;
    const char *rest = read_index(key + head + (star ? 0 : 1), index);
    return rest && strcmp(rest, star ? star + 1 : "") == 0;
}

static const struct option *find_option(const struct options_table *table, const char *key, int *index) {
    for (int i = 0; i < table->count; i++) {
        if (match_key(&table->options[i], key, index)) return &table->options[i];
    }
    return NULL;
}

static int unknown(const struct options_table *table, const char *name, const char *where, looplm_error *err) {
    const char *names[OPTIONS_MAX];
    for (int i = 0; i < table->count; i++) names[i] = is_argument(&table->options[i]) ? NULL : table->options[i].name;
    const char *near = nearest_name(name, names, table->count);
    const char *kind = where ? "key" : "option", *dashes = where ? "" : "--";
    if (!where) where = "command line";
    if (near) {
        return error_set(err, LOOPLM_USAGE, "%s: no %s is named '%s%.*s'; did you mean '%s%s'?", where, kind, dashes,
                         VALUE_SHOWN_MAX, name, dashes, near);
    }
    return error_set(err, LOOPLM_USAGE, "%s: no %s is named '%s%.*s'; %s lists them", where, kind, dashes,
                     VALUE_SHOWN_MAX, name, *dashes ? "--help" : "`looplm train --keys`");
}

int options_set(const struct options_table *table, void *options, const char *name, const char *value,
                const char *where, looplm_error *err) {
    int index;
    const struct option *o = find_option(table, name, &index);
    return o ? set_value(o, options, index, value, where, err) : unknown(table, name, where, err);
}

/* Command lines. */

struct arguments {
    int argc, next;
    char **argv;
};

static int take_value(const struct option *o, const char *attached, struct arguments *a, const char **value,
                      looplm_error *err) {
    if (attached) {
        *value = attached;
    } else if (a->next < a->argc) {
        *value = a->argv[a->next++];
    } else {
        return error_set(err, LOOPLM_USAGE, "option --%s: found nothing after it, expected a value", o->name);
    }
    return LOOPLM_OK;
}

static int apply(const struct option *o, const char *attached, struct arguments *a, void *options, looplm_error *err) {
    const char *value = "true";
    if (o->kind == OPTION_FLAG) {
        if (attached)
            return error_set(err, LOOPLM_USAGE, "option --%s: found '=%s', and it takes no value", o->name, attached);
    } else {
        int status = take_value(o, attached, a, &value, err);
        if (status) return status;
    }
    return set_value(o, options, -1, value, NULL, err);
}

static int parse_long(const struct options_table *table, const char *word, struct arguments *a, void *options,
                      looplm_error *err) {
    char name[128];
    const char *equals = strchr(word, '=');
    size_t length = equals ? (size_t)(equals - word) : strlen(word);
    snprintf(name, sizeof name, "%.*s", (int)(length < sizeof name ? length : sizeof name - 1), word);
    for (int i = 0; i < table->count; i++) {
        const struct option *o = &table->options[i];
        if (!is_argument(o) && strcmp(o->name, name) == 0) return apply(o, equals ? equals + 1 : NULL, a, options, err);
    }
    return unknown(table, name, NULL, err);
}

/* "-n 5", "-n5", and flags one by one: "-a -b". */
static int parse_short(const struct options_table *table, const char *word, struct arguments *a, void *options,
                       looplm_error *err) {
    for (int i = 0; i < table->count; i++) {
        const struct option *o = &table->options[i];
        if (is_argument(o) || !o->short_name || o->short_name != word[0]) continue;
        const char *attached = word[1] ? word + 1 : NULL;
        return apply(o, attached, a, options, err);
    }
    return error_set(err, LOOPLM_USAGE, "command line: no option is named '-%.*s'; --help lists them", VALUE_SHOWN_MAX,
                     word);
}

static int parse_argument(const struct options_table *table, const char *word, void *options, looplm_error *err) {
    for (int i = 0; i < table->count; i++) {
        const struct option *o = &table->options[i];
        if (!is_argument(o)) continue;
        if (o->kind != OPTION_ARGUMENTS && *(bool *)field(options, o->given_offset)) continue;
        return set_value(o, options, -1, word, NULL, err);
    }
    return error_set(err, LOOPLM_USAGE, "command line: found '%.*s', and no further argument was expected",
                     VALUE_SHOWN_MAX, word);
}

int options_parse(const struct options_table *table, void *options, int argc, char **argv, bool *help,
                  looplm_error *err) {
    struct arguments a = {.argc = argc, .next = 1, .argv = argv};
    bool only_arguments = false;
    *help = false;
    while (a.next < a.argc) {
        const char *word = a.argv[a.next++];
        int status;
        if (only_arguments || word[0] != '-' || !word[1]) {
            status = parse_argument(table, word, options, err);
        } else if (strcmp(word, "--") == 0) {
            only_arguments = true;
            continue;
        } else if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
            *help = true;
            return LOOPLM_OK;
        } else if (word[1] == '-') {
            status = parse_long(table, word + 2, &a, options, err);
        } else {
            status = parse_short(table, word + 1, &a, options, err);
        }
        if (status) return status;
    }
    return options_check(table, options, NULL, err);
}

int options_check(const struct options_table *table, const void *options, const char *origin, looplm_error *err) {
    for (int i = 0; i < table->count; i++) {
        const struct option *o = &table->options[i];
        if (*((const bool *)((const char *)options + o->given_offset))) continue;
        if (o->kind == OPTION_ARGUMENT || o->kind == OPTION_ARGUMENTS) {
            return error_set(err, LOOPLM_USAGE, "command line: %s is missing: %s", o->name, o->help);
        }
        if (o->text_default && strcmp(o->text_default, OPTION_NEEDED) == 0) {
            return error_set(err, LOOPLM_USAGE, "%s: %s%s is missing: %s", origin ? origin : "command line",
                             origin ? "key " : "option --", o->name, o->help);
        }
    }
    return LOOPLM_OK;
}

/* Recipes. */

/* Lists under the same "prefix.*" get the same count, so that items[i] belong together. */
static int equalise_lists(const struct options_table *table, void *options, looplm_error *err) {
    for (int i = 0; i < table->count; i++) {
        const struct option *a = &table->options[i];
        const char *star = strchr(a->name, '*');
        if (a->kind != OPTION_LIST || !star) continue;
        for (int j = 0; j < table->count; j++) {
            const struct option *b = &table->options[j];
            if (b->kind != OPTION_LIST || strncmp(a->name, b->name, (size_t)(star - a->name) + 1) != 0) continue;
            int status = resize_list(list_of(a, options), list_of(b, options)->count, err);
            if (status) return status;
        }
    }
    return LOOPLM_OK;
}

int options_read(const struct options_table *table, void *options, const char *path, looplm_error *err) {
    struct yaml_keys yaml;
    int status = yaml_keys_read(&yaml, path, err);
    if (status) return status;
    for (int i = 0; i < yaml.count && !status; i++) {
        const struct yaml_entry *e = &yaml.entries[i];
        char where[512];
        snprintf(where, sizeof where, "%s:%d", path, e->line);
        int index;
        const struct option *o = find_option(table, e->key, &index);
        if (!o) {
            status = unknown(table, e->key, where, err);
        } else if (e->value) {
            status = set_value(o, options, index, e->value, where, err);
        }
    }
    yaml_keys_free(&yaml);
    return status ? status : equalise_lists(table, options, err);
}

static int override_list(const struct option *o, void *options, char *value, looplm_error *err) {
    clear_list(list_of(o, options));
    int status = LOOPLM_OK;
    for (char *part, *rest = value; !status && (part = strsep(&rest, ","));) {
        status = set_value(o, options, -1, part, "--set", err);
    }
    return status;
}

int options_override(const struct options_table *table, void *options, const char *assignment, looplm_error *err) {
    const char *equals = strchr(assignment, '=');
    if (!equals || equals == assignment) {
        return error_set(err, LOOPLM_USAGE, "--set: found '%.*s', expected key=value", VALUE_SHOWN_MAX, assignment);
    }
    char *key = strndup(assignment, (size_t)(equals - assignment)), *value = strdup(equals + 1);
    int status, index;
    const struct option *o = key ? find_option(table, key, &index) : NULL;
    if (!key || !value) {
        status = no_memory(err);
    } else if (!o) {
        status = unknown(table, key, "--set", err);
    } else if (o->kind == OPTION_LIST && index < 0) {
        status = override_list(o, options, value, err);
    } else {
        status = set_value(o, options, index, value, "--set", err);
    }
    free(key);
    free(value);
    return status ? status : equalise_lists(table, options, err);
}
