/* Rendering chats. Both known templates write <|im_start|>ROLE\nCONTENT<|im_end|>\n for each message and differ in
 * what they put first; the thinking switch is applied to both alike (SPEC.md section 2). */
#include "text/chat.h"

#include "base/file.h"
#include "base/json.h"
#include "base/sha256.h"

#include <stdlib.h>
#include <string.h>

#define TEMPLATE_BYTES_MAX ((size_t)1 << 20)

static const struct {
    const char *sha256;
    enum chat_kind kind;
    const char *name;
} known_templates[] = {
    {"609d03c963c8d8d0519c9212df62280bc6dd561013259c3b6cd0ee43f7910f58", CHAT_BASE, "the released Ouro base template"},
    {"404011ea4bf227901344eef6e53ea33f9d2e6b21033ae7df90bdda4ce65ebe7d", CHAT_THINKING,
     "the community's Ouro Thinking template"},
};

bool chat_recognise(const char *text, size_t size, enum chat_kind *kind, char hex[65]) {
    while (size > 0 && (text[size - 1] == '\n' || text[size - 1] == '\r')) size--;
    sha256_hex(text, size, hex);
    for (size_t i = 0; i < sizeof known_templates / sizeof *known_templates; i++) {
        if (strcmp(hex, known_templates[i].sha256)) continue;
        *kind = known_templates[i].kind;
        return true;
    }
    return false;
}

static int use_template(struct chat *chat, const char *text, size_t size, const char *path, looplm_error *err) {
    char hex[65];
    if (chat_recognise(text, size, &chat->kind, hex)) return 0;
    int shown = (int)(size < 60 ? size : 60);
    for (int i = 0; i < shown; i++) {
        if (text[i] == '\n') shown = i;
    }
    return error_set(err, LOOPLM_UNSUPPORTED,
                     "%s: the chat template with SHA-256 %s (\"%.*s...\") is not known; expected %s or %s", path, hex,
                     shown, text, known_templates[0].name, known_templates[1].name);
}

static int use_default(struct chat *chat, const char *directory, const struct tokenizer *tokenizer, looplm_error *err) {
    static const char *const needed[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    for (int i = 0; i < 3; i++) {
        if (tokenizer_id(tokenizer, needed[i]) >= 0) continue;
        return error_set(err, LOOPLM_UNSUPPORTED,
                         "%s has no chat template, and its vocabulary lacks %s, which ChatML needs; chat with a model "
                         "that was trained for it",
                         directory, needed[i]);
    }
    chat->kind = CHAT_BASE;
    return 0;
}

/* A config's chat_template is a string, or a list of {"name", "template"} of which we take "default". */
static const json_t *template_of(const json_t *config) {
    const json_t *value = json_object_get(config, "chat_template");
    for (size_t i = 0; json_is_array(value) && i < json_array_size(value); i++) {
        const char *name = json_string_value(json_object_get(json_array_get(value, i), "name"));
        if (name && !strcmp(name, "default")) return json_object_get(json_array_get(value, i), "template");
    }
    return value;
}

static int open_from_config(struct chat *chat, const char *path, bool *found, looplm_error *err) {
    json_t *config;
    int status = json_read(path, TEMPLATE_BYTES_MAX, &config, err);
    if (status) return status;
    const json_t *text = template_of(config);
    *found = text && !json_is_null(text);
    if (json_is_string(text)) {
        status = use_template(chat, json_string_value(text), json_string_length(text), path, err);
    } else if (*found) {
        status = error_set(err, LOOPLM_FORMAT, "%s: chat_template is %s without a default, expected a string", path,
                           json_type_name(text));
    }
    json_decref(config);
    return status;
}

int chat_open(struct chat *chat, const char *directory, const struct tokenizer *tokenizer, looplm_error *err) {
    char *jinja = file_join(directory, "chat_template.jinja"), *config = file_join(directory, "tokenizer_config.json"),
         *text;
    size_t size;
    bool found = false;
    int status = jinja && config ? 0 : error_set(err, LOOPLM_MEMORY, "no memory for paths");
    if (status == 0 && file_exists(jinja)) {
        found = true;
        status = file_read(jinja, TEMPLATE_BYTES_MAX, &text, &size, err);
        if (status == 0) {
            status = use_template(chat, text, size, jinja, err);
            free(text);
        }
    }
    if (status == 0 && !found && file_exists(config)) status = open_from_config(chat, config, &found, err);
    if (status == 0 && !found) status = use_default(chat, directory, tokenizer, err);
    free(jinja);
    free(config);
    return status;
}

/* A growing text. */
struct text {
    char *bytes;
    size_t size, room;
};

static int append(struct text *text, const char *bytes, size_t size, looplm_error *err) {
    if (size > CHAT_TEXT_BYTES_MAX - text->size) {
        return error_set(err, LOOPLM_LIMIT, "the chat is longer than %zu bytes", CHAT_TEXT_BYTES_MAX);
    }
    if (text->size + size + 1 > text->room) {
        size_t room = (text->size + size + 1) * 2;
        char *grown = realloc(text->bytes, room);
        if (!grown) return error_set(err, LOOPLM_MEMORY, "no memory for a chat of %zu bytes", room);
        text->bytes = grown;
        text->room = room;
    }
    memcpy(text->bytes + text->size, bytes, size);
    text->size += size;
    text->bytes[text->size] = 0;
    return 0;
}

static int append_turn(struct text *text, const json_t *message, size_t index, looplm_error *err) {
    const json_t *role = json_object_get(message, "role"), *content = json_object_get(message, "content");
    if (!json_is_string(role) || !json_is_string(content)) {
        return error_set(err, LOOPLM_FORMAT, "message %zu: role is %s and content is %s, expected two strings", index,
                         json_type_name(role), json_type_name(content));
    }
    int status = append(text, "<|im_start|>", 12, err);
    if (status == 0) status = append(text, json_string_value(role), json_string_length(role), err);
    if (status == 0) status = append(text, "\n", 1, err);
    if (status == 0) status = append(text, json_string_value(content), json_string_length(content), err);
    return status ? status : append(text, "<|im_end|>\n", 11, err);
}

static bool has_role(const json_t *message, const char *role) {
    const char *found = json_string_value(json_object_get(message, "role"));
    return found && !strcmp(found, role);
}

static int render(const struct chat *chat, const json_t *messages, struct chat_ending ending, struct text *text,
                  looplm_error *err) {
    static const char system_turn[] = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n";
    static const char opening[] = "<|im_start|>assistant\n", thinking[] = "<think>\n";
    int status = 0;
    if (chat->kind == CHAT_BASE && !has_role(json_array_get(messages, 0), "system")) {
        status = append(text, system_turn, sizeof system_turn - 1, err);
    }
    for (size_t i = 0; status == 0 && i < json_array_size(messages); i++) {
        status = append_turn(text, json_array_get(messages, i), i, err);
    }
    if (status == 0 && ending.generation_prompt) status = append(text, opening, sizeof opening - 1, err);
    if (status == 0 && ending.generation_prompt && ending.think)
        status = append(text, thinking, sizeof thinking - 1, err);
    return status;
}

int chat_render(const struct chat *chat, const json_t *messages, struct chat_ending ending, char **text, size_t *size,
                looplm_error *err) {
    struct text out = {0};
    size_t n = json_array_size(messages);
    *text = NULL;
    if (!json_is_array(messages) || n == 0) {
        return error_set(err, LOOPLM_FORMAT, "messages is %s, expected an array of at least one message",
                         json_is_array(messages) ? "empty" : json_type_name(messages));
    }
    if (n > CHAT_MESSAGES_MAX)
        return error_set(err, LOOPLM_LIMIT, "%zu messages, at most %d are read", n, CHAT_MESSAGES_MAX);
    int status = render(chat, messages, ending, &out, err);
    if (status) {
        free(out.bytes);
        return status;
    }
    *text = out.bytes;
    *size = out.size;
    return 0;
}

int chat_render_document(const struct chat *chat, const json_t *document, bool think, char **text, size_t *size,
                         looplm_error *err) {
    const json_t *messages = json_object_get(document, "messages"),
                 *asked = json_object_get(document, "add_generation_prompt");
    const json_t *last = json_array_get(messages, json_array_size(messages) - 1);
    struct chat_ending ending = {.generation_prompt = think || !has_role(last, "assistant"), .think = think};
    if (json_is_boolean(asked)) ending.generation_prompt = json_is_true(asked);
    return chat_render(chat, messages, ending, text, size, err);
}
