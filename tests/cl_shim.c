// A libOpenCL.so.1 that stands before the real one and lets tests make calls fail:
//
//     cc -std=c99 -shared -fPIC tests/cl_shim.c -o build/shim/libOpenCL.so.1 -ldl
//     LD_LIBRARY_PATH=build/shim build/test_cl
//
// It passes every call that clnet_cl.h uses on to the library that CL_SHIM_REAL names (default:
// /usr/lib/x86_64-linux-gnu/libOpenCL.so.1). cl_shim_fail(n) makes the n-th call from then on fail, as
// CL_OUT_OF_RESOURCES; cl_shim_calls() counts calls, cl_shim_name() tells which failed, and
// cl_shim_alive() counts the objects that were made and not released.
//
// The environment makes the device another one, and tells what ran:
//
//     CL_SHIM_NO_DEVICE=1    its platforms are without devices
//     CL_SHIM_FAIL=N         the N-th call of the program fails
//     CL_SHIM_TYPE=N          the device's type: 2 a CPU, 4 a GPU, 8 an accelerator
//     CL_SHIM_GROUP=N         work-items that a group may have
//     CL_SHIM_KERNEL_GROUP=N  the same, but only the kernels tell, not the device
//     CL_SHIM_LOCAL=N         bytes of local memory
//     CL_SHIM_LAUNCHES=FILE   the name of every kernel that is launched is appended to FILE
//     CL_SHIM_WHOLE_WRITES=1  writing or filling a part of a buffer becomes a write of the whole buffer:
//                             Oclgrind 21.10 forgets what was initialised before when a part is written
//
// A launch with a larger group or with more local memory than that fails as it would on the device.
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    OUT_OF_RESOURCES = -5,
    INVALID_WORK_GROUP_SIZE = -54,
    DEVICE_TYPE = 0x1000,
    DEVICE_GROUP = 0x1004,
    DEVICE_LOCAL = 0x1023,
    QUEUE_DEVICE = 0x1091,
    KERNEL_NAME = 0x1190,
    KERNEL_GROUP = 0x11B0,
    KERNEL_LOCAL = 0x11B2
};

static long calls, failing = -1, alive;
static char failed[64];

void cl_shim_fail(long n) {
    calls = 0;
    failing = n;
    failed[0] = 0;
}
long cl_shim_calls(void) { return calls; }
long cl_shim_alive(void) { return alive; }
const char *cl_shim_name(void) { return failed; }

// The real function of that name.
static void real(const char *name, void *pointer) {
    static void *library;
    const char *path = getenv("CL_SHIM_REAL");
    if (!library) {
        library = dlopen(path ? path : "/usr/lib/x86_64-linux-gnu/libOpenCL.so.1", RTLD_NOW);
    }
    void *symbol = library ? dlsym(library, name) : NULL;
    if (!symbol) {
        fprintf(stderr, "cl_shim: %s: %s\n", name, dlerror());
        exit(3);
    }
    memcpy(pointer, &symbol, sizeof symbol);
}

// Counts a call; true: it has to fail.
static int fails(const char *name) {
    const char *wanted = getenv("CL_SHIM_FAIL");
    const int yes = ++calls == (wanted ? atol(wanted) : failing);
    if (yes) {
        snprintf(failed, sizeof failed, "%s", name);
    }
    return yes;
}

// int32_t name(parameters): passes on, or fails.
#define PASS(name, parameters, arguments)                                                          \
    int32_t name parameters;                                                                       \
    int32_t name parameters {                                                                      \
        int32_t(*function) parameters;                                                             \
        real(#name, &function);                                                                    \
        return fails(#name) ? OUT_OF_RESOURCES : function arguments;                               \
    }

// void *name(parameters), whose last parameter is the code: makes an object.
#define MAKE(name, parameters, arguments)                                                          \
    void *name parameters;                                                                         \
    void *name parameters {                                                                        \
        void *(*function)parameters;                                                               \
        real(#name, &function);                                                                    \
        if (fails(#name)) {                                                                        \
            *code = OUT_OF_RESOURCES;                                                              \
            return NULL;                                                                           \
        }                                                                                          \
        void *object = function arguments;                                                         \
        alive += object != NULL;                                                                   \
        return object;                                                                             \
    }

// Releases the object in any case, so that a failure that is reported is no leak.
#define RELEASE(name)                                                                              \
    int32_t name(void *object);                                                                    \
    int32_t name(void *object) {                                                                   \
        int32_t (*function)(void *);                                                               \
        real(#name, &function);                                                                    \
        const int32_t code = function(object);                                                     \
        alive--;                                                                                   \
        return fails(#name) ? OUT_OF_RESOURCES : code;                                             \
    }

PASS(clGetPlatformIDs, (uint32_t n, void **p, uint32_t *count), (n, p, count))
PASS(clGetPlatformInfo, (void *p, uint32_t what, size_t n, void *v, size_t *size),
     (p, what, n, v, size))
PASS(clBuildProgram,
     (void *p, uint32_t n, void *const *d, const char *o, void (*f)(void *, void *), void *u),
     (p, n, d, o, f, u))
PASS(clGetProgramBuildInfo, (void *p, void *d, uint32_t what, size_t n, void *v, size_t *size),
     (p, d, what, n, v, size))
PASS(clSetKernelArg, (void *k, uint32_t i, size_t n, const void *v), (k, i, n, v))
PASS(clEnqueueReadBuffer,
     (void *q, void *b, uint32_t wait, size_t at, size_t n, void *to, uint32_t k, void *const *l,
      void **e),
     (q, b, wait, at, n, to, k, l, e))
PASS(clFinish, (void *q), (q))
PASS(clWaitForEvents, (uint32_t n, void *const *e), (n, e))
PASS(clGetEventProfilingInfo, (void *e, uint32_t what, size_t n, void *v, size_t *size),
     (e, what, n, v, size))
MAKE(clCreateContext,
     (const intptr_t *p, uint32_t n, void *const *d,
      void (*f)(const char *, const void *, size_t, void *), void *u, int32_t *code),
     (p, n, d, f, u, code))
MAKE(clCreateCommandQueue, (void *c, void *d, uint64_t p, int32_t *code), (c, d, p, code))
MAKE(clCreateProgramWithSource,
     (void *c, uint32_t n, const char **s, const size_t *l, int32_t *code), (c, n, s, l, code))
MAKE(clCreateKernel, (void *p, const char *name, int32_t *code), (p, name, code))
MAKE(clCreateBuffer, (void *c, uint64_t flags, size_t n, void *host, int32_t *code),
     (c, flags, n, host, code))
RELEASE(clReleaseContext)
RELEASE(clReleaseCommandQueue)
RELEASE(clReleaseProgram)
RELEASE(clReleaseKernel)
RELEASE(clReleaseMemObject)
int32_t clReleaseEvent(void *event);
int32_t clReleaseEvent(void *event) {
    int32_t (*function)(void *);
    real("clReleaseEvent", &function);
    const int32_t code = function(event);
    return fails("clReleaseEvent") ? OUT_OF_RESOURCES : code;
}

int32_t clGetDeviceIDs(void *p, uint64_t type, uint32_t n, void **d, uint32_t *count);
int32_t clGetDeviceIDs(void *p, uint64_t type, uint32_t n, void **d, uint32_t *count) {
    enum { DEVICE_NOT_FOUND = -1 };
    int32_t (*function)(void *, uint64_t, uint32_t, void **, uint32_t *);
    real("clGetDeviceIDs", &function);
    return fails("clGetDeviceIDs")       ? OUT_OF_RESOURCES
           : getenv("CL_SHIM_NO_DEVICE") ? DEVICE_NOT_FOUND
                                         : function(p, type, n, d, count);
}

// A number from the environment, or `otherwise`.
static uint64_t setting(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

int32_t clGetDeviceInfo(void *device, uint32_t what, size_t n, void *value, size_t *size);
int32_t clGetDeviceInfo(void *device, uint32_t what, size_t n, void *value, size_t *size) {
    int32_t (*info)(void *, uint32_t, size_t, void *, size_t *);
    real("clGetDeviceInfo", &info);
    if (fails("clGetDeviceInfo")) {
        return OUT_OF_RESOURCES;
    }
    const int32_t code = info(device, what, n, value, size);
    if (code == 0 && n == sizeof(uint64_t)) { // size_t has 8 bytes too
        uint64_t number;
        memcpy(&number, value, sizeof number);
        number = what == DEVICE_TYPE    ? setting("CL_SHIM_TYPE", number)
                 : what == DEVICE_GROUP ? smaller(number, setting("CL_SHIM_GROUP", number))
                 : what == DEVICE_LOCAL ? smaller(number, setting("CL_SHIM_LOCAL", number))
                                        : number;
        memcpy(value, &number, sizeof number);
    }
    return code;
}

typedef int32_t group_info_function(void *kernel, void *device, uint32_t what, size_t n,
                                    void *value, size_t *size);

group_info_function clGetKernelWorkGroupInfo;
int32_t clGetKernelWorkGroupInfo(void *kernel, void *device, uint32_t what, size_t n, void *value,
                                 size_t *size) {
    group_info_function *info;
    real("clGetKernelWorkGroupInfo", &info);
    if (fails("clGetKernelWorkGroupInfo")) {
        return OUT_OF_RESOURCES;
    }
    const int32_t code = info(kernel, device, what, n, value, size);
    if (code == 0 && what == KERNEL_GROUP && n == sizeof(size_t)) {
        size_t number;
        memcpy(&number, value, sizeof number);
        number = smaller(number, setting("CL_SHIM_GROUP", number));
        number = smaller(number, setting("CL_SHIM_KERNEL_GROUP", number));
        memcpy(value, &number, sizeof number);
    }
    return code;
}

// Whether the device as the environment has it could run a kernel in groups of that size.
static int runs(void *queue, void *kernel, const size_t *local) {
    const size_t group = local[0] * local[1] * local[2];
    group_info_function *info;
    int32_t (*queue_info)(void *, uint32_t, size_t, void *, size_t *);
    void *device = NULL;
    uint64_t bytes = 0;
    real("clGetCommandQueueInfo", &queue_info);
    real("clGetKernelWorkGroupInfo", &info);
    queue_info(queue, QUEUE_DEVICE, sizeof device, &device, NULL);
    info(kernel, device, KERNEL_LOCAL, sizeof bytes, &bytes, NULL);
    return group <= setting("CL_SHIM_GROUP", group) &&
           group <= setting("CL_SHIM_KERNEL_GROUP", group) &&
           bytes <= setting("CL_SHIM_LOCAL", bytes);
}

static void note_launch(void *kernel) {
    int32_t (*info)(void *, uint32_t, size_t, void *, size_t *);
    char name[64] = "";
    const char *path = getenv("CL_SHIM_LAUNCHES");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) {
        real("clGetKernelInfo", &info);
        info(kernel, KERNEL_NAME, sizeof name, name, NULL);
        fprintf(file, "%s\n", name);
        fclose(file);
    }
}

typedef int32_t launch_function(void *queue, void *kernel, uint32_t dimensions, const size_t *first,
                                const size_t *global, const size_t *local, uint32_t count,
                                void *const *list, void **event);

launch_function clEnqueueNDRangeKernel;
int32_t clEnqueueNDRangeKernel(void *queue, void *kernel, uint32_t dimensions, const size_t *first,
                               const size_t *global, const size_t *local, uint32_t count,
                               void *const *list, void **event) {
    launch_function *launch;
    real("clEnqueueNDRangeKernel", &launch);
    if (fails("clEnqueueNDRangeKernel")) {
        return OUT_OF_RESOURCES;
    }
    if (!runs(queue, kernel, local)) {
        return INVALID_WORK_GROUP_SIZE;
    }
    note_launch(kernel);
    return launch(queue, kernel, dimensions, first, global, local, count, list, event);
}

// The size of a buffer.
static size_t size_of(void *buffer) {
    int32_t (*info)(void *, uint32_t, size_t, void *, size_t *);
    size_t size = 0;
    real("clGetMemObjectInfo", &info);
    info(buffer, 0x1102, sizeof size, &size, NULL);
    return size;
}

typedef int32_t write_function(void *, void *, uint32_t, size_t, size_t, const void *, uint32_t,
                               void *const *, void **);
typedef int32_t read_function(void *, void *, uint32_t, size_t, size_t, void *, uint32_t,
                              void *const *, void **);

static int32_t write_whole(write_function *write, void *q, void *b, size_t at, size_t n,
                           const void *from, void **event) {
    read_function *read;
    const size_t size = size_of(b);
    char *copy = malloc(size);
    real("clEnqueueReadBuffer", &read);
    int32_t code = copy ? read(q, b, 1, 0, size, copy, 0, NULL, NULL) : OUT_OF_RESOURCES;
    if (code == 0) {
        memcpy(copy + at, from, n);
        code = write(q, b, 1, 0, size, copy, 0, NULL, event);
    }
    free(copy);
    return code;
}

write_function clEnqueueWriteBuffer;
int32_t clEnqueueWriteBuffer(void *q, void *b, uint32_t wait, size_t at, size_t n, const void *from,
                             uint32_t k, void *const *l, void **e) {
    write_function *write;
    real("clEnqueueWriteBuffer", &write);
    if (fails("clEnqueueWriteBuffer")) {
        return OUT_OF_RESOURCES;
    }
    return getenv("CL_SHIM_WHOLE_WRITES") ? write_whole(write, q, b, at, n, from, e)
                                          : write(q, b, wait, at, n, from, k, l, e);
}

typedef int32_t fill_function(void *, void *, const void *, size_t, size_t, size_t, uint32_t,
                              void *const *, void **);

fill_function clEnqueueFillBuffer;
int32_t clEnqueueFillBuffer(void *q, void *b, const void *pattern, size_t size, size_t at, size_t n,
                            uint32_t k, void *const *l, void **e) {
    fill_function *fill;
    write_function *write;
    real("clEnqueueFillBuffer", &fill);
    real("clEnqueueWriteBuffer", &write);
    if (fails("clEnqueueFillBuffer")) {
        return OUT_OF_RESOURCES;
    }
    if (!getenv("CL_SHIM_WHOLE_WRITES")) {
        return fill(q, b, pattern, size, at, n, k, l, e);
    }
    void *zeros = calloc(n, 1); // the only pattern that clnet_cl.h fills with
    const int32_t code = zeros ? write_whole(write, q, b, at, n, zeros, e) : OUT_OF_RESOURCES;
    free(zeros);
    return code;
}
