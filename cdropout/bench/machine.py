"""What the numbers of the benchmark depend on: the CPU, its cache, and the memory of a process."""

import datetime
import platform
import re
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

from cdropout._core import dispatch

UNKNOWN_CACHE = 64 << 20  # bytes: more than the last-level cache of most CPUs


def words_of(path):
    """The text of a file of /proc or /sys, or nothing on a system without it."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def cpu_name() -> str:
    """The CPU's own name, where the system says it."""
    name = re.search(r"^model name\s*:\s*(.+)$", words_of("/proc/cpuinfo"), re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()


def advice() -> str:
    """Return what would make this package faster on this CPU, or an empty string."""
    return dispatch.advise(dispatch.isa, dispatch.built(), dispatch.runnable(), dispatch.vectors)


def environment(options):
    """What the numbers depend on."""
    return {
        "cdropout": version("cdropout"),
        "isa": dispatch.isa,
        "vectors": dispatch.vectors,
        "compiler": dispatch.compiler,
        "faster": advice(),
        "cpu": cpu_name(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "threads": options.threads,
        "p": options.p,
        "dtype": ",".join(options.dtype),
        "cold": options.cold,
        "runs": 1,
    }


def cpu_share():
    """Return a function that says which share of one CPU this process has got since now."""
    began, busy = time.perf_counter(), time.process_time()
    return lambda: (time.process_time() - busy) / (time.perf_counter() - began)


# ---- the cache --------------------------------------------------------------------------------


def cache_bytes():
    """The size of the largest cache that the first CPU sees."""
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    sizes = [words_of(path).strip() for path in folder.glob("index*/size")]
    return max(
        (int(size[:-1]) << 10 for size in sizes if size.endswith("K")), default=UNKNOWN_CACHE
    )


@cache
def sweep():
    """Memory of twice the size of the cache: two, since CPUs do not evict in the order of use."""
    return np.ones(2 * cache_bytes(), np.uint8)


def empty_cache():
    """Fill the cache with other bytes. They are only read, so that none has to be written back."""
    sweep().max()


# ---- memory -----------------------------------------------------------------------------------


def kibibytes(path, name):
    """The number beside this name in a file of /proc, in bytes; None on a system without it."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", words_of(path), re.MULTILINE)
    return int(found[1]) << 10 if found else None


def free_memory():
    """The bytes that can be had without swapping, or None where the system does not say it."""
    return kibibytes("/proc/meminfo", "MemAvailable")


def resident_memory():
    """The bytes of this process that are in memory, or None."""
    return kibibytes("/proc/self/status", "VmRSS")


def peak_memory():
    """The most bytes of this process that were in memory at once, or None.

    That of `getrusage` will not do: a new process inherits its parent's.
    """
    return kibibytes("/proc/self/status", "VmHWM")


def forget_peak():
    """Let the peak begin anew at what is in memory now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux: there `peak_memory` says None
        pass
