// The same work for many items, on several threads, with the failures of a room: one sentence, and
// the same one whatever the number of threads.
#ifndef CLNET_PROGRAM_PARALLEL_H
#define CLNET_PROGRAM_PARALLEL_H

#include "error.h"

#include <stddef.h>

// Calls work(user, i, ..) for i = 0 .. count - 1, in any order and at the same time. Once an item
// has failed those behind it may be left out; the failure of the lowest index is passed on.
bool parallel_for(size_t count, int threads, bool (*work)(void *user, size_t index, problem *p),
                  void *user, problem *p);

#endif
