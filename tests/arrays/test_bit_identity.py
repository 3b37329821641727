"""Tests that the same mask id gives the same bytes in all frameworks, for each type and layout."""

import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers import kernel_tables
from ..helpers.arrays import DTYPE_NAMES, DTYPES, assert_same_bits, every_dtype, normal
from ..helpers.requirements import find_or_skip, import_or_skip, slow
from ..helpers.subprocess_runner import FIND_TESTS, run

SHAPE, P, SEED, CALL = (30, 17, 5), 0.3, 7, 3
MASK = cd.Mask(SHAPE, P, SEED, CALL)
LAYOUTS = {  # arrays of SHAPE with different strides
    "C": lambda dtype: normal(SHAPE, dtype),
    "permuted": lambda dtype: normal((5, 30, 17), dtype).transpose(1, 2, 0),
    "strided": lambda dtype: normal((30, 18, 10), dtype)[:, 1:, ::2],
}


def expected(x):
    """Return the result of the reference implementation."""
    return reference.dropout(x, P, SEED, CALL)


def generator():
    """Return a generator whose next mask has the seed SEED and the call number CALL."""
    rng = cd.Generator(SEED)
    for _ in range(CALL):
        rng.next_mask(1, 0.5)
    return rng


def numpy(x, **options):
    return cd.dropout(x, **(options or {"p": P, "rng": generator()}))


def module(x):
    return cd.Dropout(P, rng=generator())(x)


def c(x):
    """Apply the mask with the table of kernels, as a program in C would do."""
    table, mask = kernel_tables.Table.from_address(cd.get_table()), kernel_tables.Mask()
    y = np.empty(x.shape, x.dtype)
    numbers = x.shape, x.strides, y.strides, MASK.strides
    axes = (kernel_tables.Axis * x.ndim)(*zip(*numbers, strict=True))
    assert table.mask_init(mask, SEED, CALL, P) == 0
    where = kernel_tables.DTYPES[x.dtype.type], 0, x.ctypes.data, y.ctypes.data, x.ndim, axes
    assert table.apply_strided(*where, mask, 0) == 0
    return y


def torch(x, **options):
    torch = import_or_skip("torch")
    from cdropout.torch import dropout

    integers = x.view(f"i{x.itemsize}")  # torch.from_numpy rejects bfloat16
    tensor = torch.from_numpy(integers).view(getattr(torch, x.dtype.name))
    assert tensor.stride() == tuple(stride // x.itemsize for stride in x.strides)
    y = dropout(tensor, **(options or {"p": P, "generator": generator()}))
    return y.view(getattr(torch, integers.dtype.name)).numpy().view(x.dtype)


def dask(x, **options):
    from_array = import_or_skip("dask.array").from_array
    from cdropout.dask import dropout

    lazy = from_array(x, chunks=(7, 9, 2))
    return dropout(lazy, **(options or {"p": P, "seed": SEED, "call": CALL})).compute()


def jax(x, **options):
    jax = import_or_skip("jax")
    from cdropout.jax import dropout

    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    key = None if options else np.array([0, SEED, 0, CALL], np.uint32)
    with enable_x64(True):
        return np.asarray(dropout(key, jax.numpy.asarray(x), **(options or {"p": P})))


def tensorflow(x):
    constant = import_or_skip("tensorflow").constant
    from cdropout.tensorflow import stateless_dropout

    return stateless_dropout(constant(x), P, [SEED, CALL]).numpy()


@every_dtype
@pytest.mark.parametrize("framework", [numpy, module, c, torch, dask, jax, tensorflow])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dropout_with_the_same_mask_id_is_equal_in_all_frameworks(framework, layout, dtype):
    x = LAYOUTS[layout](dtype)
    assert_same_bits(framework(x), expected(x))


@every_dtype
@pytest.mark.parametrize("framework", [numpy, torch, dask, jax])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dropout_with_a_given_mask_is_equal_in_all_frameworks(framework, layout, dtype):
    x = LAYOUTS[layout](dtype)
    assert_same_bits(framework(x, mask=MASK), expected(x))


def test_mask_of_thinc_equals_dropout_of_ones(monkeypatch):
    """The masks of thinc have the type float32 and the call number 0."""
    find_or_skip("thinc")
    from cdropout.thinc import CdropoutOps

    monkeypatch.setattr(np.random, "randint", lambda *_, **__: SEED)
    mask = CdropoutOps().get_dropout_mask(SHAPE, P)
    assert_same_bits(mask, reference.dropout(np.ones(SHAPE, np.float32), P, SEED, 0))


def check_keras():
    """Compare Keras's dropout with the reference, on one backend, for all types and layouts."""
    import keras

    from cdropout.keras import Dropout

    for name, dtype in zip(DTYPE_NAMES, DTYPES, strict=True):
        for layout in LAYOUTS.values():
            x = layout(dtype)
            dropout = Dropout(P, seed=SEED, dtype=name)
            dropout.seed_generator.state.assign([SEED, CALL])
            tensor = keras.ops.convert_to_tensor(x.astype(np.float64), dtype=name)
            y = keras.ops.cast(dropout(tensor, training=True), "float64")
            assert_same_bits(keras.ops.convert_to_numpy(y).astype(dtype), expected(x))
    print(keras.backend.backend())


@pytest.mark.parametrize("backend", slow("jax", "numpy", "tensorflow", "torch"))
def test_dropout_of_keras_is_equal_with_all_backends(backend):
    find_or_skip("keras", *{backend} - {"numpy"})
    script = f"{FIND_TESTS}from tests.arrays.test_bit_identity import check_keras; check_keras()"
    variables = {"JAX_ENABLE_X64": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    status, output, errors = run(script, KERAS_BACKEND=backend, **variables)
    assert (status, output) == (0, backend), errors
