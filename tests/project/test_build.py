"""Tests of the built package: instruction sets and their masks, package data, peak memory."""

import hashlib
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import cdropout
from cdropout._core import dispatch

from ..helpers import kernel_tables as tables
from ..helpers import subprocess_runner
from ..helpers.requirements import ISAS, slow

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
    """Return the names of AVX and later instructions; only these, verr and verw begin with v."""
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


# ---- choice of the instruction set ------------------------------------------------------------


PRINT_ISA = """
import importlib
from cdropout._core import dispatch
module = importlib.import_module(dispatch.module_of(dispatch.isa))
print(dispatch.isa, dispatch.table is module.table)
"""


@pytest.mark.parametrize("isa", [*ISAS, ""])
def test_cdropout_isa_selects_the_instruction_set(isa):
    status, output, errors = run(PRINT_ISA, CDROPOUT_ISA=isa)
    widest = list(tables.tables())[-1]
    assert (status, errors) == (0, "")
    assert output.split() == [isa or widest, "True"]


@pytest.mark.parametrize(
    "wanted, built, message",
    [
        ("sse9", SETS, " has to be one of baseline, avx2, avx512, but got 'sse9'"),
        ("AVX3", SETS, " has to be one of baseline, avx2, avx512, but got 'AVX3'"),
        ("avx2", ("baseline",), "=avx2: cdropout was built without avx2; it has baseline"),
        ("avx512", SETS, "=avx512: this CPU cannot run avx512; it runs baseline, avx2"),
    ],
)
def test_choose_rejects_invalid_instruction_sets(wanted, built, message):
    with pytest.raises(ValueError, match=f"^CDROPOUT_ISA{message}$"):
        dispatch.choose(wanted, built, ("baseline", "avx2"))


@pytest.mark.parametrize("empty", [None, ""])
def test_choose_returns_the_widest_instruction_set_by_default(empty):
    assert dispatch.choose(empty, SETS, SETS) == "avx512"
    assert dispatch.choose(empty, SETS, ("baseline", "avx2")) == "avx2"
    assert dispatch.choose(empty, ("baseline", "avx512"), SETS) == "avx512"
    assert dispatch.choose(empty, ("baseline",), SETS) == "baseline"
    assert dispatch.choose("baseline", SETS, SETS) == "baseline"


def test_built_and_runnable_contain_the_baseline():
    assert "baseline" in dispatch.built() and "baseline" in dispatch.runnable()
    assert set(dispatch.built()) <= set(SETS) and set(dispatch.runnable()) <= set(SETS)


SAVED = 7 << 27  # the bits OSXSAVE, AVX and F16C of leaf 1
HASWELL, SKYLAKE_X = 0x27AB, 0xD39FFFFB  # EBX of leaf 7 on these CPUs


@pytest.mark.parametrize(
    "leaf1, leaf7, xcr0, sets",
    [
        (0, 0, 0, SETS[:1]),  # not an x86 CPU
        (0x7FFAFBBF, HASWELL, 0x07, SETS[:2]),
        (0x7FFEFBFF, SKYLAKE_X, 0xE7, SETS),
        (SAVED, SKYLAKE_X, 0xE6, SETS),
        (SAVED, SKYLAKE_X, 0x07, SETS[:2]),  # XCR0 without ZMM
        (SAVED, SKYLAKE_X, 0xC7, SETS[:2]),  # XCR0 without mask registers
        (SAVED, SKYLAKE_X, 0xE2, SETS[:1]),  # XCR0 without YMM
        (SAVED & ~(1 << 27), SKYLAKE_X, 0, SETS[:1]),  # no OSXSAVE
        (SAVED & ~(1 << 28), SKYLAKE_X, 0xE7, SETS[:1]),  # no AVX
        (SAVED & ~(1 << 29), SKYLAKE_X, 0xE7, SETS[:1]),  # no F16C
        (SAVED, SKYLAKE_X & ~(1 << 5), 0xE7, SETS[:1]),  # no AVX2
        *((SAVED, SKYLAKE_X & ~(1 << bit), 0xE7, SETS[:2]) for bit in (16, 17, 30, 31)),
    ],
)
def test_supported_returns_the_sets_for_cpuid_and_xcr0(leaf1, leaf7, xcr0, sets):
    assert dispatch.supported(leaf1, leaf7, xcr0) == sets


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(),
    reason="needs the flags of an x86 CPU in /proc/cpuinfo",
)
def test_runnable_agrees_with_the_cpu_flags_of_linux():
    (line,) = set(re.findall(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    needs = {"baseline": set(), "avx2": {"avx2", "f16c"}}
    needs["avx512"] = needs["avx2"] | {"avx512f", "avx512dq", "avx512bw", "avx512vl"}
    assert dispatch.runnable() == tuple(isa for isa in SETS if needs[isa] <= set(line.split()))


@pytest.mark.parametrize(
    "isa, built, advice",
    [
        ("avx512", SETS, ""),
        ("avx2", SETS, "use avx512, which is built and runs on this CPU"),
        ("avx2", SETS[:2], "build avx512, which this CPU runs"),
    ],
)
def test_advise_recommends_a_wider_instruction_set(isa, built, advice):
    assert dispatch.advise(isa, built, SETS, True) == advice
    assert "build it with Clang" in dispatch.advise(isa, built, SETS, False)


def test_describe_lists_the_instruction_sets():
    assert dispatch.describe(SETS, True) == "baseline, avx2, avx512"
    portable = "baseline (portable: built without vector types)"
    assert dispatch.describe(SETS[:1], False) == portable


def test_compiler_contains_name_and_version():
    assert re.fullmatch(r"(GCC|Clang) \d+\.\d+\.\d+|MSVC \d+", dispatch.compiler)
    assert dispatch.vectors == (not dispatch.compiler.startswith("MSVC"))


BASELINE_ONLY = not dispatch.vectors or sysconfig.get_platform().endswith("universal2")


@pytest.mark.skipif(
    BASELINE_ONLY and "CIBUILDWHEEL" not in os.environ,
    reason="needs a build with vector types for one architecture",
)
def test_all_instruction_sets_are_built():
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    assert dispatch.vectors and dispatch.built() == (SETS if x86 else SETS[:1])


# ---- masks of each instruction set ------------------------------------------------------------


SIGMAS = 5.2  # a correct implementation fails with a probability of 2e-7
every_isa = pytest.mark.parametrize("isa", ISAS)


def pack(keep):
    return np.packbits(keep, bitorder="little")


@every_isa
def test_masks_of_each_isa_have_the_recorded_hashes(isa):
    table = tables.tables()[isa]
    records = json.loads(files("cdropout").joinpath("stream_v1.json").read_text())
    assert len(records) == 220
    for case in records:
        n, start, p = case["n"], case["start"], float.fromhex(case["p"])
        mask = tables.new_mask(table, p, case["seed"] % 2**64, case["call"])
        bits, bools = tables.GuardedBuffer(-(-n // 8)), tables.GuardedBuffer(n)
        y = tables.guarded_copy(np.ones(n))
        table.bits(bits.address, n, mask, start)
        table.bools(bools.address, n, mask, start)
        table.apply(tables.DTYPES[np.float64], 0, y.address, y.address, n, mask, start)
        kept = y.inside.view(np.float64) != 0
        for drawn in (bits.inside, pack(bools.inside), pack(kept)):
            assert hashlib.sha256(drawn.tobytes()).hexdigest() == case["sha256"], case


def count_ones(packed):
    if hasattr(np, "bitwise_count"):  # added in NumPy 2.0
        return int(np.bitwise_count(packed).sum(dtype=np.int64))
    ones = np.array([value.bit_count() for value in range(256)], np.uint8)
    return int(ones[packed].sum(dtype=np.int64))


@every_isa
@pytest.mark.parametrize("p", [0.1, 0.5, *slow(0.001, 0.25, 0.9)])
def test_rate_of_dropped_elements_is_p_with_each_isa(isa, p):
    table, n = tables.tables()[isa], 1 << 27
    mask = tables.new_mask(table, p)
    drawn = np.empty(n // 8, np.uint8)
    table.bits(drawn.ctypes.data, n, mask, 12345)
    dropped = n - count_ones(drawn)
    assert abs(dropped - n * p) < SIGMAS * math.sqrt(n * p * (1 - p))


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


def test_header_and_declarations_have_the_same_kernels():
    """Compare the C header and the Cython declarations with the ctypes structures in the tests."""
    header = (Path(cdropout.get_include()) / "cdropout.h").read_text()
    cython = files("cdropout").joinpath("__init__.pxd").read_text()
    for text in (header, cython):
        assert re.findall(r"\(\*(\w+)\)", text) == list(tables.KERNELS)
        assert re.search(r"uint64_t seed, call, threshold;?\s+double scale", text)
    assert re.search(rf"#define CDROPOUT_TABLE_VERSION {tables.VERSION}\n", header)
    for dtype, code in tables.DTYPES.items():
        assert f"CDROPOUT_{dtype.__name__.upper()} = {code}" in header


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


# ---- memory -----------------------------------------------------------------------------------


PRINT_PEAK = """
import resource, sys
from pathlib import Path
import numpy as np
import cdropout

def peak():
    # on Linux, ru_maxrss includes the peak of the parent process; VmHWM does not
    if sys.platform == "linux":
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS

x, y = np.ones(1 << 24, np.float32), np.ones(1 << 24, np.float32)
packed, small = np.full(1 << 21, 0xA5, np.uint8), np.ones(64, np.float32)
cdropout.set_num_threads(THREADS)
cdropout.dropout(small, 0.1, out=small.copy())
before = peak()
_, mask = cdropout.dropout(x, 0.1, out=y, return_mask=True)
mask.apply(x, out=y)
cdropout.dropout_backward(x, mask, out=y)
cdropout.dropout_backward(x, packed, p=0.5, out=y)
cdropout.dropout(y.reshape(4096, 4096).T, 0.1, inplace=True)
cdropout.dropout(x.reshape(4096, 4096), 0.1, out=y.reshape(4096, 4096), broadcast_dims=0)
used = peak() - before
z = x + 1
print(used, peak() - before)
"""


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="needs getrusage")
@pytest.mark.parametrize("threads", [3, *slow(1)])
def test_calls_with_out_allocate_little_memory(threads):
    status, output, errors = run(PRINT_PEAK.replace("THREADS", str(threads)))
    assert (status, errors) == (0, "")
    used, with_an_array = map(int, output.split())
    assert used < 4 << 20  # thread stacks and small objects; x has 64 MiB
    assert with_an_array > 60 << 20  # the measured peak includes a new array


@pytest.mark.parametrize("shape", [5, (1 << 40,), (3, 4, 5), (1 << 20, 1 << 20, 1 << 20)])
def test_mask_objects_of_any_shape_use_little_memory(shape):
    mask = cdropout.Mask(shape, 0.1, seed=2**64 - 1, call=2**64 - 1)
    assert sys.getsizeof(mask) + sys.getsizeof(mask.shape) < 200
