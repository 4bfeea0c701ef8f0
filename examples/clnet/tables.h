// The paper's tables from what was measured: its published figures beside ours, means and spread over
// seeds, and the combined networks against the networks for one task that they are made of.
#ifndef CLNET_PROGRAM_TABLES_H
#define CLNET_PROGRAM_TABLES_H

#include "report.h"
#include "result.h"

#include <stdint.h>
#include <stdio.h>

// One training of one network.
typedef struct tables_row {
    const char *model;
    uint64_t seed;
    const result *result; // NULL: there is none, for this
    const char *reason;   // one sentence; NULL: not yet
} tables_row;

typedef struct tables {
    const tables_row *rows; // those of one network have different seeds; any order
    size_t count;
} tables;

// Mean and sample standard deviation over the seeds of which the metric is defined.
typedef struct tables_summary {
    double mean, deviation; // NaN where no (only one) seed counts
    int seeds;
} tables_summary;
tables_summary tables_summarise(const tables *t, const char *model, int metric);

// Cells (rows, columns), the first row the header: for report_table, the terminal, a CSV file.
typedef struct tables_cells {
    size_t rows, columns;
    char **cell; // (rows, columns)
    bool failed; // no memory
} tables_cells;

bool tables_classification(const tables *t, tables_cells *out, problem *p); // Table 1
bool tables_segmentation(const tables *t, tables_cells *out, problem *p);   // Table 2
bool tables_networks(const tables *t, tables_cells *out, problem *p);       // size, time, memory
void tables_free(tables_cells *c);

void tables_print(const tables_cells *c, FILE *to); // as text, columns aligned

// One sentence for each combined network against each network that it is made of, which says which
// is better, by how much, and whether the spread over seeds leaves room for chance; then the paper's
// one claim on Table 2. Calls `say` for each.
void tables_compare(const tables *t, void (*say)(void *user, const char *sentence), void *user);

// One sentence for each row without a result.
void tables_missing(const tables *t, void (*say)(void *user, const char *sentence), void *user);

// tables.json: every row, means and spread, the published figures and the comparisons, as numbers.
bool tables_write_json(const tables *t, const char *path, problem *p);

// tables.csv: one line per training, all figures as shares.
bool tables_write_csv(const tables *t, const char *path, problem *p);

#endif
