/* The strings of a vocabulary: id to text, id to the bytes it stands for, text to id. Ids may have gaps. */
#ifndef TEXT_VOCAB_H
#define TEXT_VOCAB_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VOCAB_IDS_MAX ((int32_t)1 << 21)
#define VOCAB_TOKEN_BYTES_MAX 8192

/* Byte-level text writes every byte as one printable character: the code point of a byte, and back (-1: none). */
uint32_t byte_level_code_point(unsigned char byte);
int byte_level_byte(uint32_t code_point);

struct vocab_entry {
    size_t text, bytes; /* offsets in the arena */
    uint32_t text_size, bytes_size;
    bool present, special;
};

struct vocab {
    struct vocab_entry *entries; /* [room], by id */
    int32_t size;                /* highest id + 1 */
    int32_t room, n_present;
    char *arena;
    size_t arena_used, arena_room;
    int32_t *slots; /* open addressing; id + 1, 0 is free */
    size_t n_slots; /* a power of two */
    uint32_t bytes_size_max;
};

void vocab_init(struct vocab *vocab);
void vocab_free(struct vocab *vocab);
/* Text must be new, and id too. */
int vocab_add(struct vocab *vocab, int64_t id, const char *text, size_t size, looplm_error *err);
/* -1 when there is none. */
int32_t vocab_find(const struct vocab *vocab, const char *text, size_t size);
/* The text as the file writes it, and the bytes that it decodes to; NULL for an id outside or in a gap. */
const char *vocab_text(const struct vocab *vocab, int32_t id, size_t *size);
const char *vocab_bytes(const struct vocab *vocab, int32_t id, size_t *size);

/* A keyless hash of a short string, for tables of our own that hold no attacker's choice of millions of keys. */
uint64_t vocab_hash(const char *text, size_t size);

#endif
