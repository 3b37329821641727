"""Tests of cdropout.bench.timing. No test depends on the measured times."""

from collections import Counter

import numpy as np
import pytest

from cdropout.bench import timing

pytestmark = pytest.mark.usefixtures("quick_bench")


@pytest.mark.parametrize(
    "size, name",
    [(64, "64"), (1000, "1000"), (1 << 14, "16Ki"), (3 << 20, "3Mi"), (1 << 30, "1Gi")],
)
def test_size_name_uses_binary_prefixes(size, name):
    assert timing.size_name(size) == name


# ---- the machine ------------------------------------------------------------------------------


def test_cache_filler_is_twice_as_large_as_the_cache(monkeypatch):
    assert timing.dispatch.last_level_cache() >= 1 << 15
    monkeypatch.setattr(timing.dispatch, "last_level_cache", lambda: 3 << 20)
    timing.cache_filler.cache_clear()
    assert timing.cache_filler().nbytes == 6 << 20
    assert timing.cache_filler() is timing.cache_filler()
    timing.cache_filler.cache_clear()


def test_cpu_name_has_a_default_without_the_file_of_linux(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "CPU_INFO", tmp_path / "cpuinfo")
    assert timing.cpu_name()


# ---- timing of calls --------------------------------------------------------------------------


def test_time_calls_measures_each_call_in_each_round():
    called = Counter()
    calls = {name: lambda name=name: called.update(name) for name in "ab"}
    times, counts = timing.time_calls(calls, seconds=0)
    assert {name: len(each) for name, each in times.items()} == dict.fromkeys(
        "ab", timing.MIN_ROUNDS
    )
    for name, count in counts.items():
        assert count >= 1 and called[name] >= count * timing.MIN_ROUNDS
        assert min(times[name]) > 0


def test_time_calls_with_cold_empties_the_cache_before_each_call(monkeypatch):
    emptied = Counter()
    monkeypatch.setattr(timing, "empty_cache", lambda: emptied.update("x"))
    times, counts = timing.time_calls({"a": lambda: None, "b": lambda: None}, 0, cold=True)
    assert counts == {"a": 1, "b": 1}
    assert emptied["x"] == 2 * len(times["a"]) == 2 * timing.MIN_ROUNDS


def test_median_ratio_is_the_median_of_the_ratios_per_round():
    assert timing.median_ratio([2, 40, 6], [1, 10, 3]) == 2


def test_summarize_computes_medians_and_ratios():
    times = {"memcpy": [1e-6] * 3, "numpy": [8e-6] * 3, "torch": [9e-6] * 3, "cdropout": [2e-6] * 3}
    found = timing.summarize("float32", 1000, "forward", 8000, times, dict.fromkeys(times, 5))
    memcpy, numpy, torch, ours = found
    assert np.isclose(
        [ours.ns_per_element, *ours.ns_quartiles, ours.gb_per_s, ours.to_memcpy, ours.to_cdropout],
        [2, 2, 2, 4, 2, 1],
    ).all()
    assert (numpy.to_cdropout, torch.to_cdropout) == pytest.approx((4, 4.5))
    assert (memcpy.rounds, memcpy.calls_per_batch, memcpy.mode) == (3, 5, "forward")
    only = timing.summarize("float32", 1000, "forward", 8000, {"memcpy": [1, 1]}, {"memcpy": 1})
    assert next(only).to_cdropout is None
