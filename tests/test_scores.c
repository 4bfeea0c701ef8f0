// `clnet score` against the official scorer of the ISIC challenge, on the cases in tests/data/scores.txt,
// which tests/data/make_scores.py has made with it: within 1e-6, and undefined where it is.
//     test_scores [tests/data]
#define _XOPEN_SOURCE 700
#include "commands.h"
#include "disk.h"
#include "image.h"
#include "test.h"
#include "wholefile.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const double tolerance = 1e-6;

static char folder[] = "/tmp/test_scores_XXXXXX";

// One case while its lines are read. The data set and the predictions lie in a folder of its own.
typedef struct score_case {
    char name[64];
    int number;
    char *truth, *scores; // tables; NULL: none
    size_t truth_size, scores_size;
    FILE *truth_file, *scores_file;
    char column[16]; // of the ids in the table of scores
    bool measured;   // its metrics.json is there
    char *json;
} score_case;

static void path_in(const score_case *c, char path[DISK_PATH], const char *name) {
    snprintf(path, DISK_PATH, "%s/%d/%s", folder, c->number, name);
}

static void make_folder(const score_case *c, const char *name) {
    char path[DISK_PATH];
    problem p = {0};
    path_in(c, path, name);
    CHECK(disk_make_folder(path, &p), "%s", p.text);
}

static void write_file(const score_case *c, const char *name, const void *bytes, size_t size) {
    char path[DISK_PATH];
    problem p = {0};
    path_in(c, path, name);
    CHECK(disk_write(path, bytes, size, &p), "%s", p.text);
}

#define DATA "data/ISIC-2017_Validation_"

static void begin_case(score_case *c, const char *name) {
    const int number = c->number + 1;
    *c = (score_case){.number = number, .column = "image_id"};
    snprintf(c->name, sizeof c->name, "%s", name);
    make_folder(c, DATA "Data");
    make_folder(c, DATA "Part1_GroundTruth");
    make_folder(c, "pred");
    c->truth_file = open_memstream(&c->truth, &c->truth_size);
    c->scores_file = open_memstream(&c->scores, &c->scores_size);
    CHECK(c->truth_file && c->scores_file, "no memory");
}

// The image itself is not looked at: its name makes it part of the data set.
static void add_image(const score_case *c, const char *id) {
    char name[256];
    snprintf(name, sizeof name, DATA "Data/%s.jpg", id);
    write_file(c, name, "", 0);
}

static void add_mask(const score_case *c, char *line) {
    char id[64], side[16], name[256], path[DISK_PATH];
    int height, width, used = 0;
    problem p = {0};
    if (sscanf(line, "%63s %15s %d %d %n", id, side, &height, &width, &used) != 4) {
        CHECK(false, "%s: a mask that cannot be read: %.40s", c->name, line);
        return;
    }
    const size_t pixels = (size_t)height * (size_t)width;
    unsigned char *bytes = calloc(pixels, 1);
    for (size_t i = 0; bytes && i < pixels; i++) {
        const char digits[3] = {line[(size_t)used + 2 * i], line[(size_t)used + 2 * i + 1], 0};
        bytes[i] = (unsigned char)strtoul(digits, NULL, 16);
    }
    add_image(c, id);
    snprintf(name, sizeof name, "%s/%s_segmentation.png",
             strcmp(side, "truth") ? "pred" : DATA "Part1_GroundTruth", id);
    path_in(c, path, name);
    CHECK(bytes && image_write_png(path, bytes, height, width, 1, &p), "%s", p.text);
    free(bytes);
}

// "ID A B" as a line of a table.
static void add_row(const score_case *c, FILE *table, const char *header, char *line) {
    char id[64], first[64], second[64];
    if (sscanf(line, "%63s %63s %63s", id, first, second) != 3) {
        CHECK(false, "%s: a row that cannot be read: %s", c->name, line);
        return;
    }
    if (ftell(table) == 0) {
        fprintf(table, "%s,melanoma,seborrheic_keratosis\n", header);
    }
    fprintf(table, "%s,%s,%s\n", id, first, second);
    if (table == c->truth_file) {
        add_image(c, id);
    }
}

static void measure(score_case *c) {
    char data[DISK_PATH], pred[DISK_PATH], out[DISK_PATH], json[DISK_PATH];
    problem p = {0};
    wholefile file = {NULL, 0};
    fclose(c->truth_file);
    fclose(c->scores_file);
    if (c->scores_size) {
        write_file(c, DATA "Part3_GroundTruth.csv", c->truth, c->truth_size);
        write_file(c, "pred/predictions.csv", c->scores, c->scores_size);
    }
    path_in(c, data, "data");
    path_in(c, pred, "pred");
    path_in(c, out, "out");
    path_in(c, json, "out/metrics.json");
    char *arguments[] = {"--truth", data, "--pred", pred, "--out", out, "--threads", "1"};
    CHECK(command_score(8, arguments, false, &p) && wholefile_read(json, 1 << 16, &file, &p),
          "%s: %s", c->name, p.text);
    c->json = (char *)file.bytes;
    c->measured = true;
}

// The number behind "a": {.. "b": {.. "c": for the metric a.b.c; NaN for null. false: not there.
static bool find_metric(const char *json, const char *metric, double *value) {
    char part[64], key[72];
    while (*metric) {
        const size_t length = strcspn(metric, ".");
        snprintf(part, sizeof part, "%.*s", (int)length, metric);
        snprintf(key, sizeof key, "\"%s\": ", part);
        json = strstr(json, key);
        if (!json) {
            return false;
        }
        json += strlen(key);
        metric += length + (metric[length] == '.');
    }
    *value = strncmp(json, "null", 4) ? strtod(json, NULL) : (double)NAN;
    return true;
}

static void expect(score_case *c, char *line) {
    char metric[128], text[64];
    double found;
    if (!c->measured) {
        measure(c);
    }
    if (sscanf(line, "%127s %63s", metric, text) != 2 || !c->json ||
        !find_metric(c->json, metric, &found)) {
        CHECK(false, "%s: no figure for %s", c->name, line);
        return;
    }
    const double wanted = strtod(text, NULL);
    CHECK(isnan(wanted) ? isnan(found) : fabs(found - wanted) <= tolerance,
          "%s: %s is %.17g, the official scorer has %s", c->name, metric, found, text);
}

static void end_case(score_case *c) {
    CHECK(c->number == 0 || c->measured, "%s: expects nothing", c->name);
    free(c->truth);
    free(c->scores);
    free(c->json);
}

static void run_line(score_case *c, char *line) {
    char *rest = line + strcspn(line, " ");
    rest += *rest == ' ';
    if (!strncmp(line, "case ", 5)) {
        end_case(c);
        begin_case(c, rest);
    } else if (!strncmp(line, "mask ", 5)) {
        add_mask(c, rest);
    } else if (!strncmp(line, "column ", 7)) {
        snprintf(c->column, sizeof c->column, "%s", rest);
    } else if (!strncmp(line, "label ", 6)) {
        add_row(c, c->truth_file, "image_id", rest);
    } else if (!strncmp(line, "score ", 6)) {
        add_row(c, c->scores_file, c->column, rest);
    } else if (!strncmp(line, "expect ", 7)) {
        expect(c, rest);
    } else {
        CHECK(false, "a line that is not known: %.60s", line);
    }
}

int main(int argc, char **argv) {
    char path[DISK_PATH], command[128];
    problem p = {0};
    wholefile file;
    snprintf(path, sizeof path, "%s/scores.txt", argc > 1 ? argv[1] : "tests/data");
    if (!wholefile_read(path, 1 << 20, &file, &p) || !mkdtemp(folder)) {
        printf("FAIL %s\n0 passed, 1 failed, 0 skipped\n", p.text);
        return 1;
    }
    score_case c = {.number = 0};
    for (char *line = strtok((char *)file.bytes, "\n"); line; line = strtok(NULL, "\n")) {
        run_line(&c, line);
    }
    end_case(&c);
    CHECK(c.number > 20, "only %d cases", c.number);
    wholefile_free(&file);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    CHECK(system(command) == 0, "%s", command);
    return test_close();
}
