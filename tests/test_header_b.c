// The other half of test_header_a.c: its own copy of the library, of double.
#define CLNET_STATIC
#define CLNET_REAL double
#define CLNET_IMPLEMENTATION
#include "../clnet.h"

const char *device_of_other_file(int threads, int *used);

const char *device_of_other_file(int threads, int *used) {
    static char device[32];
    clnet_context *ctx = clnet_context_create(&(clnet_context_desc){.threads = threads});
    snprintf(device, sizeof device, "%s", clnet_context_device(ctx));
    *used = clnet_context_threads(ctx);
    clnet_context_destroy(ctx);
    return device;
}
