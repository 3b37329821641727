"""The op that applies a mask: its registration, Python wrapper, gradient and vectorization."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import tensorflow as tf

from cdropout.tensorflow._tf import NAME, WHOLE, register

missing: ImportError | None = None
try:  # TensorFlow does not promise these modules
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python import _pywrap_tensorflow_internal
    from tensorflow.python.framework import _pywrap_python_op_gen, op_def_registry
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext
    from tensorflow.python.ops.parallel_for import pfor
except ImportError as error:
    missing = error

__all__ = ["WHOLE", "apply", "is_traced_for_xla"]


def is_traced_for_xla() -> bool:
    """Return whether the function that is traced now will be compiled by XLA."""
    return GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def _library() -> str:
    """Return the path of a library through which TensorFlow's C functions are found."""
    module = Path(_pywrap_tensorflow_internal.__file__)
    dll = module.with_name("_pywrap_tensorflow_common.dll")  # Windows does not search beyond it
    return str(dll if dll.exists() else module)


def _is_registered(name: str) -> bool:
    return op_def_registry.get(name) is not None


def _new_wrapper() -> Any:
    """Return TensorFlow's own wrapper of the op: a hand-written one has to record gradients."""
    ops = op_def_pb2.OpList(op=[op_def_registry.get(NAME)])
    module = ModuleType(f"{__name__}_wrapper")
    exec(_pywrap_python_op_gen.GetPythonWrappers(ops.SerializeToString()), module.__dict__)
    return module.cdropout_apply_v1


def _gradient(op: Any, gy: Any) -> tuple[Any, ...]:
    """Draw the mask again. The op is linear in x, so this holds for derivatives of any order."""
    _, mask_id, rate, noise_shape = op.inputs
    return apply(gy, mask_id, rate, noise_shape), None, None, None


def _vectorize(inputs: Any) -> Any:
    """Apply one mask per iteration of a parallel loop, the same one if its id is."""
    inputs.stack_inputs([0, 1])
    x, mask_id = inputs.stacked_input(0), inputs.stacked_input(1)
    noise_shape = inputs.unstacked_input(3)
    rate, is_stacked, _ = inputs.input(2)
    if is_stacked or rate.shape.rank != 0:
        inputs.stack_inputs([2])
        rate = inputs.stacked_input(2)
        missing = mask_id.shape.rank - 1 - rate.shape.rank
        rate = tf.reshape(rate, tf.concat([tf.shape(rate), [1] * missing], 0))
        rate = tf.broadcast_to(rate, tf.shape(mask_id)[:-1])
    return pfor.wrap(apply(x, mask_id, rate, noise_shape), True)


def _load() -> Any:
    """Return the wrapper; None, with a warning, if this TensorFlow cannot have the op."""
    try:
        if missing is not None:
            raise missing
        if register(_library(), _is_registered):
            tf.RegisterGradient(NAME)(_gradient)
            pfor.RegisterPFor(NAME)(_vectorize)
        return _new_wrapper()
    except (AttributeError, ImportError, OSError, RuntimeError) as error:
        warnings.warn(
            f"cdropout's op cannot be registered with TensorFlow {tf.__version__}, so that dropout "
            f"is TensorFlow's own; a newer cdropout may help: {error}",
            stacklevel=2,
        )
        return None


apply = _load()
