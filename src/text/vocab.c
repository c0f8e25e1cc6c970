/* The vocabulary's strings live in one growing arena; entries hold offsets, so growth moves nothing that is kept. */
#include "text/vocab.h"

#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>

uint32_t byte_level_code_point(unsigned char b) {
    if (b <= 32) return 256u + b;
    if (b >= 127 && b <= 160) return 256u + 33u + (b - 127u);
    return b == 173 ? 256u + 67u : b;
}

int byte_level_byte(uint32_t c) {
    if (c >= 256) return c <= 288 ? (int)c - 256 : c <= 322 ? (int)c - 289 + 127 : c == 323 ? 173 : -1;
    return c <= 32 || (c >= 127 && c <= 160) || c == 173 ? -1 : (int)c;
}

uint64_t vocab_hash(const char *text, size_t size) {
    uint64_t hash = size * 0x9E3779B97F4A7C15u, part;
    for (; size >= 8; text += 8, size -= 8) {
        memcpy(&part, text, 8);
        hash = (hash ^ part) * 0xFF51AFD7ED558CCDu;
        hash ^= hash >> 32;
    }
    part = 0;
    memcpy(&part, text, size);
    hash = (hash ^ part) * 0xC4CEB9FE1A85EC53u;
    return hash ^ hash >> 29;
}

void vocab_init(struct vocab *vocab) {
    *vocab = (struct vocab){0};
}

void vocab_free(struct vocab *vocab) {
    free(vocab->entries);
    free(vocab->arena);
    free(vocab->slots);
    vocab_init(vocab);
}

static int out_of_memory(looplm_error *err) {
    return error_set(err, LOOPLM_MEMORY, "no memory for the vocabulary");
}

static int grow_entries(struct vocab *v, int32_t id, looplm_error *err) {
    if (id < v->room) return 0;
    int32_t room = v->room ? v->room : 1024;
    while (room <= id) room *= 2;
    struct vocab_entry *entries = realloc(v->entries, (size_t)room * sizeof *entries);
    if (!entries) return out_of_memory(err);
    memset(entries + v->room, 0, (size_t)(room - v->room) * sizeof *entries);
    v->entries = entries;
    v->room = room;
    return 0;
}

static int grow_arena(struct vocab *v, size_t size, looplm_error *err) {
    if (v->arena_room - v->arena_used >= size) return 0;
    size_t room = v->arena_room ? v->arena_room : 1 << 16;
    while (room - v->arena_used < size) room *= 2;
    char *arena = realloc(v->arena, room);
    if (!arena) return out_of_memory(err);
    v->arena = arena;
    v->arena_room = room;
    return 0;
}

/* The slot of the text, or the free one where it belongs. */
static size_t find_slot(const struct vocab *v, const char *text, size_t size) {
    size_t slot = vocab_hash(text, size) & (v->n_slots - 1);
    for (; v->slots[slot]; slot = (slot + 1) & (v->n_slots - 1)) {
        const struct vocab_entry *e = &v->entries[v->slots[slot] - 1];
        if (e->text_size == size && !memcmp(v->arena + e->text, text, size)) break;
    }
    return slot;
}

static int grow_slots(struct vocab *v, looplm_error *err) {
    if ((size_t)(v->n_present + 1) * 2 <= v->n_slots) return 0;
    size_t n_slots = v->n_slots ? v->n_slots * 2 : 2048;
    int32_t *slots = calloc(n_slots, sizeof *slots), *old = v->slots;
    if (!slots) return out_of_memory(err);
    v->slots = slots;
    v->n_slots = n_slots;
    for (int32_t id = 0; id < v->size; id++) {
        const struct vocab_entry *e = &v->entries[id];
        if (e->present) slots[find_slot(v, v->arena + e->text, e->text_size)] = id + 1;
    }
    free(old);
    return 0;
}

int32_t vocab_find(const struct vocab *vocab, const char *text, size_t size) {
    if (!vocab->n_slots) return -1;
    return vocab->slots[find_slot(vocab, text, size)] - 1;
}

/* Writes the bytes that a token's text stands for. A text with any character outside the byte alphabet stands for
 * itself, as in the reference's decoder. Returns the size; out has room for `size` bytes. */
static uint32_t decode_text(const char *text, size_t size, char *out) {
    size_t length;
    uint32_t used = 0;
    for (size_t at = 0; at < size; at += length) {
        int byte = byte_level_byte(utf8_read(text + at, &length));
        if (byte < 0) {
            memcpy(out, text, size);
            return (uint32_t)size;
        }
        out[used++] = (char)byte;
    }
    return used;
}

int vocab_add(struct vocab *v, int64_t id, const char *text, size_t size, looplm_error *err) {
    if (id < 0 || id >= VOCAB_IDS_MAX) {
        return error_set(err, LOOPLM_FORMAT, "token \"%.60s\" has id %lld, outside 0..%d", text, (long long)id,
                         (int)VOCAB_IDS_MAX - 1);
    }
    if (size > VOCAB_TOKEN_BYTES_MAX) {
        return error_set(err, LOOPLM_LIMIT, "token %lld has %zu bytes, more than %d", (long long)id, size,
                         VOCAB_TOKEN_BYTES_MAX);
    }
    if (!utf8_valid(text, size)) return error_set(err, LOOPLM_FORMAT, "token %lld is not valid UTF-8", (long long)id);
    if (vocab_find(v, text, size) >= 0) {
        return error_set(err, LOOPLM_FORMAT, "token \"%.60s\" has two ids, %d and %lld", text,
                         (int)vocab_find(v, text, size), (long long)id);
    }
    if (id < v->room && v->entries[id].present) {
        return error_set(err, LOOPLM_FORMAT, "two tokens have id %lld: \"%.60s\" and \"%.60s\"", (long long)id,
                         v->arena + v->entries[id].text, text);
    }
    if (grow_entries(v, (int32_t)id, err) || grow_arena(v, 2 * size + 1, err) || grow_slots(v, err))
        return LOOPLM_MEMORY;
    struct vocab_entry *e = &v->entries[id];
    *e = (struct vocab_entry){
        .text = v->arena_used, .text_size = (uint32_t)size, .bytes = v->arena_used + size + 1, .present = true};
    memcpy(v->arena + e->text, text, size);
    v->arena[e->text + size] = 0;
    e->bytes_size = decode_text(text, size, v->arena + e->bytes);
    v->arena_used = e->bytes + e->bytes_size;
    if (e->bytes_size > v->bytes_size_max) v->bytes_size_max = e->bytes_size;
    if (id >= v->size) v->size = (int32_t)id + 1;
    v->slots[find_slot(v, text, size)] = (int32_t)id + 1;
    v->n_present++;
    return 0;
}

static const struct vocab_entry *entry_of(const struct vocab *vocab, int32_t id) {
    return id >= 0 && id < vocab->size && vocab->entries[id].present ? &vocab->entries[id] : NULL;
}

const char *vocab_text(const struct vocab *vocab, int32_t id, size_t *size) {
    const struct vocab_entry *e = entry_of(vocab, id);
    *size = e ? e->text_size : 0;
    return e ? vocab->arena + e->text : NULL;
}

const char *vocab_bytes(const struct vocab *vocab, int32_t id, size_t *size) {
    const struct vocab_entry *e = entry_of(vocab, id);
    *size = e ? e->bytes_size : 0;
    return e ? vocab->arena + e->bytes : NULL;
}
