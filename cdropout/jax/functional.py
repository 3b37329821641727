"""Dropout as a JAX primitive: its transformations and its lowering to an XLA custom call."""

from __future__ import annotations

import warnings
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import ffi
from jax import numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from cdropout._core.arguments import check_flag, check_probability
from cdropout._core.dtypes import FLOATS
from cdropout._core.mask import Mask, broadcast_strides, check_mask, check_not_given
from cdropout.jax._xla import handler
from cdropout.jax.partitioning import MAX_AXES, TARGETS, register_partitioner, set_sharding_rule

if TYPE_CHECKING:
    from jax.typing import ArrayLike

    from cdropout.typing import Axes, Probability

__all__ = ["dropout", "seed_and_call"]


def dropout(
    key: ArrayLike | None,
    x: ArrayLike,
    p: Probability | None = None,
    broadcast_dims: Axes = (),
    inplace: bool = False,
    *,
    mask: Mask | None = None,
) -> jax.Array:
    """Zero each element of `x` with probability `p` and scale the others by ``1 / (1 - p)``.

    Parameters
    ----------
    key : JAX key or None
        A typed (``jax.random.key``) or raw (``jax.random.PRNGKey``) key, which determines the mask.
        Without broadcast_dims, the mask is ``Mask(x.shape, p, *seed_and_call(key))``. The key has
        to be None if mask is given.
    x : array of float16, bfloat16, float32 or float64, of any shape
    p : float or scalar array
        The probability that an element is dropped, in [0, 1]. If p is traced, the program is not
        compiled again for another p. If mask is given, p has to be left out or equal to ``mask.p``;
        otherwise p is required.
    broadcast_dims : int or tuple of int
        Axes along which all elements share one draw.
    inplace : bool, default False
        Write the result to the memory of `x` if XLA finds no other use of that memory, for example
        because `x` was donated. Otherwise XLA copies `x` first, which is slower than
        ``inplace=False``.
    mask : cdropout.Mask, optional
        A mask of the shape of `x` to apply instead of a new one. It cannot be combined with key or
        broadcast_dims. A compiled program contains the mask as a constant: define the mask outside
        of the function, or list its name in ``static_argnames``. Under ``vmap`` the same mask is
        applied to each example.

    Returns
    -------
    array of the shape and type of `x`
        The result. It is `x` itself if p is known to be 0 and the scale of the mask is 1.

    Raises
    ------
    TypeError
        If key, x, p, broadcast_dims or mask has a type that is not supported.
    ValueError
        If a known p is not in [0, 1], broadcast_dims does not fit x, x has more than 64 dimensions,
        key is neither one typed key nor a raw key of length 2 or 4, mask does not fit x and p, or
        two of the arguments exclude each other.
    NotImplementedError
        If the program is compiled for a platform other than the CPU, or is differentiated with
        respect to p.
    ValueError or jax.errors.JaxRuntimeError
        If a traced p is not in [0, 1]. The error is raised when the program runs, and its type
        depends on how JAX runs the program.

    Notes
    -----
    `dropout` supports ``jit``, ``vmap``, ``grad``, ``jvp``, ``scan`` and ``checkpoint``. The
    backward pass draws the mask again from the key and p; nothing is stored per element. Under
    ``vmap`` each key determines its own mask; examples with the same key and p have the same mask.
    If `x` is sharded over CPU devices, each device draws the window of the mask that belongs to its
    shard, without communication. In ``jax.shard_map`` the key of each device determines the mask
    for its shard.

    A given mask that no key determines, because of its start, strides or scale, is drawn when the
    program is traced. The program stores the mask as an array of bools and multiplies kept elements
    by the scale; XLA may flush subnormal products to zero.

    A traced p is rounded to its type, which is float32 unless 64-bit types are enabled:
    ``jax.jit(dropout)(key, x, 0.1)`` applies ``Mask(x.shape, float(np.float32(0.1)), ...)``, which
    differs from the mask for 0.1 in about one of 10**9 elements.

    The result has no derivative with respect to p, since an element is either kept or dropped. To
    differentiate a loss with respect to values that include p, pass ``jax.lax.stop_gradient(p)``.
    """
    _check_static("broadcast_dims", broadcast_dims)
    _check_static("inplace", inplace)
    check_flag(inplace, "inplace")
    if mask is None:
        p = _check_p(p)
    x = jnp.asarray(x)
    if x.dtype.name not in FLOATS:
        raise TypeError(f"x has to be an array of {', '.join(FLOATS)}, but got {x.dtype}")
    if x.ndim > 64:
        raise ValueError(f"x has to have at most 64 dimensions, but got {x.ndim}")
    if mask is not None:
        check_not_given("key", key)
        check_not_given("broadcast_dims", broadcast_dims)
        return _apply_mask(x, mask, p, bool(inplace))
    broadcast_axes = _broadcast_axes(broadcast_strides(x.shape, broadcast_dims))
    _is_typed(key)
    if isinstance(p, float):
        if p == 0:
            return x
        if p == 1:
            return jnp.zeros_like(x)
        p = _to_uint32(np.array([p]))
    return _apply_key(key, x, p, broadcast_axes, bool(inplace))


def _broadcast_axes(strides: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the axes with stride 0, along which all elements of a mask share one draw."""
    return tuple(axis for axis, stride in enumerate(strides or ()) if stride == 0)


def _to_uint32(numbers: Any) -> Any:
    """Return each 64-bit number of an array as two uint32, with the higher half first."""
    return numbers.astype(numbers.dtype.newbyteorder(">")).view(">u4").astype(np.uint32)


def _apply_mask(x: Any, mask: Mask, p: Any, inplace: bool) -> Any:
    """Apply a given mask to x: use a key if a key can determine this mask, otherwise bools."""
    if isinstance(p, jax.core.Tracer):
        raise TypeError("p has to be left out if mask is given, but it is traced")
    check_mask(mask, x.shape, (), p, None)
    if mask.p == 0 and mask.scale == 1:
        return x
    if mask.p == 1:
        return jnp.zeros_like(x)
    axes = _broadcast_axes(mask.strides)
    whole = Mask(x.shape, mask.p, mask.seed, mask.call, strides=broadcast_strides(x.shape, axes))
    if mask == whole:
        key = _to_uint32(np.array([mask.seed, mask.call], np.uint64))
        return _apply_key(key, x, _to_uint32(np.array([mask.p])), axes, inplace)
    wide = jnp.float32 if x.dtype.itemsize == 2 else x.dtype
    y = (x.astype(wide) * np.asarray(mask.scale, wide)).astype(x.dtype)
    return jnp.where(np.asarray(mask), y, jnp.zeros((), x.dtype))


def _check_static(name: str, value: Any) -> None:
    """Raise a TypeError if an argument is traced."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
        raise TypeError(
            f"{name} has to be known when the program is compiled, but it is traced: "
            f"pass static_argnames={name!r} to jax.jit"
        )


def _check_p(p: Any) -> Any:
    """Return a known p as a float, and a traced p as an array of float32 or float64."""
    if not isinstance(p, jax.core.Tracer):
        return check_probability(p)
    if p.shape or not any(jnp.issubdtype(p.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise TypeError(
            f"p has to be a number between 0 and 1, but got {p.dtype} of shape {p.shape}"
        )
    return p if p.dtype == np.float64 else p.astype(np.float32)


def seed_and_call(key: ArrayLike) -> tuple[int, int]:
    """Return the seed and the call number of the mask that a key determines.

    The data of a key are two or four uint32. The first two are the halves of the seed, with the
    higher half first. In a key of four uint32 (rbg), the last two are the halves of the call
    number. For a key of two uint32 (threefry, JAX's default), the call number is 0:
    ``jax.random.key(7)`` determines the mask with seed 7.

    Parameters
    ----------
    key : JAX key
        A typed or raw key, as in `dropout`, that is not traced.

    Returns
    -------
    tuple of two ints
        The seed and the call number.

    Raises
    ------
    TypeError, ValueError
        For the same keys as in `dropout`, and if key is traced.
    """
    return _split_key_data(np.asarray(_key_data(key)))


def _split_key_data(data: Any) -> tuple[int, int]:
    """Return the seed and the call number that `init_mask` in jax/_xla.pyx computes from a key."""
    high, low, *call = (int(number) for number in data)
    return high << 32 | low, call[0] << 32 | call[1] if call else 0


def _is_typed(key: Any) -> bool:
    """Return True for a typed key and False for a raw key; raise a TypeError for other objects."""
    dtype = getattr(key, "dtype", type(key).__name__)
    if hasattr(key, "dtype") and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return True
    if dtype != np.uint32:
        raise TypeError(f"key has to be a JAX key, such as jax.random.key(7), but got {dtype}")
    return False


def _key_data(key: Any) -> Any:
    """Return the uint32 array of one key."""
    data = jax.random.key_data(key) if _is_typed(key) else key
    if data.shape not in ((2,), (4,)):
        raise ValueError(
            "key has to be one typed key or a uint32 array of length 2 or 4, "
            f"but got {key.dtype} of shape {key.shape}; use jax.vmap for several keys"
        )
    return data


# ---- the primitive, which is linear in x --------------------------------------------------------

_dropout = Primitive("cdropout")
_compiled_dropout = jax.jit(_dropout.bind, static_argnames=("broadcast_axes", "inplace"))


@partial(jax.jit, static_argnums=(3, 4), inline=True)
def _apply_key(
    key: Any, x: jax.Array, p: Any, broadcast_axes: tuple[int, ...], inplace: bool
) -> jax.Array:
    """Bind the primitive for one key, and return the result.

    The operands of the primitive are key data, x and p. The shape of x begins with that of the
    keys; the other dimensions are those of a mask. broadcast_axes contains the indices of the
    broadcast axes of a mask. A traced p is a float32 or float64. A known p is passed as the bits of
    a float64, in two uint32 with the higher half first. Under `vmap` there may be one p per key.
    """
    return _dropout.bind(_key_data(key), x, p, broadcast_axes=broadcast_axes, inplace=inplace)


@_dropout.def_impl
def _execute(*operands: Any, **parameters: Any) -> Any:
    with jax.disable_jit(False):  # only XLA can execute the primitive
        return _compiled_dropout(*operands, **parameters)


def _varying(aval: Any) -> frozenset[Any]:
    """Return the mesh axes along which a value differs: `mat.varying`, or `vma` in older JAX."""
    kind = getattr(aval, "mat", None)
    return getattr(aval, "vma", frozenset()) if kind is None else kind.varying


@_dropout.def_abstract_eval
def _evaluate_abstractly(key: Any, x: Any, p: Any, **_: Any) -> Any:
    for name, operand in ("the key", key), ("p", p):
        if not _varying(operand) <= _varying(x):
            axes = tuple(sorted(_varying(operand) - _varying(x)))
            raise ValueError(
                f"in shard_map {name} differs along {axes}, but x does not: "
                f"pass jax.lax.pcast(x, {axes}, to='varying')"
            )
    return x.update(weak_type=False)


def _jvp_of_x(tangent: Any, key: Any, x: Any, p: Any, **parameters: Any) -> Any:
    return _dropout.bind(key, tangent, p, **parameters)


def _jvp_of_p(*_: Any, **__: Any) -> Any:
    raise NotImplementedError(
        "dropout has no derivative with respect to p; pass jax.lax.stop_gradient(p)"
    )


def _transpose(gy: Any, key: Any, x: Any, p: Any, **parameters: Any) -> tuple[Any, ...]:
    return None, gy if type(gy) is ad.Zero else _dropout.bind(key, gy, p, **parameters), None


ad.defjvp(_dropout, None, _jvp_of_x, _jvp_of_p)
ad.primitive_transposes[_dropout] = _transpose


def _batch(
    operands: Any, axes: Any, *, broadcast_axes: tuple[int, ...], **parameters: Any
) -> tuple[Any, int]:
    """Return the result for a batch, and the batch axis of the result.

    Each pair of a key and a p in the batch determines a mask. If only x has a batch axis, one mask
    is applied to all examples.
    """
    key, x, p = operands
    key_axis, x_axis, p_axis = axes
    if key_axis is None and p_axis is None:
        batch_axis = key.ndim - 1
        x = jnp.moveaxis(x, x_axis, batch_axis)
        broadcast_axes = (0, *(axis + 1 for axis in broadcast_axes))
        return _dropout.bind(key, x, p, broadcast_axes=broadcast_axes, **parameters), batch_axis
    key_or_p, axis = (p, p_axis) if key_axis is None else (key, key_axis)
    size = key_or_p.shape[axis]
    key, x = _to_front(key, key_axis, size), _to_front(x, x_axis, size)
    shape_of_p = p.shape[-1:] if p.dtype == np.uint32 else ()
    if p_axis is not None or p.ndim > len(shape_of_p):  # otherwise one p applies to all keys
        p = _to_front(p, p_axis, size)
        missing = range(p.ndim - len(shape_of_p), key.ndim - 1)
        p = jnp.broadcast_to(jnp.expand_dims(p, tuple(missing)), (*key.shape[:-1], *shape_of_p))
    return _dropout.bind(key, x, p, broadcast_axes=broadcast_axes, **parameters), 0


def _to_front(operand: Any, axis: int | None, size: int) -> Any:
    """Move the batch axis of an operand to the front, or add one of length `size` at the front."""
    if axis is None:
        return jnp.broadcast_to(operand, (size, *operand.shape))
    return jnp.moveaxis(operand, axis, 0)


batching.primitive_batchers[_dropout] = _batch


# ---- lowering to the kernels --------------------------------------------------------------------


@cache
def _register_handler() -> bool:
    """Register the handler with XLA and return True, or warn and return False."""
    jax.local_devices(backend="cpu")  # JAX delays registrations until its backends are initialized
    try:
        for target in ("cdropout", *TARGETS.values()):
            ffi.register_ffi_target(target, handler, platform="cpu")
    except RuntimeError as error:
        warnings.warn(
            "this jaxlib cannot call cdropout's kernels directly, so that dropout is a slower "
            f"Python callback; a newer cdropout may help: {error}",
            stacklevel=2,
        )
        return False
    register_partitioner()
    return True


def _window(ndim: int, broadcast_axes: tuple[int, ...]) -> Any:
    """Return the operand `window` of jax/_xla.pyx for a mask that is not part of another mask."""
    window = np.zeros((ndim, 4), np.uint32)
    window[:, 3] = [axis in broadcast_axes for axis in range(ndim)]
    return window


def _apply_in_python(key: Any, x: Any, p: Any, window: Any) -> Any:
    """Compute the result of the handler in Python, with NumPy arrays."""
    key, x, p, window = (np.asarray(operand) for operand in (key, x, p, window))
    y = np.empty_like(x)
    keys, shape = key.shape[:-1], x.shape[key.ndim - 1 :]
    if p.dtype == np.uint32:
        p = p.astype(">u4").view(">f8")[..., 0]
    offsets, lengths = np.ascontiguousarray(window, ">u4").view(">u8").T.tolist()
    lengths = [length or of_x for length, of_x in zip(lengths, shape, strict=True)]
    strides = [s if n != 1 else 0 for n, s in zip(lengths, Mask(lengths, 0).strides, strict=True)]
    start = sum(offset * stride for offset, stride in zip(offsets, strides, strict=True))
    for index in np.ndindex(keys):
        p_of_key = np.broadcast_to(p, keys)[index]
        mask = Mask(shape, p_of_key, *_split_key_data(key[index]), start, strides)
        mask.apply(x[(*index, ...)], out=y[(*index, ...)])
    return y


def _call_python(key: Any, x: Any, p: Any, window: Any) -> Any:
    result = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(_apply_in_python, result, key, x, p, window)


def _lower(context: Any, *operands: Any, broadcast_axes: tuple[int, ...], inplace: bool) -> Any:
    key, x, _ = context.avals_in
    window = _window(x.ndim - (key.ndim - 1), broadcast_axes)
    context = context.replace(
        avals_in=[*context.avals_in, jax.core.ShapedArray(window.shape, window.dtype)]
    )
    if not _register_handler():
        lower = mlir.lower_fun(_call_python, multiple_results=False)
        return lower(context, *operands, mlir.ir_constant(window))
    axis_context = context.module_context.axis_context
    sharded = (
        isinstance(axis_context, mlir.ShardingContext)
        and axis_context.num_devices > 1
        and x.ndim <= MAX_AXES
    )
    target = TARGETS[inplace] if sharded else "cdropout"
    lower = ffi.ffi_lowering(target, operand_output_aliases={1: 0} if inplace else None)
    results: Any = lower(context, *operands, mlir.ir_constant(window))
    if sharded:
        set_sharding_rule(results[0].owner, *context.avals_in)
    return results


def _raise_unsupported(context: Any, *_: Any, **__: Any) -> Any:
    platforms = ", ".join(context.module_context.platforms)
    raise NotImplementedError(
        f"cdropout has kernels for the CPU only, but the program is compiled for {platforms}; to "
        "run it on the CPU, use jax.default_device(jax.local_devices(backend='cpu')[0])"
    )


mlir.register_lowering(_dropout, _raise_unsupported)
mlir.register_lowering(_dropout, _lower, platform="cpu")
