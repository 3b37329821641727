"""The folder of the header of the C interface."""

import os


def get_include() -> str:
    """Return the folder of cdropout.h, for a compiler's -I.

    On the command line, `cdropout info --include` prints it.

    Returns
    -------
    str
        An absolute path.

    Examples
    --------
    >>> import os
    >>> import cdropout
    >>> "cdropout.h" in os.listdir(cdropout.get_include())
    True
    """
    return os.path.dirname(os.path.abspath(__file__))
