/* What passes and head reads of so many rows take (cost.h). One running mean for each number of rows, since one more
 * may cost nothing, or a whole tile of a kernel. They are compared with each other, so each must mean the same:
 *
 *  - Rows read the keys of their past. A mean is carried to the position of now by what a row takes more for every
 *    position: over 256 tokens of a small model the cost of one row doubles, and that of other numbers of rows does too
 *    whether they run or not.
 *  - A head read pushes the stack's weights out of the cache. What the next pass takes longer belongs to the read: for
 *    a small model two thirds of what the read itself takes.
 *  - What more rows than those that run were found to add is doubted a little more with every pass, so that one bad
 *    measurement does not last. */
#include "engine/cost.h"

#define COST_FIRST 3     /* measurements before a number of rows is known */
#define COST_WARM 8      /* passes that are not counted: the first run cold, of a small model twice as long */
#define COST_WARM_S 1e-3 /* or fewer that took so long */
#define COST_RATE 0.0625 /* of a new one; what lies further off the mean than a quarter counts as that */
#define COST_STEP 0.25
#define COST_LEAST 0.25   /* of a mean: no position takes it below */
#define COST_FORGET 0.001 /* of the measurements behind the line, with every new one */
#define COST_RIDGE 7000   /* square positions: over fewer than some 30 positions a slope is mostly noise */
#define COST_DOUBT 0.0005 /* with every pass */
#define COST_REACH 4      /* rows beyond those known that are taken to be free, and so are tried */

static double limited(double x, double least, double most) {
    return x < least ? least : x > most ? most : x;
}

bool cost_known(const struct cost_table *c, int32_t n) {
    return n < COST_ROWS && c->seen[n] >= COST_FIRST;
}

/* The mean, at the position of now. */
static double mean_now(const struct cost_table *c, int32_t n) {
    double seconds = c->seconds[n] + c->slope * n * (c->now - c->position[n]);
    return seconds > COST_LEAST * c->seconds[n] ? seconds : COST_LEAST * c->seconds[n];
}

/* A mean's beginning: of the smallest number the least, since some run cold; n rows else take no less than fewer, and
 * no more than one after the other. */
static void begin_mean(struct cost_table *c, int32_t n, double seconds) {
    int32_t fewer = n - 1;
    while (fewer > 0 && !cost_known(c, fewer)) fewer--;
    if (fewer > 0) {
        double least = mean_now(c, fewer);
        c->seconds[n] += (limited(seconds, least, least * n / fewer) - c->seconds[n]) / (c->seen[n] + 1);
    } else if (c->seen[n] == 0 || seconds < c->seconds[n]) {
        c->seconds[n] = seconds;
    }
    if (++c->seen[n] == COST_FIRST && n > c->most) c->most = n;
}

static void line_add(struct cost_line *l, double x, double y) {
    double keep = 1 - COST_FORGET;
    *l = (struct cost_line){keep * l->n + 1, keep * l->x + x, keep * l->y + y, keep * l->xx + x * x,
                            keep * l->xy + x * y};
}

static double line_slope(const struct cost_line *l) {
    return (l->xy - l->x * l->y / l->n) / (l->xx - l->x * l->x / l->n + COST_RIDGE);
}

static void learn_slope(struct cost_table *c, int32_t n, double seconds) {
    if (!c->line_rows) c->line_rows = n;
    if (c->line_rows != n) return;
    line_add(&c->line, c->now, seconds);
    double slope = line_slope(&c->line) / n;
    c->slope = slope > 0 ? slope : 0;
}

void cost_add(struct cost_table *c, int32_t n, double position, double seconds) {
    if (n >= COST_ROWS) return;
    c->now = position;
    if (cost_known(c, n)) {
        double mean = mean_now(c, n), off = limited(seconds / mean - 1, -COST_STEP, COST_STEP) * mean,
               rate = 1.0 / (c->seen[n] - COST_FIRST + 2);
        if (rate > COST_RATE) c->seen[n]++;
        c->seconds[n] = mean + (rate > COST_RATE ? rate : COST_RATE) * off;
        learn_slope(c, n, mean + off);
    } else {
        begin_mean(c, n, seconds);
    }
    c->position[n] = position;
    c->last = n;
    c->doubt[n] = 1;
    for (int32_t m = n + 1; m <= n + COST_REACH && m < COST_ROWS; m++) c->doubt[m] *= 1 - COST_DOUBT;
}

/* Of a known number: no more than any larger one was found to take, as often, and what it takes above the last pass as
 * far as that is believed. */
static double believed(const struct cost_table *c, int32_t n) {
    double seconds = mean_now(c, n), base = mean_now(c, c->last);
    for (int32_t m = n + 1; m <= c->most; m++)
        if (cost_known(c, m) && c->seen[m] >= c->seen[n] && mean_now(c, m) < seconds) seconds = mean_now(c, m);
    return n > c->last && seconds > base ? base + c->doubt[n] * (seconds - base) : seconds;
}

/* Known numbers of rows and straight lines between them; while none is, what was measured last of this one. */
double cost_at(const struct cost_table *c, int32_t n) {
    int32_t low = n < COST_ROWS ? n : COST_ROWS - 1, high = n;
    while (low > 0 && !cost_known(c, low)) low--;
    while (high <= c->most && !cost_known(c, high)) high++;
    if (low == 0 && high > c->most) return n < COST_ROWS && c->seen[n] > 0 ? c->seconds[n] : 1;
    if (low == 0 || low == high) return believed(c, high);
    double seconds = believed(c, low);
    if (high <= c->most) return seconds + (believed(c, high) - seconds) * (n - low) / (high - low);
    return seconds * (n <= low + COST_REACH ? 1 : (double)n / (low + COST_REACH));
}

double cost_more(const struct cost_table *c, int32_t n) {
    double more = cost_at(c, n + 1) - (n > 0 ? cost_at(c, n) : 0);
    return more > 0 ? more : 0;
}

double costs_read(const struct costs *c, int32_t n) {
    return cost_more(&c->head, n) + (n == 0 ? c->after : 0);
}

/* Two passes on end of as many rows, one of them after a read, tell what the read adds to it. */
static void learn_after(struct costs *c, double seconds) {
    double more = c->read ? seconds - c->last.seconds : c->last.seconds - seconds,
           least = c->read ? c->last.seconds : seconds, rate = 1.0 / ++c->after_seen;
    if (c->after_seen == 1)
        c->after = limited(more, 0, least);
    else
        c->after +=
            (rate > COST_RATE ? rate : COST_RATE) * limited(more - c->after, -COST_STEP * least, COST_STEP * least);
    if (c->after < 0) c->after = 0;
}

void costs_pass(struct costs *c, int32_t n, double position, double seconds, bool read, bool prompt) {
    bool warm = c->warm >= COST_WARM || c->warm_s >= COST_WARM_S, counts = !prompt && n < COST_ROWS && warm;
    if (!prompt && !warm) {
        c->warm++;
        c->warm_s += seconds;
    }
    if (counts) {
        if (n == c->last.rows && c->read != c->last.after) learn_after(c, seconds);
        double without = seconds - c->after;
        cost_add(&c->pass, n, position, !c->read ? seconds : without > seconds / 2 ? without : seconds / 2);
    }
    c->last.rows = counts ? n : 0;
    c->last.after = c->read;
    c->last.seconds = seconds;
    c->read = read;
}
