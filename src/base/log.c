/* Owns the log sink, one of the two mutable globals of the library (the other is the kernel table). */
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>

static void write_to_stderr(void *context, enum log_level level, const char *message) {
    (void)context;
    static const char *const prefix[] = {"error: ", "warning: ", "", ""};
    fprintf(stderr, "looplm: %s%s\n", prefix[level], message);
}

static log_sink *current_sink = write_to_stderr;
static void *current_context;
static atomic_int current_level = LOG_LEVEL_INFO;

void log_set_sink(log_sink *sink, void *context) {
    current_sink = sink ? sink : write_to_stderr;
    current_context = sink ? context : NULL;
}

void log_set_level(enum log_level level) {
    atomic_store(&current_level, (int)level);
}

__attribute__((format(printf, 2, 0))) static void emit(enum log_level level, const char *format, va_list arguments) {
    if ((int)level > atomic_load(&current_level)) return;
    char message[LOG_MESSAGE_MAX];
    vsnprintf(message, sizeof message, format, arguments);
    current_sink(current_context, level, message);
}

#define DEFINE_LOG(name, level)          \
    void name(const char *format, ...) { \
        va_list arguments;               \
        va_start(arguments, format);     \
        emit(level, format, arguments);  \
        va_end(arguments);               \
    }

DEFINE_LOG(log_error, LOG_LEVEL_ERROR)
DEFINE_LOG(log_warning, LOG_LEVEL_WARNING)
DEFINE_LOG(log_info, LOG_LEVEL_INFO)
DEFINE_LOG(log_debug, LOG_LEVEL_DEBUG)
