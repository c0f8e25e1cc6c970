/* The table for AVX2 with FMA and F16C: eight floats a register, two registers a vector. */
#include "tensor/cpu/naive.h"
#include "tensor/cpu/simd.h"
#include "tensor/cpu/tables.h"

/* In this order: each group uses what those before it define. */
#include "tensor/cpu/kernels_forward.inc"
#include "tensor/cpu/kernels_matmul.inc"
#include "tensor/cpu/kernels_matmul_dw.inc"

#include "tensor/cpu/kernels_grad.inc"
#include "tensor/cpu/kernels_pack.inc"
#include "tensor/cpu/kernels_qkv.inc"
#include "tensor/cpu/kernels_quant.inc"
#include "tensor/cpu/kernels_quant_pack.inc"
#include "tensor/cpu/kernels_tile.inc"

#include "tensor/cpu/kernels_attention.inc"
#include "tensor/cpu/kernels_attention_grad.inc"

static bool supported(void) {
    /* Every processor with AVX2 converts f16 too. */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

#define KERNEL(name) simd_##name
const struct cpu_table cpu_table_avx2 = {
    .name = "avx2",
    .supported = supported,
    .ops =
        {
#include "tensor/cpu/table.inc"
        },
};
