// What a device can reach at best, measured by loops that do nothing else: multiply-adds in
// registers and copying in memory. Every other figure of a run is told as a share of these.
#include "bench.h"
#include "clnet_cl.h"
#include "machine.h"
#include "progress.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__GNUC__) && defined(__x86_64__)
#define BENCH_X86
#include <immintrin.h>
#endif

// ---- multiply-adds on the CPU -------------------------------------------------------------------

// Chains of multiply-adds that do not wait for each other: two units with a latency of four or five
// cycles are busy with ten.
enum { CHAINS = 12, PORTABLE_LANES = 4 };

// The numbers go to and fro about 3/4, so that their bits change as those of real ones do.
static const float factor = -0.999f, summand = 1.5f;

// Each loop runs `rounds` steps of all chains and returns a number that depends on them.
typedef float fma_loop(size_t rounds);

// Plain C. (Compiled with -ffp-contract=fast, which fuses where the target of the build can.)
static float fma_portable(size_t rounds) {
#if defined(__GNUC__)
    typedef float lanes __attribute__((vector_size(PORTABLE_LANES * sizeof(float))));
    const lanes f = {factor, factor, factor, factor}, s = {summand, summand, summand, summand};
    lanes sum[CHAINS];
    for (int i = 0; i < CHAINS; i++) {
        sum[i] = s * (float)i;
    }
    for (size_t r = 0; r < rounds; r++) {
        for (int i = 0; i < CHAINS; i++) {
            sum[i] = sum[i] * f + s;
        }
    }
    float all = 0;
    for (int i = 0; i < CHAINS; i++) {
        all += sum[i][0];
    }
    return all;
#else
    float sum[CHAINS * PORTABLE_LANES] = {0}, all = 0;
    for (size_t r = 0; r < rounds; r++) {
        for (int i = 0; i < CHAINS * PORTABLE_LANES; i++) {
            sum[i] = sum[i] * factor + summand;
        }
    }
    for (int i = 0; i < CHAINS * PORTABLE_LANES; i++) {
        all += sum[i];
    }
    return all;
#endif
}

#ifdef BENCH_X86
#define FMA_LOOP(name, isa, vector, splat, multiply_add, lowest)                                   \
    __attribute__((target(isa))) static float name(size_t rounds) {                                \
        const vector f = splat(factor), s = splat(summand);                                        \
        vector sum[CHAINS];                                                                        \
        for (int i = 0; i < CHAINS; i++) {                                                         \
            sum[i] = splat((float)i);                                                              \
        }                                                                                          \
        for (size_t r = 0; r < rounds; r++) {                                                      \
            for (int i = 0; i < CHAINS; i++) {                                                     \
                sum[i] = multiply_add(sum[i], f, s);                                               \
            }                                                                                      \
        }                                                                                          \
        float all = 0;                                                                             \
        for (int i = 0; i < CHAINS; i++) {                                                         \
            all += lowest(sum[i]);                                                                 \
        }                                                                                          \
        return all;                                                                                \
    }
FMA_LOOP(fma_avx2, "avx2,fma", __m256, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_cvtss_f32)
FMA_LOOP(fma_avx512, "avx512f", __m512, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_cvtss_f32)
#undef FMA_LOOP
#endif

// By clnet_isa: the loop and the numbers that one of its steps makes.
static const struct {
    fma_loop *run;
    int lanes;
} fma_loops[BENCH_ISAS] = {
    {NULL, 0},
    {fma_portable, PORTABLE_LANES},
#ifdef BENCH_X86
    {fma_avx2, 8},
    {fma_avx512, 16},
#else
    {NULL, 0},
    {NULL, 0},
#endif
};

// Seconds in which all threads do `rounds` steps each.
static double time_fma(clnet_isa isa, int threads, size_t rounds) {
    volatile float sink = 0;
    const double begun = progress_clock();
#pragma omp parallel num_threads(threads)
    {
        const float value = fma_loops[isa].run(rounds);
#pragma omp critical
        sink = sink + value;
    }
    (void)threads;
    return progress_clock() - begun;
}

// The best of some runs of about a twentieth of a second, in GFLOP/s.
static double measure_fma(clnet_isa isa, int threads) {
    enum { RUNS = 9 };
    const double wanted = 0.05;
    size_t rounds = 1000;
    for (double seconds = 0; (seconds = time_fma(isa, threads, rounds)) < wanted;) {
        rounds *= 2;
    }
    double best = INFINITY;
    for (int i = 0; i < RUNS; i++) {
        best = fmin(best, time_fma(isa, threads, rounds));
    }
    return 2e-9 * CHAINS * fma_loops[isa].lanes * threads * (double)rounds / best;
}

// ---- copying on the CPU -------------------------------------------------------------------------

// Seconds in which all threads copy their part once.
static double time_copy(char *to, const char *from, size_t part, int threads) {
    const double begun = progress_clock();
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int i = 0; i < threads; i++) {
        memcpy(to + (size_t)i * part, from + (size_t)i * part, part);
    }
    return progress_clock() - begun;
}

// GB/s, read and written, between two arrays that are larger than caches; NaN: no memory.
static double measure_copy(int threads) {
    enum { RUNS = 9 };
    const size_t least = (size_t)128 << 20, each = (size_t)16 << 20, most = (size_t)1 << 30;
    size_t bytes = (size_t)threads * each;
    bytes = bytes < least ? least : bytes > most ? most : bytes;
    const size_t part = bytes / (size_t)threads;
    char *to = malloc(bytes), *from = malloc(bytes);
    double best = INFINITY;
    if (to && from) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int i = 0; i < threads; i++) { // pages near the thread that copies them
            memset(from + (size_t)i * part, 1, part);
            memset(to + (size_t)i * part, 2, part);
        }
        for (int i = 0; i < RUNS; i++) {
            best = fmin(best, time_copy(to, from, part, threads));
        }
    }
    free(to);
    free(from);
    return isfinite(best) ? 2e-9 * (double)part * threads / best : NAN;
}

// ---- devices ------------------------------------------------------------------------------------

static void survey_cpu(bench_device *d) {
    const machine m = machine_describe();
    snprintf(d->name, sizeof d->name, "cpu (%s)", m.processor);
    snprintf(d->driver, sizeof d->driver, "%d processors", m.processors);
    d->gflops = NAN;
    for (int isa = CLNET_ISA_PORTABLE; isa < BENCH_ISAS; isa++) {
        if (fma_loops[isa].run && clnet_isa_supported((clnet_isa)isa)) {
            d->isa_gflops[isa] = measure_fma((clnet_isa)isa, d->threads);
            d->gflops = fmax(d->gflops, d->isa_gflops[isa]);
        }
    }
    d->gbs = measure_copy(d->threads);
}

static void survey_opencl(bench_device *d, clnet_context *ctx, const clnet_cl_device *info) {
    clnet_cl_peak peak;
    snprintf(d->name, sizeof d->name, "%s", clnet_context_device(ctx));
    snprintf(d->driver, sizeof d->driver, "%s, %d units at %d MHz; %s", info->driver,
             info->compute_units, info->clock, clnet_cl_matrix_product(ctx));
    if (clnet_cl_measure_peak(ctx, progress_clock, &peak) != CLNET_OK) {
        problem_context(&d->problem, ctx);
        return;
    }
    d->gflops = peak.flops > 0 ? 1e-9 * peak.flops : NAN;
    d->gbs = peak.bytes > 0 ? 1e-9 * peak.bytes : NAN;
}

typedef struct survey {
    const bench_options *options;
    bench_device *device;
} survey;

static void survey_child(void *arg, int to) {
    survey *s = arg;
    bench_device *d = s->device;
    device_options options = s->options->device;
    options.device = d->id;
    clnet_context *ctx = device_open(&options, &d->problem);
    if (ctx) {
        const clnet_cl_device *info = clnet_cl_context_device(ctx);
        snprintf(d->isa, sizeof d->isa, "%s", clnet_context_isa(ctx));
        d->threads = clnet_context_threads(ctx);
        // What "auto" found: later contexts on the CPU need not load OpenCL, which takes memory.
        snprintf(d->id, sizeof d->id, "%s", info ? info->id : "cpu");
        if (info) {
            survey_opencl(d, ctx, info);
        } else {
            survey_cpu(d);
        }
    }
    bench_send(to, d, sizeof *d);
}

void bench_survey(const bench_options *o, bench_device *d) {
    survey s = {o, d};
    bench_device answer;
    problem p = {0};
    d->gflops = d->gbs = NAN;
    for (int isa = 0; isa < BENCH_ISAS; isa++) {
        d->isa_gflops[isa] = NAN;
    }
    if (bench_child_call(survey_child, &s, &answer, sizeof answer, &p)) {
        *d = answer;
    } else {
        d->problem = p;
    }
}

// Ids of the CPU and of every OpenCL device.
static void list_child(void *arg, int to) {
    bench_device *devices = arg;
    clnet_cl_device *found = calloc(BENCH_DEVICES, sizeof *found);
    const int count = found ? clnet_cl_devices(found, BENCH_DEVICES) : 0;
    snprintf(devices[0].id, sizeof devices[0].id, "cpu");
    for (int i = 0; i < count && i < BENCH_DEVICES - 1; i++) {
        snprintf(devices[i + 1].id, sizeof devices[i + 1].id, "%s", found[i].id);
    }
    bench_send(to, devices, BENCH_DEVICES * sizeof *devices);
}

bool bench_devices(const bench_options *o, bench_device *devices, int *count, problem *p) {
    const char *wanted = o->device.device ? o->device.device : "auto";
    memset(devices, 0, BENCH_DEVICES * sizeof *devices);
    if (strcmp(wanted, "all") != 0) {
        snprintf(devices[0].id, sizeof devices[0].id, "%s", wanted);
        *count = 1;
        return strlen(wanted) < sizeof devices[0].id ||
               problem_input(p, "--device %s: there is no such device", wanted);
    }
    bench_device *found = calloc(BENCH_DEVICES, sizeof *found);
    const bool ok =
        found && bench_child_call(list_child, found, devices, BENCH_DEVICES * sizeof *devices, p);
    free(found);
    for (*count = 0; ok && *count < BENCH_DEVICES && devices[*count].id[0];) {
        ++*count;
    }
    return ok;
}

#ifdef __VERSION__
#define COMPILER __VERSION__
#else
#define COMPILER "unknown"
#endif
#if defined(__clang__)
#define COMPILER_NAME ""
#elif defined(__GNUC__)
#define COMPILER_NAME "gcc "
#else
#define COMPILER_NAME ""
#endif

void bench_print_header(const bench_options *o, const bench_device *d) {
    FILE *to = o->json || o->csv ? stderr : stdout;
    fprintf(to, "clnet %s, compiler %s%s\n", CLNET_VERSION, COMPILER_NAME, COMPILER);
    fprintf(to, "device %s; %s\n", d->name, d->driver);
    fprintf(to, "vector code %s, threads %d\n", d->isa, d->threads);
    fprintf(to, "peaks measured now: ");
    const char *comma = "";
    if (isfinite(d->gflops)) {
        fprintf(to, "multiply-add %.4g GFLOP/s", d->gflops);
        comma = ", ";
    }
    for (int isa = 1; isa < BENCH_ISAS; isa++) {
        if (isfinite(d->isa_gflops[isa])) {
            fprintf(to, "%s%s %.4g", isa == 1 ? " (" : ", ", clnet_isa_name((clnet_isa)isa),
                    d->isa_gflops[isa]);
        }
    }
    fprintf(to, "%s%scopy %.4g GB/s\n\n", isfinite(d->isa_gflops[1]) ? ")" : "", comma, d->gbs);
    fflush(to);
}

void bench_row_device(bench_row *row, const bench_device *d) {
    snprintf(row->device, sizeof row->device, "%s", d->name);
    snprintf(row->isa, sizeof row->isa, "%s", d->isa);
    row->threads = d->threads;
    row->peak_gflops = d->gflops;
    row->peak_gbs = d->gbs;
}

// ---- the command --------------------------------------------------------------------------------

// The contract's keys are `what` and the figure; where several devices follow each other, `device`
// tells them apart.
static void print_json(const char *what, const char *unit, double value, const char *device) {
    char number[32] = "null";
    if (isfinite(value)) {
        snprintf(number, sizeof number, "%.9g", value);
    }
    printf("{\"what\": \"%s\", \"%s\": %s", what, unit, number);
    if (device) {
        printf(", \"device\": ");
        machine_print_json(device);
    }
    printf("}\n");
}

static void print_peaks(const bench_options *o, const bench_device *d, bool several) {
    if (o->json) {
        print_json("fma", "gflops", d->gflops, several ? d->name : NULL);
        print_json("copy", "gbs", d->gbs, several ? d->name : NULL);
    } else if (o->csv) {
        printf("\"%s\",%.9g,%.9g\n", d->name, d->gflops, d->gbs);
    } else {
        bench_print_header(o, d);
    }
    fflush(stdout);
}

bool bench_peak(int argc, char **argv, bool usage, problem *p) {
    bench_options o = {0};
    option options[] = {
        DEVICE_OPTIONS(&o.device),
        OPTION(FLAG, "--json", &o.json, "as JSON Lines"),
        OPTION(FLAG, "--csv", &o.csv, "as CSV"),
    };
    const size_t options_count = sizeof options / sizeof *options;
    if (usage) {
        printf("usage: clnet-bench peak [--device D | --device all] [options]\n\n"
               "The highest rate of multiply-adds (GFLOP/s, two operations each) and of copying "
               "(GB/s, read\nand written) that loops of nothing else reach.\n\n");
        options_print(options, options_count);
        return true;
    }
    size_t paths;
    int count = 0;
    bench_device devices[BENCH_DEVICES];
    if (!options_parse(argc, argv, options, options_count, NULL, &paths, 0, p) ||
        !bench_devices(&o, devices, &count, p)) {
        return false;
    }
    if (o.csv && !o.json) {
        printf("device,gflops,gbs\n");
    }
    for (int i = 0; i < count; i++) {
        bench_survey(&o, &devices[i]);
        if (devices[i].problem.status) {
            if (count == 1) {
                *p = devices[i].problem;
                return false;
            }
            fprintf(stderr, "clnet-bench: %s: %s\n", devices[i].id, devices[i].problem.text);
            continue;
        }
        print_peaks(&o, &devices[i], count > 1);
    }
    return true;
}
