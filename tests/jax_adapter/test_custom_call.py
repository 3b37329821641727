"""Tests of valid and invalid calls of the custom call `cdropout`, which XLA executes."""

import numpy as np
import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip
from ..helpers.xla_operands import KEY, KEYS, P_MESSAGE, WINDOW_1D, WINDOW_2D, P, X

jax = import_or_skip("jax")
from jax import numpy as jnp  # noqa: E402

from cdropout.jax import dropout  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def register_handler():
    dropout(jax.random.key(7), X, 0.5).block_until_ready()


def call(*operands, result=None, **attributes):
    """Return the result of the custom call; a declared side effect makes XLA keep the call."""
    x = operands[1] if len(operands) > 1 else X
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype) if result is None else result
    function = jax.ffi.ffi_call("cdropout", shape, has_side_effect=True)
    operands = [jnp.asarray(operand) for operand in operands]
    return jax.block_until_ready(jax.jit(lambda *args: function(*args, **attributes))(*operands))


def result_type(shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def float64_bits(p):
    return np.array([p], ">f8").view(">u4").astype(np.uint32)


def window(*axes):
    """Return the operand `window` for one pair (offset, length) per axis."""
    halves = [(o >> 32, o & 0xFFFFFFFF, n >> 32, n & 0xFFFFFFFF) for o, n in axes]
    return np.array(halves, np.uint32).reshape(-1, 4)


def ones(shape, dtype="uint32"):
    return np.ones(shape, dtype)


# ---- valid calls --------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [P, np.float32(0.5), np.array(0.5, "float32")])
def test_custom_call_equals_numpy(p):
    np.testing.assert_array_equal(call(KEY, X, p, WINDOW_2D), cd.Mask((3, 4), 0.5, 7).apply(X))


@pytest.mark.parametrize("ps", [[0.1, 0.5, 1.0], [0.0, 0.3, 0.3]])
@pytest.mark.parametrize("kind", ["float32", "bits"])
def test_custom_call_with_one_p_per_key(ps, kind):
    p = np.stack([float64_bits(p) for p in ps]) if kind == "bits" else np.float32(ps)
    expected = [
        cd.Mask(4, p if kind == "bits" else np.float32(p), 7 + i).apply(X[i])
        for i, p in enumerate(ps)
    ]
    np.testing.assert_array_equal(call(KEYS, X, p, WINDOW_1D), expected)


@pytest.mark.parametrize(
    "offsets, lengths", [((2, 1), (9, 30)), ((0, 5), (3, 9)), ((7, 0), (10, 4))]
)
def test_custom_call_with_window_of_larger_mask(offsets, lengths):
    part = window(*zip(offsets, lengths, strict=True))
    mask = cd.Mask(lengths, 0.5, 7)[offsets[0] : offsets[0] + 3, offsets[1] : offsets[1] + 4]
    np.testing.assert_array_equal(call(KEY, X, P, part), mask.apply(X))


def test_custom_call_with_window_of_mask_with_broadcast_axis():
    y = call(KEY, X, P, window((0, 1), (5, 9)))
    keep = np.broadcast_to(np.asarray(cd.Mask(9, 0.5, 7))[5:], (3, 4))
    np.testing.assert_array_equal(y, cd.dropout_backward(X, keep, p=0.5))
    y = call(KEY, X, P, window((1 << 40, 1 << 42), (0, 1)))
    keep = np.asarray(cd.Mask(3, 0.5, 7, start=1 << 40))[:, None]
    np.testing.assert_array_equal(y, cd.dropout_backward(X, np.broadcast_to(keep, (3, 4)), p=0.5))


def test_custom_call_with_last_element_of_largest_mask():
    last = (1 << 63) - 2
    y = call(KEY, X.reshape(-1)[:1], P, window((last, last + 1)))
    np.testing.assert_array_equal(y, cd.Mask(1, 0.5, 7, start=last).apply(np.ones(1, "float32")))


# ---- invalid calls ------------------------------------------------------------------------------

BAD_COUNT = "takes the operands key, x, p and window and no attributes, and returns one result"
BAD_KEY = r"key has to be uint32\[..., 2\] or uint32\[..., 4\]"
BAD_X = "x has to be float16, bfloat16, float32 or float64, with the shape of the keys and at most"
BAD_Y = "the result has to have the shape and type of x"
BAD_P = r"p has to be float32, float64 or uint32\[2\]: one for all keys, or one per key"
BAD_WINDOW = r"window has to be uint32\[n, 4\] for the n dimensions of a mask"
OUTSIDE = r"window has to be part of a mask of fewer than 2\*\*63 elements"
NONE, TWO = [], [result_type(X.shape)] * 2

INVALID_CALLS = [
    # the number of operands, the number of results, and attributes
    ((), {}, BAD_COUNT),
    ((KEY,), {}, BAD_COUNT),
    ((KEY, X), {}, BAD_COUNT),
    ((KEY, X, P), {}, BAD_COUNT),
    ((KEY, X, P, WINDOW_2D, WINDOW_2D), {}, BAD_COUNT),
    ((KEY, X, P, WINDOW_2D), {"result": NONE}, BAD_COUNT),
    ((KEY, X, P, WINDOW_2D), {"result": TWO}, BAD_COUNT),
    ((KEY, X), {"axes": np.int64(0)}, BAD_COUNT),
    ((KEY, X, P, WINDOW_2D), {"axes": np.int64(0)}, BAD_COUNT),
    ((KEY, X, P, WINDOW_2D), {"axes": np.zeros(3, np.int32)}, BAD_COUNT),
    ((KEY, X, P, WINDOW_2D), {"p": np.float64(0.5)}, BAD_COUNT),
    ((KEY, X, P, WINDOW_2D), {"p": np.float32(0.5)}, BAD_COUNT),
    ((KEY, X, P, WINDOW_2D), {"p": np.zeros(3)}, BAD_COUNT),
    ((KEY, X), {"p": np.float64(0.5), "axes": np.int64(0)}, BAD_COUNT),
    ((KEY, X, P, WINDOW_2D), {"p": "0.5"}, BAD_COUNT),
    ((KEY, X, P, WINDOW_2D), {"p": True, "q": np.uint8(1)}, BAD_COUNT),
    ((KEY, X, P, WINDOW_2D), {"p": {"q": np.int32(1)}}, BAD_COUNT),
    # the key
    ((ones(()), X, P, WINDOW_2D), {}, BAD_KEY),
    ((ones(0), X, P, WINDOW_2D), {}, BAD_KEY),
    ((ones(1), X, P, WINDOW_2D), {}, BAD_KEY),
    ((ones(3), X, P, WINDOW_2D), {}, BAD_KEY),
    ((ones(5), X, P, WINDOW_2D), {}, BAD_KEY),
    ((ones((3, 0)), X, P, WINDOW_1D), {}, BAD_KEY),
    ((ones((2, 3)), X, P, WINDOW_2D), {}, BAD_KEY),
    ((ones(2, "float32"), X, P, WINDOW_2D), {}, BAD_KEY),
    ((ones(2, "int32"), X, P, WINDOW_2D), {}, BAD_KEY),
    ((ones(4, "uint16"), X, P, WINDOW_2D), {}, BAD_KEY),
    ((ones(2, "bool"), X, P, WINDOW_2D), {}, BAD_KEY),
    ((X, KEY, P, WINDOW_2D), {}, BAD_KEY),
    # x
    ((KEY, X.astype("int32"), P, WINDOW_2D), {}, BAD_X),
    ((KEY, X.astype("uint32"), P, WINDOW_2D), {}, BAD_X),
    ((KEY, X.astype("bool"), P, WINDOW_2D), {}, BAD_X),
    ((KEY, X.astype("complex64"), P, WINDOW_2D), {}, BAD_X),
    ((KEY, P, X, WINDOW_2D), {}, BAD_X),
    ((KEYS, X[:2], P, WINDOW_1D), {}, BAD_X),
    ((KEYS, X.reshape(4, 3), P, WINDOW_1D), {}, BAD_X),
    ((KEYS, X[0, 0], P, WINDOW_1D), {}, BAD_X),
    ((ones((3, 4, 2)), X[:, 0], P, WINDOW_1D[:0]), {}, BAD_X),
    ((ones((0, 2)), X, P, WINDOW_1D), {}, BAD_X),
    # the result
    ((KEY, X, P, WINDOW_2D), {"result": result_type((3,))}, BAD_Y),
    ((KEY, X, P, WINDOW_2D), {"result": result_type((4, 3))}, BAD_Y),
    ((KEY, X, P, WINDOW_2D), {"result": result_type((3, 5))}, BAD_Y),
    ((KEY, X, P, WINDOW_2D), {"result": result_type((12,))}, BAD_Y),
    ((KEY, X, P, WINDOW_2D), {"result": result_type(())}, BAD_Y),
    ((KEY, X, P, WINDOW_2D), {"result": result_type((0, 4))}, BAD_Y),
    ((KEY, X, P, WINDOW_2D), {"result": result_type((3, 4, 1))}, BAD_Y),
    ((KEY, X, P, WINDOW_2D), {"result": result_type((3, 4), "float16")}, BAD_Y),
    ((KEY, X, P, WINDOW_2D), {"result": result_type((3, 4), "uint8")}, BAD_Y),
    ((KEY, X, P, WINDOW_2D), {"result": result_type((3, 4), "int32")}, BAD_Y),
    # p
    ((KEY, X, ones(0), WINDOW_2D), {}, BAD_P),
    ((KEY, X, ones(()), WINDOW_2D), {}, BAD_P),
    ((KEY, X, ones(1), WINDOW_2D), {}, BAD_P),
    ((KEY, X, ones(3), WINDOW_2D), {}, BAD_P),
    ((KEY, X, ones((1, 2)), WINDOW_2D), {}, BAD_P),
    ((KEY, X, ones(1, "float32"), WINDOW_2D), {}, BAD_P),
    ((KEY, X, ones(0, "float32"), WINDOW_2D), {}, BAD_P),
    ((KEY, X, ones((), "float16"), WINDOW_2D), {}, BAD_P),
    ((KEY, X, ones((), "bfloat16"), WINDOW_2D), {}, BAD_P),
    ((KEY, X, ones((), "int32"), WINDOW_2D), {}, BAD_P),
    ((KEY, X, ones((), "complex64"), WINDOW_2D), {}, BAD_P),
    ((KEYS, X, ones(2, "float32"), WINDOW_1D), {}, BAD_P),
    ((KEYS, X, ones((2, 2)), WINDOW_1D), {}, BAD_P),
    ((KEYS, X, ones((3, 1)), WINDOW_1D), {}, BAD_P),
    ((KEYS, X, ones((3, 1), "float32"), WINDOW_1D), {}, BAD_P),
    ((KEY, X, WINDOW_2D, P), {}, BAD_P),
    ((KEY, X, float64_bits(1.5), WINDOW_2D), {}, P_MESSAGE + "1.5"),
    ((KEY, X, float64_bits(-0.25), WINDOW_2D), {}, P_MESSAGE + "-0.25"),
    ((KEY, X, float64_bits(np.nan), WINDOW_2D), {}, P_MESSAGE + "nan"),
    ((KEY, X, float64_bits(-np.nan), WINDOW_2D), {}, P_MESSAGE + "nan"),
    ((KEY, X, np.float32(2), WINDOW_2D), {}, P_MESSAGE + "2"),
    ((KEY, X, np.float32("inf"), WINDOW_2D), {}, P_MESSAGE + "inf"),
    ((KEY, X[:0], np.float32(2), WINDOW_2D), {}, P_MESSAGE + "2"),
    ((KEYS, X, np.float32([0.5, 0.5, -1]), WINDOW_1D), {}, P_MESSAGE + "-1"),
    (
        (KEYS, X, np.stack([P, P, float64_bits(7)]), WINDOW_1D),
        {},
        P_MESSAGE + "7",
    ),
    # the window
    ((KEY, X, P, WINDOW_1D), {}, BAD_WINDOW),
    ((KEYS, X, P, WINDOW_2D), {}, BAD_WINDOW),
    ((KEY, X, P, ones(4)), {}, BAD_WINDOW),
    ((KEY, X, P, ones((2, 2))), {}, BAD_WINDOW),
    ((KEY, X, P, ones((2, 4, 1))), {}, BAD_WINDOW),
    ((KEY, X, P, ones((3, 4))), {}, BAD_WINDOW),
    ((KEY, X, P, ones((2, 4), "float32")), {}, BAD_WINDOW),
    ((KEY, X, P, ones((2, 4), "int32")), {}, BAD_WINDOW),
    ((KEY, X, P, ones((), "float32")), {}, BAD_WINDOW),
    ((KEY, X, P, window((0, 2), (0, 4))), {}, OUTSIDE),
    ((KEY, X, P, window((1, 3), (0, 4))), {}, OUTSIDE),
    ((KEY, X, P, window((1, 0), (0, 0))), {}, OUTSIDE),
    ((KEY, X, P, window((1, 1), (0, 4))), {}, OUTSIDE),
    ((KEY, X, P, window((2**64 - 3, 2**40), (0, 4))), {}, OUTSIDE),
    ((KEY, X, P, window((0, 2**63), (0, 1))), {}, OUTSIDE),
    ((KEY, X, P, window((0, 2**32), (0, 2**31))), {}, OUTSIDE),
    ((KEY, X, P, window((2**62, 2**63 - 1), (0, 4))), {}, OUTSIDE),
    ((KEY, X, P, window((0, 3), (2**64 - 1, 2**64 - 1))), {}, OUTSIDE),
]


@pytest.mark.parametrize("operands, changes, message", INVALID_CALLS)
def test_invalid_call_raises(operands, changes, message):
    with pytest.raises(Exception, match=message) as caught:
        call(*operands, **changes)
    assert type(caught.value).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    assert "INVALID_ARGUMENT" in str(caught.value)
