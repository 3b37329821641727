"""Dropout for JAX on the CPU: a key names the mask, and XLA calls the kernels."""

from __future__ import annotations

import warnings
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cdropout._core.arguments import check_flag, check_probability
from cdropout._core.dtypes import FLOATS
from cdropout._core.mask import Mask, broadcast_strides, check_mask, check_not_given
from cdropout.jax._xla import handler

try:
    import jax
    from jax import ffi
    from jax import numpy as jnp
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir
except ImportError as error:
    raise ImportError(
        "cdropout.jax needs JAX 0.5 or newer: run `pip install 'cdropout[jax]'`"
    ) from error

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
        Typed (``jax.random.key``) or raw (``jax.random.PRNGKey``). One key is one mask: the one
        that `seed_and_call` names, ``Mask(x.shape, p, *seed_and_call(key))``. It has to be None if
        mask is given.
    x : array of float16, bfloat16, float32 or float64, of any shape
    p : float or scalar array
        The probability that an element is dropped, in [0, 1]. It may be traced, and then the
        program is not compiled again for another p. It is needed without mask; with mask it has to
        be left out or equal to the mask's.
    broadcast_dims : int or tuple of int
        Axes along which one draw is shared.
    inplace : bool, default False
        Let the result take the memory of `x`, where XLA finds that nothing else needs it, as when
        it was donated; elsewhere XLA copies x first, which costs more than a result of its own.

    mask : cdropout.Mask, optional
        A mask of the shape of `x` to apply instead of a new one. It excludes key and
        broadcast_dims. It is part of the program: functions close over it, or take it as an
        argument in ``static_argnames``. Under ``vmap`` it is the mask of each example.

    Returns
    -------
    array of the shape and type of `x`
        With a known p of 0, `x` itself.

    Raises
    ------
    TypeError
        If key, x, p, broadcast_dims or mask has a type that is not supported.
    ValueError
        If a known p is not in [0, 1], broadcast_dims does not fit x, x has more than 64 dimensions,
        key is not one key, mask has another shape, or an argument excludes another one.
    NotImplementedError
        If the program is compiled for another platform than the CPU, or is differentiated with
        respect to p.
    ValueError or jax.errors.JaxRuntimeError
        If a traced p is not in [0, 1]. The error is raised when the program runs, and its type
        depends on how JAX runs the program.

    Notes
    -----
    It works under ``jit``, ``vmap``, ``grad``, ``jvp``, ``scan`` and ``checkpoint``. The backward
    pass draws the mask again: it needs the key and p, and nothing per element. Under ``vmap`` each
    key has its own mask; examples that share a key and p share the mask. An array that is spread
    over devices is gathered first; in ``jax.shard_map`` each device applies the mask of its key to
    its part.

    A given mask with another scale than 1 / (1 - p), or that is a window of another mask, is drawn
    when the program is traced, and the program holds it as an array of bools; XLA may then flush
    subnormal products to zero.

    A traced p has the value of its type. JAX makes it a float32 unless 64-bit types are enabled:
    ``jax.jit(dropout)(key, x, 0.1)`` applies ``Mask(x.shape, float(np.float32(0.1)), ...)``, which
    differs from the mask for 0.1 in about one of 10**9 elements. It has no derivative with
    respect to p, since an element is either kept or dropped. If p is among the values with respect
    to which a loss is differentiated, pass ``jax.lax.stop_gradient(p)``.
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
        return _apply_given(x, mask, p, bool(inplace))
    strides = broadcast_strides(x.shape, broadcast_dims) or ()
    shared = sum(1 << axis for axis, step in enumerate(strides) if step == 0)
    _is_typed(key)
    if isinstance(p, float):
        if p == 0:
            return x
        if p == 1:
            return jnp.zeros_like(x)
        p = _words_of(np.array([p]))
    return _draw(key, x, p, shared, bool(inplace))


def _words_of(numbers: Any) -> Any:
    """Return the uint32 words of an array of 64-bit numbers, the higher words first."""
    return numbers.astype(numbers.dtype.newbyteorder(">")).view(">u4").astype(np.uint32)


def _apply_given(x: Any, mask: Mask, p: Any, inplace: bool) -> Any:
    """Apply a given mask: as a key if its seed and call suffice, otherwise as an array of bools."""
    if isinstance(p, jax.core.Tracer):
        raise TypeError("p has to be left out if mask is given, but it is traced")
    check_mask(mask, x.shape, (), p, None)
    if mask.p == 0 and mask.scale == 1:
        return x
    if mask.p == 1:
        return jnp.zeros_like(x)
    axes = tuple(axis for axis, step in enumerate(mask.strides) if step == 0)
    whole = Mask(x.shape, mask.p, mask.seed, mask.call, strides=broadcast_strides(x.shape, axes))
    if mask == whole:
        key = _words_of(np.array([mask.seed, mask.call], np.uint64))
        shared = sum(1 << axis for axis in axes)
        return _draw(key, x, _words_of(np.array([mask.p])), shared, inplace)
    wide = jnp.float32 if x.dtype.itemsize == 2 else x.dtype
    y = (x.astype(wide) * np.asarray(mask.scale, wide)).astype(x.dtype)
    return jnp.where(np.asarray(mask), y, jnp.zeros((), x.dtype))


def _check_static(name: str, value: Any) -> None:
    """Raise a TypeError that names static_argnames if an argument is traced."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
        raise TypeError(
            f"{name} has to be known when the program is compiled, but it is traced: "
            f"jax.jit takes static_argnames={name!r}"
        )


def _check_p(p: Any) -> Any:
    """Return a known p as a float, a traced one as an array of float32 or float64."""
    if not isinstance(p, jax.core.Tracer):
        return check_probability(p)
    if p.shape or not any(jnp.issubdtype(p.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise TypeError(
            f"p has to be a number between 0 and 1, but got {p.dtype} of shape {p.shape}"
        )
    return p if p.dtype == np.float64 else p.astype(np.float32)


def seed_and_call(key: ArrayLike) -> tuple[int, int]:
    """Return the seed and the call number of the mask that a key names.

    A key of two words (threefry's, JAX's default) is the seed, the higher word first, and the call
    number is 0: ``jax.random.key(7)`` names the mask with seed 7. The two last of four words (rbg)
    are the call number.

    Parameters
    ----------
    key : JAX key
        As in `dropout`, with a known value.

    Raises
    ------
    TypeError, ValueError
        As `dropout`.
    """
    return _seed_and_call(np.asarray(_words(key)))


def _seed_and_call(words: Any) -> tuple[int, int]:
    """Must match apply_mask in jax/_xla.pyx."""
    high, low, *rest = (int(word) for word in words)
    return high << 32 | low, rest[0] << 32 | rest[1] if rest else 0


def _is_typed(key: Any) -> bool:
    """Whether a key is typed, or raw; TypeError if it is neither."""
    dtype = getattr(key, "dtype", type(key).__name__)
    if hasattr(key, "dtype") and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return True
    if dtype != np.uint32:
        raise TypeError(f"key has to be a JAX key, as of jax.random.key(7), but got {dtype}")
    return False


def _words(key: Any) -> Any:
    """The uint32 words of one key."""
    words = jax.random.key_data(key) if _is_typed(key) else key
    if words.shape not in ((2,), (4,)):
        raise ValueError(
            f"key has to be one key, of 2 or 4 words, but got {key.dtype} of shape {key.shape}; "
            "jax.vmap takes a key for each example"
        )
    return words


# ---- the primitive: it is linear in x; for its transpose it keeps the key and p ------------------

_dropout = Primitive("cdropout")
_compiled = jax.jit(_dropout.bind, static_argnames=("shared", "inplace"))


@partial(jax.jit, static_argnums=(3, 4), inline=True)
def _draw(key: Any, x: jax.Array, p: Any, shared: int, inplace: bool) -> jax.Array:
    """Bind the primitive. Bit i of shared stands for axis i of a mask.

    The shape of x is that of the keys, followed by that of a mask. p is float32, float64 or, if it
    is known, the bits of a float64 as two uint32, the higher first; `vmap` makes it one per key.
    """
    return _dropout.bind(_words(key), x, p, shared=shared, inplace=inplace)


@_dropout.def_impl
def _run(*operands: Any, **parameters: Any) -> Any:
    with jax.disable_jit(False):  # XLA has the only implementation
        return _compiled(*operands, **parameters)


def _varying(aval: Any) -> frozenset[Any]:
    """The axes of a shard_map's mesh along which a value differs; JAX has renamed it since 0.7."""
    kind = getattr(aval, "mat", None)
    return getattr(aval, "vma", frozenset()) if kind is None else kind.varying


@_dropout.def_abstract_eval
def _result(key: Any, x: Any, p: Any, **_: Any) -> Any:
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


def _batch(operands: Any, axes: Any, *, shared: int, **parameters: Any) -> tuple[Any, int]:
    """Draw a mask per key and p of a batch. A batch of x alone has one mask, with one more axis."""
    key, x, p = operands
    key_axis, x_axis, p_axis = axes
    if key_axis is None and p_axis is None:
        first = key.ndim - 1
        x = jnp.moveaxis(x, x_axis, first)
        return _dropout.bind(key, x, p, shared=shared << 1 | 1, **parameters), first
    key_or_p, axis = (p, p_axis) if key_axis is None else (key, key_axis)
    size = key_or_p.shape[axis]
    key, x = _to_front(key, key_axis, size), _to_front(x, x_axis, size)
    words = p.shape[-1:] if p.dtype == np.uint32 else ()
    if p_axis is not None or p.ndim > len(words):  # otherwise there is one for all keys
        p = _to_front(p, p_axis, size)
        missing = range(p.ndim - len(words), key.ndim - 1)
        p = jnp.broadcast_to(jnp.expand_dims(p, tuple(missing)), (*key.shape[:-1], *words))
    return _dropout.bind(key, x, p, shared=shared, **parameters), 0


def _to_front(operand: Any, axis: int | None, size: int) -> Any:
    """Move the batch's axis to the front, or add it."""
    if axis is None:
        return jnp.broadcast_to(operand, (size, *operand.shape))
    return jnp.moveaxis(operand, axis, 0)


batching.primitive_batchers[_dropout] = _batch


# ---- its way to the kernels ---------------------------------------------------------------------


@cache
def _registered() -> bool:
    """Whether XLA takes the handler; a version that it does not know is a warning."""
    jax.local_devices(backend="cpu")  # before XLA has begun it would queue, and then not begin
    try:
        ffi.register_ffi_target("cdropout", handler, platform="cpu")
    except RuntimeError as error:
        warnings.warn(
            f"this jaxlib does not call cdropout's kernels directly, but through Python, which is "
            f"slower; a newer cdropout may help: {error}",
            stacklevel=2,
        )
        return False
    return True


def _window(ndim: int, shared: int) -> Any:
    """Return where a mask begins and how long it is, as jax/_xla.pyx describes it: as long as x."""
    window = np.zeros((ndim, 4), np.uint32)
    window[:, 3] = [shared >> axis & 1 for axis in range(ndim)]
    return window


def _apply(key: Any, x: Any, p: Any, window: Any) -> Any:
    """Do what the handler does, on NumPy arrays."""
    key, x, p, window = (np.asarray(operand) for operand in (key, x, p, window))
    y = np.empty_like(x)
    keys, shape = key.shape[:-1], x.shape[key.ndim - 1 :]
    if p.dtype == np.uint32:
        p = p.astype(">u4").view(">f8")[..., 0]
    offsets, lengths = np.ascontiguousarray(window, ">u4").view(">u8").T.tolist()
    lengths = [length or of_x for length, of_x in zip(lengths, shape, strict=True)]
    dense = Mask(lengths, 0).strides
    strides = [step if n != 1 else 0 for n, step in zip(lengths, dense, strict=True)]
    start = sum(offset * step for offset, step in zip(offsets, strides, strict=True))
    for index in np.ndindex(keys):
        rate = np.broadcast_to(p, keys)[index]
        mask = Mask(shape, rate, *_seed_and_call(key[index]), start, strides)
        mask.apply(x[(*index, ...)], out=y[(*index, ...)])
    return y


def _call_back(key: Any, x: Any, p: Any, window: Any) -> Any:
    return jax.pure_callback(_apply, jax.ShapeDtypeStruct(x.shape, x.dtype), key, x, p, window)


def _lower(context: Any, *operands: Any, shared: int, inplace: bool) -> Any:
    key, x, _ = context.avals_in
    window = _window(x.ndim - (key.ndim - 1), shared)
    context = context.replace(
        avals_in=[*context.avals_in, jax.core.ShapedArray(window.shape, window.dtype)]
    )
    if not _registered():
        lower = mlir.lower_fun(_call_back, multiple_results=False)
    else:
        aliases = {1: 0} if inplace else None
        lower = ffi.ffi_lowering("cdropout", operand_output_aliases=aliases)
    return lower(context, *operands, mlir.ir_constant(window))


def _refuse(context: Any, *_: Any, **__: Any) -> Any:
    platforms = ", ".join(context.module_context.platforms)
    raise NotImplementedError(
        f"cdropout draws its masks on the CPU, and has no kernels for {platforms}; "
        "place the computation there: jax.default_device(jax.local_devices(backend='cpu')[0])"
    )


mlir.register_lowering(_dropout, _refuse)
mlir.register_lowering(_dropout, _lower, platform="cpu")
