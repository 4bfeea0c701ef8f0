// What was measured of one trained network: a row of the tables, kept in a small file so that the
// tables are made again without the network.
#ifndef CLNET_PROGRAM_RESULT_H
#define CLNET_PROGRAM_RESULT_H

#include "clnet.h"
#include "error.h"
#include "evaluation.h"

// The columns of the paper's Table 1, then those of Table 2 and the thresholded Jaccard index.
enum {
    METRIC_MELANOMA,                       // AUC, ACC, SEN, SPC
    METRIC_KERATOSIS = 4,                  // the same
    METRIC_MEAN_AUC = 8,                   // of the two
    METRIC_JACCARD,                        // JA, then DI, AC, SE, SP
    METRIC_THRESHOLD = METRIC_JACCARD + 5, // Jaccard below 0.65 counts as 0
    METRICS
};
extern const char *const metric_names[METRICS];  // "melanoma.auc"
extern const char *const metric_titles[METRICS]; // "Mel AUC"

typedef struct result {
    char model[32], split[16], checkpoint[32]; // "last.safetensors"
    char computed[160];                        // where the figures were computed
    double metric[METRICS];                    // shares, not percent; NaN where not defined
    double images, masks, labels;              // of the split; with a truth of each kind
    double parameters, macs;                   // of one image, forward
    double training_bytes;                     // memory plan of a training step; NaN: not known
    double epochs, training_seconds;           // NaN: not known
    double evaluation_seconds;
} result;

// The figures of an evaluation.
void result_take(result *r, const evaluation *e);

// Parameters that are trained, and multiply-adds per image.
void result_count(result *r, const clnet_model *m);

// The tasks of a network, by its name.
bool result_classifies(const char *model);
bool result_segments(const char *model);

// "ResNet50 + UNet" for "resnet50+unet": as the paper writes it.
enum { RESULT_TITLE = 64 };
const char *result_title(char title[RESULT_TITLE], const char *model);

bool result_write(const result *r, const char *path, problem *p);
bool result_read(result *r, const char *path, problem *p);

#endif
