// clnet_cl.h - the OpenCL backend of clnet: the same operations on any device that has OpenCL 1.2.
//
// One C file of your program says
//
//     #define CLNET_IMPLEMENTATION
//     #define CLNET_CL_IMPLEMENTATION
//     #include "clnet_cl.h"
//
// and every other file includes the header alone; clnet.h comes with it. Only one line of a program
// differs from the same on the CPU:
//
//     clnet_context *ctx = clnet_cl_context_create(&(clnet_cl_desc){.device = "auto"});
//
// Building
//
// - With CLNET_CL_DYNAMIC defined, the OpenCL and CLBlast libraries are looked for at run time
//   (dlopen): nothing is needed to build, and one binary runs with neither, with OpenCL alone and
//   with both. Without it the program is linked with -lOpenCL and needs <CL/cl.h>, and CLBlast is
//   used only where CLNET_CL_CLBLAST is defined (<clblast_c.h>, -lclblast).
// - The kernels stand in kernels.cl. They are compiled when a context is made, from the file that the
//   desc names; else from the copy inside the program, if it was compiled with one; else from
//   kernels.cl in the current directory. CLNET_CL_KERNELS_EMBEDDED is the name of that copy: an array
//   of unsigned char that ends with 0, defined in some other file of the program.
//
// What holds on a device: no operation falls back to the host; results are the same bits from run to
// run; an error of a call names the call and its code, and the context is dead from then on:
// everything fails with that sentence, and clnet_context_clear does not help. What was downloaded
// before (weights, a checkpoint) stays valid. Use a context from one thread at a time.
//
// Contents (search for the mark)
//
//     >>devices       what there is
//     >>context       a context on a device, what it uses, what the device can reach
//     implementation: >>library, >>devices, >>tuning, >>errors, >>program, >>profile, >>memory,
//     >>launch, then one mark per operation as in clnet.h (>>blast: convolution by CLBlast), >>backend,
//     >>peak, >>context
#ifndef CLNET_CL_H
#define CLNET_CL_H

#include "clnet.h"

#ifdef __cplusplus
extern "C" {
#endif

// >>devices

typedef enum clnet_cl_kind { CLNET_CL_OTHER, CLNET_CL_CPU, CLNET_CL_GPU } clnet_cl_kind;

// One OpenCL device, as it describes itself.
typedef struct clnet_cl_device {
    char id[24]; // "opencl:0.1": platform 0, device 1; what a desc takes
    char name[128], vendor[128], driver[128], version[128], platform[128];
    clnet_cl_kind kind;
    uint64_t memory, largest_allocation, local_memory; // bytes
    int compute_units, clock;                          // MHz
    int largest_group;                                 // work-items
    int vector_width;                                  // floats that it likes side by side
    bool half_precision, double_precision;
    bool fused;     // multiplies and adds in one instruction
    bool denormals; // keeps float32 numbers below 2^-126
    bool rounded;   // can divide and take roots with correct rounding
    bool shared;    // its memory is the host's
} clnet_cl_device;

// Lists all devices of all platforms; those that fit are written to `devices` (NULL: none). Returns
// how many there are: 0 without OpenCL, without a platform, without a device.
CLNET_API int clnet_cl_devices(clnet_cl_device *devices, int capacity);

// Which libraries are there: what `clnet_cl_devices` and contexts have to work with.
CLNET_API bool clnet_cl_has_opencl(void);
CLNET_API bool clnet_cl_has_clblast(void);

// >>context

typedef struct clnet_cl_desc {
    // "auto" (or NULL): the best GPU, or this CPU by clnet's own code if there is none; "opencl": the
    // best OpenCL device, which may be a CPU; "opencl:P.D": that one; "cpu": clnet's own code.
    const char *device;
    const char *kernels; // path of kernels.cl; NULL: see the top of this file
    bool no_clblast;     // matrix products by kernels.cl alone
    bool always_clblast; // by CLBlast even where kernels.cl is the usual choice (CPUs)
    clnet_context_desc base; // memory and files, profile; threads, vector code for "cpu"
} clnet_cl_desc;

// A context on a device, used and destroyed like any other. NULL only when there is no memory; a
// device that is not there, kernels that do not compile and the like give a context in an error
// state, which clnet_error explains.
CLNET_API clnet_context *clnet_cl_context_create(const clnet_cl_desc *desc);

// The device of a context; NULL for one on the CPU or in an error state from the start.
CLNET_API const clnet_cl_device *clnet_cl_context_device(const clnet_context *ctx);

// What makes the matrix products of a context, and why: one sentence. "" for one on the CPU.
CLNET_API const char *clnet_cl_matrix_product(const clnet_context *ctx);

// What the device reaches in two kernels that do nothing else, the best of some runs: multiply-adds
// in registers, counted as two operations, and copying between buffers larger than its caches,
// counted as reading and writing. `clock` gives seconds. Takes about a second and, while it runs, up
// to 512 MiB of the device's memory.
typedef struct clnet_cl_peak {
    double flops, bytes; // per second
} clnet_cl_peak;
CLNET_API clnet_result clnet_cl_measure_peak(clnet_context *ctx, double (*clock)(void),
                                             clnet_cl_peak *peak);

#ifdef __cplusplus
}
#endif
#endif // CLNET_CL_H

#ifdef CLNET_CL_IMPLEMENTATION

#ifndef CLNET_IMPLEMENTATION
#error "clnet_cl.h: CLNET_CL_IMPLEMENTATION needs CLNET_IMPLEMENTATION in the same file"
#endif
#ifndef CLNET__FAST
#error "clnet_cl.h: kernels.cl is written for float; CLNET_REAL has to be float"
#endif

// >>library
// OpenCL's functions, as a table that is filled from the library. Types and constants are declared
// here, so that no header is needed: handles are pointers, sizes and enumerations those of the
// standard's headers.

#define CLNET__CL_FUNCTIONS(X)                                                                     \
    X(int32_t, clGetPlatformIDs, (uint32_t, void **, uint32_t *))                                  \
    X(int32_t, clGetPlatformInfo, (void *, uint32_t, size_t, void *, size_t *))                    \
    X(int32_t, clGetDeviceIDs, (void *, uint64_t, uint32_t, void **, uint32_t *))                  \
    X(int32_t, clGetDeviceInfo, (void *, uint32_t, size_t, void *, size_t *))                      \
    X(void *, clCreateContext,                                                                     \
      (const intptr_t *, uint32_t, void *const *,                                                  \
       void (*)(const char *, const void *, size_t, void *), void *, int32_t *))                   \
    X(int32_t, clReleaseContext, (void *))                                                         \
    X(void *, clCreateCommandQueue, (void *, void *, uint64_t, int32_t *))                         \
    X(int32_t, clReleaseCommandQueue, (void *))                                                    \
    X(void *, clCreateProgramWithSource,                                                           \
      (void *, uint32_t, const char **, const size_t *, int32_t *))                                \
    X(int32_t, clBuildProgram,                                                                     \
      (void *, uint32_t, void *const *, const char *, void (*)(void *, void *), void *))           \
    X(int32_t, clGetProgramBuildInfo, (void *, void *, uint32_t, size_t, void *, size_t *))        \
    X(int32_t, clReleaseProgram, (void *))                                                         \
    X(void *, clCreateKernel, (void *, const char *, int32_t *))                                   \
    X(int32_t, clReleaseKernel, (void *))                                                          \
    X(int32_t, clGetKernelWorkGroupInfo, (void *, void *, uint32_t, size_t, void *, size_t *))     \
    X(int32_t, clSetKernelArg, (void *, uint32_t, size_t, const void *))                           \
    X(void *, clCreateBuffer, (void *, uint64_t, size_t, void *, int32_t *))                       \
    X(int32_t, clReleaseMemObject, (void *))                                                       \
    X(int32_t, clEnqueueReadBuffer,                                                                \
      (void *, void *, uint32_t, size_t, size_t, void *, uint32_t, void *const *, void **))        \
    X(int32_t, clEnqueueWriteBuffer,                                                               \
      (void *, void *, uint32_t, size_t, size_t, const void *, uint32_t, void *const *, void **))  \
    X(int32_t, clEnqueueFillBuffer,                                                                \
      (void *, void *, const void *, size_t, size_t, size_t, uint32_t, void *const *, void **))    \
    X(int32_t, clEnqueueNDRangeKernel,                                                             \
      (void *, void *, uint32_t, const size_t *, const size_t *, const size_t *, uint32_t,         \
       void *const *, void **))                                                                    \
    X(int32_t, clFinish, (void *))                                                                 \
    X(int32_t, clWaitForEvents, (uint32_t, void *const *))                                         \
    X(int32_t, clGetEventProfilingInfo, (void *, uint32_t, size_t, void *, size_t *))              \
    X(int32_t, clReleaseEvent, (void *))

typedef struct clnet__cl_api {
#define X(type, name, arguments) type(*name) arguments;
    CLNET__CL_FUNCTIONS(X)
#undef X
} clnet__cl_api;

// CLBlast's matrix product (its C interface) and the function that drops its caches.
typedef struct clnet__cl_blast {
    int32_t (*sgemm)(int32_t layout, int32_t a_transpose, int32_t b_transpose, size_t m, size_t n,
                     size_t k, float alpha, void *a, size_t a_offset, size_t a_ld, void *b,
                     size_t b_offset, size_t b_ld, float beta, void *c, size_t c_offset,
                     size_t c_ld, void **queue, void **event);
    int32_t (*clear_cache)(void);
} clnet__cl_blast;

enum {
    CLNET__CL_PLATFORM_NAME = 0x0902,
    CLNET__CL_DEVICE_TYPE = 0x1000,
    CLNET__CL_DEVICE_COMPUTE_UNITS = 0x1002,
    CLNET__CL_DEVICE_GROUP_SIZE = 0x1004,
    CLNET__CL_DEVICE_GROUP_AXES = 0x1005,
    CLNET__CL_DEVICE_CLOCK = 0x100C,
    CLNET__CL_DEVICE_LARGEST_ALLOCATION = 0x1010,
    CLNET__CL_DEVICE_FLOAT = 0x101B,
    CLNET__CL_DEVICE_MEMORY = 0x101F,
    CLNET__CL_DEVICE_LOCAL_MEMORY = 0x1023,
    CLNET__CL_DEVICE_AVAILABLE = 0x1027,
    CLNET__CL_DEVICE_COMPILER = 0x1028,
    CLNET__CL_DEVICE_NAME = 0x102B,
    CLNET__CL_DEVICE_VENDOR = 0x102C,
    CLNET__CL_DRIVER_VERSION = 0x102D,
    CLNET__CL_DEVICE_VERSION = 0x102F,
    CLNET__CL_DEVICE_EXTENSIONS = 0x1030,
    CLNET__CL_DEVICE_UNIFIED = 0x1035,
    CLNET__CL_DEVICE_VECTOR_WIDTH = 0x103A,
    CLNET__CL_CONTEXT_PLATFORM = 0x1084,
    CLNET__CL_BUILD_LOG = 0x1183,
    CLNET__CL_KERNEL_GROUP_SIZE = 0x11B0,
    CLNET__CL_KERNEL_GROUP_FIXED = 0x11B1,
    CLNET__CL_PROFILE_START = 0x1282,
    CLNET__CL_PROFILE_END = 0x1283,
    CLNET__CL_TYPE_CPU = 2, // bits of the device's type
    CLNET__CL_TYPE_GPU = 4,
    CLNET__CL_FLOAT_DENORMALS = 1, // bits of the float configuration
    CLNET__CL_FLOAT_FUSED = 32,
    CLNET__CL_FLOAT_ROUNDED = 128,
    CLNET__CL_QUEUE_PROFILING = 2,
    CLNET__CL_READ_WRITE = 1
};
#define CLNET__CL_ALL_TYPES 0xFFFFFFFFu

#ifdef CLNET_CL_DYNAMIC
#include <dlfcn.h>

// A library under the first of its names, or NULL. Libraries are never closed: drivers leave threads
// behind that run in them.
static void *clnet__cl_open(const char *const *names) {
    void *library = NULL;
    for (; *names && !library; names++) {
        library = dlopen(*names, RTLD_NOW | RTLD_LOCAL);
    }
    return library;
}

// The address of a function goes into a function pointer as bytes: C has no cast for it.
static bool clnet__cl_symbol(void *library, const char *name, void *pointer) {
    void *symbol = library ? dlsym(library, name) : NULL;
    memcpy(pointer, &symbol, sizeof symbol);
    return symbol != NULL;
}

static bool clnet__cl_load(clnet__cl_api *api) {
    static const char *const names[] = {"libOpenCL.so.1", "libOpenCL.so",
                                        "/System/Library/Frameworks/OpenCL.framework/OpenCL", NULL};
    void *library = clnet__cl_open(names);
    bool complete = library != NULL;
#define X(type, name, arguments) complete = complete && clnet__cl_symbol(library, #name, &api->name);
    CLNET__CL_FUNCTIONS(X)
#undef X
    return complete;
}

static bool clnet__cl_load_blast(clnet__cl_blast *blast) {
    static const char *const names[] = {"libclblast.so.1", "libclblast.so", "libclblast.dylib",
                                        NULL};
    void *library = clnet__cl_open(names);
    return clnet__cl_symbol(library, "CLBlastSgemm", &blast->sgemm) &&
           clnet__cl_symbol(library, "CLBlastClearCache", &blast->clear_cache);
}
#else
#ifndef CL_TARGET_OPENCL_VERSION
#define CL_TARGET_OPENCL_VERSION 120
#endif
#ifndef CL_USE_DEPRECATED_OPENCL_1_2_APIS
#define CL_USE_DEPRECATED_OPENCL_1_2_APIS
#endif
#include <CL/cl.h>

// The linked functions, by way of a general function pointer.
static bool clnet__cl_load(clnet__cl_api *api) {
    void (*function)(void);
#define X(type, name, arguments)                                                                   \
    function = (void (*)(void))name;                                                               \
    memcpy(&api->name, &function, sizeof function);
    CLNET__CL_FUNCTIONS(X)
#undef X
    return true;
}

#ifdef CLNET_CL_CLBLAST
#include <clblast_c.h>
static bool clnet__cl_load_blast(clnet__cl_blast *blast) {
    void (*function)(void) = (void (*)(void))CLBlastSgemm;
    memcpy(&blast->sgemm, &function, sizeof function);
    function = (void (*)(void))CLBlastClearCache;
    memcpy(&blast->clear_cache, &function, sizeof function);
    return true;
}
#else
static bool clnet__cl_load_blast(clnet__cl_blast *blast) {
    (void)blast;
    return false;
}
#endif
#endif

bool clnet_cl_has_opencl(void) {
    clnet__cl_api api;
    return clnet__cl_load(&api);
}

bool clnet_cl_has_clblast(void) {
    clnet__cl_blast blast;
    return clnet_cl_has_opencl() && clnet__cl_load_blast(&blast);
}

// >>devices

enum { CLNET__CL_PLATFORMS = 16, CLNET__CL_DEVICES = 32 }; // platforms; devices of one

// A device with the handles by which it is reached, and the code of the first question about it that
// failed (0: none did).
typedef struct clnet__cl_found {
    void *platform, *device;
    clnet_cl_device info;
    int32_t code;
} clnet__cl_found;

// Asks a device for something about itself. That it does not know what was asked for is no failure.
static bool clnet__cl_ask(const clnet__cl_api *api, clnet__cl_found *f, uint32_t what, size_t bytes,
                          void *value, size_t *length) {
    enum { INVALID_VALUE = -30 };
    const int32_t code = api->clGetDeviceInfo(f->device, what, bytes, value, length);
    if (f->code == 0 && code != INVALID_VALUE) {
        f->code = code;
    }
    return code == 0;
}

// One number that the device tells about itself, `fallback` where it does not. Its type has `bytes`.
static uint64_t clnet__cl_number(const clnet__cl_api *api, clnet__cl_found *f, uint32_t what,
                                 size_t bytes, uint64_t fallback) {
    uint32_t narrow = 0;
    uint64_t wide = 0;
    void *place = bytes == sizeof narrow ? (void *)&narrow : (void *)&wide;
    if (!clnet__cl_ask(api, f, what, bytes, place, NULL)) {
        return fallback;
    }
    return bytes == sizeof narrow ? narrow : wide;
}

static void clnet__cl_text(const clnet__cl_api *api, clnet__cl_found *f, uint32_t what, char *text,
                           size_t bytes) {
    size_t length = 0;
    text[0] = 0;
    if (clnet__cl_ask(api, f, what, 0, NULL, &length) && length <= bytes) {
        clnet__cl_ask(api, f, what, bytes, text, NULL);
    }
    text[bytes - 1] = 0;
}

static int clnet__cl_clamp(uint64_t value) { return value > INT_MAX ? INT_MAX : (int)value; }

// The largest group of work-items that may stand along either of the two axes that kernels use: some
// CPUs take many along the first and one along the others.
static int clnet__cl_largest_group(const clnet__cl_api *api, clnet__cl_found *f) {
    size_t axes[16] = {0}; // most devices have 3
    const uint64_t most =
        clnet__cl_number(api, f, CLNET__CL_DEVICE_GROUP_SIZE, sizeof(size_t), 1);
    size_t largest = most < INT_MAX ? (size_t)most : INT_MAX;
    if (clnet__cl_ask(api, f, CLNET__CL_DEVICE_GROUP_AXES, sizeof axes, axes, NULL)) {
        largest = axes[0] < largest ? axes[0] : largest;
        largest = axes[1] < largest ? axes[1] : largest;
    }
    return largest ? (int)largest : 1;
}

static void clnet__cl_describe(const clnet__cl_api *api, clnet__cl_found *f) {
    clnet_cl_device *d = &f->info;
    const uint32_t small = sizeof(uint32_t), large = sizeof(uint64_t);
    char extensions[4096];
    clnet__cl_text(api, f, CLNET__CL_DEVICE_NAME, d->name, sizeof d->name);
    clnet__cl_text(api, f, CLNET__CL_DEVICE_VENDOR, d->vendor, sizeof d->vendor);
    clnet__cl_text(api, f, CLNET__CL_DRIVER_VERSION, d->driver, sizeof d->driver);
    clnet__cl_text(api, f, CLNET__CL_DEVICE_VERSION, d->version, sizeof d->version);
    clnet__cl_text(api, f, CLNET__CL_DEVICE_EXTENSIONS, extensions, sizeof extensions);
    const uint64_t type = clnet__cl_number(api, f, CLNET__CL_DEVICE_TYPE, large, 0);
    d->kind = type & CLNET__CL_TYPE_GPU   ? CLNET_CL_GPU
              : type & CLNET__CL_TYPE_CPU ? CLNET_CL_CPU
                                          : CLNET_CL_OTHER;
    d->memory = clnet__cl_number(api, f, CLNET__CL_DEVICE_MEMORY, large, 0);
    d->largest_allocation = clnet__cl_number(api, f, CLNET__CL_DEVICE_LARGEST_ALLOCATION, large, 0);
    d->local_memory = clnet__cl_number(api, f, CLNET__CL_DEVICE_LOCAL_MEMORY, large, 0);
    d->compute_units =
        clnet__cl_clamp(clnet__cl_number(api, f, CLNET__CL_DEVICE_COMPUTE_UNITS, small, 1));
    d->clock = clnet__cl_clamp(clnet__cl_number(api, f, CLNET__CL_DEVICE_CLOCK, small, 0));
    d->largest_group = clnet__cl_largest_group(api, f);
    d->vector_width =
        clnet__cl_clamp(clnet__cl_number(api, f, CLNET__CL_DEVICE_VECTOR_WIDTH, small, 1));
    const uint64_t floats = clnet__cl_number(api, f, CLNET__CL_DEVICE_FLOAT, large, 0);
    d->denormals = floats & CLNET__CL_FLOAT_DENORMALS;
    d->fused = floats & CLNET__CL_FLOAT_FUSED;
    d->rounded = floats & CLNET__CL_FLOAT_ROUNDED;
    d->half_precision = strstr(extensions, "cl_khr_fp16") != NULL;
    d->double_precision = strstr(extensions, "cl_khr_fp64") != NULL;
    d->shared = clnet__cl_number(api, f, CLNET__CL_DEVICE_UNIFIED, small, 0) != 0;
}

// What a walk over all devices met: it says why the device that was wanted is not there.
typedef struct clnet__cl_walk {
    uint32_t platforms;
    int devices;      // that can compile and run
    const char *call; // the first call that failed; NULL: none did
    int32_t code;     // of that call
} clnet__cl_walk;

// Notes a failure of the walk; `none` is the code that only says that there is nothing.
static bool clnet__cl_walked(clnet__cl_walk *walk, const char *call, int32_t code, int32_t none) {
    if (code != 0 && code != none && !walk->call) {
        walk->call = call;
        walk->code = code;
    }
    return code == 0;
}

// Looks at one device; true: it can compile and run.
static bool clnet__cl_look(const clnet__cl_api *api, clnet__cl_found *f, clnet__cl_walk *walk) {
    const uint32_t flag = sizeof(uint32_t);
    const bool ready = clnet__cl_number(api, f, CLNET__CL_DEVICE_AVAILABLE, flag, 0) &&
                       clnet__cl_number(api, f, CLNET__CL_DEVICE_COMPILER, flag, 0);
    if (ready) {
        clnet__cl_describe(api, f);
    }
    const int32_t code = api->clGetPlatformInfo(
        f->platform, CLNET__CL_PLATFORM_NAME, sizeof f->info.platform - 1, f->info.platform, NULL);
    return clnet__cl_walked(walk, "clGetDeviceInfo", f->code, 0) &&
           clnet__cl_walked(walk, "clGetPlatformInfo", code, 0) && ready;
}

// Calls visit(arg, device) for every device that can compile and run.
static clnet__cl_walk clnet__cl_each(const clnet__cl_api *api,
                                     void (*visit)(void *arg, const clnet__cl_found *found),
                                     void *arg) {
    enum { NO_DEVICE = -1, NO_PLATFORM = -1001 };
    void *platforms[CLNET__CL_PLATFORMS], *devices[CLNET__CL_DEVICES];
    clnet__cl_walk walk = {0, 0, NULL, 0};
    int32_t code = api->clGetPlatformIDs(CLNET__CL_PLATFORMS, platforms, &walk.platforms);
    if (!clnet__cl_walked(&walk, "clGetPlatformIDs", code, NO_PLATFORM)) {
        walk.platforms = 0;
    }
    for (uint32_t p = 0; p < walk.platforms && p < CLNET__CL_PLATFORMS; p++) {
        uint32_t count = 0;
        code = api->clGetDeviceIDs(platforms[p], CLNET__CL_ALL_TYPES, CLNET__CL_DEVICES, devices,
                                   &count);
        if (!clnet__cl_walked(&walk, "clGetDeviceIDs", code, NO_DEVICE)) {
            count = 0;
        }
        for (uint32_t d = 0; d < count && d < CLNET__CL_DEVICES; d++) {
            clnet__cl_found f = {.platform = platforms[p], .device = devices[d]};
            snprintf(f.info.id, sizeof f.info.id, "opencl:%u.%u", (unsigned)p, (unsigned)d);
            if (clnet__cl_look(api, &f, &walk)) {
                walk.devices++;
                visit(arg, &f);
            }
        }
    }
    return walk;
}

typedef struct clnet__cl_list {
    clnet_cl_device *devices;
    int count, capacity;
} clnet__cl_list;

static void clnet__cl_list_one(void *arg, const clnet__cl_found *found) {
    clnet__cl_list *list = arg;
    if (list->devices && list->count < list->capacity) {
        list->devices[list->count] = found->info;
    }
    list->count++;
}

int clnet_cl_devices(clnet_cl_device *devices, int capacity) {
    clnet__cl_api api;
    clnet__cl_list list = {devices, 0, capacity};
    if (clnet__cl_load(&api)) {
        clnet__cl_each(&api, clnet__cl_list_one, &list);
    }
    return list.count;
}

// What a desc asks for, and the best device so far: GPUs before others, then by units times clock.
typedef struct clnet__cl_choice {
    const char *wanted; // an id; NULL: any
    bool gpu;           // GPUs alone
    bool found;
    clnet__cl_found best;
} clnet__cl_choice;

static double clnet__cl_strength(const clnet_cl_device *d) {
    return (d->kind == CLNET_CL_GPU ? 1e12 : 0) + (double)d->compute_units * (d->clock + 1.0);
}

static void clnet__cl_choose_one(void *arg, const clnet__cl_found *found) {
    clnet__cl_choice *choice = arg;
    const bool fits = choice->wanted ? !strcmp(choice->wanted, found->info.id)
                                     : !choice->gpu || found->info.kind == CLNET_CL_GPU;
    if (fits && (!choice->found ||
                 clnet__cl_strength(&found->info) > clnet__cl_strength(&choice->best.info))) {
        choice->found = true;
        choice->best = *found;
    }
}

// >>tuning
// What kernels.cl takes as macros, per family of devices; see there for what each means. The first row
// that fits is used, then cut to the device's limits. Tiles are items times rows (or vectors x width).

typedef struct clnet__cl_tuning {
    clnet_cl_kind kind;
    const char *vendor;         // part of the device's vendor; NULL: any
    int items_m, items_n;       // GEMM_ITEMS_M, GEMM_ITEMS_N
    int rows, vectors, width;   // GEMM_ROWS, GEMM_VECTORS, GEMM_WIDTH
    int depth;                  // GEMM_DEPTH
    int channels, pixels;       // REDUCE_CHANNELS, REDUCE_PIXELS
    int elements;               // work-items of a group that computes element by element
    int groups;                 // groups per compute unit that keep it busy
    bool blast;                 // CLBlast is the better matrix product
    bool direct;                // convolutions by the kernels without local memory
} clnet__cl_tuning;

static const clnet__cl_tuning clnet__cl_tunings[] = {
    // kind, vendor,  M  N  rows vec width depth  channels pixels  elements groups  blast direct

    // Wavefronts of 64: a group of the matrix product is one, and sums read 64 channels side by side.
    {CLNET_CL_GPU, "Advanced Micro Devices", 8, 8, 8, 2, 4, 16, 64, 4, 256, 16, true, false},
    {CLNET_CL_GPU, "AMD", 8, 8, 8, 2, 4, 16, 64, 4, 256, 16, true, false},
    // 4 KB of registers for 8 or 16 work-items that run together: 64 sums each would fill them, so
    // tiles have half the rows. Few units of few lanes need fewer groups.
    {CLNET_CL_GPU, "Intel", 8, 8, 4, 2, 4, 16, 16, 8, 128, 8, true, false},
    // All other GPUs, chosen for a GTX 1080 Ti: 28 units, warps of 32, 255 registers of a work-item,
    // 48 KB local memory of a group and 96 of a unit. A group of the matrix product is two warps with
    // 64 sums in each work-item and 9.7 KB of local memory, so that nine groups share a unit; sums
    // read 32 channels side by side. Newer cards of the maker have more units of the same kind, which
    // the number of groups follows. Nothing is computed in half precision, which is slow on that card.
    {CLNET_CL_GPU, NULL, 8, 8, 8, 2, 4, 16, 32, 8, 256, 16, true, false},
    // CPUs run a group as loops of one thread, and local memory is as far away as all other: what a
    // work-item sums stays in 12 of AVX2's 16 registers, and the items of a group read the same columns
    // one after the other. CLBlast's kernels are made for GPUs.
    {CLNET_CL_CPU, NULL, 8, 1, 6, 2, 8, 16, 16, 4, 256, 4, false, true},
    // Accelerators of an unknown kind: groups that any device allows.
    {CLNET_CL_OTHER, NULL, 8, 8, 8, 2, 4, 16, 16, 4, 64, 8, false, false},
};

// Local memory of a matrix product: two tiles, and what it knows of rows and terms.
static uint64_t clnet__cl_local_bytes(const clnet__cl_tuning *t) {
    const int m = t->items_m * t->rows, n = t->items_n * t->vectors * t->width;
    return (uint64_t)(t->depth * (m + 4 + n)) * sizeof(float) +
           (uint64_t)(m + t->depth) * 3 * sizeof(int32_t) + 256;
}

// Halves what makes the tiles of a product large; false: they cannot be smaller.
static bool clnet__cl_smaller_tiles(clnet__cl_tuning *t) {
    int *part = t->depth > 1     ? &t->depth
                : t->rows > 1    ? &t->rows
                : t->vectors > 1 ? &t->vectors
                : t->width > 2   ? &t->width
                                 : NULL;
    if (part) {
        *part /= 2;
    }
    return part != NULL;
}

// The row for a device, cut to groups of `largest_group` work-items and to its local memory.
static clnet__cl_tuning clnet__cl_tune(const clnet_cl_device *d, int largest_group) {
    size_t i = 0;
    while (i + 1 < sizeof clnet__cl_tunings / sizeof *clnet__cl_tunings &&
           (clnet__cl_tunings[i].kind != d->kind ||
            (clnet__cl_tunings[i].vendor && !strstr(d->vendor, clnet__cl_tunings[i].vendor)))) {
        i++;
    }
    clnet__cl_tuning t = clnet__cl_tunings[i];
    while (t.items_m * t.items_n > largest_group) {
        *(t.items_n > t.items_m ? &t.items_n : &t.items_m) /= 2;
    }
    const int sums = (int)(d->local_memory < INT_MAX ? d->local_memory : INT_MAX) / 8; // float2
    while (t.channels * t.pixels > largest_group ||
           (t.channels * t.pixels > sums && t.channels * t.pixels > 1)) {
        *(t.pixels > 1 ? &t.pixels : &t.channels) /= 2;
    }
    while (t.elements > largest_group) {
        t.elements /= 2;
    }
    while (clnet__cl_local_bytes(&t) > d->local_memory && clnet__cl_smaller_tiles(&t)) {
    }
    return t;
}

// >>errors

// X(kernel): all of kernels.cl.
#define CLNET__CL_KERNELS(X)                                                                       \
    X(channel_sums) X(channel_dots) X(add_channel_sums) X(sum_of_squares)                          \
    X(conv2d_forward) X(conv2d_backward_data) X(conv2d_backward_weight) X(add_slices)              \
    X(direct_forward) X(direct_backward_data) X(direct_backward_weight)                            \
    X(columns_of_input) X(columns_of_gradient) X(transpose_taps) X(broadcast_bias)                 \
    X(batch_norm_mean) X(batch_norm_squares) X(batch_norm_statistics) X(batch_norm_apply)          \
    X(batch_norm_backward_sums) X(batch_norm_backward_weights) X(batch_norm_backward_data)         \
    X(relu_forward) X(relu_backward) X(sigmoid_forward) X(sigmoid_backward)                        \
    X(softmax_forward) X(softmax_backward) X(max_pool2d_forward) X(max_pool2d_backward)            \
    X(avg_pool2d_forward) X(avg_pool2d_backward)                                                   \
    X(global_avg_pool_forward) X(global_avg_pool_backward)                                         \
    X(upsample_bilinear_forward) X(upsample_bilinear_backward)                                     \
    X(copy) X(add_forward) X(scale_channels) X(attention_sums) X(attention_statistics)             \
    X(attention_residual_forward) X(attention_dots) X(attention_residual_backward) X(dropout)      \
    X(flip)                                                                                        \
    X(focal_loss_forward) X(focal_loss_backward) X(mask_sums)                                      \
    X(mask_focal_loss_forward) X(mask_focal_loss_backward)                                         \
    X(dice_of_images) X(dice_loss_forward) X(dice_loss_backward)                                   \
    X(weighted_add) X(adam_step) X(peak_multiply_add) X(peak_copy)

typedef enum clnet__cl_kernel {
#define X(name) CLNET__CL_##name,
    CLNET__CL_KERNELS(X)
#undef X
        CLNET__CL_KERNEL_COUNT
} clnet__cl_kernel;

static const char *clnet__cl_kernel_name(clnet__cl_kernel kernel) {
    static const char *const names[] = {
#define X(name) #name,
        CLNET__CL_KERNELS(X)
#undef X
    };
    return names[kernel];
}

// Rows of the profile: the kernels, then these.
enum {
    CLNET__CL_ROW_BLAST = CLNET__CL_KERNEL_COUNT,
    CLNET__CL_ROW_FILL,
    CLNET__CL_ROW_UPLOAD,
    CLNET__CL_ROW_DOWNLOAD,
    CLNET__CL_ROWS
};

// The state of a context on a device.
typedef struct clnet__cl {
    clnet__cl_api api;
    clnet__cl_blast blast;
    void *device, *context, *queue, *program;
    void *kernels[CLNET__CL_KERNEL_COUNT];
    clnet_cl_device info;
    clnet__cl_tuning tuning;
    double speed; // multiply-adds a second of its own convolution, as measured; 0: not yet
    bool blasts; // CLBlast makes the matrix products
    bool dead;   // after an error of the device; `failure` tells which
    uint64_t used; // bytes of the device's memory
    char name[192], product[256], failure[512];
    clnet_profile_row rows[CLNET__CL_ROWS];
} clnet__cl;

static clnet__cl *clnet__cl_of(const clnet_context *ctx) { return ctx->backend.state; }

static const char *clnet__cl_code_name(int32_t code) {
    static const struct {
        int32_t code;
        const char *name;
    } codes[] = {{-1, "CL_DEVICE_NOT_FOUND"},
                 {-2, "CL_DEVICE_NOT_AVAILABLE"},
                 {-3, "CL_COMPILER_NOT_AVAILABLE"},
                 {-4, "CL_MEM_OBJECT_ALLOCATION_FAILURE"},
                 {-5, "CL_OUT_OF_RESOURCES"},
                 {-6, "CL_OUT_OF_HOST_MEMORY"},
                 {-7, "CL_PROFILING_INFO_NOT_AVAILABLE"},
                 {-11, "CL_BUILD_PROGRAM_FAILURE"},
                 {-14, "CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST"},
                 {-30, "CL_INVALID_VALUE"},
                 {-33, "CL_INVALID_DEVICE"},
                 {-34, "CL_INVALID_CONTEXT"},
                 {-36, "CL_INVALID_COMMAND_QUEUE"},
                 {-38, "CL_INVALID_MEM_OBJECT"},
                 {-43, "CL_INVALID_BUILD_OPTIONS"},
                 {-44, "CL_INVALID_PROGRAM"},
                 {-45, "CL_INVALID_PROGRAM_EXECUTABLE"},
                 {-46, "CL_INVALID_KERNEL_NAME"},
                 {-47, "CL_INVALID_KERNEL_DEFINITION"},
                 {-48, "CL_INVALID_KERNEL"},
                 {-49, "CL_INVALID_ARG_INDEX"},
                 {-50, "CL_INVALID_ARG_VALUE"},
                 {-51, "CL_INVALID_ARG_SIZE"},
                 {-52, "CL_INVALID_KERNEL_ARGS"},
                 {-54, "CL_INVALID_WORK_GROUP_SIZE"},
                 {-55, "CL_INVALID_WORK_ITEM_SIZE"},
                 {-58, "CL_INVALID_EVENT"},
                 {-59, "CL_INVALID_OPERATION"},
                 {-61, "CL_INVALID_BUFFER_SIZE"},
                 {-63, "CL_INVALID_GLOBAL_WORK_SIZE"},
                 {-1001, "CL_PLATFORM_NOT_FOUND_KHR"}};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        if (codes[i].code == code) {
            return codes[i].name;
        }
    }
    return "error";
}

// An error of the device ends the context's life, whatever failure was on record before.
static clnet_result clnet__cl_die(clnet_context *ctx, const char *call, const char *what,
                                  int32_t code) {
    clnet__cl *cl = clnet__cl_of(ctx);
    if (!cl->dead) {
        snprintf(cl->failure, sizeof cl->failure, "%s: %s%s%s%s: %s (%d)", cl->name, call,
                 *what ? "(" : "", what, *what ? ")" : "", clnet__cl_code_name(code), (int)code);
        cl->dead = true;
        ctx->result = CLNET_OK;
    }
    return clnet__fail(ctx, CLNET_ERROR_DEVICE, "%s", cl->failure);
}

static clnet_result clnet__cl_check(clnet_context *ctx, const char *call, const char *what,
                                    int32_t code) {
    return code == 0 ? ctx->result : clnet__cl_die(ctx, call, what, code);
}

// Whether the context can go on; a dead one says again why not.
static bool clnet__cl_alive(clnet_context *ctx) {
    const clnet__cl *cl = clnet__cl_of(ctx);
    if (cl->dead) {
        clnet__fail(ctx, CLNET_ERROR_DEVICE, "%s", cl->failure);
    }
    return ctx->result == CLNET_OK;
}

// >>program

#ifdef CLNET_CL_KERNELS_EMBEDDED
extern const unsigned char CLNET_CL_KERNELS_EMBEDDED[];
#endif

enum { CLNET__CL_LARGEST_SOURCE = 1 << 22 };

// The file's text with a 0 behind it; NULL with the failure on record. The caller frees it.
static char *clnet__cl_read_source(clnet_context *ctx, const char *path) {
    const clnet_files *files = &ctx->files;
    uint64_t bytes = 0;
    void *file = files->open ? files->open(files->user, path, false) : NULL;
    char *text = NULL;
    if (file && files->size(files->user, file, &bytes) && bytes <= CLNET__CL_LARGEST_SOURCE) {
        text = clnet__alloc(ctx, (size_t)bytes + 1);
    }
    const bool read =
        text && files->read(files->user, file, 0, text, (size_t)bytes) == (size_t)bytes;
    if (file) {
        files->close(files->user, file);
    }
    if (!read) {
        clnet__free(ctx, text);
        clnet__fail(ctx, CLNET_ERROR_FILE, "%s: the OpenCL kernels cannot be read", path);
        return NULL;
    }
    return text;
}

static void clnet__cl_options(const clnet__cl *cl, char *text, size_t bytes) {
    const clnet__cl_tuning *t = &cl->tuning;
    snprintf(text, bytes,
             "-cl-std=CL1.2%s -D GEMM_ITEMS_M=%d -D GEMM_ITEMS_N=%d -D GEMM_ROWS=%d "
             "-D GEMM_VECTORS=%d -D GEMM_WIDTH=%d -D GEMM_DEPTH=%d -D REDUCE_CHANNELS=%d "
             "-D REDUCE_PIXELS=%d -D HAS_FMA=%d",
             cl->info.rounded ? " -cl-fp32-correctly-rounded-divide-sqrt" : "", t->items_m,
             t->items_n, t->rows, t->vectors, t->width, t->depth, t->channels, t->pixels,
             cl->info.fused);
}

// Says why the kernels did not compile: device, driver, options and the log.
static void clnet__cl_explain_build(clnet_context *ctx, const char *options, int32_t code) {
    clnet__cl *cl = clnet__cl_of(ctx);
    size_t bytes = 0;
    if (cl->api.clGetProgramBuildInfo(cl->program, cl->device, CLNET__CL_BUILD_LOG, 0, NULL,
                                      &bytes) != 0) {
        bytes = 0; // no log to show
    }
    char *log = clnet__alloc(ctx, bytes + 1);
    if (log && cl->api.clGetProgramBuildInfo(cl->program, cl->device, CLNET__CL_BUILD_LOG, bytes,
                                             log, NULL) != 0) {
        log[0] = 0;
    }
    clnet__cl_die(ctx, "clBuildProgram", "", code);
    const int length = snprintf(ctx->error, sizeof ctx->error,
                                "%s\ndriver: %s, %s\noptions: %s\nlog:\n%s", cl->failure,
                                cl->info.version, cl->info.driver, options, log ? log : "");
    static const char cut[] = "\n(the log is longer)";
    if (length >= (int)sizeof ctx->error) {
        memcpy(ctx->error + sizeof ctx->error - sizeof cut, cut, sizeof cut);
    }
    clnet__free(ctx, log);
}

// Compiles the source with the tuning as it is, and makes all kernels.
static bool clnet__cl_compile(clnet_context *ctx, const char *source) {
    clnet__cl *cl = clnet__cl_of(ctx);
    char options[512];
    int32_t code = 0;
    clnet__cl_options(cl, options, sizeof options);
    cl->program = cl->api.clCreateProgramWithSource(cl->context, 1, &source, NULL, &code);
    if (clnet__cl_check(ctx, "clCreateProgramWithSource", "", code) != CLNET_OK) {
        return false;
    }
    code = cl->api.clBuildProgram(cl->program, 1, &cl->device, options, NULL, NULL);
    if (code != 0) {
        clnet__cl_explain_build(ctx, options, code);
        return false;
    }
    for (int i = 0; i < CLNET__CL_KERNEL_COUNT && ctx->result == CLNET_OK; i++) {
        const char *name = clnet__cl_kernel_name((clnet__cl_kernel)i);
        cl->kernels[i] = cl->api.clCreateKernel(cl->program, name, &code);
        clnet__cl_check(ctx, "clCreateKernel", name, code);
    }
    return ctx->result == CLNET_OK;
}

static void clnet__cl_release_program(clnet_context *ctx) {
    clnet__cl *cl = clnet__cl_of(ctx);
    for (int i = 0; i < CLNET__CL_KERNEL_COUNT; i++) {
        if (cl->kernels[i]) {
            clnet__cl_check(ctx, "clReleaseKernel", clnet__cl_kernel_name((clnet__cl_kernel)i),
                            cl->api.clReleaseKernel(cl->kernels[i]));
            cl->kernels[i] = NULL;
        }
    }
    if (cl->program) {
        clnet__cl_check(ctx, "clReleaseProgram", "", cl->api.clReleaseProgram(cl->program));
        cl->program = NULL;
    }
}

// How many work-items the device allows a group of a kernel, if that is fewer than the kernel is run
// with; else INT_MAX. Registers may leave a kernel fewer than the device allows in general.
static int clnet__cl_kernel_limit(clnet_context *ctx, clnet__cl_kernel kernel) {
    clnet__cl *cl = clnet__cl_of(ctx);
    const char *name = clnet__cl_kernel_name(kernel);
    size_t most = 0, fixed[3] = {0, 0, 0}; // 0: the kernel runs in groups of any size
    int32_t code = cl->api.clGetKernelWorkGroupInfo(
        cl->kernels[kernel], cl->device, CLNET__CL_KERNEL_GROUP_SIZE, sizeof most, &most, NULL);
    if (code == 0) {
        code = cl->api.clGetKernelWorkGroupInfo(cl->kernels[kernel], cl->device,
                                                CLNET__CL_KERNEL_GROUP_FIXED, sizeof fixed, fixed,
                                                NULL);
    }
    clnet__cl_check(ctx, "clGetKernelWorkGroupInfo", name, code);
    const size_t group = fixed[0] ? fixed[0] * fixed[1] * fixed[2] : (size_t)cl->tuning.elements;
    return group <= most ? INT_MAX : (int)most;
}

// Compiles; where the device then allows some kernel only smaller groups, once more for those.
static bool clnet__cl_build(clnet_context *ctx, const char *source) {
    clnet__cl *cl = clnet__cl_of(ctx);
    for (int largest = cl->info.largest_group; clnet__cl_compile(ctx, source);) {
        int limit = INT_MAX;
        for (int i = 0; i < CLNET__CL_KERNEL_COUNT && ctx->result == CLNET_OK; i++) {
            const int one = clnet__cl_kernel_limit(ctx, (clnet__cl_kernel)i);
            limit = one < limit ? one : limit;
        }
        if (limit >= largest || largest == 1) {
            break;
        }
        largest = limit > 1 ? limit : 1;
        cl->tuning = clnet__cl_tune(&cl->info, largest);
        clnet__cl_release_program(ctx);
    }
    return ctx->result == CLNET_OK;
}

// From the file of the desc, the program's own copy, or the current directory.
static bool clnet__cl_load_kernels(clnet_context *ctx, const char *path) {
#ifdef CLNET_CL_KERNELS_EMBEDDED
    if (!path) {
        return clnet__cl_build(ctx, (const char *)CLNET_CL_KERNELS_EMBEDDED);
    }
#endif
    char *source = clnet__cl_read_source(ctx, path ? path : "kernels.cl");
    const bool built = source && clnet__cl_build(ctx, source);
    clnet__free(ctx, source);
    return built;
}

// >>profile
// A command that is measured leaves an event, which is waited for: `event` is where it goes, NULL
// without a profile.

static void **clnet__cl_event(const clnet_context *ctx, void **event) {
    return ctx->backend.rows ? event : NULL;
}

// Waits for a command and adds its time to a row of the profile; without an event, does nothing.
static clnet_result clnet__cl_measure(clnet_context *ctx, int row, void *event, double macs,
                                      double bytes) {
    clnet__cl *cl = clnet__cl_of(ctx);
    const char *name = cl->rows[row].name;
    uint64_t start = 0, end = 0;
    if (!event) {
        return ctx->result;
    }
    clnet__cl_check(ctx, "clWaitForEvents", name, cl->api.clWaitForEvents(1, &event));
    clnet__cl_check(ctx, "clGetEventProfilingInfo", name,
                    cl->api.clGetEventProfilingInfo(event, CLNET__CL_PROFILE_START, sizeof start,
                                                    &start, NULL));
    clnet__cl_check(ctx, "clGetEventProfilingInfo", name,
                    cl->api.clGetEventProfilingInfo(event, CLNET__CL_PROFILE_END, sizeof end, &end,
                                                    NULL));
    clnet__cl_check(ctx, "clReleaseEvent", name, cl->api.clReleaseEvent(event));
    clnet__profile_add(&cl->rows[row], (double)(end - start) * 1e-9, macs, bytes);
    return ctx->result;
}

static void clnet__cl_name_rows(clnet__cl *cl) {
    for (int i = 0; i < CLNET__CL_KERNEL_COUNT; i++) {
        cl->rows[i].name = clnet__cl_kernel_name((clnet__cl_kernel)i);
    }
    cl->rows[CLNET__CL_ROW_BLAST].name = "CLBlast";
    cl->rows[CLNET__CL_ROW_FILL].name = "fill";
    cl->rows[CLNET__CL_ROW_UPLOAD].name = "upload";
    cl->rows[CLNET__CL_ROW_DOWNLOAD].name = "download";
    for (int i = 0; i < CLNET__CL_ROWS; i++) {
        cl->rows[i].pass = "";
    }
}

// >>memory
// A slab is one buffer of OpenCL; its handle is the buffer.

static clnet_result clnet__cl_no_room(clnet_context *ctx, uint64_t bytes) {
    const clnet_cl_device *d = &clnet__cl_of(ctx)->info;
    return clnet__fail(ctx, CLNET_ERROR_MEMORY,
                       "%s: out of memory: %llu bytes are needed in one piece, beside %llu in use; "
                       "the device has %llu, at most %llu in one piece",
                       d->id, (unsigned long long)bytes,
                       (unsigned long long)clnet__cl_of(ctx)->used, (unsigned long long)d->memory,
                       (unsigned long long)d->largest_allocation);
}

static size_t clnet__cl_room(clnet_context *ctx) {
    const clnet__cl *cl = clnet__cl_of(ctx);
    return clnet__cl_alive(ctx) ? (size_t)(cl->info.memory - cl->used) : SIZE_MAX - 1;
}

static bool clnet__cl_alloc(clnet_context *ctx, clnet_memory *memory, size_t bytes) {
    clnet__cl *cl = clnet__cl_of(ctx);
    int32_t code = 0;
    if (!clnet__cl_alive(ctx)) {
        return false;
    }
    if (bytes > cl->info.memory - cl->used) {
        clnet__cl_no_room(ctx, bytes);
        return false;
    }
    void *buffer = cl->api.clCreateBuffer(cl->context, CLNET__CL_READ_WRITE, bytes, NULL, &code);
    if (code == -4 || code == -61) { // no memory, or too large
        clnet__cl_no_room(ctx, bytes);
        return false;
    }
    if (clnet__cl_check(ctx, "clCreateBuffer", "", code) != CLNET_OK) {
        return false;
    }
    cl->used += bytes;
    *memory = (clnet_memory){buffer, bytes};
    return true;
}

static void clnet__cl_free(clnet_context *ctx, clnet_memory *memory) {
    clnet__cl *cl = clnet__cl_of(ctx);
    clnet__cl_check(ctx, "clReleaseMemObject", "",
                    cl->api.clReleaseMemObject(memory->handle));
    cl->used -= memory->bytes;
    memory->handle = NULL;
}

static clnet_result clnet__cl_upload(clnet_context *ctx, clnet_memory *to, size_t offset,
                                     const void *from, size_t bytes) {
    clnet__cl *cl = clnet__cl_of(ctx);
    if (!clnet__cl_alive(ctx)) {
        return ctx->result;
    }
    void *event = NULL;
    clnet__cl_check(ctx, "clEnqueueWriteBuffer", "",
                    cl->api.clEnqueueWriteBuffer(cl->queue, to->handle, 1, offset, bytes, from, 0,
                                                 NULL, clnet__cl_event(ctx, &event)));
    return clnet__cl_measure(ctx, CLNET__CL_ROW_UPLOAD, event, 0, (double)bytes);
}

static clnet_result clnet__cl_download(clnet_context *ctx, void *to, clnet_memory *from,
                                       size_t offset, size_t bytes) {
    clnet__cl *cl = clnet__cl_of(ctx);
    if (!clnet__cl_alive(ctx)) {
        return ctx->result;
    }
    void *event = NULL;
    clnet__cl_check(ctx, "clEnqueueReadBuffer", "",
                    cl->api.clEnqueueReadBuffer(cl->queue, from->handle, 1, offset, bytes, to, 0,
                                                NULL, clnet__cl_event(ctx, &event)));
    return clnet__cl_measure(ctx, CLNET__CL_ROW_DOWNLOAD, event, 0, (double)bytes);
}

// In pieces, each of which takes little time even where pages are touched for the first time.
enum { CLNET__CL_FILL_BYTES = 16 << 20 };
static clnet_result clnet__cl_fill(clnet_context *ctx, clnet_memory *memory, size_t offset,
                                   size_t bytes) {
    clnet__cl *cl = clnet__cl_of(ctx);
    const float zero = 0;
    for (size_t done = 0; done < bytes && clnet__cl_alive(ctx); done += CLNET__CL_FILL_BYTES) {
        const size_t left = bytes - done;
        const size_t part = left < CLNET__CL_FILL_BYTES ? left : CLNET__CL_FILL_BYTES;
        void *event = NULL;
        clnet__cl_check(ctx, "clEnqueueFillBuffer", "",
                        cl->api.clEnqueueFillBuffer(cl->queue, memory->handle, &zero, sizeof zero,
                                                    offset + done, part, 0, NULL,
                                                    clnet__cl_event(ctx, &event)));
        clnet__cl_measure(ctx, CLNET__CL_ROW_FILL, event, 0, (double)part);
    }
    return ctx->result;
}

// >>launch
// A kernel's arguments are a list of values that know their kind, in the order of the kernel's own.

// The first number of something in a slab: PLACE in kernels.cl. No slab: nothing there.
typedef struct clnet__cl_place {
    void *slab;
    uint64_t at;
} clnet__cl_place;

typedef struct clnet__cl_arg {
    enum { CLNET__CL_PLACE, CLNET__CL_INT, CLNET__CL_LONG, CLNET__CL_FLOAT, CLNET__CL_STRUCT } kind;
    union {
        clnet__cl_place place;
        int32_t i;
        uint64_t u;
        float f;
        struct {
            const void *data;
            size_t bytes;
        } structure;
    } as;
} clnet__cl_arg;

// Global and local size; local is a divisor of global. Where a launch may take long, `work` says of
// how many multiply-adds it takes the time, and it may be cut; 0: it is short.
typedef struct clnet__cl_grid {
    size_t global[3], local[3];
    double work;
} clnet__cl_grid;

static clnet__cl_arg clnet__cl_at(clnet__cl_place place) {
    return (clnet__cl_arg){.kind = CLNET__CL_PLACE, .as.place = place};
}
static clnet__cl_arg clnet__cl_int(size_t value) {
    return (clnet__cl_arg){.kind = CLNET__CL_INT, .as.i = (int32_t)value};
}
static clnet__cl_arg clnet__cl_long(uint64_t value) {
    return (clnet__cl_arg){.kind = CLNET__CL_LONG, .as.u = value};
}
static clnet__cl_arg clnet__cl_float(double value) {
    return (clnet__cl_arg){.kind = CLNET__CL_FLOAT, .as.f = (float)value};
}
static clnet__cl_arg clnet__cl_struct(const void *data, size_t bytes) {
    return (clnet__cl_arg){.kind = CLNET__CL_STRUCT, .as.structure = {data, bytes}};
}

// The values and the gradient of a tensor, and a place `floats` into the workspace.
static clnet__cl_place clnet__cl_value(const clnet_tensor *t) {
    return t ? (clnet__cl_place){t->memory->handle, t->offset / sizeof(float)}
             : (clnet__cl_place){NULL, 0};
}
static clnet__cl_place clnet__cl_grad(const clnet_tensor *t) {
    return t && t->grad_memory
               ? (clnet__cl_place){t->grad_memory->handle, t->grad_offset / sizeof(float)}
               : (clnet__cl_place){NULL, 0};
}
static clnet__cl_place clnet__cl_scratch(const clnet_graph *g, size_t floats) {
    return (clnet__cl_place){g->workspace.handle, floats};
}
static clnet__cl_place clnet__cl_behind(clnet__cl_place place, size_t floats) {
    return (clnet__cl_place){place.slab, place.at + floats};
}

static int32_t clnet__cl_set_arg(const clnet__cl *cl, void *kernel, uint32_t *index,
                                 const clnet__cl_arg *arg) {
    int32_t (*set)(void *, uint32_t, size_t, const void *) = cl->api.clSetKernelArg;
    int32_t code = 0;
    switch (arg->kind) {
    case CLNET__CL_PLACE:
        code = set(kernel, (*index)++, sizeof arg->as.place.slab, &arg->as.place.slab);
        return code ? code : set(kernel, (*index)++, sizeof arg->as.place.at, &arg->as.place.at);
    case CLNET__CL_INT: return set(kernel, (*index)++, sizeof arg->as.i, &arg->as.i);
    case CLNET__CL_LONG: return set(kernel, (*index)++, sizeof arg->as.u, &arg->as.u);
    case CLNET__CL_FLOAT: return set(kernel, (*index)++, sizeof arg->as.f, &arg->as.f);
    case CLNET__CL_STRUCT:
        return set(kernel, (*index)++, arg->as.structure.bytes, arg->as.structure.data);
    }
    return code;
}

// One launch: the part of a grid that begins at `offset`.
static clnet_result clnet__cl_launch(clnet_context *ctx, clnet__cl_kernel kernel,
                                     const clnet__cl_grid *part, const size_t offset[3]) {
    clnet__cl *cl = clnet__cl_of(ctx);
    void *event = NULL;
    clnet__cl_check(ctx, "clEnqueueNDRangeKernel", clnet__cl_kernel_name(kernel),
                    cl->api.clEnqueueNDRangeKernel(cl->queue, cl->kernels[kernel], 3, offset,
                                                   part->global, part->local, 0, NULL,
                                                   clnet__cl_event(ctx, &event)));
    return clnet__cl_measure(ctx, (int)kernel, event, 0, 0);
}

// A device that also drives a display may be reset when one launch takes seconds, and the display
// stands still meanwhile: none should take longer than 250 ms. Cuts aim at far less, since work
// differs from the convolution by which the speed was measured, and others may use the device too: on
// PoCL, two cores with ten times the work that they can do, launches aimed at 20 ms took up to 263.
static const double clnet__cl_launch_seconds = 0.01;

// How many groups along an axis one launch may have, when one of them is `work` multiply-adds.
static size_t clnet__cl_share(const clnet__cl *cl, double work, size_t groups) {
    const double share = clnet__cl_launch_seconds * cl->speed / work;
    return share < 1 ? 1 : share < (double)groups ? (size_t)share : groups;
}

// Launches a grid in pieces along its third axis, and along its second where that is not enough.
static clnet_result clnet__cl_launch_cut(clnet_context *ctx, clnet__cl_kernel kernel,
                                         const clnet__cl_grid *grid) {
    const clnet__cl *cl = clnet__cl_of(ctx);
    const size_t rows = grid->global[1] / grid->local[1];
    const size_t layers = grid->global[2] / grid->local[2];
    const double layer = grid->work / (double)layers;
    const size_t deep = clnet__cl_share(cl, layer, layers);
    const size_t tall = deep > 1 ? rows : clnet__cl_share(cl, layer / (double)rows, rows);
    for (size_t z = 0; z < layers; z += deep) {
        for (size_t y = 0; y < rows && ctx->result == CLNET_OK; y += tall) {
            const size_t offset[3] = {0, y * grid->local[1], z * grid->local[2]};
            clnet__cl_grid part = *grid;
            part.global[1] = (rows - y < tall ? rows - y : tall) * grid->local[1];
            part.global[2] = (layers - z < deep ? layers - z : deep) * grid->local[2];
            clnet__cl_launch(ctx, kernel, &part, offset);
        }
    }
    return ctx->result;
}

// The one function that sets arguments and launches.
static clnet_result clnet__cl_run(clnet_context *ctx, clnet__cl_kernel kernel, clnet__cl_grid grid,
                                  const clnet__cl_arg *args, size_t count) {
    static const size_t none[3] = {0, 0, 0};
    clnet__cl *cl = clnet__cl_of(ctx);
    uint32_t index = 0;
    for (size_t i = 0; i < count && clnet__cl_alive(ctx); i++) {
        clnet__cl_check(ctx, "clSetKernelArg", clnet__cl_kernel_name(kernel),
                        clnet__cl_set_arg(cl, cl->kernels[kernel], &index, &args[i]));
    }
    if (ctx->result != CLNET_OK) {
        return ctx->result;
    }
    return grid.work > 0 && cl->speed > 0 ? clnet__cl_launch_cut(ctx, kernel, &grid)
                                          : clnet__cl_launch(ctx, kernel, &grid, none);
}

// CLNET__CL_RUN(ctx, kernel's name, grid, arguments..); the other takes the kernel's number.
#define CLNET__CL_RUN(ctx, name, ...) CLNET__CL_RUN_KERNEL(ctx, CLNET__CL_##name, __VA_ARGS__)
#define CLNET__CL_RUN_KERNEL(ctx, kernel, grid, ...)                                               \
    clnet__cl_run(ctx, kernel, grid, (const clnet__cl_arg[]){__VA_ARGS__},                         \
                  sizeof((const clnet__cl_arg[]){__VA_ARGS__}) / sizeof(clnet__cl_arg))

static size_t clnet__cl_power_of_two(size_t at_least) {
    size_t n = 1;
    while (n < at_least) {
        n *= 2;
    }
    return n;
}

// A grid of `a` x `b` items, in groups as wide as `a` allows.
static clnet__cl_grid clnet__cl_plane(const clnet__cl *cl, size_t a, size_t b) {
    const size_t group = (size_t)cl->tuning.elements, wide = clnet__cl_power_of_two(a);
    const size_t x = wide < group ? wide : group, tall = clnet__cl_power_of_two(b);
    const size_t y = tall < group / x ? tall : group / x;
    return (clnet__cl_grid){{clnet__round_up(a, x), clnet__round_up(b, y), 1}, {x, y, 1}, 0};
}

// One item per channel and pixel of a tensor.
static clnet__cl_grid clnet__cl_elements(const clnet__cl *cl, const clnet_tensor *t) {
    return clnet__cl_plane(cl, (size_t)t->shape[1], (size_t)t->shape[0] * clnet__pixels(t));
}

// Sums over pixels: see SLICE_LOOP in kernels.cl.
static clnet__cl_grid clnet__cl_sums(const clnet__cl *cl, size_t channels, size_t slices,
                                     size_t images) {
    const size_t x = (size_t)cl->tuning.channels, y = (size_t)cl->tuning.pixels;
    return (clnet__cl_grid){{clnet__round_up(channels, x), slices * y, images}, {x, y, 1}, 0};
}

// Into how many slices the pixels of a sum are cut: enough to fill a device, a few hundred pixels each.
static size_t clnet__cl_slices(size_t pixels) {
    const size_t wanted = (pixels + 255) / 256;
    return wanted < 64 ? wanted : 64;
}

// Tiles of `depth` matrix products of `rows` x `columns` sums with `terms` each. A tile takes its time
// also where it has fewer sums.
static clnet__cl_grid clnet__cl_tiles(const clnet__cl *cl, size_t rows, size_t columns,
                                      size_t depth, size_t terms) {
    const clnet__cl_tuning *t = &cl->tuning;
    const size_t m = (size_t)(t->items_m * t->rows);
    const size_t n = (size_t)(t->items_n * t->vectors * t->width);
    const size_t x = (size_t)t->items_n, y = (size_t)t->items_m;
    const size_t across = (columns + n - 1) / n, down = (rows + m - 1) / m;
    const double work = (double)(across * n) * (double)(down * m) * (double)(depth * terms);
    return (clnet__cl_grid){{across * x, down * y, depth}, {x, y, 1}, work};
}

// Images, channels, pixels of a tensor, as arguments.
static size_t clnet__cl_images(const clnet_tensor *t) { return (size_t)t->shape[0]; }
static size_t clnet__cl_channels(const clnet_tensor *t) { return (size_t)t->shape[1]; }
static size_t clnet__cl_all_pixels(const clnet_tensor *t) {
    return (size_t)t->shape[0] * clnet__pixels(t);
}

#define AT(place)     clnet__cl_at(place)
#define INT(value)    clnet__cl_int(value)
#define LONG(value)   clnet__cl_long(value)
#define FLOAT(value)  clnet__cl_float(value)
#define STRUCT(value) clnet__cl_struct(&(value), sizeof(value))

// partial[image][slice][c] = sums of x over the pixels of each image.
static clnet_result clnet__cl_channel_sums(clnet_context *ctx, clnet__cl_place partial,
                                           clnet__cl_place x, size_t channels, size_t images,
                                           size_t pixels, size_t x_stride) {
    const size_t slices = clnet__cl_slices(pixels);
    return CLNET__CL_RUN(ctx, channel_sums,
                         clnet__cl_sums(clnet__cl_of(ctx), channels, slices, images), AT(partial),
                         AT(x), INT(channels), INT(pixels), INT(slices), INT(x_stride));
}

static clnet_result clnet__cl_add_channel_sums(clnet_context *ctx, clnet__cl_place d,
                                               clnet__cl_place partial, size_t channels,
                                               size_t images, size_t pixels, size_t d_stride) {
    return CLNET__CL_RUN(ctx, add_channel_sums,
                         clnet__cl_plane(clnet__cl_of(ctx), channels, images), AT(d), AT(partial),
                         INT(channels), INT(images), INT(clnet__cl_slices(pixels)), INT(d_stride));
}

// >>conv2d

typedef struct clnet__cl_conv_sizes { // conv_sizes of kernels.cl
    int32_t N, C, H, W, OC, OH, OW, KH, KW;
    int32_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups;
    int32_t x_stride, y_stride;
} clnet__cl_conv_sizes;

static clnet__cl_conv_sizes clnet__cl_conv_sizes_of(const clnet_conv2d_sizes *s) {
    return (clnet__cl_conv_sizes){s->N,
                                  s->C,
                                  s->H,
                                  s->W,
                                  s->OC,
                                  s->OH,
                                  s->OW,
                                  s->KH,
                                  s->KW,
                                  s->stride[0],
                                  s->stride[1],
                                  s->padding[0],
                                  s->padding[1],
                                  s->dilation[0],
                                  s->dilation[1],
                                  s->groups,
                                  (int32_t)s->x_stride,
                                  (int32_t)s->y_stride};
}

// A convolution and where everything lies; no slab: there is none, or it is not wanted.
typedef struct clnet__cl_conv {
    clnet__cl_conv_sizes s;
    clnet__cl_place y, x, w, b, dy, dx, dw, db;
    size_t taken; // floats at the beginning of the workspace that are somebody else's
} clnet__cl_conv;

static clnet__cl_conv clnet__cl_conv_of(const clnet_node *node) {
    const clnet_conv2d_sizes s =
        node->op == CLNET_OP_LINEAR ? clnet__linear_sizes(node) : clnet__conv2d_sizes(node);
    return (clnet__cl_conv){.s = clnet__cl_conv_sizes_of(&s),
                            .y = clnet__cl_value(node->out),
                            .x = clnet__cl_value(node->in[0]),
                            .w = clnet__cl_value(node->in[1]),
                            .b = clnet__cl_value(node->in[2]),
                            .dy = clnet__cl_grad(node->out),
                            .dx = clnet__cl_grad(node->in[0]),
                            .dw = clnet__cl_grad(node->in[1]),
                            .db = clnet__cl_grad(node->in[2])};
}

// The rows of a weight gradient: (kh, kw, ic), by >>direct the channels under each tap in whole tiles.
static size_t clnet__cl_weight_rows(const clnet__cl *cl, const clnet__cl_conv_sizes *s) {
    const size_t channels = (size_t)(s->C / s->groups), tile = (size_t)cl->tuning.rows;
    return clnet__volume(s->KH, s->KW, 1) *
           (cl->tuning.direct ? clnet__round_up(channels, tile) : channels);
}

// How the sums over pixels of weight gradients are cut: `slices` of `length` pixels each, whose
// partial results need `slices` times the weights; each slice rounds once per `block` pixels.
enum { CLNET__CL_WEIGHT_BLOCK = 1024, CLNET__CL_PARTIAL_BYTES = 64 << 20 };
typedef struct clnet__cl_cut {
    size_t slices, length, weights;
} clnet__cl_cut;

static clnet__cl_cut clnet__cl_weight_cut(const clnet__cl *cl, const clnet__cl_conv_sizes *s) {
    const size_t pixels = clnet__volume(s->N, s->OH, s->OW);
    const size_t rows = clnet__volume(s->KH, s->KW, s->C / s->groups);
    const clnet__cl_grid tiles = clnet__cl_tiles(cl, clnet__cl_weight_rows(cl, s),
                                                 (size_t)(s->OC / s->groups), (size_t)s->groups, 0);
    const size_t groups = tiles.global[0] / tiles.local[0] * (tiles.global[1] / tiles.local[1]) *
                          tiles.global[2];
    clnet__cl_cut cut = {.weights = rows * (size_t)s->OC};
    const size_t busy = (size_t)(cl->info.compute_units * cl->tuning.groups) / groups;
    const size_t most = (pixels + CLNET__CL_WEIGHT_BLOCK - 1) / CLNET__CL_WEIGHT_BLOCK;
    const size_t room = CLNET__CL_PARTIAL_BYTES / sizeof(float) / cut.weights;
    size_t slices = busy < most ? busy : most;
    slices = slices < room ? slices : room;
    slices = slices ? slices : 1;
    cut.length = clnet__round_up((pixels + slices - 1) / slices, CLNET__CL_WEIGHT_BLOCK);
    cut.slices = (pixels + cut.length - 1) / cut.length;
    return cut;
}

// >>blast
// Convolutions by CLBlast's matrix product: rows are gathered into a matrix of columns in the workspace,
// some thousand at a time, unless the pixels themselves are that matrix (1x1, stride 1, no padding).

enum { CLNET__CL_COLUMN_BYTES = 64 << 20, CLNET__CL_COLUMN_ROWS = 8192 };

static bool clnet__cl_blasts(const clnet__cl *cl, const clnet__cl_conv_sizes *s) {
    return cl->blasts && s->groups == 1;
}

// The pixels of x and y are the rows of the matrices.
static bool clnet__cl_pointwise(const clnet__cl_conv_sizes *s) {
    return s->KH * s->KW == 1 && s->stride_h * s->stride_w == 1 && s->padding_h + s->padding_w == 0;
}

// How many rows of `terms` numbers are gathered at a time. Few enough that the float32 sums over them
// stay within a few roundings.
static size_t clnet__cl_column_rows(size_t terms) {
    const size_t rows = CLNET__CL_COLUMN_BYTES / sizeof(float) / terms;
    return rows < 1 ? 1 : rows < CLNET__CL_COLUMN_ROWS ? rows : CLNET__CL_COLUMN_ROWS;
}

static size_t clnet__cl_columns(size_t pixels, size_t terms) {
    const size_t rows = clnet__cl_column_rows(terms);
    return (pixels < rows ? pixels : rows) * terms;
}

// The transposed weights, then columns.
static size_t clnet__cl_blast_workspace(const clnet__cl_conv_sizes *s) {
    const size_t taps = clnet__volume(1, s->KH, s->KW);
    const size_t weights = taps * (size_t)s->C * (size_t)s->OC;
    const size_t input = clnet__cl_columns(clnet__volume(s->N, s->OH, s->OW), taps * (size_t)s->C);
    const size_t output = clnet__cl_columns(clnet__volume(s->N, s->H, s->W), taps * (size_t)s->OC);
    return clnet__cl_pointwise(s) ? 0 : weights + (input > output ? input : output);
}

// A matrix by rows: the place of its first number, numbers from row to row, and whether the product
// takes it transposed.
typedef struct clnet__cl_matrix {
    clnet__cl_place place;
    size_t stride;
    bool transposed;
} clnet__cl_matrix;

// c = a b + beta c: c has m rows and n columns, sums have k terms.
static int32_t clnet__cl_sgemm(clnet__cl *cl, size_t m, size_t n, size_t k, clnet__cl_matrix a,
                               clnet__cl_matrix b, float beta, clnet__cl_matrix c, void **event) {
    enum { ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112 };
    return cl->blast.sgemm(ROW_MAJOR, a.transposed ? TRANSPOSED : PLAIN,
                           b.transposed ? TRANSPOSED : PLAIN, m, n, k, 1.0f, a.place.slab,
                           (size_t)a.place.at, a.stride, b.place.slab, (size_t)b.place.at, b.stride,
                           beta, c.place.slab, (size_t)c.place.at, c.stride, &cl->queue, event);
}

static clnet_result clnet__cl_gemm(clnet_context *ctx, size_t m, size_t n, size_t k,
                                   clnet__cl_matrix a, clnet__cl_matrix b, float beta,
                                   clnet__cl_matrix c) {
    clnet__cl *cl = clnet__cl_of(ctx);
    void *event = NULL;
    if (!clnet__cl_alive(ctx)) {
        return ctx->result;
    }
    const double start = clnet__cpu_clock(ctx);
    const int32_t code =
        clnet__cl_sgemm(cl, m, n, k, a, b, beta, c, clnet__cl_event(ctx, &event));
    if (clnet__cl_check(ctx, "CLBlastSgemm", "", code) != CLNET_OK || !event) {
        return ctx->result;
    }
    // Several kernels make one product, and the event is the last one's: the host's clock tells.
    clnet__cl_check(ctx, "clWaitForEvents", "CLBlast", cl->api.clWaitForEvents(1, &event));
    clnet__cl_check(ctx, "clReleaseEvent", "CLBlast", cl->api.clReleaseEvent(event));
    clnet__profile_add(&cl->rows[CLNET__CL_ROW_BLAST], CLNET_CLOCK() - start,
                       (double)m * (double)n * (double)k, 0);
    return ctx->result;
}

// The matrix of `rows` rows of x under the taps, from output pixel `first` on.
static clnet__cl_matrix clnet__cl_input_matrix(clnet_graph *g, const clnet__cl_conv *c,
                                               size_t first, size_t rows) {
    const clnet__cl_conv_sizes *s = &c->s;
    const clnet__cl_place scratch = clnet__cl_scratch(g, c->taken);
    const size_t terms = clnet__volume(s->KH, s->KW, s->C);
    if (clnet__cl_pointwise(s)) {
        return (clnet__cl_matrix){clnet__cl_behind(c->x, first * (size_t)s->x_stride),
                                  (size_t)s->x_stride, false};
    }
    CLNET__CL_RUN(g->ctx, columns_of_input, clnet__cl_plane(clnet__cl_of(g->ctx), terms, rows),
                  AT(scratch), AT(c->x), STRUCT(*s), INT(first), INT(rows));
    return (clnet__cl_matrix){scratch, terms, false};
}

static clnet_result clnet__cl_blast_forward(clnet_graph *g, const clnet__cl_conv *c) {
    const clnet__cl_conv_sizes *s = &c->s;
    const size_t pixels = clnet__volume(s->N, s->OH, s->OW), OC = (size_t)s->OC;
    const size_t terms = clnet__volume(s->KH, s->KW, s->C), step = clnet__cl_column_rows(terms);
    const clnet__cl_matrix w = {c->w, OC, false};
    if (c->b.slab) {
        CLNET__CL_RUN(g->ctx, broadcast_bias, clnet__cl_plane(clnet__cl_of(g->ctx), OC, pixels),
                      AT(c->y), AT(c->b), INT(OC), INT(pixels), INT((size_t)s->y_stride));
    }
    for (size_t first = 0; first < pixels && g->ctx->result == CLNET_OK; first += step) {
        const size_t rows = pixels - first < step ? pixels - first : step;
        const clnet__cl_matrix x = clnet__cl_input_matrix(g, c, first, rows);
        const clnet__cl_place out = clnet__cl_behind(c->y, first * (size_t)s->y_stride);
        clnet__cl_gemm(g->ctx, rows, OC, terms, x, w, c->b.slab ? 1.0f : 0.0f,
                       (clnet__cl_matrix){out, (size_t)s->y_stride, false});
    }
    return g->ctx->result;
}

// dx += dy w: pointwise with w transposed by the product, else with the taps transposed once.
static void clnet__cl_blast_data(clnet_graph *g, const clnet__cl_conv *c) {
    const clnet__cl_conv_sizes *s = &c->s;
    const clnet__cl *cl = clnet__cl_of(g->ctx);
    const bool pointwise = clnet__cl_pointwise(s);
    const size_t pixels = clnet__volume(s->N, s->H, s->W), IC = (size_t)s->C, OC = (size_t)s->OC;
    const size_t taps = clnet__volume(1, s->KH, s->KW), terms = taps * OC;
    const size_t step = clnet__cl_column_rows(terms);
    const clnet__cl_place flipped = clnet__cl_scratch(g, c->taken);
    const clnet__cl_place columns = clnet__cl_scratch(g, c->taken + terms * IC);
    clnet__cl_matrix w = {c->w, OC, true};
    if (!pointwise) {
        CLNET__CL_RUN(g->ctx, transpose_taps, clnet__cl_plane(cl, IC, terms), AT(flipped),
                      AT(w.place), INT(taps), INT(IC), INT(OC));
        w = (clnet__cl_matrix){flipped, IC, false};
    }
    for (size_t first = 0; first < pixels && g->ctx->result == CLNET_OK; first += step) {
        const size_t rows = pixels - first < step ? pixels - first : step;
        clnet__cl_matrix a = {clnet__cl_behind(c->dy, first * (size_t)s->y_stride),
                              (size_t)s->y_stride, false};
        if (!pointwise) {
            CLNET__CL_RUN(g->ctx, columns_of_gradient, clnet__cl_plane(cl, terms, rows),
                          AT(columns), AT(c->dy), STRUCT(*s), INT(first), INT(rows));
            a = (clnet__cl_matrix){columns, terms, false};
        }
        const clnet__cl_place out = clnet__cl_behind(c->dx, first * (size_t)s->x_stride);
        clnet__cl_gemm(g->ctx, rows, IC, terms, a, w, 1.0f,
                       (clnet__cl_matrix){out, (size_t)s->x_stride, false});
    }
}

// dw += x^T dy, some rows after the other.
static void clnet__cl_blast_weight(clnet_graph *g, const clnet__cl_conv *c) {
    const clnet__cl_conv_sizes *s = &c->s;
    const size_t pixels = clnet__volume(s->N, s->OH, s->OW), OC = (size_t)s->OC;
    const size_t terms = clnet__volume(s->KH, s->KW, s->C), step = clnet__cl_column_rows(terms);
    const clnet__cl_matrix dw = {c->dw, OC, false};
    for (size_t first = 0; first < pixels && g->ctx->result == CLNET_OK; first += step) {
        const size_t rows = pixels - first < step ? pixels - first : step;
        clnet__cl_matrix x = clnet__cl_input_matrix(g, c, first, rows);
        x.transposed = true;
        const clnet__cl_place slope = clnet__cl_behind(c->dy, first * (size_t)s->y_stride);
        clnet__cl_gemm(g->ctx, terms, OC, rows, x,
                       (clnet__cl_matrix){slope, (size_t)s->y_stride, false}, 1.0f, dw);
    }
}

// CLBlast has to prove itself on the device before it is used: products of small whole numbers, which
// have to be exact, in every combination of transposition that is used, small and large (CLBlast has
// different kernels for them), into NaN with beta = 0 and into numbers with beta = 1, between guards.
enum { CLNET__CL_GUARD = 64 };
typedef struct clnet__cl_trial {
    size_t m, n, k;
    bool a_transposed, b_transposed;
    float beta;
} clnet__cl_trial;

// Whole numbers from -4 to 4.
static float clnet__cl_trial_number(size_t i) { return (float)(int)(i * 2654435761u % 9) - 4; }

static float clnet__cl_trial_sum(const clnet__cl_trial *t, size_t row, size_t column) {
    float sum = t->beta != 0 ? 3.0f : 0.0f;
    for (size_t i = 0; i < t->k; i++) {
        const size_t a = t->a_transposed ? i * t->m + row : row * t->k + i;
        const size_t b = t->b_transposed ? column * t->k + i : i * t->n + column;
        sum += clnet__cl_trial_number(a) * clnet__cl_trial_number(b + 7);
    }
    return sum;
}

// The first and the last rows and columns, and some between; and all guards.
static bool clnet__cl_trial_right(const clnet__cl_trial *t, const float *c) {
    const size_t count = t->m * t->n;
    bool right = true;
    for (size_t i = 0; i < CLNET__CL_GUARD; i++) {
        right = right && c[i] == 5.0f && c[CLNET__CL_GUARD + count + i] == 5.0f;
    }
    for (size_t i = 0; i < count && right; i++) {
        const size_t row = i / t->n, column = i % t->n;
        const bool edge = row < 2 || column < 2 || row + 2 > t->m || column + 2 > t->n;
        const float value = c[CLNET__CL_GUARD + i];
        right = edge || i % 61 == 0 ? value == clnet__cl_trial_sum(t, row, column)
                                    : value == value;
    }
    return right;
}

// `code` is CLBlast's own, which is no error of the device: the context can do without CLBlast.
static bool clnet__cl_try_product(clnet_context *ctx, const clnet__cl_trial *t, float *host,
                                  clnet_memory memory[3], int32_t *code) {
    const size_t sizes[3] = {t->m * t->k, t->k * t->n, t->m * t->n + 2 * CLNET__CL_GUARD};
    for (int i = 0; i < 3; i++) {
        for (size_t k = 0; k < sizes[i]; k++) {
            const bool guard = k < CLNET__CL_GUARD || k >= sizes[2] - CLNET__CL_GUARD;
            host[k] = i < 2   ? clnet__cl_trial_number(i == 0 ? k : k + 7)
                      : guard ? 5.0f
                              : (t->beta != 0 ? 3.0f : NAN);
        }
        clnet__cl_upload(ctx, &memory[i], 0, host, sizes[i] * sizeof *host);
    }
    const clnet__cl_matrix a = {{memory[0].handle, 0}, t->a_transposed ? t->m : t->k,
                                t->a_transposed};
    const clnet__cl_matrix b = {{memory[1].handle, 0}, t->b_transposed ? t->k : t->n,
                                t->b_transposed};
    const clnet__cl_matrix c = {{memory[2].handle, CLNET__CL_GUARD}, t->n, false};
    if (ctx->result != CLNET_OK) {
        return false;
    }
    *code = clnet__cl_sgemm(clnet__cl_of(ctx), t->m, t->n, t->k, a, b, t->beta, c, NULL);
    return *code == 0 &&
           clnet__cl_download(ctx, host, &memory[2], 0, sizes[2] * sizeof *host) == CLNET_OK &&
           clnet__cl_trial_right(t, host);
}

static bool clnet__cl_blast_is_right(clnet_context *ctx, int32_t *code) {
    enum { LARGEST = 520 * 520 + 2 * CLNET__CL_GUARD };
    static const clnet__cl_trial trials[] = {
        {67, 45, 131, false, false, 0}, {67, 45, 131, false, false, 1}, {61, 47, 90, false, true, 1},
        {75, 33, 101, true, false, 1},  {515, 519, 513, false, false, 0}, {517, 513, 511, false, true, 1},
        {509, 515, 517, true, false, 1}};
    clnet_memory memory[3] = {{NULL, 0}, {NULL, 0}, {NULL, 0}};
    float *host = clnet__alloc(ctx, LARGEST * sizeof *host);
    bool right = host != NULL;
    for (int i = 0; i < 3; i++) {
        right = right && clnet__cl_alloc(ctx, &memory[i], LARGEST * sizeof *host);
    }
    for (size_t i = 0; right && i < sizeof trials / sizeof *trials; i++) {
        right = clnet__cl_try_product(ctx, &trials[i], host, memory, code);
    }
    for (int i = 0; i < 3; i++) {
        if (memory[i].handle) {
            clnet__cl_free(ctx, &memory[i]);
        }
    }
    clnet__free(ctx, host);
    return right;
}

// Tries CLBlast, and says how that went.
static void clnet__cl_try_blast(clnet_context *ctx, char *why, size_t bytes) {
    clnet__cl *cl = clnet__cl_of(ctx);
    int32_t code = 0;
    cl->blasts = clnet__cl_blast_is_right(ctx, &code);
    if (code != 0) {
        snprintf(why, bytes, "; CLBlast FAILS on this device: CLBlastSgemm: %s (%d)",
                 clnet__cl_code_name(code), (int)code);
    } else {
        snprintf(why, bytes, "%s",
                 cl->blasts ? ", checked on this device"
                            : "; CLBlast's results are WRONG on this device");
    }
    if (!cl->blasts) {
        cl->blast.clear_cache(); // it holds on to programs of this context
    }
}

// Chooses what makes the matrix products of a context, and says why.
static void clnet__cl_choose_product(clnet_context *ctx, const clnet_cl_desc *d) {
    clnet__cl *cl = clnet__cl_of(ctx);
    char why[128];
    if (d->no_clblast) {
        snprintf(why, sizeof why, ", as asked for");
    } else if (!clnet__cl_load_blast(&cl->blast)) {
        snprintf(why, sizeof why, "; CLBlast is not there");
    } else if (!cl->tuning.blast && !d->always_clblast) {
        snprintf(why, sizeof why,
                 "; CLBlast is there, but not the better choice on this kind of device");
    } else {
        clnet__cl_try_blast(ctx, why, sizeof why);
    }
    snprintf(cl->product, sizeof cl->product, "matrix products by %s%s",
             cl->blasts ? "CLBlast" : "kernels.cl", why);
}

// Multiply-adds of one pass.
static double clnet__cl_macs(const clnet__cl_conv_sizes *s) {
    return (double)s->N * s->OH * s->OW * s->OC * ((double)s->KH * s->KW * s->C / s->groups);
}

static clnet__cl_kernel clnet__cl_forward_kernel(const clnet__cl *cl) {
    return cl->tuning.direct ? CLNET__CL_direct_forward : CLNET__CL_conv2d_forward;
}

// y = b + x * w by the device's own kernel.
static clnet_result clnet__cl_convolve(clnet_context *ctx, clnet__cl_place y, clnet__cl_place x,
                                       clnet__cl_place w, clnet__cl_place b,
                                       const clnet__cl_conv_sizes *s) {
    clnet__cl *cl = clnet__cl_of(ctx);
    const clnet__cl_kernel kernel = clnet__cl_forward_kernel(cl);
    const clnet__cl_grid grid =
        clnet__cl_tiles(cl, clnet__volume(s->N, s->OH, s->OW), (size_t)(s->OC / s->groups),
                        (size_t)s->groups, clnet__volume(s->KH, s->KW, s->C / s->groups));
    cl->rows[kernel].macs += clnet__cl_macs(s);
    return CLNET__CL_RUN_KERNEL(ctx, kernel, grid, AT(y), AT(x), AT(w), AT(b), STRUCT(*s));
}

static clnet_result clnet__cl_conv_forward(clnet_graph *g, const clnet__cl_conv *c) {
    return clnet__cl_blasts(clnet__cl_of(g->ctx), &c->s)
               ? clnet__cl_blast_forward(g, c)
               : clnet__cl_convolve(g->ctx, c->y, c->x, c->w, c->b, &c->s);
}

static void clnet__cl_conv_data(clnet_graph *g, const clnet__cl_conv *c) {
    clnet__cl *cl = clnet__cl_of(g->ctx);
    const clnet__cl_conv_sizes *s = &c->s;
    const size_t columns = (size_t)(s->C / s->groups), taps = clnet__volume(1, s->KH, s->KW);
    clnet__cl_kernel kernel = CLNET__CL_conv2d_backward_data;
    clnet__cl_place w = c->w;
    if (cl->tuning.direct) {
        const clnet__cl_place flipped = clnet__cl_scratch(g, c->taken);
        CLNET__CL_RUN(g->ctx, transpose_taps, clnet__cl_plane(cl, columns, taps * (size_t)s->OC),
                      AT(flipped), AT(w), INT(taps), INT(columns), INT((size_t)s->OC));
        kernel = CLNET__CL_direct_backward_data;
        w = flipped;
    }
    cl->rows[kernel].macs += clnet__cl_macs(s);
    CLNET__CL_RUN_KERNEL(g->ctx, kernel,
                         clnet__cl_tiles(cl, clnet__volume(s->N, s->H, s->W), columns,
                                         (size_t)s->groups, taps * (size_t)(s->OC / s->groups)),
                         AT(c->dx), AT(c->dy), AT(w), STRUCT(*s));
}

static void clnet__cl_conv_weight(clnet_graph *g, const clnet__cl_conv *c) {
    clnet__cl *cl = clnet__cl_of(g->ctx);
    const clnet__cl_conv_sizes *s = &c->s;
    const clnet__cl_cut cut = clnet__cl_weight_cut(cl, s);
    const clnet__cl_place partial = clnet__cl_scratch(g, c->taken);
    const clnet__cl_kernel kernel = cl->tuning.direct ? CLNET__CL_direct_backward_weight
                                                      : CLNET__CL_conv2d_backward_weight;
    cl->rows[kernel].macs += clnet__cl_macs(s);
    CLNET__CL_RUN_KERNEL(g->ctx, kernel,
                         clnet__cl_tiles(cl, clnet__cl_weight_rows(cl, s),
                                         (size_t)(s->OC / s->groups),
                                         cut.slices * (size_t)s->groups, cut.length),
                         AT(partial), AT(c->dy), AT(c->x), STRUCT(*s), INT(cut.length),
                         INT(CLNET__CL_WEIGHT_BLOCK));
    CLNET__CL_RUN(g->ctx, add_slices, clnet__cl_plane(cl, cut.weights, 1), AT(c->dw), AT(partial),
                  LONG(cut.weights), INT(cut.slices));
}

static void clnet__cl_conv_bias(clnet_graph *g, const clnet__cl_conv *c) {
    const size_t pixels = clnet__volume(c->s.N, c->s.OH, c->s.OW), channels = (size_t)c->s.OC;
    const clnet__cl_place partial = clnet__cl_scratch(g, c->taken);
    clnet__cl_channel_sums(g->ctx, partial, c->dy, channels, 1, pixels, (size_t)c->s.y_stride);
    clnet__cl_add_channel_sums(g->ctx, c->db, partial, channels, 1, pixels, channels);
}

static clnet_result clnet__cl_conv_backward(clnet_graph *g, const clnet__cl_conv *c) {
    const bool blast = clnet__cl_blasts(clnet__cl_of(g->ctx), &c->s);
    if (c->dx.slab) {
        (blast ? clnet__cl_blast_data : clnet__cl_conv_data)(g, c);
    }
    if (c->dw.slab) {
        (blast ? clnet__cl_blast_weight : clnet__cl_conv_weight)(g, c);
    }
    if (c->db.slab) {
        clnet__cl_conv_bias(g, c);
    }
    return g->ctx->result;
}

// Floats of scratch: columns or partial weight gradients, then the bias's sums, one at a time.
static size_t clnet__cl_conv_workspace(const clnet__cl *cl, const clnet__cl_conv_sizes *s,
                                       bool backward) {
    const clnet__cl_cut cut = clnet__cl_weight_cut(cl, s);
    const size_t bias = 2 * clnet__cl_slices(clnet__volume(s->N, s->OH, s->OW)) * (size_t)s->OC;
    const size_t partial = cut.slices * cut.weights;
    if (clnet__cl_blasts(cl, s)) {
        const size_t columns = clnet__cl_blast_workspace(s);
        return columns > bias ? columns : bias;
    }
    return !backward ? 0 : partial > bias ? partial : bias;
}

static clnet_result clnet__cl_conv2d_forward(clnet_graph *g, clnet_node *node) {
    const clnet__cl_conv c = clnet__cl_conv_of(node);
    return clnet__cl_conv_forward(g, &c);
}

static clnet_result clnet__cl_conv2d_backward(clnet_graph *g, clnet_node *node) {
    const clnet__cl_conv c = clnet__cl_conv_of(node);
    return clnet__cl_conv_backward(g, &c);
}

static size_t clnet__cl_conv2d_workspace(const clnet__cl *cl, const clnet_node *node) {
    const clnet__cl_conv c = clnet__cl_conv_of(node);
    return clnet__cl_conv_workspace(cl, &c.s, node->backward);
}

// >>linear

static clnet_result clnet__cl_linear_forward(clnet_graph *g, clnet_node *node) {
    return clnet__cl_conv2d_forward(g, node);
}

static clnet_result clnet__cl_linear_backward(clnet_graph *g, clnet_node *node) {
    return clnet__cl_conv2d_backward(g, node);
}

// >>batch_norm
// The workspace: three rows of numbers per channel, then partial sums. saved: mean, invstd, factor
// and shift; where the output is computed again they are there.

static size_t clnet__cl_batch_norm_workspace(const clnet_node *node) {
    const clnet_tensor *x = node->in[0];
    return clnet__cl_channels(x) * (3 + 6 * clnet__cl_slices(clnet__cl_all_pixels(x)));
}

// centre (in the first two rows) and the partial sums of squares around it.
static void clnet__cl_batch_norm_moments(clnet_graph *g, const clnet_tensor *x,
                                         clnet__cl_place partial) {
    clnet__cl *cl = clnet__cl_of(g->ctx);
    const size_t C = clnet__cl_channels(x), pixels = clnet__cl_all_pixels(x);
    const size_t slices = clnet__cl_slices(pixels);
    const clnet__cl_place centre = clnet__cl_scratch(g, 0), value = clnet__cl_value(x);
    clnet__cl_channel_sums(g->ctx, partial, value, C, 1, pixels, x->stride);
    CLNET__CL_RUN(g->ctx, batch_norm_mean, clnet__cl_plane(cl, C, 1), AT(centre), AT(partial),
                  INT(C), INT(slices), INT(pixels));
    CLNET__CL_RUN(g->ctx, batch_norm_squares, clnet__cl_sums(cl, C, slices, 1), AT(partial),
                  AT(value), AT(centre), INT(C), INT(pixels), INT(slices), INT(x->stride));
}

static clnet_result clnet__cl_batch_norm_forward(clnet_graph *g, clnet_node *node) {
    clnet__cl *cl = clnet__cl_of(g->ctx);
    const clnet_tensor *x = node->in[0], *y = node->out;
    const size_t C = clnet__cl_channels(x), pixels = clnet__cl_all_pixels(x);
    const clnet__cl_place centre = clnet__cl_scratch(g, 0), partial = clnet__cl_scratch(g, 3 * C);
    const clnet__cl_place mean = clnet__cl_value(node->saved[0]);
    const clnet__cl_place factor = clnet__cl_value(node->saved[2]);
    const clnet__cl_place shift = {factor.slab, factor.at + C};
    const clnet_batch_norm_desc *d = &node->desc.batch_norm;
    if (g->training && !g->again) {
        clnet__cl_batch_norm_moments(g, x, partial);
    }
    if (!g->again) {
        CLNET__CL_RUN(g->ctx, batch_norm_statistics, clnet__cl_plane(cl, C, 1), AT(mean),
                      AT(clnet__cl_value(node->saved[1])), AT(clnet__cl_value(node->in[3])),
                      AT(clnet__cl_value(node->in[4])), AT(factor), AT(shift), AT(partial),
                      AT(centre), AT(clnet__cl_value(node->in[1])),
                      AT(clnet__cl_value(node->in[2])), FLOAT(d->eps), FLOAT(d->momentum),
                      FLOAT((double)pixels / ((double)pixels - 1)), INT(C), INT(pixels),
                      INT(g->training ? clnet__cl_slices(pixels) : 0));
    }
    return CLNET__CL_RUN(g->ctx, batch_norm_apply, clnet__cl_elements(cl, x),
                         AT(clnet__cl_value(y)), AT(clnet__cl_value(x)), AT(mean), AT(factor),
                         AT(shift), INT(C), INT(pixels), INT(x->stride), INT(y->stride));
}

static clnet_result clnet__cl_batch_norm_backward(clnet_graph *g, clnet_node *node) {
    clnet__cl *cl = clnet__cl_of(g->ctx);
    const clnet_tensor *x = node->in[0], *y = node->out;
    const size_t C = clnet__cl_channels(x), pixels = clnet__cl_all_pixels(x);
    const size_t slices = clnet__cl_slices(pixels);
    const clnet__cl_place scale = clnet__cl_scratch(g, 0), shift = clnet__cl_scratch(g, C);
    const clnet__cl_place slope = clnet__cl_scratch(g, 2 * C), partial = clnet__cl_scratch(g, 3 * C);
    const clnet__cl_place dy = clnet__cl_grad(y), mean = clnet__cl_value(node->saved[0]);
    CLNET__CL_RUN(g->ctx, batch_norm_backward_sums, clnet__cl_sums(cl, C, slices, 1), AT(partial),
                  AT(dy), AT(clnet__cl_value(x)), AT(mean), INT(C), INT(pixels), INT(slices),
                  INT(x->stride), INT(y->stride));
    CLNET__CL_RUN(g->ctx, batch_norm_backward_weights, clnet__cl_plane(cl, C, 1),
                  AT(clnet__cl_grad(node->in[1])), AT(clnet__cl_grad(node->in[2])), AT(scale),
                  AT(shift), AT(slope), AT(partial), AT(clnet__cl_value(node->in[1])),
                  AT(clnet__cl_value(node->saved[1])),
                  FLOAT(g->training ? 1 / (double)pixels : 0), INT(C), INT(slices));
    if (clnet__cl_grad(x).slab) {
        CLNET__CL_RUN(g->ctx, batch_norm_backward_data, clnet__cl_elements(cl, x),
                      AT(clnet__cl_grad(x)), AT(dy), AT(clnet__cl_value(x)), AT(mean), AT(scale),
                      AT(shift), AT(slope), INT(C), INT(pixels), INT(x->stride), INT(y->stride));
    }
    return g->ctx->result;
}

// >>relu

static clnet_result clnet__cl_relu_forward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *x = node->in[0], *y = node->out;
    return CLNET__CL_RUN(g->ctx, relu_forward, clnet__cl_elements(clnet__cl_of(g->ctx), x),
                         AT(clnet__cl_value(y)), AT(clnet__cl_value(x)),
                         INT(clnet__cl_channels(x)), INT(clnet__cl_all_pixels(x)), INT(x->stride),
                         INT(y->stride));
}

static clnet_result clnet__cl_relu_backward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *x = node->in[0], *y = node->out;
    return CLNET__CL_RUN(g->ctx, relu_backward, clnet__cl_elements(clnet__cl_of(g->ctx), x),
                         AT(clnet__cl_grad(x)), AT(clnet__cl_grad(y)), AT(clnet__cl_value(y)),
                         INT(node->in_place), INT(clnet__cl_channels(x)),
                         INT(clnet__cl_all_pixels(x)), INT(x->stride), INT(y->stride));
}

// >>sigmoid

static clnet_result clnet__cl_sigmoid_forward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *x = node->in[0], *y = node->out;
    return CLNET__CL_RUN(g->ctx, sigmoid_forward, clnet__cl_elements(clnet__cl_of(g->ctx), x),
                         AT(clnet__cl_value(y)), AT(clnet__cl_value(x)),
                         INT(clnet__cl_channels(x)), INT(clnet__cl_all_pixels(x)), INT(x->stride),
                         INT(y->stride));
}

static clnet_result clnet__cl_sigmoid_backward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *x = node->in[0], *y = node->out;
    return CLNET__CL_RUN(g->ctx, sigmoid_backward, clnet__cl_elements(clnet__cl_of(g->ctx), x),
                         AT(clnet__cl_grad(x)), AT(clnet__cl_grad(y)), AT(clnet__cl_value(y)),
                         INT(clnet__cl_channels(x)), INT(clnet__cl_all_pixels(x)), INT(x->stride),
                         INT(y->stride));
}

// >>softmax

static clnet_result clnet__cl_softmax(clnet_graph *g, const clnet_node *node, bool backward) {
    const clnet_tensor *x = node->in[0], *y = node->out;
    const size_t axis = (size_t)node->desc.axis, H = (size_t)x->shape[2], W = (size_t)x->shape[3];
    const size_t lines =
        axis == 1 ? H * W : clnet__cl_channels(x) * (axis == 2 ? W : H);
    const clnet__cl_grid grid =
        clnet__cl_plane(clnet__cl_of(g->ctx), lines, clnet__cl_images(x));
    if (backward) {
        return CLNET__CL_RUN(g->ctx, softmax_backward, grid, AT(clnet__cl_grad(x)),
                             AT(clnet__cl_grad(y)), AT(clnet__cl_value(y)), INT(axis), INT(lines),
                             INT(clnet__cl_images(x)), INT(clnet__cl_channels(x)), INT(H), INT(W), INT(x->stride),
                             INT(y->stride));
    }
    return CLNET__CL_RUN(g->ctx, softmax_forward, grid, AT(clnet__cl_value(y)),
                         AT(clnet__cl_value(x)), INT(axis), INT(lines), INT(clnet__cl_images(x)),
                         INT(clnet__cl_channels(x)), INT(H), INT(W), INT(x->stride), INT(y->stride));
}

static clnet_result clnet__cl_softmax_forward(clnet_graph *g, clnet_node *node) {
    return clnet__cl_softmax(g, node, false);
}

static clnet_result clnet__cl_softmax_backward(clnet_graph *g, clnet_node *node) {
    return clnet__cl_softmax(g, node, true);
}

// >>max_pool2d

typedef struct clnet__cl_pool_sizes { // pool_sizes of kernels.cl
    int32_t N, C, H, W, OH, OW, KH, KW;
    int32_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
    int32_t exclude_pad, x_stride, y_stride;
} clnet__cl_pool_sizes;

static clnet__cl_pool_sizes clnet__cl_pool_of(const clnet_node *node) {
    const clnet_tensor *x = node->in[0], *y = node->out;
    const clnet_pool2d_desc *d = &node->desc.pool2d;
    return (clnet__cl_pool_sizes){x->shape[0],
                                  x->shape[1],
                                  x->shape[2],
                                  x->shape[3],
                                  y->shape[2],
                                  y->shape[3],
                                  d->kernel_size[0],
                                  d->kernel_size[1],
                                  d->stride[0],
                                  d->stride[1],
                                  d->padding[0],
                                  d->padding[1],
                                  d->dilation[0],
                                  d->dilation[1],
                                  d->count_exclude_pad,
                                  (int32_t)x->stride,
                                  (int32_t)y->stride};
}

static clnet_result clnet__cl_max_pool2d_forward(clnet_graph *g, clnet_node *node) {
    const clnet__cl_pool_sizes s = clnet__cl_pool_of(node);
    return CLNET__CL_RUN(g->ctx, max_pool2d_forward,
                         clnet__cl_elements(clnet__cl_of(g->ctx), node->out),
                         AT(clnet__cl_value(node->out)), AT(clnet__cl_value(node->saved[0])),
                         AT(clnet__cl_value(node->in[0])), STRUCT(s));
}

static clnet_result clnet__cl_max_pool2d_backward(clnet_graph *g, clnet_node *node) {
    const clnet__cl_pool_sizes s = clnet__cl_pool_of(node);
    return CLNET__CL_RUN(g->ctx, max_pool2d_backward,
                         clnet__cl_elements(clnet__cl_of(g->ctx), node->in[0]),
                         AT(clnet__cl_grad(node->in[0])), AT(clnet__cl_grad(node->out)),
                         AT(clnet__cl_value(node->saved[0])), STRUCT(s));
}

// >>avg_pool2d

static clnet_result clnet__cl_avg_pool2d_forward(clnet_graph *g, clnet_node *node) {
    const clnet__cl_pool_sizes s = clnet__cl_pool_of(node);
    return CLNET__CL_RUN(g->ctx, avg_pool2d_forward,
                         clnet__cl_elements(clnet__cl_of(g->ctx), node->out),
                         AT(clnet__cl_value(node->out)), AT(clnet__cl_value(node->in[0])),
                         STRUCT(s));
}

static clnet_result clnet__cl_avg_pool2d_backward(clnet_graph *g, clnet_node *node) {
    const clnet__cl_pool_sizes s = clnet__cl_pool_of(node);
    return CLNET__CL_RUN(g->ctx, avg_pool2d_backward,
                         clnet__cl_elements(clnet__cl_of(g->ctx), node->in[0]),
                         AT(clnet__cl_grad(node->in[0])), AT(clnet__cl_grad(node->out)),
                         STRUCT(s));
}

// >>global_avg_pool

// Partial sums of every image's channels.
static size_t clnet__cl_image_sums_workspace(const clnet_tensor *x) {
    return 2 * clnet__cl_images(x) * clnet__cl_slices(clnet__pixels(x)) * clnet__cl_channels(x);
}

static clnet_result clnet__cl_global_avg_pool_forward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *x = node->in[0], *y = node->out;
    const size_t C = clnet__cl_channels(x), N = clnet__cl_images(x), pixels = clnet__pixels(x);
    const clnet__cl_place partial = clnet__cl_scratch(g, 0);
    clnet__cl_channel_sums(g->ctx, partial, clnet__cl_value(x), C, N, pixels, x->stride);
    return CLNET__CL_RUN(g->ctx, global_avg_pool_forward,
                         clnet__cl_plane(clnet__cl_of(g->ctx), C, N), AT(clnet__cl_value(y)),
                         AT(partial), INT(C), INT(N), INT(clnet__cl_slices(pixels)), INT(pixels),
                         INT(y->stride));
}

static clnet_result clnet__cl_global_avg_pool_backward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *x = node->in[0], *y = node->out;
    return CLNET__CL_RUN(g->ctx, global_avg_pool_backward,
                         clnet__cl_elements(clnet__cl_of(g->ctx), x), AT(clnet__cl_grad(x)),
                         AT(clnet__cl_grad(y)), INT(clnet__cl_channels(x)),
                         INT(clnet__cl_images(x)), INT(clnet__pixels(x)), INT(x->stride),
                         INT(y->stride));
}

// >>upsample_bilinear

typedef struct clnet__cl_upsample_sizes { // upsample_sizes of kernels.cl
    int32_t N, C, H, W, OH, OW, align_corners;
    float scale_h, scale_w;
    int32_t x_stride, y_stride;
} clnet__cl_upsample_sizes;

// x of (N,C,H,W), y of OH x OW.
static clnet__cl_upsample_sizes clnet__cl_upsample_of(const clnet_tensor *x, const clnet_tensor *y,
                                                      bool corners) {
    return (clnet__cl_upsample_sizes){x->shape[0],
                                      y->shape[1],
                                      x->shape[2],
                                      x->shape[3],
                                      y->shape[2],
                                      y->shape[3],
                                      corners,
                                      clnet__upsample_scale(x->shape[2], y->shape[2], corners),
                                      clnet__upsample_scale(x->shape[3], y->shape[3], corners),
                                      (int32_t)x->stride,
                                      (int32_t)y->stride};
}

// y = U(x), or y += U(x)
static clnet_result clnet__cl_upsample(clnet_context *ctx, clnet__cl_place y, clnet__cl_place x,
                                       bool add, const clnet__cl_upsample_sizes *s) {
    const size_t pixels = clnet__volume(s->N, s->OH, s->OW);
    return CLNET__CL_RUN(ctx, upsample_bilinear_forward,
                         clnet__cl_plane(clnet__cl_of(ctx), (size_t)s->C, pixels), AT(y), AT(x),
                         INT(add), STRUCT(*s));
}

// dx += U' dy
static clnet_result clnet__cl_upsample_back(clnet_context *ctx, clnet__cl_place dx,
                                            clnet__cl_place dy,
                                            const clnet__cl_upsample_sizes *s) {
    const size_t pixels = clnet__volume(s->N, s->H, s->W);
    clnet__cl_grid grid = clnet__cl_plane(clnet__cl_of(ctx), (size_t)s->C, pixels);
    // An element goes through a window of outputs (readers_of); on PoCL each took the time of about
    // eleven multiply-adds.
    const double high = 2 * (double)s->OH / s->H + 5, wide = 2 * (double)s->OW / s->W + 5;
    grid.work = 11 * high * wide * (double)pixels * s->C;
    return CLNET__CL_RUN(ctx, upsample_bilinear_backward, grid, AT(dx), AT(dy), STRUCT(*s));
}

static clnet_result clnet__cl_upsample_bilinear_forward(clnet_graph *g, clnet_node *node) {
    const clnet__cl_upsample_sizes s =
        clnet__cl_upsample_of(node->in[0], node->out, node->desc.align_corners);
    return clnet__cl_upsample(g->ctx, clnet__cl_value(node->out), clnet__cl_value(node->in[0]),
                              false, &s);
}

static clnet_result clnet__cl_upsample_bilinear_backward(clnet_graph *g, clnet_node *node) {
    const clnet__cl_upsample_sizes s =
        clnet__cl_upsample_of(node->in[0], node->out, node->desc.align_corners);
    return clnet__cl_upsample_back(g->ctx, clnet__cl_grad(node->in[0]), clnet__cl_grad(node->out),
                                   &s);
}

// >>concat

// y = x or y += x, pixels x_stride and y_stride apart; as many of both as `shape` has.
static clnet_result clnet__cl_copy(clnet_context *ctx, clnet__cl_place y, clnet__cl_place x,
                                   bool add, const clnet_tensor *shape, size_t x_stride,
                                   size_t y_stride) {
    return CLNET__CL_RUN(ctx, copy, clnet__cl_elements(clnet__cl_of(ctx), shape), AT(y), AT(x),
                         INT(add), INT(clnet__cl_channels(shape)), INT(clnet__cl_all_pixels(shape)),
                         INT(x_stride), INT(y_stride));
}

static clnet_result clnet__cl_concat_forward(clnet_graph *g, clnet_node *node) {
    size_t first = 0;
    for (int i = 0; i < node->inputs; i++) {
        const clnet_tensor *x = node->in[i], *y = node->out;
        if (x->inside != y) {
            clnet__cl_copy(g->ctx, clnet__cl_behind(clnet__cl_value(y), first), clnet__cl_value(x),
                           false, x, x->stride, y->stride);
        }
        first += clnet__cl_channels(x);
    }
    return g->ctx->result;
}

static clnet_result clnet__cl_concat_backward(clnet_graph *g, clnet_node *node) {
    size_t first = 0;
    for (int i = 0; i < node->inputs; i++) {
        const clnet_tensor *x = node->in[i], *y = node->out;
        if (clnet__cl_grad(x).slab && x->inside != y) {
            clnet__cl_copy(g->ctx, clnet__cl_grad(x), clnet__cl_behind(clnet__cl_grad(y), first),
                           true, x, y->stride, x->stride);
        }
        first += clnet__cl_channels(x);
    }
    return g->ctx->result;
}

// >>conv2d_joined
// The coarse sums, and in backward t, are the beginning of the workspace.

static clnet__cl_conv clnet__cl_joined_fine(const clnet_node *node, const clnet__joined *j) {
    return (clnet__cl_conv){
        .s = clnet__cl_conv_sizes_of(&j->fine_sizes),
        .y = clnet__cl_value(node->out),
        .x = clnet__cl_value(j->fine),
        .w = clnet__cl_behind(clnet__cl_value(node->in[2]), j->fine_weights),
        .dy = clnet__cl_grad(node->out),
        .dx = clnet__cl_grad(j->fine),
        .dw = clnet__cl_behind(clnet__cl_grad(node->in[2]), j->fine_weights),
        .db = clnet__cl_grad(node->in[3]),
        .taken = j->sums / sizeof(float),
    };
}

static clnet__cl_conv clnet__cl_joined_coarse(const clnet_graph *g, const clnet_node *node,
                                              const clnet__joined *j) {
    const clnet__cl_place sums = clnet__cl_scratch(g, 0);
    return (clnet__cl_conv){
        .s = clnet__cl_conv_sizes_of(&j->coarse_sizes),
        .y = sums,
        .x = clnet__cl_value(j->coarse),
        .w = clnet__cl_behind(clnet__cl_value(node->in[2]), j->coarse_weights),
        .b = clnet__cl_value(node->in[3]),
        .dy = sums,
        .dx = clnet__cl_grad(j->coarse),
        .dw = clnet__cl_behind(clnet__cl_grad(node->in[2]), j->coarse_weights),
        .taken = j->sums / sizeof(float),
    };
}

static clnet__cl_upsample_sizes clnet__cl_joined_upsampling(const clnet_node *node,
                                                            const clnet__joined *j) {
    clnet__cl_upsample_sizes s = clnet__cl_upsample_of(j->coarse, node->out, false);
    s.x_stride = (int32_t)j->coarse_sizes.y_stride;
    return s;
}

static clnet_result clnet__cl_conv2d_joined_forward(clnet_graph *g, clnet_node *node) {
    const clnet__joined j = clnet__joined_of(node);
    const clnet__cl_conv fine = clnet__cl_joined_fine(node, &j);
    const clnet__cl_conv coarse = clnet__cl_joined_coarse(g, node, &j);
    const clnet__cl_upsample_sizes s = clnet__cl_joined_upsampling(node, &j);
    clnet__cl_conv_forward(g, &coarse);
    clnet__cl_conv_forward(g, &fine);
    return clnet__cl_upsample(g->ctx, fine.y, coarse.y, true, &s);
}

static clnet_result clnet__cl_conv2d_joined_backward(clnet_graph *g, clnet_node *node) {
    const clnet__joined j = clnet__joined_of(node);
    const clnet__cl_conv fine = clnet__cl_joined_fine(node, &j);
    const clnet__cl_conv coarse = clnet__cl_joined_coarse(g, node, &j);
    const clnet__cl_upsample_sizes s = clnet__cl_joined_upsampling(node, &j);
    clnet__cl_fill(g->ctx, &g->workspace, 0, j.sums);
    clnet__cl_upsample_back(g->ctx, coarse.dy, fine.dy, &s);
    clnet__cl_conv_backward(g, &coarse);
    return clnet__cl_conv_backward(g, &fine);
}

static size_t clnet__cl_joined_workspace(const clnet__cl *cl, const clnet_node *node) {
    const clnet__joined j = clnet__joined_of(node);
    const clnet__cl_conv_sizes fine = clnet__cl_conv_sizes_of(&j.fine_sizes);
    const clnet__cl_conv_sizes coarse = clnet__cl_conv_sizes_of(&j.coarse_sizes);
    const size_t of_fine = clnet__cl_conv_workspace(cl, &fine, node->backward);
    const size_t of_coarse = clnet__cl_conv_workspace(cl, &coarse, node->backward);
    return j.sums / sizeof(float) + (of_fine > of_coarse ? of_fine : of_coarse);
}

// >>add

static clnet_result clnet__cl_add_forward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *a = node->in[0], *b = node->in[1], *y = node->out;
    return CLNET__CL_RUN(g->ctx, add_forward, clnet__cl_elements(clnet__cl_of(g->ctx), y),
                         AT(clnet__cl_value(y)), AT(clnet__cl_value(a)), AT(clnet__cl_value(b)),
                         INT(clnet__cl_channels(y)), INT(clnet__cl_all_pixels(y)), INT(a->stride),
                         INT(b->stride), INT(y->stride));
}

static clnet_result clnet__cl_add_backward(clnet_graph *g, clnet_node *node) {
    for (int i = 0; i < 2; i++) {
        const clnet_tensor *x = node->in[i], *y = node->out;
        if (clnet__cl_grad(x).slab) {
            clnet__cl_copy(g->ctx, clnet__cl_grad(x), clnet__cl_grad(y), true, x, y->stride,
                           x->stride);
        }
    }
    return g->ctx->result;
}

// >>scale_channels

static clnet_result clnet__cl_gate(clnet_graph *g, const clnet_node *node, clnet__cl_place y,
                                   clnet__cl_place x, bool add, size_t x_stride, size_t y_stride) {
    const clnet_tensor *shape = node->in[0], *gate = node->in[1];
    return CLNET__CL_RUN(g->ctx, scale_channels, clnet__cl_elements(clnet__cl_of(g->ctx), shape),
                         AT(y), AT(x), AT(clnet__cl_value(gate)), INT(add),
                         INT(clnet__cl_channels(shape)), INT(clnet__cl_images(shape)),
                         INT(clnet__pixels(shape)), INT(x_stride), INT(y_stride),
                         INT(gate->stride));
}

static clnet_result clnet__cl_scale_channels_forward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *x = node->in[0], *y = node->out;
    return clnet__cl_gate(g, node, clnet__cl_value(y), clnet__cl_value(x), false, x->stride,
                          y->stride);
}

static clnet_result clnet__cl_scale_channels_backward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *x = node->in[0], *gate = node->in[1], *y = node->out;
    if (clnet__cl_grad(x).slab) {
        clnet__cl_gate(g, node, clnet__cl_grad(x), clnet__cl_grad(y), true, y->stride, x->stride);
    }
    if (clnet__cl_grad(gate).slab) {
        const size_t C = clnet__cl_channels(x), N = clnet__cl_images(x), pixels = clnet__pixels(x);
        const size_t slices = clnet__cl_slices(pixels);
        const clnet__cl_place partial = clnet__cl_scratch(g, 0);
        CLNET__CL_RUN(g->ctx, channel_dots, clnet__cl_sums(clnet__cl_of(g->ctx), C, slices, N),
                      AT(partial), AT(clnet__cl_grad(y)), AT(clnet__cl_value(x)), INT(C),
                      INT(pixels), INT(slices), INT(y->stride), INT(x->stride));
        clnet__cl_add_channel_sums(g->ctx, clnet__cl_grad(gate), partial, C, N, pixels,
                                   gate->stride);
    }
    return g->ctx->result;
}

// >>attention_residual
// saved: top, sum, dot. The workspace: partial sums of every image's channels, two of each.

static size_t clnet__cl_attention_workspace(const clnet_tensor *f) {
    return 2 * clnet__cl_image_sums_workspace(f);
}

static clnet_result clnet__cl_attention_residual_forward(clnet_graph *g, clnet_node *node) {
    clnet__cl *cl = clnet__cl_of(g->ctx);
    const clnet_tensor *f = node->in[0], *x = node->in[1], *y = node->out;
    const size_t C = clnet__cl_channels(f), N = clnet__cl_images(f), pixels = clnet__pixels(f);
    const size_t slices = clnet__cl_slices(pixels);
    const clnet__cl_place partial = clnet__cl_scratch(g, 0);
    const clnet__cl_place top = clnet__cl_value(node->saved[0]),
                          sum = clnet__cl_value(node->saved[1]);
    CLNET__CL_RUN(g->ctx, attention_sums, clnet__cl_sums(cl, C, slices, N), AT(partial),
                  AT(clnet__cl_value(f)), INT(C), INT(pixels), INT(slices), INT(f->stride));
    CLNET__CL_RUN(g->ctx, attention_statistics, clnet__cl_plane(cl, C, N), AT(top), AT(sum),
                  AT(partial), INT(C), INT(N), INT(slices));
    return CLNET__CL_RUN(g->ctx, attention_residual_forward, clnet__cl_elements(cl, y),
                         AT(clnet__cl_value(y)), AT(clnet__cl_value(f)), AT(clnet__cl_value(x)),
                         AT(clnet__cl_value(node->in[2])), AT(top), AT(sum), INT(C), INT(N),
                         INT(pixels), INT(f->stride), INT(x->stride), INT(y->stride));
}

// alpha's gradient is the sum of all dots: a channel of N C pixels.
static clnet_result clnet__cl_attention_residual_backward(clnet_graph *g, clnet_node *node) {
    clnet__cl *cl = clnet__cl_of(g->ctx);
    const clnet_tensor *f = node->in[0], *x = node->in[1], *y = node->out;
    const size_t C = clnet__cl_channels(f), N = clnet__cl_images(f), pixels = clnet__pixels(f);
    const size_t slices = clnet__cl_slices(pixels);
    const clnet_tensor *dots = node->saved[2];
    const clnet__cl_place partial = clnet__cl_scratch(g, 0), dot = clnet__cl_value(dots);
    const clnet__cl_place top = clnet__cl_value(node->saved[0]),
                          sum = clnet__cl_value(node->saved[1]);
    CLNET__CL_RUN(g->ctx, attention_dots, clnet__cl_sums(cl, C, slices, N), AT(partial),
                  AT(clnet__cl_grad(y)), AT(clnet__cl_value(f)), AT(clnet__cl_value(x)), AT(top),
                  AT(sum), INT(C), INT(pixels), INT(slices), INT(f->stride), INT(x->stride),
                  INT(y->stride));
    g->ctx->backend.fill(g->ctx, dots->memory, dots->offset, clnet__tensor_bytes(dots));
    clnet__cl_add_channel_sums(g->ctx, dot, partial, C, N, pixels, C);
    CLNET__CL_RUN(g->ctx, attention_residual_backward, clnet__cl_elements(cl, f),
                  AT(clnet__cl_grad(f)), AT(clnet__cl_grad(x)), AT(clnet__cl_grad(y)),
                  AT(clnet__cl_value(f)), AT(clnet__cl_value(x)),
                  AT(clnet__cl_value(node->in[2])), AT(top), AT(sum), AT(dot), INT(C), INT(N),
                  INT(pixels), INT(f->stride), INT(x->stride), INT(y->stride));
    if (clnet__cl_grad(node->in[2]).slab) {
        clnet__cl_channel_sums(g->ctx, partial, dot, 1, 1, N * C, 1);
        clnet__cl_add_channel_sums(g->ctx, clnet__cl_grad(node->in[2]), partial, 1, 1, N * C, 1);
    }
    return g->ctx->result;
}

// >>dropout
// A number is kept where its draw, a multiple of 2^-53, is at least p: an exact comparison of whole
// numbers, so the mask is the CPU's.

static clnet_result clnet__cl_dropout(clnet_graph *g, const clnet_node *node, clnet__cl_place y,
                                      clnet__cl_place x, bool add, size_t x_stride,
                                      size_t y_stride) {
    const clnet_tensor *shape = node->in[0];
    const double p = g->training ? node->desc.value : 0;
    uint64_t seed = 0;
    const uint64_t stream = clnet__dropout_stream(g, node, &seed);
    return CLNET__CL_RUN(g->ctx, dropout, clnet__cl_elements(clnet__cl_of(g->ctx), shape), AT(y),
                         AT(x), INT(add), FLOAT(1 / (1 - p)),
                         LONG((uint64_t)ceil(ldexp(p, 53))), LONG(seed), LONG(stream),
                         INT(clnet__cl_channels(shape)), INT(clnet__cl_all_pixels(shape)),
                         INT(x_stride), INT(y_stride));
}

static clnet_result clnet__cl_dropout_forward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *x = node->in[0], *y = node->out;
    return clnet__cl_dropout(g, node, clnet__cl_value(y), clnet__cl_value(x), false, x->stride,
                             y->stride);
}

static clnet_result clnet__cl_dropout_backward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *x = node->in[0], *y = node->out;
    return clnet__cl_dropout(g, node, clnet__cl_grad(x), clnet__cl_grad(y), true, y->stride,
                             x->stride);
}

// >>flip

typedef struct clnet__cl_flip_desc { // flip_desc of kernels.cl
    float mean[CLNET_FLIP_CHANNELS], std[CLNET_FLIP_CHANNELS];
    int32_t plain;
} clnet__cl_flip_desc;

static clnet_result clnet__cl_flip(clnet_graph *g, const clnet_node *node, clnet__cl_place y,
                                   clnet__cl_place x, bool backward, size_t x_stride,
                                   size_t y_stride) {
    const clnet_tensor *shape = node->in[0];
    const clnet_flip_desc d = backward ? clnet__flip_slope(node) : node->desc.flip;
    clnet__cl_flip_desc desc = {.plain = clnet__flip_plain(&d)};
    for (int c = 0; c < CLNET_FLIP_CHANNELS; c++) {
        desc.mean[c] = (float)d.mean[c];
        desc.std[c] = (float)d.std[c];
    }
    return CLNET__CL_RUN(g->ctx, flip, clnet__cl_elements(clnet__cl_of(g->ctx), shape), AT(y),
                         AT(x), AT(clnet__cl_value(g->training ? node->in[1] : NULL)),
                         STRUCT(desc), INT(backward), INT(clnet__cl_channels(shape)),
                         INT((size_t)shape->shape[2]), INT((size_t)shape->shape[3]),
                         INT(clnet__cl_all_pixels(shape)), INT(x_stride), INT(y_stride));
}

static clnet_result clnet__cl_flip_forward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *x = node->in[0], *y = node->out;
    return clnet__cl_flip(g, node, clnet__cl_value(y), clnet__cl_value(x), false, x->stride,
                          y->stride);
}

static clnet_result clnet__cl_flip_backward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *x = node->in[0], *y = node->out;
    return clnet__cl_flip(g, node, clnet__cl_grad(x), clnet__cl_grad(y), true, y->stride,
                          x->stride);
}

// >>focal_loss

typedef struct clnet__cl_class_weights { // class_weights of kernels.cl
    float alpha[CLNET_MAX_CLASSES];
} clnet__cl_class_weights;

static clnet__cl_class_weights clnet__cl_class_weights_of(const clnet_node *node) {
    clnet__cl_class_weights weights;
    for (int k = 0; k < CLNET_MAX_CLASSES; k++) {
        weights.alpha[k] = (float)clnet__focal_alpha(&node->desc.focal_loss, k,
                                                     node->in[0]->shape[1]);
    }
    return weights;
}

static clnet_result clnet__cl_focal_loss_forward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *z = node->in[0];
    const clnet__cl_class_weights weights = clnet__cl_class_weights_of(node);
    return CLNET__CL_RUN(g->ctx, focal_loss_forward, clnet__cl_plane(clnet__cl_of(g->ctx), 1, 1),
                         AT(clnet__cl_value(node->out)), AT(clnet__cl_value(z)),
                         AT(clnet__cl_value(node->in[1])), STRUCT(weights),
                         FLOAT(node->desc.focal_loss.gamma), INT(clnet__cl_images(z)),
                         INT(clnet__cl_channels(z)));
}

static clnet_result clnet__cl_focal_loss_backward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *z = node->in[0];
    const clnet__cl_class_weights weights = clnet__cl_class_weights_of(node);
    return CLNET__CL_RUN(g->ctx, focal_loss_backward,
                         clnet__cl_plane(clnet__cl_of(g->ctx), clnet__cl_images(z), 1),
                         AT(clnet__cl_grad(z)), AT(clnet__cl_grad(node->out)),
                         AT(clnet__cl_value(z)), AT(clnet__cl_value(node->in[1])), STRUCT(weights),
                         FLOAT(node->desc.focal_loss.gamma), INT(clnet__cl_images(z)),
                         INT(clnet__cl_channels(z)));
}

// >>mask_focal_loss
// The workspace of both losses on masks: two numbers per image, then partial sums.

static size_t clnet__cl_mask_workspace(const clnet__cl *cl, const clnet_node *node) {
    const clnet_tensor *z = node->in[0];
    const size_t slices = clnet__cl_slices(clnet__pixels(z));
    return clnet__cl_images(z) * (2 + 6 * slices * (size_t)cl->tuning.channels);
}

static clnet__cl_place clnet__cl_mask_partial(const clnet_graph *g, const clnet_node *node) {
    return clnet__cl_scratch(g, 2 * clnet__cl_images(node->in[0]));
}

static clnet_result clnet__cl_mask_sums(clnet_graph *g, const clnet_node *node, bool dice) {
    const clnet__cl *cl = clnet__cl_of(g->ctx);
    const clnet_tensor *z = node->in[0], *mask = node->in[1];
    const size_t slices = clnet__cl_slices(clnet__pixels(z));
    return CLNET__CL_RUN(
        g->ctx, mask_sums,
        clnet__cl_sums(cl, (size_t)cl->tuning.channels, slices, clnet__cl_images(z)),
        AT(clnet__cl_mask_partial(g, node)), AT(clnet__cl_value(z)), AT(clnet__cl_value(mask)),
        INT(dice), FLOAT(node->desc.value), INT(clnet__pixels(z)), INT(slices));
}

static clnet_result clnet__cl_mask_focal_loss_forward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *z = node->in[0];
    clnet__cl_mask_sums(g, node, false);
    return CLNET__CL_RUN(g->ctx, mask_focal_loss_forward,
                         clnet__cl_plane(clnet__cl_of(g->ctx), 1, 1),
                         AT(clnet__cl_value(node->out)), AT(clnet__cl_mask_partial(g, node)),
                         AT(clnet__cl_value(node->in[1])), INT(clnet__cl_images(z)),
                         INT(clnet__pixels(z)), INT(clnet__cl_slices(clnet__pixels(z))));
}

static clnet_result clnet__cl_mask_focal_loss_backward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *z = node->in[0];
    return CLNET__CL_RUN(g->ctx, mask_focal_loss_backward,
                         clnet__cl_plane(clnet__cl_of(g->ctx), clnet__cl_all_pixels(z), 1),
                         AT(clnet__cl_grad(z)), AT(clnet__cl_grad(node->out)),
                         AT(clnet__cl_value(z)), AT(clnet__cl_value(node->in[1])),
                         FLOAT(node->desc.value), INT(clnet__cl_images(z)),
                         INT(clnet__pixels(z)));
}

// >>dice_loss

// D and its denominator of every image, at the start of the workspace.
static clnet__cl_place clnet__cl_dice_of_images(clnet_graph *g, const clnet_node *node) {
    const clnet_tensor *z = node->in[0];
    const clnet__cl_place each = clnet__cl_scratch(g, 0);
    clnet__cl_mask_sums(g, node, true);
    CLNET__CL_RUN(g->ctx, dice_of_images,
                  clnet__cl_plane(clnet__cl_of(g->ctx), clnet__cl_images(z), 1), AT(each),
                  AT(clnet__cl_mask_partial(g, node)), FLOAT(node->desc.value),
                  INT(clnet__cl_images(z)), INT(clnet__cl_slices(clnet__pixels(z))));
    return each;
}

static clnet_result clnet__cl_dice_loss_forward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *z = node->in[0];
    const clnet__cl_place each = clnet__cl_dice_of_images(g, node);
    return CLNET__CL_RUN(g->ctx, dice_loss_forward, clnet__cl_plane(clnet__cl_of(g->ctx), 1, 1),
                         AT(clnet__cl_value(node->out)), AT(each),
                         AT(clnet__cl_value(node->in[1])), INT(clnet__cl_images(z)),
                         INT(clnet__pixels(z)));
}

static clnet_result clnet__cl_dice_loss_backward(clnet_graph *g, clnet_node *node) {
    const clnet_tensor *z = node->in[0];
    const clnet__cl_place each = clnet__cl_dice_of_images(g, node);
    return CLNET__CL_RUN(g->ctx, dice_loss_backward,
                         clnet__cl_plane(clnet__cl_of(g->ctx), clnet__cl_all_pixels(z), 1),
                         AT(clnet__cl_grad(z)), AT(clnet__cl_grad(node->out)), AT(each),
                         AT(clnet__cl_value(z)), AT(clnet__cl_value(node->in[1])),
                         INT(clnet__cl_images(z)), INT(clnet__pixels(z)));
}

// >>weighted_sum

static clnet_result clnet__cl_weighted_add(clnet_graph *g, clnet__cl_place y, clnet__cl_place x,
                                           double weight, bool add) {
    return CLNET__CL_RUN(g->ctx, weighted_add, clnet__cl_plane(clnet__cl_of(g->ctx), 1, 1), AT(y),
                         AT(x), FLOAT(weight), INT(add));
}

static clnet_result clnet__cl_weighted_sum_forward(clnet_graph *g, clnet_node *node) {
    for (int i = 0; i < node->inputs; i++) {
        clnet__cl_weighted_add(g, clnet__cl_value(node->out), clnet__cl_value(node->in[i]),
                               node->desc.weight[i], i > 0);
    }
    return g->ctx->result;
}

static clnet_result clnet__cl_weighted_sum_backward(clnet_graph *g, clnet_node *node) {
    for (int i = 0; i < node->inputs; i++) {
        if (clnet__cl_grad(node->in[i]).slab) {
            clnet__cl_weighted_add(g, clnet__cl_grad(node->in[i]), clnet__cl_grad(node->out),
                                   node->desc.weight[i], true);
        }
    }
    return g->ctx->result;
}

// >>adam

static clnet_result clnet__cl_adam(clnet_adam *adam, int piece, double lr) {
    clnet_graph *g = adam->graph;
    const clnet_adam_desc *d = &adam->desc;
    const size_t count = g->parameters.pieces[piece].bytes / sizeof(float);
    const double beta1 = clnet__or_double(d->beta1, 0.9), beta2 = clnet__or_double(d->beta2, 0.999);
    const double correction1 = -expm1((double)adam->steps * log(beta1));
    const double correction2 = -expm1((double)adam->steps * log(beta2));
    const clnet__cl_place p = {g->parameters.pieces[piece].handle, 0};
    const clnet__cl_place slope = {g->gradients.pieces[piece].handle, 0};
    const clnet__cl_place m = {adam->moment[0].pieces[piece].handle, 0};
    const clnet__cl_place v = {adam->moment[1].pieces[piece].handle, 0};
    return CLNET__CL_RUN(g->ctx, adam_step, clnet__cl_plane(clnet__cl_of(g->ctx), count, 1), AT(p),
                         AT(m), AT(v), AT(slope), LONG(count), FLOAT(1 - beta1), FLOAT(1 - beta2),
                         FLOAT(beta2), FLOAT(lr / correction1), FLOAT(1 / sqrt(correction2)),
                         FLOAT(clnet__or_double(d->eps, 1e-8)),
                         FLOAT(d->decoupled ? 0 : d->weight_decay),
                         FLOAT(d->decoupled ? lr * d->weight_decay : 0));
}

// >>backend

typedef struct clnet__cl_op {
    clnet_result (*forward)(clnet_graph *g, clnet_node *node);
    clnet_result (*backward)(clnet_graph *g, clnet_node *node);
} clnet__cl_op;

static const clnet__cl_op clnet__cl_ops[] = {
#define X(ENUM, name, forward, backward, reads) {clnet__cl_##name##_forward, clnet__cl_##name##_backward},
    CLNET_OPS(X)
#undef X
};

static clnet_result clnet__cl_forward(clnet_graph *g, clnet_node *node) {
    return clnet__cl_alive(g->ctx) ? clnet__cl_ops[node->op].forward(g, node) : g->ctx->result;
}

static clnet_result clnet__cl_backward(clnet_graph *g, clnet_node *node) {
    return clnet__cl_alive(g->ctx) ? clnet__cl_ops[node->op].backward(g, node) : g->ctx->result;
}

// Kernels count pixels and the numbers between them in 32 bits.
static void clnet__cl_check_sizes(clnet_context *ctx, const clnet_tensor *t) {
    if (t && (clnet__cl_all_pixels(t) > INT_MAX / 2 || t->stride > INT_MAX / 2)) {
        clnet__fail(ctx, CLNET_ERROR_LIMIT,
                    "%s: a tensor of (%d,%d,%d,%d) has more pixels than a device can count",
                    t->name, t->shape[0], t->shape[1], t->shape[2], t->shape[3]);
    }
}

static size_t clnet__cl_workspace(clnet_context *ctx, const clnet_node *node) {
    const clnet__cl *cl = clnet__cl_of(ctx);
    size_t floats = 0;
    if (!clnet__cl_alive(ctx)) {
        return 0;
    }
    clnet__cl_check_sizes(ctx, node->in[0]);
    clnet__cl_check_sizes(ctx, node->out);
    switch (node->op) {
    case CLNET_OP_CONV2D:
    case CLNET_OP_LINEAR: floats = clnet__cl_conv2d_workspace(cl, node); break;
    case CLNET_OP_CONV2D_JOINED: floats = clnet__cl_joined_workspace(cl, node); break;
    case CLNET_OP_BATCH_NORM: floats = clnet__cl_batch_norm_workspace(node); break;
    case CLNET_OP_GLOBAL_AVG_POOL:
    case CLNET_OP_SCALE_CHANNELS: floats = clnet__cl_image_sums_workspace(node->in[0]); break;
    case CLNET_OP_ATTENTION_RESIDUAL: floats = clnet__cl_attention_workspace(node->in[0]); break;
    case CLNET_OP_MASK_FOCAL_LOSS:
    case CLNET_OP_DICE_LOSS: floats = clnet__cl_mask_workspace(cl, node); break;
    default: break;
    }
    return floats * sizeof(float);
}

// Groups leave their sums in the end of a buffer of their own, which the host adds in double.
enum { CLNET__CL_SQUARE_GROUPS = 64 };
static clnet_result clnet__cl_sum_of_squares(clnet_context *ctx, clnet_memory *memory, size_t n,
                                             double *sum) {
    clnet__cl *cl = clnet__cl_of(ctx);
    const size_t count = (size_t)cl->tuning.channels * CLNET__CL_SQUARE_GROUPS;
    clnet_memory partial = {NULL, 0};
    float *values = clnet__alloc(ctx, 4 * count * sizeof *values);
    const clnet__cl_place x = {memory->handle, 0};
    *sum = 0;
    if (values && clnet__cl_alloc(ctx, &partial, 4 * count * sizeof *values)) {
        const clnet__cl_place place = {partial.handle, 0};
        CLNET__CL_RUN(ctx, sum_of_squares,
                      clnet__cl_sums(cl, (size_t)cl->tuning.channels, CLNET__CL_SQUARE_GROUPS, 1),
                      AT(place), AT(x), LONG(n));
        clnet__cl_download(ctx, values, &partial, 0, 4 * count * sizeof *values);
        for (size_t i = 0; i < count && ctx->result == CLNET_OK; i++) {
            const float *v = values + 4 * i;
            *sum += isfinite(v[0]) ? (double)v[0] + (double)v[1] : (double)v[0];
            *sum += isfinite(v[2]) ? ldexp((double)v[2] + (double)v[3], 160) : (double)v[2];
        }
        clnet__cl_free(ctx, &partial);
    }
    clnet__free(ctx, values);
    return ctx->result;
}

// >>peak

// A run of a kernel whose work grows with a number.
typedef struct clnet__cl_effort {
    clnet__cl_kernel kernel;
    clnet__cl_grid grid;
    clnet__cl_place to, from;
    double work; // operations or bytes of a run, per unit of the number
} clnet__cl_effort;

// Runs `count` of it, to its end. Reading one number waits for the device.
static clnet_result clnet__cl_exert(clnet_context *ctx, const clnet__cl_effort *e, size_t count) {
    float value;
    clnet_memory read = {e->to.slab, sizeof value};
    if (e->kernel == CLNET__CL_peak_copy) {
        for (size_t i = 0; i < count; i++) {
            CLNET__CL_RUN(ctx, peak_copy, e->grid, AT(e->to), AT(e->from));
        }
    } else { // numbers that go to and fro about 3/4: their bits change, as those of real ones
        CLNET__CL_RUN(ctx, peak_multiply_add, e->grid, AT(e->to), FLOAT(-0.999), FLOAT(1.5),
                      INT(count));
    }
    return clnet__cl_download(ctx, &value, &read, 0, sizeof value);
}

// The best rate of some runs that take 20 ms or more each, which keeps launching below a hundredth.
static double clnet__cl_best_rate(clnet_context *ctx, double (*clock)(void),
                                  const clnet__cl_effort *e) {
    enum { RUNS = 7, MOST = 1 << 24 };
    const double least = 0.02;
    double best = 0, seconds = 0;
    size_t count = 1;
    for (int run = 0; run < RUNS && ctx->result == CLNET_OK;) {
        const double begun = clock();
        clnet__cl_exert(ctx, e, count);
        seconds = clock() - begun;
        if (seconds < least && count < MOST) {
            count *= 2;
            continue;
        }
        const double rate = e->work * (double)count / seconds;
        best = rate > best ? rate : best;
        run++;
    }
    return best;
}

clnet_result clnet_cl_measure_peak(clnet_context *ctx, double (*clock)(void), clnet_cl_peak *peak) {
    enum { CHAINS = 64, FLOATS = 4 }; // of a work-item, see kernels.cl
    *peak = (clnet_cl_peak){0, 0};
    if (!clnet_cl_context_device(ctx)) {
        return clnet__fail(ctx, CLNET_ERROR_ARGUMENT, "clnet_cl_measure_peak: no OpenCL device");
    }
    const clnet__cl *cl = clnet__cl_of(ctx);
    const size_t group = (size_t)cl->tuning.elements;
    const size_t busy = (size_t)(cl->info.compute_units * cl->tuning.groups) * group;
    uint64_t bytes = cl->info.largest_allocation < cl->info.memory / 4 ? cl->info.largest_allocation
                                                                       : cl->info.memory / 4;
    bytes = bytes < 256u << 20 ? bytes : 256u << 20;
    const size_t items = (size_t)bytes / sizeof(float) / FLOATS / group * group;
    clnet_memory memory[2] = {{NULL, 0}, {NULL, 0}};
    if (clnet__cl_alloc(ctx, &memory[0], items * FLOATS * sizeof(float)) &&
        clnet__cl_alloc(ctx, &memory[1], items * FLOATS * sizeof(float))) {
        const clnet__cl_place to = {memory[0].handle, 0}, from = {memory[1].handle, 0};
        clnet__cl_effort e = {CLNET__CL_peak_copy, {{items, 1, 1}, {group, 1, 1}, 0}, to, from,
                              (double)items * 2 * FLOATS * sizeof(float)};
        clnet__cl_fill(ctx, &memory[0], 0, memory[0].bytes);
        clnet__cl_fill(ctx, &memory[1], 0, memory[1].bytes);
        peak->bytes = clnet__cl_best_rate(ctx, clock, &e);
        e.kernel = CLNET__CL_peak_multiply_add;
        e.grid.global[0] = busy < items ? busy : items;
        e.work = (double)e.grid.global[0] * 2 * CHAINS;
        peak->flops = clnet__cl_best_rate(ctx, clock, &e);
    }
    for (int i = 0; i < 2; i++) {
        if (memory[i].handle) {
            clnet__cl_free(ctx, &memory[i]);
        }
    }
    return ctx->result;
}

#undef AT
#undef INT
#undef LONG
#undef FLOAT
#undef STRUCT

static void clnet__cl_destroy(clnet_context *ctx) {
    clnet__cl *cl = clnet__cl_of(ctx);
    if (cl->queue) {
        clnet__cl_check(ctx, "clFinish", "", cl->api.clFinish(cl->queue));
    }
    clnet__cl_release_program(ctx);
    if (cl->queue) {
        clnet__cl_check(ctx, "clReleaseCommandQueue", "",
                        cl->api.clReleaseCommandQueue(cl->queue));
    }
    if (cl->blasts) {
        // It holds on to programs of this context.
        clnet__cl_check(ctx, "CLBlastClearCache", "", cl->blast.clear_cache());
    }
    if (cl->context) {
        clnet__cl_check(ctx, "clReleaseContext", "", cl->api.clReleaseContext(cl->context));
    }
    clnet__free(ctx, cl);
}

// >>context

static const clnet_backend clnet__cl_backend = {.alloc = clnet__cl_alloc,
                                                .free = clnet__cl_free,
                                                .upload = clnet__cl_upload,
                                                .download = clnet__cl_download,
                                                .fill = clnet__cl_fill,
                                                .workspace = clnet__cl_workspace,
                                                .room = clnet__cl_room,
                                                .forward = clnet__cl_forward,
                                                .backward = clnet__cl_backward,
                                                .adam = clnet__cl_adam,
                                                .sum_of_squares = clnet__cl_sum_of_squares,
                                                .destroy = clnet__cl_destroy};

// How fast this device convolves with these kernels, by its own clock: a convolution that grows until
// it takes long enough to tell. Each size runs twice, because some drivers compile in the first run.
static void clnet__cl_measure_speed(clnet_context *ctx) {
    enum { C = 16, OC = 64, LARGEST = 64, LONG_ENOUGH = 2000 }; // channels, pixels a side, microseconds
    clnet__cl *cl = clnet__cl_of(ctx);
    clnet_profile_row *wanted = ctx->backend.rows, *row = &cl->rows[clnet__cl_forward_kernel(cl)];
    const size_t pixels = LARGEST * LARGEST, weights = 9 * C * OC;
    clnet_memory slab = {NULL, 0};
    double seconds = 0;
    if (!clnet__cl_alloc(ctx, &slab, (pixels * (C + OC) + weights) * sizeof(float))) {
        return;
    }
    clnet__cl_fill(ctx, &slab, 0, slab.bytes);
    const clnet__cl_place x = {slab.handle, 0}, y = clnet__cl_behind(x, pixels * C);
    const clnet__cl_place w = clnet__cl_behind(y, pixels * OC), no_bias = {NULL, 0};
    ctx->backend.rows = cl->rows;
    for (int n = 8; n <= LARGEST && seconds < 1e-6 * LONG_ENOUGH; n *= 2) {
        const clnet__cl_conv_sizes s = {1, C, n, n, OC, n, n, 3, 3, 1, 1, 1, 1, 1, 1, 1, C, OC};
        for (int run = 0; run < 2; run++) {
            clnet_profile_clear(ctx);
            clnet__cl_convolve(ctx, y, x, w, no_bias, &s);
        }
        seconds = row->total > 1e-6 ? row->total : 1e-6;
        cl->speed = clnet__cl_macs(&s) / seconds;
    }
    clnet_profile_clear(ctx);
    ctx->backend.rows = wanted;
    clnet__cl_free(ctx, &slab);
}

static bool clnet__cl_open_queue(clnet_context *ctx, uint64_t properties) {
    clnet__cl *cl = clnet__cl_of(ctx);
    int32_t code = 0;
    cl->queue = cl->api.clCreateCommandQueue(cl->context, cl->device, properties, &code);
    return clnet__cl_check(ctx, "clCreateCommandQueue", "", code) == CLNET_OK;
}

// A queue without a profile does not keep the times of its commands.
static bool clnet__cl_reopen_queue(clnet_context *ctx) {
    clnet__cl *cl = clnet__cl_of(ctx);
    void *queue = cl->queue;
    cl->queue = NULL;
    return clnet__cl_check(ctx, "clReleaseCommandQueue", "",
                           cl->api.clReleaseCommandQueue(queue)) == CLNET_OK &&
           clnet__cl_open_queue(ctx, 0);
}

// Opens the device, compiles the kernels, and measures what has to be known of them.
static void clnet__cl_open_device(clnet_context *ctx, const clnet__cl_found *found,
                                  const clnet_cl_desc *d) {
    clnet__cl *cl = clnet__cl_of(ctx);
    int32_t code = 0;
    const intptr_t properties[] = {CLNET__CL_CONTEXT_PLATFORM, (intptr_t)found->platform, 0};
    cl->device = found->device;
    cl->info = found->info;
    cl->tuning = clnet__cl_tune(&cl->info, cl->info.largest_group);
    snprintf(cl->name, sizeof cl->name, "%s (%s)", cl->info.id, cl->info.name);
    cl->context = cl->api.clCreateContext(properties, 1, &cl->device, NULL, NULL, &code);
    if (clnet__cl_check(ctx, "clCreateContext", "", code) != CLNET_OK) {
        return;
    }
    if (!clnet__cl_open_queue(ctx, CLNET__CL_QUEUE_PROFILING) ||
        !clnet__cl_load_kernels(ctx, d->kernels)) {
        return;
    }
    clnet__cl_measure_speed(ctx);
    if (ctx->result == CLNET_OK && (d->base.profile || clnet__cl_reopen_queue(ctx))) {
        clnet__cl_choose_product(ctx, d);
    }
}

// A context that failed from the start never runs anything, though its failure may be cleared.
static void clnet__cl_give_up(clnet_context *ctx) {
    clnet__cl *cl = clnet__cl_of(ctx);
    if (ctx->result != CLNET_OK && !cl->dead) {
        cl->dead = true;
        snprintf(cl->failure, sizeof cl->failure, "%.*s", (int)sizeof cl->failure - 1, ctx->error);
    }
}

// "opencl:P.D"
static bool clnet__cl_is_id(const char *device) {
    const char *const digits = "0123456789";
    if (strncmp(device, "opencl:", 7) != 0) {
        return false;
    }
    const size_t platform = strspn(device + 7, digits);
    const char *dot = device + 7 + platform;
    const size_t number = *dot == '.' ? strspn(dot + 1, digits) : 0;
    return platform > 0 && number > 0 && dot[1 + number] == 0;
}

// Appends ", opencl:P.D (its name)" to a text.
typedef struct clnet__cl_names {
    char text[1024];
} clnet__cl_names;

static void clnet__cl_name_one(void *arg, const clnet__cl_found *found) {
    clnet__cl_names *names = arg;
    const size_t length = strlen(names->text);
    snprintf(names->text + length, sizeof names->text - length, "%s%s (%s)", length ? ", " : "",
             found->info.id, found->info.name);
}

// Says in one sentence why a context has no device: `walk` is what a look at all devices met, NULL
// without an OpenCL library.
static void clnet__cl_refuse(clnet_context *ctx, const char *device, const clnet__cl_walk *walk) {
    clnet__cl_names names = {""};
    if (walk && walk->devices) {
        clnet__cl_each(&clnet__cl_of(ctx)->api, clnet__cl_name_one, &names);
    }
    if (strcmp(device, "opencl") != 0 && !clnet__cl_is_id(device)) {
        clnet__fail(ctx, CLNET_ERROR_ARGUMENT,
                    "device %s: a device is cpu, auto, opencl or opencl:PLATFORM.DEVICE%s%s",
                    device, *names.text ? "; there is " : "", names.text);
    } else if (!walk) {
        clnet__fail(ctx, CLNET_ERROR_ARGUMENT,
                    "device %s: there is no OpenCL library (libOpenCL.so.1) on this machine",
                    device);
    } else if (walk->call) {
        clnet__fail(ctx, CLNET_ERROR_DEVICE, "device %s: %s: %s (%d)", device, walk->call,
                    clnet__cl_code_name(walk->code), (int)walk->code);
    } else if (walk->platforms == 0) {
        clnet__fail(ctx, CLNET_ERROR_ARGUMENT,
                    "device %s: OpenCL has no platform: no driver of a device is installed", device);
    } else if (walk->devices == 0) {
        clnet__fail(ctx, CLNET_ERROR_ARGUMENT,
                    "device %s: OpenCL's platforms (%u) have no device that can be used", device,
                    (unsigned)walk->platforms);
    } else {
        clnet__fail(ctx, CLNET_ERROR_ARGUMENT, "device %s: there is no such device; there is %s",
                    device, names.text);
    }
}

clnet_context *clnet_cl_context_create(const clnet_cl_desc *desc) {
    const clnet_cl_desc none = {.device = NULL}, *d = desc ? desc : &none;
    const char *device = d->device ? d->device : "auto";
    const bool automatic = !strcmp(device, "auto"), any = !strcmp(device, "opencl");
    clnet_context *ctx = clnet_context_create(&d->base);
    if (!ctx || ctx->result != CLNET_OK || !strcmp(device, "cpu")) {
        return ctx;
    }
    clnet__cl_choice choice = {.wanted = automatic || any ? NULL : device, .gpu = automatic};
    clnet__cl *cl = clnet__alloc(ctx, sizeof *cl);
    const bool library = cl && clnet__cl_load(&cl->api);
    clnet__cl_walk walk = {0, 0, NULL, 0};
    if (library) {
        walk = clnet__cl_each(&cl->api, clnet__cl_choose_one, &choice);
    }
    if (!cl || (automatic && !choice.found)) {
        clnet__free(ctx, cl);
        return ctx;
    }
    const int threads = ctx->backend.threads;
    ctx->backend = clnet__cl_backend;
    ctx->backend.state = cl;
    ctx->backend.device = choice.found ? cl->name : "no device";
    ctx->backend.isa = "OpenCL C";
    ctx->backend.threads = threads;
    ctx->backend.rows = d->base.profile ? cl->rows : NULL;
    ctx->backend.row_count = CLNET__CL_ROWS;
    const size_t promised = (size_t)choice.best.info.largest_allocation;
    const size_t asked = d->base.largest_allocation;
    ctx->backend.largest_allocation = asked && asked < promised ? asked : promised;
    clnet__cl_name_rows(cl);
    if (choice.found) {
        clnet__cl_open_device(ctx, &choice.best, d);
    } else {
        clnet__cl_refuse(ctx, device, library ? &walk : NULL);
    }
    clnet__cl_give_up(ctx);
    return ctx;
}

const clnet_cl_device *clnet_cl_context_device(const clnet_context *ctx) {
    const bool device = ctx && ctx->backend.destroy == clnet__cl_destroy;
    return device && clnet__cl_of(ctx)->device ? &clnet__cl_of(ctx)->info : NULL;
}

const char *clnet_cl_matrix_product(const clnet_context *ctx) {
    return clnet_cl_context_device(ctx) ? clnet__cl_of(ctx)->product : "";
}

#endif // CLNET_CL_IMPLEMENTATION
