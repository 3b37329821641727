"""Mask: the numbers that determine which elements of an array are kept."""
cimport cython
cimport numpy as cnp

import numpy as np

from cdropout cimport cdropout_mask
from cdropout._core.numpy_arrays cimport apply_mask, as_array, destination, draw_bits, draw_bools, shape_of
from cdropout._core.dispatch cimport kernels
from cdropout._core.arguments cimport as_count, as_index, as_number, as_probability, as_seed

cnp.import_array()

cdef str NO_ARITHMETIC = "call mask.apply(x) for the scaled product, or np.asarray(mask) for an array of bools"
cdef double MIN_SCALE = np.finfo(np.float32).smallest_subnormal
cdef double MAX_SCALE = np.finfo(np.float32).max    # the scale is rounded to float32 for all types except float64


cdef tuple c_strides(tuple shape):
    """Return the strides of C order, in elements."""
    step = 1
    strides = []
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


cdef tuple normal_strides(tuple shape, strides):
    """Return None if the strides are equivalent to C order, otherwise the strides, with 0 for axes of length 1."""
    strides = tuple([0 if length == 1 else stride for length, stride in zip(shape, strides)])
    plain = [0 if length == 1 else stride for length, stride in zip(shape, c_strides(shape))]
    return None if list(strides) == plain or 0 in shape else strides


cdef tuple as_shape(shape):
    """Return shape, which is an int, or a tuple or list of ints, as a tuple of Python ints."""
    lengths = shape if isinstance(shape, (tuple, list)) else (shape,)
    lengths = tuple([as_index(length, "each length in shape") for length in lengths])
    if any(length < 0 for length in lengths):
        raise ValueError(f"shape has to contain lengths of at least 0, but got {lengths}")
    return lengths


cdef tuple as_axes(broadcast_dims):
    """Return broadcast_dims as a tuple of Python ints."""
    dims = broadcast_dims if isinstance(broadcast_dims, (tuple, list)) else (broadcast_dims,)
    return tuple([as_index(dim, "each of broadcast_dims") for dim in dims])


cpdef tuple broadcast_strides(tuple shape, broadcast_dims):
    """Return the strides of a mask with one draw along the axes in broadcast_dims.

    These axes, and axes of length 1, get the stride 0. The other axes get the strides of C order for a shape without these
    axes. For C order, or if a length is 0, return None.
    """
    return axes_to_strides(shape, as_axes(broadcast_dims))


cdef tuple axes_to_strides(tuple shape, tuple dims):
    """Return the strides as `broadcast_strides` does; dims must contain Python ints."""
    cdef Py_ssize_t ndim = len(shape)
    cdef Py_ssize_t i
    cdef bint in_c_order = True
    cdef list strides = [None] * ndim  # None for axes that are not broadcast
    for axis in dims:
        if not -ndim <= axis < ndim:
            raise ValueError(f"broadcast_dims has to be in [{-ndim}, {ndim}) for {ndim} dimensions, but got {axis}")
        if strides[axis] is not None:
            raise ValueError(f"broadcast_dims contains dimension {axis % ndim} twice: {dims}")
        strides[axis] = 0
    step = 1
    for i in range(ndim - 1, -1, -1):
        length = shape[i]
        if length == 0:
            return None
        if length == 1:
            strides[i] = 0
        elif strides[i] is None:
            strides[i] = step
            step = step * length
        else:
            in_c_order = False
    return None if in_c_order else tuple(strides)


@cython.c_api_binop_methods(True)
cdef class Mask:
    """Mask(shape, p, seed=0, call=0, start=0, strides=None, scale=None)\n--\n
    A value that determines which elements of an array are kept.

    A mask stores a few numbers, and nothing per element. Masks are immutable and hashable. Two masks are equal if all
    their numbers are equal. A pickled mask takes about a hundred bytes.

    Parameters
    ----------
    shape : int or tuple of int
        The shape of the arrays that the mask applies to.
    p : float
        The probability that an element is dropped, in [0, 1].
    seed : int, default 0
        The seed, in [-2**63, 2**64). A negative seed is equivalent to its two's complement.
    call : int, default 0
        The call number, in [0, 2**64), which distinguishes the masks of one seed.
    start : int, default 0
        The position of the element with index 0, ..., 0 in the mask stream.
    strides : tuple of int, optional
        For each axis, the difference between the positions of neighboring elements in the mask stream; by default, the
        strides of C order. All elements along an axis with stride 0 share one draw.
    scale : float, optional
        The positive number by which kept elements are multiplied; by default ``1 / (1 - p)``.

    Attributes
    ----------
    shape : tuple of int
    p : float
    seed : int
        The seed, in [0, 2**64).
    call : int
    start : int
    strides : tuple of int
    scale : float
        The number by which kept elements are multiplied; 0 if p is 1.
    ndim : int
        The number of axes.
    size : int
        The number of elements.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If an argument is out of range, or if positions of elements would be outside of [0, 2**64).

    See Also
    --------
    Generator.next_mask

    Notes
    -----
    An element is dropped if its random number, which is determined by seed, call and position, is less than p. If p is
    a multiple of 2**-11, the random number also depends on p.

    Indexing with ints, slices, ``...`` and None returns a window of the mask, which is also a Mask.
    ``np.asarray(mask)`` is an array of bools. Functions that convert their arguments to arrays, such as ``np.dot``, use
    these bools.

    A mask does not support arithmetic. ``mask * x`` raises TypeError, because the product would not be scaled.

    Masks that differ only in p are not independent: they use the same random bits. If neither p is a multiple of
    2**-11, the mask with the higher p drops every element that the other mask drops. The layers of a network need
    masks with different seeds or call numbers.

    **Compatibility Guarantee**

    `Mask` guarantees that the same arguments determine the same elements in every release with version 1 of the mask
    stream, on every platform and with every instruction set.

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> mask = cdropout.Mask((2, 4), p=0.5, seed=7)
    >>> x = np.ones((2, 4), np.float32)
    >>> y = mask.apply(x)
    >>> bool((y == 2 * np.asarray(mask)).all())
    True
    >>> mask[1, ::2]
    Mask((2,), p=0.5, seed=7, call=0, start=4, strides=(2,))
    >>> bool((mask[1, ::2].apply(x[1, ::2]) == y[1, ::2]).all())
    True
    """

    __module__ = "cdropout"

    def __init__(self, shape, p, seed=0, call=0, start=0, strides=None, scale=None):
        cdef cdropout_mask mask
        cdef double probability
        shape = as_shape(shape)
        if strides is not None:
            strides = tuple([as_index(step, "each of strides") for step in strides])
            if len(strides) != len(shape):
                raise ValueError(f"strides has to have one number per axis of {shape}, but got {strides}")
        mask.seed = as_seed(seed)
        mask.call = as_count(call, "call")
        probability = as_probability(p)
        kernels.mask_init(&mask, mask.seed, mask.call, probability)
        set_scale(&mask, probability, scale)
        self.set_positions(shape, as_count(start, "start"), strides)
        self.id = mask                # set at the end, so that the mask does not change if an error is raised
        self.p = probability

    cdef set_positions(self, tuple shape, start, strides):
        """Set the fields that determine the positions of the elements. Raise ValueError if a position is out of range."""
        full = c_strides(shape) if strides is None else strides
        if 0 not in shape:
            low = start + sum([min(0, (length - 1) * step) for length, step in zip(shape, full)])
            high = start + sum([max(0, (length - 1) * step) for length, step in zip(shape, full)])
            if low < 0 or high >= 1 << 64:
                raise ValueError(f"a mask has positions 0 to 2**64 - 1, but this one would have positions {low} to {high}")
        self.shape = shape
        self.start_ = 0 if 0 in shape else start
        self.strides_ = None if strides is None else normal_strides(shape, strides)

    @property
    def seed(self):
        """The seed, as an int in [0, 2**64)."""
        return self.id.seed

    @property
    def call(self):
        """The call number, which distinguishes the masks of one seed."""
        return self.id.call

    @property
    def start(self):
        """The position of the element with index 0, ..., 0 in the mask stream."""
        return self.start_

    @property
    def strides(self):
        """For each axis, the difference between the positions of neighboring elements in the mask stream."""
        return c_strides(self.shape) if self.strides_ is None else self.strides_

    @property
    def scale(self):
        """The number by which kept elements are multiplied; 0 if p is 1."""
        return self.id.scale

    @property
    def ndim(self):
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self):
        """The number of elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    cdef tuple fields(self):
        return self.shape, self.p, self.id.seed, self.id.call, self.start_, self.strides_, self.id.scale

    def __reduce__(self):
        return Mask, self.fields()

    def __eq__(self, other):
        return self.fields() == (<Mask>other).fields() if isinstance(other, Mask) else NotImplemented

    def __hash__(self):
        return hash(self.fields())

    def __repr__(self):
        text = f"Mask({self.shape}, p={self.p!r}, seed={self.id.seed}, call={self.id.call}"
        if self.start_ or self.strides_ is not None:
            text += f", start={self.start_}"
        if self.strides_ is not None:
            text += f", strides={self.strides_}"
        if self.id.scale != scale_of(self.p):
            text += f", scale={self.id.scale}"
        return text + ")"

    def __len__(self):
        if not self.shape:
            raise TypeError("a mask of 0 dimensions has no length")
        return self.shape[0]

    def __iter__(self):
        length = len(self)
        return (self[i] for i in range(length))

    def __bool__(self):
        return True                   # True even if the length is 0, because `if mask:` is used to test for None

    def __getitem__(self, index):
        cdef Mask window = Mask.__new__(Mask)
        start = self.start_
        shape = []
        strides = []
        axes = iter(zip(self.shape, self.strides))
        for item in expand_index(index, len(self.shape)):
            if item is None:
                shape.append(1)
                strides.append(0)
                continue
            length, stride = next(axes)
            if isinstance(item, slice):
                picked = range(*item.indices(length))
                shape.append(len(picked))
                strides.append(stride * picked.step)
                start += picked.start * stride if picked else 0
            else:
                start += as_position(item, length) * stride
        window.id = self.id
        window.p = self.p
        window.set_positions(tuple(shape), start, strides)
        return window

    def __array__(self, dtype=None, copy=None):
        """Return the mask as an array in C order, of bools unless another dtype is given."""
        if copy is False:
            raise ValueError("a mask stores no array that could be shared: copy=False is not possible")
        out = np.empty(self.shape, np.bool_)
        draw_into(out, self)
        return out if dtype is None else out.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        """Raise TypeError, because NumPy would convert the mask to bools, and a product with bools would not be scaled."""
        raise TypeError(f"a Mask does not support {ufunc.__name__}: {NO_ARITHMETIC}")

    def __mul__(left, right):
        raise TypeError(f"a Mask does not support multiply: {NO_ARITHMETIC}")

    def bits(self):
        """Return the mask as packed bits.

        Returns
        -------
        ndarray of uint8
            One bit per element in C order, least significant bit first: 1 if the element is kept. The length is
            ``ceil(size / 8)``.

        Examples
        --------
        >>> import numpy as np
        >>> import cdropout
        >>> mask = cdropout.Mask(10, p=0.5, seed=7)
        >>> mask.bits().shape
        (2,)
        >>> bits = np.unpackbits(mask.bits(), count=10, bitorder="little")
        >>> bool((bits == np.asarray(mask)).all())
        True
        """
        if self.strides_ is not None:
            return np.packbits(self.__array__().reshape(-1), bitorder="little")
        out = np.empty((self.size + 7) // 8, np.uint8)
        draw_bits(out, self.size, &self.id, self.start_)
        return out

    def to_dask(self, chunks="auto"):
        """Return the mask as a Dask array of bools.

        Parameters
        ----------
        chunks : int, tuple or str, default "auto"
            The chunk sizes, as in ``dask.array.from_array``.

        Returns
        -------
        dask.array.Array
            The mask as a lazy array. Each chunk is drawn when it is computed.

        Raises
        ------
        ImportError
            If Dask is not installed.

        Examples
        --------
        >>> import cdropout
        >>> mask = cdropout.Mask((4, 4), p=0.5, seed=7)
        >>> mask.to_dask(chunks=(2, 4)).numblocks
        (2, 1)
        """
        from cdropout.dask import mask_to_dask
        return mask_to_dask(self, chunks)

    def to_scale(self, dtype="float32"):
        """Return the mask as an array whose elements are the scale or 0.

        Parameters
        ----------
        dtype : data-type, default "float32"
            One of the element types that `dropout` supports.

        Returns
        -------
        ndarray
            An array that contains ``scale`` where an element is kept, otherwise 0.

        Raises
        ------
        TypeError
            If the type is not supported.

        Examples
        --------
        >>> import cdropout
        >>> cdropout.Mask(4, p=0.5, seed=1).to_scale()
        array([2., 0., 2., 2.], dtype=float32)
        """
        ones = np.ones(self.shape, dtype)
        return self.apply(ones, ones)

    def apply(self, x, out=None):
        """Apply the mask to an array, as the forward pass and the backward pass of dropout do.

        Parameters
        ----------
        x : ndarray
            An array of the same shape as the mask.
        out : ndarray, optional
            The array for the result: x itself, or an array of the same shape and type that does not overlap x.

        Returns
        -------
        ndarray
            ``x * scale`` where an element is kept, otherwise +0.0.

        Raises
        ------
        TypeError, ValueError
            For the same reasons as in `cdropout.dropout`; ValueError also if x has another shape than the mask.

        Examples
        --------
        >>> import numpy as np
        >>> import cdropout
        >>> cdropout.Mask(3, p=0).apply(np.array([1.0, 2.0, 3.0]))
        array([1., 2., 3.])
        """
        cdef cnp.ndarray array = as_array(x)
        check_shape(self.shape, array)
        target = destination(array, False, out)
        apply_mask(array, target, &self.id, self.start_, self.strides_)
        return target


def draw_into(cnp.ndarray out, Mask mask):
    """Write True to `out` for kept elements, otherwise False. `out` is an array of bools and has the shape of the mask."""
    draw_bools(out, &mask.id, mask.start_, mask.strides_)


cdef double scale_of(double p) noexcept:
    """Return the scale for p as the kernels compute it."""
    cdef cdropout_mask mask
    kernels.mask_init(&mask, 0, 0, p)
    return mask.scale


# SELU approaches -lambda * alpha for x -> -inf. The constants are given in equation (14) of Klambauer et al.,
# "Self-normalizing neural networks", NIPS 2017.
SATURATION = -1.0507009873554805 * 1.6732632423543772


def alpha_terms(p):
    """Return a, b and c for 0 < p < 1: `alpha_dropout` replaces kept elements by a * x + b, and dropped elements by c."""
    a = ((1 - p) * (1 + p * SATURATION**2)) ** -0.5
    b = -a * p * SATURATION
    return a, b, a * SATURATION + b


cdef set_scale(cdropout_mask* mask, double p, scale):
    """Set the scale of a mask unless `scale` is None. Raise TypeError or ValueError if `scale` is not valid for p."""
    cdef double value
    if scale is None:
        return
    value = as_number(scale, "scale has to be a number")
    if value == mask.scale:
        return
    if p == 1 or not MIN_SCALE <= value <= MAX_SCALE:
        raise ValueError(
            f"scale has to be 0 for p = 1, otherwise positive and in the range of float32, but got {scale} for p={p}"
        )
    mask.scale = value


cdef list expand_index(index, int ndim):
    """Return an index as a list that contains one item per axis of the mask, and None for each new axis."""
    items = list(index) if isinstance(index, tuple) else [index]
    dots = [i for i, item in enumerate(items) if item is ...]
    named = len([item for item in items if item is not None and item is not ...])
    if len(dots) > 1:
        raise IndexError("an index has at most one ellipsis ('...')")
    if named > ndim:
        raise IndexError(f"too many indices: the mask has {ndim} dimensions, but {named} were indexed")
    at = dots[0] if dots else len(items)
    items[at:at + 1] = [slice(None)] * (ndim - named)
    return items


cdef object as_position(item, length):
    """Return an index along an axis of this length as an int in [0, length), or raise IndexError."""
    try:
        i = as_index(item, "index")
    except TypeError:
        raise IndexError(
            f"an index of a mask has to be an int, a slice, an ellipsis or None, but got {type(item).__name__}"
        ) from None
    if not -length <= i < length:
        raise IndexError(f"index {i} is out of bounds for an axis of length {length}")
    return i % length


cdef check_shape(tuple shape, cnp.ndarray array):
    """Raise ValueError unless the array has the shape of a mask."""
    cdef int ndim = cnp.PyArray_NDIM(array)
    cdef int i
    cdef bint same = ndim == len(shape)
    for i in range(ndim if same else 0):
        same = same and cnp.PyArray_DIM(array, i) == <object>shape[i]
    if not same:
        raise ValueError(f"the mask has the shape {shape}, but x has {shape_of(array)}")


cdef Mask new_mask(cdropout_mask id, tuple shape, double p, tuple strides):
    """Return a mask with the given numbers, which are not validated. `strides` is None for C order."""
    cdef Mask mask = Mask.__new__(Mask)
    mask.id = id
    mask.shape = shape
    mask.p = p
    mask.strides_ = strides
    return mask


cdef Mask unseeded_mask(shape, p, broadcast_dims, scale):
    """Return a mask with the seed 0 and the call number 0. A generator replaces these numbers if the mask uses them."""
    cdef cdropout_mask id
    cdef double probability = as_probability(p)
    cdef tuple axes = as_axes(broadcast_dims)
    cdef Mask mask
    kernels.mask_init(&id, 0, 0, probability)
    set_scale(&id, probability, scale)
    shape = as_shape(shape)
    mask = new_mask(id, shape, probability, None)
    mask.set_positions(shape, 0, axes_to_strides(shape, axes))
    return mask


cpdef Mask with_scale(Mask mask, double scale):
    """Return a copy of the mask with another scale, which is not validated."""
    cdef Mask other = new_mask(mask.id, mask.shape, mask.p, mask.strides_)
    other.start_ = mask.start_
    other.id.scale = scale
    return other


cpdef check_mask(mask, tuple shape, tuple axes, p, default=0.5):
    """Raise an error unless mask is a Mask of this shape with one draw along `axes`, and p is mask.p or `default`."""
    if not isinstance(mask, Mask):
        raise TypeError(f"mask has to be a Mask, but got {type(mask).__name__}")
    if (<Mask>mask).shape != shape:
        raise ValueError(f"the mask has the shape {mask.shape}, but x has {shape}")
    if p != default and p != (<Mask>mask).p:
        raise ValueError(f"the mask has p={mask.p}, but p={p} was given")
    if 0 not in shape and any([mask.strides[axis] != 0 and shape[axis] != 1 for axis in axes]):
        raise ValueError(f"the mask has to have one draw along the axes {axes}, but got {mask}")


cpdef check_not_given(name, value):
    """Raise ValueError unless the value is None, () or []: the argument `name` cannot be combined with mask=."""
    if value is not None and not (isinstance(value, (tuple, list)) and not value):
        raise ValueError(f"mask= cannot be combined with {name}")
