"""Limits of the memory that a process can map, for scripts that `subprocess_runner` runs."""

import resource


def set_memory_limit(extra):
    """Let this process map at most `extra` bytes more than are mapped now; needs Linux."""
    with open("/proc/self/statm") as status:
        mapped = int(status.read().split()[0]) * resource.getpagesize()
    hard_limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (mapped + extra, hard_limit))


def remove_memory_limit():
    """Remove the limit that `set_memory_limit` has set."""
    hard_limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard_limit, hard_limit))
