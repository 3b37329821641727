"""Dropout for thinc and spaCy: an Ops class that draws the dropout masks with cdropout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import thinc
    from thinc.backends import NumpyOps, Ops, get_current_ops, set_current_ops
    from thinc.model import Model
except ImportError as error:
    raise ImportError("cdropout.thinc needs thinc: run `pip install 'cdropout[thinc]'`") from error

from cdropout._core.mask import Mask
from cdropout.environment import check_version

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

check_version(thinc)

__all__ = ["CdropoutOps", "use_cdropout"]


class CdropoutOps(NumpyOps):
    """thinc's `NumpyOps` with the dropout masks of cdropout.

    An entry point registers the class with thinc. To use it, call ``use_ops("cdropout")`` in Python
    or write ``@ops = "CdropoutOps"`` in a config. The class affects all layers that get masks from
    their ops: `Dropout`, and all layers with an argument ``dropout=`` other than `PyTorchLSTM`.

    Notes
    -----
    A layer, or a copy of one, keeps the ops that were current when it was created. spaCy's
    transition parser draws a few masks from `NumpyOps` directly; these are not affected.
    """

    name = "cdropout"

    def get_dropout_mask(self, shape: tuple[int, ...], drop: float | None) -> NDArray[np.float32]:
        """Return an array whose elements are 0 with probability `drop`, else ``1 / (1 - drop)``.

        Parameters
        ----------
        shape : tuple of int
        drop : float or None
            The probability that an element is dropped. As in thinc, the result is all ones if
            `drop` is None or at most 0, and all zeros if `drop` is at least 1. In these cases, no
            mask is drawn.

        Returns
        -------
        ndarray of float32

        Raises
        ------
        TypeError
            If `drop` is neither a number nor None.
        ValueError
            If `drop` is NaN.

        Notes
        -----
        The seed of each mask is drawn from NumPy's global generator, from which thinc draws its own
        masks. `thinc.api.fix_random_seed` and ``numpy.random.seed`` therefore make masks
        reproducible.
        """
        if drop is None or drop <= 0 or drop >= 1:
            return super().get_dropout_mask(shape, drop)
        seed = np.random.randint(1 << 64, dtype=np.uint64)
        return Mask(shape, drop, seed).to_scale()


# thinc's tests compare the annotations of Ops classes with those of Ops, which vary by version.
CdropoutOps.get_dropout_mask.__annotations__ = dict(Ops.get_dropout_mask.__annotations__)


def use_cdropout() -> Callable[[Any], Any]:
    """Return a callback for spaCy that replaces `NumpyOps` by `CdropoutOps`.

    To use it, write ``before_init = {"@callbacks":"cdropout.use_cdropout.v1"}`` in ``[initialize]``
    of a config. The callback changes the current ops and those of existing layers if their type is
    `NumpyOps`. Other ops, for example those of a GPU or of a subclass of `NumpyOps`, do not change.
    spaCy resolves ``[initialize]`` for training only, so that the trained pipeline loads without
    cdropout.

    The callback also works as ``before_creation`` in ``[nlp]``. spaCy resolves ``[nlp]`` each
    time it loads the pipeline, which then requires cdropout.
    """

    def callback(language: Any) -> Any:
        ops = CdropoutOps()
        if type(get_current_ops()) is NumpyOps:
            set_current_ops(ops)
        if isinstance(language, type):  # spaCy passes the class to before_creation
            return language
        models = (getattr(pipe, "model", None) for _, pipe in language.components)
        for model in models:
            for node in model.walk() if isinstance(model, Model) else ():
                if type(node.ops) is NumpyOps:
                    node.ops = ops
        return language

    return callback
