"""Tests of Generator: seeds, call numbers, state, children, threads and forks."""

import copy
import doctest
import inspect
import itertools
import math
import operator
import pickle
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import cdropout as cd

from .. import reference

SIGMAS = 5.6  # two-sided normal tail 2e-8: the 36 pairs tested together stay under 1e-6
X = np.ones(300, np.float32)
LAST = 2**64 - 1
SEEDS = [0, 1, -1, 2**63 - 1, 2**63, -(2**63), LAST, np.int8(-7), np.uint64(5)]


def drawn_from(generator):
    """Return the next mask of the generator."""
    return cd.dropout(X, 0.5, rng=generator, return_mask=True)[1]


# ---- seeds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_all_64_bits_of_the_seed_count(seed):
    generator = cd.Generator(seed)
    unsigned = int(seed) % 2**64
    assert (generator.seed, generator.calls) == (unsigned, 0)
    assert type(generator.seed) is int and type(generator.calls) is int
    mask = drawn_from(generator)
    assert mask == cd.Mask(300, 0.5, unsigned)
    np.testing.assert_array_equal(np.asarray(mask), reference.keep(seed, 0, 0.5, 0, 300))


def test_each_bit_of_the_seed_gives_another_mask():
    masks = {cd.Mask(256, 0.5, 1 << bit).bits().tobytes() for bit in range(64)}
    assert len(masks) == 64


def test_generators_without_a_seed_differ():
    generators = [cd.Generator(), cd.Generator(None), cd.Generator(seed=None)]
    assert len({generator.seed for generator in generators}) == 3
    assert cd.Generator(seed=42).seed == 42


def test_manual_seed_starts_the_default_generator_anew():
    for _ in range(2):
        assert cd.manual_seed(-1) is cd.default_generator
        assert cd.default_generator.state == {"seed": LAST, "calls": 0, "spawned": 0}
        assert drawn_from(None) == cd.Mask(300, 0.5, -1, 0)
        cd.default_generator.spawn(3)
        assert drawn_from(cd.default_generator) == cd.Mask(300, 0.5, -1, 1)


def test_masks_of_calls_and_of_children_are_not_correlated():
    n, generator = 1_000_000, cd.Generator(2024)
    sources = [generator] * 5 + generator.spawn(4)
    x = np.ones(n, np.float32)
    kept = [cd.dropout(x, 0.5, rng=source) > 0 for source in sources]
    for a, b in itertools.combinations(kept, 2):
        assert abs(np.count_nonzero(a == b) - n / 2) < SIGMAS * math.sqrt(n) / 2


# ---- calls and state --------------------------------------------------------------------------


def test_state_goes_back_to_where_it_was_taken():
    generator = cd.Generator(8)
    drawn_from(generator)
    generator.spawn(2)
    state = generator.state
    assert state == {"seed": 8, "calls": 1, "spawned": 2}
    following = [drawn_from(generator), drawn_from(generator), generator.spawn(1)[0].seed]
    assert state == {"seed": 8, "calls": 1, "spawned": 2}  # a copy, not a view
    for other in (generator, cd.Generator(), cd.Generator(99)):
        other.state = state
        assert other.state == state
        assert [drawn_from(other), drawn_from(other), other.spawn(1)[0].seed] == following
    generator.state = {"spawned": np.uint64(LAST), "calls": np.int32(5), "seed": -2}
    assert generator.state == {"seed": LAST - 1, "calls": 5, "spawned": LAST}


def test_call_numbers_end_at_2_to_the_64():
    generator = cd.Generator(3)
    generator.state = {"seed": 3, "calls": LAST - 1, "spawned": 0}
    mask = drawn_from(generator)
    assert mask == cd.Mask(300, 0.5, 3, LAST - 1) and generator.calls == LAST
    np.testing.assert_array_equal(np.asarray(mask), reference.keep(3, LAST - 1, 0.5, 0, 300))
    out = np.full_like(X, 7)
    for _ in range(2):
        with pytest.raises(OverflowError, match=r"used all 2\*\*64 - 1 call numbers; create one"):
            cd.dropout(X, 0.5, rng=generator, out=out)
        assert generator.calls == LAST and (out == 7).all()
    assert cd.dropout(X, 0, rng=generator) is X


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_and_copies_go_on_alike(protocol):
    generator = cd.Generator(-4)
    drawn_from(generator)
    generator.spawn(5)
    for clone in (
        pickle.loads(pickle.dumps(generator, protocol)),
        copy.copy(generator),
        copy.deepcopy(generator),
    ):
        assert clone is not generator and clone.state == generator.state
        assert drawn_from(clone) == cd.Mask(300, 0.5, -4, 1)
        assert generator.calls == 1  # not the clone's counter
        assert clone.spawn(1)[0].seed == reference.spawn_seed(2**64 - 4, 5)
    assert repr(generator) == f"Generator(seed={2**64 - 4}, calls=1)"


COUNTS = [
    (True, TypeError, "{} has to be an int, but got bool"),
    (None, TypeError, "{} has to be an int, but got NoneType"),
    (1.0, TypeError, "{} has to be an int, but got float"),
    ("1", TypeError, "{} has to be an int, but got str"),
    (-1, ValueError, "{} has to be in [0, 2**64), but got -1"),
    (2**64, ValueError, "{} has to be in [0, 2**64), but got " + str(2**64)),
]


@pytest.mark.parametrize("value, error, words", COUNTS, ids=lambda value: repr(value)[:30])
def test_counts_that_are_none(value, error, words):
    generator = cd.Generator(3)
    before = generator.state
    state = {name: {**before, name: value} for name in ("calls", "spawned")}
    for name, call in {
        "call": lambda: cd.Mask(3, 0.5, call=value),
        "start": lambda: cd.Mask(3, 0.5, start=value),
        "calls": lambda: setattr(generator, "state", state["calls"]),
        "spawned": lambda: setattr(generator, "state", state["spawned"]),
        "n": lambda: generator.spawn(value),
    }.items():
        with pytest.raises(error, match=f"^{re.escape(words.format(name))}$"):
            call()
        assert generator.state == before


# ---- children ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 42, -1, 2**63])
def test_spawned_seeds_are_the_reference(seed):
    generator = cd.Generator(seed)
    children = generator.spawn(3) + generator.spawn(0) + generator.spawn(np.int64(2))
    unsigned = seed % 2**64
    seeds = [child.seed for child in children]
    assert seeds == [reference.spawn_seed(unsigned, i) for i in range(5)]
    assert len({unsigned, *seeds}) == 6
    assert all(type(child) is cd.Generator and child.calls == 0 for child in children)
    assert generator.state == {"seed": unsigned, "calls": 0, "spawned": 5}
    assert generator.spawn(0) == []


def test_spawned_generators_end_at_2_to_the_64():
    generator = cd.Generator(3)
    generator.state = {"seed": 3, "calls": 0, "spawned": LAST - 1}
    with pytest.raises(OverflowError, match=r"^a generator can spawn at most 2\*\*64 - 1 "):
        generator.spawn(2)
    assert generator.spawn(1)[0].seed == reference.spawn_seed(3, LAST - 1)


def test_children_that_cannot_be_made_use_up_no_numbers(monkeypatch):
    generator, index, left = cd.Generator(1), operator.index, [1, 2, 3]

    def short_of_memory(value):
        if not left:
            raise MemoryError
        left.pop()
        return index(value)

    monkeypatch.setattr(operator, "index", short_of_memory)
    with pytest.raises(MemoryError):
        generator.spawn(5)
    monkeypatch.undo()
    assert not left and generator.state == {"seed": 1, "calls": 0, "spawned": 0}


# ---- threads ----------------------------------------------------------------------------------


def in_threads(count, work):
    """Run work(0), ..., work(count - 1) at once, with many switches between them."""
    barrier = threading.Barrier(count)
    threads = [
        threading.Thread(target=lambda i: (barrier.wait(), work(i)), args=(i,))
        for i in range(count)
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)


def test_threads_are_given_each_call_number_once():
    generator, calls = cd.Generator(1), [[] for _ in range(8)]
    in_threads(8, lambda i: calls[i].extend(drawn_from(generator).call for _ in range(1000)))
    assert sorted(itertools.chain(*calls)) == list(range(8000))
    assert generator.calls == 8000
    assert all(numbers == sorted(numbers) for numbers in calls)


def test_threads_are_given_each_child_once():
    generator, seeds = cd.Generator(1), [[] for _ in range(8)]
    in_threads(8, lambda i: seeds[i].extend(generator.spawn(1)[0].seed for _ in range(200)))
    expected = sorted(reference.spawn_seed(1, i) for i in range(1600))
    assert sorted(itertools.chain(*seeds)) == expected


def test_threads_get_no_child_twice_where_python_code_runs_between(monkeypatch):
    """The GIL and a critical section are let go of while a thread waits within them."""
    generator, seeds = cd.Generator(1), []
    index = operator.index
    monkeypatch.setattr(operator, "index", lambda value: (time.sleep(1e-3), index(value))[1])
    in_threads(4, lambda _: seeds.extend(child.seed for child in generator.spawn(5)))
    assert sorted(seeds) == sorted(reference.spawn_seed(1, i) for i in range(20))


# ---- next_mask --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [5, (), (3, 4), [2, 3, 4]], ids=str)
def test_the_next_mask_is_the_one_that_dropout_draws(shape):
    rng, other = cd.Generator(4), cd.Generator(4)
    for p in (0.5, 0.1, 1e-300):
        mask = rng.next_mask(shape, p)
        x = np.ones(mask.shape, np.float32)
        y, drawn = cd.dropout(x, p, rng=other, return_mask=True)
        assert mask == drawn and rng.state == other.state
        np.testing.assert_array_equal(mask.apply(x), y)
    assert rng.calls == 3


@pytest.mark.parametrize("dims", [(), 1, -1, (0, 2), (0, 1, 2)], ids=str)
def test_the_next_mask_shares_draws(dims):
    mask = cd.Generator(4).next_mask((3, 4, 5), 0.5, broadcast_dims=dims)
    x = np.ones(mask.shape, np.float32)
    assert mask == cd.dropout(x, 0.5, rng=4, broadcast_dims=dims, return_mask=True)[1]


def test_the_next_mask_has_the_scale_that_was_asked_for():
    mask = cd.Generator(4).next_mask(5, 0.5, scale=3)
    assert mask == cd.Mask(5, 0.5, 4, scale=3.0) and mask.scale == 3
    assert cd.Generator(4).next_mask(5, 0.5, scale=None).scale == 2


@pytest.mark.parametrize("shape, p", [(5, 0), (5, 1), (0, 0.5), ((3, 0), 0.5)], ids=str)
def test_a_mask_without_a_draw_uses_up_no_call_number(shape, p):
    rng = cd.Generator(4)
    rng.next_mask(5, 0.5)
    mask = rng.next_mask(shape, p)
    assert mask == cd.Mask(shape, p) and rng.calls == 1


NEXT_MASK_ERRORS = {
    "a length": ((2.5, 0.5), {}, TypeError, "each length in shape has to be an int, but got float"),
    "a negative length": (((2, -1), 0.5), {}, ValueError,
                          r"shape has to hold lengths of at least 0, but got \(2, -1\)"),
    "too large": ((2**65, 0.5), {}, ValueError, r"a mask has positions 0 to 2\*\*64 - 1, but"),
    "p": ((3, 2), {}, ValueError, "dropout probability has to be between 0 and 1, but got 2"),
    "a type of p": ((3, "1"), {}, TypeError, "p has to be a number between 0 and 1, but got str"),
    "an axis": ((3, 0.5), {"broadcast_dims": 1}, ValueError,
                r"broadcast_dims has to be in \[-1, 1\) for 1 dimensions, but got 1"),
    "twice": ((3, 0.5), {"broadcast_dims": (0, -1)}, ValueError,
              r"broadcast_dims names dimension 0 twice: \(0, -1\)"),
    "a type of axis": ((3, 0.5), {"broadcast_dims": 0.0}, TypeError,
                       "each of broadcast_dims has to be an int, but got float"),
    "scale": ((3, 0.5), {"scale": 0}, ValueError,
              "scale has to be positive and finite, and 0 for p = 1, but got 0 for p=0.5"),
    "a type of scale": ((3, 0.5), {"scale": "x"}, TypeError,
                        "scale has to be a number, but got str"),
}  # fmt: skip


@pytest.mark.parametrize("case", NEXT_MASK_ERRORS)
def test_an_error_in_next_mask_leaves_the_generator_as_it_was(case):
    args, kwargs, error, words = NEXT_MASK_ERRORS[case]
    rng = cd.Generator(4)
    with pytest.raises(error, match=words):
        rng.next_mask(*args, **kwargs)
    assert rng.calls == 0


def test_next_mask_after_the_last_call_number():
    rng = cd.Generator(4)
    rng.state = {"seed": 4, "calls": LAST, "spawned": 0}
    with pytest.raises(OverflowError, match="has used all"):
        rng.next_mask(3, 0.5)
    assert rng.next_mask(3, 0) == cd.Mask(3, 0) and rng.calls == LAST


def test_the_example_of_next_mask_runs():
    (example,) = doctest.DocTestFinder().find(cd.Generator.next_mask, "next_mask")
    assert example.examples and not doctest.DocTestRunner().run(example).failed


# ---- the class --------------------------------------------------------------------------------


def test_signatures_and_pickles_name_the_public_module():
    assert str(inspect.signature(cd.Generator)) == "(seed=None)"
    parameters = "(shape, p, seed=0, call=0, start=0, strides=None, scale=None)"
    assert str(inspect.signature(cd.Mask)) == parameters
    for value in (cd.Generator(4), cd.Mask(3, 0.5)):
        assert type(value).__module__ == "cdropout"
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            data = pickle.dumps(value, protocol)
            assert b"cdropout" in data and b"core" not in data
            assert repr(pickle.loads(data)) == repr(value)


# ---- forks ------------------------------------------------------------------------------------

FORK = """
import os
import numpy as np
import cdropout as cd

def names(generators):
    x = np.ones(99)
    masks = [cd.dropout(x, 0.5, rng=g, return_mask=True)[1] for g in generators]
    return [(mask.seed, mask.call, mask.bits().tobytes()) for mask in masks]

def in_child(work):
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(theirs, repr(work()).encode())
        os._exit(0)
    os.close(theirs)
    with open(ours) as pipe:
        text = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return eval(text)

restored = cd.Generator()
restored.state = {"seed": 5, "calls": 7, "spawned": 0}
seeded = [cd.Generator(9), restored]
unseeded = [cd.Generator(), None]
names(unseeded)                       # the second call number is next
first = in_child(lambda: names(seeded + unseeded))
second = in_child(lambda: names(seeded + unseeded))
below = in_child(lambda: (names(unseeded), in_child(lambda: names(unseeded))))
parent = names(seeded + unseeded)
assert first[:2] == second[:2] == parent[:2], "a seed was given: all go on with the same masks"
assert [call for _, call, _ in parent[2:]] == [1, 1], "the parent goes on where it was"
foreign = [first[2:], second[2:], *below]
assert all(call == 0 for names in foreign for _, call, _ in names)
seeds = [seed for names in [*foreign, parent[2:]] for seed, _, _ in names]
assert len(set(seeds)) == len(seeds), "without a seed no two processes share masks"
cd.manual_seed(3)
assert in_child(lambda: names([None])) == names([None]), "manual_seed is a seed"
fresh = cd.Generator()
children = in_child(lambda: (fresh.seed, fresh.calls, fresh.state["spawned"]))
assert children[0] != fresh.seed and children[1:] == (0, 0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_repeats_masks_only_if_a_seed_was_given():
    done = subprocess.run([sys.executable, "-P", "-c", FORK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
