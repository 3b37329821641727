"""The command `cdropout stream`: mask bits on standard output, for statistical test suites."""

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

BLOCK = 8192  # elements between two seedings; as in _core/stream.pxd
INTERLEAVED = 16  # masks or blocks per interleaved order
PART = 32 * BLOCK  # elements of a mask drawn per call; INTERLEAVED of them take half a MiB
PIPE_SIZE = 1 << 20  # bytes; the usual 64 KiB halve the speed
DEPTH = 6  # of the extractor: at p = 0.1 it finds 0.36 of 0.47 possible bits per element
MIN_P = 1e-6  # of a drop and of a keep; less entropy yields hardly any bytes
ORDERS = ("natural", "seeds", "calls", "blocks")
WRAP = 2**64  # number of positions of a mask, of seeds and of calls
HELP = f"""
orders:
  natural  the elements of one mask in order
  seeds    {INTERLEAVED} masks with the seeds S, S + 1, ... interleaved: 64 elements of each mask,
           then the next 64 of each, and so on
  calls    the same with the call numbers C, C + 1, ...
  blocks   {INTERLEAVED} blocks of one mask, each seeded separately, interleaved in the same way;
           after their {BLOCK} elements, the next {INTERLEAVED} blocks

The stream ends with exit code 0 when the reader closes the pipe.
"""

# ---- masks ------------------------------------------------------------------------------------


def mask_words(order: str, p: float, seed: int, call: int) -> Iterator[NDArray[np.uint64]]:
    """Yield mask bits as contiguous arrays of 64-bit integers, least significant bit first.

    Parameters
    ----------
    order : one of ORDERS
    p, seed, call
        As those of `cdropout.Mask`, 0 < p < 1. Seeds and calls wrap around at 2**64.
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
    """Return fair bits: each is 1 with probability exactly 1/2.

    Parameters
    ----------
    bits : array of bool
        Independent bits with any common probability.
    depth : int
        The number of levels, at least 1. One level is von Neumann's procedure; each further level
        uses bits that the level before discards.

    Notes
    -----
    Peres (1992), Iterating von Neumann's procedure for extracting random bits: if two bits differ,
    the first one is fair. Which pairs differ, and the values of equal pairs, are again independent
    bits.
    """
    first, second = bits[: len(bits) // 2 * 2].reshape(-1, 2).T
    differ = first != second
    found = first.compress(differ)  # boolean indexing takes four times as long
    if depth == 1 or len(bits) < 4:
        return found
    equal = first.compress(~differ)
    return np.concatenate([found, extract(differ, depth - 1), extract(equal, depth - 1)])


def extract_bytes(arrays: Iterable[NDArray[np.uint64]]) -> Iterator[NDArray[np.uint8]]:
    """Yield packed fair bits of packed bits; an incomplete byte is carried over to the next."""
    rest = np.empty(0, bool)
    for words in arrays:
        for part in np.split(words.reshape(-1), INTERLEAVED):  # the bits of a part fit the cache
            bits = np.unpackbits(part.view(np.uint8), bitorder="little").view(bool)
            bits = np.concatenate([rest, extract(bits)])
            whole = len(bits) // 8 * 8
            rest = bits[whole:]
            yield np.packbits(bits[:whole], bitorder="little")


# ---- output -----------------------------------------------------------------------------------


def enlarge_pipe(descriptor: int) -> None:
    """Let a pipe hold PIPE_SIZE bytes, where the system supports it."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)


def write(arrays: Iterable[NDArray[Any]], descriptor: int, limit: int | None = None) -> None:
    """Write arrays to a file descriptor, up to `limit` bytes if it is given."""
    for array in arrays:
        data = array.data.cast("B")[:limit]
        limit = None if limit is None else limit - len(data)
        while data:
            data = data[os.write(descriptor, data) :]
        if limit == 0:
            return


def run(options: Namespace, error: Callable[[str], NoReturn]) -> int:
    """Write bits until the reader closes the pipe or options.bytes are written."""
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
        return 0  # the usual end of an endless stream
    except OSError as problem:
        print(f"cdropout stream: error: cannot write: {problem.strerror}", file=sys.stderr)
        return 1
    return 0
