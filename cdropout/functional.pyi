"""Types of functional.py: each variant of dropout is overloaded as `dropout` itself."""

from typing import Any, Literal, Protocol, SupportsIndex, overload

from numpy.typing import NDArray

from cdropout._core.bias_dropout_add import bias_dropout_add, bias_dropout_add_backward
from cdropout._core.dropout import dropout, dropout_backward
from cdropout._core.mask import Mask
from cdropout.typing import RNG, Array, Exporter, Output, Probability, Scalar, Shape

__all__ = [
    "alpha_dropout",
    "bias_dropout_add",
    "bias_dropout_add_backward",
    "drop_path",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "dropout_backward",
    "feature_alpha_dropout",
    "mc_dropout",
]

class _Variant(Protocol):
    @overload
    def __call__(
        self,
        x: Array[Shape, Scalar],
        p: Probability = 0.5,
        training: bool = ...,
        inplace: bool = False,
        *,
        rng: RNG = None,
        mask: Mask | None = None,
        return_mask: Literal[False] = False,
        out: Array[Shape, Scalar] | None = None,
    ) -> Array[Shape, Scalar]: ...
    @overload
    def __call__(
        self,
        x: Array[Shape, Scalar],
        p: Probability = 0.5,
        training: bool = ...,
        inplace: bool = False,
        *,
        rng: RNG = None,
        mask: Mask | None = None,
        return_mask: Literal[True],
        out: Array[Shape, Scalar] | None = None,
    ) -> tuple[Array[Shape, Scalar], Mask]: ...
    @overload
    def __call__(
        self,
        x: Exporter,
        p: Probability = 0.5,
        training: bool = ...,
        inplace: Literal[False] = False,
        *,
        rng: RNG = None,
        mask: Mask | None = None,
        return_mask: Literal[False] = False,
        out: Output,
    ) -> Output: ...
    @overload
    def __call__(
        self,
        x: Exporter,
        p: Probability = 0.5,
        training: bool = ...,
        inplace: bool = False,
        *,
        rng: RNG = None,
        mask: Mask | None = None,
        return_mask: Literal[False] = False,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]: ...
    @overload
    def __call__(
        self,
        x: Exporter,
        p: Probability = 0.5,
        training: bool = ...,
        inplace: bool = False,
        *,
        rng: RNG = None,
        mask: Mask | None = None,
        return_mask: Literal[True],
        out: NDArray[Any] | None = None,
    ) -> tuple[NDArray[Any], Mask]: ...
    @overload
    def __call__(
        self,
        x: Exporter,
        p: Probability = 0.5,
        training: bool = ...,
        inplace: bool = False,
        *,
        rng: RNG = None,
        mask: Mask | None = None,
        return_mask: bool,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any] | tuple[NDArray[Any], Mask]: ...

class _DropPath(Protocol):
    @overload
    def __call__(
        self,
        x: Array[Shape, Scalar],
        p: Probability = 0.5,
        training: bool = ...,
        inplace: bool = False,
        *,
        scale_by_keep: bool = True,
        rng: RNG = None,
        mask: Mask | None = None,
        return_mask: Literal[False] = False,
        out: Array[Shape, Scalar] | None = None,
    ) -> Array[Shape, Scalar]: ...
    @overload
    def __call__(
        self,
        x: Array[Shape, Scalar],
        p: Probability = 0.5,
        training: bool = ...,
        inplace: bool = False,
        *,
        scale_by_keep: bool = True,
        rng: RNG = None,
        mask: Mask | None = None,
        return_mask: Literal[True],
        out: Array[Shape, Scalar] | None = None,
    ) -> tuple[Array[Shape, Scalar], Mask]: ...
    @overload
    def __call__(
        self,
        x: Exporter,
        p: Probability = 0.5,
        training: bool = ...,
        inplace: Literal[False] = False,
        *,
        scale_by_keep: bool = True,
        rng: RNG = None,
        mask: Mask | None = None,
        return_mask: Literal[False] = False,
        out: Output,
    ) -> Output: ...
    @overload
    def __call__(
        self,
        x: Exporter,
        p: Probability = 0.5,
        training: bool = ...,
        inplace: bool = False,
        *,
        scale_by_keep: bool = True,
        rng: RNG = None,
        mask: Mask | None = None,
        return_mask: Literal[False] = False,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]: ...
    @overload
    def __call__(
        self,
        x: Exporter,
        p: Probability = 0.5,
        training: bool = ...,
        inplace: bool = False,
        *,
        scale_by_keep: bool = True,
        rng: RNG = None,
        mask: Mask | None = None,
        return_mask: Literal[True],
        out: NDArray[Any] | None = None,
    ) -> tuple[NDArray[Any], Mask]: ...
    @overload
    def __call__(
        self,
        x: Exporter,
        p: Probability = 0.5,
        training: bool = ...,
        inplace: bool = False,
        *,
        scale_by_keep: bool = True,
        rng: RNG = None,
        mask: Mask | None = None,
        return_mask: bool,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any] | tuple[NDArray[Any], Mask]: ...

dropout1d: _Variant
dropout2d: _Variant
dropout3d: _Variant
drop_path: _DropPath
alpha_dropout: _Variant
feature_alpha_dropout: _Variant

def as_copies(n: object) -> None: ...
@overload
def mc_dropout(
    x: NDArray[Scalar],
    p: Probability = 0.5,
    n: SupportsIndex = 1,
    *,
    rng: RNG = None,
    mask: Mask | None = None,
    return_mask: Literal[False] = False,
    out: NDArray[Scalar] | None = None,
) -> NDArray[Scalar]: ...
@overload
def mc_dropout(
    x: NDArray[Scalar],
    p: Probability = 0.5,
    n: SupportsIndex = 1,
    *,
    rng: RNG = None,
    mask: Mask | None = None,
    return_mask: Literal[True],
    out: NDArray[Scalar] | None = None,
) -> tuple[NDArray[Scalar], Mask]: ...
@overload
def mc_dropout(
    x: Exporter,
    p: Probability = 0.5,
    n: SupportsIndex = 1,
    *,
    rng: RNG = None,
    mask: Mask | None = None,
    return_mask: Literal[False] = False,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
@overload
def mc_dropout(
    x: Exporter,
    p: Probability = 0.5,
    n: SupportsIndex = 1,
    *,
    rng: RNG = None,
    mask: Mask | None = None,
    return_mask: Literal[True],
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Mask]: ...
@overload
def mc_dropout(
    x: Exporter,
    p: Probability = 0.5,
    n: SupportsIndex = 1,
    *,
    rng: RNG = None,
    mask: Mask | None = None,
    return_mask: bool,
    out: NDArray[Any] | None = None,
) -> NDArray[Any] | tuple[NDArray[Any], Mask]: ...
