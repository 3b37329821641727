"""Tests of the import of cdropout.torch."""

from pathlib import Path

import pytest

from ..helpers.requirements import import_or_skip
from ..helpers.subprocess_runner import run

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")


def test_import_without_pytorch_raises_with_the_install_command():
    script = "import sys; sys.modules['torch'] = None; import cdropout.torch"
    _, _, errors = run(script)
    message = "cdropout.torch needs PyTorch: run `pip install 'cdropout[torch]'`"
    assert errors.splitlines()[-1] == f"ImportError: {message}"


def test_versions_of_pytorch_in_the_documents():
    root = Path(__file__).parents[2]
    if not (root / "pyproject.toml").exists():
        pytest.skip("needs the repository")
    assert 'torch = ["torch>=2.9,<3"]' in (root / "pyproject.toml").read_text()
    for page in ("README.md", "docs/adapters.md"):
        assert "PyTorch 2.9 and later versions below 3.0" in (root / page).read_text()
