"""Two- and three-point correlations of the mask bits that a lane draws.

The comparison with the threshold joins the same bit of successive words, which brings out
correlations that the usual batteries do not see. A sample is 128 bits, a lane's 64 elements in an
even group and its 64 in the next: all pairs and all triples of these are looked at, so those
inside one word, and those across it and the next word.
"""

import math

import numpy as np

CHUNK = 1 << 15  # samples counted at once: exact in float32, and small in memory
BITS = 128


def rarer(p):
    """Return the probability of the rarer of drop and keep, which is the one counted."""
    return min(p, 1 - p)


def bernstein(extreme, terms, odds):
    """Return how many sigmas a sum of independent terms of mean 0 and variance 1 may reach.

    It holds for terms of size up to `extreme`, with odds of 1 to `odds` against more. It does not
    take such a sum for normal: products of several rare bits are far from that.

    Notes
    -----
    Bernstein's inequality, P(|sum| > t sqrt(n)) <= 2 exp(-t**2 / (2 + 2 t extreme / (3 sqrt(n)))),
    solved for t.
    """
    nats = math.log(2 * odds)
    skew = nats * extreme / (3 * np.sqrt(terms))
    return skew + np.sqrt(skew**2 + 2 * nats)


def samples(draw, p, n):
    """Yield the first n samples as bool [CHUNK, 128], True where the rarer outcome came.

    draw(seed, call, p, start, n) gives the packed keep bits of n elements.
    """
    for first in range(0, n, CHUNK):
        packed = draw(2024, 1, p, first * BITS, CHUNK * BITS)
        words = packed.reshape(-1, 8, 2, 8, 8)  # block, two groups, group, lane, byte
        together = words.transpose(0, 1, 3, 2, 4).reshape(-1, BITS // 8)
        kept = np.unpackbits(together, axis=1, bitorder="little").astype(bool)
        yield kept if p > 0.5 else ~kept


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


def pair_sigmas(draw, p, n):
    """Return `centre_pairs` of n samples of the masks that are drawn so."""
    pairs = sum(map(count_pairs, samples(draw, p, n)))
    return centre_pairs(pairs, n, rarer(p))


def triple_sigmas(draw, p, n):
    """Return `centre_triples` of the same masks."""
    pairs, triples = np.zeros((BITS, BITS)), np.zeros((BITS, BITS, BITS))
    for bits in samples(draw, p, n):
        pairs += count_pairs(bits)
        triples += count_triples(bits)
    return centre_triples(triples, pairs, n, rarer(p))
