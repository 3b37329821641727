"""The C interface: what kernels answer to odd arguments, and cdropout_import to odd packages."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

import cdropout
from cdropout.core import dispatch

import tables
from needs import ISAS, find_or_skip, slow
from tables import DTYPES, Plane, Room, new_mask

EXAMPLES = Path(__file__).parent.parent / "examples" / "capi"
HEADER = Path(cdropout.get_include(), "cdropout.h")
N = 12
REALS = [DTYPES[np.float32], DTYPES[np.float64]]


@pytest.fixture(params=ISAS)
def table(request):
    return tables.tables()[request.param]


# ---- null pointers, no elements, the end of the positions -------------------------------------


def calls(table, rows, columns, code, address):
    """Yield (kernel, its arguments) on rows * columns elements; `address` is each buffer's."""
    n, mask, plane = rows * columns, new_mask(table, 0.3), Plane(rows, columns)
    buffers = [address] * 4
    yield "apply", [code, *buffers[:2], n, mask, 0]
    yield "apply_bits", [code, *buffers[:2], n, buffers[2], 0, 2.0]
    yield "apply_bools", [code, *buffers[:3], plane, 2.0]
    for channels in [(1, 0), (0, 1)]:
        shared = Plane(rows, columns, keep=channels)
        yield "apply_channels", [code, *buffers[:2], shared, mask, 0]
    yield "bits", [buffers[0], n, mask, 0]
    yield "bools", [buffers[0], n, mask, 0]
    if code in REALS:
        yield "bias_dropout_add", [code, *buffers, rows, columns, mask, 0]
        yield "bias_dropout_add_backward", [code, *buffers[:3], rows, columns, mask, 0]


def pointers(table, kernel):
    """The places of the arguments that are pointers."""
    kinds = tables.KERNELS[kernel][1:]
    return [
        i for i, kind in enumerate(kinds) if kind in (ctypes.c_void_p, tables.MASK, tables.PLANE)
    ]


@pytest.mark.parametrize("code", DTYPES.values())
def test_a_null_pointer_is_refused(table, code):
    room = Room(16 * N, content=np.arange(16 * N, dtype=np.uint8))
    seen = set()
    for kernel, arguments in calls(table, 3, N // 3, code, room.address):
        assert getattr(table, kernel)(*arguments) == 0
        before = room.inside.copy()
        for place in pointers(table, kernel):
            missing = [*arguments[:place], None, *arguments[place + 1 :]]
            assert getattr(table, kernel)(*missing) == -1, (kernel, place)
            assert room.holds(before), (kernel, place)
        seen.add(kernel)
    expected = set(tables.KERNELS) - {"mask_init"}
    if code not in REALS:
        expected -= {"bias_dropout_add", "bias_dropout_add_backward"}
    assert seen == expected
    assert table.mask_init(None, 1, 2, 0.5) == -1


@pytest.mark.parametrize("rows, columns", [(0, 0), (0, 3), (3, 0)])
@pytest.mark.parametrize("code", DTYPES.values())
def test_of_no_elements_no_pointer_is_looked_at(table, code, rows, columns):
    for kernel, arguments in calls(table, rows, columns, code, None):
        for place in pointers(table, kernel):
            if not isinstance(arguments[place], Plane):
                arguments[place] = None
        assert getattr(table, kernel)(*arguments) == 0, kernel
        if isinstance(arguments[0], int):
            assert getattr(table, kernel)(77, *arguments[1:]) == -1, kernel


@pytest.mark.parametrize("p", [0.3, 0.5])
def test_after_the_last_position_comes_the_first(table, p):
    before, after, mask = 700, 9000, new_mask(table, p)
    start = 2**64 - before
    n = before + after
    keep = np.empty(n, np.uint8)
    assert table.bools(keep.ctypes.data, before, mask, start) == 0
    assert table.bools(keep.ctypes.data + before, after, mask, 0) == 0
    kept = keep != 0
    bits, bools, x = Room(-(-n // 8)), Room(n), np.ones(n)
    table.bits(bits.address, n, mask, start)
    table.bools(bools.address, n, mask, start)
    assert bits.holds(np.packbits(kept, bitorder="little")) and bools.holds(kept)
    y, zero, sums = Room(8 * n), np.zeros(n), np.zeros(n)
    where = x.ctypes.data, y.address
    double = DTYPES[np.float64]
    table.apply(double, *where, n, mask, start)
    assert y.holds(mask.scale * kept)
    table.apply_channels(double, *where, Plane(n, 1, (8, 8), (8, 8), (1, 0)), mask, start)
    assert y.holds(mask.scale * kept)
    table.bias_dropout_add(double, where[0], *[zero.ctypes.data] * 2, where[1], 1, n, mask, start)
    assert y.holds(mask.scale * kept)
    table.bias_dropout_add_backward(double, *where, sums.ctypes.data, 1, n, mask, start)
    assert y.holds(mask.scale * kept) and np.array_equal(sums, mask.scale * kept)


# ---- the header -------------------------------------------------------------------------------


FOUND = [(shutil.which(name), name) for name in ("cc", "gcc", "clang")]
COMPILERS = list({os.path.realpath(path): name for path, name in FOUND if path}.values())
SOURCES = sorted(path.name for kind in ("*.c", "*.cpp") for path in EXAMPLES.glob(kind))
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wno-unknown-pragmas", "-fsyntax-only"]
INCLUDE = [f"-I{HEADER.parent}", "-isystem", sysconfig.get_paths()["include"]]


def compile_strictly(compiler, source, *language):
    command = [compiler, *language, *STRICT, *INCLUDE, str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "language", [("c", "c11"), ("c++", "c++20"), *slow(("c", "c17"), ("c++", "c++17"))]
)
@pytest.mark.parametrize("python", [True, False], ids=["with Python.h", "alone"])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_header_compiles_without_a_warning(compiler, language, python, tmp_path):
    source = tmp_path / "source"
    lines = ["#include <Python.h>"] * python + ['#include "cdropout.h"'] * 2
    call = "return cdropout_import() == 0;" if python else "return sizeof(cdropout_table) == 0;"
    source.write_text("\n".join([*lines, f"int main(void) {{ {call} }}", ""]))
    compile_strictly(compiler, source, "-x", language[0], f"-std={language[1]}")


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_examples_compile_without_a_warning(compiler, name):
    compile_strictly(compiler, EXAMPLES / name, "-std=c11" if name.endswith(".c") else "-std=c++17")


@pytest.mark.skipif(not COMPILERS, reason="needs GCC or Clang")
def test_a_fault_would_be_seen(tmp_path):
    source = tmp_path / "fault.c"
    source.write_text('#include "cdropout.h"\nint main(void) { cdropout_mask mask; }\n')
    with pytest.raises(AssertionError, match="unused variable"):
        compile_strictly(COMPILERS[0], source)


# ---- the import function ----------------------------------------------------------------------


SETUP = """
from setuptools import Extension, setup
import cdropout
setup(name="x", ext_modules=[
    Extension("extension", ["extension.c"], include_dirs=[cdropout.get_include()])])
"""
VERSION = tables.VERSION
SIZE = ctypes.sizeof(tables.Table)
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p


def build(folder, header=None):
    """Build examples/capi/extension.c, with another header if one is given; return its file."""
    find_or_skip("setuptools")
    shutil.copy(EXAMPLES / "extension.c", folder)
    (folder / "setup.py").write_text(SETUP)
    if header:
        (folder / "cdropout.h").write_text(header)  # the compiler looks here first
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(path for path in folder.glob("extension.*") if path.suffix in (".so", ".pyd"))


def imported(path):
    specification = spec_from_file_location("extension", path)
    module = module_from_spec(specification)
    specification.loader.exec_module(module)
    sys.modules.pop("extension", None)  # the next test may import one that found another table
    return module


def works(module):
    x, y = np.ones((3, 100), np.float32), np.empty((3, 100), np.float32)
    module.dropout_rows(x, y, 0.1, 42)
    masks = [cdropout.Mask(100, 0.1, seed=42, call=row) for row in range(3)]
    return np.array_equal(y, [mask.apply(x[0]) for mask in masks])


def edited(old, new, header=None):
    """The header with one thing changed."""
    header = HEADER.read_text() if header is None else header
    header, count = re.subn(old, new, header, flags=re.DOTALL)
    assert count == 1, old
    return header


@pytest.fixture(scope="module")
def extension(tmp_path_factory):
    return build(tmp_path_factory.mktemp("extension"))


@pytest.fixture
def other_table(monkeypatch):
    """A function that puts another table in the place of the package's for one test."""

    def replace(version, size, name=b"cdropout.core.table"):
        memory = ctypes.create_string_buffer(SIZE + 64)
        source = tables.capsule_pointer(dispatch.table, b"cdropout.core.table")
        ctypes.memmove(memory, source, SIZE)
        head = tables.Table.from_buffer(memory)
        head.version, head.size = version, size
        monkeypatch.setattr(dispatch, "table", new_capsule(ctypes.addressof(memory), name, None))
        return memory, name  # which have to live as long as the capsule

    return replace


def refusal(version, size, own_version=VERSION, own_size=SIZE):
    return re.escape(
        f"this was compiled for version {own_version} of cdropout's table ({own_size} bytes), "
        f"but the installed cdropout has version {version} ({size} bytes)"
    )


def test_a_program_runs_with_its_own_version(extension):
    assert works(imported(extension))


def test_a_program_of_an_older_header_runs(tmp_path):
    """Its table ends earlier."""
    last = list(tables.KERNELS)[-1]
    header = edited(rf"  int \(\*{last}\)\([^;]*;\n(?=}} cdropout_table)", "")
    header = edited(r"TABLE_VERSION \d+\n", f"TABLE_VERSION {VERSION - 1}\n", header)
    assert works(imported(build(tmp_path, header)))


def test_a_program_of_a_newer_header_is_refused(tmp_path):
    header = edited(r"(?=} cdropout_table)", "  int (*newer)(void);\n")
    header = edited(r"TABLE_VERSION \d+\n", f"TABLE_VERSION {VERSION + 1}\n", header)
    with pytest.raises(ImportError, match=refusal(VERSION, SIZE, VERSION + 1, SIZE + 8)):
        imported(build(tmp_path, header))


def test_a_newer_package_is_taken(extension, other_table):
    alive = other_table(VERSION + 3, SIZE + 64)
    assert works(imported(extension)) and alive


@pytest.mark.parametrize("version, size", [(VERSION - 1, SIZE), (VERSION, SIZE - 8)])
def test_an_older_package_is_refused(extension, other_table, version, size):
    alive = other_table(version, size)
    with pytest.raises(ImportError, match=refusal(version, size)):
        imported(extension)
    assert alive


def test_another_capsule_is_refused(extension, other_table, monkeypatch):
    message = "cdropout.core.dispatch.table has to be a capsule named cdropout.core.table"
    alive = other_table(VERSION, SIZE, b"another")
    with pytest.raises(ImportError, match=message):
        imported(extension)
    monkeypatch.setattr(dispatch, "table", alive)
    with pytest.raises(ImportError, match=message):
        imported(extension)
    monkeypatch.delattr(dispatch, "table")
    with pytest.raises(ImportError, match=message):
        imported(extension)


def test_a_missing_package_is_said(extension, monkeypatch):
    monkeypatch.setitem(sys.modules, "cdropout.core.dispatch", None)
    with pytest.raises(ImportError, match="import of cdropout.core.dispatch halted"):
        imported(extension)
