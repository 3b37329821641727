"""Tests of tools/mutants: its catalog, its log, and its search for patterns."""

import doctest
import re
from pathlib import Path

import pytest

from ..helpers.tools import TOOLS, load_tool

ROOT = Path(__file__).parents[2]
LOG = TOOLS / "mutants" / "log.tsv"
anchors, catalog = load_tool("mutants/anchors.py"), load_tool("mutants/catalog.py")
ENTRIES = {
    f"{file}:{function}:{name}".replace(" ", "-"): (file, function, change)
    for file, functions in catalog.MUTANTS.items()
    for function, mutants in functions.items()
    for name, *change in mutants
}


def syntax_of(file):
    return anchors.C if file.endswith(".h") else anchors.PYTHON


@pytest.mark.parametrize("file", catalog.MUTANTS)
def test_pattern_of_every_mutant_occurs_in_the_source(file):
    text, missing = (ROOT / "cdropout" / file).read_text(), []
    for mutant, (where, function, change) in ENTRIES.items():
        if where == file:
            try:
                changed = anchors.replace(text, function, *change, syntax=syntax_of(file))
                assert changed != text, mutant
            except LookupError as error:
                missing.append(f"{mutant}: {error}")
    assert missing == []


def test_ids_of_mutants_are_unique():
    mutants = [
        m for functions in catalog.MUTANTS.values() for some in functions.values() for m in some
    ]
    assert len(ENTRIES) == len(mutants) >= 150


def test_log_contains_only_mutants_of_the_catalog():
    header, *lines = LOG.read_text().splitlines()
    ids = [line.split("\t")[0] for line in lines]
    assert header.split("\t") == ["mutant", "hash", "outcome", "by", "seconds"]
    assert ids == sorted(set(ids)) and set(ids) <= set(ENTRIES)


def test_mutants_with_an_explanation_survived_in_the_log():
    lines = [line.split("\t") for line in LOG.read_text().splitlines()]
    outcomes = {line[0]: line[2] for line in lines}
    assert catalog.EXPLAINED
    for mutant, reason in catalog.EXPLAINED.items():
        assert outcomes[mutant].startswith("survived") and reason


def test_nearest_tests_of_all_mutants_exist(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS / "mutants")
    command = load_tool("mutants/__main__.py")
    names = " ".join([*command.NEAREST.values(), command.SOURCE_TESTS]).split()
    assert [name for name in names if not any(ROOT.glob(command.path_of_tests(name)))] == []
    assert all(mutant.nearest() for mutant in command.mutants())


@pytest.mark.parametrize(
    "skip", ["pytest.skip(allow_module_level=True)", "pytestmark = pytest.mark.skip()"]
)
def test_error_if_all_nearest_tests_are_skipped(monkeypatch, tmp_path, skip):
    monkeypatch.syspath_prepend(TOOLS / "mutants")
    command = load_tool("mutants/__main__.py")
    tree, runner = object.__new__(command.Tree), object.__new__(command.Runner)
    tree.folder, runner.limits = tmp_path, {}
    (tmp_path / "test_x.py").write_text(f"import pytest\n{skip}\ndef test_x(): pass\n")
    message = r"\(default\): all of these tests were skipped: install the framework"
    with pytest.raises(SystemExit, match=message):
        runner.limit(tree, ["test_x.py"], None)


# ---- patterns ---------------------------------------------------------------------------------


FUNCTION = '''
cdef inline size_t other(size_t n) noexcept nogil:
    return n + 1

cdef inline size_t count(
    const Box* box, size_t n
) noexcept nogil:
    """Return n + 1."""
    cdef size_t total = box.size + n    # n + 1
    if total == n + 1:
        total += box.size // 2
    return total

cdef size_t last(size_t n): return n + 1
'''


@pytest.mark.parametrize(
    "old, new",
    [
        (r"\bn\b", "length"),
        (r"\btotal\b", "sum_of_all"),
        (r"n \+ 1:", "n+1:"),
        (r"n \+ 1:", "(\n            n\n            + 1\n        ):"),
        (r"# n \+ 1", ""),
        (r"box\.size // 2", "box.view.itemsize // 2"),
    ],
)
def test_patterns_match_after_renaming_and_formatting(old, new):
    text = re.sub(old, new, FUNCTION)
    assert text != FUNCTION
    changed = anchors.replace(text, "count", "$n + 1", "$n + 2")
    assert len(re.findall(r"\+ 2\b", changed)) == 1
    assert "pass" in anchors.replace(text, "count", "$a += $b // 2", "pass")


def test_digest_ignores_formatting():
    formatted = FUNCTION.replace("# n + 1", "").replace("n + 1:", "(n\n        + 1):")
    renamed = FUNCTION.replace("total", "sum_of_all")
    same, other = (anchors.digest(text, "count", "") for text in (FUNCTION, renamed))
    assert anchors.digest(formatted.replace("(n\n        + 1)", "n + 1"), "count", "") == same
    assert other != same != anchors.digest(FUNCTION, "count", "another change")


@pytest.mark.parametrize(
    "function, pattern, number, matches",
    [
        ("count", "$box.size", None, 2),
        ("count", "$n + 3", None, 0),
        ("missing", "$n + 1", None, 0),
        ("count", "$n + 1", 2, 1),
    ],
)
def test_replace_rejects_patterns_that_do_not_match_once(function, pattern, number, matches):
    with pytest.raises(LookupError, match=rf"^{function}: {matches} matches of "):
        anchors.replace(FUNCTION, function, pattern, "0", number)


@pytest.mark.parametrize(
    "text, pattern, matches",
    [
        ("def f(): g(a[b], (c, d), e)", "g($*all)", ["g(a[b], (c, d), e)"]),
        ("def f(): x.y.z == 0", "$v == 0", ["x.y.z == 0"]),
        ("def f(): x.y.z == 0", "$v.z == 0", ["x.y.z == 0"]),
        ("def f(): a + a, a + b", "$v + $v", ["a + a"]),
        ("def f(): x = 'a + b'  # a + b", "$v + $w", []),
        ("def f():\n    a = b\n    c = d", "$v = $*rest", ["a = b", "c = d"]),
        ("def f(): return not x", "$v", ["x"]),
    ],
)
def test_matches_finds_patterns_in_cython_code(text, pattern, matches):
    found = anchors.matches(text, "f", pattern)
    assert [text[start:end] for start, end, _ in found if text[start:end] != "f"] == matches


C_FUNCTIONS = """
/* f(x) { x + 1; } */
#define TABLE {1, 2}
#if A
static int f(int x) { return x + 1; }
#else
static int f(int x) {
  if (x) { return x + 2; } // x + 1
  return x->y;
}
#endif
static int g(int x) { return f(x) + 1; }
"""


@pytest.mark.parametrize(
    "function, pattern, matches",
    [
        ("f", "$v + 1", ["x + 1"]),
        ("f", "$v + $*rest", ["x + 1", "x + 2"]),
        ("f", "return $v->y", ["return x->y"]),
        ("g", "f($v) + 1", ["f(x) + 1"]),
        ("TABLE", "{1, 2}", ["{1, 2}"]),
    ],
)
def test_matches_finds_patterns_in_c_code(function, pattern, matches):
    found = anchors.matches(C_FUNCTIONS, function, pattern, anchors.C)
    assert [C_FUNCTIONS[start:end] for start, end, _ in found] == matches


def test_examples_in_the_docstring_of_anchors_run():
    results = doctest.testmod(anchors)
    assert results.attempted and not results.failed
