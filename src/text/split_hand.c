/* The patterns of GPT-2 and Qwen2 by hand: several times faster than a regex and free of the version of Unicode that a
 * regex library was built with. A test holds both against PCRE2 on random Unicode.
 *
 * GPT-2:  's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * Qwen2:  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|
 * ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 *
 * Alternatives are tried in order and each is greedy, so the first character (and for a space or a sign the second)
 * decides which one wins. */
#include "text/split_internal.h"

#include <stdbool.h>

/* The end of the run of characters of one class that starts at `at`. */
static size_t run_end(const struct unicode_classes *classes, const char *text, size_t size, size_t at,
                      enum unicode_class kind) {
    size_t length;
    while (at < size && unicode_class_at(classes, text + at, &length) == kind) at += length;
    return at;
}

static char lower(char c) {
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

/* The size of a contraction ('s 't 're 've 'm 'll 'd) at text[0..size), or 0. Without case, U+017F (long s) is an s. */
static size_t contraction(const char *text, size_t size, bool any_case) {
    if (size < 2 || text[0] != '\'') return 0;
    if (any_case && size >= 3 && text[1] == '\xC5' && text[2] == '\xBF') return 3;
    char a = any_case ? lower(text[1]) : text[1];
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if (size < 3) return 0;
    char b = any_case ? lower(text[2]) : text[2];
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* \s+(?!\S)|\s+ : a run of spaces leaves its last one to the word that follows, unless it is the only one. */
static size_t spaces(const struct unicode_classes *classes, const char *text, size_t size) {
    size_t end = 0, last = 0, length;
    while (end < size && unicode_class_at(classes, text + end, &length) == UNICODE_SPACE) {
        last = end;
        end += length;
    }
    return end == size || last == 0 ? end : last;
}

size_t split_first_gpt2(const struct unicode_classes *classes, const char *text, size_t size) {
    size_t first, length, found = contraction(text, size, false);
    if (found) return found;
    enum unicode_class kind = unicode_class_at(classes, text, &first);
    if (kind != UNICODE_SPACE) return run_end(classes, text, size, first, kind);
    if (text[0] == ' ' && size > 1) {
        kind = unicode_class_at(classes, text + 1, &length);
        if (kind != UNICODE_SPACE) return run_end(classes, text, size, 1 + length, kind);
    }
    return spaces(classes, text, size);
}

/* \s*[\r\n]+ : the run of spaces up to its last line end; 0 when it holds none. */
static size_t spaces_to_line_end(const struct unicode_classes *classes, const char *text, size_t size) {
    size_t end = 0, length;
    for (size_t at = 0; at < size && unicode_class_at(classes, text + at, &length) == UNICODE_SPACE; at += length) {
        if (text[at] == '\r' || text[at] == '\n') end = at + 1;
    }
    return end;
}

/* The run of signs that starts at `at`, and the line ends after it. */
static size_t signs(const struct unicode_classes *classes, const char *text, size_t size, size_t at) {
    at = run_end(classes, text, size, at, UNICODE_OTHER);
    while (at < size && (text[at] == '\r' || text[at] == '\n')) at++;
    return at;
}

size_t split_first_qwen2(const struct unicode_classes *classes, const char *text, size_t size) {
    size_t first, length, found = contraction(text, size, true);
    if (found) return found;
    enum unicode_class kind = unicode_class_at(classes, text, &first), next = UNICODE_SPACE;
    if (kind == UNICODE_LETTER) return run_end(classes, text, size, first, UNICODE_LETTER);
    if (kind == UNICODE_NUMBER) return first;
    if (first < size) next = unicode_class_at(classes, text + first, &length);
    if (next == UNICODE_LETTER && text[0] != '\r' && text[0] != '\n') {
        return run_end(classes, text, size, first, UNICODE_LETTER);
    }
    if (kind == UNICODE_OTHER) return signs(classes, text, size, first);
    if (text[0] == ' ' && next == UNICODE_OTHER) return signs(classes, text, size, first);
    found = spaces_to_line_end(classes, text, size);
    return found ? found : spaces(classes, text, size);
}
