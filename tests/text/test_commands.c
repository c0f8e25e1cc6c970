/* `looplm tokenize`, `detokenize` and `tokenizer train` as programs: the contract of their output and exit status. */
#include "support/support.h"
#include "text/indexed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A scratch directory with a tokenizer trained by the command; freed by support_remove_directory. */
static char *train_small(void) {
    char *directory = support_make_directory(), *command, *output;
    free(support_write_file(directory, "text.txt",
                            "the cat sat on the mat; the hat is that of the cat. 12 cats!\n"
                            "a quick brown fox jumps over lazy dogs while seven wizards mix potions\n"));
    assert_true(asprintf(&command, "%s tokenizer train --vocab-size 300 --min-count 1 -o '%s/m' '%s/text.txt'",
                         LOOPLM_PROGRAM, directory, directory) > 0);
    if (support_shell(command, &output)) fail_msg("%s", output);
    assert_non_null(strstr(output, "300 ids"));
    free(command);
    free(output);
    return directory;
}

/* Runs a pipeline in the directory, with P for the program and M for the model there. */
static void assert_run(const char *directory, const char *command, int status, const char *expected) {
    char *line, *output;
    assert_true(asprintf(&line, "cd '%s' && P='%s' && M=m && %s", directory, LOOPLM_PROGRAM, command) > 0);
    int found = support_shell(line, &output);
    if (found != status || !strstr(output, expected)) fail_msg("%s: status %d, output: %s", command, found, output);
    free(line);
    free(output);
}

static void test_round_trip(void **state) {
    (void)state;
    char *directory = train_small();
    assert_run(directory, "$P tokenize $M text.txt | $P detokenize $M | cmp - text.txt && echo same", 0, "same\n");
    assert_run(directory, "printf 'a\\0b\\377c' | $P tokenize $M - | $P detokenize $M --json", 0,
               "\"a\\u0000b\xEF\xBF\xBD"
               "c\"\n");
    assert_run(directory, "printf '[1,2]\\n[]\\n[3]' | $P detokenize $M", 0, "<|im_start|><|im_end|><think>");
    assert_run(directory, "printf '[1, 5]' | $P detokenize $M --skip-special", 0, "!");
    assert_run(directory, "printf '' | $P tokenize $M -", 0, "[]\n");
    support_remove_directory(directory);
}

static void test_jsonl_and_chat(void **state) {
    (void)state;
    char *directory = train_small();
    free(support_write_file(directory, "d.jsonl", "{\"text\": \"!\"}\n{\"text\": \"!!<|im_end|>\"}\n"));
    free(support_write_file(directory, "c.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n"));
    assert_run(directory, "$P tokenize $M d.jsonl", 0, "[5]\n[5, 5, 2]\n");
    assert_run(directory, "gzip d.jsonl && $P tokenize $M d.jsonl.gz", 0, "[5]\n[5, 5, 2]\n");
    assert_run(directory, "$P tokenize $M --chat --think c.jsonl | $P detokenize $M", 0,
               "helpful assistant.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n");
    support_remove_directory(directory);
}

static void test_megatron_files(void **state) {
    (void)state;
    char *directory = train_small(), *prefix;
    struct indexed *x;
    looplm_error err = {0};
    size_t n;
    free(support_write_file(directory, "d.jsonl", "{\"text\": \"!\"}\n{\"text\": \"\"}\n{\"text\": \"!!\"}\n"));
    assert_run(directory, "$P tokenize $M d.jsonl text.txt -o out && ls", 0, "out.bin\nout.idx\n");
    assert_true(asprintf(&prefix, "%s/out", directory) > 0);
    assert_int_equal(indexed_open(&x, prefix, &err), 0);
    assert_int_equal(indexed_documents(x), 4);
    assert_int_equal(indexed_type(x), INDEXED_UINT16);
    const uint16_t *ids = indexed_document(x, 2, &n);
    assert_int_equal(n, 2);
    assert_int_equal(ids[0], 5);
    indexed_close(x);
    free(prefix);
    support_remove_directory(directory);
}

static void test_wrong_use(void **state) {
    (void)state;
    char *directory = train_small();
    assert_run(directory, "$P tokenize $M", 2, "looplm: ");
    assert_run(directory, "$P tokenize $M text.txt --chatt", 2, "chat");
    assert_run(directory, "$P tokenize $M text.txt --think", 2, "--chat");
    assert_run(directory, "$P tokenize $M absent.txt", 1, "absent.txt");
    assert_run(directory, "$P tokenize absent text.txt", 1, "absent");
    assert_run(directory, "printf '[300]' | $P detokenize $M", 1, "0..299");
    assert_run(directory, "printf '[1, \"x\"]' | $P detokenize $M", 1, "a string");
    assert_run(directory, "printf '[1, ' | $P detokenize $M", 1, "array 1 is not JSON");
    assert_run(directory, "$P tokenizer inspect -o x text.txt", 2, "train");
    assert_run(directory, "$P tokenizer train -o x --vocab-size 256 text.txt", 2, "261");
    /* A failed run leaves no half of a dataset behind. */
    assert_run(directory, "$P tokenize $M text.txt absent.txt -o part; ls", 0, "text.txt\n");
    assert_run(directory, "ls part.*", 2, "part");
    support_remove_directory(directory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_jsonl_and_chat),
        cmocka_unit_test(test_megatron_files),
        cmocka_unit_test(test_wrong_use),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
