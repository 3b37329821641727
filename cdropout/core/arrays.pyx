"""Arrays in, kernels called with the GIL off, arrays out: any shape, any strides, any number of threads."""
cimport numpy as cnp
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint8_t, uint64_t

import numpy as np

from cdropout cimport (
    CDROPOUT_BFLOAT16, CDROPOUT_BOOL, CDROPOUT_FLOAT16, CDROPOUT_FLOAT32, CDROPOUT_FLOAT64, cdropout_axis, cdropout_dtype,
    cdropout_mask,
)
from cdropout.core.dispatch cimport kernels
from cdropout.core.pieces cimport (
    SHORT, ViewCall, apply_bits_span, apply_span, draw_bits_span, draw_bools_span, run_view, sharers,
)
from cdropout.core.threads cimport share
from cdropout.core.view cimport MAX_DIMS, View, arrange, overlaps_itself

cdef extern from "numpy/arrayobject.h":
    cnp.ndarray PyArray_NewLikeArray(cnp.ndarray, cnp.NPY_ORDER, cnp.PyArray_Descr*, int)

cnp.import_array()

TYPES = "float16, bfloat16, float32 or float64"
# What to do about objects that are not taken, by the package that defines their type.
cdef dict ADVICE = {
    "astropy": "pass {}.value",
    "autograd": "multiply {} by mask.scale()",
    "dask": "use cdropout.dask",
    "jax": "use cdropout.jax",
    "keras": "use cdropout.keras",
    "pandas": "pass {}.to_numpy()",
    "pint": "pass {}.magnitude",
    "polars": "pass {}.to_numpy()",
    "pyarrow": "pass {}.to_numpy()",
    "scipy": "pass {}.toarray()",
    "tensorflow": "use cdropout.tensorflow",
    "torch": "use cdropout.torch",
    "unyt": "pass {}.value",
    "xarray": "pass {}.data",
}
cdef int bfloat16 = -1                # NumPy's number for ml_dtypes.bfloat16, once such an array has come


# ---- what comes in ----------------------------------------------------------------------------


cdef bint takes(cnp.ndarray array):
    """Whether the kernels know the type of the array's elements."""
    global bfloat16
    cdef int number = cnp.PyArray_TYPE(array)
    if cnp.PyTypeNum_ISUSERDEF(number) and number != bfloat16 and array.dtype.name == "bfloat16":
        bfloat16 = number
    return number in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE, cnp.NPY_FLOAT16) or number == bfloat16


cdef bint is_taken(object x):
    """Return whether x is an array whose type adds no meaning to its elements, as masks and units do."""
    return type(x) is cnp.ndarray or type(x) in (np.memmap, np.matrix, np.recarray)


cdef advice(x, name, default=""):
    """Return the end of an error message: what to do with x, which is not taken."""
    packages = [str(kind.__module__).partition(".")[0] for kind in type(x).__mro__]
    found = [ADVICE[package] for package in packages if package in ADVICE]
    text = found[0] if found else default
    return f"; {text.format(name)}" if text else ""


cdef refuse_subclass(x, name):
    if isinstance(x, np.ma.MaskedArray):  # np.ma is imported when it is first named, so not for a plain array
        raise TypeError(f"{name} is a masked array, which has a mask of its own; pass {name}.data or {name}.filled()")
    way = advice(x, name, "pass np.asarray({})")
    raise TypeError(f"{name} is of type {type(x).__name__}, a subclass of ndarray whose meaning the result would lose{way}")


cdef cnp.ndarray as_array(object x, name="x"):
    """x as an array of a type that the kernels know, without a copy; TypeError, with its name, if it is none."""
    cdef cnp.ndarray array
    if type(x) is cnp.ndarray:
        array = x
    elif isinstance(x, cnp.ndarray):
        if not is_taken(x):
            refuse_subclass(x, name)
        array = np.asarray(x)
    elif isinstance(x, np.generic):
        array = np.asarray(x)
        array.flags.writeable = False  # a scalar's value cannot change
    else:
        array = from_exporter(x, name)
    if not takes(array):
        raise TypeError(f"{name} has to be an array of {TYPES}, but got {array.dtype}")
    if not cnp.PyArray_ISNOTSWAPPED(array):
        raise TypeError(f"{name} has to be in this machine's byte order, but got {array.dtype.str}")
    return array


def from_exporter(x, name):
    """A NumPy array over the memory of an object with DLPack or the buffer protocol."""
    if hasattr(type(x), "__dlpack__"):  # some wrappers, such as quantities, hand on the attributes of what they hold
        try:
            return np.from_dlpack(x)
        except Exception as error:
            way = advice(x, name)
            if not way and not isinstance(error, (BufferError, RuntimeError)):  # NumPy's, of types and devices
                raise
            kind = TypeError if isinstance(error, TypeError) else BufferError
            problem = f"{name}, of type {type(x).__name__}, cannot be read as a NumPy array{way}"
            raise kind(f"{problem}: {error}") from error
    try:
        return np.asarray(memoryview(x))
    except (TypeError, ValueError):    # no buffer; or one of elements that NumPy does not know
        raise TypeError(
            f"{name} has to be a NumPy array, or have DLPack or the buffer protocol, "
            f"with elements of {TYPES}, but got {type(x).__name__}{advice(x, name)}"
        ) from None


def take(x):
    """Return x, or for an exporter an array over its memory, which is read once; TypeError if dropout does not take it."""
    array = as_array(x)
    return x if isinstance(x, cnp.ndarray) else array


def place(x, inplace, out):
    """The array that a result for x is written to: x, out, or a new one."""
    return destination(as_array(x), inplace, out)


cdef check_writable(cnp.ndarray array, name):
    cdef cdropout_axis axes[MAX_DIMS]
    cdef View view
    if not cnp.PyArray_ISWRITEABLE(array):
        raise ValueError(f"{name} is read-only")
    if cnp.PyArray_IS_C_CONTIGUOUS(array):
        return
    fill_axes(axes, None, array, None)
    view.x = NULL
    view.y = <char*>cnp.PyArray_DATA(array)
    view.start = 0
    arrange(&view, cnp.PyArray_NDIM(array), axes)
    if overlaps_itself(&view, cnp.PyArray_ITEMSIZE(array)):
        raise ValueError(f"elements of {name} overlap in memory")


cdef bint same_memory(cnp.ndarray a, cnp.ndarray b):
    """Whether every element of the one lies where the other's does."""
    cdef int i
    if cnp.PyArray_DATA(a) != cnp.PyArray_DATA(b):
        return False
    for i in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_STRIDE(a, i) != cnp.PyArray_STRIDE(b, i) and cnp.PyArray_DIM(a, i) > 1:
            return False
    return True


cdef bint partly_overlap(cnp.ndarray a, cnp.ndarray b):
    cdef const char* first = <const char*>cnp.PyArray_DATA(a)
    cdef const char* second = <const char*>cnp.PyArray_DATA(b)
    if cnp.PyArray_IS_C_CONTIGUOUS(a) and cnp.PyArray_IS_C_CONTIGUOUS(b):
        return first != second and first < second + cnp.PyArray_NBYTES(b) and second < first + cnp.PyArray_NBYTES(a)
    if same_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=100_000)
    except np.exceptions.TooHardError:
        return True


cdef check_out(cnp.ndarray x, cnp.ndarray out):
    if not cnp.PyArray_SAMESHAPE(x, out):
        raise ValueError(f"out has to have the shape of x, {shape_of(x)}, but got {shape_of(out)}")
    if cnp.PyArray_TYPE(out) != cnp.PyArray_TYPE(x) or not cnp.PyArray_ISNOTSWAPPED(out):
        raise ValueError(f"out has to have the type and byte order of x, {x.dtype.str}, but got {out.dtype.str}")
    check_writable(out, "out")
    if partly_overlap(x, out):
        raise ValueError("out partly overlaps x; it has to be x itself or must not overlap x")


cdef cnp.ndarray destination(cnp.ndarray x, bint inplace, object out):
    """The array that the result is written to: x, out, or a new one in the memory order of x."""
    if inplace:
        if out is not None:
            raise ValueError("inplace=True writes to x: it excludes out")
        check_writable(x, "x")
        return x
    if out is None:
        return PyArray_NewLikeArray(x, cnp.NPY_KEEPORDER, NULL, 0)
    if not is_taken(out):
        raise TypeError(f"out has to be a NumPy array, but got {type(out).__name__}")
    if out is not x:
        check_out(x, out)
    else:
        check_writable(x, "out")
    return out


# ---- the kernels on whole arrays ----------------------------------------------------------------


cdef cdropout_dtype code_of(cnp.ndarray array) noexcept:
    cdef int number = cnp.PyArray_TYPE(array)
    if number == cnp.NPY_FLOAT:
        return CDROPOUT_FLOAT32
    if number == cnp.NPY_DOUBLE:
        return CDROPOUT_FLOAT64
    return CDROPOUT_FLOAT16 if number == cnp.NPY_FLOAT16 else CDROPOUT_BFLOAT16


cdef inline bint plain(cnp.ndarray x, cnp.ndarray y) noexcept:
    return cnp.PyArray_IS_C_CONTIGUOUS(x) and cnp.PyArray_IS_C_CONTIGUOUS(y)


cdef fill_axes(cdropout_axis* axes, cnp.ndarray x, cnp.ndarray y, tuple strides):
    """Fill in the axes of y, and of x if there is one, with the mask's strides (None: those of C order)."""
    cdef int ndim = cnp.PyArray_NDIM(y)
    cdef ptrdiff_t step = 1
    cdef int i
    for i in range(ndim - 1, -1, -1):
        axes[i].length = cnp.PyArray_DIM(y, i)
        axes[i].x = cnp.PyArray_STRIDE(x, i) if x is not None else 0
        axes[i].y = cnp.PyArray_STRIDE(y, i)
        axes[i].mask = step if strides is None else <int64_t><uint64_t>(strides[i] & 0xFFFFFFFFFFFFFFFF)
        step *= cnp.PyArray_DIM(y, i)


cdef apply_view(
    cnp.ndarray x, cnp.ndarray y, const cdropout_mask* mask, cnp.ndarray bits, cnp.ndarray bools, uint64_t start,
    tuple strides, double scale, tuple shift=None,
):
    """Apply a mask, packed bits or bools to arrays at any strides; without x, y is 1 where the mask keeps, else 0."""
    cdef cdropout_axis axes[MAX_DIMS]
    cdef ViewCall call
    cdef size_t n = cnp.PyArray_SIZE(y)
    cdef int ndim = cnp.PyArray_NDIM(y)
    fill_axes(axes, x, y, strides)
    call.view.x = NULL if x is None else <const char*>cnp.PyArray_DATA(x)
    call.view.y = <char*>cnp.PyArray_DATA(y)
    call.view.start = start
    call.dtype = code_of(x) if x is not None else CDROPOUT_BOOL
    call.mask = mask
    call.bits = NULL if bits is None else <const uint8_t*>cnp.PyArray_DATA(bits)
    call.bools = NULL if bools is None else <const uint8_t*>cnp.PyArray_DATA(bools)
    call.scale = scale
    call.shifts = shift is not None
    if shift is not None:
        call.shift, call.constant = shift
    if n < SHORT:
        run_view(&call, ndim, axes, share, 1)
        return
    with nogil:
        run_view(&call, ndim, axes, share, sharers(n))


cdef apply_mask(
    cnp.ndarray x, cnp.ndarray y, const cdropout_mask* mask, uint64_t start, tuple strides, tuple shift=None,
):
    """y = x * scale where the mask keeps, else +0.0; strides in elements of the mask, None if x is drawn in C order.

    With shift, y = x * scale + shift[0] where the mask keeps, else shift[1].
    """
    cdef size_t n = cnp.PyArray_SIZE(x)
    cdef const char* source = <const char*>cnp.PyArray_DATA(x)
    cdef char* target = <char*>cnp.PyArray_DATA(y)
    cdef cdropout_dtype dtype = code_of(x)
    if n == 0:
        return
    if strides is not None or shift is not None or not plain(x, y):
        apply_view(x, y, mask, None, None, start, strides, mask.scale, shift)
    elif n < SHORT:
        kernels.apply(dtype, 0, source, target, n, mask, start)
    else:
        with nogil:
            apply_span(dtype, source, target, n, mask, start, share, sharers(n))


cdef apply_bools(cnp.ndarray x, cnp.ndarray y, cnp.ndarray keep, double scale):
    """y = x * scale where keep (bools, of the shape of x) is true, else +0.0."""
    if cnp.PyArray_SIZE(x):
        apply_view(x, y, NULL, None, keep, 0, (<object>keep).strides, scale)


cdef apply_bits(cnp.ndarray x, cnp.ndarray y, cnp.ndarray bits, double scale):
    """y = x * scale where the packed bit (contiguous, in the C order of x) is set, else +0.0."""
    cdef size_t n = cnp.PyArray_SIZE(x)
    cdef const char* source = <const char*>cnp.PyArray_DATA(x)
    cdef char* target = <char*>cnp.PyArray_DATA(y)
    cdef const uint8_t* packed = <const uint8_t*>cnp.PyArray_DATA(bits)
    cdef cdropout_dtype dtype = code_of(x)
    if plain(x, y):
        with nogil:
            apply_bits_span(dtype, source, target, n, packed, scale)
    elif n:
        apply_view(x, y, NULL, bits, None, 0, None, scale)


cdef draw_bools(cnp.ndarray out, const cdropout_mask* mask, uint64_t start, tuple strides):
    """Fill out (C order, a byte per element) with 1 where the mask keeps, else 0."""
    cdef size_t n = cnp.PyArray_SIZE(out)
    cdef uint8_t* target = <uint8_t*>cnp.PyArray_DATA(out)
    if n == 0:
        return
    if strides is not None:
        apply_view(None, out, mask, None, None, start, strides, mask.scale)
    else:
        with nogil:
            draw_bools_span(target, n, mask, start, share, sharers(n))


cdef draw_bits(cnp.ndarray out, size_t n, const cdropout_mask* mask, uint64_t start):
    """Fill out (uint8, contiguous) with n keep bits, least significant first."""
    cdef uint8_t* target = <uint8_t*>cnp.PyArray_DATA(out)
    with nogil:
        draw_bits_span(target, n, mask, start)
