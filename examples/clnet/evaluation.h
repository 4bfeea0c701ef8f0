// Measuring a network on a split of a data set: for `clnet evaluate`, and after every epoch of
// training. Images come from the cache, masks are compared at the truth's own size.
#ifndef CLNET_PROGRAM_EVALUATION_H
#define CLNET_PROGRAM_EVALUATION_H

#include "cache.h"
#include "clnet.h"
#include "dataset.h"
#include "error.h"

typedef struct evaluation {
    size_t masks, labels; // images that took part in segmentation, in classification; 0: no figures
    clnet_segmentation_metrics segmentation;          // NaN without masks
    clnet_classification_metrics melanoma, keratosis; // AUC is NaN where one side is missing
    double mean_auc;                                  // NaN where undefined
    double *scores; // (images, classes) in the data set's order; NULL without classification
} evaluation;

typedef struct evaluation_desc {
    const char
        *masks_folder; // NULL, or where each image's predicted mask goes, as ID_segmentation.png,
                       // at the truth's size, or the image's where there is no truth
    void (*progress)(void *user, size_t done, size_t total); // may be NULL
    void *user;
    const volatile sig_atomic_t *stop; // may be NULL; set: ends early with a problem that says so
} evaluation_desc;

// Runs the network (any purpose, batches of up to its own) over all items of a data set in
// evaluation mode. Leaves the graph in evaluation mode and its batch as it was built. `images` has
// the network's size. A classification has to have the data set's classes.
bool evaluation_run(clnet_model *model, const dataset *data, const cache *images,
                    const evaluation_desc *desc, evaluation *out, problem *p);
void evaluation_free(evaluation *e);

// An evaluation without any figures, all NaN: where evaluation_run begins, and `clnet score`.
evaluation evaluation_empty(void);

// The figures of classification from e->scores (images, classes) and the labels of the data set.
bool evaluation_classify(evaluation *e, const dataset *data, int classes, clnet_context *ctx,
                         problem *p);

// The best checkpoint is the one with the highest mean of Jaccard and mean AUC, over the tasks that
// both network and data set have and that are defined; NaN when none is.
double evaluation_figure_of_merit(const evaluation *e);

// metrics.json and predictions.csv: the ISIC submission format. Predictions need
// e->scores.
bool evaluation_write_json(const evaluation *e, const char *path, problem *p);
bool evaluation_write_predictions(const evaluation *e, const dataset *data, int classes,
                                  const char *path, problem *p);

// The figures as text on standard output, as the paper's tables.
void evaluation_print(const evaluation *e);

#endif
