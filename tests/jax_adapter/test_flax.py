"""Tests that the modules of cdropout.flax apply dropout with the keys that Flax provides."""

import inspect

import numpy as np
import pytest

from ..helpers.arrays import assert_same_bits
from ..helpers.requirements import import_or_skip, slow
from ..helpers.subprocess_runner import run

jax = import_or_skip("jax")
flax = import_or_skip("flax")
from flax import linen, nnx  # noqa: E402
from jax import numpy as jnp  # noqa: E402

import cdropout.flax.linen as cdropout_linen  # noqa: E402
from cdropout.flax import Dropout, LinenDropout, dot_product_attention  # noqa: E402
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


@pytest.mark.parametrize("rate", [0.0, 1.0, 0, 1, np.float32(1)])
def test_rate_0_or_1_uses_no_key(rate):
    expected = jnp.zeros_like(X) if rate else X
    assert_same_bits(Dropout(rate)(X), expected)
    module = Dropout(rate, rngs=nnx.Rngs(0))
    assert_same_bits(module(X), expected)
    assert module.rngs.count[...] == 0
    assert_same_bits(LinenDropout(rate, deterministic=False).apply({}, X), expected)


def error_of(call, *args, **options):
    """Return the exception that a call raises."""
    with pytest.raises((ValueError, TypeError, AssertionError)) as caught:
        call(*args, **options)
    return caught.value


@pytest.mark.parametrize(
    "constructor, call, message",
    [
        ({}, {}, "`deterministic` is False, but no `rngs` argument was provided to Dropout"),
        ({"deterministic": None}, {}, "No `deterministic` argument was provided to Dropout"),
        ({}, {"rngs": "noise"}, "rngs must be a Rngs, RngStream or jax.Array, but got <class 'str"),
    ],
)
def test_nnx_module_raises_errors_of_flax(constructor, call, message):
    ours, theirs = (error_of(m(0.3, **constructor), X, **call) for m in (Dropout, nnx.Dropout))
    assert type(ours) is type(theirs)
    assert str(ours) == str(theirs) and str(ours).startswith(message)


def test_nnx_module_with_invalid_rate_or_flag_raises():
    with pytest.raises(TypeError, match="deterministic has to be a bool, but got str"):
        Dropout(0.3, rngs=nnx.Rngs(0))(X, deterministic="yes")
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
    with pytest.raises(ValueError, match="no `rngs` argument was provided to Dropout"):
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


def test_linen_module_raises_errors_of_flax():
    with pytest.raises(ValueError, match="deterministic"):
        LinenDropout(0.3).apply({}, X)
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        LinenDropout(0.3).apply({}, X, deterministic=False)


def test_linen_submodules_have_the_names_of_flax():
    def names(dropout_module):
        class Network(linen.Module):
            @linen.compact
            def __call__(self, x):
                for _ in range(2):
                    x = dropout_module(0.3, deterministic=False)(x)
                return x

        table = Network().tabulate(
            {"params": KEY, "dropout": KEY}, X, console_kwargs={"width": 200}
        )
        return [name for name in table.split() if name.startswith("Dropout_")]

    assert LinenDropout is cdropout_linen.Dropout
    assert names(cdropout_linen.Dropout) == names(linen.Dropout) == ["Dropout_0", "Dropout_1"]


# ---- attention ----------------------------------------------------------------------------------

QUERY, KEYS, VALUES = (normal_jax((2, 5, 4, 8), seed=seed) for seed in range(3))


def attention_with_dropout(query, key, value, rng, broadcast_dims):
    """Return the result of attention, computed without Flax."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    weights = dropout(rng, jax.nn.softmax(scores), 0.4, broadcast_dims)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


@pytest.mark.parametrize("broadcast", [True, *slow(False)])
@pytest.mark.parametrize("attention", [dot_product_attention, cdropout_linen.dot_product_attention])
def test_attention_applies_the_mask_of_the_key_to_the_weights(attention, broadcast):
    expected = attention_with_dropout(QUERY, KEYS, VALUES, KEY, (0, 1) if broadcast else ())
    options = {"dropout_rng": KEY, "broadcast_dropout": broadcast}
    y = attention(QUERY, KEYS, VALUES, dropout_rate=0.4, **options)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-6)
    with_rate = jax.jit(lambda rate: attention(QUERY, KEYS, VALUES, dropout_rate=rate, **options))
    np.testing.assert_allclose(with_rate(0.4), expected, rtol=1e-4, atol=1e-6)
    assert not attention(QUERY, KEYS, VALUES, dropout_rate=1.0).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "ours, theirs, options",
    [
        (dot_product_attention, nnx.dot_product_attention, {}),
        (dot_product_attention, nnx.dot_product_attention, {"dtype": jnp.bfloat16}),
        (dot_product_attention, nnx.dot_product_attention, {"mask": jnp.tri(5) > 0}),
        (
            cdropout_linen.dot_product_attention,
            linen.dot_product_attention,
            {"dtype": jnp.bfloat16},
        ),
        (
            cdropout_linen.dot_product_attention,
            linen.dot_product_attention,
            {"mask": jnp.tri(5) > 0, "precision": "highest", "force_fp32_for_softmax": True},
        ),
        (
            cdropout_linen.dot_product_attention,
            linen.dot_product_attention,
            {"qk_attn_weights_einsum": jnp.einsum, "attn_weights_value_einsum": jnp.einsum},
        ),
    ],
)
def test_attention_without_dropout_equals_that_of_flax(ours, theirs, options):
    y, expected = (f(QUERY, KEYS, VALUES, **options) for f in (ours, theirs))
    assert y.dtype == expected.dtype
    np.testing.assert_allclose(
        np.float32(y), np.float32(expected), atol=0.05 if "dtype" in options else 1e-6
    )


ATTENTIONS = [
    (dot_product_attention, nnx.dot_product_attention),
    (cdropout_linen.dot_product_attention, linen.dot_product_attention),
]


@pytest.mark.parametrize("ours, theirs", ATTENTIONS)
@pytest.mark.parametrize(
    "index, shape",
    [(0, (5, 4, 8)), (1, (1, 5, 4, 8)), (2, (2, 4, 4, 8)), (2, (1, 5, 4, 8)), (2, (2, 5, 3, 8)),
     (2, (5, 4, 8)), (2, (1, 2, 5, 4, 8))],
)  # fmt: skip
def test_attention_of_arrays_that_do_not_fit_raises_errors_of_flax(ours, theirs, index, shape):
    arguments = [QUERY, KEYS, VALUES]
    arguments[index] = normal_jax(shape)
    options = {"dropout_rate": 0.4, "dropout_rng": KEY}
    expected, error = (error_of(f, *arguments, **options) for f in (theirs, ours))
    assert (type(error), str(error)) == (type(expected), str(expected))


@pytest.mark.parametrize("ours, theirs", ATTENTIONS)
@pytest.mark.parametrize("dtypes", ["int32 int32 int32", "float16 bfloat16 int32"])
def test_attention_promotes_types_like_flax(ours, theirs, dtypes):
    arrays = zip((QUERY, KEYS, VALUES), dtypes.split(), strict=True)
    arguments = [(x * 4).astype(dtype) for x, dtype in arrays]
    options = {"dropout_rate": 0.4, "deterministic": True}
    y, expected = (f(*arguments, **options) for f in (ours, theirs))
    assert_same_bits(y, expected)


def test_nnx_attention_with_promote_dtype():
    def promote(arrays, dtype=None):
        return tuple(x.astype(jnp.float16) for x in arrays)

    options = {"promote_dtype": promote, "dropout_rate": 0.4, "deterministic": True}
    y, expected = (f(QUERY, KEYS, VALUES, **options) for f in ATTENTIONS[0])
    assert y.dtype == jnp.float16
    assert_same_bits(y, expected)


def test_linen_attention_has_the_arguments_of_flax():
    ours, theirs = (inspect.signature(f).parameters for f in ATTENTIONS[1])
    assert [*ours] == [*theirs]


def test_linen_attention_with_einsum_dot_general():
    calls = []

    def dot_general(*args, **options):
        calls.append(args)
        return jax.lax.dot_general(*args, **options)

    options = {"dropout_rate": 0.4, "dropout_rng": KEY}
    attention = cdropout_linen.dot_product_attention
    y = attention(QUERY, KEYS, VALUES, einsum_dot_general=dot_general, **options)
    assert_same_bits(y, attention(QUERY, KEYS, VALUES, **options))
    assert len(calls) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"qk_attn_weights_einsum": jnp.einsum},
        {"attn_weights_value_einsum": jnp.einsum},
        {
            "qk_attn_weights_einsum": jnp.einsum,
            "attn_weights_value_einsum": jnp.einsum,
            "precision": "highest",
        },
    ],
)
def test_linen_attention_with_invalid_einsum_raises_errors_of_flax(options):
    error, expected = (error_of(f, QUERY, KEYS, VALUES, **options) for f in ATTENTIONS[1])
    assert str(error) == str(expected)


@pytest.mark.slow
def test_nnx_attention_of_grouped_queries_and_causal():
    if "is_causal" not in inspect.signature(nnx.dot_product_attention).parameters:
        pytest.skip("needs a newer Flax, with is_causal=")
    arguments = QUERY, KEYS[:, :, :2], VALUES[:, :, :2]
    y, expected = (
        f(*arguments, is_causal=True) for f in (dot_product_attention, nnx.dot_product_attention)
    )
    np.testing.assert_allclose(y, expected, atol=1e-6)


def nnx_attention(attention_fn, x, deterministic):
    """Return the result of an attention module of nnx."""
    module = nnx.MultiHeadAttention(
        num_heads=5, in_features=30, dropout_rate=0.4, attention_fn=attention_fn, decode=False,
        deterministic=deterministic, rngs=nnx.Rngs(0),
    )  # fmt: skip
    return module(x)


def linen_attention(attention_fn, x, deterministic):
    """Return the result of an attention module of linen."""
    options = {"num_heads": 5, "dropout_rate": 0.4, "deterministic": deterministic}
    variables = linen.MultiHeadDotProductAttention(**options).init(KEY, x)
    module = linen.MultiHeadDotProductAttention(**options, attention_fn=attention_fn)
    return module.apply(variables, x, rngs={"dropout": KEY})


@pytest.mark.slow
@pytest.mark.parametrize(
    "run_module, ours, theirs",
    [
        (nnx_attention, dot_product_attention, nnx.dot_product_attention),
        (linen_attention, cdropout_linen.dot_product_attention, linen.dot_product_attention),
    ],
)
def test_attention_modules_with_attention_fn(run_module, ours, theirs):
    def reference(query, key, value, dropout_rng=None, dropout_rate=None, **_):
        assert dropout_rate == 0.4
        return attention_with_dropout(query, key, value, dropout_rng, (0, 1))

    y, expected = (run_module(function, X[None], True) for function in (ours, theirs))
    np.testing.assert_allclose(y, expected, atol=1e-5)
    y, expected = (run_module(function, X[None], False) for function in (ours, reference))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("split", [True, False])
def test_recurrent_dropout_of_linen(split):
    """A cell draws one mask per step if keys are split, and otherwise one mask for all steps."""

    class Cell(linen.RNNCellBase):
        features: int = 30

        @linen.compact
        def __call__(self, carry, x):
            y = LinenDropout(0.5, deterministic=False)(x)
            return carry, y

        def initialize_carry(self, rng, input_shape):
            return jnp.zeros(())

        @property
        def num_feature_axes(self):
            return 1

    rnn = linen.RNN(Cell(), split_rngs={"params": False, "dropout": split})
    y = rnn.apply({}, jnp.ones((1, 6, 30)), rngs={"dropout": KEY})[0]
    assert {float(value) for value in np.unique(y)} == {0, 2}
    equal = [bool((row == y[0]).all()) for row in y]
    assert equal == ([True] + [False] * 5 if split else [True] * 6)


@pytest.mark.slow
def test_recurrent_dropout_of_nnx():
    """A cell with a dropout module has one mask per step."""

    class Cell(nnx.RNNCellBase):
        def __init__(self):
            self.dropout = Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, carry, x):
            return carry, self.dropout(x)

        def initialize_carry(self, *_, **__):
            return jnp.zeros(())

        @property
        def num_feature_axes(self):
            return 1

    cell, x = Cell(), normal_jax((1, 6, 30))
    keys = next_keys(cell.dropout, 6)
    y = nnx.RNN(cell)(x)
    for step, key in enumerate(keys):
        assert_same_bits(y[:, step], dropout(key, x[:, step], 0.5))


# ---- without Flax -------------------------------------------------------------------------------


def test_import_without_flax_raises_with_the_install_command():
    status, _, errors = run("import sys; sys.modules['flax'] = None; import cdropout.flax")
    assert status == 1
    assert errors.endswith("cdropout.flax needs Flax: run `pip install 'cdropout[flax]'`")
