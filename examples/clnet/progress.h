// How far long work has come, on standard error: on a terminal one line that is rewritten, in a
// file a plain line now and then.
//
//     progress bar;
//     progress_begin(&bar, total, "images");
//     for (..) progress_update(&bar, done, "loss 0.31");
//     progress_end(&bar);
#ifndef CLNET_PROGRAM_PROGRESS_H
#define CLNET_PROGRAM_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>

typedef struct progress {
    const char *what; // what is counted: "images"
    size_t total;
    bool terminal;            // standard error is one
    double begun, shown;      // seconds of a clock: the beginning, the last line
    size_t first, last, told; // counts: at the first update, at the last one, in the last line
    double first_time;        // when the first update came; below 0: none yet
    char extra[256];          // of the last update
} progress;

void progress_begin(progress *bar, size_t total, const char *what);

// `done` of the total are done. May start above 0 (work that goes on); the rate counts from the
// first call. `extra` is text to show beside it, or NULL. On a terminal the line is rewritten at
// most 5 times a second; else a line comes every 10 s, or every 10 % if that is more than a second
// later. To be called by one thread at a time.
void progress_update(progress *bar, size_t done, const char *extra);

// The same without a text, in the form that other rooms call back: `bar` is a progress *.
void progress_step(void *bar, size_t done, size_t total);

// Closes the line: how much was done, and in what time. To be called on failure too, before a
// message is printed.
void progress_end(progress *bar);

// Seconds of a clock that only runs forward.
double progress_clock(void);

#endif
