// Every operation again, written from its formula: plain loops in double, PyTorch's order, and
// nothing of the library. Beside each value stands the size that an error is measured by, so that
// error = |found - value| / size stays below the limit of the row (verify_limits at the end):
//
//     sums      u (sum of the terms' absolute values) + n 2^-126: the error is then a small number,
//               whatever the shape, and one lost term is a large one
//     the rest  u times what the formula's own rounding is proportional to, said where it is made
//
// u = 2^-24 is half the distance between 1 and the next float.
#ifndef CLNET_VERIFY_NAIVE_H
#define CLNET_VERIFY_NAIVE_H

#include "verify_cases.h"

#define NAIVE_U    0x1p-24
#define NAIVE_TINY 0x1p-126 // below this floats may vanish

typedef struct naive_values {
    double *value, *size;
    size_t count;
} naive_values;

// What a case should give: y, the gradients of the leaves, the running statistics afterwards.
typedef struct naive_result {
    naive_values y, grad[VERIFY_MEAN], after[2];
} naive_result;

static naive_values naive_new(size_t count) {
    return (naive_values){verify_new(count), verify_new(count), count};
}

static void naive_delete(naive_values *v) {
    free(v->value);
    free(v->size);
}

// One more term of the i-th sum.
static void naive_add(naive_values *v, size_t i, double term) {
    v->value[i] += term;
    v->size[i] += NAIVE_U * fabs(term) + NAIVE_TINY;
}

static void naive_set(naive_values *v, size_t i, double value, double size) {
    v->value[i] = value;
    v->size[i] = size;
}

// The place of (a,b,c,d) in PyTorch's order.
static size_t naive_at(const int shape[4], int a, int b, int c, int d) {
    return (((size_t)a * (size_t)shape[1] + (size_t)b) * (size_t)shape[2] + (size_t)c) *
               (size_t)shape[3] +
           (size_t)d;
}

// All taps of one output value of a convolution, forward and backward.
static void naive_conv2d_at(const verify_problem *p, naive_result *r, int n, int oc, int oh,
                            int ow) {
    const verify_case *c = p->c;
    const int groups = verify_or(c->groups, 1), IC = c->x[1] / groups,
              group = oc / (c->out / groups);
    const int w_shape[4] = {c->out, IC, c->kernel[0], c->kernel[1]};
    const size_t y = naive_at(p->y_shape, n, oc, oh, ow);
    const double dy = p->dy[y];
    if (!c->no_bias) {
        naive_add(&r->y, y, p->leaf[VERIFY_BIAS][oc]);
        naive_add(&r->grad[VERIFY_BIAS], (size_t)oc, dy);
    }
    for (int ic = 0; ic < IC; ic++) {
        for (int kh = 0; kh < c->kernel[0]; kh++) {
            for (int kw = 0; kw < c->kernel[1]; kw++) {
                const int ih =
                    oh * verify_stride(c, 0) - c->padding[0] + kh * verify_or(c->dilation[0], 1);
                const int iw =
                    ow * verify_stride(c, 1) - c->padding[1] + kw * verify_or(c->dilation[1], 1);
                if (ih < 0 || ih >= c->x[2] || iw < 0 || iw >= c->x[3]) {
                    continue;
                }
                const size_t x = naive_at(c->x, n, group * IC + ic, ih, iw);
                const size_t w = naive_at(w_shape, oc, ic, kh, kw);
                naive_add(&r->y, y, p->leaf[0][x] * p->leaf[VERIFY_WEIGHT][w]);
                naive_add(&r->grad[0], x, dy * p->leaf[VERIFY_WEIGHT][w]);
                naive_add(&r->grad[VERIFY_WEIGHT], w, dy * p->leaf[0][x]);
            }
        }
    }
}

static void naive_conv2d(const verify_problem *p, naive_result *r) {
    for (int n = 0; n < p->y_shape[0]; n++) {
        for (int oc = 0; oc < p->y_shape[1]; oc++) {
            for (int oh = 0; oh < p->y_shape[2]; oh++) {
                for (int ow = 0; ow < p->y_shape[3]; ow++) {
                    naive_conv2d_at(p, r, n, oc, oh, ow);
                }
            }
        }
    }
}

static void naive_linear(const verify_problem *p, naive_result *r) {
    const int C = p->c->x[1], OC = p->c->out;
    for (int n = 0; n < p->c->x[0]; n++) {
        for (int o = 0; o < OC; o++) {
            const size_t y = (size_t)(n * OC + o);
            for (int i = 0; i < C; i++) {
                const size_t x = (size_t)(n * C + i), w = (size_t)(o * C + i);
                naive_add(&r->y, y, p->leaf[0][x] * p->leaf[VERIFY_WEIGHT][w]);
                naive_add(&r->grad[0], x, p->dy[y] * p->leaf[VERIFY_WEIGHT][w]);
                naive_add(&r->grad[VERIFY_WEIGHT], w, p->dy[y] * p->leaf[0][x]);
            }
            if (!p->c->no_bias) {
                naive_add(&r->y, y, p->leaf[VERIFY_BIAS][o]);
                naive_add(&r->grad[VERIFY_BIAS], (size_t)o, p->dy[y]);
            }
        }
    }
}

// The values of one channel: their number and where they are.
static size_t naive_channel(const verify_case *c, int channel, size_t *at) {
    size_t count = 0;
    for (int n = 0; n < c->x[0]; n++) {
        for (size_t i = 0; i < verify_pixels(c); i++) {
            at[count++] = ((size_t)n * (size_t)c->x[1] + (size_t)channel) * verify_pixels(c) + i;
        }
    }
    return count;
}

// Mean and variance by two passes; running statistics move towards mean and n/(n-1) var. The size of
// a mean is that of a sum; a variance is measured relative to itself.
static void naive_statistics(const verify_problem *p, naive_result *r, int k, const size_t *at,
                             size_t count, double *mean, double *var) {
    double sum = 0, size = 0, squares = 0;
    for (size_t i = 0; i < count; i++) {
        sum += p->leaf[0][at[i]];
        size += fabs(p->leaf[0][at[i]]);
    }
    *mean = sum / (double)count;
    for (size_t i = 0; i < count; i++) {
        squares += (p->leaf[0][at[i]] - *mean) * (p->leaf[0][at[i]] - *mean);
    }
    *var = squares / (double)count;
    const double m = p->c->value != 0 ? p->c->value : 0.1;
    const double unbiased = squares / ((double)count - 1);
    const double old_mean = p->leaf[VERIFY_MEAN][k], old_var = p->leaf[VERIFY_VAR][k];
    naive_set(&r->after[0], (size_t)k, (1 - m) * old_mean + m * *mean,
              NAIVE_U * ((1 - m) * fabs(old_mean) + m * size / (double)count));
    naive_set(&r->after[1], (size_t)k, (1 - m) * old_var + m * unbiased,
              NAIVE_U * ((1 - m) * old_var + m * unbiased));
}

// Training: |y| and |b| are rounded, and so is the mean, whose rounding is then divided by std.
// dx is made of three parts that cancel; the sums of dw count what the rounding of the mean does to x.
static void naive_batch_norm_training(const verify_problem *p, naive_result *r, int k,
                                      const size_t *at, size_t count, double mean, double std) {
    const double g = p->leaf[VERIFY_WEIGHT][k], b = p->leaf[VERIFY_BIAS][k];
    double mean_dy = 0, mean_dyx = 0, abs_dy = 0, abs_dyx = 0;
    for (size_t i = 0; i < count; i++) {
        const double hat = (p->leaf[0][at[i]] - mean) / std, dy = p->dy[at[i]], y = hat * g + b;
        naive_set(&r->y, at[i], y,
                  NAIVE_U * (16 * (fabs(y) + fabs(b)) + 4 * fabs(g) * fabs(mean) / std));
        naive_add(&r->grad[VERIFY_WEIGHT], (size_t)k, dy * hat);
        r->grad[VERIFY_WEIGHT].size[k] += NAIVE_U * fabs(dy) * fabs(mean) / std;
        naive_add(&r->grad[VERIFY_BIAS], (size_t)k, dy);
        mean_dy += dy / (double)count, abs_dy += fabs(dy) / (double)count;
        mean_dyx += dy * hat / (double)count, abs_dyx += fabs(dy * hat) / (double)count;
    }
    for (size_t i = 0; i < count; i++) {
        const double hat = (p->leaf[0][at[i]] - mean) / std, dy = p->dy[at[i]];
        naive_set(&r->grad[0], at[i], g / std * (dy - mean_dy - hat * mean_dyx),
                  NAIVE_U * fabs(g) / std * (fabs(dy) + abs_dy + fabs(hat) * abs_dyx));
    }
}

static void naive_batch_norm_evaluation(const verify_problem *p, naive_result *r, int k,
                                        const size_t *at, size_t count, double mean, double std) {
    const double g = p->leaf[VERIFY_WEIGHT][k], b = p->leaf[VERIFY_BIAS][k];
    for (size_t i = 0; i < count; i++) {
        const double x = p->leaf[0][at[i]], dy = p->dy[at[i]], hat = (x - mean) / std;
        naive_set(&r->y, at[i], hat * g + b,
                  NAIVE_U * (fabs(g) * (fabs(x) + fabs(mean)) / std + fabs(b)) + NAIVE_TINY);
        naive_set(&r->grad[0], at[i], dy * g / std, NAIVE_U * fabs(dy * g) / std + NAIVE_TINY);
        naive_add(&r->grad[VERIFY_WEIGHT], (size_t)k, dy * hat);
        r->grad[VERIFY_WEIGHT].size[k] += NAIVE_U * fabs(dy) * (fabs(x) + fabs(mean)) / std;
        naive_add(&r->grad[VERIFY_BIAS], (size_t)k, dy);
    }
    naive_set(&r->after[0], (size_t)k, mean, 0);
    naive_set(&r->after[1], (size_t)k, p->leaf[VERIFY_VAR][k], 0);
}

static void naive_batch_norm(const verify_problem *p, naive_result *r) {
    size_t *at = malloc(p->count[0] * sizeof *at);
    for (int k = 0; at && k < p->c->x[1]; k++) {
        const size_t count = naive_channel(p->c, k, at);
        const double eps = p->c->eps != 0 ? p->c->eps : 1e-5;
        double mean = p->leaf[VERIFY_MEAN][k], var = p->leaf[VERIFY_VAR][k];
        if (p->c->evaluation) {
            naive_batch_norm_evaluation(p, r, k, at, count, mean, sqrt(var + eps));
        } else {
            naive_statistics(p, r, k, at, count, &mean, &var);
            naive_batch_norm_training(p, r, k, at, count, mean, sqrt(var + eps));
        }
    }
    free(at);
}

static void naive_relu(const verify_problem *p, naive_result *r) {
    for (size_t i = 0; i < p->y_count; i++) {
        const double x = p->leaf[0][i];
        naive_set(&r->y, i, x < 0 ? 0 : x, 0);
        naive_set(&r->grad[0], i, x > 0 || x != x ? p->dy[i] : 0, 0);
    }
}

// The distance of two neighbouring floats at v, which is twice the rounding error there.
static double naive_ulp(double v) {
    int exponent;
    frexp(v, &exponent);
    return ldexp(1, (exponent < -125 ? -125 : exponent) - 24);
}

static double naive_sigmoid(double x) { return x < 0 ? exp(x) / (1 + exp(x)) : 1 / (1 + exp(-x)); }

// dx = dy y (1 - y) is made from the rounded y, whose error of four ulp the derivative 1 - 2y passes on.
static void naive_sigmoid_all(const verify_problem *p, naive_result *r) {
    for (size_t i = 0; i < p->y_count; i++) {
        const double x = p->leaf[0][i], y = naive_sigmoid(x), slope = y * naive_sigmoid(-x);
        naive_set(&r->y, i, y, naive_ulp(y) + NAIVE_TINY / 4);
        naive_set(&r->grad[0], i, p->dy[i] * slope,
                  fabs(p->dy[i]) * (NAIVE_U * (slope + 2 * y * fabs(1 - 2 * y)) + NAIVE_TINY));
    }
}

// One group of values that softmax turns into a distribution: `stride` apart. A rounding of x - max
// is a relative error of its exponential; backward takes y with that error.
static void naive_softmax_group(const verify_problem *p, naive_result *r, size_t first,
                                size_t stride, int count) {
    double max = p->leaf[0][first], sum = 0, dot = 0, dot_size = 0;
    for (int k = 1; k < count; k++) {
        max = fmax(max, p->leaf[0][first + (size_t)k * stride]);
    }
    for (int k = 0; k < count; k++) {
        sum += exp(p->leaf[0][first + (size_t)k * stride] - max);
    }
    for (int k = 0; k < count; k++) {
        const size_t i = first + (size_t)k * stride;
        const double away = p->leaf[0][i] - max, y = exp(away) / sum;
        naive_set(&r->y, i, y, NAIVE_U * y * (8 + fabs(away)) + NAIVE_TINY);
        dot += y * p->dy[i];
        dot_size += (y * (8 + fabs(away)) + NAIVE_TINY / NAIVE_U) * fabs(p->dy[i]);
    }
    for (int k = 0; k < count; k++) {
        const size_t i = first + (size_t)k * stride;
        const double away = fabs(p->leaf[0][i] - max), y = r->y.value[i], part = p->dy[i] - dot;
        naive_set(&r->grad[0], i, y * part,
                  NAIVE_U * y * ((8 + away) * fabs(part) + dot_size + fabs(p->dy[i])) +
                      NAIVE_TINY * (1 + fabs(part)));
    }
}

static void naive_softmax(const verify_problem *p, naive_result *r) {
    const int *x = p->c->x, axis = p->c->axis;
    size_t stride = 1;
    for (int i = 3; i > axis; i--) {
        stride *= (size_t)x[i];
    }
    for (size_t i = 0; i < p->y_count; i++) {
        if (i / stride % (size_t)x[axis] == 0) {
            naive_softmax_group(p, r, i, stride, x[axis]);
        }
    }
}

// The window of one output of a pooling: its taps inside x, at most 64.
static int naive_window(const verify_problem *p, int n, int channel, int oh, int ow, size_t *taps) {
    const verify_case *c = p->c;
    int count = 0;
    for (int kh = 0; kh < c->kernel[0]; kh++) {
        for (int kw = 0; kw < c->kernel[1]; kw++) {
            const int ih =
                oh * verify_stride(c, 0) - c->padding[0] + kh * verify_or(c->dilation[0], 1);
            const int iw =
                ow * verify_stride(c, 1) - c->padding[1] + kw * verify_or(c->dilation[1], 1);
            if (ih >= 0 && ih < c->x[2] && iw >= 0 && iw < c->x[3]) {
                taps[count++] = naive_at(c->x, n, channel, ih, iw);
            }
        }
    }
    return count;
}

// The first maximum wins, but NaN wins over everything.
static void naive_max_pool_at(const verify_problem *p, naive_result *r, size_t y,
                              const size_t *taps, int count) {
    size_t best = taps[0];
    for (int k = 1; k < count; k++) {
        const double v = p->leaf[0][taps[k]];
        best = v > p->leaf[0][best] || v != v ? taps[k] : best;
    }
    naive_set(&r->y, y, p->leaf[0][best], 0);
    naive_add(&r->grad[0], best, p->dy[y]);
}

static void naive_avg_pool_at(const verify_problem *p, naive_result *r, size_t y,
                              const size_t *taps, int count) {
    const double share = 1.0 / (p->c->exclude_pad ? count : p->c->kernel[0] * p->c->kernel[1]);
    for (int k = 0; k < count; k++) {
        naive_add(&r->y, y, p->leaf[0][taps[k]] * share);
        naive_add(&r->grad[0], taps[k], p->dy[y] * share);
    }
}

static void naive_pool2d(const verify_problem *p, naive_result *r) {
    const int *shape = p->y_shape;
    for (int n = 0; n < shape[0]; n++) {
        for (int c = 0; c < shape[1]; c++) {
            for (int oh = 0; oh < shape[2]; oh++) {
                for (int ow = 0; ow < shape[3]; ow++) {
                    size_t taps[64];
                    const int count = naive_window(p, n, c, oh, ow, taps);
                    const size_t y = naive_at(shape, n, c, oh, ow);
                    (p->c->op == CLNET_OP_MAX_POOL2D ? naive_max_pool_at
                                                     : naive_avg_pool_at)(p, r, y, taps, count);
                }
            }
        }
    }
}

static void naive_global_avg_pool(const verify_problem *p, naive_result *r) {
    const size_t pixels = verify_pixels(p->c);
    for (size_t i = 0; i < p->count[0]; i++) {
        naive_add(&r->y, i / pixels, p->leaf[0][i] / (double)pixels);
        naive_add(&r->grad[0], i, p->dy[i / pixels] / (double)pixels);
    }
}

// Where an output pixel reads along one axis: between `from` and the next, `t` of the way.
typedef struct naive_place {
    int from, next;
    double t;
} naive_place;

static naive_place naive_bilinear_place(int o, int size, int out, bool align_corners) {
    double at = align_corners ? (out > 1 ? o * (double)(size - 1) / (out - 1) : 0)
                              : (o + 0.5) * size / out - 0.5;
    at = at < 0 ? 0 : at;
    const int from = (int)floor(at) < size - 1 ? (int)floor(at) : size - 1;
    return from == size - 1 ? (naive_place){from, from, 0}
                            : (naive_place){from, from + 1, at - from};
}

// The neighbours of one output. A coordinate that is not exact is off by up to its size, W, in u,
// and so are the weights; then the next neighbour outwards counts too, if the place is on its border.
static void naive_bilinear_at(const verify_problem *p, naive_result *r, int n, int c, int oh,
                              int ow) {
    const int *x = p->c->x, *shape = p->y_shape;
    const naive_place h = naive_bilinear_place(oh, x[2], shape[2], p->c->align_corners);
    const naive_place w = naive_bilinear_place(ow, x[3], shape[3], p->c->align_corners);
    const bool exact = verify_dyadic(p->c);
    const double shift = exact ? 0 : x[2] > x[3] ? x[2] : x[3];
    const size_t y = naive_at(shape, n, c, oh, ow);
    double value = 0, largest = 0, low = INFINITY, high = -INFINITY;
    for (int ih = h.from - !exact; ih <= h.from + 2 && ih < x[2]; ih++) {
        for (int iw = w.from - !exact; iw <= w.from + 2 && iw < x[3]; iw++) {
            const bool inside = ih >= h.from && ih <= h.next && iw >= w.from && iw <= w.next;
            if (ih < 0 || iw < 0 || (exact && !inside)) {
                continue;
            }
            const double weight_h = ih == h.from ? 1 - h.t : ih == h.from + 1 ? h.t : 0;
            const double weight_w = iw == w.from ? 1 - w.t : iw == w.from + 1 ? w.t : 0;
            const size_t i = naive_at(x, n, c, ih, iw);
            const double v = p->leaf[0][i];
            if (inside) {
                value += weight_h * weight_w * v;
                naive_add(&r->grad[0], i, weight_h * weight_w * p->dy[y]);
            }
            r->grad[0].size[i] += NAIVE_U * shift / 4 * fabs(p->dy[y]);
            largest = fmax(largest, fabs(v));
            low = fmin(low, v);
            high = fmax(high, v);
        }
    }
    naive_set(&r->y, y, value,
              NAIVE_U * (exact ? largest : 4 * largest + 2 * shift * (high - low)));
}

static void naive_upsample_bilinear(const verify_problem *p, naive_result *r) {
    const int *shape = p->y_shape;
    for (int n = 0; n < shape[0]; n++) {
        for (int c = 0; c < shape[1]; c++) {
            for (int oh = 0; oh < shape[2]; oh++) {
                for (int ow = 0; ow < shape[3]; ow++) {
                    naive_bilinear_at(p, r, n, c, oh, ow);
                }
            }
        }
    }
}

// All terms of one output value and one input, which is brought to y's size first. Coordinates are
// floats, so that a weight may be off by a few u times the size of the map, unless they are exact.
static void naive_joined_at(const verify_problem *p, naive_result *r, int input, int n, int oc,
                            int oh, int ow) {
    const verify_case *c = p->c;
    const int channels[2] = {c->x[1], c->more[0]}, all = channels[0] + channels[1];
    const int x[4] = {c->x[0], channels[input], input ? c->size[0] : c->x[2],
                      input ? c->size[1] : c->x[3]};
    const bool same = x[2] == p->y_shape[2] && x[3] == p->y_shape[3];
    const double shift = same || verify_dyadic(c) ? 0 : x[2] > x[3] ? x[2] : x[3];
    const naive_place h = naive_bilinear_place(oh, x[2], p->y_shape[2], false);
    const naive_place w = naive_bilinear_place(ow, x[3], p->y_shape[3], false);
    const size_t y = naive_at(p->y_shape, n, oc, oh, ow);
    for (int ic = 0; ic < channels[input]; ic++) {
        const size_t k = (size_t)oc * (size_t)all + (size_t)(input ? channels[0] + ic : ic);
        const double weight = p->leaf[VERIFY_WEIGHT][k];
        for (int tap = 0; tap < (same ? 1 : 4); tap++) {
            const int ih = same ? oh : tap / 2 ? h.next : h.from;
            const int iw = same ? ow : tap % 2 ? w.next : w.from;
            const double share = same ? 1 : (tap / 2 ? h.t : 1 - h.t) * (tap % 2 ? w.t : 1 - w.t);
            const size_t i = naive_at(x, n, ic, ih, iw);
            const double v = p->leaf[input][i], off = NAIVE_U * shift;
            naive_add(&r->y, y, share * weight * v);
            naive_add(&r->grad[input], i, share * weight * p->dy[y]);
            naive_add(&r->grad[VERIFY_WEIGHT], k, share * v * p->dy[y]);
            r->y.size[y] += off * fabs(weight * v);
            r->grad[input].size[i] += off * fabs(weight * p->dy[y]);
            r->grad[VERIFY_WEIGHT].size[k] += off * fabs(v * p->dy[y]);
        }
    }
}

static void naive_conv2d_joined(const verify_problem *p, naive_result *r) {
    const int *shape = p->y_shape;
    for (size_t i = 0; i < p->y_count; i++) {
        const int ow = (int)(i % (size_t)shape[3]), oh = (int)(i / (size_t)shape[3]) % shape[2];
        const int plane = (int)(i / (size_t)shape[3] / (size_t)shape[2]);
        const int oc = plane % shape[1], n = plane / shape[1];
        if (!p->c->no_bias) {
            naive_add(&r->y, i, p->leaf[VERIFY_BIAS][oc]);
            naive_add(&r->grad[VERIFY_BIAS], (size_t)oc, p->dy[i]);
        }
        naive_joined_at(p, r, 0, n, oc, oh, ow);
        naive_joined_at(p, r, 1, n, oc, oh, ow);
    }
}

static void naive_concat(const verify_problem *p, naive_result *r) {
    size_t before = 0; // values of an image's earlier parts
    const size_t image = p->y_count / (size_t)p->c->x[0];
    for (int k = 0; k < VERIFY_INPUTS; k++) {
        const size_t part = p->count[k] / (size_t)p->c->x[0];
        for (size_t i = 0; i < p->count[k]; i++) {
            const size_t y = i / part * image + before + i % part;
            naive_set(&r->y, y, p->leaf[k][i], 0);
            naive_set(&r->grad[k], i, p->dy[y], 0);
        }
        before += part;
    }
}

static void naive_add_all(const verify_problem *p, naive_result *r) {
    for (size_t i = 0; i < p->y_count; i++) {
        const double y = p->leaf[0][i] + p->leaf[1][i];
        naive_set(&r->y, i, y, NAIVE_U * fabs(y) + NAIVE_TINY);
        naive_set(&r->grad[0], i, p->dy[i], 0);
        naive_set(&r->grad[1], i, p->dy[i], 0);
    }
}

static void naive_scale_channels(const verify_problem *p, naive_result *r) {
    const size_t pixels = verify_pixels(p->c);
    for (size_t i = 0; i < p->y_count; i++) {
        const double x = p->leaf[0][i], gate = p->leaf[1][i / pixels], dy = p->dy[i];
        naive_set(&r->y, i, x * gate, NAIVE_U * fabs(x * gate) + NAIVE_TINY);
        naive_set(&r->grad[0], i, dy * gate, NAIVE_U * fabs(dy * gate) + NAIVE_TINY);
        naive_add(&r->grad[1], i / pixels, dy * x);
    }
}

// One channel of an image. S has softmax's error, and so has what it multiplies.
static void naive_attention_channel(const verify_problem *p, naive_result *r, size_t first,
                                    size_t pixels) {
    const double *f = p->leaf[0] + first, *x = p->leaf[1] + first, *dy = p->dy + first;
    const double alpha = p->leaf[VERIFY_WEIGHT][0];
    double max = f[0], sum = 0, dot = 0, dot_size = 0;
    for (size_t i = 1; i < pixels; i++) {
        max = fmax(max, f[i]);
    }
    for (size_t i = 0; i < pixels; i++) {
        sum += exp(f[i] - max);
    }
    for (size_t i = 0; i < pixels; i++) {
        const double S = exp(f[i] - max) / sum, error = S * (8 + fabs(f[i] - max));
        naive_set(&r->y, first + i, f[i] + x[i] + alpha * S * x[i],
                  NAIVE_U * (fabs(f[i]) + fabs(x[i]) + fabs(alpha * x[i]) * error) + NAIVE_TINY);
        naive_set(&r->grad[1], first + i, dy[i] * (1 + alpha * S),
                  NAIVE_U * fabs(dy[i]) * (1 + fabs(alpha) * error) + NAIVE_TINY);
        dot += S * x[i] * dy[i];
        dot_size += fabs(x[i] * dy[i]) * error;
    }
    for (size_t i = 0; i < pixels; i++) {
        const double S = exp(f[i] - max) / sum, error = S * (8 + fabs(f[i] - max));
        naive_set(&r->grad[0], first + i, dy[i] + alpha * S * (x[i] * dy[i] - dot),
                  NAIVE_U * (fabs(dy[i]) + fabs(alpha) * (error * (fabs(x[i] * dy[i]) + fabs(dot)) +
                                                          S * dot_size)) +
                      NAIVE_TINY);
    }
    r->grad[VERIFY_WEIGHT].value[0] += dot;
    r->grad[VERIFY_WEIGHT].size[0] += NAIVE_U * dot_size + NAIVE_TINY;
}

static void naive_attention_residual(const verify_problem *p, naive_result *r) {
    for (size_t i = 0; i < p->y_count; i += verify_pixels(p->c)) {
        naive_attention_channel(p, r, i, verify_pixels(p->c));
    }
}

// Which values are kept is the operation's own draw (target); what becomes of them is not.
static void naive_dropout(const verify_problem *p, naive_result *r) {
    const double scale = p->c->evaluation ? 1 : 1 / (1 - p->c->value);
    for (size_t i = 0; i < p->y_count; i++) {
        const double x = p->leaf[0][i], dy = p->dy[i];
        const bool kept = p->target[i] != 0;
        naive_set(&r->y, i, kept ? x * scale : 0, NAIVE_U * fabs(x) * scale + NAIVE_TINY);
        naive_set(&r->grad[0], i, kept ? dy * scale : 0, NAIVE_U * fabs(dy) * scale + NAIVE_TINY);
    }
}

// (x - mean) / std has two roundings, each of at most one unit of this size; OpenCL's division may be
// off by 2 1/2 ulp, 5 of them.
static void naive_flip(const verify_problem *p, naive_result *r) {
    const verify_case *c = p->c;
    const int H = c->x[2], W = c->x[3];
    for (int n = 0; n < c->x[0]; n++) {
        const int code = c->evaluation || c->unlabelled ? 0 : (int)p->target[n];
        for (int k = 0; k < c->x[1]; k++) {
            const double std = k < 4 && c->alpha[k] != 0 ? c->alpha[k] : 1;
            const double mean = k < 4 ? c->value * k : 0;
            for (int i = 0; i < H * W; i++) {
                const int h = i / W, w = i % W;
                const size_t to = naive_at(c->x, n, k, h, w);
                const size_t from = naive_at(c->x, n, k, code == 2 || code == 3 ? H - 1 - h : h,
                                             code == 1 || code == 3 ? W - 1 - w : w);
                const double x = p->leaf[0][from], dy = p->dy[to];
                naive_set(&r->y, to, (x - mean) / std,
                          NAIVE_U * (fabs(x) + fabs(mean)) / std + NAIVE_TINY);
                naive_set(&r->grad[0], from, dy / std, NAIVE_U * fabs(dy) / std + NAIVE_TINY);
            }
        }
    }
}

// Losses: rounding of x - max, or of a logit, is a relative error of what is made of it, hence the
// distances in the sizes.

static void naive_focal_image(const verify_problem *p, naive_result *r, int n, double share) {
    const int classes = p->c->x[1], t = (int)p->target[n];
    const double *z = p->leaf[0] + n * classes, gamma = p->c->value;
    double max = z[0], others = 0, second = -INFINITY, alpha = 0;
    for (int k = 1; k < classes; k++) {
        second = z[k] > max ? max : fmax(second, z[k]);
        max = z[k] > max ? z[k] : max;
    }
    for (int k = 0; k < classes; k++) {
        others += k == t ? 0 : exp(z[k] - z[t]); // (1 - p) / p of the label's class
        alpha += k < 4 ? p->c->alpha[k] : 0;
    }
    alpha = alpha > 0 ? p->c->alpha[t] : 1;
    const double wrong = isinf(others) ? 1 : others / (1 + others), right = 1 / (1 + others);
    const double log_p = isinf(others) ? z[t] - max : -log1p(others);
    const double loss = alpha * share * pow(wrong, gamma) * -log_p, distance = max - second;
    r->y.value[0] += loss;
    r->y.size[0] += NAIVE_U * loss * (16 + 4 * distance) / 16 + NAIVE_TINY;
    const double slope =
        alpha * share * p->dy[0] *
        (gamma * (wrong > 0 ? pow(wrong, gamma - 1) * right * log_p : 0) - pow(wrong, gamma));
    for (int k = 0; k < classes; k++) {
        const double part = k == t ? wrong : -exp(z[k] - z[t] + log_p); // -p_k
        const size_t i = (size_t)(n * classes + k);
        naive_set(&r->grad[0], i, slope * part, NAIVE_U * fabs(slope * part) + 1e-12 / 32);
    }
}

static void naive_focal_loss(const verify_problem *p, naive_result *r) {
    int labelled = 0;
    for (size_t n = 0; n < p->targets; n++) {
        labelled += p->target[n] >= 0;
    }
    for (int n = 0; n < p->c->x[0]; n++) {
        if (p->target[n] >= 0) {
            naive_focal_image(p, r, n, 1.0 / labelled);
        }
    }
    r->y.size[0] += NAIVE_TINY;
}

// Images that have a mask.
static int naive_masked(const verify_problem *p) {
    int count = 0;
    for (size_t i = 0; i < p->targets; i += verify_pixels(p->c)) {
        count += p->target[i] >= 0;
    }
    return count;
}

// `weight` times the mask focal loss, its gradient times the upstream one.
static void naive_mask_focal(const verify_problem *p, naive_result *r, double gamma,
                             double weight) {
    const size_t pixels = verify_pixels(p->c);
    const double share = weight / ((double)naive_masked(p) * (double)pixels);
    for (size_t i = 0; i < p->targets; i++) {
        if (p->target[i / pixels * pixels] < 0) {
            continue;
        }
        const double sign = p->target[i] > 0.5 ? 1 : -1, z = sign * p->leaf[0][i];
        const double wrong = naive_sigmoid(-z), right = naive_sigmoid(z);
        const double log_p = z < 0 ? z - log1p(exp(z)) : -log1p(exp(-z));
        const double loss = -pow(wrong, gamma) * log_p;
        r->y.value[0] += share * loss;
        r->y.size[0] += NAIVE_U * fabs(share) * loss * (16 + 4 * fabs(z)) / 16;
        const double slope = share * p->dy[0] * pow(wrong, gamma) * (gamma * right * log_p - wrong);
        r->grad[0].value[i] += sign * slope;
        r->grad[0].size[i] += NAIVE_U * fabs(slope) + 1e-12 / 32;
    }
    r->y.size[0] += NAIVE_TINY;
}

// `weight` times the Dice loss. The two parts of its gradient may cancel, so both count.
static void naive_dice(const verify_problem *p, naive_result *r, double smooth, double weight) {
    const size_t pixels = verify_pixels(p->c);
    const double share = weight / naive_masked(p);
    for (size_t first = 0; first < p->targets; first += pixels) {
        double both = 0, all = 0;
        if (p->target[first] < 0) {
            continue;
        }
        for (size_t i = first; i < first + pixels; i++) {
            both += naive_sigmoid(p->leaf[0][i]) * p->target[i];
            all += naive_sigmoid(p->leaf[0][i]) + p->target[i];
        }
        const double dice = (2 * both + smooth) / (all + smooth);
        r->y.value[0] += share * (1 - dice);
        r->y.size[0] += NAIVE_U * fabs(share) * (fabs(1 - dice) + 1);
        for (size_t i = first; i < first + pixels; i++) {
            const double z = p->leaf[0][i], slope = naive_sigmoid(z) * naive_sigmoid(-z);
            const double outer = share * p->dy[0] * slope / (all + smooth);
            r->grad[0].value[i] += outer * (dice - 2 * p->target[i]);
            r->grad[0].size[i] += NAIVE_U * fabs(outer) * (dice + 2 * p->target[i]) + 1e-12 / 16;
        }
    }
}

static void naive_weighted_sum(const verify_problem *p, naive_result *r) {
    naive_dice(p, r, 1, verify_sum_weights[0]);
    naive_mask_focal(p, r, p->c->value, verify_sum_weights[1]);
    naive_dice(p, r, 0, verify_sum_weights[2]);
}

static void naive_operation(const verify_problem *p, naive_result *r) {
    switch (p->c->op) {
    case CLNET_OP_CONV2D:
        naive_conv2d(p, r);
        break;
    case CLNET_OP_LINEAR:
        naive_linear(p, r);
        break;
    case CLNET_OP_BATCH_NORM:
        naive_batch_norm(p, r);
        break;
    case CLNET_OP_RELU:
        naive_relu(p, r);
        break;
    case CLNET_OP_SIGMOID:
        naive_sigmoid_all(p, r);
        break;
    case CLNET_OP_SOFTMAX:
        naive_softmax(p, r);
        break;
    case CLNET_OP_MAX_POOL2D:
    case CLNET_OP_AVG_POOL2D:
        naive_pool2d(p, r);
        break;
    case CLNET_OP_GLOBAL_AVG_POOL:
        naive_global_avg_pool(p, r);
        break;
    case CLNET_OP_UPSAMPLE_BILINEAR:
        naive_upsample_bilinear(p, r);
        break;
    case CLNET_OP_CONCAT:
        naive_concat(p, r);
        break;
    case CLNET_OP_CONV2D_JOINED:
        naive_conv2d_joined(p, r);
        break;
    case CLNET_OP_ADD:
        naive_add_all(p, r);
        break;
    case CLNET_OP_SCALE_CHANNELS:
        naive_scale_channels(p, r);
        break;
    case CLNET_OP_ATTENTION_RESIDUAL:
        naive_attention_residual(p, r);
        break;
    case CLNET_OP_DROPOUT:
        naive_dropout(p, r);
        break;
    case CLNET_OP_FLIP:
        naive_flip(p, r);
        break;
    case CLNET_OP_FOCAL_LOSS:
        naive_focal_loss(p, r);
        break;
    case CLNET_OP_MASK_FOCAL_LOSS:
        naive_mask_focal(p, r, p->c->value, 1);
        break;
    case CLNET_OP_DICE_LOSS:
        naive_dice(p, r, p->c->value, 1);
        break;
    case CLNET_OP_WEIGHTED_SUM:
        naive_weighted_sum(p, r);
        break;
    case CLNET_OP_COUNT:
        break;
    }
}

static naive_result naive_run(const verify_problem *p) {
    naive_result r = {.y = naive_new(p->y_count)};
    for (int i = 0; i < VERIFY_MEAN; i++) {
        r.grad[i] = naive_new(p->count[i]);
    }
    for (int i = 0; i < 2; i++) {
        r.after[i] = naive_new(p->count[VERIFY_MEAN + i]);
    }
    naive_operation(p, &r);
    return r;
}

static void naive_free(naive_result *r) {
    naive_delete(&r->y);
    for (int i = 0; i < VERIFY_MEAN; i++) {
        naive_delete(&r->grad[i]);
    }
    naive_delete(&r->after[0]);
    naive_delete(&r->after[1]);
}

// The limits of errors measured in the sizes above: of the CPU, and against values from PyTorch. The
// last is of weight gradients and of statistics. 0: the very same bits.
typedef struct verify_limit {
    clnet_op op;
    double forward, input, weight, torch_forward, torch_input, torch_weight;
} verify_limit;

static const verify_limit verify_limits[] = {
    {CLNET_OP_CONV2D, 8, 8, 8, 16, 16, 16},
    {CLNET_OP_LINEAR, 8, 8, 8, 16, 16, 16},
    {CLNET_OP_BATCH_NORM, 1, 64, 8, 4, 256, 16},
    {CLNET_OP_RELU, 0, 0, 0, 0, 0, 0},
    {CLNET_OP_SIGMOID, 4, 4, 0, 6, 6, 0},
    {CLNET_OP_SOFTMAX, 1, 1, 0, 2, 2, 0},
    {CLNET_OP_MAX_POOL2D, 0, 4, 0, 0, 4, 0},
    {CLNET_OP_AVG_POOL2D, 4, 4, 0, 8, 8, 0},
    {CLNET_OP_GLOBAL_AVG_POOL, 4, 4, 0, 8, 8, 0},
    {CLNET_OP_UPSAMPLE_BILINEAR, 1, 8, 0, 1.5, 16, 0},
    {CLNET_OP_CONCAT, 0, 0, 0, 0, 0, 0},
    {CLNET_OP_CONV2D_JOINED, 8, 8, 8, 16, 16, 16},
    {CLNET_OP_ADD, 1, 0, 0, 1, 0, 0},
    {CLNET_OP_SCALE_CHANNELS, 1, 8, 0, 2, 16, 0},
    {CLNET_OP_ATTENTION_RESIDUAL, 1, 1, 1, 2, 2, 2},
    {CLNET_OP_DROPOUT, 2, 2, 0, 4, 4, 0},
    {CLNET_OP_FLIP, 3, 3, 0, 3, 3, 0},
    {CLNET_OP_FOCAL_LOSS, 16, 32, 0, 64, 128, 0},
    {CLNET_OP_MASK_FOCAL_LOSS, 16, 32, 0, 64, 128, 0},
    {CLNET_OP_DICE_LOSS, 8, 16, 0, 32, 32, 0},
    {CLNET_OP_WEIGHTED_SUM, 16, 32, 0, 64, 128, 0},
};
static const verify_limit verify_limit_evaluation = {CLNET_OP_BATCH_NORM, 4, 4, 8, 8, 8, 16};
static const verify_limit verify_limit_dyadic = {CLNET_OP_UPSAMPLE_BILINEAR, 4, 8, 0, 6, 16, 0};

static const verify_limit *verify_limit_of(const verify_case *c) {
    if (c->op == CLNET_OP_BATCH_NORM && c->evaluation) {
        return &verify_limit_evaluation;
    }
    if (c->op == CLNET_OP_UPSAMPLE_BILINEAR && verify_dyadic(c)) {
        return &verify_limit_dyadic;
    }
    return &verify_limits[c->op];
}

#endif
