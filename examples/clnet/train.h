// A training as `clnet train` runs it, for a command that trains several networks one after another.
#ifndef CLNET_PROGRAM_TRAIN_H
#define CLNET_PROGRAM_TRAIN_H

#include "error.h"
#include "progress.h"

// What such a command adds to the arguments.
typedef struct train_part {
    const char *cache;       // folder of the decoded images, which all trainings share
    const char *title;       // of the network, for the progress line
    progress *bar;           // of the whole job
    double first, per_image; // where this training begins on it, what an image counts
    bool finished;           // out: all epochs are done
} train_part;

// Runs `clnet train` with these arguments, the command's name not among them. Stopped by a signal, it
// has saved and succeeds, with `finished` false.
bool train_run(int argc, char **argv, train_part *part, problem *p);

#endif
