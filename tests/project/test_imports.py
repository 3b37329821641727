"""Tests of the imports of modules, of the test files of the core, and of sys.path."""

import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cdropout"
LAYERS = [  # lowest layer first; modules import only from lines above their own
    "include environment",  # the C interface, and errors during imports
    "_core.stream _core.view _core.softmax",
    "_core.bits",
    "_core.select",
    "_core.rows",
    "_core.tiles",
    "_core.kernels",
    "_core.dispatch _core.arguments",
    "_core.executor _core.streaming_copy _core.dtypes",
    "_core.engine",
    "_core.numpy_arrays",
    "_core.mask",
    "_core.generator",
    "_core.dropout _core.bias_dropout_add",
    "typing",
    "functional",
    "modules",
    "cdropout",  # __init__.py, which imports no module below this line
    "selftest stream_command torch jax dask tensorflow thinc",
    "flax keras",
    "bench",
    "__main__",
]
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}
FRAMEWORKS = {"dask", "flax", "jax", "keras", "tensorflow", "thinc", "torch"}
# Permitted imports from higher layers, inside functions: (importing module, imported module).
WHEN_CALLED = {("_core.mask", "dask"), ("modules", "torch")}
IMPORT = re.compile(r"^( *)(?:from (\S+) )?(c?)import \(?([\w., ]*)", re.MULTILINE)
SOURCES = [path for kind in ("py", "pyx", "pxd") for path in PACKAGE.rglob(f"*.{kind}")]


def name_of(path):
    """Return the file's name in LAYERS: a module of _core, or a module or folder of cdropout."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):
        return "include" if path.suffix == ".pxd" else "cdropout"
    return ".".join(parts) if parts[0] == "_core" else parts[0]


def imported(source, compiled, names):
    """Yield the names in LAYERS that `from source import names` or `import names` imports."""
    for name in re.findall(r"[\w.]+", names) or [""]:  # "" if the names are on other lines
        full = f"{source}.{name}" if source else name
        if full.split(".")[0] != "cdropout":
            return
        parts = full.split(".")[1:]
        while parts and ".".join(parts) not in RANKS:
            parts.pop()
        yield ".".join(parts) or ("include" if compiled else "cdropout")


def is_in_function(before, indent):
    """Return whether a line with this indentation, after the text `before`, is in a function."""
    for line in reversed(before.splitlines()):
        text = line.lstrip()
        if text and not text.startswith(")") and len(line) - len(text) < indent:
            indent = len(line) - len(text)
            if re.match(r"(async def|def|cpdef|cdef(?! class)) ", text):
                return True
    return False


def imports():
    """Yield (importing module, imported module, whether the import is in a function)."""
    for path in SOURCES:
        text = path.read_text()
        for match in IMPORT.finditer(text):
            indent, source, compiled, names = match.groups()
            when_called = is_in_function(text[: match.start()], len(indent))
            for name in imported(source, compiled, names):
                yield name_of(path), name, when_called


def test_is_in_function_finds_the_enclosing_function():
    for before in ("def f():\n", "class A:\n    def f(\n        x,\n    ):\n        if x:\n"):
        indent = 4 * before.count(":")
        assert is_in_function(before, indent)
    for before in ("def f():\n    pass\ntry:\n", "if TYPE_CHECKING:\n", "cdef class A:\n"):
        assert not is_in_function(before, 4)
    assert not is_in_function("def f():\n    pass\n", 0)


def test_modules_import_only_from_lower_layers():
    found = set(imports())
    assert {("modules", "functional", False), ("_core.kernels", "_core.stream", False)} <= found
    upward = {
        (importer, name, when_called)
        for importer, name, when_called in found
        if RANKS[importer] <= RANKS[name] and importer != name
    }
    assert upward == {(*pair, True) for pair in WHEN_CALLED}


def test_each_module_of_the_core_has_a_test_file():
    modules = {path.stem for path in (PACKAGE / "_core").glob("*.p[xy]*")}
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "core").glob("*.py")}
    # test_kernels.py and test_view.py test the inline functions of `bits`, `rows` and `tiles`
    assert modules - tests == {"bits", "rows", "tiles"}


def packages_imported_by(path):
    """Yield the top-level packages that a file imports at any level of indentation."""
    text = path.read_text()
    for _, source, _, names in IMPORT.findall(text):
        yield from re.findall(r"(?:^|, )(\w+)", source or names)
    yield from re.findall(r"""(?:import_module|__import__)\(["'](\w+)""", text)


def test_core_imports_no_framework():
    core = [path for path in SOURCES if PACKAGE / "_core" in path.parents]
    found = {name for path in core for name in packages_imported_by(path)}
    assert {"numpy", "cdropout"} <= found
    assert not found & FRAMEWORKS


TESTS = ROOT / "tests"


def test_folders_of_tests_are_not_top_level_packages():
    folders = [path.name for path in TESTS.iterdir() if (path / "__init__.py").exists()]
    assert "arrays" in folders
    path = [Path(entry).resolve() for entry in sys.path]
    assert not [entry for entry in path if entry == TESTS or TESTS in entry.parents]
    assert not [name for name in folders if PathFinder.find_spec(name)]
