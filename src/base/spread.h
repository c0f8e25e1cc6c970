/* Quartiles of a few measurements. */
#ifndef BASE_SPREAD_H
#define BASE_SPREAD_H

struct spread {
    double low, median, high; /* lower quartile, median, upper quartile */
};
/* Sorts x[n], n > 0. */
struct spread spread_of(double *x, int n);

#endif
