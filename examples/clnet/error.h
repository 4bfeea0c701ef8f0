// How the rooms of the program report failure: one sentence, passed up to main, which prints it.
#ifndef CLNET_PROGRAM_ERROR_H
#define CLNET_PROGRAM_ERROR_H

#include <stdbool.h>

enum { EXIT_RUN = 1, EXIT_USAGE = 2 }; // the exit status of a failure at run time, of bad input

typedef struct problem {
    int status;      // 0 = none yet; else the exit status that fits
    char text[1 << 16]; // one sentence without a newline: names the thing and what is wrong with it
} problem;

// Records bad input (exit status 2). The first problem stays. Always returns false, so that a caller
// can write `return problem_input(p, "%s: ...", path)`.
bool problem_input(problem *p, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;

// The same for a failure that is not the input's fault (exit status 1): no memory, disk full.
bool problem_run(problem *p, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;

#endif
