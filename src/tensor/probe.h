/* What this machine can do at most, measured in the same run as what is compared with it. */
#ifndef TENSOR_PROBE_H
#define TENSOR_PROBE_H

#include "base/team.h"
#include "tensor/backend.h"

double probe_now_s(void);
/* The clock of a measurement on so many threads: for one, its own processor time, which other programs do not stretch.
 */
double probe_clock_s(int threads);

/* Multiply-adds count two operations. GOP/s of all the team's threads; 0 where the processor lacks the instruction. */
double probe_peak_f32(struct team *team);
double probe_peak_bf16(struct team *team);
double probe_peak_int8(struct team *team);
/* The same on tile registers (AMX); 0 also where the kernel does not let us use them. */
double probe_peak_tiles_bf16(struct team *team);
double probe_peak_tiles_int8(struct team *team);

/* The peak of the instructions by which a kernel table multiplies with weights of this type. */
double probe_peak_products(struct team *team, const char *table, enum weight_type type);

/* The names of the instruction sets that kernels ask for and this processor has; NULL after the last. */
const char *probe_instruction_set(int i);

/* GB/s of reading `size` bytes (a multiple of 4096), split over the team's threads; the median of five. */
double probe_bandwidth(struct team *team, const void *data, size_t size);

#endif
