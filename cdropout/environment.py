"""Error messages for failures during the import of the package."""

import os
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path


def is_command() -> bool:
    """Return whether this process was started as `cdropout` or as `python -m cdropout`."""
    program = os.path.basename(next(iter(getattr(sys, "argv", [])), ""))
    if program == "-m":  # the value of sys.argv[0] until Python has found the module
        return module_to_run(sys.orig_argv[1:]) in ("cdropout", "cdropout.__main__")
    return program in ("cdropout", "cdropout.exe", "cdropout-script.py")


def module_to_run(arguments: list[str]) -> str | None:
    """Return the value of the option -m among the arguments of Python, or None if it is missing."""
    remaining = iter(arguments)
    for argument in remaining:
        option = re.match("-[^-cmWX]*([mWX])(.*)", argument)  # the value may be the next argument
        if option or argument == "--check-hash-based-pycs":
            value = option[2] if option and option[2] else next(remaining, None)
            if option and option[1] == "m":
                return value
    return None


def exit_command(error: ValueError) -> None:
    """If this process is the command line, print the error in one line and exit with code 2."""
    if is_command():
        print(f"cdropout: error: {error}", file=sys.stderr)
        sys.exit(2)


def unbuilt_checkout() -> str:
    """Return an error message that explains what to do about a checkout that is not built."""
    here, remedy = Path(__file__).parents[1], "run `pip install -e .` in it"
    others = [str(Path(entry, "cdropout", "_core")) for entry in sys.path]
    if PathFinder.find_spec("mask", others):
        return (
            f"cdropout is installed, but the checkout {here}, which is not built, hides it: "
            f"start Python in another folder, or {remedy}"
        )
    return f"the checkout {here} of cdropout is not built: {remedy}"
