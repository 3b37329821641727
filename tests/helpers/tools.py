"""Access to the programs of tools/ from tests."""

import importlib.util
from pathlib import Path

TOOLS = Path(__file__).parents[2] / "tools"


def load_tool(path):
    """Load the program at this path in tools/ and return it as a module."""
    name = path.removesuffix(".py").replace("/", ".")
    specification = importlib.util.spec_from_file_location(name, TOOLS / path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
