"""Types of torch/_openmp.pyx."""

function_addresses: list[int]

def find_functions(*names: str) -> list[int]: ...
