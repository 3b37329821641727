"""Dropout modules with the interface of torch.nn, and functions that convert a model to them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdropout.torch import functional
from cdropout.torch._draw import check_generator
from cdropout.torch.autograd import Source
from cdropout.torch.fx import LEAF_MODULES, is_traced_leaf, record_module


class _DropoutModule(nn.Module):
    """Base class that adds a generator to PyTorch's dropout modules."""

    generator: Source = None  # a class attribute, since `convert` does not call __init__

    def __init__(self, p: float = 0.5, inplace: bool = False, *, generator: Source = None) -> None:
        super().__init__(p, inplace)
        if not 0 <= p <= 1:  # also true for NaN, which PyTorch's constructor accepts
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        check_generator(generator)
        if generator is not None:
            self.generator = generator

    def __prepare_scriptable__(self) -> nn.Module:
        if self.generator is not None:
            raise NotImplementedError(
                "a module with a generator cannot be scripted by torch.jit.script: "
                "TorchScript runs PyTorch's dropout, which has no argument generator"
            )
        return self


class Dropout(_DropoutModule, nn.Dropout):
    """`torch.nn.Dropout`, computed by `cdropout.torch.dropout`.

    Parameters
    ----------
    p : float, default 0.5
        The probability that an element is dropped, in [0, 1].
    inplace : bool, default False
        Write the result of forward to its input.
    generator : None, torch.Generator or cdropout.Generator
        The source of the masks; by default PyTorch's generator for the CPU.

    Raises
    ------
    ValueError
        If p is not in [0, 1].
    TypeError
        If `generator` has a type other than those above.

    Notes
    -----
    This is a subclass of PyTorch's module, with the same repr, empty state_dict, errors and
    warnings. The module differs from PyTorch's as follows. If p is NaN, the constructor raises
    ValueError. Dropped elements are +0.0 even if the input is NaN or infinite. Errors for integer,
    complex, sparse and quantized tensors have the same type as in PyTorch, but their messages name
    the supported tensors.

    `torch.fx` records the module as one node, like PyTorch's module. `torch.jit.script` and
    `torch.jit.trace` use PyTorch's implementation; both raise NotImplementedError if the module
    has a generator.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function of `cdropout.torch` that corresponds to this module."""
        if torch.jit.is_scripting():
            return F.dropout(input, self.p, self.training, self.inplace)
        elif type(input) is not Tensor and is_traced_leaf(self, input):
            return record_module(self, input)
        else:
            return functional.dropout(
                input, self.p, self.training, self.inplace, generator=self.generator
            )


class Dropout1d(_DropoutModule, nn.Dropout1d):
    """`torch.nn.Dropout1d`, which drops whole channels of (N, C, L) or (C, L). See `Dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function of `cdropout.torch` that corresponds to this module."""
        if torch.jit.is_scripting():
            return F.dropout1d(input, self.p, self.training, self.inplace)
        elif type(input) is not Tensor and is_traced_leaf(self, input):
            return record_module(self, input)
        else:
            return functional.dropout1d(
                input, self.p, self.training, self.inplace, generator=self.generator
            )


class Dropout2d(_DropoutModule, nn.Dropout2d):
    """`torch.nn.Dropout2d`, which drops whole channels of (N, C, H, W). See `Dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function of `cdropout.torch` that corresponds to this module."""
        if torch.jit.is_scripting():
            return F.dropout2d(input, self.p, self.training, self.inplace)
        elif type(input) is not Tensor and is_traced_leaf(self, input):
            return record_module(self, input)
        else:
            return functional.dropout2d(
                input, self.p, self.training, self.inplace, generator=self.generator
            )


class Dropout3d(_DropoutModule, nn.Dropout3d):
    """`torch.nn.Dropout3d`, which drops whole channels. See `Dropout`.

    The input has the shape (N, C, D, H, W) or (C, D, H, W).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function of `cdropout.torch` that corresponds to this module."""
        if torch.jit.is_scripting():
            return F.dropout3d(input, self.p, self.training, self.inplace)
        elif type(input) is not Tensor and is_traced_leaf(self, input):
            return record_module(self, input)
        else:
            return functional.dropout3d(
                input, self.p, self.training, self.inplace, generator=self.generator
            )


class AlphaDropout(_DropoutModule, nn.AlphaDropout):
    """`torch.nn.AlphaDropout`, for SELU networks. See `Dropout`.

    `inplace` is part of the repr but has no effect, as in PyTorch's module: a converted model must
    not write to its activations if the original model did not.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function of `cdropout.torch` that corresponds to this module."""
        if torch.jit.is_scripting():
            return F.alpha_dropout(input, self.p, self.training)
        elif type(input) is not Tensor and is_traced_leaf(self, input):
            return record_module(self, input)
        else:
            return functional.alpha_dropout(input, self.p, self.training, generator=self.generator)


class FeatureAlphaDropout(_DropoutModule, nn.FeatureAlphaDropout):
    """`torch.nn.FeatureAlphaDropout`, for whole channels of (N, C, ...). See `AlphaDropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function of `cdropout.torch` that corresponds to this module."""
        if torch.jit.is_scripting():
            return F.feature_alpha_dropout(input, self.p, self.training)
        elif type(input) is not Tensor and is_traced_leaf(self, input):
            return record_module(self, input)
        else:
            return functional.feature_alpha_dropout(
                input, self.p, self.training, generator=self.generator
            )


# ---- conversion of models -----------------------------------------------------------------------

TORCH_CLASSES = {
    Dropout: nn.Dropout,
    Dropout1d: nn.Dropout1d,
    Dropout2d: nn.Dropout2d,
    Dropout3d: nn.Dropout3d,
    AlphaDropout: nn.AlphaDropout,
    FeatureAlphaDropout: nn.FeatureAlphaDropout,
}
CDROPOUT_CLASSES = {original: replacement for replacement, original in TORCH_CLASSES.items()}
LEAF_MODULES |= set(TORCH_CLASSES)


class Swap(NamedTuple):
    """The result of `convert` or `revert`. Names of modules are those of `named_modules`."""

    swapped: list[str]  # names of the modules whose class was changed
    kept: dict[str, str]  # names of unchanged modules with dropout, and the reasons


def convert(model: nn.Module) -> Swap:
    """Replace PyTorch's dropout modules in `model` by those of cdropout, in place.

    Parameters
    ----------
    model : torch.nn.Module
        The model, which may itself be a dropout module. Only the classes of modules change; each
        module remains the same object, with its p, mode and hooks.

    Returns
    -------
    Swap
        ``(swapped, kept)``: a list of the names of the changed modules, and a dict from the names
        of other modules with dropout to the reasons why these are kept. Subclasses of PyTorch's
        dropout modules are kept, since they may change the computation. Modules that call dropout
        internally, such as attention and recurrent networks, are kept too; use `accelerate` for
        such modules.

    Raises
    ------
    TypeError
        If `model` is not a module.
    """
    swap = Swap([], {})
    for name, module in _modules_of(model, "convert"):
        kind = type(module)
        if kind in CDROPOUT_CLASSES:
            module.__class__ = CDROPOUT_CLASSES[kind]
            swap.swapped.append(name)
        elif isinstance(module, tuple(CDROPOUT_CLASSES)) and kind not in TORCH_CLASSES:
            swap.kept[name] = f"{kind.__qualname__} is a subclass of a dropout module"
        elif isinstance(module, (nn.MultiheadAttention, nn.RNNBase)) and module.dropout:
            swap.kept[name] = f"{kind.__qualname__} calls dropout internally: use accelerate()"
    return swap


def revert(model: nn.Module) -> Swap:
    """Undo `convert`: replace cdropout's modules in `model` by PyTorch's, in place.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    Swap
        See `convert`. Modules with a generator are kept, since PyTorch's modules have none.

    Raises
    ------
    TypeError
        If `model` is not a module.
    """
    swap = Swap([], {})
    for name, module in _modules_of(model, "revert"):
        kind = type(module)
        if kind in TORCH_CLASSES and module.generator is None:
            module.__class__ = TORCH_CLASSES[kind]
            swap.swapped.append(name)
        elif kind in TORCH_CLASSES:
            swap.kept[name] = f"{kind.__qualname__} has a generator; PyTorch's modules have none"
    return swap


def _modules_of(model: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} takes a torch.nn.Module, but got {type(model).__name__}")
    return list(model.named_modules())
