// Whole networks against PyTorch: tests/data/net_CASE.{weights,expected}.safetensors, made by
// tests/data/make_networks.py, which also says how they are conditioned.
//
// Compiled twice: in float on all paths, and with CLNET_REAL=double for Adam's steps as well.
//
// The limits are the network rows of the verification: probabilities 5e-5, gradients 1e-4 in relative
// L2; in double what is left of PyTorch's rounding of its results to float.
#ifdef CLNET_REAL // double: no device has it
#include "../clnet.h"
#else
#define WITH_DEVICES
#include "../clnet_cl.h"
#endif

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "test.h"

#define WIDE (sizeof(clnet_real) == sizeof(double))

static const char *const cases[] = {"resnet50",         "unet",    "resunet", "resnet50_unet",
                                    "resnet50_resunet", "per_task"};
enum { CASES = sizeof cases / sizeof *cases };

typedef struct network_case {
    const char *name, *path; // of the case; of the code that runs it
    char weights[512], model[32];
    clnet_context *ctx;
    clnet_tensor_file *expected;
    clnet_model_desc desc;
    double worst_gradient, worst_probability;
    int close_calls; // classes and pixels too near to a tie to be compared
} network_case;

static double limit_of(double narrow, double wide) { return WIDE ? wide : narrow; }

// A tensor of the expected file as doubles, NULL where it has none of that name. The caller frees it.
static double *read_expected(const network_case *c, const char *name, size_t *count) {
    clnet_file_tensor t;
    *count = 0;
    if (!clnet_tensor_file_find(c->expected, name, &t)) {
        return NULL;
    }
    const size_t size = clnet_dtype_size(t.dtype);
    unsigned char *bytes = malloc((size_t)t.bytes + 1);
    double *values = malloc((size_t)t.bytes / size * sizeof *values + 1);
    const bool read = bytes && values && clnet_tensor_file_read(c->expected, &t, bytes) == CLNET_OK;
    for (size_t i = 0; read && i < t.bytes / size; i++) {
        float narrow;
        if (t.dtype == CLNET_F32) {
            memcpy(&narrow, bytes + 4 * i, sizeof narrow);
            values[i] = (double)narrow;
        } else if (t.dtype == CLNET_F64) {
            memcpy(&values[i], bytes + 8 * i, sizeof values[i]);
        } else {
            values[i] = bytes[8 * i]; // labels, small numbers of 64 bits
        }
    }
    *count = read ? (size_t)t.bytes / size : 0;
    free(bytes);
    return values;
}

// The values of a tensor, or of its gradient, in PyTorch's order.
static double *read_tensor(clnet_tensor *t, bool gradient) {
    const size_t count = clnet_tensor_count(t);
    clnet_real *numbers = malloc(count * sizeof *numbers);
    double *values = malloc(count * sizeof *values);
    const clnet_result result = !numbers || !values ? CLNET_ERROR_MEMORY
                                : gradient ? clnet_tensor_get_grad(t, numbers, CLNET_ORDER_TORCH)
                                           : clnet_tensor_get(t, numbers, CLNET_ORDER_TORCH);
    CHECK(result == CLNET_OK, "%s", clnet_tensor_name(t));
    for (size_t i = 0; i < count && values; i++) {
        values[i] = result == CLNET_OK ? (double)numbers[i] : NAN;
    }
    free(numbers);
    return values;
}

static double relative_l2(const double *found, const double *expected, size_t count) {
    double error = 0, size = 0;
    for (size_t i = 0; i < count; i++) {
        error += (found[i] - expected[i]) * (found[i] - expected[i]);
        size += expected[i] * expected[i];
    }
    return size > 0 ? sqrt(error / size) : error;
}

// Compares numbers found with a tensor of the file; returns the relative L2 distance.
static double distance_to(const network_case *c, const char *name, const double *found,
                          size_t count) {
    size_t wanted;
    double *expected = read_expected(c, name, &wanted);
    CHECK(expected && wanted == count, "%s, %s: %zu numbers in the file, %zu here", c->name, name,
          wanted, count);
    const double distance =
        expected && wanted == count ? relative_l2(found, expected, count) : INFINITY;
    free(expected);
    return distance;
}

static bool open_case(network_case *c, const char *data, const char *name, clnet_context *ctx,
                      const char *path) {
    char file[512];
    *c = (network_case){.name = name, .path = path, .ctx = ctx};
    snprintf(file, sizeof file, "%s/net_%s.expected.safetensors", data, name);
    snprintf(c->weights, sizeof c->weights, "%s/net_%s.weights.safetensors", data, name);
    c->expected = clnet_tensor_file_open(ctx, file);
    CHECK(c->expected, "%s", clnet_error(ctx));
    if (!c->expected) {
        clnet_context_clear(ctx);
        return false;
    }
    int n = 0, h = 0, w = 0;
    const char *input = clnet_tensor_file_metadata(c->expected, "input");
    const char *fusion = clnet_tensor_file_metadata(c->expected, "fusion");
    CHECK(input && sscanf(input, "%d,3,%d,%d", &n, &h, &w) == 3, "%s: metadata", file);
    snprintf(c->model, sizeof c->model, "%s", clnet_tensor_file_metadata(c->expected, "model"));
    c->desc = (clnet_model_desc){
        .name = c->model,
        .size = {h, w},
        .batch = n,
        .classes = atoi(clnet_tensor_file_metadata(c->expected, "classes")),
        .width = atof(clnet_tensor_file_metadata(c->expected, "width")),
        .fusion = strcmp(fusion, "per-task") ? CLNET_FUSION_SHARED : CLNET_FUSION_PER_TASK};
    return true;
}

// Gives a tensor of the model the values of the file, if both have it.
static void set_input(const network_case *c, clnet_tensor *t, const char *name) {
    size_t count;
    double *values = t ? read_expected(c, name, &count) : NULL;
    if (!values) {
        return;
    }
    CHECK(count == clnet_tensor_count(t), "%s: %s", c->name, name);
    void *numbers = malloc(count * sizeof(double));
    for (size_t i = 0; numbers && i < count; i++) {
        if (!strcmp(name, "label")) {
            ((int32_t *)numbers)[i] = (int32_t)values[i];
        } else {
            ((clnet_real *)numbers)[i] = (clnet_real)values[i];
        }
    }
    CHECK(clnet_tensor_set(t, numbers, CLNET_ORDER_TORCH) == CLNET_OK, "%s", clnet_error(c->ctx));
    free(numbers);
    free(values);
}

static clnet_model *open_model(network_case *c, clnet_purpose purpose) {
    c->desc.purpose = purpose;
    clnet_model *model = clnet_model_create(c->ctx, &c->desc);
    CHECK(model, "%s: %s", c->name, clnet_error(c->ctx));
    if (!model || clnet_model_load(model, c->weights) != CLNET_OK) {
        CHECK(!model, "%s: %s", c->name, clnet_error(c->ctx));
        clnet_context_clear(c->ctx);
        clnet_model_destroy(model);
        return NULL;
    }
    set_input(c, model->image, "image");
    set_input(c, model->label, "label");
    set_input(c, model->mask, "mask");
    return model;
}

// Logits to probabilities, in place: softmax over groups of K, or the sigmoid.
static void to_probabilities(double *z, size_t count, size_t K) {
    for (size_t i = 0; i < count; i += K) {
        double sum = 0, max = z[i];
        for (size_t k = 1; k < K; k++) {
            max = fmax(max, z[i + k]);
        }
        for (size_t k = 0; k < K; k++) {
            z[i + k] = K == 1 ? 1 / (1 + exp(-z[i + k])) : exp(z[i + k] - max);
            sum += K == 1 ? 1 : z[i + k];
        }
        for (size_t k = 0; k < K && K > 1; k++) {
            z[i + k] /= sum;
        }
    }
}

static size_t best_of(const double *p, size_t K) {
    size_t best = 0;
    for (size_t k = 1; k < K; k++) {
        best = p[k] > p[best] ? k : best;
    }
    return best;
}

// The second of a group's probabilities is this far behind the first; of a pixel, from 1/2.
static double margin_of(const double *p, size_t K) {
    const size_t best = best_of(p, K);
    double margin = K == 1 ? fabs(p[0] - 0.5) : 1;
    for (size_t k = 0; k < K; k++) {
        margin = k != best ? fmin(margin, p[best] - p[k]) : margin;
    }
    return margin;
}

static void check_probabilities(network_case *c, clnet_tensor *logits, const char *name, size_t K) {
    if (!logits) {
        return;
    }
    size_t count;
    double *expected = read_expected(c, name, &count), *found = read_tensor(logits, false),
           worst = 0;
    int different = 0;
    CHECK(expected && count == clnet_tensor_count(logits), "%s: %s", c->name, name);
    for (size_t i = 0; expected && i < count; i += K) {
        to_probabilities(expected + i, K, K);
        to_probabilities(found + i, K, K);
        for (size_t k = 0; k < K; k++) {
            const double error = fabs(found[i + k] - expected[i + k]);
            worst = error <= worst ? worst : error;
        }
        if (margin_of(expected + i, K) <= 1e-4) {
            c->close_calls++;
        } else {
            different += K == 1 ? (found[i] > 0.5) != (expected[i] > 0.5)
                                : best_of(found + i, K) != best_of(expected + i, K);
        }
    }
    CHECK(worst <= limit_of(5e-5, 1e-6), "%s, %s, %s: a probability is off by %.2e", c->name,
          c->path, name, worst);
    CHECK(different == 0, "%s, %s, %s: %d classes or pixels differ", c->name, c->path, name,
          different);
    c->worst_probability = fmax(c->worst_probability, worst);
    free(expected);
    free(found);
}

static void check_evaluation(network_case *c) {
    clnet_model *model = open_model(c, CLNET_INFER);
    if (model) {
        CHECK(clnet_graph_forward(model->graph) == CLNET_OK, "%s: %s", c->name,
              clnet_error(c->ctx));
        check_probabilities(c, model->logits, "logits", (size_t)c->desc.classes);
        check_probabilities(c, model->mask_logits, "mask_logits", 1);
    }
    clnet_model_destroy(model);
}

static void check_loss(const network_case *c, clnet_tensor *loss, const char *name) {
    if (loss) {
        const double found = clnet_tensor_item(loss);
        const double distance = distance_to(c, name, &found, 1);
        CHECK(distance <= limit_of(1e-5, 1e-6), "%s, %s: %s is %.9g, off by %.2e", c->name, c->path,
              name, found, distance);
    }
}

// Gradients of all parameters, running statistics of all batch norms.
static void check_weights(network_case *c, clnet_graph *g) {
    for (int i = 0; i < clnet_graph_weights(g); i++) {
        clnet_tensor *w = clnet_graph_weight(g, i);
        const bool trainable = clnet_tensor_trainable(w);
        char name[256];
        snprintf(name, sizeof name, "%s.%s", trainable ? "grad" : "running", clnet_tensor_name(w));
        double *found = read_tensor(w, trainable);
        const double distance = distance_to(c, name, found, clnet_tensor_count(w));
        CHECK(distance <= limit_of(trainable ? 1e-4 : 1e-5, 1e-6), "%s, %s: %s is off by %.2e",
              c->name, c->path, name, distance);
        c->worst_gradient = trainable ? fmax(c->worst_gradient, distance) : c->worst_gradient;
        free(found);
    }
}

static void check_training(network_case *c) {
    clnet_model *model = open_model(c, CLNET_TRAIN);
    if (!model) {
        return;
    }
    clnet_tensor_keep(model->logits);
    clnet_graph_zero_grad(model->graph);
    clnet_graph_forward(model->graph);
    check_loss(c, model->loss_classification, "loss.classification");
    check_loss(c, model->loss_focal, "loss.focal");
    check_loss(c, model->loss_dice, "loss.dice");
    check_probabilities(c, model->logits, "train.logits", (size_t)c->desc.classes);
    check_probabilities(c, model->mask_logits, "train.mask_logits", 1);
    CHECK(clnet_graph_backward(model->graph) == CLNET_OK, "%s: %s", c->name, clnet_error(c->ctx));
    check_weights(c, model->graph);
    clnet_model_destroy(model);
}

static void check_cam(const network_case *c, clnet_model *model, clnet_cam_variant variant,
                      int stage) {
    char name[64];
    clnet_file_tensor t;
    snprintf(name, sizeof name, "cam.%s.fm%d", clnet_cam_name(variant), stage);
    if (!clnet_tensor_file_find(c->expected, name, &t)) {
        return;
    }
    size_t labels;
    double *label = read_expected(c, "label", &labels);
    int *classes = malloc((labels + 1) * sizeof *classes);
    for (size_t i = 0; classes && i < labels; i++) {
        classes[i] = (int)label[i];
    }
    const size_t count = (size_t)(t.shape[0] * t.shape[1] * t.shape[2]);
    clnet_real *cam = malloc(count * sizeof *cam);
    double *found = malloc(count * sizeof *found);
    const clnet_result result = clnet_cam(model, variant, stage, classes, cam);
    CHECK(result == CLNET_OK, "%s, %s: %s", c->name, name, clnet_error(c->ctx));
    for (size_t i = 0; result == CLNET_OK && i < count; i++) {
        found[i] = (double)cam[i];
    }
    const double distance = result == CLNET_OK ? distance_to(c, name, found, count) : INFINITY;
    CHECK(distance <= limit_of(1e-4, 1e-6), "%s, %s: %s is off by %.2e", c->name, c->path, name,
          distance);
    free(label);
    free(classes);
    free(cam);
    free(found);
}

static void check_cams(network_case *c) {
    clnet_file_tensor t;
    if (!clnet_tensor_file_find(c->expected, "label", &t)) {
        return;
    }
    clnet_model *model = open_model(c, CLNET_EXPLAIN);
    if (model) {
        clnet_graph_forward(model->graph);
        for (int stage = 1; stage <= 5; stage++) {
            for (int variant = CLNET_CAM_PAPER; variant <= CLNET_CAM_GRADCAM_PP; variant++) {
                check_cam(c, model, (clnet_cam_variant)variant, stage);
            }
        }
    }
    clnet_model_destroy(model);
}

// After three steps: sum(p) and sum(p cos i), relative to the sum of the terms' sizes.
static void check_digests(const network_case *c, clnet_graph *g) {
    for (int i = 0; i < clnet_graph_weights(g); i++) {
        clnet_tensor *w = clnet_graph_weight(g, i);
        if (!clnet_tensor_trainable(w)) {
            continue;
        }
        char name[256];
        size_t two;
        snprintf(name, sizeof name, "adam3.%s", clnet_tensor_name(w));
        double *expected = read_expected(c, name, &two), *p = read_tensor(w, false), sum = 0,
               wave = 0, size = 0;
        CHECK(two == 2, "%s: %s", c->name, name);
        for (size_t k = 0; k < clnet_tensor_count(w); k++) {
            sum += p[k];
            wave += p[k] * cos((double)k);
            size += fabs(p[k]);
        }
        const double error =
            two == 2 ? fmax(fabs(sum - expected[0]), fabs(wave - expected[1])) / size : INFINITY;
        CHECK(error <= 1e-7, "%s: %s is off by %.2e", c->name, name, error);
        free(expected);
        free(p);
    }
}

static void check_adam(network_case *c) {
    clnet_model *model = open_model(c, CLNET_TRAIN);
    size_t steps;
    double *expected = read_expected(c, "adam.losses", &steps), worst = 0;
    CHECK(steps == 20, "%s: adam.losses", c->name);
    for (size_t t = 0; model && t < steps; t++) {
        CHECK(clnet_train_step(model->adam, 1e-3) == CLNET_OK, "%s: %s", c->name,
              clnet_error(c->ctx));
        const double error = fabs(clnet_tensor_item(model->loss) / expected[t] - 1);
        worst = error <= worst ? worst : error;
        if (t == 2) {
            check_digests(c, model->graph);
        }
    }
    CHECK(worst <= 1e-6, "%s: the loss of 20 steps is off by %.2e", c->name, worst);
    printf("%-18s 20 Adam steps: loss within %.1e\n", c->name, worst);
    free(expected);
    clnet_model_destroy(model);
}

static void check_case(const char *data, const char *name, clnet_context *ctx, const char *path) {
    network_case c;
    if (!open_case(&c, data, name, ctx, path)) {
        return;
    }
    check_evaluation(&c);
    check_training(&c);
    check_cams(&c);
    if (WIDE) {
        check_adam(&c);
    }
    printf("%-18s %-10s worst probability %.1e, worst gradient %.1e, %d too close to call\n", name,
           path, c.worst_probability, c.worst_gradient, c.close_calls);
    clnet_tensor_file_close(c.expected);
}

#ifdef WITH_DEVICES
static int check_device(const char *data, const char *device) {
    clnet_context *ctx = clnet_cl_context_create(&(clnet_cl_desc){.device = device});
    CHECK(clnet_context_result(ctx) == CLNET_OK, "%s", clnet_error(ctx));
    for (int i = 0; i < CASES && clnet_context_result(ctx) == CLNET_OK; i++) {
        check_case(data, cases[i], ctx, clnet_context_device(ctx));
    }
    clnet_context_destroy(ctx);
    return test_close();
}
#endif

// test_networks [DATA [DEVICE]]: on the CPU in all ways, or on that device.
int main(int argc, char **argv) {
    const char *data = argc > 1 ? argv[1] : "tests/data";
#ifdef WITH_DEVICES
    if (argc > 2) {
        return check_device(data, argv[2]);
    }
#endif
    for (int reference = 0; reference < 2 - WIDE; reference++) {
        clnet_context *ctx =
            clnet_context_create(&(clnet_context_desc){.reference = reference || WIDE});
        for (int i = 0; i < CASES; i++) {
            check_case(data, cases[i], ctx, WIDE ? "double" : clnet_context_isa(ctx));
        }
        clnet_context_destroy(ctx);
    }
    return test_close();
}
