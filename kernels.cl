// kernels.cl - every operation of clnet on an OpenCL 1.2 device. clnet_cl.h launches them.
//
// Layout: float32, channels innermost: activations (N,H,W,C), weights (KH,KW,IC/groups,OC). A tensor
// is a place in a slab of memory: PLACE(x) in an argument list is the slab and the offset of the
// first number, OPEN(x) in the body makes `x` of them. A slab that is not there (no bias, a gradient
// that nobody wants) is a null pointer: THERE(x). The distance between neighbouring pixels is a
// stride of its own (x_stride), more than the channels in a view of some channels of a wider tensor.
//
// Forward writes its output, backward adds to gradients. Nothing is added in an order that depends
// on the device's timing: there are no atomics, and sums are taken in blocks of a fixed order. Long
// sums are pairs of floats (see `pair_add`), so that no device needs double. Expressions are not
// contracted; what may be fused says so (MULTIPLY_ADD). NaN passes through every comparison.
//
// Blocks carry the marks of clnet.h: >>convolution, >>batch_norm, ...
// "Grid" above a kernel tells what the axes of the global size count, innermost first; where it says
// "elements", they are channels and pixels, and the local size is free. The host may cut a grid along
// the second and third axis into several launches with offsets: get_global_id counts from the grid's
// start, get_group_id from the launch's, so that these two axes have to be read by the former.

#pragma OPENCL FP_CONTRACT OFF

// Tunables. Their values per device stand in one table in clnet_cl.h.
#ifndef GEMM_ITEMS_M
#define GEMM_ITEMS_M 8 // work-items along the rows of a tile: a power of two
#endif
#ifndef GEMM_ITEMS_N
#define GEMM_ITEMS_N 8 // work-items along its columns: a power of two
#endif
#ifndef GEMM_ROWS
#define GEMM_ROWS 8 // rows of each work-item
#endif
#ifndef GEMM_VECTORS
#define GEMM_VECTORS 2 // vectors of columns of each work-item
#endif
#ifndef GEMM_WIDTH
#define GEMM_WIDTH 4 // floats of a vector: 2, 4, 8, 16
#endif
#ifndef GEMM_DEPTH
#define GEMM_DEPTH 16 // terms of each sum that are in local memory at a time: a power of two
#endif
#ifndef REDUCE_CHANNELS
#define REDUCE_CHANNELS 16 // work-items side by side in a sum over pixels: a power of two
#endif
#ifndef REDUCE_PIXELS
#define REDUCE_PIXELS 4 // work-items that share the pixels of one channel: a power of two
#endif
#ifndef HAS_FMA
#define HAS_FMA 0 // 1: the device multiplies and adds in one instruction
#endif

#define PLACE(name)   global float *name##_slab, const ulong name##_at
#define PLACE_I(name) global int *name##_slab, const ulong name##_at
#define OPEN(name)    global float *const name = name##_slab + name##_at
#define OPEN_I(name)  global int *const name = name##_slab + name##_at
#define THERE(name)   (name##_slab != 0)

#if HAS_FMA
#define MULTIPLY_ADD(a, b, c) fma(a, b, c)
#else
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#endif

// >>sums
// A sum as a pair of floats: x is the sum as it was rounded, y what the roundings left out (Knuth's
// two-sum). The result is as good as a sum in double that is rounded to float once.

float2 pair_add(const float2 sum, const float term) {
    const float total = sum.x + term;
    const float added = total - sum.x;
    const float lost = (sum.x - (total - added)) + (term - added);
    return (float2)(total, sum.y + lost);
}

float2 pair_join(const float2 a, const float2 b) {
    const float2 sum = pair_add(a, b.x);
    return (float2)(sum.x, sum.y + b.y);
}

// Pairs in memory that may lie at any float.
float2 pair_load(global const float *from, const ulong index) {
    return (float2)(from[2 * index], from[2 * index + 1]);
}

void pair_store(global float *to, const ulong index, const float2 pair) {
    to[2 * index] = pair.x;
    to[2 * index + 1] = pair.y;
}

// Infinity leaves NaN in y.
float pair_value(const float2 sum) { return isfinite(sum.x) ? sum.x + sum.y : sum.x; }

// sum / n as a pair again.
float2 pair_divide(const float2 sum, const float n) {
    const float quotient = pair_value(sum) / n;
    const float rest = fma(-quotient, n, sum.x) + sum.y;
    return (float2)(quotient, isfinite(rest) ? rest / n : 0.0f);
}

// The sum over the work-items of a group that share get_local_id(0), the same for all of them. All
// work-items of the group have to call it. Local memory: a float2 for each.
float2 group_sum(local float2 *shared, const float2 mine) {
    const int at = get_local_id(1) * REDUCE_CHANNELS + get_local_id(0);
    shared[at] = mine;
    for (int half_rows = REDUCE_PIXELS / 2; half_rows > 0; half_rows /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (get_local_id(1) < half_rows) {
            shared[at] = pair_join(shared[at], shared[at + half_rows * REDUCE_CHANNELS]);
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    const float2 total = shared[get_local_id(0)];
    barrier(CLK_LOCAL_MEM_FENCE);
    return total;
}

// Sums over pixels run in two steps. In the first, every group takes one slice of the pixels of one
// image (or of all images as one) for REDUCE_CHANNELS channels, and leaves its sums in
// partial[image][slice][c][quantity]; in the second, one work-item adds the slices of a channel.
// Grid of the first: channels, slices * REDUCE_PIXELS, images; local (REDUCE_CHANNELS, REDUCE_PIXELS).
#define SLICE_LOOP(p, pixels, slices)                                                              \
    const int slice = get_group_id(1), image = get_global_id(2);                                   \
    const int per_slice = ((pixels) + (slices) - 1) / (slices);                                    \
    const int end = min((pixels), (slice + 1) * per_slice);                                        \
    for (int p = slice * per_slice + get_local_id(1); p < end; p += REDUCE_PIXELS)

#define REDUCE_GROUP __attribute__((reqd_work_group_size(REDUCE_CHANNELS, REDUCE_PIXELS, 1)))

// Where a group leaves quantity number `quantity` of `quantities`.
ulong partial_index(const int slices, const int C, const int quantities, const int quantity) {
    const ulong row = (ulong)get_global_id(2) * slices + get_group_id(1);
    return (row * C + get_global_id(0)) * quantities + quantity;
}

void store_partial(global float *partial, local float2 *shared, const float2 mine, const int slices,
                   const int C, const int quantities, const int quantity) {
    const float2 sum = group_sum(shared, mine);
    if (get_local_id(1) == 0 && get_global_id(0) < C) {
        pair_store(partial, partial_index(slices, C, quantities, quantity), sum);
    }
}

// The second step.
float2 sum_partial(global const float *partial, const int image, const int c, const int slices,
                   const int C, const int quantities, const int quantity) {
    float2 sum = (float2)(0.0f, 0.0f);
    for (int slice = 0; slice < slices; slice++) {
        const ulong row = (ulong)image * slices + slice;
        sum = pair_join(sum, pair_load(partial, (row * C + c) * quantities + quantity));
    }
    return sum;
}

// partial = sums of x over the pixels.
kernel REDUCE_GROUP void channel_sums(PLACE(partial), PLACE(x), const int C, const int pixels,
                                      const int slices, const int x_stride) {
    local float2 shared[REDUCE_CHANNELS * REDUCE_PIXELS];
    OPEN(partial);
    OPEN(x);
    const int c = get_global_id(0);
    float2 sum = (float2)(0.0f, 0.0f);
    SLICE_LOOP(p, pixels, slices) {
        if (c < C) {
            sum = pair_add(sum, x[((ulong)image * pixels + p) * x_stride + c]);
        }
    }
    store_partial(partial, shared, sum, slices, C, 1, 0);
}

// partial = sums of x z over the pixels.
kernel REDUCE_GROUP void channel_dots(PLACE(partial), PLACE(x), PLACE(z), const int C,
                                      const int pixels, const int slices, const int x_stride,
                                      const int z_stride) {
    local float2 shared[REDUCE_CHANNELS * REDUCE_PIXELS];
    OPEN(partial);
    OPEN(x);
    OPEN(z);
    const int c = get_global_id(0);
    float2 sum = (float2)(0.0f, 0.0f);
    SLICE_LOOP(p, pixels, slices) {
        if (c < C) {
            const ulong pixel = (ulong)image * pixels + p;
            sum = pair_add(sum, x[pixel * x_stride + c] * z[pixel * z_stride + c]);
        }
    }
    store_partial(partial, shared, sum, slices, C, 1, 0);
}

// d[image][c] += the sum of a channel's slices. Grid: channels, images.
kernel void add_channel_sums(PLACE(d), PLACE(partial), const int C, const int N, const int slices,
                             const int d_stride) {
    OPEN(d);
    OPEN(partial);
    const int c = get_global_id(0), image = get_global_id(1);
    if (c < C && image < N) {
        d[(ulong)image * d_stride + c] +=
            pair_value(sum_partial(partial, image, c, slices, C, 1, 0));
    }
}

// partial[group] = the sums of squares of small numbers, and of large ones (above 2^40) scaled by
// 2^-80 before they are squared, each as a pair: neither overflows. Grid: anything, local
// (REDUCE_CHANNELS, REDUCE_PIXELS).
kernel REDUCE_GROUP void sum_of_squares(PLACE(partial), PLACE(x), const ulong count) {
    local float2 shared[REDUCE_CHANNELS * REDUCE_PIXELS];
    OPEN(partial);
    OPEN(x);
    float2 small = (float2)(0.0f, 0.0f), large = (float2)(0.0f, 0.0f);
    const ulong step = get_global_size(0) * get_global_size(1);
    for (ulong i = get_global_id(1) * get_global_size(0) + get_global_id(0); i < count; i += step) {
        if (fabs(x[i]) > 0x1p40f) {
            const float scaled = x[i] * 0x1p-80f;
            large = pair_add(large, scaled * scaled);
        } else {
            small = pair_add(small, x[i] * x[i]);
        }
    }
    small = group_sum(shared, small);
    large = group_sum(shared, large);
    if (get_local_id(1) == 0) {
        const ulong at = get_group_id(1) * get_global_size(0) + get_global_id(0);
        pair_store(partial, 2 * at, small);
        pair_store(partial, 2 * at + 1, large);
    }
}

// >>convolution
// All three passes are products of matrices whose tiles lie in local memory. A group computes a tile
// of GEMM_TILE_M x GEMM_TILE_N sums; a work-item has GEMM_ROWS neighbouring rows and GEMM_VECTORS
// vectors of columns of it, the vectors GEMM_APART columns apart. Linear layers are
// convolutions of maps of one pixel.

#define GEMM_TILE_M  (GEMM_ITEMS_M * GEMM_ROWS)
#define GEMM_TILE_N  (GEMM_ITEMS_N * GEMM_VECTORS * GEMM_WIDTH)
#define GEMM_ITEMS   (GEMM_ITEMS_M * GEMM_ITEMS_N)
#define GEMM_APART   (GEMM_ITEMS_N * GEMM_WIDTH) // columns from vector to vector of a work-item
#define GEMM_PITCH_M (GEMM_TILE_M + 4) // keeps the rows of a tile in different banks
#define GEMM_GROUP   __attribute__((reqd_work_group_size(GEMM_ITEMS_N, GEMM_ITEMS_M, 1)))
// Work-items side by side along the depth of a tile when it is loaded.
#define GEMM_LANES   (GEMM_DEPTH < GEMM_ITEMS ? GEMM_DEPTH : GEMM_ITEMS)

#define JOIN_(a, b) a##b
#define JOIN(a, b)  JOIN_(a, b)
#define VECTOR      JOIN(float, GEMM_WIDTH)
#define VLOAD       JOIN(vload, GEMM_WIDTH)
#define VSTORE      JOIN(vstore, GEMM_WIDTH)

typedef struct conv_sizes {
    int N, C, H, W;    // x (N,C,H,W)
    int OC, OH, OW;    // y (N,OC,OH,OW); w (KH,KW,C/groups,OC)
    int KH, KW;
    int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
    int groups;
    int x_stride, y_stride;
} conv_sizes;

// What one work-item has of a tile. Loops over it are unrolled, so that its sums have fixed names
// and lie in registers: PoCL keeps them in memory else, at a third of the speed.
typedef struct tile {
    VECTOR sum[GEMM_ROWS][GEMM_VECTORS];
} tile;

void tile_clear(tile *t) {
#pragma unroll
    for (int i = 0; i < GEMM_ROWS; i++) {
#pragma unroll
        for (int j = 0; j < GEMM_VECTORS; j++) {
            t->sum[i][j] = (VECTOR)(0.0f);
        }
    }
}

// t += a^T b over the depth of a tile: a[depth][row], b[depth][column].
void tile_multiply(tile *t, local const float *a, local const float *b) {
    const int row = get_local_id(1) * GEMM_ROWS, column = get_local_id(0) * GEMM_WIDTH;
    for (int k = 0; k < GEMM_DEPTH; k++) {
        VECTOR right[GEMM_VECTORS];
#pragma unroll
        for (int j = 0; j < GEMM_VECTORS; j++) {
            right[j] =
                VLOAD(0, b + k * GEMM_TILE_N + column + j * GEMM_APART);
        }
#pragma unroll
        for (int i = 0; i < GEMM_ROWS; i++) {
            const VECTOR left = (VECTOR)(a[k * GEMM_PITCH_M + row + i]);
#pragma unroll
            for (int j = 0; j < GEMM_VECTORS; j++) {
                t->sum[i][j] = MULTIPLY_ADD(left, right[j], t->sum[i][j]);
            }
        }
    }
}

typedef enum tile_store { STORE_WRITE, STORE_ADD } tile_store;

// Writes or adds the sums to rows `stride` apart, as far as they lie inside, with a bias per column
// if there is one. The tile begins at `row` and `column`; its vectors are `apart` columns apart.
void tile_output(global float *out, const tile *t, global const float *bias, const tile_store how,
                 const int row, const int rows, const int column, const int apart,
                 const int columns, const ulong stride) {
#pragma unroll
    for (int i = 0; i < GEMM_ROWS; i++) {
#pragma unroll
        for (int j = 0; j < GEMM_VECTORS; j++) {
            float value[GEMM_WIDTH];
            VSTORE(t->sum[i][j], 0, value);
#pragma unroll
            for (int v = 0; v < GEMM_WIDTH; v++) {
                const int c = column + j * apart + v;
                if (row + i < rows && c < columns) {
                    const ulong at = (row + i) * stride + c;
                    const float before = how == STORE_ADD ? out[at] : 0.0f;
                    out[at] = value[v] + (bias ? bias[c] : before);
                }
            }
        }
    }
}

// What a tile needs to know of each of its rows or of each of its terms: a pixel, and the number of
// the image's first pixel.
typedef struct pixel {
    int h, w, image;
} pixel;

// Pixel number p of maps of height x width; image is -1 beyond the last one.
pixel pixel_of(const int p, const int count, const int height, const int width) {
    const int row = p / width;
    return (pixel){row % height, p % width, p < count ? row / height : -1};
}

// Where x of the output pixel `out` lies under tap (kh, kw), channel c; null outside.
global const float *input_under(global const float *x, const conv_sizes *s, const pixel out,
                                const int kh, const int kw, const int c) {
    const int ih = out.h * s->stride_h - s->padding_h + kh * s->dilation_h;
    const int iw = out.w * s->stride_w - s->padding_w + kw * s->dilation_w;
    if (out.image < 0 || ih < 0 || ih >= s->H || iw < 0 || iw >= s->W) {
        return 0;
    }
    return x + (((ulong)out.image * s->H + ih) * s->W + iw) * s->x_stride + c;
}

// Where dy of the output pixel lies that reads the input pixel `in` through tap (kh, kw), channel c;
// null: none does.
global const float *gradient_over(global const float *dy, const conv_sizes *s, const pixel in,
                                  const int kh, const int kw, const int c) {
    const int h = in.h + s->padding_h - kh * s->dilation_h;
    const int w = in.w + s->padding_w - kw * s->dilation_w;
    const int oh = h / s->stride_h, ow = w / s->stride_w;
    if (in.image < 0 || h < 0 || w < 0 || oh * s->stride_h != h || ow * s->stride_w != w ||
        oh >= s->OH || ow >= s->OW) {
        return 0;
    }
    return dy + (((ulong)in.image * s->OH + oh) * s->OW + ow) * s->y_stride + c;
}

// What lies there, 0 where nothing does.
float gather(global const float *place) { return place ? *place : 0.0f; }

int item_of_group(void) { return get_local_id(1) * GEMM_ITEMS_N + get_local_id(0); }

// The first row and column of the work-item's sums, also where a launch does not begin at the first
// row; and of its group's tile.
int item_row(void) { return get_global_id(1) * GEMM_ROWS; }
int item_column(void) {
    return get_group_id(0) * GEMM_TILE_N + get_local_id(0) * GEMM_WIDTH;
}
int tile_row(void) { return get_global_id(1) / GEMM_ITEMS_M * GEMM_TILE_M; }

// y = b + x * w. Rows are output pixels, columns output channels of a group, terms (kh, kw, ic).
// Grid: columns, rows, groups.
kernel GEMM_GROUP void conv2d_forward(PLACE(y), PLACE(x), PLACE(w), PLACE(b), const conv_sizes s) {
    local float a[GEMM_DEPTH * GEMM_PITCH_M], c[GEMM_DEPTH * GEMM_TILE_N];
    local pixel row[GEMM_TILE_M];
    OPEN(y);
    OPEN(x);
    OPEN(w);
    const int item = item_of_group(), group = get_global_id(2);
    const int IC = s.C / s.groups, OC = s.OC / s.groups, K = s.KH * s.KW * IC;
    const int rows = s.N * s.OH * s.OW;
    const int row0 = tile_row(), column0 = get_group_id(0) * GEMM_TILE_N;
    for (int r = item; r < GEMM_TILE_M; r += GEMM_ITEMS) {
        row[r] = pixel_of(row0 + r, rows, s.OH, s.OW);
    }
    tile t;
    tile_clear(&t);
    for (int k0 = 0; k0 < K; k0 += GEMM_DEPTH) {
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int k = item % GEMM_LANES; k < GEMM_DEPTH; k += GEMM_LANES) {
            const int tap = (k0 + k) / IC, ic = (k0 + k) % IC, kh = tap / s.KW, kw = tap % s.KW;
            for (int r = item / GEMM_LANES; r < GEMM_TILE_M; r += GEMM_ITEMS / GEMM_LANES) {
                a[k * GEMM_PITCH_M + r] =
                    k0 + k < K ? gather(input_under(x, &s, row[r], kh, kw, group * IC + ic))
                               : 0.0f;
            }
        }
        for (int i = item; i < GEMM_DEPTH * GEMM_TILE_N; i += GEMM_ITEMS) {
            const int k = k0 + i / GEMM_TILE_N, oc = column0 + i % GEMM_TILE_N;
            c[i] = k < K && oc < OC ? w[(ulong)k * s.OC + group * OC + oc] : 0.0f;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        tile_multiply(&t, a, c);
    }
    global const float *bias = THERE(b) ? b_slab + b_at + group * OC : 0;
    tile_output(y + group * OC, &t, bias, STORE_WRITE, item_row(), rows, item_column(),
                GEMM_APART, OC, s.y_stride);
}

// dx += dy * w. Rows are input pixels, columns input channels of a group, terms (kh, kw, oc).
// Grid: columns, rows, groups.
kernel GEMM_GROUP void conv2d_backward_data(PLACE(dx), PLACE(dy), PLACE(w), const conv_sizes s) {
    local float a[GEMM_DEPTH * GEMM_PITCH_M], c[GEMM_DEPTH * GEMM_TILE_N];
    local pixel row[GEMM_TILE_M];
    OPEN(dx);
    OPEN(dy);
    OPEN(w);
    const int item = item_of_group(), group = get_global_id(2);
    const int IC = s.C / s.groups, OC = s.OC / s.groups, K = s.KH * s.KW * OC;
    const int rows = s.N * s.H * s.W;
    const int row0 = tile_row(), column0 = get_group_id(0) * GEMM_TILE_N;
    for (int r = item; r < GEMM_TILE_M; r += GEMM_ITEMS) {
        row[r] = pixel_of(row0 + r, rows, s.H, s.W);
    }
    tile t;
    tile_clear(&t);
    for (int k0 = 0; k0 < K; k0 += GEMM_DEPTH) {
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int k = item % GEMM_LANES; k < GEMM_DEPTH; k += GEMM_LANES) {
            const int tap = (k0 + k) / OC, oc = group * OC + (k0 + k) % OC;
            const int kh = tap / s.KW, kw = tap % s.KW;
            for (int r = item / GEMM_LANES; r < GEMM_TILE_M; r += GEMM_ITEMS / GEMM_LANES) {
                a[k * GEMM_PITCH_M + r] =
                    k0 + k < K ? gather(gradient_over(dy, &s, row[r], kh, kw, oc)) : 0.0f;
            }
            for (int i = item / GEMM_LANES; i < GEMM_TILE_N; i += GEMM_ITEMS / GEMM_LANES) {
                const int ic = column0 + i;
                c[k * GEMM_TILE_N + i] =
                    k0 + k < K && ic < IC ? w[((ulong)tap * IC + ic) * s.OC + oc] : 0.0f;
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        tile_multiply(&t, a, c);
    }
    tile_output(dx + group * IC, &t, 0, STORE_ADD, item_row(), rows, item_column(), GEMM_APART, IC,
                s.x_stride);
}

// partial[slice] = x^T dy over a slice of the output pixels, laid out as w. Rows are (kh, kw, ic),
// columns output channels of a group. After every `block` pixels the tile is added to what lies in
// partial and starts again at zero, which keeps long sums exact. Grid: columns, rows, slices * groups.
kernel GEMM_GROUP void conv2d_backward_weight(PLACE(partial), PLACE(dy), PLACE(x),
                                              const conv_sizes s, const int per_slice,
                                              const int block) {
    local float a[GEMM_DEPTH * GEMM_PITCH_M], c[GEMM_DEPTH * GEMM_TILE_N];
    local pixel tap[GEMM_TILE_M], term[GEMM_DEPTH]; // a tap's `image` is its channel
    OPEN(partial);
    OPEN(dy);
    OPEN(x);
    const int item = item_of_group();
    const int group = get_global_id(2) % s.groups, slice = get_global_id(2) / s.groups;
    const int IC = s.C / s.groups, OC = s.OC / s.groups, rows = s.KH * s.KW * IC;
    const int pixels = s.N * s.OH * s.OW, end = min(pixels, (slice + 1) * per_slice);
    const int row0 = tile_row(), column0 = get_group_id(0) * GEMM_TILE_N;
    for (int r = item; r < GEMM_TILE_M; r += GEMM_ITEMS) {
        const int at = (row0 + r) / IC;
        tap[r] = (pixel){at / s.KW, at % s.KW, row0 + r < rows ? (row0 + r) % IC : -1};
    }
    for (int start = slice * per_slice; start < end; start += block) {
        const int stop = min(end, start + block);
        tile t;
        tile_clear(&t);
        for (int p0 = start; p0 < stop; p0 += GEMM_DEPTH) {
            barrier(CLK_LOCAL_MEM_FENCE);
            for (int k = item; k < GEMM_DEPTH; k += GEMM_ITEMS) {
                term[k] = pixel_of(p0 + k, stop, s.OH, s.OW);
            }
            barrier(CLK_LOCAL_MEM_FENCE);
            for (int i = item; i < GEMM_DEPTH * GEMM_TILE_M; i += GEMM_ITEMS) {
                const int k = i / GEMM_TILE_M, r = i % GEMM_TILE_M;
                a[k * GEMM_PITCH_M + r] =
                    tap[r].image < 0 ? 0.0f
                                     : gather(input_under(x, &s, term[k], tap[r].h, tap[r].w,
                                                          group * IC + tap[r].image));
            }
            for (int i = item; i < GEMM_DEPTH * GEMM_TILE_N; i += GEMM_ITEMS) {
                const int p = p0 + i / GEMM_TILE_N, oc = column0 + i % GEMM_TILE_N;
                c[i] = p < stop && oc < OC ? dy[(ulong)p * s.y_stride + group * OC + oc] : 0.0f;
            }
            barrier(CLK_LOCAL_MEM_FENCE);
            tile_multiply(&t, a, c);
        }
        tile_output(partial + (ulong)slice * rows * s.OC + group * OC, &t, 0,
                    start == slice * per_slice ? STORE_WRITE : STORE_ADD, item_row(), rows,
                    item_column(), GEMM_APART, OC, s.OC);
    }
}

// >>direct
// The same products for devices that run a work-item as a loop of one thread, such as CPUs: no local
// memory and no barriers. A work-item has GEMM_ROWS rows of GEMM_VECTORS neighbouring vectors of
// columns, and reads the rows where they lie.

#define DIRECT_COLUMNS (GEMM_VECTORS * GEMM_WIDTH)

// The next vector of `left` columns, 0 beyond them.
VECTOR direct_load(global const float *p, const int left) {
    if (left >= GEMM_WIDTH) {
        return VLOAD(0, p);
    }
    float value[GEMM_WIDTH];
#pragma unroll
    for (int v = 0; v < GEMM_WIDTH; v++) {
        value[v] = v < left ? p[v] : 0.0f;
    }
    return VLOAD(0, value);
}

// t += a^T b over `count` terms: row i of a at from[i], its terms `step` apart; those of b `stride`
// apart, with `left` columns.
void direct_multiply(tile *t, global const float *const from[GEMM_ROWS], const int step,
                     const int count, global const float *b, const ulong stride, const int left) {
    tile sums = *t; // in registers
    for (int k = 0; k < count; k++) {
        VECTOR right[GEMM_VECTORS];
#pragma unroll
        for (int j = 0; j < GEMM_VECTORS; j++) {
            right[j] = direct_load(b + k * stride + j * GEMM_WIDTH, left - j * GEMM_WIDTH);
        }
#pragma unroll
        for (int i = 0; i < GEMM_ROWS; i++) {
            const VECTOR value = (VECTOR)(from[i][(ulong)k * step]);
#pragma unroll
            for (int j = 0; j < GEMM_VECTORS; j++) {
                sums.sum[i][j] = MULTIPLY_ADD(value, right[j], sums.sum[i][j]);
            }
        }
    }
    *t = sums;
}

// The same, with the loop for whole vectors apart.
void direct_add(tile *t, global const float *const from[GEMM_ROWS], const int step,
                const int count, global const float *b, const ulong stride, const int left) {
    if (left >= DIRECT_COLUMNS) {
        direct_multiply(t, from, step, count, b, stride, DIRECT_COLUMNS);
    } else {
        direct_multiply(t, from, step, count, b, stride, left);
    }
}

// t += row * w over the channels under one tap, w[channel][column] with `left` columns. A row that is
// not there is a null pointer: it reads what lies at `other`, and its sums are dropped.
void direct_tap(tile *t, global const float *const row[GEMM_ROWS], global const float *other,
                const int channels, global const float *w, const ulong stride, const int left) {
    tile part;
    global const float *from[GEMM_ROWS];
    tile_clear(&part);
#pragma unroll
    for (int i = 0; i < GEMM_ROWS; i++) {
        from[i] = row[i] ? row[i] : other;
    }
    direct_add(&part, from, 1, channels, w, stride, left);
#pragma unroll
    for (int i = 0; i < GEMM_ROWS; i++) {
#pragma unroll
        for (int j = 0; j < GEMM_VECTORS; j++) {
            t->sum[i][j] += row[i] ? part.sum[i][j] : (VECTOR)(0.0f);
        }
    }
}

// Forward y = b + x * w; backward dx += dy * w, w with transposed taps.
void direct_pass(const tile_store pass, global float *out, global const float *in,
                 global const float *w, global const float *bias, const conv_sizes s) {
    const bool backward = pass == STORE_ADD;
    const int group = get_global_id(2), row0 = item_row();
    const int terms = (backward ? s.OC : s.C) / s.groups;
    const int columns = (backward ? s.C : s.OC) / s.groups;
    const int height = backward ? s.H : s.OH, width = backward ? s.W : s.OW;
    const int rows = s.N * height * width, column = get_global_id(0) * DIRECT_COLUMNS;
    const ulong stride = backward ? columns : s.OC, taps = (ulong)terms * columns * s.groups;
    if (row0 >= rows || column >= columns) {
        return;
    }
    w += column + group * (backward ? terms * stride : columns);
    tile t;
    tile_clear(&t);
    for (int tap = 0; tap < s.KH * s.KW; tap++, w += taps) {
        global const float *row[GEMM_ROWS];
#pragma unroll
        for (int i = 0; i < GEMM_ROWS; i++) {
            const pixel p = pixel_of(row0 + i, rows, height, width);
            row[i] = backward
                         ? gradient_over(in, &s, p, tap / s.KW, tap % s.KW, group * terms)
                         : input_under(in, &s, p, tap / s.KW, tap % s.KW, group * terms);
        }
        direct_tap(&t, row, in, terms, w, stride, columns - column);
    }
    tile_output(out + group * columns, &t, bias ? bias + group * columns : 0, pass, row0, rows,
                column, GEMM_WIDTH, columns, backward ? s.x_stride : s.y_stride);
}

// As conv2d_forward. Grid: vectors of columns, rows, groups.
kernel void direct_forward(PLACE(y), PLACE(x), PLACE(w), PLACE(b), const conv_sizes s) {
    OPEN(y);
    OPEN(x);
    OPEN(w);
    direct_pass(STORE_WRITE, y, x, w, THERE(b) ? b_slab + b_at : 0, s);
}

// As conv2d_backward_data, but with transposed taps. Grid: vectors of columns, rows, groups.
kernel void direct_backward_data(PLACE(dx), PLACE(dy), PLACE(w), const conv_sizes s) {
    OPEN(dx);
    OPEN(dy);
    OPEN(w);
    direct_pass(STORE_ADD, dx, dy, w, 0, s);
}

// The part of a line of outputs, from .x to before .y, whose tap at `first` + output * stride lies
// inside an axis of `length`.
int2 outputs_inside(const int begin, const int end, const int first, const int stride,
                    const int length) {
    const int low = first < 0 ? (stride - 1 - first) / stride : 0;
    const int high = length > first ? (length - first + stride - 1) / stride : 0;
    return (int2)(max(begin, low), min(end, high));
}

// partial[slice] as conv2d_backward_weight; a work-item's rows are channels under one tap. Grid:
// vectors of columns, rows of all taps, slices * groups.
kernel void direct_backward_weight(PLACE(partial), PLACE(dy), PLACE(x), const conv_sizes s,
                                   const int per_slice, const int block) {
    OPEN(partial);
    OPEN(dy);
    OPEN(x);
    const int group = get_global_id(2) % s.groups, slice = get_global_id(2) / s.groups;
    const int IC = s.C / s.groups, OC = s.OC / s.groups;
    const int tiles = (IC + GEMM_ROWS - 1) / GEMM_ROWS, tap = get_global_id(1) / tiles;
    const int ic = get_global_id(1) % tiles * GEMM_ROWS;
    const int column = get_global_id(0) * DIRECT_COLUMNS;
    if (tap >= s.KH * s.KW || column >= OC) {
        return;
    }
    const int pixels = s.N * s.OH * s.OW, end = min(pixels, (slice + 1) * per_slice);
    const int kh = tap / s.KW, kw = tap % s.KW;
    const int iw0 = kw * s.dilation_w - s.padding_w;
    for (int start = slice * per_slice; start < end; start += block) {
        const int stop = min(end, start + block);
        tile t;
        tile_clear(&t);
        for (int p = start, next; p < stop; p = next) {
            const pixel out = pixel_of(p, stop, s.OH, s.OW);
            next = min(stop, p + s.OW - out.w);
            const int ih = out.h * s.stride_h - s.padding_h + kh * s.dilation_h;
            const int2 line =
                outputs_inside(out.w, out.w + next - p, iw0, s.stride_w, s.W);
            if (ih < 0 || ih >= s.H || line.x >= line.y) {
                continue;
            }
            global const float *from[GEMM_ROWS];
#pragma unroll
            for (int i = 0; i < GEMM_ROWS; i++) {
                from[i] = x + (((ulong)out.image * s.H + ih) * s.W + iw0 + line.x * s.stride_w) *
                                  s.x_stride + group * IC + min(ic + i, IC - 1);
            }
            direct_add(&t, from, s.stride_w * s.x_stride, line.y - line.x,
                       dy + (ulong)(p - out.w + line.x) * s.y_stride + group * OC + column,
                       s.y_stride, OC - column);
        }
        tile_output(partial + (ulong)slice * s.KH * s.KW * IC * s.OC + group * OC, &t, 0,
                    start == slice * per_slice ? STORE_WRITE : STORE_ADD, tap * IC + ic,
                    (tap + 1) * IC, column, GEMM_WIDTH, OC, s.OC);
    }
}

// What a matrix product from elsewhere needs: the matrices of the products above, some rows at a time.
// columns[row][kh, kw, ic] = x under the taps of output pixels from `first` on. Grid: terms, rows.
kernel void columns_of_input(PLACE(columns), PLACE(x), const conv_sizes s, const int first,
                             const int rows) {
    OPEN(columns);
    OPEN(x);
    const int K = s.KH * s.KW * s.C, k = get_global_id(0), row = get_global_id(1);
    if (k < K && row < rows) {
        const int tap = k / s.C;
        const pixel out = pixel_of(first + row, s.N * s.OH * s.OW, s.OH, s.OW);
        columns[(ulong)row * K + k] =
            gather(input_under(x, &s, out, tap / s.KW, tap % s.KW, k % s.C));
    }
}

// columns[row][kh, kw, oc] = dy of what reads the input pixels from `first` on. Grid: terms, rows.
kernel void columns_of_gradient(PLACE(columns), PLACE(dy), const conv_sizes s, const int first,
                                const int rows) {
    OPEN(columns);
    OPEN(dy);
    const int K = s.KH * s.KW * s.OC, k = get_global_id(0), row = get_global_id(1);
    if (k < K && row < rows) {
        const int tap = k / s.OC;
        const pixel in = pixel_of(first + row, s.N * s.H * s.W, s.H, s.W);
        columns[(ulong)row * K + k] =
            gather(gradient_over(dy, &s, in, tap / s.KW, tap % s.KW, k % s.OC));
    }
}

// t[kh, kw][oc][ic] = w[kh, kw][ic][oc]. Grid: input channels, output channels of all taps.
kernel void transpose_taps(PLACE(t), PLACE(w), const int taps, const int IC, const int OC) {
    OPEN(t);
    OPEN(w);
    const int ic = get_global_id(0), at = get_global_id(1), tap = at / OC, oc = at % OC;
    if (ic < IC && tap < taps) {
        t[(ulong)at * IC + ic] = w[((ulong)tap * IC + ic) * OC + oc];
    }
}

// y = b at every pixel. Grid: elements.
kernel void broadcast_bias(PLACE(y), PLACE(b), const int C, const int pixels,
                           const int y_stride) {
    OPEN(y);
    OPEN(b);
    const int c = get_global_id(0);
    const ulong p = get_global_id(1);
    if (c < C && p < pixels) {
        y[p * y_stride + c] = b[c];
    }
}

// d += the sum of slices. Grid: numbers.
kernel void add_slices(PLACE(d), PLACE(partial), const ulong count, const int slices) {
    OPEN(d);
    OPEN(partial);
    const ulong i = get_global_id(0);
    if (i < count) {
        float2 sum = (float2)(0.0f, 0.0f);
        for (int slice = 0; slice < slices; slice++) {
            sum = pair_add(sum, partial[slice * count + i]);
        }
        d[i] += pair_value(sum);
    }
}

// >>batch_norm
// See clnet.h for the formulas. In training: channel_sums, batch_norm_mean, batch_norm_squares,
// batch_norm_statistics, batch_norm_apply; in evaluation the last two alone.

// centre[c] = the mean as a pair. Grid: channels.
kernel void batch_norm_mean(PLACE(centre), PLACE(partial), const int C, const int slices,
                            const int pixels) {
    OPEN(centre);
    OPEN(partial);
    const int c = get_global_id(0);
    if (c < C) {
        const float2 sum = sum_partial(partial, 0, c, slices, C, 1, 0);
        pair_store(centre, c, pair_divide(sum, (float)pixels));
    }
}

// partial = sums of (x - mean)^2, and of x - mean. Grid: as channel_sums.
kernel REDUCE_GROUP void batch_norm_squares(PLACE(partial), PLACE(x), PLACE(centre), const int C,
                                            const int pixels, const int slices,
                                            const int x_stride) {
    local float2 shared[REDUCE_CHANNELS * REDUCE_PIXELS];
    OPEN(partial);
    OPEN(x);
    OPEN(centre);
    const int c = get_global_id(0);
    const float2 mean = pair_load(centre, min(c, C - 1));
    float2 squares = (float2)(0.0f, 0.0f), rest = (float2)(0.0f, 0.0f);
    SLICE_LOOP(p, pixels, slices) {
        if (c < C) {
            const float d = (x[((ulong)image * pixels + p) * x_stride + c] - mean.x) - mean.y;
            squares = pair_add(squares, d * d);
            rest = pair_add(rest, d);
        }
    }
    store_partial(partial, shared, squares, slices, C, 2, 0);
    store_partial(partial, shared, rest, slices, C, 2, 1);
}

// mean, invstd: saved for backward; factor, shift: y = (x - mean) factor + shift; the running
// statistics move in training (slices > 0), and are what is used in evaluation. `unbiased` is
// pixels / (pixels - 1). Grid: channels.
kernel void batch_norm_statistics(PLACE(mean), PLACE(invstd), PLACE(running_mean),
                                  PLACE(running_var), PLACE(factor), PLACE(shift), PLACE(partial),
                                  PLACE(centre), PLACE(w), PLACE(b), const float eps,
                                  const float momentum, const float unbiased, const int C,
                                  const int pixels, const int slices) {
    OPEN(mean);
    OPEN(invstd);
    OPEN(running_mean);
    OPEN(running_var);
    OPEN(factor);
    OPEN(shift);
    OPEN(w);
    OPEN(b);
    const int c = get_global_id(0);
    if (c >= C) {
        return;
    }
    float2 m = (float2)(running_mean[c], 0.0f);
    float var = running_var[c];
    if (slices > 0) {
        global const float *partial = partial_slab + partial_at;
        const float squares = pair_value(sum_partial(partial, 0, c, slices, C, 2, 0));
        const float rest = pair_value(sum_partial(partial, 0, c, slices, C, 2, 1));
        m = pair_load(centre_slab + centre_at, c);
        var = (squares - rest * rest / (float)pixels) / (float)pixels;
        var = var < 0.0f ? 0.0f : var;
        if (isfinite(m.x) && isfinite(var)) { // one bad batch must not stay
            running_mean[c] += momentum * ((m.x - running_mean[c]) + m.y);
            running_var[c] += momentum * (var * unbiased - running_var[c]);
        }
    }
    const float scale = 1.0f / sqrt(var + eps);
    mean[c] = m.x + m.y;
    invstd[c] = scale;
    factor[c] = w[c] * scale;
    shift[c] = b[c] - ((m.x - mean[c]) + m.y) * (w[c] * scale);
}

// y = (x - mean) factor + shift. Grid: elements.
kernel void batch_norm_apply(PLACE(y), PLACE(x), PLACE(mean), PLACE(factor), PLACE(shift),
                             const int C, const int pixels, const int x_stride,
                             const int y_stride) {
    OPEN(y);
    OPEN(x);
    OPEN(mean);
    OPEN(factor);
    OPEN(shift);
    const int c = get_global_id(0);
    const ulong p = get_global_id(1);
    if (c < C && p < pixels) {
        y[p * y_stride + c] = (x[p * x_stride + c] - mean[c]) * factor[c] + shift[c];
    }
}

// partial = sums of dy, of dy (x - mean), of x - mean. Grid: as channel_sums.
kernel REDUCE_GROUP void batch_norm_backward_sums(PLACE(partial), PLACE(dy), PLACE(x), PLACE(mean),
                                                  const int C, const int pixels, const int slices,
                                                  const int x_stride, const int y_stride) {
    local float2 shared[REDUCE_CHANNELS * REDUCE_PIXELS];
    OPEN(partial);
    OPEN(dy);
    OPEN(x);
    OPEN(mean);
    const int c = get_global_id(0);
    float2 sum = (float2)(0.0f, 0.0f), dot = sum, rest = sum;
    SLICE_LOOP(p, pixels, slices) {
        if (c < C) {
            const ulong pixel = (ulong)image * pixels + p;
            const float slope = dy[pixel * y_stride + c], d = x[pixel * x_stride + c] - mean[c];
            sum = pair_add(sum, slope);
            dot = pair_add(dot, slope * d);
            rest = pair_add(rest, d);
        }
    }
    store_partial(partial, shared, sum, slices, C, 3, 0);
    store_partial(partial, shared, dot, slices, C, 3, 1);
    store_partial(partial, shared, rest, slices, C, 3, 2);
}

// db, dw, and the three numbers of dx = scale (dy - shift - (x - mean) slope). `part` is 1 / pixels,
// 0 in evaluation. Grid: channels.
kernel void batch_norm_backward_weights(PLACE(dw), PLACE(db), PLACE(scale), PLACE(shift),
                                        PLACE(slope), PLACE(partial), PLACE(w), PLACE(invstd),
                                        const float part, const int C, const int slices) {
    OPEN(scale);
    OPEN(shift);
    OPEN(slope);
    OPEN(partial);
    OPEN(w);
    OPEN(invstd);
    const int c = get_global_id(0);
    if (c >= C) {
        return;
    }
    const float sum = pair_value(sum_partial(partial, 0, c, slices, C, 3, 0));
    const float dot = pair_value(sum_partial(partial, 0, c, slices, C, 3, 1));
    const float offset = pair_value(sum_partial(partial, 0, c, slices, C, 3, 2)) * part;
    const float products = dot - offset * sum;
    if (THERE(db)) {
        (db_slab + db_at)[c] += sum;
    }
    if (THERE(dw)) {
        (dw_slab + dw_at)[c] += products * invstd[c];
    }
    scale[c] = w[c] * invstd[c];
    slope[c] = products * invstd[c] * invstd[c] * part;
    shift[c] = sum * part - offset * slope[c];
}

// Grid: elements.
kernel void batch_norm_backward_data(PLACE(dx), PLACE(dy), PLACE(x), PLACE(mean), PLACE(scale),
                                     PLACE(shift), PLACE(slope), const int C, const int pixels,
                                     const int x_stride, const int y_stride) {
    OPEN(dx);
    OPEN(dy);
    OPEN(x);
    OPEN(mean);
    OPEN(scale);
    OPEN(shift);
    OPEN(slope);
    const int c = get_global_id(0);
    const ulong p = get_global_id(1);
    if (c < C && p < pixels) {
        const float d = x[p * x_stride + c] - mean[c];
        dx[p * x_stride + c] += scale[c] * (dy[p * y_stride + c] - shift[c] - d * slope[c]);
    }
}

// >>relu
// Grid: elements.
kernel void relu_forward(PLACE(y), PLACE(x), const int C, const int pixels, const int x_stride,
                         const int y_stride) {
    OPEN(y);
    OPEN(x);
    const int c = get_global_id(0);
    const ulong p = get_global_id(1);
    if (c < C && p < pixels) {
        const float v = x[p * x_stride + c];
        y[p * y_stride + c] = v <= 0.0f ? 0.0f : v;
    }
}

// In place, dx is dy and there is nothing to add to. Grid: elements.
kernel void relu_backward(PLACE(dx), PLACE(dy), PLACE(y), const int in_place, const int C,
                          const int pixels, const int x_stride, const int y_stride) {
    OPEN(dx);
    OPEN(dy);
    OPEN(y);
    const int c = get_global_id(0);
    const ulong p = get_global_id(1);
    if (c < C && p < pixels) {
        const float v = y[p * y_stride + c] <= 0.0f ? 0.0f : dy[p * y_stride + c];
        dx[p * x_stride + c] = in_place ? v : dx[p * x_stride + c] + v;
    }
}

// >>sigmoid

float sigmoid_of(const float x) {
    const float e = exp(-fabs(x)); // at most 1
    return x < 0.0f ? e / (1.0f + e) : 1.0f / (1.0f + e);
}

// Grid: elements.
kernel void sigmoid_forward(PLACE(y), PLACE(x), const int C, const int pixels, const int x_stride,
                            const int y_stride) {
    OPEN(y);
    OPEN(x);
    const int c = get_global_id(0);
    const ulong p = get_global_id(1);
    if (c < C && p < pixels) {
        y[p * y_stride + c] = sigmoid_of(x[p * x_stride + c]);
    }
}

// Grid: elements.
kernel void sigmoid_backward(PLACE(dx), PLACE(dy), PLACE(y), const int C, const int pixels,
                             const int x_stride, const int y_stride) {
    OPEN(dx);
    OPEN(dy);
    OPEN(y);
    const int c = get_global_id(0);
    const ulong p = get_global_id(1);
    if (c < C && p < pixels) {
        const float v = y[p * y_stride + c];
        dx[p * x_stride + c] += dy[p * y_stride + c] * v * (1.0f - v);
    }
}

// >>softmax
// A line is the values along the axis: `count` of them, `x_step` apart.
typedef struct softmax_line {
    ulong x, y, x_step, y_step;
    int count;
} softmax_line;

// Line number `index` of image n: for axis 1 one per pixel, else one per channel and row or column.
softmax_line line_of(const int n, const int index, const int axis, const int C, const int H,
                     const int W, const int x_stride, const int y_stride) {
    const ulong image = (ulong)n * H * W;
    if (axis == 1) {
        return (softmax_line){(image + index) * x_stride, (image + index) * y_stride, 1, 1, C};
    }
    const int c = index % C, other = index / C;
    const ulong first = image + (axis == 2 ? other : other * W), step = axis == 2 ? W : 1;
    return (softmax_line){first * x_stride + c, first * y_stride + c, step * x_stride,
                          step * y_stride, axis == 2 ? H : W};
}

// Grid: lines, images.
kernel void softmax_forward(PLACE(y), PLACE(x), const int axis, const int lines, const int N,
                            const int C, const int H, const int W, const int x_stride,
                            const int y_stride) {
    OPEN(y);
    OPEN(x);
    if (get_global_id(0) >= lines || get_global_id(1) >= N) {
        return;
    }
    const softmax_line l =
        line_of(get_global_id(1), get_global_id(0), axis, C, H, W, x_stride, y_stride);
    float largest = x[l.x];
    for (int k = 1; k < l.count; k++) {
        const float v = x[l.x + k * l.x_step];
        largest = v > largest ? v : largest;
    }
    float2 sum = (float2)(0.0f, 0.0f);
    for (int k = 0; k < l.count; k++) {
        sum = pair_add(sum, exp(x[l.x + k * l.x_step] - largest));
    }
    const float total = pair_value(sum);
    for (int k = 0; k < l.count; k++) {
        y[l.y + k * l.y_step] = exp(x[l.x + k * l.x_step] - largest) / total;
    }
}

// Grid: lines, images.
kernel void softmax_backward(PLACE(dx), PLACE(dy), PLACE(y), const int axis, const int lines,
                             const int N, const int C, const int H, const int W,
                             const int x_stride, const int y_stride) {
    OPEN(dx);
    OPEN(dy);
    OPEN(y);
    if (get_global_id(0) >= lines || get_global_id(1) >= N) {
        return;
    }
    const softmax_line l =
        line_of(get_global_id(1), get_global_id(0), axis, C, H, W, x_stride, y_stride);
    float2 sum = (float2)(0.0f, 0.0f);
    for (int k = 0; k < l.count; k++) {
        sum = pair_add(sum, dy[l.y + k * l.y_step] * y[l.y + k * l.y_step]);
    }
    const float dot_product = pair_value(sum);
    for (int k = 0; k < l.count; k++) {
        const ulong at = l.y + k * l.y_step;
        dx[l.x + k * l.x_step] += y[at] * (dy[at] - dot_product);
    }
}

// >>max_pool2d

typedef struct pool_sizes {
    int N, C, H, W, OH, OW; // x (N,C,H,W), y (N,C,OH,OW)
    int KH, KW;
    int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
    int exclude_pad;
    int x_stride, y_stride;
} pool_sizes;

// Padding never wins, NaN wins, ties go to the first. Grid: elements of y.
kernel void max_pool2d_forward(PLACE(y), PLACE_I(argmax), PLACE(x), const pool_sizes s) {
    OPEN(y);
    OPEN_I(argmax);
    OPEN(x);
    const int c = get_global_id(0), p = get_global_id(1);
    if (c >= s.C || p >= s.N * s.OH * s.OW) {
        return;
    }
    const pixel out = pixel_of(p, INT_MAX, s.OH, s.OW);
    const ulong image = (ulong)out.image * s.H * s.W;
    float best = 0.0f;
    int at = -1;
    for (int kh = 0; kh < s.KH; kh++) {
        const int ih = out.h * s.stride_h - s.padding_h + kh * s.dilation_h;
        for (int kw = 0; kw < s.KW; kw++) {
            const int iw = out.w * s.stride_w - s.padding_w + kw * s.dilation_w;
            if (ih >= 0 && ih < s.H && iw >= 0 && iw < s.W) {
                const float v = x[(image + ih * s.W + iw) * s.x_stride + c];
                if (at < 0 || v > best || v != v) {
                    best = v;
                    at = ih * s.W + iw;
                }
            }
        }
    }
    y[(ulong)p * s.y_stride + c] = best;
    argmax[(ulong)p * s.y_stride + c] = at;
}

// Gathers from the windows that hold the pixel, in the order of the outputs. Grid: elements of x.
kernel void max_pool2d_backward(PLACE(dx), PLACE(dy), PLACE_I(argmax), const pool_sizes s) {
    OPEN(dx);
    OPEN(dy);
    OPEN_I(argmax);
    const int c = get_global_id(0), p = get_global_id(1);
    if (c >= s.C || p >= s.N * s.H * s.W) {
        return;
    }
    const pixel in = pixel_of(p, INT_MAX, s.H, s.W);
    const int mine = in.h * s.W + in.w;
    const ulong image = (ulong)in.image * s.OH * s.OW;
    float sum = dx[(ulong)p * s.x_stride + c];
    for (int kh = s.KH - 1; kh >= 0; kh--) {
        const int h = in.h + s.padding_h - kh * s.dilation_h, oh = h / s.stride_h;
        if (h < 0 || oh * s.stride_h != h || oh >= s.OH) {
            continue;
        }
        for (int kw = s.KW - 1; kw >= 0; kw--) {
            const int w = in.w + s.padding_w - kw * s.dilation_w, ow = w / s.stride_w;
            if (w >= 0 && ow * s.stride_w == w && ow < s.OW) {
                const ulong at = (image + oh * s.OW + ow) * s.y_stride + c;
                sum += argmax[at] == mine ? dy[at] : 0.0f;
            }
        }
    }
    dx[(ulong)p * s.x_stride + c] = sum;
}

// >>avg_pool2d

// The window of output o along an axis inside x, from .x to before .y, and in .z its size as divisor.
int3 avg_pool2d_window(const int o, const int size, const int kernel_size, const int stride,
                       const int padding, const int exclude_pad) {
    const int start = o * stride - padding;
    const int first = max(start, 0), last = min(size, start + kernel_size);
    return (int3)(first, last,
                  exclude_pad ? last - first : min(start + kernel_size, size + padding) - start);
}

// Grid: elements of y.
kernel void avg_pool2d_forward(PLACE(y), PLACE(x), const pool_sizes s) {
    OPEN(y);
    OPEN(x);
    const int c = get_global_id(0), p = get_global_id(1);
    if (c >= s.C || p >= s.N * s.OH * s.OW) {
        return;
    }
    const pixel out = pixel_of(p, INT_MAX, s.OH, s.OW);
    const int3 h =
        avg_pool2d_window(out.h, s.H, s.KH, s.stride_h, s.padding_h, s.exclude_pad);
    const int3 w =
        avg_pool2d_window(out.w, s.W, s.KW, s.stride_w, s.padding_w, s.exclude_pad);
    const ulong image = (ulong)out.image * s.H * s.W;
    float2 sum = (float2)(0.0f, 0.0f);
    for (int ih = h.x; ih < h.y; ih++) {
        for (int iw = w.x; iw < w.y; iw++) {
            sum = pair_add(sum, x[(image + ih * s.W + iw) * s.x_stride + c]);
        }
    }
    y[(ulong)p * s.y_stride + c] = pair_value(sum) / ((float)h.z * (float)w.z);
}

// Gathers from the windows that hold the pixel. Grid: elements of x.
kernel void avg_pool2d_backward(PLACE(dx), PLACE(dy), const pool_sizes s) {
    OPEN(dx);
    OPEN(dy);
    const int c = get_global_id(0), p = get_global_id(1);
    if (c >= s.C || p >= s.N * s.H * s.W) {
        return;
    }
    const pixel in = pixel_of(p, INT_MAX, s.H, s.W);
    const int end_h = in.h + s.padding_h, end_w = in.w + s.padding_w;
    const int first_h = end_h < s.KH ? 0 : (end_h - s.KH) / s.stride_h + 1;
    const int first_w = end_w < s.KW ? 0 : (end_w - s.KW) / s.stride_w + 1;
    const ulong image = (ulong)in.image * s.OH * s.OW;
    float2 sum = (float2)(0.0f, 0.0f);
    for (int oh = first_h; oh < min(s.OH, end_h / s.stride_h + 1); oh++) {
        const int size_h =
            avg_pool2d_window(oh, s.H, s.KH, s.stride_h, s.padding_h, s.exclude_pad).z;
        for (int ow = first_w; ow < min(s.OW, end_w / s.stride_w + 1); ow++) {
            const int size_w =
                avg_pool2d_window(ow, s.W, s.KW, s.stride_w, s.padding_w, s.exclude_pad).z;
            sum = pair_add(sum, dy[(image + oh * s.OW + ow) * s.y_stride + c] /
                                    ((float)size_h * (float)size_w));
        }
    }
    dx[(ulong)p * s.x_stride + c] += pair_value(sum);
}

// >>global_avg_pool

// y = the sum of a channel's slices, divided. Grid: channels, images.
kernel void global_avg_pool_forward(PLACE(y), PLACE(partial), const int C, const int N,
                                    const int slices, const int pixels, const int y_stride) {
    OPEN(y);
    OPEN(partial);
    const int c = get_global_id(0), n = get_global_id(1);
    if (c < C && n < N) {
        y[(ulong)n * y_stride + c] =
            pair_value(sum_partial(partial, n, c, slices, C, 1, 0)) / (float)pixels;
    }
}

// Grid: elements of x.
kernel void global_avg_pool_backward(PLACE(dx), PLACE(dy), const int C, const int N,
                                     const int pixels, const int x_stride, const int y_stride) {
    OPEN(dx);
    OPEN(dy);
    const int c = get_global_id(0), p = get_global_id(1);
    if (c < C && p < N * pixels) {
        dx[(ulong)p * x_stride + c] += dy[(ulong)(p / pixels) * y_stride + c] / (float)pixels;
    }
}

// >>upsample_bilinear

typedef struct upsample_sizes {
    int N, C, H, W, OH, OW; // x (N,C,H,W), y (N,C,OH,OW)
    int align_corners;
    float scale_h, scale_w;
    int x_stride, y_stride;
} upsample_sizes;

typedef struct upsample_tap {
    int low, high;
    float low_weight, high_weight;
} upsample_tap;

upsample_tap tap_of(const int o, const int size, const float scale, const int align_corners) {
    const float at = align_corners ? scale * (float)o : scale * ((float)o + 0.5f) - 0.5f;
    const float r = at < 0.0f ? 0.0f : at;
    const int low = min((int)r, size - 1);
    const float weight = r - (float)low > 1.0f ? 1.0f : r - (float)low;
    return (upsample_tap){low, min(low + 1, size - 1), 1.0f - weight, weight};
}

float weight_of(const upsample_tap t, const int i) {
    return (t.low == i ? t.low_weight : 0.0f) + (t.high == i ? t.high_weight : 0.0f);
}

// Outputs from .x to before .y: all that read input i, and some around them.
int2 readers_of(const int i, const int size, const int outputs, const float scale,
                const int align_corners) {
    if (scale == 0.0f) {
        return (int2)(0, outputs);
    }
    const float shift = align_corners ? 0.0f : 0.5f;
    const int first = (int)floor(((float)(i - 1) + shift) / scale - shift) - 2;
    const int last = (int)ceil(((float)(i + 1) + shift) / scale - shift) + 3;
    return (int2)(i == 0 ? 0 : max(first, 0), i == size - 1 ? outputs : min(last, outputs));
}

// y = .. or y += .. Grid: elements of y.
kernel void upsample_bilinear_forward(PLACE(y), PLACE(x), const int add, const upsample_sizes s) {
    OPEN(y);
    OPEN(x);
    const int c = get_global_id(0), p = get_global_id(1);
    if (c >= s.C || p >= s.N * s.OH * s.OW) {
        return;
    }
    const pixel out = pixel_of(p, INT_MAX, s.OH, s.OW);
    const upsample_tap h = tap_of(out.h, s.H, s.scale_h, s.align_corners);
    const upsample_tap w = tap_of(out.w, s.W, s.scale_w, s.align_corners);
    global const float *low = x + ((ulong)out.image * s.H + h.low) * s.W * s.x_stride + c;
    global const float *high = x + ((ulong)out.image * s.H + h.high) * s.W * s.x_stride + c;
    const ulong left = (ulong)w.low * s.x_stride, right = (ulong)w.high * s.x_stride;
    const float value = h.low_weight * (w.low_weight * low[left] + w.high_weight * low[right]) +
                        h.high_weight * (w.low_weight * high[left] + w.high_weight * high[right]);
    const ulong at = (ulong)p * s.y_stride + c;
    y[at] = add ? y[at] + value : value;
}

// Gathers from the outputs that read the pixel. Grid: elements of x.
kernel void upsample_bilinear_backward(PLACE(dx), PLACE(dy), const upsample_sizes s) {
    OPEN(dx);
    OPEN(dy);
    const int c = get_global_id(0), p = get_global_id(1);
    if (c >= s.C || p >= s.N * s.H * s.W) {
        return;
    }
    const pixel in = pixel_of(p, INT_MAX, s.H, s.W);
    const int2 h = readers_of(in.h, s.H, s.OH, s.scale_h, s.align_corners);
    const int2 w = readers_of(in.w, s.W, s.OW, s.scale_w, s.align_corners);
    const ulong image = (ulong)in.image * s.OH * s.OW;
    float2 sum = (float2)(0.0f, 0.0f);
    for (int oh = h.x; oh < h.y; oh++) {
        const float weight_h = weight_of(tap_of(oh, s.H, s.scale_h, s.align_corners), in.h);
        for (int ow = w.x; weight_h != 0.0f && ow < w.y; ow++) {
            const float weight_w = weight_of(tap_of(ow, s.W, s.scale_w, s.align_corners), in.w);
            if (weight_w != 0.0f) {
                sum = pair_add(sum, weight_h * weight_w *
                                        dy[(image + oh * s.OW + ow) * s.y_stride + c]);
            }
        }
    }
    dx[(ulong)p * s.x_stride + c] += pair_value(sum);
}

// >>concat

// y = x, or y += x. Grid: elements.
kernel void copy(PLACE(y), PLACE(x), const int add, const int C, const int pixels,
                 const int x_stride, const int y_stride) {
    OPEN(y);
    OPEN(x);
    const int c = get_global_id(0);
    const ulong p = get_global_id(1);
    if (c < C && p < pixels) {
        const float v = x[p * x_stride + c];
        y[p * y_stride + c] = add ? y[p * y_stride + c] + v : v;
    }
}

// >>add

// Grid: elements.
kernel void add_forward(PLACE(y), PLACE(a), PLACE(b), const int C, const int pixels,
                        const int a_stride, const int b_stride, const int y_stride) {
    OPEN(y);
    OPEN(a);
    OPEN(b);
    const int c = get_global_id(0);
    const ulong p = get_global_id(1);
    if (c < C && p < pixels) {
        y[p * y_stride + c] = a[p * a_stride + c] + b[p * b_stride + c];
    }
}

// >>scale_channels

// y = x gate, or in backward dx += dy gate. Grid: elements.
kernel void scale_channels(PLACE(y), PLACE(x), PLACE(gate), const int add, const int C,
                           const int N, const int pixels, const int x_stride, const int y_stride,
                           const int gate_stride) {
    OPEN(y);
    OPEN(x);
    OPEN(gate);
    const int c = get_global_id(0), p = get_global_id(1);
    if (c < C && p < N * pixels) {
        const float v = x[(ulong)p * x_stride + c] * gate[(ulong)(p / pixels) * gate_stride + c];
        const ulong at = (ulong)p * y_stride + c;
        y[at] = add ? y[at] + v : v;
    }
}

// >>attention_residual
// S = exp(f - top) / sum, with top and sum over the pixels of an image's channel.

// The largest value of the work-items that share get_local_id(0); as group_sum.
float group_largest(local float2 *shared, const float mine) {
    const int at = get_local_id(1) * REDUCE_CHANNELS + get_local_id(0);
    shared[at].x = mine;
    for (int half_rows = REDUCE_PIXELS / 2; half_rows > 0; half_rows /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (get_local_id(1) < half_rows) {
            const float other = shared[at + half_rows * REDUCE_CHANNELS].x;
            shared[at].x = other > shared[at].x ? other : shared[at].x;
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    const float largest = shared[get_local_id(0)].x;
    barrier(CLK_LOCAL_MEM_FENCE);
    return largest;
}

// partial = the slice's largest f, and its sum of exp(f - that). Grid: as channel_sums.
kernel REDUCE_GROUP void attention_sums(PLACE(partial), PLACE(f), const int C, const int pixels,
                                        const int slices, const int f_stride) {
    local float2 shared[REDUCE_CHANNELS * REDUCE_PIXELS];
    OPEN(partial);
    OPEN(f);
    const int c = get_global_id(0);
    float largest = -INFINITY;
    {
        SLICE_LOOP(p, pixels, slices) {
            if (c < C) {
                const float v = f[((ulong)image * pixels + p) * f_stride + c];
                largest = v > largest ? v : largest;
            }
        }
    }
    largest = group_largest(shared, largest);
    float2 sum = (float2)(0.0f, 0.0f);
    SLICE_LOOP(p, pixels, slices) {
        if (c < C) {
            sum = pair_add(sum, exp(f[((ulong)image * pixels + p) * f_stride + c] - largest));
        }
    }
    const float2 mine = get_local_id(1) == 0 ? (float2)(largest, 0.0f) : (float2)(0.0f, 0.0f);
    store_partial(partial, shared, mine, slices, C, 2, 0);
    store_partial(partial, shared, sum, slices, C, 2, 1);
}

// top and sum of whole channels: every slice's sum counts exp(its top - top). Grid: channels, images.
kernel void attention_statistics(PLACE(top), PLACE(sum), PLACE(partial), const int C, const int N,
                                 const int slices) {
    OPEN(top);
    OPEN(sum);
    OPEN(partial);
    const int c = get_global_id(0), image = get_global_id(1);
    if (c >= C || image >= N) {
        return;
    }
    float largest = -INFINITY;
    for (int slice = 0; slice < slices; slice++) {
        const float v = partial[(((ulong)image * slices + slice) * C + c) * 4];
        largest = v > largest ? v : largest;
    }
    float2 total = (float2)(0.0f, 0.0f);
    for (int slice = 0; slice < slices; slice++) {
        const ulong first = (((ulong)image * slices + slice) * C + c) * 2;
        const float2 part = pair_load(partial, first + 1);
        total = pair_add(total, pair_value(part) * exp(partial[2 * first] - largest));
    }
    top[(ulong)image * C + c] = largest;
    sum[(ulong)image * C + c] = pair_value(total);
}

// y = f + x + alpha S x. Grid: elements.
kernel void attention_residual_forward(PLACE(y), PLACE(f), PLACE(x), PLACE(alpha), PLACE(top),
                                       PLACE(sum), const int C, const int N, const int pixels,
                                       const int f_stride, const int x_stride,
                                       const int y_stride) {
    OPEN(y);
    OPEN(f);
    OPEN(x);
    OPEN(alpha);
    OPEN(top);
    OPEN(sum);
    const int c = get_global_id(0), p = get_global_id(1);
    if (c < C && p < N * pixels) {
        const ulong row = (ulong)(p / pixels) * C + c;
        const float v = f[(ulong)p * f_stride + c], z = x[(ulong)p * x_stride + c];
        const float share = alpha[0] * (exp(v - top[row]) / sum[row]);
        y[(ulong)p * y_stride + c] = v + MULTIPLY_ADD(share, z, z);
    }
}

// partial = sums of S x dy over the pixels. Grid: as channel_sums.
kernel REDUCE_GROUP void attention_dots(PLACE(partial), PLACE(dy), PLACE(f), PLACE(x), PLACE(top),
                                        PLACE(sum), const int C, const int pixels,
                                        const int slices, const int f_stride, const int x_stride,
                                        const int y_stride) {
    local float2 shared[REDUCE_CHANNELS * REDUCE_PIXELS];
    OPEN(partial);
    OPEN(dy);
    OPEN(f);
    OPEN(x);
    OPEN(top);
    OPEN(sum);
    const int c = get_global_id(0);
    float2 dot_product = (float2)(0.0f, 0.0f);
    SLICE_LOOP(p, pixels, slices) {
        if (c < C) {
            const ulong pixel = (ulong)image * pixels + p, row = (ulong)image * C + c;
            const float s = exp(f[pixel * f_stride + c] - top[row]) / sum[row];
            dot_product = pair_add(dot_product,
                                   s * (x[pixel * x_stride + c] * dy[pixel * y_stride + c]));
        }
    }
    store_partial(partial, shared, dot_product, slices, C, 1, 0);
}

// df += dy + alpha S (x dy - dot), dx += dy (1 + alpha S). Grid: elements.
kernel void attention_residual_backward(PLACE(df), PLACE(dx), PLACE(dy), PLACE(f), PLACE(x),
                                        PLACE(alpha), PLACE(top), PLACE(sum), PLACE(dots),
                                        const int C, const int N, const int pixels,
                                        const int f_stride, const int x_stride,
                                        const int y_stride) {
    OPEN(dy);
    OPEN(f);
    OPEN(x);
    OPEN(alpha);
    OPEN(top);
    OPEN(sum);
    OPEN(dots);
    const int c = get_global_id(0), p = get_global_id(1);
    if (c >= C || p >= N * pixels) {
        return;
    }
    const ulong row = (ulong)(p / pixels) * C + c;
    const ulong at_f = (ulong)p * f_stride + c, at_x = (ulong)p * x_stride + c;
    const float d = dy[(ulong)p * y_stride + c];
    const float share = alpha[0] * (exp(f[at_f] - top[row]) / sum[row]);
    if (THERE(df)) {
        (df_slab + df_at)[at_f] += MULTIPLY_ADD(share, x[at_x] * d - dots[row], d);
    }
    if (THERE(dx)) {
        (dx_slab + dx_at)[at_x] += MULTIPLY_ADD(share, d, d);
    }
}

// >>dropout

// The first two words of Philox4x32-10 as one number of 64 bits, see clnet.h.
ulong philox(const ulong seed, const ulong stream, const ulong counter) {
    uint4 x = (uint4)((uint)counter, (uint)(counter >> 32), (uint)stream, (uint)(stream >> 32));
    uint2 key = (uint2)((uint)seed, (uint)(seed >> 32));
    for (int round = 0; round < 10; round++) {
        const uint low0 = 0xD2511F53u * x.x, high0 = mul_hi(0xD2511F53u, x.x);
        const uint low1 = 0xCD9E8D57u * x.z, high1 = mul_hi(0xCD9E8D57u, x.z);
        x = (uint4)(high1 ^ x.y ^ key.x, low1, high0 ^ x.w ^ key.y, low0);
        key += (uint2)(0x9E3779B9u, 0xBB67AE85u);
    }
    return (ulong)x.y << 32 | x.x;
}

// y = x scale where the draw is at least `threshold` of 2^53, else 0. Grid: elements.
kernel void dropout(PLACE(y), PLACE(x), const int add, const float scale, const ulong threshold,
                    const ulong seed, const ulong stream, const int C, const int pixels,
                    const int x_stride, const int y_stride) {
    OPEN(y);
    OPEN(x);
    const int c = get_global_id(0);
    const ulong p = get_global_id(1);
    if (c < C && p < pixels) {
        const bool kept =
            threshold == 0 || philox(seed, stream, p * C + c) >> 11 >= threshold;
        const float v = kept ? x[p * x_stride + c] * scale : 0.0f;
        y[p * y_stride + c] = add ? y[p * y_stride + c] + v : v;
    }
}

// >>flip

typedef struct flip_desc {
    float mean[4], std[4];
    int plain; // the means are 0 and the others 1: also where there are more channels
} flip_desc;

// y = (x - mean) / std of the pixel that is mirrored to this one, or added to y. Grid: elements.
kernel void flip(PLACE(y), PLACE(x), PLACE_I(flips), const flip_desc d, const int add, const int C,
                 const int H, const int W, const int pixels, const int x_stride,
                 const int y_stride) {
    OPEN(y);
    OPEN(x);
    const int c = get_global_id(0), p = get_global_id(1);
    if (c >= C || p >= pixels) {
        return;
    }
    const pixel to = pixel_of(p, pixels, H, W);
    const int code = THERE(flips) ? max(flips_slab[flips_at + to.image], 0) : 0;
    const int h = code & 2 ? H - 1 - to.h : to.h, w = code & 1 ? W - 1 - to.w : to.w;
    const float v = x[(((ulong)to.image * H + h) * W + w) * x_stride + c];
    const float u = d.plain ? v : (v - d.mean[c]) / d.std[c];
    const ulong at = (ulong)p * y_stride + c;
    y[at] = add ? y[at] + u : u;
}

// >>focal_loss
// Few numbers: one work-item takes an image after the other. Logits are (N,K), dense.

enum { MAX_CLASSES = 64 };
typedef struct class_weights {
    float alpha[MAX_CLASSES];
} class_weights;

typedef struct focal {
    float largest, sum; // of the exponentials
    float log_p, q;     // of the label
} focal;

focal focal_of(global const float *z, const int K, const int label) {
    int top = 0;
    for (int k = 1; k < K; k++) {
        top = z[k] > z[top] ? k : top;
    }
    float2 rest = (float2)(0.0f, 0.0f), others = rest; // exponentials but the maximum's, the label's
    for (int k = 0; k < K; k++) {
        const float e = exp(z[k] - z[top]);
        rest = pair_add(rest, k == top ? 0.0f : e);
        others = pair_add(others, k == label ? 0.0f : e);
    }
    const float sum = 1.0f + pair_value(rest);
    return (focal){z[top], sum, (z[label] - z[top]) - log1p(pair_value(rest)),
                   pair_value(others) / sum};
}

float power_of(const float q, const float gamma) {
    return gamma == 2.0f ? q * q : gamma == 0.0f ? 1.0f : pow(q, gamma);
}

int labelled(global const int *label, const int N, const int K) {
    int count = 0;
    for (int n = 0; n < N; n++) {
        count += label[n] >= 0 && label[n] < K;
    }
    return count;
}

// Grid: one.
kernel void focal_loss_forward(PLACE(loss), PLACE(logits), PLACE_I(label),
                               const class_weights weights, const float gamma, const int N,
                               const int K) {
    OPEN(loss);
    OPEN(logits);
    OPEN_I(label);
    float2 sum = (float2)(0.0f, 0.0f);
    for (int n = 0; n < N; n++) {
        const int t = label[n];
        if (t >= 0 && t < K) {
            const focal f = focal_of(logits + n * K, K, t);
            sum = pair_add(sum, -weights.alpha[t] * power_of(f.q, gamma) * f.log_p);
        }
    }
    const int count = labelled(label, N, K);
    loss[0] = count ? pair_value(sum) / (float)count : 0.0f;
}

// Grid: images.
kernel void focal_loss_backward(PLACE(dlogits), PLACE(dloss), PLACE(logits), PLACE_I(label),
                                const class_weights weights, const float gamma, const int N,
                                const int K) {
    OPEN(dlogits);
    OPEN(dloss);
    OPEN(logits);
    OPEN_I(label);
    const int n = get_global_id(0);
    if (n >= N || label[n] < 0 || label[n] >= K) {
        return;
    }
    const int t = label[n];
    global const float *z = logits + n * K;
    const focal f = focal_of(z, K, t);
    const float ratio = f.q > 0.0f ? f.log_p / f.q : -1.0f;
    const float share = dloss[0] * weights.alpha[t] / (float)labelled(label, N, K);
    const float factor =
        share * power_of(f.q, gamma) * (gamma * exp(f.log_p) * ratio - 1.0f);
    for (int k = 0; k < K; k++) {
        dlogits[n * K + k] += factor * (k == t ? f.q : -(exp(z[k] - f.largest) / f.sum));
    }
}

// >>mask_focal_loss
// Logits and masks are (N,1,H,W), dense. An image whose mask begins with a negative number has none.

float log_sigmoid(const float u) { return u < 0.0f ? u - log1p(exp(u)) : -log1p(exp(-u)); }

int masked(global const float *mask, const int N, const int pixels) {
    int count = 0;
    for (int n = 0; n < N; n++) {
        count += !(mask[(ulong)n * pixels] < 0.0f);
    }
    return count;
}

// partial = sums over slices of each image: of this loss, of Dice's p m, p and m. The pixels are
// spread over all work-items of a group. Grid: REDUCE_CHANNELS, slices * REDUCE_PIXELS, images.
kernel REDUCE_GROUP void mask_sums(PLACE(partial), PLACE(logits), PLACE(mask), const int dice,
                                   const float gamma, const int pixels, const int slices) {
    local float2 shared[REDUCE_CHANNELS * REDUCE_PIXELS];
    OPEN(partial);
    OPEN(logits);
    OPEN(mask);
    const float first = mask[(ulong)get_global_id(2) * pixels];
    float2 sum[3];
    for (int q = 0; q < 3; q++) {
        sum[q] = (float2)(0.0f, 0.0f);
    }
    SLICE_LOOP(p, (pixels + REDUCE_CHANNELS - 1) / REDUCE_CHANNELS, slices) {
        const int at = p * REDUCE_CHANNELS + get_local_id(0);
        if (at < pixels && !(first < 0.0f)) {
            const float z = logits[(ulong)image * pixels + at], m = mask[(ulong)image * pixels + at];
            if (dice) {
                const float probability = sigmoid_of(z);
                sum[0] = pair_add(sum[0], probability * m);
                sum[1] = pair_add(sum[1], probability);
                sum[2] = pair_add(sum[2], m);
            } else {
                const float u = m > 0.5f ? z : -z;
                sum[0] = pair_add(sum[0], -power_of(sigmoid_of(-u), gamma) * log_sigmoid(u));
            }
        }
    }
    for (int q = 0; q < 3; q++) {
        store_partial(partial, shared, sum[q], slices, REDUCE_CHANNELS, 3, q);
    }
}

// The sum of an image's slices and of the work-items that stood side by side.
float2 mask_sum(global const float *partial, const int image, const int slices,
                const int quantity) {
    float2 sum = (float2)(0.0f, 0.0f);
    for (int c = 0; c < REDUCE_CHANNELS; c++) {
        sum = pair_join(sum, sum_partial(partial, image, c, slices, REDUCE_CHANNELS, 3, quantity));
    }
    return sum;
}

// Grid: one.
kernel void mask_focal_loss_forward(PLACE(loss), PLACE(partial), PLACE(mask), const int N,
                                    const int pixels, const int slices) {
    OPEN(loss);
    OPEN(partial);
    OPEN(mask);
    float2 sum = (float2)(0.0f, 0.0f);
    for (int n = 0; n < N; n++) {
        sum = pair_join(sum, mask_sum(partial, n, slices, 0));
    }
    const int count = masked(mask, N, pixels);
    loss[0] = count ? pair_value(sum) / ((float)count * (float)pixels) : 0.0f;
}

// Grid: pixels of all images.
kernel void mask_focal_loss_backward(PLACE(dlogits), PLACE(dloss), PLACE(logits), PLACE(mask),
                                     const float gamma, const int N, const int pixels) {
    OPEN(dlogits);
    OPEN(dloss);
    OPEN(logits);
    OPEN(mask);
    const int i = get_global_id(0);
    if (i >= N * pixels || mask[i / pixels * pixels] < 0.0f) {
        return;
    }
    const float share = dloss[0] / ((float)masked(mask, N, pixels) * (float)pixels);
    const float sign = mask[i] > 0.5f ? 1.0f : -1.0f, u = sign * logits[i];
    const float q = sigmoid_of(-u), p = sigmoid_of(u);
    dlogits[i] += sign * share * (power_of(q, gamma) * (gamma * p * log_sigmoid(u) - q));
}

// >>dice_loss

// each[n] = (D, denominator) of an image. Grid: images.
kernel void dice_of_images(PLACE(each), PLACE(partial), const float smooth_term, const int N,
                           const int slices) {
    OPEN(each);
    OPEN(partial);
    const int n = get_global_id(0);
    if (n < N) {
        const float both = pair_value(mask_sum(partial, n, slices, 0));
        const float predicted = pair_value(mask_sum(partial, n, slices, 1));
        const float truth = pair_value(mask_sum(partial, n, slices, 2));
        const float denominator = predicted + truth + smooth_term;
        const float dice = denominator > 0.0f    ? (2.0f * both + smooth_term) / denominator
                           : denominator == 0.0f ? 1.0f
                                                 : denominator; // NaN
        pair_store(each, n, (float2)(dice, denominator));
    }
}

// Grid: one.
kernel void dice_loss_forward(PLACE(loss), PLACE(each), PLACE(mask), const int N,
                              const int pixels) {
    OPEN(loss);
    OPEN(each);
    OPEN(mask);
    float2 sum = (float2)(0.0f, 0.0f);
    for (int n = 0; n < N; n++) {
        if (!(mask[(ulong)n * pixels] < 0.0f)) {
            sum = pair_add(sum, 1.0f - each[2 * n]);
        }
    }
    const int count = masked(mask, N, pixels);
    loss[0] = count ? pair_value(sum) / (float)count : 0.0f;
}

// Grid: pixels of all images.
kernel void dice_loss_backward(PLACE(dlogits), PLACE(dloss), PLACE(each), PLACE(logits),
                               PLACE(mask), const int N, const int pixels) {
    OPEN(dlogits);
    OPEN(dloss);
    OPEN(each);
    OPEN(logits);
    OPEN(mask);
    const int i = get_global_id(0);
    if (i >= N * pixels || mask[i / pixels * pixels] < 0.0f) {
        return;
    }
    const float2 d = pair_load(each, i / pixels); // D, denominator
    if (d.y != 0.0f) {
        const float slope = sigmoid_of(logits[i]) * sigmoid_of(-logits[i]);
        const float share = dloss[0] / (float)masked(mask, N, pixels);
        dlogits[i] += share * (d.x - 2.0f * mask[i]) / d.y * slope;
    }
}

// >>weighted_sum

// y = weight x, or y += weight x. Grid: one.
kernel void weighted_add(PLACE(y), PLACE(x), const float weight, const int add) {
    OPEN(y);
    OPEN(x);
    y[0] = (add ? y[0] : 0.0f) + weight * x[0];
}

// >>adam
// See clnet.h. The scalars are computed in double by the host. Grid: numbers.
kernel void adam_step(PLACE(p), PLACE(m), PLACE(v), PLACE(g), const ulong count, const float rate1,
                      const float rate2, const float keep2, const float step, const float root2,
                      const float eps, const float decay, const float shrink) {
    OPEN(p);
    OPEN(m);
    OPEN(v);
    OPEN(g);
    const ulong i = get_global_id(0);
    if (i < count) {
        const float slope = g[i] + decay * p[i];
        m[i] += (slope - m[i]) * rate1;
        v[i] = keep2 * v[i] + rate2 * slope * slope;
        p[i] -= shrink * p[i] + step * m[i] / (sqrt(v[i]) * root2 + eps);
    }
}

// >>peak
// What a device can reach, for clnet_cl_measure_peak.

// `rounds` steps of 64 chains of multiply-adds: as many as hide the latency of one on GPUs, and eight
// vectors of AVX on CPUs. Grid: work-items, each with one number of y.
kernel void peak_multiply_add(PLACE(y), const float factor, const float summand, const int rounds) {
    OPEN(y);
    const float16 f = factor, s = summand;
    float16 a = (float)get_local_id(0), b = a + 1.0f, c = a + 2.0f, d = a + 3.0f;
    for (int i = 0; i < rounds; i++) {
        a = MULTIPLY_ADD(a, f, s);
        b = MULTIPLY_ADD(b, f, s);
        c = MULTIPLY_ADD(c, f, s);
        d = MULTIPLY_ADD(d, f, s);
    }
    float numbers[16], sum = 0.0f; // Oclgrind takes halves of vectors (.lo, .hi) for uninitialised
    vstore16(a + b + c + d, 0, numbers);
    for (int i = 0; i < 16; i++) {
        sum += numbers[i];
    }
    y[get_global_id(0)] = sum;
}

// y = x. Grid: vectors of four numbers.
kernel void peak_copy(PLACE(y), PLACE(x)) {
    OPEN(y);
    OPEN(x);
    vstore4(vload4(get_global_id(0), x), get_global_id(0), y);
}
