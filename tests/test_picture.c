// The pictures of the program clnet: canvas, font, overlays, panels, plots, synthetic images and the
// report. Works in a folder of its own below TMPDIR, which it removes.
#define _XOPEN_SOURCE 700
#include "test.h"

#include "../examples/clnet/image.h"
#include "../examples/clnet/picture.h"
#include "../examples/clnet/plot.h"
#include "../examples/clnet/report.h"
#include "../examples/clnet/synth.h"
#include "../examples/clnet/wholefile.h"

#include <ftw.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

// ---- helpers ------------------------------------------------------------------------------------

static picture new_picture(int height, int width, color background) {
    picture pic;
    problem p = {0};
    CHECK(picture_create(&pic, height, width, background, &p), "%s", p.text);
    return pic;
}

static size_t byte_count(const picture *pic) {
    return (size_t)pic->height * (size_t)pic->width * 3;
}

static bool same_pixels(const picture *a, const picture *b) {
    return a->height == b->height && a->width == b->width &&
           memcmp(a->bytes, b->bytes, byte_count(a)) == 0;
}

static color color_at(const picture *pic, int y, int x) {
    const unsigned char *c = pic->bytes + ((size_t)y * (size_t)pic->width + (size_t)x) * 3;
    return (color){c[0], c[1], c[2]};
}

static bool same_color(color a, color b) { return a.r == b.r && a.g == b.g && a.b == b.b; }

static void write_text(const char *path, const char *text) {
    FILE *file = fopen(path, "wb");
    CHECK(file && fputs(text, file) >= 0 && fclose(file) == 0, "cannot write %s", path);
}

static bool is_file(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

static bool same_files(const char *a, const char *b) {
    wholefile fa, fb;
    problem p = {0};
    const bool ok = wholefile_read(a, 1 << 24, &fa, &p) && wholefile_read(b, 1 << 24, &fb, &p);
    CHECK(ok, "%s", p.text);
    const bool same = ok && fa.size == fb.size && memcmp(fa.bytes, fb.bytes, fa.size) == 0;
    if (ok) {
        wholefile_free(&fa);
        wholefile_free(&fb);
    }
    return same;
}

// ---- canvas -------------------------------------------------------------------------------------

static void test_create(void) {
    problem p = {0};
    picture pic;
    CHECK(!picture_create(&pic, 0, 5, COLOR_WHITE, &p) && p.status == EXIT_RUN, "height 0");
    CHECK(!pic.bytes, "bytes of a picture that was refused");
    CHECK(!picture_create(&pic, 5, PICTURE_MAX_SIDE + 1, COLOR_WHITE, &p), "too wide");
    CHECK(!picture_create(&pic, -1, 5, COLOR_WHITE, &p), "negative");
    pic = new_picture(3, 2, (color){1, 2, 3});
    CHECK(same_color(color_at(&pic, 2, 1), (color){1, 2, 3}), "background");
    picture_free(&pic);
}

// Everything that can be drawn, at places around, across and far beyond a picture.
static void draw_everywhere(picture *pic) {
    static const double at[] = {-1e300, -1e7, -40, -1, 0, 0.5, 3, 50, 1e7, 1e300, NAN, INFINITY};
    const int count = (int)(sizeof at / sizeof *at);
    for (int i = 0; i < count; i++) {
        for (int j = 0; j < count; j++) {
            picture_line(pic, at[i], at[j], at[j], at[(i + j) % count], 3, COLOR_GREY);
            picture_text(pic, at[i], at[j], "A\xC3\xA4~\x01", 1 + (i + j) % 3, COLOR_GREY);
        }
    }
    static const int places[] = {-2147483647 - 1, -100, -1, 0, 1, 100, 2147483647};
    for (int i = 0; i < 7; i++) {
        for (int j = 0; j < 7; j++) {
            picture_dot(pic, places[i], places[j], COLOR_GREY, 0.5);
            picture_rectangle(pic, places[i], places[j], places[6 - i], 7, COLOR_GREY, 0.5);
        }
    }
    picture_text(pic, 0, 0, "scale", NAN, COLOR_GREY);
    picture_text(pic, 0, 0, "scale", 0, COLOR_GREY);
    picture_line(pic, 0, 0, 3, 3, NAN, COLOR_GREY);
}

static void test_clipping(void) {
    static const int sizes[][2] = {{1, 1}, {1, 40}, {40, 1}, {17, 23}};
    for (int i = 0; i < 4; i++) {
        picture pic = new_picture(sizes[i][0], sizes[i][1], COLOR_WHITE);
        draw_everywhere(&pic); // the sanitizers watch the bytes around
        picture_free(&pic);
    }
    picture pic = new_picture(9, 9, COLOR_WHITE), clean = new_picture(9, 9, COLOR_WHITE);
    picture_rectangle(&pic, 9, 0, 5, 5, COLOR_BLACK, 1);
    picture_rectangle(&pic, -5, -5, 5, 50, COLOR_BLACK, 1);
    picture_line(&pic, -20, -20, -20, 40, 2, COLOR_BLACK);
    picture_text(&pic, 0, 9, "right of it", 1, COLOR_BLACK);
    CHECK(same_pixels(&pic, &clean), "something outside was drawn inside");
    picture_free(&pic);
    picture_free(&clean);
}

static void test_line(void) {
    picture pic = new_picture(21, 21, COLOR_WHITE);
    picture_line(&pic, 10, 2, 10, 18, 1, COLOR_BLACK);
    CHECK(same_color(color_at(&pic, 10, 10), COLOR_BLACK), "on a horizontal line");
    CHECK(same_color(color_at(&pic, 12, 10), COLOR_WHITE), "two pixels beside it");
    CHECK(same_color(color_at(&pic, 10, 20), COLOR_WHITE), "two pixels behind its end");
    picture_line(&pic, 2.5, 2, 2.5, 18, 1, COLOR_BLACK);
    const color above = color_at(&pic, 2, 10), below = color_at(&pic, 3, 10);
    CHECK(same_color(above, below) && above.r > 100 && above.r < 180,
          "between two rows: %d and %d, expected half of both", above.r, below.r);
    picture_free(&pic);
}

static picture draw_letter(char c) {
    const char text[2] = {c, 0};
    picture pic = new_picture(10, 6, COLOR_WHITE);
    picture_text(&pic, 0, 0, text, 1, COLOR_BLACK);
    return pic;
}

static void test_font(void) {
    CHECK(!picture_has_glyph(' ') && !picture_has_glyph('\n') && !picture_has_glyph('\x7F'),
          "ink where none is expected");
    for (char a = '!'; a <= '~'; a++) {
        CHECK(picture_has_glyph(a), "no ink for '%c'", a);
        picture first = draw_letter(a);
        for (char b = (char)(a + 1); b <= '~'; b++) {
            picture second = draw_letter(b);
            CHECK(!same_pixels(&first, &second), "'%c' looks like '%c'", a, b);
            picture_free(&second);
        }
        picture_free(&first);
    }
    CHECK(picture_text_width("abc", 2) == 34, "width %g", picture_text_width("abc", 2));
    CHECK(picture_text_width("", 2) == 0, "width of nothing");
    CHECK(picture_text_width("\xC3\xA4", 1) == 5, "two bytes of one character");
}

static void test_blit(void) {
    picture small = new_picture(2, 2, (color){0, 100, 200}), one = new_picture(1, 1, COLOR_WHITE);
    picture_dot(&small, 0, 0, (color){200, 100, 0}, 1);
    picture_blit(&one, 0, 0, 1, 1, &small);
    CHECK(same_color(color_at(&one, 0, 0), (color){50, 100, 150}), "mean of four pixels");
    picture same = new_picture(2, 2, COLOR_BLACK), large = new_picture(31, 17, COLOR_WHITE);
    picture_blit(&same, 0, 0, 2, 2, &small);
    CHECK(same_pixels(&same, &small), "resized to its own size");
    picture_blit(&large, -3, -3, 40, 30, &one);
    CHECK(same_color(color_at(&large, 30, 16), (color){50, 100, 150}), "one pixel, enlarged");
    picture_blit(&large, 40, 40, 10, 10, &small);
    picture_blit(&large, 0, 0, 0, -4, &small);
    picture_free(&small);
    picture_free(&one);
    picture_free(&same);
    picture_free(&large);
}

// ---- overlays -----------------------------------------------------------------------------------

static double luminance(color c) {
    return 0.2126 * pow(c.r / 255.0, 2.2) + 0.7152 * pow(c.g / 255.0, 2.2) +
           0.0722 * pow(c.b / 255.0, 2.2);
}

static void test_heat(void) {
    double before = -1;
    for (int i = 0; i <= 64; i++) {
        const double now = luminance(picture_heat(i / 64.0));
        CHECK(now > before, "luminance %g after %g at %d / 64", now, before, i);
        before = now;
    }
    CHECK(same_color(picture_heat(NAN), picture_heat(0)), "NaN");
    CHECK(same_color(picture_heat(-INFINITY), picture_heat(0)), "-Inf");
    CHECK(same_color(picture_heat(INFINITY), picture_heat(1)), "+Inf");
}

static picture overlay(const float *map, int height, int width) {
    picture pic = new_picture(12, 20, (color){200, 150, 120});
    picture_overlay_heat(&pic, map, height, width);
    return pic;
}

static void test_overlay_heat(void) {
    const float zero[6] = {0}, nan[6] = {NAN, NAN, NAN, NAN, NAN, NAN};
    const float negative[6] = {-1, -2, -INFINITY, -3, -1, -1}, even[6] = {3, 3, 3, 3, 3, 3};
    const float mixed[6] = {NAN, INFINITY, 3e38f, -1, 0, 1}, one[1] = {1e-30f};
    picture cold = overlay(zero, 2, 3), missing = overlay(nan, 2, 3);
    picture below = overlay(negative, 3, 2);
    picture hot = overlay(even, 2, 3), single = overlay(one, 1, 1), wild = overlay(mixed, 2, 3);
    CHECK(same_pixels(&cold, &missing), "a map of NaN is not cold");
    CHECK(same_pixels(&cold, &below), "a map of negatives is not cold");
    CHECK(same_pixels(&hot, &single), "constant maps differ");
    CHECK(!same_pixels(&hot, &cold), "a constant map is cold");
    CHECK(same_color(color_at(&hot, 0, 0), color_at(&hot, 11, 19)), "a constant map is not even");
    CHECK(!same_color(color_at(&wild, 0, 10), color_at(&wild, 11, 0)), "infinity is not hot");
    picture *all[] = {&cold, &missing, &below, &hot, &single, &wild};
    for (int i = 0; i < 6; i++) {
        picture_free(all[i]);
    }
}

static void test_overlay_mask(void) {
    enum { SIDE = 40 };
    const color back = {200, 150, 120}, ink = {0, 255, 0};
    unsigned char mask[SIDE * SIDE] = {0};
    problem p = {0};
    picture pic = new_picture(SIDE, SIDE, back), clean = new_picture(SIDE, SIDE, back);
    CHECK(picture_overlay_mask(&pic, mask, ink, &p) && same_pixels(&pic, &clean), "empty mask");
    for (int y = 10; y < 30; y++) {
        memset(mask + y * SIDE + 10, 255, 20);
    }
    CHECK(picture_overlay_mask(&pic, mask, ink, &p), "%s", p.text);
    CHECK(same_color(color_at(&pic, 2, 2), back), "outside");
    CHECK(same_color(color_at(&pic, 10, 20), ink), "on the outline");
    const color inside = color_at(&pic, 20, 20);
    CHECK(inside.g > back.g && inside.g < 200, "the tint's green is %d", inside.g);
    memset(mask, 255, sizeof mask);
    CHECK(picture_overlay_mask(&pic, mask, ink, &p), "%s", p.text);
    CHECK(same_color(color_at(&pic, 0, 20), ink), "outline of a mask that fills the picture");
    picture_free(&pic);
    picture_free(&clean);
}

static void test_panel(void) {
    problem p = {0};
    picture cells[4] = {{0}}, out;
    cells[0] = new_picture(10, 30, (color){255, 0, 0});
    cells[3] = new_picture(1, 1, (color){0, 0, 255});
    const char *const labels[] = {"first", "a label that is much wider than its cell"};
    picture_panel_desc desc = {.rows = 2,
                               .columns = 2,
                               .cells = cells,
                               .row_labels = labels,
                               .column_labels = labels,
                               .cell = 30};
    CHECK(picture_panel(&out, &desc, &p), "%s", p.text);
    bool red = false, blue = false;
    for (int y = 0; y < out.height; y++) {
        for (int x = 0; x < out.width; x++) {
            red = red || same_color(color_at(&out, y, x), (color){255, 0, 0});
            blue = blue || same_color(color_at(&out, y, x), (color){0, 0, 255});
        }
    }
    CHECK(red && blue, "a picture is missing");
    picture_free(&out);
    desc.rows = 100000;
    desc.row_labels = NULL;
    CHECK(!picture_panel(&out, &desc, &p) && p.status != 0, "too many rows");
    picture_free(&cells[0]);
    picture_free(&cells[3]);
}

// ---- plots --------------------------------------------------------------------------------------

// Pixels that are neither white nor grey: what a series left behind.
static size_t count_colored(const char *path) {
    image im;
    problem p = {0};
    size_t count = 0;
    CHECK(image_load(path, IMAGE_RGB, &im, &p), "%s", p.text);
    for (size_t i = 0; im.bytes && i < (size_t)im.height * (size_t)im.width; i++) {
        const unsigned char *c = im.bytes + 3 * i;
        count += abs(c[0] - c[2]) > 40 || abs(c[0] - c[1]) > 40;
    }
    image_free(&im);
    return count;
}

static size_t plot_text(const char *log) {
    problem p = {0};
    write_text("log.csv", log);
    CHECK(plot_log_csv("log.csv", "curves.png", &p), "%s (of %s)", p.text, log);
    return p.status == 0 ? count_colored("curves.png") : 0;
}

static void test_plot_log(void) {
    const size_t none = plot_text("epoch\n");
    CHECK(none == 0, "%zu pixels of a series that is not there", none);
    const size_t keys = plot_text("epoch,lr,loss,loss.focal,val.jaccard,seconds\n");
    CHECK(plot_text("epoch,lr,loss,loss.focal,val.jaccard,seconds") == keys, "no line feed");
    CHECK(plot_text("epoch,lr,loss,loss.focal,val.jaccard,seconds\r\n\r\n\n") == keys, "CRLF");
    const size_t one = plot_text("epoch,lr,loss,loss.focal,val.jaccard,seconds\n1,1e-4,2,0.5,,3\n");
    CHECK(one > keys, "one row left nothing");
    const size_t two = plot_text("epoch,lr,loss,loss.focal,val.jaccard,seconds\n1,1e-4,2,1,0.2,3\n"
                                 "2,1e-4,1,0.5,0.4,3\n");
    CHECK(two > one, "two rows left less than one");
    CHECK(plot_text("epoch,lr,loss,loss.focal,val.jaccard,seconds\n1,nan,,inf,-inf,3\n2\n,,,,,,,\n"
                    "x,y,z\n3,nan,nan,nan,nan,nan") == keys,
          "NaN was drawn");
    plot_text("epoch,loss,val.a\n1,1e308,-1e308\n2,-1e308,1e308\n3,1e-320,0\n");
    plot_text("epoch,loss\n1e300,1\n-1e300,2\n");
}

static void test_plot_refused(void) {
    problem p = {0};
    CHECK(!plot_log_csv("missing.csv", "x.png", &p) && strstr(p.text, "missing.csv"), "%s", p.text);
    p = (problem){0};
    write_text("none.csv", "");
    CHECK(!plot_log_csv("none.csv", "x.png", &p) && strstr(p.text, "epoch"), "%s", p.text);
    p = (problem){0};
    write_text("other.csv", "step,loss\n1,2\n");
    CHECK(!plot_log_csv("other.csv", "x.png", &p) && p.status == EXIT_USAGE, "%s", p.text);
    CHECK(!is_file("x.png"), "a picture was left behind");
    p = (problem){0};
    write_text("log.csv", "epoch,loss\n1,2\n");
    CHECK(!plot_log_csv("log.csv", "no/such/folder.png", &p) && p.status != 0, "folder is missing");
}

static void test_plot_roc(void) {
    problem p = {0};
    const double x[4] = {0, 0.1, 0.5, 1}, y[4] = {0, 0.8, NAN, 1};
    const plot_series series[2] = {{"melanoma, AUC 0.912", x, y, 4, 0}, {"empty", NULL, NULL, 0, 0}};
    CHECK(plot_roc("roc.png", series, 2, &p), "%s", p.text);
    CHECK(count_colored("roc.png") > 100, "no curve");
}

// ---- synthetic images ---------------------------------------------------------------------------

static void check_drawing(int height, int width, int label, uint64_t random) {
    const size_t pixels = (size_t)height * (size_t)width;
    unsigned char *rgb = malloc(pixels * 3), *mask = malloc(pixels);
    CHECK(rgb && mask && synth_draw(rgb, mask, height, width, label, random), "no memory");
    size_t lesion = 0, other = 0;
    double inside = 0, outside = 0;
    for (size_t i = 0; i < pixels; i++) {
        const double grey = rgb[3 * i] + rgb[3 * i + 1] + rgb[3 * i + 2];
        lesion += mask[i] == 255;
        other += mask[i] != 0 && mask[i] != 255;
        *(mask[i] ? &inside : &outside) += grey;
    }
    CHECK(other == 0, "%zu mask values are neither 0 nor 255", other);
    CHECK(lesion > pixels / 100 && lesion < pixels * 3 / 4, "lesion of %zu in %zu pixels", lesion,
          pixels);
    CHECK(outside > 0 && inside > 0, "black image");
    free(rgb);
    free(mask);
}

static void test_draw(void) {
    static const int sizes[][2] = {{64, 64}, {48, 71}, {71, 48}, {SYNTH_MIN_SIDE, SYNTH_MIN_SIDE}};
    for (int i = 0; i < 48; i++) {
        check_drawing(sizes[i % 4][0], sizes[i % 4][1], i % 3, (uint64_t)i);
    }
}

static void use_threads(int count) {
#ifdef _OPENMP
    omp_set_num_threads(count);
#else
    (void)count;
#endif
}

static bool count_progress(void *user, size_t done, size_t total) {
    size_t *calls = user;
    CHECK(done == *calls + 1 && done <= total, "image %zu of %zu after %zu", done, total, *calls);
    *calls = done;
    return true;
}

static bool stop_at_two(void *user, size_t done, size_t total) {
    (void)user;
    (void)total;
    return done < 2;
}

static void check_split(const char *split, int first, int count) {
    char path[200], name[100];
    problem p = {0};
    wholefile csv;
    int melanoma = 0, keratosis = 0;
    snprintf(path, sizeof path, "a/set/ISIC-2017_%s_Part3_GroundTruth.csv", split);
    CHECK(wholefile_read(path, 100000, &csv, &p), "%s", p.text);
    for (int i = first; i < first + count; i++) {
        image im, mask;
        snprintf(path, sizeof path, "a/set/ISIC-2017_%s_Data/ISIC_%07d.jpg", split, i);
        CHECK(image_load(path, IMAGE_RGB, &im, &p) && im.height == 40 && im.width == 52, "%s",
              p.text);
        snprintf(path, sizeof path,
                 "a/set/ISIC-2017_%s_Part1_GroundTruth/ISIC_%07d_segmentation.png", split, i);
        CHECK(image_load(path, IMAGE_MASK, &mask, &p) && mask.height == 40 && mask.width == 52,
              "%s", p.text);
        snprintf(name, sizeof name, "\nISIC_%07d,", i);
        const char *row = csv.bytes ? strstr((const char *)csv.bytes, name) : NULL;
        CHECK(row != NULL, "%s has no row", name + 1);
        melanoma += row && strncmp(row + strlen(name), "1.0,0.0\n", 8) == 0;
        keratosis += row && strncmp(row + strlen(name), "0.0,1.0\n", 8) == 0;
        image_free(&im);
        image_free(&mask);
    }
    CHECK(melanoma == count / 3 && keratosis == count / 3, "%s: %d and %d of %d", split, melanoma,
          keratosis, count);
    wholefile_free(&csv);
}

static void test_synth_layout(void) {
    const synth_desc desc = {
        .train = 9, .validation = 3, .test = 3, .height = 40, .width = 52, .seed = 7};
    problem p = {0};
    size_t calls = 0;
    use_threads(1);
    CHECK(synth_write("a/set", &desc, count_progress, &calls, &p), "%s", p.text);
    CHECK(calls == 15, "%zu calls of 15", calls);
    check_split("Training", 0, 9);
    check_split("Validation", 9, 3);
    check_split("Test_v2", 12, 3);
    CHECK(!synth_write("a/set", &desc, NULL, NULL, &p) && p.status == EXIT_USAGE,
          "written over a data set");
}

// Against the set of test_synth_layout: other threads, and another number of images.
static void test_synth_repeats(void) {
    const synth_desc desc = {.train = 6, .test = 3, .height = 40, .width = 52, .seed = 7};
    problem p = {0};
    use_threads(3);
    CHECK(synth_write("b", &desc, NULL, NULL, &p), "%s", p.text);
    CHECK(!is_file("b/ISIC-2017_Validation_Part3_GroundTruth.csv"), "a split of 0 images");
    for (int i = 0; i < 6; i++) {
        char first[200], second[200];
        snprintf(first, sizeof first, "a/set/ISIC-2017_Training_Data/ISIC_%07d.jpg", i);
        snprintf(second, sizeof second, "b/ISIC-2017_Training_Data/ISIC_%07d.jpg", i);
        CHECK(same_files(first, second), "%s differs from %s", first, second);
    }
    CHECK(same_files("a/set/ISIC-2017_Test_v2_Part1_GroundTruth/ISIC_0000012_segmentation.png",
                     "b/ISIC-2017_Test_v2_Part1_GroundTruth/ISIC_0000006_segmentation.png"),
          "the first mask of the test split depends on the number of training images");
    CHECK(!same_files("b/ISIC-2017_Training_Data/ISIC_0000000.jpg",
                      "b/ISIC-2017_Test_v2_Data/ISIC_0000006.jpg"),
          "splits share an image");
}

static void test_synth_refused(void) {
    static const synth_desc bad[] = {{.height = 64, .width = 64},
                                     {.train = 1, .height = 15, .width = 64},
                                     {.train = 1, .height = 64, .width = SYNTH_MAX_SIDE + 1},
                                     {.train = 1, .height = -5, .width = 64},
                                     {.train = (size_t)-1, .test = 2},
                                     {.train = 10000001}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        problem p = {0};
        CHECK(!synth_write("bad", &bad[i], NULL, NULL, &p) && p.status == EXIT_USAGE,
              "case %zu: %s", i, p.text);
    }
    problem p = {0};
    const synth_desc good = {.train = 6, .height = 16, .width = 16};
    CHECK(!synth_write("", &good, NULL, NULL, &p) && p.status == EXIT_USAGE, "no name");
    p = (problem){0};
    write_text("file", "in the way");
    CHECK(!synth_write("file/set", &good, NULL, NULL, &p) && p.status != 0, "below a file");
    p = (problem){0};
    CHECK(!synth_write("stopped", &good, stop_at_two, NULL, &p) && p.status == EXIT_RUN,
          "stopped: %s", p.text);
}

// ---- report -------------------------------------------------------------------------------------

static void test_report(void) {
    problem p = {0};
    wholefile html;
    report *r = report_open("report.html", "<script>alert(1)</script> & \"more\"");
    report_heading(r, "<b>");
    report_text(r, "\xC3\xA4 \xE2\x89\xA5 \xFF \xC0\xAF \xED\xA0\x80 \x01 '");
    const char *const cells[] = {"network", "JA", "resnet50+unet", "0.78", "<i>", "n/a"};
    report_table(r, cells, 3, 2, "note & more");
    report_picture_bytes(r, (const unsigned char *)"Man", 3, "</figure><script>");
    report_picture_bytes(r, (const unsigned char *)"Ma", 2, NULL);
    report_picture_bytes(r, (const unsigned char *)"M", 1, NULL);
    CHECK(!report_picture(r, "missing.png", "none", &p), "a picture that is not there");
    CHECK(!report_picture(r, "log.csv", "none", &p), "a picture that is none");
    CHECK(!is_file("report.html"), "written before it was closed");
    p = (problem){0};
    CHECK(report_picture(r, "roc.png", "ROC", &p) && report_close(r, &p), "%s", p.text);
    CHECK(wholefile_read("report.html", 1 << 24, &html, &p), "%s", p.text);
    const char *text = (const char *)html.bytes;
    CHECK(text && !strstr(text, "<script") && strstr(text, "&lt;script&gt;alert(1)"), "escaping");
    CHECK(text && !strstr(text, "<b>") && !strstr(text, "<i>"), "escaping of headings and cells");
    CHECK(text && strstr(text, "\xC3\xA4 \xE2\x89\xA5 &#65533; &#65533;&#65533; ") &&
              !strchr(text, '\x01') && !strchr(text, '\xFF'),
          "what is no character");
    CHECK(text && strstr(text, "base64,TWFu\"") && strstr(text, "base64,TWE=\"") &&
              strstr(text, "base64,TQ==\"") && strstr(text, "base64,iVBORw0KGgo"),
          "base64");
    CHECK(text && strstr(text, "<td class=\"n\">0.78</td>") && !strstr(text, "http"), "table");
    wholefile_free(&html);
}

static void test_report_refused(void) {
    problem p = {0};
    report *r = report_open("no/such/report.html", "title");
    CHECK(!report_close(r, &p) && strstr(p.text, "report.html"), "%s", p.text);
    p = (problem){0};
    report_heading(NULL, "x");
    CHECK(!report_close(NULL, &p) && p.status == EXIT_RUN, "no report: %s", p.text);
    report_discard(report_open("unwritten.html", "x"));
    CHECK(!is_file("unwritten.html"), "discarded, but written");
}

// ---- all ----------------------------------------------------------------------------------------

static int remove_entry(const char *path, const struct stat *info, int flag, struct FTW *walk) {
    (void)info;
    (void)flag;
    (void)walk;
    return remove(path);
}

int main(void) {
    const char *base = getenv("TMPDIR");
    char folder[4096];
    snprintf(folder, sizeof folder, "%s/clnet_picture_XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(folder) || chdir(folder) != 0) {
        CHECK(false, "cannot work in %s", folder);
        return test_close();
    }
    void (*const tests[])(void) = {test_create,        test_clipping,     test_line,
                                   test_font,          test_blit,         test_heat,
                                   test_overlay_heat,  test_overlay_mask, test_panel,
                                   test_plot_log,      test_plot_refused, test_plot_roc,
                                   test_draw,          test_synth_layout, test_synth_repeats,
                                   test_synth_refused, test_report,       test_report_refused};
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        tests[i]();
    }
    CHECK(chdir("/") == 0 && nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS) == 0,
          "cannot remove %s", folder);
    return test_close();
}
