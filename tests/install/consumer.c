/* A program of somebody else: `./check --all` builds it against an installed looplm with the flags that pkg-config
 * prints, and no others. It opens a model, feeds a prompt and generates; a missing file must end in a message. */
#include <looplm.h>
#include <stdio.h>

static int fail(const char *what, const looplm_error *error) {
    fprintf(stderr, "consumer: %s: %s: %s\n", what, looplm_status_name(error->status), error->message);
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    looplm_error error = {0};
    looplm_model *model;
    looplm_session *session;
    looplm_model_options model_options = {.weights = "f32", .threads = 1};
    looplm_session_options options = {.exit = "q=0.5", .context = 16};
    static const int32_t prompt[] = {1, 2, 3};
    if (looplm_model_open(&model, "/nonexistent/model", NULL, &error) != LOOPLM_IO || !error.message[0])
        return fail("a missing model", &error);
    if (looplm_model_open(&model, argv[1], &model_options, &error)) return fail("open", &error);
    if (looplm_session_open(&session, model, &options, &error)) return fail("session", &error);
    if (looplm_session_feed(session, prompt, sizeof prompt / sizeof *prompt, &error)) return fail("feed", &error);
    for (int i = 0; i < 5; i++) {
        looplm_token token;
        if (looplm_session_next(session, &token, &error)) return fail("next", &error);
        printf("%d after %d loops%s", token.id, token.loops, i < 4 ? ", " : "\n");
    }
    looplm_session_close(session);
    looplm_model_close(model);
    return 0;
}
