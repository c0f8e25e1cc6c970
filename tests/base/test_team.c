/* The team: every worker runs once, barriers order memory, teams of any size on any number of processors, close while
 * idle. */
#include "support/support.h"

#include "base/team.h"

#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 500

struct shared {
    struct team *team;
    int rounds;
    int seen[TEAM_THREADS_MAX];
    int64_t cell[2][TEAM_THREADS_MAX]; /* plain memory: the barriers alone keep it whole */
    int mistakes[TEAM_THREADS_MAX];
};

static void count_myself(void *context, int worker, int workers) {
    struct shared *shared = context;
    if (workers != team_size(shared->team)) shared->mistakes[worker]++;
    shared->seen[worker]++;
}

/* Each round every worker writes its cell and, past the barrier, reads all of them. */
static void exchange(void *context, int worker, int workers) {
    struct shared *shared = context;
    for (int round = 1; round <= shared->rounds; round++) {
        int64_t *cell = shared->cell[round & 1];
        cell[worker] = round * 1000 + worker;
        team_barrier(shared->team);
        for (int i = 0; i < workers; i++) shared->mistakes[worker] += cell[i] != round * 1000 + i;
    }
}

static void every_worker_runs_once(void **state) {
    (void)state;
    for (int size = 1; size <= 9; size++) {
        struct shared shared = {0};
        assert_int_equal(team_open(&shared.team, size, NULL), 0);
        assert_int_equal(team_size(shared.team), size);
        for (int run = 1; run <= 50; run++) team_run(shared.team, count_myself, &shared);
        for (int i = 0; i < size; i++) {
            assert_int_equal(shared.seen[i], 50);
            assert_int_equal(shared.mistakes[i], 0);
        }
        team_close(shared.team);
    }
}

static void barriers_order_memory(void **state) {
    (void)state;
    for (int size = 1; size <= 5; size++) {
        struct shared *shared = calloc(1, sizeof *shared);
        assert_non_null(shared);
        shared->rounds = ROUNDS;
        assert_int_equal(team_open(&shared->team, size, NULL), 0);
        for (int run = 0; run < 3; run++) team_run(shared->team, exchange, shared);
        for (int i = 0; i < size; i++) assert_int_equal(shared->mistakes[i], 0);
        team_close(shared->team);
        free(shared);
    }
}

static void sleepers_wake(void **state) {
    (void)state;
    struct shared shared = {0};
    assert_int_equal(team_open(&shared.team, 4, NULL), 0);
    for (int run = 1; run <= 5; run++) {
        usleep(20000); /* long past the spinning */
        team_run(shared.team, count_myself, &shared);
    }
    for (int i = 0; i < 4; i++) assert_int_equal(shared.seen[i], 5);
    team_close(shared.team);
}

static void sizes_are_checked(void **state) {
    (void)state;
    struct team *team;
    looplm_error err;
    assert_int_equal(team_open(&team, -1, &err), LOOPLM_USAGE);
    assert_int_equal(team_open(&team, TEAM_THREADS_MAX + 1, &err), LOOPLM_USAGE);
    support_assert_error(&err, LOOPLM_USAGE, "257", "256", NULL);
    assert_null(team);
    assert_int_equal(team_open(&team, 0, &err), 0);
    assert_true(team_size(team) >= 1);
    team_close(team);
    team_close(NULL);
}

static void shares_cover_everything_once(void **state) {
    (void)state;
    for (int workers = 1; workers <= 7; workers++) {
        for (int64_t n = 0; n <= 100; n++) {
            for (int64_t unit = 1; unit <= 16; unit *= 4) {
                int64_t next = 0;
                for (int i = 0; i < workers; i++) {
                    int64_t begin, end;
                    team_share(n, unit, i, workers, &begin, &end);
                    assert_int_equal(begin, next);
                    assert_true(end >= begin && (end == n || end % unit == 0));
                    next = end;
                }
                assert_int_equal(next, n);
            }
        }
    }
}

static void a_round_is_timed(void **state) {
    (void)state;
    struct shared shared = {.rounds = 20000};
    assert_int_equal(team_open(&shared.team, 2, NULL), 0);
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    team_run(shared.team, exchange, &shared);
    clock_gettime(CLOCK_MONOTONIC, &b);
    team_close(shared.team);
    double us = ((double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec)) * 1e-3 / shared.rounds;
    print_message("a barrier round of two: %.3f microseconds\n", us);
    assert_int_equal(shared.mistakes[0] + shared.mistakes[1], 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_worker_runs_once),
        cmocka_unit_test(barriers_order_memory),
        cmocka_unit_test(sleepers_wake),
        cmocka_unit_test(sizes_are_checked),
        cmocka_unit_test(shares_cover_everything_once),
        cmocka_unit_test(a_round_is_timed),
    };
    return cmocka_run_group_tests_name("base.team", tests, NULL, NULL);
}
