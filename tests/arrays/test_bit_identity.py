"""Tests that masks with the same seed and call number give the same bytes in all frameworks."""

import numpy as np
import pytest

import cdropout as cd

from ..helpers.arrays import normal
from ..helpers.requirements import import_or_skip

SHAPE, P, SEED, CALL = (30, 17, 5), 0.3, 7, 3
X = normal(SHAPE)


def generator():
    """Return a generator whose next mask has the seed SEED and the call number CALL."""
    rng = cd.Generator(SEED)
    for _ in range(CALL):
        rng.next_mask(1, 0.5)
    return rng


def numpy():
    return cd.dropout(X, P, rng=generator())


def module():
    layer = cd.Dropout(P, rng=generator())
    return layer(X)


def torch():
    import_or_skip("torch")
    from torch import from_numpy

    from cdropout.torch import dropout

    return dropout(from_numpy(X), P, generator=generator())


def dask():
    import_or_skip("dask")
    from dask.array import from_array

    from cdropout.dask import dropout

    return dropout(from_array(X, chunks=(7, 9, 2)), P, seed=SEED, call=CALL)


def jax():
    import_or_skip("jax")
    from jax.numpy import asarray

    from cdropout.jax import dropout

    return dropout(np.array([0, SEED, 0, CALL], np.uint32), asarray(X), P)


def tensorflow():
    constant = import_or_skip("tensorflow").constant
    from cdropout.tensorflow import stateless_dropout

    return stateless_dropout(constant(X), P, [SEED, CALL])


@pytest.mark.parametrize("framework", [numpy, module, torch, dask, jax, tensorflow])
def test_dropout_with_the_same_seed_and_call_is_equal_in_all_frameworks(framework):
    expected = cd.Mask(SHAPE, P, SEED, CALL).apply(X)
    assert np.asarray(framework()).tobytes() == expected.tobytes()


@pytest.mark.parametrize("framework", ["torch", "dask", "jax"])
def test_dropout_with_a_given_mask_is_equal_in_all_frameworks(framework):
    import_or_skip(framework)
    mask = cd.Mask(SHAPE, P, SEED, CALL)
    if framework == "torch":
        from torch import from_numpy

        from cdropout.torch import dropout

        y = dropout(from_numpy(X), mask=mask)
    elif framework == "dask":
        from dask.array import from_array

        from cdropout.dask import dropout

        y = dropout(from_array(X, chunks=(7, 9, 2)), mask=mask)
    else:
        from jax.numpy import asarray

        from cdropout.jax import dropout

        y = dropout(None, asarray(X), mask=mask)
    assert np.asarray(y).tobytes() == mask.apply(X).tobytes()
