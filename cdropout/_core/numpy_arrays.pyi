"""Types of _core/numpy_arrays.pyx."""

from typing import Any

from numpy.typing import NDArray

from cdropout._core.dtypes import FLOATS_TEXT as FLOATS_TEXT
from cdropout.typing import Exporter

def from_exporter(x: Exporter, name: str) -> NDArray[Any]: ...
def as_any_array(x: Exporter) -> NDArray[Any]: ...
def destination(x: NDArray[Any], inplace: bool, out: NDArray[Any] | None) -> NDArray[Any]: ...
