"""Tests of the built package: instructions in its modules, package data, and missing modules."""

import importlib.util
import json
import platform
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

import cdropout
from cdropout._core import dispatch

from ..helpers import subprocess_runner

PACKAGE = Path(cdropout.__file__).parent
SETS = dispatch.INSTRUCTION_SETS


def run(code, **environment):
    """Run Python code with warnings as errors; return the exit status, stdout and stderr."""
    return subprocess_runner.run(code, PYTHONWARNINGS="error", **environment)


def module_file(isa):
    return importlib.util.find_spec(dispatch.module_of(isa)).origin


# ---- instructions in the modules --------------------------------------------------------------


needs_objdump = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64") or not shutil.which("objdump"),
    reason="needs x86-64 and objdump",
)


def disassemble(path):
    command = ["objdump", "-d", "--no-show-raw-insn", str(path)]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert code.count("\n") > 100
    return code


def wide_instructions(code):
    """Return the names of instructions that begin with v, as AVX names do, except verr and verw."""
    names = set(re.findall(r"^\s*[0-9a-f]+:\s+(v\w+)", code, re.MULTILINE))
    return names - {"verr", "verw"}


def registers(code, kind):
    return set(re.findall(rf"%{kind}\d+", code))


@needs_objdump
def test_only_kernels_of_avx2_and_avx512_contain_avx_instructions():
    wide = {module_file(isa) for isa in dispatch.built() if isa != "baseline"}
    modules = [path for path in PACKAGE.rglob("*.so") if str(path) not in wide]
    assert module_file("baseline") in map(str, modules) and len(modules) > 2
    assert registers(disassemble(module_file("baseline")), "xmm")
    for path in modules:
        code = disassemble(path)
        assert not registers(code, "[yz]mm") and not wide_instructions(code), path


@needs_objdump
@pytest.mark.parametrize(
    "isa, own, later", [("avx2", "ymm", "(?:zmm|k)"), ("avx512", "zmm", "tmm")]
)
def test_kernels_do_not_use_registers_of_later_instruction_sets(isa, own, later):
    if isa not in dispatch.built():
        pytest.skip(f"needs kernels of {isa}: cdropout was built without them")
    code = disassemble(module_file(isa))
    assert len(registers(code, own)) > 4 and not registers(code, later)


# ---- package data -----------------------------------------------------------------------------


def test_package_data_is_installed():
    records = json.loads(files("cdropout").joinpath("stream_v1.json").read_text())
    assert len(records) == 220
    kernels = ["_core/stream.pxd", "_core/dispatch.pxd", "_core/simd.h", "_core/half.h"]
    for name in ["__init__.pxd", *kernels]:
        assert files("cdropout").joinpath(name).is_file(), name
    assert (Path(cdropout.get_include()) / "cdropout.h").is_file()


@pytest.mark.skipif(
    (PACKAGE.parent / "setup.py").exists(), reason="needs an installed copy of the package"
)
def test_sources_are_not_installed():
    assert not [*PACKAGE.rglob("*.c"), *PACKAGE.rglob("*.pyx")]


# ---- a checkout that is not built --------------------------------------------------------------


SET_PATH = """
import sys
from pathlib import Path
import numpy, pytest
sys.path = [PATH] + [entry for entry in sys.path if not Path(entry, "cdropout", "_core").exists()]
"""
RUN_PYTEST = "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {!r}]))"
NOT_BUILT = "the checkout {} of cdropout is not built: run `pip install -e .` in it"
HIDDEN = (
    "cdropout is installed, but the checkout {}, which is not built, hides it: "
    "start Python in another folder, or run `pip install -e .` in it"
)


@pytest.fixture
def unbuilt(tmp_path):
    """Return a folder with the package's Python files and one test."""
    for path in PACKAGE.rglob("*.py"):
        copy = tmp_path / "cdropout" / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    (tmp_path / "tests").mkdir()
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path / "tests")
    (tmp_path / "tests" / "test_one.py").write_text("import cdropout\ndef test_one(): pass\n")
    return tmp_path


def run_with_path(code, *path):
    """Run code with these folders on sys.path and without other folders that contain cdropout."""
    return run(SET_PATH.replace("PATH", ", ".join(f"{str(entry)!r}" for entry in path)) + code)


@pytest.mark.parametrize("message, others", [(NOT_BUILT, []), (HIDDEN, [PACKAGE.parent])])
def test_import_of_an_unbuilt_checkout_raises_with_advice(unbuilt, message, others):
    status, _, errors = run_with_path("import cdropout", unbuilt, *others)
    assert status == 1
    assert errors.splitlines()[-1] == f"ImportError: {message.format(unbuilt)}"
    assert "During handling" not in errors


@pytest.mark.parametrize("message, others", [(NOT_BUILT, []), (HIDDEN, [PACKAGE.parent])])
def test_pytest_in_an_unbuilt_checkout_prints_advice_without_a_traceback(unbuilt, message, others):
    code = RUN_PYTEST.format(str(unbuilt / "tests"))
    status, output, errors = run_with_path(code, unbuilt, *others)
    assert status == pytest.ExitCode.USAGE_ERROR
    expected = f"ERROR: {message.format(unbuilt)}. See the beginning of CONTRIBUTING.md."
    assert errors.splitlines()[0] == expected
    assert "Traceback" not in errors + output


def test_pytest_without_the_package_prints_advice(unbuilt):
    code = RUN_PYTEST.format(str(unbuilt / "tests"))
    status, _, errors = run_with_path(code, unbuilt / "tests")
    assert status == pytest.ExitCode.USAGE_ERROR
    expected = "ERROR: cdropout is not installed: run `pip install -e .` in its checkout. "
    assert errors.splitlines()[0] == expected + "See the beginning of CONTRIBUTING.md."


def test_import_without_numpy_does_not_recommend_a_build():
    status, _, errors = run("import sys; sys.modules['numpy'] = None; import cdropout")
    assert status == 1
    assert "built" not in errors and "import of numpy halted" in errors
