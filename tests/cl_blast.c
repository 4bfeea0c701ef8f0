// A libclblast.so.1 that multiplies on the host, and can be wrong in the ways in which a library of
// matrix products is:
//
//     cc -std=c99 -shared -fPIC tests/cl_blast.c -o build/shim/libclblast.so.1 -ldl
//     LD_LIBRARY_PATH=build/shim CL_BLAST=wrong build/test_cl
//
// CL_BLAST: "right"; "wrong": one number of every product is off by one; "lazy": results are not
// written; "wide": one number too many is written; "fails": ends with CLBlast's code -1011;
// "late": the same from the twentieth product on.
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int32_t copy_function(void *, void *, uint32_t, size_t, size_t, void *, uint32_t,
                              void *const *, void **);

static copy_function *opencl(const char *name) {
    void *symbol = dlsym(dlopen("libOpenCL.so.1", RTLD_NOW), name);
    copy_function *function;
    memcpy(&function, &symbol, sizeof function);
    return function;
}

typedef struct matrix {
    float *numbers;
    size_t down, right; // numbers from row to row, and from column to column
} matrix;

// The numbers of a matrix of `rows` rows of `columns` numbers as they lie in the buffer, one after
// the last.
static matrix fetch(void *queue, void *buffer, size_t at, size_t stride, size_t rows,
                    size_t columns, int transposed) {
    const size_t count = (rows - 1) * stride + columns;
    float *numbers = calloc(count + 1, sizeof *numbers);
    if (numbers) {
        opencl("clEnqueueReadBuffer")(queue, buffer, 1, at * sizeof *numbers,
                                      count * sizeof *numbers, numbers, 0, NULL, NULL);
    }
    return (matrix){numbers, transposed ? 1 : stride, transposed ? stride : 1};
}

static void multiply(matrix c, matrix a, matrix b, size_t m, size_t n, size_t k, float beta) {
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            float *to = &c.numbers[i * c.down + j];
            float sum = beta != 0 ? beta * *to : 0;
            for (size_t t = 0; t < k; t++) {
                sum += a.numbers[i * a.down + t * a.right] * b.numbers[t * b.down + j * b.right];
            }
            *to = sum;
        }
    }
}

int32_t CLBlastSgemm(int32_t layout, int32_t at, int32_t bt, size_t m, size_t n, size_t k,
                     float alpha, void *a, size_t a_first, size_t a_stride, void *b, size_t b_first,
                     size_t b_stride, float beta, void *c, size_t c_first, size_t c_stride,
                     void **queue, void **event);
int32_t CLBlastSgemm(int32_t layout, int32_t at, int32_t bt, size_t m, size_t n, size_t k,
                     float alpha, void *a, size_t a_first, size_t a_stride, void *b, size_t b_first,
                     size_t b_stride, float beta, void *c, size_t c_first, size_t c_stride,
                     void **queue, void **event) {
    enum { TRANSPOSED = 112, INSUFFICIENT_MEMORY = -1011, OUT_OF_HOST_MEMORY = -6 };
    const char *kind = getenv("CL_BLAST") ? getenv("CL_BLAST") : "right";
    (void)layout, (void)alpha;
    if (event) {
        *event = NULL;
    }
    static int products;
    products++;
    if (!strcmp(kind, "fails") || (!strcmp(kind, "late") && products >= 20)) {
        return INSUFFICIENT_MEMORY;
    }
    const int ta = at == TRANSPOSED, tb = bt == TRANSPOSED;
    const matrix x = fetch(*queue, a, a_first, a_stride, ta ? k : m, ta ? m : k, ta);
    const matrix w = fetch(*queue, b, b_first, b_stride, tb ? n : k, tb ? k : n, tb);
    const matrix y = fetch(*queue, c, c_first, c_stride, m, n, 0);
    int32_t code = x.numbers && w.numbers && y.numbers ? 0 : OUT_OF_HOST_MEMORY;
    if (code == 0 && strcmp(kind, "lazy") != 0) {
        const size_t count = (m - 1) * c_stride + n + !strcmp(kind, "wide");
        multiply(y, x, w, m, n, k, beta);
        y.numbers[(m - 1) * c_stride + n - 1] += !strcmp(kind, "wrong");
        code = opencl("clEnqueueWriteBuffer")(*queue, c, 1, c_first * sizeof(float),
                                              count * sizeof(float), y.numbers, 0, NULL, event);
    }
    free(x.numbers);
    free(w.numbers);
    free(y.numbers);
    return code;
}

int32_t CLBlastClearCache(void);
int32_t CLBlastClearCache(void) { return 0; }
