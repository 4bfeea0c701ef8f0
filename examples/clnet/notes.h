// Small text files of lines "name = value": the settings of a job, the figures of a network. What is
// written is read back as the same bits. Files are hostile until checked.
#ifndef CLNET_PROGRAM_NOTES_H
#define CLNET_PROGRAM_NOTES_H

#include "error.h"

#include <stddef.h>

enum { NOTES_MAX = 128 };

typedef struct notes {
    char *text; // what names and values point into
    const char *names[NOTES_MAX], *values[NOTES_MAX];
    size_t count;
} notes;

// Reads a file. Refused: a line without " = ", a name twice, more than NOTES_MAX lines. On failure
// *out is empty.
bool notes_read(const char *path, notes *out, problem *p);

// The value of a name, NULL if there is none.
const char *notes_find(const notes *n, const char *name);

void notes_free(notes *n);

// Writing: lines are put together, then notes_write leaves the file whole or not at all. A value
// with a line feed cannot be read back and is refused by notes_write.
typedef struct notes_text {
    char bytes[32768];
    size_t used;
    bool failed; // too long, or a line feed in a value
} notes_text;

void notes_add(notes_text *t, const char *name, const char *value);
void notes_add_number(notes_text *t, const char *name, double value); // 17 digits, or nan
bool notes_write(const notes_text *t, const char *path, problem *p);

#endif
