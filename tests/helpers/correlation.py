"""Two- and three-point correlations of the mask bits that a lane draws.

A mask bit is the result of a comparison of a random number with a threshold. The upper bits of the
number are at the same position in successive words of the lane. Mask bits can be correlated even if
common test suites find no fault in the generator. A sample has 128 bits: the 64 elements of a lane
in an even group, and the 64 elements of the same lane in the next group. All pairs and triples of
these bits are tested.
"""

import math

import numpy as np

CHUNK = 1 << 15  # samples counted at once; few enough that float32 counts are exact
BITS = 128


def rarer_probability(p):
    """Return the probability of the rarer outcome, drop or keep. That outcome is counted."""
    return min(p, 1 - p)


def bernstein(max_term, terms, odds):
    """Return a limit, in sigmas, for a sum of independent terms with mean 0 and variance 1.

    A sum of terms of magnitude up to `max_term` exceeds the limit with a probability below
    1 / `odds`. The limit does not assume a normal distribution, because products of rare bits are
    not normal.

    Notes
    -----
    The limit is the t for which the right side of Bernstein's inequality,
    P(|sum| > t sqrt(n)) <= 2 exp(-t**2 / (2 + 2 t max_term / (3 sqrt(n)))), is 1 / `odds`.
    """
    nats = math.log(2 * odds)
    skew = nats * max_term / (3 * np.sqrt(terms))
    return skew + np.sqrt(skew**2 + 2 * nats)


def samples(draw, p, n):
    """Yield n samples, a multiple of CHUNK, in bool arrays of shape (CHUNK, 128).

    The rarer outcome is True. `draw(seed, call, p, start, n)` returns the packed keep bits of n
    elements.
    """
    for first in range(0, n, CHUNK):
        packed = draw(2024, 1, p, first * BITS, CHUNK * BITS)
        words = packed.reshape(-1, 8, 2, 8, 8)  # [block, pair, group in pair, lane, byte]
        lanes = words.transpose(0, 1, 3, 2, 4).reshape(-1, BITS // 8)
        kept = np.unpackbits(lanes, axis=1, bitorder="little").astype(bool)
        yield kept if p > 0.5 else ~kept


def count_pairs(bits):
    """Return an array whose element [i, j] is the number of samples with bits i and j set."""
    x = bits.astype(np.float32)
    return (x.T @ x).astype(np.float64)


def count_triples(bits):
    """Return an array; for i < j < k, element [i, j, k] counts samples with bits i, j and k set."""
    x = bits.astype(np.float32)
    triples = np.zeros((BITS, BITS, BITS))
    for k in range(2, BITS):
        with_k = x[bits[:, k], :k]  # few rows, because the rarer outcome is counted
        triples[:k, :k, k] = with_k.T @ with_k
    return triples


def centre_pairs(pairs, n, q):
    """Return sums of (bit i - q) (bit j - q) over n samples, in sigmas; elements with i >= j are 0.

    `pairs` is the sum of `count_pairs` over all samples.
    """
    ones = np.diagonal(pairs)
    products = pairs - q * (ones[:, None] + ones) + n * q**2
    return np.triu(products, 1) / (q * (1 - q)) / math.sqrt(n)


def centre_triples(triples, pairs, n, q):
    """Return sums of products of centred bits i < j < k over n samples, in sigmas; 0 elsewhere.

    A centred bit is the bit minus q, where q is the exact probability that a bit is set.
    """
    ones = np.diagonal(pairs)
    two = pairs[:, :, None] + pairs[:, None, :] + pairs
    one = ones[:, None, None] + ones[:, None] + ones
    products = triples - q * two + q**2 * one - n * q**3
    i, j, k = np.ogrid[:BITS, :BITS, :BITS]
    return np.where((i < j) & (j < k), products, 0.0) / (q * (1 - q)) ** 1.5 / math.sqrt(n)


def pair_sigmas(draw, p, n):
    """Draw n samples with `draw`; return the result of `centre_pairs` for these samples."""
    pairs = sum(map(count_pairs, samples(draw, p, n)))
    return centre_pairs(pairs, n, rarer_probability(p))


def triple_sigmas(draw, p, n):
    """Draw n samples with `draw`; return the result of `centre_triples` for these samples."""
    pairs, triples = np.zeros((BITS, BITS)), np.zeros((BITS, BITS, BITS))
    for bits in samples(draw, p, n):
        pairs += count_pairs(bits)
        triples += count_triples(bits)
    return centre_triples(triples, pairs, n, rarer_probability(p))
