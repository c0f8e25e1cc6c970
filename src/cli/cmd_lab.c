/* looplm lab: generated problems whose difficulty is known: files of them for training, and what a model makes of them
 * with every exit rule. */
#include "base/nearest.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/gnuplot.h"
#include "cli/lab_report.h"
#include "lab/hops.h"
#include "lab/mano.h"

#include <stdlib.h>
#include <string.h>

#define PROBLEMS_DEFAULT 300 /* of each level, in scoring */

#define LAB_OPTIONS(X)                                                                                                 \
    X(ARGUMENT, experiment, "mano|hops",                                                                               \
      "modular arithmetic in prefix form, or multi-hop questions over a small world")                                  \
    X(MAYBE, model, "MODEL", "a model directory, to score")                                                            \
    X(TEXT, generate, "generate", 'o', NULL, "FILE.jsonl", "write documents of problems instead")                      \
    X(INT, documents, "documents", 'n', 1000, 1, 1 << 30, "N", "generate: documents to write")                         \
    X(INT, problems, "problems", 'p', 0, 0, 1 << 20, "P",                                                              \
      "generate: problems of a document (default 1); "                                                                 \
      "score: problems of each length (default 300)")                                                                  \
    X(CHOICE, form, "form", 0, "text", "text|answer",                                                                  \
      "generate: lines of solved problems, or prompt and answer, "                                                     \
      "whose loss is on the answer alone")                                                                             \
    X(FLAG, held_out, "held-out", 0, "generate: only problems that are held out, otherwise only others")               \
    X(INT, seed, "seed", 's', 1, 0, INT64_MAX, "S", "seed of the problems")                                            \
    X(INT, modulus, "modulus", 0, 3, MANO_MODULUS_MIN, MANO_MODULUS_MAX, "M", "mano: the modulus")                     \
    X(INT, min_ops, "min-ops", 0, 1, 1, MANO_OPERATIONS_MAX, "A", "mano: operations at least")                         \
    X(INT, max_ops, "max-ops", 0, 4, 1, MANO_OPERATIONS_MAX, "L", "mano: operations at most")                          \
    X(TEXT, length_weights, "length-weights", 0, NULL, "W,W,..", "mano: how often each length comes (default: alike)") \
    X(INT, people, "people", 0, 40, 2, HOPS_PEOPLE_MAX, "N", "hops: people")                                           \
    X(INT, relations, "relations", 0, 4, 1, HOPS_RELATIONS_MAX, "K", "hops: relations")                                \
    X(INT, min_hops, "min-hops", 0, 1, 1, HOPS_HOPS_MAX, "A", "hops: hops at least")                                   \
    X(INT, max_hops, "max-hops", 0, 3, 1, HOPS_HOPS_MAX, "H", "hops: hops at most")                                    \
    X(TEXT, hop_weights, "hop-weights", 0, NULL, "W,W,..",                                                             \
      "hops: how often each number of hops comes (default: alike)")                                                    \
    X(INT, world_seed, "world-seed", 0, 1, 0, INT64_MAX, "S", "hops: seed of who is whose what")                       \
    X(LIST, exit, "exit", 0, "RULE",                                                                                   \
      "score: an exit rule to run beside each number of loops, full depth and a sweep "                                \
      "of q (may be repeated)")                                                                                        \
    X(INT, context, "context", 0, 0, 0, 64, "C", "score: solved problems before each")                                 \
    X(INT, parallel, "parallel", 0, 16, 1, LAB_PARALLEL_MAX, "N", "score: problems at once")                           \
    X(FLAG, adaptive_prompt, "adaptive-prompt", 0, "score: under --exit, prompt tokens may leave early too")           \
    X(INT, show, "show", 0, 0, 0, 1 << 20, "N", "score: show N problems of each length with the depth of each")        \
    X(FLAG, json, "json", 0, "score: print one JSON object")                                                           \
    X(TEXT, plot, "plot", 0, NULL, "FILE", "score: draw a .png or .svg: accuracy for each number of loops, and depth") \
    X(CHOICE, weights, "weights", 0, "auto", "auto|f32|bf16|q8|q4", "the type of the weights in memory")               \
    X(CHOICE, kv, "kv", 0, "last-exited", "last-exited|full|shared-last|shared-mean|shared-first",                     \
      "planes of generated tokens")                                                                                    \
    X(CHOICE, kv_type, "kv-type", 0, "auto", "auto|f32|bf16|q8", "the type of keys and values in the cache")           \
    X(INT, threads, "threads", 0, 0, 0, 1024, "N", "threads; 0 means one per processor")
OPTIONS_DEFINE(lab_options, LAB_OPTIONS)

extern const struct command command_lab;

/* The worlds that a task may borrow. */
struct experiment {
    struct mano mano;
    struct hops hops;
    struct lab_task task;
};

static int refuse(bool given, const char *option, const char *experiment, looplm_error *err) {
    if (!given) return 0;
    return error_set(err, LOOPLM_USAGE, "option --%s does not belong to `looplm lab %s`", option, experiment);
}

static int check_mano(const struct lab_options *o, looplm_error *err) {
    int status = refuse(o->people_given, "people", "mano", err);
    if (!status) status = refuse(o->relations_given, "relations", "mano", err);
    if (!status) status = refuse(o->min_hops_given, "min-hops", "mano", err);
    if (!status) status = refuse(o->max_hops_given, "max-hops", "mano", err);
    if (!status) status = refuse(o->hop_weights_given, "hop-weights", "mano", err);
    return status ? status : refuse(o->world_seed_given, "world-seed", "mano", err);
}

static int check_hops(const struct lab_options *o, looplm_error *err) {
    int status = refuse(o->modulus_given, "modulus", "hops", err);
    if (!status) status = refuse(o->min_ops_given, "min-ops", "hops", err);
    if (!status) status = refuse(o->max_ops_given, "max-ops", "hops", err);
    return status ? status : refuse(o->length_weights_given, "length-weights", "hops", err);
}

static int open_experiment(struct experiment *e, const struct lab_options *o, looplm_error *err) {
    static const char *const names[] = {"mano", "hops"};
    int status;
    if (!strcmp(o->experiment, "mano")) {
        e->mano = (struct mano){(int32_t)o->modulus, (int32_t)o->min_ops, (int32_t)o->max_ops};
        status = check_mano(o, err);
        if (!status) status = mano_task(&e->task, &e->mano, err);
        return status ? status : lab_task_weights(&e->task, o->length_weights, "length-weights", err);
    }
    if (!strcmp(o->experiment, "hops")) {
        status = check_hops(o, err);
        if (!status)
            status = hops_init(&e->hops, (int32_t)o->people, (int32_t)o->relations, (int32_t)o->min_hops,
                               (int32_t)o->max_hops, (uint64_t)o->world_seed, err);
        if (!status) status = hops_task(&e->task, &e->hops, err);
        return status ? status : lab_task_weights(&e->task, o->hop_weights, "hop-weights", err);
    }
    const char *near = nearest_name(o->experiment, names, 2);
    return error_set(err, LOOPLM_USAGE, "no experiment is named '%s'; expected mano or hops%s%s%s", o->experiment,
                     near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
}

static int generate(const struct lab_options *o, const struct lab_task *task, looplm_error *err) {
    struct lab_documents documents = {.documents = o->documents,
                                      .problems = o->problems ? (int32_t)o->problems : 1,
                                      .form = o->form ? LAB_FORM_ANSWER : LAB_FORM_TEXT,
                                      .held_out = o->held_out,
                                      .seed = (uint64_t)o->seed};
    if (documents.problems > LAB_PROBLEMS_MAX)
        return error_set(err, LOOPLM_USAGE, "option --problems: %d problems of a document exceed %d",
                         documents.problems, LAB_PROBLEMS_MAX);
    double start = clock_s();
    int status = lab_generate(task, &documents, o->generate, err);
    if (!status)
        fprintf(stderr, "%s: %lld documents of %d %s problems in %.1f s\n", o->generate, (long long)o->documents,
                documents.problems, o->held_out ? "held-out" : "training", clock_s() - start);
    return status;
}

/* ---- scoring ---------------------------------------------------------------------------------------------------- */

static int report(const struct lab_options *o, const struct lab_score *score, const struct lab_score_options *options,
                  const looplm_model *model, looplm_error *err) {
    if (o->json) {
        json_t *object = lab_report_json(score, o->model, options);
        char *text = object ? json_dumps(object, JSON_REAL_PRECISION(9)) : NULL;
        json_decref(object);
        if (!text) return error_set(err, LOOPLM_MEMORY, "no memory for the JSON");
        puts(text);
        free(text);
    } else {
        lab_report_print(score);
        if (o->show) lab_report_show(score, model, (int32_t)o->show);
    }
    return o->plot ? lab_report_plot(score, o->plot, err) : 0;
}

static int score(const struct lab_options *o, const struct lab_task *task, looplm_error *err) {
    static const char *const weights[] = {"auto", "f32", "bf16", "q8", "q4"};
    struct exit_rule rules[OPTION_LIST_MAX];
    int status = o->plot ? gnuplot_check_name("--plot", o->plot, err) : 0; /* before the work, not after it */
    for (int i = 0; i < o->exit.count && !status; i++) status = exit_rule_parse(&rules[i], o->exit.items[i], err);
    looplm_model *model = NULL;
    looplm_model_options model_options = {.weights = weights[o->weights], .threads = (int)o->threads};
    if (!status) status = looplm_model_open(&model, o->model, &model_options, err);
    if (status) return status;
    struct lab_score_options options = {.problems = o->problems ? (int32_t)o->problems : PROBLEMS_DEFAULT,
                                        .context = (int32_t)o->context,
                                        .parallel = (int32_t)o->parallel,
                                        .seed = (uint64_t)o->seed,
                                        .adaptive_prompt = o->adaptive_prompt,
                                        .kv = (enum kv_policy)o->kv,
                                        .kv_type = o->kv_type ? (enum kv_type)(o->kv_type - 1)
                                                              : kv_type_default(model->model->weight_type),
                                        .rules = rules,
                                        .n_rules = o->exit.count};
    struct lab_score result;
    status = lab_score(&result, model, task, &options, err);
    if (!status) status = report(o, &result, &options, model, err);
    lab_score_free(&result);
    looplm_model_close(model);
    return status;
}

static int run_lab(int argc, char **argv) {
    struct lab_options o;
    looplm_error err = {0};
    int code = command_parse(&command_lab, lab_options_table(), &o, argc, argv);
    if (code != COMMAND_GO) return code;
    struct experiment experiment;
    int status = open_experiment(&experiment, &o, &err);
    if (!status && !o.model == !o.generate)
        status = error_set(&err, LOOPLM_USAGE, "looplm lab %s: give either a MODEL to score or --generate FILE.jsonl",
                           o.experiment);
    if (!status) status = o.generate ? generate(&o, &experiment.task, &err) : score(&o, &experiment.task, &err);
    options_free(lab_options_table(), &o);
    return status ? command_fail(&err) : COMMAND_DONE;
}

const struct command command_lab = {"lab", "mano|hops MODEL [options] | mano|hops --generate FILE.jsonl [options]",
                                    "generate problems of known difficulty, or score a model on them", run_lab};
