"""The command `cdropout stream`, which writes mask bits for tests of random number generators."""

from __future__ import annotations

import contextlib
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

import cdropout as cd

BLOCK = 8192  # elements per block of the stream, as in _core/stream.pxd
INTERLEAVED = 16  # number of masks or blocks that are interleaved
PART = 32 * BLOCK  # an array has INTERLEAVED * PART mask bits, which take half a MiB
PIPE_SIZE = 1 << 20  # bytes; a pipe of the default size, 64 KiB, halves the speed
DEPTH = 6  # levels of the extractor, which finds 0.36 of 0.47 possible bits per element at p = 0.1
MIN_P = 1e-6  # lower limit of p and of 1 - p, below which the extractor yields hardly any bytes
ORDERS = ("natural", "seeds", "calls", "blocks")
WRAP = 2**64  # positions, seeds and call numbers are in [0, WRAP)
DESCRIPTION = """\
Write mask bits to standard output, the least significant bit of a byte first.
For p = 1/2, the bits are written as they are drawn. For another p, an exact
extractor (Peres 1992) makes fair bits out of them."""
HELP = f"""\
orders:
  natural  the elements of one mask, in order
  seeds    {INTERLEAVED} interleaved masks with the seeds S, S + 1, ...: 64 elements of
           each mask, then the next 64 of each, and so on
  calls    the same with the call numbers C, C + 1, ...
  blocks   {INTERLEAVED} interleaved blocks of one mask, each seeded separately; after
           their {BLOCK} elements, the next {INTERLEAVED} blocks

The command ends with exit code 0 when the reader closes the pipe.

examples:
  cdropout stream --bytes 1000000 > bits
  cdropout stream --seed 1 --order seeds | RNG_test stdin64"""

# ---- masks ------------------------------------------------------------------------------------


def mask_words(order: str, p: float, seed: int, call: int) -> Iterator[NDArray[np.uint64]]:
    """Yield mask bits as contiguous arrays of 64-bit integers, least significant bit first.

    Parameters
    ----------
    order : one of ORDERS
    p, seed, call
        As in `cdropout.Mask`, with 0 < p < 1. Seeds and call numbers wrap around at 2**64.
    """
    if order in ("natural", "blocks"):
        for start in range(0, WRAP, INTERLEAVED * PART):
            bits = cd.Mask(INTERLEAVED * PART, p, seed, call, start).bits()
            words: NDArray[np.uint64] = bits.view(np.uint64)
            if order == "blocks":
                words = words.reshape(-1, INTERLEAVED, BLOCK // 64).swapaxes(1, 2)
            yield np.ascontiguousarray(words)
        return
    seed_step, call_step = (1, 0) if order == "seeds" else (0, 1)
    ids = [
        ((seed + i * seed_step) % WRAP, (call + i * call_step) % WRAP) for i in range(INTERLEAVED)
    ]
    for start in range(0, WRAP, PART):
        words = np.empty((PART // 64, INTERLEAVED), np.uint64)
        for i, mask_id in enumerate(ids):
            words[:, i] = cd.Mask(PART, p, *mask_id, start).bits().view(np.uint64)
        yield words


# ---- the extractor ----------------------------------------------------------------------------


def extract(bits: NDArray[np.bool_], depth: int = DEPTH) -> NDArray[np.bool_]:
    """Return fair bits, each of which is 1 with probability exactly 1/2.

    Parameters
    ----------
    bits : array of bool
        Independent bits, all of which are 1 with the same, arbitrary probability.
    depth : int
        The number of levels, at least 1. The first level is von Neumann's procedure; each further
        level uses information that the previous level discards.

    Notes
    -----
    Peres (1992), Iterating von Neumann's procedure for extracting random bits: the bits are split
    into pairs. If the two bits of a pair differ, the first one is fair. The next level uses two
    sequences of independent bits: for each pair, one bit that indicates whether its bits differ,
    and for each pair of equal bits, one of the two bits.
    """
    first, second = bits[: len(bits) // 2 * 2].reshape(-1, 2).T
    differ = first != second
    found = first.compress(differ)  # four times as fast as boolean indexing
    if depth == 1 or len(bits) < 4:
        return found
    equal = first.compress(~differ)
    return np.concatenate([found, extract(differ, depth - 1), extract(equal, depth - 1)])


def extract_bytes(arrays: Iterable[NDArray[np.uint64]]) -> Iterator[NDArray[np.uint8]]:
    """Extract fair bits from arrays of packed bits, and yield the fair bits as packed bytes.

    Fair bits that do not fill a byte are kept until the next bits are extracted.
    """
    rest = np.empty(0, bool)
    for words in arrays:
        for part in np.split(words.reshape(-1), INTERLEAVED):  # the bits of a part fit in the cache
            bits = np.unpackbits(part.view(np.uint8), bitorder="little").view(bool)
            bits = np.concatenate([rest, extract(bits)])
            whole = len(bits) // 8 * 8
            rest = bits[whole:]
            yield np.packbits(bits[:whole], bitorder="little")


# ---- output -----------------------------------------------------------------------------------


def enlarge_pipe(descriptor: int) -> None:
    """Set the capacity of a pipe to PIPE_SIZE bytes if the system supports this."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)


def write(arrays: Iterable[NDArray[Any]], descriptor: int, limit: int | None = None) -> None:
    """Write arrays to a file descriptor, but at most `limit` bytes unless `limit` is None."""
    for array in arrays:
        data = array.data.cast("B")[:limit]
        limit = None if limit is None else limit - len(data)
        while data:
            data = data[os.write(descriptor, data) :]
        if limit == 0:
            return


def run(options: Namespace, error: Callable[[str], NoReturn]) -> int:
    """Write mask bits, and return the exit code.

    The output ends after options.bytes bytes, or when the reader closes the pipe.
    """
    if sys.stdout is None:
        error("standard output is closed")
    descriptor = sys.stdout.fileno()
    if os.isatty(descriptor):
        error("standard output has to be a pipe or a file, but it is a terminal")
    enlarge_pipe(descriptor)
    words = mask_words(options.order, options.p, options.seed, options.call)
    try:
        write(words if options.p == 0.5 else extract_bytes(words), descriptor, options.bytes)
    except BrokenPipeError:
        return 0  # the reader of an endless stream usually closes the pipe
    except OSError as problem:
        print(f"cdropout stream: error: cannot write: {problem.strerror}", file=sys.stderr)
        return 1
    return 0
