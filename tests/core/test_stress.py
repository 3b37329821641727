"""Load: many threads and very many calls on shared things, and what an import leaves alone."""

import itertools
import sys
import threading

import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.requirements import slow
from ..helpers.subprocess_runner import run

SEED, P = 31, 0.3
THREADS = 8
SIZES = [1, 64, 100]  # elements; of which the twin's masks are known below


def in_threads(work):
    """Run work(0), ..., work(7) at once, with many switches; return their results."""
    results, barrier = [None] * THREADS, threading.Barrier(THREADS)

    def guarded(i):
        barrier.wait()
        results[i] = work(i)

    threads = [threading.Thread(target=guarded, args=(i,), daemon=True) for i in range(THREADS)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
    finally:
        sys.setswitchinterval(interval)
    assert not any(thread.is_alive() for thread in threads), "they wait for each other"
    assert None not in results, "a thread has raised"
    return results


def numbers(n):
    return np.random.default_rng(n).standard_normal(n).astype(np.float32)


def twin(x, call, p=P):
    return reference.apply(x, reference.keep(SEED, call, p, 0, x.size), p)


# ---- eight threads ----------------------------------------------------------------------------


@pytest.fixture(params=[1000, *slow(10_000)])
def calls(request):
    """The number of calls of each thread."""
    return request.param


@pytest.mark.parametrize("n", SIZES)
def test_a_shared_generator(n, calls):
    """Every number is handed out once, and every result is that of its number."""
    x, generator = numbers(n), cd.Generator(SEED)

    def work(_):
        pairs = (cd.dropout(x, P, rng=generator, return_mask=True) for _ in range(calls))
        return [(mask.call, y.tobytes()) for y, mask in pairs]

    drawn = dict(itertools.chain(*in_threads(work)))
    assert sorted(drawn) == list(range(THREADS * calls)) and generator.calls == THREADS * calls
    for call in range(0, THREADS * calls, 97):
        assert drawn[call] == twin(x, call).tobytes()
    again = cd.Generator(SEED)
    assert all(drawn[i] == cd.dropout(x, P, rng=again).tobytes() for i in range(len(drawn)))


def test_a_shared_module(calls):
    """Results are those of the module's numbers, each once; backward has the mask it is given."""
    x, module = numbers(256), cd.Dropout(P, rng=SEED)

    def work(_):
        results = []
        for _ in range(calls):
            results.append(module(x).tobytes())
            mask = module.mask
            assert (module.backward(x, mask=mask) == mask.apply(x)).all()
        return results

    results = sorted(itertools.chain(*in_threads(work)))
    generator = cd.Generator(SEED)
    expected = [cd.dropout(x, P, rng=generator).tobytes() for _ in range(THREADS * calls)]
    assert expected[5] == twin(x, 5).tobytes()
    assert results == sorted(expected)


def test_shared_inputs_and_masks(calls):
    """Eight threads read one input by every way, and all get what the twin says."""
    x = numbers(600).reshape(20, 30)
    mask = cd.Mask(x.shape, P, SEED)
    want = twin(x.reshape(-1), 0).reshape(x.shape)
    bits, bools, scale = mask.bits(), np.asarray(mask), mask.to_scale()
    ways = [
        lambda out: cd.dropout(x, P, rng=SEED),
        lambda out: cd.dropout(x, P, rng=SEED, out=out),
        lambda out: cd.dropout(memoryview(x), P, rng=SEED),
        lambda out: mask.apply(x, out),
        lambda out: cd.dropout_backward(x, bits, p=P, out=out),
        lambda out: cd.dropout_backward(x, bools, p=P),
        lambda out: cd.dropout_backward(x, scale),
        lambda out: mask[:, ::-1].apply(x[:, ::-1])[:, ::-1],
    ]

    def work(i):
        out = np.empty_like(x)
        return sum(np.array_equal(ways[(i + j) % 8](out), want) for j in range(calls))

    assert in_threads(work) == [calls] * THREADS
    np.testing.assert_array_equal(x, numbers(600).reshape(20, 30))


# ---- very many calls --------------------------------------------------------------------------

MANY = """
import gc, sys
import numpy as np
import cdropout as cd
TIMES = 100_000
x, out, mask = np.ones((8, 20), np.float32), np.ones((8, 20), np.float32), cd.Mask((8, 20), 0.5)
generator, module, view = cd.Generator(1), cd.Dropout(rng=2), memoryview(x)
bits, bools, whole = mask.bits(), np.asarray(mask), x.astype(int)
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
    lambda: cd.dropout(whole, 0.5, rng=generator),
    lambda: cd.dropout([x], rng=generator),
    lambda: cd.dropout(x, rng="seed"),
    lambda: cd.dropout(x, rng=generator, out=out[1:]),
    lambda: cd.dropout(x, rng=generator, broadcast_dims=(0, 0)),
    lambda: cd.dropout_backward(x, bools),
    lambda: mask[5, 5, 5],
]

def make(calls, times):
    failed = 0
    for _ in range(times // len(calls)):
        for call in calls:
            try:
                call()
            except (TypeError, ValueError, IndexError):
                failed += 1
    return failed

def resident():
    with open("/proc/self/statm") as status:
        return int(status.read().split()[1]) * 4096

held = [x, out, mask, generator, module, view, bits, bools, whole, x.dtype, cd.default_generator]
for calls, fails in (good, 0), (bad, TIMES):
    make(calls, 4000)
    gc.collect()
    counts = [sys.getrefcount(thing) for thing in held]
    blocks, used = sys.getallocatedblocks(), resident()
    assert make(calls, TIMES) == fails
    gc.collect()
    assert [sys.getrefcount(thing) for thing in held] == counts
    print(sys.getallocatedblocks() - blocks, resident() - used)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
def test_memory_stays_flat_over_very_many_calls():
    """An object or 10 bytes that one call in 100 leaves would show: 1000 blocks, 1 MB of 10**5."""
    status, out, err = run(MANY)
    assert status == 0, err
    for line in out.splitlines():
        blocks, resident = map(int, line.split())
        assert blocks < 200 and resident < 1 << 20
    assert len(out.splitlines()) == 2


# ---- what an import leaves alone --------------------------------------------------------------

STATE = """
import ctypes, locale, os, random, signal, struct, sys, threading, warnings
import numpy as np
libm = ctypes.CDLL("libm.so.6")

def signals():
    with open("/proc/self/status") as status:
        return [line for line in status if line.startswith(("SigCgt", "SigIgn", "SigBlk"))]

def tiny():
    least = np.full(64, 1e-40, np.float32)      # subnormal: 0 if they were flushed, or read as 0
    return (least * np.float32(0.5)).tobytes(), (least + least).tobytes(), libm.fegetround()

def handlers():
    return [signal.getsignal(number) for number in signal.valid_signals()]

def state():
    return {
        "signals": signals(), "handlers": handlers(), "tiny": tiny(), "NumPy's errors": np.geterr(),
        "locale": locale.setlocale(locale.LC_ALL), "warnings": list(warnings.filters),
        "random": random.getstate(), "directory": os.getcwd(), "path": list(sys.path),
        "environment": dict(os.environ), "threads": threading.active_count(),
        "hooks": (sys.excepthook, sys.displayhook, sys.gettrace(), sys.getswitchinterval()),
        "NumPy's random": str(np.random.get_state()), "umask": (os.umask(18), os.umask(18))[1],
    }

locale.setlocale(locale.LC_ALL, "C")
first = threading.Thread(target=int)            # with it the C library begins to catch a signal
first.start()
first.join()
before = state()
lazy = {"numpy.ma"} - set(sys.modules)          # NumPy 1 imports it itself
import cdropout as cd
imported = state()
assert all(before[name] == imported[name] for name in before), [
    name for name in before if before[name] != imported[name]]
frameworks = {"torch", "jax", "dask", "thinc", "keras", "flax", "tensorflow"}
foreign = {*frameworks, "matplotlib"} & set(sys.modules)
assert not foreign, foreign
cd.set_num_threads(2)
for dtype in (np.float16, np.float32, np.float64):
    cd.dropout(np.ones(5 << 20, dtype))
    cd.Dropout1d()(np.ones((4, 4, 4), dtype))
    cd.dropout_backward(memoryview(np.ones(8, dtype)), np.zeros(1, np.uint8), p=0.5)
assert not lazy & set(sys.modules), "a call imports what it does not need"
after = state()
assert all(before[name] == after[name] for name in before if name != "threads"), [
    name for name in before if before[name] != after[name]]
print(tiny()[0] != bytes(256))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc and libm")
@pytest.mark.parametrize("isa", ["", "baseline"])
def test_import_and_calls_leave_the_process_as_it_was(isa, monkeypatch):
    monkeypatch.setenv("CDROPOUT_ISA", isa)
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    assert run(STATE) == (0, "True", "")
