"""The command line: `cdropout bench`, `cdropout info`, `cdropout selftest`, `cdropout stream`."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar

import numpy as np

import cdropout as cd
from cdropout import bench, selftest, stream_command
from cdropout._core import dispatch
from cdropout._core.dtypes import FLOATS
from cdropout.bench import peers, timing

SIZES = "64,1Ki,16Ki,256Ki,1Mi,16Mi"
MAX_SIZE = 1 << 30  # elements; the benchmark makes about twenty arrays of this size, gigabytes each
UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
IMAGE_SUFFIXES = (".png", ".pdf", ".svg")
EXAMPLES = """\
Each command has its own options, which `cdropout bench --help` and so on print.

examples:
  cdropout bench
  cdropout info"""
BENCH_DESCRIPTION = """\
Compare the speed of dropout in cdropout, in NumPy and in the installed
frameworks. Each implementation is checked first; a wrong one is left out. Then
all of them, and copies of as many bytes, take turns. Ctrl-C ends the run and
prints the sizes that are complete. The last lines state the result in words."""
BENCH_EXAMPLES = """\
examples:
  cdropout bench
  cdropout bench --sizes 1Mi --peer numpy
  cdropout bench --dtype float16,bfloat16 --json numbers.json --plot chart.png"""
INFO_DESCRIPTION = """\
Print the version, the instruction sets that were built, that this CPU runs and
that is in use, the compiler, the number of threads, the folder of cdropout.h,
and the versions of Python and NumPy. Include this output in reports of errors."""
INFO_EXAMPLES = """\
examples:
  cdropout info
  cc -c "-I$(cdropout info --include)" program.c"""
MISSING_COMMAND = "give a command: bench, info, selftest or stream; see cdropout --help"
CLOSED_PIPE = 128 + 13  # exit code of a program that the signal SIGPIPE has ended
Number = TypeVar("Number", int, float)
Error: TypeAlias = Callable[[str], NoReturn]


class Parser(argparse.ArgumentParser):
    """A parser that prints an error on one line, without a usage message."""

    def __init__(self, **options: Any) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(add_help=False, formatter_class=raw, **options)
        self.add_argument("-h", "--help", action="help", help="Print this help and exit.")

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


# ---- values of options ------------------------------------------------------------------------


def invalid(expected: str, text: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"expected {expected}, but got {text!r}")


def number(
    text: str, kind: Callable[[str], Number], is_valid: Callable[[Number], bool], expected: str
) -> Number:
    """Return `kind(text)`. Raise an error if `kind` rejects the text or the number is not valid."""
    try:
        value: Number | None = kind(text)
    except ValueError:
        value = None
    if value is None or not is_valid(value):
        raise invalid(expected, text)
    return value


def probability(text: str) -> float:
    """Parse p for `cdropout bench`. Reject 0 and 1, for which no mask is drawn."""
    return number(text, float, lambda p: 0 < p < 1, "a probability between 0 and 1, both excluded")


def stream_probability(text: str) -> float:
    """Parse p for `cdropout stream`.

    Values close to 0 or 1 are rejected, because `stream_command.extract` would find too few bits.
    """
    low, high = stream_command.MIN_P, 1 - stream_command.MIN_P
    return number(text, float, lambda p: low <= p <= high, f"a probability from {low} to {high}")


def count(text: str) -> int:
    """Parse a number of threads or bytes."""
    return number(text, int, lambda n: n >= 1, "an int of at least 1")


def duration(text: str) -> float:
    """Parse a time in seconds."""
    return number(text, float, lambda s: 0 <= s < math.inf, "a number of seconds of at least 0")


def seed_number(text: str) -> int:
    """Parse a seed."""
    return number(text, int, lambda n: -(2**63) <= n < 2**64, "an int in [-2**63, 2**64)")


def call_number(text: str) -> int:
    """Parse a call number."""
    return number(text, int, lambda n: 0 <= n < 2**64, "an int in [0, 2**64)")


def size(text: str) -> int:
    """Parse a number of elements written as, for example, 1000, 16Ki or 1Mi."""
    match = re.fullmatch(r"([0-9]+)(|Ki|Mi|Gi)", text.strip())
    value = int(match[1]) * UNITS[match[2]] if match else 0
    if not 1 <= value <= MAX_SIZE:
        raise invalid("sizes from 1 to 1Gi such as 64,1Ki,1Mi", text)
    return value


def sizes(text: str) -> list[int]:
    """Parse numbers of elements. Return them in ascending order, without duplicates."""
    return sorted({size(part) for part in text.split(",")})


def dtypes(text: str) -> list[str]:
    """Parse names of element types. Return them in the order of FLOATS, without duplicates."""
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in FLOATS:
            raise invalid(f"types out of {', '.join(FLOATS)}", name)
    return [name for name in FLOATS if name in names]


def new_file(text: str) -> Path:
    """Return the path of a file; raise an error if the file cannot be written."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise invalid("a file in a folder that exists", text)
    exists = path.exists()
    try:
        path.open("ab").close()  # fails if the file cannot be written; its contents are kept
        if not exists:
            path.unlink()
    except OSError as problem:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {problem.strerror}") from None
    return path


def image_file(text: str) -> Path:
    """Return the path of an image file; raise an error if its suffix is not in IMAGE_SUFFIXES."""
    path = new_file(text)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise invalid(f"a name that ends in {', '.join(IMAGE_SUFFIXES)}", text)
    return path


# ---- the commands -----------------------------------------------------------------------------


def chosen_peers(named: list[str], error: Error) -> list[str]:
    """Return the names of the implementations to time; by default, one per installed library."""
    installed = peers.installed()
    for single in "none", "all":
        if single in named and len(named) > 1:
            error(f"argument --peer: {single} cannot be combined with other names")
    if not named:
        return [name for name in installed if not peers.is_variant(name)]
    if named in (["none"], ["all"]):
        return installed if named == ["all"] else []
    for name in named:
        if package := peers.missing(name):
            error(f"argument --peer: {name} needs {package}, which is not installed")
    return [name for name in peers.PEERS if name in named]


def check_bench(options: argparse.Namespace, error: Error) -> None:
    """Set options.peers.

    Exit with an error message if options contradict each other or need a missing package.
    """
    options.peers = chosen_peers(options.peer, error)
    if options.plot and find_spec("matplotlib") is None:
        error("argument --plot: this needs matplotlib: pip install 'cdropout[bench]'")
    missing = [name for name in options.dtype if not hasattr(np, name)]
    if missing and find_spec("ml_dtypes") is None:
        error(f"argument --dtype: {missing[0]} needs ml_dtypes: pip install 'cdropout[bench]'")


@contextlib.contextmanager
def ignore_ctrl_c() -> Iterator[None]:
    """Ignore Ctrl-C in this process, but not in the processes that it starts."""
    before = signal.signal(signal.SIGINT, lambda *_: None)  # new processes would inherit SIG_IGN
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_bench(options: argparse.Namespace, error: Error, arguments: list[str]) -> int:
    """Run the benchmark and return the exit code.

    If another instruction set was requested, the benchmark runs in a new process, because the set
    is chosen at import.
    """
    check_bench(options, error)
    isa = options.isa or dispatch.isa
    if reason := dispatch.obstacle(isa, dispatch.built(), dispatch.runnable()):
        error(f"argument --isa: {reason}")
    if isa != dispatch.isa:
        statement = f"from cdropout.__main__ import main; sys.exit(main({arguments!r}))"
        with ignore_ctrl_c():  # after Ctrl-C, the new process prints its results
            return selftest.run_with_isa(isa, statement).returncode
    try:
        return bench.run(options)
    except MemoryError:
        error(f"not enough memory for {timing.size_name(options.sizes[-1])} elements")


def run_info(options: argparse.Namespace, *_: object) -> int:
    """Print versions, build, settings and CPU, or, with --include, the include folder; return 0."""
    if options.include:
        print(cd.get_include())
        return 0
    lines = {
        "cdropout": cd.__version__,
        "built for": dispatch.describe(dispatch.built(), dispatch.vectors),
        "built by": dispatch.compiler,
        "this CPU runs": ", ".join(dispatch.runnable()),
        "in use": dispatch.isa,
        "threads": f"at most {cd.get_num_threads()} per call",
        "include folder": cd.get_include(),
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "CPU": timing.cpu_name(),
    }
    if advice := timing.advice():
        lines["to be faster"] = advice
    for name, value in lines.items():
        print(f"{name + ':':15} {value}")
    return 0


def run_selftest(*_: object) -> int:
    """Check each instruction set that is built and that this CPU runs; return the exit code."""
    return selftest.run()


# ---- the parsers ------------------------------------------------------------------------------


def add_command(commands: Any, name: str, run: Callable[..., int], **texts: str) -> Any:
    """Add a command that calls `run`; return the function that adds options to the command."""
    parser = commands.add_parser(name, **texts)
    parser.set_defaults(run=run, error=parser.error)
    return parser.add_argument


def add_bench(commands: Any) -> None:
    """Add the command `bench` and its options to the parser of commands."""
    add = add_command(
        commands,
        "bench",
        run_bench,
        help="Compare the speed of dropout in cdropout, NumPy and the installed frameworks.",
        description=BENCH_DESCRIPTION,
        epilog=BENCH_EXAMPLES,
    )
    names, kinds = [*peers.PEERS, "all", "none"], ", ".join(FLOATS)
    add(
        "--sizes",
        type=sizes,
        default=SIZES,
        metavar="N,N",
        help=f"Time arrays of these numbers of elements. The default is {SIZES}.",
    )
    add(
        "--p",
        type=probability,
        default=0.1,
        help="Drop each element with this probability. The default is 0.1.",
    )
    add(
        "--dtype",
        type=dtypes,
        default=["float32"],
        metavar="TYPE,TYPE",
        help=f"Time these element types, out of {kinds}. The default is float32.",
    )
    add(
        "--isa",
        type=str.lower,
        choices=dispatch.INSTRUCTION_SETS,
        metavar="ISA",
        help=f"Use this instruction set, out of {', '.join(dispatch.INSTRUCTION_SETS)}. By "
        "default, CDROPOUT_ISA determines it; without this variable, it is the widest one.",
    )
    add(
        "--threads",
        type=count,
        default=1,
        metavar="N",
        help="Allow each implementation this number of threads. The default is 1.",
    )
    add(
        "--peer",
        action="append",
        choices=names,
        default=[],
        metavar="NAME",
        help=f"Compare cdropout only with this implementation, out of {', '.join(peers.PEERS)}. "
        "Repeat the option to name several. 'none' compares it only with memcpy; 'all' with every "
        "installed implementation, which takes longer. The default is one per installed library.",
    )
    add("--cold", action="store_true", help="Empty the cache before each call.")
    add(
        "--seconds",
        type=duration,
        default=0.3,
        metavar="S",
        help="Measure each row of a table for this time. The default is 0.3.",
    )
    add("--json", type=new_file, metavar="FILE", help="Write all numbers to this file.")
    add(
        "--plot",
        type=image_file,
        metavar="FILE",
        help="Draw a chart and write it to this file, whose name ends in "
        f"{', '.join(IMAGE_SUFFIXES)}. This needs matplotlib.",
    )


def run_stream(options: argparse.Namespace, error: Error, _: object) -> int:
    """Write mask bits to standard output, and return the exit code."""
    return stream_command.run(options, error)


def add_stream(commands: Any) -> None:
    """Add the command `stream` and its options to the parser of commands."""
    add = add_command(
        commands,
        "stream",
        run_stream,
        help="Write mask bits to standard output, for suites of statistical tests.",
        description=stream_command.DESCRIPTION,
        epilog=stream_command.HELP,
    )
    add(
        "--seed",
        type=seed_number,
        default=0,
        metavar="S",
        help="Draw masks of this seed. The default is 0.",
    )
    add(
        "--call",
        type=call_number,
        default=0,
        metavar="C",
        help="Draw masks of this call number. The default is 0.",
    )
    add(
        "--p",
        type=stream_probability,
        default=0.5,
        help="Drop each element with this probability. The default is 0.5.",
    )
    add(
        "--order",
        choices=stream_command.ORDERS,
        default="natural",
        metavar="ORDER",
        help=f"Write the bits in this order, out of {', '.join(stream_command.ORDERS)}; see below. "
        "The default is natural.",
    )
    add(
        "--bytes",
        type=count,
        metavar="N",
        help="Stop after this number of bytes. By default, the stream is endless.",
    )


def make_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="cdropout",
        description="Measure and check cdropout: dropout on the CPU at the speed of memory.",
        epilog=EXAMPLES,
    )
    version = f"cdropout {cd.__version__}"
    text = "Print the version and exit."
    parser.add_argument("--version", action="version", version=version, help=text)
    commands = parser.add_subparsers(metavar="command", title="commands")
    add_bench(commands)
    add = add_command(
        commands,
        "info",
        run_info,
        help="Print the version, the instruction sets, the number of threads and the folders.",
        description=INFO_DESCRIPTION,
        epilog=INFO_EXAMPLES,
    )
    add("--include", action="store_true", help="Print only the folder that contains cdropout.h.")
    add_command(
        commands,
        "selftest",
        run_selftest,
        help="Check that each instruction set draws the recorded masks on this machine.",
        description=selftest.DESCRIPTION,
        epilog="example:\n  cdropout selftest",
    )
    add_stream(commands)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : list of str, optional
        The arguments after the program's name; by default those of the process.

    Returns
    -------
    int
        The exit code: 0 on success, 1 after a failure, 130 after Ctrl-C. If the reader of standard
        output closed the pipe, it is 0 for `stream` and 141 for the other commands. A wrong option
        raises SystemExit with code 2.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        try:
            parser = make_parser()
            options = parser.parse_args(arguments)
            if not hasattr(options, "run"):
                parser.error(MISSING_COMMAND)
            return int(options.run(options, options.error, arguments))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # errors of Python's own flush at exit could not be handled
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
    """Discard the output that was not written, since the flush at exit would fail again."""
    with contextlib.suppress(OSError, ValueError):  # standard output may have no file descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
