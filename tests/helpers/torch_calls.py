"""Functions, operators, generators and tensors that tests of cdropout.torch share."""

import shutil
from contextlib import nullcontext

import pytest

import cdropout as cd

from .requirements import import_or_skip

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")

needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None, reason="requires a C++ compiler for PyTorch"
)

FUNCTIONS = {  # functions of a 4-D tensor and p that accept inplace= and generator=
    "dropout": ct.dropout,
    "dropout2d": ct.dropout2d,
    "dropout3d": ct.dropout3d,
    "alpha_dropout": lambda x, p, **options: ct.alpha_dropout(x, p, True, **options),
    "feature_alpha_dropout": lambda x, p, **options: ct.feature_alpha_dropout(
        x, p, True, **options
    ),
    "drop_path": ct.drop_path,
}
CALLS = {  # functions of a 4-D tensor that accept generator=
    "dropout": lambda x, **generator: ct.dropout(x, 0.5, **generator),
    "dropout1d": lambda x, **generator: ct.dropout1d(x[0], 0.5, **generator),
    "dropout2d": lambda x, **generator: ct.dropout2d(x, 0.5, **generator),
    "dropout3d": lambda x, **generator: ct.dropout3d(x, 0.5, **generator),
    "alpha_dropout": lambda x, **generator: ct.alpha_dropout(x, 0.5, True, **generator),
    "feature_alpha_dropout": lambda x, **g: ct.feature_alpha_dropout(x, 0.5, True, **g),
    "drop_path": lambda x, **g: ct.drop_path(x, 0.5, scale_by_keep=False, **g),
    "mc_dropout": lambda x, **generator: ct.mc_dropout(x, 0.5, 3, **generator),
    "bias_dropout_add": lambda x, **g: ct.bias_dropout_add(x, x[0], x, 0.5, **g),
    "in place": lambda x, **generator: ct.dropout(x * 1, 0.5, inplace=True, **generator),
}
OPERATORS = {  # functions of a tensor and p that call the operators that accelerate() replaces
    "dropout": lambda x, p: torch.dropout(x, p, True),
    "dropout_": lambda x, p: torch.dropout_(x, p, True),
    "feature_dropout": lambda x, p: torch.feature_dropout(x, p, True),
    "feature_dropout_": lambda x, p: torch.feature_dropout_(x, p, True),
    "alpha_dropout": lambda x, p: torch.alpha_dropout(x, p, True),
    "alpha_dropout_": lambda x, p: torch.alpha_dropout_(x, p, True),
    "feature_alpha_dropout": lambda x, p: torch.feature_alpha_dropout(x, p, True),
    "feature_alpha_dropout_": lambda x, p: torch.feature_alpha_dropout_(x, p, True),
    "native_dropout": lambda x, p: torch.native_dropout(x, p, True)[0],
}
MODULES = {  # the input shape for each module
    "Dropout": (5, 90),
    "Dropout1d": (5, 90, 3),
    "Dropout2d": (5, 90, 3, 2),
    "Dropout3d": (5, 90, 2, 3, 2),
    "AlphaDropout": (5, 90),
    "FeatureAlphaDropout": (5, 90, 3),
}
GENERATORS = {
    "torch": lambda: torch.Generator().manual_seed(3),
    "cdropout": lambda: cd.Generator(3),
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LAYOUTS = {  # functions of a contiguous 4-D tensor that return a tensor with this layout
    "contiguous": lambda x: x,
    "permuted": lambda x: x.permute(2, 0, 3, 1),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: x[:, 1:, ::2, 1:],
    "expanded": lambda x: x[:, :, :1].expand(-1, -1, 9, -1),
}


def ramp(*shape, dtype=torch.float64):
    """Return a tensor with values that increase from -1 to 2."""
    return torch.linspace(-1, 2, torch.Size(shape).numel(), dtype=dtype).reshape(shape)


def next_seed():
    """Return the seed that the next call will draw from PyTorch's default generator."""
    with torch.random.fork_rng():  # restores the state of the generator
        return torch.randint(2**63 - 1, ()).item()


def with_seed(function, *args):
    """Set the seed of PyTorch's default generator to 3 and return the result of the function."""
    torch.manual_seed(3)
    return function(*args)


def targets(graph_module):
    """Return a list with the target of each node in the graph of a module."""
    return [node.target for node in graph_module.graph.nodes]


def assert_equal(results, expected):
    """Assert that two sequences of tensors are equal."""
    for result, tensor in zip(results, expected, strict=True):
        assert torch.equal(result, tensor)


class NothingDrawn:
    """Context in which the given generators and PyTorch's default generator must not be used."""

    def __init__(self, *generators):
        self.generators = [torch.default_generator, *[g for g in generators if g is not None]]

    def states(self):
        return [g.state if isinstance(g, cd.Generator) else g.get_state() for g in self.generators]

    def __enter__(self):
        self.before = self.states()

    def is_true(self):
        """Return whether no generator has been used since the context was entered."""
        return all(
            torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after
            for before, after in zip(self.before, self.states(), strict=True)
        )

    def __exit__(self, *_):
        assert self.is_true()


def errors_from_graphs(otherwise=None):
    """Return a context that expects an error if graphs of PyTorch cannot contain generators.

    Return `otherwise`, or a context that expects no error, if they can.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    generator = torch.Generator()
    try:
        make_fx(lambda: torch.randint(2, (), generator=generator))()
    except NotImplementedError:  # for example in PyTorch 2.9
        return pytest.raises(NotImplementedError, match="argument of type: .*Generator")
    return otherwise or nullcontext()
