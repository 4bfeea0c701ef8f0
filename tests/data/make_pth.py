# Small files of torch.save, for tests/test_pth.c: one state dict in both formats, in several types,
# wrapped, with module. names, with views. pth.expected.safetensors holds what has to come out of each
# file under FILE/NAME; both are written anew by
#
#     python3 tests/data/make_pth.py tests/data
#
# The files hold addresses and identifiers of that run, so their bytes differ each time; the values do
# not. Made with PyTorch 2.15.
import sys
from collections import OrderedDict

import torch
from safetensors.torch import save_file

folder = sys.argv[1]
torch.manual_seed(7)
weight = torch.randn(3, 2, 2, 2)
base = OrderedDict(
    [
        ("conv.weight", weight),
        ("conv.bias", torch.tensor([1.5, -0.0, float("inf")])),
        ("bn.num_batches_tracked", torch.tensor(2**40 + 3)),
        ("empty", torch.zeros(0, 5)),
    ]
)


def to(dtype):
    return OrderedDict((k, v.to(dtype) if v.is_floating_point() else v) for k, v in base.items())


whole = torch.arange(24.0).reshape(4, 6)
views = OrderedDict(
    [
        ("transposed", whole.t()),
        ("columns", whole[:, 2:4]),
        ("rows", whole[1:3]),
        ("every_second", whole[::2, ::3]),
        ("channels_last", weight.to(memory_format=torch.channels_last)),
        ("parameter", torch.nn.Parameter(torch.tensor([2.0, 3.0]))),
    ]
)
types = OrderedDict(
    [("f64", torch.tensor([1 / 3])), ("i32", torch.tensor([-5])), ("i16", torch.tensor([-6]))]
    + [("i8", torch.tensor([-7])), ("u8", torch.tensor([200])), ("bool", torch.tensor([True]))]
    + [("u16", torch.tensor([65535])), ("f8", torch.tensor([0.5]))]
)
for name, dtype in [("f64", torch.float64), ("i32", torch.int32), ("i16", torch.int16)] + [
    ("i8", torch.int8), ("u8", torch.uint8), ("u16", torch.uint16), ("f8", torch.float8_e4m3fn)
]:
    types[name] = types[name].to(dtype)
module = torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2)))
named = {k[len("module."):]: v for k, v in module.state_dict().items()}

files = {
    "pth_zip": (base, base, True),
    "pth_older": (base, base, False),
    "pth_f16": (to(torch.float16), to(torch.float16), True),
    "pth_bf16_older": (to(torch.bfloat16), to(torch.bfloat16), False),
    "pth_wrapped": ({"epoch": 3, "loss": 0.25, "state_dict": base, "tags": ["a", None]}, base, True),
    "pth_module": (module.state_dict(), named, True),
    "pth_module_older": ({"state_dict": module.state_dict()}, named, False),
    "pth_views": (views, views, True),
    "pth_views_older": (views, views, False),
    "pth_types": (types, types, True),
}
expected = {}
for name, (saved, values, zipped) in files.items():
    torch.save(saved, f"{folder}/{name}.pth", _use_new_zipfile_serialization=zipped)
    for key, value in values.items():
        expected[f"{name}/{key}"] = value.detach().clone(memory_format=torch.contiguous_format)
save_file(expected, f"{folder}/pth.expected.safetensors")
