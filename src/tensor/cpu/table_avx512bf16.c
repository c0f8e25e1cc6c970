/* The table for AVX-512 with BF16 and VNNI instructions: as the avx512vnni table, but products with bf16 weights add
 * pairs of the inner dimension in one instruction, which rounds differently (and flushes subnormal numbers). */
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
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}

#define KERNEL(name) simd_##name
const struct cpu_table cpu_table_avx512bf16 = {
    .name = "avx512bf16",
    .supported = supported,
    .ops =
        {
#include "tensor/cpu/table.inc"
        },
};
