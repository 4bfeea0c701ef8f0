// clnet predict: class scores and the lesion's mask of images.
#include "commands.h"
#include "dataset.h"
#include "disk.h"
#include "image.h"
#include "imagelist.h"
#include "network.h"
#include "picture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct predict {
    device_options device;
    network_options network;
    const char *weights, *out;
    imagelist images;
    size_t failed; // images that could not be used
    clnet_context *ctx;
    clnet_model *model;
    char *csv; // predictions.csv so far
    size_t csv_used;
} predict;

static bool write_mask(const predict *c, const char *name, const image *im,
                       const unsigned char *mask, problem *p) {
    char path[DISK_PATH], file[DISK_PATH];
    picture overlay = {0};
    snprintf(file, sizeof file, "%s_segmentation.png", name);
    bool ok = disk_join(path, c->out, file, p) &&
              image_write_png(path, mask, im->height, im->width, 1, p) &&
              picture_copy(&overlay, im->bytes, im->height, im->width, p) &&
              picture_overlay_mask(&overlay, mask, COLOR_PREDICTION, p);
    snprintf(file, sizeof file, "%s_overlay.png", name);
    ok = ok && disk_join(path, c->out, file, p) && picture_write(&overlay, path, p);
    picture_free(&overlay);
    return ok;
}

// A name as a field of a CSV file, in 2 strlen(name) + 3 bytes: in quotes where it has a comma, a
// quote or a line's end. Returns where it ends.
static char *write_field(char *to, const char *name) {
    if (!strpbrk(name, ",\"\r\n")) {
        return to + sprintf(to, "%s", name);
    }
    *to++ = '"';
    for (; *name; name++) {
        if (*name == '"') {
            *to++ = '"';
        }
        *to++ = *name;
    }
    *to++ = '"';
    return to;
}

static bool add_row(predict *c, const char *name, const double *scores, problem *p) {
    char *csv = realloc(c->csv, c->csv_used + 2 * strlen(name) + 128);
    if (!csv) {
        return problem_run(p, "%s: no memory for its row", name);
    }
    c->csv = csv;
    char *to = csv + c->csv_used;
    if (c->csv_used == 0) {
        to += sprintf(to, "image_id,melanoma,seborrheic_keratosis\n");
    }
    to = write_field(to, name);
    to += sprintf(to, ",%.9g,%.9g\n", scores[DATASET_MELANOMA], scores[DATASET_KERATOSIS]);
    c->csv_used = (size_t)(to - csv);
    return true;
}

static void print_line(const predict *c, const char *name, const double *scores,
                       const unsigned char *mask, size_t pixels) {
    printf("%s:", name);
    if (c->model->logits) {
        printf(" melanoma %.4f, seborrheic keratosis %.4f, nevus %.4f%s", scores[DATASET_MELANOMA],
               scores[DATASET_KERATOSIS], scores[DATASET_NEVUS], mask ? ";" : "");
    }
    if (mask) {
        size_t lesion = 0;
        for (size_t i = 0; i < pixels; i++) {
            lesion += mask[i] > 128;
        }
        printf(" lesion %.2f %% of the image", 100 * (double)lesion / (double)pixels);
    }
    printf("\n");
    fflush(stdout);
}

static bool predict_image(predict *c, const imagelist_item *item, const image *im, problem *p) {
    const size_t pixels = (size_t)im->height * (size_t)im->width;
    clnet_prediction result = {.mask = c->model->mask_logits ? malloc(pixels) : NULL};
    bool ok = !c->model->mask_logits || result.mask ||
              problem_run(p, "%s: no memory for its mask", item->path);
    if (ok && clnet_predict(c->model, im->bytes, im->height, im->width, &result) != CLNET_OK) {
        ok = problem_context(p, c->ctx);
    }
    for (int k = 0; ok && c->model->logits && k < DATASET_CLASSES; k++) {
        ok = isfinite(result.scores[k]) ||
             problem_run(p, "%s: the network's scores are not finite", item->path);
    }
    ok = ok && (!c->out || !result.mask || write_mask(c, item->name, im, result.mask, p)) &&
         (!c->out || !c->model->logits || add_row(c, item->name, result.scores, p));
    if (ok) {
        print_line(c, item->name, result.scores, result.mask, pixels);
    }
    free(result.mask);
    return ok;
}

// All images. One that cannot be read is told and left out; where it is the only one, that is the
// command's failure.
static bool predict_all(predict *c, problem *p) {
    for (size_t i = 0; i < c->images.count && !command_signal; i++) {
        image im;
        problem reason = {0};
        if (image_load(c->images.items[i].path, IMAGE_RGB, &im, &reason)) {
            const bool ok = predict_image(c, &c->images.items[i], &im, p);
            image_free(&im);
            if (!ok) {
                return false;
            }
        } else if (reason.status == EXIT_RUN || c->images.count == 1) {
            *p = reason;
            return false;
        } else {
            fprintf(stderr, "clnet predict: %s\n", reason.text);
            c->failed++;
        }
    }
    return true;
}

static bool write_predictions(const predict *c, problem *p) {
    char path[DISK_PATH];
    return !c->csv || (disk_join(path, c->out, "predictions.csv", p) &&
                       disk_write(path, c->csv, c->csv_used, p));
}

static bool execute(predict *c, const option *options, size_t count, problem *p) {
    c->ctx = device_open(&c->device, p);
    c->model = c->ctx ? network_open(c->ctx, c->weights, &c->network, options, count, CLNET_INFER,
                                     1, false, p)
                      : NULL;
    if (!c->model) {
        return false;
    }
    if (c->model->logits && c->model->desc.classes != DATASET_CLASSES) {
        return problem_input(
            p, "%s: has %d classes, needed are %d: melanoma, seborrheic keratosis, nevus",
            c->weights, c->model->desc.classes, DATASET_CLASSES);
    }
    if ((c->out && !disk_make_folder(c->out, p)) || !predict_all(c, p) ||
        !write_predictions(c, p)) {
        return false;
    }
    return c->failed == 0 ||
           problem_input(p, "%zu of %zu images could not be read", c->failed, c->images.count);
}

bool command_predict(int argc, char **argv, bool usage, problem *p) {
    predict c = {0};
    option options[] = {
        OPTION(TEXT, "--weights", &c.weights, "weights of the network (required)"),
        OPTION(TEXT, "--out", &c.out,
               "folder for *_segmentation.png, *_overlay.png, predictions.csv"),
        NETWORK_OPTIONS(&c.network),
        DEVICE_OPTIONS(&c.device),
    };
    const size_t count = sizeof options / sizeof *options;
    if (usage) {
        printf("usage: clnet predict IMAGES.. --weights FILE [options]\n\n"
               "IMAGES are JPEG or PNG files, or folders of them. Without --out the scores are "
               "printed "
               "only.\n\n");
        options_print(options, count);
        return true;
    }
    size_t paths = 0;
    const char **path = malloc(((size_t)argc + 1) * sizeof *path);
    const bool ok = (path || problem_run(p, "no memory for %d arguments", argc)) &&
                    options_parse(argc, argv, options, count, path, &paths, (size_t)argc, p) &&
                    (c.weights || problem_input(p, "--weights is missing")) &&
                    imagelist_make(path, paths, &c.images, p) && execute(&c, options, count, p);
    free(path);
    free(c.csv);
    imagelist_free(&c.images);
    clnet_model_destroy(c.model);
    device_close(c.ctx);
    return ok;
}
