/* Training a byte-level BPE: from text to a vocabulary and merges, written as tokenizer.json.
 *
 * Ids: the special tokens in their order, the 256 bytes in the order of their characters, then one id per merge. Text
 * is split as Ouro's is: every number character alone, then GPT-2's pattern. Strings of special tokens in the text are
 * passed over. The result depends on the multiset of words alone, not on the order of files. */
#ifndef TEXT_BPE_TRAIN_H
#define TEXT_BPE_TRAIN_H

#include "base/error.h"

#include <stdint.h>

#define BPE_TRAIN_SPECIAL_MAX 1024
/* Longer words teach nothing and are passed over. */
#define BPE_TRAIN_WORD_BYTES_MAX 1024
#define BPE_TRAIN_WORDS_MAX ((size_t)1 << 26) /* distinct ones */

struct bpe_train_options {
    int32_t vocab_size;         /* at least the special tokens and 256 */
    const char *const *special; /* [n_special] */
    int n_special;
    int64_t count_min; /* pairs seen less often are not merged */
};

struct bpe_trainer;
int bpe_trainer_open(struct bpe_trainer **trainer, const struct bpe_train_options *options, looplm_error *err);
void bpe_trainer_close(struct bpe_trainer *trainer);
/* Counts the words of a text; bytes that are not UTF-8 count as U+FFFD. */
int bpe_trainer_add(struct bpe_trainer *trainer, const char *text, size_t size, looplm_error *err);
/* Makes the merges, once, after all text was added. The vocabulary is smaller than asked for when pairs run out. */
int bpe_trainer_run(struct bpe_trainer *trainer, looplm_error *err);
int32_t bpe_trainer_size(const struct bpe_trainer *trainer);
/* Writes DIRECTORY/tokenizer.json and tokenizer_config.json (the directory is made). */
int bpe_trainer_save(const struct bpe_trainer *trainer, const char *directory, looplm_error *err);

#endif
