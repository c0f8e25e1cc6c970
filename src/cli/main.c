/* The program: finds the command, runs it, and sees that what it printed has arrived. Commands live in cmd_*.c. */
#include "base/nearest.h"
#include "cli/command.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One line for each command, in the order of the help text. */
#define COMMANDS(X) \
    X(run)          \
    X(forward)      \
    X(inspect)      \
    X(tokenize)     \
    X(detokenize)   \
    X(tokenizer)    \
    X(quantize)     \
    X(compare)      \
    X(train)        \
    X(gate)         \
    X(plot)         \
    X(lab)          \
    X(bench)        \
    X(help)         \
    X(version)

static int run_help(int argc, char **argv);
static int run_version(int argc, char **argv);

#define X(name) extern const struct command command_##name;
COMMANDS(X)
#undef X
const struct command command_help = {"help", "[COMMAND]", "say what the program or a command does", run_help};
const struct command command_version = {"version", "", "print the version", run_version};

#define X(name) &command_##name,
static const struct command *const commands[] = {COMMANDS(X)};
#undef X
#define COMMAND_COUNT ((int)(sizeof commands / sizeof commands[0]))

static const struct command *find_command(const char *name) {
    for (int i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(commands[i]->name, name) == 0) return commands[i];
    }
    return NULL;
}

static int unknown_command(const char *name) {
    const char *names[COMMAND_COUNT];
    for (int i = 0; i < COMMAND_COUNT; i++) names[i] = commands[i]->name;
    const char *near = nearest_name(name, names, COMMAND_COUNT);
    looplm_error err;
    if (near) {
        error_set(&err, LOOPLM_USAGE, "no command is named '%s'; did you mean '%s'? (`looplm --help` lists them)", name,
                  near);
    } else {
        error_set(&err, LOOPLM_USAGE, "no command is named '%s'; `looplm --help` lists them", name);
    }
    return command_fail(&err);
}

static void print_help(FILE *out) {
    fprintf(out, "looplm %s: the engine for looped language models\n\nusage: looplm COMMAND [ARGUMENTS]\n\ncommands:\n",
            LOOPLM_VERSION);
    for (int i = 0; i < COMMAND_COUNT; i++) fprintf(out, "  %-12s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(out, "\n`looplm COMMAND --help` lists the options of one. Exit status: 0 done, 1 the world failed, "
                 "2 wrong usage.\n");
}

static int run_help(int argc, char **argv) {
    if (argc > 1 && argv[1][0] != '-') {
        const struct command *c = find_command(argv[1]);
        if (!c) return unknown_command(argv[1]);
        if (c->run != run_help && c->run != run_version) {
            char *help_argv[] = {argv[1], "--help", NULL};
            return c->run(2, help_argv);
        }
        printf("usage: looplm %s%s%s\n\n%s\n", c->name, *c->usage ? " " : "", c->usage, c->summary);
        return COMMAND_DONE;
    }
    print_help(stdout);
    return COMMAND_DONE;
}

static int run_version(int argc, char **argv) {
    (void)argc;
    (void)argv;
    printf("looplm %s\n", LOOPLM_VERSION);
    return COMMAND_DONE;
}

/* Whether stdout is a pipe or socket that nobody reads any more. */
static bool has_reader_left(void) {
    struct pollfd fd = {.fd = STDOUT_FILENO};
    return poll(&fd, 1, 0) == 1 && (fd.revents & (POLLERR | POLLHUP));
}

/* A full disk shows only when the buffer is written out. A reader that left (`looplm ... | head`) wants no message. */
static int close_stdout(int status) {
    int failed = ferror(stdout), code = 0;
    bool left = failed && has_reader_left();
    if (fclose(stdout) != 0) code = errno;
    if (left || code == EPIPE) return status ? status : COMMAND_FAILED;
    if (!failed && code == 0) return status;
    fprintf(stderr, "looplm: standard output: cannot write: %s\n", code ? strerror(code) : "an earlier write failed");
    return status ? status : COMMAND_FAILED;
}

/* A parent may start us with a standard stream closed. The next file opened would take its number, and what is meant
 * for the stream would go into that file. In its place comes /dev/null, opened so that its use fails as on a closed
 * one. */
static void keep_standard_streams(void) {
    for (int fd = 0; fd <= 2; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) != fd) abort();
    }
}

int main(int argc, char **argv) {
    keep_standard_streams();
    /* A reader that left, or a file that may not grow, is an error of the write that meets it, not a death. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    if (argc < 2) {
        print_help(stderr);
        return COMMAND_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) name = "help";
    if (strcmp(name, "--version") == 0) name = "version";
    const struct command *c = find_command(name);
    return close_stdout(c ? c->run(argc - 1, argv + 1) : unknown_command(argv[1]));
}
