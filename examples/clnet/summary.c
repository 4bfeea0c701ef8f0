#include "summary.h"

#include "disk.h"
#include "report.h"

#include <stdio.h>

// What the text of the report says depends on whether it compares networks.
static bool is_paper(const summary *s) { return s->figures->count > 1; }

static void add_settings(const summary *s, report *r) {
    report_heading(r, "Settings");
    report_table(r, &s->settings[0][0], s->setting_count, 2, NULL);
}

static void add_table(report *r, const tables_cells *c, const char *note) {
    report_table(r, (const char *const *)c->cell, c->rows, c->columns, note);
}

// A picture that `draw` makes; false only on failure.
static bool add_picture(const summary *s, report *r, const char *name, const char *caption,
                        bool (*draw)(const figures *, const char *, bool *, problem *),
                        problem *p) {
    char path[DISK_PATH];
    bool drawn;
    return disk_join(path, s->out, name, p) && draw(s->figures, path, &drawn, p) &&
           (!drawn || report_picture(r, path, caption, p));
}

static bool any_network(const summary *s, bool (*has)(const char *model)) {
    for (size_t i = 0; i < s->tables->count; i++) {
        if (has(s->tables->rows[i].model)) {
            return true;
        }
    }
    return false;
}

static bool add_classification(const summary *s, report *r, problem *p) {
    tables_cells cells;
    if (!any_network(s, result_classifies)) {
        return true;
    }
    if (!tables_classification(s->tables, &cells, p)) {
        return false;
    }
    report_heading(r, "Table 1: classification");
    add_table(
        r, &cells,
        "In percent. Melanoma (Mel) and seborrheic keratosis (SK), each against the rest: area "
        "under the ROC curve, accuracy, sensitivity, specificity. The paper trained for 200 "
        "epochs at 224 x 224 from ImageNet weights and reports on the 600 test images of ISIC "
        "2017.");
    tables_free(&cells);
    return add_picture(s, r, "roc.png",
                       "Receiver operating characteristic, each class against the rest.",
                       figures_roc, p) &&
           add_picture(s, r, "fig3.png",
                       "Fig. 3: class activation maps of the true class (equations 2 and 3 of the "
                       "paper), from dark (none) to bright.",
                       figures_maps, p);
}

static bool add_segmentation(const summary *s, report *r, problem *p) {
    tables_cells cells;
    if (!any_network(s, result_segments)) {
        return true;
    }
    if (!tables_segmentation(s->tables, &cells, p)) {
        return false;
    }
    report_heading(r, "Table 2: segmentation");
    add_table(
        r, &cells,
        "In percent, means over images, each compared at the size of its truth: Jaccard index, "
        "Dice, accuracy, sensitivity, specificity; the last column counts a Jaccard index below "
        "65 as 0. The paper's own figures of this table are not in its text.");
    tables_free(&cells);
    return add_picture(s, r, "fig4.png", "Fig. 4: images, true lesions and predicted lesions.",
                       figures_masks, p);
}

static void say(void *user, const char *sentence) { report_text(user, sentence); }

static bool add_comparison(const summary *s, report *r, problem *p) {
    tables_cells cells;
    if (!is_paper(s)) {
        return true;
    }
    if (!tables_networks(s->tables, &cells, p)) {
        return false;
    }
    report_heading(r, "Both tasks in one network, or one for each");
    tables_compare(s->tables, say, r);
    report_heading(r, "The networks");
    add_table(
        r, &cells,
        "GFLOP: one image forward, a multiply-add counted as two. Memory: the plan of a training "
        "step. Training: the sum over epochs, without validation; an epoch that was interrupted "
        "counts from where it went on. Per image: prediction while measuring.");
    tables_free(&cells);
    tables_missing(s->tables, say, r);
    return true;
}

static bool add_training(const summary *s, report *r, problem *p) {
    char path[DISK_PATH];
    bool drawn;
    if (!disk_join(path, s->out, "training.png", p) ||
        !figures_curves(s->figures, path, &drawn, p)) {
        return false;
    }
    if (drawn) {
        report_heading(r, "Training");
    }
    return !drawn || report_picture(r, path, "The course of the training over the epochs.", p);
}

bool summary_write(const summary *s, problem *p) {
    char path[DISK_PATH];
    if (!disk_join(path, s->out, "report.html", p)) {
        return false;
    }
    report *r = report_open(path, s->title);
    report_text(r, s->lead);
    if (!add_classification(s, r, p) || !add_segmentation(s, r, p) || !add_comparison(s, r, p) ||
        !add_training(s, r, p)) {
        report_discard(r);
        return false;
    }
    add_settings(s, r);
    return report_close(r, p);
}
