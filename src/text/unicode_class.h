/* The three classes of characters that pre-tokenizers ask for: letters (\p{L}), numbers (\p{N}), white space (\s). */
#ifndef TEXT_UNICODE_CLASS_H
#define TEXT_UNICODE_CLASS_H

#include "text/utf8.h"

enum unicode_class { UNICODE_OTHER, UNICODE_LETTER, UNICODE_NUMBER, UNICODE_SPACE };

/* class[code point]; 1.1 MB of which only the pages in use are resident. Read-only once filled. */
struct unicode_classes {
    uint8_t of[UTF8_CODE_POINTS];
};

/* A fresh table (free() it), or NULL when memory could not be had. */
struct unicode_classes *unicode_classes_new(void);

/* The class of the well-formed character at text; *length is its size. */
static inline enum unicode_class unicode_class_at(const struct unicode_classes *classes, const char *text,
                                                  size_t *length) {
    return (enum unicode_class)classes->of[utf8_read(text, length)];
}

#endif
