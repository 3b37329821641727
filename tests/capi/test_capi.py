"""Tests of the C interface: the kernels' arguments, the header, and cdropout_import."""

import ctypes
import doctest
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
from cdropout._core import dispatch

from ..helpers import kernel_tables as tables
from ..helpers.kernel_tables import BOOL, DTYPES, Axis, GuardedBuffer, new_mask
from ..helpers.requirements import ISAS, find_or_skip, slow

EXAMPLES = Path(__file__).parents[2] / "examples" / "capi"
HEADER = Path(cdropout.get_include(), "cdropout.h")
N = 12
REALS = [DTYPES[np.float32], DTYPES[np.float64]]


@pytest.fixture(params=ISAS)
def table(request):
    return tables.tables()[request.param]


# ---- arguments of the kernels -----------------------------------------------------------------


def calls(table, rows, columns, code, address):
    """Yield (kernel, arguments) for rows * columns elements; all buffers are at `address`."""
    n, mask, buffers = rows * columns, new_mask(table, 0.3), [address] * 4
    yield "apply", [code, 0, *buffers[:2], n, mask, 0]
    yield "apply_bits", [code, 0, *buffers[:2], n, buffers[2], 0, 2.0]
    axes = (Axis * 2)(Axis(rows, 8 * columns, 8 * columns, columns), Axis(columns, 8, 8, 1))
    strided = [code, 0, *buffers[:2], 2, axes]
    yield "apply_strided", [*strided, mask, 0]
    yield "apply_bits_strided", [*strided, buffers[2], 0, 2.0]
    yield "apply_bools_strided", [*strided, buffers[2], 2.0]
    yield "bits", [buffers[0], n, mask, 0]
    yield "bools", [buffers[0], n, mask, 0]
    if code in REALS:
        yield "apply_alpha_strided", [*strided, mask, 0, 0.5, -1.5]
    yield "bias_dropout_add", [code, *buffers, rows, columns, mask, 0]
    yield "bias_dropout_add_backward", [code, *buffers[:3], rows, columns, mask, 0]


def pointers(table, kernel):
    """Return the indices of the kernel's pointer arguments."""
    kinds = tables.KERNELS[kernel][1:]
    return [
        i for i, kind in enumerate(kinds) if kind in (ctypes.c_void_p, tables.MASK, tables.AXES)
    ]


@pytest.mark.parametrize("code", DTYPES.values())
def test_kernels_reject_null_pointers(table, code):
    buffer = GuardedBuffer(16 * N, content=np.arange(16 * N, dtype=np.uint8))
    seen = set()
    for kernel, arguments in calls(table, 3, N // 3, code, buffer.address):
        assert getattr(table, kernel)(*arguments) == 0
        before = buffer.inside.copy()
        for index in pointers(table, kernel):
            missing = [*arguments[:index], None, *arguments[index + 1 :]]
            if (kernel, index) == ("bias_dropout_add", 2):  # the bias, which is optional
                assert getattr(table, kernel)(*missing) == 0
                before = buffer.inside.copy()
                continue
            assert getattr(table, kernel)(*missing) == -1, (kernel, index)
            assert buffer.holds(before), (kernel, index)
        seen.add(kernel)
    expected = set(tables.KERNELS) - {"mask_init"}
    if code not in REALS:
        expected -= {"apply_alpha_strided"}
    assert seen == expected
    assert table.mask_init(None, 1, 2, 0.5) == -1


@pytest.mark.parametrize("rows, columns", [(0, 0), (0, 3), (3, 0)])
@pytest.mark.parametrize("code", DTYPES.values())
def test_kernels_accept_null_pointers_if_there_are_no_elements(table, code, rows, columns):
    """The pointer to the axes must not be null, because the axes contain the length 0."""
    for kernel, arguments in calls(table, rows, columns, code, None):
        for index in pointers(table, kernel):
            if tables.KERNELS[kernel][1 + index] is not tables.AXES:
                arguments[index] = None
        assert getattr(table, kernel)(*arguments) == 0, kernel
        if isinstance(arguments[0], int):
            assert getattr(table, kernel)(77, *arguments[1:]) == -1, kernel
        if "strided" in kernel:
            assert getattr(table, kernel)(*arguments[:5], None, *arguments[6:]) == -1, kernel


def test_apply_strided_with_zero_axes_writes_one_element(table):
    x, mask = np.ones(1), new_mask(table, 0.3)
    for start in range(20):
        y, want = GuardedBuffer(8), GuardedBuffer(1)
        table.bools(want.address, 1, mask, start)
        assert table.apply_strided(1, 0, x.ctypes.data, y.address, 0, None, mask, start) == 0
        assert y.holds(mask.scale * want.inside)


def test_strided_kernels_for_bools_accept_a_null_x(table):
    given, axis = tables.guarded_copy(np.arange(N, dtype=np.uint8) % 3), Axis(N, 0, 1, 1)
    y, mask, want = GuardedBuffer(N), new_mask(table, 0.3), GuardedBuffer(N)
    where = BOOL, 0, None, y.address, 1, axis
    assert table.apply_strided(*where, mask, 9) == 0
    table.bools(want.address, N, mask, 9)
    assert y.holds(want.inside)
    assert table.apply_bools_strided(*where, given.address, 2.0) == 0
    assert y.holds(given.inside != 0)
    missing = BOOL, 0, None, None, 1, axis
    assert table.apply_strided(*missing, mask, 9) == -1
    assert table.apply_bools_strided(*missing, given.address, 2.0) == -1
    assert table.apply_bits_strided(*missing, given.address, 0, 2.0) == -1


@pytest.mark.parametrize("p", [0.3, 0.5])
def test_mask_positions_wrap_around_after_2_to_the_64_minus_1(table, p):
    before, after, mask = 700, 9000, new_mask(table, p)
    start = 2**64 - before
    n = before + after
    keep = np.empty(n, np.uint8)
    assert table.bools(keep.ctypes.data, before, mask, start) == 0
    assert table.bools(keep.ctypes.data + before, after, mask, 0) == 0
    kept = keep != 0
    bits, bools, x = GuardedBuffer(-(-n // 8)), GuardedBuffer(n), np.ones(n)
    table.bits(bits.address, n, mask, start)
    table.bools(bools.address, n, mask, start)
    assert bits.holds(np.packbits(kept, bitorder="little")) and bools.holds(kept)
    y, zero, sums = GuardedBuffer(8 * n), np.zeros(n), np.zeros(n)
    where = x.ctypes.data, y.address
    double = DTYPES[np.float64]
    table.apply(double, 0, *where, n, mask, start)
    assert y.holds(mask.scale * kept)
    y.inside[:] = 0
    table.apply_strided(double, 0, *where, 1, Axis(n, 8, 8, 1), mask, start)
    assert y.holds(mask.scale * kept)
    table.bias_dropout_add(double, where[0], *[zero.ctypes.data] * 2, where[1], 1, n, mask, start)
    assert y.holds(mask.scale * kept)
    table.bias_dropout_add_backward(double, *where, sums.ctypes.data, 1, n, mask, start)
    assert y.holds(mask.scale * kept) and np.array_equal(sums, mask.scale * kept)


# ---- the header -------------------------------------------------------------------------------


FOUND = [(shutil.which(name), name) for name in ("cc", "gcc", "clang")]
COMPILERS = list({os.path.realpath(path): name for path, name in FOUND if path}.values())
every_compiler = pytest.mark.parametrize("compiler", [*COMPILERS[:1], *slow(*COMPILERS[1:])])
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
@every_compiler
def test_header_compiles_without_warnings(compiler, language, python, tmp_path):
    source = tmp_path / "source"
    lines = ["#include <Python.h>"] * python + ['#include "cdropout.h"'] * 2
    call = "return cdropout_import() == 0;" if python else "return sizeof(cdropout_table) == 0;"
    source.write_text("\n".join([*lines, f"int main(void) {{ {call} }}", ""]))
    compile_strictly(compiler, source, "-x", language[0], f"-std={language[1]}")


@pytest.mark.parametrize("python", ["", "#include <Python.h>\n"], ids=["missing", "too late"])
@pytest.mark.parametrize("language", [("c", "c11"), ("c++", "c++17")])
@every_compiler
def test_cdropout_import_requires_python_h_before_the_header(compiler, language, python, tmp_path):
    source = tmp_path / "source"
    call = "int main(void) { return cdropout_import() == 0; }\n"
    source.write_text(f'#include "cdropout.h"\n{python}{call}')
    with pytest.raises(AssertionError, match="include_Python_h_before_cdropout_h.*declared"):
        compile_strictly(compiler, source, "-x", language[0], f"-std={language[1]}")
    source.write_text(f'#include "cdropout.h"\n#include <Python.h>\n#include "cdropout.h"\n{call}')
    compile_strictly(compiler, source, "-x", language[0], f"-std={language[1]}")


@pytest.mark.parametrize("language", [("c", "c11"), ("c++", "c++17")])
@every_compiler
def test_flags_compile_without_a_cast(compiler, language, tmp_path):
    source = tmp_path / "source"
    source.write_text(
        '#include "cdropout.h"\n'
        "int call(const cdropout_table *table, const float *x, float *y, const cdropout_mask *mask,"
        " int large) {\n"
        "  uint32_t flags = large ? CDROPOUT_PART_OF_LARGE : 0;\n"
        "  table->apply(CDROPOUT_FLOAT32, flags, x, y, 9, mask, 0);\n"
        "  return table->apply(CDROPOUT_FLOAT32, CDROPOUT_PART_OF_LARGE, x, y, 9, mask, 0);\n}\n"
    )
    compile_strictly(compiler, source, "-x", language[0], f"-std={language[1]}", "-Wconversion")


@pytest.mark.parametrize("name", SOURCES)
@every_compiler
def test_examples_compile_without_warnings(compiler, name):
    compile_strictly(compiler, EXAMPLES / name, "-std=c11" if name.endswith(".c") else "-std=c++17")


@pytest.mark.skipif(not COMPILERS, reason="needs GCC or Clang")
def test_compile_strictly_detects_warnings(tmp_path):
    source = tmp_path / "source.c"
    source.write_text('#include "cdropout.h"\nint main(void) { cdropout_mask mask; }\n')
    with pytest.raises(AssertionError, match="unused variable"):
        compile_strictly(COMPILERS[0], source)


# ---- the import function ----------------------------------------------------------------------


SETUP = """
from setuptools import Extension, setup
import cdropout
include = [cdropout.get_include()]
setup(name="x", ext_modules=[
    Extension(f"{name}.extension", [f"{name}/extension.c"], include_dirs=include) for name in NAMES
])
"""
VERSION = tables.VERSION
SIZE = ctypes.sizeof(tables.Table)
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p


def import_extension(path):
    specification = spec_from_file_location("extension", path)
    module = module_from_spec(specification)
    specification.loader.exec_module(module)
    # Let the next test import the extension again, with another table.
    sys.modules.pop("extension", None)
    return module


def works(module):
    """Return whether the extension's dropout_rows gives the same result as masks in Python."""
    x, y = np.ones((3, 100), np.float32), np.empty((3, 100), np.float32)
    module.dropout_rows(x, y, 0.1, 42)
    masks = [cdropout.Mask(100, 0.1, seed=42, call=row) for row in range(3)]
    return np.array_equal(y, [mask.apply(x[0]) for mask in masks])


def edit(old, new, header=None):
    """Return the header with the only match of the pattern `old` replaced by `new`."""
    header = HEADER.read_text() if header is None else header
    header, count = re.subn(old, new, header, flags=re.DOTALL)
    assert count == 1, old
    return header


def older_header():
    """Return a header of the previous version, whose table lacks the last function."""
    last = list(tables.KERNELS)[-1]
    header = edit(rf"  int \(\*{last}\)\([^;]*;\n(?=}} cdropout_table)", "")
    return edit(r"TABLE_VERSION \d+\n", f"TABLE_VERSION {VERSION - 1}\n", header)


def newer_header():
    """Return a header of the next version, whose table has one more function."""
    header = edit(r"(?=} cdropout_table)", "  int (*newer)(void);\n")
    return edit(r"TABLE_VERSION \d+\n", f"TABLE_VERSION {VERSION + 1}\n", header)


@pytest.fixture(scope="module")
def extensions(tmp_path_factory):
    """Build examples/capi/extension.c with three headers; return {header name: built file}."""
    find_or_skip("setuptools")
    folder = tmp_path_factory.mktemp("extensions")
    headers = {"own": None, "older": older_header(), "newer": newer_header()}
    for name, header in headers.items():
        (folder / name).mkdir()
        shutil.copy(EXAMPLES / "extension.c", folder / name)
        if header:
            (folder / name / "cdropout.h").write_text(header)  # hides the installed header
    (folder / "setup.py").write_text(SETUP.replace("NAMES", repr(list(headers))))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        name: next(path for path in (folder / name).iterdir() if path.suffix in (".so", ".pyd"))
        for name in headers
    }


@pytest.fixture
def extension(extensions):
    return extensions["own"]


@pytest.fixture
def other_table(monkeypatch):
    """Return a function that replaces the package's table during one test."""

    def replace(version, size, name=b"cdropout._core.table"):
        memory = ctypes.create_string_buffer(SIZE + 64)
        source = tables.capsule_pointer(dispatch.table, b"cdropout._core.table")
        ctypes.memmove(memory, source, SIZE)
        head = tables.Table.from_buffer(memory)
        head.version, head.size = version, size
        monkeypatch.setattr(dispatch, "table", new_capsule(ctypes.addressof(memory), name, None))
        return memory, name  # the caller keeps these objects alive while the capsule is used

    return replace


def refusal(version, size, own_version=VERSION, own_size=SIZE):
    return re.escape(
        f"this was compiled for version {own_version} of cdropout's table ({own_size} bytes), "
        f"but the installed cdropout has version {version} ({size} bytes)"
    )


def test_get_table_returns_the_address_in_the_capsule():
    address = cdropout.get_table()
    assert type(address) is int
    assert address == tables.capsule_pointer(dispatch.table, b"cdropout._core.table")
    table = tables.Table.from_address(address)
    assert (table.version, table.size) == (VERSION, SIZE)
    for function in (cdropout.get_table, cdropout.get_include):
        example = doctest.DocTestFinder().find(function, function.__name__)[0]
        assert example.examples and not doctest.DocTestRunner().run(example).failed


def test_cdropout_import_with_the_same_version_succeeds(extension):
    assert works(import_extension(extension))


def test_cdropout_import_with_an_older_header_succeeds(extensions):
    assert works(import_extension(extensions["older"]))


def test_cdropout_import_with_a_newer_header_raises(extensions):
    with pytest.raises(ImportError, match=refusal(VERSION, SIZE, VERSION + 1, SIZE + 8)):
        import_extension(extensions["newer"])


def test_cdropout_import_of_a_newer_package_succeeds(extension, other_table):
    alive = other_table(VERSION + 3, SIZE + 64)
    assert works(import_extension(extension)) and alive


@pytest.mark.parametrize("version, size", [(VERSION - 1, SIZE), (VERSION, SIZE - 8)])
def test_cdropout_import_of_an_older_package_raises(extension, other_table, version, size):
    alive = other_table(version, size)
    with pytest.raises(ImportError, match=refusal(version, size)):
        import_extension(extension)
    assert alive


def test_cdropout_import_rejects_an_invalid_capsule(extension, other_table, monkeypatch):
    message = "cdropout._core.dispatch.table has to be a capsule named cdropout._core.table"
    alive = other_table(VERSION, SIZE, b"another")
    with pytest.raises(ImportError, match=message):
        import_extension(extension)
    monkeypatch.setattr(dispatch, "table", alive)
    with pytest.raises(ImportError, match=message):
        import_extension(extension)
    monkeypatch.delattr(dispatch, "table")
    with pytest.raises(ImportError, match=message):
        import_extension(extension)


def test_cdropout_import_without_the_package_raises(extension, monkeypatch):
    monkeypatch.setitem(sys.modules, "cdropout._core.dispatch", None)
    with pytest.raises(ImportError, match="import of cdropout._core.dispatch halted"):
        import_extension(extension)
