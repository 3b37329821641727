"""Tests that the scripts in benchmarks/ run, and that growth.py reports excessive growth."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from ..helpers.requirements import import_or_skip

FOLDER = Path(__file__).parents[2] / "benchmarks"
KI, MI = 1 << 10, 1 << 20


def run(name, *arguments):
    """Run a script; return its exit code and standard output."""
    command = [sys.executable, "-P", str(FOLDER / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def growth():
    return runpy.run_path(str(FOLDER / "growth.py"))


def row(size, ns, memcpy=0.1, threads=1, extra=0):
    """Return a row of the results of growth.py.

    `extra` is the peak memory in bytes, less the input and output, or None if the peak is unknown.
    """
    peak = None if extra is None else 8 * size + extra
    costs = {"dropout": ns, "memcpy": memcpy, "nbytes": 8 * size, "peak": peak}
    return {"size": size, "threads": threads, **costs}


@pytest.mark.parametrize(
    "rows, expected",
    [
        ([row(64, 5), row(64 * KI, 0.15), row(MI, 0.29)], []),
        ([row(64 * KI, 0.15), row(MI, 0.59, memcpy=0.3)], []),
        (
            [row(64 * KI, 0.15), row(MI, 0.31, threads=2)],
            ["TOO SLOW: 1Mi, 2 threads: 0.310 ns per element, over 0.300"],
        ),
        ([row(MI, 0.1, extra=MI), row(MI, 0.1, extra=None)], []),
        (
            [row(MI, 0.1, extra=4 * MI)],
            ["TOO MUCH MEMORY: 1Mi, 1 threads: 4.0 MiB besides input and output"],
        ),
    ],
)
def test_growth_errors_reports_excessive_time_and_memory(growth, rows, expected):
    assert list(growth["growth_errors"](rows)) == expected


@pytest.mark.slow
def test_growth_script_prints_a_row_per_size():
    code, printed = run(
        "growth.py", "--sizes", "64", str(MI), "--threads", "2", "--seconds", "0", "--dtype=float16"
    )
    rows = [line.split() for line in printed.splitlines()[1:3]]
    assert [each[:2] for each in rows] == [["64", "2"], ["1Mi", "2"]]
    assert rows[1][6] == "4.00"  # MiB of the input and the output together
    assert code == 0 or "TOO SLOW" in printed  # a busy machine can be too slow


@pytest.mark.slow
def test_kernels_script_prints_a_line_per_kernel():
    code, printed = run("kernels.py", "--size", str(64 * KI), "--seconds", "0")
    assert code == 0 and len(printed.splitlines()) == 10


@pytest.mark.slow
def test_output_of_calls_script_can_be_compared_with_pyperf(tmp_path):
    import_or_skip("pyperf")
    path = tmp_path / "calls.json"
    options = ["--processes=1", "--values=1", "--warmups=1", "--loops=2", "--quiet"]
    code, printed = run("calls.py", *options, "-o", str(path))
    assert code == 0 and "forward, 16Ki: " in printed
    command = [sys.executable, "-m", "pyperf", "compare_to", str(path), str(path)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.slow
def test_layouts_script_prints_a_line_per_layout():
    code, printed = run("layouts.py", "--pairs", "1")
    assert code == 0 and len(printed.splitlines()) == 15


@pytest.mark.slow
def test_torch_steps_prints_ratios():
    import_or_skip("torch")
    name = "bias_dropout_add, forward"
    code, output = run("torch_steps.py", "--only", name, "--pairs", "2", "--threads", "1")
    assert code == 0
    base, ratio = output.splitlines()[1:]
    assert re.fullmatch(rf"{name}: one pass [\d.]+ ms", base)
    assert re.fullmatch(r"    three operations: [\d.]+ times \([\d.]+ - [\d.]+\)", ratio)
