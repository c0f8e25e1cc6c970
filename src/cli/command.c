/* Owns what all commands do alike: how an error reaches the user. */
#include "cli/command.h"

#include <stdio.h>

int command_fail(const looplm_error *err) {
    fflush(stdout);
    fprintf(stderr, "looplm: %s\n", err->message);
    return err->status == LOOPLM_USAGE ? COMMAND_USAGE : COMMAND_FAILED;
}

int command_parse(const struct command *command, const struct options_table *table, void *options, int argc,
                  char **argv) {
    looplm_error err;
    bool help = false;
    if (options_init(table, options, &err)) return command_fail(&err);
    int status = options_parse(table, options, argc, argv, &help, &err);
    if (!status && !help) return COMMAND_GO;
    options_free(table, options);
    if (status) {
        int code = command_fail(&err);
        fprintf(stderr, "looplm: `looplm %s --help` lists the options\n", command->name);
        return code;
    }
    printf("usage: looplm %s %s\n\n%s\n\n", command->name, command->usage, command->summary);
    options_print_help(table, stdout);
    return COMMAND_DONE;
}
