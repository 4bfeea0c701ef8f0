// clnet-bench compare: two files of rows, case by case.
#include "bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct rows {
    bench_row *row;
    size_t count;
    bool several; // devices
} rows;

static bool read_rows(const char *path, rows *r, problem *p) {
    if (!bench_rows_read(path, &r->row, &r->count, p)) {
        return false;
    }
    for (size_t i = 1; i < r->count; i++) {
        r->several |= strcmp(r->row[i].device, r->row[0].device) != 0;
    }
    return r->count > 0 || problem_input(p, "%s: has no rows", path);
}

// The same case. Where each file is of one device, that is what is compared, and may differ.
static bool same_case(const bench_row *a, const bench_row *b, bool devices) {
    return !strcmp(a->name, b->name) && !strcmp(a->pass, b->pass) && a->batch == b->batch &&
           a->size[0] == b->size[0] && a->size[1] == b->size[1] &&
           (!devices || !strcmp(a->device, b->device));
}

static const bench_row *find(const rows *r, const bench_row *row, bool devices) {
    for (size_t i = 0; i < r->count; i++) {
        if (same_case(&r->row[i], row, devices)) {
            return &r->row[i];
        }
    }
    return NULL;
}

static bool is_ok(const bench_row *row) { return row->status == BENCH_OK && row->median_ms > 0; }

// What to say of a case that moved by more than the repeats of either file are apart.
static const char *verdict(const bench_row *a, const bench_row *b) {
    const double moved = b->median_ms - a->median_ms;
    if (!(fabs(moved) > a->max_ms - a->min_ms) || !(fabs(moved) > b->max_ms - b->min_ms)) {
        return "";
    }
    return moved > 0 ? "  slower" : "  FASTER";
}

static void print_label(const bench_row *row, bool devices) {
    char label[400];
    const char *note = strstr(row->name, " ("); // where it was checked
    const int length = note ? (int)(note - row->name) : (int)strlen(row->name);
    snprintf(label, sizeof label, "%.*s%s%s, batch %d, %d%s%s", length, row->name,
             row->pass[0] ? ", " : "", row->pass, row->batch, row->size[0], devices ? ", " : "",
             devices ? row->device : "");
    printf("%-68s", label);
}

static void print_time(const bench_row *row) {
    if (is_ok(row)) {
        printf(" %10.4g", row->median_ms);
    } else {
        printf(" %10s", row->status == BENCH_NA ? "n/a" : "failed");
    }
}

typedef struct tally {
    int compared, slower, faster;
    double log_ratio;
} tally;

static void compare_row(const bench_row *a, const bench_row *b, bool devices, tally *t) {
    print_label(a, devices);
    print_time(a);
    print_time(b);
    if (!is_ok(a) || !is_ok(b)) {
        printf(" %7s\n", "n/a");
        return;
    }
    const char *text = verdict(a, b);
    printf(" %7.3f%s\n", b->median_ms / a->median_ms, text);
    t->compared++;
    t->log_ratio += log(b->median_ms / a->median_ms);
    t->slower += !strcmp(text, "  slower");
    t->faster += !strcmp(text, "  FASTER");
}

// Cases of one file that the other lacks.
static void print_alone(const rows *r, const rows *other, const char *path, bool devices) {
    for (size_t i = 0; i < r->count; i++) {
        if (!find(other, &r->row[i], devices)) {
            print_label(&r->row[i], devices);
            printf(" only in %s\n", path);
        }
    }
}

static void compare(const rows *a, const rows *b, const char *const paths[2]) {
    const bool devices = a->several || b->several;
    tally t = {0};
    for (int i = 0; !devices && i < 2; i++) {
        printf("%c: %s on %s\n", i ? 'B' : 'A', paths[i], (i ? b : a)->row[0].device);
    }
    printf("%-68s %10s %10s %7s\n", "case", "A ms", "B ms", "B/A");
    for (size_t i = 0; i < a->count; i++) {
        const bench_row *found = find(b, &a->row[i], devices);
        if (found) {
            compare_row(&a->row[i], found, devices, &t);
        }
    }
    print_alone(a, b, paths[0], devices);
    print_alone(b, a, paths[1], devices);
    if (t.compared) {
        printf("%d cases, geometric mean of B/A %.3f; by more than the spread of both: %d slower, "
               "%d faster\n",
               t.compared, exp(t.log_ratio / t.compared), t.slower, t.faster);
    } else {
        printf("no case is ok in both\n");
    }
}

bool bench_compare(int argc, char **argv, bool usage, problem *p) {
    const char *paths[2];
    size_t count;
    if (usage) {
        printf("usage: clnet-bench compare A.json B.json\n\n"
               "The times of B over those of A, from files that --json or --save wrote. What moved "
               "by more than\nthe spread (slowest less fastest repeat) of both is marked; cases "
               "that one file lacks are listed.\n");
        return true;
    }
    if (!options_parse(argc, argv, NULL, 0, paths, &count, 2, p)) {
        return false;
    }
    if (count != 2) {
        return problem_input(p, "two files are needed: compare A.json B.json");
    }
    rows a = {0}, b = {0};
    const bool ok = read_rows(paths[0], &a, p) && read_rows(paths[1], &b, p);
    if (ok) {
        compare(&a, &b, paths);
    }
    free(a.row);
    free(b.row);
    return ok;
}
