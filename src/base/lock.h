/* One process at a time in a directory: a lock that the kernel drops when its holder dies, however it dies. */
#ifndef BASE_LOCK_H
#define BASE_LOCK_H

#include "base/error.h"

struct lock {
    int fd; /* -1 when not held */
};

/* Takes DIRECTORY/lock, which must be in an existing directory, without waiting. LOOPLM_BUSY names the process that has
 * it. */
int lock_take(struct lock *lock, const char *directory, looplm_error *err);
/* Releases it; the file stays, since removing it would race with another taker. */
void lock_release(struct lock *lock);

#endif
