"""Write docs/bitslicing.svg with bits of the reference implementation, tests/reference.py."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))  # last, so that an installed cdropout comes first

from tests import reference  # noqa: E402

SEED, CALL, P = 42, 7, 0.1  # the example of docs/stream.md
FIRST, SHOWN = 12, 12  # elements of lane 0 in block 0
CELL, LEFT, TOP = 30, 124, 66  # pixels; a phone shows about 350 of them in a row
COLOURS = {"open": "#ffffff", "kept": "#bbd7f0", "dropped": "#f4b183", "done": "#eeeeee"}


def rows():
    """Yield the bit of T for each word, and (bit, outcome) for each element."""
    K, c, _ = reference.mask_constants(SEED, CALL)
    T = reference.threshold(P)
    s0, s1 = reference.lane_state(K, c, block=0, lane=0)
    decided = set()
    for j in range(reference.rounds(T)):
        word, s0, s1 = reference.xoroshiro128pp(s0, s1)
        threshold_bit = (T >> (63 - j)) & 1
        cells = []
        for element in range(FIRST, FIRST + SHOWN):
            drawn = (word >> element) & 1
            if element in decided:
                outcome = "done"
            elif drawn == threshold_bit:
                outcome = "open"
            else:
                outcome = "kept" if drawn > threshold_bit else "dropped"
                decided.add(element)
            cells.append((drawn, outcome))
        yield threshold_bit, cells


def text(x, y, content, anchor="middle", size=16, colour="#222222"):
    style = f'text-anchor="{anchor}" font-size="{size}" fill="{colour}"'
    return f'<text x="{x}" y="{y}" {style}>{content}</text>'


def box(x, y, outcome):
    style = f'fill="{COLOURS[outcome]}" stroke="#bbbbbb"'
    return f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" {style}/>'


def picture():
    """Return the SVG."""
    middle = LEFT + CELL * SHOWN / 2
    parts = [text(middle, 22, f"{SHOWN} of the 64 elements of a lane")]
    parts += [text(LEFT - 38, TOP - 12, "bit of p"), text(12, TOP - 12, "word", "start")]
    outcomes = {}
    for column in range(SHOWN):
        x = LEFT + CELL * column + CELL / 2
        parts.append(text(x, TOP - 12, FIRST + column, colour="#666666", size=14))
    for j, (threshold_bit, cells) in enumerate(rows()):
        y = TOP + CELL * j
        parts += [text(12, y + 20, f"r{j}", "start"), text(LEFT - 38, y + 20, threshold_bit)]
        for column, (drawn, outcome) in enumerate(cells):
            x = LEFT + CELL * column
            colour = "#999999" if outcome == "done" else "#222222"
            parts += [box(x, y, outcome), text(x + CELL / 2, y + 20, drawn, colour=colour)]
            if outcome in ("kept", "dropped"):
                outcomes[column] = outcome
    y = TOP + CELL * (j + 1) + 12
    parts.append(text(12, y + 20, "the mask", "start"))
    for column, outcome in sorted(outcomes.items()):
        x = LEFT + CELL * column
        parts += [box(x, y, outcome), text(x + CELL / 2, y + 20, int(outcome == "kept"))]
    parts += legend(y + CELL + 22)
    width, height = LEFT + CELL * SHOWN + 16, y + CELL + 106
    shape = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {shape} font-family="sans-serif">'
    background = f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>'
    return "\n".join([head, background, *parts, "</svg>", ""])


def legend(y):
    """Return the legend of the colours."""
    meanings = {
        "open": "equal: undecided",
        "kept": "above p: kept",
        "dropped": "below p: dropped",
        "done": "decided earlier",
    }
    parts = []
    for i, (outcome, meaning) in enumerate(meanings.items()):
        x, top = 12 + 240 * (i % 2), y + 40 * (i // 2)
        parts += [box(x, top, outcome), text(x + CELL + 8, top + 20, meaning, "start")]
    return parts


if __name__ == "__main__":
    (HERE / "bitslicing.svg").write_text(picture(), encoding="utf-8")
