#include "synth.h"

#include "disk.h"
#include "image.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// stb_image_write's JPEG writer shifts bits out of an int, which C99 leaves undefined: gcc is told
// that integers wrap here, clang that the sanitizer need not report what it defines just so.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((no_sanitize("shift"))), apply_to = function)
#pragma clang diagnostic ignored "-Wunused-function" // only the JPEG writer is used here
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC optimize("wrapv")
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#define STBI_WRITE_NO_STDIO
#include <stb/stb_image_write.h>
#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif

// ---- random numbers and noise -------------------------------------------------------------------

// The finaliser of splitmix64: every bit of x reaches every bit of the result.
static uint64_t scramble(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

typedef struct dice {
    uint64_t key, counter;
} dice;

static double uniform(dice *d, double low, double high) {
    const uint64_t bits = scramble(d->key ^ scramble(d->counter++));
    return low + (high - low) * ((double)(bits >> 11) * 0x1p-53);
}

static bool chance(dice *d, double probability) { return uniform(d, 0, 1) < probability; }

static int whole(dice *d, int low, int high) { // both included
    return low + (int)(uniform(d, 0, 1) * (high - low + 1));
}

// A value of -1..1 at a corner of the lattice of noise.
static float corner(uint32_t key, int y, int x) {
    uint32_t h = key ^ (uint32_t)y * 0x9E3779B1u ^ (uint32_t)x * 0x85EBCA77u;
    h = (h ^ (h >> 15)) * 0x2C1B3C6Du;
    h = (h ^ (h >> 12)) * 0x297A2D39u;
    h ^= h >> 15;
    return (float)(h >> 8) * (2.0f / 16777216.0f) - 1.0f;
}

static float smooth(float t) { return t * t * (3 - 2 * t); }

static float step_between(float low, float high, float v) {
    const float t = (v - low) / (high - low);
    return t <= 0 ? 0 : t >= 1 ? 1 : smooth(t);
}

static float mixed(float a, float b, float t) { return a + (b - a) * t; }

static int floor_int(float v) { // floorf is a call of the C library on plain x86-64
    const int i = (int)v;
    return i - (v < (float)i);
}

// Value noise, -1..1, one hill or valley per unit.
static float noise(uint32_t key, float y, float x) {
    const int iy = floor_int(y), ix = floor_int(x);
    const float ty = smooth(y - (float)iy), tx = smooth(x - (float)ix);
    return mixed(mixed(corner(key, iy, ix), corner(key, iy, ix + 1), tx),
                 mixed(corner(key, iy + 1, ix), corner(key, iy + 1, ix + 1), tx), ty);
}

// Octaves of noise, each twice as fine and half as strong as the one before, and turned, so that
// the lattice does not show.
static float fractal(uint32_t key, float y, float x, int octaves) {
    float sum = 0, strength = 0.6f;
    for (int i = 0; i < octaves; i++) {
        sum += strength * noise(key + (uint32_t)i * 0x9E37u, y, x);
        const float turned = 1.62f * y + 1.18f * x + 5.1f;
        x = 1.62f * x - 1.18f * y + 1.7f;
        y = turned;
        strength *= 0.5f;
    }
    return sum;
}

// Thin branching lines, 1 on their crest: where noise passes through 0.
static float ridges(uint32_t key, float y, float x, float sharpness) {
    const float r = 1 - sharpness * fabsf(fractal(key, y, x, 3));
    return r > 0 ? r : 0;
}

// Distance to the border between the cells around scattered points (0 on it, about 0.5 amid a
// cell): the meshes of a pigment network. jitter 0 gives squares, 1 the most irregular cells.
static float mesh(uint32_t key, float y, float x, float jitter) {
    const int iy = floor_int(y), ix = floor_int(x);
    float first = 9, second = 9;
    for (int i = iy - 1; i <= iy + 1; i++) {
        for (int j = ix - 1; j <= ix + 1; j++) {
            const float dy = (float)i + 0.5f + 0.5f * jitter * corner(key, i, j) - y;
            // Every second row is half a cell further, so that even cells are rather hexagons.
            const float dx =
                (float)j + ((i & 1) ? 0.75f : 0.25f) + 0.5f * jitter * corner(key + 77u, i, j) - x;
            const float distance = sqrtf(dy * dy + dx * dx);
            if (distance < first) {
                second = first;
                first = distance;
            } else if (distance < second) {
                second = distance;
            }
        }
    }
    return second - first;
}

// ---- what an image is made of -------------------------------------------------------------------
// Positions are in halves of the shorter side, from the centre of the image.

typedef struct rgb {
    float r, g, b;
} rgb;

enum { MAX_SPOTS = 28, MAX_HAIRS = 26, HAIR_PARTS = 20, MAX_BUBBLES = 7, OUTLINE_WAVES = 8 };

typedef struct spot {
    float y, x, radius, strength; // strength > 0 darkens, < 0 brightens
} spot;

typedef struct hair {
    float y[3], x[3]; // ends and control point of a quadratic curve
    float width, opacity;
    rgb ink;
} hair;

typedef struct skin {
    rgb tone;
    float redness, grain, lines, line_angle, vessels, freckles;
    float light_y, light_x, vignette; // gradient, darkening towards the corners
    float tube_y, tube_x, tube;       // the round field of view; radius 0 = none
    rgb cast;                         // gain of each channel
} skin;

typedef struct lesion {
    int label;
    float y, x, radius, aspect, cosine, sine;
    float wave_cosine[OUTLINE_WAVES], wave_sine[OUTLINE_WAVES], ragged, ragged_scale;
    float soft_low, soft_high, soft_phase; // width of the border, around the outline
    float pigment, hue, mottle, core, rim; // darkness and how it varies
    float network, network_scale, network_jitter, network_width, patchy;
    float shades, blue, red, white, blotch, blotch_y, blotch_x; // the colours of a melanoma
    float streaks, streak_count, wax, ridge, ridge_scale;
    spot spots[MAX_SPOTS];
    int spot_count;
} lesion;

typedef struct scene {
    uint32_t key; // of its noise
    skin skin;
    lesion lesion;
    hair hairs[MAX_HAIRS];
    spot bubbles[MAX_BUBBLES];
    int hair_count, bubble_count;
    bool ruler;
    float ruler_angle, ruler_offset, ruler_start, ruler_step;
    float blur, grain;
} scene;

static float draw(dice *d, double low, double high) { return (float)uniform(d, low, high); }

// ---- choosing: skin and surroundings, the same for all classes ----------------------------------

static void choose_skin(skin *s, dice *d) {
    static const rgb tones[] = {{0.93f, 0.78f, 0.73f}, {0.88f, 0.70f, 0.60f}, {0.95f, 0.66f, 0.56f},
                                {0.80f, 0.66f, 0.62f}, {0.90f, 0.80f, 0.66f}, {0.74f, 0.56f, 0.45f},
                                {0.62f, 0.45f, 0.36f}};
    const int count = (int)(sizeof tones / sizeof *tones);
    const rgb a = tones[whole(d, 0, count - 1)], b = tones[whole(d, 0, count - 1)];
    const float t = draw(d, 0, 1), bright = draw(d, 0.86, 1.06);
    s->tone = (rgb){mixed(a.r, b.r, t) * bright, mixed(a.g, b.g, t) * bright,
                    mixed(a.b, b.b, t) * bright};
    s->redness = draw(d, 0.0, 0.10);
    s->grain = draw(d, 0.02, 0.06);
    s->lines = chance(d, 0.5) ? draw(d, 0.02, 0.07) : 0;
    s->line_angle = draw(d, 0, 6.2832);
    s->vessels = chance(d, 0.25) ? draw(d, 0.05, 0.16) : 0;
    s->freckles = chance(d, 0.25) ? draw(d, 0.08, 0.30) : 0;
    s->light_y = draw(d, -0.10, 0.10);
    s->light_x = draw(d, -0.10, 0.10);
    s->vignette = draw(d, 0.0, 0.22);
    s->tube = chance(d, 0.22) ? draw(d, 1.02, 1.32) : 0;
    s->tube_y = draw(d, -0.06, 0.06);
    s->tube_x = draw(d, -0.06, 0.06);
    s->cast = (rgb){draw(d, 0.95, 1.05), draw(d, 0.96, 1.04), draw(d, 0.93, 1.07)};
}

static void choose_hairs(scene *s, dice *d) {
    s->hair_count = chance(d, 0.45) ? whole(d, 2, chance(d, 0.3) ? MAX_HAIRS : 9) : 0;
    const bool light = chance(d, 0.15);
    const float along = draw(d, 0, 6.2832), darkness = draw(d, 0.06, 0.24);
    for (int i = 0; i < s->hair_count; i++) {
        hair *h = &s->hairs[i];
        const float angle = along + draw(d, -0.7, 0.7), length = draw(d, 0.3, 1.2);
        const float y = draw(d, -1.1, 1.1), x = draw(d, -1.1, 1.1), bend = draw(d, -0.35, 0.35);
        const float dy = sinf(angle), dx = cosf(angle);
        for (int k = 0; k < 3; k++) {
            const float at = (float)(k - 1) * length, side = k == 1 ? bend : 0;
            h->y[k] = y + at * dy + side * dx;
            h->x[k] = x + at * dx - side * dy;
        }
        h->width = draw(d, 0.007, 0.019);
        h->opacity = light ? draw(d, 0.3, 0.6) : draw(d, 0.5, 0.95);
        h->ink = light ? (rgb){0.93f, 0.90f, 0.84f}
                       : (rgb){darkness * 1.25f, darkness * 0.95f, darkness * 0.8f};
    }
}

static void choose_surroundings(scene *s, dice *d) {
    choose_hairs(s, d);
    s->bubble_count = chance(d, 0.25) ? whole(d, 1, MAX_BUBBLES) : 0;
    for (int i = 0; i < s->bubble_count; i++) {
        s->bubbles[i] =
            (spot){draw(d, -1, 1), draw(d, -1, 1), draw(d, 0.03, 0.13), draw(d, 0.25, 0.7)};
    }
    s->ruler = chance(d, 0.2);
    s->ruler_angle = draw(d, 0, 6.2832);
    s->ruler_offset = draw(d, 0.72, 0.92);
    s->ruler_start = draw(d, -0.9, -0.3);
    s->ruler_step = draw(d, 0.05, 0.09);
    s->blur = draw(d, 0, 0.8);
    s->grain = draw(d, 0.004, 0.02);
}

// ---- choosing: the lesion -----------------------------------------------------------------------

// A place inside the outline, in the lesion's own units (1 is the border), up to `reach` from its
// centre; uniform over the area.
static spot spot_inside(dice *d, float reach, double radius_low, double radius_high) {
    const float angle = draw(d, 0, 6.2832), r = reach * sqrtf(draw(d, 0, 1));
    return (spot){r * sinf(angle), r * cosf(angle), draw(d, radius_low, radius_high), 0};
}

static void add_spots(lesion *l, dice *d, int count, float reach, double radius_low,
                      double radius_high, double strength_low, double strength_high) {
    for (int i = 0; i < count && l->spot_count < MAX_SPOTS; i++) {
        spot s = spot_inside(d, reach, radius_low, radius_high);
        s.strength = draw(d, strength_low, strength_high);
        l->spots[l->spot_count++] = s;
    }
}

// What all classes share, from the same ranges.
static void choose_common(lesion *l, dice *d) {
    const float angle = draw(d, 0, 6.2832);
    l->radius = draw(d, 0.34, 0.72);
    l->aspect = draw(d, 0.72, 1.0);
    l->cosine = cosf(angle);
    l->sine = sinf(angle);
    l->y = draw(d, -0.75, 0.75) * (0.95f - l->radius);
    l->x = draw(d, -0.75, 0.75) * (0.95f - l->radius);
    l->pigment = draw(d, 0.5, 1.6);
    l->hue = draw(d, -0.22, 0.22);
    l->soft_phase = draw(d, 0, 6.2832);
    add_spots(l, d, chance(d, 0.15) ? whole(d, 1, 3) : 0, 0.8f, 0.022, 0.05, -0.7, -0.3);
    l->blotch_y = draw(d, -0.55, 0.55);
    l->blotch_x = draw(d, -0.55, 0.55);
}

// Amplitudes of the outline's waves; the k-th has k + 2 periods around it.
static void choose_outline(lesion *l, dice *d, double low, double high) {
    const float amount = draw(d, low, high);
    for (int k = 0; k < OUTLINE_WAVES; k++) {
        const float wave = amount * draw(d, 0.3, 1) / (1 + 0.45f * (float)k);
        const float phase = draw(d, 0, 6.2832);
        l->wave_cosine[k] = wave * cosf(phase);
        l->wave_sine[k] = wave * sinf(phase);
    }
}

static void choose_melanoma(lesion *l, dice *d) {
    const double signs = chance(d, 0.2) ? 0.45 : 1; // early ones show less
    choose_outline(l, d, 0.06 * signs, 0.16 * signs);
    l->ragged = draw(d, 0.10, 0.26) * (float)signs;
    l->ragged_scale = draw(d, 2.2, 4.5);
    l->soft_low = draw(d, 0.03, 0.07);
    l->soft_high = draw(d, 0.08, 0.20);
    l->mottle = draw(d, 0.25, 0.55);
    l->core = draw(d, -0.2, 0.3);
    l->shades = draw(d, 0.5, 1.0) * (float)signs;
    l->blue = chance(d, 0.55) ? draw(d, 0.35, 0.85) * (float)signs : 0;
    l->red = chance(d, 0.4) ? draw(d, 0.3, 0.7) * (float)signs : 0;
    l->white = chance(d, 0.35) ? draw(d, 0.3, 0.7) * (float)signs : 0;
    l->blotch = chance(d, 0.7) ? draw(d, 0.4, 1.1) * (float)signs : 0;
    l->network = chance(d, 0.65) ? draw(d, 0.3, 0.75) : 0;
    l->network_scale = draw(d, 0.085, 0.15);
    l->network_jitter = draw(d, 0.75, 1.0);
    l->network_width = draw(d, 0.25, 0.45);
    l->patchy = 1;
    l->streaks = chance(d, 0.5) ? draw(d, 0.25, 0.7) * (float)signs : 0;
    l->streak_count = (float)whole(d, 14, 26);
    add_spots(l, d, chance(d, 0.6) ? whole(d, 3, 12) : 0, 0.95f, 0.03, 0.09, 0.3, 0.9);
}

static void choose_keratosis(lesion *l, dice *d) {
    const double signs = chance(d, 0.2) ? 0.5 : 1;
    choose_outline(l, d, 0.02, 0.10);
    l->ragged = draw(d, 0.02, 0.09);
    l->ragged_scale = draw(d, 3, 6);
    l->soft_low = l->soft_high = draw(d, 0.012, 0.05) / (float)signs;
    l->mottle = draw(d, 0.15, 0.45);
    l->core = draw(d, -0.25, 0.2);
    l->rim = draw(d, 0, 0.4) * (float)signs;
    l->blue = chance(d, 0.12) ? draw(d, 0.2, 0.5) : 0;
    l->wax = draw(d, 0.15, 0.55) * (float)signs;
    l->ridge = chance(d, 0.6) ? draw(d, 0.25, 0.7) * (float)signs : 0;
    l->ridge_scale = draw(d, 2.5, 5);
    l->patchy = 0.3f;
    const int cysts = chance(d, 0.75) ? whole(d, 3, 16) : 0, openings = whole(d, 2, 12);
    add_spots(l, d, signs < 1 ? cysts / 3 : cysts, 0.85f, 0.022, 0.055, -0.8, -0.3);
    add_spots(l, d, signs < 1 ? openings / 3 : openings, 0.88f, 0.03, 0.08, 0.4, 1.1);
}

static void choose_nevus(lesion *l, dice *d) {
    const double signs = chance(d, 0.2) ? 1.9 : 1; // atypical ones are less even
    choose_outline(l, d, 0.01, 0.045 * signs);
    l->ragged = draw(d, 0.01, 0.06) * (float)signs;
    l->ragged_scale = draw(d, 2, 4);
    l->soft_low = draw(d, 0.05, 0.11);
    l->soft_high = l->soft_low + draw(d, 0.02, 0.10);
    l->mottle = draw(d, 0.10, 0.24) * (float)signs;
    l->core = draw(d, -0.3, 0.45);
    l->shades = signs > 1 ? draw(d, 0.1, 0.35) : 0;
    const int kind = whole(d, 0, 3); // network twice as often as globules or none
    l->network = kind <= 1 ? draw(d, 0.25, 0.6) : 0;
    l->network_scale = draw(d, 0.07, 0.115);
    l->network_jitter = draw(d, 0.35, 0.65);
    l->network_width = draw(d, 0.28, 0.42);
    l->patchy = 0.15f;
    add_spots(l, d, kind == 2 ? whole(d, 10, 24) : 0, 0.85f, 0.045, 0.07, 0.25, 0.5);
}

static void choose_scene(scene *s, int label, uint64_t random) {
    static void (*const choose[])(lesion *, dice *) = {choose_melanoma, choose_keratosis,
                                                       choose_nevus};
    dice d = {scramble(random), 0};
    memset(s, 0, sizeof *s);
    s->key = (uint32_t)scramble(random ^ 0x5EEDu);
    s->lesion.label = label;
    choose_skin(&s->skin, &d);
    choose_surroundings(s, &d);
    choose_common(&s->lesion, &d);
    choose[label](&s->lesion, &d);
}

// ---- drawing: skin ------------------------------------------------------------------------------

static rgb scaled(rgb c, float f) { return (rgb){c.r * f, c.g * f, c.b * f}; }

static rgb blend(rgb a, rgb b, float t) {
    return (rgb){mixed(a.r, b.r, t), mixed(a.g, b.g, t), mixed(a.b, b.b, t)};
}

// Light that has passed melanin: blue is absorbed most, red least, so little of it looks tan, more
// brown, much black. A positive hue is more red, a negative one greyer.
static rgb absorb(rgb c, float melanin, float hue) {
    return (rgb){c.r * expf(-melanin * (0.55f - 0.6f * hue)), c.g * expf(-melanin * 1.0f),
                 c.b * expf(-melanin * (1.38f + 0.5f * hue))};
}

static rgb skin_at(const scene *s, float y, float x) {
    const skin *k = &s->skin;
    rgb c = scaled(k->tone, 1 + k->grain * fractal(s->key + 1, 9 * y, 9 * x, 4) +
                                0.05f * noise(s->key + 2, 1.3f * y, 1.3f * x));
    const float flush = k->redness * (0.5f + noise(s->key + 3, 2.2f * y, 2.2f * x));
    c = (rgb){c.r, c.g * (1 - flush), c.b * (1 - 0.8f * flush)};
    if (k->lines > 0) {
        const float along = cosf(k->line_angle), across = sinf(k->line_angle);
        const float v = along * y - across * x, u = across * y + along * x;
        const float patch = step_between(-0.6f, 0.6f, noise(s->key + 7, 1.6f * y, 1.6f * x));
        c = scaled(c, 1 - k->lines * patch * ridges(s->key + 4, 13 * v, 3.5f * u, 2.5f));
    }
    if (k->vessels > 0) {
        const float patch = step_between(-0.2f, 0.6f, noise(s->key + 8, 2 * y, 2 * x));
        const float v = k->vessels * patch * ridges(s->key + 5, 2.4f * y, 2.4f * x, 8);
        c = (rgb){c.r * (1 - 0.2f * v), c.g * (1 - v), c.b * (1 - 0.8f * v)};
    }
    if (k->freckles > 0) {
        const float f = step_between(0.28f, 0.75f, fractal(s->key + 6, 4.5f * y, 4.5f * x, 3));
        c = absorb(c, k->freckles * f, 0.1f);
    }
    return c;
}

// ---- drawing: lesion ----------------------------------------------------------------------------

typedef struct place {
    float y, x;  // in the image
    float v, u;  // in the lesion's axes, 1 at the border of its ellipse
    float angle; // around its centre
    float depth; // 0 on the outline, 1 a radius inside, negative outside
} place;

#define FARTHEST 2.2f // radii; no outline and no soft border comes so far

static place find_place(const scene *s, float y, float x) {
    const lesion *l = &s->lesion;
    const float dy = y - l->y, dx = x - l->x;
    place p = {.y = y, .x = x};
    p.v = (l->cosine * dy - l->sine * dx) / (l->radius * l->aspect);
    p.u = (l->sine * dy + l->cosine * dx) / l->radius;
    const float r = sqrtf(p.v * p.v + p.u * p.u) + 1e-6f;
    p.depth = 1 - r;
    if (r > FARTHEST) {
        return p;
    }
    p.angle = atan2f(p.v, p.u);
    // cos and sin of (k + 2) times the angle, by turning (cos, sin) on by the angle.
    const float cosine = p.u / r, sine = p.v / r;
    float c = cosine, t = sine;
    for (int k = 0; k < OUTLINE_WAVES; k++) {
        const float turned = c * cosine - t * sine;
        t = t * cosine + c * sine;
        c = turned;
        p.depth += l->wave_cosine[k] * c - l->wave_sine[k] * t;
    }
    p.depth += l->ragged * fractal(s->key + 10, l->ragged_scale * p.v, l->ragged_scale * p.u, 4);
    return p;
}

// How much of the lesion's colour covers the skin: 1/2 on the outline.
static float cover(const lesion *l, const place *p) {
    const float around = 0.5f + 0.5f * cosf(p->angle + l->soft_phase);
    const float width = mixed(l->soft_low, l->soft_high, around);
    return step_between(-width, width, p->depth);
}

// Dots, cysts and openings: adds up what they darken and brighten.
static void add_up_spots(const lesion *l, const place *p, float *dark, float *bright) {
    for (int i = 0; i < l->spot_count; i++) {
        const spot *s = &l->spots[i];
        // Their sizes are those of the image, not of the lesion.
        const float dy = (p->v - s->y) * l->radius, dx = (p->u - s->x) * l->radius;
        const float t = (dy * dy + dx * dx) / (s->radius * s->radius);
        if (t < 1) {
            const float ink = s->strength * step_between(1, 0.1f, t);
            *dark += ink > 0 ? ink : 0;
            *bright -= ink < 0 ? ink : 0;
        }
    }
}

static float network_at(const scene *s, const place *p) {
    const lesion *l = &s->lesion;
    const float warp = 0.35f + 0.5f * l->patchy;
    const float y = p->y / l->network_scale + warp * noise(s->key + 20, 5 * p->y, 5 * p->x);
    const float x = p->x / l->network_scale + warp * noise(s->key + 21, 5 * p->y, 5 * p->x);
    const float line = 1 - mesh(s->key + 22, y, x, l->network_jitter) / l->network_width;
    const float patch = 0.5f + noise(s->key + 23, 2.4f * p->v, 2.4f * p->u);
    const float strength = mixed(1, step_between(0.2f, 0.7f, patch), l->patchy);
    const float fade = step_between(-0.05f, 0.4f, p->depth);
    return line > 0 ? smooth(line) * l->network * strength * fade : 0;
}

// Spokes that leave the rim, in some sectors only.
static float streaks_at(const scene *s, const place *p) {
    const lesion *l = &s->lesion;
    const float sector = noise(s->key + 30, 2 * p->v, 2 * p->u);
    const float spoke = 0.5f + 0.5f * cosf(l->streak_count * p->angle + 3 * sector);
    const float rim = step_between(0.35f, 0.05f, p->depth);
    return l->streaks * rim * step_between(0.6f, 0.95f, spoke) * step_between(-0.1f, 0.25f, sector);
}

// Melanin at a place inside: general darkness and all structures that are brown.
static float melanin_at(const scene *s, const place *p) {
    const lesion *l = &s->lesion;
    const float middle = step_between(0, 1, p->depth);
    float m = 1 + l->core * (2 * middle - 1);
    m += l->mottle * fractal(s->key + 40, 3 * p->v, 3 * p->u, 4);
    if (l->shades > 0) { // regions of clearly different darkness
        m += 0.75f * l->shades *
                 step_between(-0.15f, 0.15f, noise(s->key + 41, 1.7f * p->v, 1.7f * p->u)) -
             0.3f * l->shades;
    }
    if (l->blotch > 0) {
        const float r = hypotf(p->v - l->blotch_y, p->u - l->blotch_x);
        m += l->blotch *
             step_between(0.55f, 0.25f, r + 0.25f * noise(s->key + 42, 4 * p->v, 4 * p->u));
    }
    m += l->rim * step_between(0.16f, 0.02f, p->depth);
    m += l->ridge > 0
             ? l->ridge *
                   (ridges(s->key + 43, l->ridge_scale * p->v, l->ridge_scale * p->u, 5) - 0.3f)
             : 0;
    m += l->network > 0 ? network_at(s, p) - 0.2f * l->network : 0;
    m += l->streaks > 0 ? streaks_at(s, p) : 0;
    return m > 0.12f ? m : 0.12f;
}

// Part of a lesion in which one of a melanoma's further colours lies.
static float region(const scene *s, const place *p, uint32_t which) {
    const float n = fractal(s->key + 50 + which, 1.8f * p->v + 3, 1.8f * p->u + 7, 3);
    return step_between(0.02f, 0.45f, n) * step_between(0, 0.3f, p->depth);
}

static rgb lesion_at(const scene *s, const place *p, rgb below) {
    const lesion *l = &s->lesion;
    float dark = 0, bright = 0;
    add_up_spots(l, p, &dark, &bright);
    rgb c = absorb(below, l->pigment * melanin_at(s, p) + dark, l->hue);
    const float level = (below.r + below.g + below.b) / 3;
    if (l->red > 0) {
        c = blend(c, (rgb){0.85f * level, 0.42f * level, 0.42f * level}, l->red * region(s, p, 0));
    }
    if (l->white > 0) {
        c = blend(c, scaled((rgb){1.08f, 1.0f, 0.98f}, level), l->white * region(s, p, 40));
    }
    if (l->blue > 0) {
        c = blend(c, (rgb){0.44f * level, 0.50f * level, 0.60f * level},
                  l->blue * region(s, p, 80));
    }
    if (l->wax > 0) { // a dull shine that hides some of the brown
        const float shine = 0.5f + 0.7f * noise(s->key + 60, 2.5f * p->v, 2.5f * p->u);
        c = blend(c, scaled((rgb){0.80f, 0.72f, 0.62f}, level), 0.6f * l->wax * shine);
    }
    return blend(c, scaled((rgb){1.12f, 1.05f, 0.90f}, level), bright > 0.9f ? 0.9f : bright);
}

// ---- drawing: what lies above -------------------------------------------------------------------

typedef struct canvas {
    rgb *pixels; // (height, width)
    int height, width;
    float half; // pixels per unit: half of the shorter side
} canvas;

static float unit_y(const canvas *c, float row) {
    return (row + 0.5f - 0.5f * (float)c->height) / c->half;
}

static float unit_x(const canvas *c, float column) {
    return (column + 0.5f - 0.5f * (float)c->width) / c->half;
}

static int clip(float v, int count) { return !(v > 0) ? 0 : v < (float)count ? (int)v : count; }

// A thin line between two places, anti-aliased; finer than a pixel it becomes fainter instead.
static void paint_line(canvas *c, const float y[2], const float x[2], float width, float opacity,
                       rgb ink) {
    const float h = c->half, y0 = 0.5f * (float)c->height + y[0] * h - 0.5f;
    const float x0 = 0.5f * (float)c->width + x[0] * h - 0.5f;
    const float dy = (y[1] - y[0]) * h, dx = (x[1] - x[0]) * h, length2 = dy * dy + dx * dx + 1e-9f;
    const float radius = fmaxf(0.5f * width * h, 0.35f), reach = radius + 1;
    const float alpha = opacity * fminf(1, 0.5f * width * h / 0.35f);
    const int y_end = clip(fmaxf(y0, y0 + dy) + reach + 1, c->height);
    const int x_end = clip(fmaxf(x0, x0 + dx) + reach + 1, c->width);
    for (int i = clip(fminf(y0, y0 + dy) - reach, c->height); i < y_end; i++) {
        for (int j = clip(fminf(x0, x0 + dx) - reach, c->width); j < x_end; j++) {
            const float v = (float)i - y0, u = (float)j - x0, t = (v * dy + u * dx) / length2;
            if (t >= 0 && t < 1) { // half open, so that parts of a curve do not overlap
                const float away = hypotf(v - t * dy, u - t * dx);
                const float share = fminf(fmaxf(radius + 0.5f - away, 0), 1);
                rgb *pixel = &c->pixels[(size_t)i * (size_t)c->width + (size_t)j];
                *pixel = blend(*pixel, ink, alpha * share);
            }
        }
    }
}

static void paint_hair(canvas *c, const hair *h) {
    float y[2] = {h->y[0], 0}, x[2] = {h->x[0], 0};
    for (int k = 1; k <= HAIR_PARTS; k++) {
        const float t = (float)k / HAIR_PARTS, a = (1 - t) * (1 - t), b = 2 * t * (1 - t);
        y[1] = a * h->y[0] + b * h->y[1] + t * t * h->y[2];
        x[1] = a * h->x[0] + b * h->x[1] + t * t * h->x[2];
        paint_line(c, y, x, h->width * (1 - 0.5f * t), h->opacity, h->ink); // thinner at its tip
        y[0] = y[1];
        x[0] = x[1];
    }
}

// A scale near the edge of the image: a line, a mark each step, every fifth longer.
static void paint_ruler(canvas *c, const scene *s) {
    const rgb ink = {0.16f, 0.13f, 0.13f};
    const float cosine = cosf(s->ruler_angle), sine = sinf(s->ruler_angle);
    for (int k = 0; k <= 10; k++) {
        const float at = s->ruler_start + (float)k * s->ruler_step;
        const float mark = k % 5 == 0 ? 0.07f : 0.04f, next = at + (k < 10 ? s->ruler_step : 0);
        const float top = s->ruler_offset, low = s->ruler_offset - mark;
        paint_line(c, (float[2]){sine * at + cosine * top, sine * at + cosine * low},
                   (float[2]){cosine * at - sine * top, cosine * at - sine * low}, 0.012f, 0.8f,
                   ink);
        paint_line(c, (float[2]){sine * at + cosine * top, sine * next + cosine * top},
                   (float[2]){cosine * at - sine * top, cosine * next - sine * top}, 0.012f, 0.8f,
                   ink);
    }
}

// An air bubble in the gel: a bright ring, a little darker within, a glint at its upper left.
static void paint_bubble(canvas *c, const spot *b) {
    const float h = c->half, middle_y = 0.5f * (float)c->height + b->y * h - 0.5f;
    const float middle_x = 0.5f * (float)c->width + b->x * h - 0.5f, radius = b->radius * h;
    const int y_end = clip(middle_y + radius + 2, c->height);
    const int x_end = clip(middle_x + radius + 2, c->width);
    for (int i = clip(middle_y - radius - 1, c->height); i < y_end; i++) {
        for (int j = clip(middle_x - radius - 1, c->width); j < x_end; j++) {
            rgb *pixel = &c->pixels[(size_t)i * (size_t)c->width + (size_t)j];
            const float v = ((float)i - middle_y) / radius, u = ((float)j - middle_x) / radius;
            const float r = hypotf(v, u), ring = 1 - fabsf(r - 0.9f) / fmaxf(0.1f, 0.8f / radius);
            const float lit = 0.55f - 0.45f * (v + u) / fmaxf(r, 0.3f) * 0.7f;
            const float glint = step_between(0.25f, 0.1f, hypotf(v + 0.45f, u + 0.4f));
            *pixel = scaled(*pixel, r < 0.85f ? 1 - 0.06f * b->strength : 1);
            *pixel = blend(*pixel, (rgb){0.98f, 0.97f, 0.97f},
                           b->strength * fminf(1, fmaxf(ring, 0) * lit + glint));
        }
    }
}

static rgb lit(const scene *s, float y, float x, rgb c) {
    const skin *k = &s->skin;
    const float r2 = y * y + x * x;
    float light = (1 + k->light_y * y + k->light_x * x) * (1 - k->vignette * fminf(r2, 2) * 0.6f);
    if (k->tube > 0) {
        const float r = hypotf(y - k->tube_y, x - k->tube_x);
        light *= mixed(0.05f, 1, step_between(k->tube + 0.04f, k->tube - 0.04f, r));
    }
    return (rgb){c.r * k->cast.r * light, c.g * k->cast.g * light, c.b * k->cast.b * light};
}

// ---- drawing: the whole -------------------------------------------------------------------------

static void paint_lesion(canvas *c, unsigned char *mask, const scene *s) {
    for (int i = 0; i < c->height; i++) {
        for (int j = 0; j < c->width; j++) {
            const float y = unit_y(c, (float)i), x = unit_x(c, (float)j);
            const size_t at = (size_t)i * (size_t)c->width + (size_t)j;
            const place p = find_place(s, y, x);
            const float share = cover(&s->lesion, &p);
            rgb color = skin_at(s, y, x);
            if (share > 0) {
                color = blend(color, lesion_at(s, &p, color), share);
            }
            c->pixels[at] = color;
            mask[at] = share >= 0.4f ? 255 : 0; // outlines are drawn rather around a lesion
        }
    }
}

// Mixes each pixel with the two beside it along an axis; distance is in pixels of the array.
static void soften(rgb *line, int count, size_t distance, float amount) {
    rgb before = line[0];
    for (int i = 0; i < count; i++) {
        rgb *at = line + (size_t)i * distance;
        const rgb here = *at, after = i + 1 < count ? at[distance] : here;
        *at = blend(here, blend(before, after, 0.5f), amount);
        before = here;
    }
}

static void paint_blur(canvas *c, float amount) {
    for (int i = 0; i < c->height; i++) {
        soften(c->pixels + (size_t)i * (size_t)c->width, c->width, 1, amount * 0.6f);
    }
    for (int j = 0; j < c->width; j++) {
        soften(c->pixels + j, c->height, (size_t)c->width, amount * 0.6f);
    }
}

static unsigned char to_byte(float v) {
    return (unsigned char)(fminf(fmaxf(v, 0), 1) * 255 + 0.5f);
}

// Light, the grain of the sensor, bytes.
static void develop(const canvas *c, const scene *s, unsigned char *out) {
    for (int i = 0; i < c->height; i++) {
        for (int j = 0; j < c->width; j++) {
            const size_t at = (size_t)i * (size_t)c->width + (size_t)j;
            const rgb color = lit(s, unit_y(c, (float)i), unit_x(c, (float)j), c->pixels[at]);
            const float grey = s->grain * corner(s->key + 90, i, j);
            out[3 * at] = to_byte(color.r + grey + 0.4f * s->grain * corner(s->key + 91, i, j));
            out[3 * at + 1] = to_byte(color.g + grey);
            out[3 * at + 2] = to_byte(color.b + grey + 0.4f * s->grain * corner(s->key + 92, i, j));
        }
    }
}

bool synth_draw(unsigned char *rgb_out, unsigned char *mask, int height, int width, int label,
                uint64_t random) {
    const float half = 0.5f * (float)(height < width ? height : width);
    canvas c = {malloc((size_t)height * (size_t)width * sizeof(rgb)), height, width, half};
    if (!c.pixels) {
        return false;
    }
    scene s;
    choose_scene(&s, label, random);
    paint_lesion(&c, mask, &s);
    for (int i = 0; i < s.hair_count; i++) {
        paint_hair(&c, &s.hairs[i]);
    }
    if (s.ruler) {
        paint_ruler(&c, &s);
    }
    for (int i = 0; i < s.bubble_count; i++) {
        paint_bubble(&c, &s.bubbles[i]);
    }
    paint_blur(&c, s.blur);
    develop(&c, &s, rgb_out);
    free(c.pixels);
    return true;
}

// ---- writing ------------------------------------------------------------------------------------

enum { SYNTH_DIR = 3800, SYNTH_PATH = 4096, JPEG_QUALITY = 92 };
enum { SYNTH_MAX_COUNT = 10000000 }; // ids have seven digits

static const char *const split_names[] = {"Training", "Validation", "Test_v2"};
enum { SPLITS = 3 };

static uint64_t image_random(uint64_t seed, int split, size_t index) {
    return scramble(scramble(seed ^ scramble((uint64_t)split + 1)) ^ (uint64_t)index);
}

// The index-th image of a split: one of the six orders of the classes for each three images.
static int image_label(uint64_t seed, int split, size_t index) {
    static const unsigned char orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                               {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    const uint64_t group = image_random(~seed, split, index / 3);
    return orders[(group >> 32) % 6][index % 3];
}

typedef struct jpeg {
    unsigned char *bytes;
    size_t size, capacity;
    bool failed;
} jpeg;

static void collect_jpeg(void *context, void *data, int size) {
    jpeg *j = context;
    if (j->size + (size_t)size > j->capacity && !j->failed) {
        const size_t capacity = 2 * (j->size + (size_t)size) + 4096;
        unsigned char *grown = realloc(j->bytes, capacity);
        j->failed = !grown;
        j->bytes = grown ? grown : j->bytes;
        j->capacity = grown ? capacity : j->capacity;
    }
    if (!j->failed) {
        memcpy(j->bytes + j->size, data, (size_t)size);
        j->size += (size_t)size;
    }
}

static bool write_jpeg(const char *path, const unsigned char *bytes, int height, int width,
                       problem *p) {
    jpeg j = {0};
    const int ok = stbi_write_jpg_to_func(collect_jpeg, &j, width, height, 3, bytes, JPEG_QUALITY);
    const bool done = ok && !j.failed ? disk_write(path, j.bytes, j.size, p)
                                      : problem_run(p, "%s: no memory to write it", path);
    free(j.bytes);
    return done;
}

static bool write_pair(const char *dir, int split, size_t id, const unsigned char *bytes,
                       const unsigned char *mask, const synth_desc *desc, problem *p) {
    char path[SYNTH_PATH];
    snprintf(path, sizeof path, "%s/ISIC-2017_%s_Data/ISIC_%07zu.jpg", dir, split_names[split], id);
    if (!write_jpeg(path, bytes, desc->height, desc->width, p)) {
        return false;
    }
    snprintf(path, sizeof path, "%s/ISIC-2017_%s_Part1_GroundTruth/ISIC_%07zu_segmentation.png",
             dir, split_names[split], id);
    return image_write_png(path, mask, desc->height, desc->width, 1, p);
}

static bool write_image(const char *dir, int split, size_t index, size_t id, const synth_desc *desc,
                        problem *p) {
    const size_t pixels = (size_t)desc->height * (size_t)desc->width;
    unsigned char *bytes = malloc(pixels * 4), *mask = bytes ? bytes + pixels * 3 : NULL;
    const int label = image_label(desc->seed, split, index);
    bool ok = bytes && synth_draw(bytes, mask, desc->height, desc->width, label,
                                  image_random(desc->seed, split, index));
    ok = ok ? write_pair(dir, split, id, bytes, mask, desc, p)
            : problem_run(p, "no memory to draw %d x %d pixels", desc->width, desc->height);
    free(bytes);
    return ok;
}

static size_t split_count(const synth_desc *desc, int split) {
    return split == 0 ? desc->train : split == 1 ? desc->validation : desc->test;
}

static bool write_labels(const char *dir, int split, size_t first_id, const synth_desc *desc,
                         problem *p) {
    enum { ROW = 40 }; // bytes that a row takes at most
    const size_t count = split_count(desc, split), capacity = (count + 2) * ROW;
    char *text = malloc(capacity), path[SYNTH_PATH];
    if (!text) {
        return problem_run(p, "no memory for the labels of %zu images", count);
    }
    size_t size = (size_t)snprintf(text, capacity, "image_id,melanoma,seborrheic_keratosis\n");
    for (size_t i = 0; i < count; i++) {
        const int label = image_label(desc->seed, split, i);
        size += (size_t)snprintf(text + size, capacity - size, "ISIC_%07zu,%d.0,%d.0\n",
                                 first_id + i, label == SYNTH_MELANOMA, label == SYNTH_KERATOSIS);
    }
    snprintf(path, sizeof path, "%s/ISIC-2017_%s_Part3_GroundTruth.csv", dir, split_names[split]);
    const bool ok = disk_write(path, text, size, p);
    free(text);
    return ok;
}

// What is there may be a real data set: nothing is written over it.
static bool refuse_existing(const char *dir, problem *p) {
    static const char *const kinds[] = {"Data", "Part1_GroundTruth", "Part3_GroundTruth.csv"};
    for (int i = 0; i < SPLITS * 3; i++) {
        char path[SYNTH_PATH];
        snprintf(path, sizeof path, "%s/ISIC-2017_%s_%s", dir, split_names[i / 3], kinds[i % 3]);
        if (disk_exists(path)) {
            return problem_input(p, "%s: is there already, expected a folder without a data set",
                                 path);
        }
    }
    return true;
}

static bool make_folders(const char *dir, int split, problem *p) {
    char path[SYNTH_PATH];
    snprintf(path, sizeof path, "%s/ISIC-2017_%s_Data", dir, split_names[split]);
    if (!disk_make_folder(path, p)) {
        return false;
    }
    snprintf(path, sizeof path, "%s/ISIC-2017_%s_Part1_GroundTruth", dir, split_names[split]);
    return disk_make_folder(path, p);
}

static bool check_desc(const char *dir, const synth_desc *desc, problem *p) {
    const size_t most = SYNTH_MAX_COUNT;
    if (strlen(dir) == 0 || strlen(dir) >= SYNTH_DIR) {
        return problem_input(p, "the folder's name has %zu characters, expected 1 to %d",
                             strlen(dir), SYNTH_DIR - 1);
    }
    if (desc->height < SYNTH_MIN_SIDE || desc->width < SYNTH_MIN_SIDE ||
        desc->height > SYNTH_MAX_SIDE || desc->width > SYNTH_MAX_SIDE) {
        return problem_input(p, "%d x %d pixels cannot be drawn, expected %d to %d a side",
                             desc->width, desc->height, SYNTH_MIN_SIDE, SYNTH_MAX_SIDE);
    }
    if (desc->train > most || desc->validation > most || desc->test > most ||
        desc->train + desc->validation + desc->test > most ||
        desc->train + desc->validation + desc->test == 0) {
        return problem_input(p, "%zu + %zu + %zu images cannot be drawn, expected 1 to %zu in all",
                             desc->train, desc->validation, desc->test, most);
    }
    return true;
}

// What the threads share; changed by report_image alone, which one thread at a time is in.
typedef struct work {
    synth_progress *progress;
    void *user;
    size_t done, total;
    bool stopped;
    problem *first; // the first problem of all threads
} work;

static void stop(work *w) {
#ifdef _OPENMP
#pragma omp atomic write
#endif
    w->stopped = true;
}

// Counts an image that was drawn, or takes over the first problem.
static void report_image(work *w, bool ok, const problem *found) {
    if (!ok) {
        *w->first = w->first->status == 0 ? *found : *w->first;
        stop(w);
        return;
    }
    w->done++;
    if (!w->stopped && w->progress && !w->progress(w->user, w->done, w->total)) {
        stop(w);
        problem_run(w->first, "stopped after %zu of %zu images", w->done, w->total);
    }
}

static bool write_split(const char *dir, int split, size_t first_id, const synth_desc *desc,
                        work *w) {
    const long long count = (long long)split_count(desc, split);
    if (!make_folders(dir, split, w->first)) {
        return false;
    }
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic)
#endif
    for (long long i = 0; i < count; i++) {
        bool stopped;
#ifdef _OPENMP
#pragma omp atomic read
#endif
        stopped = w->stopped;
        if (!stopped) {
            problem found = {0};
            const bool ok = write_image(dir, split, (size_t)i, first_id + (size_t)i, desc, &found);
#ifdef _OPENMP
#pragma omp critical(synth_report)
#endif
            report_image(w, ok, &found);
        }
    }
    return !w->stopped && write_labels(dir, split, first_id, desc, w->first);
}

bool synth_write(const char *out_dir, const synth_desc *desc, synth_progress *progress, void *user,
                 problem *p) {
    synth_desc d = *desc;
    d.height = d.height ? d.height : 192;
    d.width = d.width ? d.width : 192;
    if (!check_desc(out_dir, &d, p) || !refuse_existing(out_dir, p)) {
        return false;
    }
    work w = {progress, user, 0, d.train + d.validation + d.test, false, p};
    size_t first_id = 0;
    for (int split = 0; split < SPLITS; split++) {
        const size_t count = split_count(&d, split);
        if (count > 0 && !write_split(out_dir, split, first_id, &d, &w)) {
            return false;
        }
        first_id += count;
    }
    return true;
}
