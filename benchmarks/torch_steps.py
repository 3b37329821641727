"""Time compiled models and bias_dropout_add in PyTorch.

    python benchmarks/torch_steps.py [--only NAME ...] [--pairs N] [--threads N]

Each line compares two or more variants, which run in turn in one process, and prints the medians
and quartiles of the ratios of their times. The compiler runs first, which takes minutes.
"""

import argparse
import statistics
import time

import torch
from torch import nn

import cdropout.torch as ct

P = 0.1
WARMUP = 3


def encoder(p):
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=p, batch_first=True)
    return nn.TransformerEncoder(layer, 2), (8, 128, 256)


def perceptron(activation, p, shape=(256, 1024)):
    layers = [nn.Linear(shape[-1], 1024), activation(), nn.Dropout(p)]
    layers += [nn.Linear(1024, 1024), activation(), nn.Dropout(p), nn.Linear(1024, 10)]
    return nn.Sequential(*layers), shape


MODELS = {
    "encoder": encoder,
    "MLP with GELU": lambda p: perceptron(nn.GELU, p),
    "MLP with ReLU": lambda p: perceptron(nn.ReLU, p),
    "MLP of sequences with ReLU": lambda p: perceptron(nn.ReLU, p, (8, 128, 256)),
}


def steps_of_model(name):
    """Return training steps of a compiled model: without dropout, with PyTorch's, with cdropout."""

    def step_of(p, accelerates):
        model, shape = MODELS[name](p)
        compiled, x = torch.compile(model), torch.randn(shape)

        def step():
            model.zero_grad()
            if accelerates:
                with ct.accelerate():
                    compiled(x).sum().backward()
            else:
                compiled(x).sum().backward()

        return step

    return {
        "no dropout": step_of(0.0, False),
        "PyTorch's dropout": step_of(P, False),
        "cdropout": step_of(P, True),
    }


def steps_of_bias_dropout_add(backward, compiles):
    """Return bias_dropout_add in three operations with dropout of cdropout, and in one pass."""
    x, residual, gy = (torch.randn(16, 128, 1024) for _ in range(3))
    bias = torch.randn(1024)
    inputs = [t.requires_grad_(backward) for t in (x, bias, residual)]

    def three(x, bias, residual):
        return residual + ct.dropout(x + bias, P)

    def one(x, bias, residual):
        return ct.bias_dropout_add(x, bias, residual, P)

    def step_of(function):
        function = torch.compile(function) if compiles else function

        def step():
            y = function(*inputs)
            if backward:
                torch.autograd.grad(y, inputs, gy)

        return step

    return {"one pass": step_of(one), "three operations": step_of(three)}


CASES = {
    **{f"compiled {name}": lambda name=name: steps_of_model(name) for name in MODELS},
    "bias_dropout_add, forward": lambda: steps_of_bias_dropout_add(False, False),
    "bias_dropout_add, both passes": lambda: steps_of_bias_dropout_add(True, False),
    "bias_dropout_add, both passes, compiled": lambda: steps_of_bias_dropout_add(True, True),
}


def measure(steps, pairs):
    """Return the times in seconds of each variant, in pairs."""
    seconds = {name: [] for name in steps}
    for i in range(WARMUP + pairs):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if i >= WARMUP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[""], help="print lines with one of these")
    parser.add_argument("--pairs", type=int, default=25, help="measurements per variant")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"PyTorch {torch.__version__}, {options.threads} threads, p = {P}")
    for case, steps_of in CASES.items():
        if not any(name in case for name in options.only):
            continue
        torch._dynamo.reset()  # otherwise, the limit on recompilations would end the compilation
        base, *others = seconds = measure(steps_of(), options.pairs)
        print(f"{case}: {base} {1000 * statistics.median(seconds[base]):.2f} ms", flush=True)
        for name in others:
            ratios = [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
            low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
            print(f"    {name}: {median:.2f} times ({low:.2f} - {high:.2f})", flush=True)


if __name__ == "__main__":
    main()
