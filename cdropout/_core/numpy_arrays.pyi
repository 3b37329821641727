"""Types of _core/numpy_arrays.pyx."""

from typing import Any

from numpy.typing import NDArray

from cdropout._core.dtypes import LISTED as LISTED
from cdropout.typing import Exporter

def from_exporter(x: Exporter, name: str) -> NDArray[Any]: ...
def take(x: Exporter) -> NDArray[Any]: ...
def place(x: Exporter, inplace: bool, out: NDArray[Any] | None) -> NDArray[Any]: ...
