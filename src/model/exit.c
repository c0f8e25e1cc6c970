/* Exit rules (exit.h): their text form, their checks, and the decision after each loop. */
#include "model/exit.h"

#include "model/config.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const usage = "full, loops=N, q=Q, diff=E, conf=P or mix, each with ,min=A and ,max=B";

static int parse_count(const char *name, const char *value, int32_t *out, looplm_error *err) {
    char *end;
    errno = 0;
    long n = value ? strtol(value, &end, 10) : 0;
    if (!value || end == value || *end || errno || n < 1 || n > MODEL_LOOPS_MAX)
        return error_set(err, LOOPLM_USAGE, "exit rule: %s=%s is not a number of loops; give 1 to %d", name,
                         value ? value : "", MODEL_LOOPS_MAX);
    *out = (int32_t)n;
    return 0;
}

static int parse_threshold(const char *name, const char *value, float most, float *out, looplm_error *err) {
    char *end;
    double x = value ? strtod(value, &end) : 0;
    if (!value || end == value || *end || !isfinite(x) || x < 0 || x > (double)most)
        return error_set(err, LOOPLM_USAGE, "exit rule: %s=%s is not a number in 0 to %g", name, value ? value : "",
                         (double)most);
    *out = (float)x;
    return 0;
}

static int parse_kind(struct exit_rule *rule, const char *name, const char *value, looplm_error *err) {
    if (!strcmp(name, "loops")) {
        rule->kind = EXIT_LOOPS;
        return parse_count(name, value, &rule->loops, err);
    }
    if (!strcmp(name, "q") || !strcmp(name, "conf")) {
        rule->kind = *name == 'q' ? EXIT_Q : EXIT_CONF;
        return parse_threshold(name, value, 1e6f, &rule->threshold, err);
    }
    if (!strcmp(name, "diff")) {
        rule->kind = EXIT_DIFF;
        return parse_threshold(name, value, 1e6f, &rule->threshold, err);
    }
    if (!strcmp(name, "full") || !strcmp(name, "mix")) {
        if (value) return error_set(err, LOOPLM_USAGE, "exit rule: %s takes no value, found %s=%s", name, name, value);
        rule->kind = *name == 'f' ? EXIT_FULL : EXIT_MIX;
        return 0;
    }
    return error_set(err, LOOPLM_USAGE, "exit rule: '%s' is unknown; give %s", name, usage);
}

int exit_rule_parse(struct exit_rule *rule, const char *text, looplm_error *err) {
    *rule = (struct exit_rule){.kind = EXIT_FULL};
    char copy[128];
    if (strlen(text) >= sizeof copy) return error_set(err, LOOPLM_USAGE, "exit rule: too long; give %s", usage);
    strcpy(copy, text);
    char *state = NULL;
    int parts = 0;
    for (char *part = strtok_r(copy, ",", &state); part; part = strtok_r(NULL, ",", &state), parts++) {
        char *value = strchr(part, '=');
        if (value) *value++ = 0;
        int status;
        if (parts == 0)
            status = parse_kind(rule, part, value, err);
        else if (!strcmp(part, "min"))
            status = parse_count(part, value, &rule->min, err);
        else if (!strcmp(part, "max"))
            status = parse_count(part, value, &rule->max, err);
        else
            status =
                error_set(err, LOOPLM_USAGE, "exit rule: '%s' is unknown after the rule; give min=A or max=B", part);
        if (status) return status;
    }
    if (parts == 0) return error_set(err, LOOPLM_USAGE, "exit rule: empty; give %s", usage);
    if (rule->min && rule->max && rule->min > rule->max)
        return error_set(err, LOOPLM_USAGE, "exit rule: min=%d is above max=%d", rule->min, rule->max);
    return 0;
}

void exit_rule_format(const struct exit_rule *rule, char *out, size_t size) {
    static const char *const names[] = {
#define X(code, name) name,
        EXIT_RULE_MAP(X)
#undef X
    };
    int n = snprintf(out, size, "%s", names[rule->kind]);
    if (rule->kind == EXIT_LOOPS) n += snprintf(out + n, size - (size_t)n, "=%d", rule->loops);
    if (rule->kind == EXIT_Q || rule->kind == EXIT_DIFF || rule->kind == EXIT_CONF)
        n += snprintf(out + n, size - (size_t)n, "=%.9g", (double)rule->threshold);
    if (rule->min > 1) n += snprintf(out + n, size - (size_t)n, ",min=%d", rule->min);
    if (rule->max) snprintf(out + n, size - (size_t)n, ",max=%d", rule->max);
}

int exit_rule_resolve(struct exit_rule *rule, int32_t model_loops, bool has_gate, int32_t *planes, looplm_error *err) {
    int32_t loops = rule->kind == EXIT_LOOPS ? rule->loops : model_loops;
    if (loops > MODEL_LOOPS_MAX)
        return error_set(err, LOOPLM_LIMIT, "exit rule: %d loops asked, at most %d", loops, MODEL_LOOPS_MAX);
    if ((rule->kind == EXIT_Q || rule->kind == EXIT_MIX) && !has_gate && loops > 1)
        return error_set(err, LOOPLM_UNSUPPORTED,
                         "exit rule: this model has no exit gate; use full, loops=N, diff=E or conf=P");
    if (rule->max > loops || rule->min > loops)
        return error_set(err, LOOPLM_USAGE, "exit rule: %s=%d is beyond the model's %d loops",
                         rule->max > loops ? "max" : "min", rule->max > loops ? rule->max : rule->min, loops);
    if (!rule->min) rule->min = 1;
    if (!rule->max) rule->max = loops;
    *planes = loops;
    return 0;
}

float exit_advance(struct exit_state *state, float lambda, bool last) {
    float p = last ? state->survival : lambda * state->survival;
    state->cdf = last ? 1.0f : state->cdf + p;
    state->survival = last ? 0.0f : state->survival * (1.0f - lambda);
    state->step++;
    return p;
}

bool exit_decide(const struct exit_rule *rule, const struct exit_state *state, const struct exit_evidence *evidence,
                 int32_t last) {
    if (state->step >= last) return true;
    if (state->step < rule->min) return false;
    switch (rule->kind) {
    case EXIT_Q:
        return rule->threshold < 1.0f && state->cdf >= rule->threshold;
    case EXIT_DIFF:
        return state->step >= 2 && evidence->distance < rule->threshold;
    case EXIT_CONF:
        return evidence->confidence >= rule->threshold;
    case EXIT_FULL:
    case EXIT_LOOPS:
    case EXIT_MIX:
        return false;
    }
    return false;
}
