/* Owns what an options table shows: the help of a command, the keys of a recipe, the record of a run. */
#include "base/options.h"

#include <math.h>
#include <string.h>

#define HELP_COLUMN 26
#define HELP_WIDTH 100

static const void *field(const void *options, size_t offset) {
    return (const char *)options + offset;
}

/* Starts at `column`, goes on at HELP_COLUMN. */
static void print_wrapped(FILE *out, int column, const char *text) {
    if (column >= HELP_COLUMN) {
        fputc('\n', out);
        column = 0;
    }
    fprintf(out, "%*s", HELP_COLUMN - column, "");
    column = HELP_COLUMN;
    while (*text) {
        int n = (int)strcspn(text, " ");
        if (column > HELP_COLUMN && column + 1 + n > HELP_WIDTH) {
            fprintf(out, "\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
        } else if (column > HELP_COLUMN) {
            fputc(' ', out);
            column++;
        }
        fprintf(out, "%.*s", n, text);
        column += n;
        text += n;
        text += strspn(text, " ");
    }
    fputc('\n', out);
}

/* "help (range; default)". */
static void describe(const struct option *o, char *text, size_t size) {
    bool needed = o->text_default && strcmp(o->text_default, OPTION_NEEDED) == 0;
    switch (o->kind) {
    case OPTION_INT:
        snprintf(text, size, "%s (%lld to %lld; default %lld)", o->help, (long long)o->int_min, (long long)o->int_max,
                 (long long)o->int_default);
        break;
    case OPTION_REAL:
        snprintf(text, size, "%s (%g to %g; default %g)", o->help, o->real_min, o->real_max, o->real_default);
        break;
    case OPTION_SWITCH:
        snprintf(text, size, "%s (default %s)", o->help, o->int_default ? "true" : "false");
        break;
    case OPTION_CHOICE:
        snprintf(text, size, "%s (%s; default %s)", o->help, o->choices, o->text_default);
        break;
    case OPTION_TEXT:
        if (needed) {
            snprintf(text, size, "%s (needed)", o->help);
        } else if (o->text_default) {
            snprintf(text, size, "%s (default %s)", o->help, o->text_default);
        } else {
            snprintf(text, size, "%s", o->help);
        }
        break;
    default:
        snprintf(text, size, "%s", o->help);
    }
}

static const char *value_name(const struct option *o) {
    if (o->value_name) return o->value_name;
    return o->kind == OPTION_CHOICE ? "WHICH" : o->kind == OPTION_SWITCH ? "true|false" : "VALUE";
}

static bool is_argument(const struct option *o) {
    return o->kind == OPTION_ARGUMENT || o->kind == OPTION_MAYBE || o->kind == OPTION_ARGUMENTS;
}

void options_print_help(const struct options_table *table, FILE *out) {
    char text[1024], left[160];
    for (int i = 0; i < table->count; i++) {
        const struct option *o = &table->options[i];
        if (!is_argument(o)) continue;
        print_wrapped(out, fprintf(out, "  %s", o->name), o->help);
    }
    for (int i = 0; i < table->count; i++) {
        const struct option *o = &table->options[i];
        if (is_argument(o)) continue;
        describe(o, text, sizeof text);
        int n = o->short_name ? snprintf(left, sizeof left, "  -%c, --%s", o->short_name, o->name)
                              : snprintf(left, sizeof left, "      --%s", o->name);
        if (o->kind != OPTION_FLAG && n > 0 && (size_t)n < sizeof left) {
            snprintf(left + n, sizeof left - (size_t)n, " %s", value_name(o));
        }
        print_wrapped(out, fprintf(out, "%s", left), text);
    }
    print_wrapped(out, fprintf(out, "  -h, --help"), "print this");
}

void options_print_keys(const struct options_table *table, FILE *out) {
    char text[1024];
    for (int i = 0; i < table->count; i++) {
        const struct option *o = &table->options[i];
        if (is_argument(o)) continue;
        describe(o, text, sizeof text);
        print_wrapped(out, fprintf(out, "  %s", o->name), text);
    }
}

static json_t *text_or_null(const char *text) {
    return text ? json_string(text) : json_null();
}

static json_t *dump_choice(const struct option *o, int index) {
    const char *begin = o->choices;
    for (; index > 0; index--) begin = strchr(begin, '|') + 1;
    return json_stringn(begin, strcspn(begin, "|"));
}

static json_t *dump_list(const struct option_list *list) {
    json_t *array = json_array();
    for (int i = 0; i < list->count; i++) {
        if (json_array_append_new(array, text_or_null(list->items[i])) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

/* JSON has no infinity. */
static json_t *dump_real(double value) {
    return isfinite(value) ? json_real(value) : json_string(value > 0 ? "inf" : "-inf");
}

static json_t *dump_value(const struct option *o, const void *options) {
    const void *value = field(options, o->offset);
    switch (o->kind) {
    case OPTION_INT:
        return json_integer(*(const int64_t *)value);
    case OPTION_REAL:
        return dump_real(*(const double *)value);
    case OPTION_FLAG:
    case OPTION_SWITCH:
        return json_boolean(*(const bool *)value);
    case OPTION_CHOICE:
        return dump_choice(o, *(const int *)value);
    case OPTION_TEXT:
    case OPTION_ARGUMENT:
    case OPTION_MAYBE:
        return text_or_null(*(const char *const *)value);
    case OPTION_LIST:
    case OPTION_ARGUMENTS:
        return dump_list(value);
    }
    return NULL;
}

json_t *options_dump(const struct options_table *table, const void *options) {
    json_t *object = json_object();
    for (int i = 0; i < table->count; i++) {
        const struct option *o = &table->options[i];
        if (json_object_set_new(object, o->name, dump_value(o, options)) != 0) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}
