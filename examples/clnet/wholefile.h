// A file as a whole, read into memory under a cap. (Written whole: disk_write.)
#ifndef CLNET_PROGRAM_WHOLEFILE_H
#define CLNET_PROGRAM_WHOLEFILE_H

#include "error.h"

#include <stddef.h>

typedef struct wholefile {
    unsigned char *bytes; // size bytes and one 0 behind them
    size_t size;
} wholefile;

// Reads a regular file of at most `cap` bytes. Folders, pipes and devices are refused, and never
// waited for. On failure *out is empty.
bool wholefile_read(const char *path, size_t cap, wholefile *out, problem *p);

void wholefile_free(wholefile *file);

#endif
