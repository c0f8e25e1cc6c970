/* The file of a sequence at rest. It is safetensors: `meta` (UTF-8 JSON of the owner: which model, which options),
 * `ids`, `n_run` (how many of them have run), `depths` (the loops after which an id left, or that were asked for one
 * that has not run) and `kv.R` per loop, the KV blocks of that loop as they lie in memory. */
#ifndef ENGINE_SESSION_FILE_H
#define ENGINE_SESSION_FILE_H

#include "engine/engine.h"
#include "model/safetensors.h"

/* Writes an idle, settled sequence (sequence_settle), atomically. */
int session_file_write(const struct sequence *sequence, const char *meta, const char *path, looplm_error *err);
/* Fills a new sequence of the same model, KV type and policy; sizes and depths are checked against it. */
int session_file_restore(struct sequence *sequence, const struct safetensors *st, const char *path, bool tail_sampled,
                         looplm_error *err);

#endif
