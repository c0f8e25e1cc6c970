/* What a KV policy, or a prompt whose tokens leave early, costs in quality: pieces of a text are continued by the text
 * itself. The first `prompt` tokens of a piece are fed, the others run one by one as if they had been generated, each
 * leaving by the exit rule, and every row's prediction is scored against the token that follows.
 *
 *     bench_policy MODEL TEXT [--exit RULE] [--prompt N] [--tokens N] [--pieces N] [--kv-type f32|bf16|q8]
 *
 * For each way: cross-entropy in nats, KL divergence of its predictions from those of `full`, share of the same
 * likeliest token, mean loops. Then the prompts alone, whole and adaptive by turns: loops a token, and the ratio of
 * their times. */
#include "base/file.h"
#include "base/progress.h"
#include "base/spread.h"
#include "engine/api.h"
#include "engine/engine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PIECES_MAX 1000

/* The first is the reference of the others. */
static const struct way {
    const char *name;
    enum kv_policy policy;
    bool adaptive_prompt;
} ways[] = {{"full", KV_POLICY_FULL, false},
            {"last-exited", KV_POLICY_LAST_EXITED, false},
            {"last-exited, adaptive prompt", KV_POLICY_LAST_EXITED, true},
            {"shared-last", KV_POLICY_SHARED_LAST, false},
            {"shared-mean", KV_POLICY_SHARED_MEAN, false},
            {"shared-first", KV_POLICY_SHARED_FIRST, false}};
#define WAYS ((int)(sizeof ways / sizeof *ways))

struct sums {
    double ce, divergence, same, loops;
    int64_t n;
};

struct scoring {
    struct engine *engine;
    struct exit_rule rule;
    const int32_t *ids;
    int32_t prompt, n, vocab;
    float *reference; /* [n, V] log-probabilities of the first way, then room for a row of another */
    bool is_reference;
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
    float *own = s->is_reference ? reference : s->reference + (size_t)s->n * (size_t)s->vocab;
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

static struct sequence *open_piece(struct scoring *scoring, const struct way *way, bool score) {
    looplm_error err = {0};
    struct sequence *s;
    struct sequence_options options = {.rule = scoring->rule,
                                       .policy = way->policy,
                                       .adaptive_prompt = way->adaptive_prompt,
                                       .capacity = scoring->n,
                                       .sampler = {0, 1, 0, 0, 1, 0},
                                       .score = score,
                                       .on_prediction = take,
                                       .context = scoring};
    need(sequence_open(&s, scoring->engine, &options, &err), &err);
    need(sequence_feed(s, scoring->ids, NULL, scoring->prompt, &err), &err);
    return s;
}

static void run(struct engine *engine) {
    looplm_error err = {0};
    for (bool ran = true; ran;) need(engine_step(engine, &ran, &err), &err);
}

static void score_piece(struct scoring *scoring, int way) {
    looplm_error err = {0};
    uint8_t *by_rule = calloc((size_t)scoring->n, 1);
    struct sequence *s = open_piece(scoring, &ways[way], true);
    scoring->is_reference = way == 0;
    need(sequence_replay(s, scoring->ids + scoring->prompt, by_rule, scoring->n - scoring->prompt, &err), &err);
    run(scoring->engine);
    sequence_close(s);
    free(by_rule);
}

/* Seconds of the prompt by itself; *loops is what it ran for a token. */
static double time_prompt(struct scoring *scoring, const struct way *way, double *loops) {
    struct sequence *s = open_piece(scoring, way, false);
    double start = clock_s();
    run(scoring->engine);
    double seconds = clock_s() - start;
    *loops += (double)sequence_counters(s)->rows / scoring->prompt;
    sequence_close(s);
    return seconds;
}

static double compare_prompts(struct scoring *scoring, int piece, double loops[2]) {
    double seconds[2];
    for (int i = 0; i < 2; i++) {
        int adaptive = (piece + i) % 2;
        seconds[adaptive] = time_prompt(scoring, &ways[1 + adaptive], &loops[adaptive]);
    }
    return seconds[1] / seconds[0];
}

static void report(const struct sums *sums, double *ratios, int pieces, const double loops[2]) {
    for (int w = 0; w < WAYS; w++) {
        double n = (double)sums[w].n;
        printf("%-28s cross-entropy %.4f, KL from full %.5f, same token %.1f %%, %.2f loops, %.0f tokens\n",
               ways[w].name, sums[w].ce / n, sums[w].divergence / n, 100 * sums[w].same / n, sums[w].loops / n, n);
    }
    struct spread r = spread_of(ratios, pieces);
    printf("prompts: %.2f loops a token, adaptive %.2f; time %.3fx (%.3f..%.3f)\n", loops[0] / pieces,
           loops[1] / pieces, r.median, r.low, r.high);
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
    struct file_map text;
    int32_t *ids;
    size_t n_ids;
    struct sums sums[WAYS] = {{0}};
    double ratios[PIECES_MAX], loops[2] = {0};
    need(looplm_model_open(&model, argv[1], NULL, &err), &err);
    need(exit_rule_parse(&scoring.rule, rule_text, &err), &err);
    need(file_map_open(&text, argv[2], &err), &err);
    need(looplm_text_encode(model, (const char *)text.data, text.size, &ids, &n_ids, &err), &err);
    struct engine_options engine_options = {.rows_max = 512 + ENGINE_BACKLOG_MAX,
                                            .sequences_max = 1,
                                            .kv_positions = scoring.n,
                                            .planes = model->info.loops,
                                            .kv_type = !strcmp(kv_type, "f32")  ? KV_F32
                                                       : !strcmp(kv_type, "q8") ? KV_Q8
                                                                                : KV_BF16};
    need(engine_open(&scoring.engine, model->model, &engine_options, &err), &err);
    scoring.vocab = model->info.vocab;
    scoring.reference = malloc(sizeof(float) * (size_t)(scoring.n + 1) * (size_t)scoring.vocab);
    if (!scoring.reference) return 1;
    int n = 0;
    for (; n < atoi(pieces) && n < PIECES_MAX && (size_t)(n + 1) * (size_t)scoring.n <= n_ids; n++) {
        scoring.ids = ids + (size_t)n * (size_t)scoring.n;
        for (int w = 0; w < WAYS; w++) {
            scoring.sums = &sums[w];
            score_piece(&scoring, w);
        }
        ratios[n] = compare_prompts(&scoring, n, loops);
    }
    if (n > 0) report(sums, ratios, n, loops);
    free(scoring.reference);
    looplm_free(ids);
    file_map_close(&text);
    engine_close(scoring.engine);
    looplm_model_close(model);
    return 0;
}
