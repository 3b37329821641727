"""Tests of the command line: its options, `cdropout info`, exit codes and errors."""

import os
import re
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest

import cdropout as cd
from cdropout import bench, selftest
from cdropout.__main__ import ignore_ctrl_c, main, make_parser
from cdropout._core import dispatch
from cdropout.bench import peers, timing

from ..helpers.command_line import BENCH, COMMANDS, assert_error, find_command, run
from ..helpers.requirements import import_or_skip, slow

SIZES_WANTED = "expected sizes from 1 to 1Gi such as 64,1Ki,1Mi, but got "
TYPES_WANTED = "expected types out of float16, bfloat16, float32, float64, but got "
P_WANTED = "expected a probability between 0 and 1, both excluded, but got "
STREAM_P_WANTED = "expected a probability from 1e-06 to 0.999999, but got "

# ---- options of bench -------------------------------------------------------------------------


@pytest.fixture
def parse(monkeypatch):
    """Return a function that parses arguments of `cdropout bench` but runs no benchmark."""
    there = "numpy", "numpy-rand", "torch"
    monkeypatch.setattr(peers, "missing", lambda name: None if name in there else name)
    parsed = []
    monkeypatch.setattr(bench, "run", lambda options: parsed.append(options) or 0)

    def parse(*arguments):
        assert main(["bench", *arguments]) == 0
        return parsed.pop()

    return parse


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["numpy", "torch"]),
        (["--peer", "all"], ["numpy", "numpy-rand", "torch"]),
        (["--peer", "none"], []),
        (["--peer", "torch", "--peer", "numpy-rand"], ["numpy-rand", "torch"]),
    ],
)
def test_option_peer_selects_installed_peers(parse, arguments, names):
    assert parse(*arguments).peers == names


def test_options_of_bench_have_defaults(parse):
    options = parse()
    assert (options.threads, options.p, options.dtype) == (1, 0.1, ["float32"])
    assert options.sizes == [1 << bits for bits in (6, 10, 14, 18, 20, 24)]


def test_bench_sorts_sizes_and_dtypes_and_removes_duplicates(parse):
    options = parse("--dtype", "bfloat16,float32, bfloat16", "--sizes", "1Gi,5,1Ki,5")
    assert options.dtype == ["bfloat16", "float32"]
    assert options.sizes == [5, 1 << 10, 1 << 30]


@pytest.mark.parametrize(
    ("command", "option", "value", "message"),
    [
        ("bench", "--p", "0", P_WANTED + "'0'"),
        ("bench", "--p", "1", P_WANTED + "'1'"),
        ("bench", "--p", "nan", P_WANTED + "'nan'"),
        ("bench", "--p", "half", P_WANTED + "'half'"),
        ("bench", "--threads", "0", "expected an int of at least 1, but got '0'"),
        ("bench", "--threads", "1.5", "expected an int of at least 1, but got '1.5'"),
        ("bench", "--seconds", "-1", "expected a number of seconds of at least 0, but got '-1'"),
        ("bench", "--seconds", "inf", "expected a number of seconds of at least 0, but got 'inf'"),
        ("bench", "--sizes", "0", SIZES_WANTED + "'0'"),
        ("bench", "--sizes", "64,", SIZES_WANTED + "''"),
        ("bench", "--sizes", "1k", SIZES_WANTED + "'1k'"),
        ("bench", "--sizes", "2Gi", SIZES_WANTED + "'2Gi'"),
        ("bench", "--dtype", "int8", TYPES_WANTED + "'int8'"),
        ("bench", "--dtype", "float32,", TYPES_WANTED + "''"),
        ("bench", "--isa", "avx3", "invalid choice: 'avx3'"),
        ("bench", "--peer", "mxnet", "invalid choice: 'mxnet'"),
        ("bench", "--json", "/", "expected a file in a folder that exists, but got '/'"),
        ("bench", "--json", "/no/such/a.json", "expected a file in a folder that exists, but got"),
        ("bench", "--plot", "a.jpeg2", "expected a name that ends in .png, .pdf, .svg, but got 'a"),
        ("stream", "--p", "0", STREAM_P_WANTED + "'0'"),
        ("stream", "--p", "nan", STREAM_P_WANTED + "'nan'"),
        ("stream", "--p", "1e-300", STREAM_P_WANTED + "'1e-300'"),
        ("stream", "--p", "9.9e-7", STREAM_P_WANTED + "'9.9e-7'"),
        ("stream", "--p", "0.9999991", STREAM_P_WANTED + "'0.9999991'"),
        ("stream", "--seed", str(2**64), f"expected an int in [-2**63, 2**64), but got '{2**64}'"),
        ("stream", "--seed", "1.5", "expected an int in [-2**63, 2**64), but got '1.5'"),
        ("stream", "--call", "-1", "expected an int in [0, 2**64), but got '-1'"),
        ("stream", "--bytes", "0", "expected an int of at least 1, but got '0'"),
        ("stream", "--order", "random", "invalid choice: 'random'"),
    ],
)
def test_options_reject_invalid_values(refuse, command, option, value, message):
    line = refuse(command, f"{option}={value}")
    assert line.startswith(f"cdropout {command}: error: argument {option}: ") and message in line


def test_option_peer_rejects_a_missing_package(refuse, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda package: package != "tensorflow")
    line = refuse("bench", "--peer", "keras")
    assert "argument --peer: keras needs tensorflow, which is not installed" in line


@pytest.mark.parametrize("single", ["none", "all"])
def test_option_peer_with_none_or_all_rejects_other_names(refuse, single):
    line = refuse("bench", "--peer", single, "--peer", "numpy")
    assert f"argument --peer: {single} cannot be combined with other names" in line


def test_option_dtype_rejects_bfloat16_without_ml_dtypes(refuse, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    line = refuse("bench", "--dtype", "bfloat16")
    assert "argument --dtype: bfloat16 needs ml_dtypes: pip install 'cdropout[bench]'" in line


def test_option_plot_is_rejected_without_matplotlib(refuse, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = refuse("bench", "--plot", str(tmp_path / "a.png"))
    assert "argument --plot: this needs matplotlib: pip install 'cdropout[bench]'" in line


def test_option_isa_rejects_a_set_that_was_not_built(refuse, monkeypatch):
    monkeypatch.setattr(dispatch, "built", lambda: ("baseline",))
    line = refuse("bench", "--isa", "avx2")
    assert "argument --isa: cdropout was built without avx2; it has baseline\n" in line


def test_option_isa_rejects_a_set_that_this_cpu_cannot_run(refuse, monkeypatch):
    monkeypatch.setattr(dispatch, "built", lambda: dispatch.INSTRUCTION_SETS)
    monkeypatch.setattr(dispatch, "runnable", lambda: ("baseline", "avx2"))
    line = refuse("bench", "--isa", "avx512")
    assert "argument --isa: this CPU cannot run avx512; it runs baseline, avx2\n" in line


def test_bench_with_another_isa_runs_in_a_new_process(monkeypatch):
    given = []

    def run_with_isa(isa, statement):
        given.append((isa, statement))
        return subprocess.CompletedProcess([], 3)

    monkeypatch.setattr(dispatch, "isa", "another")
    monkeypatch.setattr(selftest, "run_with_isa", run_with_isa)
    arguments = ["bench", "--isa", "baseline", "--peer", "none"]
    assert main(arguments) == 3
    statement = f"from cdropout.__main__ import main; sys.exit(main({arguments!r}))"
    assert given == [("baseline", statement)]


def test_bench_with_too_little_memory_prints_one_line(refuse, monkeypatch, quick_bench):
    def measure_size(*_):
        raise MemoryError

    monkeypatch.setattr(timing, "measure_size", measure_size)
    line = refuse(*BENCH)
    assert line == "cdropout bench: error: not enough memory for 64 elements\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_ignore_ctrl_c_leaves_ctrl_c_to_the_new_process():
    before = signal.getsignal(signal.SIGINT)
    with ignore_ctrl_c():
        os.kill(os.getpid(), signal.SIGINT)
        program = "import signal; print(signal.getsignal(signal.SIGINT))"
        child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "default_int_handler" in child.stdout
    assert signal.getsignal(signal.SIGINT) is before


def test_main_rejects_a_missing_or_unknown_command(refuse):
    text = "give a command: bench, info, selftest or stream; see cdropout --help"
    assert refuse() == f"cdropout: error: {text}\n"
    assert "invalid choice: 'race'" in refuse("race")


# ---- help -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [None, "bench", "info", "selftest", "stream"])
def test_help_has_80_columns_sentences_and_valid_examples(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        main([*filter(None, [command]), "--help"])
    printed = capsys.readouterr()
    assert caught.value.code == 0 and printed.err == ""
    assert max(map(len, printed.out.splitlines())) <= 80
    found = re.findall(r"^  cdropout (.*)$", printed.out, re.MULTILINE)
    assert found
    for line in found:
        arguments = shlex.split(re.split("[|>]", line)[0])
        assert callable(make_parser().parse_args(arguments).run)
        assert command in (None, arguments[0])


def test_help_of_each_option_and_command_is_a_sentence():
    parser = make_parser()
    commands = parser._subparsers._group_actions[0]
    texts = [each.help for each in commands._choices_actions]
    for each in (parser, *commands.choices.values()):
        texts += [action.help for action in each._actions if action is not commands]
        assert not each.description.endswith(" ") and each.description.endswith(".")
    assert len(texts) > 20
    assert all(text[0].isupper() and text.endswith(".") for text in texts)


# ---- info -------------------------------------------------------------------------------------


def test_info_prints_versions_and_settings(capsys):
    assert main(["info"]) == 0
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    lines = {name: value.strip() for name, value in lines.items()}
    assert lines["cdropout"] == cd.__version__
    assert lines["built for"] == dispatch.describe(dispatch.built(), dispatch.vectors)
    assert lines["built by"] == dispatch.compiler
    assert ("to be faster" in lines) == bool(timing.advice())
    assert lines["this CPU runs"] == ", ".join(dispatch.runnable())
    assert lines["in use"] == dispatch.isa
    assert lines["threads"] == f"at most {cd.get_num_threads()} per call"
    assert lines["include folder"] == cd.get_include()
    assert lines["NumPy"] == np.__version__
    assert sys.version.startswith(lines["Python"])


def test_info_of_a_portable_build_recommends_a_compiler(capsys, monkeypatch):
    monkeypatch.setattr(dispatch, "vectors", False)
    monkeypatch.setattr(dispatch, "built", lambda: ("baseline",))
    monkeypatch.setattr(dispatch, "compiler", "MSVC 1944")
    assert main(["info"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "built for: baseline (portable: built without vector types)" in lines
    assert "built by: MSVC 1944" in lines
    advice = "build it with Clang or GCC, on Windows with clang-cl"
    assert f"to be faster: {advice}; the portable form is several times slower" in lines


def test_info_include_prints_only_the_folder(capsys):
    assert main(["info", "--include"]) == 0
    assert capsys.readouterr().out == f"{cd.get_include()}\n"


# ---- new processes ----------------------------------------------------------------------------


def test_module_prints_its_version_and_package_does_not_import_bench():
    assert run(COMMANDS["module"], "--version") == (0, f"cdropout {cd.__version__}\n", "")
    statement = "import cdropout; print('cdropout.bench' in sys.modules)"
    done = selftest.run_with_isa(dispatch.isa, statement, capture_output=True, text=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_cdropout_without_a_command_exits_with_code_2(name):
    text = "error: give a command: bench, info, selftest or stream"
    assert_error(run(find_command(name)), 2, text)


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe is another error there")
@pytest.mark.parametrize(
    "arguments, code",
    [(["info"], 141), (["stream"], 0),
     *(pytest.param(arguments, code, marks=pytest.mark.slow) for arguments, code in [
        (["--help"], 141), (["--version"], 141), (["selftest"], 141), (BENCH, 141),
        ([*BENCH, "--isa", "baseline"], 141), (["stream", "--p", "0.1"], 0)])],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)  # fmt: skip
def test_closed_pipe_ends_commands_without_a_message(command, arguments, code):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run(command, *arguments, stdout=writer) == (code, None, "")
        if not {"--help", "--version"} & {*arguments}:  # argparse ignores write errors
            unbuffered = {"PYTHONUNBUFFERED": "1"}
            assert run(command, *arguments, stdout=writer, **unbuffered) == (code, None, "")
    finally:
        os.close(writer)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell that closes a descriptor")
@pytest.mark.parametrize(
    "arguments", [["stream", "--bytes", "5"], *slow(["info"], ["selftest"], BENCH)], ids=str
)
def test_only_stream_fails_if_standard_output_is_closed(command, arguments):
    """If standard output is closed at the start, Python sets sys.stdout to None."""
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    error = "cdropout stream: error: standard output is closed\n"
    expected = (2, "", error) if arguments[0] == "stream" else (0, "", "")
    assert run(closed, *arguments) == expected


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's full device")
@pytest.mark.parametrize("arguments", [["info"], *slow(["--help"], BENCH, ["stream"])], ids=str)
def test_command_exits_with_code_1_if_the_disk_is_full(command, arguments):
    with open("/dev/full", "w") as full:
        assert_error(run(command, *arguments, stdout=full), 1, "No space left on device")


# ---- files ------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/proc"), reason="needs a folder that nobody can write to")
@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_unwritable_file_is_rejected_before_the_measurements(refuse, option):
    import_or_skip("matplotlib")
    line = refuse(*BENCH, "--seconds", "1000", option, "/proc/numbers.png")
    assert f"argument {option}: cannot write '/proc/numbers.png': " in line


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's full device")
@pytest.mark.parametrize("option, name", [("--json", "a.json"), ("--plot", "a.svg")])
def test_bench_prints_an_error_if_the_disk_is_full(capsys, quick_bench, tmp_path, option, name):
    import_or_skip("matplotlib")
    path = tmp_path / name
    path.symlink_to("/dev/full")
    assert main([*BENCH, option, str(path)]) == 1
    printed = capsys.readouterr()
    assert "64 cdropout " in printed.out
    assert printed.err == f"cdropout: error: [Errno 28] No space left on device: '{path}'\n"


def test_rejected_options_do_not_change_files(refuse, tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("numbers")
    for path in (old, new):
        refuse("bench", "--json", str(path), "--peer", "none", "--peer", "all")
    assert old.read_text() == "numbers" and not new.exists()
