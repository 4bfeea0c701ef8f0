// The training loop: epochs of shuffled, flipped batches, Adam with the polynomial learning rate,
// validation, checkpoints. Everything random is drawn from (seed, epoch, image), so that a training
// can stop after any step and go on as if it had not.
#ifndef CLNET_PROGRAM_TRAINER_H
#define CLNET_PROGRAM_TRAINER_H

#include "cache.h"
#include "clnet.h"
#include "dataset.h"
#include "error.h"
#include "progress.h"

typedef struct trainer_settings {
    int epochs, batch, accumulate; // batches whose gradients are averaged into one step
    double lr;
    uint64_t seed;
    long long stop_after; // steps of this call; 0: no limit
} trainer_settings;

// Sums over the images of an epoch so far, for its row in log.csv.
typedef struct trainer_sums {
    double loss, classification, focal, dice, images;
} trainer_sums;

// Where a training stands; part of a checkpoint.
typedef struct trainer_state {
    int epoch;       // epochs that are complete
    size_t position; // images of the running epoch that are done
    trainer_sums sums;
    double best; // figure of merit of best.safetensors; negative: none yet
} trainer_state;

typedef struct trainer {
    trainer_settings settings;
    trainer_state state;
    clnet_model *model;                   // for CLNET_TRAIN, with raw_image
    const dataset *training, *validation; // validation may be NULL
    const cache *training_images, *validation_images;
    const char *out; // folder
    progress *bar;   // may be that of a longer job: this training begins at bar_first, and each
    double bar_first, bar_per_image; // image counts bar_per_image
    const char *title;               // stands before the epoch in the progress line; NULL: nothing
    // Saves last.safetensors for the state as it is.
    bool (*save)(struct trainer *t, problem *p);
    void *user;
} trainer;

// Trains until all epochs are done, a signal came or stop_after steps were made; saves in each case.
// *finished tells whether all epochs are done.
bool trainer_run(trainer *t, bool *finished, problem *p);

// Steps of all epochs.
uint64_t trainer_total_steps(const trainer *t);

// Cuts log.csv back to the epochs that are complete, or begins it.
bool trainer_begin_log(const trainer *t, problem *p);

#endif
