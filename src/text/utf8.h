/* UTF-8: reading code points and putting U+FFFD where the bytes are not UTF-8. */
#ifndef TEXT_UTF8_H
#define TEXT_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UTF8_CODE_POINTS 0x110000u
#define UTF8_CHARACTER_BYTES_MAX 4

/* What stands at the front of a byte string. */
enum utf8_kind {
    UTF8_CHARACTER, /* a whole well-formed character */
    UTF8_PREFIX,    /* the string ends inside a character that is well-formed so far */
    UTF8_INVALID    /* bytes that no continuation makes well-formed */
};

/* Looks at text[0..size), size > 0. *length is the size of the character, of the prefix, or of the maximal subpart of
 * an ill-formed sequence (Unicode 3.9, "U+FFFD substitution of maximal subparts"), which is what one U+FFFD stands for.
 */
enum utf8_kind utf8_look(const char *text, size_t size, size_t *length);

bool utf8_valid(const char *text, size_t size);

/* The code point at text, which must be well-formed; *length is its size. */
static inline uint32_t utf8_read(const char *text, size_t *length) {
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80) return *length = 1, s[0];
    if (s[0] < 0xE0) return *length = 2, (uint32_t)(s[0] & 0x1F) << 6 | (s[1] & 0x3F);
    if (s[0] < 0xF0) return *length = 3, (uint32_t)(s[0] & 0x0F) << 12 | (uint32_t)(s[1] & 0x3F) << 6 | (s[2] & 0x3F);
    return *length = 4,
           (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3F) << 12 | (uint32_t)(s[2] & 0x3F) << 6 | (s[3] & 0x3F);
}

/* Writes the code point (below UTF8_CODE_POINTS, no surrogate) and returns how many bytes it took. */
size_t utf8_write(uint32_t code_point, char out[UTF8_CHARACTER_BYTES_MAX]);

/* A fresh NUL-terminated copy in which every maximal ill-formed subpart is U+FFFD, as Python's errors="replace" does.
 * NULL when memory could not be had. */
char *utf8_replace_invalid(const char *text, size_t size, size_t *out_size);

#endif
