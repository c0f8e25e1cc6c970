/* What a command of the program is. Each lives in its own cmd_NAME.c, which defines `const struct command
 * command_NAME`, and has one line in the table of main.c. */
#ifndef CLI_COMMAND_H
#define CLI_COMMAND_H

#include "base/options.h"

/* Exit statuses, a contract: 0 done, 1 the world failed, 2 wrong usage. */
enum { COMMAND_DONE = 0, COMMAND_FAILED = 1, COMMAND_USAGE = 2 };

struct command {
    const char *name;
    const char *usage;   /* what follows "looplm NAME", for instance "MODEL [options]" */
    const char *summary; /* one line for `looplm --help` */
    /* argv[0] is the command's name; returns the exit status. */
    int (*run)(int argc, char **argv);
};

/* Prints "looplm: MESSAGE" to stderr and returns the exit status that belongs to the error. */
int command_fail(const looplm_error *err);

/* Sets defaults and reads the command line. COMMAND_GO means go on, and options_free at the end; anything else is the
 * exit status (help was printed, or an error was), and the options are freed already. */
enum { COMMAND_GO = -1 };
int command_parse(const struct command *command, const struct options_table *table, void *options, int argc,
                  char **argv);

#endif
