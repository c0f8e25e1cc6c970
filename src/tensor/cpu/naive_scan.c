/* The scan for NaN and infinity, which every table shares. A number is finite unless all bits of its exponent are set,
 * so the test is an integer mask and a comparison without branches, which the compiler turns into vector code for any
 * target. */
#include "tensor/cpu/naive.h"

/* No exit inside the loop, and any alignment. */
#define SCAN(bits, word, mask)                                    \
    static uint8_t scan_##bits(const char *source, int64_t n) {   \
        word found = 0;                                           \
        for (int64_t i = 0; i < n; i++) {                         \
            word x;                                               \
            memcpy(&x, source + i * (int64_t)sizeof x, sizeof x); \
            found |= (word)((x & (mask)) == (mask));              \
        }                                                         \
        return found != 0;                                        \
    }
SCAN(bf16, uint16_t, 0x7f80u)
SCAN(f16, uint16_t, 0x7c00u)
SCAN(f32, uint32_t, 0x7f800000u)
SCAN(f64, uint64_t, 0x7ff0000000000000u)

static uint8_t scan(enum dtype dtype, const char *source, int64_t n) {
    switch (dtype) {
    case DTYPE_F32:
        return scan_f32(source, n);
    case DTYPE_BF16:
        return scan_bf16(source, n);
    case DTYPE_F16:
        return scan_f16(source, n);
    case DTYPE_F64:
        return scan_f64(source, n);
    }
    return 0;
}

void naive_scan_finite(const struct op *op, const struct worker *worker) {
    const struct op_scan_finite *o = &op->scan_finite;
    int64_t begin, end, size = (int64_t)dtype_size(o->dtype);
    worker_share(worker, o->n, SCAN_BLOCK, &begin, &end);
    for (int64_t i = begin; i < end; i += SCAN_BLOCK) {
        int64_t n = end - i < SCAN_BLOCK ? end - i : SCAN_BLOCK;
        o->bad[i / SCAN_BLOCK] = scan(o->dtype, (const char *)o->source + i * size, n);
    }
}
