"""Tests of cdropout.tensorflow: masks, seeds, gradients, errors, and fallbacks to TensorFlow."""

import os

import numpy as np
import pytest

import cdropout as cd

from ..helpers.arrays import DTYPE_NAMES, assert_same_bits, normal
from ..helpers.requirements import import_or_skip, slow
from ..helpers.tensorflow_graphs import operation_types
from ..helpers.threads import run_in_threads

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = import_or_skip("tensorflow")

from tensorflow.python.framework.config import disable_op_determinism  # noqa: E402

from cdropout.tensorflow import dropout, op, stateless_dropout  # noqa: E402

SHAPES = [(), (1,), (0,), (3, 0, 2), (64,), (8191,), (3, 5, 7, 11)]
MODES = {"eager": lambda f: f, "graph": lambda f: tf.function(f, autograph=False)}
InvalidArgumentError = tf.errors.InvalidArgumentError


@pytest.fixture(params=MODES)
def wrap(request):
    return MODES[request.param]


@pytest.fixture(autouse=True)
def reset_seed():
    """Reset TensorFlow's global seed before and after each test."""
    tf.random.set_seed(None)
    yield
    tf.random.set_seed(None)


def normal_tensor(*shape, dtype="float32", seed=1):
    """Return a tensor of normal random numbers."""
    return tf.constant(normal(shape, dtype, seed))


def numpy_dropout(x, p, seed, call=0, dims=()):
    """Return the result of dropout with this seed and call number, computed with NumPy."""
    shape = [1 if axis in dims else length for axis, length in enumerate(x.shape)]
    keep = np.broadcast_to(cd.Mask(shape, p, seed, call), x.shape)
    return cd.dropout_backward(np.asarray(x), keep, p=p)


# ---- the mask -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
@pytest.mark.parametrize("shape", [*SHAPES, *slow((1 << 20,), (1 << 10, 1 << 11))])
def test_seed_determines_mask(shape, dtype, wrap):
    x = normal_tensor(*shape, dtype=dtype)
    y = wrap(lambda x: stateless_dropout(x, 0.3, [7, 5]))(x)
    assert_same_bits(y.numpy(), cd.Mask(shape, 0.3, seed=7, call=5).apply(x.numpy()))


@pytest.mark.parametrize(
    "seed, mask_id",
    [
        ([7, 0], (7, 0)),
        ((2**64 - 1, 2**63), (2**64 - 1, 2**63)),
        ([-1, -2], (2**64 - 1, 2**64 - 2)),
        (np.array([-(2**63), 3]), (2**63, 3)),
        (np.array([1, -3], np.int32), (1, 2**64 - 3)),
        ([np.int64(4), np.uint64(2**64 - 4)], (4, 2**64 - 4)),
    ],
)
def test_seed_contains_seed_and_call_number(seed, mask_id, wrap):
    x = normal_tensor(1000)
    expected = cd.Mask(1000, 0.5, *mask_id).apply(x.numpy())
    assert_same_bits(wrap(lambda x: stateless_dropout(x, 0.5, seed))(x), expected)
    if isinstance(seed, np.ndarray):
        assert_same_bits(
            wrap(lambda x, seed: stateless_dropout(x, 0.5, seed))(x, tf.constant(seed)), expected
        )


def test_seed_computed_in_graph():
    x = normal_tensor(1000)
    run = tf.function(lambda x, i: stateless_dropout(x, 0.5, [7, i]))
    for i in range(3):
        assert_same_bits(run(x, tf.constant(i)), cd.Mask(1000, 0.5, 7, i).apply(x.numpy()))
    assert run.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("p", [1e-9, 0.001, 0.1, 1 / 3, 0.5, 0.999])
def test_rate_can_be_number_tensor_or_variable(p, wrap):
    x = normal_tensor(5000)
    expected = cd.Mask(5000, p, 7).apply(x.numpy())
    assert_same_bits(wrap(lambda x: stateless_dropout(x, p, [7, 0]))(x), expected)
    assert_same_bits(
        wrap(lambda x, p: stateless_dropout(x, p, [7, 0]))(x, tf.constant(p, tf.float64)), expected
    )
    single, variable = tf.constant(p, tf.float32), tf.Variable(p, dtype=tf.float32)
    expected = cd.Mask(5000, float(np.float32(p)), 7).apply(x.numpy())  # p is rounded to float32
    assert_same_bits(wrap(lambda x, p: stateless_dropout(x, p, [7, 0]))(x, single), expected)
    assert_same_bits(wrap(lambda x: stateless_dropout(x, variable, [7, 0]))(x), expected)
    assert_same_bits(wrap(lambda x: stateless_dropout(x, np.float32(p), [7, 0]))(x), expected)


def test_rate_0_returns_x_and_rate_1_returns_zeros(wrap):
    x = tf.fill([100], np.float32(np.nan))
    assert dropout(x, 0) is x and dropout(x, 0.0) is x and stateless_dropout(x, 0, [7, 0]) is x
    run = wrap(lambda rate: stateless_dropout(x, rate, [7, 0]))
    assert_same_bits(run(tf.constant(1.0)), np.zeros(100, np.float32))
    assert_same_bits(run(tf.constant(0.0)), x)


@pytest.mark.parametrize(
    "noise_shape, dims",
    [
        ((4, 5, 6), ()),
        ((None, None, None), ()),
        ((4, 1, 6), (1,)),
        ([None, 1, None], (1,)),
        ([1, 5, 1], (0, 2)),
        ((5, 1), (0, 2)),
        ([6], (0, 1)),
        ((1, 1, 1), (0, 1, 2)),
        ((), (0, 1, 2)),
        ((1, 1, 4, 5, 1), (2,)),
        (tf.TensorShape([None, 1, 6]), (1,)),
        (np.array([4, 1, 6]), (1,)),
    ],
)
def test_result_with_noise_shape_equals_numpy(noise_shape, dims, wrap):
    x = normal_tensor(4, 5, 6)
    run = wrap(lambda x: stateless_dropout(x, 0.4, [3, 1], noise_shape=noise_shape))
    assert_same_bits(run(x), numpy_dropout(x, 0.4, 3, 1, dims))


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
def test_noise_shape_can_be_tensor(dtype, wrap):
    x = normal_tensor(4, 5, 6)
    run = wrap(lambda x, n: stateless_dropout(x, 0.4, [3, 1], noise_shape=n))
    assert_same_bits(run(x, tf.constant([4, 1, 6], dtype)), numpy_dropout(x, 0.4, 3, 1, (1,)))
    assert_same_bits(run(x, tf.zeros([0], dtype)), numpy_dropout(x, 0.4, 3, 1, (0, 1, 2)))
    run = wrap(lambda x: stateless_dropout(x, 0.4, [3, 1], noise_shape=[tf.shape(x)[0], 1, None]))
    assert_same_bits(run(x), numpy_dropout(x, 0.4, 3, 1, (1,)))


def test_noise_shape_with_large_tensor():
    """Test a tensor that consists of several tiles."""
    x = normal_tensor(8, 300, 257)
    for shape, dims in ((8, 1, 257), (1,)), ((1, 300, 1), (0, 2)):
        y = stateless_dropout(x, 0.4, [3, 1], noise_shape=shape)
        assert_same_bits(y, numpy_dropout(x, 0.4, 3, 1, dims))


def test_dropped_elements_are_positive_zero(wrap):
    for value in np.nan, np.inf, -1.0:
        y = wrap(lambda x: stateless_dropout(x, 0.5, [1, 0]))(tf.fill([1000], np.float32(value)))
        dropped = ~np.asarray(cd.Mask(1000, 0.5, 1))
        assert not np.asarray(y)[dropped].any() and not np.signbit(y)[dropped].any()


# ---- stateful masks -----------------------------------------------------------------------------


def draw_masks(n, **options):
    """Return the masks of n calls, as arrays of bools."""
    return [np.asarray(dropout(tf.ones(1000), 0.5, **options) != 0) for _ in range(n)]


def all_differ(masks):
    return len({mask.tobytes() for mask in masks}) == len(masks)


@pytest.mark.parametrize("options", [{}, {"seed": 5}])
def test_global_seed_repeats_eager_masks(options):
    tf.random.set_seed(1)
    first = draw_masks(4, **options)
    tf.random.set_seed(1)
    assert np.array_equal(first, draw_masks(4, **options)) and all_differ(first)
    tf.random.set_seed(2)
    assert all_differ([*first, *draw_masks(4, **options)])


def test_operation_seed_makes_masks_independent_of_other_calls():
    tf.random.set_seed(1)
    first = draw_masks(2, seed=5)
    tf.random.set_seed(1)
    draw_masks(1)
    assert np.array_equal(first, draw_masks(2, seed=5))
    tf.random.set_seed(1)
    assert all_differ([*first, *draw_masks(2, seed=6)])


def test_masks_differ_without_global_seed():
    assert all_differ([*draw_masks(4), *draw_masks(4)])
    assert all_differ(draw_masks(4, seed=5))


@pytest.mark.parametrize("options", [{}, {"seed": 5}])
def test_global_seed_repeats_graph_masks(options):
    def make_graph():
        return tf.function(lambda x: [dropout(x, 0.5, **options) for _ in range(2)])

    x = tf.ones(1000)
    runs = []
    for _ in range(2):
        tf.random.set_seed(1)
        run = make_graph()
        runs.append(np.concatenate([run(x) for _ in range(3)]))
    assert np.array_equal(*runs)
    assert all_differ(runs[0][:: 2 if options else 1])  # with `seed`, both calls draw the same mask


def test_graph_without_seed_draws_new_masks():
    run = tf.function(lambda x: [dropout(x, 0.5) for _ in range(2)])
    assert all_differ(np.concatenate([run(tf.ones(1000)) for _ in range(3)]))


def test_fraction_of_dropped_elements():
    y = tf.stack([dropout(tf.ones(1 << 20, tf.bfloat16), 0.001) for _ in range(2)])
    dropped = np.mean(np.asarray(y) == 0)
    assert abs(dropped - 0.001) < 5 * np.sqrt(0.001 / (1 << 21))


def test_op_determinism_requires_seed():
    tf.config.experimental.enable_op_determinism()
    try:
        with pytest.raises(RuntimeError, match="Random ops require a seed"):
            dropout(tf.ones(3), 0.5)
        tf.random.set_seed(1)
        dropout(tf.ones(3), 0.5)
    finally:
        disable_op_determinism()


# ---- dynamic shapes -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [[None, 7], [None, None], None])
def test_dropout_of_tensors_with_dynamic_shapes(shape):
    run = tf.function(
        lambda x: stateless_dropout(x, 0.4, [3, 1], noise_shape=None),
        input_signature=[tf.TensorSpec(shape, tf.float32)],
    )
    for rows in 3, 0, 40:
        x = normal_tensor(rows, 7)
        assert_same_bits(run(x), numpy_dropout(x, 0.4, 3, 1))
    assert run.get_concrete_function().structured_outputs.shape.as_list() == shape if shape else 1


def test_noise_shape_with_dynamic_shapes():
    run = tf.function(
        lambda x: stateless_dropout(x, 0.4, [3, 1], noise_shape=[None, 1]),
        input_signature=[tf.TensorSpec([None, None], tf.float32)],
    )
    for rows in 3, 40:
        x = normal_tensor(rows, 7)
        assert_same_bits(run(x), numpy_dropout(x, 0.4, 3, 1, (1,)))


# ---- gradients ----------------------------------------------------------------------------------

X, GY = normal_tensor(40, 50), normal_tensor(40, 50, seed=2)
MASK = cd.Mask((40, 50), 0.3, 7, 2)


def dropout_with_mask(x):
    return stateless_dropout(x, 0.3, [7, 2])


def test_gradient_uses_same_mask(wrap):
    def gradient(x, gy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = dropout_with_mask(x)
        return tape.gradient(y, x, gy)

    assert_same_bits(wrap(gradient)(X, GY), MASK.apply(GY.numpy()))


def test_gradient_of_stateful_dropout(wrap):
    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = dropout(x, 0.3, noise_shape=[None, 1])
        return y, tape.gradient(y, x)

    y, gx = wrap(both)(tf.ones([1000, 3]))
    assert_same_bits(gx, y)
    assert 0 < np.mean(y == 0) < 1


def test_second_derivative_of_dropout(wrap):
    def second(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = dropout_with_mask(x) ** 3
            gx = inner.gradient(y, x)
        return outer.gradient(gx, x)

    scale = MASK.apply(np.ones(MASK.shape, np.float32))
    np.testing.assert_allclose(wrap(second)(X), 6 * scale**3 * X, rtol=1e-5)


def test_forward_accumulator_uses_same_mask(wrap):
    def jvp(x, tangent):
        with tf.autodiff.ForwardAccumulator(x, tangent) as accumulator:
            y = dropout_with_mask(x)
        return y, accumulator.jvp(y)

    y, tangent = wrap(jvp)(X, GY)
    assert_same_bits(y, MASK.apply(X.numpy()))
    assert_same_bits(tangent, MASK.apply(GY.numpy()))


def test_gradient_of_gather(wrap):
    """Test a gradient of type IndexedSlices, which the derivative of tf.gather returns."""

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.gather(dropout_with_mask(x), [3, 1])
        return tape.gradient(y, x)

    gy = np.zeros(X.shape.as_list(), np.float32)
    gy[[1, 3]] = 1
    assert_same_bits(wrap(gradient)(X), MASK.apply(gy))


def test_x_is_converted_to_tensor():
    expected = MASK.apply(X.numpy())
    for x in X.numpy(), X.numpy().tolist(), tf.Variable(X):
        assert_same_bits(dropout_with_mask(x), expected)
    assert_same_bits(
        dropout_with_mask(X.numpy().astype(np.float64)), MASK.apply(X.numpy().astype(np.float64))
    )


def test_tf_gradients_and_custom_gradient():
    run = tf.function(lambda x, gy: tf.gradients(dropout_with_mask(x), x, gy)[0])
    assert_same_bits(run(X, GY), MASK.apply(GY.numpy()))
    again = tf.recompute_grad(dropout_with_mask)
    with tf.GradientTape() as tape:
        tape.watch(X)
        y = again(X)
    assert_same_bits(tape.gradient(y, X, GY), MASK.apply(GY.numpy()))


def test_rate_has_no_gradient():
    rate = tf.constant(0.5)
    with tf.GradientTape() as tape:
        tape.watch(rate)
        y = stateless_dropout(X, rate, [7, 2])
    assert tape.gradient(y, rate) is None


def test_jacobian_of_dropout(wrap):
    x = normal_tensor(5)

    def jacobian(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = stateless_dropout(x, 0.5, [7, 2])
        return tape.jacobian(y, x)

    expected = np.diag(cd.Mask(5, 0.5, 7, 2).apply(np.ones(5, np.float32)))
    np.testing.assert_array_equal(wrap(jacobian)(x), expected)


# ---- vectorized_map, loops, threads -------------------------------------------------------------


def test_vectorized_map_of_x_applies_one_mask(recwarn):
    x = normal_tensor(6, 40)
    y = tf.vectorized_map(lambda x: stateless_dropout(x, 0.3, [7, 2]), x)
    assert_same_bits(y, np.stack([cd.Mask(40, 0.3, 7, 2).apply(row) for row in x.numpy()]))


def test_vectorized_map_of_seeds_rates_and_noise_shape():
    x, calls = normal_tensor(6, 4, 10), tf.range(6, dtype=tf.int64)
    rates = tf.linspace(tf.constant(0.1, tf.float64), 0.9, 6)

    def apply(args):
        x, call, rate = args
        return stateless_dropout(x, rate, [7, call], noise_shape=[tf.shape(x)[0], 1])

    y = tf.vectorized_map(apply, (x, calls, rates), fallback_to_while_loop=False)
    for i in range(6):
        assert_same_bits(y[i], numpy_dropout(x[i], float(rates[i]), 7, i, (1,)))


@pytest.mark.parametrize("masks, size", [(3, 1 << 16), (2500, 63), (3, 0), (0, 5)])
def test_op_with_few_large_or_many_small_masks(masks, size):
    x = normal_tensor(masks, size)
    ids = np.stack([np.full(masks, 7), np.arange(masks)], -1)
    rates = np.linspace(0, 1, masks)
    y = op.apply(x, ids, rates, 0)
    expected = [cd.Mask(size, rates[i], 7, i).apply(x.numpy()[i]) for i in range(masks)]
    assert_same_bits(y, np.array(expected, np.float32).reshape(masks, size))


def test_vectorized_map_in_vectorized_map():
    x, rates = normal_tensor(3, 4, 50), tf.constant([0.2, 0.5, 0.8], tf.float64)

    def outer(args):
        x, rate = args
        return tf.vectorized_map(
            lambda x: stateless_dropout(x, rate, [7, 2]), x, fallback_to_while_loop=False
        )

    y = tf.vectorized_map(outer, (x, rates), fallback_to_while_loop=False)
    for i in range(3):
        mask = cd.Mask(50, float(rates[i]), 7, 2)
        assert_same_bits(y[i], np.stack([mask.apply(row) for row in x.numpy()[i]]))


def test_vectorized_map_of_stateful_dropout_draws_different_masks():
    y = tf.vectorized_map(lambda x: dropout(x, 0.5), tf.ones([6, 1000]))
    assert all_differ(np.asarray(y))


def test_while_loop_draws_one_mask_per_step():
    def body(i, y):
        return i + 1, stateless_dropout(y, 0.1, [7, i])

    y = tf.function(lambda x: tf.while_loop(lambda i, _: i < 3, body, (0, x))[1])(X)
    expected = X.numpy()
    for i in range(3):
        expected = cd.Mask(MASK.shape, 0.1, 7, i).apply(expected)
    assert_same_bits(y, expected)


def test_autograph_does_not_convert_dropout(recwarn):
    @tf.function
    def run(x, training):
        if training:
            x = dropout(x, 0.5)
        return x

    run(X, tf.constant(True))
    assert not [w for w in recwarn if "AutoGraph" in str(w.message)]


def test_calls_from_several_threads_give_correct_results():
    x = normal_tensor(1 << 20)
    run = tf.function(lambda x, i: stateless_dropout(x, 0.3, [7, i]))

    def call(i):
        return np.asarray((run if i % 2 else run.python_function)(x, tf.constant(i, tf.int64)))

    for i, y in enumerate(run_in_threads(24, call)):
        assert_same_bits(y, cd.Mask(1 << 20, 0.3, 7, i).apply(x.numpy()))


def test_memory_of_x_is_reused_only_without_other_references():
    x = normal_tensor(1000)
    before = x.numpy().copy()
    stateless_dropout(x, 0.3, [7, 0])
    y, z = tf.function(lambda x: (stateless_dropout(x + 1, 0.3, [7, 0]), x + 1))(x)
    assert_same_bits(x, before)
    assert_same_bits(z, before + 1)
    assert_same_bits(y, cd.Mask(1000, 0.3, 7).apply(before + 1))


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1, 1.0, -0.1, 1.5, float("nan"), float("inf"), True])
@pytest.mark.parametrize("function", [dropout, lambda x, p: stateless_dropout(x, p, [1, 0])])
def test_invalid_rate_raises(function, rate):
    with pytest.raises(ValueError, match=r"`rate` must be a scalar .* range \[0, 1\)"):
        function(X, rate)


@pytest.mark.parametrize("rate", ["half", None, np.array(0.5)])
def test_rate_of_invalid_type_raises(rate):
    with pytest.raises(ValueError, match="`rate` must be a scalar or scalar tensor"):
        dropout(X, rate)


def test_rate_tensor_of_invalid_shape_or_dtype_raises():
    with pytest.raises(ValueError, match="must have rank 0"):
        dropout(X, tf.constant([0.5]))
    with pytest.raises(ValueError, match="`rate.dtype` must be a floating point type"):
        dropout(X, tf.constant(0))


@pytest.mark.parametrize("rate, text", [(1.5, "1.5"), (-0.25, "-0.25"), (np.nan, "nan")])
def test_rate_tensor_out_of_range_raises(rate, text, wrap):
    run = wrap(lambda rate: dropout(X, rate))
    match = f"dropout probability has to be between 0 and 1, but got {text}"
    with pytest.raises(InvalidArgumentError, match=match):
        run(tf.constant(rate))


@pytest.mark.parametrize("x", [tf.constant([1, 2]), [1, 2], tf.constant([True]), tf.constant(1j)])
def test_x_of_other_dtype_raises(x):
    with pytest.raises(ValueError, match="`x.dtype` must be a floating point tensor"):
        dropout(x, 0.5)


@pytest.mark.parametrize(
    "seed",
    [[1], [1, 2, 3], 5, None, [1.0, 2], [True, 1], [1 << 64, 0], [-(1 << 63) - 1, 0]]
    + [tf.constant([1.0, 2]), tf.constant([1, 2, 3])],
)
def test_invalid_seed_raises(seed):
    with pytest.raises(ValueError, match="`seed` must be two integers|convert a value .None."):
        stateless_dropout(X, 0.5, seed)


def test_shape_of_seed_is_checked_at_run_time():
    run = tf.function(
        lambda seed: stateless_dropout(X, 0.5, seed),
        input_signature=[tf.TensorSpec(None, tf.int64)],
    )
    for seed in [1, 2, 3], 5, [[1, 2]]:
        with pytest.raises(InvalidArgumentError, match="mask_id"):
            run(tf.constant(seed, tf.int64))


def test_invalid_rng_alg_raises():
    with pytest.raises(ValueError, match="`rng_alg` must be 'auto_select'.* Received: 'philox'"):
        stateless_dropout(X, 0.5, [1, 2], rng_alg="philox")


@pytest.mark.parametrize("noise_shape", [(40, 2), (0, 50), (3,), (-1, 50)])
def test_noise_shape_with_invalid_lengths_raises(noise_shape, wrap):
    run = wrap(lambda x: stateless_dropout(x, 0.5, [1, 2], noise_shape=noise_shape))
    with pytest.raises(InvalidArgumentError, match="noise_shape has to contain 1 or the length of"):
        run(X)


@pytest.mark.parametrize(
    "noise_shape", [[[40], [1]], np.ones((2, 1)), tf.ones((2, 1)), [tf.constant([40]), [1]]]
)
def test_noise_shape_of_another_rank_raises(noise_shape, wrap):
    run = wrap(lambda x: stateless_dropout(x, 0.5, [1, 2], noise_shape=noise_shape))
    with pytest.raises(ValueError, match=r"Shape \(2, 1\) must have rank 1"):
        run(X)


def test_noise_shape_with_too_many_axes_raises(wrap):
    run = wrap(lambda x: stateless_dropout(x, 0.5, [1, 2], noise_shape=(2, 40, 50)))
    with pytest.raises(InvalidArgumentError, match="noise_shape must not have more axes than x"):
        run(X)


def test_x_with_more_than_64_dimensions_raises():
    with pytest.raises(InvalidArgumentError, match="at most 64 dimensions, but got 65"):
        stateless_dropout(tf.ones([1] * 65), 0.5, [1, 2])
    assert stateless_dropout(tf.ones([1] * 64), 0.5, [1, 2]).shape.rank == 64


# ---- fallbacks to TensorFlow --------------------------------------------------------------------


def test_dropout_of_ragged_tensor_falls_back_to_tensorflow():
    x = tf.ragged.constant([[1.0] * 300, [1.0] * 200])
    y = dropout(x, 0.5)
    assert isinstance(y, tf.RaggedTensor) and y.shape.as_list() == [2, None]
    assert set(np.asarray(y.flat_values)) == {0, 2}


def test_xla_function_is_traced_with_tensorflow_dropout():
    for function in (dropout_with_mask, lambda x: dropout(x, 0.5)):
        compiled = tf.function(function, jit_compile=True)
        outer = tf.function(lambda x, f=compiled: f(x) + 1)
        for traced in compiled, outer:
            assert "CdropoutApplyV1" not in operation_types(traced.get_concrete_function(X))
        mixed = tf.function(lambda x, f=compiled: f(x) + dropout_with_mask(x))
        assert "CdropoutApplyV1" in operation_types(mixed.get_concrete_function(X))


@pytest.mark.slow
def test_xla_function_gives_result_of_tensorflow():
    functions = tf.nn.experimental.stateless_dropout, stateless_dropout
    expected, y = (
        tf.function(lambda x, f=f: f(x, 0.3, [7, 2], "auto_select"), jit_compile=True)(X)
        for f in functions
    )
    assert_same_bits(y, expected)
    compiled = tf.function(lambda x: dropout(x, 0.3), jit_compile=True)
    outer = tf.function(lambda x: compiled(x) + dropout_with_mask(x))
    assert np.isfinite(outer(X)).all()


@pytest.mark.slow
def test_xla_function_that_calls_traced_function_raises():
    inner = tf.function(dropout_with_mask)
    inner.get_concrete_function(X)
    concrete = inner.get_concrete_function(X)
    run = tf.function(lambda x: concrete(x), jit_compile=True)
    with pytest.raises(tf.errors.OpError, match="CdropoutApplyV1"):
        run(X)


def test_dropout_on_another_device_falls_back_to_tensorflow():
    with tf.Graph().as_default(), tf.device("/GPU:0"):
        x = tf.zeros([3], name="x")
        assert "Cdropout" not in dropout(x, 0.5).op.type
    with tf.Graph().as_default(), tf.device("/cpu:0"):
        assert dropout(tf.zeros([3]), 0.5).op.type == "CdropoutApplyV1"


def test_operations_have_the_given_or_the_default_name():
    with tf.Graph().as_default():
        assert dropout(tf.ones(3), 0.5, name="noise").name.startswith("noise/")
        assert dropout(tf.ones(3), 0.5).name.startswith("dropout/")
