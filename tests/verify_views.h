// Operations on tensors that are some channels of wider ones: the same bits as on dense ones, and no
// other channel touched. First the plain loops, then graphs on every path.
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
    float w[VIEW_FLOATS], b[64], mean[64], invstd[64], line[2][64], running[2][64];
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
    clnet_ref_batch_norm_forward(view_of(t, &t->y), t->mean, t->invstd, t->line[0], t->line[1],
                                 t->running[0], t->running[1], view_of(t, &t->x), t->w, t->b, &o,
                                 &s);
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

// The same in graphs, on every path: an operation between two concatenations, whose input and output
// are channels of these; and on memory of their own, which they have where somebody wants the
// gradient of the whole. Values and gradients have to be the same bits.
typedef struct view_layer {
    const char *name;
    clnet_tensor *(*append)(clnet_graph *g, clnet_tensor *x, clnet_tensor *other);
} view_layer;

#define VIEW_LAYER(name, ...)                                                                      \
    static clnet_tensor *view_layer_##name(clnet_graph *g, clnet_tensor *x, clnet_tensor *other) { \
        (void)other;                                                                               \
        return __VA_ARGS__;                                                                        \
    }

static clnet_tensor *view_conv(clnet_graph *g, clnet_tensor *x, int kernel, int stride,
                               int groups) {
    return clnet_conv2d(g, x,
                        &(clnet_conv2d_desc){.out_channels = VIEW_OC,
                                             .kernel_size = {kernel, kernel},
                                             .stride = {stride, stride},
                                             .padding = {kernel / 2, kernel / 2},
                                             .groups = groups,
                                             .name = "layer"});
}

static const clnet_pool2d_desc view_window = {
    .kernel_size = {3, 3}, .stride = {1, 2}, .padding = {1, 1}};

VIEW_LAYER(conv2d, view_conv(g, x, 3, 1, 1))
VIEW_LAYER(conv2d_1x1, view_conv(g, x, 1, 1, 1))
VIEW_LAYER(conv2d_stride_2, view_conv(g, x, 3, 2, 1))
VIEW_LAYER(conv2d_groups_2, view_conv(g, x, 3, 1, 2))
VIEW_LAYER(linear, clnet_linear(g, clnet_global_avg_pool(g, x),
                                &(clnet_linear_desc){.out_features = VIEW_OC, .name = "layer"}))
VIEW_LAYER(batch_norm, clnet_batch_norm(g, x, &(clnet_batch_norm_desc){.name = "layer"}))
VIEW_LAYER(relu, clnet_relu(g, x))
VIEW_LAYER(sigmoid, clnet_sigmoid(g, x))
VIEW_LAYER(softmax, clnet_softmax(g, x, 1))
VIEW_LAYER(max_pool2d, clnet_max_pool2d(g, x, &view_window))
VIEW_LAYER(avg_pool2d, clnet_avg_pool2d(g, x, &view_window))
VIEW_LAYER(global_avg_pool, clnet_global_avg_pool(g, x))
VIEW_LAYER(upsample_bilinear, clnet_upsample_bilinear(g, x, 9, 7, false))
VIEW_LAYER(add, clnet_add(g, x, other))
VIEW_LAYER(scale_channels, clnet_scale_channels(g, x, clnet_global_avg_pool(g, x)))
VIEW_LAYER(attention_residual,
           clnet_attention_residual(g, x, other, &(clnet_attention_residual_desc){.name = "layer"}))
VIEW_LAYER(dropout, clnet_dropout(g, x, 0.5))
VIEW_LAYER(flip, clnet_flip(g, x, NULL, &(clnet_flip_desc){{0}, {0}}))

// The mean of each image's map through a 1x1 convolution, for a gradient in every channel.
static clnet_tensor *view_head(clnet_graph *g, clnet_tensor *x, const char *name) {
    return clnet_global_avg_pool(
        g, clnet_conv2d(
               g, x, &(clnet_conv2d_desc){.out_channels = 1, .kernel_size = {1, 1}, .name = name}));
}

static clnet_graph *view_graph(const verify_path *path, const view_layer *layer, bool inside) {
    clnet_graph *g = clnet_graph_create(path->ctx);
    clnet_tensor *left = clnet_input(g, "left", VIEW_N, VIEW_C, VIEW_H, VIEW_W);
    clnet_tensor *right = clnet_input(g, "right", VIEW_N, VIEW_C, VIEW_H, VIEW_W);
    clnet_tensor *x = clnet_add(g, left, right), *y = layer->append(g, x, right);
    clnet_tensor *in = clnet_concat(g, (clnet_tensor *[]){right, x}, 2);
    clnet_tensor *out = clnet_concat(g, (clnet_tensor *[]){clnet_sigmoid(g, y), y}, 2);
    clnet_tensor *loss = clnet_add(g, view_head(g, in, "in"), view_head(g, out, "out"));
    clnet_tensor_require_grad(left);
    clnet_tensor_require_grad(right);
    if (!inside) {
        clnet_tensor_require_grad(in);
        clnet_tensor_require_grad(out);
    }
    clnet_graph_build(g, &(clnet_build_desc){.loss = loss, .seed = 5});
    float numbers[2][VIEW_N * VIEW_C * VIEW_H * VIEW_W];
    uint64_t state = 4;
    for (size_t i = 0; i < sizeof numbers / sizeof(float); i++) {
        numbers[i % 2][i / 2] = (float)verify_normal(&state);
    }
    clnet_tensor_set(left, numbers[0], CLNET_ORDER_TORCH);
    clnet_tensor_set(right, numbers[1], CLNET_ORDER_TORCH);
    clnet_graph_forward(g);
    clnet_tensor_set_grad(loss, (float[VIEW_N]){1, -0.5f}, CLNET_ORDER_TORCH);
    clnet_graph_backward(g);
    return g;
}

// Numbers of a tensor, or of its gradient, that differ between two graphs.
static int view_unequal(clnet_tensor *a, clnet_tensor *b, bool gradient) {
    float x[VIEW_FLOATS], y[VIEW_FLOATS];
    clnet_result (*get)(clnet_tensor *, void *, clnet_order) =
        gradient ? clnet_tensor_get_grad : clnet_tensor_get;
    if (get(a, x, CLNET_ORDER_TORCH) != CLNET_OK || get(b, y, CLNET_ORDER_TORCH) != CLNET_OK) {
        return 1;
    }
    int count = 0;
    for (size_t i = 0; i < clnet_tensor_count(a); i++) {
        count += memcmp(&x[i], &y[i], sizeof *x) != 0;
    }
    return count;
}

static void verify_view_layer(const verify_path *path, const view_layer *layer) {
    clnet_graph *dense = view_graph(path, layer, false), *inside = view_graph(path, layer, true);
    int unequal = 0;
    if (clnet_context_result(path->ctx) == CLNET_OK) {
        const int last = clnet_graph_activations(dense) - 1;
        unequal = view_unequal(clnet_graph_activation(dense, last),
                               clnet_graph_activation(inside, last), false);
        for (int i = 0; i < 2; i++) { // left and right
            unequal += view_unequal(clnet_graph_activation(dense, i),
                                    clnet_graph_activation(inside, i), true);
        }
        for (int i = 0; i < clnet_graph_weights(dense); i++) {
            clnet_tensor *a = clnet_graph_weight(dense, i), *b = clnet_graph_weight(inside, i);
            unequal += view_unequal(a, b, clnet_tensor_trainable(a));
        }
    }
    const bool ran = clnet_context_result(path->ctx) == CLNET_OK;
    verify_report(layer->name, "inside", path->name, ran ? (double)unequal : INFINITY, 0,
                  ran ? "numbers that differ from those on memory of its own"
                      : clnet_error(path->ctx));
    clnet_graph_destroy(dense);
    clnet_graph_destroy(inside);
}

static void verify_view_layers(const verify_path *path) {
#define LAYER(name)                                                                                \
    { #name, view_layer_##name }
    static const view_layer layers[] = {LAYER(conv2d),
                                        LAYER(conv2d_1x1),
                                        LAYER(conv2d_stride_2),
                                        LAYER(conv2d_groups_2),
                                        LAYER(linear),
                                        LAYER(batch_norm),
                                        LAYER(relu),
                                        LAYER(sigmoid),
                                        LAYER(softmax),
                                        LAYER(max_pool2d),
                                        LAYER(avg_pool2d),
                                        LAYER(global_avg_pool),
                                        LAYER(upsample_bilinear),
                                        LAYER(add),
                                        LAYER(scale_channels),
                                        LAYER(attention_residual),
                                        LAYER(dropout),
                                        LAYER(flip)};
#undef LAYER
    for (size_t i = 0; i < sizeof layers / sizeof *layers; i++) {
        verify_view_layer(path, &layers[i]);
    }
}

#endif
