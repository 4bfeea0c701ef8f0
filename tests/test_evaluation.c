// The evaluation room: a network's figures on a small synthetic set against plain counting, files,
// and independence of batch and threads.
#define _XOPEN_SOURCE 700
#include "cache.h"
#include "disk.h"
#include "evaluation.h"
#include "image.h"
#include "parallel.h"
#include "synth.h"
#include "test.h"
#include "wholefile.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = "/tmp/test_evaluation_XXXXXX";

static void path_in(char path[DISK_PATH], const char *name) {
    snprintf(path, DISK_PATH, "%s/%s", folder, name);
}

// ---- figures without a network ------------------------------------------------------------------

static void test_figure_of_merit(void) {
    evaluation e = evaluation_empty();
    CHECK(isnan(evaluation_figure_of_merit(&e)), "nothing is defined, found %g",
          evaluation_figure_of_merit(&e));
    e.segmentation.jaccard = 0.5;
    CHECK(evaluation_figure_of_merit(&e) == 0.5, "found %g", evaluation_figure_of_merit(&e));
    e.mean_auc = 0.75;
    CHECK(evaluation_figure_of_merit(&e) == 0.625, "found %g", evaluation_figure_of_merit(&e));
    e.segmentation.jaccard = NAN;
    CHECK(evaluation_figure_of_merit(&e) == 0.75, "found %g", evaluation_figure_of_merit(&e));
}

// Five images, one without a label; the figures are counted by hand.
static void test_classify(void) {
    char ids[5][4] = {"a", "b", "c", "d", "e"};
    const int labels[5] = {DATASET_MELANOMA, DATASET_NEVUS, DATASET_NO_LABEL, DATASET_KERATOSIS,
                           DATASET_MELANOMA};
    double scores[10] = {0.6, 0.1, 0.7, 0.2, 0.9, 0.9, 0.1, 0.5, 0.8, 0.1};
    dataset_item items[5];
    dataset data = {.split = "test", .items = items, .count = 5};
    for (int i = 0; i < 5; i++) {
        items[i] = (dataset_item){.id = ids[i], .label = labels[i]};
    }
    evaluation e = evaluation_empty();
    problem p = {0};
    clnet_context *ctx = clnet_context_create(NULL);
    e.scores = scores;
    const bool ok = evaluation_classify(&e, &data, 2, ctx, &p);
    CHECK(ok && e.labels == 4, "%zu labels, %s", e.labels, p.text);
    // Melanoma 0.6 and 0.8 against 0.7 and 0.1: three of four pairs in order.
    CHECK(e.melanoma.auc == 0.75, "found %g", e.melanoma.auc);
    CHECK(e.melanoma.accuracy == 0.75 && e.melanoma.sensitivity == 1 &&
              e.melanoma.specificity == 0.5,
          "found %g %g %g", e.melanoma.accuracy, e.melanoma.sensitivity, e.melanoma.specificity);
    // Keratosis: 0.5 is the highest, and not above 0.5.
    CHECK(e.keratosis.auc == 1 && e.keratosis.sensitivity == 0 && e.keratosis.specificity == 1,
          "found %g %g %g", e.keratosis.auc, e.keratosis.sensitivity, e.keratosis.specificity);
    CHECK(e.mean_auc == 0.875, "found %g", e.mean_auc);
    items[3].label = DATASET_NEVUS;
    CHECK(evaluation_classify(&e, &data, 2, ctx, &p) && isnan(e.keratosis.auc) && isnan(e.mean_auc),
          "one class only: found %g", e.keratosis.auc);
    clnet_context_destroy(ctx);
}

static bool file_is(const char *path, const char *text) {
    problem p = {0};
    wholefile f;
    if (!wholefile_read(path, 1 << 20, &f, &p)) {
        printf("%s\n", p.text);
        return false;
    }
    const bool same = f.size == strlen(text) && !memcmp(f.bytes, text, f.size);
    if (!same) {
        printf("%s holds:\n%.*s", path, (int)f.size, (const char *)f.bytes);
    }
    wholefile_free(&f);
    return same;
}

static void test_files(void) {
    char path[DISK_PATH], id[] = "ISIC_1";
    double scores[2] = {1.0f / 3.0f, 1e-20};
    dataset_item item = {.id = id};
    const dataset data = {.items = &item, .count = 1};
    evaluation e = evaluation_empty();
    problem p = {0};
    e.scores = scores;
    e.segmentation = (clnet_segmentation_metrics){0.1, 0, 1.0 / 3, 1, 1, 0.5};
    path_in(path, "metrics.json");
    CHECK(evaluation_write_json(&e, path, &p), "%s", p.text);
    CHECK(file_is(
              path,
              "{\n  \"segmentation\": {\"jaccard\": 0.10000000000000001, \"threshold_jaccard\": 0, "
              "\"dice\": 0.33333333333333331, \"accuracy\": 1, \"sensitivity\": 1, "
              "\"specificity\": 0.5},\n"
              "  \"classification\": {\n"
              "    \"melanoma\": {\"auc\": null, \"accuracy\": null, \"sensitivity\": null, "
              "\"specificity\": null},\n"
              "    \"seborrheic_keratosis\": {\"auc\": null, \"accuracy\": null, "
              "\"sensitivity\": null, \"specificity\": null},\n"
              "    \"mean_auc\": null\n  }\n}\n"),
          "metrics.json");
    path_in(path, "predictions.csv");
    CHECK(evaluation_write_predictions(&e, &data, 2, path, &p), "%s", p.text);
    CHECK(file_is(path, "image_id,melanoma,seborrheic_keratosis\nISIC_1,0.333333343,1e-20\n"),
          "predictions.csv");
    path_in(path, "missing/metrics.json");
    CHECK(!evaluation_write_json(&e, path, &p) && strstr(p.text, "missing/metrics.json"), "%s",
          p.text);
}

// ---- a network ----------------------------------------------------------------------------------

typedef struct setting {
    const char *model;
    clnet_purpose purpose;
    int batch, threads;
} setting;

typedef struct result {
    evaluation e;
    double scores[64];
    int batch_after;
    bool ok;
    problem p;
} result;

static clnet_model *make_model(clnet_context *ctx, const setting *s) {
    const clnet_model_desc d = {.name = s->model,
                                .width = 1.0 / 16,
                                .size = {32, 48},
                                .batch = s->batch,
                                .purpose = s->purpose,
                                .seed = 7};
    return clnet_model_create(ctx, &d);
}

static result evaluate(const dataset *data, const setting *s, const char *masks,
                       volatile sig_atomic_t *stop) {
    result r = {.ok = false};
    cache images;
    const clnet_context_desc context = {.threads = s->threads};
    const cache_desc desc = {.dir = folder, .height = 32, .width = 48, .threads = s->threads};
    const evaluation_desc how = {.masks_folder = masks, .stop = stop};
    clnet_context *ctx = clnet_context_create(&context);
    clnet_model *model = make_model(ctx, s);
    if (model && cache_open(&images, data, &desc, &r.p)) {
        r.ok = evaluation_run(model, data, &images, &how, &r.e, &r.p);
        r.batch_after = clnet_tensor_size(model->image, 0);
        cache_close(&images);
    }
    for (size_t i = 0; r.ok && r.e.scores && i < DATASET_CLASSES * data->count; i++) {
        r.scores[i] = r.e.scores[i];
    }
    evaluation_free(&r.e);
    clnet_model_destroy(model);
    clnet_context_destroy(ctx);
    return r;
}

static double jaccard(const unsigned char *a, const unsigned char *b, size_t pixels) {
    double both = 0, either = 0;
    for (size_t i = 0; i < pixels; i++) {
        both += a[i] > 128 && b[i] > 128;
        either += a[i] > 128 || b[i] > 128;
    }
    return either > 0 ? both / either : 1;
}

// The same image through clnet_predict, which shares no code with the batches: equal scores, mask
// and Jaccard index.
static double check_image(clnet_model *model, const dataset_item *item, const double *scores,
                          const char *masks) {
    char name[256], path[DISK_PATH];
    problem p = {0};
    image im, truth = {0}, written = {0};
    double index = NAN;
    snprintf(name, sizeof name, "%s_segmentation.png", item->id);
    const bool ok = disk_join(path, masks, name, &p) &&
                    image_load(item->image, IMAGE_RGB, &im, &p) &&
                    image_load(path, IMAGE_MASK, &written, &p) &&
                    (!item->mask || image_load(item->mask, IMAGE_MASK, &truth, &p));
    CHECK(ok, "%s", p.text);
    if (ok) {
        const size_t pixels = (size_t)im.height * (size_t)im.width;
        clnet_prediction expected = {.mask = malloc(pixels)};
        CHECK(clnet_predict(model, im.bytes, im.height, im.width, &expected) == CLNET_OK, "%s",
              item->id);
        for (int k = 0; k < DATASET_CLASSES; k++) {
            CHECK(fabs(scores[k] - expected.scores[k]) <= 1e-6, "%s: class %d is %g, expected %g",
                  item->id, k, scores[k], expected.scores[k]);
        }
        CHECK(written.height == im.height && written.width == im.width &&
                  !memcmp(written.bytes, expected.mask, pixels),
              "%s: another mask", item->id);
        index = item->mask ? jaccard(expected.mask, truth.bytes, pixels) : NAN;
        free(expected.mask);
    }
    image_free(&written);
    image_free(&truth);
    image_free(&im);
    return index;
}

static void test_against_predict(const dataset *data, const result *r, const char *masks) {
    const setting s = {"resnet50+unet", CLNET_INFER, 1, 1};
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_model *model = make_model(ctx, &s);
    double sum = 0;
    size_t count = 0;
    for (size_t i = 0; model && i < data->count; i++) {
        const double index =
            check_image(model, &data->items[i], r->scores + DATASET_CLASSES * i, masks);
        if (!isnan(index)) {
            sum += index;
            count++;
        }
    }
    CHECK(count == data->masks && r->e.masks == count, "%zu masks, the evaluation has %zu", count,
          r->e.masks);
    CHECK(fabs(r->e.segmentation.jaccard - sum / (double)count) <= 1e-12, "Jaccard %g, expected %g",
          r->e.segmentation.jaccard, sum / (double)count);
    clnet_model_destroy(model);
    clnet_context_destroy(ctx);
}

static void test_invariance(const dataset *data, const result *first) {
    const setting settings[] = {{"resnet50+unet", CLNET_INFER, 1, 1},
                                {"resnet50+unet", CLNET_INFER, 7, 2},
                                {"resnet50+unet", CLNET_TRAIN, 4, 3},
                                {"resnet50+unet", CLNET_EXPLAIN, 2, 2}};
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        const result r = evaluate(data, &settings[i], NULL, NULL);
        CHECK(r.ok, "setting %zu: %s", i, r.p.text);
        CHECK(r.batch_after == settings[i].batch, "setting %zu: batch is %d", i, r.batch_after);
        CHECK(!memcmp(r.scores, first->scores, sizeof r.scores), "setting %zu: other scores", i);
        CHECK(!memcmp(&r.e.segmentation, &first->e.segmentation, sizeof r.e.segmentation) &&
                  r.e.mean_auc == first->e.mean_auc,
              "setting %zu: other figures", i);
    }
}

static void test_single_tasks(const dataset *data) {
    const setting cls = {"resnet50", CLNET_INFER, 4, 1}, seg = {"unet", CLNET_INFER, 4, 1};
    const result c = evaluate(data, &cls, NULL, NULL), s = evaluate(data, &seg, NULL, NULL);
    CHECK(c.ok && c.e.masks == 0 && c.e.labels == 7 && isnan(c.e.segmentation.jaccard) &&
              !isnan(c.e.mean_auc),
          "%s: %zu masks, %zu labels", c.p.text, c.e.masks, c.e.labels);
    CHECK(s.ok && s.e.masks == 6 && s.e.labels == 0 && !isnan(s.e.segmentation.jaccard) &&
              isnan(s.e.mean_auc),
          "%s: %zu masks, %zu labels", s.p.text, s.e.masks, s.e.labels);
}

static void test_stop(const dataset *data) {
    const setting s = {"resnet50+unet", CLNET_INFER, 2, 1};
    volatile sig_atomic_t stop = 1;
    const result r = evaluate(data, &s, NULL, &stop);
    CHECK(!r.ok && strstr(r.p.text, "stopped") && r.batch_after == 2, "%s", r.p.text);
}

static void test_network(void) {
    const synth_desc set = {.validation = 7, .height = 40, .width = 56, .seed = 3};
    const setting s = {"resnet50+unet", CLNET_INFER, 3, 2};
    char data_path[DISK_PATH], masks[DISK_PATH];
    problem p = {0};
    dataset data;
    path_in(data_path, "data");
    path_in(masks, "masks");
    bool ok = synth_write(data_path, &set, NULL, NULL, &p) && disk_make_folder(masks, &p) &&
              dataset_open(data_path, "validation", &data, &p);
    CHECK(ok, "%s", p.text);
    if (!ok) {
        return;
    }
    CHECK(unlink(data.items[2].mask) == 0, "%s", data.items[2].mask);
    dataset_close(&data);
    ok = dataset_open(data_path, "validation", &data, &p);
    CHECK(ok && data.masks == 6, "%s", p.text);
    const result r = evaluate(&data, &s, masks, NULL);
    CHECK(r.ok && r.e.labels == 7 && r.batch_after == 3, "%s", r.p.text);
    if (r.ok) {
        test_against_predict(&data, &r, masks);
        test_invariance(&data, &r);
    }
    test_single_tasks(&data);
    test_stop(&data);
    dataset_close(&data);
}

// ---- the parallel loop --------------------------------------------------------------------------

static bool fail_from_5(void *user, size_t i, problem *p) {
    int *calls = user;
    calls[i]++;
    return i < 5 || problem_input(p, "item %zu", i);
}

static void test_parallel(void) {
    for (int threads = 1; threads <= 8; threads++) {
        int calls[100] = {0};
        problem p = {0};
        const bool ok = parallel_for(100, threads, fail_from_5, calls, &p);
        CHECK(!ok && !strcmp(p.text, "item 5"), "%d threads: %s", threads, p.text);
        bool each = true;
        for (int i = 0; i <= 5; i++) {
            each = each && calls[i] == 1;
        }
        CHECK(each, "%d threads: an item before the failure was not called once", threads);
        CHECK(parallel_for(5, threads, fail_from_5, calls, &p), "%d threads", threads);
    }
}

static void remove_all(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    CHECK(system(command) == 0, "%s", command);
}

int main(void) {
    if (!mkdtemp(folder)) {
        printf("%s: cannot be made\n", folder);
        return 1;
    }
    test_figure_of_merit();
    test_classify();
    test_files();
    test_parallel();
    test_network();
    remove_all();
    return test_close();
}
