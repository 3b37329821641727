"""Tests of the signatures and docstrings of all public callables, including compiled ones."""

import doctest
import importlib
import inspect
import pydoc
import re

import pytest

import cdropout as cd

from ..helpers.requirements import EXTRAS, find_or_skip


def documented_parameters(docstring):
    """Return the names in the Parameters section of a docstring, or None if there is none."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=\n\n\S|\Z)", docstring, re.DOTALL | re.MULTILINE)
    if section is None:
        return None
    headings = re.findall(r"^(\S.*?)(?: :.*)?$", section[1], re.MULTILINE)
    return {name.strip("* ") for heading in headings for name in heading.split(",")}


def parameters_of(function):
    """Return the names of a callable's parameters, excluding self."""
    return {name for name in inspect.signature(function).parameters if name != "self"}


def public_callables(module):
    return {name: f for name in module.__all__ if callable(f := getattr(module, name))}


CALLABLES = public_callables(cd)
METHODS = {
    f"{kind.__name__}.{name}": method
    for kind in CALLABLES.values()
    if isinstance(kind, type)
    for name in dir(kind)
    if not name.startswith("_") and callable(method := getattr(kind, name))
}
# Only `Dropout` documents the methods that all modules share. extra_repr is for subclasses.
METHODS_WITH_EXAMPLES = [
    name
    for name in METHODS
    if name.startswith(("Dropout.", "Generator.", "Mask.")) and name != "Dropout.extra_repr"
]


@pytest.mark.parametrize("name", [*CALLABLES, *METHODS])
def test_all_parameters_are_documented(name):
    function = CALLABLES.get(name) or METHODS[name]
    parameters = parameters_of(function)
    documented = documented_parameters(inspect.getdoc(function))
    inherited = isinstance(function, type) and issubclass(function, cd.Dropout)
    short = name in METHODS and documented is None and len(parameters) == 1
    assert inherited or short or parameters == (documented or set())


@pytest.mark.parametrize("adapter", sorted(EXTRAS))
def test_documented_parameters_of_adapters_are_in_the_signature(adapter):
    find_or_skip(adapter)
    for function in public_callables(importlib.import_module(f"cdropout.{adapter}")).values():
        assert (documented_parameters(inspect.getdoc(function)) or set()) <= parameters_of(function)


def test_class_docstrings_begin_with_the_signature():
    assert str(inspect.signature(cd.Mask)) == (
        "(shape, p, seed=0, call=0, start=0, strides=None, scale=None)"
    )
    assert str(inspect.signature(cd.Generator)) == "(seed=None)"
    for kind in cd.Mask, cd.Generator:
        text = pydoc.render_doc(kind, renderer=pydoc.plaintext)
        assert f"class {kind.__name__}(builtins.object)\n |  {kind.__name__}(" in text
        assert "**Compatibility Guarantee**" in text


@pytest.mark.parametrize("name", [*CALLABLES, *METHODS_WITH_EXAMPLES])
def test_examples_in_docstrings_run(name):
    """Run the examples in the docstring of a callable, which must contain examples."""
    if name == "Mask.to_dask":
        find_or_skip("dask")
    generator_state, threads = cd.default_generator.state, cd.get_num_threads()
    finder = doctest.DocTestFinder(recurse=False)
    (examples,) = finder.find((CALLABLES | METHODS)[name], name, module=False)
    result = doctest.DocTestRunner().run(examples)
    cd.default_generator.state = generator_state
    assert result.attempted > 0 and result.failed == 0
    assert cd.get_num_threads() == threads


@pytest.mark.parametrize("name", [*CALLABLES, *METHODS])
def test_docstrings_name_no_file_that_a_wheel_lacks(name):
    text = inspect.getdoc((CALLABLES | METHODS)[name])
    assert not re.search(r"\b(?:docs|tests|examples|tools|benchmarks)/|\.md\b", text)


def test_flax_dropout_and_its_instances_have_different_signatures():
    find_or_skip("flax")
    from cdropout.flax import Dropout

    assert list(inspect.signature(Dropout).parameters)[:2] == ["rate", "broadcast_dims"]
    assert list(inspect.signature(Dropout(0.5)).parameters) == ["inputs", "deterministic", "rngs"]
