// Metrics of ISIC 2017 and random numbers: against the official scorer, against their definitions
// written out, against the published vectors of Philox.
#define _POSIX_C_SOURCE 200809L
#define CLNET_IMPLEMENTATION
#include "clnet.h"
#include "test.h"

#include <time.h>

static bool near(double a, double b, double tolerance) {
    return isnan(a) ? isnan(b) != 0 : a == b || fabs(a - b) <= tolerance;
}

// The expected values come from isic-challenge-scoring 5.6.0 (with numpy 2.4.6, pandas 2.3.3,
// scikit-learn 1.9.1): create_binary_confusion_matrix on masks of these counts, then
// binary_jaccard, binary_threshold_jaccard(threshold=0.65), binary_dice, binary_accuracy,
// binary_sensitivity and binary_specificity; for the classes auc with weights 1 (NAN where it
// raises ValueError) and the last three. The last six rows of both tables are random, the others
// made by hand: empty and full masks, exactly 0.65, one class only, ties, all equal, 0.5 itself,
// denormal scores.
static const struct {
    int tp, fp, fn, tn;
    double expected[6]; // jaccard, threshold_jaccard, dice, accuracy, sensitivity, specificity
} masks[] = {
    {0, 0, 0, 12, {1.0, 1.0, 1.0, 1.0, 1.0, 1.0}},
    {12, 0, 0, 0, {1.0, 1.0, 1.0, 1.0, 1.0, 1.0}},
    {0, 12, 0, 0, {0.0, 0.0, 0.0, 0.0, 1.0, 0.0}},
    {0, 0, 12, 0, {0.0, 0.0, 0.0, 0.0, 0.0, 1.0}},
    {13, 0, 7, 5, {0.65, 0.65, 0.7878787878787878, 0.72, 0.65, 1.0}},
    {13, 7, 0, 0, {0.65, 0.65, 0.7878787878787878, 0.65, 1.0, 0.0}},
    {12, 3, 4, 1, {0.631578947368421, 0.0, 0.7741935483870968, 0.65, 0.75, 0.25}},
    {649, 351, 0, 9, {0.649, 0.0, 0.7871437234687689, 0.6521308225966304, 1.0, 0.025}},
    {1, 1, 1, 1, {0.3333333333333333, 0.0, 0.5, 0.5, 0.5, 0.5}},
    {0, 3, 4, 5, {0.0, 0.0, 0.0, 0.4166666666666667, 0.0, 0.625}},
    {664,
     1942,
     309,
     809,
     {0.22778730703259006, 0.0, 0.37105336686225204, 0.3955424274973147, 0.6824254881808839,
      0.2940748818611414}},
    {1334,
     99,
     149,
     1682,
     {0.843236409608091, 0.843236409608091, 0.9149519890260631, 0.9240196078431373,
      0.899527983816588, 0.9444132509825941}},
    {1098,
     193,
     749,
     1194,
     {0.538235294117647, 0.0, 0.6998087954110899, 0.7087198515769945, 0.5944775311315647,
      0.8608507570295602}},
    {119,
     1864,
     1040,
     440,
     {0.039364869335097585, 0.0, 0.07574793125397836, 0.16142073346809124, 0.10267471958584987,
      0.1909722222222222}},
    {77,
     177,
     889,
     857,
     {0.0673665791776028, 0.0, 0.12622950819672132, 0.467, 0.07971014492753623,
      0.8288201160541586}},
    {144,
     493,
     186,
     1129,
     {0.17496962332928312, 0.0, 0.29782833505687695, 0.6521516393442623, 0.43636363636363634,
      0.6960542540073983}},
};
enum { MASKS = sizeof masks / sizeof masks[0] };
static const double masks_mean[6] = {0.42530452270637914, 0.2589522756005057, 0.5076696733387764,
                                     0.5561032343120687,  0.6059487190003787, 0.5759490926348172};

static const struct {
    const char *truth;
    double scores[12];
    double expected[4]; // auc, accuracy, sensitivity, specificity
} classes[] = {
    {"0011", {0.1, 0.4, 0.35, 0.8}, {0.75, 0.75, 0.5, 1.0}},
    {"010011", {0.5, 0.5, 0.5, 0.5, 0.5, 0.5}, {0.5, 0.5, 0.0, 1.0}},
    {"000", {0.1, 0.2, 0.3}, {NAN, 1.0, 1.0, 1.0}},
    {"111", {0.7, 0.8, 0.9}, {NAN, 1.0, 1.0, 1.0}},
    {"0011", {0.0, 0.0, 1.0, 1.0}, {1.0, 1.0, 1.0, 1.0}},
    {"0011", {1.0, 1.0, 0.0, 0.0}, {0.0, 0.0, 0.0, 0.0}},
    {"1101", {0.5, 0.5000000001, 0.4999999999, 0.5}, {1.0, 0.5, 0.3333333333333333, 1.0}},
    {"1", {0.3}, {NAN, 0.0, 0.0, 1.0}},
    {"01010111",
     {0.2, 0.2, 0.2, 0.9, 0.9, 0.9, 0.9, 0.2},
     {0.6333333333333334, 0.625, 0.6, 0.6666666666666666}},
    {"1010", {1e-300, 5e-324, 0.0, 1e-10}, {0.25, 0.5, 0.0, 1.0}},
    {"011001000",
     {0.75, 0.0, 0.125, 0.375, 0.0, 0.75, 0.0, 0.375, 0.0},
     {0.5555555555555556, 0.6666666666666666, 0.3333333333333333, 0.8333333333333334}},
    {"000011111001",
     {0.625, 0.125, 0.125, 0.0, 0.375, 0.875, 0.75, 0.625, 0.875, 0.875, 0.625, 0.5},
     {0.7222222222222222, 0.5833333333333334, 0.6666666666666666, 0.5}},
    {"001100111110",
     {0.25, 0.625, 0.25, 0.875, 0.75, 0.0, 0.125, 0.625, 0.625, 0.625, 0.875, 0.875},
     {0.5428571428571428, 0.5833333333333334, 0.7142857142857143, 0.4}},
    {"001010100000",
     {0.941, 0.355, 0.611, 0.494, 0.218, 0.287, 0.738, 0.398, 0.917, 0.497, 0.166, 0.402},
     {0.5555555555555556, 0.75, 0.6666666666666666, 0.7777777777777778}},
    {"01111101100",
     {0.232, 0.233, 0.485, 0.589, 0.263, 0.004, 0.419, 0.369, 0.566, 0.953, 0.69},
     {0.3214285714285714, 0.36363636363636365, 0.2857142857142857, 0.5}},
};
enum { CLASSES = sizeof classes / sizeof classes[0] };

static void check_measures(const char *what, int row, const clnet_segmentation_metrics *m,
                           const double expected[6]) {
    const double found[6] = {m->jaccard,  m->threshold_jaccard, m->dice,
                             m->accuracy, m->sensitivity,       m->specificity};
    for (int k = 0; k < 6; k++) {
        CHECK(near(found[k], expected[k], 1e-15), "%s %d, measure %d: %.17g, expected %.17g", what,
              row, k, found[k], expected[k]);
    }
}

// Masks whose pixels fall into the four groups as often as asked; lesion is any byte above 128.
static void test_segmentation(void) {
    static unsigned char predicted[8192], truth[8192];
    clnet_segmentation_metrics scores[MASKS], mean;
    for (int row = 0; row < MASKS; row++) {
        const int sizes[4] = {masks[row].tp, masks[row].fp, masks[row].fn, masks[row].tn};
        size_t n = 0;
        for (int group = 0; group < 4; group++) {
            for (int i = 0; i < sizes[group]; i++, n++) {
                predicted[n] = (unsigned char)(group < 2 ? 129 + i % 127 : i % 129);
                truth[n] = (unsigned char)(group % 2 == 0 ? 255 - i % 127 : 128 - i % 129);
            }
        }
        clnet_segmentation_score(predicted, truth, n, &scores[row]);
        check_measures("masks", row, &scores[row], masks[row].expected);
    }
    clnet_segmentation_mean(scores, MASKS, &mean);
    check_measures("mean", 0, &mean, masks_mean);
    clnet_segmentation_mean(NULL, 0, &mean);
    CHECK(isnan(mean.jaccard) && isnan(mean.specificity), "the mean of nothing is %g",
          mean.jaccard);
}

// Straight lines between the points of the ROC curve.
static double area(const clnet_roc_point *p, size_t n) {
    double sum = 0;
    for (size_t i = 1; i < n; i++) {
        sum += (p[i].false_positive_rate - p[i - 1].false_positive_rate) *
               (p[i].true_positive_rate + p[i - 1].true_positive_rate) / 2;
    }
    return sum;
}

static void test_classification(clnet_context *ctx) {
    for (int row = 0; row < CLASSES; row++) {
        unsigned char truth[12] = {0};
        clnet_classification_metrics m;
        clnet_roc_point curve[13];
        size_t n = strlen(classes[row].truth), points = 99;
        for (size_t i = 0; i < n; i++) {
            truth[i] = classes[row].truth[i] == '1' ? (unsigned char)(i + 1) : 0;
        }
        clnet_classification_score(ctx, classes[row].scores, truth, n, &m);
        const double found[4] = {m.auc, m.accuracy, m.sensitivity, m.specificity};
        for (int k = 0; k < 4; k++) {
            CHECK(near(found[k], classes[row].expected[k], 1e-15),
                  "classes %d, measure %d: %.17g, expected %.17g", row, k, found[k],
                  classes[row].expected[k]);
        }
        clnet_roc_curve(ctx, classes[row].scores, truth, n, curve, &points);
        if (isnan(m.auc)) {
            CHECK(points == 0, "classes %d: a curve of %zu points for one class", row, points);
        } else {
            CHECK(points >= 2 && near(area(curve, points), m.auc, 1e-14),
                  "classes %d: %zu points enclose %g, not %g", row, points, area(curve, points),
                  m.auc);
            CHECK(curve[0].threshold == (double)INFINITY && curve[0].true_positive_rate == 0 &&
                      curve[points - 1].false_positive_rate == 1,
                  "classes %d: the curve does not go from (0,0) to (1,1)", row);
        }
        CHECK(clnet_context_result(ctx) == CLNET_OK, "classes %d: %s", row, clnet_error(ctx));
    }
}

// The definition: of all pairs of a positive and a negative, the share in which the positive is
// higher.
static double auc_by_pairs(const double *scores, const unsigned char *truth, size_t n) {
    double wins = 0, pairs = 0;
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < n; j++) {
            if (truth[i] && !truth[j]) {
                wins += scores[i] > scores[j] ? 1 : scores[i] == scores[j] ? 0.5 : 0;
                pairs++;
            }
        }
    }
    return wins / pairs;
}

static void test_auc_by_definition(clnet_context *ctx) {
    double scores[300];
    unsigned char truth[300];
    clnet_classification_metrics m;
    for (uint64_t round = 0; round < 20; round++) {
        size_t n = 2 + (size_t)(298 * clnet_random_uniform(1, round, 1000));
        double steps = round % 2 ? 7 : 1e9; // many ties, or none
        for (size_t i = 0; i < n; i++) {
            scores[i] = floor(steps * clnet_random_uniform(1, round, i)) - 3;
            truth[i] = i < 2 ? (unsigned char)i : clnet_random_uniform(2, round, i) < 0.2;
        }
        clnet_classification_score(ctx, scores, truth, n, &m);
        double expected = auc_by_pairs(scores, truth, n);
        CHECK(near(m.auc, expected, 1e-15), "round %d: auc %.17g, by pairs %.17g", (int)round,
              m.auc, expected);
    }
}

static void test_many_scores(clnet_context *ctx) {
    const size_t n = 300000;
    double *scores = malloc(n * sizeof *scores);
    unsigned char *truth = malloc(n);
    clnet_classification_metrics m = {0};
    for (size_t i = 0; i < n; i++) {
        truth[i] = i % 3 == 0;
        scores[i] = (double)(i / 3) + truth[i]; // every positive lies above the negatives before it
    }
    clock_t start = clock();
    clnet_classification_score(ctx, scores, truth, n, &m);
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    CHECK(m.auc > 0.5 && m.auc < 0.51, "auc %g", m.auc);
    CHECK(seconds < 2, "%zu scores took %.2f s", n, seconds);
    free(scores);
    free(truth);
}

static void *no_memory(void *user, size_t bytes) { return *(bool *)user ? NULL : malloc(bytes); }

static void give_back(void *user, void *memory) {
    (void)user;
    free(memory);
}

static void test_refusals(void) {
    bool empty = false;
    const clnet_context_desc desc = {.allocator = {no_memory, give_back, &empty}};
    clnet_context *ctx = clnet_context_create(&desc);
    const double scores[3] = {0.1, NAN, -INFINITY};
    const unsigned char truth[3] = {0, 1, 1};
    clnet_classification_metrics m;
    clnet_roc_point points[4];
    size_t used = 9;
    CHECK(clnet_classification_score(ctx, scores, truth, 3, &m) == CLNET_ERROR_ARGUMENT, "NaN");
    CHECK(strstr(clnet_error(ctx), "number 2 of 3 is NaN") != NULL, "%s", clnet_error(ctx));
    CHECK(isnan(m.auc) && isnan(m.accuracy), "measures of NaN");
    CHECK(clnet_classification_score(ctx, scores + 2, truth, 1, &m) == CLNET_ERROR_ARGUMENT,
          "the first failure stays");
    clnet_context_clear(ctx);
    CHECK(clnet_roc_curve(ctx, scores, truth, 3, points, &used) == CLNET_ERROR_ARGUMENT, "NaN");
    CHECK(used == 0, "%zu points", used);
    clnet_context_clear(ctx);
    CHECK(clnet_classification_score(ctx, NULL, NULL, 0, &m) == CLNET_OK, "no scores");
    CHECK(isnan(m.auc) && isnan(m.accuracy) && isnan(m.sensitivity), "measures of nothing");
    empty = true;
    CHECK(clnet_classification_score(ctx, scores + 2, truth, 1, &m) == CLNET_ERROR_MEMORY,
          "memory");
    empty = false;
    clnet_context_destroy(ctx);
    CHECK(clnet_classification_score(NULL, scores, truth, 1, &m) == CLNET_ERROR_MEMORY,
          "no context");
    CHECK(clnet_roc_curve(NULL, scores, truth, 1, points, &used) == CLNET_ERROR_MEMORY,
          "no context");
}

// The vectors that the authors of Philox publish with their Random123: counter, key, result.
static void test_philox(void) {
    static const uint32_t vectors[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u},
        {0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu, 0x408f276du,
         0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu},
        {0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u, 0xa4093822u, 0x299f31d0u, 0xd16cfe09u,
         0x94fdccebu, 0x5001e420u, 0x24126ea1u}};
    for (int i = 0; i < 3; i++) {
        const uint32_t *v = vectors[i];
        uint32_t out[4];
        clnet_random_bits((uint64_t)v[5] << 32 | v[4], (uint64_t)v[3] << 32 | v[2],
                          (uint64_t)v[1] << 32 | v[0], out);
        for (int k = 0; k < 4; k++) {
            CHECK(out[k] == v[6 + k], "vector %d, word %d: %08x, expected %08x", i, k,
                  (unsigned)out[k], (unsigned)v[6 + k]);
        }
    }
}

// Values from an independent implementation in Python, whose integers do not wrap.
static void test_known_numbers(void) {
    static const struct {
        uint64_t seed, stream, counter;
        double uniform, normal;
    } known[] = {
        {1, 2, 3, 0.3993987627018524, -0.05361821786110018},
        {2018, 0, 0, 0.7485170033351148, -0.6536351037719408},
        {(uint64_t)1 << 63, 7, (uint64_t)1 << 40, 0.6812940457934444, 1.2711249318939286},
    };
    static const int order0[10] = {3, 2, 4, 0, 7, 1, 5, 9, 8, 6};
    static const int order1[10] = {3, 4, 6, 2, 7, 5, 9, 8, 1, 0};
    int order[10];
    for (int i = 0; i < 3; i++) {
        double u = clnet_random_uniform(known[i].seed, known[i].stream, known[i].counter);
        double z = clnet_random_normal(known[i].seed, known[i].stream, known[i].counter);
        CHECK(u == known[i].uniform, "%d: %.17g", i, u);
        CHECK(near(z, known[i].normal, 1e-14), "%d: %.17g", i, z);
    }
    clnet_random_permutation(order, 10, 42, 0);
    CHECK(memcmp(order, order0, sizeof order) == 0, "%d %d ..", order[0], order[1]);
    clnet_random_permutation(order, 10, 42, 1);
    CHECK(memcmp(order, order1, sizeof order) == 0, "%d %d ..", order[0], order[1]);
}

// Moments, with limits of five standard errors.
static void test_distributions(void) {
    const int n = 1000000;
    double sum = 0, squares = 0, normal_sum = 0, normal_squares = 0, normal_fourth = 0, highest = 0;
    for (int i = 0; i < n; i++) {
        double u = clnet_random_uniform(2018, 5, (uint64_t)i);
        double z = clnet_random_normal(2018, 6, (uint64_t)i);
        sum += u;
        squares += u * u;
        highest = u > highest ? u : highest;
        normal_sum += z;
        normal_squares += z * z;
        normal_fourth += z * z * z * z;
    }
    double error = 5 / sqrt(n);
    CHECK(fabs(sum / n - 0.5) < error * sqrt(1.0 / 12), "mean %g", sum / n);
    CHECK(fabs(squares / n - 1.0 / 3) < error * sqrt(4.0 / 45), "square %g", squares / n);
    CHECK(highest < 1 && highest > 0.9999, "highest %.17g", highest);
    CHECK(fabs(normal_sum / n) < error, "mean %g", normal_sum / n);
    CHECK(fabs(normal_squares / n - 1) < error * sqrt(2), "variance %g", normal_squares / n);
    CHECK(fabs(normal_fourth / n - 3) < error * sqrt(96), "fourth moment %g", normal_fourth / n);
}

static void test_permutations(void) {
    int seen[5][5] = {{0}}, order[5];
    const int rounds = 20000;
    for (int round = 0; round < rounds; round++) {
        unsigned members = 0;
        clnet_random_permutation(order, 5, 9, (uint64_t)round);
        for (int i = 0; i < 5; i++) {
            members |= 1u << order[i];
            seen[i][order[i]]++;
        }
        if (members != 31) {
            CHECK(false, "round %d is no permutation", round);
        }
    }
    for (int i = 0; i < 25; i++) { // binomial with p = 1/5: five standard deviations
        int count = seen[i / 5][i % 5];
        CHECK(fabs(count - rounds / 5.0) < 5 * sqrt(rounds * 0.16), "%d at %d: %d times", i % 5,
              i / 5, count);
    }
    order[0] = 7;
    clnet_random_permutation(order, 0, 1, 1);
    CHECK(order[0] == 7, "nothing to permute, %d written", order[0]);
    clnet_random_permutation(order, 1, 1, 1);
    CHECK(order[0] == 0, "one element: %d", order[0]);
}

// With n = 3 * 2^30 one draw in four is taken again; otherwise multiples of 3 came up twice as
// often.
static void test_unbiased_draws(void) {
    const int n = 30000;
    uint64_t counter = 0;
    int by_rest[3] = {0};
    for (int i = 0; i < n; i++) {
        by_rest[clnet__random_below(3221225472u, 4, 4, &counter) % 3]++;
    }
    for (int rest = 0; rest < 3; rest++) { // five standard deviations
        CHECK(fabs(by_rest[rest] - n / 3.0) < 5 * sqrt(n * 2.0 / 9), "%d: %d", rest, by_rest[rest]);
    }
    CHECK(fabs((double)counter / n - 4.0 / 3) < 0.02, "%g draws each", (double)counter / n);
}

int main(void) {
    clnet_context *ctx = clnet_context_create(NULL);
    test_segmentation();
    test_classification(ctx);
    test_auc_by_definition(ctx);
    test_many_scores(ctx);
    test_refusals();
    test_philox();
    test_known_numbers();
    test_distributions();
    test_permutations();
    test_unbiased_draws();
    clnet_context_destroy(ctx);
    return test_close();
}
