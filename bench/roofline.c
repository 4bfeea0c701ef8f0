// The roofline picture: GFLOP/s over operations per byte, both as powers of two, one pane per
// device. (Williams, Waterman, Patterson: Roofline, CACM 2009.)
#include "ops.h"
#include "picture.h"

#include <math.h>
#include <string.h>

enum { WIDTH = 1000, HEIGHT = 560, LEFT = 80, RIGHT = 30, TOP = 60, BOTTOM = 60, PANES = 16 };

// A pane: its place, the range of its axes in powers of two, the roof.
typedef struct pane {
    picture *pic;
    int top; // pixels
    double x_min, x_max, y_min, y_max;
    double peak, gbs;
} pane;

static const color pass_colors[] = {{30, 110, 200}, {210, 120, 20}, {40, 150, 80}};
static const char *const pass_names[] = {"forward", "backward_data", "backward_weight"};
enum { PASSES = 3 };

static bool has_point(const bench_row *row) {
    return row->status == BENCH_OK && row->gflops > 0 && row->gbs > 0;
}

static double intensity(const bench_row *row) { return row->gflops / row->gbs; }

static double x_of(const pane *n, double x) {
    return LEFT + (log2(x) - n->x_min) / (n->x_max - n->x_min) * (WIDTH - LEFT - RIGHT);
}

static double y_of(const pane *n, double y) {
    return n->top + HEIGHT - BOTTOM -
           (log2(y) - n->y_min) / (n->y_max - n->y_min) * (HEIGHT - TOP - BOTTOM);
}

// Whole powers of two around all points and the roof's ridge.
static pane pane_of(picture *pic, int top, const bench_row *rows, size_t count) {
    pane n = {.pic = pic, .top = top, .peak = rows[0].peak_gflops, .gbs = rows[0].peak_gbs};
    double x_least = n.peak / n.gbs, x_most = x_least, y_least = n.peak, y_most = n.peak;
    for (size_t i = 0; i < count; i++) {
        if (has_point(&rows[i]) && !strcmp(rows[i].device, rows[0].device)) {
            x_least = fmin(x_least, intensity(&rows[i]));
            x_most = fmax(x_most, intensity(&rows[i]));
            y_least = fmin(y_least, rows[i].gflops);
            y_most = fmax(y_most, rows[i].gflops);
        }
    }
    n.x_min = floor(log2(x_least) - 0.5);
    n.x_max = ceil(log2(x_most) + 0.5);
    n.y_min = floor(log2(y_least) - 0.5);
    n.y_max = ceil(log2(y_most) + 0.5);
    return n;
}

// 2^power as a short number.
static void tick_label(char text[32], double power) { snprintf(text, 32, "%.4g", exp2(power)); }

static void draw_axes(const pane *n) {
    char text[32];
    const color grid = {226, 229, 233};
    const double left = LEFT, right = WIDTH - RIGHT;
    const double top = n->top + TOP, bottom = n->top + HEIGHT - BOTTOM;
    for (double power = n->x_min; power <= n->x_max; power++) {
        const double x = x_of(n, exp2(power));
        tick_label(text, power);
        picture_line(n->pic, top, x, bottom, x, 1, grid);
        picture_text(n->pic, bottom + 8, x - picture_text_width(text, 1.5) / 2, text, 1.5,
                     COLOR_BLACK);
    }
    for (double power = n->y_min; power <= n->y_max; power++) {
        const double y = y_of(n, exp2(power));
        tick_label(text, power);
        picture_line(n->pic, y, left, y, right, 1, grid);
        picture_text(n->pic, y - 5, left - 8 - picture_text_width(text, 1.5), text, 1.5,
                     COLOR_BLACK);
    }
    picture_text(n->pic, bottom + 30, (left + right) / 2 - 150,
                 "operations (direct algorithm) per byte", 1.5, COLOR_BLACK);
    picture_text(n->pic, n->top + 36, 10, "GFLOP/s", 1.5, COLOR_BLACK);
}

// The line of copying up to the ridge, then that of multiply-adds.
static void draw_roof(const pane *n) {
    char text[96];
    const double ridge = n->peak / n->gbs, lowest = fmax(exp2(n->x_min), exp2(n->y_min) / n->gbs);
    const double y = y_of(n, n->peak), x = x_of(n, ridge);
    picture_line(n->pic, y_of(n, lowest * n->gbs), x_of(n, lowest), y, x, 2, COLOR_BLACK);
    picture_line(n->pic, y, x, y, WIDTH - RIGHT, 2, COLOR_BLACK);
    snprintf(text, sizeof text, "%.4g GFLOP/s, %.4g GB/s", n->peak, n->gbs);
    picture_text(n->pic, y - 18, WIDTH - RIGHT - picture_text_width(text, 1.5), text, 1.5,
                 COLOR_BLACK);
}

static void draw_points(const pane *n, const bench_row *rows, size_t count) {
    for (size_t i = 0; i < count; i++) {
        for (int pass = 0; pass < PASSES; pass++) {
            if (has_point(&rows[i]) && !strcmp(rows[i].device, rows[0].device) &&
                !strcmp(rows[i].pass, pass_names[pass])) {
                const double y = y_of(n, rows[i].gflops), x = x_of(n, intensity(&rows[i]));
                picture_line(n->pic, y, x, y, x, 9, pass_colors[pass]);
            }
        }
    }
}

static void draw_legend(const pane *n, const char *device) {
    double x = LEFT;
    picture_text(n->pic, n->top + 12, x, device, 2, COLOR_BLACK);
    for (int pass = 0; pass < PASSES; pass++) {
        x = LEFT + 60 + 190 * pass;
        picture_line(n->pic, n->top + 42, x, n->top + 42, x, 9, pass_colors[pass]);
        picture_text(n->pic, n->top + 36, x + 12, pass_names[pass], 1.5, COLOR_BLACK);
    }
}

// The first row of each device whose peaks are known and that has a point.
static int find_panes(const bench_row *rows, size_t count, size_t first[PANES]) {
    int panes = 0;
    for (size_t i = 0; i < count && panes < PANES; i++) {
        bool is_new = has_point(&rows[i]) && rows[i].peak_gflops > 0 && rows[i].peak_gbs > 0;
        for (int k = 0; is_new && k < panes; k++) {
            is_new = strcmp(rows[first[k]].device, rows[i].device) != 0;
        }
        if (is_new) {
            first[panes++] = i;
        }
    }
    return panes;
}

bool bench_roofline(const char *path, const bench_row *rows, size_t count, problem *p) {
    size_t first[PANES];
    const int panes = find_panes(rows, count, first);
    picture pic;
    if (panes == 0) {
        return problem_run(p, "--roofline %s: no case has multiply-adds to show", path);
    }
    if (!picture_create(&pic, panes * HEIGHT, WIDTH, COLOR_WHITE, p)) {
        return false;
    }
    for (int i = 0; i < panes; i++) {
        const bench_row *from = rows + first[i];
        const pane n = pane_of(&pic, i * HEIGHT, from, count - first[i]);
        draw_axes(&n);
        draw_roof(&n);
        draw_points(&n, from, count - first[i]);
        draw_legend(&n, from->device);
    }
    const bool ok = picture_write(&pic, path, p);
    picture_free(&pic);
    return ok;
}
