/* Models that are damaged, incomplete or of two minds: each command names the file, what it found and what to do, with
 * status 1, and never crashes. The files are made here from the golden models. */
#include "cli/program.h"

#include "model/safetensors.h"

#include <sys/stat.h>

/* What edits the header of the weights. */
typedef void edit(json_t *header);

/* A copy of golden ouro-r1 in "bad", its header edited (when `change` is given); the data stays as it is. */
static void make_bad(const char *directory, edit *change) {
    assert_program(directory, "rm -rf bad && mkdir bad && cp $G/ouro-r1/config.json $G/ouro-r1/model.safetensors bad",
                   0, NULL);
    if (!change) return;
    char *path;
    unsigned char size[8];
    assert_true(asprintf(&path, "%s/bad/model.safetensors", directory) > 0);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(size, 1, 8, file), 8);
    size_t length = size[0] + 256u * size[1] + 65536u * size[2], used;
    char *text = malloc(length), *data = malloc(1 << 20);
    assert_true(text && data);
    assert_int_equal(fread(text, 1, length, file), length);
    used = fread(data, 1, 1 << 20, file);
    fclose(file);
    json_t *header = json_loadb(text, length, 0, NULL);
    assert_non_null(header);
    change(header);
    char *changed = json_dumps(header, JSON_COMPACT);
    length = strlen(changed);
    for (int i = 0; i < 8; i++) size[i] = (unsigned char)((uint64_t)length >> (8 * i));
    file = fopen(path, "wb");
    assert_non_null(file);
    fwrite(size, 1, 8, file);
    fwrite(changed, 1, length, file);
    fwrite(data, 1, used, file);
    assert_int_equal(fclose(file), 0);
    json_decref(header);
    free(changed);
    free(text);
    free(data);
    free(path);
}

#define NORM "model.norm.weight"
#define HEAD "lm_head.weight"

static json_t *entry(json_t *header, const char *name) {
    json_t *found = json_object_get(header, name);
    assert_non_null(found);
    return found;
}

static void overlap(json_t *header) {
    json_t *norm = entry(header, NORM), *other = entry(header, "model.layers.0.input_layernorm.weight");
    json_object_set(norm, "data_offsets", json_object_get(other, "data_offsets"));
}
static void wrong_type(json_t *header) {
    json_object_set_new(entry(header, NORM), "dtype", json_string("I32"));
}
static void wrong_shape(json_t *header) {
    json_object_set_new(entry(header, HEAD), "shape", json_pack("[i, i]", 32, 67));
}
static void missing(json_t *header) {
    json_object_set(header, "model.morn.weight", entry(header, NORM));
    json_object_del(header, NORM);
}
static void further(json_t *header) {
    json_object_set_new(header, "model.layers.7.mlp.up_proj.weight",
                        json_pack("{s:s, s:[i], s:[i, i]}", "dtype", "F32", "shape", 0, "data_offsets", 0, 0));
}
static void huge_offsets(json_t *header) {
    json_object_set_new(entry(header, NORM), "data_offsets",
                        json_pack("[I, I]", (json_int_t)1 << 50, ((json_int_t)1 << 50) + 128));
}
static void negative(json_t *header) {
    json_object_set_new(entry(header, NORM), "shape", json_pack("[i]", -32));
}

#define FORWARD "$P forward bad $T --ids 1 -o out.st"

static void test_headers(void **state) {
    static const struct {
        edit *change;
        const char *found, *name;
    } cases[] = {
        {overlap, "overlap", NORM},
        {wrong_type, "I32", NORM},
        {wrong_shape, "found shape [32, 67], expected [67, 32]", HEAD},
        {missing, "missing", NORM},
        {further, "model.layers.7.mlp.up_proj.weight", "bad/"},
        {huge_offsets, "reach beyond", NORM},
        {negative, NORM, "bad/"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        make_bad(*state, cases[i].change);
        assert_program(*state, FORWARD, 1, "bad/model.safetensors", cases[i].found, cases[i].name, NULL);
        assert_program(*state, "$P inspect bad", 1, "bad/model.safetensors", cases[i].found, NULL);
    }
}

static void test_sizes(void **state) {
    make_bad(*state, NULL);
    assert_program(*state, FORWARD, 0, NULL);
    assert_program(*state, "truncate -s -100 bad/model.safetensors && " FORWARD, 1, "bad/model.safetensors",
                   "it is truncated", "fetch or write it again", NULL);
    assert_program(*state, "truncate -s 40 bad/model.safetensors && " FORWARD, 1, "bad/model.safetensors", NULL);
    assert_program(*state, "truncate -s 5 bad/model.safetensors && " FORWARD, 1, "5 bytes", NULL);
    assert_program(*state, ": >bad/model.safetensors && " FORWARD, 1, "0 bytes", NULL);
    assert_program(*state, "printf '\\0\\0\\0\\0\\0\\004\\0\\0{}' >bad/model.safetensors && " FORWARD, 1,
                   "claims a header of 4398046511104 bytes", NULL);
    assert_program(*state, "rm bad/model.safetensors && " FORWARD, 1, "found neither model.safetensors nor", NULL);
    assert_program(*state, "mkdir bad/model.safetensors && " FORWARD, 1, "it is a directory", NULL);
    assert_program(*state, "ls out.st.tmp*", 2, NULL);
}

static void test_shards(void **state) {
    assert_program(*state, "rm -rf bad && mkdir bad && cp $G/ouro-f16-sharded/[cm]* bad && " FORWARD, 0, NULL);
    assert_program(*state, "rm bad/model-00002-of-00003.safetensors && " FORWARD, 1, "model.safetensors.index.json",
                   "1 of its 3 shards missing", "model-00002-of-00003.safetensors", NULL);
    assert_program(*state, "$P inspect bad", 1, "shards missing", NULL);
    assert_program(*state, ": >bad/model.safetensors.index.json; " FORWARD, 1, "it is empty", NULL);
}

/* Writes over the bytes of bad's model.norm.weight, `count` times these two. */
static void patch_norm(const char *directory, size_t from, const char bytes[2], int count) {
    struct safetensors st;
    looplm_error err;
    char *path;
    assert_true(asprintf(&path, "%s/bad/model.safetensors", directory) > 0);
    if (safetensors_open(&st, path, &err)) fail_msg("%s", err.message);
    size_t offset = safetensors_find(&st, NORM)->offset + from;
    safetensors_close(&st);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, (long)offset, SEEK_SET), 0);
    for (int i = 0; i < count; i++) assert_int_equal(fwrite(bytes, 1, 2, file), 2);
    assert_int_equal(fclose(file), 0);
    free(path);
}

static void test_values(void **state) {
    make_bad(*state, NULL);
    patch_norm(*state, 4 * 22 + 2, "\300\177", 1);
    assert_program(*state, FORWARD, 1, "bad/model.safetensors: tensor '" NORM "': element 22 is NaN", "damaged", NULL);
    make_bad(*state, NULL);
    patch_norm(*state, 4 * 5, "\0\0", 1);
    patch_norm(*state, 4 * 5 + 2, "\200\377", 1);
    assert_program(*state, FORWARD, 1, "tensor '" NORM "': element 5 is infinite", NULL);
}

/* Finite weights whose products overflow (bf16 3.4e38): an error, in every way of sampling. */
static void test_overflow(void **state) {
    static const char *const ways[] = {"", "--temperature 0", "--top-k 5", "--min-p 0.1", "--top-p 0.5"};
    assert_program(*state, "rm -rf bad && cp -r $M bad", 0, NULL);
    patch_norm(*state, 0, "\177\177", 32);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        char command[256];
        snprintf(command, sizeof command, "timeout 60 $P run bad $T -p 'the cat' -n 4 %s", ways[i]);
        assert_program(*state, command, 1, "logits after 3 tokens are not finite", NULL);
    }
}

static void test_config(void **state) {
    static const struct {
        const char *change, *found;
    } cases[] = {
        {": >bad/config.json", "bad/config.json: not valid JSON: it is empty"},
        {"echo '{' >bad/config.json", "bad/config.json: not valid JSON"},
        {"echo '[]' >bad/config.json", "bad/config.json"},
        {"sed -i 's/\"vocab_size\": 67/\"vocab_size\": 68/' bad/config.json",
         "found shape [67, 32], expected [68, 32]"},
        {"sed -i 's/\"hidden_size\": 32/\"hidden_size\": 33/' bad/config.json", "key 'hidden_size': found 33"},
        {"sed -i 's/\"hidden_size\"/\"hiden_size\"/' bad/config.json", "key 'hidden_size': found nothing"},
        {"sed -i 's/\"ouro\"/\"mamba\"/' bad/config.json", "found \"mamba\", expected one of ouro"},
        {"sed -i 's/\"vocab_size\": 67/\"vocab_size\": 1e30/' bad/config.json", "vocab_size"},
        {"rm bad/config.json", "bad/config.json: cannot open: no such file"},
        {"rm -f bad/config.json; mkdir bad/config.json", "bad/config.json: cannot read: it is a directory"},
    };
    char command[512];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        make_bad(*state, NULL);
        snprintf(command, sizeof command, "%s; %s", cases[i].change, FORWARD);
        assert_program(*state, command, 1, cases[i].found, NULL);
        assert_program(*state, "$P inspect bad", 1, "bad/", NULL);
    }
}

static void test_tokenizer(void **state) {
    assert_program(*state, "rm -rf bad && cp -r $M bad && : >bad/tokenizer.json && $P run bad $T -p x", 1,
                   "bad/tokenizer.json: not valid JSON: it is empty", NULL);
    assert_program(*state, "echo '{}' >bad/tokenizer.json && $P run bad $T -p x", 1, "bad/tokenizer.json", NULL);
    assert_program(*state, "rm bad/tokenizer.json; mkdir bad/tokenizer.json; $P run bad $T -p x", 1,
                   "bad/tokenizer.json", "it is a directory", NULL);
    /* More ids than the model has rows. */
    assert_program(*state,
                   "rm -rf bad/tokenizer.json && $P tokenizer train --vocab-size 320 --min-count 1 -o bad text.txt && "
                   "$P run bad $T -p x",
                   1, "bad: the tokenizer has ids up to 319, but the model's vocab_size is 300", NULL);
    assert_program(*state, "rm bad/tokenizer.json && $P run bad $T -p x", 2, "bad: ", "no tokenizer.json", NULL);
}

/* A dense model has no gate to ask; it may still be run with more loops. */
static void test_dense(void **state) {
    assert_program(*state,
                   "$P train r.yaml --quiet --set model.family=llama --set model.loops=1 --set run.directory=dense "
                   "--set train.steps=1",
                   0, NULL);
    assert_program(*state, "$P run dense/model $T -p x -n 3 --json", 0, "\"mean_loops\": 1.0", NULL);
    assert_program(*state, "$P run dense/model $T -p x -n 3 --json --exit loops=2", 0, "\"mean_loops\": 2.0", NULL);
    assert_program(*state, "$P run dense/model $T -p x -n 3 --json --exit q=0.5,max=2", 2, "max=2", NULL);
}

/* Root may read everything, so it becomes somebody else first. */
static void test_permissions(void **state) {
    const char *as = geteuid() ? "" : "setpriv --reuid=65534 --clear-groups ";
    char command[256];
    snprintf(command, sizeof command, "%s$P --version", as);
    if (program_run(*state, command, NULL)) {
        printf("skipped: the program cannot be run as a user without rights\n");
        skip();
    }
    make_bad(*state, NULL);
    assert_int_equal(chmod(*state, 0755), 0);
    snprintf(command, sizeof command, "chmod 755 bad && chmod 0 bad/config.json && %s$P inspect bad", as);
    assert_program(*state, command, 1, "bad/config.json", "permission denied", NULL);
    snprintf(command, sizeof command, "chmod 644 bad/config.json && chmod 0 bad/model.safetensors && %s$P inspect bad",
             as);
    assert_program(*state, command, 1, "bad/model.safetensors", "permission denied", NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_headers),   cmocka_unit_test(test_sizes),    cmocka_unit_test(test_shards),
        cmocka_unit_test(test_values),    cmocka_unit_test(test_overflow), cmocka_unit_test(test_config),
        cmocka_unit_test(test_tokenizer), cmocka_unit_test(test_dense),    cmocka_unit_test(test_permissions),
    };
    return cmocka_run_group_tests(tests, program_setup, program_teardown);
}
