// The commands of the program. Each gets the arguments behind its name, and returns false with a
// problem on failure. With `help` it prints its usage instead and does nothing.
#ifndef CLNET_PROGRAM_COMMANDS_H
#define CLNET_PROGRAM_COMMANDS_H

#include "error.h"

#define COMMANDS(X)                                                                                \
    X(train, "trains a network on a data set in the ISIC 2017 layout")                             \
    X(evaluate, "measures a network on a split of a data set")                                     \
    X(paper, "trains and measures the networks of the paper: its tables and figures")              \
    X(predict, "scores and masks of images")                                                       \
    X(explain, "class activation maps of images")                                                  \
    X(score, "measures predictions that are already there, whoever made them")                     \
    X(convert, "weights between safetensors and PyTorch's .pth, and between precisions")           \
    X(run, "tensors in, tensors out: for comparing with other frameworks")                         \
    X(info, "layers, shapes, parameters, FLOPs and memory of a network")                           \
    X(devices, "lists what clnet can compute on")                                                  \
    X(synth, "draws a synthetic dermoscopy data set")

#define X(name, help) bool command_##name(int argc, char **argv, bool usage, problem *p);
COMMANDS(X)
#undef X

// Set by SIGINT and SIGTERM to the signal's number: long work finishes its step, saves and returns.
// A second signal ends the program at once. (signals.c)
#include <signal.h>
extern volatile sig_atomic_t command_signal;
void command_catch_signals(void);

#endif
