"""Tests of two- and three-point correlations of mask bits. An xorshift128+ stream fails them."""

import math
from functools import cache, partial

import numpy as np
import pytest

from .. import reference
from ..helpers import correlation, randomness
from ..helpers.arrays import pack
from ..helpers.correlation import (
    BITS,
    centre_pairs,
    centre_triples,
    count_pairs,
    count_triples,
    rarer_probability,
)
from ..helpers.requirements import slow

PROBABILITIES = [0.1, 0.25, 0.3, 0.0625, 0.9]
PAIR_SAMPLES = 1 << 19
TRIPLE_SAMPLES = 1 << 17
# Upper limit of the probability that a perfect generator fails any test of this file
FALSE_ALARM = 1e-6
TESTS = len(PROBABILITIES) * (math.comb(BITS, 2) + 63 + math.comb(BITS, 3))


def xorshift128plus(s0, s1):
    """Return an output of xorshift128+ (Vigna 2014, shifts 23, 17 and 26) and the next state."""
    word = (s0 + s1) & reference.MASK64
    mixed = s0 ^ ((s0 << 23) & reference.MASK64)
    return word, s1, mixed ^ s1 ^ (mixed >> 17) ^ (s1 >> 26)


def draw_by_xorshift(*arguments):
    """Draw packed bits of a mask stream whose lanes use xorshift128+."""
    return pack(reference.keep(*arguments, step=xorshift128plus))


def bound(p, points, samples, pooled=1):
    """Return the limit, in sigmas, for the absolute value of a sum over this number of samples.

    Each term of the sum can itself be a sum of several products, divided by sqrt(pooled), where
    `pooled` is the number of products.
    """
    max_term = randomness.max_term(rarer_probability(p)) ** points
    return correlation.bernstein(max_term * math.sqrt(pooled), samples, TESTS / FALSE_ALARM)


pair_sigmas = cache(partial(correlation.pair_sigmas, n=PAIR_SAMPLES))


def triple_sigmas(draw, p):
    return correlation.triple_sigmas(draw, p, TRIPLE_SAMPLES)


def distance_sigmas(draw, p, distance):
    """Return the summed correlation, in sigmas, of all pairs of bits at this distance in a word."""
    sigmas = pair_sigmas(draw, p)
    words = sigmas[:64, :64], sigmas[64:, 64:]
    pooled = sum(np.diagonal(word, distance).sum() for word in words)
    return pooled / math.sqrt(2 * (64 - distance))


@pytest.mark.parametrize("p", [0.1, *slow(0.25, 0.3, 0.0625, 0.9)])
def test_pairs_of_bits_are_uncorrelated(p):
    assert np.abs(pair_sigmas(randomness.draw, p)).max() < bound(p, 2, PAIR_SAMPLES)


@pytest.mark.parametrize("p", [0.1, *slow(0.25, 0.3, 0.0625, 0.9)])
def test_pairs_of_bits_at_each_distance_are_uncorrelated(p):
    for distance in range(1, 64):
        limit = bound(p, 2, PAIR_SAMPLES, pooled=2 * (64 - distance))
        assert abs(distance_sigmas(randomness.draw, p, distance)) < limit


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.0625, 0.1, 0.25, 0.3, 0.9])
def test_triples_of_bits_are_uncorrelated(p):
    assert np.abs(triple_sigmas(randomness.draw, p)).max() < bound(p, 3, TRIPLE_SAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.1, 0.0625, 0.9])
def test_xorshift128plus_has_correlated_pairs(p):
    sigmas = pair_sigmas(draw_by_xorshift, p)
    assert np.abs(sigmas).max() > bound(p, 2, PAIR_SAMPLES)
    i, j = np.unravel_index(np.abs(sigmas).argmax(), sigmas.shape)
    assert j - i == 23 and i // 64 == j // 64
    assert distance_sigmas(draw_by_xorshift, p, 23) > bound(p, 2, PAIR_SAMPLES, pooled=82)


@pytest.mark.slow
def test_xorshift128plus_has_correlated_triples():
    sigmas = triple_sigmas(draw_by_xorshift, 0.25)
    assert np.abs(sigmas).max() > bound(0.25, 3, TRIPLE_SAMPLES)
    # Two of the bits have a distance of 23 in one word. The third is in the next word, at the same
    # position as the second.
    i, j, k = np.unravel_index(np.abs(sigmas).argmax(), sigmas.shape)
    assert (j - i, k - j) == (23, 64)


def test_centre_pairs_and_triples_return_sums_of_centred_products():
    bits, q = np.random.default_rng(1).random((300, BITS)) < 0.2, 0.25
    pairs = count_pairs(bits)
    two = centre_pairs(pairs, 300, q)
    three = centre_triples(count_triples(bits), pairs, 300, q)
    z = (bits - q) / math.sqrt(q * (1 - q))
    expected = np.einsum("ni,nj->ij", z, z) / math.sqrt(300)
    np.testing.assert_allclose(two, np.triu(expected, 1), atol=1e-9)
    for i, j, k in [(0, 1, 2), (5, 28, 92), (63, 64, 127), (125, 126, 127), (0, 40, 41)]:
        expected = (z[:, i] * z[:, j] * z[:, k]).sum() / math.sqrt(300)
        assert three[i, j, k] == pytest.approx(expected, abs=1e-9)
        assert three[k, j, i] == three[i, i, j] == two[j, i] == 0
