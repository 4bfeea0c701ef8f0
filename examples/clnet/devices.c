// clnet devices: what there is to compute on.
#include "commands.h"
#include "machine.h"
#include "options.h"

#include <inttypes.h>
#include <stdio.h>

static void print_json(const machine *m, const clnet_context *ctx) {
    printf("{\"devices\": [{\"device\": \"%s\", \"name\": ", clnet_context_device(ctx));
    machine_print_json(m->processor);
    printf(", \"processors\": %d, \"threads\": %d, \"memory_bytes\": %" PRIu64
           ", \"memory_available_bytes\": %" PRIu64 ", \"isa\": [",
           m->processors, clnet_context_threads(ctx), m->memory, m->available);
    const char *comma = "";
    for (int isa = CLNET_ISA_PORTABLE; isa <= CLNET_ISA_AVX512; isa++) {
        if (clnet_isa_supported((clnet_isa)isa)) {
            printf("%s\"%s\"", comma, clnet_isa_name((clnet_isa)isa));
            comma = ", ";
        }
    }
    printf("], \"isa_used\": \"%s\"}]}\n", clnet_context_isa(ctx));
}

static void print_text(const machine *m, const clnet_context *ctx) {
    char memory[MACHINE_BYTES], available[MACHINE_BYTES];
    printf("%s: %s\n", clnet_context_device(ctx), m->processor);
    printf("  processors   %d, threads used %d\n", m->processors, clnet_context_threads(ctx));
    printf("  memory       %s, available %s\n", machine_bytes(memory, m->memory),
           machine_bytes(available, m->available));
    printf("  vector code ");
    for (int isa = CLNET_ISA_PORTABLE; isa <= CLNET_ISA_AVX512; isa++) {
        if (clnet_isa_supported((clnet_isa)isa)) {
            printf(" %s", clnet_isa_name((clnet_isa)isa));
        }
    }
    printf(", used %s\n", clnet_context_isa(ctx));
}

bool command_devices(int argc, char **argv, bool usage, problem *p) {
    bool json = false;
    device_options device = {0};
    option options[] = {
        OPTION(FLAG, "--json", &json, "as one JSON object"),
        DEVICE_OPTIONS(&device),
    };
    const size_t count = sizeof options / sizeof *options;
    if (usage) {
        printf("usage: clnet devices [--json]\n\n");
        options_print(options, count);
        return true;
    }
    size_t paths;
    if (!options_parse(argc, argv, options, count, NULL, &paths, 0, p)) {
        return false;
    }
    clnet_context *ctx = device_open(&device, p);
    if (!ctx) {
        return false;
    }
    const machine m = machine_describe();
    (json ? print_json : print_text)(&m, ctx);
    clnet_context_destroy(ctx);
    return true;
}
