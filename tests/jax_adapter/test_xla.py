"""The handler of XLA's custom call checks the structs that it is passed, and claims a version."""

import ctypes
import os
import re
import signal
import threading
import time

import numpy as np
import pytest

import cdropout as cd
from cdropout.jax._xla import handler

from ..helpers.requirements import linux_only, unix_only
from ..helpers.subprocess_runner import FIND_TESTS, run

KEY = np.array([0, 7], np.uint32)
KEYS = np.array([[0, 7], [0, 8], [0, 9]], np.uint32)
X = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
P = np.array([0x3FE00000, 0], np.uint32)  # the bits of 0.5
WINDOW = np.zeros((2, 4), np.uint32)
ROW = np.zeros((1, 4), np.uint32)
NOT_BETWEEN = "dropout probability has to be between 0 and 1, but got "

WORD, INT, POINTER = ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p


def struct(name, *fields):
    """Return a type that begins as XLA's structs do."""
    first = [("struct_size", WORD), ("extensions", POINTER)]
    return type(name, (ctypes.Structure,), {"_fields_": [*first, *fields]})


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
    """A call frame with the arrays of a right call, to be changed, and the handler's errors."""

    def __init__(self, key=KEY, x=X, p=P, window=WINDOW, y=None):
        self.messages = []
        self.y = np.full_like(X, 9) if y is None else y
        self.arrays = key, x, p, window, self.y  # which have to live
        self.buffers = [self.buffer(array) for array in self.arrays]
        self.api = Api(ctypes.sizeof(Api), new_error=CREATE(self.note))
        self.frame = Frame(
            ctypes.sizeof(Frame),
            api=ctypes.pointer(self.api),
            stage=3,
            operands=self.several(self.buffers[:4]),
            results=self.several(self.buffers[4:]),
            attributes=Attributes(ctypes.sizeof(Attributes)),
        )

    @staticmethod
    def buffer(array):
        dims = (ctypes.c_int64 * array.ndim)(*array.shape)
        return Buffer(
            ctypes.sizeof(Buffer),
            dtype=TYPES[array.dtype.name],
            data=array.ctypes.data,
            rank=array.ndim,
            dims=dims,
        )

    @staticmethod
    def several(buffers):
        pointers = (ctypes.POINTER(Buffer) * len(buffers))(*map(ctypes.pointer, buffers))
        types = (INT * len(buffers))(*[1] * len(buffers))
        return Buffers(ctypes.sizeof(Buffers), size=len(buffers), types=types, buffers=pointers)

    def note(self, new):
        assert new.contents.struct_size == ctypes.sizeof(NewError)
        self.messages.append((new.contents.code, new.contents.message.decode()))
        return 1

    def run(self):
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = POINTER, [ctypes.py_object, ctypes.c_char_p]
        function = ctypes.CFUNCTYPE(POINTER, POINTER)(pointer(handler, None))
        return function(ctypes.addressof(self.frame))


def test_a_frame_as_xla_passes_it():
    call = Call()
    assert call.run() is None and call.messages == []
    np.testing.assert_array_equal(call.y, cd.Mask((3, 4), 0.5, 7).apply(X))


def smaller(*names):
    """Return a change that takes a byte from the struct that the names lead to."""

    def change(call):
        target = call
        for name in names:
            target = target[name] if isinstance(name, int) else getattr(target, name)
        target.struct_size -= 1

    return change


def changed(buffer, **fields):
    """Return a change to one of the buffers."""

    def change(call):
        for name, value in fields.items():
            setattr(call.buffers[buffer], name, value)

    return change


def without(names):
    def change(call):
        *path, last = names.split(".")
        target = call.frame
        for name in path:
            target = getattr(target, name)
        setattr(target, last, None)

    return change


def dims(buffer, *lengths):
    def change(call):
        call.buffers[buffer].rank = len(lengths)
        call.buffers[buffer].dims = (ctypes.c_int64 * len(lengths))(*lengths)

    return change


def no_buffer(call):
    call.frame.operands.buffers[1] = ctypes.POINTER(Buffer)()


def another_kind(call):
    call.frame.operands.types[2] = 2


def another_stage(call):
    call.frame.stage = 2


def too_many_dimensions(call):
    dims(1, *[1] * 65)(call)
    dims(4, *[1] * 65)(call)


SMALL = "cdropout does not support this version of XLA: its structs are too small"
UNSOUND = "operands and results have to be buffers with memory for their dimensions"


@pytest.mark.parametrize(
    "change, message",
    [
        (smaller("frame"), SMALL),
        (smaller("frame", "operands"), SMALL),
        (smaller("frame", "results"), SMALL),
        (smaller("frame", "attributes"), SMALL),
        (another_stage, "registered for the execute stage only"),
        (another_kind, UNSOUND),
        (no_buffer, UNSOUND),
        (without("operands.types"), UNSOUND),
        (without("operands.buffers"), UNSOUND),
        (without("results.types"), UNSOUND),
        (without("results.buffers"), UNSOUND),
        *[(smaller("buffers", i), UNSOUND) for i in range(5)],
        *[(changed(i, data=None), UNSOUND) for i in range(5)],
        *[(changed(i, dims=None), UNSOUND) for i in range(5)],
        *[(changed(i, rank=-1), UNSOUND) for i in range(5)],
        *[(dims(i, -1, 4), UNSOUND) for i in range(5)],
        *[(dims(i, 0, -1), UNSOUND) for i in range(5)],
        *[(dims(i, 1 << 62, 4), UNSOUND) for i in range(5)],
        (dims(1, 1 << 32, 1 << 32), UNSOUND),
        (too_many_dimensions, "x has to be float16, .* and at most 64 dimensions of a mask"),
    ],
)
def test_a_wrong_frame_is_an_error(change, message):
    call = Call()
    change(call)
    assert call.run() == 1
    [(code, found)] = call.messages
    assert code == 3
    assert re.search(message, found), found
    assert (call.y == 9).all()


def test_an_error_leaves_an_aliased_array_as_it_was():
    x = X.copy()
    call = Call(KEYS, x, np.float32([0.5, 0.5, 2]), ROW, y=x)
    assert call.run() == 1 and call.messages == [(3, NOT_BETWEEN + "2")]
    np.testing.assert_array_equal(x, X)
    call = Call(KEYS, x, np.float32([0.5, 0.5, 1]), ROW, y=x)
    assert call.run() is None and not x[2].any() and x[:2].any()


# ---- threads ----

LARGE = (1 << 19) + 4321  # from 2**19 elements on, the pool's threads share a call
MANY = np.stack([np.zeros(1000, np.uint32), np.arange(1000, dtype=np.uint32)], 1)


@pytest.fixture
def three_threads():
    number = cd.get_num_threads()
    cd.set_num_threads(3)
    yield
    cd.set_num_threads(number)


def large_call(seed=7, n=LARGE):
    x = np.ones(n, np.float32)
    return Call(np.array([0, seed], np.uint32), x, P, ROW, y=np.full_like(x, 9))


def is_right(call, seed=7):
    x, y = call.arrays[1], call.y
    return np.array_equal(y, cd.Mask(x.shape, 0.5, seed).apply(x))


def in_a_process(statement):
    """Return what a new Python prints, with this module's names: JAX warns of forks in its own."""
    script = f"{FIND_TESTS}from {__name__} import *\n{statement}"
    return run(script, CDROPOUT_NUM_THREADS="3")


def count_threads(key, x):
    """Print how many threads a call starts, and whether its result is right."""
    before = len(os.listdir("/proc/self/task"))
    call = Call(key, x, P, ROW, y=np.full_like(x, 9))
    call.run()
    started = len(os.listdir("/proc/self/task")) - before
    masks = [cd.Mask(x.shape[key.ndim - 1 :], 0.5, int(seed)) for seed in key[..., 1].flat]
    rows = x.reshape(len(masks), *masks[0].shape)
    expected = [mask.apply(row) for mask, row in zip(masks, rows, strict=True)]
    print(started, np.array_equal(call.y.reshape(rows.shape), expected), flush=True)


SHARED = [  # the masks, the shape, and the threads that a call starts
    (KEY, (LARGE,), 2), (KEY, (LARGE // 2,), 0),
    (MANY, (1000, 600), 2), (MANY, (1000, 300), 0),
    (MANY[:2], (2, LARGE), 2), (MANY[:9], (9, 1 << 16), 0),
]  # fmt: skip


def count_threads_in_children():
    """Call `count_threads` for each case in a child: it has no threads yet."""
    for key, shape, _ in SHARED:
        if os.fork() == 0:
            count_threads(key, np.ones(shape, np.float32))
            os._exit(0)
        os.wait()


@linux_only
def test_the_pools_threads_share_a_large_call():
    """One mask, many small ones together, or each of several large ones."""
    status, output, errors = in_a_process("count_threads_in_children()")
    assert (status, errors) == (0, "")
    assert output.splitlines() == [f"{started} True" for *_, started in SHARED]


def test_calls_from_several_threads_at_once(three_threads):
    calls = [large_call(seed) for seed in range(6)]
    threads = [threading.Thread(target=call.run) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(is_right(call, seed) for seed, call in enumerate(calls))


FORK = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forks with threads, since Python 3.12
large_call().run()  # there are threads from now on
child = os.fork()
call = large_call()
call.run()
if child == 0:
    os._exit(not is_right(call))
print(is_right(call), os.waitpid(child, 0)[1])
"""


@unix_only
def test_a_call_in_a_forked_child():
    assert in_a_process(FORK) == (0, "True 0", "")


@unix_only
def test_a_signals_handler_runs_after_the_call(three_threads):
    """XLA could not pass on its exception, so the call is completed first."""

    class Stop(Exception):
        """What the handler raises."""

    def stop(*_):
        raise Stop

    call = large_call(n=1 << 25)  # takes more than the 20 ms between two checks for signals
    before = signal.signal(signal.SIGALRM, stop)
    try:
        with pytest.raises(Stop):
            signal.setitimer(signal.ITIMER_REAL, 0.001)
            call.run()
            time.sleep(1)  # the handler raises at the latest here
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert is_right(call)


# ---- the version --------------------------------------------------------------------------------

Metadata = type(
    "Metadata",
    (ctypes.Structure,),
    {"_fields_": [("struct_size", WORD), ("version", Version), ("traits", ctypes.c_uint32)]},
)


class Extension(ctypes.Structure):
    _fields_ = [
        ("struct_size", WORD),
        ("type", INT),
        ("next", POINTER),
        ("metadata", ctypes.POINTER(Metadata)),
    ]


@pytest.mark.parametrize("minor, claimed", [(0, 0), (1, 1), (3, 3), (7, 3), (None, 1)])
def test_the_version_that_is_claimed(minor, claimed):
    call, metadata = Call(), Metadata(36, traits=9)
    extension = Extension(ctypes.sizeof(Extension), 1, None, ctypes.pointer(metadata))
    call.frame.extensions = ctypes.addressof(extension)
    if minor is None:
        call.frame.api = None
    else:
        call.api.version.minor = minor
    assert call.run() is None and (call.y == 9).all()
    version = metadata.version
    assert (version.major, version.minor, metadata.traits) == (0, claimed, 0)


@pytest.mark.parametrize("size, metadata_size, missing", [(31, 36, 0), (32, 35, 0), (32, 36, 1)])
def test_no_version_is_written_where_there_is_no_room(size, metadata_size, missing):
    call, metadata = Call(), Metadata(metadata_size, traits=9)
    pointer = None if missing else ctypes.pointer(metadata)
    extension = Extension(size, 1, None, pointer)
    call.frame.extensions = ctypes.addressof(extension)
    assert call.run() is None and metadata.traits == 9
