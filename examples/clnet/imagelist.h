// The images that a command line names: files, and folders, which stand for the images in them.
#ifndef CLNET_PROGRAM_IMAGELIST_H
#define CLNET_PROGRAM_IMAGELIST_H

#include "error.h"

#include <stddef.h>

typedef struct imagelist_item {
    char *path;
    char *name; // of the file, without folder and extension: what the files for it begin with
} imagelist_item;

typedef struct imagelist {
    imagelist_item *items; // in the order of the command line; those of a folder by name
    size_t count;
} imagelist;

// Lists them. Files are not opened: whether they are images is seen when they are read. In a
// folder, .jpg, .jpeg and .png count, without masks (_segmentation.png) and _superpixels.png.
// Refused: a folder without images, and two images of the same name, whose results would be one
// file. On failure *out is empty.
bool imagelist_make(const char *const *paths, size_t count, imagelist *out, problem *p);

void imagelist_free(imagelist *list);

#endif
