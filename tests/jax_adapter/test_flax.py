"""The modules for Flax draw as the functions do, with keys from where Flax's own take them."""

import subprocess
import sys

import numpy as np
import pytest

from ..helpers.requirements import import_or_skip

jax = import_or_skip("jax")
flax = import_or_skip("flax")
from flax import linen, nnx  # noqa: E402
from jax import numpy as jnp  # noqa: E402

from cdropout.flax import Dropout, LinenDropout  # noqa: E402
from cdropout.jax import dropout  # noqa: E402

X = jnp.asarray(np.random.default_rng(0).standard_normal((20, 30)), jnp.float32)
KEY = jax.random.key(7)


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# ---- nnx ----------------------------------------------------------------------------------------


def keys_of(module, count):
    """The keys that Flax's own module would draw next, from a copy of its stream."""
    stream = nnx.clone(module.rngs)
    return [stream() for _ in range(count)]


def test_nnx_draws_a_mask_a_call():
    module = Dropout(0.3, rngs=nnx.Rngs(0))
    first, second = keys_of(module, 2)
    same(module(X), dropout(first, X, 0.3))
    same(module(X), dropout(second, X, 0.3))


def test_nnx_takes_its_arguments():
    module = Dropout(0.3, broadcast_dims=[-1], rng_collection="noise", rngs=nnx.Rngs(noise=3))
    (key,) = keys_of(module, 1)
    same(module(X), dropout(key, X, 0.3, (-1,)))
    same(module(X, rngs=KEY), dropout(KEY, X, 0.3, (-1,)))
    same(module(X, rngs=nnx.Rngs(noise=5)), dropout(nnx.Rngs(noise=5).noise(), X, 0.3, (-1,)))
    same(module(X, rngs=nnx.Rngs(noise=5).noise), dropout(nnx.Rngs(noise=5).noise(), X, 0.3, -1))


def test_nnx_evaluation():
    module = Dropout(0.3, rngs=nnx.Rngs(0))
    model = nnx.Sequential(module)
    model.eval()
    same(model(X), X)
    assert (module(X, deterministic=False) == 0).any()
    model.train()
    assert (model(X) == 0).any()
    same(module(X, deterministic=True), X)
    same(Dropout(0.0)(X), X)
    same(Dropout(1.0, rngs=nnx.Rngs(0))(X), jnp.zeros_like(X))


def test_nnx_errors():
    with pytest.raises(ValueError, match="needs a key: pass rngs= to the constructor or the call"):
        Dropout(0.3)(X)
    with pytest.raises(ValueError, match="needs deterministic=, in the constructor or in"):
        Dropout(0.3, deterministic=None, rngs=nnx.Rngs(0))(X)
    with pytest.raises(TypeError, match="key has to be a JAX key, .* but got str"):
        Dropout(0.3)(X, rngs="noise")
    with pytest.raises(ValueError, match="has to be between 0 and 1, but got 2"):
        Dropout(2, rngs=nnx.Rngs(0))(X)


def test_nnx_takes_a_traced_rate():
    module = Dropout(jnp.float32(0.3), rngs=nnx.Rngs(0))
    keys = keys_of(module, 3)
    draw = nnx.jit(lambda module, x: module(x))
    for key, rate in zip(keys, [0.3, 0.0, 1.0], strict=True):
        module.rate = jnp.float32(rate)
        same(draw(module, X), dropout(key, X, float(np.float32(rate))))
    without = jax.jit(lambda x, rate: Dropout(rate)(x, rngs=KEY))
    same(without(X, 0.5), dropout(KEY, X, 0.5))
    with pytest.raises(ValueError, match="needs a key: pass rngs="):
        jax.jit(lambda x, rate: Dropout(rate)(x))(X, 0.0)


def test_nnx_trains_under_jit():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(30, 8, rngs=rngs)
            self.dropout = Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dropout(self.linear(x))

    network = Network(nnx.Rngs(0))
    keys = keys_of(network.dropout, 2)

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
    """Has the dropout under a name."""

    options: tuple = ()

    @linen.compact
    def __call__(self, x):
        return LinenDropout(0.3, name="noise", deterministic=False, **dict(self.options))(x)


class KeyOf(linen.Module):
    """Returns the key that a module of that name draws."""

    collection: str = "dropout"

    @linen.compact
    def __call__(self, x):
        class Inner(linen.Module):
            @linen.compact
            def __call__(inner, x):
                return inner.make_rng(self.collection)

        return Inner(name="noise")(x)


@pytest.mark.parametrize("collection", ["dropout", "mine"])
def test_linen_draws_from_its_stream(collection):
    rngs = {collection: KEY}
    key = KeyOf(collection).apply({}, X, rngs=rngs)
    options = (("broadcast_dims", (0,)), ("rng_collection", collection))
    model = Model(options)
    same(model.apply({}, X, rngs=rngs), dropout(key, X, 0.3, (0,)))
    same(jax.jit(model.apply)({}, X, rngs=rngs), dropout(key, X, 0.3, (0,)))


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_linen_takes_a_traced_rate(rate):
    drop = jax.jit(lambda x, rate: LinenDropout(rate, deterministic=False).apply({}, x, rng=KEY))
    same(drop(X, rate), dropout(KEY, X, rate))


def test_linen_takes_its_arguments():
    same(LinenDropout(0.3).apply({}, X, deterministic=True), X)
    same(LinenDropout(0.3, deterministic=True).apply({}, X), X)
    same(LinenDropout(0.0, deterministic=False).apply({}, X), X)
    same(LinenDropout(0.3, deterministic=False).apply({}, X, rng=KEY), dropout(KEY, X, 0.3))
    same(LinenDropout(1.0).apply({}, X, deterministic=False, rng=KEY), jnp.zeros_like(X))


def test_linen_errors_are_those_of_flax():
    with pytest.raises(ValueError, match="deterministic"):
        LinenDropout(0.3).apply({}, X)
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        LinenDropout(0.3).apply({}, X, deterministic=False)


# ---- without Flax -------------------------------------------------------------------------------


def test_without_flax():
    code = "import sys; sys.modules['flax'] = None; import cdropout.flax"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("cdropout.flax needs Flax: run `pip install 'cdropout[flax]'`\n")
