#include "explanation.h"

#include "options.h"

#include <math.h>
#include <stdlib.h>

static bool no_memory(const char *name, problem *p) {
    return problem_run(p, "%s: no memory to explain it", name);
}

// Image bytes to the network's input, and through the network.
static bool forward(clnet_model *m, const char *name, const image *im, explanation *e, problem *p) {
    const int H = m->desc.size[0], W = m->desc.size[1];
    const size_t scratch_count = clnet_resize_scratch(H, W, im->height, im->width, 3);
    float *scratch = scratch_count ? malloc(scratch_count * sizeof *scratch) : NULL;
    e->input = malloc((size_t)H * (size_t)W * 3 * sizeof *e->input);
    if (!scratch || !e->input) {
        free(scratch);
        return no_memory(name, p);
    }
    clnet_image_to_input(e->input, H, W, im->bytes, im->height, im->width, scratch);
    free(scratch);
    clnet_graph_set_training(m->graph, false);
    if (clnet_tensor_set(m->image, e->input, CLNET_ORDER_MEMORY) != CLNET_OK ||
        clnet_graph_forward(m->graph) != CLNET_OK ||
        (m->logits && clnet_tensor_get(m->logits, e->logits, CLNET_ORDER_TORCH) != CLNET_OK)) {
        return problem_context(p, clnet_graph_context(m->graph));
    }
    for (int k = 0; k < m->desc.classes; k++) {
        if (!isfinite(e->logits[k])) {
            return problem_run(p, "%s: the network's scores of this image are not finite", name);
        }
    }
    return true;
}

static bool make_mask(clnet_model *m, const char *name, const image *im, explanation *e,
                      problem *p) {
    const size_t pixels = (size_t)im->height * (size_t)im->width;
    float *logits = malloc(clnet_tensor_count(m->mask_logits) * sizeof *logits);
    float *probability = malloc(pixels * sizeof *probability);
    e->mask = malloc(pixels);
    bool ok = (logits && probability && e->mask) || no_memory(name, p);
    if (ok && clnet_tensor_get(m->mask_logits, logits, CLNET_ORDER_MEMORY) != CLNET_OK) {
        ok = problem_context(p, clnet_graph_context(m->graph));
    }
    if (ok) {
        clnet_mask_at_size(probability, e->mask, im->height, im->width, logits, m->desc.size[0],
                           m->desc.size[1]);
    }
    free(probability);
    free(logits);
    return ok;
}

static bool map_create(explanation_map *map, int height, int width, const char *name, problem *p) {
    *map = (explanation_map){calloc((size_t)height * (size_t)width, sizeof(float)), height, width};
    return map->values || no_memory(name, p);
}

static bool make_stage(clnet_model *m, const char *name, clnet_cam_variant variant, int stage,
                       explanation *e, problem *p) {
    const clnet_tensor *A = m->stage[stage - 1];
    explanation_map *map = &e->stage[stage - 1];
    return map_create(map, clnet_tensor_size(A, 2), clnet_tensor_size(A, 3), name, p) &&
           (clnet_cam(m, variant, stage, &e->label, map->values) == CLNET_OK ||
            problem_context(p, clnet_graph_context(m->graph)));
}

// sum += the map, resized to the sum's size, over its maximum, times the weight. A map without a
// positive value adds nothing.
static void add_map(float *sum, float *scratch, int height, int width, const explanation_map *map,
                    float weight) {
    float largest = 0;
    for (size_t i = 0; i < (size_t)map->height * (size_t)map->width; i++) {
        largest = map->values[i] > largest ? map->values[i] : largest;
    }
    if (largest <= 0) {
        return;
    }
    clnet_resize_bilinear(scratch, height, width, map->values, map->height, map->width);
    for (size_t i = 0; i < (size_t)height * (size_t)width; i++) {
        sum[i] += weight * (scratch[i] / largest);
    }
}

// The map to show: that of the layer, or the mean of all.
static bool combine(const clnet_model *m, const char *name, int layer, explanation *e, problem *p) {
    if (layer != EXPLANATION_ALL) {
        const explanation_map *stage = &e->stage[layer - 1];
        if (!map_create(&e->map, stage->height, stage->width, name, p)) {
            return false;
        }
        for (size_t i = 0; i < (size_t)stage->height * (size_t)stage->width; i++) {
            e->map.values[i] = stage->values[i];
        }
        return true;
    }
    const int H = m->desc.size[0], W = m->desc.size[1];
    float *scratch = malloc((size_t)H * (size_t)W * sizeof *scratch);
    const bool ok = scratch ? map_create(&e->map, H, W, name, p) : no_memory(name, p);
    for (int i = 0; ok && i < 5; i++) {
        add_map(e->map.values, scratch, H, W, &e->stage[i], 0.2f);
    }
    free(scratch);
    return ok;
}

static bool make_maps(clnet_model *m, const char *name, const explanation_desc *desc,
                      explanation *e, problem *p) {
    e->label = desc->label;
    for (int stage = 1; stage <= 5; stage++) {
        if ((desc->layer == EXPLANATION_ALL || desc->layer == stage) &&
            !make_stage(m, name, desc->variant, stage, e, p)) {
            return false;
        }
    }
    return combine(m, name, desc->layer, e, p);
}

bool explanation_make(clnet_model *model, const char *name, const image *im,
                      const explanation_desc *desc, explanation *out, problem *p) {
    *out = (explanation){.label = -1};
    const bool ok = forward(model, name, im, out, p) &&
                    (!desc->mask || !model->mask_logits || make_mask(model, name, im, out, p)) &&
                    (!model->logits || make_maps(model, name, desc, out, p));
    if (!ok) {
        explanation_free(out);
    }
    return ok;
}

void explanation_free(explanation *e) {
    for (int i = 0; i < 5; i++) {
        free(e->stage[i].values);
    }
    free(e->map.values);
    free(e->mask);
    free(e->input);
    *e = (explanation){.label = -1};
}

bool explanation_draw(const explanation *e, const image *im, picture *out, problem *p) {
    if (!picture_copy(out, im->bytes, im->height, im->width, p)) {
        return false;
    }
    picture_overlay_heat(out, e->map.values, e->map.height, e->map.width);
    return true;
}
