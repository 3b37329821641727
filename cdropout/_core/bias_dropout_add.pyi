"""Types of _core/bias_dropout_add.pyx."""

from typing import Any, Literal, overload

from numpy.typing import NDArray

from cdropout._core.mask import Mask
from cdropout.typing import RNG, Array, Axes, Exporter, Probability, Scalar, Shape

@overload
def bias_dropout_add(
    x: Array[Shape, Scalar],
    bias: Exporter,
    residual: Exporter,
    p: Probability = 0.5,
    training: bool = True,
    *,
    rng: RNG = None,
    mask: Mask | None = None,
    return_mask: Literal[False] = False,
    out: Array[Shape, Scalar] | None = None,
) -> Array[Shape, Scalar]: ...
@overload
def bias_dropout_add(
    x: Array[Shape, Scalar],
    bias: Exporter,
    residual: Exporter,
    p: Probability = 0.5,
    training: bool = True,
    *,
    rng: RNG = None,
    mask: Mask | None = None,
    return_mask: Literal[True],
    out: Array[Shape, Scalar] | None = None,
) -> tuple[Array[Shape, Scalar], Mask]: ...
@overload
def bias_dropout_add(
    x: Exporter,
    bias: Exporter,
    residual: Exporter,
    p: Probability = 0.5,
    training: bool = True,
    *,
    rng: RNG = None,
    mask: Mask | None = None,
    return_mask: Literal[False] = False,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
@overload
def bias_dropout_add(
    x: Exporter,
    bias: Exporter,
    residual: Exporter,
    p: Probability = 0.5,
    training: bool = True,
    *,
    rng: RNG = None,
    mask: Mask | None = None,
    return_mask: Literal[True],
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Mask]: ...
@overload
def bias_dropout_add(
    x: Exporter,
    bias: Exporter,
    residual: Exporter,
    p: Probability = 0.5,
    training: bool = True,
    *,
    rng: RNG = None,
    mask: Mask | None = None,
    return_mask: bool,
    out: NDArray[Any] | None = None,
) -> NDArray[Any] | tuple[NDArray[Any], Mask]: ...
@overload
def bias_dropout_add_backward(
    gy: Array[Shape, Scalar], mask: Mask, bias_shape: Axes | None = None
) -> tuple[Array[Shape, Scalar], NDArray[Scalar], Array[Shape, Scalar]]: ...
@overload
def bias_dropout_add_backward(
    gy: Exporter, mask: Mask, bias_shape: Axes | None = None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
