"""What the functions take and return, as types: for the `.pyi` files, and for your annotations."""

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
    """What has the buffer protocol: memoryview, array.array, an array of ctypes."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """A view of the memory."""


class SupportsDLPack(Protocol):
    """What has DLPack's protocol: the tensors of other libraries."""

    def __dlpack__(self) -> Any:
        """A capsule that holds a view of the memory."""

    def __dlpack_device__(self) -> tuple[Any, Any]:
        """The kind and number of the device that the memory belongs to."""


Probability: TypeAlias = SupportsFloat
RNG: TypeAlias = Generator | np.random.Generator | np.random.SeedSequence | SupportsIndex | None
Axes: TypeAlias = SupportsIndex | tuple[SupportsIndex, ...] | list[int]

# A mask of packed bits (uint8), of bools, or of 0 and 1 / (1 - p) in the type of x
GivenMask: TypeAlias = Mask | NDArray[np.generic]

# All that is read without a copy. Which types of elements dropout takes cannot be said here:
# ml_dtypes.bfloat16 is no np.floating, but an np.generic as all others are.
Exporter: TypeAlias = SupportsBuffer | SupportsDLPack | np.generic

Shape = TypeVar("Shape", bound=tuple[int, ...])
Scalar = TypeVar("Scalar", bound=np.generic)
Array: TypeAlias = np.ndarray[Shape, np.dtype[Scalar]]
Output = TypeVar("Output", bound=NDArray[Any])  # what was given as out, and is the result
