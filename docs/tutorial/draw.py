"""Run the code of the tutorials and draw their pictures: `python docs/tutorial/draw.py`."""

import re
from pathlib import Path

from matplotlib import pyplot

HERE = Path(__file__).parent
STYLES = ("#d98200", "--"), ("#004a80", "-")  # differ in style and brightness, not only in colour


def errors_of(name):
    """Return the dict `errors` of a tutorial: the test errors per epoch of each run."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (HERE / name).read_text(), re.M | re.S)
    variables = {}
    for block in blocks:
        exec(block, variables)
    return variables["errors"]


def draw(errors, path):
    """Draw the test errors over the epochs."""
    pyplot.rcParams["font.size"] = 22
    figure, axes = pyplot.subplots(figsize=(10, 6.5), dpi=100, layout="constrained")
    for (name, values), (colour, line) in zip(errors.items(), STYLES, strict=True):
        axes.plot(range(1, len(values) + 1), values, line, color=colour, lw=4, label=name)
    final = max(values[-1] for values in errors.values())
    axes.set(xlabel="epochs", ylabel="test error (%)", ylim=(0, 3 * final))
    axes.set_xticks(range(0, len(values) + 1, 5))
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    for name in "numpy", "pytorch":
        draw(errors_of(f"{name}.md"), HERE / f"{name}.png")
