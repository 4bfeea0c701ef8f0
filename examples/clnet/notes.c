#include "notes.h"

#include "disk.h"
#include "wholefile.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILE = 1 << 20 };

// One line, ended by a 0, into name and value.
static bool add_line(notes *n, char *line, const char *path, size_t number, problem *p) {
    char *between = strstr(line, " = ");
    if (!between || between == line || n->count == NOTES_MAX) {
        return problem_input(p, "%s: line %zu: %s", path, number,
                             n->count == NOTES_MAX ? "too many lines" : "is not \"name = value\"");
    }
    *between = 0;
    if (notes_find(n, line)) {
        return problem_input(p, "%s: line %zu: %.60s stands there twice", path, number, line);
    }
    n->names[n->count] = line;
    n->values[n->count++] = between + 3;
    return true;
}

bool notes_read(const char *path, notes *out, problem *p) {
    wholefile file;
    *out = (notes){0};
    if (!wholefile_read(path, MAX_FILE, &file, p)) {
        return false;
    }
    out->text = (char *)file.bytes;
    size_t number = 1;
    for (char *line = out->text; *line; number++) {
        char *end = line + strcspn(line, "\n");
        char *next = *end ? end + 1 : end;
        *end = 0;
        if (!add_line(out, line, path, number, p)) {
            notes_free(out);
            return false;
        }
        line = next;
    }
    return true;
}

const char *notes_find(const notes *n, const char *name) {
    for (size_t i = 0; i < n->count; i++) {
        if (!strcmp(n->names[i], name)) {
            return n->values[i];
        }
    }
    return NULL;
}

void notes_free(notes *n) {
    free(n->text);
    *n = (notes){0};
}

void notes_add(notes_text *t, const char *name, const char *value) {
    const size_t room = sizeof t->bytes - t->used;
    const int length = snprintf(t->bytes + t->used, room, "%s = %s\n", name, value);
    if (length < 0 || (size_t)length >= room || strchr(value, '\n')) {
        t->failed = true;
    } else {
        t->used += (size_t)length;
    }
}

void notes_add_number(notes_text *t, const char *name, double value) {
    char text[32];
    snprintf(text, sizeof text, isnan(value) ? "nan" : "%.17g", value);
    notes_add(t, name, text);
}

bool notes_write(const notes_text *t, const char *path, problem *p) {
    if (t->failed) {
        return problem_input(
            p, "%s: cannot be written: a value in it is too long or has a line feed", path);
    }
    return disk_write(path, t->bytes, t->used, p);
}
