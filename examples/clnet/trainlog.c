#include "trainlog.h"

#include "wholefile.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILE = 8 << 20, MAX_CELLS = 16 << 20 };

// Ends the line at its line feed (and carriage return) and returns the beginning of the next.
static char *end_line(char *line) {
    char *end = line + strcspn(line, "\n");
    char *next = *end ? end + 1 : end;
    if (end > line && end[-1] == '\r') {
        end[-1] = 0;
    }
    *end = 0;
    return next;
}

// Ends the field at its comma; returns the beginning of the next, NULL after the last.
static char *end_field(char *field) {
    char *comma = strchr(field, ',');
    if (comma) {
        *comma = 0;
        return comma + 1;
    }
    return NULL;
}

static double read_number(const char *field) {
    char *end;
    const double v = strtod(field, &end);
    return end > field && end[strspn(end, " ")] == 0 ? v : NAN;
}

static size_t count_lines(const char *text) {
    size_t lines = 1;
    for (; *text; text++) {
        lines += *text == '\n';
    }
    return lines;
}

static void read_row(trainlog *log, size_t row, char *line) {
    for (int c = 0; line && c < log->columns; c++) {
        char *next = end_field(line);
        log->values[(size_t)c * log->capacity + row] = read_number(line);
        line = next;
    }
}

// Splits the text, which it changes.
static bool split(const char *path, trainlog *log, problem *p) {
    log->capacity = count_lines(log->text);
    char *next = end_line(log->text);
    for (char *field = log->text; field && log->columns < TRAINLOG_COLUMNS;) {
        log->names[log->columns++] = field;
        field = end_field(field);
    }
    const size_t cells = (size_t)log->columns * log->capacity;
    if (cells > MAX_CELLS) {
        return problem_input(p, "%s: has %zu lines of %d columns, too many for a log", path,
                             log->capacity, log->columns);
    }
    log->values = malloc(cells * sizeof *log->values);
    if (!log->values) {
        return problem_run(p, "%s: no memory for its %zu rows", path, log->capacity);
    }
    for (size_t i = 0; i < cells; i++) {
        log->values[i] = NAN;
    }
    while (*next) {
        char *line = next;
        next = end_line(line);
        if (*line) {
            read_row(log, log->rows++, line);
        }
    }
    return true;
}

bool trainlog_read(const char *path, trainlog *out, problem *p) {
    wholefile file;
    *out = (trainlog){.columns = 0};
    if (!wholefile_read(path, MAX_FILE, &file, p)) {
        return false;
    }
    out->text = (char *)file.bytes;
    if (!split(path, out, p)) {
        trainlog_free(out);
        return false;
    }
    return true;
}

const double *trainlog_column(const trainlog *log, const char *name) {
    for (int c = 0; c < log->columns; c++) {
        if (!strcmp(log->names[c], name)) {
            return log->values + (size_t)c * log->capacity;
        }
    }
    return NULL;
}

void trainlog_free(trainlog *log) {
    free(log->values);
    free(log->text);
    *log = (trainlog){.columns = 0};
}
