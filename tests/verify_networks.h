// Whole networks on a device against the same on the CPU, from the same weights and inputs (those of
// tests/data, which are conditioned well enough): probabilities, losses, every gradient, and three
// steps of Adam.
#ifndef CLNET_VERIFY_NETWORKS_H
#define CLNET_VERIFY_NETWORKS_H

#include "network_case.h"
#include "verify_operations.h"

// Limits on the CPU's row of the table; a device is allowed twice that, which gives the 2e-5, 1e-5
// and 5e-5 that hold between CPU and device, and Adam's 2 ulp + 32u of the update.
#define NETWORK_PROBABILITY 1e-5
#define NETWORK_LOSS        5e-6
#define NETWORK_GRADIENT    2.5e-5
#define NETWORK_ADAM        1.0

typedef struct network_pair {
    network_case c;
    const char *path;
    clnet_model *host, *device;
} network_pair;

static void network_report(const network_pair *p, const char *check, double error, double limit,
                           const char *what) {
    char where[160];
    snprintf(where, sizeof where, "%s: %.120s", p->c.name, what);
    verify_report("whole networks", check, p->path, error, limit, where);
}

// The values of a tensor or of its gradient as doubles, NaN where they cannot be read.
static double *network_read(clnet_tensor *t, bool gradient) {
    const size_t count = clnet_tensor_count(t);
    double *values = verify_new(count);
    float *numbers = malloc(count * sizeof *numbers);
    const bool read = numbers && (gradient ? clnet_tensor_get_grad : clnet_tensor_get)(
                                     t, numbers, CLNET_ORDER_MEMORY) == CLNET_OK;
    for (size_t i = 0; i < count; i++) {
        values[i] = read ? (double)numbers[i] : NAN;
    }
    free(numbers);
    return values;
}

static void network_probabilities(const network_pair *p, clnet_tensor *host, clnet_tensor *device,
                                  const char *what, const char *check) {
    if (!host) {
        return;
    }
    const size_t count = clnet_tensor_count(host);
    const size_t classes = host == p->host->logits ? (size_t)p->c.desc.classes : 1;
    double *expected = network_read(host, false), *found = network_read(device, false), worst = 0;
    to_probabilities(expected, count, classes);
    to_probabilities(found, count, classes);
    for (size_t i = 0; i < count; i++) {
        const double error = fabs(found[i] - expected[i]);
        worst = worse_of(worst, error);
    }
    network_report(p, check, worst, NETWORK_PROBABILITY, what);
    free(expected);
    free(found);
}

static void network_forward(const network_pair *p, const char *check) {
    clnet_graph_forward(p->host->graph);
    clnet_graph_forward(p->device->graph);
    network_probabilities(p, p->host->logits, p->device->logits, "logits", check);
    network_probabilities(p, p->host->mask_logits, p->device->mask_logits, "mask_logits", check);
}

static void network_losses(const network_pair *p, const char *check) {
    clnet_tensor *const host[] = {p->host->loss_classification, p->host->loss_focal,
                                  p->host->loss_dice, p->host->loss};
    clnet_tensor *const device[] = {p->device->loss_classification, p->device->loss_focal,
                                    p->device->loss_dice, p->device->loss};
    const char *const names[] = {"classification", "focal", "Dice", "sum"};
    for (int i = 0; i < 4; i++) {
        if (host[i]) {
            const double expected = clnet_tensor_item(host[i]);
            network_report(p, check, fabs(clnet_tensor_item(device[i]) / expected - 1),
                           NETWORK_LOSS, names[i]);
        }
    }
}

// Relative L2 per tensor; running means and variances, which have no gradient, as they are.
static void network_gradients(const network_pair *p) {
    for (int i = 0; i < clnet_graph_weights(p->host->graph); i++) {
        clnet_tensor *w = clnet_graph_weight(p->host->graph, i);
        const bool gradient = clnet_tensor_trainable(w);
        double *expected = network_read(w, gradient),
               *found = network_read(clnet_graph_weight(p->device->graph, i), gradient);
        network_report(p, gradient ? "every gradient" : "running statistics",
                       relative_l2(found, expected, clnet_tensor_count(w)),
                       gradient ? NETWORK_GRADIENT : NETWORK_LOSS, clnet_tensor_name(w));
        free(expected);
        free(found);
    }
}

static void network_backward(const network_pair *p) {
    clnet_graph_zero_grad(p->host->graph);
    clnet_graph_zero_grad(p->device->graph);
    clnet_graph_backward(p->host->graph);
    clnet_graph_backward(p->device->graph);
}

// Gives the CPU's tensor the device's gradient; returns the CPU's values. The caller frees them.
static double *network_hand_over(clnet_tensor *host, clnet_tensor *device) {
    float *numbers = malloc(clnet_tensor_count(host) * sizeof *numbers);
    if (numbers && clnet_tensor_get_grad(device, numbers, CLNET_ORDER_MEMORY) == CLNET_OK) {
        clnet_tensor_set_grad(host, numbers, CLNET_ORDER_MEMORY);
    }
    free(numbers);
    return network_read(host, false);
}

// The worst difference of a tensor after a step, in units of 1 ulp and 16u of the update.
static double network_step_error(clnet_tensor *host, clnet_tensor *device, const double *before) {
    double *expected = network_read(host, false), *found = network_read(device, false), worst = 0;
    for (size_t i = 0; i < clnet_tensor_count(host); i++) {
        const float p = (float)fabs(expected[i]);
        const double unit =
            (double)(nextafterf(p, INFINITY) - p) + 16 * ldexp(fabs(expected[i] - before[i]), -24);
        const double error = fabs(found[i] - expected[i]) / unit;
        worst = worse_of(worst, error);
    }
    free(expected);
    free(found);
    return worst;
}

// One step from the device's gradients on both, since Adam turns the sign of a gradient near 0 into a
// whole step.
static void network_adam_step(const network_pair *p) {
    const int weights = clnet_graph_weights(p->host->graph);
    double **before = calloc((size_t)weights, sizeof *before);
    for (int i = 0; before && i < weights; i++) {
        clnet_tensor *w = clnet_graph_weight(p->host->graph, i);
        before[i] = clnet_tensor_trainable(w)
                        ? network_hand_over(w, clnet_graph_weight(p->device->graph, i))
                        : NULL;
    }
    clnet_adam_step(p->host->adam, 1e-3);
    clnet_adam_step(p->device->adam, 1e-3);
    for (int i = 0; before && i < weights; i++) {
        clnet_tensor *w = clnet_graph_weight(p->host->graph, i);
        if (before[i]) {
            network_report(
                p, "three Adam steps",
                network_step_error(w, clnet_graph_weight(p->device->graph, i), before[i]),
                NETWORK_ADAM, clnet_tensor_name(w));
            free(before[i]);
        }
    }
    free(before);
}

static void network_training(const network_pair *p) {
    clnet_tensor_keep(p->host->logits);
    clnet_tensor_keep(p->device->logits);
    network_forward(p, "training, probabilities");
    network_losses(p, "losses");
    network_backward(p);
    network_gradients(p);
    for (int step = 0; step < 3; step++) {
        network_adam_step(p);
        clnet_graph_forward(p->host->graph);
        clnet_graph_forward(p->device->graph);
        network_losses(p, "losses after Adam steps");
        network_backward(p);
    }
}

static void network_compare(network_pair *p, clnet_context *host, clnet_context *device,
                            clnet_purpose purpose) {
    p->host = network_case_model(&p->c, host, purpose);
    p->device = network_case_model(&p->c, device, purpose);
    if (p->host && p->device) {
        if (purpose == CLNET_TRAIN) {
            network_training(p);
        } else {
            network_forward(p, "probabilities");
        }
    }
    if (clnet_context_result(host) != CLNET_OK || clnet_context_result(device) != CLNET_OK) {
        network_report(p, "context", INFINITY, 0,
                       clnet_error(clnet_context_result(host) != CLNET_OK ? host : device));
    }
    clnet_model_destroy(p->host);
    clnet_model_destroy(p->device);
}

// false: the files of the networks are not there.
static bool verify_networks(const verify_path *path, clnet_context *host, const char *data) {
    for (int i = 0; i < NETWORK_CASES; i++) {
        network_pair p = {.path = path->name};
        const bool open = network_case_open(&p.c, host, data, network_cases[i]);
        if (open) {
            network_compare(&p, host, path->ctx, CLNET_INFER);
            network_compare(&p, host, path->ctx, CLNET_TRAIN);
        }
        network_case_close(&p.c);
        if (!open) {
            return false;
        }
    }
    return true;
}

#endif
