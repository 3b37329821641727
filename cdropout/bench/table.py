"""Output of `cdropout bench`: the printed report, and the chart."""

import itertools
import math
import textwrap

from cdropout._core import dispatch
from cdropout.bench import check, peers
from cdropout.bench.timing import MODES, size_name
from cdropout.selftest import FALSE_ALARM

MIN_CPU_USAGE = 0.9  # CPUs; with a lower usage, other processes used the CPU during the measurement
NARROW, WIDE = 66, 106  # characters per line of a table with one mode, and with both modes
VERDICT_SIZE = 1 << 20  # elements; the verdict is about the measured size that is closest to this
EQUAL = 1.05  # ratio of times below which two implementations are called equally fast
COLUMNS = f"{'ns/element':>10} {'GB/s':>8} {'/memcpy':>8} {'speedup':>8}"
COLUMN_NOTES = {
    "ns/element": "time per element: the median of many rounds, in which all rows take turns",
    "GB/s": "bytes read and written per second",
    "/memcpy": "time divided by that of memcpy: the median of the ratios per round, which can "
    "differ from the ratio of the printed times",
    "speedup": "how many times as fast cdropout is as this row: also a median of ratios",
}

# In the chart, libraries differ in color, lightness and dashes, and variants of a library differ in
# markers. The line of an adapter is black and has the marker of its library, but open.
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
    "cdropout-torch": "^",
    "cdropout-tensorflow": "D",
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

# ---- the heading ------------------------------------------------------------------------------


def title(about):
    """Return a line with the settings of a run, to be shown above the tables and in the chart."""
    threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}"
    isa = dispatch.describe([about["isa"]], about["vectors"])
    parts = [f"cdropout {about['cdropout']}", isa, threads, f"p={about['p']}"]
    return ", ".join([*parts, about["dtype"].replace(",", ", "), *["cold"] * about["cold"]])


def heading(results):
    """Yield the paragraphs above the tables."""
    about = results["environment"]
    yield title(about)
    versions = f"Python {about['python']}, NumPy {about['numpy']}; built by {about['compiler']}"
    yield f"{about['cpu']}; {about['platform']}; {versions}"
    if about["advice"]:
        yield f"To make it faster, {about['advice']}."
    names = ", ".join(f"{name} {number}" for name, number in results["implementations"].items())
    yield (
        f"Checked on {check.SIZE:,} elements: the scale, the gradient, and the keep rate "
        f"(at most 1 of {round(1 / FALSE_ALARM):,} checks of a correct library fails): {names}."
    )
    for name, reason in results["left_out"].items():
        yield f"Left out: {name}: {reason}."
    if absent := results["not_installed"]:
        libraries = ", ".join(peers.LIBRARIES[name] for name in absent)
        extras = ",".join(dict.fromkeys(absent.values()))
        yield f"Not compared, because not installed: {libraries}."
        yield f"To compare them, run: pip install 'cdropout[{extras}]'"
    for name, cpus in results["too_many_cpus"].items():
        yield f"More threads than requested: {name} used {cpus:.1f} CPUs."
    if about["cold"]:
        yield "Cold: the cache was emptied before each call; inputs and outputs are in memory."
    if about["cpu_usage"] < MIN_CPU_USAGE:
        used = f"{about['cpu_usage']:.0%} of a CPU"
        yield (
            f"BUSY MACHINE: this process used only {used}; the times of long calls are too high. "
            "The ratios are affected less."
        )


# ---- the tables -------------------------------------------------------------------------------


def short(ratio):
    """Return a ratio as text, such as 0.73, 1.4 or 31."""
    digits = 0 if ratio >= 9.95 else 1 if ratio >= 0.95 else 2
    return f"{ratio:.{digits}f}"


def columns(measurement):
    """Return the columns of a table row that show this measurement."""
    each, ratio = measurement, measurement.to_cdropout
    speedup = "-" if ratio is None else f"{short(ratio)}x"
    return f"{each.ns_per_element:10.3f} {each.gb_per_s:8.2f} {each.to_memcpy:8.2f} {speedup:>8}"


def table(dtype, measurements, modes):
    """Yield the lines of a table with one row per size and implementation, for some modes."""
    yield " | ".join([f"{dtype:26}", *(f"{mode:^37}" for mode in modes)]).rstrip()
    yield " | ".join([f"{'size':>6} {'':19}", *[COLUMNS] * len(modes)])
    for size, group in itertools.groupby(measurements, key=lambda each: each.size):
        yield "-+-".join(["-" * 26, *["-" * 37] * len(modes)])
        rows = {}
        for each in group:
            rows.setdefault(each.implementation, {})[each.mode] = columns(each)
        for name, cells in rows.items():
            yield " | ".join([f"{size_name(size):>6} {name:19}", *map(cells.get, modes)])


def tables(measurements, width):
    """Yield the lines of all tables: the modes side by side, or stacked if `width` is small."""
    for dtype, group in itertools.groupby(measurements, key=lambda each: each.dtype):
        group = list(group)
        for modes in [MODES] if width >= WIDE else [[mode] for mode in MODES]:
            yield from table(dtype, group, modes)
            yield ""


def notes(measurements):
    """Yield the explanations of all columns, and of the rows that occur."""
    yield "Columns:"
    for name, text in COLUMN_NOTES.items():
        yield f"  {name:19}  {text}"
    yield "Rows:"
    for name in dict.fromkeys(each.implementation for each in measurements):
        yield f"  {name:19}  {peers.DESCRIPTIONS[name]}"


# ---- the verdict ------------------------------------------------------------------------------


def comparison(ratio, other):
    """Return a clause about an implementation whose time is that of `other` divided by `ratio`."""
    if ratio >= EQUAL:
        return f"is {short(ratio)} times as fast as {other}"
    if ratio <= 1 / EQUAL:
        return f"takes {short(1 / ratio)} times as long as {other}"
    return f"is about as fast as {other}"


def sentence(subject, clauses):
    """Return a sentence with one subject and at least one clause.

    A clause omits its verb, which is its first word, if the clause before has the same verb.
    """
    verbs = [clause.partition(" ")[0] for clause in clauses]
    *others, last = [
        clause.removeprefix(f"{verb} ") if verb == previous else clause
        for clause, verb, previous in zip(clauses, verbs, [None, *verbs[:-1]], strict=True)
    ]
    return f"{subject} {' and '.join(filter(None, [', '.join(others), last]))}."


def mode_verdict(found):
    """Yield sentences about `found`, {name: Measurement} of one element type, size and mode."""
    libraries = {name: text for name, text in peers.LIBRARIES.items() if name in found}
    clauses = [comparison(found[name].to_cdropout, text) for name, text in libraries.items()]
    clauses.append(comparison(1 / found["cdropout"].to_memcpy, "a memcpy"))
    yield sentence("cdropout", clauses)
    for name in peers.adapters_of(libraries):
        library = name.removeprefix("cdropout-")
        if name in found:
            ratio = found[library].ns_per_element / found[name].ns_per_element
            yield sentence(f"cdropout.{library}", [comparison(ratio, libraries[library])])


def verdict(measurements):
    """Yield one paragraph per element type and mode, at the size closest to VERDICT_SIZE.

    If a smaller size was measured, the forward pass of the smallest size has a paragraph too.
    """
    sizes = {each.size for each in measurements}
    size = min(sizes, key=lambda size: abs(math.log2(size / VERDICT_SIZE)), default=None)
    shown = {(min(sizes, default=None), MODES[0]), *((size, mode) for mode in MODES)}
    chosen = [each for each in measurements if (each.size, each.mode) in shown]
    for (dtype, size, mode), group in itertools.groupby(chosen, key=lambda each: each[:3]):
        found = {each.implementation: each for each in group}
        text = "cdropout failed its check."
        if "cdropout" in found:
            text = " ".join(mode_verdict(found))
        yield f"{mode.capitalize()} on {size_name(size)} elements of {dtype}: {text}"


# ---- all of it --------------------------------------------------------------------------------


def wrap(paragraphs, width, indent):
    """Yield the lines of paragraphs; the second and later lines of a paragraph are indented."""
    options = {"break_on_hyphens": False, "break_long_words": False}
    for text in paragraphs:
        yield from textwrap.wrap(text, width, subsequent_indent=" " * indent, **options)


def report(results, measurements, width):
    """Yield the lines of the report, wrapped at `width` characters, but at least at NARROW."""
    width = max(width, NARROW)
    yield from wrap(heading(results), width, 2)
    yield ""
    if measurements:
        yield from tables(measurements, width)
        yield from wrap(notes(measurements), width, 23)
        yield ""
        yield from wrap(verdict(measurements), width, 2)
    if results["interrupted"]:
        yield "Interrupted: the sizes that were not complete are missing."


# ---- the chart --------------------------------------------------------------------------------


def line_style(name):
    """Return the style of a line: copies are wide, and variants of a library have open markers."""
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


def legend_lines(axes):
    """Return the lines of a panel from the highest to the lowest right end."""
    return sorted(axes.lines, key=lambda line: -line.get_ydata()[-1])


def chart(about, measurements):
    """Return a figure of ns per element against size, with one column of panels per element type.

    The modes are below one another and the letters are large, so that one column of panels is
    legible on a phone.
    """
    from matplotlib.figure import Figure

    dtypes = list(dict.fromkeys(each.dtype for each in measurements))
    figure = Figure(figsize=(6.5 * len(dtypes), 9.5), layout="constrained")
    panels = figure.subplots(len(MODES), len(dtypes), sharex=True, sharey=True, squeeze=False)
    for mode, row in zip(MODES, panels, strict=True):
        for dtype, axes in zip(dtypes, row, strict=True):
            draw_panel(axes, [each for each in measurements if each[:3:2] == (dtype, mode)])
        row[0].set_ylabel("ns per element")
    for axes in panels[-1]:
        axes.set_xlabel("elements")
    lines = legend_lines(panels[0, 0])
    figure.legend(handles=lines, loc="outside lower center", ncols=2)
    figure.suptitle(f"{title(about)}\n{about['cpu']}", fontsize="medium")
    return figure


def plot(about, measurements, path):
    """Write the chart to an image file."""
    from matplotlib import rc_context

    with rc_context({"font.size": 14}):
        chart(about, measurements).savefig(path, dpi=120)
