/* Owns the world's names, its links and the questions' words: "Q: Who is the boss of the teacher of Ann? A:" and "
 * Eve".
 *
 * Names are short and start with a capital, relations are common nouns, and no name is the start of another, so that a
 * tokenizer trained on such questions soon has one token for each, with the space before it. */
#include "lab/hops.h"

#include <stdio.h>
#include <string.h>

static const char *const names[HOPS_PEOPLE_MAX] = {
    "Ada",   "Alba",  "Amos",  "Anya",   "Arlo",  "Axel",  "Bea",   "Beth",  "Bjorn", "Boris", "Bruno", "Cara",
    "Cleo",  "Colin", "Cora",  "Cyrus",  "Dana",  "Dario", "Dean",  "Della", "Dirk",  "Dora",  "Edith", "Egon",
    "Elmer", "Elsa",  "Emil",  "Enzo",   "Esme",  "Ezra",  "Faye",  "Felix", "Fern",  "Fiona", "Flora", "Frank",
    "Freya", "Gail",  "Gavin", "Gerda",  "Gino",  "Glen",  "Greta", "Gus",   "Hana",  "Hazel", "Heidi", "Henk",
    "Hilda", "Hugo",  "Ida",   "Igor",   "Ilse",  "Inga",  "Iris",  "Ivan",  "Jade",  "Jamal", "Jens",  "Jill",
    "Joel",  "Jonas", "Joyce", "Juno",   "Kai",   "Karl",  "Keith", "Kira",  "Klaus", "Kofi",  "Lars",  "Leif",
    "Lena",  "Liam",  "Lola",  "Lucas",  "Luna",  "Lydia", "Mabel", "Marco", "Maud",  "Mei",   "Milo",  "Mina",
    "Mona",  "Nadia", "Neil",  "Nico",   "Nina",  "Noah",  "Nora",  "Olaf",  "Olga",  "Omar",  "Oscar", "Otto",
    "Pablo", "Paula", "Pearl", "Petra",  "Priya", "Quinn", "Ralph", "Ravi",  "Rhea",  "Rita",  "Rolf",  "Rosa",
    "Ruth",  "Sally", "Sasha", "Selma",  "Silas", "Sonja", "Sven",  "Tamar", "Tess",  "Theo",  "Tilda", "Tomas",
    "Ugo",   "Uma",   "Vera",  "Viktor", "Wanda", "Willa", "Yusuf", "Zoe"};

static const char *const relation_names[HOPS_RELATIONS_MAX] = {
    "boss",  "teacher", "friend", "neighbour", "doctor", "cousin", "tailor", "coach",
    "baker", "lawyer",  "rival",  "partner",   "barber", "tutor",  "guide",  "landlord"};

const char *hops_person(int32_t person) {
    return names[person];
}
const char *hops_relation(int32_t relation) {
    return relation_names[relation];
}

static int check_range(const char *what, int32_t found, int32_t min, int32_t max, looplm_error *err) {
    if (found >= min && found <= max) return 0;
    return error_set(err, LOOPLM_USAGE, "hops: %d %s were asked for; expected %d to %d", found, what, min, max);
}

int hops_init(struct hops *h, int32_t people, int32_t relations, int32_t hops_min, int32_t hops_max, uint64_t seed,
              looplm_error *err) {
    int status = check_range("people", people, 2, HOPS_PEOPLE_MAX, err);
    if (!status) status = check_range("relations", relations, 1, HOPS_RELATIONS_MAX, err);
    if (!status) status = check_range("hops at most", hops_max, 1, HOPS_HOPS_MAX, err);
    if (!status) status = check_range("hops at least", hops_min, 1, hops_max, err);
    if (status) return status;
    *h = (struct hops){.people = people, .relations = relations, .hops_min = hops_min, .hops_max = hops_max};
    for (int32_t r = 0; r < relations; r++) {
        struct random random = {random_hash(seed, (uint64_t)r, (uint64_t)people), 0};
        for (int32_t p = 0; p < people; p++) {
            int32_t other = (int32_t)random_below(&random, (uint64_t)people - 1);
            h->to[r][p] = (uint8_t)(other + (other >= p));
        }
    }
    return 0;
}

/* The relations are drawn in the order of the words, the outermost first, and followed from the last one on. */
static void draw(const void *world, struct random *random, int32_t level, struct lab_problem *problem) {
    const struct hops *h = world;
    int32_t path[HOPS_HOPS_MAX];
    CHECK_LE(level, HOPS_HOPS_MAX);
    size_t size = (size_t)snprintf(problem->prompt, sizeof problem->prompt, "Q: Who is");
    for (int32_t i = 0; i < level; i++) {
        path[i] = (int32_t)random_below(random, (uint64_t)h->relations);
        size += (size_t)snprintf(problem->prompt + size, sizeof problem->prompt - size, " the %s of",
                                 relation_names[path[i]]);
    }
    int32_t person = (int32_t)random_below(random, (uint64_t)h->people);
    snprintf(problem->prompt + size, sizeof problem->prompt - size, " %s? A:", names[person]);
    for (int32_t i = level - 1; i >= 0; i--) person = h->to[path[i]][person];
    snprintf(problem->answer, sizeof problem->answer, " %s", names[person]);
}

int hops_task(struct lab_task *task, const struct hops *hops, looplm_error *err) {
    *task = (struct lab_task){.name = "hops",
                              .axis = "hops",
                              .world = hops,
                              .held_out_from = HOPS_HELD_OUT_FROM,
                              .level_min = hops->hops_min,
                              .level_max = hops->hops_max,
                              .draw = draw};
    return lab_task_weights(task, NULL, "hop-weights", err);
}
