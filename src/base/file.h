/* Files: mapped reads, whole reads, and writes that are beside the target and renamed, so that a crash or a full
 * disk never harms the file that was there. */
#ifndef BASE_FILE_H
#define BASE_FILE_H

#include "base/error.h"

#include <stdbool.h>
#include <stdio.h>

/* A file mapped read-only. data is NULL when size is 0. */
struct file_map {
    const unsigned char *data;
    size_t size;
    char *path; /* owned; for messages */
};
int file_map_open(struct file_map *map, const char *path, looplm_error *err);
void file_map_close(struct file_map *map);
/* Tells the kernel that all of the file will be read, over and over: it may hold it in huge pages, which it does where
 * the file system can (ext4 and XFS of recent kernels) and the file is not in its cache already. Only a wish. */
void file_map_keep(const struct file_map *map);
/* Tells the kernel that [offset, offset+size) will not be read again, so that its pages leave our resident set. */
void file_map_release(const struct file_map *map, size_t offset, size_t size);

/* Reads a whole file (at most size_max bytes, else LOOPLM_LIMIT) into a fresh NUL-terminated buffer; caller frees. "-"
 * is stdin. */
int file_read(const char *path, size_t size_max, char **data, size_t *size, looplm_error *err);

/* An atomic write: open writes PATH.tmp-PID, commit flushes, syncs and renames it over PATH, abort removes it. PATH is
 * new or a regular file: a device or a directory is refused at open. Any failed write is remembered and reported by
 * commit with the path and the cause (for instance a full disk). */
struct file_writer {
    FILE *stream;
    char *path, *temporary; /* owned */
    int failed_errno;
};
int file_writer_open(struct file_writer *w, const char *path, looplm_error *err);
void file_writer_write(struct file_writer *w, const void *data, size_t size);
__attribute__((format(printf, 2, 3))) void file_writer_printf(struct file_writer *w, const char *format, ...);
int file_writer_commit(struct file_writer *w, looplm_error *err);
void file_writer_abort(struct file_writer *w);

bool file_exists(const char *path);
bool file_is_directory(const char *path);
/* mkdir -p. */
int file_make_directories(const char *path, looplm_error *err);
/* "dir/name", fresh; caller frees. */
char *file_join(const char *directory, const char *name);

#endif
