#include "measure.h"

#include "commands.h"
#include "csv.h"
#include "disk.h"
#include "explanation.h"
#include "options.h"
#include "progress.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void describe(result *r, const clnet_model *m, const dataset *data) {
    const clnet_context *ctx = clnet_graph_context(m->graph);
    *r = (result){.images = (double)data->count,
                  .training_bytes = NAN,
                  .epochs = NAN,
                  .training_seconds = NAN};
    snprintf(r->model, sizeof r->model, "%s", m->desc.name);
    snprintf(r->split, sizeof r->split, "%s", data->split);
    snprintf(r->computed, sizeof r->computed, "%s, %s, %d threads", clnet_context_device(ctx),
             clnet_context_isa(ctx), clnet_context_threads(ctx));
    result_count(r, m);
}

static bool write_files(const clnet_model *m, const measure_desc *desc, const evaluation *figures,
                        problem *p) {
    char path[DISK_PATH];
    return (!figures->scores ||
            (disk_join(path, desc->out, "predictions.csv", p) &&
             evaluation_write_predictions(figures, desc->data, m->desc.classes, path, p))) &&
           disk_join(path, desc->out, "metrics.json", p) && evaluation_write_json(figures, path, p);
}

bool measure_network(clnet_model *model, const measure_desc *desc, evaluation *figures, result *r,
                     problem *p) {
    char masks[DISK_PATH] = "";
    *figures = evaluation_empty();
    describe(r, model, desc->data);
    if (desc->out && (!disk_join(masks, desc->out, "masks", p) ||
                      !disk_make_folder(model->mask_logits ? masks : desc->out, p))) {
        return false;
    }
    const evaluation_desc how = {.masks_folder = desc->out && model->mask_logits ? masks : NULL,
                                 .progress = desc->progress,
                                 .user = desc->user,
                                 .stop = &command_signal};
    const double start = progress_clock();
    if (!evaluation_run(model, desc->data, desc->images, &how, figures, p)) {
        return false;
    }
    r->evaluation_seconds = progress_clock() - start;
    result_take(r, figures);
    return !desc->out || write_files(model, desc, figures, p);
}

size_t measure_examples(const dataset *data, size_t chosen[MEASURE_EXAMPLES]) {
    size_t count = 0;
    for (int pass = 0; pass < 2; pass++) {
        size_t next[DATASET_CLASSES] = {0};
        for (size_t turn = 0; count < MEASURE_EXAMPLES && turn < DATASET_CLASSES * data->count;
             turn++) {
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

static bool write_map(clnet_model *model, const dataset_item *item, const char *folder,
                      problem *p) {
    const explanation_desc desc = {.layer = 5, .label = item->label};
    char name[CSV_MAX_ID + 8], path[DISK_PATH];
    image im;
    explanation x;
    picture drawn = {0};
    snprintf(name, sizeof name, "%s.png", item->id);
    if (!disk_join(path, folder, name, p) || !image_load(item->image, IMAGE_RGB, &im, p)) {
        return false;
    }
    bool ok = explanation_make(model, item->image, &im, &desc, &x, p);
    if (ok) {
        ok = explanation_draw(&x, &im, &drawn, p) && picture_write(&drawn, path, p);
        picture_free(&drawn);
        explanation_free(&x);
    }
    image_free(&im);
    return ok;
}

bool measure_maps(clnet_model *explaining, const dataset *data, const char *out, problem *p) {
    size_t chosen[MEASURE_EXAMPLES];
    const size_t count = measure_examples(data, chosen);
    char folder[DISK_PATH];
    bool ok = disk_join(folder, out, "cams", p) && disk_make_folder(folder, p);
    for (size_t i = 0; ok && i < count; i++) {
        ok = write_map(explaining, &data->items[chosen[i]], folder, p);
    }
    return ok;
}
