"""Tests of the errors that the import of cdropout raises for invalid environment variables."""

import os
import sys

import pytest

from cdropout._core import dispatch

from ..helpers.command_line import BENCH, assert_error, run
from ..helpers.requirements import slow, why_not_runnable

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
    """With -m, Python imports the module's package before it sets sys.argv."""
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
