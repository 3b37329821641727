"""Tests of the command line: what it prints, writes and refuses. Nothing here depends on timing."""

import contextlib
import io
import json
import math
import re
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest

import cdropout as cd
from cdropout import bench, peers, selftest
from cdropout.__main__ import main
from cdropout.core import dispatch

QUICK = ["bench", "--sizes", "64,1Ki", "--seconds", "0"]
SIZES_WANTED = "expected sizes from 1 to 1024Mi such as 64,1Ki,1Mi, but got "
DTYPES = ["float32", "float64"]
AVAILABLE = [isa for isa in dispatch.built() if isa in dispatch.runnable()]
FRAMEWORKS = [name for name in peers.installed() if name != "numpy"]


@pytest.fixture(autouse=True, scope="module")
def small_checks():
    """Checks on fewer elements; and the number of threads as it was, afterwards."""
    before = cd.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "CHECKED", 1 << 18)
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
    first, second, third = raced[0].splitlines()[:3]
    assert first == f"cdropout {version('cdropout')}, {dispatch.isa}, 1 thread, p=0.25, float32"
    assert bench.cpu_name() in second and f"NumPy {np.__version__}" in second
    how = "keep rate within a 1e-06 bound over 262144 elements, scale, gradient"
    who = f"cdropout {version('cdropout')}, numpy {np.__version__}"
    assert third == f"checked ({how}): {who}"


def test_table_has_a_line_a_size_and_contestant(raced):
    rows = re.findall(r"^ *(64|1Ki) (\w+) +\|(.*)\|(.*)$", raced[0], re.MULTILINE)
    names = ["memcpy", "cdropout", "numpy"]
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
    assert (about["isa"], about["cpu"]) == (dispatch.isa, bench.cpu_name())
    assert numbers["contestants"] == {"cdropout": version("cdropout"), "numpy": np.__version__}
    assert numbers["left_out"] == {} and len(numbers["cells"]) == 2 * 2 * 3
    for cell in numbers["cells"]:
        moved = {"forward": 8, "forward+backward": 16}[cell["mode"]]  # bytes an element
        assert cell["gb_per_s"] == pytest.approx(moved / cell["ns_per_element"])
        low, high = cell["ns_quartiles"]
        assert low <= cell["ns_per_element"] <= high
        assert cell["rounds"] == bench.FEWEST_ROUNDS and cell["calls_a_round"] >= 1
        assert f"{cell['ns_per_element']:10.3f} {cell['gb_per_s']:8.2f}" in raced[0]


def test_kernel_section_follows_the_table(raced):
    lines = raced[0].splitlines()
    start = lines.index(f"kernels at 1Mi elements, {dispatch.isa}, float32, paired with memcpy:")
    names = [name for name, *_ in raced[1]["kernels"]]
    assert [line[2:40].strip() for line in lines[start + 1 :]] == names
    units = [unit for *_, unit in raced[1]["kernels"]]
    assert units == ["x memcpy"] * 5 + ["G elements/s", "us"]


def test_kernels_alone(capsys):
    assert main(["bench", "--kernels", "--seconds", "0"]) == 0
    printed = capsys.readouterr()
    assert "kernels at 1Mi" in printed.out and "ns/element" not in printed.out
    assert "numpy" not in printed.out
    assert printed.err == ""  # no progress unless on a terminal


def test_without_peers_nothing_is_compared_with_them(capsys):
    assert main([*QUICK, "--peer", "none", "--dtype", "float64", "--threads", "2"]) == 0
    printed = capsys.readouterr().out
    assert "2 threads, p=0.1, float64" in printed and "numpy" not in printed
    row = re.search(r"^ *64 cdropout +\|(.*)\|(.*)$", printed, re.MULTILINE)
    assert row[1].split()[3] == row[2].split()[3] == "-"
    assert cd.get_num_threads() == 2


@pytest.mark.parametrize(("share", "said"), [(0.6, True), (0.99, False)])
def test_busy_machine_is_said(capsys, monkeypatch, share, said):
    monkeypatch.setattr(bench, "cpu_share", lambda: lambda: share)
    assert main(["bench", "--kernels", "--seconds", "0"]) == 0
    line = "BUSY MACHINE: this process got only 60% of a CPU; long calls look slower than they are"
    assert (line in capsys.readouterr().out.splitlines()) is said


def test_progress_on_a_terminal(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    bench.show_progress("16Mi forward")
    assert terminal.getvalue() == "\r\x1b[K16Mi forward"


@pytest.mark.parametrize("isa", AVAILABLE)
def test_isa_is_used(capfd, isa):
    assert main(["bench", "--kernels", "--seconds", "0", "--peer", "none", "--isa", isa]) == 0
    printed = capfd.readouterr()
    assert f"kernels at 1Mi elements, {isa}, float32" in printed.out and printed.err == ""


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
    pytest.importorskip("matplotlib")
    path = tmp_path / "race.png"
    assert main([*QUICK, "--peer", "numpy", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_each_contestant_can_be_told_apart_without_colour():
    assert list(bench.STYLES) == ["memcpy", "cdropout", *peers.PEERS]
    looks = [(str(style["linestyle"]), style.get("marker")) for style in bench.STYLES.values()]
    lines, markers = zip(*looks[1:], strict=True)
    assert len(set(lines)) == len(set(markers)) == len(looks) - 1


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_installed_frameworks_pass_their_check(name):
    # In a process of its own: they start threads, set environment variables and print warnings.
    statement = (
        "from cdropout import peers; "
        f"print(*(peers.wrong(peers.PEERS[{name!r}](1, dtype), dtype, 0.1) for dtype in {DTYPES}))"
    )
    done = selftest.run_under(dispatch.isa, statement, capture_output=True, text=True)
    assert done.stdout == "None None\n", done.stderr


# ---- wrong options ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--p", "0", "expected a probability between 0 and 1, both excluded, but got '0'"),
        ("--p", "1", "expected a probability between 0 and 1, both excluded, but got '1'"),
        ("--p", "nan", "expected a probability between 0 and 1, both excluded, but got 'nan'"),
        ("--p", "half", "expected a probability between 0 and 1, both excluded, but got 'half'"),
        ("--threads", "0", "expected an int of at least 1, but got '0'"),
        ("--threads", "1.5", "expected an int of at least 1, but got '1.5'"),
        ("--seconds", "-1", "expected a number of seconds of at least 0, but got '-1'"),
        ("--seconds", "inf", "expected a number of seconds of at least 0, but got 'inf'"),
        ("--sizes", "0", SIZES_WANTED + "'0'"),
        ("--sizes", "64,", SIZES_WANTED + "''"),
        ("--sizes", "1k", SIZES_WANTED + "'1k'"),
        ("--sizes", "1025Mi", SIZES_WANTED + "'1025Mi'"),
        ("--dtype", "int8", "invalid choice: 'int8'"),
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
    monkeypatch.setattr(peers, "installed", lambda: ["numpy"])
    assert "argument --peer: jax is not installed" in refusal(capsys, "bench", "--peer", "jax")


def test_none_excludes_other_peers(capsys):
    line = refusal(capsys, "bench", "--peer", "none", "--peer", "numpy")
    assert "argument --peer: none excludes other peers" in line


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

    monkeypatch.setattr(bench, "race_at", arrays)
    line = refusal(capsys, *QUICK, "--peer", "none")
    assert line == "cdropout bench: error: not enough memory for 1Ki elements\n"


def test_command_is_required(capsys):
    assert refusal(capsys).startswith("cdropout: error: ")
    assert "invalid choice: 'race'" in refusal(capsys, "race")


# ---- the check of the contestants -------------------------------------------------------------


def numpy_contestant(drop):
    """A contestant that is right but for what `drop(x, keep, p)` makes of it."""
    random = np.random.default_rng(1)

    def prepare(arrays, p):
        def both():
            keep = random.random(arrays.x.shape) >= p
            return drop(arrays.x, keep, p), drop(arrays.gy, keep, p)

        return lambda: both()[0], both

    return peers.Contestant("fake", "1", prepare)


def scaled(x, keep, p):
    return x * keep * x.dtype.type(1 / (1 - p))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.999, 1 - 1e-12])
def test_right_contestants_pass(dtype, p):
    assert peers.wrong(numpy_contestant(scaled), dtype, p) is None
    assert peers.wrong(peers.cdropout(1, dtype), dtype, p) is None
    assert peers.wrong(peers.numpy_peer(), dtype, p) is None


def coarse(steps):
    """The dropout of one whose uniform numbers have few values, as those of bfloat16 do."""
    random = np.random.default_rng(2)

    def drop(x, keep, p):
        return scaled(x, np.floor(random.random(x.shape) * steps) / steps >= p, p)

    return drop


@pytest.mark.parametrize(
    ("drop", "reason"),
    [
        (coarse(16), r"forward kept \d+ of 262144 elements, but 235930 \+- 832 are right"),
        (lambda x, keep, p: x * keep, r"forward does not scale kept elements by 1/\(1 - p\)"),
        (lambda x, keep, p: scaled(x, keep, p) + np.float32(0.1) * ~keep, "kept 262144 of"),
        (lambda x, keep, p: scaled(x, keep, p).astype("f8"), "forward returned float64 of shape"),
        (lambda x, keep, p: scaled(x, np.roll(keep, int(x[96])), p), "the gradient is not that"),
        (lambda x, keep, p: scaled(x, np.arange(x.size) * 7919 % 1000 >= 100, p), "the same mask"),
    ],
)
def test_wrong_contestants_are_named(drop, reason):
    assert re.search(reason, peers.wrong(numpy_contestant(drop), "float32", 0.1))


def test_wrong_contestant_is_left_out_with_its_reason(capsys, monkeypatch):
    unscaled = numpy_contestant(lambda x, keep, p: x * keep)
    monkeypatch.setitem(peers.PEERS, "numpy", lambda *_: unscaled)
    assert main([*QUICK, "--peer", "numpy"]) == 0
    printed = capsys.readouterr().out
    assert "left out: numpy: forward does not scale kept elements by 1/(1 - p) at p=0.1" in printed
    assert not re.search(r"^ *64 numpy", printed, re.MULTILINE)


def test_contestant_that_raises_is_left_out(capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("no\nsuch device")

    monkeypatch.setitem(peers.PEERS, "numpy", broken)
    assert main([*QUICK, "--peer", "numpy"]) == 0
    assert "left out: numpy: RuntimeError: no such device\n" in capsys.readouterr().out


def test_a_wrong_cdropout_fails_the_command(capsys, monkeypatch):
    monkeypatch.setattr(peers, "cdropout", lambda *_: numpy_contestant(lambda x, keep, p: x))
    assert main([*QUICK, "--peer", "none"]) == 1
    assert "left out: cdropout: forward kept 262144 of" in capsys.readouterr().out


def test_contestant_that_takes_more_threads_is_named(capsys, monkeypatch):
    monkeypatch.setattr(peers, "cpus_used", lambda *_: 1.9)
    assert main([*QUICK, "--peer", "none"]) == 0
    assert "not held to the threads: cdropout kept 1.9 CPUs busy" in capsys.readouterr().out


@pytest.mark.parametrize("p", [0.5, 0.1, 0.001])
def test_keep_bound_is_near_its_risk(p):
    n = 3000
    ways = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    chance = [math.exp(w + k * math.log(p) + (n - k) * math.log1p(-p)) for k, w in enumerate(ways)]
    assert sum(chance) == pytest.approx(1)
    bound = selftest.keep_bound(n, p)
    outside = sum(each for k, each in enumerate(chance) if abs(k - n * p) > bound)
    assert 1e-12 < outside < selftest.FALSE_ALARM
