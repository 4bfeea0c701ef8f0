// clnet-bench: what its parts share. The parent process reads options, prints rows and draws; what
// is measured runs in child processes (child.c), so that peak memory belongs to one case, and a
// case that crashes or is killed for memory does not end the run.
#ifndef CLNET_BENCH_H
#define CLNET_BENCH_H

#include "clnet.h"
#include "error.h"
#include "options.h"

#include <stdio.h>

// ---- options (bench.c) --------------------------------------------------------------------------

typedef struct bench_options {
    device_options device; // whose name may be "all"
    bool json, csv;
    const char *save;
    double time;
    int repeats; // 0: as many as the time allows
} bench_options;

#define BENCH_OPTIONS(b)                                                                           \
    DEVICE_OPTIONS(&(b)->device),                                                                  \
        OPTION(FLAG, "--reference", &(b)->device.reference, "plain loops, on the CPU"),            \
        OPTION(FLAG, "--json", &(b)->json, "rows as JSON Lines in place of a table"),              \
        OPTION(FLAG, "--csv", &(b)->csv, "rows as CSV in place of a table"),                       \
        OPTION(TEXT, "--save", &(b)->save, "file that gets the rows as JSON Lines as well")
#define BENCH_TIME_OPTIONS(b)                                                                      \
    OPTION_RANGE(NUMBER, "--time", &(b)->time, 0.01, 86400,                                        \
                 "seconds for all cases of a device, about (default: 60)"),                        \
        OPTION_RANGE(INT, "--repeats", &(b)->repeats, 1, 10000,                                    \
                     "repeats of each case (default: what the time allows, 2 or more)")

// ---- rows (rows.c) ------------------------------------------------------------------------------

typedef enum bench_status { BENCH_OK, BENCH_NA, BENCH_FAILED } bench_status;

// One case on one device, or one pass of an operation. A number that is not known is NaN, or 0
// where it is an int; both are printed as n/a, in JSON as null.
typedef struct bench_row {
    char name[256]; // "case" in JSON
    char pass[20];  // forward, backward_data, backward_weight; of operations only
    char device[160], isa[16];
    int threads, batch, size[2], repeats;
    double median_ms, min_ms, max_ms, forward_ms, backward_ms, update_ms;
    double gflop, gflops, peak_gflops, share; // direct algorithm, 2 per multiply-add
    double gbs, peak_gbs; // each number that a case needs, moved once; not in JSON
    double limit_share;   // of what the peaks of arithmetic and of copying allow; not in JSON
    double plan_bytes, peak_rss_bytes;
    double error, error_limit;
    bench_status status;
    char why[512]; // of a row that is not ok
} bench_row;

bench_row bench_row_new(void); // nothing is known

// Fills gflops, gbs, share, limit_share from the median, gflop, the bytes and the peaks.
void bench_row_rates(bench_row *row, double bytes);

// Where rows go: standard output as a table, JSON Lines or CSV, and a file as JSON Lines.
typedef struct bench_output {
    const bench_options *options;
    bool operations; // rows of single operations: other columns
    bool several;    // devices
    bool begun;      // the heading is printed
    FILE *save;
} bench_output;

bool bench_output_open(bench_output *out, const bench_options *o, problem *p);
// Prints a row at once. A case that went wrong is told on standard error as well.
bool bench_output_row(bench_output *out, const bench_row *row, problem *p);
bool bench_output_close(bench_output *out, problem *p);

// The rows of a file of JSON Lines, at most `most`. Keys that are not known are skipped.
bool bench_rows_read(const char *path, bench_row **rows, size_t *count, problem *p);

// ---- devices and their peaks (peak.c) -----------------------------------------------------------

enum { BENCH_DEVICES = 32, BENCH_ISAS = CLNET_ISA_AVX512 + 1 };

typedef struct bench_device {
    char id[32];    // what --device takes
    char name[160]; // "cpu (NAME)", "opencl:0.0 (NAME)": the rows' device
    char isa[16], driver[256];
    int threads;
    double isa_gflops[BENCH_ISAS]; // of the CPU, by instruction set; NaN: not there
    double gflops, gbs;            // peaks: multiply-adds, copying (read and written)
    problem problem;               // status not 0: the device cannot be used
} bench_device;

// The devices that the options name, without measuring anything: only `id` is set.
bool bench_devices(const bench_options *o, bench_device *devices, int *count, problem *p);

// Measures the peaks of a device, in a child.
void bench_survey(const bench_options *o, bench_device *d);

// Prints what a posted result has to say of the machine: on standard output above a table, else on
// standard error.
void bench_print_header(const bench_options *o, const bench_device *d);

// The columns of a row that the device gives.
void bench_row_device(bench_row *row, const bench_device *d);

// ---- children (child.c) -------------------------------------------------------------------------

typedef struct bench_child {
    int pid, from; // process, end of a pipe
} bench_child;

// Runs work(arg, to) in a process of its own, which sends messages with bench_send and ends.
bool bench_child_start(bench_child *c, void (*work)(void *arg, int to), void *arg, problem *p);
void bench_send(int to, const void *message, size_t bytes);

// The child's next message. False: it ended before that, or a signal asked to stop.
bool bench_child_receive(bench_child *c, void *message, size_t bytes);

// Waits for the child's end, or ends it. `why` says how it ended where that was not its own choice.
void bench_child_end(bench_child *c, char why[128]);

// Start, one message, end. False: no message came; p says why.
bool bench_child_call(void (*work)(void *arg, int to), void *arg, void *answer, size_t bytes,
                      problem *p);

// ---- measuring (measure.c) ----------------------------------------------------------------------

// Waits until the device has done everything: reads a number from a graph of its own.
typedef struct bench_fence {
    clnet_graph *graph;
    clnet_tensor *number;
} bench_fence;

bool bench_fence_open(bench_fence *f, clnet_context *ctx);
void bench_fence_wait(const bench_fence *f);

typedef struct bench_times {
    int count;
    double median, least, most; // milliseconds
} bench_times;

// A warm-up, then repeats: as many as given, else what fits into the seconds, at least 2. once()
// gives the seconds of a repeat, which may be less than it took; negative: failed.
bool bench_measure(bench_times *times, int repeats, double seconds, double (*once)(void *arg),
                   void *arg);

double bench_median(double *values, int count); // sorts them; NaN of none

// Numbers of a normal distribution.
void bench_fill_normal(float *values, size_t count, uint64_t stream);

// ---- commands -----------------------------------------------------------------------------------

bool bench_ops(int argc, char **argv, bool usage, problem *p);
bool bench_model(int argc, char **argv, bool usage, problem *p);
bool bench_peak(int argc, char **argv, bool usage, problem *p);
bool bench_compare(int argc, char **argv, bool usage, problem *p);

#endif
