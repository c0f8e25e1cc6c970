/* A recipe: the YAML file that says what a training run is, as one table of options. */
#ifndef TRAIN_RECIPE_H
#define TRAIN_RECIPE_H

#include "base/options.h"
#include "model/config.h"
#include "train/objective.h"

#define RECIPE_SOURCES_MAX 64
#define RECIPE_BATCH_MAX (1 << 20)
#define RECIPE_STEPS_MAX 1000000000
#define RECIPE_BYTES_MAX ((size_t)1 << 20)

#define RECIPE_OPTIONS(X)                                                                                              \
    X(TEXT, run_directory, "run.directory", 0, OPTION_NEEDED, "DIR", "where the run lives: log, checkpoints, model")   \
    X(TEXT, model_init, "model.init", 0, NULL, "DIR", "start from this model instead of fresh values")                 \
    X(TEXT, model_tokenizer, "model.tokenizer", 0, NULL, "DIR", "the tokenizer; by default that of model.init")        \
    X(CHOICE, model_family, "model.family", 0, "ouro", "ouro|llama|qwen3", "the kind of block")                        \
    X(INT, model_hidden, "model.hidden", 0, 256, 16, MODEL_WIDTH_MAX, "D", "width of the hidden state")                \
    X(INT, model_layers, "model.layers", 0, 4, 1, MODEL_LAYERS_MAX, "L", "layers of the shared stack")                 \
    X(INT, model_heads, "model.heads", 0, 4, 1, 65536, "H", "query heads")                                             \
    X(INT, model_kv_heads, "model.kv_heads", 0, 0, 0, 65536, "G", "key and value heads; 0: as many as query heads")    \
    X(INT, model_head_dim, "model.head_dim", 0, 0, 0, 256, "K", "width of a head; 0: hidden / heads")                  \
    X(INT, model_ffn, "model.ffn", 0, 0, 0, MODEL_WIDTH_MAX, "F", "width of the MLP; 0: 8/3 of hidden")                \
    X(INT, model_loops, "model.loops", 0, 4, 1, MODEL_LOOPS_MAX, "R", "recurrent steps")                               \
    X(INT, model_vocab, "model.vocab", 0, 0, 0, MODEL_VOCAB_MAX, "V", "rows of the embedding; 0: the tokenizer's ids") \
    X(REAL, model_rope_theta, "model.rope_theta", 0, 10000, 1, 1e12, "X", "base of the rotary embedding")              \
    X(REAL, model_norm_eps, "model.norm_eps", 0, 1e-6, 1e-12, 0.1, "X", "added to the mean square in norms")           \
    X(SWITCH, model_tied, "model.tied", 0, false, "the head is the embedding")                                         \
    X(REAL, model_initializer_range, "model.initializer_range", 0, 0, 0, 1, "X",                                       \
      "deviation of fresh matrices; 0: hidden^-0.5")                                                                   \
    X(REAL, model_embedding_range, "model.embedding_range", 0, 0, 0, 10, "X",                                          \
      "deviation of a fresh embedding; 0: that of the matrices")                                                       \
    X(REAL, model_branch_norm, "model.branch_norm", 0, 1, 0, 10, "X", "first weight of the norms on the branches")     \
    X(REAL, model_exit_bias, "model.exit_bias", 0, 0, -20, 20, "X", "the exit gate's first bias")                      \
    X(INT, model_max_positions, "model.max_positions", 0, 4096, 1, MODEL_POSITIONS_MAX, "N", "context that it claims") \
    X(LIST, data_path, "data.*.path", 0, "PATH", "text: .txt or .jsonl (.gz, .zst), or the PREFIX of .bin and .idx")   \
    X(LIST, data_weight, "data.*.weight", 0, "X", "share of the units, each of train.sequence positions (default 1)")  \
    X(LIST, data_loss_weight, "data.*.loss_weight", 0, "X", "weight of its tokens in the loss (default 1)")            \
    X(LIST, data_from, "data.*.from", 0, "X", "used from this fraction of the run on (default 0)")                     \
    X(LIST, data_until, "data.*.until", 0, "X", "used until this fraction of the run (default 1)")                     \
    X(LIST, eval_path, "eval.*.path", 0, "PATH", "held-out text, in the same forms")                                   \
    X(LIST, eval_name, "eval.*.name", 0, "NAME", "its name in the log; by default its number")                         \
    X(INT, eval_every, "eval.every", 0, 500, 0, RECIPE_STEPS_MAX, "N",                                                 \
      "steps between evaluations; 0: at the end only")                                                                 \
    X(INT, eval_sequences, "eval.sequences", 0, 64, 1, 1 << 24, "N", "evaluate on the first N sequences of each text") \
    X(INT, train_sequence, "train.sequence", 0, 256, 2, 1 << 20, "N", "longest sequence, in positions")                \
    X(INT, train_batch, "train.batch", 0, 16, 1, RECIPE_BATCH_MAX, "N", "sequences per step")                          \
    X(INT, train_steps, "train.steps", 0, 1000, 1, RECIPE_STEPS_MAX, "N", "optimizer steps of the whole run")          \
    X(REAL, train_lr, "train.lr", 0, 1e-3, 0, 10, "X", "highest learning rate")                                        \
    X(CHOICE, train_schedule, "train.schedule", 0, "wsd", "constant|cosine|wsd", "course of the learning rate")        \
    X(INT, train_warmup, "train.warmup", 0, 100, 0, RECIPE_STEPS_MAX, "N", "steps of linear warm-up")                  \
    X(REAL, train_decay, "train.decay", 0, 0.2, 0, 1, "X", "wsd: fraction of the run over which the rate falls")       \
    X(REAL, train_final_lr, "train.final_lr", 0, 0.1, 0, 1, "X", "last learning rate as a fraction of train.lr")       \
    X(REAL, train_beta1, "train.beta1", 0, 0.9, 0, 0.99999, "X", "AdamW: decay of the first moment")                   \
    X(REAL, train_beta2, "train.beta2", 0, 0.95, 0, 0.9999999, "X", "AdamW: decay of the second moment")               \
    X(REAL, train_eps, "train.eps", 0, 1e-8, 1e-30, 1, "X", "AdamW: added to the root of the second moment")           \
    X(REAL, train_weight_decay, "train.weight_decay", 0, 0.1, 0, 10, "X", "AdamW: decoupled decay of the matrices")    \
    X(REAL, train_clip, "train.clip", 0, 1, 0, 1e9, "X", "clip the global gradient norm; 0: off")                      \
    X(INT, train_seed, "train.seed", 0, 1, 0, INT64_MAX, "N", "of fresh values and the order of the data")             \
    X(SWITCH, train_recompute, "train.recompute", 0, false, "compute each loop again in backward: less memory")        \
    X(INT, train_loops_from, "train.loops_from", 0, 0, 0, MODEL_LOOPS_MAX, "N", "loops at the start; 0: all of them")  \
    X(REAL, train_loops_warmup, "train.loops_warmup", 0, 0, 0, 1, "X", "fraction of the run until all loops are run")  \
    X(CHOICE, train_precision, "train.precision", 0, "f32", "f32|bf16", "inputs of products, and KV")                  \
    X(REAL, objective_beta, "objective.beta", 0, 0.1, 0, 100, "X", "weight of the entropy of the exit distribution")   \
    X(REAL, objective_beta_final, "objective.beta_final", 0, -1, -1, 100, "X",                                         \
      "its last value, reached in a line; -1: the same")                                                               \
    X(CHOICE, objective_prior, "objective.prior", 0, "uniform", "uniform|geometric", "prior over exits")               \
    X(REAL, objective_prior_exit, "objective.prior_exit", 0, 0.5, 1e-6, 0.999999, "X",                                 \
      "lambda of the geometric prior")                                                                                 \
    X(REAL, objective_k, "objective.k", 0, 50, 0, 1e6, "X", "stage II: slope of the continuation target")              \
    X(REAL, objective_gamma, "objective.gamma", 0, 0.005, -100, 100, "X", "stage II: gain that is worth a loop")       \
    X(INT, checkpoint_every, "checkpoint.every", 0, 0, 0, RECIPE_STEPS_MAX, "N",                                       \
      "steps between checkpoints; 0: by time only")                                                                    \
    X(REAL, checkpoint_seconds, "checkpoint.seconds", 0, 300, 0, 1e9, "S",                                             \
      "seconds between checkpoints; 0: by steps only")                                                                 \
    X(INT, checkpoint_keep, "checkpoint.keep", 0, 2, 1, 1000000, "N", "keep the last N checkpoints")                   \
    X(INT, log_every, "log.every", 0, 1, 1, RECIPE_STEPS_MAX, "N", "steps between lines of the log")                   \
    X(INT, threads, "threads", 0, 0, 0, 256, "N", "threads; 0: all processors online")                                 \
    X(INT, train_workers, "train.workers", 0, 0, 0, 256, "N",                                                          \
      "sequences at once, each on its share of the threads; 0: by size")                                               \
    X(TEXT, kernels, "kernels", 0, NULL, "TABLE", "kernel table (scalar, avx2, ...); by default the best")             \
    X(CHOICE, save_dtype, "save.dtype", 0, "bf16", "bf16|f32", "type of the weights in RUN/model")
OPTIONS_DEFINE(recipe_options, RECIPE_OPTIONS)

enum { RECIPE_SCHEDULE_CONSTANT, RECIPE_SCHEDULE_COSINE, RECIPE_SCHEDULE_WSD };
enum { RECIPE_PRECISION_F32, RECIPE_PRECISION_BF16 };
enum { RECIPE_SAVE_BF16, RECIPE_SAVE_F32 };

/* A text to learn from, and the part of the run that uses it. */
struct recipe_source {
    const char *path; /* borrowed from the options */
    double weight, loss_weight, from, until;
};

struct recipe {
    struct recipe_options options; /* paths are resolved: relative ones are relative to the recipe's file */
    char *path, *text;             /* the file and its content */
    json_t *record;                /* all values as they were given, before paths were resolved */
    struct recipe_source sources[RECIPE_SOURCES_MAX];
    int n_sources;
};

/* Reads the file, applies `sets` ("key=value") and checks everything that can be checked without opening other files.
 */
int recipe_read(struct recipe *recipe, const char *path, char *const *sets, int n_sets, looplm_error *err);
/* The same from options that are filled already; used by recipe_read, and for fuzzing. */
int recipe_check(struct recipe *recipe, looplm_error *err);
void recipe_free(struct recipe *recipe);

/* The config of a fresh model; `vocab` is what the tokenizer needs (0: no tokenizer). */
int recipe_model_config(const struct recipe *recipe, int32_t vocab, struct model_config *config, looplm_error *err);
/* What the recipe may change in the config of model.init: loops, rope_theta, max_positions. */
int recipe_adapt_config(const struct recipe *recipe, struct model_config *config, looplm_error *err);

/* Compares the records of two runs of one directory. Keys that do not change what is learned may differ; another is a
 * LOOPLM_MISMATCH that names it. */
int recipe_compare(const json_t *recorded, const json_t *now, const char *origin, looplm_error *err);

#endif
