// Measuring a network on a split and leaving what there is to see of it in a folder, in the ISIC
// submission format: for `clnet evaluate`, and for each row of `clnet paper`.
//     metrics.json  predictions.csv  masks/ID_segmentation.png  cams/ID.png  result.txt
#ifndef CLNET_PROGRAM_MEASURE_H
#define CLNET_PROGRAM_MEASURE_H

#include "cache.h"
#include "clnet.h"
#include "dataset.h"
#include "evaluation.h"
#include "result.h"

typedef struct measure_desc {
    const dataset *data;
    const cache *images; // at the network's size
    const char *out;     // folder, which is made; NULL: no files
    void (*progress)(void *user, size_t done, size_t total); // may be NULL
    void *user;
} measure_desc;

// Fills figures and result (but what only its training knows: checkpoint, training_*, epochs, which
// are empty and NaN). Writes all but cams/ and result.txt. *figures needs evaluation_free.
bool measure_network(clnet_model *model, const measure_desc *desc, evaluation *figures,
                     result *result, problem *p);

// The images that stand for the split in figures: of melanoma, keratosis and nevus in turn as long
// as there are, then any. Returns how many.
enum { MEASURE_EXAMPLES = 6 };
size_t measure_examples(const dataset *data, size_t chosen[MEASURE_EXAMPLES]);

// cams/ID.png: the class activation maps of the examples, for the true class (where there is none,
// for the one with the highest score), over the image. The model is one for CLNET_EXPLAIN.
bool measure_maps(clnet_model *explaining, const dataset *data, const char *out, problem *p);

#endif
