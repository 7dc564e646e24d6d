/* Counts the steps of a process that its storage can see, and ends it with SIGKILL at one of them.
 *
 * A step is a change of a file below one directory, or a request to Ceph that may change something,
 * whoever makes it: Python, a kernel, SQLite, librbd. Files are seen by preloading (LD_PRELOAD);
 * requests where all of them leave, in the messenger of Ceph, whose table of virtual functions
 * failpoints_watch_ceph() changes. What is not known to be reading counts.
 * Not seen: stores through mmap (SQLite's -shm only) and io_uring.
 *
 * volcore/testing/failpoint.py compiles it, and shares `struct control` with the process.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <atomic>
#include <climits>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <sstream>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct control {
    std::atomic<int64_t> wanted; /* 0: count nothing; -1: count; else the step to die at */
    std::atomic<int64_t> after;  /* die when it is done, and not before it */
    std::atomic<int64_t> passed; /* steps so far */
    std::atomic<int64_t> text_length;
    char prefix[1024];           /* the directory; empty: no files */
    char text[];                 /* a line for each step */
};
enum { CONTROL_BYTES = 1 << 22, TEXT_MAX = CONTROL_BYTES - 8192 };
enum { BEFORE_US = 30000, AFTER_US = 2000 };

static control *shared;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static thread_local bool inside;

#define REAL(name)                       \
    static decltype(&::name) real;       \
    if (!real)                           \
    real = (decltype(&::name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin()
{
    const char *path = getenv("VOLCORE_FAILPOINTS");
    int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0) : -1;
    unsetenv("LD_PRELOAD"); /* programs that it starts are not meant */
    unsetenv("VOLCORE_FAILPOINTS");
    if (fd < 0)
        return;
    void *found = mmap(nullptr, CONTROL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (found != MAP_FAILED)
        shared = (control *)found;
    close(fd);
}

static bool watching() { return shared && !inside && shared->wanted.load() != 0; }

[[noreturn]] static void die(unsigned pause_us)
{
    usleep(pause_us);
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

/* Do `act`, which is a step: what is sent to others needs a moment to leave, or to arrive. */
template <typename Act> static auto step(const std::string &text, bool remote, Act act)
{
    pthread_mutex_lock(&lock);
    int64_t number = shared->passed.load() + 1, at = shared->text_length.load();
    if (at + (int64_t)text.size() < TEXT_MAX) {
        memcpy(shared->text + at, text.data(), text.size());
        shared->text[at + text.size()] = '\n';
        shared->text_length.store(at + text.size() + 1);
    }
    shared->passed.store(number);
    bool here = number == shared->wanted.load();
    if (here && !shared->after.load())
        die(remote ? BEFORE_US : 0);
    if (!here)
        pthread_mutex_unlock(&lock);
    inside = true;
    auto result = act();
    inside = false;
    if (here)
        die(remote ? AFTER_US : 0);
    return result;
}

/* Files */

/* The name below the directory; empty if it is elsewhere. */
static std::string below(const char *path)
{
    size_t length = strlen(shared->prefix);
    if (!length || strncmp(path, shared->prefix, length) || path[length] != '/')
        return "";
    return path + length + 1;
}

static std::string name_of(int fd)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return "";
    path[length] = 0;
    return strcmp(path, shared->prefix) ? below(path) : ".";
}

static std::string name_at(int directory, const char *path)
{
    if (path[0] == '/')
        return below(path);
    char base[64], full[PATH_MAX];
    if (directory == AT_FDCWD)
        strcpy(base, "/proc/self/cwd");
    else
        snprintf(base, sizeof base, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(base, full, sizeof full - 1);
    return length < 0 ? "" : below((std::string(full, length) + "/" + path).c_str());
}

template <typename Act> static auto file_step(const char *what, const std::string &name, Act act)
{
    return name.empty() ? act() : step(std::string(what) + " " + name, false, act);
}

#define ON_FD(result, name, parameters, arguments)                                       \
    extern "C" result name parameters                                                    \
    {                                                                                    \
        REAL(name);                                                                      \
        if (!watching())                                                                 \
            return real arguments;                                                       \
        return file_step(#name, name_of(fd), [&] { return real arguments; });            \
    }
#define ON_PATH(result, name, directory, path, parameters, arguments)                    \
    extern "C" result name parameters noexcept                                           \
    {                                                                                    \
        REAL(name);                                                                      \
        if (!watching())                                                                 \
            return real arguments;                                                       \
        return file_step(#name, name_at(directory, path), [&] { return real arguments; }); \
    }

ON_FD(ssize_t, write, (int fd, const void *data, size_t length), (fd, data, length))
ON_FD(ssize_t, pwrite, (int fd, const void *data, size_t length, off_t at), (fd, data, length, at))
ON_FD(ssize_t, pwrite64, (int fd, const void *data, size_t length, off64_t at), (fd, data, length, at))
ON_FD(ssize_t, writev, (int fd, const iovec *pieces, int count), (fd, pieces, count))
ON_FD(ssize_t, pwritev, (int fd, const iovec *pieces, int count, off_t at), (fd, pieces, count, at))
ON_FD(ssize_t, pwritev64, (int fd, const iovec *pieces, int count, off64_t at), (fd, pieces, count, at))
ON_FD(ssize_t, pwritev2, (int fd, const iovec *pieces, int count, off_t at, int flags),
      (fd, pieces, count, at, flags))
ON_FD(ssize_t, pwritev64v2, (int fd, const iovec *pieces, int count, off64_t at, int flags),
      (fd, pieces, count, at, flags))
ON_FD(int, fallocate, (int fd, int mode, off_t at, off_t length), (fd, mode, at, length))
ON_FD(int, fallocate64, (int fd, int mode, off64_t at, off64_t length), (fd, mode, at, length))
ON_FD(int, fsync, (int fd), (fd))
ON_FD(int, fdatasync, (int fd), (fd))

extern "C" int ftruncate(int fd, off_t length) noexcept
{
    REAL(ftruncate);
    if (!watching())
        return real(fd, length);
    return file_step("ftruncate", name_of(fd), [&] { return real(fd, length); });
}

extern "C" int ftruncate64(int fd, off64_t length) noexcept
{
    REAL(ftruncate64);
    if (!watching())
        return real(fd, length);
    return file_step("ftruncate64", name_of(fd), [&] { return real(fd, length); });
}

extern "C" ssize_t copy_file_range(int from, off64_t *from_at, int fd, off64_t *at, size_t length,
                                   unsigned flags)
{
    REAL(copy_file_range);
    if (!watching())
        return real(from, from_at, fd, at, length, flags);
    return file_step("copy_file_range", name_of(fd),
                     [&] { return real(from, from_at, fd, at, length, flags); });
}

ON_PATH(int, unlink, AT_FDCWD, path, (const char *path), (path))
ON_PATH(int, unlinkat, at, path, (int at, const char *path, int flags), (at, path, flags))
ON_PATH(int, rename, AT_FDCWD, to, (const char *from, const char *to), (from, to))
ON_PATH(int, renameat, at, to, (int from_at, const char *from, int at, const char *to),
        (from_at, from, at, to))
ON_PATH(int, renameat2, at, to,
        (int from_at, const char *from, int at, const char *to, unsigned flags),
        (from_at, from, at, to, flags))
ON_PATH(int, link, AT_FDCWD, to, (const char *from, const char *to), (from, to))
ON_PATH(int, mkdir, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
ON_PATH(int, mkdirat, at, path, (int at, const char *path, mode_t mode), (at, path, mode))
ON_PATH(int, rmdir, AT_FDCWD, path, (const char *path), (path))
ON_PATH(int, truncate, AT_FDCWD, path, (const char *path, off_t length), (path, length))
ON_PATH(int, truncate64, AT_FDCWD, path, (const char *path, off64_t length), (path, length))

typedef int opener(int, const char *, int, ...);

static int opened(opener *real, int directory, const char *path, int flags, mode_t mode)
{
    auto act = [&] { return real(directory, path, flags, mode); };
    if (!watching() || !(flags & (O_CREAT | O_TRUNC)))
        return act();
    std::string name = name_at(directory, path);
    if (!(flags & O_TRUNC) && !faccessat(directory, path, F_OK, 0))
        name.clear(); /* it is there, and stays as it is */
    return file_step("create", name, act);
}

#define OPEN(name, at, directory, parameters)                                        \
    extern "C" int name parameters                                                   \
    {                                                                                \
        static opener *real;                                                         \
        if (!real)                                                                   \
            real = (opener *)dlsym(RTLD_NEXT, #at);                                  \
        va_list rest;                                                                \
        va_start(rest, flags);                                                       \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;    \
        va_end(rest);                                                                \
        return opened(real, directory, path, flags, mode);                           \
    }
OPEN(open, openat, AT_FDCWD, (const char *path, int flags, ...))
OPEN(open64, openat64, AT_FDCWD, (const char *path, int flags, ...))
OPEN(openat, openat, directory, (int directory, const char *path, int flags, ...))
OPEN(openat64, openat64, directory, (int directory, const char *path, int flags, ...))

/* Ceph */

typedef int sender(void *connection, void *message);
typedef void printer(const void *message, std::ostream &out);

static sender *real_send;
static size_t print_slot;

static bool has(const std::string &text, const char *words)
{
    return text.find(words) != std::string::npos;
}

/* Whether a method of an object class is known to be reading: a word of its name is one of these. */
static bool is_reading(const std::string &method)
{
    std::stringstream words(method.substr(method.find('.') + 1));
    for (std::string word; std::getline(words, word, '_');)
        if (word == "get" || word == "list" || word == "load")
            return true;
    return false;
}

/* Whether a request of an object's operations changes something, or may. The server's lease, and
 * signs of life of a watch, come by the clock and belong to no call. */
static bool changes_object(const std::string &text)
{
    size_t from = text.find(" ["), to = text.find("] snapc");
    if (from == std::string::npos || to == std::string::npos)
        return true;
    std::string operations = text.substr(from + 2, to - from - 2), flags = text.substr(to);
    if (has(operations, "watch ping") || has(operations, "watch reconnect") ||
        has(operations, "notify"))
        return false;
    if (has(text, ":volcore_catalog:") && has(operations, "call lock."))
        return false;
    if (has(flags, "write"))
        return true;
    for (size_t at = 0; (at = operations.find("call ", at)) != std::string::npos;) {
        at += 5;
        if (!is_reading(operations.substr(at, operations.find_first_of(" ,", at) - at)))
            return true;
    }
    return false;
}

static bool is_step(const std::string &text)
{
    if (!text.compare(0, 7, "osd_op("))
        return changes_object(text);
    if (!text.compare(0, 8, "pool_op(") || !text.compare(0, 7, "poolop("))
        return true;
    if (text.compare(0, 12, "mon_command("))
        return false;
    size_t at = text.find("\"prefix\"");
    at = at == std::string::npos ? at : text.find('"', text.find(':', at));
    if (at == std::string::npos)
        return true;
    std::string words = text.substr(at + 1, text.find('"', at + 1) - at - 1);
    std::string last = words.substr(words.rfind(' ') + 1);
    for (const char *reading : {"dump", "ls", "df", "fsid", "get", "stat", "status", "versions"})
        if (last == reading)
            return false;
    return true;
}

static int send_message(void *connection, void *message)
{
    if (!watching())
        return real_send(connection, message);
    std::ostringstream out;
    ((printer *)(*(void ***)message)[print_slot])(message, out);
    std::string text = out.str();
    if (!is_step(text))
        return real_send(connection, message);
    for (char &one : text)
        if (one == '\n')
            one = ' ';
    return step(text, true, [&] { return real_send(connection, message); });
}

static void **slot_of(void *table, void *function)
{
    for (void **at = (void **)table + 2; table && at < (void **)table + 64; at++)
        if (*at == function)
            return at;
    return nullptr;
}

/* See each message that leaves; returns what is missing, or NULL. The library of Ceph is loaded. */
extern "C" const char *failpoints_watch_ceph()
{
    void *library = dlopen("libceph-common.so.2", RTLD_NOW | RTLD_NOLOAD);
    if (!library)
        return "libceph-common.so.2 is not loaded";
    void *table = dlsym(library, "_ZTV7Message");
    void *print = dlsym(library, "_ZNK7Message5printERSo");
    void **slot = slot_of(table, print);
    if (!print || !slot)
        return "Message has no print";
    print_slot = slot - (void **)table - 2;
    void *send = dlsym(library, "_ZN15AsyncConnection12send_messageEP7Message");
    slot = slot_of(dlsym(library, "_ZTV15AsyncConnection"), send);
    if (!send || !slot)
        return "AsyncConnection has no send_message";
    uintptr_t page = (uintptr_t)slot & ~(uintptr_t)(sysconf(_SC_PAGESIZE) - 1);
    if (mprotect((void *)page, sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE))
        return "its table is not writable";
    real_send = (sender *)send;
    *slot = (void *)send_message;
    return nullptr;
}
