#include "csv.h"

#include "wholefile.h"

#include <locale.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
    MAX_FILE = 256 << 20, // bytes
    MAX_NUMBER = 60,      // characters of a number
    SHOWN = 40            // characters of a bad value that a message repeats
};

enum { ID, MELANOMA, KERATOSIS, COLUMNS };

static const char *const column_names[COLUMNS] = {"image_id", "melanoma", "seborrheic_keratosis"};

typedef struct reader {
    const char *path;
    unsigned char *at, *end;
    size_t line;
    int column_of[COLUMNS]; // which of the three the n-th value of a line is
    csv_kind kind;
    problem *p;
} reader;

// A bad value as a message shows it: short, without control characters.
typedef struct shown {
    char text[SHOWN + 4];
} shown;

static shown show(const char *value) {
    shown s = {{0}};
    size_t i = 0;
    for (; value[i] && i < SHOWN; i++) {
        const unsigned char c = (unsigned char)value[i];
        s.text[i] = (char)(c < 0x20 || c > 0x7E ? '?' : c);
    }
    if (value[i]) {
        memcpy(s.text + i, "...", 3);
    }
    return s;
}

bool csv_id_valid(const char *id) {
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";
    const size_t length = strspn(id, allowed);
    return length >= 1 && length <= CSV_MAX_ID && id[length] == 0 && id[0] != '.';
}

// ---- from bytes to values -----------------------------------------------------------------------

// What is wrong with the file as a whole, before any line is looked at; NULL: nothing.
static const char *unreadable(const wholefile *file) {
    const unsigned char *b = file->bytes;
    if (file->size == 0) {
        return "is empty, expected a header line with image_id,melanoma,seborrheic_keratosis";
    }
    if (file->size >= 2 && ((b[0] == 0xFF && b[1] == 0xFE) || (b[0] == 0xFE && b[1] == 0xFF))) {
        return "is UTF-16, expected UTF-8 text";
    }
    return NULL;
}

// Takes a value in quotes; the reader stands on the first. "" inside stands for one ".
static char *take_quoted(reader *r) {
    unsigned char *begin = ++r->at, *to = begin;
    for (;;) {
        if (r->at == r->end || strchr("\r\n", *r->at)) { // which finds a NUL byte, too
            problem_input(r->p, "%s: line %zu: quote without an end on its line", r->path, r->line);
            return NULL;
        }
        if (*r->at == '"') {
            r->at++;
            if (r->at == r->end || *r->at != '"') {
                break;
            }
        }
        *to++ = *r->at++;
    }
    if (r->at < r->end && !strchr(",\r\n", *r->at)) {
        problem_input(r->p, "%s: line %zu: text behind a closing quote", r->path, r->line);
        return NULL;
    }
    *to = 0;
    return (char *)begin;
}

// Takes the next value of the line and the comma or line end behind it; *last: the line ends.
static char *take_value(reader *r, bool *last) {
    char *value = (char *)r->at;
    if (r->at < r->end && *r->at == '"') {
        value = take_quoted(r);
    } else {
        while (r->at < r->end && !strchr(",\"\r\n", *r->at)) {
            r->at++;
        }
    }
    if (!value) {
        return NULL;
    }
    unsigned char *stop = r->at;
    if (stop < r->end && (*stop == 0 || *stop == '"')) {
        problem_input(r->p, "%s: line %zu: %s", r->path, r->line,
                      *stop ? "quote within a value" : "NUL byte, expected text");
        return NULL;
    }
    if (stop < r->end && *stop == '\r' && (stop + 1 == r->end || stop[1] != '\n')) {
        problem_input(r->p, "%s: line %zu: carriage return without a line feed", r->path, r->line);
        return NULL;
    }
    *last = stop == r->end || *stop != ',';
    r->at += stop == r->end ? 0 : *stop == '\r' ? 2 : 1;
    *stop = 0; // there is one byte behind the end of the file
    return value;
}

// Takes a line of exactly three values.
static bool take_line(reader *r, char *values[COLUMNS]) {
    bool last = false;
    for (int i = 0; i < COLUMNS; i++) {
        if (last) {
            return problem_input(r->p, "%s: line %zu: has %d of %d values", r->path, r->line, i,
                                 COLUMNS);
        }
        if (!(values[i] = take_value(r, &last))) {
            return false;
        }
    }
    return last ||
           problem_input(r->p, "%s: line %zu: has more than %d values", r->path, r->line, COLUMNS);
}

// Skips empty lines; false at the end of the file.
static bool next_line(reader *r) {
    for (;; r->line++) {
        if (r->at < r->end && *r->at == '\n') {
            r->at++;
        } else if (r->end - r->at >= 2 && r->at[0] == '\r' && r->at[1] == '\n') {
            r->at += 2;
        } else {
            return r->at < r->end;
        }
    }
}

// ---- from values to rows ------------------------------------------------------------------------

static bool read_header(reader *r) {
    bool seen[COLUMNS] = {false}, last = false;
    int count = 0;
    while (!last) {
        const char *name = take_value(r, &last);
        int column = 0;
        if (!name) {
            return false;
        }
        while (column < COLUMNS && strcmp(name, column_names[column]) != 0) {
            column++;
        }
        column = strcmp(name, "image") == 0 ? ID : column;
        if (column == COLUMNS) {
            return problem_input(r->p,
                                 "%s: line %zu: column \"%s\" is not known, expected "
                                 "image_id,melanoma,seborrheic_keratosis",
                                 r->path, r->line, show(name).text);
        }
        if (seen[column]) {
            return problem_input(r->p, "%s: line %zu: column %s stands there twice", r->path,
                                 r->line, column_names[column]);
        }
        seen[column] = true;
        r->column_of[count++] = column;
    }
    for (int i = 0; i < COLUMNS; i++) {
        if (!seen[i]) {
            return problem_input(r->p, "%s: line %zu: column %s is missing", r->path, r->line,
                                 column_names[i]);
        }
    }
    return true;
}

// digits [. digits] [e [sign] digits], at least one digit before the e; nothing else. In the copy
// the point becomes the one that strtod expects in this locale.
static bool copy_number(char copy[MAX_NUMBER + 1], const char *text) {
    static const char digits[] = "0123456789";
    const char point = *localeconv()->decimal_point;
    const size_t whole = strspn(text, digits), fraction_at = whole + (text[whole] == '.');
    const size_t fraction = fraction_at > whole ? strspn(text + fraction_at, digits) : 0;
    size_t end = fraction_at + fraction;
    if (whole + fraction == 0) {
        return false;
    }
    if (text[end] == 'e' || text[end] == 'E') {
        end += text[end + 1] == '+' || text[end + 1] == '-' ? 2 : 1;
        const size_t exponent = strspn(text + end, digits);
        end += exponent;
        if (exponent == 0) {
            return false;
        }
    }
    if (text[end] != 0 || end > MAX_NUMBER) {
        return false;
    }
    memcpy(copy, text, end + 1);
    if (copy[whole] == '.') {
        copy[whole] = point;
    }
    return true;
}

static bool read_number(reader *r, int column, const char *text, double *value) {
    char copy[MAX_NUMBER + 1];
    const bool number = copy_number(copy, text);
    *value = number ? strtod(copy, NULL) : -1;
    if (r->kind == CSV_TRUTH ? *value == 0 || *value == 1 : *value >= 0 && *value <= 1) {
        return true;
    }
    return problem_input(r->p, "%s: line %zu: %s is \"%s\", expected %s", r->path, r->line,
                         column_names[column], show(text).text,
                         r->kind == CSV_TRUTH ? "0 or 1" : "a number from 0 to 1");
}

// In a table of scores "ID.jpg" stands for the image ID, as the official scorer takes it.
static void drop_extension(char *id) {
    const size_t length = strlen(id);
    if (length > 4 && !strcasecmp(id + length - 4, ".jpg")) {
        id[length - 4] = 0;
    }
}

static bool read_row(reader *r, csv_row *row) {
    char *values[COLUMNS], *ordered[COLUMNS];
    if (!take_line(r, values)) {
        return false;
    }
    for (int i = 0; i < COLUMNS; i++) {
        ordered[r->column_of[i]] = values[i];
    }
    if (!csv_id_valid(ordered[ID])) {
        return problem_input(r->p,
                             "%s: line %zu: image_id \"%s\", expected up to %d letters, digits, "
                             "'_', '-' and '.'",
                             r->path, r->line, show(ordered[ID]).text, CSV_MAX_ID);
    }
    if (r->kind == CSV_SCORES) {
        drop_extension(ordered[ID]);
    }
    row->id = ordered[ID];
    row->line = r->line;
    if (!read_number(r, MELANOMA, ordered[MELANOMA], &row->melanoma) ||
        !read_number(r, KERATOSIS, ordered[KERATOSIS], &row->keratosis)) {
        return false;
    }
    if (r->kind == CSV_TRUTH && row->melanoma == 1 && row->keratosis == 1) {
        return problem_input(r->p,
                             "%s: line %zu: %s is both melanoma and seborrheic keratosis, "
                             "expected at most one",
                             r->path, r->line, row->id);
    }
    return true;
}

static bool grow(csv_table *t, size_t *room) {
    if (t->count < *room) {
        return true;
    }
    const size_t wanted = *room ? 2 * *room : 1024;
    csv_row *rows =
        wanted <= SIZE_MAX / sizeof *rows ? realloc(t->rows, wanted * sizeof *rows) : NULL;
    if (rows) {
        t->rows = rows;
        *room = wanted;
    }
    return rows != NULL;
}

static int compare(const void *a, const void *b) {
    const csv_row *x = a, *y = b;
    const int order = strcmp(x->id, y->id);
    return order ? order : (x->line > y->line) - (x->line < y->line);
}

static bool read_rows(reader *r, csv_table *t) {
    size_t room = 0;
    for (r->line++; next_line(r); r->line++) {
        if (!grow(t, &room)) {
            return problem_run(r->p, "%s: no memory for its rows", r->path);
        }
        if (!read_row(r, &t->rows[t->count])) {
            return false;
        }
        t->count++;
    }
    if (t->count == 0) {
        return problem_input(r->p, "%s: has a header but no rows", r->path);
    }
    qsort(t->rows, t->count, sizeof *t->rows, compare);
    for (size_t i = 1; i < t->count; i++) {
        if (strcmp(t->rows[i - 1].id, t->rows[i].id) == 0) {
            return problem_input(r->p, "%s: line %zu: %s stands in line %zu already", r->path,
                                 t->rows[i].line, t->rows[i].id, t->rows[i - 1].line);
        }
    }
    return true;
}

bool csv_read(const char *path, csv_kind kind, csv_table *out, problem *p) {
    wholefile file;
    *out = (csv_table){0};
    if (!wholefile_read(path, MAX_FILE, &file, p)) {
        return false;
    }
    out->text = file.bytes;
    const bool mark = file.size >= 3 && memcmp(file.bytes, "\xEF\xBB\xBF", 3) == 0;
    reader r = {.path = path,
                .at = file.bytes + (mark ? 3 : 0),
                .end = file.bytes + file.size,
                .line = 1,
                .kind = kind,
                .p = p};
    const char *wrong = unreadable(&file);
    const bool ok =
        wrong ? problem_input(p, "%s: %s", path, wrong) : read_header(&r) && read_rows(&r, out);
    if (!ok) {
        csv_free(out);
    }
    return ok;
}

const csv_row *csv_find(const csv_table *table, const char *id) {
    size_t low = 0, high = table->count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const int order = strcmp(id, table->rows[middle].id);
        if (order == 0) {
            return &table->rows[middle];
        }
        low = order > 0 ? middle + 1 : low;
        high = order > 0 ? high : middle;
    }
    return NULL;
}

void csv_free(csv_table *table) {
    free(table->rows);
    free(table->text);
    *table = (csv_table){0};
}
