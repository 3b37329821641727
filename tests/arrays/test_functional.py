"""Tests of channel dropout, drop path, alpha dropout, and Monte Carlo dropout."""

import pickle
import warnings

import ml_dtypes
import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.arrays import assert_same_bits, every_dtype, normal
from ..helpers.requirements import import_or_skip

SHAPE = (5, 7, 4, 3, 2, 2)
SEED = 0xFEDCBA9876543210
# Each list contains the broadcast axes for inputs with 0, 1, ..., 6 dimensions. None means that
# the function raises an error.
BROADCAST_AXES = {
    "dropout1d": [None, None, (1,), (2,), None, None, None],
    "dropout2d": [None, None, (), (2,), (2, 3), (2, 3, 4), (2, 3, 4, 5)],
    "dropout3d": [None, (), (1,), (1, 2), (1, 2, 3), (2, 3, 4), (1, 2, 3, 4, 5)],
    "feature_alpha_dropout": [None, None, (), (2,), (2, 3), (2, 3, 4), (2, 3, 4, 5)],
}
TOO_FEW = "Feature dropout requires at least 2 dimensions in the input"
ONE_DIMENSION = (
    "dropout1d: Expected 2D or 3D input, but received a {}D input. Note that dropout1d exists to "
    "provide channel-wise dropout on inputs with 1 spatial dimension, a channel dimension, and an "
    "optional batch dimension (i.e. 2D or 3D inputs)."
)
DEPRECATED = (
    "{0}: Received a {1}-D input to {0}, which is deprecated and will result in an error in a "
    "future release. To retain the behavior and silence this warning, please use dropout instead. "
    "Note that {0} exists to provide channel-wise dropout on inputs with {2} spatial dimensions, a "
    "channel dimension, and an optional batch dimension (i.e. {3}D or {4}D inputs)."
)
WITHOUT_BATCH = (
    "dropout2d: Received a 3D input to dropout2d and assuming that channel-wise 1D dropout "
    "behavior is desired - input is interpreted as shape (N, C, L), where C is the channel dim. "
    "This behavior will change in a future release to interpret the input as one without a batch "
    "dimension, i.e. shape (C, H, W). To maintain the 1D channel-wise dropout behavior, please "
    "switch to using dropout1d instead."
)


def outcome(function, *args, **kwargs):
    """Call the function; return (result or None, error message or None, warning messages)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            y, error = function(*args, **kwargs), None
        except RuntimeError as raised:
            y, error = None, str(raised)
    assert all(warning.category is UserWarning for warning in caught)
    return y, error, [str(warning.message) for warning in caught]


def messages(name, ndim):
    """Return (expected error message or None, expected warnings) for x with this `ndim`."""
    if name == "dropout1d":
        return (None if ndim in (2, 3) else ONE_DIMENSION.format(ndim)), []
    error = TOO_FEW if BROADCAST_AXES[name][ndim] is None else None
    spatial = {"dropout2d": 2, "dropout3d": 3}.get(name)
    warnings_ = [WITHOUT_BATCH] if (name, ndim) == ("dropout2d", 3) else []
    if spatial and ndim not in (spatial + 1, spatial + 2):
        warnings_ = [DEPRECATED.format(name, ndim, spatial, spatial + 1, spatial + 2)]
    return error, warnings_


# ---- channels ---------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("ndim", range(7))
@pytest.mark.parametrize("name", ["dropout1d", "dropout2d", "dropout3d"])
def test_channel_dropout_equals_reference(name, ndim, dtype):
    function, x, dims = getattr(cd, name), normal(SHAPE[:ndim], dtype), BROADCAST_AXES[name][ndim]
    before, generator = x.copy(), cd.Generator(SEED)
    result, *raised = outcome(function, x, 0.4, rng=generator, return_mask=True)
    assert tuple(raised) == messages(name, ndim)
    assert_same_bits(x, before)
    if dims is None:
        assert generator.calls == 0
        return
    y, mask = result
    expected = reference.dropout(x, 0.4, SEED, 0, dims)
    assert_same_bits(y, expected)
    assert generator.calls == 1 and pickle.loads(pickle.dumps(mask)) == mask
    drawn = [1 if axis in dims else length for axis, length in enumerate(x.shape)]
    positions = sum((n - 1) * step for n, step in zip(mask.shape, mask.strides, strict=True)) + 1
    assert positions == np.prod(drawn)
    assert_same_bits(mask, reference.broadcast_keep(x.shape, 0.4, SEED, 0, dims))
    gy = before[::-1]
    assert_same_bits(cd.dropout_backward(gy, mask), reference.apply(gy, mask, 0.4))
    assert_same_bits(outcome(function, x, 0.4, rng=SEED, out=np.ones_like(x))[0], expected)
    assert outcome(function, x, 0.4, inplace=True, rng=SEED)[0] is x
    assert_same_bits(x, expected)


@pytest.mark.parametrize("ndim", range(7))
@pytest.mark.parametrize("name", BROADCAST_AXES)
def test_channel_dropout_has_the_error_and_warning_messages_of_torch(name, ndim):
    torch = import_or_skip("torch")
    if torch.__version__.split("+")[0] != "2.13.0":
        pytest.skip("the messages are those of PyTorch 2.13.0")
    torch_function = getattr(torch.nn.functional, name)
    x = np.ones(SHAPE[:ndim], np.float32)
    # In evaluation mode, PyTorch's functions other than dropout1d accept fewer than two dimensions.
    for training in (True, False) if ndim >= 2 else (True,):
        raised = outcome(torch_function, torch.from_numpy(x), 0.4, training)[1:]
        assert raised == messages(name, ndim) == outcome(getattr(cd, name), x, 0.4, training)[1:]


@pytest.mark.parametrize("ndim", range(7))
@pytest.mark.parametrize("name", BROADCAST_AXES)
def test_channel_dropout_checks_ndim_in_training_and_evaluation(name, ndim):
    x, generator = normal(SHAPE[:ndim]), cd.Generator(1)
    for p, training in ((0.4, False), (0, True), (1, True), (0.4, True)):
        assert generator.calls == 0
        y, *raised = outcome(getattr(cd, name), x, p, training, rng=generator)
        assert tuple(raised) == messages(name, ndim)
        assert raised[0] or (y is x) == (p == 0 or not training)


@every_dtype
@pytest.mark.parametrize(
    "name, shape",
    [("dropout1d", (4, 9, 33)), ("dropout2d", (3, 6, 7, 11)), ("dropout3d", (2, 8, 3, 4, 5))],
)
def test_channel_dropout_accepts_any_memory_order(name, shape, dtype):
    p, function, dims = 0.3, getattr(cd, name), tuple(range(2, len(shape)))
    packed = normal((shape[0], *shape[2:], shape[1]), dtype)  # the channels are the last axis
    wide = np.zeros((2 * shape[0], *shape[1:]), dtype)
    for x in (np.moveaxis(packed, -1, 1), wide[::-2]):
        x[...] = normal(shape, dtype)
        expected = reference.dropout(x, p, SEED, 0, dims)
        y, mask = function(x, p, rng=SEED, return_mask=True)
        assert_same_bits(y, expected)
        assert mask.strides == (shape[1], 1, *[0] * len(dims))
        assert np.argsort(y.strides).tolist() == np.argsort(np.abs(x.strides)).tolist()
        assert_same_bits(cd.dropout_backward(x, mask), expected)
        function(x, p, inplace=True, rng=SEED)
        assert_same_bits(x, expected)
    assert not wide[::2].any()


@every_dtype
@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("shape", [(), (9,), (40, 30), (200, 3, 5), (3, 2, 70, 90)], ids=str)
def test_drop_path_equals_reference(shape, p, dtype):
    x, dims = normal(shape, dtype), tuple(range(1, len(shape)))
    keep = reference.broadcast_keep(shape, p, SEED, 0, dims)
    y, mask = cd.drop_path(x, p, rng=SEED, return_mask=True)
    assert_same_bits(y, reference.apply(x, keep, p))
    assert mask.scale == 1 / (1 - p) and mask.strides == ((1,) if shape else ()) + (0,) * len(dims)
    y, mask = cd.drop_path(x, p, scale_by_keep=False, rng=SEED, return_mask=True)
    expected = reference.apply(x, keep, 0)  # p = 0 gives a scale of 1
    assert_same_bits(y, expected)
    assert mask.scale == 1 and pickle.loads(pickle.dumps(mask)) == mask
    assert_same_bits(cd.dropout_backward(x, mask), expected)
    cd.drop_path(x, p, inplace=True, scale_by_keep=False, rng=SEED)
    assert_same_bits(x, expected)


def test_drop_path_without_a_draw_does_not_change_the_generator():
    x, kwargs = normal(SHAPE), {"scale_by_keep": False, "rng": cd.Generator(1)}
    for args in ((0,), (0.5, False), (1, False)):
        assert cd.drop_path(x, *args, **kwargs) is x
    y, mask = cd.drop_path(x * np.nan, 1, return_mask=True, **kwargs)
    assert_same_bits(y, np.zeros_like(x))
    assert mask.scale == 0 and kwargs["rng"].calls == 0


SATURATION = -1.0507009873554804934193349852946 * 1.6732632423543772848170429916717


def alpha_of(p):
    """Return a and b of Klambauer et al., which preserve the mean 0 and the variance 1 of x."""
    q = 1 - p
    a = (q + SATURATION**2 * p * q) ** -0.5
    return a, -a * p * SATURATION


def assert_mean(sample, value):
    """Assert that the mean of a sample is close to `value`.

    The assertion fails for a correct sample with a probability of 1e-6.
    """
    assert abs(sample.mean() - value) < 4.9 * sample.std() / len(sample) ** 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.8])
def test_alpha_dropout_preserves_mean_and_variance(p, dtype):
    x = np.random.default_rng(1).standard_normal((400, 500, 3)).astype(dtype)
    for function in (cd.alpha_dropout, cd.feature_alpha_dropout):
        y = function(x, p, True, rng=5).astype(np.float64)
        assert_mean(y.mean(axis=2).ravel(), 0)
        assert_mean((y**2).mean(axis=2).ravel(), 1)


@every_dtype
@pytest.mark.parametrize("p", [2.0**-20, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("name, dims", [("alpha_dropout", ()), ("feature_alpha_dropout", (2, 3))])
def test_alpha_dropout_equals_the_formula_of_klambauer_et_al(name, dims, p, dtype):
    function, x = getattr(cd, name), normal((9, 20, 5, 7), dtype)
    y, mask = function(x, p, True, rng=SEED, return_mask=True)
    keep = reference.broadcast_keep(x.shape, p, SEED, 0, dims)
    assert_same_bits(np.asarray(mask), np.asarray(keep))
    a, b = alpha_of(p)
    assert mask.scale == pytest.approx(a, rel=1e-15) and y.dtype == x.dtype
    exact = np.where(keep, a * x.astype(np.float64) + b, a * SATURATION + b)
    # a, b, the product and the sum each have a relative rounding error of at most eps / 2.
    size = np.where(keep, 1.5 * abs(a * x.astype(np.float64)) + b, 0) + abs(exact) / 2
    eps = float(ml_dtypes.finfo(dtype).eps)
    assert (abs(y.astype(np.float64) - exact) <= 1.01 * eps * size).all()
    assert_same_bits(cd.dropout_backward(x, mask), mask.apply(x))
    assert_same_bits(function(x, p, True, rng=SEED, out=np.empty_like(x)), y)
    assert function(x, p, True, True, rng=SEED) is x
    assert_same_bits(x, y)


@every_dtype
@pytest.mark.parametrize("function", [cd.alpha_dropout, cd.feature_alpha_dropout])
def test_alpha_dropout_accepts_nan_and_infinity_and_p_0_or_1(function, dtype):
    generator = cd.Generator(3)
    for value in (np.nan, np.inf, -np.inf):
        x = np.full((30, 40), value, dtype)
        y, mask = function(x, 0.5, True, rng=3, return_mask=True)
        a, b = alpha_of(0.5)
        keep = np.asarray(mask)
        assert 0 < keep.sum() < keep.size
        np.testing.assert_array_equal(y[keep].astype(float), value)
        assert_same_bits(y[~keep], np.full_like(y[~keep], a * SATURATION + b))
        assert not cd.dropout_backward(x, mask)[~keep].any()
        assert_same_bits(function(x, 1, True, rng=generator), np.zeros_like(x))
        assert function(x, 0.5, rng=generator) is x  # training=False is the default, as in PyTorch
        assert function(x, 0, True, rng=generator) is x
    assert generator.calls == 0


@every_dtype
@pytest.mark.parametrize("n, shape", [(3, ()), (1, (7,)), (4, (50, 300)), (5, (0,))], ids=str)
def test_mc_dropout_equals_reference(n, shape, dtype):
    x, generator = normal(shape, dtype), cd.Generator(SEED)
    expected = reference.dropout(np.broadcast_to(x, (n, *shape)), 0.3, SEED, 0)
    y, mask = cd.mc_dropout(x, 0.3, n, rng=generator, return_mask=True)
    assert_same_bits(y, expected)
    assert generator.calls == (1 if x.size else 0)
    assert mask == cd.Mask((n, *shape), 0.3, SEED if x.size else 0, 0)
    assert y.flags.c_contiguous and not np.shares_memory(x, y)
    out = y.transpose(0, *range(x.ndim, 0, -1))
    expected = reference.dropout(np.broadcast_to(x.T, (n, *x.T.shape)), 0.3, SEED, 0)
    assert_same_bits(cd.mc_dropout(x.T, 0.3, np.int8(n), rng=SEED, out=out), expected)


def test_mc_dropout_without_a_draw_does_not_change_the_generator():
    x, generator = normal((4, 5)), cd.Generator(1)
    assert cd.mc_dropout(x, 0.5, 0, rng=generator).shape == (0, 4, 5)
    assert_same_bits(cd.mc_dropout(x, 0, 2, rng=generator), np.stack([x, x]))
    assert_same_bits(cd.mc_dropout(x, 1, 2, rng=generator), np.zeros((2, 4, 5), np.float32))
    assert generator.calls == 0
