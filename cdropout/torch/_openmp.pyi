"""Types of torch/_openmp.pyx."""

found: list[int]

def addresses(*names: str) -> list[int]: ...
