"""An Ops for thinc and spaCy whose dropout masks this package draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

try:
    from thinc.backends import NumpyOps, set_current_ops
except ImportError as error:
    raise ImportError("cdropout.thinc needs thinc: pip install thinc") from error

from cdropout._core.mask import Mask

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["CdropoutOps", "use_cdropout"]


class CdropoutOps(NumpyOps):
    """thinc's `NumpyOps`, but for the dropout masks.

    thinc finds it by its entry point: ``use_ops("cdropout")`` in Python, ``@ops = "CdropoutOps"``
    in a config. Every layer that asks its ops for a mask draws from it: `Dropout`, those with a
    ``dropout=`` of their own, the embeddings and the LSTM.

    Notes
    -----
    A layer, or a copy of one, keeps the ops that were current when it was made. The few masks that
    spaCy's transition parser asks thinc's `NumpyOps` for by name stay with it.
    """

    name = "cdropout"

    def get_dropout_mask(self, shape: tuple[int, ...], drop: float | None) -> NDArray[np.float32]:
        """Return 0 with probability `drop`, else ``1 / (1 - drop)``: a float32 array of `shape`.

        Parameters
        ----------
        shape : tuple of int
        drop : float or None
            None and what is not above 0 give ones, 1 and more zeros and nothing is drawn, as thinc
            has it.

        Raises
        ------
        TypeError, ValueError
            If drop is no number, or NaN.

        Notes
        -----
        The seed of each mask is drawn from NumPy's global generator, which thinc's own masks come
        from too: whatever makes those repeatable, `thinc.api.fix_random_seed` or
        ``numpy.random.seed``, does so for these.
        """
        if drop is None or drop <= 0 or drop >= 1:
            return super().get_dropout_mask(shape, drop)
        seed = np.random.randint(1 << 64, dtype=np.uint64)
        return Mask(shape, drop, seed).to_scale()


def use_cdropout() -> Callable[[Any], Any]:
    """Return a callback for spaCy that makes `CdropoutOps` the current ops.

    In ``[nlp.before_creation]`` of a config it is ``@callbacks = "cdropout.use_cdropout.v1"``. The
    trained pipeline keeps that name: whoever loads it needs this package too.
    """

    def before_creation(language: Any) -> Any:
        set_current_ops(CdropoutOps())
        return language

    return before_creation
