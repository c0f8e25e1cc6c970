/* Documents from files: .jsonl holds one per line, anything else is one document; .gz and .zst are unpacked; "-" is
 * stdin, one document. */
#ifndef TEXT_DOCUMENTS_H
#define TEXT_DOCUMENTS_H

#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>

#define DOCUMENT_BYTES_MAX ((size_t)256 << 20)

enum documents_kind {
    DOCUMENTS_TEXT, /* .jsonl lines have "text"; other files are the text */
    DOCUMENTS_JSON  /* every document is a JSON object, such as {"messages": [...]} */
};

struct document {
    const char *text; /* DOCUMENTS_TEXT; may hold NUL bytes */
    size_t size;
    const json_t *object; /* the JSON object it came from, or NULL */
};

struct documents;
int documents_open(struct documents **documents, const char *path, enum documents_kind kind, looplm_error *err);
void documents_close(struct documents *documents);
/* *more is false at the end. The document is borrowed until the next call. Messages name the file and the line. */
int documents_next(struct documents *documents, struct document *document, bool *more, looplm_error *err);

#endif
