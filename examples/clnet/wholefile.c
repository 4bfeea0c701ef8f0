#define _POSIX_C_SOURCE 200809L
#include "wholefile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *kind_of(mode_t mode) {
    return S_ISDIR(mode)                    ? "a folder"
           : S_ISFIFO(mode)                 ? "a pipe"
           : S_ISCHR(mode) || S_ISBLK(mode) ? "a device"
                                            : "something else";
}

// Opens without waiting (O_NONBLOCK: a pipe without a writer would hang) and measures.
static bool open_regular(const char *path, size_t cap, int *fd, size_t *size, problem *p) {
    struct stat info;
    *fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (*fd < 0) {
        return problem_input(p, "%s: cannot be opened: %s", path, strerror(errno));
    }
    if (fstat(*fd, &info) != 0) {
        return problem_run(p, "%s: cannot be examined: %s", path, strerror(errno));
    }
    if (!S_ISREG(info.st_mode)) {
        return problem_input(p, "%s: is %s, expected a regular file", path, kind_of(info.st_mode));
    }
    if ((unsigned long long)info.st_size > cap) {
        return problem_input(p, "%s: has %lld bytes, at most %zu are read", path,
                             (long long)info.st_size, cap);
    }
    *size = (size_t)info.st_size;
    return true;
}

static bool read_all(int fd, const char *path, wholefile *out, problem *p) {
    for (size_t at = 0; at < out->size;) {
        const ssize_t got = read(fd, out->bytes + at, out->size - at);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return problem_run(p, "%s: reading failed at byte %zu: %s", path, at, strerror(errno));
        }
        if (got == 0) {
            return problem_run(p, "%s: became shorter while it was read: %zu of %zu bytes", path,
                               at, out->size);
        }
        at += (size_t)got;
    }
    return true;
}

bool wholefile_read(const char *path, size_t cap, wholefile *out, problem *p) {
    int fd = -1;
    *out = (wholefile){0};
    bool ok = open_regular(path, cap, &fd, &out->size, p);
    if (ok) {
        out->bytes = calloc(out->size + 1, 1);
        ok = out->bytes ? read_all(fd, path, out, p)
                        : problem_run(p, "%s: no memory for its %zu bytes", path, out->size);
    }
    if (fd >= 0) {
        close(fd);
    }
    if (!ok) {
        wholefile_free(out);
    }
    return ok;
}

void wholefile_free(wholefile *file) {
    free(file->bytes);
    *file = (wholefile){0};
}
