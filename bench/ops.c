// clnet-bench ops: single operations with the shapes that they have in a network.
#include "ops.h"
#include "clnet_cl.h"
#include "commands.h"
#include "network.h"
#include "progress.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// One pass of one operation.
typedef struct job {
    const bench_op *op;
    bench_pass pass;
} job;

typedef struct command {
    bench_options options;
    network_options network;
    const char *filter, *roofline;
    int batch;
    bool quick;
    bench_op *ops;
    int op_count;
    job *jobs;
    int job_count;
    bench_row *rows; // of all devices so far, for the picture
    size_t row_count;
} command;

static const char *const pass_names[] = {"forward", "backward_data", "backward_weight"};

// ---- which --------------------------------------------------------------------------------------

// Of operations that differ in their sizes only, --quick takes the one with the most to do.
static bool same_kind(const bench_op *a, const bench_op *b) {
    return a->op == b->op && a->product == b->product &&
           !memcmp(a->conv2d.kernel_size, b->conv2d.kernel_size, sizeof a->conv2d.kernel_size) &&
           !memcmp(a->conv2d.stride, b->conv2d.stride, sizeof a->conv2d.stride) &&
           !memcmp(a->pool2d.kernel_size, b->pool2d.kernel_size, sizeof a->pool2d.kernel_size);
}

static double work_of(const bench_op *o) {
    double work = o->macs;
    for (int i = 0; work <= o->macs && i < o->inputs; i++) {
        work += 1e-3 * o->in[i][0] * o->in[i][1] * o->in[i][2] * o->in[i][3];
    }
    return work;
}

static bool is_wanted(const command *c, const bench_op *o) {
    if (c->filter && !strstr(o->name, c->filter)) {
        return false;
    }
    for (int i = 0; c->quick && i < c->op_count; i++) {
        const bench_op *other = &c->ops[i];
        if (same_kind(o, other) && (!c->filter || strstr(other->name, c->filter)) &&
            (work_of(other) > work_of(o) || (work_of(other) == work_of(o) && other < o))) {
            return false;
        }
    }
    return true;
}

static bool list_jobs(command *c, problem *p) {
    c->jobs = malloc(3 * (size_t)c->op_count * sizeof *c->jobs);
    if (!c->jobs) {
        return problem_run(p, "out of memory");
    }
    for (int i = 0; i < c->op_count; i++) {
        const bench_op *o = &c->ops[i];
        const bool weights = o->op == CLNET_OP_CONV2D || o->op == CLNET_OP_LINEAR;
        const bench_pass last = o->product ? BENCH_FORWARD
                                : weights  ? BENCH_BACKWARD_WEIGHT
                                           : BENCH_BACKWARD_DATA;
        for (int pass = BENCH_FORWARD; is_wanted(c, o) && pass <= (int)last; pass++) {
            c->jobs[c->job_count++] = (job){o, (bench_pass)pass};
        }
    }
    return c->job_count > 0 ||
           problem_input(p, "--filter %s: no operation of the network has this in its name",
                         c->filter);
}

// ---- measuring, in a child ----------------------------------------------------------------------

typedef struct timed {
    bench_op_run *run;
    bench_fence fence;
} timed;

static double pass_once(void *arg) {
    const timed *t = arg;
    if (!bench_op_prepare(t->run)) {
        return -1;
    }
    if (t->run->pass != BENCH_FORWARD) {
        bench_fence_wait(&t->fence);
    }
    const double begun = progress_clock();
    const bool ok = bench_op_pass(t->run);
    bench_fence_wait(&t->fence);
    return ok ? progress_clock() - begun : -1;
}

static double bytes_of(const clnet_tensor *t) {
    return t ? (double)sizeof(float) * (double)clnet_tensor_count(t) : 0;
}

// Which values backward reads, from the library's own list.
static unsigned reads_of(clnet_op op) {
    static const unsigned reads[] = {
#define X(ENUM, name, forward, backward, reads) reads,
        CLNET_OPS(X)
#undef X
    };
    return reads[op];
}

// What a pass has to move at least: each tensor that it reads or writes, once.
static double least_bytes(const bench_op_run *r) {
    const bench_op *o = r->op;
    const bool sums = o->op == CLNET_OP_CONV2D || o->op == CLNET_OP_LINEAR;
    double bytes = bytes_of(r->out); // or its gradient
    if (sums) { // forward x and w make y, dy and w make dx, dy and x make dw: always all three
        return bytes + bytes_of(r->in[0]) +
               bytes_of(clnet_graph_find_weight(r->graph, "op.weight"));
    }
    bytes += bytes_of(clnet_graph_find_weight(r->graph, "op.weight")); // 0 where there is none
    for (int i = 0; i < o->inputs; i++) {
        const bool read = r->pass == BENCH_FORWARD || (reads_of(o->op) & CLNET_READS(i));
        bytes += (read + (r->pass != BENCH_FORWARD && r->in[i]->require_grad)) * bytes_of(r->in[i]);
    }
    return bytes +
           (r->pass != BENCH_FORWARD && (reads_of(o->op) & CLNET_READS_OUT) ? bytes_of(r->out) : 0);
}

static bool measure_job(const command *c, const job *j, clnet_context *ctx,
                        const bench_device *device, bench_row *row) {
    bench_op_run run;
    bench_times times;
    timed t = {.run = &run};
    bool ok = bench_op_open(&run, ctx, j->op, j->pass) && bench_fence_open(&t.fence, ctx);
    if (ok) {
        bench_op_check(&run, &row->error, &row->error_limit);
        ok = bench_measure(&times, c->options.repeats, c->options.time / c->job_count, pass_once,
                           &t);
    }
    if (ok) {
        bench_row_device(row, device);
        row->repeats = times.count;
        row->median_ms = times.median;
        row->min_ms = times.least;
        row->max_ms = times.most;
        row->forward_ms = j->pass == BENCH_FORWARD ? times.median : NAN;
        row->backward_ms = j->pass == BENCH_FORWARD ? NAN : times.median;
        row->gflop = j->op->macs > 0 ? 2e-9 * j->op->macs : NAN;
        row->plan_bytes = (double)run.plan.total;
        bench_row_rates(row, least_bytes(&run));
    }
    clnet_graph_destroy(t.fence.graph);
    bench_op_close(&run);
    return ok;
}

typedef struct work {
    const command *command;
    const bench_device *device;
    int first; // job
} work;

// Every message is a row. The first failure of a device's context ends it for all that follows.
static void measure_child(void *arg, int to) {
    const work *w = arg;
    const command *c = w->command;
    device_options device = c->options.device;
    problem p = {0};
    device.device = w->device->id;
    clnet_context *ctx = device_open(&device, &p);
    for (int i = w->first; i < c->job_count; i++) {
        bench_row row = bench_row_new();
        if (!ctx || !measure_job(c, &c->jobs[i], ctx, w->device, &row)) {
            // What the library refuses, such as batch norm over one value, is not there to measure.
            const bool refused = ctx && clnet_context_result(ctx) == CLNET_ERROR_ARGUMENT;
            row.status = refused ? BENCH_NA : BENCH_FAILED;
            snprintf(row.why, sizeof row.why, "%.*s", (int)sizeof row.why - 1,
                     ctx ? clnet_error(ctx) : p.text);
            clnet_context_clear(ctx);
        } else if (!(row.error <= row.error_limit)) {
            row.status = BENCH_FAILED;
            snprintf(row.why, sizeof row.why, "the result is wrong: its error is beyond the limit");
        }
        bench_send(to, &row, sizeof row);
    }
}

// ---- the command --------------------------------------------------------------------------------

static bool finish_row(command *c, const job *j, const bench_device *d, bench_row *row,
                       bench_output *out, problem *p) {
    snprintf(row->name, sizeof row->name, "%s", j->op->name);
    snprintf(row->pass, sizeof row->pass, "%s", pass_names[j->pass]);
    bench_row_device(row, d);
    row->batch = c->batch;
    row->size[0] = j->op->in[0][2];
    row->size[1] = j->op->in[0][3];
    c->rows[c->row_count++] = *row;
    return bench_output_row(out, row, p);
}

// A child that dies takes its case with it; another goes on behind it.
static bool run_device(command *c, const bench_device *d, bench_output *out, problem *p) {
    bool ok = true;
    for (int next = 0; ok && next < c->job_count && !command_signal;) {
        work w = {c, d, next};
        bench_child child;
        bench_row row;
        char why[128];
        if (!bench_child_start(&child, measure_child, &w, p)) {
            return false;
        }
        while (ok && next < c->job_count && bench_child_receive(&child, &row, sizeof row)) {
            ok = finish_row(c, &c->jobs[next++], d, &row, out, p);
        }
        bench_child_end(&child, why);
        if (ok && next < c->job_count && !command_signal) {
            row = bench_row_new();
            row.status = BENCH_FAILED;
            snprintf(row.why, sizeof row.why, "%s", why);
            ok = finish_row(c, &c->jobs[next++], d, &row, out, p);
        }
    }
    return ok;
}

static bool run_devices(command *c, bench_output *out, problem *p) {
    bench_device devices[BENCH_DEVICES];
    int count = 0;
    bool ok = bench_devices(&c->options, devices, &count, p);
    c->rows = ok ? calloc((size_t)count * (size_t)c->job_count, sizeof *c->rows) : NULL;
    if (ok && !c->rows) {
        return problem_run(p, "out of memory");
    }
    for (int i = 0; ok && i < count && !command_signal; i++) {
        bench_survey(&c->options, &devices[i]);
        if (devices[i].problem.status && count == 1) {
            *p = devices[i].problem;
            ok = command_signal;
        } else if (devices[i].problem.status) {
            fprintf(stderr, "clnet-bench: %s: %s\n", devices[i].id, devices[i].problem.text);
        } else {
            bench_print_header(&c->options, &devices[i]);
            ok = run_device(c, &devices[i], out, p);
        }
    }
    return ok;
}

// Known before anything is measured: the picture is written to this name with ".tmp" behind it,
// then renamed.
static bool check_picture(const char *path, problem *p) {
    char temporary[4096];
    const int length = snprintf(temporary, sizeof temporary, "%s.tmp", path);
    FILE *f = length < (int)sizeof temporary ? fopen(temporary, "w") : NULL;
    if (!f) {
        return problem_input(p, "--roofline %s: cannot be written", path);
    }
    fclose(f);
    remove(temporary);
    return true;
}

static bool execute(command *c, problem *p) {
    bench_output out = {.operations = true};
    if (c->roofline && !check_picture(c->roofline, p)) {
        return false;
    }
    clnet_model_desc d = network_desc(&c->network, CLNET_TRAIN, c->batch);
    if (!bench_ops_list(&d, &c->ops, &c->op_count, p) || !list_jobs(c, p) ||
        !bench_output_open(&out, &c->options, p)) {
        return false;
    }
    bool ok = run_devices(c, &out, p);
    ok = bench_output_close(&out, p) && ok;
    if (ok && c->roofline && c->row_count) {
        ok = bench_roofline(c->roofline, c->rows, c->row_count, p);
    }
    return ok;
}

bool bench_ops(int argc, char **argv, bool usage, problem *p) {
    command c = {.options = {.time = 60}, .batch = 1};
    option options[] = {
        OPTION(TEXT, "--filter", &c.filter,
               "only cases with this in their name, as \"conv2d 3x3\""),
        OPTION(FLAG, "--quick", &c.quick, "of each kind of operation the case with the most work"),
        OPTION(TEXT, "--roofline", &c.roofline, "PNG: speed over operations per byte"),
        NETWORK_OPTIONS(&c.network),
        OPTION_RANGE(INT, "--batch", &c.batch, 1, 65536, "images at a time (default: 1)"),
        BENCH_TIME_OPTIONS(&c.options),
        BENCH_OPTIONS(&c.options),
    };
    const size_t count = sizeof options / sizeof *options;
    if (usage) {
        printf(
            "usage: clnet-bench ops [--filter TEXT] [--quick] [--device D | --device all] "
            "[options]\n\n"
            "The distinct operations of a network, with their shapes: forward, gradient of the "
            "data, gradient\nof the weights; and the bare matrix products that its convolutions "
            "are (\"product\"). The error is\nin units of rounding; \"of limit\" is the share of "
            "what the peaks of arithmetic and of copying allow.\n\n");
        options_print(options, count);
        return true;
    }
    size_t paths;
    const bool ok = options_parse(argc, argv, options, count, NULL, &paths, 0, p) && execute(&c, p);
    free(c.ops);
    free(c.jobs);
    free(c.rows);
    return ok;
}
