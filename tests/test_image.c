// Image files: good ones give the right bytes, hostile ones (built here, byte by byte) are refused
// with a sentence that names file and fault, and no change of a file does worse than that.
// The numbers H01.. are those of the cases in the list of hostile inputs.
#define _POSIX_C_SOURCE 200809L
#include "image.h"
#include "preflight.h"
#include "test.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#include <stb/stb_image_write.h>

// ---- bytes --------------------------------------------------------------------------------------

typedef struct bytes {
    unsigned char *at;
    size_t size, room;
} bytes;

static void add(bytes *b, const void *from, size_t size) {
    if (b->size + size > b->room) {
        b->room = 2 * (b->size + size);
        b->at = realloc(b->at, b->room);
        if (!b->at) {
            abort();
        }
    }
    if (size > 0) {
        memcpy(b->at + b->size, from, size);
    }
    b->size += size;
}

static void add_byte(bytes *b, int value) {
    const unsigned char c = (unsigned char)value;
    add(b, &c, 1);
}

static void add_word(bytes *b, size_t value) {
    add_byte(b, (int)(value >> 8 & 255));
    add_byte(b, (int)(value & 255));
}

static void add_long(bytes *b, size_t value) {
    add_word(b, value >> 16 & 65535);
    add_word(b, value & 65535);
}

static bytes copy(const bytes *b) {
    bytes c = {0};
    add(&c, b->at, b->size);
    return c;
}

static void drop(bytes *b) {
    free(b->at);
    *b = (bytes){0};
}

// Replaces `removed` bytes at `at` by others.
static void splice(bytes *b, size_t at, size_t removed, const void *put, size_t size) {
    bytes c = {0};
    add(&c, b->at, at);
    add(&c, put, size);
    add(&c, b->at + at + removed, b->size - at - removed);
    drop(b);
    *b = c;
}

// ---- verdicts -----------------------------------------------------------------------------------

// Decodes a copy, so that the bytes can be used again, in memory of exactly this size.
static bool decode(const bytes *b, image_kind kind, image *im, problem *p) {
    unsigned char *exact = malloc(b->size ? b->size : 1);
    if (b->size > 0) {
        memcpy(exact, b->at, b->size);
    }
    const bool ok = image_decode("some.file", exact, b->size, kind, im, p);
    free(exact);
    return ok;
}

static void refused_as(const char *what, const bytes *b, image_kind kind, const char *text) {
    image im;
    problem p = {0};
    const bool ok = decode(b, kind, &im, &p);
    CHECK(!ok, "%s was accepted", what);
    CHECK(p.status == EXIT_USAGE, "%s: status %d, %s", what, p.status, p.text);
    CHECK(strstr(p.text, text) && strstr(p.text, "some.file: "), "%s: \"%s\" has no \"%s\"", what,
          p.text, text);
    CHECK(im.bytes == NULL, "%s left an image", what);
    image_free(&im);
}

static void refused(const char *what, const bytes *b, const char *text) {
    refused_as(what, b, IMAGE_RGB, text);
}

static image accepted_as(const char *what, const bytes *b, image_kind kind, int height, int width) {
    image im;
    problem p = {0};
    const bool ok = decode(b, kind, &im, &p);
    CHECK(ok, "%s: %s", what, p.text);
    CHECK(im.height == height && im.width == width && im.channels == (kind == IMAGE_RGB ? 3 : 1),
          "%s: %d x %d x %d", what, im.height, im.width, im.channels);
    return im;
}

static void accepted(const char *what, const bytes *b, int height, int width) {
    image im = accepted_as(what, b, IMAGE_RGB, height, width);
    image_free(&im);
}

// ---- JPEG ---------------------------------------------------------------------------------------

static void segment(bytes *b, int marker, const void *body, size_t size) {
    add_byte(b, 0xFF);
    add_byte(b, marker);
    add_word(b, size + 2);
    add(b, body, size);
}

// A table whose codes are all `length` bits long: code i stands for symbols[i].
static void huffman_segment(bytes *b, int id, int length, int count, const char *symbols) {
    unsigned char body[17 + 256] = {(unsigned char)id};
    body[length] = (unsigned char)count;
    memcpy(body + 17, symbols, (size_t)count);
    segment(b, 0xC4, body, 17 + (size_t)count);
}

// Quantisers of 8, and the frame; colour has half the resolution, as usual.
static void frame_segments(bytes *b, int sof, int height, int width, int channels) {
    unsigned char quantiser[65] = {0};
    memset(quantiser + 1, 8, 64);
    const unsigned char frame[] = {8,
                                   (unsigned char)(height >> 8),
                                   (unsigned char)height,
                                   (unsigned char)(width >> 8),
                                   (unsigned char)width,
                                   (unsigned char)channels,
                                   1,
                                   channels == 3 ? 0x22 : 0x11,
                                   0,
                                   2,
                                   0x11,
                                   0,
                                   3,
                                   0x11,
                                   0};
    add(b, "\xFF\xD8", 2);
    segment(b, 0xDB, quantiser, sizeof quantiser);
    segment(b, sof, frame, 6 + 3 * (size_t)channels);
}

// Bits of a scan; an FF among the bytes is followed by 00.
typedef struct bit_writer {
    bytes *to;
    unsigned held;
    int count;
} bit_writer;

static void put_bits(bit_writer *w, unsigned value, int size) {
    while (size-- > 0) {
        w->held = w->held << 1 | (value >> size & 1);
        if (++w->count == 8) {
            add_byte(w->to, (int)(w->held & 255));
            if ((w->held & 255) == 255) {
                add_byte(w->to, 0);
            }
            w->count = 0;
        }
    }
}

// Baseline JPEG with blocks of three coefficients that differ from block to block. Codes: DC of 4
// bits for the symbols 0 to 11, AC of 3 bits for the six below.
static bytes jpeg(int height, int width, int channels) {
    bytes b = {0};
    bit_writer w = {.to = &b};
    const int mcu = channels == 3 ? 16 : 8;
    const int mcus = ((height + mcu - 1) / mcu) * ((width + mcu - 1) / mcu);
    frame_segments(&b, 0xC0, height, width, channels);
    huffman_segment(&b, 0x00, 4, 12, "\0\1\2\3\4\5\6\7\x08\x09\x0A\x0B");
    huffman_segment(&b, 0x10, 3, 6, "\0\1\2\x11\x13\xF0");
    const unsigned char scan[] = {3, 1, 0, 2, 0, 3, 0, 0, 63, 0}, grey[] = {1, 1, 0, 0, 63, 0};
    segment(&b, 0xDA, channels == 3 ? scan : grey, channels == 3 ? sizeof scan : sizeof grey);
    for (int i = 0; i < mcus * (channels == 3 ? 6 : 1); i++) {
        put_bits(&w, 4, 4); // DC: a difference of 4 bits
        put_bits(&w, (unsigned)(i == 0 ? 15 : i * 7) & 15, 4);
        put_bits(&w, 2, 3); // AC: a value of 2 bits,
        put_bits(&w, (unsigned)i & 3, 2);
        put_bits(&w, 4, 3); // behind one zero a value of 3,
        put_bits(&w, (unsigned)(i * 5) & 7, 3);
        put_bits(&w, 0, 3); // and the end of the block
    }
    put_bits(&w, 127, w.count > 0 ? 8 - w.count : 0);
    add(&b, "\xFF\xD9", 2);
    return b;
}

// Where the marker FF code stands, walking the segments from the start.
static size_t find(const bytes *b, int code) {
    size_t at = 2;
    while (b->at[at + 1] != code && b->at[at + 1] != 0xDA) {
        at += 2 + (size_t)(b->at[at + 2] << 8 | b->at[at + 3]);
    }
    return at;
}

static size_t entropy_of(const bytes *b) {
    const size_t at = find(b, 0xDA);
    return at + 2 + (size_t)(b->at[at + 2] << 8 | b->at[at + 3]);
}

// A copy of the base with one byte changed, refused with this text.
static void changed(const char *what, const bytes *base, size_t at, int value, const char *text) {
    bytes b = copy(base);
    b.at[at] = (unsigned char)value;
    refused(what, &b, text);
    drop(&b);
}

// A copy of the base with bytes put in, refused with this text.
static void inserted(const char *what, const bytes *base, size_t at, const void *put, size_t size,
                     const char *text) {
    bytes b = copy(base);
    splice(&b, at, 0, put, size);
    refused(what, &b, text);
    drop(&b);
}

static void scan_segment(bytes *b, int ss, int se, int bits, const char *data, size_t size) {
    const unsigned char body[] = {
        1, 1, 0, (unsigned char)ss, (unsigned char)se, (unsigned char)bits};
    segment(b, 0xDA, body, sizeof body);
    add(b, data, size);
}

// A grey image up to its scans. DC codes: 00 = 0 bits, 01 = 1, 10 = 2. AC: 00 = end of block, 01 =
// 1.
static void start(bytes *b, int sof, int height, int width) {
    frame_segments(b, sof, height, width, 1);
    huffman_segment(b, 0x00, 2, 3, "\0\1\2");
    huffman_segment(b, 0x10, 2, 2, "\0\1");
}

// A progressive grey image of 8 x 8 pixels in all four kinds of scans.
static bytes progressive(void) {
    bytes b = {0};
    start(&b, 0xC2, 8, 8);
    scan_segment(&b, 0, 0, 0x01, "\xBF", 1);   // 10 11: DC = 3 << 1
    scan_segment(&b, 1, 63, 0x01, "\x63", 1);  // 01 1 00: first AC = 1 << 1, end of block
    scan_segment(&b, 0, 0, 0x10, "\xFF\0", 2); // DC + 1
    scan_segment(&b, 1, 63, 0x10, "\x2F", 1);  // 00 1: end of block, the old coefficient + 1
    add(&b, "\xFF\xD9", 2);
    return b;
}

static void test_jpeg_headers(void) {
    const bytes base = jpeg(16, 24, 3);
    const size_t sof = find(&base, 0xC0), dht = find(&base, 0xC4), dqt = find(&base, 0xDB);
    const size_t sos = find(&base, 0xDA);
    unsigned char counts[17 + 1020] = {0};
    accepted("base", &base, 16, 24);

    bytes b = copy(&base); // H06, H07
    memset(counts + 1, 64, 16);
    const unsigned char long_length[] = {0xFF, 0xC4, (17 + 1020 + 2) >> 8, (17 + 1020 + 2) & 255};
    splice(&b, dht, 0, counts, sizeof counts);
    splice(&b, dht, 0, long_length, 4);
    refused("H06 1,024 codes", &b, "Huffman table with 1024 codes, at most 255");
    for (int i = 1; i <= 16; i++) {
        b.at[dht + 4 + (size_t)i] = (unsigned char)(i <= 3 ? 218 : 0);
    }
    refused("H06 654 codes", &b, "Huffman table with 654 codes, at most 255");
    memset(b.at + dht + 5, 0, 16);
    b.at[dht + 5] = 3;
    refused("H07", &b, "more codes than its lengths allow");
    b.at[dht + 5] = 0;
    b.at[dht + 4] = 0x20;
    refused("DHT class 2", &b, "Huffman table 0 of class 2");
    b.at[dht + 4] = 0x04;
    refused("DHT id 4", &b, "Huffman table 4 of class 0");
    drop(&b);
    changed("DC symbol 12", &base, dht + 21, 12, "DC Huffman table with the symbol 12");
    changed("DHT too long for its segment", &base, dht + 5, 200, "Huffman table");

    changed("H08 quantiser", &base, sof + 12, 3, "uses quantiser 3, which is not defined");
    changed("H08 DC", &base, sos + 6, 0x20, "uses a Huffman table that is not defined");
    changed("H08 AC", &base, sos + 6, 0x02, "uses a Huffman table that is not defined");
    changed("DQT type", &base, dqt + 4, 0x20, "quantiser 0 of type 2");
    changed("DQT wide", &base, dqt + 4, 0x10, "quantiser ");
    b = copy(&base); // H09
    memset(b.at + sof + 5, 0xFF, 4);
    refused("H09 65,535", &b, "65535 x 65535 pixels, at most 16384 a side");
    memcpy(b.at + sof + 5, "\x40\0\x40\0", 4);
    refused("H09 268 million", &b, "16384 x 16384 pixels, at most 100 million");
    memset(b.at + sof + 5, 0, 2);
    refused("H09 zero", &b, "16384 x 0 pixels");
    drop(&b);
    inserted("H10", &base, sos, base.at + sof, 19, "second frame header");
    changed("H11", &base, sof + 13, 1, "two components with the id 1");
    changed("H12 zero", &base, sof + 11, 0x01, "sampling 0 x 1, expected 1 to 4");
    changed("H12 five", &base, sof + 11, 0x15, "sampling 1 x 5, expected 1 to 4");
    changed("sampling 3 of 2", &base, sof + 14, 0x31, "is no part of");
    changed("H13 two", &base, sof + 9, 2, "2 components, expected 1 or 3");
    changed("H13 one", &base, sof + 9, 1, "frame header of 15 bytes, expected 9 for 1");
    changed("H14 12 bits", &base, sof + 4, 12, "12 bits a sample");
    changed("H14 CMYK", &base, sof + 9, 4, "4 components (CMYK or YCCK)");
    changed("H14 lossless", &base, sof + 1, 0xC3, "lossless JPEG");
    changed("H14 arithmetic", &base, sof + 1, 0xC9, "arithmetic coding");
    changed("H14 hierarchical", &base, sof + 1, 0xC5, "hierarchical JPEG");
    changed("scan of nothing", &base, sos + 5, 9, "component 9, which the frame does not have");
    changed("scan twice of one", &base, sos + 7, 1, "scan with the component 1 twice");
    changed("scan tables", &base, sos + 6, 0x40, "Huffman tables 4 and 0, at most 3");
    changed("scan counts", &base, sos + 4, 2, "scan header of 10 bytes for 2 components");
    changed("scan bits", &base, sos + 13, 0x11, "no scan of a sequential image");
    changed("unknown marker", &base, dqt + 1, 0x02, "unknown marker 02");
    changed("no marker", &base, dqt, 0x00, "expected a marker, found the byte 00");
    changed("segment beyond", &base, dqt + 2, 0xFF, "segment DB of");
    inserted("late height", &base, sof, "\xFF\xDC\0\4\0\1", 6, "a height that comes after");
    inserted("odd DRI", &base, sof, "\xFF\xDD\0\5\0\1\1", 7, "restart interval of 3 bytes");
    b = copy(&base);
    splice(&b, sof, 19, "", 0);
    refused("no frame", &b, "scan before the frame header");
    drop(&b);
    b = copy(&base); // a scan of the first component only
    splice(&b, sos, entropy_of(&base) - sos, "\xFF\xDA\0\x08\1\1\0\0\x3F\0", 10);
    refused("two components without a scan", &b, "");
    drop(&b);
    changed("H14 Adobe RGB is colour as it is", &base, 0, 0, "neither JPEG nor PNG");
    b = copy(&base);
    splice(&b, 2, find(&base, 0xDB) - 2,
           "\xFF\xEE\0\x0E"
           "Adobe\0\x64\0\0\0\0\0",
           16);
    image rgb = accepted_as("H14 Adobe RGB", &b, IMAGE_RGB, 16, 24);
    image ycc = accepted_as("YCbCr", &base, IMAGE_RGB, 16, 24);
    CHECK(rgb.bytes && ycc.bytes && memcmp(rgb.bytes, ycc.bytes, 16 * 24 * 3) != 0,
          "the Adobe segment changed nothing");
    image_free(&rgb);
    image_free(&ycc);
    drop(&b);
    bytes g = base;
    drop(&g);
}

static void test_jpeg_scans(void) {
    bytes b = {0};
    for (int scans = 0; scans < 2; scans++) { // H15
        b = progressive();
        b.size -= 2;
        for (int i = 0; i < (scans ? 10000 : 90); i++) {
            scan_segment(&b, 1, 63, 0x00, "\x3F", 1);
        }
        add(&b, "\xFF\xD9", 2);
        const clock_t begin = clock();
        if (scans) {
            refused("H15", &b, "more than 100 scans");
        } else {
            accepted("94 scans", &b, 8, 8);
        }
        CHECK(clock() - begin < CLOCKS_PER_SEC, "H15 took a second");
        drop(&b);
    }
    b = progressive();
    image im = accepted_as("progressive", &b, IMAGE_RGB, 8, 8);
    // DC = 7 * 8 adds 7 to each pixel; the first AC coefficient, 3 * 8, tilts the rows by 4.2 each
    // way.
    CHECK(im.bytes && im.bytes[0] == 139 && im.bytes[3 * 7] == 131, "progressive pixels %d .. %d",
          im.bytes ? im.bytes[0] : -1, im.bytes ? im.bytes[3 * 7] : -1);
    image_free(&im);
    b.at[find(&b, 0xDA) + 7] = 5;
    refused("progressive: DC and AC at once", &b, "no scan of a progressive image");
    drop(&b);

    b = (bytes){0}; // H16: 3 blocks of grey, a restart after each
    start(&b, 0xC0, 8, 24);
    segment(&b, 0xDD, "\0\1", 2);
    scan_segment(&b, 0, 63, 0, "\x0F\xFF\xD0\x0F\xFF\xD1\x0F\xFF\xD9", 9);
    const size_t scan = entropy_of(&b);
    accepted("restart markers", &b, 8, 24);
    changed("H16 wrong", &b, scan + 2, 0xD3, "expected the restart marker D0, found D3");
    changed("H16 wrong later", &b, scan + 5, 0xD0, "expected the restart marker D1, found D0");
    changed("H16 undeclared", &b, scan - 11, 0, "scan 1 is damaged in unit 2 of the 3");
    bytes missing = copy(&b);
    splice(&missing, scan + 1, 2, "", 0);
    refused("H16 missing", &missing, "bytes left over before a restart marker");
    drop(&missing);
    inserted("H16 one more", &b, scan + 7, "\xFF\xD2\x0F", 3, "restart marker D2 behind its last");
    inserted("bytes before a restart", &b, scan + 1, "\x55\x55", 2, "bytes left over");
    changed("no code", &b, scan, 0xFF, "damaged in unit 1 of the 1");
    drop(&b);

    b = jpeg(16, 24, 3); // the entropy-coded bytes end too early, although the end marker is there
    const size_t entropy = entropy_of(&b);
    for (size_t kept = 0; entropy + kept + 4 < b.size; kept += 3) {
        bytes cut = copy(&b);
        splice(&cut, entropy + kept, cut.size - 2 - entropy - kept, "", 0);
        refused("scan cut", &cut, "the data end early");
        drop(&cut);
    }
    drop(&b);
}

static void test_jpeg_tail(void) {
    bytes b = jpeg(16, 24, 3);
    image plain = accepted_as("plain", &b, IMAGE_RGB, 16, 24);
    for (size_t size = 0; size < b.size; size++) { // H17
        const bytes cut = {.at = b.at, .size = size};
        refused("H17", &cut, size == 0 ? "empty file" : size == 1 ? "neither JPEG nor PNG" : "");
    }
    add(&b, "trailing \xFF\xC4 garbage", 19);
    accepted("H18", &b, 16, 24);
    bytes exif = copy(&b); // H19: orientation 6 says "turn it"; the picture stays 24 wide
    splice(&exif, 2, 0,
           "\xFF\xE1\0\x22"
           "Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0",
           36);
    image turned = accepted_as("H19", &exif, IMAGE_RGB, 16, 24);
    CHECK(plain.bytes && turned.bytes && memcmp(plain.bytes, turned.bytes, 16 * 24 * 3) == 0,
          "EXIF changed the pixels");
    image_free(&turned);
    drop(&exif);
    // A bad table hidden in a comment, behind fill bytes and unused entropy-coded bytes, must not
    // come to life in the decoder: its own idea of where markers are differs from the standard's.
    bytes hidden = jpeg(16, 24, 3), evil = {0};
    unsigned char counts[17] = {0};
    memset(counts + 1, 255, 16);
    add(&evil, "\x55\x55\xFF\xFF\xFE", 5);
    add_word(&evil, 2 + 4 + 17);
    add(&evil, "\xFF\xC4\x13\x37", 4);
    add(&evil, counts, 17);
    splice(&hidden, hidden.size - 2, 0, evil.at, evil.size);
    accepted("hidden table", &hidden, 16, 24);
    drop(&evil);
    drop(&hidden);
    image_free(&plain);
    drop(&b);
    b = jpeg(9, 17, 1); // H31
    image grey = accepted_as("H31", &b, IMAGE_RGB, 9, 17);
    for (int i = 0; grey.bytes && i < 9 * 17; i++) {
        CHECK(grey.bytes[3 * i] == grey.bytes[3 * i + 1] &&
                  grey.bytes[3 * i] == grey.bytes[3 * i + 2],
              "grey pixel %d has a colour", i);
    }
    image_free(&grey);
    drop(&b);
}

// ---- PNG ----------------------------------------------------------------------------------------

static void chunk(bytes *b, const char *type, const void *data, size_t size) {
    add_long(b, size);
    const size_t begin = b->size;
    add(b, type, 4);
    add(b, data, size);
    add_long(b, stbiw__crc32(b->at + begin, (int)(size + 4)));
}

static void png_head(bytes *b, size_t height, size_t width, int depth, int color, int interlace) {
    bytes head = {0};
    add_long(&head, width);
    add_long(&head, height);
    add_byte(&head, depth);
    add_byte(&head, color);
    add_word(&head, 0);
    add_byte(&head, interlace);
    add(b, "\x89PNG\r\n\x1A\n", 8);
    chunk(b, "IHDR", head.at, head.size);
    drop(&head);
}

// Whole PNG from its rows, each beginning with a filter byte. palette: colors * 3 bytes, or NULL.
static bytes png(int height, int width, int depth, int color, int interlace, const void *rows,
                 size_t size, const void *palette, size_t colors) {
    bytes b = {0};
    int packed_size = 0;
    unsigned char *packed =
        stbi_zlib_compress((unsigned char *)(uintptr_t)rows, (int)size, &packed_size, 8);
    png_head(&b, (size_t)height, (size_t)width, depth, color, interlace);
    if (palette) {
        chunk(&b, "PLTE", palette, 3 * colors);
    }
    chunk(&b, "IDAT", packed, (size_t)packed_size);
    chunk(&b, "IEND", "", 0);
    free(packed);
    return b;
}

static bytes small_png(void) {
    unsigned char rows[5 * (1 + 7 * 3)];
    for (size_t i = 0; i < sizeof rows; i++) {
        rows[i] = (unsigned char)(i % 22 == 0 ? i / 22 : i * 53);
    }
    return png(5, 7, 8, 2, 0, rows, sizeof rows, NULL, 0);
}

// Sets the CRC of the chunk at `at` right after a change.
static void fix_crc(bytes *b, size_t at) {
    const size_t size = (size_t)b->at[at + 2] << 8 | b->at[at + 3];
    const unsigned crc = stbiw__crc32(b->at + at + 4, (int)size + 4);
    for (int i = 0; i < 4; i++) {
        b->at[at + 8 + size + (size_t)i] = (unsigned char)(crc >> (24 - 8 * i));
    }
}

// The first chunk behind IHDR.
enum { IHDR_AT = 8, SECOND_CHUNK = 33 };

static void test_png_structure(void) {
    const bytes base = small_png();
    const size_t data_size = (size_t)base.at[SECOND_CHUNK + 2] << 8 | base.at[SECOND_CHUNK + 3];
    const size_t adler = SECOND_CHUNK + 8 + data_size - 4, end = SECOND_CHUNK + 12 + data_size;
    accepted("base", &base, 5, 7);
    changed("H20 IHDR", &base, 20, 9, "chunk IHDR has the CRC");
    changed("H20 IDAT", &base, SECOND_CHUNK + 20, base.at[SECOND_CHUNK + 20] ^ 1,
            "chunk IDAT has the CRC");
    bytes b = copy(&base);
    b.at[adler] ^= 1;
    fix_crc(&b, SECOND_CHUNK);
    refused("H21", &b, "is stored");
    drop(&b);
    image plain = accepted_as("plain", &base, IMAGE_RGB, 5, 7);
    size_t same = 0;
    for (size_t at = SECOND_CHUNK + 8; at < adler; at++) { // H22: refused, or a bit without meaning
        b = copy(&base);
        b.at[at] ^= 0x20;
        fix_crc(&b, SECOND_CHUNK);
        image im;
        problem p = {0};
        if (decode(&b, IMAGE_RGB, &im, &p)) {
            CHECK(memcmp(im.bytes, plain.bytes, 5 * 7 * 3) == 0, "H22: byte %zu changed pixels",
                  at);
            same++;
        }
        image_free(&im);
        drop(&b);
    }
    CHECK(same <= 2, "H22: %zu of %zu changes were accepted", same, data_size);
    image_free(&plain);
    b = copy(&base);
    b.size = end;
    refused("H23", &b, "ends without IEND");
    drop(&b);
    b = copy(&base);
    bytes empty = {0};
    chunk(&empty, "IDAT", "", 0);
    splice(&b, SECOND_CHUNK, 0, empty.at, empty.size);
    refused("H24", &b, "IDAT without data");
    drop(&b);
    drop(&empty);
    b = copy(&base);
    splice(&b, SECOND_CHUNK, 12 + data_size, "", 0);
    refused("no IDAT", &b, "IEND without any IDAT");
    drop(&b);
    for (size_t size = 0; size < base.size; size++) {
        const bytes cut = {.at = base.at, .size = size};
        refused("PNG cut", &cut, size == 0 ? "empty file" : "");
    }
    b = copy(&base);
    add(&b, "behind the end", 14);
    accepted("H18 PNG", &b, 5, 7);
    drop(&b);
    changed("signature", &base, 5, 'x', "damaged PNG signature");
    b = copy(&base);
    bytes extra = {0};
    chunk(&extra, "ABCD", "x", 1);
    splice(&b, SECOND_CHUNK, 0, extra.at, extra.size);
    refused("unknown critical chunk", &b, "chunk ABCD is necessary");
    memcpy(b.at + SECOND_CHUNK + 4, "aBC\x01", 4);
    refused("chunk type", &b, "expected four letters");
    drop(&b);
    drop(&extra);
    chunk(&extra, "teXt", "x", 1);
    chunk(&extra, "IDAT", "x", 1);
    b = copy(&base);
    splice(&b, end, 0, extra.at, extra.size);
    refused("IDATs apart", &b, "IDAT apart from the others");
    drop(&b);
    drop(&extra);
    inserted("second IHDR", &base, SECOND_CHUNK, base.at + 8, 25, "second IHDR");
    changed("chunk beyond", &base, SECOND_CHUNK, 0x7F, "are left");
    bytes g = base;
    drop(&g);
}

static void test_png_headers(void) {
    const struct {
        const char *what, *text;
        size_t height, width;
        int depth, color, interlace;
    } cases[] = {
        {"H29", "2147483648 x 1 pixels, at most 16384 a side", 1, 0x80000000u, 8, 0, 0},
        {"zero", "0 x 1 pixels", 1, 0, 8, 0, 0},
        {"H32", "16385 x 1 pixels, at most 16384 a side", 1, 16385, 8, 0, 0},
        {"pixels", "16000 x 16000 pixels, at most 100 million", 16000, 16000, 8, 0, 0},
        {"type 1", "colour type 1 with 8 bits", 1, 1, 8, 1, 0},
        {"type 7", "colour type 7 with 8 bits", 1, 1, 8, 7, 0},
        {"3 bits", "colour type 0 with 3 bits", 1, 1, 3, 0, 0},
        {"4 bits of RGB", "colour type 2 with 4 bits", 1, 1, 4, 2, 0},
        {"16 bits of palette", "colour type 3 with 16 bits", 1, 1, 16, 3, 0},
        {"interlace 2", "interlace 2", 1, 1, 8, 0, 2},
        {"no palette", "IDAT without a PLTE", 1, 1, 8, 3, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bytes b = {0};
        png_head(&b, cases[i].height, cases[i].width, cases[i].depth, cases[i].color,
                 cases[i].interlace);
        chunk(&b, "IDAT", "x\x9C\3\0\0\0\0\1", 8);
        chunk(&b, "IEND", "", 0);
        refused(cases[i].what, &b, cases[i].text);
        drop(&b);
    }
    bytes b = small_png();
    b.at[IHDR_AT + 3] = 12;
    refused("IHDR of 12 bytes", &b, "");
    drop(&b);
}

// H25: 64 MiB of zeros pack into 65 KB; said to be a picture of 10 x 10, they never get room.
static void test_png_bomb(void) {
    const size_t size = 64 << 20;
    unsigned char *zeros = calloc(size, 1);
    bytes b = png(10, 10, 8, 0, 0, zeros, size, NULL, 0);
    free(zeros);
    const clock_t begin = clock();
    refused("H25", &b, "cannot be inflated to the 110 bytes expected");
    CHECK(clock() - begin < CLOCKS_PER_SEC, "H25 took a second");
    drop(&b);
    b = png(10, 10, 8, 0, 0, "\0\1\2", 3, NULL, 0);
    refused("too few rows", &b, "inflate to 3 bytes, expected 110");
    drop(&b);
    unsigned char rows[110] = {0};
    rows[11] = 5;
    b = png(10, 10, 8, 0, 0, rows, sizeof rows, NULL, 0);
    refused("filter 5", &b, "cannot be decoded: invalid filter");
    drop(&b);
}

static void check_pixels(const char *what, bytes b, int height, int width, image_kind kind,
                         const unsigned char *expected) {
    image im = accepted_as(what, &b, kind, height, width);
    const int count = height * width * (kind == IMAGE_RGB ? 3 : 1);
    for (int i = 0; im.bytes && i < count; i++) {
        CHECK(im.bytes[i] == expected[i], "%s: value %d is %d, expected %d", what, i, im.bytes[i],
              expected[i]);
    }
    image_free(&im);
    drop(&b);
}

static void test_png_kinds(void) { // H26 to H28, H30
    const unsigned char palette[] = {10, 20, 30, 0, 0, 0, 255, 255, 255};
    check_pixels("1 bit", png(1, 4, 1, 0, 0, "\0\x50", 2, NULL, 0), 1, 4, IMAGE_MASK,
                 (const unsigned char *)"\0\xFF\0\xFF");
    check_pixels("2 bits", png(1, 4, 2, 0, 0, "\0\x1B", 2, NULL, 0), 1, 4, IMAGE_MASK,
                 (const unsigned char *)"\0\x55\xAA\xFF");
    check_pixels("4 bits", png(1, 2, 4, 0, 0, "\0\x1F", 2, NULL, 0), 1, 2, IMAGE_MASK,
                 (const unsigned char *)"\x11\xFF");
    check_pixels("16 bits", png(1, 2, 16, 0, 0, "\0\x12\x34\xFF\0", 5, NULL, 0), 1, 2, IMAGE_MASK,
                 (const unsigned char *)"\x12\xFF");
    check_pixels("grey and alpha", png(1, 2, 8, 4, 0, "\0\xC8\0\xC9\xFF", 5, NULL, 0), 1, 2,
                 IMAGE_MASK, (const unsigned char *)"\xC8\xC9");
    check_pixels("RGBA", png(1, 1, 8, 6, 0, "\0\1\2\3\4", 5, NULL, 0), 1, 1, IMAGE_RGB,
                 (const unsigned char *)"\1\2\3");
    check_pixels("16-bit RGB", png(1, 1, 16, 2, 0, "\0\1\xFF\2\xFF\3\xFF", 7, NULL, 0), 1, 1,
                 IMAGE_RGB, (const unsigned char *)"\1\2\3");
    check_pixels("palette", png(1, 3, 8, 3, 0, "\0\2\0\1", 4, palette, 3), 1, 3, IMAGE_RGB,
                 (const unsigned char *)"\xFF\xFF\xFF\x0A\x14\x1E\0\0\0");
    check_pixels("palette of 2 bits", png(1, 3, 2, 3, 0, "\0\x84", 2, palette, 3), 1, 3, IMAGE_RGB,
                 (const unsigned char *)"\xFF\xFF\xFF\x0A\x14\x1E\0\0\0");
    check_pixels("palette of 1 bit, a mask", png(1, 2, 1, 3, 0, "\0\x80", 2, palette + 3, 2), 1, 2,
                 IMAGE_MASK, (const unsigned char *)"\xFF\0");
    check_pixels("interlaced", png(2, 2, 8, 0, 1, "\0\1\0\2\0\3\4", 7, NULL, 0), 2, 2, IMAGE_RGB,
                 (const unsigned char *)"\1\1\1\2\2\2\3\3\3\4\4\4");
    bytes b = png(1, 3, 8, 3, 0, "\0\2\0\3", 4, palette, 3);
    refused("H27", &b, "pixel 2, 0 has the colour 3, but the palette has 3");
    drop(&b);
    b = png(1, 4, 1, 3, 0, "\0\x50", 2, palette, 3);
    refused("palette of 3 for 1 bit", &b, "PLTE has 9 bytes");
    drop(&b);
    bytes extra = {0}; // tRNS is dropped, huge iCCP and tEXt too (H28)
    unsigned char *huge = calloc(4 << 20, 1);
    chunk(&extra, "iCCP", huge, 4 << 20);
    chunk(&extra, "tEXt", huge, 4 << 20);
    chunk(&extra, "tRNS", "\0\0\0\1", 2);
    free(huge);
    b = png(1, 4, 8, 0, 0, "\0\1\2\3\xFF", 5, NULL, 0);
    splice(&b, SECOND_CHUNK, 0, extra.at, extra.size);
    check_pixels("H28, tRNS", b, 1, 4, IMAGE_MASK, (const unsigned char *)"\1\2\3\xFF");
    drop(&extra);
    static unsigned char line[1 + 16384];
    check_pixels("H30 1 x 1", png(1, 1, 8, 0, 0, "\0\7", 2, NULL, 0), 1, 1, IMAGE_RGB,
                 (const unsigned char *)"\7\7\7");
    check_pixels("H30 3 x 1", png(3, 1, 8, 0, 0, "\0\7\0\x08\2\x09", 6, NULL, 0), 3, 1, IMAGE_RGB,
                 (const unsigned char *)"\7\7\7\x08\x08\x08\x11\x11\x11");
    b = png(1, 16384, 8, 0, 0, line, sizeof line, NULL, 0);
    accepted("H32 at the limit", &b, 1, 16384);
    drop(&b);
}

static void test_masks(void) { // H41 to H43
    bytes b = png(1, 2, 8, 2, 0, "\0\xFF\xFF\xFF\0\0\1", 7, NULL, 0);
    refused_as("H41 colour", &b, IMAGE_MASK,
               "pixel 1, 0 has the colour 0, 0, 1, but a mask is grey");
    drop(&b);
    check_pixels("H41 RGB", png(1, 2, 8, 2, 0, "\0\xFF\xFF\xFF\0\0\0", 7, NULL, 0), 1, 2,
                 IMAGE_MASK, (const unsigned char *)"\xFF\0");
    const char *values[] = {"\0\0\1", "\0\x7F\x7F", "\0\x80\0"};
    for (int i = 0; i < 3; i++) {
        b = png(1, 2, 8, 0, 0, values[i], 3, NULL, 0);
        refused_as("H42", &b, IMAGE_MASK, "the largest value of this mask is");
        drop(&b);
    }
    check_pixels("H42 254", png(1, 2, 8, 0, 0, "\0\xFE\1", 3, NULL, 0), 1, 2, IMAGE_MASK,
                 (const unsigned char *)"\xFE\1");
    check_pixels("H43 none", png(1, 2, 8, 0, 0, "\0\0\0", 3, NULL, 0), 1, 2, IMAGE_MASK,
                 (const unsigned char *)"\0\0");
    check_pixels("H43 all", png(1, 2, 8, 0, 0, "\0\xFF\xFF", 3, NULL, 0), 1, 2, IMAGE_MASK,
                 (const unsigned char *)"\xFF\xFF");
    b = jpeg(16, 16, 1);
    image im = accepted_as("JPEG mask", &b, IMAGE_MASK, 16, 16);
    image_free(&im);
    drop(&b);
}

// ---- every change of a byte ---------------------------------------------------------------------

static unsigned long checksum; // so that each byte of a decoded image is read

// A changed file is refused with a sentence or gives an image of a size that is all there.
static void survive(const char *what, size_t at, const bytes *b) {
    image im;
    problem p = {0};
    if (decode(b, IMAGE_RGB, &im, &p)) {
        for (size_t i = 0; i < (size_t)im.height * (size_t)im.width * 3; i++) {
            checksum += im.bytes[i];
        }
        image_free(&im);
    } else if (!strstr(p.text, "some.file: ") || p.status == 0) {
        CHECK(false, "%s, byte %zu: \"%s\"", what, at, p.text);
    }
}

static void change_each_byte(const char *what, bytes b, size_t crc_of) {
    size_t tried = 0;
    for (size_t at = 0; at < b.size; at++) {
        const unsigned char was = b.at[at];
        for (int value = 0; value < 256; value++, tried++) {
            b.at[at] = (unsigned char)value;
            bytes fixed = copy(&b);
            if (crc_of > 0 && at >= crc_of + 8 && at < b.size - 16) {
                fix_crc(&fixed, crc_of);
            }
            survive(what, at, &fixed);
            drop(&fixed);
        }
        b.at[at] = was;
    }
    CHECK(tried == 256 * b.size, "%s: %zu changes", what, tried);
    drop(&b);
}

// Several bytes of the tables and the scan at once, from a fixed seed.
static void change_many_bytes(const char *what, bytes b, size_t rounds) {
    uint32_t seed = 1;
    for (size_t i = 0; i < rounds; i++) {
        bytes c = copy(&b);
        for (int k = 0; k < 4; k++) {
            seed = seed * 1664525u + 1013904223u;
            c.at[(seed >> 8) % c.size] = (unsigned char)(seed >> 3);
        }
        survive(what, i, &c);
        drop(&c);
    }
    CHECK(true, "%s", what);
    drop(&b);
}

// ---- files --------------------------------------------------------------------------------------

static char folder[] = "/tmp/clnet-test-image-XXXXXX";

static const char *in_folder(const char *name) {
    static char path[sizeof folder + 300];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void write_bytes(const char *path, const void *data, size_t size) {
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(data, 1, size, f) == size, "%s cannot be written", path);
    if (f) {
        fclose(f);
    }
}

static void load_refused(const char *what, const char *path, const char *text) {
    image im;
    problem p = {0};
    const bool ok = image_load(path, IMAGE_RGB, &im, &p);
    CHECK(!ok && strstr(p.text, path) && strstr(p.text, text), "%s: \"%s\" has no \"%s\"", what,
          p.text, text);
    image_free(&im);
}

static void test_files(void) {
    const struct {
        const char *what, *text, *data;
        size_t size;
    } cases[] = {
        {"H01", "empty file", "", 0},
        {"H02", "neither JPEG nor PNG (begins with the bytes FF 00)", "\xFF", 1},
        {"H03", "neither JPEG nor PNG", "a text of a few words", 21},
        {"H33 GIF", "looks like GIF", "GIF89a..........", 16},
        {"H33 BMP", "looks like BMP", "BM..............", 16},
        {"H33 PSD", "looks like PSD", "8BPS............", 16},
        {"H33 HDR", "looks like HDR", "#?RADIANCE\n.....", 16},
        {"H33 PNM", "looks like PNM", "P6 1 1 255\n...", 14},
        {"H33 TGA", "neither JPEG nor PNG", "\0\0\2\0\0\0\0\0\0\0\0\0\1\0\1\0\x18\0...", 21},
        {"WebP", "looks like WebP", "RIFF....WEBPVP8 ", 16},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_bytes(in_folder("x.jpg"), cases[i].data, cases[i].size);
        load_refused(cases[i].what, in_folder("x.jpg"), cases[i].text);
    }
    bytes b = small_png();
    write_bytes(in_folder("x.jpg"), b.at, b.size); // H04
    image im;
    problem p = {0};
    CHECK(image_load(in_folder("x.jpg"), IMAGE_RGB, &im, &p), "H04: %s", p.text);
    image_free(&im);
    drop(&b);
    load_refused("H05 folder", folder, "is a folder, expected a regular file");
    load_refused("H05 device", "/dev/zero", "is a device, expected a regular file");
    load_refused("missing", in_folder("missing.jpg"), "No such file");
    CHECK(mkfifo(in_folder("pipe"), 0600) == 0, "no pipe");
    load_refused("H05 pipe", in_folder("pipe"), "is a pipe, expected a regular file");
    unlink(in_folder("pipe"));
    if (geteuid() == 0) {
        SKIP("H05 missing permission: root may read everything");
    } else {
        chmod(in_folder("x.jpg"), 0);
        load_refused("H05 permission", in_folder("x.jpg"), "Permission denied");
    }
    CHECK(truncate(in_folder("x.jpg"), 65 << 20) == 0, "no large file");
    load_refused("65 MiB", in_folder("x.jpg"), "at most 67108864 are read");
    unlink(in_folder("x.jpg"));
}

static void test_writing(void) {
    unsigned char pixels[7 * 5 * 3];
    for (size_t i = 0; i < sizeof pixels; i++) {
        pixels[i] = (unsigned char)(i * 91);
    }
    image im;
    problem p = {0};
    CHECK(image_write_png(in_folder("w.png"), pixels, 7, 5, 3, &p), "%s", p.text);
    CHECK(image_load(in_folder("w.png"), IMAGE_RGB, &im, &p), "%s", p.text);
    CHECK(im.height == 7 && im.width == 5 && memcmp(im.bytes, pixels, sizeof pixels) == 0,
          "what was written is not what was read");
    image_free(&im);
    CHECK(!image_write_png(in_folder("none/w.png"), pixels, 7, 5, 3, &p) && p.status == EXIT_RUN &&
              strstr(p.text, "none/w.png: cannot be written: No such file"),
          "\"%s\"", p.text);
    p = (problem){0};
    CHECK(!image_write_png(folder, pixels, 7, 5, 3, &p) && strstr(p.text, folder), "\"%s\"",
          p.text);
    p = (problem){0};
    CHECK(!image_write_png(in_folder("w.png"), pixels, 1 << 20, 1 << 20, 3, &p) && p.status,
          "1 million squared pixels were written");
    CHECK(unlink(in_folder("w.png")) == 0, "w.png is gone");
}

int main(void) {
    if (!mkdtemp(folder)) {
        printf("no temporary folder\n");
        return 1;
    }
    test_files();
    test_writing();
    test_jpeg_headers();
    test_jpeg_scans();
    test_jpeg_tail();
    test_png_structure();
    test_png_headers();
    test_png_bomb();
    test_png_kinds();
    test_masks();
    change_each_byte("JPEG", jpeg(8, 9, 3), 0);
    change_each_byte("grey JPEG", jpeg(8, 9, 1), 0);
    change_each_byte("progressive JPEG", progressive(), 0);
    change_each_byte("PNG", small_png(), 0);
    change_each_byte("PNG with the right CRC", small_png(), SECOND_CHUNK);
    change_many_bytes("JPEG", jpeg(24, 40, 3), 20000);
    change_many_bytes("progressive JPEG", progressive(), 20000);
    CHECK(rmdir(folder) == 0, "%s is not empty", folder);
    return test_close();
}
