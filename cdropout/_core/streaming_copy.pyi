"""Types of _core/streaming_copy.pyx."""

from typing import Any

from numpy.typing import NDArray

streams: bool

def stream_copy(to: NDArray[Any], source: NDArray[Any]) -> None: ...
