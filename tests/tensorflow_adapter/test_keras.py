"""Tests of cdropout.keras on TensorFlow: graphs, saved models and distribution strategies."""

import os
import sys

import numpy as np
import pytest

import cdropout as cd

from ..helpers import subprocess_runner
from ..helpers.arrays import normal
from ..helpers.requirements import find_or_skip, import_or_skip, slow
from ..helpers.tensorflow_graphs import operation_types

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = import_or_skip("tensorflow")
find_or_skip("keras")
if "keras" not in sys.modules:  # Keras chooses its backend when it is imported
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "tensorflow")
        import keras  # noqa: F401
import keras  # noqa: E402

if keras.backend.backend() != "tensorflow":
    pytest.skip("Keras has another backend in this process", allow_module_level=True)

from cdropout.keras import Dropout, SpatialDropout1D  # noqa: E402


def expected_dropout(x, call, rate=0.3, seed=7):
    return cd.Mask(x.shape, rate, seed, call).apply(x)


def test_eager_calls_and_graphs_use_consecutive_call_numbers():
    layer, x = Dropout(0.3, seed=7), normal((5, 70))
    run = tf.function(lambda x: layer(x, training=True))
    for call in range(0, 6, 2):
        np.testing.assert_array_equal(layer(x, training=True), expected_dropout(x, call))
        np.testing.assert_array_equal(run(x), expected_dropout(x, call + 1))
    assert "CdropoutApplyV1" in operation_types(run.get_concrete_function(x))


@pytest.mark.parametrize("noise_shape", [(None, 1, 3), (4, 1, 3), (1, 3)])
def test_noise_shape_with_unknown_batch_size(noise_shape):
    layer = Dropout(0.3, noise_shape=noise_shape, seed=7)
    x = normal((4, 6, 3))
    run = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec([None, 6, 3])]
    )
    dims = (1,) if len(noise_shape) == 3 else (0, 1)
    np.testing.assert_array_equal(run(x), cd.dropout(x, 0.3, rng=7, broadcast_dims=dims))


def test_dropout_of_tensor_with_unknown_rank_falls_back_to_keras():
    layer = Dropout(0.3, seed=7)
    run = tf.function(
        lambda x: layer.call(x, training=True), input_signature=[tf.TensorSpec(None, tf.float32)]
    )
    assert "CdropoutApplyV1" not in operation_types(run.get_concrete_function())
    assert np.isfinite(run(normal((3, 4)))).all()


def make_model(dtype=None):
    return keras.Sequential(
        [
            keras.Input((8, 4)),
            SpatialDropout1D(0.25, seed=3, dtype=dtype),
            keras.layers.Flatten(dtype=dtype),
            Dropout(0.3, seed=7, dtype=dtype),
            keras.layers.Dense(1, kernel_initializer="ones", dtype=dtype),
        ]
    )


def make_fitted_model(dtype=None):
    model = make_model(dtype)
    model.compile("sgd", "mse")
    model.fit(normal((40, 8, 4)), normal((40, 1)), batch_size=16, verbose=0)
    return model


def test_model_is_not_compiled_by_xla():
    model = make_fitted_model()
    assert not model.jit_compile and not model.layers[0].supports_jit
    assert model.layers[2].seed_generator.state.value.numpy()[1] == 3
    with pytest.warns(UserWarning, match="Model doesn't support `jit_compile=True`"):
        model.compile("sgd", "mse", jit_compile=True)


def test_xla_function_falls_back_to_keras():
    layer, x = Dropout(0.3, seed=7), normal(500)
    run = tf.function(lambda x: layer(x, training=True), jit_compile=True)
    assert "CdropoutApplyV1" not in operation_types(run.get_concrete_function(x))


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", *slow("mixed_float16")])
def test_model_with_mixed_precision_can_be_trained(dtype):
    model = make_fitted_model(dtype=dtype)
    assert model.layers[2].compute_dtype == dtype.removeprefix("mixed_")
    assert np.isfinite(model.layers[3].kernel.numpy()).all()


# Keras causes this warning.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_loaded_model_starts_at_call_number_0(tmp_path):
    first, x = make_model(), normal((6, 8, 4))
    expected = first(x, training=True)
    first.save(tmp_path / "model.keras")
    second = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(second(x, training=True), expected)


def test_exported_model_does_not_contain_the_op(tmp_path):
    model, x = make_model(), normal((6, 8, 4))
    model.export(tmp_path / "model")
    loaded = tf.saved_model.load(tmp_path / "model")
    assert "CdropoutApplyV1" not in operation_types(loaded.signatures["serving_default"])
    np.testing.assert_allclose(loaded.serve(x), model(x), rtol=1e-6)


def test_gradient_uses_same_mask():
    layer, x = Dropout(0.3, seed=7), tf.constant(normal((40, 50)))

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return tape.gradient(y, x)

    for call in range(2):
        expected = expected_dropout(np.ones((40, 50), np.float32), call)
        np.testing.assert_array_equal(gradient(x), expected)


# ---- programs in other processes ----------------------------------------------------------------

SAVE = """
import tensorflow as tf
from cdropout.tensorflow import stateless_dropout
module = tf.Module()
signature = [tf.TensorSpec([None], tf.float32)]
module.train = tf.function(lambda x: stateless_dropout(x, 0.3, [7, 0]), input_signature=signature)
module.infer = tf.function(lambda x: x * 2, input_signature=signature)
tf.saved_model.save(module, {path!r})
del module.train
tf.saved_model.save(module, {path!r} + "/inference")
"""
LOAD = """
import sys
import tensorflow as tf
print(tf.saved_model.load({path!r} + "/inference").infer(tf.ones(1)).numpy())
try:
    tf.saved_model.load({path!r})
except Exception as error:
    print("CdropoutApplyV1" in str(error), "cdropout" in sys.modules)
import cdropout.tensorflow
y = tf.saved_model.load({path!r}).train(tf.ones(100))
import numpy as np
print(np.array_equal(y, cdropout.Mask(100, 0.3, 7).apply(np.ones(100, "f4"))))
"""
STRATEGY = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from cdropout.keras import Dropout
from cdropout.tensorflow import dropout
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
run = tf.function(lambda: strategy.run(lambda: dropout(tf.ones(1000), 0.5)))
y = strategy.experimental_local_results(run())
print(len(y), [abs(float(tf.reduce_mean(each)) - 1) < 0.2 for each in y])
print(np.array_equal(*y))
with strategy.scope():
    model = keras.Sequential([keras.Input((10,)), Dropout(0.3, seed=7), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
model.fit(np.ones((64, 10), "f4"), np.ones((64, 1), "f4"), batch_size=16, verbose=0)
print(np.isfinite(model.layers[1].kernel.numpy()).all())
"""


def run(script, path=""):
    """Run a script in a new process and return the lines that it prints."""
    script = script.replace("{path!r}", repr(str(path)))
    status, output, errors = subprocess_runner.run(script, KERAS_BACKEND="tensorflow")
    assert status == 0, errors
    return output.splitlines()


@pytest.mark.slow
def test_saved_training_function_requires_cdropout(tmp_path):
    run(SAVE, tmp_path)
    assert run(LOAD, tmp_path) == ["[2.]", "True False", "True"]


@pytest.mark.slow
def test_mirrored_strategy_on_two_cpus():
    assert run(STRATEGY) == ["2 [True, True]", "False", "True"]
