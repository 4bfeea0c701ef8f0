// The decoded images of a split at the training size, in one file, so that a large JPEG is decoded
// once and not in every epoch. The file is made when it is missing or belongs to something else,
// in parallel, and read record by record: it need not fit into memory.
//
// File, all in the machine's byte order: a header (struct in cache.c), then per item
//     float image[H][W][3]     0 to 1, as clnet_image_to_unit makes it
//     unsigned char mask[H][W] 1 = lesion: truth/255, resized with antialiasing, >= 0.5; 0 without
// one
//     uint64 checksum          of these bytes
#ifndef CLNET_PROGRAM_CACHE_H
#define CLNET_PROGRAM_CACHE_H

#include "dataset.h"
#include "error.h"

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

typedef struct cache_desc {
    const char *dir;   // where the file stands; must exist
    int height, width; // the training size
    int threads;       // that decode; 0: as many as OpenMP gives
    void (*progress)(void *user, size_t done, size_t total); // may be NULL; one call at a time
    void *user;
    const volatile sig_atomic_t *stop; // may be NULL; making ends early once it is not 0
} cache_desc;

typedef struct cache {
    int file; // descriptor
    char *path;
    int height, width;
    size_t count; // records, one per item of the data set, in its order
    bool reused;  // false: this call made the file
} cache;

// Opens the cache of this data set at this size. A file that is already there is used if its size,
// version and key agree; the key covers ids, names, sizes and times of all image and mask files.
// Else it is made anew; all images and masks are then read and checked, also that a mask has its
// image's size. An interruption, a full disk or a bad image leaves no file. On failure *out is
// closed.
bool cache_open(cache *out, const dataset *data, const cache_desc *desc, problem *p);

// Reads one record: pixels (H,W,3), not normalised, mask (H,W) of 0 and 1; either may be NULL. Fails when the
// record's checksum is wrong. May be called from several threads.
bool cache_read(const cache *c, size_t index, float *pixels, unsigned char *mask, problem *p);

void cache_close(cache *c);

#endif
