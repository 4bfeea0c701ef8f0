// Drawing into a picture of RGB bytes: lines, text, resized pictures, lesion outlines, activation
// maps and the grids of pictures that the paper's figures are. What falls outside is clipped.
// Coordinates are pixels, height before width; the centre of the upper left pixel is (0, 0).
#ifndef CLNET_PROGRAM_PICTURE_H
#define CLNET_PROGRAM_PICTURE_H

#include "error.h"

typedef struct picture {
    unsigned char *bytes; // (height, width, 3); the same layout as an image_load of IMAGE_RGB
    int height, width;
} picture;

typedef struct color {
    unsigned char r, g, b;
} color;

#define COLOR_BLACK      ((color){20, 22, 26})
#define COLOR_WHITE      ((color){255, 255, 255})
#define COLOR_GREY       ((color){120, 126, 134})
#define COLOR_TRUTH      ((color){40, 220, 120}) // outline of the true lesion
#define COLOR_PREDICTION ((color){60, 170, 255}) // outline of the predicted one

enum { PICTURE_MAX_SIDE = 16384 }; // pixels

// A picture filled with one colour, 1 to PICTURE_MAX_SIDE pixels a side.
bool picture_create(picture *pic, int height, int width, color background, problem *p);

// A copy of (height, width, 3) bytes.
bool picture_copy(picture *pic, const unsigned char *bytes, int height, int width, problem *p);

void picture_free(picture *pic);

bool picture_write(const picture *pic, const char *path, problem *p); // as PNG

// alpha is 0 (nothing) to 1 (opaque).
void picture_dot(picture *pic, int y, int x, color c, double alpha);
void picture_rectangle(picture *pic, int y, int x, int height, int width, color c, double alpha);

// Anti-aliased, with round ends; equal end points give a disc. Nothing is drawn where a coordinate
// is not finite or beyond a million pixels.
void picture_line(picture *pic, double y0, double x0, double y1, double x1, double width, color c);

// Text in the embedded font: ASCII 32 to 126, any other character of UTF-8 as one '?'. A letter is
// 5 units wide and 7 high (descenders 9), 6 from one to the next; `scale` is pixels per unit, >= 1.
void picture_text(picture *pic, double y, double x, const char *text, double scale, color c);
double picture_text_width(const char *text, double scale);

// Whether the font has ink for this character; only the space has none.
bool picture_has_glyph(char c);

// Draws source resized to height x width at (y, x); when it shrinks, all of its pixels count.
void picture_blit(picture *pic, int y, int x, int height, int width, const picture *source);

// The heat map's colour of v: dark blue at 0, over purple and orange, to light yellow at 1; its
// luminance rises all the way, so it also reads in grey. Clamped; NaN is 0.
color picture_heat(double v);

// Tints the lesion and draws its outline. mask (height, width) of the picture, above 128 is lesion.
bool picture_overlay_mask(picture *pic, const unsigned char *mask, color c, problem *p);

// Lays a map (map_height, map_width) over the picture: divided by its largest value, resized
// bilinearly; negatives and NaN count as 0. A map without a positive value is cold (0) everywhere.
void picture_overlay_heat(picture *pic, const float *map, int map_height, int map_width);

typedef struct picture_panel_desc {
    int rows, columns;
    const picture *cells;             // rows * columns, by rows; one without bytes stays blank
    const char *const *row_labels;    // NULL = none
    const char *const *column_labels; // NULL = none
    int cell;                         // side of a cell in pixels; 0 = 192
} picture_panel_desc;

// A grid of pictures with labels, each fitted into its cell: Fig. 3 (image, one activation map per
// network) and Fig. 4 (image, truth, one prediction per network) of the paper.
bool picture_panel(picture *out, const picture_panel_desc *desc, problem *p);

#endif
