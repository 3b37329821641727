"""Tests of the choice of the instruction set."""

import os
import platform
import re
import sysconfig
from pathlib import Path

import pytest

from cdropout._core import dispatch

from ..helpers import kernel_tables as tables
from ..helpers.requirements import ISAS
from ..helpers.subprocess_runner import run

SETS = dispatch.INSTRUCTION_SETS
PRINT_ISA = """
import importlib
from cdropout._core import dispatch
module = importlib.import_module(dispatch.module_of(dispatch.isa))
print(dispatch.isa, dispatch.table is module.table)
"""


@pytest.mark.parametrize("isa", [*ISAS, ""])
def test_cdropout_isa_selects_the_instruction_set(isa):
    status, output, errors = run(PRINT_ISA, PYTHONWARNINGS="error", CDROPOUT_ISA=isa)
    widest = list(tables.tables())[-1]
    assert (status, errors) == (0, "")
    assert output.split() == [isa or widest, "True"]


@pytest.mark.parametrize(
    "wanted, built, message",
    [
        ("sse9", SETS, " has to be one of baseline, avx2, avx512, but got 'sse9'"),
        ("AVX3", SETS, " has to be one of baseline, avx2, avx512, but got 'AVX3'"),
        ("avx2", ("baseline",), "=avx2: cdropout was built without avx2; it has baseline"),
        ("avx512", SETS, "=avx512: this CPU cannot run avx512; it runs baseline, avx2"),
    ],
)
def test_choose_rejects_invalid_instruction_sets(wanted, built, message):
    with pytest.raises(ValueError, match=f"^CDROPOUT_ISA{message}$"):
        dispatch.choose(wanted, built, ("baseline", "avx2"))


@pytest.mark.parametrize("empty", [None, ""])
def test_choose_returns_the_widest_instruction_set_by_default(empty):
    assert dispatch.choose(empty, SETS, SETS) == "avx512"
    assert dispatch.choose(empty, SETS, ("baseline", "avx2")) == "avx2"
    assert dispatch.choose(empty, ("baseline", "avx512"), SETS) == "avx512"
    assert dispatch.choose(empty, ("baseline",), SETS) == "baseline"
    assert dispatch.choose("baseline", SETS, SETS) == "baseline"


def test_built_and_runnable_contain_the_baseline():
    assert "baseline" in dispatch.built() and "baseline" in dispatch.runnable()
    assert set(dispatch.built()) <= set(SETS) and set(dispatch.runnable()) <= set(SETS)


LEAF_1 = 1 << 12 | 7 << 27  # the bits FMA, OSXSAVE, AVX and F16C in ECX of CPUID leaf 1
HASWELL, SKYLAKE_X = 0x27AB, 0xD39FFFFB  # EBX of CPUID leaf 7 on these CPUs


@pytest.mark.parametrize(
    "leaf1, leaf7, xcr0, sets",
    [
        (0, 0, 0, SETS[:1]),  # not an x86 CPU
        (0x7FFAFBBF, HASWELL, 0x07, SETS[:2]),
        (0x7FFEFBFF, SKYLAKE_X, 0xE7, SETS),
        (LEAF_1, SKYLAKE_X, 0xE6, SETS),
        (LEAF_1, SKYLAKE_X, 0x07, SETS[:2]),  # XCR0 without AVX-512 state
        (LEAF_1, SKYLAKE_X, 0xC7, SETS[:2]),  # XCR0 without mask registers
        (LEAF_1, SKYLAKE_X, 0xE2, SETS[:1]),  # XCR0 without YMM
        (LEAF_1 & ~(1 << 12), SKYLAKE_X, 0xE7, SETS[:1]),  # no FMA
        (LEAF_1 & ~(1 << 27), SKYLAKE_X, 0, SETS[:1]),  # no OSXSAVE
        (LEAF_1 & ~(1 << 28), SKYLAKE_X, 0xE7, SETS[:1]),  # no AVX
        (LEAF_1 & ~(1 << 29), SKYLAKE_X, 0xE7, SETS[:1]),  # no F16C
        (LEAF_1, SKYLAKE_X & ~(1 << 5), 0xE7, SETS[:1]),  # no AVX2
        *((LEAF_1, SKYLAKE_X & ~(1 << bit), 0xE7, SETS[:2]) for bit in (16, 17, 30, 31)),
    ],
)
def test_supported_returns_the_sets_for_cpuid_and_xcr0(leaf1, leaf7, xcr0, sets):
    assert dispatch.supported(leaf1, leaf7, xcr0) == sets


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(),
    reason="needs the flags of an x86 CPU in /proc/cpuinfo",
)
def test_runnable_agrees_with_the_cpu_flags_of_linux():
    (line,) = set(re.findall(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    needs = {"baseline": set(), "avx2": {"avx2", "fma", "f16c"}}
    needs["avx512"] = needs["avx2"] | {"avx512f", "avx512dq", "avx512bw", "avx512vl"}
    assert dispatch.runnable() == tuple(isa for isa in SETS if needs[isa] <= set(line.split()))


@pytest.mark.parametrize(
    "isa, built, advice",
    [
        ("avx512", SETS, ""),
        ("avx2", SETS, "use avx512, which is built and runs on this CPU"),
        ("avx2", SETS[:2], "build avx512, which this CPU runs"),
    ],
)
def test_advise_recommends_a_wider_instruction_set(isa, built, advice):
    assert dispatch.advise(isa, built, SETS, True) == advice
    assert "build it with Clang" in dispatch.advise(isa, built, SETS, False)


def test_describe_lists_the_instruction_sets():
    assert dispatch.describe(SETS, True) == "baseline, avx2, avx512"
    portable = "baseline (portable: built without vector types)"
    assert dispatch.describe(SETS[:1], False) == portable


def test_compiler_contains_name_and_version():
    assert re.fullmatch(r"(GCC|Clang) \d+\.\d+\.\d+|MSVC \d+", dispatch.compiler)
    assert dispatch.vectors == (not dispatch.compiler.startswith("MSVC"))


BASELINE_ONLY = not dispatch.vectors or sysconfig.get_platform().endswith("universal2")


@pytest.mark.skipif(
    BASELINE_ONLY and "CIBUILDWHEEL" not in os.environ,
    reason="needs a build with vector types for one architecture",
)
def test_all_instruction_sets_are_built():
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    assert dispatch.vectors and dispatch.built() == (SETS if x86 else SETS[:1])
