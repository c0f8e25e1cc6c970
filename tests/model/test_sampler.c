/* The sampler: greedy and ties, the allowed sets against a plain sort, the race's frequencies, and independence of
 * anything but its arguments. */
#include "base/random.h"
#include "model/sampler.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define V 50

static struct sampler_options plain(float temperature, uint64_t seed) {
    return (struct sampler_options){.temperature = temperature, .top_p = 1, .repetition_penalty = 1, .seed = seed};
}

static struct sampler *open_sampler(int32_t vocab) {
    struct sampler *s;
    looplm_error err;
    assert_int_equal(sampler_open(&s, vocab, &err), 0);
    return s;
}

static void random_logits(struct random *random, real *logits, int n, float scale) {
    for (int i = 0; i < n; i++) logits[i] = (real)(random_normal(random) * scale);
}

static void test_greedy(void **state) {
    (void)state;
    struct sampler *s = open_sampler(4);
    struct sampler_options o = plain(0, 1);
    real logits[4] = {1, 3, 3, 2};
    assert_int_equal(sampler_pick(s, &o, logits, 0, NULL, 0), 1); /* a tie goes to the lower id */
    int32_t seen[] = {1, 1};
    o.repetition_penalty = 2;
    assert_int_equal(sampler_pick(s, &o, logits, 0, seen, 2), 2); /* 3 / 2 once, not twice */
    real negative[4] = {-1, -3, -3, -1.5f};
    int32_t zero[] = {0};
    assert_int_equal(sampler_pick(s, &o, negative, 0, zero, 1), 3); /* a negative logit is multiplied */
    sampler_close(s);
}

/* The largest at every place of a vocabulary, alone, behind one as large, and before a NaN; with a penalty (that
 * touches nothing) and without one, which is another way through. */
static void test_greedy_places(void **state) {
    (void)state;
    enum { n = 700 };
    struct sampler *s = open_sampler(n);
    struct random random = {9, 0};
    real logits[n];
    random_logits(&random, logits, n, 1);
    for (int i = 0; i < n; i++) {
        const real was = logits[i], next = logits[(i + 1) % n];
        logits[i] = 20;
        for (int j = 0; j < 3; j++) {
            const int at = (i + 1) % n;
            if (j) logits[at] = j == 1 ? 20 : at ? NAN : next; /* a NaN at the start is test_not_finite's */
            for (int penalty = 1; penalty <= 2; penalty++) {
                struct sampler_options o = plain(0, 1);
                o.repetition_penalty = (float)penalty;
                assert_int_equal(sampler_pick(s, &o, logits, i, NULL, 0), j == 1 && at < i ? at : i);
            }
        }
        logits[i] = was;
        logits[(i + 1) % n] = next;
    }
    sampler_close(s);
}

/* Frequencies of 40,000 positions against softmax(logits / T), by a chi-square test at 5 sigma. */
static void test_frequencies(void **state) {
    (void)state;
    struct sampler *s = open_sampler(8);
    struct random random = {3, 0};
    real logits[8];
    random_logits(&random, logits, 8, 1);
    struct sampler_options o = plain(0.7f, 5);
    int count[8] = {0}, n = 40000;
    for (int i = 0; i < n; i++) count[sampler_pick(s, &o, logits, i, NULL, 0)]++;
    double sum = 0, chi = 0;
    for (int i = 0; i < 8; i++) sum += exp((double)logits[i] / (double)0.7f);
    for (int i = 0; i < 8; i++) {
        double expected = n * exp((double)logits[i] / (double)0.7f) / sum;
        chi += (count[i] - expected) * (count[i] - expected) / expected;
    }
    assert_true(chi < 7 + 5 * sqrt(14)); /* 7 degrees of freedom: mean 7, variance 14 */
    sampler_close(s);
}

static const real *sort_logits;
static int by_logit(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    if (sort_logits[x] != sort_logits[y]) return sort_logits[x] > sort_logits[y] ? -1 : 1;
    return x - y;
}

/* The reference's filters, one after the other on a full sort. */
static void allowed_set(const struct sampler_options *o, const real *logits, int n, bool *allowed) {
    int order[V];
    double p[V], sum = 0, cumulative = 0;
    for (int i = 0; i < n; i++) order[i] = i;
    sort_logits = logits;
    qsort(order, (size_t)n, sizeof *order, by_logit);
    int kept = o->top_k && o->top_k < n ? o->top_k : n;
    for (int i = 0; i < kept; i++)
        sum += p[i] = exp(((double)logits[order[i]] - (double)logits[order[0]]) / (double)o->temperature);
    int nucleus = 0;
    while (nucleus < kept && (nucleus == 0 || cumulative < (double)o->top_p * sum)) cumulative += p[nucleus++];
    if (o->top_p >= 1) nucleus = kept;
    while (nucleus > 1 && p[nucleus - 1] < (double)o->min_p) nucleus--;
    memset(allowed, 0, (size_t)n);
    for (int i = 0; i < nucleus; i++) allowed[order[i]] = true;
}

/* Everything picked is allowed, and over many positions all that is likely enough of the allowed set is picked. */
static void test_filters(void **state) {
    (void)state;
    struct sampler *s = open_sampler(V);
    struct random random = {9, 0};
    for (int round = 0; round < 60; round++) {
        real logits[V];
        bool allowed[V], picked[V] = {0};
        random_logits(&random, logits, V, 0.5f + (float)(round % 4));
        struct sampler_options o = plain(0.5f + (float)(round % 3) * 0.5f, (uint64_t)round);
        if (round % 2) o.top_k = 1 + round % 13;
        if (round % 3) o.top_p = 0.05f + 0.9f * (float)round / 60;
        if (round % 5 == 0) o.min_p = 0.02f;
        allowed_set(&o, logits, V, allowed);
        for (int i = 0; i < 3000; i++) {
            int32_t id = sampler_pick(s, &o, logits, i, NULL, 0);
            assert_true(allowed[id]);
            picked[id] = true;
        }
        double sum = 0;
        for (int i = 0; i < V; i++) sum += allowed[i] ? exp((double)logits[i] / (double)o.temperature) : 0;
        for (int i = 0; i < V; i++)
            if (allowed[i] && exp((double)logits[i] / (double)o.temperature) > 0.01 * sum) assert_true(picked[i]);
    }
    sampler_close(s);
}

/* A wide vocabulary through the windowed sort equals greedy within top-k 1, and the same arguments give the same id
 * whatever came between. */
static void test_pure(void **state) {
    (void)state;
    enum { WIDE = 20000 };
    real *logits = malloc(WIDE * sizeof *logits);
    struct sampler *s = open_sampler(WIDE);
    struct random random = {4, 0};
    random_logits(&random, logits, WIDE, 3);
    struct sampler_options greedy = plain(0, 0), one = plain(1, 17), nucleus = plain(1, 17);
    one.top_k = 1;
    nucleus.top_p = 0.7f;
    int32_t best = sampler_pick(s, &greedy, logits, 5, NULL, 0), drawn = sampler_pick(s, &nucleus, logits, 5, NULL, 0);
    for (int i = 0; i < 5; i++) assert_int_equal(sampler_pick(s, &one, logits, i, NULL, 0), best);
    assert_int_equal(sampler_pick(s, &nucleus, logits, 5, NULL, 0), drawn);
    int differs = 0;
    for (int i = 0; i < 20; i++) differs += sampler_pick(s, &nucleus, logits, i, NULL, 0) != drawn;
    assert_true(differs > 10);
    sampler_close(s);
    free(logits);
}

/* Logits that are no numbers, or beyond all numbers, end in some id. */
static void test_not_finite(void **state) {
    (void)state;
    struct sampler *s = open_sampler(V);
    static const float strange[] = {NAN, INFINITY, -INFINITY};
    for (int first = 0; first < 3; first++)
        for (int rest = 0; rest < 3; rest++) {
            real logits[V];
            for (int i = 0; i < V; i++)
                logits[i] = (real)(i < 2 ? strange[first] : i % 2 ? strange[rest] : (float)i / V);
            struct sampler_options o = plain(1, 3);
            for (int filters = 0; filters < 8; filters++) {
                o.top_k = filters & 1 ? 40 : 0;
                o.top_p = filters & 2 ? 0.9f : 1;
                o.min_p = filters & 4 ? 0.01f : 0;
                int32_t id = sampler_pick(s, &o, logits, filters, NULL, 0);
                assert_in_range(id, 0, V - 1);
            }
        }
    sampler_close(s);
}

static double picks_s(struct sampler *s, const struct sampler_options *o, const real *logits, int n) {
    struct timespec a, b;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
    for (int i = 0; i < n; i++) sampler_pick(s, o, logits, i, NULL, 0);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
    return (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
}

/* min-p as the only filter on a wide vocabulary: the allowed set is right at thresholds in and between the windows, and
 * only its neighbourhood is sorted: a pick costs what one with top-k does, where a sort of everything costs fifty times
 * that. */
static void test_min_p_alone(void **state) {
    (void)state;
    enum { WIDE = 60000 };
    static const float thresholds[] = {0.5f, 0.02f, 0.018f, 1e-3f, 1e-6f};
    real *logits = malloc(WIDE * sizeof *logits);
    struct sampler *s = open_sampler(WIDE);
    struct random random = {8, 0};
    random_logits(&random, logits, WIDE, 2);
    struct sampler_options min_p = plain(1, 3), top_k = plain(1, 3), best = plain(0, 0);
    real max = logits[sampler_pick(s, &best, logits, 0, NULL, 0)];
    for (int i = 0; i < 5; i++) {
        int outside = 0;
        real most = 0;
        min_p.min_p = thresholds[i];
        for (int j = 0; j < 200; j++) {
            real below = max - logits[sampler_pick(s, &min_p, logits, j, NULL, 0)];
            outside += exp(-(double)below) < (double)thresholds[i];
            most = below > most ? below : most;
        }
        assert_int_equal(outside, 0);
        assert_true(i == 0 || most > 2);
    }
    min_p.min_p = 0.05f;
    top_k.top_k = 50;
    double sorted_s = picks_s(s, &top_k, logits, 50), min_p_s = picks_s(s, &min_p, logits, 50);
    if (min_p_s > 5 * sorted_s) fail_msg("50 picks with min-p alone took %g s, with top-k %g s", min_p_s, sorted_s);
    sampler_close(s);
    free(logits);
}

static void test_bad_options(void **state) {
    (void)state;
    looplm_error err;
    struct sampler_options o = plain(-1, 0);
    assert_int_equal(sampler_options_check(&o, &err), LOOPLM_USAGE);
    o = plain(1, 0);
    o.top_p = 0;
    assert_int_equal(sampler_options_check(&o, &err), LOOPLM_USAGE);
    o.top_p = NAN;
    assert_int_equal(sampler_options_check(&o, &err), LOOPLM_USAGE);
    o = plain(1, 0);
    o.top_k = -1;
    assert_int_equal(sampler_options_check(&o, &err), LOOPLM_USAGE);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_greedy),      cmocka_unit_test(test_greedy_places),
                                       cmocka_unit_test(test_frequencies), cmocka_unit_test(test_filters),
                                       cmocka_unit_test(test_pure),        cmocka_unit_test(test_min_p_alone),
                                       cmocka_unit_test(test_bad_options), cmocka_unit_test(test_not_finite)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
