#define _POSIX_C_SOURCE   200809L
#define _FILE_OFFSET_BITS 64
#include "disk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// A handle is a file descriptor plus one, so that 0 is not NULL.
static int descriptor(void *file) { return (int)((intptr_t)file - 1); }

static void *disk_open(void *user, const char *path, bool write) {
    (void)user;
    // Never wait for a FIFO, and never take a folder or a device for a file.
    const int flags = write ? O_WRONLY | O_CREAT | O_TRUNC : O_RDONLY;
    const int fd = open(path, flags | O_NONBLOCK | O_CLOEXEC, 0666);
    struct stat s;
    if (fd >= 0 && (fstat(fd, &s) || !S_ISREG(s.st_mode))) {
        close(fd);
        errno = S_ISDIR(s.st_mode) ? EISDIR : EINVAL;
        return NULL;
    }
    return (void *)((intptr_t)fd + 1);
}

static bool disk_size(void *user, void *file, uint64_t *bytes) {
    (void)user;
    struct stat s;
    if (fstat(descriptor(file), &s)) {
        return false;
    }
    *bytes = (uint64_t)s.st_size;
    return true;
}

static size_t disk_read(void *user, void *file, uint64_t offset, void *data, size_t bytes) {
    (void)user;
    size_t done = 0;
    while (done < bytes) {
        const ssize_t n =
            pread(descriptor(file), (char *)data + done, bytes - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            break;
        }
        done += (size_t)n;
    }
    return done;
}

static size_t disk_append(void *user, void *file, const void *data, size_t bytes) {
    (void)user;
    size_t done = 0;
    while (done < bytes) {
        const ssize_t n = write(descriptor(file), (const char *)data + done, bytes - done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            break;
        }
        done += (size_t)n;
    }
    return done;
}

static bool disk_sync(void *user, void *file) {
    (void)user;
    return fsync(descriptor(file)) == 0;
}

static bool disk_close(void *user, void *file) {
    (void)user;
    return close(descriptor(file)) == 0;
}

// After the rename the folder is synced too: without that a crash may bring the old name back.
static bool disk_rename(void *user, const char *from, const char *to) {
    (void)user;
    struct stat s;
    if (stat(to, &s) == 0 && !S_ISREG(s.st_mode)) {
        errno = S_ISDIR(s.st_mode) ? EISDIR : EINVAL; // never replace a device or a FIFO by a file
        return false;
    }
    if (rename(from, to)) {
        return false;
    }
    char folder[DISK_PATH];
    const char *slash = strrchr(to, '/');
    if (slash) {
        snprintf(folder, sizeof folder, "%.*s", (int)(slash - to + 1), to);
    } else {
        snprintf(folder, sizeof folder, ".");
    }
    const int fd = open(folder, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd); // not every file system can; the rename itself has succeeded
        close(fd);
    }
    return true;
}

static void disk_remove(void *user, const char *path) {
    (void)user;
    unlink(path);
}

clnet_files disk_files(void) {
    return (clnet_files){disk_open,  disk_size,   disk_read,   disk_append, disk_sync,
                         disk_close, disk_rename, disk_remove, NULL};
}

bool disk_make_folder(const char *path, problem *p) {
    char part[DISK_PATH];
    const size_t length = strlen(path);
    if (length == 0 || length >= sizeof part) {
        return problem_input(p, "%.200s: a path of %zu characters", path, length);
    }
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != 0) {
            continue;
        }
        snprintf(part, sizeof part, "%.*s", (int)i, path);
        struct stat s;
        if (mkdir(part, 0777) && (errno != EEXIST || stat(part, &s) || !S_ISDIR(s.st_mode))) {
            return problem_input(p, "%s: cannot make this folder: %s", part,
                                 errno == EEXIST ? "a file of this name is in the way"
                                                 : strerror(errno));
        }
    }
    return true;
}

bool disk_write(const char *path, const void *data, size_t bytes, problem *p) {
    char temporary[DISK_PATH + 8];
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    void *file = disk_open(NULL, temporary, true);
    if (!file) {
        return problem_run(p, "%s: cannot be written: %s", path, strerror(errno));
    }
    bool ok = disk_append(NULL, file, data, bytes) == bytes && disk_sync(NULL, file);
    int reason = errno;
    if (!disk_close(NULL, file) && ok) {
        ok = false;
        reason = errno;
    }
    if (ok && !disk_rename(NULL, temporary, path)) {
        ok = false;
        reason = errno;
    }
    if (!ok) {
        unlink(temporary);
        return problem_run(p, "%s: cannot be written: %s", path, strerror(reason));
    }
    return true;
}

bool disk_join(char path[DISK_PATH], const char *folder, const char *name, problem *p) {
    const int length = snprintf(path, DISK_PATH, "%s/%s", folder, name);
    return (length > 0 && length < DISK_PATH) ||
           problem_input(p, "%.100s/%.100s: too long a path", folder, name);
}

bool disk_exists(const char *path) {
    struct stat s;
    return stat(path, &s) == 0;
}
