"""Several runs of the race as one, each in a process of its own.

Where a process's memory lies makes some calls a third slower than in another process, in all rounds
alike: only runs in several processes show that noise.
"""

import json
import statistics
import tempfile
from argparse import Namespace
from pathlib import Path

from cdropout import selftest
from cdropout._core import dispatch
from cdropout.bench.race import show_progress

RACED = ("p", "dtype", "sizes", "threads", "cold", "seconds", "peers", "kernels")
KEY = ("dtype", "size", "mode", "contestant")


def write_measure(settings, path):
    """What `measure_apart` starts: one run, to a file."""
    from cdropout.bench.command import measure

    Path(path).write_text(json.dumps(measure(Namespace(**settings))))


def measure_apart(options):
    """`options.runs` runs in a process each, merged; CalledProcessError if one fails."""
    settings = {name: getattr(options, name) for name in RACED}
    results = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.json")
        statement = (
            f"from cdropout.bench import runs; runs.write_measure({settings}, {str(path)!r})"
        )
        for done in range(options.runs):
            show_progress(f"run {done + 1} of {options.runs}")
            selftest.run_under(dispatch.isa, statement, check=True)
            results.append(json.loads(path.read_text()))
    return merge(results)


# ---- runs as one ------------------------------------------------------------------------------


def middle(values):
    """The median of numbers, of the parts of pairs, or None of Nones."""
    if isinstance(values[0], list):
        return [statistics.median(part) for part in zip(*values, strict=True)]
    return None if None in values else statistics.median(values)


def merge_cells(cells):
    """The same cell of each run as one."""
    numbers = [name for name in cells[0] if name not in (*KEY, "to_memcpy_runs", "rounds")]
    return {
        **{name: cells[0][name] for name in KEY},
        **{name: middle([cell[name] for cell in cells]) for name in numbers},
        "rounds": sum(cell["rounds"] for cell in cells),
        "to_memcpy_runs": [ratio for cell in cells for ratio in cell["to_memcpy_runs"]],
    }


def merge(results):
    """Runs as one: medians over them, of the cells that each has."""
    of_run = [{tuple(cell[name] for name in KEY): cell for cell in run["cells"]} for run in results]
    shared = [key for key in of_run[0] if all(key in cells for cells in of_run)]
    merged = {
        **results[0],
        "cells": [merge_cells([cells[key] for cells in of_run]) for key in shared],
    }
    for name in "contestants", "left_out", "not_held_to_threads":
        merged[name] = {key: value for run in results for key, value in run[name].items()}
    numbers = {name: [] for name in results[0]["kernel_runs"]}
    for run in results:
        for name, each in run["kernel_runs"].items():
            numbers[name] += each
    lines = [(name, statistics.median(numbers[name]), unit) for name, _, unit in merged["kernels"]]
    shares = [run["environment"]["cpu_share"] for run in results]
    about = {**merged["environment"], "runs": len(results), "cpu_share": min(shares)}
    return {**merged, "environment": about, "kernels": lines, "kernel_runs": numbers}
