"""What the tests of bad calls share: all that an error might change, and objects that lie."""

from types import SimpleNamespace

import numpy as np
import pytest

import cdropout as cd

SHAPE = (2, 3, 4, 5)
NO_P = "^p has to be a number between 0 and 1, but got "
OVERLAP = "^out partly overlaps x; it has to be x itself or must not overlap x$"


@pytest.fixture(name="world")
def make_world():
    """Return everything that an error might change; afterwards assert that none of it has."""
    memory = np.arange(1000, dtype=np.float32)
    w = SimpleNamespace(
        memory=memory,  # of which the others are parts, with room on both sides
        x=memory[300:420].reshape(SHAPE),
        out=memory[500:620].reshape(SHAPE),
        copies=memory[700:940].reshape(2, *SHAPE),
        bias=np.ones(5, np.float32),
        generator=cd.Generator(5),
        numpy_rng=np.random.default_rng(5),
        mask=cd.Mask(SHAPE, 0.5, 1),
        module=cd.Dropout(0.5, rng=7),
    )
    w.module(w.x)
    before = snapshot(w)
    yield w
    assert snapshot(w) == before


def snapshot(w):
    arrays = [(a.tobytes(), a.flags.writeable) for a in (w.memory, w.bias)]
    generators = w.generator.state, cd.default_generator.state, w.numpy_rng.bit_generator.state
    module = {**vars(w.module), "_rng": w.module._rng.state}
    return arrays, generators, module, repr(w.mask), cd.get_num_threads()


def refuses(error, words, call, /, *args, **kwargs):
    """Assert that the call raises exactly this type, with words that match."""
    with pytest.raises(error, match=words) as caught:
        call(*args, **kwargs)
    assert caught.type is error


class Number:
    """Has a __float__ and an __index__ that do what they are told."""

    def __init__(self, act):
        self.act = act

    def __float__(self):
        return self.act()

    __index__ = __float__


def fail():
    raise ZeroDivisionError("not today")


class Rng(np.random.Generator):
    """One of NumPy's, whose seed is what it is told."""

    def __init__(self, act):
        super().__init__(np.random.PCG64(1))
        self.act = act

    def integers(self, *_, **__):
        return self.act()
