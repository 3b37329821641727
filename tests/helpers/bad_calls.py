"""Objects that misbehave, arguments for calls that fail, and assertions about such calls."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

import cdropout as cd

SHAPE = (2, 3, 4, 5)
NO_P = "^p has to be a number between 0 and 1, but got "
OVERLAP = "^out partly overlaps x; it has to be x itself or must not overlap x$"


@contextmanager
def unchanged_objects(shape=SHAPE):
    """Provide arrays, generators, a mask and a module; assert at the end that none has changed."""
    size = int(np.prod(shape))
    memory = np.arange(1000, dtype=np.float32)
    objects = SimpleNamespace(
        memory=memory,  # of x, out and copies, with other elements before and after each
        x=memory[300:][:size].reshape(shape),
        out=memory[500:][:size].reshape(shape),
        copies=memory[700:][: 2 * size].reshape(2, *shape),
        bias=np.ones(shape[-1], np.float32),
        generator=cd.Generator(5),
        numpy_rng=np.random.default_rng(5),
        mask=cd.Mask(shape, 0.5, 1),
        module=cd.Dropout(0.5, rng=7),
    )
    objects.module(objects.x)
    before = snapshot(objects)
    yield objects
    assert snapshot(objects) == before


def snapshot(objects):
    """Return the state of all objects in a form that can be compared."""
    memory, x, out = objects.memory, objects.x, objects.out
    arrays = [(a.tobytes(), a.flags.writeable) for a in (memory, objects.bias)]
    layouts = [(a.shape, a.strides, a.flags.writeable) for a in (x, out)]
    states = objects.generator.state, cd.default_generator.state
    numpy_state = objects.numpy_rng.bit_generator.state
    module = {**vars(objects.module), "_rng": objects.module._rng.state}
    mask = repr(objects.mask)
    return arrays, layouts, states, numpy_state, module, mask, cd.get_num_threads()


def assert_raises(error, pattern, call, /, *args, **kwargs):
    """Assert that the call raises exactly this type, with a message that matches the pattern."""
    with pytest.raises(error, match=pattern) as raised:
        call(*args, **kwargs)
    assert raised.type is error


class Number:
    """A number whose `__float__` and `__index__` call a function."""

    def __init__(self, function):
        self.function = function

    def __float__(self):
        return self.function()

    __index__ = __float__


def fail():
    """Raise an exception that no other code raises."""
    raise ZeroDivisionError("not today")


class Rng(np.random.Generator):
    """A NumPy generator whose `integers`, which gives the seed, calls a function."""

    def __init__(self, function):
        super().__init__(np.random.PCG64(1))
        self.function = function

    def integers(self, *_, **__):
        return self.function()
