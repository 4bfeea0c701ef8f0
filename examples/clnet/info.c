// clnet info: layers, shapes, parameters, FLOPs and memory plan of a network.
#include "clnet_cl.h"
#include "commands.h"
#include "machine.h"
#include "network.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef struct info {
    network_options network;
    const char *weights, *device;
    int batch, purpose;
    bool json;
    clnet_context *ctx;
    clnet_model_desc desc;
    char name[32];
    machine machine;
} info;

enum { PURPOSES = 2, LARGEST_BATCH = 65536 };

// In the order of clnet_purpose, then both.
static const char *const purpose_choices[] = {"infer", "train", "both", NULL};
static const char *const purpose_titles[PURPOSES] = {"inference", "training"};

// What one purpose takes.
typedef struct demand {
    bool wanted;
    clnet_memory_plan plan;
    int largest_batch; // that fits into the available memory; 0: none
} demand;

// ---- planning -----------------------------------------------------------------------------------

static clnet_model *plan(const info *c, clnet_purpose purpose, int batch) {
    clnet_model_desc d = c->desc;
    d.purpose = purpose;
    d.batch = batch;
    d.no_accumulation = d.raw_image = purpose == CLNET_TRAIN; // as `clnet train` has them
    d.plan_only = true;
    return clnet_model_create(c->ctx, &d);
}

// Of the device, or of the machine as far as it is not in use.
static uint64_t available(const info *c) {
    const clnet_cl_device *d = clnet_cl_context_device(c->ctx);
    return d ? d->memory : c->machine.available;
}

static bool demand_of(const info *c, clnet_purpose purpose, demand *d, problem *p) {
    *d = (demand){.wanted = c->purpose == (int)purpose || c->purpose == PURPOSES};
    if (!d->wanted) {
        return true;
    }
    clnet_model *m = plan(c, purpose, c->desc.batch);
    if (!m) {
        return problem_context(p, c->ctx);
    }
    d->plan = m->plan;
    d->largest_batch = clnet_graph_largest_batch(m->graph, (size_t)available(c), LARGEST_BATCH);
    clnet_model_destroy(m);
    return true;
}

// ---- counting -----------------------------------------------------------------------------------

typedef struct totals {
    size_t parameters, buffers; // numbers
    double macs;                // of one image
} totals;

static totals count_all(const clnet_model *m) {
    totals t = {0};
    for (int i = 0; i < clnet_graph_weights(m->graph); i++) {
        const clnet_tensor *w = clnet_graph_weight(m->graph, i);
        *(clnet_tensor_trainable(w) ? &t.parameters : &t.buffers) += clnet_tensor_count(w);
    }
    for (int i = 0; i < clnet_graph_nodes(m->graph); i++) {
        t.macs += clnet_graph_node_macs(m->graph, i) / m->desc.batch;
    }
    return t;
}

static size_t node_parameters(const clnet_model *m, int index) {
    const clnet_node *node = clnet_graph_node_output(m->graph, index)->producer;
    size_t count = 0;
    for (int i = 0; i < node->inputs; i++) {
        if (node->in[i] && node->in[i]->role == CLNET_ROLE_PARAMETER) {
            count += clnet_tensor_count(node->in[i]);
        }
    }
    return count;
}

static void format_shape(char text[64], const clnet_tensor *t, const char *between) {
    size_t used = 0;
    text[0] = 0;
    for (int i = 0; i < clnet_tensor_rank(t); i++) {
        used += (size_t)snprintf(text + used, 64 - used, "%s%d", i ? between : "",
                                 clnet_tensor_size(t, i));
    }
}

// ---- text ---------------------------------------------------------------------------------------

static void print_nodes(const clnet_model *m) {
    printf("%-18s %-28s %-20s %12s %12s\n", "operation", "name", "output", "parameters",
           "MMAC/image");
    for (int i = 0; i < clnet_graph_nodes(m->graph); i++) {
        const clnet_tensor *out = clnet_graph_node_output(m->graph, i);
        const size_t parameters = node_parameters(m, i);
        const double macs = clnet_graph_node_macs(m->graph, i) / m->desc.batch;
        char shape[64], count[32] = "", work[32] = "";
        format_shape(shape, out, " x ");
        if (parameters) {
            snprintf(count, sizeof count, "%zu", parameters);
        }
        if (macs > 0) {
            snprintf(work, sizeof work, "%.3f", 1e-6 * macs);
        }
        printf("%-18s %-28s %-20s %12s %12s\n", clnet_graph_node_op(m->graph, i),
               clnet_tensor_name(out), shape, count, work);
    }
    printf("\n");
}

static void print_row(const char *title, const demand demands[PURPOSES], size_t field) {
    printf("  %-22s", title);
    for (int i = 0; i < PURPOSES; i++) {
        char text[MACHINE_BYTES];
        size_t bytes;
        memcpy(&bytes, (const char *)&demands[i].plan + field, sizeof bytes);
        if (demands[i].wanted) {
            printf(" %12s", machine_bytes(text, bytes));
        }
    }
    printf("\n");
}

static void print_memory(const info *c, const demand demands[PURPOSES]) {
    static const struct {
        const char *title;
        size_t field;
    } rows[] = {
        {"weights", offsetof(clnet_memory_plan, parameters)},
        {"running statistics", offsetof(clnet_memory_plan, buffers)},
        {"gradients of weights", offsetof(clnet_memory_plan, gradients)},
        {"Adam's moments", offsetof(clnet_memory_plan, optimiser)},
        {"activations", offsetof(clnet_memory_plan, activations)},
        {"(without sharing)", offsetof(clnet_memory_plan, unshared)},
        {"workspace", offsetof(clnet_memory_plan, workspace)},
        {"in all", offsetof(clnet_memory_plan, total)},
    };
    char text[MACHINE_BYTES];
    printf("memory, batch %-10d", c->desc.batch);
    for (int i = 0; i < PURPOSES; i++) {
        if (demands[i].wanted) {
            printf(" %12s", purpose_titles[i]);
        }
    }
    printf("\n");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        print_row(rows[i].title, demands, rows[i].field);
    }
    if (demands[1].wanted) {
        printf(
            "gradients of weights share the activations' memory; with train --accumulate they take "
            "%s of their own\n",
            machine_bytes(text, demands[1].plan.parameters));
    }
    if (!available(c)) {
        return;
    }
    printf("largest batch that fits into %s of available memory on %s:",
           machine_bytes(text, available(c)), clnet_context_device(c->ctx));
    for (int i = 0; i < PURPOSES; i++) {
        if (demands[i].wanted) {
            printf(" %s%d for %s", demands[i].largest_batch == LARGEST_BATCH ? "at least " : "",
                   demands[i].largest_batch, purpose_titles[i]);
        }
    }
    printf("\n");
}

static void print_text(const info *c, const clnet_model *m, const demand demands[PURPOSES]) {
    const totals t = count_all(m);
    printf("%s, width %g, input %d x %d, %d classes, fusion %s\n\n", m->desc.name, m->desc.width,
           m->desc.size[0], m->desc.size[1], m->desc.classes,
           network_fusion_choices[m->desc.fusion]);
    print_nodes(m);
    printf("parameters %zu (%.3f million), running statistics %zu\n", t.parameters,
           1e-6 * (double)t.parameters, t.buffers);
    printf("one image  %.3f GMAC, %.3f GFLOP forward\n\n", 1e-9 * t.macs, 2e-9 * t.macs);
    print_memory(c, demands);
}

// ---- JSON ---------------------------------------------------------------------------------------

static void print_json_nodes(const clnet_model *m) {
    printf("\"nodes\": [");
    for (int i = 0; i < clnet_graph_nodes(m->graph); i++) {
        const clnet_tensor *out = clnet_graph_node_output(m->graph, i);
        char shape[64];
        format_shape(shape, out, ", ");
        printf("%s\n  {\"op\": \"%s\", \"name\": ", i ? "," : "", clnet_graph_node_op(m->graph, i));
        machine_print_json(clnet_tensor_name(out));
        printf(", \"shape\": [%s], \"parameters\": %zu, \"macs\": %.0f}", shape,
               node_parameters(m, i), clnet_graph_node_macs(m->graph, i) / m->desc.batch);
    }
    printf("]");
}

static void print_json(const info *c, const clnet_model *m, const demand demands[PURPOSES]) {
    const totals t = count_all(m);
    printf(
        "{\"model\": \"%s\", \"width\": %.17g, \"size\": [%d, %d], \"classes\": %d, \"fusion\": "
        "\"%s\", "
        "\"batch\": %d,\n\"parameters\": %zu, \"buffers\": %zu, \"macs\": %.0f, \"flops\": %.0f,\n"
        "\"memory_available_bytes\": %" PRIu64 ",\n",
        m->desc.name, m->desc.width, m->desc.size[0], m->desc.size[1], m->desc.classes,
        network_fusion_choices[m->desc.fusion], c->desc.batch, t.parameters, t.buffers, t.macs,
        2 * t.macs, available(c));
    for (int i = 0; i < PURPOSES; i++) {
        const clnet_memory_plan *b = &demands[i].plan;
        if (demands[i].wanted) {
            printf("\"%s\": {\"parameters_bytes\": %zu, \"buffers_bytes\": %zu, "
                   "\"gradients_bytes\": %zu, "
                   "\"optimiser_bytes\": %zu, \"activations_bytes\": %zu, \"unshared_bytes\": %zu, "
                   "\"workspace_bytes\": %zu, \"total_bytes\": %zu, \"largest_batch\": %d},\n",
                   purpose_choices[i], b->parameters, b->buffers, b->gradients, b->optimiser,
                   b->activations, b->unshared, b->workspace, b->total, demands[i].largest_batch);
        }
    }
    print_json_nodes(m);
    printf("}\n");
}

// ---- the command --------------------------------------------------------------------------------

// The network of a file says all of itself; only another size can be asked for.
static bool describe(info *c, const option *options, size_t count, problem *p) {
    static const char *const said[] = {"--model", "--classes", "--width", "--fusion"};
    c->desc = network_desc(&c->network, CLNET_INFER, c->batch);
    if (!c->weights) {
        return true;
    }
    for (size_t i = 0; i < sizeof said / sizeof *said; i++) {
        if (options_find(options, count, said[i])->given) {
            return problem_input(p, "%s: cannot stand beside --weights, where the file says it",
                                 said[i]);
        }
    }
    if (clnet_model_describe(c->ctx, c->weights, &c->desc, c->name) != CLNET_OK) {
        return problem_context(p, c->ctx);
    }
    c->desc.batch = c->batch;
    if (c->network.size[0]) {
        memcpy(c->desc.size, c->network.size, sizeof c->desc.size);
    }
    return true;
}

static bool execute(info *c, const option *options, size_t count, problem *p) {
    const device_options device = {.device = c->device ? c->device : "cpu"};
    demand demands[PURPOSES];
    c->ctx = device_open(&device, p);
    c->machine = machine_describe();
    if (!c->ctx || !describe(c, options, count, p) || !demand_of(c, CLNET_INFER, &demands[0], p) ||
        !demand_of(c, CLNET_TRAIN, &demands[1], p)) {
        return false;
    }
    clnet_model *m = plan(c, c->purpose == CLNET_TRAIN ? CLNET_TRAIN : CLNET_INFER, c->batch);
    if (!m) {
        return problem_context(p, c->ctx);
    }
    (c->json ? print_json : print_text)(c, m, demands);
    clnet_model_destroy(m);
    return true;
}

bool command_info(int argc, char **argv, bool usage, problem *p) {
    info c = {.batch = 1, .purpose = PURPOSES};
    option options[] = {
        NETWORK_OPTIONS(&c.network),
        OPTION(TEXT, "--weights", &c.weights, "the network of this file instead"),
        OPTION_RANGE(INT, "--batch", &c.batch, 1, LARGEST_BATCH, "images at a time (default: 1)"),
        OPTION_OF(purpose_choices, "--purpose", &c.purpose, "memory for what (default: both)"),
        OPTION(TEXT, "--device", &c.device, "memory of which device: cpu (default), opencl, .."),
        OPTION(FLAG, "--json", &c.json, "as one JSON object"),
    };
    const size_t count = sizeof options / sizeof *options;
    if (usage) {
        printf("usage: clnet info [--model M | --weights FILE] [options]\n\n");
        options_print(options, count);
        return true;
    }
    size_t paths;
    const bool ok = options_parse(argc, argv, options, count, NULL, &paths, 0, p) &&
                    execute(&c, options, count, p);
    device_close(c.ctx);
    return ok;
}
