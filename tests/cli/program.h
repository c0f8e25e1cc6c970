/* Shared by the tests of this folder: the program in a scratch directory, with a small model that has learned one text
 * by heart and so speaks ASCII, at depths that vary. */
#ifndef TESTS_CLI_PROGRAM_H
#define TESTS_CLI_PROGRAM_H

#include "support/support.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROGRAM_TEXT                                                 \
    "the cat sat on the mat; the hat is that of the cat. 12 cats!\n" \
    "a quick brown fox jumps over lazy dogs while seven wizards mix potions\n"

/* The model as a recipe in the scratch directory: r.yaml, run in "run", 300 ids, 256 positions, 4 loops. */
#define PROGRAM_RECIPE                                                                                              \
    "run.directory: run\n"                                                                                          \
    "model: {tokenizer: tok, hidden: 32, ffn: 64, layers: 2, heads: 2, loops: 4, tied: true, max_positions: 256}\n" \
    "data:\n"                                                                                                       \
    "  - path: book.txt\n"                                                                                          \
    "train: {sequence: 32, batch: 4, steps: 150, lr: 0.01, warmup: 0}\n"                                            \
    "threads: 1\n"

/* Runs a shell line in the directory, with $P the program, $M the model, $G the golden models, $T the options that keep
 * a run small. Its stdout and stderr together are in *output when that is wanted. */
static inline int program_run(const char *directory, const char *command, char **output) {
    char *line;
    assert_true(asprintf(&line, "cd '%s' || exit 99; P='%s'; M=run/model; G='%s/tests/golden'; T='--threads 1'; %s",
                         directory, LOOPLM_PROGRAM, LOOPLM_SOURCE_DIR, command) > 0);
    int status = support_shell(line, output);
    free(line);
    return status;
}

/* The same, and asserts the status and that the output holds every given part; ends with NULL. */
static inline void assert_program(const char *directory, const char *command, int status, ...) {
    char *output;
    int found = program_run(directory, command, &output);
    if (found != status) fail_msg("%s: status %d, expected %d; output: %s", command, found, status, output);
    va_list parts;
    va_start(parts, status);
    for (const char *part; (part = va_arg(parts, const char *));) {
        if (strstr(output, part)) continue;
        va_end(parts);
        fail_msg("%s: the output lacks '%s': %s", command, part, output);
    }
    va_end(parts);
    free(output);
}

/* What the command prints on stdout, as JSON; a new reference. */
static inline json_t *program_json(const char *directory, const char *command) {
    char *output, *quiet;
    json_error_t at;
    assert_true(asprintf(&quiet, "%s 2>talk.txt", command) > 0);
    if (program_run(directory, quiet, &output)) fail_msg("%s: %s", command, output);
    json_t *json = json_loads(output, 0, &at);
    if (!json) fail_msg("%s: not JSON, %s: %s", command, at.text, output);
    free(output);
    free(quiet);
    return json;
}

/* A group's setup and teardown: *state is a scratch directory with the text, a tokenizer in tok, and the model. */
static inline int program_setup(void **state) {
    char *directory = support_make_directory(), *output;
    free(support_write_file(directory, "text.txt", PROGRAM_TEXT));
    free(support_write_file(directory, "book.txt",
                            PROGRAM_TEXT PROGRAM_TEXT PROGRAM_TEXT PROGRAM_TEXT PROGRAM_TEXT PROGRAM_TEXT));
    free(support_write_file(directory, "r.yaml", PROGRAM_RECIPE));
    if (program_run(directory, "$P tokenizer train --vocab-size 300 --min-count 1 -o tok text.txt && $P train r.yaml",
                    &output)) {
        print_error("%s\n", output);
        return -1;
    }
    free(output);
    *state = directory;
    return 0;
}

static inline int program_teardown(void **state) {
    support_remove_directory(*state);
    return 0;
}

#endif
