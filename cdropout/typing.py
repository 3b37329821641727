"""Types of arguments and results, for annotations."""

from typing import Any, Protocol, SupportsFloat, SupportsIndex, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from cdropout._core.generator import Generator
from cdropout._core.mask import Mask

__all__ = [
    "RNG",
    "Array",
    "Axes",
    "Exporter",
    "GivenMask",
    "Output",
    "Probability",
    "Scalar",
    "Shape",
    "SupportsBuffer",
    "SupportsDLPack",
]


class SupportsBuffer(Protocol):
    """An object with the buffer protocol, such as a memoryview, array.array or ctypes array."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """Return a view of the memory."""


class SupportsDLPack(Protocol):
    """An object with the DLPack protocol, such as a tensor of another library."""

    def __dlpack__(self) -> Any:
        """Return a capsule with a view of the memory."""

    def __dlpack_device__(self) -> tuple[Any, Any]:
        """Return the device type and the device ID of the memory."""


Probability: TypeAlias = SupportsFloat
RNG: TypeAlias = Generator | np.random.Generator | np.random.SeedSequence | SupportsIndex | None
Axes: TypeAlias = SupportsIndex | tuple[SupportsIndex, ...] | list[int]

# A mask may be an array of packed bits (uint8), of bools, or of 0 and 1 / (1 - p) in the type of x.
GivenMask: TypeAlias = Mask | NDArray[np.generic]

# Objects other than arrays that functions accept as input. The type of NumPy scalars is np.generic,
# because ml_dtypes.bfloat16 is not a subclass of np.floating.
Exporter: TypeAlias = SupportsBuffer | SupportsDLPack | np.generic

Shape = TypeVar("Shape", bound=tuple[int, ...])
Scalar = TypeVar("Scalar", bound=np.generic)
Array: TypeAlias = np.ndarray[Shape, np.dtype[Scalar]]
Output = TypeVar("Output", bound=NDArray[Any])  # the type of out and of the result
