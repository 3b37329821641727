"""Configuration of the tests of PyTorch."""

import pytest


def pytest_collection_modifyitems(items):
    """Ignore the warnings that torch.jit is deprecated, because PyTorch itself uses torch.jit."""
    for item in items:
        if "torch_adapter" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("ignore:`torch.jit"))
