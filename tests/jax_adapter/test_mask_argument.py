"""`mask=` in cdropout.jax: a given mask under jit, grad and vmap."""

import re
from functools import partial

import numpy as np
import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip

jax = import_or_skip("jax")
from jax import numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

from cdropout.jax import dropout  # noqa: E402

SHAPE = (3, 4, 5, 6)
WHOLE = cd.Generator(9).next_mask((7, 8, 9, 10), 0.3, scale=3)
MASKS = {
    "mask": cd.Generator(9).next_mask(SHAPE, 0.3),
    "large numbers": cd.Mask(SHAPE, 0.3, -1, 2**64 - 1),
    "channels": cd.Generator(9).next_mask(SHAPE, 0.3, broadcast_dims=(2, 3)),
    "samples": cd.Generator(9).next_mask(SHAPE, 0.3, broadcast_dims=(1, 2, 3)),
    "window": WHOLE[6:3:-1, ::2, 2:7, 4:],
    "start": cd.Mask(SHAPE, 0.3, 2, start=5),
    "scale": cd.Mask(SHAPE, 0.3, 2, scale=0.5),
    "all dropped": cd.Mask(SHAPE, 1),
    "nothing dropped": cd.Mask(SHAPE, 0, scale=2),
}
every_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)

HALVES = ["float16", "bfloat16"]
slow_pairs = [
    pytest.param(name, dtype, marks=pytest.mark.slow)
    for name in MASKS
    if name not in ("mask", "window")
    for dtype in HALVES
]


def numbers(dtype="float32", shape=SHAPE):
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), dtype)


def check(y, right):
    assert y.dtype == right.dtype and y.shape == right.shape
    assert np.asarray(y).tobytes() == np.asarray(right).tobytes()


@pytest.mark.parametrize(
    "name, dtype",
    [
        *[(name, "float32") for name in MASKS],
        *[(name, dtype) for name in ("mask", "window") for dtype in HALVES],
        *slow_pairs,
    ],
)
def test_a_given_mask(name, dtype):
    mask = MASKS[name]
    x = numbers(dtype)
    want = mask.apply(np.asarray(x))
    check(dropout(None, x, mask=mask), want)
    check(dropout(None, x, mask.p, inplace=True, mask=mask), want)
    check(jax.jit(partial(dropout, None, mask=mask))(x), want)
    check(jax.jit(dropout, static_argnames="mask")(None, x, mask=mask), want)


def test_no_broadcast_dims():
    mask, x = MASKS["mask"], numbers()
    check(dropout(None, x, broadcast_dims=[], mask=mask), mask.apply(np.asarray(x)))


def test_a_mask_that_keeps_everything_returns_x():
    x = numbers()
    assert dropout(None, x, mask=cd.Mask(SHAPE, 0)) is x


@every_mask
def test_derivatives(mask):
    x = numbers()
    gradient = jax.grad(lambda x: (dropout(None, x, mask=mask) ** 2).sum())(x)
    y = mask.apply(np.asarray(x))
    np.testing.assert_allclose(gradient, 2 * mask.apply(y), rtol=1e-6)
    check_grads(partial(dropout, None, mask=mask), (x,), order=2, eps=1)


@every_mask
def test_under_vmap_each_example_has_the_mask(mask):
    x = numbers(shape=(2, *SHAPE))
    want = np.stack([mask.apply(np.asarray(example)) for example in x])
    check(jax.vmap(partial(dropout, None, mask=mask))(x), want)
    moved = jax.vmap(partial(dropout, None, mask=mask), in_axes=2)(jnp.moveaxis(x, 0, 2))
    check(moved, want)


ERRORS = {
    "key": ((jax.random.key(1), numbers()), {}, ValueError, "it excludes key"),
    "axes": ((None, numbers(), None, 0), {}, ValueError, "it excludes broadcast_dims"),
    "p": ((None, numbers(), 0.5), {}, ValueError, "the mask has p=0.3, but p=0.5 was given"),
    "shape": ((None, numbers()[1:]), {}, ValueError,
              "the mask has the shape (3, 4, 5, 6), but x has (2, 4, 5, 6)"),
    "type": ((None, numbers()), {"mask": np.ones(SHAPE, bool)}, TypeError,
             "mask has to be a Mask, but got ndarray"),
    "integers": ((None, jnp.ones(SHAPE, int)), {}, TypeError, "x has to be an array of float16"),
    "no key": ((None, numbers(), 0.5), {"mask": None}, TypeError, "key has to be a JAX key"),
    "no p": ((jax.random.key(1), numbers()), {"mask": None}, TypeError,
             "p has to be a number between 0 and 1, but got NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    args, change, error, words = ERRORS[case]
    with pytest.raises(error, match=re.escape(words)):
        dropout(*args, **{"mask": MASKS["mask"], **change})


def test_a_traced_p():
    with pytest.raises(TypeError, match="p has to be left out if mask is given, but it is traced"):
        jax.jit(lambda p: dropout(None, numbers(), p, mask=MASKS["mask"]))(0.3)
