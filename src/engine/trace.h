/* A trace of the engine's passes in Chrome's format (chrome://tracing, Perfetto): one line of the picture is the engine
 * with its passes and head reads, each further one a sequence with the rows it had in every pass. */
#ifndef ENGINE_TRACE_H
#define ENGINE_TRACE_H

#include "base/error.h"

#include <stdint.h>

struct trace;
struct engine;

/* Starts a file, which is renamed into place by trace_close. */
int trace_open(struct trace **trace, const char *path, looplm_error *err);
/* Ends the file; the trace is gone whether or not that works. NULL does nothing. */
int trace_close(struct trace *trace, looplm_error *err);

/* From begin to end (clock_seconds): the pass that the engine has just run; the head reads and predictions after it. */
void trace_pass(struct trace *trace, const struct engine *engine, double begin, double end);
void trace_heads(struct trace *trace, double begin, double end, int64_t heads, int64_t predictions);

#endif
