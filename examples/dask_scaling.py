"""Measure the time of dropout of a Dask array for several sizes and numbers of workers.

Run `python examples/dask_scaling.py`. The program requires `pip install 'dask[array,distributed]'`.
Workers are processes on this machine, so more workers than cores are not faster. The program checks
that each result has as many kept elements as the mask, which is also drawn without Dask.

The task of a chunk contains the mask and the position of the chunk, and needs no data from other
chunks. Many machines would therefore exchange no data, and only the chunks of a failed machine
would have to be computed again. The limit is the scheduler, which took 2.4 ms per chunk for 100 to
8,000 chunks, on two cores that two workers also used. A worker takes 0.1 s for a chunk of 128 MiB,
so one scheduler can supply about 40 workers, or about 300 with chunks of 1 GiB. Without a
scheduler, each machine can apply its own window of the mask, `mask[rows]`. The result is the same.
"""

import os
import statistics
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser

import numpy as np

import cdropout
from cdropout.bench.progress import show_progress

MEBI = 2**20
CHUNK = 16 * MEBI  # elements per chunk, 64 MiB of float32
P, SEED = 0.1, 42


def count_kept(size):
    """Return the number of elements that the mask keeps, computed without Dask."""
    mask = cdropout.Mask(size, P, SEED)
    return sum(np.count_nonzero(mask[start : start + CHUNK]) for start in range(0, size, CHUNK))


def count_kept_on_cluster(size):
    """Apply dropout to an array of ones on the cluster and return the number of kept elements."""
    x = da.ones(size, dtype=np.float32, chunks=CHUNK)
    return int(da.count_nonzero(dask_dropout(x, P, seed=SEED)).compute())


def measure(workers, kept_by_size, repeats, begin):
    """Yield the minimum, median and maximum time (s) for each size with this number of workers.

    `begin` is called at the start of each run.
    """
    # Each worker has one thread. The variable limits cdropout to this thread, as Dask limits BLAS.
    options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(env={"CDROPOUT_NUM_THREADS": "1"}, **options) as cluster, Client(cluster):
        count_kept_on_cluster(CHUNK * workers)  # imports modules before the time is measured
        for size, expected in kept_by_size.items():
            seconds = []
            for _ in range(repeats):
                begin(f"{workers} workers, {size // MEBI} Mi elements")
                start = time.perf_counter()
                kept = count_kept_on_cluster(size)
                seconds.append(time.perf_counter() - start)
                if kept != expected:
                    raise AssertionError(f"the mask keeps {expected}, but {workers} workers {kept}")
            yield min(seconds), statistics.median(seconds), max(seconds)


def main():
    """Measure the times and print a table."""
    parser = ArgumentParser(formatter_class=ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--workers", type=int, nargs="+", default=[1, 2], metavar="N", help="numbers of processes")
    add("--sizes", type=int, nargs="+", default=[64, 256, 1024], metavar="N", help="Mi elements")
    add("--repeats", type=int, default=3, metavar="N", help="runs per size")
    options = parser.parse_args()
    kept_by_size = {size * MEBI: count_kept(size * MEBI) for size in options.sizes}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"Seconds for dropout and a count, float32, p = {P}, in chunks of {CHUNK // MEBI} Mi")
    print(f"elements, on {cores} cores: median (minimum - maximum), and ns per element\n")
    print("Mi elements" + "".join(f"{f'{workers} workers':>32}" for workers in options.workers))
    with show_progress(len(options.workers) * len(kept_by_size) * options.repeats) as begin:
        columns = [
            list(measure(workers, kept_by_size, options.repeats, begin))
            for workers in options.workers
        ]
    for size, row in zip(options.sizes, zip(*columns, strict=True), strict=True):
        cells = [
            f"{median:.2f} ({low:.2f} - {high:.2f}) {1e9 * median / (size * MEBI):.2f}"
            for low, median, high in row
        ]
        print(f"{size:11}" + "".join(f"{cell:>32}" for cell in cells))
    print("\nEvery run kept the same elements.")


if __name__ == "__main__":
    try:
        import dask.array as da
        from distributed import Client, LocalCluster

        from cdropout.dask import dropout as dask_dropout
    except ImportError as error:
        sys.exit(f"a package is missing, run pip install 'dask[array,distributed]': {error}")
    main()
