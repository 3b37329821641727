"""Tests that the modules of cdropout.flax apply dropout with the keys that Flax provides."""

import numpy as np
import pytest

from ..helpers.arrays import assert_same_bits
from ..helpers.requirements import import_or_skip
from ..helpers.subprocess_runner import run

jax = import_or_skip("jax")
flax = import_or_skip("flax")
from flax import linen, nnx  # noqa: E402
from jax import numpy as jnp  # noqa: E402

from cdropout.flax import Dropout, LinenDropout  # noqa: E402
from cdropout.jax import dropout  # noqa: E402

from ..helpers.jax_arrays import KEY, normal_jax  # noqa: E402

X = normal_jax((20, 30))


# ---- nnx ----------------------------------------------------------------------------------------


def next_keys(module, count):
    """Return the keys that a module will draw next; draw them from a copy of the stream."""
    stream = nnx.clone(module.rngs)
    return [stream() for _ in range(count)]


def test_nnx_module_draws_one_mask_per_call():
    module = Dropout(0.3, rngs=nnx.Rngs(0))
    first, second = next_keys(module, 2)
    assert_same_bits(module(X), dropout(first, X, 0.3))
    assert_same_bits(module(X), dropout(second, X, 0.3))


def test_nnx_module_with_arguments():
    module = Dropout(0.3, broadcast_dims=[-1], rng_collection="noise", rngs=nnx.Rngs(noise=3))
    (key,) = next_keys(module, 1)
    assert_same_bits(module(X), dropout(key, X, 0.3, (-1,)))
    assert_same_bits(module(X, rngs=KEY), dropout(KEY, X, 0.3, (-1,)))
    assert_same_bits(
        module(X, rngs=nnx.Rngs(noise=5)), dropout(nnx.Rngs(noise=5).noise(), X, 0.3, (-1,))
    )
    assert_same_bits(
        module(X, rngs=nnx.Rngs(noise=5).noise), dropout(nnx.Rngs(noise=5).noise(), X, 0.3, -1)
    )


def test_nnx_module_in_evaluation():
    module = Dropout(0.3, rngs=nnx.Rngs(0))
    model = nnx.Sequential(module)
    model.eval()
    assert_same_bits(model(X), X)
    assert (module(X, deterministic=False) == 0).any()
    model.train()
    assert (model(X) == 0).any()
    assert_same_bits(module(X, deterministic=True), X)
    assert_same_bits(Dropout(0.0)(X), X)
    assert_same_bits(Dropout(1.0, rngs=nnx.Rngs(0))(X), jnp.zeros_like(X))


def test_nnx_module_without_valid_key_or_rate_raises():
    with pytest.raises(ValueError, match="needs a key: pass rngs= to the constructor or the call"):
        Dropout(0.3)(X)
    with pytest.raises(ValueError, match="needs deterministic=, in the constructor or in"):
        Dropout(0.3, deterministic=None, rngs=nnx.Rngs(0))(X)
    with pytest.raises(TypeError, match="key has to be a JAX key, .* but got str"):
        Dropout(0.3)(X, rngs="noise")
    with pytest.raises(ValueError, match="has to be between 0 and 1, but got 2"):
        Dropout(2, rngs=nnx.Rngs(0))(X)


def test_nnx_module_with_traced_rate():
    module = Dropout(jnp.float32(0.3), rngs=nnx.Rngs(0))
    keys = next_keys(module, 3)
    call = nnx.jit(lambda module, x: module(x))
    for key, rate in zip(keys, [0.3, 0.0, 1.0], strict=True):
        module.rate = jnp.float32(rate)
        assert_same_bits(call(module, X), dropout(key, X, float(np.float32(rate))))
    with_key = jax.jit(lambda x, rate: Dropout(rate)(x, rngs=KEY))
    assert_same_bits(with_key(X, 0.5), dropout(KEY, X, 0.5))
    with pytest.raises(ValueError, match="needs a key: pass rngs="):
        jax.jit(lambda x, rate: Dropout(rate)(x))(X, 0.0)


def test_nnx_training_under_jit():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(30, 8, rngs=rngs)
            self.dropout = Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dropout(self.linear(x))

    network = Network(nnx.Rngs(0))
    keys = next_keys(network.dropout, 2)

    @nnx.jit
    def step(network, x):
        return nnx.value_and_grad(lambda network: network(x).sum())(network)

    for key in keys:
        _, gradient = step(network, X)
        upstream = dropout(key, jnp.ones((20, 8)), 0.5)
        np.testing.assert_allclose(
            np.asarray(gradient["linear"]["kernel"][...]), X.T @ upstream, rtol=1e-4, atol=1e-4
        )


# ---- linen --------------------------------------------------------------------------------------


class Model(linen.Module):
    """Model that contains a dropout module named ``noise``."""

    options: tuple = ()

    @linen.compact
    def __call__(self, x):
        return LinenDropout(0.3, name="noise", deterministic=False, **dict(self.options))(x)


class KeyOf(linen.Module):
    """Model that returns the key that a module named ``noise`` draws."""

    collection: str = "dropout"

    @linen.compact
    def __call__(self, x):
        class Inner(linen.Module):
            @linen.compact
            def __call__(inner, x):
                return inner.make_rng(self.collection)

        return Inner(name="noise")(x)


@pytest.mark.parametrize("collection", ["dropout", "noise"])
def test_linen_module_draws_key_from_named_stream(collection):
    rngs = {collection: KEY}
    key = KeyOf(collection).apply({}, X, rngs=rngs)
    options = (("broadcast_dims", (0,)), ("rng_collection", collection))
    model = Model(options)
    assert_same_bits(model.apply({}, X, rngs=rngs), dropout(key, X, 0.3, (0,)))
    assert_same_bits(jax.jit(model.apply)({}, X, rngs=rngs), dropout(key, X, 0.3, (0,)))


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_linen_module_with_traced_rate(rate):
    program = jax.jit(lambda x, rate: LinenDropout(rate, deterministic=False).apply({}, x, rng=KEY))
    assert_same_bits(program(X, rate), dropout(KEY, X, rate))


def test_linen_module_with_arguments():
    assert_same_bits(LinenDropout(0.3).apply({}, X, deterministic=True), X)
    assert_same_bits(LinenDropout(0.3, deterministic=True).apply({}, X), X)
    assert_same_bits(LinenDropout(0.0, deterministic=False).apply({}, X), X)
    assert_same_bits(
        LinenDropout(0.3, deterministic=False).apply({}, X, rng=KEY), dropout(KEY, X, 0.3)
    )
    assert_same_bits(
        LinenDropout(1.0).apply({}, X, deterministic=False, rng=KEY), jnp.zeros_like(X)
    )


def test_linen_module_raises_errors_of_flax():
    with pytest.raises(ValueError, match="deterministic"):
        LinenDropout(0.3).apply({}, X)
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        LinenDropout(0.3).apply({}, X, deterministic=False)


# ---- without Flax -------------------------------------------------------------------------------


def test_import_without_flax_raises_with_the_install_command():
    status, _, errors = run("import sys; sys.modules['flax'] = None; import cdropout.flax")
    assert status == 1
    assert errors.endswith("cdropout.flax needs Flax: run `pip install 'cdropout[flax]'`")
