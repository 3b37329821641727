"""The folder that contains cdropout.h, the header of the C interface."""

import os


def get_include() -> str:
    """Return the folder that contains cdropout.h, for the include path of a C compiler.

    The command `cdropout info --include` prints this folder.

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
