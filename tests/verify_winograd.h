// Winograd's convolutions (>>winograd in clnet.h), on by default and so one more path of each
// instruction set. They amplify rounding: their errors are measured in those of the direct path on
// the same data, at most 16 of them, and as a whole, at most 5e-6 in relative L2. Integers are left
// out, since no transform keeps them exact.
#ifndef CLNET_VERIFY_WINOGRAD_H
#define CLNET_VERIFY_WINOGRAD_H

#include "verify_operations.h"

static double winograd_distance(const double *found, const naive_values *expected) {
    double error = 0, size = 0;
    for (size_t i = 0; i < expected->count; i++) {
        error += (found[i] - expected->value[i]) * (found[i] - expected->value[i]);
        size += expected->value[i] * expected->value[i];
    }
    return sqrt(error / size);
}

// One array of a case: this path's, the direct path's, and what is right.
static void winograd_check(const verify_case *c, const char *path, const char *check,
                           const char *what, const double *found, const double *direct,
                           const naive_values *expected) {
    if (expected->count == 0) {
        return;
    }
    char where[160];
    const verify_worst worst = verify_compare(found, expected, 1);
    const double base = verify_compare(direct, expected, 1).error;
    snprintf(where, sizeof where, "%s: %s[%zu] is %.9g, expected %.9g; E %.3g, direct %.3g",
             c->name, what, worst.index, worst.found, worst.expected, worst.error, base);
    verify_report("conv2d", check, path, base > 0 ? worst.error / base : worst.error, 16, where);
    verify_report("conv2d", "relative L2", path, winograd_distance(found, expected), 5e-6, where);
}

// Is a pass of a case by this method? It takes at most so many zeros at each edge of what it reads:
// `padding` of them in x, 2 - padding in dy.
static bool winograd_expected(const verify_case *c, bool gradient, int most) {
    bool expected = c->winograd;
    for (int i = 0; i < 2; i++) {
        const int zeros = gradient ? 2 - c->padding[i] : c->padding[i];
        expected = expected && zeros >= 0 && zeros <= most;
    }
    return expected;
}

static void winograd_case(const verify_path *path, clnet_context *direct, const verify_case *c,
                          verify_family family, uint64_t seed) {
    verify_problem p = verify_problem_new(c);
    verify_fill(&p, family, seed);
    verify_run one = verify_run_new(&p), three = verify_run_new(&p), base = verify_run_new(&p);
    if (verify_run_on(path->ctx, &p, path->name, &one) &&
        verify_run_on(path->threaded, &p, path->name, &three) &&
        verify_run_on(direct, &p, path->name, &base)) {
        naive_result naive = naive_run(&p);
        winograd_check(c, path->name, "forward / direct E", "y", one.y, base.y, &naive.y);
        winograd_check(c, path->name, "backward / direct E", "x", one.grad[0], base.grad[0],
                       &naive.grad[0]);
        winograd_check(c, path->name, "weights / direct E", "weight", one.grad[VERIFY_WEIGHT],
                       base.grad[VERIFY_WEIGHT], &naive.grad[VERIFY_WEIGHT]);
        verify_report("all operations", "1 and 3 threads", path->name,
                      verify_differences(&p, &one, &three), 0, c->name);
        const bool weights =
            !verify_same(one.grad[VERIFY_WEIGHT], base.grad[VERIFY_WEIGHT], p.count[VERIFY_WEIGHT]);
        const bool forward = !verify_same(one.y, base.y, p.y_count);
        const bool backward = !verify_same(one.grad[0], base.grad[0], p.count[0]);
        const bool right = forward == winograd_expected(c, false, 1) &&
                           backward == winograd_expected(c, true, 1) &&
                           weights == winograd_expected(c, false, 2);
        verify_report("conv2d", "is Winograd's", path->name, right ? 0 : 1, 0, c->name);
        naive_free(&naive);
    }
    verify_run_free(&one);
    verify_run_free(&three);
    verify_run_free(&base);
    verify_problem_free(&p);
}

// NaN in x reaches what it reaches in the direct sum, and at most the 4 tiles that read it.
static void winograd_nonfinite(const verify_path *path, const verify_case *c, uint64_t seed) {
    verify_problem p = verify_problem_new(c);
    verify_fill(&p, VERIFY_NORMAL, seed);
    verify_run run = verify_run_new(&p);
    uint64_t state = seed + 77;
    for (int k = 0; k < 6; k++) {
        const size_t at = (size_t)(verify_uniform(&state) * (double)p.count[0]);
        const double before = p.leaf[0][at];
        p.leaf[0][at] = k % 3 == 2 ? INFINITY : NAN;
        if (verify_run_on(path->ctx, &p, path->name, &run)) {
            naive_result naive = naive_run(&p);
            size_t lost = 0;
            for (size_t i = 0; i < p.y_count; i++) {
                lost += isfinite(run.y[i]) ? 0 : 1;
            }
            char where[160];
            snprintf(where, sizeof where, "%s: x[%zu]", c->name, at);
            verify_report(
                "conv2d", "not finite", path->name,
                (double)(verify_hidden(run.y, &naive.y, false) +
                         verify_hidden(run.grad[VERIFY_WEIGHT], &naive.grad[VERIFY_WEIGHT], false)),
                0, where);
            verify_report("conv2d", "not finite, spread", path->name, (double)lost,
                          (double)(4 * 16 * c->out), where);
            naive_free(&naive);
        }
        p.leaf[0][at] = before;
    }
    verify_run_free(&run);
    verify_problem_free(&p);
}

// The three passes called by themselves, on tensors that may be channels of wider ones.
typedef struct winograd_run {
    float *x, *y, *dx, *dw; // y is also the gradient of backward
    size_t counts[4];
    int margin; // channels beside those of the tensor, on either side; they hold GUARD
} winograd_run;

#define WINOGRAD_GUARD 1e30f

static winograd_run winograd_run_new(const clnet_conv2d_sizes *s, int margin) {
    const size_t in = (size_t)(s->N * s->H * s->W), out = (size_t)(s->N * s->OH * s->OW);
    const size_t wide = 2 * (size_t)margin;
    winograd_run r = {.margin = margin,
                      .counts = {in * ((size_t)s->C + wide), out * ((size_t)s->OC + wide),
                                 in * ((size_t)s->C + wide), (size_t)(9 * s->C * s->OC)}};
    float **arrays[] = {&r.x, &r.y, &r.dx, &r.dw};
    for (int i = 0; i < 4; i++) {
        const size_t channels = (size_t)(i == 1 ? s->OC : s->C) + wide;
        uint64_t state = (uint64_t)i + 5;
        float *array = malloc(r.counts[i] * sizeof *array);
        for (size_t k = 0; array && k < r.counts[i]; k++) {
            const size_t c = k % channels;
            const bool inside = i == 3 || (c >= (size_t)margin && c < channels - (size_t)margin);
            array[k] = inside ? (float)verify_normal(&state) : WINOGRAD_GUARD;
        }
        *arrays[i] = array;
    }
    return r;
}

static void winograd_run_free(winograd_run *r) {
    free(r->x);
    free(r->y);
    free(r->dx);
    free(r->dw);
}

// Forward, then backward with what it gave. Images `at` to `at` + s->N of the run's; `room` bytes of
// workspace.
static void winograd_run_on(const winograd_run *r, const clnet__cpu *cpu, clnet_conv2d_sizes s,
                            int at, const float *w, size_t room) {
    const size_t wide = 2 * (size_t)r->margin;
    s.x_stride = (size_t)s.C + wide;
    s.y_stride = (size_t)s.OC + wide;
    char *memory = malloc(room + 64);
    void *workspace = memory + (64 - (uintptr_t)memory % 64);
    const size_t in = (size_t)(at * s.H * s.W) * s.x_stride + wide / 2;
    const size_t out = (size_t)(at * s.OH * s.OW) * s.y_stride + wide / 2;
    if (memory) {
        clnet__conv2d_fast_forward(cpu, r->y + out, r->x + in, w, NULL, &s, NULL, workspace);
        clnet__conv2d_fast_backward_data(cpu, r->dx + in, r->y + out, w, &s, workspace);
        clnet__conv2d_fast_backward_weight(cpu, r->dw, r->y + out, r->x + in, &s, workspace);
    }
    free(memory);
}

// Numbers of `wide` that differ from those of the dense run, and guards that changed.
static int winograd_differences(const winograd_run *dense, const winograd_run *wide,
                                const clnet_conv2d_sizes *s, bool weights) {
    const float *a[] = {dense->x, dense->y, dense->dx, dense->dw};
    const float *b[] = {wide->x, wide->y, wide->dx, wide->dw};
    int count = 0;
    for (int i = 0; i < 3 + weights; i++) {
        const size_t margin = i < 3 ? (size_t)wide->margin : 0, guard = 2 * margin;
        const size_t channels = (size_t)(i == 1 ? s->OC : s->C);
        for (size_t k = 0; k < wide->counts[i]; k++) {
            const size_t pixel = k / (channels + guard), c = k % (channels + guard);
            const bool inside = c >= margin && c < margin + channels;
            const float expected = inside ? a[i][pixel * channels + c - margin] : WINOGRAD_GUARD;
            count += memcmp(&b[i][k], &expected, sizeof expected) != 0;
        }
    }
    return count;
}

// The same bits in views, on any number of threads, and image by image.
static void winograd_invariant(const char *path, clnet_isa isa, clnet_conv2d_sizes s) {
    char where[160];
    snprintf(where, sizeof where, "%d x %d x %d x %d to %d", s.N, s.C, s.H, s.W, s.OC);
    winograd_run dense = winograd_run_new(&s, 0);
    const winograd_run weights = winograd_run_new(&s, 0);
    const clnet__cpu one = {.threads = 1, .isa = isa};
    const size_t room = clnet__conv2d_fast_workspace(&one, &s);
    winograd_run_on(&dense, &one, s, 0, weights.dw, room);
    for (int threads = 1; threads <= 8; threads = threads < 3 ? threads + 1 : threads + 5) {
        const clnet__cpu cpu = {.threads = threads, .isa = isa};
        winograd_run wide = winograd_run_new(&s, 3);
        winograd_run_on(&wide, &cpu, s, 0, weights.dw, clnet__conv2d_fast_workspace(&cpu, &s));
        verify_report("conv2d", "views, threads", path,
                      winograd_differences(&dense, &wide, &s, true), 0, where);
        winograd_run_free(&wide);
    }
    winograd_run single = winograd_run_new(&s, 0);
    clnet_conv2d_sizes image = s;
    image.N = 1;
    for (int n = 0; n < s.N; n++) {
        winograd_run_on(&single, &one, image, n, weights.dw, room);
    }
    verify_report("conv2d", "image by image", path,
                  winograd_differences(&dense, &single, &s, false), 0, where);
    winograd_run_free(&single);
    winograd_run_free(&dense);
    winograd_run_free((winograd_run *)(uintptr_t)&weights);
}

static clnet_conv2d_sizes winograd_sizes(int N, int C, int H, int W, int OC, int padding) {
    return (clnet_conv2d_sizes){.N = N,
                                .C = C,
                                .H = H,
                                .W = W,
                                .OC = OC,
                                .OH = H + 2 * padding - 2,
                                .OW = W + 2 * padding - 2,
                                .KH = 3,
                                .KW = 3,
                                .stride = {1, 1},
                                .padding = {padding, padding},
                                .dilation = {1, 1},
                                .groups = 1};
}

static void verify_winograd(const verify_path *path, clnet_context *direct, clnet_isa isa,
                            uint64_t seed) {
    for (int i = 0; i < VERIFY_CASES; i++) {
        const verify_case *c = &verify_cases[i];
        for (int family = VERIFY_NORMAL; c->op == CLNET_OP_CONV2D && family < VERIFY_FAMILIES;
             family++) {
            winograd_case(path, direct, c, (verify_family)family, seed);
        }
        if (c->winograd) {
            winograd_nonfinite(path, c, seed);
        }
    }
    // V shared, and all tiles at once; U shared; several blocks of input channels; V in two runs.
    winograd_invariant(path->name, isa, winograd_sizes(3, 37, 13, 11, 41, 1));
    winograd_invariant(path->name, isa, winograd_sizes(2, 35, 31, 29, 33, 0));
    winograd_invariant(path->name, isa, winograd_sizes(2, 150, 12, 14, 67, 1));
    winograd_invariant(path->name, isa, winograd_sizes(5, 33, 22, 21, 47, 1));
}

#undef WINOGRAD_GUARD
#endif
