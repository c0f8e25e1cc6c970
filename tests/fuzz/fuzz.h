/* What every fuzz target defines: libFuzzer calls it with one input after another. It returns 0; it may not crash,
 * leak, or read outside its input, and it says nothing. Seeds are in tests/fuzz/corpus/NAME, one file each. */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
