#define _POSIX_C_SOURCE 200809L
#include "tables.h"

#include "disk.h"
#include "machine.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

// Rows of the paper's Table 1, in percent: the columns METRIC_MELANOMA to METRIC_MEAN_AUC.
enum { PUBLISHED_COLUMNS = METRIC_MEAN_AUC + 1 };
static const struct published {
    const char *model;
    const char *percent[PUBLISHED_COLUMNS];
} published[] = {
    // clang-format off
    {"resnet50",
     {"81.34", "81.33", "52.99", "88.2", "90.15", "88.67", "53.33", "94.90", "85.745"}},
    {"inception_v3",
     {"82.96", "82.17", "64.10", "86.54", "90.99", "87.83", "75.56", "90.00", "86.975"}},
    {"arlnet50",
     {"80.56", "81.50", "52.99", "88.41", "91.81", "84.50", "84.51", "84.44", "86.185"}},
    {"inception_v3+unet",
     {"84.85", "75.83", "79.49", "74.95", "92.17", "85.50", "86.67", "85.29", "88.510"}},
    {"resnet50+unet",
     {"84.91", "82.33", "59.83", "87.78", "94.51", "86.67", "90.00", "86.08", "89.710"}},
    // clang-format on
};

static const struct published *find_published(const char *model) {
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        if (!strcmp(published[i].model, model)) {
            return &published[i];
        }
    }
    return NULL;
}

// ---- the rows -----------------------------------------------------------------------------------

// Whether row i is the first of its network: each network is one line of a table.
static bool is_first(const tables *t, size_t i) {
    for (size_t k = 0; k < i; k++) {
        if (!strcmp(t->rows[k].model, t->rows[i].model)) {
            return false;
        }
    }
    return true;
}

static bool has_model(const tables *t, const char *model) {
    for (size_t i = 0; i < t->count; i++) {
        if (t->rows[i].result && !strcmp(t->rows[i].model, model)) {
            return true;
        }
    }
    return false;
}

static tables_summary summarise(const double *values, int count) {
    tables_summary s = {NAN, NAN, count};
    double sum = 0, squares = 0;
    for (int i = 0; i < count; i++) {
        sum += values[i];
    }
    s.mean = count > 0 ? sum / count : (double)NAN;
    for (int i = 0; i < count; i++) {
        squares += (values[i] - s.mean) * (values[i] - s.mean);
    }
    s.deviation = count > 1 ? sqrt(squares / (count - 1)) : (double)NAN;
    return s;
}

enum { MAX_SEEDS = 100 };

tables_summary tables_summarise(const tables *t, const char *model, int metric) {
    double values[MAX_SEEDS];
    int count = 0;
    for (size_t i = 0; i < t->count && count < MAX_SEEDS; i++) {
        const tables_row *row = &t->rows[i];
        if (row->result && !strcmp(row->model, model) && !isnan(row->result->metric[metric])) {
            values[count++] = row->result->metric[metric];
        }
    }
    return summarise(values, count);
}

// ---- cells --------------------------------------------------------------------------------------

static bool cells_create(tables_cells *c, size_t rows, size_t columns, problem *p) {
    *c = (tables_cells){rows, columns, calloc(rows * columns, sizeof(char *)), false};
    return c->cell || problem_run(p, "no memory for a table of %zu rows", rows);
}

void tables_free(tables_cells *c) {
    for (size_t i = 0; c->cell && i < c->rows * c->columns; i++) {
        free(c->cell[i]);
    }
    free(c->cell);
    *c = (tables_cells){0};
}

static void set(tables_cells *c, size_t row, size_t column, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 4, 5)))
#endif
    ;

static void set(tables_cells *c, size_t row, size_t column, const char *format, ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    char **cell = &c->cell[row * c->columns + column];
    *cell = strdup(text);
    c->failed = c->failed || !*cell;
}

// A table is complete once no cell lacks its text.
static bool finish(tables_cells *c, problem *p) {
    for (size_t i = 0; i < c->rows; i++) {
        for (size_t k = 0; k < c->columns; k++) {
            if (!c->cell[i * c->columns + k]) {
                set(c, i, k, "%s", "");
            }
        }
    }
    if (!c->failed) {
        return true;
    }
    tables_free(c);
    return problem_run(p, "no memory for a table");
}

static void set_header(tables_cells *c, const char *const *titles, size_t first) {
    for (size_t i = 0; first + i < c->columns; i++) {
        set(c, 0, first + i, "%s", titles[i]);
    }
}

// "81.34", or with several seeds "81.3 ± 0.5"; in percent.
static void set_summary(tables_cells *c, size_t row, size_t column, tables_summary s) {
    if (s.seeds == 0) {
        set(c, row, column, "n/a");
    } else if (s.seeds == 1) {
        set(c, row, column, "%.2f", 100 * s.mean);
    } else {
        set(c, row, column, "%.1f ± %.1f", 100 * s.mean, 100 * s.deviation);
    }
}

// The columns of metrics first..first+count-1 of one network.
static void set_metrics(const tables *t, tables_cells *c, size_t row, size_t column,
                        const char *model, int first) {
    for (int m = first; column < c->columns; m++, column++) {
        set_summary(c, row, column, tables_summarise(t, model, m));
    }
}

// One line in "whose" for ours: with the number of seeds where there are several.
static void set_ours(const tables *t, tables_cells *c, size_t row, const char *model, int metric) {
    const int seeds = tables_summarise(t, model, metric).seeds;
    if (seeds > 1) {
        set(c, row, 1, "clnet, %d seeds", seeds);
    } else {
        set(c, row, 1, "clnet");
    }
}

bool tables_classification(const tables *t, tables_cells *c, problem *p) {
    if (!cells_create(c, 2 * t->count + 1, 2 + PUBLISHED_COLUMNS, p)) {
        return false;
    }
    size_t row = 1;
    set(c, 0, 0, "Network");
    set(c, 0, 1, "Whose");
    set_header(c, metric_titles, 2);
    for (size_t i = 0; i < t->count; i++) {
        char title[RESULT_TITLE];
        const char *model = t->rows[i].model;
        const struct published *theirs = find_published(model);
        if (!is_first(t, i) || !result_classifies(model)) {
            continue;
        }
        set(c, row, 0, "%s", result_title(title, model));
        if (theirs) {
            set(c, row, 1, "the paper");
            for (size_t k = 0; k < PUBLISHED_COLUMNS; k++) {
                set(c, row, 2 + k, "%s", theirs->percent[k]);
            }
            row++;
        }
        set_ours(t, c, row, model, METRIC_MEAN_AUC);
        set_metrics(t, c, row++, 2, model, METRIC_MELANOMA);
    }
    c->rows = row;
    return finish(c, p);
}

bool tables_segmentation(const tables *t, tables_cells *c, problem *p) {
    if (!cells_create(c, t->count + 1, 2 + METRICS - METRIC_JACCARD, p)) {
        return false;
    }
    size_t row = 1;
    set(c, 0, 0, "Network");
    set(c, 0, 1, "Whose");
    set_header(c, metric_titles + METRIC_JACCARD, 2);
    for (size_t i = 0; i < t->count; i++) {
        char title[RESULT_TITLE];
        const char *model = t->rows[i].model;
        if (is_first(t, i) && result_segments(model)) {
            set(c, row, 0, "%s", result_title(title, model));
            set_ours(t, c, row, model, METRIC_JACCARD);
            set_metrics(t, c, row++, 2, model, METRIC_JACCARD);
        }
    }
    c->rows = row;
    return finish(c, p);
}

// 45 s, 12 min, 3.4 h.
static void set_seconds(tables_cells *c, size_t row, size_t column, double s) {
    if (isnan(s)) {
        set(c, row, column, "n/a");
    } else if (s < 100) {
        set(c, row, column, "%.3g s", s);
    } else {
        const bool minutes = s < 6000;
        set(c, row, column, "%.3g %s", s / (minutes ? 60 : 3600), minutes ? "min" : "h");
    }
}

static void set_network(tables_cells *c, size_t row, const result *r) {
    char bytes[MACHINE_BYTES];
    set(c, row, 2, "%.3f M", 1e-6 * r->parameters);
    set(c, row, 3, "%.3f", 2e-9 * r->macs);
    set(c, row, 4, "%s",
        isnan(r->training_bytes) ? "n/a" : machine_bytes(bytes, (uint64_t)r->training_bytes));
    if (isnan(r->epochs)) {
        set(c, row, 5, "n/a");
    } else {
        set(c, row, 5, "%.0f", r->epochs);
    }
    set_seconds(c, row, 6, r->training_seconds);
    set(c, row, 7, "%.3g ms", 1e3 * r->evaluation_seconds / r->images);
    set(c, row, 8, "%s", r->checkpoint);
}

bool tables_networks(const tables *t, tables_cells *c, problem *p) {
    static const char *const titles[] = {"Network", "Seed",     "Parameters", "GFLOP",  "Memory",
                                         "Epochs",  "Training", "Per image",  "Weights"};
    if (!cells_create(c, t->count + 1, sizeof titles / sizeof *titles, p)) {
        return false;
    }
    set_header(c, titles, 0);
    for (size_t i = 0; i < t->count; i++) {
        char title[RESULT_TITLE];
        const tables_row *row = &t->rows[i];
        set(c, i + 1, 0, "%s", result_title(title, row->model));
        if (row->seed) {
            set(c, i + 1, 1, "%" PRIu64, row->seed);
        }
        if (row->result) {
            set_network(c, i + 1, row->result);
        } else {
            set(c, i + 1, 8, "missing");
        }
    }
    return finish(c, p);
}

// Characters that a text of UTF-8 takes on a terminal.
static int width_of(const char *text) {
    int width = 0;
    for (; *text; text++) {
        width += ((unsigned char)*text & 0xC0) != 0x80;
    }
    return width;
}

// The first two columns are names, the others figures.
void tables_print(const tables_cells *c, FILE *to) {
    for (size_t i = 0; i < c->rows; i++) {
        for (size_t k = 0; k < c->columns; k++) {
            const char *cell = c->cell[i * c->columns + k];
            int width = 0;
            for (size_t j = 0; j < c->rows; j++) {
                const int other = width_of(c->cell[j * c->columns + k]);
                width = other > width ? other : width;
            }
            const int blanks = width - width_of(cell);
            if (k < 2) {
                fprintf(to, "%s%s%*s", k ? "  " : "", cell, blanks, "");
            } else {
                fprintf(to, "  %*s%s", blanks, "", cell);
            }
        }
        fprintf(to, "\n");
    }
}

// ---- comparisons --------------------------------------------------------------------------------

// One network against another on a metric, by the seeds that both have.
typedef struct duel {
    char better[32], other[32]; // the one that is hoped to be better
    int metric;
    tables_summary ours, theirs, difference;
    int wins;        // seeds in which `better` is better
    double interval; // half the 95 % interval of the mean difference; NaN with one seed
} duel;

static double metric_of(const tables *t, const char *model, uint64_t seed, int metric) {
    for (size_t i = 0; i < t->count; i++) {
        const tables_row *row = &t->rows[i];
        if (row->result && row->seed == seed && !strcmp(row->model, model)) {
            return row->result->metric[metric];
        }
    }
    return NAN;
}

// Half the interval that holds the true mean with 95 % if the values are normal: Student's t with
// n - 1 degrees of freedom times the standard error. From 11 values on that of 10 degrees, which is
// a little too wide.
static double half_interval(tables_summary s) {
    static const double quantiles[] = {12.706, 4.303, 3.182, 2.776, 2.571,
                                       2.447,  2.365, 2.306, 2.262, 2.228};
    const int last = (int)(sizeof quantiles / sizeof *quantiles) - 1;
    if (s.seeds < 2) {
        return NAN;
    }
    return quantiles[s.seeds - 2 < last ? s.seeds - 2 : last] * s.deviation / sqrt(s.seeds);
}

// false: there is no seed of which both are known.
static bool duel_make(const tables *t, const char *better, const char *other, int metric, duel *d) {
    double ours[MAX_SEEDS], theirs[MAX_SEEDS], differences[MAX_SEEDS];
    int count = 0;
    *d = (duel){.metric = metric};
    snprintf(d->better, sizeof d->better, "%s", better);
    snprintf(d->other, sizeof d->other, "%s", other);
    for (size_t i = 0; i < t->count && count < MAX_SEEDS; i++) {
        const tables_row *row = &t->rows[i];
        if (!row->result || strcmp(row->model, better)) {
            continue;
        }
        ours[count] = row->result->metric[metric];
        theirs[count] = metric_of(t, other, row->seed, metric);
        differences[count] = ours[count] - theirs[count];
        if (!isnan(differences[count])) {
            d->wins += differences[count] > 0;
            count++;
        }
    }
    d->ours = summarise(ours, count);
    d->theirs = summarise(theirs, count);
    d->difference = summarise(differences, count);
    d->interval = half_interval(d->difference);
    return count > 0;
}

enum { SENTENCE = 512 };

static void format_spread(char text[48], tables_summary s) {
    if (s.seeds > 1) {
        snprintf(text, 48, "%.2f ± %.2f", 100 * s.mean, 100 * s.deviation);
    } else {
        snprintf(text, 48, "%.2f", 100 * s.mean);
    }
}

static void duel_format(const duel *d, char text[SENTENCE]) {
    char better[RESULT_TITLE], other[RESULT_TITLE], ours[48], theirs[48];
    const double points = 100 * d->difference.mean, half = 100 * d->interval;
    format_spread(ours, d->ours);
    format_spread(theirs, d->theirs);
    const int used = snprintf(text, SENTENCE, "%s against %s, %s: %s against %s, ",
                              result_title(better, d->better), result_title(other, d->other),
                              d->metric == METRIC_JACCARD ? "JA" : "mean AUC", ours, theirs);
    const size_t room = SENTENCE - (size_t)used;
    if (d->difference.seeds == 1) {
        snprintf(text + used, room,
                 "%.2f points %s; one seed, so how much of that is chance is not known.",
                 fabs(points), points >= 0 ? "better" : "worse");
        return;
    }
    snprintf(text + used, room,
             "%.2f points %s (95 %% interval over %d seeds: %+.2f to %+.2f; better in %d of them), "
             "%s.",
             fabs(points), points >= 0 ? "better" : "worse", d->difference.seeds, points - half,
             points + half, d->wins,
             fabs(points) > half ? "more than the spread over seeds explains"
                                 : "which the spread over seeds alone may explain");
}

// Calls `tell` for each combined network against what it is made of, as far as both are there.
static void for_each_duel(const tables *t, void (*tell)(void *user, const duel *d), void *user) {
    for (size_t i = 0; i < t->count; i++) {
        const char *model = t->rows[i].model, *plus = strchr(model, '+');
        char part[32];
        duel d;
        if (!plus || !is_first(t, i)) {
            continue;
        }
        snprintf(part, sizeof part, "%.*s", (int)(plus - model), model);
        if (duel_make(t, model, part, METRIC_MEAN_AUC, &d)) {
            tell(user, &d);
        }
        if (duel_make(t, model, plus + 1, METRIC_JACCARD, &d)) {
            tell(user, &d);
        }
    }
}

typedef struct listener {
    void (*say)(void *user, const char *sentence);
    void *user;
} listener;

static void say_duel(void *user, const duel *d) {
    const listener *l = user;
    char text[SENTENCE];
    duel_format(d, text);
    l->say(l->user, text);
}

// "The proposed ResUNet outperforms UNet by more than 1 % in terms of JA."
static void say_claim(const tables *t, const listener *l) {
    static const char *const candidates[] = {"resunet", "resnet50+resunet"};
    for (size_t i = 0; i < sizeof candidates / sizeof *candidates; i++) {
        char text[2 * SENTENCE], title[RESULT_TITLE];
        duel d;
        if (duel_make(t, candidates[i], "unet", METRIC_JACCARD, &d)) {
            const double points = 100 * d.difference.mean;
            snprintf(
                text, sizeof text,
                "The paper's claim on Table 2, that its ResUNet beats UNet by more than 1 %% JA: "
                "here %s is %.2f points %s than UNet (%d seed%s), so the claim %s.",
                result_title(title, candidates[i]), fabs(points), points >= 0 ? "better" : "worse",
                d.difference.seeds, d.difference.seeds > 1 ? "s" : "",
                points > 1 ? "holds" : "does not hold");
            l->say(l->user, text);
        }
    }
}

void tables_missing(const tables *t, void (*say)(void *user, const char *sentence), void *user) {
    for (size_t i = 0; i < t->count; i++) {
        const tables_row *row = &t->rows[i];
        char text[SENTENCE], title[RESULT_TITLE];
        if (!row->result) {
            snprintf(text, sizeof text, "%s, seed %" PRIu64 ", is missing: %s",
                     result_title(title, row->model), row->seed,
                     row->reason ? row->reason : "not trained yet");
            say(user, text);
        }
    }
}

void tables_compare(const tables *t, void (*say)(void *user, const char *sentence), void *user) {
    listener l = {say, user};
    for_each_duel(t, say_duel, &l);
    say_claim(t, &l);
}

// ---- files --------------------------------------------------------------------------------------

static void json_number(FILE *f, const char *before, const char *name, double value) {
    fprintf(f, isfinite(value) ? "%s\"%s\": %.17g" : "%s\"%s\": null", before, name, value);
}

static void json_row(FILE *f, const tables_row *row) {
    fprintf(f, "    {\"model\": \"%s\", \"seed\": %" PRIu64, row->model, row->seed);
    if (!row->result) {
        fprintf(f, ", \"status\": \"missing\"}");
        return;
    }
    const result *r = row->result;
    fprintf(f, ", \"status\": \"ok\", \"split\": \"%s\", \"weights\": \"%s\"", r->split,
            r->checkpoint);
    for (int m = 0; m < METRICS; m++) {
        json_number(f, ", ", metric_names[m], r->metric[m]);
    }
    json_number(f, ", ", "images", r->images);
    json_number(f, ", ", "masks", r->masks);
    json_number(f, ", ", "labels", r->labels);
    json_number(f, ", ", "parameters", r->parameters);
    json_number(f, ", ", "gflop", 2e-9 * r->macs);
    json_number(f, ", ", "training_bytes", r->training_bytes);
    json_number(f, ", ", "epochs", r->epochs);
    json_number(f, ", ", "training_seconds", r->training_seconds);
    json_number(f, ", ", "evaluation_seconds", r->evaluation_seconds);
    fprintf(f, "}");
}

// Mean and spread of each metric of a network, and the paper's figure where it has one.
static void json_network(FILE *f, const tables *t, const char *model) {
    const struct published *theirs = find_published(model);
    fprintf(f, "    {\"model\": \"%s\"", model);
    for (int m = 0; m < METRICS; m++) {
        const tables_summary s = tables_summarise(t, model, m);
        fprintf(f, ",\n     \"%s\": {", metric_names[m]);
        json_number(f, "", "mean", s.mean);
        json_number(f, ", ", "deviation", s.deviation);
        fprintf(f, ", \"seeds\": %d", s.seeds);
        if (theirs && m < PUBLISHED_COLUMNS) {
            fprintf(f, ", \"published_percent\": %.5g", strtod(theirs->percent[m], NULL));
        }
        fprintf(f, "}");
    }
    fprintf(f, "}");
}

typedef struct json_list {
    FILE *f;
    size_t count;
} json_list;

static void json_duel(void *user, const duel *d) {
    json_list *l = user;
    fprintf(l->f, "%s\n    {\"combined\": \"%s\", \"baseline\": \"%s\", \"metric\": \"%s\"",
            l->count++ ? "," : "", d->better, d->other, metric_names[d->metric]);
    json_number(l->f, ", ", "difference", d->difference.mean);
    json_number(l->f, ", ", "half_interval_95", d->interval);
    fprintf(l->f, ", \"seeds\": %d, \"better_in\": %d}", d->difference.seeds, d->wins);
}

static void write_json(const tables *t, FILE *f) {
    fprintf(f, "{\n  \"rows\": [");
    for (size_t i = 0; i < t->count; i++) {
        fprintf(f, i ? ",\n" : "\n");
        json_row(f, &t->rows[i]);
    }
    fprintf(f, "\n  ],\n  \"networks\": [");
    size_t written = 0;
    for (size_t i = 0; i < t->count; i++) {
        if (is_first(t, i) && has_model(t, t->rows[i].model)) {
            fprintf(f, written++ ? ",\n" : "\n");
            json_network(f, t, t->rows[i].model);
        }
    }
    fprintf(f, "\n  ],\n  \"comparisons\": [");
    json_list list = {f, 0};
    for_each_duel(t, json_duel, &list);
    fprintf(f, "\n  ]\n}\n");
}

static void write_csv(const tables *t, FILE *f) {
    fprintf(f, "model,seed");
    for (int m = 0; m < METRICS; m++) {
        fprintf(f, ",%s", metric_names[m]);
    }
    fprintf(f, ",parameters,gflop,training_bytes,training_seconds\n");
    for (size_t i = 0; i < t->count; i++) {
        const result *r = t->rows[i].result;
        if (!r) {
            continue;
        }
        fprintf(f, "%s,%" PRIu64, t->rows[i].model, t->rows[i].seed);
        for (int m = 0; m < METRICS; m++) {
            fprintf(f, isfinite(r->metric[m]) ? ",%.17g" : ",", r->metric[m]);
        }
        fprintf(f, ",%.0f,%.9g,%.0f,%.6g\n", r->parameters, 2e-9 * r->macs, r->training_bytes,
                r->training_seconds);
    }
}

// What `write` prints, whole in a file or not at all.
static bool write_file(const tables *t, void (*write)(const tables *, FILE *), const char *path,
                       problem *p) {
    char *bytes = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&bytes, &size);
    if (f) {
        write(t, f);
    }
    const bool ok = f && fclose(f) == 0 ? disk_write(path, bytes, size, p)
                                        : problem_run(p, "%s: no memory to write it", path);
    free(bytes);
    return ok;
}

bool tables_write_json(const tables *t, const char *path, problem *p) {
    return write_file(t, write_json, path, p);
}

bool tables_write_csv(const tables *t, const char *path, problem *p) {
    return write_file(t, write_csv, path, p);
}
