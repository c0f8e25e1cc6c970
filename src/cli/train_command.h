/* What `looplm train` and `looplm gate` do alike. */
#ifndef CLI_TRAIN_COMMAND_H
#define CLI_TRAIN_COMMAND_H

#include "cli/command.h"
#include "train/objective.h"

/* Reads the command line and runs the recipe; returns the exit status. */
int train_command_run(const struct command *command, enum objective_kind stage, int argc, char **argv);

#endif
