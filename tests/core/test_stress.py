"""Stress tests: many calls from eight threads on the same generator, module, mask and arrays."""

import itertools

import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.arrays import normal
from ..helpers.requirements import slow
from ..helpers.threads import run_in_threads

SEED, P = 31, 0.3
THREADS = 8


def expected(x, call):
    return reference.apply(x, reference.keep(SEED, call, P, 0, x.size), P)


@pytest.fixture(params=[1000, *slow(10_000)])
def calls(request):
    """Return the number of calls per thread."""
    return request.param


@pytest.mark.parametrize("n", [1, 64, 100])
def test_threads_can_share_a_generator(n, calls):
    """Each call number is used once, and each result has the mask of its call number."""
    x, generator = normal(n), cd.Generator(SEED)

    def work(_):
        pairs = (cd.dropout(x, P, rng=generator, return_mask=True) for _ in range(calls))
        return [(mask.call, y.tobytes()) for y, mask in pairs]

    drawn = dict(itertools.chain(*run_in_threads(THREADS, work)))
    assert sorted(drawn) == list(range(THREADS * calls)) and generator.calls == THREADS * calls
    for call in range(0, THREADS * calls, 97):
        assert drawn[call] == expected(x, call).tobytes()
    other = cd.Generator(SEED)
    assert all(drawn[i] == cd.dropout(x, P, rng=other).tobytes() for i in range(len(drawn)))


def test_threads_can_share_a_module(calls):
    """Each call number is used once, and backward uses the given mask."""
    x, module = normal(256), cd.Dropout(P, rng=SEED)

    def work(_):
        results = []
        for _ in range(calls):
            results.append(module(x).tobytes())
            mask = module.mask
            assert (module.backward(x, mask=mask) == mask.apply(x)).all()
        return results

    results = sorted(itertools.chain(*run_in_threads(THREADS, work)))
    generator = cd.Generator(SEED)
    serial = [cd.dropout(x, P, rng=generator).tobytes() for _ in range(THREADS * calls)]
    assert serial[5] == expected(x, 5).tobytes()
    assert results == sorted(serial)


def test_threads_can_share_inputs_and_masks(calls):
    """All functions return the reference's result for the same input in all threads."""
    x = normal((20, 30))
    before, mask = x.copy(), cd.Mask(x.shape, P, SEED)
    result = expected(x, 0)
    bits, bools, scale = mask.bits(), np.asarray(mask), mask.to_scale()
    functions = [
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
        return sum(np.array_equal(functions[(i + j) % 8](out), result) for j in range(calls))

    assert run_in_threads(THREADS, work) == [calls] * THREADS
    np.testing.assert_array_equal(x, before)
