"""Tests of `cdropout bench --compare` and `--runs`: verdicts on made-up runs, and refusals."""

import argparse
import copy
import json
import subprocess

import pytest

from cdropout import selftest
from cdropout.__main__ import main
from cdropout.bench import command, compare, runs

CELL = {"dtype": "float32", "size": 1024, "mode": "forward", "contestant": "cdropout"}
RUN = {
    "environment": {
        "cdropout": "1.0",
        "time": "2020-01-01T00:00:00+00:00",
        "p": 0.1,
        "threads": 1,
        "cold": False,
        "runs": 5,
        **dict.fromkeys(["isa", "cpu", "platform", "python", "numpy"], "the same"),
        **{"vectors": True, "compiler": "the same", "faster": ""},
    },
    "cells": [{**CELL, "to_memcpy_runs": [1.20, 1.19, 1.20, 1.21, 1.20]}],
    "kernels": [["forward", 1.5, "x memcpy"], ["bits", 17.0, "G elements/s"]],
    "kernel_runs": {"forward": [1.5, 1.4, 1.5, 1.5, 1.6], "bits": [17.0] * 5},
}
OPTIONS = argparse.Namespace(p=0.1, threads=1, cold=False)


def changed(low, high):
    """RUN, but for the one cell."""
    run = copy.deepcopy(RUN)
    run["cells"][0]["to_memcpy_runs"] = [high, low, (low + high) / 2, high, high]
    return run


def written(folder, run):
    """The path of a file with this run."""
    path = folder / "old.json"
    path.write_text(json.dumps(run))
    return path


# ---- verdicts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "kind", "code"),
    [
        ((1.19, 1.21), None, 0),
        ((1.48, 1.52), "slower", 1),
        ((1.30, 1.70), None, 0),  # more, but within the noise
        ((1.332, 1.34), "slower", 1),  # a hair more than 10 % above 1.21
        ((1.330, 1.34), None, 0),
        ((0.99, 1.01), "faster", 0),
        ((0.90, 1.15), None, 0),
    ],
)
def test_verdict(numbers, kind, code):
    lines, returned = compare.report(RUN, changed(*numbers))
    assert returned == code
    assert lines[0] == "compared with cdropout 1.0 of 2020-01-01T00:00:00+00:00:"
    if kind is None:
        assert lines[1:] == ["  2 of 2 as fast as before, within 10% and the noise"]
        return
    was = f"{numbers[0]:.2f}-{numbers[1]:.2f} x memcpy, was 1.19-1.21"
    assert lines[1:] == [
        f"  {kind}: cdropout float32 1Ki forward: {was}",
        "  1 of 2 as fast as before, within 10% and the noise",
    ]


def test_a_slower_kernel_counts():
    new = copy.deepcopy(RUN)
    new["kernel_runs"] = {"forward": [1.9, 2.1], "bits": [1.0] * 2}
    lines, code = compare.report(RUN, new)
    assert code == 1
    assert lines[1] == "  slower: kernels: forward: 1.90-2.10 x memcpy, was 1.40-1.60"


def test_a_slower_peer_does_not_count():
    old, new = copy.deepcopy(RUN), copy.deepcopy(RUN)
    for run, ratio in (old, 30.0), (new, 90.0):
        run["cells"].append({**CELL, "contestant": "numpy", "to_memcpy_runs": [ratio] * 5})
    assert compare.report(old, new) == compare.report(RUN, RUN)


def test_what_only_one_run_has_is_not_compared():
    other = copy.deepcopy(RUN)
    other["cells"][0]["size"] = 2048
    lines, code = compare.report(other, RUN)
    assert (lines[1:], code) == (["  1 of 1 as fast as before, within 10% and the noise"], 0)
    other["kernels"] = []
    lines, code = compare.report(other, RUN)
    assert (lines[1:], code) == (["  0 of 0 as fast as before, within 10% and the noise"], 1)


def test_another_machine_is_said():
    new = copy.deepcopy(RUN)
    new["environment"]["cpu"] = "another"
    assert compare.report(RUN, new)[0][1] == "  not the same cpu: another, was the same"


# ---- what is refused, and the whole -----------------------------------------------------------


@pytest.mark.parametrize("name, value", [("p", 0.5), ("threads", 2), ("cold", True)])
def test_other_settings_are_refused(tmp_path, name, value):
    options = argparse.Namespace(**{**vars(OPTIONS), name: value})
    path = written(tmp_path, RUN)
    with pytest.raises(
        ValueError, match=f"has {name}={getattr(OPTIONS, name)}, but this run {value}"
    ):
        compare.load(path, options)
    assert compare.load(path, OPTIONS) == RUN


def test_too_few_runs_are_refused(tmp_path, capsys):
    few = copy.deepcopy(RUN)
    few["environment"]["runs"] = 4
    with pytest.raises(ValueError, match="has runs=4, too few to show the noise: --runs 5 does"):
        compare.load(written(tmp_path, few), OPTIONS)
    with pytest.raises(SystemExit):
        main(["bench", "--compare", str(written(tmp_path, RUN)), "--runs", "4"])
    assert "argument --compare: it needs --runs of at least 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read: Expecting property name"),
        ("[]", "was not written by `cdropout bench --json` of this version: TypeError: "),
        ('{"cells": []}', "was not written by .* of this version: KeyError: 'kernels'"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        compare.load(path, OPTIONS)


def test_missing_file_is_refused_before_the_race(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--compare", "/no/such.json"])
    assert caught.value.code == 2
    message = (
        "argument --compare: /no/such.json cannot be read: [Errno 2] No such file or directory"
    )
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "code"), [(1e-9, 1), (1e9, 0)])
def test_measured_runs_are_compared_with_a_file(capfd, tmp_path, factor, code):
    path = tmp_path / "numbers.json"
    arguments = ["bench", "--kernels", "--seconds", "0", "--runs", "5"]
    assert main([*arguments, "--json", str(path)]) == 0
    old = json.loads(path.read_text())
    assert old["environment"]["runs"] == 5
    for name, numbers in old["kernel_runs"].items():
        assert len(numbers) == 5
        old["kernel_runs"][name] = [factor * number for number in numbers]
    assert capfd.readouterr().err == ""
    assert main([*arguments, "--compare", str(written(tmp_path, old))]) == code
    printed = capfd.readouterr().out
    assert ", 5 runs" in printed.splitlines()[0]
    assert printed.count(f"  {'slower' if code else 'faster'}: kernels: ") == 6


# ---- runs as one ------------------------------------------------------------------------------


def one_run(size, ns, peer, share):
    """A run with one cell, and its kernels."""
    numbers = {"ns_per_element": ns, "ns_quartiles": [ns - 1, ns + 1], "to_best_peer": peer}
    cell = {**CELL, "size": size, **numbers, "rounds": 7, "to_memcpy_runs": [2 * ns]}
    return {
        "environment": {"cpu_share": share, "runs": 1},
        "contestants": {"cdropout": "1"},
        "left_out": {},
        "not_held_to_threads": {},
        "cells": [cell],
        "kernels": [["forward", ns, "x memcpy"]],
        "kernel_runs": {"forward": [ns]},
    }


def test_runs_are_merged_by_their_medians():
    merged = runs.merge([one_run(64, 3, 1, 0.9), one_run(64, 9, 5, 0.5), one_run(64, 4, 2, 1.0)])
    (cell,) = merged["cells"]
    assert {name: cell[name] for name in CELL} == {**CELL, "size": 64}
    assert (cell["ns_per_element"], cell["ns_quartiles"], cell["to_best_peer"]) == (4, [3, 5], 2)
    assert (cell["rounds"], cell["to_memcpy_runs"]) == (21, [6, 18, 8])
    assert merged["kernels"] == [("forward", 4, "x memcpy")]
    assert merged["kernel_runs"] == {"forward": [3, 9, 4]}
    assert merged["environment"] == {"cpu_share": 0.5, "runs": 3}


def test_what_not_every_run_has_is_left_out():
    first, second = one_run(64, 3, None, 1), one_run(64, 5, None, 1)
    first["cells"] += one_run(128, 3, None, 1)["cells"]
    second["left_out"] = {"jax": "float32: no such device"}
    merged = runs.merge([first, second])
    assert [(cell["size"], cell["to_best_peer"]) for cell in merged["cells"]] == [(64, None)]
    assert merged["left_out"] == second["left_out"]


def test_a_run_that_dies_is_said(capsys, monkeypatch):
    def run_under(*_, check):
        raise subprocess.CalledProcessError(-11, [])

    monkeypatch.setattr(selftest, "run_under", run_under)
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--runs", "2", "--peer", "none"])
    message = "cdropout bench: error: the process of a run ended with code -11\n"
    assert (caught.value.code, capsys.readouterr().err) == (2, message)


@pytest.mark.parametrize(("factor", "code", "kind"), [(0.5, 1, "slower"), (2, 0, "faster")])
def test_runs_are_compared_with_a_file(capsys, tmp_path, monkeypatch, factor, code, kind):
    """Each run is made up here, and in this process."""
    measured = [one_run(64, ns, 1, 1.0) for ns in (3, 4, 5, 4, 4)]
    for run in measured:
        run["environment"] |= RUN["environment"] | {"dtype": "float32"}
        run["cells"][0] |= {"gb_per_s": 1, "to_memcpy": 1, "calls_a_round": 1}
        run["cells"].append({**run["cells"][0], "mode": "forward+backward"})
    left = iter(measured)
    monkeypatch.setattr(command, "measure", lambda options: next(left))
    monkeypatch.setattr(selftest, "run_under", lambda isa, statement, check: exec(statement))
    old = runs.merge(copy.deepcopy(measured))
    for cell in old["cells"]:
        cell["to_memcpy_runs"] = [8 * factor] * 5
    arguments = ["bench", "--sizes", "64", "--peer", "none", "--runs", "5", "--compare"]
    assert main([*arguments, str(written(tmp_path, old))]) == code
    numbers = f"6.00-10.00 x memcpy, was {8 * factor:.2f}-{8 * factor:.2f}"
    assert f"  {kind}: cdropout float32 64 forward: {numbers}" in capsys.readouterr().out
