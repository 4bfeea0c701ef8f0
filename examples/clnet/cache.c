#define _POSIX_C_SOURCE 200809L
#include "cache.h"

#include "clnet.h"
#include "image.h"
#include "preflight.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef _OPENMP
#include <omp.h>
#endif

enum { VERSION = 2 }; // of the file; also raise it when the pixels are computed otherwise

typedef struct header {
    char magic[8]; // "clnetpix"
    uint32_t version, height, width, reserved;
    uint64_t count, key;
    uint64_t checksum; // of the fields before
} header;

// Makes each word's difference stay visible: multiplying by an odd number and xor with a word can
// both be undone, so two inputs that differ in one word never have the same sum.
static uint64_t hash(uint64_t h, const void *bytes, size_t size) {
    const unsigned char *b = bytes;
    uint64_t word = 0;
    for (; size >= 8; size -= 8, b += 8) {
        memcpy(&word, b, 8);
        h = (h ^ word) * 0x9E3779B97F4A7C15u;
        h ^= h >> 32;
    }
    word = size; // so that zeros at the end count
    memcpy((unsigned char *)&word + 1, b, size);
    h = (h ^ word) * 0x9E3779B97F4A7C15u;
    return h ^ h >> 32;
}

static size_t pixels_of(const cache *c) { return (size_t)c->height * (size_t)c->width; }

static size_t record_size(const cache *c) {
    return pixels_of(c) * (3 * sizeof(float) + 1) + sizeof(uint64_t);
}

// ---- the key ------------------------------------------------------------------------------------

// Adds name, size and time of a file.
static bool hash_file(uint64_t *key, const char *path, problem *p) {
    struct stat info;
    if (stat(path, &info) != 0) {
        return problem_input(p, "%s: cannot be examined: %s", path, strerror(errno));
    }
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    const int64_t facts[3] = {(int64_t)info.st_size, (int64_t)info.st_mtim.tv_sec,
                              (int64_t)info.st_mtim.tv_nsec};
    *key = hash(*key, name, strlen(name));
    *key = hash(*key, facts, sizeof facts);
    return true;
}

static bool make_header(header *h, const cache *c, const dataset *data, problem *p) {
    *h = (header){.magic = {'c', 'l', 'n', 'e', 't', 'p', 'i', 'x'},
                  .version = VERSION,
                  .height = (uint32_t)c->height,
                  .width = (uint32_t)c->width,
                  .count = c->count,
                  .key = VERSION};
    for (size_t i = 0; i < data->count; i++) {
        const dataset_item *item = &data->items[i];
        h->key = hash(h->key, item->id, strlen(item->id));
        if (!hash_file(&h->key, item->image, p) ||
            (item->mask && !hash_file(&h->key, item->mask, p))) {
            return false;
        }
    }
    h->checksum = hash(0, h, offsetof(header, checksum));
    return true;
}

// ---- files --------------------------------------------------------------------------------------

static bool read_at(int file, void *bytes, size_t size, uint64_t at) {
    for (size_t done = 0; done < size;) {
        const ssize_t got = pread(file, (char *)bytes + done, size - done, (off_t)(at + done));
        if (got == 0) {
            errno = EIO; // the file ends too early
        }
        if (got <= 0 && !(got < 0 && errno == EINTR)) {
            return false;
        }
        done += got > 0 ? (size_t)got : 0;
    }
    return true;
}

static bool write_at(int file, const void *bytes, size_t size, uint64_t at) {
    for (size_t done = 0; done < size;) {
        const ssize_t put =
            pwrite(file, (const char *)bytes + done, size - done, (off_t)(at + done));
        if (put < 0 && errno != EINTR) {
            return false;
        }
        done += put > 0 ? (size_t)put : 0;
    }
    return true;
}

// Opens the file if it is there and was made for exactly this.
static bool open_existing(cache *c, const header *wanted) {
    header found;
    struct stat info;
    c->file = open(c->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    const bool same = c->file >= 0 && fstat(c->file, &info) == 0 && S_ISREG(info.st_mode) &&
                      (uint64_t)info.st_size == sizeof found + c->count * record_size(c) &&
                      read_at(c->file, &found, sizeof found, 0) &&
                      memcmp(&found, wanted, sizeof found) == 0;
    if (!same && c->file >= 0) {
        close(c->file);
        c->file = -1;
    }
    return same;
}

// Opens the temporary file for this process alone. One that a killed process left is used again;
// one that is being written is locked, and one that was renamed meanwhile is no longer under its
// name.
static bool open_temporary(cache *c, const char *temporary, problem *p) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    struct stat by_file, by_name;
    c->file = open(temporary, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (c->file < 0) {
        return problem_run(p, "%s: cannot be made: %s", temporary, strerror(errno));
    }
    if (fcntl(c->file, F_SETLK, &lock) != 0 || fstat(c->file, &by_file) != 0 ||
        stat(temporary, &by_name) != 0 || by_file.st_ino != by_name.st_ino) {
        return problem_run(p, "%s: another process is making this cache", temporary);
    }
    if (ftruncate(c->file, 0) != 0) {
        return problem_run(p, "%s: cannot be emptied: %s", temporary, strerror(errno));
    }
    return true;
}

// ---- making -------------------------------------------------------------------------------------

// What one thread works with.
typedef struct worker {
    unsigned char *record; // (record_size)
    float *scratch;        // (scratch_floats), for resizing; grows
    size_t scratch_floats;
    float *values; // (H,W): the mask before the threshold
} worker;

static void worker_free(worker *w) {
    free(w->record);
    free(w->scratch);
    free(w->values);
    *w = (worker){0};
}

// Has the scratch hold at least what this resizing needs.
static bool reserve(worker *w, const cache *c, const char *name, const image *im, problem *p) {
    const size_t floats =
        clnet_resize_scratch(c->height, c->width, im->height, im->width, im->channels);
    if (floats > w->scratch_floats) {
        free(w->scratch);
        w->scratch = floats <= SIZE_MAX / sizeof(float) ? malloc(floats * sizeof(float)) : NULL;
        w->scratch_floats = w->scratch ? floats : 0;
    }
    return (floats > 0 && floats <= w->scratch_floats) ||
           problem_run(p, "%s: no memory to resize its %d x %d pixels", name, im->width,
                       im->height);
}

// Bytes of a mask (h,w,1) to 0 and 1 at the training size.
static bool resize_mask(worker *w, const cache *c, const char *name, const image *mask,
                        unsigned char *out, problem *p) {
    const size_t pixels = (size_t)mask->height * (size_t)mask->width;
    float *values = malloc(pixels * sizeof *values);
    const bool ok = reserve(w, c, name, mask, p) &&
                    (values || problem_run(p, "%s: no memory for its %zu pixels", name, pixels));
    if (ok) {
        for (size_t i = 0; i < pixels; i++) {
            values[i] = (float)mask->bytes[i] / 255;
        }
        clnet_resize_bilinear_antialias(w->values, c->height, c->width, values, mask->height,
                                        mask->width, 1, w->scratch);
        for (size_t i = 0; i < pixels_of(c); i++) {
            out[i] = w->values[i] >= 0.5f;
        }
    }
    free(values);
    return ok;
}

static bool load_mask(worker *w, const cache *c, const dataset_item *item, const image *rgb,
                      unsigned char *out, problem *p) {
    image mask;
    if (!item->mask) {
        memset(out, 0, pixels_of(c));
        return true;
    }
    if (!image_load(item->mask, IMAGE_MASK, &mask, p)) {
        return false;
    }
    const bool ok =
        mask.height == rgb->height && mask.width == rgb->width
            ? resize_mask(w, c, item->mask, &mask, out, p)
            : problem_input(p, "%s: mask of %d x %d pixels, but its image has %d x %d", item->mask,
                            mask.width, mask.height, rgb->width, rgb->height);
    image_free(&mask);
    return ok;
}

// Decodes one item into w->record.
static bool make_record(worker *w, const cache *c, const dataset_item *item, problem *p) {
    const size_t image_bytes = pixels_of(c) * 3 * sizeof(float);
    image rgb;
    if (!image_load(item->image, IMAGE_RGB, &rgb, p)) {
        return false;
    }
    bool ok = reserve(w, c, item->image, &rgb, p);
    if (ok) {
        clnet_image_to_unit((float *)(void *)w->record, c->height, c->width, rgb.bytes, rgb.height,
                            rgb.width, w->scratch);
        ok = load_mask(w, c, item, &rgb, w->record + image_bytes, p);
    }
    image_free(&rgb);
    const size_t hashed = record_size(c) - sizeof(uint64_t);
    const uint64_t sum = ok ? hash(0, w->record, hashed) : 0;
    memcpy(w->record + hashed, &sum, sizeof sum);
    return ok;
}

// What the threads share.
typedef struct making {
    const cache *c;
    const dataset *data;
    const cache_desc *desc;
    size_t done;
    size_t failed;  // the lowest item that failed; count: none
    problem reason; // why it did
} making;

// Counts an item, or keeps its failure; of several, that of the first item.
static void finish_item(making *m, size_t index, bool ok, const problem *reason) {
#ifdef _OPENMP
#pragma omp critical(cache_finish_item)
#endif
    {
        m->done += ok;
        if (ok && m->desc->progress) {
            m->desc->progress(m->desc->user, m->done, m->c->count);
        }
        if (!ok && index < m->failed) {
            m->failed = index;
            m->reason = *reason;
        }
    }
}

static bool going_on(making *m) {
    bool ok = false;
#ifdef _OPENMP
#pragma omp critical(cache_finish_item)
#endif
    ok = m->failed == m->c->count && !(m->desc->stop && *m->desc->stop);
    return ok;
}

static void make_item(making *m, worker *w, size_t index) {
    const size_t size = record_size(m->c);
    problem reason = {0};
    bool ok = w->record && w->values;
    if (!ok) {
        problem_run(&reason, "%s: no memory to make it", m->c->path);
    }
    ok = ok && make_record(w, m->c, &m->data->items[index], &reason);
    if (ok && !write_at(m->c->file, w->record, size, sizeof(header) + (uint64_t)index * size)) {
        ok = problem_run(&reason, "%s: cannot be written: %s", m->c->path, strerror(errno));
    }
    finish_item(m, index, ok, &reason);
}

// Decodes all items, each into its place of the file.
static bool make_records(making *m, problem *p) {
#ifdef _OPENMP
    const int threads = m->desc->threads > 0 ? m->desc->threads : omp_get_max_threads();
#pragma omp parallel num_threads(threads)
#endif
    {
        worker w = {.record = calloc(record_size(m->c), 1),
                    .values = malloc(pixels_of(m->c) * sizeof(float))};
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (size_t i = 0; i < m->c->count; i++) {
            if (going_on(m)) {
                make_item(m, &w, i);
            }
        }
        worker_free(&w);
    }
    if (m->failed < m->c->count) {
        *p = m->reason;
        return false;
    }
    return m->done == m->c->count ||
           problem_run(p, "%s: stopped after %zu of %zu images", m->c->path, m->done, m->c->count);
}

// Puts the header in front, all of it on the disk, and the file under its name.
static bool publish(const cache *c, const char *temporary, const header *h, problem *p) {
    if (write_at(c->file, h, sizeof *h, 0) && fsync(c->file) == 0 &&
        rename(temporary, c->path) == 0) {
        return true;
    }
    return problem_run(p, "%s: cannot be written: %s", c->path, strerror(errno));
}

static bool make_file(cache *c, const dataset *data, const cache_desc *desc, const header *h,
                      problem *p) {
    const size_t length = strlen(c->path) + 5;
    char *temporary = malloc(length);
    if (!temporary) {
        return problem_run(p, "%s: no memory to make it", c->path);
    }
    snprintf(temporary, length, "%s.tmp", c->path);
    bool ok = open_temporary(c, temporary, p);
    if (ok) {
        making m = {.c = c, .data = data, .desc = desc, .failed = c->count};
        ok = make_records(&m, p) && publish(c, temporary, h, p);
        if (!ok) {
            unlink(temporary);
        }
    }
    free(temporary);
    return ok;
}

// ---- the room's door ----------------------------------------------------------------------------

static bool size_valid(const cache_desc *desc, problem *p) {
    return (desc->height >= 1 && desc->width >= 1 && desc->height <= PREFLIGHT_MAX_SIDE &&
            desc->width <= PREFLIGHT_MAX_SIDE) ||
           problem_input(p, "training size of %d x %d pixels, expected 1 to %d a side", desc->width,
                         desc->height, PREFLIGHT_MAX_SIDE);
}

static bool set_path(cache *c, const char *dir, const char *split, problem *p) {
    const size_t length = strlen(dir) + 64;
    c->path = malloc(length);
    if (c->path) {
        snprintf(c->path, length, "%s/cache-%s-%dx%d.bin", dir, split, c->height, c->width);
    }
    return c->path || problem_run(p, "%s: no memory to open the cache", dir);
}

bool cache_open(cache *out, const dataset *data, const cache_desc *desc, problem *p) {
    *out = (cache){.file = -1, .height = desc->height, .width = desc->width, .count = data->count};
    header wanted;
    bool ok = size_valid(desc, p) && set_path(out, desc->dir, data->split, p) &&
              make_header(&wanted, out, data, p);
    if (ok) {
        out->reused = open_existing(out, &wanted);
        ok = out->reused || make_file(out, data, desc, &wanted, p);
    }
    if (!ok) {
        cache_close(out);
    }
    return ok;
}

bool cache_read(const cache *c, size_t index, float *pixels, unsigned char *mask, problem *p) {
    const size_t size = record_size(c), hashed = size - sizeof(uint64_t);
    const size_t image_bytes = pixels_of(c) * 3 * sizeof(float);
    unsigned char *record = calloc(size, 1);
    if (!record || index >= c->count) {
        free(record);
        return problem_run(p, "%s: no memory for record %zu", c->path, index);
    }
    uint64_t sum = 0;
    bool ok = read_at(c->file, record, size, sizeof(header) + (uint64_t)index * size) ||
              problem_run(p, "%s: record %zu cannot be read: %s", c->path, index, strerror(errno));
    if (ok) {
        memcpy(&sum, record + hashed, sizeof sum);
    }
    if (ok && hash(0, record, hashed) != sum) {
        ok = problem_run(p,
                         "%s: record %zu is damaged (its checksum is wrong); delete the file, and "
                         "it will be made anew",
                         c->path, index);
    }
    if (ok && pixels) {
        memcpy(pixels, record, image_bytes);
    }
    if (ok && mask) {
        memcpy(mask, record + image_bytes, pixels_of(c));
    }
    free(record);
    return ok;
}

void cache_close(cache *c) {
    if (c->file >= 0) {
        close(c->file);
    }
    free(c->path);
    *c = (cache){.file = -1};
}
