/* Form C by utf8proc when the build has it. Texts of characters that can neither change nor take part in a composition
 * are passed through, which is nearly all text and all of it when utf8proc is absent. */
#include "text/normalize.h"

#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>

#ifdef LOOPLM_HAVE_UTF8PROC
#include <utf8proc.h>
#endif

/* Ranges whose characters are their own form C and compose with none of these ranges' characters: Latin with its
 * accents, general punctuation without the two singleton quads, kana, common Chinese characters, Hangul syllables, most
 * emoji. */
static bool plain(uint32_t c) {
    static const struct {
        uint32_t first, last;
    } ranges[] = {{0x0000, 0x02FF}, {0x0400, 0x0482}, {0x048A, 0x052F}, {0x2002, 0x2060},
                  {0x3001, 0x3029}, {0x3041, 0x3096}, {0x30A1, 0x30FA}, {0x3400, 0x4DBF},
                  {0x4E00, 0x9FFF}, {0xAC00, 0xD7A3}, {0xFF01, 0xFFEE}, {0x1F300, 0x1FAFF}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges && c >= ranges[i].first; i++) {
        if (c <= ranges[i].last) return true;
    }
    return false;
}

static bool all_plain(const char *text, size_t size, uint32_t *found) {
    size_t length;
    for (size_t at = 0; at < size; at += length) {
        *found = utf8_read(text + at, &length);
        if (!plain(*found)) return false;
    }
    return true;
}

#ifdef LOOPLM_HAVE_UTF8PROC
/* U+11A7 takes part in no composition, but utf8proc up to 2.8 drops it after a Hangul syllable, as if it were the
 * trailing consonant of number 0. So the text is cut before each of them. */
static const char hangul_o_yae[] = "\xE1\x86\xA7";

/* The size of the piece of text[0..size), size > 0, that is normalized by itself. */
static size_t piece_size(const char *text, size_t size) {
    const char *cut = memmem(text + 1, size - 1, hangul_o_yae, sizeof hangul_o_yae - 1);
    return cut ? (size_t)(cut - text) : size;
}

static int normalize(const char *text, size_t size, const char **out, size_t *out_size, looplm_error *err) {
    char *joined = NULL;
    size_t used = 0, length;
    for (size_t at = 0; at < size; at += length) {
        utf8proc_uint8_t *piece = NULL;
        length = piece_size(text + at, size - at);
        utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)length, &piece,
                                          UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        char *grown = n < 0 ? NULL : realloc(joined, used + (size_t)n + 1);
        if (grown) memcpy(grown + used, piece, (size_t)n);
        free(piece);
        if (!grown) {
            free(joined);
            return error_set(err, LOOPLM_MEMORY, "a text of %zu bytes could not be normalized%s%s", size,
                             n < 0 ? ": " : "", n < 0 ? utf8proc_errmsg(n) : "");
        }
        joined = grown;
        used += (size_t)n;
    }
    *out = joined;
    *out_size = used;
    return 0;
}
#endif

int normalize_nfc(const char *text, size_t size, const char **out, size_t *out_size, bool *fresh, looplm_error *err) {
    uint32_t found = 0;
    *out = text;
    *out_size = size;
    *fresh = false;
    if (all_plain(text, size, &found)) return 0;
#ifdef LOOPLM_HAVE_UTF8PROC
    int status = normalize(text, size, out, out_size, err);
    *fresh = status == 0;
    return status;
#else
    (void)err;
    return error_set(err, LOOPLM_UNSUPPORTED,
                     "this tokenizer normalizes text to NFC, and U+%04X may change there; build looplm with utf8proc "
                     "(Debian: libutf8proc-dev) to tokenize such text",
                     (unsigned)found);
#endif
}
