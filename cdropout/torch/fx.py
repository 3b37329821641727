"""What torch.fx records of dropout."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import Proxy, Tracer
from torch.nn import Module
from torch.nn.modules import module as nn_module

# The modules that torch.fx records as one node, as it does torch.nn's
WHOLE: set[type] = set()
# PyTorch's functions, and ours that do the same
PUBLIC: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}


def is_symbolic(*args: Any) -> bool:
    """Return whether torch.fx traces a call with these arguments."""
    return any(isinstance(x, Proxy) for x in args)


def symbolic_call(
    function: Callable[..., Tensor],
    *args: Any,
    generator: object,
    mask: object,
    **options: Any,
) -> Any:
    """Record a call of `function` with `torch.fx.Proxy` arguments as one node."""
    tracer = next(x for x in args if isinstance(x, Proxy)).tracer
    if generator is not None:
        default = "draw from PyTorch's default generator"
        instead = f"use a module, or {default}" if function in PUBLIC.values() else default
        raise NotImplementedError(
            f"generator= cannot be recorded in a torch.fx graph by a function: {instead}"
        )
    if mask is not None:
        raise NotImplementedError("mask= cannot be recorded in a torch.fx graph")
    return tracer.create_proxy("call_function", function, args, options)


def is_recorded(module: Module, x: Any) -> bool:
    """Return whether torch.fx traces a call of one of our modules, and can record it as one node.

    As with torch.nn's modules, the root is traced into.
    """
    if type(module) not in WHOLE or not (isinstance(x, Proxy) and isinstance(x.tracer, Tracer)):
        return False
    root = x.tracer.root
    return module is not root and any(m is module for m in root.modules())


def record_module(module: Module, x: Any) -> Any:
    """Record a call of one of our modules as one node.

    torch.fx traces into modules outside of torch.nn. Its graph would otherwise keep the mode
    (training or evaluation) in which it was traced.
    """
    tracer = x.tracer
    path = tracer.path_of_module(module)
    hooks = module._forward_hooks, module._forward_pre_hooks
    if any(hooks) or nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks:
        # the hooks are traced: call forward alone
        owner = tracer.create_proxy("get_attr", path, (), {})
        return tracer.create_proxy("call_method", "forward", (owner, x), {})
    return tracer.create_proxy("call_module", path, (x,), {})
