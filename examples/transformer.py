"""Train a transformer and a convolutional net with PyTorch's dropout, cdropout's and none, in turn.

    python examples/transformer.py [--quick] [--plot transformer.png]

The three models of a seed have the same first weights and batches, and learn a batch each in turn,
so that whatever else the machine does befalls all alike. It prints how long a step takes, how many
bytes wait for the backward pass, and how the losses agree over several seeds, for which smaller
models train longer. It needs PyTorch, and matplotlib for the picture.
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

TOKENS, HEADS, CLASSES = 16, 4, 10
LEARNING_RATE = 0.003
WARM_UP = 3  # steps of each that are not counted
WAYS = THEIRS, OURS, NONE = "PyTorch's dropout", "cdropout", "no dropout"
# Light and hatched, dark, white; dotted over whole, dashed: told apart without colours too.
LOOKS = {THEIRS: ("#e8a33d", "//", ":"), OURS: ("#004a80", "", "-"), NONE: ("white", "", "--")}


class Size(NamedTuple):
    """Sizes of a model and its batches."""

    batch: int
    length: int  # places of a sequence, or pixels of a square image's side
    width: int  # units, or channels of the first convolution
    layers: int = 4


class Transformer(nn.Module):
    """An encoder that names a token for each place; PyTorch's layers drop attention too."""

    def __init__(self, p, size):
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, size.width)
        self.places = nn.Parameter(torch.randn(size.length, size.width))
        layer = nn.TransformerEncoderLayer(
            size.width, HEADS, 4 * size.width, p, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, size.layers, enable_nested_tensor=False)
        self.scores = nn.Linear(size.width, TOKENS)

    def forward(self, tokens):
        """Return the scores of each token at each place."""
        return self.scores(self.layers(self.tokens(tokens) + self.places))

    @staticmethod
    def batches(size, random):
        """Yield random tokens, and at each place the one before it: what attention has to find."""
        while True:
            tokens = torch.randint(TOKENS, (size.batch, size.length), generator=random)
            yield tokens, tokens.roll(1, dims=1)


class Convolutions(nn.Sequential):
    """Three convolutions, each with `Dropout2d`: whole channels are dropped."""

    def __init__(self, p, size):
        layers, channels = [], 3
        for wider in (size.width, 2 * size.width, 4 * size.width):
            convolution = nn.Conv2d(channels, wider, 3, padding=1)
            layers += [convolution, nn.ReLU(), nn.Dropout2d(p), nn.AvgPool2d(2)]
            channels = wider
        places = (size.length // 8) ** 2
        super().__init__(*layers, nn.Flatten(), nn.Linear(channels * places, CLASSES))

    @staticmethod
    def batches(size, random):
        """Yield noise with one of ten patterns in it, and which one it is."""
        patterns = torch.randn(CLASSES, 3, size.length, size.length, generator=random)
        while True:
            labels = torch.randint(CLASSES, (size.batch,), generator=random)
            noise = torch.randn(size.batch, *patterns.shape[1:], generator=random)
            yield noise + patterns[labels], labels


class Run:
    """A model that learns in one of the three ways; its losses, and the seconds of its steps."""

    def __init__(self, kind, size, way, p, seed):
        torch.manual_seed(seed)
        self.model = kind(0.0 if way == NONE else p, size)
        self.optimizer = torch.optim.Adam(self.model.parameters(), LEARNING_RATE, fused=True)
        self.dropout = cdropout.torch.accelerate if way == OURS else contextlib.nullcontext
        self.losses, self.seconds = [], []

    def loss(self, inputs, labels):
        """Return the mean of -log of the probability that the model gives to the labels."""
        with self.dropout():  # the one line that differs
            scores = self.model(inputs)
        return F.cross_entropy(scores.flatten(0, -2), labels.flatten())

    def step(self, inputs, labels):
        """Learn from one batch."""
        start = time.perf_counter()
        loss = self.loss(inputs, labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(loss.item())

    def bytes_for_backward(self, inputs, labels):
        """Return the size of what the graph of one batch keeps, the model and the batch apart."""
        kept = {}

        def note(tensor):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            graph = self.loss(inputs, labels)  # held: what it keeps must not share an address
        for tensor in (*self.model.parameters(), inputs, labels):
            kept.pop(tensor.untyped_storage().data_ptr(), None)
        del graph
        return sum(kept.values())


def train(kind, size, p, seed, steps):
    """Train the three models of a seed, a step each in turn; return them, and one batch more."""
    runs = [Run(kind, size, way, p, seed) for way in WAYS]
    batches = kind.batches(size, torch.Generator().manual_seed(seed))
    for step in range(steps):
        batch = next(batches)
        first = step % len(runs)  # each is first, and last, as often as the others
        for run in runs[first:] + runs[:first]:
            run.step(*batch)
    return runs, next(batches)


def quartiles(values):
    """Return the median, and the quartiles below and above it."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return median, low, high


def time_steps(title, kind, size, options, steps):
    """Train full-size models; print and return the quartiles of a step's ratio to no dropout."""
    runs, batch = train(kind, size, options.p, 0, WARM_UP + steps)
    print(f"{title}:\n{'':20}{'ms a step':>10}{'(quartiles)':>18}", end="")
    print(f"{'ratio':>9}{'(quartiles)':>16}{'MB for backward':>18}")
    ratios = {}
    for way, run in zip(WAYS, runs, strict=True):
        pairs = zip(run.seconds[WARM_UP:], runs[-1].seconds[WARM_UP:], strict=True)
        ratios[way] = quartiles([mine / none for mine, none in pairs])
        median, low, high = quartiles([1000 * seconds for seconds in run.seconds[WARM_UP:]])
        print(f"{way:20}{median:10.1f}{f'({low:.1f} - {high:.1f})':>18}", end="")
        median, low, high = ratios[way]
        print(f"{median:9.3f}{f'({low:.3f} - {high:.3f})':>16}", end="")
        print(f"{run.bytes_for_backward(*batch) / 1e6:18.1f}")
    print()
    return ratios


def learn(title, kind, size, options, steps):
    """Train small models of several seeds; print how their losses agree, and return the losses."""
    curves = torch.tensor(
        [
            [run.losses for run in train(kind, size, options.p, seed, steps)[0]]
            for seed in range(options.seeds)
        ]
    )
    means = curves.mean(dim=2)  # over all steps: when a model learns counts too
    print(f"{title}, mean loss over {steps} steps, {options.seeds} seeds:")
    for way, losses in zip(WAYS, means.T, strict=True):
        print(f"{way:20}{losses.mean():10.4f} +- {losses.std():.4f}  (standard deviation)")
    difference = means[:, 1] - means[:, 0]
    error = difference.std() / options.seeds**0.5
    print(f"{'cdropout - PyTorch':20}{difference.mean():10.4f} +- {error:.4f}  (standard error)\n")
    return curves


def draw_ratios(axes, ratios):
    """Draw a bar for each model and way."""
    for model, of_way in enumerate(ratios.values()):
        for place, (way, (colour, hatch, _line)) in enumerate(LOOKS.items()):
            median, low, high = of_way[way]
            x = model + 0.27 * (place - 1)
            axes.bar(
                x, median, 0.25, yerr=[[median - low], [high - median]], capsize=5,
                color=colour, hatch=hatch, edgecolor="black", label=None if model else way,
            )  # fmt: skip
            axes.text(x, high + 0.02, f"{median:.2f}", ha="center")
    axes.set_xticks(range(len(ratios)), ratios)
    axes.set(title="Time of a training step", ylabel="ratio to no dropout, with quartiles")
    axes.legend(loc="upper right")


def draw_losses(axes, curves):
    """Draw the mean of the seeds' losses, with a band of a standard deviation, for each way."""
    for place, (way, (colour, _hatch, line)) in enumerate(LOOKS.items()):
        colour = "#555555" if colour == "white" else colour
        spread, mean = (part.numpy() for part in torch.std_mean(curves[:, place], dim=0))
        steps = range(1, len(mean) + 1)
        axes.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)
        axes.plot(steps, mean, line, color=colour, lw=3, label=way, zorder=4 - place)
    axes.set(title="A small transformer learns alike", xlabel="step", ylim=(0, None))
    axes.set_ylabel(f"loss, mean ± deviation of {len(curves)} seeds")
    axes.legend()


def draw(ratios, curves, plot):
    """Write the picture: the ratios of the step times on the left, losses on the right."""
    from matplotlib import pyplot

    pyplot.rcParams["font.size"] = 15
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(14, 6), dpi=90, layout="constrained")
    draw_ratios(left, ratios)
    draw_losses(right, curves)
    figure.savefig(plot, format="png")
    print(f"The picture is in {plot}.")


def parse_options():
    """Return the options of the command line."""
    parser = ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="smaller models and fewer steps: shows no speed")
    add(
        "--steps", type=int, default=15, metavar="N", help="steps of the transformer that are timed"
    )
    add("--seeds", type=int, default=5, metavar="N", help="seeds of the loss curves, at least 2")
    add("--p", type=float, default=0.1, help="probability that an element is dropped")
    add("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch and cdropout")
    add("--plot", default="transformer.png", metavar="FILE", help="where the picture goes, a PNG")
    options = parser.parse_args()
    if options.seeds < 2 or options.steps < 2 or options.threads < 1 or not 0 <= options.p < 1:
        parser.error("needs at least 2 seeds, 2 steps and 1 thread, and p in [0, 1)")
    return options


def main():
    """Time the three ways, let them learn, and draw what came of it."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    print(f"PyTorch {torch.__version__}, {options.threads} threads, p = {options.p:g}\n")
    if options.quick:
        sequences, images, small = Size(4, 16, 32, 2), Size(8, 16, 8), Size(8, 8, 32, 1)
    else:
        sequences, images, small = Size(16, 128, 256), Size(64, 32, 32), Size(16, 16, 64, 2)
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
    curves = learn("Small transformer", Transformer, small, options, 80)
    try:
        draw(ratios, curves, options.plot)
    except ModuleNotFoundError:
        print("Without matplotlib there is no picture: pip install matplotlib")


if __name__ == "__main__":
    main()
