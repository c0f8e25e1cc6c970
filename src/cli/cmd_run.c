/* looplm run: generate from a prompt, streaming, with the depth of every token. */
#include "base/file.h"
#include "base/progress.h"
#include "cli/generate_options.h"
#include "engine/api.h"
#include "text/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROMPT_MAX ((size_t)256 << 20)
#define LOOPS_MAX 64

#define RUN_OPTIONS(X)                                                                                          \
    X(ARGUMENT, model, "MODEL", "a model directory")                                                            \
    X(TEXT, prompt, "prompt", 'p', NULL, "TEXT", "the prompt; - reads standard input")                          \
    GENERATE_OPTIONS(X)                                                                                         \
    X(FLAG, show_depth, "show-depth", 0,                                                                        \
      "mark each token by the loops it used: in colour on a terminal, else by a small digit")                   \
    X(FLAG, json, "json", 0, "print one JSON object instead of the text")                                       \
    X(TEXT, save, "save", 0, NULL, "FILE", "save the session when done")                                        \
    X(TEXT, trace, "trace", 0, NULL, "FILE", "write every pass and its rows, for chrome://tracing or Perfetto") \
    X(TEXT, resume, "resume", 0, NULL, "FILE",                                                                  \
      "continue a saved session; its own exit rule, KV and sampling options apply")
OPTIONS_DEFINE(run_options, RUN_OPTIONS)

extern const struct command command_run;

struct generation {
    const struct run_options *options;
    looplm_model *model;
    looplm_session *session;
    looplm_model_info info;
    struct detokenizer detokenizer;
    json_t *tokens; /* with --json */
    char *text;     /* all that was generated */
    size_t size, shown;
    int32_t prompt_tokens, generated;
    int64_t histogram[LOOPS_MAX + 1], loops;
    const char *finish_reason;
    double load_s, prefill_s, decode_s;
};

static const char *choice(const char *const *names, int index) {
    return names[index];
}

static int open_session(struct generation *g, int32_t prompt_tokens, looplm_error *err) {
    static const char *const kv[] = {"last-exited", "full", "shared-last", "shared-mean", "shared-first"};
    static const char *const kv_types[] = {"auto", "f32", "bf16", "q8"};
    static const char *const speculate[] = {"off", "wavefront"};
    const struct run_options *o = g->options;
    if (o->resume) return looplm_session_load(&g->session, g->model, o->resume, err);
    int64_t context = o->context;
    if (!context) {
        context = prompt_tokens + o->tokens > 4096 ? prompt_tokens + o->tokens : 4096;
        if (context > g->info.max_positions) context = g->info.max_positions;
    }
    looplm_session_options options = {.exit = o->exit,
                                      .kv = choice(kv, o->kv),
                                      .kv_type = choice(kv_types, o->kv_type),
                                      .context = (int32_t)context,
                                      .speculate = choice(speculate, o->speculate),
                                      .adaptive_prompt = o->adaptive_prompt,
                                      .temperature = o->temperature_given ? (float)o->temperature : g->info.temperature,
                                      .top_p = o->top_p_given ? (float)o->top_p : g->info.top_p,
                                      .top_k = o->top_k_given ? (int32_t)o->top_k : g->info.top_k,
                                      .min_p = (float)o->min_p,
                                      .repetition_penalty = (float)o->repetition_penalty,
                                      .seed = (uint64_t)o->seed};
    return looplm_session_open(&g->session, g->model, &options, err);
}

static int feed_prompt(struct generation *g, looplm_error *err) {
    const struct run_options *o = g->options;
    char *text = NULL;
    size_t size = 0, n = 0;
    int32_t *ids = NULL;
    int status = 0;
    if (o->prompt && !strcmp(o->prompt, "-"))
        status = file_read("-", PROMPT_MAX, &text, &size, err);
    else if (o->prompt && (text = strdup(o->prompt)))
        size = strlen(text);
    if (!status && text) status = looplm_text_encode(g->model, text, size, &ids, &n, err);
    if (!status && n == 0 && !o->resume)
        status = error_set(err, LOOPLM_USAGE, "the prompt is empty; give one with -p TEXT, or -p - and standard input");
    if (!status) status = open_session(g, (int32_t)n, err);
    if (!status && n) status = looplm_session_feed(g->session, ids, n, err);
    g->prompt_tokens = (int32_t)n;
    looplm_free(ids);
    free(text);
    return status;
}

/* ---- showing
 * ------------------------------------------------------------------------------------------------------------ */

/* Green for the shallowest, over yellow, to red for the deepest. */
static int depth_colour(int32_t loops, int32_t most) {
    static const int colours[] = {46, 118, 190, 226, 214, 202, 196};
    return colours[most > 1 ? (loops - 1) * 6 / (most - 1) : 0];
}

static void show(const struct generation *g, const char *text, size_t size, int32_t loops) {
    static const char *const digits[] = {"₀", "₁", "₂", "₃", "₄", "₅", "₆", "₇", "₈", "₉"};
    if (g->options->json) return;
    if (!g->options->show_depth || !loops) {
        fwrite(text, 1, size, stdout);
    } else if (isatty(STDOUT_FILENO)) {
        printf("\033[38;5;%dm", depth_colour(loops, g->info.loops));
        fwrite(text, 1, size, stdout);
        fputs("\033[0m", stdout);
    } else {
        fwrite(text, 1, size, stdout);
        if (loops > 9) fputs(digits[loops / 10], stdout);
        fputs(digits[loops % 10], stdout);
    }
    fflush(stdout);
}

/* The first stop text in text[from..], or NULL. The text may hold NUL bytes. */
static const char *find_stop(const struct generation *g, size_t from) {
    const char *first = NULL;
    for (int i = 0; i < g->options->stop.count; i++) {
        const char *stop = g->options->stop.items[i], *at = memmem(g->text + from, g->size - from, stop, strlen(stop));
        if (at && (!first || at < first)) first = at;
    }
    return first;
}

/* Bytes at the end of the text that may be the beginning of a stop text. */
static size_t held_back(const struct generation *g) {
    size_t most = 0;
    for (int i = 0; i < g->options->stop.count; i++) {
        const char *stop = g->options->stop.items[i];
        size_t length = strlen(stop);
        for (size_t n = length > g->size ? g->size : length - (length > 0); n > most; n--)
            if (!memcmp(g->text + g->size - n, stop, n)) most = n;
    }
    return most;
}

static int append(struct generation *g, const char *text, size_t size, looplm_error *err) {
    char *grown = realloc(g->text, g->size + size + 1);
    if (!grown) return error_set(err, LOOPLM_MEMORY, "out of memory");
    g->text = grown;
    memcpy(g->text + g->size, text, size);
    g->size += size;
    g->text[g->size] = 0;
    return 0;
}

/* Adds a token's text and shows what cannot become part of a stop text; *stop when one is complete. */
static int take_text(struct generation *g, const char *text, size_t size, int32_t loops, bool *stop,
                     looplm_error *err) {
    size_t longest = 0;
    for (int i = 0; i < g->options->stop.count; i++)
        if (strlen(g->options->stop.items[i]) > longest) longest = strlen(g->options->stop.items[i]);
    size_t from = g->size > longest ? g->size - longest : 0;
    int status = append(g, text, size, err);
    if (status) return status;
    const char *end = find_stop(g, from);
    *stop = end != NULL;
    if (end) {
        g->size = (size_t)(end - g->text);
        g->text[g->size] = 0;
    }
    size_t until = end ? g->size : g->size - held_back(g);
    if (until > g->shown) {
        show(g, g->text + g->shown, until - g->shown, loops);
        g->shown = until;
    }
    return 0;
}

/* JSON has neither infinity nor NaN. */
static json_t *number_json(double x) {
    return isfinite(x) ? json_real(x) : json_null();
}

static int no_memory_for_json(looplm_error *err) {
    return error_set(err, LOOPLM_MEMORY, "no memory for the JSON");
}

static int record_token(struct generation *g, const looplm_token *token, const char *text, size_t size,
                        looplm_error *err) {
    g->generated++;
    g->loops += token->loops;
    g->histogram[token->loops]++;
    if (!g->tokens) return 0;
    json_t *probs = json_array();
    for (int32_t r = 0; r < token->loops; r++) json_array_append_new(probs, number_json((double)token->exit_probs[r]));
    json_t *object = json_pack("{s:i, s:s%, s:o, s:i, s:o}", "id", token->id, "text", text, size, "logprob",
                               number_json((double)token->logprob), "loops", token->loops, "exit_probs", probs);
    return object && !json_array_append_new(g->tokens, object) ? 0 : no_memory_for_json(err);
}

static bool is_stop_id(const struct generation *g, int32_t id) {
    for (int32_t i = 0; i < g->info.n_stop_ids; i++)
        if (g->info.stop_ids[i] == id) return true;
    return false;
}

static int generate(struct generation *g, looplm_error *err) {
    double start = clock_s();
    bool stop = false;
    int status = 0;
    g->finish_reason = "length";
    /* A failed stdout, for instance a reader that left, ends the work; main tells of it. */
    while (g->generated < g->options->tokens && !stop && !status && !ferror(stdout)) {
        looplm_token token;
        status = looplm_session_next(g->session, &token, err);
        if (status == LOOPLM_LIMIT && g->generated > 0) { /* the context is full: a length stop, not a failure */
            status = 0;
            break;
        }
        if (status) break;
        if (g->generated == 0) {
            g->prefill_s = clock_s() - start;
            start = clock_s();
        }
        const char *text;
        size_t size;
        detokenizer_push(&g->detokenizer, token.id, &text, &size);
        status = record_token(g, &token, text, size, err);
        if (is_stop_id(g, token.id)) {
            stop = true;
        } else if (!status) {
            status = take_text(g, text, size, token.loops, &stop, err);
        }
    }
    g->decode_s = clock_s() - start;
    if (status) return status;
    if (stop) {
        g->finish_reason = "stop";
    } else {
        const char *text;
        size_t size;
        detokenizer_flush(&g->detokenizer, &text, &size);
        status = append(g, text, size, err);
    }
    if (!status && g->size > g->shown) show(g, g->text + g->shown, g->size - g->shown, 0);
    return status;
}

/* ---- the end
 * ---------------------------------------------------------------------------------------------------------- */

static double rate(double n, double seconds) {
    return seconds > 0 ? n / seconds : 0;
}

static json_t *stats_json(const struct generation *g) {
    looplm_stats s;
    looplm_session_stats(g->session, &s);
    json_t *proposals = json_array(), *accepted = json_array();
    for (int i = 0; i < 3; i++) {
        json_array_append_new(proposals, json_integer(s.proposals[i]));
        json_array_append_new(accepted, json_integer(s.accepted[i]));
    }
    return json_pack("{s:I, s:I, s:I, s:I, s:o, s:o, s:I, s:f, s:f, s:f}", "passes", s.passes, "rows", s.rows, "heads",
                     s.heads, "head_rows", s.head_rows, "proposals", proposals, "accepted", accepted, "dropped_rows",
                     s.dropped_rows, "pass_s", s.pass_s, "head_s", s.head_s, "scheduling_s", s.scheduling_s);
}

static int print_json(const struct generation *g, looplm_error *err) {
    json_t *timing = json_pack("{s:f, s:f, s:f, s:f, s:f}", "load_s", g->load_s, "prefill_s", g->prefill_s, "decode_s",
                               g->decode_s, "prefill_tokens_per_s", rate(g->prompt_tokens, g->prefill_s),
                               "decode_tokens_per_s", rate(g->generated - 1, g->decode_s));
    json_t *all = json_pack("{s:s%, s:s, s:i, s:O, s:f, s:o}", "text", g->text ? g->text : "", g->size, "finish_reason",
                            g->finish_reason, "prompt_tokens", g->prompt_tokens, "tokens", g->tokens, "mean_loops",
                            rate((double)g->loops, g->generated), "timing", timing);
    if (all && g->options->speculate) json_object_set_new(all, "speculation", stats_json(g));
    char *text = all ? json_dumps(all, JSON_REAL_PRECISION(9)) : NULL;
    json_decref(all);
    if (!text) return no_memory_for_json(err);
    puts(text);
    free(text);
    return 0;
}

/* "32 tokens, 41.0 tokens/s, mean depth 2.31 of 4" and a bar per depth. */
static void print_summary(const struct generation *g) {
    fprintf(stderr, "\n%d tokens (prompt %d in %.2f s), %.1f tokens/s, mean depth %.2f of %d\n", g->generated,
            g->prompt_tokens, g->prefill_s, rate(g->generated - 1, g->decode_s), rate((double)g->loops, g->generated),
            g->info.loops);
    looplm_stats stats;
    looplm_session_stats(g->session, &stats);
    if (stats.proposals[0])
        fprintf(stderr, "proposals after loop 1: %lld, right: %lld; %lld passes, %lld rows of which %lld for nothing\n",
                (long long)stats.proposals[0], (long long)stats.accepted[0], (long long)stats.passes,
                (long long)stats.rows, (long long)stats.dropped_rows);
    for (int32_t r = 1; r <= LOOPS_MAX; r++) {
        if (!g->histogram[r]) continue;
        int width = (int)(40.0 * (double)g->histogram[r] / (double)g->generated + 0.5);
        fprintf(stderr, "  %2d loop%s %5lld  %.*s\n", r, r == 1 ? " " : "s", (long long)g->histogram[r], width,
                "########################################");
    }
}

static int run(struct generation *g, looplm_error *err) {
    static const char *const weights[] = {"auto", "f32", "bf16", "q8", "q4"}, *const devices[] = {"auto", "cpu"};
    const struct run_options *o = g->options;
    double start = clock_s();
    looplm_model_options options = {
        .weights = choice(weights, o->weights), .device = choice(devices, o->device), .threads = (int)o->threads};
    int status = looplm_model_open(&g->model, o->model, &options, err);
    if (!status && model_need_tokenizer(g->model, err)) status = error_prefix(err, "%s", o->model);
    if (status) return status;
    g->load_s = clock_s() - start;
    looplm_model_info_get(g->model, &g->info);
    if (o->json) g->tokens = json_array();
    status = detokenizer_init(&g->detokenizer, g->model->tokenizer, true, err);
    if (!status) status = feed_prompt(g, err);
    if (!status && o->trace) status = looplm_session_trace(g->session, o->trace, err);
    if (!status) status = generate(g, err);
    if (!status && o->trace) status = looplm_session_trace(g->session, NULL, err);
    if (status) return status;
    /* Before the session is saved, so that a full disk does not cost the text. */
    if (o->json) {
        status = print_json(g, err);
    } else {
        print_summary(g);
    }
    if (!status && o->save) status = looplm_session_save(g->session, o->save, err);
    return status;
}

/* A session goes on as it began: what would change it is refused, not ignored. */
static int check_resume(const struct run_options *o, looplm_error *err) {
    const struct {
        bool given;
        const char *name;
    } fixed[] = {{o->exit_given, "exit"},           {o->kv_given, "kv"},
                 {o->kv_type_given, "kv-type"},     {o->context_given, "context"},
                 {o->speculate_given, "speculate"}, {o->adaptive_prompt_given, "adaptive-prompt"},
                 {o->seed_given, "seed"},           {o->temperature_given, "temperature"},
                 {o->top_p_given, "top-p"},         {o->top_k_given, "top-k"},
                 {o->min_p_given, "min-p"},         {o->repetition_penalty_given, "repetition-penalty"}};
    if (!o->resume) return 0;
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
        if (!fixed[i].given) continue;
        return error_set(err, LOOPLM_USAGE,
                         "option --%s cannot change a session that is resumed: it goes on as %s says; leave it out",
                         fixed[i].name, o->resume);
    }
    return 0;
}

static int check_options(const struct run_options *o, looplm_error *err) {
    if (!o->prompt && !o->resume)
        return error_set(err, LOOPLM_USAGE,
                         "no prompt; give one with -p TEXT (-p - reads standard input), or continue a session with "
                         "--resume FILE");
    if (o->json && o->show_depth)
        return error_set(err, LOOPLM_USAGE,
                         "--show-depth marks text, and --json prints the loops of each token; give one");
    for (int i = 0; i < o->stop.count; i++) {
        const char *stop = o->stop.items[i];
        if (!*stop) return error_set(err, LOOPLM_USAGE, "--stop: an empty text would stop at once");
        if (!utf8_valid(stop, strlen(stop))) return error_set(err, LOOPLM_USAGE, "--stop: the text is not UTF-8");
    }
    return check_resume(o, err);
}

static int run_run(int argc, char **argv) {
    struct run_options o;
    int code = command_parse(&command_run, run_options_table(), &o, argc, argv);
    if (code != COMMAND_GO) return code;
    looplm_error err = {0};
    struct generation g = {.options = &o};
    int status = check_options(&o, &err);
    if (!status) status = run(&g, &err);
    looplm_session_close(g.session);
    detokenizer_free(&g.detokenizer);
    looplm_model_close(g.model);
    json_decref(g.tokens);
    free(g.text);
    options_free(run_options_table(), &o);
    return status ? command_fail(&err) : COMMAND_DONE;
}

const struct command command_run = {"run", "MODEL -p TEXT [options]",
                                    "generate from a prompt, each token as deep as it needs", run_run};
