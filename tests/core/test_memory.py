"""Tests of memory: too little of it changes nothing, and none is kept, nor a reference."""

import gc
import sys
import sysconfig
import tracemalloc

import numpy as np
import pytest

import cdropout as cd

from ..helpers.subprocess_runner import run

LIMIT = """
import resource
import numpy as np
import cdropout as cd
huge = np.broadcast_to(np.float32(1), (1 << 15, 1 << 15))     # 4 GiB, were they not all the same
fortran = np.ones((4096, 4096), np.float32, order="F")
small, bits = np.ones(1000, np.float32), np.zeros(1 << 21, np.uint8)
generator, module, failed = cd.Generator(1), cd.Dropout(rng=2), 0
module(small)
mask = cd.Mask(huge.shape, 0.5)
with open("/proc/self/statm") as status:
    used = int(status.read().split()[0]) * resource.getpagesize()
limit = used + (8 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
for call in [
    lambda: cd.dropout(huge, rng=generator),
    lambda: cd.dropout(huge, rng=generator, broadcast_dims=0),
    lambda: cd.dropout(huge, 1, rng=generator),
    lambda: cd.dropout_backward(huge, mask),
    lambda: cd.dropout_backward(huge, np.broadcast_to(np.True_, huge.shape), p=0.5),
    lambda: module(huge),
    lambda: mask.apply(huge),
    lambda: mask.bits(),
    lambda: mask.to_scale(),
    lambda: mask[::2].bits(),
    lambda: np.asarray(mask),
]:
    try:
        call()
    except MemoryError:
        failed += 1
assert failed == 11, failed
assert generator.calls == 0 and module.mask == cd.Mask(1000, 0.5, 2)
cd.dropout_backward(fortran, bits, True, p=0.5)  # in any memory order without a copy
assert fortran.max() == 0
y, drawn = cd.dropout(small, rng=generator, return_mask=True)
assert drawn == cd.Mask(1000, 0.5, 1) and (y == drawn.to_scale()).all()
print("done")
"""


SCRATCH = """
import ctypes, resource
import numpy as np
import cdropout as cd
malloc = ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
fortran = np.ones((2048, 1024), np.float32, order="F")
plain = cd.dropout(fortran, rng=1)
y = np.zeros_like(fortran)
limits = resource.getrlimit(resource.RLIMIT_AS)
with open("/proc/self/statm") as status:
    used = int(status.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used, limits[1]))
while malloc(1 << 17):
    pass
assert not malloc(1 << 18)
cd.dropout(fortran, rng=1, out=y)  # its tiles are smaller then
assert not malloc(1 << 18)
resource.setrlimit(resource.RLIMIT_AS, limits)
assert 0 < np.count_nonzero(y) < y.size and np.array_equal(y, plain)
print("done")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_no_memory_for_large_tiles():
    status, out, err = run(SCRATCH, CDROPOUT_NUM_THREADS="1")
    assert (status, out) == (0, "done"), err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_too_little_memory_changes_nothing():
    status, out, err = run(LIMIT, CDROPOUT_NUM_THREADS="1")
    assert (status, out) == (0, "done"), err


PEAK = """
import numpy as np
import cdropout as cd
x, y = np.ones(1 << 24, np.float32), np.full(1 << 24, 2, np.float32)  # 64 MiB each

def views(a):
    for shape, axes in [
        ((4096, 4096), (0, 1)),
        ((4096, 4096), (1, 0)),
        ((80, 56, 56, 64), (0, 3, 1, 2)),
        ((111, 224, 224, 3), (0, 3, 1, 2)),
        ((64, 512, 512), (2, 0, 1)),
        ((127, 37, 29, 123), (3, 1, 0, 2)),
        ((512, 512, 64), (1, 0, 2)),
        ((256, 64, 16, 64), (0, 2, 1, 3)),
    ]:
        yield a[: np.prod(shape)].reshape(shape).transpose(axes)
    for index in [np.s_[:, :4000], np.s_[::2], np.s_[:, ::2], np.s_[::-1], np.s_[:, ::-1]]:
        yield a.reshape(4096, 4096)[index]

def peak():  # KiB, without pages of libraries; no more was ever in use than now, with both arrays
    with open("/proc/self/status") as status:
        kib = {line.split()[0]: int(line.split()[1]) for line in status if line.endswith("kB\\n")}
    return kib["VmHWM:"] - kib["RssFile:"]

cd.dropout(x[:1000], rng=1, out=y[:1000])
first = peak()
for source, target in zip(views(x), views(y)):
    cd.dropout(source, 0.1, rng=1, out=target)
    assert 0 < np.count_nonzero(target[-1]) < target[-1].size
    grown = peak() - first
    assert grown < 1024, (grown, target.shape, target.strides)  # packed bits of all are 2048
print("done")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux shows the peak")
def test_no_layout_needs_a_copy():
    status, out, err = run(PEAK, CDROPOUT_NUM_THREADS="1")
    assert (status, out) == (0, "done"), err


def calls_of_all_kinds(x, out, generator, mask, numpy_rng, bools, bits, scale, frozen):
    """Return calls that work and 12 calls that do not."""
    module = cd.Dropout(rng=1)
    module(x)
    return [
        lambda: cd.dropout(x, 0.5, rng=generator, return_mask=True),
        lambda: cd.dropout(x, 0, rng=generator),
        lambda: cd.dropout(x, rng=generator, out=out, broadcast_dims=0),
        lambda: cd.dropout(x, rng=numpy_rng),
        lambda: [cd.dropout_backward(x, m, p=0.5, out=out) for m in (mask, bools, bits, scale)],
        lambda: cd.dropout(memoryview(x), mask=mask),
        lambda: (mask[::2, 1], mask.apply(x), mask.apply(x, out), hash(mask), repr(mask)),
        lambda: (module(x), module.backward(x), generator.spawn(2), generator.state),
        lambda: cd.dropout(x, 1.5, rng=generator),
        lambda: cd.dropout(x, "0.5", rng=generator),
        lambda: cd.dropout([x], rng=generator),
        lambda: cd.dropout(x, rng="seed"),
        lambda: cd.dropout(x, rng=generator, out=out[1:]),
        lambda: cd.dropout(x, rng=generator, out=x[::-1]),
        lambda: cd.dropout(frozen, rng=generator, inplace=True),
        lambda: cd.dropout(x, rng=generator, broadcast_dims=(0, 0)),
        lambda: cd.dropout_backward(x, bools),
        lambda: cd.dropout_backward(x.T, mask),
        lambda: mask[5, 5, 5],
        lambda: module(x.astype(int)),
    ]


def make_all(calls, times):
    """Make all calls so often; return how many failed."""
    failed = 0
    for _ in range(times):
        for call in calls:
            try:
                call()
            except (TypeError, ValueError, IndexError):
                failed += 1
    return failed


# Where there is no GIL, CPython frees some hundred objects of the last calls later.
ROUNDS = 4000 if sysconfig.get_config_var("Py_GIL_DISABLED") else 400


def growth(calls):
    """Return by how many bytes Python's memory grows while all calls are made ROUNDS times."""
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    make_all(calls, ROUNDS)  # some 5000 calls
    gc.collect()
    return tracemalloc.get_traced_memory()[0] - before


def test_nothing_leaks():
    x, mask = np.ones((8, 20), np.float32), cd.Mask((8, 20), 0.5)
    held = [x, x.copy(), cd.Generator(1), mask, np.random.default_rng(1)]
    held += [np.asarray(mask), mask.bits(), mask.to_scale(), x.copy()]
    held[-1].flags.writeable = False
    calls = calls_of_all_kinds(*held)
    held.append(x.dtype)
    assert make_all(calls, 20) == 20 * 12
    gc.collect()
    before = [sys.getrefcount(thing) for thing in held]
    tracemalloc.start()
    try:
        make_all(calls, 10)
        # In 400 rounds, CPython's cache of type attributes may keep some 150 temporary names, such
        # as those that NumPy looks up for str(dtype). It fills up; a leak grows each time.
        for _ in range(3):
            grown = growth(calls)
            if grown < 20 * ROUNDS:  # bytes; one small object in one of the calls is 24 per round
                break
    finally:
        tracemalloc.stop()
    assert [sys.getrefcount(thing) for thing in held] == before
    assert grown < 20 * ROUNDS
