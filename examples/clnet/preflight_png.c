#include "preflight.h"

#include <stdint.h>
#include <string.h>

enum { SIGNATURE = 8, HEADER = 13, FRAME = 12 }; // bytes; FRAME: a chunk's length, type and CRC

typedef struct png {
    const char *name;
    unsigned char *bytes;
    size_t size, at; // at: where the chunk in hand begins
    size_t kept;     // bytes left so far
    uint32_t length; // of its data
    char type[5];
    int color, interlaced;
    bool stream_closed; // a chunk followed the IDATs
    uint32_t crc_table[256];
    preflight *out;
    problem *p;
} png;

static uint32_t big_endian(const unsigned char *b) {
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | (uint32_t)b[3];
}

static void put_big_endian(unsigned char *b, size_t value) {
    b[0] = (unsigned char)(value >> 24);
    b[1] = (unsigned char)(value >> 16);
    b[2] = (unsigned char)(value >> 8);
    b[3] = (unsigned char)value;
}

static void make_crc_table(uint32_t table[256]) {
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++) {
            table[i] = table[i] & 1 ? 0xEDB88320u ^ table[i] >> 1 : table[i] >> 1;
        }
    }
}

static uint32_t crc(const uint32_t table[256], const unsigned char *bytes, size_t size) {
    uint32_t c = 0xFFFFFFFFu;
    for (size_t i = 0; i < size; i++) {
        c = table[(c ^ bytes[i]) & 0xFF] ^ c >> 8;
    }
    return c ^ 0xFFFFFFFFu;
}

bool preflight_dimensions(const char *name, size_t at, unsigned long height, unsigned long width,
                          problem *p) {
    if (height == 0 || width == 0) {
        return problem_input(p,
                             "%s: offset %zu: image of %lu x %lu pixels, expected at least 1 x 1",
                             name, at, width, height);
    }
    if (height > PREFLIGHT_MAX_SIDE || width > PREFLIGHT_MAX_SIDE) {
        return problem_input(p, "%s: offset %zu: image of %lu x %lu pixels, at most %d a side",
                             name, at, width, height, PREFLIGHT_MAX_SIDE);
    }
    if (height * width > PREFLIGHT_MAX_PIXELS) {
        return problem_input(p, "%s: offset %zu: image of %lu x %lu pixels, at most %d million",
                             name, at, width, height, PREFLIGHT_MAX_PIXELS / 1000000);
    }
    return true;
}

static int channels_of(int color) { return color == 2 ? 3 : color == 4 ? 2 : color == 6 ? 4 : 1; }

static bool depth_allowed(int color, int depth) {
    switch (color) {
    case 0:
        return depth == 1 || depth == 2 || depth == 4 || depth == 8 || depth == 16;
    case 3:
        return depth == 1 || depth == 2 || depth == 4 || depth == 8;
    case 2:
    case 4:
    case 6:
        return depth == 8 || depth == 16;
    default:
        return false;
    }
}

// Bytes of the inflated image: every row has one byte for its filter; an interlaced image is seven
// small ones, of which those without a pixel are absent.
static size_t inflated_size(const png *s) {
    static const int x0[7] = {0, 4, 0, 2, 0, 1, 0}, dx[7] = {8, 8, 4, 4, 2, 2, 1};
    static const int y0[7] = {0, 0, 4, 0, 2, 0, 1}, dy[7] = {8, 8, 8, 4, 4, 2, 2};
    const size_t bits = (size_t)channels_of(s->color) * (size_t)s->out->depth;
    const int height = s->out->height, width = s->out->width;
    if (!s->interlaced) {
        return (size_t)height * (1 + ((size_t)width * bits + 7) / 8);
    }
    size_t sum = 0;
    for (int pass = 0; pass < 7; pass++) {
        const int w = (width - x0[pass] + dx[pass] - 1) / dx[pass];
        const int h = (height - y0[pass] + dy[pass] - 1) / dy[pass];
        sum += w > 0 && h > 0 ? (size_t)h * (1 + ((size_t)w * bits + 7) / 8) : 0;
    }
    return sum;
}

// What the decoder takes at its worst: the stream, the inflated bytes (three times while their
// buffer grows), the samples of a pass and of the image, and three copies while these are
// converted.
static size_t memory_needed(const png *s) {
    const size_t pixels = (size_t)s->out->height * (size_t)s->out->width;
    const size_t samples = pixels * (size_t)channels_of(s->color) * (s->out->depth == 16 ? 2 : 1);
    return ((size_t)1 << 20) + s->size + 4 * s->out->inflated + 2 * samples + 9 * pixels;
}

static bool read_header(png *s) {
    const unsigned char *b = s->bytes + s->at + 8;
    if (s->length != HEADER) {
        return problem_input(s->p, "%s: offset %zu: IHDR has %u bytes, expected %d", s->name, s->at,
                             s->length, HEADER);
    }
    const uint32_t width = big_endian(b), height = big_endian(b + 4);
    if (!preflight_dimensions(s->name, s->at + 8, height, width, s->p)) {
        return false;
    }
    s->out->height = (int)height;
    s->out->width = (int)width;
    s->out->depth = b[8];
    s->color = b[9];
    s->interlaced = b[12];
    if (!depth_allowed(s->color, s->out->depth)) {
        return problem_input(s->p, "%s: offset %zu: colour type %d with %d bits does not exist",
                             s->name, s->at + 16, s->color, s->out->depth);
    }
    if (b[10] != 0 || b[11] != 0 || b[12] > 1) {
        return problem_input(s->p,
                             "%s: offset %zu: compression %d, filter %d, interlace %d; known are "
                             "0, 0 and 0 or 1",
                             s->name, s->at + 18, b[10], b[11], b[12]);
    }
    s->out->inflated = inflated_size(s);
    s->kept = SIGNATURE + FRAME + HEADER;
    s->out->stream_at = s->kept + 8;
    return true;
}

static bool read_palette(png *s) {
    const uint32_t most = s->color == 3 ? 3u << s->out->depth : 768;
    if (s->out->stream_size > 0 || s->out->colors > 0) {
        return problem_input(s->p, "%s: offset %zu: %s", s->name, s->at,
                             s->out->colors > 0 ? "second PLTE" : "PLTE behind IDAT");
    }
    if (s->length == 0 || s->length % 3 != 0 || s->length > most) {
        return problem_input(s->p,
                             "%s: offset %zu: PLTE has %u bytes, expected a multiple of 3 up "
                             "to %u",
                             s->name, s->at, s->length, most);
    }
    if (s->color == 3) {
        s->out->colors = (int)(s->length / 3);
        memcpy(s->out->palette, s->bytes + s->at + 8, s->length);
    }
    return true;
}

// Joins the data of all IDATs behind one chunk head.
static bool read_data(png *s) {
    if (s->length == 0) {
        return problem_input(s->p, "%s: offset %zu: IDAT without data", s->name, s->at);
    }
    if (s->stream_closed) {
        return problem_input(s->p, "%s: offset %zu: IDAT apart from the others", s->name, s->at);
    }
    if (s->color == 3 && s->out->colors == 0) {
        return problem_input(s->p, "%s: offset %zu: IDAT without a PLTE before it", s->name, s->at);
    }
    memmove(s->bytes + s->out->stream_at + s->out->stream_size, s->bytes + s->at + 8, s->length);
    s->out->stream_size += s->length;
    return true;
}

// Checks the frame of the chunk at s->at: whole, a name of letters, the right CRC.
static bool read_frame(png *s) {
    const unsigned char *b = s->bytes + s->at;
    if (s->size - s->at < FRAME) {
        return problem_input(s->p, "%s: offset %zu: ends without IEND", s->name, s->at);
    }
    s->length = big_endian(b);
    memcpy(s->type, b + 4, 4);
    for (int i = 0; i < 4; i++) {
        const char lower = (char)(s->type[i] | 0x20);
        if (lower < 'a' || lower > 'z') {
            return problem_input(s->p,
                                 "%s: offset %zu: chunk type %02X %02X %02X %02X, expected "
                                 "four letters",
                                 s->name, s->at + 4, b[4], b[5], b[6], b[7]);
        }
    }
    if (s->length > s->size - s->at - FRAME) {
        return problem_input(s->p, "%s: offset %zu: chunk %s of %u bytes, but %zu are left",
                             s->name, s->at, s->type, s->length, s->size - s->at - FRAME);
    }
    const uint32_t found = big_endian(b + 8 + s->length),
                   expected = crc(s->crc_table, b + 4, (size_t)s->length + 4);
    if (found != expected) {
        return problem_input(s->p, "%s: offset %zu: chunk %s has the CRC %08X, its bytes give %08X",
                             s->name, s->at, s->type, found, expected);
    }
    return true;
}

static bool read_chunk(png *s) {
    const bool first = s->at == SIGNATURE, header = strcmp(s->type, "IHDR") == 0;
    if (first != header) {
        return problem_input(s->p, "%s: offset %zu: %s %s", s->name, s->at,
                             first ? "the first chunk is not IHDR but" : "second", s->type);
    }
    if (header) {
        return read_header(s);
    }
    if (strcmp(s->type, "IDAT") == 0) {
        return read_data(s);
    }
    s->stream_closed = s->out->stream_size > 0;
    if (strcmp(s->type, "PLTE") == 0) {
        return read_palette(s);
    }
    if (!(s->type[0] & 0x20) && strcmp(s->type, "IEND") != 0) {
        return problem_input(s->p,
                             "%s: offset %zu: chunk %s is necessary to read this file, but "
                             "not known",
                             s->name, s->at, s->type);
    }
    return true; // an ancillary chunk: dropped
}

// What the decoder gets: signature, IHDR, one IDAT, IEND. Its CRCs are not looked at again.
static void finish(png *s) {
    unsigned char *head = s->bytes + s->kept;
    unsigned char *tail = s->bytes + s->out->stream_at + s->out->stream_size;
    put_big_endian(head, s->out->stream_size);
    memcpy(head + 4, "IDAT", 4);
    memset(tail, 0, 4);
    memcpy(tail + 4, "\0\0\0\0IEND\xAE\x42\x60\x82", 12);
    s->out->size = s->out->stream_at + s->out->stream_size + 4 + FRAME;
    if (s->out->colors > 0) {
        s->bytes[SIGNATURE + 8 + 9] = 0; // the colour type: grey
    }
    s->out->memory = memory_needed(s);
}

bool preflight_png(const char *name, unsigned char *bytes, size_t size, preflight *out,
                   problem *p) {
    *out = (preflight){0};
    png s = {.name = name, .bytes = bytes, .size = size, .at = SIGNATURE, .out = out, .p = p};
    if (size < SIGNATURE || memcmp(bytes, "\x89PNG\r\n\x1A\n", SIGNATURE) != 0) {
        return problem_input(p, "%s: offset 0: damaged PNG signature", name);
    }
    make_crc_table(s.crc_table);
    do {
        if (!read_frame(&s) || !read_chunk(&s)) {
            return false;
        }
        s.at += FRAME + (size_t)s.length;
    } while (strcmp(s.type, "IEND") != 0);
    if (out->stream_size == 0) {
        return problem_input(p, "%s: offset %zu: IEND without any IDAT", name, s.at - FRAME);
    }
    finish(&s);
    return true;
}
