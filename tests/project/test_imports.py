"""Imports within the package go one way: each module imports from those below it only."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cdropout"
LAYERS = [  # each imports from those before it only
    "include environment",  # the C interface, and errors of the command line
    "_core.stream _core.view",
    "_core.bits",
    "_core.select",
    "_core.rows",
    "_core.tiles",
    "_core.kernels",
    "_core.dispatch",
    "_core.executor _core.streaming_copy _core.dtypes",
    "_core.engine",
    "_core.arguments _core.numpy_arrays",
    "_core.mask",
    "_core.generator",
    "_core.dropout _core.bias_dropout_add",
    "typing",
    "functional",
    "modules",
    "cdropout",  # __init__, which imports none of what follows
    "selftest stream_command torch jax dask tensorflow thinc",
    "flax keras",
    "bench",
    "__main__",
]
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}
WHEN_CALLED = {("_core.mask", "dask"), ("keras", "jax"), ("keras", "torch")}  # not at import
IMPORT = re.compile(r"^( *)(?:from (\S+) )?(c?)import \(?([\w., ]*)", re.MULTILINE)
SOURCES = [path for kind in ("py", "pyx", "pxd") for path in PACKAGE.rglob(f"*.{kind}")]


def name_of(path):
    """Return _core.mask for cdropout/_core/mask.pyx, and bench for what lies in that folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):
        return "include" if path.suffix == ".pxd" else "cdropout"
    return ".".join(parts) if parts[0] == "_core" else parts[0]


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
    assert {("modules", "functional", False), ("_core.kernels", "_core.stream", False)} <= found
    wrong = {
        (importer, name, later)
        for importer, name, later in found
        if RANKS[importer] <= RANKS[name] and importer != name
    }
    upward = {(importer, name) for importer, name, later in wrong if later}
    assert {pair for pair in wrong if not pair[2]} == set()
    assert upward <= WHEN_CALLED
