#define _POSIX_C_SOURCE 200809L
#include "imagelist.h"

#include "disk.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

static bool ends_with(const char *text, const char *end) {
    const size_t length = strlen(text), tail = strlen(end);
    return length > tail && !strcasecmp(text + length - tail, end);
}

static bool is_image(const char *name) {
    return name[0] != '.' && !ends_with(name, "_segmentation.png") &&
           !ends_with(name, "_superpixels.png") &&
           (ends_with(name, ".jpg") || ends_with(name, ".jpeg") || ends_with(name, ".png"));
}

// The file's name without folder and extension, in new memory.
static char *name_of(const char *path) {
    const char *slash = strrchr(path, '/');
    const char *file = slash ? slash + 1 : path;
    const char *dot = strrchr(file, '.');
    const size_t length = dot && dot > file ? (size_t)(dot - file) : strlen(file);
    char *name = malloc(length + 1);
    if (name) {
        memcpy(name, file, length);
        name[length] = 0;
    }
    return name;
}

static bool add(imagelist *list, const char *path, problem *p) {
    imagelist_item *items = realloc(list->items, (list->count + 1) * sizeof *items);
    if (items) {
        list->items = items;
        items[list->count] =
            (imagelist_item){.path = malloc(strlen(path) + 1), .name = name_of(path)};
        list->count++;
    }
    if (!items || !items[list->count - 1].path || !items[list->count - 1].name) {
        return problem_run(p, "%s: no memory to list it", path);
    }
    strcpy(items[list->count - 1].path, path);
    return true;
}

static int by_path(const void *a, const void *b) {
    return strcmp(((const imagelist_item *)a)->path, ((const imagelist_item *)b)->path);
}

static bool add_folder(imagelist *list, const char *folder, problem *p) {
    DIR *dir = opendir(folder);
    if (!dir) {
        return problem_input(p, "%s: cannot be listed: %s", folder, strerror(errno));
    }
    const size_t first = list->count;
    bool ok = true;
    for (const struct dirent *entry; ok && (entry = readdir(dir));) {
        char path[DISK_PATH];
        if (is_image(entry->d_name)) {
            ok = disk_join(path, folder, entry->d_name, p) && add(list, path, p);
        }
    }
    closedir(dir);
    if (ok && list->count == first) {
        return problem_input(p, "%s: holds no image (.jpg, .jpeg, .png)", folder);
    }
    if (ok) {
        qsort(list->items + first, list->count - first, sizeof *list->items, by_path);
    }
    return ok;
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(const imagelist_item *const *)a)->name,
                  (*(const imagelist_item *const *)b)->name);
}

static bool names_differ(const imagelist *list, problem *p) {
    const imagelist_item **sorted = malloc(list->count * sizeof *sorted);
    if (!sorted) {
        return problem_run(p, "no memory for a list of %zu images", list->count);
    }
    for (size_t i = 0; i < list->count; i++) {
        sorted[i] = &list->items[i];
    }
    qsort(sorted, list->count, sizeof *sorted, by_name);
    bool ok = true;
    for (size_t i = 1; ok && i < list->count; i++) {
        if (!by_name(&sorted[i - 1], &sorted[i])) {
            ok = problem_input(p, "%s and %s have the same name, their results would be one file",
                               sorted[i - 1]->path, sorted[i]->path);
        }
    }
    free(sorted);
    return ok;
}

bool imagelist_make(const char *const *paths, size_t count, imagelist *out, problem *p) {
    *out = (imagelist){0};
    bool ok = count > 0 || problem_input(p, "no image is named");
    for (size_t i = 0; ok && i < count; i++) {
        struct stat s;
        const bool folder = stat(paths[i], &s) == 0 && S_ISDIR(s.st_mode);
        ok = folder ? add_folder(out, paths[i], p) : add(out, paths[i], p);
    }
    ok = ok && names_differ(out, p);
    if (!ok) {
        imagelist_free(out);
    }
    return ok;
}

void imagelist_free(imagelist *list) {
    for (size_t i = 0; i < list->count; i++) {
        free(list->items[i].path);
        free(list->items[i].name);
    }
    free(list->items);
    *list = (imagelist){0};
}
