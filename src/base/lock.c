/* Owns the lock file of a run directory. flock and not the file's existence is the lock, so a killed holder leaves
 * nothing to clean; the pid inside is for the message alone. */
#include "base/lock.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static int busy(int fd, const char *path, looplm_error *err) {
    char text[32];
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = 0;
    long pid = strtol(text, NULL, 10);
    if (pid > 0) {
        return error_set(
            err, LOOPLM_BUSY,
            "%s: process %ld is working in this directory; wait for it, stop it, or choose another directory", path,
            pid);
    }
    return error_set(err, LOOPLM_BUSY, "%s: another process is working in this directory; wait or choose another",
                     path);
}

int lock_take(struct lock *lock, const char *directory, looplm_error *err) {
    lock->fd = -1;
    char *path = file_join(directory, "lock");
    if (!path) return error_set(err, LOOPLM_MEMORY, "%s: no memory to lock it", directory);
    int status = LOOPLM_OK;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) {
        status = error_set(err, LOOPLM_IO, "%s: cannot make the lock file: %s", path, strerror(errno));
    } else if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        status = errno == EWOULDBLOCK ? busy(fd, path, err)
                                      : error_set(err, LOOPLM_IO, "%s: cannot lock: %s", path, strerror(errno));
        close(fd);
    } else {
        char text[32];
        int n = snprintf(text, sizeof text, "%ld\n", (long)getpid());
        /* On a full disk the lock holds all the same; only the message of the next taker is poorer. */
        if (ftruncate(fd, 0) == 0 && pwrite(fd, text, (size_t)n, 0) != n) (void)ftruncate(fd, 0);
        lock->fd = fd;
    }
    free(path);
    return status;
}

void lock_release(struct lock *lock) {
    if (lock->fd < 0) return;
    (void)ftruncate(lock->fd, 0);
    close(lock->fd);
    lock->fd = -1;
}
