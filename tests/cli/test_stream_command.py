"""Tests of cdropout.stream_command: order and fairness of the bits, and end of the stream."""

import itertools
import os
import subprocess
from collections import Counter

import numpy as np
import pytest

import cdropout as cd
from cdropout.__main__ import main
from cdropout.stream_command import (
    BLOCK,
    DEPTH,
    INTERLEAVED,
    MIN_P,
    ORDERS,
    PART,
    WRAP,
    extract,
    extract_bytes,
    mask_words,
)

from .. import reference
from ..helpers.command_line import COMMANDS
from ..helpers.requirements import slow

SEED, CALL = 2**64 - 3, 2**64 - 5  # the next seeds and call numbers wrap around to 0
MASK_ID = ["--seed", str(SEED), "--call", str(CALL)]
DRAWN = INTERLEAVED * PART  # number of elements drawn at once
COMMAND = [*COMMANDS["module"], "stream"]


@pytest.fixture
def stream(capfdbinary):
    """Return a function that returns the first `size` bytes that the command prints."""

    def stream(*options, size):
        assert main(["stream", *options, "--bytes", str(size)]) == 0
        printed = capfdbinary.readouterr()
        assert printed.err == b"" and len(printed.out) == size
        return np.frombuffer(printed.out, np.uint8)

    return stream


def unpack(packed):
    return np.unpackbits(packed, bitorder="little").astype(bool)


def mask(n, seed=SEED, call=CALL, start=0):
    return cd.Mask(n, 0.5, seed, call, start)


def interleave(masks, rounds):
    """Return 64 elements of each mask, then the next 64 of each, and so on, `rounds` times."""
    return np.stack([np.asarray(mask).reshape(rounds, 64) for mask in masks], axis=1).reshape(-1)


# ---- orders -----------------------------------------------------------------------------------


def test_natural_order_gives_the_bits_of_the_mask(stream):
    size = DRAWN // 8 + 12345  # more bytes than are drawn at once
    packed = stream(*MASK_ID, size=size)
    assert packed.tobytes() == mask(8 * size).bits().tobytes()
    expected = reference.keep(SEED, CALL, 0.5, 0, 20000)
    np.testing.assert_array_equal(unpack(packed[:2500]), expected)


def test_default_stream_is_the_first_mask_of_seed_0(stream):
    assert stream(size=99).tobytes() == mask(8 * 99, 0, 0).bits().tobytes()


@pytest.mark.parametrize("order, seed_step, call_step", [("seeds", 1, 0), ("calls", 0, 1)])
def test_orders_seeds_and_calls_interleave_masks(stream, order, seed_step, call_step):
    rounds = PART // 64 + 20
    packed = stream(*MASK_ID, "--order", order, size=rounds * 8 * INTERLEAVED)
    masks = [
        mask(rounds * 64, (SEED + i * seed_step) % WRAP, (CALL + i * call_step) % WRAP)
        for i in range(INTERLEAVED)
    ]
    np.testing.assert_array_equal(unpack(packed), interleave(masks, rounds))


def test_order_blocks_interleaves_blocks(stream):
    n = INTERLEAVED * BLOCK
    packed = stream(*MASK_ID, "--order", "blocks", size=(DRAWN + n) // 8)
    for first in range(0, DRAWN + n, n):
        masks = [mask(BLOCK, start=start) for start in range(first, first + n, BLOCK)]
        found = unpack(packed[first // 8 : (first + n) // 8])
        np.testing.assert_array_equal(found, interleave(masks, BLOCK // 64), err_msg=str(first))


def test_block_length_equals_block_length_of_reference():
    assert BLOCK == reference.BLOCK


# ---- the extractor ----------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3, DEPTH])
@pytest.mark.parametrize("n", [2, 5, 8, 11])
def test_extract_gives_results_of_equal_length_equally_often(n, depth):
    """For every p, inputs with the same number of ones are equally likely."""
    counts = {}
    for bits in itertools.product((False, True), repeat=n):
        found = tuple(extract(np.array(bits), depth).tolist())
        counts.setdefault((sum(bits), len(found)), Counter())[found] += 1
    assert any(length for _, length in counts)
    for (_, length), results in counts.items():
        assert len(results) == 2**length and len(set(results.values())) == 1


def test_extract_with_a_larger_depth_gives_more_bits():
    bits = np.asarray(cd.Mask(1 << 20, 0.1))
    found = [len(extract(bits, depth)) / len(bits) for depth in range(1, DEPTH + 1)]
    assert found == sorted(found) and abs(found[0] - 0.09) < 0.003 and 0.35 < found[-1] < 0.469


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("p", [0.1, *slow(0.75)])
def test_bits_of_the_stream_are_fair_for_every_p(stream, p, order):
    bits = unpack(stream("--p", str(p), "--order", order, size=200_000))
    n = len(bits)
    equal_pairs = np.count_nonzero(bits[1:] == bits[:-1])
    for count, total in [(np.count_nonzero(bits), n), (equal_pairs, n - 1)]:
        assert abs(count - total / 2) < 5.2 * np.sqrt(total / 4)  # exceeded with probability 2e-7


def test_extract_bytes_loses_no_bits_between_parts():
    words = next(mask_words("natural", 0.3, 1, 2))
    parts = np.split(unpack(words.view(np.uint8)), INTERLEAVED)
    expected = np.concatenate([extract(part) for part in parts])
    found = unpack(np.concatenate(list(extract_bytes([words]))))
    assert 0 <= len(expected) - len(found) < 8
    np.testing.assert_array_equal(found, expected[: len(found)])


# ---- the end of the stream --------------------------------------------------------------------


@pytest.mark.parametrize("p", ["0.5", *slow("0.1")])
def test_stream_ends_when_the_reader_closes_the_pipe(p):
    with subprocess.Popen(
        [*COMMAND, "--p", p], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        read = process.stdout.read(3_000_000)
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b"" and len(read) == 3_000_000


@pytest.mark.parametrize("size", [7, DRAWN // 8 + 1, *slow(1, DRAWN // 8)])
def test_stream_has_the_requested_size(size):
    done = subprocess.run([*COMMAND, "--bytes", str(size)], capture_output=True)
    assert (done.returncode, done.stderr, len(done.stdout)) == (0, b"", size)


@pytest.mark.parametrize("p", [MIN_P, 1 - MIN_P])
def test_stream_with_the_lowest_or_highest_p_prints_bytes(p, stream):
    stream("--p", str(p), size=1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's full device")
def test_stream_to_a_full_disk_exits_with_code_1():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(COMMAND, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "cdropout stream: error: cannot write: No space left on device\n"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_stream_to_a_terminal_is_rejected():
    screen, terminal = os.openpty()
    done = subprocess.run(COMMAND, stdout=terminal, stderr=subprocess.PIPE, text=True)
    os.close(terminal)
    os.close(screen)
    assert done.returncode == 2
    message = "standard output has to be a pipe or a file, but it is a terminal"
    assert done.stderr == f"cdropout stream: error: {message}\n"
