#include "plot.h"

#include "picture.h"
#include "trainlog.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- axes ---------------------------------------------------------------------------------------

enum { // pixels
    PANE_HEIGHT = 330,
    PLOT_WIDTH = 700,
    PANE_LEFT = 96,
    PANE_TOP = 44,
    PANE_BOTTOM = 54,
    LEGEND_MIN = 160,
    LEGEND_MAX = 600,
    LEGEND_GAP = 18,
    LEGEND_KEY = 28,
    LEGEND_LINE = 20
};

#define TEXT_SCALE 1.6 // pixels per unit of the font
#define COLOR_GRID ((color){228, 231, 235})

// Eight colours that differ in lightness as well as in hue; further series take them again.
static color series_color(const plot_series *s, size_t place) {
    static const color colors[] = {{31, 105, 193}, {217, 95, 2},  {38, 145, 80}, {190, 50, 110},
                                   {120, 90, 190}, {150, 120, 0}, {0, 150, 170}, {110, 70, 50}};
    const size_t i = s->color > 0 ? (size_t)s->color - 1 : place;
    return colors[i % (sizeof colors / sizeof *colors)];
}

typedef struct axis {
    double low, high, step; // of the ticks, which lie on multiples of step
} axis;

// The step of 1, 2 or 5 times a power of ten that divides the span into about `parts` parts.
static double round_step(double span, double parts) {
    const double raw = span / parts, power = pow(10, floor(log10(raw))), lead = raw / power;
    return power * (lead < 1.5 ? 1 : lead < 3.5 ? 2 : lead < 7.5 ? 5 : 10);
}

// Widens an empty range, so that one value or none still gives axes; widen rounds it outwards.
static axis make_axis(double low, double high, double parts, bool widen) {
    axis a = {low, high, 1};
    if (!(low <= high) || fabs(low) > 1e100 || fabs(high) > 1e100) {
        a.low = 0;
        a.high = 1;
    } else if (high - low <= 1e-9 * fmax(fabs(low), fabs(high)) || high - low < 1e-100) {
        const double pad = low == 0 ? 1 : 0.1 * fabs(low);
        a.low = low - pad;
        a.high = high + pad;
    }
    a.step = round_step(a.high - a.low, parts);
    if (widen) {
        a.low = a.step * floor(a.low / a.step + 1e-9);
        a.high = a.step * ceil(a.high / a.step - 1e-9);
    }
    return a;
}

static double share(axis a, double v) { return (v - a.low) / (a.high - a.low); }

// ---- one pane -----------------------------------------------------------------------------------

typedef struct frame {
    picture *pic;
    axis x, y;
    int top, left, height, width; // of the plotting area
} frame;

static double frame_x(const frame *f, double v) { return f->left + share(f->x, v) * f->width; }

static double frame_y(const frame *f, double v) {
    return f->top + (1 - share(f->y, v)) * f->height;
}

static bool is_point(const plot_series *s, size_t i) {
    return i < s->count && isfinite(s->x[i]) && isfinite(s->y[i]);
}

// Smallest and largest coordinate of all points; low > high where there are none.
static void find_range(const plot_pane *pane, bool of_x, double *low, double *high) {
    *low = INFINITY;
    *high = -INFINITY;
    for (size_t k = 0; k < pane->series_count; k++) {
        const plot_series *s = &pane->series[k];
        for (size_t i = 0; i < s->count; i++) {
            if (is_point(s, i)) {
                const double v = of_x ? s->x[i] : s->y[i];
                *low = fmin(*low, v);
                *high = fmax(*high, v);
            }
        }
    }
}

static axis pane_axis(const plot_pane *pane, bool of_x) {
    double low = of_x ? pane->x_min : pane->y_min, high = of_x ? pane->x_max : pane->y_max;
    const bool given = low < high;
    if (!given) {
        find_range(pane, of_x, &low, &high);
    }
    axis a = make_axis(low, high, of_x && !pane->square ? 10 : 5, !given && !of_x);
    a.step = of_x && pane->whole_x ? fmax(a.step, 1) : a.step;
    return a;
}

static void draw_x_tick(const frame *f, double v) {
    char text[32];
    snprintf(text, sizeof text, "%.4g", v);
    const double x = frame_x(f, v), bottom = f->top + f->height;
    picture_line(f->pic, f->top, x, bottom, x, 1, COLOR_GRID);
    picture_text(f->pic, bottom + 8, x - picture_text_width(text, TEXT_SCALE) / 2, text, TEXT_SCALE,
                 COLOR_GREY);
}

static void draw_y_tick(const frame *f, double v) {
    char text[32];
    snprintf(text, sizeof text, "%.4g", v);
    const double y = frame_y(f, v);
    picture_line(f->pic, y, f->left, y, f->left + f->width, 1, COLOR_GRID);
    picture_text(f->pic, y - 5, f->left - 10 - picture_text_width(text, TEXT_SCALE), text,
                 TEXT_SCALE, COLOR_GREY);
}

// Calls draw for each multiple of the step within the axis.
static void for_ticks(const frame *f, axis a, void (*draw)(const frame *, double)) {
    const double first = ceil(a.low / a.step - 1e-6);
    for (int i = 0; i < 50 && (first + i) * a.step <= a.high + 1e-6 * a.step; i++) {
        const double v = (first + i) * a.step;
        draw(f, fabs(v) < 1e-9 * a.step ? 0 : v);
    }
}

// A coordinate outside a given range is drawn on the border.
static double within(double v, double low, double high) {
    return v < low ? low : v > high ? high : v;
}

static void draw_series(const frame *f, const plot_series *s, color ink) {
    const double bottom = f->top + f->height, right = f->left + f->width;
    for (size_t i = 0; i < s->count; i++) {
        if (!is_point(s, i)) {
            continue;
        }
        const double y = within(frame_y(f, s->y[i]), f->top, bottom);
        const double x = within(frame_x(f, s->x[i]), f->left, right);
        const bool joined = i > 0 && is_point(s, i - 1);
        if (joined) {
            picture_line(f->pic, within(frame_y(f, s->y[i - 1]), f->top, bottom),
                         within(frame_x(f, s->x[i - 1]), f->left, right), y, x, 2, ink);
        }
        if (!joined && !is_point(s, i + 1)) {
            picture_line(f->pic, y, x, y, x, 7, ink); // a lone point
        }
    }
}

static void draw_legend(const frame *f, const plot_pane *pane) {
    const int left = f->left + f->width + LEGEND_GAP;
    for (size_t k = 0; k < pane->series_count && k < (size_t)f->height / LEGEND_LINE; k++) {
        const double y = f->top + 8 + (double)k * LEGEND_LINE;
        picture_line(f->pic, y, left, y, left + 18, 4, series_color(&pane->series[k], k));
        picture_text(f->pic, y - 5, left + LEGEND_KEY, pane->series[k].label, TEXT_SCALE,
                     COLOR_BLACK);
    }
}

// The room beside the plotting area that the longest label takes.
static int legend_width(const plot_pane *pane) {
    double widest = LEGEND_MIN;
    for (size_t k = 0; k < pane->series_count; k++) {
        const double text = picture_text_width(pane->series[k].label, TEXT_SCALE);
        widest = fmax(widest, text + 2 * LEGEND_GAP + LEGEND_KEY);
    }
    return (int)fmin(widest, LEGEND_MAX);
}

static void draw_pane(picture *pic, int top, const plot_pane *pane) {
    const int height = pane->square ? PLOT_WIDTH / 2 : PANE_HEIGHT - PANE_TOP - PANE_BOTTOM;
    const frame f = {pic,
                     pane_axis(pane, true),
                     pane_axis(pane, false),
                     top + PANE_TOP,
                     PANE_LEFT,
                     height,
                     pane->square ? height : PLOT_WIDTH};
    for_ticks(&f, f.x, draw_x_tick);
    for_ticks(&f, f.y, draw_y_tick);
    const double bottom = f.top + f.height, right = f.left + f.width;
    picture_line(pic, bottom, f.left, bottom, right, 1, COLOR_GREY);
    picture_line(pic, f.top, f.left, bottom, f.left, 1, COLOR_GREY);
    if (pane->diagonal) {
        picture_line(pic, bottom, f.left, f.top, right, 1, COLOR_GREY);
    }
    for (size_t k = 0; k < pane->series_count; k++) {
        draw_series(&f, &pane->series[k], series_color(&pane->series[k], k));
    }
    if (pane->title) {
        picture_text(pic, top + 14, f.left, pane->title, 2, COLOR_BLACK);
    }
    if (pane->x_label) {
        const double width = picture_text_width(pane->x_label, TEXT_SCALE);
        picture_text(pic, bottom + 28, f.left + (f.width - width) / 2, pane->x_label, TEXT_SCALE,
                     COLOR_GREY);
    }
    draw_legend(&f, pane);
}

static int pane_height(const plot_pane *pane) {
    return pane->square ? PLOT_WIDTH / 2 + PANE_TOP + PANE_BOTTOM : PANE_HEIGHT;
}

bool plot_curves(const char *path_png, const plot_pane *panes, size_t pane_count, problem *p) {
    int height = 0, width = 0;
    for (size_t i = 0; i < pane_count; i++) {
        const int right = (panes[i].square ? PLOT_WIDTH / 2 : PLOT_WIDTH) + legend_width(&panes[i]);
        height += pane_height(&panes[i]);
        width = right > width ? right : width;
    }
    picture pic;
    if (!picture_create(&pic, height, PANE_LEFT + width, COLOR_WHITE, p)) {
        return false;
    }
    int top = 0;
    for (size_t i = 0; i < pane_count; i++) {
        draw_pane(&pic, top, &panes[i]);
        top += pane_height(&panes[i]);
    }
    const bool ok = picture_write(&pic, path_png, p);
    picture_free(&pic);
    return ok;
}

bool plot_roc(const char *path_png, const plot_series *classes, size_t class_count, problem *p) {
    const plot_pane pane = {.title = "ROC: true positive rate",
                            .x_label = "false positive rate",
                            .series = classes,
                            .series_count = class_count,
                            .x_max = 1,
                            .y_max = 1,
                            .square = true,
                            .diagonal = true};
    return plot_curves(path_png, &pane, 1, p);
}

// ---- the log of a training ----------------------------------------------------------------------

enum { PANE_LOSS, PANE_VALIDATION, PANE_LR, LOG_PANES };

// The pane that a column belongs to, or -1.
static int pane_of(const char *name) {
    return strncmp(name, "loss", 4) == 0 || strncmp(name, "val.loss", 8) == 0 ? PANE_LOSS
           : strncmp(name, "val.", 4) == 0                                    ? PANE_VALIDATION
           : strcmp(name, "lr") == 0                                          ? PANE_LR
                                                                              : -1;
}

static size_t gather_series(const trainlog *log, const double *epochs, int pane, plot_series *out) {
    size_t count = 0;
    for (int c = 0; c < log->columns; c++) {
        if (pane_of(log->names[c]) == pane) {
            out[count++] = (plot_series){log->names[c], epochs,
                                         log->values + (size_t)c * log->capacity, log->rows, 0};
        }
    }
    return count;
}

// Rates are shown from 0 to 1, so that plots of several runs can be compared; anything else is not.
static bool are_rates(const plot_pane *pane) {
    double low, high;
    find_range(pane, false, &low, &high);
    return low >= 0 && high <= 1;
}

static bool draw_log(const trainlog *log, const char *path_csv, const char *path_png, problem *p) {
    static const char *const titles[LOG_PANES] = {"losses", "validation", "learning rate"};
    plot_series series[LOG_PANES][TRAINLOG_COLUMNS];
    plot_pane panes[LOG_PANES];
    const double *epochs = trainlog_column(log, "epoch");
    if (!epochs) {
        return problem_input(p, "%s: has no column \"epoch\" in its first line", path_csv);
    }
    for (int i = 0; i < LOG_PANES; i++) {
        panes[i] = (plot_pane){.title = titles[i],
                               .x_label = "epoch",
                               .series = series[i],
                               .series_count = gather_series(log, epochs, i, series[i]),
                               .whole_x = true};
    }
    panes[PANE_VALIDATION].y_max = are_rates(&panes[PANE_VALIDATION]) ? 1 : 0;
    return plot_curves(path_png, panes, LOG_PANES, p);
}

bool plot_log_csv(const char *path_csv, const char *path_png, problem *p) {
    trainlog log;
    if (!trainlog_read(path_csv, &log, p)) {
        return false;
    }
    const bool ok = draw_log(&log, path_csv, path_png, p);
    trainlog_free(&log);
    return ok;
}
