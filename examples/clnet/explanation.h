// One image explained: its scores, its mask and the class activation maps of a network.
#ifndef CLNET_PROGRAM_EXPLANATION_H
#define CLNET_PROGRAM_EXPLANATION_H

#include "clnet.h"
#include "image.h"
#include "picture.h"

enum { EXPLANATION_ALL = 0 }; // a layer: all five

typedef struct explanation_desc {
    clnet_cam_variant variant;
    int layer; // 1 to 5, or EXPLANATION_ALL
    int label; // the class that is explained; negative: the one with the highest score
    bool mask; // whether the lesion's mask is wanted
} explanation_desc;

// A map (height, width), not normalised; without values where it was not asked for.
typedef struct explanation_map {
    float *values;
    int height, width;
} explanation_map;

typedef struct explanation {
    float *input;                    // (H,W,3), as the network saw the image
    float logits[CLNET_MAX_CLASSES]; // 0 without classification
    int label;                       // the class that is explained, -1 without classification
    explanation_map stage[5];
    explanation_map map; // what to show. With all layers: each map resized to the input's
                         // size and divided by its maximum, then averaged
    unsigned char *mask; // (height, width) of the image, 255 or 0; NULL without one
} explanation;

// Runs a network made for CLNET_EXPLAIN, batch 1, on an image. `name` stands for it in messages. A
// network without classification gives no maps, one without segmentation no mask.
bool explanation_make(clnet_model *model, const char *name, const image *im,
                      const explanation_desc *desc, explanation *out, problem *p);

void explanation_free(explanation *e);

// The image with the map laid over it. Needs a map.
bool explanation_draw(const explanation *e, const image *im, picture *out, problem *p);

#endif
