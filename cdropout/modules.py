"""Dropout as modules: forward, backward, train and eval, as torch.nn has them, for networks of NumPy arrays."""

from cdropout.core.generators import check_probability, own_generator
from cdropout.functional import dropout, dropout_backward


class Dropout:
    """Zero each element with probability `p` during training, and scale the others by ``1 / (1 - p)``.

    Every forward call draws a new mask. In evaluation the input is returned as it is.

    Parameters
    ----------
    p : float, default 0.5
        The probability that an element is dropped, in [0, 1].
    inplace : bool, default False
        Write the result of forward to its input.
    rng : None, Generator, int, numpy.random.Generator or numpy.random.SeedSequence
        Where masks come from: the default generator (see `manual_seed`), another one, or the seed of one of its own.

    Attributes
    ----------
    p, inplace
        As given; they may be changed at any time.
    training : bool
        True until `eval` is called.
    mask : Mask or None
        That of the last forward; None before it.

    Raises
    ------
    TypeError, ValueError
        If p is no number in [0, 1], or rng is of another type.

    Examples
    --------
    >>> import numpy as np
    >>> m = Dropout(p=0.2, rng=0)
    >>> y = m(np.ones((2, 3), np.float32))
    >>> gx = m.backward(np.ones_like(y))
    >>> m
    Dropout(p=0.2, inplace=False)
    """

    def __init__(self, p=0.5, inplace=False, *, rng=None):
        check_probability(p)
        self.p = p
        self.inplace = inplace
        self.training = True
        self.mask = None
        self._rng = own_generator(rng)

    def forward(self, x):
        """Return x dropped and scaled; in evaluation x itself. Shapes, types and errors are those of `dropout`."""
        y, self.mask = dropout(x, self.p, self.training, self.inplace, rng=self._rng, return_mask=True)
        return y

    __call__ = forward

    def backward(self, gy, *, out=None):
        """Return the gradient with respect to the input of the last forward, from the gradient of its output.

        Raises
        ------
        RuntimeError
            If there was no forward yet.
        """
        if self.mask is None:
            raise RuntimeError(f"{type(self).__name__}.backward was called before forward")
        return dropout_backward(gy, self.mask, out=out)

    def train(self, mode=True):
        """Drop from now on, or with ``mode=False`` stop dropping; return the module."""
        self.training = bool(mode)
        return self

    def eval(self):
        """Return inputs as they are from now on; return the module."""
        return self.train(False)

    def extra_repr(self):
        """What stands between the brackets of repr."""
        return f"p={self.p}, inplace={self.inplace}"

    def __repr__(self):
        return f"{type(self).__name__}({self.extra_repr()})"
