// CSV files, the pairing of images, masks and labels, and the decoded cache. Every folder is made
// here and removed at the end. The numbers H40.. are those of the cases in the list of hostile
// inputs.
#define _XOPEN_SOURCE 700
#include "cache.h"
#include "csv.h"
#include "dataset.h"
#include "image.h"
#include "test.h"

#include <fcntl.h>
#include <ftw.h>
#include <locale.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

// ---- files and folders --------------------------------------------------------------------------

static char root[] = "/tmp/clnet-test-dataset-XXXXXX";

// A path below the root; the last few stay valid.
static const char *at(const char *format, ...) __attribute__((format(printf, 1, 2)));

static const char *at(const char *format, ...) {
    static char paths[4][400];
    static int turn;
    char *path = paths[turn = (turn + 1) % 4];
    const int used = snprintf(path, sizeof paths[0], "%s/", root);
    va_list args;
    va_start(args, format);
    vsnprintf(path + used, sizeof paths[0] - (size_t)used, format, args);
    va_end(args);
    return path;
}

static void put(const char *path, const void *data, size_t size) {
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(data, 1, size, f) == size, "%s cannot be written", path);
    if (f) {
        fclose(f);
    }
}

static void put_text(const char *path, const char *text) { put(path, text, strlen(text)); }

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *where) {
    (void)info;
    (void)type;
    (void)where;
    return remove(path);
}

static void remove_all(const char *path) { nftw(path, remove_entry, 8, FTW_DEPTH | FTW_PHYS); }

// ---- CSV ----------------------------------------------------------------------------------------

#define HEADER "image_id,melanoma,seborrheic_keratosis\n"

static bool read_csv(const char *text, size_t size, csv_kind kind, csv_table *t, problem *p) {
    put(at("t.csv"), text, size);
    *p = (problem){0};
    return csv_read(at("t.csv"), kind, t, p);
}

static void csv_refused_bytes(const char *what, const char *text, size_t size, csv_kind kind,
                              const char *expected) {
    csv_table t;
    problem p;
    const bool ok = read_csv(text, size, kind, &t, &p);
    CHECK(!ok && p.status == EXIT_USAGE, "%s was accepted", what);
    CHECK(strstr(p.text, "t.csv: ") && strstr(p.text, expected), "%s: \"%s\" has no \"%s\"", what,
          p.text, expected);
    CHECK(!t.rows && !t.text, "%s left a table", what);
    csv_free(&t);
}

static void csv_refused(const char *what, const char *text, const char *expected) {
    csv_refused_bytes(what, text, strlen(text), CSV_TRUTH, expected);
}

// The table must hold A: 1, 0 and B: 0, 1, in whatever order.
static void csv_accepted(const char *what, const char *text) {
    csv_table t;
    problem p;
    const bool ok = read_csv(text, strlen(text), CSV_TRUTH, &t, &p);
    const csv_row *a = ok ? csv_find(&t, "A") : NULL, *b = ok ? csv_find(&t, "B") : NULL;
    CHECK(ok && t.count == 2, "%s: %zu rows, %s", what, t.count, p.text);
    CHECK(a && b && a->melanoma == 1 && a->keratosis == 0 && b->melanoma == 0 && b->keratosis == 1,
          "%s: wrong values", what);
    CHECK(!ok || !csv_find(&t, "C"), "%s: found what is not there", what);
    csv_free(&t);
}

static void test_csv_shape(void) {
    csv_refused("H50", "", "is empty");
    csv_refused("H50 newline", "\n", "column \"\" is not known");
    csv_refused("H51", HEADER, "has a header but no rows");
    csv_refused("H52", "image_id,age_approximate,sex\nISIC_0000000,55,female\n",
                "line 1: column \"age_approximate\" is not known");
    csv_accepted("plain", HEADER "A,1,0\nB,0,1\n");
    csv_accepted("H53", "seborrheic_keratosis,image,melanoma\n0,A,1.0\n1.0,B,0.0\n");
    csv_refused("H54 unknown", "image_id,melanoma,seborrheic_keratosis,nevus\nA,0,0,1\n",
                "column \"nevus\" is not known");
    csv_refused("H54 twice", "image_id,melanoma,melanoma\nA,0,0\n", "column melanoma stands there");
    csv_refused("image and image_id", "image_id,image,melanoma,seborrheic_keratosis\nA,A,0,0\n",
                "column image_id stands there twice");
    csv_refused("missing column", "image_id,melanoma\nA,0\n",
                "column seborrheic_keratosis is missing");
    csv_refused("H57 same", HEADER "A,1,0\nB,0,0\nA,1,0\n", "line 4: A stands in line 2 already");
    csv_refused("H57 different", HEADER "A,1,0\nA,0,0\n", "line 3: A stands in line 2 already");
    csv_accepted("H60 CRLF", "image_id,melanoma,seborrheic_keratosis\r\nA,1,0\r\nB,0,1\r\n");
    csv_accepted("H60 BOM", "\xEF\xBB\xBF" HEADER "A,1,0\nB,0,1\n");
    csv_accepted("H60 no final newline", HEADER "A,1,0\nB,0,1");
    csv_accepted("H60 quotes",
                 "\"image_id\",\"melanoma\",seborrheic_keratosis\n\"A\",\"1\",0\nB,0,\"1\"");
    csv_accepted("empty lines", HEADER "\nA,1,0\r\n\nB,0,1\n\n\r\n");
    csv_refused("H60 lone CR", "image_id,melanoma,seborrheic_keratosis\rA,1,0\r",
                "line 1: carriage return without a line feed");
    csv_refused("H60 trailing comma", HEADER "A,1,0,\n", "line 2: has more than 3 values");
    csv_refused("too few", HEADER "A,1,0\nB,1\n", "line 3: has 2 of 3 values");
    csv_refused("H60 newline in quotes", HEADER "\"A\nB\",1,0\n", "line 2: quote without an end");
    csv_refused("quote at the end", HEADER "\"A", "line 2: quote without an end");
    csv_refused("text behind a quote", HEADER "\"A\"B,1,0\n",
                "line 2: text behind a closing quote");
    csv_refused("quote inside", HEADER "A\"B\",1,0\n", "line 2: quote within a value");
    csv_refused("quoted quote in an id", HEADER "\"A\"\"B\",1,0\n", "image_id \"A\"B\"");
    csv_refused_bytes("H60 NUL", HEADER "A\0,1,0\n", sizeof HEADER + 7, CSV_TRUTH,
                      "line 2: NUL byte");
    csv_refused_bytes("NUL in quotes", HEADER "\"A\0B\",1,0\n", sizeof HEADER + 10, CSV_TRUTH,
                      "line 2: quote without");
    csv_refused("H60 tabs", "image_id\tmelanoma\tseborrheic_keratosis\nA\t1\t0\n",
                "column \"image_id?melanoma");
    csv_refused_bytes("H60 UTF-16", "\xFF\xFEi\0m\0", 6, CSV_TRUTH, "is UTF-16");
}

static void test_csv_values(void) {
    static const char *const bad[] = {"2",   "-1",      "0.5", "nan", "NaN", "inf", "INF", "0x1",
                                      "0x0", "\"1,0\"", "",    " 1",  "1 ",  "yes", "1e",  "1e+",
                                      ".",   "1.0.0",   "+1",  "1f",  "1e9", "0,0"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[200];
        snprintf(text, sizeof text, HEADER "A,0,0\nB,%s,0\n", bad[i]);
        csv_refused("H58", text,
                    strcmp(bad[i], "0,0") ? "line 3: melanoma is \"" : "line 3: has more");
    }
    csv_accepted("H58 forms", HEADER "A,1.0,0.0\nB,0e0,10e-1\n");
    csv_accepted("H58 dots", HEADER "A,1.,.0\nB,00,01\n");
    csv_refused("H59", HEADER "A,1,1\n", "line 2: A is both melanoma and seborrheic keratosis");

    static const char *const ids[] = {"../x", "/etc/passwd", "%s",       "a b",  "",
                                      "a\\b", ".hidden",     "\xC3\xA4", "a\x7F"};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) { // H63
        char text[200];
        snprintf(text, sizeof text, HEADER "%s,0,0\n", ids[i]);
        csv_refused("H63", text, "line 2: image_id \"");
    }
    char text[6000];
    char id[5001];
    memset(id, 'x', 5000);
    id[5000] = 0;
    snprintf(text, sizeof text, HEADER "%s,0,0\n", id);
    csv_refused("H63 5,000 characters", text, "xxx...\"");
    id[CSV_MAX_ID] = 0;
    CHECK(csv_id_valid(id), "100 characters");
    id[CSV_MAX_ID] = 'x';
    CHECK(!csv_id_valid(id), "101 characters and more");
}

static void test_csv_scores(void) {
    csv_table t;
    problem p;
    const char *text = "image,melanoma,seborrheic_keratosis\nA,0.1,1\nB,9.9999998e-5,0.333333343\n";
    const char *locales[] = {"C", "de_DE.UTF-8"};
    for (int i = 0; i < 2; i++) {
        setlocale(LC_ALL, locales[i]); // where it is not installed, C stays
        CHECK(read_csv(text, strlen(text), CSV_SCORES, &t, &p), "%s", p.text);
        const csv_row *b = csv_find(&t, "B");
        CHECK(b && b->melanoma == 9.9999998e-5 && (float)b->keratosis == 1.0f / 3, "wrong scores");
        csv_free(&t);
    }
    setlocale(LC_ALL, "C");
    static const char *const bad[] = {"1.0000001", "-0.1", "nan", "inf", "0x0", "1e400", "\"0,5\""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char row[200];
        snprintf(row, sizeof row, HEADER "A,0,%s\n", bad[i]);
        csv_refused_bytes("score", row, strlen(row), CSV_SCORES,
                          "line 2: seborrheic_keratosis is \"");
    }
}

static void test_csv_size(void) {
    const size_t size = 10 << 20; // H61
    char *text = malloc(40 << 20);
    memset(text, 'x', size);
    clock_t begin = clock();
    csv_refused_bytes("H61", text, size, CSV_TRUTH, "column \"xxxx");
    memcpy(text, HEADER, strlen(HEADER));
    csv_refused_bytes("H61 in a row", text, size, CSV_TRUTH, "line 2: has 1 of 3 values");
    size_t used = strlen(HEADER); // H62
    for (int i = 0; i < 1000000; i++) {
        used += (size_t)snprintf(text + used, 40, "I_%07ld,0.0,%d\n", i * 7919L % 1000000, i % 2);
    }
    csv_table t;
    problem p;
    CHECK(read_csv(text, used, CSV_TRUTH, &t, &p) && t.count == 1000000, "H62: %s", p.text);
    CHECK(csv_find(&t, "I_0000000") && csv_find(&t, "I_0999999"), "H62: rows are missing");
    CHECK(clock() - begin < 10 * CLOCKS_PER_SEC, "H61 and H62 took 10 s");
    csv_free(&t);
    free(text);
}

// ---- the data set -------------------------------------------------------------------------------

#define DATA   "ISIC-2017_Training_Data"
#define MASKS  "ISIC-2017_Training_Part1_GroundTruth"
#define LABELS "ISIC-2017_Training_Part3_GroundTruth.csv"

// A grey ramp, or a mask whose left half is lesion.
static void put_png(const char *path, int height, int width, bool mask) {
    unsigned char *b = malloc((size_t)(height * width));
    problem p = {0};
    for (int i = 0; i < height * width; i++) {
        b[i] = mask ? (i % width < width / 2 ? 255 : 0) : (unsigned char)(i * 7);
    }
    CHECK(image_write_png(path, b, height, width, 1, &p), "%s", p.text);
    free(b);
}

// set/ with the images A, B and C, masks of A and B, labels of A and C.
static void make_set(void) {
    remove_all(at("set"));
    CHECK(mkdir(at("set"), 0700) == 0 && mkdir(at("set/" DATA), 0700) == 0 &&
              mkdir(at("set/" MASKS), 0700) == 0,
          "no folders");
    put_png(at("set/" DATA "/A.png"), 12, 16, false);
    put_png(at("set/" DATA "/B.PNG"), 9, 9, false);
    put_png(at("set/" DATA "/C.jpg"), 20, 10, false); // content decides, not the name
    put_png(at("set/" DATA "/A_superpixels.png"), 12, 16, false);
    put_text(at("set/" DATA "/ISIC-2017_Training_Data_metadata.csv"), "image_id,age\n");
    put_png(at("set/" MASKS "/A_segmentation.png"), 12, 16, true);
    put_png(at("set/" MASKS "/B_Segmentation.png"), 9, 9, true);
    put_text(at("set/" LABELS), HEADER "C,0.0,1.0\nA,1.0,0.0\n");
}

static void open_refused(const char *what, const char *dir, const char *split, const char *text) {
    dataset d;
    problem p = {0};
    const bool ok = dataset_open(dir, split, &d, &p);
    CHECK(!ok && p.status == EXIT_USAGE && strstr(p.text, text), "%s: \"%s\" has no \"%s\"", what,
          p.text, text);
    dataset_close(&d);
}

static void test_pairing(void) {
    dataset d;
    problem p = {0};
    make_set();
    CHECK(dataset_open(at("set"), "training", &d, &p) && d.count == 3, "%zu items, %s", d.count,
          p.text);
    const dataset_item *a = dataset_find(&d, "A"), *b = dataset_find(&d, "B"),
                       *c = dataset_find(&d, "C");
    CHECK(a && a->label == DATASET_MELANOMA && a->mask && strstr(a->image, DATA "/A.png"), "A");
    CHECK(b && b->label == DATASET_NO_LABEL && b->mask && strstr(b->mask, "B_Segmentation.png"),
          "B, H46, H55");
    CHECK(c && c->label == DATASET_KERATOSIS && !c->mask, "C, H44");
    CHECK(!dataset_find(&d, "A_superpixels"), "H47: superpixels are an image");
    CHECK(d.masks == 2 && d.classes[0] == 1 && d.classes[1] == 1 && d.classes[2] == 0, "counts");
    dataset_close(&d);
    CHECK(dataset_has(at("set"), "training") && !dataset_has(at("set"), "validation") &&
              !dataset_has(at("set"), "nonsense") && !dataset_has(at("none"), "training"),
          "has");

    open_refused("other split", at("set"), "validation",
                 "Validation_Data: this split is not there, "
                 "the data set has: training");
    open_refused("unknown split", at("set"), "train", "split \"train\" is not known");
    open_refused("plain folder", at("set/" DATA), "training",
                 "is not a data set in the ISIC 2017 "
                 "layout: the folder ISIC-2017_Training_Data is not there");
    open_refused("missing", at("none"), "training", "none: does not exist");
    open_refused("file", at("set/" LABELS), "training", "is not a folder");

    put_text(at("set/" LABELS), HEADER "A,1,0\nD,0,0\n");
    open_refused("H56", at("set"), "training", "line 3: there is no image D in ISIC-2017_Training");
    put_text(at("set/" LABELS), HEADER "A,1,1\n");
    open_refused("H59", at("set"), "training", LABELS ": line 2: A is both");
    put_text(at("set/" LABELS), "image_id,age_approximate,sex\nA,55,female\n");
    open_refused("H52", at("set"), "training", "column \"age_approximate\" is not known");

    make_set();
    put_png(at("set/" DATA "/A.jpeg"), 3, 3, false);
    open_refused("H48", at("set"), "training", "A stands there twice: as A.jpeg and as A.png");
    make_set();
    put_png(at("set/" MASKS "/A_Segmentation.png"), 3, 3, false);
    open_refused("H46 both", at("set"), "training", "A stands there twice");
    make_set();
    put_png(at("set/" MASKS "/D_segmentation.png"), 3, 3, false);
    open_refused("mask without image", at("set"), "training", "there is no image D in");
    make_set();
    put_png(at("set/" DATA "/a b.png"), 3, 3, false);
    open_refused("H63 file", at("set"), "training", "a b.png: its id is not made of");
    make_set();
    remove_all(at("set/" MASKS));
    remove_all(at("set/" LABELS));
    CHECK(dataset_open(at("set"), "training", &d, &p) && d.count == 3 && d.masks == 0, "%s",
          p.text);
    dataset_close(&d);
    remove_all(at("set/" DATA));
    CHECK(mkdir(at("set/" DATA), 0700) == 0, "no folder");
    open_refused("no images", at("set"), "training", DATA ": holds no image");
}

static void test_single_class(void) { // H65
    dataset d;
    problem p = {0};
    make_set();
    put_text(at("set/" LABELS), HEADER "A,0,0\nB,0,0\nC,0,0\n");
    CHECK(dataset_open(at("set"), "training", &d, &p) && d.classes[DATASET_NEVUS] == 3 &&
              d.classes[0] == 0 && d.classes[1] == 0,
          "H65: %s", p.text);
    dataset_close(&d);
}

// ---- the cache ----------------------------------------------------------------------------------

enum { H = 10, W = 14 };

static size_t told; // steps of progress, and whether each was the next of three
static bool told_well;

static void progress(void *user, size_t done, size_t total) {
    told_well = told_well && user == &told && done == told + 1 && total == 3;
    told = done;
}

static bool open_cache(cache *c, int height, int threads, const volatile sig_atomic_t *stop,
                       problem *p) {
    dataset d;
    *p = (problem){0};
    told = 0;
    told_well = true;
    if (!dataset_open(at("set"), "training", &d, p)) {
        CHECK(false, "%s", p->text);
        *c = (cache){.file = -1};
        return false;
    }
    const cache_desc desc = {.dir = root,
                             .height = height,
                             .width = W,
                             .threads = threads,
                             .progress = progress,
                             .user = &told,
                             .stop = stop};
    const bool ok = cache_open(c, &d, &desc, p);
    // One check, however many images the threads had done when one was refused.
    CHECK(told_well, "progress up to %zu", told);
    dataset_close(&d);
    return ok;
}

static void open_and_close(const char *what, bool reused) {
    cache c;
    problem p;
    CHECK(open_cache(&c, H, 2, NULL, &p) && c.reused == reused, "%s: reused %d, %s", what, c.reused,
          p.text);
    CHECK(told == (reused ? 0 : 3), "%s: %zu steps of progress", what, told);
    cache_close(&c);
}

static const char *cache_file(void) { return at("cache-training-%dx%d.bin", H, W); }

static void test_cache_content(void) {
    float pixels[H * W * 3], again[H * W * 3];
    unsigned char mask[H * W];
    cache c, one;
    problem p;
    make_set();
    CHECK(open_cache(&c, H, 2, NULL, &p) && !c.reused && told == 3, "%s", p.text);
    CHECK(c.count == 3 && cache_read(&c, 0, pixels, mask, &p), "%s", p.text);
    for (int i = 0; i < H * W; i++) {
        CHECK(mask[i] == (i % W < W / 2), "mask pixel %d is %d", i, mask[i]);
    }
    // The first pixel of A averages bytes near 0.
    CHECK(pixels[0] > 0 && pixels[0] < 0.12f, "pixel %f", (double)pixels[0]);
    // A grey image has three equal channels, between 0 and 1.
    for (int i = 0; i < H * W; i++) {
        CHECK(pixels[3 * i] == pixels[3 * i + 1] && pixels[3 * i] <= 1, "pixel %d: %f and %f", i,
              (double)pixels[3 * i], (double)pixels[3 * i + 1]);
    }
    CHECK(cache_read(&c, 2, NULL, mask, &p) && mask[0] == 0 && mask[H * W - 1] == 0,
          "C has a mask");
    CHECK(!cache_read(&c, 3, NULL, mask, &p), "a fourth record");
    remove_all(cache_file());
    CHECK(open_cache(&one, H, 1, NULL, &p), "%s", p.text);
    for (size_t i = 0; i < 3; i++) {
        CHECK(cache_read(&c, i, pixels, NULL, &p) && cache_read(&one, i, again, NULL, &p) &&
                  memcmp(pixels, again, sizeof pixels) == 0,
              "record %zu depends on threads", i);
    }
    cache_close(&c);
    cache_close(&one);
}

static void test_cache_reuse(void) {
    make_set();
    remove_all(cache_file());
    open_and_close("first", false);
    open_and_close("second", true);
    put_png(at("set/" DATA "/A.png"), 12, 16, true); // another content, time and size
    open_and_close("changed image", false);
    open_and_close("unchanged", true);
    const struct timespec times[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    utimensat(AT_FDCWD, at("set/" MASKS "/A_segmentation.png"), times, 0);
    open_and_close("another time of a mask", false);
    remove_all(at("set/" MASKS "/B_Segmentation.png"));
    open_and_close("a mask less", false);
    cache c;
    problem p;
    CHECK(open_cache(&c, H + 1, 1, NULL, &p) && !c.reused, "another size: %s", p.text);
    cache_close(&c);
    remove_all(at("cache-training-%dx%d.bin", H + 1, W));
    CHECK(!open_cache(&c, 0, 1, NULL, &p) && strstr(p.text, "training size of 14 x 0"), "%s",
          p.text);

    struct stat info;
    CHECK(stat(cache_file(), &info) == 0, "no cache file");
    const off_t sizes[] = {0, 20, 48, info.st_size - 1, info.st_size + 1};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        CHECK(truncate(cache_file(), sizes[i]) == 0, "truncate");
        open_and_close("cut or longer", false);
    }
    remove_all(cache_file());
    mkdir(cache_file(), 0700);
    CHECK(!open_cache(&c, H, 1, NULL, &p) && p.status == EXIT_RUN && strstr(p.text, cache_file()),
          "a folder in its place: \"%s\"", p.text);
    remove_all(cache_file());
}

// Every byte of a record and of the header counts.
static void test_cache_damage(void) {
    make_set();
    open_and_close("make", false);
    cache c;
    problem p;
    const long header = 48, record = H * W * 13 + 8;
    FILE *f = fopen(cache_file(), "rb+");
    CHECK(f && open_cache(&c, H, 1, NULL, &p) && c.reused, "%s", p.text);
    for (long i = 0; f && i < record; i += 7) {
        fseek(f, header + record + i, SEEK_SET);
        const int was = fgetc(f);
        fseek(f, header + record + i, SEEK_SET);
        fputc(was ^ 0x10, f);
        fflush(f);
        p = (problem){0};
        CHECK(!cache_read(&c, 1, NULL, NULL, &p) && strstr(p.text, "record 1 is damaged"),
              "byte %ld: \"%s\"", i, p.text);
        fseek(f, header + record + i, SEEK_SET);
        fputc(was, f);
        fflush(f);
    }
    CHECK(cache_read(&c, 1, NULL, NULL, &p), "%s", p.text);
    CHECK(truncate(cache_file(), header + record + 5) == 0, "truncate");
    p = (problem){0};
    CHECK(!cache_read(&c, 1, NULL, NULL, &p) && strstr(p.text, "record 1 cannot be read"), "%s",
          p.text);
    cache_close(&c);
    if (f) {
        fclose(f);
    }
    for (long i = 0; i < header; i++) {
        open_and_close(i > 0 ? "as made" : "after the cut", i > 0);
        f = fopen(cache_file(), "rb+");
        fseek(f, i, SEEK_SET);
        const int was = fgetc(f);
        fseek(f, i, SEEK_SET);
        fputc(was ^ 0x10, f);
        fclose(f);
        open_and_close("header", false);
    }
}

static void make_refused(const char *what, int status, const char *text) {
    cache c;
    problem p;
    remove_all(cache_file());
    CHECK(!open_cache(&c, H, 2, NULL, &p) && p.status == status && strstr(p.text, text),
          "%s: \"%s\" has no \"%s\"", what, p.text, text);
    CHECK(c.file == -1 && !c.path, "%s left it open", what);
    CHECK(access(cache_file(), F_OK) != 0 &&
              access(at("cache-training-%dx%d.bin.tmp", H, W), F_OK) != 0,
          "%s left a file", what);
    cache_close(&c);
}

static void test_cache_refusals(void) {
    const int heights[] = {13, 16, 24}, widths[] = {16, 12, 32}; // H40
    make_set();
    for (int i = 0; i < 3; i++) {
        put_png(at("set/" MASKS "/A_segmentation.png"), heights[i], widths[i], true);
        make_refused("H40", EXIT_USAGE, "pixels, but its image has 16 x 12");
    }
    make_set();
    CHECK(truncate(at("set/" MASKS "/B_Segmentation.png"), 60) == 0, "truncate"); // H45
    make_refused("H45", EXIT_USAGE, "B_Segmentation.png: offset");
    make_set();
    put_text(at("set/" DATA "/C.jpg"), "no image");
    make_refused("bad image", EXIT_USAGE, "C.jpg: neither JPEG nor PNG");
    make_set();
    put_png(at("set/" MASKS "/A_segmentation.png"), 12, 16, false); // grey levels: as they are
    cache c;
    problem p;
    CHECK(open_cache(&c, H, 2, NULL, &p), "H42: %s", p.text);
    cache_close(&c);

    make_set();
    remove_all(cache_file());
    const volatile sig_atomic_t stop = 1;
    CHECK(!open_cache(&c, H, 2, &stop, &p) && p.status == EXIT_RUN &&
              strstr(p.text, "stopped after 0 of 3 images"),
          "stop: \"%s\"", p.text);
    CHECK(access(cache_file(), F_OK) != 0, "stopped, but there is a file");

    const struct rlimit small = {.rlim_cur = 3000, .rlim_max = RLIM_INFINITY};
    struct rlimit before;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    setrlimit(RLIMIT_FSIZE, &small);
    make_refused("full disk", EXIT_RUN, "cannot be written: File too large");
    setrlimit(RLIMIT_FSIZE, &before);
    static const char left_by_a_killed_process[10000];
    put(at("cache-training-%dx%d.bin.tmp", H, W), left_by_a_killed_process, 10000);
    open_and_close("stale temporary file", false);
    open_and_close("after it", true);
}

int main(void) {
    if (!mkdtemp(root)) {
        printf("no temporary folder\n");
        return 1;
    }
    test_csv_shape();
    test_csv_values();
    test_csv_scores();
    test_csv_size();
    test_pairing();
    test_single_class();
    test_cache_content();
    test_cache_reuse();
    test_cache_damage();
    test_cache_refusals();
    remove_all(root);
    CHECK(access(root, F_OK) != 0, "%s is still there", root);
    return test_close();
}
