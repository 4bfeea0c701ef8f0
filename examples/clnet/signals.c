// Signals that ask a program to stop.
#define _POSIX_C_SOURCE 200809L
#include "commands.h"

#include <unistd.h>

volatile sig_atomic_t command_signal;

static void on_signal(int number) {
    if (command_signal) {
        _exit(128 + number);
    }
    command_signal = number;
}

void command_catch_signals(void) {
    struct sigaction action = {.sa_handler = on_signal};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN); // writing to a closed pipe is an error like any other
    signal(SIGXFSZ, SIG_IGN); // and so is a file that grows beyond a limit
}
