"""The command `cdropout selftest`, which checks every instruction set against recorded masks."""

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
APPLY_SIZE = 100_003  # elements: several complete blocks of the stream and an incomplete one
APPLY_STARTS = (0, 1, 8191, 2**40 + 77)
RATE_SIZE = 10**8  # number of elements whose keep rate is checked
RATE_PART = 10**7  # number of elements drawn per call
RATES = (0.001, 0.1, 0.5, 0.9)
FALSE_ALARM = 1e-6  # maximum probability that a check of a keep rate fails for correct masks
DESCRIPTION = f"""\
Check each instruction set that was built and that this CPU runs: the hashes of
the recorded masks, forward and backward in float32 and float64, and the keep
rates of {RATE_SIZE:,} elements at p = {", ".join(map(str, RATES))}. The exit code
is 1 if a check fails. This takes a few seconds."""

POPCOUNT = np.array([byte.bit_count() for byte in range(256)], np.uint8)


def keep_bound(n: int, p: float, risk: float = FALSE_ALARM) -> float:
    """Return the largest allowed difference of the number of kept elements from n * (1 - p).

    For each p, the difference exceeds this bound with a probability of at most `risk`.

    Notes
    -----
    Bernstein's inequality, P(|X - E X| > t) <= 2 exp(-t**2 / (2 (n p (1 - p) + t / 3))), solved
    for t.
    """
    third = math.log(2 / risk) / 3
    return third + math.sqrt(third**2 + 6 * third * n * p * (1 - p))


# ---- the instruction set of this process ------------------------------------------------------


def record_error(records: list[dict[str, Any]]) -> str | None:
    """Return a message about the first mask that differs from its record, or None."""
    for record in records:
        p = float.fromhex(record["p"])
        mask = cd.Mask(record["n"], p, record["seed"], record["call"], start=record["start"])
        digest = hashlib.sha256(mask.bits().data).hexdigest()
        if digest != record["sha256"]:
            return f"{mask!r} has the SHA-256 {digest}, but the record has {record['sha256']}"
    return None


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def apply_error(dtype: type[np.generic], p: float, start: int) -> str | None:
    """Return a message if a function does not return where(mask, x * scale, 0), otherwise None."""
    mask = cd.Mask(APPLY_SIZE, p, seed=1, start=start)
    x = np.random.default_rng(0).standard_normal(APPLY_SIZE).astype(dtype)
    x[::7], x[1::7], x[2::7] = np.nan, np.inf, -0.0
    expected = np.where(np.asarray(mask), x * x.dtype.type(1 / (1 - p)), x.dtype.type(0))
    results = {
        "forward": cd.dropout(x, p, mask=mask),
        "forward in place": cd.dropout(x.copy(), p, inplace=True, mask=mask),
        "backward": cd.dropout_backward(x, mask),
        "backward from packed bits": cd.dropout_backward(x, mask.bits(), p=p),
    }
    for name, result in results.items():
        if not same_bits(result, expected):
            return f"{name} of {np.dtype(dtype)} with {mask!r} is not where(mask, x / (1 - p), 0)"
    return None


def keep_rate_error(p: float, seed: int) -> str | None:
    """Return a message if too few or too many elements are kept, otherwise None."""
    parts = [cd.Mask(RATE_PART, p, seed, start=start) for start in range(0, RATE_SIZE, RATE_PART)]
    kept = sum(int(POPCOUNT[part.bits()].sum(dtype=np.int64)) for part in parts)
    expected, bound = RATE_SIZE * (1 - p), keep_bound(RATE_SIZE, p)
    if abs(kept - expected) > bound:
        mask = cd.Mask(RATE_SIZE, p, seed)
        return f"{mask!r} keeps {kept} elements, expected {expected:.0f} +- {bound:.0f}"
    return None


def errors(records: list[dict[str, Any]], seed: int) -> Iterator[str | None]:
    """Yield the result of each check, which is an error message or None."""
    yield record_error(records)
    for dtype in np.float32, np.float64:
        for p in 0.1, 0.5:
            for start in APPLY_STARTS:
                yield apply_error(dtype, p, start)
    for p in RATES:
        yield keep_rate_error(p, seed)


def check_this_process(path: str | Path = RECORDS) -> int:
    """Check the instruction set of this process, print one line, and return the exit code."""
    began = time.perf_counter()
    records = json.loads(Path(path).read_text())
    seed = cd.Generator().seed  # a random seed; the records have fixed seeds
    error = next(filter(None, errors(records, seed)), None)
    if error:
        print(f"{dispatch.isa}: FAILED: {error}")
        return 1
    passed = f"{len(records)} recorded masks and all other checks"
    print(f"{dispatch.isa}: passed: {passed} ({time.perf_counter() - began:.1f} s)")
    return 0


# ---- all instruction sets ---------------------------------------------------------------------


def run_with_isa(isa: str, statement: str, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a Python statement in a new process with the instruction set `isa`; return the result.

    A new process is required, since the instruction set is chosen at import. The new process has
    the same `sys.path` as this one. The options and the result are those of `subprocess.run`.
    """
    program = f"import sys; sys.path[:] = {sys.path!r}; {statement}"
    environment = {**os.environ, "CDROPOUT_ISA": isa}
    return subprocess.run([sys.executable, "-c", program], env=environment, **options)


def check_isa(isa: str, path: str | Path) -> bool:
    """Check one instruction set in a new process, print a line, and return whether it passed."""
    statement = (
        f"from cdropout import selftest; sys.exit(selftest.check_this_process({str(path)!r}))"
    )
    done = run_with_isa(isa, statement, capture_output=True, text=True)
    if done.returncode not in (0, 1) or not done.stdout:  # for example, after a signal
        last = (done.stderr.strip() or "nothing on stderr").splitlines()[-1]
        print(f"{isa}: FAILED: the process ended with code {done.returncode}: {last}")
        return False
    print(done.stdout, end="", flush=True)
    return done.returncode == 0


def run(path: str | Path = RECORDS) -> int:
    """Check every instruction set that was built and that this CPU runs; return the exit code.

    Parameters
    ----------
    path : str or Path
        A JSON file with a list of the recorded masks. Each record is an object with the keys seed,
        call, p (in the format of `float.hex`), start, n and sha256 (of the packed bits).
    """
    built, runnable = dispatch.built(), dispatch.runnable()
    passed = [check_isa(isa, path) for isa in built if isa in runnable]
    for isa in built:
        if isa not in runnable:
            print(f"{isa}: not checked: this CPU cannot run it")
    if not all(passed):
        print("At least one instruction set failed. Please report the lines above.")
        return 1
    print("Every instruction set that this CPU can run draws the specified masks.")
    return 0
