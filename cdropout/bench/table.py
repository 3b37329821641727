"""Output of `cdropout bench`: the printed tables, and the chart."""

import itertools

from cdropout._core import dispatch
from cdropout.bench import check
from cdropout.bench.timing import MODES, size_name
from cdropout.selftest import FALSE_ALARM

MIN_CPU_USAGE = 0.9  # CPUs; with a lower usage, other processes used the CPU during the measurement
NOTES = """\
Medians of paired rounds. GB/s: bytes read and written. /memcpy: time divided by that of a memcpy
of the same bytes (np.copyto, 1 thread); /peer: by that of the fastest peer. memcpy-threads: a
part per thread; memcpy-stream: the same with stores that bypass the cache."""

# In the chart, libraries differ in color, lightness and dashes, and their variants in markers.
LIBRARY_STYLES = {
    "cdropout": {"color": "black", "linestyle": "-"},
    "numpy": {"color": "#0d0887", "linestyle": "--"},
    "torch": {"color": "#6a00a8", "linestyle": "-."},
    "tensorflow": {"color": "#b12a90", "linestyle": ":"},
    "jax": {"color": "#e16462", "linestyle": (0, (8, 2))},
    "keras": {"color": "#fca636", "linestyle": (0, (3, 1, 1, 1, 1, 1))},
}
COPY_LINES = {"memcpy": "-", "memcpy-threads": "--", "memcpy-stream": ":"}
MARKERS = {
    "cdropout": "o",
    "cdropout-new": "h",
    "cdropout-torch": "p",
    "cdropout-tensorflow": "H",
    "numpy": "s",
    "numpy-rand": "P",
    "numpy-binomial": "d",
    "torch": "^",
    "torch-native": ">",
    "torch-compile": "<",
    "tensorflow": "D",
    "jax": "v",
    "jax-rbg": "*",
    "keras": "X",
}

# ---- the tables -------------------------------------------------------------------------------


def title(about):
    """Return a line with the settings of a run, to be shown above the tables and in the chart."""
    threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}"
    isa = dispatch.describe([about["isa"]], about["vectors"])
    parts = [f"cdropout {about['cdropout']}", isa, threads, f"p={about['p']}"]
    return ", ".join([*parts, about["dtype"].replace(",", ", "), *["cold"] * about["cold"]])


def heading(results):
    """Yield the lines above the tables."""
    about = results["environment"]
    yield title(about)
    versions = f"Python {about['python']}, NumPy {about['numpy']}; built by {about['compiler']}"
    yield f"{about['cpu']}; {about['platform']}; {versions}"
    if about["advice"]:
        yield f"to make it faster, {about['advice']}"
    names = ", ".join(f"{name} {number}" for name, number in results["implementations"].items())
    bound = f"a {FALSE_ALARM:g} bound over {check.SIZE} elements"
    yield f"checked (keep rate within {bound}, scale, gradient): {names}"
    for name, reason in results["left_out"].items():
        yield f"left out: {name}: {reason}"
    for name, cpus in results["too_many_cpus"].items():
        yield f"more threads than requested: {name} used {cpus:.1f} CPUs"
    if about["cold"]:
        yield "cold: the cache was emptied before each call; inputs and outputs are in memory"
    if about["cpu_usage"] < MIN_CPU_USAGE:
        used = f"{about['cpu_usage']:.0%} of a CPU"
        yield f"BUSY MACHINE: this process used only {used}; the times of long calls are too high"


def columns(measurement):
    """Return those columns of a table row that show one mode."""
    each, ratio = measurement, measurement.to_best_peer
    peer = "-" if ratio is None else f"{ratio:.3f}"
    return f"{each.ns_per_element:10.3f} {each.gb_per_s:8.2f} {each.to_memcpy:8.2f} {peer:>8}"


def table(dtype, measurements):
    """Yield the lines of a table with one row per size and implementation, for both modes."""
    names = f"{'ns/element':>10} {'GB/s':>8} {'/memcpy':>8} {'/peer':>8}"
    yield f"{dtype:26} | {'forward':^37} | {'':9} forward + backward"
    yield f"{'size':>6} {'':19} | {names} | {names}"
    for size, group in itertools.groupby(measurements, key=lambda each: each.size):
        yield f"{'-' * 26}-+-{'-' * 37}-+-{'-' * 37}"
        group = list(group)
        forward, both = ([each for each in group if each.mode == mode] for mode in MODES)
        for left, right in zip(forward, both, strict=True):
            name = f"{size_name(size):>6} {left.implementation:19}"
            yield f"{name} | {columns(left)} | {columns(right)}"


def tables(measurements):
    """Yield the lines of all tables, one per element type, and of the notes on the columns."""
    for dtype, group in itertools.groupby(measurements, key=lambda each: each.dtype):
        yield from table(dtype, group)
        yield ""
    yield NOTES


# ---- the chart --------------------------------------------------------------------------------


def line_style(name):
    """Return the style of an implementation's line: copies are wide, variants have open markers."""
    if name in COPY_LINES:
        return {"color": "0.75", "linestyle": COPY_LINES[name], "linewidth": 4}
    library, _, variant = name.partition("-")
    open_marker = {"markerfacecolor": "white"} if variant else {}
    return {**LIBRARY_STYLES[library], "marker": MARKERS[name], **open_marker}


def draw_panel(axes, measurements):
    """Draw one line per implementation, for one element type and one mode."""
    sizes = sorted({each.size for each in measurements})
    for name in dict.fromkeys(each.implementation for each in measurements):
        ns = [each.ns_per_element for each in measurements if each.implementation == name]
        axes.plot(sizes, ns, label=name, **line_style(name))
    axes.set(xscale="log", yscale="log", title=f"{measurements[0].dtype}, {measurements[0].mode}")
    axes.set_xticks(sizes, [size_name(size) for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def plot(about, measurements, path):
    """Draw ns per element against size, with one row per element type and one column per mode."""
    from matplotlib.figure import Figure

    dtypes = list(dict.fromkeys(each.dtype for each in measurements))
    figure = Figure(figsize=(12, 1 + 4.5 * len(dtypes)), layout="constrained")
    panels = figure.subplots(len(dtypes), len(MODES), sharex=True, sharey=True, squeeze=False)
    for dtype, row in zip(dtypes, panels, strict=True):
        for mode, axes in zip(MODES, row, strict=True):
            draw_panel(axes, [each for each in measurements if each[:3:2] == (dtype, mode)])
        row[0].set_ylabel("ns per element")
    for axes in panels[-1]:
        axes.set_xlabel("elements")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right center")
    figure.suptitle(f"{title(about)}, {about['cpu']}")
    figure.savefig(path, dpi=120)
