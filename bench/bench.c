// clnet-bench: how fast is this machine, this device, with clnet, and how near to its own limits?
// See `clnet-bench help`.
#include "bench.h"
#include "commands.h"

#include <string.h>

// The list of `clnet devices`.
static bool bench_list(int argc, char **argv, bool usage, problem *p) {
    if (usage) {
        printf("usage: clnet-bench devices [--json]\n\nWhat --device takes.\n");
        return true;
    }
    return command_devices(argc, argv, false, p);
}

typedef struct command {
    const char *name, *help;
    bool (*run)(int argc, char **argv, bool usage, problem *p);
} command;

static const command commands[] = {
    {"model", "networks: forward pass and training step", bench_model},
    {"ops", "single operations, with the shapes that they have in a network", bench_ops},
    {"peak", "what the device can reach at best: multiply-adds, copying", bench_peak},
    {"compare", "two files of results, case by case", bench_compare},
    {"devices", "what there is to measure", bench_list},
};
enum { COMMAND_COUNT = sizeof commands / sizeof *commands };

static const command *find(const char *name) {
    for (int i = 0; i < COMMAND_COUNT; i++) {
        if (!strcmp(commands[i].name, name)) {
            return &commands[i];
        }
    }
    return NULL;
}

static void print_help(void) {
    printf("clnet-bench %s: speed of clnet on this machine's devices\n\n"
           "usage: clnet-bench COMMAND [options]\n\n",
           CLNET_VERSION);
    for (int i = 0; i < COMMAND_COUNT; i++) {
        printf("  %-10s %s\n", commands[i].name, commands[i].help);
    }
    printf("  %-10s the options of a command\n\n"
           "To compare devices, of any vendor, in one command:\n\n"
           "  clnet-bench model --device all --save results.json\n\n"
           "exit status: 0 done (failed cases say so in their rows), 1 failed at run time, 2 bad "
           "input,\n130 or 143 stopped by a signal\n",
           "help");
}

static bool asks_for_help(int argc, char **argv) {
    for (int i = 0; i < argc && strcmp(argv[i], "--"); i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            return true;
        }
    }
    return false;
}

int main(int argc, char **argv) {
    problem p = {0};
    const char *name = argc > 1 ? argv[1] : "help";
    const bool help = !strcmp(name, "help") || !strcmp(name, "--help") || !strcmp(name, "-h");
    if (help && argc > 2) {
        name = argv[2];
    } else if (help) {
        print_help();
        return argc > 1 ? 0 : EXIT_USAGE;
    }
    const command *c = find(name);
    if (!c) {
        fprintf(stderr, "clnet-bench: %s: unknown command; see clnet-bench help\n", name);
        return EXIT_USAGE;
    }
    command_catch_signals();
    const bool ok = c->run(argc - 2, argv + 2, help || asks_for_help(argc - 2, argv + 2), &p);
    if (!ok && !command_signal) {
        fprintf(stderr, "clnet-bench %s: %s\n", name, p.text[0] ? p.text : "failed");
        return p.status ? p.status : EXIT_RUN;
    }
    if (fflush(stdout) || ferror(stdout)) {
        fprintf(stderr, "clnet-bench %s: the output cannot be written\n", name);
        return EXIT_RUN;
    }
    return command_signal ? 128 + (int)command_signal : 0;
}
