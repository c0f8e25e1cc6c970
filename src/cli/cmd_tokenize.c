/* looplm tokenize: documents to ids, as JSON arrays on stdout or as Megatron's PREFIX.bin/.idx. */
#include "base/options.h"
#include "cli/command.h"
#include "text/chat.h"
#include "text/documents.h"
#include "text/indexed.h"
#include "text/tokenizer.h"

#include <stdlib.h>

#define TOKENIZE_OPTIONS(X)                                                                                        \
    X(ARGUMENT, model, "MODEL", "a model directory, or a tokenizer.json")                                          \
    X(ARGUMENTS, inputs, "IN",                                                                                     \
      "files: .jsonl has one document per line (\"text\"), anything else is one document; "                        \
      ".gz and .zst are unpacked; - is standard input")                                                            \
    X(TEXT, output, "output", 'o', NULL, "PREFIX", "write PREFIX.bin and PREFIX.idx (Megatron's) instead of JSON") \
    X(FLAG, chat, "chat", 0, "documents are {\"messages\": [...]}, rendered by the model's chat template")         \
    X(FLAG, think, "think", 0, "with --chat: open the assistant's turn with <think>")
OPTIONS_DEFINE(tokenize_options, TOKENIZE_OPTIONS)

extern const struct command command_tokenize;

struct job {
    const struct tokenize_options *options;
    struct tokenizer *tokenizer;
    struct encoder *encoder;
    struct chat chat;
    struct indexed_writer *writer; /* NULL: JSON */
};

static void print_ids(const int32_t *ids, size_t n) {
    putchar('[');
    for (size_t i = 0; i < n; i++) printf(i ? ", %d" : "%d", (int)ids[i]);
    fputs("]\n", stdout);
}

static int tokenize_text(struct job *job, const char *text, size_t size, looplm_error *err) {
    const int32_t *ids;
    size_t n;
    int status = encoder_encode(job->encoder, text, size, true, &ids, &n, err);
    if (status) return status;
    if (job->writer) return indexed_writer_add(job->writer, ids, n, err);
    print_ids(ids, n);
    return 0;
}

static int tokenize_document(struct job *job, const struct document *document, looplm_error *err) {
    if (!job->options->chat) return tokenize_text(job, document->text, document->size, err);
    char *text;
    size_t size;
    int status = chat_render_document(&job->chat, document->object, job->options->think, &text, &size, err);
    if (status) return status;
    status = tokenize_text(job, text, size, err);
    free(text);
    return status;
}

static int tokenize_file(struct job *job, const char *path, looplm_error *err) {
    struct documents *documents;
    struct document document;
    bool more = true;
    size_t number = 0;
    int status = documents_open(&documents, path, job->options->chat ? DOCUMENTS_JSON : DOCUMENTS_TEXT, err);
    if (status) return status;
    while ((status = documents_next(documents, &document, &more, err)) == 0 && more) {
        number++;
        status = tokenize_document(job, &document, err);
        if (status) {
            error_prefix(err, "%s, document %zu", path, number);
            break;
        }
    }
    documents_close(documents);
    return status;
}

static int tokenize_all(struct job *job, looplm_error *err) {
    const struct tokenize_options *o = job->options;
    int status = tokenizer_open(&job->tokenizer, o->model, err);
    if (status == 0 && o->chat) status = chat_open(&job->chat, o->model, job->tokenizer, err);
    if (status == 0) status = encoder_open(&job->encoder, job->tokenizer, err);
    if (status == 0 && o->output)
        status = indexed_writer_open(&job->writer, o->output, tokenizer_size(job->tokenizer), err);
    for (int i = 0; status == 0 && i < o->inputs.count; i++) status = tokenize_file(job, o->inputs.items[i], err);
    if (status == 0 && job->writer) {
        status = indexed_writer_commit(job->writer, err);
        job->writer = NULL;
    }
    indexed_writer_abort(job->writer);
    encoder_close(job->encoder);
    tokenizer_close(job->tokenizer);
    return status;
}

static int run_tokenize(int argc, char **argv) {
    const struct options_table *table = tokenize_options_table();
    struct tokenize_options options;
    looplm_error err = {0};
    int code = command_parse(&command_tokenize, table, &options, argc, argv);
    if (code != COMMAND_GO) return code;
    int status = 0;
    if (options.think && !options.chat) {
        status = error_set(&err, LOOPLM_USAGE, "--think opens the assistant's turn of a chat; give --chat too");
    } else {
        struct job job = {.options = &options};
        status = tokenize_all(&job, &err);
    }
    options_free(table, &options);
    return status ? command_fail(&err) : COMMAND_DONE;
}

const struct command command_tokenize = {"tokenize", "MODEL IN... [-o PREFIX] [--chat [--think]]",
                                         "turn documents into token ids", run_tokenize};
