/* Owns what a long job shows while it runs. Everything goes to stderr; nothing is shown in the first second, so short
 * jobs stay silent. */
#include "base/progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define REDRAW_S 0.2
#define LINE_S 10.0
#define SILENT_S 1.0
#define DURATION_TEXT 32

double clock_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

char *format_duration(double seconds, char *text) {
    if (!(seconds >= 0 && seconds < 1e9)) {
        snprintf(text, DURATION_TEXT, "?");
    } else if (seconds < 9.95) {
        snprintf(text, DURATION_TEXT, "%.1f s", seconds);
    } else {
        long s = (long)(seconds + 0.5);
        if (s < 60) {
            snprintf(text, DURATION_TEXT, "%ld s", s);
        } else if (s < 3600) {
            snprintf(text, DURATION_TEXT, "%ld min %02ld s", s / 60, s % 60);
        } else {
            snprintf(text, DURATION_TEXT, "%ld h %02ld min", s / 3600, s % 3600 / 60);
        }
    }
    return text;
}

void progress_start(struct progress *p, const char *label, int64_t first, int64_t total) {
    *p = (struct progress){.total = total, .first = first, .terminal = isatty(STDERR_FILENO), .started_s = clock_s()};
    snprintf(p->label, sizeof p->label, "%s", label);
    p->last_s = p->started_s;
}

void progress_update(struct progress *p, int64_t done, const char *details, ...) {
    double now = clock_s(), spent = now - p->started_s;
    double wait = p->terminal ? REDRAW_S : LINE_S;
    if (spent < SILENT_S || (p->drawn && now - p->last_s < wait)) return;
    p->last_s = now;
    p->drawn = true;
    char text[512] = "", left[DURATION_TEXT] = "", share[64] = "";
    if (details) {
        va_list arguments;
        va_start(arguments, details);
        vsnprintf(text, sizeof text, details, arguments);
        va_end(arguments);
    }
    if (p->total > 0) {
        snprintf(share, sizeof share, "%lld/%lld", (long long)done, (long long)p->total);
        if (done > p->first) {
            format_duration(spent * (double)(p->total - done) / (double)(done - p->first), left);
        }
    } else {
        snprintf(share, sizeof share, "%lld", (long long)done);
    }
    fprintf(stderr, "%s%s  %s  %s%s%s%s", p->terminal ? "\r" : "", p->label, share, text, left[0] ? "  " : "", left,
            left[0] ? " left" : "");
    /* Clears what a longer line left behind. */
    fputs(p->terminal ? "\033[K" : "\n", stderr);
    fflush(stderr);
}

void progress_end(struct progress *p) {
    if (p->drawn && p->terminal) fputc('\n', stderr);
    p->drawn = false;
}
