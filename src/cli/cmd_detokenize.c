/* looplm detokenize: JSON arrays of ids on stdin to text on stdout, byte for byte, with nothing between arrays; or with
 * --json one JSON string per array and line. */
#include "base/json.h"
#include "base/options.h"
#include "cli/command.h"
#include "text/tokenizer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DETOKENIZE_OPTIONS(X)                                                            \
    X(ARGUMENT, model, "MODEL", "a model directory, or a tokenizer.json")                \
    X(FLAG, json, "json", 0, "print one JSON string per array instead of the bare text") \
    X(FLAG, skip_special, "skip-special", 0, "leave special tokens out")
OPTIONS_DEFINE(detokenize_options, DETOKENIZE_OPTIONS)

extern const struct command command_detokenize;

static int print_text(const char *text, size_t size, bool json, looplm_error *err) {
    if (!json) {
        fwrite(text, 1, size, stdout);
        return 0;
    }
    json_t *string = json_stringn(text, size);
    if (!string) return error_set(err, LOOPLM_MEMORY, "no memory to print a text of %zu bytes", size);
    json_dumpf(string, stdout, JSON_ENCODE_ANY);
    putchar('\n');
    json_decref(string);
    return 0;
}

static int detokenize_array(const struct tokenizer *tokenizer, const struct detokenize_options *o, const json_t *array,
                            looplm_error *err) {
    size_t n = json_array_size(array), size;
    int32_t *ids = malloc((n + 1) * sizeof *ids);
    char *text;
    int status = ids ? 0 : error_set(err, LOOPLM_MEMORY, "no memory for %zu ids", n);
    for (size_t i = 0; status == 0 && i < n; i++) {
        const json_t *id = json_array_get(array, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX) {
            status = error_set(err, LOOPLM_FORMAT, "entry %zu is %s, expected a token id (0 to %d)", i,
                               json_is_integer(id) ? "out of range" : json_type_name(id),
                               (int)tokenizer_size(tokenizer) - 1);
        } else {
            ids[i] = (int32_t)json_integer_value(id);
        }
    }
    if (status == 0) status = tokenizer_decode(tokenizer, ids, n, o->skip_special, &text, &size, err);
    free(ids);
    if (status) return status;
    status = print_text(text, size, o->json, err);
    free(text);
    return status;
}

/* Whether only white space is left on stdin. */
static bool at_end(void) {
    int c;
    do c = getchar();
    while (c == ' ' || c == '\t' || c == '\r' || c == '\n');
    if (c == EOF) return true;
    ungetc(c, stdin);
    return false;
}

static int detokenize_all(const struct detokenize_options *o, looplm_error *err) {
    struct tokenizer *tokenizer;
    int status = tokenizer_open(&tokenizer, o->model, err);
    if (status) return status;
    for (size_t number = 1; status == 0 && !at_end(); number++) {
        json_error_t at;
        json_t *array = json_loadf(stdin, JSON_DISABLE_EOF_CHECK, &at);
        if (!array)
            status = error_set(err, LOOPLM_FORMAT, "array %zu is not JSON: %s", number, at.text);
        else if (!json_is_array(array))
            status = error_set(err, LOOPLM_FORMAT, "found %s, expected an array of ids", json_type_name(array));
        else
            status = detokenize_array(tokenizer, o, array, err);
        json_decref(array);
        if (status) error_prefix(err, "standard input, array %zu", number);
    }
    if (status == 0 && ferror(stdin))
        status =
            error_set(err, LOOPLM_IO, "standard input: cannot read: %s; give it a file or a pipe", strerror(errno));
    tokenizer_close(tokenizer);
    return status;
}

static int run_detokenize(int argc, char **argv) {
    const struct options_table *table = detokenize_options_table();
    struct detokenize_options options;
    looplm_error err = {0};
    int code = command_parse(&command_detokenize, table, &options, argc, argv);
    if (code != COMMAND_GO) return code;
    int status = detokenize_all(&options, &err);
    options_free(table, &options);
    return status ? command_fail(&err) : COMMAND_DONE;
}

const struct command command_detokenize = {"detokenize", "MODEL [--json] [--skip-special] < IDS",
                                           "turn token ids back into text", run_detokenize};
