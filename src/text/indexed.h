/* Tokenised documents on disk: Megatron's indexed dataset, PREFIX.bin (ids, one after the other) and PREFIX.idx.
 *
 * PREFIX.idx, all little-endian and packed without padding:
 *   "MMIDIDX\0\0"            9 bytes
 *   version                  uint64, 1
 *   type of an id            uint8: 4 int32, 8 uint16
 *   number of sequences n    uint64
 *   number of boundaries m   uint64 (documents + 1)
 *   lengths                  int32 [n], ids in each sequence
 *   pointers                 int64 [n], byte offset of each sequence in PREFIX.bin
 *   boundaries               int64 [m], index of the first sequence of each document, then n
 * The writer makes each document one sequence. */
#ifndef TEXT_INDEXED_H
#define TEXT_INDEXED_H

#include "base/error.h"

#include <stdbool.h>

/* Vocabularies below this are written as uint16, as Megatron does. */
#define INDEXED_UINT16_VOCABULARY 65500

enum indexed_type { INDEXED_INT32 = 4, INDEXED_UINT16 = 8 };

struct indexed_writer;
int indexed_writer_open(struct indexed_writer **writer, const char *prefix, int64_t vocab_size, looplm_error *err);
int indexed_writer_add(struct indexed_writer *writer, const int32_t *ids, size_t n, looplm_error *err);
/* Puts both files in place, the index last; the writer is gone either way. */
int indexed_writer_commit(struct indexed_writer *writer, looplm_error *err);
void indexed_writer_abort(struct indexed_writer *writer);

struct indexed; /* read-only: may be used by many threads */
/* Maps and checks both files: sizes, bounds and order, but not the ids themselves (indexed_check_ids). */
int indexed_open(struct indexed **indexed, const char *prefix, looplm_error *err);
void indexed_close(struct indexed *indexed);
size_t indexed_documents(const struct indexed *indexed);
/* Ids in all documents. */
uint64_t indexed_tokens(const struct indexed *indexed);
enum indexed_type indexed_type(const struct indexed *indexed);
/* The ids of document i < indexed_documents(), *n of them, mapped; of the type above. */
const void *indexed_document(const struct indexed *indexed, size_t i, size_t *n);
/* Copies ids [first, first+n) of document i, which must be there, to out. */
void indexed_read(const struct indexed *indexed, size_t i, size_t first, size_t n, int32_t *out);
/* Reads everything once: an error when an id is outside 0..vocab_size-1. */
int indexed_check_ids(const struct indexed *indexed, int64_t vocab_size, looplm_error *err);

#endif
