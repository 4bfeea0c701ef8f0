// The plain loops on tensors that are some channels of wider ones: the same bits as on dense ones, and
// no other channel touched.
#ifndef CLNET_VERIFY_VIEWS_H
#define CLNET_VERIFY_VIEWS_H

#include "verify_operations.h"

enum { VIEW_N = 2, VIEW_H = 5, VIEW_W = 4, VIEW_MARGIN = 3, VIEW_FLOATS = 1 << 12 };
#define VIEW_GUARD 1e30f

// A tensor twice: dense, and as channels MARGIN.. of one that is 2 MARGIN channels wider.
typedef struct view_pair {
    float dense[VIEW_FLOATS], wide[VIEW_FLOATS];
    int channels;
    size_t pixels;
} view_pair;

static size_t view_stride(const view_pair *v) { return (size_t)v->channels + 2 * VIEW_MARGIN; }

static void view_fill(view_pair *v, int channels, int h, int w, uint64_t *state) {
    v->channels = channels;
    v->pixels = (size_t)(VIEW_N * h * w);
    for (size_t i = 0; i < VIEW_FLOATS; i++) {
        v->wide[i] = VIEW_GUARD;
    }
    for (size_t i = 0; i < v->pixels * (size_t)channels; i++) {
        v->dense[i] = (float)verify_normal(state);
        v->wide[i / (size_t)channels * view_stride(v) + VIEW_MARGIN + i % (size_t)channels] =
            v->dense[i];
    }
}

// Numbers that differ between the two, and guards that changed.
static int view_differences(const view_pair *v) {
    int count = 0;
    for (size_t i = 0; i < VIEW_FLOATS; i++) {
        const size_t pixel = i / view_stride(v), c = i % view_stride(v);
        const bool inside =
            pixel < v->pixels && c >= VIEW_MARGIN && c < VIEW_MARGIN + (size_t)v->channels;
        const float expected =
            inside ? v->dense[pixel * (size_t)v->channels + c - VIEW_MARGIN] : VIEW_GUARD;
        count += memcmp(&v->wide[i], &expected, sizeof expected) != 0;
    }
    return count;
}

// Inputs, outputs and gradients of an operation, and what both runs share.
typedef struct view_test {
    view_pair x, y, dx, dy;
    float w[VIEW_FLOATS], b[64], mean[64], invstd[64], running[2][64];
    int32_t argmax[2][VIEW_FLOATS];
    size_t xs, ys; // strides of this run
    bool wide;
} view_test;

static float *view_of(view_test *t, view_pair *v) {
    return t->wide ? v->wide + VIEW_MARGIN : v->dense;
}

typedef void view_run(view_test *t);
enum { VIEW_C = 6, VIEW_OC = 4 };

static void view_conv2d(view_test *t) {
    const clnet_conv2d_sizes s = {.N = VIEW_N,
                                  .C = VIEW_C,
                                  .H = VIEW_H,
                                  .W = VIEW_W,
                                  .OC = VIEW_OC,
                                  .OH = VIEW_H,
                                  .OW = VIEW_W,
                                  .KH = 3,
                                  .KW = 3,
                                  .padding = {1, 1},
                                  .groups = 2,
                                  .x_stride = t->xs,
                                  .y_stride = t->ys};
    float dw[3 * 3 * 3 * VIEW_OC] = {0}, db[VIEW_OC] = {0};
    clnet_ref_conv2d_forward(view_of(t, &t->y), view_of(t, &t->x), t->w, t->b, &s);
    clnet_ref_conv2d_backward(view_of(t, &t->dx), dw, db, view_of(t, &t->dy), view_of(t, &t->x),
                              t->w, &s);
}

static void view_linear(view_test *t) {
    const clnet_linear_sizes s = {.N = VIEW_N * VIEW_H * VIEW_W,
                                  .C = VIEW_C,
                                  .OC = VIEW_OC,
                                  .x_stride = t->xs,
                                  .y_stride = t->ys};
    clnet_ref_linear_forward(view_of(t, &t->y), view_of(t, &t->x), t->w, t->b, &s);
    clnet_ref_linear_backward(view_of(t, &t->dx), NULL, NULL, view_of(t, &t->dy), view_of(t, &t->x),
                              t->w, &s);
}

static clnet_sizes view_sizes(const view_test *t) {
    return (clnet_sizes){VIEW_N, VIEW_C, VIEW_H, VIEW_W, t->xs, t->ys};
}

static void view_batch_norm(view_test *t) {
    const clnet_sizes s = view_sizes(t);
    const clnet_batch_norm_options o = {.eps = 1e-5, .momentum = 0.1, .training = true};
    clnet_ref_batch_norm_forward(view_of(t, &t->y), t->mean, t->invstd, t->running[0],
                                 t->running[1], view_of(t, &t->x), t->w, t->b, &o, &s);
    clnet_ref_batch_norm_backward(view_of(t, &t->dx), NULL, NULL, view_of(t, &t->dy),
                                  view_of(t, &t->x), t->w, t->mean, t->invstd, &o, &s);
}

static void view_relu(view_test *t) {
    const clnet_sizes s = view_sizes(t);
    clnet_ref_relu_forward(view_of(t, &t->y), view_of(t, &t->x), &s);
    clnet_ref_relu_backward(view_of(t, &t->dx), view_of(t, &t->dy), view_of(t, &t->y), &s);
}

static void view_sigmoid(view_test *t) {
    const clnet_sizes s = view_sizes(t);
    clnet_ref_sigmoid_forward(view_of(t, &t->y), view_of(t, &t->x), &s);
    clnet_ref_sigmoid_backward(view_of(t, &t->dx), view_of(t, &t->dy), view_of(t, &t->y), &s);
}

static void view_softmax(view_test *t) {
    const clnet_sizes s = view_sizes(t);
    clnet_ref_softmax_forward(view_of(t, &t->y), view_of(t, &t->x), 2, &s);
    clnet_ref_softmax_backward(view_of(t, &t->dx), view_of(t, &t->dy), view_of(t, &t->y), 2, &s);
}

static void view_pool2d(view_test *t) {
    const clnet_pool2d_sizes s = {.N = VIEW_N,
                                  .C = VIEW_C,
                                  .H = VIEW_H,
                                  .W = VIEW_W,
                                  .OH = VIEW_H,
                                  .OW = VIEW_W,
                                  .KH = 3,
                                  .KW = 3,
                                  .padding = {1, 1},
                                  .x_stride = t->xs,
                                  .y_stride = t->ys};
    int32_t *argmax = t->argmax[t->wide];
    clnet_ref_max_pool2d_forward(view_of(t, &t->y), argmax, view_of(t, &t->x), &s);
    clnet_ref_max_pool2d_backward(view_of(t, &t->dx), view_of(t, &t->dy), argmax, &s);
}

static void view_avg_pool2d(view_test *t) {
    const clnet_pool2d_sizes s = {.N = VIEW_N,
                                  .C = VIEW_C,
                                  .H = VIEW_H,
                                  .W = VIEW_W,
                                  .OH = VIEW_H,
                                  .OW = VIEW_W,
                                  .KH = 3,
                                  .KW = 3,
                                  .padding = {1, 1},
                                  .x_stride = t->xs,
                                  .y_stride = t->ys};
    clnet_ref_avg_pool2d_forward(view_of(t, &t->y), view_of(t, &t->x), &s);
    clnet_ref_avg_pool2d_backward(view_of(t, &t->dx), view_of(t, &t->dy), &s);
}

static void view_upsample(view_test *t) {
    const clnet_upsample_sizes s = {.N = VIEW_N,
                                    .C = VIEW_C,
                                    .H = VIEW_H,
                                    .W = VIEW_W,
                                    .OH = VIEW_H,
                                    .OW = VIEW_W,
                                    .x_stride = t->xs,
                                    .y_stride = t->ys};
    clnet_ref_upsample_bilinear_forward(view_of(t, &t->y), view_of(t, &t->x), &s);
    clnet_ref_upsample_bilinear_backward(view_of(t, &t->dx), view_of(t, &t->dy), &s);
}

static void view_copy(view_test *t) {
    const clnet_sizes s = view_sizes(t), back = {VIEW_N, VIEW_C, VIEW_H, VIEW_W, t->ys, t->xs};
    clnet_ref_copy(view_of(t, &t->y), view_of(t, &t->x), false, &s);
    clnet_ref_copy(view_of(t, &t->dx), view_of(t, &t->dy), true, &back);
}

static void view_add(view_test *t) {
    const clnet_sizes s = view_sizes(t);
    clnet_ref_add_forward(view_of(t, &t->y), view_of(t, &t->x), view_of(t, &t->dx), &s, t->xs);
}

static void view_scale_channels(view_test *t) {
    const clnet_sizes s = view_sizes(t);
    clnet_ref_scale_channels_forward(view_of(t, &t->y), view_of(t, &t->x), t->w, 0, &s);
    clnet_ref_scale_channels_backward(view_of(t, &t->dx), NULL, view_of(t, &t->dy),
                                      view_of(t, &t->x), t->w, 0, &s);
}

static void view_attention_residual(view_test *t) {
    const clnet_attention_residual_sizes s = {VIEW_N, VIEW_C, VIEW_H, VIEW_W,
                                              t->xs,  t->xs,  t->ys,  0};
    clnet_ref_attention_residual_forward(view_of(t, &t->y), t->mean, t->invstd, view_of(t, &t->x),
                                         view_of(t, &t->x), t->w, &s);
    clnet_ref_attention_residual_backward(view_of(t, &t->dx), NULL, t->b, view_of(t, &t->dy),
                                          view_of(t, &t->x), view_of(t, &t->x), t->w, t->mean,
                                          t->invstd, &s);
}

static void view_dropout(view_test *t) {
    const clnet_sizes s = view_sizes(t), back = {VIEW_N, VIEW_C, VIEW_H, VIEW_W, t->ys, t->xs};
    clnet_ref_dropout(view_of(t, &t->y), view_of(t, &t->x), false, 0.5, 1, 2, &s);
    clnet_ref_dropout(view_of(t, &t->dx), view_of(t, &t->dy), true, 0.5, 1, 2, &back);
}

static void view_flip(view_test *t) {
    static const int32_t flips[VIEW_N] = {3};
    const clnet_sizes s = view_sizes(t), back = {VIEW_N, VIEW_C, VIEW_H, VIEW_W, t->ys, t->xs};
    clnet_ref_flip(view_of(t, &t->y), view_of(t, &t->x), false, flips, NULL, &s);
    clnet_ref_flip(view_of(t, &t->dx), view_of(t, &t->dy), true, flips, NULL, &back);
}

static void verify_view(const char *name, view_run *run, int out_channels) {
    view_test *t = calloc(1, sizeof *t);
    if (!t) {
        verify_report(name, "views", "plain loops", INFINITY, 0, "no memory");
        return;
    }
    uint64_t state = 3;
    view_pair *pairs[] = {&t->x, &t->dx, &t->y, &t->dy};
    for (int i = 0; i < 4; i++) {
        view_fill(pairs[i], i < 2 ? VIEW_C : out_channels, VIEW_H, VIEW_W, &state);
    }
    for (size_t i = 0; i < VIEW_FLOATS; i++) {
        t->w[i] = (float)verify_normal(&state);
    }
    for (int wide = 0; wide < 2; wide++) {
        t->wide = wide;
        t->xs = wide ? view_stride(&t->x) : 0;
        t->ys = wide ? view_stride(&t->y) : 0;
        run(t);
    }
    int differences = 0;
    for (int i = 0; i < 4; i++) {
        differences += view_differences(pairs[i]);
    }
    verify_report(name, "views", "plain loops", differences, 0,
                  "numbers that differ, or lie outside and were touched");
    free(t);
}

static void verify_views(void) {
    verify_view("conv2d", view_conv2d, VIEW_OC);
    verify_view("linear", view_linear, VIEW_OC);
    verify_view("batch_norm", view_batch_norm, VIEW_C);
    verify_view("relu", view_relu, VIEW_C);
    verify_view("sigmoid", view_sigmoid, VIEW_C);
    verify_view("softmax", view_softmax, VIEW_C);
    verify_view("max_pool2d", view_pool2d, VIEW_C);
    verify_view("avg_pool2d", view_avg_pool2d, VIEW_C);
    verify_view("upsample_bilinear", view_upsample, VIEW_C);
    verify_view("concat", view_copy, VIEW_C);
    verify_view("add", view_add, VIEW_C);
    verify_view("scale_channels", view_scale_channels, VIEW_C);
    verify_view("attention_residual", view_attention_residual, VIEW_C);
    verify_view("dropout", view_dropout, VIEW_C);
    verify_view("flip", view_flip, VIEW_C);
}

#endif
