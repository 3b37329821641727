"""Whatever Hypothesis thinks of, every public function gives what the slow twin gives."""

import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np

import cdropout as cd

from .. import reference
from ..helpers.hypothesis_settings import given_examples

BITS = {
    np.float16: np.uint16,
    ml_dtypes.bfloat16: np.uint16,
    np.float32: np.uint32,
    np.float64: np.uint64,
}


# ---- what is thought of -----------------------------------------------------------------------

EDGES = [0.0, 5e-324, 0.5, 1.0, np.nextafter(0.5, 0), np.nextafter(0.5, 1), np.nextafter(1, 0)]
dyadics = st.integers(1, 40).flatmap(
    lambda bits: st.integers(1, 2**bits - 1).map(lambda numerator: numerator / 2**bits)
)
probabilities = st.sampled_from(EDGES) | dyadics | st.floats(0, 1)
between = probabilities.filter(lambda p: 0 < p < 1)
seeds = st.sampled_from([0, 2**63, 2**64 - 1, -1, -(2**63)]) | st.integers(-(2**63), 2**64 - 1)
calls = st.sampled_from([0, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)
handed_out = calls.map(lambda call: min(call, 2**64 - 2))  # a generator keeps the last to itself
dtypes = st.sampled_from(list(BITS))
small = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
long = st.tuples(st.integers(1, 3), st.integers(60, 700))  # more than a group of the stream
shapes = small | long


@st.composite
def views(draw, array):
    """A copy of array with any order of axes and any steps, some of them backwards."""
    order = draw(st.permutations(range(array.ndim)))
    steps = draw(st.lists(st.sampled_from([1, 1, -1, 2, -3]), min_size=len(order),
                          max_size=len(order)))  # fmt: skip
    lengths = [array.shape[axis] * abs(step) for axis, step in zip(order, steps, strict=True)]
    whole = np.zeros(lengths, array.dtype)
    view = whole[(..., *[slice(None, None, step) for step in steps])].transpose(np.argsort(order))
    view = view[(..., *[slice(length) for length in array.shape])]
    view[...] = array
    return view


@st.composite
def arrays(draw, shape, dtype=None):
    """An array of this shape, of any numbers (infinite, subnormal, NaN), in any memory order."""
    dtype = dtype or draw(dtypes)
    if math.prod(shape) > 100:  # a few random numbers after another are enough
        octets = np.random.default_rng(draw(st.integers(0, 99))).bytes(
            math.prod(shape) * np.dtype(dtype).itemsize
        )
        return draw(views(np.frombuffer(octets, dtype).reshape(shape)))
    return draw(views(draw(hnp.arrays(BITS[dtype], shape)).view(dtype)))


@st.composite
def ordinary(draw, shape, dtype):
    """An array of numbers of moderate size, in any memory order."""
    normal = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(shape)
    return draw(views(np.asarray(normal, dtype)))


def generator_at(seed, call):
    generator = cd.Generator(seed)
    generator.state = {"seed": seed % 2**64, "calls": call, "spawned": 0}
    return generator


def plain(array):
    """Return the bytes of array in C order; one NaN is like another."""
    array = np.array(array, order="C").reshape(-1)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        array[array != array] = np.nan
    return array.tobytes()


def same(y, want):
    assert (y.dtype, y.shape) == (want.dtype, want.shape)
    assert plain(y) == plain(want)


# ---- one mask, whatever the way ---------------------------------------------------------------


@given_examples(150, st.data(), shapes.flatmap(arrays), probabilities, seeds, handed_out)
def test_dropout_and_its_backward(data, x, p, seed, call):
    dims = data.draw(st.lists(st.integers(0, x.ndim - 1), unique=True)) if x.ndim else []
    want = reference.dropout(x, p, seed, call, dims)
    kwargs, generator = {"broadcast_dims": tuple(dims)}, generator_at(seed, call)
    y, mask = cd.dropout(x, p, rng=generator, return_mask=True, **kwargs)
    same(y, want)
    assert generator.calls == call + (0 < p < 1 and x.size > 0)
    out = data.draw(views(np.zeros_like(x)))
    assert cd.dropout(x, p, rng=generator_at(seed, call), out=out, **kwargs) is out
    same(out, want)
    gradient = data.draw(views(x[(..., *[slice(None, None, -1)] * x.ndim)]))
    same(cd.dropout_backward(gradient, mask),
         reference.dropout_backward(gradient, p, seed, call, dims))  # fmt: skip
    same(cd.dropout_backward(x, mask), want)
    keep = np.asarray(mask)
    np.testing.assert_array_equal(keep, reference.broadcast_keep(x.shape, p, seed, call, dims))
    for given_mask in (mask, data.draw(views(keep)), mask.bits()):
        same(cd.dropout(x, p, mask=given_mask), want)
    assert cd.dropout(x, p, False, rng=generator) is x
    assert cd.dropout(x, p, True, True, rng=generator_at(seed, call), **kwargs) is x
    same(x, want)


@given_examples(100, st.data(), shapes, between, seeds, calls)
def test_layout_and_type_leave_the_mask_alone(data, shape, p, seed, call):
    mask = cd.Mask(shape, p, seed, call)
    keep = reference.keep(seed, call, p, 0, math.prod(shape)).reshape(shape)
    for dtype in BITS:
        y = mask.apply(data.draw(views(np.ones(shape, dtype))))
        np.testing.assert_array_equal(y.astype(bool), keep)


@given_examples(150, st.data(), shapes.flatmap(arrays), probabilities, seeds, calls)
def test_windows(data, x, p, seed, call):
    mask, whole = cd.Mask(x.shape, p, seed, call), reference.dropout(x, p, seed, call)
    same(mask.apply(x), whole)
    index = data.draw(hnp.basic_indices(x.shape, allow_newaxis=True, max_dims=6))
    window, part = mask[index], np.asarray(x[index])
    same(window.apply(part), np.asarray(whole[index]))
    np.testing.assert_array_equal(np.asarray(window), np.asarray(mask)[index])
    again = data.draw(hnp.basic_indices(window.shape))
    same(window[again].apply(np.asarray(part[again])), np.asarray(whole[index][again]))


@given_examples(
    80, st.data(), probabilities, seeds, calls, st.integers(0, 20000) | st.integers(0, 2**62)
)
def test_cut_points(data, p, seed, call, start):
    x = data.draw(st.integers(0, 3000).flatmap(lambda n: arrays((n,))))
    points = sorted(data.draw(st.lists(st.integers(0, x.size), max_size=4)))
    mask = cd.Mask(x.shape, p, seed, call, start)
    whole = mask.apply(x)
    if p:
        same(whole, reference.apply(x, reference.keep(seed, call, p, start, x.size), p))
    pieces = []
    for first, last in zip([0, *points], [*points, x.size], strict=True):
        piece = cd.Mask((last - first,), p, seed, call, start + first)
        assert piece == mask[first:last] or first == last
        pieces.append(piece.apply(x[first:last]))
    same(np.concatenate(pieces), whole)


# ---- the variants -----------------------------------------------------------------------------

CHANNELS = {"dropout1d": (3,), "dropout2d": (4,), "dropout3d": (5,)}  # with a batch


@given_examples(
    100, st.data(), st.sampled_from([cd.dropout1d, cd.dropout2d, cd.dropout3d]), st.booleans()
)
def test_channels(data, function, batched):
    spatial = 1 + [cd.dropout1d, cd.dropout2d, cd.dropout3d].index(function)
    ndim = spatial + 1 + (batched or function is cd.dropout2d)  # that takes no fewer in peace
    x = data.draw(hnp.array_shapes(min_dims=ndim, max_dims=ndim, min_side=0, max_side=5)
                  .flatmap(arrays))  # fmt: skip
    p, seed, call = data.draw(probabilities), data.draw(seeds), data.draw(handed_out)
    want = reference.dropout(x, p, seed, call, tuple(range(ndim - spatial, ndim)))
    y, mask = function(x, p, rng=generator_at(seed, call), return_mask=True)
    same(y, want)
    same(cd.dropout_backward(x, mask), want)
    function(x, p, inplace=True, rng=generator_at(seed, call))
    same(x, want)


@given_examples(80, shapes.flatmap(arrays), probabilities, seeds, handed_out, st.booleans())
def test_drop_path(x, p, seed, call, scale_by_keep):
    keep = reference.broadcast_keep(x.shape, p, seed, call, tuple(range(1, x.ndim)))
    want = reference.apply(x, keep, p if scale_by_keep or p == 1 else 0)
    kwargs = {"scale_by_keep": scale_by_keep}
    y, mask = cd.drop_path(x, p, rng=generator_at(seed, call), return_mask=True, **kwargs)
    same(y, want)
    same(cd.dropout_backward(x, mask), want)
    cd.drop_path(x, p, inplace=True, rng=generator_at(seed, call), **kwargs)
    same(x, want)


@given_examples(
    80, st.data(), st.sampled_from([np.float32, np.float64]), between, seeds, handed_out
)
def test_alpha_dropout(data, dtype, p, seed, call):
    feature = data.draw(st.booleans())
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=6))
    x = data.draw(ordinary(shape, dtype))
    function = cd.feature_alpha_dropout if feature else cd.alpha_dropout
    y, mask = function(x, p, True, rng=generator_at(seed, call), return_mask=True)
    dims = tuple(range(2, x.ndim)) if feature else ()
    keep = reference.broadcast_keep(shape, p, seed, call, dims)
    np.testing.assert_array_equal(np.asarray(mask), keep)
    saturation = -1.7580993408473766
    a = ((1 - p) * (1 + p * saturation**2)) ** -0.5
    b = -a * p * saturation
    exact = np.where(keep, a * x.astype(float) + b, a * saturation + b)
    # each of a, b, the product and the sum is rounded
    size = np.where(keep, abs(a * x.astype(float)) + abs(b), a)
    assert (abs(y - exact) <= 2 * np.finfo(dtype).eps * (size + abs(exact))).all()
    function(x, p, True, True, rng=generator_at(seed, call))
    same(x, y)


@given_examples(80, shapes.flatmap(arrays), st.integers(0, 4), probabilities, seeds, handed_out)
def test_monte_carlo(x, n, p, seed, call):
    want = reference.dropout(np.broadcast_to(x, (n, *x.shape)), p, seed, call)
    y, mask = cd.mc_dropout(x, p, n, rng=generator_at(seed, call), return_mask=True)
    same(y, want)
    for i in range(n):
        same(mask[i].apply(x), want[i])
    out = np.ones_like(want)
    assert cd.mc_dropout(x, p, n, rng=generator_at(seed, call), out=out) is out
    same(out, want)


# ---- fused ------------------------------------------------------------------------------------


def biases(shape):
    """Shapes that broadcast to shape."""
    lengths = st.tuples(*[st.sampled_from([1, length]) for length in shape])
    return st.tuples(lengths, st.integers(0, len(shape))).map(lambda drawn: drawn[0][drawn[1] :])


def one_by_one(x, bias, residual, keep, p):
    """Return residual + dropout(x + bias), computed in float32 or float64 and rounded once."""
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
def test_fused(data, shape, dtype, p, seed):
    bias_shape, call = data.draw(biases(shape)), data.draw(handed_out)
    x, residual = data.draw(ordinary(shape, dtype)), data.draw(ordinary(shape, dtype))
    bias = data.draw(ordinary(bias_shape, dtype))
    keep = reference.broadcast_keep(shape, p, seed, call)
    want = one_by_one(x, bias, residual, keep, p)
    y, mask = cd.bias_dropout_add(
        x, bias, residual, p, rng=generator_at(seed, call), return_mask=True
    )
    same(y, want)
    gx, gbias, gresidual = cd.bias_dropout_add_backward(x, mask, bias_shape)
    same(gx, reference.apply(x, keep, p))
    assert gresidual is x and gbias.shape == bias_shape
    lead = tuple(range(x.ndim - len(bias_shape)))
    kept = tuple(len(lead) + i for i, length in enumerate(bias_shape) if length == 1)
    total, size = (
        array.sum(axis=lead + kept, keepdims=True).reshape(bias_shape)
        for array in (gx.astype(float), abs(gx.astype(float)))
    )
    eps = float(ml_dtypes.finfo(dtype).eps)
    # rounded once; summed in double in any order; of half types, before or after their rounding
    order = x.size * 2.0**-53 + (eps if x.itemsize == 2 else 0)
    assert (abs(np.asarray(gbias, float) - total) <= eps * abs(total) + order * size).all()
    out = data.draw(st.sampled_from([x, residual]))
    cd.bias_dropout_add(x, bias, residual, p, rng=generator_at(seed, call), out=out)
    same(out, want)


# ---- modules ----------------------------------------------------------------------------------


@given_examples(60, shapes.flatmap(arrays), between, seeds, st.lists(st.booleans(), max_size=6))
def test_modules_use_up_a_call_a_training_step(x, p, seed, modes):
    m, call, past = cd.Dropout(p, rng=seed), 0, []
    for mode in modes:
        want = reference.dropout(x, p if mode else 0, seed, call)
        same(m.train(mode)(x), want)
        past.append((m.mask, want))
        call += mode and x.size > 0
    for mask, want in reversed(past):
        same(m.backward(x, mask=mask), want)
