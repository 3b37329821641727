"""What became slower since an earlier `cdropout bench --json`, with the noise taken into account.

Times are compared as multiples of memcpy's in the same round, so that a machine which is slower as
a whole does not count. Something became slower if each run of now is slower than each run of then,
by more than TOLERANCE. Of 12 runs of one build, 5 were compared with 5 others in 2000 random ways:
of 30 numbers none became slower so, and without TOLERANCE one did in 8 % of the comparisons.
"""

import json
from pathlib import Path
from typing import Any

from cdropout.bench import peers
from cdropout.bench.kernels import PAIRED
from cdropout.bench.race import size_name

TOLERANCE = 0.1
RUNS = 5  # at least: of 3, one became slower in 4 % of the comparisons of one build with itself
SAME = ("p", "threads", "cold")  # without which two runs cannot be compared
DEPENDS_ON = ("cdropout", "isa", "cpu", "platform", "python", "numpy")


def load(path: str, options: Any) -> Any:
    """The numbers of earlier runs, or ValueError if they cannot be compared with what is wanted."""
    try:
        old = json.loads(Path(path).read_text())
        entries(old)
        about = old["environment"]
        settings, runs = {name: about[name] for name in SAME}, about["runs"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    except (KeyError, TypeError) as error:
        message = f"{path} was not written by `cdropout bench --json` of this version: "
        raise ValueError(f"{message}{type(error).__name__}: {error}") from None
    for name, value in settings.items():
        if value != getattr(options, name):
            raise ValueError(f"{path} has {name}={value}, but this run {getattr(options, name)}")
    if runs < RUNS:
        raise ValueError(f"{path} has runs={runs}, too few to show the noise: --runs {RUNS} does")
    return old


def entries(numbers):
    """What is compared: {what: the number of each run}, of this package and not of its peers."""
    found = {}
    for cell in numbers["cells"]:
        if cell["contestant"] in peers.OURS:
            what = f"{cell['contestant']} {cell['dtype']} {size_name(cell['size'])} {cell['mode']}"
            found[what] = cell["to_memcpy_runs"]
    for name, _, unit in numbers["kernels"]:
        if unit == PAIRED:
            found[f"kernels: {name}"] = numbers["kernel_runs"][name]
    return found


def verdict(old, new):
    """`slower`, `faster` or `same`, of the number of each run."""
    if min(new) > max(old) * (1 + TOLERANCE):
        return "slower"
    return "faster" if max(new) * (1 + TOLERANCE) < min(old) else "same"


def words(what, old, new):
    """One change: the least and the greatest of both."""
    now, before = (f"{min(ratios):.2f}-{max(ratios):.2f}" for ratios in (new, old))
    return f"{what}: {now} x memcpy, was {before}"


def report(old, new):
    """Compare runs with earlier ones.

    Parameters
    ----------
    old, new : dict
        What `--json` writes.

    Returns
    -------
    lines : list of str
    code : int
        1 if something became slower, or if there is nothing that both have.
    """
    before, now = entries(old), entries(new)
    common = [what for what in now if what in before]
    verdicts = {what: verdict(before[what], now[what]) for what in common}
    about, since = new["environment"], old["environment"]
    lines = [f"compared with cdropout {since['cdropout']} of {since['time']}:"]
    for name in DEPENDS_ON:
        if since[name] != about[name]:
            lines.append(f"  not the same {name}: {about[name]}, was {since[name]}")
    for kind in "slower", "faster":
        for what in common:
            if verdicts[what] == kind:
                lines.append(f"  {kind}: {words(what, before[what], now[what])}")
    same = list(verdicts.values()).count("same")
    lines.append(
        f"  {same} of {len(common)} as fast as before, within {TOLERANCE:.0%} and the noise"
    )
    return lines, int("slower" in verdicts.values() or not common)
