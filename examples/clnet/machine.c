#define _POSIX_C_SOURCE 200809L
#include "machine.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

// Calls `take` with the value of each line "key : value" of a file of /proc that has this key.
static void read_values(const char *path, const char *key,
                        void (*take)(void *user, const char *value), void *user) {
    char line[512];
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        const size_t length = strlen(key);
        if (colon && !strncmp(line, key, length) &&
            strspn(line + length, " \t") == (size_t)(colon - line) - length) {
            colon[1 + strcspn(colon + 1, "\n")] = 0;
            take(user, colon + 1 + strspn(colon + 1, " \t"));
        }
    }
    if (f) {
        fclose(f);
    }
}

static void take_name(void *user, const char *value) {
    machine *m = user;
    snprintf(m->processor, sizeof m->processor, "%s", value);
}

static void take_kilobytes(void *user, const char *value) {
    uint64_t kilobytes;
    if (sscanf(value, "%" SCNu64, &kilobytes) == 1) {
        *(uint64_t *)user = 1024 * kilobytes;
    }
}

machine machine_describe(void) {
    machine m = {.processor = "unknown"};
    const long processors = sysconf(_SC_NPROCESSORS_ONLN);
    m.processors = processors > 0 ? (int)processors : 1;
    read_values("/proc/cpuinfo", "model name", take_name, &m);
    read_values("/proc/meminfo", "MemTotal", take_kilobytes, &m.memory);
    read_values("/proc/meminfo", "MemAvailable", take_kilobytes, &m.available);
    return m;
}

const char *machine_bytes(char text[MACHINE_BYTES], uint64_t bytes) {
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes / 1024;
    int unit = 0;
    if (bytes < 1024) {
        snprintf(text, MACHINE_BYTES, "%d bytes", (int)bytes);
        return text;
    }
    for (; value >= 1024 && unit < 5; unit++) {
        value /= 1024;
    }
    snprintf(text, MACHINE_BYTES, "%.1f %s", value, units[unit]);
    return text;
}

void machine_print_json(const char *text) {
    putchar('"');
    for (; *text; text++) {
        const unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') {
            printf("\\%c", c);
        } else if (c < 0x20) {
            printf("\\u%04x", (unsigned)c);
        } else {
            putchar(c);
        }
    }
    putchar('"');
}
