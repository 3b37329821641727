"""Tests of the command line: what it prints, writes and refuses. Nothing here depends on timing."""

import contextlib
import io
import json
import re
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest

import cdropout as cd
from cdropout import selftest
from cdropout.__main__ import main
from cdropout._core import dispatch
from cdropout.bench import chart, command, contestant, growth, kernels, machine, peers, race

from ..helpers.requirements import ISAS, import_or_skip

QUICK = ["bench", "--sizes", "64,1Ki", "--seconds", "0"]
SIZES_WANTED = "expected sizes from 1 to 1Gi such as 64,1Ki,1Mi, but got "
TYPES_WANTED = "expected types out of float16, bfloat16, float32, float64, but got "


@pytest.fixture(autouse=True, scope="module")
def quick_bench():
    """Check and measure fewer elements, for less time; restore the number of threads."""
    before = cd.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contestant, "CHECKED", 1 << 18)
        patch.setattr(contestant, "LOAD_SECONDS", 0.02)
        patch.setattr(kernels, "SIZE", 1 << 16)
        patch.setattr(race, "TURN", 1e-5)
        yield
    cd.set_num_threads(before)


def refusal(capsys, *arguments):
    """The one line with which these arguments are refused."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    printed = capsys.readouterr()
    assert caught.value.code == 2 and printed.out == ""
    assert printed.err.endswith("\n") and printed.err.count("\n") == 1
    return printed.err


# ---- bench ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raced(tmp_path_factory):
    """(what a short race against NumPy printed, what it wrote as JSON)."""
    path = tmp_path_factory.mktemp("raced") / "numbers.json"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*QUICK, "--peer", "numpy", "--p", "0.25", "--json", str(path)]) == 0
    return printed.getvalue(), json.loads(path.read_text())


def test_heading_names_what_the_numbers_depend_on(raced):
    first, second, *rest = raced[0].splitlines()[:4]
    third = rest[1 if machine.advice() else 0]
    isa = dispatch.describe([dispatch.isa], dispatch.vectors)
    assert first == f"cdropout {version('cdropout')}, {isa}, 1 thread, p=0.25, float32"
    assert machine.cpu_name() in second and f"NumPy {np.__version__}" in second
    assert second.endswith(f"; built by {dispatch.compiler}")
    how = "keep rate within a 1e-06 bound over 262144 elements, scale, gradient"
    ours = f"cdropout {version('cdropout')}, cdropout-new {version('cdropout')}"
    who = f"{ours}, numpy {np.__version__}"
    assert third == f"checked ({how}): {who}"


def test_table_has_a_line_a_size_and_contestant(raced):
    rows = re.findall(r"^ *(64|1Ki) ([\w-]+) +\|(.*)\|(.*)$", raced[0], re.MULTILINE)
    names = [*peers.rooflines(1), "cdropout", "cdropout-new", "numpy"]
    assert [row[:2] for row in rows] == [(size, name) for size in ("64", "1Ki") for name in names]
    heading = ["ns/element", "GB/s", "/memcpy", "/peer"]
    assert f"size | {' '.join(heading)} | {' '.join(heading)}" in " ".join(raced[0].split())
    for *_, name, forward, both in rows:
        forward, both = forward.split(), both.split()
        assert len(forward) == len(both) == 4
        assert all(float(number) > 0 for number in forward + both)
        if name == "memcpy":
            assert forward[2] == both[2] == "1.00"
        if name == "numpy":
            assert forward[3] == both[3] == "1.000"


def test_json_has_every_number(raced):
    numbers = raced[1]
    about = numbers["environment"]
    assert (about["p"], about["dtype"], about["threads"]) == (0.25, "float32", 1)
    assert (about["isa"], about["cpu"]) == (dispatch.isa, machine.cpu_name())
    assert (about["vectors"], about["compiler"]) == (dispatch.vectors, dispatch.compiler)
    ours = dict.fromkeys(["cdropout", "cdropout-new"], version("cdropout"))
    assert numbers["contestants"] == {**ours, "numpy": np.__version__}
    assert numbers["left_out"] == {}
    assert len(numbers["cells"]) == 2 * 2 * (3 + len(peers.rooflines(1)))
    for cell in numbers["cells"]:
        moved = {"forward": 8, "forward+backward": 16}[cell["mode"]]  # bytes an element
        assert cell["gb_per_s"] == pytest.approx(moved / cell["ns_per_element"])
        low, high = cell["ns_quartiles"]
        assert low <= cell["ns_per_element"] <= high
        assert cell["to_memcpy_runs"] == [cell["to_memcpy"]]
        assert cell["rounds"] == race.FEWEST_ROUNDS and cell["calls_a_round"] >= 1
        assert f"{cell['ns_per_element']:10.3f} {cell['gb_per_s']:8.2f}" in raced[0]


def test_kernel_section_follows_the_table(raced):
    lines = raced[0].splitlines()
    start = lines.index(f"kernels at 64Ki elements, {dispatch.isa}, float32, paired with memcpy:")
    names = [name for name, *_ in raced[1]["kernels"]]
    assert [line[2:40].strip() for line in lines[start + 1 :]] == names
    units = [unit for *_, unit in raced[1]["kernels"]]
    assert raced[1]["kernel_runs"] == {name: [number] for name, number, _ in raced[1]["kernels"]}
    assert units == ["x memcpy"] * 6 + ["G elements/s", "us"]


def test_kernels_alone(capsys):
    assert main(["bench", "--kernels", "--seconds", "0"]) == 0
    printed = capsys.readouterr()
    assert "kernels at 64Ki" in printed.out and "ns/element" not in printed.out
    assert "numpy" not in printed.out
    assert printed.err == ""  # no progress unless on a terminal


def test_without_peers_nothing_is_compared_with_them(capsys):
    assert main([*QUICK, "--peer", "none", "--dtype", "float64", "--threads", "2"]) == 0
    printed = capsys.readouterr().out
    assert "2 threads, p=0.1, float64" in printed and "numpy" not in printed
    row = re.search(r"^ *64 cdropout +\|(.*)\|(.*)$", printed, re.MULTILINE)
    assert row[1].split()[3] == row[2].split()[3] == "-"
    assert cd.get_num_threads() == 2


def test_a_portable_build_is_said(capsys, monkeypatch):
    monkeypatch.setattr(dispatch, "vectors", False)
    assert main(["bench", "--kernels", "--seconds", "0"]) == 0
    first, _, third = capsys.readouterr().out.splitlines()[:3]
    assert f"{dispatch.isa} (portable: built without vector types)" in first
    assert third.startswith(
        "to make it faster, build it with Clang or GCC, on Windows with clang-cl;"
    )


def test_the_fastest_build_needs_no_advice(capsys, monkeypatch):
    monkeypatch.setattr(dispatch, "vectors", True)
    monkeypatch.setattr(dispatch, "runnable", lambda: (dispatch.isa,))
    assert main(["bench", "--kernels", "--seconds", "0"]) == 0
    assert "faster" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("share", "said"), [(0.6, True), pytest.param(0.99, False, marks=pytest.mark.slow)]
)
def test_busy_machine_is_said(capsys, monkeypatch, share, said):
    monkeypatch.setattr(machine, "cpu_share", lambda: lambda: share)
    assert main(["bench", "--kernels", "--seconds", "0"]) == 0
    line = "BUSY MACHINE: this process got only 60% of a CPU; long calls look slower than they are"
    assert (line in capsys.readouterr().out.splitlines()) is said


def test_progress_on_a_terminal(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    race.show_progress("16Mi forward")
    assert terminal.getvalue() == "\r\x1b[K16Mi forward"


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_isa_is_used(capfd, isa):
    assert main(["bench", "--kernels", "--seconds", "0", "--peer", "none", "--isa", isa]) == 0
    printed = capfd.readouterr()
    assert f" elements, {isa}, float32, paired with memcpy" in printed.out and printed.err == ""


def test_exit_code_of_another_process_is_passed_on(monkeypatch):
    given = []

    def run_under(isa, statement):
        given.append((isa, statement))
        return subprocess.CompletedProcess([], 3)

    monkeypatch.setattr(dispatch, "isa", "another")
    monkeypatch.setattr(selftest, "run_under", run_under)
    arguments = ["bench", "--isa", "baseline", "--peer", "none"]
    assert main(arguments) == 3
    statement = f"from cdropout.__main__ import main; sys.exit(main({arguments!r}))"
    assert given == [("baseline", statement)]


def test_plot(tmp_path):
    import_or_skip("matplotlib")
    path = tmp_path / "race.png"
    assert main([*QUICK, "--peer", "numpy", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def lightness(color):
    """How bright a colour is in grey, from 0 to 1 (ITU-R BT.709)."""
    import_or_skip("matplotlib")
    from matplotlib import colors

    return float(np.dot(colors.to_rgb(color), [0.2126, 0.7152, 0.0722]))


def test_each_line_of_the_chart_can_be_told_apart_in_grey():
    greys = sorted(lightness(look["color"]) for look in chart.LIBRARIES.values())
    assert min(np.diff(greys)) > 0.05 and greys[-1] < 0.75
    dashes = [str(look["linestyle"]) for look in chart.LIBRARIES.values()]
    assert len(set(dashes)) == len(dashes)
    assert list(chart.MARKERS) == [*peers.OURS, *peers.ADAPTERS, *peers.PEERS]
    assert len(set(chart.MARKERS.values())) == len(chart.MARKERS)
    copied = [chart.style(name) for name in peers.rooflines(2)]
    assert len({look["linestyle"] for look in copied}) == len(copied)


# ---- what takes part --------------------------------------------------------------------------


def chosen(monkeypatch, *arguments):
    """The options with which the benchmark would run."""
    there = "numpy", "numpy-rand", "torch"
    monkeypatch.setattr(peers, "missing", lambda name: None if name in there else name)
    given = []
    monkeypatch.setattr(command, "run", lambda options: given.append(options) or 0)
    monkeypatch.setattr(growth, "run", lambda options: given.append(options) or 0)
    assert main(["bench", *arguments]) == 0
    return given[0]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["numpy", "torch"]),
        (["--peer", "all"], ["numpy", "numpy-rand", "torch"]),
        (["--peer", "none"], []),
        (["--peer", "torch", "--peer", "numpy-rand"], ["numpy-rand", "torch"]),
        (["--kernels"], []),
        (["--growth"], []),
    ],
)
def test_peers_that_take_part(monkeypatch, arguments, names):
    assert chosen(monkeypatch, *arguments).peers == names


def test_defaults_of_race_and_growth(monkeypatch):
    race_options, growth_options = chosen(monkeypatch), chosen(monkeypatch, "--growth")
    assert race_options.threads == 1 and growth_options.threads == 2
    assert race_options.sizes == [1 << bits for bits in (6, 10, 14, 18, 20, 24)]
    assert growth_options.sizes == [1 << bits for bits in range(6, 31, 2)]
    assert chosen(monkeypatch, "--growth", "--sizes", "1Gi", "--threads", "3").sizes == [1 << 30]


def test_types_come_in_their_order(monkeypatch):
    assert chosen(monkeypatch).dtype == ["float32"]
    options = chosen(monkeypatch, "--dtype", "bfloat16,float32, bfloat16")
    assert options.dtype == ["bfloat16", "float32"]


def test_each_type_has_a_table(capsys, monkeypatch):
    monkeypatch.setattr(machine, "sweep", lambda: np.ones(64, np.uint8))
    arguments = ["--sizes", "64", "--seconds", "0", "--peer", "none"]
    assert main(["bench", *arguments, "--dtype", "float16,bfloat16", "--cold"]) == 0
    printed = capsys.readouterr().out
    assert "p=0.1, float16, bfloat16, cold" in printed.splitlines()[0]
    assert "cold: the cache was emptied before each call" in printed
    assert re.findall(r"^(\w+) +\| +forward +\|", printed, re.MULTILINE) == ["float16", "bfloat16"]
    assert len(re.findall(r"^ *64 cdropout-new ", printed, re.MULTILINE)) == 2
    assert "paired with memcpy, cold:" in printed and "us" not in printed.split()  # all is cold


# ---- wrong options ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--p", "0", "expected a probability between 0 and 1, both excluded, but got '0'"),
        ("--p", "1", "expected a probability between 0 and 1, both excluded, but got '1'"),
        ("--p", "nan", "expected a probability between 0 and 1, both excluded, but got 'nan'"),
        ("--p", "half", "expected a probability between 0 and 1, both excluded, but got 'half'"),
        ("--runs", "0", "expected an int of at least 1, but got '0'"),
        ("--threads", "0", "expected an int of at least 1, but got '0'"),
        ("--threads", "1.5", "expected an int of at least 1, but got '1.5'"),
        ("--seconds", "-1", "expected a number of seconds of at least 0, but got '-1'"),
        ("--seconds", "inf", "expected a number of seconds of at least 0, but got 'inf'"),
        ("--sizes", "0", SIZES_WANTED + "'0'"),
        ("--sizes", "64,", SIZES_WANTED + "''"),
        ("--sizes", "1k", SIZES_WANTED + "'1k'"),
        ("--sizes", "2Gi", SIZES_WANTED + "'2Gi'"),
        ("--dtype", "int8", TYPES_WANTED + "'int8'"),
        ("--dtype", "float32,", TYPES_WANTED + "''"),
        ("--isa", "avx3", "invalid choice: 'avx3'"),
        ("--peer", "mxnet", "invalid choice: 'mxnet'"),
        ("--json", "/", "expected a file in a folder that exists, but got '/'"),
        ("--json", "/no/such/a.json", "expected a file in a folder that exists, but got"),
        ("--plot", "a.jpeg2", "expected a name that ends in .png, .pdf, .svg, but got 'a.jpeg2'"),
    ],
)
def test_bad_value_is_one_line(capsys, option, value, message):
    line = refusal(capsys, "bench", f"{option}={value}")
    assert line.startswith(f"cdropout bench: error: argument {option}: ") and message in line


def test_peer_that_is_not_installed(capsys, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda package: package != "tensorflow")
    line = refusal(capsys, "bench", "--peer", "keras")
    assert "argument --peer: keras cannot take part: tensorflow is not installed" in line
    assert not {"keras", "tensorflow"} & set(peers.installed())


@pytest.mark.parametrize("alone", ["none", "all"])
def test_none_and_all_exclude_other_peers(capsys, alone):
    line = refusal(capsys, "bench", "--peer", alone, "--peer", "numpy")
    assert f"argument --peer: {alone} excludes other peers" in line


def test_bfloat16_without_its_package(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    line = refusal(capsys, "bench", "--dtype", "bfloat16")
    assert "argument --dtype: bfloat16 needs ml_dtypes: pip install 'cdropout[bench]'" in line


@pytest.mark.parametrize(
    "other", ["--kernels", "--cold", "--compare=a", "--plot=a.png", "--runs=2"]
)
def test_growth_excludes_the_race(capsys, other):
    name = other.partition("=")[0]
    assert f"--growth: it excludes {name}" in refusal(capsys, "bench", "--growth", other)


def test_plot_without_matplotlib_fails_before_the_race(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = refusal(capsys, "bench", "--plot", str(tmp_path / "a.png"))
    assert "this needs matplotlib: pip install 'cdropout[bench]'" in line


def test_plot_of_the_kernels_alone(capsys):
    line = refusal(capsys, "bench", "--plot", "a.png", "--kernels")
    assert "argument --plot: " in line


def test_isa_that_was_not_built(capsys, monkeypatch):
    monkeypatch.setattr(dispatch, "built", lambda: ("baseline",))
    line = refusal(capsys, "bench", "--isa", "avx2")
    assert "argument --isa: " in line and "cdropout was built without avx2; it has baseline" in line


def test_isa_that_this_cpu_cannot_run(capsys, monkeypatch):
    monkeypatch.setattr(dispatch, "built", lambda: dispatch.INSTRUCTION_SETS)
    monkeypatch.setattr(dispatch, "runnable", lambda: ("baseline", "avx2"))
    line = refusal(capsys, "bench", "--isa", "avx512")
    assert "argument --isa: " in line and "this CPU cannot run avx512" in line


def test_too_little_memory_is_said(capsys, monkeypatch):
    def arrays(*_):
        raise MemoryError

    monkeypatch.setattr(race, "race_at", arrays)
    line = refusal(capsys, *QUICK, "--peer", "none")
    assert line == "cdropout bench: error: not enough memory for 1Ki elements\n"


def test_command_is_required(capsys):
    assert refusal(capsys).startswith("cdropout: error: ")
    assert "invalid choice: 'race'" in refusal(capsys, "race")
