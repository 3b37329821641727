"""Tests of the argument `mask` of the functions for NumPy arrays."""

import re

import numpy as np
import pytest

import cdropout as cd

from ..helpers.arrays import assert_same_bits, every_dtype, normal

SHAPE = (3, 4, 5, 6)
BROADCAST_AXES = {
    cd.dropout: (),
    cd.dropout1d: (2,),
    cd.dropout2d: (2, 3),
    cd.dropout3d: (1, 2, 3),
    cd.drop_path: (1, 2, 3),
    cd.alpha_dropout: (),
    cd.feature_alpha_dropout: (2, 3),
}
VARIANTS = [pytest.param(f, axes, id=f.__name__) for f, axes in BROADCAST_AXES.items()]


def input_of(function, dtype=np.float32):
    return normal(SHAPE[:3] if function is cd.dropout1d else SHAPE, dtype)


@pytest.mark.filterwarnings("ignore:dropout3d")
@pytest.mark.parametrize("function, axes", VARIANTS)
@pytest.mark.parametrize("p", [0, 0.3, 0.5, 1])
@every_dtype
def test_mask_gives_the_same_result_as_the_generator_that_created_it(function, axes, p, dtype):
    x = input_of(function, dtype)
    expected = function(x, p, True, rng=5)
    mask = cd.Generator(5).next_mask(x.shape, p, broadcast_dims=axes)
    assert_same_bits(function(x, mask=mask, training=True), expected)
    assert_same_bits(function(x, p, True, mask=mask), expected)
    assert_same_bits(function(x, 0.5, True, mask=mask), expected)  # p=0.5, the default, is accepted
    out = np.empty_like(x)
    y, used = function(x, mask=mask, training=True, out=out, return_mask=True)
    assert y is out
    assert_same_bits(out, expected)
    if function not in (cd.alpha_dropout, cd.feature_alpha_dropout):
        assert used is mask
    _, drawn = function(x, p, True, rng=5, return_mask=True)
    assert_same_bits(used.apply(x), cd.dropout_backward(x, drawn))
    assert function(x, mask=mask, training=False) is x
    assert function(x, p, True, True, mask=mask) is x
    assert_same_bits(x, expected)


def test_mc_dropout_gives_equal_results_with_a_generator_and_its_next_mask():
    x = input_of(cd.dropout)
    mask = cd.Generator(5).next_mask((2, *x.shape), 0.3)
    assert_same_bits(cd.mc_dropout(x, n=2, mask=mask), cd.mc_dropout(x, 0.3, 2, rng=5))
    assert_same_bits(cd.mc_dropout(x, 0.5, 2, mask=mask), cd.mc_dropout(x, 0.3, 2, rng=5))


@every_dtype
@pytest.mark.parametrize("p", [0, 0.3, 1])
def test_bias_dropout_add_gives_equal_results_with_a_generator_and_its_next_mask(p, dtype):
    x, bias = input_of(cd.dropout, dtype), np.arange(6, dtype=dtype)
    expected = cd.bias_dropout_add(x, bias, x[::-1], p, rng=5)
    mask = cd.Generator(5).next_mask(x.shape, p)
    y, used = cd.bias_dropout_add(x, bias, x[::-1], mask=mask, return_mask=True)
    assert_same_bits(y, expected)
    assert used is mask and cd.bias_dropout_add(x, bias, x, training=False, mask=mask) is not x
    assert_same_bits(cd.bias_dropout_add(x, bias, x[::-1], 0.5, mask=mask), expected)


@pytest.mark.parametrize("window", [np.s_[1:, ::-1], np.s_[2:, :], np.s_[:, :, 3:4]], ids=str)
def test_bias_dropout_add_accepts_a_window_of_a_mask(window):
    mask = cd.Generator(5).next_mask((6, 8, 10), 0.3)[window]
    x = normal(mask.shape)
    bias = np.arange(x.shape[-1], dtype=np.float32)
    expected = x + mask.apply(x + bias)
    assert_same_bits(cd.bias_dropout_add(x, bias, x, mask=mask), expected)
    assert_same_bits(cd.bias_dropout_add(x, bias, x, mask=mask, out=x), expected)


def test_dropout_accepts_a_window_of_a_mask_with_another_scale():
    mask = cd.Generator(5).next_mask((6, 8), 0.3, scale=4)[::-2, 1:]
    x = normal(mask.shape)
    assert_same_bits(cd.dropout(x, mask=mask), mask.apply(x))
    assert_same_bits(cd.alpha_dropout(x, training=True, mask=mask) != 0, np.ones(x.shape, bool))
    keep = np.asarray(mask)
    ones = cd.alpha_dropout(np.ones_like(x), training=True, mask=mask)
    assert len(set(ones[keep])) == len(set(ones[~keep])) == 1


ERRORS = {
    "rng": ({"rng": 1}, ValueError, "mask= cannot be combined with rng"),
    "generator": ({"rng": cd.Generator(1)}, ValueError, "cannot be combined with rng"),
    "p": ({"p": 0.25}, ValueError, "the mask has p=0.3, but p=0.25 was given"),
    "no p": ({"p": 2}, ValueError, "dropout probability has to be between 0 and 1, but got 2"),
    "shape": ({"mask": cd.Mask((3, 4, 5), 0.3)}, ValueError,
              "the mask has the shape (3, 4, 5), but x has (3, 4, 5, 6)"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:dropout3d")
@pytest.mark.parametrize("function, axes", VARIANTS)
@pytest.mark.parametrize("case", ERRORS)
def test_mask_with_conflicting_arguments_raises(function, axes, case):
    x = input_of(function)
    changed, error, message = ERRORS[case]
    mask = cd.Generator(5).next_mask(x.shape, 0.3, broadcast_dims=axes)
    if case == "shape" and function is cd.dropout1d:
        changed = {"mask": cd.Mask((3, 4), 0.3)}
        message = "the mask has the shape (3, 4), but x has (3, 4, 5)"
    with pytest.raises(error, match=re.escape(message)):
        function(x, **{"mask": mask, "training": True, **changed})
    assert_same_bits(x, input_of(function))


@pytest.mark.filterwarnings("ignore:dropout3d")
@pytest.mark.parametrize("function, axes", VARIANTS[1:5] + VARIANTS[6:])
def test_dropout_variants_reject_a_mask_with_other_broadcast_axes(function, axes):
    x = input_of(function)
    mask = cd.Mask(x.shape, 0.3)
    message = f"the mask has to have one draw along the axes {axes}, but got {mask}"
    with pytest.raises(ValueError, match=re.escape(message)):
        function(x, mask=mask, training=True)


def test_dropout2d_accepts_an_empty_mask():
    x = np.ones((0, 3, 4, 5), np.float32)
    mask = cd.Generator(1).next_mask(x.shape, 0.5, broadcast_dims=(2, 3))
    assert cd.dropout2d(x, mask=mask).shape == x.shape


@pytest.mark.parametrize("function, axes", VARIANTS[1:])
def test_dropout_variants_reject_an_array_as_mask(function, axes):
    x = input_of(function)
    with pytest.raises(TypeError, match="^mask has to be a Mask, but got ndarray$"):
        function(x, mask=np.ones(x.shape, bool), training=True)


@pytest.mark.parametrize("empty", [(), [], None], ids=str)
def test_dropout_with_a_mask_accepts_empty_broadcast_dims_and_rng_none(empty):
    x = input_of(cd.dropout)
    mask = cd.Mask(x.shape, 0.3)
    options = {"rng": None} if empty is None else {"broadcast_dims": empty}
    assert_same_bits(cd.dropout(x, mask=mask, **options), mask.apply(x))


def test_mask_with_conflicting_function_specific_arguments_raises():
    x = input_of(cd.dropout)
    mask = cd.Mask(x.shape, 0.3)
    for dims in (1, [0]):
        with pytest.raises(ValueError, match="cannot be combined with broadcast_dims"):
            cd.dropout(x, mask=mask, broadcast_dims=dims)
    with pytest.raises(ValueError, match="cannot be combined with scale_by_keep=False"):
        cd.drop_path(x, mask=mask, scale_by_keep=False)
    with pytest.raises(ValueError, match="cannot be combined with rng"):
        cd.bias_dropout_add(x, x, x, mask=mask, rng=1)
    with pytest.raises(ValueError, match="the mask has p=0.3, but p=0.4 was given"):
        cd.bias_dropout_add(x, x, x, 0.4, mask=mask)
    with pytest.raises(TypeError, match="mask has to be a Mask, but got int"):
        cd.bias_dropout_add(x, x, x, mask=1)
    message = r"the mask has the shape \(3, 4, 5, 6\), but x has \(2, 3, 4, 5, 6\)"
    with pytest.raises(ValueError, match=message):
        cd.mc_dropout(x, n=2, mask=mask)
    with pytest.raises(ValueError, match=r"has the shape \(3, 4, 5, 6\), but x has \(3, 4, 5, 1\)"):
        cd.bias_dropout_add(x[..., :1], x[..., :1], x[..., :1], mask=mask)
