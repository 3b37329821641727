"""Run the statistical tests of tests/helpers/randomness.py on up to 10^11 elements for each p.

    python tools/randomness.py [--p P ...]

The program prints one line per test and p, and exits with status 1 if a test exceeds its limit.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # last, to prefer an installed cdropout

from tests.helpers import randomness  # noqa: E402

EFFORT = randomness.Effort(
    10**11, 256 * randomness.CHUNK, 200, 4000, pairs=1 << 23, triples=1 << 20
)


def table_row(scores, seconds):
    """Return the table row of one test for one p."""
    sigmas, limit = scores.worst()
    mean_square = np.square(scores.sigmas).mean()
    return (
        f"{scores.test:38} {scores.p:<6} {scores.sigmas.size:7} {sigmas:8.2f} {limit:8.2f} "
        f"{mean_square:7.3f} {seconds:7.1f}{'' if scores.passes() else '  EXCEEDS ITS LIMIT'}"
    )


def main(arguments=None):
    """Run the tests, print their table and return the exit status."""
    parser = argparse.ArgumentParser(description="Statistical tests of the masks.")
    parser.add_argument("--p", type=float, nargs="+", default=randomness.PROBABILITIES)
    options = parser.parse_args(arguments)
    print(f"{'test':38} {'p':6} {'sums':>7} {'worst':>8} {'limit':>8} {'square':>7} {'s':>7}")
    passed = True
    for p in options.p:
        started = time.perf_counter()
        for scores in randomness.all_tests(randomness.draw, p, EFFORT):
            print(table_row(scores, time.perf_counter() - started), flush=True)
            passed = passed and scores.passes()
            started = time.perf_counter()
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
