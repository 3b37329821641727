"""Who takes part in `cdropout bench`: copies, this package, NumPy's idioms, and the frameworks."""

from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np

import cdropout as cd
from cdropout._core import streaming_copy
from cdropout.bench.contestant import Contestant
from cdropout.bench.frameworks import FRAMEWORKS, tensorflow_adapter, torch_adapter

PIECE = 1 << 18  # bytes from which a copy is worth handing to another thread

# ---- what everything is measured against ------------------------------------------------------


def split_copy(copy, to, source, pool, threads):
    """A call without arguments that copies source to `to`, each thread a piece."""
    pieces = min(threads, to.size // PIECE)
    if pieces < 2:
        return lambda: copy(to, source)
    parts = np.array_split(to, pieces), np.array_split(source, pieces)
    return lambda: list(pool.map(copy, *parts))


def copier(copy, threads=1):
    """The `prepare` of a copy of the same bytes, to memory that is already there."""
    pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def prepare(arrays, _):
        x, gy, y, gx = (array.view(np.uint8) for array in arrays)
        forward, backward = (split_copy(copy, *pair, pool, threads) for pair in ((y, x), (gx, gy)))
        return forward, lambda: (forward(), backward())

    return prepare


def rooflines(threads):
    """The copies that show the limits of memory: {name: prepare}.

    `memcpy` is one thread's; `memcpy-threads` that of all; `memcpy-stream` that of all with
    streaming stores, which spare the reading of what is about to be overwritten. The C library
    uses these by itself only from a size on, of hundreds of megabytes on some machines.
    """
    found = {"memcpy": copier(np.copyto)}
    if threads > 1:
        found["memcpy-threads"] = copier(np.copyto, threads)
    if streaming_copy.streams:
        found["memcpy-stream"] = copier(streaming_copy.stream_copy, threads)
    return found


def cdropout(threads, _):
    """This package, to memory that is there; the mask is all that the backward needs."""
    cd.set_num_threads(threads)

    def prepare(arrays, p):
        x, gy, y, gx = arrays

        def both():
            _, mask = cd.dropout(x, p, return_mask=True, out=y)
            return y, cd.dropout_backward(gy, mask, out=gx)

        return lambda: cd.dropout(x, p, out=y), both

    return Contestant("cdropout", version("cdropout"), prepare)


def cdropout_new(threads, _):
    """This package, to new arrays, as the frameworks do it."""
    cd.set_num_threads(threads)

    def prepare(arrays, p):
        def both():
            y, mask = cd.dropout(arrays.x, p, return_mask=True)
            return y, cd.dropout_backward(arrays.gy, mask)

        return lambda: cd.dropout(arrays.x, p), both

    return Contestant("cdropout-new", version("cdropout"), prepare)


OURS = {"cdropout": cdropout, "cdropout-new": cdropout_new}
ADAPTERS = {  # each beside the framework of its name
    "cdropout-torch": torch_adapter,
    "cdropout-tensorflow": tensorflow_adapter,
}


def adapters_beside(others):
    """The names of the adapters to these frameworks."""
    return [name for name in ADAPTERS if name.partition("-")[2] in others]


# ---- NumPy ------------------------------------------------------------------------------------


def numpy_reused(*_):
    """Uniform numbers of one Generator, compared with p, in arrays that are used again."""
    random = np.random.default_rng()

    def prepare(arrays, p):
        x, gy, y, gx = arrays
        drawn = np.float64 if x.dtype == np.float64 else np.float32
        uniform, mask = np.zeros(x.shape, drawn), np.zeros_like(x)
        keep = np.zeros(x.shape, np.bool_)
        scale = x.dtype.type(1 / (1 - p))

        def forward():
            random.random(out=uniform, dtype=drawn)
            np.greater_equal(uniform, p, out=keep)
            np.multiply(keep, scale, out=mask)
            return np.multiply(x, mask, out=y)

        return forward, lambda: (forward(), np.multiply(gy, mask, out=gx))

    return Contestant("numpy", np.__version__, prepare)


def numpy_idiom(name, scaled_mask):
    """The contestant that multiplies by `scaled_mask(shape, p)`, in new arrays throughout."""

    def prepare(arrays, p):
        x, gy = arrays.x, arrays.gy

        def both():
            mask = scaled_mask(x.shape, p).astype(x.dtype)
            return x * mask, gy * mask

        return lambda: x * scaled_mask(x.shape, p).astype(x.dtype), both

    return Contestant(name, np.__version__, prepare)


def numpy_rand(*_):
    """The lines of many courses: `np.random.rand`, the legacy generator, in float64."""
    return numpy_idiom("numpy-rand", lambda shape, p: (np.random.rand(*shape) >= p) / (1 - p))


def numpy_binomial(*_):
    """A draw from the binomial distribution of one trial for each element."""
    random = np.random.default_rng()
    return numpy_idiom(
        "numpy-binomial", lambda shape, p: random.binomial(1, 1 - p, shape) / (1 - p)
    )


PEERS = {
    "numpy": numpy_reused,
    "numpy-rand": numpy_rand,
    "numpy-binomial": numpy_binomial,
    **FRAMEWORKS,
}


def is_variant(name: str) -> bool:
    """Whether this is another way to call a library that takes part already."""
    return "-" in name


def missing(name: str) -> str | None:
    """Return a package that this peer needs and that is not installed; import none."""
    needed = ["tensorflow"] if name == "keras" else []  # its backend in the race
    return next((each for each in [name.partition("-")[0], *needed] if not find_spec(each)), None)


def installed() -> list[str]:
    """Return the names of the peers that can be imported, without importing them."""
    return [name for name in PEERS if missing(name) is None]
