// clnet run: tensors in, tensors out. The contract for outside checks; names and shapes as PyTorch's.
#include "clnet_cl.h"
#include "commands.h"
#include "network.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct run {
    device_options device;
    network_options network;
    const char *weights, *input, *output, *save_weights, *dump;
    bool train;
    int steps, cam, layer;
    double lr, weight_decay;
    bool with_cam;
    clnet_context *ctx;
    clnet_tensor_file *in;
    clnet_model *model;
    clnet_file_item *items; // what goes to the output; names and data are owned
    size_t count, room;
} run;

static const char *const cam_choices[] = {"paper", "gradcam", "gradcam++", NULL};
static const char *const layer_choices[] = {"fm1", "fm2", "fm3", "fm4", "fm5", NULL};

// One more tensor for the output, with room for its values (or I64). NULL: no memory.
static void *add(run *r, const char *name, clnet_dtype dtype, int rank, const int shape[4],
                 problem *p) {
    if (r->count == r->room) {
        const size_t room = r->room ? 2 * r->room : 64;
        clnet_file_item *items = realloc(r->items, room * sizeof *items);
        if (!items) {
            problem_run(p, "out of memory");
            return NULL;
        }
        r->items = items;
        r->room = room;
    }
    clnet_file_item item = {.dtype = dtype, .rank = rank};
    size_t count = 1;
    for (int i = 0; i < rank; i++) {
        item.shape[i] = (uint64_t)shape[i];
        count *= (size_t)shape[i];
    }
    char *copy = malloc(strlen(name) + 1);
    void *data = malloc(count * clnet_dtype_size(dtype));
    if (!copy || !data) {
        free(copy);
        free(data);
        problem_run(p, "out of memory: %zu numbers of %s", count, name);
        return NULL;
    }
    item.name = strcpy(copy, name);
    item.data = data;
    r->items[r->count++] = item;
    return data;
}

static bool add_tensor(run *r, const char *prefix, clnet_tensor *t, bool gradient, problem *p) {
    char name[320];
    int shape[4];
    for (int i = 0; i < 4; i++) {
        shape[i] = clnet_tensor_size(t, i);
    }
    snprintf(name, sizeof name, "%s%s", prefix, clnet_tensor_name(t));
    float *data = add(r, name, CLNET_F32, clnet_tensor_rank(t), shape, p);
    if (!data) {
        return false;
    }
    if ((gradient ? clnet_tensor_get_grad : clnet_tensor_get)(t, data, CLNET_ORDER_TORCH) !=
        CLNET_OK) {
        return problem_context(p, r->ctx);
    }
    return true;
}

// A tensor of the input file, with the type and shape it has to have (-1: any size).
static bool find_input(run *r, const char *name, clnet_dtype dtype, int rank, const int64_t *shape,
                       clnet_file_tensor *t, problem *p) {
    if (!clnet_tensor_file_find(r->in, name, t)) {
        return problem_input(p, "%s: has no tensor \"%s\"", r->input, name);
    }
    bool fits = t->dtype == dtype && t->rank == rank;
    for (int i = 0; fits && i < rank; i++) {
        fits = shape[i] < 0 ? t->shape[i] > 0 && t->shape[i] < 1 << 24
                            : t->shape[i] == (uint64_t)shape[i];
    }
    if (fits) {
        return true;
    }
    char needed[96] = "", found[96] = "";
    for (int i = 0; i < rank; i++) {
        const size_t used = strlen(needed);
        snprintf(needed + used, sizeof needed - used, shape[i] < 0 ? "%sany" : "%s%lld",
                 i ? "," : "", (long long)shape[i]);
    }
    for (int i = 0; i < t->rank; i++) {
        const size_t used = strlen(found);
        snprintf(found + used, sizeof found - used, "%s%llu", i ? "," : "",
                 (unsigned long long)t->shape[i]);
    }
    return problem_input(p, "%s: %s is %s (%s), needed is %s (%s)", r->input, name,
                         clnet_dtype_name(t->dtype), found, clnet_dtype_name(dtype), needed);
}

static bool read_labels(run *r, int32_t *labels, problem *p) {
    const int N = r->model->desc.batch, K = r->model->desc.classes;
    const int64_t shape[1] = {N};
    clnet_file_tensor t;
    for (int n = 0; n < N; n++) {
        labels[n] = -1;
    }
    if (!clnet_tensor_file_find(r->in, "label", &t)) {
        return true;
    }
    int64_t *values = malloc((size_t)N * sizeof *values);
    bool ok = values && find_input(r, "label", CLNET_I64, 1, shape, &t, p);
    if (ok && clnet_tensor_file_read(r->in, &t, values) != CLNET_OK) {
        ok = problem_context(p, r->ctx);
    }
    for (int n = 0; ok && n < N; n++) {
        if (values[n] < -1 || values[n] >= K) {
            ok = problem_input(p, "%s: label[%d] is %lld, needed are -1 to %d", r->input, n,
                               (long long)values[n], K - 1);
        } else {
            labels[n] = (int32_t)values[n];
        }
    }
    free(values);
    return ok;
}

static bool set_input(run *r, const char *name, clnet_tensor *to, problem *p) {
    const int64_t shape[4] = {clnet_tensor_size(to, 0), clnet_tensor_size(to, 1),
                              clnet_tensor_size(to, 2), clnet_tensor_size(to, 3)};
    clnet_file_tensor t;
    float *values = malloc(clnet_tensor_count(to) * sizeof *values);
    bool ok = values && find_input(r, name, CLNET_F32, 4, shape, &t, p);
    if (ok && (clnet_tensor_file_read_real(r->in, &t, values) != CLNET_OK ||
               clnet_tensor_set(to, values, CLNET_ORDER_TORCH) != CLNET_OK)) {
        ok = problem_context(p, r->ctx);
    }
    free(values);
    return ok || p->status || problem_run(p, "out of memory");
}

// An image without truth: a mask that begins with a negative value.
static bool set_no_mask(run *r, problem *p) {
    const size_t count = clnet_tensor_count(r->model->mask);
    float *values = malloc(count * sizeof *values);
    for (size_t i = 0; values && i < count; i++) {
        values[i] = -1;
    }
    const bool ok =
        values && clnet_tensor_set(r->model->mask, values, CLNET_ORDER_TORCH) == CLNET_OK;
    free(values);
    return ok || problem_run(p, "out of memory");
}

static bool set_inputs(run *r, int32_t *labels, problem *p) {
    clnet_file_tensor t;
    if (!set_input(r, "image", r->model->image, p) || !read_labels(r, labels, p)) {
        return false;
    }
    if (r->model->label &&
        clnet_tensor_set(r->model->label, labels, CLNET_ORDER_TORCH) != CLNET_OK) {
        return problem_context(p, r->ctx);
    }
    if (!r->model->mask) {
        return true;
    }
    return clnet_tensor_file_find(r->in, "mask", &t) ? set_input(r, "mask", r->model->mask, p)
                                                     : set_no_mask(r, p);
}

static bool add_outputs(run *r, problem *p) {
    if ((r->model->logits && !add_tensor(r, "", r->model->logits, false, p)) ||
        (r->model->mask_logits && !add_tensor(r, "", r->model->mask_logits, false, p))) {
        return false;
    }
    // The tensor of a decoder that ends at the input's size is called after its last layer.
    for (size_t i = 0; i < r->count; i++) {
        if (!strcmp(r->items[i].name, "dec.head")) {
            char *name = malloc(sizeof "mask_logits");
            if (!name) {
                return problem_run(p, "out of memory");
            }
            free((void *)(uintptr_t)r->items[i].name);
            r->items[i].name = strcpy(name, "mask_logits");
        }
    }
    return true;
}

static bool listed(const char *names, const char *name) {
    const size_t length = strlen(name);
    for (const char *at = names; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        if (strcspn(at, ",") == length && !strncmp(at, name, length)) {
            return true;
        }
    }
    return false;
}

static bool add_dump(run *r, problem *p) {
    const bool all = !strcmp(r->dump, "all");
    for (const char *at = r->dump; !all && at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        char name[256];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(at, ","), at);
        if (!clnet_graph_find_activation(r->model->graph, name)) {
            return problem_input(
                p, "--dump %s: the network has no such activation (see clnet info)", name);
        }
    }
    for (int i = 0; i < clnet_graph_activations(r->model->graph); i++) {
        clnet_tensor *t = clnet_graph_activation(r->model->graph, i);
        const bool input = t == r->model->image || t == r->model->label || t == r->model->mask;
        const bool there = t == r->model->logits || t == r->model->loss_classification ||
                           t == r->model->loss_focal || t == r->model->loss_dice ||
                           !strcmp(clnet_tensor_name(t), "mask_logits");
        if (!input && !there && (all || listed(r->dump, clnet_tensor_name(t))) &&
            !add_tensor(r, "", t, false, p)) {
            return false;
        }
    }
    return true;
}

static bool evaluate(run *r, int32_t *labels, problem *p) {
    clnet_graph_set_training(r->model->graph, false);
    if (clnet_graph_forward(r->model->graph) != CLNET_OK) {
        return problem_context(p, r->ctx);
    }
    if (!add_outputs(r, p) || (r->dump && !add_dump(r, p))) {
        return false;
    }
    if (!r->with_cam) {
        return true;
    }
    const clnet_tensor *map = r->model->stage[r->layer];
    const int shape[4] = {clnet_tensor_size(map, 0), clnet_tensor_size(map, 2),
                          clnet_tensor_size(map, 3), 1};
    float *cam = add(r, "cam", CLNET_F32, 3, shape, p);
    if (cam &&
        clnet_cam(r->model, (clnet_cam_variant)r->cam, r->layer + 1, labels, cam) != CLNET_OK) {
        return problem_context(p, r->ctx);
    }
    return cam != NULL;
}

// One forward and backward; then, with --steps, as many updates, each on the same batch.
static bool train(run *r, problem *p) {
    clnet_model *m = r->model;
    for (int step = 0; step < (r->steps ? r->steps : 1); step++) {
        clnet_graph_zero_grad(m->graph);
        clnet_graph_forward(m->graph);
        if (step == 0 && clnet_context_result(r->ctx) == CLNET_OK) {
            clnet_tensor *losses[3] = {m->loss_classification, m->loss_focal, m->loss_dice};
            bool ok = add_outputs(r, p) && (!r->dump || add_dump(r, p));
            for (int i = 0; ok && i < 3; i++) {
                ok = !losses[i] || add_tensor(r, "", losses[i], false, p);
            }
            if (!ok) {
                return false;
            }
        }
        clnet_graph_backward(m->graph);
        for (int i = 0; step == 0 && i < clnet_graph_weights(m->graph); i++) {
            clnet_tensor *t = clnet_graph_weight(m->graph, i);
            if (clnet_tensor_trainable(t) && !add_tensor(r, "grad.", t, true, p)) {
                return false;
            }
        }
        if (r->steps && clnet_train_update(m->adam, r->lr) != CLNET_OK) {
            break;
        }
    }
    return clnet_context_result(r->ctx) == CLNET_OK || problem_context(p, r->ctx);
}

static bool write_output(run *r, problem *p) {
    char threads[16];
    snprintf(threads, sizeof threads, "%d", clnet_context_threads(r->ctx));
    const clnet_file_pair metadata[] = {{"device", clnet_context_device(r->ctx)},
                                        {"isa", clnet_context_isa(r->ctx)},
                                        {"threads", threads},
                                        {"matrix_product", clnet_cl_matrix_product(r->ctx)},
                                        {"model", r->model->desc.name},
                                        {"version", CLNET_VERSION}};
    if (clnet_safetensors_write(r->ctx, r->output, r->items, r->count, metadata,
                                sizeof metadata / sizeof *metadata) != CLNET_OK) {
        return problem_run(p, "%s", clnet_error(r->ctx));
    }
    return !r->save_weights || clnet_model_save(r->model, r->save_weights) == CLNET_OK ||
           problem_run(p, "%s", clnet_error(r->ctx));
}

// The network for the input's batch and size, with its weights.
static bool open_model(run *r, problem *p) {
    const int64_t shape[4] = {-1, 3, -1, -1};
    clnet_file_tensor image;
    r->in = clnet_tensor_file_open(r->ctx, r->input);
    if (!r->in) {
        return problem_context(p, r->ctx);
    }
    if (!find_input(r, "image", CLNET_F32, 4, shape, &image, p)) {
        return false;
    }
    clnet_recipe recipe = clnet_paper_recipe();
    recipe.adam.weight_decay = r->weight_decay;
    r->network.size[0] = (int)image.shape[2];
    r->network.size[1] = (int)image.shape[3];
    clnet_model_desc d = network_desc(&r->network,
                                      r->train      ? CLNET_TRAIN
                                      : r->with_cam ? CLNET_EXPLAIN
                                                    : CLNET_INFER,
                                      (int)image.shape[0]);
    d.keep_all = r->dump != NULL;
    d.no_accumulation = true;
    d.no_dropout = true;
    d.recipe = &recipe;
    r->model = clnet_model_create(r->ctx, &d);
    if (!r->model || clnet_model_load(r->model, r->weights) != CLNET_OK) {
        return problem_context(p, r->ctx);
    }
    return !r->with_cam || r->model->logits ||
           problem_input(p, "--cam: %s has no classification", r->network.model);
}

static bool execute(run *r, problem *p) {
    r->ctx = device_open(&r->device, p);
    if (!r->ctx || !open_model(r, p)) {
        return false;
    }
    int32_t *labels = malloc((size_t)r->model->desc.batch * sizeof *labels);
    const bool ok = (labels || problem_run(p, "out of memory")) && set_inputs(r, labels, p) &&
                    (r->train ? train(r, p) : evaluate(r, labels, p)) && write_output(r, p);
    free(labels);
    return ok;
}

static bool check(const run *r, problem *p) {
    const char *const needed[][2] = {{"--model", r->network.model},
                                     {"--weights", r->weights},
                                     {"--input", r->input},
                                     {"--output", r->output}};
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        if (!needed[i][1]) {
            return problem_input(p, "%s is missing", needed[i][0]);
        }
    }
    if (r->train && r->with_cam) {
        return problem_input(p, "--cam: in evaluation only, not with --train");
    }
    return !r->steps || r->train || problem_input(p, "--steps: needs --train");
}

bool command_run(int argc, char **argv, bool usage, problem *p) {
    run r = {.lr = 1e-4, .weight_decay = 5e-4, .cam = -1, .layer = 4};
    option options[] = {
        NETWORK_OPTIONS(&r.network),
        OPTION(TEXT, "--weights", &r.weights, "weights of the network (required)"),
        OPTION(TEXT, "--input", &r.input,
               "safetensors with image (N,3,H,W), label (N), mask (N,1,H,W) (required)"),
        OPTION(TEXT, "--output", &r.output, "safetensors to write (required)"),
        OPTION(FLAG, "--train", &r.train, "training mode: losses and gradients too"),
        OPTION_RANGE(INT, "--steps", &r.steps, 1, 1000000,
                     "Adam steps on this batch, with --train"),
        OPTION_RANGE(NUMBER, "--lr", &r.lr, 0, 1000, "their learning rate (default: 1e-4)"),
        OPTION_RANGE(NUMBER, "--weight-decay", &r.weight_decay, 0, 1000,
                     "their weight decay (default: 5e-4)"),
        OPTION(TEXT, "--save-weights", &r.save_weights, "safetensors for the weights afterwards"),
        OPTION_OF(cam_choices, "--cam", &r.cam, "adds class activation maps"),
        OPTION_OF(layer_choices, "--layer", &r.layer, "their layer (default: fm5)"),
        OPTION(TEXT, "--dump", &r.dump, "adds activations: names with commas between, or all"),
        OPTION(FLAG, "--reference", &r.device.reference, "plain loops"),
        DEVICE_OPTIONS(&r.device),
    };
    const size_t count = sizeof options / sizeof *options;
    if (usage) {
        printf("usage: clnet run --model M --weights W --input X --output Y [options]\n\n");
        options_print(options, count);
        return true;
    }
    size_t paths;
    bool ok = options_parse(argc, argv, options, count, NULL, &paths, 0, p);
    r.with_cam = r.cam >= 0;
    ok = ok && check(&r, p) && execute(&r, p);
    for (size_t i = 0; i < r.count; i++) {
        free((void *)(uintptr_t)r.items[i].name);
        free((void *)(uintptr_t)r.items[i].data);
    }
    free(r.items);
    clnet_tensor_file_close(r.in);
    clnet_model_destroy(r.model);
    device_close(r.ctx);
    return ok;
}
