"""Tests of type annotations at run time; mypy and stubtest check the annotations in CI."""

import importlib.resources

import pytest

import cdropout as cd

from . import typed_use


@pytest.mark.parametrize("use", typed_use.USES, ids=lambda use: use.__name__)
def test_annotations_are_correct_at_run_time(use):
    cd.manual_seed(0)
    use()


@pytest.mark.parametrize("call", typed_use.REFUSED)
def test_arguments_rejected_by_mypy_raise_at_run_time(call):
    with pytest.raises((TypeError, IndexError)):
        typed_use.refused(call)


def test_package_contains_a_type_marker_and_stubs():
    files = importlib.resources.files(cd)
    assert files.joinpath("py.typed").is_file()
    for module in "dropout", "bias_dropout_add", "mask", "generator":
        assert files.joinpath("_core", f"{module}.pyi").is_file()
