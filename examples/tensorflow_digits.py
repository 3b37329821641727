"""Train a TensorFlow network with `tf.nn.dropout` and with cdropout.

Run `python examples/tensorflow_digits.py`. The program requires `pip install scikit-learn`.
"""

import argparse
import os
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf

import cdropout.tensorflow
from cdropout.bench.progress import show_progress

try:
    from sklearn.datasets import load_digits
except ImportError:
    sys.exit("scikit-learn, which has the images, is missing: pip install scikit-learn")

P = 0.5
BATCH, LEARNING_RATE = 128, 0.1
DROPOUTS = {"tensorflow": tf.nn.dropout, "cdropout": cdropout.tensorflow.dropout}


def new_network(widths):
    """Return the weights and biases of each layer, with the initialization of He et al. (2015)."""
    tf.random.set_seed(0)
    return [
        (tf.Variable(tf.random.normal([n, m]) * (2 / n) ** 0.5), tf.Variable(tf.zeros(m)))
        for n, m in zip(widths[:-1], widths[1:], strict=True)
    ]


def logits(network, x, dropout=None):
    """Return the logits of the network; apply `dropout`, if given, after each hidden layer."""
    *hidden, (weights, biases) = network
    for w, b in hidden:
        x = tf.nn.relu(x @ w + b)
        if dropout is not None:
            x = dropout(x, P)
    return x @ weights + biases


def new_step(network, dropout):
    """Return a compiled function that performs one step of gradient descent on a batch."""
    variables = [variable for layer in network for variable in layer]

    @tf.function
    def step(x, labels):
        with tf.GradientTape() as tape:
            scores = logits(network, x, dropout)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, scores)
            loss = tf.reduce_mean(losses)
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(LEARNING_RATE * gradient)

    return step


def train(steps, hidden, x, labels):
    """Train a network with each dropout in alternate steps; return networks and step times (ms)."""
    networks = {name: new_network([64, hidden, hidden, 10]) for name in DROPOUTS}
    step = {name: new_step(networks[name], dropout) for name, dropout in DROPOUTS.items()}
    times = {name: [] for name in DROPOUTS}
    with show_progress(steps) as begin:
        for number in range(steps):
            begin("training steps")
            indices = tf.random.stateless_uniform([BATCH], [1, number], 0, len(x), tf.int32)
            batch = tf.gather(x, indices), tf.gather(labels, indices)
            for name in DROPOUTS:
                start = time.perf_counter()
                step[name](*batch)
                times[name].append(1000 * (time.perf_counter() - start))
    return networks, times


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--hidden", type=int, default=1024)
    options = parser.parse_args()
    x, labels = load_digits(return_X_y=True)
    x, labels = tf.constant(x / 16, tf.float32), tf.constant(labels)
    networks, times = train(options.steps, options.hidden, x[:1000], labels[:1000])
    print(f"{options.steps} steps with batches of {BATCH}, {options.hidden} hidden units, p = {P}")
    print("            test error    per step")
    for name, network in networks.items():
        wrong = tf.argmax(logits(network, x[1000:]), 1) != labels[1000:]
        error = 100 * tf.reduce_mean(tf.cast(wrong, tf.float32))
        print(f"{name:10}{error:10.2f} %{statistics.median(times[name]):7.2f} ms")


if __name__ == "__main__":
    main()
