"""Tests of cdropout.bench.peers: copies, and frameworks that may be missing."""

import threading

import numpy as np
import pytest

from cdropout import selftest
from cdropout._core import dispatch, streaming_copy
from cdropout._core.dtypes import FLOATS
from cdropout.bench import peers

from ..helpers.requirements import skip_reason

FRAMEWORKS = [name for name in peers.PEERS if not name.startswith("numpy")]
FRAMEWORKS += peers.adapters_of(FRAMEWORKS)

# ---- copies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [1, 63, 1000, 1 << 18, (1 << 18) + 5])
def test_copies_write_y_and_gx(threads, size):
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
    barrier = threading.Barrier(3, timeout=60)  # wait fails unless three threads call it

    def copy(target, source):
        barrier.wait()
        idents.add(threading.get_ident())
        np.copyto(target, source)

    arrays = peers.example_arrays(1 << 18, "float32")
    peers.prepare_copy(copy, 3)(arrays, 0.1)[0]()
    assert len(idents) == 3 and np.array_equal(arrays.y, arrays.x)


# ---- frameworks -------------------------------------------------------------------------------


def test_adapters_of_returns_the_adapters_of_frameworks():
    assert peers.adapters_of(["numpy", "jax"]) == []
    assert peers.adapters_of(["numpy", "torch"]) == ["cdropout-torch"]
    assert peers.adapters_of(["tensorflow"]) == ["cdropout-tensorflow"]


def checked_dtypes(name):
    """Return the dtypes with which to check the peer.

    16-bit types would not pass with TensorFlow, which draws too few distinct values for them.
    """
    if name in ("tensorflow", "keras"):
        return ["float32", "float64"]
    return ["float32"] if name == "torch-compile" else list(FLOATS)


@pytest.mark.slow
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_find_error_returns_none_for_installed_frameworks(name):
    if package := peers.missing(name.removeprefix("cdropout-")):
        pytest.skip(skip_reason(package))
    # Use a new process, because frameworks start threads and set environment variables.
    statement = (
        "from cdropout.bench import check, peers; "
        f"factory = {{**peers.PEERS, **peers.ADAPTERS}}[{name!r}]; "
        f"dtypes = {checked_dtypes(name)}; "
        "print({check.find_error(factory(1, dtype), dtype, 0.1) for dtype in dtypes})"
    )
    done = selftest.run_with_isa(dispatch.isa, statement, capture_output=True, text=True)
    assert done.stdout == "{None}\n", done.stderr


def test_keras_peer_with_another_backend_raises(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(RuntimeError, match="KERAS_BACKEND has to be tensorflow, but got jax"):
        peers.PEERS["keras"](1, "float32")


def test_keras_peer_requires_tensorflow(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda package: package != "tensorflow")
    assert peers.missing("keras") == peers.missing("tensorflow") == "tensorflow"
    assert not {"keras", "tensorflow"} & set(peers.installed())
