"""The kernels by themselves: the section of `cdropout bench` that follows the table."""

import itertools
import statistics
import timeit

import numpy as np

import cdropout as cd
from cdropout.bench.contestant import known_arrays
from cdropout.bench.race import (
    FEWEST_ROUNDS,
    MOST_ROUNDS,
    TURN,
    calls_a_turn,
    median_ratio,
    race,
    show_progress,
    size_name,
)

SIZE = 1 << 20
SMALL = 64
PAIRED = "x memcpy"
MASKS = 4  # packed masks taken in turn, lest a branch predictor learn one


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


def other_calls(dtype, x, y):
    """The same for another type."""
    copy = y.view(np.uint8), x.view(np.uint8)
    name = f"forward, p = 0.1, {dtype}"
    return {"memcpy": lambda: np.copyto(*copy), name: lambda: cd.dropout(x, 0.1, out=y)}


def small_call(seconds):
    """The median seconds of one call on a small array, with no Python function around it."""
    x, y = np.ones(SMALL, np.float32), np.empty(SMALL, np.float32)
    timer = timeit.Timer("dropout(x, 0.1, out=y)", globals={"dropout": cd.dropout, "x": x, "y": y})
    count = calls_a_turn(lambda: cd.dropout(x, 0.1, out=y))
    rounds = min(MOST_ROUNDS, max(FEWEST_ROUNDS, int(seconds / TURN)))
    return statistics.median(timer.repeat(rounds, count)) / count


def race_kernels(seconds, cold):
    """The kernels of the instruction set in use.

    Returns
    -------
    list of (what, number, unit)
    """
    show_progress("kernels")
    times, _ = race(float32_calls(*known_arrays(SIZE, "float32")[::2]), seconds, cold)
    drawn, copy = times.pop("bits alone, p = 0.1"), times.pop("memcpy")
    lines = [(name, median_ratio(each, copy), PAIRED) for name, each in times.items()]
    for dtype in "float64", "float16":
        others, _ = race(other_calls(dtype, *known_arrays(SIZE, dtype)[::2]), seconds, cold)
        copy = others.pop("memcpy")
        lines += [(name, median_ratio(each, copy), PAIRED) for name, each in others.items()]
    lines.append(("bits alone, p = 0.1", SIZE / statistics.median(drawn) / 1e9, "G elements/s"))
    if not cold:
        small = f"dropout(x, 0.1, out=y) on {SMALL} elements"
        lines.append((small, small_call(seconds) * 1e6, "us"))
    return lines


def kernel_lines(results):
    """The lines of the section."""
    about = results["environment"]
    with_what = "paired with memcpy" + ", cold" * about["cold"]
    yield f"kernels at {size_name(SIZE)} elements, {about['isa']}, float32, {with_what}:"
    for name, number, unit in results["kernels"]:
        yield f"  {name:38} {number:7.2f} {unit}"
