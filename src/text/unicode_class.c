/* The table of character classes, spread from the ranges of one fixed Unicode version (see unicode_ranges.h), so that
 * ids do not depend on the version of any installed library. */
#include "text/unicode_class.h"

#include "text/unicode_ranges.h"

#include <stdlib.h>
#include <string.h>

static void fill(struct unicode_classes *classes, const struct unicode_range *ranges, size_t n,
                 enum unicode_class kind) {
    for (size_t i = 0; i < n; i++) memset(classes->of + ranges[i].first, kind, ranges[i].last - ranges[i].first + 1);
}

struct unicode_classes *unicode_classes_new(void) {
    struct unicode_classes *classes = calloc(1, sizeof *classes);
    if (!classes) return NULL;
    fill(classes, unicode_letters, sizeof unicode_letters / sizeof *unicode_letters, UNICODE_LETTER);
    fill(classes, unicode_numbers, sizeof unicode_numbers / sizeof *unicode_numbers, UNICODE_NUMBER);
    fill(classes, unicode_spaces, sizeof unicode_spaces / sizeof *unicode_spaces, UNICODE_SPACE);
    return classes;
}
