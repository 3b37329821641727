"""The README's Python runs, and the files and public names that it speaks of exist."""

import re
from pathlib import Path

import pytest

import cdropout

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = sorted(set(re.findall(r"`([\w./]+\.(?:py|pyx|pxd|h|md))`", README)))
NAMES = sorted(set(re.findall(r"\bcd\.(\w+)", README)))


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("name", FILES)
def test_files_exist(name):
    assert (ROOT / name).exists()


@pytest.mark.parametrize("name", NAMES)
def test_names_are_public(name):
    assert name in cdropout.__all__
