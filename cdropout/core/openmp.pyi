"""Types of core/openmp.pyx."""

found: list[int]

def addresses(*names: str) -> list[int]: ...
