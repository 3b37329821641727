"""Errors during the import of the package, and of the modules for frameworks."""

from __future__ import annotations

import os
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType


def is_command() -> bool:
    """During the import, return whether this process runs `cdropout` or `python -m cdropout`."""
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
    """In the command `cdropout`, print the error in one line and exit with code 2."""
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


def check_version(framework: ModuleType) -> None:
    """Raise an ImportError if cdropout does not support the installed version of a framework.

    The range of supported versions is read from the metadata of cdropout. If there are no metadata,
    for example because the folder of cdropout was copied, all versions are accepted.
    """
    from importlib import metadata  # imported here, because the import takes about 20 ms

    name, version = framework.__name__, framework.__version__
    try:
        requirements = metadata.requires("cdropout") or []
    except metadata.PackageNotFoundError:
        return
    for requirement in requirements:
        supported = requirement.partition(";")[0].strip()
        limits = re.findall(r"(>=|<)([\d.]+)", supported)
        if re.match(rf"{name}\b", supported) and not all(
            (sign == "<") == (release(version) < release(limit)) for sign, limit in limits
        ):
            raise ImportError(
                f"cdropout.{name} needs {supported}, but {name} {version} is installed: "
                f"run `pip install 'cdropout[{name}]'`"
            )


def release(version: str) -> list[int]:
    """Return the first three numbers of a version without trailing zeros: [2, 16] for 2.16.0rc1."""
    numbers = [int(number) for number in re.split(r"[^\d.]", version)[0].split(".")[:3] if number]
    while numbers and numbers[-1] == 0:
        del numbers[-1]
    return numbers
