#define _POSIX_C_SOURCE 200809L
#include "options.h"
#include "clnet_cl.h"
#include "disk.h"
#include "profile.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// A decimal number and nothing else: no hexadecimal, no blanks, no infinity.
static bool parse_number(const char *text, double *value) {
    const size_t length = strlen(text);
    if (length == 0 || length > 60 || strspn(text, "0123456789+-.eE") != length) {
        return false;
    }
    char *end;
    *value = strtod(text, &end);
    return *end == 0 && isfinite(*value);
}

static bool parse_int(const char *text, int *value) {
    double number;
    if (strspn(text, "-0123456789") != strlen(text) || !parse_number(text, &number) ||
        fabs(number) > 2147483647.0) {
        return false;
    }
    *value = (int)number;
    return true;
}

static bool parse_seed(const char *text, uint64_t *value) {
    const size_t length = strlen(text);
    if (length == 0 || length > 19 || strspn(text, "0123456789") != length) {
        return false;
    }
    *value = strtoull(text, NULL, 10);
    return true;
}

// 0.125 or 1/8.
static bool parse_width(const char *text, double *value) {
    char copy[64];
    const char *slash = strchr(text, '/');
    double above, below;
    if (!slash) {
        return parse_number(text, value) && *value > 0;
    }
    if ((size_t)(slash - text) >= sizeof copy) {
        return false;
    }
    snprintf(copy, sizeof copy, "%.*s", (int)(slash - text), text);
    if (!parse_number(copy, &above) || !parse_number(slash + 1, &below) || !(above > 0) ||
        !(below > 0)) {
        return false;
    }
    *value = above / below;
    return true;
}

// 224 or 192x256.
static bool parse_size(const char *text, int size[2]) {
    char copy[32];
    const char *times = strchr(text, 'x');
    if (!times) {
        return parse_int(text, &size[0]) && (size[1] = size[0]) > 0;
    }
    if ((size_t)(times - text) >= sizeof copy) {
        return false;
    }
    snprintf(copy, sizeof copy, "%.*s", (int)(times - text), text);
    return parse_int(copy, &size[0]) && parse_int(times + 1, &size[1]) && size[0] > 0 &&
           size[1] > 0;
}

static bool parse_list(const char *text, option_list *list) {
    list->count = 0;
    for (const char *at = text; list->count < CLNET_MAX_CLASSES;) {
        char copy[64];
        const size_t length = strcspn(at, ",");
        if (length >= sizeof copy) {
            return false;
        }
        snprintf(copy, sizeof copy, "%.*s", (int)length, at);
        if (!parse_number(copy, &list->value[list->count++])) {
            return false;
        }
        if (at[length] == 0) {
            return true;
        }
        at += length + 1;
    }
    return false;
}

static bool parse_choice(const option *o, const char *text, problem *p) {
    char all[256] = "";
    for (int i = 0; o->choices[i]; i++) {
        if (!strcmp(o->choices[i], text)) {
            *(int *)o->value = i;
            return true;
        }
        const size_t used = strlen(all);
        snprintf(all + used, sizeof all - used, "%s%s", i ? ", " : "", o->choices[i]);
    }
    return problem_input(p, "%s %s: must be one of %s", o->name, text, all);
}

static bool in_range(const option *o, double value) {
    return (o->min == 0 && o->max == 0) || (value >= o->min && value <= o->max);
}

static bool refuse(const option *o, const char *text, const char *needed, problem *p) {
    if (o->min == 0 && o->max == 0) {
        return problem_input(p, "%s %s: needs %s", o->name, text, needed);
    }
    return problem_input(p, "%s %s: needs %s from %g to %g", o->name, text, needed, o->min, o->max);
}

bool options_set(option *o, const char *text, problem *p) {
    switch (o->kind) {
    case OPTION_INT:
        return (parse_int(text, o->value) && in_range(o, *(int *)o->value)) ||
               refuse(o, text, "a whole number", p);
    case OPTION_NUMBER:
        return (parse_number(text, o->value) && in_range(o, *(double *)o->value)) ||
               refuse(o, text, "a number", p);
    case OPTION_SEED:
        return parse_seed(text, o->value) ||
               refuse(o, text, "a whole number of at most 19 digits", p);
    case OPTION_WIDTH:
        return parse_width(text, o->value) ||
               refuse(o, text, "a number above 0, as 0.125 or 1/8", p);
    case OPTION_SIZE:
        return parse_size(text, o->value) ||
               refuse(o, text, "a size, as 224 or 192x256 (height x width)", p);
    case OPTION_LIST:
        return parse_list(text, o->value) || refuse(o, text, "numbers with commas between them", p);
    case OPTION_CHOICE:
        return parse_choice(o, text, p);
    default:
        *(const char **)o->value = text;
        return *text || problem_input(p, "%s: needs a value that is not empty", o->name);
    }
}

// The option that an argument names, as --name or --name=value.
static option *find(const char *argument, option *options, size_t count, const char **value) {
    const size_t length = strcspn(argument, "=");
    *value = argument[length] ? argument + length + 1 : NULL;
    for (size_t i = 0; i < count; i++) {
        if (strlen(options[i].name) == length && !strncmp(options[i].name, argument, length)) {
            return &options[i];
        }
    }
    return NULL;
}

const option *options_find(const option *options, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(options[i].name, name)) {
            return &options[i];
        }
    }
    return NULL;
}

bool options_parse(int argc, char **argv, option *options, size_t count, const char **paths,
                   size_t *path_count, size_t most, problem *p) {
    bool only_paths = false;
    *path_count = 0;
    for (int i = 0; i < argc; i++) {
        if (only_paths || argv[i][0] != '-' || argv[i][1] == 0) {
            if (*path_count == most) {
                return problem_input(p, "%s: one argument too many", argv[i]);
            }
            paths[(*path_count)++] = argv[i];
            continue;
        }
        if (!strcmp(argv[i], "--")) {
            only_paths = true;
            continue;
        }
        const char *value;
        option *o = find(argv[i], options, count, &value);
        if (!o) {
            return problem_input(p, "%s: unknown option", argv[i]);
        }
        if (o->kind == OPTION_FLAG) {
            if (value) {
                return problem_input(p, "%s: takes no value", o->name);
            }
            *(bool *)o->value = true;
        } else {
            if (!value && i + 1 == argc) {
                return problem_input(p, "%s: needs a value", o->name);
            }
            if (!options_set(o, value ? value : argv[++i], p)) {
                return false;
            }
        }
        o->given = true;
    }
    return true;
}

static void format_list(const option_list *list, char text[OPTION_TEXT_SIZE]) {
    text[0] = 0;
    for (int i = 0; i < list->count; i++) {
        const size_t used = strlen(text);
        snprintf(text + used, OPTION_TEXT_SIZE - used, "%s%.17g", i ? "," : "", list->value[i]);
    }
}

void options_format(const option *o, char text[OPTION_TEXT_SIZE]) {
    const size_t size = OPTION_TEXT_SIZE;
    switch (o->kind) {
    case OPTION_FLAG:
        snprintf(text, size, "%d", (int)*(bool *)o->value);
        break;
    case OPTION_INT:
        snprintf(text, size, "%d", *(int *)o->value);
        break;
    case OPTION_SEED:
        snprintf(text, size, "%llu", (unsigned long long)*(uint64_t *)o->value);
        break;
    case OPTION_NUMBER:
    case OPTION_WIDTH:
        snprintf(text, size, "%.17g", *(double *)o->value);
        break;
    case OPTION_SIZE:
        snprintf(text, size, "%dx%d", ((int *)o->value)[0], ((int *)o->value)[1]);
        break;
    case OPTION_TEXT:
        snprintf(text, size, "%s", *(const char **)o->value ? *(const char **)o->value : "");
        break;
    case OPTION_CHOICE:
        snprintf(text, size, "%s", o->choices[*(int *)o->value]);
        break;
    case OPTION_LIST:
        format_list(o->value, text);
        break;
    }
}

void options_print(const option *options, size_t count) {
    static const char *const kinds[] = {"", "N", "N", "X", "W", "SIZE", "TEXT", "", "X,Y,.."};
    for (size_t i = 0; i < count; i++) {
        char left[64];
        const option *o = &options[i];
        const char *kind = kinds[o->kind];
        snprintf(left, sizeof left, "%s %s", o->name, kind);
        printf("  %-22s %s", left, o->help);
        for (int k = 0; o->kind == OPTION_CHOICE && o->choices[k]; k++) {
            printf("%s%s", k ? ", " : ": ", o->choices[k]);
        }
        printf("\n");
    }
}

const char *const device_isa_choices[] = {"auto", "portable", "avx2", "avx512", NULL};
const char *const device_winograd_choices[] = {"on", "off", NULL};

clnet_context *device_open(const device_options *d, problem *p) {
    const clnet_files files = disk_files();
    const clnet_cl_desc desc = {.device = d->device,
                                .base = {.threads = d->threads,
                                         .isa = (clnet_isa)d->isa,
                                         .reference = d->reference,
                                         .no_winograd = d->winograd == 1,
                                         .profile = d->profile,
                                         .files = &files}};
    clnet_context *ctx = clnet_cl_context_create(&desc);
    if (clnet_context_result(ctx) != CLNET_OK) {
        problem_context(p, ctx);
        clnet_context_destroy(ctx);
        return NULL;
    }
    return ctx;
}

void device_close(clnet_context *ctx) {
    profile_print(ctx);
    clnet_context_destroy(ctx);
}

bool problem_context(problem *p, const clnet_context *ctx) {
    const clnet_result result = clnet_context_result(ctx);
    if (result == CLNET_ERROR_MEMORY || result == CLNET_ERROR_DEVICE ||
        result == CLNET_ERROR_NONFINITE) {
        return problem_run(p, "%s", clnet_error(ctx));
    }
    return problem_input(p, "%s", clnet_error(ctx));
}
