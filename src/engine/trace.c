/* The trace file (trace.h): Chrome's "Trace Event Format", complete events ("ph":"X") with times in microseconds. */
#include "engine/trace.h"

#include "base/clock.h"
#include "base/file.h"
#include "engine/engine_internal.h"

#include <inttypes.h>
#include <stdlib.h>

struct trace {
    struct file_writer file;
    double start;
    int64_t passes;
    int32_t named; /* sequences up to this number have a name in the file */
};

int trace_open(struct trace **out, const char *path, looplm_error *err) {
    struct trace *t = calloc(1, sizeof *t);
    *out = NULL;
    if (!t) return error_set(err, LOOPLM_MEMORY, "out of memory");
    int status = file_writer_open(&t->file, path, err);
    if (status) {
        free(t);
        return status;
    }
    t->start = clock_seconds();
    file_writer_printf(&t->file,
                       "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n"
                       "{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":1,\"args\":{\"name\":\"looplm\"}},\n"
                       "{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":1,\"tid\":0,\"args\":{\"name\":\"engine\"}}");
    *out = t;
    return 0;
}

int trace_close(struct trace *t, looplm_error *err) {
    if (!t) return 0;
    file_writer_printf(&t->file, "\n]}\n");
    int status = file_writer_commit(&t->file, err);
    free(t);
    return status;
}

static void name_sequences(struct trace *t, int32_t number) {
    while (t->named < number) {
        t->named++;
        file_writer_printf(
            &t->file,
            ",\n{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":1,\"tid\":%d,\"args\":{\"name\":\"sequence %d\"}}",
            t->named, t->named);
    }
}

/* The head of an event; its arguments follow, and "}}". */
static void event(struct trace *t, int32_t line, double begin, double end) {
    file_writer_printf(&t->file, ",\n{\"ph\":\"X\",\"pid\":1,\"tid\":%d,\"ts\":%.1f,\"dur\":%.1f,", line,
                       1e6 * (begin - t->start), 1e6 * (end - begin));
}

void trace_pass(struct trace *t, const struct engine *e, double begin, double end) {
    event(t, 0, begin, end);
    file_writer_printf(&t->file, "\"name\":\"pass of %d\",\"args\":{\"pass\":%" PRId64 ",\"rows\":%d,\"runs\":%d}}",
                       e->n_rows, t->passes++, e->n_rows, e->n_runs);
    for (int32_t i = 0; i < e->n_runs; i++) {
        const struct run *run = &e->runs[i];
        const struct sequence *s = e->rows[run->row].sequence;
        name_sequences(t, s->options.number);
        event(t, s->options.number, begin, end);
        file_writer_printf(&t->file,
                           "\"name\":\"%d%s loop %d\",\"args\":{\"position\":%d,\"rows\":%d,\"loop\":%d,\"guess\":%s}}",
                           run->first, run->count > 1 ? "+" : "", run->loop + 1, run->first, run->count, run->loop + 1,
                           run->first >= s->n_ids ? "true" : "false");
    }
}

void trace_heads(struct trace *t, double begin, double end, int64_t heads, int64_t predictions) {
    event(t, 0, begin, end);
    file_writer_printf(
        &t->file, "\"name\":\"heads of %" PRId64 "\",\"args\":{\"heads\":%" PRId64 ",\"predictions\":%" PRId64 "}}",
        heads, heads, predictions);
}
