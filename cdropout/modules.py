"""Modules that apply dropout to NumPy arrays, with forward, backward, train and eval."""

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

    Each call of `forward` draws a new mask. In evaluation, `forward` returns its input.

    Parameters
    ----------
    p : float, default 0.5
        The probability that an element is dropped, in [0, 1].
    inplace : bool, default False
        Write the result of `forward` to its input.
    rng : None, Generator, int, numpy.random.Generator or numpy.random.SeedSequence
        The source of masks. If None, the default generator is used (see `manual_seed`). If rng is
        an int, a NumPy generator or a SeedSequence, a new Generator is created from it.

    Attributes
    ----------
    p : float
    inplace : bool
    training : bool
        Whether elements are dropped. It is True initially; `train` and `eval` set it.
    mask : Mask or None
        The mask of the last call of `forward`; None before the first call. In evaluation, the mask
        keeps all elements.

    Raises
    ------
    TypeError, ValueError
        If p is not a number in [0, 1], inplace is not a bool, or rng is of the wrong type.

    Notes
    -----
    Two modules with the same int as rng draw the same masks. Use one Generator for all layers of a
    network, or different seeds.

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> m = cdropout.Dropout(p=0.2, rng=0)
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
        """Apply dropout to x; in evaluation, return x itself.

        Parameters
        ----------
        x : ndarray
            The input, of a type that the function of the module supports (see `dropout`).

        Returns
        -------
        ndarray

        Raises
        ------
        TypeError, ValueError, RuntimeError
            For the same reasons as in the function of the module.

        Examples
        --------
        >>> import numpy as np
        >>> import cdropout
        >>> m = cdropout.Dropout(p=0.5, rng=0)
        >>> y = m.forward(np.ones(4))  # the same as m(np.ones(4))
        >>> m.mask
        Mask((4,), p=0.5, seed=0, call=0)
        """
        y, self.mask = dropout(
            x, self.p, self.training, self.inplace, rng=self._rng, return_mask=True
        )
        return y

    @overload
    def __call__(self, x: Array[Shape, Scalar]) -> Array[Shape, Scalar]: ...
    @overload
    def __call__(self, x: Exporter) -> NDArray[Any]: ...
    def __call__(self, x: Any) -> Any:
        """Return ``forward(x)``."""
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
        """Return the gradient with respect to the input of `forward`.

        Parameters
        ----------
        gy : ndarray
            The gradient with respect to the output.
        mask : Mask, optional
            The mask of an earlier call of `forward`. The default is the mask of the last call.
        out : ndarray, optional
            The array for the result, as in `dropout_backward`.

        Returns
        -------
        ndarray

        Raises
        ------
        RuntimeError
            If `forward` was not called before, and no mask is given.
        TypeError, ValueError
            For the same reasons as in `dropout_backward`.

        Examples
        --------
        >>> import numpy as np
        >>> import cdropout
        >>> m = cdropout.Dropout(p=0.5, rng=0)
        >>> y = m(np.ones(4))
        >>> bool((m.backward(np.ones(4)) == y).all())
        True
        """
        mask = self.mask if mask is None else mask
        if mask is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward was called before forward: there is no mask; "
                "call forward first, or pass mask="
            )
        return dropout_backward(gy, mask, out=out)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, or evaluation mode if mode is False.

        Parameters
        ----------
        mode : bool, default True
            The value for the attribute `training`.

        Returns
        -------
        Dropout
            The module itself.

        Raises
        ------
        TypeError
            If mode is not a bool.

        Examples
        --------
        >>> import cdropout
        >>> cdropout.Dropout().train(False).training
        False
        """
        check_flag(mode, "mode")
        self.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Set evaluation mode: `forward` then returns its input.

        Returns
        -------
        Dropout
            The module itself.

        Examples
        --------
        >>> import numpy as np
        >>> import cdropout
        >>> m, x = cdropout.Dropout().eval(), np.ones(4)
        >>> m(x) is x
        True
        """
        return self.train(False)

    def extra_repr(self) -> str:
        """Return the arguments that repr shows."""
        return f"p={self.p}, inplace={self.inplace}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class _Variant(Dropout):
    """Apply ``_function``, which has the arguments of `dropout` except broadcast_dims."""

    _function: ClassVar[Callable[..., Any]]

    @overload
    def forward(self, x: Array[Shape, Scalar]) -> Array[Shape, Scalar]: ...
    @overload
    def forward(self, x: Exporter) -> NDArray[Any]: ...
    def forward(self, x: Any) -> Any:
        """Apply ``_function`` to x; in evaluation, return x itself."""
        y, self.mask = self._function(
            x, self.p, self.training, self.inplace, rng=self._rng, return_mask=True
        )
        return y


class Dropout1d(_Variant):
    """Zero whole channels with probability `p` during training, as `dropout1d` does.

    The methods are those of `Dropout`.

    Parameters
    ----------
    p, inplace, rng
        As in `Dropout`; p is the probability that a channel is dropped.

    Raises
    ------
    TypeError, ValueError
        For the same reasons as in `Dropout`.

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> y = cdropout.Dropout1d(p=0.5, rng=3)(np.ones((2, 3, 100)))
    >>> sorted(set(y.reshape(6, 100).sum(axis=1).tolist()))  # each channel is dropped or doubled
    [0.0, 200.0]
    """

    _function = staticmethod(functional.dropout1d)


class Dropout2d(_Variant):
    """Zero whole channels with probability `p` during training, as `dropout2d` does.

    The methods are those of `Dropout`.

    Parameters
    ----------
    p, inplace, rng
        As in `Dropout`; p is the probability that a channel is dropped.

    Raises
    ------
    TypeError, ValueError
        For the same reasons as in `Dropout`.

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> y = cdropout.Dropout2d(p=0.5, rng=3)(np.ones((2, 3, 10, 10)))
    >>> sorted(set(y.reshape(6, 100).sum(axis=1).tolist()))  # each channel is dropped or doubled
    [0.0, 200.0]
    """

    _function = staticmethod(functional.dropout2d)


class Dropout3d(_Variant):
    """Zero whole channels with probability `p` during training, as `dropout3d` does.

    The methods are those of `Dropout`.

    Parameters
    ----------
    p, inplace, rng
        As in `Dropout`; p is the probability that a channel is dropped.

    Raises
    ------
    TypeError, ValueError
        For the same reasons as in `Dropout`.

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> y = cdropout.Dropout3d(p=0.5, rng=3)(np.ones((2, 3, 4, 5, 5)))
    >>> sorted(set(y.reshape(6, 100).sum(axis=1).tolist()))  # each channel is dropped or doubled
    [0.0, 200.0]
    """

    _function = staticmethod(functional.dropout3d)


class AlphaDropout(_Variant):
    """Apply `alpha_dropout` during training, for self-normalizing networks.

    The methods are those of `Dropout`.

    Parameters
    ----------
    p, inplace, rng
        As in `Dropout`.

    Raises
    ------
    TypeError, ValueError
        For the same reasons as in `Dropout`.

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> m = cdropout.AlphaDropout(p=0.1, rng=7)
    >>> y = m(np.random.default_rng(0).standard_normal(100_000))
    >>> bool(abs(y.mean()) < 0.02 and abs(y.std() - 1) < 0.02)
    True
    """

    _function = staticmethod(functional.alpha_dropout)


class FeatureAlphaDropout(_Variant):
    """Apply `feature_alpha_dropout` to whole channels during training.

    The methods are those of `Dropout`.

    Parameters
    ----------
    p, inplace, rng
        As in `Dropout`; p is the probability that a channel is dropped.

    Raises
    ------
    TypeError, ValueError
        For the same reasons as in `Dropout`.

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> y = cdropout.FeatureAlphaDropout(p=0.5, rng=3)(np.zeros((2, 3, 100)))
    >>> len(np.unique(y))  # one value for kept and one for dropped channels
    2
    """

    _function = staticmethod(functional.feature_alpha_dropout)


class DropPath(_Variant):
    """Zero whole samples with probability `p` during training, as `drop_path` does.

    The methods are those of `Dropout`.

    Parameters
    ----------
    p, inplace, rng
        As in `Dropout`; p is the probability that a sample is dropped.
    scale_by_keep : bool, default True
        Scale kept samples by ``1 / (1 - p)``. If False, they are not scaled.

    Raises
    ------
    TypeError, ValueError
        For the same reasons as in `Dropout`, or if scale_by_keep is not a bool.

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> y = cdropout.DropPath(p=0.5, rng=7)(np.ones((8, 2, 3)))
    >>> sorted(set(y.sum(axis=(1, 2)).tolist()))  # each sample is dropped or doubled
    [0.0, 12.0]
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

    def _function(
        self, x: Any, p: Probability, training: bool, inplace: bool, **options: Any
    ) -> Any:
        """Call `drop_path` with ``scale_by_keep=self.scale_by_keep``."""
        return functional.drop_path(
            x, p, training, inplace, scale_by_keep=self.scale_by_keep, **options
        )

    def extra_repr(self) -> str:
        """Return the arguments that repr shows."""
        return f"{super().extra_repr()}, scale_by_keep={self.scale_by_keep}"


@contextlib.contextmanager
def always_on(*modules: object) -> Iterator[None]:
    """Keep dropout active within a ``with`` block, for Monte Carlo dropout at prediction.

    Parameters
    ----------
    *modules : module, list, tuple, set or dict
        Modules, or nested containers of modules. Only the values of a dict are used. A PyTorch
        model is passed to `cdropout.torch.always_on`, which leaves modules such as batch norm
        unchanged.

    Raises
    ------
    TypeError
        If an object has no method `train` or no attribute `training`.

    Notes
    -----
    The modules are in training mode within the block. At the end of the block, each module returns
    to its previous mode, even if an error is raised.

    Examples
    --------
    >>> import cdropout
    >>> m = cdropout.Dropout(p=0.2).eval()
    >>> with cdropout.always_on(m):
    ...     m.training
    True
    >>> m.training
    False
    """
    found = list(_all_modules(modules))
    models = [module for module in found if hasattr(module, "modules")]  # PyTorch modules
    found = [module for module in found if not hasattr(module, "modules")]
    modes = [module.training for module in found]
    with contextlib.ExitStack() as stack:
        if models:
            from cdropout import torch

            stack.enter_context(torch.always_on(*models))
        try:
            for module in found:
                module.train(True)
            yield
        finally:
            for module, mode in zip(found, modes, strict=True):
                module.train(mode)


def _all_modules(thing: Any) -> Iterator[Any]:
    """Yield the modules in nested containers; raise a TypeError for other objects."""
    if isinstance(thing, dict):
        thing = tuple(thing.values())
    if isinstance(thing, (list, tuple, set, frozenset)):
        for item in thing:
            yield from _all_modules(item)
    elif hasattr(thing, "train") and hasattr(thing, "training"):
        yield thing
    else:
        raise TypeError(
            f"always_on requires modules and containers of modules, but got {type(thing).__name__}"
        )
