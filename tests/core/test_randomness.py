"""Statistical tests of masks, tests that faulty generators fail, and tests of the arithmetic."""

import math
from itertools import pairwise

import numpy as np
import pytest

from ..helpers import randomness
from ..helpers.randomness import (
    BLOCK,
    CHUNK,
    FAMILIES,
    GRAM,
    LAGS,
    ORDERS,
    QUICK_EFFORT,
    SEED,
    draw,
)
from ..helpers.requirements import needs_numpy_2, slow

pytestmark = needs_numpy_2

FEW = 1 << 20  # number of elements in the tests of score_lags and score_grams


@pytest.mark.slow
@pytest.mark.parametrize("p", randomness.PROBABILITIES)
def test_masks_pass_all_statistical_tests(p):
    rate, *others = randomness.all_tests(draw, p, QUICK_EFFORT)
    assert abs(rate.sigmas[0]) < 4  # deviation of the number of kept elements among 10**10
    for scores in others:
        assert scores.passes(), (scores.test, scores.worst())


def test_number_of_statistical_tests_does_not_exceed_the_assumed_number():
    """The limits of the scores are computed for at most TESTS tests."""
    effort = randomness.Effort(CHUNK, CHUNK, 1, 1)
    each = len(list(randomness.all_tests(draw, 0.5, effort))) + 2  # 2 tests of lanes are omitted
    assert len(randomness.PROBABILITIES) * each <= randomness.TESTS


# ---- faulty generators ------------------------------------------------------------------------


def failed(tests):
    """Return the names of the statistical tests that fail."""
    return {scores.test for scores in tests if not scores.passes()}


def draw_biased(*arguments):
    """Draw bits, but always keep one element in 1024."""
    packed = draw(*arguments)
    packed[::128] |= 1
    return packed


def damaged(order, damage):
    """Return a draw function that applies `damage` to the bits, arranged along `order`."""

    def draw_damaged(*arguments):
        bits = randomness.ordered(draw(*arguments), order)
        damage(bits)
        axis = ORDERS[order]
        shape = [bits.size // BLOCK, 16, 8, 64]
        moved = bits.reshape(*shape[:axis], *shape[axis + 1 :], shape[axis])
        return np.packbits(np.moveaxis(moved, -1, axis), bitorder="little")

    return draw_damaged


def copy_neighbour(bits):
    """Make one element in 64 equal to its predecessor."""
    bits[5::64] = bits[4::64]


def add_neighbours(bits):
    """Set one element in 64 to the XOR of its two predecessors; pairs remain independent."""
    bits[5::64] = bits[4::64] ^ bits[3::64]


def shorten_runs(bits):
    """Shorten runs of dropped elements to at most 12 elements."""
    dropped = bits == 0
    bits[np.all([np.roll(dropped, i) for i in range(13)], axis=0)] = 1


def leaking(change, which=slice(None)):
    """Return a draw function that takes one element in 16 from another mask.

    `change` maps seed, call and block to those of the other mask. `which` selects the bytes that
    are changed.
    """
    mixed = np.array([0, 32], np.uint8)  # element 5 of every second byte

    def draw_leaking(seed, call, p, start, n):
        packed = draw(seed, call, p, start, n)
        seed, call, block = change(seed, call, start // BLOCK)
        other = draw(seed, call, p, block * BLOCK + start % BLOCK, n)
        mask = np.resize(mixed, packed.size)
        packed[which] ^= ((packed ^ other) & mask)[which]
        return packed

    return draw_leaking


def fold(value, bits):
    """Return the XOR of both halves of a number; the result is equal for 2**k and 2**(k + bits)."""
    return (value ^ value >> bits) & ((1 << bits) - 1)


def test_biased_generator_fails():
    assert randomness.rate(draw, 0.5, 10**9).passes()
    assert not randomness.rate(draw_biased, 0.5, 10**9).passes()


@pytest.mark.parametrize("p", [0.5, *slow(0.1)])
@pytest.mark.parametrize("order", ORDERS)
def test_generator_with_equal_neighbours_fails(order, p):
    tests = randomness.order(damaged(order, copy_neighbour), p, order, CHUNK)
    assert failed(tests) == {f"{t} along {order}" for t in ("lags", "16-grams", "gaps", "runs")}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_generator_with_dependent_triples_fails(order):
    names = failed(randomness.order(damaged(order, add_neighbours), 0.5, order, CHUNK))
    assert f"16-grams along {order}" in names and f"lags along {order}" not in names


def test_generator_with_short_runs_fails():
    names = failed(randomness.order(damaged("elements", shorten_runs), 0.5, "elements", CHUNK))
    assert "runs along elements" in names


# For each family, a function that returns the same (seed, call, block) for two or more masks.
LEAKS = {
    "consecutive seeds": lambda seed, call, block: (seed & ~1, call, block),
    "consecutive calls": lambda seed, call, block: (seed, call & ~1, block),
    "consecutive blocks": lambda seed, call, block: (seed, call, block & ~1),
    "a grid of seeds and calls": lambda seed, call, block: (seed + call, 0, block),
    "a grid of calls and blocks": lambda seed, call, block: (seed, 0, call + block),
    "a Gray code of seeds": lambda seed, call, block: (seed & ~(1 << 63), call, block),
    "a Gray code of calls": lambda seed, call, block: (seed, call & ~(1 << 36), block),
    "a Gray code of blocks": lambda seed, call, block: (seed, call, block & ~(1 << 49)),
    "seeds of 2^k": lambda seed, call, block: (fold(seed, 32), call, block),
    "calls of 2^k": lambda seed, call, block: (seed, fold(call, 32), block),
    "blocks of 2^k": lambda seed, call, block: (seed, call, fold(block, 25)),
}


FEW_FAMILIES = ["consecutive seeds", "a grid of calls and blocks", "blocks of 2^k"]


@pytest.mark.parametrize("name", [*FEW_FAMILIES, *slow(*sorted(FAMILIES.keys() - FEW_FAMILIES))])
def test_generator_with_common_elements_in_two_masks_fails(name):
    names = failed(randomness.family(leaking(LEAKS[name]), 0.5, name, QUICK_EFFORT.repetitions))
    assert f"pairs of {name}" in names


def test_generator_with_few_common_elements_in_all_masks_fails():
    """One element in 512 is equal in all masks, which no test of a single pair of masks detects."""

    def draw_similar(seed, call, p, start, n):
        packed = draw(seed, call, p, start, n)
        packed[::64] &= 254
        packed[::64] |= draw(SEED, 0, p, start, n)[::64] & 1
        return packed

    name = "consecutive seeds"
    names = failed(randomness.family(draw_similar, 0.5, name, 16))
    assert names == {f"distances in {name}"}


@pytest.mark.slow
@pytest.mark.parametrize("p, bases", [(0.5, 120), (0.1, 400)])
def test_generator_with_weak_bits_of_seed_and_call_fails(p, bases):
    one_element = leaking(lambda seed, call, block: (seed & ~(1 << 17), call, block), [13])
    assert failed(randomness.avalanche(one_element, p, bases)) == {"avalanche of bit to element"}
    some = leaking(lambda seed, call, block: (seed, call & ~(1 << 63), block))
    assert "avalanche of bit" in failed(randomness.avalanche(some, p, bases))


# ---- the arithmetic ---------------------------------------------------------------------------


def standardised(bits, p):
    return (bits - (1 - p)) / math.sqrt(p * (1 - p))


def test_score_lags_returns_sums_of_products():
    bits = np.random.default_rng(1).integers(0, 2, FEW, np.uint8)
    sums, n, _ = randomness.score_lags(randomness.tally_lags(bits), 0.3, FEW)
    z = standardised(bits, 0.3)
    for i in (0, 4, 62, 63, 64, 70, 80, 90):
        expected = (z * np.roll(z, -LAGS[i])).sum() / math.sqrt(FEW)
        assert sums[i] == pytest.approx(expected, rel=1e-6) and n == FEW


def test_score_grams_returns_sums_of_products():
    bits = (np.random.default_rng(1).random(FEW) < 0.8).astype(np.uint8)
    sums, n, largest = randomness.score_grams(randomness.tally_grams(bits), 0.3, FEW)
    z = standardised(bits.reshape(n, GRAM), 0.3)
    for subset in (1, 2, 3, 2**15, 0b1001000000000100):
        members = [i for i in range(GRAM) if subset >> i & 1]
        products = z[:, members].prod(axis=1)
        assert sums[subset - 1] == pytest.approx(products.sum() / math.sqrt(n), abs=1e-6)
        assert np.abs(products).max() <= largest[subset - 1] * (1 + 1e-9)


@pytest.mark.parametrize("p", randomness.PROBABILITIES)
def test_tally_gaps_and_tally_runs_count_lengths_in_a_ring(p):
    bits = (np.random.default_rng(1).random(5000) >= p).astype(np.uint8)
    text = bits.tobytes().translate(bytes([48, 49]) + bytes(254)).decode()
    first = text.index("10") + 1  # start of a run of dropped elements
    text = text[first:] + text[:first]
    gaps = [len(kept) + 1 for kept in text.split("0")[1:]]
    runs = [len(run) for run in text.split("1") if run]
    for tally, lengths, stop in (
        (randomness.tally_gaps(bits, p), gaps, p),
        (randomness.tally_runs(bits, p), runs, 1 - p),
    ):
        edges = [*randomness.length_classes(stop), math.inf]
        assert list(tally) == np.histogram(lengths, edges)[0].tolist()


@pytest.mark.parametrize("stop", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_score_lengths_returns_standardised_numbers(stop):
    tally = np.zeros(randomness.length_classes(stop).size)
    tally[0] = 100
    sums, n, _ = randomness.score_lengths(tally, stop)
    edges = [*map(int, randomness.length_classes(stop)), 10**6]  # longer lengths are negligible
    chance = stop * (1 - stop) ** np.arange(10**6)
    chances = np.array([chance[a - 1 : b - 1].sum() for a, b in pairwise(edges)])
    expected = (tally - 100 * chances) / np.sqrt(100 * chances * (1 - chances))
    assert n == 100
    np.testing.assert_allclose(sums, expected, rtol=1e-6)
