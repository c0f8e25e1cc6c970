/* Owns how files are read and replaced. A target is only ever changed by rename, so at every moment it holds the old
 * content or the new one, whole. Leaves to others what is in a file. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define READ_CHUNK (64 * 1024)

static int out_of_memory(const char *path, looplm_error *err) {
    return error_set(err, LOOPLM_MEMORY, "%s: no memory to hold it", path);
}

static const char *cause_and_remedy(int code) {
    switch (code) {
    case ENOENT:
        return "no such file or directory; check the path";
    case EACCES:
        return "permission denied; change the permissions or run as its owner";
    case ENOSPC:
        return "no space left on the device; free some and try again";
    case EDQUOT:
        return "the disk quota is used up; free some space and try again";
    case EISDIR:
        return "it is a directory, and a file was expected";
    case ENOTDIR:
        return "a part of its path is a file, and a directory was expected; check the path";
    case EROFS:
        return "the file system is read-only; choose another place";
    case EFBIG:
        return "it would be larger than files may be here; raise the limit (ulimit -f) or choose another place";
    default:
        return strerror(code);
    }
}

static int io_error(looplm_error *err, const char *what, const char *path, int code) {
    return error_set(err, LOOPLM_IO, "%s: cannot %s: %s", path, what, cause_and_remedy(code));
}

int file_map_open(struct file_map *map, const char *path, looplm_error *err) {
    *map = (struct file_map){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return io_error(err, "open", path, errno);
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        if (S_ISDIR(st.st_mode)) return io_error(err, "map", path, EISDIR);
        return error_set(err, LOOPLM_IO, "%s: only a regular file can be mapped", path);
    }
    void *data = NULL;
    if (st.st_size > 0) data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    int code = errno;
    close(fd);
    if (data == MAP_FAILED) return io_error(err, "map", path, code);
    map->data = data;
    map->size = (size_t)st.st_size;
    map->path = strdup(path);
    if (!map->path) {
        file_map_close(map);
        return out_of_memory(path, err);
    }
    return LOOPLM_OK;
}

void file_map_close(struct file_map *map) {
    if (map->data) munmap((void *)(uintptr_t)map->data, map->size);
    free(map->path);
    *map = (struct file_map){0};
}

void file_map_keep(const struct file_map *map) {
    if (map->data) madvise((void *)(uintptr_t)map->data, map->size, MADV_HUGEPAGE);
}

void file_map_release(const struct file_map *map, size_t offset, size_t size) {
    if (!map->data || offset >= map->size) return;
    if (size > map->size - offset) size = map->size - offset;
    /* Whole pages inside the range only: a neighbour may still be read. */
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t begin = (offset + page - 1) / page * page, end = (offset + size) / page * page;
    if (offset + size == map->size) end = (map->size + page - 1) / page * page;
    if (begin < end) madvise((void *)(uintptr_t)(map->data + begin), end - begin, MADV_DONTNEED);
}

/* Reads stream to its end, at most size_max bytes. */
static int read_stream(FILE *stream, const char *path, size_t size_max, char **data, size_t *size, looplm_error *err) {
    char *buffer = NULL;
    size_t used = 0, room = 0;
    for (;;) {
        if (room - used < READ_CHUNK + 1) {
            room = room ? room * 2 : 2 * READ_CHUNK;
            char *larger = realloc(buffer, room);
            if (!larger) {
                free(buffer);
                return out_of_memory(path, err);
            }
            buffer = larger;
        }
        size_t n = fread(buffer + used, 1, READ_CHUNK, stream);
        used += n;
        if (used > size_max) {
            free(buffer);
            return error_set(err, LOOPLM_LIMIT, "%s: it is larger than the limit of %zu bytes for such a file", path,
                             size_max);
        }
        if (n == 0) break;
    }
    if (ferror(stream)) {
        int code = errno;
        free(buffer);
        return io_error(err, "read", path, code);
    }
    buffer[used] = 0;
    *data = buffer;
    *size = used;
    return LOOPLM_OK;
}

int file_read(const char *path, size_t size_max, char **data, size_t *size, looplm_error *err) {
    *data = NULL;
    *size = 0;
    if (strcmp(path, "-") == 0) return read_stream(stdin, "standard input", size_max, data, size, err);
    FILE *stream = fopen(path, "rbe");
    if (!stream) return io_error(err, "open", path, errno);
    int status = read_stream(stream, path, size_max, data, size, err);
    fclose(stream);
    return status;
}

/* The rename would put a file in the place of a device, and fail on a directory only once the work is done. */
static int check_target(const char *path, looplm_error *err) {
    struct stat st;
    if (!*path) return error_set(err, LOOPLM_USAGE, "the name of the file to write is empty; give one");
    if (stat(path, &st) != 0 || S_ISREG(st.st_mode)) return LOOPLM_OK;
    if (S_ISDIR(st.st_mode)) return io_error(err, "write", path, EISDIR);
    return error_set(err, LOOPLM_IO,
                     "%s: cannot write: it is a device or a pipe, and what is written here replaces a regular file; "
                     "give another name",
                     path);
}

int file_writer_open(struct file_writer *w, const char *path, looplm_error *err) {
    *w = (struct file_writer){0};
    int status = check_target(path, err);
    if (status) return status;
    w->path = strdup(path);
    if (asprintf(&w->temporary, "%s.tmp-%ld", path, (long)getpid()) < 0) w->temporary = NULL;
    if (!w->path || !w->temporary) {
        file_writer_abort(w);
        return out_of_memory(path, err);
    }
    w->stream = fopen(w->temporary, "wbe");
    if (!w->stream) {
        status = io_error(err, "write", path, errno);
        file_writer_abort(w);
        return status;
    }
    return LOOPLM_OK;
}

static void remember_failure(struct file_writer *w) {
    if (!w->failed_errno) w->failed_errno = errno ? errno : EIO;
}

void file_writer_write(struct file_writer *w, const void *data, size_t size) {
    if (w->failed_errno || size == 0) return;
    if (fwrite(data, 1, size, w->stream) != size) remember_failure(w);
}

void file_writer_printf(struct file_writer *w, const char *format, ...) {
    if (w->failed_errno) return;
    va_list arguments;
    va_start(arguments, format);
    if (vfprintf(w->stream, format, arguments) < 0) remember_failure(w);
    va_end(arguments);
}

/* The rename itself survives a power cut only once the directory is synced; where a file system refuses that, the
 * content is still whole. */
static void sync_directory_of(const char *path) {
    char *copy = strdup(path);
    if (!copy) return;
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    free(copy);
}

int file_writer_commit(struct file_writer *w, looplm_error *err) {
    if (!w->failed_errno && (fflush(w->stream) != 0 || ferror(w->stream) || fsync(fileno(w->stream)) != 0)) {
        remember_failure(w);
    }
    FILE *stream = w->stream;
    w->stream = NULL;
    if (fclose(stream) != 0) remember_failure(w);
    if (!w->failed_errno && rename(w->temporary, w->path) != 0) remember_failure(w);
    int status = LOOPLM_OK;
    if (w->failed_errno) {
        status = error_set(err, LOOPLM_IO, "%s: cannot write: %s; what was there before is unchanged", w->path,
                           cause_and_remedy(w->failed_errno));
    } else {
        sync_directory_of(w->path);
        free(w->temporary);
        w->temporary = NULL;
    }
    file_writer_abort(w);
    return status;
}

void file_writer_abort(struct file_writer *w) {
    if (w->stream) fclose(w->stream);
    if (w->temporary) unlink(w->temporary);
    free(w->temporary);
    free(w->path);
    *w = (struct file_writer){0};
}

bool file_exists(const char *path) {
    return access(path, F_OK) == 0;
}

bool file_is_directory(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int file_make_directories(const char *path, looplm_error *err) {
    char *copy = strdup(path);
    if (!copy) return out_of_memory(path, err);
    int status = LOOPLM_OK;
    for (char *p = copy + 1; status == LOOPLM_OK && *copy; p++) {
        if (*p != '/' && *p != 0) continue;
        char kept = *p;
        *p = 0;
        if (mkdir(copy, 0777) != 0 && !(errno == EEXIST && file_is_directory(copy))) {
            status = errno == EEXIST ? error_set(err, LOOPLM_IO,
                                                 "%s: a file is there, and a directory is needed for %s", copy, path)
                                     : io_error(err, "make the directory", copy, errno);
        }
        *p = kept;
        if (!kept) break;
    }
    free(copy);
    return status;
}

char *file_join(const char *directory, const char *name) {
    char *path = NULL;
    size_t n = strlen(directory);
    const char *slash = n == 0 || directory[n - 1] == '/' ? "" : "/";
    return asprintf(&path, "%s%s%s", directory, slash, name) < 0 ? NULL : path;
}
