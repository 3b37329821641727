"""Messages for an import of the package that fails."""

import os
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path


def is_command() -> bool:
    """Return True if this process was started as `cdropout` or as `python -m cdropout`."""
    program = os.path.basename(next(iter(getattr(sys, "argv", [])), ""))
    if program == "-m":  # Python sets this until it has found the module, so during this import
        return module_to_run(sys.orig_argv[1:]) in ("cdropout", "cdropout.__main__")
    return program in ("cdropout", "cdropout.exe", "cdropout-script.py")


def module_to_run(arguments: list[str]) -> str | None:
    """Return the module that the option -m names among the arguments of Python."""
    words = iter(arguments)
    for word in words:
        option = re.match("-[^-cmWX]*([mWX])(.*)", word)  # its value is the rest or the next word
        if option or word == "--check-hash-based-pycs":
            value = option[2] if option and option[2] else next(words, None)
            if option and option[1] == "m":
                return value
    return None


def exit_command(error: ValueError) -> None:
    """End the process with code 2 and one line for the error, if it is the command line."""
    if is_command():
        print(f"cdropout: error: {error}", file=sys.stderr)
        sys.exit(2)


def unbuilt_checkout() -> str:
    """Return what is wrong in a checkout that is not built, and what to do."""
    here, how = Path(__file__).parents[1], "run `pip install -e .` in it"
    others = [str(Path(entry, "cdropout", "_core")) for entry in sys.path]
    if PathFinder.find_spec("mask", others):
        return (
            f"cdropout is installed, but the checkout {here}, which is not built, hides it: "
            f"start Python in another folder, or {how}"
        )
    return f"the checkout {here} of cdropout is not built: {how}"
