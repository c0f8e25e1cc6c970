/* The tables of this build; each is defined in its table_*.c. */
#ifndef TENSOR_CPU_TABLES_H
#define TENSOR_CPU_TABLES_H

#include "tensor/cpu/cpu.h"

extern const struct cpu_table cpu_table_scalar, cpu_table_avx2, cpu_table_avx512, cpu_table_avx512vnni,
    cpu_table_avx512bf16, cpu_table_avx512amx, cpu_table_neon, cpu_table_neondot;

#endif
