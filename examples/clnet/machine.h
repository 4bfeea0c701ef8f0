// What this computer is: for the tables of `clnet devices` and `clnet info`.
#ifndef CLNET_PROGRAM_MACHINE_H
#define CLNET_PROGRAM_MACHINE_H

#include <stdint.h>

typedef struct machine {
    char processor[128];        // its name, "unknown" where the system does not say
    int processors;             // that are online
    uint64_t memory, available; // bytes in all, and not in use; 0: unknown
} machine;

machine machine_describe(void);

// A number of bytes in the unit that fits: "512 bytes", "1.5 MiB".
enum { MACHINE_BYTES = 32 };
const char *machine_bytes(char text[MACHINE_BYTES], uint64_t bytes);

// Prints a string as JSON, in quotes.
void machine_print_json(const char *text);

#endif
