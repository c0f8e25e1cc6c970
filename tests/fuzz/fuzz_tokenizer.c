/* libFuzzer: a tokenizer file and a text. The input is the JSON, a zero byte, and the text; without a zero byte it is
 * text for a small tokenizer. What opens must encode anything, decode its own ids, and stream the same text. */
#include "base/error.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char small_file[] =
    "{\"added_tokens\": [{\"id\": 0, \"content\": \"<s>\", \"special\": true, \"lstrip\": true, \"rstrip\": true},"
    "{\"id\": 9, \"content\": \"ab\", \"single_word\": true}], \"normalizer\": {\"type\": \"NFC\"},"
    "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\", \"individual_digits\": "
    "true},"
    "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\p{Lu}+|\\\\s+\"}, \"behavior\": \"Isolated\"},"
    "{\"type\": \"ByteLevel\", \"add_prefix_space\": true}]}, \"decoder\": {\"type\": \"ByteLevel\"},"
    "\"model\": {\"type\": \"BPE\", \"unk_token\": \"?\", \"vocab\": {\"?\": 1, \"a\": 2, \"b\": 3, \"aa\": 4, "
    "\"aab\": 5, \"\\u0120\": 6,"
    "\"\\u00c3\": 7}, \"merges\": [\"a a\", \"aa b\"]}}";

static void fail(const char *what) {
    fprintf(stderr, "fuzz_tokenizer: %s\n", what);
    abort();
}

static void check_stream(const struct tokenizer *t, const int32_t *ids, size_t n, const char *text, size_t size) {
    struct detokenizer d;
    const char *part;
    size_t part_size, at = 0;
    if (detokenizer_init(&d, t, false, NULL)) return;
    for (size_t i = 0; i <= n; i++) {
        if (i < n)
            detokenizer_push(&d, ids[i], &part, &part_size);
        else
            detokenizer_flush(&d, &part, &part_size);
        if (!utf8_valid(part, part_size)) fail("the stream gave half a character");
        if (part_size > size - at || memcmp(text + at, part, part_size))
            fail("the stream differs from decoding at once");
        at += part_size;
    }
    if (at != size) fail("the stream is shorter than decoding at once");
    detokenizer_free(&d);
}

static void use(const struct tokenizer *t, const char *text, size_t size, bool special) {
    int32_t *ids;
    size_t n, back_size;
    char *back;
    looplm_error err = {0};
    if (tokenizer_encode(t, text, size, special, &ids, &n, &err)) return;
    if (tokenizer_decode(t, ids, n, false, &back, &back_size, &err)) fail("ids that were encoded do not decode");
    if (!utf8_valid(back, back_size)) fail("decoding gave invalid UTF-8");
    check_stream(t, ids, n, back, back_size);
    free(back);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
    const char *json = zero ? (const char *)data : small_file,
               *text = zero ? (const char *)zero + 1 : (const char *)data;
    size_t json_size = zero ? (size_t)(zero - data) : sizeof small_file - 1;
    size_t text_size = zero ? size - json_size - 1 : size;
    struct tokenizer *t;
    looplm_error err = {0};
    if (tokenizer_open_json(&t, json, json_size, "fuzz", &err)) {
        if (!err.message[0]) fail("an error without a message");
        return 0;
    }
    use(t, text, text_size, true);
    use(t, text, text_size, false);
    tokenizer_close(t);
    return 0;
}
