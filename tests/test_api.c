// The contract of clnet.h beside its arithmetic: errors, memory, batches, threads, files of weights.
#define _POSIX_C_SOURCE 200809L
#include "../clnet.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <pthread.h>
#include <unistd.h>

#include "test.h"

// An allocator that counts, and fails at the n-th call.
typedef struct counter {
    long live, calls, fail_at; // 0: never
} counter;

static void *counted_alloc(void *user, size_t bytes) {
    counter *c = user;
    void *memory = ++c->calls == c->fail_at ? NULL : malloc(bytes);
    c->live += memory != NULL;
    return memory;
}

static void counted_free(void *user, void *memory) {
    ((counter *)user)->live -= memory != NULL;
    free(memory);
}

static clnet_context *counted_context(counter *c) {
    return clnet_context_create(
        &(clnet_context_desc){.threads = 1, .allocator = {counted_alloc, counted_free, c}});
}

static bool contains(const char *text, const char *part) { return strstr(text, part) != NULL; }

// Numbers that depend on `seed` alone, mean 0 and variance 1.
static void fill(clnet_tensor *t, uint64_t seed) {
    const size_t count = clnet_tensor_count(t);
    clnet_real *values = malloc(count * sizeof *values);
    for (size_t i = 0; values && i < count; i++) {
        values[i] = (clnet_real)clnet_random_normal(seed, 0, i);
    }
    CHECK(values && clnet_tensor_set(t, values, CLNET_ORDER_TORCH) == CLNET_OK, "%s",
          clnet_tensor_name(t));
    free(values);
}

// The values of a tensor or of its gradient; the caller frees them. NaN where they cannot be had.
static clnet_real *values_of(clnet_tensor *t, bool gradient) {
    const size_t count = clnet_tensor_count(t);
    clnet_real *values = malloc(count * sizeof *values);
    const clnet_result result = gradient ? clnet_tensor_get_grad(t, values, CLNET_ORDER_TORCH)
                                         : clnet_tensor_get(t, values, CLNET_ORDER_TORCH);
    for (size_t i = 0; result != CLNET_OK && i < count; i++) {
        values[i] = (clnet_real)NAN;
    }
    return values;
}

static bool same_values(clnet_tensor *a, clnet_tensor *b, bool gradient) {
    clnet_real *x = values_of(a, gradient), *y = values_of(b, gradient);
    const bool same = clnet_tensor_count(a) == clnet_tensor_count(b) && x[0] == x[0] &&
                      !memcmp(x, y, clnet_tensor_count(a) * sizeof *x);
    free(x);
    free(y);
    return same;
}

// How many weights, or gradients of weights, of two graphs differ in a bit.
static int different_weights(const clnet_graph *a, const clnet_graph *b, bool gradients) {
    int count = clnet_graph_weights(a) != clnet_graph_weights(b);
    for (int i = 0; !count && i < clnet_graph_weights(a); i++) {
        clnet_tensor *x = clnet_graph_weight(a, i);
        if (!gradients || clnet_tensor_trainable(x)) {
            count += !same_values(x, clnet_graph_weight(b, i), gradients);
        }
    }
    return count;
}

// Errors.

static void test_first_error_stays(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_graph *g = clnet_graph_create(ctx);
    clnet_tensor *x = clnet_input(g, "image", 2, 3, 4, 5);
    clnet_tensor *y = clnet_conv2d(
        g, x, &(clnet_conv2d_desc){.out_channels = 2, .kernel_size = {7, 7}, .name = "first"});
    CHECK(!y, "a kernel of 7 x 7 over 4 x 5");
    CHECK(contains(clnet_error(ctx), "conv2d") && contains(clnet_error(ctx), "first") &&
              contains(clnet_error(ctx), "4 x 5"),
          "%s", clnet_error(ctx));
    y = clnet_softmax(g, clnet_relu(g, clnet_conv2d(g, y, &(clnet_conv2d_desc){.name = "second"})),
                      9);
    CHECK(!y && contains(clnet_error(ctx), "first"), "%s", clnet_error(ctx));
    CHECK(clnet_graph_build(g, NULL) == CLNET_ERROR_ARGUMENT &&
              clnet_graph_forward(g) == CLNET_ERROR_ARGUMENT,
          "built");
    CHECK(!clnet_graph_create(ctx) && !clnet_model_create(ctx, NULL), "made in an error state");
    clnet_context_clear(ctx);
    CHECK(clnet_context_result(ctx) == CLNET_OK && !strcmp(clnet_error(ctx), ""), "%s",
          clnet_error(ctx));
    CHECK(!clnet_relu(g, x) && clnet_graph_build(g, NULL) != CLNET_OK,
          "a graph that failed was used again");
    clnet_graph_destroy(g);
    clnet_context_clear(ctx);
    clnet_graph *other = clnet_graph_create(ctx);
    CHECK(clnet_relu(other, clnet_input(other, "x", 1, 1, 1, 1)) &&
              clnet_graph_build(other, NULL) == CLNET_OK,
          "%s", clnet_error(ctx));
    clnet_graph_destroy(other);
    clnet_context_destroy(ctx);
}

static void test_null(void) {
    CHECK(!clnet_graph_create(NULL), "graph of no context");
    CHECK(!clnet_input(NULL, "x", 1, 1, 1, 1) && !clnet_input_labels(NULL, "x", 1),
          "input of no graph");
    CHECK(!clnet_relu(NULL, NULL) && !clnet_tensor_keep(NULL) && !clnet_tensor_rename(NULL, "x"),
          "NULL was not passed on");
    CHECK(clnet_graph_build(NULL, NULL) != CLNET_OK && clnet_graph_forward(NULL) != CLNET_OK,
          "built from nothing");
    CHECK(clnet_graph_backward(NULL) != CLNET_OK && clnet_train_step(NULL, 1) != CLNET_OK,
          "ran nothing");
    CHECK(clnet_tensor_get(NULL, NULL, CLNET_ORDER_TORCH) != CLNET_OK, "values of nothing");
    CHECK(isnan(clnet_tensor_item(NULL)), "an item of nothing");
    CHECK(!strcmp(clnet_error(NULL), "out of memory"), "%s", clnet_error(NULL));
    CHECK(!clnet_model_create(NULL, NULL) && !clnet_adam_create(NULL, NULL), "made of nothing");
    clnet_graph_destroy(NULL);
    clnet_model_destroy(NULL);
    clnet_context_destroy(NULL);
}

// Evaluates an expression that builds a tensor from x (2,4,6,5) in g; it has to be refused.
#define REFUSED(part, expression)                                                                  \
    do {                                                                                           \
        clnet_context *ctx = clnet_context_create(&(clnet_context_desc){.threads = 1});            \
        clnet_graph *g = clnet_graph_create(ctx);                                                  \
        clnet_tensor *x = clnet_input(g, "x", 2, 4, 6, 5), *built = expression;                    \
        CHECK(!built && x && clnet_context_result(ctx) == CLNET_ERROR_ARGUMENT,                    \
              #expression " was accepted");                                                        \
        CHECK(contains(clnet_error(ctx), part), #expression ": %s", clnet_error(ctx));             \
        clnet_graph_destroy(g);                                                                    \
        clnet_context_destroy(ctx);                                                                \
    } while (0)
// A convolution, or max pooling, of 3 x 3 with something changed in its desc `d`.
#define CONV(change) (d = good, change, clnet_conv2d(g, x, &d))
#define POOL(change) (d = good, change, clnet_max_pool2d(g, x, &d))

static void test_refused_convolutions(void) {
    const clnet_conv2d_desc good = {.out_channels = 2, .kernel_size = {3, 3}, .name = "c"};
    clnet_conv2d_desc d;
    REFUSED("conv2d", CONV(d.out_channels = 0));
    REFUSED("conv2d", CONV(d.out_channels = -1));
    REFUSED("conv2d", CONV(d.kernel_size[0] = 0));
    REFUSED("conv2d", CONV(d.kernel_size[0] = 7));
    REFUSED("conv2d", CONV(d.stride[0] = -1));
    REFUSED("conv2d", CONV(d.padding[1] = -1));
    REFUSED("conv2d", CONV(d.dilation[0] = -1));
    REFUSED("conv2d", CONV(d.groups = 3));
    REFUSED("conv2d", CONV(d.groups = -2));
    REFUSED("conv2d", CONV(d.groups = 4));
    REFUSED("conv2d", CONV(d.name = NULL));
    REFUSED("", CONV(d.padding[0] = 2147483647));
    REFUSED("", CONV((d.kernel_size[0] = 2147483647, d.padding[0] = 2147483647)));
    REFUSED("", CONV((d.out_channels = 2147483647, d.padding[0] = d.padding[1] = 1000000)));
    REFUSED("", CONV((d.dilation[0] = 2147483647, d.padding[0] = 2147483647)));
    REFUSED("c.weight", clnet_relu(g, (CONV(d.groups = 1), CONV(d.groups = 1))));
}

static void test_refused_pooling(void) {
    const clnet_pool2d_desc good = {.kernel_size = {3, 3}};
    clnet_pool2d_desc d;
    REFUSED("max_pool2d", POOL(d.padding[0] = 2));
    REFUSED("max_pool2d", POOL(d.padding[0] = -1));
    REFUSED("max_pool2d", POOL(d.stride[1] = -1));
    REFUSED("max_pool2d", POOL(d.kernel_size[0] = 0));
    REFUSED("max_pool2d", POOL(d.dilation[0] = 4));
    REFUSED("avg_pool2d", clnet_avg_pool2d(g, x, &(clnet_pool2d_desc){.kernel_size = {7, 7}}));
}

static void test_refused_operations(void) {
    REFUSED("linear", clnet_linear(g, x, &(clnet_linear_desc){.out_features = 2, .name = "l"}));
    REFUSED("linear", clnet_linear(g, clnet_global_avg_pool(g, x),
                                   &(clnet_linear_desc){.out_features = 0, .name = "l"}));
    REFUSED("linear",
            clnet_linear(g, clnet_global_avg_pool(g, x), &(clnet_linear_desc){.out_features = 2}));
    REFUSED("batch_norm", clnet_batch_norm(g, x, &(clnet_batch_norm_desc){.name = NULL}));
    REFUSED("batch_norm", clnet_batch_norm(g, x, &(clnet_batch_norm_desc){.name = "b", .eps = -1}));
    REFUSED("batch_norm",
            clnet_batch_norm(g, x, &(clnet_batch_norm_desc){.name = "b", .momentum = 2}));
    REFUSED("batch_norm",
            clnet_batch_norm(g, x, &(clnet_batch_norm_desc){.name = "b", .eps = NAN}));
    REFUSED("softmax", clnet_softmax(g, x, 0));
    REFUSED("softmax", clnet_softmax(g, x, 4));
    REFUSED("upsample", clnet_upsample_bilinear(g, x, 0, 4, false));
    REFUSED("upsample", clnet_upsample_bilinear(g, x, 4, -4, false));
    REFUSED("add", clnet_add(g, x, clnet_global_avg_pool(g, x)));
    REFUSED("concat", clnet_concat(g, (clnet_tensor *[]){x, clnet_global_avg_pool(g, x)}, 2));
    REFUSED("concat", clnet_concat(g, (clnet_tensor *[]){x}, 0));
    REFUSED("concat", clnet_concat(g, (clnet_tensor *[]){x, x, x, x, x, x, x, x, x}, 9));
    REFUSED("conv2d_joined",
            clnet_conv2d_joined(g, x, clnet_global_avg_pool(g, x),
                                &(clnet_conv2d_joined_desc){.out_channels = 2}));
    REFUSED("conv2d_joined",
            clnet_conv2d_joined(g, clnet_global_avg_pool(g, x), x,
                                &(clnet_conv2d_joined_desc){.name = "j"}));
    REFUSED("scale_channels", clnet_scale_channels(g, x, x));
    REFUSED("attention_residual",
            clnet_attention_residual(g, x, x, &(clnet_attention_residual_desc){.name = NULL}));
    REFUSED("attention_residual",
            clnet_attention_residual(g, x, clnet_global_avg_pool(g, x),
                                     &(clnet_attention_residual_desc){.name = "a"}));
    REFUSED("dropout", clnet_dropout(g, x, 1));
    REFUSED("dropout", clnet_dropout(g, x, -0.1));
    REFUSED("dropout", clnet_dropout(g, x, NAN));
    REFUSED("flip", clnet_flip(g, x, x, NULL));
    REFUSED("flip", clnet_flip(g, x, NULL, &(clnet_flip_desc){.mean = {NAN}}));
    REFUSED("batch", clnet_input(g, "y", 3, 1, 1, 1));
    REFUSED("", clnet_input(g, "y", 2, 0, 1, 1));
    REFUSED("", clnet_input(g, "y", 2, -1, 1, 1));
    REFUSED("", clnet_input(g, NULL, 2, 1, 1, 1));
    REFUSED("", clnet_input(g, "y", 2, 2147483647, 2147483647, 2147483647));
}

static void test_refused_losses(void) {
    REFUSED("focal_loss", clnet_focal_loss(g, x, clnet_input_labels(g, "t", 2),
                                           &(clnet_focal_loss_desc){.gamma = 2}));
    REFUSED("focal_loss", clnet_focal_loss(g, clnet_global_avg_pool(g, x), x,
                                           &(clnet_focal_loss_desc){.gamma = 2}));
    REFUSED("focal_loss",
            clnet_focal_loss(g, clnet_global_avg_pool(g, x), clnet_input_labels(g, "t", 2),
                             &(clnet_focal_loss_desc){.gamma = -1}));
    REFUSED("mask_focal_loss", clnet_mask_focal_loss(g, x, x, 2));
    REFUSED("mask_focal_loss", clnet_mask_focal_loss(g, clnet_input(g, "z", 2, 1, 3, 3),
                                                     clnet_input(g, "m", 2, 1, 3, 4), 2));
    REFUSED("dice_loss", clnet_dice_loss(g, clnet_input(g, "z", 2, 1, 3, 3),
                                         clnet_input(g, "m", 2, 1, 3, 3), -1));
    REFUSED("weighted_sum", clnet_weighted_sum(g, (clnet_tensor *[]){x}, (double[]){1}, 1));
}

static void test_refused_contexts(void) {
    const clnet_context_desc bad[] = {{.threads = -1}, {.isa = (clnet_isa)99}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        clnet_context *ctx = clnet_context_create(&bad[i]);
        CHECK(ctx && clnet_context_result(ctx) == CLNET_ERROR_ARGUMENT, "desc %zu was accepted", i);
        CHECK(!clnet_graph_create(ctx), "a graph of a bad context");
        clnet_context_destroy(ctx);
    }
    for (int isa = CLNET_ISA_PORTABLE; isa <= CLNET_ISA_AVX512; isa++) {
        clnet_context *ctx = clnet_context_create(&(clnet_context_desc){.isa = (clnet_isa)isa});
        const bool ok = clnet_context_result(ctx) == CLNET_OK;
        CHECK(ok == clnet_isa_supported((clnet_isa)isa), "%s: %s", clnet_isa_name((clnet_isa)isa),
              clnet_error(ctx));
        CHECK(!ok || !strcmp(clnet_context_isa(ctx), clnet_isa_name((clnet_isa)isa)), "%s",
              clnet_context_isa(ctx));
        clnet_context_destroy(ctx);
    }
}

static void test_refused_builds(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_graph *g = clnet_graph_create(ctx);
    CHECK(clnet_graph_build(g, NULL) == CLNET_ERROR_ARGUMENT, "an empty graph was built");
    clnet_graph_destroy(g);
    clnet_context_clear(ctx);
    g = clnet_graph_create(ctx);
    clnet_tensor *x = clnet_input(g, "x", 1, 2, 3, 3), *y = clnet_relu(g, x);
    clnet_real values[18] = {0};
    CHECK(clnet_tensor_get(y, values, CLNET_ORDER_TORCH) == CLNET_ERROR_ARGUMENT,
          "values before the build");
    clnet_context_clear(ctx);
    CHECK(clnet_graph_build(g, &(clnet_build_desc){.loss = y}) == CLNET_ERROR_ARGUMENT,
          "a loss without anything to learn");
    clnet_graph_destroy(g);
    clnet_context_clear(ctx);
    g = clnet_graph_create(ctx);
    x = clnet_input(g, "x", 1, 2, 3, 3);
    y = clnet_relu(g, x);
    CHECK(clnet_graph_build(g, NULL) == CLNET_OK && clnet_graph_backward(g) == CLNET_ERROR_ARGUMENT,
          "backward without a loss");
    clnet_context_clear(ctx);
    CHECK(!clnet_relu(g, y), "a node was added after the build");
    clnet_context_clear(ctx);
    CHECK(clnet_tensor_get_grad(x, values, CLNET_ORDER_TORCH) == CLNET_ERROR_ARGUMENT,
          "a gradient that nobody asked for");
    CHECK(clnet_tensor_size(x, 3) == 3 && clnet_tensor_size(x, 4) == 1 && clnet_tensor_rank(x) == 4,
          "sizes");
    clnet_graph_destroy(g);
    clnet_context_destroy(ctx);
}

// A small network with everything in it that shares memory: convolutions, batch norm, ReLU in place,
// a branch, pooling, upsampling, concatenation, both kinds of losses.
typedef struct small {
    clnet_graph *g;
    clnet_tensor *x, *label, *mask, *relu, *joined, *loss;
    clnet_adam *adam;
} small;

static clnet_tensor *small_conv(clnet_graph *g, clnet_tensor *x, int channels, const char *name) {
    return clnet_conv2d(
        g, x,
        &(clnet_conv2d_desc){
            .out_channels = channels, .kernel_size = {3, 3}, .padding = {1, 1}, .name = name});
}

static clnet_tensor *small_norm(clnet_graph *g, clnet_tensor *x, const char *name) {
    return clnet_batch_norm(g, x, &(clnet_batch_norm_desc){.name = name});
}

static void small_layers(small *s, int batch, bool norm) {
    clnet_graph *g = s->g;
    s->x = clnet_input(g, "image", batch, 3, 8, 10);
    clnet_tensor *a = small_conv(g, s->x, 6, "conv1");
    s->relu = clnet_relu(g, norm ? small_norm(g, a, "bn1") : a);
    clnet_tensor *down = clnet_max_pool2d(g, s->relu, &(clnet_pool2d_desc){.kernel_size = {2, 2}});
    clnet_tensor *b = small_conv(g, down, 6, "conv2");
    b = clnet_add(g, down, clnet_relu(g, norm ? small_norm(g, b, "bn2") : b));
    clnet_tensor *up = clnet_upsample_bilinear(g, clnet_relu(g, b), 8, 10, false);
    s->joined = clnet_concat(g, (clnet_tensor *[]){up, s->relu}, 2);
    clnet_tensor *gate = clnet_sigmoid(
        g, clnet_conv2d(
               g, clnet_global_avg_pool(g, s->joined),
               &(clnet_conv2d_desc){.out_channels = 12, .kernel_size = {1, 1}, .name = "gate"}));
    clnet_tensor *z = clnet_scale_channels(g, s->joined, gate);
    clnet_tensor *logits = clnet_linear(g, clnet_global_avg_pool(g, z),
                                        &(clnet_linear_desc){.out_features = 3, .name = "fc"});
    clnet_tensor *mask_logits = clnet_conv2d(
        g, z, &(clnet_conv2d_desc){.out_channels = 1, .kernel_size = {1, 1}, .name = "head"});
    s->label = clnet_input_labels(g, "label", batch);
    s->mask = clnet_input(g, "mask", batch, 1, 8, 10);
    clnet_tensor *losses[3] = {
        clnet_focal_loss(g, logits, s->label, &(clnet_focal_loss_desc){.gamma = 2}),
        clnet_mask_focal_loss(g, mask_logits, s->mask, 2),
        clnet_dice_loss(g, mask_logits, s->mask, 1)};
    s->loss = clnet_weighted_sum(g, losses, (double[]){1, 1, 1}, 3);
}

// Fills images first..first+batch of an endless set.
static void small_fill(small *s, int first, int batch) {
    clnet_real image[4 * 3 * 80], mask[4 * 80];
    int32_t label[4];
    for (int n = 0; n < batch; n++) {
        label[n] = (first + n) % 3;
        for (uint64_t i = 0; i < 240; i++) {
            image[(size_t)n * 240 + i] =
                (clnet_real)clnet_random_normal(5, (uint64_t)(first + n), i);
        }
        for (uint64_t i = 0; i < 80; i++) {
            mask[(size_t)n * 80 + i] =
                clnet_random_uniform(6, (uint64_t)(first + n), i) < 0.4 ? 1 : 0;
        }
    }
    clnet_tensor_set(s->x, image, CLNET_ORDER_TORCH);
    clnet_tensor_set(s->label, label, CLNET_ORDER_TORCH);
    clnet_tensor_set(s->mask, mask, CLNET_ORDER_TORCH);
}

static bool small_open(small *s, clnet_context *ctx, int batch, bool norm, bool keep_all) {
    *s = (small){.g = clnet_graph_create(ctx)};
    small_layers(s, batch, norm);
    s->adam = clnet_adam_create(s->g, &(clnet_adam_desc){.weight_decay = 1e-3});
    if (clnet_graph_build(s->g,
                          &(clnet_build_desc){.loss = s->loss, .keep_all = keep_all, .seed = 3}) !=
        CLNET_OK) {
        return false;
    }
    small_fill(s, 0, batch);
    return clnet_context_result(ctx) == CLNET_OK;
}

// Memory.

// Sharing memory, and ReLU in place, must not change a bit; kept values and gradients are there.
static void test_sharing_changes_nothing(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    small all, shared = {.g = clnet_graph_create(ctx)};
    CHECK(small_open(&all, ctx, 3, true, false), "%s", clnet_error(ctx));
    clnet_graph_destroy(all.g);
    all = (small){.g = clnet_graph_create(ctx)};
    small_layers(&all, 3, true);
    small_layers(&shared, 3, true);
    clnet_tensor *const watched[] = {all.relu,    all.joined,    all.x,
                                     shared.relu, shared.joined, shared.x};
    for (int i = 0; i < 6; i++) {
        clnet_tensor_require_grad(clnet_tensor_keep(watched[i]));
    }
    clnet_graph_build(all.g, &(clnet_build_desc){.loss = all.loss, .keep_all = true, .seed = 3});
    clnet_graph_build(shared.g, &(clnet_build_desc){.loss = shared.loss, .seed = 3});
    small_fill(&all, 0, 3);
    small_fill(&shared, 0, 3);
    for (int pass = 0; pass < 2;
         pass++) { // the second one runs over memory that is not fresh any more
        small *both[] = {&all, &shared};
        for (int i = 0; i < 2; i++) {
            clnet_graph_zero_grad(both[i]->g);
            clnet_graph_forward(both[i]->g);
            CHECK(clnet_graph_backward(both[i]->g) == CLNET_OK, "%s", clnet_error(ctx));
        }
        CHECK(clnet_tensor_item(all.loss) == clnet_tensor_item(shared.loss), "losses");
        CHECK(different_weights(all.g, shared.g, true) == 0, "%d gradients differ",
              different_weights(all.g, shared.g, true));
        for (int i = 0; i < 3; i++) {
            CHECK(same_values(watched[i], watched[3 + i], false), "values of tensor %d", i);
            CHECK(same_values(watched[i], watched[3 + i], true), "gradients of tensor %d", i);
        }
    }
    clnet_graph_destroy(all.g);
    clnet_graph_destroy(shared.g);
    clnet_context_destroy(ctx);
}

// What is concatenated is written where the whole lies, unless somebody wants its gradient: then it
// is copied. Both give the same bits, and a tensor inside another one can be read and written alone.
static void test_concatenation_in_place(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    small copied = {.g = clnet_graph_create(ctx)}, inside = {.g = clnet_graph_create(ctx)};
    small *both[] = {&copied, &inside};
    for (int i = 0; i < 2; i++) {
        small_layers(both[i], 3, true);
        clnet_tensor_keep(both[i]->relu);
        clnet_tensor_keep(both[i]->joined);
    }
    clnet_tensor_require_grad(copied.joined);
    for (int i = 0; i < 2; i++) {
        clnet_graph_build(both[i]->g, &(clnet_build_desc){.loss = both[i]->loss, .seed = 3});
        small_fill(both[i], 0, 3);
        clnet_graph_forward(both[i]->g);
        CHECK(clnet_graph_backward(both[i]->g) == CLNET_OK, "%s", clnet_error(ctx));
    }
    CHECK(!copied.relu->inside && inside.relu->inside == inside.joined, "who is inside whom");
    CHECK(clnet_tensor_item(copied.loss) == clnet_tensor_item(inside.loss), "losses");
    CHECK(different_weights(copied.g, inside.g, true) == 0, "%d gradients differ",
          different_weights(copied.g, inside.g, true));
    CHECK(same_values(copied.relu, inside.relu, false), "values of the part");
    CHECK(same_values(copied.joined, inside.joined, false), "values of the whole");

    // In memory's order, and back with half the values, which must not touch the other part.
    clnet_real *part = malloc(clnet_tensor_count(inside.relu) * sizeof *part);
    clnet_tensor_get(copied.relu, part, CLNET_ORDER_MEMORY);
    clnet_real *other = malloc(clnet_tensor_count(inside.relu) * sizeof *other);
    clnet_tensor_get(inside.relu, other, CLNET_ORDER_MEMORY);
    CHECK(!memcmp(part, other, clnet_tensor_count(inside.relu) * sizeof *part), "memory's order");
    for (size_t i = 0; i < clnet_tensor_count(inside.relu); i++) {
        other[i] = part[i] / 2;
    }
    clnet_tensor_set(inside.relu, other, CLNET_ORDER_MEMORY);
    clnet_real *before = values_of(copied.joined, false), *after = values_of(inside.joined, false);
    int wrong = 0;
    for (int i = 0; i < 3 * 12 * 80; i++) {
        const bool own = i / 80 % 12 >= 6; // joined is (3,12,8,10), the part its last 6 channels
        wrong += after[i] != (own ? before[i] / 2 : before[i]);
    }
    CHECK(wrong == 0, "%d values of the whole are wrong after its part was set", wrong);
    free(part);
    free(other);
    free(before);
    free(after);
    clnet_graph_destroy(copied.g);
    clnet_graph_destroy(inside.g);
    clnet_context_destroy(ctx);
}

// What may follow a convolution: Winograd and direct, with channels that fill no vector, in groups,
// into a concatenation, with the addition of something earlier; and where nothing may be absorbed.
typedef struct folded {
    clnet_graph *g;
    clnet_tensor *x, *out[4];
} folded;

static clnet_tensor *folded_conv(clnet_graph *g, clnet_tensor *x, int kernel, int groups,
                                 const char *name) {
    char norm[32];
    snprintf(norm, sizeof norm, "%s.norm", name);
    const clnet_conv2d_desc d = {.out_channels = 44,
                                 .kernel_size = {kernel, kernel},
                                 .padding = {kernel / 2, kernel / 2},
                                 .groups = groups,
                                 .name = name};
    return small_norm(g, clnet_conv2d(g, x, &d), norm);
}

// 15 nodes are absorbed: three of a, one of b, two of c, three of d, two of e and f, one of kept, and
// the last addition by its batch norm.
static folded folded_layers(clnet_context *ctx, int batch, bool keep_all) {
    folded f = {.g = clnet_graph_create(ctx)};
    clnet_graph *g = f.g;
    f.x = clnet_input(g, "image", batch, 44, 13, 11);
    clnet_tensor *a = clnet_relu(g, clnet_add(g, f.x, folded_conv(g, f.x, 3, 1, "a")));
    clnet_tensor *b = folded_conv(g, a, 1, 2, "b");
    clnet_tensor *c = clnet_add(g, folded_conv(g, a, 3, 2, "c"), b);
    clnet_tensor *d = clnet_relu(g, clnet_add(g, folded_conv(g, c, 1, 1, "d"), c));
    clnet_tensor *joined = clnet_concat(g, (clnet_tensor *[]){c, d}, 2);
    clnet_tensor *e = clnet_relu(g, folded_conv(g, joined, 3, 1, "e"));
    clnet_tensor *kept = clnet_tensor_keep(folded_conv(g, e, 1, 1, "kept"));
    clnet_tensor *twice = small_conv(g, clnet_relu(g, kept), 8, "twice");
    clnet_tensor *pooled = clnet_avg_pool2d(
        g, twice, &(clnet_pool2d_desc){.kernel_size = {3, 3}, .stride = {1, 1}, .padding = {1, 1}});
    f.out[0] = kept;
    f.out[1] = clnet_tensor_keep(joined);
    clnet_tensor *low = clnet_max_pool2d(g, a, &(clnet_pool2d_desc){.kernel_size = {2, 2}});
    const clnet_conv2d_joined_desc both = {.out_channels = 44, .name = "f"};
    f.out[3] = clnet_relu(g, small_norm(g, clnet_conv2d_joined(g, low, a, &both), "f.norm"));
    f.out[3] = clnet_tensor_keep(f.out[3]);
    f.out[2] =
        clnet_add(g, small_norm(g, pooled, "pooled.norm"), small_norm(g, twice, "twice.norm"));
    clnet_graph_build(g, &(clnet_build_desc){.keep_all = keep_all, .seed = 3});
    for (int i = 0; i < clnet_graph_weights(g); i++) { // statistics and weights of batch norm
        clnet_tensor *w = clnet_graph_weight(g, i);
        clnet_real values[64];
        for (uint64_t k = 0; w->rank == 1 && k < (uint64_t)w->shape[0]; k++) {
            values[k] = (clnet_real)(0.5 + clnet_random_uniform(7, (uint64_t)i, k));
        }
        if (w->rank == 1) {
            clnet_tensor_set(w, values, CLNET_ORDER_TORCH);
        }
    }
    return f;
}

static int absorbed_nodes(const clnet_graph *g) {
    int count = 0;
    for (int i = 0; i < clnet_graph_activations(g); i++) {
        const clnet_node *node = clnet_graph_activation(g, i)->producer;
        count += node && node->host;
    }
    return count;
}

static void folded_forward(folded *f, int first) {
    const size_t pixels = (size_t)44 * 13 * 11, count = clnet_tensor_count(f->x);
    clnet_real *image = malloc(count * sizeof *image);
    for (size_t i = 0; i < count; i++) {
        image[i] = (clnet_real)clnet_random_normal(5, (uint64_t)first + i / pixels, i % pixels);
    }
    clnet_tensor_set(f->x, image, CLNET_ORDER_TORCH);
    free(image);
    clnet_graph_forward(f->g);
}

// The largest difference of the first values, those of a's batch, relative to the largest value.
static double folded_distance(clnet_tensor *a, clnet_tensor *b) {
    clnet_real *x = values_of(a, false), *y = values_of(b, false);
    double difference = 0, largest = 0;
    for (size_t i = 0; i < clnet_tensor_count(a); i++) {
        const double d = fabs((double)x[i] - (double)y[i]);
        difference = !(d <= difference) ? d : difference;
        largest = fmax(largest, fabs((double)y[i]));
    }
    free(x);
    free(y);
    return difference / largest;
}

// Batch norm, addition and ReLU in the convolution that they follow: the same values but for the last
// bits (a multiplication and addition are rounded once, and layers pass that on: 1e-6 of the largest
// value is 17 roundings of 2^-24), the same bits with any threads and batch; in training as without it.
static void test_epilogues(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_context *one = clnet_context_create(&(clnet_context_desc){.threads = 1});
    clnet_context *plain = clnet_context_create(&(clnet_context_desc){.reference = true});
    folded apart = folded_layers(ctx, 3, true), all = folded_layers(ctx, 3, false);
    folded single = folded_layers(one, 1, false), reference = folded_layers(plain, 3, false);
    CHECK(absorbed_nodes(all.g) == 15, "%d nodes were absorbed", absorbed_nodes(all.g));
    CHECK(!absorbed_nodes(apart.g) && !absorbed_nodes(reference.g), "where nothing may be");
    for (int pass = 0; pass < 3; pass++) { // in evaluation, in training, and with its statistics
        folded *each[] = {&apart, &all, &single};
        for (int i = 0; i < 3; i++) {
            clnet_graph_set_training(each[i]->g, pass == 1 && i < 2);
            folded_forward(each[i], 0);
        }
        for (int i = 0; i < 4; i++) {
            const double distance = folded_distance(all.out[i], apart.out[i]);
            CHECK(pass == 1 ? distance == 0 : distance <= 1e-6, "pass %d, output %d: %g", pass, i,
                  distance);
            CHECK(pass > 0 || folded_distance(single.out[i], all.out[i]) == 0,
                  "one thread and one image, output %d", i);
        }
    }
    CHECK(different_weights(apart.g, all.g, false) == 0, "statistics");
    CHECK(clnet_graph_first_nonfinite(all.g) == NULL, "%s", clnet_graph_first_nonfinite(all.g));
    for (int i = 0; i < 4; i++) {
        clnet_graph_destroy((clnet_graph *[]){apart.g, all.g, single.g, reference.g}[i]);
    }
    clnet_context_destroy(plain);
    clnet_context_destroy(one);
    clnet_context_destroy(ctx);
}

// What may follow batch norm in training: ReLU; an addition, in either order of its inputs, whose other
// one comes from a batch norm too, is read between batch norm and addition, or wants no gradient; both,
// inside a concatenation. And `still`, which wants no gradient where weights want none, but is added to
// what does. 17 channels
// and 600 fill no vector and not the channels of a task. No gradient has three summands, whose order
// would tell.
static clnet_tensor *residual_layers(clnet_graph *g, clnet_tensor *x, clnet_tensor *fixed) {
    clnet_tensor *a = clnet_relu(g, small_norm(g, small_conv(g, x, 17, "a"), "a.norm"));
    clnet_tensor *b = small_norm(g, small_conv(g, a, 17, "b"), "b.norm");
    clnet_tensor *down = small_norm(g, small_conv(g, a, 17, "down"), "down.norm");
    clnet_tensor *c = clnet_relu(g, clnet_add(g, b, down));
    clnet_tensor *d = clnet_add(g, fixed, small_norm(g, small_conv(g, c, 17, "d"), "d.norm"));
    clnet_tensor *still = clnet_relu(g, clnet_add(g, small_norm(g, fixed, "still"), c));
    clnet_tensor *e = small_norm(g, small_conv(g, d, 17, "e"), "e.norm");
    clnet_tensor *gate = clnet_global_avg_pool(g, still);
    e = clnet_relu(g, clnet_add(g, e, still));
    clnet_tensor *wide = clnet_conv2d(
        g, clnet_scale_channels(g, d, gate),
        &(clnet_conv2d_desc){.out_channels = 600, .kernel_size = {1, 1}, .name = "wide"});
    wide = clnet_relu(g, small_norm(g, wide, "wide.norm"));
    return clnet_global_avg_pool(g, clnet_concat(g, (clnet_tensor *[]){e, wide}, 2));
}

typedef struct residual {
    clnet_graph *g;
    clnet_tensor *x, *loss;
} residual;

static residual residual_open(clnet_context *ctx, bool keep_all, bool no_weight_grad) {
    residual r = {.g = clnet_graph_create(ctx)};
    r.x = clnet_tensor_require_grad(clnet_input(r.g, "image", 2, 17, 13, 11));
    clnet_tensor *fixed = clnet_input(r.g, "fixed", 2, 17, 13, 11);
    clnet_tensor *label = clnet_input_labels(r.g, "label", 2);
    clnet_tensor *logits = clnet_linear(r.g, residual_layers(r.g, r.x, fixed),
                                        &(clnet_linear_desc){.out_features = 3, .name = "fc"});
    r.loss = clnet_focal_loss(r.g, logits, label, &(clnet_focal_loss_desc){.gamma = 2});
    clnet_graph_build(r.g, &(clnet_build_desc){.loss = r.loss,
                                               .keep_all = keep_all,
                                               .no_weight_grad = no_weight_grad,
                                               .seed = 3});
    clnet_real image[2 * 17 * 13 * 11];
    for (int k = 0; k < 2; k++) {
        for (size_t i = 0; i < sizeof image / sizeof *image; i++) {
            image[i] = (clnet_real)clnet_random_normal(5, (uint64_t)k, i);
        }
        clnet_tensor_set(k ? fixed : r.x, image, CLNET_ORDER_TORCH);
    }
    clnet_tensor_set(label, (int32_t[]){2, 1}, CLNET_ORDER_TORCH);
    return r;
}

static void residual_pass(const residual *r, bool training) {
    clnet_graph_set_training(r->g, training);
    clnet_graph_zero_grad(r->g);
    clnet_graph_forward(r->g);
    clnet_graph_backward(r->g);
}

// The same bits with what follows batch norm in it and apart, in training and in evaluation.
static void test_norm_epilogues(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_context *one = clnet_context_create(&(clnet_context_desc){.threads = 1});
    clnet_context *plain = clnet_context_create(&(clnet_context_desc){.reference = true});
    residual reference = residual_open(plain, false, false);
    CHECK(!absorbed_nodes(reference.g), "with plain loops nothing may be absorbed");
    clnet_graph_destroy(reference.g);
    for (int fixed = 0; fixed < 2; fixed++) { // the weights
        residual apart = residual_open(ctx, true, fixed), fused = residual_open(one, false, fixed);
        const int absorbed = absorbed_nodes(fused.g);
        CHECK(absorbed == (fixed ? 7 : 9) && !absorbed_nodes(apart.g), "%d absorbed", absorbed);
        for (int pass = fixed; pass < (fixed ? 2 : 3); pass++) { // training, evaluation, training
            residual_pass(&apart, pass != 1);
            residual_pass(&fused, pass != 1);
            CHECK(clnet_context_result(ctx) == CLNET_OK && clnet_context_result(one) == CLNET_OK,
                  "%s%s", clnet_error(ctx), clnet_error(one));
            CHECK(clnet_tensor_item(apart.loss) == clnet_tensor_item(fused.loss), "losses");
            CHECK(different_weights(apart.g, fused.g, false) == 0, "statistics");
            CHECK(fixed || different_weights(apart.g, fused.g, true) == 0,
                  "pass %d: %d gradients differ", pass, different_weights(apart.g, fused.g, true));
            CHECK(same_values(apart.x, fused.x, true), "pass %d: the input's gradient", pass);
        }
        clnet_graph_destroy(apart.g);
        clnet_graph_destroy(fused.g);
    }
    clnet_context_destroy(plain);
    clnet_context_destroy(one);
    clnet_context_destroy(ctx);
}

// Max pooling that notes no argmax, as nobody asks for a gradient: the same values, NaN with them.
static void test_pooling_without_argmax(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_real image[2 * 19 * 7 * 6];
    for (size_t i = 0; i < sizeof image / sizeof *image; i++) {
        image[i] = i % 97 != 50 ? (clnet_real)clnet_random_normal(5, 0, i) : (clnet_real)NAN;
    }
    clnet_graph *graphs[2];
    clnet_tensor *out[2];
    for (int i = 0; i < 2; i++) {
        clnet_graph *g = graphs[i] = clnet_graph_create(ctx);
        clnet_tensor *x = clnet_tensor_require_grad(clnet_input(g, "x", 2, 19, 7, 6));
        out[i] = clnet_max_pool2d(
            g, x, &(clnet_pool2d_desc){.kernel_size = {3, 3}, .stride = {2, 2}, .padding = {1, 1}});
        clnet_graph_build(g, &(clnet_build_desc){.loss = i ? out[i] : NULL});
        clnet_tensor_set(x, image, CLNET_ORDER_TORCH);
        CHECK(clnet_graph_forward(g) == CLNET_OK, "%s", clnet_error(ctx));
    }
    CHECK(!out[0]->producer->backward && out[1]->producer->backward, "who notes an argmax");
    CHECK(same_values(out[0], out[1], false), "values");
    clnet_graph_destroy(graphs[0]);
    clnet_graph_destroy(graphs[1]);
    clnet_context_destroy(ctx);
}

// A part is read after the whole is, so that the first gradient added to their memory is the part's;
// another comes from max pooling.
static void test_part_read_last(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_graph *graphs[2];
    for (int i = 0; i < 2; i++) {
        clnet_graph *g = graphs[i] = clnet_graph_create(ctx);
        clnet_tensor *x = clnet_input(g, "image", 2, 3, 5, 6);
        clnet_tensor *label = clnet_input_labels(g, "label", 2);
        clnet_tensor *part = small_conv(g, x, 4, "conv1");
        const clnet_pool2d_desc pool = {.kernel_size = {3, 3}, .stride = {1, 1}, .padding = {1, 1}};
        clnet_tensor *pooled = clnet_max_pool2d(g, small_conv(g, x, 4, "conv2"), &pool);
        clnet_tensor *whole = clnet_concat(g, (clnet_tensor *[]){pooled, part}, 2);
        const clnet_focal_loss_desc desc = {.gamma = 2};
        clnet_tensor *losses[2];
        losses[0] = clnet_focal_loss(g, clnet_global_avg_pool(g, small_conv(g, whole, 3, "conv3")),
                                     label, &desc);
        losses[1] = clnet_focal_loss(g, clnet_global_avg_pool(g, small_conv(g, part, 3, "conv4")),
                                     label, &desc);
        if (i == 0) {
            clnet_tensor_require_grad(whole); // hence copied
        }
        clnet_graph_build(
            g, &(clnet_build_desc){.loss = clnet_weighted_sum(g, losses, (double[]){1, 1}, 2),
                                   .seed = 3});
        fill(x, 4);
        clnet_tensor_set(label, (int32_t[]){2, 0}, CLNET_ORDER_TORCH);
        for (int pass = 0; pass < 2; pass++) {
            clnet_graph_zero_grad(g);
            clnet_graph_forward(g);
            CHECK(clnet_graph_backward(g) == CLNET_OK, "%s", clnet_error(ctx));
        }
    }
    // Two sums of three numbers in another order: equal but for rounding.
    int wrong = 0;
    for (int i = 0; i < clnet_graph_weights(graphs[0]); i++) {
        clnet_tensor *t = clnet_graph_weight(graphs[0], i);
        clnet_real *a = values_of(t, true), *b = values_of(clnet_graph_weight(graphs[1], i), true);
        for (size_t k = 0; k < clnet_tensor_count(t); k++) {
            wrong += !(fabs((double)(a[k] - b[k])) <= 1e-6);
        }
        free(a);
        free(b);
    }
    CHECK(wrong == 0, "%d gradients differ", wrong);
    clnet_graph_destroy(graphs[0]);
    clnet_graph_destroy(graphs[1]);
    clnet_context_destroy(ctx);
}

// Backward from a ReLU in place starts with the gradient that the caller set.
static void test_backward_from_relu(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_graph *g = clnet_graph_create(ctx);
    clnet_tensor *x = clnet_input(g, "image", 1, 3, 5, 6);
    clnet_tensor *y = clnet_relu(g, small_conv(g, x, 2, "conv1"));
    clnet_graph_build(g, &(clnet_build_desc){.loss = y, .seed = 3});
    fill(x, 4);
    clnet_real upstream[2 * 5 * 6];
    for (int i = 0; i < 60; i++) {
        upstream[i] = 1;
    }
    clnet_tensor_set_grad(y, upstream, CLNET_ORDER_TORCH);
    clnet_graph_forward(g);
    CHECK(clnet_graph_backward(g) == CLNET_OK, "%s", clnet_error(ctx));
    clnet_real *values = values_of(y, false);
    clnet_real *db = values_of(clnet_graph_find_weight(g, "conv1.bias"), true);
    for (int c = 0; c < 2; c++) {
        int positive = 0;
        for (int i = 0; i < 30; i++) {
            positive += values[c * 30 + i] > 0;
        }
        CHECK(db[c] == (clnet_real)positive && positive > 0, "channel %d: %g, %d positive", c,
              (double)db[c], positive);
    }
    free(values);
    free(db);
    clnet_graph_destroy(g);
    clnet_context_destroy(ctx);
}

static void test_plan(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_memory_plan plans[2];
    for (int train = 0; train < 2; train++) {
        small s = {.g = clnet_graph_create(ctx)};
        small_layers(&s, 4, true);
        const clnet_build_desc desc = {.loss = train ? s.loss : NULL};
        clnet_memory_plan *p = &plans[train];
        CHECK(clnet_graph_plan(s.g, &desc, p) == CLNET_OK, "%s", clnet_error(ctx));
        CHECK(p->total == p->parameters + p->buffers + p->gradients + p->optimiser +
                              p->activations + p->workspace,
              "%zu", p->total);
        CHECK(p->activations < p->unshared, "%zu bytes of activations, %zu unshared",
              p->activations, p->unshared);
        CHECK(clnet_graph_build(s.g, &desc) == CLNET_OK, "building after planning: %s",
              clnet_error(ctx));
        clnet_graph_destroy(s.g);
    }
    CHECK(plans[0].activations < plans[1].activations && plans[0].gradients == 0,
          "inference takes as much as training");
    clnet_context_destroy(ctx);
}

static void test_no_allocation_while_running(void) {
    counter count = {0, 0, 0};
    clnet_context *ctx = counted_context(&count);
    small s;
    CHECK(small_open(&s, ctx, 4, true, false), "%s", clnet_error(ctx));
    const long before = count.calls;
    clnet_graph_zero_grad(s.g);
    clnet_graph_forward(s.g);
    clnet_graph_backward(s.g);
    clnet_adam_step(s.adam, 1e-3);
    clnet_train_step(s.adam, 1e-3);
    CHECK(clnet_context_result(ctx) == CLNET_OK && count.calls == before,
          "%ld allocations in a step", count.calls - before);
    clnet_graph_destroy(s.g);
    clnet_context_destroy(ctx);
    CHECK(count.live == 0, "%ld blocks were not freed", count.live);
}

// Everything that a program does with a graph, and with a model, from the context on.
static void life_of_graph(clnet_context *ctx) {
    small s = {.g = NULL};
    if (small_open(&s, ctx, 2, true, false)) {
        clnet_train_step(s.adam, 1e-3);
    }
    clnet_graph_destroy(s.g);
}

static void life_of_model(clnet_context *ctx) {
    const clnet_model_desc desc = {.name = "unet", .width = 1.0 / 64, .size = {32, 32}};
    clnet_model *model = clnet_model_create(ctx, &desc);
    unsigned char rgb[5 * 7 * 3] = {0}, mask[5 * 7];
    if (model) {
        clnet_predict(model, rgb, 5, 7, &(clnet_prediction){.mask = mask});
    }
    clnet_model_destroy(model);
}

// Lets every allocation of a life fail in turn.
static void sweep_memory(void life(clnet_context *ctx), const char *name) {
    long n = 0;
    clnet_result result = CLNET_ERROR_MEMORY;
    while (result == CLNET_ERROR_MEMORY && n < 5000) {
        counter count = {0, 0, ++n};
        clnet_context *ctx = counted_context(&count);
        if (ctx) {
            life(ctx);
            result = clnet_context_result(ctx);
            CHECK(result == CLNET_OK || clnet_error(ctx)[0], "a failure without a sentence");
        }
        CHECK(result == CLNET_OK ? count.calls < n : result == CLNET_ERROR_MEMORY,
              "%s, allocation %ld failed: %s", name, n, clnet_error(ctx));
        clnet_context_destroy(ctx);
        CHECK(count.live == 0, "%s, allocation %ld failed: %ld blocks were not freed", name, n,
              count.live);
    }
    CHECK(result == CLNET_OK, "%s: never succeeded", name);
    printf("%s: %ld injection points, %ld handled\n", name, n - 1, n - 1);
}

static void test_out_of_memory(void) {
    sweep_memory(life_of_graph, "graph");
    sweep_memory(life_of_model, "model");
}

// Batches.

static void test_batches(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    small s;
    CHECK(small_open(&s, ctx, 4, true, true), "%s", clnet_error(ctx));
    clnet_graph_set_training(s.g, false);
    clnet_graph_forward(s.g);
    clnet_real *whole = values_of(s.joined, false);
    const size_t image = clnet_tensor_count(s.joined) / 4;
    for (int batch = 1; batch <= 4; batch++) {
        CHECK(clnet_graph_set_batch(s.g, batch) == CLNET_OK, "%s", clnet_error(ctx));
        for (int first = 0; first + batch <= 4; first++) {
            small_fill(&s, first, batch);
            clnet_graph_forward(s.g);
            clnet_real *part = values_of(s.joined, false);
            CHECK(clnet_tensor_count(s.joined) == (size_t)batch * image &&
                      !memcmp(part, whole + (size_t)first * image,
                              (size_t)batch * image * sizeof *part),
                  "images %d.. in a batch of %d differ from the whole", first, batch);
            free(part);
        }
    }
    CHECK(clnet_graph_set_batch(s.g, 0) != CLNET_OK, "a batch of 0");
    clnet_context_clear(ctx);
    CHECK(clnet_graph_set_batch(s.g, 5) != CLNET_OK && contains(clnet_error(ctx), "5"), "%s",
          clnet_error(ctx));
    free(whole);
    clnet_graph_destroy(s.g);
    clnet_context_destroy(ctx);
}

// Two halves with half the upstream gradient are one whole batch, up to rounding (without batch norm).
static void test_accumulation(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    small whole, half;
    CHECK(small_open(&whole, ctx, 4, false, false) && small_open(&half, ctx, 2, false, false), "%s",
          clnet_error(ctx));
    clnet_graph_zero_grad(whole.g);
    clnet_graph_forward(whole.g);
    clnet_graph_backward(whole.g);
    clnet_graph_zero_grad(half.g);
    clnet_graph_set_loss_scale(half.g, 0.5);
    for (int i = 0; i < 2; i++) {
        small_fill(&half, 2 * i, 2);
        clnet_graph_forward(half.g);
        clnet_graph_backward(half.g);
    }
    for (int i = 0; i < clnet_graph_weights(whole.g); i++) {
        clnet_tensor *w = clnet_graph_weight(whole.g, i);
        clnet_real *a = values_of(w, true), *b = values_of(clnet_graph_weight(half.g, i), true);
        double error = 0, size = 0;
        for (size_t k = 0; k < clnet_tensor_count(w); k++) {
            error += pow((double)a[k] - (double)b[k], 2), size += pow((double)a[k], 2);
        }
        CHECK(size > 0 && sqrt(error / size) <= 1e-6, "%s: off by %.2e", clnet_tensor_name(w),
              sqrt(error / size));
        free(a);
        free(b);
    }
    clnet_graph_destroy(whole.g);
    clnet_graph_destroy(half.g);
    clnet_context_destroy(ctx);
}

static void test_one_value_per_channel(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_graph *g = clnet_graph_create(ctx);
    clnet_tensor *x = clnet_input(g, "x", 2, 3, 1, 1), *y = small_norm(g, x, "bn");
    clnet_graph_build(g, &(clnet_build_desc){.loss = y});
    fill(x, 1);
    CHECK(clnet_graph_forward(g) == CLNET_OK, "two values per channel: %s", clnet_error(ctx));
    clnet_graph_set_batch(g, 1);
    CHECK(clnet_graph_forward(g) == CLNET_ERROR_ARGUMENT && contains(clnet_error(ctx), "bn"), "%s",
          clnet_error(ctx));
    clnet_context_clear(ctx);
    clnet_graph_set_training(g, false);
    CHECK(clnet_graph_forward(g) == CLNET_OK, "in evaluation it is allowed: %s", clnet_error(ctx));
    clnet_graph_destroy(g);
    clnet_context_destroy(ctx);
}

// Gradients in unusual places.

static void test_backward_needs_forward(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    small s;
    CHECK(small_open(&s, ctx, 2, true, false), "%s", clnet_error(ctx));
    CHECK(clnet_graph_backward(s.g) == CLNET_ERROR_ARGUMENT, "backward without any forward");
    clnet_context_clear(ctx);
    clnet_graph_forward(s.g);
    CHECK(clnet_graph_backward(s.g) == CLNET_OK, "%s", clnet_error(ctx));
    CHECK(clnet_graph_backward(s.g) == CLNET_ERROR_ARGUMENT,
          "backward twice, over activations that are gone");
    clnet_graph_destroy(s.g);
    clnet_context_destroy(ctx);
}

// A tensor that the loss does not depend on has the gradient 0, or none: never another tensor's.
static void test_gradient_of_a_bystander(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_graph *g = clnet_graph_create(ctx);
    clnet_tensor *x = clnet_tensor_require_grad(clnet_input(g, "x", 1, 2, 4, 4));
    clnet_tensor *other = clnet_tensor_require_grad(clnet_input(g, "other", 1, 2, 4, 4));
    clnet_tensor *apart = clnet_tensor_require_grad(small_conv(g, other, 2, "apart"));
    clnet_tensor *y = small_conv(g, clnet_relu(g, small_conv(g, x, 2, "a")), 2, "b");
    CHECK(clnet_graph_build(g, &(clnet_build_desc){.loss = y}) == CLNET_OK, "%s", clnet_error(ctx));
    fill(x, 1);
    fill(other, 2);
    for (int pass = 0; pass < 2; pass++) {
        clnet_real ones[32], found[32];
        for (int i = 0; i < 32; i++) {
            ones[i] = 1;
        }
        clnet_graph_forward(g);
        clnet_tensor_set_grad(y, ones, CLNET_ORDER_TORCH);
        clnet_graph_backward(g);
        clnet_tensor *const still[] = {other, apart};
        for (int k = 0; k < 2; k++) {
            const bool there =
                clnet_tensor_get_grad(still[k], found, CLNET_ORDER_TORCH) == CLNET_OK;
            int count = 0;
            for (int i = 0; there && i < 32; i++) {
                count += found[i] != 0;
            }
            clnet_context_clear(ctx);
            CHECK(count == 0, "%s: %d gradients are not 0", clnet_tensor_name(still[k]), count);
        }
    }
    clnet_graph_destroy(g);
    clnet_context_destroy(ctx);
}

// Without gradients of weights, one that is asked for is there, or refused; the others are not.
static void test_gradient_of_one_weight(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_graph *g = clnet_graph_create(ctx);
    clnet_tensor *x = clnet_input(g, "x", 1, 2, 4, 4),
                 *y = small_conv(g, small_conv(g, x, 2, "a"), 2, "b");
    clnet_tensor *w = clnet_tensor_require_grad(clnet_graph_find_weight(g, "b.weight"));
    const clnet_result built =
        clnet_graph_build(g, &(clnet_build_desc){.loss = y, .no_weight_grad = true});
    clnet_real numbers[36] = {1};
    if (built == CLNET_OK) {
        fill(x, 1);
        clnet_graph_forward(g);
        clnet_tensor_set_grad(y, numbers, CLNET_ORDER_TORCH);
        clnet_graph_backward(g);
        CHECK(clnet_tensor_get_grad(w, numbers, CLNET_ORDER_TORCH) == CLNET_OK, "%s",
              clnet_error(ctx));
    } else {
        CHECK(clnet_error(ctx)[0], "refused without a sentence");
    }
    clnet_graph_destroy(g);
    clnet_context_destroy(ctx);
}

// A label that is no class is an error of the caller's data, told in words.
static void test_label_out_of_range(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    small s;
    CHECK(small_open(&s, ctx, 2, true, false), "%s", clnet_error(ctx));
    clnet_tensor_set(s.label, (int32_t[]){0, 3}, CLNET_ORDER_TORCH);
    const clnet_result result = clnet_train_step(s.adam, 1e-3);
    CHECK(result == CLNET_ERROR_ARGUMENT && contains(clnet_error(ctx), "label"),
          "label 3 of 3 classes: %d, %s", (int)result, clnet_error(ctx));
    clnet_graph_destroy(s.g);
    clnet_context_destroy(ctx);
}

// NaN in an image: the step is refused, names where, and leaves every weight and statistic.
static void test_nan(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    small s, untouched;
    CHECK(small_open(&s, ctx, 2, true, false) && small_open(&untouched, ctx, 2, true, false), "%s",
          clnet_error(ctx));
    CHECK(clnet_train_step(s.adam, 1e-3) == CLNET_OK &&
              clnet_train_step(untouched.adam, 1e-3) == CLNET_OK,
          "%s", clnet_error(ctx));
    clnet_real *image = values_of(s.x, false);
    image[100] = (clnet_real)NAN;
    clnet_tensor_set(s.x, image, CLNET_ORDER_TORCH);
    CHECK(clnet_train_step(s.adam, 1e-3) == CLNET_ERROR_NONFINITE, "NaN passed");
    CHECK(contains(clnet_error(ctx), "conv1"), "%s", clnet_error(ctx));
    CHECK(clnet_adam_steps(s.adam) == 1, "the step was counted");
    clnet_context_clear(ctx);
    CHECK(different_weights(s.g, untouched.g, false) == 0, "%d weights or statistics changed",
          different_weights(s.g, untouched.g, false));
    small_fill(&s, 0, 2);
    CHECK(clnet_train_step(s.adam, 1e-3) == CLNET_OK && isfinite(clnet_tensor_item(s.loss)),
          "training cannot go on: %s", clnet_error(ctx));
    free(image);
    clnet_graph_destroy(s.g);
    clnet_graph_destroy(untouched.g);
    clnet_context_destroy(ctx);
}

// Models.

static clnet_model *open_model(clnet_context *ctx, uint64_t seed) {
    clnet_model *m = clnet_model_create(
        ctx,
        &(clnet_model_desc){
            .width = 1.0 / 32, .size = {48, 40}, .batch = 2, .purpose = CLNET_TRAIN, .seed = seed});
    CHECK(m, "%s", clnet_error(ctx));
    return m;
}

// Step t of a training with data of its own; both tasks, some images without one of the truths.
static void model_step(clnet_model *m, int t) {
    const size_t pixels = m->mask ? clnet_tensor_count(m->mask) : 0;
    clnet_real *mask = malloc(pixels * sizeof *mask);
    fill(m->image, (uint64_t)(100 + t));
    for (size_t i = 0; mask && i < pixels; i++) {
        mask[i] = t % 3 == 2 && i < pixels / 2 ? -1 : clnet_random_uniform(9, (uint64_t)t, i) < 0.4;
    }
    if (m->mask) {
        clnet_tensor_set(m->mask, mask, CLNET_ORDER_TORCH);
    }
    if (m->label) {
        clnet_tensor_set(m->label, (int32_t[]){t % 3, t % 2 ? -1 : 1}, CLNET_ORDER_TORCH);
    }
    clnet_train_step(m->adam, clnet_poly_lr(1e-3, (uint64_t)t, 20, 0.96));
    free(mask);
}

static void test_threads_agree(void) {
    static const int threads[] = {1, 2, 3, 8};
    clnet_context *ctx[4];
    clnet_model *m[4];
    for (int i = 0; i < 4; i++) {
        ctx[i] = clnet_context_create(&(clnet_context_desc){.threads = threads[i]});
        m[i] = open_model(ctx[i], 1);
        for (int t = 0; m[i] && t < 20; t++) {
            model_step(m[i], t);
        }
        CHECK(clnet_context_result(ctx[i]) == CLNET_OK, "%s", clnet_error(ctx[i]));
        const int different =
            i && m[0] && m[i] ? different_weights(m[0]->graph, m[i]->graph, false) : 0;
        CHECK(different == 0, "%d threads: %d weights differ after 20 steps", threads[i],
              different);
    }
    for (int i = 0; i < 4; i++) {
        clnet_model_destroy(m[i]);
        clnet_context_destroy(ctx[i]);
    }
}

// y of linear for each of several images alone: the bits that it has in a batch.
static int different_alone(clnet_isa isa, int features, int out_features) {
    enum { IMAGES = 7, MOST = 700 };
    clnet_real x[IMAGES * MOST], all[IMAGES * MOST], alone[MOST];
    clnet_context *ctx = clnet_context_create(&(clnet_context_desc){.isa = isa, .threads = 2});
    clnet_graph *g = clnet_graph_create(ctx);
    clnet_tensor *in = clnet_input(g, "x", IMAGES, features, 1, 1);
    const clnet_linear_desc desc = {.out_features = out_features, .name = "fc"};
    clnet_tensor *y = clnet_tensor_keep(clnet_linear(g, in, &desc));
    int different = clnet_graph_build(g, &(clnet_build_desc){.seed = 3}) != CLNET_OK;
    for (int i = 0; i < IMAGES * features; i++) {
        x[i] = (clnet_real)clnet_random_normal(8, 0, (uint64_t)i);
    }
    clnet_tensor_set(in, x, CLNET_ORDER_TORCH);
    clnet_graph_forward(g);
    clnet_tensor_get(y, all, CLNET_ORDER_TORCH);
    clnet_graph_set_batch(g, 1);
    for (int n = 0; n < IMAGES; n++) {
        clnet_tensor_set(in, x + n * features, CLNET_ORDER_TORCH);
        clnet_graph_forward(g);
        clnet_tensor_get(y, alone, CLNET_ORDER_TORCH);
        different += memcmp(alone, all + n * out_features, (size_t)out_features * sizeof *x) != 0;
    }
    CHECK(clnet_context_result(ctx) == CLNET_OK, "%s", clnet_error(ctx));
    clnet_graph_destroy(g);
    clnet_context_destroy(ctx);
    return different;
}

static void test_single_image(void) {
    static const int sizes[] = {1, 3, 4, 15, 16, 33, 64, 130, 257, 700};
    enum { SIZES = sizeof sizes / sizeof *sizes };
    for (int isa = CLNET_ISA_PORTABLE; isa <= CLNET_ISA_AVX512; isa++) {
        for (int i = 0; clnet_isa_supported((clnet_isa)isa) && i < SIZES * SIZES; i++) {
            const int features = sizes[i / SIZES], out_features = sizes[i % SIZES];
            const int different = different_alone((clnet_isa)isa, features, out_features);
            CHECK(different == 0, "%s, linear %d -> %d: %d images", clnet_isa_name((clnet_isa)isa),
                  features, out_features, different);
        }
    }
}

typedef struct job {
    clnet_context *ctx;
    clnet_model *model;
} job;

static void *train_alone(void *arg) {
    job *j = arg;
    for (int t = 0; j->model && t < 5; t++) {
        model_step(j->model, t);
    }
    return NULL;
}

// Nodes that backward runs once more.
static int nodes_again(const clnet_graph *g) {
    int count = 0;
    for (int i = 0; i < clnet_graph_nodes(g); i++) {
        count += clnet_graph_node_output(g, i)->producer->again >= 0;
    }
    return count;
}

// Two models after the same steps: weights, running statistics and gradients have the same bits.
static void check_same_models(const clnet_model *a, const clnet_model *b, const char *what) {
    CHECK(different_weights(a->graph, b->graph, false) == 0, "%s, %s: %d weights differ",
          a->desc.name, what, different_weights(a->graph, b->graph, false));
    CHECK(different_weights(a->graph, b->graph, true) == 0, "%s, %s: %d gradients differ",
          a->desc.name, what, different_weights(a->graph, b->graph, true));
}

// Gradients of one more batch. Zeroing them between forward and backward takes nothing away that
// backward reads.
static void model_gradients(clnet_model *m) {
    clnet_graph_forward(m->graph);
    clnet_graph_zero_grad(m->graph);
    clnet_graph_backward(m->graph);
}

// What backward computes again has the bits of what is kept, and gradients of weights that share the
// activations' memory those of gradients that do not: after three steps of networks that have all that
// there is, on the fast path and on the plain loops, in one piece of memory and in several.
static void test_less_memory(void) {
    static const struct {
        const char *name;
        clnet_fusion fusion;
        clnet_context_desc context;
    } cases[] = {{"resnet50+unet", CLNET_FUSION_SHARED, {.threads = 1}},
                 {"resnet50+unet", CLNET_FUSION_SHARED, {.threads = 3}},
                 {"resnet50+unet", CLNET_FUSION_SHARED, {.threads = 2, .reference = true}},
                 {"arlnet50+resunet", CLNET_FUSION_PER_TASK, {.threads = 2}},
                 {"inception_v3+unet", CLNET_FUSION_SHARED, {.threads = 2}},
                 {"inception_v3", CLNET_FUSION_SHARED, {.threads = 2}},
                 {"unet", CLNET_FUSION_SHARED, {.threads = 2}},
                 {"resnet50+unet",
                  CLNET_FUSION_PER_TASK,
                  {.threads = 2, .reference = true, .largest_allocation = 300 * 1000}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        clnet_context *ctx = clnet_context_create(&cases[i].context);
        clnet_model_desc desc = {.name = cases[i].name,
                                 .width = 1.0 / 32,
                                 .size = {75, 80},
                                 .batch = 2,
                                 .fusion = cases[i].fusion,
                                 .purpose = CLNET_TRAIN,
                                 .seed = 2};
        clnet_model *m = clnet_model_create(ctx, &desc);
        desc.no_accumulation = true;
        clnet_model *sharing = clnet_model_create(ctx, &desc);
        desc.no_accumulation = false;
        desc.keep_all = true;
        clnet_model *all = clnet_model_create(ctx, &desc);
        for (int t = 0; m && sharing && all && t < 3; t++) {
            model_step(m, t);
            model_step(sharing, t);
            model_step(all, t);
        }
        CHECK(clnet_context_result(ctx) == CLNET_OK, "%s: %s", cases[i].name, clnet_error(ctx));
        CHECK(nodes_again(m->graph) > 0 && nodes_again(all->graph) == 0, "%s: %d nodes again, %d",
              cases[i].name, nodes_again(m->graph), nodes_again(all->graph));
        CHECK(m->plan.total < all->plan.total && sharing->plan.total < m->plan.total,
              "%s: %zu bytes, %zu and %zu", cases[i].name, all->plan.total, m->plan.total,
              sharing->plan.total);
        if (m && sharing && all) {
            model_gradients(m);
            model_gradients(sharing);
            model_gradients(all);
        }
        check_same_models(m, all, "again");
        check_same_models(sharing, all, "no accumulation");
        clnet_model_destroy(sharing);
        clnet_model_destroy(m);
        clnet_model_destroy(all);
        clnet_context_destroy(ctx);
    }
}

// Gradients of weights that share the activations' memory are there from a backward to the next
// forward; asking for them or using them afterwards is refused. What no loss reaches has 0.
static void test_no_accumulation(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_graph *g = clnet_graph_create(ctx);
    clnet_tensor *x = clnet_input(g, "image", 2, 3, 9, 8);
    clnet_tensor *aside = small_conv(g, x, 4, "aside");
    clnet_tensor *y = small_norm(g, small_conv(g, clnet_relu(g, aside), 5, "bystander"), "bn");
    clnet_tensor *label = clnet_input_labels(g, "label", 2);
    clnet_tensor *loss =
        clnet_focal_loss(g, clnet_global_avg_pool(g, aside), label, &(clnet_focal_loss_desc){0});
    clnet_adam *adam = clnet_adam_create(g, NULL);
    clnet_tensor_keep(y);
    clnet_graph_build(g, &(clnet_build_desc){.loss = loss, .no_accumulation = true, .seed = 3});
    fill(x, 4);
    clnet_tensor *reached = clnet_graph_find_weight(g, "aside.weight"),
                 *other = clnet_graph_find_weight(g, "bystander.weight");
    clnet_real *first = NULL;
    for (int pass = 0; pass < 2; pass++) {
        clnet_graph_forward(g);
        clnet_graph_zero_grad(g); // nothing to do, least of all to the values that backward reads
        CHECK(clnet_graph_backward(g) == CLNET_OK, "%s", clnet_error(ctx));
        clnet_real *found = values_of(reached, true), *zero = values_of(other, true);
        int wrong = 0;
        for (size_t i = 0; i < clnet_tensor_count(other); i++) {
            wrong += zero[i] != 0;
        }
        CHECK(wrong == 0, "%d gradients of a bystander are not 0", wrong);
        CHECK(found[0] != 0 &&
                  (!first || !memcmp(first, found, clnet_tensor_count(reached) * sizeof *found)),
              "pass %d: the gradient adds up", pass);
        free(zero);
        free(first);
        first = found;
    }
    clnet_graph_forward(g);
    CHECK(clnet_tensor_get_grad(reached, first, CLNET_ORDER_TORCH) == CLNET_ERROR_ARGUMENT &&
              contains(clnet_error(ctx), "no_accumulation"),
          "%s", clnet_error(ctx));
    clnet_context_clear(ctx);
    CHECK(clnet_adam_step(adam, 1e-3) == CLNET_ERROR_ARGUMENT && clnet_adam_steps(adam) == 0,
          "a step with gradients that are gone");
    clnet_context_clear(ctx);
    CHECK(clnet_train_update(adam, 1e-3) == CLNET_ERROR_ARGUMENT, "an update likewise");
    clnet_context_clear(ctx);
    clnet_real *image = values_of(x, false);
    const clnet_real pixel = image[0];
    image[0] = INFINITY;
    clnet_tensor_set(x, image, CLNET_ORDER_TORCH);
    clnet_graph_forward(g);
    CHECK(clnet_train_update(adam, 1e-3) == CLNET_ERROR_ARGUMENT,
          "what lies where gradients were is taken for one that is not finite");
    clnet_context_clear(ctx);
    image[0] = pixel;
    clnet_tensor_set(x, image, CLNET_ORDER_TORCH);
    free(image);
    clnet_graph_forward(g);
    clnet_graph_backward(g);
    CHECK(clnet_graph_first_nonfinite(g) == NULL && clnet_context_result(ctx) == CLNET_OK &&
              clnet_tensor_get_grad(reached, first, CLNET_ORDER_TORCH) == CLNET_ERROR_ARGUMENT,
          "looking for what is not finite is a forward too");
    clnet_context_clear(ctx);
    clnet_graph_forward(g);
    CHECK(clnet_graph_backward(g) == CLNET_OK && clnet_train_update(adam, 1e-3) == CLNET_OK, "%s",
          clnet_error(ctx));
    free(first);
    clnet_graph_destroy(g);
    clnet_context_destroy(ctx);
}

// Of a convolution, batch norm and ReLU one tensor is kept for backward, the convolution's output.
static void test_again_memory(void) {
    enum { BLOCKS = 12, TENSOR = 2 * 16 * 24 * 24 };
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_graph *g = clnet_graph_create(ctx);
    clnet_tensor *x = clnet_input(g, "image", 2, 16, 24, 24);
    for (int i = 0; i < BLOCKS; i++) {
        char name[2][16];
        snprintf(name[0], sizeof name[0], "conv%d", i);
        snprintf(name[1], sizeof name[1], "norm%d", i);
        x = clnet_relu(g, small_norm(g, small_conv(g, x, 16, name[0]), name[1]));
    }
    clnet_tensor *label = clnet_input_labels(g, "label", 2);
    clnet_tensor *loss =
        clnet_focal_loss(g, clnet_global_avg_pool(g, x), label, &(clnet_focal_loss_desc){0});
    clnet_memory_plan plan = {0};
    clnet_graph_plan(g, &(clnet_build_desc){.loss = loss}, &plan);
    // Beside the convolutions' outputs: the image, what is computed again, two gradients, small ones.
    const size_t most = (BLOCKS + 5) * TENSOR * sizeof(clnet_real);
    CHECK(plan.activations > 0 && plan.activations <= most, "%zu bytes, expected at most %zu: %s",
          plan.activations, most, clnet_error(ctx));
    clnet_graph_destroy(g);
    clnet_context_destroy(ctx);
}

// What lies with a convolution's output in one concatenation, and what is kept anyway, is not computed
// again.
static void test_again_costs(void) {
    for (int keep = 0; keep < 2; keep++) {
        clnet_context *ctx = clnet_context_create(NULL);
        clnet_graph *g = clnet_graph_create(ctx);
        clnet_tensor *x = clnet_input(g, "image", 2, 3, 9, 8);
        clnet_tensor *costly = small_conv(g, x, 4, "costly");
        clnet_tensor *cheap = clnet_relu(g, small_norm(g, small_conv(g, x, 4, "conv"), "norm"));
        clnet_tensor *read =
            keep ? clnet_tensor_keep(cheap) : clnet_concat(g, (clnet_tensor *[]){costly, cheap}, 2);
        clnet_tensor *y = clnet_global_avg_pool(g, small_conv(g, read, 3, "last"));
        clnet_tensor *label = clnet_input_labels(g, "label", 2);
        clnet_tensor *loss = clnet_focal_loss(g, y, label, &(clnet_focal_loss_desc){0});
        clnet_graph_build(g, &(clnet_build_desc){.loss = loss});
        CHECK(nodes_again(g) == 0 && clnet_context_result(ctx) == CLNET_OK, "keep %d: %d nodes: %s",
              keep, nodes_again(g), clnet_error(ctx));
        clnet_graph_destroy(g);
        clnet_context_destroy(ctx);
    }
}

static void test_two_contexts_in_two_threads(void) {
    job jobs[3];
    pthread_t threads[2];
    for (int i = 0; i < 3; i++) {
        jobs[i].ctx = clnet_context_create(&(clnet_context_desc){.threads = 2});
        jobs[i].model = open_model(jobs[i].ctx, 4);
    }
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_create(&threads[i], NULL, train_alone, &jobs[i]) == 0, "thread %d", i);
    }
    train_alone(&jobs[2]);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        CHECK(different_weights(jobs[i].model->graph, jobs[2].model->graph, false) == 0,
              "thread %d", i);
    }
    for (int i = 0; i < 3; i++) {
        CHECK(clnet_context_result(jobs[i].ctx) == CLNET_OK, "%s", clnet_error(jobs[i].ctx));
        clnet_model_destroy(jobs[i].model);
        clnet_context_destroy(jobs[i].ctx);
    }
}

static void test_refused_models(void) {
    const clnet_model_desc bad[] = {
        {.name = "resnet51"},
        {.name = ""},
        {.name = "unet+resnet50"},
        {.name = "resnet50+"},
        {.name = "resnet50+resnet50"},
        {.classes = -1},
        {.classes = 1000},
        {.width = -1},
        {.width = NAN},
        {.size = {16, 224}},
        {.size = {-32, 32}},
        {.name = "unet", .size = {15, 64}},
        {.name = "inception_v3", .size = {74, 224}},
        {.name = "inception_v3+unet", .size = {80, 74}},
        {.name = "inception_v3+arlnet50"},
        {.batch = -1},
        {.width = 1e6},
        {.size = {2000000000, 2000000000}},
        {.name = "a name that is much longer than any network's name could ever be"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        clnet_context *ctx = clnet_context_create(NULL);
        clnet_model_desc desc = bad[i];
        desc.plan_only = true;
        CHECK(!clnet_model_create(ctx, &desc) && clnet_error(ctx)[0], "desc %zu was accepted", i);
        clnet_context_destroy(ctx);
    }
}

// Every name that there is, at its smallest size, which no other than Inception's is; and where dropout
// stands: in front of Inception's own head while training, and nowhere else.
static void test_all_models(void) {
    static const char *const cls[] = {"", "resnet50", "arlnet50", "inception_v3"}, *const seg[] = {
                                                                                       "", "unet",
                                                                                       "resunet"};
    clnet_context *ctx = clnet_context_create(NULL);
    for (int i = 1; i < 12; i++) {
        char name[32];
        const char *a = cls[i % 4], *b = seg[i / 4];
        const int smallest = i % 4 == 3 ? 75 : 32;
        snprintf(name, sizeof name, "%s%s%s", a, *a && *b ? "+" : "", b);
        for (int k = 0; k < 3; k++) {
            const clnet_model_desc desc = {.name = name,
                                           .size = {smallest, smallest + 8},
                                           .purpose = k ? CLNET_TRAIN : CLNET_INFER,
                                           .no_dropout = k == 2,
                                           .plan_only = true};
            clnet_model *m = clnet_model_create(ctx, &desc);
            CHECK(m, "%s: %s", name, clnet_error(ctx));
            int dropouts = 0;
            for (int node = 0; m && node < clnet_graph_nodes(m->graph); node++) {
                dropouts += !strcmp(clnet_graph_node_op(m->graph, node), "dropout");
            }
            CHECK(dropouts == (!strcmp(name, "inception_v3") && k == 1), "%s, %d: %d dropouts",
                  name, k, dropouts);
            clnet_model_destroy(m);
        }
    }
    clnet_context_destroy(ctx);
}

// Files.

static char folder[256];

static const char *file_in(const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

// Are two files the same, byte by byte, and not empty?
static bool same_files(const char *first, const char *second) {
    char path[512];
    snprintf(path, sizeof path, "%s", file_in(first));
    FILE *a = fopen(path, "rb"), *b = fopen(file_in(second), "rb");
    bool same = a && b;
    long count = 0;
    for (int x = 0, y = 0; same && x != EOF; count++) {
        x = fgetc(a), y = fgetc(b);
        same = x == y;
    }
    if (a) {
        fclose(a);
    }
    if (b) {
        fclose(b);
    }
    return same && count > 1;
}

static void test_save_and_load(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_model *a = open_model(ctx, 1), *b = open_model(ctx, 2);
    CHECK(different_weights(a->graph, b->graph, false) > 0, "different seeds, the same weights");
    model_step(a, 0);
    CHECK(clnet_model_save(a, file_in("model.safetensors")) == CLNET_OK, "%s", clnet_error(ctx));
    CHECK(clnet_model_load(b, file_in("model.safetensors")) == CLNET_OK, "%s", clnet_error(ctx));
    CHECK(different_weights(a->graph, b->graph, false) == 0, "loaded weights differ");
    char name[32];
    clnet_model_desc desc;
    CHECK(clnet_model_describe(ctx, file_in("model.safetensors"), &desc, name) == CLNET_OK, "%s",
          clnet_error(ctx));
    CHECK(!strcmp(name, "resnet50+unet") && desc.classes == 3 && desc.size[0] == 48 &&
              desc.size[1] == 40 && desc.width == 1.0 / 32,
          "%s, %d classes, %d x %d, width %g", name, desc.classes, desc.size[0], desc.size[1],
          desc.width);
    clnet_model *c = clnet_model_open(ctx, file_in("model.safetensors"));
    CHECK(c && different_weights(a->graph, c->graph, false) == 0, "%s", clnet_error(ctx));
    clnet_model_destroy(a);
    clnet_model_destroy(b);
    clnet_model_destroy(c);
    clnet_context_destroy(ctx);
}

// Six steps at a stretch, and three, a checkpoint, a fresh model, three more: the same bits.
static void test_resume(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_model *straight = open_model(ctx, 1), *first = open_model(ctx, 1),
                *second = open_model(ctx, 7);
    for (int t = 0; t < 6; t++) {
        model_step(straight, t);
        if (t < 3) {
            model_step(first, t);
        }
    }
    const clnet_file_pair more[] = {{"epoch", "1"}, {"position", "3"}};
    CHECK(clnet_checkpoint_save(first, file_in("last.safetensors"), more, 2) == CLNET_OK, "%s",
          clnet_error(ctx));
    CHECK(clnet_checkpoint_load(second, file_in("last.safetensors")) == CLNET_OK, "%s",
          clnet_error(ctx));
    CHECK(clnet_adam_steps(second->adam) == 3 &&
              clnet_graph_step(second->graph) == clnet_graph_step(first->graph),
          "steps");
    for (int t = 3; t < 6; t++) {
        model_step(second, t);
    }
    CHECK(different_weights(straight->graph, second->graph, false) == 0, "%d weights differ",
          different_weights(straight->graph, second->graph, false));
    clnet_checkpoint_save(straight, file_in("a.safetensors"), more, 2);
    clnet_checkpoint_save(second, file_in("b.safetensors"), more, 2);
    CHECK(same_files("a.safetensors", "b.safetensors"), "the checkpoints differ");
    clnet_tensor_file *f = clnet_tensor_file_open(ctx, file_in("last.safetensors"));
    CHECK(f && clnet_tensor_file_metadata(f, "position") &&
              !strcmp(clnet_tensor_file_metadata(f, "position"), "3"),
          "metadata");
    clnet_tensor_file_close(f);
    CHECK(clnet_model_load(first, file_in("last.safetensors")) == CLNET_OK,
          "a checkpoint is a file of weights: %s", clnet_error(ctx));
    clnet_model *open[] = {straight, first, second};
    for (int i = 0; i < 3; i++) {
        clnet_model_destroy(open[i]);
    }
    clnet_context_destroy(ctx);
}

// Files of weights that do not fit: every name is told, with both shapes, and nothing is loaded.
static void test_wrong_weights(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    const clnet_model_desc desc = {.name = "unet", .width = 1.0 / 64, .size = {32, 32}};
    clnet_model *m = clnet_model_create(ctx, &desc), *other = clnet_model_create(ctx, &desc);
    CHECK(m && other && clnet_model_save(m, file_in("good.safetensors")) == CLNET_OK, "%s",
          clnet_error(ctx));
    if (!m || !other) {
        return;
    }
    float zeros[512] = {0};
    const clnet_file_item items[] = {
        {.name = "seg.enc1.0.weight", .rank = 4, .shape = {1, 3, 3, 4}, .data = zeros},
        {.name = "dec.head.bias", .rank = 1, .shape = {1}, .data = zeros},
        {.name = "stranger.weight", .rank = 1, .shape = {5}, .data = zeros}};
    CHECK(clnet_safetensors_write(ctx, file_in("wrong.safetensors"), items, 3, NULL, 0) == CLNET_OK,
          "%s", clnet_error(ctx));
    CHECK(clnet_model_load(m, file_in("wrong.safetensors")) == CLNET_ERROR_MISMATCH,
          "wrong weights were loaded");
    static const char *const told[] = {"wrong.safetensors", "seg.enc1.0.weight",
                                       "(1,3,3,4)",         "(1,3,3,3)",
                                       "stranger.weight",   "seg.enc1.1.weight"};
    for (size_t i = 0; i < sizeof told / sizeof *told; i++) {
        CHECK(contains(clnet_error(ctx), told[i]), "%s is not told: %s", told[i], clnet_error(ctx));
    }
    clnet_context_clear(ctx);
    CHECK(different_weights(m->graph, other->graph, false) == 0, "some weights were loaded");
    CHECK(clnet_model_load(m, file_in("nothing.safetensors")) == CLNET_ERROR_FILE &&
              contains(clnet_error(ctx), "nothing"),
          "%s", clnet_error(ctx));
    clnet_context_clear(ctx);
    CHECK(!clnet_model_open(ctx, file_in("wrong.safetensors")) &&
              clnet_context_result(ctx) == CLNET_ERROR_METADATA,
          "%s", clnet_error(ctx));
    clnet_context_clear(ctx);
    CHECK(clnet_checkpoint_load(m, file_in("good.safetensors")) != CLNET_OK,
          "a checkpoint without an optimiser");
    clnet_context_clear(ctx);
    CHECK(clnet_model_load(m, file_in("good.safetensors")) == CLNET_OK, "%s", clnet_error(ctx));
    clnet_model_destroy(m);
    clnet_model_destroy(other);
    clnet_context_destroy(ctx);
}

static void test_predict(void) {
    static const int sizes[][2] = {{1, 1}, {1, 40}, {37, 53}, {48, 40}, {200, 3}, {113, 150}};
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_model *m =
        clnet_model_create(ctx, &(clnet_model_desc){.width = 1.0 / 32, .size = {48, 40}});
    for (size_t i = 0; m && i < sizeof sizes / sizeof *sizes; i++) {
        const size_t pixels = (size_t)sizes[i][0] * (size_t)sizes[i][1];
        unsigned char *rgb = malloc(3 * pixels), *mask = malloc(pixels);
        float *probability = malloc(pixels * sizeof *probability);
        for (size_t k = 0; k < 3 * pixels; k++) {
            rgb[k] = (unsigned char)(k * 37 % 251);
        }
        clnet_prediction p = {.mask = mask, .probability = probability};
        CHECK(clnet_predict(m, rgb, sizes[i][0], sizes[i][1], &p) == CLNET_OK, "%s",
              clnet_error(ctx));
        CHECK(fabs(p.scores[0] + p.scores[1] + p.scores[2] - 1) < 1e-6,
              "scores do not add up to 1");
        int wrong = 0;
        for (size_t k = 0; k < pixels; k++) {
            wrong += !(probability[k] >= 0 && probability[k] <= 1) ||
                     mask[k] != (probability[k] > 0.5f ? 255 : 0);
        }
        CHECK(wrong == 0, "%d x %d: %d pixels", sizes[i][0], sizes[i][1], wrong);
        free(rgb);
        free(mask);
        free(probability);
    }
    unsigned char pixel[3] = {0};
    CHECK(clnet_predict(m, pixel, 0, 1, &(clnet_prediction){.mask = NULL}) == CLNET_ERROR_ARGUMENT,
          "an image of height 0");
    clnet_model_destroy(m);
    clnet_context_destroy(ctx);
}

// The rows of a profile: what ran, how often, with how many multiply-adds; none without being asked.
static void test_profile(void) {
    for (int profile = 0; profile < 2; profile++) {
        clnet_context *ctx =
            clnet_context_create(&(clnet_context_desc){.threads = 1, .profile = profile});
        clnet_graph *g = clnet_graph_create(ctx);
        clnet_tensor *x = clnet_input(g, "x", 2, 3, 6, 5);
        const clnet_conv2d_desc conv = {
            .out_channels = 4, .kernel_size = {3, 3}, .padding = {1, 1}, .name = "c"};
        clnet_tensor *y = clnet_relu(g, clnet_conv2d(g, x, &conv));
        clnet_adam *adam = clnet_adam_create(g, NULL);
        clnet_graph_build(g, &(clnet_build_desc){.loss = y});
        fill(x, 1);
        clnet_profile_clear(ctx);
        for (int i = 0; i < 3; i++) {
            clnet_graph_forward(g);
            clnet_graph_backward(g);
        }
        clnet_adam_step(adam, 1e-3);
        const double macs = 2 * 6 * 5 * 4 * 3 * 9; // of a pass; backward has the weights' alone
        int rows = 0;
        clnet_profile_row row;
        for (; clnet_profile(ctx, rows, &row); rows++) {
            const bool conv2d = !strcmp(row.name, "conv2d"), update = !strcmp(row.pass, "update");
            CHECK(row.calls == (update ? 1u : 3u) && row.macs == (conv2d ? 3 * macs : 0),
                  "%s %s: %d calls, %g multiply-adds", row.name, row.pass, (int)row.calls,
                  row.macs);
            CHECK(row.total >= row.longest && row.longest >= 0 && row.bytes > 0,
                  "%s %s: %g s, %g bytes", row.name, row.pass, row.total, row.bytes);
        }
        // conv2d and relu both ways, Adam, and the gradient of conv2d's output set to zero.
        CHECK(rows == (profile ? 5 : 0), "profile %d: %d rows", profile, rows);
        clnet_profile_clear(ctx);
        CHECK(!clnet_profile(ctx, 0, &row), "a row after clearing");
        clnet_graph_destroy(g);
        clnet_context_destroy(ctx);
    }
    clnet_profile_row row;
    CHECK(!clnet_profile(NULL, 0, &row), "a row of nothing");
}

// A training whose memory comes in small pieces ends with the same weights, and what cannot be
// divided is refused with its figures before anything is taken.
static void test_pieces(void) {
    static const size_t largest[3] = {0, 300000, 1024};
    clnet_real *expected = NULL, *found = NULL;
    for (int i = 0; i < 3; i++) {
        counter c = {0};
        clnet_context *ctx = clnet_context_create(
            &(clnet_context_desc){.threads = 1,
                                  .reference = true, // no scratch
                                  .largest_allocation = largest[i],
                                  .allocator = {counted_alloc, counted_free, &c}});
        const long before = c.live;
        clnet_graph *g = clnet_graph_create(ctx);
        clnet_tensor *x = clnet_input(g, "x", 4, 3, 16, 16), *y = x;
        static const char *const names[] = {"a", "b", "c", "d"};
        for (int k = 0; k < 4; k++) {
            const clnet_conv2d_desc conv = {
                .out_channels = 64, .kernel_size = {3, 3}, .padding = {1, 1}, .name = names[k]};
            y = clnet_relu(g, clnet_conv2d(g, y, &conv));
        }
        clnet_adam *adam = clnet_adam_create(g, NULL);
        const clnet_result result = clnet_graph_build(g, &(clnet_build_desc){.loss = y, .seed = 1});
        CHECK(result == (i < 2 ? CLNET_OK : CLNET_ERROR_MEMORY), "%zu: %s", largest[i],
              clnet_error(ctx));
        if (result == CLNET_OK) {
            fill(x, 1);
            clnet_graph_forward(g);
            clnet_real *upstream = values_of(y, false);
            clnet_tensor_set_grad(y, upstream, CLNET_ORDER_TORCH);
            free(upstream);
            clnet_graph_backward(g);
            clnet_adam_step(adam, 1e-3);
            found = values_of(clnet_graph_find_weight(g, "d.weight"), false);
            expected = i == 0 ? found : expected;
            CHECK(!memcmp(found, expected, 64 * 64 * 9 * sizeof *found), "pieces of %zu",
                  largest[i]);
            CHECK(clnet_graph_largest_batch(g, SIZE_MAX - 1, 100) == (i ? 4 : 100), "%zu: batch %d",
                  largest[i], clnet_graph_largest_batch(g, SIZE_MAX - 1, 100));
        } else {
            CHECK(contains(clnet_error(ctx), "a batch of 4 needs ") &&
                      contains(clnet_error(ctx), " at most 1024: room for a batch of 0"),
                  "%s", clnet_error(ctx));
        }
        clnet_graph_destroy(g);
        CHECK(c.live == before, "%ld blocks are left", c.live - before);
        clnet_context_destroy(ctx);
    }
    if (found != expected) {
        free(found);
    }
    free(expected);
}

static void remove_folder(void) {
    static const char *const names[] = {"model", "last", "a", "b", "good", "wrong"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s.safetensors", names[i]);
        remove(file_in(name));
    }
    rmdir(folder);
}

int main(void) {
    const char *tmp = getenv("TMPDIR");
    setvbuf(stdout, NULL, _IOLBF, 0);
    snprintf(folder, sizeof folder, "%s/clnet_api_XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(folder)) {
        perror(folder);
        return 1;
    }
    test_first_error_stays();
    test_null();
    test_refused_convolutions();
    test_refused_pooling();
    test_refused_operations();
    test_refused_losses();
    test_refused_contexts();
    test_refused_builds();
    test_refused_models();
    test_all_models();
    test_sharing_changes_nothing();
    test_concatenation_in_place();
    test_epilogues();
    test_norm_epilogues();
    test_pooling_without_argmax();
    test_part_read_last();
    test_backward_from_relu();
    test_plan();
    test_no_allocation_while_running();
    test_out_of_memory();
    test_batches();
    test_accumulation();
    test_one_value_per_channel();
    test_backward_needs_forward();
    test_gradient_of_a_bystander();
    test_gradient_of_one_weight();
    test_nan();
    test_threads_agree();
    test_single_image();
    test_less_memory();
    test_no_accumulation();
    test_again_memory();
    test_again_costs();
    test_two_contexts_in_two_threads();
    test_save_and_load();
    test_resume();
    test_wrong_weights();
    test_predict();
    test_label_out_of_range();
    test_profile();
    test_pieces();
    remove_folder();
    return test_close();
}
