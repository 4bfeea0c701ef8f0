// The report of measured networks as one HTML file, report.html, and the pictures in it as files
// beside it: of one network for `clnet evaluate`, of all for `clnet paper`.
#ifndef CLNET_PROGRAM_SUMMARY_H
#define CLNET_PROGRAM_SUMMARY_H

#include "figures.h"
#include "tables.h"

typedef struct summary {
    const char *out;            // folder
    const char *title, *lead;   // heading; a sentence that says what was done
    const char *(*settings)[2]; // rows (name, value)
    size_t setting_count;
    const tables *tables;
    const figures *figures;
} summary;

// Writes fig3.png, fig4.png, roc.png, training.png as far as there is something to draw, then
// report.html.
bool summary_write(const summary *s, problem *p);

#endif
