"""Valid calls of functions and modules, assertions on errors, and arguments that run code."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

import cdropout as cd

SHAPE = (2, 3, 4, 5)
MODULES = {  # the input shape for each class
    cd.Dropout: SHAPE,
    cd.Dropout1d: (6, 4, 5),
    cd.Dropout2d: SHAPE,
    cd.Dropout3d: SHAPE,
    cd.AlphaDropout: SHAPE,
    cd.FeatureAlphaDropout: SHAPE,
    cd.DropPath: SHAPE,
}


def new_objects(shape=SHAPE):
    """Return a namespace of new arrays, generators, a mask and a module."""
    size = int(np.prod(shape))
    memory = np.arange(1000, dtype=np.float32)
    objects = SimpleNamespace(
        memory=memory,  # contains x, out and copies, with other elements between them
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
    return objects


@contextmanager
def unchanged_objects(shape=SHAPE):
    """Provide the result of `new_objects`; assert at the end that no object has changed."""
    objects = new_objects(shape)
    before = snapshot(objects)
    yield objects
    assert snapshot(objects) == before


def snapshot(objects):
    """Return the states of all objects, the default generator and the number of threads."""
    memory, x, out = objects.memory, objects.x, objects.out
    arrays = [(a.tobytes(), a.flags.writeable) for a in (memory, objects.bias)]
    layouts = [(a.shape, a.strides, a.flags.writeable) for a in (x, out)]
    states = objects.generator.state, cd.default_generator.state
    numpy_state = objects.numpy_rng.bit_generator.state
    module = {**vars(objects.module), "_rng": objects.module._rng.state}
    mask = repr(objects.mask)
    return arrays, layouts, states, numpy_state, module, mask, cd.get_num_threads()


class ValidCall:
    """A function with valid arguments; a call can replace some of these arguments."""

    def __init__(self, name, function, arguments):
        self.name, self.function, self.arguments = name, function, arguments

    def __call__(self, **changed):
        return self.function(**{**self.arguments, **changed})

    def __repr__(self):
        return self.name

    def has(self, *names):
        """Return whether the call has arguments with all of these names."""
        return self.arguments.keys() >= set(names)


def valid_calls(objects):
    """Return a list of calls of functions, Mask and modules with arguments from `objects`."""
    calls = {**function_calls(objects), **mask_calls(objects)}
    for kind, shape in MODULES.items():
        calls.update(module_calls(objects, kind, shape))
    return [ValidCall(name, *call) for name, call in calls.items()]


def function_calls(objects):
    """Return {name: (function, arguments)} for the functions that draw masks."""
    flags = {"training": True, "inplace": False, "return_mask": False}
    new = {"x": objects.x, "p": 0.5, "rng": objects.generator, **flags}
    usual = {**new, "out": objects.out}
    dropout = {**usual, "broadcast_dims": ()}
    three_axes = {"x": objects.x.reshape(6, 4, 5), "out": objects.out.reshape(6, 4, 5)}
    copies = {"x": objects.x, "p": 0.5, "n": 2, "rng": objects.generator, "return_mask": False}
    operands = {"x": objects.x, "bias": objects.bias, "residual": objects.x, "p": 0.5}
    last = {"training": True, "rng": objects.generator, "return_mask": False, "out": objects.out}
    return {
        "dropout": (cd.dropout, dropout),
        "dropout to a new array": (cd.dropout, new),
        "dropout in place": (cd.dropout, {**new, "inplace": True, "broadcast_dims": ()}),
        "dropout in evaluation": (cd.dropout, {**dropout, "training": False}),
        "dropout with p = 0": (cd.dropout, {**dropout, "p": 0}),
        "dropout with p = 1": (cd.dropout, {**dropout, "p": 1}),
        "dropout with the default generator": (cd.dropout, {**dropout, "rng": None}),
        "dropout with a NumPy generator": (cd.dropout, {**dropout, "rng": objects.numpy_rng}),
        "dropout1d": (cd.dropout1d, {**usual, **three_axes}),
        "dropout2d": (cd.dropout2d, usual),
        "dropout3d": (cd.dropout3d, usual),
        "drop_path": (cd.drop_path, {**usual, "scale_by_keep": True}),
        "alpha_dropout": (cd.alpha_dropout, usual),
        "feature_alpha_dropout": (cd.feature_alpha_dropout, usual),
        "mc_dropout": (cd.mc_dropout, {**copies, "out": objects.copies}),
        "bias_dropout_add": (cd.bias_dropout_add, {**operands, **last}),
    }


def forms_of(mask):
    """Return the mask in each form that the parameter `mask` accepts: {name: form}."""
    bools, bits, scale = np.asarray(mask), mask.bits(), mask.to_scale()
    return {"Mask": mask, "bools": bools, "bits": bits, "scale": scale}


def mask_calls(objects):
    """Return {name: (function, arguments)} for Mask and for functions that apply a given mask."""

    def backward(x, mask, **arguments):
        return cd.dropout_backward(x, mask, **arguments)

    def add_backward(x):
        return cd.bias_dropout_add_backward(x, objects.mask)

    calls = {
        "Mask": (cd.Mask, {"shape": SHAPE, "p": 0.5, "seed": 1}),
        "bias_dropout_add_backward": (add_backward, {"x": objects.x}),
        "Mask.apply": (objects.mask.apply, {"x": objects.x, "out": objects.out}),
    }
    for form, mask in forms_of(objects.mask).items():
        arguments = {"x": objects.x, "mask": mask, "p": 0.5, "inplace": False, "out": objects.out}
        flags = {"training": True, "return_mask": False}
        calls[f"dropout with {form}"] = cd.dropout, {**arguments, **flags}
        calls[f"dropout_backward with {form}"] = backward, arguments
    return calls


def module_calls(objects, kind, shape):
    """Return {name: (function, arguments)} for the constructor and methods of a module class."""
    name, x, out = kind.__name__, objects.x.reshape(shape), objects.out.reshape(shape)
    module = kind(0.5, rng=objects.generator)
    module.mask = cd.Mask(shape, 0.5)

    def forward(x, **attributes):
        vars(module).update(attributes)
        return module(x)

    def backward(x, out):
        return module.backward(x, out=out)

    options = {"scale_by_keep": True} if kind is cd.DropPath else {}
    arguments = {"p": 0.5, "inplace": False}
    return {
        name: (kind, {**arguments, "rng": objects.generator, **options}),
        f"{name}.forward": (forward, {"x": x, "training": True, **arguments}),
        f"{name}.backward": (backward, {"x": x, "out": out}),
    }


def assert_raises(error, pattern, call, /, *args, **kwargs):
    """Assert that the call raises exactly `error`, with a message that matches the pattern."""
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


def fail(*_, **__):
    """Raise an exception that no other code raises."""
    raise ZeroDivisionError("not today")


class Rng(np.random.Generator):
    """A NumPy generator whose method `integers`, which draws the seed, calls a function."""

    def __init__(self, function):
        super().__init__(np.random.PCG64(1))
        self.function = function

    def integers(self, *_, **__):
        return self.function()


class Seeds(np.random.SeedSequence):
    """A NumPy seed sequence whose method `generate_state` calls a function."""

    def __init__(self, function):
        super().__init__(1)
        self.function = function

    def generate_state(self, *_):
        return self.function()
