// clnet evaluate: the metrics of a network on a split of a data set, as the paper's tables.
#define _XOPEN_SOURCE 700
#include "cache.h"
#include "commands.h"
#include "dataset.h"
#include "disk.h"
#include "evaluation.h"
#include "explanation.h"
#include "gallery.h"
#include "network.h"
#include "progress.h"
#include "report.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct evaluate {
    device_options device;
    network_options network;
    const char *data_path, *weights, *out;
    int split, batch;
    clnet_context *ctx;
    clnet_model *model;
    dataset data;
    cache images;
    bool has_images;        // the cache is open
    char folder[DISK_PATH]; // where the cache stands: out, or a folder of our own
    char masks[DISK_PATH];  // where the masks go
    evaluation figures;
    clnet_model_desc described; // of the network, as opened
    char name[32];
    size_t parameters;
    double macs; // of one image
} evaluate;

enum { EXAMPLES = 6 }; // images in the report's panels

static const char *const split_choices[] = {"training", "validation", "test", NULL};

// ---- preparing ----------------------------------------------------------------------------------

// The folder for the cache: that of --out, else one that is removed at the end.
static bool prepare_folder(evaluate *e, problem *p) {
    if (e->out) {
        snprintf(e->folder, sizeof e->folder, "%s", e->out);
        return disk_join(e->masks, e->out, "masks", p) && disk_make_folder(e->masks, p);
    }
    const char *base = getenv("TMPDIR") && *getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    char folder[DISK_PATH];
    if (!disk_join(folder, base, "clnet-XXXXXX", p)) {
        return false;
    }
    if (!mkdtemp(folder)) {
        return problem_run(p, "%s: cannot make a folder in it: %s", base, strerror(errno));
    }
    memcpy(e->folder, folder, sizeof e->folder);
    return true;
}

// Decodes the images, or finds them decoded.
static bool open_images(evaluate *e, problem *p) {
    progress bar;
    progress_begin(&bar, e->data.count, "images read");
    const cache_desc desc = {.dir = e->folder,
                             .height = e->described.size[0],
                             .width = e->described.size[1],
                             .threads = clnet_context_threads(e->ctx),
                             .progress = progress_step,
                             .user = &bar,
                             .stop = &command_signal};
    e->has_images = cache_open(&e->images, &e->data, &desc, p);
    if (!e->images.reused) {
        progress_end(&bar);
    }
    return e->has_images;
}

static void describe(evaluate *e) {
    const clnet_graph *g = e->model->graph;
    e->described = e->model->desc;
    snprintf(e->name, sizeof e->name, "%s", e->model->desc.name);
    e->described.name = e->name; // stays when the model goes
    for (int i = 0; i < clnet_graph_weights(g); i++) {
        const clnet_tensor *t = clnet_graph_weight(g, i);
        e->parameters += clnet_tensor_trainable(t) ? clnet_tensor_count(t) : 0;
    }
    for (int i = 0; i < clnet_graph_nodes(g); i++) {
        e->macs += clnet_graph_node_macs(g, i) / e->model->desc.batch;
    }
}

static bool measure(evaluate *e, problem *p) {
    progress bar;
    progress_begin(&bar, e->data.count, "images");
    const evaluation_desc desc = {.masks_folder = e->out && e->model->mask_logits ? e->masks : NULL,
                                  .progress = progress_step,
                                  .user = &bar,
                                  .stop = &command_signal};
    const bool ok = evaluation_run(e->model, &e->data, &e->images, &desc, &e->figures, p);
    progress_end(&bar);
    return ok;
}

// ---- the report ---------------------------------------------------------------------------------

// Rows of the paper's Table 1, in percent.
static const struct published {
    const char *model;
    const char *melanoma[4], *keratosis[4]; // AUC, ACC, SEN, SPC
    const char *mean_auc;
} published[] = {
    // clang-format off
    {"resnet50",
     {"81.34", "81.33", "52.99", "88.2"}, {"90.15", "88.67", "53.33", "94.90"}, "85.745"},
    {"inception_v3",
     {"82.96", "82.17", "64.10", "86.54"}, {"90.99", "87.83", "75.56", "90.00"}, "86.975"},
    {"arlnet50",
     {"80.56", "81.50", "52.99", "88.41"}, {"91.81", "84.50", "84.51", "84.44"}, "86.185"},
    {"inception_v3+unet",
     {"84.85", "75.83", "79.49", "74.95"}, {"92.17", "85.50", "86.67", "85.29"}, "88.510"},
    {"resnet50+unet",
     {"84.91", "82.33", "59.83", "87.78"}, {"94.51", "86.67", "90.00", "86.08"}, "89.710"},
    // clang-format on
};

enum { CELL_TEXT = 64 };

static void format_percent(char text[CELL_TEXT], int decimals, double share) {
    if (isnan(share)) {
        snprintf(text, CELL_TEXT, "n/a");
    } else {
        snprintf(text, CELL_TEXT, "%.*f", decimals, 100 * share);
    }
}

static void report_settings(const evaluate *e, report *r) {
    char width[32], size[32], parameters[32], macs[32], images[128], computed[160];
    snprintf(width, sizeof width, "%g", e->described.width);
    snprintf(size, sizeof size, "%d x %d", e->described.size[0], e->described.size[1]);
    snprintf(parameters, sizeof parameters, "%.3f million", 1e-6 * (double)e->parameters);
    snprintf(macs, sizeof macs, "%.3f GMAC (%.3f GFLOP)", 1e-9 * e->macs, 2e-9 * e->macs);
    snprintf(images, sizeof images, "%zu, %zu with a mask, %zu with a label", e->data.count,
             e->data.masks, e->data.classes[0] + e->data.classes[1] + e->data.classes[2]);
    snprintf(computed, sizeof computed, "%s, %s, %d threads", clnet_context_device(e->ctx),
             clnet_context_isa(e->ctx), clnet_context_threads(e->ctx));
    const char *const cells[][2] = {
        {"Setting", "Value"},
        {"Network", e->name},
        {"Weights", e->weights},
        {"Width", width},
        {"Input", size},
        {"Fusion", network_fusion_choices[e->described.fusion]},
        {"Parameters", parameters},
        {"One image", macs},
        {"Data", e->data_path},
        {"Split", e->data.split},
        {"Images", images},
        {"Computed on", computed},
    };
    report_heading(r, "Settings");
    report_table(r, &cells[0][0], sizeof cells / sizeof *cells, 2, NULL);
}

static void report_classification(const evaluate *e, report *r) {
    const clnet_classification_metrics *const classes[2] = {&e->figures.melanoma,
                                                            &e->figures.keratosis};
    char ours[9][CELL_TEXT];
    const char *cells[3][10] = {{"", "Mel AUC", "Mel ACC", "Mel SEN", "Mel SPC", "SK AUC", "SK ACC",
                                 "SK SEN", "SK SPC", "AUC (avg)"},
                                {e->name},
                                {"the paper"}};
    for (int c = 0; c < 2; c++) {
        const double figures[4] = {classes[c]->auc, classes[c]->accuracy, classes[c]->sensitivity,
                                   classes[c]->specificity};
        for (int i = 0; i < 4; i++) {
            format_percent(ours[4 * c + i], 2, figures[i]);
        }
    }
    format_percent(ours[8], 3, e->figures.mean_auc);
    for (int i = 0; i < 9; i++) {
        cells[1][i + 1] = ours[i];
    }
    size_t rows = 2;
    for (size_t row = 0; row < sizeof published / sizeof *published; row++) {
        if (!strcmp(published[row].model, e->name)) {
            memcpy(&cells[2][1], published[row].melanoma, sizeof published[row].melanoma);
            memcpy(&cells[2][5], published[row].keratosis, sizeof published[row].keratosis);
            cells[2][9] = published[row].mean_auc;
            rows = 3;
        }
    }
    report_heading(r, "Classification (Table 1)");
    report_table(
        r, &cells[0][0], rows, 10,
        "In percent; melanoma (Mel) and seborrheic keratosis (SK), each against the rest. The "
        "paper trained for 200 epochs and reports on the 600 test images of ISIC 2017.");
}

static void report_segmentation(const evaluate *e, report *r) {
    const clnet_segmentation_metrics *s = &e->figures.segmentation;
    const double figures[6] = {s->jaccard,     s->dice,        s->accuracy,
                               s->sensitivity, s->specificity, s->threshold_jaccard};
    char ours[6][CELL_TEXT];
    const char *cells[2][7] = {{"", "JA", "DI", "AC", "SE", "SP", "JA >= 65"}, {e->name}};
    for (int i = 0; i < 6; i++) {
        format_percent(ours[i], 2, figures[i]);
        cells[1][i + 1] = ours[i];
    }
    report_heading(r, "Segmentation (Table 2)");
    report_table(
        r, &cells[0][0], 2, 7,
        "In percent, means over images, each compared at the size of its truth. The last column "
        "counts a Jaccard index below 65 as 0.");
}

// Images for the panels: melanoma, keratosis and nevus in turn as long as there are, then any.
static size_t choose_examples(const dataset *data, size_t chosen[EXAMPLES]) {
    size_t count = 0;
    for (int pass = 0; pass < 2; pass++) {
        size_t next[DATASET_CLASSES] = {0};
        for (size_t turn = 0; count < EXAMPLES && turn < DATASET_CLASSES * data->count; turn++) {
            const int label = (int)(turn % DATASET_CLASSES);
            size_t *i = &next[label];
            bool taken = true;
            for (; *i < data->count && taken; ++*i) {
                taken = pass == 0 && data->items[*i].label != label;
                for (size_t k = 0; k < count; k++) {
                    taken = taken || chosen[k] == *i;
                }
                if (!taken) {
                    chosen[count++] = *i;
                }
            }
        }
    }
    return count;
}

// A mask file laid over its image; nothing where there is no mask.
static bool add_overlay(gallery *g, int row, int column, const image *im, const char *mask_path,
                        color c, problem *p) {
    image mask;
    picture drawn = {0};
    if (!mask_path) {
        return true;
    }
    if (!image_load(mask_path, IMAGE_MASK, &mask, p)) {
        return false;
    }
    const bool ok = picture_copy(&drawn, im->bytes, im->height, im->width, p) &&
                    picture_overlay_mask(&drawn, mask.bytes, c, p) &&
                    gallery_set(g, row, column, drawn.bytes, drawn.height, drawn.width, p);
    picture_free(&drawn);
    image_free(&mask);
    return ok;
}

static bool add_masks(const evaluate *e, gallery *g, int row, const dataset_item *item,
                      const image *im, problem *p) {
    char name[256], path[DISK_PATH];
    snprintf(name, sizeof name, "%s_segmentation.png", item->id);
    return disk_join(path, e->masks, name, p) && gallery_label_row(g, row, item->id, p) &&
           gallery_set(g, row, 0, im->bytes, im->height, im->width, p) &&
           add_overlay(g, row, 1, im, item->mask, COLOR_TRUTH, p) &&
           add_overlay(g, row, 2, im, path, COLOR_PREDICTION, p);
}

// The paper explains the true class; without a label it is the one with the highest score.
static bool add_map(clnet_model *model, gallery *g, int row, const dataset_item *item,
                    const image *im, problem *p) {
    const explanation_desc desc = {.layer = 5, .label = item->label};
    explanation x;
    picture drawn = {0};
    if (!explanation_make(model, item->image, im, &desc, &x, p)) {
        return false;
    }
    const bool ok = gallery_label_row(g, row, item->id, p) &&
                    gallery_set(g, row, 0, im->bytes, im->height, im->width, p) &&
                    explanation_draw(&x, im, &drawn, p) &&
                    gallery_set(g, row, 1, drawn.bytes, drawn.height, drawn.width, p);
    picture_free(&drawn);
    explanation_free(&x);
    return ok;
}

// A panel of examples: masks (image, truth, prediction), or with `explaining` activation maps.
static bool draw_panel(const evaluate *e, clnet_model *explaining, const char *path, problem *p) {
    static const char *const columns[2][3] = {{"image", "truth", "prediction"},
                                              {"image", "activation", NULL}};
    const int kind = explaining != NULL, width = kind ? 2 : 3;
    size_t chosen[EXAMPLES];
    const size_t count = choose_examples(&e->data, chosen);
    gallery g;
    if (!gallery_create(&g, (int)count, width, p)) {
        return false;
    }
    bool ok = true;
    for (int i = 0; ok && i < width; i++) {
        ok = gallery_label_column(&g, i, columns[kind][i], p);
    }
    for (size_t i = 0; ok && i < count; i++) {
        const dataset_item *item = &e->data.items[chosen[i]];
        image im;
        ok = image_load(item->image, IMAGE_RGB, &im, p);
        if (ok) {
            ok = kind ? add_map(explaining, &g, (int)i, item, &im, p)
                      : add_masks(e, &g, (int)i, item, &im, p);
            image_free(&im);
        }
    }
    ok = ok && gallery_write(&g, path, p);
    gallery_free(&g);
    return ok;
}

static bool report_masks(const evaluate *e, report *r, problem *p) {
    char path[DISK_PATH];
    return disk_join(path, e->out, "panel_masks.png", p) && draw_panel(e, NULL, path, p) &&
           report_picture(r, path, "Image, true lesion, predicted lesion.", p);
}

// The network is opened once more, since explaining needs gradients.
static bool report_maps(evaluate *e, const option *options, size_t count, report *r, problem *p) {
    char path[DISK_PATH];
    clnet_model_destroy(e->model);
    e->model =
        network_open(e->ctx, e->weights, &e->network, options, count, CLNET_EXPLAIN, 1, false, p);
    return e->model && disk_join(path, e->out, "panel_cams.png", p) &&
           draw_panel(e, e->model, path, p) &&
           report_picture(r, path, "Class activation maps for the true class (equations 2 and 3).",
                          p);
}

// The curves of the training, if they lie beside the weights.
static bool report_curves(const evaluate *e, report *r, problem *p) {
    char folder[DISK_PATH], path[DISK_PATH];
    snprintf(folder, sizeof folder, "%s", e->weights);
    char *slash = strrchr(folder, '/');
    snprintf(slash ? slash : folder, 2, "%s", slash ? "" : ".");
    if (!disk_join(path, folder, "curves.png", p)) {
        return false;
    }
    if (!disk_exists(path)) {
        return true;
    }
    report_heading(r, "Training");
    return report_picture(r, path, "Losses, validation and learning rate over the epochs.", p);
}

static bool write_parts(evaluate *e, const option *options, size_t count, report *r, problem *p) {
    char path[DISK_PATH];
    bool ok = disk_join(path, e->out, "roc.png", p);
    report_settings(e, r);
    if (ok && e->figures.scores) {
        report_classification(e, r);
        ok = evaluation_write_roc(&e->figures, &e->data, e->described.classes, e->ctx, path, p) &&
             report_picture(r, path,
                            "Receiver operating characteristic, each class against the rest.", p);
    }
    if (ok && e->model->mask_logits) {
        report_segmentation(e, r);
        ok = report_masks(e, r, p);
    }
    if (ok && e->figures.scores) {
        report_heading(r, "Explanation (Fig. 3)");
        ok = report_maps(e, options, count, r, p);
    }
    return ok && report_curves(e, r, p);
}

static bool write_report(evaluate *e, const option *options, size_t count, problem *p) {
    char path[DISK_PATH], title[128];
    if (!disk_join(path, e->out, "report.html", p)) {
        return false;
    }
    snprintf(title, sizeof title, "Evaluation of %s", e->name);
    report *r = report_open(path, title);
    if (!write_parts(e, options, count, r, p)) {
        report_discard(r);
        return false;
    }
    return report_close(r, p);
}

// ---- the command --------------------------------------------------------------------------------

static bool write_files(const evaluate *e, problem *p) {
    char path[DISK_PATH];
    return (!e->figures.scores ||
            (disk_join(path, e->out, "predictions.csv", p) &&
             evaluation_write_predictions(&e->figures, &e->data, e->described.classes, path, p))) &&
           disk_join(path, e->out, "metrics.json", p) &&
           evaluation_write_json(&e->figures, path, p);
}

static bool execute(evaluate *e, const option *options, size_t count, problem *p) {
    e->ctx = device_open(&e->device, p);
    if (!e->ctx || !dataset_open(e->data_path, split_choices[e->split], &e->data, p)) {
        return false;
    }
    e->model = network_open(e->ctx, e->weights, &e->network, options, count, CLNET_INFER, e->batch,
                            false, p);
    if (!e->model) {
        return false;
    }
    describe(e);
    if (!prepare_folder(e, p) || !open_images(e, p) || !measure(e, p)) {
        return false;
    }
    printf("%s on the %s split of %s\n\n", e->name, e->data.split, e->data_path);
    evaluation_print(&e->figures);
    return !e->out || (write_files(e, p) && write_report(e, options, count, p));
}

static void clean_up(evaluate *e) {
    char path[DISK_PATH] = "";
    if (e->has_images) {
        snprintf(path, sizeof path, "%s", e->images.path);
        cache_close(&e->images);
    }
    if (!e->out && e->folder[0]) {
        unlink(path);
        rmdir(e->folder);
    }
    evaluation_free(&e->figures);
    clnet_model_destroy(e->model);
    dataset_close(&e->data);
    device_close(e->ctx);
}

static bool check(const evaluate *e, size_t paths, problem *p) {
    if (paths == 0) {
        return problem_input(p, "the folder of the data set is missing");
    }
    return e->weights || problem_input(p, "--weights is missing");
}

bool command_evaluate(int argc, char **argv, bool usage, problem *p) {
    evaluate e = {.split = 1, .batch = 8, .figures = evaluation_empty()};
    option options[] = {
        OPTION(TEXT, "--weights", &e.weights, "weights of the network (required)"),
        OPTION_OF(split_choices, "--split", &e.split, "which images (default: validation)"),
        OPTION(TEXT, "--out", &e.out,
               "folder for metrics.json, predictions.csv, masks/, report.html"),
        OPTION_RANGE(INT, "--batch", &e.batch, 1, 4096, "images at a time (default: 8)"),
        NETWORK_OPTIONS(&e.network),
        DEVICE_OPTIONS(&e.device),
    };
    const size_t count = sizeof options / sizeof *options;
    if (usage) {
        printf(
            "usage: clnet evaluate DATA --weights FILE [options]\n\n"
            "DATA is a folder in the ISIC 2017 layout. The network's name, width and size stand in "
            "FILE if\nclnet wrote it; else --model and the like say them.\n\n");
        options_print(options, count);
        return true;
    }
    size_t paths;
    bool ok = options_parse(argc, argv, options, count, &e.data_path, &paths, 1, p) &&
              check(&e, paths, p) && execute(&e, options, count, p);
    if (!ok && command_signal) {
        fprintf(stderr, "clnet evaluate: stopped\n");
        ok = true;
    }
    clean_up(&e);
    return ok;
}
