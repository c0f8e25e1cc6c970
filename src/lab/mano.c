/* Owns how an expression is drawn, written and worked out. The tree is drawn as its first authors do: an operator at
 * the root, uniform; of the l-1 operations left, a uniform number goes to the left operand; leaves are uniform.
 *
 * The text is "#3 - *42 +13 =": a sign, the number of operations, and the symbols in prefix order. Operators have a
 * space before them and digits none, so that under a pre-tokenizer of single digits every symbol is one token. From
 * modulus 11 on numbers have a space before them too, which keeps them apart. */
#include "lab/mano.h"

#include <stdio.h>
#include <string.h>

/* An expression while it is written. */
struct writer {
    const struct mano *mano;
    struct random *random;
    char *text;
    size_t size, capacity;
};

static void put(struct writer *w, const char *text) {
    size_t n = strlen(text);
    CHECK_LT(w->size + n, w->capacity);
    memcpy(w->text + w->size, text, n + 1);
    w->size += n;
}

static void format_number(const struct mano *mano, int32_t value, char *out, size_t size) {
    snprintf(out, size, mano->modulus <= 10 ? "%d" : " %d", value);
}

static int32_t apply(char operator, int32_t a, int32_t b, int32_t modulus) {
    switch (operator) {
    case '+':
        return (a + b) % modulus;
    case '-':
        return (a - b + modulus) % modulus;
    default:
        return a * b % modulus;
    }
}

/* Writes an expression of so many operations and returns its value; as deep as there are operations. */
static int32_t write_expression(struct writer *w, int32_t operations) {
    char text[16];
    if (operations == 0) {
        int32_t value = (int32_t)random_below(w->random, (uint64_t)w->mano->modulus);
        format_number(w->mano, value, text, sizeof text);
        put(w, text);
        return value;
    }
    char operator= "+-*"[random_below(w->random, 3)];
    int32_t left = (int32_t)random_below(w->random, (uint64_t)operations);
    snprintf(text, sizeof text, " %c", operator);
    put(w, text);
    int32_t a = write_expression(w, left), b = write_expression(w, operations - 1 - left);
    return apply(operator, a, b, w->mano->modulus);
}

static void draw(const void *world, struct random *random, int32_t level, struct lab_problem *problem) {
    const struct mano *mano = world;
    struct writer w = {.mano = mano, .random = random, .text = problem->prompt, .capacity = sizeof problem->prompt};
    char head[16];
    snprintf(head, sizeof head, "#%d", level);
    put(&w, head);
    int32_t value = write_expression(&w, level);
    put(&w, " =");
    format_number(mano, value, problem->answer, sizeof problem->answer);
}

int mano_task(struct lab_task *task, const struct mano *mano, looplm_error *err) {
    if (mano->modulus < MANO_MODULUS_MIN || mano->modulus > MANO_MODULUS_MAX)
        return error_set(err, LOOPLM_USAGE, "mano: modulus %d is outside %d to %d", mano->modulus, MANO_MODULUS_MIN,
                         MANO_MODULUS_MAX);
    if (mano->operations_min < 1 || mano->operations_min > mano->operations_max ||
        mano->operations_max > MANO_OPERATIONS_MAX)
        return error_set(err, LOOPLM_USAGE,
                         "mano: %d to %d operations were asked for; expected 1 <= least <= most <= %d",
                         mano->operations_min, mano->operations_max, MANO_OPERATIONS_MAX);
    *task = (struct lab_task){.name = "mano",
                              .axis = "operations",
                              .world = mano,
                              .held_out_from = MANO_HELD_OUT_FROM,
                              .level_min = mano->operations_min,
                              .level_max = mano->operations_max,
                              .draw = draw};
    return lab_task_weights(task, NULL, "length-weights", err);
}
