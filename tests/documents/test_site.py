"""Tests of docs/conf.py: pages of adapters whose frameworks are missing, and help of commands."""

import importlib.util
from pathlib import Path

import pytest

from ..helpers.requirements import find_or_skip

find_or_skip("sphinx")
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def conf(monkeypatch):
    """Return docs/conf.py as a module; the environment is restored afterwards."""
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    monkeypatch.setenv("COLUMNS", "200")
    specification = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_each_adapter_has_a_page(conf):
    pages = {path.stem.removeprefix("adapter_") for path in DOCS.glob("api/adapter_*.md")}
    assert pages == set(conf.ADAPTERS)


@pytest.mark.parametrize("missing", [True, False])
def test_page_of_an_adapter_warns_if_the_framework_is_missing(conf, monkeypatch, capsys, missing):
    monkeypatch.setattr(conf, "MISSING", ["jax"] if missing else [])
    text = (DOCS / "api" / "adapter_jax.md").read_text()
    source = [text]
    conf.warn_of_missing_framework(None, "api/adapter_jax", source)
    if missing:
        title, *rest = source[0].splitlines()
        assert title == text.splitlines()[0] and ":::{warning}" in rest
        assert "`pip install 'cdropout[docs,jax]'`" in source[0] and "autofunction" not in source[0]
        assert "the package jax is missing" in capsys.readouterr().out
    else:
        assert source == [text]
    other = ["# Keras"]
    conf.warn_of_missing_framework(None, "api/adapter_keras", other)
    assert other == ["# Keras"]


def test_help_of_a_command_has_80_columns(conf):
    directive = object.__new__(conf.HelpOf)  # does not call __init__, which needs a parser
    directive.arguments = ["bench"]
    (block,) = directive.run()
    lines = block.astext().splitlines()
    assert lines[0].startswith("usage: cdropout bench ") and max(map(len, lines)) <= 80
