// The part of clnet-verify that is compiled with double: gradients against differences of the forward
// pass. Every element of every input and parameter of every case by the 4-point stencil
//
//     f'(x) = (8 (f(x+h) - f(x-h)) - (f(x+2h) - f(x-2h))) / 12h + O(h^4),   f = sum of dy y,
//
// with inputs kept more than 4h away from the kinks of ReLU and max pooling. Then a whole network
// along random directions.
#define CLNET_REAL double
#define CLNET_STATIC
#define CLNET_IMPLEMENTATION
#include "../clnet.h"

#include "verify.h"
#include "verify_graph.h"

#define STENCIL  1e-3
#define RELATIVE 1e-8
#define ABSOLUTE 1e-10

// Cases with more work than this are left to smaller ones of their operation.
enum { LARGEST_WORK = 30000000, SEED = 11 };

// Moves the inputs away from kinks: ReLU's at 0; for max pooling all values differ by 8h or more.
static int keep_away_from_kinks(verify_problem *p) {
    int moved = 0;
    for (size_t i = 0; i < p->count[0]; i++) {
        double *x = &p->leaf[0][i];
        if (p->c->op == CLNET_OP_RELU && fabs(*x) < 8 * STENCIL) {
            *x += *x < 0 ? -8 * STENCIL : 8 * STENCIL;
            moved++;
        } else if (p->c->op == CLNET_OP_MAX_POOL2D) {
            // Distinct multiples of 8h in a scattered order: 7919 is a prime.
            *x = 8 * STENCIL * (double)((i * 7919 + 13) % p->count[0]);
            moved++;
        }
    }
    return moved;
}

// sum of dy (a - b) for two outputs: differences first, so that what is equal adds no rounding.
static double weigh(const verify_problem *p, const double *a, const double *b) {
    long double sum = 0;
    for (size_t i = 0; i < p->y_count; i++) {
        sum += (long double)p->dy[i] * ((long double)a[i] - (long double)b[i]);
    }
    return (double)sum;
}

// f(x + step) - f(x - step) for one element.
static double difference(verify_graph *v, verify_problem *p, int leaf, size_t at, double step,
                         double *y[2]) {
    double *x = &p->leaf[leaf][at], before = *x;
    for (int i = 0; i < 2; i++) {
        *x = before + (i ? -step : step);
        verify_graph_set(v, v->leaf[leaf], p->leaf[leaf], false);
        verify_graph_forward(v, y[i]);
    }
    *x = before;
    return weigh(p, y[0], y[1]);
}

typedef struct findings {
    double worst; // error over its tolerance
    int leaf;
    size_t index;
    double found, expected;
} findings;

static findings check_leaves(verify_graph *v, verify_problem *p, const verify_run *run) {
    findings f = {.worst = -1};
    double *y[2] = {verify_new(p->y_count), verify_new(p->y_count)};
    for (int leaf = 0; leaf < VERIFY_MEAN; leaf++) {
        for (size_t i = 0; i < p->count[leaf]; i++) {
            const double near = difference(v, p, leaf, i, STENCIL, y);
            const double far = difference(v, p, leaf, i, 2 * STENCIL, y);
            const double expected = (8 * near - far) / (12 * STENCIL), found = run->grad[leaf][i];
            const double error = fabs(found - expected) / (ABSOLUTE + RELATIVE * fabs(expected));
            if (!(error <= f.worst)) {
                f = (findings){error, leaf, i, found, expected};
            }
        }
        if (p->count[leaf]) {
            verify_graph_set(v, v->leaf[leaf], p->leaf[leaf], false);
        }
    }
    free(y[0]);
    free(y[1]);
    return f;
}

// Forward passes times their multiplications, roughly.
static double work_of(const verify_problem *p) {
    double elements = 0, taps = 1;
    for (int i = 0; i < VERIFY_MEAN; i++) {
        elements += (double)p->count[i];
    }
    if (p->count[VERIFY_WEIGHT] && p->c->out) {
        taps = (double)p->count[VERIFY_WEIGHT] / p->c->out;
    }
    return elements * ((double)p->y_count * taps + (double)p->count[0]);
}

static void check_case(clnet_context *ctx, verify_problem *p, int *moved) {
    verify_graph v;
    verify_run run = verify_run_new(p);
    findings f = {.worst = INFINITY};
    if (verify_graph_open(&v, ctx, p->c)) {
        *moved += keep_away_from_kinks(p);
        if (verify_graph_run(&v, p, &run)) {
            f = check_leaves(&v, p, &run);
        }
    }
    char where[160];
    snprintf(where, sizeof where, "%s: gradient %d[%zu] is %.12g, expected %.12g", p->c->name,
             f.leaf, f.index, f.found, f.expected);
    verify_report(verify_row_name(p->c), "gradient", "double", f.worst, 1,
                  clnet_error(ctx)[0] ? clnet_error(ctx) : where);
    clnet_context_clear(ctx);
    verify_graph_close(&v);
    verify_run_free(&run);
}

void verify_gradients(const char *only) {
    clnet_context *ctx = clnet_context_create(&(clnet_context_desc){.threads = 1});
    int left = 0, moved = 0;
    for (int i = 0; i < VERIFY_CASES; i++) {
        const verify_case *c = &verify_cases[i];
        if (only && !strstr(verify_row_name(c), only)) {
            continue;
        }
        verify_problem p = verify_problem_new(c);
        verify_fill(&p, VERIFY_NORMAL, SEED);
        if (work_of(&p) <= LARGEST_WORK) {
            check_case(ctx, &p, &moved);
        } else {
            left++;
        }
        verify_problem_free(&p);
    }
    verify_note("gradients by differences: tolerance 1 is 1e-8 relative + 1e-10; %d inputs kept "
                "away from kinks, "
                "%d large cases left to smaller ones",
                moved, left);
    clnet_context_destroy(ctx);
}

// A whole network along random directions.

enum { DIRECTIONS = 64, FEWEST = 48 };
#define DIRECTION_STEP     1e-6
#define DIRECTION_RELATIVE 1e-7
#define LENGTH             0.25 // so short that few of the many thousand ReLUs change sides

typedef struct network {
    clnet_model *model;
    int weights;
    double **start, **direction, **gradient; // of each trainable weight; NULL for buffers
} network;

// A number that tells on which side of its kink every ReLU stands, and which input won every maximum.
static uint64_t kinks(const network *n) {
    uint64_t hash = 14695981039346656037u;
    clnet_graph *g = n->model->graph;
    for (int i = 0; i < clnet_graph_nodes(g); i++) {
        clnet_tensor *y = g->nodes[i]->out, *winner = g->nodes[i]->saved[0];
        const bool relu = g->nodes[i]->op == CLNET_OP_RELU,
                   pool = g->nodes[i]->op == CLNET_OP_MAX_POOL2D;
        if (relu || pool) {
            const size_t count = clnet_tensor_count(y);
            double *values = verify_new(count);
            int32_t *winners = (int32_t *)(void *)values;
            clnet_tensor_get(relu ? y : winner, values, CLNET_ORDER_MEMORY);
            for (size_t k = 0; k < count; k++) {
                hash = (hash ^ (relu ? (uint64_t)(values[k] > 0) : (uint64_t)winners[k])) *
                       1099511628211u;
            }
            free(values);
        }
    }
    return hash;
}

// The loss at start + step direction.
static double loss_along(const network *n, double step, uint64_t *side) {
    for (int i = 0; i < n->weights; i++) {
        clnet_tensor *w = clnet_graph_weight(n->model->graph, i);
        const size_t count = n->start[i] ? clnet_tensor_count(w) : 0;
        double *values = verify_new(count);
        for (size_t k = 0; k < count; k++) {
            values[k] = n->start[i][k] + step * n->direction[i][k];
        }
        if (count) {
            clnet_tensor_set(w, values, CLNET_ORDER_MEMORY);
        }
        free(values);
    }
    clnet_graph_forward(n->model->graph);
    *side = kinks(n);
    return clnet_tensor_item(n->model->loss);
}

// A new direction of length LENGTH: half random, half along the gradient, so that the slope is no
// difference of noise. Returns the slope that the gradients predict.
static double draw_direction(network *n, uint64_t *state) {
    double slope = 0, length[2] = {0, 0};
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < n->weights; i++) {
            const size_t count =
                n->start[i] ? clnet_tensor_count(clnet_graph_weight(n->model->graph, i)) : 0;
            for (size_t k = 0; k < count && pass == 0; k++) {
                n->direction[i][k] = verify_normal(state);
                length[0] += n->direction[i][k] * n->direction[i][k];
                length[1] += n->gradient[i][k] * n->gradient[i][k];
            }
            for (size_t k = 0; k < count && pass == 1; k++) {
                n->direction[i][k] =
                    LENGTH / 2 *
                    (n->direction[i][k] / sqrt(length[0]) + n->gradient[i][k] / sqrt(length[1]));
                slope += n->direction[i][k] * n->gradient[i][k];
            }
        }
    }
    return slope;
}

static void fill_inputs(clnet_model *model, uint64_t *state) {
    const size_t pixels = clnet_tensor_count(model->image),
                 labels = clnet_tensor_count(model->label);
    double *values = verify_new(pixels);
    int32_t *label = (int32_t *)(void *)values;
    for (size_t i = 0; i < pixels; i++) {
        values[i] = verify_normal(state);
    }
    clnet_tensor_set(model->image, values, CLNET_ORDER_TORCH);
    for (size_t i = 0; i < clnet_tensor_count(model->mask); i++) {
        values[i] = verify_uniform(state) < 0.4;
    }
    clnet_tensor_set(model->mask, values, CLNET_ORDER_TORCH);
    for (size_t i = 0; i < labels; i++) {
        label[i] = (int32_t)(i % 3);
    }
    clnet_tensor_set(model->label, label, CLNET_ORDER_TORCH);
    free(values);
}

// Biases around 1: few values near the kink of ReLU, and no channel that ReLU makes constant, which the
// next batch norm would blow up.
static void draw_biases(clnet_model *model, uint64_t *state) {
    for (int i = 0; i < clnet_graph_weights(model->graph); i++) {
        clnet_tensor *w = clnet_graph_weight(model->graph, i);
        const char *ending = strrchr(clnet_tensor_name(w), '.');
        if (ending && !strcmp(ending, ".bias")) {
            double *values = verify_new(clnet_tensor_count(w));
            for (size_t k = 0; k < clnet_tensor_count(w); k++) {
                values[k] = 1 + 0.3 * verify_normal(state);
            }
            clnet_tensor_set(w, values, CLNET_ORDER_MEMORY);
            free(values);
        }
    }
}

static bool open_network(network *n, clnet_context *ctx, uint64_t *state) {
    const clnet_model_desc desc = {.width = 1.0 / 32,
                                   .size = {48, 48},
                                   .batch = 2,
                                   .purpose = CLNET_TRAIN,
                                   .keep_all = true,
                                   .seed = SEED};
    n->model = clnet_model_create(ctx, &desc);
    if (!n->model) {
        return false;
    }
    fill_inputs(n->model, state);
    draw_biases(n->model, state);
    clnet_graph *g = n->model->graph;
    clnet_graph_forward(g);
    clnet_graph_zero_grad(g);
    clnet_graph_backward(g);
    n->weights = clnet_graph_weights(g);
    double ***lists[3] = {&n->start, &n->direction, &n->gradient};
    for (int k = 0; k < 3; k++) {
        *lists[k] = calloc((size_t)n->weights, sizeof **lists[k]);
    }
    for (int i = 0; i < n->weights; i++) {
        clnet_tensor *w = clnet_graph_weight(g, i);
        for (int k = 0; k < 3 && clnet_tensor_trainable(w); k++) {
            (*lists[k])[i] = verify_new(clnet_tensor_count(w));
        }
        if (clnet_tensor_trainable(w)) {
            clnet_tensor_get(w, n->start[i], CLNET_ORDER_MEMORY);
            clnet_tensor_get_grad(w, n->gradient[i], CLNET_ORDER_MEMORY);
        }
    }
    return clnet_context_result(ctx) == CLNET_OK;
}

static void close_network(network *n) {
    for (int i = 0; i < n->weights; i++) {
        free(n->start[i]);
        free(n->direction[i]);
        free(n->gradient[i]);
    }
    free(n->start);
    free(n->direction);
    free(n->gradient);
    clnet_model_destroy(n->model);
}

void verify_directions(void) {
    clnet_context *ctx = clnet_context_create(&(clnet_context_desc){.threads = 1});
    uint64_t state = SEED;
    network n = {.model = NULL};
    int dropped = 0;
    const bool open = open_network(&n, ctx, &state);
    for (int i = 0; open && i < DIRECTIONS; i++) {
        const double expected = draw_direction(&n, &state);
        uint64_t side[2];
        const double up = loss_along(&n, DIRECTION_STEP, &side[0]),
                     down = loss_along(&n, -DIRECTION_STEP, &side[1]);
        const double found = (up - down) / (2 * DIRECTION_STEP),
                     error = fabs(found - expected) / fabs(expected);
        if (side[0] != side[1]) {
            dropped++;
            continue;
        }
        char where[160];
        snprintf(where, sizeof where, "direction %d: slope %.10g, gradients say %.10g", i, found,
                 expected);
        verify_report("resnet50+unet", "64 directions", "double", error, DIRECTION_RELATIVE, where);
    }
    const int missing = FEWEST - (DIRECTIONS - dropped);
    verify_report(
        "resnet50+unet", "48 directions or more", "double",
        !open         ? INFINITY
        : missing > 0 ? (double)missing
                      : 0,
        0, open ? "directions along which no ReLU and no maximum changed" : clnet_error(ctx));
    verify_note("directions: %d of %d dropped because a ReLU or a maximum changed", dropped,
                DIRECTIONS);
    close_network(&n);
    clnet_context_destroy(ctx);
}
