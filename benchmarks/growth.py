"""Time dropout, and measure its peak memory, from 64 to 1 Gi elements.

    python benchmarks/growth.py [--sizes 64 1048576 ...] [--threads 1 2] [--dtype float32]

Each size runs in a new process. The exit code is 1 if the time per element of large arrays grows,
or if y = dropout(x, p) takes more memory than x and y. Memory is measured on Linux only.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

import cdropout as cd
from cdropout._core.dtypes import FLOATS, element_type
from cdropout.bench.timing import size_name, time_calls

SIZES = [1 << bits for bits in range(6, 31, 2)]
P = 0.1
LARGE = 1 << 16  # elements; from this size on, the cost of the call itself hardly matters
MAX_GROWTH = 2.0  # limit of the time per element, divided by that at LARGE or by memcpy's
EXTRA_BYTES = 1 << 20  # besides input and output, for thread stacks and for pages counted late
FREE_MEMORY = 1.2  # required free memory, as a multiple of the bytes of input and output


# ---- one size, in this process ----------------------------------------------------------------


def memory(name, path="/proc/self/status"):
    """Return the bytes that a file of /proc gives for this name, or None without such a file."""
    try:
        text = Path(path).read_text()
    except OSError:
        return None
    return int(re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)[1]) << 10


def measure_memory(x):
    """Return y = dropout(x, P), and the peak memory of x and the call in bytes.

    On systems other than Linux, the peak memory is None.
    """
    before = memory("VmRSS")
    if before is None:
        return cd.dropout(x, P), None
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak to the present memory
    y = cd.dropout(x, P)
    return y, memory("VmHWM") - before + x.nbytes


def measure(size, threads, dtype, seconds):
    """Return the times and the memory at one size, as a dict."""
    cd.set_num_threads(threads)
    cd.dropout(np.ones(64, element_type(dtype)), P)  # for first imports and allocations
    x = np.ones(size, element_type(dtype))
    y, peak = measure_memory(x)
    copy = y.view(np.uint8), x.view(np.uint8)
    calls = {"memcpy": lambda: np.copyto(*copy), "dropout": lambda: cd.dropout(x, P, out=y)}
    times, _ = time_calls(calls, seconds)
    ns = {name: statistics.median(each) / size * 1e9 for name, each in times.items()}
    nbytes = x.nbytes + y.nbytes
    return {"size": size, "threads": threads, "nbytes": nbytes, "peak": peak, **ns}


def measure_in_process(*arguments):
    """Return the result of `measure` in a new process."""
    command = [sys.executable, __file__, "--measure", json.dumps(arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


# ---- all sizes --------------------------------------------------------------------------------


def growth_errors(rows):
    """Yield a message for each row with too much time or memory.

    All rows have the same number of threads.
    """
    large = [row for row in rows if row["size"] >= LARGE]
    for row in large:
        name = f"{size_name(row['size'])}, {row['threads']} threads"
        bound = MAX_GROWTH * max(large[0]["dropout"], row["memcpy"])
        if row["dropout"] > bound:
            yield f"TOO SLOW: {name}: {row['dropout']:.3f} ns per element, over {bound:.3f}"
    for row in rows:
        if row["peak"] is not None and row["peak"] > row["nbytes"] + EXTRA_BYTES:
            name = f"{size_name(row['size'])}, {row['threads']} threads"
            extra = (row["peak"] - row["nbytes"]) / 2**20
            yield f"TOO MUCH MEMORY: {name}: {extra:.1f} MiB besides input and output"


def print_row(row):
    peak = "-" if row["peak"] is None else f"{row['peak'] / 2**20:.2f}"
    ns = f"{row['dropout']:10.3f} {row['memcpy']:8.3f} {row['dropout'] / row['memcpy']:8.2f}"
    name = f"{size_name(row['size']):>6} {row['threads']:7}"
    print(f"{name} | {ns} {row['nbytes'] / 2**20:13.2f} {peak:>10}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--dtype", choices=FLOATS, default="float32")
    parser.add_argument("--seconds", type=float, default=0.3, help="per size (default 0.3)")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return 0
    heading = (
        f"{'ns/element':>10} {'memcpy':>8} {'/memcpy':>8} {'in + out MiB':>13} {'peak MiB':>10}"
    )
    print(f"{'size':>6} {'threads':>7} | {heading}")
    errors = []
    for threads in options.threads:
        rows = []
        for size in options.sizes:
            needed = 2 * size * element_type(options.dtype).itemsize
            free = memory("MemAvailable", "/proc/meminfo")
            if free is not None and FREE_MEMORY * needed > free:
                print(f"left out: {size_name(size)} elements: too little free memory")
                continue
            rows.append(measure_in_process(size, threads, options.dtype, options.seconds))
            print_row(rows[-1])
        errors += growth_errors(rows)
    print(*errors, sep="\n", end="\n" * bool(errors))
    return int(bool(errors))


if __name__ == "__main__":
    sys.exit(main())
