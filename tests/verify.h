// What the parts of clnet-verify share: the table of results.
#ifndef CLNET_VERIFY_H
#define CLNET_VERIFY_H

#include <stddef.h>

// The commit that the program was made from, "" where that is unknown. The Makefile writes it.
extern const char verify_commit[];

// Adds one finding to the row of (operation, check, path): the case counts as passed when
// error <= limit. `where` names the case and the worst index.
void verify_report(const char *operation, const char *check, const char *path, double error,
                   double limit, const char *where);

// A finding that is a count, like directions dropped at a kink: printed below the table.
void verify_note(const char *format, ...);

// verify_gradient.c, compiled with CLNET_REAL double: every case of the table against differences
// of its own forward pass, then a whole network along random directions.
void verify_gradients(const char *only);
void verify_directions(void);

#endif
