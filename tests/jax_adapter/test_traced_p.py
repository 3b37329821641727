"""Tests of cdropout.jax.dropout with a traced p: transformations, programs and errors."""

from functools import partial
from itertools import product

import numpy as np
import pytest

import cdropout as cd

from ..helpers.arrays import DTYPE_NAMES, assert_same_bits
from ..helpers.requirements import import_or_skip

jax = import_or_skip("jax")
from jax import monitoring  # noqa: E402
from jax import numpy as jnp  # noqa: E402

from cdropout.jax import dropout  # noqa: E402

from ..helpers.jax_arrays import KEY, eager_and_jit, normal_jax, numpy_dropout  # noqa: E402

PROBABILITIES = [0.0, 0.1, 0.5, 0.9, 1.0]


def expected_dropout(key, x, p, broadcast_dims=()):
    """Return the expected result for a traced p; JAX rounds a Python float to float32."""
    p = float(np.float32(p)) if isinstance(p, float) else float(p)
    return numpy_dropout(key, x, p, broadcast_dims)


# ---- the mask -----------------------------------------------------------------------------------


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("shape", [(), (0, 3), (1000,), (6, 70, 33)])
def test_traced_p_is_float32(shape, p):
    x = normal_jax(shape)
    assert_same_bits(jax.jit(dropout)(KEY, x, p), expected_dropout(KEY, x, p))
    assert_same_bits(jax.jit(dropout)(KEY, x, jnp.float32(p)), expected_dropout(KEY, x, p))
    assert_same_bits(dropout(KEY, x, jnp.float32(p)), expected_dropout(KEY, x, p))


def test_masks_of_float32_and_float64_p_differ(enable_x64):
    key, p = jax.random.key(3), 1 - 2.0**-26  # p is rounded to 1 in float32
    x = jnp.ones(1 << 20, jnp.float32)
    assert_same_bits(jax.jit(dropout)(key, x, p), cd.Mask(x.shape, p, 3).apply(np.asarray(x)))
    assert_same_bits(jax.jit(dropout)(key, x, jnp.float32(p)), np.zeros(x.shape, np.float32))


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_p_of_each_dtype(dtype, enable_x64):
    p, x = jnp.asarray(0.3, dtype), normal_jax((1000,))
    expected = cd.Mask(1000, float(p), 7).apply(np.asarray(x))
    assert_same_bits(jax.jit(dropout)(KEY, x, p), expected)
    assert_same_bits(dropout(KEY, x, p), expected)


@pytest.mark.parametrize("p", [0, 1])
def test_p_can_be_int(p):
    x = normal_jax((100,))
    assert_same_bits(jax.jit(dropout)(KEY, x, p), expected_dropout(KEY, x, p))


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
@pytest.mark.parametrize("dims", [(), (0,), (1,)])
def test_p_0_returns_x_and_p_1_returns_zeros(dtype, dims, enable_x64):
    x = jnp.asarray([[np.nan, np.inf, -np.inf, -0.0, 1e-7, 3.0]] * 2, dtype)
    program = jax.jit(partial(dropout, broadcast_dims=dims))
    assert_same_bits(program(KEY, x, 0.0), np.asarray(x))
    assert_same_bits(program(KEY, x, 1.0), np.zeros(x.shape, x.dtype))


@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_result_with_broadcast_dims_equals_numpy(dims):
    x = normal_jax((6, 70, 33))
    program = jax.jit(partial(dropout, broadcast_dims=dims))
    assert_same_bits(program(KEY, x, 0.4), expected_dropout(KEY, x, 0.4, dims))


def test_program_is_traced_once_for_all_p():
    traced = []

    @jax.jit
    def program(x, p):
        traced.append(p)
        return dropout(KEY, x, p)

    x = normal_jax((100,))
    for p in PROBABILITIES:
        assert_same_bits(program(x, p), expected_dropout(KEY, x, p))
    assert len(traced) == 1


def count_compiled_programs(function):
    """Call the function and return how many programs XLA compiles during the call."""
    events = []

    def listener(event, *_, **__):
        events.append(event)

    monitoring.register_event_duration_secs_listener(listener)
    function()
    count = events.count("/jax/core/compile/backend_compile_duration")
    if hasattr(monitoring, "unregister_event_duration_listener"):  # JAX 0.8 or newer
        monitoring.unregister_event_duration_listener(listener)
    return count


def test_no_program_is_compiled_for_other_values_of_known_p():
    x = normal_jax((101,))
    assert count_compiled_programs(lambda: dropout(KEY, x, 0.5)) > 0
    assert count_compiled_programs(lambda: [dropout(KEY, x, p / 64) for p in range(1, 64)]) == 0


def test_p_in_pytree():
    parameters = {"weight": normal_jax((40, 30)), "p": 0.25}

    @jax.jit
    def loss(parameters, x):
        return (dropout(KEY, x @ parameters["weight"], parameters["p"]) ** 2).sum()

    x = normal_jax((20, 40), seed=2)
    expected = (expected_dropout(KEY, x @ parameters["weight"], 0.25) ** 2).sum()
    np.testing.assert_allclose(loss(parameters, x), expected, rtol=1e-5)

    def weight_alone(weight):
        return loss({**parameters, "weight": weight}, x)

    assert jax.grad(weight_alone)(parameters["weight"]).shape == (40, 30)


# ---- transformations ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
@eager_and_jit
def test_gradient_uses_same_mask(dtype, wrap, enable_x64):
    x, gy, p = normal_jax((3, 700), dtype), normal_jax((3, 700), dtype, seed=2), np.float32(0.3)

    @wrap
    def both(x, gy, p):
        y, pull = jax.vjp(lambda x: dropout(KEY, x, p), x)
        return y, pull(gy)[0], jax.jvp(lambda x: dropout(KEY, x, p), (x,), (gy,))[1]

    y, gx, forward = both(x, gy, p)
    assert_same_bits(y, expected_dropout(KEY, x, p))
    assert_same_bits(gx, expected_dropout(KEY, gy, p))
    assert_same_bits(forward, expected_dropout(KEY, gy, p))


def test_second_derivatives():
    x, p = normal_jax((50,)), jnp.float32(0.3)

    def loss(x, p):
        return (dropout(KEY, x, p) ** 3).sum()

    hessian = jax.jit(jax.hessian(loss))(x, p)
    scales = np.asarray(expected_dropout(KEY, np.ones(50, np.float32), 0.3))
    np.testing.assert_allclose(hessian, np.diag(6 * x * scales**3), rtol=1e-5)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_derivative_with_respect_to_p_raises(wrap):
    x = normal_jax((50,))
    message = r"no derivative with respect to p; pass jax.lax.stop_gradient\(p\)"

    @wrap
    def loss(p):
        return dropout(KEY, x, p).sum()

    for transform in (jax.grad, jax.value_and_grad, jax.jacfwd, jax.hessian):
        with pytest.raises(NotImplementedError, match=message):
            transform(loss)(0.3)
    with pytest.raises(NotImplementedError, match=message):
        jax.jvp(loss, (0.3,), (1.0,))
    stopped = jax.grad(lambda p: wrap(lambda p: loss(jax.lax.stop_gradient(p)))(p))
    assert stopped(0.3) == 0


# Each tuple contains 1 for each of key, x and p that has a batch axis, and 0 for the others.
BATCHES = [axes for axes in np.ndindex(2, 2, 2) if any(axes)]


@eager_and_jit
@pytest.mark.parametrize("dims", [(), (0,), (1,)])
@pytest.mark.parametrize("key_has, x_has, p_has", BATCHES)
def test_vmap_over_keys_arrays_and_p(wrap, dims, key_has, x_has, p_has):
    keys, xs, ps = jax.random.split(KEY, 4), normal_jax((4, 30, 50)), jnp.float32([0, 0.2, 0.5, 1])
    axes = [0 if batched else None for batched in (key_has, x_has, p_has)]
    given = [keys if key_has else KEY, xs if x_has else xs[0], ps if p_has else jnp.float32(0.3)]
    y = wrap(jax.vmap(partial(dropout, broadcast_dims=dims), axes))(*given)
    assert y.shape == xs.shape
    for i in range(4):
        one = [value if axis is None else value[i] for value, axis in zip(given, axes, strict=True)]
        assert_same_bits(y[i], expected_dropout(*one, dims))


def test_vmap_along_other_axes():
    keys, xs, ps = jax.random.split(KEY, 4), normal_jax((30, 4, 50)), jnp.float32([0, 0.2, 0.5, 1])
    y = jax.vmap(dropout, (0, 1, 0), out_axes=2)(keys, xs, ps)
    for i in range(4):
        assert_same_bits(y[:, :, i], expected_dropout(keys[i], xs[:, i], ps[i]))


@pytest.mark.parametrize(
    "outer, inner",
    [
        pair if (1, 1, 1) in pair else pytest.param(*pair, marks=pytest.mark.slow)
        for pair in product(BATCHES, BATCHES)
    ],
)
def test_vmap_of_vmap(outer, inner):
    """Test key, x and p with an outer batch axis, an inner batch axis, both or neither."""

    def select(numbers, pair):
        return tuple(number for number, has in zip(numbers, pair, strict=True) if has)

    def axes(batch):
        return [0 if has else None for has in batch]

    pairs = list(zip(outer, inner, strict=True))
    shapes = [select((2, 3), pair) for pair in pairs]
    keys = jax.random.split(KEY, shapes[0]) if shapes[0] else KEY
    xs = normal_jax((*shapes[1], 40, 9))
    ps = jnp.asarray(np.random.default_rng(2).random(shapes[2]), jnp.float32)
    inner_vmap = jax.vmap(partial(dropout, broadcast_dims=1), axes(inner))
    y = jax.jit(jax.vmap(inner_vmap, axes(outer)))(keys, xs, ps)
    assert y.shape == (2, 3, 40, 9)
    for i, j in np.ndindex(2, 3):
        key, x, p = (
            value[select((i, j), pair)] for value, pair in zip((keys, xs, ps), pairs, strict=True)
        )
        assert_same_bits(y[i, j], expected_dropout(key, x, p, (1,)))


@pytest.mark.parametrize("p", [0.3, None])
def test_cond_under_vmap(p):
    """In vmap, cond becomes select, and all operands of cond get a batch axis, even a known p."""
    keys, xs, ps = jax.random.split(KEY, 4), normal_jax((4, 30)), jnp.float32([0.1, 0.2, 0.5, 1])

    def dropout_or_identity(key, x, q):
        probability = q if p is None else p
        return jax.lax.cond(q > 0.3, lambda: dropout(key, x, probability), lambda: x)

    y = jax.jit(jax.vmap(dropout_or_identity))(keys, xs, ps)
    assert_same_bits(y[:2], np.asarray(xs[:2]))
    for i in (2, 3):
        probability = float(ps[i]) if p is None else p
        assert_same_bits(y[i], numpy_dropout(keys[i], xs[i], probability))


def test_gradient_of_vmap():
    keys, xs, ps = jax.random.split(KEY, 4), normal_jax((4, 50)), jnp.float32([0, 0.2, 0.5, 1])
    gradients = jax.vmap(jax.grad(lambda x, key, p: dropout(key, x, p).sum()))(xs, keys, ps)
    for i in range(4):
        assert_same_bits(gradients[i], expected_dropout(keys[i], np.ones(50, np.float32), ps[i]))


def test_scan_over_p():
    x, keys, ps = normal_jax((200,)), jax.random.split(KEY, 5), jnp.linspace(0, 0.5, 5)

    def forward(x, keys, ps):
        return jax.lax.scan(lambda x, step: (dropout(step[0], x, step[1]), None), x, (keys, ps))[0]

    expected = np.asarray(x)
    for key, p in zip(keys, ps, strict=True):
        expected = expected_dropout(key, expected, p)
    assert_same_bits(jax.jit(forward)(x, keys, ps), expected)
    gradient = jax.jit(jax.grad(lambda x: forward(x, keys, ps).sum()))(x)
    np.testing.assert_array_equal(gradient == 0, expected == 0)


def test_checkpoint_with_traced_p():
    x, p = normal_jax((300,)), jnp.float32(0.3)

    def loss(x, p, wrap):
        return jnp.sum(wrap(lambda x, p: jnp.sin(dropout(KEY, x, p)))(x, p) ** 2)

    plain, again = (jax.grad(partial(loss, wrap=wrap)) for wrap in (lambda f: f, jax.checkpoint))
    np.testing.assert_allclose(jax.jit(again)(x, p), plain(x, p), rtol=1e-5)


def test_inplace_uses_donated_memory():
    x = normal_jax((1000,)) + 0  # a new array: JAX 0.5 does not donate memory of NumPy
    expected, address = expected_dropout(KEY, x, 0.3), x.unsafe_buffer_pointer()
    y = jax.jit(partial(dropout, inplace=True), donate_argnums=1)(KEY, x, 0.3)
    assert y.unsafe_buffer_pointer() == address and x.is_deleted()
    assert_same_bits(y, expected)


def test_traced_p_under_disable_jit():
    x, ps = normal_jax((4, 100)), jnp.float32([0, 0.2, 0.5, 1])
    with jax.disable_jit():
        assert_same_bits(jax.jit(dropout)(KEY, x, 0.5), expected_dropout(KEY, x, 0.5))
        y = jax.vmap(dropout, (None, 0, 0))(KEY, x, ps)
    assert_same_bits(y[2], expected_dropout(KEY, x[2], ps[2]))


def test_eval_shape_with_traced_p():
    y = jax.eval_shape(dropout, KEY, jax.ShapeDtypeStruct((3, 4), "bfloat16"), 0.5)
    assert y.shape == (3, 4) and y.dtype == "bfloat16"


@pytest.mark.parametrize("shape", ["3, 40", "rows, 40", "rows, columns"])
@pytest.mark.parametrize("dims", [(), (0,), (1,)])
def test_exported_program_with_traced_p(shape, dims):
    """Test programs in which the lengths of no, one or both axes are known only at run time."""
    pytest.importorskip("absl", reason="JAX 0.5 exports with absl-py")
    pytest.importorskip("flatbuffers", reason="JAX writes programs with flatbuffers")
    from jax import export

    x = jax.ShapeDtypeStruct(export.symbolic_shape(shape), "float32")
    key, p = jax.ShapeDtypeStruct((2,), "uint32"), jax.ShapeDtypeStruct((), "float32")
    checks = [export.DisabledSafetyCheck.custom_call("cdropout")]
    program = jax.jit(partial(dropout, broadcast_dims=dims))
    saved = export.export(program, disabled_checks=checks)(key, x, p).serialize()
    x = normal_jax((3, 40))
    y = export.deserialize(saved).call(jax.random.key_data(KEY), x, jnp.float32(0.3))
    assert_same_bits(y, expected_dropout(KEY, x, 0.3, dims))


# ---- invalid p ----------------------------------------------------------------------------------


RUN_TIME_ERRORS = (ValueError, jax.errors.JaxRuntimeError)


@pytest.mark.parametrize("p", [-0.5, 1.5, np.inf, np.nan])
@pytest.mark.parametrize("runs_before", [0, 1, 3])
def test_traced_p_out_of_range_raises(p, runs_before):
    """JAX raises another type of error after the first call of a program."""
    message = f"dropout probability has to be between 0 and 1, but got {p:g}"
    x, ps = normal_jax((100,)), jnp.float32([0.5, p])
    program = jax.jit(lambda key, x, p: dropout(key, x, p))  # a new function is not compiled yet
    batch = jax.jit(jax.vmap(lambda key, x, p: dropout(key, x, p), (None, None, 0)))
    for run in range(runs_before):
        program(KEY, x, run / 4).block_until_ready()
        batch(KEY, x, jnp.float32([0.5, run / 4])).block_until_ready()
    for _ in range(2):
        with pytest.raises(RUN_TIME_ERRORS, match=message):
            program(KEY, x, p).block_until_ready()
        with pytest.raises(RUN_TIME_ERRORS, match=message):
            batch(KEY, x, ps).block_until_ready()
    with pytest.raises(RUN_TIME_ERRORS, match=message):
        jax.vmap(dropout, (None, None, 0))(KEY, x, ps).block_until_ready()
    assert_same_bits(program(KEY, x, 0.5), expected_dropout(KEY, x, 0.5))
    with pytest.raises(ValueError, match=message):
        dropout(KEY, x, jnp.float32(p))


@pytest.mark.parametrize(
    "p, found", [([0.5], r"float32 of shape \(1,\)"), (True, "bool of"), (0.5j, "complex64 of")]
)
def test_traced_p_of_other_type_raises(p, found):
    with pytest.raises(TypeError, match=f"p has to be a number between 0 and 1, but got {found}"):
        jax.jit(dropout)(KEY, normal_jax((100,)), jnp.asarray(p))


def test_key_as_p_raises():
    with pytest.raises(TypeError, match="p has to be a number between 0 and 1, but got key<fry>"):
        jax.jit(dropout)(KEY, normal_jax((100,)), KEY)
