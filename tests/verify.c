// clnet-verify: is the arithmetic of this build right, on this machine? Every operation, forward and
// backward, on every path that the machine has: against plain loops in double (verify_naive.h),
// against differences of its own forward pass (verify_gradient.c), against values from PyTorch
// (tests/data), and the optimisers along a thousand steps. See usage() for the options.
#include <stdarg.h>

#define CLNET_IMPLEMENTATION
#define CLNET_CL_IMPLEMENTATION
#include "../clnet_cl.h"

#include "machine.h"
#include "verify.h"
#include "verify_adam.h"
#include "verify_networks.h"
#include "verify_operations.h"
#include "verify_torch.h"
#include "verify_views.h"
#include "verify_winograd.h"

typedef struct verify_row {
    char operation[48], check[32], path[24], where[160];
    int cases, failures;
    double worst, limit;
} verify_row;

// The findings so far. This program is the only thing that runs in its process.
static struct {
    verify_row *row;
    int rows, passed, failed, skipped;
    double allowance; // what a device's limits are multiplied with: 2 beside the CPU's 1
    char notes[16][160], skips[16][160];
    int note_count, skip_count;
    struct {
        const char *name;
        char text[512];
    } fact[16]; // what was checked: the head of the output
    int facts;
} table;

static void fact(const char *name, const char *format, ...) {
    if (table.facts < (int)(sizeof table.fact / sizeof *table.fact)) {
        va_list args;
        va_start(args, format);
        table.fact[table.facts].name = name;
        vsnprintf(table.fact[table.facts].text, sizeof table.fact[0].text, format, args);
        table.facts++;
        va_end(args);
    }
}

static verify_row *table_row(const char *operation, const char *check, const char *path) {
    for (int i = table.rows - 1; i >= 0; i--) {
        verify_row *row = &table.row[i];
        if (!strcmp(row->operation, operation) && !strcmp(row->check, check) &&
            !strcmp(row->path, path)) {
            return row;
        }
    }
    verify_row *larger = realloc(table.row, (size_t)(table.rows + 1) * sizeof *larger);
    if (!larger) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
    table.row = larger;
    verify_row *row = &table.row[table.rows++];
    *row = (verify_row){.worst = -1};
    snprintf(row->operation, sizeof row->operation, "%s", operation);
    snprintf(row->check, sizeof row->check, "%s", check);
    snprintf(row->path, sizeof row->path, "%s", path);
    return row;
}

void verify_report(const char *operation, const char *check, const char *path, double error,
                   double limit, const char *where) {
    verify_row *row = table_row(operation, check, path);
    limit *= table.allowance > 0 ? table.allowance : 1;
    row->cases++;
    row->limit = limit;
    if (!(error <= row->worst)) {
        row->worst = error;
        snprintf(row->where, sizeof row->where, "%s", where);
    }
    if (error <= limit) {
        table.passed++;
        return;
    }
    table.failed++;
    if (++row->failures <= 3) {
        fprintf(stderr, "FAIL %s, %s, %s: %.3g, limit %.3g: %s\n", operation, check, path, error,
                limit, where);
    }
}

void verify_note(const char *format, ...) {
    if (table.note_count < (int)(sizeof table.notes / sizeof *table.notes)) {
        va_list args;
        va_start(args, format);
        vsnprintf(table.notes[table.note_count++], sizeof table.notes[0], format, args);
        va_end(args);
    }
}

static void skip(const char *format, const char *what) {
    if (table.skip_count < (int)(sizeof table.skips / sizeof *table.skips)) {
        snprintf(table.skips[table.skip_count++], sizeof table.skips[0], format, what);
    }
    table.skipped++;
}

static int compare_rows(const void *a, const void *b) {
    const verify_row *x = a, *y = b;
    const int first = strcmp(x->operation, y->operation), second = strcmp(x->check, y->check);
    return first ? first : second ? second : strcmp(x->path, y->path);
}

static void print_head(void) {
    for (int i = 0; i < table.facts; i++) {
        printf("%-16s %s\n", table.fact[i].name, table.fact[i].text);
    }
    putchar('\n');
}

static void print_table(void) {
    printf("%-24s %-24s %-16s %5s %10s %8s        %s\n", "operation", "check", "path", "cases",
           "worst", "limit", "where it was worst");
    for (int i = 0; i < table.rows; i++) {
        const verify_row *r = &table.row[i];
        printf("%-24s %-24s %-16s %5d %10.3g %8.3g  %s  %s\n", r->operation, r->check, r->path,
               r->cases, r->worst, r->limit, r->failures ? "FAIL" : "ok  ",
               r->worst > 0 || r->failures ? r->where : "");
    }
    for (int i = 0; i < table.note_count; i++) {
        printf("%s\n", table.notes[i]);
    }
    for (int i = 0; i < table.skip_count; i++) {
        printf("skipped: %s\n", table.skips[i]);
    }
}

static const char *fact_of(const char *name) {
    for (int i = 0; i < table.facts; i++) {
        if (!strcmp(table.fact[i].name, name)) {
            return table.fact[i].text;
        }
    }
    return "";
}

// The last line is for people; the one before it for scripts (tests/run.sh).
static void print_verdict(void) {
    printf("%d passed, %d failed, %d skipped\n", table.passed, table.failed, table.skipped);
    printf("%s: %d of %d checks passed, %d failed, %d skipped, on %s\n",
           table.failed ? "FAIL" : "PASS", table.passed, table.passed + table.failed, table.failed,
           table.skipped, fact_of("device"));
}

// JSON has no infinity: null.
static void print_json_number(double value) {
    if (isfinite(value)) {
        printf("%.6g", value);
    } else {
        printf("null");
    }
}

static void print_json_row(const verify_row *r) {
    const char *const texts[] = {"operation", r->operation, "check", r->check,
                                 "path",      r->path,      "where", r->where};
    printf("{");
    for (size_t k = 0; k < sizeof texts / sizeof *texts; k += 2) {
        printf("\"%s\": ", texts[k]);
        machine_print_json(texts[k + 1]);
        printf(", ");
    }
    printf("\"cases\": %d, \"failures\": %d, \"worst\": ", r->cases, r->failures);
    print_json_number(r->worst);
    printf(", \"limit\": %.6g, \"pass\": %s}", r->limit, r->failures ? "false" : "true");
}

static void print_json_texts(const char *key, char texts[][160], int count) {
    printf(", \"%s\": [", key);
    for (int i = 0; i < count; i++) {
        printf("%s\n  ", i ? "," : "");
        machine_print_json(texts[i]);
    }
    printf("]");
}

static void print_json(void) {
    printf("{\"pass\": %s, \"passed\": %d, \"failed\": %d, \"skipped\": %d, \"head\": {",
           table.failed ? "false" : "true", table.passed, table.failed, table.skipped);
    for (int i = 0; i < table.facts; i++) {
        printf("%s\n  \"%s\": ", i ? "," : "", table.fact[i].name);
        machine_print_json(table.fact[i].text);
    }
    printf("},\n\"rows\": [");
    for (int i = 0; i < table.rows; i++) {
        printf("%s\n  ", i ? "," : "");
        print_json_row(&table.row[i]);
    }
    printf("]");
    print_json_texts("notes", table.notes, table.note_count);
    print_json_texts("skips", table.skips, table.skip_count);
    printf("}\n");
}

// The one place where contexts are made. NULL: the device is not there.
static clnet_context *open_context(const char *device, clnet_isa isa, bool reference, bool winograd,
                                   int threads) {
    return clnet_cl_context_create(&(clnet_cl_desc){
        .device = device,
        .base = {
            .isa = isa, .reference = reference, .no_winograd = !winograd, .threads = threads}});
}

// Every small case once.
static void verify_quickly(const char *device, const char *only, uint64_t seed) {
    verify_path path = {
        .name = strcmp(device, "cpu") ? "device" : "cpu",
        .ctx = open_context(device, CLNET_ISA_AUTO, false, false, 1),
        .quick = true,
    };
    table.allowance = strcmp(device, "cpu") ? 2 : 1;
    verify_operations(&path, only, seed);
    clnet_context_destroy(path.ctx);
}

// Whole networks, beside the same on the CPU.
static void verify_networks_on(const verify_path *path, const char *data) {
    clnet_context *host = open_context("cpu", CLNET_ISA_AUTO, false, false, 0);
    if (!verify_networks(path, host, data)) {
        skip("whole networks: %.120s", clnet_error(host));
    }
    clnet_context_destroy(host);
}

static void verify_on(const char *device, clnet_isa isa, bool reference, const char *only,
                      const char *data, uint64_t seed) {
    const bool cpu = !strcmp(device, "cpu");
    verify_path path = {.name = !cpu        ? "device"
                                : reference ? "reference"
                                            : clnet_isa_name(isa),
                        .ctx = open_context(device, isa, reference, false, 1),
                        .threaded = open_context(device, isa, reference, false, 3)};
    if (!path.ctx || !path.threaded || clnet_context_result(path.ctx) != CLNET_OK) {
        verify_report("all operations", "context", path.name, INFINITY, 0, clnet_error(path.ctx));
    } else {
        verify_operations(&path, only, seed);
        if (!only) {
            verify_sigmoid_sweep(&path);
            verify_optimisers(&path);
            verify_view_layers(&path);
        }
        if (!verify_torch(&path, data, only)) {
            skip("values from PyTorch: %.120s", clnet_error(path.ctx));
            clnet_context_clear(path.ctx);
        }
        if (!cpu && !only) {
            verify_networks_on(&path, data);
        }
    }
    clnet_context_destroy(path.ctx);
    clnet_context_destroy(path.threaded);
}

static void verify_winograd_on(clnet_isa isa, const char *only, uint64_t seed) {
    if (only && !strstr("conv2d", only)) {
        return;
    }
    char name[24];
    snprintf(name, sizeof name, "%s winograd", clnet_isa_name(isa));
    verify_path path = {.name = name,
                        .ctx = open_context("cpu", isa, false, true, 1),
                        .threaded = open_context("cpu", isa, false, true, 3)};
    clnet_context *direct = open_context("cpu", isa, false, false, 1);
    if (!path.ctx || !path.threaded || !direct) {
        verify_report("all operations", "context", name, INFINITY, 0, "out of memory");
    } else {
        verify_winograd(&path, direct, isa, seed);
    }
    clnet_context_destroy(path.ctx);
    clnet_context_destroy(path.threaded);
    clnet_context_destroy(direct);
}

static void verify_everything(const char *device, const char *only, const char *data,
                              uint64_t seed) {
    if (strcmp(device, "cpu") != 0) {
        table.allowance = 2;
        verify_on(device, CLNET_ISA_AUTO, false, only, data, seed);
        return;
    }
    verify_on(device, CLNET_ISA_PORTABLE, true, only, data, seed);
    for (int isa = CLNET_ISA_PORTABLE; isa <= CLNET_ISA_AVX512; isa++) {
        if (clnet_isa_supported((clnet_isa)isa)) {
            verify_on(device, (clnet_isa)isa, false, only, data, seed);
            verify_winograd_on((clnet_isa)isa, only, seed);
        } else {
            skip("vector code %s, which this machine does not have",
                 clnet_isa_name((clnet_isa)isa));
        }
    }
    verify_gradients(only);
    if (!only) {
        verify_coverage();
        verify_views();
        verify_directions();
    }
}

static void usage(void) {
    puts("clnet-verify [--device D] [--json] [--quick] [--operation NAME] [--data DIR] [--seed N]\n"
         "\n"
         "Checks every operation of clnet, forward and backward, on this machine: against plain "
         "loops in\n"
         "double, against differences of the forward pass, and against values from PyTorch; on a "
         "device whole\n"
         "networks too, against the CPU. The output says what was checked, so that it can be "
         "passed on.\n"
         "\n"
         "  --device D        what computes: cpu (default), opencl, opencl:P.D; limits of a device "
         "are twice\n"
         "                    the CPU's, as its elementary functions may be less exact\n"
         "  --json            all of it as one JSON object\n"
         "  --quick           every small case once, and nothing else: for devices that are slow\n"
         "  --operation NAME  only operations whose name contains NAME\n"
         "  --data DIR        where ops.safetensors and the networks lie (default tests/data)\n"
         "  --seed N          of the random inputs (default 1)\n"
         "\n"
         "An error is measured in units of rounding, so that 1 is about the best that float allows "
         "and the\n"
         "limit is the same for all shapes. Exit status: 0 all passed, 1 something failed, 2 bad "
         "options\nor no such device.");
}

typedef struct options {
    const char *device, *only, *data;
    bool json, quick;
    uint64_t seed;
} options;

// 0: go on; else the exit status plus one.
static int read_options(int argc, char **argv, options *o) {
    for (int i = 1; i < argc; i++) {
        const char **text = !strcmp(argv[i], "--device")      ? &o->device
                            : !strcmp(argv[i], "--operation") ? &o->only
                            : !strcmp(argv[i], "--data")      ? &o->data
                                                              : NULL;
        if (!strcmp(argv[i], "--help")) {
            usage();
            return 1;
        }
        if (!strcmp(argv[i], "--json")) {
            o->json = true;
        } else if (!strcmp(argv[i], "--quick")) {
            o->quick = true;
        } else if (text && i + 1 < argc) {
            *text = argv[++i];
        } else if (!strcmp(argv[i], "--seed") && i + 1 < argc) {
            o->seed = strtoull(argv[++i], NULL, 10);
        } else {
            fprintf(stderr, "clnet-verify: %s: %s\n", argv[i],
                    text || !strcmp(argv[i], "--seed") ? "needs a value" : "unknown option");
            return 3;
        }
    }
    return 0;
}

static void describe_device(const clnet_context *ctx, const clnet_cl_device *d) {
    char memory[MACHINE_BYTES], largest[MACHINE_BYTES], local[MACHINE_BYTES];
    fact("device", "%s: %s", d->id, d->name);
    fact("vendor", "%s", d->vendor);
    fact("platform", "%s", d->platform);
    fact("OpenCL", "%s, driver %s", d->version, d->driver);
    fact("kind", "%s, %d compute units at %d MHz, groups of up to %d, vectors of %d",
         d->kind == CLNET_CL_GPU   ? "GPU"
         : d->kind == CLNET_CL_CPU ? "CPU"
                                   : "other",
         d->compute_units, d->clock, d->largest_group, d->vector_width);
    fact("memory", "%s, one allocation up to %s, local %s%s", machine_bytes(memory, d->memory),
         machine_bytes(largest, d->largest_allocation), machine_bytes(local, d->local_memory),
         d->shared ? ", shared with the host" : "");
    fact("numbers", "float %s fma, %s denormals, division and roots %s; %s half, %s double",
         d->fused ? "with" : "without", d->denormals ? "with" : "without",
         d->rounded ? "correctly rounded" : "within some ulp", d->half_precision ? "with" : "no",
         d->double_precision ? "with" : "no");
    fact("products", "%s", clnet_cl_matrix_product(ctx));
}

// The head of the output: program, device, machine; no time and no date, so that runs compare.
static void describe(const clnet_context *ctx, const options *o) {
    const machine m = machine_describe();
    fact("clnet-verify", "%s, commit %s", CLNET_VERSION,
         *verify_commit ? verify_commit : "unknown");
    if (clnet_cl_context_device(ctx)) {
        describe_device(ctx, clnet_cl_context_device(ctx));
    } else {
        fact("device", "cpu: %s", m.processor);
    }
    char codes[64] = "";
    for (int isa = CLNET_ISA_PORTABLE; isa <= CLNET_ISA_AVX512; isa++) {
        if (clnet_isa_supported((clnet_isa)isa)) {
            const size_t length = strlen(codes);
            snprintf(codes + length, sizeof codes - length, " %s", clnet_isa_name((clnet_isa)isa));
        }
    }
    fact("processor", "%s, %d of them, vector code%s; 1 and 3 threads are used", m.processor,
         m.processors, codes);
#if defined __clang__
    fact("compiler", "%s", __VERSION__);
#elif defined __GNUC__
    fact("compiler", "gcc %s", __VERSION__);
#endif
    fact("seed", "%llu", (unsigned long long)o->seed);
}

// Opens the device once, to describe it. 0: it is there; else the exit status plus one.
static int open_device(options *o) {
    static char id[sizeof((clnet_cl_device *)0)->id];
    clnet_context *ctx = open_context(o->device, CLNET_ISA_AUTO, false, true, 1);
    const bool there = clnet_context_result(ctx) == CLNET_OK;
    if (there) {
        const clnet_cl_device *d = clnet_cl_context_device(ctx);
        snprintf(id, sizeof id, "%s", d ? d->id : "cpu");
        o->device = id; // "auto" by the name of what it is
        describe(ctx, o);
    } else {
        fprintf(stderr, "clnet-verify: %s\n", clnet_error(ctx));
    }
    const int status = clnet_context_result(ctx) == CLNET_ERROR_DEVICE ? 2 : 3;
    clnet_context_destroy(ctx);
    return there ? 0 : status;
}

int main(int argc, char **argv) {
    options o = {.device = "cpu", .data = "tests/data", .seed = 1};
    int stop = read_options(argc, argv, &o);
    if (!stop) {
        stop = open_device(&o);
    }
    if (stop) {
        return stop - 1;
    }
    if (!o.json) {
        print_head();
    }
    if (o.quick) {
        verify_quickly(o.device, o.only, o.seed);
    } else {
        verify_everything(o.device, o.only, o.data, o.seed);
    }
    qsort(table.row, (size_t)table.rows, sizeof *table.row, compare_rows);
    if (table.rows == 0) {
        fprintf(stderr, "clnet-verify: no operation is called %s\n", o.only ? o.only : "");
        table.failed++;
    }
    if (o.json) {
        print_json();
    } else {
        print_table();
        print_verdict();
    }
    free(table.row);
    return table.failed != 0;
}
