/* Owns the edit distance behind every "did you mean". No allocation, no state. */
#include "base/nearest.h"

#include <stddef.h>
#include <string.h>

static int least(int a, int b) {
    return a < b ? a : b;
}

int nearest_distance(const char *a, const char *b) {
    int n = (int)strnlen(a, NEAREST_LENGTH_MAX), m = (int)strnlen(b, NEAREST_LENGTH_MAX);
    int d[3][NEAREST_LENGTH_MAX + 1]; /* rows i-2, i-1 and i of the table, turning */
    for (int j = 0; j <= m; j++) d[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *row = d[i % 3], *up = d[(i + 2) % 3], *up2 = d[(i + 1) % 3];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int best = least(up[j] + 1, row[j - 1] + 1);
            best = least(best, up[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) best = least(best, up2[j - 2] + 1);
            row[j] = best;
        }
    }
    return d[n % 3][m];
}

const char *nearest_name(const char *wanted, const char *const *names, int count) {
    const char *best = NULL;
    int longest = (int)strnlen(wanted, NEAREST_LENGTH_MAX);
    int best_distance = longest / 3 > 1 ? longest / 3 : 1;
    for (int i = 0; i < count; i++) {
        if (!names[i]) continue;
        int distance = nearest_distance(wanted, names[i]);
        if (distance < best_distance || (distance == best_distance && !best)) {
            best = names[i];
            best_distance = distance;
        }
    }
    return best;
}
