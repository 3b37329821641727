"""Tests of tools/randomness.py."""

import sys

import pytest

from ..helpers import randomness
from ..helpers.randomness import CHUNK, FAMILIES, ORDERS
from ..helpers.requirements import needs_numpy_2
from ..helpers.tools import load_tool

pytestmark = needs_numpy_2


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    tool = load_tool("randomness.py")
    monkeypatch.setattr(tool, "randomness", randomness)
    monkeypatch.setattr(tool, "EFFORT", randomness.Effort(10**8, CHUNK, 1, 10, 1 << 15))
    return tool


def test_randomness_tool_prints_one_line_per_test(tool, capsys):
    assert tool.main(["--p", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 1 + 4 * len(ORDERS) + 2 * len(FAMILIES) + 2 + 1
    assert not any("EXCEEDS" in line for line in lines)


def test_randomness_tool_exits_with_code_1_if_a_test_fails(tool, monkeypatch, capsys):
    draw = randomness.draw

    def draw_biased(*arguments):
        packed = draw(*arguments)
        packed[::128] |= 1  # always keep one element in 1024
        return packed

    monkeypatch.setattr(randomness, "draw", draw_biased)
    assert tool.main(["--p", "0.5"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("keep rate ") and lines[1].endswith("EXCEEDS ITS LIMIT")
