"""Tests of the supported element types: one mask for all types, and errors for other types."""

import ml_dtypes
import numpy as np
import pytest

import cdropout as cd
from cdropout._core.dtypes import FLOATS, element_type

from .. import reference
from ..helpers.arrays import DTYPES

SEED = 0x0123456789ABCDEF


def test_element_type_returns_the_dtype_of_each_name():
    assert [element_type(name) for name in FLOATS] == DTYPES


@pytest.mark.parametrize("p", [5e-324, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(100_003,), (70, 5, 99), (3, 0)], ids=str)
def test_dropout_draws_the_same_mask_for_all_types(shape, p):
    for call in (0, 1):
        kept = set()
        for dtype in DTYPES:
            generator = cd.Generator(SEED)
            generator.state = {"seed": SEED, "calls": call, "spawned": 0}
            x = np.ones(shape, dtype)
            y, mask = cd.dropout(x, p, rng=generator, return_mask=True)
            kept.add((y != 0).tobytes())
            assert mask == cd.Mask(shape, p, SEED if x.size else 0, call if x.size else 0)
        assert kept == {reference.keep(SEED, call, p, 0, x.size).tobytes()}


SWAPPED = np.dtype(np.float16).newbyteorder().str  # ">f2", or "<f2" on big-endian machines


@pytest.mark.parametrize("name", ["int16", "uint16", SWAPPED, "float8_e5m2", "float8_e4m3fn"])
def test_dropout_raises_for_other_types_of_1_or_2_bytes(name):
    x = np.ones(4, getattr(ml_dtypes, name, name))
    with pytest.raises(TypeError, match=f"but got {name}"):
        cd.dropout(x, 0.5)


def test_dropout_rejects_a_dtype_with_the_type_number_minus_1():
    """The dtype is from NumPy's own tests; dtypes of other packages can have the number -1, too."""
    core = getattr(np, "_core", None) or np.core
    kind = getattr(core._multiarray_umath, "_get_sfloat_dtype", None)
    if kind is None:
        pytest.skip("this NumPy has no such dtype")
    x = np.ones(3).view(kind()(1.0))
    assert x.dtype.num == -1
    with pytest.raises(TypeError, match="^x has to be an array of .*, but got "):
        cd.dropout(x)
