"""Train a JAX network with `jax.random.bernoulli` and with cdropout.

Run `python examples/jax_digits.py`. The program requires `pip install scikit-learn`.
"""

import argparse
import statistics
import sys
import time
from functools import partial

import jax
from jax import numpy as jnp

import cdropout.jax
from cdropout.bench.progress import show_progress

try:
    from sklearn.datasets import load_digits
except ImportError:
    sys.exit("scikit-learn, which has the images, is missing: pip install scikit-learn")

P = 0.5
BATCH, LEARNING_RATE = 128, 0.1


def jax_dropout(key, x, p):
    """Apply dropout with JAX's own functions."""
    return jnp.where(jax.random.bernoulli(key, 1 - p, x.shape), x / (1 - p), 0)


DROPOUTS = {"jax": jax_dropout, "cdropout": cdropout.jax.dropout}


def new_network(key, widths):
    """Return the weights and biases of each layer, with the initialization of He et al. (2015)."""
    keys = jax.random.split(key, len(widths) - 1)
    return [
        (jax.random.normal(key, (n, m)) * (2 / n) ** 0.5, jnp.zeros(m))
        for key, n, m in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


def logits(network, x, dropout=None, key=None):
    """Return the logits of the network; apply `dropout`, if given, after each hidden layer."""
    *hidden, (weights, biases) = network
    for layer, (w, b) in enumerate(hidden):
        x = jax.nn.relu(x @ w + b)
        if dropout is not None:
            x = dropout(jax.random.fold_in(key, layer), x, P)
    return x @ weights + biases


def loss(network, x, labels, dropout, key):
    """Return the mean cross-entropy."""
    log_probabilities = jax.nn.log_softmax(logits(network, x, dropout, key))
    return -log_probabilities[jnp.arange(len(labels)), labels].mean()


@partial(jax.jit, static_argnums=3, donate_argnums=0)
def step(network, x, labels, dropout, key):
    """Return the network after one step of gradient descent on a random batch."""
    batch_key, key = jax.random.split(key)
    batch = jax.random.choice(batch_key, len(x), (BATCH,))
    gradients = jax.grad(loss)(network, x[batch], labels[batch], dropout, key)
    return jax.tree.map(lambda w, g: w - LEARNING_RATE * g, network, gradients)


def train(steps, hidden, data):
    """Train a network with each dropout in alternate steps; return networks and step times (ms)."""
    x, labels = data
    networks = {name: new_network(jax.random.key(0), [64, hidden, hidden, 10]) for name in DROPOUTS}
    times = {name: [] for name in DROPOUTS}
    with show_progress(steps) as begin:
        for number in range(steps):
            begin("training steps")
            key = jax.random.fold_in(jax.random.key(1), number)
            for name, dropout in DROPOUTS.items():
                start = time.perf_counter()
                networks[name] = jax.block_until_ready(
                    step(networks[name], x, labels, dropout, key)
                )
                times[name].append(1000 * (time.perf_counter() - start))
    return networks, times


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--hidden", type=int, default=1024)
    options = parser.parse_args()
    x, labels = (jnp.asarray(array) for array in load_digits(return_X_y=True))
    x = x.astype(jnp.float32) / 16
    networks, times = train(options.steps, options.hidden, (x[:1000], labels[:1000]))
    print(f"{options.steps} steps with batches of {BATCH}, {options.hidden} hidden units, p = {P}")
    print("            test error    per step")
    for name, network in networks.items():
        wrong = jnp.argmax(logits(network, x[1000:]), 1) != labels[1000:]
        error, median = 100 * wrong.mean(), statistics.median(times[name])
        print(f"{name:10}{error:10.2f} %{median:7.2f} ms")


if __name__ == "__main__":
    main()
