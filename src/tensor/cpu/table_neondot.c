/* The table for AArch64 with the dot product extension: as the neon table, but products of bytes take one instruction.
 * The bits are the same. */
#include "tensor/cpu/naive.h"
#include "tensor/cpu/simd.h"
#include "tensor/cpu/tables.h"

#include <sys/auxv.h>

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
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
}

#define KERNEL(name) simd_##name
const struct cpu_table cpu_table_neondot = {
    .name = "neondot",
    .supported = supported,
    .ops =
        {
#include "tensor/cpu/table.inc"
        },
};
