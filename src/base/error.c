/* Owns the text of errors and the end of a process that met its own bug. Every function here may be called from any
 * thread; an error object belongs to its caller. A message that does not fit is cut, never overrun. */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int(error_set)(looplm_error *err, looplm_status status, const char *format, ...) {
    if (!err) return status;
    err->status = status;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(err->message, sizeof err->message, format, arguments);
    va_end(arguments);
    return status;
}

int error_prefix(looplm_error *err, const char *format, ...) {
    if (!err) return LOOPLM_FORMAT; /* the callers return this: what failed is lost, that it failed must not be */
    char prefix[sizeof err->message];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(prefix, sizeof prefix - 2, format, arguments);
    va_end(arguments);
    size_t size = n < 0 ? 0 : strnlen(prefix, sizeof prefix - 3);
    memcpy(prefix + size, ": ", 2);
    size += 2;
    size_t room = sizeof err->message - 1 - size, rest = strnlen(err->message, room);
    memmove(err->message + size, err->message, rest);
    memcpy(err->message, prefix, size);
    err->message[size + rest] = 0;
    return err->status;
}

const char *error_name(looplm_status status) {
    switch (status) {
#define X(code, name, text) \
    case LOOPLM_##code:     \
        return name;
        LOOPLM_STATUS_MAP(X)
#undef X
    }
    return "unknown";
}

void check_failed(const char *what, long long a, long long b, const char *file, int line) {
    fprintf(stderr, "looplm: bug at %s:%d: %s does not hold: %lld, %lld\n", file, line, what, a, b);
    abort();
}
