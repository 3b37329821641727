"""Tests of errors at import: invalid environment variables, unsupported framework versions."""

import importlib
import os
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from cdropout._core import dispatch
from cdropout.environment import check_version

from ..helpers.command_line import BENCH, assert_error, run
from ..helpers.requirements import import_or_skip, slow, why_not_runnable

ISA_ERROR = "CDROPOUT_ISA has to be one of baseline, avx2, avx512, but got "
THREADS_ERROR = "CDROPOUT_NUM_THREADS has to be an int of at least 1, but"


@pytest.mark.parametrize(
    "variable, value, text",
    [
        ("CDROPOUT_ISA", "sse9", ISA_ERROR),
        ("CDROPOUT_NUM_THREADS", "0", THREADS_ERROR),
        ("CDROPOUT_NUM_THREADS", "two", THREADS_ERROR),
    ],
)
@pytest.mark.parametrize(
    "arguments", [["info"], *slow(["selftest"], BENCH, ["--help"], [])], ids=str
)
def test_command_prints_one_line_for_an_invalid_variable(command, arguments, variable, value, text):
    assert_error(run(command, *arguments, **{variable: value}), 2, text)


OPTIONS = [
    ["-BPmcdropout.__main__"], ["-W", "ignore", "-Xutf8", "-X", "dev", "-m", "cdropout"],
    *slow(["-mcdropout"], ["-m", "cdropout.__main__"], ["-Pm", "cdropout"]),
    *slow(["--check-hash-based-pycs", "always", "-m", "cdropout"]),
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_command_with_any_form_of_option_m_prints_one_line(options):
    assert_error(run([sys.executable, *options], "info", CDROPOUT_ISA="sse9"), 2, ISA_ERROR)


@pytest.mark.parametrize("program", ["import cdropout", "import sys; import cdropout.__main__"])
def test_import_with_an_invalid_variable_raises_in_other_programs(program):
    """A program with the argument `cdropout` is not mistaken for the command line."""
    code, _, error = run([sys.executable, "-P", "-c", program], "cdropout", CDROPOUT_ISA="sse9")
    assert code == 1 and "Traceback" in error
    assert error.splitlines()[-1].startswith(f"ValueError: {ISA_ERROR}")


@pytest.mark.parametrize(
    "options", [["-W", "ignore", "-mmytool"], *slow(["-m", "mytool"], ["-mmytool"])]
)
@pytest.mark.parametrize("arguments", [["-m", "cdropout"], *slow(["cdropout"], ["-mcdropout"])])
def test_import_with_an_invalid_variable_raises_in_other_modules(options, arguments, tmp_path):
    """With -m, Python imports the module's package before it sets sys.argv[0]."""
    (tmp_path / "mytool").mkdir()
    (tmp_path / "mytool" / "__init__.py").write_text("import cdropout")
    (tmp_path / "mytool" / "__main__.py").write_text("")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, *options]
    code, _, error = run(command, *arguments, CDROPOUT_ISA="sse9", PYTHONPATH=paths)
    assert code == 1 and f"ValueError: {ISA_ERROR}" in error


@pytest.mark.slow
@pytest.mark.parametrize("isa", dispatch.built())
def test_cdropout_isa_and_option_isa_ignore_case(command, isa):
    if reason := why_not_runnable(isa):
        pytest.skip(reason)
    for text in (isa.upper(), isa.capitalize(), isa):
        code, printed, error = run(command, "info", CDROPOUT_ISA=text)
        assert (code, error) == (0, "") and f"in use:         {isa}\n" in printed
    code, printed, error = run(command, *BENCH, "--isa", isa.upper())
    assert (code, error) == (0, "") and f", {isa}" in printed.splitlines()[0]


# ---- versions of frameworks ---------------------------------------------------------------------

VERSIONS = {  # requirement: (supported versions, unsupported versions)
    "dask[array]>=2024.12": (["2024.12.0", "2024.12.1", "2025.1.0"], ["2024.9.9", "2024.11.2"]),
    "keras>=3.0": (["3", "3.0.0", "3.10.0", "4.0.0"], ["2.15.0", "2.16.0rc1"]),
    "thinc>=8.3.1": (["8.3.1rc1", "8.4rc1"], ["8.3rc1", "8.3.dev9", "8"]),
    "torch<3,>=2.9": (["2.9.0+cpu", "2.14.1"], ["2.8.1", "3.0.0a1+cpu"]),
    "tensorflow<3,>=2.16": (["2.16.0rc1", "2.16.2", "2.21.0"], ["2.9.3", "3.0.0", "3.0.0a1+cpu"]),
}


@pytest.mark.parametrize("requirement", VERSIONS)
def test_check_version_raises_for_versions_outside_of_the_range(requirement, monkeypatch):
    name = re.match(r"\w+", requirement)[0]
    lines = ["numpy>=1.25", f'{name}lib>=9; extra == "x"', f'{requirement}; extra == "{name}"']
    monkeypatch.setattr(metadata, "requires", lambda _: lines)
    supported, others = VERSIONS[requirement]
    for version in supported:
        check_version(SimpleNamespace(__name__=name, __version__=version))
    for version in others:
        message = (
            f"cdropout.{name} needs {requirement}, but {name} {version} is installed: "
            f"run `pip install 'cdropout[{name}]'`"
        )
        with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
            check_version(SimpleNamespace(__name__=name, __version__=version))


def test_check_version_accepts_all_versions_without_metadata(monkeypatch):
    framework = SimpleNamespace(__name__="dask", __version__="0.0.1")
    monkeypatch.setattr(metadata, "requires", lambda _: None)
    check_version(framework)
    monkeypatch.setattr(metadata, "requires", lambda _: metadata.distribution("cdropout-missing"))
    check_version(framework)


@pytest.mark.parametrize("name", ["dask", "flax", "jax", "keras", "tensorflow", "thinc", "torch"])
def test_adapters_check_the_version_of_their_framework(name, monkeypatch):
    import_or_skip(name)
    adapter = importlib.import_module(f"cdropout.{name}")
    monkeypatch.setattr(metadata, "requires", lambda _: [f'{name}>=9999; extra == "{name}"'])
    with pytest.raises(ImportError, match=rf"^cdropout\.{name} needs {name}>=9999, but {name} "):
        importlib.reload(adapter)


def test_metadata_has_the_ranges_of_pyproject():
    requirements = metadata.requires("cdropout")
    if not requirements:
        pytest.skip("needs the metadata of cdropout: pip install .")
    lines = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())
    for name in ("dask", "flax", "jax", "keras", "tensorflow", "thinc", "torch"):
        lowest = re.search(r">=([\d.]+)", lines["project"]["optional-dependencies"][name][-1])[1]
        check_version(SimpleNamespace(__name__=name, __version__=lowest))
        with pytest.raises(ImportError, match=f">={lowest}"):
            check_version(SimpleNamespace(__name__=name, __version__="0.0.1"))
