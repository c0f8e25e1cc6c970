/* The table for processors with tile registers (AMX-TILE, -INT8, -BF16) beside all that the avx512bf16 table needs:
 * products with bf16 weights, and with 8- and 4-bit weights by many rows, run on tiles. bf16 products have bits of
 * their own, and flush subnormal numbers. */
#define SIMD_AMX /* kernel text that is shared may use tiles */
#include "tensor/cpu/naive.h"
#include "tensor/cpu/simd.h"
#include "tensor/cpu/tables.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* In this order: each group uses what those before it define. */
#include "tensor/cpu/kernels_forward.inc"
#include "tensor/cpu/kernels_matmul.inc"
#include "tensor/cpu/kernels_matmul_dw.inc"

#include "tensor/cpu/kernels_amx.inc"
#include "tensor/cpu/kernels_quant.inc"

#include "tensor/cpu/kernels_amx_quant.inc"

#include "tensor/cpu/kernels_grad.inc"
#include "tensor/cpu/kernels_pack.inc"
#include "tensor/cpu/kernels_qkv.inc"
#include "tensor/cpu/kernels_quant_pack.inc"
#include "tensor/cpu/kernels_tile.inc"

#include "tensor/cpu/kernels_attention.inc"
#include "tensor/cpu/kernels_attention_grad.inc"

#include "tensor/cpu/kernels_amx_attention.inc"

#define TILE_INT8_BF16 (1u << 24 | 1u << 25 | 1u << 22) /* of cpuid leaf 7, edx */
#define ARCH_REQ_XCOMP_PERM 0x1023                      /* of arch_prctl: leave to use a state that is large */
#define XFEATURE_XTILEDATA 18

/* The kernel must give leave to use the tiles; asked again, it gives it again. */
static bool supported(void) {
    unsigned a, b, c, d;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512vnni") || !__builtin_cpu_supports("avx512bf16"))
        return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & TILE_INT8_BF16) != TILE_INT8_BF16) return false;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

#define KERNEL(name) simd_##name
const struct cpu_table cpu_table_avx512amx = {
    .name = "avx512amx",
    .supported = supported,
    .ops =
        {
#include "tensor/cpu/table.inc"
        },
};
