"""Arguments that are bools: nothing else is taken for one, and nothing changes after the error."""

import re

import numpy as np
import pytest

import cdropout as cd

FLAGS = ("training", "inplace", "return_mask")
FUNCTIONS = {
    "dropout": (cd.dropout, FLAGS),
    "dropout1d": (cd.dropout1d, FLAGS),
    "dropout2d": (cd.dropout2d, FLAGS),
    "dropout3d": (cd.dropout3d, FLAGS),
    "drop_path": (cd.drop_path, (*FLAGS, "scale_by_keep")),
    "alpha_dropout": (cd.alpha_dropout, FLAGS),
    "feature_alpha_dropout": (cd.feature_alpha_dropout, FLAGS),
    "mc_dropout": (cd.mc_dropout, ("return_mask",)),
}
WRONG = ["no", "", 0, 1, 0.0, None, [], np.array(True), np.int8(1)]
MODULES = (
    cd.Dropout,
    cd.Dropout1d,
    cd.Dropout2d,
    cd.Dropout3d,
    cd.AlphaDropout,
    cd.FeatureAlphaDropout,
    cd.DropPath,
)


def array(name):
    shape = {"dropout1d": (3, 4, 5), "dropout3d": (2, 3, 4, 2, 2)}.get(name, (2, 3, 4, 5))
    return np.ones(shape, np.float32)


def refuses(flag, value, call, *args, **kwargs):
    words = f"(?m)^{flag} has to be a bool, but got {re.escape(type(value).__name__)}$"
    with pytest.raises(TypeError, match=words):
        call(*args, **kwargs)


CASES = [
    pytest.param(function, name, flag, id=f"{name}-{flag}")
    for name, (function, flags) in FUNCTIONS.items()
    for flag in flags
]


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("function, name, flag", CASES)
def test_functions_refuse_what_is_no_bool(function, name, flag, value):
    x, generator = array(name), cd.Generator(1)
    for p in (0.5, 0, 1):
        refuses(flag, value, function, x, p, rng=generator, **{flag: value})
    assert (x == 1).all() and generator.calls == 0


@pytest.mark.parametrize("function, name, flag", CASES)
@pytest.mark.parametrize("value", [True, False])
def test_bools_of_numpy_are_bools(function, name, flag, value):
    given, wanted = array(name), array(name)
    y = function(given, 0.5, rng=1, **{flag: np.bool_(value)})
    want = function(wanted, 0.5, rng=1, **{flag: value})
    if isinstance(want, tuple):
        assert y[1] == want[1]
        y, want = y[0], want[0]
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(given, wanted)
    assert (y is given) == (want is wanted)


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_functions_of_given_masks_refuse_what_is_no_bool(value):
    x = np.ones((2, 3), np.float32)
    mask = cd.Mask(x.shape, 0.5)
    for given in (mask, mask.bits(), np.asarray(mask), mask.to_scale()):
        for flag in FLAGS:
            refuses(flag, value, cd.dropout, x, mask=given, **{flag: value})
        refuses("inplace", value, cd.dropout_backward, x, given, p=0.5, inplace=value)
    for flag in ("training", "return_mask"):
        refuses(flag, value, cd.bias_dropout_add, x, x[0], x, **{flag: value})
    assert (x == 1).all()


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("kind", MODULES)
def test_modules_refuse_what_is_no_bool(kind, value):
    refuses("inplace", value, kind, 0.5, value)
    module = kind(0.5, rng=1)
    refuses("mode", value, module.train, value)
    assert module.training is True and module.train(np.bool_(False)).training is False
    x = array(kind.__name__.lower())
    for flag in ("training", "inplace"):
        module = kind(0.5, rng=1)
        setattr(module, flag, value)
        refuses(flag, value, module, x)
    assert (x == 1).all()


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_drop_path_as_a_module_refuses_what_is_no_bool(value):
    refuses("scale_by_keep", value, cd.DropPath, scale_by_keep=value)


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_dask_refuses_what_is_no_bool(value):
    da = pytest.importorskip("dask.array")
    from cdropout.dask import dropout

    for flag in ("training", "return_mask"):
        refuses(flag, value, dropout, da.ones(5), 0.5, **{flag: value})


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_jax_refuses_what_is_no_bool(value):
    jax = pytest.importorskip("jax")
    from cdropout.jax import dropout

    x = jax.numpy.ones(5)
    refuses("inplace", value, dropout, jax.random.key(1), x, 0.5, inplace=value)


@pytest.mark.parametrize("value", [value for value in WRONG if value is not None], ids=repr)
def test_flax_refuses_what_is_no_bool(value):
    nnx = pytest.importorskip("flax.nnx")
    from cdropout.flax import Dropout, LinenDropout

    x = np.ones(5, np.float32)
    refuses("deterministic", value, Dropout(0.5, rngs=nnx.Rngs(1)), x, deterministic=value)
    module = Dropout(0.5, rngs=nnx.Rngs(1), deterministic=value)
    refuses("deterministic", value, module, x)
    refuses("deterministic", value, LinenDropout(0.5).apply, {}, x, deterministic=value)
