"""The TensorFlow op that applies masks: registration, Python wrapper, gradient, vectorization."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import tensorflow as tf

from cdropout.tensorflow._tf import AXIS_LENGTH, NAME, register

import_error: ImportError | None = None
try:  # the modules below are not part of TensorFlow's public API
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python import _pywrap_tensorflow_internal
    from tensorflow.python.framework import _pywrap_python_op_gen, op_def_registry
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext
    from tensorflow.python.ops.parallel_for import pfor
except ImportError as error:
    import_error = error

__all__ = ["AXIS_LENGTH", "apply", "is_traced_for_xla"]


def is_traced_for_xla() -> bool:
    """Return whether XLA will compile the function that is being traced."""
    return GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def _library_path() -> str:
    """Return the path of a library in which TensorFlow's C functions can be found by name."""
    module = Path(_pywrap_tensorflow_internal.__file__)
    dll = module.with_name("_pywrap_tensorflow_common.dll")  # Windows does not search linked DLLs
    return str(dll if dll.exists() else module)


def _is_registered(name: str) -> bool:
    return op_def_registry.get(name) is not None


def _make_wrapper() -> Any:
    """Return TensorFlow's generated Python function for the op. The function records gradients."""
    ops = op_def_pb2.OpList(op=[op_def_registry.get(NAME)])
    module = ModuleType(f"{__name__}_wrapper")
    exec(_pywrap_python_op_gen.GetPythonWrappers(ops.SerializeToString()), module.__dict__)
    return module.cdropout_apply_v1


def _gradient(op: Any, gy: Any) -> tuple[Any, ...]:
    """Return the gradient of x, which is gy with the mask applied, and None for the other inputs.

    The op is linear in x. Therefore, derivatives of any order are correct.
    """
    _, mask_id, rate, noise_shape = op.inputs
    return apply(gy, mask_id, rate, noise_shape), None, None, None


def _vectorize(inputs: Any) -> Any:
    """Return the result of one op for the stacked inputs of all iterations of a parallel loop."""
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


def _load_op() -> Any:
    """Register the op and return its wrapper, or warn and return None if that is impossible."""
    try:
        if import_error is not None:
            raise import_error
        if register(_library_path(), _is_registered):
            tf.RegisterGradient(NAME)(_gradient)
            pfor.RegisterPFor(NAME)(_vectorize)
        return _make_wrapper()
    except (AttributeError, ImportError, OSError, RuntimeError) as error:
        warnings.warn(
            f"cdropout's op cannot be registered with TensorFlow {tf.__version__}, so that "
            f"TensorFlow's own dropout is used; a newer cdropout may help: {error}",
            stacklevel=2,
        )
        return None


apply = _load_op()
