"""Tests that cdropout.selftest passes, and that its messages describe wrong results."""

import json
import math
import re
import subprocess

import numpy as np
import pytest

import cdropout as cd
from cdropout import selftest
from cdropout.__main__ import main
from cdropout._core import dispatch

AVAILABLE = [isa for isa in dispatch.built() if isa in dispatch.runnable()]


@pytest.mark.slow
def test_selftest_passes_with_every_instruction_set(capsys):
    assert main(["selftest"]) == 0
    lines = capsys.readouterr().out.splitlines()
    count = len(json.loads(selftest.RECORDS.read_text()))
    assert [line.partition(" (")[0] for line in lines[: len(AVAILABLE)]] == [
        f"{isa}: passed: {count} recorded masks and all other checks" for isa in AVAILABLE
    ]
    assert lines[-1] == "Every instruction set that this CPU can run draws the specified masks."


def test_selftest_prints_the_first_wrong_record(capsys, tmp_path):
    records = json.loads(selftest.RECORDS.read_text())[:3]
    for record in records[1:]:
        record["sha256"] = "0" * 64
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records))
    assert selftest.run(path) == 1
    lines = capsys.readouterr().out.splitlines()
    p = float.fromhex(records[1]["p"])
    for isa, line in zip(AVAILABLE, lines, strict=False):
        assert line.startswith(f"{isa}: FAILED: Mask(({records[1]['n']},), p={p!r}, seed=")
        assert f"call={records[1]['call']}, start={records[1]['start']}) has the SHA-256 " in line
        assert line.endswith(f", but the record has {'0' * 64}")
    text = "At least one instruction set failed. Please report the lines above."
    assert lines[len(AVAILABLE) :] == [text]


@pytest.mark.parametrize(
    "kind, name", [(cd.Mask, "backward"), (np.ndarray, "backward from packed bits")]
)
def test_apply_error_describes_a_wrong_backward(monkeypatch, kind, name):
    assert selftest.apply_error(np.float32, 0.1, 1) is None
    backward = cd.dropout_backward

    def wrong(x, mask, p=None):
        return backward(x, mask, p=p) * (2 if isinstance(mask, kind) else 1)

    monkeypatch.setattr(cd, "dropout_backward", wrong)
    error = selftest.apply_error(np.float32, 0.1, 1)
    assert error.startswith(f"{name} of float32 with Mask((100003,), p=0.1, seed=1, ")


def test_keep_rate_error_describes_a_wrong_keep_rate(monkeypatch):
    monkeypatch.setattr(selftest, "RATE_SIZE", 10**6)
    monkeypatch.setattr(selftest, "RATE_PART", 10**5)
    assert selftest.keep_rate_error(0.1, 5) is None
    monkeypatch.setattr(selftest, "POPCOUNT", selftest.POPCOUNT[::-1])
    error = selftest.keep_rate_error(0.1, 5)
    assert error.startswith("Mask((1000000,), p=0.1, seed=5, call=0) keeps 100")
    assert re.search(r" elements, expected 900000 \+- \d+$", error)


@pytest.mark.parametrize("p", [0.5, 0.1, 0.001])
def test_probability_of_exceeding_keep_bound_is_below_the_declared_risk(p):
    n = 3000
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    chance = [math.exp(c + k * math.log(p) + (n - k) * math.log1p(-p)) for k, c in enumerate(logs)]
    assert sum(chance) == pytest.approx(1)
    bound = selftest.keep_bound(n, p)
    outside = sum(each for k, each in enumerate(chance) if abs(k - n * p) > bound)
    assert 1e-12 < outside < selftest.FALSE_ALARM


def test_selftest_reports_a_process_that_is_killed(capsys, monkeypatch):
    def run_with_isa(isa, statement, **_):
        return subprocess.CompletedProcess([], -4, stdout="", stderr="one\nIllegal instruction\n")

    monkeypatch.setattr(selftest, "run_with_isa", run_with_isa)
    assert selftest.run() == 1
    line = capsys.readouterr().out.splitlines()[0]
    assert line == f"{AVAILABLE[0]}: FAILED: the process ended with code -4: Illegal instruction"


def test_selftest_reports_instruction_sets_that_this_cpu_cannot_run(capsys, monkeypatch):
    monkeypatch.setattr(dispatch, "built", lambda: ("baseline", "avx512"))
    monkeypatch.setattr(dispatch, "runnable", lambda: ("baseline",))
    assert selftest.run() == 0
    assert capsys.readouterr().out.splitlines()[1] == "avx512: not checked: this CPU cannot run it"
