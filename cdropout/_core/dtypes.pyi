"""Types of _core/dtypes.pyx."""

from typing import Any

import numpy as np

FLOATS: tuple[str, ...]
FLOATS_TEXT: str

def element_type(name: str) -> np.dtype[Any]: ...
