/* The lock of a run directory: one holder, named to the second, free again however the first ends. */
#include "support/support.h"

#include "base/lock.h"

#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static void the_second_is_told_of_the_first(void **state) {
    (void)state;
    char *directory = support_make_directory();
    struct lock first, second;
    looplm_error err;
    assert_int_equal(lock_take(&first, directory, &err), 0);
    assert_int_equal(lock_take(&second, directory, &err), LOOPLM_BUSY);
    char pid[32];
    snprintf(pid, sizeof pid, "process %ld", (long)getpid());
    support_assert_error(&err, LOOPLM_BUSY, directory, pid, NULL);
    lock_release(&second);
    lock_release(&first);
    assert_int_equal(lock_take(&second, directory, &err), 0);
    lock_release(&second);
    support_remove_directory(directory);
}

static void a_killed_holder_leaves_it_free(void **state) {
    (void)state;
    char *directory = support_make_directory();
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    struct lock lock;
    if (pid == 0) {
        if (lock_take(&lock, directory, NULL) || write(ready[1], "x", 1) != 1) _exit(1);
        pause();
        _exit(0);
    }
    char byte;
    assert_int_equal(read(ready[0], &byte, 1), 1);
    looplm_error err;
    assert_int_equal(lock_take(&lock, directory, &err), LOOPLM_BUSY);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    assert_int_equal(lock_take(&lock, directory, &err), 0);
    lock_release(&lock);
    close(ready[0]);
    close(ready[1]);
    support_remove_directory(directory);
}

static void a_missing_directory_is_told(void **state) {
    (void)state;
    struct lock lock;
    looplm_error err;
    assert_int_equal(lock_take(&lock, "/nowhere/at/all", &err), LOOPLM_IO);
    support_assert_error(&err, LOOPLM_IO, "/nowhere/at/all/lock", NULL);
    lock_release(&lock);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_second_is_told_of_the_first),
        cmocka_unit_test(a_killed_holder_leaves_it_free),
        cmocka_unit_test(a_missing_directory_is_told),
    };
    return cmocka_run_group_tests_name("base.lock", tests, NULL, NULL);
}
