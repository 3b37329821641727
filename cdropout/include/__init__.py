"""Where the header of the C interface lies."""

import os


def get_include() -> str:
    """Return the folder of cdropout.h, for a compiler's -I."""
    return os.path.dirname(os.path.abspath(__file__))
