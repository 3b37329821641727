"""Types of _core/dtypes.pyx."""

from typing import Any

import numpy as np

FLOATS: tuple[str, ...]
LISTED: str

def element_type(name: str) -> np.dtype[Any]: ...
