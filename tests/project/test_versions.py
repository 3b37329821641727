"""Test of the arguments of tools/versions.sh."""

import shutil
import subprocess

import pytest

from ..helpers.tools import TOOLS


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize("names", [["lowst"], ["lowest", "low"], ["|"]])
def test_unknown_row_is_an_error(names):
    command = ["bash", str(TOOLS / "versions.sh"), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    message = f"versions.sh: the table has no row {names[-1]}"
    assert (done.returncode, done.stdout, done.stderr.strip()) == (2, "", message)
