// What commands share about networks: the options that choose one, and opening one for a file of
// weights, which may or may not say what it belongs to.
#ifndef CLNET_PROGRAM_NETWORK_H
#define CLNET_PROGRAM_NETWORK_H

#include "options.h"

typedef struct network_options {
    const char *model;
    int classes, size[2], fusion;
    double width;
} network_options;

extern const char *const network_fusion_choices[];

#define NETWORK_OPTIONS(n)                                                                         \
    OPTION(TEXT, "--model", &(n)->model,                                                           \
           "resnet50, inception_v3, arlnet50; unet, resunet; or one of each with + "               \
           "between (default: resnet50+unet)"),                                                    \
        OPTION_RANGE(INT, "--classes", &(n)->classes, 1, CLNET_MAX_CLASSES,                        \
                     "classes (default: 3)"),                                                      \
        OPTION(WIDTH, "--width", &(n)->width, "share of all channels, as 1/8 (default: 1)"),       \
        OPTION(SIZE, "--size", &(n)->size, "input size, as 224 or 192x256 (default: 224)"),        \
        OPTION_OF(network_fusion_choices, "--fusion", &(n)->fusion,                                \
                  "output of a fusion module (default: shared)")

// The desc of the network that the options name, with a purpose and a batch.
clnet_model_desc network_desc(const network_options *n, clnet_purpose purpose, int batch);

// Opens a network with its weights. What the file says of its network counts; options given beside
// it have to agree. A file that says nothing needs --model. `batch` is the largest batch. NULL: see
// the problem.
clnet_model *network_open(clnet_context *ctx, const char *weights, const network_options *n,
                          const option *table, size_t options, clnet_purpose purpose, int batch,
                          bool keep_all, problem *p);

#endif
