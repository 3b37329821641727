"""Tests that each function equals the reference implementation for random arguments."""

import math
from functools import partial

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np

import cdropout as cd

from .. import reference
from ..helpers.arrays import DTYPES, assert_same_bits, normal
from ..helpers.hypothesis_settings import given_examples

# ---- strategies -------------------------------------------------------------------------------

EDGES = [0.0, 5e-324, 0.5, 1.0, np.nextafter(0.5, 0), np.nextafter(0.5, 1), np.nextafter(1, 0)]
binary_fractions = st.integers(1, 40).flatmap(
    lambda bits: st.integers(1, 2**bits - 1).map(lambda numerator: numerator / 2**bits)
)
probabilities = st.sampled_from(EDGES) | binary_fractions | st.floats(0, 1)
inner_probabilities = probabilities.filter(lambda p: 0 < p < 1)
seeds = st.sampled_from([0, 2**63, 2**64 - 1, -1, -(2**63)]) | st.integers(-(2**63), 2**64 - 1)
calls = st.sampled_from([0, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)
# Generators use call numbers up to 2**64 - 2.
generator_calls = calls.map(lambda call: min(call, 2**64 - 2))
dtypes = st.sampled_from(DTYPES)
small_shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
# These rows can be longer than a group of the stream, which has 512 elements.
long_shapes = st.tuples(st.integers(1, 3), st.integers(60, 700))
shapes = small_shapes | long_shapes


@st.composite
def views(draw, array):
    """Draw a copy of an array with any memory order and any strides, including negative ones."""
    order = draw(st.permutations(range(array.ndim)))
    steps = draw(st.lists(st.sampled_from([1, 1, -1, 2, -3]), min_size=len(order),
                          max_size=len(order)))  # fmt: skip
    lengths = [array.shape[axis] * abs(step) for axis, step in zip(order, steps, strict=True)]
    memory = np.zeros(lengths, array.dtype)
    view = memory[(..., *[slice(None, None, step) for step in steps])].transpose(np.argsort(order))
    view = view[(..., *[slice(length) for length in array.shape])]
    view[...] = array
    return view


@st.composite
def arrays(draw, shape, dtype=None):
    """Draw an array with this shape, any strides and any elements, including NaN and subnormals."""
    dtype = dtype or draw(dtypes)
    if math.prod(shape) > 100:  # drawing each element with Hypothesis would be slow
        random_bytes = np.random.default_rng(draw(st.integers(0, 99))).bytes(
            math.prod(shape) * np.dtype(dtype).itemsize
        )
        return draw(views(np.frombuffer(random_bytes, dtype).reshape(shape)))
    return draw(views(draw(hnp.arrays(f"u{np.dtype(dtype).itemsize}", shape)).view(dtype)))


@st.composite
def normal_arrays(draw, shape, dtype):
    """Draw an array of normally distributed numbers with any strides."""
    return draw(views(normal(shape, dtype, draw(st.integers(0, 99)))))


def generator_at(seed, call):
    generator = cd.Generator(seed)
    generator.state = {"seed": seed % 2**64, "calls": call, "spawned": 0}
    return generator


assert_same = partial(assert_same_bits, equal_nan=True)


# ---- masks ------------------------------------------------------------------------------------


@given_examples(150, st.data(), shapes.flatmap(arrays), probabilities, seeds, generator_calls)
def test_dropout_and_dropout_backward_equal_reference(data, x, p, seed, call):
    dims = data.draw(st.lists(st.integers(0, x.ndim - 1), unique=True)) if x.ndim else []
    expected = reference.dropout(x, p, seed, call, dims)
    kwargs, generator = {"broadcast_dims": tuple(dims)}, generator_at(seed, call)
    y, mask = cd.dropout(x, p, rng=generator, return_mask=True, **kwargs)
    assert_same(y, expected)
    assert generator.calls == call + (0 < p < 1 and x.size > 0)
    out = data.draw(views(np.zeros_like(x)))
    assert cd.dropout(x, p, rng=generator_at(seed, call), out=out, **kwargs) is out
    assert_same(out, expected)
    gy = data.draw(views(x[(..., *[slice(None, None, -1)] * x.ndim)]))
    expected_gx = reference.dropout_backward(gy, p, seed, call, dims)
    assert_same(cd.dropout_backward(gy, mask), expected_gx)
    assert_same(cd.dropout_backward(x, mask), expected)
    keep = np.asarray(mask)
    np.testing.assert_array_equal(keep, reference.broadcast_keep(x.shape, p, seed, call, dims))
    for form in (mask, data.draw(views(keep)), mask.bits()):
        assert_same(cd.dropout(x, p, mask=form), expected)
    assert cd.dropout(x, p, False, rng=generator) is x
    assert cd.dropout(x, p, True, True, rng=generator_at(seed, call), **kwargs) is x
    assert_same(x, expected)


@given_examples(100, st.data(), shapes, inner_probabilities, seeds, calls)
def test_mask_does_not_depend_on_layout_and_dtype(data, shape, p, seed, call):
    mask = cd.Mask(shape, p, seed, call)
    keep = reference.keep(seed, call, p, 0, math.prod(shape)).reshape(shape)
    for dtype in DTYPES:
        y = mask.apply(data.draw(views(np.ones(shape, dtype))))
        np.testing.assert_array_equal(y.astype(bool), keep)


@given_examples(150, st.data(), shapes.flatmap(arrays), probabilities, seeds, calls)
def test_window_of_a_mask_gives_the_same_part_of_the_result(data, x, p, seed, call):
    mask, whole = cd.Mask(x.shape, p, seed, call), reference.dropout(x, p, seed, call)
    assert_same(mask.apply(x), whole)
    index = data.draw(hnp.basic_indices(x.shape, allow_newaxis=True, max_dims=6))
    window, part = mask[index], np.asarray(x[index])
    assert_same(window.apply(part), np.asarray(whole[index]))
    np.testing.assert_array_equal(np.asarray(window), np.asarray(mask)[index])
    again = data.draw(hnp.basic_indices(window.shape))
    assert_same(window[again].apply(np.asarray(part[again])), np.asarray(whole[index][again]))


@given_examples(
    80, st.data(), probabilities, seeds, calls, st.integers(0, 20000) | st.integers(0, 2**62)
)
def test_masks_of_parts_give_the_result_of_the_whole_call(data, p, seed, call, start):
    x = data.draw(st.integers(0, 3000).flatmap(lambda n: arrays((n,))))
    points = sorted(data.draw(st.lists(st.integers(0, x.size), max_size=4)))
    mask = cd.Mask(x.shape, p, seed, call, start)
    whole = mask.apply(x)
    if p:
        assert_same(whole, reference.apply(x, reference.keep(seed, call, p, start, x.size), p))
    parts = []
    for first, last in zip([0, *points], [*points, x.size], strict=True):
        part = cd.Mask((last - first,), p, seed, call, start + first)
        assert part == mask[first:last] or first == last
        parts.append(part.apply(x[first:last]))
    assert_same(np.concatenate(parts), whole)


# ---- other functions --------------------------------------------------------------------------


@given_examples(
    100, st.data(), st.sampled_from([cd.dropout1d, cd.dropout2d, cd.dropout3d]), st.booleans()
)
def test_channel_dropout_equals_reference(data, function, batched):
    spatial = 1 + [cd.dropout1d, cd.dropout2d, cd.dropout3d].index(function)
    ndim = spatial + 1 + (batched or function is cd.dropout2d)  # dropout2d warns without a batch
    x = data.draw(hnp.array_shapes(min_dims=ndim, max_dims=ndim, min_side=0, max_side=5)
                  .flatmap(arrays))  # fmt: skip
    p, seed, call = data.draw(probabilities), data.draw(seeds), data.draw(generator_calls)
    expected = reference.dropout(x, p, seed, call, tuple(range(ndim - spatial, ndim)))
    y, mask = function(x, p, rng=generator_at(seed, call), return_mask=True)
    assert_same(y, expected)
    assert_same(cd.dropout_backward(x, mask), expected)
    function(x, p, inplace=True, rng=generator_at(seed, call))
    assert_same(x, expected)


@given_examples(80, shapes.flatmap(arrays), probabilities, seeds, generator_calls, st.booleans())
def test_drop_path_equals_reference(x, p, seed, call, scale_by_keep):
    keep = reference.broadcast_keep(x.shape, p, seed, call, tuple(range(1, x.ndim)))
    expected = reference.apply(x, keep, p if scale_by_keep or p == 1 else 0)
    kwargs = {"scale_by_keep": scale_by_keep}
    y, mask = cd.drop_path(x, p, rng=generator_at(seed, call), return_mask=True, **kwargs)
    assert_same(y, expected)
    assert_same(cd.dropout_backward(x, mask), expected)
    cd.drop_path(x, p, inplace=True, rng=generator_at(seed, call), **kwargs)
    assert_same(x, expected)


@given_examples(
    80,
    st.data(),
    st.sampled_from([np.float32, np.float64]),
    inner_probabilities,
    seeds,
    generator_calls,
)
def test_alpha_dropout_equals_reference(data, dtype, p, seed, call):
    feature = data.draw(st.booleans())
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=6))
    x = data.draw(normal_arrays(shape, dtype))
    function = cd.feature_alpha_dropout if feature else cd.alpha_dropout
    y, mask = function(x, p, True, rng=generator_at(seed, call), return_mask=True)
    dims = tuple(range(2, x.ndim)) if feature else ()
    keep = reference.broadcast_keep(shape, p, seed, call, dims)
    np.testing.assert_array_equal(np.asarray(mask), keep)
    saturation = -1.7580993408473766
    a = ((1 - p) * (1 + p * saturation**2)) ** -0.5
    b = -a * p * saturation
    exact = np.where(keep, a * x.astype(float) + b, a * saturation + b)
    # The rounding errors of all operations add up to at most 2 eps (size + abs(exact)).
    size = np.where(keep, abs(a * x.astype(float)) + abs(b), a)
    assert (abs(y - exact) <= 2 * np.finfo(dtype).eps * (size + abs(exact))).all()
    function(x, p, True, True, rng=generator_at(seed, call))
    assert_same(x, y)


@given_examples(
    80, shapes.flatmap(arrays), st.integers(0, 4), probabilities, seeds, generator_calls
)
def test_mc_dropout_equals_reference(x, n, p, seed, call):
    expected = reference.dropout(np.broadcast_to(x, (n, *x.shape)), p, seed, call)
    y, mask = cd.mc_dropout(x, p, n, rng=generator_at(seed, call), return_mask=True)
    assert_same(y, expected)
    for i in range(n):
        assert_same(mask[i].apply(x), expected[i])
    out = np.ones_like(expected)
    assert cd.mc_dropout(x, p, n, rng=generator_at(seed, call), out=out) is out
    assert_same(out, expected)


# ---- bias_dropout_add -------------------------------------------------------------------------


def bias_shapes(shape):
    """Return a strategy that draws shapes that broadcast to `shape`."""
    lengths = st.tuples(*[st.sampled_from([1, length]) for length in shape])
    return st.tuples(lengths, st.integers(0, len(shape))).map(lambda drawn: drawn[0][drawn[1] :])


def reference_sum(x, bias, residual, keep, p):
    """Return residual + dropout(x + bias), computed in the computation dtype and then rounded."""
    real, dtype = reference.computation_dtype(x.dtype), x.dtype
    total = np.asarray(x.astype(real) + bias.astype(real))
    y = np.asarray(residual.astype(real) + reference.apply(total, keep, p))
    if dtype.name in reference.HALVES:
        bits = reference.round_to_half(y.view(np.uint32), dtype.name)
        return np.reshape(bits.view(dtype), x.shape)
    return y


@given_examples(
    120, st.data(), shapes, dtypes, st.sampled_from([0, 0.1, 0.5]) | st.floats(0, 0.99), seeds
)
def test_bias_dropout_add_equals_reference(data, shape, dtype, p, seed):
    bias_shape, call = data.draw(bias_shapes(shape)), data.draw(generator_calls)
    x, residual = data.draw(normal_arrays(shape, dtype)), data.draw(normal_arrays(shape, dtype))
    bias = data.draw(normal_arrays(bias_shape, dtype))
    keep = reference.broadcast_keep(shape, p, seed, call)
    expected = reference_sum(x, bias, residual, keep, p)
    y, mask = cd.bias_dropout_add(
        x, bias, residual, p, rng=generator_at(seed, call), return_mask=True
    )
    assert_same(y, expected)
    gx, gbias, gresidual = cd.bias_dropout_add_backward(x, mask, bias_shape)
    assert_same(gx, reference.apply(x, keep, p))
    assert gresidual is x and gbias.shape == bias_shape
    leading = tuple(range(x.ndim - len(bias_shape)))
    kept = tuple(len(leading) + i for i, length in enumerate(bias_shape) if length == 1)
    total, size = (
        array.sum(axis=leading + kept, keepdims=True).reshape(bias_shape)
        for array in (gx.astype(float), abs(gx.astype(float)))
    )
    eps = float(ml_dtypes.finfo(dtype).eps)
    # The sum is computed in float64, in any order, and rounded once. If the type has 16 bits, the
    # terms of the sum may also be rounded.
    order = x.size * 2.0**-53 + (eps if x.itemsize == 2 else 0)
    assert (abs(np.asarray(gbias, float) - total) <= eps * abs(total) + order * size).all()
    out = data.draw(st.sampled_from([x, residual]))
    cd.bias_dropout_add(x, bias, residual, p, rng=generator_at(seed, call), out=out)
    assert_same(out, expected)


# ---- modules ----------------------------------------------------------------------------------


@given_examples(
    60, shapes.flatmap(arrays), inner_probabilities, seeds, st.lists(st.booleans(), max_size=6)
)
def test_module_uses_one_call_number_per_training_step(x, p, seed, modes):
    m, call, steps = cd.Dropout(p, rng=seed), 0, []
    for mode in modes:
        expected = reference.dropout(x, p if mode else 0, seed, call)
        assert_same(m.train(mode)(x), expected)
        steps.append((m.mask, expected))
        call += mode and x.size > 0
    for mask, expected in reversed(steps):
        assert_same(m.backward(x, mask=mask), expected)
