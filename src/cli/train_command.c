/* Owns the command line of training and how SIGINT and SIGTERM end it: they are blocked, in the thread team too, and
 * the trainer asks between steps whether one is waiting. */
#include "cli/train_command.h"

#include "base/log.h"
#include "train/trainer.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TRAIN_OPTIONS(X)                                                                   \
    X(ARGUMENT, recipe, "RECIPE", "a YAML file; docs/training.md lists its keys")          \
    X(LIST, set, "set", 0, "KEY=VALUE", "override a line of the recipe (may be repeated)") \
    X(FLAG, keys, "keys", 0, "list the keys of a recipe and stop")                         \
    X(FLAG, quiet, "quiet", 'q', "show nothing but warnings and errors")
OPTIONS_DEFINE(train_options, TRAIN_OPTIONS)

static void stop_signals(sigset_t *set) {
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
}

/* Takes a waiting signal, if there is one. After the first the signals act as they always do, so that a second ends the
 * program at once. */
static bool is_stop_asked(void *context) {
    sigset_t set;
    struct timespec now = {0, 0};
    (void)context;
    stop_signals(&set);
    if (sigtimedwait(&set, NULL, &now) < 0) return false;
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    fprintf(stderr, "\nlooplm: stops after this step and saves a checkpoint; once more to stop at once\n");
    return true;
}

static int run(const struct command *command, enum objective_kind stage, const struct train_options *o) {
    struct trainer_options options = {.recipe = o->recipe,
                                      .sets = o->set.items,
                                      .n_sets = o->set.count,
                                      .stage = stage,
                                      .quiet = o->quiet,
                                      .stop = is_stop_asked};
    struct trainer_outcome outcome;
    looplm_error err;
    sigset_t set;
    stop_signals(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    if (o->quiet) log_set_level(LOG_LEVEL_WARNING);
    int status = trainer_run(&options, &outcome, &err);
    if (!status && outcome.stopped)
        fprintf(stderr, "looplm: stopped after step %lld of %lld; `looplm %s %s` goes on from there\n",
                (long long)outcome.step, (long long)outcome.steps, command->name, o->recipe);
    if (!status && !outcome.stopped && !o->quiet)
        fprintf(stderr, "looplm: done, %lld steps; the model is in %s/model\n", (long long)outcome.step, outcome.run);
    free(outcome.run);
    return status ? command_fail(&err) : COMMAND_DONE;
}

/* The list of keys stands in for a recipe, so it must not ask for one. */
static bool asks_for_keys(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--keys") == 0) return true;
    return false;
}

int train_command_run(const struct command *command, enum objective_kind stage, int argc, char **argv) {
    struct train_options o;
    if (asks_for_keys(argc, argv)) {
        options_print_keys(recipe_options_table(), stdout);
        return COMMAND_DONE;
    }
    int code = command_parse(command, train_options_table(), &o, argc, argv);
    if (code != COMMAND_GO) return code;
    code = run(command, stage, &o);
    options_free(train_options_table(), &o);
    return code;
}
