"""Validation of NumPy arrays and of objects that export their memory, and application of masks to arrays."""
cimport numpy as cnp
from libc.stdint cimport int64_t, uint8_t, uint64_t

import numpy as np

from cdropout cimport CDROPOUT_BOOL, cdropout_axis, cdropout_mask
from cdropout._core.dtypes import FLOATS_TEXT
from cdropout._core.dtypes cimport by_array
from cdropout._core.engine cimport Operation, apply, stride_along, use_stored_mask, use_mask, use_shift
from cdropout._core.executor cimport pool
from cdropout._core.view cimport View, arrange, overlaps_itself

cdef extern from "numpy/arrayobject.h":
    cnp.ndarray PyArray_NewLikeArray(cnp.ndarray, cnp.NPY_ORDER, cnp.PyArray_Descr*, int)

cnp.import_array()

# Advice on how to convert objects that are not supported. The keys are the packages that define
# the types of these objects.
cdef dict ADVICE = {
    "astropy": "pass {}.value",
    "autograd": "multiply {} by mask.to_scale()",
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


# ---- validation -------------------------------------------------------------------------------


cdef bint is_plain_array(object x):
    """Return whether type(x) is ndarray, or a subclass in NumPy that adds no meaning, such as units, to the elements."""
    return type(x) is cnp.ndarray or type(x) in (np.memmap, np.matrix, np.recarray)


cdef advice(x, name, default=""):
    """Return the end of an error message, which explains how to convert x, or an empty string if there is no advice."""
    packages = [str(kind.__module__).partition(".")[0] for kind in type(x).__mro__]
    found = [ADVICE[package] for package in packages if package in ADVICE]
    text = found[0] if found else default
    return f"; {text.format(name)}" if text else ""


cdef refuse_subclass(x, name):
    """Raise a TypeError, because x is an instance of an unsupported subclass of ndarray."""
    if isinstance(x, np.ma.MaskedArray):  # tested only here, so that np.ma is imported only if needed
        raise TypeError(f"{name} is a masked array, and its mask would be lost; pass {name}.data or {name}.filled()")
    problem = f"{name} is of type {type(x).__name__}, a subclass of ndarray whose meaning the result would lose"
    raise TypeError(problem + advice(x, name, "pass np.asarray({})"))


cdef cnp.ndarray as_array(object x, name="x"):
    """Return x as an ndarray; only NumPy scalars are copied.

    If x is not supported, raise TypeError, or BufferError if DLPack fails. The message contains `name`.
    """
    cdef cnp.ndarray array
    if type(x) is cnp.ndarray:
        array = x
    elif isinstance(x, cnp.ndarray):
        if not is_plain_array(x):
            refuse_subclass(x, name)
        array = np.asarray(x)
    elif isinstance(x, np.generic):
        array = np.asarray(x)
        array.flags.writeable = False  # scalars are immutable
    else:
        array = from_exporter(x, name)
    if by_array(array) == NULL:
        raise TypeError(f"{name} has to be an array of {FLOATS_TEXT}, but got {array.dtype}")
    if not cnp.PyArray_ISNOTSWAPPED(array):
        raise TypeError(f"{name} has to be in this machine's byte order, but got {array.dtype.str}")
    return array


def from_exporter(x, name):
    """Return a NumPy array that shares the memory of x, which has to have DLPack or the buffer protocol."""
    if hasattr(type(x), "__dlpack__"):  # tested on the type, because some wrappers forward attributes
        try:
            return np.from_dlpack(x)
        except Exception as error:
            suggestion = advice(x, name)
            if not suggestion and not isinstance(error, (BufferError, RuntimeError)):  # from_dlpack raises these errors
                raise
            kind = TypeError if isinstance(error, TypeError) else BufferError
            problem = f"{name}, of type {type(x).__name__}, cannot be read as a NumPy array{suggestion}"
            raise kind(f"{problem}: {error}") from error
    try:
        return np.asarray(memoryview(x))
    except (TypeError, ValueError):    # x has no buffer, or NumPy does not support its element type
        raise TypeError(
            f"{name} has to be a NumPy array, or have DLPack or the buffer protocol, "
            f"with elements of {FLOATS_TEXT}, but got {type(x).__name__}{advice(x, name)}"
        ) from None


def as_any_array(x):
    """Return x if x is an ndarray, otherwise the result of `as_array`. Raise the same errors as `as_array`."""
    array = as_array(x)
    return x if isinstance(x, cnp.ndarray) else array


cdef check_writable(cnp.ndarray array, name):
    """Raise ValueError if the array is read-only or if its elements may overlap in memory."""
    cdef View view
    if not cnp.PyArray_ISWRITEABLE(array):
        raise ValueError(f"{name} is read-only")
    if cnp.PyArray_IS_C_CONTIGUOUS(array):
        return
    fill_view(&view, array, array, 0, None)
    arrange(&view, view.ndim, view.axes)
    if overlaps_itself(&view, cnp.PyArray_ITEMSIZE(array)):
        raise ValueError(f"elements of {name} overlap in memory")


cdef bint same_memory(cnp.ndarray a, cnp.ndarray b):
    """Return whether two arrays of the same shape have their elements at the same addresses."""
    cdef int i
    if cnp.PyArray_DATA(a) != cnp.PyArray_DATA(b):
        return False
    for i in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_STRIDE(a, i) != cnp.PyArray_STRIDE(b, i) and cnp.PyArray_DIM(a, i) > 1:
            return False
    return True


cdef bint partly_overlap(cnp.ndarray a, cnp.ndarray b):
    """Return whether two arrays of the same shape overlap but do not have their elements at the same addresses.

    Return True if an overlap is too hard to determine.
    """
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
    """Raise ValueError unless the result for x can be written to out."""
    if not cnp.PyArray_SAMESHAPE(x, out):
        raise ValueError(f"out has to have the shape of x, {shape_of(x)}, but got {shape_of(out)}")
    if cnp.PyArray_TYPE(out) != cnp.PyArray_TYPE(x) or not cnp.PyArray_ISNOTSWAPPED(out):
        raise ValueError(f"out has to have the type and byte order of x, {x.dtype.str}, but got {out.dtype.str}")
    check_writable(out, "out")
    if partly_overlap(x, out):
        raise ValueError("out partly overlaps x; it has to be x itself or memory that does not overlap x")


cpdef cnp.ndarray destination(cnp.ndarray x, bint inplace, object out):
    """Return the array that receives the result: x, out, or a new array in the memory order of x."""
    if inplace:
        if out is not None:
            raise ValueError("inplace=True cannot be combined with out=")
        check_writable(x, "x")
        return x
    if out is None:
        return PyArray_NewLikeArray(x, cnp.NPY_KEEPORDER, NULL, 0)
    if not is_plain_array(out):
        raise TypeError(f"out has to be a NumPy array, but got {type(out).__name__}")
    if out is not x:
        check_out(x, out)
    else:
        check_writable(x, "out")
    return out


# ---- operations ---------------------------------------------------------------------------------


cdef fill_view(View* view, cnp.ndarray x, cnp.ndarray y, uint64_t start, tuple strides):
    """Set the fields of a view of x and y. If `strides` is None, the mask has the strides of C order."""
    cdef cdropout_axis* axis
    cdef int64_t step = 1
    cdef int i
    view.x = <const char*>cnp.PyArray_DATA(x)
    view.y = <char*>cnp.PyArray_DATA(y)
    view.start = start
    view.ndim = cnp.PyArray_NDIM(y)
    for i in range(view.ndim - 1, -1, -1):
        axis = &view.axes[i]
        axis.length = cnp.PyArray_DIM(y, i)
        axis.x = cnp.PyArray_STRIDE(x, i)
        axis.y = cnp.PyArray_STRIDE(y, i)
        axis.mask = stride_along(i, strides, step)
        step *= axis.length


cdef apply_mask(
    cnp.ndarray x, cnp.ndarray y, const cdropout_mask* mask, uint64_t start, tuple strides, tuple shift=None,
):
    """Apply a mask to x: ``y = x * scale`` where the mask keeps an element, otherwise +0.0.

    `strides` contains the strides of the mask, or is None for C order. With `shift` and a scale other than 0,
    kept elements become ``x * scale + shift[0]``, and dropped elements become ``shift[1]``.
    """
    cdef Operation operation
    fill_view(&operation.view, x, y, start, strides)
    operation.dtype = by_array(x).code
    use_mask(&operation, mask)
    if shift is not None:
        use_shift(&operation, shift[0], shift[1])
    apply(&operation, pool)


cdef apply_bools(cnp.ndarray x, cnp.ndarray y, cnp.ndarray keep, double scale):
    """Apply an array of bools of the same shape as x: ``y = x * scale`` where `keep` is true, otherwise +0.0."""
    cdef Operation operation
    fill_view(&operation.view, x, y, 0, (<object>keep).strides)
    operation.dtype = by_array(x).code
    use_stored_mask(&operation, NULL, <const uint8_t*>cnp.PyArray_DATA(keep), scale)
    apply(&operation, pool)


cdef apply_bits(cnp.ndarray x, cnp.ndarray y, cnp.ndarray bits, double scale):
    """Apply packed bits, which are contiguous and in C order: ``y = x * scale`` where the bit is 1, otherwise +0.0."""
    cdef Operation operation
    fill_view(&operation.view, x, y, 0, None)
    operation.dtype = by_array(x).code
    use_stored_mask(&operation, <const uint8_t*>cnp.PyArray_DATA(bits), NULL, scale)
    apply(&operation, pool)


cdef draw_bools(cnp.ndarray out, const cdropout_mask* mask, uint64_t start, tuple strides):
    """Fill `out`, which has one byte per element, with 1 where the mask keeps an element, otherwise 0."""
    cdef Operation operation
    fill_view(&operation.view, out, out, start, strides)
    operation.dtype = CDROPOUT_BOOL
    use_mask(&operation, mask)
    apply(&operation, pool)


cdef draw_bits(cnp.ndarray out, size_t n, const cdropout_mask* mask, uint64_t start):
    """Write n bits of the mask to `out`, a contiguous array of uint8. The least significant bit of a byte is first."""
    cdef Operation operation
    operation.view.x = operation.view.y = <char*>cnp.PyArray_DATA(out)
    operation.view.start = start
    operation.view.ndim = 1
    operation.view.axes[0] = cdropout_axis(n, 1, 1, 1)
    operation.dtype = CDROPOUT_BOOL
    use_mask(&operation, mask)
    operation.packs = True
    apply(&operation, pool)
