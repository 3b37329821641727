"""Two- and three-point correlations of the mask bits that a lane draws, and a generator that fails.

The comparison with the threshold joins the same bit of successive words, which brings out
correlations that the usual batteries do not see: xorshift128+ must be caught here. A sample is 128
bits, a lane's 64 elements in an even group and its 64 in the next: all pairs and all triples of
these are looked at, so those inside one word, and those across it and the next word.
"""

import math
from functools import cache

import numpy as np
import pytest

import reference

PROBABILITIES = [0.1, 0.25, 0.3, 0.0625, 0.9]
CHUNK = 1 << 15  # samples counted at once: exact in float32, and small in memory
PAIR_SAMPLES = 1 << 19
TRIPLE_SAMPLES = 1 << 17
BITS = 128
FALSE_ALARM = 1e-6  # the probability that a perfect generator fails anywhere in this file
TESTS = len(PROBABILITIES) * (math.comb(BITS, 2) + 63 + math.comb(BITS, 3))


def xorshift128plus(s0, s1):
    """Step xorshift128+ with the shifts 23, 17, 26 (Vigna 2014) once, for ints and arrays."""
    word = (s0 + s1) & reference.MASK64
    mixed = s0 ^ ((s0 << 23) & reference.MASK64)
    return word, s1, mixed ^ s1 ^ (mixed >> 17) ^ (s1 >> 26)


GENERATORS = {"xoroshiro128++": reference.xoroshiro128pp, "xorshift128+": xorshift128plus}


def rarer(p):
    """Return the probability of the rarer of drop and keep, which is the one counted."""
    return min(p, 1 - p)


def bound(p, points, samples, pooled=1):
    """Return how many sigmas the largest sum of all may reach, by Bernstein's inequality.

    It holds for sums of independent terms of mean 0, variance 1 and size up to `extreme`. It does
    not take such a sum for normal: products of several rare bits are far from that. A term may
    itself be pooled from so many products, and divided by the root of their number.
    """
    q = rarer(p)
    extreme = math.sqrt((1 - q) / q) ** points * math.sqrt(pooled)
    nats = math.log(2 * TESTS / FALSE_ALARM)
    skew = nats * extreme / (3 * math.sqrt(samples))
    return skew + math.sqrt(skew**2 + 2 * nats)


def samples(generator, p, n):
    """Yield the first n samples as bool [CHUNK, 128], True where the rarer outcome came."""
    step = GENERATORS[generator]
    for first in range(0, n, CHUNK):
        kept = reference.keep(2024, 1, p, first * BITS, CHUNK * BITS, step)
        by_group = kept.reshape(-1, 8, 2, 8, 64)  # block, two groups, group, lane, bit
        together = by_group.transpose(0, 1, 3, 2, 4).reshape(-1, BITS)
        yield together if p > 0.5 else ~together


def count_pairs(bits):
    """Return how often bits i and j were both set, float64 [128, 128], exact."""
    x = bits.astype(np.float32)
    return (x.T @ x).astype(np.float64)


def count_triples(bits):
    """Return how often bits i < j < k were all set, float64 [128, 128, 128], exact."""
    x = bits.astype(np.float32)
    triples = np.zeros((BITS, BITS, BITS))
    for k in range(2, BITS):
        with_k = x[bits[:, k], :k]  # few rows, since the rarer outcome is counted
        triples[:k, :k, k] = with_k.T @ with_k
    return triples


def centre_pairs(pairs, n, q):
    """Return sums over n samples of products of two centred bits, in sigmas; 0 unless i < j."""
    ones = np.diagonal(pairs)
    products = pairs - q * (ones[:, None] + ones) + n * q**2
    return np.triu(products, 1) / (q * (1 - q)) / math.sqrt(n)


def centre_triples(triples, pairs, n, q):
    """Return sums over n samples of products of three centred bits, in sigmas; 0 unless i < j < k.

    q is the exact probability of a set bit, not an estimate of it.
    """
    ones = np.diagonal(pairs)
    two = pairs[:, :, None] + pairs[:, None, :] + pairs
    one = ones[:, None, None] + ones[:, None] + ones
    products = triples - q * two + q**2 * one - n * q**3
    i, j, k = np.ogrid[:BITS, :BITS, :BITS]
    return np.where((i < j) & (j < k), products, 0.0) / (q * (1 - q)) ** 1.5 / math.sqrt(n)


@cache
def pair_sigmas(generator, p):
    """Return `centre_pairs` of the masks that this generator draws."""
    pairs = sum(count_pairs(bits) for bits in samples(generator, p, PAIR_SAMPLES))
    return centre_pairs(pairs, PAIR_SAMPLES, rarer(p))


def triple_sigmas(generator, p):
    """Return `centre_triples` of the same masks, from fewer samples since it takes longer."""
    pairs, triples = np.zeros((BITS, BITS)), np.zeros((BITS, BITS, BITS))
    for bits in samples(generator, p, TRIPLE_SAMPLES):
        pairs += count_pairs(bits)
        triples += count_triples(bits)
    return centre_triples(triples, pairs, TRIPLE_SAMPLES, rarer(p))


def distance_sigmas(generator, p, distance):
    """Return the sum over all pairs so far apart in one word, in sigmas."""
    sigmas = pair_sigmas(generator, p)
    words = sigmas[:64, :64], sigmas[64:, 64:]
    pooled = sum(np.diagonal(word, distance).sum() for word in words)
    return pooled / math.sqrt(2 * (64 - distance))


@pytest.mark.parametrize("p", PROBABILITIES)
def test_pairs_are_uncorrelated(p):
    assert np.abs(pair_sigmas("xoroshiro128++", p)).max() < bound(p, 2, PAIR_SAMPLES)


@pytest.mark.parametrize("p", PROBABILITIES)
def test_pairs_at_each_distance_are_uncorrelated(p):
    for distance in range(1, 64):
        limit = bound(p, 2, PAIR_SAMPLES, pooled=2 * (64 - distance))
        assert abs(distance_sigmas("xoroshiro128++", p, distance)) < limit


@pytest.mark.parametrize("p", PROBABILITIES)
def test_triples_are_uncorrelated(p):
    assert np.abs(triple_sigmas("xoroshiro128++", p)).max() < bound(p, 3, TRIPLE_SAMPLES)


@pytest.mark.parametrize("p", [0.1, 0.0625, 0.9])
def test_xorshift128plus_has_correlated_pairs(p):
    sigmas = pair_sigmas("xorshift128+", p)
    assert np.abs(sigmas).max() > bound(p, 2, PAIR_SAMPLES)
    i, j = np.unravel_index(np.abs(sigmas).argmax(), sigmas.shape)
    assert j - i == 23 and i // 64 == j // 64
    assert distance_sigmas("xorshift128+", p, 23) > bound(p, 2, PAIR_SAMPLES, pooled=82)


def test_xorshift128plus_has_correlated_triples():
    sigmas = triple_sigmas("xorshift128+", 0.25)
    assert np.abs(sigmas).max() > bound(0.25, 3, TRIPLE_SAMPLES)
    # two bits of one word, 23 apart, with the upper one's bit of the next word
    i, j, k = np.unravel_index(np.abs(sigmas).argmax(), sigmas.shape)
    assert (j - i, k - j) == (23, 64)


def test_the_sums_are_those_of_centred_products():
    bits, q = np.random.default_rng(1).random((300, BITS)) < 0.2, 0.25
    pairs = count_pairs(bits)
    two = centre_pairs(pairs, 300, q)
    three = centre_triples(count_triples(bits), pairs, 300, q)
    z = (bits - q) / math.sqrt(q * (1 - q))
    direct = np.einsum("ni,nj->ij", z, z) / math.sqrt(300)
    np.testing.assert_allclose(two, np.triu(direct, 1), atol=1e-9)
    for i, j, k in [(0, 1, 2), (5, 28, 92), (63, 64, 127), (125, 126, 127), (0, 40, 41)]:
        expected = (z[:, i] * z[:, j] * z[:, k]).sum() / math.sqrt(300)
        assert three[i, j, k] == pytest.approx(expected, abs=1e-9)
        assert three[k, j, i] == three[i, i, j] == two[j, i] == 0
