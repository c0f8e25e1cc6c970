/* Edit distance against worked examples and a naive recursion, and who is named. */
#include "support/support.h"

#include "base/nearest.h"
#include "base/random.h"

#include <stdio.h>
#include <string.h>

static int least(int a, int b) {
    return a < b ? a : b;
}

/* The definition, without a table. */
static int naive(const char *a, int n, const char *b, int m) {
    if (n == 0 || m == 0) return n + m;
    int best = naive(a, n - 1, b, m - 1) + (a[n - 1] != b[m - 1]);
    best = least(best, naive(a, n - 1, b, m) + 1);
    best = least(best, naive(a, n, b, m - 1) + 1);
    if (n > 1 && m > 1 && a[n - 1] == b[m - 2] && a[n - 2] == b[m - 1])
        best = least(best, naive(a, n - 2, b, m - 2) + 1);
    return best;
}

static void distances_are_right(void **state) {
    (void)state;
    assert_int_equal(nearest_distance("", ""), 0);
    assert_int_equal(nearest_distance("", "abc"), 3);
    assert_int_equal(nearest_distance("kitten", "sitting"), 3);
    assert_int_equal(nearest_distance("seed", "sede"), 1);
    struct random random = {.seed = 1};
    for (int trial = 0; trial < 2000; trial++) {
        char a[7] = "", b[7] = "";
        int n = (int)random_below(&random, 6), m = (int)random_below(&random, 6);
        for (int i = 0; i < n; i++) a[i] = (char)('a' + random_below(&random, 3));
        for (int i = 0; i < m; i++) b[i] = (char)('a' + random_below(&random, 3));
        assert_int_equal(nearest_distance(a, b), naive(a, n, b, m));
    }
}

static void the_nearest_is_named(void **state) {
    (void)state;
    const char *const names[] = {"temperature", NULL, "top-p", "top-k", "seed"};
    assert_string_equal(nearest_name("temprature", names, 5), "temperature");
    assert_string_equal(nearest_name("topp", names, 5), "top-p");
    assert_string_equal(nearest_name("sede", names, 5), "seed");
    assert_null(nearest_name("loops", names, 5));
    assert_null(nearest_name("x", names, 0));
}

static void long_names_are_cut(void **state) {
    (void)state;
    char a[300], b[300];
    memset(a, 'a', sizeof a);
    memset(b, 'b', sizeof b);
    a[299] = b[299] = 0;
    assert_int_equal(nearest_distance(a, b), NEAREST_LENGTH_MAX);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(distances_are_right),
        cmocka_unit_test(the_nearest_is_named),
        cmocka_unit_test(long_names_are_cut),
    };
    return cmocka_run_group_tests_name("base.nearest", tests, NULL, NULL);
}
