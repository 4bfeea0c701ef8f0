"""Writes safetensors files that are byte-identical for identical tensors.

The package's own writer puts the metadata in random order, so that files made twice would always differ in version
control. Layout of a file: 8 bytes header length, little-endian; the header, JSON padded with spaces to a multiple of 8;
the data. Reading is left to the package.
"""

import json
import struct

import torch

NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}


def save_tensors(path, tensors, metadata):
    """tensors: {name: CPU tensor}; metadata: {text: text}. Wider types come first, which keeps all data aligned."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = {"__metadata__": dict(sorted(metadata.items()))}, 0
    for name in names:
        begin, end = end, end + tensors[name].numel() * tensors[name].element_size()
        header[name] = {"dtype": NAMES[tensors[name].dtype], "shape": list(tensors[name].shape),
                        "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(tensors[name].detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
