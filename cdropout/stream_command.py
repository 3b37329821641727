"""The command `cdropout stream`: mask bits on standard output, for batteries of tests."""

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

BLOCK = 8192  # elements between two seedings: must match _core/stream.pxd
NEIGHBOURS = 16  # masks, or blocks, that take turns
EACH = 32 * BLOCK  # elements that are drawn of a mask at once: with those of the others, half a MiB
PIPE = 1 << 20  # bytes that a pipe may hold: with the usual 64 KiB, half of the time goes in waits
DEPTH = 6  # of the extractor: at p = 0.1 it gives 0.36 bits an element, of the 0.47 that there are
ORDERS = ("natural", "seeds", "calls", "blocks")
HELP = f"""
what follows what:
  natural  the elements of one mask, in order
  seeds    64 elements each of {NEIGHBOURS} masks, of the seeds S, S + 1, ...; then the next 64
           elements of each, and so on
  calls    the same with the call numbers C, C + 1, ...
  blocks   64 elements each of {NEIGHBOURS} blocks of one mask, every one seeded by itself; then the
           next 64 of each, and so on; after all {BLOCK}, the next {NEIGHBOURS} blocks

The stream ends, with exit code 0, when the reader closes the pipe.
"""
LOWEST_P = 1e-6  # and of a keep: a lower one has so little entropy that no bytes would come
END = 2**64  # positions of a mask, numbers of seeds and of calls

# ---- what is drawn ----------------------------------------------------------------------------


def drawn(order: str, p: float, seed: int, call: int) -> Iterator[NDArray[np.uint64]]:
    """Yield keep bits, as contiguous arrays of uint64 words, least significant bit first.

    Parameters
    ----------
    order : one of ORDERS
    p, seed, call
        As those of `cdropout.Mask`, 0 < p < 1. Seeds and calls wrap around at 2**64.
    """
    if order in ("natural", "blocks"):
        for start in range(0, END, NEIGHBOURS * EACH):
            drawn = cd.Mask(NEIGHBOURS * EACH, p, seed, call, start).bits()
            words: NDArray[np.uint64] = drawn.view(np.uint64)
            if order == "blocks":
                words = words.reshape(-1, NEIGHBOURS, BLOCK // 64).swapaxes(1, 2)
            yield np.ascontiguousarray(words)
        return
    step = (1, 0) if order == "seeds" else (0, 1)
    names = [((seed + i * step[0]) % END, (call + i * step[1]) % END) for i in range(NEIGHBOURS)]
    for start in range(0, END, EACH):
        words = np.empty((EACH // 64, NEIGHBOURS), np.uint64)
        for i, name in enumerate(names):
            words[:, i] = cd.Mask(EACH, p, *name, start).bits().view(np.uint64)
        yield words


# ---- made fair --------------------------------------------------------------------------------


def fair(bits: NDArray[np.bool_], depth: int = DEPTH) -> NDArray[np.bool_]:
    """Return bits that are 1 with probability 1/2, exactly, whatever p is.

    Parameters
    ----------
    bits : array of bool, drawn independently of each other with one p
    depth : int, at least 1
        1 is von Neumann's procedure; each more takes what the one before leaves.

    Notes
    -----
    Peres (1992), Iterating von Neumann's procedure for extracting random bits: of two bits that
    differ the first is fair; which pairs differ, and what the equal ones are, are such bits again.
    """
    first, second = bits[: len(bits) // 2 * 2].reshape(-1, 2).T
    differ = first != second
    found = first.compress(differ)  # an index of bools takes four times as long
    if depth == 1 or len(bits) < 4:
        return found
    equal = first.compress(~differ)
    return np.concatenate([found, fair(differ, depth - 1), fair(equal, depth - 1)])


def fair_octets(chunks: Iterable[NDArray[np.uint64]]) -> Iterator[NDArray[np.uint8]]:
    """Yield packed bits made fair of packed bits; what does not fill a byte goes to the next."""
    rest = np.empty(0, bool)
    for words in chunks:
        for part in np.split(words.reshape(-1), NEIGHBOURS):  # which fits a cache
            bits = np.unpackbits(part.view(np.uint8), bitorder="little").view(bool)
            bits = np.concatenate([rest, fair(bits)])
            whole = len(bits) // 8 * 8
            rest = bits[whole:]
            yield np.packbits(bits[:whole], bitorder="little")


# ---- written ----------------------------------------------------------------------------------


def widen(descriptor: int) -> None:
    """Let a pipe hold PIPE bytes, where the system can: on Linux, and under no lower limit."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE)


def write(arrays: Iterable[NDArray[Any]], descriptor: int, most: int | None = None) -> None:
    """Write arrays to a file descriptor until there are `most` bytes, if that is given."""
    for array in arrays:
        octets = array.data.cast("B")[:most]
        most = None if most is None else most - len(octets)
        while octets:
            octets = octets[os.write(descriptor, octets) :]
        if most == 0:
            return


def run(options: Namespace, error: Callable[[str], NoReturn]) -> int:
    """Write bits until the reader closes the pipe, or there are options.bytes; the exit code."""
    if sys.stdout is None:
        error("standard output is closed")
    descriptor = sys.stdout.fileno()
    if os.isatty(descriptor):
        error("standard output has to be a pipe or a file, but it is a terminal")
    widen(descriptor)
    chunks = drawn(options.order, options.p, options.seed, options.call)
    try:
        write(chunks if options.p == 0.5 else fair_octets(chunks), descriptor, options.bytes)
    except BrokenPipeError:
        return 0  # the stream has no end of its own: this is how it ends
    except OSError as problem:
        print(f"cdropout stream: error: cannot write: {problem.strerror}", file=sys.stderr)
        return 1
    return 0
