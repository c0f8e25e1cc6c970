/* looplm train: a recipe becomes a model. */
#include "cli/train_command.h"

extern const struct command command_train;

static int run_train(int argc, char **argv) {
    return train_command_run(&command_train, OBJECTIVE_STAGE1, argc, argv);
}

const struct command command_train = {"train", "RECIPE [--set KEY=VALUE]... [--quiet]",
                                      "train a looped model as a recipe says, or go on with it", run_train};
