// Which operations a network has, and a graph for one of them.
#include "ops.h"

#include <stdlib.h>
#include <string.h>

// ---- listing ------------------------------------------------------------------------------------

static bool is_activation(const clnet_tensor *t) {
    return t && (t->role == CLNET_ROLE_ACTIVATION || t->role == CLNET_ROLE_INPUT);
}

// "3x3/2 64->128 @56x56" and the like behind the operation's name.
static void name_op(bench_op *o, const char *what) {
    char kernel[48] = "", channels[64] = "", to[32] = "";
    const int *k = o->op == CLNET_OP_CONV2D ? o->conv2d.kernel_size : o->pool2d.kernel_size;
    const int *s = o->op == CLNET_OP_CONV2D ? o->conv2d.stride : o->pool2d.stride;
    if (k[0]) {
        const int length = snprintf(kernel, sizeof kernel, " %dx%d", k[0], k[1]);
        if (s[0] > 1) {
            snprintf(kernel + length, sizeof kernel - (size_t)length, "/%d", s[0]);
        }
    }
    int used = 0;
    for (int i = 0; i < o->inputs && used < (int)sizeof channels; i++) {
        if (i == 0 || o->op == CLNET_OP_CONCAT || o->op == CLNET_OP_CONV2D_JOINED) {
            used += snprintf(channels + used, sizeof channels - (size_t)used, "%s%d", i ? "+" : "",
                             o->in[i][1]);
        }
    }
    if ((o->op == CLNET_OP_CONV2D || o->op == CLNET_OP_LINEAR || o->op == CLNET_OP_CONV2D_JOINED) &&
        used < (int)sizeof channels) {
        snprintf(channels + used, sizeof channels - (size_t)used, "->%d", o->out[1]);
    }
    if (o->op == CLNET_OP_UPSAMPLE_BILINEAR) {
        snprintf(to, sizeof to, "->%dx%d", o->out[2], o->out[3]);
    }
    snprintf(o->name, sizeof o->name, "%s%s %s @%dx%d%s", what, kernel, channels, o->in[0][2],
             o->in[0][3], to);
}

static void take_desc(bench_op *o, const clnet_node *node) {
    switch (node->op) {
    case CLNET_OP_CONV2D:
        o->conv2d = node->desc.conv2d;
        o->conv2d.out_channels = o->out[1];
        o->conv2d.no_bias = true; // so that all convolutions of a shape are one case
        o->conv2d.name = "op";
        break;
    case CLNET_OP_BATCH_NORM:
        o->batch_norm = node->desc.batch_norm;
        o->batch_norm.name = "op";
        break;
    case CLNET_OP_MAX_POOL2D:
    case CLNET_OP_AVG_POOL2D:
        o->pool2d = node->desc.pool2d;
        break;
    case CLNET_OP_FOCAL_LOSS:
        o->focal_loss = node->desc.focal_loss;
        break;
    case CLNET_OP_DROPOUT:
    case CLNET_OP_MASK_FOCAL_LOSS:
    case CLNET_OP_DICE_LOSS:
        o->value = node->desc.value;
        break;
    case CLNET_OP_UPSAMPLE_BILINEAR:
        o->align_corners = node->desc.align_corners;
        break;
    default:
        break;
    }
}

static bench_op op_of(const clnet_node *node, const char *what, double macs) {
    bench_op o = {.op = node->op, .macs = macs};
    for (int i = 0; i < node->inputs; i++) {
        if (is_activation(node->in[i])) {
            memcpy(o.in[o.inputs++], node->in[i]->shape, sizeof o.in[0]);
        }
    }
    memcpy(o.out, node->out->shape, sizeof o.out);
    take_desc(&o, node);
    name_op(&o, what);
    return o;
}

// The matrix product that a convolution is when its windows are rows: pixels x terms times terms x
// channels. A linear layer of as many images computes nothing else.
static bench_op product_of(const bench_op *conv) {
    const int M = conv->out[0] * conv->out[2] * conv->out[3], N = conv->out[1];
    const int K = conv->in[0][1] * conv->conv2d.kernel_size[0] * conv->conv2d.kernel_size[1];
    bench_op o = {.op = CLNET_OP_LINEAR,
                  .inputs = 1,
                  .in = {{M, K, 1, 1}},
                  .out = {M, N, 1, 1},
                  .macs = (double)M * K * N,
                  .product = true};
    snprintf(o.name, sizeof o.name, "product %dx%dx%d", M, K, N);
    return o;
}

// Adds one unless it is there already.
static void add_op(bench_op *ops, int *count, const bench_op *o) {
    for (int i = 0; i < *count; i++) {
        if (!strcmp(ops[i].name, o->name)) {
            return;
        }
    }
    ops[(*count)++] = *o;
}

// The operations of a kind: convolutions come first, as the most of the work.
static void add_nodes(bench_op *ops, int *count, const clnet_graph *g, bool convolutions) {
    for (int i = 0; i < clnet_graph_nodes(g); i++) {
        const clnet_node *node = clnet_graph_node_output(g, i)->producer;
        const bool is_convolution = node->op == CLNET_OP_CONV2D;
        // A sum of scalars is no work.
        if (node->op != CLNET_OP_WEIGHTED_SUM && is_convolution == convolutions) {
            const bench_op o = op_of(node, clnet_graph_node_op(g, i), clnet_graph_node_macs(g, i));
            add_op(ops, count, &o);
        }
    }
}

bool bench_ops_list(const clnet_model_desc *d, bench_op **ops, int *count, problem *p) {
    const double largest = 64e6; // numbers of a product's operands: 256 MB
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_model_desc desc = *d;
    desc.plan_only = true;
    desc.purpose = CLNET_TRAIN;
    clnet_model *m = clnet_model_create(ctx, &desc);
    *ops = m ? calloc(2 * (size_t)clnet_graph_nodes(m->graph), sizeof **ops) : NULL;
    *count = 0;
    if (*ops) {
        add_nodes(*ops, count, m->graph, true);
        const int convolutions = *count;
        add_nodes(*ops, count, m->graph, false);
        for (int i = 0; i < convolutions; i++) {
            const bench_op o = product_of(&(*ops)[i]);
            if ((*ops)[i].conv2d.groups < 2 && (double)o.in[0][0] * o.in[0][1] < largest) {
                add_op(*ops, count, &o);
            }
        }
    }
    const bool ok = *ops || (m ? problem_run(p, "out of memory") : problem_context(p, ctx));
    clnet_model_destroy(m);
    clnet_context_destroy(ctx);
    return ok;
}

// ---- running ------------------------------------------------------------------------------------

static clnet_tensor *build_op(bench_op_run *r) {
    const bench_op *o = r->op;
    clnet_graph *g = r->graph;
    clnet_tensor *x = r->in[0];
    switch (o->op) {
    case CLNET_OP_CONV2D:
        return clnet_conv2d(g, x, &o->conv2d);
    case CLNET_OP_LINEAR:
        return clnet_linear(
            g, x, &(clnet_linear_desc){.out_features = o->out[1], .no_bias = true, .name = "op"});
    case CLNET_OP_BATCH_NORM:
        return clnet_batch_norm(g, x, &o->batch_norm);
    case CLNET_OP_RELU:
        return clnet_relu(g, x);
    case CLNET_OP_SIGMOID:
        return clnet_sigmoid(g, x);
    case CLNET_OP_MAX_POOL2D:
        return clnet_max_pool2d(g, x, &o->pool2d);
    case CLNET_OP_AVG_POOL2D:
        return clnet_avg_pool2d(g, x, &o->pool2d);
    case CLNET_OP_GLOBAL_AVG_POOL:
        return clnet_global_avg_pool(g, x);
    case CLNET_OP_UPSAMPLE_BILINEAR:
        return clnet_upsample_bilinear(g, x, o->out[2], o->out[3], o->align_corners);
    case CLNET_OP_CONCAT:
        return clnet_concat(g, r->in, o->inputs);
    case CLNET_OP_CONV2D_JOINED:
        return clnet_conv2d_joined(
            g, x, r->in[1],
            &(clnet_conv2d_joined_desc){.out_channels = o->out[1], .no_bias = true, .name = "op"});
    case CLNET_OP_ADD:
        return clnet_add(g, x, r->in[1]);
    case CLNET_OP_SCALE_CHANNELS:
        return clnet_scale_channels(g, x, r->in[1]);
    case CLNET_OP_ATTENTION_RESIDUAL:
        return clnet_attention_residual(g, x, r->in[1],
                                        &(clnet_attention_residual_desc){.name = "op"});
    case CLNET_OP_DROPOUT:
        return clnet_dropout(g, x, o->value);
    case CLNET_OP_FOCAL_LOSS:
        return clnet_focal_loss(g, x, r->in[1], &o->focal_loss);
    case CLNET_OP_MASK_FOCAL_LOSS:
        return clnet_mask_focal_loss(g, x, r->in[1], o->value);
    case CLNET_OP_DICE_LOSS:
        return clnet_dice_loss(g, x, r->in[1], o->value);
    default:
        return NULL;
    }
}

static bool is_mask(const bench_op *o, int input) {
    return input == 1 && (o->op == CLNET_OP_MASK_FOCAL_LOSS || o->op == CLNET_OP_DICE_LOSS);
}

static bool is_label(const bench_op *o, int input) {
    return input == 1 && o->op == CLNET_OP_FOCAL_LOSS;
}

static void build_inputs(bench_op_run *r) {
    const bench_op *o = r->op;
    static const char *const names[CLNET_MAX_INPUTS] = {"x0", "x1", "x2", "x3",
                                                        "x4", "x5", "x6", "x7"};
    for (int i = 0; i < o->inputs; i++) {
        const int *s = o->in[i];
        r->in[i] = is_label(o, i) ? clnet_input_labels(r->graph, names[i], s[0])
                                  : clnet_input(r->graph, names[i], s[0], s[1], s[2], s[3]);
        // Dropout is built as in training even for its forward pass, which takes a gradient.
        const bool wanted = r->pass == BENCH_BACKWARD_DATA || o->op == CLNET_OP_DROPOUT;
        if (wanted && !is_label(o, i) && !is_mask(o, i)) {
            clnet_tensor_require_grad(r->in[i]);
        }
    }
}

// The labels are all 0, masks lesion where a normal number is above 0.
static bool fill_inputs(bench_op_run *r) {
    bool ok = true;
    for (int i = 0; ok && i < r->op->inputs; i++) {
        const size_t count = clnet_tensor_count(r->in[i]);
        float *values = calloc(count, sizeof *values);
        ok = values != NULL;
        if (ok && !is_label(r->op, i)) {
            bench_fill_normal(values, count, (uint64_t)i);
        }
        for (size_t k = 0; ok && is_mask(r->op, i) && k < count; k++) {
            values[k] = values[k] > 0;
        }
        ok = ok && clnet_tensor_set(r->in[i], values, CLNET_ORDER_MEMORY) == CLNET_OK;
        free(values);
    }
    return ok;
}

bool bench_op_open(bench_op_run *r, clnet_context *ctx, const bench_op *op, bench_pass pass) {
    *r = (bench_op_run){.op = op, .pass = pass, .graph = clnet_graph_create(ctx)};
    build_inputs(r);
    r->out = clnet_tensor_keep(build_op(r));
    // In evaluation batch norm and dropout do other things, so they are measured as in training.
    const bool norm = op->op == CLNET_OP_BATCH_NORM;
    const bool training = norm || op->op == CLNET_OP_DROPOUT;
    const clnet_build_desc desc = {.loss = pass == BENCH_FORWARD && !training ? NULL : r->out,
                                   .no_weight_grad = pass == BENCH_BACKWARD_DATA && !norm,
                                   .seed = 1};
    if (clnet_graph_plan(r->graph, &desc, &r->plan) != CLNET_OK ||
        clnet_graph_build(r->graph, &desc) != CLNET_OK) {
        return false;
    }
    const size_t count = clnet_tensor_count(r->out);
    if (pass != BENCH_FORWARD && clnet_tensor_rank(r->out) > 0) {
        r->upstream = malloc(count * sizeof *r->upstream);
        if (!r->upstream) {
            return false;
        }
        bench_fill_normal(r->upstream, count, CLNET_MAX_INPUTS);
    }
    return fill_inputs(r);
}

void bench_op_close(bench_op_run *r) {
    free(r->upstream);
    clnet_graph_destroy(r->graph);
}

bool bench_op_prepare(bench_op_run *r) {
    if (r->pass == BENCH_FORWARD) {
        return true;
    }
    return clnet_graph_zero_grad(r->graph) == CLNET_OK &&
           clnet_graph_forward(r->graph) == CLNET_OK &&
           (!r->upstream ||
            clnet_tensor_set_grad(r->out, r->upstream, CLNET_ORDER_MEMORY) == CLNET_OK);
}

bool bench_op_pass(bench_op_run *r) {
    return (r->pass == BENCH_FORWARD ? clnet_graph_forward : clnet_graph_backward)(r->graph) ==
           CLNET_OK;
}
