"""What the command line does about environment variables that stop the import of the package."""

import os
import sys


def is_command() -> bool:
    """Return whether this process was started as `cdropout` or as `python -m cdropout`."""
    program = os.path.basename(next(iter(getattr(sys, "argv", [])), ""))
    if program == "-m":  # until the module that is to run has been found, so during this import
        return "cdropout" in sys.orig_argv
    return program in ("cdropout", "cdropout.exe", "cdropout-script.py")


def exit_command(error: ValueError) -> None:
    """End the process with code 2 and one line for the error, if it is the command line."""
    if is_command():
        print(f"cdropout: error: {error}", file=sys.stderr)
        sys.exit(2)
