"""Write docs/mask_id.svg, the picture of seed, call, p and start, with real masks."""

from pathlib import Path

import numpy as np

import cdropout

HERE = Path(__file__).parent
SEED, CALL, P, SHAPE = 42, 1, 0.25, (3, 4)
WINDOW = (slice(1, 3), slice(1, 3))
CELL, LEFT, WIDTH = 29, 72, 432
COLOURS = {True: "#bbd7f0", False: "#f4b183"}  # kept and dropped, as in bitslicing.svg


def text(x, y, content, anchor="start", size=17, colour="#222222"):
    style = f'text-anchor="{anchor}" font-size="{size}" fill="{colour}"'
    return f'<text x="{x}" y="{y}" {style}>{content}</text>'


def cell(x, y, kept, content=""):
    style = f'fill="{COLOURS[bool(kept)]}" stroke="#777777"'
    box = f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" {style}/>'
    return box + text(x + CELL / 2, y + 21, content, "middle", 15)


def stream(y):
    """Return the elements 0 to 11 of three call numbers, one row per call number."""
    size = SHAPE[0] * SHAPE[1]
    parts = [text(12, y, f"seed={SEED}, p={P}")]
    parts += [text(12, y + 31, "position", size=15, colour="#555555")]
    for i in range(size):
        parts.append(text(LEFT + CELL * i + CELL / 2, y + 31, i, "middle", 15, "#555555"))
    for call in range(3):
        top = y + 42 + (CELL + 10) * call
        parts.append(text(12, top + 21, f"call={call}"))
        kept = np.asarray(cdropout.Mask(size, P, SEED, call))
        parts += [cell(LEFT + CELL * i, top, kept[i]) for i in range(size)]
    return parts


def mask(y):
    """Return one call number in the shape of a matrix, with a window."""
    whole = cdropout.Mask(SHAPE, P, SEED, CALL)
    window = whole[WINDOW]
    kept = np.asarray(whole)
    parts = [text(12, y, f"Mask({SHAPE}, p={P}, seed={SEED}, call={CALL})")]
    for row in range(SHAPE[0]):
        for column in range(SHAPE[1]):
            position = row * SHAPE[1] + column
            x, top = LEFT + CELL * column, y + 14 + CELL * row
            parts.append(cell(x, top, kept[row, column], position))
    rows, columns = WINDOW
    x, top = LEFT + CELL * columns.start, y + 14 + CELL * rows.start
    size = f'width="{CELL * window.shape[1]}" height="{CELL * window.shape[0]}"'
    outline = 'fill="none" stroke="#000000" stroke-width="4"'
    parts.append(f'<rect x="{x}" y="{top}" {size} {outline}/>')
    right = LEFT + CELL * SHAPE[1] + 14
    for i, line in enumerate(
        ["mask[1:3, 1:3]", f"start={window.start}", f"strides={whole.strides}"]
    ):
        parts.append(text(right, y + 36 + 28 * i, line))
    return parts


def picture():
    """Return the SVG."""
    parts = stream(28) + mask(232)
    y = 232 + 14 + CELL * SHAPE[0] + 18
    for i, (kept, meaning) in enumerate([(True, "kept"), (False, "dropped")]):
        parts += [cell(LEFT + 110 * i, y, kept), text(LEFT + 110 * i + CELL + 8, y + 21, meaning)]
    height = y + CELL + 14
    shape = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {shape} font-family="sans-serif">'
    background = f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>'
    return "\n".join([head, background, *parts, "</svg>", ""])


if __name__ == "__main__":
    (HERE / "mask_id.svg").write_text(picture(), encoding="utf-8")
