/* Errors: how a function says what went wrong. The status codes are the public ones (looplm.h). */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include "looplm.h"

#include <assert.h>

/* Fills err (which may be NULL) and returns status, so that a caller can write `return error_set(err, ...)`. The
 * message names file, found, expected and remedy, without a final full stop or newline. */
__attribute__((format(printf, 3, 4))) int error_set(looplm_error *err, looplm_status status, const char *format, ...);

/* The static analyzer does not see into error_set; this tells it that what is returned is the status, never 0. */
#ifdef __clang_analyzer__
#define error_set(err, status, ...) ((error_set)(err, status, __VA_ARGS__), (int)(status))
#endif

/* Puts "context: " before a message that is already set (for instance a file name); returns err's status, or
 * LOOPLM_FORMAT when err is NULL: never success. */
__attribute__((format(printf, 2, 3))) int error_prefix(looplm_error *err, const char *format, ...);

/* "io", "format", ... */
const char *error_name(looplm_status status);

/* A bug, not the world: prints both values and aborts. Stays on in release builds. */
#define CHECK_EQ(a, b) \
    check_failed_if((long long)(a) != (long long)(b), #a " == " #b, (long long)(a), (long long)(b), __FILE__, __LINE__)
#define CHECK_LE(a, b) \
    check_failed_if((long long)(a) > (long long)(b), #a " <= " #b, (long long)(a), (long long)(b), __FILE__, __LINE__)
#define CHECK_LT(a, b) \
    check_failed_if((long long)(a) >= (long long)(b), #a " < " #b, (long long)(a), (long long)(b), __FILE__, __LINE__)
void check_failed(const char *what, long long a, long long b, const char *file, int line) __attribute__((noreturn));
static inline void check_failed_if(int failed, const char *what, long long a, long long b, const char *file, int line) {
    if (failed) check_failed(what, a, b, file, line);
}

#endif
