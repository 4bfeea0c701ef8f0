// The programs' own table of file functions: as the C library's, and what is written is on the disk
// (fsync of the file, and of its folder after a rename) before anything relies on it.
#ifndef CLNET_PROGRAM_DISK_H
#define CLNET_PROGRAM_DISK_H

#include "clnet.h"
#include "error.h"

clnet_files disk_files(void);

// Makes a folder and those above it. An existing one is fine.
bool disk_make_folder(const char *path, problem *p);

// Writes a small file whole: to a file beside it, synced, renamed into place.
bool disk_write(const char *path, const void *data, size_t bytes, problem *p);

// folder + "/" + name into `path`; false: too long.
enum { DISK_PATH = 4096 };
bool disk_join(char path[DISK_PATH], const char *folder, const char *name, problem *p);

bool disk_exists(const char *path);

#endif
