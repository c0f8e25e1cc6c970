/* Checkpoints: what is written is read back bit for bit, old ones go, damage and full disks are told. */
#include "support/support.h"

#include "base/file.h"
#include "tensor/cpu/cpu.h"
#include "train/checkpoint.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

struct fixture {
    char *run;
    struct backend *backend;
    struct params params;
    struct optimizer optimizer;
};

static int set_up(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    struct model_config config = {.family = FAMILY_OURO, .vocab = 32};
    struct optimizer_options options = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8};
    looplm_error err;
    model_config_set_family(&config, FAMILY_OURO);
    config.layers = config.loops = 2;
    config.hidden = config.ffn = 32;
    config.heads = config.kv_heads = 2;
    config.head_dim = 16;
    config.max_positions = 64;
    config.rope_theta = 10000;
    config.norm_eps = 1e-6;
    config.initializer_range = 0.02;
    f->run = support_make_directory();
    assert_int_equal(cpu_open(&f->backend, 1, NULL, &err), 0);
    assert_int_equal(params_init(&f->params, &config, 5, 0, &err), 0);
    assert_int_equal(optimizer_init(&f->optimizer, &f->params, f->backend, &options, &err), 0);
    for (int32_t i = 0; i < f->params.table.count; i++) {
        const struct tensor_spec *spec = &f->params.table.specs[i];
        for (int64_t j = 0; j < spec->rows * spec->cols; j++) {
            f->optimizer.m[spec->offset + j] = (real)(0.1 * (double)j);
            f->optimizer.v[spec->offset + j] = (real)(0.3 / (double)(j + 1));
        }
    }
    f->optimizer.step = 12;
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    optimizer_free(&f->optimizer);
    params_free(&f->params);
    f->backend->close(f->backend);
    support_remove_directory(f->run);
    free(f);
    return 0;
}

static int save_at(struct fixture *f, int64_t step, int64_t keep, looplm_error *err) {
    struct checkpoint_state s = {.step = step,
                                 .tokens = 1000,
                                 .log_bytes = 77,
                                 .seconds = 1.5,
                                 .seed = 9,
                                 .stage = "stage1",
                                 .data = json_pack("{s:i}", "sample", 3),
                                 .recipe = json_pack("{s:f}", "train.lr", 0.1)};
    int status = checkpoint_save(f->run, &s, &f->params, &f->optimizer, keep, err);
    checkpoint_state_free(&s);
    return status;
}

static bool has(const struct fixture *f, const char *name) {
    char *path = file_join(f->run, name);
    bool there = file_exists(path);
    free(path);
    return there;
}

static char *newest(const struct fixture *f) {
    looplm_error err;
    char *directory;
    assert_int_equal(checkpoint_find(f->run, &directory, &err), 0);
    return directory;
}

static void test_round_trip(void **state) {
    struct fixture *f = *state;
    size_t size = (size_t)f->params.table.elements * sizeof(real);
    struct checkpoint_state s;
    struct params params;
    looplm_error err;
    assert_null(newest(f));
    assert_int_equal(save_at(f, 12, 2, &err), 0);
    char *directory = newest(f);
    assert_non_null(strstr(directory, "checkpoint-000012"));
    assert_int_equal(checkpoint_read_state(directory, &s, &err), 0);
    assert_int_equal(s.step, 12);
    assert_int_equal(s.tokens, 1000);
    assert_int_equal(s.log_bytes, 77);
    assert_int_equal(s.optimizer_step, 12);
    assert_int_equal(json_integer_value(json_object_get(s.data, "sample")), 3);
    checkpoint_state_free(&s);
    assert_int_equal(params_load(&params, directory, &err), 0);
    assert_memory_equal(params.data, f->params.data, size);
    real *m = malloc(size), *v = malloc(size);
    memcpy(m, f->optimizer.m, size);
    memcpy(v, f->optimizer.v, size);
    memset(f->optimizer.m, 0, size);
    memset(f->optimizer.v, 0, size);
    assert_int_equal(checkpoint_read_optimizer(directory, &f->optimizer, &err), 0);
    assert_memory_equal(m, f->optimizer.m, size);
    assert_memory_equal(v, f->optimizer.v, size);
    free(m);
    free(v);
    params_free(&params);
    free(directory);
}

static void test_keep(void **state) {
    struct fixture *f = *state;
    looplm_error err;
    for (int64_t step = 20; step <= 40; step += 10) assert_int_equal(save_at(f, step, 2, &err), 0);
    assert_false(has(f, "checkpoint-000020"));
    assert_true(has(f, "checkpoint-000030"));
    assert_true(has(f, "checkpoint-000040"));
    /* A run that went back to an earlier step: what is later belongs to nobody. */
    assert_int_equal(save_at(f, 35, 1, &err), 0);
    assert_true(has(f, "checkpoint-000035"));
    assert_false(has(f, "checkpoint-000030"));
    assert_false(has(f, "checkpoint-000040"));
    char *directory = newest(f);
    assert_non_null(strstr(directory, "checkpoint-000035"));
    free(directory);
}

static void test_left_behind(void **state) {
    struct fixture *f = *state;
    looplm_error err;
    char *temporary = file_join(f->run, "checkpoint.tmp");
    assert_int_equal(file_make_directories(temporary, &err), 0);
    free(support_write_file(temporary, "model.safetensors", "half"));
    free(support_write_file(f->run, "latest.tmp-123", "checkp"));
    checkpoint_clean(f->run);
    assert_false(has(f, "latest.tmp-123"));
    assert_false(has(f, "checkpoint.tmp"));
    free(temporary);
}

static void test_damage(void **state) {
    struct fixture *f = *state;
    struct checkpoint_state s;
    looplm_error err;
    assert_int_equal(save_at(f, 50, 2, &err), 0);
    char *directory = newest(f), *other;
    free(support_write_file(directory, "state.json", "{\"format\": 1, \"step\": \"x\"}"));
    assert_int_equal(checkpoint_read_state(directory, &s, &err), LOOPLM_FORMAT);
    support_assert_error(&err, LOOPLM_FORMAT, "state.json", "step", "integer", NULL);
    free(support_write_file(directory, "state.json", "{\"format\": 2}"));
    assert_int_equal(checkpoint_read_state(directory, &s, &err), LOOPLM_FORMAT);
    free(support_write_file(directory, "optimizer.safetensors", "oops"));
    assert_int_not_equal(checkpoint_read_optimizer(directory, &f->optimizer, &err), 0);
    free(support_write_file(f->run, "latest", "../elsewhere\n"));
    assert_int_equal(checkpoint_find(f->run, &other, &err), LOOPLM_FORMAT);
    free(directory);
}

/* A limit on the size of files stands for a full disk: both fail a write in the middle. The child is alone with it. */
static void test_full_disk(void **state) {
    struct fixture *f = *state;
    looplm_error err;
    assert_int_equal(save_at(f, 60, 1, &err), 0);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit limit = {8192, 8192};
        signal(SIGXFSZ, SIG_IGN);
        if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(3);
        int status = save_at(f, 70, 1, &err);
        bool told = strstr(err.message, "checkpoint at step 70") && strstr(err.message, "cannot write");
        _exit(status == LOOPLM_IO && told ? 0 : 4);
    }
    int code;
    assert_int_equal(waitpid(child, &code, 0), child);
    assert_int_equal(WEXITSTATUS(code), 0);
    assert_false(has(f, "checkpoint.tmp"));
    assert_false(has(f, "checkpoint-000070"));
    char *directory = newest(f);
    assert_non_null(strstr(directory, "checkpoint-000060"));
    assert_int_equal(checkpoint_read_optimizer(directory, &f->optimizer, &err), 0);
    free(directory);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(test_round_trip, set_up, tear_down),
                                       cmocka_unit_test_setup_teardown(test_keep, set_up, tear_down),
                                       cmocka_unit_test_setup_teardown(test_left_behind, set_up, tear_down),
                                       cmocka_unit_test_setup_teardown(test_damage, set_up, tear_down),
                                       cmocka_unit_test_setup_teardown(test_full_disk, set_up, tear_down)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
