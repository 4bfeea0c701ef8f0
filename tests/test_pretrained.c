// Encoders from torchvision's files: its names and shapes, what is left out and refused, and the fold
// of transform_input against torchvision itself (tests/data/make_pretrained.py).
#include "../clnet.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "test.h"

static const char *data = "tests/data";
static const char file_path[] = "build/test_pretrained.safetensors";

// ---- names --------------------------------------------------------------------------------------

static int weights_of(const clnet_model *m, const char *prefix, bool alphas) {
    int count = 0;
    for (int i = 0; i < clnet_graph_weights(m->graph); i++) {
        const char *name = clnet_tensor_name(clnet_graph_weight(m->graph, i));
        count += !strncmp(name, prefix, strlen(prefix)) && (alphas || !strstr(name, ".alpha"));
    }
    return count;
}

// "64,3,7,7"
static void shape_text(const clnet_tensor *t, char text[64]) {
    size_t used = 0;
    text[0] = 0;
    for (int i = 0; i < clnet_tensor_rank(t); i++) {
        used +=
            (size_t)snprintf(text + used, 64 - used, "%s%d", i ? "," : "", clnet_tensor_size(t, i));
    }
}

// Every line of the list that is of `listed` names a weight of the network, and there are no others.
static void check_names(clnet_context *ctx, const char *model, const char *prefix,
                        const char *listed) {
    clnet_model *m = clnet_model_create(ctx, &(clnet_model_desc){.name = model, .plan_only = true});
    char path[512], line[256], owner[32], name[128], shape[64], found[64];
    snprintf(path, sizeof path, "%s/torchvision_names.txt", data);
    FILE *f = fopen(path, "r");
    CHECK(m && f, "%s: %s, %s", model, clnet_error(ctx), path);
    int lines = 0;
    while (m && f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "%31s %127s %63s", owner, name, shape) != 3 || strcmp(owner, listed)) {
            continue;
        }
        char full[192];
        snprintf(full, sizeof full, "%s%s", prefix, name);
        const clnet_tensor *t = clnet_graph_find_weight(m->graph, full);
        CHECK(t, "%s: no %s", model, full);
        if (t) {
            shape_text(t, found);
            CHECK(!strcmp(found, shape), "%s: %s is %s, torchvision's %s", model, full, found,
                  shape);
        }
        lines++;
    }
    CHECK(m && lines > 0 && weights_of(m, prefix, false) == lines,
          "%s: %d names in the list, %d %s", model, lines, m ? weights_of(m, prefix, false) : 0,
          prefix);
    if (f) {
        fclose(f);
    }
    clnet_model_destroy(m);
}

// ---- files --------------------------------------------------------------------------------------

// How a file differs from the plain weights of an encoder.
typedef struct file_desc {
    const char *prefix;       // before all names
    clnet_dtype dtype;        // 0 = F32
    const char *missing;      // this name is not there
    const char *flat;         // this one has another shape
    const char *extra;        // a tensor of one number under this name
    clnet_tensor_file *first; // Inception's first convolution comes from this file
} file_desc;

enum { MOST = 1024, NAME = 128 };

typedef struct weights_file {
    clnet_file_item items[MOST];
    char names[MOST][NAME];
    size_t count;
} weights_file;

static void add_item(weights_file *w, const file_desc *d, const char *name,
                     const clnet_real *values, size_t count, clnet_file_item item) {
    if (d->missing && !strcmp(d->missing, name)) {
        return;
    }
    unsigned char *bytes = malloc(count * clnet_dtype_size(d->dtype));
    clnet_encode(bytes, values, count, d->dtype);
    if (d->flat && !strcmp(d->flat, name)) {
        item.rank = 1;
        item.shape[0] = count;
    }
    snprintf(w->names[w->count], NAME, "%s%s", d->prefix ? d->prefix : "", name);
    item.name = w->names[w->count];
    item.dtype = d->dtype;
    item.data = bytes;
    w->items[w->count++] = item;
}

static void add_weight(weights_file *w, const file_desc *d, const char *name, clnet_tensor *t) {
    const size_t count = clnet_tensor_count(t);
    clnet_real *values = malloc(count * sizeof *values);
    clnet_tensor_get(t, values, CLNET_ORDER_TORCH);
    clnet_file_tensor other;
    if (d->first && clnet_tensor_file_find(d->first, name, &other)) {
        CHECK(other.bytes == count * 4, "%s", name);
        clnet_tensor_file_read_real(d->first, &other, values);
    }
    clnet_file_item item = {.rank = clnet_tensor_rank(t)};
    for (int i = 0; i < item.rank; i++) {
        item.shape[i] = (uint64_t)clnet_tensor_size(t, i);
    }
    add_item(w, d, name, values, count, item);
    free(values);
}

// Writes the weights under `encoder` ("cls.") as torchvision would, with two tensors of its heads.
static void write_file(clnet_model *m, const char *encoder, const file_desc *d) {
    clnet_context *ctx = clnet_graph_context(m->graph);
    const clnet_real one = 1;
    weights_file *w = calloc(1, sizeof *w);
    for (int i = 0; w && i < clnet_graph_weights(m->graph); i++) {
        clnet_tensor *t = clnet_graph_weight(m->graph, i);
        if (!strncmp(clnet_tensor_name(t), encoder, strlen(encoder)) &&
            !strstr(clnet_tensor_name(t), ".alpha")) {
            add_weight(w, d, clnet_tensor_name(t) + strlen(encoder), t);
        }
    }
    add_item(w, d, "fc.weight", &one, 1, (clnet_file_item){.rank = 0});
    add_item(w, d, "AuxLogits.conv0.conv.weight", &one, 1, (clnet_file_item){.rank = 0});
    if (d->extra) {
        add_item(w, d, d->extra, &one, 1, (clnet_file_item){.rank = 0});
    }
    CHECK(clnet_safetensors_write(ctx, file_path, w->items, w->count, NULL, 0) == CLNET_OK, "%s",
          clnet_error(ctx));
    for (size_t i = 0; i < w->count; i++) {
        free((void *)(uintptr_t)w->items[i].data);
    }
    free(w);
}

static clnet_model *open_model(clnet_context *ctx, const char *name, uint64_t seed) {
    clnet_model *m = clnet_model_create(ctx, &(clnet_model_desc){.name = name,
                                                                 .width = 1.0 / 8,
                                                                 .size = {75, 79},
                                                                 .batch = 2,
                                                                 .keep_all = true,
                                                                 .seed = seed});
    CHECK(m, "%s: %s", name, clnet_error(ctx));
    return m;
}

// How many weights whose names begin with `prefix` differ from those of the other model, each of which
// went through `dtype`. Inception's folded ones do not count.
static int differences(clnet_model *a, clnet_model *b, const char *prefix, const char *other,
                       clnet_dtype dtype) {
    int different = 0;
    for (int i = 0; i < clnet_graph_weights(a->graph); i++) {
        clnet_tensor *t = clnet_graph_weight(a->graph, i);
        char name[NAME];
        if (strncmp(clnet_tensor_name(t), prefix, strlen(prefix)) ||
            strstr(clnet_tensor_name(t), "Conv2d_1a") || strstr(clnet_tensor_name(t), ".alpha")) {
            continue;
        }
        snprintf(name, sizeof name, "%s%s", other, clnet_tensor_name(t) + strlen(prefix));
        clnet_tensor *u = clnet_graph_find_weight(b->graph, name);
        const size_t count = clnet_tensor_count(t);
        clnet_real *x = malloc(count * sizeof *x), *y = malloc(count * sizeof *y);
        clnet_tensor_get(t, x, CLNET_ORDER_TORCH);
        clnet_tensor_get(u, y, CLNET_ORDER_TORCH);
        unsigned char *bytes = malloc(count * 4);
        clnet_encode(bytes, y, count, dtype);
        clnet_decode(y, bytes, count, dtype);
        different += memcmp(x, y, count * sizeof *x) != 0;
        free(bytes);
        free(x);
        free(y);
    }
    return different;
}

// ---- checks -------------------------------------------------------------------------------------

// The first convolution's output, from the normalised image, is torchvision's with transform_input.
static void check_fold(clnet_model *m, clnet_tensor_file *expected) {
    clnet_tensor *y = clnet_graph_find_activation(m->graph, "cls.Conv2d_1a_3x3");
    const size_t pixels = clnet_tensor_count(m->image), count = clnet_tensor_count(y);
    clnet_real *image = malloc(pixels * sizeof *image), *found = malloc(count * sizeof *found);
    clnet_real *wanted = malloc(count * sizeof *wanted);
    clnet_file_tensor t;
    clnet_tensor_file_find(expected, "image", &t);
    clnet_tensor_file_read_real(expected, &t, image);
    clnet_tensor_set(m->image, image, CLNET_ORDER_TORCH);
    clnet_graph_forward(m->graph);
    clnet_tensor_get(y, found, CLNET_ORDER_TORCH);
    clnet_tensor_file_find(expected, "y", &t);
    CHECK(t.bytes == count * 4, "y has %zu numbers", count);
    clnet_tensor_file_read_real(expected, &t, wanted);
    double worst = 0, size = 0;
    for (size_t i = 0; i < count; i++) {
        const double error = fabs((double)found[i] - (double)wanted[i]);
        worst = error <= worst ? worst : error;
        size = fmax(size, fabs((double)wanted[i]));
    }
    CHECK(worst <= 1e-6 * size, "transform_input: off by %.2e of %.2e", worst, size);
    printf("transform_input: worst error %.1e of values up to %.1f\n", worst, size);
    free(image);
    free(found);
    free(wanted);
}

static void check_inception(clnet_context *ctx) {
    char path[512];
    snprintf(path, sizeof path, "%s/inception_input.safetensors", data);
    clnet_tensor_file *first = clnet_tensor_file_open(ctx, path);
    CHECK(first, "%s", clnet_error(ctx));
    static const clnet_dtype dtypes[] = {CLNET_F32, CLNET_F16, CLNET_BF16};
    for (int i = 0; first && i < 3; i++) {
        clnet_model *from = open_model(ctx, "inception_v3", 3);
        clnet_model *to = open_model(ctx, "inception_v3", 4);
        const file_desc d = {
            .prefix = i == 1 ? "module." : NULL, .dtype = dtypes[i], .first = first};
        clnet_pretrained counts;
        write_file(from, "cls.", &d);
        CHECK(clnet_model_load_pretrained(to, "cls", file_path, &counts) == CLNET_OK, "%s",
              clnet_error(ctx));
        CHECK((int)counts.loaded == weights_of(to, "cls.", true) && counts.left_out == 2,
              "%zu loaded, %zu left out", counts.loaded, counts.left_out);
        clnet_context_clear(ctx); // the next may be better
        const int different = differences(to, from, "cls.", "cls.", dtypes[i]);
        CHECK(different == 0, "%s: %d tensors", clnet_dtype_name(dtypes[i]), different);
        if (i == 0) {
            check_fold(to, first);
        }
        clnet_model_destroy(from);
        clnet_model_destroy(to);
    }
    clnet_tensor_file_close(first);
}

// ResNet-50's file for the other encoders of its shape: the rest of the network stays.
static void check_residual(clnet_context *ctx) {
    clnet_model *from = open_model(ctx, "resnet50", 3),
                *to = open_model(ctx, "arlnet50+resunet", 4);
    clnet_model *before = open_model(ctx, "arlnet50+resunet", 4);
    write_file(from, "cls.", &(file_desc){.prefix = NULL});
    CHECK(clnet_model_load_pretrained(to, "seg", file_path, NULL) == CLNET_OK, "%s",
          clnet_error(ctx));
    CHECK(differences(to, from, "seg.", "cls.", CLNET_F32) == 0, "seg");
    CHECK(differences(to, before, "cls.", "cls.", CLNET_F32) == 0, "cls changed with seg");
    clnet_pretrained counts;
    CHECK(clnet_model_load_pretrained(to, "cls", file_path, &counts) == CLNET_OK, "%s",
          clnet_error(ctx));
    CHECK((int)counts.loaded == weights_of(to, "cls.", false), "%zu loaded", counts.loaded);
    CHECK(differences(to, from, "cls.", "cls.", CLNET_F32) == 0, "cls");
    CHECK(differences(to, before, "fuse.", "fuse.", CLNET_F32) == 0, "fuse changed");
    const float alpha =
        (float)clnet_tensor_item(clnet_graph_find_weight(to->graph, "cls.layer3.5.alpha"));
    CHECK(alpha == 0.001f, "alpha is %g", (double)alpha);
    clnet_model_destroy(from);
    clnet_model_destroy(to);
    clnet_model_destroy(before);
}

// Refused with a sentence that has the name and both shapes; nothing is loaded.
static void check_refused(clnet_context *ctx, const char *encoder, const file_desc *d,
                          clnet_result result, const char *text) {
    clnet_model *from = open_model(ctx, "resnet50", 3), *to = open_model(ctx, "resnet50+unet", 4);
    clnet_model *before = open_model(ctx, "resnet50+unet", 4);
    write_file(from, "cls.", d);
    CHECK(clnet_model_load_pretrained(to, encoder, file_path, NULL) == result, "%s: %s", text,
          clnet_error(ctx));
    CHECK(strstr(clnet_error(ctx), text), "\"%s\" is not in \"%s\"", text, clnet_error(ctx));
    clnet_context_clear(ctx);
    CHECK(differences(to, before, "cls.", "cls.", CLNET_F32) == 0, "%s: cls changed", text);
    clnet_model_destroy(from);
    clnet_model_destroy(to);
    clnet_model_destroy(before);
}

static void check_refusals(clnet_context *ctx) {
    const clnet_result mismatch = CLNET_ERROR_MISMATCH;
    check_refused(ctx, "cls", &(file_desc){.missing = "layer1.0.bn3.bias"}, mismatch,
                  "1 missing, 0 unexpected, 0 mis-shaped; missing layer1.0.bn3.bias");
    check_refused(ctx, "cls", &(file_desc){.flat = "conv1.weight"}, mismatch,
                  "mis-shaped conv1.weight: (1176) in the file, (8,3,7,7) in the network");
    check_refused(ctx, "cls", &(file_desc){.extra = "layer5.0.conv1.weight"}, mismatch,
                  "unexpected layer5.0.conv1.weight()");
    check_refused(ctx, "seg", &(file_desc){.prefix = NULL}, mismatch, "missing enc1.0.weight");
    check_refused(ctx, "dec", &(file_desc){.prefix = NULL}, CLNET_ERROR_ARGUMENT,
                  "model resnet50+unet: has no encoder \"dec\"");
}

int main(int argc, char **argv) {
    data = argc > 1 ? argv[1] : data;
    clnet_context *ctx = clnet_context_create(NULL);
    check_names(ctx, "resnet50", "cls.", "resnet50");
    check_names(ctx, "inception_v3+unet", "cls.", "inception_v3");
    check_names(ctx, "arlnet50+resunet", "cls.", "resnet50");
    check_names(ctx, "arlnet50+resunet", "seg.", "resnet50");
    check_inception(ctx);
    check_residual(ctx);
    check_refusals(ctx);
    remove(file_path);
    clnet_context_destroy(ctx);
    return test_close();
}
