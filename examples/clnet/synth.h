// A synthetic dermoscopy set in the layout of ISIC 2017: skin, one lesion an image, hairs, bubbles,
// rulers and vignettes, with masks and labels. For the demo and for tests; no substitute for data.
//
// What tells the classes apart is structure; size, place, skin, darkness, hue and everything around
// the lesion are drawn from the same ranges for all three:
//   melanoma               irregular, asymmetric outline; several colours (light to black brown,
//                          blue-grey, red, white); irregular network, streaks, dots, a blotch
//   seborrheic keratosis   sharp, stuck-on border; waxy; bright cysts, dark openings, ridges
//   nevus                  round or oval, even; regular network, globules or none; soft border
// Some images of each class show few of these signs, as real ones do.
#ifndef CLNET_PROGRAM_SYNTH_H
#define CLNET_PROGRAM_SYNTH_H

#include "error.h"

#include <stddef.h>
#include <stdint.h>

enum { SYNTH_MELANOMA, SYNTH_KERATOSIS, SYNTH_NEVUS }; // classes, in the order of the data set
enum { SYNTH_MIN_SIDE = 16, SYNTH_MAX_SIDE = 4096 };   // pixels

typedef struct synth_desc {
    size_t train, validation, test; // images; 0 leaves the split out
    int height, width;              // 0 = 192
    uint64_t seed;
} synth_desc;

// Told after each image, never by two threads at once; returning false stops the work.
typedef bool synth_progress(void *user, size_t done, size_t total);

// Draws one image: rgb (height, width, 3) and mask (height, width), 0 or 255. `random` decides all
// of it. Features scale with the shorter side, so sizes show the same picture. False: no memory.
bool synth_draw(unsigned char *rgb, unsigned char *mask, int height, int width, int label,
                uint64_t random);

// Writes the set below out_dir, which is made if need be; refused where one of its folders is there
// already. Images are JPEG of quality 92, masks PNG. Each three images that follow one another have
// the three classes in a random order. An image depends on seed, split and its index alone, on no
// other count and not on the threads. progress may be NULL. What a stopped work has written stays.
bool synth_write(const char *out_dir, const synth_desc *desc, synth_progress *progress, void *user,
                 problem *p);

#endif
