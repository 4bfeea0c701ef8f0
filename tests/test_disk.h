// Memory and files for tests that make them fail: an allocator that counts, a disk in memory. Included
// behind clnet.h and test.h.
#ifndef CLNET_TEST_DISK_H
#define CLNET_TEST_DISK_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// >>memory: an allocator that counts, and that can fail at its n-th call

static struct {
    size_t now, peak, context; // bytes; `context`: of them, the context that the test made
    long calls, fail_at;       // counted from 1; 0: never
} memory;

enum { MEMORY_PREFIX = 16 }; // keeps the size, and the alignment of malloc

static void *counting_alloc(void *user, size_t bytes) {
    (void)user;
    unsigned char *p = ++memory.calls == memory.fail_at ? NULL : malloc(bytes + MEMORY_PREFIX);
    if (p == NULL) {
        return NULL;
    }
    memcpy(p, &bytes, sizeof bytes);
    memory.now += bytes;
    memory.peak = memory.now > memory.peak ? memory.now : memory.peak;
    return p + MEMORY_PREFIX;
}

static void counting_free(void *user, void *p) {
    size_t bytes;
    (void)user;
    memcpy(&bytes, (unsigned char *)p - MEMORY_PREFIX, sizeof bytes);
    memory.now -= bytes;
    free((unsigned char *)p - MEMORY_PREFIX);
}

// The most that was taken since the last context was made, without that context.
static size_t memory_peak(void) { return memory.peak - memory.context; }

// >>disk: files in memory

typedef struct disk_file {
    char name[64]; // "": there is none here
    unsigned char *data;
    size_t stored; // bytes that are in `data`
    uint64_t size; // what lies behind the stored bytes reads as zeros
} disk_file;

static struct {
    disk_file files[4];
    long calls, fail_at; // counted from 1; 0: never
    size_t space;        // bytes that can still be written
    bool silent;         // failures leave errno alone
    uint64_t bytes_read;
    int open;
} disk;

static bool disk_fails(int reason) {
    if (++disk.calls != disk.fail_at) {
        return false;
    }
    if (!disk.silent) {
        errno = reason;
    }
    return true;
}

static disk_file *disk_find(const char *name) {
    for (int i = 0; i < 4; i++) {
        if (strcmp(disk.files[i].name, name) == 0) {
            return &disk.files[i];
        }
    }
    return NULL;
}

static void disk_delete(const char *name) {
    disk_file *f = disk_find(name);
    if (f != NULL) {
        free(f->data);
        memset(f, 0, sizeof *f);
    }
}

// Makes a file, or replaces it; NULL: the disk has no room for another one.
static disk_file *disk_put(const char *name, const void *data, size_t bytes) {
    disk_delete(name);
    disk_file *f = disk_find("");
    if (f == NULL) {
        return NULL;
    }
    snprintf(f->name, sizeof f->name, "%s", name);
    f->data = malloc(bytes + 1);
    f->stored = bytes;
    f->size = bytes;
    if (bytes > 0) {
        memcpy(f->data, data, bytes);
    }
    return f;
}

static void *disk_open(void *user, const char *path, bool write) {
    (void)user;
    if (disk_fails(EACCES)) {
        return NULL;
    }
    disk_file *f = write ? disk_put(path, NULL, 0) : disk_find(path);
    disk.open += f != NULL;
    errno = f != NULL ? errno : ENOENT;
    return f;
}

static bool disk_size(void *user, void *file, uint64_t *bytes) {
    (void)user;
    *bytes = ((disk_file *)file)->size;
    return !disk_fails(EIO);
}

static size_t disk_read(void *user, void *file, uint64_t offset, void *data, size_t bytes) {
    const disk_file *f = file;
    (void)user;
    if (disk_fails(EIO) || offset > f->size) {
        return 0;
    }
    size_t n = bytes < f->size - offset ? bytes : (size_t)(f->size - offset);
    memset(data, 0, n);
    if (offset < f->stored) {
        size_t stored = f->stored - (size_t)offset;
        memcpy(data, f->data + offset, n < stored ? n : stored);
    }
    disk.bytes_read += n;
    return n;
}

static size_t disk_write(void *user, void *file, const void *data, size_t bytes) {
    disk_file *f = file;
    (void)user;
    size_t n = disk_fails(EIO) ? bytes / 2 : bytes; // a short write
    if (n > disk.space) {
        n = disk.space;
        errno = ENOSPC;
    }
    unsigned char *grown = realloc(f->data, f->stored + n + 1);
    memcpy(grown + f->stored, data, n);
    f->data = grown;
    f->stored += n;
    f->size = f->stored;
    disk.space -= n;
    return n;
}

static bool disk_sync(void *user, void *file) {
    (void)user;
    (void)file;
    return !disk_fails(EIO);
}

static bool disk_close(void *user, void *file) {
    (void)user;
    (void)file;
    disk.open--;
    return !disk_fails(ENOSPC);
}

static bool disk_rename(void *user, const char *from, const char *to) {
    (void)user;
    if (disk_fails(EACCES)) {
        return false;
    }
    disk_delete(to);
    disk_file *f = disk_find(from);
    snprintf(f->name, sizeof f->name, "%s", to);
    return true;
}

static void disk_remove(void *user, const char *path) {
    (void)user;
    disk_delete(path);
}

static const clnet_files disk_table = {disk_open,  disk_size,   disk_read,   disk_write, disk_sync,
                                       disk_close, disk_rename, disk_remove, NULL};

// A context on this disk and with this memory; everything set to work.
static clnet_context *disk_context(void) {
    const clnet_context_desc desc = {.allocator = {counting_alloc, counting_free, NULL},
                                     .files = &disk_table};
    memory.fail_at = disk.fail_at = 0;
    memory.calls = disk.calls = 0;
    disk.space = SIZE_MAX;
    disk.silent = false;
    disk.bytes_read = 0;
    clnet_context *ctx = clnet_context_create(&desc);
    memory.peak = memory.context = memory.now;
    return ctx;
}

static double seconds_now(void) { return (double)clock() / CLOCKS_PER_SEC; }

#if defined(__SANITIZE_ADDRESS__)
enum { SLOWER = 6 }; // times are measured, but not judged so hard
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
enum { SLOWER = 6 };
#else
enum { SLOWER = 1 };
#endif
#else
enum { SLOWER = 1 };
#endif

#endif
