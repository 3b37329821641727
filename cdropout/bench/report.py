"""What `cdropout bench` prints and writes: who took part where, and a table for each type."""

import contextlib
import itertools
import json
from pathlib import Path

from cdropout._core import dispatch
from cdropout.bench import contestant
from cdropout.bench.race import MODES, size_name
from cdropout.selftest import FALSE_ALARM

BUSY = 0.9  # of a CPU: with less, others have run in between
FOOT = """\
Medians of paired rounds. GB/s: bytes read and written. /memcpy: time divided by that of a memcpy
of the same bytes (np.copyto, 1 thread); /peer: by that of the fastest peer. memcpy-threads: a
piece for each thread; memcpy-stream: likewise, with stores that bypass the cache."""


def heading_words(about):
    """What was raced, for the table and the figure."""
    threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}"
    isa = dispatch.describe([about["isa"]], about["vectors"])
    words = [f"cdropout {about['cdropout']}", isa, threads, f"p={about['p']}"]
    runs = [f"{about['runs']} runs"] * (about["runs"] > 1)
    return [*words, about["dtype"].replace(",", ", "), *["cold"] * about["cold"], *runs]


def heading(results):
    """The lines above the table."""
    about = results["environment"]
    yield ", ".join(heading_words(about))
    versions = f"Python {about['python']}, NumPy {about['numpy']}; built by {about['compiler']}"
    yield f"{about['cpu']}; {about['platform']}; {versions}"
    if about["faster"]:
        yield f"to make it faster, {about['faster']}"
    who = ", ".join(f"{name} {version}" for name, version in results["contestants"].items())
    bound = f"a {FALSE_ALARM:g} bound over {contestant.CHECKED} elements"
    yield f"checked (keep rate within {bound}, scale, gradient): {who}"
    for name, reason in results["left_out"].items():
        yield f"left out: {name}: {reason}"
    for name, used in results["not_held_to_threads"].items():
        yield f"not held to the threads: {name} kept {used:.1f} CPUs busy"
    if about["cold"]:
        yield "cold: the cache was emptied before each call; inputs and outputs come from memory"
    if about["cpu_share"] < BUSY:
        share = f"{about['cpu_share']:.0%} of a CPU"
        yield f"BUSY MACHINE: this process got only {share}; long calls look slower than they are"


def columns(cell):
    """The columns of the table that say one cell."""
    peer = "-" if cell.to_best_peer is None else f"{cell.to_best_peer:.3f}"
    return f"{cell.ns_per_element:10.3f} {cell.gb_per_s:8.2f} {cell.to_memcpy:8.2f} {peer:>8}"


def table(dtype, cells):
    """The lines of a type's table, one a size and contestant, forward+backward on the right."""
    names = f"{'ns/element':>10} {'GB/s':>8} {'/memcpy':>8} {'/peer':>8}"
    yield f"{dtype:26} | {'forward':^37} | {'':9} forward + backward"
    yield f"{'size':>6} {'':19} | {names} | {names}"
    for size, group in itertools.groupby(cells, key=lambda cell: cell.size):
        yield f"{'-' * 26}-+-{'-' * 37}-+-{'-' * 37}"
        group = list(group)
        forward, both = ([cell for cell in group if cell.mode == mode] for mode in MODES)
        for left, right in zip(forward, both, strict=True):
            yield f"{size_name(size):>6} {left.contestant:19} | {columns(left)} | {columns(right)}"


def tables(cells):
    """A table for each type, and what their columns mean."""
    for dtype, group in itertools.groupby(cells, key=lambda cell: cell.dtype):
        yield from table(dtype, group)
        yield ""
    yield FOOT


@contextlib.contextmanager
def naming(path):
    """Add the path to an OSError that lacks one, as a write error does."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_json(results, path):
    """Write the numbers of a run to a file."""
    with naming(path):
        Path(path).write_text(json.dumps(results, indent=1) + "\n")
