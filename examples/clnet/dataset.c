#define _POSIX_C_SOURCE 200809L
#include "dataset.h"

#include "csv.h"

#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

// How the distribution calls the splits.
static const struct {
    const char *split, *folder;
} splits[] = {{"training", "Training"}, {"validation", "Validation"}, {"test", "Test_v2"}};

enum { SPLITS = sizeof splits / sizeof *splits };

static int split_number(const char *split) {
    int i = 0;
    while (i < SPLITS && strcmp(splits[i].split, split) != 0) {
        i++;
    }
    return i;
}

// The text of the four parts, one after the other; NULL: no memory.
static char *join(const char *a, const char *b, const char *c, const char *d) {
    const size_t size = strlen(a) + strlen(b) + strlen(c) + strlen(d) + 1;
    char *text = malloc(size);
    if (text) {
        snprintf(text, size, "%s%s%s%s", a, b, c, d);
    }
    return text;
}

// DIR/ISIC-2017_Training + ending.
static char *split_path(const char *dir, int number, const char *ending) {
    return join(dir, "/ISIC-2017_", splits[number].folder, ending);
}

static bool exists(const char *path, bool folder) {
    struct stat info;
    return path && stat(path, &info) == 0 && (!folder || S_ISDIR(info.st_mode));
}

bool dataset_has(const char *dir, const char *split) {
    const int number = split_number(split);
    char *path = number < SPLITS ? split_path(dir, number, "_Data") : NULL;
    const bool found = exists(path, true);
    free(path);
    return found;
}

// If `name` ends in one of `endings` (any case), how long it is without; else 0.
static size_t stem_length(const char *name, const char *const *endings) {
    const size_t length = strlen(name);
    for (; *endings; endings++) {
        const size_t ending = strlen(*endings);
        if (length > ending && strcasecmp(name + length - ending, *endings) == 0) {
            return length - ending;
        }
    }
    return 0;
}

static const char *const image_endings[] = {".jpg", ".jpeg", ".png", NULL};
static const char *const superpixel_endings[] = {"_superpixels.png", NULL};
static const char *const mask_endings[] = {"_segmentation.png", NULL};

// ---- listing a folder ---------------------------------------------------------------------------

typedef struct entry {
    char *id, *path;
} entry;

typedef struct listing {
    entry *entries;
    size_t count, room;
} listing;

static void listing_free(listing *list) {
    for (size_t i = 0; i < list->count; i++) {
        free(list->entries[i].id);
        free(list->entries[i].path);
    }
    free(list->entries);
    *list = (listing){0};
}

static bool grow(listing *list) {
    if (list->count < list->room) {
        return true;
    }
    const size_t room = list->room ? 2 * list->room : 256;
    entry *entries =
        room <= SIZE_MAX / sizeof *entries ? realloc(list->entries, room * sizeof *entries) : NULL;
    if (entries) {
        list->entries = entries;
        list->room = room;
    }
    return entries != NULL;
}

static bool add_entry(listing *list, const char *folder, const char *name, size_t stem,
                      problem *p) {
    entry e = {.id = strndup(name, stem), .path = join(folder, "/", name, "")};
    if (!e.id || !e.path || !grow(list)) {
        free(e.id);
        free(e.path);
        return problem_run(p, "%s: no memory to list it", folder);
    }
    list->entries[list->count++] = e;
    if (!csv_id_valid(e.id)) {
        return problem_input(p,
                             "%s/%.200s: its id is not made of up to %d letters, digits, '_', '-' "
                             "and '.'",
                             folder, name, CSV_MAX_ID);
    }
    return true;
}

static int compare_entries(const void *a, const void *b) {
    const entry *x = a, *y = b;
    const int order = strcmp(x->id, y->id);
    return order ? order : strcmp(x->path, y->path);
}

// Lists the files of a folder that have one of the endings, sorted by id; an id twice is refused.
static bool list_folder(const char *folder, const char *const *endings, listing *list, problem *p) {
    DIR *d = opendir(folder);
    bool ok = d != NULL;
    if (!d) {
        return problem_input(p, "%s: cannot be listed: %s", folder, strerror(errno));
    }
    for (const struct dirent *f = readdir(d); f && ok; f = readdir(d)) {
        const size_t stem = stem_length(f->d_name, endings);
        if (stem > 0 && f->d_name[0] != '.' && stem_length(f->d_name, superpixel_endings) == 0) {
            ok = add_entry(list, folder, f->d_name, stem, p);
        }
    }
    closedir(d);
    if (list->count > 1) {
        qsort(list->entries, list->count, sizeof *list->entries, compare_entries);
    }
    for (size_t i = 1; i < list->count && ok; i++) {
        if (strcmp(list->entries[i - 1].id, list->entries[i].id) == 0) {
            ok = problem_input(p, "%s: %s stands there twice: as %s and as %s", folder,
                               list->entries[i].id, strrchr(list->entries[i - 1].path, '/') + 1,
                               strrchr(list->entries[i].path, '/') + 1);
        }
    }
    return ok;
}

// ---- pairing ------------------------------------------------------------------------------------

static int compare_items(const void *id, const void *item) {
    return strcmp(id, ((const dataset_item *)item)->id);
}

static dataset_item *find(const dataset *data, const char *id) {
    return data->count ? bsearch(id, data->items, data->count, sizeof *data->items, compare_items)
                       : NULL;
}

const dataset_item *dataset_find(const dataset *data, const char *id) { return find(data, id); }

// What a folder holds instead of the split, for the message that it is not there.
static bool report_absent(const char *dir, const char *folder, problem *p) {
    char present[64] = "";
    if (!exists(dir, true)) {
        return problem_input(p, "%s: %s, expected a folder with the ISIC 2017 data set", dir,
                             exists(dir, false) ? "is not a folder" : "does not exist");
    }
    for (int i = 0; i < SPLITS; i++) {
        if (dataset_has(dir, splits[i].split)) {
            const size_t used = strlen(present);
            snprintf(present + used, sizeof present - used, "%s%s", used ? ", " : "",
                     splits[i].split);
        }
    }
    if (present[0]) {
        return problem_input(p, "%s: this split is not there, the data set has: %s", folder,
                             present);
    }
    return problem_input(p,
                         "%s: is not a data set in the ISIC 2017 layout: the folder %s is not "
                         "there",
                         dir, strrchr(folder, '/') + 1);
}

static bool read_images(const char *dir, int number, dataset *data, problem *p) {
    listing list = {0};
    char *folder = split_path(dir, number, "_Data");
    bool ok = folder != NULL || problem_run(p, "%s: no memory to list it", dir);
    if (ok && !exists(folder, true)) {
        ok = report_absent(dir, folder, p);
    }
    ok = ok && list_folder(folder, image_endings, &list, p);
    if (ok && list.count == 0) {
        ok = problem_input(p, "%s: holds no image (.jpg, .jpeg, .png)", folder);
    }
    if (ok && !(data->items = calloc(list.count, sizeof *data->items))) {
        ok = problem_run(p, "%s: no memory to list it", folder);
    }
    for (; ok && data->count < list.count; data->count++) {
        entry *e = &list.entries[data->count];
        data->items[data->count] =
            (dataset_item){.id = e->id, .image = e->path, .label = DATASET_NO_LABEL};
        *e = (entry){0}; // now the item's
    }
    listing_free(&list);
    free(folder);
    return ok;
}

// The folder of masks may be absent: then no item has one.
static bool read_masks(const char *dir, int number, dataset *data, problem *p) {
    listing list = {0};
    char *folder = split_path(dir, number, "_Part1_GroundTruth");
    bool ok = folder != NULL || problem_run(p, "%s: no memory to list it", dir);
    if (ok && exists(folder, false)) {
        ok = list_folder(folder, mask_endings, &list, p);
    }
    for (size_t i = 0; ok && i < list.count; i++) {
        dataset_item *item = find(data, list.entries[i].id);
        if (!item) {
            ok = problem_input(p, "%s: there is no image %s in ISIC-2017_%s_Data",
                               list.entries[i].path, list.entries[i].id, splits[number].folder);
            break;
        }
        item->mask = list.entries[i].path;
        list.entries[i].path = NULL;
        data->masks++;
    }
    listing_free(&list);
    free(folder);
    return ok;
}

static int label_of(const csv_row *row) {
    return row->melanoma == 1    ? DATASET_MELANOMA
           : row->keratosis == 1 ? DATASET_KERATOSIS
                                 : DATASET_NEVUS;
}

// The table of labels may be absent: then no item has one.
static bool read_labels(const char *dir, int number, dataset *data, problem *p) {
    csv_table table = {0};
    char *path = split_path(dir, number, "_Part3_GroundTruth.csv");
    bool ok = path != NULL || problem_run(p, "%s: no memory to read it", dir);
    if (ok && exists(path, false)) {
        ok = csv_read(path, CSV_TRUTH, &table, p);
    }
    for (size_t i = 0; ok && i < table.count; i++) {
        dataset_item *item = find(data, table.rows[i].id);
        if (!item) {
            ok = problem_input(p, "%s: line %zu: there is no image %s in ISIC-2017_%s_Data", path,
                               table.rows[i].line, table.rows[i].id, splits[number].folder);
            break;
        }
        item->label = label_of(&table.rows[i]);
        data->classes[item->label]++;
    }
    csv_free(&table);
    free(path);
    return ok;
}

bool dataset_open(const char *dir, const char *split, dataset *out, problem *p) {
    const int number = split_number(split);
    *out = (dataset){0};
    if (number == SPLITS) {
        return problem_input(p, "split \"%.40s\" is not known: training, validation or test",
                             split);
    }
    out->split = splits[number].split;
    const bool ok = read_images(dir, number, out, p) && read_masks(dir, number, out, p) &&
                    read_labels(dir, number, out, p);
    if (!ok) {
        dataset_close(out);
    }
    return ok;
}

uint64_t dataset_hash(const dataset *data) {
    uint64_t hash = 14695981039346656037u; // FNV-1a
    for (size_t i = 0; i < data->count; i++) {
        const dataset_item *item = &data->items[i];
        for (const char *at = item->id; *at; at++) {
            hash = (hash ^ (unsigned char)*at) * 1099511628211u;
        }
        hash = (hash ^ (uint64_t)(item->label + 2) ^ (item->mask ? 64u : 0u)) * 1099511628211u;
    }
    return hash;
}

void dataset_close(dataset *data) {
    for (size_t i = 0; i < data->count; i++) {
        free(data->items[i].id);
        free(data->items[i].image);
        free(data->items[i].mask);
    }
    free(data->items);
    *data = (dataset){0};
}
