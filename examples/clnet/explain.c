// clnet explain: class activation maps of images, and the paper's Fig. 3 and Fig. 4.
#include "commands.h"
#include "csv.h"
#include "dataset.h"
#include "disk.h"
#include "explanation.h"
#include "gallery.h"
#include "imagelist.h"
#include "network.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_NETWORKS = 16, SPLITS = 3 };
enum { CLASS_TRUTH = DATASET_CLASSES, CLASS_PREDICTED }; // behind the classes themselves

// What is known of the images: a table of labels, or the splits of a data set.
typedef struct truth {
    csv_table table;
    dataset splits[SPLITS];
    int count; // of splits
} truth;

// What goes to --raw: of each image its input, logits, class and maps, behind each other.
typedef struct raw {
    size_t images, H, W, classes;
    float *input, *logits;
    int64_t *label;
    float *maps[6]; // fm1..fm5, all
    size_t sizes[6][2];
} raw;

typedef struct explain {
    device_options device;
    network_options network;
    const char *weights, *truth_path, *out, *raw_path, *panel_path, *masks_path;
    int cam, layer, class;
    imagelist images;
    bool *bad; // images that could not be used
    size_t failed;
    truth truth;
    const char *files[MAX_NETWORKS]; // of --weights
    int networks;
    char *files_text;
    gallery panel, masks;
    raw raw;
    clnet_context *ctx;
    clnet_model *model;
} explain;

static const char *const cam_choices[] = {"paper", "gradcam", "gradcam++", NULL};
static const char *const layer_choices[] = {"all", "fm1", "fm2", "fm3", "fm4", "fm5", NULL};
static const char *const class_choices[] = {
    "melanoma", "seborrheic_keratosis", "nevus", "truth", "predicted", NULL};

// ---- truth --------------------------------------------------------------------------------------

static bool truth_open(truth *t, const char *path, problem *p) {
    static const char *const splits[SPLITS] = {"training", "validation", "test"};
    struct stat s;
    if (stat(path, &s) != 0 || !S_ISDIR(s.st_mode)) {
        return csv_read(path, CSV_TRUTH, &t->table, p);
    }
    for (int i = 0; i < SPLITS; i++) {
        if (dataset_has(path, splits[i])) {
            if (!dataset_open(path, splits[i], &t->splits[t->count], p)) {
                return false;
            }
            t->count++;
        }
    }
    return t->count > 0 || dataset_open(path, splits[0], &t->splits[0], p); // says what is missing
}

static void truth_close(truth *t) {
    csv_free(&t->table);
    for (int i = 0; i < t->count; i++) {
        dataset_close(&t->splits[i]);
    }
}

static const dataset_item *truth_item(const truth *t, const char *name) {
    const dataset_item *item = NULL;
    for (int i = 0; i < t->count && !item; i++) {
        item = dataset_find(&t->splits[i], name);
    }
    return item;
}

static int truth_label(const truth *t, const char *name) {
    const dataset_item *item = truth_item(t, name);
    const csv_row *row = t->table.count ? csv_find(&t->table, name) : NULL;
    if (row) {
        return row->melanoma > 0    ? DATASET_MELANOMA
               : row->keratosis > 0 ? DATASET_KERATOSIS
                                    : DATASET_NEVUS;
    }
    return item ? item->label : DATASET_NO_LABEL;
}

// ---- raw ----------------------------------------------------------------------------------------

// Room for all images, once the first explanation shows the sizes.
static bool raw_create(raw *r, const clnet_model *m, const explanation *e, size_t images,
                       problem *p) {
    r->H = (size_t)m->desc.size[0];
    r->W = (size_t)m->desc.size[1];
    r->classes = (size_t)m->desc.classes;
    r->input = calloc(images * 3 * r->H, r->W * sizeof(float));
    r->logits = calloc(images * r->classes, sizeof(float));
    r->label = calloc(images, sizeof *r->label);
    bool ok = r->input && r->logits && r->label;
    for (int i = 0; i < 6; i++) {
        const explanation_map *map = i < 5 ? &e->stage[i] : &e->map;
        r->sizes[i][0] = (size_t)map->height;
        r->sizes[i][1] = (size_t)map->width;
        if (map->values) {
            r->maps[i] = calloc(images * r->sizes[i][0], r->sizes[i][1] * sizeof(float));
            ok = ok && r->maps[i];
        }
    }
    return ok || problem_run(p, "no memory for --raw of %zu images", images);
}

static void raw_add(raw *r, const explanation *e) {
    const size_t pixels = r->H * r->W, n = r->images++;
    for (size_t c = 0; c < 3; c++) {
        for (size_t i = 0; i < pixels; i++) {
            r->input[(n * 3 + c) * pixels + i] = e->input[i * 3 + c]; // (H,W,3) to (3,H,W)
        }
    }
    memcpy(r->logits + n * r->classes, e->logits, r->classes * sizeof(float));
    r->label[n] = e->label;
    for (int i = 0; i < 6; i++) {
        const explanation_map *map = i < 5 ? &e->stage[i] : &e->map;
        const size_t count = r->sizes[i][0] * r->sizes[i][1];
        if (r->maps[i]) {
            memcpy(r->maps[i] + n * count, map->values, count * sizeof(float));
        }
    }
}

static bool raw_write(const explain *x, problem *p) {
    const raw *r = &x->raw;
    const size_t N = r->images;
    char names[6][48];
    clnet_file_item items[9] = {
        {.name = "image", .rank = 4, .shape = {N, 3, r->H, r->W}, .data = r->input},
        {.name = "logits", .rank = 2, .shape = {N, r->classes}, .data = r->logits},
        {.name = "class", .dtype = CLNET_I64, .rank = 1, .shape = {N}, .data = r->label},
    };
    size_t count = 3;
    for (int i = 0; i < 6; i++) {
        if (r->maps[i] && (i < 5 || x->layer == EXPLANATION_ALL)) {
            snprintf(names[i], sizeof names[i], "cam.%s.%s", cam_choices[x->cam],
                     layer_choices[(i + 1) % 6]);
            items[count++] = (clnet_file_item){.name = names[i],
                                               .rank = 3,
                                               .data = r->maps[i],
                                               .shape = {N, r->sizes[i][0], r->sizes[i][1]}};
        }
    }
    const clnet_file_pair metadata[] = {{"model", x->model->desc.name},
                                        {"device", clnet_context_device(x->ctx)},
                                        {"version", CLNET_VERSION}};
    return clnet_safetensors_write(x->ctx, x->raw_path, items, count, metadata,
                                   sizeof metadata / sizeof *metadata) == CLNET_OK ||
           problem_context(p, x->ctx);
}

static void raw_free(raw *r) {
    free(r->input);
    free(r->logits);
    free(r->label);
    for (int i = 0; i < 6; i++) {
        free(r->maps[i]);
    }
}

// ---- pictures -----------------------------------------------------------------------------------

// NAME_cam.png and the cell of the first panel. With several networks it is NAME_cam1.png, ..
static bool save_map(explain *x, int network, size_t index, const image *im, const explanation *e,
                     problem *p) {
    const char *name = x->images.items[index].name;
    char file[DISK_PATH], path[DISK_PATH], number[16] = "";
    picture drawn = {0};
    bool ok = explanation_draw(e, im, &drawn, p);
    if (ok && x->out) {
        if (x->networks > 1) {
            snprintf(number, sizeof number, "%d", network + 1);
        }
        snprintf(file, sizeof file, "%s_cam%s.png", name, number);
        ok = disk_join(path, x->out, file, p) && picture_write(&drawn, path, p);
    }
    if (ok && x->panel_path) {
        ok = gallery_label_row(&x->panel, (int)index, name, p) &&
             gallery_set(&x->panel, (int)index, 0, im->bytes, im->height, im->width, p) &&
             gallery_set(&x->panel, (int)index, network + 1, drawn.bytes, drawn.height, drawn.width,
                         p);
    }
    picture_free(&drawn);
    return ok;
}

// The cells of the second panel: the image, its truth if there is one, the mask.
static bool save_mask(explain *x, int network, size_t index, const image *im, const explanation *e,
                      problem *p) {
    const int row = (int)index;
    const dataset_item *item = truth_item(&x->truth, x->images.items[index].name);
    image mask;
    if (!gallery_label_row(&x->masks, row, x->images.items[index].name, p) ||
        !gallery_set(&x->masks, row, 0, im->bytes, im->height, im->width, p) ||
        !gallery_set_mask(&x->masks, row, network + 2, e->mask, im->height, im->width, p)) {
        return false;
    }
    if (!item || !item->mask) {
        return true;
    }
    if (!image_load(item->mask, IMAGE_MASK, &mask, p)) {
        return false;
    }
    const bool ok = gallery_set_mask(&x->masks, row, 1, mask.bytes, mask.height, mask.width, p);
    image_free(&mask);
    return ok;
}

static void print_line(const explain *x, size_t index, const explanation *e) {
    double scores[CLNET_MAX_CLASSES];
    clnet_scores(scores, e->logits, x->model->desc.classes);
    printf("%s: %s: class %s, score %.4f\n", x->images.items[index].name, x->model->desc.name,
           class_choices[e->label], scores[e->label]);
    fflush(stdout);
}

// ---- the work -----------------------------------------------------------------------------------

static bool choose_class(const explain *x, size_t index, int *label, problem *p) {
    *label = x->class < DATASET_CLASSES ? x->class : -1;
    if (x->class != CLASS_TRUTH) {
        return true;
    }
    *label = truth_label(&x->truth, x->images.items[index].name);
    return *label != DATASET_NO_LABEL ||
           problem_input(p, "%s: has no label in %s", x->images.items[index].path, x->truth_path);
}

static bool explain_image(explain *x, int network, size_t index, problem *p) {
    const char *path = x->images.items[index].path;
    explanation_desc desc = {
        .variant = (clnet_cam_variant)x->cam, .layer = x->layer, .mask = x->masks_path != NULL};
    image im;
    explanation e;
    if (!choose_class(x, index, &desc.label, p) || !image_load(path, IMAGE_RGB, &im, p)) {
        return false;
    }
    bool ok = explanation_make(x->model, path, &im, &desc, &e, p);
    if (ok && x->model->logits) {
        ok = save_map(x, network, index, &im, &e, p);
        if (ok && x->raw_path) {
            ok = x->raw.input || raw_create(&x->raw, x->model, &e, x->images.count, p);
        }
        if (ok && x->raw_path) {
            raw_add(&x->raw, &e);
        }
    }
    ok = ok && (!e.mask || save_mask(x, network, index, &im, &e, p));
    if (ok && x->model->logits) {
        print_line(x, index, &e);
    }
    image_free(&im);
    explanation_free(&e);
    return ok;
}

// All images through one network. One that cannot be used is told and left out; where it is the
// only one, that is the command's failure.
static bool explain_all(explain *x, int network, problem *p) {
    for (size_t i = 0; i < x->images.count && !command_signal; i++) {
        problem reason = {0};
        if (x->bad[i] || explain_image(x, network, i, &reason)) {
            continue;
        }
        if (reason.status == EXIT_RUN || x->images.count == 1) {
            *p = reason;
            return false;
        }
        fprintf(stderr, "clnet explain: %s\n", reason.text);
        x->bad[i] = true;
        x->failed++;
    }
    return true;
}

static bool open_network(explain *x, int network, const option *options, size_t count, problem *p) {
    const char *file = x->files[network];
    clnet_model_destroy(x->model);
    x->model = network_open(x->ctx, file, &x->network, options, count, CLNET_EXPLAIN, 1, false, p);
    if (!x->model) {
        return false;
    }
    if (x->model->logits && x->model->desc.classes != DATASET_CLASSES) {
        return problem_input(
            p, "%s: has %d classes, needed are %d: melanoma, seborrheic keratosis, nevus", file,
            x->model->desc.classes, DATASET_CLASSES);
    }
    if (!x->model->logits && !x->masks_path) {
        return problem_input(p,
                             "%s: %s has no classification, so there are no class activation maps",
                             file, x->model->desc.name);
    }
    return (!x->panel_path ||
            gallery_label_column(&x->panel, network + 1, x->model->desc.name, p)) &&
           (!x->masks_path || gallery_label_column(&x->masks, network + 2, x->model->desc.name, p));
}

static bool prepare(explain *x, problem *p) {
    const int rows = (int)x->images.count;
    x->bad = calloc(x->images.count, sizeof *x->bad);
    return (x->bad || problem_run(p, "no memory for a list of images")) &&
           (!x->truth_path || truth_open(&x->truth, x->truth_path, p)) &&
           (!x->out || disk_make_folder(x->out, p)) &&
           (!x->panel_path || (gallery_create(&x->panel, rows, x->networks + 1, p) &&
                               gallery_label_column(&x->panel, 0, "image", p))) &&
           (!x->masks_path || (gallery_create(&x->masks, rows, x->networks + 2, p) &&
                               gallery_label_column(&x->masks, 0, "image", p) &&
                               gallery_label_column(&x->masks, 1, "truth", p)));
}

static bool execute(explain *x, const option *options, size_t count, problem *p) {
    x->ctx = device_open(&x->device, p);
    if (!x->ctx || !prepare(x, p)) {
        return false;
    }
    for (int i = 0; i < x->networks && !command_signal; i++) {
        if (!open_network(x, i, options, count, p) || !explain_all(x, i, p)) {
            return false;
        }
    }
    if (command_signal) {
        return true; // half a panel would pass for a whole one
    }
    if ((x->raw.images && !raw_write(x, p)) ||
        (x->panel_path && !gallery_write(&x->panel, x->panel_path, p)) ||
        (x->masks_path && !gallery_write(&x->masks, x->masks_path, p))) {
        return false;
    }
    return x->failed == 0 ||
           problem_input(p, "%zu of %zu images could not be used", x->failed, x->images.count);
}

// F[,F2,..] into a list of files.
static bool split_weights(explain *x, problem *p) {
    x->files_text = malloc(strlen(x->weights) + 1);
    if (!x->files_text) {
        return problem_run(p, "no memory for the names in --weights");
    }
    strcpy(x->files_text, x->weights);
    for (char *at = x->files_text; at;) {
        char *comma = strchr(at, ',');
        if (comma) {
            *comma = 0;
        }
        if (*at == 0 || x->networks == MAX_NETWORKS) {
            return problem_input(p, "--weights %s: needs 1 to %d files with commas between them",
                                 x->weights, MAX_NETWORKS);
        }
        x->files[x->networks++] = at;
        at = comma ? comma + 1 : NULL;
    }
    return true;
}

static bool check(explain *x, problem *p) {
    if (!x->weights) {
        return problem_input(p, "--weights is missing");
    }
    if (!x->out && !x->raw_path && !x->panel_path && !x->masks_path) {
        return problem_input(p,
                             "nothing to write: --out, --raw, --panel or --panel-masks is missing");
    }
    if (x->class == CLASS_TRUTH && !x->truth_path) {
        return problem_input(p, "--class truth: needs --truth");
    }
    return split_weights(x, p) &&
           (x->networks == 1 || !x->raw_path ||
            problem_input(p, "--raw: is for one network, not for %d", x->networks));
}

static void clean_up(explain *x) {
    raw_free(&x->raw);
    gallery_free(&x->panel);
    gallery_free(&x->masks);
    truth_close(&x->truth);
    imagelist_free(&x->images);
    free(x->files_text);
    free(x->bad);
    clnet_model_destroy(x->model);
    device_close(x->ctx);
}

bool command_explain(int argc, char **argv, bool usage, problem *p) {
    explain x = {.layer = 5, .class = CLASS_PREDICTED};
    option options[] = {
        OPTION(TEXT, "--weights", &x.weights,
               "weights of the network, or of several: F1,F2,.. (required)"),
        OPTION_OF(cam_choices, "--cam", &x.cam, "kind of map (default: paper)"),
        OPTION_OF(layer_choices, "--layer", &x.layer, "stage it is taken from (default: fm5)"),
        OPTION_OF(class_choices, "--class", &x.class, "class to explain (default: predicted)"),
        OPTION(TEXT, "--truth", &x.truth_path,
               "labels: a CSV file, or a data set, which has masks too"),
        OPTION(TEXT, "--out", &x.out, "folder for *_cam.png, the map over the image"),
        OPTION(TEXT, "--raw", &x.raw_path,
               "safetensors for image, logits, class, cam.VARIANT.LAYER"),
        OPTION(TEXT, "--panel", &x.panel_path, "PNG: image and map of each network (Fig. 3)"),
        OPTION(TEXT, "--panel-masks", &x.masks_path,
               "PNG: image, truth, mask of each network (Fig. 4)"),
        NETWORK_OPTIONS(&x.network),
        DEVICE_OPTIONS(&x.device),
    };
    const size_t count = sizeof options / sizeof *options;
    if (usage) {
        printf("usage: clnet explain IMAGES.. --weights FILE[,FILE..] --out DIR [options]\n\n"
               "IMAGES are JPEG or PNG files, or folders of them.\n\n");
        options_print(options, count);
        return true;
    }
    size_t paths = 0;
    const char **path = malloc(((size_t)argc + 1) * sizeof *path);
    const bool ok = (path || problem_run(p, "no memory for %d arguments", argc)) &&
                    options_parse(argc, argv, options, count, path, &paths, (size_t)argc, p) &&
                    check(&x, p) && imagelist_make(path, paths, &x.images, p) &&
                    execute(&x, options, count, p);
    free(path);
    clean_up(&x);
    return ok;
}
