/* Shared by the tests: cmocka with what it needs before it, paths of fixtures, a scratch directory, expected errors. */
#ifndef TESTS_SUPPORT_H
#define TESTS_SUPPORT_H

#include "base/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* The step of a long sweep: 1, but n under sanitizers and emulation (LOOPLM_SLOW), where everything is 5 to 15 times
 * slower and the same code need not see every case. A test thinned so still starts, and still has cases of every kind.
 */
#ifdef LOOPLM_SLOW
#define THIN(n) (n)
#else
#define THIN(n) 1
#endif

/* The path of a fixture of the shared directory (or a directory there), fresh. When it is absent, prints a line that
 * starts with "skipped:" and skips the test: call it first. */
char *support_fixture(const char *name);

/* The path of a file of the repository, fresh. */
char *support_source_path(const char *name);

/* A new empty directory, fresh path; support_remove_directory deletes it with what is inside and frees the path. */
char *support_make_directory(void);
void support_remove_directory(char *path);

/* DIRECTORY/NAME with this content, fresh path. */
char *support_write_file(const char *directory, const char *name, const char *content);

/* Asserts the status of a failed call and that its message holds every given part; ends with NULL. */
void support_assert_error(const looplm_error *err, looplm_status status, ...);

/* Runs a shell command, returns its exit status, its stdout and stderr together in *output (fresh, NUL-terminated). */
int support_shell(const char *command, char **output);

#endif
