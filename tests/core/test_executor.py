"""Tests of the executor: results, number of threads, concurrent calls and interrupted calls."""

import itertools
import operator
import os
import re
import sys

import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.arrays import normal
from ..helpers.requirements import linux_only, needs_memory_limit, slow, unix_only
from ..helpers.subprocess_runner import FIND_TESTS, run
from ..helpers.threads import run_in_threads

PARALLEL = 1 << 19  # smallest number of elements for which a call uses several threads
SEED = 31


# ---- the number of threads --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, *slow(np.float64)])
@pytest.mark.parametrize("extra", [-1, 0, 1, 8193, PARALLEL // 2 + 777])
def test_the_result_is_the_same_for_any_number_of_threads(extra, dtype):
    x = normal(PARALLEL + extra, dtype)
    expected = reference.dropout(x, 0.3, SEED, 0)
    for count in (1, 2, 3):
        cd.set_num_threads(count)
        y, mask = cd.dropout(x, 0.3, rng=SEED, return_mask=True)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(cd.dropout_backward(x, mask, out=y), expected)
        np.testing.assert_array_equal(mask[5:].apply(x[5:]), expected[5:])
        assert not cd.dropout(x, 1, out=y).any()
        y[:] = x
        np.testing.assert_array_equal(cd.dropout(y, 0.3, inplace=True, rng=SEED), expected)


CALLS = {
    "dropout": "cd.dropout(x)",
    "transposed": "cd.dropout(x.reshape(1024, -1).T)",
    "channels": "cd.dropout2d(x.reshape(8, 8, 64, -1))",
    "bits given": "cd.dropout_backward(x, bits, p=0.5)",
    "bools given": "cd.dropout_backward(x, keep, p=0.5)",
    "bits": "cd.Mask(n, 0.5).bits()",
    "bools": "np.asarray(cd.Mask(n, 0.5))",
    "bias": "cd.bias_dropout_add(x.reshape(1024, -1), x[: n // 1024], x.reshape(1024, -1))",
}
SETUP = f"""
{FIND_TESTS}
import os
import numpy as np
import cdropout as cd
from tests.helpers.memory_limit import remove_memory_limit, set_memory_limit
from tests.helpers.threads import count_started_threads
cd.set_num_threads(3)
"""
COUNT_FOR_ALL_CALLS = f"""
for name, call in {CALLS!r}.items():
    if os.fork():  # the parent waits; the child has no threads yet
        os.wait()
        continue
    counts = []
    for n in ({PARALLEL - 4096}, {PARALLEL}, {4 * PARALLEL}, {8 * PARALLEL}):
        x = np.zeros(n, np.float32)
        keep = x == 0
        bits = np.packbits(keep)
        counts.append(count_started_threads(lambda: eval(call)))
    print(name, *counts, sep=", ", flush=True)
    os._exit(0)
"""


@linux_only
def test_large_calls_start_threads_once():
    lines = [line.split(", ") for line in run(SETUP + COUNT_FOR_ALL_CALLS)[1].splitlines()]
    assert [name for name, *_ in lines] == list(CALLS)
    for name, *counts in lines:
        counts = [int(count) for count in counts]
        assert counts[0] == counts[-1] == 0 and sum(counts) == 2, name


def test_results_of_strided_arrays_are_the_same_for_any_number_of_threads():
    x = normal((1100, 1000))
    for view, count in itertools.product((x.T, x[::-1], x[:, ::2]), (1, 3)):
        cd.set_num_threads(count)
        expected = reference.dropout(view, 0.3, SEED, 0)
        np.testing.assert_array_equal(cd.dropout(view, 0.3, rng=SEED), expected)


def test_set_num_threads_accepts_objects_with_an_index_method():
    class Two:
        def __index__(self):
            return 2

    for count in (1, 5, np.int64(2), 1000, Two()):
        cd.set_num_threads(count)
        number = cd.get_num_threads()
        assert number == operator.index(count) and type(number) is int


INT = "the number of threads has to be an int, but got "
POSITIVE = "the number of threads has to be at least 1, but got "


@pytest.mark.parametrize(
    "number, error, message",
    [(True, TypeError, INT + "bool"), (2.0, TypeError, INT + "float"),
     ("2", TypeError, INT + "str"), (None, TypeError, INT + "NoneType"),
     (0, ValueError, POSITIVE + "0"), (-2, ValueError, POSITIVE + "-2")],
)  # fmt: skip
def test_set_num_threads_raises_for_other_types_and_for_less_than_1(number, error, message):
    cd.set_num_threads(3)
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        cd.set_num_threads(number)
    assert cd.get_num_threads() == 3


def test_set_num_threads_limits_the_number_to_sys_maxsize():
    cd.set_num_threads(2**64)
    assert cd.get_num_threads() == sys.maxsize


@pytest.mark.parametrize("text", ["3", *slow("1")])
def test_environment_variable_sets_the_number_of_threads(text):
    script = "import cdropout as cd; print(cd.get_num_threads())"
    assert run(script, CDROPOUT_NUM_THREADS=text)[:2] == (0, text)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs sched_getaffinity")
def test_default_number_of_threads_is_the_number_of_available_cpus():
    script = "import cdropout as cd; print(cd.get_num_threads())"
    assert run(script, CDROPOUT_NUM_THREADS="")[:2] == (0, str(len(os.sched_getaffinity(0))))
    one = "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]); "
    assert run(one + script, CDROPOUT_NUM_THREADS="")[:2] == (0, "1")


# ---- concurrent calls -------------------------------------------------------------------------


def test_concurrent_calls_draw_different_masks():
    cd.set_num_threads(3)
    x, generator = normal(PARALLEL + 4321), cd.Generator(SEED)

    def work(_):
        return [cd.dropout(x, 0.3, rng=generator, return_mask=True) for _ in range(2)]

    drawn = list(itertools.chain(*run_in_threads(8, work)))
    assert sorted(mask.call for _, mask in drawn) == list(range(16))
    for y, mask in drawn:
        np.testing.assert_array_equal(y, reference.dropout(x, 0.3, SEED, mask.call))


def test_set_num_threads_can_be_called_during_calls_in_other_threads():
    x, ended = normal(PARALLEL), []
    expected = reference.dropout(x, 0.3, SEED, 0)

    def work(i):
        try:
            for _ in range(10 if i else 0):
                np.testing.assert_array_equal(cd.dropout(x, 0.3, rng=SEED), expected)
        finally:
            ended.append(i)
        while len(ended) < 4:
            cd.set_num_threads(2 + len(ended))

    run_in_threads(4, work)


WITHOUT_MEMORY_FOR_THREADS = """
x, y = np.ones(1 << 20, np.float32), np.zeros(1 << 20, np.float32)
mask = cd.Mask(x.size, 0.3, 1)
cd.set_num_threads(1)
expected = mask.apply(x)
cd.set_num_threads(3)
set_memory_limit(1 << 20)  # less than the stack of a thread
count = count_started_threads(lambda: mask.apply(x, y))
remove_memory_limit()
print(count, (y == expected).all())
y[:] = 0
print(count_started_threads(lambda: mask.apply(x, y)), (y == expected).all())
"""


@needs_memory_limit
def test_a_call_runs_without_threads_that_cannot_be_started():
    assert run(SETUP + WITHOUT_MEMORY_FOR_THREADS) == (0, "0 True\n2 True", "")


@unix_only
@pytest.mark.parametrize("times", [1, *slow(40)])
def test_nothing_is_written_after_an_interrupted_call(times, alarm):
    class Stop(Exception):
        """The exception that the signal handler raises."""

    def stop(*_):
        raise Stop

    cd.set_num_threads(3)
    x, interrupted = normal(1 << 24), 0
    mask, y = cd.Mask(x.size, 0.3, SEED), np.zeros_like(x)
    for _ in range(times):
        try:
            alarm(stop, 0.001)
            while True:  # the handler runs during or between calls
                mask.apply(x, y)
        except Stop:
            y[:] = 7
            interrupted += 1
        assert (y == 7).all()
    assert interrupted == times
