// Two files with a copy of the library each (CLNET_STATIC), in one program with test_header_b.c.
#define CLNET_STATIC
#define CLNET_IMPLEMENTATION
#include "../clnet.h"

#include "test.h"

const char *device_of_other_file(int threads, int *used);

int main(void) {
    clnet_context *ctx = clnet_context_create(&(clnet_context_desc){.threads = 1});
    int used = 0;
    const char *device = device_of_other_file(1, &used);
    CHECK(ctx && clnet_context_result(ctx) == CLNET_OK, "%s", clnet_error(ctx));
    CHECK(!strcmp(device, clnet_context_device(ctx)), "%s here, %s there",
          clnet_context_device(ctx), device);
    CHECK(used == clnet_context_threads(ctx), "%d threads here, %d there",
          clnet_context_threads(ctx), used);
    clnet_context_destroy(ctx);
    return test_close();
}
