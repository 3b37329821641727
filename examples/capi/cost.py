"""Measure the time of a call of `apply` on 64 float32 elements in several languages.

Run `python setup.py build_ext --inplace`, then `python cost.py` in the same folder.
"""

import statistics
import time
from importlib.util import find_spec

import cython_rows
import extension
import numpy as np

from cdropout._core import dispatch

ROWS, COLUMNS = 2000, 64  # the arrays fit in the cache
ROUNDS = 500
P = 0.1


def nanoseconds(dropout_rows, x, y, seed):
    """Return the time per row in nanoseconds."""
    began = time.perf_counter_ns()
    dropout_rows(x, y, P, seed)
    return (time.perf_counter_ns() - began) / len(x)


def main():
    """Time the functions alternately.

    Each round uses another seed, because CPUs learn to predict the branches for a repeated mask.
    """
    x = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32)
    y = np.empty_like(x)
    functions = {"C": extension.dropout_rows, "Cython": cython_rows.dropout_rows}
    if find_spec("numba"):
        import numba_rows

        numba_rows.dropout_rows(x, y, P, 0)  # compiles the function
        functions["Numba"] = numba_rows.dropout_rows
    print(f"64 float32 elements, p = {P}, {dispatch.isa}")
    times = {name: [] for name in functions}
    for seed in range(ROUNDS):
        for name, function in functions.items():
            times[name].append(nanoseconds(function, x, y, seed))
    for name, each in times.items():
        low, median, high = statistics.quantiles(each, n=4)
        print(f"{name:7} {median:5.1f} ns per call (quartiles {low:.1f} and {high:.1f})")


if __name__ == "__main__":
    main()
