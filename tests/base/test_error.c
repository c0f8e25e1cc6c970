/* Errors, the log sink, durations: the texts that people read. */
#include "support/support.h"

#include "base/log.h"
#include "base/progress.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void messages_are_set_and_prefixed(void **state) {
    (void)state;
    looplm_error err;
    assert_int_equal(error_set(&err, LOOPLM_IO, "found %d", 3), LOOPLM_IO);
    assert_int_equal(error_prefix(&err, "%s", "a.json"), LOOPLM_IO);
    assert_string_equal(err.message, "a.json: found 3");
    assert_int_equal(error_set(NULL, LOOPLM_LIMIT, "x"), LOOPLM_LIMIT);
    assert_int_not_equal(error_prefix(NULL, "x"), LOOPLM_OK); /* callers return it as their own status */
    char large[3000];
    memset(large, 'm', sizeof large);
    large[2999] = 0;
    error_set(&err, LOOPLM_IO, "%s", large);
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
    error_prefix(&err, "%s", "p");
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
    assert_memory_equal(err.message, "p: m", 4);
    error_prefix(&err, "%s", large);
    assert_in_range(strlen(err.message), sizeof err.message - 8, sizeof err.message - 1);
    assert_memory_equal(err.message, large, 1000);
    error_set(&err, LOOPLM_IO, "short");
    error_prefix(&err, "%.*s", 1018, large);
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
    assert_string_equal(err.message + 1018, ": sho");
}

static void names_are_those_of_the_table(void **state) {
    (void)state;
    assert_string_equal(error_name(LOOPLM_OK), "ok");
    assert_string_equal(error_name(LOOPLM_CANCELLED), "cancelled");
    assert_string_equal(error_name((looplm_status)99), "unknown");
}

static void a_bug_aborts(void **state) {
    (void)state;
    pid_t pid = fork();
    if (pid == 0) {
        fclose(stderr);
        CHECK_EQ(1, 2);
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    assert_true(WIFSIGNALED(status));
    CHECK_EQ(2, 2);
    CHECK_LE(2, 2);
    CHECK_LT(1, 2);
}

struct sunk {
    int count;
    enum log_level level;
    char text[LOG_MESSAGE_MAX];
};

static void sink(void *context, enum log_level level, const char *message) {
    struct sunk *sunk = context;
    sunk->count++;
    sunk->level = level;
    snprintf(sunk->text, sizeof sunk->text, "%s", message);
}

static void the_sink_gets_what_the_level_lets_through(void **state) {
    (void)state;
    struct sunk sunk = {0};
    log_set_sink(sink, &sunk);
    log_info("a %d", 1);
    assert_string_equal(sunk.text, "a 1");
    log_debug("hidden");
    assert_int_equal(sunk.count, 1);
    log_set_level(LOG_LEVEL_ERROR);
    log_warning("hidden");
    log_error("shown");
    assert_int_equal(sunk.count, 2);
    assert_int_equal(sunk.level, LOG_LEVEL_ERROR);
    log_set_level(LOG_LEVEL_INFO);
    log_set_sink(NULL, NULL);
}

static void durations_read_well(void **state) {
    (void)state;
    char text[32];
    assert_string_equal(format_duration(0.04, text), "0.0 s");
    assert_string_equal(format_duration(9.96, text), "10 s");
    assert_string_equal(format_duration(59.6, text), "1 min 00 s");
    assert_string_equal(format_duration(3725, text), "1 h 02 min");
    assert_string_equal(format_duration(NAN, text), "?");
    assert_string_equal(format_duration(INFINITY, text), "?");
}

static void short_jobs_stay_silent(void **state) {
    (void)state;
    struct progress p;
    progress_start(&p, "test", 0, 10);
    for (int i = 0; i < 10; i++) progress_update(&p, i, "loss %g", 1.0);
    assert_false(p.drawn);
    progress_end(&p);
    double a = clock_s();
    assert_true(clock_s() >= a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_are_set_and_prefixed),
        cmocka_unit_test(names_are_those_of_the_table),
        cmocka_unit_test(a_bug_aborts),
        cmocka_unit_test(the_sink_gets_what_the_level_lets_through),
        cmocka_unit_test(durations_read_well),
        cmocka_unit_test(short_jobs_stay_silent),
    };
    return cmocka_run_group_tests_name("base.error", tests, NULL, NULL);
}
