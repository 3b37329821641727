"""Timing of calls and of implementations, and the properties of the machine that affect times."""

import datetime
import itertools
import platform
import random
import re
import statistics
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

import cdropout as cd
from cdropout._core import dispatch
from cdropout.bench import peers

BATCH_SECONDS = 1e-3  # duration of a batch, which is a number of calls that are timed together
MIN_ROUNDS, MAX_ROUNDS = 7, 300
LONG_CALL = 0.005  # seconds; the time of a longer call hardly depends on the contents of the cache
CPU_INFO = Path("/proc/cpuinfo")
MODES = ("forward", "forward+backward")


def size_name(size: int) -> str:
    """Return a size in the form 64, 1Ki, 16Mi or 1Gi."""
    for unit, suffix in (1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki"):
        if size % unit == 0:
            return f"{size // unit}{suffix}"
    return str(size)


# ---- the machine ------------------------------------------------------------------------------


def cpu_name() -> str:
    """Return the model of the CPU, or its architecture if the model is unknown."""
    text = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()


def advice() -> str:
    """Return advice on how to make cdropout faster on this CPU, or an empty string."""
    return dispatch.advise(dispatch.isa, dispatch.built(), dispatch.runnable(), dispatch.vectors)


def environment(options):
    """Return the settings, versions and hardware that the times depend on."""
    return {
        "cdropout": cd.__version__,
        "isa": dispatch.isa,
        "vectors": dispatch.vectors,
        "compiler": dispatch.compiler,
        "advice": advice(),
        "cpu": cpu_name(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "threads": options.threads,
        "p": options.p,
        "dtype": ",".join(options.dtype),
        "cold": options.cold,
    }


def start_cpu_usage():
    """Return a function that returns the mean CPU usage of this process since this call."""
    start, cpu_start = time.perf_counter(), time.process_time()
    return lambda: (time.process_time() - cpu_start) / (time.perf_counter() - start)


@cache
def cache_filler():
    """Return an array twice as large as the cache, since caches do not evict strictly by age."""
    return np.ones(2 * dispatch.last_level_cache(), np.uint8)


def empty_cache():
    """Evict all other data from the cache by reading an array.

    The array is not written, because modified data would have to be written back to memory later.
    """
    cache_filler().max()


# ---- timing of calls --------------------------------------------------------------------------


def seconds_for(call, count):
    """Return the seconds that `count` calls take."""
    start = time.perf_counter()
    for _ in itertools.repeat(None, count):
        call()
    return time.perf_counter() - start


def calls_per_batch(call):
    """Return how many calls fill a batch; the trial calls also warm up compilers and allocators."""
    call()
    count = 1
    while (seconds := seconds_for(call, count)) < BATCH_SECONDS / 4:
        count *= 4
    return max(1, round(count * BATCH_SECONDS / seconds))


def time_batch(call, count, cold, previous):
    """Return the seconds per call of a batch.

    If `cold` is true, the cache is emptied first. Otherwise, a call that is not timed brings the
    arrays into the cache; this call is omitted if the `previous` time per call was long.
    """
    if cold:
        empty_cache()
    elif previous < LONG_CALL:
        call()
    return seconds_for(call, count) / count


def time_calls(calls, seconds, cold=False):
    """Time callables in rounds. Each round times one batch of each callable, in random order.

    Parameters
    ----------
    calls : dict of name to callable without arguments
    seconds : float
        The time to spend on each of the calls; MIN_ROUNDS rounds may take longer.
    cold : bool
        If true, empty the cache before each call. A batch then has one call.

    Returns
    -------
    times : dict of name to list of float
        The seconds per call in each round.
    counts : dict of name to int
        The number of calls per batch.
    """
    counts = {name: calls_per_batch(call) for name, call in calls.items()}
    if cold:
        counts = dict.fromkeys(counts, 1)
    times = {name: [] for name in calls}
    start = time.perf_counter()
    order = list(calls)
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and time.perf_counter() - start > seconds * len(calls):
            break
        random.shuffle(order)
        for name in order:
            previous = times[name][-1] if times[name] else 0
            times[name].append(time_batch(calls[name], counts[name], cold, previous))
    return times, counts


def median_ratio(times, others):
    """Return the median of times / others. Changes of the CPU speed cancel out in each ratio."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


# ---- timing of implementations ----------------------------------------------------------------


class Measurement(NamedTuple):
    """The times of one implementation for one element type, size and mode."""

    dtype: str
    size: int
    mode: str  # one of MODES
    implementation: str
    ns_per_element: float  # median over the rounds, like gb_per_s, to_memcpy and to_cdropout
    ns_quartiles: tuple[float, float]
    gb_per_s: float
    to_memcpy: float  # time divided by that of memcpy in the same round
    to_cdropout: float | None  # time divided by that of cdropout; None if cdropout failed its check
    rounds: int
    calls_per_batch: int


def summarize(dtype, size, mode, nbytes, times, counts):
    """Yield a Measurement per implementation. A call reads and writes `nbytes` bytes in total."""
    ours = times.get("cdropout")
    for name, seconds in times.items():
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        yield Measurement(
            dtype,
            size,
            mode,
            name,
            median / size * 1e9,
            (low / size * 1e9, high / size * 1e9),
            nbytes / median / 1e9,
            median_ratio(seconds, times["memcpy"]),
            median_ratio(seconds, ours) if ours else None,
            len(seconds),
            counts[name],
        )


def measure_size(size, dtype, implementations, options, begin):
    """Yield the Measurements of copies and implementations at one size, in each mode.

    `begin(text)` is called at the start of each mode.
    """
    arrays = peers.example_arrays(size, dtype)
    prepare = peers.copies(options.threads)
    prepare |= {each.name: each.prepare for each in implementations}
    prepared = {name: function(arrays, options.p) for name, function in prepare.items()}
    for i, mode in enumerate(MODES):
        begin(f"{mode} on {size_name(size)} elements of {dtype}")
        calls = {name: functions[i] for name, functions in prepared.items()}
        times, counts = time_calls(calls, options.seconds, options.cold)
        yield from summarize(dtype, size, mode, 2 * (i + 1) * arrays.x.nbytes, times, counts)
