"""Tests of flags: only instances of bool and of numpy.bool_ are accepted."""

import re

import numpy as np
import pytest

import cdropout as cd

from ..helpers.bad_calls import MODULES, new_objects, snapshot, valid_calls
from ..helpers.requirements import import_or_skip

OTHER_VALUES = ["no", "", 0, 1, 0.0, None, [], np.array(True), np.int8(1)]
every_other_value = pytest.mark.parametrize("value", OTHER_VALUES, ids=repr)
FLAGS = "training", "inplace", "return_mask", "scale_by_keep"


def assert_refused(flag, value, call, *args, **kwargs):
    message = f"(?m)^{flag} has to be a bool, but got {re.escape(type(value).__name__)}$"
    with pytest.raises(TypeError, match=message):
        call(*args, **kwargs)


@every_other_value
@pytest.mark.parametrize("flag", FLAGS)
def test_functions_reject_flags_that_are_not_bools(calls_with, flag, value):
    for call in calls_with(flag):
        for p in (0.5,) if "mask" in call.arguments else (0.5, 0, 1):
            assert_refused(flag, value, call, p=p, **{flag: value})


def results(flag, value):
    """Call every function that has the flag; the flag has this value in each call.

    Return {name: (type, bytes and identity of each result, state of the arguments afterwards)}.
    """
    found = {}
    for name in [call.name for call in valid_calls(new_objects()) if call.has("x", flag)]:
        cd.manual_seed(1)
        objects = new_objects()
        (call,) = [call for call in valid_calls(objects) if call.name == name]
        out = {"out": None} if call.has("out") else {}
        result = call(**out, **{flag: value})
        parts = result if isinstance(result, tuple) else (result,)
        copies = [(type(part), np.asarray(part).tobytes(), part is objects.x) for part in parts]
        found[name] = copies, snapshot(objects)
    return found


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("flag", FLAGS)
def test_functions_accept_numpy_bools_as_flags(flag, value):
    expected = results(flag, value)
    assert expected and results(flag, np.bool_(value)) == expected


@every_other_value
@pytest.mark.parametrize("kind", MODULES)
def test_train_rejects_a_mode_that_is_not_a_bool(kind, value):
    module = kind(0.5, rng=1)
    assert_refused("mode", value, module.train, value)
    assert module.training is True and module.train(np.bool_(False)).training is False


@every_other_value
def test_dask_functions_reject_flags_that_are_not_bools(value):
    ones = import_or_skip("dask.array").ones
    from cdropout.dask import dropout

    for flag in ("training", "return_mask"):
        assert_refused(flag, value, dropout, ones(5), 0.5, **{flag: value})


@every_other_value
def test_jax_functions_reject_flags_that_are_not_bools(value):
    jax = import_or_skip("jax")
    from cdropout.jax import dropout

    x = jax.numpy.ones(5)
    assert_refused("inplace", value, dropout, jax.random.key(1), x, 0.5, inplace=value)


@pytest.mark.parametrize("value", [value for value in OTHER_VALUES if value is not None], ids=repr)
def test_flax_modules_reject_flags_that_are_not_bools(value):
    nnx = import_or_skip("flax.nnx")
    from cdropout.flax import Dropout, LinenDropout

    x = np.ones(5, np.float32)
    module = Dropout(0.5, rngs=nnx.Rngs(1))
    assert_refused("deterministic", value, module, x, deterministic=value)
    module = Dropout(0.5, rngs=nnx.Rngs(1), deterministic=value)
    assert_refused("deterministic", value, module, x)
    linen = LinenDropout(0.5)
    assert_refused("deterministic", value, linen.apply, {}, x, deterministic=value)
