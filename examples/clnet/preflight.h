// Checks the bytes of a JPEG or PNG file before the decoder sees them, and leaves of them only what
// was checked: in place, without application segments, comments, fill bytes, transparency, colour
// profiles and whatever stands behind the end. So decoder and check cannot read the file in two
// ways. Nothing here decodes pixels, reads files or allocates more than one bit per JPEG
// coefficient.
#ifndef CLNET_PROGRAM_PREFLIGHT_H
#define CLNET_PROGRAM_PREFLIGHT_H

#include "error.h"

#include <stddef.h>

enum {
    PREFLIGHT_MAX_SIDE = 16384,       // pixels of one side
    PREFLIGHT_MAX_PIXELS = 100000000, // pixels of an image
    PREFLIGHT_MAX_SCANS = 100         // scans of a progressive JPEG: each passes over all blocks
};

typedef struct preflight {
    size_t size; // bytes left
    int height, width;
    size_t memory; // bytes that decoding may take; a decoder that asks for more is stopped
    // PNG only:
    size_t stream_at, stream_size; // where the zlib stream stands
    size_t inflated;               // bytes that it must give: each row of each pass and its filter
    int depth;                     // bits of a sample
    int colors;                    // entries of the palette; 0: none. A palette image is left as a
    unsigned char palette[256][3]; // grey image of its indices (times 255 / (2^depth - 1))
} preflight;

// name: stands in the messages, with the offset of what is wrong.
bool preflight_jpeg(const char *name, unsigned char *bytes, size_t size, preflight *out,
                    problem *p);
bool preflight_png(const char *name, unsigned char *bytes, size_t size, preflight *out, problem *p);

// Refuses sizes that are 0 or above the limits; shared by both formats. at: offset for the message.
bool preflight_dimensions(const char *name, size_t at, unsigned long height, unsigned long width,
                          problem *p);

#endif
