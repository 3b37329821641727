"""Mask: which elements are kept, as a few numbers from which they are drawn."""
import operator

cimport cython
cimport numpy as cnp

import numpy as np

from cdropout cimport cdropout_mask
from cdropout._core.numpy_arrays cimport apply_mask, as_array, destination, draw_bits, draw_bools, shape_of
from cdropout._core.dispatch cimport kernels
from cdropout._core.arguments cimport as_count, as_index, as_number, as_probability, as_seed

cnp.import_array()

cdef str NO_ARITHMETIC = "call mask.apply(x) for the scaled product, or np.asarray(mask) for an array of bools"
cdef double SMALLEST = np.finfo(np.float32).smallest_subnormal
cdef double LARGEST = np.finfo(np.float32).max    # a scale is rounded to float32 for all types but float64


cdef tuple c_strides(tuple shape):
    """Elements from one index to the next along each axis, in C order."""
    step = 1
    strides = []
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


cdef tuple normal_strides(tuple shape, strides):
    """None if the strides are those of C order wherever they matter; else with 0 wherever they do not."""
    strides = tuple([0 if length == 1 else stride for length, stride in zip(shape, strides)])
    plain = [0 if length == 1 else stride for length, stride in zip(shape, c_strides(shape))]
    return None if list(strides) == plain or 0 in shape else strides


cdef tuple as_shape(shape):
    """Return shape, an int or a sequence of them, as a tuple of Python ints."""
    lengths = shape if isinstance(shape, (tuple, list)) else (shape,)
    lengths = tuple([as_index(length, "each length in shape") for length in lengths])
    if any(length < 0 for length in lengths):
        raise ValueError(f"shape has to hold lengths of at least 0, but got {lengths}")
    return lengths


cdef tuple as_axes(broadcast_dims):
    """Return broadcast_dims as a tuple of Python ints."""
    dims = broadcast_dims if isinstance(broadcast_dims, (tuple, list)) else (broadcast_dims,)
    return tuple([as_index(dim, "each of broadcast_dims") for dim in dims])


cpdef tuple broadcast_strides(tuple shape, broadcast_dims):
    """Return the strides of a mask with one draw along each of broadcast_dims: it is drawn as if these had length 1."""
    return axes_to_strides(shape, as_axes(broadcast_dims))


cdef tuple axes_to_strides(tuple shape, tuple dims):
    """Do the part of `broadcast_strides` that runs no code of the caller's."""
    cdef Py_ssize_t ndim = len(shape)
    cdef Py_ssize_t i
    cdef bint in_c_order = True
    cdef list strides = [None] * ndim  # None: not shared
    for axis in dims:
        if not -ndim <= axis < ndim:
            raise ValueError(f"broadcast_dims has to be in [{-ndim}, {ndim}) for {ndim} dimensions, but got {axis}")
        if strides[axis] is not None:
            raise ValueError(f"broadcast_dims names dimension {axis % ndim} twice: {dims}")
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
    A value that determines which elements of an array are kept; nothing is stored per element.

    Two masks are equal if their numbers are. They can be dictionary keys, pickle to some hundred bytes, and draw the
    same elements on every machine.

    Parameters
    ----------
    shape : int or tuple of int
    p : float
        The probability that an element is dropped, in [0, 1].
    seed : int
        In [-2**63, 2**64), a negative one as its two's complement.
    call : int
        In [0, 2**64): tells the masks of one seed from each other.
    start : int
        The position in the stream of masks of the element with index 0, ..., 0.
    strides : tuple of int, optional
        How far the position moves from one index to the next along each axis; by default as in C order. With start
        this is how a window (``mask[2:5, ::-1]``) or a shared draw (stride 0) is a mask again.
    scale : float, optional
        The number that kept elements are multiplied by: 1 / (1 - p) if not given, positive and finite otherwise.

    Attributes
    ----------
    shape, p, seed, call, start, strides, scale
        As given, seed in [0, 2**64).
    ndim, size : int
        The number of axes, and of elements.

    Notes
    -----
    The element at position e is dropped if the number that (seed, call, e) draws is below p; see tests/reference.py.

    So masks that differ only in p are not independent. If the masks of two p draw equally many bits per element (12, unless
    p is a multiple of 2**-11), they are nested: whatever the lower p drops, the higher p drops too. Comparisons of
    several p on one seed profit from that; two layers of a network must not have the same seed and call.

    A Mask does not support arithmetic: ``mask * x`` is a TypeError, because the product would not be scaled. `apply`
    returns the scaled product, and ``np.asarray(mask)`` an array of bools. Functions that convert the mask to an array,
    such as ``np.dot``, ``np.einsum`` and ``np.average``, use these bools and do not scale.
    """

    __module__ = "cdropout"

    def __init__(self, shape, p, seed=0, call=0, start=0, strides=None, scale=None):
        cdef cdropout_mask mask
        cdef double probability
        shape = as_shape(shape)
        if strides is not None:
            strides = tuple([as_index(step, "each of strides") for step in strides])
            if len(strides) != len(shape):
                raise ValueError(f"strides has to have one number an axis of {shape}, but got {strides}")
        mask.seed = as_seed(seed)
        mask.call = as_count(call, "call")
        probability = as_probability(p)
        kernels.mask_init(&mask, mask.seed, mask.call, probability)
        set_scale(&mask, probability, scale)
        self.set_positions(shape, as_count(start, "start"), strides)
        self.id = mask                # only now: a second call of __init__ that fails leaves the mask as it was
        self.p = probability

    cdef set_positions(self, tuple shape, start, strides):
        """Set what says where the elements lie in the stream."""
        full = c_strides(shape) if strides is None else strides
        if 0 not in shape:
            low = start + sum([min(0, (length - 1) * step) for length, step in zip(shape, full)])
            high = start + sum([max(0, (length - 1) * step) for length, step in zip(shape, full)])
            if low < 0 or high >= 1 << 64:
                raise ValueError(f"a mask has positions 0 to 2**64 - 1, but this one would reach from {low} to {high}")
        self.shape = shape
        self.start_ = 0 if 0 in shape else start
        self.strides_ = None if strides is None else normal_strides(shape, strides)

    @property
    def seed(self):
        """The seed, as an int in [0, 2**64)."""
        return self.id.seed

    @property
    def call(self):
        """The call number."""
        return self.id.call

    @property
    def start(self):
        """The position of the element with index 0, ..., 0."""
        return self.start_

    @property
    def strides(self):
        """How far the position moves from one index to the next along each axis."""
        return c_strides(self.shape) if self.strides_ is None else self.strides_

    @property
    def scale(self):
        """The number that kept elements are multiplied by; 0 for p = 1, which keeps none."""
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

    # -- a value --

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

    # -- windows --

    def __len__(self):
        if not self.shape:
            raise TypeError("a mask of 0 dimensions has no length")
        return self.shape[0]

    def __iter__(self):
        length = len(self)
        return (self[i] for i in range(length))

    def __bool__(self):
        return True                   # as an argument it is there, whatever its length

    def __getitem__(self, index):
        """A window, as a mask of its own: integers, slices, ... and None."""
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

    # -- what it says --

    def __array__(self, dtype=None, copy=None):
        """Kept as bool, in C order."""
        if copy is False:
            raise ValueError("a mask holds no array that could be shared: copy=False cannot be met")
        out = np.empty(self.shape, np.bool_)
        draw_into(out, self)
        return out if dtype is None else out.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        """Refuse arithmetic: the products of an array of bools would not be scaled."""
        raise TypeError(f"a Mask does not support {ufunc.__name__}: {NO_ARITHMETIC}")

    def __mul__(left, right):
        raise TypeError(f"a Mask does not support multiply: {NO_ARITHMETIC}")

    def bits(self):
        """Kept as packed bits in C order: uint8 of length ceil(size / 8), least significant bit first."""
        if self.strides_ is not None:
            return np.packbits(self.__array__().reshape(-1), bitorder="little")
        out = np.empty((self.size + 7) // 8, np.uint8)
        draw_bits(out, self.size, &self.id, self.start_)
        return out

    def to_dask(self, chunks="auto"):
        """Kept as a lazy bool Dask array; `chunks` as in dask.array.from_array. ImportError without Dask."""
        from cdropout.dask import mask_to_dask
        return mask_to_dask(self, chunks)

    def to_scale(self, dtype="float32"):
        """Return an array of the scale where the mask keeps, otherwise 0; `dtype` is one that `dropout` takes."""
        ones = np.ones(self.shape, dtype)
        return self.apply(ones, ones)

    def apply(self, x, out=None):
        """Return x / (1 - p) where kept, else +0.0: dropout's forward, and its backward.

        Parameters
        ----------
        x : array of the mask's shape
        out : ndarray, optional
            Takes the result: x itself, or an array of its shape and type that does not overlap it.

        Raises
        ------
        TypeError, ValueError
            As `cdropout.dropout`; ValueError if x has another shape.
        """
        cdef cnp.ndarray array = as_array(x)
        check_shape(self.shape, array)
        target = destination(array, False, out)
        apply_mask(array, target, &self.id, self.start_, self.strides_)
        return target


def draw_into(cnp.ndarray out, Mask mask):
    """Fill out, bools of the mask's shape in C order, with what the mask keeps."""
    draw_bools(out, &mask.id, mask.start_, mask.strides_)


cdef double scale_of(double p) noexcept:
    cdef cdropout_mask mask
    kernels.mask_init(&mask, 0, 0, p)
    return mask.scale


# SELU's value for an argument of minus infinity, -lambda * alpha, with the constants of equation
# (14) of Klambauer et al., "Self-normalizing neural networks", NIPS 2017
SATURATION = -1.0507009873554805 * 1.6732632423543772


def alpha_terms(p):
    """Return a, b and c for 0 < p < 1: `alpha_dropout` gives a * x + b where kept, and c where dropped."""
    a = ((1 - p) * (1 + p * SATURATION**2)) ** -0.5
    b = -a * p * SATURATION
    return a, b, a * SATURATION + b


cdef set_scale(cdropout_mask* mask, double p, scale):
    """Give mask a scale other than 1 / (1 - p), unless scale is None."""
    cdef double value
    if scale is None:
        return
    value = as_number(scale, "scale has to be a number")
    if value == mask.scale:
        return
    if p == 1 or not SMALLEST <= value <= LARGEST:
        raise ValueError(f"scale has to be positive and finite, and 0 for p = 1, but got {scale} for p={p}")
    mask.scale = value


cdef list expand_index(index, int ndim):
    """One item an axis, and None where a new axis comes in."""
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
    """The place that an integer index names."""
    if isinstance(item, bool) or not hasattr(item, "__index__") or getattr(item, "ndim", 0):
        raise IndexError(f"a mask takes integers, slices, ... and None as indices, but got {type(item).__name__}")
    place = operator.index(item)
    if not -length <= place < length:
        raise IndexError(f"index {place} is out of bounds for an axis of length {length}")
    return place % length


cdef check_shape(tuple shape, cnp.ndarray array):
    cdef int ndim = cnp.PyArray_NDIM(array)
    cdef int i
    cdef bint same = ndim == len(shape)
    for i in range(ndim if same else 0):
        same = same and cnp.PyArray_DIM(array, i) == <object>shape[i]
    if not same:
        raise ValueError(f"the mask has the shape {shape}, but x has {shape_of(array)}")


cdef Mask new_mask(cdropout_mask id, tuple shape, double p, tuple strides):
    """Return a mask of checked numbers."""
    cdef Mask mask = Mask.__new__(Mask)
    mask.id = id
    mask.shape = shape
    mask.p = p
    mask.strides_ = strides
    return mask


cdef Mask unseeded_mask(shape, p, broadcast_dims, scale):
    """Return a mask of seed 0 and call 0, of which a generator replaces the seed and the call number."""
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
    """Return the mask with another scale, which has to be good."""
    cdef Mask other = new_mask(mask.id, mask.shape, mask.p, mask.strides_)
    other.start_ = mask.start_
    other.id.scale = scale
    return other


cpdef check_mask(mask, tuple shape, tuple axes, p, default=0.5):
    """Raise an error unless mask is a Mask of this shape with one draw along axes, and p is its p or the default."""
    if not isinstance(mask, Mask):
        raise TypeError(f"mask has to be a Mask, but got {type(mask).__name__}")
    if (<Mask>mask).shape != shape:
        raise ValueError(f"the mask has the shape {mask.shape}, but x has {shape}")
    if p != default and p != (<Mask>mask).p:
        raise ValueError(f"the mask has p={mask.p}, but p={p} was given")
    if 0 not in shape and any([mask.strides[axis] != 0 and shape[axis] != 1 for axis in axes]):
        raise ValueError(f"the mask has to have one draw along the axes {axes}, but got {mask}")


cpdef check_not_given(name, value):
    """Raise a ValueError if an argument that mask= excludes is given: if it is not None, () or []."""
    if value is not None and not (isinstance(value, (tuple, list)) and not value):
        raise ValueError(f"mask= determines which elements are kept: it excludes {name}")
