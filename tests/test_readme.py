"""The README's Python runs, and the files and public names that it speaks of exist."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import cdropout

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = sorted(set(re.findall(r"`([\w./]+\.(?:py|pyx|pxd|h|md))`", README)))
NAMES = sorted(set(re.findall(r"\bcd\.(\w+)", README)))


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_blocks_run(block):
    """Each by itself: a process has one Keras backend."""
    missing = [
        name for name in re.findall(r"^import (\w+)", block, re.MULTILINE) if not find_spec(name)
    ]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    done = subprocess.run([sys.executable, "-P", "-c", block], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", FILES)
def test_files_exist(name):
    assert (ROOT / name).exists()


@pytest.mark.parametrize("name", NAMES)
def test_names_are_public(name):
    assert name in cdropout.__all__
