"""Fixtures of the tests of the JAX adapter."""

import pytest


@pytest.fixture
def enable_x64():
    """Enable JAX's 64-bit types for one test."""
    import jax

    context = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with context(True):
        yield
