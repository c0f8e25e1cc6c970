/* What wavefront speculation gains on a text, with the proposals that a model really makes: pieces of the text are
 * continued by plain decoding at full depth, by plain decoding under the exit rule, and by speculation under that rule,
 * in turns. The last two must give the same ids.
 *
 *     bench_speculate MODEL TEXT [--exit RULE] [--temperature T] [--weights T] [--kv-type T] [--threads N] [--prompt N]
 *                     [--tokens N] [--pieces N] [--skip N]
 *
 * Proposals that were right of those made, by the loop after which they were made; passes a token; and the gains, of
 * the time from the first token to the last: medians over the pieces, quartiles, and the least. */
#include "base/file.h"
#include "base/progress.h"
#include "base/spread.h"
#include "looplm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PIECES_MAX 1000
#define TOKENS_MAX 4096

struct way {
    const char *name, *exit, *speculate;
    double seconds[PIECES_MAX], all, loops;
    looplm_stats stats; /* sums */
    int32_t ids[TOKENS_MAX];
};

struct bench {
    looplm_model *model;
    looplm_session_options options;
    int prompt, tokens;
};

static void need(int status, const looplm_error *err) {
    if (!status) return;
    fprintf(stderr, "bench_speculate: %s\n", err->message);
    exit(1);
}

static void add_stats(looplm_stats *sum, const looplm_stats *last, const looplm_stats *first) {
    sum->passes += last->passes - first->passes;
    sum->rows += last->rows - first->rows;
    sum->heads += last->heads - first->heads;
    sum->pass_s += last->pass_s - first->pass_s;
    sum->head_s += last->head_s - first->head_s;
    sum->scheduling_s += last->scheduling_s - first->scheduling_s;
    for (int i = 0; i < 3; i++) {
        sum->proposals[i] += last->proposals[i];
        sum->accepted[i] += last->accepted[i];
    }
}

static void decode(const struct bench *b, struct way *way, const int32_t *ids, int piece) {
    looplm_error err = {0};
    looplm_session *s;
    looplm_session_options options = b->options;
    looplm_stats first, last;
    looplm_token token;
    double start = 0;
    options.exit = way->exit;
    options.speculate = way->speculate;
    options.context = b->prompt + b->tokens + 1;
    options.seed = (uint64_t)piece;
    need(looplm_session_open(&s, b->model, &options, &err), &err);
    need(looplm_session_feed(s, ids, (size_t)b->prompt, &err), &err);
    for (int i = 0; i <= b->tokens; i++) {
        need(looplm_session_next(s, &token, &err), &err);
        if (i == 0) {
            looplm_session_stats(s, &first);
            start = clock_s();
            continue;
        }
        way->ids[i - 1] = token.id;
        way->loops += token.loops;
    }
    way->seconds[piece] = clock_s() - start;
    way->all += way->seconds[piece];
    looplm_session_stats(s, &last);
    add_stats(&way->stats, &last, &first);
    looplm_session_close(s);
}

static void print_gain(const char *of, const struct way *way, const struct way *base, int pieces) {
    double ratio[PIECES_MAX], least = 1e9;
    for (int i = 0; i < pieces; i++) {
        ratio[i] = base->seconds[i] / way->seconds[i];
        if (ratio[i] < least) least = ratio[i];
    }
    struct spread r = spread_of(ratio, pieces);
    printf("%s: %.3f (%.3f..%.3f), least %.3f, of all the time %.3f\n", of, r.median, r.low, r.high, least,
           base->all / way->all);
}

static void report(const struct bench *b, const struct way *ways, int pieces) {
    double tokens = (double)b->tokens * pieces;
    const struct way *plain = &ways[1], *speculated = &ways[2];
    const looplm_stats *s = &speculated->stats;
    for (int w = 0; w < 3; w++) {
        const looplm_stats *t = &ways[w].stats;
        printf("%-28s %.2f loops, %.2f passes, %.2f rows, %.2f heads a token; %.1f tokens/s; %.1f us a pass, %.1f a "
               "head, %.1f a token for all else\n",
               ways[w].name, ways[w].loops / tokens, (double)t->passes / tokens, (double)t->rows / tokens,
               (double)t->heads / tokens, tokens / ways[w].all, 1e6 * t->pass_s / (double)t->passes,
               1e6 * t->head_s / (double)t->heads, 1e6 * t->scheduling_s / tokens);
    }
    printf("right proposals:");
    for (int i = 0; i < 3; i++)
        printf("  after loop %d: %lld of %lld", i + 1, (long long)s->accepted[i], (long long)s->proposals[i]);
    printf("\n");
    print_gain("gain over plain decoding", speculated, plain, pieces);
    print_gain("over plain full depth", speculated, &ways[0], pieces);
    print_gain("the exit rule alone over full depth", plain, &ways[0], pieces);
}

int main(int argc, char **argv) {
    const char *rule = "full", *temperature = "0", *weights = "auto", *kv_type = "auto", *threads = "0", *prompt = "64",
               *tokens = "256", *most = "12", *skip = "0";
    const struct {
        const char *name, **value;
    } options[] = {
        {"--exit", &rule},       {"--temperature", &temperature}, {"--weights", &weights}, {"--kv-type", &kv_type},
        {"--threads", &threads}, {"--prompt", &prompt},           {"--tokens", &tokens},   {"--pieces", &most},
        {"--skip", &skip}};
    for (int i = 3; i + 1 < argc; i += 2)
        for (size_t k = 0; k < sizeof options / sizeof *options; k++)
            if (!strcmp(argv[i], options[k].name)) *options[k].value = argv[i + 1];
    struct bench b = {.options = {.kv_type = kv_type, .temperature = (float)atof(temperature)},
                      .prompt = atoi(prompt),
                      .tokens = atoi(tokens)};
    if (argc < 3 || argc % 2 == 0 || b.prompt < 1 || b.tokens < 1 || b.tokens > TOKENS_MAX || atoi(most) > PIECES_MAX) {
        fprintf(stderr, "usage: bench_speculate MODEL TEXT [--exit RULE] [--temperature T] [--weights T] [--kv-type T] "
                        "[--threads N] [--prompt N] [--tokens N] [--pieces N] [--skip N]\n");
        return 2;
    }
    static struct way ways[] = {{.name = "plain, full depth", .exit = "full"},
                                {.name = "plain, the exit rule"},
                                {.name = "speculated, the exit rule", .speculate = "wavefront"}};
    ways[1].exit = ways[2].exit = rule;
    looplm_error err = {0};
    looplm_model_options open = {.weights = weights, .threads = atoi(threads)};
    struct file_map text;
    int32_t *ids;
    size_t n_ids;
    need(looplm_model_open(&b.model, argv[1], &open, &err), &err);
    need(file_map_open(&text, argv[2], &err), &err);
    need(looplm_text_encode(b.model, (const char *)text.data, text.size, &ids, &n_ids, &err), &err);
    int n = 0;
    size_t apart = (size_t)(b.prompt + b.tokens), from = (size_t)atoll(skip);
    for (; n < atoi(most) && from + (size_t)(n + 1) * apart <= n_ids; n++) {
        for (int k = 0; k < 3; k++) decode(&b, &ways[(n + k) % 3], ids + from + (size_t)n * apart, n);
        if (memcmp(ways[1].ids, ways[2].ids, sizeof(int32_t) * (size_t)b.tokens)) {
            fprintf(stderr, "bench_speculate: speculation gives other ids in piece %d\n", n);
            return 1;
        }
    }
    if (n > 0) report(&b, ways, n);
    looplm_free(ids);
    file_map_close(&text);
    looplm_model_close(b.model);
    return 0;
}
