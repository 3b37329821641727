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


@pytest.fixture(params=[1000, *slow(10_000)])
def calls_per_thread(request):
    """Return the number of calls that each thread makes."""
    return request.param


@pytest.mark.parametrize("n", [1, 64, 100])
def test_threads_can_share_a_generator(n, calls_per_thread):
    """Each call number is used once, and each result has the mask of its call number."""
    x, generator, total = normal(n), cd.Generator(SEED), THREADS * calls_per_thread

    def work(_):
        pairs = (cd.dropout(x, P, rng=generator, return_mask=True) for _ in range(calls_per_thread))
        return [(mask.call, y.tobytes()) for y, mask in pairs]

    drawn = dict(itertools.chain(*run_in_threads(THREADS, work)))
    assert sorted(drawn) == list(range(total)) and generator.calls == total
    for call in range(0, total, 97):
        assert drawn[call] == reference.dropout(x, P, SEED, call).tobytes()
    other = cd.Generator(SEED)
    assert all(drawn[i] == cd.dropout(x, P, rng=other).tobytes() for i in range(total))


def test_threads_can_share_a_module(calls_per_thread):
    """Each call number is used once, and backward uses the mask that it is given."""
    x, module = normal(256), cd.Dropout(P, rng=SEED)

    def work(_):
        results = []
        for _ in range(calls_per_thread):
            results.append(module(x).tobytes())
            mask = module.mask
            assert (module.backward(x, mask=mask) == mask.apply(x)).all()
        return results

    results = sorted(itertools.chain(*run_in_threads(THREADS, work)))
    generator = cd.Generator(SEED)
    total = THREADS * calls_per_thread
    serial = [cd.dropout(x, P, rng=generator).tobytes() for _ in range(total)]
    assert serial[5] == reference.dropout(x, P, SEED, 5).tobytes()
    assert results == sorted(serial)


def test_threads_can_share_inputs_and_masks(calls_per_thread):
    """In all threads, all functions return the result of the reference for the shared input."""
    x = normal((20, 30))
    before, mask = x.copy(), cd.Mask(x.shape, P, SEED)
    result = reference.dropout(x, P, SEED, 0)
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
        results = (functions[(i + j) % 8](out) for j in range(calls_per_thread))
        return sum(np.array_equal(y, result) for y in results)

    assert run_in_threads(THREADS, work) == [calls_per_thread] * THREADS
    np.testing.assert_array_equal(x, before)
