"""Test that imports and calls of cdropout do not change the state of the process."""

import pytest

from ..helpers.requirements import linux_only
from ..helpers.subprocess_runner import run

STATE = """
import ctypes, locale, os, random, signal, struct, sys, threading, warnings
import numpy as np
libm = ctypes.CDLL("libm.so.6")

def signals():
    with open("/proc/self/status") as status:
        return [line for line in status if line.startswith(("SigCgt", "SigIgn", "SigBlk"))]

def floating_point():
    x = np.full(64, 1e-40, np.float32)  # subnormal; the results are 0 if the CPU flushes subnormals
    return (x * np.float32(0.5)).tobytes(), (x + x).tobytes(), libm.fegetround()

def handlers():
    return [signal.getsignal(number) for number in signal.valid_signals()]

def state():
    return {
        "signals": signals(), "handlers": handlers(), "floating point": floating_point(),
        "NumPy's errors": np.geterr(),
        "locale": locale.setlocale(locale.LC_ALL), "warnings": list(warnings.filters),
        "random": random.getstate(), "directory": os.getcwd(), "path": list(sys.path),
        "environment": dict(os.environ), "threads": threading.active_count(),
        "hooks": (sys.excepthook, sys.displayhook, sys.gettrace(), sys.getswitchinterval()),
        "NumPy's random": str(np.random.get_state()), "umask": (os.umask(18), os.umask(18))[1],
    }

locale.setlocale(locale.LC_ALL, "C")
first = threading.Thread(target=int)  # makes the C library install a signal handler
first.start()
first.join()
before = state()
lazy = {"numpy.ma"} - set(sys.modules)  # empty with NumPy 1, which imports numpy.ma
import cdropout as cd
imported = state()
assert all(before[name] == imported[name] for name in before), [
    name for name in before if before[name] != imported[name]]
frameworks = {"torch", "jax", "dask", "thinc", "keras", "flax", "tensorflow"}
foreign = {*frameworks, "matplotlib"} & set(sys.modules)
assert not foreign, foreign
cd.set_num_threads(2)
for dtype in (np.float16, np.float32, np.float64):
    cd.dropout(np.ones(5 << 20, dtype))
    cd.Dropout1d()(np.ones((4, 4, 4), dtype))
    cd.dropout_backward(memoryview(np.ones(8, dtype)), np.zeros(1, np.uint8), p=0.5)
assert not lazy & set(sys.modules), "a call imports modules that it does not need"
after = state()
assert all(before[name] == after[name] for name in before if name != "threads"), [
    name for name in before if before[name] != after[name]]
print(floating_point()[0] != bytes(256))
"""


@linux_only
@pytest.mark.parametrize("isa", ["", "baseline"])
def test_import_and_calls_leave_the_process_unchanged(isa, monkeypatch):
    monkeypatch.setenv("CDROPOUT_ISA", isa)
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    assert run(STATE) == (0, "True", "")
