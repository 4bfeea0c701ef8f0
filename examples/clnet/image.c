#include "image.h"

#include "disk.h"
#include "preflight.h"
#include "wholefile.h"

#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// ---- stb_image, fenced in -----------------------------------------------------------------------
// Its memory comes zeroed, since version 2.27 uses parts of its state before it sets them, and from
// a budget that the preflight sets for each image, so that no file can ask for more than its size
// in pixels explains. Threads decode at the same time: each has its own budget.

#define IMAGE_THREAD_LOCAL __thread // gcc and clang; C99 itself has no word for it

static IMAGE_THREAD_LOCAL size_t budget_left;

enum { BLOCK_HEAD = 16 }; // bytes before each block, which hold its size and keep it aligned

static void *budget_malloc(size_t size) {
    if (size > budget_left || size > SIZE_MAX - BLOCK_HEAD) {
        return NULL;
    }
    unsigned char *block = calloc(size + BLOCK_HEAD, 1);
    if (!block) {
        return NULL;
    }
    memcpy(block, &size, sizeof size);
    budget_left -= size;
    return block + BLOCK_HEAD;
}

static size_t budget_size(const void *data) {
    size_t size = 0;
    memcpy(&size, (const unsigned char *)data - BLOCK_HEAD, sizeof size);
    return size;
}

static void budget_free(void *data) {
    if (data) {
        budget_left += budget_size(data);
        free((unsigned char *)data - BLOCK_HEAD);
    }
}

static void *budget_realloc(void *data, size_t size) {
    void *grown = budget_malloc(size);
    if (grown && data) {
        const size_t old = budget_size(data);
        memcpy(grown, data, old < size ? old : size);
        budget_free(data);
    }
    return grown;
}

#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function" // most of what these headers declare
#endif

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_MAX_DIMENSIONS      PREFLIGHT_MAX_SIDE
#define STBI_MALLOC(size)        budget_malloc(size)
#define STBI_REALLOC(data, size) budget_realloc(data, size)
#define STBI_FREE(data)          budget_free(data)
#include <stb/stb_image.h>

#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#define STBI_WRITE_NO_STDIO
#include <stb/stb_image_write.h>

// ---- reading ------------------------------------------------------------------------------------

enum { MAX_FILE = 64 << 20 }; // bytes

// Formats that are refused by name; JPEG and PNG are told apart by their first bytes, too.
static const char *other_format(const unsigned char *b, size_t size) {
    static const struct {
        const char *magic, *name;
    } known[] = {{"GIF8", "GIF"},         {"BM", "BMP"},   {"8BPS", "PSD"}, {"#?", "HDR"},
                 {"RIFF", "WebP"},        {"II*", "TIFF"}, {"MM", "TIFF"},  {"P1", "PNM"},
                 {"P2", "PNM"},           {"P3", "PNM"},   {"P4", "PNM"},   {"P5", "PNM"},
                 {"P6", "PNM"},           {"P7", "PNM"},   {"PF", "PNM"},   {"Pf", "PNM"},
                 {"\xFF\x0A", "JPEG XL"}, {"%PDF", "PDF"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const size_t length = strlen(known[i].magic);
        if (size >= length && memcmp(b, known[i].magic, length) == 0) {
            return known[i].name;
        }
    }
    return NULL;
}

static bool preflight_any(const char *name, unsigned char *b, size_t size, preflight *plan,
                          problem *p) {
    if (size == 0) {
        return problem_input(p, "%s: empty file, expected a JPEG or PNG image", name);
    }
    if (size > MAX_FILE) {
        return problem_input(p, "%s: has %zu bytes, at most %d are read", name, size, MAX_FILE);
    }
    if (size >= 2 && b[0] == 0xFF && b[1] == 0xD8) {
        return preflight_jpeg(name, b, size, plan, p);
    }
    if (size >= 4 && memcmp(b, "\x89PNG", 4) == 0) {
        return preflight_png(name, b, size, plan, p);
    }
    const char *format = other_format(b, size);
    if (format) {
        return problem_input(p, "%s: looks like %s, only JPEG and PNG images are read", name,
                             format);
    }
    return problem_input(p, "%s: neither JPEG nor PNG (begins with the bytes %02X %02X)", name,
                         b[0], size > 1 ? b[1] : 0);
}

// Sum of RFC 1950 over the inflated bytes; 5552 is how many can be added before 32 bits overflow.
static uint32_t adler32(const unsigned char *bytes, size_t size) {
    uint32_t a = 1, b = 0;
    for (size_t i = 0; i < size;) {
        const size_t end = size - i > 5552 ? i + 5552 : size;
        for (; i < end; i++) {
            a += bytes[i];
            b += a;
        }
        a %= 65521;
        b %= 65521;
    }
    return b << 16 | a;
}

// Inflates the zlib stream of a PNG once before stb_image does, into just the room that the image
// needs: a stream that gives more, less, or another checksum is refused (stb_image looks at
// neither).
static bool check_stream(const char *name, const unsigned char *stream, const preflight *plan,
                         problem *p) {
    if (plan->stream_size < 6) {
        return problem_input(p, "%s: IDAT of %zu bytes, too few for a zlib stream", name,
                             plan->stream_size);
    }
    unsigned char *rows = calloc(plan->inflated, 1);
    if (!rows) {
        return problem_run(p, "%s: no memory for its %zu bytes of pixels", name, plan->inflated);
    }
    const int got = stbi_zlib_decode_buffer((char *)rows, (int)plan->inflated, (const char *)stream,
                                            (int)plan->stream_size);
    const unsigned char *t = stream + plan->stream_size - 4;
    const uint32_t stored =
        (uint32_t)t[0] << 24 | (uint32_t)t[1] << 16 | (uint32_t)t[2] << 8 | t[3];
    const uint32_t found = adler32(rows, plan->inflated);
    free(rows);
    if (got < 0) {
        return problem_input(p, "%s: pixels cannot be inflated to the %zu bytes expected: %s", name,
                             plan->inflated, stbi_failure_reason());
    }
    if ((size_t)got != plan->inflated) {
        return problem_input(p, "%s: pixels inflate to %d bytes, expected %zu", name, got,
                             plan->inflated);
    }
    return stored == found || problem_input(p,
                                            "%s: pixels have the checksum %08X, but %08X is "
                                            "stored",
                                            name, found, stored);
}

// Replaces indices, which came as grey values, by the colours of the palette.
static bool apply_palette(const char *name, const preflight *plan, const unsigned char *indices,
                          image *out, problem *p) {
    const int scale = 255 / ((1 << plan->depth) - 1);
    const size_t pixels = (size_t)out->height * (size_t)out->width;
    for (size_t i = 0; i < pixels; i++) {
        const int index = indices[i] / scale;
        if (index >= plan->colors) {
            return problem_input(p, "%s: pixel %zu, %zu has the colour %d, but the palette has %d",
                                 name, i % (size_t)out->width, i / (size_t)out->width, index,
                                 plan->colors);
        }
        memcpy(out->bytes + 3 * i, plan->palette[index], 3);
    }
    return true;
}

// Lets stb_image decode what the preflight left; out gets three channels.
static bool decode_checked(const char *name, const unsigned char *bytes, const preflight *plan,
                           image *out, problem *p) {
    const size_t pixels = (size_t)plan->height * (size_t)plan->width;
    const int channels = plan->colors > 0 ? 1 : 3;
    int height = 0, width = 0, stored = 0;
    budget_left = plan->memory;
    stbi_uc *data =
        stbi_load_from_memory(bytes, (int)plan->size, &width, &height, &stored, channels);
    if (!data) {
        return problem_input(p, "%s: pixels cannot be decoded: %s", name, stbi_failure_reason());
    }
    *out = (image){.height = height, .width = width, .channels = 3};
    bool ok = (height == plan->height && width == plan->width) ||
              problem_input(p, "%s: decoded to %d x %d pixels, its header says %d x %d", name,
                            width, height, plan->width, plan->height);
    if (ok && !(out->bytes = malloc(3 * pixels))) {
        ok = problem_run(p, "%s: no memory for its %zu pixels", name, pixels);
    }
    if (ok && plan->colors > 0) {
        ok = apply_palette(name, plan, data, out, p);
    } else if (ok) {
        memcpy(out->bytes, data, 3 * pixels);
    }
    budget_free(data);
    return ok;
}

// Keeps one of three equal channels.
static bool reduce_to_mask(const char *name, image *im, problem *p) {
    const size_t pixels = (size_t)im->height * (size_t)im->width;
    unsigned char *b = im->bytes, largest = 0;
    for (size_t i = 0; i < pixels; i++) {
        const unsigned char *c = b + 3 * i;
        if (c[0] != c[1] || c[0] != c[2]) {
            return problem_input(
                p, "%s: pixel %zu, %zu has the colour %d, %d, %d, but a mask is grey", name,
                i % (size_t)im->width, i / (size_t)im->width, c[0], c[1], c[2]);
        }
        b[i] = c[0];
        largest = b[i] > largest ? b[i] : largest;
    }
    if (largest > 0 && largest <= 128) {
        return problem_input(p,
                             "%s: the largest value of this mask is %d; lesion is 255 (at least "
                             "129), so it would read as empty",
                             name, largest);
    }
    im->channels = 1;
    unsigned char *smaller = realloc(b, pixels);
    im->bytes = smaller ? smaller : b;
    return true;
}

bool image_decode(const char *name, unsigned char *bytes, size_t size, image_kind kind, image *out,
                  problem *p) {
    preflight plan;
    *out = (image){0};
    bool ok = preflight_any(name, bytes, size, &plan, p);
    if (ok && plan.stream_size > 0) {
        ok = check_stream(name, bytes + plan.stream_at, &plan, p);
    }
    ok = ok && decode_checked(name, bytes, &plan, out, p) &&
         (kind != IMAGE_MASK || reduce_to_mask(name, out, p));
    if (!ok) {
        image_free(out);
    }
    return ok;
}

bool image_load(const char *path, image_kind kind, image *out, problem *p) {
    wholefile file;
    *out = (image){0};
    if (!wholefile_read(path, MAX_FILE, &file, p)) {
        return false;
    }
    const bool ok = image_decode(path, file.bytes, file.size, kind, out, p);
    wholefile_free(&file);
    return ok;
}

void image_free(image *im) {
    free(im->bytes);
    *im = (image){0};
}

// ---- writing ------------------------------------------------------------------------------------

bool image_write_png(const char *path, const unsigned char *bytes, int height, int width,
                     int channels, problem *p) {
    int size = 0;
    if (height < 1 || width < 1 || channels < 1 || channels > 4 ||
        height > INT_MAX / 8 / channels / width) {
        return problem_run(p, "%s: no PNG of %d x %d pixels with %d channels can be written", path,
                           width, height, channels);
    }
    unsigned char *png =
        stbi_write_png_to_mem(bytes, width * channels, width, height, channels, &size);
    if (!png) {
        return problem_run(p, "%s: no memory to compress %d x %d pixels", path, width, height);
    }
    const bool ok = disk_write(path, png, (size_t)size, p);
    free(png);
    return ok;
}
