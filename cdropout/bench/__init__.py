"""The benchmark, `cdropout bench`: implementations are checked, timed and compared."""

import contextlib
import json
from pathlib import Path
from typing import Any

from cdropout.bench import check, peers, table, timing


def load(name, dtype, options):
    """Return (implementation, None), or (None, error) if the implementation fails or is wrong."""
    timing.show_progress(f"checking {name} with {dtype}")
    factory = {**peers.OURS, **peers.ADAPTERS, **peers.PEERS}[name]
    try:
        implementation = factory(options.threads, dtype)
        error = check.find_error(implementation, dtype, options.p)
    except Exception as problem:  # an exception of any type must not end the benchmark
        implementation, error = None, f"{type(problem).__name__}: {problem}"
    return (None, " ".join(error.split())) if error else (implementation, None)


def load_all(dtype, results, options):
    """Return the implementations that pass their checks; record all of them in `results`."""
    loaded = []
    for name in [*peers.OURS, *peers.adapters_of(options.peers), *options.peers]:
        implementation, error = load(name, dtype, options)
        if error:
            errors = [results["left_out"].get(name), f"{dtype}: {error}"]
            results["left_out"][name] = "; ".join(filter(None, errors))
            continue
        loaded.append(implementation)
        results["implementations"][name] = implementation.version
        cpus = check.cpus_used(implementation, dtype, options.p)
        if cpus > options.threads + 0.2:
            results["too_many_cpus"][name] = cpus
    return loaded


def measure(options):
    """Return the results of a run, as a dict that can be written as JSON."""
    results = {
        "environment": timing.environment(options),
        "implementations": {},
        "left_out": {},
        "too_many_cpus": {},
        "measurements": [],
    }
    cpu_usage = timing.start_cpu_usage()
    for dtype in options.dtype:
        loaded = load_all(dtype, results, options)
        for size in options.sizes:
            measured = timing.measure_size(size, dtype, loaded, options)
            results["measurements"] += [each._asdict() for each in measured]
    results["environment"]["cpu_usage"] = cpu_usage()
    timing.show_progress("")
    return results


@contextlib.contextmanager
def path_in_errors(path):
    """Add the path to each OSError without a path, such as the error for a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def run(options: Any) -> int:
    """Run the benchmark.

    Parameters
    ----------
    options : argparse.Namespace
        p, dtype and sizes (lists), threads, cold, seconds, peers (names), json and plot (a path
        or None), as checked by `cdropout.__main__`.

    Returns
    -------
    int
        The exit code: 1 if cdropout itself failed its check, otherwise 0.
    """
    results = measure(options)
    measurements = [timing.Measurement(**each) for each in results["measurements"]]
    print(*table.heading(results), "", *table.tables(measurements), sep="\n")
    if options.json:
        with path_in_errors(options.json):
            Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
    if options.plot:
        with path_in_errors(options.plot):
            table.plot(results["environment"], measurements, options.plot)
    return int(any(name in results["left_out"] for name in peers.OURS))
