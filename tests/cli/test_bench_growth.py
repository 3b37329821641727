"""Tests of `cdropout bench --growth`: its verdicts on made-up rows, and small runs."""

import argparse
import json
import subprocess

import pytest

from cdropout import selftest
from cdropout.__main__ import main
from cdropout._core import dispatch
from cdropout.bench import growth, machine

KI, MI = 1 << 10, 1 << 20


def row(size, ns, memcpy=0.1, threads=1, extra=0):
    """A made-up result."""
    numbers = {"ns_per_element": ns, "memcpy_ns_per_element": memcpy, "to_memcpy": ns / memcpy}
    memory = {"input_and_output": 8 * size, "peak": None if extra is None else 8 * size + extra}
    return {"size": size, "threads": threads, **numbers, **memory}


# ---- verdicts ---------------------------------------------------------------------------------


def test_a_call_that_dominates_small_sizes_is_flat():
    lines, good = growth.report("float32", [row(64, 5), row(64 * KI, 0.15), row(MI, 0.29)], [])
    assert good and len(lines) == 5
    assert lines[-1].split() == ["1Mi", "1", "|", "0.290", "0.100", "2.90", "8.00", "8.00"]


def test_time_that_grows_as_that_of_memcpy_is_flat():
    assert growth.report("float32", [row(64 * KI, 0.15), row(MI, 0.59, memcpy=0.3)], [])[1]


def test_time_that_grows_faster_is_not_flat():
    lines, good = growth.report("float32", [row(64 * KI, 0.15), row(MI, 0.31)], [])
    assert not good
    assert lines[-1] == "NOT FLAT: 1Mi, 1 threads: 0.310 ns an element, over 0.300"


def test_each_number_of_threads_is_judged_by_itself():
    one = [row(64 * KI, 0.4), row(MI, 0.6)]
    two = [row(64 * KI, 0.15, threads=2), row(MI, 0.4, threads=2)]
    lines, good = growth.report("float32", [*one, *two], [])
    assert not good and lines[-1].startswith("NOT FLAT: 1Mi, 2 threads: 0.400")
    assert "NOT FLAT" not in lines[-2]


def test_memory_beside_input_and_output_is_bounded():
    assert growth.report("float32", [row(MI, 0.1, extra=growth.SPARE)], [])[1]
    lines, good = growth.report("float32", [row(MI, 0.1, extra=4 * MI)], [])
    assert not good
    assert lines[-1] == "TOO MUCH MEMORY: 1Mi, 1 threads: 4.0 MiB more than input and output"


def test_peak_that_the_system_does_not_tell_is_a_dash():
    lines, good = growth.report("float32", [row(MI, 0.1, extra=None)], [])
    assert good and lines[-1].endswith(" -")


# ---- runs -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_run_prints_and_writes_every_number(capsys, tmp_path):
    path = tmp_path / "growth.json"
    arguments = ["--sizes", "64,1Mi", "--seconds", "0", "--dtype", "float16,bfloat16"]
    arguments += ["--threads", "1"]
    code = main(["bench", "--growth", *arguments, "--json", str(path)])
    printed = capsys.readouterr().out
    assert code == 0 or "NOT FLAT" in printed  # a busy machine may seem so
    rows = json.loads(path.read_text())["growth"]
    at = [(each["dtype"], each["size"], each["threads"]) for each in rows]
    kinds, sizes = ("float16", "bfloat16"), (64, MI)
    assert at == [(kind, n, 1) for kind in kinds for n in sizes]
    for each in rows:
        assert each["input_and_output"] == 4 * each["size"]
        assert f"{each['ns_per_element']:10.3f} {each['memcpy_ns_per_element']:8.3f}" in printed


@pytest.mark.skipif(machine.peak_memory() is None, reason="the system does not tell the peak")
@pytest.mark.slow
def test_peak_is_input_and_output():
    """Of 64 MiB each; a copy of either, or bools for the mask, would show."""
    options = argparse.Namespace(p=0.1, seconds=0)
    each = growth.measure_apart(16 * MI, 2, "float32", options)
    assert each["input_and_output"] == 128 * MI
    assert abs(each["peak"] - each["input_and_output"]) <= growth.SPARE


@pytest.mark.skipif(machine.peak_memory() is None, reason="the system does not tell the peak")
def test_peak_sees_what_was_freed():
    statement = (
        "from cdropout.bench import machine; machine.forget_peak(); "
        "before = machine.resident_memory(); x = bytearray(b'1') * (1 << 26); del x; "
        "print(machine.peak_memory() - before, machine.resident_memory() - before)"
    )
    done = selftest.run_under(dispatch.isa, statement, capture_output=True, text=True, check=True)
    peak, left = map(int, done.stdout.split())
    assert abs(peak - (1 << 26)) < growth.SPARE and left < growth.SPARE


def test_more_than_is_free_is_not_tried(capsys, monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda: 9 * MI)
    assert main(["bench", "--growth", "--sizes", "1Mi", "--seconds", "0"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "left out: 1Mi, 1 threads: 8 MiB are too much for the 9 MiB that are free" in lines


def test_process_that_dies_is_said(capsys, monkeypatch):
    died = subprocess.CompletedProcess([], -9)
    monkeypatch.setattr(selftest, "run_under", lambda *_, **__: died)
    assert main(["bench", "--growth", "--sizes", "64", "--threads", "1", "--seconds", "0"]) == 1
    assert "left out: 64, 1 threads: the process ended with code -9" in capsys.readouterr().out


# ---- the machine ------------------------------------------------------------------------------


def test_cache_is_swept_by_more_than_it_holds(monkeypatch):
    assert machine.cache_bytes() >= 1 << 15
    monkeypatch.setattr(machine, "cache_bytes", lambda: 3 << 20)
    machine.sweep.cache_clear()
    assert machine.sweep().nbytes == 6 << 20
    assert machine.sweep() is machine.sweep()
    machine.sweep.cache_clear()


def test_system_that_tells_nothing(monkeypatch):
    monkeypatch.setattr(machine, "words_of", lambda path: "")
    assert machine.cache_bytes() == machine.UNKNOWN_CACHE
    assert machine.free_memory() is machine.resident_memory() is machine.peak_memory() is None
    assert machine.cpu_name()


def test_numbers_of_the_system(monkeypatch):
    monkeypatch.setattr(machine, "words_of", lambda path: "VmPeak:  9 kB\nVmHWM:\t  77 kB\n")
    assert machine.peak_memory() == 77 << 10
    assert machine.resident_memory() is None
