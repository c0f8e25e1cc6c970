/* Talk for people: one line a message, to stderr unless a program that embeds the library says otherwise. */
#ifndef BASE_LOG_H
#define BASE_LOG_H

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

#define LOG_MESSAGE_MAX 2048

/* Gets each message whole, without a newline; may be called by any thread. */
typedef void log_sink(void *context, enum log_level level, const char *message);

/* NULL restores the sink that writes "looplm: MESSAGE" to stderr. Set it before threads start. */
void log_set_sink(log_sink *sink, void *context);
/* Messages above this level are dropped; at first LOG_LEVEL_INFO. */
void log_set_level(enum log_level level);

__attribute__((format(printf, 1, 2))) void log_error(const char *format, ...);
__attribute__((format(printf, 1, 2))) void log_warning(const char *format, ...);
__attribute__((format(printf, 1, 2))) void log_info(const char *format, ...);
__attribute__((format(printf, 1, 2))) void log_debug(const char *format, ...);

#endif
