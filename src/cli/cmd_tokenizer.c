/* looplm tokenizer train: a byte-level BPE from text, in the files that other programs load. */
#include "base/options.h"
#include "cli/command.h"
#include "text/bpe_train.h"
#include "text/documents.h"

#include <string.h>

#define TRAIN_OPTIONS(X)                                                                                          \
    X(ARGUMENT, action, "train", "what to do: train")                                                             \
    X(ARGUMENTS, inputs, "FILE",                                                                                  \
      "text to learn from: .txt, .jsonl (\"text\"), also .gz and .zst; - is standard input")                      \
    X(INT, vocab_size, "vocab-size", 0, 4096, 256, 1 << 21, "N", "ids in all: special tokens, 256 bytes, merges") \
    X(TEXT, output, "output", 'o', OPTION_NEEDED, "DIR", "where tokenizer.json and tokenizer_config.json go")     \
    X(LIST, special, "special", 0, "TOKEN",                                                                       \
      "a special token, in the order of ids (may be repeated; default: "                                          \
      "<|endoftext|> <|im_start|> <|im_end|> <think> </think>)")                                                  \
    X(INT, count_min, "min-count", 0, 2, 1, 1 << 30, "N", "merge only pairs that occur this often")
OPTIONS_DEFINE(tokenizer_options, TRAIN_OPTIONS)

extern const struct command command_tokenizer;

static const char *const default_special[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"};

static int add_file(struct bpe_trainer *trainer, const char *path, looplm_error *err) {
    struct documents *documents;
    struct document document;
    bool more;
    int status = documents_open(&documents, path, DOCUMENTS_TEXT, err);
    if (status) return status;
    while ((status = documents_next(documents, &document, &more, err)) == 0 && more) {
        status = bpe_trainer_add(trainer, document.text, document.size, err);
        if (status) break;
    }
    documents_close(documents);
    return status;
}

static int train(const struct tokenizer_options *o, looplm_error *err) {
    struct bpe_train_options options = {.vocab_size = (int32_t)o->vocab_size, .count_min = o->count_min};
    options.special = o->special_given ? (const char *const *)o->special.items : default_special;
    options.n_special = o->special_given ? o->special.count : (int)(sizeof default_special / sizeof *default_special);
    struct bpe_trainer *trainer;
    int status = bpe_trainer_open(&trainer, &options, err);
    if (status) return status;
    for (int i = 0; status == 0 && i < o->inputs.count; i++) {
        fprintf(stderr, "reading %s\n", o->inputs.items[i]);
        status = add_file(trainer, o->inputs.items[i], err);
    }
    if (status == 0) status = bpe_trainer_run(trainer, err);
    if (status == 0) status = bpe_trainer_save(trainer, o->output, err);
    if (status == 0) {
        bool full = bpe_trainer_size(trainer) == o->vocab_size;
        fprintf(stderr, "%s: %d ids%s\n", o->output, (int)bpe_trainer_size(trainer),
                full ? "" : ", fewer than asked for, since no pair occurs often enough for more");
    }
    bpe_trainer_close(trainer);
    return status;
}

static int run_tokenizer(int argc, char **argv) {
    const struct options_table *table = tokenizer_options_table();
    struct tokenizer_options options;
    looplm_error err = {0};
    int code = command_parse(&command_tokenizer, table, &options, argc, argv);
    if (code != COMMAND_GO) return code;
    int status = 0;
    if (strcmp(options.action, "train")) {
        status = error_set(&err, LOOPLM_USAGE, "looplm tokenizer cannot '%s'; expected: looplm tokenizer train",
                           options.action);
    } else {
        status = train(&options, &err);
    }
    options_free(table, &options);
    return status ? command_fail(&err) : COMMAND_DONE;
}

const struct command command_tokenizer = {"tokenizer", "train --vocab-size N -o DIR FILE...",
                                          "train a byte-level BPE tokenizer on text", run_tokenizer};
