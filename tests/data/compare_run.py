"""Runs `clnet run` on random weights and inputs and compares everything it gives with PyTorch, as a table. By hand:

    python3 compare_run.py resnet50+unet [--width 1/8] [--size 64x80] [--batch 3] [--classes 3] [--fusion per-task]
                           [--forward] [--seed 0] [--clnet build/clnet] [-- further options of clnet run, such as --winograd off]

With --forward the logits of evaluation mode alone: for whole networks, as in --width 1 --size 224x224 --batch 1.

needs torch, numpy and safetensors from PyPI. Weights and inputs are drawn as in make_networks.py, unrounded. Each row
shows the error of clnet and, beside it, that of PyTorch's own float32, both against PyTorch's float64. The limit is the
one for networks (2e-5 for gradients, 1e-5 otherwise) or 32 times PyTorch's error where that is more, at most 1e-3; a row
beyond it is marked and makes the exit status 1. Where PyTorch itself is more than 1e-5 off, the row is ill conditioned
and not judged. `margin` is how near a ReLU or a maximum is to its kink: below 1e-6 gradients may be far off by rights.
"""

import argparse
import copy
import os
import subprocess
import sys
import tempfile
from fractions import Fraction

import torch
from safetensors.torch import load_file

from make_networks import draw_inputs, draw_weights, kink_margin, settle_running_statistics, training_pass
from networks import Network, class_activation_maps
from tensors import save_tensors

GRADIENT_LIMIT, VALUE_LIMIT, HIGHEST_LIMIT = 2e-5, 1e-5, 1e-3
ILL_CONDITIONED = 1e-5
VARIANTS = ("paper", "gradcam", "gradcam++")


def parse(arguments):
    parser = argparse.ArgumentParser(description="compare clnet run with PyTorch on random weights")
    parser.add_argument("model")
    parser.add_argument("--width", default="1/8")
    parser.add_argument("--size", default="64x80", help="HEIGHTxWIDTH")
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--fusion", default="shared")
    parser.add_argument("--forward", action="store_true", help="evaluation mode alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clnet", default="build/clnet")
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:split])
    options.further = arguments[split + 1:]
    return options


def draw(options):
    """The network in float64 holding float32 values, and image, label, mask in float32."""
    generator = torch.Generator().manual_seed(options.seed)
    net = Network(options.model, options.classes, float(Fraction(options.width)), options.fusion).double()
    height, width = (int(n) for n in options.size.split("x"))
    image, label, mask = draw_inputs(generator, options.batch, height, width)
    draw_weights(net, generator)
    settle_running_statistics(net, image.double())
    return net.float().double(), (image, label % options.classes, mask)


def clnet_run(options, folder, *more):
    """One run of the program; the tensors it wrote."""
    output = os.path.join(folder, "y.safetensors")
    command = [options.clnet, "run", "--model", options.model, "--classes", str(options.classes),
               "--width", options.width, "--fusion", options.fusion,
               "--weights", os.path.join(folder, "w.safetensors"),
               "--input", os.path.join(folder, "x.safetensors"), "--output", output, *more, *options.further]
    subprocess.run(command, check=True)
    return load_file(output)


def values_of_clnet(options, net, inputs):
    image, label, mask = inputs
    with tempfile.TemporaryDirectory() as folder:
        weights = {k: v.float() if v.is_floating_point() else v for k, v in net.state_dict().items()}
        save_tensors(os.path.join(folder, "w.safetensors"), weights, {})
        truth = ({"label": label} if net.fc else {}) | ({"mask": mask} if net.dec else {})
        save_tensors(os.path.join(folder, "x.safetensors"), {"image": image} | truth, {})
        values = clnet_run(options, folder)
        if options.forward:
            return values
        trained = clnet_run(options, folder, "--train")
        values |= {k if "." in k else f"train.{k}": v for k, v in trained.items()}
        for variant in VARIANTS if net.fc else ():
            for layer in ("fm1", "fm3", "fm5"):
                cam = clnet_run(options, folder, "--cam", variant, "--layer", layer)["cam"]
                values[f"cam.{variant}.{layer}"] = cam
    return values


def values_of_pytorch(options, net, inputs, dtype):
    """The same tensors by the same names."""
    net = copy.deepcopy(net).to(dtype)
    image, label, mask = inputs[0].to(dtype), inputs[1], inputs[2].to(dtype)
    values = {}

    def put(prefix, logits, mask_logits):
        for name, value in (("logits", logits), ("mask_logits", mask_logits)):
            if value is not None:
                values[prefix + name] = value.detach()

    with torch.no_grad():
        put("", *net.eval()(image))
    if options.forward:
        return values
    if net.fc:
        for (variant, layer), cam in class_activation_maps(net, image, label).items():
            values[f"cam.{variant}.{layer}"] = cam
    logits, mask_logits, parts = training_pass(net, image, label, mask)
    put("train.", logits, mask_logits)
    values |= {f"loss.{name}": loss.detach() for name, loss in parts.items()}
    return values | {f"grad.{name}": p.grad for name, p in net.named_parameters()}


def error(name, value, right):
    """Relative L2 for gradients and maps; for logits the probabilities' largest difference; for losses the plain one."""
    value, right = value.double(), right.double()
    if value.shape != right.shape:
        return float("inf")
    if name.startswith(("grad.", "cam.")):
        return ((value - right).norm() / right.norm().clamp(min=1e-30)).item()
    if name.endswith("mask_logits"):
        value, right = value.sigmoid(), right.sigmoid()
    elif name.endswith("logits"):
        value, right = value.softmax(1), right.softmax(1)
    return (value - right).abs().max().item()


def verdict(found, own, limit):
    if found <= limit:
        return ""
    return "ill conditioned" if own > ILL_CONDITIONED and found < float("inf") else "BEYOND"


def print_table(clnet, narrow, wide):
    """All rows but the gradients, of which the worst eight are shown; returns how many rows are beyond the limits."""
    rows = []
    for name, right in wide.items():
        if name.startswith("cam.") and name not in clnet:
            continue                        # layers that were not asked for
        found = error(name, clnet[name], right) if name in clnet else float("inf")
        own = error(name, narrow[name], right)
        least = GRADIENT_LIMIT if name.startswith("grad.") else VALUE_LIMIT
        limit = min(max(least, 32 * own), HIGHEST_LIMIT)
        rows.append((name, found, own, limit, verdict(found, own, limit)))
    gradients = sorted((r for r in rows if r[0].startswith("grad.")), key=lambda r: -r[1])
    print(f"{'':48} {'clnet':>10} {'PyTorch f32':>12} {'limit':>10}")
    for row in [r for r in rows if not r[0].startswith("grad.")] + gradients[:8]:
        print("{:48} {:10.2e} {:12.2e} {:10.2e}  {}".format(*row))
    beyond, ill = (sum(r[4] == what for r in rows) for what in ("BEYOND", "ill conditioned"))
    print(f"{len(rows)} tensors, of which {len(gradients)} gradients; {beyond} beyond their limit, {ill} not judged")
    return beyond


def main(arguments):
    options = parse(arguments)
    net, inputs = draw(options)
    wide = values_of_pytorch(options, net, inputs, torch.float64)
    narrow = values_of_pytorch(options, net, inputs, torch.float32)
    shape = "x".join(str(n) for n in inputs[0].shape)
    margin = ""
    if not options.forward:
        twin = copy.deepcopy(net)
        distance = kink_margin(twin, lambda: training_pass(twin, inputs[0].double(), inputs[1], inputs[2].double()))
        margin = f" margin {distance:.1e}"
    print(f"{options.model} width {options.width} input {shape} seed {options.seed}{margin}", flush=True)
    return print_table(values_of_clnet(options, net, inputs), narrow, wide) > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
