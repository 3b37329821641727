"""Kernels on buffers beside memory that nobody may read or write; the loops are in guard_pages.c.

A wrong access is a segmentation fault, so this file runs itself in a child process for each
instruction set. The child says which call it died of.
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
# A place is a length, an offset, and the end of the memory at which it is. The slow tests try all.
# Views take longer: they are tried in one of 16 places, the types in turn, and in all of them by
# `GUARD_PAGES_EVERY=1 pytest -m slow tests/core/test_guard_pages.py`.
EVERY = int(os.environ.get("GUARD_PAGES_EVERY", 16))
sparsely = pytest.mark.parametrize("sparse", [64, *slow(1)])


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The compiled loops."""
    if not hasattr(mmap, "PROT_READ"):
        pytest.skip("needs the mmap and mprotect of Linux or macOS")
    path = tmp_path_factory.mktemp("guard_pages") / "guard_pages.so"
    compiler = sysconfig.get_config_var("CC").split()
    command = [*compiler, "-O2", "-shared", "-fPIC", "-I", cdropout.get_include()]
    # without a sanitizer that is preloaded into the tests: the compiler has leaks of its own
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run([*command, str(SOURCE), "-o", str(path)], check=True, env=clean)
    return path


def run_child(library, isa, every, sparse=1):
    """Return the child's exit status, the number of calls it made, and its errors."""
    arguments = str(library), isa, every, sparse
    status, out, err = run(f"{FIND_TESTS}from {__name__} import main\nmain{arguments}")
    return status, int(out or 0), err


def places(sparse):
    """Return the (length, offset) that guard_pages.c tries at either end."""
    every = itertools.product(range(LENGTHS), range(OFFSETS))
    return [(n, offset) for n, offset in every if (n + offset + n // 16) % sparse == 0]


@sparsely
@pytest.mark.parametrize("isa", ISAS)
def test_nothing_outside_the_buffers_is_touched(library, isa, sparse):
    status, calls, errors = run_child(library, isa, EVERY, sparse)
    assert (status, errors) == (0, "")
    expected = 0
    for n, offset in places(sparse):
        expected += 2 + 4 * 4  # bits and bools; apply and apply_bits of each type, also in place
        expected += 4 * 4 * (offset == 0)  # the same at p = 1
        for dtype in range(5):
            views = 7 * 3
            if dtype < 2:  # apply_alpha_strided, and bias_dropout_add and its backward
                views += 7 + 2
            expected += views * ((n + offset + dtype) % EVERY == 0)
    assert calls == 2 * expected


@sparsely
@pytest.mark.parametrize("isa", ISAS)
def test_nor_by_streaming_stores(library, isa, sparse):
    status, calls, errors = run_child(library, isa, 0, sparse)
    assert (status, calls, errors) == (0, 2 * len(places(sparse)) * 2 * 8, "")


@pytest.mark.parametrize(
    "every, words",
    [
        (-1, "a page outside was touched: bools, dtype 0, 17 elements, .* 0 bytes from the end"),
        (-2, "a page outside was touched: bools, .* 0 bytes from the beginning"),
        (-3, "a byte beside the output was written: bools, dtype 0, 17 elements, .* 5 bytes"),
    ],
)
def test_one_byte_outside_is_noticed(library, every, words):
    status, _, errors = run_child(library, "baseline", every)
    assert status == (2 if every == -3 else -11)
    assert re.search(words, errors), errors


def main(library, isa, every, sparse):
    """Make the calls in this process, and print how many there were."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # some tests expect a crash
    loops = ctypes.CDLL(library).run
    loops.argtypes = ctypes.c_void_p, ctypes.c_int, ctypes.c_int
    loops.restype = ctypes.c_longlong
    tables.set_streaming_threshold(isa, 1 << 40 if every else 0)
    print(loops(ctypes.addressof(tables.tables()[isa]), every, sparse))
