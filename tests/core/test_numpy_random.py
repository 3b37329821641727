"""NumPy's generators and seed sequences as rng: one seed is drawn from them, and nothing else."""

import inspect

import numpy as np
import pytest

import cdropout as cd
from cdropout import functional

X = np.random.default_rng(0).standard_normal((4, 3, 5, 6), np.float32)
BIAS = np.ones(6, np.float32)
FUNCTIONS = {
    "dropout": lambda p, **options: cd.dropout(X, p, **options),
    "broadcast_dims": lambda p, **options: cd.dropout(X, p, broadcast_dims=(0, 3), **options),
    "dropout1d": lambda p, **options: cd.dropout1d(X[0], p, **options),
    "dropout2d": lambda p, **options: cd.dropout2d(X, p, **options),
    "dropout3d": lambda p, **options: cd.dropout3d(X, p, **options),
    "drop_path": lambda p, **options: cd.drop_path(X, p, **options),
    "alpha_dropout": lambda p, **options: cd.alpha_dropout(X, p, True, **options),
    "feature_alpha_dropout": lambda p, **options: cd.feature_alpha_dropout(X, p, True, **options),
    "mc_dropout": lambda p, **options: cd.mc_dropout(X, p, 2, **options),
    "bias_dropout_add": lambda p, **options: cd.bias_dropout_add(X, BIAS, X, p, **options),
}
MODULES = {
    cd.Dropout: X,
    cd.Dropout1d: X[0],
    cd.Dropout2d: X,
    cd.Dropout3d: X,
    cd.DropPath: X,
    cd.AlphaDropout: X,
    cd.FeatureAlphaDropout: X,
}
BITS = [np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64, np.random.MT19937]


def after_one_seed(bits):
    """Return a generator, and the seed and the state that follow from the one draw of it."""
    twin = np.random.Generator(bits(7))
    seed = int(twin.integers(2**64, dtype=np.uint64))
    return np.random.Generator(bits(7)), seed, twin.bit_generator.state


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_draws_one_seed_and_nothing_else(name, bits):
    rng, seed, state = after_one_seed(bits)
    before = cd.default_generator.state
    y, mask = FUNCTIONS[name](0.5, rng=rng, return_mask=True)
    assert (mask.seed, mask.call) == (seed, 0)
    np.testing.assert_equal(rng.bit_generator.state, state)
    np.testing.assert_array_equal(y, FUNCTIONS[name](0.5, rng=seed))
    _, following = FUNCTIONS[name](0.5, rng=rng, return_mask=True)
    assert following.seed != seed
    assert cd.default_generator.state == before


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_draws_nothing_that_it_does_not_need(name):
    rng = np.random.default_rng(7)
    before = rng.bit_generator.state
    for p in (0, 1):
        FUNCTIONS[name](p, rng=rng)
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
        FUNCTIONS[name](1.5, rng=rng)
    with pytest.raises(ValueError, match="out"):
        FUNCTIONS[name](0.5, rng=rng, out=np.empty(2, np.float32))
    assert rng.bit_generator.state == before


@pytest.mark.parametrize("entropy", [7, [1, 2, 3], 2**200])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_seed_sequence_gives_its_first_word_every_time(name, entropy):
    sequence = np.random.SeedSequence(entropy)
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    before = sequence.state
    for _ in range(2):
        _, mask = FUNCTIONS[name](0.5, rng=sequence, return_mask=True)
        assert (mask.seed, mask.call) == (seed, 0)
    assert sequence.state == before
    masks = [FUNCTIONS[name](0.5, rng=child, return_mask=True)[1] for child in sequence.spawn(2)]
    assert masks[0].seed != masks[1].seed


@pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.__name__)
def test_a_module_draws_one_seed_when_it_is_made(kind):
    rng, seed, state = after_one_seed(np.random.PCG64)
    m = kind(0.5, rng=rng)
    for call in range(3):
        m(MODULES[kind])
        assert (m.mask.seed, m.mask.call) == (seed, call)
    assert rng.bit_generator.state == state
    m = kind(0.5, rng=np.random.SeedSequence(7))
    m(MODULES[kind])
    assert m.mask.seed == int(np.random.SeedSequence(7).generate_state(1, np.uint64)[0])


def test_layers_of_one_generator_have_masks_of_their_own():
    rng = np.random.default_rng(7)
    masks = []
    for _ in range(4):
        m = cd.Dropout(0.5, rng=rng)
        m(X)
        masks.append(m.mask)
    assert len({mask.seed for mask in masks}) == 4


def test_every_function_that_takes_rng_is_tested_here():
    signatures = {name: inspect.signature(getattr(cd, name)) for name in functional.__all__}
    takers = {name for name, signature in signatures.items() if "rng" in signature.parameters}
    assert takers == FUNCTIONS.keys() - {"broadcast_dims"}
