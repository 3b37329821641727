"""Kernels on buffers beside memory that nobody may read or write; the loops are in guard_pages.c.

A wrong access is a segmentation fault, so this file runs itself in a child process for each
instruction set. The child says which call it died of.
"""

import ctypes
import mmap
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import cdropout

import tables

SOURCE = Path(__file__).with_name("guard_pages.c")
PLACES = 2101 * 64 * 2  # every length 0..2100, every offset 0..63, at either end
# The planes are slower: here they are tried in one of 16 of these places, the types in turn, and by
# `GUARD_PAGES_EVERY=1 pytest tests/test_guard_pages.py` in all of them.
EVERY = int(os.environ.get("GUARD_PAGES_EVERY", 16))


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


def run_child(library, isa, every):
    """Return the child's exit status, the calls that it counted, and what it said."""
    command = [sys.executable, __file__, str(library), isa, str(every)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, int(done.stdout or 0), done.stderr


@pytest.mark.parametrize("isa", tables.tables())
def test_nothing_outside_the_buffers_is_touched(library, isa):
    status, calls, errors = run_child(library, isa, EVERY)
    assert (status, errors) == (0, "")
    flat = 2 + 4 * 4  # bits and bools; apply and apply_bits of each type, apart and in place
    planes = 8 * 4 + 2 * 2  # of each type; bias_dropout_add and its backward of two
    assert calls == PLACES * flat + PLACES // EVERY * planes + 2101 * 2 * 4 * 4  # p = 1


@pytest.mark.parametrize("isa", tables.tables())
def test_nor_by_stores_past_the_cache(library, isa):
    status, calls, errors = run_child(library, isa, 0)
    assert (status, calls, errors) == (0, PLACES * 2 * 4, "")


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


def main(library, isa, every):
    """Make the calls in this process."""
    run = ctypes.CDLL(library).run
    run.argtypes, run.restype = (ctypes.c_void_p, ctypes.c_int), ctypes.c_longlong
    tables.store_past_cache(isa, 1 << 40 if int(every) else 0)
    print(run(ctypes.addressof(tables.tables()[isa]), int(every)))


if __name__ == "__main__":
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is an answer here
    main(*sys.argv[1:])
