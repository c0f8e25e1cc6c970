/* Owns a run from recipe to model: what is opened, the order of a step, when to log, evaluate and save. What a gradient
 * is belongs to unit.c, how it moves the parameters to optimizer.c, which text comes next to data.c, the form of a
 * checkpoint to checkpoint.c.
 *
 *     open --> [resume] --> step --> log, evaluate, save when due --> step ... --> save --> publish
 *                             `-- stop asked: save, leave
 *
 * Invariants:
 *   1. a step depends on the parameters, the optimizer's moments, the data cursor and the step's number alone: all of
 *      them are in a checkpoint, so a resumed run has the bits of a straight one;
 *   2. the log is synced before the checkpoint that names its length;
 *   3. the lock is held from before the first write in the run directory until the end.
 */
#include "train/trainer.h"

#include "base/file.h"
#include "base/json.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/progress.h"
#include "model/model.h"
#include "tensor/cpu/cpu.h"
#include "train/checkpoint.h"
#include "train/data.h"
#include "train/evaluate.h"
#include "train/publish.h"
#include "train/runlog.h"
#include "train/schedule.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* So many steps in a row without a finite gradient, and the run is lost. */
#define BAD_STEPS_MAX 10
#define END_TOKEN "<|endoftext|>"
#define EVAL_NAME_MAX 64
#define LOSSES_TEXT 160

struct held_out {
    struct corpus corpus;
    char name[EVAL_NAME_MAX];
};

struct trainer {
    const struct trainer_options *options;
    struct recipe recipe;
    struct lock lock;
    struct tokenizer *tokenizer; /* NULL: all sources are indexed */
    char *tokenizer_path, tokenizer_hash[65];
    struct backend *backend;
    struct params params;
    struct model *model;
    struct workers *workers;
    struct optimizer optimizer;
    struct data data;
    struct held_out *held_out;
    int n_held_out;
    struct runlog log;
    struct progress progress;
    int64_t step, tokens, saved_step;
    int bad_steps;
    double seconds, saved_s; /* of training in all; the clock at the last checkpoint */
};

/* What a step tells the log. */
struct step_report {
    struct unit_result sums;
    int64_t positions;
    int32_t loops;
    double divisor; /* valid tokens, each times its source's loss_weight */
    double lr, norm, seconds;
};

static const struct recipe_options *options_of(const struct trainer *t) {
    return &t->recipe.options;
}

static const char *stage_name(const struct trainer *t) {
    return t->options->stage == OBJECTIVE_STAGE2 ? "stage2" : "stage1";
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static int take_run_directory(struct trainer *t, looplm_error *err) {
    const char *run = options_of(t)->run_directory;
    int status = file_make_directories(run, err);
    if (!status) status = lock_take(&t->lock, run, err);
    if (!status) checkpoint_clean(run);
    return status;
}

static int write_records(const struct trainer *t, looplm_error *err) {
    const char *run = options_of(t)->run_directory;
    char *copy = file_join(run, "recipe.yaml"), *options = file_join(run, "options.json");
    struct file_writer w;
    int status =
        copy && options ? file_writer_open(&w, copy, err) : error_set(err, LOOPLM_MEMORY, "%s: no memory", run);
    if (!status) {
        file_writer_write(&w, t->recipe.text, strlen(t->recipe.text));
        status = file_writer_commit(&w, err);
    }
    if (!status) status = json_write(options, t->recipe.record, err);
    free(copy);
    free(options);
    return status;
}

static int open_tokenizer(struct trainer *t, looplm_error *err) {
    const struct recipe_options *o = options_of(t);
    const char *given = o->model_tokenizer ? o->model_tokenizer : o->model_init;
    if (!given || (!o->model_tokenizer && !publish_has_tokenizer(given))) return 0;
    t->tokenizer_path = strdup(given);
    if (!t->tokenizer_path) return error_set(err, LOOPLM_MEMORY, "%s: no memory for its path", given);
    int status = tokenizer_open(&t->tokenizer, given, err);
    return status ? status : corpus_tokenizer_hash(given, t->tokenizer_hash, err);
}

static void scale_tensor(struct params *params, const struct tensor_spec *spec, double factor) {
    real *values = params->data + spec->offset;
    for (int64_t i = 0; i < spec->rows * spec->cols; i++) values[i] *= (real)factor;
}

/* A fresh embedding and fresh branch norms may have scales of their own. */
static void scale_fresh(struct params *params, const struct recipe_options *o) {
    for (int32_t i = 0; i < params->table.count; i++) {
        const struct tensor_spec *spec = &params->table.specs[i];
        bool branch = spec->role == TENSOR_INPUT_NORM_2 || spec->role == TENSOR_POST_NORM_2;
        if (spec->role == TENSOR_EMBED && o->model_embedding_range > 0)
            scale_tensor(params, spec, o->model_embedding_range / params->config.initializer_range);
        if (branch) scale_tensor(params, spec, o->model_branch_norm);
    }
}

/* The config and values that a run begins with. */
static int fresh_params(struct trainer *t, looplm_error *err) {
    const struct recipe_options *o = options_of(t);
    if (o->model_init) {
        int status = params_load(&t->params, o->model_init, err);
        return status ? status : recipe_adapt_config(&t->recipe, &t->params.config, err);
    }
    if (t->options->stage == OBJECTIVE_STAGE2)
        return error_set(err, LOOPLM_USAGE,
                         "%s: stage II trains the exit gate of a model that exists; name it with model.init",
                         t->recipe.path);
    struct model_config config;
    int32_t vocab = t->tokenizer ? tokenizer_size(t->tokenizer) : 0;
    int status = recipe_model_config(&t->recipe, vocab, &config, err);
    if (!status) status = params_init(&t->params, &config, (uint64_t)o->train_seed, o->model_exit_bias, err);
    if (!status) scale_fresh(&t->params, o);
    return status;
}

static int check_model(const struct trainer *t, looplm_error *err) {
    const struct model_config *c = &t->params.config;
    if (options_of(t)->train_sequence > c->max_positions)
        return error_set(err, LOOPLM_USAGE,
                         "%s: key train.sequence: found %lld, and the model has %d positions; raise "
                         "model.max_positions or shorten the sequences",
                         t->recipe.path, (long long)options_of(t)->train_sequence, c->max_positions);
    return t->tokenizer ? tokenizer_check_vocabulary(t->tokenizer, c->vocab, err) : 0;
}

static int open_engine(struct trainer *t, looplm_error *err) {
    const struct recipe_options *o = options_of(t);
    struct workers_options workers = {.workers = (int)o->train_workers,
                                      .kernels = o->kernels,
                                      .batch = o->train_batch,
                                      .unit = {.positions_max = (int32_t)o->train_sequence,
                                               .documents_max = DATA_DOCUMENTS_MAX,
                                               .recompute = o->train_recompute}};
    struct optimizer_options adam = {.beta1 = o->train_beta1,
                                     .beta2 = o->train_beta2,
                                     .eps = o->train_eps,
                                     .weight_decay = o->train_weight_decay,
                                     .clip = o->train_clip,
                                     .gate_only = t->options->stage == OBJECTIVE_STAGE2};
    enum weight_type type = o->train_precision == RECIPE_PRECISION_F32 ? WEIGHT_F32 : WEIGHT_BF16;
    int status = model_alloc(&t->model, &t->params.config, t->backend, type, err);
    if (!status) {
        model_pack(t->model, &t->params);
        status = workers_open(&t->workers, t->model, &t->params, &workers, err);
    }
    return status ? status : optimizer_init(&t->optimizer, &t->params, t->backend, &adam, err);
}

static int open_held_out(struct trainer *t, const struct corpus_options *corpora, looplm_error *err) {
    const struct recipe_options *o = options_of(t);
    int n = o->eval_path.count;
    t->held_out = calloc((size_t)n + 1, sizeof *t->held_out);
    if (!t->held_out) return error_set(err, LOOPLM_MEMORY, "training: no memory for the held-out texts");
    for (int i = 0; i < n; i++) {
        struct held_out *h = &t->held_out[i];
        const char *name = i < o->eval_name.count ? o->eval_name.items[i] : NULL;
        if (name) {
            snprintf(h->name, sizeof h->name, "%s", name);
        } else {
            snprintf(h->name, sizeof h->name, "%d", i);
        }
        int status = corpus_open(&h->corpus, o->eval_path.items[i], corpora, err);
        if (status) return status;
        t->n_held_out++;
    }
    return 0;
}

static int open_texts(struct trainer *t, looplm_error *err) {
    const struct recipe_options *o = options_of(t);
    int32_t end_id = t->tokenizer ? tokenizer_id(t->tokenizer, END_TOKEN) : 0;
    if (end_id < 0)
        return error_set(err, LOOPLM_MISMATCH,
                         "%s: it has no token %s, which ends a document; train a tokenizer that has", t->tokenizer_path,
                         END_TOKEN);
    char *cache = file_join(o->run_directory, "cache");
    if (!cache) return error_set(err, LOOPLM_MEMORY, "%s: no memory for its path", o->run_directory);
    struct corpus_options corpora = {.tokenizer = t->tokenizer,
                                     .tokenizer_hash = t->tokenizer_hash,
                                     .cache = cache,
                                     .vocab = t->params.config.vocab,
                                     .end_id = end_id,
                                     .sequence = (int32_t)o->train_sequence};
    int status = data_open(&t->data, &t->recipe, &corpora, err);
    if (!status) status = open_held_out(t, &corpora, err);
    free(cache);
    return status;
}

/* ---- resuming --------------------------------------------------------------------------------------------------- */

/* Takes the checkpoint's place in the run; the parameters are loaded already. */
static int restore(struct trainer *t, const char *directory, const struct checkpoint_state *state, looplm_error *err) {
    t->step = t->saved_step = state->step;
    t->tokens = state->tokens;
    t->seconds = state->seconds;
    t->optimizer.step = state->optimizer_step;
    int status = checkpoint_read_optimizer(directory, &t->optimizer, err);
    return status ? status : data_restore(&t->data, state->data, directory, err);
}

static int check_same_run(const struct trainer *t, const struct checkpoint_state *state, looplm_error *err) {
    const char *run = options_of(t)->run_directory;
    if (strcmp(state->stage, stage_name(t)) != 0)
        return error_set(err, LOOPLM_MISMATCH,
                         "%s: the run there is of %s, and this is %s; choose another run.directory", run, state->stage,
                         stage_name(t));
    int status = recipe_compare(state->recipe, t->recipe.record, run, err);
    if (!status && state->step > options_of(t)->train_steps)
        status = error_set(err, LOOPLM_MISMATCH, "%s: the run has done %lld steps, and train.steps is now %lld", run,
                           (long long)state->step, (long long)options_of(t)->train_steps);
    return status;
}

static int open_all(struct trainer *t, const char *checkpoint, struct checkpoint_state *state, looplm_error *err) {
    int status = 0;
    if (checkpoint) {
        status = checkpoint_read_state(checkpoint, state, err);
        if (!status) status = check_same_run(t, state, err);
    }
    if (!status) status = open_tokenizer(t, err);
    if (!status) status = checkpoint ? params_load(&t->params, checkpoint, err) : fresh_params(t, err);
    if (!status) status = check_model(t, err);
    if (!status) status = open_texts(t, err);
    if (!status) status = cpu_open(&t->backend, (int)options_of(t)->threads, options_of(t)->kernels, err);
    if (!status) status = open_engine(t, err);
    if (!status && checkpoint) status = restore(t, checkpoint, state, err);
    if (!status) status = write_records(t, err);
    if (!status) status = runlog_open(&t->log, options_of(t)->run_directory, state->log_bytes, err);
    return status;
}

static int open_run(struct trainer *t, looplm_error *err) {
    struct checkpoint_state state = {0};
    char *checkpoint = NULL;
    int status = take_run_directory(t, err);
    t->saved_step = -1;
    if (!status) status = checkpoint_find(options_of(t)->run_directory, &checkpoint, err);
    if (!status) status = open_all(t, checkpoint, &state, err);
    checkpoint_state_free(&state);
    free(checkpoint);
    if (status) return status;
    const struct model_config *c = &t->params.config;
    log_info("%s: %.2f M parameters, %d layers x %d loops; %s, %s, %d threads, %d sequences at once, %.0f MiB",
             t->step ? "resumed" : "begins", (double)t->params.table.parameters / 1e6, c->layers, c->loops,
             model_weight_type_name(t->model->weight_type), t->backend->table, t->backend->threads,
             workers_count(t->workers), (double)workers_memory(t->workers) / 1048576.0);
    for (int i = 0; i < t->data.n_sources; i++)
        log_info("data: %s: %lld documents, %lld tokens, %lld sequences", t->data.sources[i].path,
                 (long long)t->data.corpora[i].documents, (long long)t->data.corpora[i].tokens,
                 (long long)t->data.corpora[i].pieces);
    if (t->step) log_info("goes on after step %lld of %lld", (long long)t->step, (long long)options_of(t)->train_steps);
    return 0;
}

static void close_run(struct trainer *t) {
    for (int i = 0; i < t->n_held_out; i++) corpus_close(&t->held_out[i].corpus);
    free(t->held_out);
    runlog_close(&t->log);
    data_close(&t->data);
    optimizer_free(&t->optimizer);
    workers_close(t->workers);
    if (t->model) model_close(t->model);
    params_free(&t->params);
    if (t->backend) t->backend->close(t->backend);
    if (t->tokenizer) tokenizer_close(t->tokenizer);
    free(t->tokenizer_path);
    if (t->lock.fd >= 0) lock_release(&t->lock);
    recipe_free(&t->recipe);
}

/* ---- a step ----------------------------------------------------------------------------------------------------- */

static struct objective objective_at(const struct trainer *t, int64_t step) {
    const struct recipe_options *o = options_of(t);
    return (struct objective){.kind = t->options->stage,
                              .prior = (enum objective_prior)o->objective_prior,
                              .beta = schedule_beta(o, step),
                              .prior_exit = o->objective_prior_exit,
                              .k = o->objective_k,
                              .gamma = o->objective_gamma};
}

static const real *run_units(struct trainer *t, struct step_report *report) {
    const struct recipe_options *o = options_of(t);
    struct objective objective = objective_at(t, t->step);
    double fraction = (double)t->step / (double)o->train_steps;
    for (int64_t i = 0; i < o->train_batch; i++) {
        struct unit_slot *slot = workers_slot(t->workers, i);
        struct data_unit unit = {.ids = slot->ids, .targets = slot->targets, .starts = slot->starts};
        data_next(&t->data, fraction, &unit);
        slot->n = unit.n;
        slot->n_documents = unit.n_documents;
        slot->weight = unit.weight;
        report->positions += slot->n;
    }
    const real *gradient = workers_gradient(t->workers, o->train_batch, report->loops, &objective);
    for (int64_t i = 0; i < o->train_batch; i++) {
        const struct unit_slot *slot = workers_slot(t->workers, i);
        runlog_add(&report->sums, &slot->result);
        report->divisor += slot->weight * (double)slot->result.valid;
    }
    if (report->divisor == 0) report->divisor = 1; /* a step of prompts alone has a gradient of zero */
    return gradient;
}

static int train_step(struct trainer *t, struct step_report *report, looplm_error *err) {
    const struct recipe_options *o = options_of(t);
    double begin = clock_s();
    *report = (struct step_report){.loops = schedule_loops(o, t->params.config.loops, t->step),
                                   .lr = schedule_lr(o, t->step)};
    const real *gradient = run_units(t, report);
    if (optimizer_step(&t->optimizer, gradient, report->divisor, report->lr, &report->norm)) {
        t->bad_steps = 0;
        model_pack(t->model, &t->params);
        if (t->options->stage == OBJECTIVE_STAGE1) workers_pack(t->workers, &t->params);
    } else {
        log_warning("step %lld: the gradient is not finite; the step is skipped", (long long)t->step + 1);
        if (++t->bad_steps >= BAD_STEPS_MAX)
            return error_set(err, LOOPLM_FORMAT,
                             "the gradient was not finite for %d steps; lower train.lr and go on from the last "
                             "checkpoint, or from an earlier one by editing RUN/latest",
                             BAD_STEPS_MAX);
    }
    t->step++;
    t->tokens += report->positions;
    report->seconds = clock_s() - begin;
    t->seconds += report->seconds;
    return 0;
}

/* ---- telling ---------------------------------------------------------------------------------------------------- */

static int log_step(struct trainer *t, const struct step_report *report, looplm_error *err) {
    const struct unit_result *s = &report->sums;
    int32_t loops = t->params.config.loops;
    json_t *line = json_pack(
        "{s:I, s:I, s:o, s:o, s:o, s:f, s:o, s:o}", "step", (json_int_t)t->step, "tokens", (json_int_t)t->tokens,
        "loss", runlog_mean(s->loss, s->valid), "loss_per_loop", runlog_means(s->ce, s->tokens, loops), "mean_loops",
        runlog_mean(runlog_mean_loops(s, loops), 1), "lr", report->lr, "grad_norm", runlog_mean(report->norm, 1),
        "tokens_per_s", runlog_mean((double)report->positions / report->seconds, 1));
    return runlog_write(&t->log, line, err);
}

/* "3.21 2.98 2.90" */
static void format_losses(const struct unit_result *s, int32_t loops, char text[LOSSES_TEXT]) {
    size_t used = 0;
    text[0] = 0;
    for (int32_t r = 0; r < loops && used + 12 < LOSSES_TEXT; r++)
        if (s->tokens[r])
            used += (size_t)snprintf(text + used, LOSSES_TEXT - used, "%s%.3f", used ? " " : "",
                                     s->ce[r] / (double)s->tokens[r]);
}

static void show_step(struct trainer *t, const struct step_report *report) {
    char losses[LOSSES_TEXT];
    if (t->options->quiet) return;
    format_losses(&report->sums, t->params.config.loops, losses);
    progress_update(&t->progress, t->step, "%.0f tok/s  loss %s  depth %.2f  lr %.2e",
                    (double)report->positions / report->seconds, losses,
                    runlog_mean_loops(&report->sums, t->params.config.loops), report->lr);
}

static int evaluate_one(struct trainer *t, const struct held_out *h, looplm_error *err) {
    int32_t loops = t->params.config.loops;
    struct objective objective = objective_at(t, t->step);
    struct unit_result s;
    char losses[LOSSES_TEXT];
    evaluate_corpus(t->workers, options_of(t)->train_batch, &h->corpus, &objective, options_of(t)->eval_sequences, &s);
    json_t *line = json_pack("{s:I, s:I, s:s, s:o, s:o, s:o, s:o, s:o}", "step", (json_int_t)t->step, "tokens",
                             (json_int_t)t->tokens, "eval", h->name, "loss", runlog_mean(s.loss, s.valid),
                             "loss_per_loop", runlog_means(s.ce, s.tokens, loops), "accuracy_per_loop",
                             runlog_means(s.correct, s.tokens, loops), "mean_loops",
                             runlog_mean(runlog_mean_loops(&s, loops), 1), "valid", json_integer((json_int_t)s.valid));
    if (!t->options->quiet) {
        progress_end(&t->progress);
        format_losses(&s, loops, losses);
        log_info("step %lld, %s: loss %s, depth %.2f", (long long)t->step, h->name, losses,
                 runlog_mean_loops(&s, loops));
    }
    return runlog_write(&t->log, line, err);
}

static int evaluate_all(struct trainer *t, looplm_error *err) {
    int status = 0;
    for (int i = 0; i < t->n_held_out && !status; i++) status = evaluate_one(t, &t->held_out[i], err);
    return status;
}

static int save(struct trainer *t, looplm_error *err) {
    const struct recipe_options *o = options_of(t);
    struct checkpoint_state state = {.step = t->step,
                                     .tokens = t->tokens,
                                     .seconds = t->seconds,
                                     .seed = o->train_seed,
                                     .stage = stage_name(t),
                                     .recipe = json_incref(t->recipe.record),
                                     .data = data_state(&t->data)};
    int status = runlog_sync(&t->log, &state.log_bytes, err);
    if (!status) status = checkpoint_save(o->run_directory, &state, &t->params, &t->optimizer, o->checkpoint_keep, err);
    checkpoint_state_free(&state);
    t->saved_step = t->step;
    t->saved_s = clock_s();
    return status;
}

/* ---- the run ---------------------------------------------------------------------------------------------------- */

static bool is_every(int64_t step, int64_t every) {
    return every > 0 && step % every == 0;
}

static bool is_save_due(const struct trainer *t) {
    const struct recipe_options *o = options_of(t);
    return is_every(t->step, o->checkpoint_every) ||
           (o->checkpoint_seconds > 0 && clock_s() - t->saved_s >= o->checkpoint_seconds);
}

/* What follows a step, in this order: the log of the step, evaluation, the checkpoint that holds both. */
static int after_step(struct trainer *t, const struct step_report *report, bool stop, looplm_error *err) {
    const struct recipe_options *o = options_of(t);
    bool last = t->step == o->train_steps;
    int status = 0;
    show_step(t, report);
    if (last || is_every(t->step, o->log_every)) status = log_step(t, report, err);
    if (!status && (last || is_every(t->step, o->eval_every))) status = evaluate_all(t, err);
    if (!status && (last || stop || is_save_due(t))) status = save(t, err);
    return status;
}

static int run_steps(struct trainer *t, bool *stopped, looplm_error *err) {
    const struct recipe_options *o = options_of(t);
    int status = 0;
    progress_start(&t->progress, "step", t->step, o->train_steps);
    t->saved_s = clock_s();
    *stopped = false;
    while (!status && !*stopped && t->step < o->train_steps) {
        struct step_report report;
        status = train_step(t, &report, err);
        if (status) break;
        *stopped = t->options->stop && t->options->stop(t->options->stop_context);
        status = after_step(t, &report, *stopped, err);
    }
    progress_end(&t->progress);
    if (t->step == o->train_steps) *stopped = false;
    return status;
}

static int publish(const struct trainer *t, looplm_error *err) {
    const struct recipe_options *o = options_of(t);
    enum dtype dtype = o->save_dtype == RECIPE_SAVE_F32 ? DTYPE_F32 : DTYPE_BF16;
    return publish_model(o->run_directory, &t->params, dtype, t->tokenizer_path, err);
}

int trainer_run(const struct trainer_options *options, struct trainer_outcome *outcome, looplm_error *err) {
    struct trainer t = {.options = options, .lock = {-1}};
    *outcome = (struct trainer_outcome){0};
    int status = recipe_read(&t.recipe, options->recipe, options->sets, options->n_sets, err);
    if (status) return status;
    status = open_run(&t, err);
    if (!status) status = run_steps(&t, &outcome->stopped, err);
    if (!status && !outcome->stopped) status = publish(&t, err);
    outcome->step = t.step;
    outcome->steps = options_of(&t)->train_steps;
    outcome->run = strdup(options_of(&t)->run_directory);
    close_run(&t);
    return status;
}
