/* Pre-tokenization: cutting a text into the words that byte pairs are merged in. A splitter is a short list of stages;
 * each cuts every segment that the stage before it made, and sees nothing beyond its segment. */
#ifndef TEXT_SPLIT_H
#define TEXT_SPLIT_H

#include "base/error.h"

#include <stdbool.h>

#define SPLIT_STAGES_MAX 8
#define SPLIT_PATTERN_BYTES_MAX 4096

/* What becomes of the matches of a regex stage. */
enum split_behaviour {
    SPLIT_ISOLATED, /* matches and what lies between them are all segments */
    SPLIT_REMOVED   /* matches are dropped */
};

struct splitter;     /* read-only once built: may be used by many threads */
struct split_memory; /* what one thread needs to run it */

/* An empty splitter hands out each text as one word. */
int splitter_open(struct splitter **splitter, looplm_error *err);
void splitter_close(struct splitter *splitter);

/* Every number character (Nd, Nl, No) alone, or runs of them together. */
int splitter_add_digits(struct splitter *splitter, bool individual, looplm_error *err);
/* The byte-level split that GPT-2 introduced. prefix_space puts a space before a segment that does not start with one.
 */
int splitter_add_gpt2(struct splitter *splitter, bool prefix_space, bool use_regex, looplm_error *err);
/* A regex in the reference's syntax (Oniguruma's; PCRE2 runs it, `\s` made equal). invert swaps matches and gaps. The
 * patterns of GPT-2 and Qwen2 are run by hand-written code unless force_regex. */
int splitter_add_regex(struct splitter *splitter, const char *pattern, enum split_behaviour behaviour, bool invert,
                       bool force_regex, looplm_error *err);

int split_memory_open(struct split_memory **memory, const struct splitter *splitter, looplm_error *err);
void split_memory_close(struct split_memory *memory);

/* Receives one word, never empty; a status other than 0 stops the split and is returned by it. */
typedef int split_word_fn(void *context, const char *word, size_t size);

/* Hands the words of text, which must be well-formed UTF-8, to word() in order. */
int split_text(const struct splitter *splitter, struct split_memory *memory, const char *text, size_t size,
               split_word_fn *word, void *context, looplm_error *err);

/* The splitter's table, for others who ask the same questions; lives as long as the splitter. */
struct unicode_classes;
const struct unicode_classes *splitter_classes(const struct splitter *splitter);

extern const char split_pattern_gpt2[], split_pattern_qwen2[];

#endif
