"""Kernels on buffers that touch memory which nobody may read or write.

Sanitizers do not see what masked vector loads and stores touch; the CPU does. Each buffer ends
where an inaccessible page begins or, in a second family, begins where one ends. A wrong access is
a segmentation fault, so this file runs itself in a child process for each instruction set. The
child leaves a note of each call before it makes it, which the test quotes if the child dies.
"""

import ctypes
import itertools
import mmap
import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest

import tables

pytestmark = pytest.mark.skipif(
    not hasattr(mmap, "PROT_READ"), reason="needs the mmap and mprotect of Linux or macOS"
)
PROT_NONE = 0
MOST = 2100  # elements
LENGTHS = [*range(601), 767, 768, 769, 1023, 1024, 1025, 1535, 1536, 1537, 2047, 2048, 2049, MOST]
PROBABILITIES = [0.3, 0.5, 0.001, 1.0]


class Guarded:
    """Pages that may be used, between two that may not."""

    def __init__(self, size):
        page = mmap.PAGESIZE
        self.size = -(-size // page) * page
        self.memory = mmap.mmap(-1, self.size + 2 * page)
        lower = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.first, self.last = lower + page, lower + page + self.size
        mprotect = ctypes.CDLL(None, use_errno=True).mprotect
        mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        for guard in (lower, self.last):
            if mprotect(guard, page, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect failed")
        ctypes.memset(self.first, 1, self.size)  # a float, packed bits and a bool

    def place(self, size, at_end):
        """Return the address of so many bytes at one end."""
        assert size <= self.size
        return self.last - size if at_end else self.first


class Child:
    """What runs in the process that may die."""

    def __init__(self, isa):
        self.table = tables.tables()[isa]
        self.x, self.y, self.keep, self.bias, self.residual = (
            Guarded(3 * MOST * 8) for _ in range(5)
        )
        self.names = Guarded(ctypes.sizeof(tables.Mask))
        self.at_end, self.n = True, 0

    def call(self, kernel, *arguments):
        at = "end" if self.at_end else "beginning"
        note = f"{kernel}{arguments}, {self.n} elements at the {at}"
        os.pwrite(sys.stdout.fileno(), note.ljust(300).encode(), 0)
        getattr(self.table, kernel)(*arguments)

    def at(self, buffer, size):
        return buffer.place(size, self.at_end)

    def mask(self, p):
        mask = tables.Mask.from_address(self.at(self.names, ctypes.sizeof(tables.Mask)))
        self.table.mask_init(mask, 1, 2, p)
        return mask

    def draw(self, n, mask, start):
        self.call("bits", self.at(self.y, -(-n // 8)), n, mask, start)
        self.call("bools", self.at(self.y, n), n, mask, start)

    def apply(self, code, size, n, mask, start):
        x, y = self.at(self.x, n * size), self.at(self.y, n * size)
        self.call("apply", code, x, y, n, mask, start)
        self.call("apply", code, x, x, n, mask, start)
        bits = self.at(self.keep, (start + n + 7) // 8)
        self.call("apply_bits", code, x, y, n, bits, start, 2.0)
        self.call("apply_bits", code, y, y, n, bits, start, 2.0)

    def field(self, buffer, size, shape, steps):
        """Return the address of the first of the items, and their strides for steps in items."""
        reach = [max(length - 1, 0) * step for length, step in zip(shape, steps, strict=True)]
        where = self.at(buffer, size * (sum(map(abs, reach)) + 1) * (0 not in shape))
        first = where - size * sum(step for step in reach if step < 0)
        return first, tuple(step * size for step in steps)

    def apply_bools(self, code, size, shape):
        n = shape[1]
        for steps in [
            ((n, 1), (n, 1), (n, 1)),
            ((n, 1), (n, 1), (0, 1)),
            ((-n, -1), (-n, -1), (1, 0)),
            ((0, 1), (3 * n, 3), (-2 * n, -2)),
            ((n, -1), (1, shape[0]), (1, shape[0])),
        ]:
            fields = zip((self.x, self.y, self.keep), (size, size, 1), steps, strict=True)
            places = [self.field(buffer, item, shape, step) for buffer, item, step in fields]
            addresses, strides = zip(*places, strict=True)
            plane = tables.Plane(*shape, *strides)
            self.call("apply_bools", code, *addresses, plane, 2.0)
        for channels in [(1, 0), (0, 1)]:
            addresses = self.at(self.x, shape[0] * n * size), self.at(self.y, shape[0] * n * size)
            plane = tables.Plane(*shape, *[(n * size, size)] * 2, channels)
            self.call("apply_channels", code, *addresses, plane, self.mask(0.3), 5)

    def bias_dropout_add(self, dtype, shape, mask, start):
        rows, columns = shape
        n, size, code = rows * columns, np.dtype(dtype).itemsize, tables.DTYPES[dtype]
        x, y = self.at(self.x, n * size), self.at(self.y, n * size)
        residual, bias = self.at(self.residual, n * size), self.at(self.bias, columns * size)
        sums, last = self.at(self.keep, columns * 8), (rows, columns, mask, start)
        self.call("bias_dropout_add", code, x, bias, residual, y, *last)
        self.call("bias_dropout_add_backward", code, x, y, sums, *last)

    def everything(self):
        for self.at_end, self.n in itertools.product((True, False), LENGTHS):
            n = self.n
            mask = self.mask(PROBABILITIES[n % 4])
            # over 64 lengths every start in a lane, and most at the end of a group, has its turn
            for start in (0, (37 * n + 1) % 64, 449 + n % 63):
                self.draw(n, mask, start)
                for dtype, code in tables.DTYPES.items():
                    self.apply(code, np.dtype(dtype).itemsize, n, mask, start)
            for shape in [(1, n), (3, n // 3)]:
                for dtype, code in tables.DTYPES.items():
                    self.apply_bools(code, np.dtype(dtype).itemsize, shape)
                for dtype in (np.float32, np.float64):
                    self.bias_dropout_add(dtype, shape, mask, 37 * n % 512)

    def step_outside(self, where):
        outside = {"below": self.y.first - 1, "above": self.y.last - 15}
        self.call("bools", outside[where], 16, self.mask(0.5), 0)


def run_child(isa, what):
    """Return the child's exit status, what it printed about errors, and its last note."""
    with tempfile.TemporaryFile("w+") as notes:
        command = [sys.executable, __file__, isa, what]
        done = subprocess.run(command, stdout=notes, stderr=subprocess.PIPE, text=True)
        notes.seek(0)
        return done.returncode, done.stderr, notes.read().strip()


@pytest.mark.parametrize("stores", ["cached", "past-cache"])
@pytest.mark.parametrize("isa", tables.tables())
def test_nothing_outside_the_buffers_is_touched(isa, stores):
    status, errors, last = run_child(isa, stores)
    assert status == 0, f"exit status {status} in {last}\n{errors}"
    assert last.startswith("bias_dropout_add_backward(")
    assert last.endswith(f", {MOST} elements at the beginning")


@pytest.mark.parametrize("where", ["below", "above"])
def test_one_byte_outside_is_noticed(where):
    status, _, last = run_child("baseline", where)
    assert status < 0 and last.startswith("bools("), (status, last)  # minus the signal's number


if __name__ == "__main__":
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is an answer here
    child = Child(sys.argv[1])
    if sys.argv[2] in ("below", "above"):
        child.step_outside(sys.argv[2])
    else:
        tables.store_past_cache(sys.argv[1], 0 if sys.argv[2] == "past-cache" else 1 << 40)
        child.everything()
