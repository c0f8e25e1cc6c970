/* looplm gate: trains the exit gate alone, on a frozen model. */
#include "cli/train_command.h"

extern const struct command command_gate;

static int run_gate(int argc, char **argv) {
    return train_command_run(&command_gate, OBJECTIVE_STAGE2, argc, argv);
}

const struct command command_gate = {"gate", "RECIPE [--set KEY=VALUE]... [--quiet]",
                                     "train the exit gate of a frozen model (stage II)", run_gate};
