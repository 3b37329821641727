"""The race of `cdropout bench`: contestants are checked, timed in turn, and put in one table."""

import datetime
import itertools
import json
import platform
import random
import statistics
import sys
import time
import timeit
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

import cdropout as cd
from cdropout import peers
from cdropout.core import dispatch
from cdropout.selftest import FALSE_ALARM

TURN = 1e-3  # seconds that a contestant's turn takes, in as many calls as that needs
FEWEST_ROUNDS, MOST_ROUNDS = 7, 300
SLOW = 0.005  # seconds; to such a call it hardly matters what the cache holds when it begins
BUSY = 0.9  # of a CPU: with less, others have run in between
MODES = ("forward", "forward+backward")
KERNEL_SIZE = 1 << 20
SMALL = 64
MASKS = 4  # packed masks taken in turn, lest a branch predictor learn one

# Each line has a marker and dashes of its own, to be told apart without colour.
STYLES = {
    "memcpy": {"linestyle": "-", "color": "0.7", "linewidth": 4},
    "cdropout": {"linestyle": "-", "marker": "o", "color": "black"},
    "numpy": {"linestyle": "--", "marker": "s"},
    "torch": {"linestyle": "-.", "marker": "^"},
    "tensorflow": {"linestyle": ":", "marker": "D"},
    "jax": {"linestyle": (0, (8, 2)), "marker": "v"},
    "keras": {"linestyle": (0, (3, 1, 1, 1, 1, 1)), "marker": "X"},
}


class Cell(NamedTuple):
    """One contestant's result at one size, forward or forward+backward."""

    size: int
    mode: str
    contestant: str
    ns_per_element: float  # the median over the rounds, as all that follows
    ns_quartiles: tuple
    gb_per_s: float
    to_memcpy: float  # time as a multiple of memcpy's in the same round
    to_best_peer: float | None  # likewise of the peer whose median is lowest
    rounds: int
    calls_a_round: int


# ---- timing -----------------------------------------------------------------------------------


def seconds_for(call, count):
    """Seconds that `count` calls take."""
    began = time.perf_counter()
    for _ in itertools.repeat(None, count):
        call()
    return time.perf_counter() - began


def calls_a_turn(call):
    """How many calls fill a turn; trying it out also lets compilers and allocators settle."""
    call()
    count = 1
    while (took := seconds_for(call, count)) < TURN / 4:
        count *= 4
    return max(1, round(count * TURN / took))


def race(calls, seconds):
    """Time calls against each other: in each round every one has its turn, in an order drawn anew.

    A turn begins with a call that is not timed, which brings the arrays into the cache.

    Parameters
    ----------
    calls : dict of name to callable without arguments
    seconds : float
        The time to spend on each of them, unless the fewest rounds need more.

    Returns
    -------
    times : dict of name to list of seconds a call, one a round
    counts : dict of name to the number of calls in a turn
    """
    counts = {name: calls_a_turn(call) for name, call in calls.items()}
    times = {name: [] for name in calls}
    began = time.perf_counter()
    order = list(calls)
    for done in range(MOST_ROUNDS):
        if done >= FEWEST_ROUNDS and time.perf_counter() - began > seconds * len(calls):
            break
        random.shuffle(order)
        for name in order:
            if not times[name] or times[name][-1] < SLOW:
                calls[name]()
            times[name].append(seconds_for(calls[name], counts[name]) / counts[name])
    return times, counts


def median_ratio(times, others):
    """The median over rounds of one time over the other's: what slows a whole round cancels."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def best_of(times, names):
    """The name with the lowest median, or None if there are no names."""
    return min(names, key=lambda name: statistics.median(times[name]), default=None)


def cells(size, mode, moved, times, counts):
    """The results of one race; `moved` is the number of bytes read and written."""
    best = best_of(times, [name for name in times if name in peers.PEERS])
    for name, each in times.items():
        median = statistics.median(each)
        low, _, high = statistics.quantiles(each, n=4)
        yield Cell(
            size,
            mode,
            name,
            median / size * 1e9,
            (low / size * 1e9, high / size * 1e9),
            moved / median / 1e9,
            median_ratio(each, times["memcpy"]),
            median_ratio(each, times[best]) if best else None,
            len(each),
            counts[name],
        )


def race_at(size, contestants, options):
    """Race forward, then forward+backward, at one size."""
    arrays = peers.known_arrays(size, options.dtype)
    prepared = {"memcpy": peers.memcpy(arrays)}
    prepared |= {each.name: each.prepare(arrays, options.p) for each in contestants}
    for at, mode in enumerate(MODES):
        show_progress(f"{size_name(size)} {mode}, of {', '.join(map(size_name, options.sizes))}")
        times, counts = race({name: calls[at] for name, calls in prepared.items()}, options.seconds)
        yield from cells(size, mode, 2 * (at + 1) * arrays.x.nbytes, times, counts)


# ---- the kernels by themselves ----------------------------------------------------------------


def float32_calls(x, y):
    """The calls on float32 arrays that are compared with a copy of x to y."""
    packed = itertools.cycle([cd.Mask(x.size, 0.1, seed).bits() for seed in range(MASKS)])
    calls = itertools.count()
    return {
        "memcpy": lambda: np.copyto(y, x),
        "forward, p = 0.1": lambda: cd.dropout(x, 0.1, out=y),
        "forward, p = 0.5": lambda: cd.dropout(x, 0.5, out=y),
        "forward, p = 0.1, to a new array": lambda: cd.dropout(x, 0.1),
        "backward from packed bits": lambda: cd.dropout_backward(x, next(packed), p=0.1, out=y),
        "bits alone, p = 0.1": lambda: cd.Mask(x.size, 0.1, call=next(calls)).bits(),
    }


def float64_calls(x, y):
    """The same for float64."""
    return {"memcpy": lambda: np.copyto(y, x), "forward": lambda: cd.dropout(x, 0.1, out=y)}


def small_call(seconds):
    """The median seconds of one call on a small array, with no Python function around it."""
    x, y = np.ones(SMALL, np.float32), np.empty(SMALL, np.float32)
    timer = timeit.Timer("dropout(x, 0.1, out=y)", globals={"dropout": cd.dropout, "x": x, "y": y})
    count = calls_a_turn(lambda: cd.dropout(x, 0.1, out=y))
    rounds = min(MOST_ROUNDS, max(FEWEST_ROUNDS, int(seconds / TURN)))
    return statistics.median(timer.repeat(rounds, count)) / count


def race_kernels(seconds):
    """The kernels of the instruction set in use, as a list of (what, number, unit)."""
    show_progress("kernels")
    times, _ = race(float32_calls(*peers.known_arrays(KERNEL_SIZE, "float32")[::2]), seconds)
    doubles, _ = race(float64_calls(*peers.known_arrays(KERNEL_SIZE, "float64")[::2]), seconds)
    drawn = times.pop("bits alone, p = 0.1")
    copy = times.pop("memcpy")
    ratio = "x memcpy"
    return [
        *((name, median_ratio(each, copy), ratio) for name, each in times.items()),
        ("forward, p = 0.1, float64", median_ratio(doubles["forward"], doubles["memcpy"]), ratio),
        ("bits alone, p = 0.1", KERNEL_SIZE / statistics.median(drawn) / 1e9, "G elements/s"),
        (f"dropout(x, 0.1, out=y) on {SMALL} elements", small_call(seconds) * 1e6, "us"),
    ]


# ---- who takes part ---------------------------------------------------------------------------


def admit(name, options):
    """Return (contestant, None), or (None, why it is left out), having made and checked it."""
    show_progress(f"checking {name}")
    maker = peers.PEERS.get(name, peers.cdropout)
    try:
        contestant = maker(options.threads, options.dtype)
        reason = peers.wrong(contestant, options.dtype, options.p)
    except Exception as error:  # of any kind that a library has: the others can still be raced
        contestant, reason = None, f"{type(error).__name__}: {error}"
    return (None, " ".join(reason.split())) if reason else (contestant, None)


def gather(options):
    """The contestants, {name: why left out}, and {name: CPUs used} of those not held to threads."""
    contestants, left_out, loose = [], {}, {}
    for name in ["cdropout", *options.peers]:
        contestant, reason = admit(name, options)
        if reason:
            left_out[name] = reason
            continue
        contestants.append(contestant)
        used = peers.cpus_used(contestant, options.dtype, options.p)
        if used > options.threads + 0.2:
            loose[name] = used
    return contestants, left_out, loose


def cpu_share():
    """Return a function that says which share of one CPU this process has got since now."""
    began, busy = time.perf_counter(), time.process_time()
    return lambda: (time.process_time() - busy) / (time.perf_counter() - began)


def environment(options):
    """What the numbers depend on."""
    return {
        "cdropout": version("cdropout"),
        "isa": dispatch.isa,
        "cpu": cpu_name(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "threads": options.threads,
        "p": options.p,
        "dtype": options.dtype,
    }


def cpu_name():
    """The CPU's own name, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# ---- what is shown ----------------------------------------------------------------------------


def show_progress(text):
    """One line on a terminal that the next replaces; nothing in a pipe."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def size_name(size):
    """64, 1Ki, 16Mi."""
    for step, suffix in (1 << 20, "Mi"), (1 << 10, "Ki"):
        if size % step == 0:
            return f"{size // step}{suffix}"
    return str(size)


def heading_words(about):
    """What was raced, for the table and the figure."""
    threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}"
    return f"cdropout {about['cdropout']}", about["isa"], threads, f"p={about['p']}", about["dtype"]


def heading(results):
    """The lines above the table."""
    about = results["environment"]
    yield ", ".join(heading_words(about))
    yield f"{about['cpu']}; {about['platform']}; Python {about['python']}, NumPy {about['numpy']}"
    who = ", ".join(f"{name} {version}" for name, version in results["contestants"].items())
    bound = f"a {FALSE_ALARM:g} bound over {peers.CHECKED} elements"
    yield f"checked (keep rate within {bound}, scale, gradient): {who}"
    for name, reason in results["left_out"].items():
        yield f"left out: {name}: {reason}"
    for name, used in results["not_held_to_threads"].items():
        yield f"not held to the threads: {name} kept {used:.1f} CPUs busy"
    if about["cpu_share"] < BUSY:
        share = f"{about['cpu_share']:.0%} of a CPU"
        yield f"BUSY MACHINE: this process got only {share}; long calls look slower than they are"


def columns(cell):
    """The columns of the table that say one cell."""
    peer = "-" if cell.to_best_peer is None else f"{cell.to_best_peer:.3f}"
    return f"{cell.ns_per_element:10.3f} {cell.gb_per_s:8.2f} {cell.to_memcpy:8.2f} {peer:>8}"


def table(cells):
    """The lines of the table, one a size and contestant, with forward+backward on the right."""
    names = f"{'ns/element':>10} {'GB/s':>8} {'/memcpy':>8} {'/peer':>8}"
    yield f"{'':18} | {'forward':^37} | {'':9} forward + backward"
    yield f"{'size':>6} {'':11} | {names} | {names}"
    for size, group in itertools.groupby(cells, key=lambda cell: cell.size):
        yield f"{'-' * 18}-+-{'-' * 37}-+-{'-' * 37}"
        group = list(group)
        forward, both = ([cell for cell in group if cell.mode == mode] for mode in MODES)
        for left, right in zip(forward, both, strict=True):
            yield f"{size_name(size):>6} {left.contestant:11} | {columns(left)} | {columns(right)}"
    yield "Medians of paired rounds. GB/s: bytes read and written. /memcpy: time divided by that of"
    yield "a memcpy of the same bytes (np.copyto, 1 thread); /peer: by that of the fastest peer."


def kernel_lines(results):
    """The section about the kernels."""
    about = results["environment"]
    size, isa = size_name(KERNEL_SIZE), about["isa"]
    yield f"kernels at {size} elements, {isa}, float32, paired with memcpy:"
    for name, number, unit in results["kernels"]:
        yield f"  {name:38} {number:7.2f} {unit}"


def plot(results, path):
    """Draw ns per element over size, a panel a mode, a line a contestant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    sizes = sorted({cell.size for cell in results["cells"]})
    for axes, mode in zip(figure.subplots(1, 2, sharey=True), MODES, strict=True):
        panel = [cell for cell in results["cells"] if cell.mode == mode]
        for name in ["memcpy", *results["contestants"]]:
            ns = [cell.ns_per_element for cell in panel if cell.contestant == name]
            axes.plot(sizes, ns, label=name, **STYLES[name])
        axes.set(xscale="log", yscale="log", title=mode, xlabel="elements")
        axes.set_xticks(sizes, [size_name(size) for size in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("ns an element")
    figure.axes[1].legend()
    about = results["environment"]
    figure.suptitle(", ".join([*heading_words(about), about["cpu"]]))
    figure.savefig(path, dpi=120)


def run(options):
    """Run the benchmark.

    Parameters
    ----------
    options : argparse.Namespace
        p, dtype, sizes, threads, seconds, peers (names), kernels (those alone), json and plot
        (a path or None), as `cdropout.__main__` has checked them.

    Returns
    -------
    int
        The exit code: 1 if this package failed its check.
    """
    contestants, left_out, loose = gather(options)
    results = {
        "environment": environment(options),
        "contestants": {each.name: each.version for each in contestants},
        "left_out": left_out,
        "not_held_to_threads": loose,
        "cells": [],
    }
    share = cpu_share()
    for size in [] if options.kernels else options.sizes:
        results["cells"] += race_at(size, contestants, options)
    results["kernels"] = race_kernels(options.seconds)
    results["environment"]["cpu_share"] = share()
    show_progress("")
    print(*heading(results), "", sep="\n")
    if results["cells"]:
        print(*table(results["cells"]), "", sep="\n")
    print(*kernel_lines(results), sep="\n")
    if options.json:
        numbers = {**results, "cells": [cell._asdict() for cell in results["cells"]]}
        Path(options.json).write_text(json.dumps(numbers, indent=1) + "\n")
    if options.plot:
        plot(results, options.plot)
    return 1 if "cdropout" in left_out else 0
