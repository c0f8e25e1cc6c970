/* Owns what a recipe means: its keys, where its paths lead, which values exclude each other, and which of them a
 * resumed run may change. Opening what the paths name is left to data.c and trainer.c. */
#include "train/recipe.h"

#include "base/file.h"

#include <errno.h>
#include <libgen.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int no_memory(looplm_error *err) {
    return error_set(err, LOOPLM_MEMORY, "recipe: no memory to hold it");
}

/* ---- paths ------------------------------------------------------------------------------------------------------ */

/* The path as seen from here; fresh, NULL without memory. */
static char *resolve(const char *recipe_path, const char *path) {
    if (path[0] == '/') return strdup(path);
    char *copy = strdup(recipe_path);
    if (!copy) return NULL;
    const char *directory = dirname(copy);
    char *joined = strcmp(directory, ".") == 0 ? strdup(path) : file_join(directory, path);
    free(copy);
    return joined;
}

static int resolve_text(struct recipe *recipe, const char *key, const char *value, looplm_error *err) {
    if (!value) return 0;
    char *path = resolve(recipe->path, value);
    if (!path) return no_memory(err);
    int status = options_set(recipe_options_table(), &recipe->options, key, path, recipe->path, err);
    free(path);
    return status;
}

static int resolve_list(const struct recipe *recipe, struct option_list *list, looplm_error *err) {
    for (int i = 0; i < list->count; i++) {
        if (!list->items[i]) continue;
        char *path = resolve(recipe->path, list->items[i]);
        if (!path) return no_memory(err);
        free(list->items[i]);
        list->items[i] = path;
    }
    return 0;
}

static int resolve_paths(struct recipe *recipe, looplm_error *err) {
    struct recipe_options *o = &recipe->options;
    int status = resolve_text(recipe, "run.directory", o->run_directory, err);
    if (!status) status = resolve_text(recipe, "model.init", o->model_init, err);
    if (!status) status = resolve_text(recipe, "model.tokenizer", o->model_tokenizer, err);
    if (!status) status = resolve_list(recipe, &o->data_path, err);
    if (!status) status = resolve_list(recipe, &o->eval_path, err);
    return status;
}

/* ---- sources ---------------------------------------------------------------------------------------------------- */

/* Item i of a starred list as a number in [min, max]; an absent one leaves *out. */
static int read_number(const struct recipe *recipe, const struct option_list *list, int i, const char *key, double min,
                       double max, double *out, looplm_error *err) {
    const char *text = i < list->count ? list->items[i] : NULL;
    if (!text) return 0;
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || *end || errno || !(value >= min && value <= max))
        return error_set(err, LOOPLM_USAGE, "%s: key data.%d.%s: found '%.60s', expected a number from %g to %g",
                         recipe->path, i, key, text, min, max);
    *out = value;
    return 0;
}

static int read_source(struct recipe *recipe, int i, looplm_error *err) {
    const struct recipe_options *o = &recipe->options;
    struct recipe_source *s = &recipe->sources[i];
    *s = (struct recipe_source){.path = o->data_path.items[i], .weight = 1, .loss_weight = 1, .from = 0, .until = 1};
    if (!s->path)
        return error_set(err, LOOPLM_USAGE, "%s: key data.%d.path is missing: every item of data needs one",
                         recipe->path, i);
    int status = read_number(recipe, &o->data_weight, i, "weight", 0, 1e9, &s->weight, err);
    if (!status) status = read_number(recipe, &o->data_loss_weight, i, "loss_weight", 1e-6, 1e6, &s->loss_weight, err);
    if (!status) status = read_number(recipe, &o->data_from, i, "from", 0, 1, &s->from, err);
    if (!status) status = read_number(recipe, &o->data_until, i, "until", 0, 1, &s->until, err);
    if (!status && s->from >= s->until)
        status = error_set(err, LOOPLM_USAGE, "%s: item %d of data: from is %g and until is %g; from must be smaller",
                           recipe->path, i, s->from, s->until);
    return status;
}

static bool is_covered(const struct recipe *recipe, double fraction) {
    for (int i = 0; i < recipe->n_sources; i++) {
        const struct recipe_source *s = &recipe->sources[i];
        if (s->weight > 0 && fraction >= s->from && fraction < s->until) return true;
    }
    return false;
}

/* The set of active sources changes only where one begins or ends. */
static int check_covered(const struct recipe *recipe, looplm_error *err) {
    for (int i = -1; i < recipe->n_sources; i++) {
        double fraction = i < 0 ? 0 : recipe->sources[i].until;
        if (fraction >= 1 || is_covered(recipe, fraction)) continue;
        return error_set(err, LOOPLM_USAGE,
                         "%s: no item of data with a weight above 0 is in use at fraction %g of the run; change its "
                         "from and until",
                         recipe->path, fraction);
    }
    return 0;
}

static int read_sources(struct recipe *recipe, looplm_error *err) {
    int n = recipe->options.data_path.count;
    if (n < 1)
        return error_set(err, LOOPLM_USAGE, "%s: key data is missing: expected a list of items with a path",
                         recipe->path);
    if (n > RECIPE_SOURCES_MAX)
        return error_set(err, LOOPLM_LIMIT, "%s: data has %d items, expected at most %d", recipe->path, n,
                         RECIPE_SOURCES_MAX);
    int status = 0;
    for (int i = 0; i < n && !status; i++) status = read_source(recipe, i, err);
    recipe->n_sources = n;
    return status ? status : check_covered(recipe, err);
}

/* ---- checks ----------------------------------------------------------------------------------------------------- */

static int check_evals(const struct recipe *recipe, looplm_error *err) {
    const struct recipe_options *o = &recipe->options;
    if (o->eval_path.count > RECIPE_SOURCES_MAX)
        return error_set(err, LOOPLM_LIMIT, "%s: eval has %d items, expected at most %d", recipe->path,
                         o->eval_path.count, RECIPE_SOURCES_MAX);
    for (int i = 0; i < o->eval_path.count; i++)
        if (!o->eval_path.items[i])
            return error_set(err, LOOPLM_USAGE, "%s: key eval.%d.path is missing: every item of eval needs one",
                             recipe->path, i);
    return 0;
}

/* Shapes come from model.init when it is given; saying them twice would hide a mistake. */
static int check_init(const struct recipe *recipe, looplm_error *err) {
    const struct recipe_options *o = &recipe->options;
    const struct {
        const char *key;
        bool given;
    } shapes[] = {{"model.family", o->model_family_given},
                  {"model.hidden", o->model_hidden_given},
                  {"model.layers", o->model_layers_given},
                  {"model.heads", o->model_heads_given},
                  {"model.kv_heads", o->model_kv_heads_given},
                  {"model.head_dim", o->model_head_dim_given},
                  {"model.ffn", o->model_ffn_given},
                  {"model.vocab", o->model_vocab_given},
                  {"model.norm_eps", o->model_norm_eps_given},
                  {"model.tied", o->model_tied_given},
                  {"model.initializer_range", o->model_initializer_range_given},
                  {"model.embedding_range", o->model_embedding_range_given},
                  {"model.branch_norm", o->model_branch_norm_given},
                  {"model.exit_bias", o->model_exit_bias_given}};
    if (!o->model_init) return 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (shapes[i].given)
            return error_set(err, LOOPLM_USAGE,
                             "%s: key %s is given beside model.init, whose config.json says it already; remove one",
                             recipe->path, shapes[i].key);
    return 0;
}

int recipe_check(struct recipe *recipe, looplm_error *err) {
    const struct recipe_options *o = &recipe->options;
    int status = options_check(recipe_options_table(), o, recipe->path, err);
    if (!status) status = read_sources(recipe, err);
    if (!status) status = check_evals(recipe, err);
    if (!status) status = check_init(recipe, err);
    if (status) return status;
    if (o->train_warmup > o->train_steps)
        return error_set(err, LOOPLM_USAGE, "%s: key train.warmup: found %lld, expected at most train.steps = %lld",
                         recipe->path, (long long)o->train_warmup, (long long)o->train_steps);
    if (o->objective_beta_final < 0 && o->objective_beta_final != -1)
        return error_set(err, LOOPLM_USAGE, "%s: key objective.beta_final: found %g, expected -1 or at least 0",
                         recipe->path, o->objective_beta_final);
    return 0;
}

int recipe_read(struct recipe *recipe, const char *path, char *const *sets, int n_sets, looplm_error *err) {
    const struct options_table *table = recipe_options_table();
    size_t size;
    *recipe = (struct recipe){0};
    int status = options_init(table, &recipe->options, err);
    if (status) return status;
    recipe->path = strdup(path);
    status = recipe->path ? file_read(path, RECIPE_BYTES_MAX, &recipe->text, &size, err) : no_memory(err);
    if (!status) status = options_read(table, &recipe->options, path, err);
    for (int i = 0; i < n_sets && !status; i++) status = options_override(table, &recipe->options, sets[i], err);
    if (!status && !(recipe->record = options_dump(table, &recipe->options))) status = no_memory(err);
    if (!status) status = resolve_paths(recipe, err);
    if (!status) status = recipe_check(recipe, err);
    if (status) recipe_free(recipe);
    return status;
}

void recipe_free(struct recipe *recipe) {
    options_free(recipe_options_table(), &recipe->options);
    free(recipe->path);
    free(recipe->text);
    json_decref(recipe->record);
    *recipe = (struct recipe){0};
}

/* ---- the model -------------------------------------------------------------------------------------------------- */

int recipe_model_config(const struct recipe *recipe, int32_t vocab, struct model_config *config, looplm_error *err) {
    const struct recipe_options *o = &recipe->options;
    if (!o->model_vocab && !vocab)
        return error_set(err, LOOPLM_USAGE, "%s: neither model.tokenizer nor model.vocab is given; one is needed",
                         recipe->path);
    if (o->model_family != FAMILY_OURO && o->model_loops_given && o->model_loops != 1)
        return error_set(err, LOOPLM_USAGE,
                         "%s: key model.loops: found %lld, expected 1: model.family %s does not loop", recipe->path,
                         (long long)o->model_loops, model_family_name((enum model_family)o->model_family));
    int64_t ffn = o->model_ffn ? o->model_ffn : (o->model_hidden * 8 / 3 + 63) / 64 * 64;
    model_config_set_family(config, (enum model_family)o->model_family);
    *config = (struct model_config){
        .family = config->family,
        .branch_norms = config->branch_norms,
        .exit_gate = config->exit_gate,
        .qk_norm = config->qk_norm,
        .layers = (int32_t)o->model_layers,
        .hidden = (int32_t)o->model_hidden,
        .ffn = (int32_t)ffn,
        .vocab = o->model_vocab ? (int32_t)o->model_vocab : vocab,
        .heads = (int32_t)o->model_heads,
        .kv_heads = (int32_t)(o->model_kv_heads ? o->model_kv_heads : o->model_heads),
        .head_dim = (int32_t)(o->model_head_dim ? o->model_head_dim : o->model_hidden / o->model_heads),
        .loops = config->family == FAMILY_OURO ? (int32_t)o->model_loops : 1,
        .max_positions = (int32_t)o->model_max_positions,
        .rope_theta = o->model_rope_theta,
        .norm_eps = o->model_norm_eps,
        .initializer_range =
            o->model_initializer_range > 0 ? o->model_initializer_range : 1 / sqrt((double)o->model_hidden),
        .tied = o->model_tied,
        .exit_threshold = 1,
        .bos_id = 0,
        .pad_id = 0,
        .eos_ids = {0},
        .n_eos = 1};
    return model_config_validate(config, recipe->path, err);
}

int recipe_adapt_config(const struct recipe *recipe, struct model_config *config, looplm_error *err) {
    const struct recipe_options *o = &recipe->options;
    if (o->model_loops_given && config->family == FAMILY_OURO) config->loops = (int32_t)o->model_loops;
    if (o->model_rope_theta_given) config->rope_theta = o->model_rope_theta;
    if (o->model_max_positions_given) config->max_positions = (int32_t)o->model_max_positions;
    return model_config_validate(config, recipe->path, err);
}

/* ---- resuming --------------------------------------------------------------------------------------------------- */

/* What a resumed run may say differently. train.steps is one: a run can be made longer or shorter. */
static bool may_differ(const char *key) {
    static const char *const free_keys[] = {
        "run.directory", "train.steps", "train.recompute",  "eval.every",         "eval.sequences",
        "eval.*.path",   "eval.*.name", "checkpoint.every", "checkpoint.seconds", "checkpoint.keep",
        "log.every",     "threads",     "kernels",          "save.dtype",         "train.workers"};
    for (size_t i = 0; i < sizeof free_keys / sizeof *free_keys; i++)
        if (strcmp(key, free_keys[i]) == 0) return true;
    return false;
}

int recipe_compare(const json_t *recorded, const json_t *now, const char *origin, looplm_error *err) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)now, key, value) {
        const json_t *before = json_object_get(recorded, key);
        if (may_differ(key) || (before && json_equal(before, value))) continue;
        char *was = before ? json_dumps(before, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(8)) : NULL;
        char *is = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(8));
        int status = error_set(err, LOOPLM_MISMATCH,
                               "%s: the run began with %s = %.200s, and the recipe now says %.200s; restore it, or "
                               "choose another run.directory",
                               origin, key, was ? was : "nothing", is ? is : "something else");
        free(was);
        free(is);
        return status;
    }
    return 0;
}
