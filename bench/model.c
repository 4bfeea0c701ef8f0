// clnet-bench model: whole networks, forward alone and as a training step.
#define _POSIX_C_SOURCE 200809L
#include "bench.h"
#include "clnet_cl.h"
#include "commands.h"
#include "network.h"
#include "progress.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

typedef struct model_case {
    const bench_options *options;
    const bench_device *device;
    clnet_model_desc desc, check; // check: the network of which the error is taken
    double seconds;               // that repeats may take
} model_case;

// A network at work.
typedef struct model_run {
    clnet_context *ctx;
    clnet_model *model;
    bench_fence fence;
} model_run;

static const double learning_rate = 1e-5; // small: the weights stay near where they begin

static bool is_training(const model_case *c) { return c->desc.purpose == CLNET_TRAIN; }

// ---- inputs -------------------------------------------------------------------------------------

// A mask with a disc in it, labels 0, 1, 2, 0, ...
static void fill_truth(float *mask, int32_t *label, const clnet_model_desc *d) {
    const int H = d->size[0], W = d->size[1];
    for (int n = 0; n < d->batch; n++) {
        label[n] = n % d->classes;
        for (int h = 0; h < H; h++) {
            for (int w = 0; w < W; w++) {
                const double y = (h + 0.5) / H - 0.5, x = (w + 0.5) / W - 0.5;
                mask[((size_t)n * (size_t)H + (size_t)h) * (size_t)W + (size_t)w] =
                    y * y + x * x < 0.1;
            }
        }
    }
}

static bool set_inputs(const clnet_model *m) {
    const size_t count = clnet_tensor_count(m->image);
    float *image = malloc(count * sizeof *image);
    int32_t *label = malloc((size_t)m->desc.batch * sizeof *label);
    bool ok = image && label;
    if (ok) {
        bench_fill_normal(image, count, 1);
        ok = clnet_tensor_set(m->image, image, CLNET_ORDER_MEMORY) == CLNET_OK;
        fill_truth(image, label, &m->desc); // a third of the image's numbers is enough for masks
        ok = ok && (!m->mask || clnet_tensor_set(m->mask, image, CLNET_ORDER_TORCH) == CLNET_OK) &&
             (!m->label || clnet_tensor_set(m->label, label, CLNET_ORDER_TORCH) == CLNET_OK);
    }
    free(image);
    free(label);
    return ok;
}

// Builds a network on a device and fills its inputs. False: the context says why.
static bool open_run(model_run *r, const device_options *device, const clnet_model_desc *d,
                     problem *p) {
    *r = (model_run){.ctx = device_open(device, p)};
    if (!r->ctx) {
        return false;
    }
    r->model = clnet_model_create(r->ctx, d);
    if (!r->model || !bench_fence_open(&r->fence, r->ctx)) {
        return problem_context(p, r->ctx);
    }
    return set_inputs(r->model) || problem_run(p, "out of memory");
}

static void close_run(model_run *r) {
    clnet_graph_destroy(r->fence.graph);
    clnet_model_destroy(r->model);
    clnet_context_destroy(r->ctx);
}

// ---- times --------------------------------------------------------------------------------------

static double forward_once(void *arg) {
    const model_run *r = arg;
    const double begun = progress_clock();
    const bool ok = clnet_graph_forward(r->model->graph) == CLNET_OK;
    bench_fence_wait(&r->fence);
    return ok ? progress_clock() - begun : -1;
}

static double step_once(void *arg) {
    const model_run *r = arg;
    const double begun = progress_clock();
    const bool ok = clnet_train_step(r->model->adam, learning_rate) == CLNET_OK;
    bench_fence_wait(&r->fence);
    return ok ? progress_clock() - begun : -1;
}

// Forward, backward and update one by one, some steps of them. A step in one may be faster than
// their sum, since it can update as soon as a gradient is complete.
static bool measure_parts(model_run *r, int steps, bench_row *row) {
    enum { MOST = 50 };
    double forward[MOST], backward[MOST], update[MOST];
    int count = 0;
    for (; count < steps && count < MOST; count++) {
        bool ok = clnet_graph_zero_grad(r->model->graph) == CLNET_OK;
        forward[count] = 1e3 * forward_once(r);
        const double begun = progress_clock();
        ok = ok && clnet_graph_backward(r->model->graph) == CLNET_OK;
        bench_fence_wait(&r->fence);
        const double between = progress_clock();
        ok = ok && clnet_train_update(r->model->adam, learning_rate) == CLNET_OK;
        bench_fence_wait(&r->fence);
        backward[count] = 1e3 * (between - begun);
        update[count] = 1e3 * (progress_clock() - between);
        if (!ok || forward[count] < 0) {
            return false;
        }
    }
    row->forward_ms = bench_median(forward, count);
    row->backward_ms = bench_median(backward, count);
    row->update_ms = bench_median(update, count);
    return true;
}

// Operations of the direct algorithm in 10^9: forward, and in training the gradients of the weights
// and, where anything below needs it, of the input.
static double count_gflop(const clnet_model *m) {
    double macs = 0;
    for (int i = 0; i < clnet_graph_nodes(m->graph); i++) {
        const clnet_node *node = clnet_graph_node_output(m->graph, i)->producer;
        const bool first = node->in[0]->role == CLNET_ROLE_INPUT;
        macs += clnet_graph_node_macs(m->graph, i) * (m->desc.purpose != CLNET_TRAIN ? 1
                                                      : first                        ? 2
                                                                                     : 3);
    }
    return 2e-9 * macs;
}

static double peak_rss(void) {
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 && usage.ru_maxrss > 0
               ? 1024.0 * (double)usage.ru_maxrss
               : NAN;
}

static bool measure_run(const model_case *c, model_run *r, bench_row *row) {
    bench_times times;
    const bool train = is_training(c);
    // A third of the time of a training goes to its parts, one by one.
    if (!bench_measure(&times, c->options->repeats, c->seconds * (train ? 2.0 / 3 : 1),
                       train ? step_once : forward_once, r)) {
        return false;
    }
    row->repeats = times.count;
    row->median_ms = times.median;
    row->min_ms = times.least;
    row->max_ms = times.most;
    row->forward_ms = times.median;
    row->gflop = count_gflop(r->model);
    row->plan_bytes = (double)r->model->plan.total;
    bench_row_rates(row, NAN);
    row->peak_rss_bytes = peak_rss();
    return !train || measure_parts(r, (times.count + 1) / 2, row);
}

typedef struct measured {
    bench_row row;
    problem problem;
} measured;

static void measure_child(void *arg, int to) {
    const model_case *c = arg;
    device_options device = c->options->device;
    measured answer = {.row = bench_row_new()};
    model_run r;
    device.device = c->device->id;
    if (open_run(&r, &device, &c->desc, &answer.problem) && !measure_run(c, &r, &answer.row)) {
        problem_context(&answer.problem, r.ctx);
    }
    bench_send(to, &answer, sizeof answer);
}

// ---- the error ----------------------------------------------------------------------------------

// What is compared: logits, or all gradients of a step.
typedef struct outcome {
    float *values;
    size_t count;
} outcome;

static bool append(outcome *o, clnet_tensor *t, bool gradient) {
    const size_t count = t ? clnet_tensor_count(t) : 0;
    float *larger = t ? realloc(o->values, (o->count + count) * sizeof *larger) : NULL;
    if (!larger) {
        return t == NULL;
    }
    o->values = larger;
    o->count += count;
    return (gradient ? clnet_tensor_get_grad : clnet_tensor_get)(t, o->values + o->count - count,
                                                                 CLNET_ORDER_MEMORY) == CLNET_OK;
}

static bool ends_with(const char *text, const char *end) {
    const size_t length = strlen(text), tail = strlen(end);
    return length >= tail && !strcmp(text + length - tail, end);
}

// Sets all numbers of the weight NAME.END beside NAME.running_mean.
static bool set_beside(const clnet_model *m, const char *running_mean, const char *end,
                       double value) {
    char name[256];
    snprintf(name, sizeof name, "%.*s%s", (int)(strlen(running_mean) - strlen("running_mean")),
             running_mean, end);
    clnet_tensor *t = clnet_graph_find_weight(m->graph, name);
    const size_t count = t ? clnet_tensor_count(t) : 0;
    float *values = malloc((count ? count : 1) * sizeof *values);
    for (size_t i = 0; values && i < count; i++) {
        values[i] = (float)value;
    }
    const bool ok = values && t && clnet_tensor_set(t, values, CLNET_ORDER_MEMORY) == CLNET_OK;
    free(values);
    return ok;
}

// A deep network in training amplifies rounding beyond any limit worth having, unless residual
// branches are weak and most inputs of ReLUs are above 0, but where a maximum follows.
static bool condition_weights(const clnet_model *m) {
    bool ok = true;
    for (int i = 0; ok && i < clnet_graph_weights(m->graph); i++) {
        const char *name = clnet_tensor_name(clnet_graph_weight(m->graph, i));
        if (ends_with(name, ".running_mean")) {
            const bool last = ends_with(name, ".bn3.running_mean");
            const bool stem =
                !strcmp(name, "cls.bn1.running_mean") || !strcmp(name, "seg.bn1.running_mean");
            ok = set_beside(m, name, "weight", last ? 0.2 : 1) && set_beside(m, name, "bias",
                                                                             last   ? -0.1
                                                                             : stem ? -0.5
                                                                                    : 1.5);
        }
    }
    return ok;
}

// One pass of a small network on a device, or by plain loops on the CPU.
static bool run_outcome(outcome *o, const device_options *device, const clnet_model_desc *d,
                        problem *p) {
    model_run r;
    *o = (outcome){0};
    bool ok = open_run(&r, device, d, p);
    if (ok) {
        clnet_model *m = r.model;
        ok = condition_weights(m) && clnet_graph_forward(m->graph) == CLNET_OK;
        if (d->purpose != CLNET_TRAIN) {
            ok = ok && append(o, m->logits, false) && append(o, m->mask_logits, false);
        } else {
            ok = ok && clnet_graph_backward(m->graph) == CLNET_OK;
            for (int i = 0; ok && i < clnet_graph_weights(m->graph); i++) {
                clnet_tensor *w = clnet_graph_weight(m->graph, i);
                ok = !clnet_tensor_trainable(w) || append(o, w, true);
            }
        }
        ok = ok || problem_context(p, r.ctx);
    }
    close_run(&r);
    return ok;
}

typedef struct checked {
    double error;
    problem problem;
} checked;

// |a - b| / |b|, Euclidean; NaN stays NaN.
static double relative_error(const outcome *a, const outcome *b) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < b->count; i++) {
        const double d = (double)a->values[i] - (double)b->values[i];
        difference += d * d;
        norm += (double)b->values[i] * (double)b->values[i];
    }
    return sqrt(difference / norm);
}

static void check_child(void *arg, int to) {
    const model_case *c = arg;
    checked answer = {.error = NAN};
    device_options device = c->options->device, plain = {.device = "cpu", .reference = true};
    device.device = c->device->id;
    plain.threads = c->options->device.threads;
    outcome right = {0}, found = {0};
    if (run_outcome(&right, &plain, &c->check, &answer.problem) &&
        run_outcome(&found, &device, &c->check, &answer.problem)) {
        answer.error = relative_error(&found, &right);
    }
    bench_send(to, &answer, sizeof answer);
}

// The network that is checked: narrow, and at a size that plain loops do in about a second.
static clnet_model_desc check_desc(const clnet_model_desc *d) {
    clnet_model_desc check = *d;
    check.width = fmin(d->width > 0 ? d->width : 1, 0.25);
    check.batch = 2;
    for (check.size[0] = 64; check.size[0] <= 256; check.size[0] *= 2) { // inception_v3 needs 75
        clnet_context *ctx = clnet_context_create(NULL);
        check.size[1] = check.size[0];
        check.plan_only = true;
        clnet_model *m = clnet_model_create(ctx, &check);
        check.plan_only = false;
        const bool fits = m != NULL;
        clnet_model_destroy(m);
        clnet_context_destroy(ctx);
        if (fits) {
            break;
        }
    }
    return check;
}

// ---- the command --------------------------------------------------------------------------------

typedef struct command {
    bench_options options;
    network_options network;
    int mode, batch;
} command;

enum { INFER, TRAIN, BOTH };
static const char *const mode_choices[] = {"infer", "train", "both", NULL};

static void name_case(bench_row *row, const model_case *c) {
    const clnet_model_desc *d = &c->desc;
    char width[32] = "";
    if (d->width > 0 && d->width != 1) {
        snprintf(width, sizeof width, " width %.4g", d->width);
    }
    snprintf(row->name, sizeof row->name,
             "%.40s%s%s %s (error: width %.4g, %dx%d, batch %d, plain loops)",
             d->name ? d->name : "resnet50+unet", width,
             d->fusion == CLNET_FUSION_PER_TASK ? " per-task" : "",
             mode_choices[is_training(c) ? TRAIN : INFER], c->check.width, c->check.size[0],
             c->check.size[1], c->check.batch);
}

// A case that the library refuses, such as batch norm over one value, is not there to be measured.
static void fail_row(bench_row *row, const char *why, bool refused) {
    row->status = refused ? BENCH_NA : BENCH_FAILED;
    snprintf(row->why, sizeof row->why, "%.*s", (int)sizeof row->why - 1, why);
}

// Forward: direct convolution reaches 1e-6, Winograd's transforms cost up to ten times that; a
// device may round each part of an expression. A gradient may also meet a ReLU so near to its kink
// that rounding decides: of inputs with mean 1.5 and deviation 1 (see condition_weights), whose density
// at 0 is 0.13, an error of e in forward brings 2 e 0.13 to the other side, and each keeps or drops a
// number of the gradient. The root of that share, relative L2, is 1.1e-3 for e = 5e-6; 1e-4 has been
// seen. What is wrong is off by a hundredth and more.
static double error_limit(const model_case *c) {
    const bool cpu = !strncmp(c->device->id, "cpu", 3);
    return is_training(c) ? 1e-3 : cpu ? 2e-5 : 5e-5;
}

// Checks, then measures a case, each in a process of its own.
static bench_row run_case(model_case *c) {
    checked check = {.error = NAN};
    measured answer = {.row = bench_row_new()};
    problem p = {0};
    c->check = check_desc(&c->desc);
    const bool is_checked = bench_child_call(check_child, c, &check, sizeof check, &p);
    const bool is_measured =
        bench_child_call(measure_child, c, &answer, sizeof answer, &answer.problem);
    bench_row row = is_measured ? answer.row : bench_row_new();
    name_case(&row, c);
    bench_row_device(&row, c->device);
    bench_row_rates(&row, NAN);
    row.batch = c->desc.batch;
    row.size[0] = c->desc.size[0] ? c->desc.size[0] : 224;
    row.size[1] = c->desc.size[1] ? c->desc.size[1] : 224;
    row.error = check.error;
    row.error_limit = error_limit(c);
    if (answer.problem.status) {
        fail_row(&row, answer.problem.text, answer.problem.status == EXIT_USAGE);
    } else if (!is_checked || check.problem.status) {
        fail_row(&row, is_checked ? check.problem.text : p.text, false);
    } else if (!(row.error <= row.error_limit)) {
        fail_row(&row, "the result is wrong: its error is beyond the limit", false);
    }
    return row;
}

static bool run_device(const command *c, const bench_device *d, bench_output *out, problem *p) {
    const int first = c->mode == TRAIN ? TRAIN : INFER, last = c->mode == INFER ? INFER : TRAIN;
    bool ok = true;
    for (int mode = first; ok && mode <= last && !command_signal; mode++) {
        const clnet_purpose purpose = mode == TRAIN ? CLNET_TRAIN : CLNET_INFER;
        model_case one = {.options = &c->options,
                          .device = d,
                          .desc = network_desc(&c->network, purpose,
                                               c->batch        ? c->batch
                                               : mode == TRAIN ? 2
                                                               : 1),
                          .seconds = c->options.time * (first == last   ? 1
                                                        : mode == TRAIN ? 0.75
                                                                        : 0.25)};
        one.desc.classes = one.desc.classes ? one.desc.classes : 3;
        one.desc.no_accumulation = true; // as `clnet train` has it without --accumulate
        const bench_row row = run_case(&one);
        ok = command_signal || bench_output_row(out, &row, p);
    }
    return ok;
}

// A name that no network has is bad input, and known before anything is measured.
static bool check_network(const command *c, problem *p) {
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_model_desc d = network_desc(&c->network, CLNET_INFER, c->batch ? c->batch : 1);
    d.plan_only = true;
    clnet_model *m = clnet_model_create(ctx, &d);
    const bool ok = m || problem_context(p, ctx);
    clnet_model_destroy(m);
    clnet_context_destroy(ctx);
    return ok;
}

static bool execute(command *c, problem *p) {
    bench_device devices[BENCH_DEVICES];
    int count = 0;
    bench_output out = {0};
    if (!check_network(c, p) || !bench_devices(&c->options, devices, &count, p) ||
        !bench_output_open(&out, &c->options, p)) {
        return false;
    }
    bool ok = true;
    for (int i = 0; ok && i < count && !command_signal; i++) {
        bench_survey(&c->options, &devices[i]);
        if (devices[i].problem.status && count == 1) {
            *p = devices[i].problem;
            ok = command_signal;
        } else if (devices[i].problem.status) {
            fprintf(stderr, "clnet-bench: %s: %s\n", devices[i].id, devices[i].problem.text);
        } else {
            bench_print_header(&c->options, &devices[i]);
            ok = run_device(c, &devices[i], &out, p);
        }
    }
    return bench_output_close(&out, p) && ok;
}

bool bench_model(int argc, char **argv, bool usage, problem *p) {
    command c = {.options = {.time = 60}, .mode = BOTH};
    option options[] = {
        NETWORK_OPTIONS(&c.network),
        OPTION_OF(mode_choices, "--mode", &c.mode, "what is measured (default: both)"),
        OPTION_RANGE(INT, "--batch", &c.batch, 1, 65536,
                     "images at a time (default: 1, in training 2)"),
        BENCH_TIME_OPTIONS(&c.options),
        BENCH_OPTIONS(&c.options),
    };
    const size_t count = sizeof options / sizeof *options;
    if (usage) {
        printf("usage: clnet-bench model [--device D | --device all] [options]\n\n"
               "Forward passes and training steps of a network: median, share of the peak, memory, "
               "and the error\nof a small copy of it against plain loops.\n\n");
        options_print(options, count);
        return true;
    }
    size_t paths;
    return options_parse(argc, argv, options, count, NULL, &paths, 0, p) && execute(&c, p);
}
