"""Dropout for TensorFlow draws the masks of its seeds, in eager mode and in graphs."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip, slow

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = import_or_skip("tensorflow")

from tensorflow.python.framework.config import disable_op_determinism  # noqa: E402

from cdropout.tensorflow import dropout, op, stateless_dropout  # noqa: E402

DTYPES = ["float16", "bfloat16", "float32", "float64"]
SHAPES = [(), (1,), (0,), (3, 0, 2), (64,), (8191,), (3, 5, 7, 11)]
WAYS = {"eager": lambda f: f, "graph": lambda f: tf.function(f, autograph=False)}
InvalidArgumentError = tf.errors.InvalidArgumentError


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


@pytest.fixture(autouse=True)
def without_seed():
    """Start and end without a seed: other tests of the process have the same TensorFlow."""
    tf.random.set_seed(None)
    yield
    tf.random.set_seed(None)


def numbers(*shape, dtype="float32", seed=0):
    return tf.cast(np.random.default_rng(seed).standard_normal(shape), dtype)


def expected(x, p, seed, call=0, shared=()):
    """Return what NumPy's function makes of the same mask."""
    x = np.asarray(x)
    drawn = [1 if axis in shared else length for axis, length in enumerate(x.shape)]
    keep = np.broadcast_to(np.asarray(cd.Mask(drawn, p, seed, call)), x.shape)
    return cd.dropout_backward(x, keep, p=p)


def check(y, right):
    y, right = (np.array(a.numpy() if tf.is_tensor(a) else a) for a in (y, right))
    assert (y.dtype, y.shape) == (right.dtype, right.shape)
    assert y.tobytes() == right.tobytes()


# ---- the mask -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, *slow((1 << 20,), (1 << 10, 1 << 11))])
def test_the_mask_is_the_one_of_the_seed(shape, dtype, way):
    x = numbers(*shape, dtype=dtype)
    y = way(lambda x: stateless_dropout(x, 0.3, [7, 5]))(x)
    check(y, cd.Mask(shape, 0.3, seed=7, call=5).apply(x.numpy()))


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
def test_seeds(seed, mask_id, way):
    x = numbers(1000)
    right = cd.Mask(1000, 0.5, *mask_id).apply(x.numpy())
    check(way(lambda x: stateless_dropout(x, 0.5, seed))(x), right)
    if isinstance(seed, np.ndarray):
        check(way(lambda x, seed: stateless_dropout(x, 0.5, seed))(x, tf.constant(seed)), right)


def test_a_seed_may_be_computed():
    x = numbers(1000)
    run = tf.function(lambda x, i: stateless_dropout(x, 0.5, [7, i]))
    for i in range(3):
        check(run(x, tf.constant(i)), cd.Mask(1000, 0.5, 7, i).apply(x.numpy()))
    assert run.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("p", [1e-9, 0.001, 0.1, 1 / 3, 0.5, 0.999])
def test_rates(p, way):
    x = numbers(5000)
    right = cd.Mask(5000, p, 7).apply(x.numpy())
    check(way(lambda x: stateless_dropout(x, p, [7, 0]))(x), right)
    check(way(lambda x, p: stateless_dropout(x, p, [7, 0]))(x, tf.constant(p, tf.float64)), right)
    single, variable = tf.constant(p, tf.float32), tf.Variable(p, dtype=tf.float32)
    right = cd.Mask(5000, float(np.float32(p)), 7).apply(x.numpy())  # p is rounded
    check(way(lambda x, p: stateless_dropout(x, p, [7, 0]))(x, single), right)
    check(way(lambda x: stateless_dropout(x, variable, [7, 0]))(x), right)
    check(way(lambda x: stateless_dropout(x, np.float32(p), [7, 0]))(x), right)


def test_the_ends_of_rate(way):
    x = tf.fill([100], np.float32(np.nan))
    assert dropout(x, 0) is x and dropout(x, 0.0) is x and stateless_dropout(x, 0, [7, 0]) is x
    run = way(lambda rate: stateless_dropout(x, rate, [7, 0]))
    check(run(tf.constant(1.0)), np.zeros(100, np.float32))
    check(run(tf.constant(0.0)), x)


@pytest.mark.parametrize(
    "noise_shape, shared",
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
def test_noise_shape(noise_shape, shared, way):
    x = numbers(4, 5, 6)
    run = way(lambda x: stateless_dropout(x, 0.4, [3, 1], noise_shape=noise_shape))
    check(run(x), expected(x, 0.4, 3, 1, shared))


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
def test_a_noise_shape_may_be_a_tensor(dtype, way):
    x = numbers(4, 5, 6)
    run = way(lambda x, n: stateless_dropout(x, 0.4, [3, 1], noise_shape=n))
    check(run(x, tf.constant([4, 1, 6], dtype)), expected(x, 0.4, 3, 1, (1,)))
    check(run(x, tf.zeros([0], dtype)), expected(x, 0.4, 3, 1, (0, 1, 2)))
    parts = way(lambda x: stateless_dropout(x, 0.4, [3, 1], noise_shape=[tf.shape(x)[0], 1, None]))
    check(parts(x), expected(x, 0.4, 3, 1, (1,)))


def test_noise_of_large_tensors():
    """Arrays of several tiles."""
    x = numbers(8, 300, 257)
    for shape, shared in ((8, 1, 257), (1,)), ((1, 300, 1), (0, 2)):
        y = stateless_dropout(x, 0.4, [3, 1], noise_shape=shape)
        check(y, expected(x, 0.4, 3, 1, shared))


def test_what_is_dropped_is_positive_zero(way):
    for value in np.nan, np.inf, -1.0:
        y = way(lambda x: stateless_dropout(x, 0.5, [1, 0]))(tf.fill([1000], np.float32(value)))
        dropped = ~np.asarray(cd.Mask(1000, 0.5, 1))
        assert not np.asarray(y)[dropped].any() and not np.signbit(y)[dropped].any()


# ---- stateful masks -----------------------------------------------------------------------------


def draw(n, **options):
    """Return which elements n calls keep."""
    return [np.asarray(dropout(tf.ones(1000), 0.5, **options) != 0) for _ in range(n)]


def all_differ(masks):
    return len({mask.tobytes() for mask in masks}) == len(masks)


@pytest.mark.parametrize("options", [{}, {"seed": 5}])
def test_a_global_seed_repeats_eager_calls(options):
    tf.random.set_seed(1)
    first = draw(4, **options)
    tf.random.set_seed(1)
    assert np.array_equal(first, draw(4, **options)) and all_differ(first)
    tf.random.set_seed(2)
    assert all_differ([*first, *draw(4, **options)])


def test_a_seed_of_its_own_makes_a_call_independent_of_others():
    tf.random.set_seed(1)
    first = draw(2, seed=5)
    tf.random.set_seed(1)
    draw(1)
    assert np.array_equal(first, draw(2, seed=5))
    tf.random.set_seed(1)
    assert all_differ([*first, *draw(2, seed=6)])


def test_without_a_global_seed_no_mask_repeats():
    assert all_differ([*draw(4), *draw(4)])
    assert all_differ(draw(4, seed=5))


@pytest.mark.parametrize("options", [{}, {"seed": 5}])
def test_a_global_seed_repeats_a_graph(options):
    def new():
        return tf.function(lambda x: [dropout(x, 0.5, **options) for _ in range(2)])

    x = tf.ones(1000)
    runs = []
    for _ in range(2):
        tf.random.set_seed(1)
        run = new()
        runs.append(np.concatenate([run(x) for _ in range(3)]))
    assert np.array_equal(*runs)
    without_options = not options  # an operation's seed is that of both calls
    assert all_differ(runs[0][:: 1 if without_options else 2])


def test_a_graph_without_a_seed_draws_anew_in_each_run():
    run = tf.function(lambda x: [dropout(x, 0.5) for _ in range(2)])
    assert all_differ(np.concatenate([run(tf.ones(1000)) for _ in range(3)]))


def test_the_share_kept():
    y = tf.stack([dropout(tf.ones(1 << 20, tf.bfloat16), 0.001) for _ in range(2)])
    dropped = np.mean(np.asarray(y) == 0)
    assert abs(dropped - 0.001) < 5 * np.sqrt(0.001 / (1 << 21))


def test_determinism_needs_a_seed():
    tf.config.experimental.enable_op_determinism()
    try:
        with pytest.raises(RuntimeError, match="Random ops require a seed"):
            dropout(tf.ones(3), 0.5)
        tf.random.set_seed(1)
        dropout(tf.ones(3), 0.5)
    finally:
        disable_op_determinism()


# ---- shapes that are known later ----------------------------------------------------------------


@pytest.mark.parametrize("shape", [[None, 7], [None, None], None])
def test_dynamic_shapes(shape):
    run = tf.function(
        lambda x: stateless_dropout(x, 0.4, [3, 1], noise_shape=None),
        input_signature=[tf.TensorSpec(shape, tf.float32)],
    )
    for rows in 3, 0, 40:
        x = numbers(rows, 7)
        check(run(x), expected(x, 0.4, 3, 1))
    assert run.get_concrete_function().structured_outputs.shape.as_list() == shape if shape else 1


def test_noise_of_dynamic_shapes():
    run = tf.function(
        lambda x: stateless_dropout(x, 0.4, [3, 1], noise_shape=[None, 1]),
        input_signature=[tf.TensorSpec([None, None], tf.float32)],
    )
    for rows in 3, 40:
        check(run(numbers(rows, 7)), expected(numbers(rows, 7), 0.4, 3, 1, (1,)))


# ---- gradients ----------------------------------------------------------------------------------

X, GY = numbers(40, 50), numbers(40, 50, seed=1)
MASK = cd.Mask((40, 50), 0.3, 7, 2)


def drop(x):
    return stateless_dropout(x, 0.3, [7, 2])


def test_the_gradient_draws_the_mask_again(way):
    def gradient(x, gy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = drop(x)
        return tape.gradient(y, x, gy)

    check(way(gradient)(X, GY), MASK.apply(GY.numpy()))


def test_the_gradient_of_a_stateful_call(way):
    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = dropout(x, 0.3, noise_shape=[None, 1])
        return y, tape.gradient(y, x)

    y, gx = way(both)(tf.ones([1000, 3]))
    check(gx, y)
    assert 0 < np.mean(y == 0) < 1


def test_the_second_derivative(way):
    def second(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = drop(x) ** 3
            gx = inner.gradient(y, x)
        return outer.gradient(gx, x)

    scale = MASK.apply(np.ones(MASK.shape, np.float32))
    np.testing.assert_allclose(way(second)(X), 6 * scale**3 * X, rtol=1e-5)


def test_forward_accumulator(way):
    def jvp(x, tangent):
        with tf.autodiff.ForwardAccumulator(x, tangent) as accumulator:
            y = drop(x)
        return y, accumulator.jvp(y)

    y, tangent = way(jvp)(X, GY)
    check(y, MASK.apply(X.numpy()))
    check(tangent, MASK.apply(GY.numpy()))


def test_the_gradient_of_some_rows(way):
    """It comes as IndexedSlices."""

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.gather(drop(x), [3, 1])
        return tape.gradient(y, x)

    gy = np.zeros(X.shape.as_list(), np.float32)
    gy[[1, 3]] = 1
    check(way(gradient)(X), MASK.apply(gy))


def test_what_becomes_a_tensor():
    right = MASK.apply(X.numpy())
    for x in X.numpy(), X.numpy().tolist(), tf.Variable(X):
        check(drop(x), right)
    check(drop(X.numpy().astype(np.float64)), MASK.apply(X.numpy().astype(np.float64)))


def test_tf_gradients_and_custom_gradient():
    run = tf.function(lambda x, gy: tf.gradients(drop(x), x, gy)[0])
    check(run(X, GY), MASK.apply(GY.numpy()))
    again = tf.recompute_grad(drop)
    with tf.GradientTape() as tape:
        tape.watch(X)
        y = again(X)
    check(tape.gradient(y, X, GY), MASK.apply(GY.numpy()))


def test_there_is_no_gradient_with_respect_to_rate():
    rate = tf.constant(0.5)
    with tf.GradientTape() as tape:
        tape.watch(rate)
        y = stateless_dropout(X, rate, [7, 2])
    assert tape.gradient(y, rate) is None


def test_jacobian(way):
    x = numbers(5)

    def jacobian(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = stateless_dropout(x, 0.5, [7, 2])
        return tape.jacobian(y, x)

    right = np.diag(cd.Mask(5, 0.5, 7, 2).apply(np.ones(5, np.float32)))
    np.testing.assert_array_equal(way(jacobian)(x), right)


# ---- vectorized_map, loops, threads -------------------------------------------------------------


def test_vectorized_map_of_x_applies_one_mask(recwarn):
    x = numbers(6, 40)
    y = tf.vectorized_map(lambda x: stateless_dropout(x, 0.3, [7, 2]), x)
    check(y, np.stack([cd.Mask(40, 0.3, 7, 2).apply(row) for row in x.numpy()]))


def test_vectorized_map_of_seeds_rates_and_noise():
    x, calls = numbers(6, 4, 10), tf.range(6, dtype=tf.int64)
    rates = tf.linspace(tf.constant(0.1, tf.float64), 0.9, 6)

    def one(xs):
        x, call, rate = xs
        return stateless_dropout(x, rate, [7, call], noise_shape=[tf.shape(x)[0], 1])

    y = tf.vectorized_map(one, (x, calls, rates), fallback_to_while_loop=False)
    for i in range(6):
        check(y[i], expected(x[i], float(rates[i]), 7, i, (1,)))


@pytest.mark.parametrize("masks, size", [(3, 1 << 16), (2500, 63), (3, 0), (0, 5)])
def test_large_masks_in_turn_and_small_ones_at_the_same_time(masks, size):
    x = numbers(masks, size)
    ids = np.stack([np.full(masks, 7), np.arange(masks)], -1)
    rates = np.linspace(0, 1, masks)
    y = op.apply(x, ids, rates, 0)
    right = [cd.Mask(size, rates[i], 7, i).apply(x.numpy()[i]) for i in range(masks)]
    check(y, np.array(right, np.float32).reshape(masks, size))


def test_vectorized_map_in_vectorized_map():
    x, rates = numbers(3, 4, 50), tf.constant([0.2, 0.5, 0.8], tf.float64)

    def outer(xs):
        x, rate = xs
        return tf.vectorized_map(
            lambda x: stateless_dropout(x, rate, [7, 2]), x, fallback_to_while_loop=False
        )

    y = tf.vectorized_map(outer, (x, rates), fallback_to_while_loop=False)
    for i in range(3):
        mask = cd.Mask(50, float(rates[i]), 7, 2)
        check(y[i], np.stack([mask.apply(row) for row in x.numpy()[i]]))


def test_vectorized_map_of_a_stateful_call_draws_a_mask_each():
    y = tf.vectorized_map(lambda x: dropout(x, 0.5), tf.ones([6, 1000]))
    assert all_differ(np.asarray(y))


def test_in_a_while_loop():
    def body(i, y):
        return i + 1, stateless_dropout(y, 0.1, [7, i])

    y = tf.function(lambda x: tf.while_loop(lambda i, _: i < 3, body, (0, x))[1])(X)
    right = X.numpy()
    for i in range(3):
        right = cd.Mask(MASK.shape, 0.1, 7, i).apply(right)
    check(y, right)


def test_autograph_leaves_it_alone(recwarn):
    @tf.function
    def run(x, training):
        if training:
            x = dropout(x, 0.5)
        return x

    run(X, tf.constant(True))
    assert not [w for w in recwarn if "AutoGraph" in str(w.message)]


def test_threads():
    """Large tensors share the package's threads, or do without them."""
    x = numbers(1 << 20)
    run = tf.function(lambda x, i: stateless_dropout(x, 0.3, [7, i]))

    def call(i):
        return np.asarray((run if i % 2 else run.python_function)(x, tf.constant(i, tf.int64)))

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(call, range(24)))
    for i, y in enumerate(results):
        check(y, cd.Mask(1 << 20, 0.3, 7, i).apply(x.numpy()))


def test_memory_of_x_is_used_only_if_nobody_else_has_it():
    x = numbers(1000)
    before = x.numpy().copy()
    stateless_dropout(x, 0.3, [7, 0])
    y, z = tf.function(lambda x: (stateless_dropout(x + 1, 0.3, [7, 0]), x + 1))(x)
    check(x, before)
    check(z, before + 1)
    check(y, cd.Mask(1000, 0.3, 7).apply(before + 1))


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1, 1.0, -0.1, 1.5, float("nan"), float("inf"), True])
@pytest.mark.parametrize("function", [dropout, lambda x, p: stateless_dropout(x, p, [1, 0])])
def test_a_bad_rate(function, rate):
    with pytest.raises(ValueError, match=r"`rate` must be a scalar .* range \[0, 1\)"):
        function(X, rate)


@pytest.mark.parametrize("rate", ["half", None, np.array(0.5)])
def test_a_rate_that_is_no_number(rate):
    with pytest.raises(ValueError, match="`rate` must be a scalar or scalar tensor"):
        dropout(X, rate)


def test_a_rate_of_another_shape_or_type():
    with pytest.raises(ValueError, match="must have rank 0"):
        dropout(X, tf.constant([0.5]))
    with pytest.raises(ValueError, match="`rate.dtype` must be a floating point type"):
        dropout(X, tf.constant(0))


@pytest.mark.parametrize("rate, said", [(1.5, "1.5"), (-0.25, "-0.25"), (np.nan, "nan")])
def test_a_bad_rate_in_a_tensor(rate, said, way):
    run = way(lambda rate: dropout(X, rate))
    match = f"dropout probability has to be between 0 and 1, but got {said}"
    with pytest.raises(InvalidArgumentError, match=match):
        run(tf.constant(rate))


@pytest.mark.parametrize("x", [tf.constant([1, 2]), [1, 2], tf.constant([True]), tf.constant(1j)])
def test_an_x_that_is_not_of_floats(x):
    with pytest.raises(ValueError, match="`x.dtype` must be a floating point tensor"):
        dropout(x, 0.5)


@pytest.mark.parametrize(
    "seed",
    [[1], [1, 2, 3], 5, None, [1.0, 2], [True, 1], [1 << 64, 0], [-(1 << 63) - 1, 0]]
    + [tf.constant([1.0, 2]), tf.constant([1, 2, 3])],
)
def test_a_bad_seed(seed):
    with pytest.raises(ValueError, match="`seed` must be two integers|convert a value .None."):
        stateless_dropout(X, 0.5, seed)


def test_a_seed_of_another_shape_at_run_time():
    run = tf.function(
        lambda seed: stateless_dropout(X, 0.5, seed),
        input_signature=[tf.TensorSpec(None, tf.int64)],
    )
    for seed in [1, 2, 3], 5, [[1, 2]]:
        with pytest.raises(InvalidArgumentError, match="mask_id"):
            run(tf.constant(seed, tf.int64))


def test_a_bad_rng_alg():
    with pytest.raises(ValueError, match="`rng_alg` must be 'auto_select'.* Received: 'philox'"):
        stateless_dropout(X, 0.5, [1, 2], rng_alg="philox")


@pytest.mark.parametrize("noise_shape", [(40, 2), (0, 50), (3,), (-1, 50)])
def test_a_noise_shape_that_does_not_fit(noise_shape, way):
    run = way(lambda x: stateless_dropout(x, 0.5, [1, 2], noise_shape=noise_shape))
    with pytest.raises(InvalidArgumentError, match="noise_shape has to hold 1 or the length of"):
        run(X)


def test_a_noise_shape_that_is_too_long(way):
    run = way(lambda x: stateless_dropout(x, 0.5, [1, 2], noise_shape=(2, 40, 50)))
    with pytest.raises(InvalidArgumentError, match="noise_shape must not have more axes than x"):
        run(X)


def test_too_many_dimensions():
    with pytest.raises(InvalidArgumentError, match="at most 64 dimensions, but has 65"):
        stateless_dropout(tf.ones([1] * 65), 0.5, [1, 2])
    assert stateless_dropout(tf.ones([1] * 64), 0.5, [1, 2]).shape.rank == 64


# ---- what stays with TensorFlow -----------------------------------------------------------------


def test_ragged_tensors_get_tensorflows():
    x = tf.ragged.constant([[1.0] * 300, [1.0] * 200])
    y = dropout(x, 0.5)
    assert isinstance(y, tf.RaggedTensor) and y.shape.as_list() == [2, None]
    assert set(np.asarray(y.flat_values)) == {0, 2}


def operators(function):
    """Return the types of the operations of a traced function, and of those that it calls."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    return {node.op for node in nodes}


def test_functions_that_xla_compiles_are_traced_with_tensorflows():
    for function in (drop, lambda x: dropout(x, 0.5)):
        compiled = tf.function(function, jit_compile=True)
        outer = tf.function(lambda x, f=compiled: f(x) + 1)
        for traced in compiled, outer:
            assert "CdropoutApplyV1" not in operators(traced.get_concrete_function(X))
        mixed = tf.function(lambda x, f=compiled: f(x) + drop(x))
        assert "CdropoutApplyV1" in operators(mixed.get_concrete_function(X))


@pytest.mark.slow
def test_jit_compile_gets_tensorflows():
    functions = tf.nn.experimental.stateless_dropout, stateless_dropout
    own, ours = (
        tf.function(lambda x, f=f: f(x, 0.3, [7, 2], "auto_select"), jit_compile=True)(X)
        for f in functions
    )
    check(ours, own)
    compiled = tf.function(lambda x: dropout(x, 0.3), jit_compile=True)
    outer = tf.function(lambda x: compiled(x) + drop(x))
    assert np.isfinite(outer(X)).all()


@pytest.mark.slow
def test_jit_compile_around_a_traced_function_is_tensorflows_error():
    inner = tf.function(drop)
    inner.get_concrete_function(X)
    concrete = inner.get_concrete_function(X)
    run = tf.function(lambda x: concrete(x), jit_compile=True)
    with pytest.raises(tf.errors.OpError, match="CdropoutApplyV1"):
        run(X)


def test_other_devices_get_tensorflows():
    with tf.Graph().as_default(), tf.device("/GPU:0"):
        x = tf.zeros([3], name="x")
        assert "Cdropout" not in dropout(x, 0.5).op.type
    with tf.Graph().as_default(), tf.device("/cpu:0"):
        assert dropout(tf.zeros([3]), 0.5).op.type == "CdropoutApplyV1"


def test_names_in_a_graph():
    with tf.Graph().as_default():
        assert dropout(tf.ones(3), 0.5, name="mine").name.startswith("mine/")
        assert dropout(tf.ones(3), 0.5).name.startswith("dropout/")
