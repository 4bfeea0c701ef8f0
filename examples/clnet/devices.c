// clnet devices: what there is to compute on.
#include "clnet_cl.h"
#include "commands.h"
#include "machine.h"
#include "options.h"

#include <inttypes.h>
#include <stdio.h>

enum { MOST_DEVICES = 64 };

static const char *kind_name(const clnet_cl_device *d) {
    return d->kind == CLNET_CL_GPU ? "gpu" : d->kind == CLNET_CL_CPU ? "cpu" : "other";
}

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
    printf("], \"isa_used\": \"%s\"}", clnet_context_isa(ctx));
}

// `tried`: a context on the device, NULL where it was only listed.
static void print_opencl_json(const clnet_cl_device *d, const clnet_context *tried) {
    printf(", {\"device\": \"%s\", \"name\": ", d->id);
    machine_print_json(d->name);
    printf(", \"vendor\": ");
    machine_print_json(d->vendor);
    printf(", \"driver\": ");
    machine_print_json(d->driver);
    printf(", \"version\": ");
    machine_print_json(d->version);
    printf(", \"kind\": \"%s\", \"memory_bytes\": %" PRIu64
           ", \"largest_allocation_bytes\": %" PRIu64 ", \"local_memory_bytes\": %" PRIu64
           ", \"compute_units\": %d, \"clock_mhz\": %d, "
           "\"half_precision\": %s, \"double_precision\": %s, \"clblast\": %s",
           kind_name(d), d->memory, d->largest_allocation, d->local_memory, d->compute_units,
           d->clock, d->half_precision ? "true" : "false", d->double_precision ? "true" : "false",
           clnet_cl_has_clblast() ? "true" : "false");
    if (tried) {
        const bool works = clnet_context_result(tried) == CLNET_OK;
        printf(", \"works\": %s, \"%s\": ", works ? "true" : "false",
               works ? "matrix_product" : "error");
        machine_print_json(works ? clnet_cl_matrix_product(tried) : clnet_error(tried));
    }
    printf("}");
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

static void print_opencl_text(const clnet_cl_device *d, const clnet_context *tried) {
    char memory[MACHINE_BYTES], largest[MACHINE_BYTES], local[MACHINE_BYTES];
    printf("%s: %s (%s, %s)\n", d->id, d->name, kind_name(d), d->vendor);
    printf("  driver       %s, %s\n", d->driver, d->version);
    printf("  units        %d at %d MHz, groups of up to %d\n", d->compute_units, d->clock,
           d->largest_group);
    printf("  memory       %s, one allocation up to %s, local %s\n",
           machine_bytes(memory, d->memory), machine_bytes(largest, d->largest_allocation),
           machine_bytes(local, d->local_memory));
    printf("  numbers      float%s%s%s\n", d->half_precision ? ", half" : "",
           d->double_precision ? ", double" : "", d->denormals ? ", denormals" : "");
    if (tried) {
        const bool works = clnet_context_result(tried) == CLNET_OK;
        printf("  %-12s %s\n", works ? "works" : "BROKEN",
               works ? clnet_cl_matrix_product(tried) : clnet_error(tried));
    }
}

// Why there is no OpenCL device: what a context that needs one says.
static void print_none(void) {
    clnet_context *none = clnet_cl_context_create(&(clnet_cl_desc){.device = "opencl"});
    printf("%s\n", clnet_error(none));
    clnet_context_destroy(none);
}

// Every OpenCL device behind the CPU.
static void print_opencl(bool json, bool check) {
    clnet_cl_device list[MOST_DEVICES];
    const int found = clnet_cl_devices(list, MOST_DEVICES);
    for (int i = 0; i < found && i < MOST_DEVICES; i++) {
        clnet_context *ctx =
            check ? clnet_cl_context_create(&(clnet_cl_desc){.device = list[i].id}) : NULL;
        (json ? print_opencl_json : print_opencl_text)(&list[i], ctx);
        clnet_context_destroy(ctx);
    }
    if (json) {
        printf("]}\n");
    } else if (found == 0) {
        print_none();
    } else {
        printf("clblast: %s\n", !clnet_cl_has_clblast() ? "no, products by clnet's own kernel"
                                : check                 ? "yes"
                                                        : "yes (--check tries it)");
    }
}

bool command_devices(int argc, char **argv, bool usage, problem *p) {
    bool json = false, check = false;
    device_options device = {0};
    option options[] = {
        OPTION(FLAG, "--json", &json, "as one JSON object"),
        OPTION(FLAG, "--check", &check,
               "compile the kernels on every OpenCL device, and check CLBlast's products there"),
    };
    const size_t count = sizeof options / sizeof *options;
    if (usage) {
        printf("usage: clnet devices [--json] [--check]\n\n");
        options_print(options, count);
        return true;
    }
    size_t paths;
    if (!options_parse(argc, argv, options, count, NULL, &paths, 0, p)) {
        return false;
    }
    device.device = "cpu"; // whose line comes first; the others follow it
    clnet_context *ctx = device_open(&device, p);
    if (!ctx) {
        return false;
    }
    const machine m = machine_describe();
    (json ? print_json : print_text)(&m, ctx);
    print_opencl(json, check);
    device_close(ctx);
    return true;
}
