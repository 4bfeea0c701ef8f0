// Rows of results: what stands in them, and how they are written and read again.
#include "bench.h"
#include "machine.h"
#include "wholefile.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

// The fields of a row in the order of the contract: key, how it is printed, where it stands.
typedef enum field_kind { TEXT, COUNT, SIZE, NUMBER, BYTES, STATUS } field_kind;
typedef enum field_place { ALWAYS, OPERATIONS, CSV_ONLY } field_place;

typedef struct field {
    const char *key;
    field_kind kind;
    size_t at, room; // room: of text
    field_place place;
} field;

#define AT(member)   offsetof(bench_row, member), 0
#define ROOM(member) offsetof(bench_row, member), sizeof((bench_row *)0)->member

static const field fields[] = {
    {"case", TEXT, ROOM(name), ALWAYS},
    {"pass", TEXT, ROOM(pass), OPERATIONS},
    {"device", TEXT, ROOM(device), ALWAYS},
    {"threads", COUNT, AT(threads), ALWAYS},
    {"isa", TEXT, ROOM(isa), ALWAYS},
    {"batch", COUNT, AT(batch), ALWAYS},
    {"size", SIZE, AT(size), ALWAYS},
    {"repeats", COUNT, AT(repeats), ALWAYS},
    {"median_ms", NUMBER, AT(median_ms), ALWAYS},
    {"min_ms", NUMBER, AT(min_ms), ALWAYS},
    {"max_ms", NUMBER, AT(max_ms), ALWAYS},
    {"forward_ms", NUMBER, AT(forward_ms), ALWAYS},
    {"backward_ms", NUMBER, AT(backward_ms), ALWAYS},
    {"update_ms", NUMBER, AT(update_ms), ALWAYS},
    {"gflop", NUMBER, AT(gflop), ALWAYS},
    {"gflops", NUMBER, AT(gflops), ALWAYS},
    {"peak_gflops", NUMBER, AT(peak_gflops), ALWAYS},
    {"share", NUMBER, AT(share), ALWAYS},
    {"gbs", NUMBER, AT(gbs), CSV_ONLY},
    {"peak_gbs", NUMBER, AT(peak_gbs), CSV_ONLY},
    {"limit_share", NUMBER, AT(limit_share), CSV_ONLY},
    {"plan_bytes", BYTES, AT(plan_bytes), ALWAYS},
    {"peak_rss_bytes", BYTES, AT(peak_rss_bytes), ALWAYS},
    {"error", NUMBER, AT(error), ALWAYS},
    {"error_limit", NUMBER, AT(error_limit), ALWAYS},
    {"status", STATUS, AT(status), ALWAYS},
};
enum { FIELDS = sizeof fields / sizeof *fields };

static const char *const status_names[] = {"ok", "n/a", "failed"};

bench_row bench_row_new(void) {
    bench_row row = {.status = BENCH_OK};
    for (int i = 0; i < FIELDS; i++) {
        if (fields[i].kind == NUMBER || fields[i].kind == BYTES) {
            const double unknown = NAN;
            memcpy((char *)&row + fields[i].at, &unknown, sizeof unknown);
        }
    }
    return row;
}

void bench_row_rates(bench_row *row, double bytes) {
    const double seconds = 1e-3 * row->median_ms;
    row->gflops = row->gflop / seconds;
    row->share = row->gflops / row->peak_gflops;
    row->gbs = 1e-9 * bytes / seconds;
    // fmax takes the other one where there is no arithmetic to count.
    row->limit_share = fmax(row->share, row->gbs / row->peak_gbs);
}

// ---- writing ------------------------------------------------------------------------------------

static int int_of(const bench_row *row, const field *f) {
    return *(const int *)((const char *)row + f->at);
}

static double number_of(const bench_row *row, const field *f) {
    return *(const double *)((const char *)row + f->at);
}

// The text of a field; false: not known.
static bool format_field(const bench_row *row, const field *f, char text[160]) {
    const double number = f->kind == NUMBER || f->kind == BYTES ? number_of(row, f) : NAN;
    switch (f->kind) {
    case TEXT:
        snprintf(text, 160, "%s", (const char *)row + f->at);
        return text[0] != 0;
    case COUNT:
        snprintf(text, 160, "%d", int_of(row, f));
        return int_of(row, f) != 0;
    case SIZE:
        snprintf(text, 160, row->size[0] == row->size[1] ? "%d" : "%dx%d", row->size[0],
                 row->size[1]);
        return row->size[0] != 0;
    case STATUS:
        snprintf(text, 160, "%s", status_names[row->status]);
        return true;
    default:
        snprintf(text, 160, f->kind == BYTES ? "%.0f" : "%.9g", number);
        return isfinite(number);
    }
}

// In quotes, as JSON; the texts of rows are shorter than half of the buffer.
static void quote_json(char to[400], const char *text) {
    size_t used = 0;
    to[used++] = '"';
    for (; *text && used < 390; text++) {
        const unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') {
            to[used++] = '\\';
        }
        to[used++] = c < ' ' ? ' ' : (char)c;
    }
    to[used++] = '"';
    to[used] = 0;
}

static void write_json(FILE *to, const bench_row *row, bool operations) {
    const char *comma = "{";
    for (int i = 0; i < FIELDS; i++) {
        const field *f = &fields[i];
        char text[160], quoted[400];
        if (f->place == CSV_ONLY || (f->place == OPERATIONS && !operations)) {
            continue;
        }
        const bool known = format_field(row, f, text);
        const bool in_quotes = f->kind == TEXT || f->kind == STATUS || strchr(text, 'x');
        if (known && in_quotes) {
            quote_json(quoted, text);
        }
        fprintf(to, "%s\"%s\": %s", comma, f->key, !known ? "null" : in_quotes ? quoted : text);
        comma = ", ";
    }
    fputs("}\n", to);
}

static void write_csv(FILE *to, const bench_row *row) {
    for (int i = 0; i < FIELDS; i++) {
        char text[160];
        fputs(i ? "," : "", to);
        if (!format_field(row, &fields[i], text)) {
            fputs("n/a", to);
        } else if (fields[i].kind == TEXT) {
            fputc('"', to);
            for (const char *c = text; *c; c++) {
                fprintf(to, *c == '"' ? "\"\"" : "%c", *c);
            }
            fputc('"', to);
        } else {
            fputs(text, to);
        }
    }
    fputc('\n', to);
}

static void write_csv_heading(FILE *to) {
    for (int i = 0; i < FIELDS; i++) {
        fprintf(to, "%s%s", i ? "," : "", fields[i].key);
    }
    fputc('\n', to);
}

// ---- the table ----------------------------------------------------------------------------------

// A cell, right-aligned: the number by its format, or n/a.
static void cell(int width, const char *format, double value) {
    char text[32] = "n/a";
    if (isfinite(value)) {
        snprintf(text, sizeof text, format, value);
    }
    printf(" %*s", width, text);
}

static void cell_bytes(int width, double bytes) {
    char text[MACHINE_BYTES] = "n/a";
    if (isfinite(bytes)) {
        machine_bytes(text, (uint64_t)bytes);
    }
    printf(" %*s", width, text);
}

static void cell_times(const bench_row *row) {
    char spread[48] = "n/a";
    if (isfinite(row->min_ms)) {
        snprintf(spread, sizeof spread, "%.4g..%.4g", row->min_ms, row->max_ms);
    }
    cell(9, "%.4g", row->median_ms);
    printf(" %17s", spread);
}

static void cell_end(const bench_row *row) {
    cell(9, "%.2g", row->error);
    cell(7, "%.3g", row->error_limit);
    printf("  %s\n", status_names[row->status]);
}

static void print_heading(bool operations) {
    if (operations) {
        printf("%-44s %-15s %9s %17s %8s %7s %6s %8s %9s %7s\n", "case", "pass", "median ms",
               "min..max", "GFLOP/s", "GB/s", "share", "of limit", "error", "limit");
    } else {
        printf("%-24s %5s %9s %17s %8s %8s %8s %8s %6s %10s %10s %9s %7s\n", "case", "batch",
               "median ms", "min..max", "forward", "backward", "update", "GFLOP/s", "share", "plan",
               "peak RSS", "error", "limit");
    }
}

static void print_operation(const bench_row *row) {
    printf("%-44s %-15s", row->name, row->pass);
    cell_times(row);
    cell(8, "%.4g", row->gflops);
    cell(7, "%.3g", row->gbs);
    cell(6, "%.2f", row->share);
    cell(8, "%.2f", row->limit_share);
    cell_end(row);
}

// The part of a case's name that tells where it was checked stands below its row.
static void print_model(const bench_row *row) {
    const char *checked = strstr(row->name, " (");
    printf("%-24.*s %5d", checked ? (int)(checked - row->name) : 24, row->name, row->batch);
    cell_times(row);
    cell(8, "%.4g", row->forward_ms);
    cell(8, "%.4g", row->backward_ms);
    cell(8, "%.4g", row->update_ms);
    cell(8, "%.4g", row->gflops);
    cell(6, "%.2f", row->share);
    cell_bytes(10, row->plan_bytes);
    cell_bytes(10, row->peak_rss_bytes);
    cell_end(row);
    if (checked && isfinite(row->error)) {
        printf("  %s\n", checked + 1);
    }
}

// ---- output -------------------------------------------------------------------------------------

bool bench_output_open(bench_output *out, const bench_options *o, problem *p) {
    out->options = o;
    if (o->json && o->csv) {
        return problem_input(p, "--csv: cannot stand beside --json");
    }
    if (o->save) {
        out->save = fopen(o->save, "w");
        if (!out->save) {
            return problem_input(p, "--save %s: cannot be written: %s", o->save, strerror(errno));
        }
    }
    return true;
}

bool bench_output_row(bench_output *out, const bench_row *row, problem *p) {
    const bool table = !out->options->json && !out->options->csv;
    if (!out->begun && !out->options->json) {
        if (table) {
            print_heading(out->operations);
        } else {
            write_csv_heading(stdout);
        }
    }
    out->begun = true;
    if (table) {
        (out->operations ? print_operation : print_model)(row);
    } else if (out->options->json) {
        write_json(stdout, row, out->operations);
    } else {
        write_csv(stdout, row);
    }
    if (row->why[0]) {
        fprintf(stderr, "clnet-bench: %s%s%s on %s: %s\n", row->name, row->pass[0] ? ", " : "",
                row->pass, row->device, row->why);
    }
    if (out->save) {
        write_json(out->save, row, out->operations);
        if (fflush(out->save) || ferror(out->save)) {
            return problem_run(p, "--save %s: cannot be written: %s", out->options->save,
                               strerror(errno));
        }
    }
    return !(fflush(stdout) || ferror(stdout)) || problem_run(p, "the output cannot be written");
}

bool bench_output_close(bench_output *out, problem *p) {
    FILE *save = out->save;
    out->save = NULL;
    return !save || !fclose(save) ||
           problem_run(p, "--save %s: cannot be written: %s", out->options->save, strerror(errno));
}

// ---- reading ------------------------------------------------------------------------------------

typedef struct reader {
    const char *at, *path;
    int line;
} reader;

static void skip_blanks(reader *r) { r->at += strspn(r->at, " \t\r"); }

static bool take(reader *r, char c) {
    skip_blanks(r);
    if (*r->at != c) {
        return false;
    }
    r->at++;
    return true;
}

// A string in quotes, cut to its room. Escapes stand for the character behind them, which is right
// for what rows hold: quotes and backslashes.
static bool read_text(reader *r, char *text, size_t room) {
    size_t used = 0;
    if (!take(r, '"')) {
        return false;
    }
    for (; *r->at && *r->at != '"' && *r->at != '\n'; r->at++) {
        r->at += *r->at == '\\' && r->at[1] && r->at[1] != '\n';
        if (used + 1 < room) {
            text[used++] = *r->at;
        }
    }
    text[used] = 0;
    return take(r, '"');
}

// A value as text: of a string what is in its quotes, else a number or a word.
static bool read_value(reader *r, char *text, size_t room) {
    skip_blanks(r);
    if (*r->at == '"') {
        return read_text(r, text, room);
    }
    const size_t length = strspn(r->at, "0123456789+-.eEnulltruefas");
    snprintf(text, room, "%.*s", (int)(length < room ? length : room - 1), r->at);
    r->at += length;
    return length > 0;
}

// A number of at most `most`, or 0.
static int read_count(const char *text, int most) {
    const double value = strtod(text, NULL);
    return value >= 0 && value <= most ? (int)value : 0;
}

static void set_field(bench_row *row, const field *f, const char *text) {
    char *place = (char *)row + f->at;
    const bool known = strcmp(text, "null") != 0;
    const double number = known ? strtod(text, NULL) : NAN;
    const int count = read_count(text, 1 << 30);
    const char *times = strchr(text, 'x');
    switch (f->kind) {
    case TEXT:
        snprintf(place, f->room, "%s", known ? text : "");
        break;
    case COUNT:
        memcpy(place, &count, sizeof count);
        break;
    case SIZE:
        row->size[0] = count;
        row->size[1] = times ? read_count(times + 1, 1 << 30) : count;
        break;
    case STATUS:
        row->status = !strcmp(text, "ok")    ? BENCH_OK
                      : !strcmp(text, "n/a") ? BENCH_NA
                                             : BENCH_FAILED;
        break;
    default:
        memcpy(place, &number, sizeof number);
    }
}

static bool read_row(reader *r, bench_row *row) {
    *row = bench_row_new();
    if (!take(r, '{')) {
        return false;
    }
    do {
        char key[64], value[160];
        if (!read_text(r, key, sizeof key) || !take(r, ':') ||
            !read_value(r, value, sizeof value)) {
            return false;
        }
        for (int i = 0; i < FIELDS; i++) {
            if (!strcmp(fields[i].key, key)) {
                set_field(row, &fields[i], value);
            }
        }
    } while (take(r, ','));
    return take(r, '}') && row->name[0];
}

bool bench_rows_read(const char *path, bench_row **rows, size_t *count, problem *p) {
    enum { CAP = 64 << 20 };
    wholefile file;
    *rows = NULL;
    *count = 0;
    if (!wholefile_read(path, CAP, &file, p)) {
        return false;
    }
    reader r = {(const char *)file.bytes, path, 1};
    bool ok = true;
    for (size_t room = 0; ok && *r.at; r.line++) {
        skip_blanks(&r);
        if (*r.at == '\n') {
            r.at++;
            continue;
        }
        if (*count == room) {
            room = room ? 2 * room : 64;
            bench_row *larger = realloc(*rows, room * sizeof *larger);
            if (!larger) {
                ok = problem_run(p, "out of memory");
                break;
            }
            *rows = larger;
        }
        ok = read_row(&r, &(*rows)[*count]);
        skip_blanks(&r);
        ok = (ok && (*r.at == '\n' || *r.at == 0)) ||
             problem_input(p, "%s: line %d is no row of clnet-bench --json", path, r.line);
        *count += ok;
        r.at += ok && *r.at == '\n';
    }
    wholefile_free(&file);
    if (!ok) {
        free(*rows);
        *rows = NULL;
    }
    return ok;
}
