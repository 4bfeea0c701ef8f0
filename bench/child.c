// Child processes: what is measured runs in one, and tells its results through a pipe. The parent
// itself uses neither OpenMP nor OpenCL, whose threads would not survive the fork.
#define _POSIX_C_SOURCE 200809L
#include "bench.h"
#include "commands.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

static void run_child(void (*work)(void *arg, int to), void *arg, int to) {
    signal(SIGINT, SIG_IGN); // a terminal sends it to all; the parent decides
    signal(SIGTERM, SIG_DFL);
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    work(arg, to);
    _exit(0);
}

bool bench_child_start(bench_child *c, void (*work)(void *arg, int to), void *arg, problem *p) {
    int ends[2];
    fflush(NULL); // what waits in buffers is the parent's to write
    if (pipe(ends) != 0) {
        return problem_run(p, "no pipe: %s", strerror(errno));
    }
    const pid_t pid = fork();
    if (pid == 0) {
        close(ends[0]);
        run_child(work, arg, ends[1]);
    }
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return problem_run(p, "no process: %s", strerror(errno));
    }
    *c = (bench_child){(int)pid, ends[0]};
    return true;
}

void bench_send(int to, const void *message, size_t bytes) {
    for (const char *at = message; bytes > 0;) {
        const ssize_t written = write(to, at, bytes);
        if (written < 0 && errno != EINTR) {
            _exit(EXIT_RUN); // nobody listens any more
        }
        at += written > 0 ? written : 0;
        bytes -= written > 0 ? (size_t)written : 0;
    }
}

bool bench_child_receive(bench_child *c, void *message, size_t bytes) {
    enum { PAUSE = 100 }; // milliseconds after which a signal is seen at the latest
    char *at = message;
    while (bytes > 0 && !command_signal) {
        struct pollfd wait = {.fd = c->from, .events = POLLIN};
        if (poll(&wait, 1, PAUSE) <= 0) {
            continue;
        }
        const ssize_t count = read(c->from, at, bytes);
        if (count == 0 || (count < 0 && errno != EINTR)) {
            return false;
        }
        at += count > 0 ? count : 0;
        bytes -= count > 0 ? (size_t)count : 0;
    }
    return bytes == 0;
}

void bench_child_end(bench_child *c, char why[128]) {
    int status = 0;
    close(c->from);
    if (command_signal) {
        kill((pid_t)c->pid, SIGKILL);
    }
    while (waitpid((pid_t)c->pid, &status, 0) < 0 && errno == EINTR) {
    }
    why[0] = 0;
    if (command_signal) {
        snprintf(why, 128, "stopped");
    } else if (WIFSIGNALED(status)) {
        const int number = WTERMSIG(status);
        snprintf(why, 128, "its process was ended by signal %d%s", number,
                 number == SIGKILL ? " (out of memory?)" : "");
    } else if (WEXITSTATUS(status) != 0) {
        snprintf(why, 128, "its process ended with status %d", WEXITSTATUS(status));
    }
}

bool bench_child_call(void (*work)(void *arg, int to), void *arg, void *answer, size_t bytes,
                      problem *p) {
    bench_child c;
    char why[128];
    if (!bench_child_start(&c, work, arg, p)) {
        return false;
    }
    const bool answered = bench_child_receive(&c, answer, bytes);
    bench_child_end(&c, why);
    return answered || problem_run(p, "%s", why[0] ? why : "its process said nothing");
}
