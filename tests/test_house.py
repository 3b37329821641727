"""The order of the house: imports go one way, and files and functions stay short."""

import ast
import re
from pathlib import Path

import pytest

from faults import FAULTS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cdropout"
LAYERS = [  # each imports from those before it only
    "include",  # the C interface
    "core.stream core.bits core.elements",
    "core.planes",
    "core.kernels",
    "core.dispatch",
    "core.strided core.threads core.copies",
    "core.pieces",
    "core.arrays core.generators core.openmp",
    "core.masks",
    "core.calls core.draws core.fused core.xla",
    "core.tensors",
    "typing",
    "functional",
    "modules",
    "cdropout",  # __init__, which imports none of what follows
    "selftest battery torch jax dask thinc",
    "flax keras",
    "bench",
    "__main__",
]
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}
WHEN_CALLED = {("core.masks", "dask"), ("keras", "jax"), ("keras", "torch")}  # not at import
IMPORT = re.compile(r"^( *)(?:from (\S+) )?(c?)import \(?([\w., ]*)", re.MULTILINE)
SOURCES = [path for kind in ("py", "pyx", "pxd") for path in PACKAGE.rglob(f"*.{kind}")]
LINES, FUNCTION_LINES = 400, 40


def name_of(path):
    """Return core.masks for cdropout/core/masks.pyx, and bench for what lies in that folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):
        return "include" if path.suffix == ".pxd" else "cdropout"
    return ".".join(parts) if parts[0] == "core" else parts[0]


def imported(source, compiled, names):
    """Yield the modules that `from source import names` or `import names` needs."""
    for name in re.findall(r"[\w.]+", names) or [""]:  # [""]: they stand on the next lines
        full = f"{source}.{name}" if source else name
        if full.split(".")[0] != "cdropout":
            return
        parts = full.split(".")[1:]
        while parts and ".".join(parts) not in RANKS:
            parts.pop()
        yield ".".join(parts) or ("include" if compiled else "cdropout")


def imports():
    """Yield (importer, imported, whether only when a function is called)."""
    for path in SOURCES:
        for indent, source, compiled, names in IMPORT.findall(path.read_text()):
            for name in imported(source, compiled, names):
                yield name_of(path), name, bool(indent)


def test_imports_go_one_way():
    found = set(imports())
    assert {("modules", "functional", False), ("core.kernels", "core.stream", False)} <= found
    wrong = {
        (importer, name, later)
        for importer, name, later in found
        if RANKS[importer] <= RANKS[name] and importer != name
    }
    upward = {(importer, name) for importer, name, later in wrong if later}
    assert {pair for pair in wrong if not pair[2]} == set()
    assert upward <= WHEN_CALLED


def python_functions(text):
    """Yield (name, lines without the docstring) of each function."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            doc = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
            taken = doc.end_lineno - doc.lineno + 1 if doc else 0
            yield node.name, node.end_lineno - node.lineno + 1 - taken


def cython_functions(text):
    """Yield (name, lines without the docstring) of each function, by indentation."""
    text = re.sub(r'"""(?:[^"]|"(?!""))*"""', '""""""', text)
    lines = text.splitlines()
    for number, line in enumerate(lines):
        start = re.match(r"( *)(?:def|c?p?def .*?|cdef inline .*?)\b(\w+)\(", line)
        if not start or not (line.endswith((":", "(")) or "->" in line):
            continue
        indent, length = len(start[1]), 1
        for body in lines[number + 1 :]:
            inside = body.startswith(" " * (indent + 1)) or body.lstrip().startswith(")")
            if body.strip() and not inside:
                break
            length += 1
        while not lines[number + length - 1].strip():
            length -= 1
        yield start[2], length


def files():
    """Return what people write here, and not what is drawn or recorded."""
    kinds = ("*.py", "*.pyx", "*.pxd", "*.h", "*.c", "*.cpp", "*.sh")
    folders = (PACKAGE, ROOT / "tests", ROOT / "examples", ROOT / "docs")
    return sorted(path for folder in folders for kind in kinds for path in folder.rglob(kind))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") < LINES
    functions = []
    if path.suffix == ".py":
        functions = list(python_functions(text))
    elif path.suffix in (".pyx", ".pxd"):
        functions = list(cython_functions(text))
        assert functions or path.suffix == ".pxd"
    assert {name: length for name, length in functions if length > FUNCTION_LINES} == {}


def test_setup_is_shorter_still():
    assert (ROOT / "setup.py").read_text().count("\n") < 60


@pytest.mark.parametrize("file", FAULTS)
def test_faults_can_be_planted(file):
    """What mutate.py changes stands in the source, once."""
    text = (PACKAGE / file).read_text()
    assert [right for right, *_ in FAULTS[file] if text.count(right) != 1] == []
