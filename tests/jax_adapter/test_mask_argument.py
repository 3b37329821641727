"""Tests of the argument `mask` of cdropout.jax.dropout."""

import re
from functools import partial

import numpy as np
import pytest

import cdropout as cd

from ..helpers.arrays import assert_same_bits
from ..helpers.requirements import import_or_skip

jax = import_or_skip("jax")
from jax import numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

from cdropout.jax import dropout  # noqa: E402

from ..helpers.jax_arrays import normal_jax  # noqa: E402

SHAPE = (3, 4, 5, 6)
X = normal_jax(SHAPE)
LARGE_MASK = cd.Generator(9).next_mask((7, 8, 9, 10), 0.3, scale=3)
MASKS = {
    "mask": cd.Generator(9).next_mask(SHAPE, 0.3),
    "large numbers": cd.Mask(SHAPE, 0.3, -1, 2**64 - 1),
    "channels": cd.Generator(9).next_mask(SHAPE, 0.3, broadcast_dims=(2, 3)),
    "samples": cd.Generator(9).next_mask(SHAPE, 0.3, broadcast_dims=(1, 2, 3)),
    "window": LARGE_MASK[6:3:-1, ::2, 2:7, 4:],
    "start": cd.Mask(SHAPE, 0.3, 2, start=5),
    "scale": cd.Mask(SHAPE, 0.3, 2, scale=0.5),
    "all dropped": cd.Mask(SHAPE, 1),
    "nothing dropped": cd.Mask(SHAPE, 0, scale=2),
}
every_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)

HALF_TYPES = ["float16", "bfloat16"]
slow_pairs = [
    pytest.param(name, dtype, marks=pytest.mark.slow)
    for name in MASKS
    if name not in ("mask", "window")
    for dtype in HALF_TYPES
]


@pytest.mark.parametrize(
    "name, dtype",
    [
        *[(name, "float32") for name in MASKS],
        *[(name, dtype) for name in ("mask", "window") for dtype in HALF_TYPES],
        *slow_pairs,
    ],
)
def test_mask_determines_result(name, dtype):
    mask = MASKS[name]
    x = normal_jax(SHAPE, dtype)
    expected = mask.apply(np.asarray(x))
    assert_same_bits(dropout(None, x, mask=mask), expected)
    assert_same_bits(dropout(None, x, mask.p, inplace=True, mask=mask), expected)
    assert_same_bits(jax.jit(partial(dropout, None, mask=mask))(x), expected)
    assert_same_bits(jax.jit(dropout, static_argnames="mask")(None, x, mask=mask), expected)


def test_mask_with_empty_broadcast_dims():
    mask = MASKS["mask"]
    assert_same_bits(dropout(None, X, broadcast_dims=[], mask=mask), mask.apply(np.asarray(X)))


def test_mask_of_p_0_returns_x():
    assert dropout(None, X, mask=cd.Mask(SHAPE, 0)) is X


@every_mask
def test_derivatives_with_mask(mask):
    gradient = jax.grad(lambda x: (dropout(None, x, mask=mask) ** 2).sum())(X)
    y = mask.apply(np.asarray(X))
    np.testing.assert_allclose(gradient, 2 * mask.apply(y), rtol=1e-6)
    check_grads(partial(dropout, None, mask=mask), (X,), order=2, eps=1)


@every_mask
def test_vmap_applies_mask_to_each_example(mask):
    x = normal_jax((2, *SHAPE))
    expected = np.stack([mask.apply(np.asarray(example)) for example in x])
    assert_same_bits(jax.vmap(partial(dropout, None, mask=mask))(x), expected)
    moved = jax.vmap(partial(dropout, None, mask=mask), in_axes=2)(jnp.moveaxis(x, 0, 2))
    assert_same_bits(moved, expected)


ERRORS = {
    "key": ((jax.random.key(1), X), {}, ValueError, "cannot be combined with key"),
    "axes": ((None, X, None, 0), {}, ValueError, "cannot be combined with broadcast_dims"),
    "p": ((None, X, 0.5), {}, ValueError, "the mask has p=0.3, but p=0.5 was given"),
    "shape": ((None, X[1:]), {}, ValueError,
              "the mask has the shape (3, 4, 5, 6), but x has (2, 4, 5, 6)"),
    "type": ((None, X), {"mask": np.ones(SHAPE, bool)}, TypeError,
             "mask has to be a Mask, but got ndarray"),
    "integers": ((None, jnp.ones(SHAPE, int)), {}, TypeError, "x has to be an array of float16"),
    "no key": ((None, X, 0.5), {"mask": None}, TypeError, "key has to be a JAX key"),
    "no p": ((jax.random.key(1), X), {"mask": None}, TypeError,
             "p has to be a number between 0 and 1, but got NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_invalid_arguments_raise(case):
    args, kwargs, error, message = ERRORS[case]
    with pytest.raises(error, match=re.escape(message)):
        dropout(*args, **{"mask": MASKS["mask"], **kwargs})


def test_mask_with_traced_p_raises():
    with pytest.raises(TypeError, match="p has to be left out if mask is given, but it is traced"):
        jax.jit(lambda p: dropout(None, X, p, mask=MASKS["mask"]))(0.3)
