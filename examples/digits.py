"""Train a NumPy network on handwritten digits with and without dropout.

Run `python examples/digits.py`. The training set is small, so that the network overfits. The two
runs of each seed have the same training images, initial weights and batches. All other images are
the test set. The program requires scikit-learn for the images, and matplotlib to plot the test
errors.
"""

import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from itertools import pairwise

import numpy as np

import cdropout
from cdropout.bench.progress import show_progress

DIGITS, IMAGES = 10, 1797  # classes and images in scikit-learn's data set
BATCH, LEARNING_RATE, MOMENTUM = 32, 0.05, 0.9


class Network:
    """A network of linear layers, with ReLU and dropout after each hidden layer.

    `sizes` are the numbers of inputs, of units in each hidden layer, and of outputs.
    """

    def __init__(self, sizes, p, random, dtype=np.float32):
        # initialization of He et al. (2015)
        self.weights = [
            random.normal(0, np.sqrt(2 / m), (m, n)).astype(dtype) for m, n in pairwise(sizes)
        ]
        self.biases = [np.zeros(size, dtype) for size in sizes[1:]]
        self.parameters = self.weights + self.biases
        # Each module draws its seed from `random`. With the same int as rng, all modules
        # would draw the same masks.
        self.dropouts = [cdropout.Dropout(p, rng=random) for _ in sizes[1:-1]]

    def forward(self, images, dropouts=None):
        """Return the scores. The functions in `dropouts`, if given, replace the dropout modules."""
        self.inputs = [images]  # inputs of each layer, for backward
        self.active = []  # True where ReLU has a positive input, for backward
        for layer, dropout in enumerate(dropouts or self.dropouts):
            sums = self.inputs[layer] @ self.weights[layer] + self.biases[layer]
            self.active.append(sums > 0)
            self.inputs.append(dropout(np.maximum(sums, 0)))
        return self.inputs[-1] @ self.weights[-1] + self.biases[-1]

    def backward(self, gradient):
        """Return the gradients of all parameters, given the gradient of the last scores."""
        weights_gradients, biases_gradients = [], []
        for layer in reversed(range(len(self.weights))):
            weights_gradients.insert(0, self.inputs[layer].T @ gradient)
            biases_gradients.insert(0, gradient.sum(axis=0))
            if layer > 0:
                gradient = self.dropouts[layer - 1].backward(gradient @ self.weights[layer].T)
                gradient *= self.active[layer - 1]
        return weights_gradients + biases_gradients


def cross_entropy(scores, labels):
    """Return the mean of -log(softmax(scores)[label]) and its gradient with respect to scores."""
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))  # avoids overflow
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    one_hot = np.eye(DIGITS, dtype=scores.dtype)[labels]
    loss = -np.log((probabilities * one_hot).sum(axis=1)).mean()
    return loss, (probabilities - one_hot) / len(labels)


def check_gradient():
    """Raise an AssertionError if `Network.backward` differs from finite differences."""
    random = np.random.default_rng(0)
    network = Network((6, 9, 8, DIGITS), p=0.4, random=random, dtype=np.float64)
    for biases in network.biases:  # avoids sums of 0, where ReLU has no derivative
        biases += random.standard_normal(biases.shape)
    images, labels = random.standard_normal((5, 6)), random.integers(DIGITS, size=5)
    gradients = network.backward(cross_entropy(network.forward(images), labels)[1])
    # The modules draw new masks in each call, but the finite differences need the masks used above.
    dropouts = [dropout.mask.apply for dropout in network.dropouts]
    step = 1e-6
    for values, gradient in zip(network.parameters, gradients, strict=True):
        for index, value in np.ndenumerate(values.copy()):
            values[index] = value + step
            above = cross_entropy(network.forward(images, dropouts), labels)[0]
            values[index] = value - step
            below = cross_entropy(network.forward(images, dropouts), labels)[0]
            values[index] = value
            slope = (above - below) / (2 * step)
            if not abs(slope - gradient[index]) < 1e-7:
                raise AssertionError(f"backward gives {gradient[index]}, but the slope is {slope}")


def error_rate(network, images, labels):
    """Return the percentage of images that the network classifies incorrectly."""
    for dropout in network.dropouts:
        dropout.eval()
    guesses = network.forward(images).argmax(axis=1)
    for dropout in network.dropouts:
        dropout.train()
    return 100 * np.mean(guesses != labels)


def train(digits, p, seed, options):
    """Train a new network by gradient descent and yield its test error (%) after each epoch."""
    random = np.random.default_rng(seed)
    order = random.permutation(IMAGES)
    images, labels = (digits.data[order] / 16).astype(np.float32), digits.target[order]
    network = Network((images.shape[1], options.hidden, options.hidden, DIGITS), p, random)
    velocities = [np.zeros_like(values) for values in network.parameters]
    for epoch in range(options.epochs):
        rate = LEARNING_RATE * (1 - epoch / options.epochs)
        shuffled = random.permutation(options.train)
        for batch in np.split(shuffled, range(BATCH, options.train, BATCH)):
            gradient = cross_entropy(network.forward(images[batch]), labels[batch])[1]
            gradients = network.backward(gradient)
            for i, values in enumerate(network.parameters):
                velocities[i] = MOMENTUM * velocities[i] - rate * gradients[i]
                values += velocities[i]
        yield error_rate(network, images[options.train :], labels[options.train :])


def print_errors(columns, options):
    """Print the final test errors of each seed, and means +- standard deviations."""
    print(f"Test error (%) on {IMAGES - options.train} images after {options.epochs} epochs on")
    print(f"{options.train} images, with 2 x {options.hidden} hidden units:\n")
    print(f"seed      no dropout{f'dropout p={options.p:g}':>16}      difference")
    for seed, row in enumerate(zip(*columns, strict=True)):
        print(f"{seed:4}" + "".join(f"{error:16.2f}" for error in row))
    means = (f"{column.mean():8.2f} +- {column.std(ddof=1):.2f}" for column in columns)
    print("mean" + "".join(means) + "  (+- standard deviation)\n")
    print(f"Dropout lowered the error for {np.sum(columns[2] < 0)} of {options.seeds} seeds.")


def plot(errors, options):
    """Write a PNG with the mean and the standard deviation of the test errors after each epoch."""
    from matplotlib import pyplot

    pyplot.rcParams["font.size"] = 18  # legible on a phone
    figure, axes = pyplot.subplots(figsize=(9, 7), dpi=100, layout="constrained")
    epochs = np.arange(1, options.epochs + 1)
    # The lines differ in style and brightness, so that readers need not distinguish colours.
    styles = ("no dropout", "#d98200", "--"), (f"dropout, p = {options.p:g}", "#004a80", "-")
    for runs, (label, colour, line) in zip(errors, styles, strict=True):
        mean, deviation = runs.mean(axis=0), runs.std(axis=0, ddof=1)
        axes.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.2, lw=0)
        axes.plot(epochs, mean, line, color=colour, lw=3, label=f"{label}: {mean[-1]:.2f} % at end")
    top = min(100, 1 + 2.5 * errors[:, :, -1].mean())  # cuts off errors of the first epochs
    axes.set(title=f"Handwritten digits, {options.train} training images", ylim=(0, top))
    axes.set(xlabel="training time (epochs)", ylabel="test error (%)", xlim=(0, epochs[-1]))
    axes.legend(title=f"mean ± standard deviation of {options.seeds} seeds", title_fontsize=16)
    figure.savefig(options.plot, format="png")
    print(f"The curves are in {options.plot}.")


def parse_options():
    """Return the options of the command line."""
    parser = ArgumentParser(formatter_class=ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=int, default=8, metavar="N", help="number of seeds, at least 2")
    add("--epochs", type=int, default=80, metavar="N", help="passes over the training images")
    add("--p", type=float, default=0.5, help="probability that a hidden unit is dropped")
    add("--hidden", type=int, default=256, metavar="N", help="units in each hidden layer")
    add("--train", type=int, default=400, metavar="N", help=f"training images, of {IMAGES}")
    add("--plot", default="digits.png", metavar="FILE", help="PNG file to write")
    options = parser.parse_args()
    if options.seeds < 2 or min(options.epochs, options.hidden, options.train) < 1:
        parser.error("use at least 2 seeds, 1 epoch, 1 hidden unit and 1 training image")
    if options.train >= IMAGES or not 0 <= options.p <= 1:
        parser.error(f"use fewer than {IMAGES} training images, and p between 0 and 1")
    return options


def main():
    """Train two networks per seed, then print and plot their test errors."""
    options = parse_options()
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        sys.exit("scikit-learn, which has the images, is missing: pip install scikit-learn")
    check_gradient()
    digits, errors = load_digits(), np.empty((2, options.seeds, options.epochs))
    with show_progress(errors.size) as begin:
        for seed in range(options.seeds):
            for run, p in enumerate([0, options.p]):
                epochs = train(digits, p, seed, options)
                for epoch in range(options.epochs):
                    begin(f"seed {seed}, p = {p:g}")
                    errors[run, seed, epoch] = next(epochs)
    without, with_dropout = errors[:, :, -1]
    print_errors([without, with_dropout, with_dropout - without], options)
    try:
        plot(errors, options)
    except ModuleNotFoundError:
        print("matplotlib, which plots the errors, is missing: pip install matplotlib")


if __name__ == "__main__":
    main()
