/* SHA-256 (FIPS 180-4): naming texts and files by what is in them. */
#ifndef BASE_SHA256_H
#define BASE_SHA256_H

#include <stddef.h>
#include <stdint.h>

struct sha256 {
    uint32_t state[8];
    uint64_t n_bytes;
    unsigned char block[64];
};
void sha256_init(struct sha256 *sha);
void sha256_update(struct sha256 *sha, const void *data, size_t size);
/* The digest; the state is spent. */
void sha256_finish(struct sha256 *sha, unsigned char digest[32]);
/* Lower-case hexadecimal, NUL-terminated; the state is spent. */
void sha256_finish_hex(struct sha256 *sha, char hex[65]);

void sha256_hex(const void *data, size_t size, char hex[65]);

#endif
