// Adam and AdamW, through a graph whose gradients are set by hand, against the formula in double
// (Kingma and Ba 2015; Loshchilov and Hutter 2019 for the decoupled decay): one step within the
// rounding of one step, a thousand steps along a quadratic, steps late in a training; and that the
// usual mistakes would have been seen.
#ifndef CLNET_VERIFY_ADAM_H
#define CLNET_VERIFY_ADAM_H

#include "verify_operations.h"

enum { ADAM_COUNT = 33, ADAM_STEPS = 1000 };

typedef enum adam_mistake {
    ADAM_RIGHT,
    ADAM_EPS_INSIDE,    // eps joins sqrt(v) before the correction
    ADAM_OTHER_DECAY,   // decoupled in the place of L2, or the other way round
    ADAM_NO_CORRECTION, // of the start at zero
    ADAM_MISTAKES
} adam_mistake;

typedef struct adam_state {
    double p[ADAM_COUNT], m[ADAM_COUNT], v[ADAM_COUNT];
} adam_state;

static void naive_adam(adam_state *s, const double *gradient, double lr, uint64_t t,
                       const clnet_adam_desc *d, adam_mistake mistake) {
    const double beta1 = d->beta1 != 0 ? d->beta1 : 0.9, beta2 = d->beta2 != 0 ? d->beta2 : 0.999;
    const double eps = d->eps != 0 ? d->eps : 1e-8;
    const bool decoupled = d->decoupled != (mistake == ADAM_OTHER_DECAY);
    const double first = mistake == ADAM_NO_CORRECTION ? 1 : 1 - pow(beta1, (double)t);
    const double second = mistake == ADAM_NO_CORRECTION ? 1 : 1 - pow(beta2, (double)t);
    for (int i = 0; i < ADAM_COUNT; i++) {
        const double g = gradient[i] + (decoupled ? 0 : d->weight_decay * s->p[i]);
        s->p[i] -= decoupled ? lr * d->weight_decay * s->p[i] : 0;
        s->m[i] = beta1 * s->m[i] + (1 - beta1) * g;
        s->v[i] = beta2 * s->v[i] + (1 - beta2) * g * g;
        const double root = mistake == ADAM_EPS_INSIDE ? (sqrt(s->v[i]) + eps) / sqrt(second)
                                                       : sqrt(s->v[i]) / sqrt(second) + eps;
        s->p[i] -= lr * (s->m[i] / first) / root;
    }
}

// A linear layer of ADAM_COUNT weights and its optimiser.
typedef struct adam_case {
    clnet_graph *g;
    clnet_adam *adam;
    clnet_tensor *w;
} adam_case;

static bool adam_open(adam_case *a, clnet_context *ctx, const clnet_adam_desc *d) {
    a->g = clnet_graph_create(ctx);
    clnet_tensor *x = clnet_input(a->g, "x", 1, ADAM_COUNT, 1, 1);
    clnet_tensor *y = clnet_linear(
        a->g, x, &(clnet_linear_desc){.out_features = 1, .no_bias = true, .name = "w"});
    a->adam = clnet_adam_create(a->g, d);
    const bool built = clnet_graph_build(a->g, &(clnet_build_desc){.loss = y}) == CLNET_OK;
    a->w = built ? clnet_graph_find_weight(a->g, "w.weight") : NULL;
    return built;
}

static void adam_get(adam_case *a, adam_state *s) {
    float values[3][ADAM_COUNT];
    clnet_tensor_get(a->w, values[0], CLNET_ORDER_TORCH);
    clnet_adam_get(a->adam, 0, a->w, values[1], CLNET_ORDER_TORCH);
    clnet_adam_get(a->adam, 1, a->w, values[2], CLNET_ORDER_TORCH);
    for (int i = 0; i < ADAM_COUNT; i++) {
        s->p[i] = (double)values[0][i], s->m[i] = (double)values[1][i],
        s->v[i] = (double)values[2][i];
    }
}

static void adam_set(adam_case *a, const adam_state *s) {
    float values[3][ADAM_COUNT];
    for (int i = 0; i < ADAM_COUNT; i++) {
        values[0][i] = (float)s->p[i], values[1][i] = (float)s->m[i], values[2][i] = (float)s->v[i];
    }
    clnet_tensor_set(a->w, values[0], CLNET_ORDER_TORCH);
    clnet_adam_set(a->adam, 0, a->w, values[1], CLNET_ORDER_TORCH);
    clnet_adam_set(a->adam, 1, a->w, values[2], CLNET_ORDER_TORCH);
}

static void adam_step(adam_case *a, const double *gradient, double lr) {
    float g[ADAM_COUNT];
    for (int i = 0; i < ADAM_COUNT; i++) {
        g[i] = (float)gradient[i];
    }
    clnet_tensor_set_grad(a->w, g, CLNET_ORDER_TORCH);
    clnet_adam_step(a->adam, lr);
}

// Gradients of all sizes: 0, denormal, 1e-30 to 1e15, and ordinary ones.
static double adam_gradient(int i, uint64_t *state) {
    static const double special[] = {0, 1e-40, 1e-30, -1e-20, 1e-8, 1e8, -1e15};
    return i < 7 ? special[i] * (1 + verify_uniform(state))
                 : verify_normal(state) * pow(10, verify_whole(state, -4, 1));
}

// The limits of one step, as parts of what they allow: m, v 4u of their terms; p one ulp and 16u of
// the update. Below 2^-126 squares of gradients vanish, and the update with them is anything up to lr.
static double adam_step_error(const adam_state *found, const adam_state *right,
                              const adam_state *before, const double *g, const clnet_adam_desc *d) {
    double worst = 0;
    for (int i = 0; i < ADAM_COUNT; i++) {
        const double slope = fabs(g[i]) + (d->decoupled ? 0 : d->weight_decay * fabs(before->p[i]));
        const double m = NAIVE_U * (fabs(before->m[i]) + slope) + NAIVE_TINY;
        const double v = NAIVE_U * (before->v[i] + slope * slope) + NAIVE_TINY;
        const double p =
            naive_ulp(right->p[i]) + 16 * NAIVE_U * (fabs(right->p[i] - before->p[i]) + 1e-6);
        const double errors[3] = {fabs(found->m[i] - right->m[i]) / (4 * m),
                                  fabs(found->v[i] - right->v[i]) / (4 * v),
                                  fabs(found->p[i] - right->p[i]) / p};
        for (int k = 0; k < 3; k++) {
            worst = errors[k] <= worst ? worst : errors[k];
        }
    }
    return worst;
}

// One step from given moments, as step number t.
static void verify_adam_step(const verify_path *path, const clnet_adam_desc *d, const char *name,
                             uint64_t t) {
    adam_case a;
    if (!adam_open(&a, path->ctx, d)) {
        verify_report(name, "one step", path->name, INFINITY, 1, clnet_error(path->ctx));
        clnet_graph_destroy(a.g);
        return;
    }
    uint64_t state = t;
    adam_state before, right, found;
    double g[ADAM_COUNT];
    for (int i = 0; i < ADAM_COUNT; i++) {
        g[i] = (double)(float)adam_gradient(i, &state);
        before.p[i] = (double)(float)verify_normal(&state);
        before.m[i] = t == 1 ? 0 : (double)(float)(g[i] * verify_uniform(&state));
        before.v[i] = t == 1 ? 0 : (double)(float)(g[i] * g[i] * (0.5 + verify_uniform(&state)));
    }
    adam_set(&a, &before);
    clnet_adam_set_steps(a.adam, t - 1);
    adam_step(&a, g, 1e-3);
    adam_get(&a, &found);
    right = before;
    naive_adam(&right, g, 1e-3, t, d, ADAM_RIGHT);
    char where[96];
    snprintf(where, sizeof where, "t = %llu", (unsigned long long)t);
    verify_report(name, "one step", path->name, adam_step_error(&found, &right, &before, g, d), 1,
                  where);
    clnet_graph_destroy(a.g);
}

// The gradient of a quadratic with its minimum at 1..2 and its own curvature in each coordinate.
static void quadratic(double *g, const double *p) {
    for (int i = 0; i < ADAM_COUNT; i++) {
        g[i] = (0.05 + 0.1 * i) * (p[i] - 1 - i / (double)ADAM_COUNT);
    }
}

static double adam_distance(const adam_state *a, const adam_state *b) {
    double worst = 0;
    for (int i = 0; i < ADAM_COUNT; i++) {
        const double error = fabs(a->p[i] - b->p[i]) / fabs(b->p[i]);
        worst = error <= worst ? worst : error;
    }
    return worst;
}

static void naive_trajectory(adam_state *s, const adam_state *start, const clnet_adam_desc *d,
                             adam_mistake mistake) {
    *s = *start;
    for (uint64_t t = 1; t <= ADAM_STEPS; t++) {
        double g[ADAM_COUNT];
        quadratic(g, s->p);
        naive_adam(s, g, 1e-3, t, d, mistake);
    }
}

// A thousand steps; then each mistake has to end farther away than the limit, or it shows nothing.
static void verify_adam_trajectory(const verify_path *path, const clnet_adam_desc *d,
                                   const char *name) {
    static const char *const mistakes[] = {"", "sees eps before correction", "sees the other decay",
                                           "sees no correction"};
    const double limit = 1e-5;
    adam_case a;
    if (!adam_open(&a, path->ctx, d)) {
        verify_report(name, "1,000 steps", path->name, INFINITY, limit, clnet_error(path->ctx));
        clnet_graph_destroy(a.g);
        return;
    }
    adam_state start = {{0}, {0}, {0}}, right, found;
    for (int i = 0; i < ADAM_COUNT; i++) {
        start.p[i] = 3 - i / 16.0;
    }
    adam_set(&a, &start);
    for (int t = 0; t < ADAM_STEPS; t++) {
        double g[ADAM_COUNT];
        adam_get(&a, &found);
        quadratic(g, found.p);
        adam_step(&a, g, 1e-3);
    }
    adam_get(&a, &found);
    naive_trajectory(&right, &start, d, ADAM_RIGHT);
    char where[96];
    snprintf(where, sizeof where, "eps %g, weight decay %g", d->eps != 0 ? d->eps : 1e-8,
             d->weight_decay);
    verify_report(name, "1,000 steps", path->name, adam_distance(&found, &right), limit, where);
    for (int k = ADAM_EPS_INSIDE; k < ADAM_MISTAKES; k++) {
        const bool visible =
            k == ADAM_NO_CORRECTION || (k == ADAM_EPS_INSIDE ? d->eps != 0 : d->weight_decay != 0);
        if (visible) {
            adam_state wrong;
            naive_trajectory(&wrong, &start, d, (adam_mistake)k);
            verify_report(name, mistakes[k], path->name, limit / adam_distance(&wrong, &right), 1,
                          where);
        }
    }
    clnet_graph_destroy(a.g);
}

static void verify_optimisers(const verify_path *path) {
    static const double eps[] = {0, 1e-3}, decay[] = {0, 5e-4, 0.1};
    static const uint64_t steps[] = {1, 2, 1000, 1000000};
    for (int i = 0; i < 12; i++) {
        const clnet_adam_desc d = {
            .eps = eps[i % 2], .weight_decay = decay[i / 2 % 3], .decoupled = i / 6};
        const char *name = d.decoupled ? "adamw" : "adam";
        for (int k = 0; k < 4; k++) {
            verify_adam_step(path, &d, name, steps[k]);
        }
        verify_adam_trajectory(path, &d, name);
    }
    verify_adam_step(path, &(clnet_adam_desc){.beta1 = 0.8, .beta2 = 0.999999}, "adam", 3);
}

#endif
