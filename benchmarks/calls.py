"""Time calls in many processes with pyperf, to compare two commits or two instruction sets.

    python benchmarks/calls.py -o before.json
    python benchmarks/calls.py -o after.json           # after the change
    python -m pyperf compare_to before.json after.json --min-speed 10 --table

Each call is timed in turn with a memcpy of the same bytes. The reported time is the ratio of both
times, multiplied by the duration of a memcpy on a machine that needs 0.2 us per call and copies
10 GB/s. Therefore, a slower or busier machine hardly changes the reported time.

The options are those of pyperf: `--fast` takes fewer values, and `--inherit-environ CDROPOUT_ISA`
passes an instruction set on to the processes.
"""

from functools import partial

import numpy as np
import pyperf

import cdropout as cd
from cdropout.bench.timing import median_ratio, seconds_for

SIZES = {"64": 64, "16Ki": 1 << 14, "1Mi": 1 << 20}
BATCHES = 64  # per value; other processes disturb only a few of many short batches


def calls(x, y):
    """Yield (name, function without arguments). All use `out=`, since allocations add noise."""
    rng = cd.Generator(0)
    mask = rng.next_mask(x.shape, 0.1)
    yield "forward", partial(cd.dropout, x, 0.1, rng=rng, out=y)
    yield "forward p=0.5", partial(cd.dropout, x, 0.5, rng=rng, out=y)
    yield "backward", partial(cd.dropout_backward, x, mask, out=y)


def scaled_time(loops, function, copy, nbytes):
    """Return the seconds of `loops` calls on the machine that the module's docstring describes."""
    count = -(-loops // BATCHES)
    pairs = [(seconds_for(function, count), seconds_for(copy, count)) for _ in range(BATCHES)]
    return loops * median_ratio(*zip(*pairs, strict=True)) * (2e-7 + nbytes / 10e9)


def main():
    runner = pyperf.Runner()
    cd.set_num_threads(1)
    for name, size in SIZES.items():
        x, y = np.ones((2, size), np.float32)
        for call, function in calls(x, y):
            copy = partial(np.copyto, y, x)
            runner.bench_time_func(f"{call}, {name}", scaled_time, function, copy, x.nbytes)


if __name__ == "__main__":
    main()
