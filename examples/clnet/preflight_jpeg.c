// A JPEG file is a list of segments (marker FF xx, length, body); behind a start of scan come the
// entropy-coded bytes. Both are checked, the codes of every block included: the decoder in Debian
// 12's stb_image 2.27 writes past its tables when a Huffman table is too long, reads past them when
// one was never defined, and computes undefined shifts when a scan's bits run out.
// Names as in ITU T.81: Ss, Se = first and last coefficient of a scan; Ah, Al = bits before, now.
#include "preflight.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FAST = 9,       // bits of a code that are looked up at once
    MAX_CODES = 255 // of a Huffman table; 8-bit images need 176, and stb_image mistakes a 256th
};

typedef struct huffman {
    bool defined;
    unsigned char symbols[256];
    uint32_t end[17]; // first 16-bit value above the codes of this length
    int offset[17];   // symbol number = code + offset
    unsigned char fast_size[1 << FAST], fast_symbol[1 << FAST]; // size 0: not a short code
} huffman;

typedef struct component {
    int id, h, v, table;                // sampling, quantiser
    int blocks_h, blocks_w;             // that hold pixels: those of a scan of this component alone
    int stride;                         // blocks of a row, those of the last MCU's filling included
    uint64_t *nonzero;                  // progressive: per block, which coefficients are not 0
    int dc;                             // value of the last block
    const huffman *dc_codes, *ac_codes; // of the scan in hand
    bool scanned;
} component;

typedef struct jpeg {
    const char *name;
    unsigned char *bytes;
    size_t size, at, kept; // kept <= at: bytes left so far
    bool framed, progressive;
    component parts[3];
    int part_count, h_max, v_max, mcus_h, mcus_w;
    huffman codes[2][4]; // DC, AC
    bool quantisers[4];
    int restart_interval, scans;
    int Ss, Se, Ah, Al; // of the scan in hand
    component *order[3];
    int order_count;
    unsigned eob_run; // blocks still to come without new coefficients
    preflight *out;
    problem *p;
} jpeg;

static bool refuse(const jpeg *j, size_t at, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 3, 4)))
#endif
    ;

static bool refuse(const jpeg *j, size_t at, const char *format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return problem_input(j->p, "%s: offset %zu: %s", j->name, at, text);
}

static void keep(jpeg *j, size_t from, size_t to) {
    memmove(j->bytes + j->kept, j->bytes + from, to - from);
    j->kept += to - from;
}

static int two_bytes(const unsigned char *b) { return b[0] << 8 | b[1]; }

// ---- the codes of a scan ------------------------------------------------------------------------

// Reads bits from entropy-coded bytes up to a marker; FF 00 stands for FF. Behind the end come
// zeros, and `overrun` tells that one of them was used.
typedef struct bits {
    const unsigned char *at, *end;
    uint64_t window;  // the next `count` bits, at its top
    int count, zeros; // zeros: how many of them stand behind the end
} bits;

static void refill(bits *b) {
    while (b->count <= 56) {
        uint64_t byte = 0;
        if (b->at < b->end) {
            byte = *b->at;
            b->at += byte == 0xFF ? 2 : 1;
        } else {
            b->zeros += 8;
        }
        b->window |= byte << (56 - b->count);
        b->count += 8;
    }
}

static bool overrun(const bits *b) { return b->zeros > b->count; }

// The next `size` bits, 0 to 16.
static unsigned take(bits *b, int size) {
    if (b->count < 16) {
        refill(b);
    }
    const unsigned value = (unsigned)(b->window >> 32 >> (32 - size));
    b->window <<= size;
    b->count -= size;
    return value;
}

// The next symbol; -1: no code of the table.
static int take_symbol(bits *b, const huffman *table) {
    if (b->count < 16) {
        refill(b);
    }
    const unsigned index = (unsigned)(b->window >> (64 - FAST));
    if (table->fast_size[index]) {
        take(b, table->fast_size[index]);
        return table->fast_symbol[index];
    }
    const unsigned next = (unsigned)(b->window >> 48);
    for (int size = FAST + 1; size <= 16; size++) {
        if (next < table->end[size]) {
            return table->symbols[(int)take(b, size) + table->offset[size]];
        }
    }
    return -1;
}

// A difference of DC values of `size` bits; below the half stand the negative ones.
static int take_signed(bits *b, int size) {
    const int value = (int)take(b, size);
    return size > 0 && value < 1 << (size - 1) ? value - (1 << size) + 1 : value;
}

// Each walk_ function below passes over one block; NULL, or what is wrong with it.

static const char *walk_dc(bits *b, component *c) {
    const int size = take_symbol(b, c->dc_codes);
    if (size < 0) {
        return "no DC code";
    }
    c->dc += take_signed(b, size);
    return c->dc < -32767 || c->dc > 32767 ? "DC value beyond 16 bits" : NULL;
}

static const char *walk_sequential(bits *b, component *c) {
    const char *wrong = walk_dc(b, c);
    for (int k = 1; k < 64 && !wrong; k++) {
        const int symbol = take_symbol(b, c->ac_codes);
        const int run = symbol >> 4, size = symbol & 15;
        if (symbol < 0) {
            return "no AC code";
        }
        if (size == 0 && run != 15) {
            break;
        }
        k += run;
        wrong = k > 63 ? "more than 64 coefficients" : NULL;
        take(b, size);
    }
    return wrong;
}

// Progressive, DC: the first bits (which clear the block), or one more.
static const char *walk_progressive_dc(jpeg *j, bits *b, component *c, uint64_t *nonzero) {
    if (j->Ah > 0) {
        take(b, 1);
        return NULL;
    }
    *nonzero = 0;
    return walk_dc(b, c);
}

// Progressive, AC: the first bits of coefficients.
static const char *walk_first(jpeg *j, bits *b, component *c, uint64_t *nonzero) {
    if (j->eob_run > 0) {
        j->eob_run--;
        return NULL;
    }
    for (int k = j->Ss; k <= j->Se; k++) {
        const int symbol = take_symbol(b, c->ac_codes);
        const int run = symbol >> 4, size = symbol & 15;
        if (symbol < 0) {
            return "no AC code";
        }
        if (size == 0 && run < 15) {
            j->eob_run = (1u << run) + take(b, run) - 1;
            break;
        }
        k += run;
        if (k > j->Se) {
            return "more coefficients than the scan has";
        }
        if (size + j->Al > 15) {
            return "coefficient beyond 16 bits";
        }
        take(b, size);
        *nonzero |= size > 0 ? (uint64_t)1 << k : 0;
    }
    return NULL;
}

// From coefficient k on, passes `zeros` that are 0 and one bit for each that is not; returns the
// coefficient at which the zeros are used up (Se + 1: none).
static int pass_zeros(const jpeg *j, bits *b, int k, int zeros, uint64_t nonzero) {
    for (; k <= j->Se; k++) {
        if (nonzero >> k & 1) {
            take(b, 1);
        } else if (zeros-- == 0) {
            break;
        }
    }
    return k;
}

// Progressive, AC: one more bit of the coefficients that are not 0, and new ones.
static const char *walk_refinement(jpeg *j, bits *b, component *c, uint64_t *nonzero) {
    int k = j->Ss;
    while (j->eob_run == 0 && k <= j->Se) {
        const int symbol = take_symbol(b, c->ac_codes);
        const int run = symbol >> 4, size = symbol & 15;
        if (symbol < 0 || size > 1) {
            return "no AC code of a refinement";
        }
        if (size == 0 && run < 15) {
            j->eob_run = (1u << run) + take(b, run);
            break;
        }
        take(b, size); // the sign
        k = pass_zeros(j, b, k, run, *nonzero);
        *nonzero |= size > 0 && k <= j->Se ? (uint64_t)1 << k : 0;
        k++;
    }
    if (j->eob_run > 0) {
        pass_zeros(j, b, k, 64, *nonzero);
        j->eob_run--;
    }
    return NULL;
}

static const char *walk_block(jpeg *j, bits *b, component *c, int row, int column) {
    if (!j->progressive) {
        return walk_sequential(b, c);
    }
    uint64_t *nonzero = c->nonzero + (size_t)row * (size_t)c->stride + (size_t)column;
    return j->Ss == 0   ? walk_progressive_dc(j, b, c, nonzero)
           : j->Ah == 0 ? walk_first(j, b, c, nonzero)
                        : walk_refinement(j, b, c, nonzero);
}

// Passes over one MCU: a block where the scan has one component, else h x v of each.
static const char *walk_mcu(jpeg *j, bits *b, int mcu) {
    if (j->order_count == 1) {
        component *c = j->order[0];
        return walk_block(j, b, c, mcu / c->blocks_w, mcu % c->blocks_w);
    }
    const int row = mcu / j->mcus_w, column = mcu % j->mcus_w;
    for (int i = 0; i < j->order_count; i++) {
        component *c = j->order[i];
        for (int block = 0; block < c->h * c->v; block++) {
            const char *wrong =
                walk_block(j, b, c, row * c->v + block / c->h, column * c->h + block % c->h);
            if (wrong) {
                return wrong;
            }
        }
    }
    return NULL;
}

// Finds where the entropy-coded bytes from `at` on end: at a marker (restarts included) or the
// file's end. Fill bytes (FF FF..) before a marker or a 00 are dropped; the rest moves to j->kept.
static size_t keep_entropy(jpeg *j, size_t at) {
    while (at < j->size) {
        const unsigned char *next = memchr(j->bytes + at, 0xFF, j->size - at);
        const size_t stop = next ? (size_t)(next - j->bytes) : j->size;
        size_t code = stop;
        keep(j, at, stop);
        while (code < j->size && j->bytes[code] == 0xFF) {
            code++;
        }
        if (code == j->size || j->bytes[code] != 0) {
            return stop;
        }
        j->bytes[j->kept++] = 0xFF;
        j->bytes[j->kept++] = 0;
        at = code + 1;
    }
    return at;
}

// Skips the FFs at `at`; returns the marker's code, 0 at the end of the file; *at: behind it.
static int take_marker(const jpeg *j, size_t *at) {
    while (*at < j->size && j->bytes[*at] == 0xFF) {
        ++*at;
    }
    return *at < j->size ? j->bytes[(*at)++] : 0;
}

// Walks the MCUs from `first` to `end` over the bytes between j->kept and the next marker.
static bool walk_interval(jpeg *j, int first, int end, bool last) {
    const size_t begin = j->kept, source = j->at;
    j->at = keep_entropy(j, j->at);
    bits b = {.at = j->bytes + begin, .end = j->bytes + j->kept};
    j->eob_run = 0;
    for (int i = 0; i < j->order_count; i++) {
        j->order[i]->dc = 0;
    }
    for (int mcu = first; mcu < end; mcu++) {
        const char *wrong = walk_mcu(j, &b, mcu);
        wrong = overrun(&b) ? "the data end early" : wrong;
        if (wrong) {
            return refuse(j, source, "scan %d is damaged in unit %d of the %d that begin here: %s",
                          j->scans, mcu - first + 1, end - first, wrong);
        }
    }
    const size_t unused = (size_t)(b.end - b.at) + (size_t)(b.count - b.zeros) / 8;
    if (unused > 0 && !last) {
        return refuse(j, source, "scan %d: bytes left over before a restart marker", j->scans);
    }
    return true;
}

// Walks all intervals of a scan: `interval` MCUs each, with the restart markers D0 to D7 between.
static bool walk_scan(jpeg *j) {
    const component *only = j->order[0];
    const int mcus = j->order_count == 1 ? only->blocks_h * only->blocks_w : j->mcus_h * j->mcus_w;
    const int interval = j->restart_interval > 0 ? j->restart_interval : mcus;
    for (int first = 0, count = 0; first < mcus; first += interval, count++) {
        const bool last = mcus - first <= interval;
        if (!walk_interval(j, first, last ? mcus : first + interval, last)) {
            return false;
        }
        size_t behind = j->at;
        const int found = take_marker(j, &behind), expected = 0xD0 + count % 8;
        if (!last && found != expected) {
            return refuse(j, j->at, "scan %d: expected the restart marker %02X, found %02X",
                          j->scans, (unsigned)expected, (unsigned)found);
        }
        if (last && found >= 0xD0 && found <= 0xD7) {
            return refuse(j, j->at, "scan %d: restart marker %02X behind its last interval",
                          j->scans, (unsigned)found);
        }
        if (!last) {
            j->bytes[j->kept++] = 0xFF;
            j->bytes[j->kept++] = (unsigned char)found;
            j->at = behind;
        }
    }
    return true;
}

// ---- the segments -------------------------------------------------------------------------------
// Each read_ function gets the body of one segment; `at` is its offset for messages.

static bool read_quantisers(jpeg *j, size_t at, const unsigned char *b, size_t size) {
    for (size_t i = 0; i < size;) {
        const int wide = b[i] >> 4, id = b[i] & 15;
        const size_t need = wide ? 129 : 65;
        if (wide > 1 || id > 3) {
            return refuse(j, at + i, "quantiser %d of type %d, at most 3 and 1", id, wide);
        }
        if (size - i < need) {
            return refuse(j, at + i, "quantiser of %zu bytes, but %zu are left", need, size - i);
        }
        j->quantisers[id] = true;
        i += need;
    }
    return true;
}

// Makes the look-up tables from the number of codes of each length; false: more than there can be.
static bool make_codes(huffman *t, const unsigned char counts[16], const unsigned char *symbols) {
    uint32_t code = 0;
    int symbol = 0;
    memset(t, 0, sizeof *t);
    for (int size = 1; size <= 16; size++) {
        t->offset[size] = symbol - (int)code;
        for (int i = 0; i < counts[size - 1]; i++, code++, symbol++) {
            if (code >= 1u << size) {
                return false;
            }
            t->symbols[symbol] = symbols[symbol];
            for (uint32_t k = 0; size <= FAST && k < 1u << (FAST - size); k++) {
                t->fast_size[(code << (FAST - size)) + k] = (unsigned char)size;
                t->fast_symbol[(code << (FAST - size)) + k] = symbols[symbol];
            }
        }
        t->end[size] = code << (16 - size);
        code <<= 1;
    }
    t->defined = true;
    return true;
}

static bool read_huffman(jpeg *j, size_t at, const unsigned char *b, size_t size) {
    for (size_t i = 0; i < size;) {
        const int kind = b[i] >> 4, id = b[i] & 15;
        size_t count = 0;
        for (size_t k = 1; k <= 16 && size - i >= 17; k++) {
            count += b[i + k];
        }
        if (kind > 1 || id > 3) {
            return refuse(j, at + i, "Huffman table %d of class %d, at most 3 and 1", id, kind);
        }
        if (count > MAX_CODES) {
            return refuse(j, at + i, "Huffman table with %zu codes, at most %d", count, MAX_CODES);
        }
        if (size - i < 17 + count) {
            return refuse(j, at + i, "Huffman table of %zu bytes, but %zu are left", 17 + count,
                          size - i);
        }
        if (!make_codes(&j->codes[kind][id], b + i + 1, b + i + 17)) {
            return refuse(j, at + i, "Huffman table with more codes than its lengths allow");
        }
        for (size_t k = 0; k < count && kind == 0; k++) {
            if (b[i + 17 + k] > 11) {
                return refuse(j, at + i, "DC Huffman table with the symbol %d, at most 11",
                              b[i + 17 + k]);
            }
        }
        i += 17 + count;
    }
    return true;
}

// Sizes in MCUs and blocks, and memory: decoded planes, coefficients, and the picture.
static bool plan_frame(jpeg *j) {
    const int height = j->out->height, width = j->out->width;
    size_t blocks = 0;
    j->mcus_h = (height + 8 * j->v_max - 1) / (8 * j->v_max);
    j->mcus_w = (width + 8 * j->h_max - 1) / (8 * j->h_max);
    for (int i = 0; i < j->part_count; i++) {
        component *c = &j->parts[i];
        c->blocks_h = ((height * c->v + j->v_max - 1) / j->v_max + 7) / 8;
        c->blocks_w = ((width * c->h + j->h_max - 1) / j->h_max + 7) / 8;
        c->stride = j->mcus_w * c->h;
        const size_t count = (size_t)c->stride * (size_t)(j->mcus_h * c->v);
        blocks += count;
        if (j->progressive && !(c->nonzero = calloc(count, sizeof *c->nonzero))) {
            return problem_run(j->p, "%s: no memory to check it", j->name);
        }
    }
    j->out->memory = ((size_t)1 << 20) + j->size + blocks * 64 * (j->progressive ? 3 : 1) +
                     4 * (size_t)height * (size_t)width;
    return true;
}

static bool read_component(jpeg *j, component *c, size_t at, const unsigned char *b) {
    *c = (component){.id = b[0], .h = b[1] >> 4, .v = b[1] & 15, .table = b[2]};
    if (c->h < 1 || c->h > 4 || c->v < 1 || c->v > 4) {
        return refuse(j, at + 1, "sampling %d x %d, expected 1 to 4", c->h, c->v);
    }
    if (c->table > 3) {
        return refuse(j, at + 2, "quantiser %d, at most 3", c->table);
    }
    for (const component *other = j->parts; other < c; other++) {
        if (other->id == c->id) {
            return refuse(j, at, "two components with the id %d", c->id);
        }
    }
    j->h_max = c->h > j->h_max ? c->h : j->h_max;
    j->v_max = c->v > j->v_max ? c->v : j->v_max;
    return true;
}

static bool read_frame(jpeg *j, size_t at, const unsigned char *b, size_t size) {
    if (j->framed) {
        return refuse(j, at, "second frame header");
    }
    if (size < 6 || b[0] != 8) {
        return refuse(j, at,
                      size < 6 ? "frame header of %zu bytes"
                               : "%zu bits a sample, only 8 "
                                 "are supported",
                      size < 6 ? size : (size_t)b[0]);
    }
    if (b[5] == 4) {
        return refuse(j, at + 5, "4 components (CMYK or YCCK); grey and colour of 3 are supported");
    }
    if (b[5] != 1 && b[5] != 3) {
        return refuse(j, at + 5, "%d components, expected 1 or 3", b[5]);
    }
    if (size != 6 + 3 * (size_t)b[5]) {
        return refuse(j, at, "frame header of %zu bytes, expected %d for %d components", size,
                      6 + 3 * b[5], b[5]);
    }
    j->out->height = two_bytes(b + 1);
    j->out->width = two_bytes(b + 3);
    j->part_count = b[5];
    if (!preflight_dimensions(j->name, at + 1, (unsigned long)j->out->height,
                              (unsigned long)j->out->width, j->p)) {
        return false;
    }
    for (int i = 0; i < j->part_count; i++) {
        if (!read_component(j, &j->parts[i], at + 6 + 3 * (size_t)i, b + 6 + 3 * i)) {
            return false;
        }
    }
    for (int i = 0; i < j->part_count; i++) {
        if (j->h_max % j->parts[i].h != 0 || j->v_max % j->parts[i].v != 0) {
            return refuse(j, at, "sampling %d x %d is no part of %d x %d", j->parts[i].h,
                          j->parts[i].v, j->h_max, j->v_max);
        }
    }
    j->framed = true;
    return plan_frame(j);
}

// Which coefficients and bits the scan brings.
static bool read_spectrum(jpeg *j, size_t at, const unsigned char *b) {
    j->Ss = b[0];
    j->Se = b[1];
    j->Ah = b[2] >> 4;
    j->Al = b[2] & 15;
    const bool sequential = j->Ss == 0 && (j->Se == 63 || j->Se == 0) && b[2] == 0;
    const bool progressive = j->Se <= 63 && j->Ss <= j->Se && j->Ah <= 13 && j->Al <= 13 &&
                             (j->Ss == 0 ? j->Se == 0 : j->order_count == 1);
    return (j->progressive ? progressive : sequential) ||
           refuse(j, at,
                  "%d components with coefficients %d to %d, bits %d and %d: no scan of a "
                  "%s image",
                  j->order_count, j->Ss, j->Se, j->Ah, j->Al,
                  j->progressive ? "progressive" : "sequential");
}

// Finds the component with this id; it must be there, and once in a scan.
static component *find_component(jpeg *j, size_t at, int id) {
    component *found = NULL;
    for (int i = 0; i < j->part_count; i++) {
        found = j->parts[i].id == id ? &j->parts[i] : found;
    }
    for (int i = 0; i < j->order_count; i++) {
        if (found && j->order[i] == found) {
            refuse(j, at, "scan with the component %d twice", id);
            return NULL;
        }
    }
    if (!found) {
        refuse(j, at, "scan of the component %d, which the frame does not have", id);
    }
    return found;
}

// The tables that the scan will use must have been defined.
static bool tables_defined(jpeg *j, size_t at) {
    for (int i = 0; i < j->order_count; i++) {
        const component *c = j->order[i];
        const bool needs_dc = j->Ss == 0 && j->Ah == 0, needs_ac = !j->progressive || j->Ss > 0;
        if (!j->quantisers[c->table]) {
            return refuse(j, at, "component %d uses quantiser %d, which is not defined", c->id,
                          c->table);
        }
        if ((needs_dc && !c->dc_codes->defined) || (needs_ac && !c->ac_codes->defined)) {
            return refuse(j, at, "component %d uses a Huffman table that is not defined", c->id);
        }
    }
    return true;
}

static bool read_scan(jpeg *j, size_t at, const unsigned char *b, size_t size) {
    const int count = size > 0 ? b[0] : 0;
    if (!j->framed || ++j->scans > PREFLIGHT_MAX_SCANS) {
        return refuse(j, at, j->framed ? "more than %d scans" : "scan before the frame header",
                      PREFLIGHT_MAX_SCANS);
    }
    if (count < 1 || count > j->part_count || size != 4 + 2 * (size_t)count) {
        return refuse(j, at, "scan header of %zu bytes for %d components; the frame has %d", size,
                      count, j->part_count);
    }
    j->order_count = 0;
    for (int i = 0; i < count; i++) {
        const int id = b[1 + 2 * i], tables = b[2 + 2 * i];
        component *c = find_component(j, at + 1 + 2 * (size_t)i, id);
        if (!c) {
            return false;
        }
        if (tables >> 4 > 3 || (tables & 15) > 3) {
            return refuse(j, at + 2 + 2 * (size_t)i, "Huffman tables %d and %d, at most 3",
                          tables >> 4, tables & 15);
        }
        c->dc_codes = &j->codes[0][tables >> 4];
        c->ac_codes = &j->codes[1][tables & 15];
        j->order[j->order_count++] = c;
    }
    if (!read_spectrum(j, at + 1 + 2 * (size_t)count, b + 1 + 2 * count) ||
        !tables_defined(j, at)) {
        return false;
    }
    for (int i = 0; i < count; i++) {
        j->order[i]->scanned |= j->Ss == 0;
    }
    return true;
}

static bool read_restart_interval(jpeg *j, size_t at, const unsigned char *b, size_t size) {
    if (size != 2) {
        return refuse(j, at, "restart interval of %zu bytes, expected 2", size);
    }
    j->restart_interval = two_bytes(b);
    return true;
}

static const char *unsupported(int marker) {
    switch (marker) {
    case 0xC3:
        return "lossless JPEG";
    case 0xC5:
    case 0xC6:
    case 0xC7:
    case 0xDE:
    case 0xDF:
        return "hierarchical JPEG";
    case 0xC9:
    case 0xCA:
    case 0xCB:
    case 0xCC:
    case 0xCD:
    case 0xCE:
    case 0xCF:
        return "arithmetic coding";
    case 0xDC:
        return "a height that comes after the scan";
    case 0xD8:
        return "a second start of image";
    default:
        return NULL;
    }
}

// Checks the segment with this marker, whose length stands at j->at, and keeps it where the decoder
// needs it. APP0 and APP14 say how colours are coded; all other APPs and comments are dropped.
static bool read_segment(jpeg *j, int marker) {
    const size_t at = j->at, left = j->size - at;
    const size_t length = left >= 2 ? (size_t)two_bytes(j->bytes + at) : 0;
    const unsigned char *body = j->bytes + at + 2;
    bool ok = true, wanted = true;
    if (unsupported(marker)) {
        return refuse(j, at - 2, "%s (marker %02X) is not supported", unsupported(marker),
                      (unsigned)marker);
    }
    if (length < 2 || length > left) {
        return refuse(j, at, "segment %02X of %zu bytes, but %zu are left", (unsigned)marker,
                      length, left);
    }
    switch (marker) {
    case 0xC0:
    case 0xC1:
    case 0xC2:
        j->progressive = marker == 0xC2 && !j->framed;
        ok = read_frame(j, at + 2, body, length - 2);
        break;
    case 0xC4:
        ok = read_huffman(j, at + 2, body, length - 2);
        break;
    case 0xDA:
        ok = read_scan(j, at + 2, body, length - 2);
        break;
    case 0xDB:
        ok = read_quantisers(j, at + 2, body, length - 2);
        break;
    case 0xDD:
        ok = read_restart_interval(j, at + 2, body, length - 2);
        break;
    default:
        if (marker != 0xFE && (marker < 0xE0 || marker > 0xEF)) {
            return refuse(j, at - 2, "unknown marker %02X", (unsigned)marker);
        }
        wanted = marker == 0xE0 || marker == 0xEE;
    }
    if (ok && wanted) {
        j->bytes[j->kept++] = 0xFF;
        j->bytes[j->kept++] = (unsigned char)marker;
        keep(j, at, at + length);
    }
    j->at = at + length;
    return ok && (marker != 0xDA || walk_scan(j));
}

static bool check_end(jpeg *j) {
    for (int i = 0; i < j->part_count; i++) {
        if (!j->parts[i].scanned) {
            return refuse(j, j->at, "ends without a scan of component %d", j->parts[i].id);
        }
    }
    if (!j->framed) {
        return refuse(j, j->at, "ends without a frame header");
    }
    j->bytes[j->kept++] = 0xFF;
    j->bytes[j->kept++] = 0xD9;
    j->out->size = j->kept;
    return true;
}

static bool read_segments(jpeg *j) {
    for (;;) {
        if (j->at >= j->size) {
            return refuse(j, j->size, "ends without the end marker FF D9");
        }
        if (j->bytes[j->at] != 0xFF) {
            return refuse(j, j->at, "expected a marker, found the byte %02X", j->bytes[j->at]);
        }
        const int marker = take_marker(j, &j->at);
        if (marker == 0xD9) {
            return check_end(j);
        }
        if (marker == 0) {
            return refuse(j, j->at, "ends without the end marker FF D9");
        }
        if (!read_segment(j, marker)) {
            return false;
        }
    }
}

bool preflight_jpeg(const char *name, unsigned char *bytes, size_t size, preflight *out,
                    problem *p) {
    *out = (preflight){.depth = 8};
    jpeg *j = calloc(1, sizeof *j);
    if (!j) {
        return problem_run(p, "%s: no memory to check it", name);
    }
    *j = (jpeg){.name = name,
                .bytes = bytes,
                .size = size,
                .at = 2,
                .kept = 2,
                .h_max = 1,
                .v_max = 1,
                .out = out,
                .p = p};
    const bool ok = size >= 2 && bytes[0] == 0xFF && bytes[1] == 0xD8
                        ? read_segments(j)
                        : refuse(j, 0, "does not begin with the start marker FF D8");
    for (int i = 0; i < 3; i++) {
        free(j->parts[i].nonzero);
    }
    free(j);
    return ok;
}
