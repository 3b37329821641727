"""Tests of the documents: their code blocks are valid, and all files and names in them exist."""

import ast
import ctypes
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from ctypes import c_double, c_size_t, c_uint64, c_void_p
from pathlib import Path

import numpy as np
import pytest

import cdropout
from cdropout.__main__ import make_parser

from .. import reference
from ..helpers.requirements import find_or_skip, linux_only, slow
from ..helpers.subprocess_runner import run, run_with_torch

ROOT = Path(__file__).parents[2]
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
}
ALL_TEXT = "\n".join(DOCUMENTS.values())
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [
    (name, i, *block)
    for name, text in DOCUMENTS.items()
    for i, block in enumerate(BLOCK.findall(text))
]


# On the pages in PAGES and COMPILED, blocks depend on earlier blocks. Those in COMPILED also need
# a compiled program.
COMPILED = ("docs/howto/from_c.md", "docs/howto/cython.md")
PAGES = [
    name
    for name in DOCUMENTS
    if re.match(r"docs/(tutorial/|howto/|faq|mask_id)", name) and name not in COMPILED
]


def blocks(language, *slow):
    """Parametrize a test with the blocks of one language; mark those that match `slow` as slow.

    Python blocks of PAGES and COMPILED are omitted, because they depend on other blocks.
    """
    found = [
        pytest.param(
            code,
            id=f"{name}:{i}",
            marks=[pytest.mark.slow] * any(re.search(pattern, code) for pattern in slow),
        )
        for name, i, kind, code in BLOCKS
        if kind == language and not (kind == "python" and name in (*PAGES, *COMPILED))
    ]
    return pytest.mark.parametrize("block", found)


# ---- code ---------------------------------------------------------------------------------------


def test_code_blocks_have_a_known_language():
    """Formulas and output have the language `text`; names in braces are Sphinx directives."""
    kinds = {kind for *_, kind, _ in BLOCKS if not re.match(r"\{[\w-]+\}", kind)}
    assert kinds == {"python", "c", "sh", "diff", "text"}


# TensorFlow logs these lines before it reads TF_CPP_MIN_LOG_LEVEL.
LOG_LINE = re.compile(r"^(WARNING: All log messages before absl|I0000 ).*\n?", re.MULTILINE)


def output_of(script):
    """Return what a script prints, or skip the test if a package is missing."""
    find_or_skip(*re.findall(r"^(?:import|from) (\w+)", script, re.MULTILINE))
    find_or_skip(*re.findall(r'KERAS_BACKEND"\] = "(\w+)"', script))
    if re.search(r"^import torch$", script, re.MULTILINE) and "torch.distributed" not in script:
        status, output, errors = run_with_torch(script)
    else:
        status, output, errors = run(script, TF_CPP_MIN_LOG_LEVEL="3")
    assert (status, LOG_LINE.sub("", errors)) == (0, "")
    return output


@blocks("python", "import keras", "import flax|from flax", "import tensorflow")
def test_python_blocks_run(block):
    """Run each block in a new process, because the Keras backend cannot change in a process."""
    output_of(block)


END_OF_OUTPUT = "---- end of the output of a block ----"
PYTHON_AND_OUTPUT = re.compile(
    r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL
)
DECIMAL = re.compile(r"\d+\.\d+")


SLOW_PAGES = {"docs/howto/distributed.md", "docs/tutorial/pytorch.md"}


@pytest.mark.parametrize("name", [*sorted({*PAGES} - SLOW_PAGES), *slow(*sorted(SLOW_PAGES))])
def test_pages_show_the_output_of_their_code(name):
    """Run the Python blocks of a page in one process; compare their output with the text blocks.

    Numbers with a decimal point may differ by 5 %, because the last bits of a matrix product
    depend on the machine.
    """
    blocks = PYTHON_AND_OUTPUT.findall(DOCUMENTS[name])
    output = output_of(f"print({END_OF_OUTPUT!r})\n".join(code for code, _ in blocks))
    for part, (_, shown) in zip(output.split(END_OF_OUTPUT), blocks, strict=True):
        if shown:
            assert DECIMAL.sub("#", part.strip()) == DECIMAL.sub("#", shown.strip())
            numbers = [float(number) for number in DECIMAL.findall(shown)]
            assert [float(n) for n in DECIMAL.findall(part)] == pytest.approx(numbers, rel=0.05)


def build(folder, *command):
    """Run a command in a folder, with this environment's programs in PATH; return its output."""
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


C_BLOCKS = {  # by the name of the function
    re.search(r"^int (\w+)\(", code, re.MULTILINE)[1]: code
    for name, _, kind, code in BLOCKS
    if kind == "c" and name == "docs/howto/from_c.md"
}


@linux_only
def test_how_to_from_c_runs(tmp_path, monkeypatch):
    text = DOCUMENTS["docs/howto/from_c.md"]
    (tmp_path / "rows.c").write_text(C_BLOCKS["dropout_rows"])
    (command,) = re.findall(r"^cc .* rows\.c .*$", text, re.MULTILINE)
    build(tmp_path, "sh", "-c", command)
    ((code, shown),) = PYTHON_AND_OUTPUT.findall(text)
    monkeypatch.chdir(tmp_path)
    assert output_of(code) == shown.strip()


class CMask(ctypes.Structure):
    _fields_ = [*((name, c_uint64) for name in ("seed", "call", "threshold")), ("scale", c_double)]


@linux_only
@pytest.mark.parametrize("p, threshold, scale", [(0.25, 1 << 62, 4 / 3), (0, 0, 1), (1, 0, 0)])
def test_functions_of_how_to_from_c_equal_mask_apply(tmp_path, p, threshold, scale):
    (tmp_path / "block.c").write_text(C_BLOCKS["dropout_part"] + C_BLOCKS["dropout_both"])
    include = cdropout.get_include()
    build(tmp_path, "cc", "-shared", "-fPIC", f"-I{include}", "block.c", "-o", "block.so")
    library = ctypes.CDLL(tmp_path / "block.so")
    table, mask = c_void_p(cdropout.get_table()), CMask(42, 3, threshold, scale)

    def pointers(*arrays):
        return [c_void_p(array.ctypes.data) for array in arrays]

    x = np.arange(1, 5001, dtype=np.float32).reshape(10, 500)
    y = np.full_like(x, 9)
    sizes = c_size_t(10), c_size_t(300), c_size_t(500)
    assert library.dropout_part(table, *pointers(x, y), *sizes, ctypes.byref(mask)) == 0
    assert np.array_equal(y[:, :300], cdropout.Mask((10, 300), p, 42, 3).apply(x[:, :300]))
    assert np.all(y[:, 300:] == 9)

    expected, y = cdropout.Mask(x.shape, p, 42, 3).apply(x), -x
    bits = np.zeros(625, np.uint8)
    arguments = *pointers(x, y), c_size_t(5000), *pointers(bits), ctypes.byref(mask)
    assert library.dropout_both(table, *arguments) == 0
    assert np.array_equal(x, expected) and np.array_equal(y, -expected)


@linux_only
def test_program_of_how_to_from_c_embeds_python(tmp_path):
    """Compile and run the program with the commands on the page."""
    bindir, libdir, library, version = map(
        sysconfig.get_config_var, ("BINDIR", "LIBDIR", "LDLIBRARY", "LDVERSION")
    )
    config = Path(bindir, f"python{version}-config")
    if not library.endswith(".so") or not Path(libdir, library).exists() or not config.exists():
        pytest.skip("needs the shared library of Python")
    text = DOCUMENTS["docs/howto/from_c.md"]
    (commands,) = re.findall(r"^cc .*\n\./main$", text, re.MULTILINE)
    (expected,) = re.findall(r"^It prints `(.*)`\.$", text, re.MULTILINE)
    (tmp_path / "main.c").write_text(C_BLOCKS["main"])
    commands = commands.replace("python3-config", str(config))
    assert build(tmp_path, "sh", "-ec", commands).strip() == expected


@linux_only
@pytest.mark.slow
def test_how_to_cython_builds_a_package_that_runs(tmp_path):
    find_or_skip("Cython", "setuptools")
    text = DOCUMENTS["docs/howto/cython.md"]
    (setup, _), (code, shown) = PYTHON_AND_OUTPUT.findall(text)
    (project,) = re.findall(r"^```text\n(\[build-system\].*?)^```$", text, re.MULTILINE | re.DOTALL)
    (command,) = re.findall(r"^pip install .*$", text, re.MULTILINE)
    shutil.copy(ROOT / "examples" / "capi" / "cython_rows.pyx", tmp_path)
    (tmp_path / "setup.py").write_text(setup)
    (tmp_path / "pyproject.toml").write_text(project)
    target = tmp_path / "target"
    build(tmp_path, *command.split(), "--no-deps", "--target", target)
    assert run(code, PYTHONPATH=str(target)) == (0, shown.strip(), "")


@blocks("c")
@pytest.mark.parametrize("compiler", [name for name in ("gcc", "clang") if shutil.which(name)])
def test_c_blocks_compile_without_warnings(compiler, block, tmp_path):
    source = tmp_path / "block.c"
    source.write_text(block)
    include = [f"-I{cdropout.get_include()}", "-isystem", sysconfig.get_paths()["include"]]
    strict = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    done = subprocess.run([compiler, *strict, *include, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_included_programs_are_in_tested_folders():
    """All included files are in two folders, which the tests in tests/capi cover."""
    paths = re.findall(r"\{literalinclude\} (?:\.\./)+(\S+)", ALL_TEXT)
    assert {path.rpartition("/")[0] for path in paths} == {"examples/capi", "cdropout/include"}


@blocks("sh")
def test_shell_commands_are_valid(block):
    """Parse the commands of cdropout; find other commands in .ci/run.

    The tests in tests/cli run cdropout's commands with small sizes.
    """
    for line in block.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if program == "cdropout":
            assert callable(make_parser().parse_args(arguments).run)
        else:
            assert f"\n{line}\n" in (ROOT / ".ci" / "run").read_text()


@blocks("diff")
def test_diff_blocks_apply(block, tmp_path):
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

FILES = set(re.findall(r"`([\w./]+\.(?:py|pyx|pxd|h|c|cpp|md|sh|json|toml))`", ALL_TEXT))
FILES -= {"Python.h"}  # a header of CPython
LINKS = [
    (name, link)
    for name, text in DOCUMENTS.items()
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
]
FOLDERS = ("cdropout", "tests", "examples", "docs")


@pytest.mark.parametrize("name", sorted(name for name in FILES if "NAME" not in name))
def test_files_in_the_text_exist(name):
    """Find each file by its path, or by its name if the text gives the folder separately."""
    assert (ROOT / name).exists() or any([*(ROOT / top).rglob(name)] for top in FOLDERS)


@pytest.mark.parametrize("name, link", LINKS)
def test_targets_of_links_exist(name, link):
    assert (ROOT / name).parent.joinpath(link).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bcd\.(\w+)", ALL_TEXT))))
def test_names_in_the_text_are_public(name):
    assert name in cdropout.__all__


def test_names_in_how_tos_for_developers_occur_in_the_source():
    sources = [path for top in FOLDERS[:2] for path in (ROOT / top).rglob("*.*")]
    sources += [ROOT / "setup.py", ROOT / "docs" / "conf.py"]
    kinds = {".py", ".pyx", ".pxd", ".h", ".json"}
    text = "\n".join(path.read_text() for path in sources if path.suffix in kinds)
    words = set(re.findall(r"\w+", text))
    howtos = [BLOCK.sub("", text) for name, text in DOCUMENTS.items() if "docs/project/" in name]
    named = {word for text in howtos for word in re.findall(r"`(\w+)`", text)}
    assert len(howtos) == 4 and len(named) > 30
    assert named - words == set()


def public_names(path):
    """Return the `__all__` of a module without importing it."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{path} has no __all__")


def documented_names(module):
    """Return the names in a module that are documented on the API pages."""
    found = set()
    for name, text in DOCUMENTS.items():
        for part in text.split(".. currentmodule:: ")[1:] if "docs/api" in name else ():
            documented, _, rest = part.partition("\n")
            if documented == module:
                found |= set(re.findall(r"^\.\. (?:auto\w+|data):: (\w+)", rest, re.MULTILINE))
    return found


@pytest.mark.parametrize(
    "name", ["", "torch", "dask", "jax", "flax", "keras", "tensorflow", "thinc"]
)
def test_every_public_name_is_documented(name):
    path = ROOT / "cdropout" / name
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert documented_names(f"cdropout.{name}".rstrip(".")) == public_names(path)


# ---- example in the specification of the stream -------------------------------------------------

STREAM = DOCUMENTS["docs/stream.md"].partition("## A worked example")[2]
SEED, CALL, P = 42, 7, 0.1


def numbers_in_lines(pattern):
    """Return the numbers in each line of the example that matches the pattern."""
    return [
        [int(part, 0) for part in line]
        for line in re.findall(rf"^{pattern}$", STREAM, re.MULTILINE)
    ]


def test_constants_in_the_worked_example_equal_reference():
    constants = re.findall(r"^(\w+) += (\w+)$", STREAM, re.MULTILINE)
    K, c, tie = reference.mask_constants(SEED, CALL)
    T = reference.threshold(P)
    s0, s1 = reference.lane_state(K, c, block=0, lane=0)
    expected = {"key": reference.mix(SEED + reference.GAMMA), "K": K, "c": c, "tie": tie, "T": T}
    expected |= {"R": reference.rounds(T), "rest": T << 12 & reference.MASK64, "s0": s0, "s1": s1}
    assert {name: int(value, 0) for name, value in constants} == expected


def test_random_numbers_in_the_worked_example_equal_reference():
    K, c, _ = reference.mask_constants(SEED, CALL)
    T = reference.threshold(P)
    s0, s1 = reference.lane_state(K, c, block=0, lane=0)
    expected = []
    for j in range(reference.rounds(T)):
        number, s0, s1 = reference.xoroshiro128pp(s0, s1)
        expected.append([j, T >> (63 - j) & 1, number])
    assert numbers_in_lines(r"(\d+) +([01]) +(0x\w{16})") == expected


def test_undecided_elements_in_the_worked_example_equal_reference():
    _, _, tie = reference.mask_constants(SEED, CALL)
    _, undecided = reference.draw(SEED, CALL, P, 0, reference.BLOCK)
    expected = [
        [i, reference.mix(tie + reference.GAMMA * (i + 1))]
        for i in map(int, undecided.nonzero()[0])
    ]
    assert numbers_in_lines(r"(\d+) +(0x\w{16}) +(?:yes|no)") == expected
    dropped = [
        line.endswith("yes") for line in STREAM.splitlines() if re.search(r"(yes|no)$", line)
    ]
    assert dropped == [not reference.keep_one(SEED, CALL, P, i) for i, _ in expected]


@pytest.mark.parametrize("name", ["bitslicing", "mask_id"])
def test_svg_is_the_output_of_its_script(name):
    path = ROOT / "docs" / f"{name}.py"
    specification = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert path.with_suffix(".svg").read_text(encoding="utf-8") == module.picture()
