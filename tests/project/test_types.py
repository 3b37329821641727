"""The types that the package claims: true at run time, and the same to mypy and stubtest."""

import importlib.resources

import pytest

import cdropout as cd

from . import typed_use


@pytest.mark.parametrize("use", typed_use.USES, ids=lambda use: use.__name__)
def test_what_the_types_claim_is_true(use):
    cd.manual_seed(0)
    use()


@pytest.mark.parametrize("call", typed_use.REFUSED)
def test_what_the_types_refuse_is_refused(call):
    with pytest.raises((TypeError, IndexError)):
        typed_use.refused(call)


def test_the_installed_package_says_that_it_is_typed():
    files = importlib.resources.files(cd)
    assert files.joinpath("py.typed").is_file()
    for module in "dropout", "bias_dropout_add", "mask", "generator":
        assert files.joinpath("_core", f"{module}.pyi").is_file()
