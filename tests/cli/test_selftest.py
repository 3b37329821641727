"""`cdropout info` and `cdropout selftest`: what they print, and what they find wrong."""

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
from cdropout.bench import machine

AVAILABLE = [isa for isa in dispatch.built() if isa in dispatch.runnable()]


def test_info(capsys):
    assert main(["info"]) == 0
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    lines = {name: value.strip() for name, value in lines.items()}
    assert lines["cdropout"] == version("cdropout")
    assert lines["built for"] == dispatch.describe(dispatch.built(), dispatch.vectors)
    assert lines["built by"] == dispatch.compiler
    assert ("to be faster" in lines) == bool(machine.advice())
    assert lines["this CPU runs"] == ", ".join(dispatch.runnable())
    assert lines["in use"] == dispatch.isa
    assert lines["threads"] == str(cd.get_num_threads())
    assert lines["include folder"] == cd.get_include()
    assert lines["NumPy"] == np.__version__
    assert sys.version.startswith(lines["Python"])


def test_info_of_a_portable_build(capsys, monkeypatch):
    monkeypatch.setattr(dispatch, "vectors", False)
    monkeypatch.setattr(dispatch, "built", lambda: ("baseline",))
    monkeypatch.setattr(dispatch, "compiler", "MSVC 1944")
    assert main(["info"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "built for: baseline (portable: built without vector types)" in lines
    assert "built by: MSVC 1944" in lines
    advice = "build it with Clang or GCC, on Windows with clang-cl"
    assert f"to be faster: {advice}; the portable form is several times slower" in lines


def test_info_prints_the_include_folder_alone(capsys):
    assert main(["info", "--include"]) == 0
    assert capsys.readouterr().out == f"{cd.get_include()}\n"


def test_runs_as_a_module_and_is_not_imported_with_the_package():
    # -P: the checkout in the current folder is not what was installed.
    command = [sys.executable, "-P", "-m", "cdropout", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"cdropout {version('cdropout')}\n"
    statement = "import cdropout; print('cdropout.bench' in sys.modules)"
    done = selftest.run_under(dispatch.isa, statement, capture_output=True, text=True)
    assert done.stdout == "False\n"


# ---- selftest ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_selftest_passes_on_every_instruction_set(capsys):
    assert main(["selftest"]) == 0
    lines = capsys.readouterr().out.splitlines()
    count = len(json.loads(selftest.RECORDS.read_text()))
    assert [line.split(",")[0] for line in lines[: len(AVAILABLE)]] == [
        f"{isa}: right: {count} recorded masks" for isa in AVAILABLE
    ]


def test_selftest_names_the_first_wrong_record(capsys, tmp_path):
    records = json.loads(selftest.RECORDS.read_text())[:3]
    for record in records[1:]:
        record["sha256"] = "0" * 64
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records))
    assert selftest.run(path) == 1
    lines = capsys.readouterr().out.splitlines()
    p = float.fromhex(records[1]["p"])
    for isa, line in zip(AVAILABLE, lines, strict=False):
        assert line.startswith(f"{isa}: WRONG: Mask(({records[1]['n']},), p={p!r}, seed=")
        assert f"call={records[1]['call']}, start={records[1]['start']}) has the SHA-256 " in line
        assert line.endswith(f", but the record says {'0' * 64}")


def test_selftest_checks_what_is_applied(monkeypatch):
    assert selftest.wrong_apply(np.float32, 0.1, 1) is None
    backward = cd.dropout_backward
    for kind, name in (cd.Mask, "backward"), (np.ndarray, "backward from packed bits"):

        def wrong(x, mask, p=None, kind=kind):
            return backward(x, mask, p=p) * (2 if isinstance(mask, kind) else 1)

        monkeypatch.setattr(cd, "dropout_backward", wrong)
        message = selftest.wrong_apply(np.float32, 0.1, 1)
        assert message.startswith(f"{name} of float32 with Mask((100003,), p=0.1, seed=1, ")


def test_selftest_checks_the_keep_rate(monkeypatch):
    monkeypatch.setattr(selftest, "MANY", 10**6)
    monkeypatch.setattr(selftest, "PART", 10**5)
    assert selftest.wrong_keep_rate(0.1, 5) is None
    monkeypatch.setattr(selftest, "EACH_BYTE", selftest.EACH_BYTE[::-1])
    message = selftest.wrong_keep_rate(0.1, 5)
    assert message.startswith("Mask((1000000,), p=0.1, seed=5, call=0) keeps 100")
    assert re.search(r" elements, and 900000 \+- \d+ are right$", message)


def test_selftest_reports_a_process_that_dies(capsys, monkeypatch):
    def run_under(isa, statement, **_):
        return subprocess.CompletedProcess([], -4, stdout="", stderr="one\nIllegal instruction\n")

    monkeypatch.setattr(selftest, "run_under", run_under)
    assert selftest.run() == 1
    line = capsys.readouterr().out.splitlines()[0]
    assert line == f"{AVAILABLE[0]}: WRONG: the process ended with code -4: Illegal instruction"


def test_selftest_says_what_this_cpu_cannot_run(capsys, monkeypatch):
    monkeypatch.setattr(dispatch, "built", lambda: ("baseline", "avx512"))
    monkeypatch.setattr(dispatch, "runnable", lambda: ("baseline",))
    assert selftest.run() == 0
    assert capsys.readouterr().out.splitlines()[1] == "avx512: not checked: this CPU cannot run it"
