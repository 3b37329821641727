"""Tests that the C interface is binary compatible with its recorded layout.

Functions may be added at the end of the table, which requires a higher version number, and codes
may be added to the enums. Nothing else may change. Before a release, record the additions in
capi_layout.json with `python -m tests.capi.test_layout --record`.
"""

import json
import re
import sys
from importlib.resources import files
from itertools import chain
from operator import itemgetter
from pathlib import Path

import pytest

import cdropout

from ..helpers.requirements import import_or_skip

cffi = import_or_skip("cffi")
HEADER = Path(cdropout.get_include(), "cdropout.h").read_text()
RECORD = Path(__file__).with_name("capi_layout.json")
STRUCTS = ("cdropout_mask", "cdropout_axis", "cdropout_table")
ENUMS = ("cdropout_dtype", "cdropout_flags")
pytestmark = pytest.mark.skipif(sys.maxsize < 2**32, reason="the record is of 64-bit pointers")


def layout(header):
    """Return the version, the codes, and the fields with their offsets, as declared in a header."""
    ffi = cffi.FFI()
    ffi.cdef(header.partition('extern "C" {\n#endif\n')[2].partition("#ifdef __cplusplus\n}")[0])
    version = int(re.search(r"#define CDROPOUT_TABLE_VERSION (\d+)\n", header)[1])
    fields = {
        name: [
            f"{kind.offset}: {kind.type.cname} {field}" for field, kind in ffi.typeof(name).fields
        ]
        for name in STRUCTS
    }
    codes = [sorted(ffi.typeof(name).relements.items(), key=itemgetter(1)) for name in ENUMS]
    return {"version": version, "codes": dict(chain(*codes)), **fields}


def breaking_changes(recorded, present):
    """Yield a message for each change that breaks programs compiled with the recorded layout."""
    for name, code in recorded["codes"].items():
        if present["codes"].get(name) != code:
            yield f"{name} was {code}, and is {present['codes'].get(name)}"
    for name in ("cdropout_mask", "cdropout_axis"):  # callers allocate these structs
        if present[name] != recorded[name]:
            yield f"{name} was {recorded[name]}, and is {present[name]}"
    before, now = recorded["cdropout_table"], present["cdropout_table"]
    for i, field in enumerate(before):
        if now[i : i + 1] != [field]:
            yield f"the table had {field!r}, and has {now[i : i + 1]}"
    if present["version"] < recorded["version"]:
        yield f"the version was {recorded['version']}, and is {present['version']}"
    if len(now) > len(before) and present["version"] <= recorded["version"]:
        yield f"the table has grown, but its version is still {present['version']}"


def record():
    return json.loads(RECORD.read_text())


def test_recorded_layout_is_unchanged():
    assert list(breaking_changes(record(), layout(HEADER))) == []


def test_recorded_layout_is_complete():
    """A layout with additions that are not recorded must have a later version than the record."""
    present = layout(HEADER)
    assert present["version"] > record()["version"] or present == record()


LAST = "(?=} cdropout_table)"
GROWN = [
    (LAST, "  int (*newer)(cdropout_mask *mask);\n"),
    (r"TABLE_VERSION (\d+)", lambda found: f"TABLE_VERSION {int(found[1]) + 1}"),
]
CODE = ("CDROPOUT_BFLOAT16 = 3", "CDROPOUT_BFLOAT16 = 3, CDROPOUT_FLOAT8 = 5")
FLAG = ("CDROPOUT_PART_OF_LARGE = 1", "CDROPOUT_PART_OF_LARGE = 1, CDROPOUT_NEWER = 2")


def edited(*edits):
    header = HEADER
    for old, new in edits:
        header, count = re.subn(old, new, header)
        assert count == 1, old
    return layout(header)


@pytest.mark.parametrize(
    "edits",
    [GROWN, [CODE], [FLAG], [*GROWN, CODE, FLAG]],
    ids=["function", "type", "flag", "all"],
)
def test_additions_at_the_end_are_not_breaking_changes(edits):
    assert list(breaking_changes(record(), edited(*edits))) == []


@pytest.mark.parametrize(
    "edits, message",
    [
        ([GROWN[0]], r"^the table has grown, but its version is still \d+$"),
        ([(r"TABLE_VERSION \d+", "TABLE_VERSION 0")], r"^the version was \d+, and is 0$"),
        ([(r"(int \(\*mask_init\))", r"int (*newer)(void);\n\1")], "had .* mask_init', .* newer'"),
        ([(r"\(\*bits\)", "(*draw_bits)")], "had .* bits', .* draw_bits'"),
        (
            [(r"size_t n, const uint8_t \*bits", "int n, const uint8_t *bits")],
            " apply_bits', .* int,",
        ),
        ([(r"int \(\*bools\)", "void (*bools)")], r": int\(.* bools', .* void\(.* bools'"),
        (
            [(r"double \*gbias", "float *gbias")],
            r" double \*.* float \*.* bias_dropout_add_backward",
        ),
        ([("  uint32_t size;", "  uint64_t size;")], "'4: uint32_t size', .*'8: uint64_t size'"),
        ([("  double scale;", "  float scale;")], "^cdropout_mask was .*24: double .*24: float "),
        ([("seed, call, threshold", "call, seed, threshold")], "^cdropout_mask was .* seed"),
        ([("ptrdiff_t x, y;", "ptrdiff_t y, x;")], "^cdropout_axis was "),
        ([("size_t length;\n", "size_t length, more;\n")], "^cdropout_axis was "),
        ([("int64_t mask;", "int32_t mask;")], "^cdropout_axis was "),
        ([("PART_OF_LARGE = 1", "PART_OF_LARGE = 2")], "^CDROPOUT_PART_OF_LARGE was 1, and is 2$"),
        ([("uint32_t flags, const void (.*y, size_t n, const cd)", r"const void \1")], " apply', "),
        ([("_FLOAT16 = 2", "_FLOAT16 = 6")], "^CDROPOUT_FLOAT16 was 2, and is 6$"),
        ([("CDROPOUT_FLOAT64 = 1,", "")], "^CDROPOUT_FLOAT64 was 1, and is None$"),
    ],
)
def test_breaking_changes_reports_incompatible_headers(edits, message):
    found = list(breaking_changes(record(), edited(*edits)))
    assert any(re.search(message, each) for each in found), found


def test_breaking_changes_reports_a_removed_function():
    shorter = layout(HEADER)
    last = shorter["cdropout_table"].pop()
    assert list(breaking_changes(record(), shorter)) == [f"the table had {last!r}, and has []"]


def signatures(text):
    """Return [result type, name, arguments] without spaces for each function in C or Cython."""
    found = re.findall(r"(\w+) \(\*(\w+)\)\(([^()]*)\)", text)
    assert found
    return [[re.sub(r"\s|,$", "", part.replace("* ", "*")) for part in each] for each in found]


def test_cython_declarations_equal_those_of_the_header():
    cython = files("cdropout").joinpath("__init__.pxd").read_text()
    tidy = re.sub(r"\s+", " ", cython).replace("( ", "(").replace(" )", ")")
    assert signatures(tidy) == signatures(re.sub(r"\s+", " ", HEADER))


if __name__ == "__main__" and sys.argv[1:] == ["--record"]:
    RECORD.write_text(json.dumps(layout(HEADER), indent=1) + "\n")
