/* What a KV policy costs in quality: pieces of a text are continued by the text itself. The first `prompt` tokens of a
 * piece are fed, the others run one by one as if they had been generated, each leaving by the exit rule, and every
 * row's prediction is scored against the token that follows.
 *
 *     bench_policy MODEL TEXT [--exit RULE] [--prompt N] [--tokens N] [--pieces N] [--kv-type f32|bf16|q8]
 *
 * Per policy: cross-entropy in nats, KL divergence of its predictions from those of `full`, share of the same likeliest
 * token, mean loops. */
#include "base/file.h"
#include "engine/api.h"
#include "engine/engine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {
#define X(code, name) name,
    KV_POLICY_MAP(X)
#undef X
};
#define POLICIES ((int)(sizeof names / sizeof *names))

struct sums {
    double ce, divergence, same, loops;
    int64_t n;
};

struct scoring {
    const int32_t *ids;
    int32_t prompt, n, vocab;
    float *reference; /* [n, V] log-probabilities under full; written by it, read by the others */
    bool full;
    struct sums *sums;
};

static int32_t likeliest(const float *logprob, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (logprob[i] > logprob[best]) best = i;
    return best;
}

static void take(void *context, struct sequence *sequence, const struct prediction *p) {
    struct scoring *s = context;
    (void)sequence;
    if (p->position < s->prompt || p->position + 1 >= s->n) return;
    float *reference = s->reference + (size_t)p->position * (size_t)s->vocab;
    float *own = s->full ? reference : s->reference + (size_t)s->n * (size_t)s->vocab;
    double divergence = 0;
    for (int32_t i = 0; i < s->vocab; i++) {
        own[i] = (float)(p->logits[i] - p->lse);
        divergence += exp((double)reference[i]) * ((double)reference[i] - (double)own[i]);
    }
    s->sums->ce -= (double)own[s->ids[p->position + 1]];
    s->sums->divergence += divergence;
    s->sums->same += likeliest(own, s->vocab) == likeliest(reference, s->vocab);
    s->sums->loops += p->loops;
    s->sums->n++;
}

static void need(int status, const looplm_error *err) {
    if (!status) return;
    fprintf(stderr, "bench_policy: %s\n", err->message);
    exit(1);
}

static void score_piece(struct engine *engine, const struct exit_rule *rule, enum kv_policy policy,
                        struct scoring *scoring) {
    looplm_error err = {0};
    struct sequence *s;
    bool ran = true;
    uint8_t *by_rule = calloc((size_t)scoring->n, 1);
    struct sequence_options options = {.rule = *rule,
                                       .policy = policy,
                                       .capacity = scoring->n,
                                       .sampler = {0, 1, 0, 0, 1, 0},
                                       .score = true,
                                       .on_prediction = take,
                                       .context = scoring};
    scoring->full = policy == KV_POLICY_FULL;
    need(sequence_open(&s, engine, &options, &err), &err);
    need(sequence_feed(s, scoring->ids, NULL, scoring->prompt, &err), &err);
    need(sequence_replay(s, scoring->ids + scoring->prompt, by_rule, scoring->n - scoring->prompt, &err), &err);
    while (ran) need(engine_step(engine, &ran, &err), &err);
    sequence_close(s);
    free(by_rule);
}

int main(int argc, char **argv) {
    const char *rule_text = "full", *prompt = "64", *tokens = "128", *pieces = "32", *kv_type = "bf16";
    const struct {
        const char *name, **value;
    } options[] = {{"--exit", &rule_text},
                   {"--prompt", &prompt},
                   {"--tokens", &tokens},
                   {"--pieces", &pieces},
                   {"--kv-type", &kv_type}};
    for (int i = 3; i + 1 < argc; i += 2)
        for (size_t k = 0; k < sizeof options / sizeof *options; k++)
            if (!strcmp(argv[i], options[k].name)) *options[k].value = argv[i + 1];
    struct scoring scoring = {.prompt = atoi(prompt), .n = atoi(prompt) + atoi(tokens)};
    if (argc < 3 || argc % 2 == 0 || scoring.prompt < 1 || scoring.n <= scoring.prompt + 1) {
        fprintf(stderr, "usage: bench_policy MODEL TEXT [--exit RULE] [--prompt N] [--tokens N] [--pieces N] "
                        "[--kv-type f32|bf16|q8]\n");
        return 2;
    }
    looplm_error err = {0};
    looplm_model *model;
    struct exit_rule rule;
    struct engine *engine;
    struct file_map text;
    int32_t *ids;
    size_t n_ids;
    struct sums sums[POLICIES] = {{0}};
    need(looplm_model_open(&model, argv[1], NULL, &err), &err);
    need(exit_rule_parse(&rule, rule_text, &err), &err);
    need(file_map_open(&text, argv[2], &err), &err);
    need(looplm_text_encode(model, (const char *)text.data, text.size, &ids, &n_ids, &err), &err);
    struct engine_options engine_options = {.rows_max = 64 + ENGINE_BACKLOG_MAX,
                                            .sequences_max = 1,
                                            .kv_positions = scoring.n,
                                            .planes = model->info.loops,
                                            .kv_type = !strcmp(kv_type, "f32")  ? KV_F32
                                                       : !strcmp(kv_type, "q8") ? KV_Q8
                                                                                : KV_BF16};
    need(engine_open(&engine, model->model, &engine_options, &err), &err);
    scoring.vocab = model->info.vocab;
    scoring.reference = malloc(sizeof(float) * (size_t)(scoring.n + 1) * (size_t)scoring.vocab);
    if (!scoring.reference) return 1;
    for (int32_t i = 0; i < atoi(pieces) && (size_t)(i + 1) * (size_t)scoring.n <= n_ids; i++) {
        scoring.ids = ids + (size_t)i * (size_t)scoring.n;
        static const enum kv_policy order[] = {KV_POLICY_FULL, KV_POLICY_LAST_EXITED, KV_POLICY_SHARED_LAST,
                                               KV_POLICY_SHARED_MEAN, KV_POLICY_SHARED_FIRST};
        for (int p = 0; p < POLICIES; p++) {
            scoring.sums = &sums[order[p]];
            score_piece(engine, &rule, order[p], &scoring);
        }
    }
    for (int p = 0; p < POLICIES; p++)
        printf("%-13s cross-entropy %.4f, KL from full %.5f, same token %.1f %%, %.2f loops, %lld tokens\n", names[p],
               sums[p].ce / (double)sums[p].n, sums[p].divergence / (double)sums[p].n,
               100 * sums[p].same / (double)sums[p].n, sums[p].loops / (double)sums[p].n, (long long)sums[p].n);
    free(scoring.reference);
    looplm_free(ids);
    file_map_close(&text);
    engine_close(engine);
    looplm_model_close(model);
    return 0;
}
