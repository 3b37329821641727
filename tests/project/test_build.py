"""What was built: its instructions, which are chosen, what they draw; package data and memory."""

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
from ..helpers.requirements import ISAS, slow

PACKAGE = Path(cdropout.__file__).parent
SETS = dispatch.INSTRUCTION_SETS


def run(code, **environment):
    """Run Python code by itself, without the current folder on its path."""
    environment = {**os.environ, **environment}
    command = [sys.executable, "-P", "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def module_file(isa):
    return importlib.util.find_spec(dispatch.module_of(isa)).origin


# ---- the instructions -------------------------------------------------------------------------


needs_objdump = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64") or not shutil.which("objdump"),
    reason="looks at x86-64 code with objdump",
)


def disassemble(path):
    command = ["objdump", "-d", "--no-show-raw-insn", str(path)]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert code.count("\n") > 100
    return code


def wide_instructions(code):
    """Return those of AVX and later: all their names begin with v, and hardly any others do."""
    names = set(re.findall(r"^\s*[0-9a-f]+:\s+(v\w+)", code, re.MULTILINE))
    return names - {"verr", "verw"}


def registers(code, kind):
    return set(re.findall(rf"%{kind}\d+", code))


@needs_objdump
def test_all_modules_but_the_wide_kernels_run_on_every_cpu():
    wide = {module_file(isa) for isa in dispatch.built() if isa != "baseline"}
    modules = [path for path in PACKAGE.rglob("*.so") if str(path) not in wide]
    assert module_file("baseline") in map(str, modules) and len(modules) > 2
    assert registers(disassemble(module_file("baseline")), "xmm")
    for path in modules:
        code = disassemble(path)
        assert not registers(code, "[yz]mm") and not wide_instructions(code), path


@needs_objdump
@pytest.mark.parametrize(
    "isa, own, never", [("avx2", "ymm", "(?:zmm|k)"), ("avx512", "zmm", "tmm")]
)
def test_wide_kernels_hold_their_own_registers_and_no_later_ones(isa, own, never):
    if isa not in dispatch.built():
        pytest.skip(f"built without {isa}")
    code = disassemble(module_file(isa))
    assert len(registers(code, own)) > 4 and not registers(code, never)


# ---- the choice -------------------------------------------------------------------------------


CHOSEN = """
import importlib
from cdropout._core import dispatch
module = importlib.import_module(dispatch.module_of(dispatch.isa))
print(dispatch.isa, dispatch.table is module.table)
"""


@pytest.mark.parametrize("isa", [*ISAS, ""])
def test_the_environment_chooses(isa):
    done = run(CHOSEN, CDROPOUT_ISA=isa)
    widest = list(tables.tables())[-1]
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [isa or widest, "True"]


@pytest.mark.parametrize(
    "wanted, built, message",
    [
        ("sse9", SETS, " has to be one of baseline, avx2, avx512, but got 'sse9'"),
        ("AVX3", SETS, " has to be one of baseline, avx2, avx512, but got 'AVX3'"),
        ("avx2", ("baseline",), "=avx2: cdropout was built without avx2; it has baseline"),
        ("avx512", SETS, "=avx512: this CPU cannot run avx512; it runs baseline, avx2"),
    ],
)
def test_what_cannot_be_chosen(wanted, built, message):
    with pytest.raises(ValueError, match=f"^CDROPOUT_ISA{message}$"):
        dispatch.choose(wanted, built, ("baseline", "avx2"))


@pytest.mark.parametrize("nothing", [None, ""])
def test_without_a_wish_the_widest_usable_is_chosen(nothing):
    assert dispatch.choose(nothing, SETS, SETS) == "avx512"
    assert dispatch.choose(nothing, SETS, ("baseline", "avx2")) == "avx2"
    assert dispatch.choose(nothing, ("baseline", "avx512"), SETS) == "avx512"
    assert dispatch.choose(nothing, ("baseline",), SETS) == "baseline"
    assert dispatch.choose("baseline", SETS, SETS) == "baseline"


def test_baseline_is_always_there():
    assert "baseline" in dispatch.built() and "baseline" in dispatch.runnable()
    assert set(dispatch.built()) <= set(SETS) and set(dispatch.runnable()) <= set(SETS)


SAVED = 7 << 27  # the registers of AVX are saved, and the CPU has AVX and F16C
HASWELL, SKYLAKE_X = 0x27AB, 0xD39FFFFB  # EBX of leaf 7


@pytest.mark.parametrize(
    "leaf1, leaf7, xcr0, sets",
    [
        (0, 0, 0, SETS[:1]),  # not an x86 CPU
        (0x7FFAFBBF, HASWELL, 0x07, SETS[:2]),
        (0x7FFEFBFF, SKYLAKE_X, 0xE7, SETS),
        (SAVED, SKYLAKE_X, 0xE6, SETS),
        (SAVED, SKYLAKE_X, 0x07, SETS[:2]),  # the system does not save ZMM
        (SAVED, SKYLAKE_X, 0xC7, SETS[:2]),  # nor the mask registers
        (SAVED, SKYLAKE_X, 0xE2, SETS[:1]),  # nor YMM
        (SAVED & ~(1 << 27), SKYLAKE_X, 0, SETS[:1]),  # OSXSAVE
        (SAVED & ~(1 << 28), SKYLAKE_X, 0xE7, SETS[:1]),  # AVX
        (SAVED & ~(1 << 29), SKYLAKE_X, 0xE7, SETS[:1]),  # F16C
        (SAVED, SKYLAKE_X & ~(1 << 5), 0xE7, SETS[:1]),  # AVX2
        *((SAVED, SKYLAKE_X & ~(1 << bit), 0xE7, SETS[:2]) for bit in (16, 17, 30, 31)),
    ],
)
def test_sets_by_registers(leaf1, leaf7, xcr0, sets):
    assert dispatch.supported(leaf1, leaf7, xcr0) == sets


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(),
    reason="needs the flags of an x86 CPU in /proc/cpuinfo",
)
def test_the_probe_agrees_with_linux():
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
def test_advice(isa, built, advice):
    assert dispatch.advise(isa, built, SETS, True) == advice
    assert "build it with Clang" in dispatch.advise(isa, built, SETS, False)


def test_description():
    assert dispatch.describe(SETS, True) == "baseline, avx2, avx512"
    portable = "baseline (portable: built without vector types)"
    assert dispatch.describe(SETS[:1], False) == portable


def test_the_compiler_is_known():
    assert re.fullmatch(r"(GCC|Clang) \d+\.\d+\.\d+|MSVC \d+", dispatch.compiler)
    assert dispatch.vectors == (not dispatch.compiler.startswith("MSVC"))


FEWER = not dispatch.vectors or sysconfig.get_platform().endswith("universal2")


@pytest.mark.skipif(
    FEWER and "CIBUILDWHEEL" not in os.environ,
    reason="a portable build, or one for two architectures, has the baseline only",
)
def test_all_sets_are_built():
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    assert dispatch.vectors and dispatch.built() == (SETS if x86 else SETS[:1])


# ---- what the kernels draw --------------------------------------------------------------------


SIGMAS = 5.2  # two-sided normal tail 2e-7: the five rates tested together stay near 1e-6
every_isa = pytest.mark.parametrize("isa", ISAS)


def pack(keep):
    return np.packbits(keep, bitorder="little")


@every_isa
def test_recorded_hashes(isa):
    table = tables.tables()[isa]
    records = json.loads(files("cdropout").joinpath("stream_v1.json").read_text())
    assert len(records) == 220
    for case in records:
        n, start, p = case["n"], case["start"], float.fromhex(case["p"])
        mask = tables.new_mask(table, p, case["seed"] % 2**64, case["call"])
        bits, bools, y = tables.GuardedBuffer(-(-n // 8)), tables.GuardedBuffer(n), tables.guarded_copy(np.ones(n))
        table.bits(bits.address, n, mask, start)
        table.bools(bools.address, n, mask, start)
        table.apply(tables.DTYPES[np.float64], 0, y.address, y.address, n, mask, start)
        kept = y.inside.view(np.float64) != 0
        for drawn in (bits.inside, pack(bools.inside), pack(kept)):
            assert hashlib.sha256(drawn.tobytes()).hexdigest() == case["sha256"], case


def count_ones(octets):
    if hasattr(np, "bitwise_count"):  # since NumPy 2
        return int(np.bitwise_count(octets).sum(dtype=np.int64))
    ones = np.array([value.bit_count() for value in range(256)], np.uint8)
    return int(ones[octets].sum(dtype=np.int64))


@every_isa
@pytest.mark.parametrize("p", [0.1, 0.5, *slow(0.001, 0.25, 0.9)])
def test_the_rate_of_drops(isa, p):
    table, n = tables.tables()[isa], 1 << 27
    mask = tables.new_mask(table, p)
    drawn = np.empty(n // 8, np.uint8)
    table.bits(drawn.ctypes.data, n, mask, 12345)
    dropped = n - count_ones(drawn)
    assert abs(dropped - n * p) < SIGMAS * math.sqrt(n * p * (1 - p))


# ---- what is shipped --------------------------------------------------------------------------


def test_package_data():
    records = json.loads(files("cdropout").joinpath("stream_v1.json").read_text())
    assert len(records) == 220
    for name in ("__init__.pxd", "_core/stream.pxd", "_core/dispatch.pxd", "_core/simd.h"):
        assert files("cdropout").joinpath(name).is_file(), name
    assert (Path(cdropout.get_include()) / "cdropout.h").is_file()


@pytest.mark.skipif(
    (PACKAGE.parent / "setup.py").exists(), reason="an editable install: nothing was copied"
)
def test_sources_are_not_installed():
    assert not [*PACKAGE.rglob("*.c"), *PACKAGE.rglob("*.pyx")]


def test_the_interfaces_name_the_same_kernels():
    """The C header, the Cython declarations, and the mirror that these tests use."""
    header = (Path(cdropout.get_include()) / "cdropout.h").read_text()
    cython = files("cdropout").joinpath("__init__.pxd").read_text()
    for text in (header, cython):
        assert re.findall(r"\(\*(\w+)\)", text) == list(tables.KERNELS)
        assert re.search(r"uint64_t seed, call, threshold;?\s+double scale", text)
    assert re.search(rf"#define CDROPOUT_TABLE_VERSION {tables.VERSION}\n", header)
    for dtype, code in tables.DTYPES.items():
        assert f"CDROPOUT_{dtype.__name__.upper()} = {code}" in header


# ---- a checkout that is not built --------------------------------------------------------------


ELSEWHERE = """
import sys
from pathlib import Path
import numpy, pytest
sys.path = [PATH] + [entry for entry in sys.path if not Path(entry, "cdropout", "_core").exists()]
"""
PYTEST = "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {!r}]))"
NOT_BUILT = "the checkout {} of cdropout is not built: run `pip install -e .` in it"
HIDDEN = (
    "cdropout is installed, but the checkout {}, which is not built, hides it: "
    "start Python in another folder, or run `pip install -e .` in it"
)


@pytest.fixture
def unbuilt(tmp_path):
    """Return a folder with the Python files of the package, and a test of it."""
    for path in PACKAGE.rglob("*.py"):
        copy = tmp_path / "cdropout" / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    (tmp_path / "tests").mkdir()
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path / "tests")
    (tmp_path / "tests" / "test_one.py").write_text("import cdropout\ndef test_one(): pass\n")
    return tmp_path


def run_with_path(code, *path):
    """Run code with these folders on the path, and no other that holds cdropout."""
    return run(ELSEWHERE.replace("PATH", ", ".join(f"{str(entry)!r}" for entry in path)) + code)


@pytest.mark.parametrize("message, others", [(NOT_BUILT, []), (HIDDEN, [PACKAGE.parent])])
def test_an_unbuilt_checkout_says_what_to_do(unbuilt, message, others):
    done = run_with_path("import cdropout", unbuilt, *others)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: {message.format(unbuilt)}"
    assert "During handling" not in done.stderr


@pytest.mark.parametrize("message, others", [(NOT_BUILT, []), (HIDDEN, [PACKAGE.parent])])
def test_pytest_in_an_unbuilt_checkout_says_once_what_to_do(unbuilt, message, others):
    done = run_with_path(PYTEST.format(str(unbuilt / "tests")), unbuilt, *others)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    expected = f"ERROR: {message.format(unbuilt)}. See the beginning of CONTRIBUTING.md."
    assert done.stderr.split("\n", 1)[0] == expected
    assert "Traceback" not in done.stderr + done.stdout


def test_pytest_without_the_package_says_once_what_to_do(unbuilt):
    done = run_with_path(PYTEST.format(str(unbuilt / "tests")), unbuilt / "tests")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    expected = "ERROR: cdropout is not installed: run `pip install -e .` in its checkout. "
    assert done.stderr.split("\n", 1)[0] == expected + "See the beginning of CONTRIBUTING.md."


def test_a_missing_numpy_is_not_taken_for_an_unbuilt_checkout():
    done = run("import sys; sys.modules['numpy'] = None; import cdropout")
    assert done.returncode == 1
    assert "built" not in done.stderr and "import of numpy halted" in done.stderr


# ---- memory -----------------------------------------------------------------------------------


PEAK = """
import resource, sys
from pathlib import Path
import numpy as np
import cdropout

def peak():
    # Linux lets a process start from the peak of the one it was forked from; VmHWM is its own
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
def test_nothing_is_allocated_but_the_output(threads):
    done = run(PEAK.replace("THREADS", str(threads)))
    assert (done.returncode, done.stderr) == (0, "")
    used, with_an_array = map(int, done.stdout.split())
    assert used < 4 << 20  # of arrays of 64 MiB: some stacks and small objects
    assert with_an_array > 60 << 20  # the measure sees an array when there is one


@pytest.mark.parametrize("shape", [5, (1 << 40,), (3, 4, 5), (1 << 20, 1 << 20, 1 << 20)])
def test_a_mask_is_small_whatever_its_shape(shape):
    mask = cdropout.Mask(shape, 0.1, seed=2**64 - 1, call=2**64 - 1)
    assert sys.getsizeof(mask) + sys.getsizeof(mask.shape) < 200
