"""The statistical tests in short, and for each of them a bad generator that it catches."""

import math
from itertools import pairwise

import numpy as np
import pytest

from ..helpers import randomness
from ..helpers.randomness import BLOCK, FAMILIES, GRAM, LAGS, ORDERS, PART, SEED, SHORT, draw
from ..helpers.requirements import slow

FEW = 1 << 20  # elements, in the tests of the arithmetic


@pytest.mark.slow
@pytest.mark.parametrize("p", randomness.PROBABILITIES)
def test_the_masks_pass(p):
    rate, *others = randomness.everything(draw, p, SHORT)
    assert abs(rate.sigmas[0]) < 4  # of 10^10 elements
    for scores in others:
        assert scores.passes(), randomness.line(scores, 0)


def test_the_tests_are_as_many_as_share_the_false_alarm():
    effort = randomness.Effort(PART, PART, 1, 1)
    each = len(list(randomness.everything(draw, 0.5, effort)))
    assert len(randomness.PROBABILITIES) * (each + 2) <= randomness.TESTS  # 2: lane_words


# ---- damaged masks ----------------------------------------------------------------------------


def caught(tests):
    """Return the names of the tests that fail."""
    return {scores.test for scores in tests if not scores.passes()}


def biased(*name):
    """Draw, and keep one element in 1024 whatever was drawn."""
    packed = draw(*name)
    packed[::128] |= 1
    return packed


def damaged(order, damage):
    """Return a draw of which `damage` changes the bits, as they lie along `order`, in place."""

    def draw_damaged(*name):
        bits = randomness.ordered(draw(*name), order)
        damage(bits)
        axis = ORDERS[order]
        shape = [bits.size // BLOCK, 16, 8, 64]
        moved = bits.reshape(*shape[:axis], *shape[axis + 1 :], shape[axis])
        return np.packbits(np.moveaxis(moved, -1, axis), bitorder="little")

    return draw_damaged


def copy_neighbour(bits):
    """Let one element in 64 be as the one before it."""
    bits[5::64] = bits[4::64]


def add_neighbours(bits):
    """Let one element in 64 be the sum of the two before it: of the three, any two are free."""
    bits[5::64] = bits[4::64] ^ bits[3::64]


def shorten_runs(bits):
    """Let no run of dropped elements be longer than 12."""
    dropped = bits == 0
    bits[np.all([np.roll(dropped, i) for i in range(13)], axis=0)] = 1


def leaking(change, which=slice(None)):
    """Return a draw that takes one element in 16 from the mask that `change` names instead.

    `which` says from what bytes on it does so.
    """
    mixed = np.array([0, 32], np.uint8)  # element 5 of a byte, of every other one

    def draw_leaking(seed, call, p, start, n):
        packed = draw(seed, call, p, start, n)
        seed, call, block = change(seed, call, start // BLOCK)
        other = draw(seed, call, p, block * BLOCK + start % BLOCK, n)
        mask = np.resize(mixed, packed.size)
        packed[which] ^= ((packed ^ other) & mask)[which]
        return packed

    return draw_leaking


def fold(value, bits):
    """Return its halves added, so that 2**k and 2**(k + bits) come to the same."""
    return (value ^ value >> bits) & ((1 << bits) - 1)


def test_a_bias_is_caught():
    assert randomness.rate(draw, 0.5, 10**9).passes()
    assert not randomness.rate(biased, 0.5, 10**9).passes()


@pytest.mark.parametrize("p", [0.5, *slow(0.1)])
@pytest.mark.parametrize("order", ORDERS)
def test_neighbours_that_are_alike_are_caught(order, p):
    tests = randomness.order(damaged(order, copy_neighbour), p, order, PART)
    assert caught(tests) == {f"{t} along {order}" for t in ("lags", "16-grams", "gaps", "runs")}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_neighbours_that_are_dependent_only_by_threes_are_caught(order):
    found = caught(randomness.order(damaged(order, add_neighbours), 0.5, order, PART))
    assert f"16-grams along {order}" in found and f"lags along {order}" not in found


def test_runs_that_are_too_short_are_caught():
    found = caught(randomness.order(damaged("elements", shorten_runs), 0.5, "elements", PART))
    assert "runs along elements" in found


# A change of the name (seed, call, block) under which masks of the family share elements.
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
def test_masks_that_share_elements_are_caught(name):
    found = caught(randomness.family(leaking(LEAKS[name]), 0.5, name, SHORT.repetitions))
    assert f"pairs of {name}" in found


def test_masks_that_all_share_a_little_are_caught():
    """One element in 512 is the same in all: too few for any one pair, not for all of them."""

    def draw_alike(seed, call, p, start, n):
        packed = draw(seed, call, p, start, n)
        packed[::64] &= 254
        packed[::64] |= draw(SEED, 0, p, start, n)[::64] & 1
        return packed

    name = "consecutive seeds"
    found = caught(randomness.family(draw_alike, 0.5, name, 16))
    assert found == {f"distances in {name}"}


@pytest.mark.slow
@pytest.mark.parametrize("p, bases", [(0.5, 120), (0.1, 400)])
def test_bits_of_seed_and_call_that_do_less_are_caught(p, bases):
    one_element = leaking(lambda seed, call, block: (seed & ~(1 << 17), call, block), [13])
    assert caught(randomness.avalanche(one_element, p, bases)) == {"avalanche of bit to element"}
    some = leaking(lambda seed, call, block: (seed, call & ~(1 << 63), block))
    assert "avalanche of bit" in caught(randomness.avalanche(some, p, bases))


# ---- the arithmetic ---------------------------------------------------------------------------


def standardised(bits, p):
    return (bits - (1 - p)) / math.sqrt(p * (1 - p))


def test_lags_are_sums_of_products():
    bits = np.random.default_rng(1).integers(0, 2, FEW, np.uint8)
    sums, n, _ = randomness.score_lags(randomness.tally_lags(bits), 0.3, FEW)
    z = standardised(bits, 0.3)
    for i in (0, 4, 62, 63, 64, 70, 80, 90):
        expected = (z * np.roll(z, -LAGS[i])).sum() / math.sqrt(FEW)
        assert sums[i] == pytest.approx(expected, rel=1e-6) and n == FEW


def test_grams_are_sums_of_products():
    bits = (np.random.default_rng(1).random(FEW) < 0.8).astype(np.uint8)
    sums, n, largest = randomness.score_grams(randomness.tally_grams(bits), 0.3, FEW)
    z = standardised(bits.reshape(n, GRAM), 0.3)
    for subset in (1, 2, 3, 2**15, 0b1001000000000100):
        members = [i for i in range(GRAM) if subset >> i & 1]
        products = z[:, members].prod(axis=1)
        assert sums[subset - 1] == pytest.approx(products.sum() / math.sqrt(n), abs=1e-6)
        assert np.abs(products).max() <= largest[subset - 1] * (1 + 1e-9)


@pytest.mark.parametrize("p", randomness.PROBABILITIES)
def test_gaps_and_runs_are_counted_around_a_ring(p):
    bits = (np.random.default_rng(1).random(5000) >= p).astype(np.uint8)
    text = bits.tobytes().translate(bytes([48, 49]) + bytes(254)).decode()
    first = text.index("10") + 1  # where a run of dropped elements begins
    text = text[first:] + text[:first]
    gaps = [len(kept) + 1 for kept in text.split("0")[1:]]
    runs = [len(run) for run in text.split("1") if run]
    for tally, lengths, stop in (
        (randomness.tally_gaps(bits, p), gaps, p),
        (randomness.tally_runs(bits, p), runs, 1 - p),
    ):
        edges = [*randomness.classes(stop), math.inf]
        assert list(tally) == np.histogram(lengths, edges)[0].tolist()


@pytest.mark.parametrize("stop", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_the_classes_have_their_shares(stop):
    tally = np.zeros(randomness.classes(stop).size)
    tally[0] = 100
    sums, n, _ = randomness.score_lengths(tally, stop)
    edges = [*map(int, randomness.classes(stop)), 10**6]  # nothing is left past that
    chance = stop * (1 - stop) ** np.arange(10**6)
    share = np.array([chance[a - 1 : b - 1].sum() for a, b in pairwise(edges)])
    expected = (tally - 100 * share) / np.sqrt(100 * share * (1 - share))
    assert n == 100
    np.testing.assert_allclose(sums, expected, rtol=1e-6)


# ---- the command line -------------------------------------------------------------------------


def test_the_command_prints_a_line_a_test_and_fails_with_them(monkeypatch, capsys):
    monkeypatch.setattr(randomness, "SHORT", randomness.Effort(10**8, PART, 1, 10))
    assert randomness.main(["--p", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 1 + 4 * len(ORDERS) + 2 * len(FAMILIES) + 2
    assert not any("PAST" in line for line in lines)
    monkeypatch.setattr(randomness, "draw", biased)
    assert randomness.main(["--p", "0.5"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("keep rate ") and lines[1].endswith("PAST ITS LIMIT")
