// clnet score: the metrics of masks and scores that are already there (ISIC submission format).
#define _POSIX_C_SOURCE 200809L
#include "commands.h"
#include "csv.h"
#include "dataset.h"
#include "disk.h"
#include "evaluation.h"
#include "image.h"
#include "options.h"
#include "parallel.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SPLITS = 3 };

typedef struct score {
    const char *truth_path, *pred, *csv, *out;
    device_options device;
    int split; // -1: found by the ids
    clnet_context *ctx;
    dataset truth;
    char folder[DISK_PATH]; // of the masks
    char **ids;             // of the masks there are, sorted
    size_t id_count;
    char csv_path[DISK_PATH];
    csv_table table;                          // no rows: there are no scores
    clnet_segmentation_metrics *segmentation; // of each image with a truth, then behind each other
    evaluation figures;
} score;

static const char *const split_choices[] = {"training", "validation", "test", NULL};

// ---- what is there ------------------------------------------------------------------------------

// The id of a mask's file name in new memory; NULL: it is no such name.
static char *mask_id(const char *name) {
    static const char *const ends[2] = {"_segmentation.png", "_Segmentation.png"};
    const size_t length = strlen(name);
    for (int i = 0; i < 2; i++) {
        const size_t tail = strlen(ends[i]);
        if (length > tail && !strcmp(name + length - tail, ends[i])) {
            char *id = strdup(name);
            if (id) {
                id[length - tail] = 0;
            }
            return id;
        }
    }
    return NULL;
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

// The masks of a folder; there may be none.
static bool list_masks(score *s, const char *folder, problem *p) {
    DIR *dir = opendir(folder);
    if (!dir) {
        return problem_input(p, "%s: cannot be listed: %s", folder, strerror(errno));
    }
    bool ok = true;
    for (const struct dirent *entry; ok && (entry = readdir(dir));) {
        char *id = mask_id(entry->d_name);
        char **ids = id ? realloc(s->ids, (s->id_count + 1) * sizeof *ids) : NULL;
        if (ids) {
            s->ids = ids;
            ids[s->id_count++] = id;
        } else if (id) {
            free(id);
            ok = problem_run(p, "%s: no memory to list it", folder);
        }
    }
    closedir(dir);
    if (s->id_count) {
        qsort(s->ids, s->id_count, sizeof *s->ids, by_text);
    }
    snprintf(s->folder, sizeof s->folder, "%s", folder);
    return ok;
}

// Masks stand in the folder itself, or in masks/ as `clnet evaluate` leaves them.
static bool find_masks(score *s, problem *p) {
    char masks[DISK_PATH];
    if (!list_masks(s, s->pred, p) || !disk_join(masks, s->pred, "masks", p)) {
        return false;
    }
    return s->id_count > 0 || !disk_exists(masks) || list_masks(s, masks, p);
}

static bool is_csv(const char *name) {
    const size_t length = strlen(name);
    return length > 4 && name[0] != '.' && !strcmp(name + length - 4, ".csv");
}

// The first file, by name, that reads as a table of scores. Others are no business of ours.
static bool search_scores(score *s, problem *p) {
    struct dirent **entries;
    const int count = scandir(s->pred, &entries, NULL, alphasort);
    if (count < 0) {
        return problem_input(p, "%s: cannot be listed: %s", s->pred, strerror(errno));
    }
    for (int i = 0; i < count; i++) {
        problem other = {0};
        if (is_csv(entries[i]->d_name) && s->table.count == 0 &&
            disk_join(s->csv_path, s->pred, entries[i]->d_name, &other)) {
            csv_read(s->csv_path, CSV_SCORES, &s->table, &other);
        }
        free(entries[i]);
    }
    free(entries);
    return true;
}

static bool find_scores(score *s, problem *p) {
    if (s->csv) {
        snprintf(s->csv_path, sizeof s->csv_path, "%s", s->csv);
        return csv_read(s->csv, CSV_SCORES, &s->table, p);
    }
    if (!disk_join(s->csv_path, s->pred, "predictions.csv", p)) {
        return false;
    }
    return disk_exists(s->csv_path) ? csv_read(s->csv_path, CSV_SCORES, &s->table, p)
                                    : search_scores(s, p);
}

// ---- the split ----------------------------------------------------------------------------------

// The first prediction whose id the split does not have; NULL: it has all.
static const char *stranger(const score *s, const dataset *data) {
    for (size_t i = 0; i < s->id_count; i++) {
        if (!dataset_find(data, s->ids[i])) {
            return s->ids[i];
        }
    }
    for (size_t i = 0; i < s->table.count; i++) {
        if (!dataset_find(data, s->table.rows[i].id)) {
            return s->table.rows[i].id;
        }
    }
    return NULL;
}

static bool open_split(score *s, const char *split, problem *p) {
    if (!dataset_open(s->truth_path, split, &s->truth, p)) {
        return false;
    }
    const char *id = stranger(s, &s->truth);
    return !id ||
           problem_input(p, "%s: has a prediction for %s, which is not in the %s split of %s",
                         s->pred, id, split, s->truth_path);
}

// The split that has all ids of the predictions. Where none has, the message is about the split
// that has the first of them.
static bool find_split(score *s, problem *p) {
    const char *first = s->id_count ? s->ids[0] : s->table.rows[0].id;
    for (int i = 0; i < SPLITS; i++) {
        if (!dataset_has(s->truth_path, split_choices[i])) {
            continue;
        }
        if (!dataset_open(s->truth_path, split_choices[i], &s->truth, p)) {
            return false;
        }
        const bool found = dataset_find(&s->truth, first) != NULL;
        dataset_close(&s->truth);
        if (found) {
            return open_split(s, split_choices[i], p);
        }
    }
    return problem_input(p, "%s: has a prediction for %s, which is in no split of %s", s->pred,
                         first, s->truth_path);
}

// ---- measuring ----------------------------------------------------------------------------------

// Says which of the images are missing: the first by name, and how many.
static bool none_missing(const score *s, bool masks, problem *p) {
    const char *first = NULL;
    size_t missing = 0, needed = 0;
    for (size_t i = 0; i < s->truth.count; i++) {
        const dataset_item *item = &s->truth.items[i];
        if (masks ? !item->mask : item->label == DATASET_NO_LABEL) {
            continue;
        }
        char *const *id =
            masks ? bsearch(&item->id, s->ids, s->id_count, sizeof *s->ids, by_text) : NULL;
        needed++;
        if (masks ? !id : !csv_find(&s->table, item->id)) {
            first = first ? first : item->id;
            missing++;
        }
    }
    return missing == 0 || problem_input(p, "%s: has no %s for %s (missing are %zu of %zu)",
                                         masks ? s->folder : s->csv_path, masks ? "mask" : "row",
                                         first, missing, needed);
}

static bool compare(score *s, size_t i, const image *truth, problem *p) {
    const char *id = s->truth.items[i].id;
    char name[CSV_MAX_ID + 32], path[DISK_PATH];
    image mask;
    snprintf(name, sizeof name, "%s_segmentation.png", id);
    if (!disk_join(path, s->folder, name, p)) {
        return false;
    }
    if (!disk_exists(path)) {
        snprintf(name, sizeof name, "%s_Segmentation.png", id);
        if (!disk_join(path, s->folder, name, p)) {
            return false;
        }
    }
    if (!image_load(path, IMAGE_MASK, &mask, p)) {
        return false;
    }
    const bool ok = mask.height == truth->height && mask.width == truth->width;
    if (ok) {
        clnet_segmentation_score(mask.bytes, truth->bytes, (size_t)mask.height * (size_t)mask.width,
                                 &s->segmentation[i]);
    } else {
        problem_input(p, "%s: is %d x %d pixels, its truth %s is %d x %d", path, mask.width,
                      mask.height, s->truth.items[i].mask, truth->width, truth->height);
    }
    image_free(&mask);
    return ok;
}

static bool compare_image(void *user, size_t i, problem *p) {
    score *s = user;
    image truth;
    if (!s->truth.items[i].mask) {
        return true;
    }
    if (command_signal) {
        return problem_run(p, "stopped");
    }
    if (!image_load(s->truth.items[i].mask, IMAGE_MASK, &truth, p)) {
        return false;
    }
    const bool ok = compare(s, i, &truth, p);
    image_free(&truth);
    return ok;
}

static bool score_masks(score *s, problem *p) {
    s->segmentation = calloc(s->truth.count, sizeof *s->segmentation);
    if (!s->segmentation) {
        return problem_run(p, "no memory for the figures of %zu images", s->truth.count);
    }
    if (!none_missing(s, true, p) ||
        !parallel_for(s->truth.count, clnet_context_threads(s->ctx), compare_image, s, p)) {
        return false;
    }
    size_t *count = &s->figures.masks;
    for (size_t i = 0; i < s->truth.count; i++) {
        if (s->truth.items[i].mask) {
            s->segmentation[(*count)++] = s->segmentation[i];
        }
    }
    clnet_segmentation_mean(s->segmentation, *count, &s->figures.segmentation);
    return true;
}

static bool score_classes(score *s, problem *p) {
    s->figures.scores = calloc(s->truth.count, 2 * sizeof(double));
    if (!s->figures.scores) {
        return problem_run(p, "no memory for the scores of %zu images", s->truth.count);
    }
    if (!none_missing(s, false, p)) {
        return false;
    }
    for (size_t i = 0; i < s->truth.count; i++) {
        const csv_row *row = csv_find(&s->table, s->truth.items[i].id);
        if (row) {
            s->figures.scores[2 * i + DATASET_MELANOMA] = row->melanoma;
            s->figures.scores[2 * i + DATASET_KERATOSIS] = row->keratosis;
        }
    }
    return evaluation_classify(&s->figures, &s->truth, 2, s->ctx, p);
}

// ---- the command --------------------------------------------------------------------------------

static bool execute(score *s, problem *p) {
    char path[DISK_PATH];
    s->ctx = device_open(&s->device, p);
    if (!s->ctx || !find_masks(s, p) || !find_scores(s, p)) {
        return false;
    }
    if (s->id_count == 0 && s->table.count == 0) {
        return problem_input(p, "%s: holds neither masks (ID_segmentation.png) nor predictions.csv",
                             s->pred);
    }
    if (!(s->split >= 0 ? open_split(s, split_choices[s->split], p) : find_split(s, p)) ||
        (s->id_count && !score_masks(s, p)) || (s->table.count && !score_classes(s, p))) {
        return false;
    }
    printf("%s on the %s split of %s\n\n", s->pred, s->truth.split, s->truth_path);
    evaluation_print(&s->figures);
    return !s->out || (disk_make_folder(s->out, p) && disk_join(path, s->out, "metrics.json", p) &&
                       evaluation_write_json(&s->figures, path, p));
}

static void clean_up(score *s) {
    for (size_t i = 0; i < s->id_count; i++) {
        free(s->ids[i]);
    }
    free(s->ids);
    free(s->segmentation);
    csv_free(&s->table);
    evaluation_free(&s->figures);
    dataset_close(&s->truth);
    device_close(s->ctx);
}

static bool check(const score *s, problem *p) {
    if (!s->truth_path || !s->pred) {
        return problem_input(p, "%s is missing", s->truth_path ? "--pred" : "--truth");
    }
    return true;
}

bool command_score(int argc, char **argv, bool usage, problem *p) {
    score s = {.split = -1, .figures = evaluation_empty()};
    option options[] = {
        OPTION(TEXT, "--truth", &s.truth_path,
               "folder of the data set, ISIC 2017 layout (required)"),
        OPTION(TEXT, "--pred", &s.pred,
               "folder of ID_segmentation.png and predictions.csv (required)"),
        OPTION(TEXT, "--csv", &s.csv,
               "the scores (default: predictions.csv, else the first that fits)"),
        OPTION(TEXT, "--out", &s.out, "folder for metrics.json"),
        OPTION_OF(split_choices, "--split", &s.split, "which images (default: found by the ids)"),
        OPTION_RANGE(INT, "--threads", &s.device.threads, 1, 1024,
                     "threads (default: all processors)"),
    };
    const size_t count = sizeof options / sizeof *options;
    if (usage) {
        printf("usage: clnet score --truth DATA --pred DIR [--out DIR] [options]\n\n");
        options_print(options, count);
        return true;
    }
    size_t paths;
    bool ok = options_parse(argc, argv, options, count, NULL, &paths, 0, p) && check(&s, p) &&
              execute(&s, p);
    if (!ok && command_signal) {
        fprintf(stderr, "clnet score: stopped\n");
        ok = true;
    }
    clean_up(&s);
    return ok;
}
