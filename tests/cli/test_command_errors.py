"""The command line as a process: exit codes, one line for an error, and no traceback."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cdropout._core import dispatch

from ..helpers.requirements import slow

SCRIPT = Path(sys.executable).with_name("cdropout")
WAYS = {
    "module": [sys.executable, "-P", "-m", "cdropout"],
    "script": [sys.executable, "-P", str(SCRIPT)],
}
BENCH = ["bench", "--kernels", "--seconds", "0"]


def needs_script(way):
    if way == "script" and not SCRIPT.exists():
        pytest.skip("the script cdropout was not installed")


@pytest.fixture(params=["module", *slow("script")])
def command(request):
    needs_script(request.param)
    return WAYS[request.param]


def run(command, *arguments, stdout=subprocess.PIPE, **variables):
    """Return (exit code, standard output, standard error)."""
    done = subprocess.run(
        [*command, *arguments], stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=300,
        env={**os.environ, "PYTHONUNBUFFERED": "", **variables},
        cwd=tempfile.gettempdir(),  # outside of a checkout that is not built
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def expect_line(result, code, words):
    """Assert that a command printed one line, to standard error."""
    assert result[0] == code and not result[1]
    assert result[2].count("\n") == 1 and result[2].startswith("cdropout") and words in result[2]


@pytest.mark.parametrize("way", WAYS)
def test_no_command(way):
    needs_script(way)
    expect_line(run(WAYS[way]), 2, "error: the following arguments are required: command")


@pytest.mark.parametrize(
    "variable, text, words",
    [
        ("CDROPOUT_ISA", "sse9", "CDROPOUT_ISA has to be one of baseline, avx2, avx512, but got "),
        ("CDROPOUT_NUM_THREADS", "0", "CDROPOUT_NUM_THREADS has to be an int of at least 1, but"),
        ("CDROPOUT_NUM_THREADS", "two", "CDROPOUT_NUM_THREADS has to be an int of at least 1, but"),
    ],
)
@pytest.mark.parametrize(
    "arguments", [["info"], *slow(["selftest"], BENCH, ["--help"], [])], ids=str
)
def test_a_wrong_environment(command, arguments, variable, text, words):
    expect_line(run(command, *arguments, **{variable: text}), 2, words)


@pytest.mark.parametrize("program", ["import cdropout", "import sys; import cdropout.__main__"])
def test_a_wrong_environment_raises_elsewhere(program):
    """Other programs get an exception that they can handle, even if an argument is `cdropout`."""
    result = run([sys.executable, "-P", "-c", program], "cdropout", CDROPOUT_ISA="sse9")
    assert result[0] == 1 and "Traceback" in result[2]
    assert result[2].splitlines()[-1].startswith("ValueError: CDROPOUT_ISA has to be")


OPTIONS = [
    ["-BPmcdropout.__main__"], ["-W", "ignore", "-Xutf8", "-X", "dev", "-m", "cdropout"],
    *slow(["-mcdropout"], ["-m", "cdropout.__main__"], ["-Pm", "cdropout"]),
    *slow(["--check-hash-based-pycs", "always", "-m", "cdropout"]),
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_a_wrong_environment_for_each_form_of_the_option_m(options):
    words = "CDROPOUT_ISA has to be one of baseline, avx2, avx512, but got "
    expect_line(run([sys.executable, *options], "info", CDROPOUT_ISA="sse9"), 2, words)


@pytest.mark.parametrize(
    "options", [["-W", "ignore", "-mmytool"], *slow(["-m", "mytool"], ["-mmytool"])]
)
@pytest.mark.parametrize("arguments", [["-m", "cdropout"], *slow(["cdropout"], ["-mcdropout"])])
def test_a_wrong_environment_raises_in_a_module_with_such_arguments(options, arguments, tmp_path):
    """Python imports the package of a module before it sets sys.argv."""
    (tmp_path / "mytool").mkdir()
    (tmp_path / "mytool" / "__init__.py").write_text("import cdropout")
    (tmp_path / "mytool" / "__main__.py").write_text("")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, *options]
    result = run(command, *arguments, CDROPOUT_ISA="sse9", PYTHONPATH=paths)
    assert result[0] == 1 and "ValueError: CDROPOUT_ISA has to be one of" in result[2]


@pytest.mark.slow
@pytest.mark.parametrize("isa", dispatch.built())
def test_the_instruction_set_in_any_case(command, isa):
    if isa not in dispatch.runnable():
        pytest.skip(f"this CPU cannot run {isa}")
    for text in (isa.upper(), isa.capitalize(), isa):
        code, printed, error = run(command, "info", CDROPOUT_ISA=text)
        assert (code, error) == (0, "") and f"in use:         {isa}\n" in printed
    code, printed, error = run(command, *BENCH, "--isa", isa.upper())
    assert (code, error) == (0, "") and f"kernels at 1Mi elements, {isa}," in printed


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe is another error there")
@pytest.mark.parametrize(
    "arguments, code",
    [(["info"], 141), (["stream"], 0),
     *(pytest.param(arguments, code, marks=pytest.mark.slow) for arguments, code in [
        (["--help"], 141), (["--version"], 141), (["selftest"], 141), (BENCH, 141),
        ([*BENCH, "--isa", "baseline"], 141), (["stream", "--p", "0.1"], 0)])],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)  # fmt: skip
def test_a_closed_pipe(command, arguments, code):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run(command, *arguments, stdout=writer) == (code, None, "")
        if not {"--help", "--version"} & {*arguments}:  # argparse ignores errors when it writes
            unbuffered = {"PYTHONUNBUFFERED": "1"}
            assert run(command, *arguments, stdout=writer, **unbuffered) == (code, None, "")
    finally:
        os.close(writer)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell that closes a descriptor")
@pytest.mark.parametrize(
    "arguments", [["stream", "--bytes", "5"], *slow(["info"], ["selftest"], BENCH)], ids=str
)
def test_a_closed_standard_output(command, arguments):
    """Python sets sys.stdout to None."""
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    words = "cdropout stream: error: standard output is closed\n"
    expected = (2, "", words) if arguments[0] == "stream" else (0, "", "")
    assert run(closed, *arguments) == expected


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's full device")
@pytest.mark.parametrize("arguments", [["info"], *slow(["--help"], BENCH, ["stream"])], ids=str)
def test_a_full_disk(command, arguments):
    with open("/dev/full", "w") as full:
        expect_line(run(command, *arguments, stdout=full), 1, "No space left on device")


@pytest.mark.skipif(not os.path.exists("/proc"), reason="needs a folder that nobody can write to")
@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_an_unwritable_file_is_refused_before_the_race(command, option):
    arguments = [*BENCH, "--seconds", "1000", option, "/proc/numbers.png"]
    words = f"argument {option}: cannot write '/proc/numbers.png': "
    expect_line(run(command, *arguments), 2, words)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's full device")
def test_a_file_that_cannot_be_written_after_the_race(command):
    growth = ["bench", "--growth", "--sizes", "64", "--seconds", "0"]
    for arguments in BENCH, growth:
        code, printed, error = run(command, *arguments, "--json", "/dev/full")
        assert code == 1 and ("kernels at 1Mi elements" in printed or arguments is growth)
        assert error == "cdropout: error: [Errno 28] No space left on device: '/dev/full'\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's full device")
def test_a_picture_that_cannot_be_written_after_the_race(command, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "table.svg"
    path.symlink_to("/dev/full")
    arguments = ["bench", "--peer", "none", "--sizes", "64", "--seconds", "0", "--plot", str(path)]
    code, _, error = run(command, *arguments)
    assert code == 1
    assert error == f"cdropout: error: [Errno 28] No space left on device: '{path}'\n"


def test_a_file_is_left_as_it_is_until_the_race_is_over(command, tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("numbers")
    for path in (old, new):
        assert run(command, "bench", "--json", str(path), "--peer", "none", "--peer", "all")[0] == 2
    assert old.read_text() == "numbers" and not new.exists()
