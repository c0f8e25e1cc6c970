/* "Did you mean": the name of a list that is nearest to a mistyped one. */
#ifndef BASE_NEAREST_H
#define BASE_NEAREST_H

/* Longer names are compared by their first NEAREST_LENGTH_MAX bytes. */
#define NEAREST_LENGTH_MAX 63

/* Damerau-Levenshtein distance (optimal string alignment: insert, delete, replace, swap neighbours). */
int nearest_distance(const char *a, const char *b);

/* The nearest of names[0..count), or NULL when none is near enough to be what was meant: at most one edit for every
 * three letters, and one for shorter names. NULL entries are passed over. */
const char *nearest_name(const char *wanted, const char *const *names, int count);

#endif
