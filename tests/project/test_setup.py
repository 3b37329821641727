"""Tests of the lowest NumPy version, and of the compiler and flags for Windows in setup.py."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SETUP = Path(__file__).parents[2] / "setup.py"
pytestmark = pytest.mark.skipif(not SETUP.exists(), reason="needs the setup.py of a checkout")
OPTIONS = ["/nologo", "/O2", "/W3", "/GL", "/DNDEBUG", "/MD"]  # setuptools' options for MSVC
NAME = "clang-cl.exe" if sys.platform == "win32" else "clang-cl"


@pytest.fixture
def build(monkeypatch, tmp_path):
    """Return a build_ext command for 64-bit Windows with MSVC and without clang-cl."""
    setuptools = pytest.importorskip("setuptools")
    pytest.importorskip("Cython")
    arguments_of_setup = {}
    monkeypatch.setattr(setuptools, "setup", arguments_of_setup.update)
    monkeypatch.setattr("sysconfig.get_platform", lambda: "win-amd64")
    monkeypatch.chdir(SETUP.parent)
    runpy.run_path(str(SETUP))
    for name in "PATH", "ProgramFiles":
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("CDROPOUT_REQUIRE_CLANG", raising=False)
    command = arguments_of_setup["cmdclass"]["build_ext"](setuptools.Distribution())
    command.extensions, command.plat_name = arguments_of_setup["ext_modules"], "win-amd64"
    cl = tmp_path / "VC" / "Tools" / "MSVC" / "14.44.35207" / "bin" / "Hostx86" / "x64" / "cl.exe"
    command.compiler = SimpleNamespace(initialized=False)

    def initialize(platform):
        assert platform == command.plat_name
        vars(command.compiler).update(initialized=True, cc=str(cl), compile_options=[*OPTIONS])

    command.compiler.initialize = initialize
    return command


def add_program(*path):
    """Create an empty program named clang-cl in a folder and return its path."""
    program = Path(*path, NAME)
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    return program


def flags_of_kernels(command):
    """Return {instruction set: compiler flags for its kernels}."""
    prefix = "cdropout._core._kernels_"
    found = {ext.name: ext.extra_compile_args for ext in command.extensions}
    assert "cdropout._core.dispatch" in found
    return {name.removeprefix(prefix): found[name] for name in found if name.startswith(prefix)}


def test_modules_require_the_lowest_numpy_of_pyproject(build):
    macros = {dict(extension.define_macros)["NPY_TARGET_VERSION"] for extension in build.extensions}
    (version,) = macros
    lowest = version.removeprefix("NPY_").removesuffix("_API_VERSION").replace("_", ".")
    assert f'dependencies = ["numpy>={lowest}"]' in SETUP.with_name("pyproject.toml").read_text()
    # the preprocessor reads an unknown name as 0, that is, as a very old version
    header = Path(np.get_include(), "numpy", "numpyconfig.h").read_text()
    assert f"#define {version} " in header


FOLDERS = [
    ["PATH"],
    ["ProgramFiles", "LLVM", "bin"],
    ["VC", "Tools", "Llvm", "x64", "bin"],
    ["VC", "Tools", "Llvm", "ARM64", "bin"],
]


@pytest.mark.parametrize("folder", FOLDERS, ids="/".join)
def test_replace_msvc_uses_clang_cl(build, monkeypatch, tmp_path, folder):
    program = add_program(tmp_path, *folder)
    monkeypatch.setenv("CDROPOUT_REQUIRE_CLANG", "1")
    build.replace_msvc()
    assert Path(build.compiler.cc) == program
    assert build.compiler.compile_options == [name for name in OPTIONS if name != "/GL"]
    flags = flags_of_kernels(build)
    assert list(flags) == ["baseline", "avx2", "avx512"]
    for isa in flags:
        assert flags[isa][0] == "--target=x86_64-pc-windows-msvc"
        assert {"/clang:-O3", "/clang:-ffp-contract=off"} < set(flags[isa])
        assert all(flag.startswith("/clang:-") for flag in flags[isa][1:])
    avx2 = ["/clang:-mavx2", "/clang:-mfma", "/clang:-mf16c"]
    assert flags["avx2"] == [*flags["baseline"], *avx2]
    assert flags["avx512"][: len(flags["avx2"])] == flags["avx2"]
    assert flags["avx512"][-1] == "/clang:-mavx512vl"


def test_replace_msvc_uses_the_first_clang_cl(build, tmp_path):
    first, *_ = [add_program(tmp_path, *folder) for folder in FOLDERS]
    build.replace_msvc()
    assert Path(build.compiler.cc) == first


def test_build_for_arm64_contains_only_the_baseline(build, tmp_path):
    add_program(tmp_path, *FOLDERS[0])
    build.plat_name = "win-arm64"
    build.replace_msvc()
    ((isa, flags),) = flags_of_kernels(build).items()
    assert isa == "baseline" and flags[0] == "--target=aarch64-pc-windows-msvc"


@pytest.mark.parametrize("required", [None, "0"])
def test_build_with_msvc_contains_only_the_portable_form(build, monkeypatch, required):
    if required:
        monkeypatch.setenv("CDROPOUT_REQUIRE_CLANG", required)
    messages = []
    monkeypatch.setattr(build, "warn", messages.append)
    build.replace_msvc()
    assert Path(build.compiler.cc).name == "cl.exe"
    assert build.compiler.compile_options == OPTIONS
    assert flags_of_kernels(build) == {"baseline": []}
    assert messages == [
        "clang-cl was not found on PATH, in LLVM's folder or in Visual Studio's: "
        "building the portable form, which is several times slower"
    ]


def test_build_without_a_required_clang_cl_raises(build, monkeypatch):
    errors = pytest.importorskip("setuptools.errors")
    monkeypatch.setenv("CDROPOUT_REQUIRE_CLANG", "1")
    message = "CDROPOUT_REQUIRE_CLANG is set, but clang-cl was not found on PATH, in LLVM's folder"
    with pytest.raises(errors.PlatformError, match=message):
        build.replace_msvc()


def test_build_extensions_replaces_only_msvc(build, monkeypatch):
    replaced = []
    monkeypatch.setattr(build, "replace_msvc", lambda: replaced.append(True))
    build.extensions = []
    for kind in "unix", "mingw32":
        build.compiler.compiler_type = kind
        build.build_extensions()
    assert not replaced
    build.compiler.compiler_type = "msvc"
    build.build_extensions()
    assert replaced
