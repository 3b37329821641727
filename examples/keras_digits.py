"""Trains a network in Keras, with its own dropout and with cdropout's: `python keras_digits.py`.

It runs on the backend that KERAS_BACKEND names, jax if it names none. Needs scikit-learn, which
brings the digits.
"""

import argparse
import os
import sys
import time

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")
import keras

import cdropout.keras

try:
    from sklearn.datasets import load_digits
except ImportError:
    sys.exit("The digits come with scikit-learn: pip install scikit-learn")

RATE = 0.5
DROPOUTS = {"keras": keras.layers.Dropout, "cdropout": cdropout.keras.Dropout}


class Clock(keras.callbacks.Callback):
    """The time of each epoch, in seconds."""

    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.began)


def new_network(dropout, hidden):
    """Two hidden layers, the same for each kind of dropout."""
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
    """The test error in %, and the median time of an epoch, without the first, in seconds."""
    network = new_network(dropout, hidden)
    network.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    clock = Clock()
    network.fit(x[:1000], labels[:1000], batch_size=50, epochs=epochs, verbose=0, callbacks=[clock])
    guesses = np.argmax(network.predict(x[1000:], verbose=0), axis=1)
    return 100 * np.mean(guesses != labels[1000:]), np.median(clock.seconds[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--hidden", type=int, default=1024)
    options = parser.parse_args()
    x, labels = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    print(f"{options.epochs} epochs on {keras.backend.backend()}, {options.hidden} units, p={RATE}")
    print("            test error    an epoch")
    for name, dropout in DROPOUTS.items():
        error, seconds = train(dropout, options.hidden, options.epochs, x, labels)
        print(f"{name:10}{error:10.2f} %{seconds:10.2f} s")


if __name__ == "__main__":
    main()
