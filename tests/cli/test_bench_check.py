"""Tests that cdropout.bench.check accepts correct implementations and reports wrong ones."""

import numpy as np
import pytest

from cdropout._core.dtypes import FLOATS
from cdropout.bench import check, peers

pytestmark = pytest.mark.usefixtures("quick_bench")


def scale(x, keep, p):
    return x * keep * x.dtype.type(1 / (1 - p))


def scale_with_16_uniform_values(x, keep, p):
    uniform = np.random.default_rng(2).random(x.shape)
    return scale(x, np.floor(uniform * 16) / 16 >= p, p)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.999, 1 - 1e-12])
def test_find_error_returns_none_for_a_correct_implementation(dtype, p, fake):
    assert check.find_error(fake(scale), dtype, p) is None


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [*peers.OURS, "numpy", "numpy-rand", "numpy-binomial"])
def test_find_error_returns_none_for_cdropout_and_numpy(name, dtype):
    factory = {**peers.OURS, **peers.PEERS}[name]
    assert check.find_error(factory(1, dtype), dtype, 0.1) is None


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        (scale_with_16_uniform_values, "forward kept * of 262144 elements, expected 235930 +- 832"),
        (lambda x, keep, p: x * keep, "forward does not scale kept elements by 1/(1 - p) at p=0.1"),
        (lambda x, keep, p: scale(x, keep, p) + np.float32(0.1) * ~keep, "forward kept 262144 of"),
        (lambda x, keep, p: scale(x, keep, p).astype("f8"), "forward returned float64 of shape"),
        (
            lambda x, keep, p: scale(x, np.roll(keep, int(x[96])), p),
            "the gradient does not use the mask of the forward pass",
        ),
        (
            lambda x, keep, p: scale(x, np.arange(x.size) * 7919 % 1000 >= 100, p),
            "two calls drew the same mask",
        ),
    ],
)
def test_find_error_describes_a_wrong_implementation(drop, message, fake):
    found = check.find_error(fake(drop), "float32", 0.1)
    start, _, end = message.partition("*")
    assert found.startswith(start) and end in found


def test_cpus_used_is_about_1_with_one_thread():
    assert 0 < check.cpus_used(peers.OURS["cdropout"](1, "float32"), "float32", 0.1) < 1.2
