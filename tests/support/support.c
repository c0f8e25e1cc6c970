/* Owns the helpers that tests share; nothing here is part of the product. */
#include "support/support.h"

#include "base/file.h"

#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

char *support_fixture(const char *name) {
    const char *root = getenv("LOOPLM_SHARED");
    if (!root || !*root) root = LOOPLM_SHARED_DIR;
    char *path = NULL;
    if (asprintf(&path, "%s/fixtures/%s", root, name) < 0) fail_msg("out of memory");
    if (!file_exists(path)) {
        printf("skipped: fixture %s not found\n", path);
        free(path);
        skip();
    }
    return path;
}

char *support_source_path(const char *name) {
    char *path = file_join(LOOPLM_SOURCE_DIR, name);
    assert_non_null(path);
    return path;
}

char *support_make_directory(void) {
    const char *root = getenv("TMPDIR");
    char *path = file_join(root && *root ? root : "/tmp", "looplm-test-XXXXXX");
    assert_non_null(path);
    if (!mkdtemp(path)) fail_msg("%s: no scratch directory could be made", path);
    return path;
}

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *walk) {
    (void)st;
    (void)kind;
    (void)walk;
    return remove(path);
}

void support_remove_directory(char *path) {
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    free(path);
}

char *support_write_file(const char *directory, const char *name, const char *content) {
    char *path = file_join(directory, name);
    assert_non_null(path);
    FILE *stream = fopen(path, "wb");
    assert_non_null(stream);
    assert_int_equal(fwrite(content, 1, strlen(content), stream), strlen(content));
    assert_int_equal(fclose(stream), 0);
    return path;
}

void support_assert_error(const looplm_error *err, looplm_status status, ...) {
    if (err->status != status) {
        fail_msg("status %s, expected %s; message: %s", error_name(err->status), error_name(status), err->message);
    }
    va_list parts;
    va_start(parts, status);
    for (const char *part; (part = va_arg(parts, const char *));) {
        if (!strstr(err->message, part)) {
            va_end(parts);
            fail_msg("the message lacks '%s': %s", part, err->message);
        }
    }
    va_end(parts);
}

int support_shell(const char *command, char **output) {
    char *full = NULL;
    if (asprintf(&full, "( %s ) 2>&1", command) < 0) fail_msg("out of memory");
    FILE *stream = popen(full, "re");
    assert_non_null(stream);
    size_t used = 0, room = 4096;
    char *text = malloc(room);
    assert_non_null(text);
    for (size_t n; (n = fread(text + used, 1, room - used - 1, stream)) > 0;) {
        used += n;
        if (room - used < 2) {
            text = realloc(text, room *= 2);
            assert_non_null(text);
        }
    }
    text[used] = 0;
    free(full);
    int status = pclose(stream);
    if (output) {
        *output = text;
    } else {
        free(text);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
