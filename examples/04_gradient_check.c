// Is the backward pass right? Compares the gradients of a small network with central differences,
// in double precision, where agreement to eight digits is possible.
//
//     cc -O2 -I. examples/04_gradient_check.c -o 04_gradient_check -lm && ./04_gradient_check
//
// For every weight w: dL/dw is near (8 L(w+h) - 8 L(w-h) - L(w+2h) + L(w-2h)) / 12h, up to h^4.
// Expected output, after about a second:
//
//     conv.weight      108 numbers, largest difference ..e-11
//     ...
//     the gradients are right

#define CLNET_REAL double // the whole library in double: plain loops only
#define CLNET_IMPLEMENTATION
#include "clnet.h"

enum { N = 2, SIZE = 8 };

// The loss as a function of one number of one weight, which is changed by `step` and put back.
static double loss_at(clnet_graph *g, clnet_tensor *loss, clnet_tensor *w, double *values, size_t i,
                      double step) {
    const double kept = values[i];
    values[i] = kept + step;
    clnet_tensor_set(w, values, CLNET_ORDER_TORCH);
    clnet_graph_forward(g);
    values[i] = kept;
    clnet_tensor_set(w, values, CLNET_ORDER_TORCH);
    return clnet_tensor_item(loss);
}

// The largest difference over all numbers of a weight, relative to the larger gradient, at least 1.
static double check(clnet_graph *g, clnet_tensor *loss, clnet_tensor *w) {
    const double h = 1e-3;
    const size_t count = clnet_tensor_count(w);
    double values[1024], gradient[1024], worst = 0;
    if (count > 1024) {
        return INFINITY;
    }
    clnet_tensor_get(w, values, CLNET_ORDER_TORCH);
    clnet_graph_zero_grad(g);
    clnet_graph_forward(g);
    clnet_graph_backward(g);
    clnet_tensor_get_grad(w, gradient, CLNET_ORDER_TORCH);
    for (size_t i = 0; i < count; i++) {
        const double near = loss_at(g, loss, w, values, i, h) - loss_at(g, loss, w, values, i, -h);
        const double far =
            loss_at(g, loss, w, values, i, 2 * h) - loss_at(g, loss, w, values, i, -2 * h);
        const double expected = (8 * near - far) / (12 * h);
        const double difference = fabs(gradient[i] - expected) / fmax(1, fabs(expected));
        worst = fmax(worst, difference);
    }
    return worst;
}

int main(void) {
    // Sigmoid, not ReLU: differences across the kink of a ReLU would say nothing.
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_graph *g = clnet_graph_create(ctx);
    clnet_tensor *image = clnet_input(g, "image", N, 3, SIZE, SIZE);
    clnet_tensor *mask = clnet_input(g, "mask", N, 1, SIZE, SIZE);
    clnet_tensor *y = clnet_conv2d(
        g, image,
        &(clnet_conv2d_desc){
            .out_channels = 4, .kernel_size = {3, 3}, .padding = {1, 1}, .name = "conv"});
    y = clnet_sigmoid(g, clnet_batch_norm(g, y, &(clnet_batch_norm_desc){.name = "bn"}));
    y = clnet_conv2d(
        g, y, &(clnet_conv2d_desc){.out_channels = 1, .kernel_size = {1, 1}, .name = "head"});
    clnet_tensor *losses[2] = {clnet_mask_focal_loss(g, y, mask, 2),
                               clnet_dice_loss(g, y, mask, 1)};
    clnet_tensor *loss = clnet_weighted_sum(g, losses, (const double[]){1, 1}, 2);
    clnet_graph_build(g, &(clnet_build_desc){.loss = loss, .seed = 7});

    double pixels[N * 3 * SIZE * SIZE], truth[N * SIZE * SIZE];
    for (int i = 0; i < N * 3 * SIZE * SIZE; i++) {
        pixels[i] = clnet_random_normal(7, 100, (uint64_t)i);
    }
    for (int i = 0; i < N * SIZE * SIZE; i++) {
        truth[i] = clnet_random_uniform(7, 101, (uint64_t)i) < 0.5;
    }
    clnet_tensor_set(image, pixels, CLNET_ORDER_TORCH);
    clnet_tensor_set(mask, truth, CLNET_ORDER_TORCH);

    bool right = true;
    for (int i = 0; i < clnet_graph_weights(g) && clnet_context_result(ctx) == CLNET_OK; i++) {
        clnet_tensor *w = clnet_graph_weight(g, i);
        if (clnet_tensor_trainable(w)) {
            const double worst = check(g, loss, w);
            printf("%-12s %6zu numbers, largest difference %.1e\n", clnet_tensor_name(w),
                   clnet_tensor_count(w), worst);
            right = right && worst < 1e-8;
        }
    }
    if (clnet_context_result(ctx) != CLNET_OK) {
        fprintf(stderr, "%s\n", clnet_error(ctx));
        right = false;
    }
    printf("the gradients are %s\n", right ? "right" : "WRONG");
    clnet_graph_destroy(g);
    clnet_context_destroy(ctx);
    return !right;
}
