"""The proof, at the user's site, that every instruction set draws and applies masks as recorded."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cdropout as cd
from cdropout._core import dispatch

RECORDS = Path(__file__).with_name("stream_v1.json")
MANY = 10**8  # elements whose keep rate is checked, drawn in parts
PART = 10**7
RATES = (0.001, 0.1, 0.5, 0.9)
APPLIED = 100_003  # elements: some blocks of the stream, and odd ends
STARTS = (0, 1, 8191, 2**40 + 77)
FALSE_ALARM = 1e-6

EACH_BYTE = np.array([byte.bit_count() for byte in range(256)], np.uint8)


def keep_bound(n: int, p: float, risk: float = FALSE_ALARM) -> float:
    """Return by how much the number of kept elements may differ from n * (1 - p).

    A sum of n independent draws is outside with probability at most `risk`, whatever p is.

    Notes
    -----
    Bernstein's inequality, P(|X - E X| > t) <= 2 exp(-t**2 / (2 (n p (1 - p) + t / 3))), solved
    for t.
    """
    third = math.log(2 / risk) / 3
    return third + math.sqrt(third**2 + 6 * third * n * p * (1 - p))


# ---- one instruction set: that of this process ------------------------------------------------


def wrong_record(records: list[dict[str, Any]]) -> str | None:
    """Return the first record that this process draws otherwise, as a sentence, or None."""
    for record in records:
        p = float.fromhex(record["p"])
        mask = cd.Mask(record["n"], p, record["seed"], record["call"], start=record["start"])
        drawn = hashlib.sha256(mask.bits().data).hexdigest()
        if drawn != record["sha256"]:
            return f"{mask!r} has the SHA-256 {drawn}, but the record says {record['sha256']}"
    return None


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def wrong_apply(dtype: type[np.generic], p: float, start: int) -> str | None:
    """Return which of forward, in place and backward is not where(mask, x * scale, 0), or None."""
    mask = cd.Mask(APPLIED, p, seed=1, start=start)
    x = np.random.default_rng(0).standard_normal(APPLIED).astype(dtype)
    x[::7], x[1::7], x[2::7] = np.nan, np.inf, -0.0
    right = np.where(np.asarray(mask), x * x.dtype.type(1 / (1 - p)), x.dtype.type(0))
    results = {
        "forward": cd.dropout(x, p, mask=mask),
        "forward in place": cd.dropout(x.copy(), p, inplace=True, mask=mask),
        "backward": cd.dropout_backward(x, mask),
        "backward from packed bits": cd.dropout_backward(x, mask.bits(), p=p),
    }
    for name, result in results.items():
        if not same_bits(result, right):
            return f"{name} of {np.dtype(dtype)} with {mask!r} is not where(mask, x / (1 - p), 0)"
    return None


def wrong_keep_rate(p: float, seed: int) -> str | None:
    """Return how the keep rate of many elements is out of its bound, as a sentence, or None."""
    parts = [cd.Mask(PART, p, seed, start=start) for start in range(0, MANY, PART)]
    kept = sum(int(EACH_BYTE[part.bits()].sum(dtype=np.int64)) for part in parts)
    expected, bound = MANY * (1 - p), keep_bound(MANY, p)
    if abs(kept - expected) > bound:
        name = cd.Mask(MANY, p, seed)
        return f"{name!r} keeps {kept} elements, and {expected:.0f} +- {bound:.0f} are right"
    return None


def failures(records: list[dict[str, Any]], seed: int) -> Iterator[str | None]:
    """Yield what is wrong in this process, a sentence each."""
    yield wrong_record(records)
    for dtype in np.float32, np.float64:
        for p in 0.1, 0.5:
            for start in STARTS:
                yield wrong_apply(dtype, p, start)
    for p in RATES:
        yield wrong_keep_rate(p, seed)


def here(path: str | Path = RECORDS) -> int:
    """Check the instruction set of this process, print a line, and return the exit code."""
    began = time.perf_counter()
    records = json.loads(Path(path).read_text())
    seed = cd.Generator().seed  # another at each run: the records already hold the known masks
    wrong = next(filter(None, failures(records, seed)), None)
    if wrong:
        print(f"{dispatch.isa}: WRONG: {wrong}")
        return 1
    print(
        f"{dispatch.isa}: right: {len(records)} recorded masks, "
        "forward and backward in float32 and float64, "
        f"keep rates of {MANY:,} elements at p = {', '.join(map(str, RATES))} "
        f"({time.perf_counter() - began:.1f} s)"
    )
    return 0


# ---- all of them ------------------------------------------------------------------------------


def run_under(isa: str, statement: str, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a Python statement in a new process with this instruction set, as `subprocess.run` does.

    The set is chosen at import, so a process has one. The new one finds its modules where this
    one does.
    """
    program = f"import sys; sys.path[:] = {sys.path!r}; {statement}"
    environment = {**os.environ, "CDROPOUT_ISA": isa}
    return subprocess.run([sys.executable, "-c", program], env=environment, **options)


def check_one(isa: str, path: str | Path) -> bool:
    """Check one set in a process of its own; print its line and return whether it is right."""
    statement = f"from cdropout import selftest; sys.exit(selftest.here({str(path)!r}))"
    done = run_under(isa, statement, capture_output=True, text=True)
    if done.returncode not in (0, 1) or not done.stdout:  # killed by a signal, say
        last = (done.stderr.strip() or "nothing on stderr").splitlines()[-1]
        print(f"{isa}: WRONG: the process ended with code {done.returncode}: {last}")
        return False
    print(done.stdout, end="", flush=True)
    return done.returncode == 0


def run(path: str | Path = RECORDS) -> int:
    """Check every instruction set that was built and that this CPU runs; return the exit code.

    Parameters
    ----------
    path : str or Path
        The recorded masks: a JSON list of objects with seed, call, p (as `float.hex` writes it),
        start, n and sha256 (of the packed bits).
    """
    built, runnable = dispatch.built(), dispatch.runnable()
    right = [check_one(isa, path) for isa in built if isa in runnable]
    for isa in built:
        if isa not in runnable:
            print(f"{isa}: not checked: this CPU cannot run it")
    return 0 if all(right) else 1
