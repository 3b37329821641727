"""How the cost of a dropout grows with the array: time an element, and the peak of memory.

Each size runs in a process of its own, whose peak of memory is that of its one array and result.
"""

import json
import statistics
import subprocess
import sys
from typing import Any

import numpy as np

import cdropout as cd
from cdropout import selftest
from cdropout._core import dispatch
from cdropout._core.dtypes import element_type
from cdropout.bench import machine
from cdropout.bench.race import median_ratio, race, show_progress, size_name
from cdropout.bench.report import write_json

SIZES = [1 << bits for bits in range(6, 31, 2)]
CALL = 1 << 16  # elements from which the cost of the call itself hardly counts
FLAT = 2.0  # times what an element costs at CALL, or memcpy at the same size, is still flat
SPARE = 1 << 20  # bytes beside input and output: threads, and what Linux counts late
MARGIN = 1.2  # times the memory of input and output should be free before they are asked for


# ---- in a process of its own ------------------------------------------------------------------


def measure(size, threads, dtype, p, seconds):
    """What one size costs, in this process, as a dict."""
    cd.set_num_threads(threads)
    cd.dropout(np.ones(64, element_type(dtype)), p)  # imports and first allocations
    machine.forget_peak()
    before = machine.resident_memory()
    x = np.ones(size, element_type(dtype))
    y = cd.dropout(x, p)
    peak = machine.peak_memory()
    copy = y.view(np.uint8), x.view(np.uint8)
    calls = {"memcpy": lambda: np.copyto(*copy), "cdropout": lambda: cd.dropout(x, p, out=y)}
    times, _ = race(calls, seconds)
    return {
        "size": size,
        "threads": threads,
        "ns_per_element": statistics.median(times["cdropout"]) / size * 1e9,
        "memcpy_ns_per_element": statistics.median(times["memcpy"]) / size * 1e9,
        "to_memcpy": median_ratio(times["cdropout"], times["memcpy"]),
        "input_and_output": x.nbytes + y.nbytes,
        "peak": None if peak is None else peak - before,
    }


def print_measure(*arguments):
    """`measure` for the process that started this one."""
    json.dump(measure(*arguments), sys.stdout)


def measure_apart(size, threads, dtype, options):
    """`measure` in a new process, or the reason, a str, why there is no result."""
    wanted, free = 2 * size * element_type(dtype).itemsize, machine.free_memory()
    if free is not None and wanted * MARGIN > free:
        return f"{wanted >> 20} MiB are too much for the {free >> 20} MiB that are free"
    arguments = size, threads, dtype, options.p, options.seconds
    statement = f"from cdropout.bench import growth; growth.print_measure(*{arguments!r})"
    done = selftest.run_under(dispatch.isa, statement, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return f"the process ended with code {done.returncode}"
    return json.loads(done.stdout)


# ---- what it says -----------------------------------------------------------------------------


def not_flat(rows):
    """The rows, all of one number of threads, whose time an element is not flat, as sentences."""
    rows = [row for row in rows if row["size"] >= CALL]
    for row in rows:
        bound = FLAT * max(rows[0]["ns_per_element"], row["memcpy_ns_per_element"])
        if row["ns_per_element"] > bound:
            at = f"{size_name(row['size'])}, {row['threads']} threads"
            yield f"NOT FLAT: {at}: {row['ns_per_element']:.3f} ns an element, over {bound:.3f}"


def too_much_memory(rows):
    """The rows that took more memory than input and output, as sentences."""
    for row in rows:
        if row["peak"] is not None and row["peak"] > row["input_and_output"] + SPARE:
            at = f"{size_name(row['size'])}, {row['threads']} threads"
            more = (row["peak"] - row["input_and_output"]) / 2**20
            yield f"TOO MUCH MEMORY: {at}: {more:.1f} MiB more than input and output"


def table(rows):
    """The lines of the table, one a size and number of threads."""
    names = f"{'ns/element':>10} {'memcpy':>8} {'/memcpy':>8} {'in + out MiB':>13} {'peak MiB':>10}"
    yield f"{'size':>6} {'threads':>7} | {names}"
    for row in rows:
        ns = f"{row['ns_per_element']:10.3f} {row['memcpy_ns_per_element']:8.3f}"
        peak = "-" if row["peak"] is None else f"{row['peak'] / 2**20:.2f}"
        memory = f"{row['input_and_output'] / 2**20:13.2f} {peak:>10}"
        at = f"{size_name(row['size']):>6} {row['threads']:7}"
        yield f"{at} | {ns} {row['to_memcpy']:8.2f} {memory}"


def report(dtype, rows, missing):
    """The lines for one type, and whether all is as it should be."""
    wrong = list(too_much_memory(rows))
    for threads in sorted({row["threads"] for row in rows}):
        wrong += not_flat([row for row in rows if row["threads"] == threads])
    lines = [f"{dtype}: time of dropout(x, p, out=y); peak of memory of y = dropout(x, p)"]
    return [*lines, *table(rows), *missing, *wrong], not wrong


def run(options: Any) -> int:
    """Measure and print how the cost grows.

    Parameters
    ----------
    options : argparse.Namespace
        p, dtype, sizes, threads (1 is measured too), seconds and json, as in `command.run`.

    Returns
    -------
    int
        The exit code: 1 if time or memory grows faster than the array, or nothing was measured.
    """
    everything, good = {"environment": machine.environment(options), "growth": []}, True
    print(f"cdropout {cd.__version__}, {dispatch.isa}, p={options.p}, {machine.cpu_name()}")
    for dtype in options.dtype:
        rows, missing = [], []
        for size in options.sizes:
            for threads in sorted({1, options.threads}):
                show_progress(f"{dtype} {size_name(size)}, {threads} threads")
                row = measure_apart(size, threads, dtype, options)
                if isinstance(row, str):
                    missing.append(f"left out: {size_name(size)}, {threads} threads: {row}")
                else:
                    rows.append(row)
        show_progress("")
        lines, right = report(dtype, rows, missing)
        print(*lines, sep="\n")
        everything["growth"] += [{"dtype": dtype, **row} for row in rows]
        good = good and right and bool(rows)
    if options.json:
        write_json(everything, options.json)
    return 0 if good else 1
