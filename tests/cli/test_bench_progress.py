"""Tests of cdropout.bench.progress, with and without tqdm, in a terminal and in a file."""

import contextlib
import io
import sys

import pytest

from cdropout.bench import progress

from ..helpers.requirements import import_or_skip


@pytest.fixture
def show(monkeypatch):
    """Return a function that shows two steps in a terminal and returns what is printed."""

    def show(has_tqdm, error=None):
        if has_tqdm:
            import_or_skip("tqdm")
        else:
            monkeypatch.setitem(sys.modules, "tqdm", None)
        stderr = io.StringIO()
        stderr.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", stderr)
        with contextlib.suppress(KeyboardInterrupt), progress.show_progress(2) as begin:
            begin("forward")
            if error:
                raise error
            begin("backward")
        return stderr.getvalue()

    return show


def test_progress_without_tqdm_rewrites_one_line(show):
    clear = "\r\x1b[K"
    lines = ["forward: 0 of 2 done", "backward: 1 of 2 done", ""]
    assert show(has_tqdm=False) == "".join(clear + line for line in lines)


def test_progress_with_tqdm_shows_a_bar_with_count_and_time_left(show):
    shown = show(has_tqdm=True).split("\r")
    first = next(line for line in shown if line.startswith("forward |"))
    assert "| 0 of 2 done, " in first and first.rstrip().endswith(" left")
    assert any(line.startswith("backward |") and "| 1 of 2 done, 00:0" in line for line in shown)
    assert not shown[-1].strip()  # the bar is erased at the end


@pytest.mark.parametrize("stderr", [None, io.StringIO()], ids=["closed", "file"])
def test_progress_prints_nothing_outside_a_terminal(monkeypatch, stderr):
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress.show_progress(1) as begin:
        begin("forward")
    assert stderr is None or stderr.getvalue() == ""


@pytest.mark.parametrize("has_tqdm", [True, False])
def test_progress_is_erased_after_ctrl_c(show, has_tqdm):
    last = show(has_tqdm, KeyboardInterrupt()).split("\r")[-1]
    assert not last.replace("\x1b[K", "").strip()
