"""Dropout as modules: forward, backward, train and eval, for networks of NumPy arrays."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, overload

from cdropout import functional
from cdropout._core.arguments import check_flag, check_probability
from cdropout._core.generator import own_generator
from cdropout.functional import dropout, dropout_backward

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import ClassVar, Self

    from numpy.typing import NDArray

    from cdropout._core.mask import Mask
    from cdropout.typing import RNG, Array, Exporter, Output, Probability, Scalar, Shape


class Dropout:
    """Zero elements with probability `p` during training; scale the others by ``1 / (1 - p)``.

    Every forward call draws a new mask. In evaluation the input is returned as it is.

    Parameters
    ----------
    p : float, default 0.5
        The probability that an element is dropped, in [0, 1].
    inplace : bool, default False
        Write the result of forward to its input.
    rng : None, Generator, int, numpy.random.Generator or numpy.random.SeedSequence
        Where masks come from: the default generator (see `manual_seed`), another one, or the seed
        of one of its own.
        Two modules with the same int draw the same masks: give layers one Generator, or different
        seeds.

    Attributes
    ----------
    p, inplace
        As given; they may be changed at any time.
    training : bool
        True until `eval` is called.
    mask : Mask or None
        That of the last forward, in evaluation one that keeps everything; None before the first.

    Raises
    ------
    TypeError, ValueError
        If p is not a number in [0, 1], inplace is not a bool, or rng is of another type.

    Examples
    --------
    >>> import numpy as np
    >>> m = Dropout(p=0.2, rng=0)
    >>> y = m(np.ones((2, 3), np.float32))
    >>> gx = m.backward(np.ones_like(y))
    >>> m
    Dropout(p=0.2, inplace=False)
    """

    def __init__(self, p: Probability = 0.5, inplace: bool = False, *, rng: RNG = None) -> None:
        check_flag(inplace, "inplace")
        check_probability(p)
        self.p = p
        self.inplace = inplace
        self.training = True
        self.mask: Mask | None = None
        self._rng = own_generator(rng)

    @overload
    def forward(self, x: Array[Shape, Scalar]) -> Array[Shape, Scalar]: ...
    @overload
    def forward(self, x: Exporter) -> NDArray[Any]: ...
    def forward(self, x: Any) -> Any:
        """Return x dropped and scaled, as `dropout` does; in evaluation x itself."""
        y, self.mask = dropout(
            x, self.p, self.training, self.inplace, rng=self._rng, return_mask=True
        )
        return y

    @overload
    def __call__(self, x: Array[Shape, Scalar]) -> Array[Shape, Scalar]: ...
    @overload
    def __call__(self, x: Exporter) -> NDArray[Any]: ...
    def __call__(self, x: Any) -> Any:
        """The same as forward."""
        return self.forward(x)

    @overload
    def backward(
        self,
        gy: Array[Shape, Scalar],
        *,
        mask: Mask | None = None,
        out: Array[Shape, Scalar] | None = None,
    ) -> Array[Shape, Scalar]: ...
    @overload
    def backward(self, gy: Exporter, *, mask: Mask | None = None, out: Output) -> Output: ...
    @overload
    def backward(
        self, gy: Exporter, *, mask: Mask | None = None, out: None = None
    ) -> NDArray[Any]: ...
    def backward(self, gy: Any, *, mask: Mask | None = None, out: Any = None) -> Any:
        """Return the gradient of a forward's input, given that of its output.

        Parameters
        ----------
        gy : ndarray
        mask : Mask, optional
            The `mask` that the module had after that forward; by default that of the last one.
        out : ndarray, optional
            Takes the result, as in `dropout_backward`.

        Raises
        ------
        RuntimeError
            If there was no forward yet, and no mask is given.
        """
        mask = self.mask if mask is None else mask
        if mask is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward was called before forward: there is no mask; "
                "call forward first, or pass mask="
            )
        return dropout_backward(gy, mask, out=out)

    def train(self, mode: bool = True) -> Self:
        """Drop from now on, or with ``mode=False`` stop dropping; return the module.

        Raises
        ------
        TypeError
            If mode is not a bool.
        """
        check_flag(mode, "mode")
        self.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Return inputs as they are from now on; return the module."""
        return self.train(False)

    def extra_repr(self) -> str:
        """What stands between the brackets of repr."""
        return f"p={self.p}, inplace={self.inplace}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class _Variant(Dropout):
    """A module of another function with dropout's arguments."""

    function: ClassVar[Callable[..., Any]]

    @overload
    def forward(self, x: Array[Shape, Scalar]) -> Array[Shape, Scalar]: ...
    @overload
    def forward(self, x: Exporter) -> NDArray[Any]: ...
    def forward(self, x: Any) -> Any:
        """Return the function of x; shapes, types and errors are the function's."""
        y, self.mask = self.function(
            x, self.p, self.training, self.inplace, rng=self._rng, return_mask=True
        )
        return y


class Dropout1d(_Variant):
    """`dropout1d` as a module: whole channels of (N, C, L) or (C, L). Otherwise as `Dropout`."""

    function = staticmethod(functional.dropout1d)


class Dropout2d(_Variant):
    """`dropout2d` as a module: whole channels of (N, C, H, W). Otherwise as `Dropout`."""

    function = staticmethod(functional.dropout2d)


class Dropout3d(_Variant):
    """`dropout3d` as a module: whole channels of (N, C, D, H, W) or (C, D, H, W)."""

    function = staticmethod(functional.dropout3d)


class AlphaDropout(_Variant):
    """`alpha_dropout` as a module, for SELU networks. Otherwise as `Dropout`."""

    function = staticmethod(functional.alpha_dropout)


class FeatureAlphaDropout(_Variant):
    """`feature_alpha_dropout` as a module: whole channels of (N, C, ...). Else as `Dropout`."""

    function = staticmethod(functional.feature_alpha_dropout)


class DropPath(_Variant):
    """`drop_path` as a module: whole samples of (N, ...).

    Parameters
    ----------
    p, inplace, rng
        As in `Dropout`.
    scale_by_keep : bool, default True
        Scale the samples that are kept by ``1 / (1 - p)``.
    """

    def __init__(
        self,
        p: Probability = 0.5,
        inplace: bool = False,
        *,
        scale_by_keep: bool = True,
        rng: RNG = None,
    ) -> None:
        check_flag(scale_by_keep, "scale_by_keep")
        super().__init__(p, inplace, rng=rng)
        self.scale_by_keep = scale_by_keep

    def function(
        self, x: Any, p: Probability, training: bool, inplace: bool, **options: Any
    ) -> Any:
        """The function of this module, with its option."""
        return functional.drop_path(
            x, p, training, inplace, scale_by_keep=self.scale_by_keep, **options
        )

    def extra_repr(self) -> str:
        """What stands between the brackets of repr."""
        return f"{super().extra_repr()}, scale_by_keep={self.scale_by_keep}"


@contextlib.contextmanager
def always_on(*modules: object) -> Iterator[None]:
    """Hold modules in training mode for a while, as Monte-Carlo dropout needs them at prediction.

    Parameters
    ----------
    *modules : modules, or lists, tuples, sets and dicts (their values) of modules, nested as one
    likes

    Raises
    ------
    TypeError
        If one of them is no module, that is, has no `train` method and `training` attribute.

    Notes
    -----
    At the end, after an error too, each module is put back to the mode it had.
    """
    found = list(_all_modules(modules))
    modes = [module.training for module in found]
    try:
        for module in found:
            module.train(True)
        yield
    finally:
        for module, mode in zip(found, modes, strict=True):
            module.train(mode)


def _all_modules(thing: Any) -> Iterator[Any]:
    """Every module in nested containers."""
    if isinstance(thing, dict):
        thing = tuple(thing.values())
    if isinstance(thing, (list, tuple, set, frozenset)):
        for item in thing:
            yield from _all_modules(item)
    elif hasattr(thing, "train") and hasattr(thing, "training"):
        yield from thing.modules() if hasattr(thing, "modules") else (thing,)  # torch's hold others
    else:
        raise TypeError(
            f"always_on takes modules and containers of them, but got {type(thing).__name__}"
        )
