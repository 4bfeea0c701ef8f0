// tests/data/ops.safetensors: what PyTorch gives for single operations (tests/data/make_ops.py says
// how it is laid out). The library, and the naive loops too, have to agree with it.
#ifndef CLNET_VERIFY_TORCH_H
#define CLNET_VERIFY_TORCH_H

#include "verify_operations.h"

// Operations by the words of the file; the last three have no case of their own kind.
static const struct {
    const char *word;
    clnet_op op;
} torch_operations[] = {
    {"conv2d", CLNET_OP_CONV2D},
    {"linear", CLNET_OP_LINEAR},
    {"batch_norm", CLNET_OP_BATCH_NORM},
    {"relu", CLNET_OP_RELU},
    {"sigmoid", CLNET_OP_SIGMOID},
    {"softmax", CLNET_OP_SOFTMAX},
    {"max_pool2d", CLNET_OP_MAX_POOL2D},
    {"avg_pool2d", CLNET_OP_AVG_POOL2D},
    {"global_avg_pool", CLNET_OP_GLOBAL_AVG_POOL},
    {"bilinear", CLNET_OP_UPSAMPLE_BILINEAR},
    {"concat", CLNET_OP_CONCAT},
    {"add", CLNET_OP_ADD},
    {"gate", CLNET_OP_SCALE_CHANNELS},
    {"attention", CLNET_OP_ATTENTION_RESIDUAL},
    {"focal_softmax", CLNET_OP_FOCAL_LOSS},
    {"focal_sigmoid", CLNET_OP_MASK_FOCAL_LOSS},
    {"dice", CLNET_OP_DICE_LOSS},
};

typedef struct torch_file {
    clnet_tensor_file *file;
    const char *name; // of the case
} torch_file;

static bool torch_find(const torch_file *f, const char *part, clnet_file_tensor *t) {
    char name[128];
    snprintf(name, sizeof name, "%s/%s", f->name, part);
    return clnet_tensor_file_find(f->file, name, t);
}

// Reads a part of a case, `count` numbers of it; false: it is not there, or not of that size.
static bool torch_read(const torch_file *f, const char *part, double *values, size_t count) {
    clnet_file_tensor t;
    if (count == 0 || !torch_find(f, part, &t) || t.bytes != count * clnet_dtype_size(t.dtype)) {
        return false;
    }
    unsigned char *bytes = malloc((size_t)t.bytes);
    const bool read = bytes && clnet_tensor_file_read(f->file, &t, bytes) == CLNET_OK;
    for (size_t i = 0; read && i < count; i++) {
        float value = 0;
        if (t.dtype == CLNET_I64) {
            values[i] = bytes[8 * i]; // labels: small and not negative
        } else {
            clnet_decode(&value, bytes + 4 * i, 1, t.dtype);
            values[i] = (double)value;
        }
    }
    free(bytes);
    return read;
}

// "padding=1,0" among the words: the numbers behind it, or false.
static bool torch_numbers(const char *words, const char *key, double *first, double *second) {
    char wanted[64];
    const int length = snprintf(wanted, sizeof wanted, " %s=", key);
    const char *at = strstr(words, wanted);
    if (!at) {
        return false;
    }
    char *end;
    *first = strtod(at + length, &end);
    *second = *end == ',' ? strtod(end + 1, NULL) : *first;
    return true;
}

static void torch_pair(const char *words, const char *key, int pair[2]) {
    double a, b;
    if (torch_numbers(words, key, &a, &b)) {
        pair[0] = (int)a, pair[1] = (int)b;
    }
}

static double torch_number(const char *words, const char *key, double fallback) {
    double a, b;
    return torch_numbers(words, key, &a, &b) ? a : fallback;
}

// The shapes of a case's tensors into the fields of a row.
static void torch_shapes(const torch_file *f, verify_case *c) {
    static const char *const inputs[] = {"in0", "in1", "in2", "in3"};
    clnet_file_tensor t;
    if (torch_find(f, "x", &t) || torch_find(f, "in0", &t)) {
        for (int i = 0; i < 4; i++) {
            c->x[i] = i < t.rank ? (int)t.shape[i] : 1;
        }
    }
    if (torch_find(f, "w", &t)) {
        c->out = (int)t.shape[0];
        for (int i = 2; i < t.rank; i++) {
            c->kernel[i - 2] = (int)t.shape[i];
        }
    }
    c->no_bias = !torch_find(f, "b", &t);
    for (int i = 1; i < 4 && c->op == CLNET_OP_CONCAT && torch_find(f, inputs[i], &t); i++) {
        c->more[i - 1] = (int)t.shape[1];
    }
}

// A row of the table from the words of a case. False: it is no operation of a graph.
static bool torch_case(const torch_file *f, const char *words, verify_case *c) {
    const size_t length = strcspn(words, " ");
    *c = (verify_case){.op = CLNET_OP_COUNT, .name = f->name, .x = {1, 1, 1, 1}};
    for (size_t i = 0; i < sizeof torch_operations / sizeof *torch_operations; i++) {
        if (strlen(torch_operations[i].word) == length &&
            !strncmp(words, torch_operations[i].word, length)) {
            c->op = torch_operations[i].op;
        }
    }
    torch_shapes(f, c);
    torch_pair(words, "kernel", c->kernel);
    torch_pair(words, "stride", c->stride);
    torch_pair(words, "padding", c->padding);
    torch_pair(words, "dilation", c->dilation);
    torch_pair(words, "size", c->size);
    c->groups = (int)torch_number(words, "groups", 0);
    c->axis = (int)torch_number(words, "axis", 0);
    c->align_corners = torch_number(words, "align_corners", 0) != 0;
    c->exclude_pad = torch_number(words, "count_include_pad", 1) == 0;
    c->evaluation = torch_number(words, "training", 1) == 0;
    c->eps = torch_number(words, "eps", 0);
    c->value = c->op == CLNET_OP_DICE_LOSS
                   ? 1
                   : torch_number(words, "gamma", torch_number(words, "momentum", 0));
    return c->op != CLNET_OP_COUNT;
}

static void torch_read_inputs(const torch_file *f, verify_problem *p) {
    static const char *const single[] = {"x", "", "", "", "w", "b", "running_mean", "running_var"};
    static const char *const several[] = {"in0", "in1", "in2", "in3"};
    for (int i = 0; i < VERIFY_LEAVES; i++) {
        if (!torch_read(f, single[i], p->leaf[i], p->count[i]) && i < VERIFY_INPUTS) {
            torch_read(f, several[i], p->leaf[i], p->count[i]);
        }
    }
    torch_read(f, "target", p->target, p->targets);
    torch_read(f, "dy", p->dy, p->y_count);
}

// Replaces the naive values by PyTorch's, keeping the sizes by which errors are measured; reports how
// far the naive loops are from PyTorch, which rounded its own to float.
static void torch_replace(const torch_file *f, const verify_case *c, const char *part,
                          naive_values *v, double limit) {
    if (v->count == 0) {
        return;
    }
    double *values = verify_new(v->count);
    if (torch_read(f, part, values, v->count)) {
        const bool measured = limit > 0;
        char where[160];
        const verify_worst worst = verify_compare(values, v, measured ? limit : 1);
        snprintf(where, sizeof where, "%s: %s[%zu] is %.9g in PyTorch, naively %.9g", c->name, part,
                 worst.index, worst.found, worst.expected);
        verify_report(verify_row_name(c), "naive loops, PyTorch", "naive", worst.error, limit,
                      where);
        memcpy(v->value, values, v->count * sizeof *values);
    } else {
        verify_report(verify_row_name(c), "naive loops, PyTorch", "naive", INFINITY, limit, part);
    }
    free(values);
}

static void torch_replace_all(const torch_file *f, const verify_case *c, naive_result *naive) {
    static const char *const single[] = {"dx", "", "", "", "dw", "db"};
    static const char *const several[] = {"din0", "din1", "din2", "din3"};
    static const char *const after[] = {"running_mean_after", "running_var_after"};
    const verify_limit *limit = verify_limit_of(c);
    clnet_file_tensor t;
    torch_replace(f, c, "y", &naive->y, limit->torch_forward);
    for (int i = 0; i < VERIFY_MEAN; i++) {
        const char *part =
            i < VERIFY_INPUTS && torch_find(f, several[0], &t) ? several[i] : single[i];
        part = i < VERIFY_INPUTS && torch_find(f, "in0", &t) ? several[i] : part;
        torch_replace(f, c, part, &naive->grad[i],
                      i < VERIFY_INPUTS ? limit->torch_input : limit->torch_weight);
    }
    for (int i = 0; i < 2 && !c->evaluation; i++) {
        torch_replace(f, c, after[i], &naive->after[i], 16);
    }
}

static void torch_check(const verify_case *c, const verify_path *path, const verify_run *run,
                        const naive_result *r) {
    const verify_limit *limit = verify_limit_of(c);
    verify_check(c, "PyTorch", path->name, "PyTorch, forward", "y", run->y, &r->y,
                 limit->torch_forward);
    for (int i = 0; i < VERIFY_MEAN; i++) {
        const bool input = i < VERIFY_INPUTS;
        verify_check(c, "PyTorch", path->name, input ? "PyTorch, backward" : "PyTorch, weights",
                     verify_leaf_names[i], run->grad[i], &r->grad[i],
                     input ? limit->torch_input : limit->torch_weight);
    }
    for (int i = 0; i < 2 && !c->evaluation; i++) {
        verify_check(c, "PyTorch", path->name, "PyTorch, statistics",
                     verify_leaf_names[VERIFY_MEAN + i], run->after[i], &r->after[i], 16);
    }
}

static void torch_one(const verify_path *path, const torch_file *f, const verify_case *c) {
    verify_problem p = verify_problem_new(c);
    torch_read_inputs(f, &p);
    verify_run run = verify_run_new(&p);
    if (verify_run_on(path->ctx, &p, path->name, &run)) {
        naive_result naive = naive_run(&p);
        torch_replace_all(f, c, &naive);
        torch_check(c, path, &run, &naive);
        naive_free(&naive);
    }
    verify_run_free(&run);
    verify_problem_free(&p);
}

// The optimisers' cases: p_after of each step within two ulp and 32u of the update, as float rounds.
static void torch_adam(const verify_path *path, const torch_file *f, const char *words) {
    enum { COUNT = 17, STEPS = 5 };
    const clnet_adam_desc d = {.beta1 = torch_number(words, "beta1", 0),
                               .beta2 = torch_number(words, "beta2", 0),
                               .eps = torch_number(words, "eps", 0),
                               .decoupled = !strncmp(words, "adamw", 5),
                               .weight_decay = torch_number(words, "weight_decay", 0)};
    double start[COUNT], g[STEPS * COUNT], after[STEPS * COUNT];
    const double lr = torch_number(words, "lr", 0);
    adam_case a;
    const bool read = torch_read(f, "p", start, COUNT) && torch_read(f, "g", g, STEPS * COUNT) &&
                      torch_read(f, "p_after", after, STEPS * COUNT);
    double worst = read && adam_open(&a, path->ctx, &d) ? 0 : INFINITY;
    adam_state s = {{0}, {0}, {0}};
    double gradient[ADAM_COUNT] = {0};
    memcpy(s.p, start, sizeof start);
    for (int t = 0; t < STEPS && worst < INFINITY; t++) {
        if (t == 0) {
            adam_set(&a, &s);
        }
        memcpy(gradient, g + t * COUNT, sizeof start);
        adam_step(&a, gradient, lr);
        adam_get(&a, &s);
        for (int i = 0; i < COUNT; i++) {
            const double p = after[t * COUNT + i],
                         before = t ? after[(t - 1) * COUNT + i] : start[i];
            // Every step adds its own rounding.
            const double allowed =
                (t + 1) * (2 * naive_ulp(p) + 32 * NAIVE_U * (fabs(p - before) + lr));
            const double error = fabs(s.p[i] - p) / allowed;
            worst = error <= worst ? worst : error;
        }
    }
    verify_report(d.decoupled ? "adamw" : "adam", "PyTorch", path->name, worst, 1, f->name);
    if (read) {
        clnet_graph_destroy(a.g);
    }
}

// The antialiased resize of the input, which is no operation of a graph: 2u of the largest value for
// each of the two passes, and 2W u of the range for the coordinates, as for bilinear interpolation.
static void torch_resize(const verify_path *path, const torch_file *f, const char *words) {
    clnet_file_tensor t;
    int size[2] = {0, 0};
    torch_pair(words, "size", size);
    if (!torch_find(f, "x", &t) || t.rank != 4) {
        verify_report("resize_antialias", "PyTorch", path->name, INFINITY, 1, f->name);
        return;
    }
    const int C = (int)t.shape[1], H = (int)t.shape[2], W = (int)t.shape[3];
    const size_t in = (size_t)(C * H * W), out = (size_t)(C * size[0] * size[1]);
    double *x = verify_new(in), *expected = verify_new(out);
    float *pixels = malloc(in * sizeof *pixels), *y = malloc(out * sizeof *y);
    float *scratch = malloc(clnet_resize_scratch(size[0], size[1], H, W, C) * sizeof *scratch);
    double worst = INFINITY;
    if (pixels && y && scratch && torch_read(f, "x", x, in) && torch_read(f, "y", expected, out)) {
        worst = 0;
        for (size_t i = 0; i < in; i++) { // channels innermost
            pixels[i % (size_t)(H * W) * (size_t)C + i / (size_t)(H * W)] = (float)x[i];
        }
        clnet_resize_bilinear_antialias(y, size[0], size[1], pixels, H, W, C, scratch);
        const double allowed = NAIVE_U * 255 * (8 + 2 * (H > W ? H : W));
        for (size_t i = 0; i < out; i++) {
            const size_t area = (size_t)(size[0] * size[1]), at = i % area * (size_t)C + i / area;
            const double error = fabs((double)y[at] - expected[i]) / allowed;
            worst = error <= worst ? worst : error;
        }
    }
    verify_report("resize_antialias", "PyTorch", path->name, worst, 1, f->name);
    free(x);
    free(expected);
    free(pixels);
    free(y);
    free(scratch);
}

static void torch_dispatch(const verify_path *path, const torch_file *f, const char *words,
                           const char *only) {
    verify_case c;
    if (torch_case(f, words, &c)) {
        if (!only || strstr(verify_row_name(&c), only)) {
            torch_one(path, f, &c);
        }
    } else if (only && !strstr(words, only)) {
        return;
    } else if (!strncmp(words, "adam", 4)) {
        torch_adam(path, f, words);
    } else if (!strncmp(words, "resize_antialias", 16)) {
        torch_resize(path, f, words);
    } else {
        verify_report("all operations", "PyTorch", path->name, INFINITY, 0, words);
    }
}

// False: the file cannot be opened, and the context says why.
static bool verify_torch(const verify_path *path, const char *data, const char *only) {
    char name[512];
    snprintf(name, sizeof name, "%s/ops.safetensors", data);
    torch_file f = {.file = clnet_tensor_file_open(path->ctx, name)};
    if (!f.file) {
        return false;
    }
    const char *key = NULL;
    const size_t cases = clnet_tensor_file_keys(f.file, 0, &key);
    for (size_t i = 0; i < cases; i++) {
        clnet_tensor_file_keys(f.file, i, &key);
        f.name = key;
        torch_dispatch(path, &f, clnet_tensor_file_metadata(f.file, key), only);
    }
    clnet_tensor_file_close(f.file);
    return true;
}

#endif
