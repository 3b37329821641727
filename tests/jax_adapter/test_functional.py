"""Tests of cdropout.jax.dropout: masks, derivatives, transformations and memory."""

from functools import partial

import numpy as np
import pytest

import cdropout as cd

from ..helpers.arrays import DTYPE_NAMES, assert_same_bits
from ..helpers.requirements import import_or_skip, slow
from ..helpers.threads import run_in_threads

jax = import_or_skip("jax")
from jax import numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

from cdropout.jax import dropout, seed_and_call  # noqa: E402

from ..helpers.jax_arrays import KEY, eager_and_jit, normal_jax, numpy_dropout  # noqa: E402

SHAPES = [(), (1,), (0,), (3, 0, 2), (64,), (8191,), (3, 5, 7, 11), (1 << 17,)]


# ---- the mask -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_key_determines_mask(shape, dtype, enable_x64):
    x = normal_jax(shape, dtype)
    expected = cd.Mask(shape, 0.3, seed=7, call=0).apply(np.asarray(x))
    assert_same_bits(dropout(KEY, x, 0.3), expected)
    assert_same_bits(jax.jit(lambda key, x: dropout(key, x, 0.3))(KEY, x), expected)


@pytest.mark.parametrize(
    "key, seed_and_call_number",
    [
        (jax.random.key(7), (7, 0)),
        (jax.random.PRNGKey(7), (7, 0)),
        (jnp.array([1, 2], jnp.uint32), (1 << 32 | 2, 0)),
        (jnp.array([0xFFFFFFFF, 0xFFFFFFFE], jnp.uint32), (2**64 - 2, 0)),
        (jax.random.key(7, impl="rbg"), (7, 7)),
        (jnp.array([1, 2, 3, 4], jnp.uint32), (1 << 32 | 2, 3 << 32 | 4)),
    ],
)
def test_seed_and_call_of_key(key, seed_and_call_number):
    assert seed_and_call(key) == seed_and_call_number
    x = normal_jax((1000,))
    assert_same_bits(
        dropout(key, x, 0.5), cd.Mask(1000, 0.5, *seed_and_call_number).apply(np.asarray(x))
    )


@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (-1,), (0, 2), (1, 2), (0, 1, 2)])
def test_result_with_broadcast_dims_equals_numpy(dims):
    x = normal_jax((6, 70, 33))
    assert_same_bits(dropout(KEY, x, 0.4, dims), numpy_dropout(KEY, x, 0.4, dims))
    expected = cd.dropout(np.asarray(x), 0.4, rng=7, broadcast_dims=dims)
    assert_same_bits(dropout(KEY, x, 0.4, broadcast_dims=dims), expected)


def test_broadcast_dims_can_be_int():
    x = normal_jax((6, 70))
    assert_same_bits(dropout(KEY, x, 0.4, -1), numpy_dropout(KEY, x, 0.4, (-1,)))


@eager_and_jit
def test_p_0_returns_x_and_p_1_returns_zeros(wrap):
    x = normal_jax((50,)).at[3].set(jnp.nan)
    assert_same_bits(wrap(lambda x: dropout(KEY, x, 0))(x), np.asarray(x))
    assert_same_bits(wrap(lambda x: dropout(KEY, x, 1))(x), np.zeros(50, np.float32))
    assert not jax.grad(lambda x: dropout(KEY, x, 1).sum())(x).any()


def test_dropped_nan_becomes_zero():
    y = dropout(KEY, jnp.full(1000, jnp.nan), 0.5)
    assert_same_bits(jnp.isnan(y), np.asarray(cd.Mask(1000, 0.5, 7)))


def test_dropout_of_numpy_array_and_in_compiled_program():
    x = np.linspace(0, 1, 1000, dtype=np.float32)
    assert_same_bits(dropout(KEY, x, 0.5), numpy_dropout(KEY, x, 0.5))
    program = jax.jit(lambda key, x: jnp.tanh(dropout(key, x.T * 2, 0.5)).sum(0))
    x = normal_jax((40, 50))
    expected = np.tanh(numpy_dropout(KEY, np.asarray(x.T * 2), 0.5)).sum(0)
    np.testing.assert_allclose(program(KEY, x), expected, rtol=1e-5, atol=1e-5)


def test_dropout_under_disable_jit():
    x = normal_jax((100,))
    with jax.disable_jit():
        assert_same_bits(dropout(KEY, x, 0.5), numpy_dropout(KEY, x, 0.5))
        gradient = jax.grad(lambda x: dropout(KEY, x, 0.5).sum())(x)
    assert_same_bits(gradient, numpy_dropout(KEY, np.ones(100, np.float32), 0.5))


# ---- derivatives --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
@eager_and_jit
def test_gradient_uses_same_mask(dtype, wrap, enable_x64):
    x, gy = normal_jax((3, 700), dtype), normal_jax((3, 700), dtype, seed=2)
    y, pull = jax.vjp(wrap(lambda x: dropout(KEY, x, 0.3)), x)
    assert_same_bits(y, numpy_dropout(KEY, x, 0.3))
    assert_same_bits(pull(gy)[0], numpy_dropout(KEY, gy, 0.3))
    y, gx = jax.jvp(wrap(lambda x: dropout(KEY, x, 0.3)), (x,), (gy,))
    assert_same_bits(y, numpy_dropout(KEY, x, 0.3))
    assert_same_bits(gx, numpy_dropout(KEY, gy, 0.3))


@pytest.mark.parametrize("order", [2, *slow(3)])
def test_higher_derivatives(enable_x64, order):
    x = normal_jax((4, 5), "float64")
    check_grads(lambda x: dropout(KEY, jnp.sin(x), 0.3, (1,)) ** 2, (x,), order)


def test_vjp_stores_only_key():
    _, pull = jax.vjp(lambda x: dropout(KEY, x, 0.3), normal_jax((1000, 1000)))
    assert sum(leaf.size for leaf in jax.tree.leaves(pull)) <= 4


def count_primitives(jaxpr):
    return str(jaxpr).count("cdropout[")


def test_checkpoint_redraws_mask():
    x = normal_jax((300,))

    def loss(x, key, wrap):
        return jnp.sum(wrap(lambda x: jnp.sin(dropout(key, x, 0.3)))(x) ** 2)

    plain = jax.grad(partial(loss, wrap=lambda f: f))
    again = jax.grad(partial(loss, wrap=jax.checkpoint))
    programs = [jax.make_jaxpr(gradient)(x, KEY) for gradient in (again, plain)]
    assert count_primitives(programs[0]) > count_primitives(programs[1])
    for wrap in (lambda f: f, jax.jit):
        np.testing.assert_array_equal(wrap(again)(x, KEY) == 0, numpy_dropout(KEY, x, 0.3) == 0)
        np.testing.assert_allclose(wrap(again)(x, KEY), plain(x, KEY), rtol=1e-5)


# ---- loops and batches --------------------------------------------------------------------------


def test_scan_draws_one_mask_per_step():
    x, keys = normal_jax((200,)), jax.random.split(KEY, 5)

    def forward(x, keys):
        return jax.lax.scan(lambda x, key: (dropout(key, x, 0.2), x), x, keys)[0]

    expected = np.asarray(x)
    for key in keys:
        expected = numpy_dropout(key, expected, 0.2)
    assert_same_bits(jax.jit(forward)(x, keys), expected)
    gradient = jax.jit(jax.grad(lambda x: forward(x, keys).sum()))(x)
    np.testing.assert_array_equal(gradient == 0, expected == 0)


def numpy_dropouts(keys, xs, p, dims=()):
    return np.stack([numpy_dropout(key, x, p, dims) for key, x in zip(keys, xs, strict=True)])


@eager_and_jit
@pytest.mark.parametrize("dims", [(), (0,), (1,)])
def test_vmap_over_keys_and_arrays(wrap, dims):
    keys, xs = jax.random.split(KEY, 4), normal_jax((4, 30, 50))
    program = wrap(jax.vmap(lambda key, x: dropout(key, x, 0.3, dims)))
    assert_same_bits(program(keys, xs), numpy_dropouts(keys, xs, 0.3, dims))
    assert_same_bits(program(jax.random.key_data(keys), xs), numpy_dropouts(keys, xs, 0.3, dims))
    last = wrap(jax.vmap(lambda key, x: dropout(key, x, 0.3, dims), in_axes=(0, 2), out_axes=1))
    y = last(keys, jnp.moveaxis(xs, 0, 2))
    assert_same_bits(jnp.moveaxis(y, 1, 0), numpy_dropouts(keys, xs, 0.3, dims))


@eager_and_jit
def test_vmap_over_keys_or_arrays(wrap):
    keys, xs = jax.random.split(KEY, 4), normal_jax((4, 30, 50))
    over_arrays = wrap(jax.vmap(lambda key, x: dropout(key, x, 0.3), in_axes=(None, 0)))
    assert_same_bits(over_arrays(KEY, xs), numpy_dropouts([KEY] * 4, xs, 0.3))
    over_keys = wrap(jax.vmap(lambda key, x: dropout(key, x, 0.3), in_axes=(0, None)))
    assert_same_bits(over_keys(keys, xs[0]), numpy_dropouts(keys, [xs[0]] * 4, 0.3))


def test_vmap_of_vmap():
    keys, xs = jax.random.split(KEY, (2, 3)), normal_jax((2, 5, 3, 40, 9))
    outer = jax.vmap(jax.vmap(jax.vmap(partial(dropout, p=0.3, broadcast_dims=1)), (None, 0)))
    y = jax.jit(outer)(keys, xs)
    for i, j, k in np.ndindex(2, 5, 3):
        assert_same_bits(y[i, j, k], numpy_dropout(keys[i, k], xs[i, j, k], 0.3, (1,)))


def test_gradient_of_vmap():
    keys, xs, gy = jax.random.split(KEY, 4), normal_jax((4, 50)), normal_jax((4, 50), seed=2)
    _, pull = jax.vjp(jax.vmap(partial(dropout, p=0.3)), keys, xs)
    assert_same_bits(pull(gy)[1], numpy_dropouts(keys, gy, 0.3))
    gradients = jax.vmap(jax.grad(lambda x, key: (dropout(key, x, 0.3) * x).sum()))(xs, keys)
    np.testing.assert_array_equal(gradients == 0, numpy_dropouts(keys, xs, 0.3) == 0)


# ---- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1000,), (30, 40)])
def test_inplace_uses_donated_memory(shape):
    x = normal_jax(shape) + 0  # a new array: JAX 0.5 does not donate memory of NumPy
    expected, address = numpy_dropout(KEY, x, 0.3), x.unsafe_buffer_pointer()
    program = jax.jit(partial(dropout, p=0.3, inplace=True), donate_argnums=1)
    y = program(KEY, x)
    assert y.unsafe_buffer_pointer() == address and x.is_deleted()
    assert_same_bits(y, expected)


def test_inplace_allocates_no_second_array():
    """If x and the result were not aliases, XLA would allocate a temporary array."""
    x = normal_jax((1000,))
    program = jax.jit(partial(dropout, p=0.3, inplace=True), donate_argnums=1)
    memory = program.lower(KEY, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < x.nbytes


def test_inplace_preserves_array_that_is_used_later():
    x = normal_jax((1000,))
    before = np.array(x)
    y, z = jax.jit(lambda x: (dropout(KEY, x, 0.3, inplace=True), x + 1))(x)
    assert_same_bits(x, before)
    assert_same_bits(y, numpy_dropout(KEY, before, 0.3))
    assert_same_bits(z, before + 1)


def test_calls_from_several_threads_give_correct_results():
    keys, x = jax.random.split(KEY, 16), normal_jax((100_000,))
    program = jax.jit(partial(dropout, p=0.3))
    for key, y in zip(keys, run_in_threads(16, lambda i: program(keys[i], x)), strict=True):
        assert_same_bits(y, numpy_dropout(key, x, 0.3))
