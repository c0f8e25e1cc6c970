/* Owns the conversion of whole arrays; one value at a time is tensor/convert.h. */
#include "model/values.h"

#include "tensor/convert.h"

#include <math.h>

void values_to_real(enum dtype dtype, const void *source, int64_t n, real *out) {
    if (dtype == DTYPE_REAL) {
        if (n) memcpy(out, source, (size_t)n * sizeof *out);
        return;
    }
    for (int64_t i = 0; i < n; i++) out[i] = dtype_load(source, dtype, i);
}

void values_from_real(const real *source, int64_t n, enum dtype dtype, void *out) {
    if (dtype == DTYPE_BF16) {
        uint16_t *bits = out;
        for (int64_t i = 0; i < n; i++) bits[i] = bf16_from_float((float)source[i]);
        return;
    }
    CHECK_EQ(dtype, DTYPE_F32);
    float *x = out;
    for (int64_t i = 0; i < n; i++) x[i] = (float)source[i];
}

int64_t values_find_nonfinite(enum dtype dtype, const void *source, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(dtype_load(source, dtype, i))) return i;
    }
    return -1;
}

const char *values_dtype_name(enum dtype dtype) {
    static const char *const names[] = {
        [DTYPE_F32] = "F32", [DTYPE_BF16] = "BF16", [DTYPE_F16] = "F16", [DTYPE_F64] = "F64"};
    return names[dtype];
}
