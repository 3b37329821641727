"""Tests of the XLA handler, called without XLA: checks of structs, threads, and API versions."""

import ctypes
import os
import re
import time

import numpy as np
import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip, linux_only, unix_only
from ..helpers.subprocess_runner import FIND_TESTS, run
from ..helpers.threads import count_started_threads, run_in_threads
from ..helpers.xla_operands import KEY, KEYS, P_MESSAGE, WINDOW_1D, WINDOW_2D, P, X

import_or_skip("jax")
from cdropout.jax._xla import handler  # noqa: E402

SIZE, INT, POINTER = ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p


def struct(name, *fields):
    """Return a ctypes type for a struct of XLA. All structs begin with the same two fields."""
    common = [("struct_size", SIZE), ("extensions", POINTER)]
    return type(name, (ctypes.Structure,), {"_fields_": [*common, *fields]})


NewError = struct("NewError", ("message", ctypes.c_char_p), ("code", INT))
Version = struct("Version", ("major", INT), ("minor", INT))
CREATE = ctypes.CFUNCTYPE(POINTER, ctypes.POINTER(NewError))
Api = struct("Api", ("version", Version), ("internal", POINTER), ("new_error", CREATE))
Buffer = struct(
    "Buffer",
    ("dtype", INT),
    ("data", POINTER),
    ("rank", ctypes.c_int64),
    ("dims", ctypes.POINTER(ctypes.c_int64)),
)
Buffers = struct(
    "Buffers",
    ("size", ctypes.c_int64),
    ("types", ctypes.POINTER(INT)),
    ("buffers", ctypes.POINTER(ctypes.POINTER(Buffer))),
)
Attributes = struct(
    "Attributes",
    ("size", ctypes.c_int64),
    ("types", POINTER),
    ("names", POINTER),
    ("values", POINTER),
)
Frame = struct(
    "Frame",
    ("api", ctypes.POINTER(Api)),
    ("context", POINTER),
    ("stage", INT),
    ("operands", Buffers),
    ("results", Buffers),
    ("attributes", Attributes),
)
TYPES = {"uint32": 8, "float32": 11}


class Call:
    """A valid call frame, which tests can change before `run`, and the errors of the handler."""

    def __init__(self, key=KEY, x=X, p=P, window=WINDOW_2D, y=None):
        self.errors = []
        self.y = np.full_like(X, 9) if y is None else y
        self.arrays = key, x, p, window, self.y  # keeps the memory of the buffers alive
        self.buffers = [self.make_buffer(array) for array in self.arrays]
        self.api = Api(ctypes.sizeof(Api), new_error=CREATE(self.new_error))
        self.frame = Frame(
            ctypes.sizeof(Frame),
            api=ctypes.pointer(self.api),
            stage=3,
            operands=self.make_buffers(self.buffers[:4]),
            results=self.make_buffers(self.buffers[4:]),
            attributes=Attributes(ctypes.sizeof(Attributes)),
        )

    @staticmethod
    def make_buffer(array):
        dims = (ctypes.c_int64 * array.ndim)(*array.shape)
        return Buffer(
            ctypes.sizeof(Buffer),
            dtype=TYPES[array.dtype.name],
            data=array.ctypes.data,
            rank=array.ndim,
            dims=dims,
        )

    @staticmethod
    def make_buffers(buffers):
        pointers = (ctypes.POINTER(Buffer) * len(buffers))(*map(ctypes.pointer, buffers))
        types = (INT * len(buffers))(*[1] * len(buffers))
        return Buffers(ctypes.sizeof(Buffers), size=len(buffers), types=types, buffers=pointers)

    def new_error(self, error):
        assert error.contents.struct_size == ctypes.sizeof(NewError)
        self.errors.append((error.contents.code, error.contents.message.decode()))
        return 1

    def run(self):
        get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
        get_pointer.restype, get_pointer.argtypes = POINTER, [ctypes.py_object, ctypes.c_char_p]
        function = ctypes.CFUNCTYPE(POINTER, POINTER)(get_pointer(handler, None))
        return function(ctypes.addressof(self.frame))


def test_valid_call_writes_the_result():
    call = Call()
    assert call.run() is None and call.errors == []
    np.testing.assert_array_equal(call.y, cd.Mask((3, 4), 0.5, 7).apply(X))


# Each function below makes a call invalid, or returns a function that makes a call invalid.


def shrink(*names):
    """Return a function that subtracts 1 from `struct_size` of a struct in a call.

    `names` are the attribute names and indices that lead from the call to the struct.
    """

    def change(call):
        target = call
        for name in names:
            target = target[name] if isinstance(name, int) else getattr(target, name)
        target.struct_size -= 1

    return change


def set_fields(buffer, **fields):
    """Return a function that sets fields of a buffer of a call; `buffer` is the buffer's index."""

    def change(call):
        for name, value in fields.items():
            setattr(call.buffers[buffer], name, value)

    return change


def set_null(names):
    """Return a function that sets a pointer in the frame of a call to NULL.

    `names` are the attribute names that lead from the frame to the pointer, separated by dots.
    """

    def change(call):
        *path, last = names.split(".")
        target = call.frame
        for name in path:
            target = getattr(target, name)
        setattr(target, last, None)

    return change


def set_dims(buffer, *lengths):
    """Return a function that sets the dimensions of a buffer of a call; `buffer` is its index."""

    def change(call):
        call.buffers[buffer].rank = len(lengths)
        call.buffers[buffer].dims = (ctypes.c_int64 * len(lengths))(*lengths)

    return change


def set_null_buffer(call):
    call.frame.operands.buffers[1] = ctypes.POINTER(Buffer)()


def set_other_type(call):
    call.frame.operands.types[2] = 2


def set_other_stage(call):
    call.frame.stage = 2


def set_65_dims(call):
    set_dims(1, *[1] * 65)(call)
    set_dims(4, *[1] * 65)(call)


SMALL_STRUCTS = "cdropout does not support this version of XLA: its structs are too small"
INVALID_BUFFERS = "operands and results have to be buffers with memory for their dimensions"


@pytest.mark.parametrize(
    "change, message",
    [
        (shrink("frame"), SMALL_STRUCTS),
        (shrink("frame", "operands"), SMALL_STRUCTS),
        (shrink("frame", "results"), SMALL_STRUCTS),
        (shrink("frame", "attributes"), SMALL_STRUCTS),
        (set_other_stage, "registered for the execute stage only"),
        (set_other_type, INVALID_BUFFERS),
        (set_null_buffer, INVALID_BUFFERS),
        (set_null("operands.types"), INVALID_BUFFERS),
        (set_null("operands.buffers"), INVALID_BUFFERS),
        (set_null("results.types"), INVALID_BUFFERS),
        (set_null("results.buffers"), INVALID_BUFFERS),
        *[(shrink("buffers", i), INVALID_BUFFERS) for i in range(5)],
        *[(set_fields(i, data=None), INVALID_BUFFERS) for i in range(5)],
        *[(set_fields(i, dims=None), INVALID_BUFFERS) for i in range(5)],
        *[(set_fields(i, rank=-1), INVALID_BUFFERS) for i in range(5)],
        *[(set_dims(i, -1, 4), INVALID_BUFFERS) for i in range(5)],
        *[(set_dims(i, 0, -1), INVALID_BUFFERS) for i in range(5)],
        *[(set_dims(i, 1 << 62, 4), INVALID_BUFFERS) for i in range(5)],
        (set_dims(1, 1 << 32, 1 << 32), INVALID_BUFFERS),
        (set_65_dims, "x has to be float16, .* and at most 64 dimensions of a mask"),
    ],
)
def test_call_with_invalid_frame_returns_error(change, message):
    call = Call()
    change(call)
    assert call.run() == 1
    [(code, text)] = call.errors
    assert code == 3
    assert re.search(message, text), text
    assert (call.y == 9).all()


def test_error_leaves_aliased_array_unchanged():
    x = X.copy()
    call = Call(KEYS, x, np.float32([0.5, 0.5, 2]), WINDOW_1D, y=x)
    assert call.run() == 1 and call.errors == [(3, P_MESSAGE + "2")]
    np.testing.assert_array_equal(x, X)
    call = Call(KEYS, x, np.float32([0.5, 0.5, 1]), WINDOW_1D, y=x)
    assert call.run() is None and not x[2].any() and x[:2].any()


# ---- threads ------------------------------------------------------------------------------------

LARGE = (1 << 19) + 4321  # elements; calls with at least 2**19 elements use the pool
KEYS_1000 = np.stack([np.zeros(1000, np.uint32), np.arange(1000, dtype=np.uint32)], 1)


def large_call(seed=7, n=LARGE):
    x = np.ones(n, np.float32)
    return Call(np.array([0, seed], np.uint32), x, P, WINDOW_1D, y=np.full_like(x, 9))


def is_correct(call, seed=7):
    x, y = call.arrays[1], call.y
    return np.array_equal(y, cd.Mask(x.shape, 0.5, seed).apply(x))


def run_with_module(script):
    """Run a script that can use the names of this module; return the result of `run`."""
    script = f"{FIND_TESTS}from {__name__} import *\n{script}"
    return run(script, CDROPOUT_NUM_THREADS="3")


def print_started_threads(key, x):
    """Print how many threads a call starts and whether its result is correct."""
    call = Call(key, x, P, WINDOW_1D, y=np.full_like(x, 9))
    started = count_started_threads(call.run)
    masks = [cd.Mask(x.shape[key.ndim - 1 :], 0.5, int(seed)) for seed in key[..., 1].flat]
    rows = x.reshape(len(masks), *masks[0].shape)
    expected = [mask.apply(row) for mask, row in zip(masks, rows, strict=True)]
    print(started, np.array_equal(call.y.reshape(rows.shape), expected), flush=True)


THREAD_CASES = [  # each case: the keys, the shape of x, and how many threads the call starts
    (KEY, (LARGE,), 2), (KEY, (LARGE // 2,), 0),
    (KEYS_1000, (1000, 600), 2), (KEYS_1000, (1000, 300), 0),
    (KEYS_1000[:2], (2, LARGE), 2), (KEYS_1000[:9], (9, 1 << 16), 0),
]  # fmt: skip


def print_all_started_threads():
    """Call `print_started_threads` for each case in a forked child, which has no other threads."""
    for key, shape, _ in THREAD_CASES:
        if os.fork() == 0:
            print_started_threads(key, np.ones(shape, np.float32))
            os._exit(0)
        os.wait()


@linux_only
def test_large_calls_start_threads():
    """Test one mask, many small masks, and several large masks."""
    status, output, errors = run_with_module("print_all_started_threads()")
    assert (status, errors) == (0, "")
    assert output.splitlines() == [f"{started} True" for *_, started in THREAD_CASES]


def test_calls_from_several_threads_give_correct_results():
    cd.set_num_threads(3)
    calls = [large_call(seed) for seed in range(6)]
    run_in_threads(6, lambda i: calls[i].run())
    assert all(is_correct(call, seed) for seed, call in enumerate(calls))


FORK = """
import warnings
# CPython 3.12 and later versions warn if a process with several threads forks.
warnings.simplefilter("ignore", DeprecationWarning)
large_call().run()  # starts threads
child = os.fork()
call = large_call()
call.run()
if child == 0:
    os._exit(not is_correct(call))
print(is_correct(call), os.waitpid(child, 0)[1])
"""


@unix_only
def test_call_in_forked_child_gives_the_same_result():
    assert run_with_module(FORK) == (0, "True 0", "")


@unix_only
def test_signal_handler_runs_after_call(alarm):
    """A call is not interrupted, because XLA cannot raise the exception of a signal handler."""

    class Interrupt(Exception):
        pass

    def interrupt(*_):
        raise Interrupt

    cd.set_num_threads(3)
    # The call takes longer than 20 ms, after which an interruptible call would check for signals.
    call = large_call(n=1 << 25)
    with pytest.raises(Interrupt):
        alarm(interrupt, 0.001)
        call.run()
        time.sleep(1)  # Python sometimes calls the handler only here
    assert is_correct(call)


# ---- version ------------------------------------------------------------------------------------

Metadata = type(
    "Metadata",
    (ctypes.Structure,),
    {"_fields_": [("struct_size", SIZE), ("version", Version), ("traits", ctypes.c_uint32)]},
)


class Extension(ctypes.Structure):
    _fields_ = [
        ("struct_size", SIZE),
        ("type", INT),
        ("next", POINTER),
        ("metadata", ctypes.POINTER(Metadata)),
    ]


@pytest.mark.parametrize("minor, written", [(0, 0), (1, 1), (3, 3), (7, 3), (None, 1)])
def test_written_api_version_is_at_most_that_of_xla(minor, written):
    call, metadata = Call(), Metadata(36, traits=9)
    extension = Extension(ctypes.sizeof(Extension), 1, None, ctypes.pointer(metadata))
    call.frame.extensions = ctypes.addressof(extension)
    if minor is None:
        call.frame.api = None
    else:
        call.api.version.minor = minor
    assert call.run() is None and (call.y == 9).all()
    version = metadata.version
    assert (version.major, version.minor, metadata.traits) == (0, written, 0)


@pytest.mark.parametrize("size, metadata_size, missing", [(31, 36, 0), (32, 35, 0), (32, 36, 1)])
def test_api_version_is_not_written_to_small_structs(size, metadata_size, missing):
    call, metadata = Call(), Metadata(metadata_size, traits=9)
    pointer = None if missing else ctypes.pointer(metadata)
    extension = Extension(size, 1, None, pointer)
    call.frame.extensions = ctypes.addressof(extension)
    assert call.run() is None and metadata.traits == 9
