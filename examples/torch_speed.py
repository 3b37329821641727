"""Times PyTorch's dropout and cdropout.torch's in turn, and prints how many times faster ours is.

    python examples/torch_speed.py [--threads 2] [--runs 9]

The ratio is the median over runs, with the least and the most. At 1024 x 1024 memory decides, for
cdropout at least: forward and backward pass through 16 MB, and glibc gives freed blocks of such
sizes back to the system, which clears them anew. It keeps them with
MALLOC_TRIM_THRESHOLD_=1000000000 MALLOC_MMAP_THRESHOLD_=1000000000 in the environment.
"""

import argparse
import statistics
import timeit

import torch
import torch.nn.functional as F

import cdropout.torch


def forward(function, x, gradient):
    with torch.no_grad():
        function(x, 0.1)


def forward_and_backward(function, x, gradient):
    function(x, 0.1).backward(gradient)
    x.grad = None


def paired(step, functions, shape, calls, runs):
    """The times of a call in µs, a list for each function, taken in turn."""
    x = torch.randn(shape, requires_grad=True)
    gradient = torch.randn(shape)
    times = [[] for _ in functions]
    for _ in range(runs + 1):
        for function, taken in zip(functions, times, strict=True):
            seconds = timeit.timeit(lambda f=function: step(f, x, gradient), number=calls)
            taken.append(seconds / calls * 1e6)
    return [taken[1:] for taken in times]  # the first run warms up


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="for PyTorch and cdropout alike")
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"float32, p = 0.1, {options.threads} thread(s), PyTorch {torch.__version__}; µs a call")
    for shape, calls in (((8, 8), 500), ((1024, 1024), 5)):
        for step in (forward, forward_and_backward):
            theirs, ours = paired(
                step, (F.dropout, cdropout.torch.dropout), shape, calls, options.runs
            )
            ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
            print(
                f"{step.__name__.replace('_', ' '):21} {shape!s:13}"
                f" PyTorch {statistics.median(theirs):9.2f}"
                f"  cdropout {statistics.median(ours):8.2f}"
                f"  ratio {statistics.median(ratios):6.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
