"""Time dropout of arrays in other memory layouts than C order, in multiples of a memcpy.

    python benchmarks/layouts.py [--isa ISA ...] [--pairs N] [--tensors]

Dropout and a copy of the same bytes are timed in turn, on one thread and with `out=`, with p = 0.1
and a new seed per pair. The copied arrays are contiguous, except for slices, which are copied to
slices. The medians of the ratios of times are printed, with quartiles.
"""

import argparse
import os
import subprocess
import sys
from functools import partial

import ml_dtypes
import numpy as np

import cdropout as cd
from cdropout.bench.timing import seconds_for

WARMUP_PAIRS = 3
TRANSPOSED = {  # name: shape in memory, axes of the transpose
    "C order, 1024 x 1024": ((1024, 1024), (0, 1)),
    "Fortran order, 1024 x 2048": ((2048, 1024), (1, 0)),
    "channels last, 8 x 64 x 56 x 56": ((8, 56, 56, 64), (0, 3, 1, 2)),
    "channels last, 8 x 3 x 224 x 224": ((8, 224, 224, 3), (0, 3, 1, 2)),
    "(2, 0, 1) of 64 x 128 x 128": ((64, 128, 128), (2, 0, 1)),
    "(3, 1, 0, 2) of 31 x 37 x 29 x 41": ((31, 37, 29, 41), (3, 1, 0, 2)),
    "(1, 0, 2) of 128 x 128 x 64": ((128, 128, 64), (1, 0, 2)),
    "(0, 2, 1, 3) of 16 x 64 x 16 x 64": ((16, 64, 16, 64), (0, 2, 1, 3)),
}
SLICED = {  # name: shape, index
    "[:, :1000] of 1024 x 1024": ((1024, 1024), np.s_[:, :1000]),
    "[::2] of 2048 x 1024": ((2048, 1024), np.s_[::2]),
    "[:, ::2] of 1024 x 2048": ((1024, 2048), np.s_[:, ::2]),
    "[::-1] of 1024 x 1024": ((1024, 1024), np.s_[::-1]),
    "[:, ::-1] of 1024 x 1024": ((1024, 1024), np.s_[:, ::-1]),
}
IN_HALF_TYPES = "channels last, 8 x 64 x 56 x 56"
IMAGES = [(8, 64, 56, 56), (8, 3, 224, 224)]


def print_ratio(name, dropout, other, pairs):
    """Print the quartiles of the time of `dropout(seed)` divided by that of `other(seed)`."""
    ratios = []
    for seed in range(WARMUP_PAIRS + pairs):
        times = [seconds_for(partial(call, seed), 1) for call in (dropout, other)]
        ratios.append(times[0] / times[1])
    low, median, high = np.percentile(ratios[WARMUP_PAIRS:], [25, 50, 75])
    print(f"{name:48} {median:5.2f} ({low:.2f} to {high:.2f})", flush=True)


def arrays():
    """Yield (name, x, y, source of the copy, target of the copy)."""
    for name, (shape, axes) in TRANSPOSED.items():
        for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
            if dtype is np.float32 or name == IN_HALF_TYPES:
                x, y = (np.ones(shape, dtype).transpose(axes) for _ in range(2))
                yield f"{name}, {np.dtype(dtype).name}", x, y, x.ravel("K"), y.flatten("K")
    for name, (shape, index) in SLICED.items():
        x, y = (np.ones(shape, np.float32)[index] for _ in range(2))
        yield name, x, y, x, y


def print_arrays(pairs):
    cd.set_num_threads(1)
    for name, x, y, source, target in arrays():
        print_ratio(
            name,
            lambda seed, x=x, y=y: cd.dropout(x, 0.1, rng=seed, out=y),
            lambda _, source=source, target=target: np.copyto(target, source),
            pairs,
        )


def print_tensors(pairs):
    """Print the times of dropout for channels-last tensors, divided by those for C order."""
    import torch

    import cdropout.torch as ct

    torch.set_num_threads(1)
    for shape in IMAGES:
        x = torch.ones(shape)
        channels_last = x.to(memory_format=torch.channels_last)
        print_ratio(
            f"tensor, channels last over C order, {shape}",
            lambda _, x=channels_last: ct.dropout(x, 0.1, inplace=True),
            lambda _, x=x: ct.dropout(x, 0.1, inplace=True),
            pairs,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--isa", nargs="+", help="instruction sets (default: the widest)")
    parser.add_argument("--pairs", type=int, default=61, help="per layout (default 61)")
    parser.add_argument("--tensors", action="store_true", help="time PyTorch tensors as well")
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
