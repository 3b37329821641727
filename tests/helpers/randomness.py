"""How random the masks are: keep rate, order, independence, avalanche, as sums that stay small.

    python tests/helpers/randomness.py --long

draws 10^11 elements for each keep rate, and more than the test suite does for all else: it prints
a line a test, and exits with 1 if one is past its limit. A test gets its bits from a function
`draw(seed, call, p, start, n)`, so that it can also be shown a generator that is known to be bad.
"""

import argparse
import itertools
import math
import sys
import time
from typing import NamedTuple

import numpy as np

import cdropout as cd

from .. import reference
from . import correlation

PROBABILITIES = [0.001, 0.1, 0.3, 0.5, 0.9]
SEED = 2024
PART = 1 << 22  # elements held at once: 512 blocks
BLOCK = reference.BLOCK
FALSE_ALARM = 1e-6  # the probability that a perfect generator fails in any of so many tests:
TESTS = 250
GRAM = 16  # elements, of which all subsets are looked at
LAGS = [*range(1, 65), *(2**k + d for k in range(7, 17) for d in (-1, 0, 1))]
ORDERS = {"blocks": 0, "groups": 1, "lanes": 2, "elements": 3}  # the axis along which to go


class Scores(NamedTuple):
    """Sums of `terms` terms of mean 0, variance 1 and size up to `extreme`, in sigmas."""

    test: str
    p: float
    sigmas: np.ndarray
    terms: np.ndarray
    extreme: np.ndarray

    def limits(self):
        """Return what the size of each sum may be."""
        looks = self.sigmas.size * TESTS
        return correlation.bernstein(self.extreme, self.terms, looks / FALSE_ALARM)

    def worst(self):
        """Return the sum that comes closest to its limit, and that limit."""
        limits = np.broadcast_to(self.limits(), self.sigmas.shape)
        where = np.argmax(np.abs(self.sigmas) / limits)
        return float(self.sigmas.flat[where]), float(limits.flat[where])

    def passes(self):
        """Return whether every sum is within its limit."""
        sigmas, limit = self.worst()
        return abs(sigmas) < limit


def extreme(q):
    """Return the largest size of a standardised variable that is 1 with probability q, else 0."""
    return math.sqrt(max(q / (1 - q), (1 - q) / q))


def draw(seed, call, p, start, n):
    """Return what the package keeps, packed: uint8 [n / 8]."""
    return cd.Mask(n, p, seed, call, start=start).bits()


def parts(draw, p, n, seed=SEED, call=0):
    """Yield the first n elements, packed, PART of them at a time."""
    for start in range(0, n, PART):
        yield draw(seed, call, p, start, min(PART, n - start))


def count(packed):
    """Return how many bits are set in packed bytes, a multiple of 8."""
    return int(np.bitwise_count(packed.view(np.uint64)).sum(dtype=np.uint64))


class Effort(NamedTuple):
    """How much to draw."""

    rate: int  # elements
    order: int  # elements, a multiple of PART
    repetitions: int  # blocks of each mask of a family
    bases: int  # pairs of seed and call of which each bit is flipped


SHORT = Effort(10**10, 2 * PART, 4, 400)
LONG = Effort(10**11, 256 * PART, 200, 4000)
LONG_PAIRS, LONG_TRIPLES = 1 << 23, 1 << 20  # samples of a lane's words


# ---- how many ---------------------------------------------------------------------------------


def rate(draw, p, n, seed=SEED):
    """Return the number of kept among n elements."""
    surplus = sum(map(count, parts(draw, p, n, seed))) - n * (1 - p)
    sigmas = np.array([surplus / math.sqrt(n * p * (1 - p))])
    return Scores("keep rate", p, sigmas, n, extreme(p))


# ---- in which order ---------------------------------------------------------------------------


def ordered(packed, order):
    """Return whole blocks' elements, uint8 of 0 or 1, so that neighbours along `order` meet."""
    bits = np.unpackbits(packed, bitorder="little").reshape(-1, 16, 8, 64)
    return np.moveaxis(bits, ORDERS[order], -1).reshape(-1)


def tally_lags(bits):
    """Return how many pairs at each distance, around a ring, are both kept, and how many are."""
    words = np.packbits(bits, bitorder="little").view("<u8")
    pairs = []
    for lag in LAGS:
        low, high = (np.roll(words, -(lag // 64) - more) for more in (0, 1))
        shift = lag % 64
        later = (low >> shift) | (high << (64 - shift)) if shift else low
        pairs.append(count(words & later))
    return np.array([*pairs, count(words)])


def score_lags(tally, p, n):
    """Return the sums of products of two centred elements."""
    q = 1 - p
    products = tally[:-1] - 2 * q * tally[-1] + n * q**2
    return products / (p * q * math.sqrt(n)), n, extreme(p) ** 2


def tally_grams(bits):
    """Return how often each value of GRAM elements in a row comes."""
    return np.bincount(np.packbits(bits, bitorder="little").view("<u2"), minlength=1 << GRAM)


def score_grams(tally, p, n):
    """Return, for every subset of a gram, the sum of products of its standardised elements."""
    q, sums = 1 - p, tally.astype(float)
    for axis in range(GRAM):  # the Walsh transform, of bits that are set with probability q
        zero, one = np.moveaxis(sums.reshape(-1, 2, 1 << axis), 1, 0)
        sums = np.stack([zero + one, (p * one - q * zero) / math.sqrt(p * q)], 1).reshape(-1)
    points = np.bitwise_count(np.arange(1, 1 << GRAM))
    return sums[1:] / math.sqrt(n // GRAM), n // GRAM, extreme(p) ** points


def classes(stop):
    """Return where classes of a length begin that ends after each step with probability `stop`."""
    quantiles = [*np.arange(1, 16) / 16, 0.99, 0.999, 0.9999]
    return np.unique([1, *(np.ceil(np.log1p(np.negative(quantiles)) / math.log1p(-stop)) + 1)])


def tally_lengths(lengths, stop):
    """Return how many lengths fall into each class."""
    first = classes(stop).astype(int)
    return np.add.reduceat(np.bincount(lengths, minlength=first[-1] + 1), first)


def score_lengths(tally, stop):
    """Return the number of lengths in each class, of all the lengths."""
    share = -np.diff((1 - stop) ** (classes(stop) - 1), append=0)
    n = tally.sum()
    largest = np.sqrt(np.maximum(share / (1 - share), (1 - share) / share))
    return (tally - n * share) / np.sqrt(n * share * (1 - share)), n, largest


def tally_gaps(bits, p):
    """Return `tally_lengths` from each dropped element to the next, around a ring."""
    dropped = np.flatnonzero(bits == 0)
    return tally_lengths(np.diff(dropped, append=dropped[0] + bits.size), p)


def tally_runs(bits, p):
    """Return `tally_lengths` of the runs of dropped elements, around a ring."""
    changes = np.flatnonzero(bits != np.roll(bits, 1))
    lengths = np.diff(changes, append=changes[0] + bits.size)
    return tally_lengths(lengths[bits[changes] == 0], 1 - p)


def order(draw, p, order, n, seed=SEED):
    """Yield the tests of the first n elements, in parts, along the given order."""
    lags = grams = gaps = runs = 0
    for packed in parts(draw, p, n, seed):
        bits = ordered(packed, order)
        lags, grams = lags + tally_lags(bits), grams + tally_grams(bits)
        gaps, runs = gaps + tally_gaps(bits, p), runs + tally_runs(bits, p)
    yield Scores(f"lags along {order}", p, *score_lags(lags, p, n))
    yield Scores(f"{GRAM}-grams along {order}", p, *score_grams(grams, p, n))
    yield Scores(f"gaps along {order}", p, *score_lengths(gaps, p))
    yield Scores(f"runs along {order}", p, *score_lengths(runs, 1 - p))


# ---- between masks ----------------------------------------------------------------------------


def gray(i, apart=9):
    """Return the Gray code of i in [0, 256), its bits so far apart: spread over 64."""
    code = i ^ (i >> 1)
    return sum((code >> bit & 1) << apart * bit for bit in range(8))


# How many masks, and (seed, call, block) of the i-th one in repetition r.
FAMILIES = {
    "consecutive seeds": (256, lambda i, r: (i, 7, r)),
    "consecutive calls": (256, lambda i, r: (SEED, i, r)),
    "consecutive blocks": (256, lambda i, r: (SEED, r, i)),
    "a grid of seeds and calls": (256, lambda i, r: (i % 16, i // 16, r)),
    "a grid of calls and blocks": (256, lambda i, r: (SEED + r, i % 16, i // 16)),
    "a Gray code of seeds": (256, lambda i, r: (gray(i), 7, r)),
    "a Gray code of calls": (256, lambda i, r: (SEED, gray(i), r)),
    "a Gray code of blocks": (256, lambda i, r: (SEED, r, gray(i, 7))),
    "seeds of 2^k": (64, lambda i, r: (1 << i, 7, r)),
    "calls of 2^k": (64, lambda i, r: (SEED, 1 << i, r)),
    "blocks of 2^k": (50, lambda i, r: (SEED, r, 1 << i)),
}


def family(draw, p, name, repetitions):
    """Yield the products of all pairs of a family's masks, and of all pairs equally far apart."""
    masks, place = FAMILIES[name]
    both, q, n = np.zeros((masks, masks)), 1 - p, BLOCK * repetitions
    for r in range(repetitions):
        names = (place(i, r) for i in range(masks))
        rows = [draw(seed, call, p, BLOCK * block, BLOCK) for seed, call, block in names]
        bits = np.unpackbits(np.array(rows), axis=1).astype(np.float32)
        both += bits @ bits.T
    kept = np.diagonal(both)
    products = (both - q * (kept[:, None] + kept) + n * q**2) / (p * q * math.sqrt(n))
    far = np.arange(1, masks)
    sums = np.array([np.diagonal(products, distance).sum() for distance in far])
    pairs = products[np.triu_indices(masks, 1)]
    yield Scores(f"pairs of {name}", p, pairs, n, extreme(p) ** 2)
    yield Scores(
        f"distances in {name}",
        p,
        sums / np.sqrt(masks - far),
        n * (masks - far),
        extreme(p) ** 2,
    )


def avalanche(draw, p, bases, start=0):
    """Yield how often a flipped bit of seed or call changes each element of a group, and any."""
    flips = [(1 << bit, 0) for bit in range(64)] + [(0, 1 << bit) for bit in range(64)]
    changed, chance = np.zeros((128, 512), np.int64), 2 * p * (1 - p)
    for base in range(bases):
        seed, call = reference.mix(2 * base + 1), reference.mix(2 * base + 2)
        was = draw(seed, call, p, start, 512)
        now = [draw(seed ^ one, call ^ other, p, start, 512) for one, other in flips]
        changed += np.unpackbits(np.array(now) ^ was, axis=1, bitorder="little")
    surplus = (changed - bases * chance) / math.sqrt(bases * chance * (1 - chance))
    yield Scores("avalanche of bit to element", p, surplus, bases, extreme(chance))
    sums = surplus.sum(1) / math.sqrt(512)
    yield Scores("avalanche of bit", p, sums, 512 * bases, extreme(chance))


# ---- inside a lane ----------------------------------------------------------------------------


def lane_words(draw, p, pairs, triples):
    """Yield the correlations of tests/helpers/correlation.py, as scores."""
    q = correlation.rarer(p)
    for points, measure, n in (
        (2, correlation.pair_sigmas, pairs),
        (3, correlation.triple_sigmas, triples),
    ):
        sums = measure(draw, p, n)
        sums = sums[sums != 0]  # of the subsets, each once
        yield Scores(f"{points} points of a lane's words", p, sums, n, extreme(q) ** points)


# ---- all of it --------------------------------------------------------------------------------


def everything(draw, p, effort):
    """Yield the scores of all tests but `lane_words`."""
    yield rate(draw, p, effort.rate)
    for along in ORDERS:
        yield from order(draw, p, along, effort.order)
    for name in FAMILIES:
        yield from family(draw, p, name, effort.repetitions)
    yield from avalanche(draw, p, effort.bases)


def line(scores, seconds):
    """Return a line of the table."""
    sigmas, limit = scores.worst()
    spread = np.square(scores.sigmas).mean()
    return (
        f"{scores.test:38} {scores.p:<6} {scores.sigmas.size:7} {sigmas:8.2f} {limit:8.2f} "
        f"{spread:7.3f} {seconds:7.1f}{'' if scores.passes() else '  PAST ITS LIMIT'}"
    )


def main(arguments=None):
    """Print a line a test, and return the exit code."""
    parser = argparse.ArgumentParser(description="Statistical tests of the masks.")
    parser.add_argument("--long", action="store_true", help="10^11 elements, and much of all else")
    parser.add_argument("--p", type=float, nargs="+", default=PROBABILITIES)
    options = parser.parse_args(arguments)
    print(f"{'test':38} {'p':6} {'sums':>7} {'worst':>8} {'limit':>8} {'square':>7} {'s':>7}")
    passed = True
    for p in options.p:
        tests = [everything(draw, p, LONG if options.long else SHORT)]
        if options.long:
            tests.append(lane_words(draw, p, LONG_PAIRS, LONG_TRIPLES))
        began = time.perf_counter()
        for scores in itertools.chain(*tests):
            print(line(scores, time.perf_counter() - began), flush=True)
            passed = passed and scores.passes()
            began = time.perf_counter()
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
