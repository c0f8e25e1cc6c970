/* The commands, their help, the nearest name for a wrong one, and the man page against them. */
#include "cli/program.h"

#include <ctype.h>

#define COMMANDS_MAX 32

/* The names of the commands, from `looplm --help`; *count of them, each fresh. */
static void list_commands(char **names, int *count) {
    char *output, *rest;
    assert_int_equal(program_run(".", "$P --help", &output), 0);
    char *at = strstr(output, "commands:\n");
    assert_non_null(at);
    *count = 0;
    for (char *line = strtok_r(strchr(at, '\n') + 1, "\n", &rest); line && line[0] == ' ';
         line = strtok_r(NULL, "\n", &rest)) {
        assert_in_range(*count, 0, COMMANDS_MAX - 1);
        names[(*count)++] = strndup(line + 2, strcspn(line + 2, " "));
    }
    free(output);
}

/* The help of every command, joined; fresh. */
static char *all_help(void) {
    char *names[COMMANDS_MAX], *all = strdup(""), *output, *joined, command[128];
    int count;
    list_commands(names, &count);
    for (int i = 0; i < count; i++) {
        snprintf(command, sizeof command, "$P help %s && $P %s --help", names[i], names[i]);
        if (program_run(".", command, &output)) fail_msg("%s: %s", command, output);
        assert_true(asprintf(&joined, "%s%s", all, output) > 0);
        free(all);
        free(output);
        free(names[i]);
        all = joined;
    }
    return all;
}

static void test_help(void **state) {
    (void)state;
    char *names[COMMANDS_MAX], usage[128], command[64], *output;
    int count;
    list_commands(names, &count);
    assert_in_range(count, 10, COMMANDS_MAX);
    for (int i = 0; i < count; i++) {
        bool plain = !strcmp(names[i], "help") || !strcmp(names[i], "version");
        snprintf(command, sizeof command, "$P %s --help 2>/dev/null", names[i]);
        assert_int_equal(program_run(".", command, &output), 0);
        snprintf(usage, sizeof usage, "usage: looplm %s ", names[i]);
        if (!plain && strncmp(output, usage, strlen(usage))) fail_msg("%s: %s", command, output);
        free(names[i]);
        free(output);
    }
    assert_program(".", "$P --version", 0, "looplm ", NULL);
    assert_program(".", "$P run -h | head -1", 0, "usage: looplm run MODEL", NULL);
    assert_program(".", "$P help run | head -1", 0, "usage: looplm run MODEL", NULL);
    assert_program(".", "$P 2>/dev/null | wc -c; $P", 2, "0\n", "usage: looplm COMMAND", NULL);
}

static void test_wrong_names(void **state) {
    (void)state;
    assert_program(".", "$P rnu", 2, "no command is named 'rnu'; did you mean 'run'?", NULL);
    assert_program(".", "$P tokenise", 2, "did you mean 'tokenize'?", NULL);
    assert_program(".", "$P zzzz", 2, "no command is named 'zzzz'", "--help", NULL);
    assert_program(".", "$P help zzzz", 2, "no command is named 'zzzz'", NULL);
    assert_program(".", "$P inspect --jsn x", 2, "did you mean '--json'?", NULL);
    assert_program(".", "$P forward x --id 1 --out y", 2, "did you mean '--ids'?", NULL);
    assert_program(".", "$P inspect -z x", 2, "'-z'", NULL);
    assert_program(".", "$P tokenizer tran -o x y", 2, "looplm tokenizer train", NULL);
    assert_program(".", "$P lab mnao", 2, "did you mean 'mano'?", NULL);
    assert_program(".", "$P lab mano", 2, "--generate", NULL);
    assert_program(".", "$P lab mano --generate x.jsonl --people 3", 2, "--people does not belong", NULL);
    /* What went wrong is said on stderr alone. */
    assert_program(".", "$P rnu 2>/dev/null | wc -c; $P inspect --jsn x 2>/dev/null | wc -c", 0, "0\n0\n", NULL);
}

/* Reads an option's name where the man page writes \-\-name. */
static size_t read_option(const char *page, char *name, size_t size) {
    size_t used = 0, i = 0;
    while (used + 2 < size) {
        if (page[i] == '\\' && page[i + 1] == '-') {
            name[used++] = '-';
            i += 2;
        } else if (isalnum((unsigned char)page[i])) {
            name[used++] = page[i++];
        } else {
            break;
        }
    }
    name[used] = 0;
    return i;
}

static void test_man_page(void **state) {
    (void)state;
    char *path = support_source_path("docs/looplm.1.in"), *page, *names[COMMANDS_MAX], *help = all_help(), command[512];
    int count, options = 0;
    snprintf(command, sizeof command, "cat '%s'", path);
    assert_int_equal(support_shell(command, &page), 0);
    list_commands(names, &count);
    for (int i = 0; i < count; i++) {
        if (!strstr(page, names[i])) fail_msg("the man page lacks the command %s", names[i]);
        free(names[i]);
    }
    for (const char *at = page; (at = strstr(at, "\\-\\-"));) {
        char name[64];
        at += read_option(at, name, sizeof name);
        options++;
        if (!strcmp(name, "--help")) continue;
        if (!strstr(help, name)) fail_msg("the man page has %s, and no command does", name);
    }
    assert_in_range(options, 10, 1000);
    free(help);
    free(page);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_wrong_names),
        cmocka_unit_test(test_man_page),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
