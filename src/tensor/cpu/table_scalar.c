/* The scalar table: the oracle. It runs everywhere. */
#include "tensor/cpu/naive.h"
#include "tensor/cpu/tables.h"

static bool supported(void) {
    return true;
}

#define KERNEL(name) naive_##name
const struct cpu_table cpu_table_scalar = {
    .name = "scalar",
    .supported = supported,
    .ops =
        {
#include "tensor/cpu/table.inc"
        },
};
