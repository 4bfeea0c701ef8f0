"""What the peers share: their options, the network, the clock, and the line of JSON that each prints.

A peer is a program that builds the network, warms up, takes its repeats and prints one line

    {"times_ms": [..], "peak_rss_bytes": N, "version": "PyTorch 2.15.0"}

so that run.py can start it for some repeats, then another one, in turns.
"""

import argparse
import json
import os
import resource
import sys
import time
from fractions import Fraction

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "tests", "data"))


def parse(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="resnet50+unet")
    parser.add_argument("--mode", choices=("infer", "train"), default="infer")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--width", default="1")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layout", choices=("nchw", "channels_last"), default="nchw", help="PyTorch's memory format")
    parser.add_argument("--file", help="the exported network: ONNX, or ncnn's .param")
    parser.add_argument("--shapes", help="of products: MxKxN with commas between")
    return parser.parse_args()


def network(options):
    """The network in PyTorch, with fresh weights of a fixed seed."""
    import torch
    from networks import Network
    torch.manual_seed(0)
    return Network(options.model, 3, float(Fraction(options.width)))


def image(options):
    import numpy as np
    shape = (options.batch, 3, options.size, options.size)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def times_of(step, repeats):
    """Milliseconds of each repeat, after a warm-up."""
    step()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - begun))
    return times


def report(times, version, **more):
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"times_ms": times, "peak_rss_bytes": peak, "version": version} | more))
