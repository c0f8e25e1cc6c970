/* Tile registers (AMX), as the kernels use them: names for the instructions, and one shape of the eight registers.
 *
 * AMX_C0..AMX_C3 hold sums [height][16], AMX_A0, AMX_A1 inputs [height][a_bytes], AMX_B0, AMX_B1 weights [a_bytes /
 * 4][16] words: a row holds the pairs (bf16) or fours (bytes) of one step of the inner dimension for sixteen outputs. A
 * product adds one step after the other for each sum.
 *
 * The instructions are written out, since the intrinsics of some compilers do not say that they read and write memory.
 * What was learned of the hardware: docs/speed.md. */
#ifndef TENSOR_CPU_AMX_H
#define TENSOR_CPU_AMX_H

#include <stdint.h>

#define AMX_ROWS 16  /* rows of a tile, at most */
#define AMX_BYTES 64 /* bytes of a row, at most */

#define AMX_C0 "0"
#define AMX_C1 "1"
#define AMX_C2 "2"
#define AMX_C3 "3"
#define AMX_A0 "4"
#define AMX_A1 "5"
#define AMX_B0 "6"
#define AMX_B1 "7"

#define AMX_LOAD(tile, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" tile : : "r"(from), "r"((int64_t)(stride)) : "memory")
#define AMX_STORE(tile, to, stride) \
    __asm__ volatile("tilestored %%tmm" tile ", (%0,%1,1)" : : "r"(to), "r"((int64_t)(stride)) : "memory")
#define AMX_ZERO(tile) __asm__ volatile("tilezero %%tmm" tile : : : "memory")
#define AMX_DOT_BF16(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" b ", %%tmm" a ", %%tmm" c : : : "memory")
#define AMX_DOT_INT8(c, a, b) __asm__ volatile("tdpbssd %%tmm" b ", %%tmm" a ", %%tmm" c : : : "memory")

/* From here to amx_end the thread's tiles have their shape; it costs 200 cycles. */
static inline void amx_begin(int height, int a_bytes) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1,
                .bytes = {64, 64, 64, 64, (uint16_t)a_bytes, (uint16_t)a_bytes, 64, 64},
                .rows = {(uint8_t)height, (uint8_t)height, (uint8_t)height, (uint8_t)height, (uint8_t)height,
                         (uint8_t)height, (uint8_t)(a_bytes / 4), (uint8_t)(a_bytes / 4)}};
    __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
}

static inline void amx_end(void) {
    __asm__ volatile("tilerelease" : : : "memory");
}

#endif
