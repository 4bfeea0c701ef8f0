// The two tables of ISIC 2017 Part 3: the truth and predictions, one line per image with the
// columns image_id (or image), melanoma, seborrheic_keratosis, in any order. Files are hostile
// until checked; a failure names file, line and column, what was found and what was expected.
#ifndef CLNET_PROGRAM_CSV_H
#define CLNET_PROGRAM_CSV_H

#include "error.h"

#include <stddef.h>

enum { CSV_MAX_ID = 100 }; // characters of an image's id

typedef enum csv_kind {
    CSV_TRUTH, // values 0 or 1 (0.0, 1.0), at most one of them 1
    CSV_SCORES // values from 0 to 1; ".jpg" behind an id is left away
} csv_kind;

typedef struct csv_row {
    const char *id;
    double melanoma, keratosis;
    size_t line; // of the file, from 1
} csv_row;

typedef struct csv_table {
    csv_row *rows; // sorted by id, no id twice
    size_t count;
    unsigned char *text; // what the ids point into
} csv_table;

// Reads the file: commas, values in quotes or not, lines ending in LF or CRLF, empty lines skipped,
// a byte order mark of UTF-8 allowed. Refused: unknown, missing or repeated columns, no rows, a row
// with more or fewer values, an id twice (whatever its values), hexadecimal numbers, nan, inf.
// Time is that of sorting the rows. On failure *out is empty.
bool csv_read(const char *path, csv_kind kind, csv_table *out, problem *p);

// The row of this id, or NULL.
const csv_row *csv_find(const csv_table *table, const char *id);

void csv_free(csv_table *table);

// Letters, digits, '_', '-' and '.', 1 to CSV_MAX_ID of them, beginning with no '.': so an id can
// stand in a file's name without leading elsewhere.
bool csv_id_valid(const char *id);

#endif
