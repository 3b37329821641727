"""Recording of dropout in graphs of torch.fx."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import Proxy, Tracer
from torch.nn import Module
from torch.nn.modules import module as nn_module

# Classes of modules whose calls torch.fx records as one node, like calls of torch.nn's modules
LEAF_MODULES: set[type] = set()
# A dict from PyTorch's functions for dropout to the functions of this package that replace them
REPLACEMENTS: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}


def has_proxy(*args: Any) -> bool:
    """Return whether an argument is a Proxy, which means that torch.fx traces the call."""
    return any(isinstance(x, Proxy) for x in args)


def record_call(
    function: Callable[..., Tensor],
    *args: Any,
    generator: object,
    mask: object,
    **options: Any,
) -> Any:
    """Record a call of `function` as one node, and return the Proxy of the result."""
    tracer = next(x for x in args if isinstance(x, Proxy)).tracer
    if generator is not None:
        default = "draw from PyTorch's default generator"
        instead = f"use a module, or {default}" if function in REPLACEMENTS.values() else default
        raise NotImplementedError(
            f"generator= cannot be recorded in a torch.fx graph by a function: {instead}"
        )
    if mask is not None:
        raise NotImplementedError("mask= cannot be recorded in a torch.fx graph")
    return tracer.create_proxy("call_function", function, args, options)


def is_traced_leaf(module: Module, x: Any) -> bool:
    """Return whether torch.fx traces this call of `module` and can record the call as one node.

    This requires a module of this package that is a part of the traced model, but not its root.
    Likewise, torch.fx does not record a root from torch.nn as one node.
    """
    if not (isinstance(x, Proxy) and isinstance(x.tracer, Tracer)):
        return False
    if type(module) not in LEAF_MODULES:
        return False
    root = x.tracer.root
    return module is not root and any(m is module for m in root.modules())


def record_module(module: Module, x: Any) -> Any:
    """Record a call of `module` as one node, and return the Proxy of the result.

    By default, torch.fx records the operations within modules that are not from torch.nn. The graph
    would then contain the mode, training or evaluation, that was set during tracing.
    """
    tracer = x.tracer
    path = tracer.path_of_module(module)
    hooks = module._forward_hooks, module._forward_pre_hooks
    if any(hooks) or nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks:
        # torch.fx also records the calls of hooks, so the node must call only forward
        owner = tracer.create_proxy("get_attr", path, (), {})
        return tracer.create_proxy("call_method", "forward", (owner, x), {})
    return tracer.create_proxy("call_module", path, (x,), {})
