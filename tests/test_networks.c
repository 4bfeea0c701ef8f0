// Whole networks against PyTorch: tests/data/net_CASE.{weights,expected}.safetensors, made by
// tests/data/make_networks.py, which also says how they are conditioned.
//
// Compiled twice: in float on all paths, and with CLNET_REAL=double for Adam's steps as well.
//
// The files hold results of double precision. The limits are those of the verification's network rows
// against such: probabilities 1e-5, gradients 2e-5 in relative L2, on a device 2e-5 and 5e-5; in double
// what is left of rounding the results to float.
#ifdef CLNET_REAL // double: no device has it
#include "../clnet.h"
#else
#define WITH_DEVICES
#include "../clnet_cl.h"
#endif

#include "network_case.h"
#include "test.h"

#define WIDE (sizeof(clnet_real) == sizeof(double))

// A case on the path that computes it, and how far off that was.
typedef struct path_case {
    network_case c;
    const char *name, *path;
    clnet_context *ctx;
    double worst_gradient, worst_probability;
    int close_calls; // classes and pixels too near to a tie to be compared
} path_case;

static double limit_of(const path_case *c, double cpu, double device) {
    return WIDE ? 1e-6 : !strncmp(c->path, "opencl", 6) ? device : cpu;
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

static size_t greatest_divisor(size_t a, size_t b) { return b ? greatest_divisor(b, a % b) : a; }

// Keeps of a result what the cases' files hold, at most 2048 numbers: every s-th, with the smallest s
// that has no divisor in common with the count. Returns how many those are.
static size_t thinned(double *values, size_t count) {
    size_t step = 1, kept = 0;
    while (count > 2048 && (count > step * 2048 || greatest_divisor(step, count) > 1)) {
        step++;
    }
    for (size_t i = 0; i < count; i += step) {
        values[kept++] = values[i];
    }
    return kept;
}

// Compares numbers found, of which it leaves those that the file has, with a tensor of the file; returns
// the relative L2 distance.
static double distance_to(const path_case *c, const char *name, double *found, size_t count) {
    size_t wanted;
    double *expected = network_case_read(&c->c, name, &wanted);
    count = thinned(found, count);
    CHECK(expected && wanted == count, "%s, %s: %zu numbers in the file, %zu here", c->name, name,
          wanted, count);
    const double distance =
        expected && wanted == count ? relative_l2(found, expected, count) : INFINITY;
    free(expected);
    return distance;
}

static clnet_model *open_model(path_case *c, clnet_purpose purpose) {
    clnet_model *model = network_case_model(&c->c, c->ctx, purpose);
    CHECK(model, "%s: %s", c->name, clnet_error(c->ctx));
    if (!model) {
        clnet_context_clear(c->ctx);
    }
    return model;
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

static void check_probabilities(path_case *c, clnet_tensor *logits, const char *name, size_t K) {
    if (!logits) {
        return;
    }
    size_t count;
    double *expected = network_case_read(&c->c, name, &count), *found = read_tensor(logits, false),
           worst = 0;
    int different = 0;
    CHECK(expected && count == thinned(found, clnet_tensor_count(logits)), "%s: %s",
          c->name, name);
    for (size_t i = 0; expected && i < count; i += K) {
        to_probabilities(expected + i, K, K);
        to_probabilities(found + i, K, K);
        for (size_t k = 0; k < K; k++) {
            const double error = fabs(found[i + k] - expected[i + k]);
            worst = worse_of(worst, error);
        }
        if (margin_of(expected + i, K) <= 1e-4) {
            c->close_calls++;
        } else {
            different += K == 1 ? (found[i] > 0.5) != (expected[i] > 0.5)
                                : best_of(found + i, K) != best_of(expected + i, K);
        }
    }
    CHECK(worst <= limit_of(c, 1e-5, 2e-5), "%s, %s, %s: a probability is off by %.2e", c->name,
          c->path, name, worst);
    CHECK(different == 0, "%s, %s, %s: %d classes or pixels differ", c->name, c->path, name,
          different);
    c->worst_probability = fmax(c->worst_probability, worst);
    free(expected);
    free(found);
}

static void check_evaluation(path_case *c) {
    clnet_model *model = open_model(c, CLNET_INFER);
    if (model) {
        CHECK(clnet_graph_forward(model->graph) == CLNET_OK, "%s: %s", c->name,
              clnet_error(c->ctx));
        check_probabilities(c, model->logits, "logits", (size_t)c->c.desc.classes);
        check_probabilities(c, model->mask_logits, "mask_logits", 1);
    }
    clnet_model_destroy(model);
}

static void check_loss(const path_case *c, clnet_tensor *loss, const char *name) {
    if (loss) {
        double found = clnet_tensor_item(loss);
        const double distance = distance_to(c, name, &found, 1);
        CHECK(distance <= limit_of(c, 1e-5, 1e-5), "%s, %s: %s is %.9g, off by %.2e", c->name,
              c->path, name, found, distance);
    }
}

// Gradients of all parameters, running statistics of all batch norms.
static void check_weights(path_case *c, clnet_graph *g) {
    for (int i = 0; i < clnet_graph_weights(g); i++) {
        clnet_tensor *w = clnet_graph_weight(g, i);
        const bool trainable = clnet_tensor_trainable(w);
        char name[256];
        snprintf(name, sizeof name, "%s.%s", trainable ? "grad" : "running", clnet_tensor_name(w));
        double *found = read_tensor(w, trainable);
        const double distance = distance_to(c, name, found, clnet_tensor_count(w));
        CHECK(distance <= limit_of(c, trainable ? 2e-5 : 1e-5, trainable ? 5e-5 : 1e-5),
              "%s, %s: %s is off by %.2e", c->name, c->path, name, distance);
        c->worst_gradient = trainable ? fmax(c->worst_gradient, distance) : c->worst_gradient;
        free(found);
    }
}

static void check_training(path_case *c) {
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
    check_probabilities(c, model->logits, "train.logits", (size_t)c->c.desc.classes);
    check_probabilities(c, model->mask_logits, "train.mask_logits", 1);
    CHECK(clnet_graph_backward(model->graph) == CLNET_OK, "%s: %s", c->name, clnet_error(c->ctx));
    check_weights(c, model->graph);
    clnet_model_destroy(model);
}

static void check_cam(const path_case *c, clnet_model *model, clnet_cam_variant variant,
                      int stage) {
    char name[64];
    snprintf(name, sizeof name, "cam.%s.fm%d", clnet_cam_name(variant), stage);
    size_t labels;
    double *label = network_case_read(&c->c, "label", &labels);
    int *classes = malloc((labels + 1) * sizeof *classes);
    for (size_t i = 0; classes && i < labels; i++) {
        classes[i] = (int)label[i];
    }
    const clnet_tensor *map = model->stage[stage - 1];
    const size_t count = clnet_tensor_count(map) / (size_t)clnet_tensor_size(map, 1);
    clnet_real *cam = malloc(count * sizeof *cam);
    double *found = malloc(count * sizeof *found);
    const clnet_result result = clnet_cam(model, variant, stage, classes, cam);
    CHECK(result == CLNET_OK, "%s, %s: %s", c->name, name, clnet_error(c->ctx));
    for (size_t i = 0; result == CLNET_OK && i < count; i++) {
        found[i] = (double)cam[i];
    }
    const double distance = result == CLNET_OK ? distance_to(c, name, found, count) : INFINITY;
    CHECK(distance <= limit_of(c, 2e-5, 5e-5), "%s, %s: %s is off by %.2e", c->name, c->path, name,
          distance);
    free(label);
    free(classes);
    free(cam);
    free(found);
}

static void check_cams(path_case *c) {
    clnet_file_tensor t;
    if (!clnet_tensor_file_find(c->c.expected, "label", &t)) {
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
static void check_digests(const path_case *c, clnet_graph *g) {
    for (int i = 0; i < clnet_graph_weights(g); i++) {
        clnet_tensor *w = clnet_graph_weight(g, i);
        if (!clnet_tensor_trainable(w)) {
            continue;
        }
        char name[256];
        size_t two;
        snprintf(name, sizeof name, "adam3.%s", clnet_tensor_name(w));
        double *expected = network_case_read(&c->c, name, &two), *p = read_tensor(w, false),
               sum = 0, wave = 0, size = 0;
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

static void check_adam(path_case *c) {
    clnet_model *model = open_model(c, CLNET_TRAIN);
    size_t steps;
    double *expected = network_case_read(&c->c, "adam.losses", &steps), worst = 0;
    CHECK(steps == 20, "%s: adam.losses", c->name);
    for (size_t t = 0; model && t < steps; t++) {
        CHECK(clnet_train_step(model->adam, 1e-3) == CLNET_OK, "%s: %s", c->name,
              clnet_error(c->ctx));
        const double error = fabs(clnet_tensor_item(model->loss) / expected[t] - 1);
        worst = worse_of(worst, error);
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
    path_case c = {.name = name, .path = path, .ctx = ctx};
    const bool open = network_case_open(&c.c, ctx, data, name);
    CHECK(open, "%s: %s", name, clnet_error(ctx));
    if (!open) {
        clnet_context_clear(ctx);
        network_case_close(&c.c);
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
    network_case_close(&c.c);
}

#ifdef WITH_DEVICES
static int check_device(const char *data, const char *device) {
    clnet_context *ctx = clnet_cl_context_create(&(clnet_cl_desc){.device = device});
    CHECK(clnet_context_result(ctx) == CLNET_OK, "%s", clnet_error(ctx));
    for (int i = 0; i < NETWORK_CASES && clnet_context_result(ctx) == CLNET_OK; i++) {
        check_case(data, network_cases[i], ctx, clnet_context_device(ctx));
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
    static const char *const paths[] = {"default", "direct", "reference"};
    for (int path = WIDE ? 2 : 0; path < 3; path++) {
        clnet_context *ctx = clnet_context_create(
            &(clnet_context_desc){.no_winograd = path == 1, .reference = path == 2});
        for (int i = 0; i < NETWORK_CASES; i++) {
            check_case(data, network_cases[i], ctx, WIDE ? "double" : paths[path]);
        }
        clnet_context_destroy(ctx);
    }
    return test_close();
}
