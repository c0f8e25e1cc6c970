/* Chat templates: the known ones, the vectors of the released one, and what is refused. */
#include "base/file.h"
#include "base/json.h"
#include "support/support.h"
#include "text/chat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct tokenizer *open_ouro(char **directory) {
    struct tokenizer *t;
    looplm_error err = {0};
    *directory = support_fixture("ouro-1.4b");
    assert_int_equal(tokenizer_open(&t, *directory, &err), 0);
    return t;
}

static void assert_vector(const struct chat *chat, const struct tokenizer *t, const json_t *record) {
    looplm_error err = {0};
    char *text;
    size_t size, n;
    int32_t *ids;
    const json_t *expected = json_object_get(record, "ids");
    struct chat_ending ending = {.generation_prompt = json_is_true(json_object_get(record, "add_generation_prompt"))};
    assert_int_equal(chat_render(chat, json_object_get(record, "messages"), ending, &text, &size, &err), 0);
    assert_string_equal(text, json_string_value(json_object_get(record, "rendered")));
    assert_int_equal(tokenizer_encode(t, text, size, true, &ids, &n, &err), 0);
    assert_int_equal(n, json_array_size(expected));
    for (size_t i = 0; i < n; i++) assert_int_equal(ids[i], json_integer_value(json_array_get(expected, i)));
    free(ids);
    free(text);
}

static void test_released_vectors(void **state) {
    (void)state;
    char *vectors = support_fixture("tokenizer_vectors/ouro_chat_public.jsonl"), *directory, *line = NULL;
    struct tokenizer *t = open_ouro(&directory);
    struct chat chat;
    looplm_error err = {0};
    size_t room = 0;
    int n = 0;
    if (chat_open(&chat, directory, t, &err)) fail_msg("%s", err.message);
    assert_int_equal(chat.kind, CHAT_BASE);
    FILE *lines = fopen(vectors, "r");
    for (ssize_t size; (size = getline(&line, &room, lines)) > 0; n++) {
        json_t *record = json_loadb(line, (size_t)size, 0, NULL);
        assert_vector(&chat, t, record);
        json_decref(record);
    }
    assert_int_equal(n, 6);
    fclose(lines);
    free(line);
    tokenizer_close(t);
    free(directory);
    free(vectors);
}

static void assert_rendered(const struct chat *chat, const char *document, bool think, const char *expected) {
    looplm_error err = {0};
    json_t *json = json_loads(document, 0, NULL);
    char *text;
    size_t size;
    assert_int_equal(chat_render_document(chat, json, think, &text, &size, &err), 0);
    assert_string_equal(text, expected);
    assert_int_equal(size, strlen(expected));
    free(text);
    json_decref(json);
}

static void test_both_kinds(void **state) {
    (void)state;
    const struct chat base = {CHAT_BASE}, thinking = {CHAT_THINKING};
    static const char question[] = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}";
    static const char answered[] =
        "{\"messages\": [{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", \"content\": \"Hi\"},"
        " {\"role\": \"assistant\", \"content\": \"Yo\"}]}";
    static const char asked[] =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], \"add_generation_prompt\": false}";
    assert_rendered(&thinking, question, false, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    assert_rendered(&thinking, question, true, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n");
    assert_rendered(&base, question, true,
                    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                    "<|im_start|>assistant\n<think>\n");
    assert_rendered(
        &base, answered, false,
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n");
    assert_rendered(
        &thinking, answered, true,
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n");
    assert_rendered(&thinking, asked, false, "<|im_start|>user\nHi<|im_end|>\n");
}

/* The community's template file is known with and without its last line end; one more space and it is not. */
static void test_thinking_template_is_known(void **state) {
    (void)state;
    char *path = support_fixture("ouro-thinking/chat_template.community.jinja"), *text, hex[65];
    size_t size;
    enum chat_kind kind = CHAT_BASE;
    looplm_error err = {0};
    assert_int_equal(file_read(path, 1 << 16, &text, &size, &err), 0);
    assert_true(chat_recognise(text, size, &kind, hex));
    assert_int_equal(kind, CHAT_THINKING);
    assert_true(chat_recognise(text, size - 1, &kind, hex));
    assert_false(chat_recognise(text + 1, size - 1, &kind, hex));
    free(text);
    free(path);
}

static void test_unknown_template_is_named(void **state) {
    (void)state;
    char *ouro, *other = support_make_directory();
    struct tokenizer *t = open_ouro(&ouro);
    struct chat chat;
    looplm_error err = {0};
    free(support_write_file(other, "tokenizer_config.json", "{\"chat_template\": \"{{ odd }}\"}"));
    assert_int_equal(chat_open(&chat, other, t, &err), LOOPLM_UNSUPPORTED);
    support_assert_error(&err, LOOPLM_UNSUPPORTED, "tokenizer_config.json", "{{ odd }}", "SHA-256", NULL);
    /* A .jinja file counts before the config. */
    free(support_write_file(other, "chat_template.jinja", "{{ other }}"));
    assert_int_equal(chat_open(&chat, other, t, &err), LOOPLM_UNSUPPORTED);
    support_assert_error(&err, LOOPLM_UNSUPPORTED, "chat_template.jinja", "{{ other }}", NULL);
    support_remove_directory(other);
    free(ouro);
    tokenizer_close(t);
}

static void test_no_template(void **state) {
    (void)state;
    char *ouro, *empty = support_make_directory(), *gpt2 = support_fixture("gpt2");
    struct tokenizer *t = open_ouro(&ouro), *without;
    struct chat chat = {CHAT_THINKING};
    looplm_error err = {0};
    assert_int_equal(chat_open(&chat, empty, t, &err), 0);
    assert_int_equal(chat.kind, CHAT_BASE);
    assert_int_equal(tokenizer_open(&without, gpt2, &err), 0);
    assert_int_equal(chat_open(&chat, empty, without, &err), LOOPLM_UNSUPPORTED);
    support_assert_error(&err, LOOPLM_UNSUPPORTED, "<|im_start|>", NULL);
    tokenizer_close(t);
    tokenizer_close(without);
    support_remove_directory(empty);
    free(gpt2);
    free(ouro);
}

static void test_bad_messages(void **state) {
    (void)state;
    static const char *const bad[] = {"{}",
                                      "{\"messages\": 3}",
                                      "{\"messages\": []}",
                                      "{\"messages\": [1]}",
                                      "{\"messages\": [{\"role\": \"user\"}]}",
                                      "{\"messages\": [{\"role\": 1, \"content\": \"a\"}]}"};
    const struct chat chat = {CHAT_BASE};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        looplm_error err = {0};
        char *text;
        size_t size;
        json_t *json = json_loads(bad[i], 0, NULL);
        assert_int_equal(chat_render_document(&chat, json, false, &text, &size, &err), LOOPLM_FORMAT);
        support_assert_error(&err, LOOPLM_FORMAT, "message", "expected", NULL);
        json_decref(json);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_released_vectors),
        cmocka_unit_test(test_both_kinds),
        cmocka_unit_test(test_thinking_template_is_known),
        cmocka_unit_test(test_unknown_template_is_named),
        cmocka_unit_test(test_no_template),
        cmocka_unit_test(test_bad_messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
