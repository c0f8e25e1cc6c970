/* Unicode normalization form C, which Qwen2's tokenizer wants. */
#ifndef TEXT_NORMALIZE_H
#define TEXT_NORMALIZE_H

#include "base/error.h"

#include <stdbool.h>

/* Gives text[0..size), well-formed UTF-8, in form C. When it is known to be so already, *out is text itself; else *out
 * is fresh and *fresh is true (free it). Built without utf8proc, only texts of plain characters can be had. */
int normalize_nfc(const char *text, size_t size, const char **out, size_t *out_size, bool *fresh, looplm_error *err);

#endif
