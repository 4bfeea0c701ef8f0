// The paper's figures of one network or several, as PNG files, from what measuring and training left
// in their folders: no network is run.
#ifndef CLNET_PROGRAM_FIGURES_H
#define CLNET_PROGRAM_FIGURES_H

#include "clnet.h"
#include "dataset.h"
#include "error.h"

typedef struct figures_network {
    const char *model;
    const char *folder;   // with predictions.csv, masks/ and cams/, as far as the network has them
    const char *training; // folder with its log.csv; NULL: none
} figures_network;

typedef struct figures {
    clnet_context *ctx;
    const dataset *data; // the split that was measured
    const figures_network *networks;
    size_t count; // at most 16
} figures;

// Each writes path_png if there is something to draw, and tells in *drawn whether it did.

// Fig. 3: images, the class activation maps of each network. Of several networks it shows the four
// of the paper in its order; where none of them is there, all.
bool figures_maps(const figures *f, const char *path_png, bool *drawn, problem *p);

// Fig. 4: images, truth, the masks of each network; the choice of networks as for Fig. 3.
bool figures_masks(const figures *f, const char *path_png, bool *drawn, problem *p);

// ROC curves of melanoma and of seborrheic keratosis, each against the rest.
bool figures_roc(const figures *f, const char *path_png, bool *drawn, problem *p);

// The course of the training. Of several networks: loss, Jaccard index and mean AUC over the epochs,
// a line for each network. Of one: all that its log has.
bool figures_curves(const figures *f, const char *path_png, bool *drawn, problem *p);

#endif
