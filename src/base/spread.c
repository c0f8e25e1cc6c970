/* Quartiles (spread.h). */
#include "base/spread.h"

#include <stdlib.h>

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct spread spread_of(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, compare);
    return (struct spread){x[n / 4], x[n / 2], x[3 * n / 4]};
}
