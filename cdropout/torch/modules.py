"""Dropout as modules: PyTorch's, computed here; convert and revert swap the ones for the others."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdropout.torch import functional
from cdropout.torch._draw import check_generator
from cdropout.torch.autograd import Source
from cdropout.torch.fx import WHOLE, is_recorded, record_module


class _Here(nn.Module):
    """What the modules add to PyTorch's: a generator."""

    generator: Source = None  # of the class: modules that convert swapped have none of their own

    def __init__(self, p: float = 0.5, inplace: bool = False, *, generator: Source = None) -> None:
        super().__init__(p, inplace)
        if not 0 <= p <= 1:  # NaN, which PyTorch's modules take and their forward refuses
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        check_generator(generator)
        if generator is not None:
            self.generator = generator

    def __prepare_scriptable__(self) -> nn.Module:
        if self.generator is not None:
            raise NotImplementedError(
                "a module with a generator cannot be scripted by torch.jit.script: "
                "TorchScript runs PyTorch's dropout, which has none"
            )
        return self


class Dropout(_Here, nn.Dropout):
    """`torch.nn.Dropout`, computed by `cdropout.torch.dropout`.

    Parameters
    ----------
    p : float, default 0.5
        The probability that an element is dropped, in [0, 1].
    inplace : bool, default False
        Write the result of forward to its input.
    generator : None, torch.Generator or cdropout.Generator
        Where masks come from; by default PyTorch's generator for the CPU.

    Raises
    ------
    ValueError
        If p is not in [0, 1].
    TypeError
        If generator is of another type.

    Notes
    -----
    A subclass of PyTorch's, with its repr, its empty state_dict, its errors and warnings. It
    differs in this: NaN as p is refused at construction too; dropped elements are +0.0 even where
    the input is NaN or infinite; of integer, complex, sparse and quantized tensors the errors are
    of PyTorch's type but say what is taken. `torch.fx` records it as one node, as it does
    PyTorch's. In TorchScript, scripted or traced, it is PyTorch's; with a generator, that is a
    NotImplementedError.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return what the function of this name returns."""
        if torch.jit.is_scripting():
            return F.dropout(input, self.p, self.training, self.inplace)
        elif type(input) is not Tensor and is_recorded(self, input):
            return record_module(self, input)
        else:
            return functional.dropout(
                input, self.p, self.training, self.inplace, generator=self.generator
            )


class Dropout1d(_Here, nn.Dropout1d):
    """`torch.nn.Dropout1d`: whole channels of (N, C, L) or (C, L). Otherwise as `Dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return what the function of this name returns."""
        if torch.jit.is_scripting():
            return F.dropout1d(input, self.p, self.training, self.inplace)
        elif type(input) is not Tensor and is_recorded(self, input):
            return record_module(self, input)
        else:
            return functional.dropout1d(
                input, self.p, self.training, self.inplace, generator=self.generator
            )


class Dropout2d(_Here, nn.Dropout2d):
    """`torch.nn.Dropout2d`: whole channels of (N, C, H, W). Otherwise as `Dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return what the function of this name returns."""
        if torch.jit.is_scripting():
            return F.dropout2d(input, self.p, self.training, self.inplace)
        elif type(input) is not Tensor and is_recorded(self, input):
            return record_module(self, input)
        else:
            return functional.dropout2d(
                input, self.p, self.training, self.inplace, generator=self.generator
            )


class Dropout3d(_Here, nn.Dropout3d):
    """`torch.nn.Dropout3d`: channels of (N, C, D, H, W) or (C, D, H, W). Otherwise as `Dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return what the function of this name returns."""
        if torch.jit.is_scripting():
            return F.dropout3d(input, self.p, self.training, self.inplace)
        elif type(input) is not Tensor and is_recorded(self, input):
            return record_module(self, input)
        else:
            return functional.dropout3d(
                input, self.p, self.training, self.inplace, generator=self.generator
            )


class AlphaDropout(_Here, nn.AlphaDropout):
    """`torch.nn.AlphaDropout`, for SELU networks. Otherwise as `Dropout`.

    `inplace` is shown, but not used: PyTorch's module does not use it either, and a converted model
    must not begin to write to its activations.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return what the function of this name returns."""
        if torch.jit.is_scripting():
            return F.alpha_dropout(input, self.p, self.training)
        elif type(input) is not Tensor and is_recorded(self, input):
            return record_module(self, input)
        else:
            return functional.alpha_dropout(input, self.p, self.training, generator=self.generator)


class FeatureAlphaDropout(_Here, nn.FeatureAlphaDropout):
    """`torch.nn.FeatureAlphaDropout`: (N, C, ...), by channels. Otherwise as `AlphaDropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return what the function of this name returns."""
        if torch.jit.is_scripting():
            return F.feature_alpha_dropout(input, self.p, self.training)
        elif type(input) is not Tensor and is_recorded(self, input):
            return record_module(self, input)
        else:
            return functional.feature_alpha_dropout(
                input, self.p, self.training, generator=self.generator
            )


# ---- a model's modules, swapped in place --------------------------------------------------------

THEIRS = {
    Dropout: nn.Dropout,
    Dropout1d: nn.Dropout1d,
    Dropout2d: nn.Dropout2d,
    Dropout3d: nn.Dropout3d,
    AlphaDropout: nn.AlphaDropout,
    FeatureAlphaDropout: nn.FeatureAlphaDropout,
}
OURS = {theirs: ours for ours, theirs in THEIRS.items()}
WHOLE |= set(THEIRS)


class Swap(NamedTuple):
    """What `convert` or `revert` did: names of modules, as `named_modules` gives them."""

    swapped: list[str]  # those that are of the other class now
    kept: dict[str, str]  # those that were left alone, and why


def convert(model: nn.Module) -> Swap:
    """Make each of PyTorch's dropout modules in `model` one of ours, in place.

    Parameters
    ----------
    model : torch.nn.Module
        Each module in it stays the same object, with its p, mode, hooks and whoever refers to it;
        only its class changes. The model itself may be a dropout module.

    Returns
    -------
    Swap
        ``(swapped, kept)``: a list of names, and a dict from names to reasons. Subclasses of
        PyTorch's modules are kept, since nobody knows what they change, and so are modules that
        call dropout inside (attention, recurrent nets): `accelerate` reaches those.

    Raises
    ------
    TypeError
        If model is no module.
    """
    swap = Swap([], {})
    for name, module in _modules_of(model, "convert"):
        kind = type(module)
        if kind in OURS:
            module.__class__ = OURS[kind]
            swap.swapped.append(name)
        elif isinstance(module, tuple(OURS)) and kind not in THEIRS:
            swap.kept[name] = f"{kind.__qualname__} is a subclass of a dropout module"
        elif isinstance(module, (nn.MultiheadAttention, nn.RNNBase)) and module.dropout:
            swap.kept[name] = f"{kind.__qualname__} calls dropout itself; accelerate() reaches it"
    return swap


def revert(model: nn.Module) -> Swap:
    """Undo `convert`: make each of our modules in `model` PyTorch's, in place.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    Swap
        As of `convert`. A module with a generator of its own is kept: PyTorch's have none.

    Raises
    ------
    TypeError
        If model is no module.
    """
    swap = Swap([], {})
    for name, module in _modules_of(model, "revert"):
        kind = type(module)
        if kind in THEIRS and module.generator is None:
            module.__class__ = THEIRS[kind]
            swap.swapped.append(name)
        elif kind in THEIRS:
            swap.kept[name] = f"{kind.__qualname__} has a generator, which PyTorch's has not"
    return swap


def _modules_of(model: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} takes a torch.nn.Module, but got {type(model).__name__}")
    return list(model.named_modules())
