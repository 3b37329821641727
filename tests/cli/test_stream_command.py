"""`cdropout stream`: which bits come in which order, that they are fair, and how it ends."""

import itertools
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

import cdropout as cd
from cdropout import stream_command
from cdropout.__main__ import main

from .. import reference
from ..helpers.requirements import slow

SEED, CALL = 2**64 - 3, 2**64 - 5  # whose neighbours wrap around to 0
END = 2**64
CHUNK = stream_command.NEIGHBOURS * stream_command.EACH  # elements that are drawn at once
COMMAND = [sys.executable, "-P", "-W", "error", "-m", "cdropout", "stream"]
P_WANTED = "expected a probability from 1e-06 to 0.999999, but got "
NAME = ["--seed", str(SEED), "--call", str(CALL)]


@pytest.fixture
def streamed(capfdbinary):
    """Return a function that returns the first bytes of the stream, made in this process."""

    def stream(*options, size):
        assert main(["stream", *options, "--bytes", str(size)]) == 0
        printed = capfdbinary.readouterr()
        assert printed.err == b"" and len(printed.out) == size
        return np.frombuffer(printed.out, np.uint8)

    return stream


def unpack(octets):
    return np.unpackbits(octets, bitorder="little").astype(bool)


def kept(n, seed=SEED, call=CALL, start=0):
    return cd.Mask(n, 0.5, seed, call, start)


def take_turns(masks, turns):
    """64 elements of each mask, and again."""
    return np.stack([np.asarray(mask).reshape(turns, 64) for mask in masks], axis=1).reshape(-1)


# ---- what comes -------------------------------------------------------------------------------


def test_natural_is_the_mask_itself(streamed):
    size = CHUNK // 8 + 12345  # the second chunk too
    bits = streamed(*NAME, size=size)
    assert bits.tobytes() == kept(8 * size).bits().tobytes()
    first = reference.keep(SEED, CALL, 0.5, 0, 20000)
    np.testing.assert_array_equal(unpack(bits[:2500]), first)


def test_without_options_it_is_mask_0_of_seed_0(streamed):
    assert streamed(size=99).tobytes() == kept(8 * 99, 0, 0).bits().tobytes()


@pytest.mark.parametrize("order, seeds, calls", [("seeds", 1, 0), ("calls", 0, 1)])
def test_seeds_and_calls_take_turns(streamed, order, seeds, calls):
    turns, numbers = stream_command.EACH // 64 + 20, range(stream_command.NEIGHBOURS)
    bits = streamed(*NAME, "--order", order, size=turns * 8 * len(numbers))
    names = [((SEED + i * seeds) % END, (CALL + i * calls) % END) for i in numbers]
    masks = [kept(turns * 64, *name) for name in names]
    np.testing.assert_array_equal(unpack(bits), take_turns(masks, turns))


def test_blocks_take_turns(streamed):
    each = stream_command.NEIGHBOURS * stream_command.BLOCK
    bits = streamed(*NAME, "--order", "blocks", size=(CHUNK + each) // 8)
    for first in range(0, CHUNK + each, each):
        starts = range(first, first + each, stream_command.BLOCK)
        masks = [kept(stream_command.BLOCK, start=start) for start in starts]
        want = take_turns(masks, stream_command.BLOCK // 64)
        part = bits[first // 8 : (first + each) // 8]
        np.testing.assert_array_equal(unpack(part), want, err_msg=str(first))


def test_a_block_is_what_is_seeded_anew():
    assert stream_command.BLOCK == reference.BLOCK


# ---- made fair --------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3, stream_command.DEPTH])
@pytest.mark.parametrize("n", [2, 5, 8, 11])
def test_all_outcomes_of_a_length_are_equally_frequent(n, depth):
    """Whatever p is: inputs with the same number of ones are equally likely, so count by that."""
    counts = {}
    for bits in itertools.product((False, True), repeat=n):
        found = tuple(stream_command.fair(np.array(bits), depth).tolist())
        counts.setdefault((sum(bits), len(found)), Counter())[found] += 1
    assert any(length for _, length in counts)
    for (_, length), outcomes in counts.items():
        assert len(outcomes) == 2**length and len(set(outcomes.values())) == 1


def test_a_deeper_extractor_finds_more():
    bits = np.asarray(cd.Mask(1 << 20, 0.1))
    found = [
        len(stream_command.fair(bits, depth)) / len(bits)
        for depth in range(1, stream_command.DEPTH + 1)
    ]
    assert found == sorted(found) and abs(found[0] - 0.09) < 0.003 and 0.35 < found[-1] < 0.469


@pytest.mark.parametrize("order", stream_command.ORDERS)
@pytest.mark.parametrize("p", [0.1, *slow(0.75)])
def test_bits_of_any_p_are_fair(streamed, p, order):
    size = 200_000
    bits = unpack(streamed("--p", str(p), "--order", order, size=size))
    n = len(bits)
    neighbours = np.count_nonzero(bits[1:] == bits[:-1])
    for count, of in [(np.count_nonzero(bits), n), (neighbours, n - 1)]:
        assert abs(count - of / 2) < 5.2 * np.sqrt(of / 4)  # two-sided normal tail 2e-7


def test_no_fair_bit_is_lost_between_the_parts():
    chunk = next(stream_command.drawn("natural", 0.3, 1, 2))
    parts = np.split(unpack(chunk.view(np.uint8)), stream_command.NEIGHBOURS)
    want = np.concatenate([stream_command.fair(part) for part in parts])
    found = unpack(np.concatenate(list(stream_command.fair_octets([chunk]))))
    assert 0 <= len(want) - len(found) < 8
    np.testing.assert_array_equal(found, want[: len(found)])


# ---- how it ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("p", ["0.5", *slow("0.1")])
def test_the_stream_ends_quietly_when_the_reader_closes(p):
    with subprocess.Popen(
        [*COMMAND, "--p", p], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        read = process.stdout.read(3_000_000)
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b"" and len(read) == 3_000_000


@pytest.mark.parametrize("size", [7, CHUNK // 8 + 1, *slow(1, CHUNK // 8)])
def test_so_many_bytes_come_and_no_more(size):
    done = subprocess.run([*COMMAND, "--bytes", str(size)], capture_output=True)
    assert (done.returncode, done.stderr, len(done.stdout)) == (0, b"", size)


@pytest.mark.parametrize("p", [stream_command.LOWEST_P, 1 - stream_command.LOWEST_P])
def test_the_lowest_rates_give_bytes(p, streamed):
    streamed("--p", str(p), size=1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's full device")
def test_a_full_disk_is_an_error():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(COMMAND, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "cdropout stream: error: cannot write: No space left on device\n"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_a_terminal_gets_nothing():
    screen, terminal = os.openpty()
    done = subprocess.run(COMMAND, stdout=terminal, stderr=subprocess.PIPE, text=True)
    os.close(terminal)
    os.close(screen)
    assert done.returncode == 2
    message = "standard output has to be a pipe or a file, but it is a terminal"
    assert done.stderr == f"cdropout stream: error: {message}\n"


@pytest.mark.parametrize(
    "options, message",
    [
        (["--p", "0"], P_WANTED + "'0'"),
        (["--p", "nan"], P_WANTED + "'nan'"),
        (["--p", "1e-300"], P_WANTED + "'1e-300'"),
        (["--p", "9.9e-7"], P_WANTED + "'9.9e-7'"),
        (["--p", "0.9999991"], P_WANTED + "'0.9999991'"),
        (["--seed", str(2**64)], rf"expected an int in [-2**63, 2**64), but got '{2**64}'"),
        (["--seed", "1.5"], "expected an int in [-2**63, 2**64), but got '1.5'"),
        (["--call", "-1"], "expected an int in [0, 2**64), but got '-1'"),
        (["--bytes", "0"], "expected an int of at least 1, but got '0'"),
        (["--order", "random"], "invalid choice: 'random'"),
    ],
)
def test_bad_options(options, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["stream", *options])
    printed = capsys.readouterr()
    assert caught.value.code == 2 and printed.out == ""
    assert message in printed.err and printed.err.count("\n") == 1
