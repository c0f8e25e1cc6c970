/* A small random looped model (tiny.h). */
#include "support/tiny.h"

#include "support/support.h"
#include "tensor/cpu/cpu.h"

#include "base/random.h"

void tiny_open(struct tiny *t, int32_t loops, enum weight_type type, const char *table, int threads) {
    struct model_config config = {.family = FAMILY_OURO,
                                  .layers = 2,
                                  .hidden = 32,
                                  .ffn = type >= WEIGHT_Q8 ? 64 : 48,
                                  .vocab = 67,
                                  .heads = 4,
                                  .kv_heads = 2,
                                  .head_dim = 16,
                                  .loops = loops,
                                  .max_positions = 4096,
                                  .rope_theta = 10000,
                                  .norm_eps = 1e-6,
                                  .initializer_range = 0.25,
                                  .branch_norms = true,
                                  .exit_gate = true,
                                  .exit_threshold = 1,
                                  .bos_id = -1,
                                  .pad_id = -1};
    looplm_error err = {0};
    assert_int_equal(params_init(&t->params, &config, 7, 0.0, &err), 0);
    struct random random = {11, 0};
    real *gate = params_at(&t->params, TENSOR_EXIT_WEIGHT, -1);
    for (int i = 0; i < config.hidden; i++) gate[i] = (real)random_normal(&random) * (real)0.3;
    assert_int_equal(cpu_open(&t->backend, threads, table, &err), 0);
    assert_int_equal(model_alloc(&t->model, &config, t->backend, type, &err), 0);
    model_pack(t->model, &t->params);
}

void tiny_close(struct tiny *t) {
    model_close(t->model);
    t->backend->close(t->backend);
    params_free(&t->params);
}
