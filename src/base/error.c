/* Owns the text of errors and the end of a process that met its own bug. Every function here may be called from any
 * thread; an error object belongs to its caller. A message that does not fit is cut, never overrun. */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int error_set(looplm_error *err, looplm_status status, const char *format, ...) {
    if (!err) return status;
    err->status = status;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(err->message, sizeof err->message, format, arguments);
    va_end(arguments);
    return status;
}

int error_prefix(looplm_error *err, const char *format, ...) {
    if (!err) return LOOPLM_OK;
    char old[sizeof err->message];
    memcpy(old, err->message, sizeof old);
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(err->message, sizeof err->message, format, arguments);
    va_end(arguments);
    if (n < 0) n = 0;
    if ((size_t)n < sizeof err->message) snprintf(err->message + n, sizeof err->message - (size_t)n, ": %s", old);
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
