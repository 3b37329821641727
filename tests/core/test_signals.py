"""Faults from outside: signals within a call, huge arrays, other interpreters, no memory."""

import multiprocessing
import os
import pickle
import signal

import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.aliased_array import aliased_array
from ..helpers.requirements import linux_only, needs_memory_limit, slow
from ..helpers.subprocess_runner import FIND_TESTS, run

SEED = 31
HUGE = 1 << 36  # float32 elements: 256 GiB, which takes ten seconds and more
END = HUGE - (1 << 14)  # where the last 64 KiB begin


# ---- signals ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def huge():
    """Return an array of 1, with memory of its own at both ends."""
    array = aliased_array(np.float32, HUGE, [0, END])
    array[: 1 << 23] = array[END:] = 1  # the first 32 MiB show everywhere
    return array


@pytest.fixture(scope="module")
def other():
    """Return a second array like it, to read from."""
    return aliased_array(np.float32, HUGE)


@pytest.fixture
def alarm():
    """Return a function that sets off one signal soon, with this handler."""
    before, threads = signal.getsignal(signal.SIGALRM), cd.get_num_threads()

    def ring(handler):
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    yield ring
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    cd.set_num_threads(threads)


class Stop(Exception):
    """What a handler raises."""


def stop(*_):
    raise Stop("the handler")


def square(x):
    return x.reshape(1 << 18, 1 << 18)


def added(x, bias, g):
    return cd.bias_dropout_add(x, bias, x, 0.1, rng=g, out=x)


KEPT = np.broadcast_to(np.True_, 1 << 18)


def packed(x):
    return x.view(np.uint8)[: x.size // 8]


LONG_CALLS = {
    "p = 0.1": lambda x, g, _: cd.dropout(x, 0.1, rng=g, inplace=True),
    "p = 1": lambda x, g, _: cd.dropout(x, 1, rng=g, inplace=True),
    "float16": lambda x, g, _: cd.dropout(x.view(np.float16), 0.1, rng=g, inplace=True),
    "float64": lambda x, g, _: cd.dropout(x.view(np.float64), 0.1, rng=g, inplace=True),
    "out": lambda x, g, _: cd.dropout(x[: HUGE // 2], 0.1, rng=g, out=x[HUGE // 2 :]),
    "one thread": lambda x, g, _: (cd.set_num_threads(1), cd.dropout(x, 0.1, rng=g, inplace=True)),
    "turned": lambda x, g, _: cd.dropout(square(x).T, 0.1, rng=g, inplace=True),
    "every other": lambda x, g, _: cd.dropout(x[::2], 0.1, rng=g, inplace=True),
    "channels": lambda x, g, _: cd.dropout(square(x), 0.1, rng=g, inplace=True, broadcast_dims=1),
    "module": lambda x, g, _: cd.Dropout(0.1, True, rng=g)(x),
    "backward": lambda x, g, _: cd.dropout_backward(x, cd.Mask(HUGE, 0.1), True),
    "bools": lambda x, g, _: cd.dropout_backward(
        square(x), np.broadcast_to(KEPT, (1 << 18, 1 << 18)), True, p=0.1
    ),
    "bits": lambda x, g, other: cd.dropout_backward(x, packed(other), True, p=0.1),
    "fused": lambda x, g, other: added(square(x), other[: 1 << 18], g),
    "fused, one row": lambda x, g, other: added(x, other, g),
}


QUICK = ["p = 0.1", "turned", "bools", "fused"]
OTHERS = [name for name in LONG_CALLS if name not in QUICK]


@linux_only
@pytest.mark.parametrize(
    "name", [*QUICK, *slow(*[name for name in LONG_CALLS if name not in QUICK])]
)
def test_a_signal_ends_a_long_call(huge, other, alarm, name):
    huge[: 1 << 14] = huge[END:] = 1
    generator = cd.Generator(SEED)
    alarm(stop)
    with pytest.raises(Stop, match="the handler"):
        LONG_CALLS[name](huge, generator, other)
    assert generator.state == {"seed": SEED, "calls": 0, "spawned": 0}
    ends = huge[: 1 << 14].all(), huge[END:].all()
    assert any(ends), "one end was not reached: the call did not run to its own end"
    assert cd.dropout(np.ones(1 << 22, np.float32), 0.5, rng=1).any(), "the next call works"


@linux_only
def test_ctrl_c_ends_the_drawing_of_a_mask(alarm):
    mask = cd.Mask(1 << 32, 0.1)
    for call in (mask.bits, mask[::2].__array__, mask.__array__):
        alarm(signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            call()


@linux_only
def test_a_real_ctrl_c():
    script = (
        f"{FIND_TESTS}import numpy as np, cdropout as cd, os, signal, threading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's jobs ignore it
        "from tests.helpers.aliased_array import aliased_array\n"
        f"x, g = aliased_array(np.float32, {HUGE}), cd.Generator(1)\n"
        "threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n    cd.dropout(x, 0.1, rng=g, inplace=True)\n"
        "except KeyboardInterrupt:\n    print(g.calls)\n"
    )
    assert run(script)[:2] == (0, "0")


@linux_only
@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupted_call_has_written_some_parts_and_left_others(huge, alarm, threads):
    cd.set_num_threads(threads)
    ends = [huge[:1000], huge[-1000:]]
    for values in ends:
        values[:] = 1
    alarm(stop)
    with pytest.raises(Stop):
        cd.dropout(huge, 0.3, rng=SEED, inplace=True)
    keeps = [reference.keep(SEED, 0, 0.3, start, 1000) for start in (0, HUGE - 1000)]
    results = [reference.apply(np.ones(1000, np.float32), keep, 0.3) for keep in keeps]
    written = [np.array_equal(*pair) for pair in zip(ends, results, strict=True)]
    assert sorted(written) == [False, True]
    assert (ends[written.index(False)] == 1).all()


@linux_only
def test_a_handler_that_returns_lets_the_call_go_on(alarm):
    cd.set_num_threads(1)
    n, generator, during = 1 << 30, cd.Generator(SEED), []
    x = aliased_array(np.float32, n, [0, n - 1000])
    x[:1000] = x[-1000:] = 1

    def draw(*_):  # in the middle of the call, with its generator
        during.append(cd.dropout(np.ones(9, np.float32), rng=generator, return_mask=True)[1].call)

    alarm(draw)
    _, mask = cd.dropout(x, 0.3, rng=generator, inplace=True, return_mask=True)
    assert (mask.call, during, generator.calls) == (0, [1], 2)
    for ends in (slice(1000), slice(n - 1000, n)):
        np.testing.assert_array_equal(x[ends], mask[ends].to_scale())


@linux_only
def test_a_number_is_not_handed_out_twice_after_an_interrupt(huge, alarm):
    generator = cd.Generator(SEED)

    def draw_and_stop(*_):
        cd.dropout(np.ones(9, np.float32), rng=generator)
        raise Stop

    alarm(draw_and_stop)
    with pytest.raises(Stop):
        cd.dropout(huge, 0.3, rng=generator, inplace=True)
    assert generator.calls == 2  # the first is lost: the second has been used


@linux_only
def test_another_state_is_kept_after_an_interrupt(huge, alarm):
    generator, another = cd.Generator(SEED), {"seed": SEED + 1, "calls": 1, "spawned": 0}

    def set_and_stop(*_):
        generator.state = another
        raise Stop

    alarm(set_and_stop)
    with pytest.raises(Stop):
        cd.dropout(huge, 0.3, rng=generator, inplace=True)
    assert generator.state == another


@linux_only
def test_buffers_cannot_be_taken_away_in_the_middle_of_a_call(alarm):
    cd.set_num_threads(1)
    x, memory = aliased_array(np.float32, 1 << 30), bytearray(4 << 20)
    table, bias, answers = x.reshape(-1, 1 << 20), memoryview(memory).cast("f"), []

    def take_away(*_):
        bias.release()
        attempts = memory.clear, lambda: memory.extend(b"1"), x.base.obj.close, lambda: x.resize(5)
        for attempt in attempts:
            with pytest.raises((BufferError, ValueError)) as refused:
                attempt()
            answers.append(str(refused.value))

    alarm(take_away)
    cd.bias_dropout_add(table, bias, table, 0.3, rng=SEED, out=table)
    assert len(answers) == 4 and len(memory) == 4 << 20 and x.size == 1 << 30
    memory.clear()  # now it can be


# ---- large arrays -----------------------------------------------------------------------------


def island_values(dtype):
    return np.random.default_rng(1).standard_normal(1000).astype(dtype)


LARGE = (1 << 32) + (1 << 20)
PLACES = [0, (1 << 31) - 500, (1 << 31) + (1 << 17), (1 << 32) - 500, LARGE - 1008]


def islands(array):
    return [array[place : place + 1000] for place in PLACES]


def filled(dtype):
    """Return a aliased_array with the same values on every island, and these."""
    x, values = aliased_array(dtype, LARGE, PLACES), island_values(dtype)
    for here in islands(x):
        here[:] = values
    return x, values


@linux_only
def test_elements_that_lie_gigabytes_apart():
    x, values = aliased_array(np.float16, LARGE)[:: LARGE >> 12], island_values(np.float16)
    values = np.resize(values, x.size)
    mask, bias = cd.Mask(x.size, 0.5, SEED), np.zeros(x.size, np.float16)
    for call in [
        lambda: cd.dropout(x, 0.5, rng=SEED, inplace=True),
        lambda: cd.dropout_backward(x, mask.bits(), True, p=0.5),
        lambda: cd.dropout_backward(x, np.asarray(mask), True, p=0.5),
        lambda: cd.bias_dropout_add(x, bias, bias, 0.5, rng=SEED, out=x),
    ]:
        x[:] = values
        call()
        np.testing.assert_array_equal(x, mask.apply(values))
    rows = x.reshape(64, 64)
    rows[:] = 1
    cd.dropout(rows, 0.5, rng=SEED, broadcast_dims=1, inplace=True)
    kept = reference.broadcast_keep(rows.shape, 0.5, SEED, 0, (1,))
    np.testing.assert_array_equal(rows, 2 * kept)


def test_a_mask_of_more_than_2_to_the_32_elements():
    bits = cd.Mask(LARGE, 0.5, SEED).bits()
    for place in PLACES:
        expected = reference.bits(SEED, 0, 0.5, place // 8 * 8, 1000)
        np.testing.assert_array_equal(bits[place // 8 : place // 8 + 125], expected)


@pytest.mark.slow
@linux_only
@pytest.mark.parametrize("dtype, start", [(np.float16, 2**63 - 2**31), (np.float32, 2**64 - LARGE)])
def test_more_than_2_to_the_32_elements(dtype, start):
    x, values = filled(dtype)
    y = aliased_array(dtype, LARGE, PLACES) if dtype is np.float16 else x
    assert cd.Mask(LARGE, 0.3, SEED, start=start).apply(x, y) is y
    for place, here in zip(PLACES, islands(y), strict=True):
        keep = reference.keep(SEED, 0, 0.3, start + place, 1000)
        np.testing.assert_array_equal(here, reference.apply(values, keep, 0.3))


@pytest.mark.slow
@linux_only
def test_every_other_of_more_than_2_to_the_32_elements():
    x, values = filled(np.float16)
    cd.dropout(x[::2], 0.5, rng=SEED, inplace=True)
    for place, here in zip(PLACES, islands(x), strict=True):
        keep = reference.keep(SEED, 0, 0.5, place // 2, 500)
        np.testing.assert_array_equal(here[::2], reference.apply(values[::2], keep, 0.5))
        np.testing.assert_array_equal(here[1::2], values[1::2])


@pytest.mark.slow
@linux_only
def test_one_draw_for_each_row_of_more_than_2_to_the_32_elements():
    x, values = filled(np.float16)
    cd.dropout(x.reshape(1 << 12, -1), 0.5, rng=SEED, broadcast_dims=1, inplace=True)
    drawn = reference.keep(SEED, 0, 0.5, 0, 1 << 12)
    for place, here in zip(PLACES, islands(x), strict=True):
        keep = drawn[np.arange(place, place + 1000) // (LARGE >> 12)]
        np.testing.assert_array_equal(here, reference.apply(values, keep, 0.5))


@pytest.mark.slow
@linux_only
def test_bits_of_more_than_2_to_the_32_elements():
    x, values = filled(np.float16)
    bits = aliased_array(np.uint8, LARGE // 8, [place // 8 for place in PLACES])
    keeps = [reference.keep(SEED, 0, 0.5, place // 8 * 8, 1008) for place in PLACES]
    for place, keep in zip(PLACES, keeps, strict=True):
        bits[place // 8 : place // 8 + 126] = np.packbits(keep, bitorder="little")[: bits.size]
    cd.dropout_backward(x, bits, True, p=0.5)
    for place, here, keep in zip(PLACES, islands(x), keeps, strict=True):
        kept = keep[place % 8 :][:1000]
        np.testing.assert_array_equal(here, reference.apply(values, kept, 0.5))


@pytest.mark.slow
@linux_only
def test_bias_and_residual_of_more_than_2_to_the_32_elements():
    x, values = filled(np.float32)
    table = x.reshape(-1, 1 << 20)
    cd.bias_dropout_add(table, np.zeros(1 << 20, np.float32), table, 0.5, rng=SEED, out=table)
    for place, here in zip(PLACES, islands(x), strict=True):
        keep = reference.keep(SEED, 0, 0.5, place, 1000)
        np.testing.assert_array_equal(here, reference.apply(values, keep, 0.5) + values)


# ---- too little memory ------------------------------------------------------------------------

LIMIT = """
import resource
import numpy as np
import cdropout as cd
cd.set_num_threads(3)
shared, out = np.ones(5 << 20, np.float32), np.empty(5 << 20, np.float32)
x, bias = np.ones(1 << 22, np.float16), np.ones(1 << 22, np.float16)
with open("/proc/self/statm") as status:
    used = int(status.read().split()[0]) * resource.getpagesize()
most = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 20), most))
generator, failed = cd.Generator(1), []
for call in [
    lambda: cd.alpha_dropout(x, 0.5, True, rng=generator),
    lambda: cd.alpha_dropout(x, 0.5, True, True, rng=generator),
    lambda: cd.feature_alpha_dropout(x.reshape(2, -1), 0.5, True, True, rng=generator),
    lambda: cd.mc_dropout(x, 0.5, 9, rng=generator),
    lambda: cd.drop_path(x, 0.5, rng=generator),
    lambda: cd.dropout2d(x.reshape(1, 4, -1, 2), 0.5, rng=generator),
    lambda: cd.bias_dropout_add(x, bias, x, rng=generator, out=x),
    lambda: cd.bias_dropout_add_backward(x, cd.Mask(x.shape, 0.5), x.shape),
    lambda: cd.dropout(x, mask=x),
]:
    try:
        call()
    except MemoryError:
        failed.append(call)
assert len(failed) == 9 and generator.calls == 0, len(failed)
assert (x.min(), x.max(), shared.min(), shared.max()) == (1, 1, 1, 1)
y = cd.dropout(shared, 0.5, rng=generator, out=out)     # no thread can be started: their stacks
assert y is out and set(y[:100].tolist()) == {0, 2} and generator.calls == 1
print("done")
"""


@needs_memory_limit
def test_too_little_memory_for_variants_and_threads():
    assert run(LIMIT) == (0, "done", "")


# ---- other processes and interpreters ---------------------------------------------------------


def names_drawn(generator, mask, module):
    """Return what these draw, for a process that was started anew."""
    x = np.ones(99, np.float32)
    y, drawn = cd.dropout(x, 0.5, rng=generator, return_mask=True)
    return drawn, y, mask.apply(x), module(x), os.getpid()


@pytest.mark.parametrize("way", ["spawn", *slow("forkserver")])
def test_a_spawned_process_draws_what_its_parent_would(way):
    if way not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {way} here")
    cd.dropout(np.ones(1 << 22, np.float32))  # there may be threads from now on
    given = cd.Generator(SEED), cd.Mask(99, 0.3, 7), cd.Dropout(0.5, rng=3)
    script = (
        f"{FIND_TESTS}import multiprocessing as m, pickle\nfrom {__name__} import names_drawn\n"
        f"if __name__ == '__main__':\n"
        f"    with m.get_context({way!r}).Pool(2) as pool:\n"
        f"        given = pickle.loads({pickle.dumps(given)!r})\n"
        f"        print(pickle.dumps([pool.apply(names_drawn, given) for _ in range(2)]).hex())\n"
    )
    status, out, err = run(script)
    assert status == 0, err
    want = names_drawn(*given)
    for drawn, *arrays, process in pickle.loads(bytes.fromhex(out)):
        assert drawn == want[0] and process != want[-1]
        for ours, theirs in zip(want[1:-1], arrays, strict=True):
            np.testing.assert_array_equal(ours, theirs)


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
warnings.simplefilter("ignore")     # NumPy's own, of interpreters
try:
    import cdropout
except ImportError as error:
    print("refused", flush=True)
'''
for _ in range(2):
    one = interpreters.create()
    interpreters.run_string(one, code)
    interpreters.destroy(one)
import cdropout as cd
y, mask = cd.dropout(np.ones(5 << 20), 0.5, rng=1, return_mask=True)
assert (y == mask.to_scale(np.float64)).all()
print("done")
"""


@pytest.mark.parametrize("before", [False, True])
def test_another_interpreter_of_the_process_is_refused_and_harms_nobody(before):
    status, out, err = run(SUBINTERPRETER.replace("BEFORE", str(before)))
    assert (status, out.split()) == (0, ["refused", "refused", "done"]), err
