// The fusion module of the paper (section 2.3, Fig. 2) alone, built with nothing but public calls:
// features of a classification branch and of a segmentation branch, of different sizes, become one.
//
//     cc -O3 -fopenmp -I. examples/05_fusion.c -o 05_fusion -lm && ./05_fusion
//
// Expected output, at once: each node with its shape, the count of parameters, and the gates with
// which squeeze-and-excitation weighs the fused channels.

#define CLNET_IMPLEMENTATION
#include "clnet.h"

enum { N = 1, FUSED = 16, REDUCTION = 4 };

static clnet_tensor *conv(clnet_graph *g, clnet_tensor *x, int channels, int kernel,
                          const char *name) {
    return clnet_conv2d(g, x,
                        &(clnet_conv2d_desc){.out_channels = channels,
                                             .kernel_size = {kernel, kernel},
                                             .padding = {kernel / 2, kernel / 2},
                                             .name = name});
}

static clnet_tensor *norm_relu(clnet_graph *g, clnet_tensor *x, const char *name) {
    return clnet_relu(g, clnet_batch_norm(g, x, &(clnet_batch_norm_desc){.name = name}));
}

// FM(EC, ES) of equation 1. *gate: what squeeze-and-excitation multiplies the channels with.
static clnet_tensor *fuse(clnet_graph *g, clnet_tensor *ec, clnet_tensor *es, clnet_tensor **gate) {
    ec = clnet_upsample_bilinear(g, ec, 28, 28, false); // the smaller to the size of the larger
    clnet_tensor *x = clnet_concat(g, (clnet_tensor *[]){ec, es}, 2);
    x = norm_relu(g, conv(g, x, FUSED, 1, "reduce"), "reduce_bn"); // 1 x 1: fewer channels
    clnet_tensor *s =
        clnet_relu(g, conv(g, clnet_global_avg_pool(g, x), FUSED / REDUCTION, 1, "fc1"));
    *gate = clnet_tensor_keep(clnet_sigmoid(g, conv(g, s, FUSED, 1, "fc2")));
    x = clnet_scale_channels(g, x, *gate); // the most relevant channels
    x = norm_relu(g, conv(g, x, FUSED, 3, "conv1"), "bn1");
    return norm_relu(g, conv(g, x, FUSED, 3, "conv2"), "bn2");
}

static void print_nodes(const clnet_graph *g) {
    for (int i = 0; i < clnet_graph_nodes(g); i++) {
        const clnet_tensor *y = clnet_graph_node_output(g, i);
        printf("%-18s -> (%d, %d, %d, %d)\n", clnet_graph_node_op(g, i), clnet_tensor_size(y, 0),
               clnet_tensor_size(y, 1), clnet_tensor_size(y, 2), clnet_tensor_size(y, 3));
    }
    size_t parameters = 0;
    for (int i = 0; i < clnet_graph_weights(g); i++) {
        const clnet_tensor *w = clnet_graph_weight(g, i);
        parameters += clnet_tensor_trainable(w) ? clnet_tensor_count(w) : 0;
    }
    printf("%zu parameters\n", parameters);
}

int main(void) {
    static float ec_values[N * 32 * 14 * 14], es_values[N * 8 * 28 * 28];
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_graph *g = clnet_graph_create(ctx);
    clnet_tensor *ec = clnet_input(g, "EC", N, 32, 14, 14),
                 *es = clnet_input(g, "ES", N, 8, 28, 28);
    clnet_tensor *gate = NULL;
    clnet_tensor *fused = fuse(g, ec, es, &gate);
    clnet_graph_build(g, &(clnet_build_desc){.seed = 1});
    for (size_t i = 0; i < sizeof ec_values / sizeof *ec_values; i++) {
        ec_values[i] = (float)clnet_random_normal(1, 50, i);
    }
    for (size_t i = 0; i < sizeof es_values / sizeof *es_values; i++) {
        es_values[i] = (float)clnet_random_normal(1, 51, i);
    }
    clnet_tensor_set(ec, ec_values, CLNET_ORDER_TORCH);
    clnet_tensor_set(es, es_values, CLNET_ORDER_TORCH);
    float gates[N * FUSED];
    if (!fused || clnet_graph_forward(g) != CLNET_OK ||
        clnet_tensor_get(gate, gates, CLNET_ORDER_TORCH) != CLNET_OK) {
        fprintf(stderr, "%s\n", clnet_error(ctx));
        return 1;
    }
    print_nodes(g);
    printf("gates:");
    for (int i = 0; i < FUSED; i++) {
        printf(" %.2f", (double)gates[i]);
    }
    printf("\n");
    clnet_graph_destroy(g);
    clnet_context_destroy(ctx);
    return 0;
}
