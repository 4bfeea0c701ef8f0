#define _POSIX_C_SOURCE 200809L
#include "progress.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static const double terminal_pause = 0.2, file_pause = 10, file_least_pause = 1; // seconds

double progress_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// 12 s, 3:07, 2:45:10.
static void format_time(char text[32], double seconds) {
    const long long s = (long long)(seconds + 0.5);
    if (s < 60) {
        snprintf(text, 32, "%lld s", s);
    } else if (s < 3600) {
        snprintf(text, 32, "%lld:%02lld", s / 60, s % 60);
    } else {
        snprintf(text, 32, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    }
}

// Columns of the terminal, so that the line never wraps: one that wraps cannot be rewritten.
static int columns(void) {
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col - 1 : 79;
}

// 3 significant digits, without an exponent.
static void format_rate(char text[32], double rate) {
    snprintf(text, 32, rate >= 100 ? "%.0f/s" : rate >= 10 ? "%.1f/s" : "%.2f/s", rate);
}

static void show(progress *bar, double now) {
    char rate_text[48] = "", left_text[48] = "", line[512], part[32];
    const double seconds = now - bar->first_time;
    const double rate = seconds > 0 ? (double)(bar->last - bar->first) / seconds : 0;
    if (rate > 0) {
        format_rate(part, rate);
        snprintf(rate_text, sizeof rate_text, ", %s", part);
        format_time(part, (double)(bar->total - bar->last) / rate);
        snprintf(left_text, sizeof left_text, ", %s left", part);
    }
    const double percent = bar->total ? 100.0 * (double)bar->last / (double)bar->total : 100;
    snprintf(line, sizeof line, "%3.0f %%  %zu/%zu %s%s%s%s%s", percent, bar->last, bar->total,
             bar->what, rate_text, left_text, bar->extra[0] ? "; " : "", bar->extra);
    if (bar->terminal) {
        fprintf(stderr, "\r%.*s\033[K", columns(), line);
        fflush(stderr);
    } else {
        fprintf(stderr, "%s\n", line);
    }
    bar->shown = now;
    bar->told = bar->last;
}

void progress_begin(progress *bar, size_t total, const char *what) {
    const double now = progress_clock();
    *bar = (progress){.what = what,
                      .total = total,
                      .terminal = isatty(STDERR_FILENO) == 1,
                      .begun = now,
                      .shown = now,
                      .first_time = -1};
}

void progress_update(progress *bar, size_t done, const char *extra) {
    const double now = progress_clock();
    bar->last = done < bar->total ? done : bar->total;
    snprintf(bar->extra, sizeof bar->extra, "%s", extra ? extra : "");
    if (bar->first_time < 0) {
        bar->first = bar->told = bar->last;
        bar->first_time = now;
    }
    const double waited = now - bar->shown;
    const bool tenth = (double)bar->last - (double)bar->told >= 0.1 * (double)bar->total;
    if (bar->terminal ? waited >= terminal_pause
                      : waited >= file_pause || (tenth && waited >= file_least_pause)) {
        show(bar, now);
    }
}

void progress_step(void *bar, size_t done, size_t total) {
    ((progress *)bar)->total = total;
    progress_update(bar, done, NULL);
}

void progress_end(progress *bar) {
    char time[32];
    format_time(time, progress_clock() - bar->begun);
    fprintf(stderr, "%s%zu/%zu %s in %s%s%s%s\n", bar->terminal ? "\r" : "", bar->last, bar->total,
            bar->what, time, bar->extra[0] ? "; " : "", bar->extra, bar->terminal ? "\033[K" : "");
}
