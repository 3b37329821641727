"""Search for the functions that a module calls, without running them."""

import dis
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple


class Reference(NamedTuple):
    """A global variable or an attribute in the code of a function."""

    name: str
    value: Any  # the object, or None if it is unknown
    of_module: bool  # true for attributes of the module whose methods are searched


def is_of_package(thing: Any) -> bool:
    """Return whether a class or a function is defined in PyTorch or in cdropout."""
    return (thing.__module__ or "").partition(".")[0] in ("torch", "cdropout")


def references(kind: type, methods: Iterable[Any]) -> Iterator[Reference]:
    """Yield the references in these methods of a module, and in the functions that they refer to.

    `kind` is the class of the module. Functions of PyTorch and cdropout are not searched.
    """
    # Each item is a function and a bool, which is true if its first argument is the module
    pending: list[tuple[Any, bool]] = [(method, True) for method in methods]
    seen: set[CodeType] = set()
    for function, is_method in pending:  # the loop appends to this list
        pending += [(inner, is_method) for inner in _functions_within(function)]
        if (
            not isinstance(function, FunctionType)
            or function.__code__ in seen
            or is_of_package(function)
        ):
            continue
        code = function.__code__
        seen.add(code)
        owner = code.co_varnames[0] if is_method and code.co_argcount else None
        for reference in _references_in(code, kind, owner, function.__globals__):
            yield reference
            pending.append((reference.value, reference.of_module))
            if reference.name == "super":
                bases = [vars(base).get(function.__name__) for base in kind.__mro__]
                pending += [(method, True) for method in bases]


def _functions_within(function: Any) -> list[Any]:
    """Return the functions that `function` wraps, such as the getter of a property."""
    if isinstance(function, MethodType):
        return [function.__func__]
    if isinstance(function, property):
        return [function.fget]
    inner = [function.func] if isinstance(function, (partial, cached_property)) else []
    attributes = getattr(function, "__dict__", {})
    return [*inner, attributes["__wrapped__"]] if "__wrapped__" in attributes else inner


def _references_in(
    code: CodeType, kind: type, owner: str | None, names: dict[str, Any]
) -> Iterator[Reference]:
    """Yield the references in the code; `owner` is the variable that contains the module."""
    variable: Any = None  # the variable that the previous instruction loads
    value: Any = None  # the object that the previous instruction loads
    for instruction in dis.get_instructions(code):
        name = instruction.argval
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            of_module = variable == owner is not None
            if of_module:
                value = getattr(kind, name, None)
            else:  # vars does not load lazy attributes of modules
                value = vars(value).get(name) if isinstance(value, ModuleType) else None
            yield Reference(name, value, of_module)
        elif instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            value = names.get(name)
            yield Reference(name, value, False)
        else:
            value = None
        loads = instruction.opname.startswith(("LOAD_FAST", "LOAD_DEREF"))
        variable = (name[-1] if isinstance(name, tuple) else name) if loads else None
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _references_in(constant, kind, owner, names)
