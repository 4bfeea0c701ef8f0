// One self-contained HTML file: headings, text, tables and pictures, which lie in it as base64. No
// scripts, nothing from elsewhere; readable on a phone and on paper. All text is escaped.
//
//     report *r = report_open("out/report.html", "Evaluation of resnet50+unet");
//     report_heading(r, "Metrics");
//     report_table(r, cells, 3, 4, "Means over 600 images.");
//     bool ok = report_picture(r, "out/curves.png", "Losses", &p) && report_close(r, &p);
//
// The file is written whole by report_close, or not at all. Lack of memory on the way is kept until
// then, so only what reads files answers at once. A report that report_open could not make is NULL,
// which every call takes and report_close reports.
#ifndef CLNET_PROGRAM_REPORT_H
#define CLNET_PROGRAM_REPORT_H

#include "error.h"

#include <stddef.h>

typedef struct report report;

report *report_open(const char *path, const char *title);

void report_heading(report *r, const char *text);
void report_text(report *r, const char *text); // one paragraph

// cells (rows, columns), the first row its header; columns of numbers are set to the right. An empty
// first cell means that the row belongs to the one above. note stands below; NULL = none.
void report_table(report *r, const char *const *cells, size_t rows, size_t columns,
                  const char *note);

// A PNG file, with its caption below (NULL = none). Wide pictures shrink to the page.
bool report_picture(report *r, const char *path_png, const char *caption, problem *p);

// The same for the bytes of a PNG file.
void report_picture_bytes(report *r, const unsigned char *png, size_t size, const char *caption);

// Writes the file and frees r, in any case.
bool report_close(report *r, problem *p);

// Frees r without writing.
void report_discard(report *r);

#endif
