/* Scoring, on a small random model with a tokenizer of symbols: what is worked out for Q-exit is what the engine does,
 * the number of sequences at once changes nothing, and figures add up. */
#include "lab/mano.h"
#include "lab/score.h"
#include "support/support.h"
#include "support/tiny.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define R 4

struct fixture {
    struct tiny tiny;
    looplm_model model;
    struct mano mano;
    struct lab_task task;
};

/* Symbols alone, and the operators and the equals sign with a space before them. */
static struct tokenizer *open_tokenizer(void) {
    static const char *const symbols[] = {
        "#", "0", "1", "2", "3",        "4",        "5",         "6",         "7",         "8",        "9",
        "+", "-", "*", "=", "\xC4\xA0", "\xC4\x8A", "\xC4\xA0+", "\xC4\xA0-", "\xC4\xA0*", "\xC4\xA0="};
    json_t *vocab = json_object(),
           *merges = json_pack("[s, s, s, s]", "\xC4\xA0 +", "\xC4\xA0 -", "\xC4\xA0 *", "\xC4\xA0 =");
    for (int i = 0; i < 21; i++) json_object_set_new(vocab, symbols[i], json_integer(i + 3));
    json_t *file = json_pack("{s:[], s:n, s:{s:s, s:[{s:s, s:b}, {s:s, s:b}]}, s:{s:s}, s:{s:s, s:o, s:o}}",
                             "added_tokens", "normalizer", "pre_tokenizer", "type", "Sequence", "pretokenizers", "type",
                             "Digits", "individual_digits", 1, "type", "ByteLevel", "add_prefix_space", 0, "decoder",
                             "type", "ByteLevel", "model", "type", "BPE", "vocab", vocab, "merges", merges);
    char *text = json_dumps(file, 0);
    struct tokenizer *tokenizer;
    looplm_error err;
    if (tokenizer_open_json(&tokenizer, text, strlen(text), "symbols", &err)) fail_msg("%s", err.message);
    json_decref(file);
    free(text);
    return tokenizer;
}

static void open_fixture(struct fixture *f, int32_t modulus) {
    *f = (struct fixture){.mano = {modulus, 1, 4}};
    tiny_open(&f->tiny, R, WEIGHT_F32, NULL, 1);
    f->model.backend = f->tiny.backend;
    f->model.model = f->tiny.model;
    f->model.tokenizer = open_tokenizer();
    f->model.info = (looplm_model_info){.loops = R, .has_exit_gate = 1};
    pthread_mutex_init(&f->model.running, NULL);
    assert_int_equal(mano_task(&f->task, &f->mano, NULL), 0);
}

static void close_fixture(struct fixture *f) {
    pthread_mutex_destroy(&f->model.running);
    tokenizer_close(f->model.tokenizer);
    tiny_close(&f->tiny);
}

static void score(struct fixture *f, struct lab_score *s, int32_t problems, int32_t parallel, int32_t context,
                  const char *const *rules, int n_rules) {
    struct exit_rule parsed[32];
    looplm_error err;
    for (int i = 0; i < n_rules; i++) assert_int_equal(exit_rule_parse(&parsed[i], rules[i], &err), 0);
    struct lab_score_options options = {
        .problems = problems, .parallel = parallel, .context = context, .seed = 5, .rules = parsed, .n_rules = n_rules};
    if (lab_score(s, &f->model, &f->task, &options, &err)) fail_msg("%s", err.message);
}

static const struct lab_run *find_run(const struct lab_score *s, const char *name, int nth) {
    for (int i = 0; i < s->n_runs; i++)
        if (strcmp(s->runs[i].name, name) == 0 && nth-- == 0) return &s->runs[i];
    fail_msg("no run of %s", name);
    return NULL;
}

static void assert_same_result(const struct lab_run *a, const struct lab_run *b) {
    assert_true(a->accuracy == b->accuracy && a->loops == b->loops);
    assert_memory_equal(a->accuracy_at, b->accuracy_at, sizeof a->accuracy_at);
    assert_memory_equal(a->loops_at, b->loops_at, sizeof a->loops_at);
    assert_memory_equal(a->exits, b->exits, sizeof a->exits);
}

/* The sweep, worked out, against the engine under the same rules; some of them must leave at different depths. */
static void test_derived_is_measured(void **state) {
    (void)state;
    static const char *const rules[] = {"q=0.30", "q=0.45", "q=0.60", "q=0.75", "q=0.95"}, *const as_asked[] = {
                                                                                               "q=0.300000012",
                                                                                               "q=0.449999988",
                                                                                               "q=0.600000024",
                                                                                               "q=0.75",
                                                                                               "q=0.949999988"};
    struct fixture f;
    struct lab_score s;
    int mixed = 0;
    open_fixture(&f, 7);
    score(&f, &s, 40, 16, 0, rules, 5);
    for (int i = 0; i < 5; i++) {
        const struct lab_run *derived = find_run(&s, rules[i], 0),
                             *run = find_run(&s, as_asked[i], strcmp(rules[i], as_asked[i]) == 0);
        assert_true(run->measured);
        assert_same_result(derived, run);
        for (int r = 1; r <= R; r++) mixed += run->exits[r] > 0 && run->exits[r] < 160;
    }
    assert_true(mixed > 5);
    lab_score_free(&s);
    close_fixture(&f);
}

static void test_parallel_changes_nothing(void **state) {
    (void)state;
    static const char *const rules[] = {"q=0.5", "conf=0.2", "diff=0.9", "mix"};
    struct fixture f;
    struct lab_score a, b;
    open_fixture(&f, 7);
    score(&f, &a, 10, 1, 2, rules, 4);
    score(&f, &b, 10, 16, 2, rules, 4);
    assert_int_equal(a.n_runs, b.n_runs);
    for (int i = 0; i < a.n_runs; i++) assert_same_result(&a.runs[i], &b.runs[i]);
    for (int32_t i = 0; i < a.n_tested; i++) {
        assert_int_equal(a.full_outcomes[i].id, b.full_outcomes[i].id);
        assert_memory_equal(a.full_outcomes[i].exit_probs, b.full_outcomes[i].exit_probs, R * sizeof(float));
    }
    lab_score_free(&a);
    lab_score_free(&b);
    close_fixture(&f);
}

/* The answer is the token with the highest logit behind the prompt; depth r costs r rows a token; full depth is R. */
static void test_figures(void **state) {
    (void)state;
    struct fixture f;
    struct lab_score s;
    open_fixture(&f, 2);
    score(&f, &s, 25, 16, 0, NULL, 0);
    assert_int_equal(s.n_tested, 100);
    assert_int_equal(s.full, R - 1);
    for (int r = 1; r <= R; r++) {
        const struct lab_run *run = &s.runs[r - 1];
        int right = 0;
        assert_true(run->loops == r && run->exits[r] == 100 && isnan(run->rank_levels));
        assert_int_equal(run->cost.rows, (run->cost.tokens - 100) * r); /* the answer itself is never run */
        if (r == R)
            for (int i = 0; i < 100; i++) right += s.full_outcomes[i].id == 4 + s.tested[i].answer[0] - '0';
        if (r == R) assert_true(fabs(run->accuracy - right / 100.0) < 1e-12);
    }
    for (int i = 0; i < 100; i++) {
        assert_int_equal(s.tested[i].level, 1 + i / 25);
        assert_int_equal(lab_is_held_out(&f.task, &s.tested[i]), s.tested[i].level >= MANO_HELD_OUT_FROM);
    }
    if (s.best >= 0) assert_true(s.runs[s.best].measured && s.best_outcomes);
    lab_score_free(&s);
    close_fixture(&f);
}

/* Answers of several tokens (modulus above 10) are run for each q, and stop where they go wrong. */
static void test_long_answers(void **state) {
    (void)state;
    struct fixture f;
    struct lab_score s;
    open_fixture(&f, 23);
    score(&f, &s, 5, 4, 1, NULL, 0);
    assert_true(s.runs[s.full].cost.answer_max > 1);
    assert_true(find_run(&s, "q=0.50", 0)->measured);
    lab_score_free(&s);
    close_fixture(&f);
}

static void test_refusals(void **state) {
    (void)state;
    struct fixture f;
    struct lab_score s;
    looplm_error err = {0};
    open_fixture(&f, 7);
    struct exit_rule rule = {.kind = EXIT_Q, .threshold = 0.5f, .min = 9};
    struct lab_score_options options = {.problems = 2, .parallel = 4, .rules = &rule, .n_rules = 1};
    assert_int_equal(lab_score(&s, &f.model, &f.task, &options, &err), LOOPLM_USAGE);
    support_assert_error(&err, LOOPLM_USAGE, "exit rule", NULL);
    lab_score_free(&s);
    options = (struct lab_score_options){.problems = LAB_TESTED_MAX, .parallel = 4};
    assert_int_equal(lab_score(&s, &f.model, &f.task, &options, &err), LOOPLM_LIMIT);
    lab_score_free(&s);
    f.model.model->config.max_positions = 8;
    options.problems = 2;
    assert_int_equal(lab_score(&s, &f.model, &f.task, &options, &err), LOOPLM_LIMIT);
    support_assert_error(&err, LOOPLM_LIMIT, "8 positions", NULL);
    lab_score_free(&s);
    close_fixture(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_derived_is_measured),
                                       cmocka_unit_test(test_parallel_changes_nothing), cmocka_unit_test(test_figures),
                                       cmocka_unit_test(test_long_answers), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
