from collections.abc import Callable, Sequence

NAME: str
AXIS_LENGTH: int
SYMBOLS: list[str]

def register(
    path: str, is_registered: Callable[[str], bool], symbols: Sequence[str] = ...
) -> bool: ...
