"""Tests of the examples that train with cdropout and with the dropout of a framework."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..helpers.requirements import find_or_skip

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    "framework, arguments, names",
    [
        ("jax", ["--steps", "60"], ["jax", "cdropout"]),
        ("keras", ["--epochs", "3"], ["keras", "cdropout"]),
        ("tensorflow", ["--steps", "60"], ["tensorflow", "cdropout"]),
    ],
)
def test_example_trains_with_the_dropout_of_both_libraries(framework, arguments, names):
    find_or_skip(framework, "sklearn", *["jax"] * (framework == "keras"))  # Keras uses JAX here
    command = [sys.executable, "-P", EXAMPLES / f"{framework}_digits.py", *arguments]
    environment = {**os.environ, "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [*command, "--hidden", "64"], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(\w+) +(\d+\.\d\d) % +\d+\.\d\d m?s$", done.stdout, re.MULTILINE)
    assert [name for name, _ in rows] == names, done.stdout
    assert all(float(error) < 60 for _, error in rows)  # the error of guessing is 90 %
