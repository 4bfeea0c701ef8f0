#include "error.h"

#include <stdarg.h>
#include <stdio.h>

static bool record(problem *p, int status, const char *format, va_list args) {
    if (p->status == 0) {
        p->status = status;
        vsnprintf(p->text, sizeof p->text, format, args);
    }
    return false;
}

bool problem_input(problem *p, const char *format, ...) {
    va_list args;
    va_start(args, format);
    record(p, EXIT_USAGE, format, args);
    va_end(args);
    return false;
}

bool problem_run(problem *p, const char *format, ...) {
    va_list args;
    va_start(args, format);
    record(p, EXIT_RUN, format, args);
    va_end(args);
    return false;
}
