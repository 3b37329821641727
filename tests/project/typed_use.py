"""Typed code that uses the package; mypy checks it, and test_typing.py runs it."""

from array import array
from typing import Any, TypeAlias, assert_type

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import cdropout as cd
from cdropout.typing import RNG, Exporter

Row = np.ndarray[tuple[int], np.dtype[np.float32]]
Table = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Numbers: TypeAlias = "array[float]"  # CPython 3.11 cannot subscript array.array

row: Row = np.arange(1, 9, dtype=np.float32)
table: Table = np.ones((3, 4))
SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


def assert_array(value: object, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Assert that a value is an array with this dtype and shape."""
    assert type(value) is np.ndarray
    assert (value.dtype, value.shape) == (dtype, shape)


def arrays_keep_their_type() -> None:
    assert_array(assert_type(cd.dropout(row), Row), SINGLE, (8,))
    assert_array(assert_type(cd.dropout(table, 0.1, False), Table), DOUBLE, (3, 4))
    assert_array(assert_type(cd.dropout(table, inplace=True), Table), DOUBLE, (3, 4))
    assert_array(assert_type(cd.dropout(row, out=np.empty_like(row)), Row), SINGLE, (8,))
    half = np.ones(3, ml_dtypes.bfloat16)
    assert_array(cd.dropout(half), half.dtype, (3,))
    unknown: NDArray[Any] = table
    assert_type(cd.dropout(unknown), NDArray[Any])


def return_mask_adds_a_mask() -> None:
    y, mask = cd.dropout(row, return_mask=True)
    assert_array(assert_type(y, Row), SINGLE, (8,))
    assert type(assert_type(mask, cd.Mask)) is cd.Mask
    same = assert_type(cd.dropout(row, mask=mask, return_mask=True), tuple[Row, cd.Mask])
    assert same[1] is mask
    kept = np.asarray(mask)
    pair = cd.dropout(row, mask=kept, return_mask=True)
    assert assert_type(pair, tuple[Row, NDArray[np.bool_] | cd.Mask])[1] is kept
    flag = bool(len(pair))
    either = cd.dropout(row, return_mask=flag)
    assert isinstance(either, tuple)


def gradients() -> None:
    mask = cd.Mask(8, 0.5)
    assert_array(assert_type(cd.dropout_backward(row, mask), Row), SINGLE, (8,))
    assert_array(assert_type(cd.dropout_backward(row, mask.bits(), p=0.5), Row), SINGLE, (8,))
    assert_array(assert_type(cd.dropout_backward(row.data, mask), NDArray[Any]), SINGLE, (8,))
    out = np.empty_like(row)
    assert assert_type(cd.dropout_backward(row.data, mask, out=out), Row) is out


def exporters_become_arrays() -> None:
    x: Numbers = array("d", [1, 2, 3])
    assert_array(assert_type(cd.dropout(x), NDArray[Any]), DOUBLE, (3,))
    assert_array(assert_type(cd.dropout(x, training=False), NDArray[Any]), DOUBLE, (3,))
    assert_array(assert_type(cd.Dropout().eval()(x), NDArray[Any]), DOUBLE, (3,))
    both = cd.dropout(x, return_mask=True)
    assert_array(assert_type(both, tuple[NDArray[Any], cd.Mask])[0], DOUBLE, (3,))
    out = np.empty(3)
    assert cd.dropout(x, out=out) is out
    assert_array(cd.dropout(np.float32(1)), SINGLE, ())
    exporters: list[Exporter] = [x, row, row.data, np.float64(1)]
    for exporter in exporters:
        cd.dropout(exporter)


def variants() -> None:
    assert_array(assert_type(cd.dropout1d(table), Table), DOUBLE, (3, 4))
    assert_array(assert_type(cd.drop_path(table, scale_by_keep=False), Table), DOUBLE, (3, 4))
    y, mask = assert_type(cd.alpha_dropout(row, 0.1, True, return_mask=True), tuple[Row, cd.Mask])
    assert_array(y, SINGLE, (8,))
    assert type(mask) is cd.Mask
    out = np.empty_like(table)
    assert assert_type(cd.feature_alpha_dropout(table, out=out), Table) is out
    assert_array(assert_type(cd.mc_dropout(row, 0.1, 5), NDArray[np.float32]), SINGLE, (5, 8))
    copies, mask = cd.mc_dropout(row.data, return_mask=True)
    assert_array(assert_type(copies, NDArray[Any]), SINGLE, (1, 8))
    added = cd.bias_dropout_add(table, np.ones(4), table, return_mask=True)
    assert_array(assert_type(added, tuple[Table, cd.Mask])[0], DOUBLE, (3, 4))
    gx, gbias, gy = cd.bias_dropout_add_backward(table, added[1])
    assert_array(assert_type(gx, Table), DOUBLE, (3, 4))
    assert_array(assert_type(gbias, NDArray[np.float64]), DOUBLE, (4,))
    assert assert_type(gy, Table) is table


def masks() -> None:
    mask = cd.Mask((3, 4), 0.5, seed=1, strides=None)
    assert type(assert_type(mask[1:, None, ..., 0], cd.Mask)) is cd.Mask
    assert assert_type(mask.shape, tuple[int, ...]) == (3, 4)
    assert type(assert_type(mask.scale, float)) is float
    assert type(assert_type(mask.strides, tuple[int, ...])) is tuple
    assert_array(assert_type(np.asarray(mask), NDArray[np.bool_]), np.dtype(np.bool_), (3, 4))
    assert_array(assert_type(mask.__array__(), NDArray[np.bool_]), np.dtype(np.bool_), (3, 4))
    assert_array(mask.bits(), np.dtype(np.uint8), (2,))
    assert_array(assert_type(mask.to_scale(), NDArray[np.float32]), SINGLE, (3, 4))
    assert_array(assert_type(mask.to_scale(np.float64), NDArray[np.float64]), DOUBLE, (3, 4))
    assert_array(assert_type(mask.to_scale("f4"), NDArray[Any]), SINGLE, (3, 4))
    assert_array(assert_type(mask.apply(table), Table), DOUBLE, (3, 4))
    for part in mask:
        assert type(assert_type(part, cd.Mask)) is cd.Mask


def generators() -> None:
    generator = cd.Generator(7)
    assert type(assert_type(generator.spawn(2), list[cd.Generator])) is list
    generator.state = assert_type(generator.state, dict[str, int]) | {"calls": 3}
    assert assert_type(generator.calls, int) == 3
    mask = assert_type(generator.next_mask((3, 4), 0.5, broadcast_dims=1, scale=2), cd.Mask)
    assert_array(assert_type(cd.drop_path(table, mask=mask), Table), DOUBLE, (3, 4))
    pair = cd.bias_dropout_add(table, table, table, mask=mask, return_mask=True)
    assert assert_type(pair, tuple[Table, cd.Mask])[1] is mask
    sources: list[RNG] = [
        None,
        generator,
        7,
        np.uint64(7),
        np.random.default_rng(7),
        np.random.SeedSequence(7),
    ]
    for rng in sources:
        cd.dropout(row, rng=rng)
    assert assert_type(cd.manual_seed(7), cd.Generator) is cd.default_generator


def modules() -> None:
    for module in cd.Dropout(0.1), cd.Dropout1d(np.float32(0.1)), cd.DropPath(scale_by_keep=False):
        assert_array(assert_type(module(table), Table), DOUBLE, (3, 4))
        assert_array(assert_type(module.backward(table), Table), DOUBLE, (3, 4))
        assert type(module.mask) is cd.Mask
    alpha = cd.AlphaDropout()
    assert assert_type(alpha.eval(), cd.AlphaDropout) is alpha
    with cd.always_on(alpha, [cd.Dropout()]):
        assert_array(assert_type(alpha.forward(row), Row), SINGLE, (8,))


def refused(call: str) -> None:
    """Make an invalid call; mypy reports an error if a `type: ignore` comment is unused."""
    if call == "list":
        cd.dropout([1.0, 2.0])  # type: ignore[call-overload]
    if call == "p":
        cd.dropout(row, "0.5")  # type: ignore[call-overload]
    if call == "rng":
        cd.dropout(row, rng="7")  # type: ignore[call-overload]
    if call == "mask":
        cd.dropout(row, mask=[True] * 8)  # type: ignore[call-overload]
    if call == "out":
        cd.dropout(row, out=[0.0] * 8)  # type: ignore[call-overload]
    if call == "axis":
        cd.dropout(row, broadcast_dims=0.5)  # type: ignore[call-overload]
    if call == "scale_by_keep":
        cd.dropout1d(table, scale_by_keep=True)  # type: ignore[call-overload]
    if call == "seed":
        cd.Generator(0.5)  # type: ignore[arg-type]
    if call == "gradient":
        cd.dropout_backward(row)  # type: ignore[call-overload]
    if call == "module":
        cd.Dropout(rng=0.5)  # type: ignore[arg-type]
    if call == "product":
        cd.Mask(8, 0.5) * row  # type: ignore[unused-ignore]
    if call == "index":
        cd.Mask(8, 0.5)["a"]  # type: ignore[index]


USES = (
    arrays_keep_their_type,
    return_mask_adds_a_mask,
    gradients,
    exporters_become_arrays,
    variants,
    masks,
    generators,
    modules,
)
REFUSED = (
    "list",
    "p",
    "rng",
    "mask",
    "out",
    "axis",
    "scale_by_keep",
    "seed",
    "gradient",
    "module",
    "index",
    "product",
)
