"""Time the kernels of an instruction set, in multiples of a memcpy of the same bytes.

    python benchmarks/kernels.py [--size N] [--seconds S]
    CDROPOUT_ISA=avx2 python benchmarks/kernels.py

Each call runs on one thread and uses another mask. Medians of paired rounds are printed.
"""

import argparse
import itertools
import statistics

import numpy as np

import cdropout as cd
from cdropout._core import dispatch
from cdropout.bench.peers import example_arrays
from cdropout.bench.timing import median_ratio, size_name, time_calls

MASKS = 4  # number of packed masks used in turn, since a branch predictor could learn one mask


def kernels(dtype, size):
    """Return {name: function without arguments}, with memcpy among them."""
    x, _, y, _ = example_arrays(size, dtype)
    source, target = x.view(np.uint8), y.view(np.uint8)
    found = {
        "memcpy": lambda: np.copyto(target, source),
        "forward, p = 0.1": lambda: cd.dropout(x, 0.1, out=y),
    }
    if dtype == "float32":
        packed = itertools.cycle([cd.Mask(size, 0.1, seed).bits() for seed in range(MASKS)])
        numbers = itertools.count()
        found |= {
            "forward, p = 0.5": lambda: cd.dropout(x, 0.5, out=y),
            "forward, p = 0.1, to a new array": lambda: cd.dropout(x, 0.1),
            "backward from packed bits": lambda: cd.dropout_backward(x, next(packed), p=0.1, out=y),
            "bits only, p = 0.1": lambda: cd.Mask(size, 0.1, call=next(numbers)).bits(),
        }
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=1 << 20, help="elements (default 1Mi)")
    parser.add_argument("--seconds", type=float, default=0.3, help="per kernel (default 0.3)")
    options = parser.parse_args()
    cd.set_num_threads(1)
    print(f"{dispatch.isa}, {size_name(options.size)} elements: time / time of memcpy")
    for dtype in "float32", "float64", "float16":
        times, _ = time_calls(kernels(dtype, options.size), options.seconds)
        copy = times.pop("memcpy")
        for name, seconds in times.items():
            print(f"  {dtype + ', ' + name:42} {median_ratio(seconds, copy):7.2f}", flush=True)
        if "bits only, p = 0.1" in times:
            speed = options.size / statistics.median(times["bits only, p = 0.1"]) / 1e9
            print(f"  {'bits only, p = 0.1, in G elements/s':42} {speed:7.2f}")
    times, _ = time_calls(kernels("float32", 64), options.seconds)
    us = statistics.median(times["forward, p = 0.1"]) * 1e6
    print(f"  {'float32, forward, p = 0.1, 64 elements, us':42} {us:7.2f}")


if __name__ == "__main__":
    main()
