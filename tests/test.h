// The whole of the test framework: counts checks, prints the ones that fail, and a closing line.
#ifndef CLNET_TEST_H
#define CLNET_TEST_H

#include <stdio.h>

static int test_passed, test_failed, test_skipped;

// Checks may be made by several threads at a time.
#define TEST_COUNT(counter) __atomic_fetch_add(&(counter), 1, __ATOMIC_RELAXED)

// CHECK(condition, "format", ...): the text says what was found when the condition is false.
#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (condition) {                                                                           \
            TEST_COUNT(test_passed);                                                               \
        } else {                                                                                   \
            TEST_COUNT(test_failed);                                                               \
            printf("FAIL %s:%d: %s: ", __FILE__, __LINE__, #condition);                            \
            printf(__VA_ARGS__);                                                                   \
            printf("\n");                                                                          \
        }                                                                                          \
    } while (0)

// A case that this machine cannot run: counted and said, never silent.
#define SKIP(...)                                                                                  \
    do {                                                                                           \
        TEST_COUNT(test_skipped);                                                                  \
        printf("SKIP ");                                                                           \
        printf(__VA_ARGS__);                                                                       \
        printf("\n");                                                                              \
    } while (0)

// The last line of every test program; its value is the exit status.
static int test_close(void) {
    printf("%d passed, %d failed, %d skipped\n", test_passed, test_failed, test_skipped);
    return test_failed != 0;
}

#endif
