"""Tests of arguments whose conversion runs code that changes an array of the same call."""

import numpy as np
import pytest

import cdropout as cd

from ..helpers.arrays import every_dtype
from ..helpers.bad_calls import Number, Rng, Seeds, assert_raises

CHANGED = "^an array of this call was changed while a seed was drawn from rng$"
OUT_SHAPE = "^out has to have the shape of x"
# Since NumPy 2.5, setting the shape of an array emits a DeprecationWarning.
sets_a_shape = pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")


def shrink(array):
    """Shorten an array to 4 elements, even if other objects refer to its memory."""
    array.resize(4, refcheck=False)


# ---- rng --------------------------------------------------------------------------------------


@sets_a_shape
def test_dropout_raises_if_rng_changes_a_shape_while_a_seed_is_drawn():
    """A call that uses a new shape with the old strides could access memory outside of an array."""
    base = np.ones((4096, 2), np.float32)
    for changed in (0, 1):
        arrays = x, out = base[:, :1], np.zeros((4096, 2), np.float32)[:, :1]
        rng = Rng(lambda array=arrays[changed]: setattr(array, "shape", (64, 64)) or 7)
        assert_raises(ValueError, CHANGED, cd.dropout, x, rng=rng, out=out)
        assert not out.any() and base.all()


@sets_a_shape
def test_dropout_reads_shapes_after_the_conversion_of_a_seed():
    """The seed is converted before the shapes of x and out are compared."""
    x, out = np.ones((4096, 1), np.float32), np.zeros((4096, 1), np.float32)
    seed = Number(lambda: setattr(x, "shape", (64, 64)) or 7)
    assert_raises(ValueError, OUT_SHAPE, cd.dropout, x, rng=seed, out=out)
    assert not out.any()


CALLS = {  # (function of rng, x and other arrays; number of the other arrays)
    "dropout": (lambda rng, x, out: cd.dropout(x, rng=rng, out=out), 1),
    "dropout in place": (lambda rng, x: cd.dropout(x, rng=rng, inplace=True), 0),
    "dropout of a view": (lambda rng, x, out: cd.dropout(x[1:], rng=rng, out=out[1:]), 1),
    "drop_path": (lambda rng, x, out: cd.drop_path(x, rng=rng, out=out), 1),
    "alpha_dropout": (lambda rng, x, out: cd.alpha_dropout(x, 0.5, True, rng=rng, out=out), 1),
    "alpha_dropout in place": (
        lambda rng, x: cd.alpha_dropout(x, 0.5, True, inplace=True, rng=rng),
        0,
    ),
    "feature_alpha_dropout": (
        lambda rng, x, out: cd.feature_alpha_dropout(
            x.reshape(64, 8, 8), 0.5, True, rng=rng, out=out.reshape(64, 8, 8)
        ),
        1,
    ),
    "mc_dropout": (lambda rng, x: cd.mc_dropout(x, n=3, rng=rng), 0),
    "bias_dropout_add": (
        lambda rng, x, bias, residual, out: cd.bias_dropout_add(
            x, bias, residual, rng=rng, out=out
        ),
        3,
    ),
}


@every_dtype
@pytest.mark.parametrize("call, others", CALLS.values(), ids=CALLS)
def test_functions_raise_if_rng_frees_memory_while_a_seed_is_drawn(call, others, dtype):
    for changed in range(others + 1):
        arrays = [np.ones(4096, dtype) for _ in range(others + 1)]
        rng = Rng(lambda array=arrays[changed]: shrink(array) or 7)
        assert_raises(ValueError, CHANGED, call, rng, *arrays)
        assert all((array == 1).all() for array in arrays)


@every_dtype
def test_dropout_raises_if_a_seed_sequence_frees_memory(dtype):
    x, out = np.ones(4096, dtype), np.ones(4096, dtype)
    y, mask = cd.dropout(x, rng=Seeds(lambda: [7]), out=out, return_mask=True)
    assert y is out and mask == cd.Mask(4096, 0.5, 7)
    seeds = Seeds(lambda: shrink(out) or [7])
    assert_raises(ValueError, CHANGED, cd.dropout, x, rng=seeds, out=out)


# ---- other arguments, which are converted before the arrays are read --------------------------


@pytest.mark.parametrize("name, value", [("p", 0.5), ("rng", 0), ("broadcast_dims", 0)])
def test_dropout_reads_arrays_after_the_conversion_of_other_arguments(name, value):
    x, out = np.ones(4096, np.float32), np.ones(4096, np.float32)
    arguments = {"rng": 1, "return_mask": True, "out": out}
    arguments[name] = Number(lambda: shrink(out) or value)
    assert_raises(ValueError, OUT_SHAPE, cd.dropout, x, **arguments)
    arguments[name] = Number(lambda: shrink(x) or value)
    y, mask = cd.dropout(x, **arguments)
    assert y is out and mask.shape == (4,)
    np.testing.assert_array_equal(y, mask.to_scale())


def test_mc_dropout_reads_x_after_the_conversion_of_n():
    x = np.ones(4096, np.float32)
    n = Number(lambda: shrink(x) or 3)
    assert cd.mc_dropout(x, 0.5, n, rng=1).shape == (3, 4)


@sets_a_shape
def test_functions_read_the_shape_of_a_mask_after_the_conversion_of_p():
    """p is converted once, before the shapes are compared."""
    conversions, kept = [], np.ones((4096, 1), bool)

    def change_shape():
        conversions.append(kept.shape)
        kept.shape = (1, 4096)
        return 0.5

    x, out = np.ones((4096, 1), np.float32), np.zeros((4096, 1), np.float32)
    message = r"^the mask has the shape \(1, 4096\), but x has \(4096, 1\)$"
    for call in (
        lambda p: cd.dropout_backward(x, kept, p=p, out=out),
        lambda p: cd.dropout(x, p, mask=kept, out=out),
    ):
        kept.shape = (4096, 1)
        assert_raises(ValueError, message, call, Number(change_shape))
    assert len(conversions) == 2 and not out.any()


def test_dropout_converts_p_once():
    values = iter([0.5, 2.0, 2.0])
    mask = cd.Mask(600, 0.5, 1)
    y = cd.dropout(np.ones(600, "f4"), Number(lambda: next(values)), mask=mask.bits())
    np.testing.assert_array_equal(y, mask.to_scale())


@sets_a_shape
def test_dropout_reads_the_shape_of_x_after_the_conversion_of_broadcast_dims():
    base = np.ones((64, 64, 2), np.float32)
    x, generator, out = base[..., 0], cd.Generator(1), np.zeros((64, 64), np.float32)
    axis = Number(lambda: setattr(x, "shape", (64, 8, 8)) or 0)
    arguments = {"rng": generator, "broadcast_dims": axis, "out": out}
    assert_raises(ValueError, OUT_SHAPE, cd.dropout, x, **arguments)
    assert generator.calls == 0 and not out.any() and base.all()
