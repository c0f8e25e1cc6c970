/* A score (lab/score.h) for people, for programs, and as a figure. */
#ifndef CLI_LAB_REPORT_H
#define CLI_LAB_REPORT_H

#include "lab/score.h"

#include <jansson.h>

/* Tables on stdout: accuracy by level and rule, depth by level, what is saved, and which rule is best. */
void lab_report_print(const struct lab_score *score);
/* The first `count` problems of each level, with the answer and depth of the best rule (of full depth without one). */
void lab_report_show(const struct lab_score *score, const looplm_model *model, int32_t count);
/* One object; a new reference, NULL without memory. model and seed say what was scored. */
json_t *lab_report_json(const struct lab_score *score, const char *model, const struct lab_score_options *options);
/* Accuracy of each number of loops, and mean depth of the best rule and those asked for, against the level; path was
 * checked (gnuplot_check_name). */
int lab_report_plot(const struct lab_score *score, const char *path, looplm_error *err);

#endif
