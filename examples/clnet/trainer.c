#define _POSIX_C_SOURCE 200809L
#include "trainer.h"
#include "commands.h"
#include "disk.h"
#include "evaluation.h"
#include "options.h"
#include "parallel.h"
#include "plot.h"
#include "progress.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static size_t images_per_step(const trainer *t) {
    return (size_t)t->settings.batch * (size_t)t->settings.accumulate;
}

static uint64_t steps_per_epoch(const trainer *t) {
    return (t->training->count + images_per_step(t) - 1) / images_per_step(t);
}

uint64_t trainer_total_steps(const trainer *t) {
    return steps_per_epoch(t) * (uint64_t)t->settings.epochs;
}

// One batch in memory, and the order of the epoch that it is taken from.
typedef struct batch {
    int *order;            // a permutation of the data set
    size_t images;         // in the batch
    float *pixels, *masks; // (images,H,W,3), (images,H,W)
    unsigned char *mask_bytes;
    int32_t *labels, *flips;
    const trainer *trainer; // what it is a batch of
} batch;

static void batch_free(batch *b) {
    free(b->order);
    free(b->pixels);
    free(b->masks);
    free(b->mask_bytes);
    free(b->labels);
    free(b->flips);
}

static bool batch_create(const trainer *t, batch *b, problem *p) {
    const size_t images = (size_t)t->settings.batch;
    const size_t pixels =
        images * (size_t)t->training_images->height * (size_t)t->training_images->width;
    b->order = malloc(t->training->count * sizeof *b->order);
    b->pixels = malloc(3 * pixels * sizeof *b->pixels);
    b->masks = malloc(pixels * sizeof *b->masks);
    b->mask_bytes = malloc(pixels);
    b->labels = malloc(images * sizeof *b->labels);
    b->flips = malloc(images * sizeof *b->flips);
    b->trainer = t;
    if (b->order && b->pixels && b->masks && b->mask_bytes && b->labels && b->flips) {
        return true;
    }
    return problem_run(p, "out of memory: a batch of %zu images", images);
}

enum {
    STREAM_ORDER = 1,
    STREAM_FLIPS = 2
}; // random streams of an epoch, beside those of the weights

static uint64_t stream_of(int epoch, int what) {
    return (uint64_t)1 << 63 | (uint64_t)epoch << 8 | (uint64_t)what;
}

// Image i of the batch: read, its truth beside it, to be flipped with probability 1/2 each way.
static bool read_image(void *user, size_t i, problem *p) {
    batch *b = user;
    const trainer *t = b->trainer;
    const size_t index = (size_t)b->order[t->state.position + i];
    const dataset_item *item = &t->training->items[index];
    const int H = t->training_images->height, W = t->training_images->width;
    const size_t pixels = (size_t)H * (size_t)W;
    if (!cache_read(t->training_images, index, b->pixels + 3 * i * pixels,
                    b->mask_bytes + i * pixels, p)) {
        return false;
    }
    for (size_t k = 0; k < pixels; k++) {
        b->masks[i * pixels + k] = item->mask ? (float)b->mask_bytes[i * pixels + k] : -1.0f;
    }
    uint32_t bits[4];
    clnet_random_bits(t->settings.seed, stream_of(t->state.epoch, STREAM_FLIPS), index, bits);
    b->flips[i] = (int32_t)(bits[0] >> 31 | bits[1] >> 31 << 1);
    b->labels[i] = (int32_t)item->label;
    return true;
}

// The next batch of the epoch, in the model's inputs.
static bool load_batch(const trainer *t, batch *b, problem *p) {
    const size_t left = t->training->count - t->state.position;
    clnet_context *ctx = clnet_graph_context(t->model->graph);
    b->images = left < (size_t)t->settings.batch ? left : (size_t)t->settings.batch;
    if (!parallel_for(b->images, clnet_context_threads(ctx), read_image, b, p)) {
        return false;
    }
    clnet_graph_set_batch(t->model->graph, (int)b->images);
    clnet_tensor_set(t->model->image, b->pixels, CLNET_ORDER_MEMORY);
    clnet_tensor_set(t->model->flips, b->flips, CLNET_ORDER_MEMORY);
    if (t->model->label) {
        clnet_tensor_set(t->model->label, b->labels, CLNET_ORDER_MEMORY);
    }
    if (t->model->mask) {
        clnet_tensor_set(t->model->mask, b->masks, CLNET_ORDER_MEMORY);
    }
    return clnet_context_result(ctx) == CLNET_OK || problem_context(p, ctx);
}

static double item_or_zero(clnet_tensor *t) { return t ? clnet_tensor_item(t) : 0; }

static void add_losses(trainer *t, size_t images) {
    const double n = (double)images;
    trainer_sums *s = &t->state.sums;
    s->images += n;
    s->loss += n * item_or_zero(t->model->loss);
    s->classification += n * item_or_zero(t->model->loss_classification);
    s->focal += n * item_or_zero(t->model->loss_focal);
    s->dice += n * item_or_zero(t->model->loss_dice);
}

// What the guard against NaN tells is completed by the images of the batch.
static bool nonfinite(const trainer *t, const batch *b, problem *p) {
    const clnet_context *ctx = clnet_graph_context(t->model->graph);
    char ids[256] = "";
    for (size_t i = 0; i < b->images; i++) {
        const size_t used = strlen(ids);
        const size_t index = (size_t)b->order[t->state.position - b->images + i];
        snprintf(ids + used, sizeof ids - used, "%s%s", i ? ", " : "",
                 t->training->items[index].id);
    }
    if (clnet_context_result(ctx) != CLNET_ERROR_NONFINITE) {
        return problem_context(p, ctx);
    }
    return problem_run(p, "epoch %d: %s; images: %s; nothing was saved since the last checkpoint",
                       t->state.epoch + 1, clnet_error(ctx), ids);
}

// One step: the gradients of `accumulate` batches (fewer at the end of an epoch) and one update.
static bool step(trainer *t, batch *b, double *waited, problem *p) {
    clnet_graph *g = t->model->graph;
    const size_t left = t->training->count - t->state.position;
    const size_t images = left < images_per_step(t) ? left : images_per_step(t);
    const size_t batches = (images + (size_t)t->settings.batch - 1) / (size_t)t->settings.batch;
    const uint64_t done = clnet_adam_steps(t->model->adam);
    clnet_graph_set_training(g, true);
    clnet_graph_set_loss_scale(g, 1 / (double)batches);
    clnet_graph_zero_grad(g);
    for (size_t i = 0; i < batches; i++) {
        const double start = progress_clock();
        if (!load_batch(t, b, p)) {
            return false;
        }
        *waited += progress_clock() - start;
        clnet_graph_set_step(g, done * (uint64_t)t->settings.accumulate +
                                    i); // dropout: each batch its own
        clnet_graph_forward(g);
        clnet_graph_backward(g);
        add_losses(t, b->images);
        t->state.position += b->images;
    }
    const double lr = clnet_poly_lr(t->settings.lr, done, trainer_total_steps(t), 0.96);
    return clnet_train_update(t->model->adam, lr) == CLNET_OK || nonfinite(t, b, p);
}

static const char log_header[] =
    "epoch,lr,loss,loss.classification,loss.focal,loss.dice,val.jaccard,val.threshold_jaccard,val."
    "dice,"
    "val.melanoma.auc,val.seborrheic_keratosis.auc,val.mean_auc,seconds,images_per_second\n";

// ",value" with all its digits, or "," where it is undefined.
static void append_value(char *line, size_t size, double value) {
    const size_t used = strlen(line);
    snprintf(line + used, size - used, isfinite(value) ? ",%.9g" : ",", value);
}

static bool append_log(const trainer *t, const evaluation *e, double lr, double seconds,
                       problem *p) {
    const trainer_sums *s = &t->state.sums;
    const double none = NAN;
    const bool masks = e && e->masks, labels = e && e->labels;
    const double values[] = {lr,
                             s->loss / s->images,
                             t->model->logits ? s->classification / s->images : none,
                             t->model->mask_logits ? s->focal / s->images : none,
                             t->model->mask_logits ? s->dice / s->images : none,
                             masks ? e->segmentation.jaccard : none,
                             masks ? e->segmentation.threshold_jaccard : none,
                             masks ? e->segmentation.dice : none,
                             labels ? e->melanoma.auc : none,
                             labels ? e->keratosis.auc : none,
                             labels ? e->mean_auc : none,
                             seconds,
                             s->images / seconds};
    char line[1024], path[DISK_PATH];
    snprintf(line, sizeof line, "%d", t->state.epoch);
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        append_value(line, sizeof line, values[i]);
    }
    if (!disk_join(path, t->out, "log.csv", p)) {
        return false;
    }
    FILE *f = fopen(path, "a");
    const bool written = f && fprintf(f, "%s\n", line) > 0;
    if (!f || fclose(f) || !written) {
        return problem_run(p, "%s: cannot be written", path);
    }
    char curves[DISK_PATH];
    return disk_join(curves, t->out, "curves.png", p) && plot_log_csv(path, curves, p);
}

bool trainer_begin_log(const trainer *t, problem *p) {
    char path[DISK_PATH], line[4096];
    if (!disk_join(path, t->out, "log.csv", p)) {
        return false;
    }
    size_t used = strlen(log_header), room = used + 1;
    char *text = malloc(room);
    if (text) {
        memcpy(text, log_header, room);
    }
    FILE *f = t->state.epoch > 0 ? fopen(path, "r") : NULL;
    while (text && f && fgets(line, sizeof line, f)) {
        const long epoch = strtol(line, NULL, 10);
        const size_t length = strlen(line);
        if (epoch >= 1 && epoch <= t->state.epoch && line[length - 1] == '\n') {
            char *larger = realloc(text, room += length);
            if (!larger) {
                free(text);
                text = NULL;
                break;
            }
            text = larger;
            memcpy(text + used, line, length + 1);
            used += length;
        }
    }
    if (f) {
        fclose(f);
    }
    const bool ok = text ? disk_write(path, text, used, p) : problem_run(p, "out of memory");
    free(text);
    return ok;
}

static bool save_best(trainer *t, const evaluation *e, problem *p) {
    const double merit = evaluation_figure_of_merit(e);
    char path[DISK_PATH];
    if (!(merit > t->state.best)) {
        return true;
    }
    t->state.best = merit;
    if (!disk_join(path, t->out, "best.safetensors", p)) {
        return false;
    }
    return clnet_model_save(t->model, path) == CLNET_OK ||
           problem_run(p, "%s", clnet_error(clnet_graph_context(t->model->graph)));
}

// The end of an epoch: validation, the best weights, the log's row.
static bool end_epoch(trainer *t, double seconds, problem *p) {
    evaluation e = {0};
    bool ok = true;
    if (t->validation) {
        const evaluation_desc desc = {.stop = &command_signal};
        ok = evaluation_run(t->model, t->validation, t->validation_images, &desc, &e, p);
        if (!ok && command_signal) {
            // Asked to stop while validating: this epoch's end comes again after resuming.
            evaluation_free(&e);
            *p = (problem){0};
            return true;
        }
        ok = ok && save_best(t, &e, p);
    }
    if (ok) {
        const uint64_t last = clnet_adam_steps(t->model->adam) - 1;
        const double lr = clnet_poly_lr(t->settings.lr, last, trainer_total_steps(t), 0.96);
        t->state.epoch++;
        ok = append_log(t, t->validation ? &e : NULL, lr, seconds, p);
        const trainer_sums *s = &t->state.sums;
        fprintf(stderr, "%sepoch %d/%d: loss %.4f", isatty(STDERR_FILENO) ? "\r\033[K" : "",
                t->state.epoch, t->settings.epochs, s->loss / s->images);
        if (e.masks) {
            fprintf(stderr, ", Jaccard %.4f", e.segmentation.jaccard);
        }
        if (e.labels && isfinite(e.mean_auc)) {
            fprintf(stderr, ", mean AUC %.4f", e.mean_auc);
        }
        fprintf(stderr, ", %.1f s\n", seconds);
        t->state.position = 0;
        t->state.sums = (trainer_sums){0};
    }
    evaluation_free(&e);
    return ok;
}

static void show(const trainer *t, const char *text) {
    const size_t images = (size_t)t->state.epoch * t->training->count + t->state.position;
    progress_update(t->bar, (size_t)(t->bar_first + t->bar_per_image * (double)images), text);
}

// Runs the rest of an epoch. Ends early, with the position kept, when asked to stop.
static bool run_epoch(trainer *t, batch *b, long long *steps, problem *p) {
    const double start = progress_clock();
    double waited = 0;
    clnet_random_permutation(b->order, (int)t->training->count, t->settings.seed,
                             stream_of(t->state.epoch, STREAM_ORDER));
    while (t->state.position < t->training->count) {
        if (command_signal || (t->settings.stop_after && *steps >= t->settings.stop_after)) {
            return true;
        }
        if (!step(t, b, &waited, p)) {
            return false;
        }
        (*steps)++;
        const trainer_sums *s = &t->state.sums;
        const double seconds = progress_clock() - start;
        char text[160];
        snprintf(text, sizeof text,
                 "%s%sepoch %d/%d loss %.4f (%.3f %.3f %.3f) lr %.2e, data %.0f %%",
                 t->title ? t->title : "", t->title ? ", " : "", t->state.epoch + 1,
                 t->settings.epochs, s->loss / s->images, s->classification / s->images,
                 s->focal / s->images, s->dice / s->images,
                 clnet_poly_lr(t->settings.lr, clnet_adam_steps(t->model->adam) - 1,
                               trainer_total_steps(t), 0.96),
                 100 * waited / (seconds > 0 ? seconds : 1));
        show(t, text);
    }
    return end_epoch(t, progress_clock() - start, p);
}

bool trainer_run(trainer *t, bool *finished, problem *p) {
    batch b = {0};
    long long steps = 0;
    bool ok = batch_create(t, &b, p);
    while (ok && t->state.epoch < t->settings.epochs && !command_signal &&
           !(t->settings.stop_after && steps >= t->settings.stop_after)) {
        ok = run_epoch(t, &b, &steps, p) && t->save(t, p);
    }
    *finished = ok && t->state.epoch == t->settings.epochs;
    batch_free(&b);
    return ok;
}
