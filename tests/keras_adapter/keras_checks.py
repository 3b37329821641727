"""Tests of the Keras layers; test_keras.py runs this file with each backend."""

import os
import sys

if os.environ["KERAS_BACKEND"] != "tensorflow":
    # Without this line, the serialization of a layer would import TensorFlow, which takes 2 s.
    sys.modules["tensorflow"] = None

import keras
import numpy as np
import pytest

import cdropout as cd
from cdropout.keras import (
    DROPOUT_OF_BACKEND,
    Dropout,
    SpatialDropout1D,
    SpatialDropout2D,
    SpatialDropout3D,
)

from ..helpers.arrays import DTYPE_NAMES, normal
from ..helpers.requirements import import_or_skip

BACKEND = keras.backend.backend()
needs_training = pytest.mark.skipif(BACKEND == "numpy", reason="needs a backend that can train")


def train_call(layer, x, dtype="float32"):
    """Call a layer in training and return its output as a NumPy array."""
    y = layer(keras.ops.convert_to_tensor(x, dtype=dtype), training=True)
    return keras.ops.convert_to_numpy(y)


def numpy_dropout(x, rate, seed, call, dims=()):
    """Return the result of dropout with this seed and call number, computed with NumPy."""
    generator = cd.Generator(seed)
    generator.state = {"seed": seed, "calls": call, "spawned": 0}
    return cd.dropout(x, rate, rng=generator, broadcast_dims=dims)


# ---- masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [42, 2**31 + 7, 2**32 - 1])
def test_call_number_determines_mask(seed):
    layer, x = Dropout(0.3, seed=seed), normal((5, 70))
    for call in range(3):
        expected = cd.Mask((5, 70), 0.3, seed, call).apply(x)
        np.testing.assert_array_equal(train_call(layer, x), expected)


@pytest.mark.parametrize("layer", [Dropout, SpatialDropout1D, SpatialDropout2D, SpatialDropout3D])
def test_seeds_of_layers(layer):
    largest = 2**32 - 1
    config = layer(0.3, seed=largest).get_config()
    assert config["seed"] == largest
    again = layer.from_config(config)
    stored = keras.ops.convert_to_numpy(again.seed_generator.state.value)[0]
    assert int(stored) % 2**32 == largest
    assert layer(0.3).seed is None
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=rf"seed has to be in \[0, 2\*\*32\), but got {seed}"):
            layer(0.3, seed=seed)


def test_seed_can_be_a_positional_argument():
    assert Dropout(0.3, None, 7).seed == SpatialDropout1D(0.3, 7).seed == 7


@pytest.mark.parametrize("seed", [42, 2**31 + 7])
@pytest.mark.parametrize("backend", sorted({*DROPOUT_OF_BACKEND} - {"tensorflow"} | {BACKEND}))
def test_backends_apply_the_same_mask(backend, seed):
    convert = np.asarray
    if backend == "jax":
        convert = import_or_skip("jax").numpy.asarray
    elif backend == "torch":
        convert = import_or_skip("torch").as_tensor
    elif backend == "tensorflow":
        convert = import_or_skip("tensorflow").convert_to_tensor
    state = np.array([seed, 5], "uint32")
    if backend == "torch":  # with PyTorch, Keras stores the state as int32
        state = state.view("int32")
    x = normal((5, 70))
    y = DROPOUT_OF_BACKEND[backend](convert(state), convert(x), 0.3, (1,))
    np.testing.assert_array_equal(np.asarray(y), numpy_dropout(x, 0.3, seed, 5, (1,)))


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_layer_preserves_dtype(dtype):
    x = keras.ops.convert_to_tensor(normal((5, 70)), dtype=dtype)
    y = Dropout(0.3, seed=1, dtype=dtype)(x, training=True)
    assert keras.backend.standardize_dtype(y.dtype) == keras.backend.standardize_dtype(x.dtype)
    kept = np.asarray(cd.Mask((5, 70), 0.3, 1))
    y, x = (keras.ops.convert_to_numpy(keras.ops.cast(a, "float32")) for a in (y, x))
    np.testing.assert_array_equal(y != 0, kept)
    np.testing.assert_allclose(y[kept], x[kept] / 0.7, rtol=1e-2 if "16" in dtype else 1e-6)


@pytest.mark.parametrize(
    "noise_shape, dims",
    [
        (None, ()),
        ((4, 1, 6), (1,)),
        ((None, 1, None), (1,)),
        ((1, 5, 1), (0, 2)),
        ((5, 1), (0, 2)),
        ((1, 1, 1), (0, 1, 2)),
        ([4, 5, 6], ()),
    ],
)
def test_result_with_noise_shape_equals_numpy(noise_shape, dims):
    x = normal((4, 5, 6))
    y = train_call(Dropout(0.4, noise_shape=noise_shape, seed=3), x)
    np.testing.assert_array_equal(y, numpy_dropout(x, 0.4, 3, 0, dims))


@pytest.mark.parametrize("noise_shape", [(4, 2, 6), (4, 5, 6, 1)])
def test_noise_shape_that_does_not_match_inputs_raises(noise_shape):
    layer = Dropout(0.4, noise_shape=noise_shape, seed=3)
    with pytest.raises(
        ValueError, match=r"noise_shape has to contain .*, \(4, 5, 6\), but got \(4, "
    ):
        train_call(layer, normal((4, 5, 6)))
    assert np.array_equal(keras.ops.convert_to_numpy(layer.seed_generator.state.value), [3, 0])


@pytest.mark.parametrize(
    "layer, shape, options, dims",
    [
        (SpatialDropout1D, (4, 50, 8), {}, (1,)),
        (SpatialDropout2D, (4, 5, 6, 8), {"data_format": "channels_last"}, (1, 2)),
        (SpatialDropout2D, (4, 8, 5, 6), {"data_format": "channels_first"}, (2, 3)),
        (SpatialDropout3D, (4, 2, 5, 6, 8), {"data_format": "channels_last"}, (1, 2, 3)),
        (SpatialDropout3D, (4, 8, 2, 5, 6), {"data_format": "channels_first"}, (2, 3, 4)),
    ],
)
def test_spatial_dropout_drops_whole_channels(layer, shape, options, dims):
    x = normal(shape)
    y = train_call(layer(0.4, seed=3, **options), x)
    np.testing.assert_array_equal(y, numpy_dropout(x, 0.4, 3, 0, dims))


def test_layer_in_evaluation_and_with_rate_0_or_1():
    x = normal((5, 70))
    layer = Dropout(0.3, seed=1)
    y = layer(keras.ops.convert_to_tensor(x))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(y), x)
    np.testing.assert_array_equal(train_call(Dropout(0), x), x)
    zero = Dropout(1, seed=1)
    assert not train_call(zero, np.where(x > 0, np.nan, x)).any()
    assert keras.ops.convert_to_numpy(zero.seed_generator.state.value)[1] == 0
    expected = numpy_dropout(x, 0.3, 1, 0)  # the call in evaluation used no call number
    np.testing.assert_array_equal(train_call(layer, x), expected)


def test_dropout_of_integers_falls_back_to_keras(monkeypatch):
    calls = []
    monkeypatch.setattr(
        keras.layers.Dropout, "call", lambda layer, x, training: calls.append(training) or x
    )
    train_call(Dropout(0.3, seed=1), np.arange(10), "int32")
    assert calls == [True]


def test_supports_jit_can_be_set_to_false():
    layer = Dropout(0.3)
    assert layer.supports_jit == (BACKEND != "tensorflow")
    for value in (False, True):
        layer.supports_jit = value
        assert layer.supports_jit == (value and BACKEND != "tensorflow")


def test_invalid_rate_raises():
    with pytest.raises(
        ValueError, match="Expected a float value between 0 and 1. Received: rate=2"
    ):
        Dropout(2)


# ---- models -------------------------------------------------------------------------------------

LAYERS = [
    Dropout(0.25, noise_shape=(None, 1), seed=7, name="d"),
    SpatialDropout1D(0.25, seed=7),
    SpatialDropout2D(0.25, data_format="channels_first", seed=7),
    SpatialDropout3D(0.25, data_format="channels_last"),
]


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_from_config_has_the_same_config(layer):
    config = layer.get_config()
    assert type(layer).from_config(config).get_config() == config
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(copy) is type(layer) and copy.get_config() == config
    assert keras.saving.get_registered_name(type(layer)) == f"cdropout>{type(layer).__name__}"


def make_model():
    inputs = keras.Input((6, 4))
    x = SpatialDropout1D(0.25, seed=3)(inputs)
    x = keras.layers.Flatten()(x)
    x = Dropout(0.5, seed=5)(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def test_loaded_model_starts_at_call_number_0(tmp_path):
    """A loaded model draws the masks that the original drew from its first call on."""
    first, x = make_model(), normal((8, 6, 4))
    expected = [keras.ops.convert_to_numpy(first(x, training=True)) for _ in range(2)]
    first.save(tmp_path / "model.keras")
    second = keras.saving.load_model(tmp_path / "model.keras")
    assert [type(layer) for layer in second.layers] == [type(layer) for layer in first.layers]
    outputs = [keras.ops.convert_to_numpy(second(x, training=True)) for _ in range(2)]
    np.testing.assert_array_equal(outputs, expected)


@needs_training
def test_fit_draws_one_mask_per_step():
    keras.utils.set_random_seed(0)
    x = normal((256, 10))
    model = keras.Sequential(
        [keras.Input((10,)), Dropout(0.2, seed=1), keras.layers.Dense(1, use_bias=False)]
    )
    model.compile("sgd", "mse")
    y = x @ normal((10, 1), seed=2)
    losses = model.fit(x, y, epochs=5, batch_size=32, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 2
    calls = keras.ops.convert_to_numpy(model.layers[0].seed_generator.state.value)[1]
    assert calls == 40  # one mask per step


@needs_training
def test_gradient_uses_same_mask():
    """With a learning rate of 1, a gradient descent step subtracts the gradient from the kernel."""
    x = normal((1, 50))
    model = keras.Sequential(
        [
            keras.Input((50,)),
            keras.layers.Dense(50, kernel_initializer="zeros", use_bias=False),
            Dropout(0.5, seed=9),
        ]
    )
    model.compile(keras.optimizers.SGD(1.0), lambda y, prediction: keras.ops.sum(prediction))
    model.fit(x, np.zeros((1, 50)), verbose=0)
    step = -model.layers[0].kernel.numpy()
    upstream = cd.Mask((1, 50), 0.5, 9).apply(np.ones((1, 50), np.float32))
    np.testing.assert_allclose(step, x.T @ upstream, rtol=1e-6)
