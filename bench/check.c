// Is what an operation computes right? Convolutions and products: some hundred numbers of the
// result, at the very size that is measured, each by a plain loop in double. The others: the whole
// result, against the library's plain loops.
#include "ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// Rounding to float: 2^-24. Below 2^-126 a device may round to 0.
static const double unit = 0x1p-24, smallest = 0x1p-126;

// ---- convolutions -------------------------------------------------------------------------------

// A convolution's sizes and its tensors in memory's order: (N,H,W,C), (KH,KW,C/groups,OC).
typedef struct conv {
    int N, C, H, W, OC, OH, OW, KH, KW, stride[2], padding[2], dilation[2], groups;
    float *x, *w, *dy; // those that the pass reads
    float *result;
} conv;

static int or_one(int value) { return value ? value : 1; }

static conv conv_of(const bench_op *o) {
    const clnet_conv2d_desc *d = &o->conv2d;
    const bool linear = o->op == CLNET_OP_LINEAR;
    conv c = {.N = o->in[0][0],
              .C = o->in[0][1],
              .H = o->in[0][2],
              .W = o->in[0][3],
              .OC = o->out[1],
              .OH = linear ? 1 : o->out[2],
              .OW = linear ? 1 : o->out[3],
              .KH = or_one(d->kernel_size[0]),
              .KW = or_one(d->kernel_size[1]),
              .groups = or_one(d->groups)};
    for (int i = 0; i < 2; i++) {
        c.stride[i] = or_one(d->stride[i]);
        c.padding[i] = d->padding[i];
        c.dilation[i] = or_one(d->dilation[i]);
    }
    return c;
}

static size_t place(int a, int b, int B, int c, int C, int d, int D) {
    return (((size_t)a * (size_t)B + (size_t)b) * (size_t)C + (size_t)c) * (size_t)D + (size_t)d;
}

// Values at a place, 0 beyond the edges.
static double x_at(const conv *c, int n, int h, int w, int channel) {
    return h >= 0 && h < c->H && w >= 0 && w < c->W
               ? (double)c->x[place(n, h, c->H, w, c->W, channel, c->C)]
               : 0;
}
static double w_at(const conv *c, int kh, int kw, int channel, int oc) {
    return (double)c->w[place(kh, kw, c->KW, channel, c->C / c->groups, oc, c->OC)];
}
static double dy_at(const conv *c, int n, int h, int w, int oc) {
    return h >= 0 && h < c->OH && w >= 0 && w < c->OW
               ? (double)c->dy[place(n, h, c->OH, w, c->OW, oc, c->OC)]
               : 0;
}

typedef struct sum {
    double value, magnitude, terms;
} sum;

static void add(sum *s, double term) {
    s->value += term;
    s->magnitude += fabs(term);
    s->terms++;
}

// y[n,oh,ow,oc]
static sum forward_at(const conv *c, const int at[4]) {
    sum s = {0, 0, 0};
    const int in = c->C / c->groups, first = at[3] / (c->OC / c->groups) * in;
    for (int kh = 0; kh < c->KH; kh++) {
        for (int kw = 0; kw < c->KW; kw++) {
            for (int i = 0; i < in; i++) {
                add(&s,
                    x_at(c, at[0], at[1] * c->stride[0] - c->padding[0] + kh * c->dilation[0],
                         at[2] * c->stride[1] - c->padding[1] + kw * c->dilation[1], first + i) *
                        w_at(c, kh, kw, i, at[3]));
            }
        }
    }
    return s;
}

// The output row or column to which an input's contributes through tap k; -1: none.
static int output_of(const conv *c, int axis, int in, int k) {
    const int from = in + c->padding[axis] - k * c->dilation[axis];
    return from >= 0 && from % c->stride[axis] == 0 ? from / c->stride[axis] : -1;
}

// dx[n,h,w,c]
static sum data_at(const conv *c, const int at[4]) {
    sum s = {0, 0, 0};
    const int in = c->C / c->groups, out = c->OC / c->groups, first = at[3] / in * out;
    for (int kh = 0; kh < c->KH; kh++) {
        for (int kw = 0; kw < c->KW; kw++) {
            for (int o = first; o < first + out; o++) {
                add(&s, dy_at(c, at[0], output_of(c, 0, at[1], kh), output_of(c, 1, at[2], kw), o) *
                            w_at(c, kh, kw, at[3] % in, o));
            }
        }
    }
    return s;
}

// dw[kh,kw,c,oc]
static sum weight_at(const conv *c, const int at[4]) {
    sum s = {0, 0, 0};
    const int channel = at[3] / (c->OC / c->groups) * (c->C / c->groups) + at[2];
    for (int n = 0; n < c->N; n++) {
        for (int oh = 0; oh < c->OH; oh++) {
            for (int ow = 0; ow < c->OW; ow++) {
                add(&s, x_at(c, n, oh * c->stride[0] - c->padding[0] + at[0] * c->dilation[0],
                             ow * c->stride[1] - c->padding[1] + at[1] * c->dilation[1], channel) *
                            dy_at(c, n, oh, ow, at[3]));
            }
        }
    }
    return s;
}

// Sample number i: first the corners of the result, then places at random.
static void sample(int at[4], const int shape[4], int i) {
    uint32_t bits[4];
    clnet_random_bits(2, 0, (uint64_t)i, bits);
    for (int axis = 0; axis < 4; axis++) {
        at[axis] = i >= 16           ? (int)(bits[axis] % (uint32_t)shape[axis])
                   : (i >> axis & 1) ? shape[axis] - 1
                                     : 0;
    }
}

// The worst error of some hundred numbers, in units of rounding of the sum of absolute terms.
static double check_samples(const conv *c, bench_pass pass) {
    enum { SAMPLES = 256 };
    const int shapes[3][4] = {{c->N, c->OH, c->OW, c->OC},
                              {c->N, c->H, c->W, c->C},
                              {c->KH, c->KW, c->C / c->groups, c->OC}};
    sum (*const sums[3])(const conv *, const int[4]) = {forward_at, data_at, weight_at};
    const int *shape = shapes[pass];
    double worst = 0;
    for (int i = 0; i < SAMPLES; i++) {
        int at[4];
        sample(at, shape, i);
        const sum right = sums[pass](c, at);
        const double found =
            (double)c->result[place(at[0], at[1], shape[1], at[2], shape[2], at[3], shape[3])];
        const double error =
            fabs(found - right.value) / (unit * right.magnitude + right.terms * smallest);
        if (!(error <= worst)) { // NaN stays
            worst = error;
        }
    }
    return worst;
}

// The values or the gradient of a tensor; NULL: no memory, or the context failed.
static float *fetch(clnet_tensor *t, bool gradient) {
    float *values = t ? malloc(clnet_tensor_count(t) * sizeof *values) : NULL;
    if (values && (gradient ? clnet_tensor_get_grad
                            : clnet_tensor_get)(t, values, CLNET_ORDER_MEMORY) != CLNET_OK) {
        free(values);
        return NULL;
    }
    return values;
}

static clnet_tensor *result_of(const bench_op_run *r) {
    return r->pass == BENCH_FORWARD         ? r->out
           : r->pass == BENCH_BACKWARD_DATA ? r->in[0]
                                            : clnet_graph_find_weight(r->graph, "op.weight");
}

static double check_conv(bench_op_run *r) {
    conv c = conv_of(r->op);
    c.x = fetch(r->in[0], false);
    c.w = fetch(clnet_graph_find_weight(r->graph, "op.weight"), false);
    c.dy = r->upstream;
    c.result = fetch(result_of(r), r->pass != BENCH_FORWARD);
    const double error = c.x && c.w && c.result ? check_samples(&c, r->pass) : NAN;
    free(c.x);
    free(c.w);
    free(c.result);
    return error;
}

// ---- the others ---------------------------------------------------------------------------------

// The largest difference, in units of rounding of the largest number.
static double compare(const float *found, const float *right, size_t count) {
    double worst = 0, largest = 0;
    for (size_t i = 0; i < count; i++) {
        const double error = fabs((double)found[i] - (double)right[i]);
        largest = fmax(largest, fabs((double)right[i]));
        if (!(error <= worst)) {
            worst = error;
        }
    }
    return worst / (unit * largest + smallest);
}

static double compare_tensors(clnet_tensor *found, clnet_tensor *right, bool gradient) {
    float *a = fetch(found, gradient), *b = fetch(right, gradient);
    const double error = a && b ? compare(a, b, clnet_tensor_count(right)) : NAN;
    free(a);
    free(b);
    return error;
}

static double worse(double a, double b) { return a >= b ? a : b; } // NaN in b stays

// The same pass by plain loops, and every result of it.
static double check_other(bench_op_run *r) {
    clnet_context *ctx = clnet_context_create(&(clnet_context_desc){.reference = true});
    bench_op_run right;
    double error = NAN;
    if (bench_op_open(&right, ctx, r->op, r->pass) && bench_op_prepare(&right) &&
        bench_op_pass(&right)) {
        if (r->pass == BENCH_FORWARD) {
            error = compare_tensors(r->out, right.out, false);
        } else {
            error = 0;
            for (int i = 0; i < r->op->inputs; i++) {
                if (r->in[i]->require_grad) {
                    error = worse(error, compare_tensors(r->in[i], right.in[i], true));
                }
            }
        }
    }
    bench_op_close(&right);
    clnet_context_destroy(ctx);
    return error;
}

// Limits: a sum of terms may be off by 8 roundings of the sum of their absolute values, by
// Winograd's transforms, which the CPU alone has, 16 times as much; what is no such sum by 64
// roundings of the largest number, as the gradient of batch norm. A device, which may round each part
// of an expression, twice as much.
void bench_op_check(bench_op_run *r, double *error, double *limit) {
    const bench_op *o = r->op;
    const bool sums = o->op == CLNET_OP_CONV2D || o->op == CLNET_OP_LINEAR;
    const bool cpu = !strcmp(clnet_context_device(clnet_graph_context(r->graph)), "cpu");
    const bool winograd = cpu && o->op == CLNET_OP_CONV2D && o->conv2d.kernel_size[0] == 3 &&
                          o->conv2d.kernel_size[1] == 3 && or_one(o->conv2d.stride[0]) == 1;
    *limit = (sums ? winograd ? 128 : 8 : 64) * (cpu ? 1 : 2);
    *error = bench_op_prepare(r) && bench_op_pass(r) ? sums ? check_conv(r) : check_other(r) : NAN;
}
