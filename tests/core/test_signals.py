"""Tests that signal handlers run during a call and that exceptions of handlers end the call."""

import signal

import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.aliased_array import aliased_array
from ..helpers.requirements import linux_only, slow
from ..helpers.subprocess_runner import FIND_TESTS, run

SEED = 31
SIZE = 1 << 36  # float32 elements, or 256 GiB; a call takes at least ten seconds
END = SIZE - (1 << 14)  # first element of the last 64 KiB
ROW = 1 << 18
DELAY = 0.1  # seconds until the signal, which arrives during the call


@pytest.fixture(scope="module")
def huge():
    """Return an array of ones; only its first and its last 64 KiB have their own memory."""
    array = aliased_array(np.float32, SIZE, [0, END])
    array[: 1 << 23] = array[END:] = 1  # all other elements share memory with the first 32 MiB
    return array


@pytest.fixture(scope="module")
def huge_input():
    """Return an array of zeros of the same size as `huge`."""
    return aliased_array(np.float32, SIZE)


class Stop(Exception):
    """The exception that signal handlers raise."""


def stop(*_):
    raise Stop("the handler")


def square(x):
    return x.reshape(ROW, ROW)


def bias_dropout_add(x, bias, rng):
    return cd.bias_dropout_add(x, bias, x, 0.1, rng=rng, out=x)


CALLS = {
    "p = 0.1": lambda x, g, _: cd.dropout(x, 0.1, rng=g, inplace=True),
    "p = 1": lambda x, g, _: cd.dropout(x, 1, rng=g, inplace=True),
    "float16": lambda x, g, _: cd.dropout(x.view(np.float16), 0.1, rng=g, inplace=True),
    "float64": lambda x, g, _: cd.dropout(x.view(np.float64), 0.1, rng=g, inplace=True),
    "out": lambda x, g, _: cd.dropout(x[: SIZE // 2], 0.1, rng=g, out=x[SIZE // 2 :]),
    "one thread": lambda x, g, _: (cd.set_num_threads(1), cd.dropout(x, 0.1, rng=g, inplace=True)),
    "transposed": lambda x, g, _: cd.dropout(square(x).T, 0.1, rng=g, inplace=True),
    "step of 2": lambda x, g, _: cd.dropout(x[::2], 0.1, rng=g, inplace=True),
    "broadcast_dims": lambda x, g, _: cd.dropout(
        square(x), 0.1, rng=g, inplace=True, broadcast_dims=1
    ),
    "module": lambda x, g, _: cd.Dropout(0.1, True, rng=g)(x),
    "backward": lambda x, g, _: cd.dropout_backward(x, cd.Mask(SIZE, 0.1), True),
    "bools": lambda x, g, _: cd.dropout_backward(
        square(x), np.broadcast_to(np.True_, (ROW, ROW)), True, p=0.1
    ),
    "bits": lambda x, g, other: cd.dropout_backward(
        x, other.view(np.uint8)[: SIZE // 8], True, p=0.1
    ),
    "bias": lambda x, g, other: bias_dropout_add(square(x), other[:ROW], g),
    "bias of one row": lambda x, g, other: bias_dropout_add(x, other, g),
}
QUICK = ["p = 0.1", "transposed", "bools", "bias"]


@linux_only
@pytest.mark.parametrize("name", [*QUICK, *slow(*[name for name in CALLS if name not in QUICK])])
def test_a_signal_ends_a_long_call(huge, huge_input, alarm, name):
    huge[: 1 << 14] = huge[END:] = 1
    generator = cd.Generator(SEED)
    alarm(stop, DELAY)
    with pytest.raises(Stop, match="the handler"):
        CALLS[name](huge, generator, huge_input)
    assert generator.state == {"seed": SEED, "calls": 0, "spawned": 0}
    ends = huge[: 1 << 14].all(), huge[END:].all()
    assert any(ends), "both ends were written: the call was completed"
    assert cd.dropout(np.ones(1 << 22, np.float32), 0.5, rng=1).any(), "the next call works"


@linux_only
def test_keyboard_interrupt_ends_the_drawing_of_a_mask(alarm):
    mask = cd.Mask(1 << 32, 0.1)
    for call in (mask.bits, mask[::2].__array__, mask.__array__):
        alarm(signal.default_int_handler, DELAY)
        with pytest.raises(KeyboardInterrupt):
            call()


@linux_only
def test_sigint_raises_keyboard_interrupt_during_a_call():
    script = (
        f"{FIND_TESTS}import numpy as np, cdropout as cd, os, signal, threading\n"
        # a process that a shell starts in the background may ignore SIGINT
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tests.helpers.aliased_array import aliased_array\n"
        f"x, g = aliased_array(np.float32, {SIZE}), cd.Generator(1)\n"
        f"threading.Timer({DELAY}, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n    cd.dropout(x, 0.1, rng=g, inplace=True)\n"
        "except KeyboardInterrupt:\n    print(g.calls)\n"
    )
    assert run(script)[:2] == (0, "0")


@linux_only
@pytest.mark.parametrize("threads", [1, 3])
def test_each_element_has_the_old_or_new_value_after_an_interrupted_call(huge, alarm, threads):
    cd.set_num_threads(threads)
    ends = [huge[:1000], huge[-1000:]]
    for values in ends:
        values[:] = 1
    alarm(stop, DELAY)
    with pytest.raises(Stop):
        cd.dropout(huge, 0.3, rng=SEED, inplace=True)
    keeps = [reference.keep(SEED, 0, 0.3, start, 1000) for start in (0, SIZE - 1000)]
    results = [reference.apply(np.ones(1000, np.float32), keep, 0.3) for keep in keeps]
    written = [np.array_equal(*pair) for pair in zip(ends, results, strict=True)]
    assert sorted(written) == [False, True]
    assert (ends[written.index(False)] == 1).all()


@linux_only
def test_a_call_continues_after_a_handler_returns(alarm):
    cd.set_num_threads(1)
    n, generator, calls_of_handler = 1 << 30, cd.Generator(SEED), []
    x = aliased_array(np.float32, n, [0, n - 1000])
    x[:1000] = x[-1000:] = 1

    def draw(*_):
        _, mask = cd.dropout(np.ones(9, np.float32), rng=generator, return_mask=True)
        calls_of_handler.append(mask.call)

    alarm(draw, DELAY)
    _, mask = cd.dropout(x, 0.3, rng=generator, inplace=True, return_mask=True)
    assert (mask.call, calls_of_handler, generator.calls) == (0, [1], 2)
    for ends in (slice(1000), slice(n - 1000, n)):
        np.testing.assert_array_equal(x[ends], mask[ends].to_scale())


@linux_only
def test_a_call_number_is_not_used_twice_after_an_interrupt(huge, alarm):
    generator = cd.Generator(SEED)

    def draw_and_stop(*_):
        cd.dropout(np.ones(9, np.float32), rng=generator)
        raise Stop

    alarm(draw_and_stop, DELAY)
    with pytest.raises(Stop):
        cd.dropout(huge, 0.3, rng=generator, inplace=True)
    assert generator.calls == 2  # call number 0 is lost, because number 1 is used


@linux_only
def test_a_state_set_by_a_handler_is_kept(huge, alarm):
    generator, new_state = cd.Generator(SEED), {"seed": SEED + 1, "calls": 1, "spawned": 0}

    def set_and_stop(*_):
        generator.state = new_state
        raise Stop

    alarm(set_and_stop, DELAY)
    with pytest.raises(Stop):
        cd.dropout(huge, 0.3, rng=generator, inplace=True)
    assert generator.state == new_state


@linux_only
def test_memory_cannot_be_freed_or_resized_during_a_call(alarm):
    cd.set_num_threads(1)
    x, memory = aliased_array(np.float32, 1 << 30), bytearray(4 << 20)
    table, bias, messages = x.reshape(-1, 1 << 20), memoryview(memory).cast("f"), []

    def free(*_):
        bias.release()
        attempts = memory.clear, lambda: memory.extend(b"1"), x.base.obj.close, lambda: x.resize(5)
        for attempt in attempts:
            with pytest.raises((BufferError, ValueError)) as raised:
                attempt()
            messages.append(str(raised.value))

    alarm(free, DELAY)
    cd.bias_dropout_add(table, bias, table, 0.3, rng=SEED, out=table)
    assert len(messages) == 4 and len(memory) == 4 << 20 and x.size == 1 << 30
    memory.clear()  # after the call, this raises no error
