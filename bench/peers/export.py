"""Writes the network of tests/data/networks.py for other engines: export.py --file F.onnx, or F.param for ncnn."""

import os
import subprocess

import torch

import common


def main():
    options = common.parse(__doc__)
    net, image = common.network(options).eval(), torch.from_numpy(common.image(options))
    if options.file.endswith(".onnx"):
        torch.onnx.export(net, (image,), options.file, dynamo=True, external_data=False, input_names=["image"],
                          output_names=["logits", "mask_logits"])
        return
    stem = options.file.removesuffix(".param")      # ncnn: by pnnx, from PyTorch's trace
    torch.jit.trace(net, image).save(stem + ".pt")
    shape = ",".join(str(n) for n in image.shape)
    subprocess.run(["pnnx", stem + ".pt", f"inputshape=[{shape}]", "fp16=0", f"ncnnparam={stem}.param",
                    f"ncnnbin={stem}.bin"], check=True, cwd=os.path.dirname(stem) or ".")


main()
