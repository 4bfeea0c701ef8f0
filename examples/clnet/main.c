// clnet: trains, evaluates and explains the networks of the paper. See `clnet help`.
#include "clnet.h"
#include "commands.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

typedef struct command {
    const char *name, *help;
    bool (*run)(int argc, char **argv, bool usage, problem *p);
} command;

static const command commands[] = {
#define X(name, help) {#name, help, command_##name},
    COMMANDS(X)
#undef X
};

static const command *find(const char *name) {
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (!strcmp(commands[i].name, name)) {
            return &commands[i];
        }
    }
    return NULL;
}

static void print_help(void) {
    printf("clnet %s: segmentation and classification of skin lesions in plain C\n\n"
           "usage: clnet COMMAND [options] [paths]\n\n",
           CLNET_VERSION);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        printf("  %-10s %s\n", commands[i].name, commands[i].help);
    }
    printf(
        "  %-10s the options of a command\n\n"
        "exit status: 0 done, 1 failed at run time, 2 bad input, 130 or 143 stopped by a signal\n",
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
    if (!strcmp(name, "--version")) {
        printf("clnet %s\n", CLNET_VERSION);
        return 0;
    }
    const command *c = find(name);
    if (!c) {
        fprintf(stderr, "clnet: %s: unknown command; see clnet help\n", name);
        return EXIT_USAGE;
    }
    command_catch_signals();
    if (!c->run(argc - 2, argv + 2, help || asks_for_help(argc - 2, argv + 2), &p)) {
        fprintf(stderr, "clnet %s: %s\n", name, p.text[0] ? p.text : "failed");
        return p.status ? p.status : EXIT_RUN;
    }
    if (fflush(stdout) || ferror(stdout)) {
        fprintf(stderr, "clnet %s: the output cannot be written\n", name);
        return EXIT_RUN;
    }
    return command_signal ? 128 + (int)command_signal : 0;
}
