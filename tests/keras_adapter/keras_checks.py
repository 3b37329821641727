"""What holds for the Keras layers on each backend: test_keras.py runs this on each."""

import os
import sys

if os.environ["KERAS_BACKEND"] != "tensorflow":
    sys.modules["tensorflow"] = None  # Keras would import it to serialize a layer: 2 s

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

from ..helpers.requirements import import_or_skip

BACKEND = keras.backend.backend()
DTYPES = ["float16", "bfloat16", "float32", "float64"]
needs_training = pytest.mark.skipif(BACKEND == "numpy", reason="this backend does not train")


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def drop(layer, x, dtype="float32"):
    return keras.ops.convert_to_numpy(
        layer(keras.ops.convert_to_tensor(x, dtype=dtype), training=True)
    )


def expected(x, rate, seed, call, dims=()):
    generator = cd.Generator(seed)
    generator.state = {"seed": seed, "calls": call, "spawned": 0}
    return cd.dropout(x, rate, rng=generator, broadcast_dims=dims)


# ---- masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [42, 2**31 + 7, 2**32 - 1])
def test_a_call_draws_the_mask_of_its_number(seed):
    if BACKEND == "torch" and seed >= 2**31:
        pytest.skip("Keras holds seeds as int32 there, and refuses this one")
    layer, x = Dropout(0.3, seed=seed), numbers(5, 70)
    for call in range(3):
        np.testing.assert_array_equal(drop(layer, x), cd.Mask((5, 70), 0.3, seed, call).apply(x))


@pytest.mark.parametrize("seed", [42, 2**31 + 7])
@pytest.mark.parametrize("backend", sorted({*DROPOUT_OF_BACKEND} - {"tensorflow"} | {BACKEND}))
def test_every_backend_draws_the_same(backend, seed):
    make = np.asarray
    if backend == "jax":
        make = import_or_skip("jax").numpy.asarray
    elif backend == "torch":
        make = import_or_skip("torch").as_tensor
    elif backend == "tensorflow":
        make = import_or_skip("tensorflow").convert_to_tensor
    words = np.array([seed, 5], "uint32")
    if backend == "torch":  # as Keras has them there
        words = words.view("int32")
    x = numbers(5, 70)
    y = DROPOUT_OF_BACKEND[backend](make(words), make(x), 0.3, (1,))
    np.testing.assert_array_equal(np.asarray(y), expected(x, 0.3, seed, 5, (1,)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_types(dtype):
    x = keras.ops.convert_to_tensor(numbers(5, 70), dtype=dtype)
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
def test_noise_shape(noise_shape, dims):
    x = numbers(4, 5, 6)
    y = drop(Dropout(0.4, noise_shape=noise_shape, seed=3), x)
    np.testing.assert_array_equal(y, expected(x, 0.4, 3, 0, dims))


@pytest.mark.parametrize("noise_shape", [(4, 2, 6), (4, 5, 6, 1)])
def test_a_noise_shape_that_does_not_fit(noise_shape):
    layer = Dropout(0.4, noise_shape=noise_shape, seed=3)
    with pytest.raises(ValueError, match=r"noise_shape has to hold .*, \(4, 5, 6\), but got \(4, "):
        drop(layer, numbers(4, 5, 6))
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
    x = numbers(*shape)
    y = drop(layer(0.4, seed=3, **options), x)
    np.testing.assert_array_equal(y, expected(x, 0.4, 3, 0, dims))


def test_evaluation_and_the_ends_of_rate():
    x = keras.ops.convert_to_tensor(numbers(5, 70))
    layer = Dropout(0.3, seed=1)
    assert np.array_equal(keras.ops.convert_to_numpy(layer(x)), numbers(5, 70))
    assert np.array_equal(drop(Dropout(0), x), numbers(5, 70))
    assert not drop(Dropout(1, seed=1), x).any()
    assert np.array_equal(
        drop(layer, x), expected(numbers(5, 70), 0.3, 1, 0)
    )  # nothing was used up


def test_other_types_are_left_to_keras(monkeypatch):
    asked = []
    monkeypatch.setattr(
        keras.layers.Dropout, "call", lambda layer, x, training: asked.append(training) or x
    )
    drop(Dropout(0.3, seed=1), np.arange(10), "int32")
    assert asked == [True]


def test_a_bad_rate():
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
def test_config_round_trip(layer):
    config = layer.get_config()
    assert type(layer).from_config(config).get_config() == config
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is type(layer) and again.get_config() == config
    assert keras.saving.get_registered_name(type(layer)) == f"cdropout>{type(layer).__name__}"


def model():
    inputs = keras.Input((6, 4))
    x = SpatialDropout1D(0.25, seed=3)(inputs)
    x = keras.layers.Flatten()(x)
    x = Dropout(0.5, seed=5)(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def test_a_loaded_model_draws_the_masks_of_a_new_one(tmp_path):
    """Call numbers begin at 0: Keras does not save how many seeds a layer has drawn."""
    first, x = model(), numbers(8, 6, 4)
    first.save(tmp_path / "model.keras")
    second = keras.saving.load_model(tmp_path / "model.keras")
    assert [type(layer) for layer in second.layers] == [type(layer) for layer in first.layers]
    for _ in range(2):
        ours, theirs = (keras.ops.convert_to_numpy(m(x, training=True)) for m in (first, second))
        np.testing.assert_array_equal(ours, theirs)


@needs_training
def test_fit_trains_through_the_masks():
    keras.utils.set_random_seed(0)
    x = numbers(256, 10)
    network = keras.Sequential(
        [keras.Input((10,)), Dropout(0.2, seed=1), keras.layers.Dense(1, use_bias=False)]
    )
    network.compile("sgd", "mse")
    y = x @ numbers(10, 1, seed=1)
    losses = network.fit(x, y, epochs=5, batch_size=32, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 2
    calls = keras.ops.convert_to_numpy(network.layers[0].seed_generator.state.value)[1]
    assert calls == 40  # a mask a step


@needs_training
def test_the_gradient_goes_through_the_same_mask():
    """One step of plain descent shows the gradient: that of a sum is x, masked and scaled."""
    x = numbers(1, 50)
    network = keras.Sequential(
        [
            keras.Input((50,)),
            keras.layers.Dense(50, kernel_initializer="zeros", use_bias=False),
            Dropout(0.5, seed=9),
        ]
    )
    network.compile(keras.optimizers.SGD(1.0), lambda y, prediction: keras.ops.sum(prediction))
    network.fit(x, np.zeros((1, 50)), verbose=0)
    step = -network.layers[0].kernel.numpy()
    upstream = cd.Mask((1, 50), 0.5, 9).apply(np.ones((1, 50), np.float32))
    np.testing.assert_allclose(step, x.T @ upstream, rtol=1e-6)
