// Repeats and their statistics.
#include "bench.h"
#include "progress.h"

#include <math.h>
#include <stdlib.h>

bool bench_fence_open(bench_fence *f, clnet_context *ctx) {
    f->graph = clnet_graph_create(ctx);
    f->number = clnet_input(f->graph, "fence", 1, 1, 1, 1);
    clnet_tensor_keep(clnet_sigmoid(f->graph, f->number));
    return clnet_graph_build(f->graph, NULL) == CLNET_OK;
}

void bench_fence_wait(const bench_fence *f) {
    clnet_real value;
    clnet_tensor_get(f->number, &value, CLNET_ORDER_MEMORY);
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, by_value);
    return count ? 0.5 * (values[(count - 1) / 2] + values[count / 2]) : NAN;
}

bool bench_measure(bench_times *times, int repeats, double seconds, double (*once)(void *arg),
                   void *arg) {
    enum { LEAST = 2, MOST = 10000 };
    double values[MOST];
    const double begun = progress_clock();
    *times = (bench_times){0};
    if (once(arg) < 0) {
        return false;
    }
    const int wanted = repeats ? repeats : MOST;
    while (times->count < wanted && times->count < MOST &&
           (repeats || times->count < LEAST || progress_clock() - begun < seconds)) {
        const double value = once(arg);
        if (value < 0) {
            return false;
        }
        values[times->count++] = 1e3 * value;
    }
    times->median = bench_median(values, times->count);
    times->least = values[0];
    times->most = values[times->count - 1];
    return true;
}

void bench_fill_normal(float *values, size_t count, uint64_t stream) {
    // The sum of four uniform numbers is near enough to a normal one, and quick: large inputs are
    // drawn for every case.
    for (size_t i = 0; i < count; i++) {
        uint32_t bits[4];
        clnet_random_bits(1, stream, i, bits);
        double sum = -2;
        for (int k = 0; k < 4; k++) {
            sum += bits[k] * 0x1p-32;
        }
        values[i] = (float)(sum * sqrt(3.0));
    }
}
