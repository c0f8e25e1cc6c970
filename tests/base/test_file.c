/* Files: maps, whole reads, and writes that never harm what was there, on a full disk too. */
#include "support/support.h"

#include "base/file.h"

#include <dirent.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static char *directory;

static int make_directory(void **state) {
    (void)state;
    directory = support_make_directory();
    return 0;
}

static int remove_directory(void **state) {
    (void)state;
    support_remove_directory(directory);
    return 0;
}

static int entries_of(const char *path) {
    DIR *d = opendir(path);
    assert_non_null(d);
    int n = 0;
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void assert_content(const char *path, const char *expected) {
    char *data;
    size_t size;
    assert_int_equal(file_read(path, 1 << 20, &data, &size, NULL), 0);
    assert_string_equal(data, expected);
    assert_int_equal(size, strlen(expected));
    free(data);
}

static void maps_and_reads_agree(void **state) {
    (void)state;
    char *path = support_write_file(directory, "a", "hello");
    char *empty = support_write_file(directory, "empty", "");
    struct file_map map;
    assert_int_equal(file_map_open(&map, path, NULL), 0);
    assert_int_equal(map.size, 5);
    assert_memory_equal(map.data, "hello", 5);
    assert_string_equal(map.path, path);
    file_map_release(&map, 0, 5);
    assert_memory_equal(map.data, "hello", 5);
    file_map_release(&map, 9, 5);
    file_map_close(&map);
    assert_int_equal(file_map_open(&map, empty, NULL), 0);
    assert_null(map.data);
    file_map_close(&map);
    assert_content(path, "hello");
    assert_content(empty, "");
    free(path);
    free(empty);
}

static void large_files_are_read_whole(void **state) {
    (void)state;
    size_t n = 300000;
    char *text = malloc(n + 1);
    assert_non_null(text);
    for (size_t i = 0; i < n; i++) text[i] = (char)('a' + i % 23);
    text[n] = 0;
    char *path = support_write_file(directory, "large", text), *data;
    size_t size;
    assert_content(path, text);
    assert_int_equal(file_read(path, n, &data, &size, NULL), 0);
    free(data);
    looplm_error err;
    assert_int_equal(file_read(path, n - 1, &data, &size, &err), LOOPLM_LIMIT);
    support_assert_error(&err, LOOPLM_LIMIT, path, "299999", NULL);
    free(text);
    free(path);
}

static void what_is_wrong_is_said(void **state) {
    (void)state;
    looplm_error err;
    struct file_map map;
    char *data;
    size_t size;
    char *absent = file_join(directory, "absent");
    assert_int_equal(file_map_open(&map, absent, &err), LOOPLM_IO);
    support_assert_error(&err, LOOPLM_IO, absent, "no such file", NULL);
    assert_int_equal(file_map_open(&map, directory, &err), LOOPLM_IO);
    support_assert_error(&err, LOOPLM_IO, directory, "directory", NULL);
    assert_int_equal(file_map_open(&map, "/dev/null", &err), LOOPLM_IO);
    support_assert_error(&err, LOOPLM_IO, "/dev/null", "regular", NULL);
    assert_int_equal(file_read(directory, 10, &data, &size, &err), LOOPLM_IO);
    assert_null(data);
    free(absent);
}

static void a_write_replaces_only_at_commit(void **state) {
    (void)state;
    char *path = support_write_file(directory, "target", "old");
    int before = entries_of(directory);
    struct file_writer w;
    assert_int_equal(file_writer_open(&w, path, NULL), 0);
    file_writer_write(&w, "new ", 4);
    file_writer_printf(&w, "%d", 42);
    assert_content(path, "old");
    assert_int_equal(file_writer_commit(&w, NULL), 0);
    assert_content(path, "new 42");
    assert_int_equal(file_writer_open(&w, path, NULL), 0);
    file_writer_write(&w, "lost", 4);
    file_writer_abort(&w);
    assert_content(path, "new 42");
    assert_int_equal(entries_of(directory), before);
    free(path);
}

static void fill_writer(struct file_writer *w) {
    static const char block[4096] = {1};
    for (int i = 0; i < 512; i++) file_writer_write(w, block, sizeof block);
}

/* A limit on the size of files fails a write in its middle, as a full disk does, and needs no privileges. */
static void a_failed_write_keeps_the_old_file(void **state) {
    (void)state;
    char *path = support_write_file(directory, "kept", "precious");
    int before = entries_of(directory);
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 64 * 1024;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    struct file_writer w;
    looplm_error err;
    assert_int_equal(file_writer_open(&w, path, NULL), 0);
    fill_writer(&w);
    int status = file_writer_commit(&w, &err);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(status, LOOPLM_IO);
    support_assert_error(&err, LOOPLM_IO, path, "large", "unchanged", NULL);
    assert_content(path, "precious");
    assert_int_equal(entries_of(directory), before);
    free(path);
}

/* The real thing where we may mount: a tmpfs of 64 KiB. */
static void a_full_disk_keeps_the_old_file(void **state) {
    (void)state;
    char *disk = file_join(directory, "disk");
    assert_int_equal(file_make_directories(disk, NULL), 0);
    if (mount("tmpfs", disk, "tmpfs", 0, "size=64k") != 0) {
        printf("skipped: a small file system cannot be mounted here\n");
        free(disk);
        skip();
    }
    char *path = support_write_file(disk, "kept", "precious");
    struct file_writer w;
    looplm_error err = {0};
    int opened = file_writer_open(&w, path, NULL);
    if (!opened) fill_writer(&w);
    int status = opened ? opened : file_writer_commit(&w, &err);
    char *data = NULL;
    size_t size;
    int read = file_read(path, 100, &data, &size, NULL), left = entries_of(disk);
    umount(disk);
    assert_int_equal(opened, 0);
    assert_int_equal(status, LOOPLM_IO);
    support_assert_error(&err, LOOPLM_IO, "no space left", "unchanged", NULL);
    assert_int_equal(read, 0);
    assert_string_equal(data, "precious");
    assert_int_equal(left, 1);
    free(data);
    free(path);
    free(disk);
}

/* Killed at any moment, a writer leaves the old content or the new. */
static void a_killed_writer_leaves_a_whole_file(void **state) {
    (void)state;
    char *path = support_write_file(directory, "killed", "0000000000000000");
    for (int trial = 0; trial < 15; trial++) {
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            for (char c = 'a';; c = c == 'z' ? 'a' : (char)(c + 1)) {
                struct file_writer w;
                if (file_writer_open(&w, path, NULL)) _exit(1);
                for (int i = 0; i < 16; i++) file_writer_write(&w, &c, 1);
                if (file_writer_commit(&w, NULL)) _exit(1);
            }
        }
        usleep((useconds_t)(300 + 700 * trial));
        kill(pid, SIGKILL);
        int status;
        waitpid(pid, &status, 0);
        assert_true(WIFSIGNALED(status));
        char *data;
        size_t size;
        assert_int_equal(file_read(path, 100, &data, &size, NULL), 0);
        assert_int_equal(size, 16);
        for (int i = 1; i < 16; i++) assert_int_equal(data[i], data[0]);
        free(data);
    }
    free(path);
}

static void directories_are_made(void **state) {
    (void)state;
    looplm_error err;
    char *deep = file_join(directory, "x/y//z/"), *file = support_write_file(directory, "file", "");
    assert_int_equal(file_make_directories(deep, NULL), 0);
    assert_int_equal(file_make_directories(deep, NULL), 0);
    assert_true(file_is_directory(deep));
    assert_false(file_is_directory(file));
    assert_true(file_exists(file));
    char *below = file_join(file, "a");
    assert_int_equal(file_make_directories(below, &err), LOOPLM_IO);
    support_assert_error(&err, LOOPLM_IO, "a file is there", NULL);
    char *joined = file_join("a/", "b");
    assert_string_equal(joined, "a/b");
    free(joined);
    free(deep);
    free(file);
    free(below);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(maps_and_reads_agree),
        cmocka_unit_test(large_files_are_read_whole),
        cmocka_unit_test(what_is_wrong_is_said),
        cmocka_unit_test(a_write_replaces_only_at_commit),
        cmocka_unit_test(a_failed_write_keeps_the_old_file),
        cmocka_unit_test(a_full_disk_keeps_the_old_file),
        cmocka_unit_test(a_killed_writer_leaves_a_whole_file),
        cmocka_unit_test(directories_are_made),
    };
    return cmocka_run_group_tests_name("base.file", tests, make_directory, remove_directory);
}
