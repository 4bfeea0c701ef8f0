"""numpy's matrix product, which is OpenBLAS, on the shapes given; one median per shape.

run.py sets the number of threads in the environment, before numpy is loaded.
"""

import statistics

import numpy as np

import common


def main():
    options = common.parse(__doc__)
    random = np.random.default_rng(0)
    medians = {}
    for shape in options.shapes.split(","):
        m, k, n = (int(size) for size in shape.split("x"))
        a, b = (random.standard_normal(s, dtype=np.float32) for s in ((m, k), (k, n)))
        y = np.empty((m, n), np.float32)
        medians[shape] = statistics.median(common.times_of(lambda: np.matmul(a, b, out=y), options.repeats))
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    common.report([], f"{blas['name']} {blas['version']}", medians_ms=medians)


main()
