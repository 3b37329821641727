"""Types of _core/dropout.pyx."""

from typing import Any, Literal, overload

from numpy.typing import NDArray
from typing_extensions import TypeVar

from cdropout._core.mask import Mask
from cdropout.typing import RNG, Array, Axes, Exporter, GivenMask, Probability, Scalar, Shape

_Given = TypeVar("_Given", bound=GivenMask, default=Mask)
_Output = TypeVar("_Output", bound=NDArray[Any], default=NDArray[Any])

@overload
def dropout(
    x: Array[Shape, Scalar],
    p: Probability = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    rng: RNG = None,
    broadcast_dims: Axes = (),
    mask: GivenMask | None = None,
    return_mask: Literal[False] = False,
    out: Array[Shape, Scalar] | None = None,
) -> Array[Shape, Scalar]: ...
@overload
def dropout(
    x: Array[Shape, Scalar],
    p: Probability = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    rng: RNG = None,
    broadcast_dims: Axes = (),
    mask: _Given | None = None,
    return_mask: Literal[True],
    out: Array[Shape, Scalar] | None = None,
) -> tuple[Array[Shape, Scalar], _Given | Mask]: ...
@overload
def dropout(
    x: Exporter,
    p: Probability = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    rng: RNG = None,
    broadcast_dims: Axes = (),
    mask: GivenMask | None = None,
    return_mask: Literal[False] = False,
    out: _Output | None = None,
) -> _Output: ...
@overload
def dropout(
    x: Exporter,
    p: Probability = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    rng: RNG = None,
    broadcast_dims: Axes = (),
    mask: _Given | None = None,
    return_mask: Literal[True],
    out: _Output | None = None,
) -> tuple[_Output, _Given | Mask]: ...
@overload
def dropout(
    x: Exporter,
    p: Probability = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    rng: RNG = None,
    broadcast_dims: Axes = (),
    mask: _Given | None = None,
    return_mask: bool,
    out: _Output | None = None,
) -> _Output | tuple[_Output, _Given | Mask]: ...
@overload
def dropout_backward(
    gy: Array[Shape, Scalar],
    mask: GivenMask,
    inplace: bool = False,
    *,
    p: Probability | None = None,
    out: Array[Shape, Scalar] | None = None,
) -> Array[Shape, Scalar]: ...
@overload
def dropout_backward(
    gy: Exporter,
    mask: GivenMask,
    inplace: bool = False,
    *,
    p: Probability | None = None,
    out: _Output | None = None,
) -> _Output: ...
def dropout_features(
    x: Exporter,
    leading: int,
    p: Probability,
    training: bool,
    inplace: bool,
    rng: RNG,
    mask: Mask | None,
    return_mask: bool,
    out: NDArray[Any] | None,
    scale: float | None = None,
    shift: tuple[float, float] | None = None,
) -> Any: ...
