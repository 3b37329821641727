"""Train a Keras network with `keras.layers.Dropout` and with cdropout.

Run `python examples/keras_digits.py`. The program requires `pip install scikit-learn`. The
environment variable KERAS_BACKEND determines the backend; the default is jax.
"""

import argparse
import os
import sys
import time

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")
import keras

import cdropout.keras
from cdropout.bench.progress import show_progress

try:
    from sklearn.datasets import load_digits
except ImportError:
    sys.exit("scikit-learn, which has the images, is missing: pip install scikit-learn")

RATE = 0.5
DROPOUTS = {"keras": keras.layers.Dropout, "cdropout": cdropout.keras.Dropout}


class EpochTimer(keras.callbacks.Callback):
    """Callback that measures the seconds of each epoch, and calls `begin` at its start."""

    def __init__(self, begin):
        super().__init__()
        self.begin = begin

    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.begin("epochs")
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.start)


def new_network(dropout, hidden):
    """Return a new network with two hidden layers and the same initial weights in each call."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(hidden, activation="relu"),
            dropout(RATE, seed=1),
            keras.layers.Dense(hidden, activation="relu"),
            dropout(RATE, seed=2),
            keras.layers.Dense(10),
        ]
    )


def train(dropout, hidden, epochs, x, labels):
    """Train a network and return its test error (%) and the median of the seconds per epoch."""
    network = new_network(dropout, hidden)
    network.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with show_progress(epochs) as begin:
        timer = EpochTimer(begin)
        options = {"batch_size": 50, "epochs": epochs, "verbose": 0, "callbacks": [timer]}
        network.fit(x[:1000], labels[:1000], **options)
    guesses = np.argmax(network.predict(x[1000:], verbose=0), axis=1)
    seconds = timer.seconds[1:]  # without the first epoch, which compiles the model
    return 100 * np.mean(guesses != labels[1000:]), np.median(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--hidden", type=int, default=1024)
    options = parser.parse_args()
    x, labels = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    backend = keras.backend.backend()
    print(f"{options.epochs} epochs with {backend}, {options.hidden} hidden units, p = {RATE}")
    print("            test error    per epoch")
    for name, dropout in DROPOUTS.items():
        error, seconds = train(dropout, options.hidden, options.epochs, x, labels)
        print(f"{name:10}{error:10.2f} %{seconds:10.2f} s")


if __name__ == "__main__":
    main()
