"""The command line: `cdropout bench`, `cdropout info`, `cdropout selftest`, `cdropout stream`."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar

import numpy as np

import cdropout as cd
from cdropout import selftest, stream_command
from cdropout._core import dispatch
from cdropout._core.dtypes import FLOATS
from cdropout.bench import command, compare, growth, machine, peers
from cdropout.bench.race import size_name

SIZES = "64,1Ki,16Ki,256Ki,1Mi,16Mi"
LARGEST = 1 << 30  # elements: gigabytes in each of some twenty arrays
SUFFIXES = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
PICTURES = (".png", ".pdf", ".svg")
CLOSED_PIPE = 128 + 13  # the exit code of a program that the signal SIGPIPE ends
Number = TypeVar("Number", int, float)
Error: TypeAlias = Callable[[str], NoReturn]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


# ---- values of options ------------------------------------------------------------------------


def number(
    text: str, kind: Callable[[str], Number], good: Callable[[Number], bool], expected: str
) -> Number:
    """text as a number of this kind for which `good` holds; else an error with both sides."""
    try:
        value: Number | None = kind(text)
    except ValueError:
        value = None
    if value is None or not good(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, but got {text!r}")
    return value


def probability(text: str) -> float:
    """p; at 0 and 1 nothing is drawn, so there is nothing to race."""
    return number(text, float, lambda p: 0 < p < 1, "a probability between 0 and 1, both excluded")


def stream_probability(text: str) -> float:
    """p of `cdropout stream`, which finds too few fair bits next to 0 and 1."""
    low, high = stream_command.LOWEST_P, 1 - stream_command.LOWEST_P
    return number(text, float, lambda p: low <= p <= high, f"a probability from {low} to {high}")


def count(text: str) -> int:
    """A number of threads, of runs or of bytes."""
    return number(text, int, lambda n: n >= 1, "an int of at least 1")


def duration(text: str) -> float:
    """A time in seconds."""
    return number(text, float, lambda s: 0 <= s < math.inf, "a number of seconds of at least 0")


def seed_number(text: str) -> int:
    """A seed."""
    return number(text, int, lambda n: -(2**63) <= n < 2**64, "an int in [-2**63, 2**64)")


def call_number(text: str) -> int:
    """A call number."""
    return number(text, int, lambda n: 0 <= n < 2**64, "an int in [0, 2**64)")


def size(text: str) -> int:
    """A number of elements: 1000, 16Ki, 1Mi."""
    match = re.fullmatch(r"([0-9]+)(|Ki|Mi|Gi)", text.strip())
    value = int(match[1]) * SUFFIXES[match[2]] if match else 0
    if not 1 <= value <= LARGEST:
        expected = "sizes from 1 to 1Gi such as 64,1Ki,1Mi"
        raise argparse.ArgumentTypeError(f"expected {expected}, but got {text!r}")
    return value


def sizes(text: str) -> list[int]:
    """Numbers of elements, in rising order."""
    return sorted({size(part) for part in text.split(",")})


def dtypes(text: str) -> list[str]:
    """Names of types, in the order of FLOATS."""
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in FLOATS:
            expected = f"types out of {', '.join(FLOATS)}"
            raise argparse.ArgumentTypeError(f"expected {expected}, but got {name!r}")
    return [name for name in FLOATS if name in names]


def new_file(text: str) -> Path:
    """Return a path that can be written, which is checked now and not after the race."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        expected = "a file in a folder that exists"
        raise argparse.ArgumentTypeError(f"expected {expected}, but got {text!r}")
    exists = path.exists()
    try:
        path.open("ab").close()  # permissions alone do not tell; what is in the file stays
        if not exists:
            path.unlink()
    except OSError as problem:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {problem.strerror}") from None
    return path


def picture(text: str) -> Path:
    """A path with a suffix that can be drawn."""
    path = new_file(text)
    if path.suffix.lower() not in PICTURES:
        expected = f"a name that ends in {', '.join(PICTURES)}"
        raise argparse.ArgumentTypeError(f"expected {expected}, but got {text!r}")
    return path


# ---- the commands -----------------------------------------------------------------------------


def chosen_peers(options: argparse.Namespace, error: Error) -> list[str]:
    """The names of the peers to race: all libraries that are installed, unless some were named."""
    installed = peers.installed()
    named = options.peer or []
    if options.kernels or options.growth:
        return []
    for alone in "none", "all":
        if alone in named and len(named) > 1:
            error(f"argument --peer: {alone} excludes other peers")
    if not named:
        return [name for name in installed if not peers.is_variant(name)]
    if named in (["none"], ["all"]):
        return installed if named == ["all"] else []
    for name in named:
        if package := peers.missing(name):
            error(f"argument --peer: {name} cannot take part: {package} is not installed")
    return [name for name in peers.PEERS if name in named]


def check_bench(options: argparse.Namespace, error: Error) -> None:
    """Refuse what cannot work before anything is raced, and fill in what was not given."""
    options.peers = chosen_peers(options, error)
    options.threads = options.threads or (2 if options.growth else 1)
    options.sizes = options.sizes or (growth.SIZES if options.growth else sizes(SIZES))
    if options.growth:
        for name in "kernels", "cold", "compare", "plot", "peer", "runs":
            if getattr(options, name):
                error(f"argument --growth: it excludes --{name}")
    if options.plot and find_spec("matplotlib") is None:
        error("argument --plot: this needs matplotlib: pip install 'cdropout[bench]'")
    if options.plot and options.kernels:
        error("argument --plot: --kernels leaves nothing to draw")
    missing = [name for name in options.dtype if not hasattr(np, name)]
    if missing and find_spec("ml_dtypes") is None:
        error(f"argument --dtype: {missing[0]} needs ml_dtypes: pip install 'cdropout[bench]'")
    if options.compare:
        try:
            options.compare = compare.load(options.compare, options)
        except ValueError as problem:
            error(f"argument --compare: {problem}")
        options.runs = options.runs or compare.RUNS
        if options.runs < compare.RUNS:
            error(f"argument --compare: it needs --runs of at least {compare.RUNS}")
    options.runs = options.runs or 1


def run_bench(options: argparse.Namespace, error: Error, arguments: list[str]) -> int:
    """Race, in a new process if another instruction set is wanted: it is chosen at import."""
    check_bench(options, error)
    try:
        wanted = dispatch.choose(options.isa or dispatch.isa, dispatch.built(), dispatch.runnable())
    except ValueError as problem:
        error(f"argument --isa: {problem}")
    if wanted != dispatch.isa:
        statement = f"from cdropout.__main__ import main; sys.exit(main({arguments!r}))"
        return selftest.run_under(wanted, statement).returncode
    try:
        return growth.run(options) if options.growth else command.run(options)
    except MemoryError:
        error(f"not enough memory for {size_name(options.sizes[-1])} elements")
    except subprocess.CalledProcessError as problem:
        error(f"the process of a run ended with code {problem.returncode}")


def run_info(options: argparse.Namespace, *_: object) -> int:
    """Print what was built and what is used; with --include, only the folder of cdropout.h."""
    if options.include:
        print(cd.get_include())
        return 0
    lines = {
        "cdropout": version("cdropout"),
        "built for": dispatch.describe(dispatch.built(), dispatch.vectors),
        "built by": dispatch.compiler,
        "this CPU runs": ", ".join(dispatch.runnable()),
        "in use": dispatch.isa,
        "threads": cd.get_num_threads(),
        "include folder": cd.get_include(),
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "CPU": machine.cpu_name(),
    }
    if advice := machine.advice():
        lines["to be faster"] = advice
    for name, value in lines.items():
        print(f"{name + ':':15} {value}")
    return 0


def run_selftest(*_: object) -> int:
    """Prove that every instruction set is right here."""
    return selftest.run()


def add_bench(commands: Any) -> None:
    """Add the command bench with its options."""
    parser = commands.add_parser(
        "bench",
        help="race NumPy's dropout, and that of installed frameworks, against this package",
        description="Check every contestant, then time dropout, forward and forward+backward, "
        "beside memcpy.",
    )
    add = parser.add_argument
    names, kinds = [*peers.PEERS, "all", "none"], f"out of {','.join(FLOATS)} (default float32)"
    add("--sizes", type=sizes, metavar="N,N", help=f"elements (default {SIZES})")
    add("--p", type=probability, default=0.1, help="probability of a drop (default 0.1)")
    add("--dtype", type=dtypes, default=["float32"], metavar="TYPE,TYPE", help=kinds)
    isas = dispatch.INSTRUCTION_SETS
    add("--isa", type=str.lower, choices=isas, help="default: CDROPOUT_ISA, or the widest")
    add("--threads", type=count, metavar="N", help="of each contestant (default 1)")
    add(
        "--peer",
        action="append",
        choices=names,
        help="only this; repeatable (default: one way "
        "to call each library; all: the other ways too, which take longer)",
    )
    add("--cold", action="store_true", help="empty the cache before each call")
    add("--kernels", action="store_true", help="only the section on the kernels")
    add(
        "--growth",
        action="store_true",
        help="instead of a race: time and peak memory from 64 to "
        "1Gi elements, with 1 thread and with N (default 2)",
    )
    add("--seconds", type=duration, default=0.3, help="for each number printed (default 0.3)")
    add("--runs", type=count, metavar="N", help="in a process each (default 1, to compare 5)")
    add("--json", type=new_file, metavar="FILE", help="write all numbers to a file")
    add("--plot", type=picture, metavar="FILE.png", help="draw the table (needs matplotlib)")
    add("--compare", metavar="OLD.json", help="say what became slower since --json wrote that")
    parser.set_defaults(run=run_bench, error=parser.error)


def run_stream(options: argparse.Namespace, error: Error, _: object) -> int:
    """Write mask bits to standard output."""
    return stream_command.run(options, error)


def add_stream(commands: Any) -> None:
    """Add the command stream with its options."""
    parser = commands.add_parser(
        "stream",
        help="write mask bits to standard output, for batteries of statistical tests",
        description="Write keep bits without end, least significant bit of a byte first: those "
        "of p = 1/2 as drawn, those of another p made fair by an exact extractor (Peres 1992).",
        epilog=stream_command.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seed", type=seed_number, default=0, metavar="S", help="of the mask (default 0)")
    add("--call", type=call_number, default=0, metavar="C", help="of the mask (default 0)")
    add("--p", type=stream_probability, default=0.5, help="probability of a drop (default 0.5)")
    add(
        "--order",
        choices=stream_command.ORDERS,
        default="natural",
        help="see below (default natural)",
    )
    add("--bytes", type=count, metavar="N", help="end after so many (default: never)")
    parser.set_defaults(run=run_stream, error=parser.error)


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="cdropout", description="Dropout on the CPU at the speed of memory.")
    parser.add_argument("--version", action="version", version=f"cdropout {version('cdropout')}")
    commands = parser.add_subparsers(metavar="command", required=True)
    add_bench(commands)
    info = commands.add_parser("info", help="print version, instruction sets, threads and folders")
    info.add_argument("--include", action="store_true", help="print only the folder of cdropout.h")
    info.set_defaults(run=run_info, error=info.error)
    check = commands.add_parser("selftest", help="prove that every instruction set is right here")
    check.set_defaults(run=run_selftest, error=check.error)
    add_stream(commands)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : list of str, optional
        By default those of the process.

    Returns
    -------
    int
        The exit code: 1 after a failure, 130 after Ctrl-C, 141 if the reader of standard output
        has closed the pipe. A wrong option exits with 2 at once.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        try:
            options = make_parser().parse_args(arguments)
            return int(options.run(options, options.error, arguments))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here and not at exit, so that an error is reported here
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        discard_output()
        return CLOSED_PIPE
    except OSError as problem:
        print(f"cdropout: error: {problem}", file=sys.stderr)
        discard_output()
        return 1


def discard_output() -> None:
    """Send what has not been written to the null device: the flush at exit would fail again."""
    with contextlib.suppress(OSError, ValueError):  # standard output is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
