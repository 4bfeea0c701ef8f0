#include "gallery.h"

#include <stdlib.h>
#include <string.h>

enum { CELL = 224 }; // pixels of the longer side

bool gallery_create(gallery *g, int rows, int columns, problem *p) {
    *g = (gallery){.rows = rows,
                   .columns = columns,
                   .cells = calloc((size_t)rows * (size_t)columns, sizeof(picture)),
                   .row_labels = calloc((size_t)rows, sizeof(char *)),
                   .column_labels = calloc((size_t)columns, sizeof(char *))};
    if (g->cells && g->row_labels && g->column_labels) {
        return true;
    }
    gallery_free(g);
    return problem_run(p, "no memory for a panel of %d x %d pictures", rows, columns);
}

static bool set_label(char **label, const char *text, problem *p) {
    char *copy = malloc(strlen(text) + 1);
    if (!copy) {
        return problem_run(p, "no memory for the label %s", text);
    }
    free(*label);
    *label = strcpy(copy, text);
    return true;
}

bool gallery_label_row(gallery *g, int row, const char *label, problem *p) {
    return set_label(&g->row_labels[row], label, p);
}

bool gallery_label_column(gallery *g, int column, const char *label, problem *p) {
    return set_label(&g->column_labels[column], label, p);
}

bool gallery_set(gallery *g, int row, int column, const unsigned char *rgb, int height, int width,
                 problem *p) {
    picture *cell = &g->cells[(size_t)row * (size_t)g->columns + (size_t)column];
    const int longer = height > width ? height : width;
    const double scale = longer > CELL ? (double)CELL / longer : 1;
    const int h = (int)(height * scale + 0.5), w = (int)(width * scale + 0.5);
    picture full = {0};
    picture_free(cell);
    const bool ok = picture_create(cell, h > 0 ? h : 1, w > 0 ? w : 1, COLOR_BLACK, p) &&
                    picture_copy(&full, rgb, height, width, p);
    if (ok) {
        picture_blit(cell, 0, 0, cell->height, cell->width, &full);
    }
    picture_free(&full);
    return ok;
}

// A thin line around a cell, so that a mask that is all lesion is told from the white page.
static void frame(picture *cell) {
    picture_rectangle(cell, 0, 0, 1, cell->width, COLOR_GREY, 1);
    picture_rectangle(cell, cell->height - 1, 0, 1, cell->width, COLOR_GREY, 1);
    picture_rectangle(cell, 0, 0, cell->height, 1, COLOR_GREY, 1);
    picture_rectangle(cell, 0, cell->width - 1, cell->height, 1, COLOR_GREY, 1);
}

bool gallery_set_mask(gallery *g, int row, int column, const unsigned char *mask, int height,
                      int width, problem *p) {
    const size_t pixels = (size_t)height * (size_t)width;
    unsigned char *rgb = malloc(3 * pixels);
    if (!rgb) {
        return problem_run(p, "no memory for the picture of a mask");
    }
    for (size_t i = 0; i < pixels; i++) {
        memset(rgb + 3 * i, mask[i] > 128 ? 255 : 0, 3);
    }
    const bool ok = gallery_set(g, row, column, rgb, height, width, p);
    if (ok) {
        frame(&g->cells[(size_t)row * (size_t)g->columns + (size_t)column]);
    }
    free(rgb);
    return ok;
}

static bool column_used(const gallery *g, int column) {
    bool used = false;
    for (int row = 0; row < g->rows; row++) {
        used = used || g->cells[(size_t)row * (size_t)g->columns + (size_t)column].bytes;
    }
    return used;
}

// The rows and columns in use, closed up as a panel wants them. The cells stay the gallery's.
static picture_panel_desc close_up(const gallery *g, picture *cells, const char **row_labels,
                                   const char **column_labels) {
    picture_panel_desc desc = {
        .cells = cells, .row_labels = row_labels, .column_labels = column_labels, .cell = CELL};
    size_t used = 0;
    for (int column = 0; column < g->columns; column++) {
        if (column_used(g, column)) {
            column_labels[desc.columns++] = g->column_labels[column];
        }
    }
    for (int row = 0; row < g->rows; row++) {
        if (!g->row_labels[row]) {
            continue;
        }
        row_labels[desc.rows++] = g->row_labels[row];
        for (int column = 0; column < g->columns; column++) {
            if (column_used(g, column)) {
                cells[used++] = g->cells[(size_t)row * (size_t)g->columns + (size_t)column];
            }
        }
    }
    return desc;
}

bool gallery_write(const gallery *g, const char *path_png, problem *p) {
    picture *cells = malloc((size_t)g->rows * (size_t)g->columns * sizeof *cells);
    const char **rows = malloc((size_t)g->rows * sizeof *rows);
    const char **columns = malloc((size_t)g->columns * sizeof *columns);
    bool ok = (cells && rows && columns) || problem_run(p, "%s: no memory to draw it", path_png);
    if (ok) {
        const picture_panel_desc desc = close_up(g, cells, rows, columns);
        picture panel = {0};
        ok = desc.rows == 0 || desc.columns == 0 ||
             (picture_panel(&panel, &desc, p) && picture_write(&panel, path_png, p));
        picture_free(&panel);
    }
    free(columns);
    free(rows);
    free(cells);
    return ok;
}

void gallery_free(gallery *g) {
    for (int i = 0; g->cells && i < g->rows * g->columns; i++) {
        picture_free(&g->cells[i]);
    }
    for (int i = 0; g->row_labels && i < g->rows; i++) {
        free(g->row_labels[i]);
    }
    for (int i = 0; g->column_labels && i < g->columns; i++) {
        free(g->column_labels[i]);
    }
    free(g->cells);
    free(g->row_labels);
    free(g->column_labels);
    *g = (gallery){0};
}
