"""Runs clnet-bench and its peers in turns on the same network and prints how they compare.

    python3 -m venv venv && venv/bin/pip install -r bench/peers/requirements.txt
    make && venv/bin/python bench/peers/run.py [--rounds 3] [--repeats 3] [--cases infer1,train2] [--out results.json]

Every round starts each contestant once per case, one behind the other, for some repeats after a warm-up; figures are
the medians over all rounds, with the fastest and the slowest repeat. All use the same number of threads. PyTorch runs
in both of its memory formats, the better of which counts. Peak memory is that of the process that measured. A
contestant that is not installed or fails is n/a, and says why on standard error.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ENGINES = ("onnxruntime", "openvino", "ncnn")
TORCH = ("torch nchw", "torch channels_last")
CASES = {"infer1": ("infer", 1), "infer4": ("infer", 4), "train2": ("train", 2), "train8": ("train", 8)}
MODE_MARKS = {"infer": 2.2, "train": 2.0}
ENGINE_MARK, MEMORY_MARK, PRODUCT_MARK = 1.6, 0.6, 0.95


def parse():
    parser = argparse.ArgumentParser(description="clnet-bench beside other frameworks, in turns")
    parser.add_argument("--clnet", default=os.path.join(HERE, "..", "..", "build", "clnet-bench"))
    parser.add_argument("--model", default="resnet50+unet")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--width", default="1")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", default=",".join(CASES) + ",product")
    parser.add_argument("--peers", default=",".join(("torch",) + ENGINES))
    parser.add_argument("--clnet-options", default="", help="further options of clnet-bench, as \"--isa avx2\"")
    parser.add_argument("--out", help="JSON with every repeat")
    options = parser.parse_args()
    unknown = set(options.cases.split(",")) - set(CASES) - {"product"}
    if unknown:
        parser.error(f"--cases: {', '.join(sorted(unknown))}: there are {', '.join(CASES)} and product")
    return options


def call(command, environment=None):
    """The lines of JSON that a program prints; None, with its complaint on standard error, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        complaint = (done.stderr.strip().splitlines() or ["failed"])[-1]
        print(f"{os.path.basename(command[1])}: {complaint}", file=sys.stderr)
        return None
    return [json.loads(line) for line in lines if line.startswith("{")]


def network_options(options):
    return ["--model", options.model, "--size", str(options.size), "--width", options.width,
            "--threads", str(options.threads), "--repeats", str(options.repeats)]


def run_clnet(options, mode, batch):
    rows = call([options.clnet, "model", *network_options(options), "--mode", mode, "--batch", str(batch),
                 "--device", "cpu", "--json", *options.clnet_options.split()])
    row = rows[0] if rows else {"status": "failed"}
    if row["status"] != "ok":
        print(f"clnet-bench: {mode}, batch {batch}: {row['status']}", file=sys.stderr)
        return None
    # Its own statistics of the repeats stand for them.
    return {"times_ms": [row["min_ms"], row["median_ms"], row["max_ms"]], "peak_rss_bytes": row["peak_rss_bytes"],
            "version": f"{row['isa']}, peak {row['peak_gflops']:.0f} GFLOP/s", "plan_bytes": row["plan_bytes"]}


def export(options, folder, batch, suffix):
    """The file that an engine reads, made once; None if that fails."""
    path = os.path.join(folder, f"batch{batch}{suffix}")
    if not os.path.exists(path):
        shape = ["--model", options.model, "--size", str(options.size), "--width", options.width]
        subprocess.run([sys.executable, os.path.join(HERE, "export.py"), *shape, "--batch", str(batch), "--file", path],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                       env=os.environ | {"PATH": os.path.dirname(sys.executable) + ":" + os.environ["PATH"]})
    return path if os.path.exists(path) else None


def run_peer(options, folder, name, mode, batch):
    kind, _, layout = name.partition(" ")
    command = [sys.executable, os.path.join(HERE, f"peer_{kind}.py"), *network_options(options), "--mode", mode,
               "--batch", str(batch)]
    if layout:
        command += ["--layout", layout]
    else:
        file = export(options, folder, 1, ".param") if kind == "ncnn" else export(options, folder, batch, ".onnx")
        if not file:
            print(f"{kind}: the network could not be exported", file=sys.stderr)
            return None
        command += ["--file", file]
    answers = call(command)
    return answers[0] if answers else None


def contestants(options, mode):
    wanted = options.peers.split(",")
    peers = [name for name in TORCH if "torch" in wanted]
    return ["clnet"] + peers + ([name for name in ENGINES if name in wanted] if mode == "infer" else [])


def run_cases(options, folder):
    """{case: {contestant: [answer of each round]}}"""
    results = {}
    for _ in range(options.rounds):
        for case in (c for c in options.cases.split(",") if c in CASES):
            mode, batch = CASES[case]
            for name in contestants(options, mode):
                answer = (run_clnet(options, mode, batch) if name == "clnet" else
                          run_peer(options, folder, name, mode, batch))
                results.setdefault(case, {}).setdefault(name, []).append(answer)
                print(f"{case} {name}: {answer['times_ms'] if answer else 'n/a'}", file=sys.stderr)
    return results


def run_products(options):
    """{shape: (clnet's median, OpenBLAS's median)} over the rounds, in ms, and OpenBLAS's version."""
    ours, theirs, version = {}, {}, "n/a"
    for _ in range(options.rounds):
        rows = call([options.clnet, "ops", *network_options(options), "--filter", "product ", "--device", "cpu",
                     "--json", *options.clnet_options.split()]) or []
        medians = {row["case"].split()[1]: row["median_ms"] for row in rows if row["status"] == "ok"}
        for shape, median in medians.items():
            ours.setdefault(shape, []).append(median)
        threads = os.environ | {"OPENBLAS_NUM_THREADS": str(options.threads)}
        answers = call([sys.executable, os.path.join(HERE, "peer_openblas.py"), "--repeats", str(options.repeats),
                        "--shapes", ",".join(medians)], threads) if medians else None
        for shape, median in (answers[0]["medians_ms"] if answers else {}).items():
            theirs.setdefault(shape, []).append(median)
            version = answers[0]["version"]
    return {s: (statistics.median(ours[s]), statistics.median(theirs[s])) for s in ours if s in theirs}, version


def summary(answers):
    """Median, fastest, slowest over all rounds, and the highest peak memory; None: n/a."""
    answers = [a for a in answers or [] if a]
    times = [t for a in answers for t in a["times_ms"]]
    if not times:
        return None
    return {"median": statistics.median(times), "least": min(times), "most": max(times),
            "memory": max(a["peak_rss_bytes"] for a in answers), "version": answers[0]["version"],
            "plan": answers[0].get("plan_bytes")}


def print_case(case, sums):
    print(f"\n{case:24} {'median ms':>10} {'min..max':>20} {'clnet is faster by':>19} {'peak MiB':>9}")
    for name, s in sums.items():
        if not s:
            print(f"{name:24} {'n/a':>10}")
            continue
        ratio = f"{s['median'] / sums['clnet']['median']:.2f}" if sums.get("clnet") else "n/a"
        spread = f"{s['least']:.1f}..{s['most']:.1f}"
        print(f"{name:24} {s['median']:10.1f} {spread:>20} {ratio:>19} {s['memory'] / 2**20:9.0f}")


def print_mark(what, value, mark, low=False):
    if value is None:
        print(f"{what:64} {'n/a':>8}   mark {mark}")
    else:
        met = value <= mark if low else value >= mark
        print(f"{what:64} {value:8.2f}   mark {'<=' if low else '>='} {mark}{'' if met else '   short of it'}")


def best(sums, names, key="median"):
    values = [sums[name][key] for name in names if sums.get(name)]
    return min(values) if values else None


def ratio(above, below):
    return above / below if above and below else None


def print_marks(results, products):
    print("\nmarks")
    for case, sums in results.items():
        mode, batch = CASES[case]
        ours = sums["clnet"]["median"] if sums.get("clnet") else None
        print_mark(f"{case}: times as fast as the better PyTorch", ratio(best(sums, TORCH), ours), MODE_MARKS[mode])
        if mode == "infer":
            print_mark(f"{case}: times as fast as the best of {', '.join(ENGINES)}", ratio(best(sums, ENGINES), ours),
                       ENGINE_MARK)
        elif batch == 2:
            memory = sums["clnet"]["memory"] if sums.get("clnet") else None
            print_mark(f"{case}: peak memory over PyTorch's", ratio(memory, best(sums, TORCH, "memory")), MEMORY_MARK,
                       low=True)
    if products:
        speed = math.exp(sum(math.log(b / a) for a, b in products.values()) / len(products))
        print_mark(f"own product over OpenBLAS, geometric mean of {len(products)} shapes", speed, PRODUCT_MARK)
        worst = min(products, key=lambda s: products[s][1] / products[s][0])
        print(f"  lowest: {products[worst][1] / products[worst][0]:.2f} at {worst}")


def processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def print_heading(options, results, blas):
    print(f"{processor()}, {options.threads} threads; {options.model}, {options.size} x {options.size}, width "
          f"{options.width}; {options.rounds} rounds of {options.repeats} repeats, in turns")
    versions = {s["version"] for sums in results.values() for name, s in sums.items() if s and name != "clnet"}
    own = {s["version"] for sums in results.values() for name, s in sums.items() if s and name == "clnet"}
    print(f"clnet: {'; '.join(sorted(own)) or 'n/a'}. Beside: {', '.join(sorted(versions)) or 'n/a'}, BLAS: {blas}")


def main():
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        answers = run_cases(options, folder)
    products, blas = run_products(options) if "product" in options.cases.split(",") else ({}, "not run")
    results = {case: {name: summary(a) for name, a in names.items()} for case, names in answers.items()}
    print_heading(options, results, blas)
    for case, sums in results.items():
        print_case(case, sums)
    print_marks(results, products)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump({"options": vars(options), "results": answers, "products_ms": products}, file, indent=1)


if __name__ == "__main__":
    main()
