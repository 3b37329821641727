"""The chart of `cdropout bench`: time an element over size, legible without colour too."""

from cdropout.bench.race import MODES, size_name
from cdropout.bench.report import heading_words

# A library has a colour, of a lightness of its own, and dashes; each way to call it has a marker.
LIBRARIES = {
    "cdropout": {"color": "black", "linestyle": "-"},
    "numpy": {"color": "#0d0887", "linestyle": "--"},
    "torch": {"color": "#6a00a8", "linestyle": "-."},
    "tensorflow": {"color": "#b12a90", "linestyle": ":"},
    "jax": {"color": "#e16462", "linestyle": (0, (8, 2))},
    "keras": {"color": "#fca636", "linestyle": (0, (3, 1, 1, 1, 1, 1))},
}
COPIES = {"memcpy": "-", "memcpy-threads": "--", "memcpy-stream": ":"}
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


def style(name):
    """How the line of a contestant looks: a copy's is wide, and a variant's has a hollow marker."""
    if name in COPIES:
        return {"color": "0.75", "linestyle": COPIES[name], "linewidth": 4}
    library, _, variant = name.partition("-")
    hollow = {"markerfacecolor": "white"} if variant else {}
    return {**LIBRARIES[library], "marker": MARKERS[name], **hollow}


def draw_panel(axes, cells):
    """One type and mode: a line a contestant."""
    sizes = sorted({cell.size for cell in cells})
    for name in dict.fromkeys(cell.contestant for cell in cells):
        ns = [cell.ns_per_element for cell in cells if cell.contestant == name]
        axes.plot(sizes, ns, label=name, **style(name))
    axes.set(xscale="log", yscale="log", title=f"{cells[0].dtype}, {cells[0].mode}")
    axes.set_xticks(sizes, [size_name(size) for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def plot(about, cells, path):
    """Draw ns an element over size: a row of panels a type, a panel a mode."""
    from matplotlib.figure import Figure

    types = list(dict.fromkeys(cell.dtype for cell in cells))
    figure = Figure(figsize=(12, 1 + 4.5 * len(types)), layout="constrained")
    panels = figure.subplots(len(types), len(MODES), sharex=True, sharey=True, squeeze=False)
    for dtype, row in zip(types, panels, strict=True):
        for mode, axes in zip(MODES, row, strict=True):
            draw_panel(axes, [cell for cell in cells if (cell.dtype, cell.mode) == (dtype, mode)])
        row[0].set_ylabel("ns an element")
    for axes in panels[-1]:
        axes.set_xlabel("elements")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right center")
    figure.suptitle(", ".join([*heading_words(about), about["cpu"]]))
    figure.savefig(path, dpi=120)
