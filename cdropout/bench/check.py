"""A check that an implementation computes dropout, and a measurement of its CPU usage."""

import time

import numpy as np

from cdropout.bench.peers import example_arrays
from cdropout.selftest import keep_bound

SIZE = 1 << 22  # elements; enough to detect a keep rate that is off by 0.002
TOLERANCE = 4  # ulps per kept element, because 1 - p, its inverse and the product are rounded
LOAD_SECONDS = 0.2  # duration of the measurement of CPU usage


def is_scaled(result, source, kept, p):
    """Return whether result is source / (1 - p), up to rounding, where kept is true, else 0."""
    expected = np.where(kept, source.astype(np.float64) / (1 - p), 0)
    kind = result.dtype.type
    ulp = float(np.nextafter(kind(1), kind(2))) - 1
    return np.allclose(result.astype(np.float64), expected, rtol=TOLERANCE * ulp, atol=0)


def dropout_error(name, x, y, p):
    """Return a message if y is not the result of dropout applied to x, otherwise None."""
    kept = y != 0
    n, count = kept.size, int(kept.sum())
    expected, bound = n * (1 - p), keep_bound(n, p)
    if abs(count - expected) > bound:
        return f"{name} kept {count} of {n} elements, expected {expected:.0f} +- {bound:.0f}"
    if not is_scaled(y, x, kept, p):
        return f"{name} does not scale kept elements by 1/(1 - p) at p={p}"
    return None


def find_error(implementation, dtype, p):
    """Return the first error in the results and gradients of an implementation, or None."""
    arrays = example_arrays(SIZE, dtype)
    x, gy = arrays.x, arrays.gy
    forward, both = implementation.prepare(arrays, p)
    first = np.array(implementation.as_array(forward()))  # a copy, as calls may reuse arrays
    y, gx = (np.array(implementation.as_array(array)) for array in both())
    for name, result in ("forward", first), ("forward+backward", y):
        if result.dtype != x.dtype or result.shape != x.shape:
            return f"{name} returned {result.dtype} of shape {result.shape}"
        if error := dropout_error(name, x, result, p):
            return error
    if not is_scaled(gx, gy, y != 0, p):
        return "the gradient does not use the mask of the forward pass"
    # Two masks differ in about 2 p (1 - p) SIZE elements. If this is small, the masks may be equal.
    if SIZE * p * (1 - p) > 100 and np.array_equal(first != 0, y != 0):
        return "two calls drew the same mask"
    return None


def cpus_used(implementation, dtype, p):
    """Return the number of CPUs that an implementation uses on average."""
    forward, _ = implementation.prepare(example_arrays(SIZE, dtype), p)
    forward()
    start, cpu_start = time.perf_counter(), time.process_time()
    while time.perf_counter() - start < LOAD_SECONDS:
        forward()
    return (time.process_time() - cpu_start) / (time.perf_counter() - start)
