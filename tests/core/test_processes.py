"""Tests of spawned and forked processes, subinterpreters, and the exit of an interpreter."""

import multiprocessing
import os
import pickle

import numpy as np
import pytest

import cdropout as cd

from ..helpers.requirements import slow, unix_only
from ..helpers.subprocess_runner import FIND_TESTS, run

SEED = 31


def draw(generator, mask, module):
    """Return the mask drawn from `generator`, one result per argument, and the process ID."""
    x = np.ones(99, np.float32)
    y, next_mask = cd.dropout(x, 0.5, rng=generator, return_mask=True)
    return next_mask, y, mask.apply(x), module(x), os.getpid()


@pytest.mark.parametrize("method", ["spawn", *slow("forkserver")])
def test_a_spawned_process_draws_the_masks_of_its_parent(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system does not have the start method {method}")
    cd.dropout(np.ones(1 << 22, np.float32))  # starts threads
    given = cd.Generator(SEED), cd.Mask(99, 0.3, 7), cd.Dropout(0.5, rng=3)
    script = (
        f"{FIND_TESTS}import multiprocessing as m, pickle\nfrom {__name__} import draw\n"
        f"if __name__ == '__main__':\n"
        f"    with m.get_context({method!r}).Pool(2) as pool:\n"
        f"        given = pickle.loads({pickle.dumps(given)!r})\n"
        f"        print(pickle.dumps([pool.apply(draw, given) for _ in range(2)]).hex())\n"
    )
    status, output, errors = run(script)
    assert status == 0, errors
    expected_mask, *expected_arrays, parent = draw(*given)
    for mask, *arrays, process in pickle.loads(bytes.fromhex(output)):
        assert mask == expected_mask and process != parent
        for actual, expected in zip(arrays, expected_arrays, strict=True):
            np.testing.assert_array_equal(actual, expected)


SUBINTERPRETER = """
import sys
import numpy as np
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
if BEFORE:
    import cdropout
code = '''
import warnings
warnings.simplefilter("ignore")  # NumPy warns that it does not support subinterpreters
try:
    import cdropout
except ImportError as error:
    print("refused", flush=True)
'''
for _ in range(2):
    interpreter = interpreters.create()
    interpreters.run_string(interpreter, code)
    interpreters.destroy(interpreter)
import cdropout as cd
y, mask = cd.dropout(np.ones(5 << 20), 0.5, rng=1, return_mask=True)
assert (y == mask.to_scale(np.float64)).all()
print("done")
"""


@pytest.mark.parametrize("before", [False, True])
def test_a_subinterpreter_cannot_import_cdropout(before):
    status, output, errors = run(SUBINTERPRETER.replace("BEFORE", str(before)))
    assert (status, output.split()) == (0, ["refused", "refused", "done"]), errors


FORK_DURING_CALL = """
import os, signal, warnings
import numpy as np
import cdropout as cd
cd.set_num_threads(3)
x, parent = np.ones(1 << 21, np.float32), os.getpid()
mask = cd.Mask(x.shape, 0.3, strides=(5000,))  # slow, because each element is drawn separately
warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)  # in Python >= 3.12

def fork(*_):
    global child
    child = os.fork()

signal.signal(signal.SIGALRM, fork)
status = 3
while status == 3:  # repeat until the process is forked during the call
    child = None
    signal.setitimer(signal.ITIMER_REAL, 0.03)
    try:
        mask.apply(x, out=x)
    except RuntimeError as error:
        assert os.getpid() != parent and "the child process lacks" in str(error), error
        x = np.ones(1 << 20, np.float32)
        same = (cd.dropout(x, 0.3, rng=1) == cd.Mask(x.size, 0.3, 1).to_scale()).all()
        os._exit(0 if same else 1)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if child == 0:
        os._exit(3)
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(status, x.min(), x.max() > 1)
"""


@unix_only
def test_a_fork_during_a_call_raises_an_error_in_the_child():
    """The child process lacks the threads that run the call. In the parent, the call completes."""
    assert run(FORK_DURING_CALL) == (0, "0 0.0 True", "")


FORK = """
import os, threading
import numpy as np
import cdropout as cd
cd.set_num_threads(3)
x = np.ones(5 << 20, np.float32)
expected = cd.dropout(x, 0.3, rng=1)  # starts threads
stop = threading.Event()

def keep_calling():
    while not stop.is_set():
        cd.dropout(x, 0.3, rng=2)

threads = [threading.Thread(target=keep_calling) for _ in range(2)]
for thread in threads:
    thread.start()
process_ids = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        same = all((cd.dropout(x, 0.3, rng=1) == expected).all() for _ in range(2))
        os._exit(0 if same and cd.get_num_threads() == 3 else 1)
    process_ids.append(child)
statuses = [os.waitpid(child, 0)[1] for child in process_ids]
stop.set()
for thread in threads:
    thread.join()
assert (cd.dropout(x, 0.3, rng=1) == expected).all()
print(statuses)
"""


@unix_only
def test_dropout_works_after_a_fork_during_calls_in_other_threads():
    status, output, errors = run(FORK)
    assert (status, output) == (0, "[0, 0, 0, 0, 0]"), errors


def test_an_interpreter_exits_after_calls_have_started_threads():
    script = (
        "import atexit, numpy as np, cdropout as cd\n"
        "cd.set_num_threads(3)\n"
        "x = np.ones(5 << 20)\n"
        "y = cd.dropout(x, 0.3, rng=1)\n"
        "atexit.register(lambda: print((cd.dropout(x, 0.3, rng=1) == y).all()))\n"
        "cd.set_num_threads(2)\n"
    )
    assert run(script)[:2] == (0, "True")
