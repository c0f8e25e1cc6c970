/* A progress line on stderr with share, rate and time left: redrawn in a terminal, a line now and then elsewhere. */
#ifndef BASE_PROGRESS_H
#define BASE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

/* The caller's storage; its fields are not for it. */
struct progress {
    char label[48];
    int64_t total, first;
    bool terminal, drawn;
    double started_s, last_s;
};

/* total in any unit, 0 when it is not known; `first` is what was done before (a resumed run), so that the rate is
 * honest. */
void progress_start(struct progress *p, const char *label, int64_t first, int64_t total);

/* Shows "label  done/total  details  time left" if it is time to; details may be NULL. */
__attribute__((format(printf, 3, 4))) void progress_update(struct progress *p, int64_t done, const char *details, ...);

/* Leaves the last line standing. */
void progress_end(struct progress *p);

/* Monotonic seconds, for rates and time-outs. */
double clock_s(void);

/* "1 h 02 min", "3 min 20 s", "4.2 s" into the caller's text of at least 32 bytes; returns it. */
char *format_duration(double seconds, char *text);

#endif
