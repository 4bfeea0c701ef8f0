// clnet train: the paper's recipe on a data set in the ISIC 2017 layout.
#define _POSIX_C_SOURCE 200809L
#include "commands.h"
#include "disk.h"
#include "network.h"
#include "train.h"
#include "trainer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct train {
    device_options device;
    network_options network;
    int epochs, batch, accumulate, stop_after;
    double lr, weight_decay, gamma;
    option_list alpha, weights;
    uint64_t seed;
    const char *data, *out, *resume;
    const char *pretrained[2]; // files for the encoders, cls and seg
    char *stored_data;         // the data's path as the checkpoint has it
    char *stored[16];          // texts of settings that came from the checkpoint
    option *options;
    size_t kept; // the first so many options belong to the training and stand in its checkpoint
    clnet_context *ctx;
    clnet_model *model;
    dataset training, validation;
    cache training_images, validation_images;
    bool has_validation;
    trainer trainer;
    train_part *part; // of a longer job; NULL: this is all of it
} train;

// "train.batch" for "--batch".
static void key_of(const option *o, char key[64]) { snprintf(key, 64, "train.%s", o->name + 2); }

static bool save(trainer *t, problem *p) {
    const train *r = t->user;
    char keys[16][64], values[16][OPTION_TEXT_SIZE], state[5][160], path[DISK_PATH];
    clnet_file_pair pairs[24];
    size_t n = 0;
    for (; n < r->kept; n++) {
        key_of(&r->options[n], keys[n]);
        options_format(&r->options[n], values[n]);
        pairs[n] = (clnet_file_pair){keys[n], values[n]};
    }
    const trainer_sums *s = &t->state.sums;
    snprintf(state[0], sizeof state[0], "%d %zu", t->state.epoch, t->state.position);
    snprintf(state[1], sizeof state[1], "%.17g %.17g %.17g %.17g %.17g", s->loss, s->classification,
             s->focal, s->dice, s->images);
    snprintf(state[2], sizeof state[2], "%.17g", t->state.best);
    snprintf(state[3], sizeof state[3], "%016" PRIx64, dataset_hash(t->training));
    pairs[n++] = (clnet_file_pair){"train.position", state[0]};
    pairs[n++] = (clnet_file_pair){"train.sums", state[1]};
    pairs[n++] = (clnet_file_pair){"train.best", state[2]};
    pairs[n++] = (clnet_file_pair){"train.list", state[3]};
    pairs[n++] = (clnet_file_pair){"train.data", r->data};
    return disk_join(path, t->out, "last.safetensors", p) &&
           (clnet_checkpoint_save(t->model, path, pairs, n) == CLNET_OK ||
            problem_run(p, "%s", clnet_error(r->ctx)));
}

// Settings from the checkpoint; those given beside it have to agree.
static bool restore_settings(train *r, const clnet_tensor_file *f, const char *path, problem *p) {
    for (size_t i = 0; i < r->kept; i++) {
        char key[64], given[OPTION_TEXT_SIZE];
        option *o = &r->options[i];
        key_of(o, key);
        const char *text = clnet_tensor_file_metadata(f, key);
        if (!text) {
            return problem_input(p, "%s: not the checkpoint of a training: has no %s", path, key);
        }
        options_format(o, given);
        if (o->given && strcmp(given, text)) {
            return problem_input(p, "%s %s: the training in %s has %s", o->name, given, r->resume,
                                 text);
        }
        r->stored[i] = strdup(text);
        if (!r->stored[i]) {
            return problem_run(p, "out of memory");
        }
        if (*text && !options_set(o, r->stored[i], p)) {
            return false;
        }
    }
    return true;
}

static bool restore_state(train *r, const clnet_tensor_file *f, const char *path, problem *p) {
    trainer_state *s = &r->trainer.state;
    const char *position = clnet_tensor_file_metadata(f, "train.position");
    const char *sums = clnet_tensor_file_metadata(f, "train.sums");
    const char *best = clnet_tensor_file_metadata(f, "train.best");
    const char *data = clnet_tensor_file_metadata(f, "train.data");
    if (!position || sscanf(position, "%d %zu", &s->epoch, &s->position) != 2 || s->epoch < 0 ||
        s->epoch > r->epochs || !sums ||
        sscanf(sums, "%lf %lf %lf %lf %lf", &s->sums.loss, &s->sums.classification, &s->sums.focal,
               &s->sums.dice, &s->sums.images) != 5 ||
        !best || sscanf(best, "%lf", &s->best) != 1 || !data) {
        return problem_input(
            p,
            "%s: not the checkpoint of a training: train.position, train.sums, train.best or "
            "train.data is missing or wrong",
            path);
    }
    r->stored_data = strdup(data);
    r->data = r->data ? r->data : r->stored_data;
    return r->data || problem_run(p, "out of memory");
}

// Reads where the training stands; the weights follow when the model is there.
static bool read_checkpoint(train *r, problem *p) {
    char path[DISK_PATH];
    if (!disk_join(path, r->resume, "last.safetensors", p)) {
        return false;
    }
    clnet_tensor_file *f = clnet_tensor_file_open(r->ctx, path);
    if (!f) {
        return problem_context(p, r->ctx);
    }
    const bool ok = restore_settings(r, f, path, p) && restore_state(r, f, path, p);
    clnet_tensor_file_close(f);
    return ok;
}

// After loading the data: it has to be the list that the training began with.
static bool check_list(const train *r, problem *p) {
    char path[DISK_PATH], found[32];
    if (!disk_join(path, r->resume, "last.safetensors", p)) {
        return false;
    }
    clnet_tensor_file *f = clnet_tensor_file_open(r->ctx, path);
    const char *list = f ? clnet_tensor_file_metadata(f, "train.list") : NULL;
    snprintf(found, sizeof found, "%016" PRIx64, dataset_hash(&r->training));
    const bool same =
        list && !strcmp(list, found) && r->trainer.state.position <= r->training.count;
    clnet_tensor_file_close(f);
    return same ||
           problem_input(
               p, "%s: other images, masks or labels than those the training in %s began with",
               r->data, r->resume);
}

static void show_decoding(void *user, size_t done, size_t total) {
    (void)user;
    if (isatty(STDERR_FILENO) || done == total) {
        fprintf(stderr, "%sreading images: %zu of %zu%s", isatty(STDERR_FILENO) ? "\r" : "", done,
                total, done == total ? "\n" : "");
    }
}

static bool open_cache(const train *r, const dataset *data, cache *images, problem *p) {
    const cache_desc desc = {.dir = r->part ? r->part->cache : r->out,
                             .height = r->network.size[0],
                             .width = r->network.size[1],
                             .threads = clnet_context_threads(r->ctx),
                             .progress = show_decoding,
                             .stop = &command_signal};
    return cache_open(images, data, &desc, p);
}

static bool open_lists(train *r, problem *p) {
    r->has_validation = dataset_has(r->data, "validation");
    return dataset_open(r->data, "training", &r->training, p) &&
           (!r->has_validation || dataset_open(r->data, "validation", &r->validation, p));
}

static bool open_caches(train *r, problem *p) {
    return open_cache(r, &r->training, &r->training_images, p) &&
           (!r->has_validation || open_cache(r, &r->validation, &r->validation_images, p));
}

static bool make_recipe(const train *r, clnet_recipe *recipe, problem *p) {
    *recipe = clnet_paper_recipe();
    recipe->focal_gamma = r->gamma;
    recipe->adam.weight_decay = r->weight_decay;
    if (r->alpha.count && r->alpha.count != DATASET_CLASSES) {
        return problem_input(p, "--focal-alpha: needs %d numbers, one per class, found %d",
                             DATASET_CLASSES, r->alpha.count);
    }
    if (r->weights.count && r->weights.count != 3) {
        return problem_input(
            p, "--loss-weights: needs 3 numbers (classification, mask focal, Dice), found %d",
            r->weights.count);
    }
    for (int i = 0; i < 3; i++) {
        if (r->alpha.value[i] < 0 || r->weights.value[i] < 0) {
            return problem_input(p, "--focal-alpha, --loss-weights: must not be negative");
        }
        recipe->focal_alpha[i] = r->alpha.count ? r->alpha.value[i] : 0;
        recipe->loss_weights[i] = r->weights.count ? r->weights.value[i] : 1;
    }
    return true;
}

// The last batch of an epoch may be a single image: batch norm needs more than one value per channel.
static bool check_last_batch(const train *r, problem *p) {
    const int last = (int)(r->training.count % (size_t)r->batch);
    if (last != 1 && r->training.count != 1) {
        return true;
    }
    for (int i = 0; i < clnet_graph_nodes(r->model->graph); i++) {
        const clnet_tensor *y = clnet_graph_node_output(r->model->graph, i);
        if (!strcmp(clnet_graph_node_op(r->model->graph, i), "batch_norm") &&
            clnet_tensor_size(y, 2) == 1 && clnet_tensor_size(y, 3) == 1) {
            return problem_input(p,
                                 "--batch %d: the last batch of an epoch has 1 image of %zu, of "
                                 "which the batch norm "
                                 "%s sees 1 value; take another batch or a larger --size",
                                 r->batch, r->training.count, clnet_tensor_name(y));
        }
    }
    return true;
}

// Encoders that were trained elsewhere, in the place of the initial weights.
static bool load_pretrained(const train *r, problem *p) {
    static const char *const encoders[2] = {"cls", "seg"};
    size_t loaded = 0;
    for (int i = 0; i < 2; i++) {
        const char *path = r->pretrained[i];
        clnet_pretrained counts;
        if (!path) {
            continue;
        }
        if (clnet_model_load_pretrained(r->model, encoders[i], path, &counts) != CLNET_OK) {
            return problem_context(p, r->ctx);
        }
        fprintf(stderr, "%s: %zu tensors loaded into %s, %zu left out\n", path, counts.loaded,
                encoders[i], counts.left_out);
        loaded += counts.loaded;
    }
    if (loaded) {
        const size_t all = (size_t)clnet_graph_weights(r->model->graph);
        fprintf(stderr, "%s: the other %zu of %zu tensors are initialised\n", r->network.model,
                all - loaded, all);
    }
    return true;
}

static bool make_model(train *r, problem *p) {
    clnet_recipe recipe;
    if (!make_recipe(r, &recipe, p)) {
        return false;
    }
    const size_t largest =
        (size_t)r->batch < r->training.count ? (size_t)r->batch : r->training.count;
    clnet_model_desc d = network_desc(&r->network, CLNET_TRAIN, (int)largest);
    d.recipe = &recipe;
    d.no_accumulation = r->accumulate == 1;
    d.raw_image = true;
    d.seed = r->seed;
    r->model = clnet_model_create(r->ctx, &d);
    if (!r->model) {
        return problem_context(p, r->ctx);
    }
    char path[DISK_PATH];
    if (r->resume && (!disk_join(path, r->resume, "last.safetensors", p) ||
                      clnet_checkpoint_load(r->model, path) != CLNET_OK)) {
        return problem_context(p, r->ctx);
    }
    if (!load_pretrained(r, p)) {
        return false;
    }
    if ((r->model->logits &&
         r->training.classes[0] + r->training.classes[1] + r->training.classes[2] == 0) &&
        (!r->model->mask_logits || r->training.masks == 0)) {
        return problem_input(p, "%s: has no labels to train %s with", r->data, r->network.model);
    }
    if (!r->model->logits && r->training.masks == 0) {
        return problem_input(p, "%s: has no masks to train %s with", r->data, r->network.model);
    }
    return check_last_batch(r, p);
}

// The settings as text, for people; resuming reads them from the checkpoint.
static bool write_config(const train *r, problem *p) {
    char text[4096] = "", path[DISK_PATH];
    for (size_t i = 0; i < r->kept; i++) {
        char value[OPTION_TEXT_SIZE];
        const size_t used = strlen(text);
        options_format(&r->options[i], value);
        snprintf(text + used, sizeof text - used, "%s = %.200s\n", r->options[i].name + 2, value);
    }
    const size_t used = strlen(text);
    snprintf(text + used, sizeof text - used,
             "pretrained-cls = %.500s\npretrained-seg = %.500s\ndata = %.1000s\nimages = %zu\n",
             r->pretrained[0] ? r->pretrained[0] : "", r->pretrained[1] ? r->pretrained[1] : "",
             r->data, r->training.count);
    return disk_join(path, r->out, "config.txt", p) && disk_write(path, text, strlen(text), p);
}

static bool prepare(train *r, problem *p) {
    r->ctx = device_open(&r->device, p);
    if (!r->ctx || (r->resume && !read_checkpoint(r, p))) {
        return false;
    }
    if (!r->data) {
        return problem_input(p, "no data set given; usage: clnet train DATA [options]");
    }
    if (r->network.classes != DATASET_CLASSES) {
        return problem_input(p, "--classes %d: the ISIC 2017 data have %d", r->network.classes,
                             DATASET_CLASSES);
    }
    char path[DISK_PATH];
    if (!disk_join(path, r->out, "last.safetensors", p)) {
        return false;
    }
    if (!r->resume && disk_exists(path)) {
        return problem_input(
            p, "%s: holds a training already; --resume %s goes on with it, --out makes another",
            r->out, r->out);
    }
    return open_lists(r, p) && (!r->resume || check_list(r, p)) && make_model(r, p) &&
           disk_make_folder(r->out, p) && open_caches(r, p);
}

// The training itself, on a progress bar of its own or on that of the job it is part of.
static bool run(train *r, bool *finished, problem *p) {
    trainer *t = &r->trainer;
    progress bar;
    if (r->part) {
        t->title = r->part->title;
        t->bar = r->part->bar;
        t->bar_first = r->part->first;
        t->bar_per_image = r->part->per_image;
        return trainer_run(t, finished, p);
    }
    progress_begin(&bar, (size_t)r->epochs * r->training.count, "images");
    t->bar = &bar;
    t->bar_per_image = 1;
    const bool ok = trainer_run(t, finished, p);
    progress_end(&bar);
    return ok;
}

static bool execute(train *r, problem *p) {
    if (!prepare(r, p)) {
        if (command_signal) { // while the images were read: nothing to save yet
            *p = (problem){0};
            return true;
        }
        return false;
    }
    r->trainer =
        (trainer){.settings = {r->epochs, r->batch, r->accumulate, r->lr, r->seed, r->stop_after},
                  .state = r->trainer.state,
                  .model = r->model,
                  .training = &r->training,
                  .validation = r->has_validation ? &r->validation : NULL,
                  .training_images = &r->training_images,
                  .validation_images = &r->validation_images,
                  .out = r->out,
                  .save = save,
                  .user = r};
    if (!r->resume) {
        r->trainer.state.best = -1;
    }
    fprintf(stderr,
            "%s: %zu images%s, %d x %d, batch %d, %" PRIu64
            " steps, %.1f M parameters, %.0f MB, %d threads, %s\n",
            r->network.model, r->training.count, r->has_validation ? "" : " (no validation split)",
            r->network.size[0], r->network.size[1], r->batch * r->accumulate,
            trainer_total_steps(&r->trainer), (double)r->model->plan.parameters / 4e6,
            (double)r->model->plan.total / 1e6, clnet_context_threads(r->ctx),
            clnet_context_isa(r->ctx));
    bool finished = false;
    if (!(r->resume || write_config(r, p)) || !trainer_begin_log(&r->trainer, p) ||
        !run(r, &finished, p)) {
        return false;
    }
    if (r->part) {
        r->part->finished = finished;
    } else if (finished) {
        fprintf(stderr, "done: %s/%s\n", r->out,
                r->trainer.state.best >= 0 ? "best.safetensors" : "last.safetensors");
    } else {
        fprintf(stderr, "stopped and saved; to go on: clnet train --resume %s\n", r->out);
    }
    return true;
}

static void clean_up(train *r) {
    cache_close(&r->training_images);
    cache_close(&r->validation_images);
    dataset_close(&r->training);
    dataset_close(&r->validation);
    clnet_model_destroy(r->model);
    device_close(r->ctx);
    free(r->stored_data);
    for (size_t i = 0; i < sizeof r->stored / sizeof *r->stored; i++) {
        free(r->stored[i]);
    }
}

// The command; `part` is NULL where it is no part of a longer job.
static bool parse_and_run(int argc, char **argv, bool usage, train_part *part, problem *p) {
    train r = {.part = part,
               .network = {"resnet50+unet", DATASET_CLASSES, {224, 224}, 0, 1},
               .epochs = 200,
               .batch = 8,
               .accumulate = 1,
               .lr = 1e-4,
               .weight_decay = 5e-4,
               .gamma = 2,
               .seed = 1,
               .out = "clnet-train",
               .training_images = {.file = -1},
               .validation_images = {.file = -1}};
    option options[] = {
        NETWORK_OPTIONS(&r.network),
        OPTION_RANGE(INT, "--epochs", &r.epochs, 1, 1000000,
                     "passes over the images (default: 200)"),
        OPTION_RANGE(INT, "--batch", &r.batch, 1, 65536, "images at a time (default: 8)"),
        OPTION_RANGE(INT, "--accumulate", &r.accumulate, 1, 65536,
                     "batches for each update (default: 1)"),
        OPTION_RANGE(NUMBER, "--lr", &r.lr, 1e-12, 1000, "initial learning rate (default: 1e-4)"),
        OPTION_RANGE(NUMBER, "--weight-decay", &r.weight_decay, 0, 1000,
                     "added to the gradient (default: 5e-4)"),
        OPTION_RANGE(NUMBER, "--focal-gamma", &r.gamma, 0, 100,
                     "focusing of the focal losses (default: 2)"),
        OPTION(LIST, "--focal-alpha", &r.alpha, "weight of each class (default: none)"),
        OPTION(LIST, "--loss-weights", &r.weights,
               "classification, mask focal, Dice (default: 1,1,1)"),
        OPTION(SEED, "--seed", &r.seed, "of weights, order and flips (default: 1)"),
        OPTION(TEXT, "--out", &r.out, "folder for the results (default: clnet-train)"),
        OPTION(TEXT, "--pretrained-cls", &r.pretrained[0],
               "torchvision's weights for the classification encoder"),
        OPTION(TEXT, "--pretrained-seg", &r.pretrained[1],
               "the same for the segmentation encoder: ResNet-50's for resunet"),
        OPTION(TEXT, "--resume", &r.resume, "goes on with the training in this folder"),
        OPTION_RANGE(INT, "--stop-after", &r.stop_after, 1, 2147483647,
                     "saves and ends after N steps"),
        DEVICE_OPTIONS(&r.device),
    };
    const size_t count = sizeof options / sizeof *options;
    if (usage) {
        printf("usage: clnet train DATA [options]\n       clnet train --resume DIR [options]\n\n"
               "DATA is a folder in the layout of ISIC 2017. Leaves last.safetensors, "
               "best.safetensors,\n"
               "log.csv, curves.png and config.txt. Ctrl-C finishes the step and saves.\n\n");
        options_print(options, count);
        return true;
    }
    const char *paths[1];
    size_t path_count;
    r.options = options;
    r.kept = (size_t)(options_find(options, count, "--out") - options); // what stands before it
    bool ok = options_parse(argc, argv, options, count, paths, &path_count, 1, p);
    if (ok) {
        r.data = path_count ? paths[0] : NULL;
        const option *out = options_find(options, count, "--out");
        if (r.resume && out->given && strcmp(r.out, r.resume)) {
            ok = problem_input(p, "--out %s: a training goes on in its own folder, %s", r.out,
                               r.resume);
        }
        if (ok && r.resume && (r.pretrained[0] || r.pretrained[1])) {
            ok = problem_input(p, "--pretrained-%s: the training in %s has its weights already",
                               r.pretrained[0] ? "cls" : "seg", r.resume);
        }
        r.out = r.resume ? r.resume : r.out;
        ok = ok && execute(&r, p);
    }
    clean_up(&r);
    return ok;
}

bool command_train(int argc, char **argv, bool usage, problem *p) {
    return parse_and_run(argc, argv, usage, NULL, p);
}

bool train_run(int argc, char **argv, train_part *part, problem *p) {
    return parse_and_run(argc, argv, false, part, p);
}
