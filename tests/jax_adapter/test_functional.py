"""Dropout for JAX draws the mask that its key names, under every transformation."""

from functools import partial

import numpy as np
import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip, slow

jax = import_or_skip("jax")
from jax import numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

from cdropout.jax import dropout, seed_and_call  # noqa: E402

KEY = jax.random.key(7)
DTYPES = ["float16", "bfloat16", "float32", "float64"]
SHAPES = [(), (1,), (0,), (3, 0, 2), (64,), (8191,), (3, 5, 7, 11), (1 << 17,)]


@pytest.fixture
def x64():
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        yield


def numbers(shape, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def expected(key, x, p, broadcast_dims=()):
    """The same by NumPy, with the mask that the key names."""
    x = np.asarray(x)
    axes = [axis % x.ndim for axis in broadcast_dims]
    drawn = [1 if axis in axes else length for axis, length in enumerate(x.shape)]
    keep = np.broadcast_to(np.asarray(cd.Mask(drawn, p, *seed_and_call(key))), x.shape)
    return cd.dropout_backward(x, keep, p=p)


def check(y, right):
    assert y.dtype == right.dtype and y.shape == right.shape
    assert np.asarray(y).tobytes() == np.asarray(right).tobytes()


# ---- the mask ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_is_the_one_that_the_key_names(shape, dtype, x64):
    x = numbers(shape, dtype)
    right = cd.Mask(shape, 0.3, seed=7, call=0).apply(np.asarray(x))
    check(dropout(KEY, x, 0.3), right)
    check(jax.jit(lambda key, x: dropout(key, x, 0.3))(KEY, x), right)


@pytest.mark.parametrize(
    "key, name",
    [
        (jax.random.key(7), (7, 0)),
        (jax.random.PRNGKey(7), (7, 0)),
        (jnp.array([1, 2], jnp.uint32), (1 << 32 | 2, 0)),
        (jnp.array([0xFFFFFFFF, 0xFFFFFFFE], jnp.uint32), (2**64 - 2, 0)),
        (jax.random.key(7, impl="rbg"), (7, 7)),
        (jnp.array([1, 2, 3, 4], jnp.uint32), (1 << 32 | 2, 3 << 32 | 4)),
    ],
)
def test_what_a_key_names(key, name):
    assert seed_and_call(key) == name
    x = numbers((1000,))
    check(dropout(key, x, 0.5), cd.Mask(1000, 0.5, *name).apply(np.asarray(x)))


@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (-1,), (0, 2), (1, 2), (0, 1, 2)])
def test_broadcast_dims(dims):
    x = numbers((6, 70, 33))
    check(dropout(KEY, x, 0.4, dims), expected(KEY, x, 0.4, dims))
    right = cd.dropout(np.asarray(x), 0.4, rng=7, broadcast_dims=dims)
    check(dropout(KEY, x, 0.4, broadcast_dims=dims), right)


def test_an_int_is_one_broadcast_dim():
    x = numbers((6, 70))
    check(dropout(KEY, x, 0.4, -1), expected(KEY, x, 0.4, (-1,)))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_the_ends_of_p(wrap):
    x = numbers((50,)).at[3].set(jnp.nan)
    check(wrap(lambda x: dropout(KEY, x, 0))(x), np.asarray(x))
    check(wrap(lambda x: dropout(KEY, x, 1))(x), np.zeros(50, np.float32))
    assert not jax.grad(lambda x: dropout(KEY, x, 1).sum())(x).any()


def test_a_dropped_nan_is_zero():
    y = dropout(KEY, jnp.full(1000, jnp.nan), 0.5)
    check(jnp.isnan(y), np.asarray(cd.Mask(1000, 0.5, 7)))


def test_numpy_arrays_and_sequences_of_operations():
    x = np.linspace(0, 1, 1000, dtype=np.float32)
    check(dropout(KEY, x, 0.5), expected(KEY, x, 0.5))
    program = jax.jit(lambda key, x: jnp.tanh(dropout(key, x.T * 2, 0.5)).sum(0))
    x = numbers((40, 50))
    right = np.tanh(expected(KEY, np.asarray(x.T * 2), 0.5)).sum(0)
    np.testing.assert_allclose(program(KEY, x), right, rtol=1e-5, atol=1e-5)


def test_without_jit():
    x = numbers((100,))
    with jax.disable_jit():
        check(dropout(KEY, x, 0.5), expected(KEY, x, 0.5))
        gradient = jax.grad(lambda x: dropout(KEY, x, 0.5).sum())(x)
    check(gradient, expected(KEY, np.ones(100, np.float32), 0.5))


# ---- derivatives --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_the_gradient_goes_through_the_same_mask(dtype, wrap, x64):
    x, gy = numbers((3, 700), dtype), numbers((3, 700), dtype, seed=1)
    y, pull = jax.vjp(wrap(lambda x: dropout(KEY, x, 0.3)), x)
    check(y, expected(KEY, x, 0.3))
    check(pull(gy)[0], expected(KEY, gy, 0.3))
    y, gx = jax.jvp(wrap(lambda x: dropout(KEY, x, 0.3)), (x,), (gy,))
    check(y, expected(KEY, x, 0.3))
    check(gx, expected(KEY, gy, 0.3))


@pytest.mark.parametrize("order", [2, *slow(3)])
def test_derivatives_of_any_order(x64, order):
    x = numbers((4, 5), "float64")
    check_grads(lambda x: dropout(KEY, jnp.sin(x), 0.3, (1,)) ** 2, (x,), order)


def test_only_the_key_is_kept_for_backward():
    _, pull = jax.vjp(lambda x: dropout(KEY, x, 0.3), numbers((1000, 1000)))
    assert sum(leaf.size for leaf in jax.tree.leaves(pull)) <= 4


def count_calls(jaxpr):
    return str(jaxpr).count("cdropout[")


def test_checkpoint_draws_the_same_mask_again():
    x = numbers((300,))

    def loss(x, key, wrap):
        return jnp.sum(wrap(lambda x: jnp.sin(dropout(key, x, 0.3)))(x) ** 2)

    plain = jax.grad(partial(loss, wrap=lambda f: f))
    again = jax.grad(partial(loss, wrap=jax.checkpoint))
    assert count_calls(jax.make_jaxpr(again)(x, KEY)) > count_calls(jax.make_jaxpr(plain)(x, KEY))
    for wrap in (lambda f: f, jax.jit):
        np.testing.assert_array_equal(wrap(again)(x, KEY) == 0, expected(KEY, x, 0.3) == 0)
        np.testing.assert_allclose(wrap(again)(x, KEY), plain(x, KEY), rtol=1e-5)


# ---- loops and batches --------------------------------------------------------------------------


def test_scan_draws_a_mask_a_step():
    x, keys = numbers((200,)), jax.random.split(KEY, 5)

    def forward(x, keys):
        return jax.lax.scan(lambda x, key: (dropout(key, x, 0.2), x), x, keys)[0]

    right = np.asarray(x)
    for key in keys:
        right = expected(key, right, 0.2)
    check(jax.jit(forward)(x, keys), right)
    gradient = jax.jit(jax.grad(lambda x: forward(x, keys).sum()))(x)
    np.testing.assert_array_equal(gradient == 0, right == 0)


def stack(keys, xs, p, dims=()):
    return np.stack([expected(key, x, p, dims) for key, x in zip(keys, xs, strict=True)])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
@pytest.mark.parametrize("dims", [(), (0,), (1,)])
def test_vmap_over_keys_and_arrays(wrap, dims):
    keys, xs = jax.random.split(KEY, 4), numbers((4, 30, 50))
    drop = wrap(jax.vmap(lambda key, x: dropout(key, x, 0.3, dims)))
    check(drop(keys, xs), stack(keys, xs, 0.3, dims))
    check(drop(jax.random.key_data(keys), xs), stack(keys, xs, 0.3, dims))
    last = wrap(jax.vmap(lambda key, x: dropout(key, x, 0.3, dims), in_axes=(0, 2), out_axes=1))
    y = last(keys, jnp.moveaxis(xs, 0, 2))
    check(jnp.moveaxis(y, 1, 0), stack(keys, xs, 0.3, dims))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_vmap_over_one_of_them(wrap):
    keys, xs = jax.random.split(KEY, 4), numbers((4, 30, 50))
    shared = wrap(jax.vmap(lambda key, x: dropout(key, x, 0.3), in_axes=(None, 0)))
    check(shared(KEY, xs), stack([KEY] * 4, xs, 0.3))
    each = wrap(jax.vmap(lambda key, x: dropout(key, x, 0.3), in_axes=(0, None)))
    check(each(keys, xs[0]), stack(keys, [xs[0]] * 4, 0.3))


def test_vmap_of_vmap():
    keys, xs = jax.random.split(KEY, (2, 3)), numbers((2, 5, 3, 40, 9))
    outer = jax.vmap(jax.vmap(jax.vmap(partial(dropout, p=0.3, broadcast_dims=1)), (None, 0)))
    y = jax.jit(outer)(keys, xs)
    for i, j, k in np.ndindex(2, 5, 3):
        check(y[i, j, k], expected(keys[i, k], xs[i, j, k], 0.3, (1,)))


def test_the_gradient_of_a_vmap():
    keys, xs, gy = jax.random.split(KEY, 4), numbers((4, 50)), numbers((4, 50), seed=1)
    _, pull = jax.vjp(jax.vmap(partial(dropout, p=0.3)), keys, xs)
    check(pull(gy)[1], stack(keys, gy, 0.3))
    gradients = jax.vmap(jax.grad(lambda x, key: (dropout(key, x, 0.3) * x).sum()))(xs, keys)
    np.testing.assert_array_equal(gradients == 0, stack(keys, xs, 0.3) == 0)


# ---- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1000,), (30, 40)])
def test_a_donated_array_lends_its_memory(shape):
    x = numbers(shape)
    right, address = expected(KEY, x, 0.3), x.unsafe_buffer_pointer()
    drop = jax.jit(partial(dropout, p=0.3, inplace=True), donate_argnums=1)
    y = drop(KEY, x)
    assert y.unsafe_buffer_pointer() == address and x.is_deleted()
    check(y, right)


def test_in_place_there_is_no_second_array():
    """Without the alias, XLA would copy the result to the memory that was donated."""
    x = numbers((1000,))
    drop = jax.jit(partial(dropout, p=0.3, inplace=True), donate_argnums=1)
    memory = drop.lower(KEY, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < x.nbytes


def test_inplace_spares_an_array_that_is_needed():
    x = numbers((1000,))
    before = np.array(x)
    y, z = jax.jit(lambda x: (dropout(KEY, x, 0.3, inplace=True), x + 1))(x)
    check(x, before)
    check(y, expected(KEY, before, 0.3))
    check(z, before + 1)


def test_calls_from_many_threads():
    from concurrent.futures import ThreadPoolExecutor

    keys, x = jax.random.split(KEY, 16), numbers((100_000,))
    drop = jax.jit(partial(dropout, p=0.3))
    with ThreadPoolExecutor(4) as pool:
        for key, y in zip(keys, pool.map(drop, keys, [x] * 16), strict=True):
            check(y, expected(key, x, 0.3))
