/* `looplm inspect`: says what a model directory holds, from its config and the headers of its weights; no value is
 * read. A directory with a config alone is described too. */
#include "base/file.h"
#include "cli/command.h"
#include "model/model.h"
#include "model/source.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define INSPECT_OPTIONS(X)                                                            \
    X(ARGUMENT, model, "MODEL", "a model directory, or one with a config.json alone") \
    X(FLAG, json, "json", 0, "print one JSON object")                                 \
    X(FLAG, tensors, "tensors", 0, "list every tensor")
OPTIONS_DEFINE(inspect_options, INSPECT_OPTIONS)

#define DTYPES_MAX 16

/* What all tensors of one stored type take. */
struct stored {
    const char *dtype; /* borrowed from the files */
    int32_t tensors;
    size_t bytes;
};

struct inspection {
    struct model_source source; /* without weights, its files are empty */
    bool weights;
    struct stored stored[DTYPES_MAX];
    int32_t n_stored;
    size_t bytes;
    const char *tokenizer; /* the file that it is in, or NULL */
};

static bool has_file(const char *directory, const char *name) {
    char *path = file_join(directory, name);
    bool has = path && file_exists(path);
    free(path);
    return has;
}

static const char *find_tokenizer(const char *directory) {
    static const char *const pairs[][2] = {
        {"tokenizer.json", "tokenizer.json"}, {"vocab.json", "merges.txt"}, {"encoder.json", "vocab.bpe"}};
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        if (has_file(directory, pairs[i][0]) && has_file(directory, pairs[i][1])) return pairs[i][0];
    }
    return NULL;
}

static void count_stored(struct inspection *in) {
    for (int32_t i = 0; i < in->source.files.n_entries; i++) {
        const struct safetensors_entry *entry = &in->source.files.entries[i];
        int32_t at = 0;
        while (at < in->n_stored && strcmp(in->stored[at].dtype, entry->dtype) != 0) at++;
        if (at == DTYPES_MAX) continue;
        if (at == in->n_stored) in->stored[in->n_stored++].dtype = entry->dtype;
        in->stored[at].tensors++;
        in->stored[at].bytes += entry->size;
        in->bytes += entry->size;
    }
}

static int inspect_open(struct inspection *in, const char *path, looplm_error *err) {
    *in = (struct inspection){0};
    in->weights = has_file(path, "model.safetensors") || has_file(path, "model.safetensors.index.json");
    in->tokenizer = find_tokenizer(path);
    if (in->weights) {
        int status = model_source_open(&in->source, path, err);
        if (!status) count_stored(in);
        return status;
    }
    int status = model_config_read(&in->source.config, path, err);
    return status ? status : tensor_table_init(&in->source.table, &in->source.config, err);
}

/* Keys and values of one position in every plane. */
static int64_t kv_bytes(const struct model_config *c, enum kv_type type) {
    struct kv_geometry g = {type, c->layers, c->kv_heads, c->head_dim};
    return (int64_t)kv_block_size(&g) / KV_BLOCK * c->loops;
}

/* ---- for people ------------------------------------------------------------------------------------------------- */

static void print_id(int32_t id) {
    if (id < 0) {
        printf("none");
    } else {
        printf("%d", id);
    }
}

static void print_ids(const struct model_config *c) {
    printf("token ids          bos ");
    print_id(c->bos_id);
    printf(", pad ");
    print_id(c->pad_id);
    printf(", eos");
    for (int32_t i = 0; i < c->n_eos; i++) printf("%s%d", i ? ", " : " ", c->eos_ids[i]);
    printf("%s\n", c->n_eos ? "" : " none");
}

static void print_exit(const struct model_config *c) {
    if (!c->exit_gate) {
        printf("exit               no gate: every token runs every loop\n");
    } else if (c->exit_threshold >= 1) {
        printf("exit               threshold %g: full depth\n", c->exit_threshold);
    } else {
        printf("exit               threshold %g: Q-exit, q=%g\n", c->exit_threshold, c->exit_threshold);
    }
}

static void print_weights(const struct inspection *in) {
    if (!in->weights) {
        printf("weights            none here (no model.safetensors)\n");
        return;
    }
    printf("weights            %.1f MiB in %d file%s:", (double)in->bytes / (1 << 20), in->source.files.n_files,
           in->source.files.n_files > 1 ? "s" : "");
    for (int32_t i = 0; i < in->n_stored; i++)
        printf("%s %d tensors as %s", i ? "," : "", in->stored[i].tensors, in->stored[i].dtype);
    if (in->source.config.packed) printf("; packed as %s", model_weight_type_name(in->source.config.packed_type));
    printf("\n");
}

/* A line of the list of tensors: of the model's table, or of a packed file as it is. */
struct line {
    const char *name, *dtype; /* dtype NULL: not stored here */
    int32_t dims;
    int64_t shape[2], elements;
};

static int32_t line_count(const struct inspection *in) {
    return in->source.config.packed && in->weights ? in->source.files.n_entries : in->source.table.count;
}

static struct line line_get(const struct inspection *in, int32_t i) {
    if (in->source.config.packed && in->weights) {
        const struct safetensors_entry *e = &in->source.files.entries[i];
        int64_t cols = e->dims == 2 ? e->shape[1] : 1;
        return (struct line){e->name, e->dtype, e->dims, {e->shape[0], cols}, e->shape[0] * cols};
    }
    const struct tensor_spec *spec = &in->source.table.specs[i];
    const struct safetensors_entry *entry = safetensors_find(&in->source.files, spec->name);
    return (struct line){spec->name,
                         entry ? entry->dtype : NULL,
                         spec->dims,
                         {spec->dims == 2 ? spec->rows : spec->cols, spec->cols},
                         spec->rows * spec->cols};
}

static void print_tensors(const struct inspection *in) {
    printf("\n");
    for (int32_t i = 0; i < line_count(in); i++) {
        struct line line = line_get(in, i);
        char text[SAFETENSORS_SHAPE_TEXT];
        printf("%-56s %-16s %-5s %12" PRId64 "\n", line.name, safetensors_shape_text(line.dims, line.shape, text),
               line.dtype ? line.dtype : "-", line.elements);
    }
}

static void print_text(const struct inspection *in, bool tensors) {
    const struct model_config *c = &in->source.config;
    printf("family             %s%s%s\n", model_family_name(c->family),
           c->branch_norms ? ", norms on the branches" : "", c->qk_norm ? ", norms on queries and keys" : "");
    printf("layers x loops     %d x %d\n", c->layers, c->loops);
    printf("hidden, ffn        %d, %d\n", c->hidden, c->ffn);
    printf("heads              %d, kv heads %d, head dimension %d\n", c->heads, c->kv_heads, c->head_dim);
    printf("vocabulary         %d, head %s\n", c->vocab, c->tied ? "tied to the embedding" : "of its own");
    printf("positions          %d, RoPE base %g, norm eps %g\n", c->max_positions, c->rope_theta, c->norm_eps);
    print_ids(c);
    print_exit(c);
    printf("parameters         %" PRId64 " in %d tensors\n", in->source.table.parameters, in->source.table.count);
    print_weights(in);
    printf("KV per token       %.4g KiB in q8, %.4g KiB in bf16, %.4g KiB in f32\n", (double)kv_bytes(c, KV_Q8) / 1024,
           (double)kv_bytes(c, KV_BF16) / 1024, (double)kv_bytes(c, KV_F32) / 1024);
    printf("tokenizer          %s\n", in->tokenizer ? in->tokenizer : "none here");
    if (tensors) print_tensors(in);
}

/* ---- for programs ----------------------------------------------------------------------------------------------- */

static json_t *ids_json(const struct model_config *c) {
    json_t *ids = json_array();
    for (int32_t i = 0; i < c->n_eos; i++) json_array_append_new(ids, json_integer(c->eos_ids[i]));
    return ids;
}

static json_t *weights_json(const struct inspection *in) {
    if (!in->weights) return json_null();
    json_t *types = json_object();
    for (int32_t i = 0; i < in->n_stored; i++) {
        json_object_set_new(
            types, in->stored[i].dtype,
            json_pack("{s:i, s:I}", "tensors", (int)in->stored[i].tensors, "bytes", (json_int_t)in->stored[i].bytes));
    }
    const char *packed = in->source.config.packed ? model_weight_type_name(in->source.config.packed_type) : NULL;
    return json_pack("{s:i, s:I, s:o, s:s?}", "files", (int)in->source.files.n_files, "bytes", (json_int_t)in->bytes,
                     "types", types, "packed", packed);
}

static json_t *tensors_json(const struct inspection *in) {
    json_t *list = json_array();
    for (int32_t i = 0; i < line_count(in); i++) {
        struct line line = line_get(in, i);
        json_t *shape = line.dims == 2 ? json_pack("[I, I]", (json_int_t)line.shape[0], (json_int_t)line.shape[1])
                                       : json_pack("[I]", (json_int_t)line.shape[0]);
        json_array_append_new(list,
                              json_pack("{s:s, s:o, s:s?}", "name", line.name, "shape", shape, "dtype", line.dtype));
    }
    return list;
}

static json_t *facts_json(const struct model_config *c) {
    return json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:b, s:b, s:b}", "family",
                     model_family_name(c->family), "layers", (int)c->layers, "loops", (int)c->loops, "hidden",
                     (int)c->hidden, "ffn", (int)c->ffn, "vocab", (int)c->vocab, "heads", (int)c->heads, "kv_heads",
                     (int)c->kv_heads, "head_dim", (int)c->head_dim, "max_positions", (int)c->max_positions,
                     "rope_theta", c->rope_theta, "norm_eps", c->norm_eps, "tied", (int)c->tied, "branch_norms",
                     (int)c->branch_norms, "qk_norm", (int)c->qk_norm);
}

static json_t *inspection_json(const struct inspection *in, bool tensors) {
    const struct model_config *c = &in->source.config;
    json_t *root = facts_json(c);
    json_t *more = json_pack(
        "{s:i, s:i, s:o, s:{s:b, s:f}, s:I, s:i, s:o, s:{s:I, s:I, s:I}, s:s?}", "bos_id", (int)c->bos_id, "pad_id",
        (int)c->pad_id, "eos_ids", ids_json(c), "exit", "gate", (int)c->exit_gate, "threshold", c->exit_threshold,
        "parameters", (json_int_t)in->source.table.parameters, "tensor_count", (int)in->source.table.count, "weights",
        weights_json(in), "kv_bytes_per_token", "bf16", (json_int_t)kv_bytes(c, KV_BF16), "f32",
        (json_int_t)kv_bytes(c, KV_F32), "q8", (json_int_t)kv_bytes(c, KV_Q8), "tokenizer", in->tokenizer);
    if (root && more) json_object_update(root, more);
    json_decref(more);
    if (root && tensors) json_object_set_new(root, "tensors", tensors_json(in));
    return root;
}

static int inspect(const struct inspect_options *options, looplm_error *err) {
    struct inspection in;
    int status = inspect_open(&in, options->model, err);
    if (!status && options->json) {
        json_t *root = inspection_json(&in, options->tensors);
        if (!root || json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(17)) != 0) {
            status = error_set(err, LOOPLM_MEMORY, "%s: no memory to print it as JSON", options->model);
        }
        printf("\n");
        json_decref(root);
    } else if (!status) {
        print_text(&in, options->tensors);
    }
    model_source_close(&in.source);
    return status;
}

static int run_inspect(int argc, char **argv);
const struct command command_inspect = {"inspect", "MODEL [--json] [--tensors]",
                                        "say what a model is and what it needs", run_inspect};

static int run_inspect(int argc, char **argv) {
    struct inspect_options options;
    looplm_error err;
    int code = command_parse(&command_inspect, inspect_options_table(), &options, argc, argv);
    if (code != COMMAND_GO) return code;
    int status = inspect(&options, &err);
    options_free(inspect_options_table(), &options);
    return status ? command_fail(&err) : COMMAND_DONE;
}
