/* What model_config_read accepts, what it fills in, and that every missing or contradictory key is named. */
#include "base/file.h"
#include "base/json.h"
#include "model/config.h"
#include "support/support.h"

#include <stdlib.h>
#include <string.h>

/* A small valid config; a case changes some of its keys. */
static const char base_ouro[] = "{\"model_type\": \"ouro\", \"hidden_size\": 64, \"intermediate_size\": 96, "
                                "\"num_hidden_layers\": 2, \"num_attention_heads\": 4,"
                                " \"num_key_value_heads\": 2, \"head_dim\": 16, \"vocab_size\": 100, "
                                "\"max_position_embeddings\": 128, \"rms_norm_eps\": 1e-6,"
                                " \"rope_theta\": 10000.0, \"hidden_act\": \"silu\", \"tie_word_embeddings\": false, "
                                "\"eos_token_id\": 0, \"bos_token_id\": 1}";

/* base_ouro with changes (a JSON object; a key whose value is the string "-" is removed), parsed. */
static int parse_changed(struct model_config *config, const char *changes, looplm_error *err) {
    json_t *root = json_loads(base_ouro, 0, NULL), *patch = json_loads(changes, 0, NULL), *value;
    assert_non_null(root);
    assert_non_null(patch);
    const char *key;
    json_object_foreach(patch, key, value) {
        if (json_is_string(value) && strcmp(json_string_value(value), "-") == 0) {
            json_object_del(root, key);
        } else {
            json_object_set(root, key, value);
        }
    }
    char *text = json_dumps(root, 0);
    err->status = LOOPLM_OK;
    err->message[0] = 0;
    int status = model_config_parse(config, text, strlen(text), "CONFIG", err);
    free(text);
    json_decref(root);
    json_decref(patch);
    return status;
}

static void assert_accepted(struct model_config *config, const char *changes) {
    looplm_error err;
    if (parse_changed(config, changes, &err)) fail_msg("%s: %s", changes, err.message);
}

static void read_fixture(struct model_config *config, const char *name) {
    char *path = support_fixture(name);
    looplm_error err;
    if (model_config_read(config, path, &err)) fail_msg("%s", err.message);
    free(path);
}

static void test_published_ouro(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int32_t layers, bos, eos;
    } models[] = {{"ouro-1.4b", 24, 0, 0}, {"ouro-2.6b", 48, 0, 0}, {"ouro-2.6b-thinking", 48, 1, 2}};
    for (size_t i = 0; i < 3; i++) {
        struct model_config c;
        read_fixture(&c, models[i].name);
        assert_int_equal(c.family, FAMILY_OURO);
        assert_int_equal(c.layers, models[i].layers);
        assert_int_equal(c.loops, 4);
        assert_int_equal(c.hidden, 2048);
        assert_int_equal(c.ffn, 5632);
        assert_int_equal(c.vocab, 49152);
        assert_int_equal(c.heads * 1000 + c.kv_heads, 16016);
        assert_int_equal(c.head_dim, 128);
        assert_int_equal(c.max_positions, 65536);
        assert_true(c.rope_theta == 1e6 && c.norm_eps == 1e-6 && c.exit_threshold == 1.0 &&
                    c.initializer_range == 0.02);
        assert_true(c.branch_norms && c.exit_gate && !c.qk_norm && !c.tied);
        assert_int_equal(c.bos_id, models[i].bos);
        assert_int_equal(c.n_eos, 1);
        assert_int_equal(c.eos_ids[0], models[i].eos);
        assert_int_equal(c.pad_id, -1);
    }
}

static void test_published_dense(void **state) {
    (void)state;
    struct model_config c;
    read_fixture(&c, "smollm2");
    assert_int_equal(c.family, FAMILY_LLAMA);
    assert_int_equal(c.loops, 1);
    assert_int_equal(c.kv_heads, 5);
    assert_int_equal(c.pad_id, 49152);
    assert_true(c.tied && !c.branch_norms && !c.exit_gate && !c.qk_norm);
    char *path = support_fixture("qwen2");
    looplm_error err;
    assert_int_equal(model_config_read(&c, path, &err), LOOPLM_UNSUPPORTED);
    support_assert_error(&err, LOOPLM_UNSUPPORTED, "qwen2/config.json", "model_type", "\"qwen2\"", "ouro, llama, qwen3",
                         NULL);
    free(path);
}

static void test_defaults(void **state) {
    (void)state;
    struct model_config c;
    assert_accepted(&c, "{}");
    assert_int_equal(c.loops, 4);
    assert_true(c.exit_threshold == 1.0);
    assert_accepted(&c, "{\"total_ut_steps\": 7, \"early_exit_threshold\": 0.5}");
    assert_int_equal(c.loops, 7);
    assert_true(c.exit_threshold == 0.5);
    assert_accepted(&c, "{\"model_type\": \"llama\", \"head_dim\": null, \"num_key_value_heads\": \"-\"}");
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.kv_heads, 4);
    assert_accepted(&c, "{\"model_type\": \"qwen3\"}");
    assert_true(c.qk_norm && c.loops == 1 && !c.exit_gate);
    assert_accepted(&c,
                    "{\"rope_theta\": \"-\", \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 5e5}}");
    assert_true(c.rope_theta == 5e5);
    assert_accepted(&c, "{\"rope_parameters\": {\"rope_theta\": 10000}, \"rope_scaling\": {\"type\": \"default\"}}");
    assert_accepted(&c, "{\"sliding_window\": 4096, \"use_sliding_window\": false, \"attention_bias\": false}");
    assert_accepted(&c, "{\"eos_token_id\": [2, 0, 2], \"bos_token_id\": null}");
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.eos_ids[0] * 10 + c.eos_ids[1], 20);
    assert_int_equal(c.bos_id, -1);
}

static void test_missing_keys(void **state) {
    (void)state;
    static const char *const keys[] = {
        "model_type",          "hidden_size", "intermediate_size",  "num_hidden_layers",       "num_attention_heads",
        "num_key_value_heads", "head_dim",    "vocab_size",         "max_position_embeddings", "rms_norm_eps",
        "rope_theta",          "hidden_act",  "tie_word_embeddings"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        char changes[96];
        struct model_config c;
        looplm_error err;
        snprintf(changes, sizeof changes, "{\"%s\": \"-\"}", keys[i]);
        assert_int_not_equal(parse_changed(&c, changes, &err), LOOPLM_OK);
        support_assert_error(&err, err.status, "CONFIG: key '", keys[i], "found nothing, expected", NULL);
    }
}

static void test_contradictions(void **state) {
    (void)state;
    static const struct {
        const char *changes, *part;
    } cases[] = {
        {"{\"hidden_size\": 72}", "key 'hidden_size': found 72, expected a multiple of 16"},
        {"{\"intermediate_size\": 100}", "key 'intermediate_size': found 100"},
        {"{\"head_dim\": 24}", "key 'head_dim': found 24, expected a multiple of 16"},
        {"{\"head_dim\": 512}", "key 'head_dim': found 512"},
        {"{\"num_key_value_heads\": 3}", "key 'num_key_value_heads': found 3, expected a divisor"},
        {"{\"num_hidden_layers\": 0}", "key 'num_hidden_layers': found 0"},
        {"{\"num_hidden_layers\": \"2\"}", "key 'num_hidden_layers': found the string \"2\", expected an integer"},
        {"{\"vocab_size\": -5}", "key 'vocab_size': found -5"},
        {"{\"vocab_size\": 99999999999}", "key 'vocab_size': found 99999999999"},
        {"{\"total_ut_steps\": 65}", "key 'total_ut_steps': found 65, expected an integer from 1 to 64"},
        {"{\"model_type\": \"llama\", \"total_ut_steps\": 4}", "key 'total_ut_steps': found 4, expected no such key"},
        {"{\"early_exit_threshold\": -0.1}", "key 'early_exit_threshold'"},
        {"{\"rms_norm_eps\": 0}", "key 'rms_norm_eps': found 0"},
        {"{\"rope_parameters\": {\"rope_theta\": 5.0}}", "the same value as rope_parameters.rope_theta"},
        {"{\"rope_parameters\": {\"rope_type\": \"yarn\", \"rope_theta\": 10000}}", "expected rope_type \"default\""},
        {"{\"rope_parameters\": {}, \"rope_theta\": \"-\"}", "key 'rope_parameters.rope_theta': found nothing"},
        {"{\"rope_parameters\": 3}", "key 'rope_parameters': found 3, expected an object"},
        {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8}}",
         "key 'rope_scaling': found {\"rope_type\":\"llama3\""},
        {"{\"rope_scaling\": 2}", "key 'rope_scaling'"},
        {"{\"partial_rotary_factor\": 0.5}", "key 'partial_rotary_factor': found 0.5, expected 1"},
        {"{\"sliding_window\": 4096}", "key 'sliding_window': found 4096"},
        {"{\"sliding_window\": 4096, \"use_sliding_window\": true}",
         "key 'use_sliding_window': found true, expected false"},
        {"{\"attention_bias\": true}", "key 'attention_bias': found true, expected false"},
        {"{\"mlp_bias\": true}", "key 'mlp_bias': found true, expected false"},
        {"{\"hidden_act\": \"gelu\"}", "key 'hidden_act': found \"gelu\", expected \"silu\""},
        {"{\"layer_types\": [\"full_attention\"]}",
         "key 'layer_types': found [\"full_attention\"], expected an array of 2"},
        {"{\"layer_types\": [\"full_attention\", \"sliding_attention\"]}",
         "key 'layer_types[1]': found \"sliding_attention\""},
        {"{\"quantization_config\": {\"bits\": 4}}", "key 'quantization_config'"},
        {"{\"tie_word_embeddings\": 1}", "key 'tie_word_embeddings': found 1, expected true or false"},
        {"{\"eos_token_id\": 100}", "key 'eos_token_id': found 100"},
        {"{\"eos_token_id\": [0, \"x\"]}", "key 'eos_token_id': found [0,\"x\"]"},
        {"{\"eos_token_id\": [1,2,3,4,5,6,7,8,9]}", "key 'eos_token_id': more than 8 ids"},
        {"{\"bos_token_id\": 100}", "key 'bos_token_id': found 100"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct model_config c;
        looplm_error err;
        if (!parse_changed(&c, cases[i].changes, &err)) fail_msg("accepted: %s", cases[i].changes);
        support_assert_error(&err, err.status, "CONFIG: ", cases[i].part, NULL);
    }
}

static void test_all_mistakes_in_one_message(void **state) {
    (void)state;
    struct model_config c;
    looplm_error err;
    assert_int_equal(
        parse_changed(&c, "{\"hidden_size\": \"-\", \"rope_theta\": \"-\", \"attention_bias\": true}", &err),
        LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "CONFIG: key 'hidden_size'", "; also key 'rope_theta'",
                         "; also key 'attention_bias'", NULL);
}

static void test_not_a_config(void **state) {
    (void)state;
    static const char *const texts[] = {"", "[]", "3", "{", "{\"model_type\": 3}", "{\"a\": 1, \"a\": 2}", "\xff\xfe"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct model_config c;
        looplm_error err = {0};
        assert_int_equal(model_config_parse(&c, texts[i], strlen(texts[i]), "CONFIG", &err), LOOPLM_FORMAT);
        support_assert_error(&err, LOOPLM_FORMAT, "CONFIG", NULL);
    }
    struct model_config c;
    looplm_error err;
    assert_int_equal(model_config_read(&c, "/nowhere/model", &err), LOOPLM_IO);
    support_assert_error(&err, LOOPLM_IO, "/nowhere/model/config.json", NULL);
}

static void test_generation_config(void **state) {
    (void)state;
    char *directory = support_make_directory();
    free(support_write_file(directory, "config.json", base_ouro));
    free(support_write_file(directory, "generation_config.json", "{\"eos_token_id\": [2, 0]}"));
    struct model_config c;
    looplm_error err;
    assert_int_equal(model_config_read(&c, directory, &err), LOOPLM_OK);
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.eos_ids[1], 2);
    free(support_write_file(directory, "generation_config.json", "{\"eos_token_id\": 100}"));
    assert_int_equal(model_config_read(&c, directory, &err), LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "generation_config.json", "eos_token_id", "100", NULL);
    support_remove_directory(directory);
}

static void assert_same(const struct model_config *a, const struct model_config *b) {
    const int64_t x[] = {a->family,   a->layers,   a->hidden, a->ffn,           a->vocab,       a->heads,
                         a->kv_heads, a->head_dim, a->loops,  a->tied,          a->qk_norm,     a->exit_gate,
                         a->bos_id,   a->pad_id,   a->n_eos,  a->max_positions, a->branch_norms};
    const int64_t y[] = {b->family,   b->layers,   b->hidden, b->ffn,           b->vocab,       b->heads,
                         b->kv_heads, b->head_dim, b->loops,  b->tied,          b->qk_norm,     b->exit_gate,
                         b->bos_id,   b->pad_id,   b->n_eos,  b->max_positions, b->branch_norms};
    assert_memory_equal(x, y, sizeof x);
    assert_memory_equal(a->eos_ids, b->eos_ids, sizeof a->eos_ids);
    const double u[] = {a->rope_theta, a->norm_eps, a->initializer_range, a->exit_threshold};
    const double v[] = {b->rope_theta, b->norm_eps, b->initializer_range, b->exit_threshold};
    assert_memory_equal(u, v, sizeof u);
}

/* What is written is read back as the same facts, in every family. */
static void test_write(void **state) {
    (void)state;
    static const char *const changes[] = {
        "{\"total_ut_steps\": 3, \"early_exit_threshold\": 0.7, \"initializer_range\": 0.0123}",
        "{\"model_type\": \"llama\", \"tie_word_embeddings\": true, \"eos_token_id\": [0, 2]}",
        "{\"model_type\": \"qwen3\", \"bos_token_id\": null, \"pad_token_id\": 5, \"eos_token_id\": null}"};
    static const char *const classes[] = {"\"OuroForCausalLM\"", "\"LlamaForCausalLM\"", "\"Qwen3ForCausalLM\""};
    for (int i = 0; i < 3; i++) {
        char *directory = support_make_directory(), *path = file_join(directory, "config.json"), *text;
        struct model_config c, back;
        looplm_error err;
        size_t size;
        assert_accepted(&c, changes[i]);
        assert_int_equal(model_config_write(&c, directory, "bfloat16", &err), LOOPLM_OK);
        if (model_config_read(&back, directory, &err)) fail_msg("%s", err.message);
        assert_same(&c, &back);
        assert_int_equal(file_read(path, 1 << 20, &text, &size, &err), LOOPLM_OK);
        assert_non_null(strstr(text, classes[i]));
        assert_non_null(strstr(text, "\"torch_dtype\": \"bfloat16\""));
        free(text);
        free(path);
        support_remove_directory(directory);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_ouro), cmocka_unit_test(test_published_dense),
        cmocka_unit_test(test_defaults),       cmocka_unit_test(test_missing_keys),
        cmocka_unit_test(test_contradictions), cmocka_unit_test(test_all_mistakes_in_one_message),
        cmocka_unit_test(test_not_a_config),   cmocka_unit_test(test_generation_config),
        cmocka_unit_test(test_write),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
