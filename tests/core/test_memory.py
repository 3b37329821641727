"""Tests of memory: calls with too little memory, peak memory use, and leaks."""

import gc
import sys
import sysconfig
import tracemalloc

import numpy as np
import pytest

import cdropout as cd

from ..helpers.requirements import linux_only, needs_memory_limit, slow
from ..helpers.subprocess_runner import FIND_TESTS, run

LIMIT_MEMORY = f"{FIND_TESTS}from tests.helpers.memory_limit import *\n"

# ---- too little memory ------------------------------------------------------------------------

HUGE_OUTPUT = """
import numpy as np
import pytest
import cdropout as cd
huge = np.broadcast_to(np.float32(1), (1 << 15, 1 << 15))  # a copy would take 4 GiB
fortran = np.ones((4096, 4096), np.float32, order="F")
small, bits = np.ones(1000, np.float32), np.zeros(1 << 21, np.uint8)
generator, module, failed = cd.Generator(1), cd.Dropout(rng=2), 0
module(small)
mask = cd.Mask(huge.shape, 0.5)
set_memory_limit(8 << 20)
for function in [
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
        function()
    except MemoryError:
        failed += 1
assert failed == 11, failed
assert generator.calls == 0 and module.mask == cd.Mask(1000, 0.5, 2)
cd.dropout_backward(fortran, bits, True, p=0.5)  # needs no copy of x
assert fortran.max() == 0
y, drawn = cd.dropout(small, rng=generator, return_mask=True)
assert drawn == cd.Mask(1000, 0.5, 1) and (y == drawn.to_scale()).all()
print("done")
"""


@needs_memory_limit
def test_calls_without_memory_for_the_output_change_nothing():
    status, output, errors = run(LIMIT_MEMORY + HUGE_OUTPUT, CDROPOUT_NUM_THREADS="1")
    assert (status, output) == (0, "done"), errors


VARIANTS = """
import numpy as np
import pytest
import cdropout as cd
cd.set_num_threads(3)
large, out = np.ones(5 << 20, np.float32), np.empty(5 << 20, np.float32)
x, bias = np.ones(1 << 22, np.float16), np.ones(1 << 22, np.float16)
set_memory_limit(3 << 20)
generator, failed = cd.Generator(1), []
for function in [
    lambda: cd.alpha_dropout(x, 0.5, True, rng=generator),
    lambda: cd.alpha_dropout(x, 0.5, True, True, rng=generator),
    lambda: cd.feature_alpha_dropout(x.reshape(2, -1), 0.5, True, True, rng=generator),
    lambda: cd.mc_dropout(x, 0.5, 9, rng=generator),
    lambda: cd.drop_path(x, 0.5, rng=generator),
    lambda: cd.dropout2d(x.reshape(1, 4, -1, 2), 0.5, rng=generator),
    lambda: cd.bias_dropout_add(x, bias, x, rng=generator, out=x),
    lambda: cd.bias_dropout_add_backward(x, cd.Mask(x.shape, 0.5), x.shape),
    lambda: cd.dropout(x, mask=x),
]:
    try:
        function()
    except MemoryError:
        failed.append(function)
assert len(failed) == 9 and generator.calls == 0, len(failed)
assert (x.min(), x.max(), large.min(), large.max()) == (1, 1, 1, 1)
y = cd.dropout(large, 0.5, rng=generator, out=out)  # threads cannot start within the memory limit
assert y is out and set(y[:100].tolist()) == {0, 2} and generator.calls == 1
print("done")
"""


@needs_memory_limit
def test_dropout_variants_need_memory_for_the_output_but_not_for_threads():
    assert run(LIMIT_MEMORY + VARIANTS) == (0, "done", "")


TILES = """
import ctypes
import numpy as np
import pytest
import cdropout as cd
malloc = ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
fortran = np.ones((2048, 1024), np.float32, order="F")
expected = cd.dropout(fortran, rng=1)
y = np.zeros_like(fortran)
set_memory_limit(0)
while malloc(1 << 17):
    pass
assert not malloc(1 << 18)
cd.dropout(fortran, rng=1, out=y)  # uses smaller tiles
assert not malloc(1 << 18)
remove_memory_limit()
assert 0 < np.count_nonzero(y) < y.size and np.array_equal(y, expected)
print("done")
"""


@needs_memory_limit
def test_tiles_are_smaller_if_memory_is_short():
    status, output, errors = run(LIMIT_MEMORY + TILES, CDROPOUT_NUM_THREADS="1")
    assert (status, output) == (0, "done"), errors


# ---- peak memory ------------------------------------------------------------------------------

PEAK = """
import numpy as np
import pytest
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

def peak():  # in KiB, without the pages of libraries
    with open("/proc/self/status") as status:
        kib = {line.split()[0]: int(line.split()[1]) for line in status if line.endswith("kB\\n")}
    return kib["VmHWM:"] - kib["RssFile:"]

cd.dropout(x[:1000], rng=1, out=y[:1000])
before = peak()  # no earlier step used more, so this is the current usage
for source, target in zip(views(x), views(y)):
    cd.dropout(source, 0.1, rng=1, out=target)
    assert 0 < np.count_nonzero(target[-1]) < target[-1].size
    growth = peak() - before
    assert growth < 1024, (growth, target.shape, target.strides)  # packed bits would take 2048 KiB
print("done")
"""


@linux_only
def test_dropout_makes_no_copy_for_any_layout():
    status, output, errors = run(PEAK, CDROPOUT_NUM_THREADS="1")
    assert (status, output) == (0, "done"), errors


PRINT_PEAK = """
import resource, sys
from pathlib import Path
import numpy as np
import cdropout

def peak():
    # on Linux, ru_maxrss includes the peak of the parent process; VmHWM does not
    if sys.platform == "linux":
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS

x, y = np.ones(1 << 24, np.float32), np.ones(1 << 24, np.float32)
packed, small = np.full(1 << 21, 0xA5, np.uint8), np.ones(64, np.float32)
cdropout.dropout(small, 0.1, out=small.copy())
before = peak()
_, mask = cdropout.dropout(x, 0.1, out=y, return_mask=True)
mask.apply(x, out=y)
cdropout.dropout_backward(x, mask, out=y)
cdropout.dropout_backward(x, packed, p=0.5, out=y)
cdropout.dropout(y.reshape(4096, 4096).T, 0.1, inplace=True)
cdropout.dropout(x.reshape(4096, 4096), 0.1, out=y.reshape(4096, 4096), broadcast_dims=0)
used = peak() - before
z = x + 1
print(used, peak() - before)
"""


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="needs getrusage")
@pytest.mark.parametrize("threads", [3, *slow(1)])
def test_calls_with_out_allocate_little_memory(threads):
    status, output, errors = run(PRINT_PEAK, CDROPOUT_NUM_THREADS=str(threads))
    assert (status, errors) == (0, "")
    used, with_an_array = map(int, output.split())
    assert used < 4 << 20  # enough for thread stacks, but not for a copy of x (64 MiB)
    assert with_an_array > 60 << 20  # peak() detects a new array of 64 MiB


# ---- leaks ------------------------------------------------------------------------------------


def good_and_bad_functions(x, out, generator, mask, numpy_rng, bools, bits, scale, read_only):
    """Return 8 functions that succeed and 12 functions that raise."""
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
        lambda: cd.dropout(read_only, rng=generator, inplace=True),
        lambda: cd.dropout(x, rng=generator, broadcast_dims=(0, 0)),
        lambda: cd.dropout_backward(x, bools),
        lambda: cd.dropout_backward(x.T, mask),
        lambda: mask[5, 5, 5],
        lambda: module(x.astype(int)),
    ]


def run_all(functions, rounds):
    """Call all functions in each round; return the number of calls that raised an error."""
    failed = 0
    for _ in range(rounds):
        for function in functions:
            try:
                function()
            except (TypeError, ValueError, IndexError):
                failed += 1
    return failed


# Free-threaded CPython frees a few hundred objects late. With more rounds, the limit of 20 bytes
# per round is larger than the size of these objects.
ROUNDS = 4000 if sysconfig.get_config_var("Py_GIL_DISABLED") else 400


def measure_growth(functions):
    """Call all functions in ROUNDS rounds; return the growth of Python's memory in bytes."""
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    run_all(functions, ROUNDS)
    gc.collect()
    return tracemalloc.get_traced_memory()[0] - before


def test_calls_leak_no_memory_and_no_references():
    x, mask = np.ones((8, 20), np.float32), cd.Mask((8, 20), 0.5)
    held = [x, x.copy(), cd.Generator(1), mask, np.random.default_rng(1)]
    held += [np.asarray(mask), mask.bits(), mask.to_scale(), x.copy()]
    held[-1].flags.writeable = False
    functions = good_and_bad_functions(*held)
    held.append(x.dtype)
    assert run_all(functions, 20) == 20 * 12
    gc.collect()
    before = [sys.getrefcount(value) for value in held]
    tracemalloc.start()
    try:
        run_all(functions, 10)
        # CPython's cache of type attributes can keep 150 temporary names, such as those that NumPy
        # uses for str(dtype). The cache fills up once, whereas a leak grows in each measurement.
        for _ in range(3):
            growth = measure_growth(functions)
            if growth < 20 * ROUNDS:  # in bytes; one leaked float per round takes 24 bytes
                break
    finally:
        tracemalloc.stop()
    assert [sys.getrefcount(value) for value in held] == before
    assert growth < 20 * ROUNDS


MANY_CALLS = """
import gc, sys
import numpy as np
import pytest
import cdropout as cd
ROUNDS = 12_500  # 100,000 calls
x, out, mask = np.ones((8, 20), np.float32), np.ones((8, 20), np.float32), cd.Mask((8, 20), 0.5)
generator, module, view = cd.Generator(1), cd.Dropout(rng=2), memoryview(x)
bits, bools, integers = mask.bits(), np.asarray(mask), x.astype(int)
module(x)
good = [
    lambda: cd.dropout(x, 0.5, rng=generator, return_mask=True),
    lambda: cd.dropout(view, 0.5, rng=3, out=out),
    lambda: cd.dropout(x, 0.5, rng=generator, broadcast_dims=1),
    lambda: cd.dropout_backward(x, bits, p=0.5, out=out),
    lambda: cd.dropout_backward(x, bools, p=0.5),
    lambda: module.backward(module(x)),
    lambda: mask[1:, ::2].bits(),
    lambda: cd.bias_dropout_add(x, x[0], x, 0.5, rng=generator),
]
bad = [
    lambda: cd.dropout(x, 2, rng=generator),
    lambda: cd.dropout(integers, 0.5, rng=generator),
    lambda: cd.dropout([x], rng=generator),
    lambda: cd.dropout(x, rng="seed"),
    lambda: cd.dropout(x, rng=generator, out=out[1:]),
    lambda: cd.dropout(x, rng=generator, broadcast_dims=(0, 0)),
    lambda: cd.dropout_backward(x, bools),
    lambda: mask[5, 5, 5],
]

def resident():
    with open("/proc/self/statm") as status:
        return int(status.read().split()[1]) * 4096

held = [x, out, mask, generator, module, view, bits, bools, integers, x.dtype, cd.default_generator]
for functions, failures in (good, 0), (bad, len(bad) * ROUNDS):
    run_all(functions, 500)
    gc.collect()
    counts = [sys.getrefcount(value) for value in held]
    blocks, used = sys.getallocatedblocks(), resident()
    assert run_all(functions, ROUNDS) == failures
    gc.collect()
    assert [sys.getrefcount(value) for value in held] == counts
    print(sys.getallocatedblocks() - blocks, resident() - used)
"""


@pytest.mark.slow
@linux_only
def test_memory_is_constant_over_many_calls():
    """The limits detect a leak of one object in 1 of 400 calls, or of 1 KiB in 1 of 50 calls."""
    status, output, errors = run(f"{FIND_TESTS}from {__name__} import run_all\n{MANY_CALLS}")
    assert status == 0, errors
    for line in output.splitlines():
        blocks, resident = map(int, line.split())
        assert blocks < 200 and resident < 1 << 20
    assert len(output.splitlines()) == 2
