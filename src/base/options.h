/* Options: one list makes the struct, its defaults, the parser of a command line, the reader of a recipe, the help text
 * and the run record.
 *
 *     #define RUN_OPTIONS(X)                                                                                       \
 *         X(ARGUMENT, model, "MODEL", "a model directory")                                                         \
 *         X(TEXT, prompt, "prompt", 'p', NULL, "TEXT", "the prompt; - reads standard input")                       \
 *         X(INT, tokens, "tokens", 'n', 256, 1, 1 << 20, "N", "generate at most N tokens")                         \
 *         X(REAL, top_p, "top-p", 0, 1.0, 0.0, 1.0, "P", "sample from the likeliest tokens of this mass")          \
 *         X(CHOICE, weights, "weights", 0, "auto", "auto|f32|bf16", "the type of the weights in memory")           \
 *         X(FLAG, json, "json", 0, "print one JSON object")                                                        \
 *         X(SWITCH, recompute, "train.recompute", 0, true, "recompute each loop in the backward pass")             \
 *         X(LIST, stop, "stop", 0, "TEXT", "stop before this string (may be repeated)")
 *     OPTIONS_DEFINE(run_options, RUN_OPTIONS)
 *
 * defines `struct run_options` and `const struct options_table *run_options_table(void)`. Members: const char *prompt,
 * int64_t tokens, double top_p, int weights (the index of the choice), bool json, bool recompute, struct option_list
 * stop; and, for each, a bool `NAME_given` that tells a value from a default. A FLAG takes no value on the command
 * line; a SWITCH takes true or false. ARGUMENT is a positional argument that must be there, MAYBE one that may be
 * absent (NULL), ARGUMENTS all the rest (at least one). A default of OPTION_NEEDED makes a TEXT one that must be given.
 *
 * In a recipe a name is a dotted key. A LIST there takes a YAML list of scalars, and a name with a star, "data.*.path",
 * takes that key of every element of a list: items[i] is NULL where element i lacks it.
 */
#ifndef BASE_OPTIONS_H
#define BASE_OPTIONS_H

#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#define OPTION_NEEDED "(needed)"
#define OPTIONS_MAX 128
#define OPTION_LIST_MAX 256

enum option_kind {
    OPTION_INT,
    OPTION_REAL,
    OPTION_TEXT,
    OPTION_CHOICE,
    OPTION_FLAG,
    OPTION_SWITCH,
    OPTION_LIST,
    OPTION_ARGUMENT,
    OPTION_MAYBE,
    OPTION_ARGUMENTS
};

struct option_list {
    char **items; /* owned by the options; NULL entries only for names with a star */
    int count;
};

struct option {
    enum option_kind kind;
    const char *name; /* without dashes; for arguments the word of the usage line */
    char short_name;  /* 0 for none */
    size_t offset, given_offset;
    double real_default, real_min, real_max;
    int64_t int_default, int_min, int_max;
    const char *text_default; /* of TEXT and CHOICE */
    const char *choices;      /* "a|b|c" */
    const char *value_name;   /* "N" in the help */
    const char *help;
};

struct options_table {
    const struct option *options;
    int count;
};

/* Sets every default. The struct may then be used with the functions below and must be freed. */
int options_init(const struct options_table *table, void *options, looplm_error *err);
void options_free(const struct options_table *table, void *options);

/* Reads argv[1..]: --name value, --name=value, -s value, -svalue, flags, -- before arguments that start with a dash.
 * Where
 * --help or -h stands, *help is set and nothing else is demanded. Unknown names are told with the nearest one. */
int options_parse(const struct options_table *table, void *options, int argc, char **argv, bool *help,
                  looplm_error *err);

/* Recipe: reads a file, then (as often as wanted) "key=value" overrides, then checks that what is needed was given.
 * An override of a LIST takes "a,b,c" for all of it, or "key.N=value" for one item. A null value leaves the default. */
int options_read(const struct options_table *table, void *options, const char *path, looplm_error *err);
int options_override(const struct options_table *table, void *options, const char *assignment, looplm_error *err);
int options_check(const struct options_table *table, const void *options, const char *origin, looplm_error *err);

/* Sets one option from text; `where` opens the message ("recipe.yaml:7", "--set", ...). LIST appends. */
int options_set(const struct options_table *table, void *options, const char *name, const char *value,
                const char *where, looplm_error *err);

/* "  -n, --tokens N   generate ... (1 to 1048576; default 256)", one paragraph each; arguments first. */
void options_print_help(const struct options_table *table, FILE *out);
/* The same for recipes: "  key: value   what" lines. */
void options_print_keys(const struct options_table *table, FILE *out);

/* All values as an object, dotted names as they are; a new reference, NULL without memory. */
json_t *options_dump(const struct options_table *table, const void *options);

#define OPTIONS_DEFINE(name, LIST)                                                                      \
    struct name {                                                                                       \
        LIST(OPTIONS_FIELD)                                                                             \
    };                                                                                                  \
    static inline const struct options_table *name##_table(void) {                                      \
        typedef struct name options_struct;                                                             \
        static const struct option entries[] = {LIST(OPTIONS_ENTRY)};                                   \
        static const struct options_table table = {entries, (int)(sizeof entries / sizeof entries[0])}; \
        return &table;                                                                                  \
    }

#define OPTIONS_FIELD(kind, member, ...) \
    OPTIONS_TYPE_##kind member;          \
    bool member##_given;
#define OPTIONS_TYPE_INT int64_t
#define OPTIONS_TYPE_REAL double
#define OPTIONS_TYPE_TEXT const char *
#define OPTIONS_TYPE_CHOICE int
#define OPTIONS_TYPE_FLAG bool
#define OPTIONS_TYPE_SWITCH bool
#define OPTIONS_TYPE_LIST struct option_list
#define OPTIONS_TYPE_ARGUMENT const char *
#define OPTIONS_TYPE_MAYBE const char *
#define OPTIONS_TYPE_ARGUMENTS struct option_list

#define OPTIONS_ENTRY(kind_, member, ...)                      \
    {.kind = OPTION_##kind_,                                   \
     .offset = offsetof(options_struct, member),               \
     .given_offset = offsetof(options_struct, member##_given), \
     OPTIONS_ENTRY_##kind_(__VA_ARGS__)},
#define OPTIONS_ENTRY_INT(name_, short_, default_, min_, max_, value_, help_)                       \
    .name = name_, .short_name = short_, .int_default = default_, .int_min = min_, .int_max = max_, \
    .value_name = value_, .help = help_
#define OPTIONS_ENTRY_REAL(name_, short_, default_, min_, max_, value_, help_)                         \
    .name = name_, .short_name = short_, .real_default = default_, .real_min = min_, .real_max = max_, \
    .value_name = value_, .help = help_
#define OPTIONS_ENTRY_TEXT(name_, short_, default_, value_, help_) \
    .name = name_, .short_name = short_, .text_default = default_, .value_name = value_, .help = help_
#define OPTIONS_ENTRY_CHOICE(name_, short_, default_, choices_, help_) \
    .name = name_, .short_name = short_, .text_default = default_, .choices = choices_, .help = help_
#define OPTIONS_ENTRY_FLAG(name_, short_, help_) .name = name_, .short_name = short_, .help = help_
#define OPTIONS_ENTRY_SWITCH(name_, short_, default_, help_) \
    .name = name_, .short_name = short_, .int_default = default_, .help = help_
#define OPTIONS_ENTRY_LIST(name_, short_, value_, help_) \
    .name = name_, .short_name = short_, .value_name = value_, .help = help_
#define OPTIONS_ENTRY_ARGUMENT(name_, help_) .name = name_, .help = help_
#define OPTIONS_ENTRY_MAYBE(name_, help_) .name = name_, .help = help_
#define OPTIONS_ENTRY_ARGUMENTS(name_, help_) .name = name_, .help = help_

#endif
