// The log of a training: a CSV file of numbers whose first line names its columns.
#ifndef CLNET_PROGRAM_TRAINLOG_H
#define CLNET_PROGRAM_TRAINLOG_H

#include "error.h"

#include <stddef.h>

enum { TRAINLOG_COLUMNS = 64 };

typedef struct trainlog {
    char *names[TRAINLOG_COLUMNS]; // point into text
    int columns;
    size_t rows;
    size_t capacity; // rows for which each column has room
    double *values;  // columns blocks of capacity values; NaN where there is none
    char *text;
} trainlog;

// Reads it; columns beyond TRAINLOG_COLUMNS are left out. On failure *out is empty.
bool trainlog_read(const char *path, trainlog *out, problem *p);

// The values (rows) of a column, NULL if there is none of this name.
const double *trainlog_column(const trainlog *log, const char *name);

void trainlog_free(trainlog *log);

#endif
