// clnet-bench ops: single operations with the shapes of a network.
#ifndef CLNET_BENCH_OPS_H
#define CLNET_BENCH_OPS_H

#include "bench.h"

// One operation with its shapes.
typedef struct bench_op {
    char name[192];
    clnet_op op;
    int inputs, in[CLNET_MAX_INPUTS][4]; // shapes (N,C,H,W) of its inputs, without weights
    int out[4];
    double macs;  // multiply-adds; 0: not counted
    bool product; // a bare matrix product: forward only
    clnet_conv2d_desc conv2d;
    clnet_batch_norm_desc batch_norm;
    clnet_pool2d_desc pool2d;
    clnet_focal_loss_desc focal_loss;
    double value; // p, gamma, smooth
    bool align_corners;
} bench_op;

typedef enum bench_pass { BENCH_FORWARD, BENCH_BACKWARD_DATA, BENCH_BACKWARD_WEIGHT } bench_pass;

// The distinct operations of a network, and the matrix products that its convolutions are. The
// caller frees *ops.
bool bench_ops_list(const clnet_model_desc *d, bench_op **ops, int *count, problem *p);

// A graph of one operation that runs one pass.
typedef struct bench_op_run {
    const bench_op *op;
    bench_pass pass;
    clnet_graph *graph;
    clnet_tensor *in[CLNET_MAX_INPUTS], *out;
    clnet_memory_plan plan;
    float *upstream; // gradient of the output
} bench_op_run;

// Builds it on a context, with inputs that depend on the operation alone. False: the context says
// why.
bool bench_op_open(bench_op_run *r, clnet_context *ctx, const bench_op *op, bench_pass pass);
void bench_op_close(bench_op_run *r);

// Everything that has to happen before the pass, then the pass itself: 0 where that is nothing.
bool bench_op_prepare(bench_op_run *r);
bool bench_op_pass(bench_op_run *r);

// The error of what the pass computes, and its limit (see check.c). NaN: could not be found out.
void bench_op_check(bench_op_run *r, double *error, double *limit);

// Draws the rows into a picture: GFLOP/s over operations per byte, below the roof of each device.
bool bench_roofline(const char *path, const bench_row *rows, size_t count, problem *p);

#endif
