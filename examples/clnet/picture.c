#include "picture.h"

#include "image.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- canvas -------------------------------------------------------------------------------------

bool picture_create(picture *pic, int height, int width, color background, problem *p) {
    *pic = (picture){0};
    if (height < 1 || width < 1 || height > PICTURE_MAX_SIDE || width > PICTURE_MAX_SIDE) {
        return problem_run(p, "a picture of %d x %d pixels cannot be drawn (1 to %d a side)", width,
                           height, PICTURE_MAX_SIDE);
    }
    pic->bytes = malloc((size_t)height * (size_t)width * 3);
    if (!pic->bytes) {
        return problem_run(p, "no memory for a picture of %d x %d pixels", width, height);
    }
    pic->height = height;
    pic->width = width;
    picture_rectangle(pic, 0, 0, height, width, background, 1);
    return true;
}

bool picture_copy(picture *pic, const unsigned char *bytes, int height, int width, problem *p) {
    if (!picture_create(pic, height, width, COLOR_WHITE, p)) {
        return false;
    }
    memcpy(pic->bytes, bytes, (size_t)height * (size_t)width * 3);
    return true;
}

void picture_free(picture *pic) {
    free(pic->bytes);
    *pic = (picture){0};
}

bool picture_write(const picture *pic, const char *path, problem *p) {
    return image_write_png(path, pic->bytes, pic->height, pic->width, 3, p);
}

static unsigned char *pixel_at(const picture *pic, int y, int x) {
    return pic->bytes + ((size_t)y * (size_t)pic->width + (size_t)x) * 3;
}

static unsigned char mix_byte(unsigned char from, unsigned char to, double alpha) {
    return (unsigned char)(from + (to - from) * alpha + 0.5);
}

static void mix(unsigned char *pixel, color c, double alpha) {
    if (alpha > 0) {
        const double a = alpha < 1 ? alpha : 1;
        pixel[0] = mix_byte(pixel[0], c.r, a);
        pixel[1] = mix_byte(pixel[1], c.g, a);
        pixel[2] = mix_byte(pixel[2], c.b, a);
    }
}

void picture_dot(picture *pic, int y, int x, color c, double alpha) {
    if (y >= 0 && y < pic->height && x >= 0 && x < pic->width) {
        mix(pixel_at(pic, y, x), c, alpha);
    }
}

// Into 0..count, without the overflow that a plain conversion of a far coordinate would be.
static int clip(double v, int count) { return !(v > 0) ? 0 : v < count ? (int)v : count; }

void picture_rectangle(picture *pic, int y, int x, int height, int width, color c, double alpha) {
    const int y_end = clip((double)y + height, pic->height);
    const int x_end = clip((double)x + width, pic->width);
    for (int i = clip(y, pic->height); i < y_end; i++) {
        for (int j = clip(x, pic->width); j < x_end; j++) {
            mix(pixel_at(pic, i, j), c, alpha);
        }
    }
}

// ---- lines --------------------------------------------------------------------------------------

typedef struct segment {
    double y0, x0, y1, x1;
} segment;

static double segment_distance(segment s, double y, double x) {
    const double dy = s.y1 - s.y0, dx = s.x1 - s.x0, length2 = dy * dy + dx * dx;
    double t = length2 > 0 ? ((y - s.y0) * dy + (x - s.x0) * dx) / length2 : 0;
    t = t < 0 ? 0 : t > 1 ? 1 : t;
    return hypot(y - (s.y0 + t * dy), x - (s.x0 + t * dx));
}

// The share of a pixel that a stroke covers whose middle line passes at this distance.
static double coverage(double distance, double radius) {
    const double c = radius + 0.5 - distance;
    return c < 0 ? 0 : c > 1 ? 1 : c;
}

static bool is_near(double v) { return v > -1e6 && v < 1e6; }

void picture_line(picture *pic, double y0, double x0, double y1, double x1, double width, color c) {
    if (!is_near(y0) || !is_near(x0) || !is_near(y1) || !is_near(x1) || !is_near(width)) {
        return;
    }
    const segment s = {y0, x0, y1, x1};
    const double radius = width / 2, reach = radius + 1;
    const int y_end = clip(fmax(y0, y1) + reach + 1, pic->height);
    const int x_end = clip(fmax(x0, x1) + reach + 1, pic->width);
    for (int y = clip(fmin(y0, y1) - reach, pic->height); y < y_end; y++) {
        for (int x = clip(fmin(x0, x1) - reach, pic->width); x < x_end; x++) {
            mix(pixel_at(pic, y, x), c, coverage(segment_distance(s, y, x), radius));
        }
    }
}

// ---- text ---------------------------------------------------------------------------------------

enum { FONT_FIRST = 32, FONT_LAST = 126, FONT_ROWS = 9, FONT_COLUMNS = 5, FONT_ADVANCE = 6 };

// The rows of each character from top to bottom, two of them below the base line; 16 is the
// leftmost dot of a row, 1 the rightmost.
static const unsigned char font[FONT_LAST - FONT_FIRST + 1][FONT_ROWS] = {
    {0, 0, 0, 0, 0, 0, 0, 0, 0},        /* space */ {4, 4, 4, 4, 4, 0, 4, 0, 0},       /* ! */
    {10, 10, 10, 0, 0, 0, 0, 0, 0},     /* " */ {10, 10, 31, 10, 31, 10, 10, 0, 0},    /* # */
    {4, 15, 20, 14, 5, 30, 4, 0, 0},    /* $ */ {25, 26, 2, 4, 8, 11, 19, 0, 0},       /* % */
    {12, 18, 20, 8, 21, 18, 13, 0, 0},  /* & */ {4, 4, 4, 0, 0, 0, 0, 0, 0},           /* ' */
    {2, 4, 8, 8, 8, 4, 2, 0, 0},        /* ( */ {8, 4, 2, 2, 2, 4, 8, 0, 0},           /* ) */
    {0, 4, 21, 14, 21, 4, 0, 0, 0},     /* * */ {0, 4, 4, 31, 4, 4, 0, 0, 0},          /* + */
    {0, 0, 0, 0, 0, 4, 4, 8, 0},        /* , */ {0, 0, 0, 14, 0, 0, 0, 0, 0},          /* - */
    {0, 0, 0, 0, 0, 0, 4, 0, 0},        /* . */ {1, 1, 2, 4, 8, 16, 16, 0, 0},         /* / */
    {14, 17, 17, 21, 17, 17, 14, 0, 0}, /* 0 */ {4, 12, 4, 4, 4, 4, 14, 0, 0},         /* 1 */
    {14, 17, 1, 2, 4, 8, 31, 0, 0},     /* 2 */ {14, 17, 1, 6, 1, 17, 14, 0, 0},       /* 3 */
    {2, 6, 10, 18, 31, 2, 2, 0, 0},     /* 4 */ {31, 16, 30, 1, 1, 17, 14, 0, 0},      /* 5 */
    {14, 16, 16, 30, 17, 17, 14, 0, 0}, /* 6 */ {31, 1, 2, 2, 4, 4, 4, 0, 0},          /* 7 */
    {14, 17, 17, 14, 17, 17, 14, 0, 0}, /* 8 */ {14, 17, 17, 15, 1, 1, 14, 0, 0},      /* 9 */
    {0, 0, 4, 0, 0, 0, 4, 0, 0},        /* : */ {0, 0, 4, 0, 0, 4, 4, 8, 0},           /* ; */
    {0, 2, 4, 8, 4, 2, 0, 0, 0},        /* < */ {0, 0, 31, 0, 31, 0, 0, 0, 0},         /* = */
    {0, 8, 4, 2, 4, 8, 0, 0, 0},        /* > */ {14, 17, 1, 2, 4, 0, 4, 0, 0},         /* ? */
    {14, 17, 23, 21, 23, 16, 14, 0, 0}, /* @ */ {4, 10, 10, 17, 31, 17, 17, 0, 0},     /* A */
    {30, 17, 17, 30, 17, 17, 30, 0, 0}, /* B */ {14, 17, 16, 16, 16, 17, 14, 0, 0},    /* C */
    {30, 17, 17, 17, 17, 17, 30, 0, 0}, /* D */ {31, 16, 16, 30, 16, 16, 31, 0, 0},    /* E */
    {31, 16, 16, 30, 16, 16, 16, 0, 0}, /* F */ {14, 17, 16, 19, 17, 17, 14, 0, 0},    /* G */
    {17, 17, 17, 31, 17, 17, 17, 0, 0}, /* H */ {14, 4, 4, 4, 4, 4, 14, 0, 0},         /* I */
    {7, 2, 2, 2, 2, 18, 12, 0, 0},      /* J */ {17, 18, 20, 24, 20, 18, 17, 0, 0},    /* K */
    {16, 16, 16, 16, 16, 16, 31, 0, 0}, /* L */ {17, 27, 21, 21, 17, 17, 17, 0, 0},    /* M */
    {17, 17, 25, 21, 19, 17, 17, 0, 0}, /* N */ {14, 17, 17, 17, 17, 17, 14, 0, 0},    /* O */
    {30, 17, 17, 30, 16, 16, 16, 0, 0}, /* P */ {14, 17, 17, 17, 21, 18, 13, 0, 0},    /* Q */
    {30, 17, 17, 30, 20, 18, 17, 0, 0}, /* R */ {15, 16, 16, 14, 1, 1, 30, 0, 0},      /* S */
    {31, 4, 4, 4, 4, 4, 4, 0, 0},       /* T */ {17, 17, 17, 17, 17, 17, 14, 0, 0},    /* U */
    {17, 17, 17, 10, 10, 10, 4, 0, 0},  /* V */ {17, 17, 17, 21, 21, 27, 17, 0, 0},    /* W */
    {17, 17, 10, 4, 10, 17, 17, 0, 0},  /* X */ {17, 17, 10, 4, 4, 4, 4, 0, 0},        /* Y */
    {31, 1, 2, 4, 8, 16, 31, 0, 0},     /* Z */ {14, 8, 8, 8, 8, 8, 14, 0, 0},         /* [ */
    {16, 16, 8, 4, 2, 1, 1, 0, 0},      /* backslash */ {14, 2, 2, 2, 2, 2, 14, 0, 0}, /* ] */
    {4, 10, 17, 0, 0, 0, 0, 0, 0},      /* ^ */ {0, 0, 0, 0, 0, 0, 0, 31, 0},          /* _ */
    {8, 4, 0, 0, 0, 0, 0, 0, 0},        /* ` */ {0, 0, 14, 1, 15, 17, 15, 0, 0},       /* a */
    {16, 16, 30, 17, 17, 17, 30, 0, 0}, /* b */ {0, 0, 14, 16, 16, 16, 14, 0, 0},      /* c */
    {1, 1, 15, 17, 17, 17, 15, 0, 0},   /* d */ {0, 0, 14, 17, 31, 16, 14, 0, 0},      /* e */
    {6, 8, 30, 8, 8, 8, 8, 0, 0},       /* f */ {0, 0, 15, 17, 17, 17, 15, 1, 14},     /* g */
    {16, 16, 30, 17, 17, 17, 17, 0, 0}, /* h */ {4, 0, 12, 4, 4, 4, 14, 0, 0},         /* i */
    {2, 0, 6, 2, 2, 2, 2, 2, 12},       /* j */ {16, 16, 18, 20, 24, 20, 18, 0, 0},    /* k */
    {12, 4, 4, 4, 4, 4, 2, 0, 0},       /* l */ {0, 0, 26, 21, 21, 21, 21, 0, 0},      /* m */
    {0, 0, 30, 17, 17, 17, 17, 0, 0},   /* n */ {0, 0, 14, 17, 17, 17, 14, 0, 0},      /* o */
    {0, 0, 30, 17, 17, 17, 30, 16, 16}, /* p */ {0, 0, 15, 17, 17, 17, 15, 1, 1},      /* q */
    {0, 0, 22, 24, 16, 16, 16, 0, 0},   /* r */ {0, 0, 15, 16, 14, 1, 30, 0, 0},       /* s */
    {8, 8, 30, 8, 8, 8, 6, 0, 0},       /* t */ {0, 0, 17, 17, 17, 17, 15, 0, 0},      /* u */
    {0, 0, 17, 17, 10, 10, 4, 0, 0},    /* v */ {0, 0, 17, 17, 21, 21, 10, 0, 0},      /* w */
    {0, 0, 17, 10, 4, 10, 17, 0, 0},    /* x */ {0, 0, 17, 17, 10, 10, 4, 4, 8},       /* y */
    {0, 0, 31, 2, 4, 8, 31, 0, 0},      /* z */ {2, 4, 4, 8, 4, 4, 2, 0, 0},           /* { */
    {4, 4, 4, 4, 4, 4, 4, 0, 0},        /* | */ {8, 4, 4, 2, 4, 4, 8, 0, 0},           /* } */
    {0, 0, 8, 21, 2, 0, 0, 0, 0},                                                      /* ~ */
};

static const unsigned char *glyph_of(char c) {
    return font[(c >= FONT_FIRST && c <= FONT_LAST ? c : '?') - FONT_FIRST];
}

static bool glyph_dot(const unsigned char *glyph, int row, int column) {
    return row >= 0 && row < FONT_ROWS && column >= 0 && column < FONT_COLUMNS &&
           (glyph[row] >> (FONT_COLUMNS - 1 - column) & 1);
}

bool picture_has_glyph(char c) {
    static const unsigned char blank[FONT_ROWS] = {0};
    return c >= FONT_FIRST && c <= FONT_LAST && memcmp(glyph_of(c), blank, FONT_ROWS) != 0;
}

enum { GLYPH_MAX_STROKES = FONT_ROWS * FONT_COLUMNS * 4 };

// Turns a glyph's dots into strokes between neighbouring dots, so that it is smooth at any scale.
// Diagonal neighbours are joined only where no dot beside them makes the corner already.
static int glyph_strokes(const unsigned char *glyph, segment *strokes) {
    int count = 0;
    for (int i = 0; i < FONT_ROWS; i++) {
        for (int j = 0; j < FONT_COLUMNS; j++) {
            if (!glyph_dot(glyph, i, j)) {
                continue;
            }
            const bool right = glyph_dot(glyph, i, j + 1), down = glyph_dot(glyph, i + 1, j);
            const bool left = glyph_dot(glyph, i, j - 1);
            strokes[count++] = (segment){i, j, i, j + (right ? 1 : 0)};
            if (down) {
                strokes[count++] = (segment){i, j, i + 1, j};
            }
            if (!right && !down && glyph_dot(glyph, i + 1, j + 1)) {
                strokes[count++] = (segment){i, j, i + 1, j + 1};
            }
            if (!left && !down && glyph_dot(glyph, i + 1, j - 1)) {
                strokes[count++] = (segment){i, j, i + 1, j - 1};
            }
        }
    }
    return count;
}

static void draw_glyph(picture *pic, double y, double x, char c, double scale, color ink) {
    segment strokes[GLYPH_MAX_STROKES];
    const int count = glyph_strokes(glyph_of(c), strokes);
    const double radius = scale < 2 ? 0.5 * scale : 0.45 * scale;
    const int y_end = clip(y + FONT_ROWS * scale + 2, pic->height);
    const int x_end = clip(x + FONT_COLUMNS * scale + 2, pic->width);
    for (int i = clip(y - 1, pic->height); i < y_end; i++) {
        for (int j = clip(x - 1, pic->width); j < x_end; j++) {
            // In units of dots, whose centres are whole numbers.
            const double v = (i + 0.5 - y) / scale - 0.5, u = (j + 0.5 - x) / scale - 0.5;
            double distance = 1e9;
            for (int k = 0; k < count; k++) {
                distance = fmin(distance, segment_distance(strokes[k], v, u));
            }
            mix(pixel_at(pic, i, j), ink, coverage(distance * scale, radius));
        }
    }
}

// Bytes 10xxxxxx continue a character of UTF-8 and take no room of their own.
static bool begins_character(char c) { return ((unsigned char)c & 0xC0) != 0x80; }

void picture_text(picture *pic, double y, double x, const char *text, double scale, color c) {
    if (!is_near(y) || !is_near(x) || !(scale >= 1) || !is_near(scale)) {
        return;
    }
    for (; *text && x < pic->width; text++) {
        if (begins_character(*text)) {
            draw_glyph(pic, y, x, *text, scale, c);
            x += FONT_ADVANCE * scale;
        }
    }
}

double picture_text_width(const char *text, double scale) {
    size_t letters = 0;
    for (; *text; text++) {
        letters += begins_character(*text);
    }
    return letters > 0 ? ((double)letters * FONT_ADVANCE - 1) * scale : 0;
}

// ---- pictures into pictures ---------------------------------------------------------------------

// Where a pixel of a resized axis looks in the source: pixels first..last, weighted by a triangle
// around centre that is as wide as a pixel of the target, at least of the source.
typedef struct tap {
    double centre, support;
    int first, last;
} tap;

static tap tap_at(int target, int target_size, int source_size) {
    const double scale = (double)source_size / target_size;
    tap t = {(target + 0.5) * scale - 0.5, scale > 1 ? scale : 1, 0, 0};
    t.first = clip(ceil(t.centre - t.support), source_size - 1);
    t.last = clip(floor(t.centre + t.support), source_size - 1);
    return t;
}

static double tap_weight(tap t, int source) {
    return fmax(0, 1 - fabs(source - t.centre) / t.support);
}

static color sample_area(const picture *source, tap v, tap u) {
    double sum[3] = {0}, total = 0;
    for (int i = v.first; i <= v.last; i++) {
        const double row_weight = tap_weight(v, i);
        for (int j = u.first; j <= u.last; j++) {
            const double weight = row_weight * tap_weight(u, j);
            const unsigned char *s = pixel_at(source, i, j);
            for (int c = 0; c < 3; c++) {
                sum[c] += weight * s[c];
            }
            total += weight;
        }
    }
    return (color){(unsigned char)(sum[0] / total + 0.5), (unsigned char)(sum[1] / total + 0.5),
                   (unsigned char)(sum[2] / total + 0.5)};
}

void picture_blit(picture *pic, int y, int x, int height, int width, const picture *source) {
    const int y_end = clip((double)y + height, pic->height);
    const int x_end = clip((double)x + width, pic->width);
    for (int i = clip(y, pic->height); i < y_end; i++) {
        const tap v = tap_at(i - y, height, source->height);
        for (int j = clip(x, pic->width); j < x_end; j++) {
            const tap u = tap_at(j - x, width, source->width);
            picture_dot(pic, i, j, sample_area(source, v, u), 1);
        }
    }
}

// ---- overlays -----------------------------------------------------------------------------------

color picture_heat(double v) {
    static const double stops[][3] = {{14, 12, 54},  {66, 24, 118},  {150, 42, 112},
                                      {222, 84, 62}, {250, 158, 44}, {252, 250, 176}};
    const int last = (int)(sizeof stops / sizeof *stops) - 1;
    const double at = (v > 0 ? v < 1 ? v : 1 : 0) * last;
    const int i = clip(at, last - 1);
    const double t = at - i;
    unsigned char rgb[3];
    for (int c = 0; c < 3; c++) {
        rgb[c] = (unsigned char)(stops[i][c] + (stops[i + 1][c] - stops[i][c]) * t + 0.5);
    }
    return (color){rgb[0], rgb[1], rgb[2]};
}

static bool is_lesion(const unsigned char *mask, const picture *pic, int y, int x) {
    return y >= 0 && y < pic->height && x >= 0 && x < pic->width &&
           mask[(size_t)y * (size_t)pic->width + (size_t)x] > 128;
}

static bool on_outline(const unsigned char *mask, const picture *pic, int y, int x) {
    return is_lesion(mask, pic, y, x) &&
           !(is_lesion(mask, pic, y - 1, x) && is_lesion(mask, pic, y + 1, x) &&
             is_lesion(mask, pic, y, x - 1) && is_lesion(mask, pic, y, x + 1));
}

// Raises the ink (0..255 per pixel) to that of a disc around (y, x).
static void ink_disc(unsigned char *ink, const picture *pic, int y, int x, double radius) {
    const int reach = (int)radius + 1;
    const int y_end = clip(y + reach + 1, pic->height), x_end = clip(x + reach + 1, pic->width);
    for (int i = clip(y - reach, pic->height); i < y_end; i++) {
        for (int j = clip(x - reach, pic->width); j < x_end; j++) {
            unsigned char *at = ink + (size_t)i * (size_t)pic->width + (size_t)j;
            const double share = coverage(hypot(i - y, j - x), radius);
            const unsigned char value = (unsigned char)(255 * share + 0.5);
            *at = value > *at ? value : *at;
        }
    }
}

bool picture_overlay_mask(picture *pic, const unsigned char *mask, color c, problem *p) {
    const double tint = 0.08;
    const int side = pic->height < pic->width ? pic->height : pic->width;
    const double radius = 0.4 + side / 320.0;
    unsigned char *ink = calloc((size_t)pic->height, (size_t)pic->width);
    if (!ink) {
        return problem_run(p, "no memory to outline %d x %d pixels", pic->width, pic->height);
    }
    for (int y = 0; y < pic->height; y++) {
        for (int x = 0; x < pic->width; x++) {
            if (on_outline(mask, pic, y, x)) {
                ink_disc(ink, pic, y, x, radius);
            }
        }
    }
    for (int y = 0; y < pic->height; y++) {
        for (int x = 0; x < pic->width; x++) {
            const double line = ink[(size_t)y * (size_t)pic->width + (size_t)x] / 255.0;
            picture_dot(pic, y, x, c, fmax(line, is_lesion(mask, pic, y, x) ? tint : 0));
        }
    }
    free(ink);
    return true;
}

// Bilinear, the map's pixels as areas (align_corners = false), values not above 0 taken as 0.
static double sample_map(const float *map, int height, int width, double v, double u) {
    const double y = fmin(fmax(v, 0), height - 1), x = fmin(fmax(u, 0), width - 1);
    const int y0 = (int)y, x0 = (int)x;
    const int y1 = y0 + 1 < height ? y0 + 1 : y0, x1 = x0 + 1 < width ? x0 + 1 : x0;
    const double b = y - y0, a = x - x0;
    const int at[4][2] = {{y0, x0}, {y0, x1}, {y1, x0}, {y1, x1}};
    const double weight[4] = {(1 - b) * (1 - a), (1 - b) * a, b * (1 - a), b * a};
    double sum = 0;
    for (int k = 0; k < 4; k++) {
        const float value = map[(size_t)at[k][0] * (size_t)width + (size_t)at[k][1]];
        sum += weight[k] * (value > 0 ? fmin(value, 3.0e38) : 0);
    }
    return sum;
}

void picture_overlay_heat(picture *pic, const float *map, int map_height, int map_width) {
    double largest = 0;
    for (size_t i = 0; i < (size_t)map_height * (size_t)map_width; i++) {
        largest = map[i] > largest ? fmin(map[i], 3.0e38) : largest;
    }
    for (int y = 0; y < pic->height; y++) {
        const double v = (y + 0.5) * map_height / pic->height - 0.5;
        for (int x = 0; x < pic->width; x++) {
            const double u = (x + 0.5) * map_width / pic->width - 0.5;
            const double sum = sample_map(map, map_height, map_width, v, u);
            const double heat = largest > 0 ? sum / largest : 0;
            picture_dot(pic, y, x, picture_heat(heat), 0.35 + 0.3 * heat);
        }
    }
}

// ---- panel --------------------------------------------------------------------------------------

enum { PANEL_GAP = 8, PANEL_LABEL = 26 }; // pixels between cells, for a line of text

// Text in the middle of `room` pixels, smaller where it would not fit.
static void text_centred(picture *pic, double y, double x, double room, const char *text) {
    const double fit = room / fmax(picture_text_width(text, 1), 1);
    const double scale = fit > 2 ? 2 : fit < 1 ? 1 : fit;
    const double left = x + (room - picture_text_width(text, scale)) / 2;
    picture_text(pic, y + (2 - scale) * 3.5, fmax(left, x), text, scale, COLOR_BLACK);
}

static double widest_label(const picture_panel_desc *desc) {
    double widest = 0;
    for (int i = 0; desc->row_labels && i < desc->rows; i++) {
        widest = fmax(widest, picture_text_width(desc->row_labels[i], 1.5));
    }
    return fmin(widest, 400);
}

static void fit_into_cell(picture *out, int y, int x, int cell, const picture *source) {
    const double scale =
        (double)cell / (source->height > source->width ? source->height : source->width);
    const int height = clip(source->height * scale + 0.5, cell);
    const int width = clip(source->width * scale + 0.5, cell);
    const int h = height > 0 ? height : 1, w = width > 0 ? width : 1;
    picture_blit(out, y + (cell - h) / 2, x + (cell - w) / 2, h, w, source);
}

bool picture_panel(picture *out, const picture_panel_desc *desc, problem *p) {
    const int cell = desc->cell > 0 ? clip(desc->cell, PICTURE_MAX_SIDE) : 192;
    const int step = cell + PANEL_GAP;
    const int left = PANEL_GAP + (desc->row_labels ? (int)widest_label(desc) + PANEL_GAP : 0);
    const int top = PANEL_GAP + (desc->column_labels ? PANEL_LABEL : 0);
    *out = (picture){0};
    if (desc->rows < 1 || desc->columns < 1 || desc->rows > (PICTURE_MAX_SIDE - top) / step ||
        desc->columns > (PICTURE_MAX_SIDE - left) / step) {
        return problem_run(p, "a panel of %d x %d pictures of %d pixels is too large to draw",
                           desc->rows, desc->columns, cell);
    }
    if (!picture_create(out, top + desc->rows * step, left + desc->columns * step, COLOR_WHITE,
                        p)) {
        return false;
    }
    for (int i = 0; i < desc->rows; i++) {
        const int y = top + i * step;
        if (desc->row_labels) {
            picture_text(out, y + cell / 2 - 6, PANEL_GAP, desc->row_labels[i], 1.5, COLOR_BLACK);
        }
        for (int j = 0; j < desc->columns; j++) {
            const picture *source = &desc->cells[i * desc->columns + j];
            if (source->bytes) {
                fit_into_cell(out, y, left + j * step, cell, source);
            }
        }
    }
    for (int j = 0; desc->column_labels && j < desc->columns; j++) {
        text_centred(out, PANEL_GAP, left + j * step, cell, desc->column_labels[j]);
    }
    return true;
}
