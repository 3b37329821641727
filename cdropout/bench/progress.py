"""Progress of a run, shown on standard error if this is a terminal."""

import contextlib
import itertools
import sys
from importlib.util import find_spec

BAR = "{desc} |{bar}| {n_fmt} of {total_fmt} done, {remaining} left"


@contextlib.contextmanager
def progress_bar(total):
    """Yield `begin` as `show_progress` does; tqdm draws a bar with the count and the time left."""
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # start no thread that would run during the measurements
    count = itertools.count()
    options = {"file": sys.stderr, "leave": False, "dynamic_ncols": True, "bar_format": BAR}
    with tqdm(total=total, **options) as bar:

        def begin(text):
            bar.set_description_str(text, refresh=False)
            bar.n = next(count)
            bar.refresh()

        yield begin


@contextlib.contextmanager
def progress_line(total):
    """Yield `begin` as `show_progress` does; each call of `begin` rewrites the same line."""
    stderr, count = sys.stderr, itertools.count()

    def begin(text):
        line = f"{text}: {next(count)} of {total} done"
        print(f"\r\x1b[K{line}", end="", file=stderr, flush=True)

    try:
        yield begin
    finally:
        print("\r\x1b[K", end="", file=stderr, flush=True)


def show_progress(total):
    """Return a context manager that yields a function `begin(text)`.

    Call `begin` at the start of each of `total` steps. If standard error is not a terminal, nothing
    is printed.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        return contextlib.nullcontext(lambda text: None)
    return progress_bar(total) if find_spec("tqdm") else progress_line(total)
