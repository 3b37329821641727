"""Configuration of Sphinx: `sphinx-build -W docs build/docs`, with cdropout installed."""

import io
import os
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec

from docutils import nodes
from docutils.parsers.rst import Directive

import cdropout
from cdropout.__main__ import main

os.environ.setdefault("KERAS_BACKEND", "numpy")  # otherwise Keras imports TensorFlow

project = "cdropout"
release = version = cdropout.__version__
copyright = "the authors of cdropout"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
default_role = "py:obj"  # docstrings name functions in single backticks
napoleon_google_docstring = False
napoleon_use_ivar = True  # one line per attribute
napoleon_use_param = False  # one line may describe several parameters
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"

# The docstrings of an adapter can only be imported with its framework.
ADAPTERS = ("dask", "flax", "jax", "keras", "tensorflow", "thinc", "torch")
MISSING = [name for name in ADAPTERS if not find_spec(name)]

html_theme = "furo"
html_title = f"cdropout {version}"
html_show_sphinx = False
pygments_dark_style = "github-dark"  # the default underlines the names of modules
html_static_path = ["_static"]
html_css_files = ["wide.css"]


class HelpOf(Directive):
    """Insert the help of a command: ``help-of:: bench``."""

    required_arguments = 1

    def run(self):
        os.environ["COLUMNS"] = "80"
        text = io.StringIO()
        with redirect_stdout(text), suppress(SystemExit):
            main([*self.arguments, "--help"])
        return [nodes.literal_block(text.getvalue(), text.getvalue(), language="text")]


def warn_of_missing_framework(app, page, source):
    """If the framework of an adapter is missing, replace the adapter's page by a warning."""
    name = page.removeprefix("api/adapter_")
    if name in MISSING:
        title = source[0].partition("\n")[0]
        text = f"These pages were built without the package `{name}`, which this page needs"
        remedy = f"`pip install 'cdropout[docs,{name}]'`"
        source[0] = f"{title}\n\n:::{{warning}}\n{text}: install it with {remedy}.\n:::\n"
        print(f"{page}: no API, because the package {name} is missing")


def setup(app):
    app.add_directive("help-of", HelpOf)
    app.connect("source-read", warn_of_missing_framework)
