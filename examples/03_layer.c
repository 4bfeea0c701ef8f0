// One layer by hand: a convolution forward and backward with the plain loops, no graph, no context.
//
//     cc -O3 -I. examples/03_layer.c -o 03_layer -lm && ./03_layer
//
// A 3 x 3 Sobel kernel finds the vertical edge of a small picture; backward then tells how each
// input pixel would change the sum of the result. Expected output, at once, begins with
//
//     y, the edge:
//        0   4   4   0      (three rows of these)
//     dx, how the sum of y depends on each pixel:
//       -1  -1   0   0   1   1

#define CLNET_IMPLEMENTATION
#include "clnet.h"

enum { H = 5, W = 6, OH = 3, OW = 4 };

static void print_map(const char *title, const float *map, int height, int width) {
    printf("%s\n", title);
    for (int h = 0; h < height; h++) {
        for (int w = 0; w < width; w++) {
            printf(" %3.0f", (double)map[h * width + w]);
        }
        printf("\n");
    }
}

int main(void) {
    // One image of one channel: dark on the left, bright on the right.
    float x[H * W];
    for (int i = 0; i < H * W; i++) {
        x[i] = i % W < W / 2 ? 0.0f : 1.0f;
    }
    const float sobel[9] = {-1, 0, 1, -2, 0, 2, -1, 0, 1}; // (KH,KW,C,OC), with C = OC = 1

    const clnet_conv2d_sizes sizes = {
        .N = 1, .C = 1, .H = H, .W = W, .OC = 1, .OH = OH, .OW = OW, .KH = 3, .KW = 3};
    float y[OH * OW];
    clnet_ref_conv2d_forward(y, x, sobel, NULL, &sizes);
    print_map("y, the edge:", y, OH, OW);

    // The gradient of sum(y): dy is 1 everywhere. Backward adds, so its outputs begin at 0.
    float dy[OH * OW], dx[H * W] = {0}, dw[9] = {0}, db[1] = {0};
    for (int i = 0; i < OH * OW; i++) {
        dy[i] = 1;
    }
    clnet_ref_conv2d_backward(dx, dw, db, dy, x, sobel, &sizes);
    print_map("dx, how the sum of y depends on each pixel:", dx, H, W);
    print_map("dw, and on each weight (sums of the pixels it saw):", dw, 3, 3);
    printf("db: %.0f\n", (double)db[0]);
    return y[1] == 4 && db[0] == OH * OW ? 0 : 1;
}
