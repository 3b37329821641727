"""Train a transformer and a convolutional network with PyTorch's, cdropout's and no dropout.

    python examples/transformer.py [--quick] [--plot transformer.png]

For each seed, the three models have the same initial weights and batches. Their steps alternate, so
that other load on the machine affects all models equally. The example prints the time of a step,
the memory that is saved for the backward pass, and the losses of smaller models for several seeds.
The example requires PyTorch, and matplotlib for the figure.
"""

import contextlib
import statistics
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import cdropout.torch
from cdropout.bench.progress import show_progress

TOKENS, HEADS, CLASSES = 16, 4, 10
LEARNING_RATE = 0.003
WARM_UP = 3  # steps per model that are not timed
DROPOUTS = THEIRS, OURS, NONE = "PyTorch's dropout", "cdropout", "no dropout"
# Colour, hatch and line style. Bars and lines can be distinguished without the colours.
STYLES = {THEIRS: ("#e8a33d", "//", ":"), OURS: ("#004a80", "", "-"), NONE: ("white", "", "--")}


class Size(NamedTuple):
    """Sizes of a model and its batches."""

    batch: int
    length: int  # of a sequence, or of a side of a square image
    width: int  # units, or channels of the first convolution
    layers: int = 4


class Transformer(nn.Module):
    """An encoder that predicts a token per position; dropout also applies to attention."""

    def __init__(self, p, size):
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, size.width)
        self.positions = nn.Parameter(torch.randn(size.length, size.width))
        layer = nn.TransformerEncoderLayer(
            size.width, HEADS, 4 * size.width, p, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, size.layers, enable_nested_tensor=False)
        self.scores = nn.Linear(size.width, TOKENS)

    def forward(self, tokens):
        """Return the scores of all tokens at each position."""
        return self.scores(self.layers(self.tokens(tokens) + self.positions))

    @staticmethod
    def batches(size, random):
        """Yield random tokens and their labels; each label is the preceding token."""
        while True:
            tokens = torch.randint(TOKENS, (size.batch, size.length), generator=random)
            yield tokens, tokens.roll(1, dims=1)


class Convolutions(nn.Sequential):
    """Three convolutions, each followed by `Dropout2d`, which drops whole channels."""

    def __init__(self, p, size):
        layers, channels = [], 3
        for wider in (size.width, 2 * size.width, 4 * size.width):
            convolution = nn.Conv2d(channels, wider, 3, padding=1)
            layers += [convolution, nn.ReLU(), nn.Dropout2d(p), nn.AvgPool2d(2)]
            channels = wider
        pixels = (size.length // 8) ** 2
        super().__init__(*layers, nn.Flatten(), nn.Linear(channels * pixels, CLASSES))

    @staticmethod
    def batches(size, random):
        """Yield patterns with noise and their labels; each label is the index of the pattern."""
        patterns = torch.randn(CLASSES, 3, size.length, size.length, generator=random)
        while True:
            labels = torch.randint(CLASSES, (size.batch,), generator=random)
            noise = torch.randn(size.batch, *patterns.shape[1:], generator=random)
            yield noise + patterns[labels], labels


class Run:
    """A model with one of the three kinds of dropout, its losses and the times of its steps."""

    def __init__(self, model, size, dropout, p, seed):
        torch.manual_seed(seed)
        self.model = model(0.0 if dropout == NONE else p, size)
        self.optimizer = torch.optim.Adam(self.model.parameters(), LEARNING_RATE, fused=True)
        self.context = cdropout.torch.accelerate if dropout == OURS else contextlib.nullcontext
        self.losses, self.seconds = [], []

    def loss(self, inputs, labels):
        """Return the mean cross entropy."""
        with self.context():  # the only difference between PyTorch's dropout and cdropout
            scores = self.model(inputs)
        return F.cross_entropy(scores.flatten(0, -2), labels.flatten())

    def step(self, inputs, labels):
        """Train with one batch."""
        start = time.perf_counter()
        loss = self.loss(inputs, labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(loss.item())

    def bytes_for_backward(self, inputs, labels):
        """Return the bytes of tensors that autograd saves, without parameters and the batch."""
        saved = {}

        def record(tensor):
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            graph = self.loss(inputs, labels)  # keeps all saved tensors alive
        for tensor in (*self.model.parameters(), inputs, labels):
            saved.pop(tensor.untyped_storage().data_ptr(), None)
        del graph
        return sum(saved.values())


def train(model, size, p, seed, steps):
    """Train the three models of a seed in alternation; return the runs and another batch."""
    runs = [Run(model, size, dropout, p, seed) for dropout in DROPOUTS]
    batches = model.batches(size, torch.Generator().manual_seed(seed))
    with show_progress(steps) as begin:
        for step in range(steps):
            begin(f"{model.__name__}, seed {seed}, steps")
            batch = next(batches)
            first = step % len(runs)  # each run is first equally often
            for run in runs[first:] + runs[:first]:
                run.step(*batch)
    return runs, next(batches)


def quartiles(values):
    """Return the median, the lower quartile and the upper quartile."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return median, low, high


def time_steps(title, model, size, options, steps):
    """Print the step times for each dropout; return the quartiles of their ratios to no dropout."""
    runs, batch = train(model, size, options.p, 0, WARM_UP + steps)
    print(f"{title}:\n{'':20}{'ms/step':>10}{'(quartiles)':>18}", end="")
    print(f"{'ratio':>9}{'(quartiles)':>16}{'MB for backward':>18}")
    ratios = {}
    for dropout, run in zip(DROPOUTS, runs, strict=True):
        pairs = zip(run.seconds[WARM_UP:], runs[-1].seconds[WARM_UP:], strict=True)
        ratios[dropout] = quartiles([seconds / base for seconds, base in pairs])
        median, low, high = quartiles([1000 * seconds for seconds in run.seconds[WARM_UP:]])
        print(f"{dropout:20}{median:10.1f}{f'({low:.1f} - {high:.1f})':>18}", end="")
        median, low, high = ratios[dropout]
        print(f"{median:9.3f}{f'({low:.3f} - {high:.3f})':>16}", end="")
        print(f"{run.bytes_for_backward(*batch) / 1e6:18.1f}")
    print()
    return ratios


def compare_losses(title, model, size, options, steps):
    """Train small models with several seeds; print a comparison of losses; return the losses."""
    curves = torch.tensor(
        [
            [run.losses for run in train(model, size, options.p, seed, steps)[0]]
            for seed in range(options.seeds)
        ]
    )
    means = curves.mean(dim=2)  # over all steps, to include the speed of learning
    print(f"{title}, mean loss over {steps} steps, {options.seeds} seeds:")
    for dropout, losses in zip(DROPOUTS, means.T, strict=True):
        print(f"{dropout:20}{losses.mean():10.4f} +- {losses.std():.4f}  (standard deviation)")
    difference = means[:, 1] - means[:, 0]
    error = difference.std() / options.seeds**0.5
    print(f"{'cdropout - PyTorch':20}{difference.mean():10.4f} +- {error:.4f}  (standard error)\n")
    return curves


def draw_ratios(axes, ratios):
    """Draw a bar for each model and kind of dropout."""
    for model, quartiles_of in enumerate(ratios.values()):
        for i, (dropout, (colour, hatch, _line)) in enumerate(STYLES.items()):
            median, low, high = quartiles_of[dropout]
            x = model + 0.27 * (i - 1)
            axes.bar(
                x, median, 0.25, yerr=[[median - low], [high - median]], capsize=5,
                color=colour, hatch=hatch, edgecolor="black", label=None if model else dropout,
            )  # fmt: skip
            axes.text(x, high + 0.02, f"{median:.2f}", ha="center")
    axes.set_xticks(range(len(ratios)), ratios)
    axes.margins(y=0.1)  # space for the numbers
    axes.set(title="Time of a training step", ylabel="ratio to no dropout, with quartiles")
    axes.legend(loc="upper right")


def draw_losses(axes, curves):
    """Draw a line for each kind of dropout: the mean loss of all seeds, +- standard deviation."""
    for i, (dropout, (colour, _hatch, line)) in enumerate(STYLES.items()):
        colour = "#555555" if colour == "white" else colour
        spread, mean = (part.numpy() for part in torch.std_mean(curves[:, i], dim=0))
        steps = range(1, len(mean) + 1)
        axes.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)
        axes.plot(steps, mean, line, color=colour, lw=3, label=dropout, zorder=4 - i)
    axes.set(title="Loss of a small transformer", xlabel="step", ylim=(0, None))
    axes.set_ylabel(f"mean ± standard deviation of {len(curves)} seeds")
    axes.legend()


def draw(ratios, curves, plot):
    """Write a figure with the ratios of step times and the losses."""
    from matplotlib import pyplot

    pyplot.rcParams["font.size"] = 18  # legible on a phone
    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(9, 13), dpi=90, layout="constrained")
    draw_ratios(top, ratios)
    draw_losses(bottom, curves)
    figure.savefig(plot, format="png")
    print(f"Wrote the figure to {plot}.")


def parse_options():
    """Return the options of the command line."""
    parser = ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="smaller models, too small to compare speed")
    add("--steps", type=int, default=15, metavar="N", help="timed steps of the transformer")
    add("--length", type=int, default=128, metavar="L", help="length of the timed sequences")
    add("--seeds", type=int, default=5, metavar="N", help="seeds of the loss curves, at least 2")
    add("--p", type=float, default=0.1, help="probability that an element is dropped")
    add("--threads", type=int, default=torch.get_num_threads(), help="number of threads")
    add("--plot", default="transformer.png", metavar="FILE", help="PNG file of the figure")
    options = parser.parse_args()
    if options.seeds < 2 or options.steps < 2 or options.threads < 1 or not 0 <= options.p < 1:
        parser.error("needs at least 2 seeds, 2 steps and 1 thread, and p in [0, 1)")
    return options


def main():
    """Time the models, compare their losses and draw a figure."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    print(f"PyTorch {torch.__version__}, {options.threads} threads, p = {options.p:g}\n")
    if options.quick:
        sequences, images, small = Size(4, 16, 32, 2), Size(8, 16, 8), Size(8, 8, 32, 1)
    else:
        sequences, images, small = (
            Size(max(2048 // options.length, 1), options.length, 256),
            Size(64, 32, 32),
            Size(16, 16, 64, 2),
        )
    ratios = {
        "transformer": time_steps(
            f"Transformer, {sequences.layers} layers, batch "
            f"{sequences.batch} x {sequences.length} x {sequences.width}",
            Transformer, sequences, options, options.steps,
        ),
        "convolutions": time_steps(
            f"Convolutions with Dropout2d, batch {images.batch} x 3 x {images.length}^2",
            Convolutions, images, options, 2 * options.steps,
        ),
    }  # fmt: skip
    curves = compare_losses("Small transformer", Transformer, small, options, 80)
    try:
        draw(ratios, curves, options.plot)
    except ModuleNotFoundError:
        print("The figure requires matplotlib: pip install matplotlib")


if __name__ == "__main__":
    main()
