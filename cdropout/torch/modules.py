"""Dropout modules with the interface of torch.nn, and functions that convert a model to them."""

import re
import warnings
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdropout.torch import functional
from cdropout.torch._draw import check_generator
from cdropout.torch.autograd import Source
from cdropout.torch.bytecode import is_of_package, references
from cdropout.torch.fx import LEAF_MODULES, REPLACEMENTS, is_traced_leaf, record_module


def _check_arguments(p: float, generator: Source) -> None:
    if not 0 <= p <= 1:  # also true for NaN, which PyTorch's constructor accepts
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    check_generator(generator)


class _DropoutModule(nn.Module):
    """Base class that adds a generator to PyTorch's dropout modules."""

    generator: Source = None  # a class attribute, since `convert` does not call __init__

    def __init__(self, p: float = 0.5, inplace: bool = False, *, generator: Source = None) -> None:
        super().__init__(p, inplace)
        _check_arguments(p, generator)
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
    warnings. The module differs from PyTorch's as follows, and as described for
    `cdropout.torch.dropout`. If p is NaN, the constructor raises ValueError. Dropped elements are
    +0.0 even if the input is NaN or infinite. Errors for integer, complex, sparse and quantized
    tensors have the same type as in PyTorch, but their messages name the supported tensors.

    `torch.fx` records the module as one node, like PyTorch's module. `torch.jit.script` and
    `torch.jit.trace` use PyTorch's implementation; both raise NotImplementedError if the module
    has a generator, `torch.jit.trace` only in training mode.
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
    """`torch.nn.Dropout1d`, which drops whole channels. See `Dropout`.

    The input has the shape (N, C, L) or (C, L).
    """

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
    """`torch.nn.Dropout2d`, which drops whole channels. See `Dropout`.

    The input has the shape (N, C, H, W).
    """

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
    """`torch.nn.FeatureAlphaDropout`, which drops whole channels. See `AlphaDropout`.

    The input has the shape (N, C, ...).
    """

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


class DropPath(nn.Module):
    """Drop whole samples of an input of shape (N, ...), which is called stochastic depth.

    The module calls `cdropout.torch.drop_path` and has the interface of timm's module.

    Parameters
    ----------
    drop_prob : float, default 0.0
        The probability that a sample is dropped, in [0, 1].
    scale_by_keep : bool, default True
        If true, scale the samples that are kept by ``1 / (1 - drop_prob)``.
    generator : None, torch.Generator or cdropout.Generator
        The source of the masks; by default PyTorch's generator for the CPU.

    Raises
    ------
    ValueError
        If drop_prob is not in [0, 1].
    TypeError
        If `generator` has a type other than those above.
    """

    generator: Source = None  # a class attribute, since `convert` does not call __init__
    drop_prob: float
    scale_by_keep: bool

    def __init__(
        self, drop_prob: float = 0.0, scale_by_keep: bool = True, *, generator: Source = None
    ) -> None:
        super().__init__()
        _check_arguments(drop_prob, generator)
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep
        if generator is not None:
            self.generator = generator

    def forward(self, input: Tensor) -> Tensor:
        """Apply `cdropout.torch.drop_path`."""
        if type(input) is not Tensor and is_traced_leaf(self, input):
            return record_module(self, input)
        return functional.drop_path(
            input,
            self.drop_prob,
            self.training,
            scale_by_keep=self.scale_by_keep,
            generator=self.generator,
        )

    def extra_repr(self) -> str:
        """Return the text between the parentheses of the repr, as timm's module does."""
        return f"drop_prob={self.drop_prob:0.3f}"

    __prepare_scriptable__ = _DropoutModule.__prepare_scriptable__


class StochasticDepth(DropPath):
    """The class that `convert` gives to torchvision's StochasticDepth with mode "row"."""

    p: float
    scale_by_keep = True

    @property
    def drop_prob(self) -> float:  # type: ignore[override]
        """Return p, which is torchvision's name of this attribute."""
        return self.p

    def extra_repr(self) -> str:
        """Return the text between the parentheses of the repr, as torchvision's module does."""
        return f"p={self.p}, mode={self.mode}"


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
LEAF_MODULES |= {*TORCH_CLASSES, DropPath, StochasticDepth}
OTHER_CLASSES = {  # (package, class, mode) of other modules, and the equivalent class here
    ("timm", "DropPath", None): DropPath,
    ("torchvision", "StochasticDepth", "row"): StochasticDepth,
}
# Name of the attribute of a converted module that contains its class in timm or torchvision
ORIGINAL = "_cdropout_original_class"
OTHER_NAMES = re.compile("Drop(Path|Block)|StochasticDepth")
FUNCTIONS = {*REPLACEMENTS, F.scaled_dot_product_attention} | {
    getattr(torch, name + suffix)
    for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
    for suffix in ("", "_")
}


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
        dropout modules are kept, since they may change the computation. Attention modules and
        recurrent networks, which call dropout internally, are also kept. The same applies to
        modules whose methods call PyTorch's functions for dropout, directly or through other Python
        functions. Use `accelerate` for such modules.

    Raises
    ------
    TypeError
        If `model` is not a module.

    Warns
    -----
    UserWarning
        If no module is converted, or if methods call functions for dropout.

    Notes
    -----
    timm's DropPath and torchvision's StochasticDepth with mode "row" become modules that call
    `drop_path`; they are not instances of the original class any more. DropBlock modules, and
    StochasticDepth modules with mode "batch", are kept.

    `torch.ao.quantization.prepare_qat`, for quantization-aware training, replaces the converted
    modules by PyTorch's modules, for which it has special rules. It raises NotImplementedError for
    a module with a generator. Call `revert` before ``prepare_fx``.
    """
    swap = Swap([], {})
    calls_functions = False
    converted_before = False
    for name, module in _modules_of(model, "convert"):
        kind = type(module)
        converted_before = converted_before or kind in LEAF_MODULES
        other = kind.__module__.partition(".")[0], kind.__name__, getattr(module, "mode", None)
        if kind in CDROPOUT_CLASSES:
            module.__class__ = CDROPOUT_CLASSES[kind]
            swap.swapped.append(name)
        elif other in OTHER_CLASSES:
            module.__class__ = OTHER_CLASSES[other]
            setattr(module, ORIGINAL, kind)
            swap.swapped.append(name)
        elif isinstance(module, tuple(CDROPOUT_CLASSES)) and kind not in TORCH_CLASSES:
            swap.kept[name] = f"{kind.__qualname__} is a subclass of a dropout module"
        elif OTHER_NAMES.search(kind.__name__) and kind not in LEAF_MODULES:
            swap.kept[name] = f"{kind.__qualname__} may differ from cdropout.torch.DropPath"
        elif isinstance(module, (nn.MultiheadAttention, nn.RNNBase)) and module.dropout:
            swap.kept[name] = f"{kind.__qualname__} calls dropout internally: use accelerate()"
        elif function := next(dropout_functions(kind), None):
            calls_functions = True
            swap.kept[name] = f"{kind.__qualname__} calls {function}: use accelerate()"
    if calls_functions:
        calls = dict.fromkeys(reason for reason in swap.kept.values() if " calls " in reason)
        warnings.warn(f"convert changes modules only, but {'; '.join(calls)}", stacklevel=2)
    elif not swap.swapped and not converted_before:
        warnings.warn(
            f"convert found no dropout module that it can replace in {type(model).__qualname__}: "
            "use accelerate(), which replaces all dropout on the CPU",
            stacklevel=2,
        )
    return swap


def dropout_functions(kind: type[nn.Module]) -> Iterator[str]:
    """Yield the names of PyTorch's functions for dropout that the methods of a class refer to.

    The functions that these methods refer to are inspected too, but not those of PyTorch or
    cdropout.
    """
    classes = [base for base in kind.__mro__ if not is_of_package(base)]
    methods = [method for base in classes for method in vars(base).values()]
    for reference in references(kind, methods):
        function = reference.value
        if isinstance(function, FunctionType | BuiltinFunctionType) and function in FUNCTIONS:
            yield f"{function.__module__ or 'torch'}.{function.__name__}"


def revert(model: nn.Module) -> Swap:
    """Undo `convert`: restore the modules of PyTorch, timm and torchvision in `model`, in place.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    Swap
        See `convert`. A module with a generator is kept, since the original class has none. A
        `DropPath` that `convert` did not create is kept, since PyTorch has no such module.

    Raises
    ------
    TypeError
        If `model` is not a module.
    """
    swap = Swap([], {})
    for name, module in _modules_of(model, "revert"):
        kind: type[Any] = type(module)
        original = TORCH_CLASSES.get(kind) or getattr(module, ORIGINAL, None)
        if original is None:
            if kind is DropPath:
                swap.kept[name] = "DropPath was not converted; PyTorch has no such module"
        elif module.generator is not None:
            package = original.__module__.partition(".")[0]
            swap.kept[name] = (
                f"{kind.__qualname__} has a generator; {package}'s {original.__name__} has none"
            )
        else:
            module.__class__ = original
            vars(module).pop(ORIGINAL, None)
            swap.swapped.append(name)
    return swap


def _modules_of(model: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} takes a torch.nn.Module, but got {type(model).__name__}")
    return list(model.named_modules())


# ---- quantization -------------------------------------------------------------------------------


class _OriginalForTraining:
    """The rule by which prepare_qat replaces a converted module by PyTorch's module.

    prepare_qat inserts no observer after nn.Dropout, but it would insert one after a subclass.
    """

    @staticmethod
    def from_float(module: Any, use_precomputed_fake_quant: bool = False) -> nn.Module:
        if module.generator is not None:
            raise NotImplementedError(
                f"prepare_qat does not support a {type(module).__qualname__} with a generator, "
                "since it inserts PyTorch's modules, which have none: set module.generator = None"
            )
        original = TORCH_CLASSES[type(module)](module.p, module.inplace).train(module.training)
        original.qconfig = module.qconfig
        return original


def _register_for_quantization() -> None:
    from torch.ao.quantization import quantization_mappings as rules

    for kind, original in TORCH_CLASSES.items():
        rules.DEFAULT_QAT_MODULE_MAPPINGS[kind] = _OriginalForTraining
        if original in rules.DEFAULT_STATIC_QUANT_MODULE_MAPPINGS:
            rules.DEFAULT_STATIC_QUANT_MODULE_MAPPINGS[kind] = (
                rules.DEFAULT_STATIC_QUANT_MODULE_MAPPINGS[original]
            )


_register_for_quantization()
