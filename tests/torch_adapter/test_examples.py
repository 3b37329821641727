"""Tests that the PyTorch examples run, and that the checks in these examples detect errors."""

import contextlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ..helpers.requirements import find_or_skip, import_or_skip

torch = import_or_skip("torch")
EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    """Import an example and return the module."""
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run(name, *arguments, folder):
    """Run an example in a new process and return its output."""
    command = [sys.executable, "-W", "error", EXAMPLES / f"{name}.py", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def transformer():
    """Yield the module examples/transformer.py while PyTorch is limited to one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load("transformer")
    torch.set_num_threads(threads)


# ---- speed --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_torch_speed_prints_all_rows(tmp_path):
    output = run("torch_speed", "--runs", "1", folder=tmp_path)
    rows = re.findall(r"^(forward.*?) +(\(\d+, \d+\)) +(.*)$", output, re.MULTILINE)
    steps = ["forward", "forward and backward"]
    assert [row[:2] for row in rows] == [(s, f"({n}, {n})") for n in (8, 1024) for s in steps]
    for *_, numbers in rows:
        theirs, ours, ratio, low, high = map(float, re.findall(r"\d+\.\d+", numbers))
        assert low == ratio == high and ratio == pytest.approx(theirs / ours, rel=0.01)


# ---- the transformer ----------------------------------------------------------------------------


@pytest.mark.slow
def test_transformer_prints_times_bytes_and_losses(tmp_path):
    find_or_skip("matplotlib")
    output = run("transformer", "--quick", "--threads", "1", "--steps", "5", folder=tmp_path)
    for title in ("Transformer, 2 layers", "Convolutions with Dropout2d"):
        table = output.partition(title)[2].partition("\n\n")[0]
        rows = {
            dropout: [float(number) for number in re.findall(r"\d+\.\d+", row)]
            for dropout, row in re.findall(
                r"^(PyTorch's dropout|cdropout|no dropout)(.*)$", table, re.M
            )
        }
        assert all(len(numbers) == 7 for numbers in rows.values())
        assert all(low <= middle <= high for middle, low, high, *_ in rows.values())
        assert rows["no dropout"][3:6] == [1, 1, 1]
        assert rows["PyTorch's dropout"][6] >= rows["cdropout"][6] > rows["no dropout"][6]
    assert re.search(r"^cdropout - PyTorch +-?\d\.\d{4} \+- \d\.\d{4} ", output, re.MULTILINE)
    header = (tmp_path / "transformer.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert np.frombuffer(header[16:], ">u4").tolist() == [810, 1170]


@pytest.fixture
def size(transformer):
    return transformer.Size(batch=4, length=8, width=16, layers=2)


def saved_bytes(transformer, size):
    runs, batch = transformer.train(transformer.Transformer, size, 0.1, seed=0, steps=1)
    return [run.bytes_for_backward(*batch) for run in runs]


def test_cdropout_saves_no_mask_for_backward(transformer, size):
    theirs, ours, none = saved_bytes(transformer, size)
    units = size.batch * size.length * size.width
    attention = size.batch * transformer.HEADS * size.length**2
    assert theirs - ours == 4 * size.layers * (attention + units + 4 * units + units)
    assert none < ours


def test_saved_bytes_are_equal_without_accelerate(transformer, size, monkeypatch):
    monkeypatch.setattr(transformer.cdropout.torch, "accelerate", contextlib.nullcontext)
    theirs, ours, _none = saved_bytes(transformer, size)
    assert theirs == ours


def test_runs_at_p_0_have_equal_losses(transformer, size):
    runs, _batch = transformer.train(transformer.Transformer, size, 0.0, seed=0, steps=3)
    assert runs[0].losses == runs[1].losses == runs[2].losses


def test_each_step_draws_a_new_mask(transformer, size):
    runs, batch = transformer.train(transformer.Transformer, size, 0.5, seed=0, steps=1)
    losses = [[run.loss(*batch).item() for _ in range(2)] for run in runs]
    assert losses[0][0] != losses[0][1] and losses[1][0] != losses[1][1]
    assert losses[2][0] == losses[2][1]


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("Transformer", (8, 8, 32, 1)),
        pytest.param("Convolutions", (16, 16, 16), marks=pytest.mark.slow),
    ],
)
def test_losses_with_cdropout_and_pytorch_dropout_are_similar(transformer, model, size):
    size = transformer.Size(*size)
    runs, _batch = transformer.train(getattr(transformer, model), size, 0.1, seed=0, steps=100)
    losses = np.array([run.losses for run in runs])
    assert np.all(losses[:, -10:].mean(axis=1) < 0.4 * losses[:, 0])
    theirs, ours, none = losses.mean(axis=1)
    assert abs(ours - theirs) < 0.2 * theirs
    assert none < min(ours, theirs)


@pytest.mark.parametrize("option", [("--seeds", "1"), ("--steps", "1"), ("--p", "1")])
def test_transformer_exits_for_invalid_options(transformer, option, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["transformer.py", *option])
    with pytest.raises(SystemExit, match="2"):
        transformer.main()
    assert (
        "needs at least 2 seeds, 2 steps and 1 thread, and p in [0, 1)" in capsys.readouterr().err
    )


# ---- attention ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_attention_prints_times_and_memory(tmp_path):
    find_or_skip("matplotlib")
    output = run("attention", "--quick", "--threads", "1", "--runs", "3", folder=tmp_path)
    rows = re.findall(r"^ +(\d+) +2  (no dropout|PyTorch's dropout|cdropout) (.*)$", output, re.M)
    assert [row[0] for row in rows] == ["32"] * 3 + ["64"] * 3
    for _length, kind, numbers in rows:
        ms, ratio, low, high, _mib = map(float, re.findall(r"\d+\.\d+", numbers))
        assert ms > 0 and low <= ratio <= high
        assert kind != "no dropout" or low == high == 1
    assert (tmp_path / "attention.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_attention_skips_what_does_not_fit():
    attention = load("attention")
    weights = 4 * attention.HEADS * 1024**2  # bytes of one sample
    least = attention.COPIES * weights / attention.MEMORY_FRACTION
    assert [attention.batch_for(1024, 2, memory) for memory in (2 * least, least)] == [2, 1]
    assert attention.skip_reason(attention.THEIRS, 1, 1024, least - 1) == "needs about 0 GiB"
    assert not attention.skip_reason(attention.THEIRS, 1, 1024, least)
    assert not attention.skip_reason(attention.OURS, 1, 1024, 1)


def test_attention_kinds_apply_dropout():
    attention = load("attention")
    results = {}
    for kind in attention.KINDS:
        torch.manual_seed(1)
        results[kind] = attention.Attention(kind, 1, 16, 0.5, causal=True).run()
    none, theirs, ours = results.values()
    assert [t.shape for t in ours] == [t.shape for t in none] == [t.shape for t in theirs]
    assert not torch.equal(ours[0], none[0]) and not torch.equal(theirs[0], none[0])


@pytest.mark.parametrize("option", [("--runs", "1"), ("--p", "0"), ("--lengths", "0")])
def test_attention_exits_for_invalid_options(option, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["attention.py", *option])
    with pytest.raises(SystemExit, match="2"):
        load("attention").main()
    assert "needs at least 2 runs, 1 thread and 1 position" in capsys.readouterr().err


# ---- two processes ------------------------------------------------------------------------------


@pytest.mark.slow
def test_torch_distributed_prints_losses_and_agreements(tmp_path):
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("requires a PyTorch with gloo")
    output = run("torch_distributed", folder=tmp_path)
    assert "forward and backward are identical to one process" in output
    assert "A DTensor: the gathered result is identical to one process" in output
    for name in "DDP", "FSDP":
        losses = re.search(rf"{name}: the loss fell from ([\d.]+) to ([\d.]+)", output).groups()
        assert float(losses[1]) < 0.2 * float(losses[0])
    assert output.count("weights equal on all ranks: True") == 2
    by_chance, seeded = map(float, re.findall(r"in ([\d.]+)%", output))
    assert abs(by_chance - 50) < 0.8 + 0.05  # 5 standard deviations and the rounding error
    assert seeded == 100


def collect_parts(distributed, monkeypatch):
    """Let `gather` append its argument to a list, so that one process can run all ranks in turn.

    Return the list.
    """
    parts = []

    def gather(part):
        parts.append(part)
        return parts

    monkeypatch.setattr(distributed, "gather", gather)
    return parts


def test_windows_of_all_ranks_make_up_the_single_process_result(monkeypatch, capsys):
    distributed = load("torch_distributed")
    size = distributed.SHAPE[0] // distributed.RANKS
    parts = collect_parts(distributed, monkeypatch)
    parts.append(distributed.forward_and_backward(slice(0, size)))
    distributed.share_one_mask(rank=1)
    assert parts[0].count_nonzero() < 0.92 * parts[0].numel()  # p = 0.1
    kept = parts[0] != 0
    assert torch.equal(kept[0], kept[1])


def test_different_mask_on_one_rank_is_detected(monkeypatch):
    distributed = load("torch_distributed")
    size = distributed.SHAPE[0] // distributed.RANKS
    parts = collect_parts(distributed, monkeypatch)
    with monkeypatch.context() as other:
        other.setattr(
            distributed, "MASK", distributed.cdropout.Mask(distributed.SHAPE, 0.1, seed=1)
        )
        parts.append(distributed.forward_and_backward(slice(0, size)))
    with pytest.raises(AssertionError, match="windows do not make up the single-process result"):
        distributed.share_one_mask(rank=1)
