/* looplm: the engine for looped language models.
 *
 * This is the one public header. A model is opened once and may be shared by any number of sessions; a session
 * is one growing sequence of tokens and belongs to the thread that uses it. Every function that can fail takes a
 * `looplm_error *` (it may be NULL), returns 0 (LOOPLM_OK) or the status, and leaves a message that says what was
 * found, what was expected and what to do. Library code never prints to stdout and never exits.
 */
#ifndef LOOPLM_H
#define LOOPLM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* code, name, text: one table makes the enum and looplm_status_name(). */
#define LOOPLM_STATUS_MAP(X)                                                                            \
    X(OK, "ok", "done")                                                                                 \
    X(USAGE, "usage", "wrong usage: an option, a recipe key or an argument")                            \
    X(IO, "io", "a file or device could not be read or written")                                        \
    X(FORMAT, "format", "a file's content is not what its format demands")                              \
    X(MISMATCH, "mismatch", "two things that must belong together do not")                              \
    X(LIMIT, "limit", "a named limit was exceeded")                                                     \
    X(MEMORY, "memory", "memory could not be had")                                                      \
    X(UNSUPPORTED, "unsupported", "a known feature that this build or this combination does not offer") \
    X(BUSY, "busy", "another process holds what is needed")                                             \
    X(CANCELLED, "cancelled", "stopped on request")

typedef enum looplm_status {
#define X(code, name, text) LOOPLM_##code,
    LOOPLM_STATUS_MAP(X)
#undef X
} looplm_status;

typedef struct looplm_error {
    looplm_status status;
    char message[1024];
} looplm_error;

/* The short name of a status ("io"), and the library's version ("0.1.0"). */
const char *looplm_status_name(looplm_status status);
const char *looplm_version(void);

/* ---- models ---------------------------------------------------------------------------------------------------- */

typedef struct looplm_model looplm_model;

/* Zero or NULL means the default everywhere. */
typedef struct looplm_model_options {
    const char *weights; /* "auto" (as stored), "f32", "bf16" */
    const char *device;  /* "auto", "cpu" */
    const char *kernels; /* "scalar", "avx2", "avx512", ...: default the best that the processor supports */
    int threads;         /* 0: all processors online */
    void (*progress)(void *context, int64_t bytes_done, int64_t bytes_total); /* while loading; may be NULL */
    void *progress_context;
} looplm_model_options;

/* What a caller needs to know of an open model. */
typedef struct looplm_model_info {
    const char *family, *weights, *kernels;
    int32_t layers, hidden, vocab, loops, max_positions, threads;
    double exit_threshold;
    int32_t stop_ids[8];
    int32_t n_stop_ids;
    int has_exit_gate, has_tokenizer;
    /* from generation_config.json where it is present; else greedy off: temperature 1, top_p 1, top_k 0 */
    float temperature, top_p;
    int32_t top_k;
} looplm_model_info;

/* Opens a Hugging Face model directory: config.json, model.safetensors (or shards), and, when it is there,
 * tokenizer.json. */
int looplm_model_open(looplm_model **model, const char *directory, const looplm_model_options *options,
                      looplm_error *error);
/* Every session must be closed before. */
void looplm_model_close(looplm_model *model);
void looplm_model_info_get(const looplm_model *model, looplm_model_info *info);

/* ---- text ------------------------------------------------------------------------------------------------------ */

/* Text to ids; special-token strings are read as the reference does. *ids is fresh: free it with looplm_free. */
int looplm_text_encode(const looplm_model *model, const char *text, size_t size, int32_t **ids, size_t *n,
                       looplm_error *error);
/* Ids to UTF-8 text, NUL-terminated; free it with looplm_free. Special tokens are kept as their strings when `special`.
 */
int looplm_text_decode(const looplm_model *model, const int32_t *ids, size_t n, int special, char **text,
                       looplm_error *error);
void looplm_free(void *memory);

/* ---- sessions -------------------------------------------------------------------------------------------------- */

typedef struct looplm_session looplm_session;

typedef struct looplm_session_options {
    const char *exit;    /* "full", "loops=N", "q=Q", "diff=E", "conf=P", "mix", each with ",min=A,max=B"; NULL: as the
                            config says */
    const char *kv;      /* "last-exited" (default), "full", "shared-last", "shared-mean", "shared-first" */
    const char *kv_type; /* "auto" (f32 for f32 weights, else bf16), "f32", "bf16", "q8" */
    const char *speculate;    /* "off" (default), "wavefront": changes no bit of the output */
    int32_t context;          /* positions at most; 0: 4096, or the model's own maximum where that is less */
    int32_t chunk;            /* prompt rows of a pass; 0: 512 */
    int adaptive_prompt;      /* prompt tokens may leave early too (last-exited only); costs quality, see docs */
    float temperature;        /* 0: greedy */
    float top_p, min_p;       /* 0: off */
    int32_t top_k;            /* 0: off */
    float repetition_penalty; /* 0 or 1: off */
    uint64_t seed;
} looplm_session_options;

/* One generated token. */
typedef struct looplm_token {
    int32_t id;
    int32_t loops;        /* loops of the row whose head predicted it, from 1 */
    float logprob;        /* at temperature 1, before any truncation */
    float exit_probs[64]; /* p of each loop it ran, [loops] */
} looplm_token;

int looplm_session_open(looplm_session **session, looplm_model *model, const looplm_session_options *options,
                        looplm_error *error);
void looplm_session_close(looplm_session *session);
/* Appends ids to the sequence: a prompt, or a further turn. They run when the next token is asked for (or by
 * looplm_session_run). */
int looplm_session_feed(looplm_session *session, const int32_t *ids, size_t n, looplm_error *error);
/* Generates one token and appends it. LOOPLM_LIMIT when the context is full, LOOPLM_USAGE when nothing was fed yet. The
 * caller decides when to stop. */
int looplm_session_next(looplm_session *session, looplm_token *token, looplm_error *error);
/* Writes every pass from now on into a trace file in Chrome's format; NULL ends it and puts the file in its place
 * (closing the session does so too, silently). */
int looplm_session_trace(looplm_session *session, const char *path, looplm_error *error);
/* What the session's engine has done so far. */
typedef struct looplm_stats {
    int64_t passes, rows;                /* of the stack */
    int64_t heads, head_rows;            /* reads of the head */
    int64_t proposals[3], accepted[3];   /* speculation, by the loop after which was proposed */
    int64_t dropped_rows;                /* rows run for a proposal that was wrong */
    double pass_s, head_s, scheduling_s; /* in the stack, in the head, in all else (copying planes too) */
} looplm_stats;
void looplm_session_stats(const looplm_session *session, looplm_stats *stats);
/* Ids so far; the pointer is valid until the session changes. */
const int32_t *looplm_session_ids(const looplm_session *session, size_t *n);
/* Saves the sequence (ids, depths, KV planes, options) to a file, atomically; loading it continues with the same bits.
 * The model must be the same one. */
int looplm_session_save(looplm_session *session, const char *path, looplm_error *error);
int looplm_session_load(looplm_session **session, looplm_model *model, const char *path, looplm_error *error);

#ifdef __cplusplus
}
#endif
#endif
