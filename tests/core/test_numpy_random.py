"""Tests of NumPy generators and seed sequences that are passed as `rng`.

A call of a function, or the creation of a module, draws at most one seed from a generator. A
SeedSequence always gives the same seed.
"""

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
BIT_GENERATORS = [
    np.random.PCG64,
    np.random.PCG64DXSM,
    np.random.Philox,
    np.random.SFC64,
    np.random.MT19937,
]


def generator_and_next_seed(bit_generator):
    """Return a generator, the seed that the generator draws next, and the state after this draw."""
    other = np.random.Generator(bit_generator(7))
    seed = int(other.integers(2**64, dtype=np.uint64))
    return np.random.Generator(bit_generator(7)), seed, other.bit_generator.state


@pytest.mark.parametrize("bit_generator", BIT_GENERATORS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_draws_only_one_seed_from_a_numpy_generator(name, bit_generator):
    rng, seed, state = generator_and_next_seed(bit_generator)
    before = cd.default_generator.state
    y, mask = FUNCTIONS[name](0.5, rng=rng, return_mask=True)
    assert (mask.seed, mask.call) == (seed, 0)
    np.testing.assert_equal(rng.bit_generator.state, state)
    np.testing.assert_array_equal(y, FUNCTIONS[name](0.5, rng=seed))
    _, next_mask = FUNCTIONS[name](0.5, rng=rng, return_mask=True)
    assert next_mask.seed != seed
    assert cd.default_generator.state == before


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_draws_no_seed_if_nothing_is_random_or_an_argument_is_wrong(name):
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
def test_a_seed_sequence_gives_the_same_seed_every_time(name, entropy):
    sequence = np.random.SeedSequence(entropy)
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    before = sequence.state
    for _ in range(2):
        _, mask = FUNCTIONS[name](0.5, rng=sequence, return_mask=True)
        assert (mask.seed, mask.call) == (seed, 0)
    assert sequence.state == before
    masks = [FUNCTIONS[name](0.5, rng=child, return_mask=True)[1] for child in sequence.spawn(2)]
    assert masks[0].seed != masks[1].seed


@pytest.mark.parametrize("module_type", MODULES, ids=lambda module_type: module_type.__name__)
def test_a_module_draws_one_seed_when_it_is_created(module_type):
    rng, seed, state = generator_and_next_seed(np.random.PCG64)
    m = module_type(0.5, rng=rng)
    for call in range(3):
        m(MODULES[module_type])
        assert (m.mask.seed, m.mask.call) == (seed, call)
    assert rng.bit_generator.state == state
    m = module_type(0.5, rng=np.random.SeedSequence(7))
    m(MODULES[module_type])
    assert m.mask.seed == int(np.random.SeedSequence(7).generate_state(1, np.uint64)[0])


def test_modules_with_the_same_generator_have_different_seeds():
    rng = np.random.default_rng(7)
    masks = []
    for _ in range(4):
        m = cd.Dropout(0.5, rng=rng)
        m(X)
        masks.append(m.mask)
    assert len({mask.seed for mask in masks}) == 4


def test_all_functions_with_rng_are_tested():
    signatures = {name: inspect.signature(getattr(cd, name)) for name in functional.__all__}
    names = {name for name, signature in signatures.items() if "rng" in signature.parameters}
    assert names == FUNCTIONS.keys() - {"broadcast_dims"}
