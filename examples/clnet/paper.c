// clnet paper: the paper's tables and figures from one command. Trains the networks that are missing,
// each in its own folder, goes on with those that were interrupted, measures them all.
#define _POSIX_C_SOURCE 200809L
#include "commands.h"
#include "disk.h"
#include "measure.h"
#include "network.h"
#include "notes.h"
#include "summary.h"
#include "tables.h"
#include "train.h"
#include "trainlog.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_MODELS = 16, MAX_MODEL_NAME = 32, ARGUMENTS = 40 };
enum { SPLIT_AUTO, SPLIT_VALIDATION, SPLIT_TEST };
enum { CHECKPOINT_AUTO, CHECKPOINT_LAST, CHECKPOINT_BEST };

static const char *const split_choices[] = {"auto", "validation", "test", NULL};
static const char *const checkpoint_choices[] = {"auto", "last", "best", NULL};

// The rows of Table 1, then those that Table 2 and Fig. 4 add.
static const char paper_models[] = "resnet50,inception_v3,arlnet50,inception_v3+unet,resnet50+unet,"
                                   "unet,resunet,resnet50+resunet";

// One training of one network.
typedef struct row {
    char model[MAX_MODEL_NAME], title[RESULT_TITLE];
    uint64_t seed;
    char *folder;     // MODEL, or MODEL-seedS for all but the first seed
    double work;      // of its training and its measuring, in units of the progress line
    double per_image; // of its training
    size_t planned;   // bytes of a training step
    bool measured;    // result holds its figures
    result result;
    char *reason; // why it has no result; NULL: not yet
} row;

typedef struct paper {
    device_options device;
    network_options network; // of every row; the model's name is each row's own
    int epochs, batch, accumulate, seeds, split, checkpoint;
    double lr, weight_decay, gamma;
    option_list alpha, weights;
    uint64_t seed;
    const char *data_path, *out, *models;
    const char *resnet50, *inception_v3; // files of pretrained encoders; NULL: none
    option *options;
    size_t recipe; // the first so many options are those of `clnet train`, kept in paper.txt
    size_t kept;   // the next, up to here, are kept there and must agree too
    size_t stored; // the next, up to here, are kept there and may change from call to call
    size_t count;
    notes notes; // paper.txt as it was found
    clnet_context *ctx;
    dataset training, data; // what is learned from, what is measured on
    row *rows;
    size_t row_count, to_do; // rows, those without a result
    size_t current;          // the row in hand
    progress bar;
    double done; // work of the rows before the one in hand
} paper;

// ---- settings -----------------------------------------------------------------------------------

// Settings that the folder has already; those given beside them have to agree. The list of networks
// and the number of seeds may grow.
static bool restore_settings(paper *x, const char *path, problem *p) {
    for (size_t i = 0; i < x->stored; i++) {
        option *o = &x->options[i];
        const char *text = notes_find(&x->notes, o->name + 2);
        char given[OPTION_TEXT_SIZE];
        if (!text && o->kind == OPTION_TEXT) {
            text = ""; // none
        }
        if (!text && i < x->kept) {
            return problem_input(p, "%s: has no line for %s", path, o->name + 2);
        }
        options_format(o, given);
        if (o->given && i < x->kept && strcmp(given, text)) {
            return problem_input(p, "%s %s: the job in %s has %s", o->name, given, x->out,
                                 *text ? text : "none");
        }
        if (text && *text && !o->given && !options_set(o, text, p)) {
            return false;
        }
    }
    const char *data = notes_find(&x->notes, "data");
    x->data_path = x->data_path ? x->data_path : data;
    return x->data_path || problem_input(p, "%s: has no line for data", path);
}

static bool read_settings(paper *x, problem *p) {
    char path[DISK_PATH];
    if (!disk_join(path, x->out, "paper.txt", p)) {
        return false;
    }
    if (!disk_exists(path)) {
        return x->data_path ||
               problem_input(p, "no data set given; usage: clnet paper DATA --out DIR [options]");
    }
    return notes_read(path, &x->notes, p) && restore_settings(x, path, p);
}

// A number of a list of images as text: work that goes on, on other images, is refused.
static bool check_list(const paper *x, const dataset *data, char hash[32], problem *p) {
    char name[32];
    snprintf(name, sizeof name, "list.%s", data->split);
    snprintf(hash, 32, "%016" PRIx64, dataset_hash(data));
    const char *stored = notes_find(&x->notes, name);
    return !stored || !strcmp(stored, hash) ||
           problem_input(p,
                         "%s: other images, masks or labels in its %s split than the job in %s "
                         "began with",
                         x->data_path, data->split, x->out);
}

static bool write_settings(const paper *x, problem *p) {
    notes_text text = {.used = 0};
    char path[DISK_PATH], training[32], measured[32], name[32];
    for (size_t i = 0; i < x->stored; i++) {
        char value[OPTION_TEXT_SIZE];
        options_format(&x->options[i], value);
        notes_add(&text, x->options[i].name + 2, value);
    }
    if (!check_list(x, &x->training, training, p) || !check_list(x, &x->data, measured, p)) {
        return false;
    }
    notes_add(&text, "data", x->data_path);
    notes_add(&text, "list.training", training);
    snprintf(name, sizeof name, "list.%s", x->data.split);
    notes_add(&text, name, measured);
    return disk_make_folder(x->out, p) && disk_join(path, x->out, "paper.txt", p) &&
           notes_write(&text, path, p);
}

// ---- what is to be done -------------------------------------------------------------------------

// The test split where it has masks and labels, as the paper; else the validation split.
static bool open_data(paper *x, problem *p) {
    const bool test = dataset_has(x->data_path, "test");
    if (!dataset_open(x->data_path, "training", &x->training, p)) {
        return false;
    }
    if (x->split == SPLIT_TEST || (x->split == SPLIT_AUTO && test)) {
        if (!dataset_open(x->data_path, "test", &x->data, p)) {
            return false;
        }
        const size_t labels = x->data.classes[0] + x->data.classes[1] + x->data.classes[2];
        if (x->split == SPLIT_TEST || (x->data.masks > 0 && labels > 0)) {
            return true;
        }
        dataset_close(&x->data);
    }
    return dataset_open(x->data_path, "validation", &x->data, p);
}

// The weights that are measured. On the validation split the best ones were chosen by the very
// images that are measured, so it is the last ones there.
static const char *checkpoint_of(const paper *x) {
    const bool best = x->checkpoint == CHECKPOINT_BEST ||
                      (x->checkpoint == CHECKPOINT_AUTO && !strcmp(x->data.split, "test") &&
                       dataset_has(x->data_path, "validation"));
    return best ? "best.safetensors" : "last.safetensors";
}

static bool add_row(paper *x, const char *model, size_t length, uint64_t seed, problem *p) {
    row *r = &x->rows[x->row_count];
    char name[MAX_MODEL_NAME + 32], path[DISK_PATH];
    if (length == 0 || length >= MAX_MODEL_NAME) {
        return problem_input(p, "--models %s: needs names with commas between them", x->models);
    }
    snprintf(r->model, sizeof r->model, "%.*s", (int)length, model);
    result_title(r->title, r->model);
    r->seed = seed;
    for (size_t i = 0; i < x->row_count; i++) {
        if (!strcmp(x->rows[i].model, r->model) && x->rows[i].seed == seed) {
            return problem_input(p, "--models %s: %s stands there twice", x->models, r->model);
        }
    }
    if (seed == x->seed) {
        snprintf(name, sizeof name, "%s", r->model);
    } else {
        snprintf(name, sizeof name, "%s-seed%" PRIu64, r->model, seed);
    }
    if (!disk_join(path, x->out, name, p)) {
        return false;
    }
    r->folder = strdup(path);
    x->row_count++;
    return r->folder || problem_run(p, "no memory for the rows of the tables");
}

// All networks of the first seed, then those of the second, ..
static bool list_rows(paper *x, problem *p) {
    x->rows = calloc((size_t)x->seeds * MAX_MODELS, sizeof *x->rows);
    if (!x->rows) {
        return problem_run(p, "no memory for the rows of the tables");
    }
    for (int s = 0; s < x->seeds; s++) {
        const char *at = x->models;
        for (int i = 0;; i++) {
            const size_t length = strcspn(at, ",");
            if (i == MAX_MODELS) {
                return problem_input(p, "--models: at most %d networks", MAX_MODELS);
            }
            if (!add_row(x, at, length, x->seed + (uint64_t)s, p)) {
                return false;
            }
            if (!at[length]) {
                break;
            }
            at += length + 1;
        }
    }
    return true;
}

// A row's failure does not end the job: it is told, and kept for the report.
static void row_failed(row *r, const char *sentence) {
    fprintf(stderr, "clnet paper: %s, seed %" PRIu64 ": %s\n", r->model, r->seed, sentence);
    r->reason = strdup(sentence);
}

// A finished row has a result.txt, written last. Without paper.txt nothing tells what it was
// trained with; training it again then finds it finished, after its settings were compared.
static void find_result(const paper *x, row *r) {
    char path[DISK_PATH];
    problem none = {0};
    r->measured = x->notes.count > 0 && disk_join(path, r->folder, "result.txt", &none) &&
                  disk_exists(path) && result_read(&r->result, path, &none) &&
                  !strcmp(r->result.model, r->model) && !strcmp(r->result.split, x->data.split) &&
                  !strcmp(r->result.checkpoint, checkpoint_of(x));
}

// Sizes the work of a row. What cannot be built with these settings is left out, unless --models
// names it.
static bool plan_row(paper *x, row *r, problem *p) {
    clnet_model_desc d = network_desc(&x->network, CLNET_TRAIN, x->batch);
    d.name = r->model;
    d.plan_only = true;
    d.no_accumulation = x->accumulate == 1; // as a training has it
    d.raw_image = true;
    clnet_model *m = clnet_model_create(x->ctx, &d);
    if (!m) {
        if (options_find(x->options, x->count, "--models")->given) {
            return problem_input(p, "--models: %s", clnet_error(x->ctx));
        }
        row_failed(r, clnet_error(x->ctx));
        clnet_context_clear(x->ctx);
        return true;
    }
    result counts;
    result_count(&counts, m);
    r->planned = m->plan.total;
    // A training step is taken as three forward passes: one forward, two backward. What is done
    // already counts nothing, so that the time left is that of the rest.
    r->per_image = 3 * counts.macs;
    r->work = r->measured ? 0
                          : r->per_image * (double)x->training.count * x->epochs +
                                counts.macs * (double)x->data.count;
    clnet_model_destroy(m);
    return true;
}

// The largest unit of work that still gives the job 1000 parts, and what turns multiply-adds into it.
static const char *unit_of(double macs, double *scale) {
    static const char *const units[] = {"TFLOP", "GFLOP", "MFLOP"};
    int unit = 0;
    *scale = 2e-12;
    for (; unit < 2 && *scale * macs < 1000; unit++) {
        *scale *= 1000;
    }
    return units[unit];
}

static bool plan(paper *x, problem *p) {
    double total = 0;
    for (size_t i = 0; i < x->row_count; i++) {
        row *r = &x->rows[i];
        find_result(x, r);
        if (!plan_row(x, r, p)) {
            return false;
        }
        total += r->work;
        x->to_do += r->work > 0;
    }
    double scale;
    const char *unit = unit_of(total, &scale);
    for (size_t i = 0; i < x->row_count; i++) {
        x->rows[i].work *= scale;
        x->rows[i].per_image *= scale;
    }
    progress_begin(&x->bar, (size_t)(scale * total), unit);
    return true;
}

// ---- one row ------------------------------------------------------------------------------------

// The arguments of `clnet train`: the recipe's settings, the device, the row's own.
typedef struct arguments {
    char *list[ARGUMENTS];
    int count;
    bool failed;
} arguments;

// NAME=VALUE, or with a value of NULL the name alone.
static void add_argument(arguments *a, const char *name, const char *value) {
    const size_t size = strlen(name) + (value ? strlen(value) : 0) + 2;
    char *text = a->count < ARGUMENTS ? malloc(size) : NULL;
    if (text) {
        snprintf(text, size, "%s%s%s", name, value ? "=" : "", value ? value : "");
        a->list[a->count++] = text;
    }
    a->failed = a->failed || !text;
}

static void arguments_free(arguments *a) {
    for (int i = 0; i < a->count; i++) {
        free(a->list[i]);
    }
}

// The pretrained classification branch of a row; NULL: none. As the paper, no other branch has one.
static const char *pretrained_of(const paper *x, const row *r) {
    return !result_classifies(r->model)                                    ? NULL
           : !strncmp(r->model, "inception_v3", sizeof "inception_v3" - 1) ? x->inception_v3
                                                                           : x->resnet50;
}

static bool make_arguments(const paper *x, const row *r, bool resume, arguments *a, problem *p) {
    char seed[32];
    for (size_t i = 0; i < x->recipe; i++) {
        char value[OPTION_TEXT_SIZE];
        options_format(&x->options[i], value);
        if (*value) {
            add_argument(a, x->options[i].name, value);
        }
    }
    snprintf(seed, sizeof seed, "%" PRIu64, r->seed);
    add_argument(a, "--seed", seed);
    add_argument(a, "--model", r->model);
    add_argument(a, resume ? "--resume" : "--out", r->folder);
    if (!resume && pretrained_of(x, r)) {
        add_argument(a, "--pretrained-cls", pretrained_of(x, r));
    }
    if (x->device.device) {
        add_argument(a, "--device", x->device.device);
    }
    if (x->device.threads) {
        snprintf(seed, sizeof seed, "%d", x->device.threads);
        add_argument(a, "--threads", seed);
    }
    add_argument(a, "--isa", device_isa_choices[x->device.isa]);
    if (x->device.profile) {
        add_argument(a, "--profile", NULL);
    }
    char *data = strdup(x->data_path);
    if (data && a->count < ARGUMENTS - 1) {
        add_argument(a, "--", NULL); // the path may begin with a dash
        a->list[a->count++] = data;
    }
    return (data && !a->failed) || problem_run(p, "no memory for the arguments of a training");
}

static bool train_row(paper *x, row *r, bool *finished, problem *p) {
    char last[DISK_PATH], images[DISK_PATH];
    arguments a = {.count = 0};
    bool ok = disk_join(last, r->folder, "last.safetensors", p) &&
              disk_join(images, x->out, "images", p) && disk_make_folder(images, p) &&
              make_arguments(x, r, disk_exists(last), &a, p);
    if (ok) {
        train_part part = {.cache = images,
                           .title = r->title,
                           .bar = &x->bar,
                           .first = x->done,
                           .per_image = r->per_image};
        ok = train_run(a.count, a.list, &part, p);
        *finished = ok && part.finished;
    }
    arguments_free(&a);
    return ok;
}

// What only the training's log knows.
static bool read_log(row *r, problem *p) {
    char path[DISK_PATH];
    trainlog log;
    if (!disk_join(path, r->folder, "log.csv", p) || !trainlog_read(path, &log, p)) {
        return false;
    }
    const double *seconds = trainlog_column(&log, "seconds");
    r->result.epochs = (double)log.rows;
    r->result.training_seconds = seconds ? 0 : (double)NAN;
    for (size_t i = 0; seconds && i < log.rows; i++) {
        r->result.training_seconds += seconds[i];
    }
    trainlog_free(&log);
    return true;
}

static void show_measuring(void *user, size_t done, size_t total) {
    paper *x = user;
    const row *r = &x->rows[x->current];
    const double trained = r->per_image * (double)x->training.count * x->epochs;
    char text[RESULT_TITLE + 16];
    (void)total;
    snprintf(text, sizeof text, "%s, measuring", r->title);
    progress_update(&x->bar, (size_t)(x->done + trained + r->per_image / 3 * (double)done), text);
}

// The figures of these weights, and the files they leave.
static bool measure_weights(paper *x, row *r, const char *weights, problem *p) {
    char folder[DISK_PATH];
    cache images = {.file = -1};
    evaluation e = evaluation_empty();
    const cache_desc how = {.dir = folder,
                            .height = x->network.size[0],
                            .width = x->network.size[1],
                            .threads = clnet_context_threads(x->ctx),
                            .stop = &command_signal};
    const measure_desc desc = {.data = &x->data,
                               .images = &images,
                               .out = r->folder,
                               .progress = show_measuring,
                               .user = x};
    if (!disk_join(folder, x->out, "images", p) || !cache_open(&images, &x->data, &how, p)) {
        return false;
    }
    clnet_model *m =
        network_open(x->ctx, weights, &x->network, NULL, 0, CLNET_INFER, x->batch, false, p);
    const bool ok = m && measure_network(m, &desc, &e, &r->result, p);
    clnet_model_destroy(m);
    evaluation_free(&e);
    cache_close(&images);
    return ok;
}

// The activation maps, for which the network is opened once more: they need gradients.
static bool explain_weights(const paper *x, const row *r, const char *weights, problem *p) {
    if (!result_classifies(r->model)) {
        return true;
    }
    clnet_model *m =
        network_open(x->ctx, weights, &x->network, NULL, 0, CLNET_EXPLAIN, 1, false, p);
    const bool ok = m && measure_maps(m, &x->data, r->folder, p);
    clnet_model_destroy(m);
    return ok;
}

// Measures a row that is trained; result.txt comes last.
static bool measure_row(paper *x, row *r, problem *p) {
    char weights[DISK_PATH], path[DISK_PATH];
    const char *checkpoint = checkpoint_of(x);
    const bool ok = disk_join(weights, r->folder, checkpoint, p) &&
                    measure_weights(x, r, weights, p) && explain_weights(x, r, weights, p);
    clnet_context_clear(x->ctx); // a row's failure stays its own
    snprintf(r->result.checkpoint, sizeof r->result.checkpoint, "%s", checkpoint);
    r->result.training_bytes = (double)r->planned;
    r->measured = ok && read_log(r, p) && disk_join(path, r->folder, "result.txt", p) &&
                  result_write(&r->result, path, p);
    return r->measured;
}

// ---- all rows -----------------------------------------------------------------------------------

static bool write_tables(const paper *x, const tables *t, problem *p) {
    char path[DISK_PATH];
    return disk_join(path, x->out, "tables.json", p) && tables_write_json(t, path, p) &&
           disk_join(path, x->out, "tables.csv", p) && tables_write_csv(t, path, p);
}

static void print_sentence(void *user, const char *sentence) {
    (void)user;
    printf("%s\n", sentence);
}

static bool print_tables(const paper *x, const tables *t, problem *p) {
    tables_cells one = {0}, two = {0}, networks = {0};
    const bool ok = tables_classification(t, &one, p) && tables_segmentation(t, &two, p) &&
                    tables_networks(t, &networks, p);
    if (ok) {
        printf("Table 1: classification, %s split of %s, in percent\n", x->data.split,
               x->data_path);
        tables_print(&one, stdout);
        printf("\nTable 2: segmentation, %s split of %s, in percent\n", x->data.split,
               x->data_path);
        tables_print(&two, stdout);
        printf("\nThe networks\n");
        tables_print(&networks, stdout);
        printf("\n");
        tables_compare(t, print_sentence, NULL);
        tables_missing(t, print_sentence, NULL);
    }
    tables_free(&one);
    tables_free(&two);
    tables_free(&networks);
    return ok;
}

// The first training of each network stands for it in the figures.
static size_t list_networks(const paper *x, figures_network networks[MAX_MODELS]) {
    size_t count = 0;
    for (size_t i = 0; i < x->row_count; i++) {
        const row *r = &x->rows[i];
        if (r->seed == x->seed && r->measured) {
            networks[count++] = (figures_network){r->model, r->folder, r->folder};
        }
    }
    return count;
}

enum { SETTINGS = 32 };

// Rows of names and values; `values` are those of the options.
static size_t list_settings(const paper *x, const char *rows[SETTINGS][2],
                            char values[SETTINGS][OPTION_TEXT_SIZE]) {
    size_t n = 0;
    rows[n][0] = "Setting";
    rows[n++][1] = "Value";
    rows[n][0] = "data";
    rows[n++][1] = x->data_path;
    for (size_t i = 0; i < x->stored && n < SETTINGS - 1; i++) {
        const option *o = &x->options[i];
        options_format(o, values[n]);
        if (o->kind == OPTION_NUMBER || o->kind == OPTION_WIDTH) { // for people: no 17 digits
            snprintf(values[n], OPTION_TEXT_SIZE, "%g", *(const double *)o->value);
        }
        if (values[n][0]) {
            rows[n][0] = o->name + 2;
            rows[n][1] = values[n];
            n++;
        }
    }
    for (size_t i = 0; i < x->row_count; i++) {
        if (x->rows[i].measured) {
            rows[n][0] = "measured on";
            rows[n++][1] = x->rows[i].result.computed;
            break;
        }
    }
    return n;
}

static bool write_report(const paper *x, const tables *t, problem *p) {
    static const char title[] =
        "Feature fusion for segmentation and classification of skin lesions";
    figures_network networks[MAX_MODELS];
    const char *rows[SETTINGS][2];
    char values[SETTINGS][OPTION_TEXT_SIZE], times[64] = "once", lead[512];
    const figures f = {x->ctx, &x->data, networks, list_networks(x, networks)};
    if (x->seeds > 1) {
        snprintf(times, sizeof times, "%d times (mean ± standard deviation)", x->seeds);
    }
    snprintf(lead, sizeof lead,
             "%zu networks, each trained %s on %zu images and measured on the %zu images of the %s "
             "split, with the weights of %s.",
             f.count, times, x->training.count, x->data.count, x->data.split,
             strcmp(checkpoint_of(x), "best.safetensors")
                 ? "the last epoch"
                 : "the best epoch on the validation split");
    const summary s = {.out = x->out,
                       .title = title,
                       .lead = lead,
                       .settings = rows,
                       .setting_count = list_settings(x, rows, values),
                       .tables = t,
                       .figures = &f};
    return summary_write(&s, p);
}

static bool finish(const paper *x, problem *p) {
    tables_row *rows = calloc(x->row_count, sizeof *rows);
    if (!rows) {
        return problem_run(p, "no memory for the tables");
    }
    for (size_t i = 0; i < x->row_count; i++) {
        const row *r = &x->rows[i];
        rows[i] = (tables_row){r->model, r->seed, r->measured ? &r->result : NULL, r->reason};
    }
    const tables t = {rows, x->row_count};
    const bool ok = write_tables(x, &t, p) && print_tables(x, &t, p) && write_report(x, &t, p);
    free(rows);
    fflush(stdout);
    if (ok) {
        fprintf(stderr, "the report: %s/report.html\n", x->out);
    }
    return ok;
}

// Trains and measures a row. Its failure is the row's; a signal leaves it for the next call.
static void run_row(paper *x, row *r) {
    problem reason = {0};
    bool finished = false;
    const bool ok =
        train_row(x, r, &finished, &reason) && (!finished || measure_row(x, r, &reason));
    if (!ok && !command_signal) {
        row_failed(r, reason.text);
    }
}

static bool run_rows(paper *x, problem *p) {
    fprintf(stderr, "%zu of %zu trainings to be done; measured on the %s split, %s\n", x->to_do,
            x->row_count, x->data.split, checkpoint_of(x));
    for (; x->current < x->row_count && !command_signal; x->current++) {
        row *r = &x->rows[x->current];
        if (!r->measured && !r->reason) {
            run_row(x, r);
        }
        x->done += r->work;
    }
    if (x->bar.total > 0) {
        progress_end(&x->bar);
    }
    if (command_signal) {
        fprintf(stderr, "stopped and saved; to go on: clnet paper --out %s\n", x->out);
        return true;
    }
    const bool ok = finish(x, p);
    command_signal = 0; // one that came meanwhile found nothing left to stop
    return ok;
}

// ---- the command --------------------------------------------------------------------------------

static bool execute(paper *x, problem *p) {
    if (!read_settings(x, p) || !list_rows(x, p)) {
        return false;
    }
    x->ctx = device_open(&x->device, p);
    if (!x->ctx || !open_data(x, p) || !plan(x, p) || !write_settings(x, p) || !run_rows(x, p)) {
        return false;
    }
    size_t missing = 0;
    const row *first = NULL;
    for (size_t i = 0; i < x->row_count && !command_signal; i++) {
        missing += !x->rows[i].measured;
        first = first || x->rows[i].measured ? first : &x->rows[i];
    }
    return missing == 0 ||
           problem_run(p, "%zu of %zu rows are missing: %s, seed %" PRIu64 "%s", missing,
                       x->row_count, first->model, first->seed, missing > 1 ? ", .." : "");
}

static void clean_up(paper *x) {
    for (size_t i = 0; i < x->row_count; i++) {
        free(x->rows[i].folder);
        free(x->rows[i].reason);
    }
    free(x->rows);
    dataset_close(&x->training);
    dataset_close(&x->data);
    notes_free(&x->notes);
    device_close(x->ctx);
}

bool command_paper(int argc, char **argv, bool usage, problem *p) {
    paper x = {.network = {NULL, DATASET_CLASSES, {224, 224}, 0, 1},
               .epochs = 200,
               .batch = 8,
               .accumulate = 1,
               .seeds = 1,
               .lr = 1e-4,
               .weight_decay = 5e-4,
               .gamma = 2,
               .seed = 1,
               .models = paper_models};
    option options[] = {
        OPTION_RANGE(INT, "--epochs", &x.epochs, 1, 1000000,
                     "passes over the images (default: 200)"),
        OPTION(WIDTH, "--width", &x.network.width, "share of all channels, as 1/8 (default: 1)"),
        OPTION(SIZE, "--size", &x.network.size, "input size, as 224 or 192x256 (default: 224)"),
        OPTION_OF(network_fusion_choices, "--fusion", &x.network.fusion,
                  "output of a fusion module (default: shared)"),
        OPTION_RANGE(INT, "--batch", &x.batch, 1, 65536, "images at a time (default: 8)"),
        OPTION_RANGE(INT, "--accumulate", &x.accumulate, 1, 65536,
                     "batches for each update (default: 1)"),
        OPTION_RANGE(NUMBER, "--lr", &x.lr, 1e-12, 1000, "initial learning rate (default: 1e-4)"),
        OPTION_RANGE(NUMBER, "--weight-decay", &x.weight_decay, 0, 1000,
                     "added to the gradient (default: 5e-4)"),
        OPTION_RANGE(NUMBER, "--focal-gamma", &x.gamma, 0, 100,
                     "focusing of the focal losses (default: 2)"),
        OPTION(LIST, "--focal-alpha", &x.alpha, "weight of each class (default: none)"),
        OPTION(LIST, "--loss-weights", &x.weights,
               "classification, mask focal, Dice (default: 1,1,1)"),
        OPTION(SEED, "--seed", &x.seed, "of the first training of each network (default: 1)"),
        OPTION_OF(split_choices, "--split", &x.split,
                  "measured on (default: test if it has masks and labels, else validation)"),
        OPTION_OF(checkpoint_choices, "--checkpoint", &x.checkpoint,
                  "weights measured (default: best on the test split, else last)"),
        OPTION(TEXT, "--pretrained-resnet50", &x.resnet50,
               "torchvision's weights for the classification branch"),
        OPTION(TEXT, "--pretrained-inception_v3", &x.inception_v3, "the same for Inception v3"),
        OPTION(TEXT, "--models", &x.models, "networks, as unet,resnet50+unet (default: all eight)"),
        OPTION_RANGE(INT, "--seeds", &x.seeds, 1, 100, "trainings of each network (default: 1)"),
        OPTION(TEXT, "--out", &x.out, "folder for everything (required)"),
        DEVICE_OPTIONS(&x.device),
    };
    x.options = options;
    x.count = sizeof options / sizeof *options;
    x.recipe = (size_t)(options_find(options, x.count, "--seed") - options);
    x.kept = (size_t)(options_find(options, x.count, "--models") - options);
    x.stored = (size_t)(options_find(options, x.count, "--out") - options);
    if (usage) {
        printf(
            "usage: clnet paper DATA --out DIR [options]\n       clnet paper --out DIR\n\n"
            "Trains the networks of the paper's tables, each in DIR/NETWORK[-seedS], goes on with "
            "what an\nearlier call left, and writes DIR/report.html, tables.json, tables.csv, "
            "fig3.png, fig4.png,\nroc.png, training.png. Ctrl-C finishes the step and saves.\n\n");
        options_print(options, x.count);
        return true;
    }
    size_t paths;
    const bool ok = options_parse(argc, argv, options, x.count, &x.data_path, &paths, 1, p) &&
                    (x.out || problem_input(p, "--out is missing")) && execute(&x, p);
    clean_up(&x);
    return ok;
}
