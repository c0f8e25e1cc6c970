/* The stages of a splitter and their run. Owns the regexes and the table of character classes; leaves the two
 * well-known patterns to split_hand.c. Stages call each other through segment(), so no list of segments is ever built.
 */
#include "text/split.h"

#include "text/split_internal.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A pattern that backtracks without end is an error of the tokenizer file, not a hang. */
#define SPLIT_MATCH_STEPS_MAX 1000000
#define SPLIT_JIT_STACK_BYTES_MAX ((size_t)8 << 20)

const char split_pattern_gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const char split_pattern_qwen2[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
                                   "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

enum stage_kind { STAGE_DIGITS, STAGE_DIGIT_RUNS, STAGE_HAND, STAGE_WHOLE, STAGE_REGEX };

struct stage {
    enum stage_kind kind;
    split_first_fn *first; /* STAGE_HAND */
    bool prefix_space;     /* STAGE_HAND, STAGE_WHOLE */
    pcre2_code *regex;     /* STAGE_REGEX */
    enum split_behaviour behaviour;
    bool invert;
};

struct splitter {
    struct stage stages[SPLIT_STAGES_MAX];
    int n_stages;
    struct unicode_classes *classes;
};

struct split_memory {
    pcre2_match_data *matches[SPLIT_STAGES_MAX];
    pcre2_match_context *context;
    pcre2_jit_stack *jit_stack;
};

/* One call of split_text. */
struct run {
    const struct splitter *splitter;
    struct split_memory *memory;
    split_word_fn *word;
    void *context;
    looplm_error *err;
};

int splitter_open(struct splitter **splitter, looplm_error *err) {
    *splitter = calloc(1, sizeof **splitter);
    if (*splitter) (*splitter)->classes = unicode_classes_new();
    if (*splitter && (*splitter)->classes) return 0;
    splitter_close(*splitter);
    *splitter = NULL;
    return error_set(err, LOOPLM_MEMORY, "no memory for the character classes (%zu bytes)",
                     sizeof(struct unicode_classes));
}

void splitter_close(struct splitter *splitter) {
    if (!splitter) return;
    for (int i = 0; i < splitter->n_stages; i++) pcre2_code_free(splitter->stages[i].regex);
    free(splitter->classes);
    free(splitter);
}

const struct unicode_classes *splitter_classes(const struct splitter *splitter) {
    return splitter->classes;
}

static int add_stage(struct splitter *splitter, struct stage stage, looplm_error *err) {
    if (splitter->n_stages == SPLIT_STAGES_MAX) {
        return error_set(err, LOOPLM_LIMIT, "the pre-tokenizer has more than %d stages", SPLIT_STAGES_MAX);
    }
    splitter->stages[splitter->n_stages++] = stage;
    return 0;
}

int splitter_add_digits(struct splitter *splitter, bool individual, looplm_error *err) {
    return add_stage(splitter, (struct stage){.kind = individual ? STAGE_DIGITS : STAGE_DIGIT_RUNS}, err);
}

int splitter_add_gpt2(struct splitter *splitter, bool prefix_space, bool use_regex, looplm_error *err) {
    if (!prefix_space && !use_regex) return 0;
    struct stage stage = {
        .kind = use_regex ? STAGE_HAND : STAGE_WHOLE, .first = split_first_gpt2, .prefix_space = prefix_space};
    return add_stage(splitter, stage, err);
}

/* Copies the pattern, with `\s` and `\S` spelled out: PCRE2's own take U+180E for a space, the reference's do not. */
static int translate(const char *pattern, char *out, looplm_error *err) {
    static const char space[] = "\\t-\\r\\x{85}\\p{Z}";
    size_t used = 0;
    bool in_class = false;
    for (const char *p = pattern; *p; p++) {
        bool escaped = p[0] == '\\' && p[1];
        if (in_class && p[0] == '&' && p[1] == '&') {
            return error_set(err, LOOPLM_UNSUPPORTED,
                             "the pre-tokenizer's regex intersects classes (&&), which is not supported");
        }
        if (escaped && (p[1] == 's' || (p[1] == 'S' && !in_class))) {
            const char *open = in_class ? "" : p[1] == 's' ? "[" : "[^";
            used += (size_t)sprintf(out + used, "%s%s%s", open, space, in_class ? "" : "]");
            p++;
            continue;
        }
        out[used++] = *p;
        if (escaped) {
            out[used++] = *++p;
        } else if (!in_class && *p == '[') {
            in_class = true;
            if (p[1] == '^') out[used++] = *++p;
            if (p[1] == ']') out[used++] = *++p;
        } else if (*p == ']') {
            in_class = false;
        }
    }
    out[used] = 0;
    return 0;
}

static int compile(const char *pattern, pcre2_code **regex, looplm_error *err) {
    /* `\s` (2 bytes) grows to at most 19. */
    char *translated = malloc(strlen(pattern) * 10 + 1);
    if (!translated) return error_set(err, LOOPLM_MEMORY, "no memory for a regex");
    int status = translate(pattern, translated, err), code;
    PCRE2_SIZE at;
    if (status == 0) {
        uint32_t flags = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_AUTO_CAPTURE;
        *regex = pcre2_compile((PCRE2_SPTR)translated, PCRE2_ZERO_TERMINATED, flags, &code, &at, NULL);
        if (!*regex) {
            PCRE2_UCHAR text[160] = "";
            pcre2_get_error_message(code, text, sizeof text);
            status = error_set(err, LOOPLM_FORMAT, "the pre-tokenizer's regex does not compile: %s near \"%.40s\"",
                               (char *)text, translated + at);
        } else {
            pcre2_jit_compile(*regex, PCRE2_JIT_COMPLETE); /* Without JIT the interpreter gives the same matches. */
        }
    }
    free(translated);
    return status;
}

int splitter_add_regex(struct splitter *splitter, const char *pattern, enum split_behaviour behaviour, bool invert,
                       bool force_regex, looplm_error *err) {
    if (strlen(pattern) > SPLIT_PATTERN_BYTES_MAX) {
        return error_set(err, LOOPLM_LIMIT, "the pre-tokenizer's regex has %zu bytes, more than %d", strlen(pattern),
                         SPLIT_PATTERN_BYTES_MAX);
    }
    struct stage stage = {.kind = STAGE_HAND, .behaviour = behaviour, .invert = invert};
    /* Both patterns match every character, so isolated matches are the whole story. */
    if (behaviour == SPLIT_ISOLATED && !force_regex) {
        if (!strcmp(pattern, split_pattern_gpt2)) stage.first = split_first_gpt2;
        if (!strcmp(pattern, split_pattern_qwen2)) stage.first = split_first_qwen2;
    }
    if (!stage.first) {
        stage.kind = STAGE_REGEX;
        int status = compile(pattern, &stage.regex, err);
        if (status) return status;
    }
    int status = add_stage(splitter, stage, err);
    if (status) pcre2_code_free(stage.regex);
    return status;
}

int split_memory_open(struct split_memory **memory, const struct splitter *splitter, looplm_error *err) {
    struct split_memory *m = *memory = calloc(1, sizeof *m);
    bool good = m != NULL, any = false;
    for (int i = 0; good && i < splitter->n_stages; i++) {
        if (splitter->stages[i].kind != STAGE_REGEX) continue;
        any = true;
        m->matches[i] = pcre2_match_data_create_from_pattern(splitter->stages[i].regex, NULL);
        good = m->matches[i] != NULL;
    }
    if (good && any) {
        m->context = pcre2_match_context_create(NULL);
        m->jit_stack = pcre2_jit_stack_create(32 << 10, SPLIT_JIT_STACK_BYTES_MAX, NULL);
        good = m->context != NULL;
        if (good) pcre2_set_match_limit(m->context, SPLIT_MATCH_STEPS_MAX);
        if (good && m->jit_stack) pcre2_jit_stack_assign(m->context, NULL, m->jit_stack);
    }
    if (good) return 0;
    split_memory_close(m);
    *memory = NULL;
    return error_set(err, LOOPLM_MEMORY, "no memory to split text into words");
}

void split_memory_close(struct split_memory *memory) {
    if (!memory) return;
    for (int i = 0; i < SPLIT_STAGES_MAX; i++) pcre2_match_data_free(memory->matches[i]);
    pcre2_match_context_free(memory->context);
    if (memory->jit_stack) pcre2_jit_stack_free(memory->jit_stack);
    free(memory);
}

static int segment(const struct run *run, int stage, const char *text, size_t size);

static int run_digits(const struct run *run, int stage, const char *text, size_t size) {
    bool alone = run->splitter->stages[stage].kind == STAGE_DIGITS, in_number = false;
    size_t begin = 0, length;
    int status = 0;
    for (size_t at = 0; at < size && status == 0; at += length) {
        bool number = unicode_class_at(run->splitter->classes, text + at, &length) == UNICODE_NUMBER;
        if (number != in_number || (number && alone)) {
            status = segment(run, stage + 1, text + begin, at - begin);
            begin = at;
        }
        in_number = number;
    }
    return status ? status : segment(run, stage + 1, text + begin, size - begin);
}

static int run_hand(const struct run *run, int stage, const char *text, size_t size) {
    split_first_fn *first = run->splitter->stages[stage].first;
    for (size_t at = 0; at < size;) {
        size_t length = first(run->splitter->classes, text + at, size - at);
        int status = segment(run, stage + 1, text + at, length);
        if (status) return status;
        at += length;
    }
    return 0;
}

/* A stage of the byte-level kind, after the space before it. */
static int run_prefixed(const struct run *run, int stage, const char *text, size_t size) {
    bool hand = run->splitter->stages[stage].kind == STAGE_HAND,
         add = run->splitter->stages[stage].prefix_space && text[0] != ' ';
    if (!add) return hand ? run_hand(run, stage, text, size) : segment(run, stage + 1, text, size);
    char *copy = malloc(size + 1);
    if (!copy) return error_set(run->err, LOOPLM_MEMORY, "no memory to put a space before a text of %zu bytes", size);
    copy[0] = ' ';
    memcpy(copy + 1, text, size);
    int status = hand ? run_hand(run, stage, copy, size + 1) : segment(run, stage + 1, copy, size + 1);
    free(copy);
    return status;
}

static int match_failed(const struct run *run, int code) {
    PCRE2_UCHAR text[160] = "";
    pcre2_get_error_message(code, text, sizeof text);
    return error_set(run->err, LOOPLM_LIMIT, "the pre-tokenizer's regex gave up on this text: %s", (char *)text);
}

static int run_regex(const struct run *run, int stage, const char *text, size_t size) {
    const struct stage *s = &run->splitter->stages[stage];
    bool drop_match = s->behaviour == SPLIT_REMOVED && !s->invert,
         drop_gap = s->behaviour == SPLIT_REMOVED && s->invert;
    size_t begin = 0, length;
    for (size_t from = 0; from < size;) {
        pcre2_match_data *match = run->memory->matches[stage];
        int code = pcre2_match(s->regex, (PCRE2_SPTR)text, size, from, PCRE2_NO_UTF_CHECK, match, run->memory->context);
        if (code == PCRE2_ERROR_NOMATCH) break;
        if (code < 0) return match_failed(run, code);
        const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(match);
        size_t first = ends[0], last = ends[1];
        if (last <= first) { /* An empty match, which `\K` can even turn around, cuts nothing. */
            utf8_read(text + from, &length);
            from += length;
            continue;
        }
        if (first < begin) first = begin;
        int status = drop_gap ? 0 : segment(run, stage + 1, text + begin, first - begin);
        if (status == 0 && !drop_match) status = segment(run, stage + 1, text + first, last - first);
        if (status) return status;
        from = begin = last;
    }
    return drop_gap ? 0 : segment(run, stage + 1, text + begin, size - begin);
}

static int segment(const struct run *run, int stage, const char *text, size_t size) {
    if (size == 0) return 0;
    if (stage == run->splitter->n_stages) return run->word(run->context, text, size);
    switch (run->splitter->stages[stage].kind) {
    case STAGE_DIGITS:
    case STAGE_DIGIT_RUNS:
        return run_digits(run, stage, text, size);
    case STAGE_HAND:
    case STAGE_WHOLE:
        return run_prefixed(run, stage, text, size);
    case STAGE_REGEX:
        return run_regex(run, stage, text, size);
    }
    return 0;
}

int split_text(const struct splitter *splitter, struct split_memory *memory, const char *text, size_t size,
               split_word_fn *word, void *context, looplm_error *err) {
    struct run run = {.splitter = splitter, .memory = memory, .word = word, .context = context, .err = err};
    return segment(&run, 0, text, size);
}
