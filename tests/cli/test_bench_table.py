"""Tests of cdropout.bench.table: its heading, layout and verdict, and the styles of its chart."""

import argparse
import tomllib
from pathlib import Path

import numpy as np
import pytest

from cdropout._core import dispatch
from cdropout.bench import peers, table, timing

from ..helpers.requirements import import_or_skip


def results(**changes):
    """Return the results of a run without implementations."""
    options = argparse.Namespace(p=0.1, threads=1, dtype=["float32"], cold=False)
    found = {
        "environment": {**timing.environment(options), "cpu_usage": 0.99},
        "implementations": {},
        "not_installed": {},
        "left_out": {},
        "too_many_cpus": {},
        "interrupted": False,
    }
    return {**found, **changes}


def heading(cpu_usage=0.99, **changes):
    """Return the paragraphs above the table for a run without implementations."""
    found = results(**changes)
    found["environment"]["cpu_usage"] = cpu_usage
    return list(table.heading(found))


def measurements(ns, dtype="float32", size=1 << 20):
    """Return Measurements of both modes; ns is a dict {implementation: ns per element}."""
    return [
        timing.Measurement(
            dtype=dtype,
            size=size,
            mode=mode,
            implementation=name,
            ns_per_element=each,
            ns_quartiles=(each, each),
            gb_per_s=8 / each,
            to_memcpy=each / ns["memcpy"],
            to_cdropout=each / ns["cdropout"] if "cdropout" in ns else None,
            rounds=7,
            calls_per_batch=1,
        )
        for mode in timing.MODES
        for name, each in ns.items()
    ]


def test_heading_of_a_portable_build_recommends_a_compiler(monkeypatch):
    monkeypatch.setattr(dispatch, "vectors", False)
    first, _, third, _ = heading()
    assert f"{dispatch.isa} (portable: built without vector types)" in first
    advice = "build it with Clang or GCC, on Windows with clang-cl"
    assert third.startswith(f"To make it faster, {advice};")


def test_heading_with_the_widest_instruction_set_has_no_advice(monkeypatch):
    monkeypatch.setattr(dispatch, "vectors", True)
    monkeypatch.setattr(dispatch, "runnable", lambda: (dispatch.isa,))
    assert not any("faster" in line for line in heading())


@pytest.mark.parametrize("usage, busy", [(0.6, True), (0.9, False)])
def test_heading_reports_a_busy_machine(usage, busy):
    line = (
        "BUSY MACHINE: this process used only 60% of a CPU; the times of long calls are too high. "
        "The ratios are affected less."
    )
    assert (line in heading(cpu_usage=usage)) is busy


def test_heading_lists_libraries_that_are_not_installed(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda package: package in ("numpy", "keras"))
    absent = peers.not_installed()
    assert list(absent) == ["torch", "tensorflow", "jax", "keras"]
    lines = heading(not_installed=absent)
    assert "Not compared, because not installed: PyTorch, TensorFlow, JAX, Keras." in lines
    assert "To compare them, run: pip install 'cdropout[torch,tensorflow,jax]'" in lines
    assert not any("pip install" in line for line in heading())


def test_extras_of_libraries_exist():
    path = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(path.read_text())["project"]["optional-dependencies"]
    assert set(peers.LIBRARIES) - {"numpy"} <= set(extras)


# ---- the tables -------------------------------------------------------------------------------

EVERY = [*peers.copies(2), *peers.OURS, *peers.ADAPTERS, *peers.PEERS]


def report(width, found):
    return list(table.report(results(), found, width))


@pytest.mark.parametrize("width", [40, 80, 105, 106, 200])
def test_report_fits_the_terminal(width):
    ns = dict.fromkeys([*EVERY, "memcpy-stream"], 12345.678)
    lines = report(width, measurements(ns, "bfloat16"))
    assert max(map(len, lines)) <= max(width, 66)
    headings = [line for line in lines if line.startswith("bfloat16 ")]
    titles = [[part.strip() for part in line.split("|")[1:]] for line in headings]
    modes = list(timing.MODES)
    assert titles == ([modes] if width >= 106 else [[mode] for mode in modes])


def test_report_explains_each_column_and_row():
    ns = dict.fromkeys([*EVERY, "memcpy-stream"], 1.0)
    lines = report(80, measurements(ns))
    notes = lines[lines.index("Columns:") :]
    names = [*table.COLUMN_NOTES, *ns]
    assert table.COLUMNS.split() == list(table.COLUMN_NOTES)
    for name in names:
        assert any(line.startswith(f"  {name:19}  ") and line[23:].strip() for line in notes)
    few = report(80, measurements({"memcpy": 1.0, "cdropout": 1.0}))
    assert not any("np.random.rand" in line for line in few)


@pytest.mark.parametrize(
    "ratio, text", [(0.734, "0.73"), (0.96, "1.0"), (1.44, "1.4"), (9.96, "10"), (31.4, "31")]
)
def test_short_keeps_two_digits(ratio, text):
    assert table.short(ratio) == text


def test_speedup_in_each_row_ends_with_the_letter_x():
    lines = report(80, measurements({"memcpy": 0.5, "cdropout": 1.0, "numpy": 22.2}))
    rows = [line.split()[1:] for line in lines if line.startswith("   1Mi ")]
    assert [row[0] for row in rows] == 2 * ["memcpy", "cdropout", "numpy"]
    assert [row[-1] for row in rows] == 2 * ["0.50x", "1.0x", "22x"]


# ---- the verdict ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ns, text",
    [
        (
            {"memcpy": 1.0, "cdropout": 1.1, "numpy": 34.1},
            "cdropout is 31 times as fast as NumPy and takes 1.1 times as long as a memcpy.",
        ),
        (
            {"memcpy": 1.0, "cdropout": 0.7, "numpy": 7.0, "torch": 0.72, "jax": 0.35},
            "cdropout is 10 times as fast as NumPy, about as fast as PyTorch, takes 2.0 times "
            "as long as JAX and is 1.4 times as fast as a memcpy.",
        ),
        (
            {"memcpy": 1.0, "cdropout": 1.0, "cdropout-torch": 4.0, "torch": 2.0},
            "cdropout is 2.0 times as fast as PyTorch and about as fast as a memcpy. "
            "cdropout.torch takes 2.0 times as long as PyTorch.",
        ),
        (
            {"memcpy": 1.0, "cdropout": 3.0, "torch": 1.5},
            "cdropout takes 2.0 times as long as PyTorch and 3.0 times as long as a memcpy.",
        ),
        ({"memcpy": 1.0, "cdropout": 3.0}, "cdropout takes 3.0 times as long as a memcpy."),
        ({"memcpy": 1.0, "numpy": 3.0}, "cdropout failed its check."),
    ],
)
def test_verdict_describes_the_ratios(ns, text):
    assert list(table.verdict(measurements(ns))) == [
        f"Forward on 1Mi elements of float32: {text}",
        f"Forward+backward on 1Mi elements of float32: {text}",
    ]


def test_verdict_is_about_the_smallest_size_and_the_size_closest_to_1mi():
    ns = {"memcpy": 1.0, "cdropout": 2.0}
    found = [each for size in (64, 1 << 18, 1 << 24) for each in measurements(ns, size=size)]
    text = "elements of float32: cdropout takes 2.0 times as long as a memcpy."
    modes = "Forward on 64", "Forward on 256Ki", "Forward+backward on 256Ki"
    assert report(106, found)[-4:] == ["", *(f"{mode} {text}" for mode in modes)]


# ---- the chart --------------------------------------------------------------------------------


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
    styles = {tuple(map(str, table.line_style(name).values())) for name in table.MARKERS}
    assert len(styles) == len(table.MARKERS)
    assert all(table.MARKERS[each] == table.MARKERS[each[9:]] for each in peers.ADAPTERS)
    copied = [table.line_style(name) for name in peers.copies(2)]
    assert len({style["linestyle"] for style in copied}) == len(copied)


def test_chart_has_a_legend_in_the_order_of_the_lines():
    import_or_skip("matplotlib")
    ns = {"memcpy": 1.0, "cdropout": 1.1, "torch": 90.0, "numpy": 30.0, "jax": 60.0}
    found = measurements(ns, size=64) + measurements(dict(reversed(ns.items())))
    figure = table.chart(results()["environment"], found)
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["torch", "jax", "numpy", "cdropout", "memcpy"]
    assert [axes.get_title() for axes in figure.axes] == [f"float32, {m}" for m in timing.MODES]
    assert {axes.get_ylabel() for axes in figure.axes} == {"ns per element"}
