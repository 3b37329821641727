"""Tests of kernels on buffers next to inaccessible pages; the loops are in guard_pages.c.

An access to such a page causes a segmentation fault. Therefore, each test runs `main` in a
subprocess, which prints the call that caused the fault.
"""

import ctypes
import itertools
import mmap
import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

import cdropout

from ..helpers import kernel_tables as tables
from ..helpers.requirements import ISAS, slow
from ..helpers.subprocess_runner import FIND_TESTS, run

SOURCE = Path(__file__).with_name("guard_pages.c")
LENGTHS, OFFSETS = 2101, 64
# Slow tests use all lengths and offsets at both ends of the memory. However, if streaming stores
# are disabled, strided kernels and kernels with a bias, which take longer, are called for only one
# in 16 combinations of length, offset and dtype. This command calls them for all combinations:
# `GUARD_PAGES_EVERY=1 pytest -m slow tests/core/test_guard_pages.py`.
EVERY = int(os.environ.get("GUARD_PAGES_EVERY", 16))
sparsely = pytest.mark.parametrize("sparse", [64, *slow(1)])


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """Compile guard_pages.c; return the path of the library."""
    if not hasattr(mmap, "PROT_READ"):
        pytest.skip("needs the mmap and mprotect of Linux or macOS")
    path = tmp_path_factory.mktemp("guard_pages") / "guard_pages.so"
    compiler = sysconfig.get_config_var("CC").split()
    command = [*compiler, "-O2", "-shared", "-fPIC", "-I", cdropout.get_include()]
    # A preloaded sanitizer would report errors, because the compiler leaks memory.
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run([*command, str(SOURCE), "-o", str(path)], check=True, env=clean)
    return path


def run_in_subprocess(library, isa, every, sparse=1):
    """Run `main` in a subprocess; return its exit status, its number of calls and its errors."""
    arguments = str(library), isa, every, sparse
    status, out, err = run(f"{FIND_TESTS}from {__name__} import main\nmain{arguments}")
    return status, int(out or 0), err


def positions(sparse):
    """Return the pairs (length, offset) that guard_pages.c uses at each end of the memory."""
    every = itertools.product(range(LENGTHS), range(OFFSETS))
    return [(n, offset) for n, offset in every if (n + offset + n // 16) % sparse == 0]


@sparsely
@pytest.mark.parametrize("isa", ISAS)
def test_kernels_access_only_their_buffers(library, isa, sparse):
    status, calls, errors = run_in_subprocess(library, isa, EVERY, sparse)
    assert (status, errors) == (0, "")
    expected = 0
    for n, offset in positions(sparse):
        expected += 2 + 4 * 4  # bits and bools; apply and apply_bits for 4 types, also in place
        expected += 4 * 4 * (offset == 0)  # apply with p = 1, and apply_bits again
        for dtype in range(5):
            views = 7 * 3
            if dtype < 2:  # apply_alpha_strided
                views += 7
            if dtype < 4:  # bias_dropout_add and bias_dropout_add_backward
                views += 2
            expected += views * ((n + offset + dtype) % EVERY == 0)
    assert calls == 2 * expected


@sparsely
@pytest.mark.parametrize("isa", ISAS)
def test_streaming_stores_write_only_the_output(library, isa, sparse):
    status, calls, errors = run_in_subprocess(library, isa, 0, sparse)
    assert (status, calls, errors) == (0, 2 * len(positions(sparse)) * 2 * 8, "")


@pytest.mark.parametrize(
    "every, message",
    [
        (-1, "an inaccessible page was accessed: bools, dtype 0, 17 .* 0 bytes from the end"),
        (-2, "an inaccessible page was accessed: bools, .* 0 bytes from the beginning"),
        (-3, "a byte next to the output was written: bools, dtype 0, 17 elements, .* 5 bytes"),
    ],
)
def test_an_access_outside_a_buffer_is_detected(library, every, message):
    status, _, errors = run_in_subprocess(library, "baseline", every)
    assert status == (2 if every == -3 else -11)
    assert re.search(message, errors), errors


def main(library, isa, every, sparse):
    """Call the kernels in this process and print the number of calls."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core dump of an expected crash
    loops = ctypes.CDLL(library).run
    loops.argtypes = ctypes.c_void_p, ctypes.c_int, ctypes.c_int
    loops.restype = ctypes.c_longlong
    tables.set_streaming_threshold(isa, 1 << 40 if every else 0)
    print(loops(ctypes.addressof(tables.tables()[isa]), every, sparse))
