"""XLA's custom call `cdropout` checks all that it touches: a wrong call is an error of XLA."""

import numpy as np
import pytest

import cdropout as cd

jax = pytest.importorskip("jax")
from jax import numpy as jnp  # noqa: E402

from cdropout.jax import dropout  # noqa: E402

KEY = np.array([0, 7], np.uint32)
KEYS = np.array([[0, 7], [0, 8], [0, 9]], np.uint32)
X = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
P = np.array([0x3FE00000, 0], np.uint32)  # the bits of 0.5
WINDOW = np.zeros((2, 4), np.uint32)
ROW = np.zeros((1, 4), np.uint32)


@pytest.fixture(scope="module", autouse=True)
def registered():
    dropout(jax.random.key(7), X, 0.5).block_until_ready()


def call(*operands, result=None, **attributes):
    """Execute the custom call, also where XLA would leave it out: it has no elements to give."""
    x = operands[1] if len(operands) > 1 else X
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype) if result is None else result
    function = jax.ffi.ffi_call("cdropout", shape, has_side_effect=True)
    operands = [jnp.asarray(operand) for operand in operands]
    return jax.block_until_ready(jax.jit(lambda *given: function(*given, **attributes))(*operands))


def of(shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def bits(p):
    return np.array([p], ">f8").view(">u4").astype(np.uint32)


def window(*axes):
    """Return the operand for (offset, length) of each axis."""
    words = [(o >> 32, o & 0xFFFFFFFF, n >> 32, n & 0xFFFFFFFF) for o, n in axes]
    return np.array(words, np.uint32).reshape(-1, 4)


def filled(shape, dtype="uint32"):
    return np.ones(shape, dtype)


# ---- right calls --------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [P, np.float32(0.5), np.array(0.5, "float32")])
def test_the_custom_call(p):
    np.testing.assert_array_equal(call(KEY, X, p, WINDOW), cd.Mask((3, 4), 0.5, 7).apply(X))


@pytest.mark.parametrize("ps", [[0.1, 0.5, 1.0], [0.0, 0.3, 0.3]])
@pytest.mark.parametrize("kind", ["float32", "bits"])
def test_one_p_per_key(ps, kind):
    p = np.stack([bits(p) for p in ps]) if kind == "bits" else np.float32(ps)
    right = [
        cd.Mask(4, p if kind == "bits" else np.float32(p), 7 + i).apply(X[i])
        for i, p in enumerate(ps)
    ]
    np.testing.assert_array_equal(call(KEYS, X, p, ROW), right)


@pytest.mark.parametrize(
    "offsets, lengths", [((2, 1), (9, 30)), ((0, 5), (3, 9)), ((7, 0), (10, 4))]
)
def test_a_part_of_a_larger_mask(offsets, lengths):
    part = window(*zip(offsets, lengths, strict=True))
    mask = cd.Mask(lengths, 0.5, 7)[offsets[0] : offsets[0] + 3, offsets[1] : offsets[1] + 4]
    np.testing.assert_array_equal(call(KEY, X, P, part), mask.apply(X))


def test_a_part_of_a_mask_with_a_shared_axis():
    y = call(KEY, X, P, window((0, 1), (5, 9)))
    keep = np.broadcast_to(np.asarray(cd.Mask(9, 0.5, 7))[5:], (3, 4))
    np.testing.assert_array_equal(y, cd.dropout_backward(X, keep, p=0.5))
    y = call(KEY, X, P, window((1 << 40, 1 << 42), (0, 1)))
    keep = np.asarray(cd.Mask(3, 0.5, 7, start=1 << 40))[:, None]
    np.testing.assert_array_equal(y, cd.dropout_backward(X, np.broadcast_to(keep, (3, 4)), p=0.5))


def test_the_last_element_of_the_largest_mask():
    last = (1 << 63) - 2
    y = call(KEY, X.reshape(-1)[:1], P, window((last, last + 1)))
    np.testing.assert_array_equal(y, cd.Mask(1, 0.5, 7, start=last).apply(np.ones(1, "float32")))


# ---- wrong calls --------------------------------------------------------------------------------

COUNT = "takes the operands key, x, p and window and no attributes, and returns one result"
IN_KEY = r"key has to be uint32\[..., 2\] or uint32\[..., 4\]"
IN_X = "x has to be float16, bfloat16, float32 or float64, with the shape of the keys and at most"
IN_Y = "the result has to have the shape and type of x"
IN_P = r"p has to be float32, float64 or uint32\[2\]: one for all keys, or one per key"
IN_WINDOW = r"window has to be uint32\[n, 4\] for the n dimensions of a mask"
BEYOND = r"window has to be part of a mask of fewer than 2\*\*63 elements"
NOT_BETWEEN = "dropout probability has to be between 0 and 1, but got "
NONE, TWO = [], [of(X.shape)] * 2

WRONG = [
    # the number of operands and results, and attributes
    ((), {}, COUNT),
    ((KEY,), {}, COUNT),
    ((KEY, X), {}, COUNT),
    ((KEY, X, P), {}, COUNT),
    ((KEY, X, P, WINDOW, WINDOW), {}, COUNT),
    ((KEY, X, P, WINDOW), {"result": NONE}, COUNT),
    ((KEY, X, P, WINDOW), {"result": TWO}, COUNT),
    ((KEY, X), {"shared": np.int64(0)}, COUNT),
    ((KEY, X, P, WINDOW), {"shared": np.int64(0)}, COUNT),
    ((KEY, X, P, WINDOW), {"shared": np.zeros(3, np.int32)}, COUNT),
    ((KEY, X, P, WINDOW), {"p": np.float64(0.5)}, COUNT),
    ((KEY, X, P, WINDOW), {"p": np.float32(0.5)}, COUNT),
    ((KEY, X, P, WINDOW), {"p": np.zeros(3)}, COUNT),
    ((KEY, X), {"p": np.float64(0.5), "shared": np.int64(0)}, COUNT),
    ((KEY, X, P, WINDOW), {"p": "0.5"}, COUNT),
    ((KEY, X, P, WINDOW), {"p": True, "q": np.uint8(1)}, COUNT),
    ((KEY, X, P, WINDOW), {"p": {"q": np.int32(1)}}, COUNT),
    # the key
    ((filled(()), X, P, WINDOW), {}, IN_KEY),
    ((filled(0), X, P, WINDOW), {}, IN_KEY),
    ((filled(1), X, P, WINDOW), {}, IN_KEY),
    ((filled(3), X, P, WINDOW), {}, IN_KEY),
    ((filled(5), X, P, WINDOW), {}, IN_KEY),
    ((filled((3, 0)), X, P, ROW), {}, IN_KEY),
    ((filled((2, 3)), X, P, WINDOW), {}, IN_KEY),
    ((filled(2, "float32"), X, P, WINDOW), {}, IN_KEY),
    ((filled(2, "int32"), X, P, WINDOW), {}, IN_KEY),
    ((filled(4, "uint16"), X, P, WINDOW), {}, IN_KEY),
    ((filled(2, "bool"), X, P, WINDOW), {}, IN_KEY),
    ((X, KEY, P, WINDOW), {}, IN_KEY),
    # x
    ((KEY, X.astype("int32"), P, WINDOW), {}, IN_X),
    ((KEY, X.astype("uint32"), P, WINDOW), {}, IN_X),
    ((KEY, X.astype("bool"), P, WINDOW), {}, IN_X),
    ((KEY, X.astype("complex64"), P, WINDOW), {}, IN_X),
    ((KEY, P, X, WINDOW), {}, IN_X),
    ((KEYS, X[:2], P, ROW), {}, IN_X),
    ((KEYS, X.reshape(4, 3), P, ROW), {}, IN_X),
    ((KEYS, X[0, 0], P, ROW), {}, IN_X),
    ((filled((3, 4, 2)), X[:, 0], P, ROW[:0]), {}, IN_X),
    ((filled((0, 2)), X, P, ROW), {}, IN_X),
    # the result
    ((KEY, X, P, WINDOW), {"result": of((3,))}, IN_Y),
    ((KEY, X, P, WINDOW), {"result": of((4, 3))}, IN_Y),
    ((KEY, X, P, WINDOW), {"result": of((3, 5))}, IN_Y),
    ((KEY, X, P, WINDOW), {"result": of((12,))}, IN_Y),
    ((KEY, X, P, WINDOW), {"result": of(())}, IN_Y),
    ((KEY, X, P, WINDOW), {"result": of((0, 4))}, IN_Y),
    ((KEY, X, P, WINDOW), {"result": of((3, 4, 1))}, IN_Y),
    ((KEY, X, P, WINDOW), {"result": of((3, 4), "float16")}, IN_Y),
    ((KEY, X, P, WINDOW), {"result": of((3, 4), "uint8")}, IN_Y),
    ((KEY, X, P, WINDOW), {"result": of((3, 4), "int32")}, IN_Y),
    # p
    ((KEY, X, filled(0), WINDOW), {}, IN_P),
    ((KEY, X, filled(()), WINDOW), {}, IN_P),
    ((KEY, X, filled(1), WINDOW), {}, IN_P),
    ((KEY, X, filled(3), WINDOW), {}, IN_P),
    ((KEY, X, filled((1, 2)), WINDOW), {}, IN_P),
    ((KEY, X, filled(1, "float32"), WINDOW), {}, IN_P),
    ((KEY, X, filled(0, "float32"), WINDOW), {}, IN_P),
    ((KEY, X, filled((), "float16"), WINDOW), {}, IN_P),
    ((KEY, X, filled((), "bfloat16"), WINDOW), {}, IN_P),
    ((KEY, X, filled((), "int32"), WINDOW), {}, IN_P),
    ((KEY, X, filled((), "complex64"), WINDOW), {}, IN_P),
    ((KEYS, X, filled(2, "float32"), ROW), {}, IN_P),
    ((KEYS, X, filled((2, 2)), ROW), {}, IN_P),
    ((KEYS, X, filled((3, 1)), ROW), {}, IN_P),
    ((KEYS, X, filled((3, 1), "float32"), ROW), {}, IN_P),
    ((KEY, X, WINDOW, P), {}, IN_P),
    ((KEY, X, bits(1.5), WINDOW), {}, NOT_BETWEEN + "1.5"),
    ((KEY, X, bits(-0.25), WINDOW), {}, NOT_BETWEEN + "-0.25"),
    ((KEY, X, bits(np.nan), WINDOW), {}, NOT_BETWEEN + "nan"),
    ((KEY, X, bits(-np.nan), WINDOW), {}, NOT_BETWEEN + "nan"),
    ((KEY, X, np.float32(2), WINDOW), {}, NOT_BETWEEN + "2"),
    ((KEY, X, np.float32("inf"), WINDOW), {}, NOT_BETWEEN + "inf"),
    ((KEY, X[:0], np.float32(2), WINDOW), {}, NOT_BETWEEN + "2"),
    ((KEYS, X, np.float32([0.5, 0.5, -1]), ROW), {}, NOT_BETWEEN + "-1"),
    ((KEYS, X, np.stack([bits(0.5), bits(0.5), bits(7)]), ROW), {}, NOT_BETWEEN + "7"),
    # the window
    ((KEY, X, P, ROW), {}, IN_WINDOW),
    ((KEYS, X, P, WINDOW), {}, IN_WINDOW),
    ((KEY, X, P, filled(4)), {}, IN_WINDOW),
    ((KEY, X, P, filled((2, 2))), {}, IN_WINDOW),
    ((KEY, X, P, filled((2, 4, 1))), {}, IN_WINDOW),
    ((KEY, X, P, filled((3, 4))), {}, IN_WINDOW),
    ((KEY, X, P, filled((2, 4), "float32")), {}, IN_WINDOW),
    ((KEY, X, P, filled((2, 4), "int32")), {}, IN_WINDOW),
    ((KEY, X, P, filled((), "float32")), {}, IN_WINDOW),
    ((KEY, X, P, window((0, 2), (0, 4))), {}, BEYOND),
    ((KEY, X, P, window((1, 3), (0, 4))), {}, BEYOND),
    ((KEY, X, P, window((1, 0), (0, 0))), {}, BEYOND),
    ((KEY, X, P, window((1, 1), (0, 4))), {}, BEYOND),
    ((KEY, X, P, window((2**64 - 3, 2**40), (0, 4))), {}, BEYOND),
    ((KEY, X, P, window((0, 2**63), (0, 1))), {}, BEYOND),
    ((KEY, X, P, window((0, 2**32), (0, 2**31))), {}, BEYOND),
    ((KEY, X, P, window((2**62, 2**63 - 1), (0, 4))), {}, BEYOND),
    ((KEY, X, P, window((0, 3), (2**64 - 1, 2**64 - 1))), {}, BEYOND),
]


@pytest.mark.parametrize("operands, changes, message", WRONG)
def test_a_wrong_call_is_an_error(operands, changes, message):
    with pytest.raises(Exception, match=message) as caught:
        call(*operands, **changes)
    assert type(caught.value).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    assert "INVALID_ARGUMENT" in str(caught.value)
