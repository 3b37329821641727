"""Dropout for JAX on the CPU: a key names the mask, and XLA calls the kernels."""

from __future__ import annotations

import warnings
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cdropout.core.generators import check_flag, check_probability
from cdropout.core.masks import Mask, shared_strides
from cdropout.core.xla import handler
from cdropout.functional import dropout_backward

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

FLOATS = ("float16", "bfloat16", "float32", "float64")


def dropout(
    key: ArrayLike,
    x: ArrayLike,
    p: Probability,
    broadcast_dims: Axes = (),
    inplace: bool = False,
) -> jax.Array:
    """Zero each element of `x` with probability `p` and scale the others by ``1 / (1 - p)``.

    Parameters
    ----------
    key : JAX key
        Typed (``jax.random.key``) or raw (``jax.random.PRNGKey``). One key is one mask: the one
        that `seed_and_call` names, ``Mask(x.shape, p, *seed_and_call(key))``.
    x : array of float16, bfloat16, float32 or float64, of any shape
    p : float
        The probability that an element is dropped, in [0, 1]; known when the program is traced.
    broadcast_dims : int or tuple of int
        Axes along which one draw is shared.
    inplace : bool, default False
        Let the result take the memory of `x`, where XLA finds that nothing else needs it, as when
        it was donated; elsewhere XLA copies x first, which costs more than a result of its own.

    Returns
    -------
    array of the shape and type of `x`
        With p = 0, `x` itself.

    Raises
    ------
    TypeError
        If key, x, p or broadcast_dims is of a type that is not taken; the message names it.
    ValueError
        If p is not in [0, 1], broadcast_dims does not fit x, or key is not one key.
    NotImplementedError
        If the program is compiled for another platform than the CPU.

    Notes
    -----
    It works under ``jit``, ``vmap``, ``grad``, ``jvp``, ``scan`` and ``checkpoint``. The backward
    draws the mask again: all that is kept for it is the key. Under ``vmap`` each key has a mask of
    its own; examples that share a key share its mask. An array that is spread over devices is
    gathered first; in ``jax.shard_map`` each device applies the mask of its key to what it has.
    """
    check_flag(inplace, "inplace")
    p = check_probability(p)
    x = jnp.asarray(x)
    if x.dtype.name not in FLOATS:
        raise TypeError(f"x has to be an array of {', '.join(FLOATS)}, but got {x.dtype}")
    strides = shared_strides(x.shape, broadcast_dims) or ()
    shared = sum(1 << axis for axis, step in enumerate(strides) if step == 0)
    _is_typed(key)
    if p == 0:
        return x
    if p == 1:
        return jnp.zeros_like(x)
    return _draw(key, x, p, shared, bool(inplace))


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
    """Must match name_mask in core/xla.pyx."""
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


# ---- the primitive: linear in x, and all there is to save of it is the key ----------------------

_dropout = Primitive("cdropout")
_compiled = jax.jit(_dropout.bind, static_argnames=("p", "shared", "inplace"))


@partial(jax.jit, static_argnums=(2, 3, 4), inline=True)
def _draw(key: Any, x: jax.Array, p: float, shared: int, inplace: bool) -> jax.Array:
    """Bit i of shared stands for axis i, after the axes that key and x begin with under vmap."""
    return _dropout.bind(_words(key), x, p=p, shared=shared, inplace=inplace)


@_dropout.def_impl
def _run(key: Any, x: Any, **parameters: Any) -> Any:
    with jax.disable_jit(False):  # XLA has the only implementation
        return _compiled(key, x, **parameters)


def _varying(aval: Any) -> frozenset[Any]:
    """The axes of a shard_map's mesh along which a value differs; JAX has renamed it since 0.7."""
    kind = getattr(aval, "mat", None)
    return getattr(aval, "vma", frozenset()) if kind is None else kind.varying


@_dropout.def_abstract_eval
def _result(key: Any, x: Any, **_: Any) -> Any:
    if not _varying(key) <= _varying(x):
        axes = tuple(sorted(_varying(key) - _varying(x)))
        raise ValueError(
            f"in shard_map the key differs along {axes}, but x does not: "
            f"pass jax.lax.pcast(x, {axes}, to='varying')"
        )
    return x.update(weak_type=False)


def _transpose(gy: Any, key: Any, x: Any, **parameters: Any) -> tuple[None, Any]:
    return None, gy if type(gy) is ad.Zero else _dropout.bind(key, gy, **parameters)


ad.defjvp(
    _dropout, None, lambda tangent, key, x, **parameters: _dropout.bind(key, tangent, **parameters)
)
ad.primitive_transposes[_dropout] = _transpose


def _batch(arguments: Any, axes: Any, *, shared: int, **parameters: Any) -> tuple[Any, int]:
    """A batch of keys draws a mask each; a batch of x alone shares one, along an axis more."""
    key, x = arguments
    key_axis, x_axis = axes
    if key_axis is None:
        first = key.ndim - 1
        x = jnp.moveaxis(x, x_axis, first)
        return _dropout.bind(key, x, shared=shared << 1 | 1, **parameters), first
    key = jnp.moveaxis(key, key_axis, 0)
    if x_axis is None:
        x = jnp.broadcast_to(x, (key.shape[0], *x.shape))
    else:
        x = jnp.moveaxis(x, x_axis, 0)
    return _dropout.bind(key, x, shared=shared, **parameters), 0


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


def _apply(key: Any, x: Any, p: float, shared: int) -> Any:
    """What the handler does, on NumPy arrays."""
    key, x = np.asarray(key), np.asarray(x)
    y = np.empty_like(x)
    shape = x.shape[key.ndim - 1 :]
    drawn = [1 if shared >> axis & 1 else length for axis, length in enumerate(shape)]
    for index in np.ndindex(key.shape[:-1]):
        keep = np.asarray(Mask(drawn, p, *_seed_and_call(key[index])))
        here = (*index, ...)
        dropout_backward(x[here], np.broadcast_to(keep, shape), p=p, out=y[here])
    return y


def _call_back(key: Any, x: Any, p: float, shared: int) -> Any:
    function = partial(_apply, p=p, shared=shared)
    return jax.pure_callback(function, jax.ShapeDtypeStruct(x.shape, x.dtype), key, x)


def _lower(context: Any, key: Any, x: Any, *, inplace: bool, **attributes: Any) -> Any:
    if not _registered():
        lower = mlir.lower_fun(_call_back, multiple_results=False)
    else:
        aliases = {1: 0} if inplace else None
        lower = ffi.ffi_lowering("cdropout", operand_output_aliases=aliases)
    return lower(context, key, x, **attributes)


def _refuse(context: Any, *_: Any, **__: Any) -> Any:
    platforms = ", ".join(context.module_context.platforms)
    raise NotImplementedError(
        f"cdropout draws its masks on the CPU, and has no kernels for {platforms}; "
        "place the computation there: jax.default_device(jax.local_devices(backend='cpu')[0])"
    )


mlir.register_lowering(_dropout, _refuse)
mlir.register_lowering(_dropout, _lower, platform="cpu")
