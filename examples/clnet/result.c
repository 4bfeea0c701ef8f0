#include "result.h"

#include "notes.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const metric_names[METRICS] = {"melanoma.auc",
                                           "melanoma.accuracy",
                                           "melanoma.sensitivity",
                                           "melanoma.specificity",
                                           "seborrheic_keratosis.auc",
                                           "seborrheic_keratosis.accuracy",
                                           "seborrheic_keratosis.sensitivity",
                                           "seborrheic_keratosis.specificity",
                                           "mean_auc",
                                           "jaccard",
                                           "dice",
                                           "accuracy",
                                           "sensitivity",
                                           "specificity",
                                           "threshold_jaccard"};

const char *const metric_titles[METRICS] = {
    "Mel AUC",   "Mel ACC", "Mel SEN", "Mel SPC", "SK AUC", "SK ACC", "SK SEN",  "SK SPC",
    "AUC (avg)", "JA",      "DI",      "AC",      "SE",     "SP",     "JA >= 65"};

// The numbers beside the metrics.
static const struct {
    const char *name;
    size_t offset;
} numbers[] = {
    {"images", offsetof(result, images)},
    {"masks", offsetof(result, masks)},
    {"labels", offsetof(result, labels)},
    {"parameters", offsetof(result, parameters)},
    {"macs", offsetof(result, macs)},
    {"training.bytes", offsetof(result, training_bytes)},
    {"epochs", offsetof(result, epochs)},
    {"training.seconds", offsetof(result, training_seconds)},
    {"evaluation.seconds", offsetof(result, evaluation_seconds)},
};

enum { NUMBERS = sizeof numbers / sizeof *numbers };

static double *number_of(result *r, size_t i) {
    return (double *)(void *)((char *)r + numbers[i].offset);
}

static void take_class(double metric[4], const clnet_classification_metrics *c) {
    metric[0] = c->auc;
    metric[1] = c->accuracy;
    metric[2] = c->sensitivity;
    metric[3] = c->specificity;
}

void result_take(result *r, const evaluation *e) {
    const clnet_segmentation_metrics *s = &e->segmentation;
    const double masks[] = {s->jaccard,     s->dice,        s->accuracy,
                            s->sensitivity, s->specificity, s->threshold_jaccard};
    take_class(r->metric + METRIC_MELANOMA, &e->melanoma);
    take_class(r->metric + METRIC_KERATOSIS, &e->keratosis);
    r->metric[METRIC_MEAN_AUC] = e->mean_auc;
    memcpy(r->metric + METRIC_JACCARD, masks, sizeof masks);
    r->masks = (double)e->masks;
    r->labels = (double)e->labels;
}

void result_count(result *r, const clnet_model *m) {
    r->parameters = r->macs = 0;
    for (int i = 0; i < clnet_graph_weights(m->graph); i++) {
        const clnet_tensor *t = clnet_graph_weight(m->graph, i);
        r->parameters += clnet_tensor_trainable(t) ? (double)clnet_tensor_count(t) : 0;
    }
    for (int i = 0; i < clnet_graph_nodes(m->graph); i++) {
        r->macs += clnet_graph_node_macs(m->graph, i) / m->desc.batch;
    }
}

bool result_classifies(const char *model) {
    return strcmp(model, "unet") != 0 && strcmp(model, "resunet") != 0;
}

bool result_segments(const char *model) { return strchr(model, '+') || !result_classifies(model); }

const char *result_title(char title[RESULT_TITLE], const char *model) {
    static const char *const parts[][2] = {{"resnet50", "ResNet50"},
                                           {"inception_v3", "Inception V3"},
                                           {"arlnet50", "ARLNet50"},
                                           {"resunet", "ResUNet"},
                                           {"unet", "UNet"}};
    title[0] = 0;
    while (*model) {
        const size_t length = strcspn(model, "+"), used = strlen(title);
        const char *part = NULL;
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            if (strlen(parts[i][0]) == length && !strncmp(parts[i][0], model, length)) {
                part = parts[i][1];
            }
        }
        snprintf(title + used, RESULT_TITLE - used, "%s%.*s", used ? " + " : "",
                 part ? (int)strlen(part) : (int)length, part ? part : model);
        model += length + (model[length] == '+');
    }
    return title;
}

bool result_write(const result *r, const char *path, problem *p) {
    result copy = *r;
    notes_text text = {.used = 0};
    notes_add(&text, "model", r->model);
    notes_add(&text, "split", r->split);
    notes_add(&text, "checkpoint", r->checkpoint);
    notes_add(&text, "computed", r->computed);
    for (size_t i = 0; i < METRICS; i++) {
        notes_add_number(&text, metric_names[i], r->metric[i]);
    }
    for (size_t i = 0; i < NUMBERS; i++) {
        notes_add_number(&text, numbers[i].name, *number_of(&copy, i));
    }
    return notes_write(&text, path, p);
}

static bool read_number(const notes *n, const char *name, double *value, const char *path,
                        problem *p) {
    const char *text = notes_find(n, name);
    char *end = NULL;
    *value = text ? strtod(text, &end) : NAN;
    return (text && end != text && *end == 0) ||
           problem_input(p, "%s: %s is missing or is no number", path, name);
}

static bool read_text(const notes *n, const char *name, char *value, size_t size, const char *path,
                      problem *p) {
    const char *text = notes_find(n, name);
    snprintf(value, size, "%s", text ? text : "");
    return (text && strlen(text) < size) ||
           problem_input(p, "%s: %s is missing or too long", path, name);
}

bool result_read(result *r, const char *path, problem *p) {
    notes n;
    *r = (result){.images = 0};
    if (!notes_read(path, &n, p)) {
        return false;
    }
    bool ok = read_text(&n, "model", r->model, sizeof r->model, path, p) &&
              read_text(&n, "split", r->split, sizeof r->split, path, p) &&
              read_text(&n, "checkpoint", r->checkpoint, sizeof r->checkpoint, path, p) &&
              read_text(&n, "computed", r->computed, sizeof r->computed, path, p);
    for (size_t i = 0; ok && i < METRICS; i++) {
        ok = read_number(&n, metric_names[i], &r->metric[i], path, p);
    }
    for (size_t i = 0; ok && i < NUMBERS; i++) {
        ok = read_number(&n, numbers[i].name, number_of(r, i), path, p);
    }
    notes_free(&n);
    return ok;
}
