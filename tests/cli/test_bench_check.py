"""Tests of the contestants of `cdropout bench`: right ones pass, wrong ones are named."""

import math
import re
import threading

import numpy as np
import pytest

import cdropout as cd
from cdropout import selftest
from cdropout.__main__ import main
from cdropout._core import dispatch, streaming_copy
from cdropout._core.dtypes import FLOATS
from cdropout.bench import contestant, kernels, peers, race

from ..helpers.requirements import skip_reason

QUICK = ["bench", "--sizes", "64,1Ki", "--seconds", "0"]
FRAMEWORKS = [name for name in peers.PEERS if not name.startswith("numpy")]
FRAMEWORKS += peers.adapters_beside(FRAMEWORKS)


@pytest.fixture(autouse=True, scope="module")
def quick_bench():
    """Check and measure fewer elements, for less time; restore the number of threads."""
    before = cd.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contestant, "CHECKED", 1 << 18)
        patch.setattr(contestant, "LOAD_SECONDS", 0.02)
        patch.setattr(kernels, "SIZE", 1 << 16)
        patch.setattr(race, "TURN", 1e-5)
        yield
    cd.set_num_threads(before)


# ---- the check of the contestants -------------------------------------------------------------


def numpy_contestant(drop):
    """A contestant that is right but for what `drop(x, keep, p)` makes of it."""
    random = np.random.default_rng(1)

    def prepare(arrays, p):
        def both():
            keep = random.random(arrays.x.shape) >= p
            return drop(arrays.x, keep, p), drop(arrays.gy, keep, p)

        return lambda: both()[0], both

    return contestant.Contestant("fake", "1", prepare)


def scaled(x, keep, p):
    return x * keep * x.dtype.type(1 / (1 - p))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.999, 1 - 1e-12])
def test_right_contestants_pass(dtype, p):
    assert contestant.wrong(numpy_contestant(scaled), dtype, p) is None


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [*peers.OURS, "numpy", "numpy-rand", "numpy-binomial"])
def test_arrays_in_this_process_pass_in_every_type(name, dtype):
    maker = {**peers.OURS, **peers.PEERS}[name]
    assert contestant.wrong(maker(1, dtype), dtype, 0.1) is None


def coarse(steps):
    """The dropout of one whose uniform numbers have few values, as those of bfloat16 do."""
    random = np.random.default_rng(2)

    def drop(x, keep, p):
        return scaled(x, np.floor(random.random(x.shape) * steps) / steps >= p, p)

    return drop


@pytest.mark.parametrize(
    ("drop", "reason"),
    [
        (coarse(16), r"forward kept \d+ of 262144 elements, but 235930 \+- 832 are right"),
        (lambda x, keep, p: x * keep, r"forward does not scale kept elements by 1/\(1 - p\)"),
        (lambda x, keep, p: scaled(x, keep, p) + np.float32(0.1) * ~keep, "kept 262144 of"),
        (lambda x, keep, p: scaled(x, keep, p).astype("f8"), "forward returned float64 of shape"),
        (lambda x, keep, p: scaled(x, np.roll(keep, int(x[96])), p), "the gradient is not that"),
        (lambda x, keep, p: scaled(x, np.arange(x.size) * 7919 % 1000 >= 100, p), "the same mask"),
    ],
)
def test_wrong_contestants_are_named(drop, reason):
    assert re.search(reason, contestant.wrong(numpy_contestant(drop), "float32", 0.1))


def test_wrong_contestant_is_left_out_with_its_reason(capsys, monkeypatch):
    unscaled = numpy_contestant(lambda x, keep, p: x * keep)
    monkeypatch.setitem(peers.PEERS, "numpy", lambda *_: unscaled)
    assert main([*QUICK, "--peer", "numpy"]) == 0
    printed = capsys.readouterr().out
    assert (
        "left out: numpy: float32: forward does not scale kept elements by 1/(1 - p) at p=0.1"
        in printed
    )
    assert not re.search(r"^ *64 numpy", printed, re.MULTILINE)


def test_contestant_that_raises_is_left_out(capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("no\nsuch device")

    monkeypatch.setitem(peers.PEERS, "numpy", broken)
    assert main([*QUICK, "--peer", "numpy"]) == 0
    assert "left out: numpy: float32: RuntimeError: no such device\n" in capsys.readouterr().out


def test_a_wrong_cdropout_fails_the_command(capsys, monkeypatch):
    wrong = numpy_contestant(lambda x, keep, p: x)
    monkeypatch.setitem(peers.OURS, "cdropout", lambda *_: wrong)
    assert main([*QUICK, "--peer", "none"]) == 1
    assert "left out: cdropout: float32: forward kept 262144 of" in capsys.readouterr().out


def test_contestant_that_takes_more_threads_is_named(capsys, monkeypatch):
    monkeypatch.setattr(contestant, "cpus_used", lambda *_: 1.9)
    assert main([*QUICK, "--peer", "none"]) == 0
    assert "not held to the threads: cdropout kept 1.9 CPUs busy" in capsys.readouterr().out


@pytest.mark.parametrize("p", [0.5, 0.1, 0.001])
def test_keep_bound_is_near_its_risk(p):
    n = 3000
    ways = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    chance = [math.exp(w + k * math.log(p) + (n - k) * math.log1p(-p)) for k, w in enumerate(ways)]
    assert sum(chance) == pytest.approx(1)
    bound = selftest.keep_bound(n, p)
    outside = sum(each for k, each in enumerate(chance) if abs(k - n * p) > bound)
    assert 1e-12 < outside < selftest.FALSE_ALARM


# ---- the frameworks ---------------------------------------------------------------------------


def types_of(name):
    """Those that are checked: TensorFlow's half types draw uniform numbers of too few values."""
    if name in ("tensorflow", "keras"):
        return ["float32", "float64"]
    return ["float32"] if name == "torch-compile" else list(FLOATS)


def test_an_adapter_takes_part_beside_its_framework_only():
    assert peers.adapters_beside(["numpy", "jax"]) == []
    assert peers.adapters_beside(["numpy", "torch"]) == ["cdropout-torch"]
    assert peers.adapters_beside(["tensorflow"]) == ["cdropout-tensorflow"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_installed_frameworks_pass_their_check(name):
    if package := peers.missing(name.removeprefix("cdropout-")):
        pytest.skip(skip_reason(package))
    # In a process of its own: they start threads, set environment variables and print warnings.
    statement = (
        "from cdropout.bench import contestant, peers; "
        f"maker, types = {{**peers.PEERS, **peers.ADAPTERS}}[{name!r}], {types_of(name)}; "
        "print({contestant.wrong(maker(1, dtype), dtype, 0.1) for dtype in types})"
    )
    done = selftest.run_under(dispatch.isa, statement, capture_output=True, text=True)
    assert done.stdout == "{None}\n", done.stderr


# ---- the copies -------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [1, 63, 1000, 1 << 18, (1 << 18) + 5])
def test_copies_copy(threads, size):
    found = peers.rooflines(threads)
    assert ("memcpy-threads" in found) is (threads > 1)
    assert ("memcpy-stream" in found) is streaming_copy.streams
    for prepare in found.values():
        arrays = contestant.known_arrays(size, "float32")
        forward, both = prepare(arrays, 0.1)
        forward()
        assert np.array_equal(arrays.y, arrays.x) and not arrays.gx.any()
        both()
        assert np.array_equal(arrays.gx, arrays.gy)


def test_large_copies_are_shared():
    seen = set()
    barrier = threading.Barrier(3, timeout=60)  # passed only if three threads copy at once

    def copy(to, source):
        barrier.wait()
        seen.add(threading.get_ident())
        np.copyto(to, source)

    arrays = contestant.known_arrays(1 << 18, "float32")
    peers.copier(copy, 3)(arrays, 0.1)[0]()
    assert len(seen) == 3 and np.array_equal(arrays.y, arrays.x)


@pytest.mark.parametrize("before", [0, 1, 15, 63])
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000])
def test_stream_copy_writes_what_it_is_given_and_no_more(before, n):
    source = np.random.default_rng(0).integers(1, 256, n + 7, np.uint8)[7:]
    memory = np.zeros(before + n + 64, np.uint8)
    streaming_copy.stream_copy(memory[before : before + n], source)
    assert np.array_equal(memory[before : before + n], source)
    assert not memory[:before].any() and not memory[before + n :].any()


def test_stream_copy_refuses():
    a = np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match="to has to have the 8 bytes of source, but has 4"):
        streaming_copy.stream_copy(a[:4], a)
    with pytest.raises(ValueError, match="to and source have to be contiguous"):
        streaming_copy.stream_copy(a[::2], a[:4].copy())
    assert not a.any()
