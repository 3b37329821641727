"""What tracers record of dropout: torch.fx's nodes, and the seeds of compiled graphs."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config as functorch_config
from torch import Tensor
from torch.fx import Proxy
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.fx.traceback import MEMORY_BUDGET_ANNOTATION_KEY
from torch.overrides import has_torch_function
from torch.utils.checkpoint import CheckpointPolicy

# ---- torch.fx -----------------------------------------------------------------------------------

# The modules that torch.fx records as one node, as it does torch.nn's; filled where they are defined
WHOLE: set[type] = set()
# PyTorch's functions, and ours which do the same
PUBLIC: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}


def is_symbolic(*args: Any) -> bool:
    """Return whether torch.fx traces a call with these arguments; cheap if all are tensors."""
    return has_torch_function(args) and any(isinstance(x, Proxy) for x in args)


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


# ---- compiled graphs ----------------------------------------------------------------------------


@torch.library.custom_op("cdropout::saved_seed", mutates_args=(), device_types="cpu")
def saved_seed(seed: Tensor) -> Tensor:
    """Return a copy of `seed`, which a compiled backward pass takes from its forward pass."""
    return seed.clone()


@saved_seed.register_fake
def _(seed: Tensor) -> Tensor:
    return torch.empty_like(seed)


@saved_seed.register_vmap
def _(info: Any, in_dims: tuple[int | None], seed: Tensor) -> tuple[Tensor, int | None]:
    return saved_seed(seed), in_dims[0]


@saved_seed.register_torch_dispatch(ProxyTorchDispatchMode)
def _(
    mode: ProxyTorchDispatchMode, op: Any, types: Any, args: Any, kwargs: Any = None
) -> Tensor:
    """Record the operator, and forbid the partitioner to compute it again for the backward pass.

    With a small ``activation_memory_budget``, the backward pass would otherwise draw another seed.
    A budget of 0 saves nothing at all, so the smallest positive one takes its place.
    """
    result = mode.__torch_dispatch__(op, types, args, kwargs)
    meta = next(node.meta for node in reversed(mode.tracer.graph.nodes) if node.target is op)
    if "recompute" in meta:  # a checkpoint decides, and restores the state of the generator
        return result
    if meta.get("custom", {}).get(MEMORY_BUDGET_ANNOTATION_KEY) == 0:
        raise RuntimeError(
            "dropout saves its seed for the backward pass, but region_activation_memory_budget(0) "
            "saves nothing: use a small positive budget"
        )
    meta["recompute"] = CheckpointPolicy.MUST_SAVE
    if functorch_config.activation_memory_budget == 0:
        meta["memory_budget"] = math.ulp(0.0)
    return result
