// clnet evaluate: the metrics of a network on a split of a data set, as the paper's tables.
#define _XOPEN_SOURCE 700
#include "cache.h"
#include "commands.h"
#include "dataset.h"
#include "disk.h"
#include "evaluation.h"
#include "machine.h"
#include "measure.h"
#include "network.h"
#include "progress.h"
#include "summary.h"

#include <errno.h>
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
    evaluation figures;
    result result;
    size_t planned; // bytes of the network while it is measured
} evaluate;

static const char *const split_choices[] = {"training", "validation", "test", NULL};

// ---- preparing ----------------------------------------------------------------------------------

// The folder for the cache: that of --out, else one that is removed at the end.
static bool prepare_folder(evaluate *e, problem *p) {
    if (e->out) {
        snprintf(e->folder, sizeof e->folder, "%s", e->out);
        return disk_make_folder(e->out, p);
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
                             .height = e->model->desc.size[0],
                             .width = e->model->desc.size[1],
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

static bool measure(evaluate *e, problem *p) {
    progress bar;
    progress_begin(&bar, e->data.count, "images");
    const measure_desc desc = {.data = &e->data,
                               .images = &e->images,
                               .out = e->out,
                               .progress = progress_step,
                               .user = &bar};
    const bool ok = measure_network(e->model, &desc, &e->figures, &e->result, p);
    progress_end(&bar);
    return ok;
}

// ---- the report ---------------------------------------------------------------------------------

// The network is opened once more, since explaining needs gradients.
static bool explain(evaluate *e, const option *options, size_t count, problem *p) {
    if (!e->figures.scores) {
        return true;
    }
    clnet_model_destroy(e->model);
    e->model =
        network_open(e->ctx, e->weights, &e->network, options, count, CLNET_EXPLAIN, 1, false, p);
    return e->model && measure_maps(e->model, &e->data, e->out, p);
}

enum { SETTINGS = 12, SETTING_TEXT = 160 };

// Rows of names and values; the values that are made here stand in `text`.
static size_t describe(const evaluate *e, const char *rows[SETTINGS][2],
                       char text[SETTINGS][SETTING_TEXT]) {
    const clnet_model_desc *d = &e->model->desc;
    char memory[MACHINE_BYTES];
    size_t n = 0;
    snprintf(text[0], SETTING_TEXT, "%g", d->width);
    snprintf(text[1], SETTING_TEXT, "%d x %d", d->size[0], d->size[1]);
    snprintf(text[2], SETTING_TEXT, "%.3f million", 1e-6 * e->result.parameters);
    snprintf(text[3], SETTING_TEXT, "%.3f GFLOP, %.3g ms", 2e-9 * e->result.macs,
             1e3 * e->result.evaluation_seconds / e->result.images);
    snprintf(text[4], SETTING_TEXT, "%.0f, %.0f with a mask, %.0f with a label", e->result.images,
             e->result.masks, e->result.labels);
    snprintf(text[5], SETTING_TEXT, "%s, batch %d", machine_bytes(memory, (uint64_t)e->planned),
             e->batch);
    const char *const all[][2] = {
        {"Setting", "Value"},    {"Network", e->result.model},
        {"Weights", e->weights}, {"Width", text[0]},
        {"Input", text[1]},      {"Fusion", network_fusion_choices[d->fusion]},
        {"Parameters", text[2]}, {"One image", text[3]},
        {"Memory", text[5]},     {"Data", e->data_path},
        {"Images", text[4]},     {"Computed on", e->result.computed}};
    for (; n < sizeof all / sizeof *all; n++) {
        rows[n][0] = all[n][0];
        rows[n][1] = all[n][1];
    }
    return n;
}

static bool write_report(evaluate *e, problem *p) {
    const char *rows[SETTINGS][2];
    char text[SETTINGS][SETTING_TEXT], title[RESULT_TITLE], heading[128], lead[256],
        folder[DISK_PATH];
    snprintf(folder, sizeof folder, "%s", e->weights);
    char *slash = strrchr(folder, '/');
    snprintf(slash ? slash : folder, 2, "%s", slash ? "" : ".");
    const tables_row row = {e->result.model, 0, &e->result, NULL};
    const tables t = {&row, 1};
    const figures_network network = {e->result.model, e->out, folder};
    const figures f = {e->ctx, &e->data, &network, 1};
    snprintf(heading, sizeof heading, "Evaluation of %s", result_title(title, e->result.model));
    snprintf(lead, sizeof lead, "Measured on the %zu images of the %s split.", e->data.count,
             e->data.split);
    const summary s = {.out = e->out,
                       .title = heading,
                       .lead = lead,
                       .settings = rows,
                       .setting_count = describe(e, rows, text),
                       .tables = &t,
                       .figures = &f};
    return summary_write(&s, p);
}

// ---- the command --------------------------------------------------------------------------------

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
    e->planned = e->model->plan.total;
    if (!prepare_folder(e, p) || !open_images(e, p) || !measure(e, p)) {
        return false;
    }
    printf("%s on the %s split of %s\n\n", e->result.model, e->data.split, e->data_path);
    evaluation_print(&e->figures);
    return !e->out || (explain(e, options, count, p) && write_report(e, p));
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
