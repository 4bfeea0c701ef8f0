// A grid of small pictures that is filled cell by cell, one row per image, and written as one file:
// the figures of the paper. Cells are shrunk when they are set, so that many large images fit.
#ifndef CLNET_PROGRAM_GALLERY_H
#define CLNET_PROGRAM_GALLERY_H

#include "picture.h"

typedef struct gallery {
    int rows, columns;
    picture *cells;       // rows * columns, by rows
    char **row_labels;    // rows
    char **column_labels; // columns
} gallery;

bool gallery_create(gallery *g, int rows, int columns, problem *p);

// Labels are copied. A row appears once it has one.
bool gallery_label_row(gallery *g, int row, const char *label, problem *p);
bool gallery_label_column(gallery *g, int column, const char *label, problem *p);

// A cell from RGB bytes (height, width, 3), or from a mask (height, width), shown white on black.
// Setting a cell again replaces it.
bool gallery_set(gallery *g, int row, int column, const unsigned char *rgb, int height, int width,
                 problem *p);
bool gallery_set_mask(gallery *g, int row, int column, const unsigned char *mask, int height,
                      int width, problem *p);

// Writes the rows that have a label and the columns that have a picture; without any, nothing.
bool gallery_write(const gallery *g, const char *path_png, problem *p);

void gallery_free(gallery *g);

#endif
