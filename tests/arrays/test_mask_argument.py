"""`mask=`: a mask is drawn once and given to the functions of NumPy arrays."""

import re

import numpy as np
import pytest

import cdropout as cd

SHAPE = (3, 4, 5, 6)
BROADCAST = {  # each variant, with the axes that share a draw
    cd.dropout: (),
    cd.dropout1d: (2,),
    cd.dropout2d: (2, 3),
    cd.dropout3d: (1, 2, 3),
    cd.drop_path: (1, 2, 3),
    cd.alpha_dropout: (),
    cd.feature_alpha_dropout: (2, 3),
}
VARIANTS = [pytest.param(f, axes, id=f.__name__) for f, axes in BROADCAST.items()]


def same(a, b):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def numbers(function, dtype=np.float32):
    shape = SHAPE[:3] if function is cd.dropout1d else SHAPE
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


@pytest.mark.filterwarnings("ignore:dropout3d")
@pytest.mark.parametrize("function, axes", VARIANTS)
@pytest.mark.parametrize("p", [0, 0.3, 0.5, 1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_mask_gives_what_its_generator_gives(function, axes, p, dtype):
    x = numbers(function, dtype)
    want = function(x, p, True, rng=5)
    mask = cd.Generator(5).next_mask(x.shape, p, broadcast_dims=axes)
    same(function(x, mask=mask, training=True), want)
    same(function(x, p, True, mask=mask), want)
    same(function(x, 0.5, True, mask=mask), want)  # counts as left out
    out = np.empty_like(x)
    y, used = function(x, mask=mask, training=True, out=out, return_mask=True)
    assert y is out
    same(out, want)
    if function not in (cd.alpha_dropout, cd.feature_alpha_dropout):
        assert used is mask
    same(used.apply(x), cd.dropout_backward(x, function(x, p, True, rng=5, return_mask=True)[1]))
    assert function(x, mask=mask, training=False) is x
    assert function(x, p, True, True, mask=mask) is x
    same(x, want)


def test_mc_dropout():
    x = numbers(cd.dropout)
    mask = cd.Generator(5).next_mask((2, *x.shape), 0.3)
    same(cd.mc_dropout(x, n=2, mask=mask), cd.mc_dropout(x, 0.3, 2, rng=5))
    same(cd.mc_dropout(x, 0.5, 2, mask=mask), cd.mc_dropout(x, 0.3, 2, rng=5))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("p", [0, 0.3, 1])
def test_bias_dropout_add(p, dtype):
    x, bias = numbers(cd.dropout, dtype), np.arange(6, dtype=dtype)
    want = cd.bias_dropout_add(x, bias, x[::-1], p, rng=5)
    mask = cd.Generator(5).next_mask(x.shape, p)
    y, used = cd.bias_dropout_add(x, bias, x[::-1], mask=mask, return_mask=True)
    same(y, want)
    assert used is mask and cd.bias_dropout_add(x, bias, x, training=False, mask=mask) is not x
    same(cd.bias_dropout_add(x, bias, x[::-1], 0.5, mask=mask), want)


@pytest.mark.parametrize("window", [np.s_[1:, ::-1], np.s_[2:, :], np.s_[:, :, 3:4]], ids=str)
def test_bias_dropout_add_with_a_window(window):
    mask = cd.Generator(5).next_mask((6, 8, 10), 0.3)[window]
    x = np.random.default_rng(1).standard_normal(mask.shape).astype(np.float32)
    bias = np.arange(x.shape[-1], dtype=np.float32)
    want = x + mask.apply(x + bias)
    same(cd.bias_dropout_add(x, bias, x, mask=mask), want)
    same(cd.bias_dropout_add(x, bias, x, mask=mask, out=x), want)


def test_windows_and_scales_of_masks():
    mask = cd.Generator(5).next_mask((6, 8), 0.3, scale=4)[::-2, 1:]
    x = np.random.default_rng(1).standard_normal(mask.shape).astype(np.float32)
    same(cd.dropout(x, mask=mask), mask.apply(x))
    same(cd.alpha_dropout(x, training=True, mask=mask) != 0, np.ones(x.shape, bool))
    keep = np.asarray(mask)
    ones = cd.alpha_dropout(np.ones_like(x), training=True, mask=mask)
    assert len(set(ones[keep])) == len(set(ones[~keep])) == 1


ERRORS = {
    "rng": ({"rng": 1}, ValueError, "mask= determines which elements are kept: it excludes rng"),
    "generator": ({"rng": cd.Generator(1)}, ValueError, "it excludes rng"),
    "p": ({"p": 0.25}, ValueError, "the mask has p=0.3, but p=0.25 was given"),
    "no p": ({"p": 2}, ValueError, "dropout probability has to be between 0 and 1, but got 2"),
    "shape": ({"mask": cd.Mask((3, 4, 5), 0.3)}, ValueError,
              "the mask has the shape (3, 4, 5), but x has (3, 4, 5, 6)"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:dropout3d")
@pytest.mark.parametrize("function, axes", VARIANTS)
@pytest.mark.parametrize("case", ERRORS)
def test_errors(function, axes, case):
    x = numbers(function)
    change, error, words = ERRORS[case]
    mask = cd.Generator(5).next_mask(x.shape, 0.3, broadcast_dims=axes)
    if case == "shape" and function is cd.dropout1d:
        change, words = (
            {"mask": cd.Mask((3, 4), 0.3)},
            "the mask has the shape (3, 4), but x has (3, 4, 5)",
        )
    with pytest.raises(error, match=re.escape(words)):
        function(x, **{"mask": mask, "training": True, **change})
    same(x, numbers(function))


@pytest.mark.filterwarnings("ignore:dropout3d")
@pytest.mark.parametrize("function, axes", VARIANTS[1:5] + VARIANTS[6:])
def test_a_variant_takes_masks_with_its_draws_only(function, axes):
    x = numbers(function)
    mask = cd.Mask(x.shape, 0.3)
    words = f"the mask has to have one draw along the axes {axes}, but got {mask}"
    with pytest.raises(ValueError, match=re.escape(words)):
        function(x, mask=mask, training=True)


def test_an_empty_array():
    x = np.ones((0, 3, 4, 5), np.float32)
    mask = cd.Generator(1).next_mask(x.shape, 0.5, broadcast_dims=(2, 3))
    assert cd.dropout2d(x, mask=mask).shape == x.shape


@pytest.mark.parametrize("function, axes", VARIANTS[1:])
def test_a_variant_takes_masks_only(function, axes):
    x = numbers(function)
    with pytest.raises(TypeError, match="^mask has to be a Mask, but got ndarray$"):
        function(x, mask=np.ones(x.shape, bool), training=True)


@pytest.mark.parametrize("none", [(), [], None], ids=str)
def test_an_empty_argument_is_not_excluded(none):
    x = numbers(cd.dropout)
    mask = cd.Mask(x.shape, 0.3)
    options = {"rng": None} if none is None else {"broadcast_dims": none}
    same(cd.dropout(x, mask=mask, **options), mask.apply(x))


def test_errors_of_the_others():
    x = numbers(cd.dropout)
    mask = cd.Mask(x.shape, 0.3)
    with pytest.raises(ValueError, match="it excludes broadcast_dims"):
        cd.dropout(x, mask=mask, broadcast_dims=1)
    with pytest.raises(ValueError, match="it excludes broadcast_dims"):
        cd.dropout(x, mask=mask, broadcast_dims=[0])
    with pytest.raises(ValueError, match="it excludes scale_by_keep=False"):
        cd.drop_path(x, mask=mask, scale_by_keep=False)
    with pytest.raises(ValueError, match="it excludes rng"):
        cd.bias_dropout_add(x, x, x, mask=mask, rng=1)
    with pytest.raises(ValueError, match="the mask has p=0.3, but p=0.4 was given"):
        cd.bias_dropout_add(x, x, x, 0.4, mask=mask)
    with pytest.raises(TypeError, match="mask has to be a Mask, but got int"):
        cd.bias_dropout_add(x, x, x, mask=1)
    shapes = r"the mask has the shape \(3, 4, 5, 6\), but x has \(2, 3, 4, 5, 6\)"
    with pytest.raises(ValueError, match=shapes):
        cd.mc_dropout(x, n=2, mask=mask)
    with pytest.raises(ValueError, match=r"has the shape \(3, 4, 5, 6\), but x has \(3, 4, 5, 1\)"):
        cd.bias_dropout_add(x[..., :1], x[..., :1], x[..., :1], mask=mask)
