"""The command line: `cdropout bench`, `cdropout info`, `cdropout selftest`."""

import argparse
import math
import platform
import re
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import cdropout as cd
from cdropout import bench, peers, selftest
from cdropout.core import dispatch

SIZES = "64,1Ki,16Ki,256Ki,1Mi,16Mi"
LARGEST = 1 << 30  # elements: gigabytes in each of some twenty arrays
SUFFIXES = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20}
PICTURES = (".png", ".pdf", ".svg")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message):
        """Say what is wrong and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


# ---- values of options ------------------------------------------------------------------------


def number(text, kind, good, expected):
    """text as a number of this kind for which `good` holds; else an error with both sides."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not good(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, but got {text!r}")
    return value


def probability(text):
    """p; at 0 and 1 nothing is drawn, so there is nothing to race."""
    return number(text, float, lambda p: 0 < p < 1, "a probability between 0 and 1, both excluded")


def threads(text):
    """A number of threads."""
    return number(text, int, lambda n: n >= 1, "an int of at least 1")


def duration(text):
    """A time in seconds."""
    return number(text, float, lambda s: 0 <= s < math.inf, "a number of seconds of at least 0")


def size(text):
    """A number of elements: 1000, 16Ki, 1Mi."""
    match = re.fullmatch(r"([0-9]+)(|Ki|Mi)", text.strip())
    value = int(match[1]) * SUFFIXES[match[2]] if match else 0
    if not 1 <= value <= LARGEST:
        expected = "sizes from 1 to 1024Mi such as 64,1Ki,1Mi"
        raise argparse.ArgumentTypeError(f"expected {expected}, but got {text!r}")
    return value


def sizes(text):
    """Numbers of elements, in rising order."""
    return sorted({size(part) for part in text.split(",")})


def new_file(text):
    """A path that can be written, checked now and not after the race."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        expected = "a file in a folder that exists"
        raise argparse.ArgumentTypeError(f"expected {expected}, but got {text!r}")
    return path


def picture(text):
    """A path with a suffix that can be drawn."""
    path = new_file(text)
    if path.suffix.lower() not in PICTURES:
        expected = f"a name that ends in {', '.join(PICTURES)}"
        raise argparse.ArgumentTypeError(f"expected {expected}, but got {text!r}")
    return path


# ---- the commands -----------------------------------------------------------------------------


def chosen_peers(options, error):
    """The names of the peers to race: all that are installed, unless some were named."""
    installed = peers.installed()
    if options.kernels:
        return []
    if not options.peer:
        return installed
    if "none" in options.peer:
        if len(options.peer) > 1:
            error("argument --peer: none excludes other peers")
        return []
    for name in options.peer:
        if name not in installed:
            error(f"argument --peer: {name} is not installed")
    return [name for name in peers.PEERS if name in options.peer]


def run_bench(options, error, arguments):
    """Race, in a new process if another instruction set is wanted: it is chosen at import."""
    options.peers = chosen_peers(options, error)
    if options.plot and find_spec("matplotlib") is None:
        error("argument --plot: this needs matplotlib: pip install 'cdropout[bench]'")
    if options.plot and options.kernels:
        error("argument --plot: --kernels leaves nothing to draw")
    try:
        wanted = dispatch.choose(options.isa or dispatch.isa, dispatch.built(), dispatch.runnable())
    except ValueError as problem:
        error(f"argument --isa: {problem}")
    if wanted != dispatch.isa:
        statement = f"from cdropout.__main__ import main; sys.exit(main({arguments!r}))"
        return selftest.run_under(wanted, statement).returncode
    try:
        return bench.run(options)
    except MemoryError:
        error(f"not enough memory for {bench.size_name(options.sizes[-1])} elements")


def run_info(*_):
    """Print what was installed, what is in use, and where things are."""
    lines = {
        "cdropout": version("cdropout"),
        "built for": ", ".join(dispatch.built()),
        "this CPU runs": ", ".join(dispatch.runnable()),
        "in use": dispatch.isa,
        "threads": cd.get_num_threads(),
        "include folder": cd.get_include(),
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "CPU": bench.cpu_name(),
    }
    for name, value in lines.items():
        print(f"{name + ':':15} {value}")
    return 0


def run_selftest(*_):
    """Prove that every instruction set is right here."""
    return selftest.run()


def add_bench(commands):
    """Add the command bench with its options."""
    parser = commands.add_parser(
        "bench",
        help="race NumPy's dropout, and that of installed frameworks, against this package",
        description="Check every contestant, then time dropout, forward and forward+backward, "
        "beside memcpy.",
    )
    add = parser.add_argument
    names = [*peers.PEERS, "none"]
    add("--sizes", type=sizes, default=SIZES, metavar="N,N", help=f"elements (default {SIZES})")
    add("--p", type=probability, default=0.1, help="probability of a drop (default 0.1)")
    add("--dtype", choices=["float32", "float64"], default="float32")
    add("--isa", choices=dispatch.INSTRUCTION_SETS, help="default: CDROPOUT_ISA, or the widest")
    add("--threads", type=threads, default=1, metavar="N", help="of each contestant (default 1)")
    add("--peer", action="append", choices=names, help="only this one; repeatable (default: all)")
    add("--kernels", action="store_true", help="only the section on the kernels")
    add("--seconds", type=duration, default=0.3, help="for each number printed (default 0.3)")
    add("--json", type=new_file, metavar="FILE", help="write all numbers to a file")
    add("--plot", type=picture, metavar="FILE.png", help="draw the table (needs matplotlib)")
    parser.set_defaults(run=run_bench, error=parser.error)


def make_parser():
    """The parser of all commands."""
    parser = Parser(prog="cdropout", description="Dropout on the CPU at the speed of memory.")
    parser.add_argument("--version", action="version", version=f"cdropout {version('cdropout')}")
    commands = parser.add_subparsers(metavar="command", required=True)
    add_bench(commands)
    info = commands.add_parser("info", help="print version, instruction sets, threads and folders")
    info.set_defaults(run=run_info, error=info.error)
    check = commands.add_parser("selftest", help="prove that every instruction set is right here")
    check.set_defaults(run=run_selftest, error=check.error)
    return parser


def main(arguments=None):
    """Run a command.

    Parameters
    ----------
    arguments : list of str, optional
        By default those of the process.

    Returns
    -------
    int
        The exit code; a wrong option exits with 2 at once.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = make_parser().parse_args(arguments)
    try:
        return options.run(options, options.error, arguments)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
