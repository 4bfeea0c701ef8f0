#include "profile.h"

#include <stdio.h>
#include <stdlib.h>

static int by_time(const void *a, const void *b) {
    const clnet_profile_row *x = a, *y = b;
    return x->total < y->total ? 1 : x->total > y->total ? -1 : 0;
}

// "12.3" in units of 1e9 a second; nothing where nothing was counted.
static void print_rate(double count, double seconds) {
    if (count > 0 && seconds > 0) {
        printf(" %9.1f", 1e-9 * count / seconds);
    } else {
        printf(" %9s", "");
    }
}

static void print_row(const clnet_profile_row *row, double all) {
    printf("%-28s %-9s %9llu %12.3f %11.3f %6.1f %%", row->name, row->pass,
           (unsigned long long)row->calls, 1e3 * row->total, 1e3 * row->longest,
           all > 0 ? 100 * row->total / all : 0);
    print_rate(2 * row->macs, row->total);
    print_rate(row->bytes, row->total);
    printf("\n");
}

void profile_print(const clnet_context *ctx) {
    int count = 0;
    double all = 0;
    clnet_profile_row row;
    for (; clnet_profile(ctx, count, &row); count++) {
        all += row.total;
    }
    clnet_profile_row *rows = malloc(((size_t)count + 1) * sizeof *rows);
    if (count && rows) {
        for (int i = 0; i < count; i++) {
            clnet_profile(ctx, i, &rows[i]);
        }
        qsort(rows, (size_t)count, sizeof *rows, by_time);
        printf("\nprofile: %s, %s, %d threads, %.3f s\n%-28s %-9s %9s %12s %11s %8s %9s %9s\n",
               clnet_context_device(ctx), clnet_context_isa(ctx), clnet_context_threads(ctx), all,
               "what", "pass", "calls", "total ms", "longest ms", "share", "GFLOP/s", "GB/s");
        for (int i = 0; i < count; i++) {
            print_row(&rows[i], all);
        }
    }
    free(rows);
}
