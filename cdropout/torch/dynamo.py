"""Guards for torch.compile on whether PyTorch's dropout is replaced."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch._dynamo
from torch._C._dynamo.eval_frame import (
    _FrameAction,
    _FrameExecStrategy,
    set_code_exec_strategy,
)
from torch._dynamo.convert_frame import compile_lock, input_codes
from torch._dynamo.guards import GuardBuilder
from torch._dynamo.output_graph import OutputGraph
from torch._dynamo.source import AttrSource, GlobalSource

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["compile_lock", "guard_on", "never_compile"]

SWITCH = "__cdropout_switch"  # guards read this global variable in the module of compiled code


def guard_on(switch: Any) -> None:
    """Compile separate code for each value of ``switch.active``, which is a bool.

    Each compiled graph has guards on PyTorch's global state, such as the grad mode. The value of
    ``switch.active`` becomes a part of this state, in the guards and in the keys of the caches on
    the disk. The keys remain the same while the value is False. Graphs that were compiled earlier
    have no such guard and are deleted.
    """
    from torch._functorch._aot_autograd import autograd_cache  # this import takes half a second

    graph: Any = OutputGraph
    cache_details: Any = autograd_cache.FxGraphHashDetails
    init_ambient_guards, init_details = graph.init_ambient_guards, cache_details.__init__

    @functools.wraps(init_ambient_guards)
    def add_guard(output: Any) -> None:
        init_ambient_guards(output)
        output.global_scope[SWITCH] = switch
        source = AttrSource(GlobalSource(SWITCH), "active")
        output.guards.add(source.make_guard(GuardBuilder.CONSTANT_MATCH))

    @functools.wraps(init_details)
    def add_state(details: Any, *args: Any, **kwargs: Any) -> None:
        init_details(details, *args, **kwargs)
        if switch.active:
            details.cdropout_replaces_dropout = True

    graph.init_ambient_guards, cache_details.__init__ = add_guard, add_state
    if input_codes.seen:
        torch._dynamo.reset_code_caches()


def never_compile(function: Callable[..., Any]) -> None:
    """Make torch.compile run `function`, and the functions that it calls, without compiling them.

    Unlike `torch.compiler.disable`, this adds no work to a call.
    """
    strategy = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)
    set_code_exec_strategy(function.__code__, strategy)
