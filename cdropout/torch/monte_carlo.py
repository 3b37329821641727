"""Dropout in evaluation mode, for Monte Carlo dropout of whole models."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cdropout.torch.bytecode import is_of_package, references
from cdropout.torch.modules import DropPath

# The modules in which `training` determines only whether dropout is active.
# TransformerEncoderLayer uses a fast path without dropout only if `training` is false.
# TransformerEncoder tests `training` of its first layer for the same purpose.
DROPOUT_MODULES = (
    nn.modules.dropout._DropoutNd,
    DropPath,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.TransformerEncoderLayer,
)
SCRIPTED_NAMES = {  # `original_name` of such modules after torch.jit.script compiled them
    *("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"),
    *("MultiheadAttention", "RNN", "LSTM", "GRU", "TransformerEncoderLayer"),
}
# Names of functions whose probability or mode usually depends on `self.training`
DROPOUT_FUNCTIONS = {
    *(name for name in dir(F) if "dropout" in name),
    *("dropout_", "alpha_dropout_", "feature_dropout", "feature_dropout_", "native_dropout"),
    *("scaled_dot_product_attention", "multi_head_attention_forward"),
    *("bernoulli", "bernoulli_", "drop_path", "drop_block_2d", "drop_block_fast_2d"),
    *("drop_block2d", "drop_block3d", "stochastic_depth", "mc_dropout", "bias_dropout_add"),
}
MAX_NAMES = 5  # maximum number of names of modules per class in a warning


@contextlib.contextmanager
def always_on(*modules: object, also: tuple[type[nn.Module], ...] = ()) -> Iterator[None]:
    """Keep dropout active within a ``with`` block, for Monte Carlo dropout at prediction.

    Parameters
    ----------
    *modules : torch.nn.Module, list, tuple, set or dict
        Models, or nested containers of models. Only the values of a dict are used.
    also : tuple of type, optional
        Other classes of modules to put in training mode. Their submodules are not affected.

    Warns
    -----
    UserWarning
        If the forward method of a module appears to call a function of dropout with
        ``self.training``. This dropout remains inactive. The warning names the module.

    Raises
    ------
    TypeError
        If an object is neither a module nor a container, or `also` is not a tuple of classes.

    See Also
    --------
    cdropout.always_on : The same for the modules of the NumPy API.

    Notes
    -----
    Within the block, the attribute `training` is True in these modules and their subclasses: the
    dropout modules of PyTorch and cdropout, `torch.nn.MultiheadAttention`, recurrent networks (RNN,
    LSTM and GRU), and `torch.nn.TransformerEncoderLayer`, which otherwise uses a fast path without
    dropout. All other modules, such as batch norm, keep their mode unless `also` contains their
    class. At the end of the block, all modules return to their previous modes, even if an error is
    raised. ``model.eval()`` within the block makes dropout inactive. The block affects all threads,
    since the mode is an attribute of a module.

    To find functional dropout, `always_on` inspects the bytecode of `forward`, and of the methods,
    properties and Python functions that `forward` uses directly or indirectly. It warns if this
    code contains the name `training` and the name of a function such as ``F.dropout``,
    ``F.scaled_dot_product_attention`` or ``drop_path``. Functions with other names, callables that
    are stored in attributes or containers, and compiled or scripted code are not found. If a module
    with functional dropout uses `training` only for dropout, pass its class in `also`.

    Gal and Ghahramani, "Dropout as a Bayesian approximation", ICML 2016.

    Examples
    --------
    >>> import torch
    >>> from cdropout.torch import always_on
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5)).eval()
    >>> with always_on(model), torch.no_grad():
    ...     samples = torch.stack([model(torch.ones(2, 8)) for _ in range(20)])
    >>> bool(samples.std(0).max() > 0), model[0].training, model[1].training
    (True, False, False)
    """
    if not (isinstance(also, tuple) and all(isinstance(kind, type) for kind in also)):
        raise TypeError(f"also has to be a tuple of classes, but got {also!r}")
    named = dict(_named_modules(modules))
    chosen = {module for module in named if _uses_training_for_dropout(module, also)}
    _warn_about_functions({m: name for m, name in named.items() if m not in chosen})
    modes = [(module, module.training) for module in named]
    try:
        for module in chosen:
            module.training = True
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _named_modules(thing: Any) -> Iterator[tuple[nn.Module, str]]:
    """Yield (module, name) for each module in nested containers, and for each of its submodules."""
    if isinstance(thing, nn.Module):
        for name, module in thing.named_modules():
            yield module, name
    elif isinstance(thing, (list, tuple, set, frozenset, dict)):
        for item in thing.values() if isinstance(thing, dict) else thing:
            yield from _named_modules(item)
    else:
        raise TypeError(
            f"always_on requires modules and containers of modules, but got {type(thing).__name__}"
        )


def _uses_training_for_dropout(module: nn.Module, also: tuple[type[nn.Module], ...]) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        return module.original_name in SCRIPTED_NAMES | {kind.__name__ for kind in also}
    return isinstance(module, (*DROPOUT_MODULES, *also))


# ---- functional dropout -------------------------------------------------------------------------


def _warn_about_functions(modules: dict[nn.Module, str]) -> None:
    found: dict[type, list[str]] = {}
    for module, name in modules.items():
        if _calls_functional_dropout(module):
            found.setdefault(type(module), []).append(repr(name) if name else "the model itself")
    if not found:
        return
    listed = "; ".join(
        f"{kind.__qualname__} ({', '.join(names[:MAX_NAMES])}{', ...' * (len(names) > MAX_NAMES)})"
        for kind, names in found.items()
    )
    warnings.warn(
        "always_on leaves the functional dropout of these modules inactive, since their forward "
        f"method reads self.training: {listed}. If they use self.training only for dropout, pass "
        "their classes as also=",
        UserWarning,
        stacklevel=4,
    )


def _calls_functional_dropout(module: nn.Module) -> bool:
    """Return whether `forward` and the functions that it refers to use `training` and dropout."""
    if is_of_package(type(module)):
        return False
    names = {
        reference.name
        for reference in references(type(module), [module.forward])
        if reference.name == "training" or not reference.of_module
    }
    return "training" in names and not names.isdisjoint(DROPOUT_FUNCTIONS)
