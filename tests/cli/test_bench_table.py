"""Tests of cdropout.bench.table: its heading in special cases, and the styles of its chart."""

import argparse

import numpy as np
import pytest

from cdropout._core import dispatch
from cdropout.bench import peers, table, timing

from ..helpers.requirements import import_or_skip


def heading(**changes):
    """Return the lines above the table for a run without implementations."""
    options = argparse.Namespace(p=0.1, threads=1, dtype=["float32"], cold=False)
    about = {**timing.environment(options), "cpu_usage": 0.99, **changes}
    return list(
        table.heading(
            {"environment": about, "implementations": {}, "left_out": {}, "too_many_cpus": {}}
        )
    )


def test_heading_of_a_portable_build_recommends_a_compiler(monkeypatch):
    monkeypatch.setattr(dispatch, "vectors", False)
    first, _, third, _ = heading()
    assert f"{dispatch.isa} (portable: built without vector types)" in first
    advice = "build it with Clang or GCC, on Windows with clang-cl"
    assert third.startswith(f"to make it faster, {advice};")


def test_heading_with_the_widest_instruction_set_has_no_advice(monkeypatch):
    monkeypatch.setattr(dispatch, "vectors", True)
    monkeypatch.setattr(dispatch, "runnable", lambda: (dispatch.isa,))
    assert not any("faster" in line for line in heading())


@pytest.mark.parametrize("usage, busy", [(0.6, True), (0.9, False)])
def test_heading_reports_a_busy_machine(usage, busy):
    line = "BUSY MACHINE: this process used only 60% of a CPU; the times of long calls are too high"
    assert (line in heading(cpu_usage=usage)) is busy


def lightness(color):
    """Return the brightness of a color printed in grey, from 0 to 1 (ITU-R BT.709)."""
    import_or_skip("matplotlib")
    from matplotlib import colors

    return float(np.dot(colors.to_rgb(color), [0.2126, 0.7152, 0.0722]))


def test_lines_of_the_chart_are_distinct_in_grey():
    greys = sorted(lightness(style["color"]) for style in table.LIBRARY_STYLES.values())
    assert min(np.diff(greys)) > 0.05 and greys[-1] < 0.75
    dashes = [str(style["linestyle"]) for style in table.LIBRARY_STYLES.values()]
    assert len(set(dashes)) == len(dashes)
    assert list(table.MARKERS) == [*peers.OURS, *peers.ADAPTERS, *peers.PEERS]
    assert len(set(table.MARKERS.values())) == len(table.MARKERS)
    copied = [table.line_style(name) for name in peers.copies(2)]
    assert len({style["linestyle"] for style in copied}) == len(copied)
