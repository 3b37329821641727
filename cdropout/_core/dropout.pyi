"""Types of _core/dropout.pyx."""

from typing import Any, Literal, TypeVar, overload

from numpy.typing import NDArray

from cdropout._core.mask import Mask
from cdropout.typing import (
    RNG,
    Array,
    Axes,
    Exporter,
    GivenMask,
    Output,
    Probability,
    Scalar,
    Shape,
)

_Given = TypeVar("_Given", bound=GivenMask)

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
    mask: Mask | None = None,
    return_mask: Literal[True],
    out: Array[Shape, Scalar] | None = None,
) -> tuple[Array[Shape, Scalar], Mask]: ...
@overload
def dropout(
    x: Array[Shape, Scalar],
    p: Probability = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    rng: RNG = None,
    broadcast_dims: Axes = (),
    mask: _Given,
    return_mask: Literal[True],
    out: Array[Shape, Scalar] | None = None,
) -> tuple[Array[Shape, Scalar], _Given | Mask]: ...
@overload
def dropout(
    x: Exporter,
    p: Probability = 0.5,
    training: bool = True,
    inplace: Literal[False] = False,
    *,
    rng: RNG = None,
    broadcast_dims: Axes = (),
    mask: GivenMask | None = None,
    return_mask: Literal[False] = False,
    out: Output,
) -> Output: ...
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
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
@overload
def dropout(
    x: Exporter,
    p: Probability = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    rng: RNG = None,
    broadcast_dims: Axes = (),
    mask: Mask | None = None,
    return_mask: Literal[True],
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Mask]: ...
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
    out: NDArray[Any] | None = None,
) -> NDArray[Any] | tuple[NDArray[Any], _Given | Mask]: ...
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
    inplace: Literal[False] = False,
    *,
    p: Probability | None = None,
    out: Output,
) -> Output: ...
@overload
def dropout_backward(
    gy: Exporter,
    mask: GivenMask,
    inplace: bool = False,
    *,
    p: Probability | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
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
