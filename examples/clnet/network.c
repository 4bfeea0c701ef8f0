#include "network.h"

#include <stdio.h>
#include <string.h>

const char *const network_fusion_choices[] = {"shared", "per-task", NULL};

clnet_model_desc network_desc(const network_options *n, clnet_purpose purpose, int batch) {
    return (clnet_model_desc){.name = n->model,
                              .classes = n->classes,
                              .width = n->width,
                              .size = {n->size[0], n->size[1]},
                              .fusion = (clnet_fusion)n->fusion,
                              .purpose = purpose,
                              .batch = batch};
}

static bool given(const option *table, size_t count, const char *name) {
    const option *o = options_find(table, count, name);
    return o && o->given;
}

// Options beside a file that describes itself: the size may be another, the rest has to agree.
static bool agree(const char *weights, const network_options *n, const option *table, size_t count,
                  clnet_model_desc *d, problem *p) {
    if (given(table, count, "--model") && strcmp(n->model, d->name)) {
        return problem_input(p, "--model %s: %s holds a %s", n->model, weights, d->name);
    }
    if (given(table, count, "--classes") && n->classes != d->classes) {
        return problem_input(p, "--classes %d: %s has %d", n->classes, weights, d->classes);
    }
    if (given(table, count, "--width") && n->width != d->width) {
        return problem_input(p, "--width %g: %s has %g", n->width, weights, d->width);
    }
    if (given(table, count, "--fusion") && n->fusion != (int)d->fusion) {
        return problem_input(p, "--fusion %s: %s has %s", network_fusion_choices[n->fusion],
                             weights, network_fusion_choices[d->fusion]);
    }
    if (given(table, count, "--size")) {
        memcpy(d->size, n->size, sizeof d->size);
    }
    return true;
}

clnet_model *network_open(clnet_context *ctx, const char *weights, const network_options *n,
                          const option *table, size_t options, clnet_purpose purpose, int batch,
                          bool keep_all, problem *p) {
    char name[32];
    clnet_model_desc d;
    if (clnet_model_describe(ctx, weights, &d, name) == CLNET_OK) {
        if (!agree(weights, n, table, options, &d, p)) {
            return NULL;
        }
    } else if (clnet_context_result(ctx) == CLNET_ERROR_METADATA &&
               given(table, options, "--model")) {
        clnet_context_clear(ctx);
        d = network_desc(n, purpose, batch);
    } else {
        problem_context(p, ctx);
        return NULL;
    }
    d.purpose = purpose;
    d.batch = batch;
    d.keep_all = keep_all;
    clnet_model *m = clnet_model_create(ctx, &d);
    if (m && clnet_model_load(m, weights) == CLNET_OK) {
        return m;
    }
    problem_context(p, ctx);
    clnet_model_destroy(m);
    return NULL;
}
