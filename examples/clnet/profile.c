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

// One pass of a node, unless it had no calls.
static void print_pass(const clnet_profile_node *node, const clnet_profile_row *pass, double all) {
    char shape[64];
    if (pass->calls == 0) {
        return;
    }
    snprintf(shape, sizeof shape, "%dx%dx%dx%d", node->shape[0], node->shape[1], node->shape[2],
             node->shape[3]);
    printf("%-36s %-18s %-18s %-9s %6llu %10.3f %6.1f %%", node->name, node->op, shape, pass->pass,
           (unsigned long long)pass->calls, 1e3 * pass->total,
           all > 0 ? 100 * pass->total / all : 0);
    print_rate(2 * pass->macs, pass->total);
    print_rate(pass->bytes, pass->total);
    printf("\n");
}

// Node by node, in their order, with forward and backward of each.
static void print_nodes(const clnet_context *ctx, double all) {
    clnet_profile_node node;
    for (int i = 0; clnet_profile_at(ctx, i, &node); i++) {
        if (i == 0) {
            printf("\n%-36s %-18s %-18s %-9s %6s %10s %8s %9s %9s\n", "node", "operation",
                   "shape (N,C,H,W)", "pass", "calls", "total ms", "share", "GFLOP/s", "GB/s");
        }
        print_pass(&node, &node.forward, all);
        print_pass(&node, &node.backward, all);
    }
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
        print_nodes(ctx, all);
    }
    free(rows);
}
