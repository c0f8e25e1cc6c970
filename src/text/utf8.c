/* UTF-8 as the Unicode standard's table 3-7 defines it: no overlong forms, no surrogates, nothing above U+10FFFF. */
#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>

static const char replacement[3] = {'\xEF', '\xBF', '\xBD'};

/* The size of a character by its first byte (0: cannot start one), and the range of its second byte. */
static size_t lead_byte(unsigned char lead, unsigned char *second_min, unsigned char *second_max) {
    *second_min = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    *second_max = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (lead < 0x80) return 1;
    if (lead < 0xC2) return 0;
    if (lead < 0xE0) return 2;
    if (lead < 0xF0) return 3;
    return lead < 0xF5 ? 4 : 0;
}

enum utf8_kind utf8_look(const char *text, size_t size, size_t *length) {
    const unsigned char *s = (const unsigned char *)text;
    unsigned char min, max;
    size_t need = lead_byte(s[0], &min, &max);
    *length = 1;
    if (need == 0) return UTF8_INVALID;
    for (size_t i = 1; i < need; i++) {
        if (i >= size) return *length = i, UTF8_PREFIX;
        if (s[i] < min || s[i] > max) return *length = i, UTF8_INVALID;
        min = 0x80;
        max = 0xBF;
    }
    return *length = need, UTF8_CHARACTER;
}

bool utf8_valid(const char *text, size_t size) {
    size_t length;
    for (size_t i = 0; i < size; i += length) {
        length = 1;
        if ((unsigned char)text[i] < 0x80) continue;
        if (utf8_look(text + i, size - i, &length) != UTF8_CHARACTER) return false;
    }
    return true;
}

size_t utf8_write(uint32_t c, char out[UTF8_CHARACTER_BYTES_MAX]) {
    if (c < 0x80) return out[0] = (char)c, 1;
    size_t size = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = size; i-- > 1; c >>= 6) out[i] = (char)(0x80 | (c & 0x3F));
    out[0] = (char)((0xF00u >> size & 0xFF) | c);
    return size;
}

char *utf8_replace_invalid(const char *text, size_t size, size_t *out_size) {
    /* One byte becomes three at worst. */
    if (size > (SIZE_MAX - 1) / sizeof replacement) return NULL;
    size_t room = utf8_valid(text, size) ? size : size * sizeof replacement, used = 0, length;
    char *out = malloc(room + 1);
    if (!out) return NULL;
    for (size_t i = 0; i < size; i += length) {
        bool good = utf8_look(text + i, size - i, &length) == UTF8_CHARACTER;
        memcpy(out + used, good ? text + i : replacement, good ? length : sizeof replacement);
        used += good ? length : sizeof replacement;
    }
    out[used] = 0;
    *out_size = used;
    return out;
}
