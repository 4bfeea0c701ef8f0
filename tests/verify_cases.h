// The one table of cases of clnet-verify, and the inputs that they get. Everything here is double
// and in PyTorch's order; nothing uses the library but its list of operations. To add a case add a
// row; an operation of CLNET_OPS without a row is named by clnet-verify.
#ifndef CLNET_VERIFY_CASES_H
#define CLNET_VERIFY_CASES_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Inputs, parameters and buffers of a case. Those before VERIFY_MEAN have a gradient.
enum { VERIFY_INPUTS = 4, VERIFY_WEIGHT = 4, VERIFY_BIAS, VERIFY_MEAN, VERIFY_VAR, VERIFY_LEAVES };

typedef struct verify_case {
    clnet_op op;
    const char *name;                                          // what is awkward about it
    int x[4];                                                  // shape (N,C,H,W) of the first input
    int out;                                                   // channels of convolutions
    int kernel[2], stride[2], padding[2], dilation[2], groups; // 0 = the operation's default
    int size[2];     // upsample_bilinear; conv2d_joined: of the second input
    int axis;        // softmax
    int more[3];     // concat and conv2d_joined: channels of the other inputs
    double value;    // gamma, p, smooth, momentum, step from mean to mean of flip
    double eps;      // batch_norm
    double alpha[4]; // focal_loss; std of flip
    bool no_bias, exclude_pad, align_corners, evaluation, unlabelled;
    bool winograd; // large enough for that method
} verify_case;

#define S(n, c, h, w) .x = {n, c, h, w}
#define K(h, w)       .kernel = {h, w}

static const verify_case verify_cases[] = {
    {CLNET_OP_CONV2D, "3x3 padded", S(2, 3, 7, 5), .out = 4, K(3, 3), .padding = {1, 1}},
    {CLNET_OP_CONV2D, "3x3 unpadded", S(2, 5, 9, 11), .out = 7, K(3, 3), .no_bias = true},
    {CLNET_OP_CONV2D, "one pixel, one channel", S(1, 1, 1, 1), .out = 1, K(1, 1)},
    {CLNET_OP_CONV2D, "one pixel under 3x3", S(2, 3, 1, 1), .out = 4, K(3, 3), .padding = {1, 1}},
    {CLNET_OP_CONV2D, "one row", S(1, 2, 1, 13), .out = 3, K(1, 3), .padding = {0, 1}},
    {CLNET_OP_CONV2D, "one column", S(1, 2, 17, 1), .out = 3, K(3, 1), .stride = {2, 1}},
    {CLNET_OP_CONV2D, "1x1", S(3, 19, 5, 7), .out = 17, K(1, 1), .no_bias = true},
    {CLNET_OP_CONV2D, "1x1 to one channel", S(2, 33, 6, 5), .out = 1, K(1, 1)},
    {CLNET_OP_CONV2D, "1x1 strided", S(2, 8, 7, 9), .out = 6, K(1, 1), .stride = {2, 2},
     .no_bias = true},
    {CLNET_OP_CONV2D, "1x1 padded", S(1, 3, 4, 5), .out = 2, K(1, 1), .padding = {1, 2}},
    {CLNET_OP_CONV2D, "7x7 stem", S(1, 3, 17, 13), .out = 5, K(7, 7), .stride = {2, 2},
     .padding = {3, 3}, .no_bias = true},
    {CLNET_OP_CONV2D, "1x7", S(2, 4, 8, 9), .out = 3, K(1, 7), .padding = {0, 3}},
    {CLNET_OP_CONV2D, "7x1", S(2, 4, 8, 9), .out = 3, K(7, 1), .padding = {3, 0}, .no_bias = true},
    {CLNET_OP_CONV2D, "5x5 of primes", S(1, 7, 11, 13), .out = 5, K(5, 5), .padding = {2, 2}},
    {CLNET_OP_CONV2D, "uneven stride", S(2, 3, 10, 11), .out = 4, K(3, 2), .stride = {2, 1},
     .padding = {1, 0}},
    {CLNET_OP_CONV2D, "stride over kernel", S(1, 3, 11, 10), .out = 4, K(2, 2), .stride = {3, 3}},
    {CLNET_OP_CONV2D, "stride 2, padded", S(2, 6, 9, 8), .out = 5, K(3, 3), .stride = {2, 2},
     .padding = {1, 1}},
    {CLNET_OP_CONV2D, "padding over kernel", S(1, 2, 3, 4), .out = 3, K(2, 2), .padding = {3, 2}},
    {CLNET_OP_CONV2D, "dilated", S(1, 4, 11, 13), .out = 5, K(3, 3), .padding = {2, 3},
     .dilation = {2, 3}},
    {CLNET_OP_CONV2D, "dilated and strided", S(1, 3, 13, 12), .out = 2, K(3, 2), .stride = {2, 3},
     .padding = {1, 2}, .dilation = {3, 2}, .no_bias = true},
    {CLNET_OP_CONV2D, "groups", S(2, 6, 7, 8), .out = 9, K(3, 3), .stride = {1, 2},
     .padding = {1, 1}, .groups = 3},
    {CLNET_OP_CONV2D, "groups of many", S(1, 34, 5, 6), .out = 38, K(3, 3), .padding = {1, 1},
     .groups = 2},
    {CLNET_OP_CONV2D, "depthwise", S(2, 5, 6, 7), .out = 5, K(3, 3), .padding = {1, 1}, .groups = 5,
     .no_bias = true},
    {CLNET_OP_CONV2D, "depthwise times 2", S(2, 5, 6, 7), .out = 10, K(3, 3), .padding = {1, 1},
     .groups = 5},
    {CLNET_OP_CONV2D, "more channels than a block", S(1, 67, 6, 5), .out = 71, K(3, 3),
     .padding = {1, 1}},
    {CLNET_OP_CONV2D, "whole blocks", S(2, 64, 8, 8), .out = 64, K(3, 3), .padding = {1, 1},
     .no_bias = true},
    {CLNET_OP_CONV2D, "few channels, many out", S(1, 3, 8, 9), .out = 131, K(3, 3),
     .padding = {1, 1}},
    {CLNET_OP_CONV2D, "long sums", S(1, 512, 4, 3), .out = 9, K(3, 3), .padding = {1, 1}},
    {CLNET_OP_CONV2D, "many pixels", S(2, 3, 67, 61), .out = 5, K(3, 3), .padding = {1, 1}},
    {CLNET_OP_CONV2D, "one channel, two blocks of pixels", S(1, 1, 37, 31), .out = 1, K(1, 1)},
    {CLNET_OP_CONV2D, "primes", S(2, 37, 13, 11), .out = 41, K(3, 3), .padding = {1, 1},
     .winograd = true},
    {CLNET_OP_CONV2D, "many tiles, unpadded", S(1, 35, 31, 29), .out = 33, K(3, 3), .no_bias = true,
     .winograd = true},
    {CLNET_OP_CONV2D, "many channels, uneven padding", S(1, 150, 12, 14), .out = 32, K(3, 3),
     .padding = {0, 1}, .winograd = true},
    {CLNET_OP_CONV2D, "many out, padding 2", S(1, 32, 10, 15), .out = 131, K(3, 3),
     .padding = {2, 2}, .no_bias = true, .winograd = true},
    {CLNET_OP_CONV2D, "padding 3", S(1, 33, 10, 12), .out = 35, K(3, 3), .padding = {1, 3},
     .winograd = true},
    {CLNET_OP_CONV2D, "1x1 with many pixels", S(2, 16, 41, 43), .out = 24, K(1, 1)},

    {CLNET_OP_LINEAR, "plain", S(3, 31, 1, 1), .out = 7},
    {CLNET_OP_LINEAR, "without bias", S(5, 64, 1, 1), .out = 3, .no_bias = true},
    {CLNET_OP_LINEAR, "one by one", S(1, 1, 1, 1), .out = 1},
    {CLNET_OP_LINEAR, "one image", S(1, 130, 1, 1), .out = 37},
    {CLNET_OP_LINEAR, "long sums", S(2, 1984, 1, 1), .out = 3},
    {CLNET_OP_LINEAR, "many images", S(67, 17, 1, 1), .out = 19},

    {CLNET_OP_BATCH_NORM, "training", S(3, 5, 7, 4)},
    {CLNET_OP_BATCH_NORM, "two values", S(2, 3, 1, 1)},
    {CLNET_OP_BATCH_NORM, "one image", S(1, 17, 5, 3), .eps = 1e-3, .value = 0.01},
    {CLNET_OP_BATCH_NORM, "statistics alone", S(2, 4, 9, 5), .value = 1},
    {CLNET_OP_BATCH_NORM, "more channels than a block", S(2, 131, 3, 5), .value = 0.5},
    {CLNET_OP_BATCH_NORM, "many pixels", S(3, 3, 61, 67), .value = 1},
    {CLNET_OP_BATCH_NORM, "evaluation", S(2, 6, 5, 3), .evaluation = true, .eps = 1},
    {CLNET_OP_BATCH_NORM, "evaluation of one value", S(1, 19, 1, 1), .evaluation = true, .eps = 1},

    {CLNET_OP_RELU, "plain", S(2, 3, 5, 7)},
    {CLNET_OP_RELU, "one channel", S(1, 1, 5, 9)},
    {CLNET_OP_RELU, "more channels than a block", S(1, 35, 3, 2)},
    {CLNET_OP_SIGMOID, "plain", S(2, 3, 4, 5)},
    {CLNET_OP_SIGMOID, "more channels than a block", S(2, 37, 1, 1)},
    {CLNET_OP_SOFTMAX, "channels", S(2, 3, 5, 4), .axis = 1},
    {CLNET_OP_SOFTMAX, "height", S(2, 3, 5, 4), .axis = 2},
    {CLNET_OP_SOFTMAX, "width", S(2, 3, 5, 7), .axis = 3},
    {CLNET_OP_SOFTMAX, "classes", S(7, 3, 1, 1), .axis = 1},
    {CLNET_OP_SOFTMAX, "many channels", S(1, 41, 2, 3), .axis = 1},

    {CLNET_OP_MAX_POOL2D, "resnet's", S(2, 3, 11, 8), K(3, 3), .stride = {2, 2}, .padding = {1, 1}},
    {CLNET_OP_MAX_POOL2D, "unet's", S(1, 4, 9, 7), K(2, 2)},
    {CLNET_OP_MAX_POOL2D, "uneven", S(2, 2, 8, 9), K(2, 3), .stride = {1, 2}, .padding = {0, 1}},
    {CLNET_OP_MAX_POOL2D, "dilated", S(1, 3, 10, 9), K(2, 3), .stride = {2, 1}, .padding = {1, 1},
     .dilation = {3, 2}},
    {CLNET_OP_MAX_POOL2D, "stride over kernel", S(1, 19, 11, 7), K(2, 2), .stride = {3, 4}},
    {CLNET_OP_MAX_POOL2D, "one pixel", S(2, 3, 1, 1), K(1, 1)},
    {CLNET_OP_AVG_POOL2D, "padding counts", S(2, 3, 7, 6), K(3, 3), .stride = {1, 1},
     .padding = {1, 1}},
    {CLNET_OP_AVG_POOL2D, "padding excluded", S(2, 3, 7, 6), K(3, 3), .stride = {1, 1},
     .padding = {1, 1}, .exclude_pad = true},
    {CLNET_OP_AVG_POOL2D, "uneven", S(1, 4, 9, 8), K(2, 3), .stride = {2, 1}, .padding = {1, 1},
     .exclude_pad = true},
    {CLNET_OP_AVG_POOL2D, "2x2", S(2, 5, 8, 7), K(2, 2)},
    {CLNET_OP_AVG_POOL2D, "4x2 padded", S(1, 21, 8, 7), K(4, 2), .stride = {3, 1},
     .padding = {2, 1}},
    {CLNET_OP_AVG_POOL2D, "stride over kernel", S(1, 3, 9, 10), K(2, 2), .stride = {3, 5}},
    {CLNET_OP_GLOBAL_AVG_POOL, "plain", S(3, 5, 7, 4)},
    {CLNET_OP_GLOBAL_AVG_POOL, "one pixel", S(2, 3, 1, 1)},
    {CLNET_OP_GLOBAL_AVG_POOL, "64 pixels", S(2, 37, 8, 8)},
    {CLNET_OP_GLOBAL_AVG_POOL, "many pixels", S(1, 3, 113, 127)},

    {CLNET_OP_UPSAMPLE_BILINEAR, "2", S(2, 3, 4, 5), .size = {8, 10}},
    {CLNET_OP_UPSAMPLE_BILINEAR, "4 and 8", S(1, 19, 3, 2), .size = {12, 16}},
    {CLNET_OP_UPSAMPLE_BILINEAR, "1", S(2, 3, 4, 5), .size = {4, 5}},
    {CLNET_OP_UPSAMPLE_BILINEAR, "odd", S(1, 2, 5, 3), .size = {11, 8}},
    {CLNET_OP_UPSAMPLE_BILINEAR, "down", S(1, 2, 9, 11), .size = {4, 5}},
    {CLNET_OP_UPSAMPLE_BILINEAR, "from one", S(1, 3, 1, 2), .size = {3, 5}},
    {CLNET_OP_UPSAMPLE_BILINEAR, "to one", S(2, 2, 4, 5), .size = {1, 1}},
    {CLNET_OP_UPSAMPLE_BILINEAR, "up and down", S(1, 3, 7, 13), .size = {29, 5}},
    {CLNET_OP_UPSAMPLE_BILINEAR, "corners, 2", S(2, 3, 4, 5), .size = {8, 10},
     .align_corners = true},
    {CLNET_OP_UPSAMPLE_BILINEAR, "corners, odd", S(1, 2, 5, 3), .size = {11, 8},
     .align_corners = true},
    {CLNET_OP_UPSAMPLE_BILINEAR, "corners, down", S(1, 2, 9, 11), .size = {4, 5},
     .align_corners = true},
    {CLNET_OP_UPSAMPLE_BILINEAR, "corners, to one", S(1, 2, 4, 5), .size = {1, 3},
     .align_corners = true},

    {CLNET_OP_CONCAT, "two", S(2, 3, 4, 5), .more = {1}},
    {CLNET_OP_CONCAT, "four", S(1, 2, 3, 3), .more = {5, 3, 17}},
    {CLNET_OP_CONCAT, "one", S(2, 3, 2, 2)},
    {CLNET_OP_CONV2D_JOINED, "first is coarse", S(2, 3, 4, 5), .more = {5}, .size = {8, 10},
     .out = 7, .no_bias = true},
    {CLNET_OP_CONV2D_JOINED, "second is coarse", S(1, 19, 12, 16), .more = {33}, .size = {3, 2},
     .out = 17},
    {CLNET_OP_CONV2D_JOINED, "odd sizes", S(2, 6, 5, 3), .more = {4}, .size = {11, 8}, .out = 5},
    {CLNET_OP_CONV2D_JOINED, "higher and narrower", S(1, 3, 7, 13), .more = {2}, .size = {29, 5},
     .out = 4, .no_bias = true},
    {CLNET_OP_CONV2D_JOINED, "from one pixel", S(2, 3, 1, 1), .more = {2}, .size = {3, 5},
     .out = 1},
    {CLNET_OP_CONV2D_JOINED, "many channels", S(1, 131, 5, 6), .more = {67}, .size = {10, 12},
     .out = 67},
    {CLNET_OP_ADD, "plain", S(2, 3, 4, 5)},
    {CLNET_OP_ADD, "more channels than a block", S(1, 35, 3, 2)},
    {CLNET_OP_SCALE_CHANNELS, "plain", S(2, 5, 3, 7)},
    {CLNET_OP_SCALE_CHANNELS, "one channel", S(3, 1, 4, 4)},
    {CLNET_OP_SCALE_CHANNELS, "more channels than a block", S(2, 35, 2, 3)},
    {CLNET_OP_ATTENTION_RESIDUAL, "plain", S(2, 3, 5, 7)},
    {CLNET_OP_ATTENTION_RESIDUAL, "one pixel", S(3, 5, 1, 1)},
    {CLNET_OP_ATTENTION_RESIDUAL, "one channel", S(2, 1, 4, 3)},
    {CLNET_OP_ATTENTION_RESIDUAL, "more channels than a block", S(2, 35, 3, 2)},
    {CLNET_OP_ATTENTION_RESIDUAL, "many pixels", S(1, 3, 61, 67)},
    {CLNET_OP_DROPOUT, "a half", S(3, 7, 5, 6), .value = 0.5},
    {CLNET_OP_DROPOUT, "a tenth", S(2, 33, 5, 3), .value = 0.1},
    {CLNET_OP_DROPOUT, "none", S(2, 3, 4, 5), .value = 0},
    {CLNET_OP_DROPOUT, "evaluation", S(2, 3, 4, 5), .value = 0.5, .evaluation = true},

    {CLNET_OP_FLIP, "image", S(5, 3, 4, 7), .value = 0.5, .alpha = {0.5, 0.25, 2}},
    {CLNET_OP_FLIP, "mask", S(6, 1, 5, 6)},
    {CLNET_OP_FLIP, "many channels", S(3, 19, 3, 4)},
    {CLNET_OP_FLIP, "one pixel", S(4, 2, 1, 1), .value = 0.25},
    {CLNET_OP_FLIP, "thirds", S(4, 4, 3, 5), .value = 0.75, .alpha = {3, 5, 7, 11}},
    {CLNET_OP_FLIP, "no flips", S(2, 3, 4, 5), .value = 0.5, .unlabelled = true},
    {CLNET_OP_FLIP, "evaluation", S(3, 3, 4, 5), .alpha = {2, 2, 2}, .evaluation = true},

    {CLNET_OP_FOCAL_LOSS, "gamma 2", S(5, 3, 1, 1), .value = 2},
    {CLNET_OP_FOCAL_LOSS, "gamma 0", S(4, 7, 1, 1), .value = 0},
    {CLNET_OP_FOCAL_LOSS, "gamma 1/2", S(4, 2, 1, 1), .value = 0.5},
    {CLNET_OP_FOCAL_LOSS, "alpha", S(6, 3, 1, 1), .value = 2, .alpha = {0.25, 1, 3}},
    {CLNET_OP_FOCAL_LOSS, "labels missing", S(7, 3, 1, 1), .value = 2, .unlabelled = true},
    {CLNET_OP_MASK_FOCAL_LOSS, "gamma 2", S(2, 1, 5, 7), .value = 2},
    {CLNET_OP_MASK_FOCAL_LOSS, "gamma 0", S(1, 1, 4, 9), .value = 0},
    {CLNET_OP_MASK_FOCAL_LOSS, "gamma 1.5", S(2, 1, 3, 5), .value = 1.5},
    {CLNET_OP_MASK_FOCAL_LOSS, "masks missing", S(4, 1, 5, 3), .value = 2, .unlabelled = true},
    {CLNET_OP_DICE_LOSS, "smooth 1", S(3, 1, 5, 7), .value = 1},
    {CLNET_OP_DICE_LOSS, "smooth 0", S(2, 1, 4, 5), .value = 0},
    {CLNET_OP_DICE_LOSS, "masks missing", S(4, 1, 3, 7), .value = 1, .unlabelled = true},
    {CLNET_OP_DICE_LOSS, "many pixels", S(1, 1, 61, 67), .value = 1},
    {CLNET_OP_WEIGHTED_SUM, "three losses", S(2, 1, 5, 4), .value = 2},
};
#undef S
#undef K
enum { VERIFY_CASES = sizeof verify_cases / sizeof *verify_cases };

// The weights of the weighted sum: of Dice, mask focal, and Dice again with another smooth term.
static const double verify_sum_weights[3] = {1.5, -0.75, 2};

typedef enum verify_family {
    VERIFY_INTEGERS, // small ones: results are exact where the operation allows it
    VERIFY_NORMAL,   // mean 0, variance 1
    VERIFY_HEAVY,    // mean 100 and heavy tails; logits: up to some 100 in size
    VERIFY_FAMILIES
} verify_family;

static const char *const verify_family_names[] = {"integers", "normal", "heavy"};

// The inputs of one case. The memory of everything is in `memory`.
typedef struct verify_problem {
    const verify_case *c;
    size_t count[VERIFY_LEAVES]; // 0: the case has no such leaf
    double *leaf[VERIFY_LEAVES];
    size_t targets; // labels, flips, masks or (dropout) which values are kept
    double *target;
    int y_shape[4];
    size_t y_count;
    double *dy;
} verify_problem;

// Numbers by counter, with nothing of the library in them: splitmix64.
static double verify_uniform(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static double verify_normal(uint64_t *state) {
    const double radius = sqrt(-2 * log(1 - verify_uniform(state)));
    return radius * cos(6.283185307179586 * verify_uniform(state));
}

static int verify_whole(uint64_t *state, int from, int to) {
    return from + (int)(verify_uniform(state) * (to - from + 1));
}

static double *verify_new(size_t count) {
    double *p = calloc(count ? count : 1, sizeof *p);
    if (!p) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
    return p;
}

static int verify_or(int value, int fallback) { return value ? value : fallback; }

// Values per image of the first input, and in all.
static size_t verify_pixels(const verify_case *c) { return (size_t)c->x[2] * (size_t)c->x[3]; }
static size_t verify_count(const verify_case *c) {
    return (size_t)c->x[0] * (size_t)c->x[1] * verify_pixels(c);
}

// Windows along one axis, by counting the positions at which one fits.
static int verify_windows(int size, int kernel, int stride, int padding, int dilation) {
    int count = 0;
    for (int at = -padding; at + dilation * (kernel - 1) < size + padding; at += stride) {
        count++;
    }
    return count;
}

static bool verify_is_loss(const verify_case *c) {
    return c->op == CLNET_OP_FOCAL_LOSS || c->op == CLNET_OP_MASK_FOCAL_LOSS ||
           c->op == CLNET_OP_DICE_LOSS || c->op == CLNET_OP_WEIGHTED_SUM;
}

static bool verify_is_window(const verify_case *c) {
    return c->op == CLNET_OP_CONV2D || c->op == CLNET_OP_MAX_POOL2D || c->op == CLNET_OP_AVG_POOL2D;
}

// Stride along an axis: that of pooling is the kernel by default.
static int verify_stride(const verify_case *c, int axis) {
    return verify_or(c->stride[axis], c->op == CLNET_OP_CONV2D ? 1 : c->kernel[axis]);
}

static void verify_output_shape(const verify_case *c, int y[4]) {
    memcpy(y, c->x, 4 * sizeof *y);
    for (int i = 0; i < 2 && verify_is_window(c); i++) {
        y[2 + i] = verify_windows(c->x[2 + i], c->kernel[i], verify_stride(c, i), c->padding[i],
                                  verify_or(c->dilation[i], 1));
    }
    if (c->op == CLNET_OP_CONV2D || c->op == CLNET_OP_LINEAR) {
        y[1] = c->out;
    } else if (c->op == CLNET_OP_GLOBAL_AVG_POOL) {
        y[2] = y[3] = 1;
    } else if (c->op == CLNET_OP_UPSAMPLE_BILINEAR) {
        y[2] = c->size[0], y[3] = c->size[1];
    } else if (c->op == CLNET_OP_CONCAT) {
        y[1] += c->more[0] + c->more[1] + c->more[2];
    } else if (c->op == CLNET_OP_CONV2D_JOINED) {
        const bool first = y[2] * y[3] >= c->size[0] * c->size[1];
        y[1] = c->out, y[2] = first ? y[2] : c->size[0], y[3] = first ? y[3] : c->size[1];
    } else if (verify_is_loss(c)) {
        y[0] = y[1] = y[2] = y[3] = 1;
    }
}

// The sizes of everything, all values 0.
static verify_problem verify_problem_new(const verify_case *c) {
    verify_problem p = {.c = c};
    p.count[0] = verify_count(c);
    const size_t images = (size_t)c->x[0], channels = (size_t)c->x[1];
    if (c->op == CLNET_OP_ADD || c->op == CLNET_OP_ATTENTION_RESIDUAL) {
        p.count[1] = p.count[0];
        p.count[VERIFY_WEIGHT] = c->op == CLNET_OP_ATTENTION_RESIDUAL; // alpha
    } else if (c->op == CLNET_OP_SCALE_CHANNELS) {
        p.count[1] = images * channels;
    } else if (c->op == CLNET_OP_CONCAT) {
        for (int i = 0; i < 3; i++) {
            p.count[1 + i] = images * (size_t)c->more[i] * verify_pixels(c);
        }
    } else if (c->op == CLNET_OP_CONV2D_JOINED) {
        p.count[1] = images * (size_t)c->more[0] * (size_t)c->size[0] * (size_t)c->size[1];
        p.count[VERIFY_WEIGHT] = (size_t)c->out * (channels + (size_t)c->more[0]);
        p.count[VERIFY_BIAS] = c->no_bias ? 0 : (size_t)c->out;
    } else if (c->op == CLNET_OP_CONV2D || c->op == CLNET_OP_LINEAR) {
        const size_t taps =
            c->op == CLNET_OP_LINEAR ? 1 : (size_t)c->kernel[0] * (size_t)c->kernel[1];
        p.count[VERIFY_WEIGHT] = (size_t)c->out * channels / (size_t)verify_or(c->groups, 1) * taps;
        p.count[VERIFY_BIAS] = c->no_bias ? 0 : (size_t)c->out;
    } else if (c->op == CLNET_OP_BATCH_NORM) {
        for (int i = VERIFY_WEIGHT; i < VERIFY_LEAVES; i++) {
            p.count[i] = channels;
        }
    } else if (c->op == CLNET_OP_FOCAL_LOSS || c->op == CLNET_OP_FLIP) {
        p.targets = images;
    } else if (verify_is_loss(c) || c->op == CLNET_OP_DROPOUT) {
        p.targets = p.count[0];
    }
    for (int i = 0; i < VERIFY_LEAVES; i++) {
        p.leaf[i] = p.count[i] ? verify_new(p.count[i]) : NULL;
    }
    verify_output_shape(c, p.y_shape);
    p.y_count =
        (size_t)p.y_shape[0] * (size_t)p.y_shape[1] * (size_t)p.y_shape[2] * (size_t)p.y_shape[3];
    p.target = verify_new(p.targets);
    p.dy = verify_new(p.y_count);
    return p;
}

static void verify_problem_free(verify_problem *p) {
    for (int i = 0; i < VERIFY_LEAVES; i++) {
        free(p->leaf[i]);
    }
    free(p->target);
    free(p->dy);
}

// One number of a family. Rounded to float, so that all precisions start from the same one.
static double verify_number(const verify_case *c, verify_family family, uint64_t *state) {
    const bool logits = verify_is_loss(c) || c->op == CLNET_OP_SIGMOID || c->op == CLNET_OP_SOFTMAX;
    double v = verify_normal(state);
    if (family == VERIFY_INTEGERS) {
        v = c->op == CLNET_OP_RELU ? verify_whole(state, -2, 5) : verify_whole(state, -3, 3);
    } else if (family == VERIFY_HEAVY && logits) {
        v *= verify_uniform(state) < 0.2 ? 100 : 10;
    } else if (family == VERIFY_HEAVY) {
        v = 100 + v * (verify_uniform(state) < 0.1 ? 60 : 2);
    }
    return (double)(float)v;
}

static void verify_fill_leaf(verify_problem *p, int leaf, verify_family family, uint64_t *state) {
    const verify_case *c = p->c;
    for (size_t i = 0; i < p->count[leaf]; i++) {
        double v = verify_number(c, leaf < VERIFY_INPUTS ? family : VERIFY_NORMAL, state);
        const size_t channel = i / verify_pixels(c) % (size_t)c->x[1];
        if (c->op == CLNET_OP_BATCH_NORM && leaf == 0 && family == VERIFY_HEAVY && channel < 2) {
            v = channel == 0 ? (double)(float)(1000 + verify_normal(state))
                             : 100; // far away; constant
        }
        if (family == VERIFY_INTEGERS) {
            v = verify_number(c, family, state);
        }
        if (c->op == CLNET_OP_BATCH_NORM && leaf == VERIFY_WEIGHT && family == VERIFY_INTEGERS) {
            v = ldexp(verify_uniform(state) < 0.5 ? -1 : 1, verify_whole(state, -2, 2));
        } else if (leaf == VERIFY_VAR) {
            // With eps = 1 the square root of the integers' sum is a power of two.
            static const double squares[3] = {0, 3, 15};
            v = family == VERIFY_INTEGERS ? squares[verify_whole(state, 0, 2)]
                                          : (double)(float)(0.5 + verify_uniform(state));
        }
        p->leaf[leaf][i] = v;
    }
}

// Labels; masks with one or both kinds of pixels; which images have none (a negative first value).
static void verify_fill_targets(verify_problem *p, uint64_t *state) {
    const verify_case *c = p->c;
    for (size_t i = 0; i < p->targets; i++) {
        if (c->op == CLNET_OP_FLIP) {
            p->target[i] = (double)(i % 5) - 1; // every code, and what is none
        } else if (c->op == CLNET_OP_FOCAL_LOSS) {
            const bool none = c->unlabelled && (i == 0 || i % 3 == 2);
            p->target[i] = none ? -1 : verify_whole(state, 0, c->x[1] - 1);
        } else {
            const size_t image = i / verify_pixels(c);
            const bool none = c->unlabelled && (image == 0 || image % 3 == 2);
            p->target[i] = none ? -1 : verify_uniform(state) < 0.4;
        }
    }
}

static void verify_fill(verify_problem *p, verify_family family, uint64_t seed) {
    uint64_t state = seed * 1000003u + (uint64_t)(p->c - verify_cases) * 8u + (uint64_t)family;
    for (int i = 0; i < VERIFY_LEAVES; i++) {
        verify_fill_leaf(p, i, family, &state);
    }
    if (p->c->op != CLNET_OP_DROPOUT) {
        verify_fill_targets(p, &state);
    }
    for (size_t i = 0; i < p->y_count; i++) {
        p->dy[i] = family == VERIFY_INTEGERS ? verify_whole(&state, 0, 5) - 2.0
                                             : (double)(float)verify_normal(&state);
        p->dy[i] = p->dy[i] == 0 ? 1 : p->dy[i];
    }
}

static bool verify_power_of_two(int n) { return (n & (n - 1)) == 0; }

// Ratios at which the coordinates and weights of bilinear interpolation are exact.
static bool verify_dyadic(const verify_case *c) {
    const bool down = c->op == CLNET_OP_CONV2D_JOINED && c->size[0] < c->x[2];
    bool yes = !c->align_corners;
    for (int i = 0; i < 2; i++) {
        const int from = down ? c->size[i] : c->x[2 + i], to = down ? c->x[2 + i] : c->size[i];
        yes = yes && to % from == 0 && verify_power_of_two(to / from);
    }
    return yes;
}

// Are the results on integers the same for every order of summation?
static inline bool verify_exact(const verify_case *c) {
    switch (c->op) {
    case CLNET_OP_BATCH_NORM:
        return c->evaluation;
    case CLNET_OP_AVG_POOL2D:
        return verify_power_of_two(c->kernel[0] * c->kernel[1]) && !c->exclude_pad;
    case CLNET_OP_GLOBAL_AVG_POOL:
        return verify_power_of_two(c->x[2] * c->x[3]);
    case CLNET_OP_UPSAMPLE_BILINEAR:
    case CLNET_OP_CONV2D_JOINED:
        return verify_dyadic(c);
    case CLNET_OP_DROPOUT:
        return c->evaluation || c->value == 0 || c->value == 0.5;
    case CLNET_OP_FLIP:
        return c->alpha[0] != 3;
    case CLNET_OP_SIGMOID:
    case CLNET_OP_SOFTMAX:
    case CLNET_OP_ATTENTION_RESIDUAL:
        return false;
    default:
        return !verify_is_loss(c);
    }
}

// "conv2d", with what sets the limits of a case apart.
static const char *verify_row_name(const verify_case *c) {
    static const char *const names[] = {
#define X(ENUM, name, forward, backward, reads) #name,
        CLNET_OPS(X)
#undef X
    };
    if (c->op == CLNET_OP_BATCH_NORM && c->evaluation) {
        return "batch_norm, evaluation";
    }
    if (c->op == CLNET_OP_UPSAMPLE_BILINEAR && verify_dyadic(c)) {
        return "upsample_bilinear, 2^k";
    }
    return names[c->op];
}

#endif
