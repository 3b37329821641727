"""Tests of Generator: seeds, call numbers, state, spawn, threads, next_mask and forks."""

import copy
import itertools
import math
import operator
import pickle
import re
import time

import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.requirements import unix_only
from ..helpers.subprocess_runner import run
from ..helpers.threads import run_in_threads

SIGMAS = 5.6  # two-sided tail probability: 2e-8 per pair, below 1e-6 for all 36 pairs
X = np.ones(300, np.float32)
LAST = 2**64 - 1
SEEDS = [0, 1, -1, 2**63 - 1, 2**63, -(2**63), LAST, np.int8(-7), np.uint64(5)]


def draw(generator):
    """Return the mask that a call of dropout draws with this generator."""
    return cd.dropout(X, 0.5, rng=generator, return_mask=True)[1]


# ---- seeds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_seed_is_unsigned_and_determines_the_mask(seed):
    generator = cd.Generator(seed)
    unsigned = int(seed) % 2**64
    assert (generator.seed, generator.calls) == (unsigned, 0)
    assert type(generator.seed) is int and type(generator.calls) is int
    mask = draw(generator)
    assert mask == cd.Mask(300, 0.5, unsigned)
    np.testing.assert_array_equal(np.asarray(mask), reference.keep(seed, 0, 0.5, 0, 300))


def test_each_bit_of_the_seed_changes_the_mask():
    masks = {cd.Mask(256, 0.5, 1 << bit).bits().tobytes() for bit in range(64)}
    assert len(masks) == 64


def test_generators_without_a_seed_differ():
    generators = [cd.Generator(), cd.Generator(None), cd.Generator(seed=None)]
    assert len({generator.seed for generator in generators}) == 3
    assert cd.Generator(seed=42).seed == 42


def test_manual_seed_resets_the_default_generator():
    for _ in range(2):
        assert cd.manual_seed(-1) is cd.default_generator
        assert cd.default_generator.state == {"seed": LAST, "calls": 0, "spawned": 0}
        assert draw(None) == cd.Mask(300, 0.5, -1, 0)
        cd.default_generator.spawn(3)
        assert draw(cd.default_generator) == cd.Mask(300, 0.5, -1, 1)


def test_masks_of_calls_and_of_spawned_generators_are_uncorrelated():
    n, generator = 1_000_000, cd.Generator(2024)
    sources = [generator] * 5 + generator.spawn(4)
    x = np.ones(n, np.float32)
    kept = [cd.dropout(x, 0.5, rng=source) > 0 for source in sources]
    for a, b in itertools.combinations(kept, 2):
        assert abs(np.count_nonzero(a == b) - n / 2) < SIGMAS * math.sqrt(n) / 2


# ---- calls and state --------------------------------------------------------------------------


def test_setting_the_state_restores_masks_and_spawned_seeds():
    generator = cd.Generator(8)
    draw(generator)
    generator.spawn(2)
    state = generator.state
    assert state == {"seed": 8, "calls": 1, "spawned": 2}
    following = [draw(generator), draw(generator), generator.spawn(1)[0].seed]
    assert state == {"seed": 8, "calls": 1, "spawned": 2}  # the getter returned a copy
    for other in (generator, cd.Generator(), cd.Generator(99)):
        other.state = state
        assert other.state == state
        assert [draw(other), draw(other), other.spawn(1)[0].seed] == following
    generator.state = {"spawned": np.uint64(LAST), "calls": np.int32(5), "seed": -2}
    assert generator.state == {"seed": LAST - 1, "calls": 5, "spawned": LAST}


def test_dropout_raises_after_the_last_call_number():
    generator = cd.Generator(3)
    generator.state = {"seed": 3, "calls": LAST - 1, "spawned": 0}
    mask = draw(generator)
    assert mask == cd.Mask(300, 0.5, 3, LAST - 1) and generator.calls == LAST
    np.testing.assert_array_equal(np.asarray(mask), reference.keep(3, LAST - 1, 0.5, 0, 300))
    out = np.full_like(X, 7)
    for _ in range(2):
        with pytest.raises(OverflowError, match=r"used all 2\*\*64 - 1 call numbers; create one"):
            cd.dropout(X, 0.5, rng=generator, out=out)
        assert generator.calls == LAST and (out == 7).all()
    assert cd.dropout(X, 0, rng=generator) is X


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_and_copied_generators_are_independent(protocol):
    generator = cd.Generator(-4)
    draw(generator)
    generator.spawn(5)
    for clone in (
        pickle.loads(pickle.dumps(generator, protocol)),
        copy.copy(generator),
        copy.deepcopy(generator),
    ):
        assert clone is not generator and clone.state == generator.state
        assert draw(clone) == cd.Mask(300, 0.5, -4, 1)
        assert generator.calls == 1
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


@pytest.mark.parametrize("value, error, message", COUNTS, ids=lambda value: repr(value)[:30])
def test_integer_parameters_raise_for_wrong_types_and_ranges(value, error, message):
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
        with pytest.raises(error, match=f"^{re.escape(message.format(name))}$"):
            call()
        assert generator.state == before


# ---- spawn ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 42, -1, 2**63])
def test_spawned_seeds_equal_the_reference(seed):
    generator = cd.Generator(seed)
    spawned = generator.spawn(3) + generator.spawn(0) + generator.spawn(np.int64(2))
    unsigned = seed % 2**64
    seeds = [each.seed for each in spawned]
    assert seeds == [reference.spawn_seed(unsigned, i) for i in range(5)]
    assert len({unsigned, *seeds}) == 6
    assert all(type(each) is cd.Generator and each.calls == 0 for each in spawned)
    assert generator.state == {"seed": unsigned, "calls": 0, "spawned": 5}
    assert generator.spawn(0) == []


def test_spawn_raises_after_2_to_the_64_minus_1_generators():
    generator = cd.Generator(3)
    generator.state = {"seed": 3, "calls": 0, "spawned": LAST - 1}
    with pytest.raises(OverflowError, match=r"^a generator can spawn at most 2\*\*64 - 1 "):
        generator.spawn(2)
    assert generator.spawn(1)[0].seed == reference.spawn_seed(3, LAST - 1)


def test_a_failing_spawn_does_not_change_the_state(monkeypatch):
    generator, index, attempts = cd.Generator(1), operator.index, [1, 2, 3]

    def fail_after_three_calls(value):
        if not attempts:
            raise MemoryError
        attempts.pop()
        return index(value)

    monkeypatch.setattr(operator, "index", fail_after_three_calls)
    with pytest.raises(MemoryError):
        generator.spawn(5)
    monkeypatch.undo()
    assert not attempts and generator.state == {"seed": 1, "calls": 0, "spawned": 0}


# ---- threads ----------------------------------------------------------------------------------


def test_concurrent_calls_of_spawn_return_each_seed_once():
    generator = cd.Generator(1)
    seeds = run_in_threads(8, lambda _: [generator.spawn(1)[0].seed for _ in range(200)])
    expected = sorted(reference.spawn_seed(1, i) for i in range(1600))
    assert sorted(itertools.chain(*seeds)) == expected


def test_concurrent_calls_of_spawn_that_run_python_code_return_each_seed_once(monkeypatch):
    """While spawn runs Python code, other threads can run despite the GIL or a critical section."""
    generator, index = cd.Generator(1), operator.index
    monkeypatch.setattr(operator, "index", lambda value: (time.sleep(1e-3), index(value))[1])
    spawned = itertools.chain(*run_in_threads(4, lambda _: generator.spawn(5)))
    seeds = sorted(each.seed for each in spawned)
    assert seeds == sorted(reference.spawn_seed(1, i) for i in range(20))


# ---- next_mask --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [5, (), (3, 4), [2, 3, 4]], ids=str)
def test_next_mask_returns_the_mask_that_dropout_draws(shape):
    rng, other = cd.Generator(4), cd.Generator(4)
    for p in (0.5, 0.1, 1e-300):
        mask = rng.next_mask(shape, p)
        x = np.ones(mask.shape, np.float32)
        y, drawn = cd.dropout(x, p, rng=other, return_mask=True)
        assert mask == drawn and rng.state == other.state
        np.testing.assert_array_equal(mask.apply(x), y)
    assert rng.calls == 3


@pytest.mark.parametrize("dims", [(), 1, -1, (0, 2), (0, 1, 2)], ids=str)
def test_next_mask_with_broadcast_dims_equals_the_mask_of_dropout(dims):
    mask = cd.Generator(4).next_mask((3, 4, 5), 0.5, broadcast_dims=dims)
    x = np.ones(mask.shape, np.float32)
    assert mask == cd.dropout(x, 0.5, rng=4, broadcast_dims=dims, return_mask=True)[1]


def test_next_mask_returns_a_mask_with_the_given_scale():
    mask = cd.Generator(4).next_mask(5, 0.5, scale=3)
    assert mask == cd.Mask(5, 0.5, 4, scale=3.0) and mask.scale == 3
    assert cd.Generator(4).next_mask(5, 0.5, scale=None).scale == 2


@pytest.mark.parametrize("shape, p", [(5, 0), (5, 1), (0, 0.5), ((3, 0), 0.5)], ids=str)
def test_next_mask_uses_no_call_number_if_nothing_is_random(shape, p):
    rng = cd.Generator(4)
    rng.next_mask(5, 0.5)
    mask = rng.next_mask(shape, p)
    assert mask == cd.Mask(shape, p) and rng.calls == 1


NEXT_MASK_ERRORS = {
    "the type of a length": ((2.5, 0.5), {}, TypeError,
                             "each length in shape has to be an int, but got float"),
    "a negative length": (((2, -1), 0.5), {}, ValueError,
                          r"shape has to contain lengths of at least 0, but got \(2, -1\)"),
    "too many elements": ((2**65, 0.5), {}, ValueError,
                          r"a mask has positions 0 to 2\*\*64 - 1, but"),
    "p above 1": ((3, 2), {}, ValueError,
                  "dropout probability has to be between 0 and 1, but got 2"),
    "the type of p": ((3, "1"), {}, TypeError, "p has to be a number between 0 and 1, but got str"),
    "an axis out of range": ((3, 0.5), {"broadcast_dims": 1}, ValueError,
                r"broadcast_dims has to be in \[-1, 1\) for 1 dimensions, but got 1"),
    "an axis twice": ((3, 0.5), {"broadcast_dims": (0, -1)}, ValueError,
              r"broadcast_dims contains dimension 0 twice: \(0, -1\)"),
    "the type of an axis": ((3, 0.5), {"broadcast_dims": 0.0}, TypeError,
                       "each of broadcast_dims has to be an int, but got float"),
    "a scale of 0": ((3, 0.5), {"scale": 0}, ValueError,
              "scale has to be 0 for p = 1, otherwise positive and in the range of float32, "
              "but got 0 for p=0.5"),
    "the type of scale": ((3, 0.5), {"scale": "x"}, TypeError,
                        "scale has to be a number, but got str"),
}  # fmt: skip


@pytest.mark.parametrize("case", NEXT_MASK_ERRORS)
def test_an_error_in_next_mask_does_not_change_the_generator(case):
    args, kwargs, error, pattern = NEXT_MASK_ERRORS[case]
    rng = cd.Generator(4)
    with pytest.raises(error, match=pattern):
        rng.next_mask(*args, **kwargs)
    assert rng.calls == 0


def test_next_mask_raises_after_the_last_call_number():
    rng = cd.Generator(4)
    rng.state = {"seed": 4, "calls": LAST, "spawned": 0}
    with pytest.raises(OverflowError, match="has used all"):
        rng.next_mask(3, 0.5)
    assert rng.next_mask(3, 0) == cd.Mask(3, 0) and rng.calls == LAST


# ---- the class --------------------------------------------------------------------------------


def test_classes_have_public_module_names():
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

def draw(generators):
    x = np.ones(99)
    masks = [cd.dropout(x, 0.5, rng=g, return_mask=True)[1] for g in generators]
    return [(mask.seed, mask.call, mask.bits().tobytes()) for mask in masks]

def run_in_child(function):
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, repr(function()).encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end) as pipe:
        text = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return eval(text)

restored = cd.Generator()
restored.state = {"seed": 5, "calls": 7, "spawned": 0}
seeded = [cd.Generator(9), restored]
unseeded = [cd.Generator(), None]
draw(unseeded)  # the next call number is 1
first = run_in_child(lambda: draw(seeded + unseeded))
second = run_in_child(lambda: draw(seeded + unseeded))
grandchild = run_in_child(lambda: (draw(unseeded), run_in_child(lambda: draw(unseeded))))
parent = draw(seeded + unseeded)
assert first[:2] == second[:2] == parent[:2], "seeded generators have the same masks in children"
assert [call for _, call, _ in parent[2:]] == [1, 1], "the parent continues"
unseeded_in_children = [first[2:], second[2:], *grandchild]
assert all(call == 0 for drawn in unseeded_in_children for _, call, _ in drawn)
seeds = [seed for drawn in [*unseeded_in_children, parent[2:]] for seed, _, _ in drawn]
assert len(set(seeds)) == len(seeds), "each process has its own seeds"
cd.manual_seed(3)
assert run_in_child(lambda: draw([None])) == draw([None]), "manual_seed seeds the generator"
unused = cd.Generator()
seed, calls, spawned = run_in_child(lambda: (unused.seed, unused.calls, unused.state["spawned"]))
assert seed != unused.seed and (calls, spawned) == (0, 0)
"""


@unix_only
def test_a_forked_child_repeats_masks_only_if_a_seed_was_given():
    status, _, errors = run(FORK)
    assert status == 0, errors
