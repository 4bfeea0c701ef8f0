#include "parallel.h"

typedef struct failure {
    size_t index; // the lowest that failed; the count: none
    problem reason;
} failure;

static size_t failed_at(const failure *f) {
    size_t index = 0;
#ifdef _OPENMP
#pragma omp critical(parallel_failure)
#endif
    index = f->index;
    return index;
}

static void record(failure *f, size_t index, const problem *reason) {
#ifdef _OPENMP
#pragma omp critical(parallel_failure)
#endif
    if (index < f->index) {
        *f = (failure){index, *reason};
    }
}

// The schedule is dynamic with chunks of one, which hands indices out in order: whatever stands
// before an item that fails has begun by then. So the lowest failure is the same for any number of
// threads.
bool parallel_for(size_t count, int threads, bool (*work)(void *user, size_t index, problem *p),
                  void *user, problem *p) {
    failure first = {.index = count};
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
#else
    (void)threads;
#endif
    for (size_t i = 0; i < count; i++) {
        problem reason = {0};
        if (i < failed_at(&first) && !work(user, i, &reason)) {
            record(&first, i, &reason);
        }
    }
    if (first.index < count) {
        *p = first.reason;
    }
    return first.index == count;
}
