// clnet synth: draws a synthetic dermoscopy data set in the ISIC 2017 layout.
#include "commands.h"
#include "options.h"
#include "progress.h"
#include "synth.h"

#include <stdio.h>

static bool go_on(void *user, size_t done, size_t total) {
    progress_step(user, done, total);
    return !command_signal;
}

bool command_synth(int argc, char **argv, bool usage, problem *p) {
    const char *out = NULL;
    int train = 0, validation = 0, test = 0, size[2] = {192, 192};
    uint64_t seed = 0;
    option options[] = {
        OPTION(TEXT, "--out", &out, "folder for the data set (required)"),
        OPTION_RANGE(INT, "--train", &train, 0, 1000000, "images for training (default: 0)"),
        OPTION_RANGE(INT, "--validation", &validation, 0, 1000000,
                     "images for validation (default: 0)"),
        OPTION_RANGE(INT, "--test", &test, 0, 1000000, "images for testing (default: 0)"),
        OPTION(SIZE, "--size", &size, "their size, as 192 or 192x256 (default: 192)"),
        OPTION(SEED, "--seed", &seed, "of all that is random (default: 0)"),
    };
    const size_t count = sizeof options / sizeof *options;
    if (usage) {
        printf("usage: clnet synth --out DIR --train N [--validation N] [--test N] [options]\n\n");
        options_print(options, count);
        return true;
    }
    size_t paths;
    if (!options_parse(argc, argv, options, count, NULL, &paths, 0, p)) {
        return false;
    }
    if (!out) {
        return problem_input(p, "--out is missing");
    }
    if (train + validation + test == 0) {
        return problem_input(p, "no images are wanted: --train, --validation or --test is missing");
    }
    const synth_desc desc = {.train = (size_t)train,
                             .validation = (size_t)validation,
                             .test = (size_t)test,
                             .height = size[0],
                             .width = size[1],
                             .seed = seed};
    progress bar;
    progress_begin(&bar, desc.train + desc.validation + desc.test, "images");
    bool ok = synth_write(out, &desc, go_on, &bar, p);
    if (ok || bar.last > 0) {
        progress_end(&bar);
    }
    if (!ok && command_signal) {
        fprintf(stderr, "clnet synth: stopped\n");
        ok = true;
    }
    return ok;
}
