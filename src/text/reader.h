/* A stream of bytes from a file: plain, .gz (zlib) or .zst (Zstandard) by the end of its name; "-" is stdin. */
#ifndef TEXT_READER_H
#define TEXT_READER_H

#include "base/error.h"

#include <stdbool.h>

struct reader;
int reader_open(struct reader **reader, const char *path, looplm_error *err);
void reader_close(struct reader *reader);
/* Up to size bytes; *n is 0 at the end and only there. A truncated or damaged compressed file is an error. */
int reader_read(struct reader *reader, void *data, size_t size, size_t *n, looplm_error *err);

/* All of it, at most size_max bytes (else LOOPLM_LIMIT), fresh and NUL-terminated. */
int reader_read_all(const char *path, size_t size_max, char **data, size_t *size, looplm_error *err);

/* Whether a path ends in this extension, a .gz or .zst after it not counted. */
bool reader_path_is(const char *path, const char *extension);

#endif
