// clnet-verify: is the arithmetic of this build right, on this machine? Every operation, forward and
// backward, on every path that the machine has: against plain loops in double (verify_naive.h),
// against differences of its own forward pass (verify_gradient.c), against values from PyTorch
// (tests/data), and the optimisers along a thousand steps. See usage() for the options.
#include <stdarg.h>

#define CLNET_IMPLEMENTATION
#define CLNET_CL_IMPLEMENTATION
#include "../clnet_cl.h"

#include "verify.h"
#include "verify_adam.h"
#include "verify_operations.h"
#include "verify_torch.h"
#include "verify_views.h"

typedef struct verify_row {
    char operation[48], check[32], path[16], where[160];
    int cases, failures;
    double worst, limit;
} verify_row;

// The findings so far. This program is the only thing that runs in its process.
static struct {
    verify_row *row;
    int rows, passed, failed, skipped;
    double allowance; // what a device's limits are multiplied with: 2 beside the CPU's 1
    char notes[16][160];
    int note_count;
} table;

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
    table.skipped++;
    verify_note(format, what);
}

static int compare_rows(const void *a, const void *b) {
    const verify_row *x = a, *y = b;
    const int first = strcmp(x->operation, y->operation), second = strcmp(x->check, y->check);
    return first ? first : second ? second : strcmp(x->path, y->path);
}

static void print_table(void) {
    printf("%-24s %-24s %-10s %5s %10s %8s        %s\n", "operation", "check", "path", "cases",
           "worst", "limit", "where it was worst");
    for (int i = 0; i < table.rows; i++) {
        const verify_row *r = &table.row[i];
        printf("%-24s %-24s %-10s %5d %10.3g %8.3g  %s  %s\n", r->operation, r->check, r->path,
               r->cases, r->worst, r->limit, r->failures ? "FAIL" : "ok  ",
               r->worst > 0 || r->failures ? r->where : "");
    }
    for (int i = 0; i < table.note_count; i++) {
        printf("%s\n", table.notes[i]);
    }
}

static void print_json_text(const char *text) {
    putchar('"');
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') {
            putchar('\\');
        }
        putchar(*text >= 0 && *text < ' ' ? ' ' : *text);
    }
    putchar('"');
}

// JSON has no infinity: null.
static void print_json_number(double value) {
    if (isfinite(value)) {
        printf("%.6g", value);
    } else {
        printf("null");
    }
}

static void print_json(const char *device, unsigned long long seed) {
    printf("{\"device\": \"%s\", \"seed\": %llu, \"passed\": %d, \"failed\": %d, \"skipped\": %d, "
           "\"rows\": [",
           device, seed, table.passed, table.failed, table.skipped);
    for (int i = 0; i < table.rows; i++) {
        const verify_row *r = &table.row[i];
        const char *const texts[] = {"operation", r->operation, "check", r->check,
                                     "path",      r->path,      "where", r->where};
        printf("%s\n  {", i ? "," : "");
        for (size_t k = 0; k < sizeof texts / sizeof *texts; k += 2) {
            printf("\"%s\": ", texts[k]);
            print_json_text(texts[k + 1]);
            printf(", ");
        }
        printf("\"cases\": %d, \"failures\": %d, \"worst\": ", r->cases, r->failures);
        print_json_number(r->worst);
        printf(", \"limit\": %.6g, \"pass\": %s}", r->limit, r->failures ? "false" : "true");
    }
    printf("\n], \"notes\": [");
    for (int i = 0; i < table.note_count; i++) {
        printf("%s\n  ", i ? "," : "");
        print_json_text(table.notes[i]);
    }
    printf("]}\n");
}

// The one place where contexts are made. NULL: the device is not there.
static clnet_context *open_context(const char *device, clnet_isa isa, bool reference, int threads) {
    return clnet_cl_context_create(&(clnet_cl_desc){
        .device = device, .base = {.isa = isa, .reference = reference, .threads = threads}});
}

static void verify_on(const char *device, clnet_isa isa, bool reference, const char *only,
                      const char *data, uint64_t seed) {
    const bool cpu = !strcmp(device, "cpu");
    verify_path path = {.name = !cpu        ? "device"
                                : reference ? "reference"
                                            : clnet_isa_name(isa),
                        .ctx = open_context(device, isa, reference, 1),
                        .threaded = open_context(device, isa, reference, 3)};
    if (!path.ctx || !path.threaded || clnet_context_result(path.ctx) != CLNET_OK) {
        verify_report("all operations", "context", path.name, INFINITY, 0, clnet_error(path.ctx));
    } else {
        verify_operations(&path, only, seed);
        if (!only) {
            verify_sigmoid_sweep(&path);
            verify_optimisers(&path);
        }
        if (!verify_torch(&path, data, only)) {
            skip("skipped: values from PyTorch: %s", clnet_error(path.ctx));
        }
    }
    clnet_context_destroy(path.ctx);
    clnet_context_destroy(path.threaded);
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
        } else {
            skip("skipped: %s, which this machine does not have", clnet_isa_name((clnet_isa)isa));
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
    puts("clnet-verify [--device D] [--json] [--operation NAME] [--data DIR] [--seed N]\n"
         "\n"
         "Checks every operation of clnet, forward and backward, on this machine: against plain "
         "loops in\n"
         "double, against differences of the forward pass, and against values from PyTorch.\n"
         "\n"
         "  --device D        what computes: cpu (default), opencl, opencl:P.D; limits of a device "
         "are twice\n"
         "                    the CPU's, as its elementary functions may be less exact\n"
         "  --json            the table as JSON\n"
         "  --operation NAME  only operations whose name contains NAME\n"
         "  --data DIR        where ops.safetensors lies (default tests/data)\n"
         "  --seed N          of the random inputs (default 1)\n"
         "\n"
         "An error is measured in units of rounding, so that 1 is about the best that float allows "
         "and the\n"
         "limit is the same for all shapes. Exit status: 0 all passed, 1 something failed, 2 bad "
         "options.");
}

typedef struct options {
    const char *device, *only, *data;
    bool json;
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
        } else if (text && i + 1 < argc) {
            *text = argv[++i];
        } else if (!strcmp(argv[i], "--seed") && i + 1 < argc) {
            o->seed = strtoull(argv[++i], NULL, 10);
        } else {
            fprintf(stderr, "clnet-verify: %s: %s\n", argv[i],
                    text ? "needs a value" : "unknown option");
            return 3;
        }
    }
    clnet_context *ctx = open_context(o->device, CLNET_ISA_AUTO, false, 1);
    const bool there = clnet_context_result(ctx) == CLNET_OK;
    if (!there) {
        fprintf(stderr, "clnet-verify: %s\n", clnet_error(ctx));
    } else if (!o->json && clnet_cl_context_device(ctx)) {
        const clnet_cl_device *d = clnet_cl_context_device(ctx);
        printf("%s: %s (%s), driver %s\n%s\n", d->id, d->name, d->vendor, d->driver,
               clnet_cl_matrix_product(ctx));
    }
    clnet_context_destroy(ctx);
    return there ? 0 : 3;
}

int main(int argc, char **argv) {
    options o = {.device = "cpu", .data = "tests/data", .seed = 1};
    const int stop = read_options(argc, argv, &o);
    if (stop) {
        return stop - 1;
    }
    verify_everything(o.device, o.only, o.data, o.seed);
    qsort(table.row, (size_t)table.rows, sizeof *table.row, compare_rows);
    if (table.rows == 0) {
        fprintf(stderr, "clnet-verify: no operation is called %s\n", o.only ? o.only : "");
        table.failed++;
    }
    if (o.json) {
        print_json(o.device, (unsigned long long)o.seed);
    } else {
        printf("seed %llu\n", (unsigned long long)o.seed);
        print_table();
        printf("%d passed, %d failed, %d skipped\n", table.passed, table.failed, table.skipped);
    }
    free(table.row);
    return table.failed != 0;
}
