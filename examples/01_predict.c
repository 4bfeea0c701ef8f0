// Image in, mask and diagnosis out.
//
//     cc -O3 -fopenmp -I. examples/01_predict.c -o 01_predict -lm
//     ./01_predict lesion.jpg best.safetensors mask.png
//
// best.safetensors comes from `clnet train`. Expected output, after a fraction of a second:
//
//     melanoma 0.071, seborrheic keratosis 0.018, nevus 0.911
//     lesion: 23.4 % of the image, mask in mask.png

#define CLNET_IMPLEMENTATION
#include "clnet.h"

// These two libraries are Debian's libstb-dev. stb_image is not meant for hostile files: a program
// that reads such looks at them first, as examples/clnet/image.c does.
#define STB_IMAGE_IMPLEMENTATION
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STB_IMAGE_WRITE_IMPLEMENTATION
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#endif
#include <stb/stb_image.h>
#include <stb/stb_image_write.h>
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

static double share_of_lesion(const unsigned char *mask, size_t pixels) {
    size_t lesion = 0;
    for (size_t i = 0; i < pixels; i++) {
        lesion += mask[i] == 255;
    }
    return (double)lesion / (double)pixels;
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s IMAGE WEIGHTS MASK.png\n", argv[0]);
        return 2;
    }
    int w = 0, h = 0;
    unsigned char *rgb = stbi_load(argv[1], &w, &h, NULL, 3);
    if (!rgb) {
        fprintf(stderr, "%s: %s\n", argv[1], stbi_failure_reason());
        return 2;
    }
    const size_t pixels = (size_t)w * (size_t)h;
    clnet_context *ctx = clnet_context_create(NULL);   // this CPU, all its cores
    clnet_model *net = clnet_model_open(ctx, argv[2]); // name, width and size stand in the file
    clnet_prediction p = {.mask = malloc(pixels)};
    int status = 0;
    if (!p.mask || clnet_predict(net, rgb, h, w, &p) != CLNET_OK) { // one check for the whole chain
        fprintf(stderr, "%s\n", p.mask ? clnet_error(ctx) : "out of memory");
        status = 1;
    } else {
        printf("melanoma %.3f, seborrheic keratosis %.3f, nevus %.3f\n", p.scores[0], p.scores[1],
               p.scores[2]);
        if (!stbi_write_png(argv[3], w, h, 1, p.mask, w)) {
            fprintf(stderr, "%s: cannot be written\n", argv[3]);
            status = 1;
        } else {
            printf("lesion: %.1f %% of the image, mask in %s\n",
                   100 * share_of_lesion(p.mask, pixels), argv[3]);
        }
    }
    free(p.mask);
    clnet_model_destroy(net);
    clnet_context_destroy(ctx);
    stbi_image_free(rgb);
    return status;
}
