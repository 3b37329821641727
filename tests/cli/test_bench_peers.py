"""Tests of cdropout.bench.peers: copies, frameworks, and which of them are installed."""

import threading

import numpy as np
import pytest

from cdropout import selftest
from cdropout._core import dispatch, streaming_copy
from cdropout._core.dtypes import FLOATS
from cdropout.bench import peers

from ..helpers.requirements import reason

FRAMEWORKS = [name for name in peers.PEERS if not name.startswith("numpy")]
FRAMEWORKS += peers.adapters_of(FRAMEWORKS)

# ---- copies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [1, 63, 1000, 1 << 18, (1 << 18) + 5])
def test_copies_copy(threads, size):
    found = peers.copies(threads)
    assert ("memcpy-threads" in found) is (threads > 1)
    assert ("memcpy-stream" in found) is streaming_copy.streams
    for prepare in found.values():
        arrays = peers.example_arrays(size, "float32")
        forward, both = prepare(arrays, 0.1)
        forward()
        assert np.array_equal(arrays.y, arrays.x) and not arrays.gx.any()
        both()
        assert np.array_equal(arrays.gx, arrays.gy)


def test_large_copy_uses_all_threads():
    idents = set()
    barrier = threading.Barrier(3, timeout=60)  # passed only if three threads copy at once

    def copy(target, source):
        barrier.wait()
        idents.add(threading.get_ident())
        np.copyto(target, source)

    arrays = peers.example_arrays(1 << 18, "float32")
    peers.prepare_copy(copy, 3)(arrays, 0.1)[0]()
    assert len(idents) == 3 and np.array_equal(arrays.y, arrays.x)


# ---- frameworks -------------------------------------------------------------------------------


def test_adapters_are_chosen_by_framework():
    assert peers.adapters_of(["numpy", "jax"]) == []
    assert peers.adapters_of(["numpy", "torch"]) == ["cdropout-torch"]
    assert peers.adapters_of(["tensorflow"]) == ["cdropout-tensorflow"]


def checked_dtypes(name):
    """Return the types to check; TensorFlow draws too few uniform values in the half types."""
    if name in ("tensorflow", "keras"):
        return ["float32", "float64"]
    return ["float32"] if name == "torch-compile" else list(FLOATS)


@pytest.mark.slow
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_installed_frameworks_pass_their_check(name):
    if package := peers.missing(name.removeprefix("cdropout-")):
        pytest.skip(reason(package))
    # In a new process: frameworks start threads, set environment variables and print warnings.
    statement = (
        "from cdropout.bench import check, peers; "
        f"factory = {{**peers.PEERS, **peers.ADAPTERS}}[{name!r}]; "
        f"dtypes = {checked_dtypes(name)}; "
        "print({check.find_error(factory(1, dtype), dtype, 0.1) for dtype in dtypes})"
    )
    done = selftest.run_with_isa(dispatch.isa, statement, capture_output=True, text=True)
    assert done.stdout == "{None}\n", done.stderr


def test_keras_refuses_another_backend(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(RuntimeError, match="KERAS_BACKEND has to be tensorflow, but got jax"):
        peers.PEERS["keras"](1, "float32")


def test_keras_needs_tensorflow(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda package: package != "tensorflow")
    assert peers.missing("keras") == peers.missing("tensorflow") == "tensorflow"
    assert not {"keras", "tensorflow"} & set(peers.installed())
