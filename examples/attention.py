"""Measure attention without dropout, with PyTorch's dropout and with cdropout's.

    python examples/attention.py [--quick] [--plot attention.png]

For each sequence length, the example prints the time of a forward and a backward pass, the ratio to
attention without dropout, and the peak memory beside inputs, output and gradients. Passes of the
three kinds alternate, so that other load on the machine affects all kinds equally. The memory of a
kind is measured in a process of its own. The example requires PyTorch, and matplotlib for the
figure.
"""

import os
import re
import statistics
import subprocess
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from pathlib import Path

import torch
import torch.nn.functional as F

import cdropout.torch

HEADS, WIDTH = 8, 64
KINDS = NONE, THEIRS, OURS = "no dropout", "PyTorch's dropout", "cdropout"
STYLES = {NONE: ("#555555", "--", "s"), THEIRS: ("#e8a33d", ":", "o"), OURS: ("#004a80", "-", "^")}
COPIES = 6  # the largest number of tensors like the weights that PyTorch holds at the same time
MEMORY_FRACTION = 0.5  # of the memory of the machine that a measurement may use


class Attention:
    """Forward and backward passes with one of the three kinds of dropout."""

    def __init__(self, kind, batch, length, p, causal):
        self.function = F.scaled_dot_product_attention
        if kind == OURS:
            self.function = cdropout.torch.scaled_dot_product_attention
        self.options = {"dropout_p": 0.0 if kind == NONE else p, "is_causal": causal}
        self.inputs = [
            torch.randn(batch, HEADS, length, WIDTH, requires_grad=True) for _ in range(3)
        ]
        self.gradient = torch.randn(self.inputs[0].shape)
        self.seconds = []

    def run(self):
        """Run both passes, and return the output and the gradients."""
        start = time.perf_counter()
        y = self.function(*self.inputs, **self.options)
        gradients = torch.autograd.grad(y, self.inputs, self.gradient)
        self.seconds.append(time.perf_counter() - start)
        return y, *gradients


def quartiles(values):
    """Return the median, the lower quartile and the upper quartile."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return median, low, high


def total_memory():
    """Return the size of the memory of this machine in bytes, or 8 GiB if it is unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**33


def weight_bytes(batch, length):
    """Return the size of the matrix of attention weights in bytes."""
    return 4 * batch * HEADS * length**2


def batch_for(length, largest, memory):
    """Return the batch size, which is 1 where the weights of `largest` samples would not fit."""
    return largest if COPIES * weight_bytes(largest, length) <= MEMORY_FRACTION * memory else 1


def skip_reason(kind, batch, length, memory):
    """Return why a kind is skipped, or "" if it fits in memory."""
    size = COPIES * weight_bytes(batch, length)
    if kind != THEIRS or size <= MEMORY_FRACTION * memory:
        return ""
    return f"needs about {size / 2**30:.0f} GiB"


def measure_times(kinds, batch, length, options):
    """Return the times of each kind in seconds, from alternating passes."""
    runs = {kind: Attention(kind, batch, length, options.p, options.causal) for kind in kinds}
    for run in runs.values():
        run.run()
    for i in range(options.runs):
        order = list(runs.values())
        for run in order[i % len(order) :] + order[: i % len(order)]:
            run.run()
    return {kind: run.seconds[1:] for kind, run in runs.items()}


def peak_memory(kind, batch, length, options):
    """Return the peak memory in MiB, beside inputs, output and gradients; None if unknown."""
    command = [
        sys.executable, __file__, "--peak", kind, "--batch", str(batch), "--lengths", str(length),
        "--p", str(options.p), "--threads", str(options.threads),
    ] + ["--causal"] * options.causal  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout) if result.stdout.strip() else None


def print_peak(kind, options):
    """Print the peak memory of one kind in MiB. A small run before fills caches of PyTorch."""
    status = Path("/proc/self/status")
    if not status.exists():  # only Linux has this file
        return

    def peak():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])

    Attention(kind, 1, 64, options.p, options.causal).run()
    attention = Attention(kind, options.batch, options.lengths[0], options.p, options.causal)
    results = [torch.ones(attention.gradient.shape) for _ in range(4)]
    before = peak()
    del results
    attention.run()
    print((peak() - before) / 1024)


def draw(rows, plot):
    """Write a figure with the ratios of times, and with the memory."""
    from matplotlib import pyplot

    pyplot.rcParams["font.size"] = 15
    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(8, 10), dpi=90, layout="constrained")
    for kind, (colour, line, marker) in STYLES.items():
        style = {"color": colour, "linestyle": line, "marker": marker, "lw": 3, "ms": 9}
        points = [(length, *ratio) for length, name, ratio, _ in rows if name == kind]
        if not points:  # each length was skipped
            continue
        lengths, medians, lows, highs = (list(column) for column in zip(*points, strict=True))
        upper.plot(lengths, medians, label=kind, **style)
        upper.fill_between(lengths, lows, highs, color=colour, alpha=0.2, lw=0)
        memory = [(length, mib or 0.0) for length, name, _, mib in rows if name == kind]
        lower.plot(*zip(*memory, strict=True), label=kind, **style)
    upper.set(title="Time of both passes", ylabel="ratio to no dropout, with quartiles")
    lower.set(title="Peak memory beside tensors", ylabel="MiB", yscale="symlog")
    ticks = sorted({row[0] for row in rows})
    for axes in (upper, lower):
        axes.set(xlabel="sequence length", xscale="log")
        axes.set_xticks(ticks, ticks)
        axes.minorticks_off()
        axes.legend()
    upper.set_ylim(0, None)
    figure.savefig(plot, format="png")
    print(f"Wrote the figure to {plot}.")


def parse_options():
    """Return the options of the command line."""
    parser = ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="two short lengths, too short to compare speed")
    lengths = [128, 256, 512, 1024, 2048, 4096, 8192]
    add("--lengths", type=int, nargs="+", default=lengths, metavar="L", help="sequence lengths")
    add("--batch", type=int, default=2, help="batch size; 1 where the weights would not fit")
    add("--runs", type=int, default=15, help="timed runs of each kind, at least 2")
    add("--p", type=float, default=0.1, help="probability that a weight is dropped")
    add("--causal", action="store_true", help="hide later keys from each row")
    add("--threads", type=int, default=torch.get_num_threads(), help="number of threads")
    add("--peak", choices=KINDS, help="print only the peak memory of this kind, in MiB")
    add("--plot", default="attention.png", metavar="FILE", help="PNG file of the figure")
    options = parser.parse_args()
    if options.runs < 2 or options.threads < 1 or min(options.lengths) < 1 or not 0 < options.p < 1:
        parser.error("needs at least 2 runs, 1 thread and 1 position, and p in (0, 1)")
    if options.quick:
        options.lengths = [32, 64]
    return options


def main():
    """Print a table of times and memory, and draw a figure."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    if options.peak:
        print_peak(options.peak, options)
        return
    print(f"PyTorch {torch.__version__}, {options.threads} threads, p = {options.p:g}")
    print(f"{HEADS} heads of {WIDTH}, float32, forward and backward\n")
    header = f"{'batch':>7}  {'kind':20}{'ms':>9}{'ratio':>8}{'(quartiles)':>16}{'MiB':>9}"
    print(f"{'length':>6}{header}")
    rows, memory = [], total_memory()
    for length in options.lengths:
        batch = batch_for(length, options.batch, memory)
        skipped = {kind: skip_reason(kind, batch, length, memory) for kind in KINDS}
        kinds = [kind for kind in KINDS if not skipped[kind]]
        seconds = measure_times(kinds, batch, length, options)
        for kind in KINDS:
            print(f"{length:6}{batch:7}  {kind:20}", end="")
            if skipped[kind]:
                print(f"  skipped: {skipped[kind]}")
                continue
            pairs = zip(seconds[kind], seconds[NONE], strict=True)
            ratio, low, high = quartiles([time / base for time, base in pairs])
            mib = peak_memory(kind, batch, length, options)
            print(f"{1000 * statistics.median(seconds[kind]):9.1f}{ratio:8.2f}", end="")
            print(f"{f'({low:.2f} - {high:.2f})':>16}", end="")
            print("" if mib is None else f"{mib:9.1f}", flush=True)
            rows.append((length, kind, (ratio, low, high), mib))
    try:
        draw(rows, options.plot)
    except ModuleNotFoundError:
        print("The figure requires matplotlib: pip install matplotlib")


if __name__ == "__main__":
    main()
