"""Show how the time of a dropout of a Dask array grows with its size and the number of workers.

Run `python examples/dask_scaling.py`; it needs `pip install 'dask[array,distributed]'`. Workers are
processes of this machine, so more of them than it has cores gain nothing. Each result has to be the
same: the number of kept elements is compared with that of a mask drawn here, without Dask.

What 1,000 machines would do: a chunk needs the numbers that name the mask and its own place, which
come with its task, and nothing from any other chunk, so that no bytes travel between machines,
however many there are, and one that dies costs the chunks that it held. What bounds them is the
scheduler, which hands out chunks one by one: on two cores that it shared with two workers it took
2.4 ms for each, from 100 chunks to 8,000. A worker takes 0.1 s for a chunk of 128 MiB, so that this
scheduler keeps some 40 busy, or with chunks of 1 GiB some 300. Beyond that nobody has to be asked:
each machine applies its own window of the mask, `mask[rows]`, and the result is the same.
"""

import os
import statistics
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser

import numpy as np

import cdropout

CHUNK, MEBI = 2**24, 2**20  # elements, of float32: 64 MiB a chunk
P, SEED = 0.1, 42


def kept_here(elements):
    """Return how many elements the mask keeps, counted a chunk at a time without Dask."""
    mask = cdropout.Mask(elements, P, SEED)
    return sum(np.count_nonzero(mask[start : start + CHUNK]) for start in range(0, elements, CHUNK))


def kept_by_workers(elements):
    """Return how many elements of a dropout on the cluster are not zero."""
    x = da.ones(elements, dtype=np.float32, chunks=CHUNK)
    return int(da.count_nonzero(dask_dropout(x, P, seed=SEED)).compute())


def measure(workers, sizes, repeats):
    """Yield the seconds that each size takes on so many workers: the least, median and most."""
    # A worker has one thread, so what it calls should not start others: as Dask does for BLAS.
    options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(env={"CDROPOUT_NUM_THREADS": "1"}, **options) as cluster, Client(cluster):
        kept_by_workers(CHUNK * workers)  # imports and first pages do not count
        for elements, expected in sizes.items():
            seconds = []
            for _ in range(repeats):
                start = time.perf_counter()
                kept = kept_by_workers(elements)
                seconds.append(time.perf_counter() - start)
                if kept != expected:
                    raise AssertionError(f"{workers} workers kept {kept}, but it is {expected}")
            yield min(seconds), statistics.median(seconds), max(seconds)


def main():
    """Print the table."""
    parser = ArgumentParser(formatter_class=ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--workers", type=int, nargs="+", default=[1, 2], metavar="N", help="processes")
    add("--sizes", type=int, nargs="+", default=[64, 256, 1024], metavar="N", help="Mi elements")
    add("--repeats", type=int, default=3, metavar="N", help="runs of each")
    options = parser.parse_args()
    sizes = {size * MEBI: kept_here(size * MEBI) for size in options.sizes}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"Seconds for dropout and a count, float32, p = {P}, in chunks of {CHUNK // MEBI} Mi")
    print(f"elements, on {cores} cores: median (least - most), and ns an element\n")
    print("Mi elements" + "".join(f"{f'{workers} workers':>32}" for workers in options.workers))
    columns = [list(measure(workers, sizes, options.repeats)) for workers in options.workers]
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
        sys.exit(f"It needs more, pip install 'dask[array,distributed]': {error}")
    main()
