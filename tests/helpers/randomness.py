"""Statistical tests of masks: keep rate, order, independence, avalanche.

Each test computes sums that are near 0 if the elements are independent and are dropped with
probability p. The bits come from a function `draw(seed, call, p, start, n)`, so that faulty
generators can be tested too.
"""

import math
from typing import NamedTuple

import numpy as np

import cdropout as cd

from .. import reference
from . import correlation

PROBABILITIES = [0.001, 0.1, 0.3, 0.5, 0.9]
SEED = 2024
CHUNK = 1 << 22  # elements drawn at once: 512 blocks
BLOCK = reference.BLOCK
FALSE_ALARM = 1e-6  # a perfect generator fails any of TESTS tests with at most this probability
TESTS = 250
GRAM = 16  # number of consecutive elements, all subsets of which are tested
LAGS = [*range(1, 65), *(2**k + d for k in range(7, 17) for d in (-1, 0, 1))]
ORDERS = {"blocks": 0, "groups": 1, "lanes": 2, "elements": 3}  # the axis that varies fastest


class Scores(NamedTuple):
    """Sums, in sigmas, of `terms` terms with mean 0, variance 1 and magnitudes up to `max_term`."""

    test: str
    p: float
    sigmas: np.ndarray
    terms: np.ndarray
    max_term: np.ndarray

    def limits(self):
        """Return the largest magnitude allowed for each sum."""
        sums = self.sigmas.size * TESTS
        return correlation.bernstein(self.max_term, self.terms, sums / FALSE_ALARM)

    def worst(self):
        """Return the sum that is largest in relation to its limit, and the limit of this sum."""
        limits = np.broadcast_to(self.limits(), self.sigmas.shape)
        where = np.argmax(np.abs(self.sigmas) / limits)
        return float(self.sigmas.flat[where]), float(limits.flat[where])

    def passes(self):
        """Return whether every sum is within its limit."""
        sigmas, limit = self.worst()
        return abs(sigmas) < limit


def max_term(q):
    """Return the largest magnitude of a standardised Bernoulli variable with probability q."""
    return math.sqrt(max(q / (1 - q), (1 - q) / q))


def draw(seed, call, p, start, n):
    """Return the packed keep bits of n elements that cdropout draws."""
    return cd.Mask(n, p, seed, call, start=start).bits()


def chunks(draw, p, n, seed=SEED, call=0):
    """Yield the first n elements as packed bits, CHUNK elements at a time."""
    for start in range(0, n, CHUNK):
        yield draw(seed, call, p, start, min(CHUNK, n - start))


def count_bits(packed):
    """Return the number of set bits in packed bytes, whose number must be a multiple of 8."""
    return int(np.bitwise_count(packed.view(np.uint64)).sum(dtype=np.uint64))


class Effort(NamedTuple):
    """Numbers of samples for each kind of test."""

    rate: int  # elements
    order: int  # elements, a multiple of CHUNK
    repetitions: int  # blocks of each mask in a family
    bases: int  # pairs of a seed and a call number, each bit of which is flipped
    pairs: int = 0  # samples for two-point correlations within a lane; 0 omits the test
    triples: int = 0  # samples for three-point correlations within a lane; 0 omits the test


QUICK_EFFORT = Effort(10**10, 2 * CHUNK, 4, 400)


# ---- keep rate --------------------------------------------------------------------------------


def rate(draw, p, n, seed=SEED):
    """Return the scores of the number of kept elements among n elements."""
    excess = sum(map(count_bits, chunks(draw, p, n, seed))) - n * (1 - p)
    sigmas = np.array([excess / math.sqrt(n * p * (1 - p))])
    return Scores("keep rate", p, sigmas, n, max_term(p))


# ---- order ------------------------------------------------------------------------------------


def ordered(packed, order):
    """Return the elements of whole blocks as uint8, rearranged so that `order` varies fastest."""
    bits = np.unpackbits(packed, bitorder="little").reshape(-1, 16, 8, 64)
    return np.moveaxis(bits, ORDERS[order], -1).reshape(-1)


def tally_lags(bits):
    """Return the number of pairs of kept elements at each lag, and the number of kept elements.

    The elements form a ring: the last element is followed by the first.
    """
    words = np.packbits(bits, bitorder="little").view("<u8")
    pairs = []
    for lag in LAGS:
        low, high = (np.roll(words, -(lag // 64) - i) for i in (0, 1))
        shift = lag % 64
        later = (low >> shift) | (high << (64 - shift)) if shift else low
        pairs.append(count_bits(words & later))
    return np.array([*pairs, count_bits(words)])


def score_lags(tally, p, n):
    """Return sums of products of two standardised elements at each lag, in sigmas.

    Each `score_` function also returns the number of terms of a sum and their largest magnitude.
    """
    q = 1 - p
    products = tally[:-1] - 2 * q * tally[-1] + n * q**2
    return products / (p * q * math.sqrt(n)), n, max_term(p) ** 2


def tally_grams(bits):
    """Split the bits into grams of GRAM bits; return the number of occurrences of each gram."""
    return np.bincount(np.packbits(bits, bitorder="little").view("<u2"), minlength=1 << GRAM)


def score_grams(tally, p, n):
    """Return sums of products of the standardised elements in each subset of a gram, in sigmas."""
    q, sums = 1 - p, tally.astype(float)
    for axis in range(GRAM):  # Walsh transform of bits that are set with probability q
        zero, one = np.moveaxis(sums.reshape(-1, 2, 1 << axis), 1, 0)
        sums = np.stack([zero + one, (p * one - q * zero) / math.sqrt(p * q)], 1).reshape(-1)
    points = np.bitwise_count(np.arange(1, 1 << GRAM))
    return sums[1:] / math.sqrt(n // GRAM), n // GRAM, max_term(p) ** points


def length_classes(stop):
    """Return the lower limit of each class of lengths.

    The lengths have a geometric distribution; `stop` is the probability of the length 1.
    """
    quantiles = [*np.arange(1, 16) / 16, 0.99, 0.999, 0.9999]
    return np.unique([1, *(np.ceil(np.log1p(np.negative(quantiles)) / math.log1p(-stop)) + 1)])


def tally_lengths(lengths, stop):
    """Return the number of lengths in each class."""
    lower = length_classes(stop).astype(int)
    return np.add.reduceat(np.bincount(lengths, minlength=lower[-1] + 1), lower)


def score_lengths(tally, stop):
    """Return how far the number of lengths in each class is from its mean, in sigmas."""
    chance = -np.diff((1 - stop) ** (length_classes(stop) - 1), append=0)
    n = tally.sum()
    largest = np.sqrt(np.maximum(chance / (1 - chance), (1 - chance) / chance))
    return (tally - n * chance) / np.sqrt(n * chance * (1 - chance)), n, largest


def tally_gaps(bits, p):
    """Return the result of `tally_lengths` for the distances between successive dropped elements.

    The elements form a ring.
    """
    dropped = np.flatnonzero(bits == 0)
    return tally_lengths(np.diff(dropped, append=dropped[0] + bits.size), p)


def tally_runs(bits, p):
    """Return the result of `tally_lengths` for the runs of dropped elements in a ring."""
    changes = np.flatnonzero(bits != np.roll(bits, 1))
    lengths = np.diff(changes, append=changes[0] + bits.size)
    return tally_lengths(lengths[bits[changes] == 0], 1 - p)


def order(draw, p, order, n, seed=SEED):
    """Yield the scores of lags, grams, gaps and runs in the first n elements along `order`."""
    lags = grams = gaps = runs = 0
    for packed in chunks(draw, p, n, seed):
        bits = ordered(packed, order)
        lags, grams = lags + tally_lags(bits), grams + tally_grams(bits)
        gaps, runs = gaps + tally_gaps(bits, p), runs + tally_runs(bits, p)
    yield Scores(f"lags along {order}", p, *score_lags(lags, p, n))
    yield Scores(f"{GRAM}-grams along {order}", p, *score_grams(grams, p, n))
    yield Scores(f"gaps along {order}", p, *score_lengths(gaps, p))
    yield Scores(f"runs along {order}", p, *score_lengths(runs, 1 - p))


# ---- between masks ----------------------------------------------------------------------------


def spaced_gray_code(i, spacing=9):
    """Return the Gray code of i in [0, 256) with its bits `spacing` positions apart."""
    code = i ^ (i >> 1)
    return sum((code >> bit & 1) << spacing * bit for bit in range(8))


# For each family: the number of masks, and a function that returns the (seed, call, block) of mask
# number i in repetition number r.
FAMILIES = {
    "consecutive seeds": (256, lambda i, r: (i, 7, r)),
    "consecutive calls": (256, lambda i, r: (SEED, i, r)),
    "consecutive blocks": (256, lambda i, r: (SEED, r, i)),
    "a grid of seeds and calls": (256, lambda i, r: (i % 16, i // 16, r)),
    "a grid of calls and blocks": (256, lambda i, r: (SEED + r, i % 16, i // 16)),
    "a Gray code of seeds": (256, lambda i, r: (spaced_gray_code(i), 7, r)),
    "a Gray code of calls": (256, lambda i, r: (SEED, spaced_gray_code(i), r)),
    "a Gray code of blocks": (256, lambda i, r: (SEED, r, spaced_gray_code(i, 7))),
    "seeds of 2^k": (64, lambda i, r: (1 << i, 7, r)),
    "calls of 2^k": (64, lambda i, r: (SEED, 1 << i, r)),
    "blocks of 2^k": (50, lambda i, r: (SEED, r, 1 << i)),
}


def family(draw, p, name, repetitions):
    """Yield the scores of each pair of masks in a family, and of all pairs at each distance."""
    masks, origin = FAMILIES[name]
    both, q, n = np.zeros((masks, masks)), 1 - p, BLOCK * repetitions
    for r in range(repetitions):
        origins = (origin(i, r) for i in range(masks))
        rows = [draw(seed, call, p, BLOCK * block, BLOCK) for seed, call, block in origins]
        bits = np.unpackbits(np.array(rows), axis=1).astype(np.float32)
        both += bits @ bits.T
    kept = np.diagonal(both)
    products = (both - q * (kept[:, None] + kept) + n * q**2) / (p * q * math.sqrt(n))
    distances = np.arange(1, masks)
    sums = np.array([np.diagonal(products, distance).sum() for distance in distances])
    pairs = products[np.triu_indices(masks, 1)]
    yield Scores(f"pairs of {name}", p, pairs, n, max_term(p) ** 2)
    yield Scores(
        f"distances in {name}",
        p,
        sums / np.sqrt(masks - distances),
        n * (masks - distances),
        max_term(p) ** 2,
    )


def avalanche(draw, p, bases, start=0):
    """Yield the scores of the number of elements that a flipped bit of seed or call changes."""
    flips = [(1 << bit, 0) for bit in range(64)] + [(0, 1 << bit) for bit in range(64)]
    changed, chance = np.zeros((128, 512), np.int64), 2 * p * (1 - p)
    for base in range(bases):
        seed, call = reference.mix(2 * base + 1), reference.mix(2 * base + 2)
        before = draw(seed, call, p, start, 512)
        after = [draw(seed ^ one, call ^ other, p, start, 512) for one, other in flips]
        changed += np.unpackbits(np.array(after) ^ before, axis=1, bitorder="little")
    excess = (changed - bases * chance) / math.sqrt(bases * chance * (1 - chance))
    yield Scores("avalanche of bit to element", p, excess, bases, max_term(chance))
    sums = excess.sum(1) / math.sqrt(512)
    yield Scores("avalanche of bit", p, sums, 512 * bases, max_term(chance))


# ---- within a lane ----------------------------------------------------------------------------


def lane_words(draw, p, effort):
    """Yield the scores of correlations between the mask bits of a lane in two adjacent groups."""
    q = correlation.rarer_probability(p)
    for points, measure, n in (
        (2, correlation.pair_sigmas, effort.pairs),
        (3, correlation.triple_sigmas, effort.triples),
    ):
        if n:
            sums = measure(draw, p, n)
            sums = sums[sums != 0]  # the other entries do not belong to a pair or triple
            yield Scores(f"{points} points of a lane's words", p, sums, n, max_term(q) ** points)


# ---- all tests --------------------------------------------------------------------------------


def all_tests(draw, p, effort):
    """Yield the scores of all tests."""
    yield rate(draw, p, effort.rate)
    for along in ORDERS:
        yield from order(draw, p, along, effort.order)
    for name in FAMILIES:
        yield from family(draw, p, name, effort.repetitions)
    yield from avalanche(draw, p, effort.bases)
    yield from lane_words(draw, p, effort)
