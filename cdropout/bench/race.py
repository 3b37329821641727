"""The race: contestants are timed in turn, in rounds, and each round's times are compared."""

import itertools
import random
import statistics
import sys
import time
from typing import NamedTuple

from cdropout.bench import machine, peers
from cdropout.bench.contestant import known_arrays

TURN = 1e-3  # seconds that a contestant's turn takes, in as many calls as that needs
FEWEST_ROUNDS, MOST_ROUNDS = 7, 300
SLOW = 0.005  # seconds; to such a call it hardly matters what the cache holds when it begins
MODES = ("forward", "forward+backward")


class Cell(NamedTuple):
    """One contestant's result for one type and size, forward or forward+backward."""

    dtype: str
    size: int
    mode: str
    contestant: str
    ns_per_element: float  # the median over the rounds, as all that follows
    ns_quartiles: tuple[float, float]
    gb_per_s: float
    to_memcpy: float  # time as a multiple of memcpy's in the same round
    to_best_peer: float | None  # likewise of the peer whose median is lowest
    rounds: int
    calls_a_round: int
    to_memcpy_runs: list[float]  # to_memcpy of each run, when there are several


def show_progress(text):
    """One line on a terminal that the next replaces; nothing in a pipe."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def size_name(size: int) -> str:
    """64, 1Ki, 16Mi, 1Gi."""
    for step, suffix in (1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki"):
        if size % step == 0:
            return f"{size // step}{suffix}"
    return str(size)


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


def take_turn(call, count, cold, last):
    """Seconds a call, after a call that is not timed and brings the arrays into the cache.

    A cold turn is one call, after the cache has been emptied.
    """
    if cold:
        machine.empty_cache()
        return seconds_for(call, 1)
    if last < SLOW:
        call()
    return seconds_for(call, count) / count


def race(calls, seconds, cold=False):
    """Time calls against each other: in each round every one has its turn, in an order drawn anew.

    Parameters
    ----------
    calls : dict of name to callable without arguments
    seconds : float
        The time to spend on each of them, unless the fewest rounds need more.
    cold : bool
        Whether the cache is emptied before each call, and else filled with what the call works on.

    Returns
    -------
    times : dict of name to list of seconds a call, one a round
    counts : dict of name to the number of calls in a turn
    """
    counts = {name: calls_a_turn(call) for name, call in calls.items()}
    if cold:
        counts = dict.fromkeys(counts, 1)
    times = {name: [] for name in calls}
    began = time.perf_counter()
    order = list(calls)
    for done in range(MOST_ROUNDS):
        if done >= FEWEST_ROUNDS and time.perf_counter() - began > seconds * len(calls):
            break
        random.shuffle(order)
        for name in order:
            last = times[name][-1] if times[name] else 0
            times[name].append(take_turn(calls[name], counts[name], cold, last))
    return times, counts


# ---- what the times say -----------------------------------------------------------------------


def median_ratio(times, others):
    """The median over rounds of one time over the other's: what slows a whole round cancels."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def best_of(times, names):
    """The name with the lowest median, or None if there are no names."""
    return min(names, key=lambda name: statistics.median(times[name]), default=None)


def cells(dtype, size, mode, moved, times, counts):
    """The results of one race; `moved` is the number of bytes read and written."""
    best = best_of(times, [name for name in times if name in peers.PEERS])
    for name, each in times.items():
        low, median, high = statistics.quantiles(each, n=4, method="inclusive")
        to_memcpy = median_ratio(each, times["memcpy"])
        yield Cell(
            dtype,
            size,
            mode,
            name,
            median / size * 1e9,
            (low / size * 1e9, high / size * 1e9),
            moved / median / 1e9,
            to_memcpy,
            median_ratio(each, times[best]) if best else None,
            len(each),
            counts[name],
            [to_memcpy],
        )


def race_at(size, dtype, contestants, options):
    """Race forward, then forward+backward, at one size."""
    arrays = known_arrays(size, dtype)
    prepares = peers.rooflines(options.threads)
    prepares |= {each.name: each.prepare for each in contestants}
    prepared = {name: prepare(arrays, options.p) for name, prepare in prepares.items()}
    for at, mode in enumerate(MODES):
        sizes = ", ".join(map(size_name, options.sizes))
        show_progress(f"{dtype} {size_name(size)} {mode}, of {sizes}")
        calls = {name: calls[at] for name, calls in prepared.items()}
        times, counts = race(calls, options.seconds, options.cold)
        yield from cells(dtype, size, mode, 2 * (at + 1) * arrays.x.nbytes, times, counts)
