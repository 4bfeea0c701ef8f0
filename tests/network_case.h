// Whole networks in tests/data, net_CASE.{weights,expected}.safetensors: small ones that are so well
// conditioned that their results can be compared (tests/data/make_networks.py says how).
#ifndef CLNET_NETWORK_CASE_H
#define CLNET_NETWORK_CASE_H

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const network_cases[] = {
    "resnet50",         "unet",          "resunet",           "resnet50_unet",
    "resnet50_resunet", "per_task",      "inception_v3",      "inception_unet",
    "arlnet50",         "arlnet50_unet", "inception_resunet", "arlnet50_resunet"};
enum { NETWORK_CASES = sizeof network_cases / sizeof *network_cases };

typedef struct network_case {
    const char *name;
    char weights[512], model[32];
    clnet_tensor_file *expected;
    clnet_model_desc desc;
} network_case;

// A tensor of the expected file as doubles, NULL where it has none of that name. The caller frees it.
static double *network_case_read(const network_case *c, const char *name, size_t *count) {
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

// Closed by network_case_close. false: the context says why, or the file has not the metadata.
static bool network_case_open(network_case *c, clnet_context *ctx, const char *data,
                              const char *name) {
    char file[512];
    *c = (network_case){.name = name};
    snprintf(file, sizeof file, "%s/net_%s.expected.safetensors", data, name);
    snprintf(c->weights, sizeof c->weights, "%s/net_%s.weights.safetensors", data, name);
    c->expected = clnet_tensor_file_open(ctx, file);
    int n = 0, h = 0, w = 0;
    const char *const keys[] = {"input", "fusion", "model", "classes", "width"};
    const char *value[5];
    bool complete = c->expected != NULL;
    for (int i = 0; i < 5 && complete; i++) {
        value[i] = clnet_tensor_file_metadata(c->expected, keys[i]);
        complete = value[i] != NULL;
    }
    if (!complete || sscanf(value[0], "%d,3,%d,%d", &n, &h, &w) != 3) {
        return false;
    }
    snprintf(c->model, sizeof c->model, "%s", value[2]);
    c->desc = (clnet_model_desc){.name = c->model,
                                 .size = {h, w},
                                 .batch = n,
                                 .no_dropout = true,
                                 .classes = atoi(value[3]),
                                 .width = atof(value[4]),
                                 .fusion = strcmp(value[1], "per-task") ? CLNET_FUSION_SHARED
                                                                        : CLNET_FUSION_PER_TASK};
    return true;
}

static void network_case_close(network_case *c) { clnet_tensor_file_close(c->expected); }

// Gives a tensor of the model the values of the file, if both have it.
static bool network_case_set(const network_case *c, clnet_tensor *t, const char *name) {
    size_t count;
    double *values = t ? network_case_read(c, name, &count) : NULL;
    if (!values) {
        return true;
    }
    void *numbers = malloc(count * sizeof(double));
    const bool fits = numbers && count == clnet_tensor_count(t);
    for (size_t i = 0; fits && i < count; i++) {
        if (!strcmp(name, "label")) {
            ((int32_t *)numbers)[i] = (int32_t)values[i];
        } else {
            ((clnet_real *)numbers)[i] = (clnet_real)values[i];
        }
    }
    const bool set = fits && clnet_tensor_set(t, numbers, CLNET_ORDER_TORCH) == CLNET_OK;
    free(numbers);
    free(values);
    return set;
}

// The network with its weights and inputs. NULL: the context says why.
static clnet_model *network_case_model(network_case *c, clnet_context *ctx, clnet_purpose purpose) {
    c->desc.purpose = purpose;
    clnet_model *model = clnet_model_create(ctx, &c->desc);
    if (model && clnet_model_load(model, c->weights) == CLNET_OK &&
        network_case_set(c, model->image, "image") && network_case_set(c, model->label, "label") &&
        network_case_set(c, model->mask, "mask")) {
        return model;
    }
    clnet_model_destroy(model);
    return NULL;
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

// The larger of two errors; NaN is the largest.
static double worse_of(double worst, double error) {
    return error > worst || error != error ? error : worst;
}

static double relative_l2(const double *found, const double *expected, size_t count) {
    double error = 0, size = 0;
    for (size_t i = 0; i < count; i++) {
        error += (found[i] - expected[i]) * (found[i] - expected[i]);
        size += expected[i] * expected[i];
    }
    return size > 0 ? sqrt(error / size) : error;
}

#endif
