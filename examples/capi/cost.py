"""Prints what a call of the kernel apply costs on 64 float32 elements, from several languages.

First `python setup.py build_ext --inplace`, then `python cost.py` in the same folder.
"""

import statistics
import time
from importlib.util import find_spec

import cython_rows
import extension
import numpy as np

from cdropout._core import dispatch

ROWS, COLUMNS = 2000, 64  # the arrays fit a cache
ROUNDS = 500
P = 0.1


def nanoseconds(dropout_rows, x, y, seed):
    """Return the time that one row took."""
    began = time.perf_counter_ns()
    dropout_rows(x, y, P, seed)
    return (time.perf_counter_ns() - began) / len(x)


def main():
    """Time all of them in turn, by another seed each time: a branch predictor learns a mask."""
    x = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32)
    y = np.empty_like(x)
    contestants = {"C": extension.dropout_rows, "Cython": cython_rows.dropout_rows}
    if find_spec("numba"):
        import numba_rows

        numba_rows.dropout_rows(x, y, P, 0)  # compiles it
        contestants["Numba"] = numba_rows.dropout_rows
    print(f"64 float32 elements, p = {P}, {dispatch.isa}")
    times = {name: [] for name in contestants}
    for seed in range(ROUNDS):
        for name, function in contestants.items():
            times[name].append(nanoseconds(function, x, y, seed))
    for name, each in times.items():
        low, median, high = statistics.quantiles(each, n=4)
        print(f"{name:7} {median:5.1f} ns a call (quartiles {low:.1f} and {high:.1f})")


if __name__ == "__main__":
    main()
