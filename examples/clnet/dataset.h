// The ISIC 2017 data set, found as it is distributed:
//     DIR/ISIC-2017_{Training,Validation,Test_v2}_Data/ID.jpg
//     DIR/ISIC-2017_{...}_Part1_GroundTruth/ID_segmentation.png
//     DIR/ISIC-2017_{...}_Part3_GroundTruth.csv
// Images may be .jpg, .jpeg or .png; _superpixels.png, metadata and all other files are ignored.
#ifndef CLNET_PROGRAM_DATASET_H
#define CLNET_PROGRAM_DATASET_H

#include "error.h"

#include <stddef.h>
#include <stdint.h>

enum { DATASET_NO_LABEL = -1, DATASET_MELANOMA, DATASET_KERATOSIS, DATASET_NEVUS, DATASET_CLASSES };

typedef struct dataset_item {
    char *id;    // ISIC_0000000
    char *image; // path
    char *mask;  // path, or NULL: takes no part in segmentation
    int label;   // DATASET_MELANOMA.., or DATASET_NO_LABEL: takes no part in classification
} dataset_item;

typedef struct dataset {
    const char *split;               // "training", "validation" or "test"
    dataset_item *items;             // sorted by id, no id twice
    size_t count;                    // at least 1
    size_t masks;                    // items with a mask
    size_t classes[DATASET_CLASSES]; // items with this label
} dataset;

// Lists a split: its images, with the mask and the label of each where there is one. Looks at names
// and the CSV only, not into images. Refused: a split that is not there, one without images, an id
// twice, a mask or a row of the CSV whose image is missing. On failure *out is empty.
bool dataset_open(const char *dir, const char *split, dataset *out, problem *p);

// Whether the folder of images of this split is there.
bool dataset_has(const char *dir, const char *split);

// The item of this id, or NULL.
const dataset_item *dataset_find(const dataset *data, const char *id);

// A number for the list of images, masks and labels: what goes on with earlier work on another list
// is refused.
uint64_t dataset_hash(const dataset *data);

void dataset_close(dataset *data);

#endif
