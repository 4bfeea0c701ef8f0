// Image files: JPEG and PNG read into bytes, bytes written as PNG. Files are hostile until checked
// (preflight.h); a failure says which file, where in it, what was found and what was expected.
#ifndef CLNET_PROGRAM_IMAGE_H
#define CLNET_PROGRAM_IMAGE_H

#include "error.h"

#include <stddef.h>

typedef enum image_kind {
    IMAGE_RGB, // three bytes a pixel; grey is repeated
    IMAGE_MASK // one byte a pixel; above 128 is lesion
} image_kind;

typedef struct image {
    unsigned char *bytes; // (height, width, channels)
    int height, width, channels;
} image;

// Reads a JPEG (baseline or progressive, grey or colour) or PNG (any kind) file of at most 64 MiB,
// 16,384 pixels a side and 100 million pixels. What it holds decides, not its name. 16-bit samples
// lose their lower byte; transparency, EXIF orientation and colour profiles are ignored.
// A mask may be stored in any of these ways if its three channels are equal; one whose largest
// value is neither 0 nor above 128 (say, 0 and 1) is refused, since it would silently read as
// empty. May be called from several threads at once. On failure *out is empty.
bool image_load(const char *path, image_kind kind, image *out, problem *p);

// The same from memory. bytes is changed. name stands for the file in messages.
bool image_decode(const char *name, unsigned char *bytes, size_t size, image_kind kind, image *out,
                  problem *p);

void image_free(image *im);

// Writes bytes (height, width, channels), channels 1 to 4, as a PNG file, whole or not at all.
bool image_write_png(const char *path, const unsigned char *bytes, int height, int width,
                     int channels, problem *p);

#endif
