"""Makes ops.safetensors: what PyTorch gives for every operation, forward and backward, on small odd shapes.

    python3 make_ops.py         needs torch and numpy from PyPI; writes beside this script

A case is a set of tensors named CASE/PART, and one entry of the metadata: key CASE, value the operation and its
parameters as words, such as "conv2d stride=2,1 padding=1,0 dilation=1,1 groups=1" (pairs are height, width). Tensors are
F32 in PyTorch's order (N,C,H,W); class labels are I64. The parts:

    x, w, b         input, weight and bias of operations with one input (no b: without bias)
    in0, in1, ..    inputs of operations with several
    y, dy           output and upstream gradient, random and of y's shape
    dx, dw, db, din0, ..    gradients

operation           words                                           more parts, remarks
conv2d              stride padding dilation groups                  w (OC,IC/groups,KH,KW)
linear                                                              x (N,IC), w (OC,IC)
batch_norm          training=0|1 eps momentum                       running_mean, running_var before; after a training
                                                                    pass: running_mean_after, running_var_after
relu sigmoid                                                        relu holds an exact 0, whose gradient is 0
softmax             axis                                            axis of (N,C,H,W)
max_pool2d          kernel stride padding dilation                  x has ties: the first maximum takes the gradient
avg_pool2d          kernel stride padding count_include_pad=0|1
global_avg_pool                                                     y (N,C,1,1)
bilinear            size align_corners=0|1
concat              axis                                            in0, in1, ..
add                                                                 in0, in1
gate                                                                in0 (N,C,H,W) times in1 (N,C,1,1)
attention                                                           in0 + in1 + w S(in0) in1, w (1), S the softmax over
                                                                    the pixels of each channel
focal_softmax       gamma                                           x logits (N,K), target I64 (N); y, dy of rank 0
focal_sigmoid       gamma                                           x logits, target (N,1,H,W) of 0 and 1
dice                                                                the same
adam adamw          lr beta1 beta2 eps weight_decay                 p (n), g (steps,n): a parameter and its gradients;
                                                                    p_after (steps,n); exp_avg, exp_avg_sq (n) at the end
resize_antialias    size                                            x of bytes 0 .. 255 as floats; no gradient

Everything is computed in float64 from the F32 inputs and rounded to F32 at the end, so that the error found is that of
the program under test alone. The two resizes are the exception: PyTorch computes their coordinates in the type of the
data, which is part of what is to be matched, so they are computed in float32.

Each case draws from its own generator, seeded by its name, so a new case leaves the others as they are.
"""

import os
import zlib

import torch
import torch.nn.functional as F

from networks import classification_loss, dice_loss, focal_loss
from tensors import save_tensors

HERE = os.path.dirname(os.path.abspath(__file__))
TENSORS, WORDS = {}, {}


class Case:
    """Collects the tensors of one case; `computed` is the type that PyTorch computes in."""

    def __init__(self, name, operation, computed=torch.float64, **words):
        self.name, self.computed = name, computed
        self.generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        WORDS[name] = " ".join([operation] + [f"{key}={self.word(value)}" for key, value in words.items()])

    @staticmethod
    def word(value):
        return ",".join(str(v) for v in value) if isinstance(value, tuple) else str(value)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def uniform(self, *shape):
        return torch.rand(shape, generator=self.generator)

    def put(self, **parts):
        for part, value in parts.items():
            value = value.detach()
            TENSORS[f"{self.name}/{part}"] = (value.float() if value.is_floating_point() else value).contiguous()

    def differentiate(self, function, **inputs):
        """Stores inputs, y = function(inputs), a random dy, and the gradient of every input."""
        self.put(**inputs)
        leaves = {part: value.to(self.computed).requires_grad_() for part, value in inputs.items()}
        y = function(**leaves)
        dy = self.normal(*y.shape)
        gradients = torch.autograd.grad(y, list(leaves.values()), dy.to(self.computed))
        self.put(y=y, dy=dy, **{f"d{part}": g for part, g in zip(leaves, gradients)})


def conv2d(name, x, oc, kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, bias=True):
    words = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    case = Case(name, "conv2d", **words)
    inputs = {"x": case.normal(*x), "w": case.normal(oc, x[1] // groups, *kernel)}
    if bias:
        inputs["b"] = case.normal(oc)
    case.differentiate(lambda x, w, b=None: F.conv2d(x, w, b, **words), **inputs)


def linear(name, x, oc, bias=True):
    case = Case(name, "linear")
    inputs = {"x": case.normal(*x), "w": case.normal(oc, x[1])}
    if bias:
        inputs["b"] = case.normal(oc)
    case.differentiate(lambda x, w, b=None: F.linear(x, w, b), **inputs)


def batch_norm(name, x, training, mean=0.0, eps=1e-5, momentum=0.1):
    case = Case(name, "batch_norm", training=int(training), eps=eps, momentum=momentum)
    channels = x[1]
    before = {"running_mean": case.normal(channels), "running_var": 0.5 + case.uniform(channels)}
    case.put(**before)
    after = {key: value.to(case.computed) for key, value in before.items()}
    case.differentiate(
        lambda x, w, b: F.batch_norm(x, after["running_mean"], after["running_var"], w, b, training, momentum, eps),
        x=mean + 2 * case.normal(*x), w=1 + case.normal(channels) / 2, b=case.normal(channels))
    if training:
        case.put(**{f"{key}_after": value for key, value in after.items()})


def pointwise(name, operation, function, x, scale=1.0, **words):
    case = Case(name, operation, **words)
    values = scale * case.normal(*x)
    values.view(-1)[0] = 0.0
    case.differentiate(lambda x: function(x), x=values)


def max_pool2d(name, x, kernel, stride, padding=(0, 0), dilation=(1, 1)):
    case = Case(name, "max_pool2d", kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    case.differentiate(lambda x: F.max_pool2d(x, kernel, stride, padding, dilation),
                       x=(2 * case.normal(*x)).round())


def avg_pool2d(name, x, kernel, stride, padding, count_include_pad):
    case = Case(name, "avg_pool2d", kernel=kernel, stride=stride, padding=padding,
                count_include_pad=int(count_include_pad))
    case.differentiate(
        lambda x: F.avg_pool2d(x, kernel, stride, padding, count_include_pad=count_include_pad), x=case.normal(*x))


def bilinear(name, x, size, align_corners=False):
    case = Case(name, "bilinear", torch.float32, size=size, align_corners=int(align_corners))
    case.differentiate(lambda x: F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners),
                       x=case.normal(*x))


def several(name, operation, function, *shapes, **words):
    case = Case(name, operation, **words)
    case.differentiate(lambda **inputs: function(*inputs.values()),
                       **{f"in{i}": case.normal(*shape) for i, shape in enumerate(shapes)})


def attention(name, shape, scale=1.0):
    case = Case(name, "attention")
    case.differentiate(
        lambda in0, in1, w: in0 + in1 + w * F.softmax(in0.flatten(2), dim=2).view(in0.shape) * in1,
        in0=scale * case.normal(*shape), in1=case.normal(*shape), w=case.normal(1))


def focal_softmax(name, x, gamma, scale=2.0):
    case = Case(name, "focal_softmax", gamma=gamma)
    target = torch.randint(x[1], (x[0],), generator=case.generator)
    case.put(target=target)
    case.differentiate(lambda x: classification_loss(x, target, gamma), x=scale * case.normal(*x))


def mask_loss(name, operation, function, x, scale=2.0, share=0.4, **words):
    """`share` is the part of the pixels that are lesion: 0 is an empty mask."""
    case = Case(name, operation, **words)
    target = (case.uniform(*x) < share).float()
    case.put(target=target)
    case.differentiate(lambda x: function(x, target.to(x.dtype)), x=scale * case.normal(*x))


def optimizer(name, operation, kind, n=17, steps=5, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    case = Case(name, operation, lr=lr, beta1=betas[0], beta2=betas[1], eps=eps, weight_decay=weight_decay)
    start = case.normal(n)
    # Gradients from 1e-4 to 10, one always 0: what eps and the decay do shows.
    gradients = case.normal(steps, n) * torch.logspace(-4, 1, n)
    gradients[:, 0] = 0.0
    p = start.to(case.computed).requires_grad_()
    adam = kind([p], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    after = []
    for g in gradients:
        p.grad = g.to(case.computed)
        adam.step()
        after.append(p.detach().clone())
    state = adam.state[p]
    case.put(p=start, g=gradients, p_after=torch.stack(after),
             exp_avg=state["exp_avg"], exp_avg_sq=state["exp_avg_sq"])


def resize_antialias(name, x, size):
    case = Case(name, "resize_antialias", torch.float32, size=size)
    x = (256 * case.uniform(*x)).floor()
    case.put(x=x, y=F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False))


def global_avg_pool(x):
    return x.mean(dim=(2, 3), keepdim=True)


def make_layers():
    conv2d("conv2d_plain", (2, 3, 7, 5), 4, (3, 3))
    conv2d("conv2d_stem", (1, 3, 17, 13), 5, (7, 7), stride=(2, 2), padding=(3, 3), bias=False)
    conv2d("conv2d_same", (2, 5, 9, 11), 7, (3, 3), padding=(1, 1), bias=False)
    conv2d("conv2d_wide", (1, 19, 6, 5), 17, (3, 3), padding=(1, 1))
    conv2d("conv2d_1x1", (3, 19, 5, 7), 17, (1, 1), bias=False)
    conv2d("conv2d_1x1_strided", (2, 8, 7, 9), 6, (1, 1), stride=(2, 2), bias=False)
    conv2d("conv2d_rectangular", (2, 4, 8, 9), 3, (1, 7), padding=(0, 3))
    conv2d("conv2d_uneven", (2, 3, 10, 11), 4, (3, 2), stride=(2, 1), padding=(1, 0))
    conv2d("conv2d_dilated", (1, 4, 11, 13), 5, (3, 3), padding=(2, 3), dilation=(2, 3))
    conv2d("conv2d_groups", (2, 6, 7, 8), 9, (3, 3), stride=(1, 2), padding=(1, 1), groups=3)
    conv2d("conv2d_depthwise", (2, 5, 6, 7), 10, (3, 3), padding=(1, 1), groups=5)
    conv2d("conv2d_stride_over_kernel", (1, 3, 11, 10), 4, (2, 2), stride=(3, 3))
    conv2d("conv2d_one_pixel", (2, 3, 1, 1), 4, (3, 3), padding=(1, 1))
    linear("linear_plain", (3, 31), 7)
    linear("linear_no_bias", (5, 64), 3, bias=False)
    linear("linear_one", (1, 1), 1)
    batch_norm("batch_norm_train", (3, 5, 7, 4), True)
    batch_norm("batch_norm_few_values", (2, 3, 1, 1), True)
    batch_norm("batch_norm_far_mean", (2, 4, 9, 5), True, mean=100.0, eps=1e-3, momentum=0.01)
    batch_norm("batch_norm_eval", (2, 6, 5, 3), False)


def make_simple_operations():
    pointwise("relu", "relu", F.relu, (2, 3, 5, 7))
    pointwise("sigmoid", "sigmoid", torch.sigmoid, (2, 3, 4, 5), scale=3.0)
    pointwise("sigmoid_large", "sigmoid", torch.sigmoid, (1, 2, 5, 5), scale=30.0)
    for axis in (1, 2, 3):
        pointwise(f"softmax_axis{axis}", "softmax", lambda x: F.softmax(x, dim=axis), (2, 3, 5, 4), 3.0, axis=axis)
    pointwise("softmax_large", "softmax", lambda x: F.softmax(x, dim=1), (5, 7, 1, 1), 40.0, axis=1)
    max_pool2d("max_pool2d_resnet", (2, 3, 11, 8), (3, 3), (2, 2), (1, 1))
    max_pool2d("max_pool2d_unet", (1, 4, 9, 7), (2, 2), (2, 2))
    max_pool2d("max_pool2d_uneven", (2, 2, 8, 9), (2, 3), (1, 2), (0, 1))
    max_pool2d("max_pool2d_dilated", (1, 3, 10, 9), (2, 3), (2, 1), (1, 1), (3, 2))
    for include in (True, False):
        suffix = "padded" if include else "inside"
        avg_pool2d(f"avg_pool2d_{suffix}", (2, 3, 7, 6), (3, 3), (1, 1), (1, 1), include)
        avg_pool2d(f"avg_pool2d_{suffix}_uneven", (1, 4, 9, 8), (2, 3), (2, 1), (1, 1), include)
    pointwise("global_avg_pool", "global_avg_pool", global_avg_pool, (3, 5, 7, 4))
    pointwise("global_avg_pool_one", "global_avg_pool", global_avg_pool, (2, 3, 1, 1))
    for align in (False, True):
        suffix = "_corners" if align else ""
        bilinear(f"bilinear_double{suffix}", (2, 3, 4, 5), (8, 10), align)
        bilinear(f"bilinear_odd{suffix}", (1, 2, 5, 3), (11, 8), align)
        bilinear(f"bilinear_down{suffix}", (1, 2, 9, 11), (4, 5), align)
        bilinear(f"bilinear_from_one{suffix}", (1, 3, 1, 2), (3, 5), align)
    bilinear("bilinear_to_one_corners", (1, 2, 4, 5), (1, 3), True)
    several("concat_two", "concat", lambda *parts: torch.cat(parts, 1), (2, 3, 4, 5), (2, 1, 4, 5), axis=1)
    several("concat_three", "concat", lambda *parts: torch.cat(parts, 1),
            (1, 2, 3, 3), (1, 5, 3, 3), (1, 3, 3, 3), axis=1)
    several("add", "add", torch.add, (2, 3, 4, 5), (2, 3, 4, 5))
    several("gate", "gate", torch.mul, (2, 5, 3, 7), (2, 5, 1, 1))
    several("gate_one_channel", "gate", torch.mul, (3, 1, 4, 4), (3, 1, 1, 1))
    attention("attention", (2, 5, 3, 7))
    attention("attention_one_pixel", (3, 4, 1, 1))
    attention("attention_sharp", (1, 3, 9, 5), scale=20.0)


def make_losses():
    focal_softmax("focal_softmax", (5, 3), 2.0)
    focal_softmax("focal_softmax_large", (7, 3), 2.0, scale=30.0)
    focal_softmax("focal_softmax_gamma0", (4, 7), 0.0)
    focal_softmax("focal_softmax_gamma_half", (4, 2), 0.5)

    def focal_sigmoid(name, x, gamma, scale=2.0):
        mask_loss(name, "focal_sigmoid", lambda z, m: focal_loss(z, m, gamma), x, scale, gamma=gamma)

    focal_sigmoid("focal_sigmoid", (2, 1, 5, 7), 2.0)
    focal_sigmoid("focal_sigmoid_large", (2, 1, 6, 5), 2.0, scale=30.0)
    focal_sigmoid("focal_sigmoid_gamma0", (1, 1, 4, 9), 0.0)
    focal_sigmoid("focal_sigmoid_gamma_3_2", (2, 1, 3, 5), 1.5)
    mask_loss("dice", "dice", dice_loss, (3, 1, 5, 7))
    mask_loss("dice_large", "dice", dice_loss, (2, 1, 7, 4), scale=30.0)
    mask_loss("dice_empty", "dice", dice_loss, (2, 1, 4, 5), share=0.0)
    mask_loss("dice_full", "dice", dice_loss, (1, 1, 4, 5), share=1.0)


def make_the_rest():
    for name, kind in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        optimizer(name, name, kind)
        optimizer(f"{name}_decay", name, kind, weight_decay=0.05)
        optimizer(f"{name}_eps", name, kind, betas=(0.8, 0.99), eps=1e-3, weight_decay=5e-4)
    resize_antialias("resize_antialias_down", (1, 3, 37, 53), (16, 16))
    resize_antialias("resize_antialias_up", (1, 3, 5, 7), (16, 12))
    resize_antialias("resize_antialias_mixed", (1, 3, 9, 40), (14, 11))
    resize_antialias("resize_antialias_same", (1, 3, 6, 5), (6, 5))
    resize_antialias("resize_antialias_far_down", (1, 1, 97, 61), (5, 4))
    resize_antialias("resize_antialias_one_row", (1, 3, 1, 33), (3, 8))


if __name__ == "__main__":
    make_layers()
    make_simple_operations()
    make_losses()
    make_the_rest()
    save_tensors(os.path.join(HERE, "ops.safetensors"), TENSORS, WORDS)
    print(f"{len(WORDS)} cases, {len(TENSORS)} tensors")
