/* Requests (request.h): their memory and their record. */
#include "engine/request.h"

#include "engine/scheduler.h"

#include <stdlib.h>
#include <string.h>

const char *request_reason_name(enum request_reason reason) {
    static const char *const names[] = {
#define X(code, name) name,
        REQUEST_REASON_MAP(X)
#undef X
    };
    return names[reason];
}

static int check(const struct request_options *o, looplm_error *err) {
    if (o->n_prompt < 1) return error_set(err, LOOPLM_USAGE, "a request needs at least one id of a prompt");
    if (o->tokens_max < 0 || o->tokens_max > INT32_MAX - o->n_prompt)
        return error_set(err, LOOPLM_USAGE, "%d tokens to generate after a prompt of %d are out of range",
                         o->tokens_max, o->n_prompt);
    if (o->n_stops < 0 || o->n_stops > REQUEST_STOPS_MAX)
        return error_set(err, LOOPLM_LIMIT, "%d stop ids are more than the %d that a request may have", o->n_stops,
                         REQUEST_STOPS_MAX);
    return 0;
}

int request_open(struct request **out, const struct request_options *options, looplm_error *err) {
    *out = NULL;
    int status = check(options, err);
    if (status) return status;
    struct request *r = calloc(1, sizeof *r);
    if (!r) return error_set(err, LOOPLM_MEMORY, "out of memory");
    r->options = *options;
    r->capacity = options->n_prompt + options->tokens_max;
    size_t capacity = (size_t)r->capacity, made = (size_t)options->tokens_max + 1;
    r->ids = malloc(capacity * sizeof *r->ids);
    r->targets = calloc(capacity, 1);
    r->logprobs = malloc(made * sizeof *r->logprobs);
    r->loops = malloc(made);
    r->keys = malloc((capacity / KV_BLOCK + 1) * sizeof *r->keys);
    if (options->score) r->scored = calloc(capacity, sizeof *r->scored);
    if (!r->ids || !r->targets || (options->score && !r->scored) || !r->logprobs || !r->loops || !r->keys) {
        error_set(err, LOOPLM_MEMORY, "a request of %d positions could not be had", r->capacity);
        request_close(r);
        return LOOPLM_MEMORY;
    }
    memcpy(r->ids, options->prompt, (size_t)options->n_prompt * sizeof *r->ids);
    if (options->n_stops) memcpy(r->stops, options->stops, (size_t)options->n_stops * sizeof *r->stops);
    r->n_ids = options->n_prompt;
    r->options.prompt = r->ids;
    r->options.stops = r->stops;
    *out = r;
    return 0;
}

void request_close(struct request *r) {
    if (!r) return;
    free(r->ids);
    free(r->targets);
    free(r->logprobs);
    free(r->loops);
    free(r->keys);
    free(r->scored);
    free(r);
}

void request_cancel(struct request *r) {
    atomic_store(&r->cancelled, true);
}
