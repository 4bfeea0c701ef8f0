// Every case of the table on every path of the library: against the naive loops, by threads, with
// NaN among the inputs, and against values from PyTorch.
#ifndef CLNET_VERIFY_OPERATIONS_H
#define CLNET_VERIFY_OPERATIONS_H

#include "verify.h"
#include "verify_graph.h"
#include "verify_naive.h"

// One way to compute: its contexts with one thread and with three. In a quick check there is no second
// one: every small case of the table runs once.
typedef struct verify_path {
    const char *name;
    clnet_context *ctx, *threaded;
    bool quick;
} verify_path;

enum { VERIFY_QUICK_COUNT = 2000 }; // numbers in the first input of a small case

typedef struct verify_worst {
    double error;
    size_t index;
    double found, expected;
} verify_worst;

// The largest error in the naive result's own measure, scaled so that the limit is `limit`. Where the
// limit is 0 both must be the same float; where NaN is expected it has to be there.
static verify_worst verify_compare(const double *found, const naive_values *expected,
                                   double limit) {
    verify_worst worst = {.error = 0};
    for (size_t i = 0; i < expected->count; i++) {
        const double value = expected->value[i], size = expected->size[i];
        const double rounded = (double)(float)value;
        double error = 0;
        if (value != value) {
            error = found[i] != found[i] ? 0 : INFINITY;
        } else if (!(found[i] == value || found[i] == rounded)) {
            error = limit > 0 && size > 0 ? fabs(found[i] - value) / size : INFINITY;
        }
        if (!(error <= worst.error)) {
            worst = (verify_worst){error, i, found[i], value};
        }
    }
    return worst;
}

// Reports the comparison of one array of a case.
static void verify_check(const verify_case *c, const char *family, const char *path,
                         const char *check, const char *what, const double *found,
                         const naive_values *expected, double limit) {
    if (expected->count == 0) {
        return;
    }
    char where[160];
    const verify_worst worst = verify_compare(found, expected, limit);
    snprintf(where, sizeof where, "%s, %s: %s[%zu] is %.9g, expected %.9g", c->name, family, what,
             worst.index, worst.found, worst.expected);
    verify_report(verify_row_name(c), check, path, worst.error, limit, where);
}

static const char *const verify_leaf_names[] = {"x",      "x1",   "x2",           "x3",
                                                "weight", "bias", "running_mean", "running_var"};

static void verify_check_all(const verify_case *c, const char *family, const char *path,
                             const verify_run *run, const naive_result *naive, bool exact) {
    const verify_limit *limit = verify_limit_of(c);
    verify_check(c, family, path, exact ? "forward, exact" : "forward", "y", run->y, &naive->y,
                 exact ? 0 : limit->forward);
    for (int i = 0; i < VERIFY_MEAN; i++) {
        const bool input = i < VERIFY_INPUTS;
        // BN's weight gradients sum normalised values, exact ones in no order.
        verify_check(c, family, path,
                     exact   ? "backward, exact"
                     : input ? "backward"
                             : "backward, weights",
                     verify_leaf_names[i], run->grad[i], &naive->grad[i],
                     exact   ? 0
                     : input ? limit->input
                             : limit->weight);
    }
    for (int i = 0; i < 2; i++) {
        verify_check(c, family, path, "statistics", verify_leaf_names[VERIFY_MEAN + i],
                     run->after[i], &naive->after[i], c->evaluation ? 0 : 8);
    }
}

// A case proves nothing where there is nothing to see.
static bool verify_mostly(const naive_values *v, bool zero, double share) {
    size_t zeros = 0;
    for (size_t i = 0; i < v->count; i++) {
        zeros += (v->value[i] == 0) == zero;
    }
    return v->count > 0 && (double)zeros > share * (double)v->count;
}

static void verify_check_content(const verify_case *c, const char *path, const naive_result *naive,
                                 bool exact) {
    bool silent = exact && c->op != CLNET_OP_DROPOUT && verify_mostly(&naive->y, true, 0.5);
    for (int i = 0; i < VERIFY_MEAN; i++) {
        silent = silent || (naive->grad[i].count > 0 && !verify_mostly(&naive->grad[i], false, 0));
    }
    if (silent) {
        verify_report(verify_row_name(c), "content", path, INFINITY, 0, c->name);
    }
}

// Which values dropout keeps: those of ones that are not 0 behind it.
static void verify_learn_dropout(verify_graph *v, verify_problem *p) {
    verify_problem ones = *p;
    ones.leaf[0] = verify_new(p->count[0]);
    for (size_t i = 0; i < p->count[0]; i++) {
        ones.leaf[0][i] = 1;
    }
    verify_graph_load(v, &ones);
    verify_graph_forward(v, p->target);
    free(ones.leaf[0]);
}

// Runs a problem on one context; false after having reported why not.
static bool verify_run_on(clnet_context *ctx, verify_problem *p, const char *path,
                          verify_run *run) {
    verify_graph v;
    bool done = verify_graph_open(&v, ctx, p->c);
    if (done && p->c->op == CLNET_OP_DROPOUT) {
        verify_learn_dropout(&v, p);
    }
    done = done && verify_graph_run(&v, p, run);
    if (!done) {
        verify_report(verify_row_name(p->c), "run", path, INFINITY, 0, clnet_error(ctx));
        clnet_context_clear(ctx);
    }
    verify_graph_close(&v);
    return done;
}

static bool verify_same(const double *a, const double *b, size_t count) {
    return memcmp(a, b, count * sizeof *a) == 0;
}

// How many arrays of two runs differ in a bit.
static int verify_differences(const verify_problem *p, const verify_run *a, const verify_run *b) {
    int different = !verify_same(a->y, b->y, p->y_count);
    for (int i = 0; i < VERIFY_MEAN; i++) {
        different += !verify_same(a->grad[i], b->grad[i], p->count[i]);
    }
    for (int i = 0; i < 2; i++) {
        different += !verify_same(a->after[i], b->after[i], p->count[VERIFY_MEAN + i]);
    }
    return different;
}

static void verify_case_on(const verify_path *path, const verify_case *c, verify_family family,
                           uint64_t seed) {
    verify_problem p = verify_problem_new(c);
    verify_fill(&p, family, seed);
    verify_run one = verify_run_new(&p), three = verify_run_new(&p);
    const bool exact = family == VERIFY_INTEGERS && verify_exact(c);
    if (verify_run_on(path->ctx, &p, path->name, &one) &&
        (path->quick || verify_run_on(path->threaded, &p, path->name, &three))) {
        naive_result naive = naive_run(&p);
        verify_check_content(c, path->name, &naive, exact);
        verify_check_all(c, verify_family_names[family], path->name, &one, &naive, exact);
        if (!path->quick) {
            verify_report("all operations", "1 and 3 threads", path->name,
                          verify_differences(&p, &one, &three), 0, c->name);
        }
        naive_free(&naive);
    }
    verify_run_free(&one);
    verify_run_free(&three);
    verify_problem_free(&p);
}

// How many values are finite that should not be; with `both`, also those that should be and are not.
static size_t verify_hidden(const double *found, const naive_values *expected, bool both) {
    size_t count = 0;
    for (size_t i = 0; i < expected->count; i++) {
        const bool wanted = isfinite(expected->value[i]), is = isfinite(found[i]);
        count += (is && !wanted) || (both && wanted && !is);
    }
    return count;
}

// NaN or infinity at one place of one input: what depends on it is not finite any more. The outputs
// that do not depend on an input stay as they were; a weight may reach them over zeros of padding.
static void verify_nonfinite_at(const verify_path *path, verify_problem *p, int leaf, size_t at,
                                double value) {
    const double before = p->leaf[leaf][at];
    p->leaf[leaf][at] = value;
    verify_run run = verify_run_new(p);
    if (verify_run_on(path->ctx, p, path->name, &run)) {
        naive_result naive = naive_run(p);
        size_t hidden = verify_hidden(run.y, &naive.y, leaf < VERIFY_INPUTS);
        for (int i = 0; i < VERIFY_MEAN; i++) {
            hidden += verify_hidden(run.grad[i], &naive.grad[i], false);
        }
        char where[160];
        snprintf(where, sizeof where, "%s: %g in %s[%zu]", p->c->name, value,
                 verify_leaf_names[leaf], at);
        verify_report(verify_row_name(p->c), "not finite", path->name, (double)hidden, 0, where);
        naive_free(&naive);
    }
    verify_run_free(&run);
    p->leaf[leaf][at] = before;
}

// Infinity is left out where the naive loops and the library may weigh a far value by 0 or by 1e-8.
static void verify_nonfinite(const verify_path *path, const verify_case *c, uint64_t seed) {
    if ((c->op == CLNET_OP_UPSAMPLE_BILINEAR || c->op == CLNET_OP_CONV2D_JOINED) &&
        !verify_dyadic(c)) {
        return;
    }
    verify_problem p = verify_problem_new(c);
    verify_fill(&p, VERIFY_NORMAL, seed);
    uint64_t state = seed + 99;
    for (int leaf = 0; leaf < VERIFY_MEAN; leaf++) {
        for (int k = 0; k < 3 && p.count[leaf] > 0 && p.count[leaf] < 20000; k++) {
            const size_t at = (size_t)(verify_uniform(&state) * (double)p.count[leaf]);
            verify_nonfinite_at(path, &p, leaf, at, NAN);
            if (!verify_is_loss(c) && k == 0) {
                verify_nonfinite_at(path, &p, leaf, at, INFINITY);
            }
        }
    }
    verify_problem_free(&p);
}

static void verify_operations(const verify_path *path, const char *only, uint64_t seed) {
    for (int i = 0; i < VERIFY_CASES; i++) {
        const verify_case *c = &verify_cases[i];
        if (only && !strstr(verify_row_name(c), only)) {
            continue;
        }
        if (path->quick) {
            if (verify_count(c) <= VERIFY_QUICK_COUNT) {
                verify_case_on(path, c, VERIFY_NORMAL, seed);
            }
            continue;
        }
        for (int family = 0; family < VERIFY_FAMILIES; family++) {
            verify_case_on(path, c, (verify_family)family, seed);
        }
        verify_nonfinite(path, c, seed);
    }
}

// An operation of the list without a case is a failure of its own.
static void verify_coverage(void) {
    static const char *const names[] = {
#define X(ENUM, name, forward, backward, reads) #name,
        CLNET_OPS(X)
#undef X
    };
    for (int op = 0; op < CLNET_OP_COUNT; op++) {
        int cases = 0;
        for (int i = 0; i < VERIFY_CASES; i++) {
            cases += (int)verify_cases[i].op == op;
        }
        verify_report("all operations", "has a case", "table", cases > 0 ? 0 : INFINITY, 0,
                      names[op]);
    }
}

// The elementary promises of sigmoid and softmax, which no comparison of values shows.
static void verify_sigmoid_sweep(const verify_path *path) {
    enum { COUNT = 4001 };
    float *x = malloc(COUNT * sizeof *x), *y = malloc(COUNT * sizeof *y);
    clnet_graph *g = clnet_graph_create(path->ctx);
    clnet_tensor *in = clnet_input(g, "x", 1, 1, 1, COUNT), *out = clnet_sigmoid(g, in);
    for (int i = 0; x && i < COUNT; i++) {
        x[i] = (float)(i - COUNT / 2) * 0.0625f;
    }
    if (x && y && clnet_graph_build(g, NULL) == CLNET_OK) {
        clnet_tensor_set(in, x, CLNET_ORDER_TORCH);
        clnet_graph_forward(g);
        clnet_tensor_get(out, y, CLNET_ORDER_TORCH);
        int wrong = !(y[COUNT / 2] == 0.5f);
        for (int i = 0; i < COUNT; i++) {
            wrong += !(y[i] >= 0 && y[i] <= 1) || (i > 0 && y[i] < y[i - 1]);
        }
        verify_report("sigmoid", "0..1, rising, 1/2 at 0", path->name, wrong, 0, "-125 to 125");
    } else {
        verify_report("sigmoid", "0..1, rising, 1/2 at 0", path->name, INFINITY, 0,
                      clnet_error(path->ctx));
    }
    clnet_graph_destroy(g);
    free(x);
    free(y);
}

#endif
