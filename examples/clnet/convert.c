// clnet convert: weights between safetensors and torch.save's files, and between precisions.
#include "commands.h"
#include "options.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct convert convert;

// A tensor on its way from one file to the other.
typedef struct passage {
    convert *c;
    clnet_file_tensor tensor;
    clnet_dtype dtype; // in the new file
} passage;

struct convert {
    const char *in_path, *out_path;
    clnet_context *ctx;
    clnet_tensor_file *in;
    passage *passages;
    clnet_file_item *items;
    clnet_file_pair *pairs;
    size_t count, pair_count;
    size_t left_out;          // tensors of the optimiser
    size_t infinite;          // numbers that were too large
    char first_infinite[128]; // the tensor of the first one
};

static const clnet_dtype precisions[] = {CLNET_DTYPE_COUNT, CLNET_F32, CLNET_F16, CLNET_BF16};
static const char *const precision_choices[] = {"keep", "F32", "F16", "BF16", NULL};

// What a checkpoint has besides a network's weights.
static const char optimiser[] = "optimizer.";
static const char *const network_keys[] = {"format",      "clnet.model", "clnet.classes",
                                           "clnet.width", "clnet.size",  "clnet.fusion"};

static bool ends_with(const char *text, const char *end) {
    const size_t m = strlen(text), n = strlen(end);
    return m >= n && strcmp(text + m - n, end) == 0;
}

static bool is_float(clnet_dtype dtype) {
    return dtype == CLNET_F32 || dtype == CLNET_F64 || dtype == CLNET_F16 || dtype == CLNET_BF16;
}

// One number of a file, exactly.
static double number_at(const unsigned char *bytes, clnet_dtype dtype) {
    if (dtype == CLNET_F64) {
        uint64_t bits = 0;
        double value;
        for (int i = 8; i-- > 0;) {
            bits = bits << 8 | bytes[i];
        }
        memcpy(&value, &bits, sizeof value);
        return value;
    }
    clnet_real value = 0;
    clnet_decode(&value, bytes, 1, dtype);
    return (double)value;
}

// Rounds all numbers of a tensor to its new type, and counts those that become infinite.
static void round_numbers(passage *s, unsigned char *to, const unsigned char *from) {
    const size_t size = clnet_dtype_size(s->tensor.dtype), new_size = clnet_dtype_size(s->dtype);
    const size_t count = (size_t)s->tensor.bytes / size;
    for (size_t i = 0; i < count; i++) {
        const double value = number_at(from + i * size, s->tensor.dtype);
        const clnet_real real = (clnet_real)value;
        clnet_encode(to + i * new_size, &real, 1, s->dtype);
        if (isfinite(value) && isinf(number_at(to + i * new_size, s->dtype))) {
            if (s->c->infinite++ == 0) {
                snprintf(s->c->first_infinite, sizeof s->c->first_infinite, "%s", s->tensor.name);
            }
        }
    }
}

// The bytes of a tensor for the new file, when its turn comes.
static clnet_result fill(void *user, void *bytes) {
    passage *s = user;
    if (s->dtype == s->tensor.dtype) {
        return clnet_tensor_file_read(s->c->in, &s->tensor, bytes);
    }
    unsigned char *from = malloc((size_t)s->tensor.bytes);
    if (!from) {
        return CLNET_ERROR_MEMORY;
    }
    const clnet_result result = clnet_tensor_file_read(s->c->in, &s->tensor, from);
    if (result == CLNET_OK) {
        round_numbers(s, bytes, from);
    }
    free(from);
    return result;
}

// Lists the tensors that go to the new file: all but the optimiser's.
static void list_tensors(convert *c, clnet_dtype precision) {
    clnet_file_tensor t;
    for (size_t i = 0; clnet_tensor_file_at(c->in, i, &t); i++) {
        if (strncmp(t.name, optimiser, sizeof optimiser - 1) == 0) {
            c->left_out++;
            continue;
        }
        passage *s = &c->passages[c->count];
        *s = (passage){c, t,
                       precision != CLNET_DTYPE_COUNT && is_float(t.dtype) ? precision : t.dtype};
        clnet_file_item *item = &c->items[c->count++];
        *item = (clnet_file_item){
            .name = t.name, .dtype = s->dtype, .rank = t.rank, .fill = fill, .user = s};
        memcpy(item->shape, t.shape, sizeof item->shape);
    }
}

// Metadata stay; of a checkpoint, what describes the network.
static void list_metadata(convert *c) {
    const char *key = NULL;
    for (size_t i = 0; i < clnet_tensor_file_keys(c->in, i, &key); i++) {
        bool keep = c->left_out == 0;
        for (size_t k = 0; !keep && k < sizeof network_keys / sizeof *network_keys; k++) {
            keep = strcmp(key, network_keys[k]) == 0;
        }
        if (keep) {
            c->pairs[c->pair_count++] =
                (clnet_file_pair){key, clnet_tensor_file_metadata(c->in, key)};
        }
    }
}

static bool write_all(convert *c, clnet_dtype precision, problem *p) {
    const size_t tensors = clnet_tensor_file_count(c->in);
    const size_t keys = clnet_tensor_file_keys(c->in, 0, NULL);
    c->passages = calloc(tensors + 1, sizeof *c->passages);
    c->items = calloc(tensors + 1, sizeof *c->items);
    c->pairs = calloc(keys + 1, sizeof *c->pairs);
    if (!c->passages || !c->items || !c->pairs) {
        return problem_run(p, "out of memory: %zu tensors", tensors);
    }
    list_tensors(c, precision);
    list_metadata(c);
    const bool pth = !ends_with(c->out_path, ".safetensors");
    return (pth ? clnet_pth_write : clnet_safetensors_write)(
               c->ctx, c->out_path, c->items, c->count, c->pairs, c->pair_count) == CLNET_OK ||
           problem_context(p, c->ctx);
}

static void say(const convert *c, const char *precision) {
    uint64_t numbers = 0;
    for (size_t i = 0; i < c->count; i++) {
        numbers += c->passages[i].tensor.bytes / clnet_dtype_size(c->passages[i].tensor.dtype);
    }
    printf("%s: %zu tensors, %llu numbers%s%s\n", c->out_path, c->count,
           (unsigned long long)numbers, precision ? ", rounded to " : "",
           precision ? precision : "");
    if (c->left_out > 0) {
        printf("left out: %zu tensors of the optimiser\n", c->left_out);
    }
    if (c->infinite > 0) {
        fprintf(stderr,
                "clnet convert: warning: %zu of %llu numbers are too large for %s and became "
                "infinite, the first of them in %s\n",
                c->infinite, (unsigned long long)numbers, precision, c->first_infinite);
    }
}

bool command_convert(int argc, char **argv, bool usage, problem *p) {
    int precision = 0;
    option options[] = {
        OPTION_OF(precision_choices, "--precision", &precision,
                  "of all floating-point tensors; integers stay (default: keep)"),
    };
    const size_t count = sizeof options / sizeof *options;
    if (usage) {
        printf(
            "usage: clnet convert IN OUT [options]\n\n"
            "IN: safetensors or a state dict of torch.save (.pth), whatever its name. OUT: what\n"
            "its name ends with, .safetensors, .pth or .pt. Numbers are rounded to nearest, ties\n"
            "to even. The optimiser's part of a checkpoint is left out.\n\n");
        options_print(options, count);
        return true;
    }
    const char *paths[2] = {NULL, NULL};
    size_t path_count;
    if (!options_parse(argc, argv, options, count, paths, &path_count, 2, p)) {
        return false;
    }
    if (path_count < 2) {
        return problem_input(p, "%s is missing", path_count ? "OUT" : "IN");
    }
    if (!ends_with(paths[1], ".safetensors") && !ends_with(paths[1], ".pth") &&
        !ends_with(paths[1], ".pt")) {
        return problem_input(p, "%s: its name has to end with .safetensors, .pth or .pt", paths[1]);
    }
    convert c = {.in_path = paths[0], .out_path = paths[1]};
    c.ctx = device_open(&(device_options){.device = "cpu", .threads = 1}, p);
    c.in = c.ctx ? clnet_tensor_file_open(c.ctx, c.in_path) : NULL;
    const bool ok =
        c.in ? write_all(&c, precisions[precision], p) : c.ctx && problem_context(p, c.ctx);
    if (ok) {
        say(&c, precision ? precision_choices[precision] : NULL);
    }
    clnet_tensor_file_close(c.in);
    free(c.passages);
    free(c.items);
    free(c.pairs);
    clnet_context_destroy(c.ctx);
    return ok;
}
