"""Tests of examples/digits.py: its output, and the errors that its gradient check detects."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ..helpers.requirements import find_or_skip

DIGITS = Path(__file__).parents[2] / "examples" / "digits.py"
SMALL = ["--seeds", "2", "--epochs", "2", "--hidden", "16", "--train", "50"]
NUMBER = r" +(-?\d+\.\d\d)"


def run(*arguments, folder, missing=None):
    """Run digits.py in a folder; in this run, the package `missing` cannot be imported."""
    stubs = folder / "stubs"
    stubs.mkdir()
    if missing:
        (stubs / f"{missing}.py").write_text("raise ModuleNotFoundError")
    return subprocess.run(
        [sys.executable, DIGITS, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(stubs)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def digits():
    """Return examples/digits.py as a module."""
    specification = importlib.util.spec_from_file_location("digits", DIGITS)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_digits_prints_the_errors_with_and_without_dropout(tmp_path):
    find_or_skip("sklearn")  # contains the data
    result = run(*SMALL, "--p", "0.25", folder=tmp_path, missing="matplotlib")
    assert result.returncode == 0, result.stderr
    assert "%" not in result.stderr  # the progress bar is shown only in a terminal
    assert re.search("no dropout +dropout p=0.25", result.stdout)
    rows = re.findall(rf"^ +[01]{NUMBER * 3}$", result.stdout, re.MULTILINE)
    without, with_dropout, difference = np.array(rows, dtype=float).T
    assert len(without) == 2
    assert np.all((without > 0) & (without < 95) & (with_dropout > 0) & (with_dropout < 95))
    atol = 0.016  # each of the three numbers has a rounding error of up to 0.005
    np.testing.assert_allclose(with_dropout - without, difference, atol=atol)
    mean_and_spread = NUMBER + r" \+- \d+\.\d\d"
    means = re.search(f"^mean{mean_and_spread * 3} ", result.stdout, re.MULTILINE)
    expected = [without.mean(), with_dropout.mean(), difference.mean()]
    np.testing.assert_allclose(np.array(means.groups(), dtype=float), expected, atol=atol)
    assert "pip install matplotlib" in result.stdout
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.slow
def test_digits_with_p_0_prints_equal_errors_with_and_without_dropout(tmp_path):
    find_or_skip("sklearn")  # contains the data
    result = run(*SMALL, "--p", "0", folder=tmp_path, missing="matplotlib")
    assert re.search(r"^mean .* 0\.00 \+- 0\.00 ", result.stdout, re.MULTILINE), result.stdout


@pytest.mark.slow
def test_digits_with_plot_writes_a_png_file(tmp_path):
    find_or_skip("sklearn")  # contains the data
    find_or_skip("matplotlib")
    result = run(*SMALL, "--plot", "curves.png", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "The curves are in curves.png." in result.stdout
    header = (tmp_path / "curves.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert np.frombuffer(header[16:], ">u4").tolist() == [900, 700]


def test_digits_without_scikit_learn_prints_one_line(tmp_path):
    result = run(*SMALL, folder=tmp_path, missing="sklearn")
    assert result.returncode == 1
    assert re.fullmatch(r"[^\n]*pip install scikit-learn\n", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1"], "at least 2 seeds"),
        (["--epochs", "0"], "1 epoch"),
        (["--train", "1797"], "fewer than 1797"),
        (["--p", "1.5"], "p between 0 and 1"),
        (["--p", "nan"], "p between 0 and 1"),
    ],
)
def test_digits_rejects_invalid_options(digits, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["digits.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        digits.main()
    assert message in capsys.readouterr().err


def test_gradient_check_passes_with_the_correct_gradient(digits):
    digits.check_gradient()


def without_mask_and_scale(self, gradient):
    return gradient.copy()


def without_scale(self, gradient):
    return gradient * np.asarray(self.mask)


def without_mask(self, gradient):
    return gradient / (1 - self.p)


@pytest.mark.parametrize("wrong", [without_mask_and_scale, without_scale, without_mask])
def test_gradient_check_detects_a_wrong_dropout(digits, wrong, monkeypatch):
    monkeypatch.setattr(digits.cdropout.Dropout, "backward", wrong)
    with pytest.raises(AssertionError, match=r"backward gives .*, but the slope is "):
        digits.check_gradient()


def test_gradient_check_detects_a_wrong_network(digits, monkeypatch):
    backward = digits.Network.backward

    def without_relu(self, gradient):
        self.active = [np.ones_like(active) for active in self.active]
        return backward(self, gradient)

    monkeypatch.setattr(digits.Network, "backward", without_relu)
    with pytest.raises(AssertionError, match=r"backward gives .*, but the slope is "):
        digits.check_gradient()


def test_gradient_check_detects_nan(digits, monkeypatch):
    monkeypatch.setattr(digits.cdropout.Dropout, "backward", lambda self, gy: gy * np.nan)
    with pytest.raises(AssertionError, match="backward gives nan"):
        digits.check_gradient()
