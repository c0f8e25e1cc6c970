/* The world against the program: full disks, devices, readers that leave, closed streams, a second trainer, wrong
 * recipes. Nothing that was there is lost. */
#include "cli/program.h"

static void test_full_stdout(void **state) {
    static const char *const commands[] = {
        "$P --help",
        "$P version",
        "$P run --help",
        "$P inspect $M",
        "$P inspect $M --json",
        "$P tokenize $M text.txt",
        "$P train --keys",
        "printf '[5, 6]' | $P detokenize $M",
        "$P run $M $T -p x -n 3",
        "$P run $M $T -p x -n 3 --json",
    };
    if (access("/dev/full", W_OK)) {
        printf("skipped: /dev/full not found\n");
        skip();
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        char command[256];
        snprintf(command, sizeof command, "%s >/dev/full", commands[i]);
        assert_program(*state, command, 1, "looplm: standard output: cannot write", NULL);
    }
}

/* A file that is written takes the place of a regular file, never of a device or a directory. */
static void test_targets(void **state) {
    static const char *const commands[] = {"$P forward $M $T --ids 1 -o", "$P run $M $T -p x -n 2 --save",
                                           "$P lab mano -n 3 --generate"};
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        char command[256];
        snprintf(command, sizeof command, "mkfifo pipe; %s pipe; r=$?; test -p pipe && exit $r", commands[i]);
        assert_program(*state, command, 1, "pipe: cannot write: it is a device or a pipe", NULL);
        snprintf(command, sizeof command, "mkdir -p folder; %s folder", commands[i]);
        assert_program(*state, command, 1, "folder: cannot write: it is a directory", NULL);
        snprintf(command, sizeof command, "%s absent/file", commands[i]);
        assert_program(*state, command, 1, "absent/file: cannot write: no such file or directory", NULL);
        snprintf(command, sizeof command, "%s ''", commands[i]);
        assert_program(*state, command, 2, "name of the file to write is empty", NULL);
    }
    assert_program(*state, "ls *.tmp* folder", 2, NULL);
}

/* A limit on the size of files stands for a full disk: what was there before stays, and no half of a file is left. */
static void test_file_limit(void **state) {
    assert_program(*state,
                   "echo kept >f; (ulimit -f 4; $P forward $M $T --ids 1,2,3,4,5,6,7,8 -o f); r=$?; cat f; exit $r", 1,
                   "f: cannot write: it would be larger than files may be here", "kept\n", NULL);
    assert_program(*state,
                   "(ulimit -f 4; $P run $M $T -p 'the cat' -n 30 --temperature 0 --save f); r=$?; cat f; exit $r", 1,
                   " sat on the mat", "f: cannot write", "what was there before is unchanged", "kept\n", NULL);
    assert_program(*state, "(ulimit -f 4; $P run $M $T -p x -n 30 --json --save f) 2>/dev/null; echo", 0,
                   "\"finish_reason\"", NULL);
    assert_program(*state, "(ulimit -f 4; $P lab mano -n 1000 --generate f); r=$?; cat f; exit $r", 1,
                   "f: cannot write", "kept\n", NULL);
    assert_program(*state, "ls f.tmp*", 2, NULL);
}

/* A real full disk, where one may be mounted: training stops, the checkpoint that was there survives, and the run goes
 * on once there is room. */
static void test_full_disk(void **state) {
    if (geteuid() || program_run(*state, "mkdir disk && mount -t tmpfs -o size=1200k none disk", NULL)) {
        printf("skipped: no small disk can be mounted here\n");
        skip();
    }
#define ON_DISK "$P train r.yaml --set run.directory=disk/run --set checkpoint.every=2 --set checkpoint.keep=9 "
    char *output;
    int status = program_run(*state, ON_DISK "--set train.steps=100", &output);
    bool told = strstr(output, "disk/run") && strstr(output, "no space left on the device");
    char *after;
    int more = program_run(*state,
                           "ls disk/run && cat disk/run/latest && mount -o remount,size=64m disk && " ON_DISK
                           "--set train.steps=100 && $P run disk/run/model $T -p 'the cat' -n 2",
                           &after);
    program_run(*state, "umount disk", NULL);
    if (status != 1 || !told) fail_msg("status %d: %s", status, output);
    if (more || strstr(after, "tmp-") || !strstr(after, "goes on after step ")) fail_msg("status %d: %s", more, after);
    free(output);
    free(after);
}

static void test_reader_leaves(void **state) {
    /* The reader is gone before the first token; the program ends without a word about it. */
    assert_program(*state,
                   "(sleep 1; $P run $M $T -p 'the cat' -n 200 --temperature 2 2>talk.txt; echo $? >status.txt) | "
                   "(exec <&-; sleep 1); "
                   "cat talk.txt status.txt",
                   0, "1\n", NULL);
    assert_program(*state, "grep -c 'cannot write' talk.txt", 1, "0\n", NULL);
    assert_program(
        *state,
        "for i in 1 2 3 4 5 6 7 8; do cat book.txt book.txt; done >long.txt; cat long.txt long.txt >more.txt; "
        "$P tokenize $M more.txt more.txt more.txt more.txt | head -c 5",
        0, "[", NULL);
}

static void test_closed_streams(void **state) {
    assert_program(*state, "$P run $M $T -p - -n 2 <&-", 1, "standard input: cannot read", NULL);
    assert_program(*state, "$P detokenize $M <&-", 1, "standard input: cannot read", NULL);
    assert_program(*state, "$P detokenize $M <.", 1, "standard input: cannot read", NULL);
    assert_program(*state, "$P tokenize $M - <&-", 1, "standard input", NULL);
    assert_program(*state, "$P inspect $M >&-", 1, "standard output: cannot write", NULL);
    /* What is meant for a closed stream never reaches a file that took its number. */
    assert_program(
        *state,
        "$P forward $M $T --ids 1,2 -o a.st && $P forward $M $T --ids 1,2 -o b.st <&- >&- 2>&- && cmp a.st b.st", 0,
        NULL);
    assert_program(*state,
                   "$P train r.yaml --set run.directory=mute --set train.steps=3 <&- >&- 2>&-; "
                   "grep -vc '^{.*}$' mute/log.jsonl",
                   1, "0\n", NULL);
}

static void test_second_trainer(void **state) {
    assert_program(*state,
                   "$P train r.yaml --set run.directory=busy --set train.steps=1000000 >/dev/null 2>&1 & first=$!; "
                   "for i in 1 2 3 4 5 6 7 8 9 10; do test -s busy/log.jsonl && break; sleep 0.5; done; "
                   "$P train r.yaml --set run.directory=busy; second=$?; "
                   "kill -9 $first; wait $first 2>/dev/null; echo \"first was $first\"; exit $second",
                   1, "busy/lock: process ", " is working in this directory; wait for it, stop it, or choose another",
                   NULL);
    /* A killed holder leaves nothing that bars the next. */
    assert_program(*state, "$P train r.yaml --set run.directory=busy --set train.steps=2", 0, NULL);
}

static void test_recipes(void **state) {
#define OTHER "$P train r.yaml --set run.directory=other "
    assert_program(*state, OTHER "--set train.stps=3", 2, "no key is named 'train.stps'; did you mean 'train.steps'?",
                   NULL);
    assert_program(*state, OTHER "--set zzz=3", 2, "no key is named 'zzz'", "looplm train --keys", NULL);
    assert_program(*state, OTHER "--set train.steps", 2, "expected key=value", NULL);
    assert_program(*state, OTHER "--set train.steps=many", 2, "'train.steps': found 'many', expected an integer", NULL);
    assert_program(*state, "sed 's/hidden/hiden/' r.yaml >e.yaml; $P train e.yaml", 2, "e.yaml:2", "'model.hiden'",
                   "did you mean 'model.hidden'?", NULL);
    assert_program(*state, ": >e.yaml; $P train e.yaml", 2, "e.yaml: key run.directory is missing", NULL);
    assert_program(*state, "echo 'a: [b' >e.yaml; $P train e.yaml", 1, "e.yaml:", "not valid YAML", NULL);
    assert_program(*state, "$P train absent.yaml", 1, "absent.yaml: cannot open", NULL);
    assert_program(*state, "$P train .", 1, "it is a directory", NULL);
    assert_program(*state, "$P train r.yaml --set train.lr=0.5", 1, "began with train.lr = 0.01", NULL);
    assert_program(*state, OTHER "--set model.tokenizer=absent", 1, "absent", NULL);
    assert_program(*state, OTHER "--set data.0.path=absent.txt", 1, "absent.txt: cannot open", NULL);
    assert_program(*state, ": >empty.txt; " OTHER "--set data.0.path=empty.txt", 1, "empty.txt", "no token", NULL);
    assert_program(*state, OTHER "--set model.vocab=100", 1, "ids up to 299", "vocab_size is 100", NULL);
    assert_program(*state, OTHER "--set run.directory=text.txt", 1, "text.txt: a file is there", NULL);
    assert_program(*state, "$P gate r.yaml --set run.directory=other2", 2, "name it with model.init", NULL);
}

static void test_plot(void **state) {
    assert_program(*state, "$P plot absent", 1, "absent: cannot open", NULL);
    assert_program(*state, ": >e.jsonl; $P plot e.jsonl", 1, "e.jsonl: it has no line yet", NULL);
    assert_program(*state, "echo '{' >e.jsonl; $P plot e.jsonl", 1, "e.jsonl, line 1: not valid JSON", NULL);
    if (program_run(*state, "gnuplot --version", NULL)) {
        assert_program(*state, "$P plot run", 1, "gnuplot-nox", NULL);
        return;
    }
    assert_program(*state, "$P plot run", 0, "loss per loop", NULL);
    assert_program(*state, "$P plot run -o x.pdf", 2, ".png or .svg", NULL);
    assert_program(*state, "$P plot run -o absent/x.svg", 1, "absent/x.svg: cannot write", NULL);
    assert_program(*state, "$P plot run -o x.svg && head -c 5 x.svg && ls x.svg*", 0, "<?xml", "x.svg\n", NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full_stdout),    cmocka_unit_test(test_targets),
        cmocka_unit_test(test_file_limit),     cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_reader_leaves),  cmocka_unit_test(test_closed_streams),
        cmocka_unit_test(test_second_trainer), cmocka_unit_test(test_recipes),
        cmocka_unit_test(test_plot),
    };
    return cmocka_run_group_tests(tests, program_setup, program_teardown);
}
