#include "evaluation.h"

#include "csv.h"
#include "disk.h"
#include "image.h"
#include "options.h"
#include "parallel.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- running the network ------------------------------------------------------------------------

typedef struct measuring {
    clnet_model *model;
    const dataset *data;
    const cache *images;
    const evaluation_desc *desc;
    size_t first;                             // item of the data set that is image 0 of the batch
    size_t pixels;                            // H*W of the network's input
    float *input;                             // (batch,H,W,3)
    float *logits;                            // (batch,classes)
    float *mask_logits;                       // (batch,H,W)
    double *scores;                           // (images,classes)
    clnet_segmentation_metrics *segmentation; // of each image with a truth
} measuring;

static clnet_context *context_of(const measuring *m) {
    return clnet_graph_context(m->model->graph);
}

static void measuring_free(measuring *m) {
    free(m->input);
    free(m->logits);
    free(m->mask_logits);
    free(m->scores);
    free(m->segmentation);
}

static bool measuring_create(measuring *m, problem *p) {
    const size_t batch = (size_t)m->model->desc.batch, classes = (size_t)m->model->desc.classes;
    m->pixels = (size_t)m->model->desc.size[0] * (size_t)m->model->desc.size[1];
    m->input = calloc(batch * m->pixels, 3 * sizeof(float));
    m->logits = calloc(batch * classes, sizeof(float));
    m->mask_logits = calloc(batch * m->pixels, sizeof(float));
    m->scores = calloc(m->data->count * classes, sizeof(double));
    m->segmentation = calloc(m->data->count, sizeof *m->segmentation);
    return (m->input && m->logits && m->mask_logits && m->scores && m->segmentation) ||
           problem_run(p, "no memory for the evaluation of %zu images", m->data->count);
}

static bool read_image(void *user, size_t n, problem *p) {
    measuring *m = user;
    float *pixels = m->input + 3 * n * m->pixels;
    if (!cache_read(m->images, m->first + n, pixels, NULL, p)) {
        return false;
    }
    if (!m->model->desc.raw_image) {
        clnet_image_normalise(pixels, m->pixels);
    }
    return true;
}

// The network's output for the batch. A value that is not finite is refused: in a mask it would
// silently count as healthy skin.
static bool run_batch(measuring *m, size_t count, problem *p) {
    clnet_model *model = m->model;
    const size_t classes = (size_t)model->desc.classes;
    if (clnet_graph_set_batch(model->graph, (int)count) != CLNET_OK ||
        clnet_tensor_set(model->image, m->input, CLNET_ORDER_MEMORY) != CLNET_OK ||
        clnet_graph_forward(model->graph) != CLNET_OK ||
        (model->logits &&
         clnet_tensor_get(model->logits, m->logits, CLNET_ORDER_MEMORY) != CLNET_OK) ||
        (model->mask_logits &&
         clnet_tensor_get(model->mask_logits, m->mask_logits, CLNET_ORDER_MEMORY) != CLNET_OK)) {
        return problem_context(p, context_of(m));
    }
    for (size_t n = 0; n < count; n++) {
        bool finite = true;
        for (size_t k = 0; k < classes; k++) {
            finite = finite && isfinite(m->logits[n * classes + k]);
        }
        for (size_t i = 0; i < m->pixels; i++) {
            finite = finite && isfinite(m->mask_logits[n * m->pixels + i]);
        }
        if (!finite) {
            return problem_run(p, "%s: the network's output for this image is not finite",
                               m->data->items[m->first + n].image);
        }
        clnet_scores(m->scores + (m->first + n) * classes, m->logits + n * classes,
                     model->desc.classes);
    }
    return true;
}

// The mask of an image at the size of `reference`, compared with it where that is the truth.
static bool judge(measuring *m, size_t n, const image *reference, problem *p) {
    const dataset_item *item = &m->data->items[m->first + n];
    const size_t pixels = (size_t)reference->height * (size_t)reference->width;
    float *probability = malloc(pixels * sizeof *probability);
    unsigned char *mask = malloc(pixels);
    bool ok = (probability && mask) || problem_run(p, "%s: no memory for its mask", item->id);
    if (ok) {
        clnet_mask_at_size(probability, mask, reference->height, reference->width,
                           m->mask_logits + n * m->pixels, m->model->desc.size[0],
                           m->model->desc.size[1]);
    }
    if (ok && item->mask) {
        clnet_segmentation_score(mask, reference->bytes, pixels, &m->segmentation[m->first + n]);
    }
    if (ok && m->desc->masks_folder) {
        char name[CSV_MAX_ID + 32], path[DISK_PATH];
        snprintf(name, sizeof name, "%s_segmentation.png", item->id);
        ok = disk_join(path, m->desc->masks_folder, name, p) &&
             image_write_png(path, mask, reference->height, reference->width, 1, p);
    }
    free(mask);
    free(probability);
    return ok;
}

static bool judge_image(void *user, size_t n, problem *p) {
    measuring *m = user;
    const dataset_item *item = &m->data->items[m->first + n];
    if (!item->mask && !m->desc->masks_folder) {
        return true;
    }
    image reference;
    if (!image_load(item->mask ? item->mask : item->image, item->mask ? IMAGE_MASK : IMAGE_RGB,
                    &reference, p)) {
        return false;
    }
    const bool ok = judge(m, n, &reference, p);
    image_free(&reference);
    return ok;
}

static bool run_all(measuring *m, problem *p) {
    const size_t batch = (size_t)m->model->desc.batch, total = m->data->count;
    const int threads = clnet_context_threads(context_of(m));
    for (m->first = 0; m->first < total; m->first += batch) {
        const size_t count = total - m->first < batch ? total - m->first : batch;
        if (m->desc->stop && *m->desc->stop) {
            return problem_run(p, "stopped after evaluating %zu of %zu images", m->first, total);
        }
        if (!parallel_for(count, threads, read_image, m, p) || !run_batch(m, count, p) ||
            (m->model->mask_logits && !parallel_for(count, threads, judge_image, m, p))) {
            return false;
        }
        if (m->desc->progress) {
            m->desc->progress(m->desc->user, m->first + count, total);
        }
    }
    return true;
}

// The mean over the images with a truth, in the data set's order.
static void summarise_masks(measuring *m, evaluation *out) {
    for (size_t i = 0; i < m->data->count; i++) {
        if (m->data->items[i].mask) {
            m->segmentation[out->masks++] = m->segmentation[i];
        }
    }
    clnet_segmentation_mean(m->segmentation, out->masks, &out->segmentation);
}

bool evaluation_run(clnet_model *model, const dataset *data, const cache *images,
                    const evaluation_desc *desc, evaluation *out, problem *p) {
    measuring m = {.model = model, .data = data, .images = images, .desc = desc};
    assert(images->height == model->desc.size[0] && images->width == model->desc.size[1]);
    *out = evaluation_empty();
    if (model->logits && model->desc.classes != DATASET_CLASSES) {
        return problem_input(p, "the network has %d classes, the data set %d", model->desc.classes,
                             DATASET_CLASSES);
    }
    clnet_graph_set_training(model->graph, false);
    bool ok = measuring_create(&m, p) && run_all(&m, p);
    if (clnet_graph_set_batch(model->graph, model->desc.batch) != CLNET_OK && ok) {
        ok = problem_context(p, context_of(&m));
    }
    if (ok && model->mask_logits) {
        summarise_masks(&m, out);
    }
    if (ok && model->logits) {
        out->scores = m.scores;
        m.scores = NULL;
        ok = evaluation_classify(out, data, model->desc.classes, context_of(&m), p);
    }
    measuring_free(&m);
    return ok;
}

void evaluation_free(evaluation *e) {
    free(e->scores);
    e->scores = NULL;
}

// ---- figures ------------------------------------------------------------------------------------

evaluation evaluation_empty(void) {
    const clnet_classification_metrics none = {NAN, NAN, NAN, NAN};
    return (evaluation){.segmentation = {NAN, NAN, NAN, NAN, NAN, NAN},
                        .melanoma = none,
                        .keratosis = none,
                        .mean_auc = NAN};
}

// The labelled images as the metrics want them: scores of one class, and whether it is the truth.
typedef struct column {
    double *scores;
    unsigned char *truth;
    size_t count;
} column;

static void column_free(column *c) {
    free(c->scores);
    free(c->truth);
    *c = (column){0};
}

static bool column_create(column *c, const evaluation *e, const dataset *data, int classes,
                          int label, problem *p) {
    *c = (column){.scores = malloc(data->count * sizeof(double)), .truth = malloc(data->count)};
    if (!c->scores || !c->truth) {
        column_free(c);
        return problem_run(p, "no memory for the scores of %zu images", data->count);
    }
    for (size_t i = 0; i < data->count; i++) {
        if (data->items[i].label != DATASET_NO_LABEL) {
            c->scores[c->count] = e->scores[i * (size_t)classes + (size_t)label];
            c->truth[c->count++] = data->items[i].label == label;
        }
    }
    return true;
}

bool evaluation_classify(evaluation *e, const dataset *data, int classes, clnet_context *ctx,
                         problem *p) {
    clnet_classification_metrics *const to[2] = {&e->melanoma, &e->keratosis};
    for (int label = 0; label < 2; label++) {
        column c;
        if (!column_create(&c, e, data, classes, label, p)) {
            return false;
        }
        e->labels = c.count;
        const bool ok =
            clnet_classification_score(ctx, c.scores, c.truth, c.count, to[label]) == CLNET_OK;
        column_free(&c);
        if (!ok) {
            return problem_context(p, ctx);
        }
    }
    e->mean_auc = (e->melanoma.auc + e->keratosis.auc) / 2;
    return true;
}

double evaluation_figure_of_merit(const evaluation *e) {
    const double figures[2] = {e->segmentation.jaccard, e->mean_auc};
    double sum = 0;
    int defined = 0;
    for (int i = 0; i < 2; i++) {
        if (!isnan(figures[i])) {
            sum += figures[i];
            defined++;
        }
    }
    return defined ? sum / defined : (double)NAN;
}

// ---- files --------------------------------------------------------------------------------------

// Text that grows within a fixed room; `name` and a number as JSON has them.
typedef struct text {
    char bytes[4096];
    size_t used;
} text;

static void append(text *t, const char *string) {
    const size_t length = strlen(string);
    assert(t->used + length < sizeof t->bytes);
    memcpy(t->bytes + t->used, string, length + 1);
    t->used += length;
}

static void append_number(text *t, const char *name, double value, const char *behind) {
    char line[128];
    if (isfinite(value)) {
        snprintf(line, sizeof line, "\"%s\": %.17g%s", name, value, behind);
    } else {
        snprintf(line, sizeof line, "\"%s\": null%s", name, behind);
    }
    append(t, line);
}

static void append_class(text *t, const char *name, const clnet_classification_metrics *c) {
    append(t, "    \"");
    append(t, name);
    append(t, "\": {");
    append_number(t, "auc", c->auc, ", ");
    append_number(t, "accuracy", c->accuracy, ", ");
    append_number(t, "sensitivity", c->sensitivity, ", ");
    append_number(t, "specificity", c->specificity, "},\n");
}

bool evaluation_write_json(const evaluation *e, const char *path, problem *p) {
    const clnet_segmentation_metrics *s = &e->segmentation;
    text t = {.used = 0};
    append(&t, "{\n  \"segmentation\": {");
    append_number(&t, "jaccard", s->jaccard, ", ");
    append_number(&t, "threshold_jaccard", s->threshold_jaccard, ", ");
    append_number(&t, "dice", s->dice, ", ");
    append_number(&t, "accuracy", s->accuracy, ", ");
    append_number(&t, "sensitivity", s->sensitivity, ", ");
    append_number(&t, "specificity", s->specificity, "},\n");
    append(&t, "  \"classification\": {\n");
    append_class(&t, "melanoma", &e->melanoma);
    append_class(&t, "seborrheic_keratosis", &e->keratosis);
    append(&t, "    ");
    append_number(&t, "mean_auc", e->mean_auc, "\n  }\n}\n");
    return disk_write(path, t.bytes, t.used, p);
}

bool evaluation_write_predictions(const evaluation *e, const dataset *data, int classes,
                                  const char *path, problem *p) {
    static const char header[] = "image_id,melanoma,seborrheic_keratosis\n";
    const size_t room = sizeof header + data->count * (CSV_MAX_ID + 64);
    char *bytes = malloc(room);
    if (!bytes) {
        return problem_run(p, "%s: no memory to write it", path);
    }
    size_t used = (size_t)snprintf(bytes, room, "%s", header);
    for (size_t i = 0; i < data->count; i++) {
        const double *scores = e->scores + i * (size_t)classes;
        used += (size_t)snprintf(bytes + used, room - used, "%s,%.9g,%.9g\n", data->items[i].id,
                                 scores[DATASET_MELANOMA], scores[DATASET_KERATOSIS]);
    }
    const bool ok = disk_write(path, bytes, used, p);
    free(bytes);
    return ok;
}

// ---- text ---------------------------------------------------------------------------------------

// A share as percent, in a column of a table.
static void print_percent(int width, int decimals, double share) {
    if (isnan(share)) {
        printf("%*s", width, "n/a");
    } else {
        printf("%*.*f", width, decimals, 100 * share);
    }
}

static void print_class(const clnet_classification_metrics *c) {
    const double figures[4] = {c->auc, c->accuracy, c->sensitivity, c->specificity};
    for (int i = 0; i < 4; i++) {
        print_percent(8, 2, figures[i]);
    }
    printf("  ");
}

void evaluation_print(const evaluation *e) {
    const clnet_segmentation_metrics *s = &e->segmentation;
    const double figures[6] = {s->jaccard,     s->dice,        s->accuracy,
                               s->sensitivity, s->specificity, s->threshold_jaccard};
    printf("Table 1: classification of %zu images, in percent\n", e->labels);
    printf("  %-34s%-34s\n", "  Mel", "  SK");
    printf("       AUC     ACC     SEN     SPC       AUC     ACC     SEN     SPC   AUC (avg)\n  ");
    print_class(&e->melanoma);
    print_class(&e->keratosis);
    print_percent(10, 3, e->mean_auc);
    printf("\n\nTable 2: segmentation of %zu images, in percent\n", e->masks);
    printf("        JA      DI      AC      SE      SP   JA >= 65\n  ");
    for (int i = 0; i < 6; i++) {
        print_percent(i < 5 ? 8 : 11, 2, figures[i]);
    }
    printf("\n");
}
