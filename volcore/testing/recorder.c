/* Records what a process does to the files of one directory, with the data, in the order in which
 * it took effect. Preloaded (LD_PRELOAD); volcore/testing/recorder.py compiles and drives it.
 *
 * Record, little-endian: kind (1), sure (1), path length (2), inode (8), offset (8), length (8),
 * data length (8), then path and data. A sync makes two records with one number as offset: what is
 * recorded before SYNC_BEGIN is durable from SYNC_END on. Not seen: stores through mmap (SQLite's -shm only) and io_uring.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, WRITE, TRUNCATE, PUNCH, EXTEND, SYNC_BEGIN, SYNC_END, DIR_BEGIN, DIR_END, UNLINK,
       RENAME, MARK, MKDIR };
enum { FILES_MAX = 65536 };

struct head {
    uint8_t kind, sure;
    uint16_t path_length;
    uint64_t inode, offset, length, data_length;
} __attribute__((packed));

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char prefix[PATH_MAX];
static size_t prefix_length;
static int trace_fd = -1;
static uint64_t syncs;
static unsigned char tracked[FILES_MAX];

#define REAL(name)                                          \
    static __typeof__(&name) real;                          \
    if (!real)                                              \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static ssize_t raw_write(int fd, const void *data, size_t length)
{
    REAL(write);
    return real(fd, data, length);
}

static void put(const void *data, size_t length)
{
    const char *at = data;
    while (length) {
        ssize_t done = raw_write(trace_fd, at, length);
        if (done < 0)
            _exit(77); /* a trace with a gap would prove nothing */
        at += done;
        length -= done;
    }
}

static void record(int kind, int sure, uint64_t inode, uint64_t offset, uint64_t length,
                   const char *path, const void *data, size_t data_length)
{
    struct head head = {kind, sure, path ? strlen(path) : 0, inode, offset, length, data_length};
    put(&head, sizeof head);
    if (path)
        put(path, head.path_length);
    if (data_length)
        put(data, data_length);
}

static int is_tracked(int fd)
{
    return trace_fd >= 0 && fd >= 0 && fd < FILES_MAX && tracked[fd];
}

static uint64_t inode_of(int fd)
{
    struct stat facts;
    return fstat(fd, &facts) ? 0 : facts.st_ino;
}

/* The path below the directory, or NULL. */
static const char *below(const char *path)
{
    if (strncmp(path, prefix, prefix_length) || path[prefix_length] != '/')
        return NULL;
    return path + prefix_length + 1;
}

static int resolve(int directory, const char *path, char *out)
{
    char base[64];
    if (path[0] == '/')
        return snprintf(out, PATH_MAX, "%s", path) < PATH_MAX;
    if (directory == AT_FDCWD)
        strcpy(base, "/proc/self/cwd");
    else
        snprintf(base, sizeof base, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(base, out, PATH_MAX - 1);
    return length > 0 && snprintf(out + length, PATH_MAX - length, "/%s", path) < PATH_MAX - length;
}

/* Begin and end recording; the directory is an absolute path without links. */
int recorder_start(const char *directory, const char *trace)
{
    REAL(open64);
    pthread_mutex_lock(&lock);
    snprintf(prefix, sizeof prefix, "%s", directory);
    prefix_length = strlen(prefix);
    memset(tracked, 0, sizeof tracked);
    trace_fd = real(trace, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    pthread_mutex_unlock(&lock);
    return trace_fd < 0 ? errno : 0;
}

void recorder_stop(void)
{
    REAL(close);
    pthread_mutex_lock(&lock);
    if (trace_fd >= 0)
        real(trace_fd);
    trace_fd = -1;
    pthread_mutex_unlock(&lock);
}

/* Put a word of the caller's into the trace. */
void recorder_mark(const char *data, size_t length)
{
    pthread_mutex_lock(&lock);
    if (trace_fd >= 0)
        record(MARK, 0, 0, 0, 0, NULL, data, length);
    pthread_mutex_unlock(&lock);
}

/* Opening */

typedef int opener(int, const char *, int, ...);

static int watched_open(opener *real, int directory, const char *path, int flags, mode_t mode)
{
    char full[PATH_MAX];
    if (trace_fd < 0 || !resolve(directory, path, full))
        return real(directory, path, flags, mode);
    const char *name = below(full);
    int whole = !name && !strcmp(full, prefix);
    if (!name && !whole)
        return real(directory, path, flags, mode);
    pthread_mutex_lock(&lock);
    int fresh = (flags & O_CREAT) && faccessat(AT_FDCWD, full, F_OK, 0);
    int fd = real(directory, path, flags, mode);
    int saved = errno;
    if (fd >= 0 && fd < FILES_MAX) {
        tracked[fd] = 1;
        if (name && fresh)
            record(CREATE, 0, inode_of(fd), 0, 0, name, NULL, 0);
        else if (name && (flags & O_TRUNC))
            record(TRUNCATE, 0, inode_of(fd), 0, 0, NULL, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
    return fd;
}

#define OPENAT(name)                                                             \
    int name(int directory, const char *path, int flags, ...)                    \
    {                                                                            \
        REAL(name);                                                              \
        va_list rest;                                                            \
        va_start(rest, flags);                                                   \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                            \
        return watched_open((opener *)real, directory, path, flags, mode);       \
    }
#define OPEN(name, at)                                                           \
    int name(const char *path, int flags, ...)                                   \
    {                                                                            \
        REAL(at);                                                                \
        va_list rest;                                                            \
        va_start(rest, flags);                                                   \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                            \
        return watched_open((opener *)real, AT_FDCWD, path, flags, mode);        \
    }
OPENAT(openat)
OPENAT(openat64)
OPEN(open, openat)
OPEN(open64, openat64)

int close(int fd)
{
    REAL(close);
    if (fd >= 0 && fd < FILES_MAX)
        tracked[fd] = 0;
    return real(fd);
}

/* Writing: the call and its record are one step, so that the trace has the order of the file. */

static void wrote(int fd, const void *data, ssize_t length, off64_t offset, int sure)
{
    if (length > 0)
        record(WRITE, sure, inode_of(fd), offset, length, NULL, data, length);
}

#define PWRITE(name)                                                             \
    ssize_t name(int fd, const void *data, size_t length, __off64_t offset)      \
    {                                                                            \
        REAL(name);                                                              \
        if (!is_tracked(fd))                                                     \
            return real(fd, data, length, offset);                               \
        pthread_mutex_lock(&lock);                                               \
        ssize_t done = real(fd, data, length, offset);                           \
        int saved = errno;                                                       \
        wrote(fd, data, done, offset, 0);                                        \
        pthread_mutex_unlock(&lock);                                             \
        errno = saved;                                                           \
        return done;                                                             \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t write(int fd, const void *data, size_t length)
{
    if (!is_tracked(fd))
        return raw_write(fd, data, length);
    pthread_mutex_lock(&lock);
    ssize_t done = raw_write(fd, data, length);
    int saved = errno;
    wrote(fd, data, done, lseek64(fd, 0, SEEK_CUR) - (done > 0 ? done : 0), 0);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return done;
}

static void wrote_pieces(int fd, const struct iovec *pieces, int count, ssize_t done, off64_t offset,
                         int sure)
{
    for (int i = 0; i < count && done > 0; i++) {
        ssize_t length = (ssize_t)pieces[i].iov_len < done ? (ssize_t)pieces[i].iov_len : done;
        wrote(fd, pieces[i].iov_base, length, offset, sure);
        offset += length;
        done -= length;
    }
}

#define PWRITEV(name)                                                            \
    ssize_t name(int fd, const struct iovec *pieces, int count, __off64_t offset) \
    {                                                                            \
        REAL(name);                                                              \
        if (!is_tracked(fd))                                                     \
            return real(fd, pieces, count, offset);                              \
        pthread_mutex_lock(&lock);                                               \
        ssize_t done = real(fd, pieces, count, offset);                          \
        int saved = errno;                                                       \
        wrote_pieces(fd, pieces, count, done, offset, 0);                        \
        pthread_mutex_unlock(&lock);                                             \
        errno = saved;                                                           \
        return done;                                                             \
    }
PWRITEV(pwritev)
PWRITEV(pwritev64)

#define PWRITEV2(name)                                                           \
    ssize_t name(int fd, const struct iovec *pieces, int count, __off64_t offset, int flags) \
    {                                                                            \
        REAL(name);                                                              \
        if (!is_tracked(fd))                                                     \
            return real(fd, pieces, count, offset, flags);                       \
        pthread_mutex_lock(&lock);                                               \
        ssize_t done = real(fd, pieces, count, offset, flags);                   \
        int saved = errno;                                                       \
        wrote_pieces(fd, pieces, count, done, offset, !!(flags & (RWF_DSYNC | RWF_SYNC))); \
        pthread_mutex_unlock(&lock);                                             \
        errno = saved;                                                           \
        return done;                                                             \
    }
PWRITEV2(pwritev2)
PWRITEV2(pwritev64v2)

ssize_t copy_file_range(int from, __off64_t *from_offset, int to, __off64_t *to_offset, size_t length,
                        unsigned flags)
{
    REAL(copy_file_range);
    if (is_tracked(to)) { /* callers have a way without it */
        errno = EOPNOTSUPP;
        return -1;
    }
    return real(from, from_offset, to, to_offset, length, flags);
}

#define FTRUNCATE(name)                                                          \
    int name(int fd, __off64_t length)                                           \
    {                                                                            \
        REAL(name);                                                              \
        if (!is_tracked(fd))                                                     \
            return real(fd, length);                                             \
        pthread_mutex_lock(&lock);                                               \
        int result = real(fd, length);                                           \
        if (!result)                                                             \
            record(TRUNCATE, 0, inode_of(fd), 0, length, NULL, NULL, 0);         \
        pthread_mutex_unlock(&lock);                                             \
        return result;                                                           \
    }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)

#define FALLOCATE(name)                                                          \
    int name(int fd, int mode, __off64_t offset, __off64_t length)               \
    {                                                                            \
        REAL(name);                                                              \
        if (!is_tracked(fd))                                                     \
            return real(fd, mode, offset, length);                               \
        pthread_mutex_lock(&lock);                                               \
        int result = real(fd, mode, offset, length);                             \
        int saved = errno;                                                       \
        int zeroes = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);       \
        if (!result && zeroes)                                                   \
            record(PUNCH, 0, inode_of(fd), offset, length, NULL, NULL, 0);       \
        if (!result && !(mode & FALLOC_FL_KEEP_SIZE))                            \
            record(EXTEND, 0, inode_of(fd), 0, offset + length, NULL, NULL, 0);  \
        pthread_mutex_unlock(&lock);                                             \
        errno = saved;                                                           \
        return result;                                                           \
    }
FALLOCATE(fallocate)
FALLOCATE(fallocate64)

/* Syncs */

static int watched_sync(int (*real)(int), int fd)
{
    if (!is_tracked(fd))
        return real(fd);
    struct stat facts;
    char link[64], path[PATH_MAX];
    const char *name = NULL;
    fstat(fd, &facts);
    int directory = S_ISDIR(facts.st_mode);
    if (directory) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, path, sizeof path - 1);
        path[length < 0 ? 0 : length] = 0;
        name = below(path);
    }
    pthread_mutex_lock(&lock);
    uint64_t number = ++syncs;
    record(directory ? DIR_BEGIN : SYNC_BEGIN, 0, facts.st_ino, number, 0, name, NULL, 0);
    pthread_mutex_unlock(&lock);
    int result = real(fd);
    int saved = errno;
    pthread_mutex_lock(&lock);
    if (!result)
        record(directory ? DIR_END : SYNC_END, 0, facts.st_ino, number, 0, name, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

int fsync(int fd)
{
    REAL(fsync);
    return watched_sync(real, fd);
}

int fdatasync(int fd)
{
    REAL(fdatasync);
    return watched_sync(real, fd);
}

/* Names */

static int watched_unlink(int directory, const char *path, int flags)
{
    REAL(unlinkat);
    char full[PATH_MAX];
    const char *name = NULL;
    if (trace_fd >= 0 && resolve(directory, path, full))
        name = below(full);
    if (!name)
        return real(directory, path, flags);
    pthread_mutex_lock(&lock);
    int result = real(directory, path, flags);
    int saved = errno;
    if (!result)
        record(UNLINK, 0, 0, 0, 0, name, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

int unlinkat(int directory, const char *path, int flags)
{
    return watched_unlink(directory, path, flags);
}

int unlink(const char *path)
{
    return watched_unlink(AT_FDCWD, path, 0);
}

int remove(const char *path)
{
    return watched_unlink(AT_FDCWD, path, 0);
}

int renameat(int from_directory, const char *from, int to_directory, const char *to)
{
    REAL(renameat);
    char full_from[PATH_MAX], full_to[PATH_MAX];
    const char *name = NULL, *target = NULL;
    if (trace_fd >= 0 && resolve(from_directory, from, full_from) &&
        resolve(to_directory, to, full_to)) {
        name = below(full_from);
        target = below(full_to);
    }
    if (!name || !target)
        return real(from_directory, from, to_directory, to);
    pthread_mutex_lock(&lock);
    int result = real(from_directory, from, to_directory, to);
    int saved = errno;
    if (!result)
        record(RENAME, 0, 0, 0, 0, name, target, strlen(target));
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

int rename(const char *from, const char *to)
{
    return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

int mkdirat(int directory, const char *path, mode_t mode)
{
    REAL(mkdirat);
    char full[PATH_MAX];
    const char *name = NULL;
    if (trace_fd >= 0 && resolve(directory, path, full))
        name = below(full);
    if (!name)
        return real(directory, path, mode);
    pthread_mutex_lock(&lock);
    int result = real(directory, path, mode);
    int saved = errno;
    if (!result)
        record(MKDIR, 0, 0, 0, 0, name, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

int mkdir(const char *path, mode_t mode)
{
    return mkdirat(AT_FDCWD, path, mode);
}
