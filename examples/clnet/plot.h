// Line plots: training curves, ROC curves. Drawn with picture.h, left as PNG files.
#ifndef CLNET_PROGRAM_PLOT_H
#define CLNET_PROGRAM_PLOT_H

#include "error.h"

#include <stddef.h>

typedef struct plot_series {
    const char *label;
    const double *x, *y; // count points; a point that is not finite leaves a gap
    size_t count;
    int color; // 0: by the place in its pane; else the same number has the same colour everywhere
} plot_series;

// One coordinate system. A range whose minimum equals its maximum (0, 0) is taken from the points.
typedef struct plot_pane {
    const char *title, *x_label; // NULL = none
    const plot_series *series;
    size_t series_count;
    double x_min, x_max, y_min, y_max;
    bool whole_x;  // ticks at whole numbers only
    bool square;   // as wide as high (ROC)
    bool diagonal; // a grey line from corner to corner: the ROC curve of guessing
} plot_pane;

// Draws the panes below one another. Panes without points show empty axes.
bool plot_curves(const char *path_png, const plot_pane *panes, size_t pane_count, problem *p);

// ROC curves, x the false and y the true positive rate; labels carry the AUC.
bool plot_roc(const char *path_png, const plot_series *classes, size_t class_count, problem *p);

// Draws the log of a training, a CSV file whose first line names its columns, in three panes over
// the column `epoch`: `loss*` and `val.loss*`; every other `val.*`; `lr`. Other columns are left
// out. An empty or unreadable value leaves a gap; a log without rows gives empty axes.
bool plot_log_csv(const char *path_csv, const char *path_png, problem *p);

#endif
