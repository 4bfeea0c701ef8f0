"""Makes what tests/test_pretrained.c compares with torchvision: the names of its encoders, and how its Inception v3
begins with transform_input=True.

    python3 make_pretrained.py      needs torch and torchvision from PyPI; writes beside this script

torchvision_names.txt           one line per parameter or running statistic of ResNet-50 and Inception v3, without fc and
                                AuxLogits: model, name, shape. num_batches_tracked, one per batch norm, is left out.
inception_input.safetensors     of Inception3(transform_input=True): the first OUTPUTS channels of Conv2d_1a_3x3, which
                                depend on no other: conv.weight, bn.weight, bn.bias, bn.running_mean, bn.running_var; an
                                image as its normalisation leaves it, BF16; and y, what comes out in evaluation mode,
                                computed in float64 and rounded to F32.
"""

import os

import torch
import torchvision

from tensors import save_tensors

HERE = os.path.dirname(os.path.abspath(__file__))
OUTPUTS = 4     # Conv2d_1a_3x3 of a network of width 1/8
MODELS = {"resnet50": lambda: torchvision.models.resnet50(weights=None),
          "inception_v3": lambda: torchvision.models.inception_v3(weights=None, init_weights=False)}


def write_names():
    with open(os.path.join(HERE, "torchvision_names.txt"), "w") as file:
        for model, make in MODELS.items():
            for name, value in make().state_dict().items():
                if not name.startswith(("fc.", "AuxLogits.")) and not name.endswith("num_batches_tracked"):
                    file.write(f"{model} {name} {','.join(str(n) for n in value.shape)}\n")


def write_input():
    generator = torch.Generator().manual_seed(1)
    net = torchvision.models.inception_v3(weights=None, init_weights=False, transform_input=True).double().eval()
    first = net.Conv2d_1a_3x3
    with torch.no_grad():
        for name, value in first.state_dict().items():
            if value.is_floating_point():
                drawn = torch.randn(value.shape, generator=generator).double() / 4
                value.copy_(drawn.abs() + 0.5 if name == "bn.running_var" else drawn)
        image = (1.2 * torch.randn(2, 3, 75, 79, generator=generator)).bfloat16()
        y = first(net._transform_input(image.double()))[:, :OUTPUTS]
    tensors = {f"Conv2d_1a_3x3.{name}": value[:OUTPUTS].float() for name, value in first.state_dict().items()
               if value.is_floating_point()}
    tensors |= {"image": image, "y": y.float()}
    save_tensors(os.path.join(HERE, "inception_input.safetensors"), tensors, {"torchvision": torchvision.__version__})


if __name__ == "__main__":
    write_names()
    write_input()
