"""Tests of the output and the exit codes of cdropout.bench."""

import contextlib
import io
import json
import re

import numpy as np
import pytest

import cdropout as cd
from cdropout.__main__ import main
from cdropout._core import dispatch
from cdropout.bench import check, peers, timing

from ..helpers.requirements import ISAS, import_or_skip

pytestmark = pytest.mark.usefixtures("quick_bench")
QUICK = ["bench", "--sizes", "64,1Ki", "--seconds", "0"]


@pytest.fixture(scope="module")
def output(tmp_path_factory, quick_bench):
    """Return the standard output and the JSON of a short run with NumPy as a peer."""
    path = tmp_path_factory.mktemp("bench") / "numbers.json"
    with (
        contextlib.redirect_stdout(io.StringIO()) as printed,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("COLUMNS", "1000")
        assert main([*QUICK, "--peer", "numpy", "--p", "0.25", "--json", str(path)]) == 0
    return printed.getvalue(), json.loads(path.read_text())


def test_heading_contains_versions_and_settings(output):
    first, second, *rest = output[0].splitlines()[:4]
    third = rest[1 if timing.advice() else 0]
    isa = dispatch.describe([dispatch.isa], dispatch.vectors)
    assert first == f"cdropout {cd.__version__}, {isa}, 1 thread, p=0.25, float32"
    assert timing.cpu_name() in second and f"NumPy {np.__version__}" in second
    assert second.endswith(f"; built by {dispatch.compiler}")
    ours = f"cdropout {cd.__version__}, cdropout-new {cd.__version__}"
    checks = "the scale, the gradient, and the keep rate"
    risk = "(at most 1 of 1,000,000 checks of a correct library fails)"
    assert third == f"Checked on 262,144 elements: {checks} {risk}: {ours}, numpy {np.__version__}."


def test_table_has_a_row_per_size_and_implementation(output):
    rows = re.findall(r"^ *(64|1Ki) ([\w-]+) +\|(.*)\|(.*)$", output[0], re.MULTILINE)
    names = [*peers.copies(1), "cdropout", "cdropout-new", "numpy"]
    assert [row[:2] for row in rows] == [(size, name) for size in ("64", "1Ki") for name in names]
    heading = "ns/element GB/s /memcpy speedup"
    assert f"size | {heading} | {heading}" in " ".join(output[0].split())
    for _, name, forward, both in rows:
        forward, both = forward.split(), both.split()
        assert len(forward) == len(both) == 4
        assert all(float(number.removesuffix("x")) > 0 for number in forward + both)
        if name == "memcpy":
            assert forward[2] == both[2] == "1.00"
        if name == "cdropout":
            assert forward[3] == both[3] == "1.0x"


def test_json_contains_the_numbers_of_the_table(output):
    printed, results = output
    about = results["environment"]
    assert (about["p"], about["dtype"], about["threads"]) == (0.25, "float32", 1)
    assert (about["isa"], about["cpu"]) == (dispatch.isa, timing.cpu_name())
    assert (about["vectors"], about["compiler"]) == (dispatch.vectors, dispatch.compiler)
    ours = dict.fromkeys(["cdropout", "cdropout-new"], cd.__version__)
    assert results["implementations"] == {**ours, "numpy": np.__version__}
    assert results["left_out"] == {}
    assert len(results["measurements"]) == 2 * 2 * (3 + len(peers.copies(1)))
    for each in results["measurements"]:
        nbytes = {"forward": 8, "forward+backward": 16}[each["mode"]]  # bytes per element
        assert each["gb_per_s"] == pytest.approx(nbytes / each["ns_per_element"])
        low, high = each["ns_quartiles"]
        assert low <= each["ns_per_element"] <= high
        assert each["rounds"] == timing.MIN_ROUNDS and each["calls_per_batch"] >= 1
        assert f"{each['ns_per_element']:10.3f} {each['gb_per_s']:8.2f}" in printed


def test_bench_without_peers_compares_only_with_memcpy(capsys):
    assert main([*QUICK, "--peer", "none", "--dtype", "float64", "--threads", "2"]) == 0
    printed = capsys.readouterr()
    assert "2 threads, p=0.1, float64" in printed.out and "numpy" not in printed.out
    verdict = " ".join(printed.out.split("\n\n")[-1].split())
    sizes = re.findall(r"([\w+]+) on (\w+) elements of float64: cdropout ", verdict)
    assert sizes == [("Forward", "64"), ("Forward", "1Ki"), ("Forward+backward", "1Ki")]
    assert verdict.count("a memcpy.") == 3 and "pip install" not in printed.out
    assert cd.get_num_threads() == 2
    assert printed.err == ""  # progress is shown only in a terminal


@pytest.mark.parametrize("peer", [[], ["--peer", "all"]])
def test_bench_names_the_extras_of_missing_libraries(capsys, monkeypatch, peer):
    monkeypatch.setattr(peers, "find_spec", lambda package: package == "numpy")
    monkeypatch.setattr(peers, "is_variant", lambda name: name != "numpy")
    monkeypatch.setattr(peers, "PEERS", {"numpy": peers.PEERS["numpy"]})
    assert main([*QUICK, *peer]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Not compared, because not installed: PyTorch, TensorFlow, JAX, Keras." in printed
    assert "run: pip install 'cdropout[torch,tensorflow,jax,keras]'" in printed


def test_bench_prints_the_complete_sizes_after_ctrl_c(capsys, monkeypatch, tmp_path):
    measure_size, path = timing.measure_size, tmp_path / "numbers.json"

    def interrupted(size, *arguments):
        for each in measure_size(size, *arguments):
            if (each.size, each.mode) == (1024, "forward+backward"):
                raise KeyboardInterrupt
            yield each

    monkeypatch.setattr(timing, "measure_size", interrupted)
    assert main([*QUICK, "--peer", "none", "--json", str(path)]) == 130
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "Interrupted: the sizes that were not complete are missing."
    assert any(line.startswith("    64 cdropout ") for line in lines)
    assert not any(line.startswith("   1Ki ") for line in lines)
    assert any(line.startswith("Forward on 64 elements of float32: cdropout ") for line in lines)
    results = json.loads(path.read_text())
    assert results["interrupted"] and {each["size"] for each in results["measurements"]} == {64}


def test_bench_after_ctrl_c_during_a_check_prints_only_the_heading(capsys, monkeypatch, tmp_path):
    import_or_skip("matplotlib")

    def find_error(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "find_error", find_error)
    path = tmp_path / "chart.png"
    assert main([*QUICK, "--peer", "none", "--plot", str(path)]) == 130
    printed = capsys.readouterr().out
    assert printed.startswith("cdropout ") and printed.splitlines()[-1].startswith("Interrupted: ")
    assert "ns/element" not in printed and not path.exists()


def test_bench_prints_a_table_per_dtype(capsys, monkeypatch):
    monkeypatch.setattr(timing, "cache_filler", lambda: np.ones(64, np.uint8))
    arguments = ["--sizes", "64", "--seconds", "0", "--peer", "none"]
    assert main(["bench", *arguments, "--dtype", "float16,bfloat16", "--cold"]) == 0
    printed = capsys.readouterr().out
    assert "p=0.1, float16, bfloat16, cold" in printed.splitlines()[0]
    assert "Cold: the cache was emptied before each call" in printed
    assert re.findall(r"^(\w+) +\| +forward$", printed, re.MULTILINE) == ["float16", "bfloat16"]
    assert len(re.findall(r"^ *64 cdropout-new ", printed, re.MULTILINE)) == 4


def test_bench_with_plot_writes_an_image(tmp_path):
    import_or_skip("matplotlib")
    path = tmp_path / "chart.png"
    assert main([*QUICK, "--peer", "numpy", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_bench_uses_the_given_isa(capfd, isa):
    assert main([*QUICK, "--peer", "none", "--isa", isa]) == 0
    printed = capfd.readouterr()
    assert f", {isa}" in printed.out.splitlines()[0] and printed.err == ""


# ---- implementations that are left out --------------------------------------------------------


def test_bench_leaves_out_a_wrong_implementation(capsys, monkeypatch, fake):
    unscaled = fake(lambda x, keep, p: x * keep)
    monkeypatch.setitem(peers.PEERS, "numpy", lambda *_: unscaled)
    assert main([*QUICK, "--peer", "numpy"]) == 0
    printed = capsys.readouterr().out
    error = "forward does not scale kept elements by 1/(1 - p) at p=0.1"
    assert f"Left out: numpy: float32: {error}. " in " ".join(printed.split())
    assert not re.search(r"^ *64 numpy", printed, re.MULTILINE)


def test_bench_leaves_out_an_implementation_that_raises(capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("no\nsuch device")

    monkeypatch.setitem(peers.PEERS, "numpy", broken)
    assert main([*QUICK, "--peer", "numpy"]) == 0
    assert "Left out: numpy: float32: RuntimeError: no such device.\n" in capsys.readouterr().out


def test_bench_fails_if_cdropout_is_wrong(capsys, monkeypatch, fake):
    wrong = fake(lambda x, keep, p: x)
    monkeypatch.setitem(peers.OURS, "cdropout", lambda *_: wrong)
    assert main([*QUICK, "--peer", "none"]) == 1
    printed = capsys.readouterr().out
    assert "Left out: cdropout: float32: forward kept 262144 of" in printed
    assert printed.endswith(" of float32: cdropout failed its check.\n")
    rows = re.findall(r"^ *64 [\w-]+ .*$", printed, re.MULTILINE)
    assert rows and all(row.endswith(" -") for row in rows)


def test_bench_reports_an_implementation_that_uses_too_many_threads(capsys, monkeypatch):
    monkeypatch.setattr(check, "cpus_used", lambda *_: 1.9)
    assert main([*QUICK, "--peer", "none"]) == 0
    assert "More threads than requested: cdropout used 1.9 CPUs." in capsys.readouterr().out
