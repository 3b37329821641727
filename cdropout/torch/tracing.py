"""What torch.fx records of dropout."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import Proxy

# The modules that torch.fx records as one node, as it does torch.nn's
WHOLE: set[type] = set()
# PyTorch's functions, and ours that do the same
PUBLIC: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}


def is_symbolic(*args: Any) -> bool:
    """Return whether torch.fx traces a call with these arguments."""
    return any(isinstance(x, Proxy) for x in args)


def symbolic_call(
    function: Callable[..., Tensor], *args: Any, generator: object, **options: Any
) -> Any:
    """Record a call of `function` with `torch.fx.Proxy` arguments as one node.

    In the forward method of one of our modules, record a call of that module instead. torch.fx
    traces into modules outside of torch.nn, and its graph would otherwise keep the mode (training
    or evaluation) in which it was traced.
    """
    tracer = next(x for x in args if isinstance(x, Proxy)).tracer
    if tracer.scope.module_type in WHOLE:
        return _record_module(tracer, tracer.scope.module_path, args[0])
    if generator is not None:
        raise NotImplementedError(
            "generator= cannot be recorded in a torch.fx graph by a function: use a module"
        )
    return tracer.create_proxy("call_function", function, args, options)


def _record_module(tracer: Any, path: str, x: Proxy) -> Proxy:
    module = tracer.root.get_submodule(path)
    if module._forward_hooks or module._forward_pre_hooks:  # these are traced: call forward alone
        owner = tracer.create_proxy("get_attr", path, (), {})
        return tracer.create_proxy("call_method", "forward", (owner, x), {})
    return tracer.create_proxy("call_module", path, (x,), {})
