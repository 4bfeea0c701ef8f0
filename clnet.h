// clnet.h - deep learning in plain C: CLNet, feature fusion for segmentation and classification of
// skin lesions (Zhang, Chen, Yu, Yao, Li; ISBI 2022), and the small trainable engine it stands on.
//
// One C file of your program says
//
//     #define CLNET_IMPLEMENTATION
//     #include "clnet.h"
//
// and every other file includes the header alone. It needs libc and libm, and uses all processors
// where it is compiled with OpenMP: cc -O3 -fopenmp program.c -lm
//
// A lesion's mask and scores from an image (error handling at the end is enough, see "results"):
//
//     clnet_context *ctx = clnet_context_create(NULL);            // this CPU, all its cores
//     clnet_model *net = clnet_model_open(ctx, "best.safetensors");
//     clnet_prediction p = {.mask = malloc((size_t)w * h)};
//     if (clnet_predict(net, rgb, h, w, &p) != CLNET_OK) puts(clnet_error(ctx));
//     else printf("melanoma %.3f\n", p.scores[0]);
//     clnet_model_destroy(net);
//     clnet_context_destroy(ctx);
//
// Conventions
//
// - Numbers are clnet_real, float unless CLNET_REAL says otherwise. Shapes are spoken (N,C,H,W) as
//   in PyTorch; in memory channels are innermost: (N,H,W,C), weights (KH,KW,IC/groups,OC). Values
//   enter and leave through clnet_tensor_set and clnet_tensor_get, in PyTorch's order by default.
// - Sizes of one axis are int; numbers of elements and bytes are size_t. Height comes before width.
// - In a desc, zero means the default, which stands beside the field. Scalars are double.
// - Forward writes its output (=). Backward adds (+=) to every gradient; the graph zeroes them.
// - Building can fail, and loading; the CPU's arithmetic cannot. No memory is taken while a graph
//   runs. Nothing here prints, exits or keeps state outside its contexts; two contexts may be used
//   from two threads. The same seed gives the same bits on any number of threads.
//
// Contents (search for the mark)
//
//     >>config        macros that a program may define before the include
//     >>results       result codes, errors, contexts
//     >>tensors       values in, values out
//     >>random        counter-based random numbers
//     >>graph         build, run, plan
//     >>ops           one builder per operation, in the order of the list CLNET_OPS
//     >>optimiser     Adam, AdamW, learning rates, one training step
//     >>models        the networks of the paper by name, prediction, class activation maps
//     >>image         bytes of an image to the network's input, probabilities to its size
//     >>metrics       segmentation and classification measures of ISIC 2017
//     >>files         safetensors, PyTorch's .pth, checkpoints
//     >>reference     the plain loops of every operation, for reading and for checking others
//     >>backend       what another device has to provide (clnet_cl.h does)
//     implementation: >>basics, >>threads, >>convolution (the fast path), >>winograd (the faster one
//     for 3 x 3), >>random, one mark for each operation in the list's order (>>conv2d, >>linear, ...),
//     >>plan, >>run, >>values, >>cpu (the backend), >>adam, >>optimiser, >>image, >>metrics, >>files,
//     >>models, >>predict, >>cam, >>checkpoints; the license stands at the end
#ifndef CLNET_H
#define CLNET_H

#define CLNET_VERSION "0.1.0"

// >>config
//
// CLNET_IMPLEMENTATION  in one C file: the functions themselves, not only their declarations
// CLNET_STATIC          every function static, so that several files can each have a copy
// CLNET_API             linkage of the public functions; default: extern, or static by CLNET_STATIC
// CLNET_REAL            float (default), or double: plain loops only, for gradient checks
// CLNET_MALLOC(n), CLNET_FREE(p)  memory, where a context's desc has no allocator of its own
// CLNET_NO_STDIO        no file functions by default: a context's desc then has to bring them
// CLNET_CLOCK()         seconds as a double, for profiles; default: OpenMP's clock, or clock()

#if defined(__FAST_MATH__)
#error "clnet.h: -ffast-math removes the checks for NaN and changes sums; compile without it"
#endif

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef CLNET_REAL
#define CLNET_REAL float
#endif
typedef CLNET_REAL clnet_real;

#ifndef CLNET_API
#ifdef CLNET_STATIC
#if defined(__GNUC__)
#define CLNET_API static __attribute__((unused))
#else
#define CLNET_API static
#endif
#else
#define CLNET_API extern
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

// >>results
//
// Every call that can fail returns a clnet_result, or NULL where it returns an object. The first
// failure stays in the context: everything after it passes it on without doing anything, so that a
// chain of calls needs one check at its end.

typedef enum clnet_result {
    CLNET_OK,
    CLNET_ERROR_ARGUMENT,    // a call got what does not fit: a shape, a name, a range
    CLNET_ERROR_MEMORY,      // no memory
    CLNET_ERROR_FILE,        // a file cannot be opened, read or written
    CLNET_ERROR_TRUNCATED,   // a file ends before what it announces
    CLNET_ERROR_SYNTAX,      // a file is not of the format it should be: magic, JSON
    CLNET_ERROR_ENCODING,    // text in a file is not UTF-8
    CLNET_ERROR_DUPLICATE,   // a file names something twice
    CLNET_ERROR_METADATA,    // a file's metadata are not strings, or lack what is needed
    CLNET_ERROR_DTYPE,       // a type of number that is unknown, or not the one wanted
    CLNET_ERROR_SHAPE,       // a tensor's shape in a file is no shape
    CLNET_ERROR_OFFSETS,     // a tensor's place in a file does not fit: gap, overlap, wrong size
    CLNET_ERROR_LIMIT,       // larger than clnet accepts
    CLNET_ERROR_CHECKSUM,    // bytes of a file do not have the sum that it says
    CLNET_ERROR_UNSUPPORTED, // a kind of file, or an instruction in it, that clnet does not accept
    CLNET_ERROR_MISMATCH,    // weights of another network: missing, unexpected, mis-shaped names
    CLNET_ERROR_NONFINITE,   // NaN or infinity appeared in training
    CLNET_ERROR_DEVICE       // a device failed; its context is dead
} clnet_result;

typedef struct clnet_context clnet_context;

// Memory functions of the user. Both get `user`. alloc gives memory aligned as malloc does, or NULL.
typedef struct clnet_allocator {
    void *(*alloc)(void *user, size_t bytes);
    void (*free)(void *user, void *memory);
    void *user;
} clnet_allocator;

// Files as the library reaches them. Paths are the user's own. All but `open` and `rename` get the
// handle that open returned; a false or a short count is a failure and errno tells why, if it can.
typedef struct clnet_files {
    void *(*open)(void *user, const char *path,
                  bool write); // NULL: failed. write: empties the file
    bool (*size)(void *user, void *file, uint64_t *bytes);
    size_t (*read)(void *user, void *file, uint64_t offset, void *data, size_t bytes);
    size_t (*write)(void *user, void *file, const void *data, size_t bytes); // appends
    bool (*sync)(void *user, void *file);  // data are on the disk, or as near as can be
    bool (*close)(void *user, void *file); // the file is closed in any case
    bool (*rename)(void *user, const char *from, const char *to); // replaces `to`, in one step
    void (*remove)(void *user, const char *path);
    void *user;
} clnet_files;

// Which vector code the fast path uses. What a machine does not have is refused.
typedef enum clnet_isa {
    CLNET_ISA_AUTO, // the best that this machine has
    CLNET_ISA_PORTABLE,
    CLNET_ISA_AVX2,
    CLNET_ISA_AVX512
} clnet_isa;

typedef struct clnet_context_desc {
    int threads;      // 0 = as many as OpenMP offers; without OpenMP always 1
    clnet_isa isa;    // 0 = the best that the machine has
    bool reference;   // plain loops for every operation
    bool no_winograd; // every convolution directly; see >>winograd
    bool profile;     // measure what runs; see clnet_profile
    // Bytes that memory is taken in at a time, where allocations that are as large as allowed fail or
    // waste; 0 = as large as the device allows.
    size_t largest_allocation;
    clnet_allocator allocator; // {0} = CLNET_MALLOC and CLNET_FREE
    const clnet_files *files;  // NULL = the C library's; the table is copied
} clnet_context_desc;

// A context on this CPU. NULL as desc: all defaults. NULL is returned only when there is no memory;
// a bad desc gives a context in an error state. Freed by clnet_context_destroy, after the graphs
// and models that belong to it.
CLNET_API clnet_context *clnet_context_create(const clnet_context_desc *desc);
CLNET_API void clnet_context_destroy(clnet_context *ctx);

// The first failure since the context was made or cleared, and its sentence: "" when there was
// none. clnet_error(NULL) is "out of memory". The text belongs to the context.
CLNET_API clnet_result clnet_context_result(const clnet_context *ctx);
CLNET_API const char *clnet_error(const clnet_context *ctx);

// Forgets the failure, so that a program can go on after one that it understands (a bad file among
// many). Graphs whose building failed stay unusable.
CLNET_API void clnet_context_clear(clnet_context *ctx);

// What the context really uses: "cpu" or the device's name, the vector code, the threads.
CLNET_API const char *clnet_context_device(const clnet_context *ctx);
CLNET_API const char *clnet_context_isa(const clnet_context *ctx);
CLNET_API int clnet_context_threads(const clnet_context *ctx);

// The names of the vector codes ("auto", "portable", "avx2", "avx512"), and whether this machine
// has one.
CLNET_API const char *clnet_isa_name(clnet_isa isa);
CLNET_API bool clnet_isa_supported(clnet_isa isa);

// Where the time of a context goes, if its desc asked for a profile. On the CPU a row is one pass of
// an operation; on a device it is a kernel, which is waited for, so that a profiled run is slower.
// What follows a convolution in evaluation (batch norm, addition, ReLU) counts to it on the CPU.
// Moving memory has rows of its own: "fill", "upload" (to the device), "download".
typedef struct clnet_profile_row {
    const char *name; // the operation or the kernel
    const char *pass; // "forward", "backward", "update"; "" for a kernel and for memory
    uint64_t calls;
    double total, longest; // seconds, of all calls and of the slowest
    double macs;  // multiply-adds of the direct algorithm: convolutions and matrix products
    double bytes; // of the tensors that were read and written; 0 for most kernels
} clnet_profile_row;

// The rows that have calls, by index; false beyond the last one, and without a profile.
CLNET_API bool clnet_profile(const clnet_context *ctx, int index, clnet_profile_row *row);

// The same time node by node, of all graphs that were built in the context, in the order of their
// nodes; those that are gone stay. Memory is not in it, nor is the optimiser. A node that another one
// computes has no calls.
typedef struct clnet_profile_node {
    const char *name, *op; // of the output, and the operation
    int shape[4];          // of the output, as planned
    clnet_profile_row forward, backward;
} clnet_profile_node;

// By index; false beyond the last one, and without a profile.
CLNET_API bool clnet_profile_at(const clnet_context *ctx, int index, clnet_profile_node *node);

// Begins anew, after a warm-up for example.
CLNET_API void clnet_profile_clear(clnet_context *ctx);

// >>tensors
//
// A tensor is a named place of values in a graph, with a gradient where one is needed. Its memory
// is planned by clnet_graph_build; before that it has a shape and nothing else. Graphs own tensors.

typedef struct clnet_graph clnet_graph;
typedef struct clnet_tensor clnet_tensor;
typedef struct clnet_node clnet_node;

// The order of the numbers in a caller's array.
typedef enum clnet_order {
    CLNET_ORDER_TORCH, // (N,C,H,W); weights (OC,IC/groups,KH,KW), linear (out,in)
    CLNET_ORDER_MEMORY // as in memory: (N,H,W,C); weights (KH,KW,IC/groups,OC), linear (in,out)
} clnet_order;

// Copies the values of a tensor in or out. `data` holds clnet_tensor_count numbers: clnet_real, or
// int32_t for labels. For the values of an activation to be there after a run it has to be an
// output (see clnet_tensor_keep). Fails before clnet_graph_build.
CLNET_API clnet_result clnet_tensor_set(clnet_tensor *t, const void *data, clnet_order order);
CLNET_API clnet_result clnet_tensor_get(clnet_tensor *t, void *data, clnet_order order);

// The same for gradients: of parameters, and of tensors for which clnet_tensor_require_grad was
// called. Setting the gradient of the graph's root gives backward its upstream gradient.
CLNET_API clnet_result clnet_tensor_set_grad(clnet_tensor *t, const void *data, clnet_order order);
CLNET_API clnet_result clnet_tensor_get_grad(clnet_tensor *t, void *data, clnet_order order);

// The first value of a tensor as a double: the way to read a loss. NaN in an error state.
CLNET_API double clnet_tensor_item(clnet_tensor *t);

CLNET_API const char *clnet_tensor_name(const clnet_tensor *t);
CLNET_API int clnet_tensor_rank(const clnet_tensor *t);           // 0 to 4
CLNET_API int clnet_tensor_size(const clnet_tensor *t, int axis); // 1 beyond the rank
CLNET_API size_t clnet_tensor_count(const clnet_tensor *t);       // number of values, batch as set
CLNET_API bool clnet_tensor_trainable(const clnet_tensor *t); // false: a buffer (running_mean, ..)

// Before clnet_graph_build: gives an activation the name under which it is found, e.g. the name of
// the block whose last operation made it. The text is copied. Returns t; NULL is passed on.
CLNET_API clnet_tensor *clnet_tensor_rename(clnet_tensor *t, const char *name);

// Before clnet_graph_build: the values of an activation are wanted after forward (keep), or its
// gradient after backward (require_grad). Otherwise their memory is used again. NULL is passed on.
CLNET_API clnet_tensor *clnet_tensor_keep(clnet_tensor *t);
CLNET_API clnet_tensor *clnet_tensor_require_grad(clnet_tensor *t);

// >>random
//
// Random numbers by counter: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As
// Easy as 1, 2, 3; SC'11). There is no state: a number is a function of the seed, of a stream (what
// it is for: a tensor's index, an epoch) and of a counter (which one), so that any thread can make
// any of them, in any order, and resuming needs nothing but the three numbers.

// Four words of 32 random bits. The block's counter is, lowest word first, (counter, stream), its
// key is the seed.
CLNET_API void clnet_random_bits(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4]);

// Uniform in [0,1): a multiple of 2^-53, made of the first two words. The same on every machine.
CLNET_API double clnet_random_uniform(uint64_t seed, uint64_t stream, uint64_t counter);

// Normal, mean 0 and variance 1, by the cosine half of Box and Muller's transform, in double. All
// four words are used. Its last bits are as good as the C library's log and cos.
CLNET_API double clnet_random_normal(uint64_t seed, uint64_t stream, uint64_t counter);

// order = a permutation of 0 .. count - 1, all equally likely (Fisher and Yates, drawing without
// bias). Uses the counters from 0 on of this stream. The same on every machine.
CLNET_API void clnet_random_permutation(int *order, int count, uint64_t seed, uint64_t stream);

// >>graph
//
// A model is a list of nodes in execution order. Builders (see "ops") append to it and infer the
// shapes; clnet_graph_build plans every byte; running is one loop over the nodes.

// An empty graph. NULL in, or a context in an error state: NULL out. Freed by clnet_graph_destroy,
// with all its tensors.
CLNET_API clnet_graph *clnet_graph_create(clnet_context *ctx);
CLNET_API void clnet_graph_destroy(clnet_graph *g);
CLNET_API clnet_context *clnet_graph_context(const clnet_graph *g);

typedef struct clnet_build_desc {
    clnet_tensor *loss;  // where backward starts; NULL = inference only. Of one value: its upstream
                         // gradient is 1 (or loss_scale); else the caller sets it with
                         // clnet_tensor_set_grad before each backward
    bool no_weight_grad; // gradients only for tensors with clnet_tensor_require_grad (inputs, CAM)
    bool keep_all;       // every activation keeps its values: for looking at them, costs memory;
                         // else backward computes again what costs little, with the same bits
    bool no_accumulation;    // the gradients of the weights share the activations' memory: every
                             // backward starts them from 0, and the next forward overwrites them
    bool no_initial_weights; // weights stay 0: they are loaded next
    uint64_t seed;           // of the initial weights and of dropout
} clnet_build_desc;

// Plans memory, takes it, and initialises the weights: convolutions Kaiming normal (fan-out, ReLU
// gain), linear layers as torch.nn.Linear, biases 0, batch norm 1 and 0. NULL as desc: inference.
// Fails with the first failure of the builders, if there was one. Called once.
CLNET_API clnet_result clnet_graph_build(clnet_graph *g, const clnet_build_desc *desc);

// Batch norm and dropout as in training (true) or in evaluation (false, the default after an
// inference build; a build with a loss starts in training).
CLNET_API void clnet_graph_set_training(clnet_graph *g, bool training);

// Any batch from 1 to the one that the graph was built for, without planning again.
CLNET_API clnet_result clnet_graph_set_batch(clnet_graph *g, int batch);

// The upstream gradient of a loss, 1 by default: 1/k averages over k accumulated batches.
CLNET_API void clnet_graph_set_loss_scale(clnet_graph *g, double scale);

// Dropout draws from (seed, step): set the step before each forward to be able to repeat it.
// clnet_train_step counts it by itself.
CLNET_API void clnet_graph_set_step(clnet_graph *g, uint64_t step);
CLNET_API uint64_t clnet_graph_step(const clnet_graph *g);

// Runs the nodes in order. After it, kept activations and losses can be read.
CLNET_API clnet_result clnet_graph_forward(clnet_graph *g);

// Runs the nodes backwards from the loss, once after each forward. Gradients of parameters add up
// until clnet_graph_zero_grad (unless no_accumulation was asked for, which leaves that nothing to do);
// those of activations start from zero each time.
CLNET_API clnet_result clnet_graph_backward(clnet_graph *g);
CLNET_API clnet_result clnet_graph_zero_grad(clnet_graph *g);

// Parameters and buffers in the order in which they were built, and by name (NULL: none).
CLNET_API int clnet_graph_weights(const clnet_graph *g);
CLNET_API clnet_tensor *clnet_graph_weight(const clnet_graph *g, int index);
CLNET_API clnet_tensor *clnet_graph_find_weight(const clnet_graph *g, const char *name);

// Activations and inputs likewise.
CLNET_API int clnet_graph_activations(const clnet_graph *g);
CLNET_API clnet_tensor *clnet_graph_activation(const clnet_graph *g, int index);
CLNET_API clnet_tensor *clnet_graph_find_activation(const clnet_graph *g, const char *name);

// Nodes in execution order, for tables: operation, output, multiply-adds of one forward pass of the
// batch as built.
CLNET_API int clnet_graph_nodes(const clnet_graph *g);
CLNET_API const char *clnet_graph_node_op(const clnet_graph *g, int index);
CLNET_API const clnet_tensor *clnet_graph_node_output(const clnet_graph *g, int index);
CLNET_API double clnet_graph_node_macs(const clnet_graph *g, int index);

// The memory plan in bytes. Known as soon as clnet_graph_plan or clnet_graph_build returned.
typedef struct clnet_memory_plan {
    size_t parameters;  // weights
    size_t buffers;     // running statistics
    size_t gradients;   // of the weights; 0 with no_accumulation: they are among the activations
    size_t optimiser;   // Adam's moments
    size_t activations; // with their gradients, what operations save, and inputs, sharing memory
    size_t unshared;    // what activations would be without sharing
    size_t workspace;   // scratch of the operation that needs most
    size_t total;
} clnet_memory_plan;

// The largest batch, up to `limit`, for which a graph that was planned takes at most `bytes`, in pieces
// that the context can take; 0: not even one image's.
CLNET_API int clnet_graph_largest_batch(clnet_graph *g, size_t bytes, int limit);

// Plans without taking memory: what clnet_graph_build would take. clnet_graph_build may follow.
CLNET_API clnet_result clnet_graph_plan(clnet_graph *g, const clnet_build_desc *desc,
                                        clnet_memory_plan *plan);

// After a step that failed with CLNET_ERROR_NONFINITE, or at any time after a forward: runs forward
// again and names the first node whose output is not finite. NULL: all are.
CLNET_API const char *clnet_graph_first_nonfinite(clnet_graph *g);

// >>ops
//
// Builders append one node and return its output. NULL as an input gives NULL; the sentence in the
// context names the operation, the node and the shapes. `name` is copied; a layer with weights
// needs one, since its parameters are found by it ("conv1" gives "conv1.weight", "conv1.bias").

// (N,C,H,W) numbers; set them with clnet_tensor_set.
CLNET_API clnet_tensor *clnet_input(clnet_graph *g, const char *name, int n, int c, int h, int w);

// (N) classes, int32_t; negative: this image has no label. clnet_tensor_set refuses what is not below
// the number of classes of the loss that reads them.
CLNET_API clnet_tensor *clnet_input_labels(clnet_graph *g, const char *name, int n);

// y[n,oc,oh,ow] = b[oc] + sum over ic,kh,kw of w[oc,ic,kh,kw] x[n, ic, oh*stride - padding + kh*dilation, ..]
// x (N,C,H,W) -> (N,OC,OH,OW), OH = (H + 2 padding - dilation (KH-1) - 1) / stride + 1, rounded
// down. Weights NAME.weight (OC, C/groups, KH, KW) and NAME.bias (OC). torch.nn.Conv2d.
typedef struct clnet_conv2d_desc {
    int out_channels;   // required
    int kernel_size[2]; // required; height, width
    int stride[2];      // 0 = 1
    int padding[2];     // zeros on each side
    int dilation[2];    // 0 = 1
    int groups;         // 0 = 1; divides both channel counts
    bool no_bias;
    const char *name; // required
} clnet_conv2d_desc;
CLNET_API clnet_tensor *clnet_conv2d(clnet_graph *g, clnet_tensor *x, const clnet_conv2d_desc *d);

// y = x w^T + b: x (N,C) or (N,C,1,1) -> (N, out_features). NAME.weight (out, in), NAME.bias (out).
// torch.nn.Linear.
typedef struct clnet_linear_desc {
    int out_features; // required
    bool no_bias;
    const char *name; // required
} clnet_linear_desc;
CLNET_API clnet_tensor *clnet_linear(clnet_graph *g, clnet_tensor *x, const clnet_linear_desc *d);

// y = (x - mean) / sqrt(var + eps) * weight + bias per channel. In training, mean and (biased) var
// are those of the batch and the running statistics move towards them: running += momentum (batch
// - running), with the unbiased variance; one value per channel is refused. In evaluation the
// running ones are used. NAME.weight, .bias, .running_mean, .running_var (C). torch.nn.BatchNorm2d.
typedef struct clnet_batch_norm_desc {
    double eps;       // 0 = 1e-5
    double momentum;  // 0 = 0.1
    const char *name; // required
} clnet_batch_norm_desc;
CLNET_API clnet_tensor *clnet_batch_norm(clnet_graph *g, clnet_tensor *x,
                                         const clnet_batch_norm_desc *d);

// y = max(x, 0); the gradient at 0 is 0; NaN stays NaN. torch.nn.ReLU.
CLNET_API clnet_tensor *clnet_relu(clnet_graph *g, clnet_tensor *x);

// y = 1 / (1 + exp(-x)). torch.nn.Sigmoid.
CLNET_API clnet_tensor *clnet_sigmoid(clnet_graph *g, clnet_tensor *x);

// y = exp(x) / sum of exp(x) along an axis (1: channels, 2: height, 3: width). torch.nn.Softmax.
CLNET_API clnet_tensor *clnet_softmax(clnet_graph *g, clnet_tensor *x, int axis);

// Windows as in conv2d. Max: padding never wins, NaN wins, ties go to the first in row-major order.
// Average: over the window, counting padding as zeros unless count_exclude_pad.
// torch.nn.MaxPool2d, AvgPool2d (floor mode; dilation is for max only).
typedef struct clnet_pool2d_desc {
    int kernel_size[2]; // required
    int stride[2];      // 0 = kernel_size
    int padding[2];     // at most half the kernel
    int dilation[2];    // 0 = 1
    bool count_exclude_pad;
} clnet_pool2d_desc;
CLNET_API clnet_tensor *clnet_max_pool2d(clnet_graph *g, clnet_tensor *x,
                                         const clnet_pool2d_desc *d);
CLNET_API clnet_tensor *clnet_avg_pool2d(clnet_graph *g, clnet_tensor *x,
                                         const clnet_pool2d_desc *d);

// y[n,c] = mean over the pixels: (N,C,H,W) -> (N,C,1,1). torch.nn.AdaptiveAvgPool2d(1).
CLNET_API clnet_tensor *clnet_global_avg_pool(clnet_graph *g, clnet_tensor *x);

// Bilinear interpolation to h x w, larger or smaller, without antialiasing.
// torch.nn.functional.interpolate(size=(h, w), mode="bilinear", align_corners=..).
CLNET_API clnet_tensor *clnet_upsample_bilinear(clnet_graph *g, clnet_tensor *x, int h, int w,
                                                bool align_corners);

// Channels of all inputs behind each other, in the order given: N, H and W agree. torch.cat(dim=1).
CLNET_API clnet_tensor *clnet_concat(clnet_graph *g, clnet_tensor *const *x, int count);

// y = 1 x 1 convolution of a and b behind each other, whichever has fewer pixels first brought to the
// height and width of the other, as clnet_upsample_bilinear does without corners: what clnet_concat and
// clnet_conv2d give in exact arithmetic, for fewer products and less memory. a (N,A,H,W) and b (N,B,..)
// of any sizes -> (N,OC,H,W) of the larger. Weights NAME.weight (OC, A+B, 1, 1) and NAME.bias (OC).
typedef struct clnet_conv2d_joined_desc {
    int out_channels; // required
    bool no_bias;
    const char *name; // required
} clnet_conv2d_joined_desc;
CLNET_API clnet_tensor *clnet_conv2d_joined(clnet_graph *g, clnet_tensor *a, clnet_tensor *b,
                                            const clnet_conv2d_joined_desc *d);

// y = a + b, same shapes.
CLNET_API clnet_tensor *clnet_add(clnet_graph *g, clnet_tensor *a, clnet_tensor *b);

// y[n,c,h,w] = x[n,c,h,w] gate[n,c]; gate (N,C,1,1). The "scale" of squeeze-and-excitation.
CLNET_API clnet_tensor *clnet_scale_channels(clnet_graph *g, clnet_tensor *x, clnet_tensor *gate);

// y = f + x + alpha S(f) x: what a residual block adds to its input x, and attention to where f is
// large: S is the softmax over the pixels of each image's channel, alpha one learned number. f, x and
// y (N,C,H,W); NAME.alpha (1). Zhang, Xie, Xia, Shen: Attention Residual Learning for Skin Lesion
// Classification, IEEE TMI 2019, equations 2 to 4.
typedef struct clnet_attention_residual_desc {
    double alpha;     // to begin with; 0 = 0.001
    const char *name; // required
} clnet_attention_residual_desc;
CLNET_API clnet_tensor *clnet_attention_residual(clnet_graph *g, clnet_tensor *f, clnet_tensor *x,
                                                 const clnet_attention_residual_desc *d);

// In training each value is 0 with probability p, else x / (1 - p), drawn from (seed, step, node);
// in evaluation y = x. 0 <= p < 1. torch.nn.Dropout.
CLNET_API clnet_tensor *clnet_dropout(clnet_graph *g, clnet_tensor *x, double p);

// y[n,c,h,w] = (x[n,c,h',w'] - mean[c]) / std[c], mirrored as flips[n] tells in training: bit 0 set,
// w' = W-1-w (left-right); bit 1 set, h' = H-1-h (up-down); negative: neither. In evaluation, or
// without flips (N, of clnet_input_labels, 0 to 3; NULL), nothing is mirrored. What a batch of images
// and their masks need before a network sees them.
enum { CLNET_FLIP_CHANNELS = 4 };
typedef struct clnet_flip_desc {
    double mean[CLNET_FLIP_CHANNELS]; // of x with more channels all have to be 0, and so has std
    double std[CLNET_FLIP_CHANNELS];  // 0 = 1
} clnet_flip_desc;
CLNET_API clnet_tensor *clnet_flip(clnet_graph *g, clnet_tensor *x, clnet_tensor *flips,
                                   const clnet_flip_desc *d);

// Classification focal loss (Lin et al. 2017), from logits (N,K) and labels (N): the mean over the
// labelled images of -alpha[t] (1 - p_t)^gamma log p_t, p the softmax, t the label; 0 without one.
enum { CLNET_MAX_CLASSES = 64 };
typedef struct clnet_focal_loss_desc {
    double gamma;                    // 0: cross entropy. The paper's recipe: 2
    double alpha[CLNET_MAX_CLASSES]; // weight of each class; all 0 = no weights
} clnet_focal_loss_desc;
CLNET_API clnet_tensor *clnet_focal_loss(clnet_graph *g, clnet_tensor *logits, clnet_tensor *label,
                                         const clnet_focal_loss_desc *d);

// The same for masks, with the sigmoid: logits and mask (N,1,H,W), lesion where mask > 0.5; the mean
// over all pixels. An image whose mask begins with a negative value has no mask and is left out.
CLNET_API clnet_tensor *clnet_mask_focal_loss(clnet_graph *g, clnet_tensor *logits,
                                              clnet_tensor *mask, double gamma);

// Dice loss (Milletari et al. 2016): the mean over images with a mask of
// 1 - (2 sum(p m) + smooth) / (sum p + sum m + smooth), p the sigmoid of the logits, sums over one
// image. The recipe's smooth is 1; with 0, empty against empty is 0.
CLNET_API clnet_tensor *clnet_dice_loss(clnet_graph *g, clnet_tensor *logits, clnet_tensor *mask,
                                        double smooth);

// y = sum of weight[i] x[i] over scalars: several losses as one.
CLNET_API clnet_tensor *clnet_weighted_sum(clnet_graph *g, clnet_tensor *const *x,
                                           const double *weight, int count);

// >>optimiser

typedef struct clnet_adam clnet_adam;
typedef struct clnet_adam_desc {
    double beta1;        // 0 = 0.9
    double beta2;        // 0 = 0.999
    double eps;          // 0 = 1e-8
    double weight_decay; // 0 = none
    bool decoupled;      // false: added to the gradient (torch.optim.Adam); true: torch.optim.AdamW
} clnet_adam_desc;

// The optimiser of a graph, made before clnet_graph_build, which plans its two moments. Belongs to
// the graph. Kingma and Ba 2015; corrections for the start in double.
CLNET_API clnet_adam *clnet_adam_create(clnet_graph *g, const clnet_adam_desc *d);

// One update of all parameters by their gradients, which stay as they are.
CLNET_API clnet_result clnet_adam_step(clnet_adam *adam, double lr);

// Updates made so far; part of a checkpoint, like the moments (exp_avg and exp_avg_sq in
// torch.optim.Adam), which are read and written in the order of their parameter.
CLNET_API uint64_t clnet_adam_steps(const clnet_adam *adam);
CLNET_API void clnet_adam_set_steps(clnet_adam *adam, uint64_t steps);
CLNET_API clnet_result clnet_adam_get(clnet_adam *adam, int moment, clnet_tensor *parameter,
                                      void *data, clnet_order order);
CLNET_API clnet_result clnet_adam_set(clnet_adam *adam, int moment, clnet_tensor *parameter,
                                      const void *data, clnet_order order);

// zero_grad, forward, backward, update, and the checks that keep NaN out: a loss or a gradient that
// is not finite leaves the weights as they were and gives CLNET_ERROR_NONFINITE, naming the node.
CLNET_API clnet_result clnet_train_step(clnet_adam *adam, double lr);

// The second half of it, for gradients that were accumulated by the caller: checks, then updates.
CLNET_API clnet_result clnet_train_update(clnet_adam *adam, double lr);

// lr0 (1 - step / total_steps)^power, 0 from total_steps on: the paper's section 3.1 (power 0.96).
CLNET_API double clnet_poly_lr(double lr0, uint64_t step, uint64_t total_steps, double power);

// >>models
//
// The networks of the paper by name: CLS, SEG or CLS+SEG with CLS "resnet50", "inception_v3" or
// "arlnet50" and SEG "unet" or "resunet". Parameters are named as in torchvision, behind "cls." and
// "seg.", with "fuse.0" to "fuse.4", "dec.dec4" to "dec.dec1", "dec.head" and "fc".

typedef enum clnet_fusion {
    CLNET_FUSION_SHARED,  // one output of a fusion module for both tasks (equations 1 and 4)
    CLNET_FUSION_PER_TASK // one for each task (the abstract)
} clnet_fusion;

typedef enum clnet_purpose {
    CLNET_INFER,  // forward only
    CLNET_TRAIN,  // losses, gradients of all weights, Adam
    CLNET_EXPLAIN // forward, and gradients of the stages for clnet_cam
} clnet_purpose;

typedef struct clnet_recipe {              // of training; clnet_paper_recipe() has the paper's
    double focal_gamma;                    // 2
    double focal_alpha[CLNET_MAX_CLASSES]; // none
    double loss_weights[3];                // 1, 1, 1: classification, mask focal, Dice
    clnet_adam_desc adam;                  // weight decay 5e-4
} clnet_recipe;
CLNET_API clnet_recipe clnet_paper_recipe(void);

typedef struct clnet_model_desc {
    const char *name;      // NULL = "resnet50+unet"
    int classes;           // 0 = 3: melanoma, seborrheic keratosis, nevus
    double width;          // 0 = 1; scales every channel count c to max(1, floor(c width + 1/2))
    int size[2];           // 0 = 224; height and width of the input, 32 (inception_v3: 75) to 16384
    int batch;             // 0 = 1; the largest batch
    clnet_fusion fusion;   // 0 = shared
    clnet_purpose purpose; // 0 = forward only
    const clnet_recipe *recipe; // NULL = the paper's; for CLNET_TRAIN
    bool keep_all;              // every activation can be read after a run
    bool no_accumulation;       // see clnet_build_desc: less memory where each step is one batch
    bool no_dropout;            // in training too: for comparisons
    bool raw_image;             // `image` is as clnet_image_to_unit makes it; see clnet_model.flips
    bool plan_only;             // shapes and the memory plan, no memory: for clnet_model_plan
    uint64_t seed;              // of the initial weights and of dropout
} clnet_model_desc;

// A model: its graph and the tensors by which it is used. Those of a task that the network does not
// have are NULL. Read the fields, do not set them.
typedef struct clnet_model {
    clnet_graph *graph;
    clnet_model_desc desc; // with the defaults filled in
    clnet_tensor *image;   // (N,3,H,W), normalised as clnet_image_to_input does
    clnet_tensor
        *flips; // (N); raw_image and CLNET_TRAIN only: how the network, in training, mirrors
                // each image and its mask before it looks at them (clnet_flip)
    clnet_tensor *label;               // (N); CLNET_TRAIN only, as mask and the losses
    clnet_tensor *mask;                // (N,1,H,W)
    clnet_tensor *logits;              // (N,classes)
    clnet_tensor *mask_logits;         // (N,1,H,W)
    clnet_tensor *loss_classification; // the three losses and their weighted sum, scalars
    clnet_tensor *loss_focal;
    clnet_tensor *loss_dice;
    clnet_tensor *loss;
    clnet_tensor *stage[5]; // FM_1..FM_5 as the classification sees them; without fusion EC or ES
    clnet_adam *adam;       // CLNET_TRAIN only
    clnet_memory_plan plan;
    char name[32];       // desc.name points here
    clnet_recipe recipe; // desc.recipe points here
} clnet_model;

// A network with fresh weights. NULL on failure. Freed by clnet_model_destroy.
CLNET_API clnet_model *clnet_model_create(clnet_context *ctx, const clnet_model_desc *desc);
CLNET_API void clnet_model_destroy(clnet_model *model);

// The network of a file written by clnet, for prediction, one image at a time: its name, width,
// classes, size and fusion stand in the file.
CLNET_API clnet_model *clnet_model_open(clnet_context *ctx, const char *path);

// What such a file says of its network, into the fields name, classes, width, size and fusion of
// `desc`, the rest 0. `name` gets 32 bytes for the network's name. A file without it, from PyTorch
// say, fails with CLNET_ERROR_METADATA.
CLNET_API clnet_result clnet_model_describe(clnet_context *ctx, const char *path,
                                            clnet_model_desc *desc, char name[32]);

// Reads all weights by name, or none: names that are missing, unexpected or of another shape are
// told with both shapes. Entries under "optimizer." are left for clnet_checkpoint_load.
CLNET_API clnet_result clnet_model_load(clnet_model *model, const char *path);

// What clnet_model_load_pretrained did. A batch norm's num_batches_tracked is not counted: a network
// has one count for all, which stays.
typedef struct clnet_pretrained {
    size_t loaded;   // parameters and running statistics that came from the file
    size_t left_out; // tensors of the file that an encoder does not have
} clnet_pretrained;

// Reads one encoder, "cls" or "seg", from a file with its names alone, as torchvision's are: "conv1.weight"
// goes to "cls.conv1.weight". Its heads ("fc", "AuxLogits") are left out, and ARLNet50 keeps its alphas.
// Anything else that does not fit is refused as clnet_model_load does. torchvision's Inception v3 expects
// an image scaled to -1..1 (its transform_input) where clnet's is normalised by ImageNet's mean and
// deviation: its first convolution takes over what lies between. `counts` may be NULL.
CLNET_API clnet_result clnet_model_load_pretrained(clnet_model *model, const char *encoder,
                                                   const char *path, clnet_pretrained *counts);

// Writes the weights as safetensors, with the network's name, width, classes, size and fusion.
CLNET_API clnet_result clnet_model_save(clnet_model *model, const char *path);

// The channel count that a width gives.
CLNET_API int clnet_scale_width(int channels, double width);

typedef struct clnet_prediction {
    double scores[CLNET_MAX_CLASSES]; // out: softmax of the classes; 0 without classification
    unsigned char *mask;              // in: NULL or h*w bytes; out: 255 lesion, 0 not
    float *probability;               // in: NULL or h*w; out: the lesion's probability per pixel
} clnet_prediction;

// One image of any size, rgb (h,w,3) bytes, to class scores and a mask of its own size.
CLNET_API clnet_result clnet_predict(clnet_model *model, const unsigned char *rgb, int h, int w,
                                     clnet_prediction *p);

// The pieces of it, for programs that run batches: the softmax of one image's logits, and the
// probabilities (h,w) and mask (h,w, 255 above 1/2; NULL: not wanted) of a map of logits (H,W),
// which is overwritten by its sigmoid.
CLNET_API void clnet_scores(double *scores, const clnet_real *logits, int classes);
CLNET_API void clnet_mask_at_size(float *probability, unsigned char *mask, int h, int w,
                                  float *values, int H, int W);

// Class activation maps (paper, equations 2 and 3), with A_k the maps of a stage, g = d logit / d A
typedef enum clnet_cam_variant {
    CLNET_CAM_PAPER,     // sum over k of ReLU(mean(g_k) A_k), the paper's equations
    CLNET_CAM_GRADCAM,   // ReLU(sum over k of mean(g_k) A_k)
    CLNET_CAM_GRADCAM_PP // ReLU(sum over k of w_k A_k), w_k = sum over pixels of a ReLU(g),
                         // a = g^2 / (2 g^2 + sum(A_k) g^3), 0 where g is 0
} clnet_cam_variant;

// After a forward of a CLNET_EXPLAIN model: the map of stage 1..5 for one class per image (negative:
// the class with the highest logit, written back). cam: (N,h,w) of the stage's size, not normalised.
CLNET_API clnet_result clnet_cam(clnet_model *model, clnet_cam_variant variant, int stage,
                                 int *classes, clnet_real *cam);

// "paper", "gradcam", "gradcam++".
CLNET_API const char *clnet_cam_name(clnet_cam_variant variant);

// >>image
// Images. What turns decoded RGB bytes into the network's input, and its mask back into one of the
// image's size. Pure arithmetic on (H,W,C) memory: no files, no allocation, no context. Sizes are at
// least 1 and the products H*W*C, OH*OW*C fit size_t; y, x and scratch do not overlap.

// Floats of scratch that clnet_resize_bilinear_antialias and clnet_image_to_input (C = 3) need for
// these sizes. 0 when a size is not positive or the number does not fit size_t; allocate that many
// floats after having checked that the bytes fit, too.
CLNET_API size_t clnet_resize_scratch(int OH, int OW, int H, int W, int C);

// y (OH,OW,C) = x (H,W,C) resized with a triangle filter, which widens to the scale when shrinking.
// Equals torch.nn.functional.interpolate(mode="bilinear", antialias=True, align_corners=False).
// scratch: clnet_resize_scratch(OH, OW, H, W, C) floats.
CLNET_API void clnet_resize_bilinear_antialias(float *y, int OH, int OW, const float *x, int H,
                                               int W, int C, float *scratch);

// y (OH,OW) = x (H,W) resized bilinearly between the nearest pixels, without antialiasing.
// Equals torch.nn.functional.interpolate(mode="bilinear", align_corners=False). Brings the
// probabilities of a mask to the size of the image or of the truth.
CLNET_API void clnet_resize_bilinear(float *y, int OH, int OW, const float *x, int H, int W);

// y (OH,OW,3) = the network's input for an image of bytes rgb (H,W,3): resized as by
// clnet_resize_bilinear_antialias in float (never rounded back to bytes), divided by 255, minus the
// mean (0.485, 0.456, 0.406), over the standard deviation (0.229, 0.224, 0.225) of ImageNet.
// scratch: clnet_resize_scratch(OH, OW, H, W, 3) floats.
//
// clnet_image_to_unit leaves out the normalisation, which clnet_image_normalise does: for networks
// that normalise by themselves (clnet_model_desc.raw_image), and to keep images on disk.
CLNET_API void clnet_image_to_unit(float *y, int OH, int OW, const unsigned char *rgb, int H, int W,
                                   float *scratch);
CLNET_API void clnet_image_normalise(float *y, size_t pixels);
CLNET_API void clnet_image_to_input(float *y, int OH, int OW, const unsigned char *rgb, int H,
                                    int W, float *scratch);

// >>metrics
//
// The measures of ISIC 2017, with the definitions of the challenge's official scorer: everything in
// double, TP and FP, TN and FN being the counts of right and wrong positives and negatives. What
// cannot be defined is NaN.

// Of one image, or the mean over images.
typedef struct clnet_segmentation_metrics {
    double jaccard;           // TP / (TP + FP + FN); 1 where both masks are empty
    double threshold_jaccard; // the same, but 0 where it is below 0.65
    double dice;              // 2 TP / (2 TP + FP + FN); 1 where both masks are empty
    double accuracy;          // (TP + TN) / pixels
    double sensitivity;       // TP / (TP + FN); 1 where the truth has no lesion
    double specificity;       // TN / (TN + FP); 1 where the truth is all lesion
} clnet_segmentation_metrics;

// Compares two masks of the same size, one byte per pixel, above 128 is lesion. pixels > 0.
CLNET_API void clnet_segmentation_score(const unsigned char *predicted, const unsigned char *truth,
                                        size_t pixels, clnet_segmentation_metrics *out);

// The mean of every measure over images; NaN for count = 0.
CLNET_API void clnet_segmentation_mean(const clnet_segmentation_metrics *images, size_t count,
                                       clnet_segmentation_metrics *out);

// Of one class against the others.
typedef struct clnet_classification_metrics {
    double auc;         // area under the ROC curve, ties count half; NaN where one side is missing
    double accuracy;    // (TP + TN) / count, where a score > 0.5 is positive
    double sensitivity; // TP / (TP + FN); 1 where no truth is positive
    double specificity; // TN / (TN + FP); 1 where all truths are positive
} clnet_classification_metrics;

// scores[i] and truth[i] (0 or not 0) belong to image i. For count = 0 all measures are NaN. A
// score that is NaN is CLNET_ERROR_ARGUMENT. Takes memory from the context while it runs.
CLNET_API clnet_result clnet_classification_score(clnet_context *ctx, const double *scores,
                                                  const unsigned char *truth, size_t count,
                                                  clnet_classification_metrics *out);

// A point of the ROC curve: the share of negatives and of positives with a score >= threshold.
typedef struct clnet_roc_point {
    double false_positive_rate, true_positive_rate, threshold;
} clnet_roc_point;

// The whole curve, from (0,0) with threshold infinity to (1,1), one point per different score.
// `points` has room for count + 1 of them; *used is how many there are, 0 where one side is
// missing. Straight lines between them enclose the AUC. Fails as clnet_classification_score does.
CLNET_API clnet_result clnet_roc_curve(clnet_context *ctx, const double *scores,
                                       const unsigned char *truth, size_t count,
                                       clnet_roc_point *points, size_t *used);

// >>files
//
// Tensors by name in one file, in the format safetensors: 8 bytes with the length of a header
// (little endian), the header in JSON, then the tensors' bytes. It is written here from the
// format's published description. PyTorch reads and writes the same files.
//
// The files of torch.save (.pth, .pt) are read too, and told apart by their first bytes: a state
// dict, alone or as {"state_dict": ..}, in the zip format or in the older one of pickles in a row.
// Nothing in them is ever run; >>files: pth in the implementation explains both. Opening a zip file
// reads all of it once, for its sums. Where all names of a file begin with "module." they lose it.
//
// Files are hostile until checked. A file that opens has a header of the limits below; every tensor
// has a known type, a shape whose size is exactly that of its bytes, and bytes that lie in the
// file; together the tensors cover the data without gap or overlap. All else is refused, with a
// sentence that names the file, the byte or the tensor, what was found and what was expected:
//
//     CLNET_ERROR_TRUNCATED  shorter than 8 bytes, than its header, than its tensors
//     CLNET_ERROR_SYNTAX     does not begin with '{' (blanks before it are refused, as the format
//                            says), is not JSON, has something other than spaces behind the JSON,
//                            a tensor with an unknown or missing field
//     CLNET_ERROR_ENCODING   bytes that are not UTF-8, half a surrogate pair, \u0000 in a string,
//                            a control character in a tensor's name
//     CLNET_ERROR_DUPLICATE  a name, a field or a key twice, compared after escapes are resolved
//     CLNET_ERROR_METADATA   "__metadata__" that is not an object of strings
//     CLNET_ERROR_DTYPE      a type that is not in the list below
//     CLNET_ERROR_SHAPE      not an array of whole numbers below 2^48, written as such (no sign,
//                            point, exponent or leading zero), or more bytes than 64 bits count
//     CLNET_ERROR_OFFSETS    not two such numbers, begin > end, another size than the shape's, a
//                            gap, an overlap, bytes behind the last tensor
//     CLNET_ERROR_LIMIT      more than the limits allow
//
// and in files of torch.save, where CLNET_ERROR_SYNTAX is a zip file or a pickle that is malformed:
//
//     CLNET_ERROR_CHECKSUM     an entry of the zip file does not have its CRC-32
//     CLNET_ERROR_UNSUPPORTED  compressed or encrypted entries, big-endian numbers, opcodes and names
//                              beyond those of a state dict, whole pickled modules, TorchScript
//                              archives, tar archives, other protocols of pickle
//     CLNET_ERROR_MISMATCH     a storage that is named but not there
//
// A zip file has to be as torch.save writes it: entries without gaps, in the directory's order, no
// comment, less than 4 GiB. Whatever the file, opening it takes at most twice its size and 1 MiB of
// memory; reading a tensor with strides, a copy of what lies between its first and last number.
//
// A tensor without elements may stand wherever another one begins or ends. NaN and infinity are
// values like others here.

// Limits on both reading and writing; a program may define its own before the include.
#ifndef CLNET_FILE_MAX_HEADER
#define CLNET_FILE_MAX_HEADER 16777216 // bytes of JSON, or of a pickle; below 2^32
#endif
#ifndef CLNET_FILE_MAX_TENSORS
#define CLNET_FILE_MAX_TENSORS 65536 // also of pairs of metadata
#endif
#ifndef CLNET_FILE_MAX_NAME
#define CLNET_FILE_MAX_NAME 512 // bytes of a tensor's name; below 65,536
#endif
#ifndef CLNET_MAX_RANK
#define CLNET_MAX_RANK 8 // axes of a tensor
#endif
#ifndef CLNET_PICKLE_MAX_VALUES
#define CLNET_PICKLE_MAX_VALUES 1048576 // on the stack of a pickle, and in its memo
#endif

// The types of numbers: name in the file, and with CLNET_ in front in C; bytes of one. Types
// smaller than a byte are not supported.
#define CLNET_DTYPES(X)                                                                            \
    X(F32, 4)                                                                                      \
    X(F64, 8)                                                                                      \
    X(F16, 2)                                                                                      \
    X(BF16, 2)                                                                                     \
    X(F8_E4M3, 1)                                                                                  \
    X(F8_E5M2, 1)                                                                                  \
    X(F8_E8M0, 1)                                                                                  \
    X(C64, 8)                                                                                      \
    X(I64, 8)                                                                                      \
    X(I32, 4)                                                                                      \
    X(I16, 2)                                                                                      \
    X(I8, 1)                                                                                       \
    X(U64, 8)                                                                                      \
    X(U32, 4)                                                                                      \
    X(U16, 2)                                                                                      \
    X(U8, 1)                                                                                       \
    X(BOOL, 1)

#define CLNET__DTYPE_ENUM(name, size) CLNET_##name,
typedef enum clnet_dtype { CLNET_DTYPES(CLNET__DTYPE_ENUM) CLNET_DTYPE_COUNT } clnet_dtype;
#undef CLNET__DTYPE_ENUM

// Bytes of one number and the name in files, "F32"; 0 and "?" for what is no clnet_dtype.
CLNET_API size_t clnet_dtype_size(clnet_dtype dtype);
CLNET_API const char *clnet_dtype_name(clnet_dtype dtype);

// Numbers between memory and the bytes of a file, which are little endian and need no alignment.
// F32, F16, BF16 and F64; false, with nothing done, for other types and, on decoding, for F64 where
// clnet_real is float. Decoding is exact. Encoding rounds to nearest, ties to even (a clnet_real of
// double by way of float for F16 and BF16); what is too large becomes infinity, a NaN stays one.
CLNET_API bool clnet_decode(clnet_real *values, const void *bytes, size_t count, clnet_dtype dtype);
CLNET_API bool clnet_encode(void *bytes, const clnet_real *values, size_t count, clnet_dtype dtype);

// What a file says of one of its tensors.
typedef struct clnet_file_tensor {
    const char *name; // belongs to the file's object
    clnet_dtype dtype;
    int rank;                       // 0: a single number
    uint64_t shape[CLNET_MAX_RANK]; // as in the file, outermost first
    uint64_t offset, bytes;         // where its first number stands in the file; how many bytes
    // From one number to the next along each axis, counted in numbers; all 0: row by row without
    // gaps, as most are. Reading puts the others into that order too.
    uint64_t stride[CLNET_MAX_RANK];
} clnet_file_tensor;

// An open file. Of safetensors the header is in memory, about 1.7 times its size; of torch.save's
// files the names and shapes.
typedef struct clnet_tensor_file clnet_tensor_file;

// Opens a file and checks all of its header; no tensor is read. NULL: failed, the context says why.
// The context has to outlive the file. Closing takes NULL too.
CLNET_API clnet_tensor_file *clnet_tensor_file_open(clnet_context *ctx, const char *path);
CLNET_API void clnet_tensor_file_close(clnet_tensor_file *f);

// The number of tensors; the i-th in the order of their names (as bytes); the one of a name, found
// by bisection. False: there is none, or f is NULL.
CLNET_API size_t clnet_tensor_file_count(const clnet_tensor_file *f);
CLNET_API bool clnet_tensor_file_at(const clnet_tensor_file *f, size_t i, clnet_file_tensor *t);
CLNET_API bool clnet_tensor_file_find(const clnet_tensor_file *f, const char *name,
                                      clnet_file_tensor *t);

// The file's metadata, strings by key; NULL where it has no such key. The text belongs to f. The
// second gives the number of pairs, and `key` the i-th key in order, for i below that number.
CLNET_API const char *clnet_tensor_file_metadata(const clnet_tensor_file *f, const char *key);
CLNET_API size_t clnet_tensor_file_keys(const clnet_tensor_file *f, size_t i, const char **key);

// Reads one tensor of this file: its t->bytes bytes as they stand there, or its values as
// clnet_decode makes them (another type: CLNET_ERROR_DTYPE). Nothing else is read. The memory is
// the caller's. A file that became shorter since it was opened is CLNET_ERROR_TRUNCATED.
CLNET_API clnet_result clnet_tensor_file_read(clnet_tensor_file *f, const clnet_file_tensor *t,
                                              void *bytes);
CLNET_API clnet_result clnet_tensor_file_read_real(clnet_tensor_file *f, const clnet_file_tensor *t,
                                                   clnet_real *values);

// One tensor to be written.
typedef struct clnet_file_item {
    const char *name;               // UTF-8 without control characters; not "__metadata__"
    clnet_dtype dtype;              // 0 = F32
    int rank;                       // 0: a single number
    uint64_t shape[CLNET_MAX_RANK]; // outermost first, each below 2^48
    const void *data;               // its bytes as in the file (little endian), or NULL:
    clnet_result (*fill)(void *user, void *bytes); // asked to write them when their turn comes
    void *user;
} clnet_file_item;

typedef struct clnet_file_pair {
    const char *key, *value; // UTF-8
} clnet_file_pair;

// Writes a safetensors file. The same tensors and metadata give the same bytes, in whatever order
// they are handed over: larger types first, then by name, so that all numbers are aligned to their
// size; metadata by key; the header padded with spaces to a multiple of 8. Memory: the header and
// the largest tensor that is filled.
//
// A file that stands there already is replaced in one step or stays as it is: everything goes to
// path + ".tmp", which is synced, closed and renamed, and removed if anything fails. Two writers at
// a time must not share a path.
CLNET_API clnet_result clnet_safetensors_write(clnet_context *ctx, const char *path,
                                               const clnet_file_item *items, size_t count,
                                               const clnet_file_pair *metadata, size_t pairs);

// The same as a file of torch.save in the zip format, which torch.load(path, weights_only=True)
// takes. At most 65,530 tensors and 4 GiB. Metadata go to an entry of their own, of which PyTorch
// knows nothing.
CLNET_API clnet_result clnet_pth_write(clnet_context *ctx, const char *path,
                                       const clnet_file_item *items, size_t count,
                                       const clnet_file_pair *metadata, size_t pairs);

// A checkpoint is a model's file with Adam's moments under "optimizer.", the step and the seed: training
// that loads it goes on bit by bit as if it had not stopped. `more` are further strings for the
// metadata, the program's own: position, configuration. Both need a model for CLNET_TRAIN.
CLNET_API clnet_result clnet_checkpoint_save(clnet_model *model, const char *path,
                                             const clnet_file_pair *more, size_t count);
CLNET_API clnet_result clnet_checkpoint_load(clnet_model *model, const char *path);
// >>reference
//
// The plain loops of every operation on pointers and sizes: the text to read a layer in, and what
// faster code is checked against. Outputs come first, then what is saved, inputs, parameters, sizes.
// Backward adds to its outputs, each of which may be NULL: not wanted. Sums are taken in double.
// A stride is the distance between neighbouring pixels: 0 = dense, more in a view of some channels
// of a wider tensor.

typedef struct clnet_conv2d_sizes {
    int N, C, H, W; // x (N,C,H,W)
    int OC, OH, OW; // y (N,OC,OH,OW); w (KH,KW,C/groups,OC)
    int KH, KW;
    int stride[2], padding[2], dilation[2], groups; // stride, dilation, groups: 0 = 1
    size_t x_stride, y_stride;
} clnet_conv2d_sizes;
CLNET_API void clnet_ref_conv2d_forward(clnet_real *y, const clnet_real *x, const clnet_real *w,
                                        const clnet_real *b, const clnet_conv2d_sizes *s);
CLNET_API void clnet_ref_conv2d_backward(clnet_real *dx, clnet_real *dw, clnet_real *db,
                                         const clnet_real *dy, const clnet_real *x,
                                         const clnet_real *w, const clnet_conv2d_sizes *s);

typedef struct clnet_linear_sizes {
    int N, C, OC; // x (N,C), y (N,OC); w (C,OC)
    size_t x_stride, y_stride;
} clnet_linear_sizes;
CLNET_API void clnet_ref_linear_forward(clnet_real *y, const clnet_real *x, const clnet_real *w,
                                        const clnet_real *b, const clnet_linear_sizes *s);
CLNET_API void clnet_ref_linear_backward(clnet_real *dx, clnet_real *dw, clnet_real *db,
                                         const clnet_real *dy, const clnet_real *x,
                                         const clnet_real *w, const clnet_linear_sizes *s);

// Sizes of what does not change the shape: x and y (N,C,H,W).
typedef struct clnet_sizes {
    int N, C, H, W;
    size_t x_stride, y_stride;
} clnet_sizes;

// mean, invstd (C): saved for backward. In training they are the batch's, and running_mean and
// running_var (C) are updated; in evaluation they come from the running ones. factor, shift (C): saved
// for `again`, which makes the very same y = (x - mean) factor + shift once more.
typedef struct clnet_batch_norm_options {
    double eps, momentum;
    bool training;
} clnet_batch_norm_options;
CLNET_API void clnet_ref_batch_norm_forward(clnet_real *y, clnet_real *mean, clnet_real *invstd,
                                            clnet_real *factor, clnet_real *shift,
                                            clnet_real *running_mean, clnet_real *running_var,
                                            const clnet_real *x, const clnet_real *w,
                                            const clnet_real *b, const clnet_batch_norm_options *o,
                                            const clnet_sizes *s);
CLNET_API void clnet_ref_batch_norm_again(clnet_real *y, const clnet_real *x,
                                          const clnet_real *mean, const clnet_real *factor,
                                          const clnet_real *shift, const clnet_sizes *s);
CLNET_API void clnet_ref_batch_norm_backward(clnet_real *dx, clnet_real *dw, clnet_real *db,
                                             const clnet_real *dy, const clnet_real *x,
                                             const clnet_real *w, const clnet_real *mean,
                                             const clnet_real *invstd,
                                             const clnet_batch_norm_options *o,
                                             const clnet_sizes *s);

CLNET_API void clnet_ref_relu_forward(clnet_real *y, const clnet_real *x, const clnet_sizes *s);
CLNET_API void clnet_ref_relu_backward(clnet_real *dx, const clnet_real *dy, const clnet_real *y,
                                       const clnet_sizes *s);
CLNET_API void clnet_ref_sigmoid_forward(clnet_real *y, const clnet_real *x, const clnet_sizes *s);
CLNET_API void clnet_ref_sigmoid_backward(clnet_real *dx, const clnet_real *dy, const clnet_real *y,
                                          const clnet_sizes *s);
CLNET_API void clnet_ref_softmax_forward(clnet_real *y, const clnet_real *x, int axis,
                                         const clnet_sizes *s);
CLNET_API void clnet_ref_softmax_backward(clnet_real *dx, const clnet_real *dy, const clnet_real *y,
                                          int axis, const clnet_sizes *s);

typedef struct clnet_pool2d_sizes {
    int N, C, H, W, OH, OW; // x (N,C,H,W), y (N,C,OH,OW)
    int KH, KW;
    int stride[2], padding[2], dilation[2]; // stride, dilation: 0 = 1
    bool count_exclude_pad;
    size_t x_stride, y_stride;
} clnet_pool2d_sizes;
// argmax: ih*W + iw of each winner, as far apart as y's pixels; forward: NULL if not wanted.
CLNET_API void clnet_ref_max_pool2d_forward(clnet_real *y, int32_t *argmax, const clnet_real *x,
                                            const clnet_pool2d_sizes *s);
CLNET_API void clnet_ref_max_pool2d_backward(clnet_real *dx, const clnet_real *dy,
                                             const int32_t *argmax, const clnet_pool2d_sizes *s);
CLNET_API void clnet_ref_avg_pool2d_forward(clnet_real *y, const clnet_real *x,
                                            const clnet_pool2d_sizes *s);
CLNET_API void clnet_ref_avg_pool2d_backward(clnet_real *dx, const clnet_real *dy,
                                             const clnet_pool2d_sizes *s);
// y (N,C,1,1); sizes of x.
CLNET_API void clnet_ref_global_avg_pool_forward(clnet_real *y, const clnet_real *x,
                                                 const clnet_sizes *s);
CLNET_API void clnet_ref_global_avg_pool_backward(clnet_real *dx, const clnet_real *dy,
                                                  const clnet_sizes *s);

typedef struct clnet_upsample_sizes {
    int N, C, H, W, OH, OW; // x (N,C,H,W), y (N,C,OH,OW)
    bool align_corners;
    size_t x_stride, y_stride;
} clnet_upsample_sizes;
CLNET_API void clnet_ref_upsample_bilinear_forward(clnet_real *y, const clnet_real *x,
                                                   const clnet_upsample_sizes *s);
CLNET_API void clnet_ref_upsample_bilinear_backward(clnet_real *dx, const clnet_real *dy,
                                                    const clnet_upsample_sizes *s);

// y = x (N,C,H,W), as one part of a concatenation: y points at its first channel. Backward is the
// same with `add`.
CLNET_API void clnet_ref_copy(clnet_real *y, const clnet_real *x, bool add, const clnet_sizes *s);
// y = a + b, b's pixels b_stride apart (0 = C). Backward: clnet_ref_copy to both, with `add`.
CLNET_API void clnet_ref_add_forward(clnet_real *y, const clnet_real *a, const clnet_real *b,
                                     const clnet_sizes *a_y, size_t b_stride);
// gate (N,C), its images gate_stride apart (0 = C).
CLNET_API void clnet_ref_scale_channels_forward(clnet_real *y, const clnet_real *x,
                                                const clnet_real *gate, size_t gate_stride,
                                                const clnet_sizes *s);
CLNET_API void clnet_ref_scale_channels_backward(clnet_real *dx, clnet_real *dgate,
                                                 const clnet_real *dy, const clnet_real *x,
                                                 const clnet_real *gate, size_t gate_stride,
                                                 const clnet_sizes *s);
// top, sum (N,C): the largest f of an image's channel, the sum of exp(f - top). Backward writes dot
// (N,C), the sum over the pixels of S x dy, and dalpha is the sum of all of dot.
typedef struct clnet_attention_residual_sizes {
    int N, C, H, W; // f, x, y (N,C,H,W)
    size_t f_stride, x_stride, y_stride;
    size_t rows; // distance between the images of top, sum and dot; 0 = C
} clnet_attention_residual_sizes;
CLNET_API void clnet_ref_attention_residual_forward(clnet_real *y, clnet_real *top, clnet_real *sum,
                                                    const clnet_real *f, const clnet_real *x,
                                                    const clnet_real *alpha,
                                                    const clnet_attention_residual_sizes *s);
CLNET_API void clnet_ref_attention_residual_backward(clnet_real *df, clnet_real *dx,
                                                     clnet_real *dot, const clnet_real *dy,
                                                     const clnet_real *f, const clnet_real *x,
                                                     const clnet_real *alpha, const clnet_real *top,
                                                     const clnet_real *sum,
                                                     const clnet_attention_residual_sizes *s);
// Both directions: y (or dx) = x (or dy) times the mask drawn from (seed, stream); `add` in backward.
CLNET_API void clnet_ref_dropout(clnet_real *y, const clnet_real *x, bool add, double p,
                                 uint64_t seed, uint64_t stream, const clnet_sizes *s);

// flips (N), or NULL: nothing is mirrored. Backward is the same of dy with `add` and the means 0. The
// desc is complete: std is not 0. NULL: 0 and 1.
CLNET_API void clnet_ref_flip(clnet_real *y, const clnet_real *x, bool add, const int32_t *flips,
                              const clnet_flip_desc *d, const clnet_sizes *s);

// Losses return the scalar. `scale` is the upstream gradient.
CLNET_API double clnet_ref_focal_loss_forward(const clnet_real *logits, const int32_t *label, int N,
                                              int K, const clnet_focal_loss_desc *d);
CLNET_API void clnet_ref_focal_loss_backward(clnet_real *dlogits, double scale,
                                             const clnet_real *logits, const int32_t *label, int N,
                                             int K, const clnet_focal_loss_desc *d);
CLNET_API double clnet_ref_mask_focal_loss_forward(const clnet_real *logits, const clnet_real *mask,
                                                   int N, size_t pixels, double gamma);
CLNET_API void clnet_ref_mask_focal_loss_backward(clnet_real *dlogits, double scale,
                                                  const clnet_real *logits, const clnet_real *mask,
                                                  int N, size_t pixels, double gamma);
CLNET_API double clnet_ref_dice_loss_forward(const clnet_real *logits, const clnet_real *mask,
                                             int N, size_t pixels, double smooth);
CLNET_API void clnet_ref_dice_loss_backward(clnet_real *dlogits, double scale,
                                            const clnet_real *logits, const clnet_real *mask, int N,
                                            size_t pixels, double smooth);

// Update number t (from 1) of n parameters p by their gradients; m and v are the moments.
CLNET_API void clnet_ref_adam(clnet_real *p, clnet_real *m, clnet_real *v, const clnet_real *g,
                              size_t n, double lr, uint64_t t, const clnet_adam_desc *d);

// >>backend
//
// What runs a graph. The CPU's backend stands below; clnet_cl.h has OpenCL's. Using clnet needs
// nothing from here.
//
// To add an operation: (1) its builder above, documented; (2) a row in CLNET_OPS next to its family;
// (3) its block under its own mark in the implementation: plain loops, shape, forward, backward,
// builder - the list does not compile without them; (4) the device's block in clnet_cl.h and
// kernels.cl; (5) rows in the case table of tests/verify_cases.h - the coverage test names an
// operation that has none.

// X(ENUM, name, forward, backward, reads): how the CPU cuts the two passes of a node into tasks (see
// >>cpu), what backward reads, and whether the output may be computed again for it (see >>plan).
#define CLNET_OPS(X)                                                                               \
    X(CONV2D, conv2d, WHOLE, WHOLE, CLNET_READS(0) | CLNET_READS(1))                               \
    X(LINEAR, linear, WHOLE, WHOLE, CLNET_READS(0) | CLNET_READS(1))                               \
    X(BATCH_NORM, batch_norm, WHOLE, WHOLE, CLNET_READS(0) | CLNET_READS(1) | CLNET_AGAIN)         \
    X(RELU, relu, ROWS, ROWS, CLNET_READS_OUT | CLNET_AGAIN)                                       \
    X(SIGMOID, sigmoid, ROWS, ROWS, CLNET_READS_OUT)                                               \
    X(SOFTMAX, softmax, IMAGES, IMAGES, CLNET_READS_OUT)                                           \
    X(MAX_POOL2D, max_pool2d, ROWS, WHOLE, 0)                                                      \
    X(AVG_POOL2D, avg_pool2d, CHANNELS, CHANNELS, 0)                                               \
    X(GLOBAL_AVG_POOL, global_avg_pool, CHANNELS, ROWS, 0)                                         \
    X(UPSAMPLE_BILINEAR, upsample_bilinear, ROWS, WHOLE, CLNET_AGAIN)                              \
    X(CONCAT, concat, ROWS, ROWS, CLNET_AGAIN)                                                     \
    X(CONV2D_JOINED, conv2d_joined, WHOLE, WHOLE,                                                  \
      CLNET_READS(0) | CLNET_READS(1) | CLNET_READS(2))                                            \
    X(ADD, add, ROWS, ROWS, CLNET_AGAIN)                                                           \
    X(SCALE_CHANNELS, scale_channels, ROWS, WHOLE, CLNET_READS(0) | CLNET_READS(1) | CLNET_AGAIN)  \
    X(ATTENTION_RESIDUAL, attention_residual, WHOLE, WHOLE, CLNET_READS(0) | CLNET_READS(1))       \
    X(DROPOUT, dropout, WHOLE, WHOLE, 0)                                                           \
    X(FLIP, flip, IMAGES, IMAGES, CLNET_READS(1))                                                  \
    X(FOCAL_LOSS, focal_loss, WHOLE, WHOLE, CLNET_READS(0) | CLNET_READS(1))                       \
    X(MASK_FOCAL_LOSS, mask_focal_loss, WHOLE, WHOLE, CLNET_READS(0) | CLNET_READS(1))             \
    X(DICE_LOSS, dice_loss, WHOLE, WHOLE, CLNET_READS(0) | CLNET_READS(1))                         \
    X(WEIGHTED_SUM, weighted_sum, WHOLE, WHOLE, 0)

#define CLNET_READS(input) (1u << (input)) // the values of that input
#define CLNET_READS_OUT    (1u << 31)      // the values of the output
#define CLNET_AGAIN        (1u << 30)      // forward costs little more than reading its inputs

typedef enum clnet_op {
#define X(ENUM, name, forward, backward, reads) CLNET_OP_##ENUM,
    CLNET_OPS(X)
#undef X
        CLNET_OP_COUNT
} clnet_op;

// A piece of a device's memory; `handle` is the backend's.
typedef struct clnet_memory {
    void *handle;
    size_t bytes;
} clnet_memory;

typedef enum clnet_role {
    CLNET_ROLE_ACTIVATION,
    CLNET_ROLE_INPUT,
    CLNET_ROLE_PARAMETER, // has a gradient, moved by the optimiser
    CLNET_ROLE_BUFFER,    // running statistics
    CLNET_ROLE_SAVED      // what an operation keeps for its backward
} clnet_role;

typedef enum clnet_initial { // values before training: scale times ..
    CLNET_INITIAL_CONSTANT,  // .. 1
    CLNET_INITIAL_NORMAL,    // .. a standard normal number
    CLNET_INITIAL_UNIFORM    // .. a number from -1 to 1
} clnet_initial;

struct clnet_tensor {
    clnet_graph *graph;
    char *name;
    clnet_role role;
    bool integer;            // int32_t instead of clnet_real
    bool batched;            // shape[0] follows the batch
    int classes;             // of labels that a loss reads: all below it; 0: not checked
    int rank, shape[4];      // 1 beyond the rank
    size_t stride;           // elements between neighbouring pixels
    clnet_node *producer;    // NULL: an input or a weight
    int last_use;            // index of the last node that reads it in forward; -1: none
    bool keep, require_grad; // as asked for
    bool needs_grad;         // what is upstream of it needs its gradient
    clnet_tensor *inside;    // lies in the memory of that tensor (see >>plan); NULL: in its own
    int first_channel;       // .. from that channel on
    int first_summand; // the node whose backward is the first to add to the gradient; -1: none
    clnet_initial initial;
    double initial_scale;
    clnet_memory *memory, *grad_memory; // NULL: not planned
    size_t offset, grad_offset;         // bytes
};

enum { CLNET_MAX_INPUTS = 8 };

struct clnet_node {
    clnet_op op;
    int index;                          // in execution order
    clnet_tensor *in[CLNET_MAX_INPUTS]; // activations first, then weights; NULL: none (a bias)
    int inputs;
    clnet_tensor *out;
    clnet_tensor *saved[3];
    bool in_place; // in[0] lies inside out, its gradient too
    bool backward; // takes part in backward
    // Of a convolution, in evaluation, or batch norm that computes what follows it, too (see >>plan):
    clnet_node *batch_norm; // the first to follow a convolution; NULL: none
    clnet_tensor *summand;  // what an addition behind it adds; NULL: none
    bool relu;              // at the end
    clnet_node *host;       // of what follows: the one that computes it; NULL: itself
    int again;              // before that node's backward its forward runs once more; -1: never
    clnet_profile_node *profile; // NULL: none is wanted
    union {
        clnet_conv2d_desc conv2d;
        clnet_batch_norm_desc batch_norm;
        clnet_pool2d_desc pool2d;
        clnet_focal_loss_desc focal_loss;
        clnet_flip_desc flip;
        double value; // p, gamma, smooth
        double weight[CLNET_MAX_INPUTS];
        int axis;
        bool align_corners;
    } desc;
};

typedef struct clnet_backend clnet_backend;
struct clnet_backend {
    const char *device; // as clnet_context_device gives it
    const char *isa;
    int threads;
    void *state;
    size_t largest_allocation; // bytes; 0: any. The graph's memory is taken in pieces below it
    clnet_profile_row *rows;   // of the profile, each named; NULL: none is wanted
    int row_count;
    // Memory. Copies return when they are done; `fill` writes zeros.
    bool (*alloc)(clnet_context *ctx, clnet_memory *memory, size_t bytes);
    void (*free)(clnet_context *ctx, clnet_memory *memory);
    clnet_result (*upload)(clnet_context *ctx, clnet_memory *to, size_t offset, const void *from,
                           size_t bytes);
    clnet_result (*download)(clnet_context *ctx, void *to, clnet_memory *from, size_t offset,
                             size_t bytes);
    clnet_result (*fill)(clnet_context *ctx, clnet_memory *memory, size_t offset, size_t bytes);
    // Forward of a convolution, and both passes of batch norm, compute what the plan says that follows.
    bool epilogues, norm_epilogues;
    // Bytes of scratch that a node needs in either direction.
    size_t (*workspace)(clnet_context *ctx, const clnet_node *node);
    // Bytes that can still be taken. NULL: nobody knows.
    size_t (*room)(clnet_context *ctx);
    // One operation. The scratch is the graph's workspace.
    clnet_result (*forward)(clnet_graph *g, clnet_node *node);
    clnet_result (*backward)(clnet_graph *g, clnet_node *node);
    // Adam on a piece of the parameters, and the sum of squares of n numbers (to know that all are
    // finite).
    clnet_result (*adam)(clnet_adam *adam, int piece, double lr);
    clnet_result (*sum_of_squares)(clnet_context *ctx, clnet_memory *memory, size_t n, double *sum);
    void (*destroy)(clnet_context *ctx);
};

#ifdef __cplusplus
}
#endif
#endif // CLNET_H

#ifdef CLNET_IMPLEMENTATION

#include <errno.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#ifndef CLNET_MALLOC
#define CLNET_MALLOC(bytes) malloc(bytes)
#define CLNET_FREE(memory)  free(memory)
#endif

// clock() is the time of all threads together, but without OpenMP there is one.
#ifndef CLNET_CLOCK
#ifdef _OPENMP
#define CLNET_CLOCK() omp_get_wtime()
#else
#include <time.h>
#define CLNET_CLOCK() ((double)clock() / CLOCKS_PER_SEC)
#endif
#endif

// The fast path is written for float. To tell, the preprocessor compares the name of the type.
#define CLNET__REAL_IS_float 1
#define CLNET__JOIN(a, b)    a##b
#define CLNET__REAL_IS(real) CLNET__JOIN(CLNET__REAL_IS_, real)
#if CLNET__REAL_IS(CLNET_REAL)
#define CLNET__FAST
#define CLNET__SQRT(x) sqrtf(x)
#else
#define CLNET__SQRT(x) sqrt(x)
#endif

#if defined(__GNUC__)
#define CLNET__PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define CLNET__PRINTF(text, first)
#endif

// >>basics
// Numbers, memory, errors: what every block below may use.

typedef struct clnet__cpu {
    int threads;
    clnet_isa isa; // never CLNET_ISA_AUTO
    bool reference, no_winograd;
} clnet__cpu;

// Rows of the CPU's profile: each operation forward and backward, then these.
enum {
    CLNET__ROW_ADAM = 2 * CLNET_OP_COUNT,
    CLNET__ROW_SUM_OF_SQUARES,
    CLNET__ROW_FILL,
    CLNET__ROW_UPLOAD,
    CLNET__ROW_DOWNLOAD,
    CLNET__ROWS
};

struct clnet_context {
    clnet_result result;
    char error[1 << 16]; // room for the log of a compiler
    clnet_allocator allocator;
    clnet_files files;
    clnet_backend backend;
    clnet__cpu cpu;
    clnet_profile_row rows[CLNET__ROWS];
    clnet_profile_node **nodes; // of the profile, with names of their own
    int node_count;
};

static clnet_files clnet__default_files(void); // >>files

static int clnet__min(int a, int b) { return a < b ? a : b; }
static int clnet__max(int a, int b) { return a > b ? a : b; }
static int clnet__or(int value, int fallback) { return value ? value : fallback; }
static double clnet__or_double(double value, double fallback) {
    return value != 0 ? value : fallback;
}
static size_t clnet__or_size(size_t value, size_t fallback) { return value ? value : fallback; }

// false: the result does not fit into a size_t.
static bool clnet__mul(size_t a, size_t b, size_t *out) {
    *out = a * b;
    return b == 0 || a <= SIZE_MAX / b;
}

static bool clnet__add(size_t a, size_t b, size_t *out) {
    *out = a + b;
    return a <= SIZE_MAX - b;
}

static size_t clnet__round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Records the first failure of a context and returns the one on record.
static clnet_result clnet__fail(clnet_context *ctx, clnet_result result, const char *format, ...)
    CLNET__PRINTF(3, 4);
static clnet_result clnet__fail(clnet_context *ctx, clnet_result result, const char *format, ...) {
    if (ctx->result == CLNET_OK) {
        ctx->result = result;
        va_list args;
        va_start(args, format);
        vsnprintf(ctx->error, sizeof ctx->error, format, args);
        va_end(args);
    }
    return ctx->result;
}

static void *clnet__default_alloc(void *user, size_t bytes) {
    (void)user;
    return CLNET_MALLOC(bytes);
}

static void clnet__default_free(void *user, void *memory) {
    (void)user;
    CLNET_FREE(memory);
}

// Zeroed memory, or NULL with the failure on record.
static void *clnet__alloc(clnet_context *ctx, size_t bytes) {
    void *memory = ctx->allocator.alloc(ctx->allocator.user, bytes ? bytes : 1);
    if (memory) {
        memset(memory, 0, bytes);
    } else {
        clnet__fail(ctx, CLNET_ERROR_MEMORY, "out of memory: %zu bytes", bytes);
    }
    return memory;
}

static void clnet__free(clnet_context *ctx, void *memory) {
    if (memory) {
        ctx->allocator.free(ctx->allocator.user, memory);
    }
}

static char *clnet__copy_text(clnet_context *ctx, const char *text) {
    char *copy = clnet__alloc(ctx, strlen(text) + 1);
    return copy ? strcpy(copy, text) : NULL;
}

// A list that grows by doubling: room for one more item of `bytes`, or false.
static bool clnet__grow(clnet_context *ctx, void **items, int count, size_t bytes) {
    if (count & (count - 1)) {
        return true; // the capacity is the next power of two, and count has not reached it
    }
    void *larger = clnet__alloc(ctx, (count ? 2 * (size_t)count : 1) * bytes);
    if (!larger) {
        return false;
    }
    if (count) {
        memcpy(larger, *items, (size_t)count * bytes);
    }
    clnet__free(ctx, *items);
    *items = larger;
    return true;
}

clnet_result clnet_context_result(const clnet_context *ctx) {
    return ctx ? ctx->result : CLNET_ERROR_MEMORY;
}

const char *clnet_error(const clnet_context *ctx) { return ctx ? ctx->error : "out of memory"; }

void clnet_context_clear(clnet_context *ctx) {
    if (ctx && ctx->result != CLNET_ERROR_DEVICE) {
        ctx->result = CLNET_OK;
        ctx->error[0] = 0;
    }
}

const char *clnet_context_device(const clnet_context *ctx) { return ctx->backend.device; }
const char *clnet_context_isa(const clnet_context *ctx) { return ctx->backend.isa; }
int clnet_context_threads(const clnet_context *ctx) { return ctx->backend.threads; }

// One more call in a row of the profile.
static void clnet__profile_add(clnet_profile_row *row, double seconds, double macs, double bytes) {
    row->calls++;
    row->total += seconds;
    row->longest = row->longest < seconds ? seconds : row->longest;
    row->macs += macs;
    row->bytes += bytes;
}

bool clnet_profile(const clnet_context *ctx, int index, clnet_profile_row *row) {
    const clnet_profile_row *rows = ctx ? ctx->backend.rows : NULL;
    for (int i = 0; rows && i < ctx->backend.row_count; i++) {
        if (rows[i].calls && index-- == 0) {
            *row = rows[i];
            return true;
        }
    }
    return false;
}

void clnet_profile_clear(clnet_context *ctx) {
    for (int i = 0; ctx && ctx->backend.rows && i < ctx->backend.row_count; i++) {
        clnet_profile_row *row = &ctx->backend.rows[i];
        *row = (clnet_profile_row){.name = row->name, .pass = row->pass};
    }
    for (int i = 0; ctx && i < ctx->node_count; i++) {
        ctx->nodes[i]->forward = ctx->nodes[i]->backward = (clnet_profile_row){.name = NULL};
    }
}

bool clnet_profile_at(const clnet_context *ctx, int index, clnet_profile_node *node) {
    if (!ctx || index < 0 || index >= ctx->node_count) {
        return false;
    }
    *node = *ctx->nodes[index];
    node->forward.name = node->backward.name = node->name;
    node->forward.pass = "forward";
    node->backward.pass = "backward";
    return true;
}

const char *clnet_isa_name(clnet_isa isa) {
    static const char *const names[] = {"auto", "portable", "avx2", "avx512"};
    return (size_t)isa < sizeof names / sizeof *names ? names[isa] : "unknown";
}

// >>threads
// Runs task(arg, i, worker) for every i below count, on up to cpu->threads threads; worker says which
// one. What a task computes must not depend on who runs it.
typedef void clnet__task(void *arg, size_t index, int worker);

static void clnet__parallel(const clnet__cpu *cpu, size_t count, clnet__task *task, void *arg) {
#ifdef _OPENMP
    if (cpu->threads > 1 && count > 1) {
        const long long tasks = (long long)count;
#pragma omp parallel for num_threads(cpu->threads) schedule(dynamic)
        for (long long i = 0; i < tasks; i++) {
            task(arg, (size_t)i, omp_get_thread_num());
        }
        return;
    }
#endif
    (void)cpu;
    for (size_t i = 0; i < count; i++) {
        task(arg, i, 0);
    }
}

#if defined(__GNUC__)
#define CLNET__RESTRICT    __restrict__
#define CLNET__PREFETCH(p) __builtin_prefetch(p)
#else
#define CLNET__RESTRICT
#define CLNET__PREFETCH(p) ((void)(p))
#endif

// In front of a loop whose passes do not depend on each other, although the compiler cannot tell.
#ifdef _OPENMP
#define CLNET__SIMD _Pragma("omp simd")
#else
#define CLNET__SIMD
#endif

#ifdef CLNET__FAST
// >>convolution
// Convolution and linear on the CPU, all three passes as one mechanism: a product of matrices whose
// left rows are found through pointers. A linear layer is the case H = W = KH = KW = 1 with N rows.
//
//     y[pixel][oc]     = b[oc] + sum over tap, ic of x[source(pixel, tap)][ic] * w[tap][ic][oc]
//     dx[pixel][ic]   += sum over tap, oc of dy[source(pixel, tap)][oc] * w[tap][ic][oc]
//     dw[tap][ic][oc] += sum over pixels of x[source(pixel, tap)][ic] * dy[pixel][oc]
//
// A tap is one (kh, kw). Forward, source(pixel, tap) = pixel*stride - padding + tap*dilation, or a
// row of zeros where that falls outside. Backward it is (pixel + padding - tap*dilation)/stride
// where that is whole: input pixels with the same remainder modulo the stride (a phase) share the
// taps for which it is, so each phase is a product with fewer taps.
//
// The tile: one function multiplies ROWS pixels by COLUMNS channels in registers (6 x 16 AVX2, 12 x
// 32 AVX-512, 6 x 8 portable). Per step of k it reads one number of each row through a pointer and
// two vectors of the packed right side, whose panels are [tap][k][COLUMNS], zero beyond the last
// channel. So nothing of x is copied but in backward weight. Two shapes leave most of a tile empty: a
// single pixel has lines, 1 x 8 vectors, which read w where it is; for up to three channels there
// are dot products, ROWS x 1.
//
// Blocks: a task is some pixels times some channels. It packs DEPTH rows of w for its channels,
// then takes panel after panel (16 KB with AVX2, in L1) through all its pixels, whose DEPTH
// channels stay in L2. Measured on a Zen 3, AVX2, one thread, share of the FMA peak, best of seven:
// the tile alone 92 % in chains of 32 and 98 % in chains of 128; 3x3 layers of 64 to 256 channels
// forward and backward data 79 to 84 %, backward weight 65 to 74 %; 512 channels at 28 x 28 75 %,
// 1024 at 14 x 14 64 %, where packing w, which is larger than x, takes a fifth of the time.
// Without the gap between panels, eight of them fall into the same sets of L1.
//
// Accuracy: a sum of n products of equal sign drifts by about 0.24 sqrt(n) units of 2^-24 in one
// chain, and by about 0.24 sqrt(chain^2/n + n/chain) if chains are added to memory, least at 2
// chain^3 = n^2. So chains grow with n.
//
// Order of sums: forward and backward data add in an order that depends on channels, kernel and
// instruction set, never on how tasks are cut: the same bits for any number of threads and any
// batch. Backward weight sums chains of pixels, GROUP pixels of them, then slices, which are added
// in double; their cuts depend on the shape alone, batch included.

#if defined(__GNUC__) && defined(__x86_64__)
#define CLNET__CONV2D_X86
#include <immintrin.h>
#endif

#define CLNET__CONV2D_CHAIN    32  // products a tile sums in registers, at least, before it adds
#define CLNET__CONV2D_DEPTH    256 // rows (tap, k) of a packed panel; the longest chain
#define CLNET__CONV2D_PIXELS   400 // pixels of a task at most
#define CLNET__CONV2D_BLOCK    128 // channels of a task at most, a multiple of every COLUMNS
#define CLNET__CONV2D_GAP      16  // floats between packed panels
#define CLNET__CONV2D_AHEAD    8   // rows that packing asks for ahead
#define CLNET__CONV2D_MAX_ROWS 12  // largest ROWS of any tile
#define CLNET__CONV2D_NARROW   3   // columns that are summed along k
#define CLNET__CONV2D_ALONE    1e6 // multiply-adds that one thread does sooner than two
// Backward weight:
#define CLNET__CONV2D_WEIGHT_ROWS  576  // rows (tap, ic) of a task
#define CLNET__CONV2D_WEIGHT_CHAIN 64   // pixels of a chain at most; their rows, 147 KB, stay in L2
#define CLNET__CONV2D_GROUP        1024 // pixels summed before they are added to dw
#define CLNET__CONV2D_SLICE        65536 // pixels of a slice at most: 64 groups
#define CLNET__CONV2D_TASKS        32    // pixels are sliced until there are so many tasks

// The vector operations of each instruction set, under the same names. Only the tiles use them.

// Four floats. gcc and clang have them as a type, on every processor; elsewhere a structure does,
// more slowly.
#ifdef __GNUC__
typedef float clnet__vec4 __attribute__((vector_size(16)));
#define CLNET__VEC4_FMA(a, b, c) ((a) * (b) + (c))
#define CLNET__VEC4_ADD(a, b)    ((a) + (b))
#define CLNET__VEC4_SPLAT(x)     ((clnet__vec4){(x), (x), (x), (x)})
#else
typedef struct clnet__vec4 {
    float f[4];
} clnet__vec4;

static inline clnet__vec4 clnet__vec4_splat(float x) {
    const clnet__vec4 v = {{x, x, x, x}};
    return v;
}

static inline clnet__vec4 clnet__vec4_fma(clnet__vec4 a, clnet__vec4 b, clnet__vec4 c) {
    for (int i = 0; i < 4; i++) {
        c.f[i] += a.f[i] * b.f[i];
    }
    return c;
}

#define CLNET__VEC4_FMA(a, b, c) clnet__vec4_fma(a, b, c)
#define CLNET__VEC4_ADD(a, b)    clnet__vec4_fma(a, clnet__vec4_splat(1.0f), b)
#define CLNET__VEC4_SPLAT(x)     clnet__vec4_splat(x)
#endif

static inline clnet__vec4 clnet__vec4_load(const float *p) {
    clnet__vec4 v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline void clnet__vec4_store(float *p, clnet__vec4 v) { memcpy(p, &v, sizeof(v)); }

// As x86 has it: NaN in b stays.
static inline clnet__vec4 clnet__vec4_max(clnet__vec4 a, clnet__vec4 b) {
    float x[4], y[4];
    memcpy(x, &a, sizeof(x));
    memcpy(y, &b, sizeof(y));
    for (int i = 0; i < 4; i++) {
        y[i] = x[i] > y[i] ? x[i] : y[i];
    }
    return clnet__vec4_load(y);
}

#define CLNET__PORTABLE_TARGET
#define CLNET__PORTABLE_ROWS  6
#define CLNET__PORTABLE_LANES 4
#define CLNET__PORTABLE_VEC   clnet__vec4
#define CLNET__PORTABLE_LOAD  clnet__vec4_load
#define CLNET__PORTABLE_STORE clnet__vec4_store
#define CLNET__PORTABLE_SPLAT CLNET__VEC4_SPLAT
#define CLNET__PORTABLE_ADD   CLNET__VEC4_ADD
#define CLNET__PORTABLE_FMA   CLNET__VEC4_FMA
#define CLNET__PORTABLE_MAX   clnet__vec4_max

#define CLNET__AVX2_TARGET __attribute__((target("avx2,fma")))
#define CLNET__AVX2_ROWS   6
#define CLNET__AVX2_LANES  8
#define CLNET__AVX2_VEC    __m256
#define CLNET__AVX2_LOAD   _mm256_loadu_ps
#define CLNET__AVX2_STORE  _mm256_storeu_ps
#define CLNET__AVX2_SPLAT  _mm256_set1_ps
#define CLNET__AVX2_ADD    _mm256_add_ps
#define CLNET__AVX2_FMA    _mm256_fmadd_ps
#define CLNET__AVX2_MAX    _mm256_max_ps

#define CLNET__AVX512_TARGET __attribute__((target("avx512f")))
#define CLNET__AVX512_ROWS   12
#define CLNET__AVX512_LANES  16
#define CLNET__AVX512_VEC    __m512
#define CLNET__AVX512_LOAD   _mm512_loadu_ps
#define CLNET__AVX512_STORE  _mm512_storeu_ps
#define CLNET__AVX512_SPLAT  _mm512_set1_ps
#define CLNET__AVX512_ADD    _mm512_add_ps
#define CLNET__AVX512_FMA    _mm512_fmadd_ps
#define CLNET__AVX512_MAX    _mm512_max_ps

// c[row][c_offset + column] =  (or += with `add`)
//     sum over tap, k of a[tap*ROWS + row][a_offset + k*a_step] * b[(tap*depth + k)*b_step + column]
typedef void clnet__conv2d_tile(float *const *c, size_t c_offset, const float *const *a,
                                size_t a_offset, size_t a_step, const float *b, size_t b_step,
                                int taps, int depth, bool add);

// Rows, of a line pairs of vectors, are written out as named variables, not as an array and a loop: every compiler then keeps
// them in registers, while arrays depend on unrolling (clang with GCC's pragma leaves them in
// memory: 2 to 3 times slower).
#define CLNET__TILE_ROWS_1(X, isa) X(isa, 0)
#define CLNET__TILE_ROWS_4(X, isa) X(isa, 0) X(isa, 1) X(isa, 2) X(isa, 3)
#define CLNET__TILE_ROWS_6(X, isa) X(isa, 0) X(isa, 1) X(isa, 2) X(isa, 3) X(isa, 4) X(isa, 5)
#define CLNET__TILE_ROWS_12(X, isa)                                                                \
    CLNET__TILE_ROWS_6(X, isa)                                                                     \
    X(isa, 6) X(isa, 7) X(isa, 8) X(isa, 9) X(isa, 10) X(isa, 11)

#define CLNET__TILE_CLEAR(isa, r) CLNET__##isa##_VEC s##r##_0 = zero, s##r##_1 = zero;
#define CLNET__TILE_POINT(isa, r) const float *a##r = a[r] + a_offset;
#define CLNET__TILE_MULTIPLY(isa, r)                                                               \
    v = CLNET__##isa##_SPLAT(a##r[i]);                                                             \
    s##r##_0 = CLNET__##isa##_FMA(v, b0, s##r##_0);                                                \
    s##r##_1 = CLNET__##isa##_FMA(v, b1, s##r##_1);
#define CLNET__TILE_ADD(isa, r)                                                                    \
    y = c[r] + c_offset;                                                                           \
    CLNET__##isa##_STORE(y, CLNET__##isa##_ADD(CLNET__##isa##_LOAD(y), s##r##_0));                 \
    y += CLNET__##isa##_LANES;                                                                     \
    CLNET__##isa##_STORE(y, CLNET__##isa##_ADD(CLNET__##isa##_LOAD(y), s##r##_1));

#define CLNET__TILE_SET(isa, r)                                                                    \
    y = c[r] + c_offset;                                                                           \
    CLNET__##isa##_STORE(y, s##r##_0);                                                             \
    CLNET__##isa##_STORE(y + CLNET__##isa##_LANES, s##r##_1);

#define CLNET__TILE(name, isa, count)                                                              \
    CLNET__##isa##_TARGET static void name(                                                        \
        float *const *c, size_t c_offset, const float *const *a, size_t a_offset, size_t a_step,   \
        const float *b, size_t b_step, int taps, int depth, bool add) {                            \
        const CLNET__##isa##_VEC zero = CLNET__##isa##_SPLAT(0.0f);                                \
        CLNET__TILE_ROWS_##count(CLNET__TILE_CLEAR, isa) for (int t = 0; t < taps; t++) {          \
            CLNET__TILE_ROWS_##count(CLNET__TILE_POINT, isa) size_t i = 0;                         \
            for (int k = 0; k < depth; k++) {                                                      \
                const CLNET__##isa##_VEC b0 = CLNET__##isa##_LOAD(b);                              \
                const CLNET__##isa##_VEC b1 = CLNET__##isa##_LOAD(b + CLNET__##isa##_LANES);       \
                CLNET__##isa##_VEC v;                                                              \
                CLNET__TILE_ROWS_##count(CLNET__TILE_MULTIPLY, isa) b += b_step;                   \
                i += a_step;                                                                       \
            }                                                                                      \
            a += count;                                                                            \
        }                                                                                          \
        float *y;                                                                                  \
        if (add) {                                                                                 \
            CLNET__TILE_ROWS_##count(CLNET__TILE_ADD, isa)                                         \
        } else {                                                                                   \
            CLNET__TILE_ROWS_##count(CLNET__TILE_SET, isa)                                         \
        }                                                                                          \
    }

CLNET__TILE(clnet__conv2d_tile_portable, PORTABLE, 6)
#ifdef CLNET__CONV2D_X86
CLNET__TILE(clnet__conv2d_tile_avx2, AVX2, 6)
CLNET__TILE(clnet__conv2d_tile_avx512, AVX512, 12)
#endif

// The same sums for one row and `pairs` pairs of vectors: every weight is read once, wherever it is, in
// runs as long as possible.
#define CLNET__LINE_MULTIPLY(isa, r)                                                               \
    s##r##_0 = CLNET__##isa##_FMA(v, CLNET__##isa##_LOAD(b + 2 * r * lanes), s##r##_0);            \
    s##r##_1 = CLNET__##isa##_FMA(v, CLNET__##isa##_LOAD(b + (2 * r + 1) * lanes), s##r##_1);
#define CLNET__LINE_ADD(isa, r)                                                                    \
    s##r##_0 = CLNET__##isa##_ADD(CLNET__##isa##_LOAD(y + 2 * r * lanes), s##r##_0);               \
    s##r##_1 = CLNET__##isa##_ADD(CLNET__##isa##_LOAD(y + (2 * r + 1) * lanes), s##r##_1);
#define CLNET__LINE_SET(isa, r)                                                                    \
    CLNET__##isa##_STORE(y + 2 * r * lanes, s##r##_0);                                             \
    CLNET__##isa##_STORE(y + (2 * r + 1) * lanes, s##r##_1);

#define CLNET__LINE(name, isa, pairs)                                                              \
    CLNET__##isa##_TARGET static void name(                                                        \
        float *const *c, size_t c_offset, const float *const *a, size_t a_offset, size_t a_step,   \
        const float *b, size_t b_step, int taps, int depth, bool add) {                            \
        const CLNET__##isa##_VEC zero = CLNET__##isa##_SPLAT(0.0f);                                \
        const size_t lanes = CLNET__##isa##_LANES;                                                 \
        CLNET__TILE_ROWS_##pairs(CLNET__TILE_CLEAR, isa) for (int t = 0; t < taps; t++) {          \
            const float *x = a[t] + a_offset;                                                      \
            for (int k = 0; k < depth; k++) {                                                      \
                const CLNET__##isa##_VEC v = CLNET__##isa##_SPLAT(*x);                             \
                CLNET__TILE_ROWS_##pairs(CLNET__LINE_MULTIPLY, isa) b += b_step;                   \
                x += a_step;                                                                       \
            }                                                                                      \
        }                                                                                          \
        float *y = c[0] + c_offset;                                                                \
        if (add) {                                                                                 \
            CLNET__TILE_ROWS_##pairs(CLNET__LINE_ADD, isa)                                         \
        }                                                                                          \
        CLNET__TILE_ROWS_##pairs(CLNET__LINE_SET, isa)                                             \
    }

CLNET__LINE(clnet__conv2d_line_portable, PORTABLE, 4)
CLNET__LINE(clnet__conv2d_short_line_portable, PORTABLE, 1)
#ifdef CLNET__CONV2D_X86
CLNET__LINE(clnet__conv2d_line_avx2, AVX2, 4)
CLNET__LINE(clnet__conv2d_short_line_avx2, AVX2, 1)
CLNET__LINE(clnet__conv2d_line_avx512, AVX512, 4)
CLNET__LINE(clnet__conv2d_short_line_avx512, AVX512, 1)
#endif

// The tile of one column, where a vector of 16 channels would be mostly empty: its vectors run along
// k, so a_step and b_step have to be 1. Lane l sums k = l, l + LANES, ..; the lanes are added at the
// end, the first half to the second until one is left.
#define CLNET__DOT_CLEAR(isa, r) CLNET__##isa##_VEC s##r = zero;
#define CLNET__DOT_MULTIPLY(isa, r)                                                                \
    s##r = CLNET__##isa##_FMA(CLNET__##isa##_LOAD(a##r + k), v, s##r);
#define CLNET__DOT_REST(isa, r) rest[r] += a##r[k] * b[k];
#define CLNET__DOT_SUM(isa, r)                                                                     \
    CLNET__##isa##_STORE(lane, s##r);                                                              \
    for (int half = CLNET__##isa##_LANES / 2; half > 0; half /= 2) {                               \
        for (int l = 0; l < half; l++) {                                                           \
            lane[l] += lane[l + half];                                                             \
        }                                                                                          \
    }                                                                                              \
    c[r][c_offset] = (add ? c[r][c_offset] : 0) + (lane[0] + rest[r]);

#define CLNET__DOT(name, isa, count)                                                               \
    CLNET__##isa##_TARGET static void name(                                                        \
        float *const *c, size_t c_offset, const float *const *a, size_t a_offset, size_t a_step,   \
        const float *b, size_t b_step, int taps, int depth, bool add) {                            \
        const CLNET__##isa##_VEC zero = CLNET__##isa##_SPLAT(0.0f);                                \
        float lane[CLNET__##isa##_LANES], rest[count] = {0};                                       \
        CLNET__TILE_ROWS_##count(CLNET__DOT_CLEAR, isa) for (int t = 0; t < taps; t++) {           \
            CLNET__TILE_ROWS_##count(CLNET__TILE_POINT, isa) int k = 0;                            \
            for (; k + CLNET__##isa##_LANES <= depth; k += CLNET__##isa##_LANES) {                 \
                const CLNET__##isa##_VEC v = CLNET__##isa##_LOAD(b + k);                           \
                CLNET__TILE_ROWS_##count(CLNET__DOT_MULTIPLY, isa)                                 \
            }                                                                                      \
            for (; k < depth; k++) {                                                               \
                CLNET__TILE_ROWS_##count(CLNET__DOT_REST, isa)                                     \
            }                                                                                      \
            a += count;                                                                            \
            b += depth;                                                                            \
        }                                                                                          \
        (void)a_step;                                                                              \
        (void)b_step;                                                                              \
        CLNET__TILE_ROWS_##count(CLNET__DOT_SUM, isa)                                              \
    }

CLNET__DOT(clnet__conv2d_dot_portable, PORTABLE, 6)
#ifdef CLNET__CONV2D_X86
CLNET__DOT(clnet__conv2d_dot_avx2, AVX2, 6)
CLNET__DOT(clnet__conv2d_dot_avx512, AVX512, 12)
#endif

// What becomes of the sums y of forward where batch norm in evaluation, an addition and ReLU follow,
// while they are in L1: y = max((y - mean) * factor + shift + summand, least).
typedef struct clnet__epilogue {
    const float *mean, *factor, *shift; // of all output channels
    const float *summand;               // laid out as y is, but for its stride; NULL: none
    size_t summand_stride;
    float least; // 0: ReLU; -INFINITY: none
} clnet__epilogue;

// Some rows of y, and of the summand (NULL: none), from their channel 0 on, which is `channel` of the
// convolution.
typedef void clnet__conv2d_finish(float *const *y, const float *const *summand, size_t rows,
                                  const clnet__epilogue *e, size_t channel, size_t channels);

#define CLNET__FINISH(name, isa)                                                                   \
    CLNET__##isa##_TARGET static void name(float *const *y, const float *const *summand,           \
                                           size_t rows, const clnet__epilogue *e, size_t channel,  \
                                           size_t channels) {                                      \
        const size_t lanes = CLNET__##isa##_LANES;                                                 \
        const CLNET__##isa##_VEC least = CLNET__##isa##_SPLAT(e->least);                           \
        const CLNET__##isa##_VEC minus = CLNET__##isa##_SPLAT(-1.0f);                              \
        size_t c = 0;                                                                              \
        for (; c + lanes <= channels; c += lanes) {                                                \
            const CLNET__##isa##_VEC mean = CLNET__##isa##_LOAD(e->mean + channel + c);            \
            const CLNET__##isa##_VEC factor = CLNET__##isa##_LOAD(e->factor + channel + c);        \
            const CLNET__##isa##_VEC shift = CLNET__##isa##_LOAD(e->shift + channel + c);          \
            for (size_t r = 0; r < rows; r++) {                                                    \
                CLNET__##isa##_VEC v = CLNET__##isa##_LOAD(y[r] + c);                              \
                v = CLNET__##isa##_FMA(CLNET__##isa##_FMA(minus, mean, v), factor, shift);         \
                if (summand) {                                                                     \
                    v = CLNET__##isa##_ADD(v, CLNET__##isa##_LOAD(summand[r] + c));                \
                }                                                                                  \
                CLNET__##isa##_STORE(y[r] + c, CLNET__##isa##_MAX(least, v));                      \
            }                                                                                      \
        }                                                                                          \
        for (; c < channels; c++) {                                                                \
            const size_t k = channel + c;                                                          \
            for (size_t r = 0; r < rows; r++) {                                                    \
                float v = (y[r][c] - e->mean[k]) * e->factor[k] + e->shift[k];                     \
                v = summand ? v + summand[r][c] : v;                                               \
                y[r][c] = e->least > v ? e->least : v;                                             \
            }                                                                                      \
        }                                                                                          \
    }

CLNET__FINISH(clnet__conv2d_finish_portable, PORTABLE)
#ifdef CLNET__CONV2D_X86
CLNET__FINISH(clnet__conv2d_finish_avx2, AVX2)
CLNET__FINISH(clnet__conv2d_finish_avx512, AVX512)
#endif

static bool clnet__isa_supported(clnet_isa isa) {
#ifdef CLNET__CONV2D_X86
    if (isa == CLNET_ISA_AVX2) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    }
    if (isa == CLNET_ISA_AVX512) {
        return __builtin_cpu_supports("avx512f");
    }
#endif
    return isa == CLNET_ISA_AUTO || isa == CLNET_ISA_PORTABLE;
}

static clnet_isa clnet__isa_best(void) {
    if (clnet__isa_supported(CLNET_ISA_AVX512)) {
        return CLNET_ISA_AVX512;
    }
    return clnet__isa_supported(CLNET_ISA_AVX2) ? CLNET_ISA_AVX2 : CLNET_ISA_PORTABLE;
}

typedef struct clnet__conv2d_kernel {
    int rows, columns;
    int sums; // of a tile, which it adds up side by side for each row and column
    clnet__conv2d_tile *tile;
    clnet__conv2d_finish *finish;
} clnet__conv2d_kernel;

typedef struct clnet__conv2d_kernels {
    clnet__conv2d_kernel tile, line, short_line, dot;
} clnet__conv2d_kernels;

#define CLNET__KERNEL(isa, kind, rows, columns, sums)                                              \
    { rows, columns, sums, clnet__conv2d_##kind##_##isa, clnet__conv2d_finish_##isa }
#define CLNET__KERNELS(ISA, isa)                                                                   \
    {                                                                                              \
        CLNET__KERNEL(isa, tile, CLNET__##ISA##_ROWS, 2 * CLNET__##ISA##_LANES, 1),                \
            CLNET__KERNEL(isa, line, 1, 8 * CLNET__##ISA##_LANES, 1),                              \
            CLNET__KERNEL(isa, short_line, 1, 2 * CLNET__##ISA##_LANES, 1),                        \
            CLNET__KERNEL(isa, dot, CLNET__##ISA##_ROWS, 1, CLNET__##ISA##_LANES)                  \
    }

static const clnet__conv2d_kernels clnet__conv2d_kernels_of[] = {
    [CLNET_ISA_PORTABLE] = CLNET__KERNELS(PORTABLE, portable),
#ifdef CLNET__CONV2D_X86
    [CLNET_ISA_AVX2] = CLNET__KERNELS(AVX2, avx2),
    [CLNET_ISA_AVX512] = CLNET__KERNELS(AVX512, avx512),
#endif
};

static clnet__conv2d_kernel clnet__conv2d_kernel_of(clnet_isa isa) {
    return clnet__conv2d_kernels_of[isa].tile;
}

// The kernel of a product of so many pixels and columns. A single pixel's sums have the same bits as
// in a batch: lines add in the order of the tile.
static clnet__conv2d_kernel clnet__conv2d_kernel_for(clnet_isa isa, size_t pixels, size_t columns) {
    const clnet__conv2d_kernels *k = &clnet__conv2d_kernels_of[isa];
    if (columns <= CLNET__CONV2D_NARROW) {
        return k->dot;
    }
    if (pixels > 1) {
        return k->tile;
    }
    return columns < (size_t)k->line.columns ? k->short_line : k->line;
}

// A grid: pixels (n, i, j) and the source pixels that their taps read.

typedef struct clnet__conv2d_tap {
    int index, h, w;  // kh*KW + kw; source pixel = (i, j)*step + (h, w)
    ptrdiff_t offset; // h*SW + w
} clnet__conv2d_tap;

typedef struct clnet__conv2d_grid {
    int N, H, W;         // pixels of the grid
    int SH, SW, step[2]; // size of the source, its pixels per pixel of the grid
    size_t s_stride;     // elements between neighbouring source pixels
    const float *zeros;  // stands in for source pixels outside
    const clnet__conv2d_tap *tap;
    int taps;
} clnet__conv2d_grid;

typedef struct clnet__conv2d_pixel {
    int n, i, j;
} clnet__conv2d_pixel;

static clnet__conv2d_pixel clnet__conv2d_pixel_at(const clnet__conv2d_grid *g, size_t index) {
    const size_t row = index / (size_t)g->W;
    return (clnet__conv2d_pixel){(int)(row / (size_t)g->H), (int)(row % (size_t)g->H),
                                 (int)(index % (size_t)g->W)};
}

static void clnet__conv2d_pixel_next(const clnet__conv2d_grid *g, clnet__conv2d_pixel *p) {
    if (++p->j == g->W) {
        p->j = 0;
        if (++p->i == g->H) {
            p->i = 0;
            p->n++;
        }
    }
}

// The source pixel of a tap. All that depends on the pixel alone is the same for all taps, so
// compilers compute it once.
static inline const float *clnet__conv2d_source(const clnet__conv2d_grid *g, const float *source,
                                                clnet__conv2d_pixel p,
                                                const clnet__conv2d_tap *tap) {
    const int h0 = p.i * g->step[0], w0 = p.j * g->step[1];
    const ptrdiff_t first = ((ptrdiff_t)p.n * g->SH + h0) * g->SW + w0;
    if ((unsigned)(h0 + tap->h) >= (unsigned)g->SH || (unsigned)(w0 + tap->w) >= (unsigned)g->SW) {
        return g->zeros;
    }
    return source + (first + tap->offset) * (ptrdiff_t)g->s_stride;
}

// The forward grid has one row per output pixel and all taps, listed by the second function.
static clnet__conv2d_grid clnet__conv2d_grid_forward(const clnet_conv2d_sizes *s,
                                                     const float *zeros,
                                                     const clnet__conv2d_tap *tap) {
    return (clnet__conv2d_grid){
        .N = s->N,
        .H = s->OH,
        .W = s->OW,
        .SH = s->H,
        .SW = s->W,
        .step = {s->stride[0], s->stride[1]},
        .s_stride = s->x_stride,
        .zeros = zeros,
        .tap = tap,
        .taps = s->KH * s->KW,
    };
}

static void clnet__conv2d_list_taps(const clnet_conv2d_sizes *s, clnet__conv2d_tap *tap) {
    for (int t = 0; t < s->KH * s->KW; t++) {
        const int h = t / s->KW * s->dilation[0] - s->padding[0];
        const int w = t % s->KW * s->dilation[1] - s->padding[1];
        tap[t] = (clnet__conv2d_tap){t, h, w, (ptrdiff_t)h * s->W + w};
    }
}

// The backward grid of one phase: input pixels (h0 + i*stride, w0 + j*stride) and the taps that
// reach them.
static clnet__conv2d_grid clnet__conv2d_grid_backward(const clnet_conv2d_sizes *s, int h0, int w0,
                                                      const float *zeros, clnet__conv2d_tap *tap) {
    int taps = 0;
    for (int t = 0; t < s->KH * s->KW; t++) {
        const int h = h0 + s->padding[0] - t / s->KW * s->dilation[0];
        const int w = w0 + s->padding[1] - t % s->KW * s->dilation[1];
        if (h % s->stride[0] == 0 && w % s->stride[1] == 0) {
            tap[taps].index = t;
            tap[taps].h = h / s->stride[0];
            tap[taps].w = w / s->stride[1];
            tap[taps].offset = (ptrdiff_t)tap[taps].h * s->OW + tap[taps].w;
            taps++;
        }
    }
    return (clnet__conv2d_grid){
        .N = s->N,
        .H = (s->H - h0 + s->stride[0] - 1) / s->stride[0],
        .W = (s->W - w0 + s->stride[1] - 1) / s->stride[1],
        .SH = s->OH,
        .SW = s->OW,
        .step = {1, 1},
        .s_stride = s->y_stride,
        .zeros = zeros,
        .tap = tap,
        .taps = taps,
    };
}

// Cuts `n` into equal parts of at most `most`, each a multiple of `unit` except the last.
static size_t clnet__conv2d_cut(size_t n, size_t most, size_t unit) {
    const size_t parts = (n + most - 1) / most;
    return clnet__round_up((n + parts - 1) / parts, unit);
}

static size_t clnet__conv2d_parts(size_t n, size_t part) { return (n + part - 1) / part; }

static size_t clnet__conv2d_min(size_t a, size_t b) { return a < b ? a : b; }

// The product of forward and backward data:
// y[pixel][column] (+)= sum over tap, k of source[source(pixel, tap)][k] * w[tap][k][column]

typedef struct clnet__conv2d_product {
    clnet__conv2d_kernel kernel;
    clnet__conv2d_grid grid;
    const float *source, *w, *bias;
    float *y;
    size_t y_stride;
    int YH, YW, origin[2], y_step[2];     // grid pixel (n, i, j) is y's (n, origin + (i, j)*y_step)
    size_t w_tap, w_k, w_column, w_group; // strides of w
    size_t groups, K, columns;            // K and columns: per group
    bool add;                             // false: y starts from bias or zero
    bool in_place;                        // w is read where it is, but for the last, narrower panel
    const clnet__epilogue *epilogue;      // of forward; NULL: none
    size_t chain;                         // products summed in registers before they are added to y
    size_t depth, taps, pixels, block;    // cuts of K, taps, pixels and columns
    char *scratch;                        // of all workers
} clnet__conv2d_product;

typedef struct clnet__conv2d_scratch {
    const float **a; // [tile][tap][row]: rows of the source
    float **c;       // [tile][row]: rows of y, from the task's first column
    float *b;        // [panel][tap][k][column], packed weights
    float *edge;     // one tile, for narrower panels
    float *dead;     // stands in for rows beyond the last pixel
} clnet__conv2d_scratch;

static size_t clnet__conv2d_product_tasks(const clnet__conv2d_product *p) {
    const size_t pixels = (size_t)p->grid.N * (size_t)p->grid.H * (size_t)p->grid.W;
    return clnet__conv2d_parts(pixels, p->pixels) * p->groups *
           clnet__conv2d_parts(p->columns, p->block);
}

// Products of a chain where n are summed: see Accuracy above.
static size_t clnet__conv2d_chain(size_t n) {
    size_t chain = CLNET__CONV2D_CHAIN;
    const double square = (double)n * (double)n;
    while (chain < CLNET__CONV2D_DEPTH && 2.0 * (double)(chain * chain * chain) < square) {
        chain *= 2;
    }
    return chain;
}

// Results do not depend on `pixels` and `block`, so these may depend on the threads: four tasks for
// each of several where possible.
static void clnet__conv2d_product_cut(const clnet__cpu *cpu, clnet__conv2d_product *p) {
    const size_t all = (size_t)p->grid.N * (size_t)p->grid.H * (size_t)p->grid.W;
    const size_t wanted = cpu->threads > 1 ? 4 * (size_t)cpu->threads : 1;
    const size_t columns = (size_t)p->kernel.columns, rows = (size_t)p->kernel.rows;
    p->chain =
        clnet__conv2d_min(CLNET__CONV2D_DEPTH, clnet__conv2d_chain(p->K * (size_t)p->grid.taps) *
                                                   (size_t)p->kernel.sums);
    p->depth = clnet__conv2d_cut(p->K, CLNET__CONV2D_DEPTH, 1);
    p->taps = clnet__conv2d_cut((size_t)p->grid.taps, CLNET__CONV2D_DEPTH / p->depth, 1);
    p->pixels = clnet__conv2d_cut(all, CLNET__CONV2D_PIXELS, rows);
    p->block = clnet__conv2d_min(CLNET__CONV2D_BLOCK, clnet__round_up(p->columns, columns));
    while (clnet__conv2d_product_tasks(p) < wanted && p->block > columns) {
        p->block = clnet__round_up(p->block / 2, columns);
    }
    while (clnet__conv2d_product_tasks(p) < wanted && p->pixels > 8 * rows) {
        p->pixels = clnet__round_up(p->pixels / 2, rows);
    }
}

// Takes `more` bytes, whole cache lines, behind the `bytes` that are taken; returns where they
// begin.
static size_t clnet__conv2d_carve(size_t *bytes, size_t more) {
    const size_t at = *bytes;
    *bytes += clnet__round_up(more, 64);
    return at;
}

// Where each part of a worker's scratch begins, in bytes. `end` grows with pixels and taps alone.
typedef struct clnet__conv2d_layout {
    size_t a, c, b, m, edge, dead, end;
} clnet__conv2d_layout;

static clnet__conv2d_layout clnet__conv2d_product_layout(const clnet__conv2d_product *p) {
    const size_t pixels = (size_t)p->grid.N * (size_t)p->grid.H * (size_t)p->grid.W;
    const size_t rows =
        clnet__round_up(clnet__conv2d_min(pixels, CLNET__CONV2D_PIXELS), (size_t)p->kernel.rows);
    const size_t b =
        (CLNET__CONV2D_DEPTH + CLNET__CONV2D_GAP) * CLNET__CONV2D_BLOCK * sizeof(float);
    clnet__conv2d_layout at = {0};
    at.a = clnet__conv2d_carve(&at.end, rows * (size_t)p->grid.taps * sizeof(float *));
    at.c = clnet__conv2d_carve(&at.end, rows * sizeof(float *));
    at.b = clnet__conv2d_carve(&at.end, b);
    at.edge =
        clnet__conv2d_carve(&at.end, (size_t)(p->kernel.rows * p->kernel.columns) * sizeof(float));
    at.dead = clnet__conv2d_carve(&at.end, CLNET__CONV2D_BLOCK * sizeof(float));
    return at;
}

static clnet__conv2d_scratch clnet__conv2d_product_scratch(const clnet__conv2d_product *p,
                                                           int worker) {
    const clnet__conv2d_layout at = clnet__conv2d_product_layout(p);
    char *base = p->scratch + (size_t)worker * at.end;
    return (clnet__conv2d_scratch){
        .a = (const float **)(void *)(base + at.a),
        .c = (float **)(void *)(base + at.c),
        .b = (float *)(void *)(base + at.b),
        .edge = (float *)(void *)(base + at.edge),
        .dead = (float *)(void *)(base + at.dead),
    };
}

// Finds the rows of a task: where each pixel's taps read and where its result goes.
static void clnet__conv2d_product_point(const clnet__conv2d_product *p,
                                        const clnet__conv2d_scratch *m, size_t first, size_t pixels,
                                        size_t group, size_t column) {
    const clnet__conv2d_grid *g = &p->grid;
    const size_t rows = (size_t)p->kernel.rows, taps = (size_t)g->taps;
    const size_t end = clnet__round_up(pixels, rows);
    clnet__conv2d_pixel at = clnet__conv2d_pixel_at(g, first);
    const float **a = m->a;
    for (size_t r = 0, row = 0; r < end; r++, a++, row++) {
        if (row == rows) { // the next tile
            a += rows * (taps - 1);
            row = 0;
        }
        if (r < pixels) {
            for (size_t t = 0; t < taps; t++) {
                a[t * rows] = clnet__conv2d_source(g, p->source + group * p->K, at, &g->tap[t]);
            }
            const size_t h = (size_t)(p->origin[0] + at.i * p->y_step[0]);
            const size_t w = (size_t)(p->origin[1] + at.j * p->y_step[1]);
            m->c[r] = p->y +
                      (((size_t)at.n * (size_t)p->YH + h) * (size_t)p->YW + w) * p->y_stride +
                      group * p->columns + column;
            clnet__conv2d_pixel_next(g, &at);
        } else {
            for (size_t t = 0; t < taps; t++) {
                a[t * rows] = g->zeros;
            }
            m->c[r] = m->dead;
        }
    }
}

// One row, in vectors: memcpy of a number of bytes that is not known in advance takes longer than the
// copy. The row that comes some rows later, each `stride` behind the other, is asked for.
static void clnet__conv2d_pack_row(float *to, size_t panel, size_t columns, const float *from,
                                   size_t width, size_t stride) {
    size_t j = 0;
    for (; j + columns <= width; j += columns, to += panel) {
        CLNET__PREFETCH(from + CLNET__CONV2D_AHEAD * stride + j);
        for (size_t c = 0; c < columns; c += 4) {
            clnet__vec4_store(to + c, clnet__vec4_load(from + j + c));
        }
    }
    if (j < width) {
        memcpy(to, from + j, (width - j) * sizeof(float));
    }
}

// Copies columns [0, width) of `from` into panels that lie `panel` elements apart, zero beyond the
// last column. The inner loops follow the unit stride, all columns of a row before the next: rows
// may be pages apart.
static void clnet__conv2d_pack(float *to, size_t panel, size_t columns, const float *from,
                               size_t depth, size_t k_stride, size_t width, size_t column_stride) {
    if (width % columns != 0) {
        memset(to + width / columns * panel, 0, depth * columns * sizeof(float));
    }
    if (column_stride == 1 && columns > 1) {
        for (size_t k = 0; k < depth; k++) {
            clnet__conv2d_pack_row(to + k * columns, panel, columns, from + k * k_stride, width,
                                   k + CLNET__CONV2D_AHEAD < depth ? k_stride : 0);
        }
    } else {
        for (size_t j = 0; j < width; j++) {
            float *column = to + j / columns * panel + j % columns;
            for (size_t k = 0; k < depth; k++) {
                column[k * columns] = from[j * column_stride + k * k_stride];
            }
        }
    }
}

// Rows (tap, k) of the right side for the columns of a tile, and the taps and rows of a chain.
typedef struct clnet__conv2d_panel {
    const float *b;
    size_t b_step, taps, depth, t_step, k_step;
} clnet__conv2d_panel;

// One tile times one panel, in chains. The first sets c where nothing is there to be added to.
static void clnet__conv2d_chains(const clnet__conv2d_product *p, float *const *c, size_t c_offset,
                                 const float *const *a, size_t a_offset,
                                 const clnet__conv2d_panel *w, bool add) {
    const size_t rows = (size_t)p->kernel.rows;
    for (size_t t = 0; t < w->taps; t += w->t_step) {
        for (size_t k = 0; k < w->depth; k += w->k_step) {
            p->kernel.tile(c, c_offset, a + t * rows, a_offset + k, 1,
                           w->b + (t * w->depth + k) * w->b_step, w->b_step,
                           (int)clnet__conv2d_min(w->t_step, w->taps - t),
                           (int)clnet__conv2d_min(w->k_step, w->depth - k), add || t + k > 0);
        }
    }
}

// The same where fewer columns than the tile's are wanted: through a buffer, so that nothing beyond
// them is touched.
static void clnet__conv2d_edge(const clnet__conv2d_product *p, float *edge, float *const *c,
                               size_t c_offset, size_t width, const float *const *a,
                               size_t a_offset, const clnet__conv2d_panel *w, bool add) {
    float *rows[CLNET__CONV2D_MAX_ROWS];
    for (int r = 0; r < p->kernel.rows; r++) {
        rows[r] = edge + r * p->kernel.columns;
        memset(rows[r], 0, (size_t)p->kernel.columns * sizeof(float));
        memcpy(rows[r], c[r] + c_offset, add ? width * sizeof(float) : 0);
    }
    clnet__conv2d_chains(p, rows, 0, a, a_offset, w, add);
    for (int r = 0; r < p->kernel.rows; r++) {
        memcpy(c[r] + c_offset, rows[r], width * sizeof(float));
    }
}

// The epilogue of whole sums: `rows` neighbouring pixels of a task, columns [j, j + some).
static void clnet__conv2d_product_finish(const clnet__conv2d_product *p, float *const *c,
                                         size_t pixel, size_t rows, size_t channel, size_t j,
                                         size_t some) {
    const clnet__epilogue *e = p->epilogue;
    const float *summand[CLNET__CONV2D_MAX_ROWS];
    float *y[CLNET__CONV2D_MAX_ROWS];
    for (size_t r = 0; r < rows; r++) {
        y[r] = c[r] + j;
        if (e->summand) {
            summand[r] = e->summand + (pixel + r) * e->summand_stride + channel + j;
        }
    }
    p->kernel.finish(y, e->summand ? summand : NULL, rows, e, channel + j, some);
}

// What a task of the product computes: some pixels, some columns of a group.
typedef struct clnet__conv2d_part {
    size_t first, pixels, group, column, width;
} clnet__conv2d_part;

// Weights of taps [t0, t0 + taps), channels [k0, k0 + depth) and columns [j, j + width) of a task, as
// panels.
static void clnet__conv2d_product_pack(const clnet__conv2d_product *p, float *to, const float *w,
                                       size_t t0, size_t taps, size_t k0, size_t depth, size_t j,
                                       size_t width) {
    const size_t columns = (size_t)p->kernel.columns;
    for (size_t t = 0; t < taps; t++) {
        clnet__conv2d_pack(
            to + t * depth * columns, taps * depth * columns + CLNET__CONV2D_GAP, columns,
            w + (size_t)p->grid.tap[t0 + t].index * p->w_tap + k0 * p->w_k + j * p->w_column, depth,
            p->w_k, width, p->w_column);
    }
}

// All tiles of a task times the weights of taps [t0, t0 + taps) and channels [k0, k0 + depth); `last`:
// then the sums are whole.
static void clnet__conv2d_product_block(const clnet__conv2d_product *p,
                                        const clnet__conv2d_scratch *m,
                                        const clnet__conv2d_part *part, const float *w, size_t t0,
                                        size_t taps, size_t k0, size_t depth, bool last) {
    const size_t width = part->width, channel = part->group * p->columns + part->column;
    const bool add = p->add || p->bias || t0 + k0 > 0;
    const size_t columns = (size_t)p->kernel.columns, rows = (size_t)p->kernel.rows;
    const size_t size = taps * depth * columns + CLNET__CONV2D_GAP;
    const size_t in_place = p->in_place ? width / columns * columns : 0;
    clnet__conv2d_panel panel = {.taps = taps,
                                 .depth = depth,
                                 .t_step = depth < p->chain ? p->chain / depth : 1,
                                 .k_step = clnet__conv2d_cut(depth, p->chain, 1)};
    clnet__conv2d_product_pack(p, m->b, w, t0, taps, k0, depth, in_place, width - in_place);
    for (size_t j = 0; j < width; j += columns) {
        const size_t some = clnet__conv2d_min(columns, width - j);
        panel.b = j < in_place ? w + t0 * p->w_tap + k0 * p->w_k + j
                               : m->b + (j - in_place) / columns * size;
        panel.b_step = j < in_place ? p->w_k : columns;
        for (size_t i = 0; i < part->pixels; i += rows) {
            const float *const *a = m->a + i * (size_t)p->grid.taps + t0 * rows;
            if (some == columns) {
                clnet__conv2d_chains(p, m->c + i, j, a, k0, &panel, add);
            } else {
                clnet__conv2d_edge(p, m->edge, m->c + i, j, some, a, k0, &panel, add);
            }
            if (last && p->epilogue) {
                clnet__conv2d_product_finish(p, m->c + i, part->first + i,
                                             clnet__conv2d_min(rows, part->pixels - i), channel, j,
                                             some);
            }
        }
    }
}

// y starts from the bias.
static void clnet__conv2d_product_start(float *const *c, size_t pixels, size_t width,
                                        const float *bias) {
    for (size_t r = 0; r < pixels; r++) {
        memcpy(c[r], bias, width * sizeof(float));
    }
}

static clnet__conv2d_part clnet__conv2d_product_part(const clnet__conv2d_product *p, size_t index) {
    const clnet__conv2d_grid *g = &p->grid;
    const size_t all = (size_t)g->N * (size_t)g->H * (size_t)g->W;
    const size_t blocks = clnet__conv2d_parts(p->columns, p->block);
    const size_t column = index % blocks * p->block;
    const size_t first = index / blocks / p->groups * p->pixels;
    return (clnet__conv2d_part){.first = first,
                                .pixels = clnet__conv2d_min(p->pixels, all - first),
                                .group = index / blocks % p->groups,
                                .column = column,
                                .width = clnet__conv2d_min(p->block, p->columns - column)};
}

static void clnet__conv2d_product_task(void *arg, size_t index, int worker) {
    const clnet__conv2d_product *p = arg;
    const clnet__conv2d_scratch m = clnet__conv2d_product_scratch(p, worker);
    const clnet__conv2d_part part = clnet__conv2d_product_part(p, index);
    const size_t group = part.group, column = part.column, taps = (size_t)p->grid.taps;
    const float *w = p->w + group * p->w_group + column * p->w_column;
    clnet__conv2d_product_point(p, &m, part.first, part.pixels, group, column);
    if (p->bias) {
        clnet__conv2d_product_start(m.c, part.pixels, part.width,
                                    p->bias + group * p->columns + column);
    }
    memset(m.dead, 0, CLNET__CONV2D_BLOCK * sizeof(float));
    for (size_t k = 0; k < p->K; k += p->depth) {
        for (size_t t = 0; t < taps; t += p->taps) {
            const bool last = k + p->depth >= p->K && t + p->taps >= taps;
            clnet__conv2d_product_block(p, &m, &part, w, t, clnet__conv2d_min(p->taps, taps - t), k,
                                        clnet__conv2d_min(p->depth, p->K - k), last);
        }
    }
}

// The threads for so many multiply-adds.
static clnet__cpu clnet__conv2d_team(const clnet__cpu *cpu, double work) {
    clnet__cpu team = *cpu;
    team.threads = work < CLNET__CONV2D_ALONE ? 1 : cpu->threads;
    return team;
}

static void clnet__conv2d_product_run(const clnet__cpu *cpu, clnet__conv2d_product *p) {
    const double pixels = (double)p->grid.N * p->grid.H * p->grid.W;
    const clnet__cpu team = clnet__conv2d_team(cpu, pixels * p->grid.taps * (double)p->K *
                                                        (double)(p->columns * p->groups));
    clnet__conv2d_product_cut(&team, p);
    clnet__parallel(&team, clnet__conv2d_product_tasks(p), clnet__conv2d_product_task, p);
}

// What all workers share: a row of zeros and the list of taps. The workers' scratch follows.

typedef struct clnet__conv2d_shared {
    float *zeros;
    clnet__conv2d_tap *tap;
    char *rest;
} clnet__conv2d_shared;

static size_t clnet__conv2d_shared_zeros(const clnet_conv2d_sizes *s) {
    const int most = s->C > s->OC ? s->C : s->OC;
    return clnet__round_up((size_t)(most / s->groups) * sizeof(float), 64);
}

static size_t clnet__conv2d_shared_bytes(const clnet_conv2d_sizes *s) {
    return clnet__conv2d_shared_zeros(s) +
           clnet__round_up((size_t)s->KH * (size_t)s->KW * sizeof(clnet__conv2d_tap), 64);
}

static clnet__conv2d_shared clnet__conv2d_share(const clnet_conv2d_sizes *s, void *workspace) {
    char *base = workspace;
    memset(base, 0, clnet__conv2d_shared_zeros(s));
    return (clnet__conv2d_shared){
        .zeros = workspace,
        .tap = (clnet__conv2d_tap *)(void *)(base + clnet__conv2d_shared_zeros(s)),
        .rest = base + clnet__conv2d_shared_bytes(s),
    };
}

static clnet__conv2d_product clnet__conv2d_product_forward(const clnet__cpu *cpu,
                                                           const clnet_conv2d_sizes *s,
                                                           const clnet__conv2d_shared *shared) {
    const size_t K = (size_t)(s->C / s->groups), columns = (size_t)(s->OC / s->groups);
    const size_t OC = (size_t)s->OC, pixels = (size_t)s->N * (size_t)s->OH * (size_t)s->OW;
    return (clnet__conv2d_product){
        .kernel = clnet__conv2d_kernel_for(cpu->isa, pixels, columns),
        .grid = clnet__conv2d_grid_forward(s, shared->zeros, shared->tap),
        .y_stride = s->y_stride,
        .YH = s->OH,
        .YW = s->OW,
        .y_step = {1, 1},
        .w_tap = K * OC,
        .w_k = OC,
        .w_column = 1,
        .w_group = columns,
        .groups = (size_t)s->groups,
        .K = K,
        .columns = columns,
        .in_place = pixels == 1 && columns > CLNET__CONV2D_NARROW,
        .scratch = shared->rest,
    };
}

static clnet__conv2d_product clnet__conv2d_product_backward(const clnet__cpu *cpu,
                                                            const clnet_conv2d_sizes *s, int h0,
                                                            int w0,
                                                            const clnet__conv2d_shared *shared) {
    const size_t K = (size_t)(s->OC / s->groups), columns = (size_t)(s->C / s->groups);
    const size_t OC = (size_t)s->OC;
    const clnet__conv2d_grid grid =
        clnet__conv2d_grid_backward(s, h0, w0, shared->zeros, shared->tap);
    const size_t pixels = (size_t)grid.N * (size_t)grid.H * (size_t)grid.W;
    return (clnet__conv2d_product){
        .kernel = clnet__conv2d_kernel_for(cpu->isa, pixels, columns),
        .grid = grid,
        .y_stride = s->x_stride,
        .YH = s->H,
        .YW = s->W,
        .origin = {h0, w0},
        .y_step = {s->stride[0], s->stride[1]},
        .w_tap = columns * OC,
        .w_k = 1,
        .w_column = OC,
        .w_group = K,
        .groups = (size_t)s->groups,
        .K = K,
        .columns = columns,
        .add = true,
        .scratch = shared->rest,
    };
}

// What >>winograd computes instead.
typedef enum clnet__winograd_pass {
    CLNET__WINOGRAD_FORWARD,
    CLNET__WINOGRAD_BACKWARD_DATA,
    CLNET__WINOGRAD_BACKWARD_WEIGHT
} clnet__winograd_pass;

static bool clnet__winograd_wanted(const clnet__cpu *cpu, const clnet_conv2d_sizes *s,
                                   clnet__winograd_pass pass);
static void clnet__winograd_forward(const clnet__cpu *cpu, float *y, const float *x, const float *w,
                                    const float *b, const clnet_conv2d_sizes *s,
                                    const clnet__epilogue *e, void *workspace);
static void clnet__winograd_backward_data(const clnet__cpu *cpu, float *dx, const float *dy,
                                          const float *w, const clnet_conv2d_sizes *s,
                                          void *workspace);
static void clnet__winograd_backward_weight(const clnet__cpu *cpu, float *dw, const float *dy,
                                            const float *x, const clnet_conv2d_sizes *s,
                                            void *workspace);
static size_t clnet__winograd_workspace(const clnet__cpu *cpu, const clnet_conv2d_sizes *s);

// e NULL: no epilogue.
static void clnet__conv2d_fast_forward(const clnet__cpu *cpu, float *y, const float *x,
                                       const float *w, const float *b, const clnet_conv2d_sizes *s,
                                       const clnet__epilogue *e, void *workspace) {
    if (clnet__winograd_wanted(cpu, s, CLNET__WINOGRAD_FORWARD)) {
        clnet__winograd_forward(cpu, y, x, w, b, s, e, workspace);
        return;
    }
    const clnet__conv2d_shared shared = clnet__conv2d_share(s, workspace);
    clnet__conv2d_product p = clnet__conv2d_product_forward(cpu, s, &shared);
    clnet__conv2d_list_taps(s, shared.tap);
    p.y = y;
    p.source = x;
    p.w = w;
    p.bias = b;
    p.epilogue = e;
    clnet__conv2d_product_run(cpu, &p);
}

// Added to y, directly.
static void clnet__conv2d_fast_add(const clnet__cpu *cpu, float *y, const float *x, const float *w,
                                   const clnet_conv2d_sizes *s, const clnet__epilogue *e,
                                   void *workspace) {
    const clnet__conv2d_shared shared = clnet__conv2d_share(s, workspace);
    clnet__conv2d_product p = clnet__conv2d_product_forward(cpu, s, &shared);
    clnet__conv2d_list_taps(s, shared.tap);
    p.y = y;
    p.source = x;
    p.w = w;
    p.add = true;
    p.epilogue = e;
    clnet__conv2d_product_run(cpu, &p);
}

static void clnet__conv2d_fast_backward_data(const clnet__cpu *cpu, float *dx, const float *dy,
                                             const float *w, const clnet_conv2d_sizes *s,
                                             void *workspace) {
    if (clnet__winograd_wanted(cpu, s, CLNET__WINOGRAD_BACKWARD_DATA)) {
        clnet__winograd_backward_data(cpu, dx, dy, w, s, workspace);
        return;
    }
    const clnet__conv2d_shared shared = clnet__conv2d_share(s, workspace);
    for (int h0 = 0; h0 < s->stride[0] && h0 < s->H; h0++) {
        for (int w0 = 0; w0 < s->stride[1] && w0 < s->W; w0++) {
            clnet__conv2d_product p = clnet__conv2d_product_backward(cpu, s, h0, w0, &shared);
            p.y = dx;
            p.source = dy;
            p.w = w;
            if (p.grid.taps > 0) {
                clnet__conv2d_product_run(cpu, &p);
            }
        }
    }
}

// Backward weight. A task owns a block of rows (tap, ic) and of columns oc, and a slice of the
// pixels. It takes them a chain at a time: gathers x as [pixel][row] and dy as panels
// [pixel][COLUMNS], and adds every tile of their product to sums in L2; once per
// CLNET__CONV2D_GROUP pixels the sums go to dw, or to the slice's part where there are several
// slices.

typedef struct clnet__conv2d_weight {
    clnet__conv2d_kernel kernel;
    clnet__conv2d_grid grid;
    const float *x, *dy;
    float *dw, *parts; // parts: dw's shape for each of several slices
    size_t dy_stride;
    size_t groups, C, OC; // C, OC: per group
    size_t pixels, slices, slice,
        chain;              // number of pixels and slices, pixels of a slice and of a chain
    size_t channels, block; // input and output channels of a task
    size_t rows, a_stride;  // rows of a task in whole tiles; floats per gathered pixel
    char *scratch;          // of all workers
} clnet__conv2d_weight;

typedef struct clnet__conv2d_weight_scratch {
    float *a, *b, *sums; // [pixel][a_stride], [panel][pixel][COLUMNS], [row][block]
} clnet__conv2d_weight_scratch;

// What one task works on.
typedef struct clnet__conv2d_weight_part {
    const float *x, *dy;                  // at the task's first channels
    float *to;                            // dw or its part, at the task's first channels
    size_t channels, columns, first, end; // numbers of channels; pixels [first, end)
} clnet__conv2d_weight_part;

static size_t clnet__conv2d_weight_blocks(const clnet__conv2d_weight *p) {
    return p->groups * clnet__conv2d_parts(p->C, p->channels) *
           clnet__conv2d_parts(p->OC, p->block);
}

static size_t clnet__conv2d_weight_elements(const clnet__conv2d_weight *p) {
    return (size_t)p->grid.taps * p->C * p->OC * p->groups;
}

static clnet__conv2d_layout clnet__conv2d_weight_layout(const clnet__conv2d_weight *p) {
    clnet__conv2d_layout at = {0};
    at.a = clnet__conv2d_carve(&at.end, p->chain * p->a_stride * sizeof(float));
    at.b = clnet__conv2d_carve(&at.end, p->chain * p->block * sizeof(float));
    at.c = clnet__conv2d_carve(&at.end, p->rows * p->block * sizeof(float));
    return at;
}

static clnet__conv2d_weight_scratch clnet__conv2d_weight_scratch_of(const clnet__conv2d_weight *p,
                                                                    int worker) {
    const clnet__conv2d_layout at = clnet__conv2d_weight_layout(p);
    char *base = p->scratch + (size_t)worker * at.end;
    return (clnet__conv2d_weight_scratch){
        .a = (float *)(void *)(base + at.a),
        .b = (float *)(void *)(base + at.b),
        .sums = (float *)(void *)(base + at.c),
    };
}

// A gathered pixel takes an odd number of cache lines: with a power of two they would all fall into
// the same sets.
static void clnet__conv2d_weight_cut(clnet__conv2d_weight *p) {
    const size_t taps = (size_t)p->grid.taps;
    const size_t most = taps < CLNET__CONV2D_WEIGHT_ROWS ? CLNET__CONV2D_WEIGHT_ROWS / taps : 1;
    p->channels = clnet__conv2d_cut(p->C, most, 1);
    p->rows = clnet__round_up(taps * p->channels, (size_t)p->kernel.rows);
    p->a_stride = (clnet__round_up(p->rows, 16) / 16 | 1) * 16;
    p->block =
        clnet__conv2d_min(CLNET__CONV2D_BLOCK, clnet__round_up(p->OC, (size_t)p->kernel.columns));
    p->pixels = (size_t)p->grid.N * (size_t)p->grid.H * (size_t)p->grid.W;
    const size_t blocks = clnet__conv2d_weight_blocks(p);
    const size_t least = clnet__conv2d_parts(p->pixels, CLNET__CONV2D_SLICE);
    const size_t wanted =
        clnet__conv2d_min(clnet__conv2d_parts(CLNET__CONV2D_TASKS, blocks),
                          clnet__conv2d_parts(p->pixels, CLNET__CONV2D_GROUP / 2));
    p->slice = clnet__conv2d_parts(p->pixels, wanted > least ? wanted : least);
    p->slices = clnet__conv2d_parts(p->pixels, p->slice);
    p->chain = clnet__conv2d_min(CLNET__CONV2D_WEIGHT_CHAIN, clnet__conv2d_chain(p->slice));
}

static clnet__conv2d_weight clnet__conv2d_weight_of(const clnet__cpu *cpu,
                                                    const clnet_conv2d_sizes *s,
                                                    const clnet__conv2d_shared *shared) {
    clnet__conv2d_weight p = {
        .kernel = clnet__conv2d_kernel_of(cpu->isa),
        .grid = clnet__conv2d_grid_forward(s, shared->zeros, shared->tap),
        .dy_stride = s->y_stride,
        .groups = (size_t)s->groups,
        .C = (size_t)(s->C / s->groups),
        .OC = (size_t)(s->OC / s->groups),
    };
    clnet__conv2d_weight_cut(&p);
    return p;
}

static size_t clnet__conv2d_weight_parts_bytes(const clnet__conv2d_weight *p) {
    return p->slices > 1
               ? clnet__round_up(p->slices * clnet__conv2d_weight_elements(p) * sizeof(float), 64)
               : 0;
}

static void clnet__conv2d_weight_gather(const clnet__conv2d_weight *p,
                                        const clnet__conv2d_weight_part *part, float *a,
                                        size_t first, size_t pixels) {
    const clnet__conv2d_grid *g = &p->grid;
    const size_t taps = (size_t)g->taps, used = taps * part->channels;
    clnet__conv2d_pixel at = clnet__conv2d_pixel_at(g, first);
    for (size_t k = 0; k < pixels; k++) {
        float *to = a + k * p->a_stride;
        for (size_t t = 0; t < taps; t++) {
            const float *from = clnet__conv2d_source(g, part->x, at, &g->tap[t]);
            memcpy(to + t * part->channels, from, part->channels * sizeof(float));
        }
        memset(to + used, 0, (p->rows - used) * sizeof(float));
        clnet__conv2d_pixel_next(g, &at);
    }
}

// sums[row][column] += sum over the chain's pixels of a[pixel][row] * b[pixel][column]
static void clnet__conv2d_weight_multiply(const clnet__conv2d_weight *p,
                                          const clnet__conv2d_weight_scratch *m, size_t columns,
                                          size_t pixels) {
    const size_t rows = (size_t)p->kernel.rows;
    for (size_t j = 0; j < columns; j += (size_t)p->kernel.columns) {
        for (size_t i = 0; i < p->rows; i += rows) {
            const float *a[CLNET__CONV2D_MAX_ROWS];
            float *c[CLNET__CONV2D_MAX_ROWS];
            for (size_t r = 0; r < rows; r++) {
                a[r] = m->a + i + r;
                c[r] = m->sums + (i + r) * p->block;
            }
            p->kernel.tile(c, j, a, 0, p->a_stride, m->b + j * pixels, (size_t)p->kernel.columns, 1,
                           (int)pixels, true);
        }
    }
}

static void clnet__conv2d_weight_chain(const clnet__conv2d_weight *p,
                                       const clnet__conv2d_weight_part *part,
                                       const clnet__conv2d_weight_scratch *m, size_t first,
                                       size_t pixels) {
    const size_t columns = (size_t)p->kernel.columns;
    clnet__conv2d_weight_gather(p, part, m->a, first, pixels);
    clnet__conv2d_pack(m->b, pixels * columns, columns, part->dy + first * p->dy_stride, pixels,
                       p->dy_stride, part->columns, 1);
    clnet__conv2d_weight_multiply(p, m, part->columns, pixels);
}

static void clnet__conv2d_weight_flush(const clnet__conv2d_weight *p,
                                       const clnet__conv2d_weight_part *part, const float *sums) {
    for (size_t t = 0; t < (size_t)p->grid.taps; t++) {
        for (size_t ic = 0; ic < part->channels; ic++) {
            float *to = part->to + (t * p->C + ic) * p->OC * p->groups;
            const float *from = sums + (t * part->channels + ic) * p->block;
            for (size_t oc = 0; oc < part->columns; oc++) {
                to[oc] += from[oc];
            }
        }
    }
}

static clnet__conv2d_weight_part clnet__conv2d_weight_part_at(const clnet__conv2d_weight *p,
                                                              size_t index) {
    const size_t slice = index % p->slices, oc_blocks = clnet__conv2d_parts(p->OC, p->block);
    const size_t ic_blocks = clnet__conv2d_parts(p->C, p->channels), block = index / p->slices;
    const size_t oc = block % oc_blocks * p->block;
    const size_t ic = block / oc_blocks % ic_blocks * p->channels;
    const size_t group = block / oc_blocks / ic_blocks;
    float *to = p->slices > 1 ? p->parts + slice * clnet__conv2d_weight_elements(p) : p->dw;
    return (clnet__conv2d_weight_part){
        .x = p->x + group * p->C + ic,
        .dy = p->dy + group * p->OC + oc,
        .to = to + ic * p->OC * p->groups + group * p->OC + oc,
        .channels = clnet__conv2d_min(p->channels, p->C - ic),
        .columns = clnet__conv2d_min(p->block, p->OC - oc),
        .first = slice * p->slice,
        .end = clnet__conv2d_min((slice + 1) * p->slice, p->pixels),
    };
}

static void clnet__conv2d_weight_task(void *arg, size_t index, int worker) {
    const clnet__conv2d_weight *p = arg;
    const clnet__conv2d_weight_scratch m = clnet__conv2d_weight_scratch_of(p, worker);
    const clnet__conv2d_weight_part part = clnet__conv2d_weight_part_at(p, index);
    for (size_t first = part.first; first < part.end; first += CLNET__CONV2D_GROUP) {
        const size_t pixels = clnet__conv2d_min(CLNET__CONV2D_GROUP, part.end - first);
        const size_t chain = clnet__conv2d_cut(pixels, p->chain, 1);
        memset(m.sums, 0, p->rows * p->block * sizeof(float));
        for (size_t k = 0; k < pixels; k += chain) {
            clnet__conv2d_weight_chain(p, &part, &m, first + k,
                                       clnet__conv2d_min(chain, pixels - k));
        }
        clnet__conv2d_weight_flush(p, &part, m.sums);
    }
}

// dw += sum over slices of their parts, for elements of the task's run.
static void clnet__conv2d_weight_reduce(void *arg, size_t index, int worker) {
    const clnet__conv2d_weight *p = arg;
    const size_t n = clnet__conv2d_weight_elements(p), run = CLNET__CONV2D_GROUP;
    (void)worker;
    for (size_t i = index * run; i < clnet__conv2d_min(n, (index + 1) * run); i++) {
        double sum = 0;
        for (size_t slice = 0; slice < p->slices; slice++) {
            sum += (double)p->parts[slice * n + i];
        }
        p->dw[i] += (float)sum;
    }
}

static void clnet__conv2d_fast_backward_weight(const clnet__cpu *cpu, float *dw, const float *dy,
                                               const float *x, const clnet_conv2d_sizes *s,
                                               void *workspace) {
    if (clnet__winograd_wanted(cpu, s, CLNET__WINOGRAD_BACKWARD_WEIGHT)) {
        clnet__winograd_backward_weight(cpu, dw, dy, x, s, workspace);
        return;
    }
    const clnet__conv2d_shared shared = clnet__conv2d_share(s, workspace);
    clnet__conv2d_weight p = clnet__conv2d_weight_of(cpu, s, &shared);
    const size_t parts = clnet__conv2d_weight_parts_bytes(&p);
    clnet__conv2d_list_taps(s, shared.tap);
    p.x = x;
    p.dy = dy;
    p.dw = dw;
    p.parts = (float *)(void *)shared.rest;
    p.scratch = shared.rest + parts;
    memset(p.parts, 0, parts);
    const clnet__cpu team =
        clnet__conv2d_team(cpu, (double)clnet__conv2d_weight_elements(&p) * (double)p.pixels);
    clnet__parallel(&team, clnet__conv2d_weight_blocks(&p) * p.slices, clnet__conv2d_weight_task,
                    &p);
    if (p.slices > 1) {
        clnet__parallel(&team,
                        clnet__conv2d_parts(clnet__conv2d_weight_elements(&p), CLNET__CONV2D_GROUP),
                        clnet__conv2d_weight_reduce, &p);
    }
}

// db[oc] += sum over pixels of dy[pixel][oc], in double. A task is a block of channels.

typedef struct clnet__conv2d_bias {
    float *db;
    const float *dy;
    const clnet_conv2d_sizes *sizes;
} clnet__conv2d_bias;

static void clnet__conv2d_bias_task(void *arg, size_t index, int worker) {
    const clnet__conv2d_bias *p = arg;
    const clnet_conv2d_sizes *s = p->sizes;
    const size_t first = index * CLNET__CONV2D_BLOCK;
    const size_t n = clnet__conv2d_min(CLNET__CONV2D_BLOCK, (size_t)s->OC - first);
    const size_t pixels = (size_t)s->N * (size_t)s->OH * (size_t)s->OW;
    double sums[CLNET__CONV2D_BLOCK] = {0};
    (void)worker;
    for (size_t k = 0; k < pixels; k++) {
        const float *dy = p->dy + k * s->y_stride + first;
        for (size_t j = 0; j < n; j++) {
            sums[j] += (double)dy[j];
        }
    }
    for (size_t j = 0; j < n; j++) {
        p->db[first + j] += (float)sums[j];
    }
}

static void clnet__conv2d_fast_backward_bias(const clnet__cpu *cpu, float *db, const float *dy,
                                             const clnet_conv2d_sizes *s) {
    clnet__conv2d_bias p = {db, dy, s};
    clnet__parallel(cpu, clnet__conv2d_parts((size_t)s->OC, CLNET__CONV2D_BLOCK),
                    clnet__conv2d_bias_task, &p);
}

static size_t clnet__conv2d_fast_workspace(const clnet__cpu *cpu, const clnet_conv2d_sizes *s) {
    const clnet__conv2d_shared none = {NULL, NULL, NULL};
    const size_t workers = (size_t)cpu->threads;
    clnet__conv2d_product forward = clnet__conv2d_product_forward(cpu, s, &none);
    const clnet__conv2d_weight weight = clnet__conv2d_weight_of(cpu, s, &none);
    forward.kernel = clnet__conv2d_kernel_of(cpu->isa); // the one with the largest tile
    clnet__conv2d_product backward = forward;
    // No phase has more pixels or taps than all of them together.
    backward.grid.H = s->H;
    backward.grid.W = s->W;
    size_t most = workers * clnet__conv2d_product_layout(&forward).end;
    const size_t others[] = {
        workers * clnet__conv2d_product_layout(&backward).end,
        workers * clnet__conv2d_weight_layout(&weight).end +
            clnet__conv2d_weight_parts_bytes(&weight),
        clnet__winograd_workspace(cpu, s),
    };
    for (int i = 0; i < 3; i++) {
        most = others[i] > most ? others[i] : most;
    }
    return clnet__conv2d_shared_bytes(s) + most;
}

// >>winograd
// Convolutions of 3 x 3, stride 1, with a quarter of the multiplications: F(4x4, 3x3), after Lavin
// and Gray, Fast Algorithms for Convolutional Neural Networks (2016). Outputs are made in tiles of
// 4 x 4, each from 6 x 6 inputs d that overlap by 2 with the next tile's:
//
//     y = A' [sum over ic of (G w G') .* (B' d B)] A
//
// The 36 products of a tile are independent of each other: at each of the 36 positions, all tiles
// and channels form one product of matrices, M[tile][oc] = sum over ic of V[tile][ic] * U[ic][oc].
// Backward data is the same with dy in place of x, the taps of w in reverse order, and 2 - padding.
//
// The interpolation points are 0, +-5/8, +-3/2 and infinity: they round to a third of the error of
// the usual 0, +-1, +-2, and the entries of A and B are exact. Row by row, with a = 5/8, b = 3/2:
//
//     B'  a2b2  0    -a2-b2  0      1  0    A  1   0   0    0    G  1/a2b2  0     0
//         0    -ab2  -b2     a      1  0       1   a   a2   a3      1/Na    a/Na  a2/Na
//         0     ab2  -b2    -a      1  0       1  -a   a2  -a3      1/Na   -a/Na  a2/Na
//         0    -ba2  -a2     b      1  0       1   b   b2   b3      1/Nb    b/Nb  b2/Nb
//         0     ba2  -a2    -b      1  0       1  -b   b2  -b3      1/Nb   -b/Nb  b2/Nb
//         0     a2b2  0     -a2-b2  0  1       0   0   0    1       0       0     1
//
// with Na = 2 a2 (a2 - b2), Nb = 2 b2 (b2 - a2).
//
// Where things lie: U and V are cut into blocks of input channels, whose products are summed in
// registers before they are added to M. What is smaller is shared by all threads and made first:
// of large maps U, then every thread takes some tiles through V, M and y; of small maps V, then
// every thread takes some output channels through U, M and y. The private blocks are sized to stay
// in L2. Weights are transformed on every call: keeping U takes four times the memory of w, and
// reading it as long as making it.
//
// Measured beside the direct path in turns, two busy cores of a Zen 3, AVX2, medians, forward of an
// image: 2.6 times as fast for 64 -> 64 at 224 x 224, 3.1 for 128 -> 128 at 112, 2.6 for 256 -> 256
// at 56, 3.1 for 512 -> 512 at 28, 1.7 for 1024 -> 1024 at 14, where transforming the weights takes
// half of the time. Backward weight, batch 2: 2.3, 2.3, 3.0, 2.9, 1.6. The product runs at 85 % of
// what its tile reaches alone, whatever the sizes of the blocks.
//
// Order of sums: it depends on channels alone, so that results are the same bits for any number of
// threads and any batch. A value that is not finite makes all outputs of the tiles that read it
// not finite: every pixel that it reaches in the direct sum, and up to 3 pixels further.

#define CLNET__WINOGRAD_DEPTH  64      // input channels of a chain at most
#define CLNET__WINOGRAD_BLOCK  128     // output channels of a block at most
#define CLNET__WINOGRAD_L2     131072  // floats of V and M of a thread, where U is shared
#define CLNET__WINOGRAD_SHARED 4194304 // floats of U, or of V, that are shared
#define CLNET__WINOGRAD_TILES  128     // tiles that V holds at most, where it is shared
#define CLNET__WINOGRAD_AHEAD  8       // rows of w that are asked for ahead
#define CLNET__WINOGRAD_LINE   16      // floats; a multiple of every LANES

#define CLNET__WINOGRAD_A  0.625f
#define CLNET__WINOGRAD_B  1.5f
#define CLNET__WINOGRAD_A2 0.390625f
#define CLNET__WINOGRAD_B2 2.25f
#define CLNET__WINOGRAD_A3 0.244140625f
#define CLNET__WINOGRAD_B3 3.375f
#define CLNET__WINOGRAD_NA (2 * CLNET__WINOGRAD_A2 * (CLNET__WINOGRAD_A2 - CLNET__WINOGRAD_B2))
#define CLNET__WINOGRAD_NB (2 * CLNET__WINOGRAD_B2 * (CLNET__WINOGRAD_B2 - CLNET__WINOGRAD_A2))

// One row or column of a transform: r = B'v, Gv, A'v. s*x + y with a constant s:
#define CLNET__WINOGRAD_AXPY(isa, s, x, y) CLNET__##isa##_FMA(CLNET__##isa##_SPLAT(s), x, y)

#define CLNET__WINOGRAD_INPUT(isa, r, v)                                                           \
    {                                                                                              \
        const float a = CLNET__WINOGRAD_A, a2 = CLNET__WINOGRAD_A2;                                \
        const float b = CLNET__WINOGRAD_B, b2 = CLNET__WINOGRAD_B2;                                \
        const CLNET__##isa##_VEC even_a = CLNET__WINOGRAD_AXPY(isa, -b2, v[2], v[4]);              \
        const CLNET__##isa##_VEC odd_a = CLNET__WINOGRAD_AXPY(isa, -b2, v[1], v[3]);               \
        const CLNET__##isa##_VEC even_b = CLNET__WINOGRAD_AXPY(isa, -a2, v[2], v[4]);              \
        const CLNET__##isa##_VEC odd_b = CLNET__WINOGRAD_AXPY(isa, -a2, v[1], v[3]);               \
        r[0] = CLNET__WINOGRAD_AXPY(isa, a2 * b2, v[0],                                            \
                                    CLNET__WINOGRAD_AXPY(isa, -a2 - b2, v[2], v[4]));              \
        r[1] = CLNET__WINOGRAD_AXPY(isa, a, odd_a, even_a);                                        \
        r[2] = CLNET__WINOGRAD_AXPY(isa, -a, odd_a, even_a);                                       \
        r[3] = CLNET__WINOGRAD_AXPY(isa, b, odd_b, even_b);                                        \
        r[4] = CLNET__WINOGRAD_AXPY(isa, -b, odd_b, even_b);                                       \
        r[5] = CLNET__WINOGRAD_AXPY(isa, a2 * b2, v[1],                                            \
                                    CLNET__WINOGRAD_AXPY(isa, -a2 - b2, v[3], v[5]));              \
    }

#define CLNET__WINOGRAD_WEIGHT(isa, r, v)                                                          \
    {                                                                                              \
        const float a = CLNET__WINOGRAD_A, a2 = CLNET__WINOGRAD_A2, na = CLNET__WINOGRAD_NA;       \
        const float b = CLNET__WINOGRAD_B, b2 = CLNET__WINOGRAD_B2, nb = CLNET__WINOGRAD_NB;       \
        const CLNET__##isa##_VEC zero = CLNET__##isa##_SPLAT(0.0f);                                \
        const CLNET__##isa##_VEC even_a = CLNET__WINOGRAD_AXPY(                                    \
            isa, 1 / na, v[0], CLNET__WINOGRAD_AXPY(isa, a2 / na, v[2], zero));                    \
        const CLNET__##isa##_VEC even_b = CLNET__WINOGRAD_AXPY(                                    \
            isa, 1 / nb, v[0], CLNET__WINOGRAD_AXPY(isa, b2 / nb, v[2], zero));                    \
        r[0] = CLNET__WINOGRAD_AXPY(isa, 1 / (a2 * b2), v[0], zero);                               \
        r[1] = CLNET__WINOGRAD_AXPY(isa, a / na, v[1], even_a);                                    \
        r[2] = CLNET__WINOGRAD_AXPY(isa, -a / na, v[1], even_a);                                   \
        r[3] = CLNET__WINOGRAD_AXPY(isa, b / nb, v[1], even_b);                                    \
        r[4] = CLNET__WINOGRAD_AXPY(isa, -b / nb, v[1], even_b);                                   \
        r[5] = v[2];                                                                               \
    }

#define CLNET__WINOGRAD_OUTPUT(isa, r, v)                                                          \
    {                                                                                              \
        const float a = CLNET__WINOGRAD_A, a2 = CLNET__WINOGRAD_A2, a3 = CLNET__WINOGRAD_A3;       \
        const float b = CLNET__WINOGRAD_B, b2 = CLNET__WINOGRAD_B2, b3 = CLNET__WINOGRAD_B3;       \
        const CLNET__##isa##_VEC zero = CLNET__##isa##_SPLAT(0.0f);                                \
        const CLNET__##isa##_VEC even_a = CLNET__##isa##_ADD(v[1], v[2]);                          \
        const CLNET__##isa##_VEC odd_a = CLNET__WINOGRAD_AXPY(isa, -1, v[2], v[1]);                \
        const CLNET__##isa##_VEC even_b = CLNET__##isa##_ADD(v[3], v[4]);                          \
        const CLNET__##isa##_VEC odd_b = CLNET__WINOGRAD_AXPY(isa, -1, v[4], v[3]);                \
        r[0] = CLNET__##isa##_ADD(CLNET__##isa##_ADD(v[0], even_a), even_b);                       \
        r[1] = CLNET__WINOGRAD_AXPY(isa, a, odd_a, CLNET__WINOGRAD_AXPY(isa, b, odd_b, zero));     \
        r[2] = CLNET__WINOGRAD_AXPY(isa, a2, even_a, CLNET__WINOGRAD_AXPY(isa, b2, even_b, zero)); \
        r[3] = CLNET__WINOGRAD_AXPY(isa, a3, odd_a, CLNET__WINOGRAD_AXPY(isa, b3, odd_b, v[5]));   \
    }

// r = Av and r = G'v, of backward weight.
#define CLNET__WINOGRAD_GRADIENT(isa, r, v)                                                        \
    {                                                                                              \
        const float a = CLNET__WINOGRAD_A, a2 = CLNET__WINOGRAD_A2;                                \
        const float b = CLNET__WINOGRAD_B, b2 = CLNET__WINOGRAD_B2;                                \
        const CLNET__##isa##_VEC even_a = CLNET__WINOGRAD_AXPY(isa, a2, v[2], v[0]);               \
        const CLNET__##isa##_VEC odd_a = CLNET__WINOGRAD_AXPY(isa, a2, v[3], v[1]);                \
        const CLNET__##isa##_VEC even_b = CLNET__WINOGRAD_AXPY(isa, b2, v[2], v[0]);               \
        const CLNET__##isa##_VEC odd_b = CLNET__WINOGRAD_AXPY(isa, b2, v[3], v[1]);                \
        r[0] = v[0];                                                                               \
        r[1] = CLNET__WINOGRAD_AXPY(isa, a, odd_a, even_a);                                        \
        r[2] = CLNET__WINOGRAD_AXPY(isa, -a, odd_a, even_a);                                       \
        r[3] = CLNET__WINOGRAD_AXPY(isa, b, odd_b, even_b);                                        \
        r[4] = CLNET__WINOGRAD_AXPY(isa, -b, odd_b, even_b);                                       \
        r[5] = v[3];                                                                               \
    }

#define CLNET__WINOGRAD_WEIGHT_BACK(isa, r, v)                                                     \
    {                                                                                              \
        const float a = CLNET__WINOGRAD_A, a2 = CLNET__WINOGRAD_A2, na = CLNET__WINOGRAD_NA;       \
        const float b = CLNET__WINOGRAD_B, b2 = CLNET__WINOGRAD_B2, nb = CLNET__WINOGRAD_NB;       \
        const CLNET__##isa##_VEC zero = CLNET__##isa##_SPLAT(0.0f);                                \
        const CLNET__##isa##_VEC even_a = CLNET__##isa##_ADD(v[1], v[2]);                          \
        const CLNET__##isa##_VEC odd_a = CLNET__WINOGRAD_AXPY(isa, -1, v[2], v[1]);                \
        const CLNET__##isa##_VEC even_b = CLNET__##isa##_ADD(v[3], v[4]);                          \
        const CLNET__##isa##_VEC odd_b = CLNET__WINOGRAD_AXPY(isa, -1, v[4], v[3]);                \
        r[0] = CLNET__WINOGRAD_AXPY(isa, 1 / na, even_a,                                           \
                                    CLNET__WINOGRAD_AXPY(isa, 1 / nb, even_b, zero));              \
        r[0] = CLNET__WINOGRAD_AXPY(isa, 1 / (a2 * b2), v[0], r[0]);                               \
        r[1] = CLNET__WINOGRAD_AXPY(isa, a / na, odd_a,                                            \
                                    CLNET__WINOGRAD_AXPY(isa, b / nb, odd_b, zero));               \
        r[2] = CLNET__WINOGRAD_AXPY(isa, a2 / na, even_a,                                          \
                                    CLNET__WINOGRAD_AXPY(isa, b2 / nb, even_b, v[5]));             \
    }

// A transform of some channels of one tile: IN x IN numbers of each, found through pointers, become
// OUT x OUT. It reads and writes whole vectors.
typedef void clnet__winograd_transform(float *const *to, size_t to_offset, const float *const *from,
                                       size_t from_offset, size_t channels);

#define CLNET__WINOGRAD_SET(isa, p, v) CLNET__##isa##_STORE(p, v)
#define CLNET__WINOGRAD_ADD(isa, p, v)                                                             \
    CLNET__##isa##_STORE(p, CLNET__##isa##_ADD(CLNET__##isa##_LOAD(p), v))

#define CLNET__WINOGRAD_2D(name, isa, TRANSFORM, IN, OUT, PUT)                                     \
    CLNET__##isa##_TARGET static void name(float *const *to, size_t to_offset,                     \
                                           const float *const *from, size_t from_offset,           \
                                           size_t channels) {                                      \
        for (size_t c = 0; c < channels; c += CLNET__##isa##_LANES) {                              \
            CLNET__##isa##_VEC t[OUT][IN], v[IN], r[OUT];                                          \
            for (int j = 0; j < IN; j++) {                                                         \
                for (int i = 0; i < IN; i++) {                                                     \
                    v[i] = CLNET__##isa##_LOAD(from[i * IN + j] + from_offset + c);                \
                }                                                                                  \
                TRANSFORM(isa, r, v)                                                               \
                for (int i = 0; i < OUT; i++) {                                                    \
                    t[i][j] = r[i];                                                                \
                }                                                                                  \
            }                                                                                      \
            for (int i = 0; i < OUT; i++) {                                                        \
                TRANSFORM(isa, r, t[i])                                                            \
                for (int j = 0; j < OUT; j++) {                                                    \
                    PUT(isa, to[i * OUT + j] + to_offset + c, r[j]);                               \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    }

typedef struct clnet__winograd_kernel {
    clnet__conv2d_kernel product;
    clnet__winograd_transform *input, *weight, *output, *output_add;
    clnet__winograd_transform *gradient, *weight_add; // of backward weight
} clnet__winograd_kernel;

// All transforms of an instruction set, and the function that fetches them.
#define CLNET__WINOGRAD_KERNEL(isa, ISA)                                                           \
    CLNET__WINOGRAD_2D(clnet__winograd_input_##isa, ISA, CLNET__WINOGRAD_INPUT, 6, 6,              \
                       CLNET__WINOGRAD_SET)                                                        \
    CLNET__WINOGRAD_2D(clnet__winograd_weight_##isa, ISA, CLNET__WINOGRAD_WEIGHT, 3, 6,            \
                       CLNET__WINOGRAD_SET)                                                        \
    CLNET__WINOGRAD_2D(clnet__winograd_output_##isa, ISA, CLNET__WINOGRAD_OUTPUT, 6, 4,            \
                       CLNET__WINOGRAD_SET)                                                        \
    CLNET__WINOGRAD_2D(clnet__winograd_output_add_##isa, ISA, CLNET__WINOGRAD_OUTPUT, 6, 4,        \
                       CLNET__WINOGRAD_ADD)                                                        \
    CLNET__WINOGRAD_2D(clnet__winograd_gradient_##isa, ISA, CLNET__WINOGRAD_GRADIENT, 4, 6,        \
                       CLNET__WINOGRAD_SET)                                                        \
    CLNET__WINOGRAD_2D(clnet__winograd_weight_add_##isa, ISA, CLNET__WINOGRAD_WEIGHT_BACK, 6, 3,   \
                       CLNET__WINOGRAD_ADD)                                                        \
    static clnet__winograd_kernel clnet__winograd_kernel_##isa(void) {                             \
        return (clnet__winograd_kernel){.product = clnet__conv2d_kernel_of(CLNET_ISA_##ISA),       \
                                        .input = clnet__winograd_input_##isa,                      \
                                        .weight = clnet__winograd_weight_##isa,                    \
                                        .output = clnet__winograd_output_##isa,                    \
                                        .output_add = clnet__winograd_output_add_##isa,            \
                                        .gradient = clnet__winograd_gradient_##isa,                \
                                        .weight_add = clnet__winograd_weight_add_##isa};           \
    }

CLNET__WINOGRAD_KERNEL(portable, PORTABLE)
#ifdef CLNET__CONV2D_X86
CLNET__WINOGRAD_KERNEL(avx2, AVX2)
CLNET__WINOGRAD_KERNEL(avx512, AVX512)
#endif

static clnet__winograd_kernel clnet__winograd_kernel_of(clnet_isa isa) {
#ifdef CLNET__CONV2D_X86
    if (isa == CLNET_ISA_AVX2) {
        return clnet__winograd_kernel_avx2();
    }
    if (isa == CLNET_ISA_AVX512) {
        return clnet__winograd_kernel_avx512();
    }
#endif
    (void)isa;
    return clnet__winograd_kernel_portable();
}

// One pass. Forward reads x and writes y, backward data reads dy and adds to dx: in both, `source`
// (N,C,H,W) and `target` (N,K,OH,OW), C channels summed for each of K.
typedef struct clnet__winograd {
    clnet__winograd_kernel kernel;
    int H, W, OH, OW, padding[2], rows, columns; // rows x columns tiles in an image
    size_t tiles, C, K, source_stride, target_stride;
    const float *source, *w, *bias;  // bias NULL: none
    const clnet__epilogue *epilogue; // NULL: none
    float *target;
    size_t w_tap, w_c, w_k;     // strides of w
    bool reverse, add;          // taps in reverse order; the target is added to
    bool shares_weights;        // U is shared, otherwise V is
    size_t depth, block, most;  // input channels, output channels, tiles of a block
    size_t room;                // tiles that there is memory for
    size_t c_blocks, k_panels;  // blocks of input channels; panels of output channels in all
    size_t row;                 // floats between tiles of V
    size_t u_at, u_panel;       // floats between positions of U, and between panels
    size_t v_at, v_block, m_at; // .. positions of V, its blocks, positions of M
    const float *zeros;         // stands in for pixels outside
    float *shared;              // U or V
    char *scratch;              // of all workers
} clnet__winograd;

enum { CLNET__WINOGRAD_POSITIONS = 36 };

// A worker's own memory.
typedef struct clnet__winograd_scratch {
    const float **a; // [tile]: rows of V, of one position and block
    float **c;       // [tile]: rows of M, of one position
    float *own;      // V, where U is shared, or the block's part of U
    float *m;        // [position][tile][block]
    float *edge;     // weights of a panel [tap][c][COLUMNS], or a vector of each pixel of a tile
    float *dead;     // stands in for pixels beyond the target
} clnet__winograd_scratch;

static size_t clnet__winograd_panels(const clnet__winograd *p) {
    return clnet__conv2d_parts(p->block, (size_t)p->kernel.product.columns);
}

// Shared and private floats of U and V.
static size_t clnet__winograd_shared(const clnet__winograd *p) {
    return p->shares_weights ? p->k_panels * p->c_blocks * p->u_panel : p->c_blocks * p->v_block;
}

static size_t clnet__winograd_own(const clnet__winograd *p) {
    return p->shares_weights ? p->c_blocks * p->v_block : clnet__winograd_panels(p) * p->u_panel;
}

// As many tiles as fit, in whole tiles of the product, and as many output channels as leave two
// tasks for each thread. Results depend on neither.
static void clnet__winograd_cut(const clnet__cpu *cpu, clnet__winograd *p, bool shares_weights) {
    const size_t wanted = 2 * (size_t)cpu->threads;
    const size_t rows = (size_t)p->kernel.product.rows, line = CLNET__WINOGRAD_LINE;
    const size_t columns = (size_t)p->kernel.product.columns, positions = CLNET__WINOGRAD_POSITIONS;
    p->shares_weights = shares_weights;
    p->depth = clnet__conv2d_cut(p->C, CLNET__WINOGRAD_DEPTH, 1);
    p->c_blocks = clnet__conv2d_parts(p->C, p->depth);
    p->row = clnet__round_up(p->depth, line);
    p->k_panels = clnet__conv2d_parts(p->K, columns);
    p->block = clnet__conv2d_min(CLNET__WINOGRAD_BLOCK, p->k_panels * columns);
    while (p->block > columns && (shares_weights ? p->block > CLNET__WINOGRAD_BLOCK / 2
                                                 : clnet__conv2d_parts(p->K, p->block) < wanted)) {
        p->block = clnet__round_up(p->block / 2, columns);
    }
    const size_t most =
        shares_weights
            ? CLNET__WINOGRAD_L2 / positions / (p->c_blocks * p->row + p->block)
            : clnet__conv2d_min(CLNET__WINOGRAD_SHARED / positions / (p->c_blocks * p->row),
                                CLNET__WINOGRAD_TILES);
    p->room = clnet__conv2d_min(most > 2 * rows ? most / rows * rows : 2 * rows,
                                clnet__round_up(p->tiles, rows));
    p->most = clnet__conv2d_cut(p->tiles, p->room, rows);
    while (shares_weights && p->most > 2 * rows &&
           clnet__conv2d_parts(p->tiles, p->most) < 2 * wanted) {
        p->most = clnet__round_up(p->most / 2, rows);
    }
    p->u_at = p->depth * columns + line;
    p->u_panel = positions * p->u_at;
    p->v_at = p->room * p->row + line;
    p->v_block = positions * p->v_at;
    p->m_at = p->room * p->block + line;
}

// U is shared where it is the smaller one, counted for one image: then a batch never changes the
// choice, and needs no more memory than a larger one.
static bool clnet__winograd_shares_weights(const clnet__winograd *p) {
    return (size_t)(p->rows * p->columns) >= p->K &&
           p->C * p->K <= CLNET__WINOGRAD_SHARED / CLNET__WINOGRAD_POSITIONS;
}

static void clnet__winograd_count(const clnet__cpu *cpu, clnet__winograd *p, int N) {
    p->rows = (p->OH + 3) / 4;
    p->columns = (p->OW + 3) / 4;
    p->tiles = (size_t)N * (size_t)p->rows * (size_t)p->columns;
    clnet__winograd_cut(cpu, p, clnet__winograd_shares_weights(p));
}

static clnet__winograd clnet__winograd_forward_of(const clnet__cpu *cpu,
                                                  const clnet_conv2d_sizes *s) {
    clnet__winograd p = {
        .kernel = clnet__winograd_kernel_of(cpu->isa),
        .H = s->H,
        .W = s->W,
        .OH = s->OH,
        .OW = s->OW,
        .padding = {s->padding[0], s->padding[1]},
        .C = (size_t)s->C,
        .K = (size_t)s->OC,
        .source_stride = s->x_stride,
        .target_stride = s->y_stride,
        .w_tap = (size_t)s->C * (size_t)s->OC,
        .w_c = (size_t)s->OC,
        .w_k = 1,
    };
    clnet__winograd_count(cpu, &p, s->N);
    return p;
}

static clnet__winograd clnet__winograd_backward_of(const clnet__cpu *cpu,
                                                   const clnet_conv2d_sizes *s) {
    clnet__winograd p = {
        .kernel = clnet__winograd_kernel_of(cpu->isa),
        .H = s->OH,
        .W = s->OW,
        .OH = s->H,
        .OW = s->W,
        .padding = {2 - s->padding[0], 2 - s->padding[1]},
        .C = (size_t)s->OC,
        .K = (size_t)s->C,
        .source_stride = s->y_stride,
        .target_stride = s->x_stride,
        .w_tap = (size_t)s->C * (size_t)s->OC,
        .w_c = 1,
        .w_k = (size_t)s->OC,
        .reverse = true,
        .add = true,
    };
    clnet__winograd_count(cpu, &p, s->N);
    return p;
}

static clnet__conv2d_layout clnet__winograd_layout(const clnet__winograd *p) {
    const size_t columns = (size_t)p->kernel.product.columns;
    const size_t edge = 9 * p->depth * columns, pixels = 36 * CLNET__WINOGRAD_LINE;
    clnet__conv2d_layout at = {0};
    at.a = clnet__conv2d_carve(&at.end, p->room * sizeof(float *));
    at.c = clnet__conv2d_carve(&at.end, p->room * sizeof(float *));
    at.b = clnet__conv2d_carve(&at.end, clnet__winograd_own(p) * sizeof(float));
    at.m = clnet__conv2d_carve(&at.end, CLNET__WINOGRAD_POSITIONS * p->m_at * sizeof(float));
    at.edge = clnet__conv2d_carve(&at.end, (edge > pixels ? edge : pixels) * sizeof(float));
    at.dead = clnet__conv2d_carve(&at.end, p->block * sizeof(float));
    return at;
}

static clnet__winograd_scratch clnet__winograd_scratch_of(const clnet__winograd *p, int worker) {
    const clnet__conv2d_layout at = clnet__winograd_layout(p);
    char *base = p->scratch + (size_t)worker * at.end;
    return (clnet__winograd_scratch){
        .a = (const float **)(void *)(base + at.a),
        .c = (float **)(void *)(base + at.c),
        .own = (float *)(void *)(base + at.b),
        .m = (float *)(void *)(base + at.m),
        .edge = (float *)(void *)(base + at.edge),
        .dead = (float *)(void *)(base + at.dead),
    };
}

typedef struct clnet__winograd_place {
    int n, h, w; // image; first pixel of the tile in the target
} clnet__winograd_place;

static clnet__winograd_place clnet__winograd_place_of(const clnet__winograd *p, size_t tile) {
    const size_t row = tile / (size_t)p->columns;
    return (clnet__winograd_place){(int)(row / (size_t)p->rows), 4 * (int)(row % (size_t)p->rows),
                                   4 * (int)(tile % (size_t)p->columns)};
}

// The 36 pixels that a tile reads.
static void clnet__winograd_find_source(const clnet__winograd *p, size_t tile, const float **from) {
    const clnet__winograd_place at = clnet__winograd_place_of(p, tile);
    const int h0 = at.h - p->padding[0], w0 = at.w - p->padding[1];
    for (int i = 0; i < 36; i++) {
        const int h = h0 + i / 6, w = w0 + i % 6;
        const bool inside = (unsigned)h < (unsigned)p->H && (unsigned)w < (unsigned)p->W;
        const size_t pixel = ((size_t)at.n * (size_t)p->H + (size_t)h) * (size_t)p->W + (size_t)w;
        from[i] = inside ? p->source + pixel * p->source_stride : p->zeros;
    }
}

// The 16 pixels that a tile writes, from channel k on.
static void clnet__winograd_find_target(const clnet__winograd *p, size_t tile, size_t k,
                                        float *dead, float **to) {
    const clnet__winograd_place at = clnet__winograd_place_of(p, tile);
    for (int i = 0; i < 16; i++) {
        const int h = at.h + i / 4, w = at.w + i % 4;
        const size_t pixel = ((size_t)at.n * (size_t)p->OH + (size_t)h) * (size_t)p->OW + (size_t)w;
        to[i] = h < p->OH && w < p->OW ? p->target + pixel * p->target_stride + k : dead;
    }
}

// Where the summand of the epilogue has the same pixels; beyond the target, where zeros are.
static void clnet__winograd_find_summand(const clnet__winograd *p, size_t tile, size_t k,
                                         const float **from) {
    const clnet__winograd_place at = clnet__winograd_place_of(p, tile);
    const clnet__epilogue *e = p->epilogue;
    for (int i = 0; i < 16; i++) {
        const int h = at.h + i / 4, w = at.w + i % 4;
        const size_t pixel = ((size_t)at.n * (size_t)p->OH + (size_t)h) * (size_t)p->OW + (size_t)w;
        from[i] = h < p->OH && w < p->OW ? e->summand + pixel * e->summand_stride + k : p->zeros;
    }
}

// The whole vectors of `channels`; what remains goes through an edge of one vector each.
static size_t clnet__winograd_whole(size_t channels) {
    return channels / CLNET__WINOGRAD_LINE * CLNET__WINOGRAD_LINE;
}

// V of one tile, which is number `slot` of its block.
static void clnet__winograd_input(const clnet__winograd *p, float *edge, float *v, size_t tile,
                                  size_t slot) {
    const float *from[36], *rest[36];
    float *to[36];
    clnet__winograd_find_source(p, tile, from);
    for (size_t block = 0; block < p->c_blocks; block++) {
        const size_t c = block * p->depth, channels = clnet__conv2d_min(p->depth, p->C - c);
        const size_t whole = clnet__winograd_whole(channels);
        for (size_t i = 0; i < 36; i++) {
            to[i] = v + block * p->v_block + i * p->v_at + slot * p->row;
        }
        p->kernel.input(to, 0, from, c, whole);
        if (whole < channels) {
            memset(edge, 0, 36 * CLNET__WINOGRAD_LINE * sizeof(float));
            for (size_t i = 0; i < 36; i++) {
                rest[i] = memcpy(edge + i * CLNET__WINOGRAD_LINE, from[i] + c + whole,
                                 (channels - whole) * sizeof(float));
            }
            p->kernel.input(to, whole, rest, 0, CLNET__WINOGRAD_LINE);
        }
    }
}

// Where the taps of an input and an output channel lie, in the order in which they are used.
static void clnet__winograd_taps(const clnet__winograd *p, size_t c, size_t k, const float **from) {
    for (size_t t = 0; t < 9; t++) {
        from[t] = p->w + (p->reverse ? 8 - t : t) * p->w_tap + c * p->w_c + k * p->w_k;
    }
}

static void clnet__winograd_positions(const clnet__winograd *p, float *u, float **to) {
    for (size_t i = 0; i < 36; i++) {
        to[i] = u + i * p->u_at;
    }
}

// U of whole panels of a block of input channels, from w as it lies. All panels of a row before the
// next row, and the next rows asked for in time: rows may be pages apart, and finding a page takes
// longer than all the arithmetic of its numbers.
static void clnet__winograd_weights_whole(const clnet__winograd *p, float *u, size_t u_panel,
                                          size_t panel, size_t panels, size_t c, size_t depth) {
    const size_t columns = (size_t)p->kernel.product.columns;
    const float *from[9];
    float *to[36];
    clnet__winograd_taps(p, c, panel * columns, from);
    clnet__winograd_positions(p, u, to);
    for (size_t i = 0; i < depth; i++) {
        for (size_t j = 0; j < panels; j++) {
            for (size_t t = 0; t < 9 && i + CLNET__WINOGRAD_AHEAD < depth; t++) {
                CLNET__PREFETCH(from[t] + (i + CLNET__WINOGRAD_AHEAD) * p->w_c + j * columns);
            }
            p->kernel.weight(to, j * u_panel + i * columns, from, i * p->w_c + j * columns,
                             columns);
        }
    }
}

// The same of one panel that is narrower, or whose channels do not lie next to each other.
static void clnet__winograd_weights_packed(const clnet__winograd *p, float *edge, float *u,
                                           size_t panel, size_t c, size_t depth) {
    const size_t columns = (size_t)p->kernel.product.columns, k = panel * columns;
    const float *from[9];
    float *to[36];
    clnet__winograd_taps(p, c, k, from);
    clnet__winograd_positions(p, u, to);
    for (size_t t = 0; t < 9; t++) {
        float *taps = edge + t * depth * columns;
        clnet__conv2d_pack(taps, depth * columns, columns, from[t], depth, p->w_c,
                           clnet__conv2d_min(columns, p->K - k), p->w_k);
        from[t] = taps;
    }
    p->kernel.weight(to, 0, from, 0, depth * columns);
}

// U of some panels and one block of input channels: [position][c][COLUMNS], zero beyond K.
static void clnet__winograd_weights(const clnet__winograd *p, float *edge, float *u, size_t u_panel,
                                    size_t panel, size_t panels, size_t block) {
    const size_t columns = (size_t)p->kernel.product.columns;
    const size_t c = block * p->depth, depth = clnet__conv2d_min(p->depth, p->C - c);
    const size_t whole = p->w_k == 1 ? clnet__conv2d_min(panels, p->K / columns - panel) : 0;
    clnet__winograd_weights_whole(p, u, u_panel, panel, whole, c, depth);
    for (size_t j = whole; j < panels; j++) {
        clnet__winograd_weights_packed(p, edge, u + j * u_panel, panel + j, c, depth);
    }
}

// M (+)= V U of one block of input channels, for `panels` panels of U.
static void clnet__winograd_multiply(const clnet__winograd *p, const clnet__winograd_scratch *m,
                                     size_t tiles, size_t panels, const float *u, size_t u_panel,
                                     const float *v, size_t block) {
    const size_t columns = (size_t)p->kernel.product.columns;
    const size_t rows = (size_t)p->kernel.product.rows;
    const size_t depth = clnet__conv2d_min(p->depth, p->C - block * p->depth);
    for (size_t t = 0; t < clnet__round_up(tiles, rows); t++) {
        m->a[t] = v + (t < tiles ? t : 0) * p->row; // rows beyond the last tile: any
        m->c[t] = m->m + t * p->block;
    }
    for (size_t i = 0; i < CLNET__WINOGRAD_POSITIONS; i++) {
        for (size_t j = 0; j < panels; j++) {
            const float *b = u + j * u_panel + i * p->u_at;
            for (size_t t = 0; t < tiles; t += rows) {
                p->kernel.product.tile(m->c + t, i * p->m_at + j * columns, m->a + t, i * p->v_at,
                                       1, b, columns, 1, (int)depth, block > 0);
            }
        }
    }
}

// The epilogue of a tile, whose target was found.
static void clnet__winograd_finish(const clnet__winograd *p, float *const *to, size_t tile,
                                   size_t k, size_t channels) {
    const clnet__epilogue *e = p->epilogue;
    const float *summand[16];
    if (e->summand) {
        clnet__winograd_find_summand(p, tile, k, summand);
    }
    p->kernel.product.finish(to, e->summand ? summand : NULL, 16, e, k, channels);
}

// The target's channels [k, k + channels) of some tiles, from M.
static void clnet__winograd_output(const clnet__winograd *p, const clnet__winograd_scratch *m,
                                   size_t first, size_t tiles, size_t k, size_t channels) {
    const size_t whole = clnet__winograd_whole(channels), rest = channels - whole;
    const bool add = p->add || p->bias;
    clnet__winograd_transform *output = add ? p->kernel.output_add : p->kernel.output;
    const float *from[36];
    float *to[16], *edge[16];
    for (size_t i = 0; i < 36; i++) {
        from[i] = m->m + i * p->m_at;
    }
    for (size_t i = 0; i < 16; i++) {
        edge[i] = m->edge + i * CLNET__WINOGRAD_LINE;
    }
    for (size_t t = 0; t < tiles; t++) {
        clnet__winograd_find_target(p, first + t, k, m->dead, to);
        if (p->bias) {
            clnet__conv2d_product_start(to, 16, channels, p->bias + k);
        }
        output(to, 0, from, t * p->block, whole);
        for (size_t i = 0; i < 16 && rest > 0 && add; i++) {
            memcpy(edge[i], to[i] + whole, rest * sizeof(float));
        }
        if (rest > 0) {
            output(edge, 0, from, t * p->block + whole, CLNET__WINOGRAD_LINE);
        }
        for (size_t i = 0; i < 16 && rest > 0; i++) {
            memcpy(to[i] + whole, edge[i], rest * sizeof(float));
        }
        if (p->epilogue) {
            clnet__winograd_finish(p, to, first + t, k, channels);
        }
    }
}

// Some tiles and one block of output channels, from V to the target.
static void clnet__winograd_block(const clnet__winograd *p, const clnet__winograd_scratch *m,
                                  const float *v, size_t first, size_t tiles, size_t k) {
    const size_t columns = (size_t)p->kernel.product.columns;
    const size_t channels = clnet__conv2d_min(p->block, p->K - k);
    const size_t panel = k / columns, panels = clnet__conv2d_parts(channels, columns);
    for (size_t c = 0; c < p->c_blocks; c++) {
        const float *u = m->own;
        size_t u_panel = p->u_panel;
        if (p->shares_weights) {
            u = p->shared + (panel * p->c_blocks + c) * p->u_panel;
            u_panel *= p->c_blocks;
        } else {
            clnet__winograd_weights(p, m->edge, m->own, u_panel, panel, panels, c);
        }
        clnet__winograd_multiply(p, m, tiles, panels, u, u_panel, v + c * p->v_block, c);
    }
    clnet__winograd_output(p, m, first, tiles, k, channels);
}

// A task of U, where it is shared: one panel, one block of input channels.
static void clnet__winograd_weights_task(void *arg, size_t index, int worker) {
    const clnet__winograd *p = arg;
    const clnet__winograd_scratch m = clnet__winograd_scratch_of(p, worker);
    clnet__winograd_weights(p, m.edge, p->shared + index * p->u_panel, p->u_panel,
                            index / p->c_blocks, 1, index % p->c_blocks);
}

// Then: some tiles, all output channels.
static void clnet__winograd_tiles_task(void *arg, size_t index, int worker) {
    const clnet__winograd *p = arg;
    const clnet__winograd_scratch m = clnet__winograd_scratch_of(p, worker);
    const size_t first = index * p->most, tiles = clnet__conv2d_min(p->most, p->tiles - first);
    for (size_t t = 0; t < tiles; t++) {
        clnet__winograd_input(p, m.edge, m.own, first + t, t);
    }
    for (size_t k = 0; k < p->K; k += p->block) {
        clnet__winograd_block(p, &m, m.own, first, tiles, k);
    }
}

// Where V is shared, the tiles that it holds: a run of one after the other.
typedef struct clnet__winograd_run {
    const clnet__winograd *p;
    size_t first, tiles;
} clnet__winograd_run;

// A task of V: one tile.
static void clnet__winograd_input_task(void *arg, size_t index, int worker) {
    const clnet__winograd_run *run = arg;
    const clnet__winograd_scratch m = clnet__winograd_scratch_of(run->p, worker);
    clnet__winograd_input(run->p, m.edge, run->p->shared, run->first + index, index);
}

// Then: all tiles of the run, a block of output channels.
static void clnet__winograd_channels_task(void *arg, size_t index, int worker) {
    const clnet__winograd_run *run = arg;
    const clnet__winograd_scratch m = clnet__winograd_scratch_of(run->p, worker);
    clnet__winograd_block(run->p, &m, run->p->shared, run->first, run->tiles,
                          index * run->p->block);
}

static void clnet__winograd_run_all(const clnet__cpu *cpu, clnet__winograd *p) {
    if (p->shares_weights) {
        clnet__parallel(cpu, p->k_panels * p->c_blocks, clnet__winograd_weights_task, p);
        clnet__parallel(cpu, clnet__conv2d_parts(p->tiles, p->most), clnet__winograd_tiles_task, p);
        return;
    }
    for (size_t first = 0; first < p->tiles; first += p->most) {
        clnet__winograd_run run = {p, first, clnet__conv2d_min(p->most, p->tiles - first)};
        clnet__parallel(cpu, run.tiles, clnet__winograd_input_task, &run);
        clnet__parallel(cpu, clnet__conv2d_parts(p->K, p->block), clnet__winograd_channels_task,
                        &run);
    }
}

// Whether a pass is computed this way: by its shape alone, never by the batch. Two zeros at an edge
// are one too many: a corner then sums one tap of nine, but carries the rounding of the whole tile
// (E of 17 to 27 times the direct path's, where one zero gives 11).
static bool clnet__winograd_wanted(const clnet__cpu *cpu, const clnet_conv2d_sizes *s,
                                   clnet__winograd_pass pass) {
    bool fits = !cpu->no_winograd && s->groups == 1 && s->C >= 32 && s->OC >= 32;
    for (int i = 0; i < 2; i++) {
        const int zeros = pass == CLNET__WINOGRAD_BACKWARD_DATA ? 2 - s->padding[i] : s->padding[i];
        const int most = pass == CLNET__WINOGRAD_BACKWARD_WEIGHT ? 2 : 1;
        fits = fits && s->stride[i] == 1 && s->dilation[i] == 1 && zeros >= 0 && zeros <= most;
    }
    return fits && s->KH == 3 && s->KW == 3 && s->OH >= 10 && s->OW >= 10;
}

static void clnet__winograd_start(clnet__winograd *p, const clnet_conv2d_sizes *s,
                                  void *workspace) {
    const clnet__conv2d_shared shared = clnet__conv2d_share(s, workspace);
    p->zeros = shared.zeros;
    p->shared = (float *)(void *)shared.rest;
    p->scratch = shared.rest + clnet__round_up(clnet__winograd_shared(p) * sizeof(float), 64);
}

static void clnet__winograd_forward(const clnet__cpu *cpu, float *y, const float *x, const float *w,
                                    const float *b, const clnet_conv2d_sizes *s,
                                    const clnet__epilogue *e, void *workspace) {
    clnet__winograd p = clnet__winograd_forward_of(cpu, s);
    clnet__winograd_start(&p, s, workspace);
    p.source = x;
    p.w = w;
    p.bias = b;
    p.epilogue = e;
    p.target = y;
    clnet__winograd_run_all(cpu, &p);
}

static void clnet__winograd_backward_data(const clnet__cpu *cpu, float *dx, const float *dy,
                                          const float *w, const clnet_conv2d_sizes *s,
                                          void *workspace) {
    clnet__winograd p = clnet__winograd_backward_of(cpu, s);
    clnet__winograd_start(&p, s, workspace);
    p.source = dy;
    p.w = w;
    p.target = dx;
    clnet__winograd_run_all(cpu, &p);
}

// Backward weight: dw += G' [sum over tiles (B' x B) .* (A dy A')] G, the transpose of forward. Here
// the tiles are what is summed: at each of the 36 positions, M[c][k] += V[tile][c] * D[tile][k]. The
// tiles are taken in runs. V and D of a run are made first and shared; then every thread takes some
// channels through M and adds them to dw, while M is in L2. What is summed in which order depends on
// the shape alone, batch included; how many output channels a task takes, on the threads as well.

typedef struct clnet__winograd_sum {
    clnet__winograd p; // V, and the blocks of M
    const float *dy;
    float *dw, *d;        // D: [panel][position][tile][COLUMNS]
    size_t d_at, d_panel; // floats between positions of D, and between panels
    size_t first, tiles;  // the run
} clnet__winograd_sum;

static clnet__winograd_sum clnet__winograd_sum_of(const clnet__cpu *cpu,
                                                  const clnet_conv2d_sizes *s) {
    clnet__winograd_sum q = {.p = clnet__winograd_forward_of(cpu, s)};
    clnet__winograd *p = &q.p;
    const size_t columns = (size_t)p->kernel.product.columns, rows = (size_t)p->kernel.product.rows;
    const size_t wanted = 2 * (size_t)cpu->threads;
    clnet__winograd_cut(cpu, p, false);
    const size_t widest =
        p->c_blocks * p->row > p->k_panels * columns ? p->c_blocks * p->row : p->k_panels * columns;
    const size_t most = CLNET__WINOGRAD_SHARED / CLNET__WINOGRAD_POSITIONS / widest;
    p->room = clnet__conv2d_min(p->tiles,
                                clnet__conv2d_min(most > 16 ? most : 16, CLNET__WINOGRAD_TILES));
    p->most = clnet__conv2d_cut(p->tiles, p->room, 1);
    p->v_at = p->room * p->row + CLNET__WINOGRAD_LINE;
    p->v_block = CLNET__WINOGRAD_POSITIONS * p->v_at;
    p->block = clnet__conv2d_min(CLNET__WINOGRAD_BLOCK / 2, p->k_panels * columns);
    while (p->block > columns && p->c_blocks * clnet__conv2d_parts(p->K, p->block) < wanted) {
        p->block = clnet__round_up(p->block / 2, columns);
    }
    p->m_at = clnet__round_up(p->depth, rows) * p->block + CLNET__WINOGRAD_LINE;
    q.d_at = p->room * columns + CLNET__WINOGRAD_LINE;
    q.d_panel = CLNET__WINOGRAD_POSITIONS * q.d_at;
    return q;
}

static clnet__conv2d_layout clnet__winograd_sum_layout(const clnet__winograd_sum *q) {
    clnet__conv2d_layout at = {0};
    at.m = clnet__conv2d_carve(&at.end, CLNET__WINOGRAD_POSITIONS * q->p.m_at * sizeof(float));
    at.edge = clnet__conv2d_carve(&at.end, 36 * 2 * CLNET__WINOGRAD_LINE * sizeof(float));
    return at;
}

static clnet__winograd_scratch clnet__winograd_sum_scratch(const clnet__winograd_sum *q,
                                                           int worker) {
    const clnet__conv2d_layout at = clnet__winograd_sum_layout(q);
    char *base = q->p.scratch + (size_t)worker * at.end;
    return (clnet__winograd_scratch){.m = (float *)(void *)(base + at.m),
                                     .edge = (float *)(void *)(base + at.edge)};
}

// The 16 pixels of dy that a tile has.
static void clnet__winograd_find_gradient(const clnet__winograd_sum *q, size_t tile,
                                          const float **from) {
    const clnet__winograd *p = &q->p;
    const clnet__winograd_place at = clnet__winograd_place_of(p, tile);
    for (int i = 0; i < 16; i++) {
        const int h = at.h + i / 4, w = at.w + i % 4;
        const size_t pixel = ((size_t)at.n * (size_t)p->OH + (size_t)h) * (size_t)p->OW + (size_t)w;
        from[i] = h < p->OH && w < p->OW ? q->dy + pixel * p->target_stride : p->zeros;
    }
}

// D of one tile, zero beyond the last channel.
static void clnet__winograd_gradient(const clnet__winograd_sum *q, float *edge, size_t tile,
                                     size_t slot) {
    const clnet__winograd *p = &q->p;
    const size_t columns = (size_t)p->kernel.product.columns;
    const float *from[16], *rest[16];
    float *to[36];
    clnet__winograd_find_gradient(q, tile, from);
    for (size_t i = 0; i < 36; i++) {
        to[i] = q->d + i * q->d_at + slot * columns;
    }
    const size_t whole = p->K / columns, left = p->K % columns;
    for (size_t j = 0; j < whole; j++) {
        p->kernel.gradient(to, j * q->d_panel, from, j * columns, columns);
    }
    if (left > 0) {
        memset(edge, 0, 16 * columns * sizeof(float));
        for (size_t i = 0; i < 16; i++) {
            rest[i] = memcpy(edge + i * columns, from[i] + whole * columns, left * sizeof(float));
        }
        p->kernel.gradient(to, whole * q->d_panel, rest, 0, columns);
    }
}

// A task of V and D: one tile.
static void clnet__winograd_sum_tile(void *arg, size_t index, int worker) {
    const clnet__winograd_sum *q = arg;
    const clnet__winograd_scratch m = clnet__winograd_sum_scratch(q, worker);
    clnet__winograd_input(&q->p, m.edge, q->p.shared, q->first + index, index);
    clnet__winograd_gradient(q, m.edge, q->first + index, index);
}

// M of one block of input channels and one panel, which is column `column` of M.
static void clnet__winograd_sum_multiply(const clnet__winograd_sum *q,
                                         const clnet__winograd_scratch *m, size_t block,
                                         size_t depth, size_t panel, size_t column) {
    const clnet__winograd *p = &q->p;
    const size_t rows = (size_t)p->kernel.product.rows;
    const size_t columns = (size_t)p->kernel.product.columns;
    const size_t chain = clnet__conv2d_cut(q->tiles, CLNET__WINOGRAD_DEPTH, 1);
    for (size_t i = 0; i < CLNET__WINOGRAD_POSITIONS; i++) {
        const float *v = p->shared + block * p->v_block + i * p->v_at;
        const float *d = q->d + panel * q->d_panel + i * q->d_at;
        for (size_t c = 0; c < depth; c += rows) {
            const float *a[CLNET__CONV2D_MAX_ROWS];
            float *to[CLNET__CONV2D_MAX_ROWS];
            for (size_t r = 0; r < rows; r++) {
                a[r] = v + (c + r < depth ? c + r : 0); // rows beyond the last channel: any
                to[r] = m->m + i * p->m_at + (c + r) * p->block;
            }
            for (size_t t = 0; t < q->tiles; t += chain) {
                p->kernel.product.tile(to, column, a, t * p->row, p->row, d + t * columns, columns,
                                       1, (int)clnet__conv2d_min(chain, q->tiles - t), t > 0);
            }
        }
    }
}

// dw of input channels [c, c + depth) and output channels [k, k + channels), from M.
static void clnet__winograd_sum_output(const clnet__winograd_sum *q,
                                       const clnet__winograd_scratch *m, size_t c, size_t depth,
                                       size_t k, size_t channels) {
    const clnet__winograd *p = &q->p;
    const size_t whole = clnet__winograd_whole(channels), rest = channels - whole;
    const float *from[36];
    float *to[9], *edge[9];
    for (size_t i = 0; i < 36; i++) {
        from[i] = m->m + i * p->m_at;
    }
    for (size_t t = 0; t < 9; t++) {
        to[t] = q->dw + t * p->w_tap + c * p->w_c + k;
        edge[t] = m->edge + t * CLNET__WINOGRAD_LINE;
    }
    for (size_t i = 0; i < depth; i++) {
        p->kernel.weight_add(to, i * p->w_c, from, i * p->block, whole);
        for (size_t t = 0; t < 9 && rest > 0; t++) {
            memcpy(edge[t], to[t] + i * p->w_c + whole, rest * sizeof(float));
        }
        if (rest > 0) {
            p->kernel.weight_add(edge, 0, from, i * p->block + whole, CLNET__WINOGRAD_LINE);
        }
        for (size_t t = 0; t < 9 && rest > 0; t++) {
            memcpy(to[t] + i * p->w_c + whole, edge[t], rest * sizeof(float));
        }
    }
}

// A task of dw: a block of input channels, a block of output channels.
static void clnet__winograd_sum_task(void *arg, size_t index, int worker) {
    const clnet__winograd_sum *q = arg;
    const clnet__winograd *p = &q->p;
    const clnet__winograd_scratch m = clnet__winograd_sum_scratch(q, worker);
    const size_t columns = (size_t)p->kernel.product.columns;
    const size_t block = index % p->c_blocks, k = index / p->c_blocks * p->block;
    const size_t channels = clnet__conv2d_min(p->block, p->K - k), c = block * p->depth;
    const size_t depth = clnet__conv2d_min(p->depth, p->C - c);
    for (size_t j = 0; j < channels; j += columns) {
        clnet__winograd_sum_multiply(q, &m, block, depth, (k + j) / columns, j);
    }
    clnet__winograd_sum_output(q, &m, c, depth, k, channels);
}

static void clnet__winograd_backward_weight(const clnet__cpu *cpu, float *dw, const float *dy,
                                            const float *x, const clnet_conv2d_sizes *s,
                                            void *workspace) {
    clnet__winograd_sum q = clnet__winograd_sum_of(cpu, s);
    const size_t d = clnet__round_up(q.p.k_panels * q.d_panel, CLNET__WINOGRAD_LINE);
    clnet__winograd_start(&q.p, s, workspace);
    q.p.source = x;
    q.dy = dy;
    q.dw = dw;
    q.d = (float *)(void *)q.p.scratch;
    q.p.scratch += d * sizeof(float);
    for (q.first = 0; q.first < q.p.tiles; q.first += q.p.most) {
        q.tiles = clnet__conv2d_min(q.p.most, q.p.tiles - q.first);
        clnet__parallel(cpu, q.tiles, clnet__winograd_sum_tile, &q);
        clnet__parallel(cpu, q.p.c_blocks * clnet__conv2d_parts(q.p.K, q.p.block),
                        clnet__winograd_sum_task, &q);
    }
}

// Bytes behind the shared part, of the passes that are computed this way.
static size_t clnet__winograd_workspace(const clnet__cpu *cpu, const clnet_conv2d_sizes *s) {
    const size_t workers = (size_t)cpu->threads;
    size_t most = 0;
    for (int pass = CLNET__WINOGRAD_FORWARD; pass <= CLNET__WINOGRAD_BACKWARD_DATA; pass++) {
        if (clnet__winograd_wanted(cpu, s, (clnet__winograd_pass)pass)) {
            const clnet__winograd p = pass == CLNET__WINOGRAD_FORWARD
                                          ? clnet__winograd_forward_of(cpu, s)
                                          : clnet__winograd_backward_of(cpu, s);
            const size_t bytes = clnet__round_up(clnet__winograd_shared(&p) * sizeof(float), 64) +
                                 workers * clnet__winograd_layout(&p).end;
            most = bytes > most ? bytes : most;
        }
    }
    if (clnet__winograd_wanted(cpu, s, CLNET__WINOGRAD_BACKWARD_WEIGHT)) {
        const clnet__winograd_sum q = clnet__winograd_sum_of(cpu, s);
        const size_t bytes = clnet__round_up(clnet__winograd_shared(&q.p) * sizeof(float), 64) +
                             clnet__round_up(q.p.k_panels * q.d_panel * sizeof(float), 64) +
                             workers * clnet__winograd_sum_layout(&q).end;
        most = bytes > most ? bytes : most;
    }
    return most;
}

#undef CLNET__CONV2D_X86
#undef CLNET__CONV2D_CHAIN
#undef CLNET__CONV2D_DEPTH
#undef CLNET__CONV2D_PIXELS
#undef CLNET__CONV2D_BLOCK
#undef CLNET__CONV2D_GAP
#undef CLNET__CONV2D_AHEAD
#undef CLNET__CONV2D_MAX_ROWS
#undef CLNET__CONV2D_NARROW
#undef CLNET__CONV2D_ALONE
#undef CLNET__CONV2D_WEIGHT_ROWS
#undef CLNET__CONV2D_WEIGHT_CHAIN
#undef CLNET__CONV2D_GROUP
#undef CLNET__CONV2D_SLICE
#undef CLNET__CONV2D_TASKS
#undef CLNET__VEC4_FMA
#undef CLNET__VEC4_ADD
#undef CLNET__VEC4_SPLAT
#undef CLNET__PORTABLE_TARGET
#undef CLNET__PORTABLE_ROWS
#undef CLNET__PORTABLE_LANES
#undef CLNET__PORTABLE_VEC
#undef CLNET__PORTABLE_LOAD
#undef CLNET__PORTABLE_STORE
#undef CLNET__PORTABLE_SPLAT
#undef CLNET__PORTABLE_ADD
#undef CLNET__PORTABLE_FMA
#undef CLNET__PORTABLE_MAX
#undef CLNET__AVX2_TARGET
#undef CLNET__AVX2_ROWS
#undef CLNET__AVX2_LANES
#undef CLNET__AVX2_VEC
#undef CLNET__AVX2_LOAD
#undef CLNET__AVX2_STORE
#undef CLNET__AVX2_SPLAT
#undef CLNET__AVX2_ADD
#undef CLNET__AVX2_FMA
#undef CLNET__AVX2_MAX
#undef CLNET__AVX512_TARGET
#undef CLNET__AVX512_ROWS
#undef CLNET__AVX512_LANES
#undef CLNET__AVX512_VEC
#undef CLNET__AVX512_LOAD
#undef CLNET__AVX512_STORE
#undef CLNET__AVX512_SPLAT
#undef CLNET__AVX512_ADD
#undef CLNET__AVX512_FMA
#undef CLNET__AVX512_MAX
#undef CLNET__TILE_ROWS_1
#undef CLNET__TILE_ROWS_4
#undef CLNET__LINE
#undef CLNET__LINE_MULTIPLY
#undef CLNET__LINE_ADD
#undef CLNET__LINE_SET
#undef CLNET__TILE_ROWS_6
#undef CLNET__DOT
#undef CLNET__DOT_CLEAR
#undef CLNET__DOT_MULTIPLY
#undef CLNET__DOT_REST
#undef CLNET__DOT_SUM
#undef CLNET__KERNEL
#undef CLNET__KERNELS
#undef CLNET__TILE
#undef CLNET__TILE_ROWS_12
#undef CLNET__TILE_CLEAR
#undef CLNET__TILE_POINT
#undef CLNET__TILE_MULTIPLY
#undef CLNET__TILE_ADD
#undef CLNET__TILE_SET
#undef CLNET__FINISH
#undef CLNET__WINOGRAD_DEPTH
#undef CLNET__WINOGRAD_BLOCK
#undef CLNET__WINOGRAD_L2
#undef CLNET__WINOGRAD_SHARED
#undef CLNET__WINOGRAD_TILES
#undef CLNET__WINOGRAD_AHEAD
#undef CLNET__WINOGRAD_LINE
#undef CLNET__WINOGRAD_A
#undef CLNET__WINOGRAD_B
#undef CLNET__WINOGRAD_A2
#undef CLNET__WINOGRAD_B2
#undef CLNET__WINOGRAD_A3
#undef CLNET__WINOGRAD_B3
#undef CLNET__WINOGRAD_NA
#undef CLNET__WINOGRAD_NB
#undef CLNET__WINOGRAD_AXPY
#undef CLNET__WINOGRAD_INPUT
#undef CLNET__WINOGRAD_WEIGHT
#undef CLNET__WINOGRAD_OUTPUT
#undef CLNET__WINOGRAD_GRADIENT
#undef CLNET__WINOGRAD_WEIGHT_BACK
#undef CLNET__WINOGRAD_SET
#undef CLNET__WINOGRAD_ADD
#undef CLNET__WINOGRAD_2D
#undef CLNET__WINOGRAD_KERNEL
#else // CLNET_REAL is not float: plain loops only
static bool clnet__isa_supported(clnet_isa isa) { return isa <= CLNET_ISA_PORTABLE; }
static clnet_isa clnet__isa_best(void) { return CLNET_ISA_PORTABLE; }
#endif

bool clnet_isa_supported(clnet_isa isa) { return clnet__isa_supported(isa); }

// >>random

// One round: two products of 64 bits; their halves are mixed with the other words and the key.
static void clnet__philox_round(uint32_t x[4], const uint32_t key[2]) {
    uint64_t p = (uint64_t)0xD2511F53u * x[0];
    uint64_t q = (uint64_t)0xCD9E8D57u * x[2];
    uint32_t x0 = (uint32_t)(q >> 32) ^ x[1] ^ key[0];
    uint32_t x2 = (uint32_t)(p >> 32) ^ x[3] ^ key[1];
    x[0] = x0;
    x[1] = (uint32_t)q;
    x[2] = x2;
    x[3] = (uint32_t)p;
}

void clnet_random_bits(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4]) {
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    out[0] = (uint32_t)counter;
    out[1] = (uint32_t)(counter >> 32);
    out[2] = (uint32_t)stream;
    out[3] = (uint32_t)(stream >> 32);
    for (int round = 0; round < 10; round++) {
        clnet__philox_round(out, key);
        key[0] += 0x9E3779B9u; // the golden ratio
        key[1] += 0xBB67AE85u; // sqrt(3) - 1
    }
}

// The upper 53 of the 64 bits, as a multiple of 2^-53 in [0,1).
static double clnet__unit_interval(uint32_t low, uint32_t high) {
    uint64_t bits = (uint64_t)high << 32 | low;
    return (double)(bits >> 11) * (1.0 / 9007199254740992.0);
}

double clnet_random_uniform(uint64_t seed, uint64_t stream, uint64_t counter) {
    uint32_t r[4];
    clnet_random_bits(seed, stream, counter, r);
    return clnet__unit_interval(r[0], r[1]);
}

double clnet_random_normal(uint64_t seed, uint64_t stream, uint64_t counter) {
    uint32_t r[4];
    clnet_random_bits(seed, stream, counter, r);
    double radius = sqrt(-2.0 * log(1.0 - clnet__unit_interval(r[0], r[1]))); // log of (0,1]
    return radius * cos(6.283185307179586476925 * clnet__unit_interval(r[2], r[3]));
}

// A whole number in [0,n), n > 0, each equally likely: the upper half of bits * n, where the few
// draws that would favour some results (lower half below 2^32 mod n) are drawn again. (Lemire: Fast
// Random Integer Generation in an Interval, 2019.) Every draw moves the counter on.
static uint32_t clnet__random_below(uint32_t n, uint64_t seed, uint64_t stream, uint64_t *counter) {
    uint32_t excess = (0u - n) % n; // 2^32 mod n
    uint64_t product;
    do {
        uint32_t r[4];
        clnet_random_bits(seed, stream, (*counter)++, r);
        product = (uint64_t)r[0] * n;
    } while ((uint32_t)product < excess);
    return (uint32_t)(product >> 32);
}

void clnet_random_permutation(int *order, int count, uint64_t seed, uint64_t stream) {
    uint64_t counter = 0;
    for (int i = 0; i < count; i++) {
        order[i] = i;
    }
    for (int i = count - 1; i > 0; i--) {
        uint32_t j = clnet__random_below((uint32_t)i + 1, seed, stream, &counter);
        int kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}

// What every operation's block uses: where the values of a node lie, and the piece of it that one
// task computes: images n0..n1 and channels c0..c1, and where the list says so only rows r0..r1 of them,
// counted through all images of what the pass writes. The results do not depend on how a node is cut
// into pieces.
typedef enum clnet__cut {
    CLNET__CUT_WHOLE,
    CLNET__CUT_IMAGES,
    CLNET__CUT_CHANNELS, // and images
    CLNET__CUT_ROWS      // of all images and channels: a run of memory each
} clnet__cut;

typedef struct clnet__piece {
    int n0, n1, c0, c1;
    size_t r0, r1;
} clnet__piece;

static size_t clnet__pixels(const clnet_tensor *t) {
    return (size_t)t->shape[2] * (size_t)t->shape[3];
}

// The first number of image n, channel c.
static size_t clnet__at(const clnet_tensor *t, int n, int c) {
    return (size_t)n * clnet__pixels(t) * t->stride + (size_t)c;
}

static clnet_real *clnet__value(const clnet_tensor *t) {
    return t ? (clnet_real *)(void *)((char *)t->memory->handle + t->offset) : NULL;
}

static int32_t *clnet__integers(const clnet_tensor *t) {
    return (int32_t *)(void *)((char *)t->memory->handle + t->offset);
}

// NULL where no gradient is wanted.
static clnet_real *clnet__grad(const clnet_tensor *t) {
    return t && t->grad_memory
               ? (clnet_real *)(void *)((char *)t->grad_memory->handle + t->grad_offset)
               : NULL;
}

// Products and positions of sizes that are known to fit.
static size_t clnet__volume(int a, int b, int c) { return (size_t)a * (size_t)b * (size_t)c; }

static size_t clnet__row(int n, int h, int w, int H, int W) {
    return ((size_t)n * (size_t)H + (size_t)h) * (size_t)W + (size_t)w;
}

static int clnet__mod(size_t value, int size) { return (int)(value % (size_t)size); }

static clnet_real *clnet__offset(clnet_real *p, size_t n) { return p ? p + n : NULL; }

// An operation on one piece of a node. An operation that the list leaves whole may cut itself: into
// pieces of `like`, which is the output or has its images and channels.
typedef void clnet__pass(clnet_graph *g, clnet_node *node, const clnet__piece *piece);
static void clnet__in_pieces(clnet_graph *g, clnet_node *node, clnet__pass *pass, clnet__cut cut,
                             const clnet_tensor *like);

// The sizes of the piece of an operation that keeps the shape of in[0].
static clnet_sizes clnet__sizes(const clnet_node *node, const clnet__piece *p) {
    const clnet_tensor *x = node->in[0];
    return (clnet_sizes){.N = p->n1 - p->n0,
                         .C = p->c1 - p->c0,
                         .H = x->shape[2],
                         .W = x->shape[3],
                         .x_stride = x->stride,
                         .y_stride = node->out->stride};
}

// The same for rows.
static clnet_sizes clnet__row_sizes(const clnet_node *node, const clnet__piece *p) {
    const clnet_tensor *x = node->in[0];
    return (clnet_sizes){.N = 1,
                         .C = x->shape[1],
                         .H = (int)(p->r1 - p->r0),
                         .W = x->shape[3],
                         .x_stride = x->stride,
                         .y_stride = node->out->stride};
}

// The first number of row r of all images.
static size_t clnet__at_row(const clnet_tensor *t, size_t r) {
    return r * (size_t)t->shape[3] * t->stride;
}

// Appends a node, see >>plan.
static clnet_node *clnet__node(clnet_graph *g, clnet_op op, clnet_tensor *const *in, int inputs);
static clnet_tensor *clnet__output(clnet_node *node, int n, int c, int h, int w);
static clnet_tensor *clnet__saved(clnet_node *node, int slot, int n, int c, int h, int w,
                                  bool integer);
static clnet_tensor *clnet__weight(clnet_graph *g, const char *layer, const char *what, int rank,
                                   const int shape[4], clnet_initial initial, double scale);
static clnet_tensor *clnet__buffer(clnet_tensor *weight);
static clnet_tensor *clnet__refuse(clnet_tensor *x, const char *format, ...) CLNET__PRINTF(2, 3);
static const clnet__cpu *clnet__cpu_of(const clnet_graph *g);
static void *clnet__workspace(const clnet_graph *g);
static bool clnet__training(const clnet_graph *g);
static bool clnet__again(const clnet_graph *g);
static uint64_t clnet__dropout_stream(const clnet_graph *g, const clnet_node *node, uint64_t *seed);
static bool clnet__valid(clnet_tensor *const *x, int count);

// OH of a window of `kernel` over `size`, 0 where it does not fit, or is beyond what ints can index.
static int clnet__window(int size, int kernel, int stride, int padding, int dilation) {
    const int64_t reach =
        (int64_t)size + 2 * (int64_t)padding - (int64_t)dilation * (kernel - 1) - 1;
    const int64_t outputs = reach < 0 ? 0 : reach / stride + 1;
    return outputs > INT_MAX / 2 || padding > 1 << 24 ? 0 : (int)outputs;
}

// >>conv2d
// y[n,oc,oh,ow] = b[oc] + sum over kh,kw,ic of w[oc,ic,kh,kw] x[n,ic,ih,iw],
// ih = oh*stride - padding + kh*dilation, likewise iw; outside x counts as 0.
// backward: dx[n,ic,ih,iw] += sum over oc,kh,kw of w[oc,ic,kh,kw] dy[n,oc,oh,ow], over the oh, ow
// that read it; dw[oc,ic,kh,kw] += sum over n,oh,ow of x[n,ic,ih,iw] dy[n,oc,oh,ow];
// db[oc] += sum of dy. With groups, ic and oc run over the channels of one group.

static clnet_conv2d_sizes clnet__conv2d_defaults(const clnet_conv2d_sizes *sizes) {
    clnet_conv2d_sizes s = *sizes;
    s.groups = clnet__or(s.groups, 1);
    for (int i = 0; i < 2; i++) {
        s.stride[i] = clnet__or(s.stride[i], 1);
        s.dilation[i] = clnet__or(s.dilation[i], 1);
    }
    s.x_stride = clnet__or_size(s.x_stride, (size_t)s.C);
    s.y_stride = clnet__or_size(s.y_stride, (size_t)s.OC);
    return s;
}

// The sums of up to 64 neighbouring output channels (one block of a group) of one output pixel.
enum { CLNET__SUM_BLOCK = 64 };
static void clnet__conv2d_sums(double *sum, const clnet_real *x, const clnet_real *w,
                               const clnet_conv2d_sizes *s, int n, int oh, int ow, int ic0, int oc0,
                               int count) {
    const int IC = s->C / s->groups;
    for (int kh = 0; kh < s->KH; kh++) {
        const int ih = oh * s->stride[0] - s->padding[0] + kh * s->dilation[0];
        for (int kw = 0; kw < s->KW; kw++) {
            const int iw = ow * s->stride[1] - s->padding[1] + kw * s->dilation[1];
            if (ih < 0 || ih >= s->H || iw < 0 || iw >= s->W) {
                continue;
            }
            const clnet_real *xp = x + clnet__row(n, ih, iw, s->H, s->W) * s->x_stride + ic0;
            for (int ic = 0; ic < IC; ic++) {
                const clnet_real *wp = w + clnet__row(kh, kw, ic, s->KW, IC) * (size_t)s->OC + oc0;
                for (int oc = 0; oc < count; oc++) {
                    sum[oc] += (double)xp[ic] * (double)wp[oc];
                }
            }
        }
    }
}

void clnet_ref_conv2d_forward(clnet_real *y, const clnet_real *x, const clnet_real *w,
                              const clnet_real *b, const clnet_conv2d_sizes *sizes) {
    const clnet_conv2d_sizes s = clnet__conv2d_defaults(sizes);
    const int IC = s.C / s.groups, OC = s.OC / s.groups;
    for (size_t pixel = 0; pixel < clnet__volume(s.N, s.OH, s.OW); pixel++) {
        const int ow = clnet__mod(pixel, s.OW), oh = clnet__mod(pixel / (size_t)s.OW, s.OH);
        const int n = (int)(pixel / (size_t)s.OW / (size_t)s.OH);
        for (int group = 0; group < s.groups; group++) {
            for (int oc0 = 0; oc0 < OC; oc0 += CLNET__SUM_BLOCK) {
                const int first = group * OC + oc0, count = clnet__min(OC - oc0, CLNET__SUM_BLOCK);
                double sum[CLNET__SUM_BLOCK];
                for (int oc = 0; oc < count; oc++) {
                    sum[oc] = b ? (double)b[first + oc] : 0;
                }
                clnet__conv2d_sums(sum, x, w, &s, n, oh, ow, group * IC, first, count);
                for (int oc = 0; oc < count; oc++) {
                    (y + pixel * s.y_stride)[first + oc] = (clnet_real)sum[oc];
                }
            }
        }
    }
}

// dx of one input value: the output pixels that read it are those where ih + padding - kh*dilation is
// a multiple of the stride.
static double clnet__conv2d_dx(const clnet_real *dy, const clnet_real *w,
                               const clnet_conv2d_sizes *s, int n, int ih, int iw, int ic) {
    const int IC = s->C / s->groups, OC = s->OC / s->groups, group = ic / IC;
    double sum = 0;
    for (int kh = 0; kh < s->KH; kh++) {
        const int oh = ih + s->padding[0] - kh * s->dilation[0];
        if (oh < 0 || oh % s->stride[0] || oh / s->stride[0] >= s->OH) {
            continue;
        }
        for (int kw = 0; kw < s->KW; kw++) {
            const int ow = iw + s->padding[1] - kw * s->dilation[1];
            if (ow < 0 || ow % s->stride[1] || ow / s->stride[1] >= s->OW) {
                continue;
            }
            const size_t pixel = clnet__row(n, oh / s->stride[0], ow / s->stride[1], s->OH, s->OW);
            const clnet_real *dyp = dy + pixel * s->y_stride + group * OC;
            const clnet_real *wp =
                w + clnet__row(kh, kw, ic % IC, s->KW, IC) * (size_t)s->OC + group * OC;
            for (int oc = 0; oc < OC; oc++) {
                sum += (double)dyp[oc] * (double)wp[oc];
            }
        }
    }
    return sum;
}

// dw of one weight: over all output pixels whose input pixel for (kh, kw) lies inside x.
static double clnet__conv2d_dw(const clnet_real *dy, const clnet_real *x,
                               const clnet_conv2d_sizes *s, int kh, int kw, int ic, int oc) {
    double sum = 0;
    for (int n = 0; n < s->N; n++) {
        for (int oh = 0; oh < s->OH; oh++) {
            const int ih = oh * s->stride[0] - s->padding[0] + kh * s->dilation[0];
            for (int ow = 0; ih >= 0 && ih < s->H && ow < s->OW; ow++) {
                const int iw = ow * s->stride[1] - s->padding[1] + kw * s->dilation[1];
                if (iw >= 0 && iw < s->W) {
                    const clnet_real *xp = x + clnet__row(n, ih, iw, s->H, s->W) * s->x_stride;
                    const clnet_real *dyp = dy + clnet__row(n, oh, ow, s->OH, s->OW) * s->y_stride;
                    sum += (double)xp[ic] * (double)dyp[oc];
                }
            }
        }
    }
    return sum;
}

void clnet_ref_conv2d_backward(clnet_real *dx, clnet_real *dw, clnet_real *db, const clnet_real *dy,
                               const clnet_real *x, const clnet_real *w,
                               const clnet_conv2d_sizes *sizes) {
    const clnet_conv2d_sizes s = clnet__conv2d_defaults(sizes);
    const int IC = s.C / s.groups, OC = s.OC / s.groups;
    for (size_t pixel = 0; dx && pixel < clnet__volume(s.N, s.H, s.W); pixel++) {
        const int iw = clnet__mod(pixel, s.W), ih = clnet__mod(pixel / (size_t)s.W, s.H);
        for (int ic = 0; ic < s.C; ic++) {
            (dx + pixel * s.x_stride)[ic] += (clnet_real)clnet__conv2d_dx(
                dy, w, &s, (int)(pixel / (size_t)s.W / (size_t)s.H), ih, iw, ic);
        }
    }
    for (size_t i = 0; dw && i < clnet__volume(s.KH, s.KW, IC) * (size_t)s.OC; i++) {
        const size_t tap = i / (size_t)s.OC / (size_t)IC;
        const int oc = clnet__mod(i, s.OC), ic = clnet__mod(i / (size_t)s.OC, IC) + oc / OC * IC;
        const int kw = clnet__mod(tap, s.KW), kh = clnet__mod(tap / (size_t)s.KW, s.KH);
        dw[i] += (clnet_real)clnet__conv2d_dw(dy, x, &s, kh, kw, ic, oc);
    }
    for (int oc = 0; db && oc < s.OC; oc++) {
        double sum = 0;
        for (size_t pixel = 0; pixel < clnet__volume(s.N, s.OH, s.OW); pixel++) {
            sum += (double)(dy + pixel * s.y_stride)[oc];
        }
        db[oc] += (clnet_real)sum;
    }
}

static clnet_conv2d_sizes clnet__conv2d_sizes(const clnet_node *node) {
    const clnet_tensor *x = node->in[0], *y = node->out;
    const clnet_conv2d_desc *d = &node->desc.conv2d;
    return (clnet_conv2d_sizes){.N = x->shape[0],
                                .C = x->shape[1],
                                .H = x->shape[2],
                                .W = x->shape[3],
                                .OC = y->shape[1],
                                .OH = y->shape[2],
                                .OW = y->shape[3],
                                .KH = d->kernel_size[0],
                                .KW = d->kernel_size[1],
                                .stride = {d->stride[0], d->stride[1]},
                                .padding = {d->padding[0], d->padding[1]},
                                .dilation = {d->dilation[0], d->dilation[1]},
                                .groups = d->groups,
                                .x_stride = x->stride,
                                .y_stride = y->stride};
}

#ifdef CLNET__FAST
// *e: what batch norm does in evaluation to each channel, from its weights and running statistics as
// they are now, with its factor kept where the plan keeps invstd; and what follows. NULL: nothing does.
static const clnet__epilogue *clnet__conv2d_epilogue(const clnet_graph *g, const clnet_node *node,
                                                     clnet__epilogue *e) {
    const clnet_node *norm = node->batch_norm;
    if (!norm || clnet__training(g)) {
        return NULL;
    }
    const float *weight = clnet__value(norm->in[1]), *var = clnet__value(norm->in[4]);
    float *factor = clnet__value(norm->saved[1]);
    for (int c = 0; c < node->out->shape[1]; c++) {
        const double scale = 1 / sqrt((double)var[c] + norm->desc.batch_norm.eps);
        factor[c] = (float)((double)weight[c] * scale);
    }
    *e = (clnet__epilogue){.mean = clnet__value(norm->in[3]),
                           .factor = factor,
                           .shift = clnet__value(norm->in[2]),
                           .summand = clnet__value(node->summand),
                           .summand_stride = node->summand ? node->summand->stride : 0,
                           .least = node->relu ? 0 : -INFINITY};
    return e;
}
#endif

// The forward pass of a node, with what follows it where the plan says so.
static void clnet__convolve_forward(clnet_graph *g, clnet_node *node, const clnet_conv2d_sizes *s) {
    clnet_real *y = clnet__value(node->out);
    const clnet_real *x = clnet__value(node->in[0]), *w = clnet__value(node->in[1]);
    const clnet_real *b = clnet__value(node->in[2]);
#ifdef CLNET__FAST
    if (!clnet__cpu_of(g)->reference) {
        clnet__epilogue e;
        clnet__conv2d_fast_forward(clnet__cpu_of(g), y, x, w, b, s,
                                   clnet__conv2d_epilogue(g, node, &e), clnet__workspace(g));
        return;
    }
#endif
    (void)g;
    clnet_ref_conv2d_forward(y, x, w, b, s);
}

// Adds to each of dx, dw and db that is not NULL.
static void clnet__convolve_back(clnet_graph *g, clnet_real *dx, clnet_real *dw, clnet_real *db,
                                 const clnet_real *dy, const clnet_real *x, const clnet_real *w,
                                 const clnet_conv2d_sizes *s, void *workspace) {
#ifdef CLNET__FAST
    const clnet__cpu *cpu = clnet__cpu_of(g);
    if (!cpu->reference) {
        if (dx) {
            clnet__conv2d_fast_backward_data(cpu, dx, dy, w, s, workspace);
        }
        if (dw) {
            clnet__conv2d_fast_backward_weight(cpu, dw, dy, x, s, workspace);
        }
        if (db) {
            clnet__conv2d_fast_backward_bias(cpu, db, dy, s);
        }
        return;
    }
#endif
    (void)g, (void)workspace;
    clnet_ref_conv2d_backward(dx, dw, db, dy, x, w, s);
}

static void clnet__convolve_backward(clnet_graph *g, clnet_node *node,
                                     const clnet_conv2d_sizes *s) {
    clnet__convolve_back(g, clnet__grad(node->in[0]), clnet__grad(node->in[1]),
                         clnet__grad(node->in[2]), clnet__grad(node->out),
                         clnet__value(node->in[0]), clnet__value(node->in[1]), s,
                         clnet__workspace(g));
}

static void clnet__conv2d_forward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)p;
    const clnet_conv2d_sizes s = clnet__conv2d_sizes(node);
    clnet__convolve_forward(g, node, &s);
}

static void clnet__conv2d_backward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)p;
    const clnet_conv2d_sizes s = clnet__conv2d_sizes(node);
    clnet__convolve_backward(g, node, &s);
}

// Fills in the defaults; NULL, or what is wrong with them.
static const char *clnet__conv2d_check(clnet_conv2d_desc *d, const clnet_tensor *x) {
    for (int i = 0; i < 2; i++) {
        d->stride[i] = clnet__or(d->stride[i], 1);
        d->dilation[i] = clnet__or(d->dilation[i], 1);
        if (d->kernel_size[i] < 1 || d->stride[i] < 1 || d->dilation[i] < 1 || d->padding[i] < 0) {
            return "kernel_size, stride and dilation must be at least 1, padding at least 0";
        }
    }
    d->groups = clnet__or(d->groups, 1);
    if (d->out_channels < 1 || d->groups < 1 || x->shape[1] % d->groups ||
        d->out_channels % d->groups) {
        return "groups must divide the channels of input and output, which must be at least 1";
    }
    return d->name ? NULL : "a layer with weights needs a name";
}

clnet_tensor *clnet_conv2d(clnet_graph *g, clnet_tensor *x, const clnet_conv2d_desc *desc) {
    if (!clnet__valid(&x, 1)) {
        return NULL;
    }
    clnet_conv2d_desc d = *desc;
    const char *wrong = clnet__conv2d_check(&d, x);
    if (wrong) {
        return clnet__refuse(x, "conv2d %s: %s", d.name ? d.name : "", wrong);
    }
    const int OH =
        clnet__window(x->shape[2], d.kernel_size[0], d.stride[0], d.padding[0], d.dilation[0]);
    const int OW =
        clnet__window(x->shape[3], d.kernel_size[1], d.stride[1], d.padding[1], d.dilation[1]);
    if (OH < 1 || OW < 1) {
        return clnet__refuse(x,
                             "conv2d %s: a kernel of %d x %d, dilation %d x %d, does not fit into "
                             "%d x %d with padding %d x %d",
                             d.name, d.kernel_size[0], d.kernel_size[1], d.dilation[0],
                             d.dilation[1], x->shape[2], x->shape[3], d.padding[0], d.padding[1]);
    }
    const int shape[4] = {d.out_channels, x->shape[1] / d.groups, d.kernel_size[0],
                          d.kernel_size[1]};
    // Kaiming normal: fan-out, gain of ReLU.
    const double std = sqrt(2.0 / ((double)shape[0] * shape[2] * shape[3]));
    clnet_tensor *in[3] = {
        x, clnet__weight(g, d.name, "weight", 4, shape, CLNET_INITIAL_NORMAL, std), NULL};
    if (!d.no_bias) {
        in[2] = clnet__weight(g, d.name, "bias", 1, shape, CLNET_INITIAL_CONSTANT, 0);
    }
    clnet_node *node = clnet__node(g, CLNET_OP_CONV2D, in, 3);
    if (!node) {
        return NULL;
    }
    d.name = NULL; // the caller's text is not kept: the output has a copy
    node->desc.conv2d = d;
    return clnet_tensor_rename(clnet__output(node, x->shape[0], d.out_channels, OH, OW),
                               desc->name);
}

// >>linear
// y[n,oc] = b[oc] + sum over ic of w[oc,ic] x[n,ic]: a convolution of maps of one pixel.

static clnet_conv2d_sizes clnet__linear_as_conv2d(const clnet_linear_sizes *s) {
    return (clnet_conv2d_sizes){.N = s->N,
                                .C = s->C,
                                .H = 1,
                                .W = 1,
                                .OC = s->OC,
                                .OH = 1,
                                .OW = 1,
                                .KH = 1,
                                .KW = 1,
                                .stride = {1, 1},
                                .dilation = {1, 1},
                                .groups = 1,
                                .x_stride = clnet__or_size(s->x_stride, (size_t)s->C),
                                .y_stride = clnet__or_size(s->y_stride, (size_t)s->OC)};
}

void clnet_ref_linear_forward(clnet_real *y, const clnet_real *x, const clnet_real *w,
                              const clnet_real *b, const clnet_linear_sizes *sizes) {
    const clnet_conv2d_sizes s = clnet__linear_as_conv2d(sizes);
    clnet_ref_conv2d_forward(y, x, w, b, &s);
}

void clnet_ref_linear_backward(clnet_real *dx, clnet_real *dw, clnet_real *db, const clnet_real *dy,
                               const clnet_real *x, const clnet_real *w,
                               const clnet_linear_sizes *sizes) {
    const clnet_conv2d_sizes s = clnet__linear_as_conv2d(sizes);
    clnet_ref_conv2d_backward(dx, dw, db, dy, x, w, &s);
}

static clnet_conv2d_sizes clnet__linear_sizes(const clnet_node *node) {
    const clnet_tensor *x = node->in[0], *y = node->out;
    const clnet_linear_sizes s = {.N = x->shape[0],
                                  .C = x->shape[1],
                                  .OC = y->shape[1],
                                  .x_stride = x->stride,
                                  .y_stride = y->stride};
    return clnet__linear_as_conv2d(&s);
}

static void clnet__linear_forward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)p;
    const clnet_conv2d_sizes s = clnet__linear_sizes(node);
    clnet__convolve_forward(g, node, &s);
}

static void clnet__linear_backward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)p;
    const clnet_conv2d_sizes s = clnet__linear_sizes(node);
    clnet__convolve_backward(g, node, &s);
}

clnet_tensor *clnet_linear(clnet_graph *g, clnet_tensor *x, const clnet_linear_desc *d) {
    if (!clnet__valid(&x, 1)) {
        return NULL;
    }
    if (clnet__pixels(x) != 1 || d->out_features < 1 || !d->name) {
        return clnet__refuse(
            x,
            "linear %s: needs a name, out_features of at least 1 (found %d) and an "
            "input of (N,C) (found %d x %d pixels)",
            d->name ? d->name : "", d->out_features, x->shape[2], x->shape[3]);
    }
    const int shape[4] = {d->out_features, x->shape[1], 1, 1};
    const double bound = 1 / sqrt((double)shape[1]); // as torch.nn.Linear
    clnet_tensor *in[3] = {
        x, clnet__weight(g, d->name, "weight", 2, shape, CLNET_INITIAL_UNIFORM, bound), NULL};
    if (!d->no_bias) {
        in[2] = clnet__weight(g, d->name, "bias", 1, shape, CLNET_INITIAL_UNIFORM, bound);
    }
    clnet_node *node = clnet__node(g, CLNET_OP_LINEAR, in, 3);
    clnet_tensor *y = node ? clnet__output(node, x->shape[0], d->out_features, 1, 1) : NULL;
    if (y) {
        y->rank = 2;
    }
    return clnet_tensor_rename(y, d->name);
}

// >>batch_norm
// training: mean = 1/M sum x, var = 1/M sum (x - mean)^2 over the M = N*H*W values of a channel,
// invstd = 1 / sqrt(var + eps), xhat = (x - mean) invstd, y = w xhat + b;
// running_mean += momentum (mean - running_mean), running_var likewise with var M / (M - 1).
// backward, per channel: db += sum dy; dw += sum dy xhat; from
//     dxhat = dy w, and mean and invstd as functions of x,
//     dx += w invstd (dy - 1/M sum dy - xhat 1/M sum (dy xhat))
// In evaluation mean and var are constants: dx += w invstd dy.
// Sums are in double, over blocks of 16 channels: one pass over memory serves a cache line.
enum { CLNET__CHANNEL_BLOCK = 16 };

static void clnet__batch_norm_statistics(double *mean, double *var, const clnet_real *x,
                                         size_t pixels, size_t stride, int count) {
    double sum[CLNET__CHANNEL_BLOCK] = {0}, squares[CLNET__CHANNEL_BLOCK] = {0};
    double rest[CLNET__CHANNEL_BLOCK] = {0};
    for (size_t p = 0; p < pixels; p++) {
        for (int c = 0; c < count; c++) {
            sum[c] += (double)(x + p * stride)[c];
        }
    }
    for (int c = 0; c < count; c++) {
        mean[c] = sum[c] / (double)pixels;
    }
    for (size_t p = 0; p < pixels; p++) {
        for (int c = 0; c < count; c++) {
            const double d = (double)(x + p * stride)[c] - mean[c];
            squares[c] += d * d;
            rest[c] += d;
        }
    }
    for (int c = 0; c < count; c++) {
        // The second term removes what the rounding of the mean left.
        var[c] = (squares[c] - rest[c] * rest[c] / (double)pixels) / (double)pixels;
        var[c] = var[c] < 0 ? 0 : var[c];
    }
}

void clnet_ref_batch_norm_again(clnet_real *y, const clnet_real *x, const clnet_real *mean,
                                const clnet_real *factor, const clnet_real *shift,
                                const clnet_sizes *s) {
    const size_t xs = clnet__or_size(s->x_stride, (size_t)s->C),
                 ys = clnet__or_size(s->y_stride, (size_t)s->C);
    for (size_t p = 0; p < clnet__volume(s->N, s->H, s->W); p++) {
        const clnet_real *xp = x + p * xs; // may be y's, where the graph says so
        clnet_real *yp = y + p * ys;
        CLNET__SIMD
        for (int c = 0; c < s->C; c++) {
            yp[c] = (xp[c] - mean[c]) * factor[c] + shift[c];
        }
    }
}

// What is saved of a channel with the mean `centre`, the batch's or the running one.
static void clnet__batch_norm_save(clnet_real *mean, clnet_real *invstd, clnet_real *factor,
                                   clnet_real *shift, double centre, double var, clnet_real w,
                                   clnet_real b, double eps) {
    const double scale = 1 / sqrt(var + eps);
    *mean = (clnet_real)centre;
    *invstd = (clnet_real)scale;
    *factor = (clnet_real)((double)w * scale);
    *shift = (clnet_real)((double)b - (centre - (double)*mean) * (double)w * scale);
}

// Moves a channel's running statistics by those of a batch of so many pixels.
static void clnet__batch_norm_run(clnet_real *running_mean, clnet_real *running_var, double mean,
                                  double var, size_t pixels, double momentum) {
    const double unbiased = var * ((double)pixels / ((double)pixels - 1));
    if (isfinite(mean) && isfinite(unbiased)) { // one bad batch must not stay
        *running_mean += (clnet_real)(momentum * (mean - (double)*running_mean));
        *running_var += (clnet_real)(momentum * (unbiased - (double)*running_var));
    }
}

void clnet_ref_batch_norm_forward(clnet_real *y, clnet_real *mean, clnet_real *invstd,
                                  clnet_real *factor, clnet_real *shift, clnet_real *running_mean,
                                  clnet_real *running_var, const clnet_real *x, const clnet_real *w,
                                  const clnet_real *b, const clnet_batch_norm_options *o,
                                  const clnet_sizes *s) {
    const size_t pixels = clnet__volume(s->N, s->H, s->W);
    const size_t xs = clnet__or_size(s->x_stride, (size_t)s->C);
    for (int c0 = 0; c0 < s->C; c0 += CLNET__CHANNEL_BLOCK) {
        const int count = clnet__min(s->C - c0, CLNET__CHANNEL_BLOCK);
        double centre[CLNET__CHANNEL_BLOCK], var[CLNET__CHANNEL_BLOCK];
        if (o->training) {
            clnet__batch_norm_statistics(centre, var, x + c0, pixels, xs, count);
        }
        for (int c = 0; c < count; c++) {
            const int i = c0 + c;
            if (o->training) {
                clnet__batch_norm_run(running_mean + i, running_var + i, centre[c], var[c], pixels,
                                      o->momentum);
            } else {
                centre[c] = (double)running_mean[i];
                var[c] = (double)running_var[i];
            }
            clnet__batch_norm_save(mean + i, invstd + i, factor + i, shift + i, centre[c], var[c],
                                   w[i], b[i], o->eps);
        }
    }
    clnet_ref_batch_norm_again(y, x, mean, factor, shift, s);
}

// From the sums of a channel over its pixels, of dy, of dy (x - mean) and of x - mean, which is what
// the rounding of mean left: adds to dw and db (NULL: not wanted), and gives the numbers of
//     dx += scale (dy - shift - (x - mean) slope)
// part: 1/M in training, 0 in evaluation.
typedef struct clnet__batch_norm_slope {
    clnet_real scale, shift, slope;
} clnet__batch_norm_slope;

static clnet__batch_norm_slope clnet__batch_norm_weights(clnet_real *dw, clnet_real *db, double sum,
                                                         double dot, double rest, clnet_real w,
                                                         clnet_real invstd, double part) {
    const double istd = (double)invstd, offset = rest * part, products = dot - offset * sum;
    if (db) {
        *db += (clnet_real)sum;
    }
    if (dw) {
        *dw += (clnet_real)(products * istd);
    }
    const double slope = products * istd * istd * part;
    return (clnet__batch_norm_slope){.scale = (clnet_real)((double)w * istd),
                                     .shift = (clnet_real)(sum * part - offset * slope),
                                     .slope = (clnet_real)slope};
}

void clnet_ref_batch_norm_backward(clnet_real *dx, clnet_real *dw, clnet_real *db,
                                   const clnet_real *dy, const clnet_real *x, const clnet_real *w,
                                   const clnet_real *mean, const clnet_real *invstd,
                                   const clnet_batch_norm_options *o, const clnet_sizes *s) {
    const size_t pixels = clnet__volume(s->N, s->H, s->W);
    const size_t xs = clnet__or_size(s->x_stride, (size_t)s->C),
                 ys = clnet__or_size(s->y_stride, (size_t)s->C);
    for (int c0 = 0; c0 < s->C; c0 += CLNET__CHANNEL_BLOCK) {
        const int count = clnet__min(s->C - c0, CLNET__CHANNEL_BLOCK);
        double sum[CLNET__CHANNEL_BLOCK] = {0}, dot[CLNET__CHANNEL_BLOCK] = {0};
        double rest[CLNET__CHANNEL_BLOCK] = {0}; // sum of x - mean: what the rounding of mean left
        for (size_t p = 0; p < pixels; p++) {
            for (int c = 0; c < count; c++) {
                const double centred = (double)(x + p * xs)[c0 + c] - (double)mean[c0 + c];
                sum[c] += (double)(dy + p * ys)[c0 + c];
                dot[c] += (double)(dy + p * ys)[c0 + c] * centred;
                rest[c] += centred;
            }
        }
        clnet__batch_norm_slope k[CLNET__CHANNEL_BLOCK];
        for (int c = 0; c < count; c++) {
            const size_t i = (size_t)(c0 + c);
            k[c] = clnet__batch_norm_weights(clnet__offset(dw, i), clnet__offset(db, i), sum[c],
                                             dot[c], rest[c], w[i], invstd[i],
                                             o->training ? 1 / (double)pixels : 0);
        }
        for (size_t p = 0; dx && p < pixels; p++) {
            const clnet_real *dyp = dy + p * ys + c0, *xp = x + p * xs + c0;
            clnet_real *dxp = dx + p * xs + c0;
            for (int c = 0; c < count; c++) {
                dxp[c] += k[c].scale * (dyp[c] - k[c].shift - (xp[c] - mean[c0 + c]) * k[c].slope);
            }
        }
    }
}

// The fast path, forward and backward: pixels are cut into blocks, which threads share, and of which
// each is read once, row by row. So batch norm is three passes over memory: the sums read x, then x
// becomes y, with what the plan has it compute besides (see clnet__plan_norms) on the way:
//     v = (x - mean) factor + shift + summand; y = v where v > 0 or v is NaN, else 0
// And backward is five: the sums read x and dy, then both become dx. There dy counts as 0 where ReLU
// gave 0, which the sign of v says again, or of y where there was a summand; its gradient is the same.
// One pass is enough for mean and variance, since its sums, of d = x - x0 and d^2 with x0 the channel's
// first number, are in double: var = (sum d^2 - (sum d)^2 / M) / M is about 2^-53 (1 + (mean - x0)^2 /
// var) of it off, less than a rounding of float while x0 is within 2^14 standard deviations of the mean.
// Blocks depend on the shape alone, and their sums are added in order: the same bits with any threads.
enum {
    CLNET__NORM_BLOCKS = 32,   // of pixels, at most ..
    CLNET__NORM_PIXELS = 64,   // .. and of so many at least, but for the last
    CLNET__NORM_CHANNELS = 512 // of a task at most: its sums stay in L1
};

typedef struct clnet__norm {
    size_t pixels, block, blocks, channels;
    size_t x_stride, y_stride, summand_stride;
    const clnet_real *x, *mean, *factor, *shift, *summand;
    const clnet_real *dy;
    clnet_real *y, *dx, *dsummand;
    bool relu;
    double *sums;     // [block][which][channel]
    clnet_real *line; // of backward: [scale, shift, slope][channel]
} clnet__norm;

enum { CLNET__NORM_SUMS = 3 };

static clnet__norm clnet__norm_of(const clnet_graph *g, const clnet_node *node) {
    const clnet_tensor *x = node->in[0], *summand = node->summand, *line = node->saved[2];
    const size_t pixels = (size_t)x->shape[0] * clnet__pixels(x);
    const size_t most = (pixels + CLNET__NORM_BLOCKS - 1) / CLNET__NORM_BLOCKS;
    clnet__norm n = {.pixels = pixels,
                     .block = most > CLNET__NORM_PIXELS ? most : CLNET__NORM_PIXELS,
                     .channels = (size_t)x->shape[1],
                     .x_stride = x->stride,
                     .y_stride = node->out->stride,
                     .summand_stride = summand ? summand->stride : 0,
                     .relu = node->relu};
    n.blocks = (pixels + n.block - 1) / n.block;
    if (g) {
        n.x = clnet__value(x);
        n.y = clnet__value(node->out);
        n.mean = clnet__value(node->saved[0]);
        n.factor = clnet__value(line);
        n.shift = clnet__value(line) + clnet__at(line, 1, 0);
        n.summand = clnet__value(summand);
        n.sums = clnet__workspace(g);
        n.line = (clnet_real *)(void *)(n.sums + n.blocks * CLNET__NORM_SUMS * n.channels);
    }
    return n;
}

static size_t clnet__norm_workspace(const clnet_node *node) {
    const clnet__norm n = clnet__norm_of(NULL, node);
    return n.channels * CLNET__NORM_SUMS * (n.blocks * sizeof(double) + sizeof(clnet_real));
}

// A task: some rows of some channels.
typedef struct clnet__norm_part {
    size_t block, first, end, c, count; // pixels [first, end), channels [c, c + count)
} clnet__norm_part;

static size_t clnet__norm_tasks(const clnet__norm *n) {
    return n->blocks * ((n->channels + CLNET__NORM_CHANNELS - 1) / CLNET__NORM_CHANNELS);
}

static clnet__norm_part clnet__norm_part_at(const clnet__norm *n, size_t index) {
    clnet__norm_part p = {.block = index % n->blocks};
    p.first = p.block * n->block;
    p.end = n->pixels - p.first < n->block ? n->pixels : p.first + n->block;
    p.c = index / n->blocks * CLNET__NORM_CHANNELS;
    p.count = n->channels - p.c < CLNET__NORM_CHANNELS ? n->channels - p.c : CLNET__NORM_CHANNELS;
    return p;
}

static double *clnet__norm_sum(const clnet__norm *n, size_t block, size_t which, size_t c) {
    return n->sums + (block * CLNET__NORM_SUMS + which) * n->channels + c;
}

// Adds the sums of all blocks to the first one's.
static void clnet__norm_add_blocks(const clnet__norm *n) {
    const size_t count = CLNET__NORM_SUMS * n->channels;
    for (size_t block = 1; block < n->blocks; block++) {
        const double *from = n->sums + block * count;
        CLNET__SIMD
        for (size_t i = 0; i < count; i++) {
            n->sums[i] += from[i];
        }
    }
}

static void clnet__norm_moments_task(void *arg, size_t index, int worker) {
    const clnet__norm *n = arg;
    const clnet__norm_part p = clnet__norm_part_at(n, index);
    double sum[CLNET__NORM_CHANNELS] = {0}, squares[CLNET__NORM_CHANNELS] = {0};
    const clnet_real *centre = n->x + p.c; // the first pixel
    (void)worker;
    for (size_t i = p.first; i < p.end; i++) {
        const clnet_real *x = n->x + i * n->x_stride + p.c;
        CLNET__SIMD
        for (size_t c = 0; c < p.count; c++) {
            const double d = (double)x[c] - (double)centre[c];
            sum[c] += d;
            squares[c] += d * d;
        }
    }
    memcpy(clnet__norm_sum(n, p.block, 0, p.c), sum, p.count * sizeof(double));
    memcpy(clnet__norm_sum(n, p.block, 1, p.c), squares, p.count * sizeof(double));
}

static void clnet__norm_apply_task(void *arg, size_t index, int worker) {
    const clnet__norm *n = arg;
    const clnet__norm_part p = clnet__norm_part_at(n, index);
    const clnet_real *mean = n->mean + p.c, *factor = n->factor + p.c, *shift = n->shift + p.c;
    (void)worker;
    for (size_t i = p.first; i < p.end; i++) {
        const clnet_real *x = n->x + i * n->x_stride + p.c;
        const clnet_real *summand = n->summand ? n->summand + i * n->summand_stride + p.c : NULL;
        clnet_real *y = n->y + i * n->y_stride + p.c;
        CLNET__SIMD
        for (size_t c = 0; c < p.count; c++) {
            y[c] = (x[c] - mean[c]) * factor[c] + shift[c];
        }
        if (summand) {
            CLNET__SIMD
            for (size_t c = 0; c < p.count; c++) {
                y[c] += summand[c];
            }
        }
        if (n->relu) {
            CLNET__SIMD
            for (size_t c = 0; c < p.count; c++) {
                y[c] = y[c] <= 0 ? 0 : y[c];
            }
        }
    }
}

// dy of pixel i as it is before ReLU: in `masked`, or dy itself where there is none.
static const clnet_real *clnet__norm_gradient(const clnet__norm *n, const clnet__norm_part *p,
                                              size_t i, clnet_real *masked) {
    const clnet_real *mean = n->mean + p->c, *factor = n->factor + p->c, *shift = n->shift + p->c;
    const clnet_real *x = n->x + i * n->x_stride + p->c, *dy = n->dy + i * n->y_stride + p->c;
    const clnet_real *y = n->y + i * n->y_stride + p->c;
    if (n->relu && n->summand) {
        CLNET__SIMD
        for (size_t c = 0; c < p->count; c++) {
            const clnet_real slope = dy[c]; // read in any case, or compilers branch
            masked[c] = y[c] <= 0 ? 0 : slope;
        }
    } else if (n->relu) {
        CLNET__SIMD
        for (size_t c = 0; c < p->count; c++) {
            const clnet_real slope = dy[c];
            masked[c] = (x[c] - mean[c]) * factor[c] + shift[c] <= 0 ? 0 : slope;
        }
    }
    return n->relu ? masked : dy;
}

static void clnet__norm_sums_task(void *arg, size_t index, int worker) {
    const clnet__norm *n = arg;
    const clnet__norm_part p = clnet__norm_part_at(n, index);
    double sum[CLNET__NORM_CHANNELS] = {0}, dot[CLNET__NORM_CHANNELS] = {0};
    double rest[CLNET__NORM_CHANNELS] = {0};
    clnet_real masked[CLNET__NORM_CHANNELS];
    const clnet_real *mean = n->mean + p.c;
    (void)worker;
    for (size_t i = p.first; i < p.end; i++) {
        const clnet_real *x = n->x + i * n->x_stride + p.c;
        const clnet_real *dy = clnet__norm_gradient(n, &p, i, masked);
        CLNET__SIMD
        for (size_t c = 0; c < p.count; c++) {
            const double centred = (double)x[c] - (double)mean[c];
            sum[c] += (double)dy[c];
            dot[c] += (double)dy[c] * centred;
            rest[c] += centred;
        }
    }
    memcpy(clnet__norm_sum(n, p.block, 0, p.c), sum, p.count * sizeof(double));
    memcpy(clnet__norm_sum(n, p.block, 1, p.c), dot, p.count * sizeof(double));
    memcpy(clnet__norm_sum(n, p.block, 2, p.c), rest, p.count * sizeof(double));
}

static void clnet__norm_data_task(void *arg, size_t index, int worker) {
    const clnet__norm *n = arg;
    const clnet__norm_part p = clnet__norm_part_at(n, index);
    clnet_real masked[CLNET__NORM_CHANNELS];
    const clnet_real *mean = n->mean + p.c, *scale = n->line + p.c;
    const clnet_real *shift = scale + n->channels, *slope = shift + n->channels;
    (void)worker;
    for (size_t i = p.first; i < p.end; i++) {
        const clnet_real *dy = clnet__norm_gradient(n, &p, i, masked);
        const clnet_real *x = n->x + i * n->x_stride + p.c;
        if (n->dsummand) {
            clnet_real *to = n->dsummand + i * n->summand_stride + p.c;
            CLNET__SIMD
            for (size_t c = 0; c < p.count; c++) {
                to[c] += dy[c];
            }
        }
        if (n->dx) {
            clnet_real *dx = n->dx + i * n->x_stride + p.c;
            CLNET__SIMD
            for (size_t c = 0; c < p.count; c++) {
                dx[c] += scale[c] * (dy[c] - shift[c] - (x[c] - mean[c]) * slope[c]);
            }
        }
    }
}

// Mean and variance of the batch, or what runs, and what is saved of them.
static void clnet__norm_statistics(const clnet__norm *n, const clnet_node *node,
                                   const clnet_batch_norm_options *o) {
    const clnet_real *w = clnet__value(node->in[1]), *b = clnet__value(node->in[2]);
    clnet_real *running_mean = clnet__value(node->in[3]), *running_var = clnet__value(node->in[4]);
    clnet_real *mean = clnet__value(node->saved[0]), *invstd = clnet__value(node->saved[1]);
    clnet_real *factor = clnet__value(node->saved[2]);
    clnet_real *shift = factor + clnet__at(node->saved[2], 1, 0);
    const double M = (double)n->pixels, *sums = n->sums, *squares = sums + n->channels;
    for (size_t c = 0; c < n->channels; c++) {
        double centre = (double)running_mean[c], var = (double)running_var[c];
        if (o->training) {
            centre = (double)n->x[c] + sums[c] / M;
            var = (squares[c] - sums[c] * sums[c] / M) / M;
            var = var < 0 ? 0 : var;
            clnet__batch_norm_run(running_mean + c, running_var + c, centre, var, n->pixels,
                                  o->momentum);
        }
        clnet__batch_norm_save(mean + c, invstd + c, factor + c, shift + c, centre, var, w[c], b[c],
                               o->eps);
    }
}

static clnet_batch_norm_options clnet__batch_norm_options(const clnet_graph *g,
                                                          const clnet_node *node) {
    return (clnet_batch_norm_options){.eps = node->desc.batch_norm.eps,
                                      .momentum = node->desc.batch_norm.momentum,
                                      .training = clnet__training(g)};
}

// in: x, weight, bias, running_mean, running_var; saved: mean, invstd, factor and shift.
static void clnet__batch_norm_forward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    const clnet_batch_norm_options o = clnet__batch_norm_options(g, node);
    const clnet__cpu *cpu = clnet__cpu_of(g);
    clnet__norm n = clnet__norm_of(g, node);
    if (cpu->reference && !clnet__again(g)) {
        const clnet_sizes s = clnet__sizes(node, p);
        clnet_real *line = clnet__value(node->saved[2]);
        clnet_ref_batch_norm_forward(n.y, clnet__value(node->saved[0]),
                                     clnet__value(node->saved[1]), line, line + n.channels,
                                     clnet__value(node->in[3]), clnet__value(node->in[4]), n.x,
                                     clnet__value(node->in[1]), clnet__value(node->in[2]), &o, &s);
        return;
    }
    if (o.training && !clnet__again(g)) {
        clnet__parallel(cpu, clnet__norm_tasks(&n), clnet__norm_moments_task, &n);
        clnet__norm_add_blocks(&n);
    }
    if (!clnet__again(g)) {
        clnet__norm_statistics(&n, node, &o);
    }
    clnet__parallel(cpu, clnet__norm_tasks(&n), clnet__norm_apply_task, &n);
}

static void clnet__batch_norm_backward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    const clnet_batch_norm_options o = clnet__batch_norm_options(g, node);
    const clnet__cpu *cpu = clnet__cpu_of(g);
    const clnet_real *w = clnet__value(node->in[1]), *invstd = clnet__value(node->saved[1]);
    clnet_real *dw = clnet__grad(node->in[1]), *db = clnet__grad(node->in[2]);
    clnet__norm n = clnet__norm_of(g, node);
    n.dy = clnet__grad(node->out);
    n.dx = clnet__grad(node->in[0]);
    n.dsummand = clnet__grad(node->summand);
    if (cpu->reference) {
        const clnet_sizes s = clnet__sizes(node, p);
        clnet_ref_batch_norm_backward(n.dx, dw, db, n.dy, n.x, w, n.mean, invstd, &o, &s);
        return;
    }
    clnet__parallel(cpu, clnet__norm_tasks(&n), clnet__norm_sums_task, &n);
    clnet__norm_add_blocks(&n);
    for (size_t c = 0, C = n.channels; c < C; c++) {
        const clnet__batch_norm_slope k = clnet__batch_norm_weights(
            clnet__offset(dw, c), clnet__offset(db, c), n.sums[c], n.sums[C + c], n.sums[2 * C + c],
            w[c], invstd[c], o.training ? 1 / (double)n.pixels : 0);
        n.line[c] = k.scale;
        n.line[C + c] = k.shift;
        n.line[2 * C + c] = k.slope;
    }
    if (n.dx || n.dsummand) {
        clnet__parallel(cpu, clnet__norm_tasks(&n), clnet__norm_data_task, &n);
    }
}

clnet_tensor *clnet_batch_norm(clnet_graph *g, clnet_tensor *x, const clnet_batch_norm_desc *d) {
    if (!clnet__valid(&x, 1)) {
        return NULL;
    }
    if (!d->name || !(d->eps >= 0) || !(d->momentum >= 0 && d->momentum <= 1)) {
        return clnet__refuse(x, "batch_norm %s: needs a name, eps >= 0 and momentum in 0..1",
                             d->name ? d->name : "");
    }
    const int C = x->shape[1], shape[4] = {C, 1, 1, 1};
    const clnet_initial constant = CLNET_INITIAL_CONSTANT;
    clnet_tensor *in[5] = {
        x, clnet__weight(g, d->name, "weight", 1, shape, constant, 1),
        clnet__weight(g, d->name, "bias", 1, shape, constant, 0),
        clnet__buffer(clnet__weight(g, d->name, "running_mean", 1, shape, constant, 0)),
        clnet__buffer(clnet__weight(g, d->name, "running_var", 1, shape, constant, 1))};
    clnet_node *node = clnet__node(g, CLNET_OP_BATCH_NORM, in, 5);
    if (!node || !clnet__saved(node, 0, 1, C, 1, 1, false) ||
        !clnet__saved(node, 1, 1, C, 1, 1, false) || !clnet__saved(node, 2, 2, C, 1, 1, false)) {
        return NULL;
    }
    node->desc.batch_norm = (clnet_batch_norm_desc){.eps = clnet__or_double(d->eps, 1e-5),
                                                    .momentum = clnet__or_double(d->momentum, 0.1)};
    return clnet_tensor_rename(clnet__output(node, x->shape[0], C, x->shape[2], x->shape[3]),
                               d->name);
}

// >>relu
// y = x where x > 0 or x is NaN, else 0. backward: dx += dy where y is not 0. In place (the graph's
// choice) y is x and dx is dy, so that dx = dy where y is not 0.

void clnet_ref_relu_forward(clnet_real *y, const clnet_real *x, const clnet_sizes *s) {
    const size_t xs = clnet__or_size(s->x_stride, (size_t)s->C),
                 ys = clnet__or_size(s->y_stride, (size_t)s->C);
    for (size_t p = 0; p < clnet__volume(s->N, s->H, s->W); p++) {
        for (int c = 0; c < s->C; c++) {
            const clnet_real v = (x + p * xs)[c];
            (y + p * ys)[c] = v <= 0 ? 0 : v;
        }
    }
}

void clnet_ref_relu_backward(clnet_real *dx, const clnet_real *dy, const clnet_real *y,
                             const clnet_sizes *s) {
    const size_t xs = clnet__or_size(s->x_stride, (size_t)s->C),
                 ys = clnet__or_size(s->y_stride, (size_t)s->C);
    const bool in_place = dx == dy;
    for (size_t p = 0; p < clnet__volume(s->N, s->H, s->W); p++) {
        clnet_real *dxp = dx + p * xs;
        const clnet_real *dyp = dy + p * ys, *yp = y + p * ys;
        if (in_place) {
            for (int c = 0; c < s->C; c++) {
                dxp[c] = yp[c] <= 0 ? 0 : dxp[c];
            }
        } else {
            for (int c = 0; c < s->C; c++) {
                const clnet_real d = dyp[c]; // read in any case: a condition costs the vectors
                dxp[c] += yp[c] <= 0 ? 0 : d;
            }
        }
    }
}

static void clnet__relu_forward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g;
    const clnet_sizes s = clnet__row_sizes(node, p);
    clnet_ref_relu_forward(clnet__value(node->out) + clnet__at_row(node->out, p->r0),
                           clnet__value(node->in[0]) + clnet__at_row(node->in[0], p->r0), &s);
}

static void clnet__relu_backward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g;
    const clnet_sizes s = clnet__row_sizes(node, p);
    const size_t at = clnet__at_row(node->out, p->r0);
    clnet_ref_relu_backward(clnet__grad(node->in[0]) + clnet__at_row(node->in[0], p->r0),
                            clnet__grad(node->out) + at, clnet__value(node->out) + at, &s);
}

// The builder of every operation that has one input, keeps its shape and has no settings.
static clnet_tensor *clnet__unary(clnet_graph *g, clnet_op op, clnet_tensor *x) {
    clnet_node *node = clnet__valid(&x, 1) ? clnet__node(g, op, &x, 1) : NULL;
    clnet_tensor *y =
        node ? clnet__output(node, x->shape[0], x->shape[1], x->shape[2], x->shape[3]) : NULL;
    if (y) {
        y->rank = x->rank;
    }
    return y;
}

clnet_tensor *clnet_relu(clnet_graph *g, clnet_tensor *x) {
    return clnet__unary(g, CLNET_OP_RELU, x);
}

// >>sigmoid
// y = 1 / (1 + exp(-x)); backward: dx += dy y (1 - y).

static double clnet__sigmoid(double x) {
    return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x));
}

void clnet_ref_sigmoid_forward(clnet_real *y, const clnet_real *x, const clnet_sizes *s) {
    const size_t xs = clnet__or_size(s->x_stride, (size_t)s->C),
                 ys = clnet__or_size(s->y_stride, (size_t)s->C);
    for (size_t p = 0; p < clnet__volume(s->N, s->H, s->W); p++) {
        for (int c = 0; c < s->C; c++) {
            (y + p * ys)[c] = (clnet_real)clnet__sigmoid((double)(x + p * xs)[c]);
        }
    }
}

void clnet_ref_sigmoid_backward(clnet_real *dx, const clnet_real *dy, const clnet_real *y,
                                const clnet_sizes *s) {
    const size_t xs = clnet__or_size(s->x_stride, (size_t)s->C),
                 ys = clnet__or_size(s->y_stride, (size_t)s->C);
    for (size_t p = 0; p < clnet__volume(s->N, s->H, s->W); p++) {
        for (int c = 0; c < s->C; c++) {
            (dx + p * xs)[c] += (dy + p * ys)[c] * (y + p * ys)[c] * (1 - (y + p * ys)[c]);
        }
    }
}

static void clnet__sigmoid_forward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g;
    const clnet_sizes s = clnet__row_sizes(node, p);
    clnet_ref_sigmoid_forward(clnet__value(node->out) + clnet__at_row(node->out, p->r0),
                              clnet__value(node->in[0]) + clnet__at_row(node->in[0], p->r0), &s);
}

static void clnet__sigmoid_backward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g;
    const clnet_sizes s = clnet__row_sizes(node, p);
    const size_t at = clnet__at_row(node->out, p->r0);
    clnet_ref_sigmoid_backward(clnet__grad(node->in[0]) + clnet__at_row(node->in[0], p->r0),
                               clnet__grad(node->out) + at, clnet__value(node->out) + at, &s);
}

clnet_tensor *clnet_sigmoid(clnet_graph *g, clnet_tensor *x) {
    return clnet__unary(g, CLNET_OP_SIGMOID, x);
}

// >>softmax
// y = exp(x - max) / sum of exp(x - max) along the axis; backward: dx += y (dy - sum(dy y)).

// One line of values along the axis: `count` of them, `step` apart, in x and in y.
typedef struct clnet__line {
    size_t x, y, x_step, y_step, count;
} clnet__line;

// Line number `index` of image n: for axis 1 one per pixel, else one per channel and row or column.
static clnet__line clnet__softmax_line(const clnet_sizes *s, int axis, int n, size_t index) {
    const size_t xs = clnet__or_size(s->x_stride, (size_t)s->C),
                 ys = clnet__or_size(s->y_stride, (size_t)s->C);
    const size_t image = clnet__volume(n, s->H, s->W);
    if (axis == 1) {
        return (clnet__line){(image + index) * xs, (image + index) * ys, 1, 1, (size_t)s->C};
    }
    const size_t c = index % (size_t)s->C, other = index / (size_t)s->C;
    const size_t pixel = image + (axis == 2 ? other : other * (size_t)s->W);
    const size_t step = axis == 2 ? (size_t)s->W : 1;
    return (clnet__line){pixel * xs + c, pixel * ys + c, step * xs, step * ys,
                         (size_t)(axis == 2 ? s->H : s->W)};
}

static size_t clnet__softmax_lines(const clnet_sizes *s, int axis) {
    return axis == 1 ? clnet__volume(1, s->H, s->W)
                     : clnet__volume(1, s->C, axis == 2 ? s->W : s->H);
}

void clnet_ref_softmax_forward(clnet_real *y, const clnet_real *x, int axis, const clnet_sizes *s) {
    for (int n = 0; n < s->N; n++) {
        for (size_t i = 0; i < clnet__softmax_lines(s, axis); i++) {
            const clnet__line l = clnet__softmax_line(s, axis, n, i);
            double max = (double)x[l.x], sum = 0;
            for (size_t k = 1; k < l.count; k++) {
                const double v = (double)x[l.x + k * l.x_step];
                max = v > max ? v : max;
            }
            for (size_t k = 0; k < l.count; k++) {
                sum += exp((double)x[l.x + k * l.x_step] - max);
            }
            for (size_t k = 0; k < l.count; k++) {
                y[l.y + k * l.y_step] =
                    (clnet_real)(exp((double)x[l.x + k * l.x_step] - max) / sum);
            }
        }
    }
}

void clnet_ref_softmax_backward(clnet_real *dx, const clnet_real *dy, const clnet_real *y, int axis,
                                const clnet_sizes *s) {
    for (int n = 0; n < s->N; n++) {
        for (size_t i = 0; i < clnet__softmax_lines(s, axis); i++) {
            const clnet__line l = clnet__softmax_line(s, axis, n, i);
            double dot = 0;
            for (size_t k = 0; k < l.count; k++) {
                dot += (double)dy[l.y + k * l.y_step] * (double)y[l.y + k * l.y_step];
            }
            for (size_t k = 0; k < l.count; k++) {
                const size_t at = l.y + k * l.y_step;
                dx[l.x + k * l.x_step] += (clnet_real)((double)y[at] * ((double)dy[at] - dot));
            }
        }
    }
}

static void clnet__softmax_forward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g;
    const clnet_sizes s = clnet__sizes(node, p);
    clnet_ref_softmax_forward(clnet__value(node->out) + clnet__at(node->out, p->n0, 0),
                              clnet__value(node->in[0]) + clnet__at(node->in[0], p->n0, 0),
                              node->desc.axis, &s);
}

static void clnet__softmax_backward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g;
    const clnet_sizes s = clnet__sizes(node, p);
    const size_t at = clnet__at(node->out, p->n0, 0);
    clnet_ref_softmax_backward(clnet__grad(node->in[0]) + clnet__at(node->in[0], p->n0, 0),
                               clnet__grad(node->out) + at, clnet__value(node->out) + at,
                               node->desc.axis, &s);
}

clnet_tensor *clnet_softmax(clnet_graph *g, clnet_tensor *x, int axis) {
    if (!clnet__valid(&x, 1)) {
        return NULL;
    }
    if (axis < 1 || axis > 3) {
        return clnet__refuse(x, "softmax: axis must be 1, 2 or 3, found %d", axis);
    }
    clnet_tensor *y = clnet__unary(g, CLNET_OP_SOFTMAX, x);
    if (y) {
        y->producer->desc.axis = axis;
    }
    return y;
}

// >>max_pool2d
// y[n,c,oh,ow] = max over kh,kw of x[n,c, oh*stride - padding + kh*dilation, ..], inside x only.
// A value replaces the maximum when it is strictly greater or NaN, so that ties go to the first in
// row-major order, as in PyTorch. saved: argmax, ih*W + iw. backward: dx[argmax] += dy. Without a
// backward nobody wants the argmax.

static clnet_pool2d_sizes clnet__pool2d_defaults(const clnet_pool2d_sizes *sizes) {
    clnet_pool2d_sizes s = *sizes;
    const int kernel[2] = {s.KH, s.KW};
    for (int i = 0; i < 2; i++) {
        s.stride[i] = clnet__or(s.stride[i], kernel[i]);
        s.dilation[i] = clnet__or(s.dilation[i], 1);
    }
    s.x_stride = clnet__or_size(s.x_stride, (size_t)s.C);
    s.y_stride = clnet__or_size(s.y_stride, (size_t)s.C);
    return s;
}

// The window of one output along one axis: inputs first, first + step, .. below last.
typedef struct clnet__span {
    int first, last, step;
} clnet__span;

static clnet__span clnet__pool2d_span(const clnet_pool2d_sizes *s, int axis, int o) {
    const int size = axis ? s->W : s->H, kernel = axis ? s->KW : s->KH, step = s->dilation[axis];
    const int start = o * s->stride[axis] - s->padding[axis];
    const int skipped = start < 0 ? (-start + step - 1) / step : 0;
    return (clnet__span){start + skipped * step, clnet__min(size, start + (kernel - 1) * step + 1),
                         step};
}

// One input pixel of a window that began with another one; argmax NULL: not wanted.
static void clnet__max_pool2d_pixel(clnet_real *CLNET__RESTRICT y, int32_t *CLNET__RESTRICT argmax,
                                    const clnet_real *CLNET__RESTRICT x, int32_t at, int channels) {
    for (int c = 0; c < channels && argmax; c++) {
        argmax[c] = ((x[c] > y[c]) | (x[c] != x[c])) ? at : argmax[c];
    }
    for (int c = 0; c < channels; c++) {
        y[c] = ((x[c] > y[c]) | (x[c] != x[c])) ? x[c] : y[c];
    }
}

// Pixels [first, last) of y.
static void clnet__max_pool2d_pixels(clnet_real *y, int32_t *argmax, const clnet_real *x,
                                     const clnet_pool2d_sizes *sizes, size_t first, size_t last) {
    const clnet_pool2d_sizes s = clnet__pool2d_defaults(sizes);
    for (size_t pixel = first; pixel < last; pixel++) {
        const clnet__span h = clnet__pool2d_span(&s, 0, clnet__mod(pixel / (size_t)s.OW, s.OH));
        const clnet__span w = clnet__pool2d_span(&s, 1, clnet__mod(pixel, s.OW));
        const clnet_real *image =
            x + pixel / (size_t)s.OW / (size_t)s.OH * clnet__volume(1, s.H, s.W) * s.x_stride;
        if (h.first >= h.last || w.first >= w.last) {
            continue; // dilated beyond x on both sides
        }
        clnet_real *yp = y + pixel * s.y_stride;
        int32_t *best = argmax ? argmax + pixel * s.y_stride : NULL;
        const int32_t start = h.first * s.W + w.first;
        memcpy(yp, image + (size_t)start * s.x_stride, (size_t)s.C * sizeof *yp);
        for (int c = 0; c < s.C && best; c++) {
            best[c] = start;
        }
        for (int ih = h.first; ih < h.last; ih += h.step) {
            for (int iw = w.first; iw < w.last; iw += w.step) {
                const int32_t at = ih * s.W + iw;
                clnet__max_pool2d_pixel(yp, best, image + (size_t)at * s.x_stride, at, s.C);
            }
        }
    }
}

void clnet_ref_max_pool2d_forward(clnet_real *y, int32_t *argmax, const clnet_real *x,
                                  const clnet_pool2d_sizes *s) {
    clnet__max_pool2d_pixels(y, argmax, x, s, 0, clnet__volume(s->N, s->OH, s->OW));
}

// From pixels [first, last) of dy.
static void clnet__max_pool2d_scatter(clnet_real *dx, const clnet_real *dy, const int32_t *argmax,
                                      const clnet_pool2d_sizes *sizes, size_t first, size_t last) {
    const clnet_pool2d_sizes s = clnet__pool2d_defaults(sizes);
    for (size_t pixel = first; pixel < last; pixel++) {
        clnet_real *image =
            dx + pixel / (size_t)s.OW / (size_t)s.OH * clnet__volume(1, s.H, s.W) * s.x_stride;
        for (int c = 0; c < s.C; c++) {
            const size_t winner = (size_t)(argmax + pixel * s.y_stride)[c];
            (image + winner * s.x_stride)[c] += (dy + pixel * s.y_stride)[c];
        }
    }
}

void clnet_ref_max_pool2d_backward(clnet_real *dx, const clnet_real *dy, const int32_t *argmax,
                                   const clnet_pool2d_sizes *s) {
    clnet__max_pool2d_scatter(dx, dy, argmax, s, 0, clnet__volume(s->N, s->OH, s->OW));
}

// The sizes of the piece of a pooling node.
static clnet_pool2d_sizes clnet__pool2d_sizes(const clnet_node *node, const clnet__piece *p) {
    const clnet_tensor *x = node->in[0], *y = node->out;
    const clnet_pool2d_desc *d = &node->desc.pool2d;
    return (clnet_pool2d_sizes){.N = p->n1 - p->n0,
                                .C = p->c1 - p->c0,
                                .H = x->shape[2],
                                .W = x->shape[3],
                                .OH = y->shape[2],
                                .OW = y->shape[3],
                                .KH = d->kernel_size[0],
                                .KW = d->kernel_size[1],
                                .stride = {d->stride[0], d->stride[1]},
                                .padding = {d->padding[0], d->padding[1]},
                                .dilation = {d->dilation[0], d->dilation[1]},
                                .count_exclude_pad = d->count_exclude_pad,
                                .x_stride = x->stride,
                                .y_stride = y->stride};
}

static void clnet__max_pool2d_forward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g;
    const clnet_pool2d_sizes s = clnet__pool2d_sizes(node, p);
    clnet__max_pool2d_pixels(
        clnet__value(node->out), node->backward ? clnet__integers(node->saved[0]) : NULL,
        clnet__value(node->in[0]), &s, p->r0 * (size_t)s.OW, p->r1 * (size_t)s.OW);
}

static void clnet__max_pool2d_back_channels(clnet_graph *g, clnet_node *node,
                                            const clnet__piece *p) {
    (void)g;
    const clnet_pool2d_sizes s = clnet__pool2d_sizes(node, p);
    const size_t at = clnet__at(node->out, p->n0, p->c0);
    clnet_ref_max_pool2d_backward(clnet__grad(node->in[0]) + clnet__at(node->in[0], p->n0, p->c0),
                                  clnet__grad(node->out) + at, clnet__integers(node->saved[0]) + at,
                                  &s);
}

static void clnet__max_pool2d_back_rows(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g;
    const clnet_pool2d_sizes s = clnet__pool2d_sizes(node, p);
    clnet__max_pool2d_scatter(clnet__grad(node->in[0]), clnet__grad(node->out),
                              clnet__integers(node->saved[0]), &s, p->r0 * (size_t)s.OW,
                              p->r1 * (size_t)s.OW);
}

// Rows of dy add to the same rows of dx where windows overlap: then each thread takes channels.
static void clnet__max_pool2d_backward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)p;
    const clnet_pool2d_desc *d = &node->desc.pool2d;
    if (d->dilation[0] * (d->kernel_size[0] - 1) < d->stride[0]) {
        clnet__in_pieces(g, node, clnet__max_pool2d_back_rows, CLNET__CUT_ROWS, node->out);
    } else {
        clnet__in_pieces(g, node, clnet__max_pool2d_back_channels, CLNET__CUT_CHANNELS, node->out);
    }
}

// Checks a pooling desc, fills in the defaults and appends the node with its output.
static clnet_node *clnet__pool2d(clnet_graph *g, clnet_op op, const char *name, clnet_tensor *x,
                                 const clnet_pool2d_desc *desc) {
    if (!clnet__valid(&x, 1)) {
        return NULL;
    }
    clnet_pool2d_desc d = *desc;
    int out[2];
    for (int i = 0; i < 2; i++) {
        d.stride[i] = clnet__or(d.stride[i], d.kernel_size[i]);
        d.dilation[i] = clnet__or(d.dilation[i], 1);
        if (d.kernel_size[i] < 1 || d.stride[i] < 1 || d.dilation[i] < 1 || d.padding[i] < 0 ||
            d.padding[i] > d.kernel_size[i] / 2 ||
            (op == CLNET_OP_AVG_POOL2D && d.dilation[i] > 1)) {
            clnet__refuse(x,
                          "%s: kernel_size and stride must be at least 1, padding at most half of "
                          "kernel_size, dilation is for max_pool2d",
                          name);
            return NULL;
        }
        out[i] = clnet__window(x->shape[2 + i], d.kernel_size[i], d.stride[i], d.padding[i],
                               d.dilation[i]);
    }
    if (out[0] < 1 || out[1] < 1) {
        clnet__refuse(x, "%s: a window of %d x %d does not fit into %d x %d", name,
                      d.kernel_size[0], d.kernel_size[1], x->shape[2], x->shape[3]);
        return NULL;
    }
    clnet_node *node = clnet__node(g, op, &x, 1);
    if (!node || !clnet__output(node, x->shape[0], x->shape[1], out[0], out[1])) {
        return NULL;
    }
    node->desc.pool2d = d;
    return node;
}

clnet_tensor *clnet_max_pool2d(clnet_graph *g, clnet_tensor *x, const clnet_pool2d_desc *d) {
    clnet_node *node = clnet__pool2d(g, CLNET_OP_MAX_POOL2D, "max_pool2d", x, d);
    const int *shape = node ? node->out->shape : NULL;
    return node && clnet__saved(node, 0, shape[0], shape[1], shape[2], shape[3], true) ? node->out
                                                                                       : NULL;
}

// >>avg_pool2d
// y = sum over the window inside x, divided by the window's size: of the whole window, or with
// count_exclude_pad of the part inside x. A window that would reach beyond the padding on the far
// side counts up to the padding's end, as in PyTorch. backward: dx += dy / size, gathered over the
// windows that hold the pixel.

static int clnet__avg_pool2d_size(const clnet_pool2d_sizes *s, int axis, int o,
                                  const clnet__span *span) {
    const int size = axis ? s->W : s->H, kernel = axis ? s->KW : s->KH;
    const int start = o * s->stride[axis] - s->padding[axis];
    return s->count_exclude_pad ? span->last - span->first
                                : clnet__min(start + kernel, size + s->padding[axis]) - start;
}

void clnet_ref_avg_pool2d_forward(clnet_real *y, const clnet_real *x,
                                  const clnet_pool2d_sizes *sizes) {
    const clnet_pool2d_sizes s = clnet__pool2d_defaults(sizes);
    for (size_t pixel = 0; pixel < clnet__volume(s.N, s.OH, s.OW); pixel++) {
        const int oh = clnet__mod(pixel / (size_t)s.OW, s.OH), ow = clnet__mod(pixel, s.OW);
        const clnet__span h = clnet__pool2d_span(&s, 0, oh), w = clnet__pool2d_span(&s, 1, ow);
        const double size = (double)clnet__avg_pool2d_size(&s, 0, oh, &h) *
                            (double)clnet__avg_pool2d_size(&s, 1, ow, &w);
        const clnet_real *image =
            x + pixel / (size_t)s.OW / (size_t)s.OH * clnet__volume(1, s.H, s.W) * s.x_stride;
        for (int c = 0; c < s.C; c++) {
            double sum = 0;
            for (int ih = h.first; ih < h.last; ih++) {
                for (int iw = w.first; iw < w.last; iw++) {
                    sum += (double)(image + clnet__row(0, ih, iw, s.H, s.W) * s.x_stride)[c];
                }
            }
            (y + pixel * s.y_stride)[c] = (clnet_real)(sum / size);
        }
    }
}

// The outputs whose windows hold input i: from first to before last.
static clnet__span clnet__pool2d_readers(const clnet_pool2d_sizes *s, int axis, int i) {
    const int kernel = axis ? s->KW : s->KH, outputs = axis ? s->OW : s->OH;
    const int end = i + s->padding[axis], stride = s->stride[axis];
    const int first = end < kernel ? 0 : (end - kernel) / stride + 1;
    return (clnet__span){first, clnet__min(outputs, end / stride + 1), 1};
}

void clnet_ref_avg_pool2d_backward(clnet_real *dx, const clnet_real *dy,
                                   const clnet_pool2d_sizes *sizes) {
    const clnet_pool2d_sizes s = clnet__pool2d_defaults(sizes);
    for (size_t pixel = 0; pixel < clnet__volume(s.N, s.H, s.W); pixel++) {
        const clnet__span h = clnet__pool2d_readers(&s, 0, clnet__mod(pixel / (size_t)s.W, s.H));
        const clnet__span w = clnet__pool2d_readers(&s, 1, clnet__mod(pixel, s.W));
        const clnet_real *image =
            dy + pixel / (size_t)s.W / (size_t)s.H * clnet__volume(1, s.OH, s.OW) * s.y_stride;
        for (int c = 0; c < s.C; c++) {
            double sum = 0;
            for (int oh = h.first; oh < h.last; oh++) {
                const clnet__span read_h = clnet__pool2d_span(&s, 0, oh);
                const int size_h = clnet__avg_pool2d_size(&s, 0, oh, &read_h);
                for (int ow = w.first; ow < w.last; ow++) {
                    const clnet__span read_w = clnet__pool2d_span(&s, 1, ow);
                    const int size_w = clnet__avg_pool2d_size(&s, 1, ow, &read_w);
                    sum += (double)(image + clnet__row(0, oh, ow, s.OH, s.OW) * s.y_stride)[c] /
                           ((double)size_h * size_w);
                }
            }
            (dx + pixel * s.x_stride)[c] += (clnet_real)sum;
        }
    }
}

static void clnet__avg_pool2d_forward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g;
    const clnet_pool2d_sizes s = clnet__pool2d_sizes(node, p);
    clnet_ref_avg_pool2d_forward(clnet__value(node->out) + clnet__at(node->out, p->n0, p->c0),
                                 clnet__value(node->in[0]) + clnet__at(node->in[0], p->n0, p->c0),
                                 &s);
}

static void clnet__avg_pool2d_backward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g;
    const clnet_pool2d_sizes s = clnet__pool2d_sizes(node, p);
    clnet_ref_avg_pool2d_backward(clnet__grad(node->in[0]) + clnet__at(node->in[0], p->n0, p->c0),
                                  clnet__grad(node->out) + clnet__at(node->out, p->n0, p->c0), &s);
}

clnet_tensor *clnet_avg_pool2d(clnet_graph *g, clnet_tensor *x, const clnet_pool2d_desc *d) {
    clnet_node *node = clnet__pool2d(g, CLNET_OP_AVG_POOL2D, "avg_pool2d", x, d);
    return node ? node->out : NULL;
}

// >>global_avg_pool
// y[n,c] = 1/(H*W) sum of x[n,c]; backward: dx += dy / (H*W).

void clnet_ref_global_avg_pool_forward(clnet_real *y, const clnet_real *x, const clnet_sizes *s) {
    const size_t pixels = clnet__volume(1, s->H, s->W);
    const size_t xs = clnet__or_size(s->x_stride, (size_t)s->C),
                 ys = clnet__or_size(s->y_stride, (size_t)s->C);
    for (int n = 0; n < s->N; n++) {
        for (int c0 = 0; c0 < s->C; c0 += CLNET__CHANNEL_BLOCK) {
            const int count = clnet__min(s->C - c0, CLNET__CHANNEL_BLOCK);
            double sum[CLNET__CHANNEL_BLOCK] = {0};
            for (size_t p = 0; p < pixels; p++) {
                for (int c = 0; c < count; c++) {
                    sum[c] += (double)(x + ((size_t)n * pixels + p) * xs)[c0 + c];
                }
            }
            for (int c = 0; c < count; c++) {
                (y + (size_t)n * ys)[c0 + c] = (clnet_real)(sum[c] / (double)pixels);
            }
        }
    }
}

// Pixels [first, last) of dx.
static void clnet__global_avg_pool_pixels(clnet_real *dx, const clnet_real *dy,
                                          const clnet_sizes *s, size_t first, size_t last) {
    const size_t pixels = clnet__volume(1, s->H, s->W);
    const size_t xs = clnet__or_size(s->x_stride, (size_t)s->C),
                 ys = clnet__or_size(s->y_stride, (size_t)s->C);
    for (size_t i = first; i < last; i++) {
        const clnet_real *dyp = dy + i / pixels * ys;
        for (int c = 0; c < s->C; c++) {
            (dx + i * xs)[c] += dyp[c] / (clnet_real)pixels;
        }
    }
}

void clnet_ref_global_avg_pool_backward(clnet_real *dx, const clnet_real *dy,
                                        const clnet_sizes *s) {
    clnet__global_avg_pool_pixels(dx, dy, s, 0, clnet__volume(s->N, s->H, s->W));
}

static void clnet__global_avg_pool_forward(clnet_graph *g, clnet_node *node,
                                           const clnet__piece *p) {
    (void)g;
    const clnet_sizes s = clnet__sizes(node, p);
    clnet_ref_global_avg_pool_forward(
        clnet__value(node->out) + clnet__at(node->out, p->n0, p->c0),
        clnet__value(node->in[0]) + clnet__at(node->in[0], p->n0, p->c0), &s);
}

static void clnet__global_avg_pool_backward(clnet_graph *g, clnet_node *node,
                                            const clnet__piece *p) {
    (void)g;
    const clnet_sizes s = clnet__sizes(node, p);
    clnet__global_avg_pool_pixels(clnet__grad(node->in[0]), clnet__grad(node->out), &s,
                                  p->r0 * (size_t)s.W, p->r1 * (size_t)s.W);
}

clnet_tensor *clnet_global_avg_pool(clnet_graph *g, clnet_tensor *x) {
    clnet_node *node = clnet__valid(&x, 1) ? clnet__node(g, CLNET_OP_GLOBAL_AVG_POOL, &x, 1) : NULL;
    return node ? clnet__output(node, x->shape[0], x->shape[1], 1, 1) : NULL;
}

// >>upsample_bilinear
// y at output o reads x at the coordinate r = (o + 1/2) size/outputs - 1/2, at least 0, or with
// align_corners r = o (size - 1)/(outputs - 1): low = floor(r), high = low + 1 unless at the edge,
// weights 1 - (r - low) and r - low, on both axes. Coordinates are clnet_real, as PyTorch has them.
// backward gathers: dx[i] += sum of weight * dy over the outputs that read i.

typedef struct clnet__tap {
    int low, high;
    clnet_real low_weight, high_weight;
} clnet__tap;

static clnet_real clnet__upsample_scale(int size, int outputs, bool align_corners) {
    if (align_corners) {
        return outputs > 1 ? (clnet_real)(size - 1) / (clnet_real)(outputs - 1) : 0;
    }
    return (clnet_real)size / (clnet_real)outputs;
}

static clnet__tap clnet__upsample_tap(int o, int size, clnet_real scale, bool align_corners) {
    const clnet_real half = (clnet_real)0.5;
    clnet_real r = align_corners ? scale * (clnet_real)o : scale * ((clnet_real)o + half) - half;
    r = r < 0 ? 0 : r;
    const int low = clnet__min((int)r, size - 1);
    const clnet_real weight = r - (clnet_real)low > 1 ? 1 : r - (clnet_real)low;
    return (clnet__tap){low, clnet__min(low + 1, size - 1), 1 - weight, weight};
}

// Rows [first, last) of y, of all images.
static void clnet__upsample_rows(clnet_real *y, const clnet_real *x, const clnet_upsample_sizes *s,
                                 size_t first, size_t last) {
    const size_t xs = clnet__or_size(s->x_stride, (size_t)s->C),
                 ys = clnet__or_size(s->y_stride, (size_t)s->C);
    const clnet_real scale_h = clnet__upsample_scale(s->H, s->OH, s->align_corners);
    const clnet_real scale_w = clnet__upsample_scale(s->W, s->OW, s->align_corners);
    for (size_t row = first; row < last; row++) {
        const clnet__tap h =
            clnet__upsample_tap(clnet__mod(row, s->OH), s->H, scale_h, s->align_corners);
        const int n = (int)(row / (size_t)s->OH);
        const clnet_real *low = x + clnet__row(n, h.low, 0, s->H, s->W) * xs;
        const clnet_real *high = x + clnet__row(n, h.high, 0, s->H, s->W) * xs;
        for (int ow = 0; ow < s->OW; ow++) {
            const clnet__tap w = clnet__upsample_tap(ow, s->W, scale_w, s->align_corners);
            const clnet_real *a = low + (size_t)w.low * xs, *b = low + (size_t)w.high * xs;
            const clnet_real *c = high + (size_t)w.low * xs, *d = high + (size_t)w.high * xs;
            clnet_real *CLNET__RESTRICT yp = y + (row * (size_t)s->OW + (size_t)ow) * ys;
            for (int i = 0; i < s->C; i++) {
                yp[i] = h.low_weight * (w.low_weight * a[i] + w.high_weight * b[i]) +
                        h.high_weight * (w.low_weight * c[i] + w.high_weight * d[i]);
            }
        }
    }
}

void clnet_ref_upsample_bilinear_forward(clnet_real *y, const clnet_real *x,
                                         const clnet_upsample_sizes *s) {
    clnet__upsample_rows(y, x, s, 0, clnet__volume(1, s->N, s->OH));
}

// A range of outputs that holds all that read input i: those with r in (i - 1, i + 1), and one more
// on each side for rounding.
static clnet__span clnet__upsample_readers(int i, int size, int outputs, bool align_corners) {
    const double scale = align_corners ? (outputs > 1 ? (double)(size - 1) / (outputs - 1) : 0)
                                       : (double)size / outputs;
    if (scale == 0) {
        return (clnet__span){0, outputs, 1};
    }
    const double shift = align_corners ? 0 : 0.5;
    const double first = floor((i - 1 + shift) / scale - shift) - 1;
    const double last = ceil((i + 1 + shift) / scale - shift) + 2;
    // Before input 0 and beyond the last one, coordinates are clamped: those outputs read it too.
    return (clnet__span){i == 0 || first < 0 ? 0 : (int)first,
                         i == size - 1 || last > outputs ? outputs : (int)last, 1};
}

static clnet_real clnet__tap_weight(const clnet__tap *tap, int i) {
    return (tap->low == i ? tap->low_weight : 0) + (tap->high == i ? tap->high_weight : 0);
}

void clnet_ref_upsample_bilinear_backward(clnet_real *dx, const clnet_real *dy,
                                          const clnet_upsample_sizes *s) {
    const size_t xs = clnet__or_size(s->x_stride, (size_t)s->C),
                 ys = clnet__or_size(s->y_stride, (size_t)s->C);
    const clnet_real scale_h = clnet__upsample_scale(s->H, s->OH, s->align_corners);
    const clnet_real scale_w = clnet__upsample_scale(s->W, s->OW, s->align_corners);
    for (size_t pixel = 0; pixel < clnet__volume(s->N, s->H, s->W); pixel++) {
        const int iw = clnet__mod(pixel, s->W), ih = clnet__mod(pixel / (size_t)s->W, s->H);
        const clnet__span h = clnet__upsample_readers(ih, s->H, s->OH, s->align_corners);
        const clnet__span w = clnet__upsample_readers(iw, s->W, s->OW, s->align_corners);
        const clnet_real *image =
            dy + pixel / (size_t)s->W / (size_t)s->H * clnet__volume(1, s->OH, s->OW) * ys;
        for (int c0 = 0; c0 < s->C; c0 += CLNET__CHANNEL_BLOCK) {
            const int count = clnet__min(s->C - c0, CLNET__CHANNEL_BLOCK);
            double sum[CLNET__CHANNEL_BLOCK] = {0};
            for (int oh = h.first; oh < h.last; oh++) {
                const clnet__tap th = clnet__upsample_tap(oh, s->H, scale_h, s->align_corners);
                const double weight_h = (double)clnet__tap_weight(&th, ih);
                for (int ow = w.first; weight_h != 0 && ow < w.last; ow++) {
                    const clnet__tap tw = clnet__upsample_tap(ow, s->W, scale_w, s->align_corners);
                    const double weight = weight_h * (double)clnet__tap_weight(&tw, iw);
                    const clnet_real *dyp = image + clnet__row(0, oh, ow, s->OH, s->OW) * ys + c0;
                    for (int c = 0; weight != 0 && c < count; c++) {
                        sum[c] += weight * (double)dyp[c];
                    }
                }
            }
            for (int c = 0; c < count; c++) {
                (dx + pixel * xs)[c0 + c] += (clnet_real)sum[c];
            }
        }
    }
}

static clnet_upsample_sizes clnet__upsample_sizes(const clnet_node *node) {
    const clnet_tensor *x = node->in[0], *y = node->out;
    return (clnet_upsample_sizes){.N = x->shape[0],
                                  .C = x->shape[1],
                                  .H = x->shape[2],
                                  .W = x->shape[3],
                                  .OH = y->shape[2],
                                  .OW = y->shape[3],
                                  .align_corners = node->desc.align_corners,
                                  .x_stride = x->stride,
                                  .y_stride = y->stride};
}

static void clnet__upsample_bilinear_forward(clnet_graph *g, clnet_node *node,
                                             const clnet__piece *p) {
    (void)g;
    const clnet_upsample_sizes s = clnet__upsample_sizes(node);
    clnet__upsample_rows(clnet__value(node->out), clnet__value(node->in[0]), &s, p->r0, p->r1);
}

// Backward, an axis at a time: a task is a row of dx, for which the rows of dy that read it are summed
// to one, whose pixels are then summed to those of dx. Where maps grow so little that few floats are
// summed, as an input has about 2 x CLNET__UPSAMPLE_RATIO readers per axis at most; else plain loops.
enum { CLNET__UPSAMPLE_RATIO = 4 };

typedef struct clnet__upsample_job {
    clnet_upsample_sizes s;
    clnet_real *dx;
    const clnet_real *dy;
    clnet_real *rows; // of each worker: OW pixels
} clnet__upsample_job;

// to (+)= weight from, n numbers.
static void clnet__upsample_add(clnet_real *to, const clnet_real *from, clnet_real weight, bool add,
                                size_t n) {
    if (add) {
        CLNET__SIMD
        for (size_t i = 0; i < n; i++) {
            to[i] += weight * from[i];
        }
    } else {
        CLNET__SIMD
        for (size_t i = 0; i < n; i++) {
            to[i] = weight * from[i];
        }
    }
}

// The sum of the rows of image n's dy that read its row ih: OW pixels without gaps.
static void clnet__upsample_sum_rows(const clnet__upsample_job *job, clnet_real *row, int n,
                                     int ih) {
    const clnet_upsample_sizes *s = &job->s;
    const size_t C = (size_t)s->C, width = (size_t)s->OW;
    const clnet_real scale = clnet__upsample_scale(s->H, s->OH, s->align_corners);
    const clnet__span h = clnet__upsample_readers(ih, s->H, s->OH, s->align_corners);
    bool add = false;
    for (int oh = h.first; oh < h.last; oh++) {
        const clnet__tap tap = clnet__upsample_tap(oh, s->H, scale, s->align_corners);
        const clnet_real weight = clnet__tap_weight(&tap, ih);
        const clnet_real *from = job->dy + clnet__row(n, oh, 0, s->OH, s->OW) * s->y_stride;
        const bool dense = s->y_stride == C;
        for (size_t ow = 0; weight != 0 && ow < (dense ? 1 : width); ow++) {
            clnet__upsample_add(row + ow * C, from + ow * s->y_stride, weight, add,
                                dense ? width * C : C);
        }
        add = add || weight != 0;
    }
    if (!add) {
        memset(row, 0, width * C * sizeof *row);
    }
}

static void clnet__upsample_task(void *arg, size_t index, int worker) {
    const clnet__upsample_job *job = arg;
    const clnet_upsample_sizes *s = &job->s;
    const size_t C = (size_t)s->C;
    const clnet_real scale = clnet__upsample_scale(s->W, s->OW, s->align_corners);
    clnet_real *row = job->rows + (size_t)worker * (size_t)s->OW * C;
    clnet__upsample_sum_rows(job, row, (int)(index / (size_t)s->H), clnet__mod(index, s->H));
    for (int iw = 0; iw < s->W; iw++) {
        const clnet__span w = clnet__upsample_readers(iw, s->W, s->OW, s->align_corners);
        clnet_real *dx = job->dx + (index * (size_t)s->W + (size_t)iw) * s->x_stride;
        for (int ow = w.first; ow < w.last; ow++) {
            const clnet__tap tap = clnet__upsample_tap(ow, s->W, scale, s->align_corners);
            const clnet_real weight = clnet__tap_weight(&tap, iw);
            if (weight != 0) {
                clnet__upsample_add(dx, row + (size_t)ow * C, weight, true, C);
            }
        }
    }
}

static size_t clnet__upsample_workspace(const clnet_node *node, int threads) {
    const clnet_tensor *y = node->out;
    return (size_t)threads * (size_t)y->shape[3] * (size_t)y->shape[1] * sizeof(clnet_real);
}

static void clnet__upsample_back(const clnet__cpu *cpu, clnet_real *dx, const clnet_real *dy,
                                 const clnet_upsample_sizes *s, void *workspace) {
    if (cpu->reference || s->OH / CLNET__UPSAMPLE_RATIO > s->H ||
        s->OW / CLNET__UPSAMPLE_RATIO > s->W) {
        clnet_ref_upsample_bilinear_backward(dx, dy, s);
        return;
    }
    clnet__upsample_job job = {*s, dx, dy, workspace};
    clnet__parallel(cpu, clnet__volume(1, s->N, s->H), clnet__upsample_task, &job);
}

static void clnet__upsample_bilinear_backward(clnet_graph *g, clnet_node *node,
                                              const clnet__piece *p) {
    (void)p;
    const clnet_upsample_sizes s = clnet__upsample_sizes(node);
    clnet__upsample_back(clnet__cpu_of(g), clnet__grad(node->in[0]), clnet__grad(node->out), &s,
                         clnet__workspace(g));
}

clnet_tensor *clnet_upsample_bilinear(clnet_graph *g, clnet_tensor *x, int h, int w,
                                      bool align_corners) {
    if (!clnet__valid(&x, 1)) {
        return NULL;
    }
    if (h < 1 || w < 1) {
        return clnet__refuse(x, "upsample_bilinear: a size of %d x %d", h, w);
    }
    clnet_node *node = clnet__node(g, CLNET_OP_UPSAMPLE_BILINEAR, &x, 1);
    if (!node) {
        return NULL;
    }
    node->desc.align_corners = align_corners;
    return clnet__output(node, x->shape[0], x->shape[1], h, w);
}

// >>concat
// y[n, first_i + c, h, w] = x_i[n,c,h,w], first_i the channels of the inputs before; backward: the
// same slices of dy are added to each dx_i. An input that lies inside y (see >>plan) is there already.

void clnet_ref_copy(clnet_real *y, const clnet_real *x, bool add, const clnet_sizes *s) {
    const size_t xs = clnet__or_size(s->x_stride, (size_t)s->C),
                 ys = clnet__or_size(s->y_stride, (size_t)s->C);
    for (size_t p = 0; p < clnet__volume(s->N, s->H, s->W); p++) {
        clnet_real *CLNET__RESTRICT yp = y + p * ys;
        const clnet_real *CLNET__RESTRICT xp = x + p * xs;
        if (add) {
            for (int c = 0; c < s->C; c++) {
                yp[c] += xp[c];
            }
        } else {
            for (int c = 0; c < s->C; c++) {
                yp[c] = xp[c];
            }
        }
    }
}

static void clnet__concat_forward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g;
    for (int i = 0, first = 0; i < node->inputs; first += node->in[i++]->shape[1]) {
        const clnet_tensor *x = node->in[i], *y = node->out;
        const clnet_sizes s = {.N = 1,
                               .C = x->shape[1],
                               .H = (int)(p->r1 - p->r0),
                               .W = x->shape[3],
                               .x_stride = x->stride,
                               .y_stride = y->stride};
        if (x->inside != y) {
            clnet_ref_copy(clnet__value(y) + clnet__at_row(y, p->r0) + first,
                           clnet__value(x) + clnet__at_row(x, p->r0), false, &s);
        }
    }
}

static void clnet__concat_backward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g;
    for (int i = 0, first = 0; i < node->inputs; first += node->in[i++]->shape[1]) {
        const clnet_tensor *x = node->in[i], *y = node->out;
        const clnet_sizes s = {.N = 1,
                               .C = x->shape[1],
                               .H = (int)(p->r1 - p->r0),
                               .W = x->shape[3],
                               .x_stride = y->stride,
                               .y_stride = x->stride};
        if (clnet__grad(x) && x->inside != y) {
            clnet_ref_copy(clnet__grad(x) + clnet__at_row(x, p->r0),
                           clnet__grad(y) + clnet__at_row(y, p->r0) + first, true, &s);
        }
    }
}

clnet_tensor *clnet_concat(clnet_graph *g, clnet_tensor *const *x, int count) {
    if (count < 1 || count > CLNET_MAX_INPUTS || !clnet__valid(x, count)) {
        return count < 1 || count > CLNET_MAX_INPUTS
                   ? clnet__refuse(x[0], "concat: 1 to %d inputs, found %d", CLNET_MAX_INPUTS,
                                   count)
                   : NULL;
    }
    int channels = 0;
    for (int i = 0; i < count; i++) {
        if (x[i]->shape[0] != x[0]->shape[0] || x[i]->shape[2] != x[0]->shape[2] ||
            x[i]->shape[3] != x[0]->shape[3]) {
            return clnet__refuse(x[i],
                                 "concat: input %d is (%d,%d,%d,%d), input 0 is (%d,%d,%d,%d)", i,
                                 x[i]->shape[0], x[i]->shape[1], x[i]->shape[2], x[i]->shape[3],
                                 x[0]->shape[0], x[0]->shape[1], x[0]->shape[2], x[0]->shape[3]);
        }
        channels += x[i]->shape[1];
    }
    clnet_node *node = clnet__node(g, CLNET_OP_CONCAT, x, count);
    return node ? clnet__output(node, x[0]->shape[0], channels, x[0]->shape[2], x[0]->shape[3])
                : NULL;
}

// >>conv2d_joined
// y = b + W [U(a), b] with the smaller map brought to the larger one's size by U, bilinear upsampling.
// U treats all channels alike and its weights sum to 1, so that it may come behind the product: with c
// the coarse and f the fine map and their parts of W,
//
//     y = U(b + Wc c) + Wf f
//
// sums fewer products, upsamples OC channels, and stores neither U(c) nor the concatenation. backward:
// with t = U' dy on the coarse map, dc += Wc' t, dWc += t c', df += Wf' dy, dWf += dy f', db += sum of
// dy. The weights lie as (A+B, OC), so that each part is in one piece. The coarse sums, and then t, are
// the beginning of the workspace.

typedef struct clnet__joined {
    clnet_tensor *fine, *coarse;
    size_t fine_weights, coarse_weights; // where their parts of the weights begin
    clnet_conv2d_sizes fine_sizes, coarse_sizes;
    size_t sums; // bytes of the coarse sums in the workspace
} clnet__joined;

// The 1 x 1 convolution of one of the maps.
static clnet_conv2d_sizes clnet__joined_sizes(const clnet_tensor *x, int OC, size_t y_stride) {
    return (clnet_conv2d_sizes){.N = x->shape[0],
                                .C = x->shape[1],
                                .H = x->shape[2],
                                .W = x->shape[3],
                                .OC = OC,
                                .OH = x->shape[2],
                                .OW = x->shape[3],
                                .KH = 1,
                                .KW = 1,
                                .stride = {1, 1},
                                .dilation = {1, 1},
                                .groups = 1,
                                .x_stride = x->stride,
                                .y_stride = y_stride};
}

static clnet__joined clnet__joined_of(const clnet_node *node) {
    const int OC = node->out->shape[1], coarse = node->in[1]->shape[2] != node->out->shape[2] ||
                                                 node->in[1]->shape[3] != node->out->shape[3];
    const size_t second = (size_t)node->in[0]->shape[1] * (size_t)OC;
    clnet__joined j = {.fine = node->in[1 - coarse],
                       .coarse = node->in[coarse],
                       .fine_weights = coarse ? 0 : second,
                       .coarse_weights = coarse ? second : 0};
    j.fine_sizes = clnet__joined_sizes(j.fine, OC, node->out->stride);
    j.coarse_sizes = clnet__joined_sizes(j.coarse, OC, (size_t)OC);
    j.sums = clnet__round_up(
        (size_t)j.coarse->shape[0] * clnet__pixels(j.coarse) * (size_t)OC * sizeof(clnet_real), 64);
    return j;
}

// Of channels [c0, c1).
static clnet_upsample_sizes clnet__joined_upsampling(const clnet_node *node,
                                                     const clnet__joined *j) {
    return (clnet_upsample_sizes){.N = j->coarse->shape[0],
                                  .C = node->out->shape[1],
                                  .H = j->coarse->shape[2],
                                  .W = j->coarse->shape[3],
                                  .OH = node->out->shape[2],
                                  .OW = node->out->shape[3],
                                  .x_stride = j->coarse_sizes.y_stride,
                                  .y_stride = node->out->stride};
}

// A piece of y = U(sums).
static void clnet__joined_up(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    const clnet__joined j = clnet__joined_of(node);
    const clnet_upsample_sizes s = clnet__joined_upsampling(node, &j);
    clnet__upsample_rows(clnet__value(node->out), clnet__workspace(g), &s, p->r0, p->r1);
}

static void clnet__conv2d_joined_forward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)p;
    const clnet__joined j = clnet__joined_of(node);
    clnet_real *sums = clnet__workspace(g), *y = clnet__value(node->out);
    void *rest = (char *)clnet__workspace(g) + j.sums;
    const clnet_real *c = clnet__value(j.coarse), *f = clnet__value(j.fine);
    const clnet_real *wc = clnet__value(node->in[2]) + j.coarse_weights;
    const clnet_real *wf = clnet__value(node->in[2]) + j.fine_weights;
    const clnet_real *b = clnet__value(node->in[3]);
#ifdef CLNET__FAST
    const clnet__cpu *cpu = clnet__cpu_of(g);
    if (!cpu->reference) {
        clnet__epilogue e;
        clnet__conv2d_fast_forward(cpu, sums, c, wc, b, &j.coarse_sizes, NULL, rest);
        clnet__in_pieces(g, node, clnet__joined_up, CLNET__CUT_ROWS, node->out);
        clnet__conv2d_fast_add(cpu, y, f, wf, &j.fine_sizes, clnet__conv2d_epilogue(g, node, &e),
                               rest);
        return;
    }
#endif
    const clnet_sizes whole = {.N = node->out->shape[0],
                               .C = node->out->shape[1],
                               .H = node->out->shape[2],
                               .W = node->out->shape[3],
                               .x_stride = node->out->stride,
                               .y_stride = node->out->stride};
    clnet_ref_conv2d_forward(sums, c, wc, b, &j.coarse_sizes);
    clnet_ref_conv2d_forward(rest, f, wf, NULL, &j.fine_sizes);
    clnet__in_pieces(g, node, clnet__joined_up, CLNET__CUT_ROWS, node->out);
    clnet_ref_copy(y, rest, true, &whole);
}

static void clnet__conv2d_joined_backward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)p;
    const clnet__joined j = clnet__joined_of(node);
    clnet_real *t = clnet__workspace(g), *dw = clnet__grad(node->in[2]);
    void *rest = (char *)clnet__workspace(g) + j.sums;
    const clnet_real *w = clnet__value(node->in[2]), *dy = clnet__grad(node->out);
    const clnet_upsample_sizes s = clnet__joined_upsampling(node, &j);
    memset(t, 0, j.sums);
    clnet__upsample_back(clnet__cpu_of(g), t, dy, &s, rest);
    clnet__convolve_back(g, clnet__grad(j.coarse), dw ? dw + j.coarse_weights : NULL, NULL, t,
                         clnet__value(j.coarse), w + j.coarse_weights, &j.coarse_sizes, rest);
    clnet__convolve_back(g, clnet__grad(j.fine), dw ? dw + j.fine_weights : NULL,
                         clnet__grad(node->in[3]), dy, clnet__value(j.fine), w + j.fine_weights,
                         &j.fine_sizes, rest);
}

static size_t clnet__larger(size_t a, size_t b) { return a > b ? a : b; }

// Bytes: the coarse sums; then what upsampling or a convolution needs, or the fine sums.
static size_t clnet__joined_workspace(const clnet_context *ctx, const clnet_node *node) {
    const clnet__joined j = clnet__joined_of(node);
    const size_t pixels = (size_t)node->out->shape[0] * clnet__pixels(node->out);
#ifdef CLNET__FAST
    if (!ctx->cpu.reference) {
        const size_t fine = clnet__conv2d_fast_workspace(&ctx->cpu, &j.fine_sizes);
        const size_t coarse = clnet__conv2d_fast_workspace(&ctx->cpu, &j.coarse_sizes);
        return j.sums + clnet__larger(clnet__larger(fine, coarse),
                                      clnet__upsample_workspace(node, ctx->cpu.threads));
    }
#endif
    return j.sums + clnet__larger(pixels * node->out->stride * sizeof(clnet_real),
                                  clnet__upsample_workspace(node, ctx->cpu.threads));
}

clnet_tensor *clnet_conv2d_joined(clnet_graph *g, clnet_tensor *a, clnet_tensor *b,
                                  const clnet_conv2d_joined_desc *d) {
    clnet_tensor *const both[2] = {a, b};
    if (!clnet__valid(both, 2)) {
        return NULL;
    }
    if (a->shape[0] != b->shape[0] || d->out_channels < 1 || !d->name) {
        return clnet__refuse(
            a,
            "conv2d_joined %s: needs a name, out_channels of at least 1 (found %d) "
            "and as many images twice (found %d and %d)",
            d->name ? d->name : "", d->out_channels, a->shape[0], b->shape[0]);
    }
    if (a->shape[2] == b->shape[2] && a->shape[3] == b->shape[3]) {
        return clnet_conv2d(g, clnet_concat(g, both, 2),
                            &(clnet_conv2d_desc){.out_channels = d->out_channels,
                                                 .kernel_size = {1, 1},
                                                 .no_bias = d->no_bias,
                                                 .name = d->name});
    }
    const clnet_tensor *fine = clnet__pixels(a) >= clnet__pixels(b) ? a : b;
    const int shape[4] = {d->out_channels, a->shape[1] + b->shape[1], 1, 1};
    const double std = sqrt(2.0 / shape[0]); // as clnet_conv2d
    clnet_tensor *in[4] = {
        a, b, clnet__weight(g, d->name, "weight", 4, shape, CLNET_INITIAL_NORMAL, std), NULL};
    if (!d->no_bias) {
        in[3] = clnet__weight(g, d->name, "bias", 1, shape, CLNET_INITIAL_CONSTANT, 0);
    }
    clnet_node *node = clnet__node(g, CLNET_OP_CONV2D_JOINED, in, 4);
    return node ? clnet_tensor_rename(clnet__output(node, a->shape[0], d->out_channels,
                                                    fine->shape[2], fine->shape[3]),
                                      d->name)
                : NULL;
}

// >>add
// y = a + b; backward: da += dy, db += dy.

void clnet_ref_add_forward(clnet_real *y, const clnet_real *a, const clnet_real *b,
                           const clnet_sizes *s, size_t b_stride) {
    const size_t as = clnet__or_size(s->x_stride, (size_t)s->C),
                 ys = clnet__or_size(s->y_stride, (size_t)s->C);
    const size_t bs = clnet__or_size(b_stride, (size_t)s->C);
    for (size_t p = 0; p < clnet__volume(s->N, s->H, s->W); p++) {
        for (int c = 0; c < s->C; c++) {
            (y + p * ys)[c] = (a + p * as)[c] + (b + p * bs)[c];
        }
    }
}

static void clnet__add_forward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g;
    const clnet_tensor *a = node->in[0], *b = node->in[1], *y = node->out;
    const clnet_sizes s = clnet__row_sizes(node, p);
    clnet_ref_add_forward(clnet__value(y) + clnet__at_row(y, p->r0),
                          clnet__value(a) + clnet__at_row(a, p->r0),
                          clnet__value(b) + clnet__at_row(b, p->r0), &s, b->stride);
}

static void clnet__add_backward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g;
    for (int i = 0; i < 2; i++) {
        const clnet_tensor *x = node->in[i], *y = node->out;
        const clnet_sizes s = {.N = 1,
                               .C = x->shape[1],
                               .H = (int)(p->r1 - p->r0),
                               .W = x->shape[3],
                               .x_stride = y->stride,
                               .y_stride = x->stride};
        if (clnet__grad(x)) {
            clnet_ref_copy(clnet__grad(x) + clnet__at_row(x, p->r0),
                           clnet__grad(y) + clnet__at_row(y, p->r0), true, &s);
        }
    }
}

clnet_tensor *clnet_add(clnet_graph *g, clnet_tensor *a, clnet_tensor *b) {
    clnet_tensor *in[2] = {a, b};
    if (!clnet__valid(in, 2)) {
        return NULL;
    }
    if (memcmp(a->shape, b->shape, sizeof a->shape)) {
        return clnet__refuse(a, "add: (%d,%d,%d,%d) and (%d,%d,%d,%d)", a->shape[0], a->shape[1],
                             a->shape[2], a->shape[3], b->shape[0], b->shape[1], b->shape[2],
                             b->shape[3]);
    }
    clnet_node *node = clnet__node(g, CLNET_OP_ADD, in, 2);
    return node ? clnet__output(node, a->shape[0], a->shape[1], a->shape[2], a->shape[3]) : NULL;
}

// >>scale_channels
// y[n,c,h,w] = x[n,c,h,w] gate[n,c]; backward: dx += dy gate; dgate[n,c] += sum over h,w of dy x.

// Pixels [first, last): y = x gate, or with `add` y += x gate.
static void clnet__scale_pixels(clnet_real *y, const clnet_real *x, const clnet_real *gate,
                                size_t gate_stride, bool add, const clnet_sizes *s, size_t first,
                                size_t last) {
    const size_t xs = clnet__or_size(s->x_stride, (size_t)s->C),
                 ys = clnet__or_size(s->y_stride, (size_t)s->C);
    const size_t pixels = clnet__volume(1, s->H, s->W),
                 gs = clnet__or_size(gate_stride, (size_t)s->C);
    for (size_t i = first; i < last; i++) {
        clnet_real *CLNET__RESTRICT yp = y + i * ys;
        const clnet_real *xp = x + i * xs, *gp = gate + i / pixels * gs;
        if (add) {
            for (int c = 0; c < s->C; c++) {
                yp[c] += xp[c] * gp[c];
            }
        } else {
            for (int c = 0; c < s->C; c++) {
                yp[c] = xp[c] * gp[c];
            }
        }
    }
}

void clnet_ref_scale_channels_forward(clnet_real *y, const clnet_real *x, const clnet_real *gate,
                                      size_t gate_stride, const clnet_sizes *s) {
    clnet__scale_pixels(y, x, gate, gate_stride, false, s, 0, clnet__volume(s->N, s->H, s->W));
}

static void clnet__scale_gates(clnet_real *dgate, const clnet_real *dy, const clnet_real *x,
                               size_t gate_stride, const clnet_sizes *s) {
    const size_t xs = clnet__or_size(s->x_stride, (size_t)s->C),
                 ys = clnet__or_size(s->y_stride, (size_t)s->C);
    const size_t pixels = clnet__volume(1, s->H, s->W),
                 gs = clnet__or_size(gate_stride, (size_t)s->C);
    for (int n = 0; n < s->N; n++) {
        for (int c0 = 0; c0 < s->C; c0 += CLNET__CHANNEL_BLOCK) {
            const int count = clnet__min(s->C - c0, CLNET__CHANNEL_BLOCK);
            double sum[CLNET__CHANNEL_BLOCK] = {0};
            for (size_t i = (size_t)n * pixels; i < ((size_t)n + 1) * pixels; i++) {
                for (int c = 0; c < count; c++) {
                    sum[c] += (double)(dy + i * ys)[c0 + c] * (double)(x + i * xs)[c0 + c];
                }
            }
            for (int c = 0; c < count; c++) {
                (dgate + (size_t)n * gs)[c0 + c] += (clnet_real)sum[c];
            }
        }
    }
}

void clnet_ref_scale_channels_backward(clnet_real *dx, clnet_real *dgate, const clnet_real *dy,
                                       const clnet_real *x, const clnet_real *gate,
                                       size_t gate_stride, const clnet_sizes *s) {
    if (dx) {
        const clnet_sizes back = {s->N, s->C, s->H, s->W, s->y_stride, s->x_stride};
        clnet__scale_pixels(dx, dy, gate, gate_stride, true, &back, 0,
                            clnet__volume(s->N, s->H, s->W));
    }
    if (dgate) {
        clnet__scale_gates(dgate, dy, x, gate_stride, s);
    }
}

static void clnet__scale_channels_forward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g;
    const clnet_tensor *x = node->in[0], *gate = node->in[1], *y = node->out;
    const clnet_sizes s = clnet__sizes(node, p);
    clnet__scale_pixels(clnet__value(y), clnet__value(x), clnet__value(gate), gate->stride, false,
                        &s, p->r0 * (size_t)s.W, p->r1 * (size_t)s.W);
}

static void clnet__scale_back(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g;
    const clnet_tensor *x = node->in[0], *gate = node->in[1], *y = node->out;
    const clnet_sizes s = {.N = x->shape[0],
                           .C = x->shape[1],
                           .H = x->shape[2],
                           .W = x->shape[3],
                           .x_stride = y->stride,
                           .y_stride = x->stride};
    clnet__scale_pixels(clnet__grad(x), clnet__grad(y), clnet__value(gate), gate->stride, true, &s,
                        p->r0 * (size_t)s.W, p->r1 * (size_t)s.W);
}

static void clnet__scale_back_gates(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g;
    const clnet_tensor *x = node->in[0], *gate = node->in[1], *y = node->out;
    const clnet_sizes s = clnet__sizes(node, p);
    clnet__scale_gates(clnet__grad(gate) + clnet__at(gate, p->n0, p->c0),
                       clnet__grad(y) + clnet__at(y, p->n0, p->c0),
                       clnet__value(x) + clnet__at(x, p->n0, p->c0), gate->stride, &s);
}

static void clnet__scale_channels_backward(clnet_graph *g, clnet_node *node,
                                           const clnet__piece *p) {
    (void)p;
    if (clnet__grad(node->in[0])) {
        clnet__in_pieces(g, node, clnet__scale_back, CLNET__CUT_ROWS, node->out);
    }
    if (clnet__grad(node->in[1])) {
        clnet__in_pieces(g, node, clnet__scale_back_gates, CLNET__CUT_CHANNELS, node->out);
    }
}

clnet_tensor *clnet_scale_channels(clnet_graph *g, clnet_tensor *x, clnet_tensor *gate) {
    clnet_tensor *in[2] = {x, gate};
    if (!clnet__valid(in, 2)) {
        return NULL;
    }
    if (gate->shape[0] != x->shape[0] || gate->shape[1] != x->shape[1] ||
        clnet__pixels(gate) != 1) {
        return clnet__refuse(
            x, "scale_channels: x is (%d,%d,%d,%d), gate (%d,%d,%d,%d), needed (%d,%d,1,1)",
            x->shape[0], x->shape[1], x->shape[2], x->shape[3], gate->shape[0], gate->shape[1],
            gate->shape[2], gate->shape[3], x->shape[0], x->shape[1]);
    }
    clnet_node *node = clnet__node(g, CLNET_OP_SCALE_CHANNELS, in, 2);
    return node ? clnet__output(node, x->shape[0], x->shape[1], x->shape[2], x->shape[3]) : NULL;
}

// >>attention_residual
// y = f + x + alpha S x with S = exp(f - top) / sum over the pixels of one image's channel.
// backward, with the upstream dy: the last term gives S the slope alpha x dy, and softmax passes on
//     df += dy + alpha S (x dy - dot), dot = sum over the pixels of S x dy
//     dx += dy (1 + alpha S)
//     dalpha += sum of dot over all images and channels, in that order

static clnet_attention_residual_sizes
clnet__attention_residual_defaults(const clnet_attention_residual_sizes *sizes) {
    clnet_attention_residual_sizes s = *sizes;
    const size_t C = (size_t)s.C;
    s.f_stride = clnet__or_size(s.f_stride, C);
    s.x_stride = clnet__or_size(s.x_stride, C);
    s.y_stride = clnet__or_size(s.y_stride, C);
    s.rows = clnet__or_size(s.rows, C);
    return s;
}

// top and sum of some channels; the exponentials stay in e.
static void clnet__attention_sums(clnet_real *e, clnet_real *top, double *sum, const clnet_real *f,
                                  size_t pixels, size_t e_stride, size_t f_stride, int count) {
    for (int c = 0; c < count; c++) {
        top[c] = f[c];
        sum[c] = 0;
    }
    for (size_t p = 1; p < pixels; p++) {
        for (int c = 0; c < count; c++) {
            top[c] = (f + p * f_stride)[c] > top[c] ? (f + p * f_stride)[c] : top[c];
        }
    }
    for (size_t p = 0; p < pixels; p++) {
        for (int c = 0; c < count; c++) {
            const double v = exp((double)(f + p * f_stride)[c] - (double)top[c]);
            (e + p * e_stride)[c] = (clnet_real)v;
            sum[c] += v;
        }
    }
}

void clnet_ref_attention_residual_forward(clnet_real *y, clnet_real *top, clnet_real *sum,
                                          const clnet_real *f, const clnet_real *x,
                                          const clnet_real *alpha,
                                          const clnet_attention_residual_sizes *sizes) {
    const clnet_attention_residual_sizes s = clnet__attention_residual_defaults(sizes);
    const size_t pixels = clnet__volume(1, s.H, s.W);
    for (size_t n = 0; n < (size_t)s.N; n++) {
        for (int c0 = 0; c0 < s.C; c0 += CLNET__CHANNEL_BLOCK) {
            const int count = clnet__min(s.C - c0, CLNET__CHANNEL_BLOCK);
            const clnet_real *fn = f + n * pixels * s.f_stride + c0;
            const clnet_real *xn = x + n * pixels * s.x_stride + c0;
            clnet_real *yn = y + n * pixels * s.y_stride + c0;
            double total[CLNET__CHANNEL_BLOCK], factor[CLNET__CHANNEL_BLOCK];
            clnet__attention_sums(yn, top + n * s.rows + c0, total, fn, pixels, s.y_stride,
                                  s.f_stride, count);
            for (int c = 0; c < count; c++) {
                (sum + n * s.rows)[c0 + c] = (clnet_real)total[c];
                factor[c] = (double)*alpha / total[c];
            }
            for (size_t p = 0; p < pixels; p++) {
                clnet_real *yp = yn + p * s.y_stride;
                for (int c = 0; c < count; c++) {
                    const double gain = 1 + factor[c] * (double)yp[c];
                    yp[c] = (clnet_real)((double)(fn + p * s.f_stride)[c] +
                                         gain * (double)(xn + p * s.x_stride)[c]);
                }
            }
        }
    }
}

// S at one place.
static double clnet__attention(clnet_real f, clnet_real top, clnet_real sum) {
    return exp((double)f - (double)top) / (double)sum;
}

void clnet_ref_attention_residual_backward(clnet_real *df, clnet_real *dx, clnet_real *dot,
                                           const clnet_real *dy, const clnet_real *f,
                                           const clnet_real *x, const clnet_real *alpha,
                                           const clnet_real *top, const clnet_real *sum,
                                           const clnet_attention_residual_sizes *sizes) {
    const clnet_attention_residual_sizes s = clnet__attention_residual_defaults(sizes);
    const size_t pixels = clnet__volume(1, s.H, s.W);
    for (size_t n = 0; n < (size_t)s.N; n++) {
        for (int c0 = 0; c0 < s.C; c0 += CLNET__CHANNEL_BLOCK) {
            const int count = clnet__min(s.C - c0, CLNET__CHANNEL_BLOCK);
            const clnet_real *t = top + n * s.rows + c0, *z = sum + n * s.rows + c0;
            double total[CLNET__CHANNEL_BLOCK] = {0};
            for (size_t i = n * pixels; i < (n + 1) * pixels; i++) {
                const clnet_real *fp = f + i * s.f_stride + c0, *xp = x + i * s.x_stride + c0;
                const clnet_real *dyp = dy + i * s.y_stride + c0;
                for (int c = 0; c < count; c++) {
                    total[c] +=
                        clnet__attention(fp[c], t[c], z[c]) * (double)xp[c] * (double)dyp[c];
                }
            }
            for (int c = 0; c < count; c++) {
                (dot + n * s.rows)[c0 + c] = (clnet_real)total[c];
            }
            for (size_t i = n * pixels; (df || dx) && i < (n + 1) * pixels; i++) {
                const clnet_real *fp = f + i * s.f_stride + c0, *xp = x + i * s.x_stride + c0;
                const clnet_real *dyp = dy + i * s.y_stride + c0;
                for (int c = 0; c < count; c++) {
                    const double share = (double)*alpha * clnet__attention(fp[c], t[c], z[c]),
                                 d = (double)dyp[c];
                    if (df) {
                        (df + i * s.f_stride)[c0 + c] +=
                            (clnet_real)(d + share * ((double)xp[c] * d - total[c]));
                    }
                    if (dx) {
                        (dx + i * s.x_stride)[c0 + c] += (clnet_real)(d * (1 + share));
                    }
                }
            }
        }
    }
}

static clnet_attention_residual_sizes clnet__attention_residual_sizes(const clnet_node *node,
                                                                      const clnet__piece *p) {
    const clnet_tensor *f = node->in[0];
    return (clnet_attention_residual_sizes){.N = p->n1 - p->n0,
                                            .C = p->c1 - p->c0,
                                            .H = f->shape[2],
                                            .W = f->shape[3],
                                            .f_stride = f->stride,
                                            .x_stride = node->in[1]->stride,
                                            .y_stride = node->out->stride,
                                            .rows = (size_t)f->shape[1]};
}

// in: f, x, alpha; saved: top, sum, dot.
static void clnet__attention_residual_values(clnet_graph *g, clnet_node *node,
                                             const clnet__piece *p) {
    (void)g;
    const clnet_attention_residual_sizes s = clnet__attention_residual_sizes(node, p);
    const clnet_tensor *f = node->in[0], *x = node->in[1], *y = node->out;
    const size_t row = clnet__at(node->saved[0], p->n0, p->c0);
    clnet_ref_attention_residual_forward(
        clnet__value(y) + clnet__at(y, p->n0, p->c0), clnet__value(node->saved[0]) + row,
        clnet__value(node->saved[1]) + row, clnet__value(f) + clnet__at(f, p->n0, p->c0),
        clnet__value(x) + clnet__at(x, p->n0, p->c0), clnet__value(node->in[2]), &s);
}

static void clnet__attention_residual_slopes(clnet_graph *g, clnet_node *node,
                                             const clnet__piece *p) {
    (void)g;
    const clnet_attention_residual_sizes s = clnet__attention_residual_sizes(node, p);
    const clnet_tensor *f = node->in[0], *x = node->in[1], *y = node->out;
    const size_t at_f = clnet__at(f, p->n0, p->c0), at_x = clnet__at(x, p->n0, p->c0);
    const size_t row = clnet__at(node->saved[0], p->n0, p->c0);
    clnet_ref_attention_residual_backward(
        clnet__offset(clnet__grad(f), at_f), clnet__offset(clnet__grad(x), at_x),
        clnet__value(node->saved[2]) + row, clnet__grad(y) + clnet__at(y, p->n0, p->c0),
        clnet__value(f) + at_f, clnet__value(x) + at_x, clnet__value(node->in[2]),
        clnet__value(node->saved[0]) + row, clnet__value(node->saved[1]) + row, &s);
}

static void clnet__attention_residual_forward(clnet_graph *g, clnet_node *node,
                                              const clnet__piece *p) {
    (void)p;
    clnet__in_pieces(g, node, clnet__attention_residual_values, CLNET__CUT_CHANNELS, node->out);
}

static void clnet__attention_residual_backward(clnet_graph *g, clnet_node *node,
                                               const clnet__piece *p) {
    clnet__in_pieces(g, node, clnet__attention_residual_slopes, CLNET__CUT_CHANNELS, node->out);
    if (clnet__grad(node->in[2])) {
        const clnet_real *dot = clnet__value(node->saved[2]);
        double sum = 0;
        for (size_t i = 0; i < clnet__volume(p->n1, p->c1, 1); i++) {
            sum += (double)dot[i];
        }
        *clnet__grad(node->in[2]) += (clnet_real)sum;
    }
}

clnet_tensor *clnet_attention_residual(clnet_graph *g, clnet_tensor *f, clnet_tensor *x,
                                       const clnet_attention_residual_desc *d) {
    clnet_tensor *in[3] = {f, x, NULL};
    if (!clnet__valid(in, 2)) {
        return NULL;
    }
    if (!d->name || memcmp(f->shape, x->shape, sizeof f->shape)) {
        return clnet__refuse(f,
                             "attention_residual %s: needs a name and equal shapes, found "
                             "(%d,%d,%d,%d) and (%d,%d,%d,%d)",
                             d->name ? d->name : "", f->shape[0], f->shape[1], f->shape[2],
                             f->shape[3], x->shape[0], x->shape[1], x->shape[2], x->shape[3]);
    }
    const int one[4] = {1, 1, 1, 1};
    in[2] = clnet__weight(g, d->name, "alpha", 1, one, CLNET_INITIAL_CONSTANT,
                          clnet__or_double(d->alpha, 0.001));
    clnet_node *node = clnet__node(g, CLNET_OP_ATTENTION_RESIDUAL, in, 3);
    for (int i = 0; node && i < 3; i++) {
        if (!clnet__saved(node, i, f->shape[0], f->shape[1], 1, 1, false)) {
            return NULL;
        }
    }
    return node ? clnet__output(node, f->shape[0], f->shape[1], f->shape[2], f->shape[3]) : NULL;
}

// >>dropout
// training: y = x / (1 - p) where the draw for this number is at least p, else 0; backward: the same
// of dy. Nothing is saved: the draw depends on (seed, stream, index in dense (N,H,W,C) order) alone.

void clnet_ref_dropout(clnet_real *y, const clnet_real *x, bool add, double p, uint64_t seed,
                       uint64_t stream, const clnet_sizes *s) {
    const size_t xs = clnet__or_size(s->x_stride, (size_t)s->C),
                 ys = clnet__or_size(s->y_stride, (size_t)s->C);
    const clnet_real scale = (clnet_real)(1 / (1 - p));
    for (size_t pixel = 0; pixel < clnet__volume(s->N, s->H, s->W); pixel++) {
        for (int c = 0; c < s->C; c++) {
            const uint64_t index = (uint64_t)pixel * (uint64_t)s->C + (uint64_t)c;
            const bool kept = p == 0 || clnet_random_uniform(seed, stream, index) >= p;
            const clnet_real v = kept ? (x + pixel * xs)[c] * scale : 0;
            (y + pixel * ys)[c] = add ? (y + pixel * ys)[c] + v : v;
        }
    }
}

// Draws are counted from the first number of the whole batch, so dropout runs as one piece.
static void clnet__dropout_forward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    uint64_t seed;
    const uint64_t stream = clnet__dropout_stream(g, node, &seed);
    const clnet_sizes s = clnet__sizes(node, p);
    clnet_ref_dropout(clnet__value(node->out), clnet__value(node->in[0]), false,
                      clnet__training(g) ? node->desc.value : 0, seed, stream, &s);
}

static void clnet__dropout_backward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    uint64_t seed;
    const uint64_t stream = clnet__dropout_stream(g, node, &seed);
    clnet_sizes s = clnet__sizes(node, p);
    s.x_stride = node->out->stride;
    s.y_stride = node->in[0]->stride;
    clnet_ref_dropout(clnet__grad(node->in[0]), clnet__grad(node->out), true,
                      clnet__training(g) ? node->desc.value : 0, seed, stream, &s);
}

clnet_tensor *clnet_dropout(clnet_graph *g, clnet_tensor *x, double p) {
    if (x && (!(p >= 0) || p >= 1)) {
        return clnet__refuse(x, "dropout: p must be at least 0 and below 1, found %g", p);
    }
    clnet_tensor *y = clnet__unary(g, CLNET_OP_DROPOUT, x);
    if (y) {
        y->producer->desc.value = p;
    }
    return y;
}

// >>flip
// y[n,h,w] = (x[n,h',w'] - mean) / std, see the builder. Mirroring twice gives the same again, so
// backward is dx[n,h,w] += dy[n,h',w'] / std.

// Whether the numbers of a desc are 0 and 1, so that nothing is to be computed.
static bool clnet__flip_plain(const clnet_flip_desc *d) {
    bool plain = true;
    for (int c = 0; c < CLNET_FLIP_CHANNELS; c++) {
        plain = plain && d->mean[c] == 0 && d->std[c] == 1;
    }
    return plain;
}

void clnet_ref_flip(clnet_real *y, const clnet_real *x, bool add, const int32_t *flips,
                    const clnet_flip_desc *d, const clnet_sizes *s) {
    const size_t xs = clnet__or_size(s->x_stride, (size_t)s->C),
                 ys = clnet__or_size(s->y_stride, (size_t)s->C);
    const bool plain = !d || clnet__flip_plain(d);
    for (size_t p = 0; p < clnet__volume(s->N, s->H, s->W); p++) {
        const int w = (int)(p % (size_t)s->W), row = (int)(p / (size_t)s->W);
        const int n = row / s->H, h = row % s->H, flip = flips && flips[n] > 0 ? flips[n] : 0;
        const size_t from = (size_t)(n * s->H + (flip & 2 ? s->H - 1 - h : h)) * (size_t)s->W +
                            (size_t)(flip & 1 ? s->W - 1 - w : w);
        for (int c = 0; c < s->C; c++) {
            const clnet_real v = (x + from * xs)[c];
            const clnet_real u = plain ? v : (v - (clnet_real)d->mean[c]) / (clnet_real)d->std[c];
            (y + p * ys)[c] = add ? (y + p * ys)[c] + u : u;
        }
    }
}

static const int32_t *clnet__flips(const clnet_graph *g, const clnet_node *node, int n0) {
    return node->in[1] && clnet__training(g) ? clnet__integers(node->in[1]) + n0 : NULL;
}

static void clnet__flip_forward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    const clnet_sizes s = clnet__sizes(node, p);
    clnet_ref_flip(clnet__value(node->out) + clnet__at(node->out, p->n0, p->c0),
                   clnet__value(node->in[0]) + clnet__at(node->in[0], p->n0, p->c0), false,
                   clnet__flips(g, node, p->n0), &node->desc.flip, &s);
}

// The desc without its means.
static clnet_flip_desc clnet__flip_slope(const clnet_node *node) {
    clnet_flip_desc d = node->desc.flip;
    memset(d.mean, 0, sizeof d.mean);
    return d;
}

static void clnet__flip_backward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    const clnet_flip_desc d = clnet__flip_slope(node);
    clnet_sizes s = clnet__sizes(node, p);
    s.x_stride = node->out->stride;
    s.y_stride = node->in[0]->stride;
    clnet_ref_flip(clnet__grad(node->in[0]) + clnet__at(node->in[0], p->n0, p->c0),
                   clnet__grad(node->out) + clnet__at(node->out, p->n0, p->c0), true,
                   clnet__flips(g, node, p->n0), &d, &s);
}

clnet_tensor *clnet_flip(clnet_graph *g, clnet_tensor *x, clnet_tensor *flips,
                         const clnet_flip_desc *d) {
    clnet_flip_desc full = d ? *d : (clnet_flip_desc){{0}, {0}};
    bool finite = true;
    for (int c = 0; c < CLNET_FLIP_CHANNELS; c++) {
        full.std[c] = clnet__or_double(full.std[c], 1);
        finite = finite && isfinite(full.mean[c]) && isfinite(full.std[c]);
    }
    clnet_tensor *in[2] = {x, flips};
    if (!clnet__valid(in, flips ? 2 : 1)) {
        return NULL;
    }
    if (flips && (!flips->integer || flips->shape[0] != x->shape[0])) {
        return clnet__refuse(x, "flip: needs %d whole numbers, one for each image", x->shape[0]);
    }
    if (!finite || (x->shape[1] > CLNET_FLIP_CHANNELS && !clnet__flip_plain(&full))) {
        return clnet__refuse(
            x, "flip: mean and std have to be finite, of at most %d channels; x has %d",
            CLNET_FLIP_CHANNELS, x->shape[1]);
    }
    clnet_node *node = clnet__node(g, CLNET_OP_FLIP, in, 2);
    if (!node) {
        return NULL;
    }
    if (flips) {
        flips->classes = 4;
    }
    node->desc.flip = full;
    return clnet__output(node, x->shape[0], x->shape[1], x->shape[2], x->shape[3]);
}

// >>focal_loss
// L = 1/M sum over labelled n of -a[t] q^gamma lp, with lp = log p_t, q = 1 - p_t, p = softmax(z),
// M their number. lp = (z_t - max) - log1p(rest), rest = the exponentials but the maximum's.
// backward: with r = lp / q, which goes to -1 with q, and dp_t/dz_j = p_t (delta_tj - p_j),
//     dL/dz_j = a[t]/M q^gamma (gamma p_t r - 1) (delta_tj - p_j),   where delta_tt - p_t = q:
// no difference of nearly equal numbers and no division by a small one. gamma = 0: cross entropy.

typedef struct clnet__focal {
    double max, sum; // of the exponentials
    double log_p, q; // of the label
} clnet__focal;

static clnet__focal clnet__focal_of(const clnet_real *z, int K, int t) {
    int top = 0;
    for (int k = 1; k < K; k++) {
        top = z[k] > z[top] ? k : top;
    }
    double rest = 0, others = 0; // exponentials but the maximum's; but the label's
    for (int k = 0; k < K; k++) {
        const double e = exp((double)z[k] - (double)z[top]);
        rest += k == top ? 0 : e;
        others += k == t ? 0 : e;
    }
    return (clnet__focal){.max = (double)z[top],
                          .sum = 1 + rest,
                          .q = others / (1 + rest),
                          .log_p = ((double)z[t] - (double)z[top]) - log1p(rest)};
}

static double clnet__power(double q, double gamma) { return gamma == 2 ? q * q : pow(q, gamma); }

static double clnet__focal_alpha(const clnet_focal_loss_desc *d, int t, int K) {
    bool none = true;
    for (int k = 0; k < K; k++) {
        none = none && d->alpha[k] == 0;
    }
    return none ? 1 : d->alpha[t];
}

static int clnet__labelled(const int32_t *label, int N, int K) {
    int count = 0;
    for (int n = 0; n < N; n++) {
        count += label[n] >= 0 && label[n] < K;
    }
    return count;
}

double clnet_ref_focal_loss_forward(const clnet_real *logits, const int32_t *label, int N, int K,
                                    const clnet_focal_loss_desc *d) {
    double sum = 0;
    const int count = clnet__labelled(label, N, K);
    for (int n = 0; n < N; n++) {
        if (label[n] >= 0 && label[n] < K) {
            const clnet__focal f = clnet__focal_of(logits + clnet__volume(1, n, K), K, label[n]);
            sum -= clnet__focal_alpha(d, label[n], K) * clnet__power(f.q, d->gamma) * f.log_p;
        }
    }
    return count ? sum / count : 0;
}

void clnet_ref_focal_loss_backward(clnet_real *dlogits, double scale, const clnet_real *logits,
                                   const int32_t *label, int N, int K,
                                   const clnet_focal_loss_desc *d) {
    const int count = clnet__labelled(label, N, K);
    for (int n = 0; n < N; n++) {
        if (label[n] < 0 || label[n] >= K) {
            continue;
        }
        const clnet_real *z = logits + clnet__volume(1, n, K);
        const clnet__focal f = clnet__focal_of(z, K, label[n]);
        const double ratio = f.q > 0 ? f.log_p / f.q : -1;
        const double factor = scale * clnet__focal_alpha(d, label[n], K) / count *
                              clnet__power(f.q, d->gamma) * (d->gamma * exp(f.log_p) * ratio - 1);
        for (int k = 0; k < K; k++) {
            const double p = exp((double)z[k] - f.max) / f.sum;
            (dlogits + clnet__volume(1, n, K))[k] +=
                (clnet_real)(factor * (k == label[n] ? f.q : -p));
        }
    }
}

static void clnet__focal_loss_forward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g, (void)p;
    const clnet_tensor *z = node->in[0];
    clnet__value(node->out)[0] =
        (clnet_real)clnet_ref_focal_loss_forward(clnet__value(z), clnet__integers(node->in[1]),
                                                 z->shape[0], z->shape[1], &node->desc.focal_loss);
}

static void clnet__focal_loss_backward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g, (void)p;
    const clnet_tensor *z = node->in[0];
    clnet_ref_focal_loss_backward(clnet__grad(z), (double)clnet__grad(node->out)[0],
                                  clnet__value(z), clnet__integers(node->in[1]), z->shape[0],
                                  z->shape[1], &node->desc.focal_loss);
}

// The output of a loss: one number that does not follow the batch.
static clnet_tensor *clnet__scalar(clnet_node *node) {
    clnet_tensor *y = node ? clnet__output(node, 1, 1, 1, 1) : NULL;
    if (y) {
        y->rank = 0;
        y->batched = false;
        y->keep = true;
    }
    return y;
}

clnet_tensor *clnet_focal_loss(clnet_graph *g, clnet_tensor *logits, clnet_tensor *label,
                               const clnet_focal_loss_desc *d) {
    clnet_tensor *in[2] = {logits, label};
    if (!clnet__valid(in, 2)) {
        return NULL;
    }
    if (!label->integer || clnet__pixels(logits) != 1 || label->shape[0] != logits->shape[0] ||
        logits->shape[1] > CLNET_MAX_CLASSES || !(d->gamma >= 0)) {
        return clnet__refuse(logits,
                             "focal_loss: needs logits (N,K) with K up to %d, labels (N) and "
                             "gamma >= 0; found (%d,%d,%d,%d), (%d) and %g",
                             CLNET_MAX_CLASSES, logits->shape[0], logits->shape[1],
                             logits->shape[2], logits->shape[3], label->shape[0], d->gamma);
    }
    clnet_node *node = clnet__node(g, CLNET_OP_FOCAL_LOSS, in, 2);
    if (!node) {
        return NULL;
    }
    node->desc.focal_loss = *d;
    label->classes = logits->shape[1];
    return clnet__scalar(node);
}

// >>mask_focal_loss
// Per pixel, with u = z where the mask is set, else -z: p = sigmoid(u), q = 1 - p = sigmoid(-u),
// lp = log p = -log(1 + exp(-u)); L = mean of -q^gamma lp over the pixels of images with a mask.
// backward: dL/du = q^gamma (gamma p lp - q) / number of pixels, dz = dL/du or -dL/du.

static double clnet__log_sigmoid(double u) { return u < 0 ? u - log1p(exp(u)) : -log1p(exp(-u)); }

// How many images have a mask.
static int clnet__masked(const clnet_real *mask, int N, size_t pixels) {
    int count = 0;
    for (int n = 0; n < N; n++) {
        count += !(mask[(size_t)n * pixels] < 0);
    }
    return count;
}

double clnet_ref_mask_focal_loss_forward(const clnet_real *logits, const clnet_real *mask, int N,
                                         size_t pixels, double gamma) {
    double sum = 0;
    const int count = clnet__masked(mask, N, pixels);
    for (size_t i = 0; i < (size_t)N * pixels; i++) {
        if (!(mask[i / pixels * pixels] < 0)) {
            const double u = mask[i] > (clnet_real)0.5 ? (double)logits[i] : -(double)logits[i];
            sum -= clnet__power(clnet__sigmoid(-u), gamma) * clnet__log_sigmoid(u);
        }
    }
    return count ? sum / ((double)count * (double)pixels) : 0;
}

void clnet_ref_mask_focal_loss_backward(clnet_real *dlogits, double scale, const clnet_real *logits,
                                        const clnet_real *mask, int N, size_t pixels,
                                        double gamma) {
    const double share = scale / ((double)clnet__masked(mask, N, pixels) * (double)pixels);
    for (size_t i = 0; i < (size_t)N * pixels; i++) {
        if (!(mask[i / pixels * pixels] < 0)) {
            const double sign = mask[i] > (clnet_real)0.5 ? 1 : -1, u = sign * (double)logits[i];
            const double q = clnet__sigmoid(-u), p = clnet__sigmoid(u);
            const double slope = clnet__power(q, gamma) * (gamma * p * clnet__log_sigmoid(u) - q);
            dlogits[i] += (clnet_real)(sign * share * slope);
        }
    }
}

static void clnet__mask_focal_loss_forward(clnet_graph *g, clnet_node *node,
                                           const clnet__piece *p) {
    (void)g, (void)p;
    const clnet_tensor *z = node->in[0];
    clnet__value(node->out)[0] = (clnet_real)clnet_ref_mask_focal_loss_forward(
        clnet__value(z), clnet__value(node->in[1]), z->shape[0], clnet__pixels(z),
        node->desc.value);
}

static void clnet__mask_focal_loss_backward(clnet_graph *g, clnet_node *node,
                                            const clnet__piece *p) {
    (void)g, (void)p;
    const clnet_tensor *z = node->in[0];
    clnet_ref_mask_focal_loss_backward(clnet__grad(z), (double)clnet__grad(node->out)[0],
                                       clnet__value(z), clnet__value(node->in[1]), z->shape[0],
                                       clnet__pixels(z), node->desc.value);
}

// What both losses on masks share: logits and mask of one channel and the same shape.
static clnet_tensor *clnet__mask_loss(clnet_graph *g, clnet_op op, const char *name,
                                      clnet_tensor *logits, clnet_tensor *mask, double value) {
    clnet_tensor *in[2] = {logits, mask};
    if (!clnet__valid(in, 2)) {
        return NULL;
    }
    if (memcmp(logits->shape, mask->shape, sizeof mask->shape) || mask->shape[1] != 1 ||
        mask->stride != 1 || logits->stride != 1 || !(value >= 0)) {
        return clnet__refuse(logits,
                             "%s: needs logits and mask (N,1,H,W) and gamma or smooth >= 0; "
                             "found (%d,%d,%d,%d), (%d,%d,%d,%d) and %g",
                             name, logits->shape[0], logits->shape[1], logits->shape[2],
                             logits->shape[3], mask->shape[0], mask->shape[1], mask->shape[2],
                             mask->shape[3], value);
    }
    clnet_node *node = clnet__node(g, op, in, 2);
    if (!node) {
        return NULL;
    }
    node->desc.value = value;
    return clnet__scalar(node);
}

clnet_tensor *clnet_mask_focal_loss(clnet_graph *g, clnet_tensor *logits, clnet_tensor *mask,
                                    double gamma) {
    return clnet__mask_loss(g, CLNET_OP_MASK_FOCAL_LOSS, "mask_focal_loss", logits, mask, gamma);
}

// >>dice_loss
// D = (2 I + s) / (P + M + s), I = sum(p m), P = sum(p), M = sum(m), p = sigmoid(z);
// L = mean over images with a mask of 1 - D. backward, from dD/dp = (2 m - D) / (P + M + s):
//     dL/dz = (D - 2 m) / (P + M + s) p (1 - p) / images

typedef struct clnet__dice {
    double dice, denominator;
} clnet__dice;

static clnet__dice clnet__dice_of(const clnet_real *z, const clnet_real *m, size_t pixels,
                                  double smooth) {
    double both = 0, predicted = 0, truth = 0;
    for (size_t i = 0; i < pixels; i++) {
        const double p = clnet__sigmoid((double)z[i]);
        both += p * (double)m[i];
        predicted += p;
        truth += (double)m[i];
    }
    const double denominator = predicted + truth + smooth;
    return (clnet__dice){denominator > 0 ? (2 * both + smooth) / denominator
                                         : (denominator == 0 ? 1 : denominator),
                         denominator};
}

double clnet_ref_dice_loss_forward(const clnet_real *logits, const clnet_real *mask, int N,
                                   size_t pixels, double smooth) {
    double sum = 0;
    const int count = clnet__masked(mask, N, pixels);
    for (size_t n = 0; n < (size_t)N; n++) {
        if (!(mask[n * pixels] < 0)) {
            sum += 1 - clnet__dice_of(logits + n * pixels, mask + n * pixels, pixels, smooth).dice;
        }
    }
    return count ? sum / count : 0;
}

void clnet_ref_dice_loss_backward(clnet_real *dlogits, double scale, const clnet_real *logits,
                                  const clnet_real *mask, int N, size_t pixels, double smooth) {
    const int count = clnet__masked(mask, N, pixels);
    for (size_t n = 0; n < (size_t)N; n++) {
        const clnet_real *z = logits + n * pixels, *m = mask + n * pixels;
        if (m[0] < 0) {
            continue;
        }
        const clnet__dice d = clnet__dice_of(z, m, pixels, smooth);
        for (size_t i = 0; d.denominator != 0 && i < pixels; i++) {
            const double p = clnet__sigmoid((double)z[i]),
                         slope = p * clnet__sigmoid(-(double)z[i]);
            dlogits[n * pixels + i] +=
                (clnet_real)(scale / count * (d.dice - 2 * (double)m[i]) / d.denominator * slope);
        }
    }
}

static void clnet__dice_loss_forward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g, (void)p;
    const clnet_tensor *z = node->in[0];
    clnet__value(node->out)[0] =
        (clnet_real)clnet_ref_dice_loss_forward(clnet__value(z), clnet__value(node->in[1]),
                                                z->shape[0], clnet__pixels(z), node->desc.value);
}

static void clnet__dice_loss_backward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g, (void)p;
    const clnet_tensor *z = node->in[0];
    clnet_ref_dice_loss_backward(clnet__grad(z), (double)clnet__grad(node->out)[0], clnet__value(z),
                                 clnet__value(node->in[1]), z->shape[0], clnet__pixels(z),
                                 node->desc.value);
}

clnet_tensor *clnet_dice_loss(clnet_graph *g, clnet_tensor *logits, clnet_tensor *mask,
                              double smooth) {
    return clnet__mask_loss(g, CLNET_OP_DICE_LOSS, "dice_loss", logits, mask, smooth);
}

// >>weighted_sum
// y = sum of weight_i x_i; backward: dx_i += weight_i dy.

static void clnet__weighted_sum_forward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g, (void)p;
    double sum = 0;
    for (int i = 0; i < node->inputs; i++) {
        sum += node->desc.weight[i] * (double)clnet__value(node->in[i])[0];
    }
    clnet__value(node->out)[0] = (clnet_real)sum;
}

static void clnet__weighted_sum_backward(clnet_graph *g, clnet_node *node, const clnet__piece *p) {
    (void)g, (void)p;
    for (int i = 0; i < node->inputs; i++) {
        if (clnet__grad(node->in[i])) {
            clnet__grad(node->in[i])[0] +=
                (clnet_real)(node->desc.weight[i] * (double)clnet__grad(node->out)[0]);
        }
    }
}

clnet_tensor *clnet_weighted_sum(clnet_graph *g, clnet_tensor *const *x, const double *weight,
                                 int count) {
    if (!clnet__valid(x, clnet__min(count, CLNET_MAX_INPUTS))) {
        return NULL;
    }
    for (int i = 0; i < count && i < CLNET_MAX_INPUTS; i++) {
        if (x[i]->rank != 0) {
            return clnet__refuse(x[i], "weighted_sum: input %d is not a scalar", i);
        }
    }
    if (count < 1 || count > CLNET_MAX_INPUTS) {
        return clnet__refuse(x[0], "weighted_sum: 1 to %d inputs, found %d", CLNET_MAX_INPUTS,
                             count);
    }
    clnet_node *node = clnet__node(g, CLNET_OP_WEIGHTED_SUM, x, count);
    if (!node) {
        return NULL;
    }
    memcpy(node->desc.weight, weight, (size_t)count * sizeof *weight);
    return clnet__scalar(node);
}

// >>plan
// The list of nodes, and the plan of its memory. Time runs from 0 to 2n - 1: node i runs forward at i
// and backward at 2n - 1 - i. Every value, gradient and saved tensor lives from its first write to
// its last read on that line, a value that is computed again (see clnet__plan_again) in two parts; two
// that never live at the same time may share bytes.

// A slab in pieces: devices give only a part of their memory at a time. No tensor crosses a border.
typedef struct clnet__slab {
    clnet_memory *pieces; // `bytes` as planned, without a handle until they are taken
    int count;
} clnet__slab;

struct clnet_adam {
    clnet_graph *graph;
    clnet_adam_desc desc;
    uint64_t steps;
    clnet__slab moment[2]; // laid out as the slab of parameters
};

struct clnet_graph {
    clnet_context *ctx;
    clnet_node **nodes;
    clnet_tensor **tensors, **weights,
        **activations; // all; parameters and buffers; inputs and outputs
    int node_count, tensor_count, weight_count, activation_count;
    int batch, largest_batch; // 0 before the first input
    bool failed, planned, built, training;
    bool keep_all;
    bool weight_grad;     // weights have gradients
    bool no_accumulation; // .. in the arena
    bool overwritten;     // .. where a forward has written since the last backward
    bool again;           // forward runs for values that backward needs and that were not kept
    bool fresh;           // a forward has run since the last backward, which overwrites activations
    uint64_t seed, step, batches; // batches: forwards in training, BN's num_batches_tracked
    double loss_scale;
    clnet_tensor *loss;
    clnet_memory_plan plan;
    clnet__slab parameters, buffers, gradients, arena;
    clnet_memory workspace;
    clnet_adam *adam;
};

static const clnet__cpu *clnet__cpu_of(const clnet_graph *g) { return &g->ctx->cpu; }
static void *clnet__workspace(const clnet_graph *g) { return g->workspace.handle; }
static bool clnet__training(const clnet_graph *g) { return g->training; }
static bool clnet__again(const clnet_graph *g) { return g->again; }

// Every dropout node of every step draws from a stream of its own.
static uint64_t clnet__dropout_stream(const clnet_graph *g, const clnet_node *node,
                                      uint64_t *seed) {
    *seed = g->seed;
    return ((uint64_t)node->index + 1) << 40 | (g->step & 0xffffffffffu);
}

// Builders: an input that is NULL, or a graph that has failed, is passed on.
static bool clnet__valid(clnet_tensor *const *x, int count) {
    for (int i = 0; i < count; i++) {
        if (!x[i] || x[i]->graph->failed) {
            return false;
        }
    }
    return true;
}

static clnet_tensor *clnet__refuse(clnet_tensor *x, const char *format, ...) {
    if (x) {
        char text[512];
        va_list args;
        va_start(args, format);
        vsnprintf(text, sizeof text, format, args);
        va_end(args);
        clnet__fail(x->graph->ctx, CLNET_ERROR_ARGUMENT, "%s", text);
        x->graph->failed = true;
    }
    return NULL;
}

clnet_graph *clnet_graph_create(clnet_context *ctx) {
    if (!ctx || ctx->result != CLNET_OK) {
        return NULL;
    }
    clnet_graph *g = clnet__alloc(ctx, sizeof *g);
    if (g) {
        g->ctx = ctx;
        g->loss_scale = 1;
    }
    return g;
}

static void clnet__give_back(clnet_context *ctx, clnet_memory *memory) {
    if (memory->handle) {
        ctx->backend.free(ctx, memory);
    }
}

void clnet_graph_destroy(clnet_graph *g) {
    if (!g) {
        return;
    }
    clnet_context *ctx = g->ctx;
    for (int i = 0; i < g->node_count; i++) {
        clnet__free(ctx, g->nodes[i]);
    }
    for (int i = 0; i < g->tensor_count; i++) {
        clnet__free(ctx, g->tensors[i]->name);
        clnet__free(ctx, g->tensors[i]);
    }
    clnet__slab *slabs[] = {&g->parameters,
                            &g->buffers,
                            g->no_accumulation ? NULL : &g->gradients,
                            &g->arena,
                            g->adam ? &g->adam->moment[0] : NULL,
                            g->adam ? &g->adam->moment[1] : NULL};
    for (size_t i = 0; i < sizeof slabs / sizeof *slabs; i++) {
        for (int k = 0; slabs[i] && k < slabs[i]->count; k++) {
            clnet__give_back(ctx, &slabs[i]->pieces[k]);
        }
        clnet__free(ctx, slabs[i] ? slabs[i]->pieces : NULL);
    }
    clnet__give_back(ctx, &g->workspace);
    clnet__free(ctx, g->no_accumulation ? g->gradients.pieces : NULL);
    clnet__free(ctx, g->nodes);
    clnet__free(ctx, g->tensors);
    clnet__free(ctx, g->weights);
    clnet__free(ctx, g->activations);
    clnet__free(ctx, g->adam);
    clnet__free(ctx, g);
}

clnet_context *clnet_graph_context(const clnet_graph *g) { return g->ctx; }

// Appends to a list of pointers; false: no memory, and the graph has failed.
static bool clnet__append(clnet_graph *g, void *list, int *count, void *item) {
    void *items;
    memcpy(&items, list, sizeof items);
    if (!item || !clnet__grow(g->ctx, &items, *count, sizeof(void *))) {
        g->failed = true;
        return false;
    }
    memcpy((char *)items + (size_t)*count * sizeof(void *), &item, sizeof item);
    memcpy(list, &items, sizeof items);
    (*count)++;
    return true;
}

static clnet_tensor *clnet__tensor(clnet_graph *g, clnet_role role, const char *name, int rank,
                                   const int shape[4]) {
    size_t count = sizeof(clnet_real);
    for (int i = 0; i < 4; i++) {
        if (shape[i] < 1 || !clnet__mul(count, (size_t)shape[i], &count) || count > SIZE_MAX / 4) {
            clnet__fail(g->ctx, CLNET_ERROR_ARGUMENT, "%s: a shape of (%d,%d,%d,%d)", name,
                        shape[0], shape[1], shape[2], shape[3]);
            g->failed = true;
            return NULL;
        }
    }
    clnet_tensor *t = clnet__alloc(g->ctx, sizeof *t);
    if (!clnet__append(g, &g->tensors, &g->tensor_count, t)) {
        clnet__free(g->ctx, t);
        return NULL;
    }
    *t = (clnet_tensor){.graph = g,
                        .role = role,
                        .rank = rank,
                        .last_use = -1,
                        .first_summand = -1,
                        .name = clnet__copy_text(g->ctx, name),
                        .batched = true};
    memcpy(t->shape, shape, sizeof t->shape);
    t->stride = (size_t)shape[1];
    g->failed = g->failed || !t->name;
    return t->name ? t : NULL;
}

static clnet_tensor *clnet__input(clnet_graph *g, const char *name, int rank, const int shape[4]) {
    if (!g || g->failed || g->ctx->result != CLNET_OK) {
        return NULL;
    }
    if (!name || (g->largest_batch && g->largest_batch != shape[0])) {
        clnet__fail(g->ctx, CLNET_ERROR_ARGUMENT,
                    "input %s: a batch of %d in a graph for batches of %d",
                    name ? name : "without a name", shape[0], g->largest_batch);
        g->failed = true;
        return NULL;
    }
    clnet_tensor *t = clnet__tensor(g, CLNET_ROLE_INPUT, name, rank, shape);
    if (!t || !clnet__append(g, &g->activations, &g->activation_count, t)) {
        return NULL;
    }
    g->batch = g->largest_batch = shape[0];
    return t;
}

clnet_tensor *clnet_input(clnet_graph *g, const char *name, int n, int c, int h, int w) {
    const int shape[4] = {n, c, h, w};
    return clnet__input(g, name, 4, shape);
}

clnet_tensor *clnet_input_labels(clnet_graph *g, const char *name, int n) {
    const int shape[4] = {n, 1, 1, 1};
    clnet_tensor *t = clnet__input(g, name, 1, shape);
    if (t) {
        t->integer = true;
    }
    return t;
}

// The weight "layer.what" of a layer; names are unique in a graph.
static clnet_tensor *clnet__weight(clnet_graph *g, const char *layer, const char *what, int rank,
                                   const int shape[4], clnet_initial initial, double scale) {
    char name[256];
    const int length = snprintf(name, sizeof name, "%s.%s", layer, what);
    const int one[4] = {shape[0], 1, 1, 1};
    if (length < 0 || (size_t)length >= sizeof name || clnet_graph_find_weight(g, name)) {
        clnet__fail(g->ctx, CLNET_ERROR_ARGUMENT, "%s: a name that is %s", name,
                    length < 0 || (size_t)length >= sizeof name ? "too long" : "used twice");
        g->failed = true;
        return NULL;
    }
    clnet_tensor *t = clnet__tensor(g, CLNET_ROLE_PARAMETER, name, rank, rank == 1 ? one : shape);
    if (!t || !clnet__append(g, &g->weights, &g->weight_count, t)) {
        return NULL;
    }
    t->batched = false;
    t->initial = initial;
    t->initial_scale = scale;
    return t;
}

// A weight that the optimiser leaves alone.
static clnet_tensor *clnet__buffer(clnet_tensor *weight) {
    if (weight) {
        weight->role = CLNET_ROLE_BUFFER;
    }
    return weight;
}

static clnet_node *clnet__node(clnet_graph *g, clnet_op op, clnet_tensor *const *in, int inputs) {
    if (g->failed || g->planned) {
        if (g->planned) {
            clnet__refuse(in[0], "%s: added after the graph was planned", in[0]->name);
        }
        return NULL;
    }
    for (int i = 0; i < inputs; i++) {
        if (in[i] && in[i]->graph != g) {
            clnet__refuse(in[i], "%s: belongs to another graph", in[i]->name);
            g->failed = true;
            return NULL;
        }
    }
    clnet_node *node = clnet__alloc(g->ctx, sizeof *node);
    if (!clnet__append(g, &g->nodes, &g->node_count, node)) {
        clnet__free(g->ctx, node);
        return NULL;
    }
    node->op = op;
    node->index = g->node_count - 1;
    node->again = -1;
    node->inputs = inputs;
    for (int i = 0; i < inputs; i++) {
        node->in[i] = in[i];
        if (in[i]) {
            in[i]->last_use = node->index;
        }
    }
    return node;
}

static const char *clnet__op_name(clnet_op op) {
    static const char *const names[] = {
#define X(ENUM, name, forward, backward, reads) #name,
        CLNET_OPS(X)
#undef X
    };
    return names[op];
}

// The node's output, under a name of its own until clnet_tensor_rename.
static clnet_tensor *clnet__output(clnet_node *node, int n, int c, int h, int w) {
    clnet_graph *g = node->in[0]->graph;
    const int shape[4] = {n, c, h, w};
    char name[64];
    snprintf(name, sizeof name, "%s_%d", clnet__op_name(node->op), node->index);
    node->out = clnet__tensor(g, CLNET_ROLE_ACTIVATION, name, 4, shape);
    if (!node->out || !clnet__append(g, &g->activations, &g->activation_count, node->out)) {
        return NULL;
    }
    node->out->producer = node;
    return node->out;
}

static clnet_tensor *clnet__saved(clnet_node *node, int slot, int n, int c, int h, int w,
                                  bool integer) {
    const int shape[4] = {n, c, h, w};
    clnet_tensor *t = clnet__tensor(node->in[0]->graph, CLNET_ROLE_SAVED, "saved", 4, shape);
    if (t) {
        t->producer = node;
        t->integer = integer;
        t->batched = integer; // an argmax per output, or numbers per channel
    }
    return node->saved[slot] = t;
}

clnet_tensor *clnet_tensor_rename(clnet_tensor *t, const char *name) {
    if (!t || !name) {
        return t;
    }
    char *copy = clnet__copy_text(t->graph->ctx, name);
    if (!copy) {
        t->graph->failed = true;
        return NULL;
    }
    clnet__free(t->graph->ctx, t->name);
    t->name = copy;
    return t;
}

clnet_tensor *clnet_tensor_keep(clnet_tensor *t) {
    if (t) {
        t->keep = true;
    }
    return t;
}

clnet_tensor *clnet_tensor_require_grad(clnet_tensor *t) {
    if (t) {
        t->require_grad = true;
    }
    return t;
}

// What backward of an operation reads, as bits.
static unsigned clnet__reads(clnet_op op) {
    static const unsigned reads[] = {
#define X(ENUM, name, forward, backward, bits) bits,
        CLNET_OPS(X)
#undef X
    };
    return reads[op];
}

// The last node whose backward adds to the gradient of t, -1: none.
static int clnet__last_backward_reader(const clnet_graph *g, const clnet_tensor *t) {
    int last = -1;
    for (int k = 0; k <= t->last_use; k++) {
        const clnet_node *node = g->nodes[k];
        for (int j = 0; j < node->inputs; j++) {
            if (node->in[j] == t && node->backward) {
                last = clnet__max(last, node->host ? node->host->index : k);
            }
        }
    }
    return last;
}

// Which tensors need a gradient: what is upstream of the loss and downstream of a parameter, or of a
// tensor whose gradient was asked for. A node takes part in backward where it can pass one on.
static void clnet__plan_gradients(clnet_graph *g, const clnet_build_desc *d) {
    for (int i = 0; i < g->tensor_count; i++) {
        clnet_tensor *t = g->tensors[i];
        t->needs_grad =
            d->loss && (t->require_grad || (t->role == CLNET_ROLE_PARAMETER && !d->no_weight_grad));
    }
    for (int i = 0; i < g->node_count; i++) {
        clnet_node *node = g->nodes[i];
        for (int k = 0; k < node->inputs; k++) {
            if (node->in[k] && node->in[k]->needs_grad) {
                node->backward = node->out->needs_grad = true;
            }
        }
    }
    // Nodes that the loss does not depend on take no part. `keep` marks are not touched.
    for (int i = g->node_count - 1; i >= 0; i--) {
        clnet_node *node = g->nodes[i];
        const bool reached = node->out == d->loss || clnet__last_backward_reader(g, node->out) >= 0;
        node->backward = node->backward && reached;
        node->out->needs_grad = node->out->needs_grad && reached;
    }
    for (int i = 0; i < g->tensor_count; i++) {
        clnet_tensor *t = g->tensors[i];
        if (t->role == CLNET_ROLE_INPUT && clnet__last_backward_reader(g, t) < 0) {
            t->needs_grad = false;
        }
    }
}

// The node that reads t, where only one does, once, and nobody else may look at its values; or NULL.
static clnet_node *clnet__only_reader(const clnet_graph *g, const clnet_tensor *t,
                                      const clnet_build_desc *d) {
    clnet_node *reader = NULL;
    int readers = 0;
    for (int k = 0; k <= t->last_use; k++) {
        for (int j = 0; j < g->nodes[k]->inputs; j++) {
            if (g->nodes[k]->in[j] == t) {
                reader = g->nodes[k];
                readers++;
            }
        }
    }
    return readers == 1 && t->producer && !t->keep && !t->require_grad && !d->keep_all &&
                   t != d->loss
               ? reader
               : NULL;
}

// Pass "in place": ReLU writes over its input where nobody else reads that, neither forward nor, for
// its producer, backward; and over the gradient of its output, unless that was asked for. Saves one
// tensor for each convolution, batch norm and ReLU.
static void clnet__plan_in_place(clnet_graph *g, const clnet_build_desc *d) {
    for (int i = 0; i < g->node_count; i++) {
        clnet_node *node = g->nodes[i];
        clnet_tensor *x = node->in[0];
        if (node->op == CLNET_OP_RELU && clnet__only_reader(g, x, d) == node &&
            !node->out->require_grad && !(clnet__reads(x->producer->op) & CLNET_READS_OUT)) {
            node->in_place = true;
            x->inside = node->out;
        }
    }
}

// Leaves `next`, which reads x, to the node that makes x.
static clnet_tensor *clnet__absorb(clnet_node *node, clnet_tensor *x, clnet_node *next) {
    next->host = node;
    x->inside = next->out;
    return next->out;
}

// .. and what may follow batch norm, whose output x is: the addition of what is there by then, ReLU.
static void clnet__absorb_rest(clnet_node *node, clnet_tensor *x, const clnet_build_desc *d) {
    clnet_node *next = clnet__only_reader(x->graph, x, d);
    if (next && next->op == CLNET_OP_ADD && next->backward == node->backward) {
        clnet_tensor *other = next->in[next->in[0] == x];
        if (!other->producer || other->producer->index < node->index) {
            node->summand = other;
            x = clnet__absorb(node, x, next);
            next = clnet__only_reader(x->graph, x, d);
        }
    }
    if (next && next->op == CLNET_OP_RELU && next->backward == node->backward) {
        node->relu = true;
        clnet__absorb(node, x, next);
    }
}

// Pass "epilogues", of a graph without a loss: what follows a convolution - batch norm, the addition
// of what is there by then, ReLU, any of them missing at the end - is computed by it in evaluation,
// on sums that are in L1, instead of in a pass over memory each. All of it lies in the memory of the
// last output. In training, batch norm needs the sums of all pixels first: then the nodes run one by
// one, in place.
static void clnet__plan_epilogues(clnet_graph *g, const clnet_build_desc *d) {
    for (int i = 0; g->ctx->backend.epilogues && !d->loss && i < g->node_count; i++) {
        clnet_node *node = g->nodes[i];
        clnet_node *next = clnet__only_reader(g, node->out, d);
        if ((node->op != CLNET_OP_CONV2D && node->op != CLNET_OP_CONV2D_JOINED) || !next ||
            next->op != CLNET_OP_BATCH_NORM) {
            continue;
        }
        node->batch_norm = next;
        clnet_tensor *factor = next->saved[1];
        factor->producer = node; // which writes it first
        factor->last_use = next->index;
        clnet__absorb_rest(node, clnet__absorb(node, node->out, next), d);
    }
}

// Pass "norms": the addition of what is there by then and ReLU behind a batch norm that no convolution
// computes are computed by it, in training as in evaluation, as its output is written; backward, their
// gradients as its own are read. So they cost no pass over memory of their own.
static void clnet__plan_norms(clnet_graph *g, const clnet_build_desc *d) {
    for (int i = 0; g->ctx->backend.norm_epilogues && i < g->node_count; i++) {
        clnet_node *node = g->nodes[i];
        if (node->op == CLNET_OP_BATCH_NORM && !node->host) {
            clnet__absorb_rest(node, node->out, d);
        }
    }
}

// Pass "concat": what is concatenated is written where the whole lies, as channels of it, so that
// nothing is copied; its gradient is the same slice of the whole's. Every reader of an input adds to
// that slice, which is why the gradient of neither may have been asked for. An input that is there
// twice, or in two concatenations, is a slice of the first. The output of max pooling is copied: its
// argmax is laid out as the output is.
static void clnet__plan_concat(clnet_graph *g, const clnet_build_desc *d) {
    for (int i = 0; i < g->node_count; i++) {
        clnet_node *node = g->nodes[i];
        for (int k = 0, first = 0; node->op == CLNET_OP_CONCAT && k < node->inputs; k++) {
            clnet_tensor *x = node->in[k];
            if (x->producer && !x->inside && !x->require_grad && x != d->loss &&
                !node->out->require_grad && node->out != d->loss &&
                (node->out->needs_grad || !x->needs_grad) &&
                x->producer->op != CLNET_OP_MAX_POOL2D) {
                x->inside = node->out;
                x->first_channel = first;
            }
            first += x->shape[1];
        }
    }
}

// The tensor in whose memory t lies in the end.
static clnet_tensor *clnet__owner(clnet_tensor *t) {
    while (t->inside) {
        t = t->inside;
    }
    return t;
}

// A part of the time line; none of it where first > last.
typedef struct clnet__life {
    int first, last;
} clnet__life;

static const clnet__life clnet__never = {INT_MAX, -2};

static void clnet__extend(clnet__life *span, int first, int last) {
    span->first = clnet__min(span->first, first);
    span->last = clnet__max(span->last, last);
}

static bool clnet__meet(const clnet__life *a, const clnet__life *b) {
    return a->first <= b->last && b->first <= a->last;
}

// One stretch of memory to be placed: a value or a gradient, and when it lives.
typedef struct clnet__block {
    clnet_tensor *tensor;
    bool gradient;
    clnet__life life, again; // again: of a value that is computed a second time
    size_t bytes, offset;
} clnet__block;

static bool clnet__together(const clnet__block *a, const clnet__block *b) {
    return clnet__meet(&a->life, &b->life) || clnet__meet(&a->life, &b->again) ||
           clnet__meet(&a->again, &b->life) || clnet__meet(&a->again, &b->again);
}

// Whether backward reads a node's output. Of ReLU, batch norm can tell the sign from its own input,
// unless something was added.
static bool clnet__reads_out(const clnet_node *node) {
    return clnet__reads(node->op) & CLNET_READS_OUT && (!node->host || node->host->summand);
}

// When backward reads the values of t, be it to compute others again.
static clnet__life clnet__backward_life(const clnet_graph *g, const clnet_tensor *t) {
    const int end = 2 * g->node_count - 1;
    const clnet_node *producer = t->producer;
    clnet__life life = clnet__never;
    if (producer && t->role == CLNET_ROLE_SAVED && producer->again >= 0) {
        clnet__extend(&life, end - producer->again, end - producer->again);
    }
    if (producer && producer->backward &&
        (t->role == CLNET_ROLE_SAVED || clnet__reads_out(producer))) {
        const int at = end - (producer->host ? producer->host->index : producer->index);
        clnet__extend(&life, at, at);
    }
    for (int k = 0; k <= t->last_use; k++) {
        const clnet_node *node = g->nodes[k];
        for (int j = 0; j < node->inputs; j++) {
            if (node->in[j] == t && node->backward && clnet__reads(node->op) & CLNET_READS(j)) {
                clnet__extend(&life, end - k, end - k);
            }
            if (node->in[j] == t && node->again >= 0) {
                clnet__extend(&life, end - node->again, end - node->again);
            }
        }
    }
    return life;
}

// Whether all that lies in a tensor's memory may be computed again.
static bool clnet__cheap(const clnet_graph *g, const clnet_tensor *owner) {
    bool cheap = true;
    for (int i = 0; i < g->tensor_count && cheap; i++) {
        clnet_tensor *t = g->tensors[i];
        cheap =
            clnet__owner(t) != owner || (!t->keep && clnet__reads(t->producer->op) & CLNET_AGAIN);
    }
    return cheap;
}

// Pass "again": what costs little to compute is not kept from forward to backward but computed once
// more, before the backward that reads it first; so of a convolution, batch norm and ReLU one tensor
// stays, the convolution's output. Nodes whose outputs share memory all run again, or none of them.
// From the last node on, since one that runs again reads its inputs then.
static void clnet__plan_again(clnet_graph *g) {
    for (int i = g->node_count - 1; i >= 0 && !g->keep_all && g->loss; i--) {
        clnet_node *node = g->nodes[i];
        const clnet__life life = clnet__backward_life(g, node->out);
        if (life.first <= life.last && clnet__cheap(g, clnet__owner(node->out))) {
            node->again = 2 * g->node_count - 1 - life.first;
        }
    }
}

// The life of a value, in two parts where it is computed again.
static void clnet__value_life(const clnet_graph *g, const clnet_tensor *t, bool keep_all,
                              clnet__life *life, clnet__life *again) {
    const int born = t->producer ? t->producer->index : -1;
    const clnet__life backward = clnet__backward_life(g, t);
    const bool twice = t->role == CLNET_ROLE_ACTIVATION && t->producer->again >= 0;
    clnet__extend(life, born, clnet__max(born, t->last_use));
    if (backward.first <= backward.last) {
        clnet__extend(twice ? again : life, backward.first, backward.last);
    }
    if (t->role == CLNET_ROLE_INPUT || t->keep || keep_all) {
        clnet__extend(life, born, 2 * g->node_count);
    }
}

// A parameter's gradient that no backward adds to is 0 all the time.
static void clnet__gradient_life(const clnet_graph *g, const clnet_tensor *t, clnet__life *life) {
    const int n = g->node_count, reader = clnet__last_backward_reader(g, t);
    const int first = t == g->loss ? n : 2 * n - 1 - reader;
    const int last = t->require_grad || !t->producer ? 2 * n : 2 * n - 1 - t->producer->index;
    clnet__extend(life, t->role == CLNET_ROLE_PARAMETER && reader < 0 ? -1 : first, last);
}

static size_t clnet__tensor_bytes(const clnet_tensor *t) {
    const size_t width = t->integer ? sizeof(int32_t) : sizeof(clnet_real);
    const size_t rows = (size_t)t->shape[0] * clnet__pixels(t);
    return clnet__round_up(rows * t->stride * width, 64);
}

// Whether a tensor has bytes in the arena: its value, its gradient.
static bool clnet__in_arena(const clnet_tensor *t, bool gradient) {
    if (t->role == CLNET_ROLE_PARAMETER) {
        return gradient && t->graph->weight_grad && t->graph->no_accumulation;
    }
    return t->role != CLNET_ROLE_BUFFER &&
           (!gradient || (t->needs_grad && t->role != CLNET_ROLE_SAVED));
}

// The block of a tensor with memory of its own: it lives as long as anything inside it does. False:
// nothing does.
static bool clnet__plan_block(const clnet_graph *g, clnet_tensor *owner, bool gradient,
                              bool keep_all, clnet__block *block) {
    *block = (clnet__block){.tensor = owner,
                            .gradient = gradient,
                            .life = clnet__never,
                            .again = clnet__never,
                            .bytes = clnet__tensor_bytes(owner)};
    for (int i = 0; i < g->tensor_count; i++) {
        clnet_tensor *t = g->tensors[i];
        if (clnet__owner(t) == owner && clnet__in_arena(t, gradient)) {
            if (gradient) {
                clnet__gradient_life(g, t, &block->life);
            } else {
                clnet__value_life(g, t, keep_all, &block->life, &block->again);
            }
        }
    }
    return block->life.first <= block->life.last;
}

// Offsets run through the pieces of a slab as if each were as large as it may be.
static size_t clnet__piece_bytes(const clnet_context *ctx) {
    const size_t most = ctx->backend.largest_allocation;
    return (most ? most : SIZE_MAX) / 64 * 64;
}

// The blocks of everything in the arena, in front the *placed gradients of weights, as far apart from
// its beginning as the weights in their slab: what goes through all of them sees the same slab.
static int clnet__plan_blocks(clnet_graph *g, bool keep_all, clnet__block *blocks, int *placed) {
    int count = 0;
    for (int i = 0; i < g->weight_count; i++) {
        clnet_tensor *t = g->weights[i];
        if (clnet__in_arena(t, true)) {
            clnet__plan_block(g, t, true, keep_all, &blocks[count]);
            blocks[count++].offset =
                (size_t)(t->memory - g->parameters.pieces) * clnet__piece_bytes(g->ctx) + t->offset;
        }
    }
    *placed = count;
    for (int i = 0; i < g->tensor_count; i++) {
        clnet_tensor *t = g->tensors[i];
        if (!t->inside && clnet__in_arena(t, false)) {
            count += clnet__plan_block(g, t, false, keep_all, &blocks[count]);
            count += clnet__plan_block(g, t, true, keep_all, &blocks[count]);
        }
    }
    return count;
}

static int clnet__larger_block(const void *a, const void *b) {
    const clnet__block *x = a, *y = b;
    if (x->bytes != y->bytes) {
        return x->bytes > y->bytes ? -1 : 1;
    }
    const int later = x->life.first - y->life.first;
    return later ? later : (int)x->gradient - (int)y->gradient;
}

static void clnet__set_batch(clnet_graph *g, int batch) {
    g->batch = batch;
    for (int i = 0; i < g->tensor_count; i++) {
        if (g->tensors[i]->batched) {
            g->tensors[i]->shape[0] = batch;
        }
    }
}

// The first offset from `at` on from which `bytes` lie in one piece.
static size_t clnet__whole(size_t at, size_t bytes, size_t piece) {
    return at % piece + bytes <= piece ? at : (at / piece + 1) * piece;
}

static bool clnet__slab_open(clnet_graph *g, clnet__slab *slab, size_t end) {
    const size_t piece = clnet__piece_bytes(g->ctx), count = end / piece + (end % piece != 0);
    slab->pieces = count < INT_MAX ? clnet__alloc(g->ctx, count * sizeof *slab->pieces) : NULL;
    slab->count = slab->pieces ? (int)count : 0;
    return slab->pieces != NULL;
}

// The piece at an offset, which grows to have `bytes` there, and the offset inside it.
static clnet_memory *clnet__slab_at(const clnet_graph *g, clnet__slab *slab, size_t at,
                                    size_t bytes, size_t *inside) {
    const size_t piece = clnet__piece_bytes(g->ctx);
    clnet_memory *memory = &slab->pieces[at / piece];
    *inside = at % piece;
    memory->bytes = memory->bytes > *inside + bytes ? memory->bytes : *inside + bytes;
    return memory;
}

static size_t clnet__slab_bytes(const clnet__slab *slab) {
    size_t bytes = 0;
    for (int i = 0; i < slab->count; i++) {
        bytes += slab->pieces[i].bytes;
    }
    return bytes;
}

// Places blocks, the largest first, each at the lowest offset where none that lives at the same time
// lies. Those already placed stand in front, sorted by offset. Returns the end of the arena.
static size_t clnet__place(clnet__block *blocks, int placed, int count, size_t piece) {
    size_t end = placed ? blocks[placed - 1].offset + blocks[placed - 1].bytes : 0;
    for (int i = placed; i < count; i++) {
        clnet__block b = blocks[i];
        for (int k = 0; k < i && blocks[k].offset < b.offset + b.bytes; k++) {
            const size_t past = blocks[k].offset + blocks[k].bytes;
            if (past > b.offset && clnet__together(&blocks[k], &b)) {
                b.offset = clnet__whole(past, b.bytes, piece);
            }
        }
        int at = i;
        for (; at > 0 && blocks[at - 1].offset > b.offset; at--) {
            blocks[at] = blocks[at - 1];
        }
        blocks[at] = b;
        end = end > b.offset + b.bytes ? end : b.offset + b.bytes;
    }
    return end;
}

// Slabs of all parameters, and of all buffers, one behind the other.
static bool clnet__plan_weights(clnet_graph *g) {
    size_t end[2] = {0, 0}; // parameters, buffers
    for (int i = 0; i < g->weight_count; i++) {
        clnet_tensor *t = g->weights[i];
        const size_t bytes = clnet__tensor_bytes(t);
        size_t *at = &end[t->role == CLNET_ROLE_BUFFER];
        t->offset = clnet__whole(*at, bytes, clnet__piece_bytes(g->ctx));
        *at = t->offset + bytes;
    }
    if (!clnet__slab_open(g, &g->parameters, end[0]) ||
        !clnet__slab_open(g, &g->gradients, end[0]) || !clnet__slab_open(g, &g->buffers, end[1])) {
        return false;
    }
    for (int i = 0; i < g->weight_count; i++) {
        clnet_tensor *t = g->weights[i];
        const bool parameter = t->role == CLNET_ROLE_PARAMETER;
        const size_t at = t->offset, bytes = clnet__tensor_bytes(t);
        t->memory =
            clnet__slab_at(g, parameter ? &g->parameters : &g->buffers, at, bytes, &t->offset);
        if (parameter) {
            clnet_memory *gradient = clnet__slab_at(g, &g->gradients, at, bytes, &t->grad_offset);
            t->grad_memory = t->needs_grad ? gradient : NULL;
            g->weight_grad = g->weight_grad || t->needs_grad;
        }
    }
    clnet_memory_plan *p = &g->plan;
    p->parameters = clnet__slab_bytes(&g->parameters);
    p->buffers = clnet__slab_bytes(&g->buffers);
    p->gradients = g->weight_grad && !g->no_accumulation ? p->parameters : 0;
    p->optimiser = g->adam ? 2 * p->parameters : 0;
    return true;
}

// Moments lie as their parameters do.
static bool clnet__plan_moments(clnet_graph *g) {
    for (int i = 0; g->adam && i < 2; i++) {
        clnet__slab *slab = &g->adam->moment[i];
        const size_t bytes = (size_t)g->parameters.count * sizeof *slab->pieces;
        slab->pieces = clnet__alloc(g->ctx, bytes);
        if (!slab->pieces) {
            return false;
        }
        memcpy(slab->pieces, g->parameters.pieces, bytes);
        slab->count = g->parameters.count;
    }
    return true;
}

// Tensors that lie inside others follow these: same slab, same distance between pixels.
static void clnet__plan_insides(clnet_graph *g) {
    for (int i = 0; i < g->tensor_count; i++) {
        clnet_tensor *t = g->tensors[i], *owner = clnet__owner(t);
        size_t channel = 0;
        for (const clnet_tensor *inner = t; inner->inside; inner = inner->inside) {
            channel += (size_t)inner->first_channel;
        }
        if (clnet__in_arena(t, false)) {
            t->memory = owner->memory;
            t->offset = owner->offset + channel * sizeof(clnet_real);
            t->stride = owner->stride;
        }
        if (clnet__in_arena(t, true)) {
            t->grad_memory = t->needs_grad ? owner->grad_memory : NULL;
            t->grad_offset = owner->grad_offset + channel * sizeof(clnet_real);
            const int reader = clnet__last_backward_reader(g, t);
            if (reader >= 0 && !g->nodes[reader]->in_place) { // which writes over it, adds nothing
                owner->first_summand = clnet__max(owner->first_summand, reader);
            }
        }
    }
}

// Blocks at their places, as many as *count; NULL: no memory. The caller frees them.
static clnet__block *clnet__place_all(clnet_graph *g, int *count, size_t *end) {
    clnet__block *blocks = clnet__alloc(g->ctx, 2 * (size_t)g->tensor_count * sizeof *blocks);
    if (blocks) {
        int placed;
        *count = clnet__plan_blocks(g, g->keep_all, blocks, &placed);
        qsort(blocks + placed, (size_t)(*count - placed), sizeof *blocks, clnet__larger_block);
        *end = clnet__place(blocks, placed, *count, clnet__piece_bytes(g->ctx));
    }
    return blocks;
}

static bool clnet__plan_arena(clnet_graph *g) {
    int count = 0;
    size_t end = 0;
    clnet__block *blocks = clnet__place_all(g, &count, &end);
    const bool open = blocks && clnet__slab_open(g, &g->arena, end);
    for (int i = 0; open && i < count; i++) {
        const clnet__block *b = &blocks[i];
        clnet_tensor *t = b->tensor;
        size_t *inside = b->gradient ? &t->grad_offset : &t->offset;
        clnet_memory *memory = clnet__slab_at(g, &g->arena, b->offset, b->bytes, inside);
        *(b->gradient ? &t->grad_memory : &t->memory) = memory;
        g->plan.unshared += b->bytes;
    }
    clnet__free(g->ctx, blocks);
    if (open) {
        g->plan.activations = clnet__slab_bytes(&g->arena);
        clnet__plan_insides(g);
    }
    return open;
}

// Scratch for the node that needs most, and which that is.
static size_t clnet__plan_workspace(const clnet_graph *g, const clnet_node **hungriest) {
    size_t most = 0;
    for (int i = 0; i < g->node_count; i++) {
        const size_t bytes = g->ctx->backend.workspace(g->ctx, g->nodes[i]);
        if (bytes > most) {
            most = bytes;
            *hungriest = g->nodes[i];
        }
    }
    return most;
}

// Bytes that the context can still give.
static size_t clnet__room(clnet_context *ctx) {
    return ctx->backend.room ? ctx->backend.room(ctx) : SIZE_MAX - 1;
}

// Bytes in all for a batch, without planning anew; SIZE_MAX where a piece would be too large.
static size_t clnet__bytes_of_batch(clnet_graph *g, int batch) {
    const clnet_memory_plan *p = &g->plan;
    const clnet_node *node = NULL;
    const int before = g->batch;
    const bool healthy = g->ctx->result == CLNET_OK;
    const size_t piece = clnet__piece_bytes(g->ctx);
    int count = 0;
    size_t end = 0, total = p->parameters + p->buffers + p->gradients + p->optimiser;
    bool fits = true;
    clnet__set_batch(g, batch);
    for (int i = 0; i < g->tensor_count; i++) {
        fits = fits && clnet__tensor_bytes(g->tensors[i]) <= piece;
    }
    const size_t workspace = clnet__plan_workspace(g, &node);
    clnet__block *blocks = fits && workspace <= piece ? clnet__place_all(g, &count, &end) : NULL;
    clnet__slab arena = {NULL, 0};
    fits = blocks && clnet__slab_open(g, &arena, end);
    for (int i = 0; fits && i < count; i++) {
        size_t inside;
        clnet__slab_at(g, &arena, blocks[i].offset, blocks[i].bytes, &inside);
    }
    total += workspace + clnet__slab_bytes(&arena);
    clnet__free(g->ctx, arena.pieces);
    clnet__free(g->ctx, blocks);
    clnet__set_batch(g, before);
    if (healthy && g->ctx->result != CLNET_OK) { // more than a device can count, say
        clnet_context_clear(g->ctx);
        fits = false;
    }
    return fits ? total : SIZE_MAX;
}

// Memory grows with the batch: doubling, then bisection.
int clnet_graph_largest_batch(clnet_graph *g, size_t bytes, int limit) {
    int fitting = 0, beyond = 1;
    while (g && g->planned && beyond <= limit && clnet__bytes_of_batch(g, beyond) <= bytes) {
        fitting = beyond;
        beyond = beyond <= limit / 2 ? 2 * beyond : beyond == limit ? limit + 1 : limit;
    }
    while (beyond - fitting > 1) {
        const int middle = fitting + (beyond - fitting) / 2;
        *(clnet__bytes_of_batch(g, middle) <= bytes ? &fitting : &beyond) = middle;
    }
    return fitting;
}

// What cannot be divided has to fit into one allocation: a tensor, the scratch of a node.
static clnet_result clnet__check_pieces(clnet_graph *g) {
    const size_t piece = clnet__piece_bytes(g->ctx);
    const clnet_node *node = NULL;
    size_t bytes = clnet__plan_workspace(g, &node);
    const char *what = "the scratch of ", *name = node ? node->out->name : "";
    for (int i = 0; i < g->tensor_count && bytes <= piece; i++) {
        bytes = clnet__tensor_bytes(g->tensors[i]);
        what = "";
        name = g->tensors[i]->name;
    }
    if (bytes <= piece || g->ctx->result != CLNET_OK) {
        return g->ctx->result;
    }
    const int fitting = clnet_graph_largest_batch(g, clnet__room(g->ctx), g->batch);
    return clnet__fail(
        g->ctx, CLNET_ERROR_MEMORY,
        "a batch of %d needs %zu bytes in one piece, for %s%s; %s gives at most %zu: "
        "room for a batch of %d",
        g->batch, bytes, what, name, g->ctx->backend.device, piece, fitting);
}

static clnet_result clnet__plan(clnet_graph *g, const clnet_build_desc *desc) {
    const clnet_build_desc none = {.loss = NULL}, *d = desc ? desc : &none;
    if (g->failed || g->ctx->result != CLNET_OK || g->planned || g->node_count == 0) {
        return clnet__fail(g->ctx, CLNET_ERROR_ARGUMENT, "graph: %s",
                           g->planned      ? "planned twice"
                           : g->node_count ? "its building failed"
                                           : "empty");
    }
    if (d->loss && (d->loss->graph != g || !d->loss->producer)) {
        return clnet__fail(g->ctx, CLNET_ERROR_ARGUMENT,
                           "graph: the loss is not one of its outputs");
    }
    g->planned = true;
    g->seed = d->seed;
    g->loss = d->loss;
    g->training = d->loss && !d->no_weight_grad;
    if (d->loss) {
        d->loss->keep = true;
    }
    g->nodes[g->node_count - 1]->out->keep = true; // the last output is always wanted
    clnet__plan_gradients(g, d);
    if (d->loss && !d->loss->needs_grad) {
        return clnet__fail(g->ctx, CLNET_ERROR_ARGUMENT,
                           "graph: nothing that the loss depends on wants a gradient");
    }
    clnet__plan_in_place(g, d);
    clnet__plan_epilogues(g, d);
    clnet__plan_norms(g, d);
    clnet__plan_concat(g, d);
    g->keep_all = d->keep_all;
    g->no_accumulation = d->no_accumulation;
    clnet__plan_again(g);
    if (!clnet__plan_weights(g) || !clnet__plan_moments(g) || clnet__check_pieces(g) != CLNET_OK ||
        !clnet__plan_arena(g)) {
        return g->ctx->result;
    }
    const clnet_node *hungriest = NULL;
    clnet_memory_plan *p = &g->plan;
    p->workspace = clnet__plan_workspace(g, &hungriest);
    p->total =
        p->parameters + p->buffers + p->gradients + p->optimiser + p->activations + p->workspace;
    return CLNET_OK;
}

clnet_result clnet_graph_plan(clnet_graph *g, const clnet_build_desc *d, clnet_memory_plan *plan) {
    const clnet_result result = clnet__plan(g, d);
    if (result == CLNET_OK) {
        *plan = g->plan;
    }
    return result;
}

static bool clnet__take(clnet_graph *g, clnet_memory *memory, size_t bytes) {
    return bytes == 0 || (g->ctx->backend.alloc(g->ctx, memory, bytes) &&
                          g->ctx->backend.fill(g->ctx, memory, 0, bytes) == CLNET_OK);
}

static bool clnet__take_all(clnet_graph *g, clnet__slab *slab) {
    bool taken = true;
    for (int i = 0; i < slab->count && taken; i++) {
        taken = clnet__take(g, &slab->pieces[i], slab->pieces[i].bytes);
    }
    return taken;
}

// With the gradients of weights in it, their slab is the arena's beginning.
static bool clnet__take_arena(clnet_graph *g) {
    const bool taken = clnet__take_all(g, &g->arena);
    for (int i = 0; taken && g->weight_grad && g->no_accumulation && i < g->gradients.count; i++) {
        g->gradients.pieces[i].handle = g->arena.pieces[i].handle;
    }
    return taken;
}

// Whether the context has room for the plan, if it knows how much that is.
static clnet_result clnet__check_room(clnet_graph *g) {
    clnet_context *ctx = g->ctx;
    const size_t room = clnet__room(ctx);
    if (g->plan.total <= room) {
        return ctx->result;
    }
    const int fitting = clnet_graph_largest_batch(g, room, g->largest_batch);
    return clnet__fail(ctx, CLNET_ERROR_MEMORY,
                       "a batch of %d needs %zu bytes; %s has %zu: room for a batch of %d",
                       g->largest_batch, g->plan.total, ctx->backend.device, room, fitting);
}

// Initial weights are drawn and uploaded a block at a time, whose chunks the threads share: a copy of
// all weights would be the peak of a network that only predicts.
enum { CLNET__INITIAL_BLOCK = 1 << 20, CLNET__INITIAL_CHUNK = 1 << 14 }; // numbers

typedef struct clnet__initial_job {
    const clnet_graph *g;
    int index;           // of the weight
    size_t first, count; // the block
    clnet_real *values;
} clnet__initial_job;

static void clnet__initial_task(void *arg, size_t chunk, int worker) {
    const clnet__initial_job *job = arg;
    const clnet_tensor *t = job->g->weights[job->index];
    const uint64_t seed = job->g->seed, stream = (uint64_t)job->index;
    const size_t begin = chunk * CLNET__INITIAL_CHUNK, left = job->count - begin;
    const size_t end = begin + (left < CLNET__INITIAL_CHUNK ? left : CLNET__INITIAL_CHUNK);
    (void)worker;
    for (size_t i = begin; i < end; i++) {
        double v = 1;
        if (t->initial == CLNET_INITIAL_NORMAL) {
            v = clnet_random_normal(seed, stream, job->first + i);
        } else if (t->initial == CLNET_INITIAL_UNIFORM) {
            v = 2 * clnet_random_uniform(seed, stream, job->first + i) - 1;
        }
        job->values[i] = (clnet_real)(t->initial_scale * v);
    }
}

static clnet_result clnet__initialise(clnet_graph *g) {
    clnet_context *ctx = g->ctx;
    const size_t room = CLNET__INITIAL_BLOCK, bytes = sizeof(clnet_real);
    clnet_real *values = clnet__alloc(ctx, room * bytes);
    for (int w = 0; values && w < g->weight_count; w++) {
        const clnet_tensor *t = g->weights[w];
        const size_t all = clnet_tensor_count(t);
        for (size_t first = 0; first < all && ctx->result == CLNET_OK; first += room) {
            const size_t count = all - first < room ? all - first : room;
            clnet__initial_job job = {g, w, first, count, values};
            clnet__parallel(&ctx->cpu, (count + CLNET__INITIAL_CHUNK - 1) / CLNET__INITIAL_CHUNK,
                            clnet__initial_task, &job);
            ctx->backend.upload(ctx, t->memory, t->offset + first * bytes, values, count * bytes);
        }
    }
    clnet__free(ctx, values);
    return ctx->result;
}

// A row of the context's profile for each node, if one is wanted.
static bool clnet__open_profile(clnet_graph *g) {
    clnet_context *ctx = g->ctx;
    for (int i = 0; ctx->backend.rows && i < g->node_count; i++) {
        const clnet_tensor *out = g->nodes[i]->out;
        void *list = ctx->nodes;
        clnet_profile_node *row = clnet__alloc(ctx, sizeof *row);
        char *name = row ? clnet__copy_text(ctx, out->name) : NULL;
        if (!name || !clnet__grow(ctx, &list, ctx->node_count, sizeof *ctx->nodes)) {
            clnet__free(ctx, name);
            clnet__free(ctx, row);
            return false;
        }
        *row = (clnet_profile_node){.name = name, .op = clnet__op_name(g->nodes[i]->op)};
        memcpy(row->shape, out->shape, sizeof row->shape);
        ctx->nodes = list;
        ctx->nodes[ctx->node_count++] = g->nodes[i]->profile = row;
    }
    return true;
}

clnet_result clnet_graph_build(clnet_graph *g, const clnet_build_desc *d) {
    if (!g) {
        return CLNET_ERROR_ARGUMENT;
    }
    clnet_context *ctx = g->ctx;
    if (ctx->result != CLNET_OK || (!g->planned && clnet__plan(g, d) != CLNET_OK)) {
        return ctx->result;
    }
    const clnet_memory_plan *p = &g->plan;
    if (clnet__check_room(g) != CLNET_OK) {
        return ctx->result;
    }
    g->built = clnet__take_all(g, &g->parameters) && clnet__take_all(g, &g->buffers) &&
               (!p->gradients || clnet__take_all(g, &g->gradients)) && clnet__take_arena(g) &&
               clnet__take(g, &g->workspace, p->workspace) &&
               (!g->adam || (clnet__take_all(g, &g->adam->moment[0]) &&
                             clnet__take_all(g, &g->adam->moment[1])));
    if (!g->built) {
        return clnet__fail(ctx, CLNET_ERROR_MEMORY, "out of memory: the graph needs %zu bytes",
                           p->total);
    }
    if (!clnet__open_profile(g)) {
        return ctx->result;
    }
    return d && d->no_initial_weights ? CLNET_OK : clnet__initialise(g);
}

// >>run

void clnet_graph_set_training(clnet_graph *g, bool training) { g->training = training; }
void clnet_graph_set_loss_scale(clnet_graph *g, double scale) { g->loss_scale = scale; }
void clnet_graph_set_step(clnet_graph *g, uint64_t step) { g->step = step; }
uint64_t clnet_graph_step(const clnet_graph *g) { return g->step; }

clnet_result clnet_graph_set_batch(clnet_graph *g, int batch) {
    if (batch < 1 || batch > g->largest_batch) {
        return clnet__fail(g->ctx, CLNET_ERROR_ARGUMENT,
                           "a batch of %d in a graph for batches of 1 to %d", batch,
                           g->largest_batch);
    }
    clnet__set_batch(g, batch);
    return CLNET_OK;
}

// A failure on record, or a graph that was not built, is passed on.
static clnet_result clnet__ready(clnet_graph *g) {
    if (!g) {
        return CLNET_ERROR_ARGUMENT;
    }
    return g->built ? g->ctx->result
                    : clnet__fail(g->ctx, CLNET_ERROR_ARGUMENT, "the graph has not been built");
}

// Training needs more than one value per channel, as in PyTorch: of one the variance is 0.
static clnet_result clnet__check_batch_norm(clnet_graph *g) {
    for (int i = 0; i < g->node_count; i++) {
        const clnet_tensor *x = g->nodes[i]->in[0];
        if (g->nodes[i]->op == CLNET_OP_BATCH_NORM && (size_t)x->shape[0] * clnet__pixels(x) == 1) {
            return clnet__fail(g->ctx, CLNET_ERROR_ARGUMENT,
                               "batch_norm %s: one value per channel in "
                               "training, shape (%d,%d,%d,%d)",
                               g->nodes[i]->out->name, x->shape[0], x->shape[1], x->shape[2],
                               x->shape[3]);
        }
    }
    return CLNET_OK;
}

// Bytes of the numbers of a tensor, without what lies between its pixels.
static double clnet__own_bytes(const clnet_tensor *t) {
    return t ? (double)clnet_tensor_count(t) * (t->integer ? sizeof(int32_t) : sizeof(clnet_real))
             : 0;
}

// Bytes of the tensors that a pass of a node reads and writes, a sum that is added to as both.
static double clnet__traffic(const clnet_node *node, bool backward) {
    double bytes = clnet__own_bytes(node->out); // written, or its gradient read
    if (backward && (clnet__reads_out(node) || (node->relu && node->summand))) {
        bytes += clnet__own_bytes(node->out);
    }
    for (int i = 0; i < node->inputs; i++) {
        const clnet_tensor *x = node->in[i];
        const bool values = !backward || clnet__reads(node->op) & CLNET_READS(i);
        bytes += (values + 2 * (backward && x && x->grad_memory)) * clnet__own_bytes(x);
    }
    for (size_t i = 0; i < sizeof node->saved / sizeof *node->saved; i++) {
        bytes += clnet__own_bytes(node->saved[i]);
    }
    const bool sum = node->summand && node->summand->grad_memory;
    return bytes + (backward ? 2 * sum : 1) * clnet__own_bytes(node->summand);
}

// What a node multiplies its input with; NULL: it is no convolution.
static const clnet_tensor *clnet__kernel_of(const clnet_node *node) {
    return node->op == CLNET_OP_CONV2D || node->op == CLNET_OP_LINEAR ? node->in[1]
           : node->op == CLNET_OP_CONV2D_JOINED                       ? node->in[2]
                                                                      : NULL;
}

// The gradients by the data and by the weights are as much work each as the forward pass.
static double clnet__pass_macs(const clnet_graph *g, const clnet_node *node, bool backward) {
    const double macs = clnet_graph_node_macs(g, node->index);
    const bool data = node->in[0]->grad_memory,
               weight = macs > 0 && clnet__kernel_of(node)->grad_memory;
    return backward ? macs * (data + weight) : macs;
}

// Whether another node computes this one now: a convolution does in evaluation only.
static bool clnet__absorbed(const clnet_graph *g, const clnet_node *node) {
    return node->host && (node->host->op == CLNET_OP_BATCH_NORM || !g->training);
}

// One pass of a node, measured where a profile is wanted: a device then waits for each kernel.
static clnet_result clnet__run_node(clnet_graph *g, clnet_node *node, bool backward) {
    if (clnet__absorbed(g, node)) {
        return g->ctx->result;
    }
    const double start = node->profile ? CLNET_CLOCK() : 0;
    if (backward) {
        g->ctx->backend.backward(g, node);
    } else {
        g->ctx->backend.forward(g, node);
    }
    if (node->profile) {
        clnet__profile_add(backward ? &node->profile->backward : &node->profile->forward,
                           CLNET_CLOCK() - start, clnet__pass_macs(g, node, backward),
                           clnet__traffic(node, backward));
    }
    return g->ctx->result;
}

clnet_result clnet_graph_forward(clnet_graph *g) {
    if (clnet__ready(g) != CLNET_OK || (g->training && clnet__check_batch_norm(g) != CLNET_OK)) {
        return g ? g->ctx->result : CLNET_ERROR_ARGUMENT;
    }
    g->batches += g->training;
    g->fresh = true;
    g->overwritten = g->no_accumulation;
    for (int i = 0; i < g->node_count && g->ctx->result == CLNET_OK; i++) {
        clnet__run_node(g, g->nodes[i], false);
    }
    return g->ctx->result;
}

// A gradient in the arena starts from zero where its first summand is about to be added.
static void clnet__zero_input(clnet_graph *g, const clnet_node *node, clnet_tensor *input) {
    clnet_tensor *t = input ? clnet__owner(input) : NULL;
    if (t && t->grad_memory && clnet__in_arena(t, true) && t->first_summand == node->index) {
        g->ctx->backend.fill(g->ctx, t->grad_memory, t->grad_offset, clnet__tensor_bytes(t));
    }
}

static clnet_result clnet__zero_inputs(clnet_graph *g, const clnet_node *node) {
    for (int k = 0; k < node->inputs && g->ctx->result == CLNET_OK; k++) {
        clnet__zero_input(g, node, node->in[k]);
    }
    clnet__zero_input(g, node, node->summand);
    return g->ctx->result;
}

// Values that the backward of node `before` is the first to read and that were not kept.
static void clnet__run_again(clnet_graph *g, int before) {
    g->again = true;
    for (int i = 0; i <= before && g->ctx->result == CLNET_OK; i++) {
        if (g->nodes[i]->again == before) {
            clnet__run_node(g, g->nodes[i], false);
        }
    }
    g->again = false;
}

clnet_result clnet_graph_backward(clnet_graph *g) {
    if (clnet__ready(g) != CLNET_OK || !g->loss) {
        return g ? clnet__fail(g->ctx, CLNET_ERROR_ARGUMENT,
                               "backward: the graph was built without a loss")
                 : CLNET_ERROR_ARGUMENT;
    }
    if (!g->fresh) {
        return clnet__fail(g->ctx, CLNET_ERROR_ARGUMENT, "backward: needs a forward before it");
    }
    g->fresh = g->overwritten = false;
    if (clnet_tensor_count(g->loss) == 1 && !g->loss->batched) {
        const clnet_real one = (clnet_real)g->loss_scale;
        g->ctx->backend.upload(g->ctx, g->loss->grad_memory, g->loss->grad_offset, &one,
                               sizeof one);
    }
    for (int i = g->node_count - 1; i >= 0 && g->ctx->result == CLNET_OK; i--) {
        clnet__run_again(g, i);
        if (g->nodes[i]->backward && clnet__zero_inputs(g, g->nodes[i]) == CLNET_OK) {
            clnet__run_node(g, g->nodes[i], true);
        }
    }
    return g->ctx->result;
}

clnet_result clnet_graph_zero_grad(clnet_graph *g) {
    if (clnet__ready(g) != CLNET_OK) {
        return g ? g->ctx->result : CLNET_ERROR_ARGUMENT;
    }
    for (int i = 0; g->plan.gradients && i < g->gradients.count; i++) { // else backward does it
        clnet_memory *piece = &g->gradients.pieces[i];
        g->ctx->backend.fill(g->ctx, piece, 0, piece->bytes);
    }
    return g->ctx->result;
}

static clnet_tensor *clnet__find(clnet_tensor *const *list, int count, const char *name) {
    for (int i = 0; i < count; i++) {
        if (!strcmp(list[i]->name, name)) {
            return list[i];
        }
    }
    return NULL;
}

int clnet_graph_weights(const clnet_graph *g) { return g->weight_count; }
clnet_tensor *clnet_graph_weight(const clnet_graph *g, int index) { return g->weights[index]; }
clnet_tensor *clnet_graph_find_weight(const clnet_graph *g, const char *name) {
    return clnet__find(g->weights, g->weight_count, name);
}
int clnet_graph_activations(const clnet_graph *g) { return g->activation_count; }
clnet_tensor *clnet_graph_activation(const clnet_graph *g, int index) {
    return g->activations[index];
}
clnet_tensor *clnet_graph_find_activation(const clnet_graph *g, const char *name) {
    return clnet__find(g->activations, g->activation_count, name);
}
int clnet_graph_nodes(const clnet_graph *g) { return g->node_count; }
const char *clnet_graph_node_op(const clnet_graph *g, int index) {
    return clnet__op_name(g->nodes[index]->op);
}
const clnet_tensor *clnet_graph_node_output(const clnet_graph *g, int index) {
    return g->nodes[index]->out;
}

// Multiply-adds of convolutions and linear layers; the rest counts as nothing, as is usual.
double clnet_graph_node_macs(const clnet_graph *g, int index) {
    const clnet_node *node = g->nodes[index];
    const clnet_tensor *w = clnet__kernel_of(node), *y = node->out;
    if (!w) {
        return 0;
    }
    return (double)y->shape[0] * (double)clnet__pixels(y) * y->shape[1] *
           ((double)w->shape[1] * w->shape[2] * w->shape[3]);
}

static bool clnet__all_finite(clnet_tensor *t, clnet_real *values) {
    if (clnet_tensor_get(t, values, CLNET_ORDER_MEMORY) != CLNET_OK) {
        return true; // that failure is on record
    }
    for (size_t i = 0; i < clnet_tensor_count(t); i++) {
        if (!isfinite(values[i])) {
            return false;
        }
    }
    return true;
}

// Copies the running statistics to host memory that is as large as all of them, or back.
static void clnet__move_buffers(clnet_graph *g, char *host, bool to_device) {
    for (int i = 0; host && i < g->buffers.count; i++) {
        clnet_memory *piece = &g->buffers.pieces[i];
        if (to_device) {
            g->ctx->backend.upload(g->ctx, piece, 0, host, piece->bytes);
        } else {
            g->ctx->backend.download(g->ctx, host, piece, 0, piece->bytes);
        }
        host += piece->bytes;
    }
}

const char *clnet_graph_first_nonfinite(clnet_graph *g) {
    if (!g || !g->built) {
        return NULL;
    }
    const clnet_result before = g->ctx->result;
    g->ctx->result = CLNET_OK; // the failure that made us look stays, but must not stop the run
    const char *found = NULL;
    g->overwritten = g->no_accumulation;
    void *statistics = clnet__alloc(g->ctx, g->plan.buffers); // batch norm would move them again
    clnet__move_buffers(g, statistics, false);
    for (int i = 0; i < g->node_count && !found && g->ctx->result == CLNET_OK; i++) {
        clnet_node *node = g->nodes[i];
        clnet__run_node(g, node, false);
        clnet_real *values = clnet__alloc(g->ctx, clnet_tensor_count(node->out) * sizeof *values);
        if (values && !clnet__all_finite(node->out, values)) {
            found = node->out->name;
        }
        clnet__free(g->ctx, values);
    }
    clnet__move_buffers(g, statistics, true);
    clnet__free(g->ctx, statistics);
    g->ctx->result = before == CLNET_OK ? g->ctx->result : before;
    return found;
}

// >>values
// Values and gradients, in and out.

const char *clnet_tensor_name(const clnet_tensor *t) { return t->name; }
int clnet_tensor_rank(const clnet_tensor *t) { return t->rank; }
int clnet_tensor_size(const clnet_tensor *t, int axis) {
    return axis < 0 || axis > 3 ? 1 : t->shape[axis];
}
bool clnet_tensor_trainable(const clnet_tensor *t) { return t->role == CLNET_ROLE_PARAMETER; }

size_t clnet_tensor_count(const clnet_tensor *t) {
    return (size_t)t->shape[0] * (size_t)t->shape[1] * clnet__pixels(t);
}

// Where the number (a,b,c,d) of PyTorch's order lies in memory: activations (N,C,H,W) as (N,H,W,C),
// weights (OC,IC,KH,KW) as (KH,KW,IC,OC).
static size_t clnet__memory_index(const clnet_tensor *t, int a, int b, int c, int d) {
    const size_t row = (size_t)c * (size_t)t->shape[3] + (size_t)d;
    if (t->role == CLNET_ROLE_PARAMETER || t->role == CLNET_ROLE_BUFFER) {
        return (row * (size_t)t->shape[1] + (size_t)b) * (size_t)t->shape[0] + (size_t)a;
    }
    return ((size_t)a * clnet__pixels(t) + row) * t->stride + (size_t)b;
}

// Copies between the caller's array, in PyTorch's order or in memory's, and a stretch of memory.
static void clnet__reorder(const clnet_tensor *t, clnet_order order, void *data, void *memory,
                           size_t width, bool to_memory) {
    const bool rows = order == CLNET_ORDER_MEMORY; // then a pixel's channels are neighbours in both
    const size_t run = rows ? (size_t)t->shape[1] * width : width;
    char *outside = data, *inside = memory;
    for (int a = 0; a < t->shape[0]; a++) {
        for (int b = 0; b < (rows ? 1 : t->shape[1]); b++) {
            for (int c = 0; c < t->shape[2]; c++) {
                for (int d = 0; d < t->shape[3]; d++, outside += run) {
                    char *at = inside + clnet__memory_index(t, a, b, c, d) * width;
                    memcpy(to_memory ? at : outside, to_memory ? outside : at, run);
                }
            }
        }
    }
}

// Whether a forward has overwritten the gradients of the weights; that failure is then on record.
static bool clnet__overwritten(clnet_graph *g) {
    if (g->overwritten) {
        clnet__fail(g->ctx, CLNET_ERROR_ARGUMENT,
                    "gradients of weights: with no_accumulation they are there from a backward to "
                    "the next forward");
    }
    return g->overwritten;
}

// Moves the numbers of a tensor between `data` and a place in a slab. Between the pixels of a tensor
// that lies inside another one are numbers of others, which stay as they are.
static clnet_result clnet__transfer(clnet_tensor *t, clnet_memory *memory, size_t offset,
                                    void *data, clnet_order order, bool in) {
    if (!t || !memory || !memory->handle) {
        return t ? clnet__fail(t->graph->ctx, CLNET_ERROR_ARGUMENT,
                               "%s: no such values: not built, not asked for, or not upstream of "
                               "the loss",
                               t->name)
                 : CLNET_ERROR_ARGUMENT;
    }
    clnet_context *ctx = t->graph->ctx;
    const clnet_backend *device = &ctx->backend;
    const size_t width = t->integer ? sizeof(int32_t) : sizeof(clnet_real);
    const bool weight = t->role == CLNET_ROLE_PARAMETER || t->role == CLNET_ROLE_BUFFER;
    const bool dense = weight || t->stride == (size_t)t->shape[1];
    const bool same = dense && (order == CLNET_ORDER_MEMORY || t->rank < 2 ||
                                (t->rank == 2 && t->role == CLNET_ROLE_ACTIVATION));
    const size_t rows = (size_t)t->shape[0] * clnet__pixels(t);
    const size_t bytes =
        (dense ? clnet_tensor_count(t) : (rows - 1) * t->stride + (size_t)t->shape[1]) * width;
    void *staging = same ? data : clnet__alloc(ctx, bytes);
    if (ctx->result == CLNET_OK && (!in || !dense)) {
        device->download(ctx, staging, memory, offset, bytes);
    }
    if (ctx->result == CLNET_OK && !same) {
        clnet__reorder(t, order, data, staging, width, in);
    }
    if (ctx->result == CLNET_OK && in) {
        device->upload(ctx, memory, offset, staging, bytes);
    }
    clnet__free(ctx, same ? NULL : staging);
    return ctx->result;
}

clnet_result clnet_tensor_get(clnet_tensor *t, void *data, clnet_order order) {
    return clnet__transfer(t, t ? t->memory : NULL, t ? t->offset : 0, data, order, false);
}

clnet_result clnet_tensor_get_grad(clnet_tensor *t, void *data, clnet_order order) {
    if (t && t->role == CLNET_ROLE_PARAMETER && clnet__overwritten(t->graph)) {
        return t->graph->ctx->result;
    }
    return clnet__transfer(t, t ? t->grad_memory : NULL, t ? t->grad_offset : 0, data, order,
                           false);
}

// Labels have to be classes of the loss that reads them.
static clnet_result clnet__check_labels(const clnet_tensor *t, const int32_t *labels) {
    for (int n = 0; n < t->shape[0] && t->classes; n++) {
        if (labels[n] >= t->classes) {
            return clnet__fail(t->graph->ctx, CLNET_ERROR_ARGUMENT,
                               "%s: image %d has class %ld of %d", t->name, n, (long)labels[n],
                               t->classes);
        }
    }
    return t->graph->ctx->result;
}

// Uploads read `data` only.
clnet_result clnet_tensor_set(clnet_tensor *t, const void *data, clnet_order order) {
    if (t && t->integer && clnet__check_labels(t, data) != CLNET_OK) {
        return t->graph->ctx->result;
    }
    return clnet__transfer(t, t ? t->memory : NULL, t ? t->offset : 0, (void *)(uintptr_t)data,
                           order, true);
}

clnet_result clnet_tensor_set_grad(clnet_tensor *t, const void *data, clnet_order order) {
    return clnet__transfer(t, t ? t->grad_memory : NULL, t ? t->grad_offset : 0,
                           (void *)(uintptr_t)data, order, true);
}

double clnet_tensor_item(clnet_tensor *t) {
    clnet_real value;
    if (!t || !t->memory || !t->memory->handle || t->graph->ctx->result != CLNET_OK ||
        t->graph->ctx->backend.download(t->graph->ctx, &value, t->memory, t->offset,
                                        sizeof value) != CLNET_OK) {
        return NAN;
    }
    return (double)value;
}

// >>cpu
// The CPU's backend: nodes are cut into pieces of images, of images and channels, or of rows, each of
// which one thread computes with the plain loops; convolutions, linear layers and some more cut
// themselves. Rows are runs of memory, of which channels are but every so many cache lines: what sums
// over an image is cut by channels, the rest by rows.

typedef struct clnet__cpu_op {
    clnet__pass *pass[2]; // forward, backward
    clnet__cut cut[2];
} clnet__cpu_op;

static const clnet__cpu_op clnet__cpu_ops[] = {
#define X(ENUM, name, forward, backward, reads)                                                    \
    {{clnet__##name##_forward, clnet__##name##_backward},                                          \
     {CLNET__CUT_##forward, CLNET__CUT_##backward}},
    CLNET_OPS(X)
#undef X
};

typedef struct clnet__cpu_job {
    clnet_graph *g;
    clnet_node *node;
    clnet__pass *pass;
    int images, channels;
    size_t rows, image_cuts, channel_cuts, row_cuts;
} clnet__cpu_job;

// Where part `i` of `parts` begins.
static size_t clnet__begin(size_t size, size_t i, size_t parts) {
    return size / parts * i + size % parts * i / parts;
}

static void clnet__cpu_task(void *arg, size_t index, int worker) {
    const clnet__cpu_job *job = arg;
    (void)worker;
    const size_t r = index % job->row_cuts, k = index / job->row_cuts % job->channel_cuts,
                 i = index / job->row_cuts / job->channel_cuts;
    // Blocks of whole cache lines: 16 channels.
    const size_t lines = ((size_t)job->channels + CLNET__CHANNEL_BLOCK - 1) / CLNET__CHANNEL_BLOCK;
    const clnet__piece piece = {
        .n0 = (int)clnet__begin((size_t)job->images, i, job->image_cuts),
        .n1 = (int)clnet__begin((size_t)job->images, i + 1, job->image_cuts),
        .c0 = (int)clnet__begin(lines, k, job->channel_cuts) * CLNET__CHANNEL_BLOCK,
        .c1 = clnet__min(job->channels,
                         (int)clnet__begin(lines, k + 1, job->channel_cuts) * CLNET__CHANNEL_BLOCK),
        .r0 = clnet__begin(job->rows, r, job->row_cuts),
        .r1 = clnet__begin(job->rows, r + 1, job->row_cuts)};
    job->pass(job->g, job->node, &piece);
}

static void clnet__in_pieces(clnet_graph *g, clnet_node *node, clnet__pass *pass, clnet__cut cut,
                             const clnet_tensor *like) {
    const clnet__cpu *cpu = &g->ctx->cpu;
    const size_t wanted = 2 * (size_t)cpu->threads, N = (size_t)like->shape[0];
    clnet__cpu_job job = {.g = g,
                          .node = node,
                          .pass = pass,
                          .images = like->shape[0],
                          .channels = like->shape[1],
                          .rows = N * (size_t)like->shape[2],
                          .image_cuts = 1,
                          .channel_cuts = 1,
                          .row_cuts = 1};
    if (cut == CLNET__CUT_IMAGES || cut == CLNET__CUT_CHANNELS) {
        job.image_cuts = N;
    }
    if (cut == CLNET__CUT_CHANNELS) {
        const size_t lines =
            ((size_t)job.channels + CLNET__CHANNEL_BLOCK - 1) / CLNET__CHANNEL_BLOCK;
        const size_t share = (wanted + N - 1) / N;
        job.channel_cuts = share < lines ? share : lines;
    }
    if (cut == CLNET__CUT_ROWS) {
        job.row_cuts = wanted < job.rows ? wanted : job.rows;
    }
    clnet__parallel(cpu, job.image_cuts * job.channel_cuts * job.row_cuts, clnet__cpu_task, &job);
}

// One pass of a node, measured where a profile is wanted.
static clnet_result clnet__cpu_pass(clnet_graph *g, clnet_node *node, bool backward) {
    const clnet__cpu_op *op = &clnet__cpu_ops[node->op];
    clnet_profile_row *rows = g->ctx->backend.rows;
    const double start = rows ? CLNET_CLOCK() : 0;
    clnet__in_pieces(g, node, op->pass[backward], op->cut[backward],
                     backward && op->cut[true] == CLNET__CUT_ROWS ? node->in[0] : node->out);
    if (rows) {
        clnet__profile_add(&rows[2 * (int)node->op + backward], CLNET_CLOCK() - start,
                           clnet__pass_macs(g, node, backward), clnet__traffic(node, backward));
    }
    return CLNET_OK;
}

static clnet_result clnet__cpu_forward(clnet_graph *g, clnet_node *node) {
    return clnet__cpu_pass(g, node, false);
}

static clnet_result clnet__cpu_backward(clnet_graph *g, clnet_node *node) {
    return clnet__cpu_pass(g, node, true);
}

// What is no pass of a node, measured from `start`, which is what CLNET_CLOCK() gave.
static void clnet__cpu_measure(clnet_context *ctx, int row, double start, double bytes) {
    if (ctx->backend.rows) {
        clnet__profile_add(&ctx->backend.rows[row], CLNET_CLOCK() - start, 0, bytes);
    }
}

static double clnet__cpu_clock(const clnet_context *ctx) {
    return ctx->backend.rows ? CLNET_CLOCK() : 0;
}

static void clnet__cpu_name_rows(clnet_profile_row *rows) {
    for (int i = 0; i < 2 * CLNET_OP_COUNT; i++) {
        rows[i].name = clnet__op_name((clnet_op)(i / 2));
        rows[i].pass = i % 2 ? "backward" : "forward";
    }
    rows[CLNET__ROW_ADAM] = (clnet_profile_row){.name = "adam", .pass = "update"};
    rows[CLNET__ROW_SUM_OF_SQUARES] =
        (clnet_profile_row){.name = "sum_of_squares", .pass = "update"};
    rows[CLNET__ROW_FILL] = (clnet_profile_row){.name = "fill", .pass = ""};
    rows[CLNET__ROW_UPLOAD] = (clnet_profile_row){.name = "upload", .pass = ""};
    rows[CLNET__ROW_DOWNLOAD] = (clnet_profile_row){.name = "download", .pass = ""};
}

// Memory aligned to 64 bytes, with room in front for the pointer to be freed.
static bool clnet__cpu_alloc(clnet_context *ctx, clnet_memory *memory, size_t bytes) {
    size_t total;
    char *raw = clnet__add(bytes, 64 + sizeof(void *), &total)
                    ? ctx->allocator.alloc(ctx->allocator.user, total)
                    : NULL;
    if (!raw) {
        clnet__fail(ctx, CLNET_ERROR_MEMORY, "out of memory: %zu bytes", bytes);
        return false;
    }
    const uintptr_t address = ((uintptr_t)raw + sizeof(void *) + 63) / 64 * 64;
    char *aligned = raw + (address - (uintptr_t)raw);
    memcpy(aligned - sizeof(void *), &raw, sizeof raw);
    *memory = (clnet_memory){aligned, bytes};
    return true;
}

static void clnet__cpu_free(clnet_context *ctx, clnet_memory *memory) {
    void *raw;
    memcpy(&raw, (char *)memory->handle - sizeof(void *), sizeof raw);
    clnet__free(ctx, raw);
    memory->handle = NULL;
}

static clnet_result clnet__cpu_upload(clnet_context *ctx, clnet_memory *to, size_t offset,
                                      const void *from, size_t bytes) {
    const double start = clnet__cpu_clock(ctx);
    memcpy((char *)to->handle + offset, from, bytes);
    clnet__cpu_measure(ctx, CLNET__ROW_UPLOAD, start, 2.0 * (double)bytes);
    return ctx->result;
}

static clnet_result clnet__cpu_download(clnet_context *ctx, void *to, clnet_memory *from,
                                        size_t offset, size_t bytes) {
    const double start = clnet__cpu_clock(ctx);
    memcpy(to, (char *)from->handle + offset, bytes);
    clnet__cpu_measure(ctx, CLNET__ROW_DOWNLOAD, start, 2.0 * (double)bytes);
    return ctx->result;
}

typedef struct clnet__fill_job {
    char *data;
    size_t bytes;
} clnet__fill_job;

enum { CLNET__FILL_BYTES = 1 << 20 };
static void clnet__fill_task(void *arg, size_t index, int worker) {
    const clnet__fill_job *job = arg;
    (void)worker;
    const size_t first = index * CLNET__FILL_BYTES, left = job->bytes - first;
    memset(job->data + first, 0, left < CLNET__FILL_BYTES ? left : CLNET__FILL_BYTES);
}

static clnet_result clnet__cpu_fill(clnet_context *ctx, clnet_memory *memory, size_t offset,
                                    size_t bytes) {
    const double start = clnet__cpu_clock(ctx);
    clnet__fill_job job = {(char *)memory->handle + offset, bytes};
    clnet__parallel(&ctx->cpu, (bytes + CLNET__FILL_BYTES - 1) / CLNET__FILL_BYTES,
                    clnet__fill_task, &job);
    clnet__cpu_measure(ctx, CLNET__ROW_FILL, start, (double)bytes);
    return CLNET_OK;
}

static size_t clnet__cpu_workspace(clnet_context *ctx, const clnet_node *node) {
    if (node->op == CLNET_OP_CONV2D_JOINED) {
        return clnet__joined_workspace(ctx, node);
    }
#ifdef CLNET__FAST
    if (!ctx->cpu.reference && (node->op == CLNET_OP_CONV2D || node->op == CLNET_OP_LINEAR)) {
        const clnet_conv2d_sizes s =
            node->op == CLNET_OP_LINEAR ? clnet__linear_sizes(node) : clnet__conv2d_sizes(node);
        return clnet__conv2d_fast_workspace(&ctx->cpu, &s);
    }
#endif
    if (!ctx->cpu.reference && node->op == CLNET_OP_UPSAMPLE_BILINEAR && node->backward) {
        return clnet__upsample_workspace(node, ctx->cpu.threads);
    }
    return !ctx->cpu.reference && node->op == CLNET_OP_BATCH_NORM ? clnet__norm_workspace(node) : 0;
}

// >>adam
// g' = g + weight_decay p (Adam), or p -= lr weight_decay p first (AdamW); m += (1 - beta1)(g' - m);
// v = beta2 v + (1 - beta2) g'^2; p -= lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps).
enum { CLNET__ADAM_ROOTS = 256 }; // square roots taken at a time, in L1

// The C library's square root may set errno, which keeps compilers from vectorising a loop with it:
// half of Adam's time. Both are rounded correctly, so that they give the same bits.
static void clnet__roots(clnet_real *y, const clnet_real *x, size_t n) {
    size_t i = 0;
#if defined(CLNET__FAST) && defined(__GNUC__) && defined(__x86_64__)
    for (; i + 4 <= n; i += 4) {
        _mm_storeu_ps(y + i, _mm_sqrt_ps(_mm_loadu_ps(x + i)));
    }
#endif
    for (; i < n; i++) {
        y[i] = CLNET__SQRT(x[i]);
    }
}

void clnet_ref_adam(clnet_real *p, clnet_real *m, clnet_real *v, const clnet_real *g, size_t n,
                    double lr, uint64_t t, const clnet_adam_desc *d) {
    const double beta1 = clnet__or_double(d->beta1, 0.9), beta2 = clnet__or_double(d->beta2, 0.999);
    const double correction1 = -expm1((double)t * log(beta1)),
                 correction2 = -expm1((double)t * log(beta2));
    const clnet_real rate1 = (clnet_real)(1 - beta1), rate2 = (clnet_real)(1 - beta2);
    const clnet_real keep2 = (clnet_real)beta2, step = (clnet_real)(lr / correction1);
    const clnet_real root2 = (clnet_real)(1 / sqrt(correction2));
    const clnet_real eps = (clnet_real)clnet__or_double(d->eps, 1e-8);
    const clnet_real decay = (clnet_real)(d->decoupled ? 0 : d->weight_decay);
    const clnet_real shrink = (clnet_real)(d->decoupled ? lr * d->weight_decay : 0);
    for (size_t first = 0; first < n; first += CLNET__ADAM_ROOTS) {
        const size_t end = n - first < CLNET__ADAM_ROOTS ? n : first + CLNET__ADAM_ROOTS;
        clnet_real root[CLNET__ADAM_ROOTS];
        CLNET__SIMD
        for (size_t i = first; i < end; i++) {
            const clnet_real slope = g[i] + decay * p[i];
            m[i] += (slope - m[i]) * rate1;
            v[i] = keep2 * v[i] + rate2 * slope * slope;
        }
        clnet__roots(root, v + first, end - first);
        CLNET__SIMD
        for (size_t i = first; i < end; i++) {
            p[i] -= shrink * p[i] + step * m[i] / (root[i - first] * root2 + eps);
        }
    }
}

typedef struct clnet__adam_job {
    const clnet_adam *adam;
    int piece;
    double lr;
    size_t count;
} clnet__adam_job;

enum { CLNET__ADAM_BLOCK = 1 << 14 };
static void clnet__adam_task(void *arg, size_t index, int worker) {
    const clnet__adam_job *job = arg;
    (void)worker;
    const clnet_adam *a = job->adam;
    const size_t first = index * CLNET__ADAM_BLOCK, left = job->count - first;
    clnet_ref_adam((clnet_real *)a->graph->parameters.pieces[job->piece].handle + first,
                   (clnet_real *)a->moment[0].pieces[job->piece].handle + first,
                   (clnet_real *)a->moment[1].pieces[job->piece].handle + first,
                   (clnet_real *)a->graph->gradients.pieces[job->piece].handle + first,
                   left < CLNET__ADAM_BLOCK ? left : CLNET__ADAM_BLOCK, job->lr, a->steps,
                   &a->desc);
}

static clnet_result clnet__cpu_adam(clnet_adam *adam, int piece, double lr) {
    clnet_context *ctx = adam->graph->ctx;
    const double start = clnet__cpu_clock(ctx);
    const size_t bytes = adam->graph->parameters.pieces[piece].bytes;
    const size_t count = bytes / sizeof(clnet_real);
    clnet__adam_job job = {adam, piece, lr, count};
    clnet__parallel(&ctx->cpu, (count + CLNET__ADAM_BLOCK - 1) / CLNET__ADAM_BLOCK,
                    clnet__adam_task, &job);
    // Four numbers are read and three written for each parameter.
    clnet__cpu_measure(ctx, CLNET__ROW_ADAM, start, 7.0 * (double)bytes);
    return CLNET_OK;
}

enum { CLNET__SUM_PARTS = 256 };
typedef struct clnet__sum_job {
    const clnet_real *x;
    size_t count;
    double part[CLNET__SUM_PARTS];
} clnet__sum_job;

static void clnet__sum_task(void *arg, size_t index, int worker) {
    clnet__sum_job *job = arg;
    (void)worker;
    const size_t size = (job->count + CLNET__SUM_PARTS - 1) / CLNET__SUM_PARTS;
    const size_t first = index * size < job->count ? index * size : job->count;
    const size_t end = job->count - first < size ? job->count : first + size;
    double lanes[8] = {0};
    size_t i = first;
    for (; i + 8 <= end; i += 8) {
        for (size_t k = 0; k < 8; k++) {
            lanes[k] += (double)job->x[i + k] * (double)job->x[i + k];
        }
    }
    for (; i < end; i++) {
        lanes[0] += (double)job->x[i] * (double)job->x[i];
    }
    job->part[index] = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
                       ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

static clnet_result clnet__cpu_sum_of_squares(clnet_context *ctx, clnet_memory *memory, size_t n,
                                              double *sum) {
    const double start = clnet__cpu_clock(ctx);
    clnet__sum_job job = {.x = memory->handle, .count = n};
    clnet__parallel(&ctx->cpu, CLNET__SUM_PARTS, clnet__sum_task, &job);
    *sum = 0;
    for (int i = 0; i < CLNET__SUM_PARTS; i++) {
        *sum += job.part[i];
    }
    clnet__cpu_measure(ctx, CLNET__ROW_SUM_OF_SQUARES, start, (double)(n * sizeof(clnet_real)));
    return CLNET_OK;
}

static void clnet__cpu_destroy(clnet_context *ctx) { (void)ctx; }

static const clnet_backend clnet__cpu_backend = {.device = "cpu",
                                                 .alloc = clnet__cpu_alloc,
                                                 .free = clnet__cpu_free,
                                                 .upload = clnet__cpu_upload,
                                                 .download = clnet__cpu_download,
                                                 .fill = clnet__cpu_fill,
                                                 .workspace = clnet__cpu_workspace,
                                                 .forward = clnet__cpu_forward,
                                                 .backward = clnet__cpu_backward,
                                                 .adam = clnet__cpu_adam,
                                                 .sum_of_squares = clnet__cpu_sum_of_squares,
                                                 .destroy = clnet__cpu_destroy};

// The desc's vector code, or why not.
static clnet_isa clnet__choose_isa(clnet_context *ctx, clnet_isa isa) {
    if (isa != CLNET_ISA_AUTO && !clnet_isa_supported(isa)) {
        clnet__fail(ctx, CLNET_ERROR_ARGUMENT, "isa %s: this machine does not have it",
                    clnet_isa_name(isa));
        return CLNET_ISA_PORTABLE;
    }
    return isa == CLNET_ISA_AUTO ? clnet__isa_best() : isa;
}

clnet_context *clnet_context_create(const clnet_context_desc *desc) {
    const clnet_context_desc none = {.threads = 0}, *d = desc ? desc : &none;
    clnet_allocator allocator = d->allocator;
    if (!allocator.alloc) {
        allocator = (clnet_allocator){clnet__default_alloc, clnet__default_free, NULL};
    }
    clnet_context *ctx = allocator.alloc(allocator.user, sizeof *ctx);
    if (!ctx) {
        return NULL;
    }
    memset(ctx, 0, sizeof *ctx);
    ctx->allocator = allocator;
    ctx->files = d->files ? *d->files : clnet__default_files();
    if (d->threads < 0) {
        clnet__fail(ctx, CLNET_ERROR_ARGUMENT, "threads: must be 0 or more, found %d", d->threads);
    }
#ifdef _OPENMP
    ctx->cpu.threads = clnet__max(1, clnet__or(d->threads, omp_get_max_threads()));
#else
    ctx->cpu.threads = 1;
#endif
    ctx->cpu.reference = d->reference;
    ctx->cpu.no_winograd = d->no_winograd;
    ctx->cpu.isa = clnet__choose_isa(ctx, d->isa);
    ctx->backend = clnet__cpu_backend;
    ctx->backend.isa = d->reference ? "reference" : clnet_isa_name(ctx->cpu.isa);
    ctx->backend.threads = ctx->cpu.threads;
#ifdef CLNET__FAST
    ctx->backend.epilogues = !d->reference;
#endif
    ctx->backend.norm_epilogues = !d->reference;
    clnet__cpu_name_rows(ctx->rows);
    ctx->backend.rows = d->profile ? ctx->rows : NULL;
    ctx->backend.row_count = CLNET__ROWS;
    ctx->backend.largest_allocation = d->largest_allocation;
    return ctx;
}

void clnet_context_destroy(clnet_context *ctx) {
    if (ctx) {
        ctx->backend.destroy(ctx);
        for (int i = 0; i < ctx->node_count; i++) {
            clnet__free(ctx, (void *)(uintptr_t)ctx->nodes[i]->name);
            clnet__free(ctx, ctx->nodes[i]);
        }
        clnet__free(ctx, ctx->nodes);
        clnet__free(ctx, ctx);
    }
}

// >>optimiser

clnet_adam *clnet_adam_create(clnet_graph *g, const clnet_adam_desc *desc) {
    const clnet_adam_desc none = {.beta1 = 0}, *d = desc ? desc : &none;
    if (!g || g->ctx->result != CLNET_OK) {
        return NULL;
    }
    const bool betas = d->beta1 >= 0 && d->beta1 < 1 && d->beta2 >= 0 && d->beta2 < 1;
    if (g->adam || g->planned || !betas || !(d->eps >= 0) || !(d->weight_decay >= 0)) {
        clnet__fail(g->ctx, CLNET_ERROR_ARGUMENT,
                    "adam: one for each graph, before it is built, with betas "
                    "in 0..1, eps and weight_decay of at least 0");
        return NULL;
    }
    g->adam = clnet__alloc(g->ctx, sizeof *g->adam);
    if (g->adam) {
        *g->adam = (clnet_adam){.graph = g, .desc = *d};
    }
    return g->adam;
}

uint64_t clnet_adam_steps(const clnet_adam *adam) { return adam->steps; }
void clnet_adam_set_steps(clnet_adam *adam, uint64_t steps) { adam->steps = steps; }

// The slab of a moment, NULL where the tensor has none there: clnet__transfer says so.
static clnet_memory *clnet__moment(clnet_adam *adam, int moment, const clnet_tensor *parameter) {
    const bool fits = adam && parameter && parameter->graph == adam->graph &&
                      (moment == 0 || moment == 1) && parameter->role == CLNET_ROLE_PARAMETER;
    const clnet__slab *parameters = fits ? &adam->graph->parameters : NULL;
    return fits && adam->moment[moment].count
               ? &adam->moment[moment].pieces[parameter->memory - parameters->pieces]
               : NULL;
}

clnet_result clnet_adam_get(clnet_adam *adam, int moment, clnet_tensor *parameter, void *data,
                            clnet_order order) {
    return clnet__transfer(parameter, clnet__moment(adam, moment, parameter),
                           parameter ? parameter->offset : 0, data, order, false);
}

clnet_result clnet_adam_set(clnet_adam *adam, int moment, clnet_tensor *parameter, const void *data,
                            clnet_order order) {
    return clnet__transfer(parameter, clnet__moment(adam, moment, parameter),
                           parameter ? parameter->offset : 0, (void *)(uintptr_t)data, order, true);
}

clnet_result clnet_adam_step(clnet_adam *adam, double lr) {
    if (!adam || clnet__ready(adam->graph) != CLNET_OK) {
        return adam ? adam->graph->ctx->result : CLNET_ERROR_ARGUMENT;
    }
    if (!adam->graph->weight_grad) {
        return clnet__fail(adam->graph->ctx, CLNET_ERROR_ARGUMENT,
                           "adam: the graph was built without gradients");
    }
    if (clnet__overwritten(adam->graph)) {
        return adam->graph->ctx->result;
    }
    clnet_context *ctx = adam->graph->ctx;
    adam->steps++;
    for (int i = 0; i < adam->graph->parameters.count && ctx->result == CLNET_OK; i++) {
        ctx->backend.adam(adam, i, lr);
    }
    return ctx->result;
}

// The sum of squares is not finite where a number is not, or where it is beyond any use.
static bool clnet__finite(clnet_graph *g, clnet__slab *slab) {
    double all = 0;
    for (int i = 0; i < slab->count; i++) {
        clnet_memory *piece = &slab->pieces[i];
        double sum = 0;
        if (g->ctx->backend.sum_of_squares(g->ctx, piece, piece->bytes / sizeof(clnet_real),
                                           &sum) != CLNET_OK) {
            return true; // that failure is on record
        }
        all += sum;
    }
    return isfinite(all);
}

clnet_result clnet_train_update(clnet_adam *adam, double lr) {
    if (!adam || clnet__ready(adam->graph) != CLNET_OK) {
        return adam ? adam->graph->ctx->result : CLNET_ERROR_ARGUMENT;
    }
    clnet_graph *g = adam->graph;
    if (clnet__overwritten(g)) {
        return g->ctx->result;
    }
    const bool loss = isfinite(clnet_tensor_item(g->loss));
    if (!loss || !clnet__finite(g, &g->gradients)) {
        const char *node = clnet_graph_first_nonfinite(g);
        return clnet__fail(g->ctx, CLNET_ERROR_NONFINITE,
                           "%s is not finite in step %llu; first in %s",
                           loss ? "a gradient" : "the loss", (unsigned long long)adam->steps + 1,
                           node ? node : "backward");
    }
    return clnet_adam_step(adam, lr);
}

clnet_result clnet_train_step(clnet_adam *adam, double lr) {
    if (!adam || clnet_graph_zero_grad(adam->graph) != CLNET_OK ||
        clnet_graph_forward(adam->graph) != CLNET_OK ||
        clnet_graph_backward(adam->graph) != CLNET_OK) {
        return adam ? adam->graph->ctx->result : CLNET_ERROR_ARGUMENT;
    }
    const clnet_result result = clnet_train_update(adam, lr);
    adam->graph->step += result == CLNET_OK;
    return result;
}

double clnet_poly_lr(double lr0, uint64_t step, uint64_t total_steps, double power) {
    return step < total_steps ? lr0 * pow(1 - (double)step / (double)total_steps, power) : 0;
}

// >>image
// One axis of the triangle filter. Output pixel o has its center at c = (o + 1/2) * in/out of the
// input; input pixel i weighs max(0, 1 - |i + 1/2 - c| / r) with r = max(1, in/out), and the weights
// are divided by their sum. An axis is done at a time, rows first: weights of each axis are computed
// once, y[oh][ow] = sum over i of wh[oh][i] * (sum over j of ww[ow][j] * x[i][j]).
// As in PyTorch (aten/src/ATen/native/cpu/UpSampleKernel.cpp), coordinates and weights are float.

// ImageNet's mean and standard deviation, of values from 0 to 1.
static const clnet_flip_desc clnet__imagenet = {{0.485, 0.456, 0.406}, {0.229, 0.224, 0.225}};

// Input pixels that one output pixel can reach.
static size_t clnet__image_taps(int out, int in) {
    const double scale = (double)in / (double)out;
    return 2 * (size_t)ceil(scale > 1 ? scale : 1) + 1;
}

// Sets *first and *count to the input pixels that output pixel o takes.
static void clnet__image_window(int *first, int *count, int o, int out, int in) {
    const float scale = (float)in / (float)out;
    const float radius = scale > 1 ? scale : 1;
    const float center = scale * ((float)o + 0.5f);
    const float low = center - radius + 0.5f, high = center + radius + 0.5f;
    *first = low > 0 ? (int)low : 0;
    const int end = high < (float)in ? (int)high : in;
    *count = end - *first;
}

// weights (out, taps): row o holds the weights of the window of o.
static void clnet__image_weights(float *weights, int out, int in) {
    const float scale = (float)in / (float)out;
    const float inverse_radius = scale > 1 ? 1 / scale : 1;
    const size_t taps = clnet__image_taps(out, in);
    for (int o = 0; o < out; o++) {
        int first = 0, count = 0;
        clnet__image_window(&first, &count, o, out, in);
        const float center = scale * ((float)o + 0.5f);
        float *w = weights + (size_t)o * taps, sum = 0;
        for (int j = 0; j < count; j++) {
            const float distance = fabsf(((float)(j + first) - center + 0.5f) * inverse_radius);
            w[j] = distance < 1 ? 1 - distance : 0;
            sum += w[j];
        }
        for (int j = 0; j < count; j++) {
            w[j] /= sum;
        }
    }
}

// y (OW,C) = one row x (W,C), filtered.
static void clnet__image_row(float *y, int OW, const float *x, int W, int C, const float *weights) {
    const size_t taps = clnet__image_taps(OW, W);
    for (int ow = 0; ow < OW; ow++) {
        int first = 0, count = 0;
        clnet__image_window(&first, &count, ow, OW, W);
        const float *w = weights + (size_t)ow * taps, *in = x + (size_t)first * (size_t)C;
        for (int c = 0; c < C; c++) {
            float sum = 0;
            for (int j = 0; j < count; j++) {
                sum += w[j] * in[(size_t)j * (size_t)C + (size_t)c];
            }
            y[(size_t)ow * (size_t)C + (size_t)c] = sum;
        }
    }
}

// y (OH, row) = x (H, row), filtered along the columns; row = OW*C numbers.
static void clnet__image_columns(float *y, int OH, const float *x, int H, size_t row,
                                 const float *weights) {
    const size_t taps = clnet__image_taps(OH, H);
    for (int oh = 0; oh < OH; oh++) {
        int first = 0, count = 0;
        clnet__image_window(&first, &count, oh, OH, H);
        const float *w = weights + (size_t)oh * taps;
        float *out = y + (size_t)oh * row;
        for (size_t i = 0; i < row; i++) {
            out[i] = 0;
        }
        for (int j = 0; j < count; j++) {
            const float *in = x + (size_t)(first + j) * row;
            for (size_t i = 0; i < row; i++) {
                out[i] += w[j] * in[i];
            }
        }
    }
}

// *sum += a * b; false when that does not fit.
static bool clnet__image_add_product(size_t *sum, size_t a, size_t b) {
    if (b != 0 && a > (SIZE_MAX - *sum) / b) {
        return false;
    }
    *sum += a * b;
    return true;
}

// The scratch holds, one after the other: weights of both axes, one row of floats (for bytes), and
// the image after the rows are done (H,OW,C).
size_t clnet_resize_scratch(int OH, int OW, int H, int W, int C) {
    size_t floats = 0, row = 0;
    if (OH < 1 || OW < 1 || H < 1 || W < 1 || C < 1) {
        return 0;
    }
    const bool fits = clnet__image_add_product(&floats, (size_t)OW, clnet__image_taps(OW, W)) &&
                      clnet__image_add_product(&floats, (size_t)OH, clnet__image_taps(OH, H)) &&
                      clnet__image_add_product(&floats, (size_t)W, (size_t)C) &&
                      clnet__image_add_product(&row, (size_t)OW, (size_t)C) &&
                      clnet__image_add_product(&floats, (size_t)H, row);
    return fits ? floats : 0;
}

// Where the parts of the scratch begin.
typedef struct clnet__image_parts {
    float *row_weights, *column_weights, *line, *half;
} clnet__image_parts;

static clnet__image_parts clnet__image_split(float *scratch, int OH, int OW, int H, int W, int C) {
    clnet__image_parts s = {.row_weights = scratch};
    s.column_weights = s.row_weights + (size_t)OW * clnet__image_taps(OW, W);
    s.line = s.column_weights + (size_t)OH * clnet__image_taps(OH, H);
    s.half = s.line + (size_t)W * (size_t)C;
    clnet__image_weights(s.row_weights, OW, W);
    clnet__image_weights(s.column_weights, OH, H);
    return s;
}

void clnet_resize_bilinear_antialias(float *y, int OH, int OW, const float *x, int H, int W, int C,
                                     float *scratch) {
    const clnet__image_parts s = clnet__image_split(scratch, OH, OW, H, W, C);
    const size_t in_row = (size_t)W * (size_t)C, out_row = (size_t)OW * (size_t)C;
    for (int h = 0; h < H; h++) {
        clnet__image_row(s.half + (size_t)h * out_row, OW, x + (size_t)h * in_row, W, C,
                         s.row_weights);
    }
    clnet__image_columns(y, OH, s.half, H, out_row, s.column_weights);
}

void clnet_image_to_unit(float *y, int OH, int OW, const unsigned char *rgb, int H, int W,
                         float *scratch) {
    const clnet__image_parts s = clnet__image_split(scratch, OH, OW, H, W, 3);
    const size_t in_row = (size_t)W * 3, out_row = (size_t)OW * 3;
    for (int h = 0; h < H; h++) {
        for (size_t i = 0; i < in_row; i++) {
            s.line[i] = (float)rgb[(size_t)h * in_row + i];
        }
        clnet__image_row(s.half + (size_t)h * out_row, OW, s.line, W, 3, s.row_weights);
    }
    clnet__image_columns(y, OH, s.half, H, out_row, s.column_weights);
    for (size_t i = 0; i < (size_t)OH * out_row; i++) {
        y[i] /= 255;
    }
}

void clnet_image_normalise(float *y, size_t pixels) {
    for (size_t i = 0; i < 3 * pixels; i++) {
        y[i] = (y[i] - (float)clnet__imagenet.mean[i % 3]) / (float)clnet__imagenet.std[i % 3];
    }
}

void clnet_image_to_input(float *y, int OH, int OW, const unsigned char *rgb, int H, int W,
                          float *scratch) {
    clnet_image_to_unit(y, OH, OW, rgb, H, W, scratch);
    clnet_image_normalise(y, (size_t)OH * (size_t)OW);
}

// The two input pixels beside output pixel o, and the weight of the second:
// coordinate = max(0, (o + 1/2) * in/out - 1/2).
static void clnet__image_neighbours(int *first, int *second, float *weight, int o, int out,
                                    int in) {
    const float at = (float)in / (float)out * ((float)o + 0.5f) - 0.5f;
    const float clamped = at > 0 ? at : 0;
    *first = clamped < (float)(in - 1) ? (int)clamped : in - 1;
    *second = *first < in - 1 ? *first + 1 : *first;
    const float rest = clamped - (float)*first;
    *weight = rest < 1 ? rest : 1;
}

void clnet_resize_bilinear(float *y, int OH, int OW, const float *x, int H, int W) {
    for (int oh = 0; oh < OH; oh++) {
        int top = 0, bottom = 0;
        float v = 0;
        clnet__image_neighbours(&top, &bottom, &v, oh, OH, H);
        const float *a = x + (size_t)top * (size_t)W, *b = x + (size_t)bottom * (size_t)W;
        for (int ow = 0; ow < OW; ow++) {
            int left = 0, right = 0;
            float u = 0;
            clnet__image_neighbours(&left, &right, &u, ow, OW, W);
            y[(size_t)oh * (size_t)OW + (size_t)ow] = (1 - v) * ((1 - u) * a[left] + u * a[right]) +
                                                      v * ((1 - u) * b[left] + u * b[right]);
        }
    }
}

// Sorts in place: a heap sort, which takes no memory and has no bad case. `compare` is negative,
// zero or positive as in qsort, and gets `user` as well. Equal elements end up in any order.
typedef int clnet__compare(const void *a, const void *b, const void *user);

static void clnet__swap(unsigned char *a, unsigned char *b, size_t size) {
    for (size_t i = 0; i < size; i++) {
        unsigned char kept = a[i];
        a[i] = b[i];
        b[i] = kept;
    }
}

// Moves the element `root` down until no child is larger.
static void clnet__sift_down(unsigned char *base, size_t root, size_t count, size_t size,
                             clnet__compare *compare, const void *user) {
    while (root < count / 2) {
        size_t child = 2 * root + 1;
        if (child + 1 < count &&
            compare(base + child * size, base + (child + 1) * size, user) < 0) {
            child++;
        }
        if (compare(base + root * size, base + child * size, user) >= 0) {
            return;
        }
        clnet__swap(base + root * size, base + child * size, size);
        root = child;
    }
}

static void clnet__sort(void *base, size_t count, size_t size, clnet__compare *compare,
                        const void *user) {
    unsigned char *first = (unsigned char *)base;
    for (size_t i = count / 2; i-- > 0;) {
        clnet__sift_down(first, i, count, size, compare, user);
    }
    for (size_t last = count; last-- > 1;) {
        clnet__swap(first, first + last * size, size);
        clnet__sift_down(first, 0, last, size, compare, user);
    }
}
// >>metrics

typedef struct clnet__confusion {
    double tp, fp, tn, fn; // whole numbers, exact to 2^53
} clnet__confusion;

static double clnet__ratio(double part, double whole, double if_empty) {
    return whole > 0 ? part / whole : if_empty;
}

// Accuracy, sensitivity and specificity mean the same for pixels and for images.
static void clnet__rates(const clnet__confusion *c, double *accuracy, double *sensitivity,
                         double *specificity) {
    *accuracy = clnet__ratio(c->tp + c->tn, c->tp + c->tn + c->fp + c->fn, (double)NAN);
    *sensitivity = clnet__ratio(c->tp, c->tp + c->fn, 1);
    *specificity = clnet__ratio(c->tn, c->tn + c->fp, 1);
}

void clnet_segmentation_score(const unsigned char *predicted, const unsigned char *truth,
                              size_t pixels, clnet_segmentation_metrics *out) {
    size_t in_prediction = 0, in_truth = 0, in_both = 0;
    for (size_t i = 0; i < pixels; i++) {
        size_t p = predicted[i] > 128, t = truth[i] > 128;
        in_prediction += p;
        in_truth += t;
        in_both += p & t;
    }
    clnet__confusion c = {.tp = (double)in_both,
                          .fp = (double)(in_prediction - in_both),
                          .fn = (double)(in_truth - in_both),
                          .tn = (double)(pixels - in_prediction - in_truth + in_both)};
    out->jaccard = clnet__ratio(c.tp, c.tp + c.fp + c.fn, 1);
    out->threshold_jaccard = out->jaccard >= 0.65 ? out->jaccard : 0;
    out->dice = clnet__ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn, 1);
    clnet__rates(&c, &out->accuracy, &out->sensitivity, &out->specificity);
}

void clnet_segmentation_mean(const clnet_segmentation_metrics *images, size_t count,
                             clnet_segmentation_metrics *out) {
    clnet_segmentation_metrics sum = {0};
    for (size_t i = 0; i < count; i++) {
        sum.jaccard += images[i].jaccard;
        sum.threshold_jaccard += images[i].threshold_jaccard;
        sum.dice += images[i].dice;
        sum.accuracy += images[i].accuracy;
        sum.sensitivity += images[i].sensitivity;
        sum.specificity += images[i].specificity;
    }
    double n = count > 0 ? (double)count : (double)NAN;
    out->jaccard = sum.jaccard / n;
    out->threshold_jaccard = sum.threshold_jaccard / n;
    out->dice = sum.dice / n;
    out->accuracy = sum.accuracy / n;
    out->sensitivity = sum.sensitivity / n;
    out->specificity = sum.specificity / n;
}

typedef struct clnet__scored {
    double score;
    bool positive;
} clnet__scored;

static int clnet__by_falling_score(const void *a, const void *b, const void *user) {
    double x = ((const clnet__scored *)a)->score, y = ((const clnet__scored *)b)->score;
    (void)user;
    return (x < y) - (x > y);
}

// A copy of the scores, highest first, to be freed by the caller; NULL: failed.
static clnet__scored *clnet__sorted_scores(clnet_context *ctx, const double *scores,
                                           const unsigned char *truth, size_t count) {
    size_t bytes;
    if (!clnet__mul(count, sizeof(clnet__scored), &bytes)) {
        clnet__fail(ctx, CLNET_ERROR_LIMIT, "scores: %llu are too many", (unsigned long long)count);
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        if (isnan(scores[i])) {
            clnet__fail(ctx, CLNET_ERROR_ARGUMENT, "scores: number %llu of %llu is NaN",
                        (unsigned long long)i + 1, (unsigned long long)count);
            return NULL;
        }
    }
    clnet__scored *sorted = (clnet__scored *)clnet__alloc(ctx, bytes);
    if (sorted == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        sorted[i].score = scores[i];
        sorted[i].positive = truth[i] != 0;
    }
    clnet__sort(sorted, count, sizeof *sorted, clnet__by_falling_score, NULL);
    return sorted;
}

// Counts the positives and negatives among the scores that equal the one at *i, and moves *i behind
// them.
static void clnet__count_ties(const clnet__scored *sorted, size_t count, size_t *i,
                              double *positives, double *negatives) {
    double score = sorted[*i].score;
    *positives = *negatives = 0;
    for (; *i < count && sorted[*i].score == score; ++*i) {
        *(sorted[*i].positive ? positives : negatives) += 1;
    }
}

// Twice the number of pairs in which the positive has the higher score, ties counting one, over
// twice the number of pairs (Mann and Whitney's U). The counts are whole numbers, so only the
// division rounds.
static double clnet__auc(const clnet__scored *sorted, size_t count) {
    double above = 0, below = 0, twice = 0; // positives and negatives passed so far
    for (size_t i = 0; i < count;) {
        double positives, negatives;
        clnet__count_ties(sorted, count, &i, &positives, &negatives);
        twice += negatives * (2 * above + positives);
        above += positives;
        below += negatives;
    }
    return clnet__ratio(twice, 2 * above * below, (double)NAN);
}

clnet_result clnet_classification_score(clnet_context *ctx, const double *scores,
                                        const unsigned char *truth, size_t count,
                                        clnet_classification_metrics *out) {
    const clnet_classification_metrics undefined = {(double)NAN, (double)NAN, (double)NAN,
                                                    (double)NAN};
    *out = undefined;
    if (ctx == NULL || ctx->result != CLNET_OK || count == 0) {
        return ctx == NULL ? CLNET_ERROR_MEMORY : ctx->result;
    }
    clnet__scored *sorted = clnet__sorted_scores(ctx, scores, truth, count);
    if (sorted == NULL) {
        return ctx->result;
    }
    out->auc = clnet__auc(sorted, count);
    clnet__confusion c = {0};
    for (size_t i = 0; i < count; i++) {
        bool said = sorted[i].score > 0.5, is = sorted[i].positive;
        *(said ? (is ? &c.tp : &c.fp) : (is ? &c.fn : &c.tn)) += 1;
    }
    clnet__rates(&c, &out->accuracy, &out->sensitivity, &out->specificity);
    clnet__free(ctx, sorted);
    return CLNET_OK;
}

clnet_result clnet_roc_curve(clnet_context *ctx, const double *scores, const unsigned char *truth,
                             size_t count, clnet_roc_point *points, size_t *used) {
    *used = 0;
    if (ctx == NULL || ctx->result != CLNET_OK || count == 0) {
        return ctx == NULL ? CLNET_ERROR_MEMORY : ctx->result;
    }
    clnet__scored *sorted = clnet__sorted_scores(ctx, scores, truth, count);
    if (sorted == NULL) {
        return ctx->result;
    }
    clnet_roc_point last = {0, 0, (double)INFINITY}; // counts, until the totals are known
    size_t n = 0;
    points[n++] = last;
    for (size_t i = 0; i < count;) {
        double positives, negatives;
        last.threshold = sorted[i].score;
        clnet__count_ties(sorted, count, &i, &positives, &negatives);
        last.true_positive_rate += positives;
        last.false_positive_rate += negatives;
        points[n++] = last;
    }
    clnet__free(ctx, sorted);
    if (last.true_positive_rate > 0 && last.false_positive_rate > 0) {
        *used = n;
    }
    for (size_t i = 0; i < *used; i++) {
        points[i].true_positive_rate /= last.true_positive_rate;
        points[i].false_positive_rate /= last.false_positive_rate;
    }
    return CLNET_OK;
}

// >>files

// Products and sums of sizes in a file, one function each; false: it does not fit 64 bits.
static bool clnet__mul64(uint64_t a, uint64_t b, uint64_t *out) {
    if (b != 0 && a > UINT64_MAX / b) {
        return false;
    }
    *out = a * b;
    return true;
}

static bool clnet__add64(uint64_t a, uint64_t b, uint64_t *out) {
    *out = a + b;
    return *out >= a;
}

#define CLNET__MAX_DIM (((uint64_t)1 << 48) - 1) // of one axis, by the format's schema

// The bytes of one number for a shape; false: more than 64 bits count.
static bool clnet__shape_bytes(const uint64_t *shape, int rank, clnet_dtype dtype, uint64_t *out) {
    *out = clnet_dtype_size(dtype);
    for (int i = 0; i < rank; i++) {
        if (!clnet__mul64(*out, shape[i], out)) {
            return false;
        }
    }
    return true;
}

// >>files: types of numbers

size_t clnet_dtype_size(clnet_dtype dtype) {
#define CLNET__DTYPE_SIZE(name, size) size,
    static const unsigned char sizes[] = {CLNET_DTYPES(CLNET__DTYPE_SIZE)};
#undef CLNET__DTYPE_SIZE
    return (unsigned)dtype < CLNET_DTYPE_COUNT ? sizes[dtype] : 0;
}

const char *clnet_dtype_name(clnet_dtype dtype) {
#define CLNET__DTYPE_NAME(name, size) #name,
    static const char *const names[] = {CLNET_DTYPES(CLNET__DTYPE_NAME)};
#undef CLNET__DTYPE_NAME
    return (unsigned)dtype < CLNET_DTYPE_COUNT ? names[dtype] : "?";
}

// CLNET_DTYPE_COUNT: there is none of that name.
static clnet_dtype clnet__dtype_of(const char *name) {
    int i = 0;
    while (i < CLNET_DTYPE_COUNT && strcmp(name, clnet_dtype_name((clnet_dtype)i)) != 0) {
        i++;
    }
    return (clnet_dtype)i;
}

// Little endian, on every machine.
static uint64_t clnet__load_bytes(const unsigned char *bytes, size_t count) {
    uint64_t bits = 0;
    for (size_t i = count; i-- > 0;) {
        bits = bits << 8 | bytes[i];
    }
    return bits;
}

static void clnet__store_bytes(unsigned char *bytes, size_t count, uint64_t bits) {
    for (size_t i = 0; i < count; i++) {
        bytes[i] = (unsigned char)(bits >> 8 * i);
    }
}

static float clnet__float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t clnet__bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// A half: sign, 5 bits of exponent (bias 15, a float's is 127), 10 of mantissa (a float has 23).
static float clnet__float_of_half(uint32_t half) {
    uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3FFu;
    if (exponent == 31) { // infinity or NaN
        return clnet__float_of_bits(sign | 0x7F800000u | mantissa << 13);
    }
    if (exponent == 0) { // multiples of 2^-24
        float value = (float)mantissa * (1.0f / 16777216.0f);
        return sign ? -value : value;
    }
    return clnet__float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

// Drops the low `shift` bits, 0 < shift < 32, and rounds to nearest, ties to even.
static uint32_t clnet__round_off(uint32_t bits, uint32_t shift) {
    uint32_t odd = bits >> shift & 1;
    return (bits + ((uint32_t)1 << (shift - 1)) - 1 + odd) >> shift;
}

static uint32_t clnet__half_of_float(float value) {
    uint32_t bits = clnet__bits_of_float(value), sign = bits >> 16 & 0x8000u,
             a = bits & 0x7FFFFFFFu;
    if (a > 0x7F800000u) { // NaN, quiet
        return sign | 0x7E00u | (a >> 13 & 0x3FFu);
    }
    if (a >= 0x477FF000u) { // from 65520 on
        return sign | 0x7C00u;
    }
    if (a >= 0x38800000u) { // from 2^-14 on: a carry from the mantissa moves into the exponent
        return sign | clnet__round_off(a - (112u << 23), 13);
    }
    if (a < 0x33000000u) { // below 2^-25
        return sign;
    }
    return sign | clnet__round_off((a & 0x7FFFFFu) | 0x800000u, 126 - (a >> 23));
}

// A bfloat16 is the upper half of a float.
static uint32_t clnet__bfloat_of_float(float value) {
    uint32_t bits = clnet__bits_of_float(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) { // NaN, quiet
        return bits >> 16 | 0x40u;
    }
    return clnet__round_off(bits, 16);
}

static double clnet__load_f64(const unsigned char *bytes) {
    uint64_t bits = clnet__load_bytes(bytes, 8);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void clnet__store_f64(unsigned char *bytes, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    clnet__store_bytes(bytes, 8, bits);
}

// A narrower file type is widened; a wider one would round, so it is refused.
static bool clnet__can_decode(clnet_dtype dtype) {
    return dtype == CLNET_F32 || dtype == CLNET_F16 || dtype == CLNET_BF16 ||
           (dtype == CLNET_F64 && sizeof(clnet_real) >= 8);
}

static clnet_real clnet__load_real(const unsigned char *bytes, clnet_dtype dtype) {
    switch (dtype) {
    case CLNET_F64:
        return (clnet_real)clnet__load_f64(bytes);
    case CLNET_F16:
        return clnet__float_of_half((uint32_t)clnet__load_bytes(bytes, 2));
    case CLNET_BF16:
        return clnet__float_of_bits((uint32_t)clnet__load_bytes(bytes, 2) << 16);
    default:
        return clnet__float_of_bits((uint32_t)clnet__load_bytes(bytes, 4));
    }
}

bool clnet_decode(clnet_real *values, const void *bytes, size_t count, clnet_dtype dtype) {
    const unsigned char *from = (const unsigned char *)bytes;
    if (!clnet__can_decode(dtype)) {
        return false;
    }
    size_t size = clnet_dtype_size(dtype);
    for (size_t i = 0; i < count; i++) {
        values[i] = clnet__load_real(from + i * size, dtype);
    }
    return true;
}

static void clnet__store_real(unsigned char *bytes, clnet_real value, clnet_dtype dtype) {
    switch (dtype) {
    case CLNET_F64:
        clnet__store_f64(bytes, (double)value);
        break;
    case CLNET_F16:
        clnet__store_bytes(bytes, 2, clnet__half_of_float((float)value));
        break;
    case CLNET_BF16:
        clnet__store_bytes(bytes, 2, clnet__bfloat_of_float((float)value));
        break;
    default:
        clnet__store_bytes(bytes, 4, clnet__bits_of_float((float)value));
        break;
    }
}

bool clnet_encode(void *bytes, const clnet_real *values, size_t count, clnet_dtype dtype) {
    unsigned char *to = (unsigned char *)bytes;
    if (!clnet__can_decode(dtype) && dtype != CLNET_F64) {
        return false;
    }
    size_t size = clnet_dtype_size(dtype);
    for (size_t i = 0; i < count; i++) {
        clnet__store_real(to + i * size, values[i], dtype);
    }
    return true;
}

// >>files: text

// The length of the well-formed UTF-8 character at s, of which `left` bytes are there; 0: there is
// none. Overlong forms, surrogates and what is beyond U+10FFFF are not well-formed.
static size_t clnet__utf8_length(const unsigned char *s, size_t left) {
    if (s[0] < 0x80) {
        return 1;
    }
    size_t n = s[0] < 0xC2 ? 0 : s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : s[0] < 0xF5 ? 4 : 0;
    if (n == 0 || n > left) {
        return 0;
    }
    unsigned lowest = s[0] == 0xE0 ? 0xA0 : s[0] == 0xF0 ? 0x90 : 0x80;
    unsigned highest = s[0] == 0xED ? 0x9F : s[0] == 0xF4 ? 0x8F : 0xBF;
    if (s[1] < lowest || s[1] > highest) {
        return 0;
    }
    for (size_t i = 2; i < n; i++) {
        if ((s[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    return n;
}

// The first byte that is not UTF-8, or `length`.
static size_t clnet__utf8_end(const char *text, size_t length) {
    const unsigned char *s = (const unsigned char *)text;
    size_t i = 0;
    for (size_t n = 1; i < length && n > 0; i += n) {
        n = clnet__utf8_length(s + i, length - i);
    }
    return i;
}

// Whether UTF-8 text has control characters: below 32, 127, or U+0080 to U+009F.
static bool clnet__has_control(const char *text) {
    for (const unsigned char *s = (const unsigned char *)text; *s != 0; s++) {
        if (*s < 32 || *s == 127 || (*s == 0xC2 && s[1] < 0xA0)) {
            return true;
        }
    }
    return false;
}

// The beginning of a text from a file as it may stand in a message.
static void clnet__printable(char *out, size_t size, const char *text) {
    size_t i = 0;
    for (; i + 1 < size && text[i] != 0; i++) {
        out[i] = text[i] >= 32 && text[i] < 127 ? text[i] : '?';
    }
    out[i] = 0;
}

// Text that is measured first and written then: by the same function, which is called twice.
typedef struct clnet__text {
    char *data; // NULL: measure
    size_t length;
} clnet__text;

static void clnet__text_char(clnet__text *text, char c) {
    if (text->data != NULL) {
        text->data[text->length] = c;
    }
    text->length++;
}

// The lowest bytes of a number, little endian.
static void clnet__text_bytes(clnet__text *text, uint64_t value, size_t count) {
    for (size_t i = 0; i < count; i++) {
        clnet__text_char(text, (char)(value >> 8 * i));
    }
}

static void clnet__text_add(clnet__text *text, const char *s) {
    while (*s != 0) {
        clnet__text_char(text, *s++);
    }
}

static void clnet__text_number(clnet__text *text, uint64_t value) {
    char digits[24];
    snprintf(digits, sizeof digits, "%llu", (unsigned long long)value);
    clnet__text_add(text, digits);
}

// >>files: the C library's files

#ifndef CLNET_NO_STDIO

// The handle is the FILE itself. Offsets and sizes are a long in C99, so where a long has 32 bits,
// files from 2 GiB on are refused; a table of the user's own can do better.

static void *clnet__stdio_open(void *user, const char *path, bool write) {
    (void)user;
    return fopen(path, write ? "wb" : "rb");
}

static bool clnet__stdio_size(void *user, void *file, uint64_t *bytes) {
    (void)user;
    if (fseek((FILE *)file, 0, SEEK_END) != 0) {
        return false;
    }
    long end = ftell((FILE *)file);
    *bytes = end < 0 ? 0 : (uint64_t)end;
    return end >= 0;
}

// Reading on from where the last read ended needs no seek, which would drop the library's buffer.
static size_t clnet__stdio_read(void *user, void *file, uint64_t offset, void *data, size_t bytes) {
    FILE *f = (FILE *)file;
    long here = ftell(f);
    (void)user;
    if (offset > LONG_MAX) {
        return 0;
    }
    if (here != (long)offset && fseek(f, (long)offset, SEEK_SET) != 0) {
        return 0;
    }
    return fread(data, 1, bytes, f);
}

static size_t clnet__stdio_write(void *user, void *file, const void *data, size_t bytes) {
    (void)user;
    return fwrite(data, 1, bytes, (FILE *)file);
}

// C99 can hand the data to the system, no further.
static bool clnet__stdio_sync(void *user, void *file) {
    (void)user;
    return fflush((FILE *)file) == 0;
}

static bool clnet__stdio_close(void *user, void *file) {
    (void)user;
    return fclose((FILE *)file) == 0;
}

// Replaces `to` where the system's rename does: on POSIX systems, not on Windows.
static bool clnet__stdio_rename(void *user, const char *from, const char *to) {
    (void)user;
    return rename(from, to) == 0;
}

static void clnet__stdio_remove(void *user, const char *path) {
    (void)user;
    remove(path);
}

#endif

// The table of a context whose desc has none.
static clnet_files clnet__default_files(void) {
    clnet_files files = {0};
#ifndef CLNET_NO_STDIO
    files.open = clnet__stdio_open;
    files.size = clnet__stdio_size;
    files.read = clnet__stdio_read;
    files.write = clnet__stdio_write;
    files.sync = clnet__stdio_sync;
    files.close = clnet__stdio_close;
    files.rename = clnet__stdio_rename;
    files.remove = clnet__stdio_remove;
#endif
    return files;
}

// The length of paths in messages, which have to leave room for a tensor's name.
#define CLNET__PATH "%.300s"

// Records that a call of the table of files failed, with the reason in errno, which the caller sets
// to 0 before that call: a table of the user's own may know none.
static bool clnet__file_fail(clnet_context *ctx, const char *path, const char *what) {
    const char *reason = errno != 0 ? strerror(errno) : "the reason is not known";
    clnet__fail(ctx, CLNET_ERROR_FILE, CLNET__PATH ": cannot be %s: %s", path, what, reason);
    return false;
}

// NULL: failed.
static void *clnet__file_open(clnet_context *ctx, const char *path, bool write) {
    if (ctx->files.open == NULL) {
        clnet__fail(ctx, CLNET_ERROR_FILE, CLNET__PATH ": the context has no file functions", path);
        return NULL;
    }
    errno = 0;
    void *file = ctx->files.open(ctx->files.user, path, write);
    if (file == NULL) {
        clnet__file_fail(ctx, path, write ? "opened for writing" : "opened");
    }
    return file;
}

// >>files: reading

// What is kept of a tensor: 32 bytes, since the memory for a file is bounded by the file's size and
// a tensor's text can be as short as 50 bytes. The shape stays text until somebody asks for it.
typedef struct clnet__file_record {
    uint64_t begin, end;  // of its bytes, from where the data begin
    uint32_t name, shape; // where in the text: the name, 0-terminated; the shape's numbers
    unsigned char dtype, rank;
    bool strided; // strides stand behind the shape
} clnet__file_record;

typedef struct clnet__file_string {
    uint32_t key, value; // where in the header's text, both 0-terminated
} clnet__file_string;

struct clnet_tensor_file {
    clnet_context *ctx;
    char *path;
    void *file;
    uint64_t size, data;         // bytes of the file; where the tensors' bytes begin
    char *text;                  // the header; strings have their escapes resolved where they stand
    size_t length;               // of the text; text[length] is 0
    clnet__file_record *records; // by name
    size_t count, capacity;
    clnet__file_string *strings; // metadata, by key
    size_t string_count;
    bool has_metadata;
};

// Files of torch.save, see below.
static bool clnet__is_zip(const unsigned char start[8]);
static bool clnet__is_pickle(const unsigned char start[8]);
static bool clnet__is_tar(clnet_tensor_file *f);
static bool clnet__pth_read(clnet_tensor_file *f, bool zip);
static bool clnet__tensor_span(const clnet_file_tensor *t, uint64_t *span);

// The parser: a place in the header, and the tensor it is in. It does not recurse: the deepest
// thing that the format has is an array in an object in the object, and nothing unknown is skipped
// over.
typedef struct clnet__header {
    clnet_tensor_file *f;
    size_t at;        // in f->text
    const char *name; // NULL outside of tensors
} clnet__header;

// Records that something else stands at h->at.
static bool clnet__header_fail(const clnet__header *h, clnet_result result, const char *expected) {
    const clnet_tensor_file *f = h->f;
    unsigned char c = (unsigned char)f->text[h->at];
    char found[24];
    if (h->at >= f->length) {
        snprintf(found, sizeof found, "the header's end");
    } else {
        snprintf(found, sizeof found, c > 32 && c < 127 ? "'%c'" : "byte 0x%02x", c);
    }
    clnet__fail(f->ctx, result, CLNET__PATH ": byte %llu%s%s: expected %s, found %s", f->path,
                (unsigned long long)h->at + 8, h->name != NULL ? ", tensor " : "",
                h->name != NULL ? h->name : "", expected, found);
    return false;
}

static char clnet__header_peek(clnet__header *h) {
    const char *text = h->f->text;
    while (text[h->at] == ' ' || text[h->at] == '\n' || text[h->at] == '\r' ||
           text[h->at] == '\t') {
        h->at++;
    }
    return text[h->at];
}

// Steps over a character if it is the next one.
static bool clnet__header_skip(clnet__header *h, char c) {
    bool found = clnet__header_peek(h) == c;
    h->at += found;
    return found;
}

// Reads a whole number up to 2^48 - 1 without a leading zero. A point or an exponent behind it is
// no part of it, and nothing that may follow it. False, with nothing recorded and h->at at the
// culprit: it is something else.
static bool clnet__header_number(clnet__header *h, uint64_t *value) {
    const char *digits = h->f->text + h->at;
    size_t n = 0;
    bool fits = true;
    *value = 0;
    while (fits && digits[n] >= '0' && digits[n] <= '9') {
        *value = *value * 10 + (uint64_t)(digits[n] - '0');
        fits = *value <= CLNET__MAX_DIM && !(n == 1 && digits[0] == '0');
        n += fits;
    }
    h->at += n;
    return fits && n > 0;
}

// The four hexadecimal digits of \uXXXX.
static bool clnet__header_hex(clnet__header *h, uint32_t *code) {
    *code = 0;
    for (int i = 0; i < 4; i++, h->at++) {
        char c = h->f->text[h->at];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) {
            return clnet__header_fail(h, CLNET_ERROR_SYNTAX, "four hexadecimal digits after \\u");
        }
        *code = *code << 4 | (uint32_t)digit;
    }
    return true;
}

// What follows "\u": a character of up to 16 bits, or two halves of a larger one.
static bool clnet__header_unicode(clnet__header *h, uint32_t *code) {
    uint32_t low;
    if (!clnet__header_hex(h, code)) {
        return false;
    }
    if (*code == 0 || (*code >= 0xDC00 && *code < 0xE000)) {
        return clnet__header_fail(h, CLNET_ERROR_ENCODING,
                                  *code == 0 ? "no \\u0000 before this place"
                                             : "no lone low surrogate before this place");
    }
    if (*code < 0xD800 || *code >= 0xE000) {
        return true;
    }
    const char *next = h->f->text + h->at;
    if (next[0] != '\\' || next[1] != 'u') {
        return clnet__header_fail(h, CLNET_ERROR_ENCODING, "the low half of a surrogate pair");
    }
    h->at += 2;
    if (!clnet__header_hex(h, &low)) {
        return false;
    }
    if (low < 0xDC00 || low >= 0xE000) {
        return clnet__header_fail(h, CLNET_ERROR_ENCODING, "a low surrogate before this place");
    }
    *code = 0x10000 + ((*code - 0xD800) << 10 | (low - 0xDC00));
    return true;
}

static char *clnet__put_utf8(char *out, uint32_t code) {
    static const unsigned char first[] = {0, 0xC0, 0xE0,
                                          0xF0}; // by the number of bytes that follow
    int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    *out++ = (char)(code >> 6 * more | first[more]);
    while (more-- > 0) {
        *out++ = (char)((code >> 6 * more & 0x3F) | 0x80);
    }
    return out;
}

// Resolves the escape behind a backslash to *out and moves *out on. No escape is shorter than what
// it stands for, so writing never overtakes reading.
static bool clnet__header_escape(clnet__header *h, char **out) {
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    char c = h->f->text[h->at];
    const char *known = c != 0 ? strchr(letters, c) : NULL;
    uint32_t code;
    if (known != NULL) {
        *(*out)++ = meanings[known - letters];
        h->at++;
        return true;
    }
    if (c != 'u') {
        return clnet__header_fail(h, CLNET_ERROR_SYNTAX, "one of \"\\/bfnrtu after a backslash");
    }
    h->at++;
    if (!clnet__header_unicode(h, &code)) {
        return false;
    }
    *out = clnet__put_utf8(*out, code);
    return true;
}

// Reads a string, resolves its escapes in place and ends it with 0. *start is its place in the
// text.
static bool clnet__header_string(clnet__header *h, uint32_t *start, clnet_result if_none,
                                 const char *expected) {
    if (!clnet__header_skip(h, '"')) {
        return clnet__header_fail(h, if_none, expected);
    }
    char *text = h->f->text, *out = text + h->at;
    *start = (uint32_t)h->at;
    while (text[h->at] != '"') {
        char c = text[h->at];
        if ((unsigned char)c < 32) {
            return clnet__header_fail(h, CLNET_ERROR_SYNTAX, "more of a string, or its '\"'");
        }
        h->at++;
        if (c != '\\') {
            *out++ = c;
        } else if (!clnet__header_escape(h, &out)) {
            return false;
        }
    }
    h->at++;
    *out = 0;
    return true;
}

// Steps over the ',' before the next element of a list that ends with `close`, or over `close`.
// *more: there is a next element. `first`: none was read yet.
static bool clnet__header_next(clnet__header *h, char close, bool first, clnet_result if_wrong,
                               bool *more) {
    char expected[] = "',' or '?'";
    expected[sizeof expected - 3] = close;
    *more = !clnet__header_skip(h, close);
    if (!*more || first || clnet__header_skip(h, ',')) {
        return true;
    }
    return clnet__header_fail(h, if_wrong, expected);
}

static bool clnet__header_colon(clnet__header *h) {
    return clnet__header_skip(h, ':') || clnet__header_fail(h, CLNET_ERROR_SYNTAX, "':'");
}

static bool clnet__header_dtype(clnet__header *h, clnet__file_record *record) {
    uint32_t start;
    if (!clnet__header_string(h, &start, CLNET_ERROR_DTYPE, "a dtype as a string")) {
        return false;
    }
    clnet_dtype dtype = clnet__dtype_of(h->f->text + start);
    if (dtype == CLNET_DTYPE_COUNT) {
        char found[40];
        clnet__printable(found, sizeof found, h->f->text + start);
        clnet__fail(h->f->ctx, CLNET_ERROR_DTYPE,
                    CLNET__PATH ": byte %llu, tensor %s: expected a dtype such as F32, F16, BF16, "
                                "F64, I64 or U8, found \"%s\"",
                    h->f->path, (unsigned long long)start + 8, h->name, found);
        return false;
    }
    record->dtype = (unsigned char)dtype;
    return true;
}

static bool clnet__header_shape(clnet__header *h, clnet__file_record *record, uint64_t *shape) {
    bool more;
    if (!clnet__header_skip(h, '[')) {
        return clnet__header_fail(h, CLNET_ERROR_SHAPE, "a shape as an array");
    }
    record->shape = (uint32_t)h->at;
    record->rank = 0;
    while (clnet__header_next(h, ']', record->rank == 0, CLNET_ERROR_SHAPE, &more) && more) {
        if (record->rank == CLNET_MAX_RANK) {
            return clnet__header_fail(h, CLNET_ERROR_LIMIT,
                                      "the shape's end after the most axes "
                                      "that clnet accepts");
        }
        clnet__header_peek(h);
        if (!clnet__header_number(h, &shape[record->rank])) {
            return clnet__header_fail(h, CLNET_ERROR_SHAPE, "a shape of whole numbers below 2^48");
        }
        record->rank++;
    }
    return h->f->ctx->result == CLNET_OK;
}

static bool clnet__header_offsets(clnet__header *h, clnet__file_record *record) {
    uint64_t offsets[2];
    if (!clnet__header_skip(h, '[')) {
        return clnet__header_fail(h, CLNET_ERROR_OFFSETS, "data_offsets as an array");
    }
    for (int i = 0; i < 2; i++) {
        clnet__header_peek(h);
        if (!clnet__header_number(h, &offsets[i])) {
            return clnet__header_fail(h, CLNET_ERROR_OFFSETS,
                                      "data_offsets of two whole numbers below 2^48");
        }
        if (!clnet__header_skip(h, i == 0 ? ',' : ']')) {
            return clnet__header_fail(h, CLNET_ERROR_OFFSETS,
                                      i == 0 ? "',' in data_offsets"
                                             : "']' after two data_offsets");
        }
    }
    record->begin = offsets[0];
    record->end = offsets[1];
    return true;
}

static const char *const clnet__file_fields[] = {"dtype", "shape", "data_offsets"};

// Reads `"field": value` of a tensor. `seen` has a bit for each field read.
static bool clnet__header_field(clnet__header *h, clnet__file_record *record, uint64_t *shape,
                                unsigned *seen) {
    uint32_t start;
    int field = 0;
    if (!clnet__header_string(h, &start, CLNET_ERROR_SYNTAX, "a field's name as a string")) {
        return false;
    }
    while (field < 3 && strcmp(h->f->text + start, clnet__file_fields[field]) != 0) {
        field++;
    }
    if (field == 3 || (*seen >> field & 1)) {
        char found[40];
        clnet__printable(found, sizeof found, h->f->text + start);
        clnet__fail(h->f->ctx, field == 3 ? CLNET_ERROR_SYNTAX : CLNET_ERROR_DUPLICATE,
                    CLNET__PATH ": byte %llu, tensor %s: expected dtype, shape and data_offsets, "
                                "found %s\"%s\"",
                    h->f->path, (unsigned long long)start + 8, h->name,
                    field == 3 ? "" : "another ", found);
        return false;
    }
    *seen |= 1u << field;
    return clnet__header_colon(h) && (field == 0   ? clnet__header_dtype(h, record)
                                      : field == 1 ? clnet__header_shape(h, record, shape)
                                                   : clnet__header_offsets(h, record));
}

static bool clnet__tensor_fail(const clnet_tensor_file *f, const clnet__file_record *record,
                               clnet_result result, const char *what, uint64_t found,
                               uint64_t expected) {
    clnet__fail(f->ctx, result, CLNET__PATH ": tensor %s: %s %llu, expected %llu", f->path,
                f->text + record->name, what, (unsigned long long)found,
                (unsigned long long)expected);
    return false;
}

// The size that the shape says is the size that the offsets say.
static bool clnet__check_size(const clnet_tensor_file *f, const clnet__file_record *record,
                              const uint64_t *shape) {
    uint64_t bytes;
    if (!clnet__shape_bytes(shape, record->rank, (clnet_dtype)record->dtype, &bytes)) {
        clnet__fail(f->ctx, CLNET_ERROR_SHAPE,
                    CLNET__PATH ": tensor %s: its shape has more bytes than 64 bits count", f->path,
                    f->text + record->name);
        return false;
    }
    if (record->begin > record->end) {
        return clnet__tensor_fail(f, record, CLNET_ERROR_OFFSETS, "begins behind its end: at",
                                  record->begin, record->end);
    }
    if (record->end - record->begin != bytes) {
        return clnet__tensor_fail(f, record, CLNET_ERROR_OFFSETS,
                                  "bytes between its offsets:", record->end - record->begin, bytes);
    }
    return true;
}

// Reads the object of one tensor, whose name stands at `name`.
static bool clnet__header_tensor(clnet__header *h, uint32_t name) {
    clnet_tensor_file *f = h->f;
    clnet__file_record record = {.name = name};
    uint64_t shape[CLNET_MAX_RANK];
    unsigned seen = 0;
    bool more;
    if (f->count == f->capacity) {
        clnet__fail(f->ctx, CLNET_ERROR_LIMIT,
                    CLNET__PATH ": byte %llu: more tensors than the %llu that clnet accepts",
                    f->path, (unsigned long long)name + 8,
                    (unsigned long long)CLNET_FILE_MAX_TENSORS);
        return false;
    }
    h->name = f->text + name;
    if (!clnet__header_skip(h, '{')) {
        return clnet__header_fail(h, CLNET_ERROR_SYNTAX, "a tensor as an object");
    }
    while (clnet__header_next(h, '}', seen == 0, CLNET_ERROR_SYNTAX, &more) && more) {
        if (!clnet__header_field(h, &record, shape, &seen)) {
            return false;
        }
    }
    for (int field = 0; field < 3; field++) {
        if (f->ctx->result == CLNET_OK && !(seen >> field & 1)) {
            clnet__fail(f->ctx, CLNET_ERROR_SYNTAX,
                        CLNET__PATH ": byte %llu, tensor %s: expected a field \"%s\", found none",
                        f->path, (unsigned long long)h->at + 7, h->name, clnet__file_fields[field]);
        }
    }
    if (f->ctx->result != CLNET_OK || !clnet__check_size(f, &record, shape)) {
        return false;
    }
    f->records[f->count++] = record;
    h->name = NULL;
    return true;
}

// Reads the object of metadata, which holds strings by key.
static bool clnet__header_metadata(clnet__header *h) {
    clnet_tensor_file *f = h->f;
    bool more;
    if (f->has_metadata) {
        return clnet__header_fail(h, CLNET_ERROR_DUPLICATE, "\"__metadata__\" only once");
    }
    if (!clnet__header_skip(h, '{')) {
        return clnet__header_fail(h, CLNET_ERROR_METADATA, "\"__metadata__\" as an object");
    }
    f->has_metadata = true;
    size_t capacity = f->length / (sizeof "\"\":\"\"" - 1) + 1; // room for the shortest pairs
    capacity = capacity < CLNET_FILE_MAX_TENSORS ? capacity : CLNET_FILE_MAX_TENSORS;
    f->strings = (clnet__file_string *)clnet__alloc(f->ctx, capacity * sizeof *f->strings);
    if (f->strings == NULL) {
        return false;
    }
    while (clnet__header_next(h, '}', f->string_count == 0, CLNET_ERROR_SYNTAX, &more) && more) {
        if (f->string_count == capacity) {
            return clnet__header_fail(h, CLNET_ERROR_LIMIT, "fewer pairs of metadata");
        }
        clnet__file_string *pair = &f->strings[f->string_count++];
        if (!clnet__header_string(h, &pair->key, CLNET_ERROR_SYNTAX, "a key as a string") ||
            !clnet__header_colon(h) ||
            !clnet__header_string(h, &pair->value, CLNET_ERROR_METADATA, "metadata as a string")) {
            return false;
        }
    }
    return f->ctx->result == CLNET_OK;
}

// A name has to be fit for messages and for tables of names.
static bool clnet__check_name(const clnet_tensor_file *f, uint32_t name) {
    size_t length = strlen(f->text + name);
    if (length > CLNET_FILE_MAX_NAME) {
        clnet__fail(f->ctx, CLNET_ERROR_LIMIT,
                    CLNET__PATH ": byte %llu: a name of %llu bytes, expected %llu at most", f->path,
                    (unsigned long long)name + 8, (unsigned long long)length,
                    (unsigned long long)CLNET_FILE_MAX_NAME);
        return false;
    }
    if (clnet__has_control(f->text + name)) {
        char found[80];
        clnet__printable(found, sizeof found, f->text + name);
        clnet__fail(f->ctx, CLNET_ERROR_ENCODING,
                    CLNET__PATH ": byte %llu: expected a name without control characters, found "
                                "\"%s\"",
                    f->path, (unsigned long long)name + 8, found);
        return false;
    }
    return true;
}

// Reads the whole header. What may follow its JSON is spaces.
static bool clnet__header_parse(clnet_tensor_file *f) {
    clnet__header h = {.f = f};
    bool more, first = true;
    if (f->text[0] != '{') {
        return clnet__header_fail(&h, CLNET_ERROR_SYNTAX, "a header that begins with '{'");
    }
    h.at = 1;
    while (clnet__header_next(&h, '}', first, CLNET_ERROR_SYNTAX, &more) && more) {
        uint32_t name;
        if (!clnet__header_string(&h, &name, CLNET_ERROR_SYNTAX, "a name as a string") ||
            !clnet__check_name(f, name) || !clnet__header_colon(&h)) {
            return false;
        }
        bool metadata = strcmp(f->text + name, "__metadata__") == 0;
        clnet__header_peek(&h);
        if (!(metadata ? clnet__header_metadata(&h) : clnet__header_tensor(&h, name))) {
            return false;
        }
        first = false;
    }
    while (f->ctx->result == CLNET_OK && f->text[h.at] == ' ') {
        h.at++;
    }
    if (f->ctx->result == CLNET_OK && h.at < f->length) {
        return clnet__header_fail(&h, CLNET_ERROR_SYNTAX, "nothing but spaces behind the JSON");
    }
    return f->ctx->result == CLNET_OK;
}

static int clnet__record_by_name(const void *a, const void *b, const void *user) {
    const char *text = (const char *)user;
    return strcmp(text + ((const clnet__file_record *)a)->name,
                  text + ((const clnet__file_record *)b)->name);
}

// An empty tensor stands before the one that begins at the same place.
static int clnet__record_by_place(const void *a, const void *b, const void *user) {
    const clnet__file_record *x = (const clnet__file_record *)a, *y = (const clnet__file_record *)b;
    (void)user;
    return x->begin != y->begin ? (x->begin > y->begin) - (x->begin < y->begin)
                                : (x->end > y->end) - (x->end < y->end);
}

static int clnet__string_by_key(const void *a, const void *b, const void *user) {
    const char *text = (const char *)user;
    return strcmp(text + ((const clnet__file_string *)a)->key,
                  text + ((const clnet__file_string *)b)->key);
}

// The tensors cover the data from the first byte to the last, each byte once.
static bool clnet__check_places(clnet_tensor_file *f) {
    uint64_t end = 0, available = f->size - f->data;
    clnet__sort(f->records, f->count, sizeof *f->records, clnet__record_by_place, NULL);
    for (size_t i = 0; i < f->count; i++) {
        const clnet__file_record *record = &f->records[i];
        if (record->end > available) {
            return clnet__tensor_fail(f, record, CLNET_ERROR_TRUNCATED,
                                      "the file ends before it: bytes of data:", available,
                                      record->end);
        }
        if (record->begin != end) {
            return clnet__tensor_fail(f, record, CLNET_ERROR_OFFSETS,
                                      record->begin > end ? "a gap before it: begins at"
                                                          : "overlaps another one: begins at",
                                      record->begin, end);
        }
        end = record->end;
    }
    if (end != available) {
        clnet__fail(
            f->ctx, CLNET_ERROR_OFFSETS,
            CLNET__PATH ": byte %llu: expected the file's end behind the last tensor, found "
                        "%llu more bytes",
            f->path, (unsigned long long)(f->data + end), (unsigned long long)(available - end));
        return false;
    }
    return true;
}

static bool clnet__check_unique(clnet_tensor_file *f) {
    clnet__sort(f->records, f->count, sizeof *f->records, clnet__record_by_name, f->text);
    clnet__sort(f->strings, f->string_count, sizeof *f->strings, clnet__string_by_key, f->text);
    for (size_t i = 1; i < f->count; i++) {
        const clnet__file_record *record = &f->records[i];
        if (clnet__record_by_name(record - 1, record, f->text) == 0) {
            clnet__fail(f->ctx, CLNET_ERROR_DUPLICATE,
                        CLNET__PATH ": tensor %s: the name stands in the file twice", f->path,
                        f->text + record->name);
            return false;
        }
    }
    for (size_t i = 1; i < f->string_count; i++) {
        const clnet__file_string *pair = &f->strings[i];
        if (clnet__string_by_key(pair - 1, pair, f->text) == 0) {
            char found[80];
            clnet__printable(found, sizeof found, f->text + pair->key);
            clnet__fail(f->ctx, CLNET_ERROR_DUPLICATE,
                        CLNET__PATH ": the key \"%s\" stands in the metadata twice", f->path,
                        found);
            return false;
        }
    }
    return true;
}

// Reads bytes that the file has, as far as is known.
static bool clnet__file_read(clnet_tensor_file *f, uint64_t offset, void *data, size_t bytes) {
    errno = 0;
    size_t got = f->ctx->files.read(f->ctx->files.user, f->file, offset, data, bytes);
    if (got == bytes) {
        return true;
    }
    if (errno != 0) {
        return clnet__file_fail(f->ctx, f->path, "read");
    }
    clnet__fail(f->ctx, CLNET_ERROR_TRUNCATED,
                CLNET__PATH ": byte %llu: expected %llu bytes, found %llu", f->path,
                (unsigned long long)offset, (unsigned long long)bytes, (unsigned long long)got);
    return false;
}

// Learns the file's size and reads its first bytes.
static bool clnet__file_begin(clnet_tensor_file *f, unsigned char start[8]) {
    errno = 0;
    if (!f->ctx->files.size(f->ctx->files.user, f->file, &f->size)) {
        return clnet__file_fail(f->ctx, f->path, "measured");
    }
    if (f->size < 8) {
        clnet__fail(f->ctx, CLNET_ERROR_TRUNCATED,
                    CLNET__PATH ": expected at least 8 bytes, found %llu", f->path,
                    (unsigned long long)f->size);
        return false;
    }
    return clnet__file_read(f, 0, start, 8);
}

// Reads the header's text, whose length are the file's first bytes.
static bool clnet__header_load(clnet_tensor_file *f, const unsigned char start[8]) {
    uint64_t announced = clnet__load_bytes(start, 8), there = f->size - 8;
    if (announced > there && clnet__is_tar(f)) {
        clnet__fail(f->ctx, CLNET_ERROR_UNSUPPORTED,
                    CLNET__PATH ": a tar archive is not supported: expected safetensors, or what "
                                "torch.save writes since PyTorch 0.1.10",
                    f->path);
        return false;
    }
    if (announced > there || announced > CLNET_FILE_MAX_HEADER) {
        uint64_t most = announced > there ? there : CLNET_FILE_MAX_HEADER;
        clnet__fail(f->ctx, announced > there ? CLNET_ERROR_TRUNCATED : CLNET_ERROR_LIMIT,
                    CLNET__PATH
                    ": byte 0: a header of %llu bytes is announced, expected at most %llu",
                    f->path, (unsigned long long)announced, (unsigned long long)most);
        return false;
    }
    f->length = (size_t)announced;
    f->data = 8 + announced;
    f->text = (char *)clnet__alloc(f->ctx, f->length + 1);
    return f->text != NULL && clnet__file_read(f, 8, f->text, f->length);
}

static bool clnet__header_read(clnet_tensor_file *f, const unsigned char start[8]) {
    static const char shortest[] = "\"\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}";
    if (!clnet__header_load(f, start)) {
        return false;
    }
    size_t valid = clnet__utf8_end(f->text, f->length);
    if (valid < f->length) {
        const clnet__header h = {.f = f, .at = valid};
        return clnet__header_fail(&h, CLNET_ERROR_ENCODING, "UTF-8");
    }
    f->capacity = f->length / (sizeof shortest - 1) + 1;
    f->capacity = f->capacity < CLNET_FILE_MAX_TENSORS ? f->capacity : CLNET_FILE_MAX_TENSORS;
    f->records = (clnet__file_record *)clnet__alloc(f->ctx, f->capacity * sizeof *f->records);
    if (f->records == NULL || !clnet__header_parse(f) || !clnet__check_unique(f) ||
        !clnet__check_places(f)) {
        return false;
    }
    clnet__sort(f->records, f->count, sizeof *f->records, clnet__record_by_name, f->text);
    return true;
}

// torch.nn.DataParallel puts "module." before all names. They are sorted: the first and the last tell.
static void clnet__drop_module(clnet_tensor_file *f) {
    static const char prefix[] = "module.";
    const size_t length = sizeof prefix - 1;
    if (f->count == 0 || strncmp(f->text + f->records[0].name, prefix, length) != 0 ||
        strncmp(f->text + f->records[f->count - 1].name, prefix, length) != 0) {
        return;
    }
    for (size_t i = 0; i < f->count; i++) {
        f->records[i].name += (uint32_t)length;
    }
}

// The format shows in the first bytes.
static bool clnet__format_read(clnet_tensor_file *f) {
    unsigned char start[8];
    if (!clnet__file_begin(f, start)) {
        return false;
    }
    if (!(clnet__is_zip(start) || clnet__is_pickle(start) ? clnet__pth_read(f, clnet__is_zip(start))
                                                          : clnet__header_read(f, start))) {
        return false;
    }
    clnet__drop_module(f);
    return true;
}

clnet_tensor_file *clnet_tensor_file_open(clnet_context *ctx, const char *path) {
    if (ctx == NULL || ctx->result != CLNET_OK) {
        return NULL;
    }
    if (path == NULL) {
        clnet__fail(ctx, CLNET_ERROR_ARGUMENT, "tensor file: no path is given");
        return NULL;
    }
    clnet_tensor_file *f = (clnet_tensor_file *)clnet__alloc(ctx, sizeof *f);
    if (f == NULL) {
        return NULL;
    }
    f->ctx = ctx;
    f->path = clnet__copy_text(ctx, path);
    f->file = f->path != NULL ? clnet__file_open(ctx, path, false) : NULL;
    if (f->file == NULL || !clnet__format_read(f)) {
        clnet_tensor_file_close(f);
        return NULL;
    }
    return f;
}

void clnet_tensor_file_close(clnet_tensor_file *f) {
    if (f == NULL) {
        return;
    }
    clnet_context *ctx = f->ctx;
    if (f->file != NULL) {
        ctx->files.close(ctx->files.user, f->file); // nothing was written that could be lost
    }
    clnet__free(ctx, f->strings);
    clnet__free(ctx, f->records);
    clnet__free(ctx, f->text);
    clnet__free(ctx, f->path);
    clnet__free(ctx, f);
}

size_t clnet_tensor_file_count(const clnet_tensor_file *f) { return f != NULL ? f->count : 0; }

// Reads so many numbers, with anything but digits between them.
static void clnet__read_axes(const char **s, int rank, uint64_t axes[CLNET_MAX_RANK]) {
    for (int i = 0; i < rank; i++) {
        while (**s < '0' || **s > '9') {
            ++*s;
        }
        for (axes[i] = 0; **s >= '0' && **s <= '9'; ++*s) {
            axes[i] = axes[i] * 10 + (uint64_t)(**s - '0');
        }
    }
}

bool clnet_tensor_file_at(const clnet_tensor_file *f, size_t i, clnet_file_tensor *t) {
    if (f == NULL || i >= f->count) {
        return false;
    }
    const clnet__file_record *record = &f->records[i];
    const char *s = f->text + record->shape; // checked when the file was opened
    memset(t, 0, sizeof *t);
    t->name = f->text + record->name;
    t->dtype = (clnet_dtype)record->dtype;
    t->rank = record->rank;
    t->offset = f->data + record->begin;
    t->bytes = record->end - record->begin;
    clnet__read_axes(&s, t->rank, t->shape);
    clnet__read_axes(&s, record->strided ? t->rank : 0, t->stride);
    return true;
}

bool clnet_tensor_file_find(const clnet_tensor_file *f, const char *name, clnet_file_tensor *t) {
    size_t low = 0, high = clnet_tensor_file_count(f);
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, f->text + f->records[middle].name);
        if (order == 0) {
            return clnet_tensor_file_at(f, middle, t);
        }
        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return false;
}

const char *clnet_tensor_file_metadata(const clnet_tensor_file *f, const char *key) {
    size_t low = 0, high = f != NULL ? f->string_count : 0;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(key, f->text + f->strings[middle].key);
        if (order == 0) {
            return f->text + f->strings[middle].value;
        }
        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return NULL;
}

size_t clnet_tensor_file_keys(const clnet_tensor_file *f, size_t i, const char **key) {
    size_t count = f != NULL ? f->string_count : 0;
    if (i < count && key != NULL) {
        *key = f->text + f->strings[i].key;
    }
    return count;
}

static bool clnet__is_strided(const clnet_file_tensor *t) {
    int i = 0;
    while (i < t->rank && t->stride[i] == 0) {
        i++;
    }
    return i < t->rank;
}

// Whether a tensor can be read now: of this file, and no failure before. *bytes is how many the file
// has from its first number to its last.
static bool clnet__check_readable(clnet_tensor_file *f, const clnet_file_tensor *t,
                                  uint64_t *bytes) {
    uint64_t end;
    if (f == NULL || f->ctx->result != CLNET_OK) {
        return false;
    }
    *bytes = t->bytes;
    const bool counted =
        !clnet__is_strided(t) ||
        (clnet__tensor_span(t, bytes) && clnet__mul64(*bytes, clnet_dtype_size(t->dtype), bytes) &&
         *bytes >= t->bytes);
    if (!counted || !clnet__add64(t->offset, *bytes, &end) || end > f->size || *bytes > SIZE_MAX) {
        clnet__fail(f->ctx, CLNET_ERROR_ARGUMENT,
                    CLNET__PATH ": tensor %s: %llu bytes at %llu are not in this file", f->path,
                    t->name, (unsigned long long)*bytes, (unsigned long long)t->offset);
        return false;
    }
    return true;
}

// Where the i-th number of a strided tensor stands, counted from its first.
static size_t clnet__strided_place(const clnet_file_tensor *t, uint64_t i) {
    uint64_t place = 0;
    for (int axis = t->rank - 1; axis >= 0; axis--) {
        place += i % t->shape[axis] * t->stride[axis];
        i /= t->shape[axis];
    }
    return (size_t)place;
}

// Reads a tensor with strides, as bytes or as values, by way of a copy of all between its first
// number and its last.
static void clnet__read_strided(clnet_tensor_file *f, const clnet_file_tensor *t, uint64_t bytes,
                                unsigned char *dense, clnet_real *values) {
    const size_t size = clnet_dtype_size(t->dtype);
    unsigned char *copy = (unsigned char *)clnet__alloc(f->ctx, (size_t)bytes);
    if (copy != NULL && clnet__file_read(f, t->offset, copy, (size_t)bytes)) {
        for (uint64_t i = 0; i < t->bytes / size; i++) {
            const unsigned char *number = copy + clnet__strided_place(t, i) * size;
            if (values != NULL) {
                values[i] = clnet__load_real(number, t->dtype);
            } else {
                memcpy(dense + i * size, number, size);
            }
        }
    }
    clnet__free(f->ctx, copy);
}

clnet_result clnet_tensor_file_read(clnet_tensor_file *f, const clnet_file_tensor *t, void *bytes) {
    uint64_t in_file;
    if (clnet__check_readable(f, t, &in_file)) {
        if (clnet__is_strided(t)) {
            clnet__read_strided(f, t, in_file, (unsigned char *)bytes, NULL);
        } else {
            clnet__file_read(f, t->offset, bytes, (size_t)t->bytes);
        }
    }
    return f != NULL ? f->ctx->result : CLNET_ERROR_ARGUMENT;
}

clnet_result clnet_tensor_file_read_real(clnet_tensor_file *f, const clnet_file_tensor *t,
                                         clnet_real *values) {
    unsigned char block[8192]; // a multiple of every size of number
    uint64_t in_file;
    if (!clnet__check_readable(f, t, &in_file)) {
        return f != NULL ? f->ctx->result : CLNET_ERROR_ARGUMENT;
    }
    if (!clnet__can_decode(t->dtype)) {
        return clnet__fail(f->ctx, CLNET_ERROR_DTYPE,
                           CLNET__PATH ": tensor %s: its dtype is %s, expected F32, F16 or BF16",
                           f->path, t->name, clnet_dtype_name(t->dtype));
    }
    if (clnet__is_strided(t)) {
        clnet__read_strided(f, t, in_file, NULL, values);
        return f->ctx->result;
    }
    size_t size = clnet_dtype_size(t->dtype);
    for (uint64_t done = 0; done < t->bytes;) {
        uint64_t left = t->bytes - done;
        size_t bytes = left < sizeof block ? (size_t)left : sizeof block;
        if (!clnet__file_read(f, t->offset + done, block, bytes)) {
            break;
        }
        clnet_decode(values, block, bytes / size, t->dtype);
        values += bytes / size;
        done += bytes;
    }
    return f->ctx->result;
}

// >>files: pth
//
// PyTorch's own files, read without running anything. torch.save writes a state dict, a dictionary
// from names to tensors, into one of two containers:
//
// (a) a zip file whose entries are stored, not compressed, all in one folder of any name:
//         data.pkl          the dictionary as a pickle: names, types, shapes, strides
//         data/0, data/1    the numbers, one entry for each storage
//         byteorder         "little"; older files have none
//     and small ones about versions. Each entry is a local header, a name, padding, its bytes and
//     perhaps a descriptor; behind the last one stand the central directory, which says it all
//     again, and an end record (two more where 32 bits may not do: zip64). clnet adds an entry
//     clnet.metadata: keys and values in turn, each ended by a zero byte.
// (b) before PyTorch 1.6, pickles in a row: a magic number, the protocol's number, the machine's
//     properties, the dictionary, the list of storage keys; then for each of these keys the
//     storage's count of numbers in 8 bytes, and the numbers.
//
// A pickle is a program for a machine with a stack and a memo. Each opcode is a byte, perhaps with
// an argument, and most of them push a value. This makes one tensor of shape (2,3):
//
//     c torch._utils _rebuild_tensor_v2    GLOBAL       a function, by name
//     (                                    MARK         arguments begin
//     ( X storage  c torch FloatStorage  X 0  X cpu  K 6  t    TUPLE   6 numbers under the key "0"
//     Q                                    BINPERSID    the tuple becomes that storage
//     K 0                                  BININT1      first number, then shape and strides
//     K 2 K 3 \x86  K 3 K 1 \x86           TUPLE2
//     \x89                                 NEWFALSE     requires_grad
//     c collections OrderedDict ) R                     no hooks
//     t R                                  REDUCE       calls the function with the tuple
//
// Python calls what a pickle names, which is why loading one may run any program. This machine can
// call nothing: GLOBAL compares its two lines with the fixed list clnet__globals, and REDUCE checks
// the tuple of arguments and puts the label "tensor" on it. A value is eight bytes, its kind and
// where it stands in the pickle; text and numbers are looked at there when the dictionary is read.
// All memory is counted, and what would need more than twice the file's size and 1 MiB is refused.

// To allow another opcode or name, add a row to clnet__opcodes or clnet__globals.

#define CLNET__KINDS(X)                                                                            \
    X(NOTHING, "nothing") /* where the stack has no more values */                                 \
    X(MARK, "a mark")                                                                              \
    X(NONE, "None")                                                                                \
    X(FALSE, "False")                                                                              \
    X(TRUE, "True")                                                                                \
    X(INT, "a whole number")                                                                       \
    X(FLOAT, "a float")                                                                            \
    X(TEXT, "a string")                                                                            \
    X(GLOBAL, "a name")     /* at: its row of clnet__globals */                                    \
    X(TUPLE, "a tuple")     /* at: its chunk */                                                    \
    X(LIST, "a list")       /* at: the cell that has its first and last chunk, or 0 and 0 */       \
    X(DICT, "a dictionary") /* likewise; keys and values in turn */                                \
    X(STORAGE, "a storage") /* at: the tuple of BINPERSID */                                       \
    X(TENSOR, "a tensor")   /* at: the tuple of REDUCE */

#define CLNET__KIND_ENUM(name, text) CLNET__##name,
typedef enum clnet__kind { CLNET__KINDS(CLNET__KIND_ENUM) CLNET__KIND_COUNT } clnet__kind;
#undef CLNET__KIND_ENUM

// A value: its kind, and where in the pickle the opcode that pushed it stands, unless the list above
// says otherwise. The items of tuples, lists and dictionaries stand in chunks of further cells, the
// first of which has their number and the place of the next chunk, 0 for none.
typedef struct clnet__cell {
    uint32_t kind, at; // or first and last chunk; or number of items and next chunk
} clnet__cell;

typedef struct clnet__cells {
    clnet__cell *data;
    size_t count, capacity;
} clnet__cells;

// Bytes of the file that have a name: an entry of the zip file, or a storage of the older format.
typedef struct clnet__part {
    const unsigned char *name;
    uint64_t begin, bytes; // begin 0: not known yet
    uint64_t header;       // zip: where the local header stands
    uint32_t crc;
    uint16_t length; // of the name
    uint16_t detail; // zip: flags; older format: bytes of one number
} clnet__part;

typedef struct clnet__pth {
    clnet_tensor_file *f;
    uint64_t left;       // bytes of memory that may still be taken
    unsigned char *text; // the pickle
    size_t length;
    uint64_t text_at;   // where it stands in the file
    size_t at, next;    // the opcode that runs; the one behind it
    size_t argument, n; // the opcode's argument: where, how many bytes
    size_t begin;       // of this pickle
    bool stopped;
    clnet__cells stack, memo, heap;
    clnet__part *parts; // in the end by name
    size_t part_count, part_capacity;
    unsigned char *directory; // of the zip file; NULL: the older format
    const clnet__part *pickle;
} clnet__pth;

static clnet_result clnet__pth_result(const clnet__pth *p) { return p->f->ctx->result; }

// Memory that is counted. clnet__pth_free wants the number of bytes again.
static void *clnet__pth_alloc(clnet__pth *p, uint64_t bytes) {
    if (bytes > p->left || bytes > SIZE_MAX) {
        clnet__fail(p->f->ctx, CLNET_ERROR_LIMIT,
                    CLNET__PATH ": reading it takes more memory than twice its %llu bytes and "
                                "1 MiB: too many values, names or entries",
                    p->f->path, (unsigned long long)p->f->size);
        return NULL;
    }
    p->left -= bytes;
    return clnet__alloc(p->f->ctx, (size_t)bytes);
}

static void clnet__pth_free(clnet__pth *p, void *memory, uint64_t bytes) {
    if (memory != NULL) {
        p->left += bytes;
        clnet__free(p->f->ctx, memory);
    }
}

// Makes room for `more` items behind `count`, by doubling.
static bool clnet__pth_grow(clnet__pth *p, void **items, size_t count, size_t more,
                            size_t *capacity, size_t size) {
    size_t wanted = *capacity > 0 ? *capacity : 16;
    while (wanted < count + more) {
        wanted *= 2;
    }
    if (wanted == *capacity) {
        return true;
    }
    void *larger = clnet__pth_alloc(p, (uint64_t)wanted * size);
    if (larger == NULL) {
        return false;
    }
    if (count > 0) {
        memcpy(larger, *items, count * size);
    }
    clnet__pth_free(p, *items, (uint64_t)*capacity * size);
    *items = larger;
    *capacity = wanted;
    return true;
}

static clnet__part *clnet__part_add(clnet__pth *p) {
    void *parts = p->parts;
    if (!clnet__pth_grow(p, &parts, p->part_count, 1, &p->part_capacity, sizeof *p->parts)) {
        return NULL;
    }
    p->parts = (clnet__part *)parts;
    return &p->parts[p->part_count++];
}

// >>files: pth: the machine

// Arguments of opcodes: so many bytes, or
enum {
    CLNET__COUNTED1 = -1, // a count in one byte, then as many bytes
    CLNET__COUNTED4 = -4, // a count in four
    CLNET__TWO_LINES = -2
};

typedef struct clnet__opcode {
    const char *name;
    int argument;
    bool (*run)(clnet__pth *p, unsigned with); // NULL: refused
    unsigned with;
} clnet__opcode;

static const clnet__opcode clnet__opcodes[256]; // below

// Records what is wrong with the opcode that runs.
static bool clnet__pickle_fail(const clnet__pth *p, clnet_result result, const char *format, ...)
    CLNET__PRINTF(3, 4);
static bool clnet__pickle_fail(const clnet__pth *p, clnet_result result, const char *format, ...) {
    char what[400];
    const char *name = clnet__opcodes[p->text[p->at]].name;
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    clnet__fail(p->f->ctx, result, CLNET__PATH ": byte %llu, opcode 0x%02x %s: %s", p->f->path,
                (unsigned long long)(p->text_at + p->at), p->text[p->at],
                name != NULL ? name : "(unknown)", what);
    return false;
}

static const char *clnet__kind_text(uint32_t kind) {
#define CLNET__KIND_TEXT(name, text) text,
    static const char *const texts[] = {CLNET__KINDS(CLNET__KIND_TEXT)};
#undef CLNET__KIND_TEXT
    return texts[kind];
}

// The value `depth` places below the top of the stack.
static clnet__cell clnet__pickle_top(const clnet__pth *p, size_t depth) {
    const clnet__cell nothing = {CLNET__NOTHING, 0};
    return depth < p->stack.count ? p->stack.data[p->stack.count - 1 - depth] : nothing;
}

// Whether a value is of the kind that the running opcode needs.
static bool clnet__pickle_is(const clnet__pth *p, clnet__cell value, clnet__kind kind,
                             const char *what) {
    return value.kind == (uint32_t)kind ||
           clnet__pickle_fail(p, CLNET_ERROR_SYNTAX, "expected %s as %s, found %s",
                              clnet__kind_text((uint32_t)kind), what, clnet__kind_text(value.kind));
}

static bool clnet__cells_add(clnet__pth *p, clnet__cells *cells, uint32_t kind, uint32_t at) {
    void *data = cells->data;
    const uint64_t most = cells == &p->heap ? CLNET_FILE_MAX_HEADER : CLNET_PICKLE_MAX_VALUES;
    if (cells->count >= most) {
        return clnet__pickle_fail(p, CLNET_ERROR_LIMIT, "more values than the %llu accepted",
                                  (unsigned long long)most);
    }
    if (!clnet__pth_grow(p, &data, cells->count, 1, &cells->capacity, sizeof *cells->data)) {
        return false;
    }
    cells->data = (clnet__cell *)data;
    cells->data[cells->count++] = (clnet__cell){kind, at};
    return true;
}

static bool clnet__pickle_push(clnet__pth *p, uint32_t kind, uint32_t at) {
    return clnet__cells_add(p, &p->stack, kind, at);
}

// Moves the upper `count` values of the stack into a new chunk; 0: failed.
static uint32_t clnet__pickle_chunk(clnet__pth *p, size_t count) {
    uint32_t chunk = (uint32_t)p->heap.count;
    const size_t first = p->stack.count - count;
    if (!clnet__cells_add(p, &p->heap, (uint32_t)count, 0)) {
        return 0;
    }
    for (size_t i = 0; i < count; i++) {
        const clnet__cell value = p->stack.data[first + i];
        if (!clnet__cells_add(p, &p->heap, value.kind, value.at)) {
            return 0;
        }
    }
    p->stack.count = first;
    return chunk;
}

// Appends a chunk to a list or dictionary.
static void clnet__pickle_append(clnet__pth *p, clnet__cell container, uint32_t chunk) {
    clnet__cell *ends = &p->heap.data[container.at];
    if (ends->kind != 0) {
        p->heap.data[ends->at].at = chunk;
    } else {
        ends->kind = chunk;
    }
    ends->at = chunk;
}

static size_t clnet__tuple_count(const clnet__pth *p, clnet__cell tuple) {
    return p->heap.data[tuple.at].kind;
}

static clnet__cell clnet__tuple_item(const clnet__pth *p, clnet__cell tuple, size_t i) {
    return p->heap.data[tuple.at + 1 + i];
}

// A walk over the items of a list or dictionary: the cells in order, false at the end.
typedef struct clnet__walk {
    uint32_t chunk, i;
} clnet__walk;

static clnet__walk clnet__walk_begin(const clnet__pth *p, clnet__cell container) {
    return (clnet__walk){p->heap.data[container.at].kind, 0};
}

static bool clnet__walk_next(const clnet__pth *p, clnet__walk *w, clnet__cell *item) {
    while (w->chunk != 0 && w->i == p->heap.data[w->chunk].kind) {
        w->chunk = p->heap.data[w->chunk].at;
        w->i = 0;
    }
    if (w->chunk == 0) {
        return false;
    }
    *item = p->heap.data[w->chunk + 1 + w->i++];
    return true;
}

// The bytes of a string.
static const unsigned char *clnet__pickle_text(const clnet__pth *p, clnet__cell text,
                                               size_t *length) {
    const unsigned char *s = p->text + text.at;
    const size_t prefix = *s == 'X' ? 4 : 1;
    *length = (size_t)clnet__load_bytes(s + 1, prefix);
    return s + 1 + prefix;
}

static bool clnet__pickle_equals(const clnet__pth *p, clnet__cell text, const char *expected) {
    size_t length;
    const unsigned char *s = clnet__pickle_text(p, text, &length);
    return length == strlen(expected) && memcmp(s, expected, length) == 0;
}

// A whole number; false: it is negative or has more than 63 bits.
static bool clnet__pickle_number(const clnet__pth *p, clnet__cell number, uint64_t *value) {
    const unsigned char *s = p->text + number.at;
    const size_t bytes = *s == 'K' ? 1 : *s == 'M' ? 2 : *s == 'J' ? 4 : s[1];
    const bool is_signed = bytes > 2 || *s == 0x8A;
    if (bytes > 8) {
        return false;
    }
    *value = clnet__load_bytes(s + (*s == 0x8A ? 2 : 1), bytes);
    return !is_signed || bytes == 0 || *value >> (8 * bytes - 1) == 0;
}

// The names that a pickle may use, with what they mean.
typedef enum clnet__global_kind {
    CLNET__ORDERED_DICT,
    CLNET__SIZE,
    CLNET__PARAMETER,
    CLNET__REBUILD,    // a tensor, whose type is that of its storage
    CLNET__REBUILD_AS, // a tensor, whose type is an argument
    CLNET__STORAGE_TYPE,
    CLNET__DTYPE
} clnet__global_kind;

typedef struct clnet__global {
    const char *name;
    clnet__global_kind kind;
    unsigned char least, most; // arguments of a function
    clnet_dtype dtype;         // of storages; CLNET_DTYPE_COUNT: bytes
} clnet__global;

// Types of numbers that have a storage of their own, and those for which bytes are stored.
#define CLNET__STORAGES(X)                                                                         \
    X(F32, "torch\nFloatStorage\n")                                                                \
    X(F64, "torch\nDoubleStorage\n")                                                               \
    X(F16, "torch\nHalfStorage\n")                                                                 \
    X(BF16, "torch\nBFloat16Storage\n")                                                            \
    X(C64, "torch\nComplexFloatStorage\n")                                                         \
    X(I64, "torch\nLongStorage\n")                                                                 \
    X(I32, "torch\nIntStorage\n")                                                                  \
    X(I16, "torch\nShortStorage\n")                                                                \
    X(I8, "torch\nCharStorage\n")                                                                  \
    X(U8, "torch\nByteStorage\n")                                                                  \
    X(BOOL, "torch\nBoolStorage\n")
#define CLNET__UNTYPED(X)                                                                          \
    X(U16, "torch\nuint16\n")                                                                      \
    X(U32, "torch\nuint32\n")                                                                      \
    X(U64, "torch\nuint64\n")                                                                      \
    X(F8_E4M3, "torch\nfloat8_e4m3fn\n")                                                           \
    X(F8_E5M2, "torch\nfloat8_e5m2\n")                                                             \
    X(F8_E8M0, "torch\nfloat8_e8m0fnu\n")
#define CLNET__ORDERED_DICT_NAME "collections\nOrderedDict\n"
#define CLNET__REBUILD_NAME      "torch._utils\n_rebuild_tensor_v2\n"
#define CLNET__REBUILD_AS_NAME   "torch._utils\n_rebuild_tensor_v3\n"
#define CLNET__UNTYPED_NAME      "torch.storage\nUntypedStorage\n"

#define CLNET__STORAGE_ROW(dtype, name) {name, CLNET__STORAGE_TYPE, 0, 0, CLNET_##dtype},
#define CLNET__UNTYPED_ROW(dtype, name) {name, CLNET__DTYPE, 0, 0, CLNET_##dtype},
static const clnet__global clnet__globals[] = {
    {CLNET__ORDERED_DICT_NAME, CLNET__ORDERED_DICT, 0, 1, CLNET_F32},
    {"torch\nSize\n", CLNET__SIZE, 1, 1, CLNET_F32},
    {"torch._utils\n_rebuild_parameter\n", CLNET__PARAMETER, 3, 3, CLNET_F32},
    {"torch._utils\n_rebuild_tensor\n", CLNET__REBUILD, 4, 4, CLNET_F32},
    {CLNET__REBUILD_NAME, CLNET__REBUILD, 6, 7, CLNET_F32},
    {CLNET__REBUILD_AS_NAME, CLNET__REBUILD_AS, 7, 8, CLNET_F32},
    CLNET__STORAGES(CLNET__STORAGE_ROW) //
    {CLNET__UNTYPED_NAME, CLNET__STORAGE_TYPE, 0, 0, CLNET_DTYPE_COUNT},
    CLNET__UNTYPED(CLNET__UNTYPED_ROW) //
};
#undef CLNET__STORAGE_ROW
#undef CLNET__UNTYPED_ROW

enum { CLNET__GLOBAL_COUNT = sizeof clnet__globals / sizeof clnet__globals[0] };

// What opcodes do. `with` is the last column of clnet__opcodes.

static bool clnet__op_proto(clnet__pth *p, unsigned with) {
    const unsigned protocol = p->text[p->argument];
    if (p->at != p->begin || protocol != with) {
        return clnet__pickle_fail(p, CLNET_ERROR_UNSUPPORTED,
                                  "protocol %u, expected protocol %u once, at the beginning",
                                  protocol, with);
    }
    return true;
}

static bool clnet__op_push(clnet__pth *p, unsigned with) {
    return clnet__pickle_push(p, with, (uint32_t)p->at);
}

// A new list or dictionary without items.
static bool clnet__op_new(clnet__pth *p, unsigned with) {
    const uint32_t at = (uint32_t)p->heap.count;
    return clnet__cells_add(p, &p->heap, 0, 0) && clnet__pickle_push(p, with, at);
}

static bool clnet__op_text(clnet__pth *p, unsigned with) {
    const size_t end = clnet__utf8_end((const char *)p->text + p->argument, p->n);
    if (end < p->n) {
        return clnet__pickle_fail(p, CLNET_ERROR_ENCODING, "expected UTF-8, found byte 0x%02x",
                                  p->text[p->argument + end]);
    }
    return clnet__op_push(p, with);
}

static bool clnet__op_tuple(clnet__pth *p, unsigned with) {
    for (unsigned i = 0; i < with; i++) {
        if (clnet__pickle_top(p, i).kind <= CLNET__MARK) {
            return clnet__pickle_fail(p, CLNET_ERROR_SYNTAX, "expected %u values, found %s", with,
                                      clnet__kind_text(clnet__pickle_top(p, i).kind));
        }
    }
    const uint32_t chunk = with > 0 ? clnet__pickle_chunk(p, with) : 0; // 0: the empty tuple
    return clnet__pth_result(p) == CLNET_OK && clnet__pickle_push(p, CLNET__TUPLE, chunk);
}

// Counts the values above the last mark.
static bool clnet__pickle_marked(clnet__pth *p, size_t *count) {
    *count = 0;
    while (clnet__pickle_top(p, *count).kind > CLNET__MARK) {
        (*count)++;
    }
    return clnet__pickle_is(p, clnet__pickle_top(p, *count), CLNET__MARK, "the beginning");
}

// Moves the values above the last mark into a new chunk, and drops the mark.
static bool clnet__pickle_take_marked(clnet__pth *p, size_t count, uint32_t *chunk) {
    *chunk = clnet__pickle_chunk(p, count);
    p->stack.count -= *chunk != 0;
    return *chunk != 0;
}

static bool clnet__op_marked_tuple(clnet__pth *p, unsigned with) {
    size_t count;
    uint32_t chunk;
    return clnet__pickle_marked(p, &count) && clnet__pickle_take_marked(p, count, &chunk) &&
           clnet__pickle_push(p, with, chunk);
}

// Items for the list, or keys and values for the dictionary, that stands below them.
static bool clnet__op_extend(clnet__pth *p, unsigned with, bool marked) {
    size_t count = with == CLNET__DICT ? 2 : 1;
    uint32_t chunk;
    if (marked && !clnet__pickle_marked(p, &count)) {
        return false;
    }
    const clnet__cell container = clnet__pickle_top(p, count + marked);
    if (!clnet__pickle_is(p, container, (clnet__kind)with, "what is added to")) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        const clnet__cell value = clnet__pickle_top(p, count - 1 - i);
        const bool key = with == CLNET__DICT && i % 2 == 0;
        if (value.kind == CLNET__MARK || (key && i + 1 == count) ||
            (key && value.kind != CLNET__TEXT && value.kind != CLNET__INT)) {
            return clnet__pickle_fail(p, CLNET_ERROR_SYNTAX, "expected %s, found %s",
                                      !key             ? "a value"
                                      : i + 1 == count ? "a value for each key"
                                                       : "a string or whole number as key",
                                      clnet__kind_text(value.kind));
        }
    }
    if (!(marked ? clnet__pickle_take_marked(p, count, &chunk)
                 : (chunk = clnet__pickle_chunk(p, count)) != 0)) {
        return false;
    }
    clnet__pickle_append(p, container, chunk);
    return true;
}

static bool clnet__op_one(clnet__pth *p, unsigned with) { return clnet__op_extend(p, with, false); }
static bool clnet__op_more(clnet__pth *p, unsigned with) { return clnet__op_extend(p, with, true); }

// Python numbers the entries of the memo one by one.
static bool clnet__op_put(clnet__pth *p, unsigned with) {
    const uint64_t index = clnet__load_bytes(p->text + p->argument, with);
    const clnet__cell value = clnet__pickle_top(p, 0);
    if (value.kind <= CLNET__MARK || index > p->memo.count) {
        return clnet__pickle_fail(p, CLNET_ERROR_SYNTAX,
                                  "expected a value for an entry up to %llu, found %s for %llu",
                                  (unsigned long long)p->memo.count, clnet__kind_text(value.kind),
                                  (unsigned long long)index);
    }
    if (index < p->memo.count) {
        p->memo.data[index] = value;
        return true;
    }
    return clnet__cells_add(p, &p->memo, value.kind, value.at);
}

static bool clnet__op_get(clnet__pth *p, unsigned with) {
    const uint64_t index = clnet__load_bytes(p->text + p->argument, with);
    if (index >= p->memo.count) {
        return clnet__pickle_fail(p, CLNET_ERROR_SYNTAX,
                                  "entry %llu of the memo, expected one below %llu",
                                  (unsigned long long)index, (unsigned long long)p->memo.count);
    }
    return clnet__pickle_push(p, p->memo.data[index].kind, p->memo.data[index].at);
}

static bool clnet__op_global(clnet__pth *p, unsigned with) {
    const char *name = (const char *)p->text + p->argument;
    for (uint32_t i = 0; i < CLNET__GLOBAL_COUNT; i++) {
        const char *known = clnet__globals[i].name;
        if (p->n == strlen(known) && memcmp(name, known, p->n) == 0) {
            return clnet__pickle_push(p, with, i);
        }
    }
    char found[100] = "";
    const size_t length = p->n - 1 < sizeof found - 1 ? p->n - 1 : sizeof found - 1;
    memcpy(found, name, length); // without the last line's end
    char *line = strchr(found, '\n');
    if (line != NULL) {
        *line = ' ';
    }
    clnet__printable(found, sizeof found, found);
    return clnet__pickle_fail(p, CLNET_ERROR_UNSUPPORTED,
                              "expected a name that a state dict of tensors needs, found \"%s\" "
                              "(whole pickled modules are not supported)",
                              found);
}

// Whether the items of a tuple of arguments begin with these kinds.
static bool clnet__pickle_arguments(const clnet__pth *p, clnet__cell tuple,
                                    const unsigned char *kinds, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (!clnet__pickle_is(p, clnet__tuple_item(p, tuple, i), (clnet__kind)kinds[i],
                              "an argument")) {
            return false;
        }
    }
    return true;
}

// A dictionary of the pairs in a list, which is how Python 2 wrote an OrderedDict.
static bool clnet__pickle_pairs(clnet__pth *p, clnet__cell list) {
    clnet__cell pair;
    if (!clnet__op_new(p, CLNET__DICT)) {
        return false;
    }
    for (clnet__walk w = clnet__walk_begin(p, list); clnet__walk_next(p, &w, &pair);) {
        clnet__cell item[3] = {{CLNET__NOTHING, 0}, {CLNET__NOTHING, 0}, {CLNET__NOTHING, 0}};
        if (!clnet__pickle_is(p, pair, CLNET__LIST, "a pair")) {
            return false;
        }
        clnet__walk inside = clnet__walk_begin(p, pair);
        for (int i = 0; i < 3 && clnet__walk_next(p, &inside, &item[i]); i++) {
        }
        if (item[1].kind == CLNET__NOTHING || item[2].kind != CLNET__NOTHING) {
            return clnet__pickle_fail(p, CLNET_ERROR_SYNTAX, "expected pairs of two values");
        }
        if (!clnet__pickle_push(p, item[0].kind, item[0].at) ||
            !clnet__pickle_push(p, item[1].kind, item[1].at) || !clnet__op_one(p, CLNET__DICT)) {
            return false;
        }
    }
    return true;
}

// No function is called: the tuple of arguments gets the label of what Python's call would return.
static bool clnet__op_reduce(clnet__pth *p, unsigned with) {
    static const unsigned char tensor[] = {CLNET__STORAGE, CLNET__INT, CLNET__TUPLE, CLNET__TUPLE};
    static const unsigned char parameter[] = {CLNET__TENSOR}, size[] = {CLNET__TUPLE},
                               pairs[] = {CLNET__LIST};
    const clnet__cell tuple = clnet__pickle_top(p, 0), function = clnet__pickle_top(p, 1);
    if (!clnet__pickle_is(p, tuple, CLNET__TUPLE, "arguments") ||
        !clnet__pickle_is(p, function, (clnet__kind)with, "function")) {
        return false;
    }
    const clnet__global *g = &clnet__globals[function.at];
    const size_t count = clnet__tuple_count(p, tuple);
    if (g->kind >= CLNET__STORAGE_TYPE || count < g->least || count > g->most) {
        return clnet__pickle_fail(p, CLNET_ERROR_SYNTAX, "no function with %llu arguments",
                                  (unsigned long long)count);
    }
    p->stack.count -= 2;
    switch (g->kind) {
    case CLNET__ORDERED_DICT:
        return count == 0 ? clnet__op_new(p, CLNET__DICT)
                          : clnet__pickle_arguments(p, tuple, pairs, 1) &&
                                clnet__pickle_pairs(p, clnet__tuple_item(p, tuple, 0));
    case CLNET__SIZE:
    case CLNET__PARAMETER: {
        const clnet__cell value = clnet__tuple_item(p, tuple, 0);
        return clnet__pickle_arguments(p, tuple, g->kind == CLNET__SIZE ? size : parameter, 1) &&
               clnet__pickle_push(p, value.kind, value.at);
    }
    default:
        return clnet__pickle_arguments(p, tuple, tensor, sizeof tensor) &&
               clnet__pickle_push(p, CLNET__TENSOR, tuple.at);
    }
}

// What an OrderedDict has besides its items (the versions of modules) is of no use here.
static bool clnet__op_build(clnet__pth *p, unsigned with) {
    if (!clnet__pickle_is(p, clnet__pickle_top(p, 0), (clnet__kind)with, "state") ||
        !clnet__pickle_is(p, clnet__pickle_top(p, 1), (clnet__kind)with, "what gets it")) {
        return false;
    }
    p->stack.count--;
    return true;
}

// The type of the numbers of a storage, CLNET_DTYPE_COUNT for bytes, and how many there are.
static bool clnet__storage_type(const clnet__pth *p, clnet__cell storage, clnet_dtype *dtype,
                                uint64_t *count) {
    *dtype = clnet__globals[clnet__tuple_item(p, storage, 1).at].dtype;
    return clnet__pickle_number(p, clnet__tuple_item(p, storage, 4), count);
}

// Remembers a storage of the older format, whose place is not known yet.
static bool clnet__older_storage(clnet__pth *p, clnet__cell key, uint64_t bytes, size_t unit) {
    size_t length;
    const unsigned char *name = clnet__pickle_text(p, key, &length);
    if (length > CLNET_FILE_MAX_NAME) {
        return clnet__pickle_fail(p, CLNET_ERROR_LIMIT, "a key of %llu bytes, expected at most %d",
                                  (unsigned long long)length, CLNET_FILE_MAX_NAME);
    }
    clnet__part *part = clnet__part_add(p);
    if (part != NULL) {
        *part = (clnet__part){
            .name = name, .length = (uint16_t)length, .bytes = bytes, .detail = (uint16_t)unit};
    }
    return part != NULL;
}

// ("storage", type, key, device, count), in the older format with what it is a view of behind.
static bool clnet__op_persistent(clnet__pth *p, unsigned with) {
    static const unsigned char kinds[] = {CLNET__TEXT, CLNET__GLOBAL, CLNET__TEXT, CLNET__TEXT,
                                          CLNET__INT};
    const clnet__cell tuple = clnet__pickle_top(p, 0);
    clnet_dtype dtype;
    uint64_t count, bytes;
    if (!clnet__pickle_is(p, tuple, CLNET__TUPLE, "a storage's description")) {
        return false;
    }
    const size_t items = clnet__tuple_count(p, tuple);
    if (items > 0 && clnet__tuple_item(p, tuple, 0).kind == CLNET__TEXT &&
        clnet__pickle_equals(p, clnet__tuple_item(p, tuple, 0), "module")) {
        return clnet__pickle_fail(p, CLNET_ERROR_UNSUPPORTED,
                                  "a whole pickled module, expected its state_dict()");
    }
    if (items != sizeof kinds + (p->directory == NULL)) {
        return clnet__pickle_fail(
            p, CLNET_ERROR_SYNTAX, "expected a storage's description of %d items, found %llu",
            (int)sizeof kinds + (p->directory == NULL), (unsigned long long)items);
    }
    if (!clnet__pickle_arguments(p, tuple, kinds, sizeof kinds)) {
        return false;
    }
    if (!clnet__pickle_equals(p, clnet__tuple_item(p, tuple, 0), "storage") ||
        clnet__globals[clnet__tuple_item(p, tuple, 1).at].kind != CLNET__STORAGE_TYPE ||
        (items > sizeof kinds && clnet__tuple_item(p, tuple, 5).kind != CLNET__NONE)) {
        return clnet__pickle_fail(p, CLNET_ERROR_UNSUPPORTED,
                                  "expected \"storage\", its type and no other storage behind it");
    }
    const bool fits = clnet__storage_type(p, tuple, &dtype, &count);
    const size_t size = dtype == CLNET_DTYPE_COUNT ? 1 : clnet_dtype_size(dtype);
    if (!fits || !clnet__mul64(count, size, &bytes)) {
        return clnet__pickle_fail(p, CLNET_ERROR_SHAPE,
                                  "expected a storage's count of numbers from 0 on, in 63 bits");
    }
    p->stack.count--;
    return clnet__pickle_push(p, with, tuple.at) &&
           (p->directory != NULL ||
            clnet__older_storage(p, clnet__tuple_item(p, tuple, 2), bytes, size));
}

static bool clnet__op_stop(clnet__pth *p, unsigned with) {
    if (p->stack.count != 1 || clnet__pickle_top(p, 0).kind <= CLNET__MARK) {
        return clnet__pickle_fail(p, CLNET_ERROR_SYNTAX,
                                  "expected one value on the stack, found %llu",
                                  (unsigned long long)p->stack.count);
    }
    p->stopped = with;
    return true;
}

// All opcodes of Python's protocols 0 to 5. Those without a function are refused: torch.save does
// not use them for state dicts.
static const clnet__opcode clnet__opcodes[256] = {
    [0x80] = {"PROTO", 1, clnet__op_proto, 2},
    ['.'] = {"STOP", 0, clnet__op_stop, true},
    ['('] = {"MARK", 0, clnet__op_push, CLNET__MARK},
    ['N'] = {"NONE", 0, clnet__op_push, CLNET__NONE},
    [0x88] = {"NEWTRUE", 0, clnet__op_push, CLNET__TRUE},
    [0x89] = {"NEWFALSE", 0, clnet__op_push, CLNET__FALSE},
    ['J'] = {"BININT", 4, clnet__op_push, CLNET__INT},
    ['K'] = {"BININT1", 1, clnet__op_push, CLNET__INT},
    ['M'] = {"BININT2", 2, clnet__op_push, CLNET__INT},
    [0x8A] = {"LONG1", CLNET__COUNTED1, clnet__op_push, CLNET__INT},
    ['G'] = {"BINFLOAT", 8, clnet__op_push, CLNET__FLOAT},
    ['X'] = {"BINUNICODE", CLNET__COUNTED4, clnet__op_text, CLNET__TEXT},
    ['U'] = {"SHORT_BINSTRING", CLNET__COUNTED1, clnet__op_text, CLNET__TEXT}, // Python 2
    [')'] = {"EMPTY_TUPLE", 0, clnet__op_tuple, 0},
    [0x85] = {"TUPLE1", 0, clnet__op_tuple, 1},
    [0x86] = {"TUPLE2", 0, clnet__op_tuple, 2},
    [0x87] = {"TUPLE3", 0, clnet__op_tuple, 3},
    ['t'] = {"TUPLE", 0, clnet__op_marked_tuple, CLNET__TUPLE},
    [']'] = {"EMPTY_LIST", 0, clnet__op_new, CLNET__LIST},
    ['a'] = {"APPEND", 0, clnet__op_one, CLNET__LIST},
    ['e'] = {"APPENDS", 0, clnet__op_more, CLNET__LIST},
    ['}'] = {"EMPTY_DICT", 0, clnet__op_new, CLNET__DICT},
    ['s'] = {"SETITEM", 0, clnet__op_one, CLNET__DICT},
    ['u'] = {"SETITEMS", 0, clnet__op_more, CLNET__DICT},
    ['q'] = {"BINPUT", 1, clnet__op_put, 1},
    ['r'] = {"LONG_BINPUT", 4, clnet__op_put, 4},
    ['h'] = {"BINGET", 1, clnet__op_get, 1},
    ['j'] = {"LONG_BINGET", 4, clnet__op_get, 4},
    ['c'] = {"GLOBAL", CLNET__TWO_LINES, clnet__op_global, CLNET__GLOBAL},
    ['R'] = {"REDUCE", 0, clnet__op_reduce, CLNET__GLOBAL},
    ['b'] = {"BUILD", 0, clnet__op_build, CLNET__DICT},
    ['Q'] = {"BINPERSID", 0, clnet__op_persistent, CLNET__STORAGE},
#define CLNET__REFUSED(code, name) [code] = {name, 0, NULL, 0}
    CLNET__REFUSED('0', "POP"),
    CLNET__REFUSED('1', "POP_MARK"),
    CLNET__REFUSED('2', "DUP"),
    CLNET__REFUSED('F', "FLOAT"),
    CLNET__REFUSED('I', "INT"),
    CLNET__REFUSED('L', "LONG"),
    CLNET__REFUSED('P', "PERSID"),
    CLNET__REFUSED('S', "STRING"),
    CLNET__REFUSED('T', "BINSTRING"),
    CLNET__REFUSED('V', "UNICODE"),
    CLNET__REFUSED('B', "BINBYTES"),
    CLNET__REFUSED('C', "SHORT_BINBYTES"),
    CLNET__REFUSED('d', "DICT"),
    CLNET__REFUSED('g', "GET"),
    CLNET__REFUSED('i', "INST"),
    CLNET__REFUSED('l', "LIST"),
    CLNET__REFUSED('o', "OBJ"),
    CLNET__REFUSED('p', "PUT"),
    CLNET__REFUSED(0x81, "NEWOBJ"),
    CLNET__REFUSED(0x82, "EXT1"),
    CLNET__REFUSED(0x83, "EXT2"),
    CLNET__REFUSED(0x84, "EXT4"),
    CLNET__REFUSED(0x8B, "LONG4"),
    CLNET__REFUSED(0x8C, "SHORT_BINUNICODE"),
    CLNET__REFUSED(0x8D, "BINUNICODE8"),
    CLNET__REFUSED(0x8E, "BINBYTES8"),
    CLNET__REFUSED(0x8F, "EMPTY_SET"),
    CLNET__REFUSED(0x90, "ADDITEMS"),
    CLNET__REFUSED(0x91, "FROZENSET"),
    CLNET__REFUSED(0x92, "NEWOBJ_EX"),
    CLNET__REFUSED(0x93, "STACK_GLOBAL"),
    CLNET__REFUSED(0x94, "MEMOIZE"),
    CLNET__REFUSED(0x95, "FRAME"),
    CLNET__REFUSED(0x96, "BYTEARRAY8"),
    CLNET__REFUSED(0x97, "NEXT_BUFFER"),
    CLNET__REFUSED(0x98, "READONLY_BUFFER"),
#undef CLNET__REFUSED
};

// Finds the argument of the opcode at p->at, and with it the next opcode.
static bool clnet__pickle_argument(clnet__pth *p, int argument) {
    const size_t left = p->length - p->at - 1;
    const unsigned char *s = p->text + p->at + 1;
    size_t prefix = argument == CLNET__COUNTED1 ? 1 : argument == CLNET__COUNTED4 ? 4 : 0;
    uint64_t bytes = argument > 0 ? (uint64_t)argument : 0;
    if (argument == CLNET__TWO_LINES) {
        for (int lines = 0; lines < 2 && bytes < left; bytes++) {
            lines += s[bytes] == '\n';
        }
        bytes += bytes == left && (bytes < 2 || s[bytes - 1] != '\n'); // no end in sight
    } else if (prefix <= left) {
        bytes += clnet__load_bytes(s, prefix);
    }
    if (prefix > left || bytes > left - prefix) {
        return clnet__pickle_fail(p, CLNET_ERROR_TRUNCATED,
                                  "%llu bytes of argument, expected at most the %llu that are left",
                                  (unsigned long long)bytes + prefix, (unsigned long long)left);
    }
    p->argument = p->at + 1 + prefix;
    p->n = (size_t)bytes;
    p->next = p->argument + p->n;
    return true;
}

// Runs the pickle that begins at p->next up to its STOP, and takes the value that it leaves.
static bool clnet__pickle_run(clnet__pth *p, clnet__cell *value) {
    p->begin = p->next;
    p->stopped = false;
    p->stack.count = p->memo.count = 0;
    while (!p->stopped) {
        p->at = p->next;
        if (p->at == p->length || (p->at == p->begin && p->text[p->at] != 0x80)) {
            clnet__fail(p->f->ctx, p->at == p->length ? CLNET_ERROR_TRUNCATED : CLNET_ERROR_SYNTAX,
                        CLNET__PATH ": byte %llu: expected opcode %s, found %s", p->f->path,
                        (unsigned long long)(p->text_at + p->at),
                        p->at == p->begin ? "0x80 PROTO" : "'.' STOP",
                        p->at == p->length ? "the pickle's end" : "another one");
            return false;
        }
        const clnet__opcode *op = &clnet__opcodes[p->text[p->at]];
        if (op->run == NULL) {
            return clnet__pickle_fail(p, CLNET_ERROR_UNSUPPORTED,
                                      "expected one that state dicts are made of");
        }
        if (!clnet__pickle_argument(p, op->argument) || !op->run(p, op->with)) {
            return false;
        }
    }
    *value = clnet__pickle_top(p, 0);
    return true;
}

// >>files: pth: parts

// A name from a file as it may stand in a message.
typedef struct clnet__shown {
    char text[80];
} clnet__shown;

static clnet__shown clnet__show(const unsigned char *name, size_t length) {
    clnet__shown shown;
    snprintf(shown.text, sizeof shown.text, "%.*s", (int)(length < 79 ? length : 79),
             (const char *)name);
    clnet__printable(shown.text, sizeof shown.text, shown.text);
    return shown;
}

// Records what stands at a byte of the file, or what is wrong with the part or tensor of a name.
static bool clnet__pth_fail(const clnet__pth *p, clnet_result result, uint64_t at, const char *name,
                            const char *what, uint64_t found, uint64_t expected) {
    clnet__fail(p->f->ctx, result, CLNET__PATH ": byte %llu%s%s%s: %s %llu, expected %llu",
                p->f->path, (unsigned long long)at, name != NULL ? ", \"" : "",
                name != NULL ? name : "", name != NULL ? "\"" : "", what, (unsigned long long)found,
                (unsigned long long)expected);
    return false;
}

static bool clnet__part_fail(const clnet__pth *p, clnet_result result, const clnet__part *part,
                             uint64_t at, const char *what, uint64_t found, uint64_t expected) {
    return clnet__pth_fail(p, result, at, clnet__show(part->name, part->length).text, what, found,
                           expected);
}

static int clnet__name_order(const unsigned char *a, size_t m, const unsigned char *b, size_t n) {
    const int order = memcmp(a, b, m < n ? m : n);
    return order != 0 ? order : (m > n) - (m < n);
}

static int clnet__part_by_name(const void *a, const void *b, const void *user) {
    const clnet__part *x = (const clnet__part *)a, *y = (const clnet__part *)b;
    (void)user;
    return clnet__name_order(x->name, x->length, y->name, y->length);
}

// By bisection; NULL: there is none.
static clnet__part *clnet__part_find(const clnet__pth *p, const unsigned char *name,
                                     size_t length) {
    size_t low = 0, high = p->part_count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        clnet__part *part = &p->parts[middle];
        const int order = clnet__name_order(name, length, part->name, part->length);
        if (order == 0) {
            return part;
        }
        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return NULL;
}

// >>files: pth: the zip file
// Its records are tables of little-endian numbers at fixed places.

enum { CLNET__ZIP_LOCAL = 30, CLNET__ZIP_CENTRAL = 46, CLNET__ZIP_END = 22 };
enum { CLNET__ZIP_LOCATOR = 20, CLNET__ZIP_END64 = 56 };
#define CLNET__ZIP_LOCAL_MAGIC      0x04034B50u
#define CLNET__ZIP_CENTRAL_MAGIC    0x02014B50u
#define CLNET__ZIP_END_MAGIC        0x06054B50u
#define CLNET__ZIP_END64_MAGIC      0x06064B50u
#define CLNET__ZIP_LOCATOR_MAGIC    0x07064B50u
#define CLNET__ZIP_DESCRIPTOR_MAGIC 0x08074B50u
#define CLNET__ZIP_DESCRIPTOR       0x0008u // flag: sum and sizes stand behind the bytes
#define CLNET__ZIP_UTF8             0x0800u // flag

// A number of a record: where it stands, its bytes, what it has to be.
typedef struct clnet__zip_field {
    size_t offset, bytes;
    uint64_t expected;
    const char *what;
} clnet__zip_field;

// Checks the fields of a record that stands at a place of the file.
static bool clnet__zip_check(const clnet__pth *p, const char *name, uint64_t at,
                             const unsigned char *record, const clnet__zip_field *fields,
                             size_t count) {
    for (size_t i = 0; i < count; i++) {
        const clnet__zip_field *field = &fields[i];
        const uint64_t found = clnet__load_bytes(record + field->offset, field->bytes);
        if (found != field->expected) {
            return clnet__pth_fail(p, CLNET_ERROR_SYNTAX, at + field->offset, name, field->what,
                                   found, field->expected);
        }
    }
    return true;
}

#define CLNET__ZIP_CHECK(p, name, at, record, fields)                                              \
    clnet__zip_check(p, name, at, record, fields, sizeof(fields) / sizeof *(fields))

// CRC-32 as zip files have it: the polynomial 0xEDB88320, reflected. The table has a row for each of the
// eight bytes that are taken at a time.
typedef struct clnet__crc_table {
    uint32_t row[8][256];
} clnet__crc_table;

static void clnet__crc_fill(clnet__crc_table *table) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
        }
        table->row[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++) {
        for (int k = 1; k < 8; k++) {
            const uint32_t crc = table->row[k - 1][i];
            table->row[k][i] = crc >> 8 ^ table->row[0][crc & 255];
        }
    }
}

// The sum of what was summed before (0: nothing) and these bytes.
static uint32_t clnet__crc32(const clnet__crc_table *table, uint32_t crc, const void *bytes,
                             size_t n) {
    const unsigned char *s = (const unsigned char *)bytes;
    crc = ~crc;
    for (; n >= 8; n -= 8, s += 8) {
        const uint32_t a = crc ^ (uint32_t)clnet__load_bytes(s, 4);
        crc = table->row[7][a & 255] ^ table->row[6][a >> 8 & 255] ^ table->row[5][a >> 16 & 255] ^
              table->row[4][a >> 24] ^ table->row[3][s[4]] ^ table->row[2][s[5]] ^
              table->row[1][s[6]] ^ table->row[0][s[7]];
    }
    for (; n > 0; n--, s++) {
        crc = crc >> 8 ^ table->row[0][(crc ^ *s) & 255];
    }
    return ~crc;
}

// The end record: where the central directory stands and how many entries it has.
typedef struct clnet__zip_end {
    uint64_t begin, bytes, entries;
    uint64_t at; // of the end record, or of zip64's before it
} clnet__zip_end;

// PyTorch writes zip64's end record and its locator too. They have to say the same as the end record,
// so that files from 4 GiB on are refused.
static bool clnet__zip_check_end64(clnet__pth *p, clnet__zip_end *end) {
    unsigned char s[CLNET__ZIP_END64 + CLNET__ZIP_LOCATOR];
    const uint64_t at = end->at - sizeof s;
    if (end->at < sizeof s) {
        return true;
    }
    if (!clnet__file_read(p->f, at, s, sizeof s)) {
        return false;
    }
    if (clnet__load_bytes(s + CLNET__ZIP_END64, 4) != CLNET__ZIP_LOCATOR_MAGIC) {
        return true;
    }
    if (end->entries == UINT16_MAX) { // does not fit the end record
        end->entries = clnet__load_bytes(s + 32, 8);
    }
    const clnet__zip_field fields[] = {
        {60, 4, 0, "zip64: disk"},
        {64, 8, at, "zip64: its end record at"},
        {72, 4, 1, "zip64: disks:"},
        {0, 4, CLNET__ZIP_END64_MAGIC, "zip64: magic"},
        {4, 8, CLNET__ZIP_END64 - 12, "zip64: bytes of its end record:"},
        {16, 8, 0, "zip64: disks:"},
        {24, 8, end->entries, "zip64: entries of this disk:"},
        {32, 8, end->entries, "zip64: entries:"},
        {40, 8, end->bytes, "zip64: bytes of the directory:"},
        {48, 8, end->begin, "zip64: directory at"},
    };
    end->at = at;
    return CLNET__ZIP_CHECK(p, NULL, at, s, fields);
}

// A comment behind the end record is refused: it could hold another end record.
static bool clnet__zip_read_end(clnet__pth *p, clnet__zip_end *end) {
    unsigned char s[CLNET__ZIP_END];
    uint64_t behind;
    if (p->f->size < sizeof s) {
        return clnet__pth_fail(p, CLNET_ERROR_TRUNCATED, 0, NULL, "bytes in all:", p->f->size,
                               sizeof s);
    }
    end->at = p->f->size - sizeof s;
    if (!clnet__file_read(p->f, end->at, s, sizeof s)) {
        return false;
    }
    end->entries = clnet__load_bytes(s + 10, 2);
    end->bytes = clnet__load_bytes(s + 12, 4);
    end->begin = clnet__load_bytes(s + 16, 4);
    const clnet__zip_field fields[] = {
        {0, 4, CLNET__ZIP_END_MAGIC, "end record (in the last 22 bytes): magic"},
        {20, 2, 0, "bytes of comment:"},
        {4, 4, 0, "disks:"},
        {8, 2, end->entries, "entries of this disk:"},
    };
    if (!CLNET__ZIP_CHECK(p, NULL, end->at, s, fields) || !clnet__zip_check_end64(p, end)) {
        return false;
    }
    if (!clnet__add64(end->begin, end->bytes, &behind) || behind != end->at) {
        return clnet__pth_fail(p, CLNET_ERROR_OFFSETS, end->at, NULL,
                               "end of the directory:", behind, end->at);
    }
    return true;
}

// A relative path without "." and ".." in it, not too long, in UTF-8.
static bool clnet__zip_is_path(const unsigned char *s, size_t length) {
    bool good = length > 0 && length <= CLNET_FILE_MAX_NAME &&
                clnet__utf8_end((const char *)s, length) == length &&
                memchr(s, 0, length) == NULL && memchr(s, '\\', length) == NULL;
    for (size_t i = 0, begin = 0; good && i <= length; i++) {
        if (i == length || s[i] == '/') {
            const size_t n = i - begin;
            good = n > 0 && !(s[begin] == '.' && (n == 1 || (n == 2 && s[begin + 1] == '.')));
            begin = i + 1;
        }
    }
    return good;
}

// Whether the name of a part ends with this.
static bool clnet__part_ends(const clnet__part *part, const char *end) {
    const size_t n = strlen(end);
    return part->length >= n && memcmp(part->name + part->length - n, end, n) == 0;
}

// TorchScript has code beside the pickle, and constants.
static bool clnet__zip_is_script(const clnet__part *part) {
    static const char code[] = "/code/";
    bool found = clnet__part_ends(part, "/constants.pkl");
    for (size_t i = 0; !found && i + sizeof code - 1 <= part->length; i++) {
        found = memcmp(part->name + i, code, sizeof code - 1) == 0;
    }
    return found;
}

// What is accepted of an entry, whose compressed size is `stored`.
static bool clnet__zip_accepts(const clnet__pth *p, const clnet__part *part, unsigned method,
                               uint64_t stored, uint64_t at) {
    const unsigned flags = CLNET__ZIP_DESCRIPTOR | CLNET__ZIP_UTF8;
    if (clnet__zip_is_script(part)) {
        clnet__fail(p->f->ctx, CLNET_ERROR_UNSUPPORTED,
                    CLNET__PATH ": a TorchScript archive is not supported: expected a state dict",
                    p->f->path);
        return false;
    }
    if (!clnet__zip_is_path(part->name, part->length)) {
        return clnet__part_fail(p, CLNET_ERROR_SYNTAX, part, at,
                                "not a relative path in UTF-8; its bytes:", part->length,
                                CLNET_FILE_MAX_NAME);
    }
    if (part->detail & ~flags) {
        return clnet__part_fail(p, CLNET_ERROR_UNSUPPORTED, part, at,
                                part->detail & 1 ? "encrypted: flags" : "flags", part->detail,
                                flags);
    }
    if (method != 0) {
        return clnet__part_fail(p, CLNET_ERROR_UNSUPPORTED, part, at, "compressed: method", method,
                                0);
    }
    return stored == part->bytes || clnet__part_fail(p, CLNET_ERROR_UNSUPPORTED, part, at,
                                                     "compressed: bytes", stored, part->bytes);
}

// Reads the entry of the directory at *at, and moves *at on.
static bool clnet__zip_entry(clnet__pth *p, const clnet__zip_end *end, size_t *at) {
    const unsigned char *s = p->directory + *at;
    const uint64_t place = end->begin + *at, left = end->bytes - *at;
    const clnet__zip_field fields[] = {{0, 4, CLNET__ZIP_CENTRAL_MAGIC, "magic"},
                                       {34, 2, 0, "disk"}};
    uint64_t needed = CLNET__ZIP_CENTRAL;
    if (left >= needed) { // the lengths of name, extra field and comment
        needed += clnet__load_bytes(s + 28, 2) + clnet__load_bytes(s + 30, 2) +
                  clnet__load_bytes(s + 32, 2);
    }
    if (needed > left) {
        return clnet__pth_fail(p, CLNET_ERROR_TRUNCATED, place, NULL,
                               "bytes left for an entry:", left, needed);
    }
    clnet__part *part = clnet__part_add(p);
    if (part == NULL || !CLNET__ZIP_CHECK(p, NULL, place, s, fields)) {
        return false;
    }
    *part = (clnet__part){.name = s + CLNET__ZIP_CENTRAL,
                          .length = (uint16_t)clnet__load_bytes(s + 28, 2),
                          .detail = (uint16_t)clnet__load_bytes(s + 8, 2),
                          .crc = (uint32_t)clnet__load_bytes(s + 16, 4),
                          .bytes = clnet__load_bytes(s + 24, 4),
                          .header = clnet__load_bytes(s + 42, 4)};
    *at += (size_t)needed;
    return clnet__zip_accepts(p, part, (unsigned)clnet__load_bytes(s + 10, 2),
                              clnet__load_bytes(s + 20, 4), place);
}

// Reads the whole directory.
static bool clnet__zip_directory(clnet__pth *p, const clnet__zip_end *end) {
    const uint64_t most = CLNET_FILE_MAX_TENSORS + 16;
    if (end->bytes > CLNET_FILE_MAX_HEADER || end->entries > most) {
        return clnet__pth_fail(p, CLNET_ERROR_LIMIT, end->at, NULL,
                               "more than clnet accepts: entries:", end->entries, most);
    }
    p->directory = (unsigned char *)clnet__pth_alloc(p, end->bytes);
    if (p->directory == NULL ||
        !clnet__file_read(p->f, end->begin, p->directory, (size_t)end->bytes)) {
        return false;
    }
    size_t at = 0;
    while (p->part_count < end->entries) {
        if (!clnet__zip_entry(p, end, &at)) {
            return false;
        }
    }
    return at == end->bytes ||
           clnet__pth_fail(p, CLNET_ERROR_OFFSETS, end->begin + at, NULL,
                           "bytes behind the directory's last entry:", end->bytes - at, 0);
}

// The local header says what the directory says, or where there is a descriptor, nothing.
static bool clnet__zip_local(clnet__pth *p, clnet__part *part, const char *shown) {
    unsigned char s[CLNET__ZIP_LOCAL], name[CLNET_FILE_MAX_NAME];
    const uint64_t at = part->header;
    if (!clnet__file_read(p->f, at, s, sizeof s)) {
        return false;
    }
    const bool later =
        (part->detail & CLNET__ZIP_DESCRIPTOR) != 0 && clnet__load_bytes(s + 14, 8) == 0;
    const clnet__zip_field fields[] = {
        {0, 4, CLNET__ZIP_LOCAL_MAGIC, "local header: magic"},
        {6, 2, part->detail, "local header: flags"},
        {8, 2, 0, "local header: method"},
        {14, 4, later ? 0 : part->crc, "local header: CRC-32"},
        {18, 4, later ? 0 : part->bytes, "local header: bytes stored"},
        {22, 4, later ? 0 : part->bytes, "local header: bytes"},
        {26, 2, part->length, "local header: bytes of the name"},
    };
    if (!CLNET__ZIP_CHECK(p, shown, at, s, fields) ||
        !clnet__file_read(p->f, at + sizeof s, name, part->length)) {
        return false;
    }
    part->begin = at + sizeof s + part->length + clnet__load_bytes(s + 28, 2);
    if (memcmp(name, part->name, part->length) != 0) {
        clnet__fail(p->f->ctx, CLNET_ERROR_SYNTAX,
                    CLNET__PATH ": byte %llu: \"%s\" in the local header, expected \"%s\"",
                    p->f->path, (unsigned long long)at + sizeof s,
                    clnet__show(name, part->length).text, shown);
        return false;
    }
    return true;
}

// What stands between an entry's bytes and what follows: nothing, or a descriptor with the sum, and
// the size twice in 4 bytes, or in 8 as zip64 has it.
static bool clnet__zip_descriptor(clnet__pth *p, const clnet__part *part, const char *shown,
                                  uint64_t n) {
    unsigned char s[24];
    const uint64_t at = part->begin + part->bytes;
    const size_t size = n == 24 ? 8 : 4;
    const uint64_t expected = part->detail & CLNET__ZIP_DESCRIPTOR ? 8 + 2 * size : 0;
    const clnet__zip_field fields[] = {
        {0, 4, CLNET__ZIP_DESCRIPTOR_MAGIC, "descriptor: magic"},
        {4, 4, part->crc, "descriptor: CRC-32"},
        {8, size, part->bytes, "descriptor: bytes stored"},
        {8 + size, size, part->bytes, "descriptor: bytes"},
    };
    if (n != expected) {
        return clnet__pth_fail(p, CLNET_ERROR_OFFSETS, at, shown, "bytes before what follows:", n,
                               expected);
    }
    return n == 0 ||
           (clnet__file_read(p->f, at, s, (size_t)n) && CLNET__ZIP_CHECK(p, shown, at, s, fields));
}

static bool clnet__zip_sum(clnet__pth *p, const clnet__part *part, const clnet__crc_table *table) {
    unsigned char block[8192];
    uint32_t crc = 0;
    for (uint64_t done = 0; done < part->bytes;) {
        const uint64_t left = part->bytes - done;
        const size_t n = left < sizeof block ? (size_t)left : sizeof block;
        if (!clnet__file_read(p->f, part->begin + done, block, n)) {
            return false;
        }
        crc = clnet__crc32(table, crc, block, n);
        done += n;
    }
    return crc == part->crc ||
           clnet__part_fail(p, CLNET_ERROR_CHECKSUM, part, part->begin, "CRC-32", crc, part->crc);
}

// The entries stand one behind the other in the order of the directory, from the file's first byte
// to the directory, and their bytes have the sums that they should have.
static bool clnet__zip_entries(clnet__pth *p, const clnet__zip_end *end) {
    clnet__crc_table table;
    clnet__crc_fill(&table);
    uint64_t at = 0;
    for (size_t i = 0; i < p->part_count; i++) {
        clnet__part *part = &p->parts[i];
        const clnet__shown shown = clnet__show(part->name, part->length);
        const uint64_t next = i + 1 < p->part_count ? p->parts[i + 1].header : end->begin;
        if (part->header != at) {
            return clnet__pth_fail(p, CLNET_ERROR_OFFSETS, part->header, shown.text,
                                   "an overlap or a gap: begins at", part->header, at);
        }
        if (!clnet__zip_local(p, part, shown.text)) {
            return false;
        }
        if (part->begin > next || part->bytes > next - part->begin) {
            return clnet__pth_fail(p, CLNET_ERROR_OFFSETS, part->begin, shown.text,
                                   "overlaps what follows: bytes", part->bytes,
                                   part->begin > next ? 0 : next - part->begin);
        }
        if (!clnet__zip_descriptor(p, part, shown.text, next - part->begin - part->bytes) ||
            !clnet__zip_sum(p, part, &table)) {
            return false;
        }
        at = next;
    }
    return at == end->begin || clnet__pth_fail(p, CLNET_ERROR_OFFSETS, at, NULL,
                                               "first byte behind the entries:", at, end->begin);
}

// Puts the entries in order of their names, none of which may stand there twice, and finds the one
// pickle.
static bool clnet__zip_names(clnet__pth *p) {
    clnet__sort(p->parts, p->part_count, sizeof *p->parts, clnet__part_by_name, NULL);
    for (size_t i = 0; i < p->part_count; i++) {
        const clnet__part *part = &p->parts[i];
        if (i > 0 && clnet__part_by_name(part - 1, part, NULL) == 0) {
            return clnet__part_fail(p, CLNET_ERROR_DUPLICATE, part, part->header,
                                    "entries of this name:", 2, 1);
        }
        if (clnet__part_ends(part, "/data.pkl")) {
            if (p->pickle != NULL) {
                return clnet__part_fail(p, CLNET_ERROR_DUPLICATE, part, part->header,
                                        "pickles in the file:", 2, 1);
            }
            p->pickle = part;
        }
    }
    return p->pickle != NULL ||
           clnet__pth_fail(p, CLNET_ERROR_SYNTAX, 0, NULL,
                           "not a file of torch.save: entries of the name */data.pkl:", 0, 1);
}

// An entry of the pickle's folder; NULL: there is none.
static clnet__part *clnet__zip_find(const clnet__pth *p, const char *folder,
                                    const unsigned char *name, size_t length) {
    unsigned char path[CLNET_FILE_MAX_NAME];
    const size_t top = p->pickle->length - strlen("data.pkl"), below = strlen(folder);
    if (length > sizeof path - top || below > sizeof path - top - length) {
        return NULL;
    }
    memcpy(path, p->pickle->name, top);
    memcpy(path + top, folder, below);
    memcpy(path + top + below, name, length);
    return clnet__part_find(p, path, top + below + length);
}

static bool clnet__zip_order(clnet__pth *p) {
    static const unsigned char name[] = "byteorder";
    unsigned char order[8] = {0};
    const clnet__part *part = clnet__zip_find(p, "", name, sizeof name - 1);
    if (part == NULL) { // older PyTorch wrote none
        return true;
    }
    const size_t n = part->bytes < sizeof order ? (size_t)part->bytes : sizeof order;
    if (!clnet__file_read(p->f, part->begin, order, n)) {
        return false;
    }
    if (part->bytes != 6 || memcmp(order, "little", 6) != 0) {
        clnet__fail(p->f->ctx, CLNET_ERROR_UNSUPPORTED,
                    CLNET__PATH ": byte %llu, byteorder: expected \"little\", found \"%s\"",
                    p->f->path, (unsigned long long)part->begin, clnet__show(order, n).text);
        return false;
    }
    return true;
}

// Reads the pickle into memory, from `begin` on.
static bool clnet__pickle_load(clnet__pth *p, uint64_t begin, uint64_t bytes) {
    p->text_at = begin;
    p->length = (size_t)bytes;
    p->text = (unsigned char *)clnet__pth_alloc(p, bytes);
    return p->text != NULL && clnet__cells_add(p, &p->heap, 0, 0) && // the empty tuple
           clnet__file_read(p->f, begin, p->text, p->length);
}

static bool clnet__zip_read(clnet__pth *p, clnet__cell *root) {
    clnet__zip_end end;
    if (!clnet__zip_read_end(p, &end) || !clnet__zip_directory(p, &end) ||
        !clnet__zip_entries(p, &end) || !clnet__zip_names(p)) {
        return false;
    }
    if (p->pickle->bytes > CLNET_FILE_MAX_HEADER) {
        return clnet__pth_fail(p, CLNET_ERROR_LIMIT, p->pickle->begin, NULL,
                               "bytes of pickle:", p->pickle->bytes, CLNET_FILE_MAX_HEADER);
    }
    if (!clnet__zip_order(p) || !clnet__pickle_load(p, p->pickle->begin, p->pickle->bytes) ||
        !clnet__pickle_run(p, root)) {
        return false;
    }
    return p->next == p->length ||
           clnet__pth_fail(p, CLNET_ERROR_SYNTAX, p->text_at + p->next, NULL,
                           "bytes behind the pickle's STOP:", p->length - p->next, 0);
}

// >>files: pth: the older format

// The pickled magic number, 0x1950a86a20f9469cfc6c, and the pickled protocol, 1001.
static const unsigned char clnet__older_magic[] =
    "\x80\x02\x8A\x0A\x6C\xFC\x9C\x46\xF9\x20\x6A\xA8\x50\x19.\x80\x02M\xE9\x03.";
enum { CLNET__OLDER_MAGIC = 15, CLNET__OLDER_PROTOCOL = sizeof clnet__older_magic - 1 };

// The properties of the machine that wrote the file: {"little_endian": True, ..}.
static bool clnet__older_machine(const clnet__pth *p, clnet__cell properties) {
    clnet__cell key, value = {CLNET__NOTHING, 0};
    if (properties.kind == CLNET__DICT) {
        for (clnet__walk w = clnet__walk_begin(p, properties); clnet__walk_next(p, &w, &key);) {
            clnet__walk_next(p, &w, &value);
            if (key.kind == CLNET__TEXT && clnet__pickle_equals(p, key, "little_endian")) {
                break;
            }
            value.kind = CLNET__NOTHING;
        }
    }
    if (value.kind != CLNET__TRUE) {
        clnet__fail(p->f->ctx, CLNET_ERROR_UNSUPPORTED,
                    CLNET__PATH ": byte %llu: expected \"little_endian\": True, found %s",
                    p->f->path, (unsigned long long)p->begin, clnet__kind_text(value.kind));
        return false;
    }
    return true;
}

// Puts the storages in order of their keys. Tensors that share one have all described it.
static bool clnet__older_sort(clnet__pth *p) {
    size_t kept = 0;
    clnet__sort(p->parts, p->part_count, sizeof *p->parts, clnet__part_by_name, NULL);
    for (size_t i = 0; i < p->part_count; i++) {
        const clnet__part *part = &p->parts[i], *last = &p->parts[kept > 0 ? kept - 1 : 0];
        if (kept == 0 || clnet__part_by_name(last, part, NULL) != 0) {
            p->parts[kept++] = *part;
        } else if (last->bytes != part->bytes || last->detail != part->detail) {
            return clnet__part_fail(p, CLNET_ERROR_OFFSETS, part, p->begin,
                                    "bytes of a storage:", part->bytes, last->bytes);
        }
    }
    p->part_count = kept;
    return true;
}

// Finds the storages behind the last pickle, in the order of the list of keys.
static bool clnet__older_places(clnet__pth *p, clnet__cell keys) {
    const uint64_t size = p->f->size;
    uint64_t at = p->next;
    clnet__cell key;
    for (clnet__walk w = clnet__walk_begin(p, keys); clnet__walk_next(p, &w, &key);) {
        size_t length = 0;
        const unsigned char *name =
            key.kind == CLNET__TEXT ? clnet__pickle_text(p, key, &length) : p->text;
        clnet__part *part = clnet__part_find(p, name, length);
        unsigned char count[8];
        if (part == NULL || part->begin != 0) {
            return clnet__pth_fail(p, part == NULL ? CLNET_ERROR_MISMATCH : CLNET_ERROR_DUPLICATE,
                                   p->begin, clnet__show(name, length).text,
                                   "storages of this key in the pickle or in the list of keys:",
                                   part == NULL ? 0 : 2, 1);
        }
        if (size - at < sizeof count || part->bytes > size - at - sizeof count) {
            return clnet__pth_fail(p, CLNET_ERROR_TRUNCATED, at, clnet__show(name, length).text,
                                   "bytes left for a storage:", size - at,
                                   part->bytes + sizeof count);
        }
        if (!clnet__file_read(p->f, at, count, sizeof count)) {
            return false;
        }
        if (clnet__load_bytes(count, 8) != part->bytes / part->detail) {
            return clnet__pth_fail(p, CLNET_ERROR_OFFSETS, at, clnet__show(name, length).text,
                                   "numbers in a storage:", clnet__load_bytes(count, 8),
                                   part->bytes / part->detail);
        }
        part->begin = at + sizeof count;
        at = part->begin + part->bytes;
    }
    return at == size || clnet__pth_fail(p, CLNET_ERROR_OFFSETS, at, NULL,
                                         "bytes behind the last storage:", size - at, 0);
}

static bool clnet__older_read(clnet__pth *p, clnet__cell *root) {
    const uint64_t size = p->f->size, most = CLNET_FILE_MAX_HEADER;
    clnet__cell properties, keys;
    if (!clnet__pickle_load(p, 0, size < most ? size : most)) {
        return false;
    }
    if (p->length < CLNET__OLDER_PROTOCOL ||
        memcmp(p->text, clnet__older_magic, CLNET__OLDER_PROTOCOL) != 0) {
        clnet__fail(p->f->ctx, CLNET_ERROR_UNSUPPORTED,
                    CLNET__PATH ": byte 0: a pickle, but expected one that begins as torch.save "
                                "writes it: its magic number, then its protocol 1001",
                    p->f->path);
        return false;
    }
    p->next = CLNET__OLDER_PROTOCOL;
    if (!clnet__pickle_run(p, &properties) || !clnet__older_machine(p, properties) ||
        !clnet__pickle_run(p, root) || !clnet__pickle_run(p, &keys) || !clnet__older_sort(p)) {
        return false;
    }
    if (keys.kind != CLNET__LIST) {
        clnet__fail(p->f->ctx, CLNET_ERROR_SYNTAX,
                    CLNET__PATH ": byte %llu: expected a list of storage keys, found %s",
                    p->f->path, (unsigned long long)p->begin, clnet__kind_text(keys.kind));
        return false;
    }
    return clnet__older_places(p, keys);
}

// >>files: pth: the state dict

// Copies a tensor's name, which has to be fit for messages and tables.
static bool clnet__state_name(const clnet__pth *p, clnet__cell key,
                              char name[CLNET_FILE_MAX_NAME + 1]) {
    size_t length = 0;
    const unsigned char *s = p->text;
    if (key.kind == CLNET__TEXT) {
        s = clnet__pickle_text(p, key, &length);
    }
    const size_t kept = length < CLNET_FILE_MAX_NAME ? length : CLNET_FILE_MAX_NAME;
    memcpy(name, s, kept);
    name[kept] = 0;
    const bool text = key.kind == CLNET__TEXT && strlen(name) == kept && !clnet__has_control(name);
    if (!text || length > CLNET_FILE_MAX_NAME) {
        clnet__printable(name, 80, name);
        clnet__fail(p->f->ctx, text ? CLNET_ERROR_LIMIT : CLNET_ERROR_ENCODING,
                    CLNET__PATH ": byte %llu: expected a name of at most %d bytes without control "
                                "characters, found \"%s\" of %llu bytes",
                    p->f->path, (unsigned long long)(p->text_at + key.at), CLNET_FILE_MAX_NAME,
                    name, (unsigned long long)length);
        return false;
    }
    return true;
}

// The numbers of a tuple: a shape, or strides.
static bool clnet__state_axes(const clnet__pth *p, const char *name, clnet__cell tuple,
                              uint64_t axes[CLNET_MAX_RANK], int *rank) {
    const size_t count = clnet__tuple_count(p, tuple);
    if (count > CLNET_MAX_RANK) {
        return clnet__pth_fail(p, CLNET_ERROR_LIMIT, p->text_at + p->at, name, "axes:", count,
                               CLNET_MAX_RANK);
    }
    *rank = (int)count;
    for (size_t i = 0; i < count; i++) {
        const clnet__cell item = clnet__tuple_item(p, tuple, i);
        if (item.kind != CLNET__INT || !clnet__pickle_number(p, item, &axes[i]) ||
            axes[i] > CLNET__MAX_DIM) {
            clnet__fail(p->f->ctx, CLNET_ERROR_SHAPE,
                        CLNET__PATH ": byte %llu, tensor %s: expected a shape and strides of whole "
                                    "numbers from 0 to 2^48 - 1, found %s",
                        p->f->path, (unsigned long long)(p->text_at + item.at), name,
                        item.kind == CLNET__INT ? "another one" : clnet__kind_text(item.kind));
            return false;
        }
    }
    return true;
}

// How many numbers lie from a tensor's first to its last, itself included; false: too many.
static bool clnet__tensor_span(const clnet_file_tensor *t, uint64_t *span) {
    *span = 1;
    for (int i = 0; i < t->rank; i++) {
        uint64_t reach;
        if (t->shape[i] == 0) {
            *span = 0;
            return true;
        }
        if (!clnet__mul64(t->shape[i] - 1, t->stride[i], &reach) ||
            !clnet__add64(*span, reach, span)) {
            return false;
        }
    }
    return true;
}

// Sets the strides of a dense tensor to 0. Those of axes of length 1 mean nothing.
static void clnet__tensor_simplify(clnet_file_tensor *t) {
    uint64_t dense = 1;
    bool is_dense = true;
    for (int i = t->rank - 1; i >= 0; i--) {
        is_dense = is_dense && (t->shape[i] == 1 || t->stride[i] == dense);
        dense *= t->shape[i]; // checked before: the bytes fit
    }
    for (int i = 0; i < t->rank; i++) {
        t->stride[i] = is_dense || dense == 0 || t->shape[i] == 1 ? 0 : t->stride[i];
    }
}

// The storage of a tensor: its type, its bytes, and how many numbers it has.
static bool clnet__state_storage(const clnet__pth *p, clnet__cell tensor, clnet_file_tensor *t,
                                 const clnet__part **part, uint64_t *count) {
    const clnet__cell storage = clnet__tuple_item(p, tensor, 0);
    size_t length;
    const unsigned char *key = clnet__pickle_text(p, clnet__tuple_item(p, storage, 2), &length);
    clnet__storage_type(p, storage, &t->dtype, count); // checked by BINPERSID
    const size_t unit = t->dtype == CLNET_DTYPE_COUNT ? 1 : clnet_dtype_size(t->dtype);
    if (t->dtype == CLNET_DTYPE_COUNT && clnet__tuple_count(p, tensor) > 6) {
        const clnet__cell type = clnet__tuple_item(p, tensor, 6);
        if (type.kind == CLNET__GLOBAL && clnet__globals[type.at].kind == CLNET__DTYPE) {
            t->dtype = clnet__globals[type.at].dtype;
        }
    }
    if (t->dtype == CLNET_DTYPE_COUNT) {
        clnet__fail(p->f->ctx, CLNET_ERROR_DTYPE,
                    CLNET__PATH ": tensor %s: a storage of bytes without a type of number",
                    p->f->path, t->name);
        return false;
    }
    *part = p->directory != NULL ? clnet__zip_find(p, "data/", key, length)
                                 : clnet__part_find(p, key, length);
    if (*part == NULL || (*part)->begin == 0) {
        return clnet__pth_fail(p, CLNET_ERROR_MISMATCH, p->text_at + p->at,
                               clnet__show(key, length).text,
                               "storages of this key in the file:", 0, 1);
    }
    if ((*part)->bytes != *count * unit) {
        return clnet__pth_fail(p, CLNET_ERROR_OFFSETS, p->text_at + p->at, t->name,
                               "bytes of its storage:", (*part)->bytes, *count * unit);
    }
    *count = (*part)->bytes / clnet_dtype_size(t->dtype);
    return true;
}

// Finds out all about a tensor, whose name is already in t.
static bool clnet__state_tensor(const clnet__pth *p, clnet__cell tensor, clnet_file_tensor *t) {
    const clnet__part *part;
    uint64_t count, first, span, numbers, behind;
    int strides;
    if (tensor.kind != CLNET__TENSOR) {
        clnet__fail(p->f->ctx, CLNET_ERROR_UNSUPPORTED,
                    CLNET__PATH ": \"%s\": expected a tensor, found %s: not a state dict",
                    p->f->path, t->name, clnet__kind_text(tensor.kind));
        return false;
    }
    if (!clnet__state_storage(p, tensor, t, &part, &count) ||
        !clnet__state_axes(p, t->name, clnet__tuple_item(p, tensor, 2), t->shape, &t->rank) ||
        !clnet__state_axes(p, t->name, clnet__tuple_item(p, tensor, 3), t->stride, &strides)) {
        return false;
    }
    if (strides != t->rank) {
        return clnet__pth_fail(p, CLNET_ERROR_SHAPE, p->text_at + p->at, t->name,
                               "strides:", (uint64_t)strides, (uint64_t)t->rank);
    }
    if (!clnet__pickle_number(p, clnet__tuple_item(p, tensor, 1), &first) ||
        !clnet__shape_bytes(t->shape, t->rank, t->dtype, &t->bytes) ||
        !clnet__tensor_span(t, &span) || !clnet__add64(first, span, &behind)) {
        clnet__fail(p->f->ctx, CLNET_ERROR_SHAPE,
                    CLNET__PATH ": tensor %s: its shape has more bytes than 64 bits count, or its "
                                "strides, or its first number is negative",
                    p->f->path, t->name);
        return false;
    }
    numbers = t->bytes / clnet_dtype_size(t->dtype);
    if (behind > count || numbers > span) {
        return clnet__pth_fail(p, CLNET_ERROR_OFFSETS, p->text_at + p->at, t->name,
                               numbers > span ? "strides that overlap: numbers"
                                              : "its last number stands outside its storage:",
                               numbers > span ? numbers : behind, numbers > span ? span : count);
    }
    clnet__tensor_simplify(t);
    t->offset = part->begin + first * clnet_dtype_size(t->dtype);
    return true;
}

// Adds a tensor to the file's records: its name, shape and strides go to the text.
static void clnet__state_record(clnet_tensor_file *f, const clnet_file_tensor *t,
                                clnet__text *text) {
    clnet__file_record record = {.begin = t->offset,
                                 .end = t->offset + t->bytes,
                                 .name = (uint32_t)text->length,
                                 .dtype = (unsigned char)t->dtype,
                                 .rank = (unsigned char)t->rank,
                                 .strided = clnet__is_strided(t)};
    clnet__text_add(text, t->name);
    clnet__text_char(text, 0);
    record.shape = (uint32_t)text->length;
    for (int i = 0; i < (record.strided ? 2 : 1) * t->rank; i++) {
        clnet__text_number(text, i < t->rank ? t->shape[i] : t->stride[i - t->rank]);
        clnet__text_char(text, ' ');
    }
    clnet__text_char(text, 0);
    if (text->data != NULL) {
        f->records[f->count] = record;
    }
    f->count++;
}

// Goes through all tensors of a dictionary: checks and counts them, or records them.
static bool clnet__state_tensors(clnet__pth *p, clnet__cell dict, clnet__text *text) {
    clnet__cell key, value = {CLNET__NOTHING, 0};
    p->f->count = 0;
    for (clnet__walk w = clnet__walk_begin(p, dict); clnet__walk_next(p, &w, &key);) {
        char name[CLNET_FILE_MAX_NAME + 1];
        clnet_file_tensor t = {.name = name};
        clnet__walk_next(p, &w, &value);
        p->at = key.kind == CLNET__TEXT ? key.at : p->at;
        if (!clnet__state_name(p, key, name) || !clnet__state_tensor(p, value, &t)) {
            return false;
        }
        if (p->f->count == CLNET_FILE_MAX_TENSORS) {
            return clnet__pth_fail(p, CLNET_ERROR_LIMIT, p->text_at + p->at, name,
                                   "too many tensors: at least", CLNET_FILE_MAX_TENSORS + 1,
                                   CLNET_FILE_MAX_TENSORS);
        }
        clnet__state_record(p->f, &t, text);
    }
    return true;
}

// Steps into {"state_dict": {..}, ..}.
static bool clnet__state_root(const clnet__pth *p, clnet__cell *root) {
    clnet__cell key, value = {CLNET__NOTHING, 0};
    if (root->kind != CLNET__DICT) {
        clnet__fail(p->f->ctx, CLNET_ERROR_UNSUPPORTED,
                    CLNET__PATH ": byte %llu: expected a state dict, found %s", p->f->path,
                    (unsigned long long)p->text_at, clnet__kind_text(root->kind));
        return false;
    }
    for (clnet__walk w = clnet__walk_begin(p, *root); clnet__walk_next(p, &w, &key);) {
        clnet__walk_next(p, &w, &value);
        if (key.kind == CLNET__TEXT && value.kind == CLNET__DICT &&
            clnet__pickle_equals(p, key, "state_dict")) {
            *root = value;
            break;
        }
    }
    return true;
}

// Reads the metadata that clnet writes to `text`, which has room for them behind `at`.
static bool clnet__pth_metadata(clnet__pth *p, const clnet__part *part, size_t at) {
    clnet_tensor_file *f = p->f;
    char *text = f->text + at;
    const size_t n = (size_t)part->bytes;
    if (!clnet__file_read(f, part->begin, text, n)) {
        return false;
    }
    size_t ends = 0;
    for (size_t i = 0; i < n; i++) {
        ends += text[i] == 0;
    }
    if ((n > 0 && text[n - 1] != 0) || ends % 2 != 0 || clnet__utf8_end(text, n) < n) {
        return clnet__part_fail(p, CLNET_ERROR_METADATA, part, part->begin,
                                "not keys and values in UTF-8, each ended by a zero byte: bytes", n,
                                n);
    }
    if (ends / 2 > CLNET_FILE_MAX_TENSORS) {
        return clnet__part_fail(p, CLNET_ERROR_LIMIT, part, part->begin, "pairs:", ends / 2,
                                CLNET_FILE_MAX_TENSORS);
    }
    f->strings = (clnet__file_string *)clnet__pth_alloc(p, ends / 2 * sizeof *f->strings);
    for (size_t i = 0; f->strings != NULL && i < n;) {
        clnet__file_string *pair = &f->strings[f->string_count++];
        pair->key = (uint32_t)(at + i);
        i += strlen(text + i) + 1;
        pair->value = (uint32_t)(at + i);
        i += strlen(text + i) + 1;
    }
    return f->strings != NULL;
}

// Turns the dictionary into what is kept of a file: records, their text, metadata.
static bool clnet__pth_keep(clnet__pth *p, clnet__cell root) {
    static const unsigned char name[] = "clnet.metadata";
    clnet_tensor_file *f = p->f;
    clnet__text text = {0};
    if (!clnet__state_root(p, &root) || !clnet__state_tensors(p, root, &text)) {
        return false;
    }
    const clnet__part *metadata =
        p->directory != NULL ? clnet__zip_find(p, "", name, sizeof name - 1) : NULL;
    if (metadata != NULL && metadata->bytes > CLNET_FILE_MAX_HEADER) {
        return clnet__part_fail(p, CLNET_ERROR_LIMIT, metadata, metadata->begin,
                                "bytes of metadata:", metadata->bytes, CLNET_FILE_MAX_HEADER);
    }
    f->length = text.length;
    f->records = (clnet__file_record *)clnet__pth_alloc(p, f->count * sizeof *f->records);
    f->text = (char *)clnet__pth_alloc(p, text.length + (metadata != NULL ? metadata->bytes : 0));
    if (f->records == NULL || f->text == NULL) {
        return false;
    }
    text = (clnet__text){.data = f->text};
    return clnet__state_tensors(p, root, &text) &&
           (metadata == NULL || clnet__pth_metadata(p, metadata, text.length)) &&
           clnet__check_unique(f);
}

static bool clnet__is_zip(const unsigned char start[8]) {
    return clnet__load_bytes(start, 4) == CLNET__ZIP_LOCAL_MAGIC;
}

// PROTO with a protocol of today; no header of safetensors is as long as these bytes would say.
static bool clnet__is_pickle(const unsigned char start[8]) {
    return start[0] == 0x80 && start[1] >= 2 && start[1] <= 5 &&
           clnet__load_bytes(start, 8) > CLNET_FILE_MAX_HEADER;
}

// Before PyTorch 0.1.10 files were tar archives.
static bool clnet__is_tar(clnet_tensor_file *f) {
    char magic[5];
    return f->size >= 512 && clnet__file_read(f, 257, magic, sizeof magic) &&
           memcmp(magic, "ustar", sizeof magic) == 0;
}

static bool clnet__pth_read(clnet_tensor_file *f, bool zip) {
    const uint64_t own = 16384; // for the file's object, which is there already
    clnet__pth p = {
        .f = f, .left = f->size < UINT64_MAX / 4 ? 2 * f->size + 1048576 - own : UINT64_MAX / 2};
    clnet__cell root;
    const bool done = (zip ? clnet__zip_read(&p, &root) : clnet__older_read(&p, &root)) &&
                      clnet__pth_keep(&p, root);
    clnet__free(f->ctx, p.stack.data);
    clnet__free(f->ctx, p.memo.data);
    clnet__free(f->ctx, p.heap.data);
    clnet__free(f->ctx, p.parts);
    clnet__free(f->ctx, p.directory);
    clnet__free(f->ctx, p.text);
    return done;
}

// >>files: writing

typedef struct clnet__writer clnet__writer;
struct clnet__writer {
    // The format: the text that describes all tensors; how all goes to the file.
    void (*describe)(clnet__text *text, const clnet__writer *w);
    bool (*put)(clnet__writer *w, void *file);
    clnet_context *ctx;
    const char *path;
    char *temporary;               // path + ".tmp"
    const clnet_file_item **items; // in the order of the file
    size_t count;
    const clnet_file_pair **pairs; // by key
    size_t pair_count;
    char *header; // that text
    size_t header_bytes;
    void *scratch; // for the largest item that is filled
};

// A JSON string.
static void clnet__text_string(clnet__text *text, const char *s) {
    clnet__text_char(text, '"');
    for (; *s != 0; s++) {
        char escape[8] = {*s, 0};
        if ((unsigned char)*s < 32) {
            snprintf(escape, sizeof escape, "\\u%04x", (unsigned)*s);
        } else if (*s == '"' || *s == '\\') {
            escape[0] = '\\';
            escape[1] = *s;
        }
        clnet__text_add(text, escape);
    }
    clnet__text_char(text, '"');
}

// "name":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}
static void clnet__text_item(clnet__text *text, const clnet_file_item *item, uint64_t begin,
                             uint64_t end) {
    clnet__text_string(text, item->name);
    clnet__text_add(text, ":{\"dtype\":\"");
    clnet__text_add(text, clnet_dtype_name(item->dtype));
    clnet__text_add(text, "\",\"shape\":[");
    for (int i = 0; i < item->rank; i++) {
        clnet__text_add(text, i > 0 ? "," : "");
        clnet__text_number(text, item->shape[i]);
    }
    clnet__text_add(text, "],\"data_offsets\":[");
    clnet__text_number(text, begin);
    clnet__text_char(text, ',');
    clnet__text_number(text, end);
    clnet__text_add(text, "]}");
}

static uint64_t clnet__item_bytes(const clnet_file_item *item) {
    uint64_t bytes = 0;
    clnet__shape_bytes(item->shape, item->rank, item->dtype, &bytes); // checked before
    return bytes;
}

// The header of safetensors: its length in 8 bytes, its JSON.
static void clnet__text_header(clnet__text *text, const clnet__writer *w) {
    uint64_t begin = 0;
    clnet__text_bytes(text, 0, 8);
    clnet__text_char(text, '{');
    if (w->pair_count > 0) {
        clnet__text_add(text, "\"__metadata__\":{");
        for (size_t i = 0; i < w->pair_count; i++) {
            clnet__text_add(text, i > 0 ? "," : "");
            clnet__text_string(text, w->pairs[i]->key);
            clnet__text_char(text, ':');
            clnet__text_string(text, w->pairs[i]->value);
        }
        clnet__text_char(text, '}');
    }
    for (size_t i = 0; i < w->count; i++) {
        uint64_t end = begin + clnet__item_bytes(w->items[i]);
        clnet__text_add(text, i > 0 || w->pair_count > 0 ? "," : "");
        clnet__text_item(text, w->items[i], begin, end);
        begin = end;
    }
    clnet__text_char(text, '}');
    while (text->length % 8 != 0) {
        clnet__text_char(text, ' ');
    }
    if (text->data != NULL) {
        clnet__store_bytes((unsigned char *)text->data, 8, text->length - 8);
    }
}

static bool clnet__writer_fail(const clnet__writer *w, clnet_result result, const char *kind,
                               const char *name, const char *what) {
    clnet__fail(w->ctx, result, CLNET__PATH ": cannot be written: %s %.*s: %s", w->path, kind,
                (int)CLNET_FILE_MAX_NAME, name != NULL ? name : "", what);
    return false;
}

static bool clnet__check_item(const clnet__writer *w, const clnet_file_item *item) {
    const char *name = item->name, *wrong = NULL;
    clnet_result result = CLNET_ERROR_ARGUMENT;
    uint64_t bytes = 0;
    if (name == NULL || clnet__utf8_end(name, strlen(name)) < strlen(name) ||
        clnet__has_control(name) || strcmp(name, "__metadata__") == 0) {
        wrong = "its name is no UTF-8 text, has control characters or is reserved";
    } else if (strlen(name) > CLNET_FILE_MAX_NAME) {
        wrong = "its name is longer than clnet accepts";
        result = CLNET_ERROR_LIMIT;
    } else if (clnet_dtype_size(item->dtype) == 0) {
        wrong = "its dtype is unknown";
    } else if (item->rank < 0 || item->rank > CLNET_MAX_RANK) {
        wrong = "it has a negative number of axes, or more than clnet accepts";
    } else if (!clnet__shape_bytes(item->shape, item->rank, item->dtype, &bytes) ||
               bytes > CLNET__MAX_DIM || bytes > SIZE_MAX) {
        wrong = "its shape has too many bytes";
    } else if (bytes > 0 && item->data == NULL && item->fill == NULL) {
        wrong = "it has neither data nor a function that fills it";
    }
    for (int i = 0; wrong == NULL && i < item->rank; i++) {
        wrong = item->shape[i] > CLNET__MAX_DIM ? "one of its axes is 2^48 or longer" : NULL;
    }
    return wrong == NULL || clnet__writer_fail(w, result, "tensor", name, wrong);
}

static bool clnet__check_pair(const clnet__writer *w, const clnet_file_pair *pair) {
    if (pair->key == NULL || pair->value == NULL ||
        clnet__utf8_end(pair->key, strlen(pair->key)) < strlen(pair->key) ||
        clnet__utf8_end(pair->value, strlen(pair->value)) < strlen(pair->value)) {
        return clnet__writer_fail(w, CLNET_ERROR_ARGUMENT, "metadata", pair->key,
                                  "the key or its value is no UTF-8 text");
    }
    return true;
}

static int clnet__item_by_name(const void *a, const void *b, const void *user) {
    (void)user;
    return strcmp((*(const clnet_file_item *const *)a)->name,
                  (*(const clnet_file_item *const *)b)->name);
}

// Larger numbers first, so that all are aligned to their size; then by name.
static int clnet__item_by_place(const void *a, const void *b, const void *user) {
    size_t x = clnet_dtype_size((*(const clnet_file_item *const *)a)->dtype);
    size_t y = clnet_dtype_size((*(const clnet_file_item *const *)b)->dtype);
    return x != y ? (x < y) - (x > y) : clnet__item_by_name(a, b, user);
}

static int clnet__pair_by_key(const void *a, const void *b, const void *user) {
    (void)user;
    return strcmp((*(const clnet_file_pair *const *)a)->key,
                  (*(const clnet_file_pair *const *)b)->key);
}

// Checks items and pairs one by one, and collects them.
static bool clnet__writer_collect(clnet__writer *w, const clnet_file_item *items,
                                  const clnet_file_pair *metadata) {
    uint64_t total = 0;
    for (size_t i = 0; i < w->count; i++) {
        w->items[i] = &items[i];
        if (!clnet__check_item(w, &items[i])) {
            return false;
        }
        if (!clnet__add64(total, clnet__item_bytes(&items[i]), &total) || total > CLNET__MAX_DIM) {
            return clnet__writer_fail(w, CLNET_ERROR_LIMIT, "tensor", items[i].name,
                                      "all together have too many bytes");
        }
    }
    for (size_t i = 0; i < w->pair_count; i++) {
        w->pairs[i] = &metadata[i];
        if (!clnet__check_pair(w, &metadata[i])) {
            return false;
        }
    }
    return true;
}

// Puts items and pairs in order; no name may be there twice.
static bool clnet__writer_sort(clnet__writer *w) {
    clnet__sort(w->items, w->count, sizeof *w->items, clnet__item_by_name, NULL);
    for (size_t i = 1; i < w->count; i++) {
        if (clnet__item_by_name(&w->items[i - 1], &w->items[i], NULL) == 0) {
            return clnet__writer_fail(w, CLNET_ERROR_DUPLICATE, "tensor", w->items[i]->name,
                                      "the name is given twice");
        }
    }
    clnet__sort(w->items, w->count, sizeof *w->items, clnet__item_by_place, NULL);
    clnet__sort(w->pairs, w->pair_count, sizeof *w->pairs, clnet__pair_by_key, NULL);
    for (size_t i = 1; i < w->pair_count; i++) {
        if (clnet__pair_by_key(&w->pairs[i - 1], &w->pairs[i], NULL) == 0) {
            return clnet__writer_fail(w, CLNET_ERROR_DUPLICATE, "metadata", w->pairs[i]->key,
                                      "the key is given twice");
        }
    }
    return true;
}

// Makes the header, and room for what is filled.
static bool clnet__writer_prepare(clnet__writer *w) {
    clnet__text text = {0};
    w->describe(&text, w);
    if (text.length > CLNET_FILE_MAX_HEADER) {
        clnet__fail(
            w->ctx, CLNET_ERROR_LIMIT,
            CLNET__PATH ": cannot be written: a header of %llu bytes, expected at most %llu",
            w->path, (unsigned long long)text.length, (unsigned long long)CLNET_FILE_MAX_HEADER);
        return false;
    }
    size_t largest = 0;
    for (size_t i = 0; i < w->count; i++) {
        size_t bytes = w->items[i]->data == NULL ? (size_t)clnet__item_bytes(w->items[i]) : 0;
        largest = bytes > largest ? bytes : largest;
    }
    w->header_bytes = text.length;
    w->header = (char *)clnet__alloc(w->ctx, w->header_bytes);
    w->scratch = largest > 0 && w->header != NULL ? clnet__alloc(w->ctx, largest) : NULL;
    if (w->ctx->result != CLNET_OK) {
        return false;
    }
    text = (clnet__text){.data = w->header};
    w->describe(&text, w);
    return true;
}

static bool clnet__writer_put(clnet__writer *w, void *file, const void *data, size_t bytes) {
    errno = 0;
    if (bytes > 0 && w->ctx->files.write(w->ctx->files.user, file, data, bytes) != bytes) {
        return clnet__file_fail(w->ctx, w->temporary, "written");
    }
    return true;
}

// The bytes of an item; NULL: they are not to be had.
static const void *clnet__writer_data(clnet__writer *w, const clnet_file_item *item) {
    if (item->data != NULL || clnet__item_bytes(item) == 0) {
        return item->data != NULL ? item->data : "";
    }
    clnet_result result = item->fill(item->user, w->scratch);
    if (result != CLNET_OK) { // this context may hold a better sentence already
        clnet__writer_fail(w, result, "tensor", item->name, "its values are not to be had");
        return NULL;
    }
    return w->scratch;
}

static bool clnet__put_safetensors(clnet__writer *w, void *file) {
    bool done = clnet__writer_put(w, file, w->header, w->header_bytes);
    for (size_t i = 0; done && i < w->count; i++) {
        const void *data = clnet__writer_data(w, w->items[i]);
        done = data != NULL &&
               clnet__writer_put(w, file, data, (size_t)clnet__item_bytes(w->items[i]));
    }
    return done;
}

// Writes the temporary file and puts it in the place of the old one; or removes it.
static void clnet__writer_save(clnet__writer *w) {
    clnet_files *files = &w->ctx->files;
    void *file = clnet__file_open(w->ctx, w->temporary, true);
    if (file == NULL) {
        return;
    }
    bool done = w->put(w, file);
    errno = 0;
    if (done && !files->sync(files->user, file)) {
        done = clnet__file_fail(w->ctx, w->temporary, "synced");
    }
    errno = 0;
    if (!files->close(files->user, file)) { // also after a failure, which then stays on record
        done = clnet__file_fail(w->ctx, w->temporary, "closed");
    }
    errno = 0;
    if (done && !files->rename(files->user, w->temporary, w->path)) {
        done = clnet__file_fail(w->ctx, w->path, "replaced");
    }
    if (!done) {
        files->remove(files->user, w->temporary);
    }
}

// A copy of two texts in a row; NULL: failed.
static char *clnet__join(clnet_context *ctx, const char *a, const char *b) {
    size_t m = strlen(a), n = strlen(b);
    char *text = (char *)clnet__alloc(ctx, m + n + 1);
    if (text != NULL) {
        memcpy(text, a, m);
        memcpy(text + m, b, n);
    }
    return text;
}

// Writes a file in the format of *format, of which the functions count.
static clnet_result clnet__write(const clnet__writer *format, clnet_context *ctx, const char *path,
                                 const clnet_file_item *items, size_t count,
                                 const clnet_file_pair *metadata, size_t pairs) {
    if (ctx == NULL || ctx->result != CLNET_OK) {
        return ctx == NULL ? CLNET_ERROR_MEMORY : ctx->result;
    }
    if (path == NULL || count > CLNET_FILE_MAX_TENSORS || pairs > CLNET_FILE_MAX_TENSORS) {
        return clnet__fail(ctx, path == NULL ? CLNET_ERROR_ARGUMENT : CLNET_ERROR_LIMIT,
                           CLNET__PATH ": cannot be written: %llu tensors and %llu pairs of "
                                       "metadata, expected at most %llu of each",
                           path == NULL ? "(no path)" : path, (unsigned long long)count,
                           (unsigned long long)pairs, (unsigned long long)CLNET_FILE_MAX_TENSORS);
    }
    clnet__writer w = {format->describe, format->put,    .ctx = ctx,
                       .path = path,     .count = count, .pair_count = pairs};
    w.items = (const clnet_file_item **)clnet__alloc(ctx, (count + 1) * sizeof *w.items);
    w.pairs = (const clnet_file_pair **)clnet__alloc(ctx, (pairs + 1) * sizeof *w.pairs);
    w.temporary = clnet__join(ctx, path, ".tmp");
    if (ctx->result == CLNET_OK && clnet__writer_collect(&w, items, metadata) &&
        clnet__writer_sort(&w) && clnet__writer_prepare(&w)) {
        clnet__writer_save(&w);
    }
    clnet__free(ctx, w.scratch);
    clnet__free(ctx, w.header);
    clnet__free(ctx, w.temporary);
    clnet__free(ctx, (void *)w.pairs);
    clnet__free(ctx, (void *)w.items);
    return ctx->result;
}

clnet_result clnet_safetensors_write(clnet_context *ctx, const char *path,
                                     const clnet_file_item *items, size_t count,
                                     const clnet_file_pair *metadata, size_t pairs) {
    static const clnet__writer format = {.describe = clnet__text_header,
                                         .put = clnet__put_safetensors};
    return clnet__write(&format, ctx, path, items, count, metadata, pairs);
}

// >>files: writing pth
// The zip format of >>files: pth with a pickle that uses no memo. Larger numbers stand first, as in
// safetensors; each entry's bytes begin at a multiple of 64, by padding in its header's extra field.

static void clnet__pickle_put_text(clnet__text *text, const char *s) {
    clnet__text_char(text, 'X');
    clnet__text_bytes(text, strlen(s), 4);
    clnet__text_add(text, s);
}

static void clnet__pickle_put_number(clnet__text *text, uint64_t value) {
    const size_t bytes = value < 256 ? 1 : value < 65536 ? 2 : value < 0x80000000u ? 4 : 8;
    clnet__text_add(text, bytes == 1 ? "K" : bytes == 2 ? "M" : bytes == 4 ? "J" : "\x8A\x08");
    clnet__text_bytes(text, value, bytes);
}

// The row of clnet__globals for a type of numbers.
static const clnet__global *clnet__global_of(clnet__global_kind kind, clnet_dtype dtype) {
    int i = 0;
    while (i < CLNET__GLOBAL_COUNT &&
           (clnet__globals[i].kind != kind || clnet__globals[i].dtype != dtype)) {
        i++;
    }
    return i < CLNET__GLOBAL_COUNT ? &clnet__globals[i] : NULL;
}

// A call of _rebuild_tensor_v2, or v3 for types without a storage of their own.
static void clnet__pickle_put_item(clnet__text *text, const clnet_file_item *item, size_t index) {
    const clnet__global *typed = clnet__global_of(CLNET__STORAGE_TYPE, item->dtype);
    const uint64_t bytes = clnet__item_bytes(item);
    char key[24];
    snprintf(key, sizeof key, "%llu", (unsigned long long)index);
    clnet__text_add(text, typed != NULL ? "c" CLNET__REBUILD_NAME : "c" CLNET__REBUILD_AS_NAME);
    clnet__text_add(text, "((");
    clnet__pickle_put_text(text, "storage");
    clnet__text_char(text, 'c');
    clnet__text_add(text, typed != NULL ? typed->name : CLNET__UNTYPED_NAME);
    clnet__pickle_put_text(text, key);
    clnet__pickle_put_text(text, "cpu");
    clnet__pickle_put_number(text, typed != NULL ? bytes / clnet_dtype_size(item->dtype) : bytes);
    clnet__text_add(text, "tQ");
    clnet__pickle_put_number(text, 0);
    clnet__text_char(text, '(');
    for (int i = 0; i < item->rank; i++) {
        clnet__pickle_put_number(text, item->shape[i]);
    }
    clnet__text_add(text, "t(");
    for (int i = 0; i < item->rank; i++) { // strides as PyTorch sets them: no length counts as 0
        uint64_t stride = 1;
        for (int k = i + 1; k < item->rank; k++) {
            stride *= item->shape[k] > 1 ? item->shape[k] : 1;
        }
        clnet__pickle_put_number(text, stride);
    }
    clnet__text_add(text, "t\x89"
                          "c" CLNET__ORDERED_DICT_NAME ")R");
    if (typed == NULL) {
        clnet__text_char(text, 'c');
        clnet__text_add(text, clnet__global_of(CLNET__DTYPE, item->dtype)->name);
    }
    clnet__text_add(text, "tR");
}

static void clnet__text_pickle(clnet__text *text, const clnet__writer *w) {
    clnet__text_add(text, "\x80\x02"
                          "c" CLNET__ORDERED_DICT_NAME ")R(");
    for (size_t i = 0; i < w->count; i++) {
        clnet__pickle_put_text(text, w->items[i]->name);
        clnet__pickle_put_item(text, w->items[i], i);
    }
    clnet__text_add(text, "u.");
}

typedef struct clnet__zip_writer {
    clnet__writer *w;
    void *file;
    uint64_t at;           // bytes written so far
    clnet__text directory; // entries so far
    size_t entries;
    clnet__crc_table table;
} clnet__zip_writer;

enum { CLNET__ZIP_NAME = 40, CLNET__ZIP_ALIGNMENT = 64 }; // the longest name that is written

// What the local header and the directory have in common, from the version on.
static void clnet__zip_fields(clnet__text *text, const char *name, uint32_t crc, size_t bytes,
                              size_t extra) {
    clnet__text_bytes(text, 20, 2); // version 2.0
    clnet__text_bytes(text, 0, 8);  // flags, method, time, date
    clnet__text_bytes(text, crc, 4);
    clnet__text_bytes(text, bytes, 4);
    clnet__text_bytes(text, bytes, 4);
    clnet__text_bytes(text, strlen(name), 2);
    clnet__text_bytes(text, extra, 2);
}

// Writes an entry, and adds it to the directory.
static bool clnet__zip_put(clnet__zip_writer *z, const char *name, const void *data, size_t n) {
    char bytes[CLNET__ZIP_LOCAL + CLNET__ZIP_NAME + 2 * CLNET__ZIP_ALIGNMENT] = {0};
    clnet__text local = {.data = bytes};
    const uint32_t crc = clnet__crc32(&z->table, 0, data, n);
    const uint64_t used = z->at + CLNET__ZIP_LOCAL + strlen(name) + 4;
    const size_t padding =
        (size_t)(CLNET__ZIP_ALIGNMENT - used % CLNET__ZIP_ALIGNMENT) % CLNET__ZIP_ALIGNMENT;
    if (used + padding + n >= UINT32_MAX) {
        return clnet__writer_fail(z->w, CLNET_ERROR_LIMIT, "entry", name,
                                  "beyond 4 GiB, where clnet writes safetensors only");
    }
    clnet__text_bytes(&local, CLNET__ZIP_LOCAL_MAGIC, 4);
    clnet__zip_fields(&local, name, crc, n, 4 + padding);
    clnet__text_add(&local, name);
    clnet__text_add(&local, "FB");
    clnet__text_bytes(&local, padding, 2);
    local.length += padding;
    clnet__text_bytes(&z->directory, CLNET__ZIP_CENTRAL_MAGIC, 4);
    clnet__text_bytes(&z->directory, 20, 2);
    clnet__zip_fields(&z->directory, name, crc, n, 0);
    clnet__text_bytes(&z->directory, 0, 8); // comment, disk, attributes
    clnet__text_bytes(&z->directory, 0, 2);
    clnet__text_bytes(&z->directory, z->at, 4);
    clnet__text_add(&z->directory, name);
    z->at += local.length + n;
    z->entries++;
    return clnet__writer_put(z->w, z->file, bytes, local.length) &&
           clnet__writer_put(z->w, z->file, data, n);
}

// Metadata as keys and values in turn, each ended by a zero byte; NULL: failed.
static char *clnet__zip_metadata(clnet__writer *w, size_t *bytes) {
    clnet__text text = {0};
    for (int turn = 0; turn < 2; turn++) {
        for (size_t i = 0; i < w->pair_count; i++) {
            clnet__text_add(&text, w->pairs[i]->key);
            clnet__text_char(&text, 0);
            clnet__text_add(&text, w->pairs[i]->value);
            clnet__text_char(&text, 0);
        }
        if (turn == 0) {
            *bytes = text.length;
            text = (clnet__text){.data = (char *)clnet__alloc(w->ctx, *bytes)};
            if (text.data == NULL) {
                return NULL;
            }
        }
    }
    return text.data;
}

// Writes all entries.
static bool clnet__zip_put_all(clnet__zip_writer *z) {
    clnet__writer *w = z->w;
    size_t bytes = 0;
    bool done = clnet__zip_put(z, "clnet/data.pkl", w->header, w->header_bytes) &&
                clnet__zip_put(z, "clnet/byteorder", "little", 6);
    for (size_t i = 0; done && i < w->count; i++) {
        char name[CLNET__ZIP_NAME];
        snprintf(name, sizeof name, "clnet/data/%llu", (unsigned long long)i);
        const void *data = clnet__writer_data(w, w->items[i]);
        done =
            data != NULL && clnet__zip_put(z, name, data, (size_t)clnet__item_bytes(w->items[i]));
    }
    done = done && clnet__zip_put(z, "clnet/version", "3\n", 2);
    if (done && w->pair_count > 0) {
        char *metadata = clnet__zip_metadata(w, &bytes);
        done = metadata != NULL && clnet__zip_put(z, "clnet/clnet.metadata", metadata, bytes);
        clnet__free(w->ctx, metadata);
    }
    return done;
}

static bool clnet__put_pth(clnet__writer *w, void *file) {
    const size_t entries = w->count + 4;
    clnet__zip_writer z = {.w = w, .file = file};
    if (entries >= UINT16_MAX) {
        return clnet__writer_fail(w, CLNET_ERROR_LIMIT, "file", "of torch.save",
                                  "more tensors than 65,530");
    }
    z.directory.data = (char *)clnet__alloc(
        w->ctx, entries * (CLNET__ZIP_CENTRAL + CLNET__ZIP_NAME) + CLNET__ZIP_END);
    clnet__crc_fill(&z.table);
    bool done = z.directory.data != NULL && clnet__zip_put_all(&z);
    if (done) {
        const size_t bytes = z.directory.length;
        clnet__text_bytes(&z.directory, CLNET__ZIP_END_MAGIC, 4);
        clnet__text_bytes(&z.directory, 0, 4); // disks
        clnet__text_bytes(&z.directory, z.entries, 2);
        clnet__text_bytes(&z.directory, z.entries, 2);
        clnet__text_bytes(&z.directory, bytes, 4);
        clnet__text_bytes(&z.directory, z.at, 4);
        clnet__text_bytes(&z.directory, 0, 2); // comment
        done = clnet__writer_put(w, file, z.directory.data, z.directory.length);
    }
    clnet__free(w->ctx, z.directory.data);
    return done;
}

clnet_result clnet_pth_write(clnet_context *ctx, const char *path, const clnet_file_item *items,
                             size_t count, const clnet_file_pair *metadata, size_t pairs) {
    static const clnet__writer format = {.describe = clnet__text_pickle, .put = clnet__put_pth};
    return clnet__write(&format, ctx, path, items, count, metadata, pairs);
}

#undef CLNET__PATH
#undef CLNET__MAX_DIM

// >>models
// Section 2 of the paper, in its order: the two encoders, the fusion modules, the classification of
// equation 1, the decoder of equation 4. Every function appends to a graph and passes NULL on.

typedef struct clnet__net {
    clnet_graph *g;
    double width;
    bool per_task;
} clnet__net;

typedef struct clnet__label {
    char text[256];
} clnet__label;

// "prefix" + "suffix", for names of layers.
static clnet__label clnet__name(const char *prefix, const char *suffix) {
    clnet__label t;
    snprintf(t.text, sizeof t.text, "%.127s%.127s", prefix, suffix);
    return t;
}

int clnet_scale_width(int channels, double width) {
    return clnet__max(1, (int)floor(channels * width + 0.5));
}

// conv without bias, "same" padding for stride 1, then batch norm; both named behind `prefix`.
static clnet_tensor *clnet__conv_bn(const clnet__net *net, clnet_tensor *x, const char *prefix,
                                    const char *conv, const char *bn, int channels, int kernel,
                                    int stride) {
    const clnet__label conv_name = clnet__name(prefix, conv), bn_name = clnet__name(prefix, bn);
    const clnet_conv2d_desc d = {.out_channels = channels,
                                 .kernel_size = {kernel, kernel},
                                 .stride = {stride, stride},
                                 .padding = {kernel / 2, kernel / 2},
                                 .no_bias = true,
                                 .name = conv_name.text};
    clnet_tensor *y = clnet_conv2d(net->g, x, &d);
    const clnet_batch_norm_desc b = {.name = bn_name.text};
    return clnet_batch_norm(net->g, y, &b);
}

// conv 3x3, BN, ReLU, twice: the block of UNet.
static clnet_tensor *clnet__double(const clnet__net *net, clnet_tensor *x, const char *name,
                                   int channels) {
    x = clnet_relu(net->g, clnet__conv_bn(net, x, name, ".0", ".1", channels, 3, 1));
    x = clnet_relu(net->g, clnet__conv_bn(net, x, name, ".3", ".4", channels, 3, 1));
    return clnet_tensor_rename(x, name);
}

// ResNet-50's block (He et al. 2016), with torchvision's names and its stride on the 3x3. That of
// ARLNet50 (Zhang et al. 2019) pays attention to where its own output is large.
static clnet_tensor *clnet__bottleneck(const clnet__net *net, clnet_tensor *x, const char *name,
                                       int planes, int stride, bool downsample, bool attention) {
    const int middle = clnet_scale_width(planes, net->width),
              out = clnet_scale_width(4 * planes, net->width);
    clnet_tensor *y =
        clnet_relu(net->g, clnet__conv_bn(net, x, name, ".conv1", ".bn1", middle, 1, 1));
    y = clnet_relu(net->g, clnet__conv_bn(net, y, name, ".conv2", ".bn2", middle, 3, stride));
    y = clnet__conv_bn(net, y, name, ".conv3", ".bn3", out, 1, 1);
    if (downsample) {
        x = clnet__conv_bn(net, x, name, ".downsample.0", ".downsample.1", out, 1, stride);
    }
    const clnet_attention_residual_desc d = {.name = name};
    y = attention ? clnet_attention_residual(net->g, y, x, &d) : clnet_add(net->g, y, x);
    return clnet_tensor_rename(clnet_relu(net->g, y), name);
}

// Stage 1: conv1, bn1, ReLU; stages 2 to 5: layer1 to layer4.
static void clnet__residual_network(const clnet__net *net, clnet_tensor *x, const char *prefix,
                                    bool attention, clnet_tensor *stage[5]) {
    static const int blocks[4] = {3, 4, 6, 3};
    x = clnet__conv_bn(net, x, prefix, "conv1", "bn1", clnet_scale_width(64, net->width), 7, 2);
    stage[0] = x = clnet_tensor_rename(clnet_relu(net->g, x), clnet__name(prefix, "relu").text);
    const clnet_pool2d_desc pool = {.kernel_size = {3, 3}, .stride = {2, 2}, .padding = {1, 1}};
    x = clnet_tensor_rename(clnet_max_pool2d(net->g, x, &pool),
                            clnet__name(prefix, "maxpool").text);
    for (int i = 0; i < 4; i++) {
        char layer[64], name[80];
        snprintf(layer, sizeof layer, "%slayer%d", prefix, i + 1);
        for (int k = 0; k < blocks[i]; k++) {
            snprintf(name, sizeof name, "%s.%d", layer, k);
            x = clnet__bottleneck(net, x, name, 64 << i, k == 0 && i > 0 ? 2 : 1, k == 0,
                                  attention);
        }
        stage[i + 1] = clnet_tensor_rename(x, layer);
    }
}

static void clnet__resnet50(const clnet__net *net, clnet_tensor *x, const char *prefix,
                            clnet_tensor *stage[5]) {
    clnet__residual_network(net, x, prefix, false, stage);
}

static void clnet__arlnet50(const clnet__net *net, clnet_tensor *x, const char *prefix,
                            clnet_tensor *stage[5]) {
    clnet__residual_network(net, x, prefix, true, stage);
}

// Inception v3 (Szegedy et al. 2016), in torchvision's form, names and order of concatenation,
// without the auxiliary head. Its convolutions are "basic": conv without bias, BN, ReLU.
typedef struct clnet__inception {
    const clnet__net *net;
    const char *prefix; // of the names: "cls.", "cls.Mixed_5b."
} clnet__inception;

static clnet_tensor *clnet__basic_conv(const clnet__inception *in, clnet_tensor *x,
                                       const char *suffix, int channels, int KH, int KW, int stride,
                                       bool padded) {
    const clnet__label name = clnet__name(in->prefix, suffix);
    const clnet__label conv = clnet__name(name.text, ".conv"), bn = clnet__name(name.text, ".bn");
    const clnet_conv2d_desc d = {.out_channels = clnet_scale_width(channels, in->net->width),
                                 .kernel_size = {KH, KW},
                                 .stride = {stride, stride},
                                 .padding = {padded ? KH / 2 : 0, padded ? KW / 2 : 0},
                                 .no_bias = true,
                                 .name = conv.text};
    x = clnet_conv2d(in->net->g, x, &d);
    const clnet_batch_norm_desc b = {.eps = 1e-3, .name = bn.text};
    x = clnet_relu(in->net->g, clnet_batch_norm(in->net->g, x, &b));
    return clnet_tensor_rename(x, name.text);
}

// A convolution inside a block: the size stays with stride 1; stride 2 has no padding.
static clnet_tensor *clnet__branch(const clnet__inception *in, clnet_tensor *x, const char *name,
                                   int channels, int KH, int KW, int stride) {
    return clnet__basic_conv(in, x, name, channels, KH, KW, stride, stride == 1);
}

// The last branch of a block that keeps the size: an average over 3x3, zeros around counted.
static clnet_tensor *clnet__pool_branch(const clnet__inception *in, clnet_tensor *x, int channels) {
    const clnet_pool2d_desc pool = {.kernel_size = {3, 3}, .stride = {1, 1}, .padding = {1, 1}};
    return clnet__branch(in, clnet_avg_pool2d(in->net->g, x, &pool), "branch_pool", channels, 1, 1,
                         1);
}

// Between blocks, and in those that halve the size.
static clnet_tensor *clnet__pool_by_half(const clnet__inception *in, clnet_tensor *x) {
    return clnet_max_pool2d(in->net->g, x,
                            &(clnet_pool2d_desc){.kernel_size = {3, 3}, .stride = {2, 2}});
}

// 35 x 35 of 299: 1x1, 5x5, two 3x3, pooling. channels: of the pooling's branch.
static clnet_tensor *clnet__inception_a(const clnet__inception *in, clnet_tensor *x, int channels) {
    clnet_tensor *y[4] = {clnet__branch(in, x, "branch1x1", 64, 1, 1, 1)};
    y[1] = clnet__branch(in, x, "branch5x5_1", 48, 1, 1, 1);
    y[1] = clnet__branch(in, y[1], "branch5x5_2", 64, 5, 5, 1);
    y[2] = clnet__branch(in, x, "branch3x3dbl_1", 64, 1, 1, 1);
    y[2] = clnet__branch(in, y[2], "branch3x3dbl_2", 96, 3, 3, 1);
    y[2] = clnet__branch(in, y[2], "branch3x3dbl_3", 96, 3, 3, 1);
    y[3] = clnet__pool_branch(in, x, channels);
    return clnet_concat(in->net->g, y, 4);
}

// 35 x 35 to 17 x 17.
static clnet_tensor *clnet__inception_b(const clnet__inception *in, clnet_tensor *x, int unused) {
    (void)unused;
    clnet_tensor *y[3] = {clnet__branch(in, x, "branch3x3", 384, 3, 3, 2)};
    y[1] = clnet__branch(in, x, "branch3x3dbl_1", 64, 1, 1, 1);
    y[1] = clnet__branch(in, y[1], "branch3x3dbl_2", 96, 3, 3, 1);
    y[1] = clnet__branch(in, y[1], "branch3x3dbl_3", 96, 3, 3, 2);
    y[2] = clnet__pool_by_half(in, x);
    return clnet_concat(in->net->g, y, 3);
}

// 17 x 17: 1x1, 7x7 as 1x7 and 7x1, two of these, pooling. channels: between the 7x7 convolutions.
static clnet_tensor *clnet__inception_c(const clnet__inception *in, clnet_tensor *x, int channels) {
    clnet_tensor *y[4] = {clnet__branch(in, x, "branch1x1", 192, 1, 1, 1)};
    y[1] = clnet__branch(in, x, "branch7x7_1", channels, 1, 1, 1);
    y[1] = clnet__branch(in, y[1], "branch7x7_2", channels, 1, 7, 1);
    y[1] = clnet__branch(in, y[1], "branch7x7_3", 192, 7, 1, 1);
    y[2] = clnet__branch(in, x, "branch7x7dbl_1", channels, 1, 1, 1);
    y[2] = clnet__branch(in, y[2], "branch7x7dbl_2", channels, 7, 1, 1);
    y[2] = clnet__branch(in, y[2], "branch7x7dbl_3", channels, 1, 7, 1);
    y[2] = clnet__branch(in, y[2], "branch7x7dbl_4", channels, 7, 1, 1);
    y[2] = clnet__branch(in, y[2], "branch7x7dbl_5", 192, 1, 7, 1);
    y[3] = clnet__pool_branch(in, x, 192);
    return clnet_concat(in->net->g, y, 4);
}

// 17 x 17 to 8 x 8.
static clnet_tensor *clnet__inception_d(const clnet__inception *in, clnet_tensor *x, int unused) {
    (void)unused;
    clnet_tensor *y[3] = {clnet__branch(in, x, "branch3x3_1", 192, 1, 1, 1)};
    y[0] = clnet__branch(in, y[0], "branch3x3_2", 320, 3, 3, 2);
    y[1] = clnet__branch(in, x, "branch7x7x3_1", 192, 1, 1, 1);
    y[1] = clnet__branch(in, y[1], "branch7x7x3_2", 192, 1, 7, 1);
    y[1] = clnet__branch(in, y[1], "branch7x7x3_3", 192, 7, 1, 1);
    y[1] = clnet__branch(in, y[1], "branch7x7x3_4", 192, 3, 3, 2);
    y[2] = clnet__pool_by_half(in, x);
    return clnet_concat(in->net->g, y, 3);
}

// 8 x 8: 1x1, 3x3 as 1x3 beside 3x1, the same behind a 3x3, pooling.
static clnet_tensor *clnet__inception_e(const clnet__inception *in, clnet_tensor *x, int unused) {
    (void)unused;
    clnet_tensor *y[6] = {clnet__branch(in, x, "branch1x1", 320, 1, 1, 1)};
    clnet_tensor *z = clnet__branch(in, x, "branch3x3_1", 384, 1, 1, 1);
    y[1] = clnet__branch(in, z, "branch3x3_2a", 384, 1, 3, 1);
    y[2] = clnet__branch(in, z, "branch3x3_2b", 384, 3, 1, 1);
    z = clnet__branch(in, x, "branch3x3dbl_1", 448, 1, 1, 1);
    z = clnet__branch(in, z, "branch3x3dbl_2", 384, 3, 3, 1);
    y[3] = clnet__branch(in, z, "branch3x3dbl_3a", 384, 1, 3, 1);
    y[4] = clnet__branch(in, z, "branch3x3dbl_3b", 384, 3, 1, 1);
    y[5] = clnet__pool_branch(in, x, 192);
    return clnet_concat(in->net->g, y, 6);
}

// Stages behind Conv2d_2b, Conv2d_4a, Mixed_5d, Mixed_6e and Mixed_7c.
static void clnet__inception_v3(const clnet__net *net, clnet_tensor *x, const char *prefix,
                                clnet_tensor *stage[5]) {
    static const struct {
        const char *name;
        clnet_tensor *(*block)(const clnet__inception *in, clnet_tensor *x, int channels);
        int channels, stage;
    } mixed[] = {{"Mixed_5b", clnet__inception_a, 32, 0},  {"Mixed_5c", clnet__inception_a, 64, 0},
                 {"Mixed_5d", clnet__inception_a, 64, 3},  {"Mixed_6a", clnet__inception_b, 0, 0},
                 {"Mixed_6b", clnet__inception_c, 128, 0}, {"Mixed_6c", clnet__inception_c, 160, 0},
                 {"Mixed_6d", clnet__inception_c, 160, 0}, {"Mixed_6e", clnet__inception_c, 192, 4},
                 {"Mixed_7a", clnet__inception_d, 0, 0},   {"Mixed_7b", clnet__inception_e, 0, 0},
                 {"Mixed_7c", clnet__inception_e, 0, 5}};
    const clnet__inception stem = {net, prefix};
    x = clnet__basic_conv(&stem, x, "Conv2d_1a_3x3", 32, 3, 3, 2, false);
    x = clnet__basic_conv(&stem, x, "Conv2d_2a_3x3", 32, 3, 3, 1, false);
    stage[0] = x = clnet__basic_conv(&stem, x, "Conv2d_2b_3x3", 64, 3, 3, 1, true);
    x = clnet_tensor_rename(clnet__pool_by_half(&stem, x), clnet__name(prefix, "maxpool1").text);
    x = clnet__basic_conv(&stem, x, "Conv2d_3b_1x1", 80, 1, 1, 1, false);
    stage[1] = x = clnet__basic_conv(&stem, x, "Conv2d_4a_3x3", 192, 3, 3, 1, false);
    x = clnet_tensor_rename(clnet__pool_by_half(&stem, x), clnet__name(prefix, "maxpool2").text);
    for (size_t i = 0; i < sizeof mixed / sizeof *mixed; i++) {
        const clnet__label name = clnet__name(prefix, mixed[i].name);
        const clnet__label inside = clnet__name(name.text, ".");
        const clnet__inception in = {net, inside.text};
        x = clnet_tensor_rename(mixed[i].block(&in, x, mixed[i].channels), name.text);
        if (mixed[i].stage) {
            stage[mixed[i].stage - 1] = x;
        }
    }
}

// UNet's encoder (Ronneberger et al. 2015) with padding and batch norm: 2x2 pooling between stages.
static void clnet__unet(const clnet__net *net, clnet_tensor *x, const char *prefix,
                        clnet_tensor *stage[5]) {
    const clnet_pool2d_desc pool = {.kernel_size = {2, 2}};
    for (int i = 0; i < 5; i++) {
        char name[64];
        snprintf(name, sizeof name, "%senc%d", prefix, i + 1);
        x = i ? clnet_max_pool2d(net->g, x, &pool) : x;
        stage[i] = x = clnet__double(net, x, name, clnet_scale_width(64 << i, net->width));
    }
}

// "scale" of squeeze-and-excitation (Hu et al. 2018): x sigmoid(fc2(relu(fc1(GAP(x))))).
static clnet_tensor *clnet__se(const clnet__net *net, clnet_tensor *x, const char *name) {
    if (!x) {
        return NULL;
    }
    const int C = clnet_tensor_size(x, 1);
    const clnet__label first = clnet__name(name, ".fc1"), second = clnet__name(name, ".fc2");
    const clnet_conv2d_desc fc1 = {
        .out_channels = clnet__max(1, C / 16), .kernel_size = {1, 1}, .name = first.text};
    clnet_tensor *s =
        clnet_relu(net->g, clnet_conv2d(net->g, clnet_global_avg_pool(net->g, x), &fc1));
    const clnet_conv2d_desc fc2 = {.out_channels = C, .kernel_size = {1, 1}, .name = second.text};
    s = clnet_sigmoid(net->g, clnet_conv2d(net->g, s, &fc2));
    return clnet_tensor_rename(clnet_scale_channels(net->g, x, s), name);
}

// Brings x to the height and width of `like`.
static clnet_tensor *clnet__resize_like(const clnet__net *net, clnet_tensor *x,
                                        const clnet_tensor *like) {
    if (!x || !like || (x->shape[2] == like->shape[2] && x->shape[3] == like->shape[3])) {
        return x;
    }
    return clnet_upsample_bilinear(net->g, x, like->shape[2], like->shape[3], false);
}

// The fusion module (section 2.3, figure 2) of one stage; out[0] for the classification, out[1] for
// the segmentation.
static void clnet__fuse(const clnet__net *net, clnet_tensor *ec, clnet_tensor *es, const char *name,
                        int channels, clnet_tensor *out[2]) {
    const clnet__label reduce = clnet__name(name, ".reduce.0"),
                       norm = clnet__name(name, ".reduce.1");
    const clnet_conv2d_joined_desc d = {
        .out_channels = channels, .no_bias = true, .name = reduce.text};
    clnet_tensor *x = clnet_conv2d_joined(net->g, ec, es, &d);
    x = clnet_batch_norm(net->g, x, &(clnet_batch_norm_desc){.name = norm.text});
    x = clnet_tensor_rename(clnet_relu(net->g, x), clnet__name(name, ".reduce").text);
    x = clnet__se(net, x, clnet__name(name, ".se").text);
    if (net->per_task) {
        out[0] = clnet__double(net, x, clnet__name(name, ".conv_cls").text, channels);
        out[1] = clnet__double(net, x, clnet__name(name, ".conv_seg").text, channels);
    } else {
        out[0] = out[1] = clnet_tensor_rename(
            clnet__double(net, x, clnet__name(name, ".conv").text, channels), name);
    }
}

// Equation 1: fc of the concatenated averages of the stages that the classification reads, some of
// which are dropped in training.
static clnet_tensor *clnet__classify(const clnet__net *net, clnet_tensor *const *stage, int count,
                                     double dropout, int classes) {
    clnet_tensor *averages[5];
    for (int i = 0; i < count; i++) {
        averages[i] = clnet_global_avg_pool(net->g, stage[i]);
    }
    clnet_tensor *x = count > 1 ? clnet_concat(net->g, averages, count) : averages[0];
    x = dropout > 0 ? clnet_dropout(net->g, x, dropout) : x;
    const clnet_linear_desc fc = {.out_features = classes, .name = "fc"};
    return clnet_linear(net->g, x, &fc);
}

// Equation 4: from the deepest stage upwards, each joined with what is upsampled from below; then one
// channel at the input's size.
static clnet_tensor *clnet__decode(const clnet__net *net, clnet_tensor *const *stage,
                                   const clnet_tensor *image) {
    clnet_tensor *x = stage[4];
    for (int i = 4; i >= 1; i--) {
        char name[32];
        snprintf(name, sizeof name, "dec.dec%d", i);
        clnet_tensor *both[2] = {clnet__resize_like(net, x, stage[i - 1]), stage[i - 1]};
        x = clnet__double(net, clnet_concat(net->g, both, 2), name,
                          clnet_scale_width(32 << i, net->width));
    }
    const clnet_conv2d_desc head = {.out_channels = 1, .kernel_size = {1, 1}, .name = "dec.head"};
    return clnet__resize_like(net, clnet_conv2d(net->g, x, &head), image);
}

typedef struct clnet__encoder {
    const char *name;
    bool classifier;
    void (*append)(const clnet__net *net, clnet_tensor *x, const char *prefix,
                   clnet_tensor *stage[5]);
    int smallest;   // height and width of the input
    double dropout; // before fc, where the encoder stands alone
} clnet__encoder;

// The encoder that a part of a model's name stands for, NULL where it is none of that kind.
static const clnet__encoder *clnet__encoder_of(const char *name, size_t length, bool classifier) {
    static const clnet__encoder all[] = {{"resnet50", true, clnet__resnet50, 32, 0},
                                         {"inception_v3", true, clnet__inception_v3, 75, 0.5},
                                         {"arlnet50", true, clnet__arlnet50, 32, 0},
                                         {"unet", false, clnet__unet, 32, 0},
                                         {"resunet", false, clnet__resnet50, 32, 0}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i].classifier == classifier && strlen(all[i].name) == length &&
            !memcmp(all[i].name, name, length)) {
            return &all[i];
        }
    }
    return NULL;
}

// Splits CLS, SEG or CLS+SEG; false: no such network.
static bool clnet__parse_name(const char *name, const clnet__encoder **cls,
                              const clnet__encoder **seg) {
    const char *plus = strchr(name, '+');
    if (plus) {
        *cls = clnet__encoder_of(name, (size_t)(plus - name), true);
        *seg = clnet__encoder_of(plus + 1, strlen(plus + 1), false);
        return *cls && *seg;
    }
    *cls = clnet__encoder_of(name, strlen(name), true);
    *seg = clnet__encoder_of(name, strlen(name), false);
    return *cls || *seg;
}

// The image as the encoders see it: mirrored and normalised here if it is not normalised already.
static clnet_tensor *clnet__seen_image(clnet_model *m) {
    if (!m->desc.raw_image) {
        return m->image;
    }
    if (m->desc.purpose == CLNET_TRAIN) {
        m->flips = clnet_input_labels(m->graph, "flips", m->desc.batch);
    }
    return clnet_flip(m->graph, m->image, m->flips, &clnet__imagenet);
}

static void clnet__build_network(clnet_model *m, const clnet__encoder *cls,
                                 const clnet__encoder *seg) {
    const clnet__net net = {m->graph, m->desc.width, m->desc.fusion == CLNET_FUSION_PER_TASK};
    clnet_tensor *ec[5] = {NULL}, *es[5] = {NULL}, *for_seg[5], *image = clnet__seen_image(m);
    if (cls) {
        cls->append(&net, image, "cls.", ec);
    }
    if (seg) {
        seg->append(&net, image, "seg.", es);
    }
    for (int i = 0; i < 5; i++) {
        m->stage[i] = cls ? ec[i] : es[i];
        for_seg[i] = es[i];
        if (cls && seg) {
            char name[32];
            clnet_tensor *out[2];
            snprintf(name, sizeof name, "fuse.%d", i);
            clnet__fuse(&net, ec[i], es[i], name, clnet_scale_width(64 << i, net.width), out);
            m->stage[i] = out[0];
            for_seg[i] = out[1];
        }
    }
    if (cls) {
        const bool drop = !seg && m->desc.purpose == CLNET_TRAIN && !m->desc.no_dropout;
        m->logits = clnet__classify(&net, seg ? m->stage : &m->stage[4], seg ? 5 : 1,
                                    drop ? cls->dropout : 0, m->desc.classes);
        clnet_tensor_keep(clnet_tensor_rename(m->logits, "logits"));
    }
    if (seg) {
        m->mask_logits = clnet__decode(&net, for_seg, m->image);
        clnet_tensor_keep(m->mask_logits);
        if (m->mask_logits && strcmp(m->mask_logits->name, "dec.head")) {
            clnet_tensor_rename(m->mask_logits, "mask_logits");
        }
    }
}

// The losses of section 3.1: focal for the classes, focal and Dice for the mask.
static void clnet__build_losses(clnet_model *m) {
    const clnet_recipe *r = &m->recipe;
    const int *size = m->desc.size;
    clnet_tensor *losses[3] = {NULL};
    double weights[3] = {0};
    int count = 0;
    if (m->logits) {
        clnet_focal_loss_desc d = {.gamma = r->focal_gamma};
        memcpy(d.alpha, r->focal_alpha, sizeof d.alpha);
        m->label = clnet_input_labels(m->graph, "label", m->desc.batch);
        m->loss_classification = clnet_focal_loss(m->graph, m->logits, m->label, &d);
        losses[count] = clnet_tensor_rename(m->loss_classification, "loss.classification");
        weights[count++] = r->loss_weights[0];
    }
    if (m->mask_logits) {
        m->mask = clnet_input(m->graph, "mask", m->desc.batch, 1, size[0], size[1]);
        clnet_tensor *mask = m->flips ? clnet_flip(m->graph, m->mask, m->flips, NULL) : m->mask;
        m->loss_focal = clnet_mask_focal_loss(m->graph, m->mask_logits, mask, r->focal_gamma);
        losses[count] = clnet_tensor_rename(m->loss_focal, "loss.focal");
        weights[count++] = r->loss_weights[1];
        m->loss_dice = clnet_dice_loss(m->graph, m->mask_logits, mask, 1);
        losses[count] = clnet_tensor_rename(m->loss_dice, "loss.dice");
        weights[count++] = r->loss_weights[2];
    }
    m->loss = clnet_tensor_rename(clnet_weighted_sum(m->graph, losses, weights, count), "loss");
}

clnet_recipe clnet_paper_recipe(void) {
    return (clnet_recipe){
        .focal_gamma = 2, .loss_weights = {1, 1, 1}, .adam = {.weight_decay = 5e-4}};
}

// Fills in the defaults; the failure is on record where a field is out of range.
static clnet_result clnet__model_defaults(clnet_context *ctx, clnet_model *m,
                                          const clnet_model_desc *desc) {
    clnet_model_desc *d = &m->desc;
    if (desc) {
        *d = *desc;
    }
    const char *name = d->name ? d->name : "resnet50+unet";
    d->classes = clnet__or(d->classes, 3);
    d->width = clnet__or_double(d->width, 1);
    d->size[0] = clnet__or(d->size[0], 224);
    d->size[1] = clnet__or(d->size[1], 224);
    d->batch = clnet__or(d->batch, 1);
    m->recipe = d->recipe ? *d->recipe : clnet_paper_recipe();
    snprintf(m->name, sizeof m->name, "%s", name);
    const clnet__encoder *cls, *seg;
    if (strlen(name) >= sizeof m->name || !clnet__parse_name(name, &cls, &seg)) {
        return clnet__fail(ctx, CLNET_ERROR_ARGUMENT,
                           "model \"%.64s\": unknown; there are resnet50, inception_v3, arlnet50, "
                           "unet, resunet, and one of the first three + one of the last two",
                           name);
    }
    d->name = m->name;
    d->recipe = &m->recipe;
    const int smallest = clnet__max(cls ? cls->smallest : 0, seg ? seg->smallest : 0);
    if (clnet__min(d->size[0], d->size[1]) < smallest ||
        clnet__max(d->size[0], d->size[1]) > 16384) {
        return clnet__fail(ctx, CLNET_ERROR_ARGUMENT,
                           "model %s: a size of %d x %d; needed are %d to 16384", name, d->size[0],
                           d->size[1], smallest);
    }
    if (d->classes < 1 || d->classes > CLNET_MAX_CLASSES || !(d->width > 0) || d->width > 8 ||
        d->batch < 1) {
        return clnet__fail(ctx, CLNET_ERROR_ARGUMENT,
                           "model %s: %d classes (1 to %d), width %g (above 0, at "
                           "most 8), batch %d (at least 1)",
                           name, d->classes, CLNET_MAX_CLASSES, d->width, d->batch);
    }
    return CLNET_OK;
}

static clnet_result clnet__model_build(clnet_model *m, bool load_next) {
    const clnet__encoder *cls, *seg;
    clnet__parse_name(m->name, &cls, &seg);
    m->image = clnet_input(m->graph, "image", m->desc.batch, 3, m->desc.size[0], m->desc.size[1]);
    clnet__build_network(m, cls, seg);
    clnet_build_desc d = {.keep_all = m->desc.keep_all,
                          .no_accumulation = m->desc.no_accumulation,
                          .seed = m->desc.seed,
                          .no_initial_weights = load_next};
    if (m->desc.purpose == CLNET_TRAIN) {
        clnet__build_losses(m);
        m->adam = clnet_adam_create(m->graph, &m->recipe.adam);
        d.loss = m->loss;
    } else if (m->desc.purpose == CLNET_EXPLAIN && m->logits) {
        for (int i = 0; i < 5; i++) {
            clnet_tensor_require_grad(clnet_tensor_keep(m->stage[i]));
        }
        d.loss = m->logits;
        d.no_weight_grad = true;
    }
    if (m->graph && clnet_graph_plan(m->graph, &d, &m->plan) == CLNET_OK && !m->desc.plan_only) {
        clnet_graph_build(m->graph, &d);
    }
    return clnet_context_result(clnet_graph_context(m->graph));
}

static clnet_model *clnet__model_create(clnet_context *ctx, const clnet_model_desc *desc,
                                        bool load_next) {
    clnet_model *m = ctx && ctx->result == CLNET_OK ? clnet__alloc(ctx, sizeof *m) : NULL;
    if (!m) {
        return NULL;
    }
    m->graph = clnet_graph_create(ctx);
    if (!m->graph || clnet__model_defaults(ctx, m, desc) != CLNET_OK ||
        clnet__model_build(m, load_next) != CLNET_OK) {
        clnet_graph_destroy(m->graph);
        clnet__free(ctx, m);
        return NULL;
    }
    return m;
}

clnet_model *clnet_model_create(clnet_context *ctx, const clnet_model_desc *desc) {
    return clnet__model_create(ctx, desc, false);
}

void clnet_model_destroy(clnet_model *model) {
    if (model) {
        clnet_context *ctx = clnet_graph_context(model->graph);
        clnet_graph_destroy(model->graph);
        clnet__free(ctx, model);
    }
}

// >>predict

void clnet_scores(double *scores, const clnet_real *logits, int classes) {
    double top = (double)logits[0], sum = 0;
    for (int k = 1; k < classes; k++) {
        top = (double)logits[k] > top ? (double)logits[k] : top;
    }
    for (int k = 0; k < classes; k++) {
        sum += exp((double)logits[k] - top);
    }
    for (int k = 0; k < classes; k++) {
        scores[k] = exp((double)logits[k] - top) / sum;
    }
}

void clnet_mask_at_size(float *probability, unsigned char *mask, int h, int w, float *values, int H,
                        int W) {
    for (size_t i = 0; i < (size_t)H * (size_t)W; i++) {
        values[i] = (float)clnet__sigmoid((double)values[i]);
    }
    clnet_resize_bilinear(probability, h, w, values, H, W);
    for (size_t i = 0; mask && i < (size_t)h * (size_t)w; i++) {
        mask[i] = probability[i] > 0.5f ? 255 : 0;
    }
}

// The mask of one image, from the network's logits. scratch: H*W floats.
static void clnet__predict_mask(clnet_context *ctx, const clnet_real *logits, int H, int W,
                                float *scratch, int h, int w, clnet_prediction *p) {
    float *probability = p->probability;
    if (!probability) {
        probability = clnet__alloc(ctx, (size_t)h * (size_t)w * sizeof *probability);
    }
    for (size_t i = 0; i < (size_t)H * (size_t)W; i++) {
        scratch[i] = (float)logits[i];
    }
    if (probability) {
        clnet_mask_at_size(probability, p->mask, h, w, scratch, H, W);
    }
    clnet__free(ctx, p->probability ? NULL : probability);
}

clnet_result clnet_predict(clnet_model *m, const unsigned char *rgb, int h, int w,
                           clnet_prediction *p) {
    if (!m) {
        return CLNET_ERROR_ARGUMENT;
    }
    clnet_context *ctx = clnet_graph_context(m->graph);
    if (!rgb || h < 1 || w < 1 || h > 1 << 20 || w > 1 << 20) {
        return clnet__fail(ctx, CLNET_ERROR_ARGUMENT, "predict: %s of %d x %d",
                           rgb ? "an image" : "no image", h, w);
    }
    const int H = m->desc.size[0], W = m->desc.size[1];
    const size_t scratch_floats = clnet_resize_scratch(H, W, h, w, 3),
                 pixels = (size_t)H * (size_t)W;
    float *scratch = clnet__alloc(ctx, scratch_floats * sizeof *scratch);
    float *input = clnet__alloc(ctx, 3 * pixels * sizeof *input);
    clnet_real *values = clnet__alloc(ctx, 3 * pixels * sizeof *values);
    if (ctx->result == CLNET_OK) {
        clnet_image_to_input(input, H, W, rgb, h, w, scratch);
        for (size_t i = 0; i < 3 * pixels; i++) {
            values[i] = (clnet_real)input[i];
        }
        clnet_graph_set_training(m->graph, false);
        clnet_graph_set_batch(m->graph, 1);
        clnet_tensor_set(m->image, values, CLNET_ORDER_MEMORY);
        clnet_graph_forward(m->graph);
    }
    if (m->logits && clnet_tensor_get(m->logits, values, CLNET_ORDER_TORCH) == CLNET_OK) {
        clnet_scores(p->scores, values, m->desc.classes);
    } else {
        memset(p->scores, 0, sizeof p->scores);
    }
    if (m->mask_logits && (p->mask || p->probability) &&
        clnet_tensor_get(m->mask_logits, values, CLNET_ORDER_TORCH) == CLNET_OK) {
        clnet__predict_mask(ctx, values, H, W, input, h, w, p);
    }
    clnet__free(ctx, values);
    clnet__free(ctx, input);
    clnet__free(ctx, scratch);
    return ctx->result;
}

// >>cam

const char *clnet_cam_name(clnet_cam_variant variant) {
    static const char *const names[] = {"paper", "gradcam", "gradcam++"};
    return names[variant];
}

// The weight of one channel, see clnet_cam_variant.
static double clnet__cam_weight(clnet_cam_variant variant, const clnet_real *A, const clnet_real *g,
                                size_t pixels, size_t stride) {
    double sum = 0, total = 0;
    for (size_t i = 0; i < pixels; i++) {
        total += (double)A[i * stride];
        sum += (double)g[i * stride];
    }
    if (variant != CLNET_CAM_GRADCAM_PP) {
        return sum / (double)pixels;
    }
    sum = 0;
    for (size_t i = 0; i < pixels; i++) {
        const double v = (double)g[i * stride], divisor = 2 * v * v + total * v * v * v;
        sum += v > 0 && divisor != 0 ? v * v / divisor * v : 0;
    }
    return sum;
}

// The map of one image: A and g (pixels, C).
static void clnet__cam_map(clnet_cam_variant variant, const clnet_real *A, const clnet_real *g,
                           size_t pixels, size_t C, double *sum, clnet_real *cam) {
    for (size_t i = 0; i < pixels; i++) {
        sum[i] = 0;
    }
    for (size_t k = 0; k < C; k++) {
        const double weight = clnet__cam_weight(variant, A + k, g + k, pixels, C);
        for (size_t i = 0; i < pixels; i++) {
            const double v = weight * (double)A[i * C + k];
            sum[i] += variant == CLNET_CAM_PAPER && v < 0 ? 0 : v;
        }
    }
    for (size_t i = 0; i < pixels; i++) {
        cam[i] = (clnet_real)(sum[i] < 0 ? 0 : sum[i]);
    }
}

// Seeds backward with 1 at each image's class; fills in the classes that are negative.
static clnet_result clnet__cam_backward(clnet_model *m, int *classes) {
    clnet_context *ctx = clnet_graph_context(m->graph);
    if (!m->graph->fresh &&
        clnet_graph_forward(m->graph) != CLNET_OK) { // another map was made before
        return ctx->result;
    }
    const int N = m->logits->shape[0], K = m->desc.classes;
    clnet_real *values = clnet__alloc(ctx, (size_t)N * (size_t)K * sizeof *values);
    if (values && clnet_tensor_get(m->logits, values, CLNET_ORDER_TORCH) == CLNET_OK) {
        for (int n = 0; n < N; n++) {
            clnet_real *z = values + (size_t)n * (size_t)K;
            int top = 0;
            for (int k = 1; k < K; k++) {
                top = z[k] > z[top] ? k : top;
            }
            classes[n] = classes[n] < 0 ? top : clnet__min(classes[n], K - 1);
            for (int k = 0; k < K; k++) {
                z[k] = (clnet_real)(k == classes[n]);
            }
        }
        clnet_tensor_set_grad(m->logits, values, CLNET_ORDER_TORCH);
        clnet_graph_backward(m->graph);
    }
    clnet__free(ctx, values);
    return ctx->result;
}

clnet_result clnet_cam(clnet_model *m, clnet_cam_variant variant, int stage, int *classes,
                       clnet_real *cam) {
    if (!m) {
        return CLNET_ERROR_ARGUMENT;
    }
    clnet_context *ctx = clnet_graph_context(m->graph);
    if (m->desc.purpose != CLNET_EXPLAIN || !m->logits || stage < 1 || stage > 5) {
        return clnet__fail(ctx, CLNET_ERROR_ARGUMENT,
                           "cam: needs a model with classification, made for "
                           "CLNET_EXPLAIN, and a stage of 1 to 5 (found %d)",
                           stage);
    }
    clnet_tensor *A = m->stage[stage - 1];
    const size_t count = clnet_tensor_count(A), pixels = clnet__pixels(A), C = (size_t)A->shape[1];
    clnet_real *values = clnet__alloc(ctx, count * sizeof *values),
               *slopes = clnet__alloc(ctx, count * sizeof *slopes);
    double *sum = clnet__alloc(ctx, pixels * sizeof *sum);
    if (ctx->result == CLNET_OK && clnet__cam_backward(m, classes) == CLNET_OK &&
        clnet_tensor_get(A, values, CLNET_ORDER_MEMORY) == CLNET_OK &&
        clnet_tensor_get_grad(A, slopes, CLNET_ORDER_MEMORY) == CLNET_OK) {
        for (size_t n = 0; n < (size_t)A->shape[0]; n++) {
            clnet__cam_map(variant, values + n * pixels * C, slopes + n * pixels * C, pixels, C,
                           sum, cam + n * pixels);
        }
    }
    clnet__free(ctx, sum);
    clnet__free(ctx, slopes);
    clnet__free(ctx, values);
    return ctx->result;
}

// >>checkpoints
// Weights in files: what a model's file holds, reading and writing it.

// One tensor of a model's file: a weight, one of its moments, or a BN's num_batches_tracked.
typedef struct clnet__entry {
    clnet_model *model;
    clnet_tensor *weight;
    int what; // -1: the weight; 0, 1: that moment; 2: num_batches_tracked
    char name[288];
} clnet__entry;

enum { CLNET__ENTRY_WEIGHT = -1, CLNET__ENTRY_BATCHES = 2 };

static clnet_dtype clnet__real_dtype(void) {
    return sizeof(clnet_real) == 8 ? CLNET_F64 : CLNET_F32;
}

// Lists the tensors of a model's file. The caller frees the list.
static clnet__entry *clnet__entries(clnet_model *m, bool optimiser, size_t *count) {
    clnet_context *ctx = clnet_graph_context(m->graph);
    const int weights = clnet_graph_weights(m->graph);
    clnet__entry *list = clnet__alloc(ctx, 3 * (size_t)weights * sizeof *list);
    *count = 0;
    for (int i = 0; list && i < weights; i++) {
        clnet_tensor *t = clnet_graph_weight(m->graph, i);
        clnet__entry *e = &list[(*count)++];
        *e = (clnet__entry){m, t, CLNET__ENTRY_WEIGHT, ""};
        snprintf(e->name, sizeof e->name, "%s", t->name);
        const size_t stem = strlen(t->name) - strlen("running_var");
        if (t->role == CLNET_ROLE_BUFFER && !strcmp(t->name + stem, "running_var")) {
            e = &list[(*count)++];
            *e = (clnet__entry){m, t, CLNET__ENTRY_BATCHES, ""};
            snprintf(e->name, sizeof e->name, "%.*snum_batches_tracked", (int)stem, t->name);
        }
        for (int k = 0; optimiser && t->role == CLNET_ROLE_PARAMETER && k < 2; k++) {
            e = &list[(*count)++];
            *e = (clnet__entry){m, t, k, ""};
            snprintf(e->name, sizeof e->name, "optimizer.%s.%s", k ? "exp_avg_sq" : "exp_avg",
                     t->name);
        }
    }
    return list;
}

static void clnet__write_u64(unsigned char *bytes, uint64_t value) {
    for (int i = 0; i < 8; i++) {
        bytes[i] = (unsigned char)(value >> 8 * i);
    }
}

static clnet_result clnet__entry_fill(void *user, void *bytes) {
    const clnet__entry *e = user;
    clnet_context *ctx = clnet_graph_context(e->model->graph);
    if (e->what == CLNET__ENTRY_BATCHES) {
        clnet__write_u64(bytes, e->model->graph->batches);
        return CLNET_OK;
    }
    const size_t count = clnet_tensor_count(e->weight);
    clnet_real *values = clnet__alloc(ctx, count * sizeof *values);
    if (values) {
        if (e->what == CLNET__ENTRY_WEIGHT) {
            clnet_tensor_get(e->weight, values, CLNET_ORDER_TORCH);
        } else {
            clnet_adam_get(e->model->adam, e->what, e->weight, values, CLNET_ORDER_TORCH);
        }
        clnet_encode(bytes, values, count, clnet__real_dtype());
    }
    clnet__free(ctx, values);
    return ctx->result;
}

static clnet_file_item clnet__entry_item(clnet__entry *e) {
    clnet_file_item item = {
        .name = e->name, .dtype = CLNET_I64, .fill = clnet__entry_fill, .user = e};
    if (e->what != CLNET__ENTRY_BATCHES) {
        item.dtype = clnet__real_dtype();
        item.rank = e->weight->rank;
        for (int i = 0; i < item.rank; i++) {
            item.shape[i] = (uint64_t)e->weight->shape[i];
        }
    }
    return item;
}

// The network as metadata: name, classes, width, size and fusion, as clnet_model_describe reads them.
typedef struct clnet__description {
    char classes[16], width[32], size[32], steps[24], step[24], seed[24];
} clnet__description;

enum { CLNET__DESCRIPTION_PAIRS = 10 };
static size_t clnet__describe(const clnet_model *m, bool optimiser, clnet__description *text,
                              clnet_file_pair *pairs) {
    snprintf(text->classes, sizeof text->classes, "%d", m->desc.classes);
    snprintf(text->width, sizeof text->width, "%.17g", m->desc.width);
    snprintf(text->size, sizeof text->size, "%d,%d", m->desc.size[0], m->desc.size[1]);
    size_t n = 0;
    pairs[n++] = (clnet_file_pair){"format", "pt"};
    pairs[n++] = (clnet_file_pair){"clnet.model", m->name};
    pairs[n++] = (clnet_file_pair){"clnet.classes", text->classes};
    pairs[n++] = (clnet_file_pair){"clnet.width", text->width};
    pairs[n++] = (clnet_file_pair){"clnet.size", text->size};
    pairs[n++] = (clnet_file_pair){"clnet.fusion",
                                   m->desc.fusion == CLNET_FUSION_PER_TASK ? "per-task" : "shared"};
    if (optimiser) {
        snprintf(text->steps, sizeof text->steps, "%llu",
                 (unsigned long long)clnet_adam_steps(m->adam));
        snprintf(text->step, sizeof text->step, "%llu", (unsigned long long)m->graph->step);
        snprintf(text->seed, sizeof text->seed, "%llu", (unsigned long long)m->graph->seed);
        pairs[n++] = (clnet_file_pair){"clnet.adam_steps", text->steps};
        pairs[n++] = (clnet_file_pair){"clnet.step", text->step};
        pairs[n++] = (clnet_file_pair){"clnet.seed", text->seed};
    }
    return n;
}

static clnet_result clnet__model_write(clnet_model *m, const char *path, bool optimiser,
                                       const clnet_file_pair *more, size_t more_count) {
    if (!m) {
        return CLNET_ERROR_ARGUMENT;
    }
    clnet_context *ctx = clnet_graph_context(m->graph);
    if (clnet__ready(m->graph) != CLNET_OK || (optimiser && !m->adam)) {
        return clnet__fail(ctx, CLNET_ERROR_ARGUMENT, "%s: the model has no optimiser to save",
                           path);
    }
    if (!clnet__finite(m->graph, &m->graph->parameters) ||
        !clnet__finite(m->graph, &m->graph->buffers)) {
        return clnet__fail(ctx, CLNET_ERROR_NONFINITE, "%s: not written: a weight is not finite",
                           path);
    }
    size_t count;
    clnet__entry *entries = clnet__entries(m, optimiser, &count);
    clnet_file_item *items = clnet__alloc(ctx, count * sizeof *items);
    clnet_file_pair *pairs =
        clnet__alloc(ctx, (CLNET__DESCRIPTION_PAIRS + more_count) * sizeof *pairs);
    if (entries && items && pairs) {
        clnet__description text;
        const size_t own = clnet__describe(m, optimiser, &text, pairs);
        for (size_t i = 0; i < more_count; i++) {
            pairs[own + i] = more[i];
        }
        for (size_t i = 0; i < count; i++) {
            items[i] = clnet__entry_item(&entries[i]);
        }
        clnet_safetensors_write(ctx, path, items, count, pairs, own + more_count);
    }
    clnet__free(ctx, pairs);
    clnet__free(ctx, items);
    clnet__free(ctx, entries);
    return ctx->result;
}

clnet_result clnet_model_save(clnet_model *m, const char *path) {
    return clnet__model_write(m, path, false, NULL, 0);
}

clnet_result clnet_checkpoint_save(clnet_model *m, const char *path, const clnet_file_pair *more,
                                   size_t count) {
    return clnet__model_write(m, path, true, more, count);
}

// "(64,3,7,7)" of a tensor in a file, or of one in the model.
static clnet__label clnet__shape_text(int rank, const uint64_t *in_file, const int *in_model) {
    clnet__label t = {"("};
    for (int i = 0; i < rank; i++) {
        const size_t used = strlen(t.text);
        snprintf(t.text + used, sizeof t.text - used, "%s%llu", i ? "," : "",
                 in_file ? (unsigned long long)in_file[i] : (unsigned long long)in_model[i]);
    }
    const size_t used = strlen(t.text);
    snprintf(t.text + used, sizeof t.text - used, ")");
    return t;
}

// What does not fit between a file and a model, as a growing sentence.
typedef struct clnet__mismatch {
    size_t missing, unexpected, misshaped;
    char names[3500];
} clnet__mismatch;

static void clnet__mismatch_add(clnet__mismatch *m, size_t *counter, const char *what,
                                const char *name, const char *detail) {
    const size_t used = strlen(m->names);
    (*counter)++;
    if (used + strlen(what) + strlen(name) + strlen(detail) + 8 < sizeof m->names) {
        snprintf(m->names + used, sizeof m->names - used, "; %s %s%s", what, name, detail);
    }
}

static bool clnet__begins(const char *text, const char *with) {
    return !strncmp(text, with, strlen(with));
}

// What an encoder has and torchvision's files do not: ARLNet50's alphas, which ResNet-50 lacks.
static bool clnet__entry_kept(const clnet__entry *e) {
    const char *last = strrchr(e->name, '.');
    return e->what == CLNET__ENTRY_WEIGHT && last && !strcmp(last, ".alpha");
}

// What a file may hold beyond the tensors that are looked for: the optimiser's, or a classifier's heads.
static bool clnet__left_out(const char *name, bool encoder) {
    return encoder ? clnet__begins(name, "fc.") || clnet__begins(name, "AuxLogits.")
                   : clnet__begins(name, "optimizer.");
}

// Does an entry of the model stand in the file, with its shape and a type that can be read?
static bool clnet__entry_check(const clnet__entry *e, const clnet_tensor_file *f, bool encoder,
                               clnet__mismatch *bad) {
    clnet_file_tensor t;
    if (!clnet_tensor_file_find(f, e->name, &t)) {
        // PyTorch before 0.4.1 did not write num_batches_tracked.
        if (e->what != CLNET__ENTRY_BATCHES && !(encoder && clnet__entry_kept(e))) {
            clnet__mismatch_add(bad, &bad->missing, "missing", e->name, "");
        }
        return false;
    }
    bool same;
    char detail[320];
    if (e->what == CLNET__ENTRY_BATCHES) {
        same = t.dtype == CLNET_I64 && t.rank == 0;
        snprintf(detail, sizeof detail, ": %s %.127s in the file, I64 () in the network",
                 clnet_dtype_name(t.dtype), clnet__shape_text(t.rank, t.shape, NULL).text);
    } else {
        same = t.rank == e->weight->rank;
        for (int i = 0; same && i < t.rank; i++) {
            same = t.shape[i] == (uint64_t)e->weight->shape[i];
        }
        snprintf(detail, sizeof detail, ": %.127s in the file, %.127s in the network",
                 clnet__shape_text(t.rank, t.shape, NULL).text,
                 clnet__shape_text(e->weight->rank, NULL, e->weight->shape).text);
    }
    if (!same) {
        clnet__mismatch_add(bad, &bad->misshaped, "mis-shaped", e->name, detail);
    }
    return same;
}

static int clnet__compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

// Compares all names of the model, or of one encoder, with all of the file before anything is read.
static clnet_result clnet__check_names(clnet_model *m, clnet_tensor_file *f, const char *path,
                                       const clnet__entry *entries, size_t count, bool encoder) {
    clnet_context *ctx = clnet_graph_context(m->graph);
    const size_t in_file = clnet_tensor_file_count(f);
    clnet__mismatch *bad = clnet__alloc(ctx, sizeof *bad);
    const char **known = clnet__alloc(ctx, (count + 1) * sizeof *known);
    for (size_t i = 0; bad && known && i < count; i++) {
        clnet__entry_check(&entries[i], f, encoder, bad);
        known[i] = entries[i].name;
    }
    if (bad && known) {
        qsort(known, count, sizeof *known, clnet__compare_names);
    }
    for (size_t i = 0; bad && known && i < in_file; i++) {
        clnet_file_tensor t = {0};
        clnet_tensor_file_at(f, i, &t);
        if (!clnet__left_out(t.name, encoder) &&
            !bsearch(&t.name, known, count, sizeof *known, clnet__compare_names)) {
            clnet__mismatch_add(bad, &bad->unexpected, "unexpected", t.name,
                                clnet__shape_text(t.rank, t.shape, NULL).text);
        }
    }
    if (bad && bad->missing + bad->unexpected + bad->misshaped) {
        clnet__fail(ctx, CLNET_ERROR_MISMATCH,
                    "%s: not the weights of %s%s: %zu missing, %zu unexpected, %zu "
                    "mis-shaped%s",
                    path, encoder ? "an encoder of " : "", m->name, bad->missing, bad->unexpected,
                    bad->misshaped, bad->names);
    }
    clnet__free(ctx, known);
    clnet__free(ctx, bad);
    return ctx->result;
}

// Reads one entry of the file into `values`, which has room for it.
static clnet_result clnet__entry_read(const clnet__entry *e, clnet_tensor_file *f, const char *path,
                                      clnet_real *values) {
    clnet_context *ctx = clnet_graph_context(e->model->graph);
    clnet_file_tensor t;
    if (!clnet_tensor_file_find(f, e->name, &t)) {
        return ctx->result;
    }
    if (e->what == CLNET__ENTRY_BATCHES) {
        unsigned char bytes[8] = {0};
        clnet_tensor_file_read(f, &t, bytes);
        e->model->graph->batches = 0;
        for (int i = 7; i >= 0; i--) {
            e->model->graph->batches = e->model->graph->batches << 8 | bytes[i];
        }
        return ctx->result;
    }
    if (clnet_tensor_file_read_real(f, &t, values) != CLNET_OK) {
        return ctx->result;
    }
    for (size_t i = 0; i < clnet_tensor_count(e->weight); i++) {
        if (!isfinite(values[i])) {
            return clnet__fail(ctx, CLNET_ERROR_NONFINITE, "%s: %s[%zu] is not finite", path,
                               e->name, i);
        }
    }
    return e->what == CLNET__ENTRY_WEIGHT
               ? clnet_tensor_set(e->weight, values, CLNET_ORDER_TORCH)
               : clnet_adam_set(e->model->adam, e->what, e->weight, values, CLNET_ORDER_TORCH);
}

// A number of decimal digits in a file's metadata.
static bool clnet__metadata_u64(const clnet_tensor_file *f, const char *key, uint64_t *value) {
    const char *text = clnet_tensor_file_metadata(f, key);
    if (!text || !*text || strlen(text) > 19 || strspn(text, "0123456789") != strlen(text)) {
        return false;
    }
    *value = strtoull(text, NULL, 10);
    return true;
}

static clnet_result clnet__model_read(clnet_model *m, const char *path, bool optimiser) {
    if (!m) {
        return CLNET_ERROR_ARGUMENT;
    }
    clnet_context *ctx = clnet_graph_context(m->graph);
    if (clnet__ready(m->graph) != CLNET_OK || (optimiser && !m->adam)) {
        return clnet__fail(ctx, CLNET_ERROR_ARGUMENT, "%s: the model has no optimiser to load",
                           path);
    }
    clnet_tensor_file *f = clnet_tensor_file_open(ctx, path);
    uint64_t steps = 0, step = 0, seed = 0;
    if (f && optimiser &&
        !(clnet__metadata_u64(f, "clnet.adam_steps", &steps) &&
          clnet__metadata_u64(f, "clnet.step", &step) &&
          clnet__metadata_u64(f, "clnet.seed", &seed))) {
        clnet__fail(ctx, CLNET_ERROR_METADATA,
                    "%s: not a checkpoint: clnet.adam_steps, clnet.step or clnet.seed is "
                    "missing or no number",
                    path);
    }
    size_t count = 0, largest = 1;
    clnet__entry *entries = f ? clnet__entries(m, optimiser, &count) : NULL;
    for (size_t i = 0; entries && i < count; i++) {
        const size_t values = clnet_tensor_count(entries[i].weight);
        largest = values > largest ? values : largest;
    }
    if (entries && ctx->result == CLNET_OK &&
        clnet__check_names(m, f, path, entries, count, false) == CLNET_OK) {
        clnet_real *values = clnet__alloc(ctx, largest * sizeof *values);
        for (size_t i = 0; values && i < count && ctx->result == CLNET_OK; i++) {
            clnet__entry_read(&entries[i], f, path, values);
        }
        clnet__free(ctx, values);
    }
    if (ctx->result == CLNET_OK && optimiser) {
        m->adam->steps = steps;
        m->graph->step = step;
        m->graph->seed = seed;
    }
    clnet__free(ctx, entries);
    clnet_tensor_file_close(f);
    return ctx->result;
}

clnet_result clnet_model_load(clnet_model *m, const char *path) {
    return clnet__model_read(m, path, false);
}
clnet_result clnet_checkpoint_load(clnet_model *m, const char *path) {
    return clnet__model_read(m, path, true);
}

// The entries of one encoder, named as in a file of its own; returns how many.
static size_t clnet__encoder_entries(clnet__entry *entries, size_t count, const char *encoder) {
    const size_t length = strlen(encoder);
    const bool known = !strcmp(encoder, "cls") || !strcmp(encoder, "seg");
    size_t kept = 0;
    for (size_t i = 0; known && i < count; i++) {
        if (clnet__begins(entries[i].name, encoder) && entries[i].name[length] == '.') {
            entries[kept] = entries[i];
            memmove(entries[kept].name, entries[i].name + length + 1,
                    strlen(entries[i].name + length));
            kept++;
        }
    }
    return kept;
}

// torchvision's Inception v3 sees 2 v - 1 of a value v in 0..1, clnet's x = (v - mean) / std, so that
// 2 v - 1 = s x + t with s = 2 std, t = 2 mean - 1 in each channel. The first convolution has no
// padding, so t adds the same number everywhere, sum of w t, which its batch norm takes off the mean:
// w becomes w s and running_mean becomes running_mean - sum of w t. w (OC,3,KH,KW).
static clnet_result clnet__fold_input(clnet_tensor *weight, clnet_tensor *running_mean) {
    clnet_context *ctx = weight->graph->ctx;
    const size_t OC = (size_t)weight->shape[0], taps = clnet__pixels(weight);
    clnet_real *w = clnet__alloc(ctx, clnet_tensor_count(weight) * sizeof *w);
    clnet_real *mean = clnet__alloc(ctx, OC * sizeof *mean);
    if (w && mean && clnet_tensor_get(weight, w, CLNET_ORDER_TORCH) == CLNET_OK &&
        clnet_tensor_get(running_mean, mean, CLNET_ORDER_TORCH) == CLNET_OK) {
        for (size_t oc = 0; oc < OC; oc++) {
            double shift = 0;
            for (size_t i = 0; i < 3 * taps; i++) {
                clnet_real *at = &w[oc * 3 * taps + i];
                shift += (double)*at * (2 * clnet__imagenet.mean[i / taps] - 1);
                *at = (clnet_real)((double)*at * 2 * clnet__imagenet.std[i / taps]);
            }
            mean[oc] = (clnet_real)((double)mean[oc] - shift);
        }
        clnet_tensor_set(weight, w, CLNET_ORDER_TORCH);
        clnet_tensor_set(running_mean, mean, CLNET_ORDER_TORCH);
    }
    clnet__free(ctx, mean);
    clnet__free(ctx, w);
    return ctx->result;
}

// Reads the entries, but for the count of batches, and folds Inception's input.
static clnet_result clnet__encoder_read(clnet_model *m, clnet_tensor_file *f, const char *path,
                                        const clnet__entry *entries, size_t count,
                                        clnet_pretrained *counts) {
    clnet_context *ctx = clnet_graph_context(m->graph);
    clnet_tensor *weight = NULL, *mean = NULL;
    for (size_t i = 0; i < count && ctx->result == CLNET_OK; i++) {
        const clnet__entry *e = &entries[i];
        if (e->what != CLNET__ENTRY_WEIGHT) {
            continue;
        }
        clnet_file_tensor t;
        clnet_real *values = clnet__alloc(ctx, clnet_tensor_count(e->weight) * sizeof *values);
        if (values && clnet_tensor_file_find(f, e->name, &t)) {
            clnet__entry_read(e, f, path, values);
            counts->loaded++;
        }
        clnet__free(ctx, values);
        weight = strcmp(e->name, "Conv2d_1a_3x3.conv.weight") ? weight : e->weight;
        mean = strcmp(e->name, "Conv2d_1a_3x3.bn.running_mean") ? mean : e->weight;
    }
    return weight && mean && ctx->result == CLNET_OK ? clnet__fold_input(weight, mean)
                                                     : ctx->result;
}

clnet_result clnet_model_load_pretrained(clnet_model *m, const char *encoder, const char *path,
                                         clnet_pretrained *counts) {
    if (!m) {
        return CLNET_ERROR_ARGUMENT;
    }
    clnet_context *ctx = clnet_graph_context(m->graph);
    clnet_pretrained found = {0};
    size_t count = 0;
    clnet__entry *entries =
        clnet__ready(m->graph) == CLNET_OK ? clnet__entries(m, false, &count) : NULL;
    count = entries ? clnet__encoder_entries(entries, count, encoder) : 0;
    if (entries && count == 0) {
        clnet__fail(ctx, CLNET_ERROR_ARGUMENT, "model %s: has no encoder \"%.16s\" for %s", m->name,
                    encoder, path);
    }
    clnet_tensor_file *f = count ? clnet_tensor_file_open(ctx, path) : NULL;
    if (f && clnet__check_names(m, f, path, entries, count, true) == CLNET_OK) {
        clnet_file_tensor t = {.name = ""};
        for (size_t i = 0; i < clnet_tensor_file_count(f); i++) {
            clnet_tensor_file_at(f, i, &t);
            found.left_out += clnet__left_out(t.name, true);
        }
        clnet__encoder_read(m, f, path, entries, count, &found);
    }
    clnet_tensor_file_close(f);
    clnet__free(ctx, entries);
    if (counts) {
        *counts = found;
    }
    return ctx->result;
}

// "224,224", two numbers of up to five digits.
static bool clnet__parse_size(const char *text, int size[2]) {
    for (int i = 0; i < 2; i++) {
        const size_t digits = text ? strspn(text, "0123456789") : 0;
        if (digits < 1 || digits > 5 || text[digits] != (i ? 0 : ',')) {
            return false;
        }
        size[i] = (int)strtol(text, NULL, 10);
        text += digits + 1;
    }
    return true;
}

clnet_result clnet_model_describe(clnet_context *ctx, const char *path, clnet_model_desc *desc,
                                  char name[32]) {
    clnet_tensor_file *f = clnet_tensor_file_open(ctx, path);
    if (!f) {
        return clnet_context_result(ctx);
    }
    memset(desc, 0, sizeof *desc);
    const char *model = clnet_tensor_file_metadata(f, "clnet.model");
    const char *width = clnet_tensor_file_metadata(f, "clnet.width");
    const char *fusion = clnet_tensor_file_metadata(f, "clnet.fusion");
    uint64_t classes = 0;
    char *end = NULL;
    desc->width = width ? strtod(width, &end) : 0;
    if (!model || strlen(model) > 31 || !fusion || !end || end == width || *end ||
        !clnet__metadata_u64(f, "clnet.classes", &classes) || classes > CLNET_MAX_CLASSES ||
        !clnet__parse_size(clnet_tensor_file_metadata(f, "clnet.size"), desc->size)) {
        clnet__fail(ctx, CLNET_ERROR_METADATA,
                    "%s: does not say which network it belongs to (metadata clnet.model, "
                    "clnet.classes, clnet.width, clnet.size, clnet.fusion)",
                    path);
    } else {
        snprintf(name, 32, "%s", model);
        desc->name = name;
        desc->classes = (int)classes;
        desc->fusion = strcmp(fusion, "per-task") ? CLNET_FUSION_SHARED : CLNET_FUSION_PER_TASK;
    }
    clnet_tensor_file_close(f);
    return clnet_context_result(ctx);
}

clnet_model *clnet_model_open(clnet_context *ctx, const char *path) {
    clnet_model_desc desc;
    char name[32];
    if (!ctx || clnet_model_describe(ctx, path, &desc, name) != CLNET_OK) {
        return NULL;
    }
    clnet_model *m = clnet__model_create(ctx, &desc, true);
    if (m && clnet_model_load(m, path) != CLNET_OK) {
        clnet_model_destroy(m);
        return NULL;
    }
    return m;
}

#endif // CLNET_IMPLEMENTATION

// license
//
// MIT License
//
// Copyright (c) 2026 The clnet authors
//
// Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
// associated documentation files (the "Software"), to deal in the Software without restriction,
// including without limitation the rights to use, copy, modify, merge, publish, distribute,
// sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
// furnished to do so, subject to the following conditions:
//
// The above copyright notice and this permission notice shall be included in all copies or
// substantial portions of the Software.
//
// THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
// NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
// NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
// DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT
// OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
