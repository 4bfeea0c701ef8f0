// A case of the table as a graph of the library, through its public functions alone. Included by the
// float and by the double part of clnet-verify, each with its own clnet_real.
#ifndef CLNET_VERIFY_GRAPH_H
#define CLNET_VERIFY_GRAPH_H

#include "verify_cases.h"

typedef struct verify_graph {
    const verify_case *c;
    clnet_graph *g;
    clnet_tensor *leaf[VERIFY_LEAVES], *target, *y;
    clnet_real *numbers; // as large as the largest tensor
} verify_graph;

// Same values out as in.
typedef struct verify_run {
    double *y, *grad[VERIFY_MEAN], *after[2];
} verify_run;

// The inputs of a case beyond the first.
static void verify_graph_inputs(verify_graph *v) {
    const verify_case *c = v->c;
    const int N = c->x[0], C = c->x[1], H = c->x[2], W = c->x[3];
    v->leaf[0] = clnet_input(v->g, "x", N, C, H, W);
    if (c->op == CLNET_OP_ADD || c->op == CLNET_OP_ATTENTION_RESIDUAL) {
        v->leaf[1] = clnet_input(v->g, "x1", N, C, H, W);
    } else if (c->op == CLNET_OP_SCALE_CHANNELS) {
        v->leaf[1] = clnet_input(v->g, "x1", N, C, 1, 1);
    } else if (c->op == CLNET_OP_FOCAL_LOSS || (c->op == CLNET_OP_FLIP && !c->unlabelled)) {
        v->target = clnet_input_labels(v->g, "label", N);
    } else if (verify_is_loss(c)) {
        v->target = clnet_input(v->g, "mask", N, 1, H, W);
    }
    if (c->op == CLNET_OP_CONV2D_JOINED) {
        v->leaf[1] = clnet_input(v->g, "x1", N, c->more[0], c->size[0], c->size[1]);
    }
    static const char *const names[] = {"x1", "x2", "x3"};
    for (int i = 0; c->op == CLNET_OP_CONCAT && i < 3 && c->more[i]; i++) {
        v->leaf[1 + i] = clnet_input(v->g, names[i], N, c->more[i], H, W);
    }
    for (int i = 0; i < VERIFY_INPUTS; i++) {
        clnet_tensor_require_grad(v->leaf[i]);
    }
}

#define PAIR(field)                                                                                \
    { c->field[0], c->field[1] }

static clnet_tensor *verify_graph_conv2d(verify_graph *v) {
    const verify_case *c = v->c;
    return clnet_conv2d(v->g, v->leaf[0],
                        &(clnet_conv2d_desc){.out_channels = c->out,
                                             .kernel_size = PAIR(kernel),
                                             .stride = PAIR(stride),
                                             .padding = PAIR(padding),
                                             .dilation = PAIR(dilation),
                                             .groups = c->groups,
                                             .no_bias = c->no_bias,
                                             .name = "op"});
}

static clnet_tensor *verify_graph_focal(verify_graph *v) {
    clnet_focal_loss_desc d = {.gamma = v->c->value};
    memcpy(d.alpha, v->c->alpha, sizeof v->c->alpha);
    return clnet_focal_loss(v->g, v->leaf[0], v->target, &d);
}

static clnet_tensor *verify_graph_flip(verify_graph *v) {
    clnet_flip_desc d = {{0}, {0}};
    for (int c = 0; c < 4; c++) {
        d.mean[c] = v->c->value * c;
        d.std[c] = v->c->alpha[c];
    }
    return clnet_flip(v->g, v->leaf[0], v->target, &d);
}

static clnet_tensor *verify_graph_sum(verify_graph *v) {
    clnet_tensor *const parts[3] = {clnet_dice_loss(v->g, v->leaf[0], v->target, 1),
                                    clnet_mask_focal_loss(v->g, v->leaf[0], v->target, v->c->value),
                                    clnet_dice_loss(v->g, v->leaf[0], v->target, 0)};
    return clnet_weighted_sum(v->g, parts, verify_sum_weights, 3);
}

static clnet_tensor *verify_graph_op(verify_graph *v) {
    const verify_case *c = v->c;
    clnet_graph *g = v->g;
    clnet_tensor *x = v->leaf[0];
    const clnet_pool2d_desc pool = {.kernel_size = PAIR(kernel),
                                    .stride = PAIR(stride),
                                    .padding = PAIR(padding),
                                    .dilation = PAIR(dilation),
                                    .count_exclude_pad = c->exclude_pad};
    switch (c->op) {
    case CLNET_OP_CONV2D:
        return verify_graph_conv2d(v);
    case CLNET_OP_LINEAR:
        return clnet_linear(
            g, x,
            &(clnet_linear_desc){.out_features = c->out, .no_bias = c->no_bias, .name = "op"});
    case CLNET_OP_BATCH_NORM:
        return clnet_batch_norm(
            g, x, &(clnet_batch_norm_desc){.eps = c->eps, .momentum = c->value, .name = "op"});
    case CLNET_OP_RELU:
        return clnet_relu(g, x);
    case CLNET_OP_SIGMOID:
        return clnet_sigmoid(g, x);
    case CLNET_OP_SOFTMAX:
        return clnet_softmax(g, x, c->axis);
    case CLNET_OP_MAX_POOL2D:
        return clnet_max_pool2d(g, x, &pool);
    case CLNET_OP_AVG_POOL2D:
        return clnet_avg_pool2d(g, x, &pool);
    case CLNET_OP_GLOBAL_AVG_POOL:
        return clnet_global_avg_pool(g, x);
    case CLNET_OP_UPSAMPLE_BILINEAR:
        return clnet_upsample_bilinear(g, x, c->size[0], c->size[1], c->align_corners);
    case CLNET_OP_CONCAT:
        return clnet_concat(g, v->leaf, 1 + !!c->more[0] + !!c->more[1] + !!c->more[2]);
    case CLNET_OP_CONV2D_JOINED:
        return clnet_conv2d_joined(g, x, v->leaf[1],
                                   &(clnet_conv2d_joined_desc){.out_channels = c->out,
                                                               .no_bias = c->no_bias,
                                                               .name = "op"});
    case CLNET_OP_ADD:
        return clnet_add(g, x, v->leaf[1]);
    case CLNET_OP_SCALE_CHANNELS:
        return clnet_scale_channels(g, x, v->leaf[1]);
    case CLNET_OP_ATTENTION_RESIDUAL:
        return clnet_attention_residual(g, x, v->leaf[1],
                                        &(clnet_attention_residual_desc){.name = "op"});
    case CLNET_OP_DROPOUT:
        return clnet_dropout(g, x, c->value);
    case CLNET_OP_FLIP:
        return verify_graph_flip(v);
    case CLNET_OP_FOCAL_LOSS:
        return verify_graph_focal(v);
    case CLNET_OP_MASK_FOCAL_LOSS:
        return clnet_mask_focal_loss(g, x, v->target, c->value);
    case CLNET_OP_DICE_LOSS:
        return clnet_dice_loss(g, x, v->target, c->value);
    case CLNET_OP_WEIGHTED_SUM:
        return verify_graph_sum(v);
    case CLNET_OP_COUNT:
        break;
    }
    return NULL;
}
#undef PAIR

// Builds the graph of one operation. False: the context says why.
static bool verify_graph_open(verify_graph *v, clnet_context *ctx, const verify_case *c) {
    const char *const weights[] = {c->op == CLNET_OP_ATTENTION_RESIDUAL ? "op.alpha" : "op.weight",
                                   "op.bias", "op.running_mean", "op.running_var"};
    *v = (verify_graph){.c = c, .g = clnet_graph_create(ctx)};
    verify_graph_inputs(v);
    v->y = verify_graph_op(v);
    const clnet_build_desc desc = {.loss = v->y, .seed = 7};
    if (clnet_graph_build(v->g, &desc) != CLNET_OK) {
        return false;
    }
    size_t largest = clnet_tensor_count(v->y);
    for (int i = 0; i < VERIFY_LEAVES; i++) {
        if (i >= VERIFY_WEIGHT) {
            v->leaf[i] = clnet_graph_find_weight(v->g, weights[i - VERIFY_WEIGHT]);
        }
        if (v->leaf[i] && clnet_tensor_count(v->leaf[i]) > largest) {
            largest = clnet_tensor_count(v->leaf[i]);
        }
    }
    clnet_graph_set_training(v->g, !c->evaluation);
    v->numbers = malloc(largest * sizeof *v->numbers);
    return v->numbers != NULL;
}

static void verify_graph_close(verify_graph *v) {
    free(v->numbers);
    clnet_graph_destroy(v->g);
}

// Values in PyTorch's order into a tensor, or into its gradient.
static void verify_graph_set(verify_graph *v, clnet_tensor *t, const double *values, bool grad) {
    for (size_t i = 0; i < clnet_tensor_count(t); i++) {
        v->numbers[i] = (clnet_real)values[i];
    }
    (grad ? clnet_tensor_set_grad : clnet_tensor_set)(t, v->numbers, CLNET_ORDER_TORCH);
}

static void verify_graph_get(verify_graph *v, clnet_tensor *t, double *values, bool grad) {
    (grad ? clnet_tensor_get_grad : clnet_tensor_get)(t, v->numbers, CLNET_ORDER_TORCH);
    for (size_t i = 0; i < clnet_tensor_count(t); i++) {
        values[i] = (double)v->numbers[i];
    }
}

static void verify_graph_load(verify_graph *v, const verify_problem *p) {
    for (int i = 0; i < VERIFY_LEAVES; i++) {
        if (v->leaf[i]) {
            verify_graph_set(v, v->leaf[i], p->leaf[i], false);
        }
    }
    if (v->target && (v->c->op == CLNET_OP_FOCAL_LOSS || v->c->op == CLNET_OP_FLIP)) {
        int32_t *labels = malloc(p->targets * sizeof *labels);
        for (size_t i = 0; labels && i < p->targets; i++) {
            labels[i] = (int32_t)p->target[i];
        }
        clnet_tensor_set(v->target, labels, CLNET_ORDER_TORCH);
        free(labels);
    } else if (v->target) {
        verify_graph_set(v, v->target, p->target, false);
    }
}

// Forward, and the output.
static void verify_graph_forward(verify_graph *v, double *y) {
    clnet_graph_forward(v->g);
    verify_graph_get(v, v->y, y, false);
}

// Forward and backward with the problem's values and upstream gradient. False: the context says why.
static bool verify_graph_run(verify_graph *v, const verify_problem *p, verify_run *r) {
    verify_graph_load(v, p);
    clnet_graph_zero_grad(v->g);
    verify_graph_forward(v, r->y);
    if (clnet_tensor_rank(v->y) == 0) {
        clnet_graph_set_loss_scale(v->g, p->dy[0]);
    } else {
        verify_graph_set(v, v->y, p->dy, true);
    }
    clnet_graph_backward(v->g);
    for (int i = 0; i < VERIFY_MEAN; i++) {
        if (v->leaf[i]) {
            verify_graph_get(v, v->leaf[i], r->grad[i], true);
        }
    }
    for (int i = 0; i < 2; i++) {
        if (v->leaf[VERIFY_MEAN + i]) {
            verify_graph_get(v, v->leaf[VERIFY_MEAN + i], r->after[i], false);
        }
    }
    return clnet_context_result(clnet_graph_context(v->g)) == CLNET_OK;
}

static verify_run verify_run_new(const verify_problem *p) {
    verify_run r = {.y = verify_new(p->y_count)};
    for (int i = 0; i < VERIFY_MEAN; i++) {
        r.grad[i] = verify_new(p->count[i]);
    }
    for (int i = 0; i < 2; i++) {
        r.after[i] = verify_new(p->count[VERIFY_MEAN + i]);
    }
    return r;
}

static void verify_run_free(verify_run *r) {
    free(r->y);
    for (int i = 0; i < VERIFY_MEAN; i++) {
        free(r->grad[i]);
    }
    free(r->after[0]);
    free(r->after[1]);
}

#endif
