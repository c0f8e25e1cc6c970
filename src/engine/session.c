/* Sessions of the public interface: one sequence on an engine of its own, its options, and what its file says of them
 * (session_file.h). */
#include "engine/api.h"
#include "engine/session_file.h"
#include "engine/trace.h"

#include "base/file.h"
#include "base/json.h"
#include "model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONTEXT_DEFAULT 4096
#define CHUNK_DEFAULT 512

struct looplm_session {
    looplm_model *model;
    struct engine *engine;
    struct sequence *sequence;
    looplm_session_options options; /* with defaults filled in; its strings point into text */
    char exit_text[64], kv_text[16], kv_type_text[8], speculate_text[16];
    struct trace *trace; /* NULL: none */
    bool have_token, not_finite;
    looplm_token token;
};

static void take_prediction(void *context, struct sequence *sequence, const struct prediction *p) {
    looplm_session *s = context;
    if (p->id < 0) return;
    sequence_generate(sequence, false); /* one token a call */
    s->have_token = true;
    s->not_finite |= !isfinite((double)p->lse);
    s->token = (looplm_token){.id = p->id, .loops = p->loops, .logprob = (float)p->logprob};
    memcpy(s->token.exit_probs, p->exit_probs, (size_t)p->loops * sizeof(float));
}

static int parse_name(const char *what, const char *name, const char *const *names, int n, int *index,
                      looplm_error *err) {
    for (int i = 0; i < n; i++)
        if (!strcmp(name, names[i])) {
            *index = i;
            return 0;
        }
    char list[128] = "";
    for (int i = 0; i < n; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "", names[i]);
    return error_set(err, LOOPLM_USAGE, "%s '%s' is unknown; give one of: %s", what, name, list);
}

static int parse_policy(const char *name, enum kv_policy *policy, looplm_error *err) {
    static const char *const names[] = {
#define X(code, text) text,
        KV_POLICY_MAP(X)
#undef X
    };
    int index = 0;
    int status = parse_name("KV policy", name, names, sizeof names / sizeof *names, &index, err);
    if (!status) *policy = (enum kv_policy)index;
    return status;
}

static int parse_kv_type(const char *name, enum weight_type weights, enum kv_type *type, looplm_error *err) {
    static const char *const names[] = {"auto",
#define X(code, text) text,
                                        KV_TYPE_MAP(X)
#undef X
    };
    int index = 0;
    int status = parse_name("KV type", name, names, sizeof names / sizeof *names, &index, err);
    if (!status) *type = index ? (enum kv_type)(index - 1) : kv_type_default(weights);
    return status;
}

static int parse_speculate(const char *name, enum speculate *speculate, looplm_error *err) {
    static const char *const names[] = {"off", "wavefront"};
    int index = 0;
    int status = parse_name("speculation", name, names, 2, &index, err);
    *speculate = index ? SPECULATE_WAVEFRONT : SPECULATE_OFF;
    return status;
}

/* Fills defaults and copies the strings. */
static int take_options(looplm_session *s, const looplm_session_options *given, struct exit_rule *rule,
                        looplm_error *err) {
    const struct model_config *c = &s->model->model->config;
    looplm_session_options *o = &s->options;
    if (given) *o = *given;
    if (!o->kv) o->kv = "last-exited";
    if (!o->kv_type) o->kv_type = "auto";
    if (!o->speculate) o->speculate = "off";
    if (o->top_p == 0) o->top_p = 1;
    if (o->repetition_penalty == 0) o->repetition_penalty = 1;
    if (o->context == 0) o->context = c->max_positions < CONTEXT_DEFAULT ? c->max_positions : CONTEXT_DEFAULT;
    if (o->chunk == 0) o->chunk = CHUNK_DEFAULT;
    if (o->context < 1 || o->context > c->max_positions)
        return error_set(err, LOOPLM_USAGE, "context of %d is outside 1 to the model's %d positions", o->context,
                         c->max_positions);
    if (o->chunk < 1 || o->chunk > 1 << 16)
        return error_set(err, LOOPLM_USAGE, "chunk of %d rows is outside 1 to 65536", o->chunk);
    if (o->chunk > o->context) o->chunk = o->context;
    int status = 0;
    if (o->exit)
        status = exit_rule_parse(rule, o->exit, err);
    else
        *rule = c->exit_gate && c->exit_threshold < 1
                    ? (struct exit_rule){.kind = EXIT_Q, .threshold = (float)c->exit_threshold}
                    : (struct exit_rule){.kind = EXIT_FULL};
    if (status) return status;
    exit_rule_format(rule, s->exit_text, sizeof s->exit_text);
    snprintf(s->kv_text, sizeof s->kv_text, "%s", o->kv);
    snprintf(s->kv_type_text, sizeof s->kv_type_text, "%s", o->kv_type);
    o->exit = s->exit_text;
    o->kv = s->kv_text;
    snprintf(s->speculate_text, sizeof s->speculate_text, "%s", o->speculate);
    o->kv_type = s->kv_type_text;
    o->speculate = s->speculate_text;
    return 0;
}

int looplm_session_open(looplm_session **out, looplm_model *model, const looplm_session_options *given,
                        looplm_error *err) {
    *out = NULL;
    looplm_session *s = calloc(1, sizeof *s);
    if (!s) return error_set(err, LOOPLM_MEMORY, "out of memory");
    s->model = model;
    struct exit_rule rule;
    enum kv_policy policy = KV_POLICY_LAST_EXITED;
    enum kv_type kv_type = KV_F32;
    enum speculate speculate = SPECULATE_OFF;
    int status = take_options(s, given, &rule, err);
    if (!status) status = parse_speculate(s->options.speculate, &speculate, err);
    if (!status) status = parse_policy(s->options.kv, &policy, err);
    if (!status) status = parse_kv_type(s->options.kv_type, model->model->weight_type, &kv_type, err);
    if (!status) {
        int32_t loops = model->model->config.loops;
        struct engine_options engine = {.rows_max = s->options.chunk,
                                        .sequences_max = 1,
                                        .kv_positions = s->options.context,
                                        .planes = rule.kind == EXIT_LOOPS ? rule.loops : loops,
                                        .kv_type = kv_type};
        if (policy == KV_POLICY_FULL) engine.rows_max += ENGINE_BACKLOG_MAX;
        if (speculate != SPECULATE_OFF)
            engine.rows_max += engine.planes; /* a diagonal beside the prompt's last chunk */
        status = engine_open(&s->engine, model->model, &engine, err);
    }
    if (!status) {
        const looplm_session_options *o = &s->options;
        struct sequence_options sequence = {
            .rule = rule,
            .policy = policy,
            .capacity = o->context,
            .adaptive_prompt = o->adaptive_prompt,
            .sampler = {o->temperature, o->top_p, o->min_p, o->top_k, o->repetition_penalty, o->seed},
            .speculate = speculate,
            .on_prediction = take_prediction,
            .context = s};
        status = sequence_open(&s->sequence, s->engine, &sequence, err);
    }
    if (status) {
        looplm_session_close(s);
        return status;
    }
    *out = s;
    return 0;
}

void looplm_session_close(looplm_session *s) {
    if (!s) return;
    if (s->trace) looplm_session_trace(s, NULL, NULL);
    sequence_close(s->sequence);
    engine_close(s->engine);
    free(s);
}

int looplm_session_feed(looplm_session *s, const int32_t *ids, size_t n, looplm_error *err) {
    if (n > INT32_MAX) return error_set(err, LOOPLM_LIMIT, "%zu ids at once are too many", n);
    return sequence_feed(s->sequence, ids, NULL, (int32_t)n, err);
}

const int32_t *looplm_session_ids(const looplm_session *s, size_t *n) {
    *n = (size_t)sequence_length(s->sequence);
    return sequence_ids(s->sequence);
}

static int step(looplm_session *s, bool *ran, looplm_error *err) {
    pthread_mutex_lock(&s->model->running);
    int status = engine_step(s->engine, ran, err);
    pthread_mutex_unlock(&s->model->running);
    return status;
}

int looplm_session_next(looplm_session *s, looplm_token *token, looplm_error *err) {
    if (sequence_length(s->sequence) == 0)
        return error_set(err, LOOPLM_USAGE, "the session is empty; feed it a prompt first");
    if (sequence_length(s->sequence) >= s->options.context)
        return error_set(err, LOOPLM_LIMIT,
                         "context: all %d positions are used; open the session with a longer context",
                         s->options.context);
    s->have_token = false;
    sequence_generate(s->sequence, true);
    bool ran = true;
    int status = 0;
    while (!s->have_token && !status && ran) status = step(s, &ran, err);
    sequence_generate(s->sequence, false);
    if (status) return status;
    if (!s->have_token)
        return error_set(err, LOOPLM_USAGE, "nothing was fed since the last token's row ran; feed the session first");
    if (s->not_finite)
        return error_set(err, LOOPLM_FORMAT,
                         "the logits after %d tokens are not finite: the weights drive the hidden state out of range; "
                         "the model is damaged or its training diverged",
                         sequence_length(s->sequence) - 1);
    *token = s->token;
    return 0;
}

int looplm_session_trace(looplm_session *s, const char *path, looplm_error *err) {
    engine_set_trace(s->engine, NULL);
    int status = trace_close(s->trace, err);
    s->trace = NULL;
    if (!status && path) status = trace_open(&s->trace, path, err);
    engine_set_trace(s->engine, s->trace);
    return status;
}

void looplm_session_stats(const looplm_session *s, looplm_stats *stats) {
    const struct engine_counters *c = engine_counters(s->engine);
    *stats = (looplm_stats){.passes = c->passes,
                            .rows = c->rows,
                            .heads = c->heads,
                            .head_rows = c->head_rows,
                            .dropped_rows = c->dropped_rows,
                            .pass_s = c->pass_s,
                            .head_s = c->head_s,
                            .scheduling_s = c->total_s - c->pass_s - c->head_s};
    for (int i = 0; i < ENGINE_PROPOSALS; i++) {
        stats->proposals[i] = c->proposals[i];
        stats->accepted[i] = c->accepted[i];
    }
}

/* ---- the session file -----------------------------------------------------------------------------------------------
 */

static char *meta_text(const looplm_session *s) {
    const looplm_session_options *o = &s->options;
    char model[20];
    snprintf(model, sizeof model, "%016llx", (unsigned long long)model_fingerprint(s->model->model));
    json_t *meta =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:b, s:f, s:f, s:f, s:i, s:f, s:I, s:b}", "format",
                  "looplm-session-2", "model", model, "exit", o->exit, "kv", o->kv, "kv_type", o->kv_type, "speculate",
                  o->speculate, "context", o->context, "chunk", o->chunk, "adaptive_prompt", o->adaptive_prompt,
                  "temperature", (double)o->temperature, "top_p", (double)o->top_p, "min_p", (double)o->min_p, "top_k",
                  o->top_k, "repetition_penalty", (double)o->repetition_penalty, "seed", (json_int_t)o->seed,
                  "tail_sampled", sequence_tail_sampled(s->sequence));
    char *text = meta ? json_dumps(meta, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(meta);
    return text;
}

int looplm_session_save(looplm_session *s, const char *path, looplm_error *err) {
    pthread_mutex_lock(&s->model->running);
    int status = sequence_settle(s->sequence, err); /* rows in flight finish first; ids that have not begun stay ids */
    pthread_mutex_unlock(&s->model->running);
    if (status) return status;
    char *meta = meta_text(s);
    if (!meta) return error_set(err, LOOPLM_MEMORY, "out of memory");
    status = session_file_write(s->sequence, meta, path, err);
    free(meta);
    return status;
}

struct saved {
    looplm_session_options options;
    char model[20];
    bool tail_sampled;
};

/* The meta tensor's JSON into options; its strings stay owned by *json. */
static int read_meta(const struct safetensors *st, const char *path, struct saved *saved, json_t **json,
                     looplm_error *err) {
    const struct safetensors_entry *meta = safetensors_find(st, "meta");
    if (!meta) return error_set(err, LOOPLM_FORMAT, "%s is not a saved session (no tensor 'meta')", path);
    int status = json_parse((const char *)safetensors_data(st, meta), meta->size, path, json, err);
    if (status) return status;
    struct json_at at = {*json, path, ""};
    looplm_session_options *o = &saved->options;
    double number[4] = {0};
    int64_t integer[4] = {0};
    bool adaptive = false;
    const char *format = NULL, *model = NULL;
    if ((status = json_need_string(at, "format", &format, err)) ||
        (status = json_need_string(at, "model", &model, err)) ||
        (status = json_need_string(at, "exit", &o->exit, err)) || (status = json_need_string(at, "kv", &o->kv, err)) ||
        (status = json_need_string(at, "kv_type", &o->kv_type, err)) ||
        (status = json_need_int(at, "context", 1, INT32_MAX, &integer[0], err)) ||
        (status = json_need_int(at, "chunk", 1, 1 << 16, &integer[1], err)) ||
        (status = json_need_bool(at, "adaptive_prompt", &adaptive, err)) ||
        (status = json_need_double(at, "temperature", 0, 100, &number[0], err)) ||
        (status = json_need_double(at, "top_p", 0, 1, &number[1], err)) ||
        (status = json_need_double(at, "min_p", 0, 1, &number[2], err)) ||
        (status = json_need_int(at, "top_k", 0, INT32_MAX, &integer[2], err)) ||
        (status = json_need_double(at, "repetition_penalty", 0, 100, &number[3], err)) ||
        (status = json_need_int(at, "seed", INT64_MIN, INT64_MAX, &integer[3], err)) ||
        (status = json_need_bool(at, "tail_sampled", &saved->tail_sampled, err)))
        return status;
    if (strcmp(format, "looplm-session-2") != 0)
        return error_set(err, LOOPLM_FORMAT, "%s: session format '%s' is unknown; this build reads looplm-session-2",
                         path, format);
    snprintf(saved->model, sizeof saved->model, "%s", model);
    if (json_object_get(*json, "speculate") && (status = json_need_string(at, "speculate", &o->speculate, err)))
        return status; /* files of 0.1 say nothing of it: off */
    o->context = (int32_t)integer[0];
    o->chunk = (int32_t)integer[1];
    o->adaptive_prompt = adaptive;
    o->temperature = (float)number[0];
    o->top_p = (float)number[1];
    o->min_p = (float)number[2];
    o->top_k = (int32_t)integer[2];
    o->repetition_penalty = (float)number[3];
    o->seed = (uint64_t)integer[3];
    return 0;
}

/* What would be a caller's mistake is a damaged file when it came from one. */
static int blame_file(const char *path, looplm_error *err) {
    if (err) err->status = LOOPLM_FORMAT;
    error_prefix(err, "%s: the file is damaged", path);
    return LOOPLM_FORMAT;
}

int looplm_session_load(looplm_session **out, looplm_model *model, const char *path, looplm_error *err) {
    *out = NULL;
    struct safetensors st;
    if (file_is_directory(path))
        return error_set(err, LOOPLM_IO, "%s: it is a directory, and the file of a saved session was expected", path);
    int status = safetensors_open(&st, path, err);
    if (status) return status;
    struct saved saved = {0};
    json_t *json = NULL;
    looplm_session *s = NULL;
    status = read_meta(&st, path, &saved, &json, err);
    if (!status) {
        char here[20];
        snprintf(here, sizeof here, "%016llx", (unsigned long long)model_fingerprint(model->model));
        if (strcmp(here, saved.model) != 0)
            status = error_set(err, LOOPLM_MISMATCH,
                               "%s was saved with another model, or other weight types (%s, this one is %s); open it "
                               "with the model it belongs to",
                               path, saved.model, here);
    }
    if (!status) status = looplm_session_open(&s, model, &saved.options, err);
    if (!status) status = session_file_restore(s->sequence, &st, path, saved.tail_sampled, err);
    if (status == LOOPLM_USAGE) status = blame_file(path, err);
    json_decref(json);
    safetensors_close(&st);
    if (status) {
        looplm_session_close(s);
        return status;
    }
    *out = s;
    return 0;
}
