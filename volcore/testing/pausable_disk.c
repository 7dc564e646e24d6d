/* A filesystem of one file, `disk`, kept in another file: SIGSTOP pauses it, and a disk that does
 * not answer is a disk whose power is gone. volcore/testing/real_disk.py compiles and drives it.
 *
 *     pausable_disk BACKING MOUNTPOINT -f
 *
 * A block that begins with REFUSED is not written while there is a file `BACKING.refuse`.
 */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK 4096

static int backing;
static char refuse[4096];

static int disk_getattr(const char *path, struct stat *facts, struct fuse_file_info *file)
{
    (void)file;
    memset(facts, 0, sizeof *facts);
    if (!strcmp(path, "/")) {
        facts->st_mode = S_IFDIR | 0700;
        facts->st_nlink = 2;
        return 0;
    }
    if (strcmp(path, "/disk"))
        return -ENOENT;
    return fstat(backing, facts) ? -errno : 0;
}

static int disk_readdir(const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset,
                        struct fuse_file_info *file, enum fuse_readdir_flags flags)
{
    (void)path, (void)offset, (void)file, (void)flags;
    fill(buffer, "disk", NULL, 0, 0);
    return 0;
}

static int disk_open(const char *path, struct fuse_file_info *file)
{
    (void)file;
    return strcmp(path, "/disk") ? -ENOENT : 0;
}

static int disk_read(const char *path, char *data, size_t length, off_t offset,
                     struct fuse_file_info *file)
{
    (void)path, (void)file;
    ssize_t done = pread(backing, data, length, offset);
    return done < 0 ? -errno : (int)done;
}

static int disk_write(const char *path, const char *data, size_t length, off_t offset,
                      struct fuse_file_info *file)
{
    (void)path, (void)file;
    for (size_t at = 0; at + BLOCK <= length; at += BLOCK)
        if (!memcmp(data + at, "REFUSED", 7) && !access(refuse, F_OK))
            return -EIO;
    ssize_t done = pwrite(backing, data, length, offset);
    return done < 0 ? -errno : (int)done;
}

static int disk_fsync(const char *path, int only_data, struct fuse_file_info *file)
{
    (void)path, (void)only_data, (void)file;
    return 0; /* what was written here is what a power cut leaves */
}

static int disk_fallocate(const char *path, int mode, off_t offset, off_t length,
                          struct fuse_file_info *file)
{
    (void)path, (void)file;
    return fallocate(backing, mode, offset, length) ? -errno : 0;
}

static const struct fuse_operations operations = {
    .getattr = disk_getattr,
    .readdir = disk_readdir,
    .open = disk_open,
    .read = disk_read,
    .write = disk_write,
    .fsync = disk_fsync,
    .fallocate = disk_fallocate,
};

int main(int count, char **words)
{
    if (count < 3) {
        fprintf(stderr, "usage: pausable_disk BACKING MOUNTPOINT [FUSE OPTIONS]\n");
        return 2;
    }
    backing = open(words[1], O_RDWR | O_CLOEXEC);
    if (backing < 0) {
        perror(words[1]);
        return 1;
    }
    snprintf(refuse, sizeof refuse, "%s.refuse", words[1]);
    words[1] = words[0];
    return fuse_main(count - 1, words + 1, &operations, NULL);
}
