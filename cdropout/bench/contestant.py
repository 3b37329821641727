"""What a contestant of the race is, what it works on, and the check that it does dropout.

A contestant's `prepare(arrays, p)` returns two functions without arguments: `forward()` returns y,
and `both()` returns (y, gx), where gx is the gradient of x that follows from gy, that of y. Each
call draws a new mask, and returns when its work is done.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cdropout._core.dtypes import element_type
from cdropout.selftest import keep_bound

LOAD_SECONDS = 0.2  # during which the load of the CPUs is measured
CHECKED = 1 << 22  # elements: a keep rate that is off by a thousandth is far out of its bound
ULPS = 4  # of error in a kept element: 1 - p, its inverse, the product


class Arrays(NamedTuple):
    """What contestants work on; y and gx are there already, the same for all that take turns."""

    x: np.ndarray
    gy: np.ndarray
    y: np.ndarray
    gx: np.ndarray


class Contestant(NamedTuple):
    """Who takes part, and how it is called."""

    name: str
    version: str
    prepare: Callable[[Arrays, float], tuple[Callable[[], Any], Callable[[], Any]]]
    as_array: Callable[[Any], np.ndarray] = np.asarray


def known_arrays(n, dtype):
    """Arrays of n elements; none of x and gy is 0, so that a 0 in y or gx is a dropped element."""
    at, kind = np.arange(n), element_type(dtype)
    x, gy = (1 + at % 97).astype(kind), (1 + at % 89).astype(kind)
    return Arrays(x, gy, np.zeros_like(x), np.zeros_like(x))


# ---- the check --------------------------------------------------------------------------------


def spacing(kind):
    """The distance from 1 to the next number of this type."""
    return float(np.nextafter(kind.type(1), kind.type(2))) - 1


def is_scaled(result, source, kept, p):
    """Whether result is source / (1 - p), but for rounding, where kept, and 0 elsewhere."""
    right = np.where(kept, source.astype(np.float64) / (1 - p), 0)
    tolerance = ULPS * spacing(result.dtype)
    return np.allclose(result.astype(np.float64), right, rtol=tolerance, atol=0)


def wrong_dropout(name, x, y, p):
    """What is wrong with y as a dropout of x, or None."""
    kept = y != 0
    n, count = kept.size, int(kept.sum())
    expected, bound = n * (1 - p), keep_bound(n, p)
    if abs(count - expected) > bound:
        right = f"{expected:.0f} +- {bound:.0f}"
        return f"{name} kept {count} of {n} elements, but {right} are right at p={p}"
    if not is_scaled(y, x, kept, p):
        return f"{name} does not scale kept elements by 1/(1 - p) at p={p}"
    return None


def wrong(contestant, dtype, p):
    """What is wrong with a contestant's dropout and its gradient, as a sentence, or None."""
    arrays = known_arrays(CHECKED, dtype)
    x, gy = arrays.x, arrays.gy
    forward, both = contestant.prepare(arrays, p)
    first = np.array(contestant.as_array(forward()))  # a copy: the next call may write there
    y, gx = (np.array(contestant.as_array(array)) for array in both())
    for name, result in ("forward", first), ("forward+backward", y):
        if result.dtype != x.dtype or result.shape != x.shape:
            return f"{name} returned {result.dtype} of shape {result.shape}"
        if reason := wrong_dropout(name, x, result, p):
            return reason
    if not is_scaled(gx, gy, y != 0, p):
        return "the gradient is not that of the mask drawn in the forward"
    # Two masks differ in 2 p (1 - p) of their elements; where hardly any should, chance may win.
    if CHECKED * p * (1 - p) > 100 and np.array_equal(first != 0, y != 0):
        return "two calls drew the same mask"
    return None


def cpus_used(contestant, dtype, p):
    """How many CPUs a contestant keeps busy: shows whether it could be held to its threads."""
    forward, _ = contestant.prepare(known_arrays(CHECKED, dtype), p)
    forward()
    began, busy = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < LOAD_SECONDS:
        forward()
    return (time.process_time() - busy) / (time.perf_counter() - began)
