"""Measure the time of dropout in a thinc network, with the masks of thinc and of cdropout.

Run `python examples/thinc_digits.py`. The program requires `pip install thinc scikit-learn`. For
each seed, the program trains networks without dropout, with thinc's masks and with cdropout's
masks. The three networks have the same images, initial weights and batches. The training steps
alternate, so that changes in the speed of the machine affect all networks equally.
"""

import statistics
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser

import numpy as np

from cdropout.bench.progress import show_progress

LEARNING_RATE = 0.001


class Run:
    """A network that uses the given Ops, its optimizer, and the seconds of each step."""

    def __init__(self, ops, p, seed, images, labels, hidden):
        with use_ops(ops):
            fix_random_seed(seed)
            layers = Relu(hidden, dropout=p), Relu(hidden, dropout=p), Softmax()
            self.model = chain(*layers).initialize(images, labels)
        self.optimizer, self.seconds = Adam(LEARNING_RATE), []

    def step(self, images, labels):
        """Train on one batch."""
        start = time.perf_counter()
        guesses, backprop = self.model.begin_update(images)
        backprop((guesses - labels) / len(images))
        self.model.finish_update(self.optimizer)
        self.seconds.append(time.perf_counter() - start)

    def error(self, images, labels):
        """Return the percentage of images that the network classifies incorrectly."""
        return 100 * np.mean(self.model.predict(images).argmax(1) != labels.argmax(1))


def compare(digits, seed, options, begin):
    """Train the three networks of a seed; return a list of pairs (run, test error).

    `begin` is called at the start of each epoch.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(digits.data))
    images = (digits.data[order] / 16).astype(np.float32)
    labels = np.eye(10, dtype=np.float32)[digits.target[order]]
    train, test = slice(options.train), slice(options.train, None)
    runs = [
        Run(ops, p, seed, images[train], labels[train], options.hidden)
        for ops, p in [("numpy", 0.0), ("numpy", options.p), ("cdropout", options.p)]
    ]
    for _ in range(options.epochs):
        begin(f"seed {seed}, epochs")
        shuffled = random.permutation(options.train)
        for batch in np.split(shuffled, range(options.batch, options.train, options.batch)):
            for run in runs:
                run.step(images[batch], labels[batch])
    return [(run, run.error(images[test], labels[test])) for run in runs]


def main():
    """Train all networks and print their times and test errors."""
    parser = ArgumentParser(formatter_class=ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=int, default=5, metavar="N", help="number of seeds, at least 2")
    add("--epochs", type=int, default=30, metavar="N", help="passes over the training images")
    add("--p", type=float, default=0.3, help="probability that a hidden unit is dropped")
    add("--hidden", type=int, default=512, metavar="N", help="units in each hidden layer")
    add("--batch", type=int, default=256, metavar="N", help="images per step")
    add("--train", type=int, default=1024, metavar="N", help="training images, of 1797")
    options = parser.parse_args()
    digits = load_digits()
    with show_progress(options.seeds * options.epochs) as begin:
        results = [compare(digits, seed, options, begin) for seed in range(options.seeds)]
    print(f"2 x {options.hidden} units, batches of {options.batch}, {options.epochs} epochs:")
    print("median step (ms) of the seeds, and test error (%, +- standard deviation)\n")
    names = "no dropout", f"thinc, p={options.p:g}", f"cdropout, p={options.p:g}"
    medians = []
    for name, runs in zip(names, zip(*results, strict=True), strict=True):
        steps = [1000 * statistics.median(run.seconds) for run, _ in runs]
        errors = [error for _, error in runs]
        medians.append(statistics.median(steps))
        spread = f"{min(steps):.2f} - {max(steps):.2f}"
        print(f"{name:16} {medians[-1]:6.2f} ({spread})", end="")
        print(f"{np.mean(errors):9.2f} +- {np.std(errors, ddof=1):.2f}")
    without, thinc, cdropout = medians
    slower = [100 * (median / without - 1) for median in (thinc, cdropout)]
    print(f"\nDropout makes a step {slower[0]:.0f} % slower with thinc's masks", end=" ")
    print(f"and {slower[1]:.0f} % slower with cdropout's.")


if __name__ == "__main__":
    try:
        from sklearn.datasets import load_digits
        from thinc.api import Adam, Relu, Softmax, chain, fix_random_seed, use_ops
    except ImportError as error:
        sys.exit(f"a package is missing, run pip install thinc scikit-learn: {error}")
    main()
