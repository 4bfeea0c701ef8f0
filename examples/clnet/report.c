#include "report.h"

#include "disk.h"
#include "wholefile.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct report {
    char *path, *text;
    size_t size, capacity;
    bool failed; // no memory: the text is incomplete and will not be written
};

// ---- text that grows ----------------------------------------------------------------------------

static void put_bytes(report *r, const char *bytes, size_t size) {
    if (!r || r->failed) {
        return;
    }
    if (size > r->capacity - r->size) {
        const size_t capacity = size > SIZE_MAX / 4 - r->size ? 0 : 2 * (r->size + size) + 4096;
        char *grown = capacity ? realloc(r->text, capacity) : NULL;
        if (!grown) {
            r->failed = true;
            return;
        }
        r->text = grown;
        r->capacity = capacity;
    }
    memcpy(r->text + r->size, bytes, size);
    r->size += size;
}

static void put(report *r, const char *html) { put_bytes(r, html, strlen(html)); }

// Bytes of the character of UTF-8 at s, 0 if there is none: overlong forms, surrogates and what
// lies above U+10FFFF are none.
static size_t utf8_length(const unsigned char *s) {
    const unsigned char a = s[0], b = a ? s[1] : 0;
    const size_t length = a < 0x80   ? 1
                          : a < 0xC2 ? 0
                          : a < 0xE0 ? 2
                          : a < 0xF0 ? 3
                          : a < 0xF5 ? 4
                                     : 0;
    if ((a == 0xE0 && b < 0xA0) || (a == 0xED && b > 0x9F) || (a == 0xF0 && b < 0x90) ||
        (a == 0xF4 && b > 0x8F)) {
        return 0;
    }
    for (size_t i = 1; i < length; i++) {
        if ((s[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    return length;
}

static const char *escape_of(unsigned char c) {
    switch (c) {
    case '&':
        return "&amp;";
    case '<':
        return "&lt;";
    case '>':
        return "&gt;";
    case '"':
        return "&quot;";
    case '\'':
        return "&#39;";
    default:
        return c < 0x20 && c != '\n' && c != '\t' ? "&#65533;" : c == 0x7F ? "&#65533;" : NULL;
    }
}

// Text as HTML: what has a meaning there is escaped, what is no character becomes U+FFFD.
static void put_escaped(report *r, const char *text) {
    const unsigned char *s = (const unsigned char *)text;
    while (*s) {
        const char *escape = escape_of(*s);
        const size_t length = utf8_length(s);
        if (escape || length == 0) {
            put(r, escape ? escape : "&#65533;");
            s++;
        } else {
            put_bytes(r, (const char *)s, length);
            s += length;
        }
    }
}

static void put_element(report *r, const char *begin, const char *text, const char *end) {
    put(r, begin);
    put_escaped(r, text);
    put(r, end);
}

// Base64 (RFC 4648): three bytes become four letters, '=' fills up the last four.
static void put_base64(report *r, const unsigned char *bytes, size_t size) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                  "0123456789+/";
    for (size_t i = 0; i < size; i += 3) {
        const size_t left = size - i;
        const unsigned b1 = left > 1 ? bytes[i + 1] : 0, b2 = left > 2 ? bytes[i + 2] : 0;
        const unsigned v = (unsigned)bytes[i] << 16 | b1 << 8 | b2;
        const char four[4] = {letters[v >> 18], letters[v >> 12 & 63],
                              left > 1 ? letters[v >> 6 & 63] : '=',
                              left > 2 ? letters[v & 63] : '='};
        put_bytes(r, four, 4);
    }
}

// ---- the page -----------------------------------------------------------------------------------

// Dark text on white, whatever the reader's colours; wide tables scroll on a narrow screen and shrink
// on paper, where nothing scrolls.
static const char style[] =
    ":root{color-scheme:light;--ink:#1c2126;--soft:#59626b;--line:#d9dee3;--band:#f3f5f7}"
    "*{box-sizing:border-box}"
    "body{font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;"
    "color:var(--ink);background:#fff;max-width:74rem;margin:0 auto;padding:1.2rem 1.2rem 3rem}"
    "h1{font-size:1.7rem;line-height:1.25;margin:.3em 0 .5em}"
    "h2{font-size:1.2rem;margin:2.2em 0 .7em;padding-bottom:.25em;border-bottom:1px solid "
    "var(--line)}"
    "p{margin:.6em 0;max-width:46rem;white-space:pre-line;overflow-wrap:anywhere}"
    ".wide{overflow-x:auto;margin:1em 0 .4em}"
    "table{border-collapse:collapse;font-size:.84rem;font-variant-numeric:tabular-nums}"
    "th,td{padding:.35em .6em;text-align:left;vertical-align:top;border-bottom:1px solid "
    "var(--line)}"
    "th{background:var(--band);font-weight:600;vertical-align:bottom}"
    ".n{text-align:right;white-space:nowrap}th.n{white-space:normal}"
    ".data td{white-space:nowrap}table:not(.data) td{overflow-wrap:anywhere}"
    "tr.next td{border-top:2px solid var(--line)}"
    ".note,figcaption{color:var(--soft);font-size:.88rem;max-width:46rem}"
    "figure{margin:1.4em 0}img{display:block;max-width:100%;height:auto}"
    "figcaption{margin-top:.5em}"
    "@media(max-width:40rem){body{padding:.8rem .8rem 2rem}h1{font-size:1.4rem}}"
    "@media print{body{max-width:none;padding:0;font-size:10.5pt}.wide{overflow:visible}"
    "table{font-size:7.5pt}th,td{padding:.25em .4em}h2{break-after:avoid}"
    "figure,tr{break-inside:avoid}img{max-height:22cm;width:auto}}";

report *report_open(const char *path, const char *title) {
    report *r = calloc(1, sizeof *r);
    if (!r) {
        return NULL;
    }
    r->path = malloc(strlen(path) + 1);
    if (!r->path) {
        free(r);
        return NULL;
    }
    memcpy(r->path, path, strlen(path) + 1);
    put(r, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
           "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    put_element(r, "<title>", title, "</title>\n<style>");
    put(r, style);
    put_element(r, "</style>\n</head>\n<body>\n<h1>", title, "</h1>\n");
    return r;
}

void report_heading(report *r, const char *text) { put_element(r, "<h2>", text, "</h2>\n"); }

void report_text(report *r, const char *text) { put_element(r, "<p>", text, "</p>\n"); }

// A number, alone or with a spread ("81.3 ± 0.5"), a percent sign or a unit of one word ("1.2 MiB").
static bool is_number(const char *text) {
    char *end;
    strtod(text, &end);
    if (end == text || *end == 0) {
        return end != text;
    }
    static const char spread[] = " \xC2\xB1 ";
    if (!strncmp(end, spread, sizeof spread - 1)) {
        return is_number(end + sizeof spread - 1);
    }
    return *end == '%' || (*end == ' ' && !strpbrk(end + 1, " ,"));
}

// Whether the column is set to the right: it has numbers, and beside them only what stands
// for none.
static bool is_numeric(const char *const *cells, size_t rows, size_t columns, size_t column) {
    size_t numbers = 0;
    for (size_t i = 1; i < rows; i++) {
        const char *cell = cells[i * columns + column];
        if (is_number(cell)) {
            numbers++;
        } else if (cell[strspn(cell, " -")] != 0 && strcmp(cell, "n/a") != 0) {
            return false;
        }
    }
    return numbers > 0;
}

static bool has_groups(const char *const *cells, size_t rows, size_t columns) {
    for (size_t i = 1; i < rows; i++) {
        if (!*cells[i * columns]) {
            return true;
        }
    }
    return false;
}

static void put_row(report *r, const char *const *cells, size_t rows, size_t columns, size_t row) {
    // A row that begins a group: those below it leave the first cell empty.
    const bool first = row > 1 && *cells[row * columns];
    put(r, first && has_groups(cells, rows, columns) ? "<tr class=\"next\">" : "<tr>");
    for (size_t j = 0; j < columns; j++) {
        const bool right = is_numeric(cells, rows, columns, j);
        put(r, row == 0 ? "<th" : "<td");
        put_element(r, right ? " class=\"n\">" : ">", cells[row * columns + j],
                    row == 0 ? "</th>" : "</td>");
    }
    put(r, "</tr>\n");
}

void report_table(report *r, const char *const *cells, size_t rows, size_t columns,
                  const char *note) {
    put(r, columns > 2 ? "<div class=\"wide\"><table class=\"data\">\n"
                       : "<div class=\"wide\"><table>\n");
    for (size_t i = 0; i < rows; i++) {
        put_row(r, cells, rows, columns, i);
    }
    put(r, "</table></div>\n");
    if (note) {
        put_element(r, "<p class=\"note\">", note, "</p>\n");
    }
}

void report_picture_bytes(report *r, const unsigned char *png, size_t size, const char *caption) {
    put_element(r, "<figure><img alt=\"", caption ? caption : "",
                "\" src=\"data:image/png;base64,");
    put_base64(r, png, size);
    put(r, "\">");
    if (caption) {
        put_element(r, "<figcaption>", caption, "</figcaption>");
    }
    put(r, "</figure>\n");
}

bool report_picture(report *r, const char *path_png, const char *caption, problem *p) {
    enum { MAX_PICTURE = 64 << 20 };
    wholefile file;
    if (!wholefile_read(path_png, MAX_PICTURE, &file, p)) {
        return false;
    }
    const bool ok =
        (file.size >= 8 && memcmp(file.bytes, "\x89PNG\r\n\x1A\n", 8) == 0) ||
        problem_input(p, "%s: not a PNG file, so it cannot be shown in a report", path_png);
    if (ok) {
        report_picture_bytes(r, file.bytes, file.size, caption);
    }
    wholefile_free(&file);
    return ok;
}

bool report_close(report *r, problem *p) {
    put(r, "</body>\n</html>\n");
    const bool ok = r && !r->failed ? disk_write(r->path, r->text, r->size, p)
                                    : problem_run(p, "%s: no memory for the report",
                                                  r ? r->path : "report.html");
    report_discard(r);
    return ok;
}

void report_discard(report *r) {
    if (r) {
        free(r->path);
        free(r->text);
        free(r);
    }
}
