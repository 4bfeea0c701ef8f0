#include "figures.h"

#include "csv.h"
#include "disk.h"
#include "gallery.h"
#include "image.h"
#include "measure.h"
#include "options.h"
#include "plot.h"
#include "result.h"
#include "trainlog.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_NETWORKS = 16 };

// ---- Fig. 3 and Fig. 4 --------------------------------------------------------------------------

enum { PAPER_COLUMNS = 4 };
static const char *const paper_maps[PAPER_COLUMNS] = {"resnet50", "resnet50+unet", "inception_v3",
                                                      "inception_v3+unet"};
static const char *const paper_masks[PAPER_COLUMNS] = {"unet", "resnet50+unet", "resunet",
                                                       "resnet50+resunet"};

// The networks of a figure: those of the paper, in its order, else all that have the task.
static size_t choose(const figures *f, const char *const paper[PAPER_COLUMNS],
                     bool (*fits)(const char *model), const figures_network *chosen[MAX_NETWORKS]) {
    size_t count = 0;
    for (int k = 0; k < PAPER_COLUMNS; k++) {
        for (size_t i = 0; i < f->count; i++) {
            if (!strcmp(f->networks[i].model, paper[k])) {
                chosen[count++] = &f->networks[i];
            }
        }
    }
    if (count > 0) {
        return count;
    }
    for (size_t i = 0; i < f->count && count < MAX_NETWORKS; i++) {
        if (fits(f->networks[i].model)) {
            chosen[count++] = &f->networks[i];
        }
    }
    return count;
}

// An image file as a cell.
static bool set_image(gallery *g, int row, int column, const char *path, image_kind kind,
                      problem *p) {
    image im;
    if (!image_load(path, kind, &im, p)) {
        return false;
    }
    const bool ok = kind == IMAGE_MASK
                        ? gallery_set_mask(g, row, column, im.bytes, im.height, im.width, p)
                        : gallery_set(g, row, column, im.bytes, im.height, im.width, p);
    image_free(&im);
    return ok;
}

// One figure: columns before those of the networks, which are what lies in a folder of theirs.
typedef struct figure_kind {
    const char *const *models; // of the paper
    bool (*fits)(const char *model);
    const char *folder, *ending; // cams/ID.png
    image_kind kind;
    bool truth; // a column of true masks behind the images
} figure_kind;

// The cells of one image. A file that a network's folder lacks leaves its cell empty.
static bool set_row(const figures *f, const figure_kind *kind, gallery *g, int row, size_t item,
                    const figures_network *const *chosen, size_t count, bool *drawn, problem *p) {
    const dataset_item *of = &f->data->items[item];
    const int before = kind->truth ? 2 : 1;
    bool ok = gallery_label_row(g, row, of->id, p) &&
              set_image(g, row, 0, of->image, IMAGE_RGB, p) &&
              (!kind->truth || !of->mask || set_image(g, row, 1, of->mask, IMAGE_MASK, p));
    for (size_t i = 0; ok && i < count; i++) {
        char name[CSV_MAX_ID + 64], path[DISK_PATH];
        snprintf(name, sizeof name, "%s/%s%s", kind->folder, of->id, kind->ending);
        ok = disk_join(path, chosen[i]->folder, name, p);
        if (ok && disk_exists(path)) {
            ok = set_image(g, row, before + (int)i, path, kind->kind, p);
            *drawn = true;
        }
    }
    return ok;
}

static bool label_columns(const figure_kind *kind, gallery *g, const figures_network *const *chosen,
                          size_t count, problem *p) {
    const int before = kind->truth ? 2 : 1;
    bool ok = gallery_label_column(g, 0, "image", p) &&
              (!kind->truth || gallery_label_column(g, 1, "truth", p));
    for (size_t i = 0; ok && i < count; i++) {
        char title[RESULT_TITLE];
        ok = gallery_label_column(g, before + (int)i, result_title(title, chosen[i]->model), p);
    }
    return ok;
}

static bool draw(const figures *f, const figure_kind *kind, const char *path_png, bool *drawn,
                 problem *p) {
    const figures_network *chosen[MAX_NETWORKS];
    const size_t count = choose(f, kind->models, kind->fits, chosen);
    size_t examples[MEASURE_EXAMPLES];
    const size_t rows = measure_examples(f->data, examples);
    gallery g;
    *drawn = false;
    if (!gallery_create(&g, (int)rows, (int)count + 2, p)) {
        return false;
    }
    bool ok = label_columns(kind, &g, chosen, count, p);
    for (size_t i = 0; ok && i < rows; i++) {
        ok = set_row(f, kind, &g, (int)i, examples[i], chosen, count, drawn, p);
    }
    ok = ok && (!*drawn || gallery_write(&g, path_png, p));
    gallery_free(&g);
    return ok;
}

bool figures_maps(const figures *f, const char *path_png, bool *drawn, problem *p) {
    const figure_kind kind = {paper_maps, result_classifies, "cams", ".png", IMAGE_RGB, false};
    return draw(f, &kind, path_png, drawn, p);
}

bool figures_masks(const figures *f, const char *path_png, bool *drawn, problem *p) {
    const figure_kind kind = {paper_masks,         result_segments, "masks",
                              "_segmentation.png", IMAGE_MASK,      true};
    return draw(f, &kind, path_png, drawn, p);
}

// ---- ROC ----------------------------------------------------------------------------------------

typedef struct curve {
    double *x, *y;
    size_t count;
    char label[RESULT_TITLE + 32];
} curve;

static void curve_free(curve *v) {
    free(v->x);
    free(v->y);
    *v = (curve){0};
}

// The scores of one class and whether it is the truth, of the images with a label and a score.
static size_t gather(const dataset *data, const csv_table *table, int label, double *scores,
                     unsigned char *truth) {
    size_t count = 0;
    for (size_t i = 0; i < data->count; i++) {
        const csv_row *row = csv_find(table, data->items[i].id);
        if (row && data->items[i].label != DATASET_NO_LABEL) {
            scores[count] = label == DATASET_MELANOMA ? row->melanoma : row->keratosis;
            truth[count++] = data->items[i].label == label;
        }
    }
    return count;
}

// No points where one side is missing: the curve is not defined then.
static bool curve_make(const figures *f, const csv_table *table, int label, const char *name,
                       curve *v, problem *p) {
    const size_t room = f->data->count + 1;
    double *scores = malloc(room * sizeof *scores);
    unsigned char *truth = malloc(room);
    clnet_roc_point *points = malloc(room * sizeof *points);
    clnet_classification_metrics metrics;
    *v = (curve){.x = malloc(room * sizeof(double)), .y = malloc(room * sizeof(double))};
    bool ok = (scores && truth && points && v->x && v->y) ||
              problem_run(p, "no memory for a curve of %zu points", room);
    if (ok) {
        const size_t count = gather(f->data, table, label, scores, truth);
        ok = (clnet_classification_score(f->ctx, scores, truth, count, &metrics) == CLNET_OK &&
              clnet_roc_curve(f->ctx, scores, truth, count, points, &v->count) == CLNET_OK) ||
             problem_context(p, f->ctx);
    }
    for (size_t i = 0; ok && i < v->count; i++) {
        v->x[i] = points[i].false_positive_rate;
        v->y[i] = points[i].true_positive_rate;
    }
    if (ok) {
        snprintf(v->label, sizeof v->label,
                 isnan(metrics.auc) ? "%s (AUC not defined)" : "%s (AUC %.3f)", name, metrics.auc);
    }
    free(points);
    free(truth);
    free(scores);
    return ok;
}

enum { ROC_CLASSES = 2 };
static const char *const class_names[ROC_CLASSES] = {"melanoma", "seborrheic keratosis"};

// Both curves of a network, where it has predictions. With one network the classes are the names.
static bool make_curves(const figures *f, const figures_network *n, curve v[ROC_CLASSES],
                        bool *drawn, problem *p) {
    char path[DISK_PATH], title[RESULT_TITLE];
    csv_table table;
    if (!result_classifies(n->model)) {
        return true;
    }
    if (!disk_join(path, n->folder, "predictions.csv", p) ||
        !csv_read(path, CSV_SCORES, &table, p)) {
        return false;
    }
    bool ok = true;
    for (int label = 0; ok && label < ROC_CLASSES; label++) {
        const char *name = f->count > 1 ? result_title(title, n->model) : class_names[label];
        ok = curve_make(f, &table, label, name, &v[label], p);
        *drawn = *drawn || v[label].count > 0;
    }
    csv_free(&table);
    return ok;
}

// Several networks: a plot for each class. One: both classes in one plot.
static bool plot_curves_of(const figures *f, curve (*curves)[ROC_CLASSES], const char *path_png,
                           problem *p) {
    plot_series series[ROC_CLASSES][MAX_NETWORKS * ROC_CLASSES];
    plot_pane panes[ROC_CLASSES];
    const bool one = f->count == 1;
    for (int label = 0; label < ROC_CLASSES; label++) {
        panes[label] = (plot_pane){.x_label = "false positive rate",
                                   .x_max = 1,
                                   .y_max = 1,
                                   .square = true,
                                   .diagonal = true,
                                   .series = series[label]};
    }
    panes[0].title = one ? "ROC: true positive rate" : "melanoma: true positive rate";
    panes[1].title = "seborrheic keratosis: true positive rate";
    for (size_t i = 0; i < f->count; i++) {
        for (int label = 0; label < ROC_CLASSES; label++) {
            const curve *v = &curves[i][label];
            plot_pane *pane = &panes[one ? 0 : label];
            if (v->label[0]) {
                series[one ? 0 : label][pane->series_count++] =
                    (plot_series){v->label, v->x, v->y, v->count, one ? 0 : (int)i + 1};
            }
        }
    }
    return plot_curves(path_png, panes, one ? 1 : ROC_CLASSES, p);
}

bool figures_roc(const figures *f, const char *path_png, bool *drawn, problem *p) {
    curve curves[MAX_NETWORKS][ROC_CLASSES] = {{{0}}};
    bool ok = true;
    *drawn = false;
    for (size_t i = 0; ok && i < f->count; i++) {
        ok = make_curves(f, &f->networks[i], curves[i], drawn, p);
    }
    ok = ok && (!*drawn || plot_curves_of(f, curves, path_png, p));
    for (size_t i = 0; i < f->count; i++) {
        curve_free(&curves[i][0]);
        curve_free(&curves[i][1]);
    }
    return ok;
}

// ---- training -----------------------------------------------------------------------------------

enum { CURVE_PANES = 3 };
static const char *const curve_columns[CURVE_PANES] = {"loss", "val.jaccard", "val.mean_auc"};
static const char *const curve_titles[CURVE_PANES] = {
    "training loss (sum of the tasks)", "validation: Jaccard index", "validation: mean AUC"};

static bool any_finite(const double *values, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (isfinite(values[i])) {
            return true;
        }
    }
    return false;
}

// What the networks' logs have in common, as they are read.
typedef struct curves {
    plot_series series[CURVE_PANES][MAX_NETWORKS];
    size_t counts[CURVE_PANES];
    trainlog logs[MAX_NETWORKS];
    char labels[MAX_NETWORKS][RESULT_TITLE];
} curves;

static bool add_log(const figures_network *n, size_t index, curves *c, problem *p) {
    char path[DISK_PATH];
    trainlog *log = &c->logs[index];
    if (!disk_join(path, n->training, "log.csv", p)) {
        return false;
    }
    if (!disk_exists(path)) {
        return true;
    }
    if (!trainlog_read(path, log, p)) {
        return false;
    }
    const double *epochs = trainlog_column(log, "epoch");
    result_title(c->labels[index], n->model);
    for (int k = 0; epochs && k < CURVE_PANES; k++) {
        const double *values = trainlog_column(log, curve_columns[k]);
        if (values && any_finite(values, log->rows)) {
            c->series[k][c->counts[k]++] =
                (plot_series){c->labels[index], epochs, values, log->rows, (int)index + 1};
        }
    }
    return true;
}

// The panes that have a line.
static bool plot_logs(const curves *c, const char *path_png, bool *drawn, problem *p) {
    plot_pane panes[CURVE_PANES];
    size_t count = 0;
    for (int k = 0; k < CURVE_PANES; k++) {
        if (c->counts[k] > 0) {
            panes[count++] = (plot_pane){.title = curve_titles[k],
                                         .x_label = "epoch",
                                         .series = c->series[k],
                                         .series_count = c->counts[k],
                                         .whole_x = true};
        }
    }
    *drawn = count > 0;
    return count == 0 || plot_curves(path_png, panes, count, p);
}

static bool compare_logs(const figures *f, const char *path_png, bool *drawn, problem *p) {
    curves *c = calloc(1, sizeof *c);
    bool ok = c || problem_run(p, "%s: no memory to draw it", path_png);
    for (size_t i = 0; ok && i < f->count; i++) {
        ok = !f->networks[i].training || add_log(&f->networks[i], i, c, p);
    }
    ok = ok && plot_logs(c, path_png, drawn, p);
    for (size_t i = 0; c && i < f->count; i++) {
        trainlog_free(&c->logs[i]);
    }
    free(c);
    return ok;
}

bool figures_curves(const figures *f, const char *path_png, bool *drawn, problem *p) {
    char path[DISK_PATH];
    *drawn = false;
    if (f->count > 1) {
        return compare_logs(f, path_png, drawn, p);
    }
    if (f->count == 0 || !f->networks[0].training) {
        return true;
    }
    if (!disk_join(path, f->networks[0].training, "log.csv", p)) {
        return false;
    }
    *drawn = disk_exists(path);
    return !*drawn || plot_log_csv(path, path_png, p);
}
