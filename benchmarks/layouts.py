"""Time dropout of arrays in other memory layouts than C order, in multiples of a memcpy.

    python benchmarks/layouts.py [--isa ISA ...] [--pairs N] [--tensors]

Dropout and a copy of the same bytes are timed in turn, on one thread, to an array that is there
already, with p = 0.1 and a new seed in each pair. The copy is contiguous; for slices it is
`np.copyto` between slices. Medians of the ratios are printed, with quartiles.
"""

import argparse
import os
import subprocess
import sys
import time

import ml_dtypes
import numpy as np

import cdropout as cd

PERMUTED = {
    "C order, 1024 x 1024": ((1024, 1024), (0, 1)),
    "Fortran order, 1024 x 2048": ((2048, 1024), (1, 0)),
    "channels last, 8 x 64 x 56 x 56": ((8, 56, 56, 64), (0, 3, 1, 2)),
    "channels last, 8 x 3 x 224 x 224": ((8, 224, 224, 3), (0, 3, 1, 2)),
    "(2, 0, 1) of 64 x 128 x 128": ((64, 128, 128), (2, 0, 1)),
    "(3, 1, 0, 2) of 31 x 37 x 29 x 41": ((31, 37, 29, 41), (3, 1, 0, 2)),
    "(1, 0, 2) of 128 x 128 x 64": ((128, 128, 64), (1, 0, 2)),
    "(0, 2, 1, 3) of 16 x 64 x 16 x 64": ((16, 64, 16, 64), (0, 2, 1, 3)),
}
SLICED = {
    "[:, :1000] of 1024 x 1024": ((1024, 1024), np.s_[:, :1000]),
    "[::2] of 2048 x 1024": ((2048, 1024), np.s_[::2]),
    "[:, ::2] of 1024 x 2048": ((1024, 2048), np.s_[:, ::2]),
    "[::-1] of 1024 x 1024": ((1024, 1024), np.s_[::-1]),
    "[:, ::-1] of 1024 x 1024": ((1024, 1024), np.s_[:, ::-1]),
}
HALVES = ["channels last, 8 x 64 x 56 x 56"]


def ratios(dropout, copy, pairs):
    """Return the quartiles of the time of `dropout(seed)` over that of `copy()`."""
    found = []
    for seed in range(pairs + 3):
        times = [time.perf_counter()]
        for call in (lambda seed=seed: dropout(seed), copy):
            call()
            times.append(time.perf_counter())
        found.append((times[1] - times[0]) / (times[2] - times[1]))
    return np.percentile(found[3:], [25, 50, 75])


def permuted(shape, axes, dtype):
    return [np.ones(shape, dtype).transpose(axes) for _ in range(2)]


def arrays():
    """Yield (name, x, y, source and target of the copy)."""
    for name, (shape, axes) in PERMUTED.items():
        for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
            if dtype is np.float32 or name in HALVES:
                x, y = permuted(shape, axes, dtype)
                yield f"{name}, {np.dtype(dtype).name}", x, y, np.ones_like(x.T.copy()), y.T.copy()
    for name, (shape, index) in SLICED.items():
        x, y = (np.ones(shape, np.float32)[index] for _ in range(2))
        yield name, x, y, x, y


def print_arrays(pairs):
    cd.set_num_threads(1)
    for name, x, y, source, target in arrays():
        low, median, high = ratios(
            lambda seed, x=x, y=y: cd.dropout(x, 0.1, rng=seed, out=y),
            lambda source=source, target=target: np.copyto(target, source),
            pairs,
        )
        print(f"{name:48} {median:5.2f} ({low:.2f} to {high:.2f})", flush=True)


def print_tensors(pairs):
    """Print how much longer tensors in channels-last format take than in C order."""
    import torch

    import cdropout.torch as ct

    torch.set_num_threads(1)
    for shape in [(8, 64, 56, 56), (8, 3, 224, 224)]:
        x = torch.ones(shape)
        last = x.to(memory_format=torch.channels_last)
        low, median, high = ratios(
            lambda seed, x=last: ct.dropout(x, 0.1, inplace=True),
            lambda x=x: ct.dropout(x, 0.1, inplace=True),
            pairs,
        )
        name = f"tensor, channels last over C order, {shape}"
        print(f"{name:48} {median:5.2f} ({low:.2f} to {high:.2f})", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--isa", nargs="+", help="instruction sets; by default the widest")
    parser.add_argument("--pairs", type=int, default=61)
    parser.add_argument("--tensors", action="store_true", help="PyTorch's tensors, too")
    options = parser.parse_args()
    for isa in options.isa or ():
        print(f"\n{isa}", flush=True)
        command = [sys.executable, __file__, "--pairs", str(options.pairs)]
        command += ["--tensors"] * options.tensors
        subprocess.run(command, env={**os.environ, "CDROPOUT_ISA": isa}, check=True)
    if not options.isa:
        print_arrays(options.pairs)
        if options.tensors:
            print_tensors(options.pairs)


if __name__ == "__main__":
    main()
