// The OpenCL backend beyond its arithmetic (which clnet-verify checks): every kernel runs, a training
// step agrees with the CPU's and repeats bit by bit, whatever is wrong is said in one clear line, and
// every single call of OpenCL may fail.
//
//     cc -std=c99 -O2 -fopenmp -I. -Itests tests/test_cl.c -lm && ./a.out [--kernels FILE] [--step | --failures N] [--no-clblast]
//
//     --step        one training step of small images and nothing else: for Oclgrind, see
//                   tests/cl_oclgrind.sh, and for devices of all kinds, see tests/cl_limits.sh
//     --failures N  beside tests/cl_shim.c: every N-th call fails in turn, see tests/cl_failures.sh
#define _POSIX_C_SOURCE 200809L
#define CLNET_IMPLEMENTATION
#define CLNET_CL_IMPLEMENTATION
#define CLNET_CL_DYNAMIC
#include <unistd.h>

#include "../clnet_cl.h"

#include <pthread.h>

#include "test.h"

static const char *kernels = "kernels.cl";

static clnet_context *open_device(const char *device, bool blast) {
    return clnet_cl_context_create(&(clnet_cl_desc){.device = device,
                                                    .kernels = kernels,
                                                    .no_clblast = !blast,
                                                    .always_clblast = blast,
                                                    .base = {.profile = true}});
}

// A small network in which every operation has a place.
typedef struct network {
    clnet_graph *g;
    clnet_tensor *image, *flips, *label, *mask, *loss, *dropped;
    clnet_adam *adam;
} network;

enum { N = 3, STEPS = 4 };
static int H = 13, W = 23; // of the images; together more pixels than one slice of a sum has

static clnet_tensor *conv(clnet_graph *g, clnet_tensor *x, const char *name, int channels,
                          int kernel, int stride, int groups) {
    return clnet_conv2d(g, x,
                        &(clnet_conv2d_desc){.out_channels = channels,
                                             .kernel_size = {kernel, kernel},
                                             .stride = {stride, stride},
                                             .padding = {kernel / 2, kernel / 2},
                                             .groups = groups,
                                             .no_bias = groups > 1,
                                             .name = name});
}

static clnet_tensor *body(network *n) {
    clnet_graph *g = n->g;
    const clnet_flip_desc normalise = {{0.25, -0.5, 0.125}, {0.5, 2, 1}};
    clnet_tensor *x = conv(g, clnet_flip(g, n->image, n->flips, &normalise), "stem", 6, 3, 1, 1);
    x = clnet_relu(g, clnet_batch_norm(g, x, &(clnet_batch_norm_desc){.name = "bn"}));
    clnet_tensor *soft = clnet_softmax(g, conv(g, x, "soft", 3, 3, 1, 1), 1);
    clnet_tensor *most = clnet_max_pool2d(
        g, x, &(clnet_pool2d_desc){.kernel_size = {3, 3}, .stride = {2, 2}, .padding = {1, 1}});
    clnet_tensor *mean = clnet_avg_pool2d(
        g, x, &(clnet_pool2d_desc){.kernel_size = {3, 3}, .stride = {2, 2}, .padding = {1, 1}});
    x = clnet_add(g, most, conv(g, mean, "grouped", 6, 3, 1, 3));
    clnet_tensor *gate = clnet_sigmoid(g, conv(g, clnet_global_avg_pool(g, x), "gate", 6, 1, 1, 1));
    x = clnet_attention_residual(g, clnet_scale_channels(g, x, gate), x,
                                 &(clnet_attention_residual_desc){.alpha = 2, .name = "attention"});
    x = clnet_upsample_bilinear(g, x, H, W, false);
    clnet_tensor *const both[2] = {x, soft};
    return clnet_concat(g, both, 2);
}

static bool open_network(network *n, clnet_context *ctx, clnet_build_desc desc) {
    clnet_graph *g = n->g = clnet_graph_create(ctx);
    n->image = clnet_input(g, "image", N, 3, H, W);
    n->flips = clnet_input_labels(g, "flips", N);
    n->label = clnet_input_labels(g, "label", N);
    n->mask = clnet_input(g, "mask", N, 1, H, W);
    clnet_tensor *x = body(n);
    n->dropped = clnet_tensor_keep(clnet_dropout(g, clnet_global_avg_pool(g, x), 0.4));
    clnet_tensor *logits =
        clnet_linear(g, n->dropped, &(clnet_linear_desc){.out_features = 4, .name = "fc"});
    clnet_tensor *z = conv(g, x, "head", 1, 1, 1, 1);
    clnet_tensor *const losses[3] = {
        clnet_focal_loss(g, logits, n->label, &(clnet_focal_loss_desc){.gamma = 2}),
        clnet_mask_focal_loss(g, z, n->mask, 2), clnet_dice_loss(g, z, n->mask, 1)};
    n->loss = clnet_weighted_sum(g, losses, (const double[]){1, 2, 0.5}, 3);
    n->adam = clnet_adam_create(g, &(clnet_adam_desc){.weight_decay = 5e-4});
    desc.loss = n->loss;
    desc.seed = 5;
    return clnet_graph_build(g, &desc) == CLNET_OK;
}

enum { MOST = 4096 }; // numbers in one array

static void set_inputs(network *n) {
    static const int32_t labels[N] = {2, -1, 0}, flips[N] = {3, 1, 2};
    float image[MOST], mask[MOST];
    const size_t pixels = (size_t)H * (size_t)W;
    for (size_t i = 0; i < N * 3 * pixels; i++) {
        image[i] = (float)clnet_random_normal(1, 2, i);
    }
    for (size_t i = 0; i < N * pixels; i++) {
        mask[i] = i < pixels ? -1.0f : (float)(clnet_random_uniform(1, 3, i) < 0.4);
    }
    clnet_tensor_set(n->image, image, CLNET_ORDER_TORCH);
    clnet_tensor_set(n->flips, flips, CLNET_ORDER_TORCH);
    clnet_tensor_set(n->label, labels, CLNET_ORDER_TORCH);
    clnet_tensor_set(n->mask, mask, CLNET_ORDER_TORCH);
}

// All numbers of a kind behind each other: the values of the weights, or their gradients.
static size_t read_weights(const network *n, bool gradients, float *to) {
    size_t count = 0;
    for (int i = 0; i < clnet_graph_weights(n->g); i++) {
        clnet_tensor *w = clnet_graph_weight(n->g, i);
        if (!gradients || clnet_tensor_trainable(w)) {
            (gradients ? clnet_tensor_get_grad : clnet_tensor_get)(w, to + count,
                                                                   CLNET_ORDER_MEMORY);
            count += clnet_tensor_count(w);
        }
    }
    return count;
}

typedef struct outcome {
    double loss;
    float dropped[N * 9], gradients[MOST], weights[MOST];
    size_t gradient_count, weight_count;
} outcome;

// Training steps; loss and gradients are those of the first. false: the context says why.
static bool run_built(clnet_context *ctx, int steps, clnet_build_desc desc, outcome *o) {
    network n;
    *o = (outcome){.loss = NAN};
    if (open_network(&n, ctx, desc)) {
        set_inputs(&n);
        clnet_train_step(n.adam, 1e-3);
        o->loss = clnet_tensor_item(n.loss);
        clnet_tensor_get(n.dropped, o->dropped, CLNET_ORDER_MEMORY);
        o->gradient_count = read_weights(&n, true, o->gradients);
        for (int i = 1; i < steps; i++) {
            clnet_train_step(n.adam, 1e-3);
        }
        o->weight_count = read_weights(&n, false, o->weights);
    }
    clnet_graph_destroy(n.g);
    return clnet_context_result(ctx) == CLNET_OK;
}

static bool run_network(clnet_context *ctx, int steps, outcome *o) {
    return run_built(ctx, steps, (clnet_build_desc){0}, o);
}

static double relative_l2(const float *found, const float *expected, size_t count) {
    double error = 0, size = 0;
    for (size_t i = 0; i < count; i++) {
        const double d = (double)found[i] - (double)expected[i];
        error += d * d;
        size += (double)expected[i] * (double)expected[i];
    }
    return sqrt(error / size);
}

static void check_agreement(const outcome *found, const outcome *cpu, const char *path) {
    CHECK(fabs(found->loss / cpu->loss - 1) < 1e-6, "%s: loss %.9g, on the CPU %.9g", path,
          found->loss, cpu->loss);
    const double gradients = relative_l2(found->gradients, cpu->gradients, cpu->gradient_count);
    CHECK(gradients < 5e-5, "%s: gradients are off by %.2e", path, gradients);
    const double weights = relative_l2(found->weights, cpu->weights, cpu->weight_count);
    CHECK(weights < 2e-3, "%s: weights are off by %.2e", path, weights);
    int different = 0;
    for (int i = 0; i < N * 9; i++) {
        different += (found->dropped[i] == 0) != (cpu->dropped[i] == 0);
    }
    CHECK(different == 0, "%s: dropout differs at %d places", path, different);
}

// Counts the kernels that ran: rows of the profile that move no memory.
static int kernels_run(const clnet_context *ctx) {
    clnet_profile_row row;
    int count = 0;
    for (int i = 0; clnet_profile(ctx, i, &row); i++) {
        count += row.bytes == 0;
    }
    return count;
}

// The kernels that measure what a device can reach, on a few numbers: their own runs are long.
static void run_peaks(clnet_context *ctx) {
    enum { COUNT = 64 };
    const clnet__cl *cl = clnet__cl_of(ctx);
    clnet_memory slab = {NULL, 0};
    float y[2 * COUNT];
    CHECK(clnet__cl_alloc(ctx, &slab, sizeof y), "%s", clnet_error(ctx));
    const clnet__cl_place from = {slab.handle, 0}, to = {slab.handle, COUNT};
    clnet__cl_fill(ctx, &slab, 0, sizeof y);
    CLNET__CL_RUN(ctx, peak_multiply_add, clnet__cl_plane(cl, COUNT, 1), clnet__cl_at(from),
                  clnet__cl_float(0.5), clnet__cl_float(1), clnet__cl_int(3));
    CLNET__CL_RUN(ctx, peak_copy, clnet__cl_plane(cl, COUNT / 4, 1), clnet__cl_at(to),
                  clnet__cl_at(from));
    CHECK(clnet__cl_download(ctx, y, &slab, 0, sizeof y) == CLNET_OK &&
              !memcmp(y, y + COUNT, sizeof y / 2) && y[COUNT - 1] > 0,
          "%s", clnet_error(ctx));
    clnet__cl_free(ctx, &slab);
}

static void test_step(int steps, bool blast) {
    static outcome cpu, first, again;
    clnet_context *host = open_device("cpu", false), *ctx = open_device("opencl", blast);
    CHECK(run_network(host, steps, &cpu), "%s", clnet_error(host));
    if (steps == 1 && clnet_cl_context_device(ctx)) {
        printf("on %s, %s\n", clnet_cl_context_device(ctx)->name, clnet_cl_matrix_product(ctx));
        clnet__cl_of(ctx)->speed = 0; // launches are not cut: races between their groups are seen
    }
    CHECK(run_network(ctx, steps, &first), "%s", clnet_error(ctx));
    check_agreement(&first, &cpu, clnet_cl_matrix_product(ctx));
    if (steps > 1) {
        const clnet_build_desc builds[] = {{0}, {.keep_all = true}, {.no_accumulation = true}};
        for (int i = 0; i < 3; i++) { // two runs; and what shares memory otherwise
            CHECK(run_built(ctx, steps, builds[i], &again), "%s", clnet_error(ctx));
            CHECK(!memcmp(&first, &again, sizeof first), "%s: two runs differ, build %d",
                  clnet_cl_matrix_product(ctx), i);
        }
    }
    // A device convolves with three kernels of the six. Those of the other kind of matrix product are
    // not used: the four that gather for CLBlast, of which >>direct needs one; and where CLBlast is used
    // its row is one more, since grouped convolutions still need kernels.cl's. Two more only measure
    // what the device can reach: see run_peaks.
    const int gathering = clnet__cl_of(ctx)->tuning.direct ? 3 : 4;
    const int wanted = CLNET__CL_KERNEL_COUNT - 3 - (blast ? -1 : gathering) - 2;
    CHECK(kernels_run(ctx) == wanted, "%s: %d of %d kernels ran", clnet_cl_matrix_product(ctx),
          kernels_run(ctx), wanted);
    run_peaks(ctx);
    clnet_context_destroy(ctx);
    clnet_context_destroy(host);
}

// The same training step in two contexts of a device: one after the other while both live, then each
// in a thread of its own.
typedef struct worker {
    clnet_context *ctx;
    outcome found;
    bool done;
} worker;

static void *work(void *arg) {
    worker *w = arg;
    w->done = run_network(w->ctx, STEPS, &w->found);
    return NULL;
}

static void test_contexts(void) {
    static worker workers[2];
    static outcome expected;
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        workers[i].ctx = open_device("opencl", false);
        work(&workers[i]);
    }
    expected = workers[0].found;
    CHECK(workers[0].done && workers[1].done && expected.loss > 0, "%s, %s",
          clnet_error(workers[0].ctx), clnet_error(workers[1].ctx));
    CHECK(!memcmp(&expected, &workers[1].found, sizeof expected), "two contexts differ");
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_create(&threads[i], NULL, work, &workers[i]) == 0, "no thread");
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        CHECK(workers[i].done && !memcmp(&expected, &workers[i].found, sizeof expected),
              "thread %d beside another: %s", i, clnet_error(workers[i].ctx));
        clnet_context_destroy(workers[i].ctx);
    }
}

// What is wrong from the start is said, and stays so.
static void check_refusal(const char *device, const char *path, clnet_result result,
                          const char *says) {
    clnet_context *ctx = clnet_cl_context_create(
        &(clnet_cl_desc){.device = device, .kernels = path, .no_clblast = true});
    CHECK(clnet_context_result(ctx) == result, "%s, %s: result %d, %s", device, path,
          clnet_context_result(ctx), clnet_error(ctx));
    CHECK(strstr(clnet_error(ctx), says), "%s, %s: \"%s\" does not say \"%s\"", device, path,
          clnet_error(ctx), says);
    clnet_context_clear(ctx);
    network n;
    CHECK(!open_network(&n, ctx, (clnet_build_desc){0}), "%s, %s: a graph was built", device, path);
    clnet_graph_destroy(n.g);
    clnet_context_destroy(ctx);
}

// The line of kernels.cl on which a text stands.
static int line_of(const char *wanted) {
    char text[1024];
    FILE *in = fopen(kernels, "rb");
    int line = 0;
    for (bool found = false; in && !found && fgets(text, sizeof text, in); line++) {
        found = strstr(text, wanted);
    }
    if (in) {
        fclose(in);
    }
    return line;
}

// Kernels with an error near their beginning and one at their end: the whole log is told, with the
// lines of both, and in which compiler's words.
static void check_log(const char *path, const char *first, const char *last) {
    clnet_context *ctx = clnet_cl_context_create(
        &(clnet_cl_desc){.device = "opencl", .kernels = path, .no_clblast = true});
    const clnet_cl_device *d = clnet_cl_context_device(ctx);
    const char *error = clnet_error(ctx), *const places[2] = {first, last};
    CHECK(clnet_context_result(ctx) == CLNET_ERROR_DEVICE && d, "%s", error);
    const char *const words[] = {"clBuildProgram: CL_BUILD_PROGRAM_FAILURE (-11)",
                                 "\noptions: -cl-std=CL1.2",
                                 "\nlog:\n",
                                 d ? d->id : "",
                                 d ? d->name : "",
                                 d ? d->driver : "",
                                 d ? d->version : ""};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        CHECK(strstr(error, words[i]), "\"%s\" is not in: %s", words[i], error);
    }
    for (int i = 0; i < 2; i++) {
        char line[32];
        snprintf(line, sizeof line, ":%d:", line_of(places[i]));
        CHECK(strstr(error, line), "line %s is not in: %s", line, error);
    }
    clnet_context_destroy(ctx);
}

// Copies a file with one text replaced by another; both may be the same file.
static bool spoil(const char *from_path, const char *to_path, const char *from, const char *to) {
    char *text = calloc(1, 1 << 20);
    FILE *file = fopen(from_path, "rb");
    bool done = file && text && fread(text, 1, (1 << 20) - 1, file) > 0;
    if (file) {
        fclose(file);
    }
    char *at = done ? strstr(text, from) : NULL;
    file = at ? fopen(to_path, "wb") : NULL;
    if (file) {
        fprintf(file, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
        done = fclose(file) == 0;
    }
    free(text);
    return done && file;
}

static void test_refusals(void) {
    char path[] = "/tmp/clnet_kernels_XXXXXX";
    const int file = mkstemp(path);
    check_refusal("opencl:77.0", kernels, CLNET_ERROR_ARGUMENT, "opencl:77.0");
    check_refusal("vulkan", kernels, CLNET_ERROR_ARGUMENT, "vulkan");
    check_refusal("opencl", "/no/such/kernels.cl", CLNET_ERROR_FILE, "/no/such/kernels.cl");
    CHECK(file >= 0 &&
              spoil(kernels, path, "kernel void relu_forward(", "kernel void relu_forward_not("),
          "%s", path);
    check_refusal("opencl", path, CLNET_ERROR_DEVICE,
                  "clCreateKernel(relu_forward): CL_INVALID_KERNEL_NAME (-46)");
    const char *const early = "kernel void relu_forward(", *const late = "kernel void adam_step(";
    CHECK(spoil(kernels, path, early, "kernel void relu_forward(wrong one, ") &&
              spoil(path, path, late, "kernel void adam_step(wrong two, "),
          "%s", path);
    check_log(path, early, late);
    check_refusal("opencl", path, CLNET_ERROR_DEVICE, "clBuildProgram: CL_BUILD_PROGRAM_FAILURE");
    remove(path);
}

// A batch that does not fit is refused with the figures, and nothing is taken.
static void test_memory(void) {
    clnet_context *ctx = open_device("opencl", false);
    clnet_graph *g = clnet_graph_create(ctx);
    clnet_relu(g, clnet_relu(g, clnet_input(g, "x", 1 << 12, 64, 256, 256)));
    CHECK(clnet_graph_build(g, NULL) == CLNET_ERROR_MEMORY, "result %d", clnet_context_result(ctx));
    CHECK(strstr(clnet_error(ctx), "a batch of 4096 needs") &&
              strstr(clnet_error(ctx), "room for a batch of"),
          "%s", clnet_error(ctx));
    CHECK(clnet__cl_of(ctx)->used == 0, "%llu bytes were taken",
          (unsigned long long)clnet__cl_of(ctx)->used);
    clnet_graph_destroy(g);
    clnet_context_clear(ctx);
    outcome o;
    CHECK(run_network(ctx, 1, &o), "after a refusal: %s", clnet_error(ctx));
    clnet_context_destroy(ctx);
}

// In pieces of 128 KiB the same network computes the same bits.
static void test_pieces(void) {
    static outcome whole, pieces;
    for (int i = 0; i < 2; i++) {
        clnet_context *ctx = clnet_cl_context_create(
            &(clnet_cl_desc){.device = "opencl",
                             .kernels = kernels,
                             .no_clblast = true,
                             .base = {.largest_allocation = i ? 1 << 17 : 0}});
        CHECK(run_network(ctx, STEPS, i ? &pieces : &whole), "%s", clnet_error(ctx));
        clnet_context_destroy(ctx);
    }
    CHECK(!memcmp(&whole, &pieces, sizeof whole), "memory in pieces changes results");
}

// The longest launch of a training step, in seconds. And next to nothing returns to the host.
static double longest_launch(double width, int size, int batch) {
    clnet_context *ctx = open_device("opencl", false);
    clnet_model *m = clnet_model_create(
        ctx, &(clnet_model_desc){
                 .width = width, .size = {size, size}, .batch = batch, .purpose = CLNET_TRAIN});
    clnet_profile_row row;
    int ran = 0;
    double longest = 0;
    CHECK(m && clnet_train_step(m->adam, 1e-4) == CLNET_OK, "%s", clnet_error(ctx));
    for (int i = 0; clnet_profile(ctx, i, &row); i++) {
        longest = row.longest > longest ? row.longest : longest;
        ran += row.bytes == 0;
        // The loss and the sums of the gradients' squares come back, and nothing as large as a batch.
        CHECK(strcmp(row.name, "download") || row.bytes < 1e5, "%g bytes came back", row.bytes);
    }
    CHECK(ran > 20, "%d kernels ran", ran);
    clnet_model_destroy(m);
    clnet_context_destroy(ctx);
    return longest;
}

// No launch takes longer than 250 ms, at the size of `make demo` and at a larger one: a display's
// driver would reset the device after a few seconds. PoCL shares its processors with all that runs on
// the machine, so that one of three steps has to show it.
static void check_launches(double width, int size, int batch) {
    double shortest = INFINITY;
    for (int i = 0; i < 3 && !(shortest < 0.25); i++) {
        shortest = fmin(shortest, longest_launch(width, size, batch));
    }
    CHECK(shortest < 0.25, "a launch took %.0f ms", 1e3 * shortest);
    printf("longest launch at width %g, %d x %d, batch %d: %.0f ms\n", width, size, size, batch,
           1e3 * shortest);
}

// A device so slow that every grid is cut into launches of single groups computes the same bits.
static void check_cuts(void) {
    static outcome whole, cut;
    clnet_context *ctx = open_device("opencl", false);
    CHECK(run_network(ctx, 1, &whole), "%s", clnet_error(ctx));
    clnet__cl_of(ctx)->speed = 1;
    CHECK(run_network(ctx, 1, &cut), "%s", clnet_error(ctx));
    CHECK(!memcmp(&whole, &cut, sizeof whole), "cut launches compute something else");
    clnet_context_destroy(ctx);
}

static void test_launches(void) {
    check_cuts();
    check_launches(1.0 / 8, 64, 8);
    check_launches(1.0 / 4, 96, 4);
}

// A slab of nothing, and one that is larger than what the device promises to give: each is given or
// refused with the figures, and the context goes on.
static void test_slabs(void) {
    clnet_context *ctx = open_device("opencl", false);
    const clnet__cl *cl = clnet__cl_of(ctx);
    const size_t sizes[] = {0, (size_t)cl->info.largest_allocation + 1,
                            (size_t)cl->info.memory + 1};
    for (int i = 0; i < 3; i++) {
        clnet_memory memory = {NULL, 0};
        if (clnet__cl_alloc(ctx, &memory, sizes[i])) {
            CHECK(i < 2, "%zu bytes were given", sizes[i]);
            clnet__cl_free(ctx, &memory);
        } else {
            char needed[64], there[64];
            snprintf(needed, sizeof needed, "%zu bytes are needed", sizes[i]);
            snprintf(there, sizeof there, "the device has %llu",
                     (unsigned long long)cl->info.memory);
            CHECK(clnet_context_result(ctx) == CLNET_ERROR_MEMORY &&
                      strstr(clnet_error(ctx), needed) && strstr(clnet_error(ctx), there),
                  "%zu bytes: %s", sizes[i], clnet_error(ctx));
            clnet_context_clear(ctx);
        }
        CHECK(cl->used == 0 && !cl->dead, "%zu bytes: %llu are in use", sizes[i],
              (unsigned long long)cl->used);
    }
    outcome o;
    CHECK(run_network(ctx, 1, &o), "afterwards: %s", clnet_error(ctx));
    clnet_context_destroy(ctx);
}

// A graph without weights.
static void test_weightless(void) {
    clnet_context *ctx = open_device("opencl", false);
    clnet_graph *g = clnet_graph_create(ctx);
    clnet_tensor *x = clnet_input(g, "x", 1, 1, 2, 2);
    clnet_tensor *y = clnet_tensor_keep(clnet_relu(g, x));
    float values[4] = {1, -2, 3, -4};
    CHECK(clnet_graph_build(g, NULL) == CLNET_OK, "%s", clnet_error(ctx));
    clnet_tensor_set(x, values, CLNET_ORDER_TORCH);
    clnet_graph_forward(g);
    CHECK(clnet_tensor_get(y, values, CLNET_ORDER_TORCH) == CLNET_OK, "%s", clnet_error(ctx));
    CHECK(values[0] + values[1] + values[2] + values[3] == 4, "%g", (double)values[0]);
    clnet_graph_destroy(g);
    clnet_context_destroy(ctx);
}

// Finite gradients whose squares are not finite in float32 are finite; NaN is not.
static void test_squares(void) {
    clnet_context *ctx = open_device("opencl", false);
    const float values[2][5] = {{1e30f, -2, 3e-30f, 1e20f, 0}, {1, 2, NAN, 4, 5}};
    clnet_memory memory = {NULL, 0};
    double sum = 0;
    CHECK(clnet__cl_alloc(ctx, &memory, sizeof *values), "%s", clnet_error(ctx));
    clnet__cl_upload(ctx, &memory, 0, values[0], sizeof *values);
    CHECK(clnet__cl_sum_of_squares(ctx, &memory, 5, &sum) == CLNET_OK &&
              fabs(sum / 1e60 - 1) < 1e-6,
          "%g", sum);
    clnet__cl_upload(ctx, &memory, 0, values[1], sizeof *values);
    CHECK(clnet__cl_sum_of_squares(ctx, &memory, 5, &sum) == CLNET_OK && isnan(sum), "%g", sum);
    clnet__cl_free(ctx, &memory);
    clnet_context_destroy(ctx);
}

// A clock by which everything takes 30 ms.
static double slow_clock(void) {
    static int calls;
    return 0.03 * calls++;
}

static void test_peak(void) {
    clnet_context *host = open_device("cpu", false), *ctx = open_device("opencl", false);
    clnet_cl_peak peak;
    CHECK(clnet_cl_measure_peak(ctx, slow_clock, &peak) == CLNET_OK, "%s", clnet_error(ctx));
    CHECK(kernels_run(ctx) == 2, "%d kernels ran", kernels_run(ctx));
    CHECK(peak.flops > 0 && peak.bytes > 0, "%g operations, %g bytes per second", peak.flops,
          peak.bytes);
    CHECK(clnet_cl_measure_peak(host, slow_clock, &peak) == CLNET_ERROR_ARGUMENT, "%s",
          clnet_error(host));
    clnet_context_destroy(ctx);
    clnet_context_destroy(host);
}

static void test_devices(void) {
    clnet_cl_device d[8];
    const int count = clnet_cl_devices(d, 8);
    CHECK(count >= 1 && clnet_cl_has_opencl(), "%d devices", count);
    for (int i = 0; i < count && i < 8; i++) {
        CHECK(!strncmp(d[i].id, "opencl:", 7) && *d[i].name && d[i].memory > 0 &&
                  d[i].largest_allocation > 0 && d[i].local_memory > 0 && d[i].compute_units > 0 &&
                  d[i].largest_group > 0,
              "%s: %s", d[i].id, d[i].name);
    }
}

// The counters of tests/cl_shim.c.
typedef struct shim {
    void (*fail)(long n);
    long (*calls)(void), (*alive)(void);
    const char *(*name)(void);
} shim;

static bool open_shim(shim *s) {
    void *library = dlopen("libOpenCL.so.1", RTLD_NOW);
    return clnet__cl_symbol(library, "cl_shim_fail", &s->fail) &&
           clnet__cl_symbol(library, "cl_shim_calls", &s->calls) &&
           clnet__cl_symbol(library, "cl_shim_alive", &s->alive) &&
           clnet__cl_symbol(library, "cl_shim_name", &s->name);
}

// What the host has of a training: the weights before and after its step, as far as they could be
// read, and how many times they were written to the file.
typedef struct record {
    float weights[2][MOST];
    size_t count;
    int read, written;
} record;

static clnet_result fill_weights(void *user, void *bytes) {
    const network *n = user;
    read_weights(n, false, bytes);
    return clnet_context_result(clnet_graph_context(n->g));
}

// Reads the weights, and writes them to the file as a checkpoint does: from the device, one by one.
static bool keep_weights(network *n, const char *path, record *r) {
    clnet_context *ctx = clnet_graph_context(n->g);
    static float weights[MOST];
    const size_t count = read_weights(n, false, weights);
    if (clnet_context_result(ctx) != CLNET_OK) {
        return false;
    }
    memcpy(r->weights[r->read++], weights, sizeof weights);
    r->count = count;
    const clnet_file_item item = {
        .name = "weights", .rank = 1, .shape = {count}, .fill = fill_weights, .user = n};
    if (clnet_safetensors_write(ctx, path, &item, 1, NULL, 0) != CLNET_OK) {
        return false;
    }
    r->written++;
    return true;
}

// A training of one step. false: the context says why.
static bool train_once(clnet_context *ctx, const char *path, record *r) {
    network n;
    memset(r, 0, sizeof *r);
    if (open_network(&n, ctx, (clnet_build_desc){0})) {
        set_inputs(&n);
        if (keep_weights(&n, path, r) && clnet_train_step(n.adam, 1e-3) == CLNET_OK &&
            isfinite(clnet_tensor_item(n.loss))) {
            keep_weights(&n, path, r);
        }
    }
    clnet_graph_destroy(n.g);
    return clnet_context_result(ctx) == CLNET_OK;
}

// Whether the file, read on the CPU, holds these weights.
static bool file_holds(const char *path, const float *weights, size_t count) {
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_tensor_file *file = clnet_tensor_file_open(ctx, path);
    clnet_file_tensor t;
    static float found[MOST];
    const bool same = clnet_tensor_file_find(file, "weights", &t) &&
                      t.bytes == count * sizeof *found && count <= MOST &&
                      clnet_tensor_file_read(file, &t, found) == CLNET_OK &&
                      !memcmp(found, weights, count * sizeof *found);
    clnet_tensor_file_close(file);
    clnet_context_destroy(ctx);
    return same;
}

// Memory of the host that contexts have taken and not given back.
static long blocks;
static void *count_alloc(void *user, size_t bytes) {
    (void)user;
    void *block = malloc(bytes);
    blocks += block != NULL;
    return block;
}
static void count_free(void *user, void *block) {
    (void)user;
    blocks -= block != NULL;
    free(block);
}

// Launches are not cut by the speed that was measured: then there are as many calls each time.
static clnet_context *open_counted(const char *path) {
    clnet_context *ctx = clnet_cl_context_create(
        &(clnet_cl_desc){.device = "opencl",
                         .kernels = path,
                         .no_clblast = true,
                         .base = {.profile = true, .allocator = {count_alloc, count_free, NULL}}});
    if (clnet_context_result(ctx) == CLNET_OK) {
        clnet__cl_of(ctx)->speed = 0;
    }
    return ctx;
}

// Only the end of a context has nobody left to tell.
static bool is_ending(const char *call) {
    const char *const calls[] = {"clFinish", "clReleaseKernel", "clReleaseProgram",
                                 "clReleaseCommandQueue", "clReleaseContext"};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        if (!strcmp(call, calls[i])) {
            return true;
        }
    }
    return false;
}

// What failed is said, the context is dead, and nothing of it is left behind. Nothing fails where the
// life ended before call n: a device that stutters while its speed is measured is measured in fewer
// calls.
static void check_death(const shim *s, clnet_context *ctx, bool done, long n, const char *path) {
    static record again;
    const char *name = s->name();
    if (!done) {
        CHECK(clnet_context_result(ctx) == CLNET_ERROR_DEVICE && strstr(clnet_error(ctx), name),
              "call %ld, %s: %s", n, name, clnet_error(ctx));
        clnet_context_clear(ctx);
        CHECK(!train_once(ctx, path, &again) && again.read == 0,
              "call %ld, %s: the context lives on", n, name);
        CHECK(clnet_context_result(ctx) == CLNET_ERROR_DEVICE && strstr(clnet_error(ctx), name),
              "call %ld, %s, the second time: %s", n, name, clnet_error(ctx));
    }
    clnet_context_destroy(ctx);
    CHECK(!done || is_ending(name) || s->calls() < n, "call %ld, %s: nothing was said", n, name);
    CHECK(s->alive() == 0, "call %ld, %s: %ld objects are left", n, name, s->alive());
    CHECK(blocks == 0, "call %ld, %s: %ld blocks of memory are left", n, name, blocks);
    s->fail(-1);
}

// Call number n fails in the life of a context in which a network makes a training step. What the
// host had before is as it was without the failure, in its memory and in the file.
static void fail_call(const shim *s, long n, const char *path, const record *whole) {
    static record r;
    remove(path);
    s->fail(n);
    clnet_context *ctx = open_counted(kernels);
    const bool done = train_once(ctx, path, &r);
    check_death(s, ctx, done, n, path);
    for (int i = 0; i < r.read; i++) {
        CHECK(!memcmp(r.weights[i], whole->weights[i], sizeof r.weights[i]),
              "call %ld: the weights read %s the step are others", n, i ? "after" : "before");
    }
    CHECK(r.written == 0 || file_holds(path, whole->weights[r.written - 1], whole->count),
          "call %ld: the file is not what was written last", n);
}

// The same where the kernels do not compile, and the log is asked for.
static void fail_build(const shim *s, long n, const char *path) {
    s->fail(n);
    clnet_context *ctx = open_counted(path);
    CHECK(clnet_context_result(ctx) == CLNET_ERROR_DEVICE &&
              (strstr(clnet_error(ctx), s->name()) || strstr(clnet_error(ctx), "clBuildProgram")),
          "call %ld, %s: %s", n, s->name(), clnet_error(ctx));
    clnet_context_destroy(ctx);
    s->fail(-1);
    CHECK(s->alive() == 0 && blocks == 0, "call %ld: %ld objects, %ld blocks are left", n,
          s->alive(), blocks);
}

static void test_broken_builds(const shim *s, long step) {
    char path[] = "/tmp/clnet_kernels_XXXXXX";
    const int file = mkstemp(path);
    CHECK(file >= 0 && spoil(kernels, path, "kernel void relu_forward(", "kernel int relu("), "%s",
          path);
    s->fail(-1);
    clnet_context_destroy(open_counted(path));
    const long calls = s->calls();
    for (long n = 1; n <= calls; n += step) {
        fail_build(s, n, path);
    }
    close(file);
    remove(path);
}

static void test_failures(long step) {
    char path[] = "/tmp/clnet_weights_XXXXXX";
    static record whole;
    shim s;
    if (!open_shim(&s)) {
        SKIP("libOpenCL.so.1 is not tests/cl_shim.c");
        return;
    }
    const int file = mkstemp(path);
    s.fail(-1);
    clnet_context *ctx = open_counted(kernels);
    CHECK(train_once(ctx, path, &whole), "%s", clnet_error(ctx));
    clnet_context_destroy(ctx);
    CHECK(whole.written == 2 && file_holds(path, whole.weights[1], whole.count) &&
              memcmp(whole.weights[0], whole.weights[1], sizeof whole.weights[0]) != 0,
          "the step changed nothing, or the file is not its result");
    const long calls = s.calls();
    for (long n = 1; n <= calls; n += step) {
        fail_call(&s, n, path, &whole);
    }
    test_broken_builds(&s, step);
    close(file);
    remove(path);
    printf("%ld calls, every %ld of them failed in turn\n", calls, step);
}

int main(int argc, char **argv) {
    const char *mode = "";
    long every = 1;
    bool blast = clnet_cl_has_clblast();
    for (int i = 1; i < argc; i++) {
        const bool more = i + 1 < argc;
        if (!strcmp(argv[i], "--kernels") && more) {
            kernels = argv[++i];
        } else if (!strcmp(argv[i], "--failures") && more) {
            mode = argv[i];
            every = atol(argv[++i]) > 0 ? atol(argv[i]) : 1;
        } else if (!strcmp(argv[i], "--no-clblast")) {
            blast = false;
        } else {
            mode = argv[i];
        }
    }
    if (clnet_cl_devices(NULL, 0) == 0) {
        SKIP("no OpenCL device");
        return test_close();
    }
    if (!strcmp(mode, "--failures")) {
        test_failures(every);
        return test_close();
    }
    const bool small = !strcmp(mode, "--step");
    const int steps = small ? 1 : STEPS;
    if (small) {
        H = 7, W = 5;
    }
    test_step(steps, false);
    if (blast) {
        test_step(steps, true);
    } else {
        SKIP("CLBlast");
    }
    if (!small) {
        test_contexts();
        test_devices();
        test_refusals();
        test_memory();
        test_pieces();
        test_launches();
        test_slabs();
        test_weightless();
        test_squares();
        test_peak();
    }
    return test_close();
}
