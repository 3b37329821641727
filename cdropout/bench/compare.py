"""What became slower since an earlier `cdropout bench --json`, with the noise taken into account.

Times are compared as multiples of memcpy's in the same round, so that a machine which is slower as
a whole does not count. Each number stands with the interval that holds its median; something became
slower if its new interval lies above the old one by more than TOLERANCE.
"""

import json
from pathlib import Path

from cdropout.bench import peers
from cdropout.bench.race import size_name

TOLERANCE = 0.1
SAME = ("p", "threads", "cold")  # without which two runs cannot be compared
DEPENDS_ON = ("cdropout", "isa", "cpu", "platform", "python", "numpy")


def load(path, options):
    """The numbers of an earlier run, or ValueError if they cannot be compared with this one's."""
    try:
        old = json.loads(Path(path).read_text())
        entries(old)
        about = old["environment"]
        settings = {name: about[name] for name in SAME}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    except (KeyError, TypeError) as error:
        message = f"{path} was not written by `cdropout bench --json` of this version: "
        raise ValueError(f"{message}{type(error).__name__}: {error}") from None
    for name, value in settings.items():
        if value != getattr(options, name):
            raise ValueError(f"{path} has {name}={value}, but this run {getattr(options, name)}")
    return old


def entries(numbers):
    """What is compared: {what: (median, low, high)}, of this package and not of its peers."""
    found = {}
    for cell in numbers["cells"]:
        if cell["contestant"] in peers.OURS:
            what = f"{cell['contestant']} {cell['dtype']} {size_name(cell['size'])} {cell['mode']}"
            found[what] = cell["to_memcpy"], *cell["to_memcpy_interval"]
    for name, number, _ in numbers["kernels"]:
        if name in numbers["kernel_intervals"]:
            found[f"kernels: {name}"] = number, *numbers["kernel_intervals"][name]
    return found


def verdict(old, new):
    """`slower`, `faster` or `same`, of two (median, low, high)."""
    if new[1] > old[2] * (1 + TOLERANCE):
        return "slower"
    return "faster" if new[2] * (1 + TOLERANCE) < old[1] else "same"


def words(what, old, new):
    """One change: both numbers with their intervals."""
    before, now = (f"{median:.2f} ({low:.2f}-{high:.2f})" for median, low, high in (old, new))
    return f"{what}: {now} x memcpy, was {before}: {new[0] / old[0] - 1:+.0%}"


def report(old, new):
    """Compare two runs.

    Parameters
    ----------
    old, new : dict
        What `--json` writes.

    Returns
    -------
    lines : list of str
    code : int
        1 if something became slower, or if the runs have nothing in common.
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
