// Command lines: one table of options per command serves parsing, checking and the help text.
#ifndef CLNET_PROGRAM_OPTIONS_H
#define CLNET_PROGRAM_OPTIONS_H

#include "clnet.h"
#include "error.h"

typedef enum option_kind {
    OPTION_FLAG,   // bool, no value
    OPTION_INT,    // int, within min..max
    OPTION_SEED,   // uint64_t
    OPTION_NUMBER, // double, within min..max
    OPTION_WIDTH,  // double: 0.125 or 1/8
    OPTION_SIZE,   // int[2]: 224 or 192x256 (height x width)
    OPTION_TEXT,   // const char *
    OPTION_CHOICE, // int: index into `choices`
    OPTION_LIST    // option_list: up to three numbers with commas
} option_kind;

typedef struct option_list {
    int count;
    double value[CLNET_MAX_CLASSES];
} option_list;

typedef struct option {
    const char *name; // "--epochs"
    option_kind kind;
    void *value;                // where it goes; keeps its default when the option is absent
    const char *help;           // one line: what it does, its default
    double min, max;            // of INT and NUMBER; both 0: any
    const char *const *choices; // of CHOICE, ends with NULL
    bool given;                 // out
} option;

// Rows of such a table.
#define OPTION(kind_, name_, value_, help_)                                                        \
    { .name = name_, .kind = OPTION_##kind_, .value = value_, .help = help_ }
#define OPTION_RANGE(kind_, name_, value_, min_, max_, help_)                                      \
    {                                                                                              \
        .name = name_, .kind = OPTION_##kind_, .value = value_, .help = help_, .min = min_,        \
        .max = max_                                                                                \
    }
#define OPTION_OF(choices_, name_, value_, help_)                                                  \
    { .name = name_, .kind = OPTION_CHOICE, .value = value_, .help = help_, .choices = choices_ }

// Reads argv (the arguments behind the command's name). Everything that is no option goes to
// `paths`, at most `most` of them; behind "--" everything does. false: the problem names the option.
bool options_parse(int argc, char **argv, option *options, size_t count, const char **paths,
                   size_t *path_count, size_t most, problem *p);

// The option of a name, NULL if the table has none.
const option *options_find(const option *options, size_t count, const char *name);

// The value of an option as the text that would give it on a command line, and back: how a training
// keeps its settings in a file.
enum { OPTION_TEXT_SIZE = 1024 };
void options_format(const option *o, char text[OPTION_TEXT_SIZE]);
bool options_set(option *o, const char *text, problem *p);

// Prints the table as help.
void options_print(const option *options, size_t count);

// The options that several commands share: device, threads, vector code, plain loops, profile.
typedef struct device_options {
    const char *device; // "cpu", "opencl", "opencl:P.D", "auto"; NULL = auto
    int threads, isa;
    int winograd; // place in device_winograd_choices
    bool reference, profile;
} device_options;

#define DEVICE_OPTIONS(d)                                                                          \
    OPTION(TEXT, "--device", &(d)->device,                                                         \
           "cpu, opencl, opencl:P.D, auto (default): the best GPU or cpu"),                        \
        OPTION_RANGE(INT, "--threads", &(d)->threads, 1, 1024,                                     \
                     "threads (default: all processors)"),                                         \
        OPTION_OF(device_isa_choices, "--isa", &(d)->isa, "vector code (default: auto)"),          \
        OPTION_OF(device_winograd_choices, "--winograd", &(d)->winograd,                           \
                  "large 3x3 convolutions by Winograd's method, on the CPU (default: on)"),        \
        OPTION(FLAG, "--profile", &(d)->profile, "prints at the end where the time went")

extern const char *const device_isa_choices[], *const device_winograd_choices[];

// A context on the device that the options name. `sync` files: everything written is on the disk
// before it is renamed into place. NULL: see the problem.
clnet_context *device_open(const device_options *d, problem *p);

// Prints the profile if one was asked for, and destroys the context. NULL: nothing.
void device_close(clnet_context *ctx);

// Passes on the failure of a context: bad input (exit status 2) or a failure at run time (1).
bool problem_context(problem *p, const clnet_context *ctx);

#endif
