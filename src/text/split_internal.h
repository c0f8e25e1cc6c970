/* Shared by split.c (stages) and split_hand.c (the two well-known patterns by hand). */
#ifndef TEXT_SPLIT_INTERNAL_H
#define TEXT_SPLIT_INTERNAL_H

#include "text/unicode_class.h"

/* The size of the first word of text[0..size), size > 0. */
typedef size_t split_first_fn(const struct unicode_classes *classes, const char *text, size_t size);
split_first_fn split_first_gpt2, split_first_qwen2;

#endif
