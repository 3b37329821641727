"""Time PyTorch's dropout and cdropout's in alternation, and print the ratio of the times.

    python examples/torch_speed.py [--threads 2] [--runs 9]

Each ratio is the median of the ratios of all runs, followed by the minimum and the maximum. At
1024 x 1024, memory limits the speed of cdropout: forward and backward read and write 16 MB. glibc
returns freed blocks of this size to the operating system, which clears memory before a process can
use it again. To prevent that, set MALLOC_TRIM_THRESHOLD_=1000000000 and
MALLOC_MMAP_THRESHOLD_=1000000000 in the environment.
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


def time_alternately(step, functions, shape, calls, runs):
    """Return a list for each function; it contains the time of each run in µs per call."""
    x = torch.randn(shape, requires_grad=True)
    gradient = torch.randn(shape)
    times = [[] for _ in functions]
    for _ in range(runs + 1):
        for function, microseconds in zip(functions, times, strict=True):
            seconds = timeit.timeit(lambda f=function: step(f, x, gradient), number=calls)
            microseconds.append(seconds / calls * 1e6)
    return [microseconds[1:] for microseconds in times]  # without the warm-up run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch and cdropout")
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"float32, p = 0.1, {options.threads} threads, PyTorch {torch.__version__}; µs per call")
    for shape, calls in (((8, 8), 500), ((1024, 1024), 5)):
        for step in (forward, forward_and_backward):
            theirs, ours = time_alternately(
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
