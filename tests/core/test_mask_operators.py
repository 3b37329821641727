"""Tests that operators and ufuncs raise for masks, because mask * x would not be scaled."""

import operator

import numpy as np
import pytest

import cdropout as cd

X = np.arange(6, dtype=np.float32).reshape(2, 3)
MASK = cd.Mask(X.shape, 0.5, 1)
ADVICE = r": call mask.apply\(x\) for the scaled product, or np.asarray\(mask\) for an array"
OPERATORS = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod,
    operator.pow, operator.matmul, operator.and_, operator.or_, operator.xor, operator.lshift,
    operator.rshift, divmod, operator.eq, operator.ne, operator.lt, operator.le, operator.gt,
    operator.ge,
]  # fmt: skip
IN_PLACE = [
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv,
    operator.imod, operator.ipow, operator.imatmul,
]  # fmt: skip
UFUNCS = [getattr(np, name) for name in sorted(dir(np)) if isinstance(getattr(np, name), np.ufunc)]


@pytest.mark.parametrize("operate", OPERATORS, ids=lambda function: function.__name__)
def test_operators_with_a_mask_and_an_array_raise(operate):
    for x in (X, X.astype(int), X.view(np.recarray)):
        for operands in ((MASK, x), (x, MASK)):
            with pytest.raises(TypeError, match=ADVICE):
                operate(*operands)


@pytest.mark.parametrize("operate", IN_PLACE, ids=lambda function: function.__name__)
def test_in_place_operators_with_a_mask_raise(operate):
    x = X.copy()
    with pytest.raises(TypeError, match=ADVICE):
        operate(x, MASK)
    np.testing.assert_array_equal(x, X)


@pytest.mark.parametrize("ufunc", UFUNCS, ids=lambda ufunc: ufunc.__name__)
def test_ufuncs_of_a_mask_raise(ufunc):
    inputs, outputs = map(len, ufunc.types[0].split("->"))
    for i in range(inputs):
        operands = [X] * inputs
        operands[i] = MASK
        with pytest.raises(TypeError, match=f"^a Mask does not support {ufunc.__name__}{ADVICE}"):
            ufunc(*operands)
    if (inputs, outputs) == (2, 1) and ufunc.signature is None:
        for method in ("reduce", "accumulate"):
            with pytest.raises(TypeError, match=ADVICE):
                getattr(ufunc, method)(MASK)
        with pytest.raises(TypeError, match=ADVICE):
            ufunc.outer(X, MASK)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_products_of_a_mask_and_a_scalar_or_matrix_raise():
    for x in (np.float32(2), X.view(np.matrix)):
        for operands in ((MASK, x), (x, MASK)):
            with pytest.raises(TypeError, match=ADVICE):
                operator.mul(*operands)


def test_a_ufunc_with_a_mask_as_out_raises():
    with pytest.raises(TypeError, match=ADVICE):
        np.add(X, X, out=MASK)


@pytest.mark.parametrize("other", [2, 2.0, True, [1, 2, 3], (1.0,), "a", MASK, None], ids=repr)
def test_operators_with_a_mask_and_other_objects_raise(other):
    for operands in ((MASK, other), (other, MASK)):
        with pytest.raises(TypeError, match="^a Mask does not support multiply" + ADVICE):
            operator.mul(*operands)
    for operate in (operator.add, operator.sub, operator.truediv, operator.and_):
        with pytest.raises(TypeError):
            operate(MASK, other)


LIBRARIES = {
    "torch": lambda module: module.ones(2, 3),
    "jax.numpy": lambda module: module.ones((2, 3)),
    "dask.array": lambda module: module.ones((2, 3)),
    "pandas": lambda module: module.Series(X[0]),
    "xarray": lambda module: module.DataArray(X),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_products_of_a_mask_and_arrays_of_other_libraries_raise(library):
    x = LIBRARIES[library](pytest.importorskip(library))
    mask = cd.Mask(tuple(x.shape), 0.5)
    for operands in ((mask, x), (x, mask)):
        with pytest.raises(TypeError, match=ADVICE):
            operator.mul(*operands)


def test_conversions_and_comparisons_of_masks_do_not_raise():
    kept = np.asarray(MASK)
    assert kept.dtype == bool and kept.shape == X.shape
    np.testing.assert_array_equal(np.array(MASK, dtype=int), kept)
    np.testing.assert_array_equal(np.where(MASK, X, -1), np.where(kept, X, -1))
    np.testing.assert_array_equal(X[np.asarray(MASK)], X[kept])
    assert np.count_nonzero(MASK) == np.count_nonzero(kept)
    np.testing.assert_array_equal(np.asarray(MASK) * X, kept * X)
    assert MASK == cd.Mask(X.shape, 0.5, 1) and MASK != cd.Mask(X.shape, 0.5, 2)
    assert MASK != 1 and MASK != "a" and MASK in [1, "a", MASK] and {MASK: 1}[MASK] == 1


@pytest.mark.parametrize(
    "convert", [lambda mask: np.inner(X, mask), lambda mask: np.einsum("ij,ij", X, mask),
                lambda mask: np.dot(X.T, mask), lambda mask: np.tensordot(X, mask),
                lambda mask: np.kron(X, mask), lambda mask: np.average(X, weights=mask)],
)  # fmt: skip
def test_numpy_functions_convert_masks_to_bools(convert):
    np.testing.assert_array_equal(convert(MASK), convert(np.asarray(MASK)))
