from collections.abc import Callable, Sequence

NAME: str
WHOLE: int
SYMBOLS: list[str]

def register(
    path: str, is_registered: Callable[[str], bool], symbols: Sequence[str] = ...
) -> bool: ...
