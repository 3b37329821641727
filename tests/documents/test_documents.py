"""README and docs/ say what is so: their blocks of code run, and files, links and names exist."""

import ast
import importlib.util
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

import cdropout
from cdropout.__main__ import make_parser

from .. import reference
from ..helpers.subprocess_runner import run, run_with_torch
from ..helpers.requirements import find_or_skip

ROOT = Path(__file__).parents[2]
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
}
WHOLE = "\n".join(DOCUMENTS.values())
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [
    (name, i, *block)
    for name, text in DOCUMENTS.items()
    for i, block in enumerate(BLOCK.findall(text))
]


def blocks(language, *slow):
    """Return a mark: the blocks of one language are a parameter, slow if they match a pattern."""
    found = [
        pytest.param(
            code,
            id=f"{name}:{i}",
            marks=[pytest.mark.slow] * any(re.search(pattern, code) for pattern in slow),
        )
        for name, i, kind, code in BLOCKS
        if kind == language
    ]
    return pytest.mark.parametrize("block", found)


# ---- code ---------------------------------------------------------------------------------------


def test_every_kind_of_block_is_looked_at():
    """`text` is what no machine reads, formulas and output; Sphinx runs what is in braces."""
    kinds = {kind for *_, kind, _ in BLOCKS if not re.match(r"\{[\w-]+\}", kind)}
    assert kinds == {"python", "c", "sh", "diff", "text"}


# TensorFlow writes this to stderr before it reads how much it is to say
GREETING = re.compile(r"^(WARNING: All log messages before absl|I0000 ).*\n", re.MULTILINE)


@blocks("python", "import keras", "import flax|from flax", "import tensorflow")
def test_python_runs(block):
    """Each by itself: a process has one Keras backend."""
    find_or_skip(*re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE))
    find_or_skip(*re.findall(r'KERAS_BACKEND"\] = "(\w+)"', block))
    if re.search(r"^import torch$", block, re.MULTILINE):
        status, _, errors = run_with_torch(block)
    else:
        status, _, errors = run(block, TF_CPP_MIN_LOG_LEVEL="3")
    assert (status, GREETING.sub("", errors)) == (0, "")


@blocks("c")
@pytest.mark.parametrize("compiler", [name for name in ("gcc", "clang") if shutil.which(name)])
def test_c_compiles_without_a_warning(compiler, block, tmp_path):
    source = tmp_path / "block.c"
    source.write_text(block)
    include = [f"-I{cdropout.get_include()}", "-isystem", sysconfig.get_paths()["include"]]
    strict = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    done = subprocess.run([compiler, *strict, *include, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_other_programs_are_included_from_where_they_are_tested():
    """C, C++, Cython, Numba, ctypes and cffi: see test_capi.py and test_capi_examples.py."""
    folders = {path.rpartition("/")[0] for path in re.findall(r"\{literalinclude\} (\S+)", WHOLE)}
    assert folders == {"../examples/capi", "../cdropout/include"}


@blocks("sh")
def test_commands_are_right(block):
    """They are not run here: they are steps of CI, or take minutes; tests/cli runs the commands."""
    for line in block.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if program == "cdropout":
            assert callable(make_parser().parse_args(arguments).run)
        else:
            assert f"\n{line}\n" in (ROOT / ".ci" / "run").read_text()


@blocks("diff")
def test_changes_can_be_made(block, tmp_path):
    if not shutil.which("patch"):
        pytest.skip("needs patch")
    for name in re.findall(r"^--- a/(\S+)", block, re.MULTILINE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    done = subprocess.run(
        ["patch", "-p1"], cwd=tmp_path, input=block, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


# ---- files and names ----------------------------------------------------------------------------

FILES = set(re.findall(r"`([\w./]+\.(?:py|pyx|pxd|h|c|cpp|md|sh|json|toml))`", WHOLE))
FILES -= {"Python.h"}  # of CPython
LINKS = [
    (name, link)
    for name, text in DOCUMENTS.items()
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
]
FOLDERS = ("cdropout", "tests", "examples", "docs")


@pytest.mark.parametrize("name", sorted(name for name in FILES if "NAME" not in name))
def test_files_exist(name):
    """By their path from here, or by their last part, where the folder has just been named."""
    assert (ROOT / name).exists() or any([*(ROOT / top).rglob(name)] for top in FOLDERS)


@pytest.mark.parametrize("name, link", LINKS)
def test_links_lead_somewhere(name, link):
    assert (ROOT / name).parent.joinpath(link).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bcd\.(\w+)", WHOLE))))
def test_names_are_public(name):
    assert name in cdropout.__all__


def test_what_the_how_tos_name_is_in_the_source():
    sources = [path for top in FOLDERS[:2] for path in (ROOT / top).rglob("*.*")]
    sources += [ROOT / "setup.py", ROOT / "docs" / "conf.py"]
    kinds = {".py", ".pyx", ".pxd", ".h", ".json"}
    text = "\n".join(path.read_text() for path in sources if path.suffix in kinds)
    words = set(re.findall(r"\w+", text))
    howtos = [BLOCK.sub("", text) for name, text in DOCUMENTS.items() if "howto" in name]
    named = {word for text in howtos for word in re.findall(r"`(\w+)`", text)}
    assert len(howtos) == 4 and len(named) > 50
    assert named - words == set()


def public_names(path):
    """The `__all__` of a module, without importing it."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{path} has no __all__")


def documented_names(module):
    """What the API pages name below `currentmodule`, in all of them."""
    found = set()
    for name, text in DOCUMENTS.items():
        for part in text.split(".. currentmodule:: ")[1:] if "docs/api" in name else ():
            here, _, rest = part.partition("\n")
            if here == module:
                found |= set(re.findall(r"^\.\. (?:auto\w+|data):: (\w+)", rest, re.MULTILINE))
    return found


@pytest.mark.parametrize(
    "name", ["", "torch", "dask", "jax", "flax", "keras", "tensorflow", "thinc"]
)
def test_everything_public_is_on_a_page(name):
    path = ROOT / "cdropout" / name
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert documented_names(f"cdropout.{name}".rstrip(".")) == public_names(path)


# ---- the example of the stream's specification --------------------------------------------------

STREAM = DOCUMENTS["docs/stream.md"].partition("## A worked example")[2]
SEED, CALL, P = 42, 7, 0.1


def stated(pattern):
    """Each line of the example that is of this form, its numbers as integers."""
    return [
        [int(part, 0) for part in line]
        for line in re.findall(rf"^{pattern}$", STREAM, re.MULTILINE)
    ]


def test_the_numbers_of_the_example():
    said = {name: int(value, 0) for name, value in re.findall(r"^(\w+) += (\w+)$", STREAM, re.M)}
    K, c, tie = reference.mask_constants(SEED, CALL)
    T = reference.threshold(P)
    s0, s1 = reference.lane_state(K, c, block=0, lane=0)
    right = {"key": reference.mix(SEED + reference.GAMMA), "K": K, "c": c, "tie": tie, "T": T}
    right |= {"R": reference.rounds(T), "rest": T << 12 & reference.MASK64, "s0": s0, "s1": s1}
    assert said == right


def test_the_words_of_the_example():
    K, c, _ = reference.mask_constants(SEED, CALL)
    T = reference.threshold(P)
    s0, s1 = reference.lane_state(K, c, block=0, lane=0)
    right = []
    for j in range(reference.rounds(T)):
        word, s0, s1 = reference.xoroshiro128pp(s0, s1)
        right.append([j, T >> (63 - j) & 1, word])
    assert stated(r"(\d+) +([01]) +(0x\w{16})") == right


def test_the_hashed_elements_of_the_example():
    _, _, tie = reference.mask_constants(SEED, CALL)
    _, undecided = reference.draw(SEED, CALL, P, 0, reference.BLOCK)
    right = [
        [i, reference.mix(tie + reference.GAMMA * (i + 1))]
        for i in map(int, undecided.nonzero()[0])
    ]
    assert stated(r"(\d+) +(0x\w{16}) +(?:yes|no)") == right
    dropped = [
        line.endswith("yes") for line in STREAM.splitlines() if re.search(r"(yes|no)$", line)
    ]
    assert dropped == [not reference.keep_one(SEED, CALL, P, i) for i, _ in right]


def test_the_picture_is_what_its_script_draws():
    path = ROOT / "docs" / "bitslicing.py"
    specification = importlib.util.spec_from_file_location("bitslicing", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert (ROOT / "docs" / "bitslicing.svg").read_text(encoding="utf-8") == module.picture()
