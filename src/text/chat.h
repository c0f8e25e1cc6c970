/* Chat templates: from messages to the text that a model was trained on. Two templates are known, both ChatML; they are
 * recognised by a hash of the template's text. */
#ifndef TEXT_CHAT_H
#define TEXT_CHAT_H

#include "base/error.h"
#include "text/tokenizer.h"

#include <jansson.h>
#include <stdbool.h>

#define CHAT_MESSAGES_MAX 65536
#define CHAT_TEXT_BYTES_MAX TOKENIZER_TEXT_BYTES_MAX

enum chat_kind {
    CHAT_BASE,    /* inserts a system turn when there is none; its template knows no thinking */
    CHAT_THINKING /* inserts no system turn */
};

struct chat {
    enum chat_kind kind;
};

/* Reads chat_template.jinja, else chat_template of tokenizer_config.json. A template that is not known is an error that
 * names it; with no template at all, CHAT_BASE if the tokenizer has the three tokens of ChatML, else an error. */
int chat_open(struct chat *chat, const char *model_directory, const struct tokenizer *tokenizer, looplm_error *err);
/* The kind of a template by its text; false when it is not known. hex is its SHA-256 without trailing line ends. */
bool chat_recognise(const char *text, size_t size, enum chat_kind *kind, char hex[65]);

/* How to end a rendering. */
struct chat_ending {
    bool generation_prompt; /* open the assistant's turn */
    bool think;             /* and in it `<think>`; needs generation_prompt */
};

/* messages is an array of {"role": string, "content": string}, not empty. *text is fresh and NUL-terminated; special
 * tokens in it are meant to be parsed. */
int chat_render(const struct chat *chat, const json_t *messages, struct chat_ending ending, char **text, size_t *size,
                looplm_error *err);

/* The "messages" of a document, with the ending it asks for: "add_generation_prompt" when it has that key; else the
 * assistant's turn is opened when the last message is not the assistant's, or when think. */
int chat_render_document(const struct chat *chat, const json_t *document, bool think, char **text, size_t *size,
                         looplm_error *err);

#endif
